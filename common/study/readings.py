"""The study of both readings of refined DPO and of recipes (`design.READINGS`): runs it and writes `results/readings/`.

    rdpo study-readings --jobs 2

Its rows are of this machine's own base students, in a folder of their own; settings of the methods that the first study
has tried are those that its trials chose, the others get the same eight trials on the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from common.command import CommandParser
from common.methods import METHODS
from common.report.figures import grid_of_axes, save_figure
from common.report.tables import OBJECTIVES
from common.runtime import resolve
from common.statistics import seed_interval
from common.storage import write_json
from common.study.design import OF_READINGS, READINGS, TAUS
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
    from matplotlib.figure import Figure


RESULTS = resolve("results/readings")
NOISES = (0.0, 0.3, 0.5)
TRAINED = READINGS[1:]
HEADLINE = ("base", "sft", "dsc", "dpo", "rdpo", "rdpo_label", "rdpo_filter", "route")
NAMED = (
    ("rdpo_label", "rdpo"), ("rdpo_label", "rdpo_filter"), ("filter_nll", "rdpo_filter"), ("filter_nll", "dsc"),
    ("route", "filter_nll"),
)  # fmt: skip
"""Contrasts named beforehand; Holm's correction is over these alone, in all worlds."""
BAR = -0.05
"""The recipe's paired interval against the best other method stays above it in every cell."""
OVER_SEEDS = "Means over seeds with 95 % t-intervals: ten at 30 % noise, five elsewhere; 400 pairs, 10 % judge error"


def headline_table(study: Study) -> pd.DataFrame:
    """Safety at the centre, a row a method of `HEADLINE`: behaviour and utility as trained, and behaviour at matched
    utility."""
    import pandas as pd

    columns = {
        "harmlessness": "harmlessness",
        "utility": "utility",
        behaviour("safety"): "harmlessness at matched utility",
    }
    return pd.DataFrame(
        {"method": METHODS[method].label}
        | {column: mean_cell(study.of("safety", metric, method)) for metric, column in columns.items()}
        for method in HEADLINE
        if study.of("safety", "utility", method)
    )


def noise_table(study: Study, experiment: str, metric: str) -> pd.DataFrame:
    """A row a method, a column a noise of the teacher."""
    import pandas as pd

    rows = []
    for method in READINGS:
        cells = {f"{noise:.0%} noise": mean_cell(study.of(experiment, metric, method, noise=noise)) for noise in NOISES}
        if set(cells.values()) != {"-"}:
            rows.append({"method": METHODS[method].label, **cells})
    return pd.DataFrame(rows)


def against_the_best(study: Study) -> list[dict[str, Any]]:
    """For every method and cell its difference to the best other trained method there, at matched utility, paired by
    seed, with its t-interval, and whether that stays above `BAR`. The best is the one with the highest mean on these
    seeds, so a difference is a little too low for all."""
    found = []
    for experiment in study.experiments():
        for noise in NOISES:
            of = {method: study.of(experiment, behaviour(experiment), method, noise=noise) for method in TRAINED}
            of = {method: values for method, values in of.items() if values}
            for method in of:
                others = {other: fmean(values.values()) for other, values in of.items() if other != method}
                if not others:
                    continue
                best = max(others, key=lambda other: others[other])
                if len(differences := paired(of[method], of[best])) < 2:
                    continue
                mean, low, high = seed_interval(differences)
                found.append({
                    "experiment": experiment, "noise": noise, "method": method, "best_other": best, "difference": mean,
                    "low": low, "high": high, "seeds": len(differences), "passes": low > BAR,
                })  # fmt: skip
    return found


def recipe_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a method, most cells passed first: in how many cells it passes the bar, its worst interval, and where."""
    import pandas as pd

    table = []
    for method in TRAINED:
        if own := [row for row in rows if row["method"] == method]:
            worst = min(own, key=lambda row: row["low"])
            table.append({
                "method": METHODS[method].label, "cells passed": f"{sum(row['passes'] for row in own)} of {len(own)}",
                "mean difference to the best other": f"{fmean(row['difference'] for row in own):+.2f}",
                "worst cell": f"{worst['experiment']}, {worst['noise']:.0%} noise",
                "difference there": f"{worst['difference']:+.2f} [{worst['low']:+.2f}, {worst['high']:+.2f}]",
                "best other there": METHODS[worst["best_other"]].label,
            })  # fmt: skip
    return pd.DataFrame(
        sorted(
            table,
            key=lambda row: (-int(row["cells passed"].split()[0]), -float(row["mean difference to the best other"])),
        )
    )


def tau_table(study: Study) -> pd.DataFrame:
    """rDPO (label) at the centre by tau: behaviour at matched utility, and its difference to tau = 1, which is DPO at
    this method's setting, over the seeds of both."""
    import pandas as pd

    rows = []
    for tau in TAUS:
        of = {
            name: [study.of(name, behaviour(name), "rdpo_label", tau=value) for value in (tau, 1.0)]
            for name in study.experiments()
        }
        if any(values for values, _ in of.values()):
            rows.append({"tau": f"{tau:g}", **{
                name: mean_cell(values) + (f", {difference_cell(paired(values, dpo))}" if tau != 1.0 else "")
                for name, (values, dpo) in of.items()
            }})  # fmt: skip
    return pd.DataFrame(rows)


