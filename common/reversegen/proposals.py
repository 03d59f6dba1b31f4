"""What a proposer is asked, which proposals count, and the pairs it learns from.

The request, the threshold and the pairs are those of the authors' code (qtli/ReverseGen). They find near-duplicates
with MinHash; computing the similarity exactly is ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from common.data.splits import words
from common.doctor.alike import jaccard
from common.judge.base import Judge
from common.prompts import fill
from common.schema import PromptRecord, ScoredPair, fingerprint

REQUEST = "Ask questions:\n1. {first}\n2. {second}\n3. {third}\n4."
SHOTS = 3
ALIKE = 0.78
"""Of two prompts whose word bigrams have a higher Jaccard similarity, one is dropped (the authors')."""
Bigrams = frozenset[tuple[str, str]]
Read = Callable[[str], PromptRecord | None]
"""The validity check: a proposed text -> the train prompt that it is, None for a text that is none. A copy of a train
prompt is never valid (ours)."""


class Lesson(NamedTuple):
    """A three-shot request and, of the warm-up, the prompt to answer it with."""

    request: str
    prompt: str = ""


def requests(prompts: Sequence[str], proposals: int, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """(a lesson of the warm-up for each prompt, requests for proposals); no request twice.

    A lesson shows three other prompts. Raises ValueError for too few prompts to make so many requests of.
    """
    rng, count = random.Random(f"reversegen {seed}"), len(prompts)
    if count * (count - 1) * (count - 2) < 2 * (count + proposals):
        raise ValueError(
            f"{count} different prompts of split 'train' are too few to ask for {proposals} proposals with"
            " three of them each; give more prompts or fewer proposals"
        )
    seen: set[str] = set()

    def request(others: Sequence[str]) -> str:
        while True:
            first, second, third = rng.sample(others, SHOTS)
            if (text := fill(REQUEST, first=first, second=second, third=third)) not in seen:
                seen.add(text)
                return text

    lessons = [Lesson(request([*prompts[:i], *prompts[i + 1 :]]), prompt) for i, prompt in enumerate(prompts)]
    return lessons, [Lesson(request(prompts)) for _ in range(proposals)]


def bigrams(text: str) -> Bigrams:
    """The pairs of neighbouring words of a text, in lower case and without punctuation."""
    own = words(text).split()
    return frozenset(zip(own, own[1:]))


def near(one: Bigrams, others: Iterable[Bigrams]) -> bool:
    """Whether a text is a near-duplicate of one of the others: `jaccard` above `ALIKE`."""
    return any(jaccard(one, other) > ALIKE for other in others)


def distinct(texts: Sequence[str], earlier: Iterable[str] = ()) -> list[int]:
    """Positions of the texts that have other words than, and are no near-duplicate of, an earlier one that is kept.

    Every text is compared with every kept one: seconds for some thousand prompts."""
    taken = {words(text): bigrams(text) for text in earlier}
    kept = []
    for i, text in enumerate(texts):
        if words(text) not in taken and not near(own := bigrams(text), taken.values()):
            taken[words(text)] = own
            kept.append(i)
    return kept


def plain_reader(records: Sequence[PromptRecord], sense: Judge | None = None) -> Read:
    """The validity check of real prompts: a text with words that is no near-duplicate of a held-out prompt, and that
    `sense`, a judge with a scale [0, 1], finds sensible: a prompt that nobody can answer fails too. None asks nobody.

    A prompt that is read has the experiment and the system prompt of the first train record.
    """
    first = next(record for record in records if record.split == "train")
    held_out = {words(record.prompt): bigrams(record.prompt) for record in records if record.split != "train"}

    def read(text: str) -> PromptRecord | None:
        if len(words(text).split()) < 2 or words(text) in held_out or near(bigrams(text), held_out.values()):
            return None
        if sense and not (sense.judge([text], [""])[0].score or 0.0) > 0.5:
            return None
        return PromptRecord(
            id=f"{first.experiment}-{fingerprint(text)}", experiment=first.experiment, split="train",
            system=first.system, prompt=text,
        )  # fmt: skip

    return read


def matched(
    requested: Sequence[str], failing: Sequence[str], handled: Sequence[str], rng: random.Random
) -> list[tuple[str, str, str]]:
    """(request, failing prompt, handled prompt), as many as there are of the rarer kind (the authors' `collect`).

    The three lists are shuffled independently: a pair's prompts need not be answers to its request. The authors' script
    names keys that would pair answers of the target; pairing prompts is what their text describes.
    """
    return list(zip(*(rng.sample(of, len(of)) for of in (requested, failing, handled))))


def lesson_pair(id: str, experiment: str, request: str, chosen: str, rejected: str) -> ScoredPair:
    """A pair that a proposer is trained on: SFT learns the chosen prompt, DPO prefers it."""
    return ScoredPair(
        id=id, experiment=experiment, split="train", prompt=request, response=rejected, response_revised=chosen,
        score_response=0.0, score_revised=1.0,
    )  # fmt: skip
