"""Answers one by one, scored or not: of formats with a single answer a row, and of those with rated answers, two or more
a prompt, of which no pair is made here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from common.data.formats.many_answers import Group, Rated, answer_in_column, asked_in_column
from common.data.formats.record import EMPTY, REPEATED, LeftOut, NoPreference, Reading
from common.data.formats.turns import Asked, answer_of, asked_of, messages
from common.data.readers import Row
from common.data.splits import split_of
from common.schema import ScoredAnswer, fingerprint

ASKED = ("prompt", "instruction", "question", "query")
ANSWERED = ("response", "answer", "completion", "output")
SCORED = ("score", "rating", "reward")


class PlacedAnswer(ScoredAnswer):
    """An answer that knows its file and line, for messages; they are no part of what is kept."""

    where: str = Field(default="", exclude=True)


@dataclass(frozen=True)
class Answers:
    """The answers of a source, the format that they were recognised in, and what gave none."""

    source: str
    format: str
    rows: int
    answers: Sequence[PlacedAnswer]
    left_out: LeftOut

    @property
    def scored(self) -> int:
        return sum(answer.is_scored for answer in self.answers)

    def account(self) -> str:
        """Format and counts as lines of text, each reason for a missing answer with its first place."""
        told = f"{self.source}: read as {self.format}; {self.rows} rows, {len(self.answers)} answers, {self.scored} with a score"
        return "\n".join([told, *self.left_out.lines()])

    def as_dict(self) -> dict[str, Any]:
        """The account for a manifest."""
        counts = {"rows": self.rows, "answers": len(self.answers), "scored": self.scored}
        return {"source": self.source, "format": self.format, **counts, "left_out": dict(self.left_out.counts)}


def single(rows: Sequence[Row], reading: Reading) -> Iterator[Group]:
    """A prompt and an answer a row, as texts or messages; an `instruction` may have an `input` (Alpaca) or a `context`
    (Dolly), which goes below it."""
    for row in rows:
        asked_column, answer_column, score_column = (_first(row, names) for names in (ASKED, ANSWERED, SCORED))
        score = reading.score(row, score_column, row.fields[score_column]) if score_column else None
        if (asked := asked_in_column(row, asked_column, reading)) is None:
            continue
        if asked_column == "instruction" and (more := row.text("input") or row.text("context")):
            asked = asked._replace(prompt=f"{asked.prompt}\n\n{more}")
        if (text := answer_in_column(row, answer_column, reading)) is not None:
            yield row.where, asked, [Rated(row, text, score)]


def conversations(rows: Sequence[Row], reading: Reading) -> Iterator[Group]:
    """TRL's conversations: a list of `messages`, of which the last is the answer."""
    for row in rows:
        score_column = _first(row, SCORED)
        score = reading.score(row, score_column, row.fields[score_column]) if score_column else None
        try:
            turns = messages(row.fields.get("messages"), f"{row.where}: column messages")
            yield row.where, asked_of(turns[:-1], row.text("system")), [Rated(row, answer_of(turns), score)]
        except NoPreference as reason:
            reading.left_out.add(str(reason), row.where)


def placed(
    groups: Iterator[Group], reading: Reading, experiment: str, shares: Mapping[str, float], is_thumb: bool
) -> list[PlacedAnswer]:
    """An answer each, without empty texts and repeats, which are counted. Its split is decided by a hash of the
    conversation's first request, so that no request is in two. Raises ValueError for half a character."""
    kept, seen = [], {}
    scale = (0.0, 1.0) if is_thumb else reading.score_range
    for _, asked, rated in groups:
        for one in rated:
            if one.row.halves:
                raise ValueError(f"{one.row.where}: holds half a character; mend or delete it")
            name = fingerprint(*asked, one.text)
            if not (asked.prompt and one.text):
                reading.left_out.add(EMPTY, one.row.where)
                continue
            if seen.setdefault(name, one) is not one:
                reason = (
                    REPEATED if seen[name].score == one.score else "repeated rows with another score than the first"
                )
                reading.left_out.add(reason, one.row.where)
                continue
            kept.append(_answer(asked, one, name, experiment, shares, scale))
    return kept


def _answer(
    asked: Asked, one: Rated, name: str, experiment: str, shares: Mapping[str, float], scale: tuple[float, float]
) -> PlacedAnswer:
    opening = asked.history[0]["content"] if asked.history else asked.prompt
    return PlacedAnswer(
        id=name, experiment=experiment, split=split_of(opening, shares), system=asked.system, prompt=asked.prompt,
        history=asked.history, group=opening if asked.history else "", answer=one.text, score=one.score, scale=scale,
        where=one.row.where,
    )  # fmt: skip


def _first(row: Row, names: Sequence[str]) -> str:
    """The first of these columns that the row has, "" for none."""
    return next((name for name in names if row.fields.get(name) is not None), "")
