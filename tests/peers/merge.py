"""Models with adapters that PEFT makes and merges, and comparisons of what `ft merge` makes of them.

    merge.py make OUT                       OUT/plain and OUT/plain-f32 with the adapters OUT/usual and OUT/swapped, OUT/packed with
                                            OUT/experts and OUT/zeros, PEFT's own merges (OUT/CASE.f32, OUT/CASE.bf16), OUT/tokens.json
    merge.py plain RESULT PEFT [PEFT_BF16 MODEL]
                                            every tensor of a plain result against PEFT's merges in f32 and in bf16
    merge.py packed MODEL ADAPTER RESULT REPORT
                                            every byte of a packed result against numpy, and the figures; REPORT is what `--json` printed
    merge.py same MODEL RESULT              every byte of every tensor
"""

import copy
import json
import sys
from pathlib import Path

import numpy
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import quantize
import tiny

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# No two ranks and scalings alike; the keys are expressions for the end of a name.
PATTERNS = dict(
    rank_pattern={r"layers\.1\.self_attn\.q_proj": 7, "mlp.experts.down_proj": 2, "lm_head": 6},
    alpha_pattern={"k_proj": 3, "mlp.experts.gate_up_proj": 5, r"layers\.2\.mlp\.router\.weight": 9},
)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def with_adapter(made, seed, is_swapped=False, **options):
    """A PEFT model on a copy of `made`, no matrix of its adapter zero."""
    base = copy.deepcopy(made)
    for layer in base.model.layers:
        # What decides in PEFT 0.19.1 and later which way round the experts' tensors are.
        layer.mlp.experts.is_transposed = not is_swapped
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1 if "lora_A" in name else 0.05, generator=generator)
    return adapted


def save_merged(adapted, path, dtype):
    """PEFT's own merge into the weights in `dtype`."""
    adapted = copy.deepcopy(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    merged = adapted.merge_and_unload()
    tensors = {name: parameter.detach().contiguous() for name, parameter in merged.named_parameters()}
    save_file(tensors, path)


def make(out):
    made = tiny.model(seed=61)
    tiny.save(out / "plain", tiny.published_config(made), tiny.tensors(made), shards=2)
    weights = {name: parameter.detach().float().contiguous() for name, parameter in made.named_parameters()}
    tiny.save(out / "plain-f32", tiny.published_config(made), weights)
    everything = dict(target_modules=[*ATTENTION, "lm_head"], target_parameters=[*EXPERTS, "mlp.router.weight"])
    for name, options in [
        ("usual", everything | PATTERNS),
        ("swapped", everything | dict(is_swapped=True, use_rslora=True)),
    ]:
        adapted = with_adapter(made, seed=62, **options)
        adapted.save_pretrained(out / name, save_embedding_layers=False)
        save_merged(adapted, out / f"{name}.f32", torch.float32)
        save_merged(adapted, out / f"{name}.bf16", torch.bfloat16)
    width = {name: load_file(out / name / "adapter_model.safetensors") for name in ("usual", "swapped")}
    key = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
    shapes = [width[name][key].shape[1] for name in ("usual", "swapped")]
    if shapes != [made.config.hidden_size, 2 * made.config.intermediate_size]:
        sys.exit(f"the adapters are not the one as usual and the other swapped: A is {shapes} wide")

    made = tiny.model(seed=63, intermediate_size=64, num_experts_per_tok=4)
    packed = tiny.set_mxfp4_experts(made, seed=63)
    tiny.save(out / "packed", tiny.published_config(made, mxfp4=True), tiny.tensors(made, packed), shards=2)
    adapted = with_adapter(made, seed=64, target_modules=ATTENTION, target_parameters=EXPERTS)
    with torch.no_grad():
        # One expert of one matrix is not adapted, and one whole layer hardly.
        for name, parameter in adapted.named_parameters():
            if name.endswith("layers.1.mlp.experts.lora_B.default.weight"):
                parameter.view(parameter.shape[0], -1, made.config.num_local_experts)[:, :, 3] = 0.0
            elif "layers.2" in name and "experts" in name and "lora_B" in name:
                parameter.mul_(0.01)
    adapted.save_pretrained(out / "experts", save_embedding_layers=False)
    save_merged(adapted, out / "experts.f32", torch.float32)
    # As PEFT begins: B is zero.
    zeros = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=ATTENTION, target_parameters=EXPERTS)
    get_peft_model(copy.deepcopy(made), zeros).save_pretrained(out / "zeros", save_embedding_layers=False)
    ids = [tiny.random_ids(6100 + index, length, made.config.vocab_size) for index, length in enumerate([57, 20])]
    (out / "tokens.json").write_text(json.dumps(ids))


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons


def ulp(values):
    """The distance of bf16 numbers around `values`, in f64: 2^-7 of their power of two."""
    _, exponent = numpy.frexp(numpy.abs(values))
    return numpy.exp2(numpy.maximum(exponent - 1, -126) - 7.0)


