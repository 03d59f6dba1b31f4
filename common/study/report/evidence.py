"""All that `results/evidence/` shows of the study: its tables with their notes, and its figures."""

from __future__ import annotations

import json
from pathlib import Path

from common.report.figures import save_figure
from common.storage import write_json
from common.study.design import BLIND_TO
from common.study.mechanism import mechanism_figure, read_probed
from common.study.report.figures import contrast_figure, frontier_figure, map_figure, sweep_figure
from common.study.report.tables import (
    CONTRASTS_NOTE,
    blind_table,
    centre_table,
    comparison_table,
    contrast_table,
    contrasts,
    correction_table,
    cost_table,
    elsewhere_table,
    gains_table,
    oracle_table,
    settings_table,
    write_all,
)
from common.study.rows import Study, behaviour


def write_report(folder: str | Path, typeset: str | Path) -> list[Path]:
    """Every table and figure that the rows in `<folder>/table.csv` allow, the tables in LaTeX and HTML below `typeset`;
    returns the paths."""
    folder = Path(folder)
    study = Study(folder / "table.csv")
    names = [name for name in study.experiments() if study.of(name, behaviour(name), "rdpo")]
    trials = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in names
        if (path := folder / name / "trials.json").exists()
    }
    rows = contrasts(study)
    write_json(folder / "contrasts.json", rows)
    over_seeds, paired_by = (
        "Means over seeds with 95 % t-intervals, of the same 150 prompts a set",
        "differences paired by seed",
    )
    tables = {name: (centre_table(study, name), f"{name}, centre of the study: 400 pairs, 30 % teacher noise, 10 % judge error. {over_seeds}; oracle's view where no judge is named. KL: mean log-ratio to the base student of the student's own greedy answers.") for name in names} | {
        "contrasts": (contrast_table(rows), CONTRASTS_NOTE),
        **{f"comparisons-{name}": (comparison_table(study, name), f"Centre, {paired_by}, 95 % t-intervals, not corrected for their number.") for name in names},
        "corrections": (correction_table(study), "Final judge with 10 % errors against the oracle on the same answers, rows of the centre, per seed. Corrected by 100 labelled answers of all rows together (arXiv 2511.21140). The interval also allows for other prompts, which these are not, so its share is an upper bound."),
        "cost": (cost_table(study, "safety"), "What one student of the centre takes, safety, mean over seeds; the 32 trials that chose the setting took 32 times that, and verdicts for every method. A prompt counts once a pair; the reference pass, kept for all preference losses, is not counted. DPO on accepted pairs read all of them when these rows were made; the code of today forwards the accepted ones alone."),
        "elsewhere": (elsewhere_table(study), f"Harmlessness at matched utility away from the centre, seeds 0 to 4. {over_seeds}, {paired_by}."),
        "gains": (gains_table(study), "Harmlessness as trained, gained over the base student, paired by seed, with 95 % t-intervals. The gain that a judge sees is divided by one minus twice its share of random errors."),
        "blind": (blind_table(study), f"Harmlessness as trained, by the oracle, where the judge of the pairs lets everything in one wrapper pass ({BLIND_TO}, 28 of 150 test prompts) and elsewhere. {over_seeds.split(',')[0]}, {paired_by}."),
        "settings": (settings_table(study), f"Safety at the centre with one value of the chosen setting changed. {over_seeds}, {paired_by}."),
        "oracle": (oracle_table(study, trials), f"Wanted behaviour at matched utility with settings chosen by the reward judge and by the oracle from the same trials. {over_seeds}, {paired_by}."),
    }  # fmt: skip
    written = write_all(tables, folder, Path(typeset))
    safety = [name for name in names if name == "safety"]
    figures = {
        "contrasts": contrast_figure(rows) if rows else None,
        "noise": sweep_figure(study, "noise", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "teacher noise", names) if names else None,
        "judge_error": sweep_figure(study, "judge_error", (0.0, 0.1, 0.2, 0.3), "judge error", safety) if safety else None,
        "frontier": frontier_figure(study, names) if names else None,
        "pairs": sweep_figure(study, "pairs", (50, 100, 200, 400, 800), "pairs", safety) if safety and study.of("safety", "utility", "rdpo", pairs=50) else None,
        "map": map_figure(study, "safety", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.0, 0.1, 0.2, 0.3)) if safety and study.of("safety", "utility", "rdpo", noise=0.5, judge_error=0.3) else None,
    }  # fmt: skip
    if (folder / "mechanism.csv").exists():
        figures["mechanism"] = mechanism_figure(read_probed(folder / "mechanism.csv"), trials["safety"]["chosen"])
    for name, figure in figures.items():
        if figure:
            written.append(save_figure(figure, folder / f"{name}.png"))
    return written
