"""Counterfactual DPO (Butcher, arXiv 2401.09566): pairs from a model's own answers with and without a style
instruction.

Nobody labels and no judge is asked: the model answers the plain prompt (control) and the prompt with an instruction for
the desired or the undesired style behind it, and the loss is shown the answers as if the plain prompt had led to both.

    variant      prompt in the loss   chosen     rejected    source
    encourage    control              desired    control     SEEN in reviews of the paper, with this prompt
    discourage   control              control    undesired   INFERRED, by symmetry
    contrastive  control              desired    undesired   SEEN that it joins the two above; the triple is INFERRED
    negation     undesired            control    undesired   SEEN that it teaches to disregard an instruction; the
                                                             triple is INFERRED, and that the undesired one is
                                                             disregarded is ours
    neutral      control              neutral    control     ours: the answer to the request without wrapper, persona or
                                                             stance is preferred, and no instruction is given

The paper's full text was not at hand, and no code of it is public. There the answers are those of the very model that
is trained: make the student the teacher. The loss is plain DPO; scores can be attached to the pairs like to any others,
and then the losses of refined DPO (rDPO) apply. All instructions are our own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.chat.model import ChatModel
from common.data.self_critique import BASE, base_answers, opening, pair_of
from common.schema import Pair, PromptRecord, Sampling
from common.storage import Records, make_missing


class Variant(NamedTuple):
    """Which prompt is in the loss, and under which the chosen and the rejected answer are made: control, desired,
    undesired, or neutral, the record's plain prompt."""

    prompt: str
    chosen: str
    rejected: str


VARIANTS = {
    "encourage": Variant("control", "desired", "control"),
    "discourage": Variant("control", "control", "undesired"),
    "contrastive": Variant("control", "desired", "undesired"),
    "negation": Variant("undesired", "control", "undesired"),
    "neutral": Variant("control", "neutral", "control"),
}
PAIRS = ("self_critique", "recorded", *(f"counterfactual_{variant}" for variant in VARIANTS))
"""The values of the notebooks' parameter `pairs`."""


class StyleInstructions(NamedTuple):
    """What is put behind a prompt to get the style that is wanted, and the one that is not."""

    desired: str
    undesired: str

    def behind(self, condition: str) -> str:
        """What stands behind the prompt in a condition: nothing in `control`, else the instruction, `desired` or
        `undesired`."""
        return "" if condition == "control" else getattr(self, condition)

    def prompt(self, prompt: str, condition: str) -> str:
        """The prompt as the model is asked: with a blank line and the instruction behind it, except in `control`."""
        return f"{prompt}\n\n{self.behind(condition)}" if self.behind(condition) else prompt


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
    base: bool = False,
    progress: Callable[[int], object] = lambda turns: None,
) -> Records[Pair]:
    """Makes the pair of every prompt that `path` does not hold yet, and returns the pairs of the prompts asked for.

    `response_revised` is the chosen answer and `response` the rejected one, so that every later step takes these pairs
    as it takes self-critique's; failures, kills and `failed_limit` are as in `generate_pairs` there. `prompt` stays the
    plain one; the instruction that negation has in the loss stands in `instruction`. `path` holds one variant of one
    set of instructions: both belong into what `storage.claim` is told.

    Args:
        progress: called with the number of turns just finished, of 2 a prompt, or 3 with a base answer.
        base: also answer the prompt without wrapper, persona or stance, which a judge of two criteria compares with;
            for neutral under another seed, or its chosen answer would be compared with itself, which at temperature 0
            it is.

    Raises ValueError for an unknown variant, an id that stands twice, or neutral pairs of prompts that are all plain,
    RuntimeError when too many prompts failed.
    """
    roles = variant_of(variant)
    anew = sampling.model_copy(update={"seed": sampling.seed + 1}) if roles.chosen == "neutral" else sampling
    if "neutral" in roles and not any(record.plain_prompt not in ("", record.prompt) for record in records):
        raise ValueError(
            "neutral pairs need prompts with a plain_prompt: a wrapper, persona or stance that can be left out"
        )
    conditions, texts = (
        (roles.rejected, roles.chosen),
        {"response": roles.rejected, "response_revised": roles.chosen, "response_base": BASE},
    )
    marks = {
        "teacher": chat.name,
        "sampling": sampling,
        "variant": variant,
        "instruction": instructions.behind(roles.prompt),
    }

    def make(batch: list[PromptRecord]) -> Iterator[Pair | dict[str, str]]:
        asked = [
            opening(record.system, _worded(record, condition, instructions), record.history)
            for record in batch
            for condition in conditions
        ]
        replies = chat.complete(asked, sampling, lambda *_: progress(1))
        bases = base_answers(chat, batch, anew, progress) if base else [None] * len(batch)
        for record, *answers in zip(batch, replies[::2], replies[1::2], bases, strict=True):
            yield pair_of(record, dict(zip((*conditions, BASE), answers)), texts, **marks)

    return make_missing(records, make, path, Pair, "prompts", batch_size, failed_limit, progress, steps=2 + base)


def _worded(record: PromptRecord, condition: str, instructions: StyleInstructions) -> str:
    return (
        record.plain_prompt or record.prompt
        if condition == "neutral"
        else instructions.prompt(record.prompt, condition)
    )


def variant_of(name: str) -> Variant:
    """The variant of a name. Raises ValueError for an unknown one."""
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r} of Counterfactual DPO; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def variant_named(pairs: str) -> str:
    """The variant that a value of the parameter `pairs` names, "" for self-critique, made or recorded. Raises
    ValueError naming the values there are."""
    if pairs not in PAIRS:
        raise ValueError(f"unknown pairs {pairs!r}; there are {', '.join(PAIRS)}")
    return pairs.removeprefix("counterfactual_") if pairs.startswith("counterfactual_") else ""
