"""Formats with rated answers, two or more a prompt: the function of each makes preferences of all rows together.

Of rated answers the best and the worst make a pair, the first of several alike: ours, so that a prompt counts once and
nothing is drawn. The others are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from common.data.formats.record import NoPreference, Preference, Reading, annotator_of
from common.data.formats.turns import Asked, answer_of, asked_in, asked_of, messages
from common.data.readers import OptionalText, Row
from common.runtime import nearest, shortened

DEFAULT_WEIGHTS = {"helpfulness": 1.0}
THUMBS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Rated(NamedTuple):
    """An answer with its score on the range; None is no score."""

    row: Row
    text: str
    score: float | None


Group = tuple[str, Asked, list[Rated]]
"""The place of a prompt, the prompt, and its answers."""
ReadGroups = Callable[[Sequence[Row], Reading], Iterator[Group]]


class Responses(BaseModel):
    prompt: OptionalText
    response: OptionalText
    system: OptionalText = ""


def best_and_worst(read: ReadGroups) -> Callable[[Sequence[Row], Reading], Iterator[Preference]]:
    """What makes a pair of the best and the worst answer of every prompt that `read` reads."""

    def pairs(rows: Sequence[Row], reading: Reading) -> Iterator[Preference]:
        for group in read(rows, reading):
            yield from _best_and_worst(*group, reading)

    return pairs


def generations(rows: Sequence[Row], reading: Reading) -> Iterator[Group]:
    """Argilla and distilabel: an `instruction`, a list of `generations`, a list of their `ratings`."""
    for row in rows:
        column = next(name for name in ("instruction", "prompt", "input") if name in row.fields)
        answers = _list(row, "generations")
        ratings_in = "ratings" if "ratings" in row.fields else "rating"
        ratings = _list(row, ratings_in)
        if len(answers) != len(ratings):
            raise ValueError(
                f"{row.where}: {len(answers)} generations and {len(ratings)} {ratings_in}; give one for each"
            )
        rated = [
            Rated(row, _generation(row, answer), reading.score(row, ratings_in, rating))
            for answer, rating in zip(answers, ratings)
        ]
        if (asked := asked_in_column(row, column, reading)) is not None:
            yield row.where, asked, rated


def _generation(row: Row, answer: Any) -> str:
    """The text of an answer that is one, or a message, or a list of messages; "" for None. Raises ValueError."""
    if answer is None or isinstance(answer, str):
        return (answer or "").strip()
    return answer_of(messages(answer if isinstance(answer, list) else [answer], f"{row.where}: column generations"))


def attributes(rows: Sequence[Row], reading: Reading) -> Iterator[Group]:
    """HelpSteer: a `prompt`, a `response` and its scores by attribute, several rows a prompt.

    An answer's score is the mean by `reading.weights` (default: helpfulness alone); a negative weight counts from the
    other end of the range, so that the mean stays on it (ours). Raises ValueError for an unknown attribute.
    """
    weights = reading.weights or DEFAULT_WEIGHTS
    prompts: dict[tuple[str, str, str], list[Rated]] = {}  # of each annotator
    for row in rows:
        read = row.read(Responses)
        rated = Rated(row, read.response.strip(), weighted_score(row, reading, weights))
        prompts.setdefault((read.system.strip(), read.prompt.strip(), annotator_of(row)), []).append(rated)
    for (system, prompt, _), rated in prompts.items():
        try:
            asked = asked_in(prompt, system)
        except NoPreference as reason:
            reading.left_out.add(str(reason).replace("rows", "prompts", 1), rated[0].row.where)
            continue
        yield rated[0].row.where, asked, rated


def weighted_score(row: Row, reading: Reading, weights: Mapping[str, float]) -> float | None:
    """The weighted mean of a row's attributes on the range of the scores; None where one is missing."""
    low, high = reading.score_range
    total = 0.0
    for name, weight in weights.items():
        if name not in row.fields:
            raise ValueError(
                f"{row.where}: no attribute {name}{nearest(name, row.fields)}; there are {', '.join(row.fields)[:200]}"
            )
        if (score := reading.score(row, name, row.fields[name])) is None:
            return None
        total += abs(weight) * (score if weight > 0 else low + high - score)
    return round(total / sum(map(abs, weights.values())), 9)  # or equal answers would differ by an error of rounding


