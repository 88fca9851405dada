"""Figures of one model against another, by transformers and numpy: `eval.py OUT SAMPLES`.

SAMPLES is what `ft preview --json` prints. OUT gets `reference/` with MXFP4 experts, `same/` with the same weights in bf16, `model/`, whose
weights are all a little off, and `expected.json`: what `ft eval --json` has to print for `model/` against `reference/`. Logits are
transformers' in f32; everything after them is numpy in f64, written from the definitions.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy
import torch

import tiny

# How far the weights of `model/` are off, relative.
NOISE = 0.05
# What a lesson adds to a logit; the others are log 201,088 or so together.
LESSON = 15.0
PERCENTILES = {"p99_9": 99.9, "p99": 99, "p95": 95, "p90": 90, "p75": 75, "median": 50, "p25": 25, "p10": 10, "p5": 5, "p1": 1, "p0_1": 0.1}


class RouterChoices:
    """The set of experts of every layer and token of the last forward pass."""

    def __init__(self, made):
        self.layers = {}
        self.top = made.config.num_experts_per_tok
        for index, layer in enumerate(made.model.layers):
            layer.mlp.router.register_forward_hook(lambda _module, _inputs, outputs, index=index: self.observe(index, outputs[0]))

    def observe(self, layer, router_logits):
        order = numpy.argsort(-router_logits.detach().float().numpy(), axis=-1, kind="stable")
        self.layers[layer] = [set(row[: self.top].tolist()) for row in order]


def run(made, samples):
    """Log-probabilities of the counted tokens' distributions, f64 [n, v], and the experts at those places, by layer."""
    choices, margins = RouterChoices(made), tiny.RouterMargins(made)
    rows, experts = [], defaultdict(list)
    for sample in samples:
        with torch.no_grad():
            logits = made(torch.tensor([sample["ids"]])).logits[0].float().numpy()
        places = [index - 1 for index, weight in enumerate(sample["weights"]) if weight != 0]
        logits = logits[places].astype(numpy.float64)
        two = numpy.partition(logits, -2, axis=1)[:, -2:]
        if (two[:, 1] - two[:, 0]).min() < 1e-4:
            sys.exit("two tokens are likeliest within rounding: take another seed")
        peak = logits.max(axis=1, keepdims=True)
        rows.append(logits - peak - numpy.log(numpy.exp(logits - peak).sum(axis=1, keepdims=True)))
        for layer, sets in choices.layers.items():
            experts[layer] += [sets[place] for place in places]
    if margins.smallest < 1e-5:
        sys.exit(f"router choices within {margins.smallest} of each other: take another seed")
    return numpy.concatenate(rows), experts


def teach(made, samples):
    """Makes the head give every other counted token: probabilities, and who is right, then differ from token to token."""
    with torch.no_grad():
        for sample in samples:
            hidden = made.model(torch.tensor([sample["ids"]])).last_hidden_state[0]
            for index, (id, weight) in enumerate(zip(sample["ids"], sample["weights"])):
                if weight != 0 and index % 2:
                    state = hidden[index - 1]
                    made.lm_head.weight[id] += LESSON * state / state.square().sum()
        made.lm_head.weight.copy_(made.lm_head.weight.bfloat16().float())


def channels(sample):
    """The channel of each counted token, read from the text of its message."""
    found, message = [], []
    for index, token in [*enumerate(sample["tokens"]), (None, "<|start|>")]:
        if token == "<|start|>" and message:
            named = re.search(r"<\|channel\|>(analysis|commentary|final)", "".join(sample["tokens"][place] for place in message))
            found += [named.group(1) if named else "text" for place in message if sample["weights"][place] != 0]
            message = []
        message.append(index)
    return found


def standard_error(values):
    return numpy.std(values, ddof=1) / numpy.sqrt(len(values)) if len(values) > 1 else None


def spread(values):
    found = {"mean": values.mean(), "standard_error": standard_error(values), "maximum": values.max(), "minimum": values.min()}
    return found | {name: numpy.percentile(values, percent) for name, percent in PERCENTILES.items()}


