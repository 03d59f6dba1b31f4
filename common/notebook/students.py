"""From a notebook's parameters to the objects it works with, so that the notebooks do not know which ones they use."""

from __future__ import annotations

from common.data.counterfactual import INSTRUCTIONS
from common.evaluation.judged import FeedbackEvaluator, HeldOut, JudgedEvaluator
from common.evaluation.reader import Reader
from common.judge.base import FeedbackJudge
from common.loss import LOSSES, knobs_of
from common.methods import TrainSettings, check_methods, existing, is_trained
from common.notebook.chats import kept_chat
from common.notebook.judges import check_judge, named_judge, open_final_judge, style_judge_of
from common.notebook.parameters import MINIATURES, Parameters, input_of
from common.prompts import PROMPTS
from common.runtime import resolve
from common.schema import ScoredPair
from common.storage import read_records
from common.training.comparison import Experiment, check_split
from common.training.kept import read_tuned


def open_experiment(p: Parameters) -> Experiment:
    """Student, pairs, evaluator and settings of `train_rdpo`. Rows that train nothing need no scored pairs: a real student's
    prompts then come from any file with the fields of `PromptRecord`, and a miniature student's from its world.

    Raises ValueError or FileNotFoundError for anything missing or contradictory, before any work starts.
    """
    check_methods(p["methods"])
    check_split(p["evaluate_on"])
    trains = any(map(is_trained, p["methods"]))
    path = input_of("train_rdpo", p)
    if not path.exists() and (trains or p["student"] not in MINIATURES):
        raise FileNotFoundError(f"no scored pairs at {path}; run reward_score first, or give pairs_file")
    train = [pair for pair in read_records(path, ScoredPair) if pair.split == "train"] if trains else []
    if trains and not train:
        raise ValueError(f"{path} has no pair of split 'train'")
    knobs = {name: p[name] for loss in LOSSES for name in knobs_of(loss) if name in p}
    settings = TrainSettings(knobs=knobs, **{name: p[name] for name in TrainSettings.__dataclass_fields__ if name in p})
    chats = {row: kept_chat("student", {**p, "student": row}) for row in p["methods"] if existing(row) == "endpoint"}
    common = {"evaluate_on": p["evaluate_on"], "train_pairs": trains * p["train_pairs"], "chats": chats, "pad_token": p["pad_token"] or None, "revision": p["revision"] or None}
    common["tuned"] = read_tuned(resolve(p["tuned"])) if p["tuned"] else {}
    common["finished"] = resolve(p["finished"]) / p["experiment"] / "finished.jsonl" if p["finished"] else None
    instructions = INSTRUCTIONS[p["experiment"]] if train and train[0].variant not in ("", "neutral") else None
    if p["student"] in MINIATURES:
        from common.miniature import lab

        evaluator = lab.evaluator(p["experiment"], prompts=p["evaluation_prompts"], max_new_tokens=p["max_new_tokens"], instructions=instructions)
        student, load = lab.student(p["experiment"], p["student"])
        return Experiment(student, train, evaluator, resolve(p["output"]), settings, **load, **common)
    if "always_refuse" in p["methods"]:
        raise ValueError("always_refuse: no such row for a real student; only the miniature's worlds know a well-formed refusal")
    prompts = [record for record in read_records(path, HeldOut) if record.split != "train"]
    asked = open_final_judge(p)
    judge, found = check_judge(asked, p)
    for criterion, checks in found.items():
        print(f"final judge, {criterion}:", {name: {key: value for key, value in check.items() if key != "errors"} for name, check in checks.items()})
    kind = FeedbackEvaluator if isinstance(judge, FeedbackJudge) else JudgedEvaluator
    style_judge = style_judge_of(asked, p) if instructions else None  # a calibrated judge knows one question only
    reward_judge = named_judge("reward_judge", p, PROMPTS[p["experiment"]]) if p["reward_judge"] else None
    reader = Reader(p["student"], pad_token=common["pad_token"], revision=common["revision"])
    evaluator = kind(prompts, p["experiment"], judge, reader, p["max_new_tokens"], p["repetition_penalty"], instructions, style_judge, p["evaluation_prompts"], reward_judge)
    return Experiment(p["student"], train, evaluator, resolve(p["output"]), settings, **common)
