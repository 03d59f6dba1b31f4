"""Checks that look at one row at a time: missing and equal scores, answers, encoding, leaks, languages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from common.data.splits import words
from common.data.text_rules import declines
from common.doctor.rows import DoctorRow
from common.statistics import wilson_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Finding:
    """What one check found.

    rows: numbers of the rows, from 0. of: how many rows it looked at. suspect: whether such a row may be a mistake, so
    that it is listed among the suspects. notes: row -> what was found there.
    """

    name: str
    rows: list[int]
    of: int
    meaning: str
    suspect: bool = True
    notes: dict[int, str] | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson_interval(len(self.rows), self.of)

    def reason(self, row: int) -> str:
        """Why this row is in it."""
        return f"{self.name}: {self.notes[row]}" if self.notes and row in self.notes else self.name


DAMAGE = {
    "mojibake": re.compile(r"[ÃÂ][\x80-\xbf]|â€|â\x80|ï»¿|ðŸ"),
    "U+FFFD": re.compile("\ufffd"),
    "HTML entity": re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,6}|#x[\da-fA-F]{1,5});"),
    "control character": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}
MARKUP = re.compile(
    r"<\|[\w ]+\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|^\s*(?:### )?(?:Human|User|Assistant|Instruction|Response):",
    re.M,
)
PLAIN = re.compile(r"[^ -~\n\t]|&")
"""What a text must hold to be damaged: most hold none of it, and one search is faster than four."""
LEAST_WORDS = 4
"""Of a prompt that is looked for in answers; shorter ones occur there by chance."""
NO_LANGUAGE = ""
SCRIPTS = {
    "Cyrillic": "\u0400-\u04ff", "Greek": "\u0370-\u03ff", "Hebrew": "\u0590-\u05ff", "Arabic": "\u0600-\u06ff", "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f", "Japanese": "\u3040-\u30ff", "Korean": "\uac00-\ud7af", "Chinese": "\u4e00-\u9fff",
}  # fmt: skip
OTHER_SCRIPT = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
STOPWORDS = {
    "English": "the and is are of to you that it in was for with this have not what can be i how do my your",
    "German": "der die das und ist nicht ein eine zu mit sie ich wie den auf für von es dem sind",
    "French": "le la les et est des une un dans que pour pas vous je il sur avec ne qui au du",
    "Spanish": "el los las y es una en que por para con no se del un lo como su más está",
    "Italian": "il gli che di è un una per non con sono della mi le come più del nel si",
    "Portuguese": "o os as que e é um uma não para com por do da em você se mais como na",
    "Dutch": "de het een en is van niet dat ik je met voor op zijn te er aan ook",
}
LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in STOPWORDS.items():
    for _word in _words.split():
        LANGUAGES_OF.setdefault(_word, []).append(_language)


def check_rows(rows: Sequence[DoctorRow]) -> list[Finding]:
    """Every check that needs no other row: numbers of rows, and what each means."""
    everything = range(len(rows))
    scored = [i for i in everything if rows[i].gap is not None]
    untied = [i for i in scored if rows[i].gap]
    found = [
        Finding("unscored", [i for i in everything if rows[i].gap is None], len(rows), "a score is missing: no method trains on it" if scored else "no scores: only methods that read none train on it", False),
        Finding("tied", [i for i in scored if not rows[i].gap], len(scored), "equal scores: the judge has no opinion", False),
        Finding(
            "contradicted", [i for i in untied if rows[i].gap < 0], len(untied), "the rejected answer scored higher",
            notes={i: f"rejected scored {-rows[i].gap:.2f} higher" for i in untied},
        ),
        Finding("identical answers", [i for i in everything if rows[i].chosen == rows[i].rejected], len(rows), "both answers are the same text: nothing to learn"),
        Finding("empty text", [i for i in everything if _empty(rows[i])], len(rows), "a prompt or an answer has no text", notes={i: ", ".join(_empty(rows[i])) for i in everything}),
        Finding(
            "harmless and refused", [i for i in everything if rows[i].is_benign and declines(rows[i].chosen) and not declines(rows[i].rejected)],
            sum(row.is_benign for row in rows), "the chosen answer declines a harmless request that the rejected one met: it teaches to decline too much",
        ),
        _by_note("encoding damage", rows, _damage, "mojibake, U+FFFD, half characters, HTML entities or control characters"),
        _by_note("leaked prompt", rows, _leak, "an answer repeats its whole prompt, or holds marks of a chat template"),
        _by_note("languages mixed", rows, _languages, "the two answers, or prompt and answers, are in different languages; a guess by script and common words", False),
    ]  # fmt: skip
    return found


def check_length(rows: Sequence[DoctorRow], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Finding:
    """Rows whose longer chat, as the template writes it, has more than `max_length` tokens; without a template prompt
    and answer alone are counted. Raises ValueError naming the row that the template refuses."""
    texts = [_chat(tokenizer, row, answer) for row in rows for answer in (row.chosen, row.rejected)]
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    longest = [max(both) for both in zip(counts[::2], counts[1::2])]
    return Finding(
        "cut", [i for i, tokens in enumerate(longest) if tokens > max_length], len(rows),
        f"more than {max_length} tokens of prompt and answer: the rest is cut off", False, {i: f"{tokens} tokens" for i, tokens in enumerate(longest)},
    )  # fmt: skip


def cannot_load(what: str, error: Exception, give: str) -> ValueError:
    """In one sentence, with the first line of what a loader of transformers raised."""
    reason = re.split(r"[:.]?\s*\n", str(error).strip())[0]
    return ValueError(f"{what}: cannot be loaded ({reason}); give {give}, or a Hub name")


def _chat(tokenizer: PreTrainedTokenizerBase, row: DoctorRow, answer: str) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return "\n".join(filter(None, (row.conversation, answer))).lstrip("\n")
    opening = [{"role": "system", "content": row.system}] if row.system else []
    turns = [*opening, *row.history, {"role": "user", "content": row.prompt}, {"role": "assistant", "content": answer}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"{row.where}: the chat template of --tokenizer refuses it ({error}); "
            "mend the row, or leave --tokenizer out"
        ) from None


def _by_note(name: str, rows: Sequence[DoctorRow], note_of, meaning: str, suspect: bool = True) -> Finding:
    notes = {i: note for i, row in enumerate(rows) if (note := note_of(row))}
    return Finding(name, list(notes), len(rows), meaning, suspect, notes)


def _empty(row: DoctorRow) -> list[str]:
    return [name for name in ("prompt", "chosen", "rejected") if not getattr(row, name).strip()]


def _damage(row: DoctorRow) -> str:
    said = ["half a character"] if row.halves else []
    for name in ("prompt", "chosen", "rejected"):
        text = getattr(row, name)
        if PLAIN.search(text):
            said += [f"{kind} in {name}" for kind, pattern in DAMAGE.items() if pattern.search(text)]
    return ", ".join(said)


def _leak(row: DoctorRow) -> str:
    asked = plain_words(row.prompt)
    is_long = asked.count(" ") + 1 >= LEAST_WORDS
    said = []
    for name in ("chosen", "rejected"):
        answer = getattr(row, name)
        if is_long and f" {asked} " in f" {plain_words(answer)} ":
            said.append(f"whole prompt in {name}")
        if any(sign in answer for sign in "<[:") and (mark := MARKUP.search(answer)):
            said.append(f"{mark[0].strip()!r} in {name}")
    return ", ".join(said)


def _languages(row: DoctorRow) -> str:
    found = {name: language_of(getattr(row, name)) for name in ("prompt", "chosen", "rejected")}
    known = {name: language for name, language in found.items() if language}
    return ", ".join(f"{name} {language}" for name, language in known.items()) if len({*known.values()}) > 1 else ""


plain_words = lru_cache(maxsize=100_000)(words)
"""`words`, once a text."""


@lru_cache(maxsize=100_000)
def language_of(text: str) -> str:
    """A guess: the script of a fifth of the letters, else the language with most common words; "" for no guess, where
    fewer than three were found or two languages share the lead."""
    letters = sum(map(str.isalpha, text)) if not text.isascii() else 0
    for name, pattern in OTHER_SCRIPT.items() if letters else ():
        if len(pattern.findall(text)) > letters / 5:
            return name
    counted = Counter(language for word in plain_words(text).split() for language in LANGUAGES_OF.get(word, ()))
    (language, hits), (_, next_hits) = (*counted.most_common(2), ("", 0), ("", 0))[:2]
    return language if hits >= 3 and hits >= 1.5 * next_hits else NO_LANGUAGE
