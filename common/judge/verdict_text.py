"""A judge's reply made plain before a verdict is looked for: the fields of JSON, text without decoration."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any


def load_json(text: str) -> Any:
    """JSON, or what is nearly so (single quotes, a comma too many), repeated keys kept apart; None for anything else."""
    try:
        return json.loads(text, object_pairs_hook=_Fields, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


class _Fields(list):
    """An object's (key, value) pairs."""


def json_fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(words of the path, text) of every value in JSON; a list's members share its path."""
    if isinstance(value, (dict, _Fields)):
        for key, inner in value.items() if isinstance(value, dict) else value:
            yield from json_fields(inner, f"{path} {_spaced(str(key)).strip().lower()}".strip())
    elif isinstance(value, list):
        for inner in value:
            yield from json_fields(inner, path)
    else:
        yield path, " ".join(str(value).split())


def plain(text: str) -> str:
    """ASCII digits, quotes and minus signs; no Markdown, LaTeX, tags, tables, bullets and struck-out parts; single
    spaces."""
    text = unicodedata.normalize(
        "NFKC", re.sub(r"[⁰¹²³⁴-⁹₀-₉\u200b\u2060\ufe0f\u20e3\ufeff]", "", text)
    )  # raised digits are footnote marks
    text = text.translate(
        {ord(dash): "-" for dash in "−–—‐‑﹣"} | {ord(quote): '"' for quote in "“”„«»"} | {ord("’"): "'"}
    )
    text = re.sub(r"\\boxed ?\{ ?(?:\[\[)?([^{}\[\]\n]{0,20})(?:\]\])? ?\}", r"[[\1]]", text)
    text = re.sub(r"<(\w{3,20})>\s{0,3}([^<>\n]{1,20})</\1>", r"\n\1: \2\n", text)
    text = re.sub(r"</?[A-Za-z]\w{0,20}>|~~[^~\n]*~~", "\n", text)
    text = re.sub(r"\\[()\[\]]|[*`$]|```\w*", "", _spaced(text))
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r"(?m)^ ?\|(.*)\| ?$", lambda row: re.sub(r" ?\| ?", ": ", row[1].strip()), text)
    return re.sub(r"(?m)^ ?#{1,6} ?|^ (?=\S)|^ ?[-•] (?=[A-Za-z\[])", "", text)


def _spaced(text: str) -> str:
    """snake_case and camelCase as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])|_", " ", text)
