"""How far a run is: its notebooks, rows, remaining time and money, read from the files that it writes.

rdpo status runs/small
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from common.command import CommandParser
from common.runtime import errors_in_a_line, nearest, resolve
from common.storage import write_json

SUFFIX = ".status.json"
PROGRESS = re.compile(r"(?P<what>[^\r\n]+): (?P<done>\d+)/(?P<total>\d+), \d+ s, about (?P<left>\d+) s left.*")
"""A line of `runtime.Progress`."""
STATES = ("done", "running", "killed", "failed", "waiting")


def note_state(notebook: Path, state: str, reason: str = "") -> None:
    """Writes the state of an executed notebook, one of `STATES` but killed, to `<notebook>.status.json`, for whoever
    watches."""
    now = {"state": state, "reason": reason, "since": time.time(), "process": os.getpid(), "host": platform.node()}
    with suppress(OSError):  # a full disk or a missing folder shows where the notebook itself is written
        write_json(notebook.with_suffix(SUFFIX), now)


class NotebookStatus(NamedTuple):
    """name: from the run's folder on. seconds: since the state began. said: the last progress line of its log, or why it
    failed. left: seconds until its rows are done or, before the first row, what it does now; None where it has not said."""

    name: str
    state: str
    seconds: float
    rows: str
    said: str
    left: float | None

    @property
    def line(self) -> str:
        for_how_long = f" for {duration(self.seconds)}" if self.state == "running" else ""
        left = f", about {duration(self.left)} left" if self.state == "running" and self.left is not None else ""
        rows = f", rows {self.rows}" if self.rows else ""
        return f"{self.name}: {self.state}{for_how_long}{rows}{left}{f' ({self.said})' if self.said else ''}"


def notebooks(folder: Path) -> Iterator[NotebookStatus]:
    """Every notebook that `common.batch` runs or ran below the folder, by name, which is their order too."""
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        noted = json.loads(path.read_text(encoding="utf-8"))
        notebook = path.with_name(path.name.removesuffix(SUFFIX))
        state, log = noted["state"], notebook.with_suffix(".log")
        if state in ("running", "waiting") and noted["host"] == platform.node() and not _alive(noted["process"]):
            state = "killed"
        lines = log.read_text(encoding="utf-8", errors="replace") if log.exists() and state != "waiting" else ""
        found = list(PROGRESS.finditer(lines))
        rows = next((line for line in reversed(found) if line["what"] == "rows"), None)
        last = (rows or found[-1]) if found else None
        said = noted["reason"] or (found[-1][0] if found and state == "running" else "")
        yield NotebookStatus(
            notebook.relative_to(folder).as_posix(), state, time.time() - noted["since"],
            f"{rows['done']} of {rows['total']}" if rows else "", said, float(last["left"]) if last else None,
        )  # fmt: skip


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is another user's
    return True


PARTS = ("round-", "step-", "warm-up-", "adapted", "paraphraser", "tuning")
"""How folders of trainings begin that are a part of a row, or none."""


def row_counts(folder: Path) -> Counter[str]:
    """How many rows below the folder are done, and how many are trained and not measured yet."""
    done = {path.parent for path in folder.rglob("metrics.json")}
    trained = {path.parent for path in folder.rglob("training.json")}
    trained = {
        place for place in trained if not any(part.startswith(PARTS) for part in place.relative_to(folder).parts)
    }
    return Counter(done=len(done), trained=len(trained - done))


def dollars(folder: Path) -> float:
    """What the last run of each finished step below the folder paid, by the manifests."""
    manifests = (json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("*.manifest.json"))
    return sum(_dollars(paid) for found in manifests for name, paid in found.items() if name.startswith("paid"))


def _dollars(paid: Any) -> float:
    if not isinstance(paid, dict):
        return 0.0
    return sum(value if name == "dollars" else _dollars(value) for name, value in paid.items())


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def report(folder: str | Path) -> str:
    """A line for each notebook, and one of sums. Raises FileNotFoundError for a folder that is not there."""
    folder = resolve(folder) if resolve(folder).is_dir() else Path(folder)
    if not folder.is_dir():
        near = nearest(folder.name, [path.name for path in folder.parent.glob("*")])
        raise FileNotFoundError(f"no folder {folder}{near}; give the folder of a run, such as runs/small")
    found, rows = list(notebooks(folder)), row_counts(folder)
    states = Counter(one.state for one in found)
    left = [one.left for one in found if one.state == "running" and one.left is not None]
    sums = [f"rows: {rows['done']} done" + (f", {rows['trained']} trained and not measured" if rows["trained"] else "")]
    if found:
        sums.append("notebooks: " + ", ".join(f"{states[state]} {state}" for state in STATES if states[state]))
    if left:
        sums.append(f"about {duration(max(left))} until what runs is done")
    sums.append(f"{dollars(folder):.2f} dollars paid by the last runs of finished steps")
    return "\n".join([*(one.line for one in found), "; ".join(sums)])


def parser() -> CommandParser:
    """The arguments of `rdpo status`."""
    command = CommandParser("status", __doc__)
    command.add_argument("folder", help="of a run, such as runs/small or runs/small/safety")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    with errors_in_a_line("status"):
        print(report(asked.folder))


if __name__ == "__main__":
    main()
