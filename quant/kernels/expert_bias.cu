// The bias of each row's expert, added where the row lies.
//
// expert_bias_TYPE
//   rows TYPE [r, o], bias TYPE [e, o], ends i32 [e] (expert_rows.cuh) -> rows[r] += bias[expert of r].
//
// TYPE bf16 or f32. A thread takes one chunk of a row at a time, neighbouring threads neighbouring chunks, and searches the ends for it.
// Threads stride over the grid. Blocks of 256 threads, any grid in x; r times the chunks of o is below 2^32.
// Alignment: that of the elements. Fast where o is a whole number of chunks and all addresses are multiples of 16 bytes.
// Accuracy: the sum in f32, rounded once to TYPE: what adding in TYPE gives, bit for bit.

#include "expert_rows.cuh"
#include "floating.cuh"

template <class Element>
__device__ __forceinline__ void add_bias(Element *rows, const Element *bias, const int *ends, unsigned int num_rows, unsigned int width,
                                         unsigned int num_experts) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide = width % LANES<Element> == 0 && is_aligned(rows) && is_aligned(bias);
    const unsigned long long items = (unsigned long long)num_rows * chunks;
    for (unsigned long long item = blockIdx.x * 256ull + threadIdx.x; item < items; item += gridDim.x * 256ull) {
        const unsigned int row = (unsigned int)item / chunks, first = ((unsigned int)item % chunks) * LANES<Element>;
        const unsigned long long expert = expert_of_row(ends, num_experts, row);
        Element *values_of_row = rows + (unsigned long long)row * width + first;
        float values[LANES<Element>], added[LANES<Element>];
        load(values_of_row, width - first, is_wide, values);
        load(bias + expert * width + first, width - first, is_wide, added);
#pragma unroll
        for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
            values[lane] += added[lane];
        }
        store(values_of_row, width - first, is_wide, values);
    }
}

#define EXPERT_BIAS_KERNELS(NAME, ELEMENT)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        expert_bias_##NAME(ELEMENT *rows, const ELEMENT *bias, const int *ends, unsigned int num_rows, unsigned int width,               \
                           unsigned int num_experts) {                                                                                    \
        add_bias(rows, bias, ends, num_rows, width, num_experts);                                                                         \
    }

EXPERT_BIAS_KERNELS(bf16, unsigned short)
EXPERT_BIAS_KERNELS(f32, float)
