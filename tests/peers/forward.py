"""Writes models and transformers' own f32 logits for them: `forward.py OUT`, one folder of OUT a case.

A case holds `model/` (or `original/`), `tokens.json` as `ft logits` takes it, and `expected.safetensors`; one of them also
transformers' bf16 logits, to tell the noise of that type.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GptOssForCausalLM

import tiny


def logits(made, sequences):
    with torch.no_grad():
        found = [made(torch.tensor([ids])).logits[0].float().contiguous() for ids in sequences]
    return {"logits": found[0]} if len(found) == 1 else {f"logits.{index}": each for index, each in enumerate(found)}


def write_case(directory, made, lengths, seed):
    sequences = [tiny.random_ids(seed + index, length, made.config.vocab_size) for index, length in enumerate(lengths)]
    margins = tiny.RouterMargins(made)
    expected = logits(made, sequences)
    if margins.smallest < 1e-5:
        sys.exit(f"{directory.name}: router choices within {margins.smallest} of each other: take another seed")
    (directory / "tokens.json").write_text(json.dumps(sequences[0] if len(sequences) == 1 else sequences))
    save_file(expected, directory / "expected.safetensors")
    return sequences


def main():
    out = Path(sys.argv[1])

    # As transformers saves it: many shards, its spelling of the config.
    case = out / "bf16_sharded"
    made = tiny.model(seed=1)
    sequences = write_case(case_directory(case), made, lengths=[57, 1, 33], seed=100)
    tiny.save_pretrained(made, case / "model", max_shard_size="60KB")
    shards = len(list((case / "model").glob("*.safetensors")))
    if shards < 4:
        sys.exit(f"bf16_sharded: expected several shards, got {shards}")
    half = GptOssForCausalLM.from_pretrained(
        case / "model", dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    save_file(logits(half, sequences), case / "transformers_bf16.safetensors")

    # One file, the published spelling, norms in f32, another set of YaRN numbers.
    case = out / "bf16_published_spelling"
    yarn = tiny.YARN | {"factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": True}
    made = tiny.model(seed=2, rope=yarn, rope_theta=10000.0, num_local_experts=6, num_experts_per_tok=4, num_hidden_layers=2)
    write_case(case_directory(case), made, lengths=[70], seed=200)
    tiny.save(case / "model", tiny.published_config(made), tiny.tensors(made, norms=torch.float32))

    # Plain rotary embedding, one kv head for each query head, all experts chosen but one.
    case = out / "no_yarn"
    made = tiny.model(seed=3, rope={"rope_type": "default"}, num_key_value_heads=6, num_experts_per_tok=4, intermediate_size=112)
    write_case(case_directory(case), made, lengths=[40], seed=300)
    tiny.save_pretrained(made, case / "model")

    # Positions past the 4096 of the pretraining.
    case = out / "long"
    made = tiny.model(seed=14, num_hidden_layers=2, vocab_size=263)
    write_case(case_directory(case), made, lengths=[4400], seed=400)
    tiny.save_pretrained(made, case / "model")

    # MXFP4 experts, one file, and the same model in OpenAI's own layout.
    for name, seed in (("mxfp4", 5), ("original", 6)):
        case = out / name
        made = tiny.model(seed=seed, intermediate_size=64, num_experts_per_tok=4)
        packed = tiny.set_mxfp4_experts(made, seed)
        write_case(case_directory(case), made, lengths=[57, 20], seed=seed * 100)
        if name == "original":
            tiny.save_original(case / "original", made, packed)
        else:
            tiny.save(case / "model", tiny.published_config(made, mxfp4=True), tiny.tensors(made, packed))

    # MXFP4 experts over several shards, numbered from zero.
    case = out / "mxfp4_sharded"
    made = tiny.model(seed=7, intermediate_size=160, num_local_experts=7, num_experts_per_tok=3, num_hidden_layers=4)
    packed = tiny.set_mxfp4_experts(made, seed=7)
    write_case(case_directory(case), made, lengths=[57], seed=700)
    tiny.save(case / "model", tiny.published_config(made, mxfp4=True), tiny.tensors(made, packed), shards=3)


def case_directory(directory):
    directory.mkdir(parents=True)
    return directory


if __name__ == "__main__":
    main()
