// The clamped SwiGLU of gpt-oss and its gradient. Source: openai/gpt-oss `gpt_oss/torch/model.py`, function `swiglu`.
//
// swiglu_TYPE
//   gate_up TYPE [r, 2f], gates in even columns and linear halves in odd ones -> out TYPE [r, f].
//   out = g sigmoid(alpha g) (u + 1), g = min(gate, limit), u = clamp(up, -limit, limit). A NaN stays one.
//
// swiglu_backward_TYPE
//   gate_up TYPE [r, 2f], gradient (of out) TYPE [r, f] -> result (of gate_up) TYPE [r, 2f].
//   dgate = dy (u + 1) s (1 + alpha g (1 - s)) where gate <= limit, dup = dy g s where |up| <= limit, else 0; s the sigmoid.
//
// Both: TYPE bf16 or f32. bias TYPE [e, 2f] or null: bias[expert of the row] is added to gate_up first and the sum rounded to TYPE, as where
// a product and its bias are added before; ends i32 [e] as in expert_rows.cuh, not read without a bias.
// A thread takes the gates and halves of one chunk of outputs at a time, neighbouring threads neighbouring chunks; threads stride over the
// grid. Blocks of 256 threads, any grid in x; r times the chunks of a row is below 2^32.
// Alignment: that of the elements. Fast where f is a whole number of chunks and all addresses are multiples of 16 bytes.
// Accuracy: |out - exact| <= (|alpha g| + 16) 2^-24 |out|, |result - exact| <= (|alpha g| + 16) 2^-24 times |dy (u + 1)| s (1 + |alpha g|)
// and |dy g s|, before the one rounding to TYPE. The product with alpha is rounded, and the exponential multiplies that by |alpha g|.

#include "expert_rows.cuh"
#include "floating.cuh"

__device__ __forceinline__ float clamp_above(float value, float bound) { return value > bound ? bound : value; }
__device__ __forceinline__ float clamp_below(float value, float bound) { return value < bound ? bound : value; }

__device__ __forceinline__ float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }

// The gates and halves of a chunk, interleaved, with their bias.
template <class Element>
__device__ __forceinline__ void load_gate_up(const Element *from, const Element *bias, unsigned int count, bool is_wide,
                                             float (&pairs)[2 * LANES<Element>]) {
    load(from, 2 * count, is_wide, pairs);
    if (bias != nullptr) {
        float added[2 * LANES<Element>];
        load(bias, 2 * count, is_wide, added);
#pragma unroll
        for (unsigned int lane = 0; lane < 2 * LANES<Element>; ++lane) {
            pairs[lane] = widened(rounded<Element>(pairs[lane] + added[lane]));
        }
    }
}

template <class Element>
__device__ __forceinline__ void forward(const Element *gate_up, const Element *bias, const int *ends, Element *out, unsigned int rows,
                                        unsigned int width, unsigned int num_experts, float alpha, float limit) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide = width % LANES<Element> == 0 && is_aligned(gate_up) && is_aligned(bias) && is_aligned(out);
    const unsigned long long items = (unsigned long long)rows * chunks;
    for (unsigned long long item = blockIdx.x * 256ull + threadIdx.x; item < items; item += gridDim.x * 256ull) {
        const unsigned int row = (unsigned int)item / chunks, first = ((unsigned int)item % chunks) * LANES<Element>;
        const unsigned int count = min(LANES<Element>, width - first);
        const unsigned long long place = (unsigned long long)row * width + first;
        const Element *row_bias = bias;
        if (bias != nullptr) {
            row_bias += ((unsigned long long)expert_of_row(ends, num_experts, row) * width + first) * 2;
        }
        float pairs[2 * LANES<Element>], results[LANES<Element>];
        load_gate_up(gate_up + place * 2, row_bias, count, is_wide, pairs);
#pragma unroll
        for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
            const float gate = clamp_above(pairs[2 * lane], limit);
            const float up = clamp_below(clamp_above(pairs[2 * lane + 1], limit), -limit);
            results[lane] = gate * sigmoid(alpha * gate) * (up + 1.0f);
        }
        store(out + place, count, is_wide, results);
    }
}

template <class Element>
__device__ __forceinline__ void backward(const Element *gate_up, const Element *bias, const int *ends, const Element *gradient,
                                         Element *result, unsigned int rows, unsigned int width, unsigned int num_experts, float alpha,
                                         float limit) {
    const unsigned int chunks = (width + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide =
        width % LANES<Element> == 0 && is_aligned(gate_up) && is_aligned(bias) && is_aligned(gradient) && is_aligned(result);
    const unsigned long long items = (unsigned long long)rows * chunks;
    for (unsigned long long item = blockIdx.x * 256ull + threadIdx.x; item < items; item += gridDim.x * 256ull) {
        const unsigned int row = (unsigned int)item / chunks, first = ((unsigned int)item % chunks) * LANES<Element>;
        const unsigned int count = min(LANES<Element>, width - first);
        const unsigned long long place = (unsigned long long)row * width + first;
        const Element *row_bias = bias;
        if (bias != nullptr) {
            row_bias += ((unsigned long long)expert_of_row(ends, num_experts, row) * width + first) * 2;
        }
        float pairs[2 * LANES<Element>], gradients[LANES<Element>];
        load_gate_up(gate_up + place * 2, row_bias, count, is_wide, pairs);
        load(gradient + place, count, is_wide, gradients);
#pragma unroll
        for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
            const float raw_gate = pairs[2 * lane], raw_up = pairs[2 * lane + 1];
            const float gate = clamp_above(raw_gate, limit);
            const float up = clamp_below(clamp_above(raw_up, limit), -limit);
            const float slope = sigmoid(alpha * gate);
            const float gate_gradient = gradients[lane] * (up + 1.0f) * (slope + alpha * gate * slope * (1.0f - slope));
            const float up_gradient = gradients[lane] * gate * slope;
            pairs[2 * lane] = raw_gate > limit ? 0.0f : gate_gradient;
            pairs[2 * lane + 1] = raw_up > limit || raw_up < -limit ? 0.0f : up_gradient;
        }
        store(result + place * 2, 2 * count, is_wide, pairs);
    }
}

#define SWIGLU_KERNELS(NAME, ELEMENT)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        swiglu_##NAME(const ELEMENT *gate_up, const ELEMENT *bias, const int *ends, ELEMENT *out, unsigned int rows, unsigned int width,  \
                      unsigned int num_experts, float alpha, float limit) {                                                               \
        forward(gate_up, bias, ends, out, rows, width, num_experts, alpha, limit);                                                        \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        swiglu_backward_##NAME(const ELEMENT *gate_up, const ELEMENT *bias, const int *ends, const ELEMENT *gradient, ELEMENT *result,    \
                               unsigned int rows, unsigned int width, unsigned int num_experts, float alpha, float limit) {              \
        backward(gate_up, bias, ends, gradient, result, rows, width, num_experts, alpha, limit);                                          \
    }

SWIGLU_KERNELS(bf16, unsigned short)
SWIGLU_KERNELS(f32, float)
