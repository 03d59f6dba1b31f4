"""Chat models behind one method: conversations in, replies out. Teacher, judge and student are all called this way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from common.schema import Message, Reply, Sampling

OnReply = Callable[[int, Reply], None]
"""Called with the number of a conversation and its reply the moment this has come, in any order."""


class ChatModel(Protocol):
    """Anything with a name and this method; the notebooks do not know which one they use.

    The name tells models apart whose replies may differ: replies are kept under it.
    """

    name: str

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        """One reply per conversation, in order; `on_reply` has seen each one before."""
        ...


class Rewording:
    """A chat model that is asked in other words: `reworded` makes each conversation into the one that it sees."""

    def __init__(self, chat: ChatModel, reworded: Callable[[list[Message]], list[Message]], name: str):
        self.chat, self.reworded, self.name = chat, reworded, name

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        return self.chat.complete(list(map(self.reworded, conversations)), sampling, on_reply)


def hand_over(replies: Iterable[Reply], on_reply: OnReply | None) -> list[Reply]:
    """The replies as a list, each shown to `on_reply` as soon as it is made."""
    finished = []
    for reply in replies:
        if on_reply:
            on_reply(len(finished), reply)
        finished.append(reply)
    return finished
