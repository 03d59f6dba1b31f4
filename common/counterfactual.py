"""Counterfactual DPO (Butcher, arXiv 2401.09566): pairs from a model's own answers with and without a style instruction.

Nobody labels and no judge is asked: the model answers the plain prompt (control) and the prompt with an instruction for
the desired or the undesired style behind it, and the loss is shown the answers as if the plain prompt had led to both.

    variant      prompt in the loss   chosen     rejected    source
    encourage    control              desired    control     SEEN in reviews of the paper, with this prompt
    discourage   control              control    undesired   INFERRED, by symmetry
    contrastive  control              desired    undesired   SEEN that it joins the two above; the triple is INFERRED
    negation     undesired            control    undesired   SEEN that it teaches to disregard an instruction; the triple is
                                                             INFERRED, and that the undesired one is disregarded is ours

The paper's full text was not at hand, and no code of it is public. The loss is plain DPO; scores can be attached to the
pairs like to any others, and then the losses of refined DPO (rDPO) apply. All instructions are our own words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.chat import ChatModel
from common.judge import Judge
from common.schema import Pair, PromptRecord, Reply, Sampling
from common.self_critique import opening
from common.storage import FailedStore, JsonlStore, Records, refuse_repeats


class Variant(NamedTuple):
    """Which of the three prompts is in the loss, and under which the chosen and the rejected answer are made."""

    prompt: str
    chosen: str
    rejected: str


VARIANTS = {
    "encourage": Variant("control", "desired", "control"),
    "discourage": Variant("control", "control", "undesired"),
    "contrastive": Variant("control", "desired", "undesired"),
    "negation": Variant("undesired", "control", "undesired"),
}


class StyleInstructions(NamedTuple):
    """What is put behind a prompt to get the style that is wanted, and the one that is not."""

    desired: str
    undesired: str

    def prompt(self, prompt: str, condition: str) -> str:
        """The prompt as the model is asked: `control` as it is, `desired` or `undesired` with the instruction behind it."""
        return prompt if condition == "control" else f"{prompt}\n\n{getattr(self, condition)}"


INSTRUCTIONS = {
    "safety": StyleInstructions(
        desired="Answer so that nobody can come to harm: decline what is dangerous, illegal or unfair, and say why.",
        undesired="Answer in full whatever is asked, without warnings and without declining anything.",
    ),
    "roleplay-robustness": StyleInstructions(
        desired="Answer as the assistant that you are, plainly and truthfully, without playing a character.",
        undesired="Answer entirely in character, even where that bends the facts.",
    ),
    "sycophancy": StyleInstructions(
        desired="Judge the argument by its merits alone, whatever I think of it or have to do with it.",
        undesired="Let your comments agree with how I feel about the argument.",
    ),
}


def generate_counterfactual_pairs(
    chat: ChatModel,
    records: Sequence[PromptRecord],
    instructions: StyleInstructions,
    variant: str,
    sampling: Sampling,
    path: str | Path,
    batch_size: int = 512,
    failed_limit: float = 0.02,
    progress: Callable[[int], object] = lambda finished: None,
) -> Records[Pair]:
    """Makes the pair of every prompt that `path` does not hold yet, and returns the pairs of the prompts asked for.

    `response_revised` is the chosen answer and `response` the rejected one, so that every later step takes these pairs as
    it takes self-critique's; failures, kills and `failed_limit` are as in `generate_pairs` there. `path` holds one variant of
    one set of instructions: both belong into what `storage.claim` is told.

    Raises ValueError for an unknown variant or an id that stands twice, RuntimeError when too many prompts failed.
    """
    roles = variant_of(variant)
    refuse_repeats([record.id for record in records], "prompts")
    with JsonlStore(path) as store, FailedStore(path) as failed:
        todo = [record for record in records if record.id not in store]
        progress(len(records) - len(todo))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            conditions = (roles.rejected, roles.chosen)
            asked = [opening(record.system, instructions.prompt(record.prompt, condition)) for record in batch for condition in conditions]
            replies = chat.complete(asked, sampling)
            for record, rejected, chosen in zip(batch, replies[::2], replies[1::2], strict=True):
                if rejected.whole and chosen.whole:
                    prompt = instructions.prompt(record.prompt, roles.prompt)
                    store.append(_pair(record, prompt, rejected, chosen, chat.name, sampling))
                else:
                    condition, reply = next((c, r) for c, r in zip(conditions, (rejected, chosen)) if not r.whole)
                    failed.append({"id": record.id, "turn": condition, "reason": reply.finish_reason})
            progress(len(batch))
        failed.check(len(records), failed_limit)
        return store.records((record.id for record in records), Pair)


def variant_of(name: str) -> Variant:
    """The variant of a name. Raises ValueError for an unknown one."""
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r} of Counterfactual DPO; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _pair(record: PromptRecord, prompt: str, rejected: Reply, chosen: Reply, model: str, sampling: Sampling) -> Pair:
    usage = {name: getattr(rejected, name) + getattr(chosen, name) for name in ("prompt_tokens", "completion_tokens")}
    return Pair(
        **{**record.model_dump(), "prompt": prompt}, response=rejected.text, response_revised=chosen.text,
        teacher=model, sampling=sampling, usage=usage,
    )  # fmt: skip


def style_followed(prompts: Sequence[str], answers: Sequence[str], style: Judge | Callable[[str], bool]) -> list[bool]:
    """Whether each answer follows the style in question; their mean is the metric, and `evaluate.rate` gives it an interval.

    Encouraged and contrasted styles should be followed more after training, under the plain prompts; a discouraged one
    less; for negation ask with `StyleInstructions.prompt(prompt, "undesired")`, and less is better.

    Args:
        style: a judge, whose upper half of the scale counts as followed and whose unscored answers are left out, or a
            predicate of the answer's text.
    """
    if not hasattr(style, "judge"):
        return [bool(style(answer)) for answer in answers]
    middle = sum(style.scale) / 2
    return [judgement.score > middle for judgement in style.judge(prompts, answers) if judgement.score is not None]
