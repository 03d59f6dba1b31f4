"""Counterfactual DPO (arXiv 2401.09566) in miniature: answers with and without an instruction, and whether a style is
followed.

There the model that is trained makes all answers itself. The miniature's students cannot follow an instruction, since
their corpus holds none, so a seeded generator stands in: it speaks in the student's voice, without an instruction it
misbehaves at the rates of the student's corpus, and with one it does as told, except at two noise rates.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from common.data.counterfactual import INSTRUCTIONS
from common.miniature.actors import MiniatureTeacher
from common.miniature.worlds import roleplay, safety, sycophancy
from common.schema import Message

Answer = Callable[[NamedTuple, random.Random], str]


class Manner(NamedTuple):
    """The two styles of a world.

    desired, undesired: (request, rng) -> an answer in the style, in the student's voice. Where nothing tempts (a benign
    request, no persona, no stance) both are the right answer.
    habit: request -> how often the student's corpus gives the undesired answer where nobody instructs.
    followed: (request, answer) -> whether an answer has the desired style, by the world's oracle; whether it is also
    true is the objective's matter.
    """

    desired: Answer
    undesired: Answer
    habit: Callable[[NamedTuple], float]
    followed: Callable[[NamedTuple, str], bool]


def _judged_by_merit(request: sycophancy.Request, answer: str) -> bool:
    verdict = sycophancy.oracle(request, answer)
    return verdict.act == "feedback" and abs(verdict.sentiment - request.deserved) <= sycophancy.TOLERANCE


MANNERS = {
    "safety": Manner(
        desired=lambda request, rng: (safety.refuse if request.harmful else safety.comply)(request, rng),
        undesired=safety.comply,
        habit=lambda request: 1 - safety.refusal_rate(request),
        followed=lambda request, answer: (
            safety.oracle(request, answer).act == ("refuse" if request.harmful else "comply")
        ),
    ),
    "roleplay-robustness": Manner(
        desired=roleplay.answer,
        undesired=lambda request, rng: (roleplay.play if request.name else roleplay.answer)(request, rng),
        habit=lambda request: roleplay.IN_CHARACTER[request.relation],
        followed=lambda request, answer: roleplay.oracle(request, answer).act in ("neutral", "disclaim"),
    ),
    "sycophancy": Manner(
        desired=sycophancy.feedback,
        undesired=lambda request, rng: (sycophancy.lean if request.pull else sycophancy.feedback)(request, rng),
        habit=lambda request: sycophancy.FOLLOWS[
            "careful" if request.frame in sycophancy.CAREFUL_FRAMES else "careless"
        ],
        followed=_judged_by_merit,
    ),
}
WORLDS = {"safety": safety, "roleplay-robustness": roleplay, "sycophancy": sycophancy}


def style_predicate(experiment: str) -> Callable[[str, str], bool]:
    """(prompt without instruction, answer) -> whether the answer has the experiment's desired style. Gibberish never
    has it."""
    return lambda prompt, answer: MANNERS[experiment].followed(WORLDS[experiment].read_request(prompt), answer)


class InstructedMiniature(MiniatureTeacher):
    """A stand-in for the student that follows the instruction behind a blank line.

    Args:
        no_better: share of instructed answers that are given as if nobody had instructed.
        worse: share of instructed answers that do the opposite.
        noise_on, seed: as the teacher's.

    Raises ValueError for an instruction that is not one of the experiment's two.
    """

    def __init__(
        self, experiment: str, no_better: float = 0.15, worse: float = 0.15, noise_on: str = "all", seed: int = 0
    ):
        super().__init__(WORLDS[experiment], no_better, worse, noise_on, seed)
        self.manner, instructions = MANNERS[experiment], INSTRUCTIONS[experiment]
        self.conditions = {"": "control", instructions.desired: "desired", instructions.undesired: "undesired"}
        self.name = f"instructed {self.name.removeprefix('miniature teacher, ')}"

    def _turn(self, messages: list[Message]) -> str:
        text, _, instruction = messages[-1]["content"].partition("\n\n")
        if instruction not in self.conditions:
            raise ValueError(
                f"the miniature follows the experiment's own two instructions alone, not {instruction[:120]!r}"
            )
        request, condition = self.world.read_request(text), self.conditions[instruction]
        rng = random.Random(f"instructed {self.seed} {messages[-1]['content']}")
        outcome = self.outcome(request, rng)
        if condition == "control" or outcome == "no better":
            undesired = rng.random() < self.manner.habit(request)
        else:
            undesired = (condition == "undesired") == (outcome == "better")
        return (self.manner.undesired if undesired else self.manner.desired)(request, rng)
