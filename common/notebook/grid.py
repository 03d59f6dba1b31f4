"""A grid of notebooks, side by side: each experiment's in order, GPUs in turns, a live table, a report of what failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import Manager
from pathlib import Path
from queue import Queue
from tempfile import gettempdir
from typing import Any, NamedTuple

from common.data.counterfactual import PAIRS, variant_named
from common.engines import Needs, Place, RayPool
from common.notebook.execute import execute
from common.runtime import ROOT, resolve
from common.status import SUFFIX, note_state

LOADED = ("local:", "reward:", "yes_no:")
"""How teachers and judges begin that are loaded in the notebook itself."""


class Step(NamedTuple):
    """One notebook of the grid with the parameters it is given."""

    experiment: str
    stage: str
    given: dict[str, Any]
    pairs: str = "self_critique"
    shard: str = ""

    @property
    def name(self) -> str:
        about = ", ".join([*([self.pairs] if variant_named(self.pairs) else []), *([self.shard] if self.shard else [])])
        return self.notebook + (f" ({about})" if about else "")

    @property
    def notebook(self) -> str:
        return f"{self.experiment}/{self.stage}.ipynb"

    @property
    def executed(self) -> Path:
        return resolve(self.given["output"]) / f"{self.stage}.ipynb"

    @property
    def log(self) -> Path:
        return self.executed.with_suffix(".log")

    @property
    def uses_gpu(self) -> bool:
        return self.stage == "train_rdpo" or any(
            str(self.given.get(name, "")).startswith(LOADED) for name in ("teacher", "respond_with", "judge")
        )

    def failed_before(self) -> bool:
        return self.executed.exists() and not self.executed.with_suffix(".done.json").exists()


class Outcome(NamedTuple):
    """How a notebook ended; `failure` is its report, "" for none."""

    state: str
    failure: str = ""


def place_of(step: Step) -> Place:
    """Where the notebooks of one experiment and kind of pairs lie. Raises ValueError for one outside the project."""
    folder = step.executed.parent
    if not folder.is_relative_to(ROOT):
        raise ValueError(f"output = {step.given['output']}: with --store, results lie below {ROOT}")
    return Place(folder.relative_to(ROOT).as_posix(), partial(_content, folder))


def _content(folder: Path) -> list[Path]:
    """What is in a folder but for the folders of other kinds of pairs and of shards, and what `Board` notes here."""
    there = folder.iterdir() if folder.exists() else []
    return [
        path for path in there if path.name not in PAIRS and not path.match("shard-*") and not path.match(f"*{SUFFIX}")
    ]


def needs_of_step(run: Any, step: Step, threads: int, *_: Any) -> Needs:
    return Needs(threads, int(step.uses_gpu), map(place_of, [step]))


def run_step(step: Step, threads: int, gpus: Queue | None) -> Outcome:
    """Runs one notebook in this process, unless it is finished."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    gpu = gpus.get() if gpus and step.uses_gpu else None
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        step.executed.parent.mkdir(parents=True, exist_ok=True)
        ran = execute(step.notebook, step.executed, step.given, log=step.log)
        return Outcome("done" if ran else "finished before with the same code, data and parameters, reused")
    except Exception as error:
        return _failed(step, error)
    finally:
        if gpu is not None:
            gpus.put(gpu)


def _failed(step: Step, error: Exception) -> Outcome:
    cell = getattr(error, "exec_count", None)
    reason = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    return Outcome("FAILED", f"{step.name}, cell {cell}, parameters {step.given}: {reason} (see {step.executed})")


LONGEST_FOLDER = 70
"""Bytes in the name of the folder for temporary files: below it lie sockets, whose whole name may have a little over a
hundred."""


