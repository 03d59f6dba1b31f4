"""Texts that are nearly the same: repeated prompts and answers, and prompts on both sides of the split.

Two texts are near-duplicates when their words and pairs of neighbouring words have a Jaccard similarity of at least
`ALIKE`. Candidates come from MinHash-LSH (datasketch), so a near-duplicate may be missed; each found one is computed
exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

from common.data.splits import words
from common.doctor.checks import Finding
from common.doctor.rows import DoctorRow

ALIKE = 0.8
PERMUTATIONS = 64
CANDIDATES = 50
"""Looked at for each text, so that thousands of alike ones take no quadratic time."""
TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def check_alike(rows: Sequence[DoctorRow]) -> list[Finding]:
    """Repeated rows, prompts and chosen answers, nearly equal answers of one row, and prompts on both sides."""
    prompts = [f"{row.system}\n{row.prompt}" for row in rows]
    of_prompt, of_chosen = earlier_alike(prompts), earlier_alike([row.chosen for row in rows])
    both = [sorted({*a} & {*b}) for a, b in zip(of_prompt, of_chosen)]
    twice = {i: twin for i, those in enumerate(both) if (twin := _same_rejected(rows, i, those)) is not None}
    close = [
        i for i, row in enumerate(rows) if row.chosen != row.rejected and jaccard(row.chosen, row.rejected) >= ALIKE
    ]
    told = lambda those: {i: f"as in {rows[j].where}" for i, j in those.items()}  # noqa: E731
    first = lambda lists: {i: those[0] for i, those in enumerate(lists) if those}  # noqa: E731
    elsewhere = {i: j for i, j in first(of_chosen).items() if i not in twice}
    return [
        Finding("repeated row", list(twice), len(rows), "nearly the same prompt and answers as an earlier row", True, told(twice)),
        Finding("nearly equal answers", close, len(rows), f"the two answers share {ALIKE:.0%} of their words and word pairs"),
        Finding("repeated prompt", list(first(of_prompt)), len(rows), "nearly the same prompt as an earlier row", False, told(first(of_prompt))),
        Finding("repeated chosen answer", list(elsewhere), len(rows), "nearly the same chosen answer as an earlier row", False, told(elsewhere)),
        _overlap(rows, prompts, of_prompt),
    ]  # fmt: skip


def _same_rejected(rows: Sequence[DoctorRow], i: int, those: Sequence[int]) -> int | None:
    return next((j for j in those if jaccard(rows[i].rejected, rows[j].rejected) >= ALIKE), None)


def _overlap(rows: Sequence[DoctorRow], prompts: Sequence[str], alike: Sequence[Sequence[int]]) -> Finding:
    notes = {}
    for i, those in enumerate(alike):
        for j in those:
            if (rows[i].split == "train") != (rows[j].split == "train"):
                held_out, trained = (j, i) if rows[i].split == "train" else (i, j)
                notes.setdefault(held_out, f"as in {rows[trained].where}, which is trained on")
    of = sum(row.split != "train" for row in rows)
    return Finding(
        "train/test overlap",
        sorted(notes),
        of,
        "a held-out prompt is nearly the same as one that is trained on",
        False,
        notes,
    )


def earlier_alike(texts: Sequence[str]) -> list[list[int]]:
    """For every text the numbers of earlier ones that are nearly the same, at most `CANDIDATES`; [] for an empty one."""
    from datasketch import MinHash, MinHashLSH

    index, kept = MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS), []
    alike: list[list[int]] = []
    same: dict[frozenset[int], list[int]] = {}
    hashes = [frozenset(crc32(part.encode()) for part in _parts(text)) for text in texts]
    unique = list(dict.fromkeys(filter(None, hashes)))
    sketches = dict(zip(unique, MinHash.generator(unique, num_perm=PERMUTATIONS, hashfunc=lambda part: part)))
    for number, parts in enumerate(hashes):
        if parts in same:
            alike.append([*same[parts][:CANDIDATES]])
            same[parts].append(number)
            continue
        if not parts:
            alike.append([])
            continue
        found = sorted(index.query(sketches[parts]))[:CANDIDATES]
        near = [of for of in found if len(parts & kept[of]) >= ALIKE * len(parts | kept[of])]
        alike.append(sorted(j for of in near for j in same[kept[of]])[:CANDIDATES])
        index.insert(len(kept), sketches[parts], check_duplication=False)
        kept.append(parts)
        same[parts] = [number]
    return alike


def jaccard(first: str, second: str) -> float:
    """Shared share of words and word pairs of two texts, in [0, 1]; 0 where one is empty."""
    first, second = _parts(first), _parts(second)
    return len(first & second) / len(first | second) if first and second else 0.0


def _parts(text: str) -> set[str]:
    tokens = TOKEN.findall(words(text).casefold())
    return {*tokens, *(f"{a} {b}" for a, b in zip(tokens, tokens[1:]))}
