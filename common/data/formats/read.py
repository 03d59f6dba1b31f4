"""The one reader of preference data: finds the rows, recognises their format, and makes preferences of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.data.formats import many_answers, single, two_answers
from common.data.formats.record import (
    BOTH,
    NO_BEGINNING,
    NoPreference,
    Preference,
    Preferences,
    Reading,
    check_score_range,
)
from common.data.formats.single import Answers
from common.data.formats.turns import is_transcript
from common.data.preference import SCORES
from common.data.readers import ON_HUB, READERS, Row, read_rows, read_table
from common.runtime import nearest
from common.schema import unbroken

ReadAll = Callable[[Sequence[Row], Reading], Iterator[Preference]]


@dataclass(frozen=True)
class Format:
    """needs: columns, of a|b one. answers: what `chosen` holds in the first row, "" where there is no such column.
    without: columns that may not be there, since they would be left unread. asks_in_column: whether a column may hold
    what was asked (`ASKED_IN`). one_by_one: what reads the answers without making pairs of them, where a row has no two
    of which one is preferred; read: None where no pair can be made."""

    name: str
    needs: tuple[str, ...]
    answers: str
    read: ReadAll | None
    without: tuple[str, ...] = ()
    asks_in_column: bool = True
    one_by_one: many_answers.ReadGroups | None = None

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


TABLE, THUMBS = "a table of texts with scores", "thumbs up and down (KTO)"
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
        many_answers.best_and_worst(many_answers.generations), one_by_one=many_answers.generations,
    ),
    Format(THUMBS, ("prompt", "completion", "label"), "", many_answers.up_and_down, one_by_one=many_answers.thumbs),
    Format(
        "TRL's plain texts, prompt inside (implicit)", BOTH, "texts", _each(two_answers.implicit_texts), asks_in_column=False
    ),
)  # fmt: skip
"""The first that fits is taken, then attribute scores, whose columns are the weights'."""
SINGLE = (
    Format("single answers", ("|".join(single.ASKED), "|".join(single.ANSWERED)), "", None, without=BOTH, one_by_one=single.single),
    Format("conversations", ("messages",), "", None, without=BOTH, one_by_one=single.conversations),
)  # fmt: skip
"""Formats of which no pair can be made, looked for last."""
ASKED_IN = re.compile(
    r"prompt|instruct|quest|query|input|problem|request|user|context|conversation|messages|history|task|text", re.I
)
"""In the name of a column that may hold what was asked."""
MAY_SCORE = re.compile(r"scor|rating|reward", re.I)
"""In the name of a column that may hold a score."""
ALONE = "`rdpo train` learns single answers with --method sft, rwr or ca, and with fa where a prompt has several"


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
    return open_source(source, score_range, weights).preferences()


@dataclass(frozen=True)
class Source:
    """A source whose rows are there, with their format and how they are read: once, as preferences or as answers."""

    name: str
    rows: Sequence[Row]
    form: Format
    reading: Reading

    def preferences(self) -> Preferences:
        """What `read_preferences` reads."""
        form, left_out = self.form, self.reading.left_out
        if form.read is None:
            raise ValueError(
                f"{self.name}: read as {form.name}, of which no pair can be made; {ALONE}. Where several rows answer one prompt, --weights COLUMN=1 makes pairs of them by that column"
            )
        found = Preferences(self.name, form.name, len(self.rows), list(form.read(self.rows, self.reading)), left_out)
        if not found.pairs:
            remedy = f"give other rows; {ALONE}" if form.one_by_one else "give other rows"
            raise ValueError(f"no pair in {found.account().replace(chr(10), ';')}; {remedy}")
        if 2 * left_out.counts[NO_BEGINNING] > len(self.rows):
            raise ValueError(
                f"{self.name}, {left_out.first[NO_BEGINNING]}: chosen and rejected share no beginning, nor do those of most other rows, so the prompt is not in them; give it in a column prompt"
            )
        if found.scored:
            return found
        names = {name for row in self.rows for name, cell in row.fields.items() if cell is not None}
        return replace(found, unread=sorted(filter(MAY_SCORE.search, names)))  # or scores would be lost for their name

    def answers(self, experiment: str, shares: Mapping[str, float]) -> Answers | None:
        """Every answer of rows that have no two answers of which one is preferred, with its split by `shares`; None for
        a source of pairs. A thumb up is a score of 1, down of 0. Raises ValueError where there is none."""
        if self.form.one_by_one is None:
            return None
        groups = self.form.one_by_one(self.rows, self.reading)
        answers = single.placed(groups, self.reading, experiment, shares, self.form.name == THUMBS)
        found = Answers(self.name, self.form.name, len(self.rows), answers, self.reading.left_out)
        if not answers:
            raise ValueError(f"no answer in {found.account().replace(chr(10), ';')}; give other rows")
        return found


def open_source(
    source: str | Path, score_range: tuple[float, float] = (0.0, 1.0), weights: Mapping[str, float] | None = None
) -> Source:
    """The rows of a source and their format. Arguments and errors as in `read_preferences`."""
    check_score_range(*score_range)
    if wrong := [name for name, weight in (weights or {}).items() if not weight or not math.isfinite(weight)]:
        raise ValueError(f"the weight of {wrong[0]} is a finite number other than 0, negative where less is better")
    rows = [_whole(row) for row in _rows(source)]
    columns = {name for row in rows for name, cell in row.fields.items() if cell is not None or name in SCORES}
    form = _recognised(rows, columns, source, weights or {})
    return Source(str(source), rows, form, Reading(score_range, weights or {}))


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
        many_answers.best_and_worst(many_answers.attributes), one_by_one=many_answers.attributes,
    )  # fmt: skip
    answers = _answers_in(rows)
    fitting = [
        form
        for form in (*FORMATS, attributes, *(() if weights else SINGLE))
        if form.answers in ("", answers)
        and not columns.intersection(form.without)
        and (form.asks_in_column or not any(map(ASKED_IN.search, columns)))
    ]
    form = next((form for form in fitting if not form.missing(columns)), None)
    if form is None:
        pairs = [form for form in fitting if form.read]
        near = min(pairs, key=lambda form: len(form.missing(columns)) / len(form.needs))
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