def threads_each(jobs: int) -> int:
    """The threads of each of `jobs` notebooks side by side: its share of the cores, at most the user's OMP_NUM_THREADS.

    Raises ValueError, with what to set, where no grid can run: fewer than one job, no number of threads, or too long a
    name of the folder for temporary files.
    """
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least one notebook must run at a time")
    if len(os.fsencode(gettempdir())) > LONGEST_FOLDER:
        raise ValueError(
            f"the folder for temporary files, {gettempdir()}, has too long a name for the sockets of notebooks; set TMPDIR to one of at most {LONGEST_FOLDER} bytes, such as /tmp"
        )
    cores, allowed = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if allowed and not allowed.isdecimal():
        raise ValueError(f"OMP_NUM_THREADS = {allowed!r} is no number of threads; set one, or unset it")
    return max(1, min(int(allowed or cores), cores // jobs))


def run_grid(grid: dict[str, list[Step]], jobs: int, cluster: RayPool | None = None) -> list[str]:
    """Runs the steps of every experiment in order, or of every shard of one, `jobs` notebooks side by side, on this
    machine or a cluster; one ends at its first failure and the others go on. Returns the reports of all failures. Raises ValueError as
    `threads_each` does."""
    waiting, running, failures = {name: list(steps) for name, steps in grid.items()}, {}, []
    threads = cluster.cpus_each(jobs) if cluster else threads_each(jobs)
    with Manager() as manager, cluster or ProcessPoolExecutor(max_workers=jobs) as pool, Board(grid) as board:
        gpus = manager.Queue() if (devices := [] if cluster else _gpus()) else None
        for device in devices:
            gpus.put(device)
        while running or any(waiting.values()):
            busy = {name for name, _ in running.values()}
            ready = [name for name, steps in waiting.items() if steps and name not in busy]
            for name in ready[: jobs - len(running)]:
                step = waiting[name].pop(0)
                running[pool.submit(run_step, step, threads, gpus)] = name, step
                board.begin(step)
            for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                name, step = running.pop(future)
                try:
                    outcome = future.result()
                except Exception as error:  # of the pool: a lost process, results that could not be stored
                    outcome = _failed(step, getattr(error, "cause", error))  # Ray wraps it
                board.end(step, outcome)
                if outcome.failure:
                    failures.append(outcome.failure)
                    waiting[name] = []
            board.refresh()
    return failures


def _gpus() -> list[str]:
    """The GPUs this process may use, asked of the driver: a process that asks torch holds memory on them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    asked = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.split() if asked.returncode == 0 else []


class Board:
    """What runs now: a live table in a terminal; elsewhere a plain line when a notebook begins, ends, or says something
    new. States are noted on disk too, for `common.status`."""

    def __init__(self, grid: dict[str, list[Step]], every: float = 10.0):
        from rich.console import Console
        from rich.live import Live

        self.grid, self.every, self.states, self.said = grid, every, {}, {}
        self.started: dict[str, float] = {}
        self.lines: dict[str, str] = {}
        console = Console()
        self.live = Live(self._table(), console=console, refresh_per_second=1) if console.is_terminal else None

    def __enter__(self) -> Board:
        for step in [step for steps in self.grid.values() for step in steps]:
            note_state(step.executed, "waiting")
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.refresh()
        if self.live:
            self.live.__exit__(*error)

    def begin(self, step: Step) -> None:
        self.started[step.name] = self.said[step.name] = time.perf_counter()
        note_state(step.executed, "running")
        self._say(step, "running")

    def end(self, step: Step, outcome: Outcome) -> None:
        seconds = time.perf_counter() - self.started.pop(step.name)
        reason = outcome.failure.partition(f"{step.given}: ")[2]
        note_state(step.executed, "failed" if outcome.failure else "done", reason)
        self._say(step, f"{outcome.state} in {seconds:.0f} s" if outcome.state == "done" else outcome.state)

    def refresh(self) -> None:
        if self.live:
            return self.live.update(self._table())
        for step in [step for steps in self.grid.values() for step in steps if step.name in self.started]:
            if (
                time.perf_counter() - self.said[step.name] > self.every
                and (line := _last_line(step.log))
                and line != self.lines.get(step.name)
            ):
                self.said[step.name], self.lines[step.name] = time.perf_counter(), line
                print(f"{step.name}: {line}", flush=True)

    def _say(self, step: Step, state: str) -> None:
        self.states[step.name] = state
        if not self.live:
            print(f"{step.name}: {state}", flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table("notebook", "state", "last line")
        for step in [step for steps in self.grid.values() for step in steps]:
            said = _last_line(step.log) if step.name in self.started else ""
            table.add_row(step.name, self.states.get(step.name, "waiting"), said)
        return table


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1][:120] if lines else ""
