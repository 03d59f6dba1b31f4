"""Students ready to be asked, and their answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.chat.local import LocalChat
from common.chat.mixture import Mixture, OfAdapter
from common.chat.model import ChatModel, OnReply, Rewording, hand_over
from common.data.conditioned import Conditioned
from common.data.counterfactual import StyleInstructions
from common.data.self_critique import opening, run_chains
from common.prompts import ExperimentPrompts
from common.schema import Message, PromptRecord, Reply, Sampling
from common.student.load import precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answers_of(chat: ChatModel, records: Sequence[PromptRecord], max_new_tokens: int) -> list[str]:
    """Greedy answers, one per prompt; "" where a filter refused one. Raises RuntimeError where some were never given:
    no answer is no bad answer, and those that came are kept."""
    conversations = [opening(record.system, record.prompt, record.history) for record in records]
    replies = chat.complete(conversations, Sampling(max_new_tokens=max_new_tokens))
    if failed := [reply.finish_reason for reply in replies if reply.failed]:
        raise RuntimeError(
            f"{chat.name} gave no answer to {len(failed)} of {len(records)} prompts ({failed[0]}); run again to ask for these alone"
        )
    return [reply.text for reply in replies]


def answers_by_set(
    chat: ChatModel, sets: Mapping[str, Sequence[PromptRecord]], max_new_tokens: int
) -> dict[str, list[str]]:
    """Greedy answers to several sets, asked together."""
    together = iter(answers_of(chat, [record for records in sets.values() for record in records], max_new_tokens))
    return {name: [next(together) for _ in records] for name, records in sets.items()}


def chat_of(student: TrainedStudent, prompts: ExperimentPrompts, instructions: StyleInstructions, **local) -> ChatModel:
    """How a row of the table answers: its model directly, through self-refinement (SR) with the experiment's requests,
    or told what to do (`prompted`)."""
    if student.chat:
        return student.chat
    chat = LocalChat(student.model, student.tokenizer, f"{student.method} {student.mark}".strip(), **local)
    if student.method == "prompted":
        return Prompted(chat, instructions)
    return SelfRefining(chat, prompts) if student.method == "sr" else as_trained(student, chat)


def as_trained(student: TrainedStudent, chat: LocalChat) -> ChatModel:
    """A student's model in the way that its training asks for: a mixture by its policies, a student of CA for its
    score."""
    if student.policies:
        return Mixture({OfAdapter(chat, name): weight for name, weight in student.policies.items()}, chat.name)
    return chat if student.asked_for is None else Conditioned(chat, student.asked_for)


@dataclass
class TrainedStudent:
    """A student ready to be asked: the model (with its adapter, if it was trained) and what training looked like.

    chat answers in the model's place, for a row that is no model in this process. asked_for: of a student of CA, the
    score that every answer is asked for (`common.data.conditioned`). policies: of a mixture, the names of the model's
    adapters, each with the probability that it is the one which answers; annotators: of each whose pairs it was trained
    on, the probability of being of each policy's type. reward_gaps: of a training with weights, id of
    every pair -> implicit reward of chosen minus rejected at its end. mark: of the training, "" for none.
    history: one dict per logged step, in TRL's names (`loss`, `rewards/margins`, `logps/chosen`, ...).
    """

    method: str
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    pairs_used: int = 0
    unscored: int = 0
    chat: ChatModel | None = None
    asked_for: float | None = None
    policies: Mapping[str, float] = field(default_factory=dict)
    annotators: Mapping[str, Sequence[float]] = field(default_factory=dict)
    reward_gaps: dict[str, float] = field(default_factory=dict)
    mark: str = ""

    @property
    def precision(self) -> str:
        """See `student.precision`; "" for a row that is no model in this process."""
        return precision(self.model) if self.model else ""


class SelfRefining:
    """SR (our reading): a chat model that answers, criticises and rewrites; its reply is the rewritten answer."""

    def __init__(self, chat: LocalChat, prompts: ExperimentPrompts):
        self.chat, self.prompts, self.name = chat, prompts, f"SR of {chat.name}"

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        return hand_over(
            (chain[-1] for chain in run_chains(self.chat, conversations, self.prompts, sampling)), on_reply
        )


class Prompted(Rewording):
    """The base student, prompted: a chat model that is asked with the desired instruction behind every request, which is
    what Counterfactual DPO (arXiv 2401.09566) is compared with. An instruction that stands there already is enough."""

    def __init__(self, chat: ChatModel, instructions: StyleInstructions):
        def told(conversation: list[Message]) -> list[Message]:
            *before, request = conversation
            if request["content"].endswith(instructions.desired):
                return conversation
            return [*before, {**request, "content": instructions.prompt(request["content"], "desired")}]

        super().__init__(chat, told, f"{chat.name}, prompted")


class Constant:
    """A chat model that gives the answer of a function of the last user turn: the always-refuse row."""

    def __init__(self, answer: Callable[[str], str], name: str = "always_refuse"):
        self.answer, self.name = answer, name

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        return hand_over(
            (Reply(text=self.answer(conversation[-1]["content"])) for conversation in conversations), on_reply
        )
