// bf16 to MXFP4, to the bytes of quant/src/mxfp4/reference.rs.
//
// Each kernel exists for both roundings (even, toward_zero) and with or without a search for the scale of least error. Without it the
// scale follows from the largest magnitude and `round_up` (element.cuh, `rule_scale`); with it `round_up` is 0, and `hints` may be null.
//
// mxfp4_pack_rows_[search_]ROUNDING
//   values bf16 [n, 32], hints u8 [n] or null -> blocks u8 [n, 16], scales u8 [n].
//   Four lanes to a block, 16 bytes of values each: a warp reads 512 bytes and writes 128 at a time, four times in a row so that four loads
//   are under way, and then its 32 scales at once. Warps stride over the grid. Blocks of 256 threads, any grid in x.
//   Alignment: values 16 bytes, blocks 4 bytes. Any n.
//
// mxfp4_pack_columns_[search_]ROUNDING
//   values bf16 [e, 32 s, out], hints u8 [e, out, s] or null -> blocks u8 [e, out, s, 16], scales u8 [e, out, s].
//   A thread block takes tiles of 64 outputs by 8 blocks. Each warp has one block of each output, each lane two neighbouring outputs, whose
//   32 values it reads row by row, 128 bytes a warp, and keeps in registers; what it packed goes through shared memory, so that
//   eight neighbouring threads write 128 bytes of an output. Blocks of 256 threads, any grid in x.
//   Alignment: values 4 bytes with an even number of outputs (else elements are read singly), blocks 16 bytes. Any e, out, s.
//
// first_bad u64 [2], ~0 before: the smallest `index << 8` of the values that are no numbers, and `index << 8 | 255` of the hints of 255.
// Accuracy: the codes and scales of the definition, bit for bit.

#include "mxfp4_element.cuh"

constexpr unsigned int TILE_OUTPUTS = 64;
constexpr unsigned int TILE_BLOCKS = 8;
constexpr unsigned int WARP = 0xffffffffu;

// The sum over the four lanes of a block.
__device__ __forceinline__ float sum_of_four(float value) {
    value += __shfl_xor_sync(WARP, value, 1);
    return value + __shfl_xor_sync(WARP, value, 2);
}

// The error of a block of which each of four lanes has a part, in units of `start` squared.
template <bool IS_EVEN>
__device__ __forceinline__ float error_of_four(const uint4 &pairs, unsigned int scale, unsigned int start) {
    const Thresholds add = thresholds<IS_EVEN>(scale, scale);
    float first = 0, second = 0;
    add_errors<IS_EVEN>(pairs.x, add, first, second);
    add_errors<IS_EVEN>(pairs.y, add, first, second);
    add_errors<IS_EVEN>(pairs.z, add, first, second);
    add_errors<IS_EVEN>(pairs.w, add, first, second);
    return sum_of_four(first + second) * in_squared_units(scale, start);
}

