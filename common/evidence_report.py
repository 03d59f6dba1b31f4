"""Tables and figures of the study, all from the rows of `results/evidence/table.json`.

Every value is a mean over seeds with its t-interval; differences are paired by seed, which is one of data, teacher, judge and base student.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.loss import LOSSES, uses_scores
from common.mechanism import mechanism_figure
from common.methods import UNTRAINED
from common.report import COLORS, LABELS, OBJECTIVES, grid_of_axes, write_table
from common.statistics import holm, paired_t_test, seed_interval
from common.study import CONTRASTS, MAIN, NEIGHBOURS, Cell

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CONTROLS = {"rdpo": ("shuffled", "rDPO, scores of other pairs"), "dpo": ("subset", "DPO, as many random pairs as dSC accepts")}
COLUMNS = {
    "utility": "utility", "judged": "second judge's view", "reward": "reward judge's view", "kl": "KL (nats)", "answer_words": "words",
    "lambda": "lambda", "pairs_used": "pairs trained on", "train_seconds": "seconds of training",
}  # fmt: skip
CENTRE = Cell()


class Study:
    """The rows of a `table.json`, by experiment, cell, method and metric.

    Raises FileNotFoundError for a path without one.
    """

    def __init__(self, path: str | Path):
        if not Path(path).exists():
            raise FileNotFoundError(f"no rows at {path}; python -m common.evidence makes them")
        self.lines: dict[tuple, dict[int, dict[str, Any]]] = {}
        for line in json.loads(Path(path).read_text(encoding="utf-8")):
            self.lines.setdefault((line["experiment"], _key(line["cell"]), line["method"], line["metric"]), {})[line["seed"]] = line

    def of(self, experiment: str, metric: str, method: str, **cell: Any) -> dict[int, float]:
        """Seed -> value of a method in the cell that differs from the centre so; {} where nothing was measured."""
        blind = method == "sft" or method in LOSSES and not uses_scores(method)  # trained once for all judges
        unlike = {name: value for name, value in cell.items() if value != getattr(CENTRE, name) and not (blind and name in ("judge_error", "blind_to", "binary"))}
        return {seed: line["value"] for seed, line in self.lines.get((experiment, _key(unlike), method, metric), {}).items()}

    def interval(self, experiment: str, metric: str, method: str, seed: int) -> tuple[float, float]:
        """Over prompts, of one seed at the centre."""
        line = self.lines[experiment, _key({}), method, metric][seed]
        return line["low"], line["high"]

    def experiments(self) -> list[str]:
        return [name for name in OBJECTIVES if any(key[0] == name for key in self.lines)]


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def behaviour(experiment: str) -> str:
    """The metric of the headline: wanted behaviour at matched utility, by the oracle."""
    return f"{OBJECTIVES[experiment][0]}_matched"


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """first - second for every seed that both have."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def contrasts(study: Study) -> list[dict[str, Any]]:
    """The contrasts that were named beforehand, with t-interval, p and Holm's p over all of them that there are."""
    found = []
    for experiment in study.experiments():
        for first, second in CONTRASTS:
            values = paired(*(study.of(experiment, behaviour(experiment), method) for method in (first, second)))
            if len(values) > 1:
                difference, low, high = seed_interval(values)
                found.append({"experiment": experiment, "contrast": f"{first} - {second}", "difference": difference, "low": low, "high": high, "seeds": len(values), "p": paired_t_test(values)})
    for row, p in zip(found, holm([row["p"] for row in found])):
        row["p_holm"] = p
    return found


def centre_table(study: Study, experiment: str) -> pd.DataFrame:
    """One row a method at the centre, a cell `mean [low, high]` a metric, over seeds."""
    import pandas as pd

    objective, held_out = OBJECTIVES[experiment]
    columns = {behaviour(experiment): f"{objective} at matched utility", objective: f"{objective} as trained", f"{objective}_ood": f"under held-out {held_out}", **COLUMNS}
    named = [(LABELS[method], method, {}) for method in (*UNTRAINED, *MAIN, *NEIGHBOURS)] + [(label, method, {"control": control}) for method, (control, label) in CONTROLS.items()]
    rows = []
    for label, method, cell in named:
        if seeds := study.of(experiment, objective, method, **cell):
            cells = {label_of: _cell(study.of(experiment, metric, method, **cell)) for metric, label_of in columns.items()}
            rows.append({"method": label, "seeds": len(seeds), **cells})
    return pd.DataFrame(rows)


