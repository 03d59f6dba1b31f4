"""JSON lines as they are read: every object with the line and the byte where it begins, and what is wrong with it."""

from __future__ import annotations

import json
from array import array
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from common.storage.offsets import Offsets

RecordType = TypeVar("RecordType", bound=BaseModel)


class Records(Sequence[RecordType]):
    """Checked records of a JSONL file, read from it each time they are looked at: eight bytes of memory a record.

    Items and slices are new objects every time: changing one changes nothing here. The file may grow, and the link that
    `claim` made may go elsewhere; what is in the file must stay.

    Args:
        offsets: where their lines begin, in bytes.
    """

    def __init__(self, path: str | Path, offsets: Iterable[int], record_type: type[RecordType]):
        self.path, self.offsets, self.record_type = Path(path).resolve(), array("q", offsets), record_type

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int | slice) -> RecordType | list[RecordType]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.record_type(**line_at(self.path, self.offsets[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def line_at(path: Path, offset: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        file.seek(offset)
        return json.loads(file.readline().splitlines()[0])


def read_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a JSONL file. Raises ValueError naming file and line."""
    return ((number, fields) for number, _, fields in numbered_lines(path))


def numbered_lines(path: str | Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, offset in bytes, object) of every line that is not blank, whether it ends in LF, CRLF or, as on old
    Macs, CR, and whether or not it begins with a byte order mark."""
    number, offset, name = 0, 0, str(path)
    with open(path, "rb") as file:
        for chunk in file:
            for line in chunk.splitlines(keepends=True) if b"\r" in chunk else [chunk]:
                number += 1
                try:
                    text = line.removeprefix(BOM_UTF8).decode()
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                    ) from None
                if text and not text.isspace():
                    yield number, offset, parse_object(text, f"{name}, line {number}")
                offset += len(line)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object of one line. Raises ValueError naming `where`, as `parse_json` does."""
    fields = parse_json(text, where, "mend or delete the line; each holds one object")
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return fields


def parse_json(text: str, where: str, remedy: str) -> Any:
    """What a JSON text holds. Raises ValueError naming `where` and `remedy`: no JSON, nested too deep for Python, a
    number of more digits than Python converts, a key that stands twice in one object, of which one value would be lost."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        reason = "brackets nested too deep"
    except ValueError as error:
        reason = str(error).partition(";")[0]
    raise ValueError(f"{where}: not valid JSON ({reason}); {remedy}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated[:40]!r} stands twice in the object that begins {str(pairs[0])[:60]}")
    return fields


def check_characters(fields: dict[str, Any], where: str) -> None:
    """Raises ValueError naming the field that holds half a character (one code of a surrogate pair, as JSON's escapes
    allow), which nothing can write, tokenize or hash."""
    for name, value in fields.items():
        try:
            f"{name}{value}".encode() if isinstance(value, str) else json.dumps(
                value, ensure_ascii=False, default=str
            ).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"{where}: {name!r} holds half a character ({half!r}); mend or delete it") from None


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def refuse_repeats(ids: Iterable[str], what: str) -> None:
    """Raises ValueError naming the ids that stand twice, before anything is asked for them."""
    seen, repeated = Offsets(), []
    for number, record_id in enumerate(ids):
        before = len(seen)
        seen[record_id] = number
        if len(seen) == before:
            repeated.append(record_id)
    repeated = list(dict.fromkeys(repeated))
    if repeated:
        raise ValueError(
            f"{what}: {len(repeated)} ids stand more than once ({', '.join(map(repr, repeated[:3]))}); every id must be its own"
        )


def read_records(path: str | Path, record_type: type[RecordType]) -> Records[RecordType]:
    """Every line as a checked record. Raises ValueError naming file, line and field; also for an id that stands twice."""
    offsets, lines = array("q"), Offsets()
    for number, offset, fields in numbered_lines(path):
        check_characters(fields, f"{path}, line {number}")
        try:
            record_type(**fields)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise ValueError(f"{path}, line {number}: {problems}") from None
        if "id" in fields:
            if fields["id"] in lines:
                raise ValueError(
                    f"{path}, line {number}: the id {fields['id']!r} stands in line {lines[fields['id']]} too; every id must be its own"
                )
            lines[fields["id"]] = number
        offsets.append(offset)
    if not offsets:
        raise ValueError(f"{path} holds no records")
    return Records(path, offsets, record_type)
