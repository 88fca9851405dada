"""What the GPU comparison trains on: random models of the real sizes, conversations made of this repository's text, recipes."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("cli", "trainer", "formats", "quant", "tests", "bench")
# Bytes on disk with MXFP4 experts (`ft init --help`), and what the small files beside them and the records of a run take.
MODEL_BYTES = {"gpt-oss-20b": 13.8e9, "gpt-oss-120b": 65.2e9, "nano": 0.2e9}
SPARE_BYTES = 1e9
# More characters than a token has in source code and prose, so that a text is cut, not lengthened.
CHARACTERS_PER_TOKEN = 6
MARKUP_TOKENS = 60
RECIPE = """
[model]
path = "{model}"
experts = "mxfp4"

[dataset]
train = ["{conversations}"]
max_tokens = {tokens}
overlong = "drop"
packing = true
shuffle = false

[lora]
rank = 16
alpha = 32.0
targets = {targets}

[optimizer]
learning_rate = 2e-4

[schedule]
kind = "constant"
warmup_fraction = 0.0

[training]
steps = {steps}
batch_sequences = {sequences}
accumulation_steps = 1
dtype = "bf16"
checkpoint_activations = true

[checkpoint]
every_steps = 1000000

[evaluation]
every_steps = 1000000

[sampling]
every_steps = 1000000

[output]
directory = "{runs}"
name = "{name}"
"""


def make_model(ft, work, preset, deadline, settings=()):
    """The directory of a random model with MXFP4 experts; makes it, and room for it, where it is not there yet."""
    model = work / preset
    if (model / "config.json").exists():
        return model
    needed, free = MODEL_BYTES[preset] + SPARE_BYTES, shutil.disk_usage(work).free
    others = [work / other for other in MODEL_BYTES if other != preset and (work / other).exists()]
    after_dropping = free + sum(file.stat().st_size for other in others for file in other.iterdir())
    if after_dropping < needed:
        missing = f"{(needed - after_dropping) / 1e9:.1f} GB are missing (--work chooses another disk)"
        raise OSError(f"{preset} takes {needed / 1e9:.1f} GB, {work} has {after_dropping / 1e9:.1f} GB at most: {missing}")
    if free < needed:
        for other in others:
            shutil.rmtree(other)
    command = [ft, "init", model, "--preset", preset, "--experts", "mxfp4"]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=deadline - time.monotonic())
    return model


def repository_lines():
    files = sorted(file for folder in FOLDERS for kind in ("*.rs", "*.py", "*.cu") for file in (REPOSITORY / folder).rglob(kind))
    return [line for file in [*files, REPOSITORY / "README.md"] for line in file.read_text().splitlines() if line.strip()]


def write_conversations(path, texts):
    with open(path, "w") as file:
        for text in texts:
            messages = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": messages}) + "\n")


def render(ft, path):
    """The ids and loss weights of each conversation."""
    command = [ft, "render", path, "--tokens", "--training", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["conversations"]


def make_conversations(ft, path, count, tokens):
    """Writes `count` conversations of at most `tokens` tokens and few less, each a pack of its own; returns them rendered."""
    source, lines = random.Random(7), repository_lines()
    texts = []
    for _ in range(count):
        start = source.randrange(len(lines))
        text, length = [], 0
        while length < tokens * CHARACTERS_PER_TOKEN:
            text.append(lines[start % len(lines)])
            length, start = length + len(text[-1]) + 1, start + 1
        texts.append("\n".join(text))
    while True:
        write_conversations(path, texts)
        rendered = render(ft, path)
        sizes = [len(each["ids"]) for each in rendered]
        if max(sizes) <= tokens:
            return rendered
        shares = [min(1, 0.999 * (tokens - MARKUP_TOKENS) / (size - MARKUP_TOKENS)) for size in sizes]
        texts = [text if size <= tokens else text[: int(len(text) * share)] for text, size, share in zip(texts, sizes, shares)]


def write_recipe(path, **values):
    path.write_text(RECIPE.format(**values | {"targets": json.dumps(values["targets"])}))
    return path
