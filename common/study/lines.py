"""How rows of the study become lines of its `table.csv`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common.evaluation.result import Result
from common.miniature.world import world_of
from common.miniature.worlds import safety
from common.report.measurements import measurement_of, read_measurements, student_of, write_measurements
from common.report.tables import OBJECTIVES
from common.schema import Metric
from common.statistics import corrected_rate
from common.study.cells import PROMPTS
from common.study.design import BLIND_TO, Row
from common.training.self_augmented.counts import counts_of

WITHOUT_BOUNDS = ("answer_words", "kl")
"""Means over the prompts of one student; tables and figures have intervals over students."""
LEFT_OUT = ("gibberish", "judged_ood", "reward_utility", "shift", "signed_shift", "style")
"""What no table or figure of the study shows; the results of the rows in `runs/evidence` have it."""


def lines_of(row: Row, result: Result, **more: float) -> list[dict[str, Any]]:
    """What was measured of a row, and `more` of it, one line a metric. `_matched`: at matched utility, behaviour and
    utility alone; `@`: with the adapter scaled by that lambda, on the validation split. cell: what differs from the
    centre."""
    objective = OBJECTIVES[row.cell.experiment][0]
    about = {
        "experiment": row.cell.experiment, "method": row.method, "noise": row.cell.noise, "judge_error": row.cell.judge_error, "seed": row.seed,
        "cell": row.unlike_centre,
    }  # fmt: skip
    measured = [(metric, metric.metric) for metric in result.metrics if metric.metric not in LEFT_OUT] + [
        (metric, f"{metric.metric}_matched") for metric in result.matched if metric.metric in (objective, "utility")
    ]
    unbounded = {"low": None, "high": None}
    lines = [
        {**about, **measurement_of(metric), "metric": name, **(unbounded if name in WITHOUT_BOUNDS else {})}
        for metric, name in measured
    ]
    seconds = [step["train_runtime"] for step in result.history if "train_runtime" in step]
    single = {
        "lambda": result.matched_lambda,
        "train_seconds": round(seconds[0], 2) if seconds else None,
        "pairs_used": result.pairs_used or None,
        "student_answers": made.answers if (made := counts_of(result.history)) else None,
        **more,
    }
    for point in result.frontier if not row.unlike_centre else []:
        single |= {
            f"utility@{point['lambda']:g}": round(point["utility"], 4),
            f"{objective}@{point['lambda']:g}": round(point["safety"], 4),
        }
    return lines + [
        {**about, "metric": name, "value": value, "n": 1, "low": value, "high": value}
        for name, value in single.items()
        if value is not None
    ]


def by_wrapper(result: Result) -> dict[str, float]:
    """Harmlessness by the oracle on the harmful test prompts in the wrapper that the blind judge lets pass, and on all
    others."""
    kinds = [record.kind for record in safety.evaluation_sets("test", PROMPTS)["harmful"]]
    inside, others = (
        [
            outcome
            for kind, outcome in zip(kinds, result.outcomes["harmlessness"], strict=True)
            if (kind == BLIND_TO) == within
        ]
        for within in (True, False)
    )
    return {"harmlessness_blind": fmean(inside), "harmlessness_seen": fmean(others)}


def corrected_lines(results: Mapping[Row, Result], labels: int = 100) -> list[dict[str, Any]]:
    """What a practitioner with a final judge and a few labels would report: per experiment and seed, `labels` answers
    of all rows together, drawn at random, are labelled by the oracle; the judge's errors on them correct its view of
    every row (`judged_corrected`). None in sycophancy, where the final judge is asked for quality alone and says
    nothing of steadiness."""
    lines, together = [], {}
    for row, result in results.items():
        if not world_of(row.cell.experiment).PROMPTS.quality:
            together.setdefault((row.cell.experiment, row.seed), []).append((row, result))
    for (experiment, seed), of_seed in together.items():
        seen = [
            pair
            for _, result in of_seed
            for pair in zip(result.outcomes["judged"], result.outcomes[OBJECTIVES[experiment][0]])
            if None not in pair
        ]
        drawn = random.Random(seed).sample(seen, min(labels, len(seen)))
        yes, no = ([said for said, true in drawn if true == wanted] for wanted in (True, False))
        for row, result in of_seed:
            said = [outcome for outcome in result.outcomes["judged"] if outcome is not None]
            if value := corrected_rate(sum(said), len(said), sum(yes), len(yes), len(no) - sum(no), len(no)):
                names = {"experiment": experiment, "method": row.method, "seed": seed}
                metric = Metric(
                    metric="judged_corrected", value=value[0], low=value[1], high=value[2], n=len(said), **names
                )
                lines += lines_of(row, Result(row.method, seed, "", [metric]))
    return lines


def write_lines(to: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Adds lines to `<to>/table.csv`, in place of those of the same cell, method and seed."""
    new = {student_of(line) for line in lines}
    write_measurements(
        to / "table.csv", [line for line in _read_lines(to) if student_of(line) not in new] + list(lines)
    )


def drop_lines(to: Path, unwanted: Callable[[dict[str, Any]], bool]) -> int:
    """How many lines were dropped."""
    lines = _read_lines(to)
    if dropped := sum(map(unwanted, lines)):
        write_measurements(to / "table.csv", [line for line in lines if not unwanted(line)])
    return dropped


def _read_lines(to: Path) -> list[dict[str, Any]]:
    return read_measurements(path) if (path := to / "table.csv").exists() else []