def plain(result, exact, in_bf16=None, model=None):
    """f32 results within the rounding of f32 sums; bf16 ones within a step more of PEFT's f32 merge, and as near to its bf16 merge as that
    rounds."""
    result, exact = quantize.Model(result), load_file(exact)
    in_bf16, weights = (load_file(in_bf16), quantize.Model(model)) if in_bf16 else ({}, {})
    count = differing = differing_in_bf16 = 0
    worst = 0.0
    for name, theirs in exact.items():
        found, expected = result[name].double().numpy(), theirs.double().numpy()
        count += found.size
        # Products of rank 7 at most, their sum and one addition round by 2^-24 of numbers below 2.
        noise = 16 * 2.0**-24 * max(1.0, numpy.abs(expected).max())
        if result[name].dtype == torch.float32:
            worst = max(worst, numpy.abs(found - expected).max())
            if worst > noise:
                sys.exit(f"{name} differs by {worst}")
            continue
        # A zero of either sign is the same: without an update ft keeps the sign, and PEFT adds a positive zero.
        rounded = theirs.bfloat16().double().numpy()
        differing += int((found != rounded).sum())
        if (numpy.abs(found - rounded) > ulp(expected) + noise).any():
            sys.exit(f"{name} is more than a step of bf16 from PEFT's merge in f32")
        if name in in_bf16:
            other = in_bf16[name].double().numpy()
            differing_in_bf16 += int((found != other).sum())
            # PEFT may round the update before it adds it.
            update = expected - weights[name].double().numpy()
            if (numpy.abs(found - other) > ulp(expected) + ulp(update) / 2 + noise).any():
                sys.exit(f"{name} is further from PEFT's merge in bf16 than its rounding explains")
    if result[name].dtype == torch.float32:
        print(f"{count} values in f32: within {worst:.1e} of PEFT's")
    else:
        also = f", {differing_in_bf16} from its merge in bf16" if in_bf16 else ""
        print(f"{count} values in bf16: {differing} differ from PEFT's merge in f32{also}")


def packed(model, adapter, result, report):
    """The merge of packed experts by numpy, with the sums in the order that ft documents, so that every bit is the same."""
    report = json.loads(report.read_text())
    model, result, tensors = quantize.Model(model), quantize.Model(result), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank, scaling = config["r"], numpy.float32(config["lora_alpha"] / config["r"])
    reports = {tensor["name"]: tensor for tensor in report["tensors"]}
    total = changed = 0
    for name in model.matrices():
        codes, scales = model.packed(name)
        experts = model[f"{name}_scales"].shape[0]
        slot = name.rsplit(".", 1)[0] + (".base_layer" if name.endswith("gate_up_proj") else "")
        a = tensors[f"base_model.model.{slot}.lora_A.weight"].float().numpy()
        b = tensors[f"base_model.model.{slot}.lora_B.weight"].float().numpy()
        a, b = a.reshape(experts, rank, -1), b.reshape(b.shape[0], rank, experts).transpose(2, 0, 1)
        update = numpy.zeros((experts, b.shape[1], a.shape[2]), dtype=numpy.float32)
        for step in range(rank):
            update += b[:, :, step, None] * a[:, None, step]
        update = (update * scaling).reshape(-1, quantize.BLOCK)
        before = quantize.values(codes, scales)
        merged = numpy.where(update == 0, before, (before.astype(numpy.float32) + update).astype(numpy.float64))
        expected, expected_scales = quantize.pack(merged, "hint", "even", scales)
        found, found_scales = result.packed(name)
        if (found != expected).any() or (found_scales != expected_scales).any():
            place = numpy.argwhere((found != expected).any(axis=1) | (found_scales != expected_scales))[0, 0]
            sys.exit(f"{name}, block {place}: {found[place].tolist()} with {found_scales[place]}, numpy has {expected[place].tolist()}")
        total, changed = total + found.size, changed + int((found != codes).sum())
        figures = quantize.Figures()
        figures.add(merged, found, found_scales, (codes, scales))
        figures.check(name, reports[name])
        if not (update != 0).any(axis=1).reshape(experts, -1).any(axis=1).all():
            print(f"{name}: an expert is not adapted")
    print(f"{total} codes are numpy's, {changed} of them changed")


def same(model, result):
    model, result = quantize.Model(model), quantize.Model(result)
    if model.files.keys() != result.files.keys():
        sys.exit(f"only one side has {sorted(model.files.keys() ^ result.files.keys())}")
    for name in model.files:
        if model[name].dtype != result[name].dtype or not torch.equal(model[name].view(torch.uint8), result[name].view(torch.uint8)):
            sys.exit(f"{name} was changed")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"make": make, "plain": plain, "packed": packed, "same": same}[verb](*map(Path, arguments))
