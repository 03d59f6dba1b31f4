"""Append-only JSON lines that survive a crash: every finished record is in the file before the next one is begun."""

from __future__ import annotations

import fcntl
import json
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from common.schema import fingerprint

SYNC_EVERY = 1.0  # seconds; a sync takes up to 30 ms on a busy disk, and an endpoint answers faster than that

RecordType = TypeVar("RecordType", bound=BaseModel)


class JsonlStore:
    """One JSON object a line, appended one at a time and found again by `id`.

    A record outlives a kill of the process from the moment `append` returns, and a power cut from the next sync on, at
    most `SYNC_EVERY` seconds of appending later.

    Opening takes a lock until `close` or the end of the `with` block (a later `with` opens it again) and repairs a torn
    tail: a last line without its newline was never finished, is cut off and will be made again. Memory is O(ids), bytes
    written per record O(record).

    Args:
        read_only: the file is somebody's own: no lock, no repair, no byte changed; a last line without its newline is
            read.
        wait: until no other process has the file open, for files that are open for a moment only.

    Raises:
        BlockingIOError: another process has the file open.
        ValueError: a complete line is not JSON or has no `id`; names file and line.
    """

    def __init__(self, path: str | Path, read_only: bool = False, wait: bool = False):
        self.path, self.read_only, self.wait = Path(path), read_only, wait
        self._offsets: dict[str, int] = {}
        self._end = 0  # of what the offsets cover
        self._synced = time.monotonic()
        self._open()

    def _open(self) -> None:
        if self.read_only:
            self._file = open(self.path, "rb")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)
        try:
            if not self.read_only:
                self._lock()
                self._cut_torn_tail()
            if self._file.seek(0, os.SEEK_END) != self._end:
                self._offsets = {fields["id"]: offset for offset, fields in self._records()}
                self._end = self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()  # or the lock would outlive the failure
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BlockingIOError(
                f"{self.path} is being written by another process; wait for it or give another file"
            ) from None

    def append(self, record: BaseModel | dict[str, Any]) -> None:
        """Writes one record. Raises ValueError when its id is already there."""
        fields = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
        if fields["id"] in self._offsets:
            raise ValueError(f"{self.path} already holds a record with id {fields['id']!r}")
        line = json.dumps(fields, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            if time.monotonic() - self._synced > SYNC_EVERY:
                self._sync()
        except OSError:
            self._file.truncate(end)  # a full disk leaves no half line behind
            raise
        self._offsets[fields["id"]] = end
        self._end = self._file.seek(0, os.SEEK_END)

    def load(self) -> list[dict[str, Any]]:
        """Every record, in the order of writing."""
        return [fields for _, fields in self._records()]

    def records(self, ids: Iterable[str], record_type: type[RecordType]) -> Records[RecordType]:
        """The records of those ids that are here, as a sequence that outlives the store and holds none of their text."""
        return Records(
            self.path, (self._offsets[record_id] for record_id in ids if record_id in self._offsets), record_type
        )

    def close(self) -> None:
        if not self._file.closed:
            if not self.read_only:
                self._sync()
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __getitem__(self, record_id: str) -> dict[str, Any]:
        """The record of this id, read from the file. Raises KeyError."""
        return _line_at(self.path, self._offsets[record_id])

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __enter__(self) -> JsonlStore:
        if self._file.closed:
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_tail(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            step = min(65536, position)
            self._file.seek(position - step)
            newline = self._file.read(step).rfind(b"\n")
            if newline >= 0:
                position = position - step + newline + 1
                break
            position -= step
        if position < end:
            self._file.truncate(position)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, offset, fields in _read(self.path):
            if not isinstance(fields.get("id"), str):
                raise ValueError(f"{self.path}, line {number}: the record has no id, which is a text")
            yield offset, fields


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
        return self.record_type(**_line_at(self.path, self.offsets[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def _line_at(path: Path, offset: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        file.seek(offset)
        return json.loads(file.readline().splitlines()[0])


def read_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a JSONL file. Raises ValueError naming file and line."""
    return ((number, fields) for number, _, fields in _read(path))


def _read(path: str | Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, offset in bytes, object) of every line that is not blank, whether it ends in LF, CRLF or, as on old
    Macs, CR, and whether or not it begins with a byte order mark."""
    number = offset = 0
    with open(path, "rb") as file:
        for chunk in file:
            for line in chunk.splitlines(keepends=True):
                number += 1
                try:
                    text = line.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
                    ) from None
                if text.strip():
                    yield number, offset, parse_object(text, f"{path}, line {number}")
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
        return json.loads(text, object_pairs_hook=_without_repeats)
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


def refuse_repeats(ids: Iterable[str], what: str) -> None:
    """Raises ValueError naming the ids that stand twice, before anything is asked for them."""
    repeated = [record_id for record_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{what}: {len(repeated)} ids stand more than once ({', '.join(map(repr, repeated[:3]))}); every id must be its own"
        )


class FailedStore(JsonlStore):
    """What this run could not finish, in `failed_<name>` beside the store of what it did: `id` and why, a line each.

    Every run begins a new one, since it tries again whatever is not finished; one that stays empty is removed.
    """

    def __init__(self, finished: str | Path):
        path = Path(finished).with_name(f"failed_{Path(finished).name}")
        path.unlink(missing_ok=True)
        super().__init__(path)

    def close(self) -> None:
        super().close()
        if not len(self):
            self.path.unlink(missing_ok=True)

    def check(self, asked: int, limit: float) -> None:
        """Raises RuntimeError when more than the share `limit` of what was asked for has failed, or all of it under any
        limit."""
        over = len(self) > limit * asked
        if over or len(self) == asked > 0:
            raise RuntimeError(
                f"{len(self)} of {asked} failed{f', more than {limit:.0%}' if over else ''}; the reasons are in {self.path}, and the next run tries them again"
            )


def make_missing(
    records: Sequence[BaseModel], make: Callable[[list], Iterable[RecordType | dict[str, str]]], path: str | Path, record_type: type[RecordType],
    what: str, batch_size: int, failed_limit: float, progress: Callable[[int], object], steps: int = 1,
) -> Records[RecordType]:  # fmt: skip
    """Makes what `path` does not hold yet of `records`, and returns what it holds of them, in their order and read as
    it is looked at.

    Everything made is in the file before the next is asked of `make`; a kill loses what `make` holds back, at most one
    batch. What failed is in `FailedStore`, and the next run tries it again.

    Args:
        records: with an `id`, under which what is made of them is found again; only those of one batch are held at
            once.
        make: called with a batch; yields for each of its records what was made of it, or {"id": ..., "reason": ...}
            where that failed.
        what: a name for the records in messages.
        progress: called here with `steps` for each record that was finished before; for the others `make` calls it.

    Raises:
        ValueError: an id stands twice in `records`; nothing was asked.
        RuntimeError: more than the share `failed_limit` of the records failed, or all of them.
    """
    ids = [record.id for record in records]
    refuse_repeats(ids, what)
    with JsonlStore(path) as store, FailedStore(path) as failed:
        todo = [i for i, record_id in enumerate(ids) if record_id not in store]
        progress(steps * (len(ids) - len(todo)))
        for start in range(0, len(todo), batch_size):
            for made in make([records[i] for i in todo[start : start + batch_size]]):
                (failed if isinstance(made, dict) else store).append(made)
        failed.check(len(ids), failed_limit)
        return store.records(ids, record_type)


def read_records(path: str | Path, record_type: type[RecordType]) -> Records[RecordType]:
    """Every line as a checked record. Raises ValueError naming file, line and field; also for an id that stands twice."""
    offsets, lines = [], {}
    for number, offset, fields in _read(path):
        check_characters(fields, f"{path}, line {number}")
        try:
            record_type(**fields)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise ValueError(f"{path}, line {number}: {problems}") from None
        if (before := lines.setdefault(fields.get("id", number), number)) != number:
            raise ValueError(
                f"{path}, line {number}: the id {fields['id']!r} stands in line {before} too; every id must be its own"
            )
        offsets.append(offset)
    if not offsets:
        raise ValueError(f"{path} holds no records")
    return Records(path, offsets, record_type)


def write_whole(path: str | Path, text: str) -> Path:
    """Writes a text file so that a reader finds the old one or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Writes a JSON file as `write_whole` does: a line for every key of an object and every item of a list, which is
    not divided further. Numbers of one list share a line. Raises TypeError for a key that JSON cannot hold."""
    return write_whole(path, _laid_out(json.loads(json.dumps(content, default=str))) + "\n")


def _laid_out(content: Any, margin: str = "\n") -> str:
    inner = margin + "  "
    if isinstance(content, dict) and content:
        return (
            "{"
            + ",".join(f"{inner}{_one_line(key)}: {_laid_out(value, inner)}" for key, value in content.items())
            + margin
            + "}"
        )
    if isinstance(content, list) and any(isinstance(item, (dict, list, str)) for item in content):
        return "[" + ",".join(inner + _one_line(item) for item in content) + margin + "]"
    return _one_line(content)


def _one_line(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)


def claim(path: str | Path, made_of: dict[str, Any]) -> Path:
    """Makes `path` the file that holds only records made in this one way, and returns it.

    Each `made_of` (teacher, prompts, sampling, ...) has a file of its own beside `path`, named by its hash; `path` is a
    link to the one in use. So nothing that was paid for is ever moved or deleted, a kill at any moment loses nothing,
    and earlier records are there again when their settings are. What changed is printed.

    Raises FileExistsError when `path` is an ordinary file, whose making is unknown.
    """
    path = Path(path)
    if path.exists() and not path.is_symlink():
        raise FileExistsError(
            f"{path} was not made here, so nobody knows how its records were made; move it or give another folder"
        )
    made_of = json.loads(json.dumps(made_of, default=str))
    own = path.with_name(f"{path.stem}-{fingerprint(made_of)}{path.suffix}")
    before = _read_note(_note(path.readlink(), path)) if path.is_symlink() else made_of
    if before != made_of:
        changed = sorted(key for key in before.keys() | made_of.keys() if before.get(key) != made_of.get(key))
        print(f"{path.name} was made with other settings ({', '.join(changed)}) and is set aside", flush=True)
    write_json(_note(own, path), made_of)
    link = path.with_name(path.name + ".part")
    link.unlink(missing_ok=True)
    link.symlink_to(own.name)
    link.replace(path)
    return path


def _note(own: Path, path: Path) -> Path:
    return path.with_name(own.name).with_suffix(".made_of.json")


def _read_note(note: Path) -> dict[str, Any]:
    """What a note says; nothing where a power cut left none, or a part of it."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> Path:
    """Writes rows as JSON lines in one go, for files that nobody resumes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf-8")
    return path
