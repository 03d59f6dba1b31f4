"""Ways to decode a paraphraser, side by side: greedy, nucleus sampling, and Dynamic Blocking at several p."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from transformers import TopPLogitsWarper

from common.data.splits import words
from common.evaluation.metrics import rate
from common.paraphrase.wordings import KEPT, candidates, request_for
from common.schema import Metric, PromptRecord, Sampling

if TYPE_CHECKING:
    from common.chat.local import LocalChat
    from common.judge.base import Judge

TEXTS = 4
"""Texts that every way of decoding writes for a prompt."""
TOP_P = 0.95


def compare_decoding(
    chat: LocalChat, records: Sequence[PromptRecord], meaning: Judge, seed: int = 0, max_new_tokens: int = 64
) -> list[Metric]:
    """What share of all texts is right, changed, both, distinct, and all three, for greedy, top-p and blocking with p 0,
    .5 and 1; each with its interval.

    right: whole, and of the source's meaning, an unscored one being wrong. changed: not the source's words. distinct:
    the first of its words for its source. usable: all three. Every way counts `TEXTS` texts a source, those that it
    cannot tell apart being the same text again: greedy decoding has one. Blocking takes half as many dictionaries.
    """
    sources, (low, high) = [record.prompt for record in records], meaning.scale
    metrics = []
    for name, write in _ways(chat, seed, max_new_tokens).items():
        rows = [
            (source, reply) for source, replies in zip(sources, write(sources)) for reply in (replies * TEXTS)[:TEXTS]
        ]
        judged = meaning.judge([source for source, _ in rows], [reply.text for _, reply in rows])
        seen: set[tuple[str, str]] = set()
        found: dict[str, list[bool]] = {
            "right": [],
            "changed": [],
            "right_and_changed": [],
            "distinct": [],
            "usable": [],
        }
        for (source, reply), judgement in zip(rows, judged, strict=True):
            right = reply.whole and judgement.score is not None and judgement.score > (low + high) / 2
            changed = words(reply.text) != words(source)
            new = (source, words(reply.text)) not in seen
            seen.add((source, words(reply.text)))
            for shares, value in zip(
                found.values(), (right, changed, right and changed, new, right and changed and new)
            ):
                shares.append(value)
        names = {"experiment": records[0].experiment, "method": name, "seed": seed}
        metrics += [rate(shares, metric=metric, **names) for metric, shares in found.items()]
    return metrics


def _ways(chat: LocalChat, seed: int, max_new_tokens: int) -> dict[str, Callable]:
    """Name -> texts -> the replies that this way of decoding finds for each."""
    ask = lambda texts, **how: chat.best([request_for(text) for text in texts], **how)  # noqa: E731
    limit = {"max_new_tokens": max_new_tokens, "seed": seed}
    sampled = {"kept": TEXTS, "processor_of": lambda rows: TopPLogitsWarper(TOP_P)}
    blocking = partial(candidates, chat, dictionaries=TEXTS // KEPT, **limit)
    return {
        "greedy": partial(ask, sampling=Sampling(**limit)),
        f"top-p {TOP_P:g}": partial(ask, sampling=Sampling(temperature=1.0, **limit), **sampled),
        **{f"blocking p = {p:g}": partial(blocking, p=p) for p in (0.0, 0.5, 1.0)},
    }
