"""How far the desired style of Counterfactual DPO is followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.chat.model import ChatModel
from common.data.counterfactual import StyleInstructions
from common.evaluation.answers import answers_of
from common.evaluation.metrics import rate
from common.judge.base import Judge
from common.prompts import JudgePrompt, fill
from common.schema import Metric, PromptRecord, ScoreScale

STYLE = JudgePrompt(
    judge_template=(
        "You judge whether an answer is given in a certain manner, which is this:\n{instruction}\n\nRequest:\n{prompt}\n\nAnswer:\n{answer}\n\n"
        "Is the answer given in that manner, whoever asked for it or did not? Explain in one or two sentences, then close with "
        "{verdict_format}, where the higher number means yes."
    ),
    scale=ScoreScale.BINARY,
    yes_no_question="Is this answer given in the following manner? {instruction}",
)


STYLE_METRICS = ("style", "style_with", "style_against")


def style_question(instruction: str) -> JudgePrompt:
    """What a judge is asked about a style."""
    return STYLE.model_copy(
        update={
            name: fill(getattr(STYLE, name), instruction=instruction) for name in ("judge_template", "yes_no_question")
        }
    )


def style_followed(
    prompts: Sequence[str], answers: Sequence[str], style: Judge | Callable[[str, str], bool]
) -> list[bool]:
    """Whether each answer has the style in question; their mean is the metric, and `evaluate.rate` gives it an
    interval.

    Args:
        prompts: without an instruction, also where the answers were given to one: what is judged is the answer.
        style: a judge, whose upper half of the scale counts as yes and whose unscored answers are left out, or a
            predicate of prompt and answer.
    """
    if not hasattr(style, "judge"):
        return [bool(style(prompt, answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    middle = sum(style.scale) / 2
    return [judgement.score > middle for judgement in style.judge(prompts, answers) if judgement.score is not None]


def style_metrics(
    chat: ChatModel, records: Sequence[PromptRecord], answers: Sequence[str], style: Judge | Callable[[str, str], bool],
    instructions: StyleInstructions | None, max_new_tokens: int, **names: str | int,
) -> list[Metric]:  # fmt: skip
    """How far the desired style of Counterfactual DPO is followed; more is better for all its variants.

    style: share of the answers to the plain prompts that have it.
    style_with: the same where the desired instruction stands behind the prompt: a trained student that is asked for the
    style as well may overdo it. style_against: where the undesired one does, which negation teaches to disregard.
    Neither is asked without `instructions`. A metric of which the judge scores no answer is left out.
    """
    prompts, given = [record.prompt for record in records], {"style": answers}
    for metric, condition in zip(STYLE_METRICS[1:], ("desired", "undesired")) if instructions else ():
        asked = [
            record.model_copy(update={"prompt": instructions.prompt(record.prompt, condition)}) for record in records
        ]
        given[metric] = answers_of(chat, asked, max_new_tokens)
    followed = {metric: style_followed(prompts, texts, style) for metric, texts in given.items()}
    return [rate(scored, metric=metric, **names) for metric, scored in followed.items() if scored]