def prediction(losses, is_correct):
    perplexity = numpy.exp(losses.mean())
    error = standard_error(losses)
    return {
        "loss": losses.mean(),
        "loss_standard_error": error,
        "perplexity": perplexity,
        "perplexity_standard_error": None if error is None else perplexity * error,
        "token_accuracy": is_correct.mean(),
        "token_accuracy_standard_error": standard_error(is_correct),
    }


def router(theirs, ours, top):
    layers = []
    for layer in sorted(theirs):
        shares = numpy.array([len(left & right) / top for left, right in zip(theirs[layer], ours[layer], strict=True)])
        layers.append({"layer": layer, "agreement_fraction": shares.mean(), "same_set_fraction": (shares == 1).mean()})
    return {
        "experts_per_token": top,
        "agreement_fraction": numpy.mean([layer["agreement_fraction"] for layer in layers]),
        "same_set_fraction": numpy.mean([layer["same_set_fraction"] for layer in layers]),
        "layers": layers,
    }


def expected(samples, reference, model, top):
    (log_p, their_experts), (log_q, our_experts) = reference, model
    targets = numpy.array([id for sample in samples for id, weight in zip(sample["ids"], sample["weights"]) if weight != 0])
    every = numpy.arange(len(targets))
    their_losses, losses = -log_p[every, targets], -log_q[every, targets]
    their_tops, tops = log_p.argmax(axis=1), log_q.argmax(axis=1)
    kl = (numpy.exp(log_p) * (log_p - log_q)).sum(axis=1)
    change = numpy.exp(-losses) - numpy.exp(-their_losses)
    rms = numpy.sqrt((change**2).mean())
    ratio = losses - their_losses
    names = numpy.array([name for sample in samples for name in channels(sample)])
    by_channel = {}
    for name in sorted(set(names)):
        here = names == name
        figures = prediction(losses[here], (tops == targets)[here])
        by_channel[name] = {"counted_tokens": int(here.sum()), "kl_divergence": kl[here].mean()} | figures
    return {
        "counted_tokens": len(targets),
        **prediction(losses, tops == targets),
        "channels": by_channel,
        "comparison": {
            "reference_prediction": prediction(their_losses, their_tops == targets),
            "kl_divergence": spread(kl),
            "same_top_fraction": (tops == their_tops).mean(),
            "same_top_fraction_standard_error": standard_error(tops == their_tops),
            "probability_change": {"rms": rms, "rms_standard_error": standard_error(change**2) / (2 * rms)} | spread(change),
            "perplexity_ratio": numpy.exp(losses.mean()) / numpy.exp(their_losses.mean()),
            "perplexity_ratio_standard_error": standard_error(ratio) * numpy.exp(ratio.mean()),
            "ln_perplexity_ratio": ratio.mean(),
            "ln_perplexity_ratio_standard_error": standard_error(ratio),
            "log_probability_correlation": numpy.corrcoef(losses, their_losses)[0, 1],
            "router": router(their_experts, our_experts, top),
        },
    }


def plain(value):
    return value.item() if isinstance(value, numpy.generic) else value


def main():
    out, samples = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())["samples"]
    out.mkdir(parents=True)
    shape = dict(vocab_size=tiny.FULL_VOCABULARY, intermediate_size=64, num_experts_per_tok=3, num_local_experts=7)
    made = tiny.model(seed=41, **shape)
    packed = tiny.set_mxfp4_experts(made, seed=41)
    teach(made, samples)
    tiny.save(out / "reference", tiny.published_config(made, mxfp4=True), tiny.tensors(made, packed))
    tiny.save(out / "same", tiny.published_config(made), tiny.tensors(made))
    reference = run(made, samples)

    generator = torch.Generator().manual_seed(42)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * NOISE
            parameter.copy_((parameter * (1 + noise)).bfloat16().float())
    tiny.save(out / "model", tiny.published_config(made), tiny.tensors(made))
    figures = expected(samples, reference, run(made, samples), made.config.num_experts_per_tok)
    (out / "expected.json").write_text(json.dumps(figures, default=plain))


if __name__ == "__main__":
    main()
