"""What an OpenAI-compatible server's answer means, in the dialects of those that are in use: the reply, the bill, or
the trouble.

Pure functions of status and body; `common.chat.endpoint` asks, waits and pays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from common.chat.replies import ended_early, is_known, understood
from common.schema import Reply

TOO_LONG = re.compile(
    r"context.?(?:length|window|size|limit)|max(?:imum)?.?(?:context|model.?len|prompt|input|sequence)|n_ctx|string_above_max_length|request (?:too|entity too) large|payload too large|"
    r"(?:prompt|input|message|request|conversation|text|sequence)s? (?:\w+ ){0,3}(?:too (?:long|large|many)|exceeds?)|too many (?:input )?tokens|"
    r"(?:reduce|shorten|truncate) (?:the |your )?(?:length|prompt|input|messages)|exceed\w* (?:the |its )?(?:\w+ ){0,4}(?:tokens?|context|length)|longer than the (?:model|context|maximum)",
    re.I,
)
PASSING = re.compile(r"took too long|time[sd]? ?out|rate.?limit", re.I)
"""Words of a trouble that passes, though they look like those of `TOO_LONG`."""
OF_A_RATE = re.compile(r"limit:? ([\d,]+).{0,80}requested:? ([\d,]+)", re.I | re.S)
"""A rate limit's numbers: what is allowed, and what this one request asks for."""
MODERATED = re.compile(
    r"content.?(?:filter|policy|management|moderation|violation)|moderat|flagged|responsible.?ai|data.?inspection|inappropriate|sensitive.?(?:words?|content)|"
    r"safety (?:system|filter|setting|polic|reason|check)|(?:usage|use|safety|violates?) (?:\w+ ){0,3}polic|prohibited|guardrail|jailbreak|blocked (?:by|due|because)|"
    r"risk.?control|unsafe|harmful",
    re.I,
)
NO_MONEY = re.compile(
    r"insufficient.?(?:quota|credits?|balance|funds|user.?quota)|(?:out of|no|not enough|more|your|run out of) credits?\b|billing|payment|prepaid|balance|top.?up|spend(?:ing)? limit|arrears",
    re.I,
)
NO_ENTRY = re.compile(
    r"api.?key|unauthori[sz]ed|authenticat|invalid.?token|forbidden|permission|access denied|unexpected endpoint|unknown url|not found|no such model|"
    r"model (?:\S+ )?(?:does not exist|not loaded|is not available)|unknown model|deprecated model|unsupported_country",
    re.I,
)
ABOUT_THE_ACCOUNT = re.compile(
    r"\b(?:your|this|the) (?:account|organi[sz]ation|country|region|project|ip|api.?key)\b", re.I
)
OUR_PARAMETERS = ("temperature", "seed", "max_tokens", "max_completion_tokens")
NOT_TAKEN = re.compile(
    r"unsupported|not support|only (?:the )?default|not (?:allowed|permitted|accepted)|deprecated|unrecogni[sz]ed|unknown|unexpected|extra|invalid|instead|must be",
    re.I,
)
RETRY_IN = re.compile(r"(?:retry|try again|wait)(?: \w+){0,2} (?:in|after|for)? ?(?:(\d+)m)?([\d.]+) ?(m?s)", re.I)


class Unreadable(ValueError):
    """The body of a 200 in which nothing is to be found; its message says what there is."""


class Trouble(NamedTuple):
    """Why there is no reply.

    concerns: `moderation` and `length` one conversation, for what it says; `request` one conversation or all, which a
    harmless one shows; `parameter` a setting of ours, named in `parameter`; `run` everything that would be asked;
    `pause` nobody, after `seconds` or so; `again` nobody, it may have passed.
    """

    concerns: Literal["moderation", "length", "request", "parameter", "run", "pause", "again"]
    words: str
    parameter: str = ""
    seconds: float | None = None


