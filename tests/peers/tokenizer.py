"""Whether transformers reads the tokenizer that ft wrote as ft means it: `tokenizer.py MODEL RENDERED`.

Each conversation's text, special tokens and all, has to come to the ids that `ft render` gave, and back.
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer


def main():
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    conversations = json.loads(Path(sys.argv[2]).read_text())["conversations"]
    for place, each in enumerate(conversations):
        ids = tokenizer.encode(each["text"], add_special_tokens=False)
        if ids != each["ids"]:
            first = next((i for i, pair in enumerate(zip(ids, each["ids"])) if pair[0] != pair[1]), min(len(ids), len(each["ids"])))
            sys.exit(f"conversation {place}, token {first}: {ids[first : first + 5]} instead of {each['ids'][first : first + 5]}")
        text = tokenizer.decode(each["ids"], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text != each["text"]:
            sys.exit(f"conversation {place} does not come back: {text!r} instead of {each['text']!r}")
    for name, expected in (("eos_token_id", 200002), ("pad_token_id", 199999)):
        found = getattr(tokenizer, name)
        if found != expected:
            sys.exit(f"{name} is {found} instead of {expected}")
    print(f"{len(conversations)} conversations tokenised alike")


if __name__ == "__main__":
    main()
