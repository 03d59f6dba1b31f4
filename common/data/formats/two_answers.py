"""Formats with two answers a row: the function of each makes one preference of one row."""

from __future__ import annotations

import re
from os.path import commonprefix
from typing import NamedTuple

from pydantic import BaseModel

from common.data.formats.record import BOTH, NO_BEGINNING, NoPreference, Preference, Reading, annotator_of
from common.data.formats.turns import Asked, answer_of, asked_in, asked_of, messages, shared, transcript
from common.data.preference import SCORES
from common.data.readers import OptionalText, Row
from common.schema import Message, Pair, ScoredPair

SCORE_NAMES = ("score_{}", "{}_score", "rating_{}", "{}_rating", "{}_avg_rating", "reward_{}", "{}_reward")
"""What the score of `chosen` or `rejected` is called, here and in ultrafeedback_binarized first; whatever their case, with
hyphens or blanks as well."""


class Texts(BaseModel):
    prompt: OptionalText
    chosen: OptionalText
    rejected: OptionalText
    system: OptionalText = ""


class Answers(BaseModel):
    chosen: OptionalText
    rejected: OptionalText
    system: OptionalText = ""


class Question(Answers):
    question: OptionalText


class Input(Answers):
    input: OptionalText


class Instruction(Answers):
    instruction: OptionalText
    input: OptionalText = ""
    context: OptionalText = ""
    history: list[tuple[str, str]] | None = None


def texts(row: Row, reading: Reading) -> Preference:
    """TRL's plain format, truthy-dpo, our table: `prompt`, `chosen`, `rejected` as texts; `system` if there is one."""
    read = row.read(Texts)
    return _preference(row, reading, asked_in(read.prompt, read.system.strip()), read.chosen, read.rejected)


def orca(row: Row, reading: Reading) -> Preference:
    """Orca: `system`, `question` (`input` in distilabel's edition), `chosen`, `rejected` as texts."""
    read = row.read(Question if "question" in row.fields else Input)
    asked = read.question if "question" in row.fields else read.input
    return _preference(row, reading, Asked(read.system.strip(), [], asked.strip()), read.chosen, read.rejected)


def instructions(row: Row, reading: Reading) -> Preference:
    """Alpaca's preferences: an `instruction`, maybe an `input` or a `context` (Dolly) that goes below it, maybe a
    `history` of (request, answer) before it (LLaMA-Factory), `chosen` and `rejected` as texts."""
    read = row.read(Instruction)
    asked = "\n\n".join(part for part in (read.instruction.strip(), (read.input or read.context).strip()) if part)
    before = [
        {"role": role, "content": text.strip()}
        for turn in read.history or []
        for role, text in zip(("user", "assistant"), turn)
    ]
    return _preference(row, reading, Asked(read.system.strip(), before, asked), read.chosen, read.rejected)


def message_lists(row: Row, reading: Reading) -> Preference:
    """TRL's conversations: `chosen` and `rejected` as message lists, whole or as answers to what is in `prompt`.

    A prompt in the lists goes before the column: in ultrafeedback_binarized it is in both.
    """
    chosen, rejected = (messages(row.fields.get(side), f"{row.where}: column {side}") for side in BOTH)
    answers, before = (answer_of(chosen), answer_of(rejected)), shared(chosen, rejected)
    prompt, system = row.fields.get("prompt"), row.text("system")
    if isinstance(prompt, list):
        opening, given = (_apart(turns) for turns in (messages(prompt, f"{row.where}: column prompt"), before))
        if opening.system and given.system and opening.system != given.system:
            raise NoPreference("rows whose prompt and answers have different system turns")
        is_in_both = given.turns[: len(opening.turns)] == opening.turns
        turns = given.turns if is_in_both else opening.turns + given.turns
        asked = asked_of(turns, opening.system or given.system or system)
    elif any(turn["role"] == "user" for turn in before) or prompt is None:
        asked = asked_of(before, system)
    else:
        asked = asked_in(row.text("prompt"), before[0]["content"] if before else system)
    return _preference(row, reading, asked, *answers)


class Apart(NamedTuple):
    """Turns without the system's, which stands beside them."""

    system: str
    turns: list[Message]


def _apart(turns: list[Message]) -> Apart:
    is_first = bool(turns) and turns[0]["role"] == "system"
    return Apart(turns[0]["content"] if is_first else "", turns[is_first:])


def transcripts(row: Row, reading: Reading) -> Preference:
    """HH-RLHF: `chosen` and `rejected` are texts, "\\n\\nHuman: ...\\n\\nAssistant: ...", alike up to the last turn."""
    read = row.read(Answers)
    chosen, rejected = transcript(read.chosen), transcript(read.rejected)
    answers = answer_of(chosen), answer_of(rejected)
    return _preference(row, reading, asked_of(shared(chosen, rejected), read.system.strip()), *answers)


def implicit_texts(row: Row, reading: Reading) -> Preference:
    """TRL's implicit prompt: `chosen` and `rejected` as texts that begin with it, which is what both share.

    Cut back to a blank or the end of a line, so that no word is cut in two (ours; TRL cuts at the first unlike letter).
    """
    read = row.read(Answers)
    cut = len(re.sub(r"\S*\Z", "", commonprefix([read.chosen, read.rejected])))
    if not (prompt := read.chosen[:cut].strip()):
        raise NoPreference(NO_BEGINNING)
    return _preference(row, reading, Asked(read.system.strip(), [], prompt), read.chosen[cut:], read.rejected[cut:])


def notebook_pairs(row: Row, reading: Reading) -> Preference:
    """Ours: a line of `pairs.jsonl` or `scored.jsonl`, with its own scale and split; the revised answer is chosen."""
    pair = row.read(ScoredPair if "score_revised" in row.fields else Pair)
    is_scored = isinstance(pair, ScoredPair)
    return Preference(
        row.where, f"{pair.prompt}\n\n{pair.instruction}" if pair.instruction else pair.prompt,
        pair.response_revised.strip(), pair.response.strip(), pair.system, pair.history,
        pair.score_revised if is_scored else None, pair.score_response if is_scored else None,
        pair.scale if is_scored else (0.0, 1.0), pair.split, pair.group, pair.annotator, row.fields, row.halves,
    )  # fmt: skip


def _preference(row: Row, reading: Reading, asked: Asked, chosen: str, rejected: str) -> Preference:
    named = {re.sub(r"[\s-]+", "_", name.strip().casefold()): name for name in row.fields}
    there = [[named[name] for form in SCORE_NAMES if (name := form.format(side)) in named] for side in BOTH]
    alone = [name for name in sum(there, []) if name in SCORES or row.fields[name] is not None]
    if [] in there and alone:
        raise ValueError(f"{row.where}: it has {alone[0]} alone; give both of {' and '.join(SCORES)}, or none")
    columns = [next((name for name in names if row.fields[name] is not None), "") for names in there]
    scores = [reading.score(row, column, row.fields[column]) if column else None for column in columns]
    return Preference(
        row.where, asked.prompt, chosen.strip(), rejected.strip(), asked.system, asked.history, *scores,
        reading.score_range, annotator=annotator_of(row), fields=row.fields,
        halves=row.halves,
    )  # fmt: skip
