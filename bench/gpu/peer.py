"""transformers + PEFT on the model and conversations of ft: tokens a second, and peak memory.

    peer.py MODEL RENDERED RESULT --sequences N --attention eager,flex_attention --budget SECONDS

As its users run it on one card: MXFP4 dequantized to bf16, grouped matrix products for the experts, gradient checkpointing, LoRA of rank 16
on attention and on the experts through `target_parameters`, AdamW. A step is N sequences whatever goes through the model at once: each
attention is tried with the largest batch that fits. RESULT holds every try, written anew after each, and lasts when time runs out.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import Mxfp4Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train_step import padded, peer_model

WARM_UP, MEASURED = 1, 3


def on_cuda():
    return torch.cuda.is_available()


def finish():
    if on_cuda():
        torch.cuda.synchronize()


def step(model, optimizer, parameters, sequences, batch):
    """One update on all of `sequences`, `batch` of them at once; its seconds, tokens and loss."""
    finish()
    start, tokens, losses = time.perf_counter(), 0, []
    for first in range(0, len(sequences), batch):
        inputs = {name: each.to(model.device) for name, each in padded(sequences[first : first + batch]).items()}
        tokens += int(inputs["attention_mask"].sum())
        loss = model(**inputs, use_cache=False).loss * batch / len(sequences)
        loss.backward()
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    finish()
    return time.perf_counter() - start, tokens, sum(losses)


def measure(model, conversations, batch, deadline):
    """The figures of one way of training: a warm-up, then steps while there is time."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    if on_cuda():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps = []
    for index in range(WARM_UP + MEASURED):
        chosen = conversations[index * arguments.sequences :][: arguments.sequences]
        steps.append(step(model, optimizer, parameters, chosen, batch))
        if len(steps) > WARM_UP and time.monotonic() > deadline:
            break
    timed = steps[WARM_UP:]
    return {
        "step_seconds": statistics.median(seconds for seconds, _, _ in timed),
        "tokens_per_second": statistics.median(tokens / seconds for seconds, tokens, _ in timed),
        "tokens": timed[0][1],
        "measured_steps": len(timed),
        "losses": [loss for _, _, loss in steps],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_cuda() else None,
        "reserved_memory_bytes": torch.cuda.max_memory_reserved() if on_cuda() else None,
    }


def attempts():
    """Every attention with falling batches; the rest of an attention's batches are left out once one of them fits."""
    for attention in arguments.attention.split(","):
        if attention == "flex_attention" and not importlib.util.find_spec("triton"):
            yield attention, None, "it is compiled by Triton, which is not installed"
            continue
        batch = arguments.sequences
        while batch and (yield attention, batch, None) != "fits":
            batch //= 2


def main():
    deadline = time.monotonic() + arguments.budget
    conversations = json.loads(arguments.rendered.read_text())["conversations"]
    start = time.perf_counter()
    model = peer_model(
        arguments.model, True, "grouped_mm", quantization_config=Mxfp4Config(dequantize=True), device_map="cuda:0" if on_cuda() else "cpu"
    )
    found = {"load_seconds": time.perf_counter() - start, "tries": []}
    tries, outcome = attempts(), None
    while time.monotonic() < deadline:
        try:
            attention, batch, reason = tries.send(outcome)
        except StopIteration:
            break
        one, outcome = {"attention": attention, "batch_sequences": batch}, "failed"
        try:
            if reason is None:
                model.get_base_model().set_attn_implementation(attention)
                one |= measure(model, conversations, batch, deadline)
                outcome = "fits"
        except (RuntimeError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            model.zero_grad()
        one |= {"error": reason} if reason else {}
        found["tries"].append(one)
        arguments.result.write_text(json.dumps(found))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("rendered", type=Path)
parser.add_argument("result", type=Path)
parser.add_argument("--sequences", type=int, required=True, help="sequences of a step")
parser.add_argument("--attention", default="eager,flex_attention")
parser.add_argument("--budget", type=float, default=400, help="seconds after which nothing more is started")
arguments = parser.parse_args()
main()
