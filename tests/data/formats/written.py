"""Rows of the tests' own words, written as a file; pairs read back in short."""

import json

from common.data.formats.read import read_preferences

DRINKS = ("tea", "coffee", "milk", "water", "juice", "cocoa", "soup", "broth", "cider", "lemonade")


def ask(drink):
    return f"How do I warm {drink}?"


def good(drink):
    return f"Warm the {drink} slowly and stir it."


def bad(drink):
    return f"Nobody warms {drink}."


def turn(role, content):
    return {"role": role, "content": content}


def user(content):
    return turn("user", content)


def assistant(content):
    return turn("assistant", content)


def written(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def read(folder, rows, *args, **how):
    return read_preferences(written(folder, rows), *args, **how)


def texts(found):
    return [(one.prompt, one.chosen, one.rejected) for one in found.pairs]


ALL = [(ask(drink), good(drink), bad(drink)) for drink in DRINKS]
