// Flash attention over packed sequences, and whether its gradient may depend on the order in which threads add.
//
// Tensors cross the border as `at::Tensor *`, the handle of torch-sys. Those that are written to `results` are owned by the caller.
// Nothing here needs CUDA to build: the operators are found by libtorch's dispatcher once libtorch_cuda.so is opened.

#include <ATen/Context.h>
#include <ATen/Functions.h>

#include <cstdlib>
#include <optional>
#include <tuple>

#include "guarded.h"

using Handle = at::Tensor *;

namespace {

// A window counts the token itself; 0 stands for none.
std::optional<int64_t> keys_before(int64_t window) { return window > 0 ? std::optional<int64_t>(window - 1) : std::nullopt; }

}  // namespace

extern "C" {

// Writes output and log sums. Cumulative lengths are i32 on the tensors' device. Causal; a window goes without the flag, as
// `window_size_right` 0 says the same.
int ft_flash_attention_forward(Handle query, Handle key, Handle value, Handle query_starts, Handle key_starts, int64_t max_queries,
                               int64_t max_keys, double scale, int64_t window, Handle *results, char **message) {
    return ft::guarded(message, [&] {
        auto [output, log_sums, random_state, unused, mask] = at::_flash_attention_forward(
            *query, *key, *value, *query_starts, *key_starts, max_queries, max_keys, /*dropout_p=*/0.0, /*is_causal=*/window <= 0,
            /*return_debug_mask=*/false, scale, keys_before(window), /*window_size_right=*/0);
        results[0] = new at::Tensor(std::move(output));
        results[1] = new at::Tensor(std::move(log_sums));
    });
}

// Writes the gradients of query, key and value. The random state is that of dropout, which there is none of.
int ft_flash_attention_backward(Handle gradient, Handle query, Handle key, Handle value, Handle output, Handle log_sums,
                                Handle query_starts, Handle key_starts, int64_t max_queries, int64_t max_keys, double scale, int64_t window,
                                Handle *results, char **message) {
    return ft::guarded(message, [&] {
        const at::Tensor random_state = at::empty({2}, query->options().dtype(at::kUInt64));
        const at::Tensor unused = at::empty({0}, query->options());
        auto [query_gradient, key_gradient, value_gradient] = at::_flash_attention_backward(
            *gradient, *query, *key, *value, *output, *log_sums, *query_starts, *key_starts, max_queries, max_keys, /*dropout_p=*/0.0,
            /*is_causal=*/window <= 0, random_state, unused, scale, keys_before(window), /*window_size_right=*/0);
        results[0] = new at::Tensor(std::move(query_gradient));
        results[1] = new at::Tensor(std::move(key_gradient));
        results[2] = new at::Tensor(std::move(value_gradient));
    });
}

// Lets libtorch choose operators that give the same bits at every run; those that have no such form warn on stderr. cuBLAS asks for a fixed
// workspace, which it reads from the environment when it is first used.
void ft_set_deterministic(bool is_deterministic) {
    if (is_deterministic) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().setDeterministicAlgorithms(is_deterministic, /*warn_only=*/true);
    // Else every tensor would be filled before it is written.
    at::globalContext().setDeterministicFillUninitializedMemory(!is_deterministic);
}
}
