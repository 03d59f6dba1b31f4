"""A student is asked many prompts, in groups, and its answers are kept in a file.

An answer depends on the round, its prompt and the prompts it was asked with, never on what was there before: a group
that a kill cut in two is asked whole again. So a file that is resumed holds the bytes of one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.chat.model import ChatModel
from common.evaluation.answers import TrainedStudent
from common.runtime import Progress
from common.schema import Message, Record, Reply, Sampling, fingerprint
from common.storage import make_missing

GROUP = 64
"""Prompts that are asked together: what is sampled for one hangs on the others."""


class Answer(Record):
    """An answer of the student. by: mark of the training that it answered after, "" for the base student."""

    id: str
    prompt_id: str
    round: int
    by: str
    text: str
    finish_reason: str
    completion_tokens: int
    sampling: Sampling


class Request(Record):
    id: str
    prompt_id: str
    messages: list[Message]
    sampling: Sampling


@dataclass
class Asking:
    """Who is asked, and where the answers are kept.

    name: in messages. number: of the round, from 0. path: JSONL file of `Answer`s. who: loads the student, when a first
    answer is missing. chat: how a student is asked.
    """

    name: str
    number: int
    path: Path
    seed: int
    who: Callable[[], TrainedStudent]
    chat: Callable[[TrainedStudent], ChatModel]
    max_new_tokens: int
    top_p: float = 1.0

    def answers(
        self, prompts: Mapping[str, list[Message]], samples: Sequence[str], temperature: float
    ) -> dict[str, list[Answer]]:
        """Id of a prompt -> an answer of the student for each of `samples`, which name them. Raises RuntimeError where
        some were never given."""
        ids = list(prompts)
        groups = [
            self._group({id: prompts[id] for id in ids[start : start + GROUP]}, sample, temperature)
            for sample in samples
            for start in range(0, len(ids), GROUP)
        ]
        group_of = {request.id: group for group in groups for request in group}
        progress = Progress(f"{self.name}, answers", len(group_of))
        ready: dict[str, Reply] = {}

        def make(batch: list[Request]) -> Iterator[Answer | dict[str, str]]:
            for request in batch:
                if request.id not in ready:
                    together, student = group_of[request.id], self.who()
                    replies = self.chat(student).complete([one.messages for one in together], request.sampling)
                    ready.update(zip((one.id for one in together), replies))
                reply = ready.pop(request.id)
                yield {"id": request.id, "reason": reply.finish_reason} if reply.failed else Answer(
                    id=request.id, prompt_id=request.prompt_id, round=self.number, by=self.who().mark, text=reply.text,
                    finish_reason=reply.finish_reason, completion_tokens=reply.completion_tokens,
                    sampling=request.sampling,
                )  # fmt: skip
                progress(1)

        requests = [request for group in groups for request in group]
        made = make_missing(requests, make, self.path, Answer, "answers", GROUP, 0.0, progress)
        found: dict[str, list[Answer]] = {id: [] for id in ids}
        for answer in made:
            found[answer.prompt_id].append(answer)
        return found

    def _group(self, prompts: Mapping[str, list[Message]], sample: str, temperature: float) -> list[Request]:
        """What is asked in one call: a sample of each prompt."""
        seed = int(fingerprint(self.seed, self.number, sample, list(prompts)), 16) % 2**31
        how = {"max_new_tokens": self.max_new_tokens, "temperature": temperature}
        sampling = Sampling(**how, seed=seed, top_p=self.top_p) if temperature else Sampling(**how)
        return [
            Request(id=f"{id}#r{self.number}.{sample}", prompt_id=id, messages=messages, sampling=sampling)
            for id, messages in prompts.items()
        ]
