// Root mean square normalisation and its gradients. Source: openai/gpt-oss `gpt_oss/torch/model.py`, class `RMSNorm`.
//
// rms_norm_TYPE
//   hidden TYPE [t, d], weight f32 [d] -> out TYPE [t, d], reciprocal f32 [t].
//   reciprocal = 1 / sqrt(mean(hidden^2) + epsilon), out = hidden reciprocal weight.
//
// rms_norm_backward_TYPE
//   hidden TYPE [t, d], weight f32 [d], reciprocal f32 [t], gradient (of out) TYPE [t, d] -> result (of hidden) TYPE [t, d].
//   With n = hidden reciprocal and g = gradient weight: result = reciprocal (g - n mean(g n)).
//
// rms_norm_weight_partials_TYPE, then rms_norm_weight_gradient
//   hidden, reciprocal, gradient as above -> partials f32 [s, d], the sums of gradient n over `slice_rows` rows each (s slices cover t rows);
//   partials f32 [s, d] -> result (of weight) f32 [d].
//
// TYPE bf16 or f32. The first two: a block takes a row at a time, a thread every 256th chunk of it, and reads it again for the result, from
// the cache. Partials: a thread takes one chunk of columns of one slice, row after row; the last kernel: a thread takes a column, slice after
// slice. Neighbouring threads read neighbouring chunks, and all stride over the grid. Blocks of 256 threads, any grid in x; s times the
// chunks of a row is below 2^32.
// Alignment: that of the elements. Fast where d is a whole number of chunks and all addresses are multiples of 16 bytes.
// Accuracy, before the one rounding to TYPE, where a sum of c terms adds k(c) = c / 256 + 32 terms in a row: |out - exact| <= k(d) 2^-24 |out|,
// |result - exact| <= 2 k(d) 2^-24 reciprocal (|g| + |n| mean|g n|); that of the weight is within (slice_rows + s + 8) 2^-24 sum|gradient n|.
// The order of every sum depends on the sizes alone.

#include "floating.cuh"

template <class Element>
__device__ __forceinline__ void forward(const Element *hidden, const float *weight, Element *out, float *reciprocals, unsigned int rows,
                                        unsigned int width, float epsilon) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide = width % LANES<Element> == 0 && is_aligned(hidden) && is_aligned(weight) && is_aligned(out);
    for (unsigned int row = blockIdx.x; row < rows; row += gridDim.x) {
        const unsigned long long start = (unsigned long long)row * width;
        float squares = 0;
        for (unsigned int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            const unsigned int first = chunk * LANES<Element>;
            float values[LANES<Element>];
            load(hidden + start + first, width - first, is_wide, values);
#pragma unroll
            for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                squares += values[lane] * values[lane];
            }
        }
        const float reciprocal = 1.0f / sqrtf(block_sum(squares) / (float)width + epsilon);
        if (threadIdx.x == 0) {
            reciprocals[row] = reciprocal;
        }
        for (unsigned int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            const unsigned int first = chunk * LANES<Element>;
            float values[LANES<Element>], weights[LANES<Element>];
            load(hidden + start + first, width - first, is_wide, values);
            load(weight + first, width - first, is_wide, weights);
#pragma unroll
            for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                values[lane] = values[lane] * reciprocal * weights[lane];
            }
            store(out + start + first, width - first, is_wide, values);
        }
    }
}

