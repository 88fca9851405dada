"""Models in GGUF by the gguf package: names, keys, types and quantizers are its own.

    gguf_model.py write MODEL OUT TYPE [--split N] [--token ID=TEXT]  MODEL (safetensors) as GGUF, with N tensors in a file at most
    gguf_model.py decode GGUF MODEL OUT                               what the package reads back, as an f32 model with MODEL's config
    gguf_model.py describe GGUF                                       its keys and tensors as JSON
    gguf_model.py same MODEL RESULT                                   experts byte by byte, all else value by value, and the configs

TYPE is that of what is multiplied with: F32, F16, BF16 or Q8_0. Experts that MODEL has in MXFP4 stay in it.
"""

import argparse
import json
import re
from pathlib import Path

import gguf
import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

ARCHITECTURE = gguf.MODEL_ARCH.GPT_OSS


def tensors_of(model):
    with safe_open(Path(model) / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def config_of(model):
    return json.loads((Path(model) / "config.json").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def add_keys(writer, config):
    scaling = config["rope_scaling"]
    writer.add_type("model")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if "eos_token_id" in config:
        writer.add_eos_token_id(config["eos_token_id"])
        writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template("{{ messages }}")


def add_tokens(writer, model, count, changed):
    """The tokens as llama.cpp's converter lists them, reserved ones as paddings."""
    tokenizer = json.loads((Path(model) / "tokenizer.json").read_text())
    texts = {id: text for text, id in tokenizer["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = [texts.get(id, f"[PAD{id}]") for id in range(count)]
    for id, text in changed:
        tokens[id] = text
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)


def ggml_blocks(blocks, scales):
    """[e, out, s, 16] and [e, out, s] as rows of blocks of 17 bytes: element j beside element j + 16."""
    elements = torch.stack([blocks & 0xF, blocks >> 4], dim=-1).flatten(-2)
    codes = elements[..., :16] | elements[..., 16:] << 4
    return torch.cat([scales[..., None], codes], dim=-1).flatten(-2)


def add(writer, name, values, kind):
    values = values.float().numpy()
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(numpy.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def write(arguments):
    config, tensors = config_of(arguments.model), tensors_of(arguments.model)
    kind = gguf.GGMLQuantizationType[arguments.type]
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(arguments.out, gguf.MODEL_ARCH_NAMES[ARCHITECTURE], split_max_tensors=arguments.split)
    add_keys(writer, config)
    if config["vocab_size"] == 201088:
        add_tokens(writer, arguments.model, 201088, [(int(id), text) for id, text in (pair.split("=") for pair in arguments.token)])
    float32 = gguf.GGMLQuantizationType.F32
    for name, values in tensors.items():
        expert = re.fullmatch(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_up|down)_proj(|_bias|_blocks|_scales)", name)
        if expert is None:
            stem, _, ending = name.rpartition(".")
            if ending == "sinks":
                stem, ending = name, "weight"
            is_float32 = values.ndim == 1 or ".router." in name
            add(writer, f"{names.get_name(stem)}.{ending}", values, float32 if is_float32 else kind)
            continue
        prefix, projection, ending = expert.groups()
        ways = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)} if projection == "gate_up" else {"down_proj": slice(None)}
        for way, rows in ways.items():
            stem = names.get_name(f"{prefix}.{way}")
            if ending == "_bias":
                add(writer, f"{stem}.bias", values[:, rows], float32)
            elif ending == "_blocks":
                packed = ggml_blocks(values, tensors[name.replace("_blocks", "_scales")])[:, rows].contiguous().numpy()
                writer.add_tensor(f"{stem}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
            elif ending == "":
                add(writer, f"{stem}.weight", values.transpose(1, 2)[:, rows].contiguous(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def decode(arguments):
    config = config_of(arguments.model)
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    values = {}
    for tensor in gguf.GGUFReader(arguments.gguf).tensors:
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values[tensor.name] = torch.from_numpy(found.copy().reshape(tuple(int(size) for size in reversed(tensor.shape))))
    result = {}
    for name in tensors_of(arguments.model):
        expert = re.fullmatch(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_up|down)_proj(|_bias|_blocks|_scales)", name)
        if expert is None:
            stem, _, ending = name.rpartition(".")
            stem, ending = (name, "weight") if ending == "sinks" else (stem, ending)
            result[name] = values[f"{names.get_name(stem)}.{ending}"]
            continue
        prefix, projection, ending = expert.groups()
        ways = ["gate_proj", "up_proj"] if projection == "gate_up" else ["down_proj"]
        kind = "bias" if ending == "_bias" else "weight"
        # Rows of gate and up in turn.
        rows = torch.stack([values[f"{names.get_name(f'{prefix}.{way}')}.{kind}"] for way in ways], dim=2).flatten(1, 2)
        if kind == "bias":
            result[name] = rows
        else:
            result[f"{prefix}.{projection}_proj"] = rows.transpose(1, 2).contiguous()
    out = Path(arguments.out)
    out.mkdir()
    save_file(result, out / "model.safetensors", metadata={"format": "pt"})
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))


def describe(arguments):
    reader = gguf.GGUFReader(arguments.gguf)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = [
        {"name": tensor.name, "type": tensor.tensor_type.name, "shape": [int(size) for size in reversed(tensor.shape)], "bytes": int(tensor.n_bytes)}
        for tensor in reader.tensors
    ]
    print(json.dumps({"metadata": fields, "tensors": tensors}))


def same(arguments):
    source, result = tensors_of(arguments.model), tensors_of(arguments.result)
    assert source.keys() == result.keys(), source.keys() ^ result.keys()
    for name, expected in source.items():
        found = result[name]
        assert found.shape == expected.shape, name
        if expected.dtype == torch.uint8:
            assert found.dtype == torch.uint8 and torch.equal(found, expected), name
        else:
            assert torch.equal(found.float(), expected.float()), name
    # A file does not say how fresh weights would be drawn.
    left, right = ({key: value for key, value in config_of(path).items() if key != "initializer_range"} for path in [arguments.model, arguments.result])
    assert left == right, {key: (left.get(key), right.get(key)) for key in left.keys() | right.keys() if left.get(key) != right.get(key)}
    template = (Path(arguments.result) / "chat_template.jinja").read_text()
    assert template == "{{ messages }}", template


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("write")
    for name in ["model", "out", "type"]:
        verb.add_argument(name)
    verb.add_argument("--split", type=int, default=0)
    verb.add_argument("--token", action="append", default=[])
    verb.set_defaults(run=write)
    for name, run, names in [
        ("decode", decode, ["gguf", "model", "out"]), ("describe", describe, ["gguf"]), ("same", same, ["model", "result"])
    ]:
        verb = verbs.add_parser(name)
        for argument in names:
            verb.add_argument(argument)
        verb.set_defaults(run=run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
