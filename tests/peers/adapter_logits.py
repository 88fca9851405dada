"""Logits of a model with an adapter that ft wrote, by PEFT in f32: `adapter_logits.py MODEL ADAPTER TOKENS OUT`.

OUT gets `logits`; it is an error if PEFT leaves a tensor of the adapter aside or misses one.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

import tiny  # noqa: F401  quiets transformers


def main():
    model, adapter, tokens, out = map(Path, sys.argv[1:])
    base = GptOssForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    written = load_file(adapter / "adapter_model.safetensors")
    # Left to itself PEFT adds the frozen lm_head when that has an adapter.
    loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if written.keys() != loaded.keys():
        sys.exit(f"tensors that only one side knows: {sorted(written.keys() ^ loaded.keys())}")
    for name, tensor in written.items():
        if not torch.equal(tensor.float(), loaded[name].float()):
            sys.exit(f"{name} is not what the file holds")
    with torch.no_grad():
        logits = adapted(torch.tensor([json.loads(tokens.read_text())])).logits[0].float().contiguous()
    save_file({"logits": logits}, out)


if __name__ == "__main__":
    main()