template <class Element>
__device__ __forceinline__ void backward(const Element *hidden, const float *weight, const float *reciprocals, const Element *gradient,
                                         Element *result, unsigned int rows, unsigned int width) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide =
        width % LANES<Element> == 0 && is_aligned(hidden) && is_aligned(weight) && is_aligned(gradient) && is_aligned(result);
    for (unsigned int row = blockIdx.x; row < rows; row += gridDim.x) {
        const unsigned long long start = (unsigned long long)row * width;
        const float reciprocal = reciprocals[row];
        float products = 0;
        for (unsigned int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            const unsigned int first = chunk * LANES<Element>;
            float values[LANES<Element>], weights[LANES<Element>], gradients[LANES<Element>];
            load(hidden + start + first, width - first, is_wide, values);
            load(weight + first, width - first, is_wide, weights);
            load(gradient + start + first, width - first, is_wide, gradients);
#pragma unroll
            for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                products += gradients[lane] * weights[lane] * (values[lane] * reciprocal);
            }
        }
        const float mean = block_sum(products) / (float)width;
        for (unsigned int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            const unsigned int first = chunk * LANES<Element>;
            float values[LANES<Element>], weights[LANES<Element>], gradients[LANES<Element>];
            load(hidden + start + first, width - first, is_wide, values);
            load(weight + first, width - first, is_wide, weights);
            load(gradient + start + first, width - first, is_wide, gradients);
#pragma unroll
            for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                values[lane] = reciprocal * (gradients[lane] * weights[lane] - values[lane] * reciprocal * mean);
            }
            store(result + start + first, width - first, is_wide, values);
        }
    }
}

template <class Element>
__device__ __forceinline__ void weight_partials(const Element *hidden, const float *reciprocals, const Element *gradient, float *partials,
                                                unsigned int rows, unsigned int width, unsigned int slice_rows) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide = width % LANES<Element> == 0 && is_aligned(hidden) && is_aligned(gradient) && is_aligned(partials);
    const unsigned int slices = (rows + slice_rows - 1) / slice_rows;
    const unsigned long long items = (unsigned long long)slices * chunks;
    for (unsigned long long item = blockIdx.x * 256ull + threadIdx.x; item < items; item += gridDim.x * 256ull) {
        const unsigned int slice = (unsigned int)item / chunks, first = ((unsigned int)item % chunks) * LANES<Element>;
        const unsigned int first_row = slice * slice_rows, num_rows = min(slice_rows, rows - first_row);
        float sums[LANES<Element>] = {};
        for (unsigned int row = first_row; row < first_row + num_rows; ++row) {
            const unsigned long long place = (unsigned long long)row * width + first;
            float values[LANES<Element>], gradients[LANES<Element>];
            load(hidden + place, width - first, is_wide, values);
            load(gradient + place, width - first, is_wide, gradients);
            const float reciprocal = reciprocals[row];
#pragma unroll
            for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                sums[lane] += gradients[lane] * (values[lane] * reciprocal);
            }
        }
        store(partials + (unsigned long long)slice * width + first, width - first, is_wide, sums);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_weight_gradient(const float *partials, float *result, unsigned int slices, unsigned int width) {
    for (unsigned long long column = blockIdx.x * 256ull + threadIdx.x; column < width; column += gridDim.x * 256ull) {
        float sum = 0;
        for (unsigned int slice = 0; slice < slices; ++slice) {
            sum += partials[(unsigned long long)slice * width + column];
        }
        result[column] = sum;
    }
}

#define RMS_NORM_KERNELS(NAME, ELEMENT)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        rms_norm_##NAME(const ELEMENT *hidden, const float *weight, ELEMENT *out, float *reciprocals, unsigned int rows,                  \
                        unsigned int width, float epsilon) {                                                                              \
        forward(hidden, weight, out, reciprocals, rows, width, epsilon);                                                                  \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        rms_norm_backward_##NAME(const ELEMENT *hidden, const float *weight, const float *reciprocals, const ELEMENT *gradient,           \
                                 ELEMENT *result, unsigned int rows, unsigned int width) {                                               \
        backward(hidden, weight, reciprocals, gradient, result, rows, width);                                                             \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        rms_norm_weight_partials_##NAME(const ELEMENT *hidden, const float *reciprocals, const ELEMENT *gradient, float *partials,        \
                                        unsigned int rows, unsigned int width, unsigned int slice_rows) {                                \
        weight_partials(hidden, reciprocals, gradient, partials, rows, width, slice_rows);                                                \
    }

RMS_NORM_KERNELS(bf16, unsigned short)
RMS_NORM_KERNELS(f32, float)
