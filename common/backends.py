"""From a notebook's parameters to the objects it works with, so that the notebooks do not know which ones they use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock

from common.chat import ChatModel, KeptChat, LocalChat, WholeSentences
from common.counterfactual import INSTRUCTIONS, style_question, variant_named
from common.endpoint import EndpointChat
from common.evaluate import WorldEvaluator
from common.experiment import Experiment, check_split
from common.identity import shown
from common.judge import FeedbackJudge, Judge, LLMJudge
from common.judged import FeedbackEvaluator, HeldOut, JudgedEvaluator, Reader
from common.labels import LearnedJudge, trusted
from common.lexicon import lexicon_judge
from common.local_judges import RewardHeadJudge, YesNoJudge
from common.methods import TrainSettings, check_methods, existing, is_trained
from common.miniature.actors import MiniatureJudge, MiniatureTeacher
from common.miniature.instructed import InstructedMiniature
from common.miniature.language_model import MICRO, Recipe, pretrained_student
from common.prompts import PROMPTS, VERSIONS, ExperimentPrompts
from common.recorded import RecordedTeacher, load_pairs
from common.run import input_of, resolve, world_of
from common.schema import PromptRecord, ScoredPair, ScoreScale
from common.sources import load_prompts
from common.storage import read_records
from common.student import load_as_it_is, load_student, merged_into
from common.trainings import read_tuned

RECIPES = {"miniature": Recipe(), "micro": MICRO}
FINAL_JUDGE_ERROR = 0.1  # of the miniature's second judge
Parameters = Mapping[str, Any]


def miniature_student(world: ModuleType, recipe: Recipe) -> Path:
    """The folder of a miniature student in the common cache, made once where several notebooks or tests ask for it at a time."""
    cache = resolve("runs/models")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{world.__name__}.lock"):
        return pretrained_student(world, recipe, cache=cache)


def prompts_of(p: Parameters) -> ExperimentPrompts:
    """The texts of the experiment: those that `prompts_file` names, a version of `common.prompts.VERSIONS` or a YAML file, else the
    miniature's own where a miniature teacher or judge is asked, and the newest of `common.prompts` where a real one is; with the
    judge's `scale` where one is given."""
    if p["prompts_file"] in VERSIONS:
        prompts = VERSIONS[p["prompts_file"]]
    elif p["prompts_file"]:
        prompts = ExperimentPrompts.from_yaml(resolve(p["prompts_file"]))
    else:
        prompts = world_of(p["experiment"]).PROMPTS if p.get("teacher", p.get("judge")) == "miniature" and p.get("pairs") != "recorded" else PROMPTS[p["experiment"]]
    if not p.get("scale"):
        return prompts
    if p["scale"] not in ScoreScale.__members__:
        raise ValueError(f"unknown scale {p['scale']!r}; there are {', '.join(ScoreScale.__members__)}")
    return prompts.model_copy(update={"scale": ScoreScale[p["scale"]]})


def open_teacher(p: Parameters) -> ChatModel:
    """The teacher of `generate_data`; for pairs of Counterfactual DPO the miniature has one that follows instructions, and for
    recorded pairs nobody is asked."""
    if p["pairs"] == "recorded":
        return RecordedTeacher(p["source"])
    if p["teacher"] == "miniature":
        if variant_named(p["pairs"]):
            return InstructedMiniature(p["experiment"], p["noise_no_better"], p["noise_worse"], p["noise_on"], p["seed"])
        return MiniatureTeacher(world_of(p["experiment"]), p["noise_no_better"], p["noise_worse"], p["noise_on"], p["seed"])
    return _answering("teacher", p)


def open_respondent(p: Parameters) -> ChatModel | None:
    """Who gives the first answers, where that is not the teacher: what `respond_with` names, such as the student."""
    if p["respond_with"] == "teacher":
        return None
    if p["pairs"] != "self_critique" or p["teacher"] in ("miniature", "recorded"):
        raise ValueError(f"respond_with = {p['respond_with']!r} needs a real teacher and pairs = self_critique; leave it at teacher")
    return _answering("respond_with", p)


def _answering(role: str, p: Parameters) -> ChatModel:
    chat = _kept_chat(role, p)
    return WholeSentences(chat) if p["cut_at_sentence"] else chat


def open_prompts(p: Parameters) -> list[PromptRecord]:
    """The prompts of `generate_data`: the miniature's train split, or every split of a file or Hub dataset `source`; with their
    answers where the pairs are recorded."""
    if p["pairs"] == "recorded":
        if not p["source"]:
            raise ValueError("pairs = recorded needs source: the file or Hub dataset that holds them, see common/recorded.py")
        return load_pairs(p["experiment"], p["source"], p["source_revision"], limit=p["prompts"])
    if not p["source"] and p["teacher"] != "miniature":
        raise ValueError(f"teacher = {p['teacher']} needs source: a file or Hub dataset of prompts for it, see common/sources.py; the miniature's own prompts mean nothing to a real model")
    if not p["source"]:
        return world_of(p["experiment"]).prompts_for("train", p["prompts"], p["benign_share"], p["seed"])
    return load_prompts(p["experiment"], p["source"], p["source_revision"], prompts_of(p).system, limit=p["prompts"])


