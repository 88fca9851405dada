"""A LoRA training step on the CPU: ft against transformers + PEFT, on one model and the same batches, in bf16.

    train_step.py FT [--cases half,all] [--experts-storage bf16|mxfp4] [--rounds N] [--steps N] [--json]

Cases: `half`, conversations of which half the tokens are trained, and `all`, a short question and a long answer: all are trained but the
question and the system message. With `--experts-storage mxfp4` ft trains on the packed experts, and the peer on the bf16 that they unpack to.

Runs take turns, so that a busy moment of the machine hits both; the first step of each run is warm-up and does not count. Prints, for each
case, the median step of each, their ratio, the peak memory of each process, and the losses of the first and the last step, which say
whether both do the same. The peer runs as its users run it: batches of conversations of similar lengths, padded to the longest, its fastest expert
implementation that trains, logits for every token. ft gets the same batches, and computes logits where a token is trained.
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

from measure import peak_bytes

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
# Words of the user and of the assistant, at least and at most. A word is a token; the system message and the markup are about 57.
CASES = {"half": ((89, 99), (141, 151)), "all": ((2, 2), (215, 235))}
WORDS = "the loop reads each line then checks whether value matches pattern before it writes result back into file".split()
RECIPE = """
[model]
path = "{model}"
experts = "{storage}"

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


