"""recipe_schema.py SCHEMA RECIPES: validates every recipe of a folder by the schema with jsonschema, and spoilt ones of them.

Every key and table of a recipe is misspelt in turn by its last letter; then some values are taken out of range. Prints JSON: how many recipes were
accepted and how many spoilt ones refused, and what was judged wrongly.
"""

import copy
import json
import sys
import tomllib
from pathlib import Path

from jsonschema import Draft202012Validator

SPOILS = [
    {"lora": {"rank": 0}},
    {"lora": {"targets": []}},
    {"lora": {"targets": ["mlp"]}},
    {"lora": {"layers": "some"}},
    {"lora": {"layers": []}},
    {"lora": {}, "full": {}},
    {"optimizer": {"beta1": 1.0}},
    {"optimizer": {"kind": "sgd"}},
    {"optimizer": {"learning_rate": "high"}},
    {"training": {"epochs": 1, "steps": 1}},
    {"training": {"seed": -1}},
    {"dataset": {"train": []}},
    {"dataset": {"validation": ["a"], "validation_fraction": 0.5}},
    {"output": {"name": "a/b"}},
    {"model": {"path": " "}},
]


def misspelt(recipe):
    for table, keys in recipe.items():
        spoilt = copy.deepcopy(recipe)
        spoilt[table + "x"] = spoilt.pop(table)
        yield f"[{table}x]", spoilt
        for key in keys:
            spoilt = copy.deepcopy(recipe)
            spoilt[table][key[:-1]] = spoilt[table].pop(key)
            yield f"{table}.{key[:-1]}", spoilt


def main():
    schema = json.loads(Path(sys.argv[1]).read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    valid, refused, wrongly_refused, wrongly_accepted = 0, 0, [], []

    def refuse(name, recipe):
        nonlocal refused
        if validator.is_valid(recipe):
            wrongly_accepted.append(name)
        else:
            refused += 1

    for path in sorted(Path(sys.argv[2]).glob("*.toml")):
        recipe = tomllib.loads(path.read_text())
        errors = [error.message for error in validator.iter_errors(recipe)]
        wrongly_refused += [f"{path.name}: {error}" for error in errors]
        valid += not errors
        for name, spoilt in misspelt(recipe):
            refuse(f"{path.name}: {name}", spoilt)
    smallest = {"model": {"path": "m"}, "dataset": {"train": ["d.jsonl"]}}
    for spoil in SPOILS:
        recipe = copy.deepcopy(smallest)
        for table, keys in spoil.items():
            recipe.setdefault(table, {}).update(keys)
        refuse(json.dumps(spoil), recipe)
    for good in ({}, {"lora": {"layers": [0, 2]}}, {"lora": {"layers": "all"}}, {"full": {}}, {"dataset": {"validation": [], "validation_fraction": 0.5}}):
        recipe = {table: smallest.get(table, {}) | keys for table, keys in good.items()}
        errors = [error.message for error in validator.iter_errors(smallest | recipe)]
        wrongly_refused += [f"{good}: {error}" for error in errors]
    print(json.dumps({"valid": valid, "refused": refused, "wrongly_refused": wrongly_refused, "wrongly_accepted": wrongly_accepted}))


main()
