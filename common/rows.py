"""Rows of a local file or of a Hugging Face Hub dataset, each with its place, so that a message can name it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, StringConstraints, ValidationError

from common.run import resolve
from common.storage import read_lines

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A column that must hold words."""
RowType = TypeVar("RowType", bound=BaseModel)


class Row(NamedTuple):
    """One row of a source, and where it stands, for messages."""

    where: str
    fields: dict[str, Any]

    def read(self, row_type: type[RowType]) -> RowType:
        """The columns of `row_type`; others are not looked at. Raises ValueError naming place, column and what is needed."""
        try:
            return row_type.model_validate(self.fields)
        except ValidationError as error:
            problem = error.errors()[0]
            column = ".".join(map(str, problem["loc"]))
            needed = ", ".join(name for name, field in row_type.model_fields.items() if field.is_required())
            raise ValueError(f"{self.where}: column {column}: {problem['msg'].lower()}; every row needs {needed}") from None


def read_rows(source: str | Path, revision: str = "") -> list[Row]:
    """Every row of a local file, a Hub dataset `owner/name` (its split `train`), or a file in one, `owner/name/file`.

    Raises FileNotFoundError or ValueError naming file, line and remedy.
    """
    path, on_hub = resolve(source), re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/(.+))?", str(source))
    if path.is_file():
        rows = _read_file(path)
    elif on_hub is None or Path(on_hub[1]).suffix in READERS:
        raise FileNotFoundError(f"no file {path}; give a file, or a Hub dataset as owner/name or owner/name/file")
    elif not revision:
        raise ValueError(f"no file {path}; to take {source} from the Hub, give its `revision`, a commit, so that the prompts stay the same")
    else:
        rows = _read_hub(*on_hub.groups(), revision)
    if not rows:
        raise ValueError(f"{source} holds no rows; give a file with at least one")
    return rows


def _read_hub(name: str, file: str | None, revision: str) -> list[Row]:
    import datasets
    import huggingface_hub

    try:
        if file:
            found = huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision)
        else:
            found = datasets.load_dataset(name, split="train", revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        remedy = "check name, revision and network, or give a local file"
        raise FileNotFoundError(f"cannot take {name} at revision {revision} from the Hub ({reason}); {remedy}") from error
    return _read_file(Path(found)) if file else [Row(f"{name} at {revision}, row {number}", fields) for number, fields in enumerate(found, start=1)]


def _read_file(path: Path) -> list[Row]:
    if path.suffix not in READERS:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; give {', '.join(READERS)}")
    return [Row(f"{path}, {place}", fields) for place, fields in READERS[path.suffix](path)]


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    while True:
        first = lines.line_num + 1
        try:
            fields = next(lines, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {max(first, 2)}: not valid CSV ({error}); mend or delete the line") from None
        if fields is None:
            return
        if None in fields:
            raise ValueError(f"{path}, line {lines.line_num}: more cells than the header has; put cells with commas into double quotes")
        yield f"line {lines.line_num}", {name: cell for name, cell in fields.items() if cell is not None}


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend the file, or name it .jsonl if it holds one object a line") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: expected a JSON list of objects")
    return ((f"entry {number}", entry) for number, entry in enumerate(entries, start=1))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"line {number}", fields) for number, fields in read_lines(path))


READERS = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