def open_judge(p: Parameters) -> Judge | FeedbackJudge:
    """The judge of `reward_score`; two in one where the experiment has a second criterion."""
    prompts = prompts_of(p)
    if p["judge"] == "miniature":
        chat = MiniatureJudge(world_of(p["experiment"]), prompts, p["judge_error"], p["judge_blind_to"], p["judge_unclear"], p["seed"])
        return _llm_judge(chat, prompts, p["max_new_tokens"])
    return _real_judge("judge", p, prompts, p["max_new_tokens"])


def check_judge(judge: Judge | FeedbackJudge, p: Parameters) -> tuple[Judge | FeedbackJudge, dict[str, Any]]:
    """The judge to use, and what the labels of `labels_file` say of it (see `labels.trusted`). The judge as it is and nothing:
    without labels, and in the miniature, which has an oracle."""
    if not p["labels_file"] or p.get("judge", p.get("student")) in ("miniature", *RECIPES):
        return judge, {}
    texts = resolve(p["labels_texts"]) if p["labels_texts"] else ""
    return trusted(judge, resolve(p["labels_file"]), texts, p["least_kappa"])


def _llm_judge(chat: ChatModel, prompts: ExperimentPrompts, max_new_tokens: int = 256, structured: bool = False) -> LLMJudge | FeedbackJudge:
    judge = LLMJudge(chat, prompts, max_new_tokens, structured)
    return FeedbackJudge(judge, LLMJudge(chat, prompts.quality, max_new_tokens, structured)) if prompts.quality else judge


def _real_judge(role: str, p: Parameters, prompts: ExperimentPrompts, max_new_tokens: int = 256) -> Judge | FeedbackJudge:
    """What `judge` or `final_judge` names."""
    kind, _, model = p[role].partition(":")
    if kind in ("reward", "learned") and model and prompts.quality:
        raise ValueError(f"{role} = {p[role]!r} gives one number, and {p['experiment']} needs sentiment and quality; take yes_no:... or a chat model")
    if kind == "lexicon":
        if not prompts.quality:
            raise ValueError(f"{role} = {p[role]!r} reads feedback, and {p['experiment']} has none; lexica are for sycophancy alone")
        return lexicon_judge(model)
    if kind == "learned" and model:
        return LearnedJudge.from_file(resolve(model))
    if kind == "yes_no" and model:
        judge = YesNoJudge(model, prompts.yes_no_question)
        return FeedbackJudge(judge, judge.asking(prompts.quality.yes_no_question)) if prompts.quality else judge
    if kind == "reward" and model:
        return RewardHeadJudge(model)
    return _llm_judge(_kept_chat(role, p), prompts, max_new_tokens, structured=kind in ("endpoint", "recorded"))


def _kept_chat(role: str, p: Parameters) -> KeptChat:
    """A real model as `teacher` or `judge`; its replies are kept beside what is made of them. A local one is loaded in NF4, but for a model
    that was merged into NF4 weights, which would lose what was merged."""
    kind, _, model = p[role].partition(":")
    if kind == "endpoint" and model:
        chat = endpoint_chat(model, p)
    elif kind == "local" and model:
        loader, how = (load_as_it_is, "unquantised") if merged_into(model) else (load_student, "in NF4")
        chat = LocalChat(*loader(model), name=f"{shown(model)} {how}", batch_size=p["concurrency"])
    elif p[role] == "recorded":
        chat = None
    else:
        judges = "" if role == "teacher" else ", reward:FOLDER_OR_HUB_NAME, yes_no:FOLDER_OR_HUB_NAME, learned:ROWS.jsonl, lexicon:textblob or vader"
        raise ValueError(f"unknown {role} {p[role]!r}; there are miniature, endpoint:MODEL, local:FOLDER_OR_HUB_NAME, recorded{judges}")
    return KeptChat(chat, resolve(p["output"]) / f"{role}_replies.jsonl")


def endpoint_chat(model: str, p: Parameters) -> EndpointChat:
    return EndpointChat(model, p["base_url"], p["api_key_env"], p["concurrency"], prices=p["prices"], max_cost=p["max_cost"] or None)


