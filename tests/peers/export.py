"""What `ft export` writes, in the programs that it is for, and mistakes that `ft verify` has to find.

  widen MODEL OUT                    the model in f32, its head eight times as large, so that few tokens are likely
  adapters MODEL OUT                 PEFT's adapters for it: OUT/usual with ranks and alphas of their own, OUT/rslora
  effect ANSWER LOGITS               how far llama.cpp's answers are from the logits of another model, in nats
  greedy GGUF MODEL PROMPTS N        what llama.cpp goes on with, token by token, as JSON [[text, text, ...], ...]
  metadata GGUF                      its architecture, type and template as JSON
  original MODEL OUT                 OUT has the tensors of OpenAI's layout, MODEL's bytes in them
  tensors MODEL OUT                  the same tensors, byte for byte
  page FILE                          the front matter of a README.md as JSON
  spoil GGUF OUT MISTAKE             a copy with a mistake that somebody could make
  damage GGUF OUT                    a copy with a scale that stands for no number
  spoil_directory MODEL OUT          a copy in which two experts are swapped
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy

import gguf_export


def directory_with(model, out, tensors):
    from safetensors.torch import save_file

    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, Path(out) / "model.safetensors", metadata={"format": "pt"})


def weights(model):
    from safetensors.torch import load_file

    files = sorted(Path(model).glob("*.safetensors"))
    assert files, model
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def widen(model, out):
    tensors = {name: tensor.float() for name, tensor in weights(model).items()}
    tensors["lm_head.weight"] *= 8
    directory_with(model, out, tensors)


def adapters(model, out):
    import torch
    from transformers import GptOssForCausalLM

    import merge

    made = GptOssForCausalLM.from_pretrained(model, dtype=torch.float32)
    everything = dict(target_modules=[*merge.ATTENTION, "lm_head"], target_parameters=[*merge.EXPERTS, "mlp.router.weight"])
    for name, options in [("usual", merge.PATTERNS), ("rslora", dict(use_rslora=True))]:
        adapted = merge.with_adapter(made, seed=71, **everything, **options)
        adapted.save_pretrained(Path(out) / name, save_embedding_layers=False)


def effect(answer, logits):
    from safetensors.numpy import load_file

    answers, logits = json.loads(Path(answer).read_text()), load_file(logits)
    distances = []
    for index, found in enumerate(answers):
        last = logits[f"logits.{index}"][-1].astype(numpy.float64)
        expected = last - last.max() - numpy.log(numpy.exp(last - last.max()).sum())
        distances.append(max(abs(expected[int(token)] - logprob) for token, logprob in found.items()))
    print(min(distances))


def greedy(path, model, prompt_file, count):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    server, told = gguf_export.server(path), []
    for prompt in json.loads(Path(prompt_file).read_text()):
        answer = gguf_export.complete(server, {"prompt": prompt, "n_predict": int(count), "n_probs": 1})
        ids = [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        told.append(re.findall(r"<\|message\|>(.*?)(?=<\||$)", text, re.DOTALL))
    print(json.dumps(told))


def metadata(path):
    keys = gguf_export.Header(path).keys
    names = ["general.architecture", "general.type", "general.name", "tokenizer.chat_template"]
    print(json.dumps({name: keys.get(name, (None, None))[1] for name in names}))


def same(name, found, expected):
    import torch

    assert found.dtype == expected.dtype and found.shape == expected.shape, (name, found.dtype, found.shape, expected.shape)
    assert torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), name


def original(model, out):
    import torch

    source, found = weights(model), weights(out)
    layers = len({name.split(".")[2] for name in source if name.startswith("model.layers.")})
    expected = {
        "embedding.weight": source["model.embed_tokens.weight"],
        "norm.scale": source["model.norm.weight"],
        "unembedding.weight": source["lm_head.weight"],
    }
    for layer in range(layers):
        theirs, ours = f"model.layers.{layer}", f"block.{layer}"
        for kind in ("weight", "bias"):
            expected[f"{ours}.attn.qkv.{kind}"] = torch.cat([source[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            expected[f"{ours}.attn.out.{kind}"] = source[f"{theirs}.self_attn.o_proj.{kind}"]
            expected[f"{ours}.mlp.gate.{kind}"] = source[f"{theirs}.mlp.router.{kind}"]
        expected[f"{ours}.attn.sinks"] = source[f"{theirs}.self_attn.sinks"]
        expected[f"{ours}.attn.norm.scale"] = source[f"{theirs}.input_layernorm.weight"]
        expected[f"{ours}.mlp.norm.scale"] = source[f"{theirs}.post_attention_layernorm.weight"]
        for index, projection in (("1", "gate_up_proj"), ("2", "down_proj")):
            for kind in ("blocks", "scales"):
                expected[f"{ours}.mlp.mlp{index}_weight.{kind}"] = source[f"{theirs}.mlp.experts.{projection}_{kind}"]
            expected[f"{ours}.mlp.mlp{index}_bias"] = source[f"{theirs}.mlp.experts.{projection}_bias"]
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, tensor in expected.items():
        same(name, found[name], tensor)
    config = json.loads((Path(out) / "config.json").read_text())
    published = {"num_hidden_layers", "num_experts", "experts_per_token", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit"}
    published |= {"head_dim", "num_attention_heads", "num_key_value_heads", "sliding_window", "initial_context_length", "rope_theta"}
    published |= {"rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta"}
    assert config.keys() == published, config.keys() ^ published


def tensors(model, out):
    source, found = weights(model), weights(out)
    assert found.keys() == source.keys(), found.keys() ^ source.keys()
    for name, tensor in source.items():
        # GGUF holds biases, norms and sinks in f32.
        is_wider = found[name].dtype != tensor.dtype
        assert not is_wider or name.endswith(("bias", "norm.weight", "sinks")) or "router" in name, (name, found[name].dtype)
        same(name, found[name], tensor.to(found[name].dtype))


def page(path):
    import yaml

    text = Path(path).read_text()
    _, front, body = text.split("---\n", 2)
    assert "# " in body, body[:200]
    print(json.dumps(yaml.safe_load(front)))


def spoil(source, out, mistake):
    shutil.copyfile(source, out)
    header = gguf_export.Header(out, "r+")

    def bytes_of(name):
        kind, dims, content = header.tensors[name]
        return numpy.asarray(content), kind, [int(size) for size in reversed(dims)]

    down, kind, shape = bytes_of("blk.0.ffn_down_exps.weight")
    experts = down.reshape(shape[0], -1)
    if mistake == "swapped":
        experts[[1, 2]] = experts[[2, 1]]
    elif mistake == "transposed":
        elements = experts[3].view({"F32": numpy.uint32, "BF16": numpy.uint16}[kind])
        elements[:] = elements.reshape(shape[1:]).T.ravel().copy()
    elif mistake == "scale":
        # The first byte of a block of MXFP4 is its scale.
        assert kind == "MXFP4"
        experts[2, 17 * 5] ^= 1
    elif mistake == "exchanged":
        gate, up = (bytes_of(f"blk.1.ffn_{part}_exps.weight")[0] for part in ("gate", "up"))
        gate[:], up[:] = up.copy(), gate.copy()
    elif mistake == "bias":
        bytes_of("blk.1.ffn_down_exps.bias")[0].reshape(shape[0], -1)[1] = 0
    elif mistake == "rope_theta":
        (key,) = (key for key in header.keys if key.endswith("rope.freq_base"))
        header.content[header.places[key] : header.places[key] + 4] = numpy.float32(10_000).tobytes()
    else:
        raise SystemExit(f"no mistake {mistake}")


def damage(source, out):
    shutil.copyfile(source, out)
    kind, dims, content = gguf_export.Header(out, "r+").tensors["blk.0.ffn_down_exps.weight"]
    expert = numpy.asarray(content).reshape(int(dims[2]), -1)[2]
    # Of MXFP4 the first byte of a block, of the others the 16 bits that it begins or ends with.
    if kind == "MXFP4":
        expert[17 * 5] = 255
    else:
        expert[:2] = expert[-2:] = numpy.frombuffer(numpy.float16("nan").tobytes(), numpy.uint8)


def spoil_directory(model, out):
    tensors = weights(model)
    (name,) = (name for name in tensors if re.search(r"layers\.1\.mlp\.experts\.down_proj(_blocks)?$", name))
    tensors[name][[0, 4]] = tensors[name][[4, 0]]
    directory_with(model, out, tensors)


if __name__ == "__main__":
    verbs = (widen, adapters, effect, greedy, metadata, original, tensors, page, spoil, damage, spoil_directory)
    {verb.__name__: verb for verb in verbs}[sys.argv[1]](*sys.argv[2:])
