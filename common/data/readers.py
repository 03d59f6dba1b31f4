"""Rows of a table that somebody else wrote, each with its place, so that a message can name it.

| read | refused, in one sentence with file, line and remedy |
|---|---|
| CSV and TSV between commas, semicolons or tabs, by whichever cuts the header into most cells; JSON lists and JSON lines, under either name; Parquet; folders of `datasets.save_to_disk`; Hub datasets | Excel's own files, packed files, other folders |
| UTF-8 with and without byte order mark, UTF-16 with one; any line ends | every other encoding |
| a CSV's columns by name, whatever their case and outer spaces; cells of any length; a nameless first column (pandas' index) is not looked at | a column or a key that stands twice, a row with more cells than the header, a quote left open |
| blank lines and rows of empty cells, which are none | half characters, brackets nested too deep |
| scores as numbers or as text, with point or decimal comma; an empty cell is no score | any other text, booleans, NaN, infinity, percent signs, thousands separators |
| texts | messages (role and content) in a text's place, as a list or printed |
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, StringConstraints, ValidationError

from common.data.formats.hub import download, is_saved, load_saved, load_split
from common.runtime import resolve, shortened
from common.storage import check_characters, parse_json, parse_object

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
KEY = r"""['"](?:role|content|from|value)['"]\s*:"""
MESSAGES, SECOND_KEY = re.compile(rf"[\s\[(]*(?:(?:array|list)[\s\[(]*)?\{{\s*{KEY}"), re.compile(KEY)
ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?")
"""owner/name, a split or file of it, its commit."""
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)
RowType = TypeVar("RowType", bound=BaseModel)


def _text_alone(cell: Any) -> Any:
    """Raises ValueError where messages stand in a text's place: as a list, or printed as Python, NumPy or JSON print
    one."""
    text = repr(cell) if isinstance(cell, list | dict) else str(cell).rstrip()
    if (opening := MESSAGES.match(text)) and text.endswith(("]", "}", ")")) and SECOND_KEY.search(text, opening.end()):
        raise ValueError(
            "messages in place of a text; write the last one's content alone, in pandas: table[column].str[-1].str['content']"
        )
    return cell


def score_of(cell: Any) -> float | None:
    """A finite number; None for an empty cell. Raises ValueError for all else, and for 1,000, which may be one or a
    thousand."""
    if cell is None or isinstance(cell, str) and not cell.strip():
        return None
    if not isinstance(cell, bool) and (
        not isinstance(cell, str) or NUMBER.fullmatch(cell.strip()) and not THOUSANDS.fullmatch(cell.strip())
    ):
        try:
            score = float(cell.replace(",", ".") if isinstance(cell, str) else cell)
        except (TypeError, OverflowError):
            score = math.nan
        if math.isfinite(score):
            return score
    raise ValueError(
        f"{shortened(cell)} is no finite, valid number such as 0.8; leave the cell empty where a score is missing"
    )


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), BeforeValidator(_text_alone)]
"""A column that must hold words."""
OptionalText = Annotated[str, BeforeValidator(lambda cell: "" if cell is None else _text_alone(cell))]
"""A column of words that may be empty, or not be there where a default is given."""
Score = Annotated[float | None, BeforeValidator(score_of)]
"""A column of scores; None where one is missing."""


class Row(NamedTuple):
    """One row of a source, and where it is, for messages. halves: whether a text held half a character, here U+FFFD."""

    where: str
    fields: dict[str, Any]
    halves: bool = False

    def text(self, column: str) -> str:
        """The column's words, stripped; "" for none. Raises ValueError naming place and column for anything else."""
        try:
            cell = _text_alone("" if (cell := self.fields.get(column)) is None else cell)
        except ValueError as error:
            raise ValueError(f"{self.where}: column {column}: {error}") from None
        if not isinstance(cell, str):
            raise ValueError(f"{self.where}: column {column}: {shortened(cell)} is no text")
        return cell.strip()

    def read(self, row_type: type[RowType]) -> RowType:
        """The columns of `row_type`; others are not looked at. Raises ValueError naming place, column and what is
        needed."""
        try:
            return row_type.model_validate(self.fields)
        except ValidationError as error:
            problem = error.errors()[0]
        reason = problem["msg"].removeprefix("Value error, ")
        said = f"{self.where}: column {'.'.join(map(str, problem['loc']))}: {reason[0].lower()}{reason[1:]}"
        if problem["type"] != "value_error":
            said += f"; every row needs {', '.join(name for name, field in row_type.model_fields.items() if field.is_required())}"
        if problem["type"] == "missing":
            said += f", and this one has {', '.join(self.fields)[:200]}"
        raise ValueError(said)


def by_id(rows: Sequence[Row], row_type: type[RowType]) -> dict[str, RowType]:
    """The rows by their column `id`. Raises ValueError naming the place of a broken row, and both places of an id that
    stands twice."""
    found, places = {}, {}
    for row in rows:
        read = row.read(row_type)
        if (before := places.setdefault(read.id, row.where)) != row.where:
            raise ValueError(f"{row.where}: the id {shortened(read.id)} stands in {before} too; delete one of them")
        found[read.id] = read
    return found