def paid(asked: ChatModel | Judge | FeedbackJudge) -> dict[str, float]:
    """What this run paid an endpoint for: requests, tokens and dollars, at the prices given. Kept replies cost nothing again;
    {} where no endpoint was asked."""
    chat: Any = asked
    while chat is not None and not isinstance(chat, EndpointChat):
        chat = getattr(chat, "sentiment", None) or getattr(chat, "chat", None)  # both verdicts of feedback are asked of one model
    return {**chat.usage, "dollars": round(chat.cost, 6)} if chat else {}


def open_experiment(p: Parameters) -> Experiment:
    """Student, pairs, evaluator and settings of `train_rdpo`. Rows that train nothing need no scored pairs: a real student's
    prompts then come from any file with the fields of `PromptRecord`, and a miniature student's from its world.

    Raises ValueError or FileNotFoundError for anything missing or contradictory, before any work starts.
    """
    check_methods(p["methods"])
    check_split(p["evaluate_on"])
    trains = any(map(is_trained, p["methods"]))
    path = input_of("train_rdpo", p)
    if not path.exists() and (trains or p["student"] not in RECIPES):
        raise FileNotFoundError(f"no scored pairs at {path}; run reward_score first, or give pairs_file")
    train = [pair for pair in read_records(path, ScoredPair) if pair.split == "train"] if trains else []
    if trains and not train:
        raise ValueError(f"{path} has no pair of split 'train'")
    settings = TrainSettings(**{name: p[name] for name in TrainSettings.__dataclass_fields__ if name in p})
    chats = {row: _kept_chat("student", {**p, "student": row}) for row in p["methods"] if existing(row) == "endpoint"}
    common = {"evaluate_on": p["evaluate_on"], "train_pairs": trains * p["train_pairs"], "chats": chats, "pad_token": p["pad_token"] or None, "revision": p["revision"] or None}
    common["tuned"] = read_tuned(resolve(p["tuned"])) if p["tuned"] else {}
    common["finished"] = resolve(p["finished"]) / p["experiment"] / "finished" if p["finished"] else None
    instructions = INSTRUCTIONS[p["experiment"]] if train and train[0].variant not in ("", "neutral") else None
    if p["student"] in RECIPES:
        world = world_of(p["experiment"])
        evaluator = WorldEvaluator(world, p["experiment"], open_final_judge(p), p["evaluation_prompts"], p["max_new_tokens"], instructions)
        return Experiment(miniature_student(world, RECIPES[p["student"]]), train, evaluator, resolve(p["output"]), settings, compute_dtype=torch.float32, **common)
    if "always_refuse" in p["methods"]:
        raise ValueError("always_refuse: no such row for a real student; only the miniature's worlds know a well-formed refusal")
    prompts = [record for record in read_records(path, HeldOut) if record.split != "train"]
    asked = open_final_judge(p)
    judge, found = check_judge(asked, p)
    for criterion, checks in found.items():
        print(f"final judge, {criterion}:", {name: {key: value for key, value in check.items() if key != "errors"} for name, check in checks.items()})
    kind = FeedbackEvaluator if isinstance(judge, FeedbackJudge) else JudgedEvaluator
    style_judge = _style_judge(asked, p) if instructions else None  # a calibrated judge knows one question only
    reward_judge = _real_judge("reward_judge", p, PROMPTS[p["experiment"]]) if p["reward_judge"] else None
    reader = Reader(p["student"], pad_token=common["pad_token"], revision=common["revision"])
    evaluator = kind(prompts, p["experiment"], judge, reader, p["max_new_tokens"], p["repetition_penalty"], instructions, style_judge, p["evaluation_prompts"], reward_judge)
    return Experiment(p["student"], train, evaluator, resolve(p["output"]), settings, **common)


def open_final_judge(p: Parameters) -> Judge | FeedbackJudge:
    """Another judge than the one whose scores trained the student. In the miniature: same kind, other seed, so other errors.
    For a real student what `final_judge` names."""
    if p["student"] in RECIPES:
        prompts = world_of(p["experiment"]).PROMPTS
        chat: ChatModel = MiniatureJudge(world_of(p["experiment"]), prompts, error=FINAL_JUDGE_ERROR, seed=1_000)
        return LLMJudge(chat, prompts.quality or prompts)
    if not p["final_judge"]:
        raise ValueError("a real student needs a final judge: give final_judge, which takes what `judge` of reward_score takes")
    return _real_judge("final_judge", p, PROMPTS[p["experiment"]])


def _style_judge(judge: Judge | FeedbackJudge, p: Parameters) -> Judge | None:
    """The final judge asked whether an answer has the desired style; None for one that nobody can ask."""
    judge = judge.quality if isinstance(judge, FeedbackJudge) else judge
    question = style_question(INSTRUCTIONS[p["experiment"]].desired)
    if isinstance(judge, LLMJudge):
        return LLMJudge(judge.chat, question)
    return judge.asking(question.yes_no_question) if isinstance(judge, YesNoJudge) else None
