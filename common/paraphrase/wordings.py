"""From prompts to other wordings of them: search with Dynamic Blocking, check the meaning, rank, keep.

The meaning check is part of the method: the likeliest word in a blocked one's place may be its opposite. A wording is
kept only where the check finds that both ask for the same, and only then carries what is known of its source: the group
and split, kind, plain request and system prompt. It has no answers, so nobody's labels.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.data.splits import words
from common.paraphrase.blocking import Dictionary, DynamicBlocking, active_dictionary, block_entries
from common.paraphrase.ranking import bert_ibleu, self_bleu
from common.prompts import fill
from common.runtime import Progress
from common.schema import Message, PromptRecord, Record, Reply, Sampling, wording_id
from common.storage import make_missing

if TYPE_CHECKING:
    from common.chat.local import LocalChat
    from common.judge.base import Judge

BEAMS, KEPT = 4, 2
"""The paper's: beams for each active dictionary, and how many of them stay."""
DICTIONARIES = 4
"""Active dictionaries drawn for each source (ours); equal ones are searched once."""
BATCH = 16
"""Sources that are finished together: a kill loses no more."""
REQUEST = "Say the same in other words: {text}"
"""What a paraphraser is asked."""
Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(sources, wordings) -> how alike each two are in meaning, in [0, 1], such as a BERTScore."""


class Wordings(Record):
    """Those of one prompt that ask for the same, the best first, and how many candidates were dropped, by reason."""

    id: str
    texts: list[str]
    dropped: dict[str, int]


def request_for(text: str) -> list[Message]:
    """The conversation that asks for another wording of a text."""
    return [{"role": "user", "content": fill(REQUEST, text=text)}]


def candidates(
    chat: LocalChat, texts: Sequence[str], p: float, *, dictionaries: int = DICTIONARIES, seed: int = 0,
    max_new_tokens: int = 128,
) -> list[list[Reply]]:  # fmt: skip
    """The best `KEPT` of `BEAMS` beams under each active dictionary of every text.

    Seed and text alone decide the draw, so what is asked together changes nothing; p = 0 is plain beam search."""
    asked: list[tuple[int, Dictionary]] = []
    for place, text in enumerate(texts):
        rng, entries = random.Random(f"blocking {seed} {text}"), block_entries(text, chat.tokenizer)
        for _ in range(dictionaries):
            if (drawn := (place, active_dictionary(entries, p, rng))) not in asked:
                asked.append(drawn)
    found = chat.best(
        [request_for(texts[place]) for place, _ in asked], Sampling(max_new_tokens=max_new_tokens), BEAMS, KEPT,
        lambda rows: DynamicBlocking([asked[row][1] for row in rows]),
    )  # fmt: skip
    of: list[list[Reply]] = [[] for _ in texts]
    for (place, _), replies in zip(asked, found):
        of[place] += replies
    return of


def paraphrases(
    chat: LocalChat, records: Sequence[PromptRecord], meaning: Judge, path: str | Path, wanted: int = 2,
    p: float = 0.5, *, seed: int = 0, max_new_tokens: int = 128, similarity: Similarity | None = None,
) -> tuple[list[PromptRecord], Counter[str]]:  # fmt: skip
    """(at most `wanted` new prompts for each record, how many candidates were dropped, by reason).

    A new prompt has its source's group and split and the id `schema.wording_id`. No two have the same words, nor has
    one the words of a record: a wording that is another record's prompt would carry that prompt into another split.

    Args:
        chat: a paraphraser (`training.paraphraser`), or a model that follows `REQUEST`.
        meaning: a judge of (source, wording), the upper half of whose scale is "the same"; unscored ones are dropped
            too.
        path: JSONL file of `Wordings` that a later call with the same settings goes on with (`storage.claim`).
        p: probability that an entry of the block dictionary is active.
        similarity: what the ranking knows of the meaning; None takes the judge's score.

    Raises ValueError for an id that stands twice among the records.
    """

    def make(batch: Sequence[PromptRecord]) -> Iterator[Wordings]:
        sources = [record.prompt for record in batch]
        found = candidates(chat, sources, p, seed=seed, max_new_tokens=max_new_tokens)
        texts, dropped = zip(*(_new_texts(source, replies) for source, replies in zip(sources, found)))
        kept = _kept(sources, texts, dropped, meaning, similarity)
        for record, of_record, why in zip(batch, kept, dropped):
            yield Wordings(id=record.id, texts=of_record, dropped=dict(why))
            progress(1)

    progress = Progress("prompts in other words", len(records))
    made = make_missing(records, make, path, Wordings, "prompts", BATCH, failed_limit=0.0, progress=progress)
    new, counts, taken = [], Counter(), {words(record.prompt) for record in records}
    for record, found in zip(records, made):
        fresh = [text for text in found.texts if words(text) not in taken]
        counts.update(found.dropped)
        counts.update({"another prompt already": len(found.texts) - len(fresh), "not needed": len(fresh[wanted:])})
        for number, text in enumerate(fresh[:wanted], start=1):
            taken.add(words(text))
            new.append(_wording(record, text, number))
    return new, +counts


def _new_texts(source: str, replies: Sequence[Reply]) -> tuple[list[str], Counter[str]]:
    """(candidates that are whole and new, why the others are not)."""
    new: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for reply in replies:
        key = words(reply.text)
        why = (
            "cut off" if not reply.whole else "empty" if not reply.text.strip()
            else "copy" if key == words(source) else "repeated" if key in new else ""
        )  # fmt: skip
        if why:
            dropped[why] += 1
        else:
            new[key] = reply.text.strip()
    return list(new.values()), dropped


def _kept(
    sources: Sequence[str], texts: Sequence[list[str]], dropped: Sequence[Counter[str]], meaning: Judge,
    similarity: Similarity | None,
) -> list[list[str]]:  # fmt: skip
    """The texts that mean the same as their source, the best first; the others are counted in `dropped`."""
    rows = [(place, text) for place, of_source in enumerate(texts) for text in of_source]
    asked = [sources[place] for place, _ in rows], [text for _, text in rows]
    (low, high), judgements = meaning.scale, meaning.judge(*asked) if rows else []
    same = [None if judged.score is None else (judged.score - low) / (high - low) for judged in judgements]
    alike = similarity(*asked) if similarity and rows else same
    ranked: list[list[tuple[float, str]]] = [[] for _ in sources]
    for (place, text), share, likeness in zip(rows, same, alike, strict=True):
        if share is None or share <= 0.5:
            dropped[place]["meaning not judged" if share is None else "another meaning"] += 1
        else:
            ranked[place].append((bert_ibleu(likeness, self_bleu(sources[place], text)), text))
    return [[text for _, text in sorted(of, key=lambda scored: -scored[0])] for of in ranked]


def group_of(record: PromptRecord) -> str:
    """What must stay in one split: the record's group, or where it has none its prompt."""
    return record.group or words(record.prompt)


def _wording(record: PromptRecord, text: str, number: int) -> PromptRecord:
    """A new prompt in the place of its source, without the answers that the source may have."""
    same = {name: getattr(record, name) for name in PromptRecord.model_fields}
    plain = "" if record.plain_prompt == record.prompt else record.plain_prompt
    own = {"id": wording_id(record.id, number), "prompt": text, "plain_prompt": plain, "group": group_of(record)}
    return PromptRecord(**same | own)
