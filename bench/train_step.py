"""A LoRA training step on the CPU: ft against transformers + PEFT, on one model and the same batches, in bf16.

    train_step.py FT [--rounds N] [--steps N]

Runs take turns, so that a busy moment of the machine hits both; the first step of each run is warm-up and does not count. Prints the
median step of each and their ratio. The peer runs as its users run it: padded batches, its fastest expert implementation that
trains, logits for every token.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH_SEQUENCES = 4
SIZES = dict(
    hidden_size=512,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    num_local_experts=16,
    num_experts_per_tok=4,
)
RECIPE = """
[model]
path = "{work}/model"
experts = "bf16"

[dataset]
train = ["{work}/train.jsonl"]
packing = false
shuffle = false

[lora]
rank = 16
alpha = 32.0
targets = ["attention", "experts"]

[optimizer]
learning_rate = 2e-4

[schedule]
kind = "constant"
warmup_fraction = 0.0

[training]
steps = {steps}
batch_sequences = {batch_sequences}
accumulation_steps = 1
dtype = "bf16"
checkpoint_activations = {checkpoint}

[checkpoint]
every_steps = 1000

[evaluation]
every_steps = 1000

[sampling]
every_steps = 1000

[output]
directory = "{work}/runs"
name = "{name}"
"""


def prepare(ft, work, steps):
    """The model, conversations of about 250 tokens, and their ids as both sides will see them."""
    sets = [item for key, value in SIZES.items() for item in ("--set", f"{key}={value}")]
    subprocess.run([ft, "init", work / "model", "--preset", "nano", "--experts", "bf16", *sets], check=True)
    words = "the loop reads each line then checks whether value matches pattern before it writes result back into file".split()
    source = random.Random(7)
    with open(work / "train.jsonl", "w") as file:
        for _ in range(steps * BATCH_SEQUENCES):
            text = " ".join(source.choice(words) for _ in range(source.randint(215, 235)))
            messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": messages}) + "\n")
    rendered = subprocess.run(
        [ft, "render", work / "train.jsonl", "--tokens", "--training", "--json"], check=True, capture_output=True
    ).stdout
    (work / "rendered.json").write_bytes(rendered)


def ft_steps(ft, work, name, steps, checkpoint):
    recipe = work / "recipe.toml"
    recipe.write_text(
        RECIPE.format(work=work, name=name, steps=steps, batch_sequences=BATCH_SEQUENCES, checkpoint=str(checkpoint).lower())
    )
    subprocess.run([ft, "train", recipe], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (work / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "step_seconds" in line]
    return [line["step_seconds"] for line in lines], [line["loss"] for line in lines]


def peer_steps(work, steps, checkpoint, experts):
    command = [sys.executable, __file__, "--peer", str(work), "--steps", str(steps), "--experts", experts]
    command += ["--checkpoint-activations"] if checkpoint else []
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    return found["seconds"], found["losses"]


def run_peer(work, steps, checkpoint, experts):
    """Trains with transformers and PEFT; prints the seconds and the loss of each step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM

    torch.manual_seed(1)
    model = GptOssForCausalLM.from_pretrained(
        work / "model", dtype=torch.bfloat16, attn_implementation="eager", experts_implementation=experts
    )
    config = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    if checkpoint:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    conversations = json.loads((work / "rendered.json").read_text())["conversations"]
    seconds, losses = [], []
    for step in range(steps):
        start = time.perf_counter()
        batch = conversations[step * BATCH_SEQUENCES : (step + 1) * BATCH_SEQUENCES]
        length = max(len(each["ids"]) for each in batch)
        ids = torch.full((len(batch), length), 199999)
        labels = torch.full((len(batch), length), -100)
        mask = torch.zeros((len(batch), length), dtype=torch.long)
        for row, each in enumerate(batch):
            tokens = torch.tensor(each["ids"])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            labels[row, : len(tokens)] = torch.where(torch.tensor(each["weights"]) > 0, tokens, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "losses": losses}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ft", nargs="?", type=Path, default=Path("target/release/ft"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--experts", choices=["grouped_mm", "batched_mm", "eager"], help="the peer's expert implementation")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer(arguments.peer, arguments.steps, arguments.checkpoint_activations, arguments.experts)
        return

    ft, steps, checkpoint = arguments.ft.resolve(), arguments.steps, arguments.checkpoint_activations
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as folder:
        work = Path(folder)
        prepare(ft, work, steps)
        experts = arguments.experts or fastest_experts(work, checkpoint)
        ours, theirs = [], []
        for index in range(arguments.rounds):
            seconds, our_losses = ft_steps(ft, work, f"round-{index}", steps, checkpoint)
            ours += seconds[1:]
            seconds, their_losses = peer_steps(work, steps, checkpoint, experts)
            theirs += seconds[1:]
            print(
                f"round {index + 1}: ft {statistics.median(ours):.2f} s, "
                f"transformers + PEFT ({experts}) {statistics.median(theirs):.2f} s; "
                f"first losses {our_losses[0]:.3f} and {their_losses[0]:.3f}",
                flush=True,
            )
        ours, theirs = statistics.median(ours), statistics.median(theirs)
        print(f"training step on {os.cpu_count()} cores, bf16, checkpointed activations {'on' if checkpoint else 'off'}:")
        print(f"ft {ours:.2f} s, transformers + PEFT {theirs:.2f} s, ratio {theirs / ours:.2f}")


def fastest_experts(work, checkpoint):
    """Whichever of the peer's expert implementations trains fastest here."""
    times = {}
    for experts in ("grouped_mm", "eager"):
        try:
            times[experts] = min(peer_steps(work, 2, checkpoint, experts)[0])
        except subprocess.CalledProcessError as error:
            print(f"transformers + PEFT with {experts} experts does not train here: {error.stderr.splitlines()[-1]}")
    return min(times, key=times.get)


if __name__ == "__main__":
    main()
