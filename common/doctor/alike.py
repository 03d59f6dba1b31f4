"""Texts that are nearly the same: repeated prompts and answers, and prompts on both sides of the split.

Two texts are near-duplicates when their words and pairs of neighbouring words have a Jaccard similarity of at least
`ALIKE`. Candidates come from MinHash-LSH (datasketch), so a near-duplicate may be missed; each found one is computed
exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

from common.doctor.checks import Finding, plain_words
from common.doctor.rows import DoctorRow

ALIKE = 0.8
PERMUTATIONS = 64
CANDIDATES = 50
"""Looked at for each text, so that thousands of alike ones take no quadratic time."""
TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


Parts = frozenset[int]
"""Of a text: checksums of its words and of its pairs of neighbouring words."""


def check_alike(rows: Sequence[DoctorRow]) -> list[Finding]:
    """Repeated rows, prompts and chosen answers, nearly equal answers of one row, and prompts on both sides."""
    prompts, chosen, rejected = (
        [parts_of(text) for text in texts]
        for texts in (
            [row.conversation for row in rows],
            [row.chosen for row in rows],
            [row.rejected for row in rows],
        )
    )
    of_prompt, of_chosen = earlier_alike(prompts), earlier_alike(chosen)
    twice = {}
    for i, those in enumerate(zip(of_prompt, of_chosen)):
        for j in sorted(set.intersection(*map(set, those))):
            if rows[i].rejected == rows[j].rejected or jaccard(rejected[i], rejected[j]) >= ALIKE:
                twice.setdefault(i, j)
    close = [i for i, row in enumerate(rows) if row.chosen != row.rejected and jaccard(chosen[i], rejected[i]) >= ALIKE]
    again = {i: those[0] for i, those in enumerate(of_prompt) if those}
    elsewhere = {i: those[0] for i, those in enumerate(of_chosen) if those and i not in twice}
    said = lambda those: {i: f"as in {rows[j].where}" for i, j in those.items()}  # noqa: E731
    return [
        Finding("repeated row", list(twice), len(rows), "nearly the same prompt and answers as an earlier row", True, said(twice)),
        Finding("nearly equal answers", close, len(rows), f"the two answers share {ALIKE:.0%} of their words and word pairs"),
        Finding("repeated prompt", list(again), len(rows), "nearly the same prompt as an earlier row", False, said(again)),
        Finding("repeated chosen answer", list(elsewhere), len(rows), "nearly the same chosen answer as an earlier row", False, said(elsewhere)),
        _overlap(rows, of_prompt),
    ]  # fmt: skip


def _overlap(rows: Sequence[DoctorRow], alike: Sequence[Sequence[int]]) -> Finding:
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


def earlier_alike(texts: Sequence[Parts]) -> list[list[int]]:
    """For every text the numbers of earlier ones that are nearly the same, at most `CANDIDATES`; [] for an empty one."""
    from datasketch import MinHash, MinHashLSH

    index, kept = MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS), []
    unique = list(dict.fromkeys(filter(None, texts)))
    sketches = dict(zip(unique, MinHash.generator(unique, num_perm=PERMUTATIONS, hashfunc=lambda part: part)))
    alike: list[list[int]] = []
    same: dict[Parts, list[int]] = {}
    for number, parts in enumerate(texts):
        if not parts:
            alike.append([])
        elif parts in same:
            alike.append(same[parts][:CANDIDATES])
            same[parts].append(number)
        else:
            found = sorted(index.query(sketches[parts]))[:CANDIDATES]
            near = [kept[of] for of in found if jaccard(parts, kept[of]) >= ALIKE]
            alike.append(sorted(j for of in near for j in same[of])[:CANDIDATES])
            index.insert(len(kept), sketches[parts], check_duplication=False)
            kept.append(parts)
            same[parts] = [number]
    return alike


def jaccard(first: Parts, second: Parts) -> float:
    """Share of the parts of either that both have, in [0, 1]; 0 where one is empty."""
    if not first or not second:
        return 0.0
    both = len(first & second)
    return both / (len(first) + len(second) - both)


def parts_of(text: str) -> Parts:
    """The words and word pairs of a text as checksums; characters of scripts without spaces count as words."""
    tokens = TOKEN.findall(plain_words(text)) if not text.isascii() else plain_words(text).split()
    single = [crc32(token.encode()) for token in tokens]
    return frozenset([*single, *((7919 * a + b) & 0xFFFFFFFF for a, b in zip(single, single[1:]))])