def up_and_down(rows: Sequence[Row], reading: Reading) -> Iterator[Preference]:
    """Of `thumbs`, a prompt's n-th true and n-th false completion are a pair (ours), without scores: a thumb is the
    label itself, and no second opinion of it."""
    for _, asked, rated in thumbs(rows, reading):
        up, down = ([answer._replace(score=None) for answer in rated if answer.score == way] for way in (1.0, 0.0))
        yield from (_pair(asked, good, bad, reading) for good, bad in zip(up, down))
        for alone in up[len(down) :] + down[len(up) :]:
            reading.left_out.add("answers without one of the other label to their prompt", alone.row.where)


def thumbs(rows: Sequence[Row], reading: Reading) -> Iterator[Group]:
    """KTO: a `prompt`, a `completion`, a `label` that is true or false, which is a score of 1 or 0."""
    prompts: dict[str, tuple[Asked, list[Rated]]] = {}
    for row in rows:
        label = THUMBS.get(str(row.fields.get("label")).strip().casefold())
        if label is None:
            raise ValueError(
                f"{row.where}: column label: {shortened(row.fields.get('label'))} is neither true nor false"
            )
        if (asked := asked_in_column(row, "prompt", reading)) is None:
            continue
        if (text := answer_in_column(row, "completion", reading)) is not None:
            key = repr((asked, annotator_of(row)))
            prompts.setdefault(key, (asked, []))[1].append(Rated(row, text, float(label)))
    for asked, rated in prompts.values():
        yield rated[0].row.where, asked, rated


def _best_and_worst(where: str, asked: Asked, rated: Sequence[Rated], reading: Reading) -> Iterator[Preference]:
    scored = [answer for answer in rated if answer.score is not None]
    for answer in rated:
        if answer.score is None:
            reading.left_out.add("answers without a score", answer.row.where)
    if len(scored) < 2:
        reading.left_out.add("prompts with fewer than two scored answers", where)
        return
    best = max(scored, key=lambda answer: answer.score)
    worst = min(scored, key=lambda answer: answer.score)
    if best.score == worst.score:
        reading.left_out.add("prompts whose answers are scored alike", where)
        return
    for answer in scored:
        if answer is not best and answer is not worst:
            reading.left_out.add("answers beside the best and the worst", answer.row.where)
    yield _pair(asked, best, worst, reading)


def _pair(asked: Asked, chosen: Rated, rejected: Rated, reading: Reading) -> Preference:
    where = chosen.row.where
    if rejected.row.where != where:
        where += f" and {rejected.row.where.rpartition(', ')[2]}"
    return Preference(
        where, asked.prompt, chosen.text, rejected.text, asked.system, asked.history, chosen.score, rejected.score,
        reading.score_range, annotator=annotator_of(chosen.row), fields=chosen.row.fields, halves=chosen.row.halves or rejected.row.halves,
    )  # fmt: skip


def asked_in_column(row: Row, column: str, reading: Reading) -> Asked | None:
    """The prompt of a row; None where it is none, which is counted."""
    cell, system = row.fields.get(column), row.text("system")
    try:
        if isinstance(cell, list):
            return asked_of(messages(cell, f"{row.where}: column {column}"), system)
        return asked_in(row.text(column), system)
    except NoPreference as reason:
        reading.left_out.add(str(reason), row.where)
        return None


def answer_in_column(row: Row, column: str, reading: Reading) -> str | None:
    """The answer of a row, a text or the last of its messages; None where it is none, which is counted."""
    if not isinstance(cell := row.fields.get(column), list):
        return row.text(column)
    try:
        return answer_of(messages(cell, f"{row.where}: column {column}"))
    except NoPreference as reason:
        reading.left_out.add(str(reason), row.where)
        return None


def _list(row: Row, column: str) -> list[Any]:
    if isinstance(cell := row.fields.get(column), list):
        return cell
    raise ValueError(
        f"{row.where}: column {column}: {shortened(cell)} is no list; "
        "save the data as JSONL or Parquet, which keep lists"
    )