template <bool SEARCHES, bool IS_EVEN>
__device__ __forceinline__ void pack_rows(const uint4 *__restrict__ values, const unsigned char *__restrict__ hints,
                                          unsigned int *__restrict__ blocks, unsigned char *__restrict__ scales,
                                          unsigned long long num_blocks, unsigned int round_up, unsigned long long *first_bad) {
    constexpr unsigned int PIECES = 4, PIECE_BLOCKS = 8;
    const unsigned int lane = threadIdx.x % 32;
    const unsigned long long warp = (blockIdx.x * 256ull + threadIdx.x) / 32;
    const unsigned long long step = gridDim.x * 8ull * PIECES * PIECE_BLOCKS;
    for (unsigned long long first = warp * PIECES * PIECE_BLOCKS; first < num_blocks; first += step) {
        uint4 pairs[PIECES];
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
            const unsigned long long block = first + piece * PIECE_BLOCKS + lane / 4;
            pairs[piece] = block < num_blocks ? values[block * 4 + lane % 4] : uint4{0, 0, 0, 0};
        }
        // The block whose hint this lane reads and whose scale it writes, so that a warp does either at once.
        const unsigned long long own = first + lane % 4 * PIECE_BLOCKS + lane / 4;
        unsigned int own_hint = RESERVED_SCALE;
        if (SEARCHES && hints != nullptr && own < num_blocks) {
            own_hint = hints[own];
            if (own_hint == RESERVED_SCALE) {
                report(first_bad + 1, own, own_hint);
            }
        }
        unsigned int own_scale = 0;
        bool writes_scale = own < num_blocks;
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
            const unsigned long long block = first + piece * PIECE_BLOCKS + lane / 4;
            const uint4 &of = pairs[piece];
            unsigned int two = __vmaxu2(__vmaxu2(of.x & MAGNITUDES, of.y & MAGNITUDES), __vmaxu2(of.z & MAGNITUDES, of.w & MAGNITUDES));
            two = __vmaxu2(two, __shfl_xor_sync(WARP, two, 1));
            two = __vmaxu2(two, __shfl_xor_sync(WARP, two, 2));
            const unsigned int largest = max(two & 0xffff, two >> 16);
            const unsigned int start = rule_scale(largest, round_up);
            bool needs_care = largest >= NOT_FINITE || start <= SMALLEST_SCALE;
            unsigned int scale = start, hint = RESERVED_SCALE;
            if (SEARCHES) {
                if (hints != nullptr) {
                    hint = __shfl_sync(WARP, own_hint, (lane & ~3u) | piece);
                    needs_care |= hint > LARGEST_SCALE;
                }
                const float of_start = error_of_four<IS_EVEN>(of, start, start);
                const float of_next = error_of_four<IS_EVEN>(of, next_scale(start), start);
                float of_hint = 0;
                const bool is_asked = is_third(hint, start);
                if (__any_sync(WARP, is_asked)) {
                    of_hint = error_of_four<IS_EVEN>(of, is_asked ? hint : start, start);
                }
                scale = best_scale(start, of_start, of_next, hint, of_hint);
            }
            if (block < num_blocks) {
                if (!needs_care) {
                    blocks[block * 4 + lane % 4] = pack_word<IS_EVEN>(of, thresholds<IS_EVEN>(scale, scale));
                } else if (lane % 4 == 0) {
                    const unsigned short *elements = (const unsigned short *)(values + block * 4);
                    const unsigned int done =
                        pack_block_exact(elements, 1, round_up, SEARCHES, IS_EVEN, hint, blocks + block * 4, scales + block);
                    if (done < BLOCK_ELEMENTS) {
                        report(first_bad, block * BLOCK_ELEMENTS + done, 0);
                    }
                }
            }
            if (lane % 4 == piece) {
                own_scale = scale;
                writes_scale &= !needs_care;
            }
        }
        if (writes_scale) {
            scales[own] = (unsigned char)own_scale;
        }
    }
}

// The errors of two blocks, each in units of its `start` squared.
template <bool IS_EVEN>
__device__ __forceinline__ float2 errors_of_two(const unsigned int (&pairs)[BLOCK_ELEMENTS], uint2 scale, uint2 start) {
    const Thresholds add = thresholds<IS_EVEN>(scale.x, scale.y);
    float first = 0, second = 0;
#pragma unroll
    for (unsigned int row = 0; row < BLOCK_ELEMENTS; ++row) {
        add_errors<IS_EVEN>(pairs[row], add, first, second);
    }
    return {first * in_squared_units(scale.x, start.x), second * in_squared_units(scale.y, start.y)};
}

