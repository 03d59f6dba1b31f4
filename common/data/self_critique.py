"""Answer, critique, revision: a teacher improves its own answers, and every finished chain is kept at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from common.chat.model import ChatModel, OnReply
from common.data.text_rules import sentence_prefixes
from common.prompts import ExperimentPrompts, opening_turns
from common.schema import Message, Pair, PromptRecord, Reply, Sampling
from common.storage import Records, make_missing


class WholeSentences:
    """A chat model whose replies, where they were cut off for length, end with their last whole sentence and count as
    whole; one without any stays cut off."""

    def __init__(self, chat: ChatModel):
        self.chat, self.name = chat, chat.name

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        each = on_reply and (lambda row, reply: on_reply(row, self._ended(reply)))
        return [self._ended(reply) for reply in self.chat.complete(conversations, sampling, each)]

    def _ended(self, reply: Reply) -> Reply:
        prefixes = sentence_prefixes(reply.text) if reply.finish_reason == "length" else []
        return reply.model_copy(update={"text": prefixes[0], "finish_reason": "stop"}) if prefixes else reply


TURNS = ("answer", "critique", "revision")
BASE = "base answer"
"""The turn that answers the plain prompt."""


def opening(system: str, prompt: str, history: Sequence[Message] = ()) -> list[Message]:
    """The conversation that starts a chain; an empty system prompt is no message at all."""
    return [*opening_turns(system), *history, {"role": "user", "content": prompt}]


def run_chains(
    teacher: ChatModel,
    conversations: Sequence[list[Message]],
    prompts: ExperimentPrompts,
    sampling: Sampling,
    whole: bool = False,
    progress: Callable[[int], object] = lambda turns: None,
    plain: Sequence[str] = (),
    respondent: ChatModel | None = None,
) -> list[list[Reply]]:
    """[answer, critique, revision] per conversation. Each turn is asked for in all chains together.

    Args:
        whole: a turn that was cut off is asked for once more with twice the budget, and a chain ends early at a turn
            that is still not whole or has no words; otherwise a turn is taken as it is.
        progress: called with the number of turns just finished; a chain that ends early counts as three.
        plain: the request of each conversation without wrapper, persona or stance, for prompts that quote it; where
            there is none, the last user turn.
        respondent: who gives the first answers; None is the teacher.
    """
    requests = plain or [conversation[-1]["content"] for conversation in conversations]
    chains: list[list[Reply]] = [[] for _ in conversations]
    going = range(len(chains))
    for turn in TURNS:
        model = respondent if turn == TURNS[0] and respondent else teacher
        asked = [
            prompts.conversation_after(conversations[i], requests[i], [reply.text for reply in chains[i]])
            for i in going
        ]
        replies = model.complete(asked, sampling, lambda *_: progress(1))
        for i, reply in zip(going, _ask_cut_again(model, asked, sampling, replies) if whole else replies, strict=True):
            chains[i].append(reply if turn == TURNS[0] else reply.model_copy(update={"text": prompts.read(reply.text)}))
        ended = [i for i in going if whole and why_unfit(chains[i][-1])]
        progress(sum(len(TURNS) - len(chains[i]) for i in ended))
        going = sorted(set(going) - set(ended))
    return chains


def why_unfit(reply: Reply) -> str:
    """Why a chain ends with this reply: its finish reason where it is not whole, or that it says nothing; "" for a fit
    one."""
    return "" if reply.whole and reply.text.strip() else "no words in the reply" if reply.whole else reply.finish_reason


def _ask_cut_again(
    teacher: ChatModel, conversations: Sequence[list[Message]], sampling: Sampling, replies: Sequence[Reply]
) -> list[Reply]:
    """The replies, those that were cut off replaced by what twice the budget gives. The tokens of both count."""
    replies = list(replies)
    cut = [i for i, reply in enumerate(replies) if reply.finish_reason == "length"]
    longer = sampling.model_copy(update={"max_new_tokens": 2 * sampling.max_new_tokens})
    for i, again in zip(cut, teacher.complete([conversations[i] for i in cut], longer) if cut else [], strict=True):
        tokens = {
            name: getattr(replies[i], name) + getattr(again, name) for name in ("prompt_tokens", "completion_tokens")
        }
        replies[i] = again.model_copy(update=tokens)
    return replies


def generate_pairs(
    teacher: ChatModel,
    records: Sequence[PromptRecord],
    prompts: ExperimentPrompts,
    sampling: Sampling,
    path: str | Path,
    batch_size: int = 512,
    failed_limit: float = 0.02,
    progress: Callable[[int], object] = lambda turns: None,
    respondent: ChatModel | None = None,
) -> Records[Pair]:
    """Runs the chain over every prompt that `path` does not hold yet, and returns the pairs of the prompts asked for,
    which are read from `path` as they are looked at: what is in memory is the text of one batch.

    A chain with a turn that was cut off, filtered or never answered is no pair: its id, turn and reason stand in
    `failed_<name>` beside `path`, and the next run tries it again. Where the experiment has a second criterion
    (`quality`), the teacher also answers the plain prompt, which the judge will compare with. A killed run loses the
    turns of one batch, or nothing with a teacher that keeps its replies (`KeptChat`); the next call goes on where it
    stopped.

    Args:
        batch_size: chains that go through their turns together; many times the teacher's concurrency, or it idles at
            the end of each turn.
        progress: called with the number of turns just finished, of 3 a prompt, or 4 with the plain one.
        respondent: who gives the first answers, such as the student; None is the teacher.

    Raises:
        ValueError: an id stands twice in `records`; nothing was asked.
        RuntimeError: more than the share `failed_limit` of the prompts failed.
    """
    name = teacher.name if respondent is None else f"{teacher.name}, on answers of {respondent.name}"
    texts = {"response": "answer", "critique": "critique", "response_revised": "revision", "response_base": BASE}

    def make(batch: list[PromptRecord]) -> Iterator[Pair | dict[str, str]]:
        openings = [opening(record.system, record.prompt, record.history) for record in batch]
        plain = [record.plain_prompt or record.prompt for record in batch]
        chains = run_chains(
            teacher, openings, prompts, sampling, whole=True, progress=progress, plain=plain, respondent=respondent
        )
        bases = base_answers(teacher, batch, sampling, progress) if prompts.quality else [None] * len(batch)
        for record, chain, base in zip(batch, chains, bases, strict=True):
            yield pair_of(record, dict(zip(TURNS, chain)) | {BASE: base}, texts, teacher=name, sampling=sampling)

    return make_missing(
        records,
        make,
        path,
        Pair,
        "prompts",
        batch_size,
        failed_limit,
        progress,
        steps=len(TURNS) + (prompts.quality is not None),
    )


def base_answers(
    teacher: ChatModel,
    records: Sequence[PromptRecord],
    sampling: Sampling,
    progress: Callable[[int], object] = lambda turns: None,
) -> list[Reply]:
    """The teacher's answers to the plain prompts, without wrapper, persona or stance."""
    openings = [opening(record.system, record.plain_prompt or record.prompt, record.history) for record in records]
    replies = teacher.complete(openings, sampling, lambda *_: progress(1))
    return _ask_cut_again(teacher, openings, sampling, replies)


def pair_of(
    record: PromptRecord, replies: Mapping[str, Reply | None], texts: Mapping[str, str], **more: object
) -> Pair | dict[str, str]:
    """The pair of a prompt, or, where a reply is unfit, what is kept of the failure: id, the first such turn, and the
    reason.

    Args:
        replies: by turn, in the order asked for; None where nobody was asked.
        texts: field of the pair -> the turn whose text it takes.
    """
    given = {turn: reply for turn, reply in replies.items() if reply}
    for turn, reply in given.items():
        if reason := why_unfit(reply):
            return {"id": record.id, "turn": turn, "reason": reason}
    usage = {
        name: sum(getattr(reply, name) for reply in given.values()) for name in ("prompt_tokens", "completion_tokens")
    }
    return Pair(
        **record.model_dump(),
        **{field: given[turn].text for field, turn in texts.items() if turn in given},
        usage=usage,
        **more,
    )
