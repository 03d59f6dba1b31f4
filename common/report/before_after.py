"""A trained student beside itself untrained: log-probabilities of held-out pairs, answers to held-out prompts, and a
report.

No judge: of two answers the better one is that with the higher score, whichever of them was `chosen`; where no pair has
scores, it is the chosen one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError

from common.chat.local import LocalChat
from common.data.conditioned import conditioned
from common.data.preference import pairs_without_signal, prompt_messages
from common.evaluation.answers import TrainedStudent, answers_of, as_trained
from common.evaluation.matched_utility import scaled
from common.evaluation.metrics import mean, mixed, rate
from common.evaluation.result import Result
from common.logprobs.compute import pair_logprobs
from common.methods import METHODS
from common.runtime import Progress
from common.schema import Metric, ScoredAnswer, ScoredPair
from common.statistics import mcnemar_exact
from common.student.load import check_prompt_is_prefix
from common.trainer.displacement import movement, warning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WHEN = {"before": 0.0, "after": 1.0}  # times that the adapter counts
ANSWERS, ANSWER_TOKENS = 5, 128
NAMED = 5
PAIRS = {
    "pairs": "all", "unscored": "a score is missing: left out", "tied": "equal scores: trained on, but in no figure below",
    "contradicted": "`rejected` has the higher score, so below it is the better answer", "cut": "alike within max_length, or no room for an answer: nothing to learn from",
}  # fmt: skip
OF_SCORES = ("unscored", "tied", "contradicted")
FIGURES = {
    "better_likelier": "share of pairs whose better answer has the higher log-probability per token",
    "logp_better": "log-probability per token of better answers, nats", "logp_worse": "log-probability per token of worse answers, nats",
}  # fmt: skip


def score_gap(pair: ScoredPair) -> float | None:
    """Score of `chosen` less that of `rejected`, in [-1, 1]; None where one is missing."""
    rejected, chosen = pair.normalised()
    return chosen - rejected if pair.is_scored else None


def preferred(pairs: Sequence[ScoredPair]) -> list[tuple[ScoredPair, str, str]]:
    """(pair, better answer, worse answer) by the scores, without ties and unscored pairs; where no pair has both scores,
    the labels decide."""
    if not any(pair.is_scored for pair in pairs):
        return [(pair, pair.response_revised, pair.response) for pair in pairs]
    gaps = [(pair, gap) for pair in pairs if (gap := score_gap(pair))]
    return [(pair, *(pair.response_revised, pair.response)[:: 1 if gap > 0 else -1]) for pair, gap in gaps]


def account(pairs: Sequence[ScoredPair], student: TrainedStudent, max_length: int) -> dict[str, int]:
    """How many pairs there are, how many teach little and why (see `pairs_without_signal`), and in how many `rejected`
    has the higher score (`contradicted`)."""
    reasons = pairs_without_signal(pairs, student.tokenizer, max_length)
    return {
        "pairs": len(pairs),
        **{reason: len(ids) for reason, ids in reasons.items()},
        "contradicted": sum((score_gap(pair) or 0) < 0 for pair in pairs),
    }


def measure(
    student: TrainedStudent, held_out: Sequence[ScoredPair], **names: str | int
) -> tuple[list[Metric], dict[str, list[str]]]:
    """Metrics, and the answers to the first prompts; before is the same model with its adapter off.

    Pairs with a missing score or a tie are left out of n, unless none has scores. Log-probabilities are in nats, of whole answers, end of turn
    included.
    better_likelier_<when>: share of pairs whose better answer has the higher log-probability per token.
    turned_right, turned_wrong: share of pairs that became, or ceased to be, such ones.
    logp_better_<when>, logp_worse_<when>: mean log-probability per token.
    reward_accuracy: share of pairs whose better answer has the higher implicit reward, beta times the log-probability
    that it gained, summed over its tokens. Before training all rewards are 0.
    own_<policy>, mixed_<policy>: of a mixture, for the annotators whose likeliest type has this policy: the share of
    their pairs whose chosen answer gained more than the rejected one, by this policy and by the mixture.

    Raises ValueError when no pair is left, or a log-probability is not finite.
    """
    measured = preferred(held_out)
    rows = [_token_ids(student, *row) for row in measured]
    if not rows:
        raise ValueError("no held-out pair has two different scores, so there is nothing to measure on")
    tokens = torch.tensor([[len(better), len(worse)] for _, better, worse in rows])
    logps, answers, metrics, of_policies = {}, {}, [], {}
    for when, factor in WHEN.items():
        policies = student.policies if factor else {}
        passes = len(rows) * max(len(policies), 1)
        progress = Progress(f"held-out pairs and answers {when} training", passes + len(held_out[:ANSWERS]))
        with scaled(student, factor):
            for policy in policies:
                student.model.set_adapter(policy, inference_mode=True)
                of_policies[policy] = _summed(student, rows, progress)
            logps[when] = mixed(policies, of_policies) if policies else _summed(student, rows, progress)
            check_finite(logps[when], when)
            answers[when] = first_answers(student, held_out, progress)
    per_token = {when: summed / tokens for when, summed in logps.items()}
    likelier = {when: values[:, 0] > values[:, 1] for when, values in per_token.items()}
    gained = logps["after"] - logps["before"]
    shares = {
        **{f"better_likelier_{when}": values for when, values in likelier.items()},
        "turned_right": likelier["after"] & ~likelier["before"], "turned_wrong": likelier["before"] & ~likelier["after"],
        "reward_accuracy": gained[:, 0] > gained[:, 1],
    }  # fmt: skip
    shares |= _by_type(student, measured, gained, {name: of - logps["before"] for name, of in of_policies.items()})
    metrics = [rate(values.tolist(), metric=metric, **names) for metric, values in shares.items()]
    for column, answer in enumerate(("better", "worse")):
        metrics += [
            mean(values[:, column].tolist(), metric=f"logp_{answer}_{when}", **names)
            for when, values in per_token.items()
        ]
    return metrics, answers


def _summed(student: TrainedStudent, rows: Sequence[tuple[list[int], ...]], progress: Progress) -> torch.Tensor:
    """Log-probabilities (rows, 2) of better and worse answers by the model as it is, nats."""
    logps = torch.empty(len(rows), 2)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            logps[row] = torch.cat(pair_logprobs(student.model, *([part] for part in ids)))
        progress(1)
    return logps


def _by_type(
    student: TrainedStudent,
    measured: Sequence[tuple[ScoredPair, str, str]],
    by_mixture: torch.Tensor,
    by_policy: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """`own_<policy>` and `mixed_<policy>` of `measure`, a value a pair of such an annotator; by_*: what better and worse
    answers gained, (pairs, 2)."""
    shares = {}
    for number, (policy, by_own) in enumerate(by_policy.items()):
        annotators = annotators_of(student.annotators, number)
        pairs = [row for row, (pair, _, _) in enumerate(measured) if pair.annotator in annotators]
        sign = torch.tensor([1.0 if measured[row][1] == measured[row][0].response_revised else -1.0 for row in pairs])
        for name, gained in ((f"own_{policy}", by_own), (f"mixed_{policy}", by_mixture)):
            if pairs:
                shares[name] = sign * (gained[pairs, 0] - gained[pairs, 1]) > 0
    return shares


def annotators_of(annotators: Mapping[str, Sequence[float]], number: int) -> list[str]:
    """The annotators whose likeliest type has this number."""
    return [name for name, shares in annotators.items() if max(range(len(shares)), key=shares.__getitem__) == number]


def check_finite(logps: torch.Tensor, when: str) -> None:
    """Raises ValueError for a log-probability that is none."""
    if not logps.isfinite().all():
        raise ValueError(
            f"{when} training the student gives log-probabilities that are no finite numbers, so it is broken; train with a lower learning rate, or take another student"
        )


def first_answers(
    student: TrainedStudent, held_out: Sequence[ScoredPair] | Sequence[ScoredAnswer], progress: Progress
) -> list[str]:
    """What the student says to the first held-out prompts, asked as its training asks for."""
    chat = as_trained(student, LocalChat(student.model, student.tokenizer, progress=progress))
    return answers_of(chat, held_out[:ANSWERS], ANSWER_TOKENS)


def _token_ids(
    student: TrainedStudent, pair: ScoredPair, better: str, worse: str
) -> tuple[list[int], list[int], list[int]]:
    """Prompt, better and worse answer as the chat template writes them in training; `check_row` has seen them."""
    of = student.asked_for
    asked = encoded(student.tokenizer, pair, asked_for=of)
    return asked, *(encoded(student.tokenizer, pair, answer, of)[len(asked) :] for answer in (better, worse))


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    row: ScoredPair | ScoredAnswer,
    answer: str | None = None,
    asked_for: float | None = None,
) -> list[int]:
    """The row's prompt as the student is asked it, or prompt and answer as it is trained on them. asked_for: the score
    that a student of CA is asked for."""
    asked = {"add_generation_prompt": True} if answer is None else {}
    given = [] if answer is None else [{"role": "assistant", "content": answer}]
    prompt = prompt_messages(row) if asked_for is None else conditioned(prompt_messages(row), asked_for)
    return tokenizer.apply_chat_template([*prompt, *given], return_dict=True, **asked)["input_ids"]


def check_row(
    pair: ScoredPair | ScoredAnswer,
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    context: int | None,
    answered: bool,
) -> None:
    """Raises ValueError, naming `where`, for a pair or an answer that would end the training or `measure` behind it.

    Its chat template refuses the prompt, or the prompt's tokens do not open those of prompt and answer; or the student,
    which learned `context` positions, cannot read it: in training up to `max_length`, held out as a whole, and
    `answered` with its answer.
    """
    texts = (pair.answer,) if isinstance(pair, ScoredAnswer) else (pair.response, pair.response_revised)
    try:
        for answer in texts:
            check_prompt_is_prefix(tokenizer, prompt_messages(pair), answer, where)
    except TemplateError as error:
        raise ValueError(f"{where}: the student's chat template refuses it ({error})") from None
    if context is not None:
        longest = max(len(encoded(tokenizer, pair, answer)) for answer in texts)
        needed = (
            min(longest, max_length)
            if pair.split == "train"
            else max(longest, answered * (len(encoded(tokenizer, pair)) + ANSWER_TOKENS))
        )
        if needed > context:
            what = (
                f"{needed} tokens, an answer of {ANSWER_TOKENS} included," if needed > longest else f"{needed} tokens"
            )
            raise ValueError(
                f"{where}: {what} are more than the {context} that the student can read; shorten the row, lower max_length, or take another student"
            )


def report(
    result: Result,
    held_out: Sequence[ScoredPair],
    counts: Mapping[str, Mapping[str, int]],
    student: str | Path,
    annotators: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Pairs, figures with n and 95 % intervals, and the answers as they are; Markdown. counts: `account` of `train` and
    `test`. annotators: of a mixture, as `TrainedStudent` has them."""
    of = {metric.metric: metric for metric in result.metrics}
    cell = lambda name: f"{of[name].value:.2f} [{of[name].low:.2f}, {of[name].high:.2f}], n = {of[name].n}"  # noqa: E731
    right, wrong = of["turned_right"].k, of["turned_wrong"].k
    has_scores = any(pair.is_scored for pair in held_out)
    better = (
        "the answer with the higher score, whichever column it stands in"
        if has_scores
        else "the chosen answer, as no row has scores"
    )
    taken = "the scores are taken for true" if has_scores else "the labels are taken for true"
    moved, warned = movement(result.history), warning(result.history)
    lines = [
        *opening(result, student, "pairs", counts, {name: label for name, label in PAIRS.items() if has_scores or name not in OF_SCORES}),
        f"On the held-out pairs, whose prompts were never trained on; *better* is {better}:", "",
        "| | before | after |", "|:--|:--|:--|",
        *(f"| {label} | {cell(f'{name}_before')} | {cell(f'{name}_after')} |" for name, label in FIGURES.items()),
        f"| share of pairs whose better answer gained more log-probability by training (implicit reward accuracy) | - | {cell('reward_accuracy')} |", "",
        f"In the first row {right} of {of['turned_right'].n} pairs turned right by training and {wrong} turned wrong (exact McNemar test: p = {mcnemar_exact(right, wrong):.2f}). "
        "Brackets are 95 % intervals over pairs: Wilson's for shares, normal for means.", "",
        *(_types(result, cell, annotators) if annotators else []),
        *([f"At the end of training, against the student before it, in nats a token: {', '.join(f'{name} {value:+.2f}' for name, value in moved.items())}." + (f" Note: {warned}." if warned else ""), ""] if moved else []),
        *closing(result, held_out, taken),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _types(result: Result, cell: Callable[[str], str], annotators: Mapping[str, Sequence[float]]) -> list[str]:
    """What was found of annotators, and what each type gets, as lines of Markdown."""
    there = {metric.metric for metric in result.metrics}
    lines = [
        "Annotators by their likeliest type, how often its policy answers, and the share of their held-out pairs whose chosen answer gained more than the rejected one:", "",
        "| policy | annotators | answers | pairs right by it | pairs right by the mixture |", "|:--|:--|--:|--:|--:|",
    ]  # fmt: skip
    for number, (policy, share) in enumerate(result.settings["mixture"].items()):
        names = annotators_of(annotators, number)
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        shares = [cell(name) if (name := f"{kind}_{policy}") in there else "-" for kind in ("own", "mixed")]
        lines.append(f"| {policy} | {len(names)}: {shown or 'nobody'} | {share:.0%} | {' | '.join(shares)} |")
    return [*lines, ""]


def opening(
    result: Result, student: str | Path, what: str, counts: Mapping[str, Mapping[str, int]], labels: Mapping[str, str]
) -> list[str]:
    """Title, what was trained on, and how many there are of each label on both sides, as lines of Markdown."""
    trained_on = f"answers of {what}" if what == "pairs" and METHODS[result.method].learns == "answers" else what
    return [
        f"# {Path(student).name} before and after {result.method}", "",
        f"Trained on {result.pairs_used} {trained_on}, seed {result.seed}, {', '.join(f'{name} {value}' for name, value in result.settings.items() if name != 'mixture')}.", "",
        f"| {what} | to train on | held out |", "|:--|--:|--:|",
        *(f"| {label} | {counts['train'][name]} | {counts['test'][name]} |" for name, label in labels.items()), "",
    ]  # fmt: skip


def closing(result: Result, held_out: Sequence[ScoredPair] | Sequence[ScoredAnswer], taken: str) -> list[str]:
    """What the figures do not say, and the answers to the first held-out prompts before and after training, as lines of
    Markdown. taken: what is taken for true."""
    lines = [
        "**What this does not say.** How likely given answers are says little about what the student writes: read the answers below, which nobody judged. "
        f"It is one training with one seed, and {taken}.", "",
        f"## Answers to the first {len(result.answers['after'])} held-out prompts", "",
        f"Greedy, cut at {ANSWER_TOKENS} tokens, not chosen.",
    ]  # fmt: skip
    for pair, *answers in zip(held_out, *result.answers.values()):
        for label, text in zip(
            ("Prompt", "Before", "After"), ("\n\n".join(turn["content"] for turn in prompt_messages(pair)), *answers)
        ):
            lines += ["", f"**{label}**", "", indent(text or "(nothing)", "> ", lambda line: True)]
        lines += ["", "---"]
    return lines
