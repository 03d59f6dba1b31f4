"""The grid of notebooks, unattended: strict parameters, nothing run twice, a report of what failed.

    python -m common.batch PROFILE [--experiment NAME] [--stage NAME] [--seed N] [--method NAME] [--pairs KIND] [-p NAME VALUE]
                                   [--jobs N] [--dry-run] [--only-failed]

A profile is a folder `common/profiles/<profile>/` with one flat YAML file per kind of notebook, valid for
`papermill -f` as it stands, and where experiments differ a second one, `<stage>.<experiment>.yaml`. Executed notebooks go
to `runs/<profile>/<experiment>/<stage>.ipynb`, what they print to `<stage>.log` beside them; with other pairs than those of
self-critique to a folder of that name below, from which the tables take its rows too. Each job gets its share of the
CPU's threads; notebooks that use a GPU take turns on it.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import Manager
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import yaml

from common.counterfactual import PAIRS, variant_named
from common.notebook import checked_parameters, declared_parameters, execute, is_finished
from common.run import ROOT, resolve

STAGES = ("generate_data", "reward_score", "train_rdpo")
PROFILES = Path(__file__).parent / "profiles"


def experiments() -> list[str]:
    """Folders at the top level that hold all three notebooks."""
    return sorted(path.parent.name for path in ROOT.glob("*/generate_data.ipynb") if all((path.parent / f"{s}.ipynb").exists() for s in STAGES))


def profile_parameters(profile: str, experiment: str, stage: str) -> dict[str, Any]:
    """The parameters of a notebook in a profile. Raises ValueError naming the profiles there are."""
    path, own = (PROFILES / profile / f"{name}.yaml" for name in (stage, f"{stage}.{experiment}"))
    if not path.exists():
        there = ", ".join(sorted(folder.name for folder in PROFILES.iterdir()))
        raise ValueError(f"unknown profile {profile!r} for {stage}; there are {there}")
    return {name: value for file in (path, own) if file.exists() for name, value in yaml.safe_load(file.read_text(encoding="utf-8")).items()}


def stage_parameters(experiment: str, stage: str, profile: str, pairs: str = "self_critique") -> dict[str, Any]:
    """The profile's parameters of a stage, with the folder and the input of this experiment and kind of pairs."""
    output = f"runs/{profile}/{experiment}" + (f"/{pairs}" if variant_named(pairs) else "")
    inputs = {"generate_data": {"pairs": pairs}, "reward_score": {"pairs_file": f"{output}/pairs.jsonl"}, "train_rdpo": {"pairs_file": f"{output}/scored.jsonl"}}
    return {**profile_parameters(profile, experiment, stage), "experiment": experiment, "profile": profile, "output": output, **inputs[stage]}


class Step(NamedTuple):
    """One notebook of the grid with the parameters it is given."""

    experiment: str
    stage: str
    given: dict[str, Any]
    pairs: str = "self_critique"

    @property
    def name(self) -> str:
        return self.notebook + (f" ({self.pairs})" if variant_named(self.pairs) else "")

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
        return self.stage == "train_rdpo" or any(str(self.given.get(name, "")).startswith("local:") for name in ("teacher", "judge"))

    def failed_before(self) -> bool:
        return self.executed.exists() and not self.executed.with_suffix(".done.json").exists()


def steps_of(experiment: str, stages: Sequence[str], profile: str, overrides: dict[str, Any], kinds: Sequence[str] = PAIRS[:1]) -> list[Step]:
    """The notebooks of one experiment in order, for one kind of pairs after the other; each is given those overrides that it declares."""
    steps = []
    for pairs, stage in ((pairs, stage) for pairs in kinds for stage in stages):
        declared = declared_parameters(f"{experiment}/{stage}.ipynb")
        mine = {name: value for name, value in overrides.items() if name in declared}
        steps.append(Step(experiment, stage, {**stage_parameters(experiment, stage, profile, pairs), **mine}, pairs))
    return steps


class Outcome(NamedTuple):
    """How a notebook ended; `failure` is its report, "" for none."""

    state: str
    failure: str = ""


def run_step(step: Step, threads: int, gpus: Queue | None) -> Outcome:
    """Runs one notebook in this process, unless it is finished."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    step.executed.parent.mkdir(parents=True, exist_ok=True)
    gpu = gpus.get() if gpus and step.uses_gpu else None
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        ran = execute(step.notebook, step.executed, step.given, log=step.log)
        return Outcome("done" if ran else "finished before with the same code, data and parameters, reused")
    except Exception as error:
        cell = getattr(error, "exec_count", None)
        reason = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        return Outcome("FAILED", f"{step.name}, cell {cell}, parameters {step.given}: {reason} (see {step.executed})")
    finally:
        if gpu is not None:
            gpus.put(gpu)


def run_grid(grid: dict[str, list[Step]], jobs: int) -> list[str]:
    """Runs the steps of every experiment in order, `jobs` notebooks side by side; an experiment ends at its first failure
    and the others go on. Returns the reports of all failures."""
    waiting, running, failures = {name: list(steps) for name, steps in grid.items()}, {}, []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with Manager() as manager, ProcessPoolExecutor(max_workers=jobs) as pool, Board(grid) as board:
        gpus = manager.Queue() if (devices := _gpus()) else None
        for device in devices:
            gpus.put(device)
        while running or any(waiting.values()):
            busy = {step.experiment for step in running.values()}
            ready = [name for name, steps in waiting.items() if steps and name not in busy]
            for name in ready[: jobs - len(running)]:
                step = waiting[name].pop(0)
                running[pool.submit(run_step, step, threads, gpus)] = step
                board.begin(step)
            for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                outcome = future.result()
                board.end(step, outcome.state)
                if outcome.failure:
                    failures.append(outcome.failure)
                    waiting[step.experiment] = []
            board.refresh()
    return failures


def _gpus() -> list[str]:
    """The GPUs this process may use, asked of the driver: torch is too heavy to import here."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    asked = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return asked.stdout.split() if asked.returncode == 0 else []


