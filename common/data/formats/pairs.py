"""Preferences as the scored pairs that a student is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from common.data.formats.read import FORMATS, TABLE, is_on_hub
from common.data.formats.record import ALIKE, BOTH, EMPTY, REPEATED, LeftOut, Preference, Preferences
from common.data.splits import split_of
from common.schema import ScoredPair, fingerprint


class PlacedPair(ScoredPair):
    """A pair that knows its file and line, for messages; they are no part of what is kept."""

    where: str = Field(default="", exclude=True)


def learnable(found: Preferences) -> Preferences:
    """The preferences without empty texts, equal answers and repeats, which are counted.

    In a local table of texts with scores, which its owner can edit, they are refused instead. Raises ValueError naming
    the line there, and for half a character everywhere.
    """
    is_own = found.format == TABLE and not is_on_hub(found.source)
    left_out, kept, places = LeftOut(), [], {}
    for pair in found.pairs:
        if pair.halves:
            raise ValueError(f"{pair.where}: holds half a character; mend or delete it")
        told = repr((pair.system, pair.history, pair.prompt, pair.chosen, pair.rejected, pair.annotator))
        before = places.setdefault(told, pair.where)
        empty = [name for name in ("prompt", *BOTH) if not getattr(pair, name)]
        reason = EMPTY if empty else ALIKE if pair.chosen == pair.rejected else REPEATED if before != pair.where else ""
        if reason and is_own:
            raise ValueError(f"{pair.where}: {_refusal(reason, empty, before)}")
        if reason:
            left_out.add(reason, pair.where)
        else:
            kept.append(pair)
    return replace(found, pairs=kept, left_out=found.left_out.plus(left_out))


def _refusal(reason: str, empty: Sequence[str], before: str) -> str:
    if reason == EMPTY:
        needs = next(form.needs for form in FORMATS if form.name == TABLE)
        return f"column {empty[0]}: a text should have at least 1 character; every row needs {', '.join(needs)}"
    if reason == ALIKE:
        return "column rejected: the same text as chosen, from which nothing is learned; delete the row"
    return f"the same prompt and answers as in {before}; delete one of them"


def scored_pairs(found: Preferences, experiment: str, shares: Mapping[str, float]) -> list[PlacedPair]:
    """A pair a preference.

    Its split is the source's own, else by a hash of the conversation's first request, so that no request is in two; a
    split without a share joins `test`.
    """
    return [_pair(one, experiment, shares) for one in found.pairs]


def _pair(one: Preference, experiment: str, shares: Mapping[str, float]) -> PlacedPair:
    split = one.split or split_of(one.opening, shares)
    more = [part for part in (one.history, one.annotator) if part]
    return PlacedPair(
        id=fingerprint(one.system, one.prompt, one.chosen, one.rejected, *more), experiment=experiment,
        split=split if split in shares else "test", system=one.system, prompt=one.prompt, history=one.history,
        group=one.opening if one.opening != one.prompt else "", response=one.rejected, response_revised=one.chosen,
        score_response=one.score_rejected, score_revised=one.score_chosen, scale=one.scale, where=one.where,
        annotator=one.annotator,
    )  # fmt: skip