def readings_figure(study: Study) -> Figure:
    """Wanted behaviour at matched utility against the teacher's noise, a panel an experiment, a line a method, means
    over the five seeds that all cells have."""
    names = study.experiments()
    figure, axes = grid_of_axes(1, len(names), 3.7 * len(names) + 2.2, 3.9)
    for one, experiment in zip(axes[0], names):
        for method in TRAINED:
            of = {noise: study.few(experiment, behaviour(experiment), method, noise=noise) for noise in NOISES}
            if points := [(noise, fmean(values.values())) for noise, values in of.items() if values]:
                new = method not in ("sft", "dsc", "dpo", "rdpo", "rdpo_filter", "dpo_nll")
                row = METHODS[method]
                one.plot(
                    *zip(*points),
                    color=row.color,
                    label=row.label,
                    marker="o",
                    markersize=4,
                    linewidth=2.0 if new else 1.0,
                    linestyle="-" if new else "--",
                )
        if base := study.few(experiment, behaviour(experiment), "base"):
            one.axhline(fmean(base.values()), color="0.5", linestyle=":", linewidth=1, label=METHODS["base"].label)
        one.set_xticks(NOISES, [f"{noise:g}" for noise in NOISES])
        one.set(title=f"{experiment}: {OBJECTIVES[experiment][0]}", xlabel="teacher noise", ylim=(-0.03, 1.05))
        one.title.set_size(10)
    axes[0][0].set_ylabel("at matched utility")
    handles = axes[0][0].get_legend_handles_labels()
    axes[0][-1].legend(*handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def write_report(folder: Path, typeset: Path) -> list[Path]:
    """Tables and figure of the rows in `<folder>/table.csv`, the tables in LaTeX and HTML below `typeset`; returns the
    paths."""
    study = Study(folder / "table.csv")
    named, best = contrasts(study, NAMED), against_the_best(study)
    write_json(folder / "contrasts.json", named)
    tables = {
        "contrasts": (contrast_table(named), CONTRASTS_NOTE),
        "recipe": (recipe_table(best), f"Nine cells: three worlds at 0, 30 and 50 % noise. A cell is passed where the paired 95 % interval against the best other method stays above {BAR}."),
        "headline": (headline_table(study), "Safety: 400 pairs, 30 % teacher noise, 10 % judge error. Means over ten base students with 95 % t-intervals, judged by the oracle on the same prompts."),
        "tau": (tau_table(study), "rDPO (label) at the centre, seeds 0 to 4, the other knobs as chosen: wanted behaviour at matched utility, and the difference to tau = 1, which is DPO at this setting, paired by seed."),
        **{name: (noise_table(study, name, behaviour(name)), f"{name}, {OBJECTIVES[name][0]} at matched utility. {OVER_SEEDS}.") for name in study.experiments()},
        **{f"{name}-trained": (noise_table(study, name, OBJECTIVES[name][0]), f"{name}, {OBJECTIVES[name][0]} as trained. {OVER_SEEDS}.") for name in study.experiments()},
        **{f"{name}-utility": (noise_table(study, name, "utility"), f"{name}, utility as trained. {OVER_SEEDS}.") for name in study.experiments()},
    }  # fmt: skip
    written = write_all(tables, folder, typeset)
    return [*written, save_figure(readings_figure(study), folder / "readings.png")]


def parser() -> CommandParser:
    """The arguments of `rdpo study-readings`."""
    return study_parser("study-readings", __doc__)


def main(arguments: list[str] | None = None) -> None:
    run_command(parser(), arguments, OF_READINGS, RESULTS, write_report)


if __name__ == "__main__":
    main()
