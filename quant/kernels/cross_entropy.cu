// Softmax cross entropy of rows of logits, and its gradient in their place.
//
// cross_entropy_TYPE
//   logits TYPE [n, v], targets i64 [n], weights f32 [n] -> losses f32 [n].
//   loss = weight (m + log(sum over v of exp(logit - m)) - logit[target]), m the largest logit of the row.
//   With wants_gradient not 0, the logits become weight (softmax - onehot); else they stay. The target's entry is computed apart, from
//   exp(-loss) - 1 before the weight: what rounding leaves of the softmax there would lose it where the target is nearly certain.
//
// A target outside of 0..v, a NaN or +infinity in a row, or nothing but -infinity, makes the loss and the gradient of the row NaN; of logits
// and losses nothing is read or written outside of the row. A logit of -infinity has probability 0; as the target's it makes the loss infinite.
//
// TYPE bf16 or f32. A block takes a row at a time and strides over the grid; a thread takes every 256th span of it, two chunks, with a running
// maximum and the sum for it, and again for the gradient. Neighbouring threads take neighbouring spans. Blocks of 256 threads, any grid in x.
// Alignment: that of the elements. Fast where v is a whole number of spans and the logits' address is a multiple of 16 bytes.
// Accuracy, before the one rounding to TYPE, with k = v / 512 + 56: |loss - exact| <= (k |weight| + 4 |exact|) 2^-24; of the gradient
// |result - exact| <= (k + |m - logit|) 2^-24 |exact| + (1 + |weight|) 2^-148, at the target k 2^-24 |weight|. So much is lost where logits
// rise, and each span multiplies the sum for a new maximum; elsewhere a fraction of it. The order of every sum depends on v and TYPE alone.

#include "floating.cuh"

constexpr unsigned int NOT_A_NUMBER = 0x7fc00000u, LARGEST = 0x7f7fffffu, NEGATIVE_INFINITY = 0xff800000u;

// Elements that a thread reads at once.
template <class Element>
constexpr unsigned int SPAN = 2 * LANES<Element>;

// A thread's part of a row: the largest logit, NaN aside, but no less than the smallest number; and the sum of exp(logit - largest).
struct Total {
    float largest, sum;
};

template <class Element>
__device__ __forceinline__ Total thread_total(const Element *row, unsigned int width, bool is_wide) {
    // Not infinite, so that its distance from -infinity is no NaN.
    Total total = {-__uint_as_float(LARGEST), 0.0f};
    const unsigned int spans = (width + SPAN<Element> - 1) / SPAN<Element>;
    for (unsigned int span = threadIdx.x; span < spans; span += THREADS) {
        const unsigned int first = span * SPAN<Element>;
        float values[SPAN<Element>];
        load(row + first, width - first, is_wide, values);
        if (!is_wide) {
#pragma unroll
            for (unsigned int lane = 0; lane < SPAN<Element>; ++lane) {
                values[lane] = lane < width - first ? values[lane] : __uint_as_float(NEGATIVE_INFINITY);
            }
        }
        float largest = total.largest;
#pragma unroll
        for (unsigned int lane = 0; lane < SPAN<Element>; ++lane) {
            // A NaN is passed over here, and reaches the sum.
            largest = fmaxf(largest, values[lane]);
        }
        if (largest > total.largest) {
            total.sum *= expf(total.largest - largest);
            total.largest = largest;
        }
#pragma unroll
        for (unsigned int lane = 0; lane < SPAN<Element>; ++lane) {
            values[lane] = expf(values[lane] - total.largest);
        }
#pragma unroll
        for (unsigned int half = SPAN<Element> / 2; half > 0; half /= 2) {
#pragma unroll
            for (unsigned int lane = 0; lane < half; ++lane) {
                values[lane] += values[lane + half];
            }
        }
        total.sum += values[0];
    }
    return total;
}

template <class Element>
__device__ __forceinline__ void cross_entropy(Element *logits, const long long *targets, const float *weights, float *losses,
                                              unsigned int rows, unsigned int width, unsigned int wants_gradient) {
    const bool is_wide = width % SPAN<Element> == 0 && is_aligned(logits);
    const unsigned int spans = (width + SPAN<Element> - 1) / SPAN<Element>;
    for (unsigned int row = blockIdx.x; row < rows; row += gridDim.x) {
        Element *row_logits = logits + (unsigned long long)row * width;
        const unsigned long long target = (unsigned long long)targets[row];
        const bool is_inside = target < width;
        // Read before the threads wait for each other, and written after.
        const float target_logit = is_inside ? widened(row_logits[target]) : __uint_as_float(NOT_A_NUMBER);
        const float weight = weights[row];
        const Total own = thread_total(row_logits, width, is_wide);
        const float largest = block_max(own.largest);
        const float sum = block_sum(own.sum * expf(own.largest - largest));
        const float loss = (largest - target_logit) + logf(sum);
        if (threadIdx.x == 0) {
            losses[row] = weight * loss;
        }
        if (wants_gradient == 0) {
            continue;
        }
        const float share = is_inside ? weight / sum : target_logit;
        for (unsigned int span = threadIdx.x; span < spans; span += THREADS) {
            const unsigned int first = span * SPAN<Element>;
            float values[SPAN<Element>];
            load(row_logits + first, width - first, is_wide, values);
#pragma unroll
            for (unsigned int lane = 0; lane < SPAN<Element>; ++lane) {
                values[lane] = expf(values[lane] - largest) * share;
            }
            store(row_logits + first, width - first, is_wide, values);
        }
        // By the thread that wrote the softmax there.
        if (is_inside && (unsigned int)target / SPAN<Element> % THREADS == threadIdx.x) {
            row_logits[target] = rounded<Element>(weight * (expf(-loss) - 1.0f));
        }
    }
}

#define CROSS_ENTROPY_KERNEL(NAME, ELEMENT)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        cross_entropy_##NAME(ELEMENT *logits, const long long *targets, const float *weights, float *losses, unsigned int rows,           \
                             unsigned int width, unsigned int wants_gradient) {                                                          \
        cross_entropy(logits, targets, weights, losses, rows, width, wants_gradient);                                                     \
    }

CROSS_ENTROPY_KERNEL(bf16, unsigned short)
CROSS_ENTROPY_KERNEL(f32, float)
