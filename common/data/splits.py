"""Splits without leakage: a prompt's split depends on its text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from common.data.attacks import Attacks
from common.schema import PromptRecord, fingerprint

SPLITS = ("train", "validation", "test", "ood")
SHARES = {"train": 0.75, "validation": 0.05, "test": 0.1, "ood": 0.1}
"""Of the groups. The test's tenth is the paper's (52 of 520 in its repository); validation and ood come out of its
train part."""

RecordType = TypeVar("RecordType", bound=PromptRecord)


class Request(NamedTuple):
    """A request as a source gives it, before it has a split.

    group: what must stay in one split. prompt: the source's own wording, "" where an attack of ours makes it. kind: the
    attack by name, "" for one chosen by hash.
    """

    plain_prompt: str
    group: str
    kind: str = ""
    prompt: str = ""
    persona: str = ""


def split_of(group: str, shares: Mapping[str, float] = SHARES, seed: int = 0) -> str:
    """The split of a group, by its hash: it does not depend on order or number of rows, so that added rows move no
    other.

    Sizes are binomial around the shares. Upper and lower case, spaces and punctuation make no other group.
    """
    if set(shares) - set(SPLITS) or min(shares.values(), default=0) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must name some of {', '.join(SPLITS)} and sum to 1, got {dict(shares)}")
    position = int.from_bytes(hashlib.sha256(f"{seed} {words(group)}".encode()).digest()[:8]) / 2**64
    asked = [split for split in SPLITS if shares.get(split)]
    for split in asked:
        position -= shares[split]
        if position < 0:
            return split
    return asked[-1]  # the shares' sum may round to just below 1


def words(text: str) -> str:
    """The words alone, in lower case: what two texts must share to be taken for the same."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def placed(
    request: Request,
    experiment: str,
    system: str,
    attacks: Attacks,
    shares: Mapping[str, float],
    seed: int,
    recorded: bool = False,
) -> dict[str, str]:
    """The fields of the request's `PromptRecord`. A recorded answer belongs to the wording it was given to: that is
    kept, and `test` then stands for `ood`."""
    split = split_of(request.group, shares, seed)
    kind, prompt = request.kind, request.prompt
    if prompt and recorded:
        split = "test" if split == "ood" else split
    elif not prompt or split == "ood":
        kind, prompt = attacks.dress(split, request.plain_prompt, request.kind, request.persona)
    return {
        "id": f"{experiment}-{fingerprint(prompt)}", "experiment": experiment, "split": split, "system": system, "prompt": prompt,
        "kind": kind, "plain_prompt": request.plain_prompt, "group": words(request.group),
    }  # fmt: skip


def keep_apart(records: Sequence[RecordType], source: str | Path, required: Sequence[str]) -> list[RecordType]:
    """One record per prompt, and no plain prompt in two splits: one asked of two personas stays where it is held out
    furthest.

    What is left out is printed. Raises ValueError when a required split is empty.
    """
    unique = {record.id: record for record in records}.values()
    furthest: dict[str, int] = {}
    for record in unique:
        asked = words(record.plain_prompt)
        furthest[asked] = max(furthest.get(asked, 0), SPLITS.index(record.split))
    kept = [record for record in unique if SPLITS.index(record.split) == furthest[words(record.plain_prompt)]]
    if len(kept) < len(records):
        repeated, elsewhere = len(records) - len(unique), len(unique) - len(kept)
        print(
            f"{source}: left out {repeated} repeated prompts and {elsewhere} whose plain request is held out further elsewhere",
            flush=True,
        )
    if missing := sorted(set(required) - {record.split for record in kept}):
        groups = len({record.group for record in kept})
        raise ValueError(
            f"{source}: {groups} groups are too few, none fell into {', '.join(missing)}; give more rows, or whole records with a split each"
        )
    return kept
