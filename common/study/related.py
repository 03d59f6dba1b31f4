"""The study of the related systems (`design.RELATED`): runs it and writes `results/related/`.

    rdpo study-related --jobs 2

Each system is compared with its control on the same base students: the same loop without the trick, or the same data
under plain DPO or SFT. All methods, rivals too, get the same eight trials on the same four students, those in rounds
on the first of them.
`docs/related.md` says what else the two sides of a contrast differ in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import CommandParser
from common.methods import METHODS
from common.report.tables import OBJECTIVES
from common.runtime import resolve
from common.storage import write_json
from common.study.design import (
    ASKED_SCORES,
    CONTROLS,
    EARLY,
    OF_EDITS,
    OF_RELATED,
    OF_SECOND,
    RELATED,
    SECOND,
    TWINS,
    UNWEIGHTED,
)
from common.study.report.tables import (
    CONTRASTS_NOTE,
    contrast_table,
    contrasts,
    difference_cell,
    mean_cell,
    write_all,
)
from common.study.rows import Study, behaviour, paired
from common.study.run import run_command, study_parser

if TYPE_CHECKING:
    import pandas as pd


RESULTS = resolve("results/related")
OVER_SEEDS = "Means over seeds with 95 % t-intervals, five students; 400 pairs, 30 % teacher noise, 10 % judge error"


def systems_table(study: Study, experiment: str) -> pd.DataFrame:
    """A row a method at the centre; answers and verdicts are those of rows in rounds, over all rounds."""
    import pandas as pd

    columns = {
        behaviour(experiment): "at matched utility", OBJECTIVES[experiment][0]: "as trained", "utility": "utility as trained", "kl": "KL (nats)",
        "student_answers": "student's answers", "judge_verdicts": "judge's verdicts in rounds",
    }  # fmt: skip
    rows = [
        {"method": METHODS[method].label}
        | {label: mean_cell(study.of(experiment, metric, method)) for metric, label in columns.items()}
        for method in RELATED
        if study.of(experiment, behaviour(experiment), method)
    ]
    return pd.DataFrame(rows)


Place = tuple[str, Mapping[str, Any]]
"""A method, and how its cell is unlike the centre."""


def against_table(study: Study, rows: Mapping[str, tuple[Place, Place]]) -> pd.DataFrame:
    """A row a name, a column an experiment: wanted behaviour at matched utility in the first place, and its difference
    to the second, paired by seed."""
    import pandas as pd

    table = []
    for name, places in rows.items():
        cells = {}
        for experiment in study.experiments():
            values, control = (study.of(experiment, behaviour(experiment), method, **cell) for method, cell in places)
            difference = difference_cell(paired(values, control))
            cells[experiment] = mean_cell(values) + ("" if difference == "-" else f", {difference}")
        if set(cells.values()) != {"-"}:
            table.append({"row": name, **cells})
    return pd.DataFrame(table)


def write_report(folder: Path, typeset: Path) -> list[Path]:
    """Tables of the rows in `<folder>/table.csv`, in LaTeX and HTML below `typeset`; returns the paths."""
    study, minimal, early = Study(folder / "table.csv"), {"edits": "minimal"}, {"steps_share": EARLY}
    named, label = contrasts(study, CONTROLS), lambda method: METHODS[method].label
    write_json(folder / "contrasts.json", named)
    edits = {
        f"{label(method)}, minimal edits": ((method, minimal), (method, {})) for method in OF_EDITS if method != "base"
    }
    edits |= {
        f"{label(method)}, minimal edits, against {label(control)}": ((method, minimal), (control, minimal))
        for method, control in (("token_dpo", "dpo"), ("figa", "sft"))
    }
    early_rows = {
        f"{label(method)}, {EARLY:.0%} of the steps": ((method, early), ("dpo", {})) for method in ("dpo", "dpo_expo")
    }
    twins = {
        f"{label(system)} at the setting of {label(control)}": ((system, {"setting_of": control}), (control, {}))
        for system, control in TWINS
    } | {"RWR, against all weights 1": (("rwr", {}), ("rwr", {"rwr_temperature": UNWEIGHTED}))}
    second = {
        f"{label(method)}, {label(SECOND)} as second reference": ((method, {"second_reference": SECOND}), ("dpo", {}))
        for method in OF_SECOND
    }
    asked = {f"CA, asked for {score:.2f}": (("ca", {"ca_score": score}), ("ca", {})) for score in ASKED_SCORES}
    tables = {
        "contrasts": (contrast_table(named), CONTRASTS_NOTE),
        **{name: (systems_table(study, name), f"{name}, {OBJECTIVES[name][0]}. {OVER_SEEDS}.") for name in study.experiments()},
        "edits": (against_table(study, edits), f"Wanted behaviour at matched utility on revisions with minimal edits, and the difference to the same method on free revisions or to the method named. {OVER_SEEDS}."),
        "early": (against_table(study, early_rows), f"Wanted behaviour at matched utility after a share of DPO's steps, and the difference to DPO with all of them. {OVER_SEEDS}."),
        "twins": (against_table(study, twins), f"Wanted behaviour at matched utility of a system that is trained with what the trials of its control chose, and the difference to the control. {OVER_SEEDS}."),
        "second": (against_table(study, second), f"Wanted behaviour at matched utility with the student that SFT trains on the same pairs as second reference, and the difference to DPO. {OVER_SEEDS}."),
        "asked": (against_table(study, asked), f"Wanted behaviour at matched utility by the score that CA's student is asked for, and the difference to 1.00. {OVER_SEEDS}."),
    }  # fmt: skip
    return write_all(tables, folder, typeset)


def parser() -> CommandParser:
    """The arguments of `rdpo study-related`."""
    return study_parser("study-related", __doc__)


def main(arguments: list[str] | None = None) -> None:
    run_command(parser(), arguments, OF_RELATED, RESULTS, write_report, own_trials=True)


if __name__ == "__main__":
    main()
