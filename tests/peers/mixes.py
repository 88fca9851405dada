"""What llama-quantize makes of small models of gpt-oss: `mixes.py OUT` writes mixes.json anew.

For every model the list has its sizes, and for every target what the file says of itself, the type of every tensor as a letter, and
a checksum of the bytes of all tensors. The tensors are in the order of a forward pass, and their values follow from their place.
llama-quantize is `llama_model_quantize` of the library in the wheel llama-cpp-py-sync 0.11739 (llama.cpp b11739), called without an
importance matrix. That library needs glibc 2.38, which is why its answers are kept and the wheel is none of requirements.txt.
"""

import ctypes
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

# Source: llama.h, `llama_ftype`.
TARGETS = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "MXFP4": 38,
    "Q4_0": 2,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
}

# What is a multiple of 256, of 32 alone, or of neither decides, and so does the number of experts where it is 8 or 1.
MODELS = {
    "whole blocks": dict(layers=9, hidden=256, intermediate=512, heads=4, kv_heads=2, head=64, experts=2),
    "wide attention": dict(layers=3, hidden=96, intermediate=160, heads=4, kv_heads=2, head=64, experts=5),
    "no blocks": dict(layers=2, hidden=80, intermediate=48, heads=6, kv_heads=2, head=12, experts=3),
    "whole experts alone": dict(layers=2, hidden=80, intermediate=256, heads=2, kv_heads=1, head=32, experts=3),
    "eight experts": dict(layers=5, hidden=256, intermediate=64, heads=4, kv_heads=2, head=64, experts=8),
    "one expert": dict(layers=3, hidden=256, intermediate=96, heads=4, kv_heads=2, head=64, experts=1),
    "tied": dict(layers=2, hidden=256, intermediate=256, heads=4, kv_heads=2, head=32, experts=2, tied=True),
    "bf16": dict(layers=2, hidden=256, intermediate=288, heads=4, kv_heads=2, head=64, experts=3, bf16=True),
    "as deep as 20b": dict(layers=24, hidden=32, intermediate=256, heads=2, kv_heads=1, head=16, experts=2),
    "as deep as 120b": dict(layers=36, hidden=256, intermediate=32, heads=2, kv_heads=1, head=16, experts=2),
}
VOCABULARY = 67
LETTERS = {
    "F32": "F",
    "F16": "H",
    "BF16": "B",
    "Q8_0": "8",
    "Q6_K": "6",
    "Q5_K": "5",
    "Q4_K": "4",
    "Q5_1": "y",
    "Q5_0": "x",
    "Q4_0": "w",
    "MXFP4": "M",
}


# -------------------------------------------------------------------------------------------------------------- models


