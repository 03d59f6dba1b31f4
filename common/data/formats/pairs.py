"""Preferences as the scored pairs that a student is trained on."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from common.data.formats.record import Preference, Preferences
from common.data.splits import split_of
from common.schema import ScoredPair, fingerprint


class PlacedPair(ScoredPair):
    """A pair that knows its file and line, for messages; they are no part of what is kept."""

    where: str = Field(default="", exclude=True)


def scored_pairs(found: Preferences, experiment: str, shares: Mapping[str, float]) -> list[PlacedPair]:
    """A pair a preference. Its split is the source's own, else by a hash of the conversation's first request, so that no
    request is in two; a split without a share joins `test`."""
    return [_pair(one, experiment, shares) for one in found.pairs]


def _pair(one: Preference, experiment: str, shares: Mapping[str, float]) -> PlacedPair:
    split = one.split or split_of(one.opening, shares)
    history = [one.history] if one.history else []
    return PlacedPair(
        id=fingerprint(one.system, one.prompt, one.chosen, one.rejected, *history), experiment=experiment,
        split=split if split in shares else "test", system=one.system, prompt=one.prompt, history=one.history,
        group=one.opening if one.opening != one.prompt else "", response=one.rejected, response_revised=one.chosen,
        score_response=one.score_rejected, score_revised=one.score_chosen, scale=one.scale, where=one.where,
    )  # fmt: skip
