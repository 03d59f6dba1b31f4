"""Files that are written whole, and the link to the one that was made in the way that is asked for."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.schema import fingerprint


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


def check_new(folder: str | Path) -> None:
    """Raises FileExistsError for a folder with files in it, and for a file."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; give a new folder, or delete it")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets its name once everything is written; a failure leaves nothing behind.

    Raises FileExistsError as `check_new` does, before anything is written, and OSError in one sentence where the disk
    is full.
    """
    folder = Path(folder)
    check_new(folder)
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    try:
        scratch.mkdir(parents=True)
        yield scratch
        scratch.replace(folder)
    except Exception as error:
        # safetensors raises its own error, with the number of the system's in its text
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
            raise OSError(
                f"the disk of {folder} is full, and nothing is left there; free some space, or give a folder on another disk"
            ) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> Path:
    """Writes rows as JSON lines as `write_whole` does, for files that nobody adds to."""
    return write_whole(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


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
    before = how_made(path) if path.is_symlink() else made_of
    if before != made_of:
        changed = sorted(key for key in before.keys() | made_of.keys() if before.get(key) != made_of.get(key))
        print(f"{path.name} was made with other settings ({', '.join(changed)}) and is set aside", flush=True)
    write_json(_beside(own, path), made_of)
    link = path.with_name(path.name + ".part")
    link.unlink(missing_ok=True)
    link.symlink_to(own.name)
    link.replace(path)
    return path


def how_made(path: Path) -> dict[str, Any]:
    """How the records of the file that a link of `claim` names were made; {} where no note says so. Raises ValueError for
    a file that is no link."""
    return read_note(note_of(path))


def note_of(path: Path) -> Path:
    """The note that `claim` wrote of the file that its link names. Raises ValueError for a file that is no link."""
    if not path.is_symlink():
        raise ValueError(f"{path} is no link any more; copy the folder with its links, with rsync -a or tar")
    return _beside(path.readlink(), path)


def _beside(own: Path, path: Path) -> Path:
    return path.with_name(own.name).with_suffix(".made_of.json")


def read_note(note: Path) -> dict[str, Any]:
    """What a note says; nothing where a power cut left none, or a part of it."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
