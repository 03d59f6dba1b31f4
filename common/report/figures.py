"""The figures of notebooks and pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from common.data.counterfactual import VARIANTS
from common.evaluation.result import Result
from common.methods import METHODS, is_trained
from common.report.tables import REAL, by_row, objective_of, row_label, seen_of, value_of
from common.schema import Pair, ScoredPair
from common.trainer.displacement import CHOSEN, KL, REJECTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


VARIANT_COLORS = dict(zip(VARIANTS, ("#c49c94", "#8c6d31", "#393b79", "#637939", "#e7298a")))


def _color_of(result: Result) -> str:
    """The method's colour; plain DPO and SFT have one for each variant of their pairs."""
    return (
        VARIANT_COLORS[result.variant]
        if result.variant and result.method in ("dpo", "sft")
        else METHODS[result.method].color
        if result.method in METHODS
        else "#000000"
    )


def safety_utility_figure(results: Sequence[Result]) -> Figure:
    """The metric of behaviour against utility on the evaluated split: a mark per method and seed, and each training's
    frontier over lambda (validation split) as a thin line. Of real students what a rater labelled, where every row has
    labels."""
    labels = {row_label(result) for result in results}
    room_for_legend = max(6.4, 4.4 + 0.06 * max(map(len, labels))), max(4.6, 0.24 * len(labels))
    figure, axes = _figure(*room_for_legend)
    real = objective_of(results)[0] == REAL
    objective, said = seen_of(results)
    results = [result for result in results if any(metric.metric == "utility" for metric in result.metrics)]
    if not results:
        axes.text(0.5, 0.5, "no benign prompts, so no utility to draw", ha="center", transform=axes.transAxes)
    for of_method in by_row(results):
        method, color = of_method[0].method, _color_of(of_method[0])
        points = [(value_of(result, "utility"), value_of(result, objective)) for result in of_method]
        for result in of_method:
            line = [(point["utility"], point["safety"]) for point in result.frontier]
            axes.plot(*zip(*line), color=color, linewidth=0.7, alpha=0.5) if line else None
        learnt = method in METHODS and METHODS[method].kind == "supervised"
        plain, swapped = ("<>" if learnt else "^v") if of_method[0].variant else "oD"
        marker = swapped if of_method[0].swapped else plain if is_trained(method) else "s"
        if len(of_method) == 1 and real:
            _error_bar(axes, of_method[0], objective, color)
        axes.scatter(
            *zip(*points),
            color=color,
            label=row_label(of_method[0]),
            marker=marker,
            s=90 if method == "base" else 42,
            zorder=3,
            edgecolor="white",
            linewidth=0.6,
        )
    base = [value_of(result, "utility") for result in results if result.method == "base"]
    if base:
        axes.axvline(0.95 * base[0], color="0.6", linestyle=":", linewidth=1)
        axes.text(
            0.95 * base[0],
            1.055,
            "95 % of the base student's utility",
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.4",
        )
    axes.set(xlabel="utility" if real else "utility (oracle)", ylabel=said, xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
    if results:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def training_figure(result: Result) -> Figure:
    """Loss and, for preference losses, implicit rewards with their margin, and how far both answers have moved from the
    reference a token, with KL; step by step, bold lines are means over the last ten steps.

    Both answers falling together is likelihood displacement: the margin grows while the good answer gets rarer."""
    steps = [row for row in result.history if "loss" in row]
    panels = {"loss": {"loss": "loss"}}
    if any("rewards/chosen" in row for row in steps):
        panels["implicit rewards, beta x log-ratio"] = {
            "chosen": "rewards/chosen",
            "rejected": "rewards/rejected",
            "margin": "rewards/margins",
        }
        panels["moved from the reference, nats a token"] = {"chosen": CHOSEN, "rejected": REJECTED, "KL": KL}
    figure, axes = _figure(3.7 * len(panels), 3.2, len(panels))
    colors = {"loss": "#444444", "chosen": "#2ca02c", "rejected": "#d62728", "margin": "#1f77b4", "KL": "#444444"}
    for one, (title, lines) in zip([axes] if len(panels) == 1 else axes, panels.items()):
        for label, column in lines.items():
            points = [(number, row[column]) for number, row in enumerate(steps, 1) if column in row]
            if not points:
                continue
            numbers, values = zip(*points)
            if label == "KL":
                one.plot(numbers, values, color=colors[label], marker="o", markersize=3, linewidth=0.7, label=label)
                continue
            means = [fmean(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
            one.plot(numbers, values, color=colors[label], linewidth=0.7, alpha=0.35)
            one.plot(numbers, means, color=colors[label], label=label)
        one.set(title=f"{row_label(result)}, seed {result.seed}: loss" if title == "loss" else title, xlabel="step")
        if len(lines) > 1:
            one.legend(fontsize=8, frameon=False)
        if CHOSEN in lines.values():
            one.axhline(0, color="0.4", linewidth=0.8)
    return figure


def score_figure(pairs: Sequence[ScoredPair]) -> Figure:
    """Histogram of the judge's scores of original and revised answers, and of the score gap of the pairs."""
    figure, (left, right) = _figure(9, 3.2, 2)
    scored = [pair.normalised() for pair in pairs if pair.is_scored]
    bins = [i / 12 - 1 / 24 for i in range(14)]
    left.hist(
        [[o for o, _ in scored], [r for _, r in scored]],
        bins=bins,
        label=["original", "revised"],
        color=["#d62728", "#2ca02c"],
    )
    left.set(xlabel="score (0 to 1)", ylabel="answers", title="scores")
    left.legend(fontsize=8, frameon=False)
    right.hist([r - o for o, r in scored], bins=[i / 10 - 1.05 for i in range(22)], color="#1f77b4")
    right.axvline(0, color="0.4", linewidth=0.8)
    right.set(xlabel="revised minus original", ylabel="pairs", title="score gap")
    return figure


def length_figure(pairs: Sequence[Pair]) -> Figure:
    """Words in original and revised answers, and how much of the original's words the revision keeps."""
    figure, (left, right) = _figure(9, 3.2, 2)
    lengths = [
        [len(text.split()) for text in texts] for texts in zip(*((p.response, p.response_revised) for p in pairs))
    ]
    left.hist(lengths, bins=20, label=["original", "revised"], color=["#d62728", "#2ca02c"])
    left.set(xlabel="words", ylabel="answers", title="length")
    left.legend(fontsize=8, frameon=False)
    right.hist([kept_share(pair) for pair in pairs], bins=20, color="#1f77b4")
    right.set(xlabel="share of the original's words kept", ylabel="pairs", title="change")
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG of at most 64 colours, 100 dots an inch, the same bytes whenever it is drawn from the
    same numbers."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, metadata={"Software": None})
    colours = (
        Image.open(drawn).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    )  # the median cut, Pillow's own choice, merges the colours of small marks
    colours.save(path, optimize=True)
    return Path(path)


def kept_share(pair: Pair) -> float:
    """Share of the original answer's different words that the revision says again; 0 for an empty original."""
    original, revised = (set(text.lower().split()) for text in (pair.response, pair.response_revised))
    return len(original & revised) / len(original) if original else 0.0


def _error_bar(axes, result: Result, objective: str, color: str) -> None:
    """The interval over prompts of a row with one seed."""
    x, y = (next(m for m in result.metrics if m.metric == name) for name in ("utility", objective))
    axes.errorbar(
        x.value,
        y.value,
        xerr=[[x.value - x.low], [x.high - x.value]],
        yerr=[[y.value - y.low], [y.high - y.value]],
        color=color,
        linewidth=0.8,
        alpha=0.4,
    )


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