def body_of(text: str) -> dict[str, Any]:
    """The JSON object of a body, a byte order mark before it or the first event of a stream. Raises Unreadable."""
    text = text.lstrip("\ufeff\ufffe \r\n")
    streamed = re.match(r"(?:(?:event|id|retry|):.*\s+)*data:\s*(.*)", text)
    try:
        fields = json.loads(streamed[1] if streamed else text)
    except (ValueError, RecursionError):
        raise Unreadable(f"no JSON: {_short(text)}" if text else "an empty body") from None
    fields = fields[0] if isinstance(fields, list) and fields else fields
    if not isinstance(fields, dict):
        raise Unreadable(f"not a JSON object: {_short(text)}")
    if streamed and not error_in(fields):
        raise Unreadable("a stream of events, though none was asked for")
    return fields


def error_in(fields: Mapping[str, Any]) -> object | None:
    """What a 200 holds in place of a reply, where it is an error; None where it is not."""
    choices = fields.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (fields, first):
        if isinstance(holder, Mapping) and holder.get("error"):
            return holder["error"]
    says_error = not first and (
        fields.get("object") == "error"
        or any(fields.get(name) for name in ("detail", "message", "msg", "errors", "error_msg"))
    )
    return fields if says_error else None


def reply_in(fields: Mapping[str, Any], budget: int) -> tuple[Reply, str]:
    """(reply, finish reason where nobody knows it, else "") of the body of a 200; `budget` in tokens. Raises
    Unreadable."""
    prompt_tokens, completion_tokens = tokens_in(fields)
    told = {"prompt_tokens": prompt_tokens or 0, "completion_tokens": completion_tokens or 0}
    told["model"] = str(fields.get("model") or "")
    choices = fields.get("choices")
    if (
        isinstance(choices, list)
        and not choices
        and (
            feedback := fields.get("promptFeedback")
            or fields.get("prompt_feedback")
            or fields.get("prompt_filter_results")
        )
    ):
        return understood(
            "",
            "content_filter"
            if MODERATED.search(json.dumps(feedback)) or "block" in json.dumps(feedback).lower()
            else "error",
            **told,
        ), ""
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise Unreadable("no choices in it")
    choice = choices[0]
    message = choice.get("message") or {"content": choice.get("text")}
    reason = choice.get("finish_reason") or choice.get("stop_reason")
    if not isinstance(message, Mapping):
        raise Unreadable("a message that is no object")
    text = _text_in(message.get("content")) or _text_in(message.get("refusal"))
    thoughts = next(
        (found for name in ("reasoning_content", "reasoning", "thinking") if (found := _text_in(message.get(name)))), ""
    )
    beside = (
        f"but {len(thoughts)} characters of reasoning beside it; switch thinking off or give more tokens"
        if thoughts
        else ""
    )
    if message.get("tool_calls") or message.get("function_call"):
        beside = beside or "but a call of a tool that it does not have"
    if text is None and not beside and not ended_early(reason):
        raise Unreadable("no content in it")
    unknown = "" if is_known(reason) else str(reason or "none")[:40]
    return understood(text or "", reason, budget, beside, **told), unknown


