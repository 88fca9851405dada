"""Rows and blocks with what ggml makes of them: `ggml.py OUT`.

OUT gets `rows.f32`, values that are rows of 2880, or of 3840 for the K types, and `rows.json`, what each 57,600 of them are; for
every type `TYPE.blocks`, those rows as `llama-quantize` stores them, `TYPE.values`, what ggml reads back, and `TYPE.valid`, a byte a
row: whether ggml accepts the blocks.
The same three for `TYPE.random`, rows of blocks of random bytes. ggml is the library that whisper.cpp's wheel carries, called as
llama-quantize calls it: `ggml_quantize_chunk` without an importance matrix. On rows of common sizes the quantizers of the gguf
package have to agree, for the types that it has.
"""

import ctypes
import importlib.metadata
import json
import sys
from pathlib import Path

import gguf
import numpy as np

COLUMNS = 2880
K_COLUMNS = 3840
BLOCK = 32
K_BLOCK = 256
ROWS = 20
K_NAMES = {"q4_K": "Q4_K", "q5_K": "Q5_K", "q6_K": "Q6_K"}
NAMES = {"q4_0": "Q4_0", "q5_0": "Q5_0", "q5_1": "Q5_1", "q8_0": "Q8_0", "iq4_nl": "IQ4_NL", "mxfp4": "MXFP4", **K_NAMES}
TYPES = {name: gguf.GGMLQuantizationType[upper] for name, upper in NAMES.items()}
HAS_NO_PACKER = {"iq4_nl", *K_NAMES}


# ----------------------------------------------------------------------------------------------------------------- ggml