def shapes(layers, hidden, intermediate, heads, kv_heads, head, experts, tied=False, **_):
    made = {"token_embd.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        of_layer = {"attn_norm.weight": (hidden,)}
        for name, rows in (("attn_q", heads * head), ("attn_k", kv_heads * head), ("attn_v", kv_heads * head)):
            of_layer |= {f"{name}.weight": (rows, hidden), f"{name}.bias": (rows,)}
        of_layer |= {"attn_output.weight": (hidden, heads * head), "attn_output.bias": (hidden,), "attn_sinks.weight": (heads,)}
        of_layer |= {"post_attention_norm.weight": (hidden,)}
        of_layer |= {"ffn_gate_inp.weight": (experts, hidden), "ffn_gate_inp.bias": (experts,)}
        of_layer |= {f"ffn_{name}_exps.weight": (experts, intermediate, hidden) for name in ("gate", "up")}
        of_layer |= {f"ffn_{name}_exps.bias": (experts, intermediate) for name in ("gate", "up")}
        of_layer |= {"ffn_down_exps.weight": (experts, hidden, intermediate), "ffn_down_exps.bias": (experts, hidden)}
        made |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    made["output_norm.weight"] = (hidden,)
    return made if tied else made | {"output.weight": (VOCABULARY, hidden)}


def values_from(first, shape):
    """Values from -0.05 to 0.05, each from its place among all values of the model."""
    bits = np.arange(first, first + np.prod(shape), dtype=np.uint64).astype(np.uint32) * np.uint32(0x9E3779B1)
    bits = (bits ^ bits >> np.uint32(15)) * np.uint32(0x85EBCA77)
    bits ^= bits >> np.uint32(13)
    return ((bits >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)).reshape(shape) * np.float32(0.1)


def make(model):
    tensors, place = {}, 0
    for name, shape in shapes(**model).items():
        values = values_from(place, shape)
        if model.get("bf16") and not is_float32(name, shape):
            values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        tensors[name] = values
        place += values.size
    return tensors


def is_float32(name, shape):
    return len(shape) < 2 or not name.endswith(".weight") or "ffn_gate_inp" in name


def write(path, model, tensors):
    writer = gguf.GGUFWriter(path, "gpt-oss")
    writer.add_block_count(model["layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(model["hidden"])
    writer.add_feed_forward_length(model["intermediate"])
    writer.add_expert_feed_forward_length(model["intermediate"])
    writer.add_head_count(model["heads"])
    writer.add_head_count_kv(model["kv_heads"])
    writer.add_key_length(model["head"])
    writer.add_value_length(model["head"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(128)
    writer.add_expert_count(model["experts"])
    writer.add_expert_used_count(1)
    writer.add_vocab_size(VOCABULARY)
    for name, values in tensors.items():
        if model.get("bf16") and not is_float32(name, values.shape):
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ------------------------------------------------------------------------------------------------------ llama-quantize


class Parameters(ctypes.Structure):
    """Source: llama.h, `llama_model_quantize_params`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("threads", "target", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "quantize_output", "only_copy", "pure", "keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "overrides", "tensor_types", "prune")),
        ("largest_buffer", ctypes.c_size_t),
        # Room for what a later version may add.
        ("rest", ctypes.c_uint8 * 256),
    ]


def load():
    files = importlib.metadata.files("llama-cpp-py-sync")
    library = ctypes.CDLL(next(str(file.locate()) for file in files if file.name == "libllama.so"))
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_model_quantize.restype = ctypes.c_uint32
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, _: None)
    library.llama_log_set(quiet, None)
    library.quiet = quiet
    return library


def quantize(library, source, out, target):
    parameters = library.llama_model_quantize_default_params()
    assert (parameters.target, parameters.quantize_output, parameters.pure, parameters.imatrix) == (7, True, False, None)
    parameters.target = target
    failed = library.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
    assert failed == 0, (source, target)


def checksum(tensors):
    """Sum of all bytes, each one more and times an odd number of its place, modulo 2^64."""
    all_bytes = np.concatenate([tensor.data.reshape(-1).view(np.uint8) for tensor in tensors]).astype(np.uint64)
    places = np.arange(all_bytes.size, dtype=np.uint64)
    return f"{((all_bytes + np.uint64(1)) * (places * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1))).sum():016x}"


def main(out):
    library = load()
    models = {}
    for label, model in MODELS.items():
        tensors = make(model)
        targets = {}
        with tempfile.TemporaryDirectory() as folder:
            source, quantized = Path(folder, "source.gguf"), Path(folder, "target.gguf")
            write(source, model, tensors)
            for target, number in TARGETS.items():
                quantize(library, source, quantized, number)
                reader = gguf.GGUFReader(quantized)
                found = {tensor.name: tensor for tensor in reader.tensors}
                assert found.keys() == tensors.keys()
                found = [found[name] for name in tensors]
                targets[target] = {
                    "file_type": int(reader.fields["general.file_type"].contents()),
                    "types": "".join(LETTERS[tensor.tensor_type.name] for tensor in found),
                    "checksum": checksum(found),
                }
        models[label] = model | {"targets": targets}
    out.write_text(json.dumps({"letters": LETTERS, "vocabulary": VOCABULARY, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
