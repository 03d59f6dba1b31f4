"""Runs the study (`common.study.design`) in the miniature worlds and writes `results/evidence/`.

    rdpo study --part noise --experiment safety --seed 0 --jobs 2

Base students, then trials on the validation split, then the parts with what the trials chose: the core, with `--full`
all, or those named. Everything finished is kept in `runs/evidence` and taken from there, so a stopped run goes on where
it was; trials of a study beside the first are kept in its results as well, method by method. Every process has one
thread, whatever the machine, so that the numbers do not hang on it. Another CPU rounds differently all the same, and so
makes other base students: rows of a seed whose student is not theirs are dropped from `results/evidence`, which is
said. `--to` leaves them there and writes to a folder of its own, with the settings that the trials of
`results/evidence` chose. With `--engine ray` the rows run on the nodes of a Ray cluster (docs/scale.md).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NoReturn

from common.command import CommandParser
from common.engines import Needs, RayPool, add_engine, opened_store
from common.methods import METHODS
from common.notebook.profiles import experiments
from common.report.tables import OBJECTIVES
from common.runtime import Progress, escape_what_the_terminal_lacks, quiet_libraries, resolve
from common.storage import write_json
from common.student.identity import weights_of
from common.study.cells import admitted_student, cost_of, rounds_of, row_place, run_row, student_place
from common.study.design import (
    CORE,
    OF_READINGS,
    OF_RELATED,
    TRIAL_SEEDS,
    Row,
    parts,
    trial_rows,
    trial_settings,
    with_setting,
)
from common.study.lines import by_wrapper, corrected_lines, drop_lines, lines_of, write_lines
from common.study.mechanism import noise_of, probe, probe_place, write_probed
from common.study.report.evidence import write_report
from common.training.kept import Setting, read_tuned
from common.training.tuning import chosen_by, read_trials, write_trials

FOLDER, RESULTS = resolve("runs/evidence"), resolve("results/evidence")


def run_study(
    names: Sequence[str],
    wanted: Sequence[str],
    jobs: int,
    to: Path,
    seeds: Sequence[int] = (),
    cluster: RayPool | None = None,
    own_trials: bool = False,
) -> list[str]:
    """Runs the wanted parts of these experiments, on these seeds or all, and writes their rows to `to`; returns what
    failed. Rows run in `jobs` processes, or on a cluster.

    Trials of every method are made where `to` is `RESULTS`, and with `own_trials`; elsewhere of those alone that have
    none in `RESULTS` or in `to`, where they are kept method by method: a study goes on from them on another machine
    too, and may be cut short on each. Raises FileNotFoundError where `RESULTS` has no trials then."""
    of_part = {
        (name, part): [row for row in parts(name).get(part, []) if not seeds or row.seed in seeds]
        for part in wanted
        for name in names
    }
    before = {name: {} if to == RESULTS else _tried_before(name, to, own_trials) for name in names}
    needed = {
        name: {METHODS[row.method].tuned_as for part in wanted for row in of_part[name, part]} - {"", *before[name]}
        for name in names
    }
    asked = sorted(
        {(row.seed, name) for (name, _), rows in of_part.items() for row in rows}
        | {(seed, name) for name in names if needed[name] for seed in TRIAL_SEEDS}
    )
    with cluster or workers(jobs) as pool:
        students, failed = finish(
            "base students", pool, partial(admitted_student, folder=FOLDER), [(name, seed) for seed, name in asked]
        )
        for task, _ in students if cluster and cluster.store else ():
            cluster.store.copy_in(student_place(*task, FOLDER))
        chosen: dict[str, tuple[dict[str, Setting], dict[str, Setting]]] = {}  # by the judge, by the oracle
        for name in names:
            _keep_students(name, {seed: path for (of, seed), path in students if of == name}, to)
            failures = _try_settings(name, needed[name], pool, to) if needed[name] else []
            failed += failures
            if not failures:
                found = read_tuned(to / name / "trials.json") if needed[name] else {}
                trials = read_trials(RESULTS / name / "trials.json")
                made = {method: found[method] for method in needed[name]}
                chosen[name] = before[name] | made, chosen_by_oracle(trials, OBJECTIVES[name][0])
        for part in wanted:
            rows = [with_setting(row, *chosen[name]) for name in chosen for row in of_part[name, part]]
            failed += _probe(pool, rows, to) if part == "mechanism" else _measure(part, pool, rows, to)
    return failed


def _keep_students(experiment: str, students: Mapping[int, Path], to: Path) -> None:
    """Writes what was measured of every seed's candidates and the hash of the admitted one's weights, and drops rows of
    other students."""
    path = to / experiment / "students.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {
        str(seed): json.loads((FOLDER / experiment / f"student-{seed}.json").read_text(encoding="utf-8"))
        for seed in students
    }
    for seed, student in students.items():
        found[str(seed)][-1]["weights"] = weights_of(student)
    others = {
        int(seed) for seed in found if seed in before and before[seed][-1].get("weights") != found[seed][-1]["weights"]
    }
    if dropped := drop_lines(to, lambda line: line["experiment"] == experiment and line["seed"] in others):
        print(
            f"{to / 'table.csv'}: {dropped} lines of {experiment} dropped, whose base students were others: seeds {', '.join(map(str, sorted(others)))}",
            flush=True,
        )
    write_json(path, dict(sorted((before | found).items(), key=lambda item: int(item[0]))))


def _tried_before(experiment: str, to: Path, own_trials: bool = False) -> dict[str, Setting]:
    """Method -> its setting, of the trials in `RESULTS`, unless the study has all trials of its own, and of those in `to`
    that a method would try today."""
    chosen = {} if own_trials else read_tuned(RESULTS / experiment / "trials.json")
    path = to / experiment / "trials.json"
    if path.exists():
        tried: dict[str, list[Setting]] = {}
        for trial in read_trials(path):
            tried.setdefault(trial["method"], []).append(trial["setting"])
        chosen |= {
            method: setting
            for method, setting in read_tuned(path).items()
            if all(one in tried[method] for one in trial_settings(method))
        }
    return chosen


def _try_settings(experiment: str, needed: Collection[str], pool: Executor, to: Path) -> list[str]:
    """Writes `trials.json` after each method, and drops rows of methods that are trained with another setting now; parts
    that are not run again must not mix with those that are. Returns what failed."""
    path, all_failed = to / experiment / "trials.json", []
    methods = [method for method in METHODS if method in needed]
    for number, method in enumerate(methods, start=1):
        label = f"trials of {experiment}, {method}, {number} of {len(methods)} methods"
        trials = [(row,) for row in trial_rows(experiment, [method])]
        found, failed = finish(label, pool, partial(run_row, folder=FOLDER), trials)
        all_failed += failed
        if not failed:
            kept = [one for one in (RESULTS / experiment / "trials.json", path) if one.exists()]
            before = {of: setting for one in kept for of, setting in read_tuned(one).items()}
            chosen = write_trials([(row.method, row.setting, result) for (row,), result in found], path)
            if before.get(method, chosen[method]) != chosen[method]:
                _drop_rows(experiment, method, to)
    return all_failed


def _drop_rows(experiment: str, method: str, to: Path) -> None:
    """Those that are trained with the setting of this method."""
    drop_lines(to, lambda line: line["experiment"] == experiment and METHODS[line["method"]].tuned_as == method)


def _probe(pool: Executor, rows: Sequence[Row], to: Path) -> list[str]:
    """Writes `mechanism.csv`; returns what failed."""
    found, failed = finish("mechanism", pool, partial(probe, folder=FOLDER), [(row,) for row in rows])
    if records := [record for _, of_row in found for record in of_row]:
        write_probed(to / "mechanism.csv", records)
    return failed


def _measure(part: str, pool: Executor, rows: Sequence[Row], to: Path) -> list[str]:
    """Adds the rows of a part to `table.csv`, at the centre with what they cost, and of a student's own pairs with
    their noise; returns what failed."""
    seconds = [(row.second,) for row in rows if row.second]
    _, failed = (
        finish(f"{part}, its references", pool, partial(run_row, folder=FOLDER), seconds) if seconds else ([], [])
    )
    found, failures = finish(part, pool, partial(run_row, folder=FOLDER), [(row,) for row in rows])
    failed += failures
    results = {row: result for (row,), result in found}
    more: dict[Row, Mapping[str, float]] = {}
    if about := {"centre": cost_of, "neighbours": cost_of, "self": noise_of, "related": rounds_of}.get(part):
        found, failures = finish(f"{part}, its pairs", pool, partial(about, folder=FOLDER), [(row,) for row in results])
        more, failed = {row: of_row for (row,), of_row in found}, failed + failures
    if part in ("centre", "kinds"):
        more |= {
            row: {**more.get(row, {}), **by_wrapper(result)}
            for row, result in results.items()
            if row.cell.experiment == "safety" and row.cell.unlike_centre.keys() <= {"blind_to"}
        }
    lines = [line for row, result in results.items() for line in lines_of(row, result, **more.get(row, {}))]
    write_lines(to, lines + (corrected_lines(results) if part == "centre" else []))
    return failed


def chosen_by_oracle(trials: Sequence[Mapping[str, Any]], objective: str) -> dict[str, Setting]:
    """Method -> the setting with the highest mean of wanted behaviour and utility as the oracle sees them, which no
    practitioner can choose by."""
    return chosen_by(trials, lambda row: row["metrics"][objective] + row["metrics"]["utility"])


def needs_of(run: partial, *task: Any) -> Needs:
    """Of the preparation of a base student, or of what is measured of a row: one CPU, and what it reads and writes."""
    if len(task) == 2:
        return Needs(places=[student_place(*task, FOLDER)])
    (row,) = task
    own = probe_place if run.func is probe else row_place
    second = [row_place(row.second, FOLDER)] if row.second else []
    return Needs(places=[student_place(row.cell.experiment, row.seed, FOLDER), *second, own(row, FOLDER)])


def workers(jobs: int) -> ProcessPoolExecutor:
    """Processes of one thread each, which end with this one."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # for the processes to come
    return ProcessPoolExecutor(jobs, get_context("spawn"), begin_worker, (FOLDER,))


