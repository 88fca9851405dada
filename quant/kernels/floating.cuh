// bf16 and f32 alike: elements computed with as f32, read and written 16 bytes at a time where they lie so, and sums over the threads of
// a warp or a block in an order that does not change. bf16 is kept as its bits, unsigned short; nothing here needs a header, and all of
// it also compiles for the host, where tests/native/cuda_emulator.cpp stands in for the device.
//
// "chunk": the elements of 16 bytes, 8 of bf16 or 4 of f32. A row of any width is a number of chunks, the last one perhaps not full.

constexpr unsigned int WARP = 0xffffffffu;
constexpr unsigned int THREADS = 256;

// Elements of a chunk.
template <class Element>
constexpr unsigned int LANES = 16 / sizeof(Element);

__device__ __forceinline__ float widened(unsigned short element) { return __uint_as_float((unsigned int)element << 16); }
__device__ __forceinline__ float widened(float element) { return element; }

// The nearest element, ties to even; a NaN stays one.
template <class Element>
__device__ __forceinline__ Element rounded(float value);

template <>
__device__ __forceinline__ unsigned short rounded<unsigned short>(float value) {
    const unsigned int bits = __float_as_uint(value);
    const unsigned int nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (unsigned short)((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40 : nearest);
}

template <>
__device__ __forceinline__ float rounded<float>(float value) {
    return value;
}

__device__ __forceinline__ bool is_aligned(const void *address) { return (unsigned long long)address % 16 == 0; }

__device__ __forceinline__ void load_chunk(const unsigned short *from, float *values) {
    const uint4 pairs = *(const uint4 *)from;
    values[0] = __uint_as_float(pairs.x << 16);
    values[1] = __uint_as_float(pairs.x & 0xffff0000u);
    values[2] = __uint_as_float(pairs.y << 16);
    values[3] = __uint_as_float(pairs.y & 0xffff0000u);
    values[4] = __uint_as_float(pairs.z << 16);
    values[5] = __uint_as_float(pairs.z & 0xffff0000u);
    values[6] = __uint_as_float(pairs.w << 16);
    values[7] = __uint_as_float(pairs.w & 0xffff0000u);
}

__device__ __forceinline__ void load_chunk(const float *from, float *values) {
    const uint4 words = *(const uint4 *)from;
    values[0] = __uint_as_float(words.x);
    values[1] = __uint_as_float(words.y);
    values[2] = __uint_as_float(words.z);
    values[3] = __uint_as_float(words.w);
}

__device__ __forceinline__ unsigned int rounded_pair(float first, float second) {
    return rounded<unsigned short>(first) | (unsigned int)rounded<unsigned short>(second) << 16;
}

__device__ __forceinline__ void store_chunk(unsigned short *to, const float *values) {
    *(uint4 *)to = uint4{rounded_pair(values[0], values[1]), rounded_pair(values[2], values[3]), rounded_pair(values[4], values[5]),
                         rounded_pair(values[6], values[7])};
}

__device__ __forceinline__ void store_chunk(float *to, const float *values) {
    *(uint4 *)to = uint4{__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]), __float_as_uint(values[3])};
}

// Reads whole chunks, or else the first `count` elements one by one, with zeros behind them.
template <class Element, unsigned int COUNT>
__device__ __forceinline__ void load(const Element *from, unsigned int count, bool is_wide, float (&values)[COUNT]) {
    if (is_wide) {
#pragma unroll
        for (unsigned int first = 0; first < COUNT; first += LANES<Element>) {
            load_chunk(from + first, values + first);
        }
    } else {
#pragma unroll
        for (unsigned int lane = 0; lane < COUNT; ++lane) {
            values[lane] = lane < count ? widened(from[lane]) : 0.0f;
        }
    }
}

// Writes what `load` would read.
template <class Element, unsigned int COUNT>
__device__ __forceinline__ void store(Element *to, unsigned int count, bool is_wide, const float (&values)[COUNT]) {
    if (is_wide) {
#pragma unroll
        for (unsigned int first = 0; first < COUNT; first += LANES<Element>) {
            store_chunk(to + first, values + first);
        }
    } else {
#pragma unroll
        for (unsigned int lane = 0; lane < COUNT; ++lane) {
            if (lane < count) {
                to[lane] = rounded<Element>(values[lane]);
            }
        }
    }
}

// The sum over the lanes of a warp, the same in each of them: neighbours first, in five steps.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (unsigned int distance = 1; distance < 32; distance *= 2) {
        value += __shfl_xor_sync(WARP, value, distance);
    }
    return value;
}

// The largest of the threads of a block, the same in each of them; none is a NaN.
__device__ __forceinline__ float block_max(float value) {
    __shared__ float largest[THREADS / 32];
#pragma unroll
    for (unsigned int distance = 1; distance < 32; distance *= 2) {
        value = fmaxf(value, __shfl_xor_sync(WARP, value, distance));
    }
    if (threadIdx.x % 32 == 0) {
        largest[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = largest[0];
#pragma unroll
    for (unsigned int warp = 1; warp < THREADS / 32; ++warp) {
        value = fmaxf(value, largest[warp]);
    }
    // The next ones are written when all have read these.
    __syncthreads();
    return value;
}

// The sum over the threads of a block, the same in each of them: of each warp, then of the warps in their order.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float sums[THREADS / 32];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float total = sums[0];
#pragma unroll
    for (unsigned int warp = 1; warp < THREADS / 32; ++warp) {
        total += sums[warp];
    }
    // The next sums are written when all have read these.
    __syncthreads();
    return total;
}
