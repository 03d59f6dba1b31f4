"""Conditional alignment (CA, arXiv 2308.12050): the score of an answer written behind the request, so that a student
learns good and bad answers apart and is asked for good ones.

One function writes the tag, for training, evaluation and whoever serves the student. The words are the authors'
(OpenRLHF, `conditional SFT`); they write z-scores and ask for 5.00, here it is the score in [0, 1] and 1.00, which lies
among the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from common.chat.model import ChatModel, Rewording
from common.schema import Message

TAG = "<rm_score>"


def conditioned(conversation: Sequence[Message], score: float) -> list[Message]:
    """The conversation with the tag of a score behind its last user turn, two decimals, as in `Hello! <rm_score>: 0.60`;
    the authors' text ends with a blank, which chat templates may take away, ours does not.
    A tag that stands in a turn already is taken out, or whoever writes prompts could ask for bad answers.

    Raises ValueError for a score outside [0, 1], and for a conversation that does not end with the user's turn."""
    if not 0 <= score <= 1:
        raise ValueError(f"the score that an answer is asked for lies in [0, 1], not {score}")
    *before, last = [{**message, "content": _untagged(message["content"])} for message in conversation]
    if last["role"] != "user":
        raise ValueError(f"a score is asked for behind a user's turn, and this conversation ends with {last['role']}")
    return [*before, {**last, "content": f"{last['content']} {TAG}: {abs(score):.2f}"}]


def _untagged(text: str) -> str:
    while TAG in text:  # taking one out may join another
        text = text.replace(TAG, "")
    return text


class Conditioned(Rewording):
    """A student of CA: every request is asked with the tag of `score` behind it."""

    def __init__(self, chat: ChatModel, score: float):
        super().__init__(chat, partial(conditioned, score=score), f"{chat.name}, asked for {score:.2f}")
