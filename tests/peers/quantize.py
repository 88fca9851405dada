"""The scale rules, roundings and figures of `ft quantize`, by numpy and by their definitions.

    quantize.py make OUT                            models to convert: OUT/plain, OUT/packed
    quantize.py small OUT                           a model to compute with, OUT/small, and OUT/tokens.json
    quantize.py check SOURCE RESULT REPORT [HINTS]  every block and figure of a result against numpy; REPORT is what `--json` printed
    quantize.py logits MODEL TOKENS OUT             transformers' f32 logits of a directory, loaded as any other model
    quantize.py unpack MODEL PLAIN                  transformers' own unpacking of MODEL against the experts of PLAIN
"""

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import tiny

# 10.4 million values in the experts; no size is another, and all that blocks lie along are multiples of 32.
SHAPE = dict(hidden_size=256, intermediate_size=544, num_hidden_layers=5, num_local_experts=5, num_experts_per_tok=2, vocab_size=97)
BLOCK = 32
# E2M1 magnitudes by code.
MAGNITUDES = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
LARGEST_SCALE = 252


# ---------------------------------------------------------------------------------------------------------------------
# The definitions


def floor_scale(largest):
    """floor(log2 largest) - 2, as a byte before it is clamped."""
    _, exponent = numpy.frexp(largest)
    return exponent - 1 - 2 + 127


def rule_scale(rule, largest):
    mantissa, _ = numpy.frexp(largest)  # in [0.5, 1)
    scale = floor_scale(largest)
    if rule == "even":
        scale = scale + (mantissa >= 1.75 / 2)
    elif rule == "rceil":
        # The smallest power of two under which the largest value is at most 6.
        scale = scale + (mantissa > 1.5 / 2)
    return numpy.where(largest == 0, 0, scale.clip(0, LARGEST_SCALE))


def codes(blocks, scales, rounding):
    """Sign and magnitude codes of [n, 32] under [n]: the nearest; of two equally near ones the even code, or the smaller one."""
    units = numpy.abs(blocks) / numpy.exp2(scales.astype(numpy.float64) - 127)[:, None]
    magnitudes = numpy.zeros(blocks.shape, dtype=numpy.uint8)
    for below, middle in enumerate((MAGNITUDES[:-1] + MAGNITUDES[1:]) / 2):
        goes_up = units >= middle if rounding == "even" and below % 2 == 1 else units > middle
        magnitudes += goes_up
    signs = numpy.signbit(blocks)
    if rounding != "even":
        signs &= magnitudes > 0
    return magnitudes + numpy.uint8(8) * signs


def values(found, scales):
    magnitudes = MAGNITUDES[found & 7] * numpy.exp2(scales.astype(numpy.float64) - 127)[:, None]
    return numpy.where(found & 8, -magnitudes, magnitudes)


def pack(blocks, rule, rounding, hints):
    """Codes [n, 32] and scales [n] of f64 blocks [n, 32]."""
    largest = numpy.abs(blocks).max(axis=1)
    if rule not in ("hint", "mse"):
        scales = rule_scale(rule, largest)
        return codes(blocks, scales, rounding), scales
    floor = rule_scale("floor", largest)
    candidates = [floor, numpy.minimum(floor + 1, LARGEST_SCALE)]
    if rule == "hint":
        candidates.insert(0, hints.astype(floor.dtype))
    packed = [codes(blocks, scales, rounding) for scales in candidates]
    errors = numpy.stack([((blocks - values(found, scales)) ** 2).sum(axis=1) for found, scales in zip(packed, candidates)])
    for index in range(1, len(candidates)):
        # The same scale again is no other candidate.
        errors[index][numpy.any([candidates[index] == earlier for earlier in candidates[:index]], axis=0)] = numpy.inf
    best = numpy.argmin(errors, axis=0)  # the first of equals
    # f64 rounds: what is as good as equal is compared again, exactly.
    for block in numpy.flatnonzero((errors <= errors.min(axis=0) * (1 + 1e-12)).sum(axis=0) > 1):
        exact = [
            exact_error(blocks[block], found[block], int(scales[block])) if numpy.isfinite(error[block]) else numpy.inf
            for found, scales, error in zip(packed, candidates, errors)
        ]
        best[block] = exact.index(min(exact))
    rows = numpy.arange(len(blocks))
    return numpy.stack(packed)[best, rows], numpy.stack(candidates)[best, rows]


def exact_error(block, found, scale):
    unit = Fraction(2) ** (scale - 127)
    magnitudes = [Fraction(float(MAGNITUDES[code & 7])) * unit * (-1 if code & 8 else 1) for code in found.tolist()]
    return sum((Fraction(value) - magnitude) ** 2 for value, magnitude in zip(block.tolist(), magnitudes))


# ---------------------------------------------------------------------------------------------------------------------
# Models


