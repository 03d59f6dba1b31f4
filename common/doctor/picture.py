"""The doctor's one picture: shares of rows that a check found, and the score gaps of the pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.doctor.diagnosis import Diagnosis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8c8c8c"
"""Of Okabe and Ito's palette, which colour-blind readers tell apart."""
BINS = 40


def diagnosis_figure(found: Diagnosis) -> Figure:
    """Left: each check that found a row, share with Wilson's 95 % interval and counts. Right: histogram of the score
    gaps, or a sentence where no row is scored."""
    from matplotlib.figure import Figure

    seen = sorted((one for one in found.findings if one.rows), key=lambda one: len(one.rows) / one.of)
    figure = Figure(figsize=(10.5, max(3.2, 1.3 + 0.34 * len(seen))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for place, one in enumerate(seen):
        value, (low, high) = len(one.rows) / one.of, one.interval
        color = ORANGE if one.suspect else BLUE
        left.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        left.plot(value, place, "o" if one.suspect else "s", color=color, markersize=6.5)
        left.text(
            1.02, place, f"{len(one.rows)} of {one.of}", transform=left.get_yaxis_transform(), va="center", fontsize=9
        )
    left.plot([], [], "o", color=ORANGE, label="may be a mistake")
    left.plot([], [], "s", color=BLUE, label="to know about")
    left.set_yticks(range(len(seen)), [one.name for one in seen])
    most = max((one.interval[1] for one in seen), default=1.0)
    left.set(
        xlim=(0, min(1.0, 1.12 * most)),
        ylim=(-0.6, max(len(seen), 1) - 0.4),
        xlabel="share of the rows looked at, 95 % interval",
    )
    if seen:
        left.legend(fontsize=9, loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    else:
        left.text(0.5, 0.5, "no check found a row", transform=left.transAxes, ha="center")
    _gaps(found, right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return figure


def _gaps(found: Diagnosis, axes) -> None:
    gaps = [row.gap for row in found.rows if row.gap is not None]
    axes.set(xlabel="score gap, chosen less rejected", ylabel="rows", xticks=[-1, -0.5, 0, 0.5, 1])
    if not gaps:
        axes.text(0.5, 0.5, "no row has both scores", transform=axes.transAxes, ha="center")
        axes.set(xticks=[], yticks=[])
        return
    most = max(0.05, *map(abs, gaps)) * 1.02
    parts = {
        "contradicted": (ORANGE, [gap for gap in gaps if gap < 0]),
        "tied": (GREY, [gap for gap in gaps if gap == 0]),
        "chosen scored higher": (BLUE, [gap for gap in gaps if gap > 0]),
    }
    width = 2 * most / BINS
    edges = [-most + i * width for i in range(BINS + 1)]
    for label, (color, values) in parts.items():
        if values and label == "tied":
            axes.bar(0, len(values), width * 0.55, color=color, label=f"{label}: {len(values)}", zorder=3)
        elif values:
            axes.hist(values, edges, color=color, label=f"{label}: {len(values)}", edgecolor="white", linewidth=0.4)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    axes.margins(y=0.18)
