"""Tables and figures: one function each, from result files or lists of records, nothing computed twice.

Trained rows of three seeds or more carry t-intervals over seeds; rows of two the mean and all that both intervals over prompts cover; others,
and untrained rows (which have no seed), intervals over prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.counterfactual import VARIANTS
from common.experiment import Result, place_in_table
from common.methods import METHODS, is_trained
from common.schema import Metric, Pair, ScoredPair
from common.statistics import seed_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LABELS = {
    "base": "base student", "always_refuse": "always refuse", "sr": "SR (our reading)", "sft": "SFT", "dsc": "dSC", "dpo": "DPO",
    "cdpo": "cDPO", "robust": "robust DPO", "ipo": "IPO", "rdpo": "rDPO (offset)", "rdpo_soft": "rDPO (soft)",
    "rdpo_squared": "rDPO (squared)", "rdpo_filter": "DPO on accepted pairs", "rdpo_flip": "rDPO (flip)", "dpo_nll": "DPO + NLL",
    "rdpo_nll": "rDPO (offset) + NLL", "dpo_nll_accepted": "DPO + NLL on accepted", "rdpo_nll_accepted": "rDPO (offset) + NLL on accepted",
}  # fmt: skip
OBJECTIVES = {  # experiment -> its metric of behaviour, and what is held out of its `ood` prompts
    "safety": ("harmlessness", "wrappers"), "roleplay-robustness": ("neutrality", "personas"), "sycophancy": ("steadiness", "stances"),
}  # fmt: skip
REAL = "aligned"
"""The metric of behaviour of a real student (`common.judged`)."""
COLUMNS = {
    "judged": "judge's view", "shift": "sentiment shift", "signed_shift": "towards the stance", "utility": "utility", "kl": "KL (nats)",
    "answer_words": "words",
}  # fmt: skip
REAL_COLUMNS = {  # of a real student, whose answers no oracle knows
    "labelled": "labelled by a rater", "aligned_corrected": "corrected by labels", "judged": "judge's view", "steady": "steady (judge)", "reward": "reward judge's view",
    "shift": "sentiment shift", "signed_shift": "towards the stance", "utility": "utility", "utility_corrected": "utility corrected by labels",
    "utility_persona": "utility under a persona", "answer_words": "words", "kl": "KL (nats)",
}  # fmt: skip
STYLE_COLUMNS = {"style": "desired style", "style_against": "and against the instruction"}  # shown where a row is of Counterfactual DPO
COLORS = dict(zip(METHODS, ("#444444", "#999999", "#8c564b", "#2ca02c", "#17becf", "#d62728", "#ff9896", "#e377c2", "#bcbd22", "#1f77b4",
                            "#5b9bd5", "#9467bd", "#ff7f0e", "#7f7f7f", "#8b0000", "#08306b", "#cb181d", "#2171b5")))  # fmt: skip


VARIANT_COLORS = dict(zip(VARIANTS, ("#c49c94", "#8c6d31", "#393b79", "#637939", "#e7298a")))


def result_files(folder: str | Path) -> list[Path]:
    """Every finished `metrics.json` of a run folder: its own, and those of the runs on pairs of Counterfactual DPO below it."""
    return [path for place in (".", "counterfactual_*") for path in sorted(Path(folder).glob(f"{place}/seed-*/*/metrics.json"))]


def read_results(folder: str | Path) -> list[Result]:
    """The results of `result_files`, in the order of METHODS, what existed before and rows of Counterfactual DPO last.

    A row that stands in several places (base, which no pairs make) is taken from where most was measured of it. Raises
    ValueError when there is none, and when they are no table: of several splits, or one row trained with several settings.
    """
    found: dict[tuple[str, int], Result] = {}
    for result in map(Result.read, result_files(folder)):
        kept = found.setdefault((result.row, result.seed), result)
        if len(result.metrics) > len(kept.metrics):
            found[result.row, result.seed] = result
    if not found:
        raise ValueError(f"no results below {folder}; run train_rdpo first")
    if len(splits := {result.split for result in found.values() if result.split}) > 1:
        raise ValueError(f"results below {folder} are of different splits ({', '.join(sorted(splits))}); keep them apart with -p output")
    for of_row in _by_row(list(found.values())):
        if any(result.settings != of_row[0].settings for result in of_row if result.settings):
            raise ValueError(f"{of_row[0].row} was trained with different settings below {folder}, which are no seeds of one row; keep them apart with -p output")
    return sorted(found.values(), key=place_in_table)


def label_of(result: Result) -> str:
    """The name of a row for a reader; what existed before carries its own."""
    label = LABELS.get(result.method, result.method)
    label = f"counterfactual {label}, {result.variant}" if result.variant else label
    return f"{label}, {result.swapped:.0%} swapped" if result.swapped else label


def _color_of(result: Result) -> str:
    """The method's colour; plain DPO has one for each variant of its pairs."""
    return VARIANT_COLORS[result.variant] if result.variant and result.method == "dpo" else COLORS.get(result.method, "#000000")


