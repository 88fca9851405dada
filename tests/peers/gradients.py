"""Writes a model, weighted sequences, and transformers' f32 gradient of every parameter: `gradients.py OUT`.

OUT holds `model/`, `tokens.json` ({"ids": [[...]], "weights": [[...]]}, a weight being that of predicting the id at its place)
and `expected.safetensors`, with the loss beside the gradients.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import tiny


def weighted_loss(made, sequences, weights):
    """Weighted mean of the cross entropy of each token after the first, over all sequences."""
    total = torch.zeros(())
    for ids, weight in zip(sequences, weights, strict=True):
        logits = made(torch.tensor([ids])).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        total = total + (losses * torch.tensor(weight[1:])).sum()
    return total / sum(sum(weight[1:]) for weight in weights)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    made = tiny.model(seed=21, num_hidden_layers=4)
    tiny.save_pretrained(made, out / "model", max_shard_size="200KB")
    sequences = [tiny.random_ids(2100 + index, length, made.config.vocab_size) for index, length in enumerate((61, 35, 9))]
    # Whole stretches at zero, as a prompt has; fractions, as channel weights give.
    weights = [[0.0 if place % 7 < 2 else (0.25, 1.0, 0.5)[place % 3] for place in range(len(ids))] for ids in sequences]
    for weight in weights:
        weight[0] = 0.0
    margins = tiny.RouterMargins(made)
    loss = weighted_loss(made, sequences, weights)
    if margins.smallest < 1e-5:
        sys.exit(f"router choices within {margins.smallest} of each other: take another seed")
    loss.backward()
    gradients = {name: parameter.grad.contiguous() for name, parameter in made.named_parameters()}
    for name, gradient in gradients.items():
        if not gradient.norm() > 1e-6:
            sys.exit(f"{name}: the gradient is zero, so that comparing it would prove nothing")
    (out / "tokens.json").write_text(json.dumps({"ids": sequences, "weights": weights}))
    save_file(gradients | {"loss": loss.detach().reshape(1)}, out / "expected.safetensors")


if __name__ == "__main__":
    main()
