"""A chat model that answers as one of several, drawn anew for every conversation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from common.chat.local import LocalChat
from common.chat.model import ChatModel, OnReply
from common.schema import Message, Reply, Sampling, fingerprint


class Mixture:
    """Several chat models, one of which answers each conversation, with the probability that is its weight.

    Who answers is drawn by the conversation and the sampling's seed: the same question gets the same answer in any order
    and company. Raises ValueError unless the weights are 0 or more with sum 1."""

    def __init__(self, weights: Mapping[ChatModel, float], name: str):
        if min(weights.values()) < 0 or abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights of a mixture are shares with sum 1, not {list(weights.values())}")
        self.weights, self.name = weights, f"{name}, {', '.join(f'{weight:.6f}' for weight in weights.values())}"

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        chats = [self.drawn(conversation, sampling.seed) for conversation in conversations]
        replies: dict[int, Reply] = {}
        for chat in self.weights:
            own = [number for number, drawn in enumerate(chats) if drawn is chat]
            seen = on_reply and (lambda index, reply, own=own: on_reply(own[index], reply))
            if own:
                replies |= zip(own, chat.complete([conversations[number] for number in own], sampling, seen))
        return [replies[number] for number in range(len(conversations))]

    def drawn(self, conversation: list[Message], seed: int) -> ChatModel:
        """Who answers a conversation."""
        rng = random.Random(f"mixture {seed} {fingerprint(conversation)}")
        return rng.choices(list(self.weights), list(self.weights.values()))[0]


class OfAdapter:
    """A local model as it is with one of its adapters on."""

    def __init__(self, chat: LocalChat, adapter: str):
        self.chat, self.adapter, self.name = chat, adapter, f"{chat.name}, {adapter}"

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        self.chat.model.set_adapter(self.adapter, inference_mode=True)
        return self.chat.complete(conversations, sampling, on_reply)