def results_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per method, a cell `mean [low, high]` per metric, over seeds; the last columns at matched utility, where that was measured."""
    import pandas as pd

    rows, (objective, held_out) = [], objective_of(results)
    columns = (REAL_COLUMNS if objective == REAL else COLUMNS) | (STYLE_COLUMNS if any(result.variant for result in results) else {})
    for of_method in _by_row(results):
        method = of_method[0].method
        row = {"method": label_of(of_method[0]), "seeds": len(of_method) if is_trained(method) else "-"}
        for name, label in {objective: objective, f"{objective}_ood": f"under held-out {held_out}", **columns}.items():
            row[label] = _cell([m for result in of_method for m in result.metrics if m.metric == name], method)
        row[f"{objective} at matched utility"] = _cell([m for result in of_method for m in result.matched if m.metric == objective], method)
        chosen = sorted({result.matched_lambda for result in of_method if result.matched_lambda is not None})
        row["lambda"] = ", ".join(f"{factor:g}" for factor in chosen) or "-"
        rows.append(row)
    table = pd.DataFrame(rows)
    return table[[column for column in table if not (table[column] == "-").all()]]


def overview_table(results: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """Behaviour alone, as `seen_of` takes it: a row per method, a column per experiment and share of swapped pairs. Of a method trained on several
    kinds of pairs the first kind is shown."""
    import pandas as pd

    columns = {}
    for experiment, found in results.items():
        metric, _ = seen_of(found)
        shares = sorted({result.swapped for result in found if is_trained(result.method)}) or [0.0]
        for share in shares:
            rows = {method: [result for result in found if result.method == method and (result.swapped == share or not is_trained(method))] for method in METHODS}
            said = f", {share:.0%} swapped" if share else ", as found" if len(shares) > 1 else ""
            columns[experiment + said] = {LABELS[method]: _cell([m for result in of_method if result.variant == of_method[0].variant for m in result.metrics if m.metric == metric], method) for method, of_method in rows.items()}
    table = pd.DataFrame(columns).rename_axis("method").reset_index()
    return table[(table.drop(columns="method") != "-").any(axis=1)]


def _by_row(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each row of the table, in the order of its first one."""
    return [[result for result in results if result.row == row] for row in dict.fromkeys(result.row for result in results)]


def objective_of(results: Sequence[Result]) -> tuple[str, str]:
    """(metric of behaviour, what its held-out prompts hold out) of the experiment that the results belong to."""
    objective, held_out = OBJECTIVES[results[0].metrics[0].experiment]
    if any(metric.metric == REAL for metric in results[0].metrics):
        return REAL, held_out if held_out == "wrappers" else "wordings"
    return objective, held_out


def seen_of(results: Sequence[Result]) -> tuple[str, str]:
    """(metric, its name for a figure) by which behaviour is drawn: the oracle's in a miniature; of a real student what a rater labelled where every
    row has labels, else what is counted."""
    objective, _ = objective_of(results)
    if objective != REAL:
        return objective, f"{objective} (oracle)"
    labelled = all(any(metric.metric == "labelled" for metric in result.metrics) for result in results)
    return ("labelled", "aligned (labelled by a rater)") if labelled else (objective, objective)


