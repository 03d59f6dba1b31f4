"""The studies of EM-DPO, Dynamic Blocking and ReverseGen, which have measures of their own, in the safety world.

    rdpo study-systems --jobs 2

Writes `results/related/<system>.csv`, a line a seed and arm, and `results/related/<system>/table.md`. The students are
the study's base students, trained with the settings that its trials chose. What is measured of a seed is kept below
`runs/evidence/systems`, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import CommandParser
from common.report.measurements import measurement_of, write_measurements
from common.schema import Metric, fingerprint
from common.storage import write_json
from common.student.identity import weights_of
from common.study.cells import admitted_student
from common.study.related import RESULTS as RELATED
from common.study.related import Place
from common.study.report.tables import difference_cell, mean_cell, write_all
from common.study.rows import Study, paired
from common.study.run import FOLDER, RESULTS, finish, parsed, workers
from common.study.systems import annotators, failures, wordings
from common.training.kept import read_tuned

if TYPE_CHECKING:
    import pandas as pd

Case = tuple[tuple[str, Any], ...]
"""The names and values of what a study varies."""
SYSTEMS = {"em_dpo": annotators, "dynamic_blocking": wordings, "reversegen": failures}


def measured(system: str, case: Case, seed: int, folder: Path) -> list[dict[str, Any]]:
    """What is measured of a system on a seed, one line a metric; kept below `folder`, and taken from there where it was
    made of the same before."""
    study, student = SYSTEMS[system], admitted_student("safety", seed, folder)
    chosen = read_tuned(RESULTS / "safety" / "trials.json")
    setting = chosen[study.TUNED_AS] if study.TUNED_AS else {}
    made_of = fingerprint(study.MADE_OF, setting, case, weights_of(student))
    place = folder / "systems" / system / f"seed-{seed}-{made_of}"
    if not (path := place / "measured.json").exists():
        began = time.process_time()
        metrics = study.measure(seed, student, place, setting, **dict(case))
        lines = [line_of(metric, case) for metric in metrics]
        write_json(path, {"seconds": round(time.process_time() - began), "lines": lines})
    return json.loads(path.read_text(encoding="utf-8"))["lines"]


def line_of(metric: Metric, case: Case) -> dict[str, Any]:
    """A metric as a line of a CSV; cell: the case."""
    named = {name: getattr(metric, name) for name in ("experiment", "method", "seed")}
    return named | measurement_of(metric) | {"cell": dict(case)}


def table_of(study: Study, rows: Mapping[str, tuple[Place, Place]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A row a name, a column a metric: its mean over seeds in the first place, and the difference to the second, paired
    by seed."""
    import pandas as pd

    table = []
    for name, (own, other) in rows.items():
        cells, seeds = {}, 0
        for metric, label in columns.items():
            values, control = (study.of("safety", metric, method, **case) for method, case in (own, other))
            difference = difference_cell(paired(values, control)) if own != other else "-"
            seeds = max(seeds, len(values))
            cells[label] = mean_cell(values) + ("" if difference == "-" else f", {difference}")
        if seeds:
            table.append({"row": name, "seeds": seeds, **cells})
    return pd.DataFrame(table)


def write_report(folder: Path, typeset: Path) -> list[Path]:
    """The table of every system whose CSV is in `folder`, in LaTeX and HTML below `typeset`; returns the paths."""
    tables = {
        name: (table_of(Study(path), study.ROWS, study.COLUMNS), study.NOTE)
        for name, study in SYSTEMS.items()
        if (path := folder / f"{name}.csv").exists()
    }
    return write_all(tables, folder, typeset)


def parser() -> CommandParser:
    """The arguments of `rdpo study-systems`."""
    command = CommandParser("study-systems", __doc__)
    command.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds side by side, a thread each")
    command.add_argument("--system", action="append", choices=list(SYSTEMS), help="default: all")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked, failed = parsed(parser(), arguments), []
    with workers(asked.jobs) as pool:
        for system in asked.system or SYSTEMS:
            study = SYSTEMS[system]
            tasks = [(system, case, seed, FOLDER) for seed in study.SEEDS for case in study.CASES]
            found, failures_of = finish(system, pool, measured, tasks)
            failed += failures_of
            if found:
                write_measurements(RELATED / f"{system}.csv", [line for _, lines in found for line in lines])
    print(*write_report(RELATED, FOLDER / "tables" / RELATED.name), sep="\n")
    sys.exit("\n".join(f"FAILED {failure}" for failure in failed) if failed else 0)
