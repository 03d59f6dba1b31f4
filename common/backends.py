"""From a notebook's parameters to the objects it works with, so that the notebooks do not know which ones they use."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.chat import ChatModel, KeptChat, LocalChat
from common.counterfactual import INSTRUCTIONS, style_question, variant_named
from common.endpoint import EndpointChat, preflight
from common.evaluate import JudgedEvaluator, WorldEvaluator
from common.experiment import Experiment, check_split
from common.judge import FeedbackJudge, Judge, LearnedJudge, LLMJudge
from common.local_judges import RewardHeadJudge, YesNoJudge
from common.methods import TrainSettings, check_methods
from common.miniature.actors import MiniatureJudge, MiniatureTeacher
from common.miniature.instructed import InstructedMiniature
from common.miniature.language_model import MICRO, Recipe, pretrained_student
from common.prompts import PROMPTS, ExperimentPrompts
from common.run import resolve, world_of
from common.schema import Pair, PromptRecord, ScoredPair, ScoreScale
from common.sources import load_prompts
from common.storage import read_lines, read_records
from common.student import load_student

RECIPES = {"miniature": Recipe(), "micro": MICRO}
Parameters = Mapping[str, Any]


def prompts_of(p: Parameters) -> ExperimentPrompts:
    """The texts of the experiment: from `prompts_file`, else the miniature's own where a miniature teacher or judge is asked,
    and those of `common.prompts` where a real one is; with the judge's `scale` where one is given."""
    if p["prompts_file"]:
        prompts = ExperimentPrompts.from_yaml(resolve(p["prompts_file"]))
    else:
        prompts = world_of(p["experiment"]).PROMPTS if p.get("teacher", p.get("judge")) == "miniature" else PROMPTS[p["experiment"]]
    if not p.get("scale"):
        return prompts
    if p["scale"] not in ScoreScale.__members__:
        raise ValueError(f"unknown scale {p['scale']!r}; there are {', '.join(ScoreScale.__members__)}")
    return prompts.model_copy(update={"scale": ScoreScale[p["scale"]]})


def open_teacher(p: Parameters) -> ChatModel:
    """The teacher of `generate_data`; for pairs of Counterfactual DPO the miniature has one that follows instructions."""
    if p["teacher"] == "miniature":
        if variant_named(p["pairs"]):
            return InstructedMiniature(p["experiment"], p["noise_no_better"], p["noise_worse"], p["noise_on"], p["seed"])
        return MiniatureTeacher(world_of(p["experiment"]), p["noise_no_better"], p["noise_worse"], p["noise_on"], p["seed"])
    return _kept_chat("teacher", p)


def open_prompts(p: Parameters) -> list[PromptRecord]:
    """The prompts of `generate_data`: the miniature's train split, or every split of a file or Hub dataset `source`."""
    if not p["source"]:
        return world_of(p["experiment"]).prompts_for("train", p["prompts"], p["benign_share"], p["seed"])
    return load_prompts(p["experiment"], p["source"], p["source_revision"], prompts_of(p).system, limit=p["prompts"])


def forecast(stage: str, p: Parameters) -> str:
    """What step 1 or 2 will ask an endpoint for, and about what it costs at most; asks it for one token, so that a wrong key
    or model shows. "" where no endpoint is asked."""
    role = {"generate_data": "teacher", "reward_score": "judge"}.get(stage)
    if not role or not p[role].startswith("endpoint:"):
        return ""
    prompts, pairs_file = prompts_of(p), resolve(p.get("pairs_file") or Path(p["output"]) / "pairs.jsonl")
    if role == "judge" and not pairs_file.exists():
        return "how much the judge will be asked is known when step 1 has written its pairs"
    texts = [record.prompt for record in (open_prompts(p) if role == "teacher" else read_records(pairs_file, Pair))]
    answers = "judge" if role == "judge" else "pair" if variant_named(p["pairs"]) else "chain"
    requests = len(texts) * {"chain": (3, 4), "pair": (2, 3), "judge": (2, 5)}[answers][prompts.quality is not None]
    longest = sum(map(len, texts)) // (4 * len(texts)) + 2 * p["max_new_tokens"]  # about four characters a token; what was said before is read again
    return preflight(_kept_chat(role, p).chat, requests, longest, p["max_new_tokens"])


def open_judge(p: Parameters) -> Judge | FeedbackJudge:
    """The judge of `reward_score`; two in one where the experiment has a second criterion."""
    prompts = prompts_of(p)
    if local := _local_judge("judge", p, prompts):
        return local
    if p["judge"] == "miniature":
        chat: ChatModel = MiniatureJudge(world_of(p["experiment"]), prompts, p["judge_error"], p["judge_blind_to"], p["judge_unclear"], p["seed"])
    else:
        chat = _kept_chat("judge", p)
    judge = LLMJudge(chat, prompts, p["max_new_tokens"])
    return FeedbackJudge(judge, LLMJudge(chat, prompts.quality, p["max_new_tokens"])) if prompts.quality else judge