def _text_in(content: object) -> str | None:
    """Content as a text or as a list of parts, of which those of reasoning are left out; None for none."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in parts]
    return "".join(text for text in texts if text)


def _text_of_part(part: object) -> str:
    if not isinstance(part, Mapping) or str(part.get("type", "")).startswith(("think", "reason", "redacted")):
        return ""
    return next((part[name] for name in ("text", "content", "refusal") if isinstance(part.get(name), str)), "")


def tokens_in(fields: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(prompt tokens, completion tokens) of a bill; None for what it hides, tells as 0 or tells as no number.

    Where the sum is larger than its parts, the rest was thought and is paid like what was said.
    """
    usage = fields.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    prompt, completion = (
        next((count for name in names if (count := _count(usage.get(name)))), None)
        for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    total = _count(usage.get("total_tokens"))
    if total and prompt and completion:
        completion = max(completion, total - prompt)
    return prompt, completion


def _count(value: object) -> int | None:
    number = (
        value
        if isinstance(value, int | float) and not isinstance(value, bool)
        else float(value)
        if isinstance(value, str) and value.strip().isdigit()
        else None
    )
    return math.ceil(number) if number and math.isfinite(number) and number > 0 else None


def trouble(status: int, body: object) -> Trouble:
    """What an answer that is no reply means for this conversation and the others.

    body: of a status that is not 200, or the error inside a 200, whose own number then counts.
    """
    said = list(_strings(body))
    words = _short(next(iter(_words(body)), "") or (body if isinstance(body, str) else json.dumps(body, default=str)))
    everything = " ".join([*said, words])[:4000]
    numbers = [int(code) for code in _codes(body) if str(code).isdigit() and 400 <= int(code) < 600]
    status = numbers[0] if status == 200 and numbers else status
    about = _parameter(everything, body)
    if about and status in (200, 400, 422):
        return Trouble("parameter", words, parameter=about)
    rate = OF_A_RATE.search(everything)
    never = bool(rate) and int(rate[2].replace(",", "")) > int(rate[1].replace(",", ""))
    if status in (429, 413) and (never or re.search(r"request too large", everything, re.I)):
        return Trouble("length", words)
    if status == 429:
        wait = _seconds(everything)
        return Trouble("run" if NO_MONEY.search(everything) and wait is None else "pause", words, seconds=wait)
    if status not in (401, 402, 404) and TOO_LONG.search(everything) and not PASSING.search(everything):
        return Trouble("length", words)
    if (
        status not in (401, 402, 404, 408, 409, 425)
        and MODERATED.search(everything)
        and not ABOUT_THE_ACCOUNT.search(everything)
    ):
        return Trouble("moderation", words)
    if status in (400, 403, 413, 422, 451):
        return Trouble("request", words)
    if status == 200 and (NO_MONEY.search(everything) or NO_ENTRY.search(everything)) or status == 501:
        return Trouble("run", words)
    if status == 200 or status >= 500 or status in (408, 409, 425):
        return Trouble("again", words)
    return Trouble("run", words)


def _parameter(everything: str, body: object) -> str:
    """The setting of ours that the server does not take, "" where it complains of something else."""
    named = [value for key, value in _pairs(body) if key in ("param", "parameter", "loc") and isinstance(value, str)]
    for name in OUR_PARAMETERS:
        if (
            name in named
            or re.search(rf"\b{name}\b", everything)
            and NOT_TAKEN.search(everything)
            and not TOO_LONG.search(everything)
        ):
            return name
    return ""


def _pairs(body: object, depth: int = 0) -> Iterator[tuple[str, object]]:
    if isinstance(body, str) and depth < 6 and body.lstrip()[:1] in ("{", "["):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return
    if isinstance(body, Mapping) and depth < 6:
        for key, value in body.items():
            yield str(key), value
            yield from _pairs(value, depth + 1)
    elif isinstance(body, list) and depth < 6:
        for value in body:
            yield "", value
            yield from _pairs(value, depth + 1)


def _strings(body: object) -> Iterator[str]:
    """Every text in an error but what it repeats of the request."""
    yield from (
        str(value)
        for key, value in _pairs(body)
        if isinstance(value, str) and key not in ("flagged_input", "input", "body", "request")
    )


def _words(body: object) -> Iterator[str]:
    """What the server says to a person, the outermost first."""
    pairs = list(_pairs(body))
    for name in ("message", "msg", "detail", "error", "error_msg", "description", "title", "reason"):
        yield from (value for key, value in pairs if key == name and isinstance(value, str) and value.strip())


def _codes(body: object) -> Iterator[object]:
    yield from (
        value
        for key, value in _pairs(body)
        if key in ("code", "status", "status_code", "statusCode") and not isinstance(value, bool)
    )


def _seconds(words: str) -> float | None:
    found = RETRY_IN.search(words)
    try:
        return found and (int(found[1] or 0) * 60 + float(found[2])) / (1000 if found[3] == "ms" else 1)
    except ValueError:
        return None


def _short(text: str) -> str:
    return " ".join(re.sub(r"<[^<>]{1,200}>", " ", text).split())[:300]
