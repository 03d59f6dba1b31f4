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
from common.notebook.parameters import MINIATURES, RewardScore, Stage, TrainRDPO, judge_named
from common.notebook.prompts import texts_of
from common.prompts import PROMPTS, ExperimentPrompts
from common.runtime import resolve
from common.specs import spec_of

SENSIBLE_REQUEST = "Is the request in words that make sense, so that somebody could answer it?"
"""Asked of a proposed prompt, with no answer."""
SAME_REQUEST = "The answer is another request. Do both requests ask for exactly the same?"
"""What a judge of meaning is asked of a prompt, and of its wording in the answer's place."""


def open_judge(p: RewardScore) -> Judge | FeedbackJudge:
    """The judge of `reward_score`; two in one where the experiment has a second criterion."""
    if p.in_world:
        from common.miniature import lab

        noise = {"error": p.judge_error, "blind_to": p.judge_blind_to, "unclear": p.judge_unclear}
        return lab.judge(p.experiment, **noise, seed=p.seed, prompts=texts_of(p), max_new_tokens=p.max_new_tokens)
    return named_judge("judge", p.judge, p, texts_of(p), p.max_new_tokens)


def check_judge(
    judge: Judge | FeedbackJudge, p: RewardScore | TrainRDPO
) -> tuple[Judge | FeedbackJudge, dict[str, Any]]:
    """The judge to use, and what the labels of `labels` say of it (see `agreement.trusted`). The judge as it is and
    nothing: without labels, and in the miniature, which has an oracle."""
    if p.in_world:
        return judge, {}
    if not p.labels:
        print("judge not checked: `labels` names no labelled answers", flush=True)
        return judge, {}
    file, *texts = map(resolve, p.labels)
    return trusted(judge, file, texts[0] if texts else "", p.least_kappa)


def named_judge(
    role: str, name: str, p: Stage, prompts: ExperimentPrompts, max_new_tokens: int = 256
) -> Judge | FeedbackJudge:
    """What `judge`, `final_judge` or `reward_judge` names."""
    spec = judge_named(role, name)
    if spec.kind in ("reward", "learned") and prompts.quality:
        raise ValueError(
            f"{role} = {name!r} gives one number, and {p.experiment} needs sentiment and quality; take yes_no:... or a chat model"
        )
    if spec.kind == "lexicon":
        if not prompts.quality:
            raise ValueError(
                f"{role} = {name!r} reads feedback, and {p.experiment} has none; lexica are for sycophancy alone"
            )
        return lexicon_judge(spec.name)
    if spec.kind == "learned":
        return LearnedJudge.from_file(resolve(spec.name))
    if spec.kind == "yes_no":
        judge = YesNoJudge(spec.name, prompts.yes_no_question, spec.revision)
        return FeedbackJudge(judge, judge.asking(prompts.quality.yes_no_question)) if prompts.quality else judge
    if spec.kind == "reward":
        return RewardHeadJudge(spec.name, spec.revision)
    return llm_judge(
        kept_chat(role, spec, p), prompts, max_new_tokens, structured=spec.kind in ("endpoint", "recorded")
    )


def open_final_judge(p: TrainRDPO) -> Judge | FeedbackJudge:
    """What `final_judge` names: another judge than the one whose scores trained the student."""
    if not p.final_judge:
        raise ValueError(
            "a real student needs a final judge: give final_judge, which takes what `judge` of reward_score takes"
        )
    return named_judge("final_judge", p.final_judge, p, PROMPTS[p.experiment])


def open_meaning(name: str, student: str, experiment: str) -> Judge:
    """Who says whether two prompts ask for the same: `yes_no:NAME`, or in a miniature's world who reads them exactly.

    Raises ValueError for anybody else, and for the world's reader of a real student's prompts."""
    spec = spec_of("meaning", name, alone=["miniature"], named=["yes_no"])
    if spec.kind == "yes_no":
        return YesNoJudge(spec.name, SAME_REQUEST, spec.revision)
    if student not in MINIATURES:
        raise ValueError(
            f"meaning = miniature reads prompts of a miniature's world alone; for {student} name yes_no: and a model"
        )
    from common.miniature import lab

    return lab.meaning(experiment)


def open_sense(name: str) -> Judge:
    """Who says whether a prompt makes sense: `yes_no:NAME`. Raises ValueError for anybody else."""
    spec = spec_of("valid", name, named=["yes_no"])
    return YesNoJudge(spec.name, SENSIBLE_REQUEST, spec.revision)


def open_failure_judge(
    role: str, name: str, student: str, experiment: str, output: str, providers: str, seed: int
) -> Judge:
    """Who says whether an answer is good, of feedback by its quality alone.

    Takes what `named_judge` takes, and in a miniature's world `miniature`, its judge with errors, or `oracle`.

    Raises ValueError for anybody else, and for the world's judges of a real student's answers."""
    if name in ("miniature", "oracle"):
        if student not in MINIATURES:
            raise ValueError(
                f"{role} = {name} judges in a miniature's world alone; for {student} name yes_no:, learned: or another judge"
            )
        from common.miniature import lab

        noise = {"error": lab.FINAL_JUDGE_ERROR, "blind_to": "", "unclear": 0.0, "seed": seed}
        judge = lab.oracle(experiment) if name == "oracle" else lab.judge(experiment, **noise)
    else:
        asked = Stage(experiment=experiment, output=output, providers=providers)
        judge = named_judge(role, name, asked, PROMPTS[experiment])
    return judge.quality if isinstance(judge, FeedbackJudge) else judge


def style_judge_of(judge: Judge | FeedbackJudge, experiment: str) -> Judge | None:
    """The final judge asked whether an answer has the desired style; None for one that nobody can ask."""
    judge = judge.quality if isinstance(judge, FeedbackJudge) else judge
    question = style_question(INSTRUCTIONS[experiment].desired)
    if isinstance(judge, LLMJudge):
        return LLMJudge(judge.chat, question)
    return judge.asking(question.yes_no_question) if isinstance(judge, YesNoJudge) else None