def read_rows(source: str | Path, revision: str = "") -> list[Row]:
    """Every row of a local file or saved folder, of a Hub dataset `owner/name` (its split `train`), of another split
    `owner/name/split`, or of a file in one, `owner/name/file`; relative paths start at the project root. The commit may
    be given behind an @ as well.

    Raises FileNotFoundError or ValueError naming file, line and remedy.
    """
    path, on_hub = resolve(source), ON_HUB.fullmatch(str(source))
    if path.is_file() or path.is_dir() and not revision:
        return read_table(path)
    if on_hub is None or Path(on_hub[1]).suffix.lower() in READERS:
        raise FileNotFoundError(f"no file {path}; give a file, or a Hub dataset as owner/name or owner/name/file")
    name, part, commit = on_hub.groups()
    if not (revision := revision or commit or ""):
        raise ValueError(
            f"no file {path}; to take {source} from the Hub, give its `revision`, a commit, so that the prompts stay the same"
        )
    if part and Path(part).suffix.lower() in READERS:
        return read_table(download(name, part, revision))
    found = load_split(name, part or "train", revision)
    return _some([Row(f"{name} at {revision}, row {number}", fields) for number, fields in enumerate(found, 1)], source)


def read_table(path: str | Path, half_characters: bool = False) -> list[Row]:
    """Every row of a local file or saved folder, as `read_rows` reads it; a relative path starts where the command runs.

    half_characters: whether rows that hold half a character are read and not refused, for whoever reports them.
    """
    path = Path(os.path.expanduser(path)).absolute()
    if is_saved(path):
        return _some([Row(f"{path}, row {number}", fields) for number, fields in enumerate(load_saved(path), 1)], path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file in it, or a folder that datasets.save_to_disk wrote")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a CSV, JSONL or JSON file")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        remedy = REMEDIES.get(suffix, f"give {', '.join(READERS)}")
        raise ValueError(f"{path}: cannot read {suffix or 'a file without suffix'}; {remedy}")
    rows = [Row(f"{path}, {place}", fields) for place, fields in READERS[suffix](path)]
    for row in rows if not half_characters else ():
        check_characters(row.fields, row.where)
    return _some(rows, path)


def _some(rows: list[Row], source: str | Path) -> list[Row]:
    if not rows:
        raise ValueError(f"{source} holds no rows; give a file with at least one")
    return rows


Placed = Iterator[tuple[str, dict[str, Any]]]
"""(place in the file, cells by column) of every row."""


def _read_csv(path: Path) -> Placed:
    text = read_text(path)
    told = re.match(r'(?i)"?sep=(.)"?\r?\n', text)  # Excel's own way to tell, in a line before the header
    separator = told[1] if told else _separator(path, text)
    records = _records(path, "\n" + text[told.end() :] if told else text, separator)
    line, header = next(records, (0, []))
    names = ["_".join(cell.casefold().split()) for cell in header]
    while names and not names[-1]:
        names.pop()
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise ValueError(
            f"{path}, line {line}: the column {', '.join(map(shortened, twice))} stands twice in the header; rename or delete one"
        )
    for line, cells in records:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise ValueError(
                f"{path}, line {line}: more cells than the header has; put cells with {SEPARATORS.get(separator, separator)} into double quotes"
            )
        yield f"line {line}", {name: cell for name, cell in zip(names, cells) if name}


def _separator(path: Path, text: str) -> str:
    """The one that cuts the header into most cells. Raises ValueError where two cut it alike."""
    counts = {}
    for separator in SEPARATORS:
        try:
            counts[separator] = len(next(_records(path, text, separator), (0, []))[1])
        except ValueError:
            counts[separator] = 0
    most = [separator for separator, count in counts.items() if count == max(counts.values())]
    if len(most) > 1 and counts[most[0]] > 1:
        raise ValueError(
            f"{path}, line 1: {' and '.join(SEPARATORS[separator] for separator in most)} cut the header into {counts[most[0]]} cells alike; put names with commas into double quotes"
        )
    return most[0]


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of every record with a cell that is not empty."""
    csv.field_size_limit(sys.maxsize)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        first = records.line_num + 1
        try:
            cells = next(records, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {first}: not valid CSV ({error}); mend or delete the line") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield first, cells


def _read_json(path: Path) -> Placed:
    """The entries of a list, or an object a line, whichever the file holds."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        entries = parse_json(text, str(path), "mend the file")
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: expected a JSON list of objects")
        return ((f"entry {number}", entry) for number, entry in enumerate(entries, start=1))
    lines = [
        (number, line)
        for number, part in enumerate(re.split(r"\r\n|\n|\r", text), start=1)
        if (line := part.strip("\ufeff \t"))
    ]
    if path.suffix.lower() == ".json" and lines and (len(lines) == 1 or not lines[0][1].endswith("}")):
        raise ValueError(
            f"{path}: expected a JSON list of objects, as pandas writes with orient='records', or an object a line"
        )
    return ((f"line {number}", parse_object(line, f"{path}, line {number}")) for number, line in lines)


def _read_parquet(path: Path) -> Placed:
    import pyarrow.parquet

    try:
        entries = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not valid Parquet ({error}); write it anew") from None
    return ((f"row {number}", entry) for number, entry in enumerate(entries, start=1))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark. Raises ValueError naming the line that is
    neither."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8, in Excel as CSV UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL character, so it is no UTF-8 text; save it as UTF-8, in Excel as CSV UTF-8"
        )
    return text


READERS = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
REMEDIES = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "save the sheet as CSV UTF-8"),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst"), "unpack it first"),
}
