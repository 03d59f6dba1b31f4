"""Tables for a notebook, each with a plain text for logs and terminals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from textwrap import shorten

from common.schema import Pair, ScoredPair

RED, GREEN, BLUE, GREY = "214, 39, 40", "44, 160, 44", "31, 119, 180", "127, 127, 127"
"""Red, green, blue; transparent behind a text that keeps the theme's own colour, they read on light and dark pages."""
TEXT = "text-align: left; vertical-align: top; white-space: pre-wrap"
ANSWERS = ("original", "revised")
NOTHING = "<i>(nothing)</i>"
LONGEST = 600
"""Characters of an answer in the plain text."""


@dataclass(frozen=True)
class Shown:
    """HTML where a notebook displays it, plain text everywhere else."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def table(rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of cells that are HTML; a row of one cell takes the whole width, below a line."""
    width = max((len(row) for row in rows), default=1)
    whole = f'<td colspan="{width}" style="{TEXT}; border-top: 1px solid rgba({GREY}, 0.6)">'
    body = [
        "".join(f'<td style="{TEXT}">{one}</td>' for one in row) if len(row) > 1 else f"{whole}{row[0]}</td>"
        for row in rows
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def facts(mapping: Mapping[str, object]) -> Shown:
    """Names and values, one a line: floats to four digits, None and empty texts as a dash, lists with commas."""
    said = {str(name): _said(value) for name, value in mapping.items()}
    width = max(map(len, said), default=0)
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in said.items())
    return Shown(
        table([[f"<b>{escape(name)}</b>", escape(value)] for name, value in said.items()]), text or "(nothing)"
    )


def _said(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "-"
    return "-" if value in (None, "") else f"{value:.4g}" if isinstance(value, float) else str(value)


def answers_table(rows: Sequence[tuple[str, Mapping[str, str]]]) -> Shown:
    """Prompts, below each the answers to it side by side, by name."""
    cells, lines = [], []
    for prompt, answers in rows:
        asked = f"<b>prompt</b>&ensp;{escape(prompt)}"
        answered = [f"<b>{escape(name)}</b>\n{escape(text) or NOTHING}" for name, text in answers.items()]
        cells += [[asked], answered] if len(answered) > 1 else [["\n".join([asked, *answered])]]
        lines += [
            f"prompt: {shorten(prompt, LONGEST)}",
            *(f"  {name}: {shorten(text, LONGEST) or '(nothing)'}" for name, text in answers.items()),
        ]
    return Shown(table(cells), "\n".join(lines))


def pairs_table(pairs: Sequence[Pair], count: int = 3) -> Shown:
    """The first pairs, original and revision side by side with the words marked that only one of them has.

    Above them the prompt, with instruction and critique where there are some; scores in [0, 1] and the judge's
    replies where a judge has seen the pair. The plain text marks words as `[-original-]` and `{+revised+}`, and cuts
    long answers.
    """
    rows, lines = [], []
    for pair in pairs[:count]:
        original, revised = marked(pair.response, pair.response_revised)
        names = [f"{name}{score}" for name, score in zip(ANSWERS, _scores(pair))]
        asked = {
            name: value for name in ("system", "prompt", "instruction", "critique") if (value := getattr(pair, name))
        }
        rows.append(["\n".join(f"<b>{name}</b>&ensp;{escape(value)}" for name, value in asked.items())])
        rows.append([f"<b>{name}</b>\n{answer.html}" for name, answer in zip(names, (original, revised))])
        lines += [f"{name}: {shorten(value, LONGEST)}" for name, value in asked.items()]
        lines += [f"  {name}: {answer.text}" for name, answer in zip(names, (original, revised))]
        if replies := _replies(pair):
            rows.append([f"<b>judge</b>&ensp;{escape(reply)}" for reply in replies])
            lines += [
                f"  judge of the {name} answer: {shorten(reply, LONGEST)}" for name, reply in zip(ANSWERS, replies)
            ]
        lines.append("")
    if not rows:
        return Shown("<i>no pairs</i>", "no pairs")
    more = f"{min(count, len(pairs))} of {len(pairs)} pairs"
    return Shown(f"{table(rows)}<small>{more}</small>", "\n".join([*lines, more]))


def _scores(pair: Pair) -> list[str]:
    if not isinstance(pair, ScoredPair):
        return ["", ""]
    return [", unscored" if score is None else f", score {score:.2f}" for score in pair.normalised()]


def _replies(pair: Pair) -> list[str]:
    replies = [pair.judge_reply_response, pair.judge_reply_revised] if isinstance(pair, ScoredPair) else []
    return replies if any(replies) else []


def marked(original: str, revised: str) -> tuple[Shown, Shown]:
    """Two texts, in each the words marked that the other does not have in that place."""
    words = [re.findall(r"\s*\S+", text) for text in (original, revised)]
    steps = SequenceMatcher(None, *([word.strip() for word in of] for of in words), autojunk=False).get_opcodes()
    old = [("".join(words[0][i:j]), kind != "equal") for kind, i, j, _, _ in steps if i < j]
    new = [("".join(words[1][i:j]), kind != "equal") for kind, _, _, i, j in steps if i < j]
    return _in_colour(old, "del", RED, "[-{}-]"), _in_colour(new, "ins", GREEN, "{{+{}+}}")


def _in_colour(parts: Sequence[tuple[str, bool]], tag: str, colour: str, plain: str) -> Shown:
    html, text = [], []
    for part, changed in parts:
        word = part.lstrip()
        space = part[: len(part) - len(word)]
        style = f"background: rgba({colour}, 0.28); text-decoration: none"
        html.append(f'{space}<{tag} style="{style}">{escape(word)}</{tag}>' if changed else escape(part))
        text.append(space + plain.format(word) if changed else part)
    return Shown("".join(html) or NOTHING, shorten("".join(text), LONGEST) or "(nothing)")
