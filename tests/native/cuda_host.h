// What the kernels use of CUDA C++, for the host: one thread block at a time, each of its threads a fiber that runs until it waits for
// the others. A program that would hang on the device, because some threads do not come to a barrier, ends with a message.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

using std::max;
using std::min;

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
// One block runs at a time, so that what its threads share may be static.
#define __shared__ static

struct uint2 {
    unsigned int x, y;
};
struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};
struct float2 {
    float x, y;
};
struct dim3 {
    unsigned int x = 1, y = 1, z = 1;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

// ---- Fibers --------------------------------------------------------------------------------------------------------------------------

// Contexts start fibers; jumps switch between them, which takes no call of the system.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack;
    bool is_done;
};

constexpr size_t STACK_BYTES = 64 << 10;

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline unsigned int current;
inline std::function<void()> kernel_body;

inline void wait_for_others() {
    if (_setjmp(fibers[current].place) == 0) {
        _longjmp(scheduler, 1);
    }
}

// A fiber serves one thread of every block to come.
inline void run_fiber() {
    for (;;) {
        kernel_body();
        fibers[current].is_done = true;
        wait_for_others();
    }
}

inline void resume(Fiber &fiber) {
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (fiber.stack) {
        _longjmp(fiber.place, 1);
    }
    fiber.stack.reset(new char[STACK_BYTES]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    setcontext(&fiber.context);
}

// How many threads have come to each barrier: that of the block, and those of its warps.
struct Barrier {
    unsigned int arrived = 0;
    unsigned long long round = 0;

    void wait(unsigned int count) {
        const unsigned long long entered = round;
        if (++arrived == count) {
            arrived = 0;
            ++round;
            return;
        }
        for (int patience = 0; round == entered; ++patience) {
            if (patience == 1000) {
                fprintf(stderr, "thread %u of block %u waits at a barrier to which not all threads come\n", threadIdx.x, blockIdx.x);
                abort();
            }
            wait_for_others();
        }
    }
};

inline Barrier block_barrier, warp_barriers[32];
inline unsigned int warp_values[32][32];

inline void run_kernel(unsigned int blocks, unsigned int threads, std::function<void()> body) {
    kernel_body = std::move(body);
    fibers.resize(threads);
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (unsigned int block = 0; block < blocks; ++block) {
        for (Fiber &fiber : fibers) {
            fiber.is_done = false;
        }
        for (bool is_running = true; is_running;) {
            is_running = false;
            for (unsigned int thread = 0; thread < threads; ++thread) {
                if (fibers[thread].is_done) {
                    continue;
                }
                is_running = true;
                current = thread;
                threadIdx = {thread, 0, 0};
                blockIdx = {block, 0, 0};
                resume(fibers[thread]);
            }
        }
        if (block_barrier.arrived != 0) {
            fprintf(stderr, "block %u ended with threads at a barrier\n", block);
            abort();
        }
    }
}

inline void __syncthreads() { block_barrier.wait(blockDim.x); }

// Every thread of the warp gives a value; `choose` makes this thread's result of them.
template <class Choose>
inline unsigned int exchange(unsigned int mask, unsigned int value, Choose choose) {
    if (mask != 0xffffffffu) {
        fprintf(stderr, "only whole warps are emulated\n");
        abort();
    }
    const unsigned int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    warp_values[warp][lane] = value;
    warp_barriers[warp].wait(32);
    const unsigned int result = choose(warp_values[warp], lane);
    warp_barriers[warp].wait(32);
    return result;
}

inline unsigned int __shfl_sync(unsigned int mask, unsigned int value, unsigned int from) {
    return exchange(mask, value, [=](const unsigned int *values, unsigned int) { return values[from % 32]; });
}

inline unsigned int __shfl_xor_sync(unsigned int mask, unsigned int value, unsigned int distance) {
    return exchange(mask, value, [=](const unsigned int *values, unsigned int lane) { return values[lane ^ distance]; });
}

inline float __shfl_xor_sync(unsigned int mask, float value, unsigned int distance) {
    unsigned int bits;
    memcpy(&bits, &value, 4);
    bits = __shfl_xor_sync(mask, bits, distance);
    memcpy(&value, &bits, 4);
    return value;
}

inline bool __any_sync(unsigned int mask, bool is_so) {
    return exchange(mask, is_so, [](const unsigned int *values, unsigned int) -> unsigned int {
        return std::any_of(values, values + 32, [](unsigned int value) { return value != 0; });
    });
}

inline void atomicMin(unsigned long long *to, unsigned long long value) { *to = std::min(*to, value); }

// ---- Instructions, as the CUDA Math API describes them -----------------------------------------------------------------------------

inline unsigned int __byte_perm(unsigned int first, unsigned int second, unsigned int selector) {
    const unsigned long long bytes = (unsigned long long)second << 32 | first;
    unsigned int result = 0;
    for (unsigned int byte = 0; byte < 4; ++byte) {
        result |= (unsigned int)(bytes >> (8 * (selector >> (4 * byte) & 7)) & 0xff) << (8 * byte);
    }
    return result;
}

// A sum that does not fit 16 bits is no result that a kernel may depend on.
inline int checked_half_sum(unsigned int first, unsigned int second, unsigned int half) {
    const int sum = (short)(first >> (16 * half)) + (short)(second >> (16 * half));
    if (sum != (short)sum) {
        fprintf(stderr, "a sum of halves leaves 16 bits\n");
        abort();
    }
    return sum;
}

inline unsigned int __viaddmin_s16x2_relu(unsigned int first, unsigned int second, unsigned int limit) {
    unsigned int result = 0;
    for (unsigned int half = 0; half < 2; ++half) {
        const int least = std::min(checked_half_sum(first, second, half), (int)(short)(limit >> (16 * half)));
        result |= (unsigned int)std::max(least, 0) << (16 * half);
    }
    return result;
}

inline unsigned int __viaddmax_s16x2_relu(unsigned int first, unsigned int second, unsigned int limit) {
    unsigned int result = 0;
    for (unsigned int half = 0; half < 2; ++half) {
        const int sum = (short)((first >> (16 * half)) + (second >> (16 * half)));
        const int largest = std::max(sum, (int)(short)(limit >> (16 * half)));
        result |= (unsigned int)std::max(largest, 0) << (16 * half);
    }
    return result;
}

inline unsigned int __vmaxu2(unsigned int first, unsigned int second) {
    return std::max(first & 0xffff, second & 0xffff) | std::max(first >> 16, second >> 16) << 16;
}

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

inline unsigned int __float_as_uint(float value) { return same_bits<unsigned int>(value); }
inline float __uint_as_float(unsigned int bits) { return same_bits<float>(bits); }
inline double __longlong_as_double(long long bits) { return same_bits<double>(bits); }
inline float __fmaf_rn(float first, float second, float third) { return std::fma(first, second, third); }
