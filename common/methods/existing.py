"""Rows that are evaluated as they are: adapters, models and endpoints, by a name such as `adapter:FOLDER@0.5`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from common.methods.record import METHODS
from common.runtime import nearest, resolve
from common.schema import fingerprint
from common.specs import place_and_commit
from common.student.identity import identity, located

EXISTING = {
    "adapter": "a PEFT folder on top of the student",
    "model": "a folder or Hub name in the student's place",
    "endpoint": "a model behind an endpoint",
}
"""Rows that are evaluated as they are, written `adapter:FOLDER`, `model:FOLDER_OR_HUB_NAME` or `endpoint:MODEL`: an
adapter on the student as the student is loaded and with the tokenizer beside it, at half its strength as
`adapter:FOLDER@0.5`, or a mixture of adapters as EM-DPO leaves it, a model with its own weights
(`student.load_as_it_is`), never rounded to NF4."""


def check_methods(methods: Sequence[str]) -> None:
    """Raises ValueError for a name that is no row of the table, FileNotFoundError for an adapter or a folder that is
    not there."""
    unknown = [method for method in methods if method not in METHODS and not existing(method)]
    if unknown:
        raise ValueError(
            f"unknown method {', '.join(unknown)}{nearest(unknown[0], METHODS)}; there are {', '.join(METHODS)}, and what exists as {', '.join(f'{kind}:...' for kind in EXISTING)}"
        )
    for method in methods:
        place = existing_place(method) if existing(method) in ("adapter", "model") else Path()
        mixed = mixture_in(place) if existing(method) == "adapter" else {}
        folders = [Path(place, name) for name in mixed] or [Path(place)]
        if existing(method) == "adapter" and (
            lacking := next((one for one in folders if not Path(one, "adapter_config.json").exists()), None)
        ):
            raise FileNotFoundError(
                f"{method}: no adapter_config.json in {lacking}; give the folder that PEFT's save_pretrained wrote"
            )
        if mixed and existing_strength(method) != 1.0:
            raise ValueError(
                f"{method}: a mixture of adapters has no strength; leave @{existing_strength(method):g} out"
            )
        if (
            existing(method) == "model"
            and Path(place, "adapter_config.json").exists()
            and not Path(place, "config.json").exists()
        ):
            raise ValueError(f"{method}: {place} holds an adapter and no model; write adapter: in place of model:")


def existing(method: str) -> str:
    """Which kind of `EXISTING` a row is, "" for a row that is trained or made here."""
    kind, _, name = method.partition(":")
    return kind if kind in EXISTING and name else ""


def existing_place(method: str) -> Path | str:
    """The folder of an `adapter:` or `model:`, or the Hub name of a `model:`, without its strength or commit. Raises
    what `identity.located` does."""
    return located(_parted(method)[0])


def mixture_in(folder: Path | str) -> dict[str, float]:
    """Name of each adapter below the folder -> the probability that it is the one which answers, as EM-DPO writes them;
    {} for a folder that holds no mixture."""
    file = Path(folder, "types.json")
    return json.loads(file.read_text(encoding="utf-8"))["mixture"] if file.exists() else {}


def existing_commit(method: str) -> str:
    """The commit of a `model:NAME@commit`, "" for none."""
    return _parted(method)[1] if existing(method) == "model" else ""


def by_identity(method: str) -> str:
    """An `adapter:` or `model:` by what it is, wherever it lies, for marks; any other name as it is. Raises what
    `existing_place` does."""
    kind = existing(method)
    if kind not in ("adapter", "model"):
        return method
    if kind == "adapter" and (mixed := mixture_in(place := existing_place(method))):
        return f"{kind}:{fingerprint(mixed, [identity(Path(place, name)) for name in mixed])}"
    strength = existing_strength(method)
    behind = existing_commit(method) or (f"{strength:g}" if strength != 1.0 else "")
    return f"{kind}:{identity(existing_place(method))}{behind and '@' + behind}"


def existing_strength(method: str) -> float:
    """How many times an adapter counts: .5 in `adapter:FOLDER@0.5`, 1 where nothing is said."""
    strength = _parted(method)[1] if existing(method) == "adapter" else ""
    return float(strength) if strength else 1.0


def _parted(method: str) -> tuple[str, str]:
    """(folder or Hub name; what stands behind its @: the strength of an adapter, the commit of a model)."""
    kind, _, text = method.partition(":")
    if kind != "adapter":
        return place_and_commit(text)
    folder, _, strength = text.rpartition("@")
    is_strength = folder and re.fullmatch(r"\d+(\.\d+)?|\.\d+", strength) and not resolve(text).exists()
    return (folder, strength) if is_strength else (text, "")
