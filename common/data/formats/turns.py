"""Conversations, as message lists or texts with marks, taken apart into system, history, prompt and answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from common.data.formats.record import NoPreference
from common.runtime import shortened
from common.schema import Message

HUMAN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""The marks of HH-RLHF's transcripts (arXiv 2204.05862)."""
STEERLM = re.compile(r"(?:^|\n)<extra_id_1>(User|Assistant)\n")
"""The marks inside HelpSteer2's prompts of several turns (arXiv 2406.08673)."""
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


class Asked(NamedTuple):
    """A conversation up to the answer. history: turns before the prompt."""

    system: str
    history: list[Message]
    prompt: str


def messages(cell: Any, where: str) -> list[Message]:
    """The messages of a cell, their contents stripped.

    Raises ValueError naming the place for anything but a list of role and content, NoPreference for a turn without text
    or of another role.
    """
    if not isinstance(cell or [], list):
        raise ValueError(f"{where}: {shortened(cell)} is no list of messages, as the first row has one")
    turns = []
    for turn in cell or []:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ValueError(f"{where}: {shortened(turn)} is no message; each has a role and a content")
        if turn["role"] not in ("system", "user", "assistant"):
            raise NoPreference(f"rows with a turn of role {shortened(turn['role'])}")
        if not isinstance(turn["content"], str):
            raise NoPreference("rows with a turn that is no text")
        turns.append({"role": turn["role"], "content": turn["content"].strip()})
    return turns


def is_transcript(cell: Any) -> bool:
    """Whether a cell is a text in HH-RLHF's form."""
    return isinstance(cell, str) and cell.lstrip().startswith("Human:") and "\n\nAssistant:" in cell


def transcript(text: str, marks: re.Pattern[str] = HUMAN) -> list[Message]:
    """The turns of a text with marks. Raises NoPreference for words before the first."""
    before, *parts = marks.split(text.strip())
    if before.strip():
        raise NoPreference("rows with words before the first turn")
    return [{"role": ROLES[mark], "content": turn.strip()} for mark, turn in zip(parts[::2], parts[1::2])]


def asked_of(turns: Sequence[Message], system: str = "") -> Asked:
    """The turns before an answer. Raises NoPreference unless user and assistant alternate and the user is the last."""
    if turns and turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
    if not turns or turns[-1]["role"] != "user":
        raise NoPreference("rows without a request before the answer")
    if any(turn["role"] != ("user", "assistant")[number % 2] for number, turn in enumerate(turns)):
        raise NoPreference("rows whose turns do not alternate between user and assistant")
    return Asked(system, list(turns[:-1]), turns[-1]["content"])


def asked_in(text: str, system: str = "") -> Asked:
    """A prompt that is one request, or several turns with HelpSteer2's or HH-RLHF's marks."""
    if STEERLM.search(text):
        return asked_of(transcript(f"<extra_id_1>User\n{text}", STEERLM), system)
    if is_transcript(text):
        turns = transcript(text)
        return asked_of(turns[:-1] if turns[-1]["content"] == "" else turns, system)
    return Asked(system, [], text.strip())


def answer_of(turns: Sequence[Message]) -> str:
    """The last turn. Raises NoPreference unless it is the assistant's."""
    if not turns or turns[-1]["role"] != "assistant":
        raise NoPreference("rows whose last turn is not the assistant's")
    return turns[-1]["content"]


def shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """The turns before both answers. Raises NoPreference where they differ."""
    if chosen[:-1] != rejected[:-1]:
        raise NoPreference("rows whose answers follow different turns")
    return list(chosen[:-1])
