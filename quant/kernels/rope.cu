// Rotation of heads by their positions, and of gradients back. The angles' factors come from the caller (trainer/src/model/rope.rs).
//
// rope_TYPE
//   heads TYPE [t, h, 2p], cosines f32 [t, p], sines f32 [t, p] -> out TYPE [t, h, 2p], never the heads themselves.
//   Element i pairs with element i + p: first' = first cos - second sin, second' = second cos + first sin. `direction` multiplies the sines:
//   1 rotates heads, -1 gradients, which is the transposed map (the factors hold a temperature, so it is not the inverse one).
//
// TYPE bf16 or f32. A thread takes a chunk of firsts and that of their seconds at a time, neighbouring threads neighbouring chunks; the heads
// of a token read its factors again, from the cache. Threads stride over the grid. Blocks of 256 threads, any grid in x; t h times the chunks
// of p is below 2^32.
// Alignment: that of the elements. Fast where p is a whole number of chunks and all addresses are multiples of 16 bytes.
// Accuracy: |out - exact| <= 3 2^-24 (|first cos| + |second sin|), before the one rounding to TYPE; no operation is fused, so it is what
// separate operators in f32 give, bit for bit.

#include "floating.cuh"

template <class Element>
__device__ __forceinline__ void rotate(const Element *heads, const float *cosines, const float *sines, Element *out, unsigned int tokens,
                                       unsigned int num_heads, unsigned int pairs, float direction) {
    const unsigned int chunks = (pairs + LANES<Element> - 1) / LANES<Element>;
    const bool is_wide =
        pairs % LANES<Element> == 0 && is_aligned(heads) && is_aligned(cosines) && is_aligned(sines) && is_aligned(out);
    const unsigned long long items = (unsigned long long)tokens * num_heads * chunks;
    for (unsigned long long item = blockIdx.x * 256ull + threadIdx.x; item < items; item += gridDim.x * 256ull) {
        const unsigned int head = (unsigned int)item / chunks, first_pair = ((unsigned int)item % chunks) * LANES<Element>;
        const unsigned int count = min(LANES<Element>, pairs - first_pair);
        const unsigned long long place = (unsigned long long)head * pairs * 2 + first_pair;
        const unsigned long long angle = (unsigned long long)(head / num_heads) * pairs + first_pair;
        float first[LANES<Element>], second[LANES<Element>], cosine[LANES<Element>], sine[LANES<Element>];
        load(heads + place, count, is_wide, first);
        load(heads + place + pairs, count, is_wide, second);
        load(cosines + angle, count, is_wide, cosine);
        load(sines + angle, count, is_wide, sine);
#pragma unroll
        for (unsigned int lane = 0; lane < LANES<Element>; ++lane) {
            const float turned = direction * sine[lane], old_first = first[lane];
            first[lane] = old_first * cosine[lane] - second[lane] * turned;
            second[lane] = second[lane] * cosine[lane] + old_first * turned;
        }
        store(out + place, count, is_wide, first);
        store(out + place + pairs, count, is_wide, second);
    }
}

#define ROPE_KERNELS(NAME, ELEMENT)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                                     \
        rope_##NAME(const ELEMENT *heads, const float *cosines, const float *sines, ELEMENT *out, unsigned int tokens,                    \
                    unsigned int num_heads, unsigned int pairs, float direction) {                                                        \
        rotate(heads, cosines, sines, out, tokens, num_heads, pairs, direction);                                                          \
    }

ROPE_KERNELS(bf16, unsigned short)
ROPE_KERNELS(f32, float)