template <bool SEARCHES, bool IS_EVEN>
__device__ __forceinline__ void pack_columns(const unsigned short *__restrict__ values, const unsigned char *__restrict__ hints,
                                             uint4 *__restrict__ blocks, unsigned char *__restrict__ scales, unsigned int num_experts,
                                             unsigned int outputs, unsigned int row_blocks, unsigned int round_up,
                                             unsigned long long *first_bad) {
    __shared__ uint4 tile[TILE_OUTPUTS * TILE_BLOCKS];
    __shared__ unsigned char tile_scales[TILE_OUTPUTS * TILE_BLOCKS];
    const unsigned int wide = (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS, high = (row_blocks + TILE_BLOCKS - 1) / TILE_BLOCKS;
    const unsigned long long num_tiles = (unsigned long long)wide * high * num_experts;
    for (unsigned long long index = blockIdx.x; index < num_tiles; index += gridDim.x) {
        const unsigned int first_output = (unsigned int)(index % wide) * TILE_OUTPUTS;
        const unsigned int first_block = (unsigned int)(index / wide % high) * TILE_BLOCKS;
        const unsigned long long expert = index / wide / high;
        const unsigned int lane = threadIdx.x % 32, block = threadIdx.x / 32;
        const unsigned int output = first_output + 2 * lane;
        if (first_block + block < row_blocks && output < outputs) {
            const bool has_second = output + 1 < outputs;
            const unsigned long long first_row = (expert * row_blocks + first_block + block) * BLOCK_ELEMENTS;
            const unsigned short *from = values + first_row * outputs + output;
            unsigned int pairs[BLOCK_ELEMENTS];
            if (outputs % 2 == 0) {
#pragma unroll
                for (unsigned int row = 0; row < BLOCK_ELEMENTS; ++row) {
                    pairs[row] = *(const unsigned int *)(from + row * (unsigned long long)outputs);
                }
            } else {
#pragma unroll
                for (unsigned int row = 0; row < BLOCK_ELEMENTS; ++row) {
                    const unsigned short *two = from + row * (unsigned long long)outputs;
                    pairs[row] = two[0] | (has_second ? (unsigned int)two[1] << 16 : 0);
                }
            }
            unsigned int two = 0;
#pragma unroll
            for (unsigned int row = 0; row < BLOCK_ELEMENTS; ++row) {
                two = __vmaxu2(two, pairs[row] & MAGNITUDES);
            }
            const uint2 largest = {two & 0xffff, two >> 16};
            const uint2 start = {rule_scale(largest.x, round_up), rule_scale(largest.y, round_up)};
            uint2 scale = start, hint = {RESERVED_SCALE, RESERVED_SCALE};
            bool first_needs_care = largest.x >= NOT_FINITE || start.x <= SMALLEST_SCALE;
            bool second_needs_care = largest.y >= NOT_FINITE || start.y <= SMALLEST_SCALE;
            if (SEARCHES) {
                if (hints != nullptr) {
                    const unsigned long long place = (expert * outputs + output) * row_blocks + first_block + block;
                    hint.x = hints[place];
                    hint.y = has_second ? hints[place + row_blocks] : 0;
                    first_needs_care |= hint.x > LARGEST_SCALE;
                    second_needs_care |= hint.y > LARGEST_SCALE;
                    if (hint.x == RESERVED_SCALE) {
                        report(first_bad + 1, place, hint.x);
                    }
                    if (hint.y == RESERVED_SCALE) {
                        report(first_bad + 1, place + row_blocks, hint.y);
                    }
                }
                const float2 of_start = errors_of_two<IS_EVEN>(pairs, start, start);
                const float2 of_next = errors_of_two<IS_EVEN>(pairs, {next_scale(start.x), next_scale(start.y)}, start);
                float2 of_hint = {0, 0};
                const bool asks_first = is_third(hint.x, start.x), asks_second = is_third(hint.y, start.y);
                if (asks_first || asks_second) {
                    of_hint = errors_of_two<IS_EVEN>(pairs, {asks_first ? hint.x : start.x, asks_second ? hint.y : start.y}, start);
                }
                scale.x = best_scale(start.x, of_start.x, of_next.x, hint.x, of_hint.x);
                scale.y = best_scale(start.y, of_start.y, of_next.y, hint.y, of_hint.y);
            }
            const Thresholds add = thresholds<IS_EVEN>(scale.x, scale.y);
            unsigned int first_words[4], second_words[4];
#pragma unroll
            for (unsigned int word = 0; word < 4; ++word) {
                unsigned int parts[2] = {0, 0};
#pragma unroll
                for (unsigned int row = 0; row < 8; ++row) {
                    parts[row / 4] |= pair_codes<IS_EVEN>(pairs[word * 8 + row], add) << (4 * (row % 4));
                }
                first_words[word] = __byte_perm(parts[0], parts[1], 0x5410);
                second_words[word] = __byte_perm(parts[0], parts[1], 0x7632);
            }
            // Exchanged so that neither side meets a bank twice.
            uint4 *first_packed = &tile[2 * lane * TILE_BLOCKS + (block ^ lane % 8)];
            uint4 *second_packed = first_packed + TILE_BLOCKS;
            unsigned char *first_scale = &tile_scales[2 * lane * TILE_BLOCKS + block];
            unsigned char *second_scale = first_scale + TILE_BLOCKS;
            *first_packed = uint4{first_words[0], first_words[1], first_words[2], first_words[3]};
            *second_packed = uint4{second_words[0], second_words[1], second_words[2], second_words[3]};
            *first_scale = (unsigned char)scale.x;
            *second_scale = (unsigned char)scale.y;
            if (first_needs_care) {
                const unsigned int done =
                    pack_block_exact(from, outputs, round_up, SEARCHES, IS_EVEN, hint.x, (unsigned int *)first_packed, first_scale);
                if (done < BLOCK_ELEMENTS) {
                    report(first_bad, (first_row + done) * outputs + output, 0);
                }
            }
            if (second_needs_care && has_second) {
                const unsigned int done =
                    pack_block_exact(from + 1, outputs, round_up, SEARCHES, IS_EVEN, hint.y, (unsigned int *)second_packed, second_scale);
                if (done < BLOCK_ELEMENTS) {
                    report(first_bad, (first_row + done) * outputs + output + 1, 0);
                }
            }
        }
        __syncthreads();

        for (unsigned int chunk = threadIdx.x; chunk < TILE_OUTPUTS * TILE_BLOCKS; chunk += 256) {
            const unsigned int output = chunk / TILE_BLOCKS, block = chunk % TILE_BLOCKS;
            if (first_output + output < outputs && first_block + block < row_blocks) {
                const unsigned long long place = (expert * outputs + first_output + output) * row_blocks + first_block + block;
                blocks[place] = tile[output * TILE_BLOCKS + (block ^ output / 2 % 8)];
                scales[place] = tile_scales[chunk];
            }
        }
        __syncthreads();
    }
}

#define PACK_KERNELS(NAME, SEARCHES, IS_EVEN)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        mxfp4_pack_rows_##NAME(const uint4 *values, const unsigned char *hints, unsigned int *blocks, unsigned char *scales,              \
                               unsigned long long num_blocks, unsigned int round_up, unsigned long long *first_bad) {                    \
        pack_rows<SEARCHES, IS_EVEN>(values, hints, blocks, scales, num_blocks, round_up, first_bad);                                     \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        mxfp4_pack_columns_##NAME(const unsigned short *values, const unsigned char *hints, uint4 *blocks, unsigned char *scales,         \
                                  unsigned int num_experts, unsigned int outputs, unsigned int row_blocks, unsigned int round_up,         \
                                  unsigned long long *first_bad) {                                                                        \
        pack_columns<SEARCHES, IS_EVEN>(values, hints, blocks, scales, num_experts, outputs, row_blocks, round_up, first_bad);            \
    }

PACK_KERNELS(even, false, true)
PACK_KERNELS(toward_zero, false, false)
PACK_KERNELS(search_even, true, true)
PACK_KERNELS(search_toward_zero, true, false)