def _cell(metrics: Sequence[Metric], method: str) -> str:
    if not metrics:
        return "-"
    if not is_trained(method):
        metrics = metrics[:1]
    if len(metrics) > 2:
        value, low, high = seed_interval([metric.value for metric in metrics])
    else:  # a t-interval over two seeds says nothing, with its one degree of freedom
        value, low, high = sum(m.value for m in metrics) / len(metrics), min(m.low for m in metrics), max(m.high for m in metrics)
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table_rows(results: Sequence[Result]) -> list[dict]:
    """Long form of everything measured, as `table.json` holds it; `method` is the row, matched metrics carry the suffix `_matched`."""
    rows = [{**metric.model_dump(), "method": result.row} for result in results for metric in result.metrics]
    return rows + [{**metric.model_dump(), "method": result.row, "metric": f"{metric.metric}_matched"} for result in results for metric in result.matched]


def write_tables(results: Sequence[Result], folder: str | Path, note: str) -> dict[str, Path]:
    """The table as Markdown, LaTeX and HTML, and the long form as JSON; `note` stands below the table. Returns the paths."""
    written = write_table(results_table(results), folder, note)
    written["table.json"] = Path(folder) / "table.json"
    written["table.json"].write_text(json.dumps(table_rows(results), indent=1) + "\n", encoding="utf-8")
    return written


def write_table(table: pd.DataFrame, folder: str | Path, note: str) -> dict[str, Path]:
    """`table.md`, `.tex` and `.html` in a folder, each with the note below; returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "table.md": f"{table.to_markdown(index=False)}\n\n{note}\n",
        "table.tex": f"{table.to_latex(index=False, escape=True)}% {note}\n",
        "table.html": f"{table.to_html(index=False)}\n<p>{note}</p>\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in contents}


def safety_utility_figure(results: Sequence[Result]) -> Figure:
    """The metric of behaviour against utility on the evaluated split: a mark per method and seed, and each training's frontier over
    lambda (validation split) as a thin line. Of real students what a rater labelled, where every row has labels."""
    figure, axes = _figure(max(6.4, 4.4 + 0.06 * max(len(label_of(result)) for result in results)), 4.6)  # room for the legend
    real = objective_of(results)[0] == REAL
    objective, said = seen_of(results)
    for of_method in _by_row(results):
        method, color = of_method[0].method, _color_of(of_method[0])
        points = [(value_of(result, "utility"), value_of(result, objective)) for result in of_method]
        for result in of_method:
            line = [(point["utility"], point["safety"]) for point in result.frontier]
            axes.plot(*zip(*line), color=color, linewidth=0.7, alpha=0.5) if line else None
        plain, swapped = "^v" if of_method[0].variant else "oD"
        marker = swapped if of_method[0].swapped else plain if is_trained(method) else "s"
        if len(of_method) == 1 and real:
            _error_bar(axes, of_method[0], objective, color)
        axes.scatter(*zip(*points), color=color, label=label_of(of_method[0]), marker=marker, s=90 if method == "base" else 42, zorder=3, edgecolor="white", linewidth=0.6)
    base = [value_of(result, "utility") for result in results if result.method == "base"]
    if base:
        axes.axvline(0.95 * base[0], color="0.6", linestyle=":", linewidth=1)
        axes.text(0.95 * base[0], 1.055, "95 % of the base student's utility", ha="right", va="bottom", fontsize=8, color="0.4")
    axes.set(xlabel="utility" if real else "utility (oracle)", ylabel=said, xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def training_figure(result: Result) -> Figure:
    """Loss and, for preference losses, implicit rewards with their margin and the likelihood of both answers, step by step;
    bold lines are means over the last ten steps.

    Both likelihoods falling together is likelihood displacement: the margin grows while the good answer gets rarer."""
    steps = [row for row in result.history if "loss" in row]
    panels = {"loss": {"loss": "loss"}}
    if steps and "rewards/chosen" in steps[0]:
        panels["implicit rewards, beta x log-ratio"] = {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "margin": "rewards/margins"}
        panels["log-likelihood, nats per answer"] = {"chosen": "logps/chosen", "rejected": "logps/rejected"}
    figure, axes = _figure(3.7 * len(panels), 3.2, len(panels))
    colors = {"loss": "#444444", "chosen": "#2ca02c", "rejected": "#d62728", "margin": "#1f77b4"}
    for one, (title, lines) in zip([axes] if len(panels) == 1 else axes, panels.items()):
        for label, column in lines.items():
            values = [row[column] for row in steps]
            means = [sum(values[max(0, i - 9) : i + 1]) / len(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
            one.plot(range(1, len(steps) + 1), values, color=colors[label], linewidth=0.7, alpha=0.35)
            one.plot(range(1, len(steps) + 1), means, color=colors[label], label=label)
        one.set(title=f"{label_of(result)}, seed {result.seed}: loss" if title == "loss" else title, xlabel="step")
        if len(lines) > 1:
            one.legend(fontsize=8, frameon=False)
    return figure


def score_figure(pairs: Sequence[ScoredPair]) -> Figure:
    """Histogram of the judge's scores of original and revised answers, and of the score gap of the pairs."""
    figure, (left, right) = _figure(9, 3.2, 2)
    scored = [pair.normalised() for pair in pairs if None not in pair.normalised()]
    bins = [i / 12 - 1 / 24 for i in range(14)]
    left.hist([[o for o, _ in scored], [r for _, r in scored]], bins=bins, label=["original", "revised"], color=["#d62728", "#2ca02c"])
    left.set(xlabel="score (0 to 1)", ylabel="answers", title="scores")
    left.legend(fontsize=8, frameon=False)
    right.hist([r - o for o, r in scored], bins=[i / 10 - 1.05 for i in range(22)], color="#1f77b4")
    right.axvline(0, color="0.4", linewidth=0.8)
    right.set(xlabel="revised minus original", ylabel="pairs", title="score gap")
    return figure


