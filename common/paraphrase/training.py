"""Train a paraphraser out of a student that only continues texts (arXiv 2010.12885, around Dynamic Blocking).

Task adaptation: a student learns to restore prompts whose words were partly deleted and shuffled. Decoding it with
blocking gives pseudo-pairs, and a fresh student learns these and their reversals. The paper trains T5. Ours are that a
chat model is asked for it in words (`wordings.REQUEST`), the share that is deleted, and that only pairs which pass the
meaning check are learnt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.chat.local import LocalChat
from common.evaluation.answers import TrainedStudent
from common.judge.base import Judge
from common.methods import TrainSettings
from common.paraphrase.wordings import paraphrases, request_for
from common.schema import PromptRecord, ScoredPair, fingerprint, source_id
from common.storage import claim
from common.training.kept import trained_once

DELETED = 0.2
"""Share of a text's words that task adaptation deletes (ours; the paper names none)."""
PSEUDO_PAIRS = 2
"""Pseudo-pairs that are taken of a prompt, at most (ours)."""


def corrupted(text: str, rng: random.Random, deleted: float = DELETED) -> str:
    """The words of a text without a share of them and in random order; at least one stays."""
    own = text.split()
    kept = max(min(1, len(own)), len(own) - round(deleted * len(own)))
    return " ".join(rng.sample(own, kept))


def adaptation_pairs(records: Sequence[PromptRecord], seed: int) -> list[ScoredPair]:
    """Corrupted texts and what they are to become again."""
    rng = random.Random(f"adaptation {seed}")
    return [_lesson(f"{r.id} restored", corrupted(r.prompt, rng), r.prompt, r.experiment) for r in records]


def pseudo_pairs(records: Sequence[PromptRecord], new: Sequence[PromptRecord]) -> list[ScoredPair]:
    """Prompts with their wordings, and each the other way round."""
    of = {record.id: record.prompt for record in records}
    both = [(one.id, of[source_id(one.id)], one.prompt, one.experiment) for one in new]
    return [
        lesson
        for id, source, text, experiment in both
        for lesson in (_lesson(id, source, text, experiment), _lesson(f"{id} back", text, source, experiment))
    ]


def _lesson(id: str, given: str, wanted: str, experiment: str) -> ScoredPair:
    """A request for other words as SFT learns it: of a pair, the revised answer."""
    [turn] = request_for(given)
    return ScoredPair(
        id=id, experiment=experiment, split="train", prompt=turn["content"], response=given, response_revised=wanted,
        score_response=0.0, score_revised=1.0,
    )  # fmt: skip


def paraphraser(
    student: str | Path, records: Sequence[PromptRecord], meaning: Judge, settings: TrainSettings, folder: str | Path,
    p: float = 0.5, *, max_new_tokens: int = 128, **load: Any,
) -> TrainedStudent:  # fmt: skip
    """The trained paraphraser. Its adapter is in `<folder>/paraphraser/adapter`, the adapted student's in
    `<folder>/adapted/adapter` and the pseudo-pairs in `<folder>/pseudo.jsonl`; what is there of the same is not made
    again.

    Args:
        records: prompts to learn from; those of split `train` alone are read.
        load: for `load_student`.

    Raises ValueError where no prompt is of split `train`, and where no pseudo-pair keeps its meaning.
    """
    folder, learnt = Path(folder), [record for record in records if record.split == "train"]
    if not learnt:
        raise ValueError("no prompt is of split 'train', so there is nothing to train a paraphraser on; add some")
    lessons = adaptation_pairs(learnt, settings.seed)
    adapted = trained_once("sft", student, lessons, settings, folder / "adapted", **load)
    made_of = {
        "adapted": adapted.mark, "meaning": meaning.name, "p": p,
        "seed": settings.seed, "max_new_tokens": max_new_tokens, "prompts": fingerprint([r.prompt for r in learnt]),
    }  # fmt: skip
    path = claim(folder / "pseudo.jsonl", made_of)
    limits = {"seed": settings.seed, "max_new_tokens": max_new_tokens}
    new, dropped = paraphrases(chat_of(adapted), learnt, meaning, path, PSEUDO_PAIRS, p, **limits)
    del adapted
    print(f"pseudo-pairs: {len(new)} of {len(learnt)} prompts; dropped: {told(dropped)}", flush=True)
    if not new:
        raise ValueError(
            f"no pseudo-pair of {len(learnt)} prompts is new and means the same (dropped: {told(dropped)}); give more prompts, epochs or another student"
        )
    return trained_once("sft", student, pseudo_pairs(learnt, new), settings, folder / "paraphraser", **load)


def chat_of(trained: TrainedStudent) -> LocalChat:
    """How a paraphraser is asked: nothing is penalised for standing in the source but what is blocked."""
    return LocalChat(trained.model, trained.tokenizer, "paraphraser")


def told(dropped: dict[str, int]) -> str:
    """Counts by reason, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none"
