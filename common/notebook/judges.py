"""Judges, opened from a notebook's parameters."""

from __future__ import annotations

from typing import Any

from common.data.counterfactual import INSTRUCTIONS
from common.evaluation.style import style_question
from common.judge.agreement import trusted
from common.judge.base import FeedbackJudge, Judge
from common.judge.learned import LearnedJudge
from common.judge.lexicon import lexicon_judge
from common.judge.llm import LLMJudge, llm_judge
from common.judge.local import RewardHeadJudge, YesNoJudge
from common.notebook.chats import kept_chat
from common.notebook.parameters import MINIATURES, Parameters
from common.notebook.prompts import prompts_of
from common.prompts import PROMPTS, ExperimentPrompts
from common.runtime import resolve


def open_judge(p: Parameters) -> Judge | FeedbackJudge:
    """The judge of `reward_score`; two in one where the experiment has a second criterion."""
    if p["judge"] == "miniature":
        from common.miniature import lab

        noise = {"error": p["judge_error"], "blind_to": p["judge_blind_to"], "unclear": p["judge_unclear"]}
        return lab.judge(p["experiment"], **noise, seed=p["seed"], prompts=prompts_of(p), max_new_tokens=p["max_new_tokens"])
    return named_judge("judge", p, prompts_of(p), p["max_new_tokens"])


def check_judge(judge: Judge | FeedbackJudge, p: Parameters) -> tuple[Judge | FeedbackJudge, dict[str, Any]]:
    """The judge to use, and what the labels of `labels_file` say of it (see `labels.trusted`). The judge as it is and nothing:
    without labels, and in the miniature, which has an oracle."""
    if not p["labels_file"] or p.get("judge", p.get("student")) in MINIATURES:
        return judge, {}
    texts = resolve(p["labels_texts"]) if p["labels_texts"] else ""
    return trusted(judge, resolve(p["labels_file"]), texts, p["least_kappa"])


def named_judge(role: str, p: Parameters, prompts: ExperimentPrompts, max_new_tokens: int = 256) -> Judge | FeedbackJudge:
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
    return llm_judge(kept_chat(role, p), prompts, max_new_tokens, structured=kind in ("endpoint", "recorded"))


def open_final_judge(p: Parameters) -> Judge | FeedbackJudge:
    """What `final_judge` names: another judge than the one whose scores trained the student."""
    if not p["final_judge"]:
        raise ValueError("a real student needs a final judge: give final_judge, which takes what `judge` of reward_score takes")
    return named_judge("final_judge", p, PROMPTS[p["experiment"]])


def style_judge_of(judge: Judge | FeedbackJudge, p: Parameters) -> Judge | None:
    """The final judge asked whether an answer has the desired style; None for one that nobody can ask."""
    judge = judge.quality if isinstance(judge, FeedbackJudge) else judge
    question = style_question(INSTRUCTIONS[p["experiment"]].desired)
    if isinstance(judge, LLMJudge):
        return LLMJudge(judge.chat, question)
    return judge.asking(question.yes_no_question) if isinstance(judge, YesNoJudge) else None