def begin_worker(folder: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr = open(folder / f"worker-{os.getpid()}.log", "w", buffering=1)
    quiet_libraries()


def _end_with_parent() -> None:
    """Else a worker goes on after its run was killed, beside the next one."""
    parent_process().join()
    os._exit(1)


def finish(label: str, pool: Executor, run: Any, tasks: Iterable[tuple]) -> tuple[list[tuple[tuple, Any]], list[str]]:
    """(task and what came of it, in the order of the tasks; what failed)."""
    futures = {pool.submit(run, *task): task for task in dict.fromkeys(tasks)}
    progress, failed = Progress(label, len(futures)), []
    for future in as_completed(futures):
        if error := future.exception():
            error = getattr(error, "cause", error)  # Ray wraps it in one with the traceback of the node
            failed.append(f"{', '.join(map(str, futures[future]))}: {type(error).__name__}: {error}")
        progress(1)
    return [(task, future.result()) for future, task in futures.items() if not future.exception()], failed


def parser() -> CommandParser:
    """The arguments of `rdpo study`."""
    command = study_parser("study", __doc__)
    command.add_argument("--full", action="store_true", help=f"all parts, not only {', '.join(CORE)}")
    command.add_argument("--part", action="append", help="only these parts")
    command.add_argument("--seed", action="append", type=int, help="only rows of these seeds")
    command.add_argument(
        "--to",
        type=resolve,
        default=RESULTS,
        help="folder of the rows; another one than the default takes the settings chosen there",
    )
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parsed(parser(), arguments)
    every = [part for part in parts("safety") if part not in (*OF_READINGS, *OF_RELATED)]
    if unknown := [name for name in asked.part or () if name not in every]:
        sys.exit(f"evidence: unknown part {', '.join(unknown)}; there are {', '.join(every)}")
    failed = run_study(
        asked.experiment or experiments(),
        asked.part or (every if asked.full else CORE),
        asked.jobs,
        asked.to,
        asked.seed or (),
        cluster_of(asked),
    )
    report_and_exit(failed, asked.to, write_report)


def study_parser(name: str, about: str) -> CommandParser:
    """The arguments that every study's command takes."""
    command = CommandParser(name, about)
    command.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="rows side by side on this machine, a thread each"
    )
    command.add_argument("--experiment", action="append", choices=experiments(), help="default: all")
    add_engine(command)
    return command


