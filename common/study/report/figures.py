"""Figures of the study: every value a mean over seeds with its t-interval, differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from common.evaluation.result import Result
from common.methods import METHODS
from common.report.figures import grid_of_axes
from common.report.tables import OBJECTIVES, seen_of, value_of
from common.statistics import seed_interval
from common.study.design import AS_DPO, MAIN, NEIGHBOURS, UNTRAINED
from common.study.rows import CENTRE, Study, behaviour, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sweep_figure(study: Study, factor: str, values: Sequence[float], label: str, names: Sequence[str]) -> Figure:
    """Against one factor around the centre, over the seeds that all points have, a column an experiment: wanted
    behaviour at matched utility, what rDPO has above another method there (paired by seed, with its t-interval), and
    utility as trained. The base student is a dotted line, DPO with rDPO's setting a dashed one where it was trained. A
    single experiment has them side by side."""
    if len(names) > 1:
        figure, axes = grid_of_axes(3, len(names), 3.6 * len(names) + 1.8, 7.6)
    else:
        figure, row = grid_of_axes(1, 3, 12.6, 3.6)
        axes = [[one] for one in row[0]]
    reach = 0.7
    for column, experiment in enumerate(names):
        of = lambda metric, method, value: study.few(experiment, metric, method, **{factor: value})  # noqa: B023, E731
        for row, metric in ((0, behaviour(experiment)), (2, "utility")):
            for method in MAIN:
                if points := [
                    (value, fmean(found.values())) for value in values if (found := of(metric, method, value))
                ]:
                    axes[row][column].plot(
                        *zip(*points),
                        color=METHODS[method].color,
                        label=METHODS[method].label,
                        marker="o",
                        markersize=4,
                    )
            points = [
                (value, fmean(found.values()))
                for value in values
                if (found := study.few(experiment, metric, "rdpo", **{factor: value}, **AS_DPO))
            ]
            if len(points) > 1:
                axes[row][column].plot(
                    *zip(*points),
                    color=METHODS["dpo"].color,
                    label="DPO, rDPO's setting",
                    linestyle="--",
                    marker="o",
                    markersize=4,
                )
            if base := of(metric, "base", getattr(CENTRE, factor)):
                axes[row][column].axhline(
                    fmean(base.values()), color="0.5", linestyle=":", linewidth=1, label=METHODS["base"].label
                )
            axes[row][column].set(ylim=(-0.03, 1.05))
        for place, other in enumerate(("dpo", "dsc", "rdpo_filter")):
            points = [
                (value, *seed_interval(found))
                for value in values
                if len(found := paired(*(of(behaviour(experiment), method, value) for method in ("rdpo", other)))) > 1
            ]
            if points:
                at, mean, low, high = zip(*points)
                beside = [x * 1.06 ** (place - 1) if factor == "pairs" else x + 0.006 * (place - 1) for x in at]
                reached = [[m - end for m, end in zip(mean, low)], [end - m for m, end in zip(mean, high)]]
                axes[1][column].errorbar(
                    beside, mean, yerr=reached, color=METHODS[other].color, marker="o", markersize=4, elinewidth=0.9
                )
                reach = max(reach, *map(abs, (*low, *high)))
        axes[1][column].axhline(0, color="0.5", linewidth=0.8)
        for one in (axes[0][column], axes[1][column], axes[2][column]):
            if factor == "pairs":
                one.set_xscale("log", base=2)
            one.set_xticks(values, [f"{value:g}" for value in values])
            one.set_xlabel(label if len(names) == 1 or one is axes[2][column] else "")
        axes[0][column].set_title(f"{experiment}: {OBJECTIVES[experiment][0]}", fontsize=10)
    for one in axes[1]:
        one.set_ylim(-reach, reach)
    for row, said in enumerate(("at matched utility", "rDPO - the other", "utility as trained")):
        axes[row][0].set_ylabel(said)
    (axes[2] if len(names) == 1 else axes[0])[-1].legend(
        *axes[0][0].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return figure


def contrast_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The contrasts that were named beforehand: a dot a seed, the mean with its t-interval beside them."""
    names = list(dict.fromkeys(row["experiment"] for row in rows))
    bound = max(0.6, 1.05 * max(abs(value) for row in rows for value in (*row["differences"], row["low"], row["high"])))
    figure, axes = grid_of_axes(1, len(names), 3.6 * len(names), 3.8)
    for one, experiment in zip(axes[0], names):
        shown = [row for row in rows if row["experiment"] == experiment]
        for x, row in enumerate(shown):
            one.scatter(
                [x - 0.12] * row["seeds"],
                row["differences"],
                color=METHODS[_rival(row)].color,
                s=22,
                alpha=0.7,
                linewidth=0,
            )
            one.errorbar(
                x + 0.12,
                row["difference"],
                [[row["difference"] - row["low"]], [row["high"] - row["difference"]]],
                color="black",
                marker="o",
                markersize=4,
                capsize=3,
            )
        one.axhline(0, color="0.6", linewidth=0.8)
        one.set_xticks(
            range(len(shown)),
            ["rDPO\n- " + METHODS[_rival(row)].label.replace(" on ", "\non ") for row in shown],
            fontsize=8,
        )
        one.set(
            xlim=(-0.5, len(shown) - 0.5),
            ylim=(-bound, bound),
            ylabel="difference at matched utility" if experiment == names[0] else "",
        )
        one.set_title(f"{experiment}: {OBJECTIVES[experiment][0]}", fontsize=10)
    return figure


