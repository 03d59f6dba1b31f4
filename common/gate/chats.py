"""Base and adapter as chat models that are loaded when a first answer is missing, and whose answers are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.chat.kept import KeptChat
from common.chat.local import LocalChat
from common.chat.model import ChatModel, OnReply
from common.data.conditioned import Conditioned
from common.evaluation.answers import answers_by_set
from common.gate.sets import PromptSet
from common.methods import (
    TrainSettings,
    check_methods,
    existing,
    existing_commit,
    existing_place,
    existing_strength,
)
from common.runtime import Progress
from common.schema import Message, Reply, Sampling
from common.specs import place_and_commit
from common.student.adapters import adapter_asked_for
from common.student.identity import located, shown
from common.student.load import pad_token_beside, release_memory
from common.training.train import train

MAX_NEW_TOKENS = 96
"""Of an answer, as in the tables; what a refusal or a loop shows, it shows within that."""


class OpenedLater:
    """A chat model that is loaded when it is first asked and let go when it has answered."""

    def __init__(self, name: str, load: Callable[[], ChatModel]):
        self.name, self.load = name, load

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        replies = self.load().complete(conversations, sampling, on_reply)
        release_memory()
        return replies


class Candidates(NamedTuple):
    """Base and adapter, ready to be asked."""

    base: ChatModel
    adapter: ChatModel


def open_candidates(
    base: str, adapter: str, repetition_penalty: float = 1.0, pad_token: str | None = None
) -> Candidates:
    """Chats that load `base`, and `adapter` on it, to be asked greedily; a repetition penalty above 1 hides loops of both.

    The base is in NF4, as students are trained. Where `adapter` is `model:FOLDER`, both are loaded with the weights
    that they hold, so that rounding is no part of the difference. An adapter of CA is asked for the score that it was
    saved with. A base without a pad token takes `pad_token`, or that of the tokenizer beside the adapter.
    Raises ValueError or FileNotFoundError for what is not there, before anything is loaded.
    """
    place, commit = place_and_commit(base)
    located(place)
    row = adapter if existing(adapter) == "model" else f"adapter:{adapter}"
    check_methods([row])
    first = f"model:{base}" if existing(row) == "model" else "base"
    how = "as it is" if existing(row) == "model" else "in NF4"
    how += f", repetition penalty {repetition_penalty:g}" if repetition_penalty != 1 else ""
    of_base = f"{shown(place, commit or None)} {how}"
    strength, score = existing_strength(row), adapter_asked_for(existing_place(row))
    of_row = f"{shown(existing_place(row), existing_commit(row) or None)} "
    of_row += f"at strength {strength:g} " if strength != 1 else ""
    of_row += how + (f", asked for {score:.2f}" if score is not None else "")

    def load(method: str) -> ChatModel:
        pad = pad_token or pad_token_beside(existing_place(row), place, commit or None)
        student = train(method, place, [], TrainSettings(), "", revision=commit or None, pad_token=pad)
        asked = {"batch_size": 16, "repetition_penalty": repetition_penalty}
        chat = LocalChat(student.model, student.tokenizer, method, **asked)
        return chat if student.asked_for is None else Conditioned(chat, student.asked_for)

    return Candidates(
        OpenedLater(of_base, lambda: load(first)),
        OpenedLater(of_row if existing(row) == "model" else f"{of_row}, on {of_base}", lambda: load(row)),
    )


def ask(
    candidates: Candidates, sets: Sequence[PromptSet], output: Path
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The answers of base and adapter by set. Each is kept in `answers.jsonl` as it comes, and none is asked for again.

    Raises RuntimeError where some were never given.
    """
    asked, found = {of.name: of.records for of in sets}, []
    for role, chat in zip(Candidates._fields, candidates):
        progress = Progress(f"answers of the {role}", sum(map(len, asked.values())))
        kept = _Counted(KeptChat(chat, output / "answers.jsonl"), progress)
        found.append(answers_by_set(kept, asked, MAX_NEW_TOKENS))
    return found[0], found[1]


class _Counted(NamedTuple):
    chat: ChatModel
    progress: Progress

    @property
    def name(self) -> str:
        return self.chat.name

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        return self.chat.complete(conversations, sampling, lambda *_: self.progress(1))
