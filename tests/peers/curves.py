"""Trains as ft does, with PEFT and with plain transformers, on the ids and weights that `ft render` gives.

    curves.py lora|full OUT RENDERED STEPS SEQUENCES_PER_STEP LEARNING_RATE

Writes OUT/model, for LoRA OUT/initial_adapter (PEFT's format, B not zero), and OUT/losses.json: the loss of each step, the weighted
mean over all of the step's tokens, taken before the step's update.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import tiny
from gradients import weighted_loss

# What the recipes of the tests say too.
MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.999)
EPSILON = 1e-8


def with_adapter(made):
    """A PEFT model whose adapters are on attention and experts, none of them zero."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(made, config)
    generator = torch.Generator().manual_seed(33)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1 if "lora_A" in name else 0.05, generator=generator)
    return adapted


def main():
    kind, out, rendered = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    steps, per_step, learning_rate = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    out.mkdir(parents=True)
    conversations = json.loads(rendered.read_text())["conversations"]

    made = tiny.model(
        seed=31,
        vocab_size=tiny.FULL_VOCABULARY,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=20,
        eos_token_id=200002,
        pad_token_id=199999,
    )
    tiny.save_pretrained(made, out / "model")
    if kind == "lora":
        trained = with_adapter(made)
        trained.save_pretrained(out / "initial_adapter")
    else:
        trained = made

    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    losses = []
    for step in range(steps):
        batch = [conversations[(step * per_step + index) % len(conversations)] for index in range(per_step)]
        loss = weighted_loss(trained, [each["ids"] for each in batch], [each["weights"] for each in batch])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append({"step": step + 1, "loss": loss.item(), "gradient_norm": norm.item()})
    (out / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
