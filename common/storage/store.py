"""Append-only JSON lines that survive a crash: every finished record is in the file before the next one is begun."""

from __future__ import annotations

import fcntl
import json
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.storage.lines import Records, RecordType, line_at, numbered_lines, refuse_repeats
from common.storage.offsets import Offsets

SYNC_EVERY = 1.0  # seconds; a sync takes up to 30 ms on a busy disk, and an endpoint answers faster than that


class JsonlStore:
    """One JSON object a line, appended one at a time and found again by `id`.

    A record outlives a kill of the process from the moment `append` returns, and a power cut from the next sync on, at
    most `SYNC_EVERY` seconds of appending later.

    Opening takes a lock until `close` or the end of the `with` block (a later `with` opens it again) and repairs a torn
    tail: a last line without its newline was never finished, is cut off and will be made again. Memory is that of
    `Offsets`, bytes written per record O(record).

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
        self._real = self.path.resolve()  # another run may point the link of `claim` elsewhere
        self._offsets = Offsets()
        self._end = 0  # of what the offsets cover
        self._synced = time.monotonic()
        self._open()

    def _open(self) -> None:
        if self.read_only:
            self._file = open(self._real, "rb")
        else:
            self._real.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._real, "a+b", buffering=0)
        try:
            if not self.read_only:
                self._lock()
                self._cut_torn_tail()
            if self._file.seek(0, os.SEEK_END) != self._end:
                self._offsets = Offsets()
                for offset, fields in self._records():
                    self._offsets[fields["id"]] = offset
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
            self._real, (self._offsets[record_id] for record_id in ids if record_id in self._offsets), record_type
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
        return line_at(self._real, self._offsets[record_id])

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
        for number, offset, fields in numbered_lines(self._real):
            if not isinstance(fields.get("id"), str):
                raise ValueError(f"{self.path}, line {number}: the record has no id, which is a text")
            yield offset, fields


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
                f"{len(self)} of {asked} failed{f', more than {limit:.0%}' if over else ''}; the reasons are in {self.path}, and the next run tries them again; failed_limit is the share that may fail"
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
        todo = array("q", (i for i, record_id in enumerate(ids) if record_id not in store))
        progress(steps * (len(ids) - len(todo)))
        for start in range(0, len(todo), batch_size):
            for made in make([records[i] for i in todo[start : start + batch_size]]):
                (failed if isinstance(made, dict) else store).append(made)
        failed.check(len(ids), failed_limit)
        return store.records(ids, record_type)