def _rival(contrast: Mapping[str, Any]) -> str:
    return contrast["contrast"].split(" - ")[1]


def frontier_figure(study: Study, names: Sequence[str]) -> Figure:
    """Behaviour against utility on the test split at the centre: a small mark a seed, a large one the mean, and a thin
    line the mean frontier over lambda (validation split) from the base student to the student as trained. An axis
    begins where the worst student stands."""
    figure, axes = grid_of_axes(1, len(names), 4.2 * len(names) + 2.2, 4.2)
    for one, experiment in zip(axes[0], names):
        objective = OBJECTIVES[experiment][0]
        left = worst = min(value for method in MAIN for value in study.of(experiment, "utility", method).values())
        for method in (*UNTRAINED, *MAIN, *NEIGHBOURS):
            x, y = (study.of(experiment, metric, method) for metric in ("utility", objective))
            if not x or max(x.values()) < worst:
                continue
            left, color = min(left, *x.values()), METHODS[method].color
            one.scatter(list(x.values()), [y[seed] for seed in x], color=color, s=9, alpha=0.35, linewidth=0)
            one.scatter(
                fmean(x.values()),
                fmean(y.values()),
                color=color,
                s=58,
                label=METHODS[method].label,
                edgecolor="white",
                linewidth=0.7,
                zorder=3,
                marker="s" if method in UNTRAINED else "o",
            )
            line = [
                (fmean(u.values()), fmean(b.values()))
                for factor in ("0", "0.25", "0.5", "0.75", "1")
                if (u := study.of(experiment, f"utility@{factor}", method))
                and (b := study.of(experiment, f"{objective}@{factor}", method))
            ]
            one.plot(*zip(*line), color=color, linewidth=0.8, alpha=0.6) if line else None
        one.axvline(
            0.95 * fmean(study.of(experiment, "utility", "base").values()), color="0.6", linestyle=":", linewidth=1
        )
        room = max(0.03 * (1 - left), 0.001)  # or an axis of students that are all perfect has no width
        one.set(xlabel="utility", xlim=(left - room, 1 + room), ylim=(-0.03, 1.05))
        one.set_title(f"{experiment}: {objective}", fontsize=10)
    axes[0][0].set_ylabel("wanted behaviour as trained")
    axes[0][-1].legend(
        *axes[0][0].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return figure


def map_figure(
    study: Study,
    experiment: str,
    noises: Sequence[float],
    errors: Sequence[float],
    against: Sequence[str] = ("dpo", "rdpo_filter", "dsc"),
) -> Figure:
    """Who wins where: mean paired difference of rDPO and another method, at matched utility, over teacher noise and
    judge error, with its t-interval, over the seeds that all cells have. Bold where the interval leaves zero out; not
    corrected for their number."""
    figure, axes = grid_of_axes(len(against), 1, 7.4, 3.2 * len(against))
    for (one,), other in zip(axes, against):
        cells = [
            [
                paired(
                    *(
                        study.few(experiment, behaviour(experiment), method, noise=noise, judge_error=error)
                        for method in ("rdpo", other)
                    )
                )
                for noise in noises
            ]
            for error in errors
        ]
        shown = one.imshow(
            [[fmean(values) if values else float("nan") for values in row] for row in cells],
            cmap="RdBu",
            vmin=-0.6,
            vmax=0.6,
            aspect="auto",
            origin="lower",
        )
        for y, row in enumerate(cells):
            for x, values in enumerate(row):
                if len(values) > 1:
                    mean, low, high = seed_interval(values)
                    style = {"ha": "center", "color": "white" if abs(mean) > 0.4 else "black"}
                    one.text(
                        x,
                        y,
                        f"{mean:+.2f}",
                        va="bottom",
                        fontsize=9,
                        weight="bold" if low > 0 or high < 0 else "normal",
                        **style,
                    )
                    one.text(x, y - 0.05, f"[{low:+.2f}, {high:+.2f}]", va="top", fontsize=7, **style)
        one.set_xticks(range(len(noises)), [f"{noise:.0%}" for noise in noises])
        one.set_yticks(range(len(errors)), [f"{error:.0%}" for error in errors])
        one.set(xlabel="teacher noise", ylabel="judge error")
        one.set_title(f"{OBJECTIVES[experiment][0]}, rDPO - {METHODS[other].label}", fontsize=10)
        one.spines[:].set_visible(False)
    figure.colorbar(shown, ax=[one for (one,) in axes], label="at matched utility")
    return figure


def real_noise_figure(results: Sequence[Result], study: Study) -> Figure:
    """Wrong pairs in the miniature world of an experiment (left: teacher noise, of which half is worse and half no
    better; every seed of the study) and in front of a real student (right: pairs swapped, on top of what is wrong with
    them anyway): behaviour and utility as trained, for the methods that the student has at several shares. A small mark
    a seed, a line through the means, dotted the untrained student."""
    experiment, (seen, said) = results[0].metrics[0].experiment, seen_of(results)
    trained = [result for result in results if result.method in MAIN]
    methods = [method for method in MAIN if len({result.swapped for result in trained if result.method == method}) > 1]
    noises, shares = (0.0, 0.3, 0.5), sorted({result.swapped for result in trained})
    figure, axes = grid_of_axes(2, 2, 8.6, 5.8)
    for (left, right), of_study, of_real in zip(axes, (OBJECTIVES[experiment][0], "utility"), (seen, "utility")):
        for one, of_base in (
            (left, study.of(experiment, of_study, "base").values()),
            (right, [value_of(result, of_real) for result in results if result.method == "base"]),
        ):
            if of_base:
                one.axhline(fmean(of_base), color="0.5", linestyle=":", linewidth=1, label=METHODS["base"].label)
        for shift, method in enumerate(methods):
            in_study = {noise: list(study.of(experiment, of_study, method, noise=noise).values()) for noise in noises}
            real = {
                share: [value_of(r, of_real) for r in trained if (r.method, r.swapped) == (method, share)]
                for share in shares
            }
            for one, points in ((left, in_study), (right, real)):
                points = {x + 0.004 * (shift - len(methods) / 2): values for x, values in points.items() if values}
                if not points:
                    continue
                one.scatter(
                    *zip(*[(x, value) for x, values in points.items() for value in values]),
                    color=METHODS[method].color,
                    s=14,
                    alpha=0.5,
                    linewidth=0,
                )
                one.plot(
                    points.keys(),
                    [fmean(values) for values in points.values()],
                    color=METHODS[method].color,
                    label=METHODS[method].label,
                    marker="o",
                    markersize=5,
                )
        for one in (left, right):
            one.set(ylim=(-0.03, 1.05))
            one.set_xticks(noises if one is left else shares, [f"{x:.0%}" for x in (noises if one is left else shares)])
        left.set(ylabel=of_study)
        right.set(ylabel=said if of_real == seen else of_real)
    axes[1][0].set_xlabel("teacher noise")
    axes[1][1].set_xlabel("pairs swapped")
    axes[0][0].set_title(f"{experiment}, the miniature (oracle)", fontsize=10)
    axes[0][1].set_title(f"{experiment}, a real student", fontsize=10)
    axes[0][1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