class Board:
    """What runs now: a live table in a terminal; elsewhere a plain line when a notebook begins, ends, or says something new."""

    def __init__(self, grid: dict[str, list[Step]], every: float = 10.0):
        from rich.console import Console
        from rich.live import Live

        self.grid, self.every, self.states, self.said = grid, every, {}, {}
        self.started: dict[Step, float] = {}
        console = Console()
        self.live = Live(self._table(), console=console, refresh_per_second=1) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.refresh()
        if self.live:
            self.live.__exit__(*error)

    def begin(self, step: Step) -> None:
        self.started[step.name] = self.said[step.name] = time.perf_counter()
        self._say(step, "running")

    def end(self, step: Step, state: str) -> None:
        seconds = time.perf_counter() - self.started.pop(step.name)
        self._say(step, f"{state} in {seconds:.0f} s" if state == "done" else state)

    def refresh(self) -> None:
        if self.live:
            return self.live.update(self._table())
        for step in [step for steps in self.grid.values() for step in steps if step.name in self.started]:
            if time.perf_counter() - self.said[step.name] > self.every and (line := _last_line(step.log)):
                self.said[step.name] = time.perf_counter()
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.batch", description="Run the notebooks of a profile through papermill.")
    parser.add_argument("profile")
    parser.add_argument("--experiment", action="append", help="default: all")
    parser.add_argument("--stage", action="append", choices=STAGES, help="default: all three")
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--method", action="append")
    parser.add_argument("--pairs", action="append", help=f"{', '.join(PAIRS)}; default: {PAIRS[0]}")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any parameter of the notebooks")
    parser.add_argument("--jobs", type=int, default=1, help="experiments side by side")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, with which parameters, and run nothing")
    parser.add_argument("--only-failed", action="store_true", help="only experiments that failed, from the failed notebook on")
    asked = parser.parse_args(arguments)
    try:
        overrides = _overrides(asked)
        stages = [stage for stage in STAGES if stage in (asked.stage or STAGES)]
        names = asked.experiment or experiments()
        kinds = asked.pairs or PAIRS[:1]
        grid = {name: steps_of(name, stages, asked.profile, overrides, kinds) for name in _known(names)}
        _check(grid, overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.only_failed:
        grid = {name: steps[next(i for i, step in enumerate(steps) if step.failed_before()) :] for name, steps in grid.items() if any(step.failed_before() for step in steps)}
    if asked.dry_run:
        from common.backends import forecast  # heavy: brings torch

        for step in [step for steps in grid.values() for step in steps]:
            parameters = checked_parameters(step.notebook, step.given)
            finished = is_finished(step.notebook, step.executed, parameters)
            print(f"{step.name}: {'finished, would be reused' if finished else 'would run'} with {', '.join(f'{k}={v}' for k, v in step.given.items())}")
            if not finished and (said := forecast(step.stage, parameters)):
                print(f"  {said}")
        return 0
    failures = run_grid(grid, asked.jobs)
    if grid and not failures and "train_rdpo" in stages:
        tables = f"runs/{asked.profile}/tables"
        execute("paper_tables.ipynb", resolve(f"{tables}/paper_tables.ipynb"), {"profile": asked.profile, "runs": f"runs/{asked.profile}", "output": tables}, again=True)
        print(f"executed notebooks and their logs are below {resolve(f'runs/{asked.profile}')}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _overrides(asked: argparse.Namespace) -> dict[str, Any]:
    overrides = {name: _literal(value) for name, value in asked.p}
    if asked.seed:
        overrides["seeds"] = asked.seed
    if asked.method:
        overrides["methods"] = asked.method
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _known(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in experiments()]
    if unknown:
        raise ValueError(f"unknown experiment {', '.join(unknown)}; there are {', '.join(experiments())}")
    return names


def _check(grid: dict[str, list[Step]], overrides: dict[str, Any]) -> None:
    """Every parameter of every notebook that will run, before the first kernel starts."""
    if "pairs" in overrides:
        raise ValueError(f"give --pairs {overrides['pairs']} in place of -p pairs: each kind of pairs has a folder of its own")
    steps = [step for of_experiment in grid.values() for step in of_experiment]
    for step in steps:
        checked_parameters(step.notebook, step.given)
    stray = {name: value for name, value in overrides.items() if not any(name in step.given for step in steps)}
    if stray:
        checked_parameters(steps[-1].notebook, stray)


if __name__ == "__main__":
    sys.exit(main())
