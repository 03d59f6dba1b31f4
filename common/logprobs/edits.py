"""Which tokens of a revision are edits, and which tokens of the original they took the place of."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def changed(original: Sequence[int], revised: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Whether each token of the original was edited away, and whether each token of the revision was edited in, by an
    alignment with as few insertions, deletions and substitutions as possible (Levenshtein's; `difflib` is not minimal).

    Equal texts have no changed token, an insertion marks none of the original. The marks hang on the tokenizer."""
    away, new = [False] * len(original), [False] * len(revised)
    for step in Levenshtein.opcodes(original, revised):
        if step.tag != "equal":
            away[step.src_start : step.src_end] = [True] * (step.src_end - step.src_start)
            new[step.dest_start : step.dest_end] = [True] * (step.dest_end - step.dest_start)
    return away, new
