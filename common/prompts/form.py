"""The form of an experiment's texts: what teacher and judge are asked, and the conversations that ask it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from common.schema import Message, ScoreScale, fingerprint
from common.storage import read_yaml


def fill(template: str, **texts: str) -> str:
    """The template with each `{name}` replaced. Braces in the texts, and slots that are not named, stay as they are."""
    parts = re.split(r"(\{\w+\})", template)
    return "".join(texts.get(part[1:-1], part) if part.startswith("{") else part for part in parts)


class JudgePrompt(BaseModel):
    """One criterion, for both kinds of judge.

    judge_template: asks for a verdict in text; must hold `{prompt}`, `{answer}` and `{verdict_format}` once each.
    scale: the scale of that verdict.
    yes_no_question: asks the same for a judge that reads the probabilities of "Yes" and "No" (arXiv 2308.06385); "Yes"
        is the upper end of the scale. "" for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge_template: str
    scale: ScoreScale
    yes_no_question: str = ""

    @field_validator("judge_template")
    @classmethod
    def _has_every_slot(cls, text: str) -> str:
        for slot in ("{prompt}", "{answer}", "{verdict_format}"):
            if text.count(slot) != 1:
                raise ValueError(f"judge_template must hold the slot {slot} exactly once")
        return text

    @field_validator("scale", mode="before")
    @classmethod
    def _scale_by_name(cls, scale: object) -> object:
        if isinstance(scale, str) and scale not in ScoreScale.__members__:
            raise ValueError(f"unknown scale {scale!r}; there are {', '.join(ScoreScale.__members__)}")
        return ScoreScale[scale] if isinstance(scale, str) else scale

    def judge_request(self, prompt: str, answer: str, as_json: bool = False) -> list[Message]:
        """The conversation that asks for a verdict on one answer; `as_json` where the reply is held to
        `scale.verdict_schema`."""
        closing = f"a number from {self.scale.minimum} to {self.scale.maximum} in the field score, your reasons standing in the field reasoning"
        verdict_format = closing if as_json else self.scale.verdict_format
        return [
            {
                "role": "user",
                "content": fill(self.judge_template, prompt=prompt, answer=answer, verdict_format=verdict_format),
            }
        ]


class Example(BaseModel):
    """A chain as it should be, shown to the teacher before its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: str
    answer: str
    critique: str
    revision: str


class ExperimentPrompts(JudgePrompt):
    """The texts of one experiment: the teacher's, and the judge's for the criterion that the pairs are scored by.

    system: system prompt of the teacher, empty for none; whoever makes the prompts puts it into their records.
    critique_request, revision_request: what is asked after the first answer. Without slots they are the next user turns
        of the conversation, whose attack or persona goes on ruling (the form of the paper's repository). With slots,
        `{request}` and `{answer}` in the first, `{request}` and `{critique}` in the second, each is a conversation of
        its own that quotes them, the request in its plain words (ours); tags around a reply are then cut away.
    revision_system: system prompt of such a conversation that asks for a revision. examples: chains shown before it,
        and before that of a critique.
    quality: a second criterion on the same answers, where the experiment has one.
    version: the name of these texts in `VERSIONS`, "" for other ones.
    """

    system: str
    critique_request: str
    revision_request: str
    revision_system: str = ""
    examples: tuple[Example, ...] = ()
    quality: JudgePrompt | None = None
    version: str = ""

    @model_validator(mode="after")
    def _quotes_in_both_or_neither(self) -> ExperimentPrompts:
        for name, needed in (
            ("critique_request", {"request", "answer"}),
            ("revision_request", {"request", "critique"}),
        ):
            found = {slot for slot in ("request", "answer", "critique") if "{" + slot + "}" in getattr(self, name)}
            if not needed <= found if self.quotes else found:
                raise ValueError(
                    f"{name} must hold the slots {', '.join('{' + slot + '}' for slot in sorted(needed))}, or both requests none; it holds {', '.join(sorted(found)) or 'none'}"
                )
        if (self.examples or self.revision_system) and not self.quotes:
            raise ValueError("examples and revision_system need requests with slots")
        return self

    @property
    def quotes(self) -> bool:
        """Whether critique and revision are conversations of their own."""
        return "{answer}" in self.critique_request

    def conversation_after(self, opening: Sequence[Message], request: str, said: Sequence[str]) -> list[Message]:
        """The conversation that asks for a chain's next turn.

        Args:
            opening: the conversation that the first answer replied to.
            request: its request without wrapper, persona or stance.
            said: the answer, or answer and critique; empty for the first turn.
        """
        if not self.quotes or not said:
            return [
                *opening,
                *(
                    turn
                    for exchange in zip(said, (self.critique_request, self.revision_request))
                    for turn in _exchange(*exchange, first="assistant")
                ),
            ]
        asked, wanted, system = (
            (self.critique_request, "critique", "")
            if len(said) == 1
            else (self.revision_request, "revision", self.revision_system)
        )
        shown = [
            turn
            for example in self.examples
            for turn in _exchange(fill(asked, **example.model_dump()), getattr(example, wanted))
        ]
        said_of = dict(zip(("answer", "critique"), said))
        return [*opening_turns(system), *shown, {"role": "user", "content": fill(asked, request=request, **said_of)}]

    def read(self, reply: str) -> str:
        """The words of a critique or revision, without the tags and the title that a model puts around them."""
        return _unwrapped(reply) if self.quotes else reply

    @classmethod
    def from_yaml(cls, path: str | Path) -> ExperimentPrompts:
        """Reads the fields from a YAML file; `scale` by its name, e.g. BINARY. Raises ValueError naming file and field."""
        try:
            return cls.model_validate(read_yaml(Path(path).read_text(encoding="utf-8")))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'content'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise ValueError(f"{path}: {problems}") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None

    @property
    def hash(self) -> str:
        """Identifies the exact texts in a manifest."""
        return fingerprint(self.model_dump(mode="json", exclude_defaults=True, exclude={"version"}))


def opening_turns(system: str) -> list[Message]:
    """The start of a conversation; an empty system prompt is no message at all."""
    return [{"role": "system", "content": system}] if system else []


def _exchange(one: str, other: str, first: str = "user") -> list[Message]:
    return [{"role": first, "content": one}, {"role": "assistant" if first == "user" else "user", "content": other}]


_TAG = r"</?(?:request|answer|review|argument|feedback|revised_answer|new_answer|better_answer)>"
_TITLE = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay)\W{1,3})?\W{0,3}(?:here(?:'s| is) )?(?:(?:an?|the|my|your) )?(?:better|revised|improved|new|rewritten|updated|corrected|final)? ?"
    r"(?:answer|response|review|feedback|version|revision|rewrite)(?: (?:to|of|that) [^\n:]{1,60})?\*{0,2}:\*{0,2}\s*",
    re.I,
)


def _unwrapped(reply: str) -> str:
    """What stands in <answer> tags where they are, else all; other tags and a title ("Revised answer:") away."""
    inside = re.search(r"<(answer|review|feedback|revised_answer)>(.*?)(?:</\1>|\Z)", reply, re.S | re.I)
    text = (
        inside[2]
        if inside and re.search(r"\w", inside[2])
        else re.split(r"</(?:answer|review|feedback)>", reply.strip(), maxsplit=1)[0] or reply
    )
    return _TITLE.sub("", re.sub(_TAG, "", text, flags=re.I).strip()).strip()
