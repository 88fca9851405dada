// Work on libtorch's own threads, so that kernels in Rust and operators of libtorch do not compete for the cores.

#include <ATen/Parallel.h>

#include <cstdint>

extern "C" {
typedef void (*RangeCallback)(void *context, int64_t begin, int64_t end);

// Calls `work` on disjoint ranges that cover 0..count, of at least `grain` where there are several. `work` must not unwind.
void ft_parallel_for(int64_t count, int64_t grain, void *context, RangeCallback work) {
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { work(context, begin, end); });
}
}
