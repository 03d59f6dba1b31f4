"""Reads a judge's verdict from its reply; an ambiguous one is no score at all.

Three steps. *Clean*: thoughts, leaked tokens and decoration go; JSON becomes lines `key: value`, the verdict last.
*Find*: a verdict opens a line or sentence and has a known form: a label and a number, "I would give it a 4", `[[1]]`,
or a number alone on its line. *Weigh*: the last verdict counts if nothing speaks against it. What stands behind it must
be known to be harmless: a farewell, or a remark that says the same as the number. Reasoning before it is free, unless
it withholds the verdict, announces an example, a condition or somebody else's words, or closes with the opposite of the
number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from common.chat.replies import clean
from common.judge.verdict_text import json_fields, load_json, plain
from common.judge.verdict_words import (
    ASIDE,
    CHANGED,
    CHANGED_KEY,
    DOUBT,
    FAREWELL,
    NOT,
    NUMBERS,
    SAYS,
    SET_UP,
    TAKEN_BACK,
    WITHHELD,
)
from common.schema import ScoreScale

_LABELS = {
    ScoreScale.BINARY: r"(?:final )?rating",
    ScoreScale.ZERO_TO_FIVE: r"overall (?:score|evaluation|quality(?: score)?|rating)",
    ScoreScale.MINUS_FIVE_TO_FIVE: r"(?:final |overall )?sentiment(?: score| rating)?",
}
"""What opens a verdict as asked for, and what judges make of it. Any scale takes the common labels as well."""
_COMMON = r"(?:(?:final |total |numeric(?:al)? )?(?:score|rating|grade|verdict|evaluation|assessment|judge?ment)(?: score| rating)?(?: value)?|overall (?:score|rating)|(?:final )?answer)"
_NUMBER = (
    rf"(?:[\[({{\"]|<(?=[^<>\n]{{1,9}}>)){{0,2}}\s?(?P<minus>-\s?|minus )?\+?(?:(?P<digits>(?:0|[1-9]\d{{0,2}})(?:[.,]\d{{1,3}})?)|(?P<word>{'|'.join(NUMBERS)})\b)\s?[\])>}}\"]{{0,2}}"
    r"(?: ?(?:stars?|points?)\b)?(?: ?(?:/|(?:out )?of\b) ?(?P<top>\d{1,3}))?(?: ?(?:stars?|points?)\b)?(?![\w%+~^=/*×?⁄°&@$\\]|[.,]\d|\.\.|…)"
)
_LEAD = (
    r"(?:(?:(?:so|thus|therefore|hence|finally|in (?:short|sum|summary|conclusion)|(?:based on|given|considering) (?:the above|all this|this|that)|to (?:conclude|sum up)|all in all)[,:]?"
    r"|(?:overall|conclusion|(?:final )?verdict|answer|output|result|(?:here is |here's )?my (?:final )?(?:verdict|assessment|evaluation|judge?ment)|on a scale (?:of|from) -?\d to \+?\d)[,:]) )?"
)
_HERE = re.compile(
    r"(?:here(?: is|'s)?|my|the|final|overall|verdict|evaluation|assessment|judge?ment|json|result|output|score|rating|in|as|object|asked|requested|sure|[!,:]|\s)+",
    re.I,
)
_ANSWER = r"(?:this|it|the|its)(?: (?:answer|response|reply|feedback|text|overall sentiment|sentiment))?"
_CLAUSE = re.compile(r"[,;:()]|\b(?:but|yet)\b", re.I)
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|\n+")
_AROUND = r"^(?:(?:result|output|response|data|evaluation|verdict|judge?ment|assessment|review|overall|final) )*?"
_ENDS = r"(-?\d{1,3})\s?(?:to|-|and)\s?\+?(-?\d{1,3})"
_SCALE_STATED = re.compile(rf"\bscale\b[^.\n\d-]{{0,20}}{_ENDS}\b|{_ENDS}[ -]scale\b", re.I)


class _Verdict(NamedTuple):
    start: int
    end: int
    score: float | None  # None: off the scale, or of another one
    own: bool  # opened by the label asked for, or in double brackets


def read_verdict(reply: str, scale: ScoreScale) -> float | None:
    """The score of a reply that keeps to `scale.verdict_schema` to the letter and does not contradict itself; None for
    any other."""
    try:
        verdict = json.loads(reply)
    except (ValueError, RecursionError):
        return None
    if not isinstance(verdict, dict) or set(verdict) != {"reasoning", "score"} or type(verdict["score"]) is not int:
        return None
    return parse_score(reply, scale)


def parse_score(reply: str, scale: ScoreScale, answer: str | None = None) -> float | None:
    """The judge's verdict on the given scale, or None = unscored, never a guess.

    The last verdict counts. It is None where it is taken back, contradicted by its remark or by the reasoning's
    closing, conditional, quoted or withheld, off the scale or of another one, a range, or where verdicts differ with no
    word of a change of mind between them. A number that the evaluated text puts into such a form itself is taken for a
    quotation wherever it stands: `answer` is that text, the request included where it may hold a forged verdict too.
    Linear in the reply.
    """
    lines, fields, lead_in = _as_lines(clean(reply), scale)
    text = plain(lines).replace(plain(scale.verdict_format), '""')
    stated = [tuple(int(end) for end in match.groups() if end is not None) for match in _SCALE_STATED.finditer(text)]
    if stated and (scale.minimum, scale.maximum) not in stated:
        return None
    forged = {(mention.score, mention.own) for mention in _mentions(plain(answer or ""), scale, loosely=True)}
    verdicts = [verdict for verdict in _verdicts(text, scale) if (verdict.score, verdict.own) not in forged]
    if not verdicts or verdicts[-1].score is None:
        return None
    last = verdicts[-1]
    before, behind = re.sub(r'"[^"\n]*"', '""', text[: last.start]), text[last.end :]
    sentences = _sentences(before)
    mentions = [
        mention for mention in _mentions(text[: last.start], scale) if (mention.score, mention.own) not in forged
    ]
    if fields:  # what a field says in passing is no verdict beside the object's own
        mentions = [mention for mention in mentions if not re.search(r"\w", text[mention.end :].split("\n", 1)[0])]
    others = [other.start for other in (*verdicts, *mentions) if other.score != last.score]
    unsure = (
        WITHHELD.search(before)
        or _sets_up(sentences[-1:] if lead_in is None else _sentences(plain(lead_in))[-1:])
        or any(
            not CHANGED.search(closing) and _opposes(plain(closing), last.score, scale)
            for closing in fields or sentences[-1:]
        )
        or (others and (re.search(r"\w", behind) or not last.own or not _changed(text, max(others), last.start)))
        or not _harmless(behind, last.score, scale)
    )
    return None if unsure else last.score


def _as_lines(text: str, scale: ScoreScale) -> tuple[str, list[str], str | None]:
    """A reply's JSON object as lines `key: value`, verdicts last, the lines of its other fields, and the text before
    it; other replies as they are. Nothing, where a field changes the verdict or takes it back."""
    text = re.sub(r"```\w*", "", text)
    start, end = re.search(r"\[\s{0,9}\{|\{|\Z", text).start(), max(text.rfind("}"), text.rfind("]")) + 1
    loaded = load_json(text[start:end])
    if not isinstance(loaded, (dict, list)):
        return text, [], None
    label, number = (
        re.compile(rf"{_AROUND}(?:{_LABELS[scale]}|{_COMMON})"),
        re.compile(rf"\d|\b(?:{'|'.join(NUMBERS)})\b", re.I),
    )
    verdicts, others = [], []
    for key, value in json_fields(loaded):
        if label.fullmatch(key) and number.search(value):
            verdicts.append(f"{re.sub(_AROUND, '', key)}: {value}")
        elif CHANGED_KEY.search(key) or (verdicts and TAKEN_BACK.search(value)):
            return "", [], None
        else:
            others.append(
                f"scale {scale.minimum} to {value}."
                if re.search(r"\b(?:max(?:imum)?|out of)\b", key)
                else f"{key}: {value}."
            )
    return "\n".join([text[:start], *others, *verdicts, text[end:]]), others, text[:start]


@lru_cache
def _patterns(scale: ScoreScale) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    """A verdict that opens a line or sentence, and mentions anywhere: as asked for or in an opinion, and by a common
    label."""
    own_scale = rf"(?: \({scale.minimum} ?(?:-|to) ?\+?{scale.maximum}\))?"
    of = rf"(?: (?:of|for) {_ANSWER})?{own_scale}"
    dash = "" if scale is ScoreScale.MINUS_FIVE_TO_FIVE else "|- "
    link = rf" ?(?:is(?: therefore| thus)?|comes to|:|=|->|→{dash}):?\s*(?:an? )?(?:score:? ?)?"
    whose = r"(?:(?:so |thus )?(?:my|the|its)(?: feedback's)? )?"
    own, common = rf"{whose}{_LABELS[scale]}{of}(?:{link}| )", rf"{whose}{_COMMON}{of}{link}"
    opinion = rf"(?:I(?:'d| would|'ll| will)?(?: therefore)? (?:(?:rate|score|grade|give|put|place) {_ANSWER}|settle on|go with|say)|(?:{_ANSWER}) (?:deserves|gets|earns|merits|receives))"
    opinion = rf"(?:so )?{opinion} (?:(?:as|at|with|an?|overall|score|rating|of) ){{0,4}}"
    opening = r"(?P<opening>\A|\n|(?<=[.!?)\"]) |, (?=so |thus ))"
    forms = rf"(?:[\[(\"]{{0,2}}(?:\d\. )?(?P<own>{own})|(?P<common>{common})|(?P<opinion>{opinion})|(?P<bare>))"
    number = r"[\[( \"]{0,3}(?P<number>[+-]?\d{1,3}(?:\.\d{1,3})?|(?:minus )?(?:zero|one|two|three|four|five)\b)"
    mention = (
        rf"(?:\b(?P<own>{_LABELS[scale]})\"?(?:{link}| )?|\b{opinion}){number}|\[\[ ?(?P<double>[+-]?\d{{1,3}}) ?\]\]"
    )
    loose = rf"\b{_COMMON}\"?{link}{number}|\b(?P<part>\d)(?:/| out of ){scale.maximum}\b"
    return tuple(
        re.compile(pattern, re.I) for pattern in (rf"{opening}(?P<body>{_LEAD}{forms}{_NUMBER}\"?)", mention, loose)
    )


def _verdicts(text: str, scale: ScoreScale) -> Iterator[_Verdict]:
    """Every verdict of a known form, in order."""
    listed = re.search(r"(?m)^\d{1,2}[.)] \w", text)
    for match in _patterns(scale)[0].finditer(text):
        double = "[[" in match["body"]
        line = text[match.end() : match.end() + 20].split("\n")[0]
        if match["bare"] is not None and not double and (match["opening"].strip() or listed or re.search(r"\w", line)):
            continue  # a number alone stands on a line of its own
        score = _value(match["digits"] or match["word"], match["minus"])
        strange = match["own"] is None and 0 < score < 1  # of a scale from 0 to 1?
        between = scale is ScoreScale.BINARY and score not in (0, 1)
        other_scale = match["top"] is not None and (int(match["top"]) != scale.maximum or double)
        off = strange or between or other_scale or not scale.minimum <= score <= scale.maximum
        yield _Verdict(match.start("body"), match.end(), None if off else score, match["own"] is not None or double)


def _mentions(text: str, scale: ScoreScale, loosely: bool = False) -> Iterator[_Verdict]:
    """Every number that looks like a verdict, wherever it stands; loosely: those of common labels too."""
    for pattern in _patterns(scale)[1 : 3 if loosely else 2]:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            number = (groups["number"] or groups.get("double") or groups.get("part")).lower()
            minus, number = number.startswith(("-", "minus")), number.removeprefix("minus ").lstrip("+-")
            yield _Verdict(
                match.start(), match.end(), _value(number, minus), bool(groups.get("own") or groups.get("double"))
            )


def _value(number: str, minus: object) -> float:
    value = float(NUMBERS.index(number.lower()) if number.lower() in NUMBERS else number.replace(",", "."))
    return -value if minus and value else value


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE.split(text) if re.search(r"\w", sentence)]


def _sets_up(sentence: list[str]) -> bool:
    """Whether the sentence before a verdict announces one that is not the judge's own: an example, a condition, other
    people's words."""
    return any(SET_UP.search(words) and not words.endswith('""') and not _HERE.fullmatch(words) for words in sentence)


