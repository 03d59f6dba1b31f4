"""Answer, critique, revision: a teacher improves its own answers, and every finished chain is kept at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.chat import ChatModel
from common.prompts import ExperimentPrompts
from common.schema import Message, Pair, PromptRecord, Reply, Sampling
from common.storage import FailedStore, JsonlStore, Records, refuse_repeats

TURNS = ("answer", "critique", "revision")


def opening(system: str, prompt: str) -> list[Message]:
    """The conversation that starts a chain; an empty system prompt is no message at all."""
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]


def run_chains(
    teacher: ChatModel,
    conversations: Sequence[list[Message]],
    prompts: ExperimentPrompts,
    sampling: Sampling,
    whole: bool = False,
    progress: Callable[[int], object] = lambda turns: None,
) -> list[list[Reply]]:
    """[answer, critique, revision] per conversation. Each turn is asked for in all chains together.

    Args:
        whole: a turn that was cut off is asked for once more with twice the budget, and a chain ends early at a turn that
            is still not whole; otherwise a cut turn is taken as it is.
        progress: called with the number of turns just finished; a chain that ends early counts as three.
    """
    conversations = [list(conversation) for conversation in conversations]
    chains: list[list[Reply]] = [[] for _ in conversations]
    going = range(len(chains))
    for request in ("", prompts.critique_request, prompts.revision_request):
        for i in going:
            if chains[i]:
                conversations[i] += [{"role": "assistant", "content": chains[i][-1].text}, {"role": "user", "content": request}]
        asked = [conversations[i] for i in going]
        replies = teacher.complete(asked, sampling, lambda *_: progress(1))
        for i, reply in zip(going, _ask_cut_again(teacher, asked, sampling, replies) if whole else replies, strict=True):
            chains[i].append(reply)
        ended = [i for i in going if whole and not chains[i][-1].whole]
        progress(sum(len(TURNS) - len(chains[i]) for i in ended))
        going = sorted(set(going) - set(ended))
    return chains


def _ask_cut_again(teacher: ChatModel, conversations: Sequence[list[Message]], sampling: Sampling, replies: Sequence[Reply]) -> list[Reply]:
    """The replies, those that were cut off replaced by what twice the budget gives. The tokens of both count."""
    replies = list(replies)
    cut = [i for i, reply in enumerate(replies) if reply.finish_reason == "length"]
    longer = sampling.model_copy(update={"max_new_tokens": 2 * sampling.max_new_tokens})
    for i, again in zip(cut, teacher.complete([conversations[i] for i in cut], longer) if cut else [], strict=True):
        tokens = {name: getattr(replies[i], name) + getattr(again, name) for name in ("prompt_tokens", "completion_tokens")}
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
) -> Records[Pair]:
    """Runs the chain over every prompt that `path` does not hold yet, and returns the pairs of the prompts asked for, which are
    read from `path` as they are looked at: what is in memory is the text of one batch.

    A chain with a turn that was cut off, filtered or never answered is no pair: its id, turn and reason stand in
    `failed_<name>` beside `path`, and the next run tries it again. Where the experiment has a second criterion (`quality`),
    the teacher also answers the plain prompt, which the judge will compare with. A killed run loses the turns of one batch, or nothing
    with a teacher that keeps its replies (`KeptChat`); the next call goes on where it stopped.

    Args:
        batch_size: chains that go through their turns together; many times the teacher's concurrency, or it idles at the
            end of each turn.
        progress: called with the number of turns just finished, of 3 a prompt, or 4 with the plain one.

    Raises:
        ValueError: an id stands twice in `records`; nothing was asked.
        RuntimeError: more than the share `failed_limit` of the prompts failed.
    """
    refuse_repeats([record.id for record in records], "prompts")
    turns = len(TURNS) + (prompts.quality is not None)
    with JsonlStore(path) as store, FailedStore(path) as failed:
        todo = [record for record in records if record.id not in store]
        progress(turns * (len(records) - len(todo)))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            openings = [opening(record.system, record.prompt) for record in batch]
            chains = run_chains(teacher, openings, prompts, sampling, whole=True, progress=progress)
            bases = base_answers(teacher, batch, sampling, progress) if prompts.quality else [None] * len(batch)
            for record, chain, base in zip(batch, chains, bases, strict=True):
                if chain[-1].whole and (base is None or base.whole):
                    store.append(_pair(record, chain, base, teacher.name, sampling))
                else:
                    turn, reply = (TURNS[len(chain) - 1], chain[-1]) if not chain[-1].whole else ("base answer", base)
                    failed.append({"id": record.id, "turn": turn, "reason": reply.finish_reason})
        failed.check(len(records), failed_limit)
        return store.records((record.id for record in records), Pair)


def base_answers(teacher: ChatModel, records: Sequence[PromptRecord], sampling: Sampling, progress: Callable[[int], object] = lambda turns: None) -> list[Reply]:
    """The teacher's answers to the plain prompts, without wrapper, persona or stance."""
    openings = [opening(record.system, record.plain_prompt or record.prompt) for record in records]
    replies = teacher.complete(openings, sampling, lambda *_: progress(1))
    return _ask_cut_again(teacher, openings, sampling, replies)


def _pair(record: PromptRecord, chain: list[Reply], base: Reply | None, teacher: str, sampling: Sampling) -> Pair:
    answer, critique, revision = chain
    replies = chain + ([base] if base else [])
    usage = {name: sum(getattr(reply, name) for reply in replies) for name in ("prompt_tokens", "completion_tokens")}
    return Pair(
        **record.model_dump(), response=answer.text, critique=critique.text, response_revised=revision.text,
        response_base=base.text if base else "", teacher=teacher, sampling=sampling, usage=usage,
    )  # fmt: skip