def _local_judge(role: str, p: Parameters, prompts: ExperimentPrompts) -> Judge | None:
    """A reward head or a yes/no judge, where `judge` or `final_judge` names one."""
    kind, _, model = p[role].partition(":")
    if kind not in ("reward", "yes_no") or not model:
        return None
    if prompts.quality:
        raise ValueError(f"{role} = {p[role]!r} gives one number between 0 and 1, and {p['experiment']} needs sentiment and quality on their scales; take a chat model")
    return RewardHeadJudge(model) if kind == "reward" else YesNoJudge(model, prompts.yes_no_question)


def _kept_chat(role: str, p: Parameters) -> KeptChat:
    """A real model as `teacher` or `judge`; its replies are kept beside what is made of them."""
    kind, _, model = p[role].partition(":")
    if kind == "endpoint" and model:
        chat = EndpointChat(model, p["base_url"], p["api_key_env"], p["concurrency"], prices=p["prices"], max_cost=p["max_cost"] or None)
    elif kind == "local" and model:
        chat = LocalChat(*load_student(model), name=f"{model} in NF4", batch_size=p["concurrency"])
    elif p[role] == "recorded":
        chat = None
    else:
        judges = "" if role == "teacher" else ", reward:FOLDER_OR_HUB_NAME, yes_no:FOLDER_OR_HUB_NAME"
        raise ValueError(f"unknown {role} {p[role]!r}; there are miniature, endpoint:MODEL, local:FOLDER_OR_HUB_NAME, recorded{judges}")
    return KeptChat(chat, resolve(p["output"]) / f"{role}_replies.jsonl")


def open_experiment(p: Parameters) -> Experiment:
    """Student, pairs, evaluator and settings of `train_rdpo`.

    Raises ValueError or FileNotFoundError for anything missing or contradictory, before any work starts.
    """
    check_methods(p["methods"])
    check_split(p["evaluate_on"])
    path = resolve(p["pairs_file"] or Path(p["output"]) / "scored.jsonl")
    if not path.exists():
        raise FileNotFoundError(f"no scored pairs at {path}; run reward_score first, or give pairs_file")
    pairs = read_records(path, ScoredPair)
    train = [pair for pair in pairs if pair.split == "train"]
    if not train:
        raise ValueError(f"{path} has no pair of split 'train'")
    settings = TrainSettings(**{name: p[name] for name in TrainSettings.__dataclass_fields__ if name in p})
    common = {"evaluate_on": p["evaluate_on"], "train_pairs": p["train_pairs"], "pad_token": p["pad_token"] or None, "revision": p["revision"] or None}
    instructions = INSTRUCTIONS[p["experiment"]] if train[0].variant else None
    if p["student"] in RECIPES:
        world = world_of(p["experiment"])
        evaluator = WorldEvaluator(world, p["experiment"], _final_judge(p), p["evaluation_prompts"], p["max_new_tokens"], instructions)
        student = pretrained_student(world, RECIPES[p["student"]], cache=resolve("runs/models"))
        return Experiment(student, train, evaluator, resolve(p["output"]), settings, compute_dtype=torch.float32, **common)
    if "always_refuse" in p["methods"]:
        raise ValueError("always_refuse: no such row for a real student; only the miniature's worlds know a well-formed refusal")
    prompts = [PromptRecord(**{name: getattr(pair, name) for name in PromptRecord.model_fields}) for pair in pairs if pair.split != "train"]
    judge = _final_judge(p)
    style_judge = _style_judge(judge, p) if instructions else None
    evaluator = JudgedEvaluator(prompts, p["experiment"], judge, p["max_new_tokens"], p["repetition_penalty"], instructions, style_judge)
    return Experiment(p["student"], train, evaluator, resolve(p["output"]), settings, **common)


def _final_judge(p: Parameters) -> Judge:
    """Another judge than the one whose scores trained the student. In the miniature: same kind, other seed, so other errors.
    For a real student: `final_judge`, else one learned from the labelled answers of `judge_rows`."""
    if p["student"] in RECIPES:
        prompts = world_of(p["experiment"]).PROMPTS
        chat: ChatModel = MiniatureJudge(world_of(p["experiment"]), prompts, error=p["final_judge_error"], seed=1_000)
        return LLMJudge(chat, prompts.quality or prompts)
    if p["final_judge"]:
        prompts = PROMPTS[p["experiment"]].quality or PROMPTS[p["experiment"]]
        return _local_judge("final_judge", p, PROMPTS[p["experiment"]]) or LLMJudge(_kept_chat("final_judge", p), prompts)
    if not p["judge_rows"]:
        raise ValueError("a real student needs a final judge: give final_judge, a model, or judge_rows, a JSONL file of text and label to learn one from")
    rows = [row for _, row in read_lines(resolve(p["judge_rows"]))]
    return LearnedJudge([row["text"] for row in rows], [row["label"] for row in rows], name=f"learned from {Path(p['judge_rows']).name}")


def _style_judge(judge: Judge, p: Parameters) -> Judge | None:
    """The final judge asked whether an answer has the desired style; None for one that nobody can ask."""
    question = style_question(INSTRUCTIONS[p["experiment"]].desired)
    if isinstance(judge, LLMJudge):
        return LLMJudge(judge.chat, question)
    if not isinstance(judge, YesNoJudge):
        return None
    asked = copy.copy(judge)  # the same weights
    asked.question, asked.name = question.yes_no_question, f"{judge.name}; {question.yes_no_question}"
    return asked
