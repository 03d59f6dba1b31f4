"""Reads a judge's verdict from its reply: strictly, so that what is not surely a verdict is no score at all.

A verdict is its label and a number (`Rating: [[1]]`, `Overall Score: 4`), opens a line or sentence, and ends it but for a
remark without numbers. The last one counts. Everything that a careful person would stumble over is None.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from common.schema import ScoreScale

_LABELS = {
    ScoreScale.BINARY: r"rating",
    ScoreScale.ZERO_TO_FIVE: r"overall (?:score|evaluation|quality(?: score)?|rating)",
    ScoreScale.MINUS_FIVE_TO_FIVE: r"overall sentiment",
}
_NUMBER = r"(?P<minus>-\s?|minus )?\+?(?P<score>\d{1,3}(?:[.,]\d+)?)(?:\s?(?:/|out of)\s?(?P<top>\d{1,3}))?(?: (?:stars?|points?))?"
# What may follow the number: the end of line, sentence or JSON, or a remark in brackets or behind a dash, without numbers.
_END = r"(?=\s*[\"')\]}<]*(?:$|\n(?!\s*[-*]?\s*\d)|[.!]?\s*$|[.!,;](?:\s|$)|\s*\((?!\s*(?:out )?of\b)[^)\d]*\)|\s-\s+[a-z]|\s*\}))"
_OPENING = r"(?:^|\n|[.!?:,{>]\s)\s?"
_BARE = r"|(?<!: )\[\[ ?(?P<bare>\d) ?\]\]"
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|on reflection|take (?:it|that) back|scratch that|make (?:it|that)|correction|chang\w+|revis\w+|final\w*|hmm|instead|otherwise|i was wrong)\b",
    re.I,
)
_ENDS = r"(-?\d{1,3})\s?(?:to|-|and)\s?\+?(-?\d{1,3})"
_SCALE_STATED = re.compile(rf"\bscale\b[^.\n\d-]{{0,20}}{_ENDS}\b|{_ENDS}[ -]scale\b", re.I)


class _Verdict(NamedTuple):
    start: int
    end: int
    score: float | None  # None: off the scale, of another scale, or numbers behind it


def read_verdict(reply: str, scale: ScoreScale) -> float | None:
    """The score of a reply that keeps to `scale.verdict_schema` to the letter; None for any other."""
    try:
        verdict = json.loads(reply)
    except ValueError:
        return None
    if not isinstance(verdict, dict) or set(verdict) != {"reasoning", "score"} or type(verdict["score"]) is not int:
        return None
    return float(verdict["score"]) if scale.minimum <= verdict["score"] <= scale.maximum else None


def parse_score(reply: str, scale: ScoreScale, answer: str | None = None) -> float | None:
    """The judge's verdict on the given scale, or None = unscored, never a guess.

    The last verdict counts; verdicts that differ count only when the last one ends the reply, and none counts that is
    taken back afterwards. A number that the evaluated text puts behind the label itself is taken for a quotation wherever
    it stands: `answer` is that text, the request included where it may hold a forged verdict too. Off the scale, a range
    ("0 to 5"), a fraction of another scale, or a reply that states only another scale is None. Linear in the reply.
    """
    verdict, mention, open_label = _patterns(scale)
    text = _plain(reply)
    stated = _scales_stated(text)
    if stated and (scale.minimum, scale.maximum) not in stated:
        return None
    forged = {_mentioned(match) for match in mention.finditer(_plain(answer or ""))}
    found = [read for match in verdict.finditer(text) if (read := _read(match, text, scale)).score not in forged]
    if not found or found[-1].score is None:
        return None
    last, rest = found[-1], text[found[-1].end :]
    mentions = [match for match in mention.finditer(text) if _mentioned(match) not in forged]
    if _TAKEN_BACK.search(rest) or open_label.search(rest) or any(match.start() >= last.end for match in mentions):
        return None
    others = {read.score for read in found} | {_mentioned(match) for match in mentions}
    if others != {last.score}:
        line = text[text.rfind("\n", 0, last.start) + 1 : last.start]
        same_line = any(_mentioned(match) != last.score for match in mention.finditer(line))
        if re.search(r"\w", rest) or same_line:
            return None
    return last.score


@lru_cache
def _patterns(scale: ScoreScale) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """A verdict as the judge should write it, any mention of the label with a number, and the label with no number."""
    label = _LABELS[scale]
    head = rf"\{{?{label}(?: \({scale.minimum}(?:-| to )\+?{scale.maximum}\))?\s?(?:is|:|=)?\s?(?:score:? ?)?"
    whole = rf"{head}\s?\[{{0,2}}\(?\s?{_NUMBER}\s?\]{{0,2}}\)?{_END}"
    bare = f"{_BARE}{_END}" if scale is ScoreScale.BINARY else ""
    mention = rf"\b{label}\s?(?:is|:|=)?\s?(?:score:? ?)?[\[( ]{{0,3}}(?P<labelled>[+-]?\d+(?:\.\d+)?)|\[\[\s?(?P<bracketed>[+-]?\d+)\s?\]\]"
    open_label = rf"\b{label}\s?[:=](?!\s?[\[( ]{{0,3}}[+-]?\d)"
    return re.compile(rf"{_OPENING}(?P<body>{whole}{bare})", re.I), re.compile(mention, re.I), re.compile(open_label, re.I)


def _scales_stated(text: str) -> list[tuple[int, ...]]:
    return [tuple(int(end) for end in match.groups() if end is not None) for match in _SCALE_STATED.finditer(text)]


def _plain(text: str) -> str:
    """Full-width digits and Unicode minus signs to ASCII; Markdown, struck-out and thought-aloud parts away; single spaces.
    Raised digits are footnote marks and go too, before they grow into the number they stand behind."""
    text = unicodedata.normalize("NFKC", re.sub(r"[⁰¹²³⁴-⁹₀-₉\u200b\u2060\ufeff]", "", text)).translate({ord(dash): "-" for dash in "−–‐﹣"})
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", re.sub(r"```\w*", "", text), flags=re.S)
    return re.sub(r"[ \t\r\f\v]+", " ", re.sub(r"[*_`\"#]|~~.*?~~", "", text))


def _mentioned(match: re.Match) -> float:
    return float(match["labelled"] or match["bracketed"])


def _read(match: re.Match, text: str, scale: ScoreScale) -> _Verdict:
    groups = match.groupdict()
    score = float((groups.get("bare") or groups["score"]).replace(",", ".")) * (-1 if groups["minus"] else 1)
    rest_of_line = text[match.end() :].split("\n", 1)[0]
    list_follows = "\n" in match["body"].strip() and re.search(r"\w", rest_of_line)
    other_scale = groups["top"] is not None and (int(groups["top"]) != scale.maximum or "[[" in match[0])
    between = scale is ScoreScale.BINARY and score not in (0, 1)
    off = not scale.minimum <= score <= scale.maximum
    unsure = list_follows or other_scale or between or off or re.search(r"\d", rest_of_line)
    return _Verdict(match.start("body"), match.end(), None if unsure else score)