def correction_table(study: Study) -> pd.DataFrame:
    """How far the final judge's view of a row lies from the oracle's, as it is and corrected by labels, over all rows at the centre: mean
    absolute error, and how often the corrected interval holds the oracle's rate."""
    import pandas as pd

    rows = []
    for experiment in study.experiments():
        objective, errors, held = OBJECTIVES[experiment][0], {"judged": [], "judged_corrected": []}, []
        for method in (*UNTRAINED, *MAIN, *NEIGHBOURS):
            truth, corrected = study.of(experiment, objective, method), study.of(experiment, "judged_corrected", method)
            for seed in corrected:
                for name, values in errors.items():
                    values.append(abs(study.of(experiment, name, method)[seed] - truth[seed]))
                low, high = study.interval(experiment, "judged_corrected", method, seed)
                held.append(low <= truth[seed] <= high)
        if held:
            row = {"experiment": experiment, "rows": len(held), "error as judged": sum(errors["judged"]) / len(held), "error corrected": sum(errors["judged_corrected"]) / len(held)}
            rows.append({name: f"{value:.3f}" if isinstance(value, float) else value for name, value in row.items()} | {"interval holds the truth": f"{sum(held) / len(held):.0%}"})
    return pd.DataFrame(rows)


def _cell(values: Mapping[int, float]) -> str:
    if not values:
        return "-"
    mean, low, high = seed_interval(list(values.values()))
    digits = 2 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def contrast_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([
        {"experiment": row["experiment"], "contrast": row["contrast"], "difference": f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]", "seeds": row["seeds"],
         "p": _p(row["p"]), "p (Holm)": _p(row["p_holm"])}
        for row in rows
    ])  # fmt: skip


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"


