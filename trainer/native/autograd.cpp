// One autograd node whose backward is a Rust function, and the backward call that tch leaves out.
//
// Ownership: `context` belongs to the node from a successful ft_autograd_attach on and is released by `drop` with the graph.
// Tensors cross the border as `at::Tensor *`, the handle of torch-sys. Those that a callback returns are owned by the caller.

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "guarded.h"

using Handle = at::Tensor *;

extern "C" {
// Fills input_gradients (null: none). Returns null, or a message that `free_message` releases.
typedef char *(*BackwardCallback)(void *context, const Handle *output_gradients, size_t num_outputs, const bool *needs_gradient,
                                  Handle *input_gradients, size_t num_inputs);
typedef void (*DropCallback)(void *context);
typedef void (*FreeMessageCallback)(char *message);
}

namespace {

struct CallbackNode : public torch::autograd::Node {
    CallbackNode(void *context, BackwardCallback backward, DropCallback drop, FreeMessageCallback free_message)
        : context(context), backward(backward), drop(drop), free_message(free_message) {}

    ~CallbackNode() override {
        if (context != nullptr) drop(context);
    }

    std::string name() const override { return "ft::CallbackNode"; }

    torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
        std::vector<Handle> outputs;
        for (auto &gradient : gradients) outputs.push_back(gradient.defined() ? &gradient : nullptr);
        const size_t num_inputs = num_outputs();  // one edge for each input of the forward function
        std::vector<Handle> inputs(num_inputs, nullptr);
        std::unique_ptr<bool[]> needs(new bool[num_inputs]);
        for (size_t i = 0; i < num_inputs; i++) needs[i] = task_should_compute_output(i);
        char *message = backward(context, outputs.data(), outputs.size(), needs.get(), inputs.data(), num_inputs);
        torch::autograd::variable_list result;
        for (Handle input : inputs) {
            result.push_back(input != nullptr ? *input : at::Tensor());
            delete input;
        }
        if (message != nullptr) {
            std::string text(message);
            free_message(message);
            throw std::runtime_error(text);
        }
        return result;
    }

    void *context;
    BackwardCallback backward;
    DropCallback drop;
    FreeMessageCallback free_message;
};

}  // namespace

extern "C" {

// Gives `outputs` a history: their gradient flows to `inputs` through `backward`. Each output handle is replaced by a detached
// tensor on the same storage, so that the context may keep the original without a reference cycle.
int ft_autograd_attach(void *context, BackwardCallback backward, DropCallback drop, FreeMessageCallback free_message,
                       const Handle *inputs, size_t num_inputs, Handle *outputs, size_t num_outputs, char **message) {
    return ft::guarded(message, [&] {
        torch::autograd::variable_list input_list;
        for (size_t i = 0; i < num_inputs; i++) input_list.push_back(*inputs[i]);
        auto edges = torch::autograd::collect_next_edges(input_list);
        std::shared_ptr<CallbackNode> node(new CallbackNode(nullptr, backward, drop, free_message), torch::autograd::deleteNode);
        node->set_next_edges(std::move(edges));
        for (size_t i = 0; i < num_outputs; i++) {
            *outputs[i] = outputs[i]->detach();
            torch::autograd::set_history(*outputs[i], node);
        }
        node->context = context;
    });
}

// Accumulates into the leaves of `tensor` the gradients that follow from `gradient`, which has its shape.
int ft_autograd_backward(Handle tensor, Handle gradient, char **message) {
    return ft::guarded(message, [&] { torch::autograd::backward({*tensor}, {*gradient}); });
}

// Leaves `tensor` without a gradient; whoever holds the old one keeps it.
int ft_autograd_clear_gradient(Handle tensor, char **message) {
    return ft::guarded(message, [&] { tensor->mutable_grad() = at::Tensor(); });
}

// True when operations record a graph on this thread.
bool ft_autograd_is_recording() { return at::GradMode::is_enabled(); }

void ft_autograd_free_message(char *message) { std::free(message); }
}
