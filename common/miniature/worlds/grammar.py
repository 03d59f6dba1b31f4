"""Templates that write sentences and read them back: the shared tool of every miniature world.

A template is a sentence with `{slots}`. `write` fills the slots, `Reader.read` finds which template produced a
sentence and with which words, or nothing at all: text that no template produces is never understood by accident.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

Answer = Callable[..., str]
"""(request, rng, voice) -> an answer."""


class Sentence(NamedTuple):
    """What a reader understood: the kind of sentence, and the word found in every slot."""

    kind: str
    slots: dict[str, str]


def write(templates: tuple[str, ...], rng: random.Random, **slots: str) -> str:
    """One template chosen at random, its slots filled."""
    return rng.choice(templates).format(**slots)


def compose(voice: dict[str, tuple[str, ...]], kinds: list[str], rng: random.Random, **slots: str) -> str:
    """An answer: one sentence of each kind, in order."""
    return " ".join(write(voice[kind], rng, **slots) for kind in kinds)


def conversation(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, the user first."""
    return [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(turns)]


def part_of(words: list[str], held_out: int, split: str) -> list[str]:
    """The words of a split: the last `held_out` are for test, as many before them for validation, the rest for train."""
    return words[
        {
            "train": slice(None, -2 * held_out),
            "validation": slice(-2 * held_out, -held_out),
            "test": slice(-held_out, None),
        }[split]
    ]


def pattern(template: str, slots: dict[str, tuple[str, ...]]) -> str:
    """Regular expression of a template; a slot that stands twice must hold the same word twice, and a slot that `slots`
    does not know holds any text."""
    parts, seen = [], set()
    for piece in re.split(r"(\{\w+\})", template):
        name = piece[1:-1] if piece.startswith("{") else None
        if name is None:
            parts.append(re.escape(piece))
        elif name in seen:
            parts.append(f"(?P={name})")
        else:
            seen.add(name)
            words = "|".join(sorted(map(re.escape, slots[name]), key=len, reverse=True)) if name in slots else ".*"
            parts.append(f"(?P<{name}>{words})")
    return "".join(parts)


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, in order."""
    return re.split(r"(?<=[.!?]) ", text.strip())


def _agree(one: Sentence, other: Sentence) -> bool:
    return one.kind == other.kind and all(other.slots.get(slot, word) == word for slot, word in one.slots.items())


class Reader:
    """Reads single sentences of a grammar.

    Args:
        kinds: kind of sentence -> its templates.
        slots: slot name -> every word that may stand there.
    """

    def __init__(self, kinds: dict[str, tuple[str, ...]], slots: dict[str, tuple[str, ...]]):
        self._patterns = [
            (kind, re.compile(pattern(template, slots))) for kind, templates in kinds.items() for template in templates
        ]

    def read(self, sentence: str) -> Sentence | None:
        """The first kind whose template matches the whole sentence, else None."""
        for kind, compiled in self._patterns:
            match = compiled.fullmatch(sentence)
            if match:
                return Sentence(kind, match.groupdict())
        return None

    def read_all(self, text: str) -> list[Sentence] | None:
        """Every sentence of a text in order; None when a single one is not understood, or the text is empty."""
        sentences = [self.read(part) for part in sentences_of(text)]
        return None if None in sentences else sentences

    def edited(self, text: str, wanted: str) -> str:
        """`wanted` with as many sentences as possible as they stand in `text`: those of a kind and with words that it
        has, too. Both texts must be understood."""
        there = [(self.read(part), part) for part in sentences_of(text)]
        return " ".join(
            next((old for sentence, old in there if _agree(sentence, self.read(new))), new)
            for new in sentences_of(wanted)
        )


def two_answers(
    outcome: str, draw: float, tempted: bool, right: Answer, bad: Answer, over_correct: Answer
) -> tuple[Answer, Answer]:
    """(first answer, revision) of a teacher's chain that ends "better", "no better" or "worse".

    tempted: whether the request tempts. Then, in three of ten (`draw`, from 0 to 1), a chain without gain keeps the right
    answer, and one that gets worse over-corrects it. An untempted request is answered right from the start in half of the
    better chains.
    """
    if outcome == "no better":
        return (right, right) if tempted and draw < 0.3 else (bad, bad)
    if outcome == "worse":
        return right, over_correct if tempted and draw < 0.3 else bad
    return right if not tempted and draw < 0.5 else bad, right