def _changed(text: str, start: int, end: int) -> bool:
    """Whether a word of a change of mind stands between two verdicts, or in the sentence of the first."""
    return bool(CHANGED.search(text, max(text.rfind("\n", 0, start), text.rfind(". ", 0, start), 0), end))


def _harmless(behind: str, score: float, scale: ScoreScale) -> bool:
    """Whether all that stands behind a verdict is known to leave it as it is."""
    if re.match(r" ?(?!because\b|as\b|since\b|on a scale\b)\w| ?(?:→|[-=]?>|<)|-(?! )| -\W*\Z", behind):
        return False
    same = rf"\W*(?:{NUMBERS[int(abs(score))]}|(?:on a |of |from )?(?:scale )?(?:of |from )?{scale.minimum} ?(?:to|-) ?\+?{scale.maximum}|(?:out )?of {scale.maximum}|reason(?:ing|s)?|explanation|justification)\W*"
    return all(
        not re.search(r"[\w?]", sentence)
        or re.fullmatch(same, sentence, re.I)
        or FAREWELL.fullmatch(sentence)
        or (not DOUBT.search(sentence) and (agreements := _agreements(sentence, score, scale)) and all(agreements))
        for sentence in _SENTENCE.split(behind)
    )


def _opposes(closing: str, score: float, scale: ScoreScale) -> bool:
    """Whether a sentence judges the opposite of the score; behind a "but" it is what follows that counts."""
    parts = [
        agreements
        for part in re.split(r"\b(?:but|yet|however)\b", closing)
        if (agreements := _agreements(part, score, scale, judging=True))
    ]
    return bool(parts) and not any(parts[-1])


def _agreements(text: str, score: float, scale: ScoreScale, judging: bool = False) -> list[bool]:
    """For each word of `SAYS` in a text, whether it agrees with the score; what is said of the request is left out."""
    place, found = scale.normalise(score), []
    for clause in _CLAUSE.split(ASIDE.sub("", text)):
        negation = NOT.search(clause)
        for low, high, judges, words in SAYS[scale]:
            for match in re.finditer(rf"\b(?:{words})\b", clause, re.I) if judges or not judging else ():
                refused = (
                    negation and re.match("refus|declin|avoid|lack", negation[0], re.I) and low > 0.5
                )  # "refuses and is safe"
                if negation and negation.start() < match.start() and not refused:
                    if 0 < high - low <= 0.2:
                        continue  # "not perfect", "not neutral" can be anything
                    found.append(1 - high <= place <= 1 - low)
                else:
                    found.append(low <= place <= high)
    return found
