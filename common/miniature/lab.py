"""The laboratory's front desk: what notebooks and the study ask of the miniature, by keyword."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock

from common.chat.model import ChatModel
from common.data.counterfactual import StyleInstructions
from common.judge.base import FeedbackJudge, Judge
from common.judge.llm import LLMJudge, llm_judge
from common.miniature.actors import MeaningOracle, MiniatureJudge, MiniatureTeacher, RightOracle
from common.miniature.evaluator import WorldEvaluator
from common.miniature.instructed import InstructedMiniature
from common.miniature.language_model import MICRO, Recipe, pretrained_student
from common.miniature.world import world_of
from common.prompts import ExperimentPrompts
from common.runtime import resolve
from common.schema import PromptRecord

RECIPES = {"miniature": Recipe(), "micro": MICRO}
FINAL_JUDGE_ERROR = 0.1
LOADED = {"compute_dtype": torch.float32}
"""How a miniature student is loaded, for `load_student`."""


def miniature_student(world: ModuleType, recipe: Recipe) -> Path:
    """The folder of a miniature student in the common cache, made once where several notebooks or tests ask for it at a
    time."""
    cache = resolve("runs/models")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{world.__name__}.lock"):
        return pretrained_student(world, recipe, cache=cache)


def teacher(
    experiment: str,
    *,
    no_better: float,
    worse: float,
    noise_on: str,
    seed: int,
    edits: str = "free",
    instructed: bool = False,
) -> ChatModel:
    """The teacher of a world, with its two noise rates; one that follows instructions for pairs of Counterfactual DPO."""
    if instructed:
        return InstructedMiniature(experiment, no_better, worse, noise_on, seed)
    return MiniatureTeacher(world_of(experiment), no_better, worse, noise_on, seed, edits)


def judge(
    experiment: str,
    *,
    error: float,
    blind_to: str,
    unclear: float,
    seed: int,
    prompts: ExperimentPrompts | None = None,
    max_new_tokens: int = 256,
) -> Judge | FeedbackJudge:
    """The judge that scores pairs, with its error rate; two in one where the world has a second criterion. prompts: in
    place of the world's."""
    prompts, world = prompts or world_of(experiment).PROMPTS, world_of(experiment)
    return llm_judge(MiniatureJudge(world, prompts, error, blind_to, unclear, seed), prompts, max_new_tokens)


def meaning(experiment: str) -> Judge:
    """Who knows whether two prompts of a world ask for the same."""
    return MeaningOracle(world_of(experiment))


def oracle(experiment: str) -> Judge:
    """Who knows whether an answer is the right one in a world."""
    return RightOracle(world_of(experiment))


def proposal(experiment: str, text: str) -> PromptRecord | None:
    """What a world reads in a text that is to be a new train prompt; None for no request of it, and for one with words
    or a wrapper that are held out."""
    world = world_of(experiment)
    try:
        request = world.read_request(text)
    except ValueError:
        return None
    return world.record_of(request, "train") if world.is_on_words_of(request, "train") else None


def prompts(experiment: str, train: int = 400) -> list[PromptRecord]:
    """Prompts of a world in every split: as many to train on, and those to align on that students are evaluated with."""
    world = world_of(experiment)
    held_out = [next(iter(world.evaluation_sets(*asked).values())) for asked in (("validation", 100), ("test", 200))]
    return [*world.prompts_for("train", train, 0.25, 0), *held_out[0], *held_out[1]]


def final_judge(experiment: str) -> Judge:
    """Another judge than the one that scores pairs: same kind, other seed, so other errors."""
    world = world_of(experiment)
    return LLMJudge(
        MiniatureJudge(world, world.PROMPTS, error=FINAL_JUDGE_ERROR, seed=1_000),
        world.PROMPTS.quality or world.PROMPTS,
    )


def evaluator(
    experiment: str,
    *,
    prompts: int,
    max_new_tokens: int,
    instructions: StyleInstructions | None = None,
    reward_judge: Judge | FeedbackJudge | None = None,
    wordings: Sequence[PromptRecord] = (),
) -> WorldEvaluator:
    """Evaluation by the world's oracle, with the final judge's view beside it."""
    return WorldEvaluator(
        world_of(experiment), experiment, final_judge(experiment), prompts, max_new_tokens, instructions, reward_judge,
        wordings,
    )  # fmt: skip


def student(experiment: str, name: str) -> tuple[Path, dict[str, Any]]:
    """(folder of the student that a name in `RECIPES` means, how it is loaded)."""
    return miniature_student(world_of(experiment), RECIPES[name]), LOADED
