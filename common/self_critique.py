"""Answer, critique, revision: a teacher improves its own answers, and every finished chain is kept at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.chat import ChatModel
from common.prompts import ExperimentPrompts
from common.schema import Message, Pair, PromptRecord, Reply, Sampling
from common.storage import JsonlStore


def opening(system: str, prompt: str) -> list[Message]:
    """The conversation that starts a chain; an empty system prompt is no message at all."""
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]


def run_chains(teacher: ChatModel, conversations: Sequence[list[Message]], prompts: ExperimentPrompts, sampling: Sampling) -> list[list[Reply]]:
    """[answer, critique, revision] per conversation. The three turns of many chains are asked for together."""
    conversations = [list(conversation) for conversation in conversations]
    chains: list[list[Reply]] = [[] for _ in conversations]
    for request in ("", prompts.critique_request, prompts.revision_request):
        for conversation, chain in zip(conversations, chains):
            if chain:
                conversation += [{"role": "assistant", "content": chain[-1].text}, {"role": "user", "content": request}]
        for chain, reply in zip(chains, teacher.complete(conversations, sampling), strict=True):
            chain.append(reply)
    return chains


def generate_pairs(
    teacher: ChatModel,
    records: Sequence[PromptRecord],
    prompts: ExperimentPrompts,
    sampling: Sampling,
    path: str | Path,
    batch_size: int = 32,
    progress: Callable[[int], object] = lambda finished: None,
) -> list[Pair]:
    """Runs the chain over every prompt that `path` does not hold yet, and returns the pairs of all prompts asked for.

    A killed run loses at most one batch of unfinished chains; the next call goes on where it stopped.
    """
    with JsonlStore(path) as store:
        todo = [record for record in records if record.id not in store]
        progress(len(records) - len(todo))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            openings = [opening(record.system, record.prompt) for record in batch]
            for record, chain in zip(batch, run_chains(teacher, openings, prompts, sampling), strict=True):
                store.append(_pair(record, chain, teacher.name, sampling))
            progress(len(batch))
        by_id = {fields["id"]: fields for fields in store.load()}
        return [Pair(**by_id[record.id]) for record in records]


def _pair(record: PromptRecord, chain: list[Reply], teacher: str, sampling: Sampling) -> Pair:
    answer, critique, revision = chain
    usage = {
        "prompt_tokens": sum(reply.prompt_tokens for reply in chain),
        "completion_tokens": sum(reply.completion_tokens for reply in chain),
    }
    return Pair(
        **record.model_dump(), response=answer.text, critique=critique.text, response_revised=revision.text,
        teacher=teacher, sampling=sampling, usage=usage,
    )  # fmt: skip
