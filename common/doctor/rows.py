"""Rows for the doctor, of every source and format that `common.data.formats` reads."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.formats.read import read_preferences
from common.data.formats.record import Preferences
from common.data.splits import split_of
from common.schema import BENIGN, Message, Pair, ScoredPair

SHARES = {"train": 0.8, "test": 0.2}
"""Of the prompts, where the rows name no split."""
GROUPS = ("judge", "annotator", "rater", "labeler", "labeller", "scale", "model", "teacher", "source", "variant")
"""Columns and fields of which one value is expected in a file."""


@dataclass(frozen=True)
class DoctorRow:
    """A pair as the doctor reads it.

    where: file and line, or the id. score_chosen, score_rejected: in [0, 1] by the scale, None where one is missing.
    split: as the row names it, else by a hash of its prompt. groups: column of `GROUPS` -> value. halves: whether a
    text held half a character, here replaced by U+FFFD. history: turns before the prompt. is_benign: whether the row's
    `kind` says that its prompt is harmless. scale: lowest and highest score before they were scaled.
    """

    where: str
    prompt: str
    chosen: str
    rejected: str
    score_chosen: float | None = None
    score_rejected: float | None = None
    system: str = ""
    split: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    halves: bool = False
    history: list[Message] = field(default_factory=list)
    is_benign: bool = False
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def conversation(self) -> str:
        """Everything before the answer, as one text."""
        return "\n".join([self.system, *(turn["content"] for turn in self.history), self.prompt])

    @property
    def gap(self) -> float | None:
        """Score of chosen less that of rejected, in [-1, 1]; None for an unscored pair."""
        scored = None not in (self.score_chosen, self.score_rejected)
        return self.score_chosen - self.score_rejected if scored else None


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """The options `--score-range LOW HIGH` and `--weights` of commands that read scores."""
    parser.add_argument(
        "--score-range",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="lowest and highest possible score; default 0 1",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="ATTRIBUTE=WEIGHT",
        help="of rows with a score for each attribute, such as HelpSteer's; default helpfulness=1",
    )


def weights_of(given: Sequence[str]) -> dict[str, float]:
    """Attribute -> weight, of ["helpfulness=1", ...]. Raises ValueError for anything that is not so."""
    weights = {}
    for one in given:
        name, _, weight = one.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = math.nan
        if not name or not math.isfinite(weights[name]):
            raise ValueError(f"--weights {one}: write ATTRIBUTE=WEIGHT, such as helpfulness=0.7")
    return weights


def read(
    source: str | Path, score_range: tuple[float, float] = (0.0, 1.0), weights: Mapping[str, float] | None = None
) -> list[DoctorRow]:
    """The rows of a file, a saved folder or a Hub dataset; arguments and errors as in
    `common.data.formats.read.read_preferences`."""
    return rows_in(read_preferences(source, score_range, weights))


def rows_in(found: Preferences) -> list[DoctorRow]:
    """Preferences as rows: in their own split, else by a hash of the conversation's first request."""
    return [
        DoctorRow(
            one.where, one.prompt, one.chosen, one.rejected, *one.normalised, one.system,
            one.split or split_of(one.opening, SHARES), _groups(one.fields), one.halves, one.history, str(one.fields.get("kind")).startswith(BENIGN), one.scale,
        )
        for one in found.pairs
    ]  # fmt: skip


def rows_of(pairs: Sequence[Pair]) -> list[DoctorRow]:
    """Pairs as rows: chosen is the revised answer. A pair that knows its line (`where`) is named by it, else by its
    id."""
    return [_of_pair(pair, getattr(pair, "where", "") or pair.id) for pair in pairs]


def _of_pair(pair: Pair, where: str) -> DoctorRow:
    is_scored = isinstance(pair, ScoredPair)
    rejected, chosen = pair.normalised() if is_scored else (None, None)
    return DoctorRow(
        where, pair.prompt, pair.response_revised.strip(), pair.response.strip(), chosen, rejected, pair.system, pair.split,
        _groups(pair.model_dump(include=set(GROUPS))), history=pair.history, is_benign=pair.is_benign,
        scale=pair.scale if is_scored else (0.0, 1.0),
    )  # fmt: skip


def _groups(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(fields[name]) for name in GROUPS if fields.get(name) not in (None, "")}
