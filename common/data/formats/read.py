"""The one reader of preference data: finds the rows, recognises their format, and makes preferences of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.formats import many_answers, two_answers
from common.data.formats.record import (
    BOTH,
    NoPreference,
    Preference,
    Preferences,
    Reading,
    check_score_range,
)
from common.data.formats.turns import is_transcript
from common.data.preference import SCORES
from common.data.readers import ON_HUB, READERS, Row, read_rows, read_table
from common.runtime import nearest
from common.schema import unbroken

ReadAll = Callable[[Sequence[Row], Reading], Iterator[Preference]]


@dataclass(frozen=True)
class Format:
    """needs: columns, of a|b one. answers: what `chosen` holds in the first row, "" where there is no such column.
    without: columns that may not be there, since they would be left unread."""

    name: str
    needs: tuple[str, ...]
    answers: str
    read: ReadAll
    without: tuple[str, ...] = ()

    def missing(self, columns: set[str]) -> list[str]:
        return [needed for needed in self.needs if not columns & set(needed.split("|"))]


def _each(read: Callable[[Row, Reading], Preference]) -> ReadAll:
    """The function of one row, for all rows; those that give no preference are counted."""

    def read_all(rows: Sequence[Row], reading: Reading) -> Iterator[Preference]:
        for row in rows:
            try:
                yield read(row, reading)
            except NoPreference as reason:
                reading.left_out.add(str(reason), row.where)

    return read_all


TABLE = "a table of texts with scores"
PROMPTS = (
    "prompt",
    "instruction",
    "input",
    "question",
    "query",
    "context",
    "messages",
    "conversations",
    "conversation",
)
"""Columns that hold what was asked, by one name or another."""
FORMATS = (
    Format("the notebooks' pairs", ("response", "response_revised"), "", _each(two_answers.notebook_pairs)),
    Format("HH-RLHF transcripts", BOTH, "transcripts", _each(two_answers.transcripts)),
    Format("message lists, prompt in its own column", ("prompt", *BOTH), "lists", _each(two_answers.message_lists)),
    Format("message lists, prompt inside (implicit)", BOTH, "lists", _each(two_answers.message_lists)),
    Format(TABLE, ("prompt", *BOTH, *SCORES), "texts", _each(two_answers.texts)),
    Format("texts with a system prompt, as truthy-dpo", ("system", "prompt", *BOTH), "texts", _each(two_answers.texts)),
    Format("TRL's plain texts", ("prompt", *BOTH), "texts", _each(two_answers.texts)),
    Format("instructions with an input (Alpaca)", ("instruction", *BOTH), "texts", _each(two_answers.instructions)),
    Format("Orca pairs", ("question|input", *BOTH), "texts", _each(two_answers.orca)),
    Format(
        "rated generations (Argilla, distilabel)", ("instruction|prompt|input", "generations", "ratings|rating"), "",
        many_answers.generations,
    ),
    Format("thumbs up and down (KTO)", ("prompt", "completion", "label"), "", many_answers.thumbs),
    Format(
        "TRL's plain texts, prompt inside (implicit)", BOTH, "texts", _each(two_answers.implicit_texts), without=PROMPTS
    ),
)  # fmt: skip
"""The first that fits is taken; attribute scores, whose columns are the weights', stand for themselves."""


def read_preferences(
    source: str | Path, score_range: tuple[float, float] = (0.0, 1.0), weights: Mapping[str, float] | None = None
) -> Preferences:
    """Read the preferences of a file, a saved folder, or a Hub dataset `owner/name[/split or file]@commit`.

    Args:
        score_range: lowest and highest possible score; the notebooks' pairs bring their own.
        weights: attribute -> weight, of rows with attribute scores.

    Raises ValueError or FileNotFoundError naming file, line, column and remedy: no such place, no known format, a cell
    that cannot be read, a score outside its range.
    """
    check_score_range(*score_range)
    if wrong := [name for name, weight in (weights or {}).items() if not weight or not math.isfinite(weight)]:
        raise ValueError(f"the weight of {wrong[0]} is a finite number other than 0, negative where less is better")
    rows = [_whole(row) for row in _rows(source)]
    columns = {name for row in rows for name, cell in row.fields.items() if cell is not None or name in SCORES}
    form = _recognised(rows, columns, source, weights or {})
    reading = Reading(score_range, weights or {})
    pairs = list(form.read(rows, reading))
    if not pairs:
        told = Preferences(str(source), form.name, len(rows), pairs, reading.left_out).account()
        raise ValueError(f"no pair in {told.replace(chr(10), ';')}; give other rows")
    return Preferences(str(source), form.name, len(rows), pairs, reading.left_out)


def _rows(source: str | Path) -> list[Row]:
    path = Path(source).expanduser()
    if is_on_hub(source):
        return read_rows(source)
    if path.exists() or path.suffix.lower() in READERS:
        return read_table(path, half_characters=True)
    raise FileNotFoundError(f"no file {source}; give a file, or a Hub dataset as NAME@COMMIT")


def is_on_hub(source: str | Path) -> bool:
    """Whether it names a Hub dataset with a commit, and nothing that is here."""
    path, on_hub = Path(source).expanduser(), ON_HUB.fullmatch(str(source))
    return bool(on_hub and on_hub[3]) and path.suffix.lower() not in READERS and not path.exists()


def _whole(row: Row) -> Row:
    fields = {name: _unbroken(cell) for name, cell in row.fields.items()}
    return Row(row.where, fields, fields != row.fields)


def _unbroken(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {name: _unbroken(value) for name, value in cell.items()}
    if isinstance(cell, list):
        return [_unbroken(value) for value in cell]
    return unbroken(cell) if isinstance(cell, str) else cell


def _recognised(rows: Sequence[Row], columns: set[str], source: str | Path, weights: Mapping[str, float]) -> Format:
    scored_by = tuple(weights or many_answers.DEFAULT_WEIGHTS)
    attributes = Format(
        f"attribute scores, weighed by {', '.join(scored_by)}", ("prompt", "response", *scored_by), "",
        many_answers.attributes,
    )  # fmt: skip
    answers = _answers_in(rows)
    fitting = [
        form
        for form in (*FORMATS, attributes)
        if form.answers in ("", answers) and not columns.intersection(form.without)
    ]
    form = next((form for form in fitting if not form.missing(columns)), None)
    if form is None:
        near = min(fitting, key=lambda form: len(form.missing(columns)) / len(form.needs))
        lacking = near.missing(columns)
        hints = [name.split("|")[0] + nearest(name.split("|")[0], columns) for name in lacking]
        raise ValueError(
            f"{source}: no known format; its columns are {', '.join(sorted(columns))[:200]}; "
            f"the nearest is {near.name}, which also needs {' and '.join(hints)}; docs/own-data.md lists the formats"
        )
    if weights and form is not attributes:
        raise ValueError(
            f"{source}: read as {form.name}, which has no attribute scores to weigh; leave the weights out"
        )
    return form


def _answers_in(rows: Sequence[Row]) -> str:
    """What the first row with both answers holds: lists, transcripts or texts."""
    both = ([row.fields.get(side) for side in BOTH] for row in rows)
    cells = next((cells for cells in both if None not in cells), [""])
    if all(isinstance(cell, list) for cell in cells):
        return "lists"
    return "transcripts" if all(map(is_transcript, cells)) else "texts"