def awkward(generator, layer, shape):
    """[e, in, out] in bf16: another distribution in each layer."""
    count = int(numpy.prod(shape))
    normal = generator.standard_normal(count)
    if layer == 0:
        found = normal * 0.02
    elif layer == 1:
        found = generator.standard_t(3, count) * numpy.exp2(generator.integers(-20, 20, count // shape[-1]).repeat(shape[-1]))
    elif layer == 2:
        # On the grid, and off it by a hundredth.
        scales = generator.integers(110, 125, count)
        found = MAGNITUDES[generator.integers(0, 8, count)] * numpy.exp2(scales - 127.0) + normal * 0.0002
    elif layer == 3:
        # Every finite bf16.
        bits = generator.integers(0, 1 << 16, count, dtype=numpy.uint32)
        bits = numpy.where((bits & 0x7F80) == 0x7F80, bits ^ 0x0100, bits)
        found = (bits << 16).view(numpy.float32)
    else:
        # Ties, zeros of both signs, single elements, subnormal and largest numbers.
        kind = generator.integers(0, 6, count // shape[-1]).repeat(shape[-1])
        eighths = generator.integers(-64, 65, count) / 8 * numpy.exp2(generator.integers(-3, 3, count).astype(float))
        tiny_bits = generator.integers(0, 0x280, count, dtype=numpy.uint32)
        sign = numpy.where(generator.integers(0, 2, count), 1.0, -1.0)
        found = numpy.select(
            [kind == 0, kind == 1, kind == 2, kind == 3, kind == 4],
            [
                eighths,
                0.0 * sign,
                numpy.where(generator.random(count) < 0.02, normal, 0.0 * sign),
                (tiny_bits << 16).view(numpy.float32) * sign,
                sign * numpy.exp2(generator.integers(120, 128, count).astype(float)) * (1 + generator.integers(0, 128, count) / 128),
            ],
            normal,
        )
    return torch.from_numpy(found.astype(numpy.float32)).bfloat16().reshape(shape)


def make(out):
    made = tiny.model(seed=31, **SHAPE)
    generator = numpy.random.default_rng(8)
    weights = tiny.tensors(made)
    for name in sorted(weights):
        if name.endswith(("gate_up_proj", "down_proj")):
            weights[name] = awkward(generator, int(name.split(".")[2]), tuple(weights[name].shape)).contiguous()
    tiny.save(out / "plain", tiny.published_config(made), weights, shards=3)

    # The same sizes packed: what hints are taken from. Every scale and every code occurs.
    packed = tiny.set_mxfp4_experts(made, seed=32)
    for name, tensor in packed.items():
        if name.endswith("_scales"):
            drawn = torch.from_numpy(generator.integers(0, LARGEST_SCALE + 1, tuple(tensor.shape), dtype=numpy.uint8))
            packed[name] = torch.where(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(5)) < 0.3, drawn, tensor)
    tiny.save(out / "packed", tiny.published_config(made, mxfp4=True), tiny.tensors(made, packed, norms=torch.float32), shards=2)


def make_small(out):
    """A model that computes something, for its logits."""
    small = tiny.model(seed=33, intermediate_size=64, num_experts_per_tok=4)
    tiny.save(out / "small", tiny.published_config(small), tiny.tensors(small))
    ids = [tiny.random_ids(index, length, small.config.vocab_size) for index, length in enumerate([57, 20])]
    (out / "tokens.json").write_text(json.dumps(ids))


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons


class Model:
    """The tensors of a directory, by name."""

    def __init__(self, directory):
        self.files = {}
        for path in sorted(directory.glob("*.safetensors")):
            file = safe_open(path, framework="pt")
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name):
        return self.files[name].get_tensor(name)

    def matrices(self):
        names = (name.removesuffix("_blocks") for name in self.files if name.endswith(("proj_blocks", "gate_up_proj", "down_proj")))
        return sorted(name for name in names if ".experts." in name)

    def packed(self, name):
        """Codes [n, 32] and scales [n] of the blocks of [e, out, in]."""
        blocks, scales = self[f"{name}_blocks"].numpy(), self[f"{name}_scales"].numpy()
        found = numpy.stack([blocks & 15, blocks >> 4], axis=-1).reshape(-1, BLOCK)
        return found, scales.reshape(-1)

    def blocks(self, name):
        """The values in f64, [n, 32] of [e, out, in]."""
        if name in self.files:
            return self[name].transpose(1, 2).double().numpy().reshape(-1, BLOCK)
        return values(*self.packed(name))


def expect(what, found, expected, tolerance=0.0):
    if found is None or expected is None:
        is_same = found is expected
    else:
        is_same = abs(found - expected) <= tolerance * abs(expected)
    if not is_same:
        sys.exit(f"{what}: ft says {found}, numpy {expected}")


class Figures:
    """The sums of which every figure is made, by numpy."""

    def __init__(self):
        self.sums = dict.fromkeys(("elements", "signal", "noise", "packed", "product", "clipped", "flushed", "codes", "scales", "compared"), 0)
        self.maximum_error = self.maximum_value = 0.0
        self.largest_codes = numpy.zeros(8, dtype=int)

    def add(self, blocks, found, scales, other):
        back, units = values(found, scales), numpy.exp2(scales.astype(numpy.float64) - 127)[:, None]
        sums = self.sums
        sums["elements"] += blocks.size
        sums["signal"] += (blocks**2).sum()
        sums["noise"] += ((blocks - back) ** 2).sum()
        sums["packed"] += (back**2).sum()
        sums["product"] += (blocks * back).sum()
        sums["clipped"] += int((numpy.abs(blocks) > 6 * units).sum())
        sums["flushed"] += int(((back == 0) & (blocks != 0)).sum())
        if other is not None:
            sums["compared"] += len(blocks)
            sums["codes"] += int((found != other[0]).sum())
            sums["scales"] += int((scales != other[1]).sum())
        self.maximum_error = max(self.maximum_error, numpy.abs(blocks - back).max())
        self.maximum_value = max(self.maximum_value, numpy.abs(blocks).max())
        self.largest_codes += numpy.bincount((found & 7).max(axis=1), minlength=8)

    def check(self, what, report):
        sums = self.sums
        exact = sums["noise"] == 0
        # Sums over a block are f32; the figures follow from them.
        expect(f"{what} SQNR", report["sqnr_db"], None if exact else 10 * numpy.log10(sums["signal"] / sums["noise"]), 1e-5)
        expect(f"{what} relative error", report["relative_error"], 0.0 if exact else (sums["noise"] / sums["signal"]) ** 0.5, 1e-5)
        expect(f"{what} cosine", report["cosine"], sums["product"] / (sums["signal"] * sums["packed"]) ** 0.5, 1e-5)
        expect(f"{what} largest error", report["maximum_error"], self.maximum_error, 1e-6)
        expect(f"{what} largest value", report["maximum_value"], self.maximum_value, 1e-6)
        expect(f"{what} clipped", report["clipped_fraction"], sums["clipped"] / sums["elements"])
        expect(f"{what} flushed", report["flushed_fraction"], sums["flushed"] / sums["elements"])
        compared = sums["compared"]
        expect(f"{what} codes", report["changed_codes_fraction"], sums["codes"] / (BLOCK * compared) if compared else None)
        expect(f"{what} scales", report["changed_scales_fraction"], sums["scales"] / compared if compared else None)
        if report["largest_codes"] != self.largest_codes.tolist():
            sys.exit(f"{what} largest codes: ft says {report['largest_codes']}, numpy {self.largest_codes.tolist()}")


def check(source, result, report, hints=None):
    report = json.loads(report.read_text())
    source, result = Model(source), Model(result)
    hints = Model(hints) if hints else None
    # A packed source is itself what changes are counted against.
    other = hints or (source if f"{source.matrices()[0]}_blocks" in source.files else None)
    total, reports, count = Figures(), {tensor["name"]: tensor for tensor in report["tensors"]}, 0
    for name in source.matrices():
        blocks = source.blocks(name)
        start = other.packed(name) if other else None
        expected, expected_scales = pack(blocks, report["scale"], report["rounding"], start[1] if start else None)
        found, scales = result.packed(name)
        if (found != expected).any() or (scales != expected_scales).any():
            place = numpy.argwhere((found != expected).any(axis=1) | (scales != expected_scales))[0, 0]
            sys.exit(
                f"{name}, block {place}: ft has scale {scales[place]} and {found[place].tolist()}, numpy {expected_scales[place]} and"
                f" {expected[place].tolist()} for {blocks[place].tolist()}"
            )
        count += found.size
        figures = Figures()
        # Values of 1e38 squared and summed still fit f64.
        figures.add(blocks, found, scales, start)
        figures.check(name, reports[name])
        total.add(blocks, found, scales, start)
    total.check("all", report["total"])
    for name in source.files:
        is_converted = name.endswith(("_blocks", "_scales"))
        if name in result.files and not is_converted and not torch.equal(source[name].view(torch.uint8), result[name].view(torch.uint8)):
            sys.exit(f"{name} was changed")
    print(f"{count} values by {report['scale']}, rounded {report['rounding']}: no code and no scale differs")


def logits(model, tokens, out):
    made = GptOssForCausalLM.from_pretrained(
        model,
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True) if "quantization_config" in (model / "config.json").read_text() else None,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    # transformers unpacks to bf16 whatever is asked for; every value is exact there.
    made = made.float().eval()
    made.model.rotary_emb = type(made.model.rotary_emb)(made.config)
    with torch.no_grad():
        found = [made(torch.tensor([ids])).logits[0].float().contiguous() for ids in json.loads(tokens.read_text())]
    save_file({f"logits.{index}": each for index, each in enumerate(found)}, out)


def unpack(model, plain):
    model, plain = Model(model), Model(plain)
    for name in model.matrices():
        theirs = convert_moe_packed_tensors(model[f"{name}_blocks"], model[f"{name}_scales"], dtype=torch.bfloat16)
        if not torch.equal(theirs.contiguous().view(torch.int16), plain[name].view(torch.int16)):
            sys.exit(f"{name} is unpacked differently")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"make": make, "small": make_small, "check": check, "logits": logits, "unpack": unpack}[verb](*map(Path, arguments))
