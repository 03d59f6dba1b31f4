"""A student trained on single answers beside itself untrained: how likely it finds held-out answers, better and worse
ones apart, and what it answers. No judge: of two answers the better one is that with the higher score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from common.evaluation.answers import TrainedStudent
from common.evaluation.matched_utility import scaled
from common.evaluation.metrics import mean
from common.evaluation.result import Result
from common.logprobs.compute import grouped_logprobs
from common.report.before_after import ANSWERS, WHEN, check_finite, closing, encoded, first_answers, opening
from common.runtime import Progress
from common.schema import Metric, ScoredAnswer

PARTS = {"better": "scored above the mean of the held-out ones", "worse": "the others"}
LEAST = 2
"""Answers of a part, for a mean with an interval."""


def account(answers: Sequence[ScoredAnswer], student: TrainedStudent, max_length: int) -> dict[str, int]:
    """How many answers there are, how many have no score, and of how many the prompt alone fills `max_length`."""
    full = sum(len(encoded(student.tokenizer, row)) >= max_length for row in answers)
    return {"answers": len(answers), "unscored": sum(not row.is_scored for row in answers), "cut": full}


def parts_of(held_out: Sequence[ScoredAnswer]) -> dict[str, list[int]]:
    """Part of `PARTS` -> numbers of its answers; {} unless each would have `LEAST`."""
    scored = {number: score for number, row in enumerate(held_out) if (score := row.normalised()) is not None}
    middle = sum(scored.values()) / len(scored) if scored else 0.0
    parts = {"better": [n for n, score in scored.items() if score > middle]}
    parts["worse"] = [n for n in scored if n not in parts["better"]]
    return parts if all(len(numbers) >= LEAST for numbers in parts.values()) else {}


def measure(
    student: TrainedStudent, held_out: Sequence[ScoredAnswer], **names: str | int
) -> tuple[list[Metric], dict[str, list[str]]]:
    """Metrics, and the answers to the first prompts; before is the same model with its adapter off.

    logp_before, logp_after: mean log-probability per token of the held-out answers, nats, end of turn included.
    gained_better, gained_worse: how much of it training added, for the parts of `PARTS`, where there are two of each.
    A student of CA is asked for its score in all of them, before training too.

    Raises ValueError when fewer than two answers are held out, or a log-probability is not finite.
    """
    if len(held_out) < LEAST:
        raise ValueError(f"{len(held_out)} answers are held out; give more rows, so that there are {LEAST}")
    per_token: dict[str, torch.Tensor] = {}
    answers = {}
    for when, factor in WHEN.items():
        progress = Progress(f"held-out answers {when} training", len(held_out) + len(held_out[:ANSWERS]))
        with scaled(student, factor):
            per_token[when] = torch.tensor([_logprob_per_token(student, row, progress) for row in held_out])
            check_finite(per_token[when], when)
            answers[when] = first_answers(student, held_out, progress)
    gained = per_token["after"] - per_token["before"]
    values = {f"logp_{when}": of.tolist() for when, of in per_token.items()}
    values |= {f"gained_{part}": gained[numbers].tolist() for part, numbers in parts_of(held_out).items()}
    return [mean(of, metric=metric, **names) for metric, of in values.items()], answers


@torch.no_grad()
def _logprob_per_token(student: TrainedStudent, row: ScoredAnswer, progress: Progress) -> float:
    asked = encoded(student.tokenizer, row, asked_for=student.asked_for)
    ids = encoded(student.tokenizer, row, row.answer, student.asked_for)
    summed = grouped_logprobs(student.model, [[(ids, len(asked))]])
    progress(1)
    return float(summed[0]) / (len(ids) - len(asked))


def report(
    result: Result, held_out: Sequence[ScoredAnswer], counts: Mapping[str, Mapping[str, int]], student: str | Path
) -> str:
    """Answers, figures with n and 95 % intervals, and what the student says; Markdown. counts: `account` of `train` and
    `test`."""
    of = {metric.metric: metric for metric in result.metrics}
    cell = lambda name: f"{of[name].value:+.2f} [{of[name].low:+.2f}, {of[name].high:+.2f}], n = {of[name].n}"  # noqa: E731
    has_scores = any(row.is_scored for row in held_out)
    taken = "the scores are taken for true" if has_scores else "every answer is taken for a good one"
    labels = {
        "answers": "all",
        "unscored": "without a score",
        "cut": "whose prompt alone fills max_length: nothing to learn from",
    }
    gains = [
        f"| gained by answers {PARTS[part]} | {cell(f'gained_{part}')} |" for part in PARTS if f"gained_{part}" in of
    ]
    lines = [
        *opening(result, student, "answers", counts, labels),
        "Held-out answers, whose prompts were never trained on, by their log-probability per token in nats:", "",
        "| | |", "|:--|:--|", f"| before | {cell('logp_before')} |", f"| after | {cell('logp_after')} |", *gains, "",
        "Brackets are 95 % normal intervals over answers.", "",
        *closing(result, held_out, taken),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
