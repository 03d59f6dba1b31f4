"""Held-out evaluation: of a fresh training, of an adapter on disk, or of anything else that answers.

A rate never stands alone: beside harmlessness there is utility, beside the oracle's view a judge's, and both with n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from common.chat.model import ChatModel
from common.data.conditioned import conditioned
from common.data.counterfactual import StyleInstructions
from common.data.self_critique import opening
from common.evaluation.answers import TrainedStudent
from common.judge.base import FeedbackJudge, Judge
from common.judge.llm import LLMJudge
from common.logprobs.compute import summed_logprobs
from common.prompts import ExperimentPrompts
from common.schema import Metric, PromptRecord, fingerprint
from common.statistics import rate_of
from common.student.dequantised import dequantised

STEADY = 1.0
"""Feedback is steady where the stance moves its sentiment, -5 to 5, by no more."""


def rate(successes: Sequence[bool], **names) -> Metric:
    """A rate with its Wilson interval."""
    k, n = sum(successes), len(successes)
    return Metric(n=n, k=k, **rate_of(k, n), **names)


def mean(values: Sequence[float], **names) -> Metric:
    """A mean with its normal-approximation interval over prompts."""
    values = torch.tensor(values, dtype=torch.float64)
    half = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    average = float(values.mean())
    return Metric(value=average, n=len(values), low=average - half, high=average + half, **names)


def to_choose_by(metrics: Sequence[Metric], behaviour: str) -> float:
    """What settings, and ExPO's factor, are chosen by, between 0 and 1, higher is better: the mean of what the judge that
    scored the pairs finds good, in fluent language where that is measured, and of utility. A gain that utility pays for
    is none. behaviour: the metric in place of that judge's, where there is none."""
    found = {metric.metric: metric.value for metric in metrics}
    good = next((name for name in ("reward_fluent", "reward") if name in found), behaviour)
    return (found[good] + found.get("reward_utility", found["utility"])) / 2


@dataclass
class Evaluation:
    """Metrics of one student on one split, its answers per evaluation set, and the outcome of every prompt (None for
    none): in the miniature for the metric of behaviour and the judge's view of it, for a real student for all metrics
    that are rates, in the order of the answers of the set that `judged.OUTCOME_SETS` names. ids: `schema.answer_id` of
    those answers. precision: see `student.precision`."""

    metrics: list[Metric]
    answers: dict[str, list[str]]
    outcomes: dict[str, list[bool | None]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    precision: str = ""

    def value(self, metric: str) -> float:
        return next(m.value for m in self.metrics if m.metric == metric)


def found_good(judge: Judge, records: Sequence[PromptRecord], answers: Sequence[str]) -> list[bool | None]:
    """Whether each answer lies in the upper half of the judge's scale, None = unscored."""
    middle = sum(judge.scale) / 2
    judged = judge.judge([record.prompt for record in records], answers)
    return [None if judgement.score is None else judgement.score > middle for judgement in judged]


def mixed_logprobs(student: TrainedStudent, logprobs: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of a student, nats, of a mixture log sum_k w_k pi_k(y); logprobs: those of its model as it
    is."""
    if not student.policies:
        return logprobs()
    of_policies = {}
    for name, weight in student.policies.items():
        if weight:
            student.model.set_adapter(name, inference_mode=True)
            of_policies[name] = logprobs()
    return mixed(student.policies, of_policies)


def mixed(weights: Mapping[str, float], of_policies: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """log sum_k w_k pi_k(y) of log pi_k(y), nats; a policy of weight 0 may be missing."""
    return torch.stack([math.log(w) + of_policies[name] for name, w in weights.items() if w]).logsumexp(dim=0)


@torch.no_grad()
def divergence(
    student: TrainedStudent, records: Sequence[PromptRecord], answers: Sequence[str], batch_size: int = 64
) -> list[float]:
    """log pi(y) - log pi_ref(y) per prompt, nats summed over tokens, on the student's own (greedy) answers y: the
    summand of KL(pi || pi_ref), adapters off being the reference. 0 for an untrained student. A student that is asked
    for a score is asked so here too; the reference knows no scores and is asked plainly. Of a mixture, pi(y) is the
    mean of its policies' probabilities by their weights."""
    model, tokenizer = student.model, student.tokenizer
    if not hasattr(model, "disable_adapter"):
        return [0.0] * len(records)
    encode = lambda messages, **kw: tokenizer.apply_chat_template(messages, return_dict=True, **kw)["input_ids"]  # noqa: E731
    plain = [opening(r.system, r.prompt, r.history) for r in records]
    asked = plain if student.asked_for is None else [conditioned(one, student.asked_for) for one in plain]
    prompts, plain_prompts = ([encode(one, add_generation_prompt=True) for one in of] for of in (asked, plain))
    completions = [
        tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for answer in answers
    ]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    values = [0.0] * len(prompts)
    with dequantised(model, training=True):
        for start in range(0, len(prompts), batch_size):
            rows = by_length[start : start + batch_size]
            answered = [completions[i] for i in rows]
            policy = mixed_logprobs(student, partial(summed_logprobs, model, [prompts[i] for i in rows], answered))
            with model.disable_adapter():
                reference = summed_logprobs(model, [plain_prompts[i] for i in rows], answered)
            for row, value in zip(rows, (policy - reference).tolist()):
                values[row] = value
    return values


class Evaluator(Protocol):
    """What rows of a table are measured with: `JudgedEvaluator` for real students, the miniature's `WorldEvaluator` for
    worlds.

    safety: the metric of the wanted behaviour. texts: what SR asks itself with. matches_utility: whether a student is
    also measured at matched utility. instructions: of Counterfactual DPO, None for none.
    """

    experiment: str
    safety: str
    max_new_tokens: int
    matches_utility: bool
    instructions: StyleInstructions | None

    @property
    def texts(self) -> ExperimentPrompts: ...

    def sets(self, split: str) -> Mapping[str, Sequence[PromptRecord]]:
        """The prompts of a split by set, the ones to be aligned on first."""

    def chat(self, student: TrainedStudent) -> ChatModel:
        """How a student is asked."""

    def mark(self) -> dict[str, Any]:
        """All that decides what it measures, but for the prompts: rows of another mark are measured again."""

    def __call__(self, student: TrainedStudent, split: str, seed: int) -> Evaluation: ...

    def trade_off(self, student: TrainedStudent, split: str, seed: int) -> Evaluation:
        """The wanted behaviour and utility alone, to the digit as in the whole evaluation: a frontier has no use for
        more, and need not ask for it."""


def mark_of_judges(judge: Judge | FeedbackJudge, reward_judge: Judge | FeedbackJudge | None) -> dict[str, Any]:
    """The judges' part of an evaluator's mark: names, and hashes of the texts that chat models are asked with, which
    names do not tell."""
    both = [one for one in (judge, reward_judge) if one]
    single = [
        one
        for judge in both
        for one in ((judge.sentiment, judge.quality) if isinstance(judge, FeedbackJudge) else (judge,))
    ]
    asked = [
        fingerprint(one.prompts.model_dump(mode="json", exclude_defaults=True))
        for one in single
        if isinstance(one, LLMJudge)
    ]
    return (
        {"judge": judge.name}
        | ({"reward_judge": reward_judge.name} if reward_judge else {})
        | ({"asked": asked} if asked else {})
    )
