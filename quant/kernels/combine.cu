// Rows of the experts back to their tokens, weighted and summed, and the gradients of that.
//
// combine_TYPE_WEIGHT
//   rows TYPE [n, d], row_of_slot i32 [t, a], weights WEIGHT [t, a] or null (all 1) -> out TYPE [t, d].
//   out[t] = sum over a of weights[t, a] rows[row_of_slot[t, a]], from a = 0 on; zeros where a is 0. Without weights and with a = 1 it gathers
//   rows, bit for bit.
//   A thread takes one chunk of a token at a time, neighbouring threads neighbouring chunks. t times the chunks of d is below 2^32.
//
// combine_backward_TYPE_WEIGHT
//   the same, gradient (of out) TYPE [t, d] -> row_gradients TYPE [n, d] or null, weight_gradients WEIGHT [t, a] or null.
//   row_gradients[row_of_slot[t, a]] = weights[t, a] gradient[t], weight_gradients[t, a] = sum over d of rows[row_of_slot[t, a]] gradient[t].
//   A row that no slot names is not written; one that two name gets either. A warp takes a slot at a time, a lane every 32nd chunk. t a is
//   below 2^32.
//
// TYPE_WEIGHT is bf16_bf16, bf16_f32 or f32_f32. An index outside of 0..n reads and writes nothing: what is summed over it is NaN.
// Threads stride over the grid. Blocks of 256 threads, any grid in x.
// Alignment: that of the elements. Fast where d is a whole number of chunks and all addresses of [., d] are multiples of 16 bytes.
// Accuracy, before the one rounding: |out - exact| <= a 2^-24 sum|weight row|; row_gradients 2^-24, relative;
// |weight_gradients - exact| <= (d / 32 + 16) 2^-24 sum|row gradient|. The order of every sum depends on the sizes alone.

#include "floating.cuh"

constexpr unsigned int NOT_A_NUMBER = 0x7fc00000u;

template <class Element, class Weight>
__device__ __forceinline__ void forward(const Element *rows, const int *row_of_slot, const Weight *weights, Element *out,
                                        unsigned int num_rows, unsigned int tokens, unsigned int active, unsigned int width) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide = width % LANES<Element> == 0 && is_aligned(rows) && is_aligned(out);
    const unsigned long long items = (unsigned long long)tokens * chunks;
    for (unsigned long long item = blockIdx.x * 256ull + threadIdx.x; item < items; item += gridDim.x * 256ull) {
        const unsigned int token = (unsigned int)item / chunks, first = ((unsigned int)item % chunks) * LANES<Element>;
        float sums[LANES<Element>] = {};
        for (unsigned int choice = 0; choice < active; ++choice) {
            const unsigned long long slot = (unsigned long long)token * active + choice;
            const unsigned int row = (unsigned int)row_of_slot[slot];
            const float weight = weights == nullptr ? 1.0f : widened(weights[slot]);
            float values[LANES<Element>] = {};
            if (row < num_rows) {
                load(rows + (unsigned long long)row * width + first, width - first, is_wide, values);
            }
#pragma unroll
            for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                const float product = row < num_rows ? values[lane] * weight : __uint_as_float(NOT_A_NUMBER);
                // A negative zero stays one.
                sums[lane] = choice == 0 ? product : sums[lane] + product;
            }
        }
        store(out + (unsigned long long)token * width + first, width - first, is_wide, sums);
    }
}

template <class Element, class Weight>
__device__ __forceinline__ void backward(const Element *rows, const int *row_of_slot, const Weight *weights, const Element *gradient,
                                         Element *row_gradients, Weight *weight_gradients, unsigned int num_rows, unsigned int tokens,
                                         unsigned int active, unsigned int width) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>, lane_of_warp = threadIdx.x % 32;
    const bool is_wide = width % LANES<Element> == 0 && is_aligned(rows) && is_aligned(gradient) && is_aligned(row_gradients);
    const unsigned long long slots = (unsigned long long)tokens * active;
    // All lanes of a warp have the same slot, and come to its sum together.
    for (unsigned long long slot = (blockIdx.x * 256ull + threadIdx.x) / 32; slot < slots; slot += gridDim.x * 8ull) {
        const unsigned int row = (unsigned int)row_of_slot[slot];
        const bool is_inside = row < num_rows;
        const float weight = weights == nullptr ? 1.0f : widened(weights[slot]);
        const Element *token_gradient = gradient + ((unsigned int)slot / active) * (unsigned long long)width;
        const unsigned long long start = (unsigned long long)row * width;
        float sum = 0;
        for (unsigned int chunk = lane_of_warp; is_inside && chunk < chunks; chunk += 32) {
            const unsigned int first = chunk * LANES<Element>;
            float gradients[LANES<Element>], values[LANES<Element>];
            load(token_gradient + first, width - first, is_wide, gradients);
            if (weight_gradients != nullptr) {
                load(rows + start + first, width - first, is_wide, values);
#pragma unroll
                for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                    sum += values[lane] * gradients[lane];
                }
            }
            if (row_gradients != nullptr) {
#pragma unroll
                for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
                    gradients[lane] *= weight;
                }
                store(row_gradients + start + first, width - first, is_wide, gradients);
            }
        }
        if (weight_gradients != nullptr) {
            sum = warp_sum(sum);
            if (lane_of_warp == 0) {
                weight_gradients[slot] = rounded<Weight>(is_inside ? sum : __uint_as_float(NOT_A_NUMBER));
            }
        }
    }
}

#define COMBINE_KERNELS(NAME, ELEMENT, WEIGHT)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        combine_##NAME(const ELEMENT *rows, const int *row_of_slot, const WEIGHT *weights, ELEMENT *out, unsigned int num_rows,           \
                       unsigned int tokens, unsigned int active, unsigned int width) {                                                    \
        forward(rows, row_of_slot, weights, out, num_rows, tokens, active, width);                                                        \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        combine_backward_##NAME(const ELEMENT *rows, const int *row_of_slot, const WEIGHT *weights, const ELEMENT *gradient,              \
                                ELEMENT *row_gradients, WEIGHT *weight_gradients, unsigned int num_rows, unsigned int tokens,             \
                                unsigned int active, unsigned int width) {                                                                \
        backward(rows, row_of_slot, weights, gradient, row_gradients, weight_gradients, num_rows, tokens, active, width);                 \
    }

COMBINE_KERNELS(bf16_bf16, unsigned short, unsigned short)
COMBINE_KERNELS(bf16_f32, unsigned short, float)
COMBINE_KERNELS(f32_f32, float, float)
