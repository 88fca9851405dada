"""Small gpt-oss models on awkward shapes, with weights that hide nothing, in every layout that ft reads.

Every weight is random and large enough to matter: sinks, biases and norms included, attention that is sharp, gates that reach
their clamp. All values are exact in bf16, so that a checkpoint in bf16 or MXFP4 holds the very model that transformers computes in f32.
"""

import copy
import json
import math
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

FULL_VOCABULARY = 201088

# Hidden differs from intermediate, heads * head_dim from hidden, experts are no power of two.
SHAPE = dict(
    vocab_size=517,
    hidden_size=96,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=24,
    num_local_experts=5,
    num_experts_per_tok=3,
    sliding_window=16,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    attention_bias=True,
    eos_token_id=2,
    pad_token_id=None,
)
YARN = dict(
    rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=4096
)
E2M1 = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=numpy.float32)


def model(seed, rope=None, **changes):
    """A model in f32 on the eager paths, its weights drawn from `seed`."""
    config = GptOssConfig(**(SHAPE | changes), rope_parameters=dict(rope or YARN) | {"rope_theta": changes.get("rope_theta", 150000.0)})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with torch.device("meta"):
        made = GptOssForCausalLM(config)
    made = made.to_empty(device="cpu").float().eval()
    # The rotary table is computed at construction, on the meta device: compute it again where the values live.
    made.model.rotary_emb = type(made.model.rotary_emb)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            mean, deviation = distribution(name, parameter)
            parameter.normal_(mean, deviation, generator=generator)
            parameter.copy_(parameter.bfloat16().float())
    return made


def distribution(name, parameter):
    """Mean and standard deviation for one parameter."""
    if "norm" in name:
        return 1.0, 0.2
    if name.endswith("sinks"):
        return 1.0, 1.0
    if name.endswith("bias"):
        return 0.0, 0.3
    if "embed_tokens" in name:
        return 0.0, 1.0
    fan_in = parameter.shape[-2] if "experts" in name else parameter.shape[-1]
    gain = 1.0
    if "q_proj" in name or "k_proj" in name:
        gain = 1.3
    elif "router" in name or "lm_head" in name:
        gain = 2.0
    elif "gate_up_proj" in name:
        gain = 3.0
    elif "down_proj" in name:
        gain = 0.3
    return 0.0, gain / math.sqrt(fan_in)


def set_mxfp4_experts(made, seed):
    """Replaces the experts by random MXFP4 values and returns their `_blocks` and `_scales` by name.

    The packing here is written from the format's description: byte b of a block holds element 2b in its low nibble and
    2b + 1 in its high one, rows are output features, 32 inputs share the scale 2^(byte - 127).
    """
    random = numpy.random.default_rng(seed)
    packed = {}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.endswith(("gate_up_proj", "down_proj")):
                continue
            experts, fan_in, fan_out = parameter.shape
            groups = fan_in // 32
            codes = random.integers(0, 16, (experts, fan_out, groups, 32), dtype=numpy.uint8)
            low, high = (123, 126) if name.endswith("gate_up_proj") else (120, 123)
            scales = random.integers(low, high, (experts, fan_out, groups), dtype=numpy.uint8)
            scales[:, 0, 0] = 0
            values = E2M1[codes] * numpy.exp2(scales.astype(numpy.float32) - 127)[..., None]
            values = values.reshape(experts, fan_out, fan_in).transpose(0, 2, 1)
            parameter.copy_(torch.from_numpy(numpy.ascontiguousarray(values)))
            packed[f"{name}_blocks"] = torch.from_numpy(codes[..., 0::2] | (codes[..., 1::2] << 4))
            packed[f"{name}_scales"] = torch.from_numpy(scales)
    return packed


def published_config(made, mxfp4=False):
    """config.json with the keys and the spelling of the published checkpoints."""
    config = made.config
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    text = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": config.eos_token_id,
        "experts_per_token": config.num_experts_per_tok,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.num_experts_per_tok,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_local_experts,
        "output_router_logits": False,
        "pad_token_id": config.eos_token_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": rope,
        "rope_theta": theta,
        "router_aux_loss_coef": 0.9,
        "sliding_window": config.sliding_window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if mxfp4:
        text["quantization_config"] = {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        }
    return text


def tensors(made, packed=None, norms=torch.bfloat16):
    """The checkpoint's tensors under their Hugging Face names; `packed` stands in for the expert matrices."""
    found = {}
    for name, parameter in made.named_parameters():
        if packed and f"{name}_blocks" in packed:
            continue
        found[name] = parameter.detach().to(norms if "norm" in name else torch.bfloat16).contiguous()
    return found | (packed or {})


def save(directory, config, weights, shards=None):
    """Writes config.json and the tensors, in one file or in `shards` files numbered from zero as OpenAI's own are."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    if shards is None:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for index in range(shards):
        file = f"model-{index:05d}-of-{shards - 1:05d}.safetensors"
        part = {name: weights[name] for name in names[index::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def save_pretrained(made, directory, **options):
    """Saves a copy in bf16 the way transformers does it: casting the model itself would round its rotary table."""
    copy.deepcopy(made).to(torch.bfloat16).save_pretrained(directory, **options)


def save_original(directory, made, packed):
    """Writes OpenAI's own layout: fused qkv, its own names, its own config."""
    config = made.config
    weights = tensors(made, packed)
    renamed = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "norm.scale": weights["model.norm.weight"],
        "unembedding.weight": weights["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        source, target = f"model.layers.{layer}", f"block.{layer}"
        for kind in ("weight", "bias"):
            parts = [weights[f"{source}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{target}.attn.qkv.{kind}"] = torch.cat(parts)
            renamed[f"{target}.attn.out.{kind}"] = weights[f"{source}.self_attn.o_proj.{kind}"]
            renamed[f"{target}.mlp.gate.{kind}"] = weights[f"{source}.mlp.router.{kind}"]
        renamed[f"{target}.attn.sinks"] = weights[f"{source}.self_attn.sinks"]
        renamed[f"{target}.attn.norm.scale"] = weights[f"{source}.input_layernorm.weight"]
        renamed[f"{target}.mlp.norm.scale"] = weights[f"{source}.post_attention_layernorm.weight"]
        for ours, theirs in (("mlp1", "gate_up_proj"), ("mlp2", "down_proj")):
            renamed[f"{target}.mlp.{ours}_weight.blocks"] = weights[f"{source}.mlp.experts.{theirs}_blocks"]
            renamed[f"{target}.mlp.{ours}_weight.scales"] = weights[f"{source}.mlp.experts.{theirs}_scales"]
            renamed[f"{target}.mlp.{ours}_bias"] = weights[f"{source}.mlp.experts.{theirs}_bias"]
    rope = config.rope_parameters
    text = {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": 7.0,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": rope["original_max_position_embeddings"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": rope["beta_slow"],
        "rope_ntk_beta": rope["beta_fast"],
    }
    save(directory, text, renamed)


def random_ids(seed, length, vocabulary):
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class RouterMargins:
    """Watches the routers: `smallest` is the least gap between the last expert chosen and the first one left out.

    A gap within rounding would make the comparison a coin toss instead of a test.
    """

    def __init__(self, made):
        self.smallest = math.inf
        top = made.config.num_experts_per_tok
        for layer in made.model.layers:
            layer.mlp.router.register_forward_hook(lambda _module, _inputs, outputs: self.observe(outputs[0], top))

    def observe(self, router_logits, top):
        ordered = router_logits.detach().float().sort(dim=-1, descending=True).values
        self.smallest = min(self.smallest, (ordered[:, top - 1] - ordered[:, top]).min().item())