def parsed(command: CommandParser, arguments: list[str] | None) -> Namespace:
    asked = command.parse_args(arguments)
    if asked.jobs < 1:
        command.error("--jobs must be at least 1")
    escape_what_the_terminal_lacks()
    return asked


def cluster_of(asked: Namespace) -> RayPool | None:
    """The cluster that the rows run on, None for this machine; ends the command with a sentence where none can be had."""
    try:
        store = opened_store(asked)
        return RayPool(asked.address, FOLDER, needs_of, store) if asked.engine == "ray" else None
    except ValueError as error:
        sys.exit(f"error: {error}")


def report_and_exit(failed: Sequence[str], to: Path, write: Callable[[Path, Path], Iterable[Path]]) -> NoReturn:
    """Writes the report of the rows in `to`, prints its files, and ends the command: with what failed, or 0."""
    if (to / "table.csv").exists():  # none where every row failed
        print(*write(to, FOLDER / "tables" / to.name), sep="\n")
    sys.exit("\n".join(f"FAILED {failure}" for failure in failed) if failed else 0)


def run_command(
    command: CommandParser,
    arguments: list[str] | None,
    wanted: Sequence[str],
    to: Path,
    write: Callable[[Path, Path], Iterable[Path]],
    own_trials: bool = False,
) -> NoReturn:
    """The command of a study whose parts are all run, in the experiments asked for."""
    asked = parsed(command, arguments)
    names = asked.experiment or experiments()
    failed = run_study(names, wanted, asked.jobs, to, cluster=cluster_of(asked), own_trials=own_trials)
    report_and_exit(failed, to, write)
