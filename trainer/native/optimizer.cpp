// The fused AdamW of ATen, which tch leaves out: one launch for many tensors.
//
// Tensors cross the border as `at::Tensor *`, the handle of torch-sys, and stay the caller's. A function returns 0 when it did its work, else
// 1 with a message that ft_autograd_free_message releases.

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>

#include <vector>

#include "guarded.h"

using Handle = at::Tensor *;

extern "C" {
// One step of `count` parameters, all on one device. `step` is a scalar on that device: the steps with this one.
int ft_fused_adamw(const Handle *parameters, const Handle *gradients, const Handle *firsts, const Handle *seconds, size_t count, Handle step,
                   double learning_rate, double beta1, double beta2, double weight_decay, double epsilon, char **message) {
    return ft::guarded(message, [&] {
        const auto list = [count](const Handle *handles) {
            std::vector<at::Tensor> tensors;
            for (size_t i = 0; i < count; i++) tensors.push_back(*handles[i]);
            return tensors;
        };
        const at::NoGradGuard guard;
        const std::vector<at::Tensor> steps(count, *step);
        at::_fused_adamw_(list(parameters), list(gradients), list(firsts), list(seconds), {}, steps, learning_rate, beta1, beta2, weight_decay,
                          epsilon, /*amsgrad=*/false, /*maximize=*/false);
    });
}
}
