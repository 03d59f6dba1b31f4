"""What a model said, cleaned and understood: one place for every reply, the teacher's, the student's and the judge's.

A reply becomes one of four: an *answer* (`stop`), *cut* off (`length`), *refused* by a filter (`content_filter`) or
*failed* (`error: ...`). Servers have many names for these; a name that nobody knows is an answer where there is text.
"""

from __future__ import annotations

import re
from typing import Any

from common.schema import Reply, unbroken

_NAME = (
    r"(?:\w+:)?(?:think(?:ing)?|thoughts?(?:_process)?|reason(?:ing)?|reflect(?:ion)?|scratchpad|inner_?monologue|cot)"
)
_TAG = re.compile(
    rf"(?<!`)(?:(?P<open><\s?{_NAME}(?:\s[^<>]{{0,99}})?(?<!/)>|\[think(?:ing)?\]|◁{_NAME}▷|<[|｜](?:(?:begin|start)_(?:of_)?)?{_NAME}[|｜]>|<unused94>)|"
    rf"<\s?/\s?{_NAME}\s?>|<\s?{_NAME}\s?/>|\[/think(?:ing)?\]|◁/{_NAME}▷|<[|｜](?:/|end_(?:of_)?){_NAME}[|｜]>|<unused95>)",
    re.I,
)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>|\A\s*analysis.*?assistantfinal", re.I | re.S)
_OTHER_CHANNEL = re.compile(r"<\|channel\|>|\A\s*analysis(?=[A-Z]).*assistantcommentary", re.S)
_TITLED_THOUGHTS = re.compile(
    r"\A\s*here(?:'s| is) my thought process:.*?here(?:'s| is) my (?:response|answer):", re.I | re.S
)
_HEADER = re.compile(
    r"\A(?:\s|<\|(?:im_start|start)\|>(?:assistant)?|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>(?:model)?|"
    r"<\|(?:assistant|begin_of_text|endoftext|pad|message)\|>|<(?:bos|pad)>|<s>(?=\s|\[)|\[/INST\])+|\Aassistant\s*\n"
)
_END_TOKEN = re.compile(
    r"(?<!`)(?:<\|/?\w{1,30}\|>|<｜[^｜<>\n]{1,30}｜>|</s>|<(?:end_of_turn|start_of_turn|eos)>|\[/?INST\])", re.I
)
_INVISIBLE = r"[\s\u00ad\u200b-\u200f\u2060\ufeff\ufffd]"

ANSWER = {
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
    "stop_token",
    "complete",
    "completed",
    "finish",
    "finished",
    "done",
    "end",
    "eot",
}
CUT = {
    "length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "max_completion_tokens", "model_length", "token_limit", "length_limit",
    "truncated", "incomplete", "context_length", "context_window_exceeded", "model_context_window_exceeded",
}  # fmt: skip
REFUSED = {
    "content_filter", "content_filtered", "filtered", "refusal", "safety", "image_safety", "recitation", "prohibited_content", "blocklist", "spii", "language",
    "moderation", "moderated", "guardrail", "guardrail_intervened", "sensitive", "censored", "blocked", "flagged", "policy_violation", "error_toxic",
}  # fmt: skip
FAILED = {
    "error",
    "abort",
    "aborted",
    "cancel",
    "cancelled",
    "canceled",
    "timeout",
    "insufficient_system_resource",
    "network_error",
    "overloaded",
    "malformed_function_call",
}


def clean(text: str) -> str:
    """The words that are meant for the reader: no thoughts, no tokens of the chat template, no half characters, no
    space around.

    Thoughts are what stands between opening and closing tags, before a closing tag whose opening one was in the prompt,
    behind an opening tag that begins a line and is never closed, and outside the final channel of a reply in channels.
    The first token that ends a turn ends the text: what follows it is the next turn, made up. Tags in backticks are
    words about tags.
    """
    text = unbroken(text)
    if final := list(_FINAL_CHANNEL.finditer(text)):
        text = text[final[-1].end() :]
    elif _OTHER_CHANNEL.search(text):
        return ""
    text = _HEADER.sub("", _TITLED_THOUGHTS.sub("", _without_thoughts(text)))
    struck = text.find("<s>") % (len(text) + 1)  # from there on </s> may close it
    ends = (match.start() for match in _END_TOKEN.finditer(text) if match[0] != "</s>" or match.start() < struck)
    return text[: next(ends, len(text))].strip()


def _without_thoughts(text: str) -> str:
    kept, start, opened = [], 0, None
    for tag in _TAG.finditer(text):
        if tag["open"] and opened is None:
            kept.append(text[start : tag.start()])
            opened = tag.start()
        elif not tag["open"]:
            kept = kept if opened is not None else []
            start, opened = tag.end(), None
    if opened is None:
        return "".join([*kept, text[start:]])
    begins_a_line = not text[text.rfind("\n", 0, opened) + 1 : opened].strip()
    return "".join(kept if begins_a_line else [*kept, text[opened:]])


def understood(text: str, finish_reason: object = "stop", budget: int = 0, why_empty: str = "", **told: Any) -> Reply:
    """The reply behind a server's words and its reason for ending them.

    Args:
        finish_reason: in any server's spelling; None where it gave none.
        budget: tokens that were allowed, which tell whether a reply that ended for no known reason was cut; 0 where
            unknown.
        why_empty: what is known of a reply without words, such as that there was reasoning beside it.
        told: `prompt_tokens`, `completion_tokens` and `model`, as of `Reply`.

    A reply that ended by itself and has no visible word is failed: there is nothing to train on or to judge.
    """
    text, reason = clean(text), spelled(finish_reason)
    blank = not re.sub(_INVISIBLE, "", text)
    if reason in FAILED:
        return Reply(text="", finish_reason=f"error: the model ended with {reason}", **told)
    if reason in REFUSED:
        return Reply(text=text, finish_reason="content_filter", **told)
    if reason in CUT or reason not in ANSWER and 0 < budget <= told.get("completion_tokens", 0):
        return Reply(text=text, finish_reason="length", **told)
    if blank:
        return Reply(text="", finish_reason=f"error: no words in the reply{why_empty and f', {why_empty}'}", **told)
    return Reply(text=text, **told)


def cleaned(reply: Reply) -> Reply:
    """A reply that somebody else read or kept, as it would be understood here; a failed one as it is."""
    return (
        reply
        if reply.failed
        else understood(
            reply.text,
            reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=reply.model,
        )
    )


def spelled(finish_reason: object) -> str:
    """A finish reason in small letters, without what some libraries put before it (`FinishReason.MAX_TOKENS`); "" for
    none."""
    words = re.sub(r"[\s-]+", "_", str(finish_reason or "").strip().lower()).rpartition(".")[2]
    return words.removeprefix("finish_reason_")


def is_known(finish_reason: object) -> bool:
    """Whether the reason has a meaning here; others are taken for answers and counted."""
    return spelled(finish_reason) in ANSWER | CUT | REFUSED | FAILED


def ended_early(finish_reason: object) -> bool:
    """Whether the reason says why there may be no words: cut, refused or failed."""
    return spelled(finish_reason) in CUT | REFUSED | FAILED
