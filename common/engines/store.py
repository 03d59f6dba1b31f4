"""Results at an fsspec URL: each folder of results is one archive there, copied in whole and out whole.

An archive `<folder>.tar` replaces the one before it in one move, so that readers find the old state or the new one.
Files go into it in the order in which they were written, and marks are written last: a copy of a folder that is still
being written holds no mark whose files it lacks. An archive keeps symbolic links, which object stores do not have.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import FileLock

from common.runtime import ROOT
from common.schema import fingerprint
from common.storage import write_json

SAVE_EVERY = 60.0
"""Seconds between two copies of what a task in progress has made."""


class Place(NamedTuple):
    """One folder of results. name: of its archive, a path from the project root; files: what belongs to it now, files
    and folders below the project root, whether or not they are there."""

    name: str
    files: Callable[[], Iterable[Path]]


class OtherArchive(ValueError):
    """The archive of a place is another one than was last copied in or out, so that copying out would lose it."""


class Store:
    """Places at an fsspec URL such as `s3://bucket/results`. Raises ValueError in one sentence for a URL that cannot be
    written to.

    What is here of a place is replaced by its archive only where that is another one than was last copied in or out.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        try:
            self.system, self.folder = url_to_fs(url)
            self.system.makedirs(self.folder, exist_ok=True)
            self.system.pipe_file(probe := f"{self.folder}/{uuid4().hex}.part", b"")
            self.system.rm_file(probe)
        except Exception as error:  # every file system has its own
            raise ValueError(_refusal(url, error)) from None
        self.url = self.system.unstrip_protocol(self.folder)

    def __reduce__(self) -> tuple:
        return Store, (self.url,)

    def share(self, place: Place) -> None:
        """Before tasks run: copies out what is new here of a place, or what the store lost of it, and else in.

        Raises `OtherArchive` where something is new here and the archive is another one than was last copied in or
        out: one of the two would be lost."""
        with self._record(place) as record:
            there, new = self._key(place), [] if "begun" in record else _new(_content(place), record)
            if new:
                self._refuse_other(place, record, new)
            if not there:
                self._write(place, {})
        if new or not there:
            self.copy_out(place)
        self.copy_in(place)

    def copy_in(self, place: Place) -> None:
        """Makes what is here of a place what the store holds of it; nothing where that is the same or there is none."""
        with self._record(place) as record:
            if not (key := self._key(place)):
                return
            known = [ROOT / name for name, *_ in record.get("content", [])]
            if key == record.get("archive") and all(map(os.path.lexists, known)):
                return
            self._write(place, {"begun": key})  # a copy that is cut short is made again
            for path in place.files():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            with TemporaryDirectory(prefix="rdpo-") as scratch:
                self.system.get_file(self._archive(place), copy := f"{scratch}/copy.tar")
                with tarfile.open(copy) as packed:
                    packed.extractall(ROOT, filter="data")
            self._write(place, {"archive": key, "content": _content(place)})

    def copy_out(self, place: Place) -> None:
        """Makes the archive of a place what is here of it, unless nothing has changed since the last copy.

        Raises `OtherArchive` where the archive is another one than was last copied in or out: a task on a node that was
        wrongly taken for lost must not replace what its retry made."""
        archive = self._archive(place)
        with self._record(place) as record:
            if not (content := _content(place)) or content == record.get("content"):
                return
            self._refuse_other(place, record, new := _new(content, record))
            with TemporaryDirectory(prefix="rdpo-") as scratch:
                with tarfile.open(copy := f"{scratch}/copy.tar", "w") as packed:
                    for name, *_ in content:
                        with suppress(FileNotFoundError):  # replaced or removed since it was listed
                            packed.add(ROOT / name, name)
                self.system.makedirs(archive.rpartition("/")[0], exist_ok=True)
                part = f"{archive}.{uuid4().hex}.part"
                try:
                    self.system.put_file(copy, part)
                    self._refuse_other(place, record, new)  # again, since a large archive takes minutes
                    self._move(place, record, part)
                except BaseException:
                    with suppress(Exception):
                        self.system.rm_file(part)
                    raise
            self._write(place, {"archive": self._key(place), "content": content})

    @contextmanager
    def kept(self, places: Sequence[Place]) -> Iterator[None]:
        """Copies places in, and out every `SAVE_EVERY` seconds and at the end, whether or not that is an error.

        A copy that fails is made at the next turn, which is said once. Raises OSError where the last one fails, with
        the machine that has the results."""
        for place in places:
            self.copy_in(place)
        ended = threading.Event()

        def save() -> None:
            pause, told = SAVE_EVERY, False
            while not ended.wait(pause):
                start = time.monotonic()
                for place in places:
                    try:
                        self.copy_out(place)
                    except Exception as error:
                        if not told:
                            print(f"{_refusal(self.url, error)}; tried again every {SAVE_EVERY:g} s", flush=True)
                        told = True
                pause = max(SAVE_EVERY, 10 * (time.monotonic() - start))  # at most a tenth of the time goes into copies

        saver = threading.Thread(target=save, daemon=True)
        saver.start()
        try:
            yield
        finally:
            ended.set()
            saver.join()
            try:
                for place in places:
                    self.copy_out(place)
            except Exception as error:
                where = f"{', '.join(place.name for place in places)} on {socket.gethostname()}"
                raise OSError(f"{_refusal(self.url, error)}; the results are in {where}") from error

    def _archive(self, place: Place) -> str:
        return f"{self.folder}/{place.name}.tar"

    def _key(self, place: Place) -> str | None:
        """What tells the archive of a place from any other; None where there is none."""
        archive = self._archive(place)
        self.system.invalidate_cache()
        return self.system.ukey(archive) if self.system.exists(archive) else None

    def _refuse_other(self, place: Place, record: dict[str, Any], new: Sequence[str]) -> None:
        """Raises `OtherArchive`. new: what is here of the place and was neither copied in nor out."""
        if self._key(place) not in (None, record.get("archive")):
            lacked = f", and lacks what is here, such as {new[0]}" if new else ""
            raise OtherArchive(
                f"--store {self.url}: holds results of {place.name} from elsewhere{lacked}; move {ROOT / place.name} away, or give another --store"
            )

    def _move(self, place: Place, record: dict[str, Any], part: str) -> None:
        try:
            self.system.mv(part, self._archive(place))
        except Exception:  # object stores copy and then remove: where the second failed, the archive is ours
            self._write(place, record | {"archive": self._key(place)})
            raise

    def _note(self, place: Place) -> Path:
        return ROOT / "runs" / ".store" / f"{fingerprint(self.url, place.name)}.json"

    @contextmanager
    def _record(self, place: Place) -> Iterator[dict[str, Any]]:
        """What was last copied of a place, while no other process of this node copies it."""
        (note := self._note(place)).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(note.with_suffix(".lock")):
            yield json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}

    def _write(self, place: Place, record: dict[str, Any]) -> None:
        write_json(self._note(place), record)


def _refusal(url: str, error: Exception) -> str:
    """Why a store takes nothing, in one line."""
    if isinstance(error, OtherArchive):
        return str(error)
    return f"--store {url}: cannot be written to ({' '.join(str(error).split())})"


def _new(content: list[list[Any]], record: dict[str, Any]) -> list[str]:
    """Paths of the files of a place that are not as they were last copied."""
    known = set(map(tuple, record.get("content", [])))
    return [one[0] for one in content if tuple(one) not in known]


def _content(place: Place) -> list[list[Any]]:
    """[path from the project root, bytes, time of writing] of every file and link of a place, in the order of writing."""
    found = []
    for top in place.files():
        for path in [top, *sorted(top.rglob("*"))] if top.is_dir() else [top]:
            with suppress(FileNotFoundError):
                if path.is_symlink() or not path.is_dir():
                    about = path.lstat()
                    found.append([path.relative_to(ROOT).as_posix(), about.st_size, about.st_mtime_ns])
    return sorted(found, key=lambda one: one[2])
