"""The parameters of a notebook: declared in one cell, checked before any work starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.runtime import checked, is_list, resolve

Parameters = Mapping[str, Any]
MINIATURES = ("miniature", "micro")
"""Names of students that the laboratory makes, see `common.miniature.lab`."""

INPUTS = {"reward_score": "pairs.jsonl", "train_rdpo": "scored.jsonl"}
"""What a notebook begins with, in the folder of its run."""


def input_of(stage: str, parameters: Mapping[str, Any]) -> Path:
    """The pairs that a notebook begins with: `pairs_file`, or what the step before wrote into `output`."""
    return resolve(parameters["pairs_file"] or Path(parameters["output"]) / INPUTS[stage])


def check_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's parameters, checked against their annotations and `LIMITS`. Call it in the cell after `parameters`.

    Every annotated name is a parameter; any other plain value in the namespace can only have come from outside and is a
    misspelt one. A list is also taken from a single value or one string, `0,1` or `[0, 1]`, since `papermill -p` passes no lists.

    Raises ValueError naming every unknown, mistyped or impossible parameter.
    """
    declared = {name: kind for name, kind in namespace.get("__annotations__", {}).items() if not name.startswith("_")}
    problems = [_unknown(name, declared) for name, value in namespace.items() if _comes_from_outside(name, value, declared)]
    values = {}
    for name, kind in declared.items():
        value, from_text = namespace[name], False
        if is_list(kind) and not isinstance(value, list):
            value, from_text = list(value) if isinstance(value, tuple) else _listed(str(value)), not isinstance(value, tuple)
        try:
            values[name] = checked(name, value, kind, strict=not from_text)
        except ValueError as error:
            problems.append(f"parameter {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return values


def _listed(text: str) -> list[str]:
    """The parts of `a,b`, `[a, b]` or `["a", "b"]`."""
    text = text.strip()
    inner = text[1:-1] if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")) else text
    return [part for piece in inner.split(",") if (part := piece.strip().strip("'\"").strip())]


def _comes_from_outside(name: str, value: Any, declared: Mapping[str, Any]) -> bool:
    hidden = name.startswith("_") or name in declared or name in ("In", "Out")
    return not hidden and isinstance(value, str | int | float | bool | list | dict | tuple | None)


def _unknown(name: str, declared: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, declared, 1)
    return f"unknown parameter {name}" + (f", did you mean {close[0]}?" if close else f"; there are {', '.join(declared)}")