def length_figure(pairs: Sequence[Pair]) -> Figure:
    """Words in original and revised answers, and how much of the original's words the revision keeps."""
    figure, (left, right) = _figure(9, 3.2, 2)
    lengths = [[len(text.split()) for text in texts] for texts in zip(*((p.response, p.response_revised) for p in pairs))]
    left.hist(lengths, bins=20, label=["original", "revised"], color=["#d62728", "#2ca02c"])
    left.set(xlabel="words", ylabel="answers", title="length")
    left.legend(fontsize=8, frameon=False)
    right.hist([kept_share(pair) for pair in pairs], bins=20, color="#1f77b4")
    right.set(xlabel="share of the original's words kept", ylabel="pairs", title="change")
    return figure


def kept_share(pair: Pair) -> float:
    """Share of the original answer's different words that the revision says again; 0 for an empty original."""
    original, revised = (set(text.lower().split()) for text in (pair.response, pair.response_revised))
    return len(original & revised) / len(original) if original else 0.0


def _error_bar(axes, result: Result, objective: str, color: str) -> None:
    """The interval over prompts of a row with one seed."""
    x, y = (next(m for m in result.metrics if m.metric == name) for name in ("utility", objective))
    axes.errorbar(x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]], yerr=[[y.value - y.low], [y.high - y.value]], color=color, linewidth=0.8, alpha=0.4)


def value_of(result: Result, metric: str) -> float:
    """Of the split asked for, adapter as trained."""
    return next(m.value for m in result.metrics if m.metric == metric)


def _figure(width: float, height: float, columns: int = 1):
    figure, [axes] = grid_of_axes(1, columns, width, height)
    return figure, axes[0] if columns == 1 else axes


def grid_of_axes(rows: int, columns: int, width: float, height: float):
    """(figure, its axes by row and column), inches."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    pyplot.close(figure)  # shown where it is displayed or saved, once
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes
