"""Teachers and other chat models, opened from a notebook's parameters."""

from __future__ import annotations

from typing import Any

from common.chat.endpoint import EndpointChat
from common.chat.kept import KeptChat
from common.chat.local import LocalChat
from common.chat.model import ChatModel
from common.data.counterfactual import variant_named
from common.data.recorded import RecordedTeacher
from common.data.self_critique import WholeSentences
from common.judge.base import FeedbackJudge, Judge
from common.notebook.parameters import GenerateData, Stage
from common.notebook.providers import endpoint_named
from common.runtime import resolve
from common.specs import Spec, place_and_commit
from common.student.identity import shown
from common.student.load import load_as_it_is, load_student, merged_into


def open_teacher(p: GenerateData) -> ChatModel:
    """The teacher of `generate_data`; for pairs of Counterfactual DPO the miniature has one that follows instructions,
    and for recorded pairs nobody is asked."""
    if p.pairs == "recorded":
        return RecordedTeacher(place_and_commit(p.source)[0])
    if p.in_world:
        from common.miniature import lab

        how = {"no_better": p.noise_no_better, "worse": p.noise_worse, "noise_on": p.noise_on, "edits": p.edits}
        return lab.teacher(p.experiment, **how, seed=p.seed, instructed=bool(variant_named(p.pairs)))
    return _answering("teacher", p.teacher, p)


def open_respondent(p: GenerateData) -> ChatModel | None:
    """Who gives the first answers, where that is not the teacher: what `respond_with` names, such as the student."""
    if p.respond_with == "teacher":
        return None
    if p.pairs != "self_critique" or p.teacher in ("miniature", "recorded"):
        raise ValueError(
            f"respond_with = {p.respond_with!r} needs a real teacher and pairs = self_critique; leave it at teacher"
        )
    return _answering("respond_with", p.respond_with, p)


def _answering(role: str, name: str, p: GenerateData) -> ChatModel:
    chat = kept_chat(role, p.asked(role, name), p)
    return WholeSentences(chat) if p.cut_at_sentence else chat


def kept_chat(role: str, spec: Spec, p: Stage) -> KeptChat:
    """A real model in a role, of kind endpoint, local or recorded; its replies are kept beside what is made of them. A
    local one is loaded in NF4, but for a model that was merged into NF4 weights, which would lose what was merged."""
    chat: ChatModel | None = None
    if spec.kind == "endpoint":
        chat = endpoint_named(spec.name, p.providers)
    elif spec.kind == "local":
        merged = merged_into(spec.name, spec.revision)
        loader, how = (load_as_it_is, "unquantised") if merged else (load_student, "in NF4")
        chat = LocalChat(
            *loader(spec.name, revision=spec.revision),
            name=f"{shown(spec.name, spec.revision)} {how}",
            batch_size=p.local_batch,
        )
    elif spec.kind != "recorded":
        raise ValueError(
            f"{role} = {spec.kind!r} is nobody who can be asked here; name endpoint:MODEL, local:FOLDER_OR_HUB_NAME or recorded"
        )
    return KeptChat(chat, resolve(p.output) / f"{role}_replies.jsonl")


def paid(asked: ChatModel | Judge | FeedbackJudge) -> dict[str, float]:
    """What this run paid an endpoint for: requests, tokens and dollars, at the prices given. Kept replies cost nothing
    again; {} where no endpoint was asked."""
    chat: Any = asked
    while chat is not None and not isinstance(chat, EndpointChat):
        chat = getattr(chat, "sentiment", None) or getattr(
            chat, "chat", None
        )  # both verdicts of feedback are asked of one model
    return {**chat.usage, "dollars": round(chat.cost, 6)} if chat else {}
