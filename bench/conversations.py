"""From conversations to tokens: `ft preview` against transformers, and a second start from the token cache.

    conversations.py FT [--rounds N] [--peer N] [--all N]

FT is the program. N conversations (10,000 for the comparison, 100,000 for the second start) are made from those in recipes/data, each with
numbers of its own, and read from JSONL. transformers renders them with the chat template that `ft init` writes and tokenizes them with its
tokenizer, one by one (`apply_chat_template`, as a `map` over a dataset does) and as one batch (rendered one by one, then tokenized together on
all cores). It makes ids alone; ft also makes loss weights and statistics, and writes the cache. Prints medians of rounds in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import peak_bytes, seconds

DATA = Path(__file__).parent.parent / "recipes/data/coding.jsonl"

PEER = """
import json, sys, time
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
start = time.perf_counter()
conversations = [json.loads(line)["messages"] for line in open(sys.argv[2], encoding="utf-8")]
if sys.argv[3] == "single":
    count = sum(len(tokenizer.apply_chat_template(messages, return_dict=False)) for messages in conversations)
else:
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    count = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
print(time.perf_counter() - start, count)
"""


def write(path, count):
    """Conversations in which thinking is a key of the answer: transformers' template and ft's read it alike."""
    lines = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            messages = []
            for message in lines[index % len(lines)]["messages"]:
                if message.get("channel") == "analysis":
                    thinking = message["content"]
                    continue
                if message["role"] == "assistant":
                    message = {"role": "assistant", "thinking": thinking, "content": message["content"]}
                else:
                    message = dict(message, content=f"{message['content']}\n\nCase {index}, run {index * 7919 % 104729}.")
                messages.append(message)
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def main():
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        work = Path(folder)
        subprocess.run([arguments.ft, "init", work / "model", "--preset", "nano", "--set", "num_hidden_layers=1"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        small, large = work / "small.jsonl", work / "large.jsonl"
        write(small, arguments.peer)
        write(large, arguments.all)

        def preview(path, cache):
            command = [arguments.ft, "preview", path, "--limit", "0", "--json"]
            said = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"FT_CACHE": str(cache)})
            return json.loads(said.stdout)["statistics"]

        def peer(way):
            command = [sys.executable, "-c", PEER, work / "model", small, way]
            taken, count = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            return float(taken), int(count)

        taken = {"ft": [], "single": [], "batch": []}
        for round_index in range(arguments.rounds):
            cache = work / f"cache-{round_index}"
            taken["ft"].append(seconds(lambda: preview(small, cache)))
            for way in ("single", "batch"):
                spent, count = peer(way)
                taken[way].append(spent)
        medians = {name: statistics.median(times) for name, times in taken.items()}
        tokens = preview(small, cache)["tokens"]
        print(f"{arguments.peer:,} conversations of {small.stat().st_size / 1e6:.0f} MB, medians of {arguments.rounds} rounds")
        print(f"  ft, whole program: {medians['ft']:.2f} s, {tokens:,} tokens")
        for way, words in [("single", "one by one"), ("batch", "as one batch")]:
            print(f"  transformers {words}, without its start: {medians[way]:.2f} s, {count:,} tokens; {medians[way] / medians['ft']:.1f}x")

        cache = work / "cache"
        first = seconds(lambda: preview(large, cache))
        again = statistics.median(seconds(lambda: preview(large, cache)) for _ in range(arguments.rounds))
        os.environ["FT_CACHE"] = str(work / "cache-of-memory")
        peak = peak_bytes([arguments.ft, "preview", str(large), "--limit", "0"])
        print(f"{arguments.all:,} conversations of {large.stat().st_size / 1e6:.0f} MB")
        print(f"  first start {first:.2f} s, second {again:.2f} s (whole program), peak memory of the first {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=int, default=10_000)
    parser.add_argument("--all", type=int, default=100_000)
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    main()