def sweep_figure(study: Study, factor: str, values: Sequence[float], label: str, names: Sequence[str], methods: Sequence[str] = MAIN) -> Figure:
    """Wanted behaviour at matched utility, and utility as trained below it, against one factor around the centre: a line a method, its
    t-interval as a band, a column an experiment. The base student is a dotted line."""
    figure, axes = grid_of_axes(2, len(names), 3.6 * len(names) + 1.6, 5.6)
    for column, experiment in enumerate(names):
        for row, metric in enumerate((behaviour(experiment), "utility")):
            one = axes[row][column]
            for method in methods:
                points = [(value, *seed_interval(list(found.values()))) for value in values if (found := study.of(experiment, metric, method, **{factor: value}))]
                if points:
                    x, mean, low, high = zip(*points)
                    one.plot(x, mean, color=COLORS[method], label=LABELS[method], marker="o", markersize=4)
                    one.fill_between(x, low, high, color=COLORS[method], alpha=0.12, linewidth=0)
            if base := study.of(experiment, metric, "base"):
                one.axhline(seed_interval(list(base.values()))[0], color="0.5", linestyle=":", linewidth=1, label=LABELS["base"])
            one.set(ylim=(-0.03, 1.05), xlabel=label if row else "")
            if factor == "pairs":
                one.set_xscale("log", base=2)
                one.set_xticks(values, [f"{value:g}" for value in values])
            if not row:
                one.set_title(f"{experiment}: {OBJECTIVES[experiment][0]}", fontsize=10)
        axes[0][column].set_ylabel("at matched utility" if not column else "")
        axes[1][column].set_ylabel("utility as trained" if not column else "")
    axes[0][-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def frontier_figure(study: Study, names: Sequence[str]) -> Figure:
    """Behaviour against utility on the test split at the centre: a small mark a seed, a large one the mean, and a thin line the mean
    frontier over lambda (validation split) from the base student to the student as trained."""
    figure, axes = grid_of_axes(1, len(names), 4.2 * len(names) + 2.2, 4.2)
    for one, experiment in zip(axes[0], names):
        objective = OBJECTIVES[experiment][0]
        for method in (*UNTRAINED, *MAIN, *NEIGHBOURS):
            x, y = (study.of(experiment, metric, method) for metric in ("utility", objective))
            if not x:
                continue
            color = COLORS[method]
            one.scatter(list(x.values()), [y[seed] for seed in x], color=color, s=9, alpha=0.35, linewidth=0)
            one.scatter(_mean(x), _mean(y), color=color, s=58, label=LABELS[method], edgecolor="white", linewidth=0.7, zorder=3, marker="s" if method in UNTRAINED else "o")
            line = [(_mean(u), _mean(b)) for factor in ("0", "0.25", "0.5", "0.75", "1") if (u := study.of(experiment, f"utility@{factor}", method)) and (b := study.of(experiment, f"{objective}@{factor}", method))]
            one.plot(*zip(*line), color=color, linewidth=0.8, alpha=0.6) if line else None
        one.axvline(0.95 * _mean(study.of(experiment, "utility", "base")), color="0.6", linestyle=":", linewidth=1)
        one.set(xlabel="utility", ylabel=objective, xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
        one.set_title(experiment, fontsize=10)
    axes[0][-1].legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def map_figure(study: Study, experiment: str, noises: Sequence[float], errors: Sequence[float], against: Sequence[str] = ("dpo", "dsc")) -> Figure:
    """Who wins where: mean paired difference of rDPO and another method, at matched utility, over teacher noise and judge error, with its
    t-interval. Bold where the interval leaves zero out; not corrected for their number."""
    figure, axes = grid_of_axes(1, len(against), 6.6 * len(against) + 0.8, 3.6)
    for one, other in zip(axes[0], against):
        cells = [[paired(*(study.of(experiment, behaviour(experiment), method, noise=noise, judge_error=error) for method in ("rdpo", other))) for noise in noises] for error in errors]
        shown = one.imshow([[sum(values) / len(values) if values else float("nan") for values in row] for row in cells], cmap="RdBu", vmin=-0.6, vmax=0.6, aspect="auto", origin="lower")
        for y, row in enumerate(cells):
            for x, values in enumerate(row):
                if len(values) > 1:
                    mean, low, high = seed_interval(values)
                    style = {"ha": "center", "color": "white" if abs(mean) > 0.4 else "black"}
                    one.text(x, y, f"{mean:+.2f}", va="bottom", fontsize=9, weight="bold" if low > 0 or high < 0 else "normal", **style)
                    one.text(x, y - 0.05, f"[{low:+.2f}, {high:+.2f}]", va="top", fontsize=7, **style)
        one.set_xticks(range(len(noises)), [f"{noise:.0%}" for noise in noises])
        one.set_yticks(range(len(errors)), [f"{error:.0%}" for error in errors])
        one.set(xlabel="teacher noise", ylabel="judge error")
        one.set_title(f"{OBJECTIVES[experiment][0]}, rDPO - {LABELS[other]}", fontsize=10)
        one.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes[0].tolist(), label="at matched utility")
    return figure


def write_report(folder: str | Path) -> list[Path]:
    """Every table and figure that the rows in `<folder>/table.json` allow; returns their paths."""
    folder = Path(folder)
    study, written = Study(folder / "table.json"), []
    names = [name for name in study.experiments() if study.of(name, behaviour(name), "rdpo")]
    for experiment in names:
        note = f"{experiment}, centre of the study: 400 pairs, 30 % teacher noise, 10 % judge error. Means over seeds with 95 % t-intervals, oracle's view where no judge is named."
        written += write_table(centre_table(study, experiment), folder / experiment, note).values()
    rows = contrasts(study)
    (folder / "contrasts.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    note = "Wanted behaviour at matched utility at the centre, paired by seed; p of a paired t-test, Holm's over these contrasts."
    written += write_table(contrast_table(rows), folder / "contrasts", note).values()
    corrections = correction_table(study)
    if len(corrections):
        note = "Final judge with 10 % errors against the oracle, all rows of the centre, per seed. Corrected by 100 labelled answers of all rows together (arXiv 2511.21140)."
        written += write_table(corrections, folder / "corrections", note).values()
    safety = [name for name in names if name == "safety"]
    figures = {
        "noise": sweep_figure(study, "noise", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "teacher noise", names),
        "judge_error": sweep_figure(study, "judge_error", (0.0, 0.1, 0.2, 0.3), "judge error", safety, (*MAIN, "rdpo_filter")) if safety else None,
        "frontier": frontier_figure(study, names),
        "pairs": sweep_figure(study, "pairs", (50, 100, 200, 400, 800), "pairs", safety) if safety and study.of("safety", "utility", "rdpo", pairs=50) else None,
        "map": map_figure(study, "safety", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.0, 0.1, 0.2, 0.3)) if safety else None,
    }  # fmt: skip
    if (folder / "mechanism.json").exists():
        probed = json.loads((folder / "mechanism.json").read_text(encoding="utf-8"))
        figures["mechanism"] = mechanism_figure(probed["records"], probed["settings"])
    for name, figure in figures.items():
        if figure:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=130)
    return written