def load():
    files = importlib.metadata.files("pywhispercpp")
    library = ctypes.CDLL(next(str(file.locate()) for file in files if file.name == "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def columns(kind):
    return K_COLUMNS if gguf.GGML_QUANT_SIZES[kind][0] == K_BLOCK else COLUMNS


def bytes_per_row(kind):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    return columns(kind) // elements * size


def quantize(library, kind, rows):
    blocks = np.zeros((len(rows), bytes_per_row(kind)), np.uint8)
    counts = (ctypes.c_int64(0), ctypes.c_int64(len(rows)), ctypes.c_int64(columns(kind)))
    written = library.ggml_quantize_chunk(ctypes.c_int(kind), pointer(rows), pointer(blocks), *counts, None)
    assert written == blocks.nbytes, (kind, written)
    return blocks


def dequantize(library, name, blocks):
    values = np.zeros((len(blocks), columns(TYPES[name])), np.float32)
    getattr(library, f"dequantize_row_{name}")(pointer(blocks), pointer(values), ctypes.c_int64(values.size))
    return values


def accepts(library, kind, blocks):
    size = ctypes.c_size_t(blocks.shape[1])
    return np.array([library.ggml_validate_row_data(ctypes.c_int(kind), pointer(row), size) for row in blocks], np.uint8)


# ----------------------------------------------------------------------------------------------------------------- rows


def to_bf16(values):
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def finite_bits(random, shape):
    bits = random.integers(0, 1 << 32, shape, np.uint64).astype(np.uint32)
    exponent = bits >> 23 & 0xFF
    return np.where(exponent == 0xFF, bits ^ np.uint32(0x40000000), bits).astype(np.uint32).view(np.float32)


def below_powers_of_two():
    """One peak a block: 2^k less n steps of f32, around the n from which log2f no longer rounds up to k."""
    peaks = []
    for k in range(-124, 129):
        size = k - 1 if k > 0 else -k
        limit = int(2 ** (size.bit_length() - 1) * np.log(2)) if size else 0
        top = np.uint32((k + 127) << 23)
        peaks += [(top - np.uint32(n)).view(np.float32) for n in (limit, limit + 1) if n or k < 128]
    return np.array(peaks, np.float32)


def make_k_rows(random):
    """Rows by name whose blocks of 256 have parts that differ: what they share is too coarse for some of them."""
    blocks = (ROWS * COLUMNS // K_BLOCK, K_BLOCK)
    normal = lambda shape: random.standard_normal(shape, np.float32)
    sizes = lambda low, high, part: np.ldexp(np.float32(1), random.integers(low, high, (blocks[0], K_BLOCK // part))).repeat(part, axis=1)
    made = {"parts of 16 of every size": normal(blocks) * sizes(-60, 30, 16), "parts of 32 a few steps apart": normal(blocks) * sizes(-8, 1, 32)}
    made["sparse"] = np.where(random.random(blocks) < 0.02, normal(blocks), 0)
    made["zero parts"] = np.where(random.random((blocks[0], 8)).repeat(32, axis=1) < 0.4, 0, normal(blocks))
    ramp = np.arange(K_BLOCK, dtype=np.float32) - random.integers(-300, 300, (blocks[0], 1))
    made["ramps"] = ramp * normal((blocks[0], 1))
    made["ramps in parts"] = (ramp % random.choice([16, 32, 64], (blocks[0], 1))) * normal((blocks[0], 1))
    # A minimum is a multiple of the largest one over 63, and may lie far from the part's values in units of the part's scale.
    made["parts far from zero"] = normal((blocks[0], 8)).repeat(32, axis=1) * 100 + normal(blocks) * sizes(-30, 6, 32)
    made["not above zero"] = -np.abs(normal(blocks)) - sizes(-4, 8, 32)
    made["far above zero"] = np.abs(normal(blocks)) + sizes(-4, 8, 32)
    made["two values"] = np.where(random.random(blocks) < 0.5, normal((blocks[0], 1)), normal((blocks[0], 1)))
    made["one step of f32 apart"] = (normal((blocks[0], 1)).view(np.int32) + random.integers(0, 3, blocks, np.int32)).view(np.float32)
    made["halves of a code"] = (random.integers(-64, 65, blocks) / np.float32(2)) * sizes(-8, 3, 32)
    made["near the least scale"] = normal(blocks) * np.float32(1e-15) * sizes(-3, 4, 16)
    made["subnormal"] = normal(blocks) * np.float32(1e-37) * sizes(-20, 1, 16)
    with np.errstate(over="ignore"):
        made["huge"] = np.nan_to_num(normal(blocks) * sizes(20, 129, 32), posinf=3e38, neginf=-3e38)
        made["at the limits of f16"] = normal(blocks) * np.float32(65504) * sizes(0, 14, 32)
    return made


def make_rows(random):
    """Rows by name. The first three have the sizes of weights."""
    shape, blocks = (ROWS, COLUMNS), (ROWS * COLUMNS // BLOCK, BLOCK)
    normal = lambda shape: random.standard_normal(shape, np.float32)
    spread = lambda low, high: np.ldexp(np.float32(1), random.integers(low, high, (blocks[0], 1))).astype(np.float32)
    made = {
        "normal": normal(shape) * np.float32(0.02),
        "bf16": to_bf16(normal(shape) * np.float32(0.02)),
        "heavy tails": random.standard_t(1.5, shape).astype(np.float32) * np.float32(0.01),
    }
    with np.errstate(over="ignore", under="ignore"):
        wide = normal(blocks) * spread(-149, 127)
    made["every size"] = np.where(np.isfinite(wide), wide, np.float32(3e38))
    made["subnormal scales"] = normal(blocks) * spread(-24, -8)
    made["overflowing scales"] = normal(blocks) * spread(14, 26)
    made["any bits"] = finite_bits(random, shape)
    made["zeros of both signs"] = np.where(random.random(shape) < 0.5, np.float32(0), np.float32(-0.0))
    ones = np.where(random.random(blocks) < 0.5, np.float32(1), np.float32(-1))
    single = np.zeros(blocks, np.float32)
    places = random.integers(0, BLOCK, blocks[0])
    single[np.arange(blocks[0]), places] = finite_bits(random, blocks[0])
    made["one value that is not zero"] = single
    made["equal magnitudes"] = ones * np.abs(normal((blocks[0], 1)))
    made["constant"] = np.broadcast_to(normal((blocks[0], 1)), blocks)
    made["small integers"] = random.integers(-8, 9, shape).astype(np.float32)
    steps = random.choice(np.array([8, 16, 31, 127, 254]), (blocks[0], 1))
    integers = random.integers(-2 * steps, 2 * steps + 1, blocks).astype(np.float32)
    made["halves of a step"] = integers / np.float32(2) * spread(-12, 3)
    made["not negative"] = np.maximum(normal(blocks), 0) * np.where(random.random(blocks) < 0.5, 1, np.float32(-0.0))
    midpoints = np.array([0, 0.5, 0.75, 1, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, 7.5], np.float32)
    made["midpoints of MXFP4"] = random.choice(midpoints, blocks) * ones * spread(-127, 125)
    levels = np.array([-127, -115.5, -93.5, -74, -57, -42, -28.5, -16, -4.5, 7, 19, 31.5, 45.5, 61, 79, 101, 113], np.float32)
    made["midpoints of IQ4_NL"] = random.choice(levels, blocks) * spread(-12, 3)
    powers = np.zeros(blocks, np.float32)
    peaks = below_powers_of_two()
    powers[: len(peaks)] = peaks[:, None] * random.uniform(-1, 1, (len(peaks), BLOCK)).astype(np.float32)
    powers[np.arange(len(peaks)), random.integers(0, BLOCK, len(peaks))] = peaks
    made["below powers of two"] = powers
    made |= make_k_rows(random)
    return {name: np.ascontiguousarray(rows.reshape(shape), np.float32) for name, rows in made.items()}


# ---------------------------------------------------------------------------------------------------------------- blocks


def random_blocks(random, kind):
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (3 * ROWS, columns(kind) // elements, size), np.uint8)
    # Most scales are such as weights have; the rest are whatever the bytes say, NaN and infinity among them.
    common = slice(ROWS, None)
    if kind == gguf.GGMLQuantizationType.MXFP4:
        blocks[common, :, 0] = random.integers(0, 253, blocks[common, :, 0].shape)
        blocks[::7, 0, 0] = random.choice([253, 254, 255], blocks[::7, 0, 0].shape)
    elif kind == gguf.GGMLQuantizationType.Q6_K:
        blocks[common, :, 209] &= 0xBF
    else:
        blocks[common, :, 1] &= 0xBF
    if kind.name in ("Q5_1", "Q4_K", "Q5_K"):
        blocks[common, :, 3] &= 0xBF
    return np.ascontiguousarray(blocks.reshape(3 * ROWS, -1))


def write(library, out, name, label, blocks):
    blocks.tofile(out / f"{label}.blocks")
    dequantize(library, name, blocks).tofile(out / f"{label}.values")
    accepts(library, TYPES[name], blocks).tofile(out / f"{label}.valid")


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    library = load()
    random = np.random.default_rng(2880)
    made = make_rows(random)
    rows = np.concatenate(list(made.values())).reshape(-1, COLUMNS)
    assert np.isfinite(rows).all()
    rows.tofile(out / "rows.f32")
    (out / "rows.json").write_text(json.dumps(list(made)))
    for name, kind in TYPES.items():
        blocks = quantize(library, kind, rows.reshape(-1, columns(kind)))
        common = 3 * ROWS
        if name not in HAS_NO_PACKER:
            assert (gguf.quants.quantize(rows[:common], kind) == blocks[:common]).all(), f"gguf and ggml differ on {name}"
        write(library, out, name, name, blocks)
        write(library, out, name, f"{name}.random", random_blocks(random, kind))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