def quietly(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_models(ft, work, storage):
    """One random model as ft reads it and as the peer does: the same directory, or the packed one and what it unpacks to."""
    settings = [part for key, value in SIZES.items() for part in ("--set", f"{key}={value}")]
    plain, packed = work / "plain", work / "packed"
    if storage == "bf16":
        quietly(ft, "init", plain, "--preset", "nano", "--experts", "bf16", *settings)
        return plain, plain
    quietly(ft, "init", packed, "--preset", "nano", "--experts", "mxfp4", *settings)
    quietly(ft, "quantize", packed, plain, "--to", "bf16")
    return packed, plain


def make_conversations(ft, work, case, steps):
    """Writes the conversations, and their ids as both sides will see them; returns the fraction of the tokens that are trained."""
    source = random.Random(7)
    user, assistant = CASES[case]

    def say(least, most):
        return " ".join(source.choice(WORDS) for _ in range(source.randint(least, most)))

    with open(work / "train.jsonl", "w") as file:
        for _ in range(steps * BATCH_SEQUENCES):
            messages = [{"role": "user", "content": say(*user)}, {"role": "assistant", "content": say(*assistant)}]
            file.write(json.dumps({"messages": messages}) + "\n")
    command = [ft, "render", work / "train.jsonl", "--tokens", "--training", "--json"]
    rendered = subprocess.run(command, check=True, capture_output=True).stdout
    (work / "rendered.json").write_bytes(rendered)
    weights = [weight for each in json.loads(rendered)["conversations"] for weight in each["weights"]]
    return sum(weight > 0 for weight in weights) / len(weights)


def write_recipe(work, model, storage, name, steps, checkpoint):
    recipe = work / "recipe.toml"
    recipe.write_text(
        RECIPE.format(
            work=work, model=model, storage=storage, name=name, steps=steps,
            batch_sequences=BATCH_SEQUENCES, checkpoint=str(checkpoint).lower(),
        )
    )
    return recipe


def ft_run(ft, work, model, storage, steps, checkpoint, name):
    """Trains with ft: the seconds and the loss of each step, and the most memory that it had."""
    peak = peak_bytes([ft, "train", write_recipe(work, model, storage, name, steps, checkpoint)])
    lines = [json.loads(line) for line in (work / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "step_seconds" in line]
    return {"seconds": [line["step_seconds"] for line in lines], "losses": [line["loss"] for line in lines], "peak_bytes": peak}


def peer_run(work, model, steps, checkpoint, experts):
    """The same of a process of the peer."""
    command = [sys.executable, __file__, "--peer", work, "--model", model, "--steps", str(steps), "--experts", experts]
    peak = peak_bytes(command + (["--checkpoint-activations"] if checkpoint else []))
    return json.loads((work / "peer.json").read_text()) | {"peak_bytes": peak}


def peer_model(model, checkpoint, experts, **loading):
    """The peer's model with its LoRA, ready to train; `loading` goes to `from_pretrained`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM

    torch.manual_seed(1)
    model = GptOssForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation=experts, **loading
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
    return model.train()


def padded(conversations):
    """A batch as the peer takes it: ids, labels and mask, all as long as the longest."""
    import torch

    length = max(len(each["ids"]) for each in conversations)
    ids = torch.full((len(conversations), length), 199999)
    labels = torch.full((len(conversations), length), -100)
    mask = torch.zeros((len(conversations), length), dtype=torch.long)
    for row, each in enumerate(conversations):
        tokens = torch.tensor(each["ids"])
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.where(torch.tensor(each["weights"]) > 0, tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train_peer(work, model, steps, checkpoint, experts):
    """Trains with transformers and PEFT; writes the seconds and the loss of each step."""
    import torch

    model = peer_model(model, checkpoint, experts)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    conversations = json.loads((work / "rendered.json").read_text())["conversations"]
    found = {"seconds": [], "losses": []}
    for step in range(steps):
        start = time.perf_counter()
        batch = padded(conversations[step * BATCH_SEQUENCES : (step + 1) * BATCH_SEQUENCES])
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(loss.item())
        found["seconds"].append(time.perf_counter() - start)
    (work / "peer.json").write_text(json.dumps(found))


def fastest_experts(work, model, checkpoint):
    """Whichever of the peer's expert implementations trains fastest here."""
    return min(("grouped_mm", "eager"), key=lambda experts: min(peer_run(work, model, 2, checkpoint, experts)["seconds"]))


def compare(ft, work, models, storage, case):
    """A line of the table: rounds of both in turn."""
    steps, checkpoint = arguments.steps, arguments.checkpoint_activations
    trained = make_conversations(ft, work, case, steps)
    experts = arguments.experts or fastest_experts(work, models[1], checkpoint)
    ours, theirs = [], []
    for index in range(arguments.rounds):
        ours.append(ft_run(ft, work, models[0], storage, steps, checkpoint, f"{case}-{index}"))
        theirs.append(peer_run(work, models[1], steps, checkpoint, experts))
        print(f"{case}, round {index + 1}: ft {ours[-1]['seconds']}, peer {theirs[-1]['seconds']}", file=sys.stderr, flush=True)
    line = {"case": case, "trained_fraction": trained, "peer_experts": experts}
    for name, runs in (("ft", ours), ("peer", theirs)):
        line[name] = {
            "step_seconds": statistics.median(second for run in runs for second in run["seconds"][1:]),
            "peak_bytes": max(run["peak_bytes"] for run in runs),
            "first_loss": runs[0]["losses"][0],
            "last_loss": runs[0]["losses"][-1],
        }
    return line | {"ratio": line["peer"]["step_seconds"] / line["ft"]["step_seconds"]}


def table(lines):
    yield "| case | tokens trained | ft s/step | peer s/step | ratio | ft peak MB | peer peak MB | ft losses | peer losses | peer's experts |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for line in lines:
        ours, theirs = line["ft"], line["peer"]
        cells = [line["case"], f"{line['trained_fraction']:.0%}"]
        cells += [f"{ours['step_seconds']:.2f}", f"{theirs['step_seconds']:.2f}", f"{line['ratio']:.2f}"]
        cells += [f"{side['peak_bytes'] / 1e6:.0f}" for side in (ours, theirs)]
        cells += [f"{side['first_loss']:.3f} to {side['last_loss']:.3f}" for side in (ours, theirs)]
        yield "| " + " | ".join([*cells, line["peer_experts"]]) + " |"


def main():
    ft, storage = arguments.ft.resolve(), arguments.experts_storage
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as folder:
        models = make_models(ft, Path(folder), storage)
        lines = [compare(ft, Path(folder), models, storage, case) for case in arguments.cases.split(",")]
    checkpoint = "on" if arguments.checkpoint_activations else "off"
    if arguments.json:
        settings = {"cores": os.cpu_count(), "dtype": "bf16", "experts_storage": storage, "checkpoint_activations": checkpoint == "on"}
        print(json.dumps({"version": 1, **settings, "rounds": arguments.rounds, "steps": arguments.steps, "cases": lines}))
        return
    print(f"training step on {os.cpu_count()} cores, bf16, experts in {storage}, checkpointed activations {checkpoint}; peer: transformers + PEFT")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ft", nargs="?", type=Path, default=Path("target/release/ft"))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--experts-storage", choices=["bf16", "mxfp4"], default="bf16", help="how ft's model holds its experts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--experts", choices=["grouped_mm", "batched_mm", "eager"], help="the peer's expert implementation")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases.split(",")) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if arguments.peer:
        train_peer(arguments.peer, arguments.model, arguments.steps, arguments.checkpoint_activations, arguments.experts)
    else:
        main()
