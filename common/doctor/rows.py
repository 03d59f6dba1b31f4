"""Rows for the doctor: a table with the columns of `own_data`, a file of `ScoredPair`s, or a Hub dataset."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.data.preference import SCORES
from common.data.readers import READERS, OptionalText, Row, Score, read_rows, read_table
from common.data.splits import split_of
from common.schema import Pair, ScoredPair, unbroken
from common.specs import place_and_commit

SHARES = {"train": 0.8, "test": 0.2}
"""Of the prompts, where the rows name no split."""
GROUPS = ("judge", "annotator", "rater", "labeler", "labeller", "scale", "model", "teacher", "source", "variant")
"""Columns and fields of which one value is expected in a file."""


class TableRow(BaseModel):
    """The columns that are read; an answer may be empty here, and the scores may be no columns at all."""

    prompt: OptionalText
    chosen: OptionalText
    rejected: OptionalText
    score_chosen: Score = None
    score_rejected: Score = None
    system: OptionalText = ""


@dataclass(frozen=True)
class DoctorRow:
    """A pair as the doctor reads it.

    where: file and line, or the id. score_chosen, score_rejected: in [0, 1] by the scale, None where one is missing.
    split: as the row names it, else by a hash of its prompt. groups: column of `GROUPS` -> value. halves: whether a
    text held half a character, here replaced by U+FFFD.
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

    @property
    def gap(self) -> float | None:
        """Score of chosen less that of rejected, in [-1, 1]; None for an unscored pair."""
        scored = None not in (self.score_chosen, self.score_rejected)
        return self.score_chosen - self.score_rejected if scored else None


def add_score_range(parser: argparse.ArgumentParser) -> None:
    """The option `--score-range LOW HIGH` of commands that read a table of scores."""
    parser.add_argument(
        "--score-range",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="lowest and highest possible score; default 0 1",
    )


def check_score_range(low: float, high: float) -> None:
    """Raises ValueError unless they are finite and in order."""
    if not 0 < high - low < math.inf:
        raise ValueError(f"the score range is lowest and highest, not {low:g} and {high:g}")


def check_score(where: str, name: str, score: float | None, low: float, high: float) -> None:
    """Raises ValueError naming row and column for a score outside the range; none is no score."""
    if score is not None and not low <= score <= high:
        raise ValueError(
            f"{where}: column {name}: {score:g} lies outside {low:g} to {high:g}; give the range of the scores with --score-range LOW HIGH"
        )


def read(source: str | Path, score_range: tuple[float, float] = (0.0, 1.0)) -> list[DoctorRow]:
    """The rows of a file, or of a Hub dataset `name@commit`; files of pairs bring their own scales.

    Raises ValueError or FileNotFoundError naming file, line, column and remedy: a file that cannot be read, a missing
    column, a score that is no number or lies outside `score_range` (lowest, highest).
    """
    check_score_range(*score_range)
    name, commit = place_and_commit(str(source))
    is_file = not commit and (Path(source).expanduser().exists() or Path(name).suffix.lower() in READERS)
    if not is_file and not commit:
        raise FileNotFoundError(f"no file {source}; give a file, or a Hub dataset as NAME@COMMIT")
    found = read_table(source, half_characters=True) if is_file else read_rows(name, commit)
    return [_read(row, score_range) for row in found]


def rows_of(pairs: Sequence[Pair]) -> list[DoctorRow]:
    """Pairs as rows: chosen is the revised answer. A pair that knows its line (`where`) is named by it, else by its
    id."""
    return [_of_pair(pair, getattr(pair, "where", "") or pair.id, False) for pair in pairs]


def _read(row: Row, score_range: tuple[float, float]) -> DoctorRow:
    fields = {name: unbroken(value) if isinstance(value, str) else value for name, value in row.fields.items()}
    halves = fields != row.fields
    row = Row(row.where, fields)
    if {"response", "response_revised"} <= fields.keys():
        return _of_pair(row.read(ScoredPair if "score_revised" in fields else Pair), row.where, halves)
    found, (low, high) = row.read(TableRow), score_range
    scores = {}
    for name in SCORES:
        score = getattr(found, name)
        check_score(row.where, name, score, low, high)
        scores[name] = None if score is None else (score - low) / (high - low)
    texts = {name: getattr(found, name).strip() for name in ("prompt", "chosen", "rejected")}
    return DoctorRow(
        row.where, **texts, **scores, system=found.system, split=split_of(texts["prompt"], SHARES), groups=_groups(fields), halves=halves,
    )  # fmt: skip


def _of_pair(pair: Pair, where: str, halves: bool) -> DoctorRow:
    rejected, chosen = pair.normalised() if isinstance(pair, ScoredPair) else (None, None)
    return DoctorRow(
        where, pair.prompt, pair.response_revised.strip(), pair.response.strip(), chosen, rejected, pair.system, pair.split,
        _groups(pair.model_dump(include=set(GROUPS))), halves,
    )  # fmt: skip


def _groups(fields: dict[str, Any]) -> dict[str, str]:
    return {name: str(fields[name]) for name in GROUPS if fields.get(name) not in (None, "")}
