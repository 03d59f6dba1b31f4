"""The records that travel between the notebooks, one JSON object a line: fields, units, ranges.

pairs.jsonl holds `Pair`s, scored.jsonl holds `ScoredPair`s, a `metrics.json` holds `Metric`s.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Message = dict[str, str]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": text}`."""


class ScoreScale(Enum):
    """A judge's scale: lowest score, highest score, and the words that open its verdict."""

    BINARY = (0, 1, "Rating")
    ZERO_TO_FIVE = (0, 5, "Overall Score")
    MINUS_FIVE_TO_FIVE = (-5, 5, "Overall Sentiment")

    def __init__(self, minimum: int, maximum: int, label: str):
        self.minimum, self.maximum, self.label = minimum, maximum, label

    @property
    def verdict_format(self) -> str:
        """The closing line that a judge is asked for."""
        return (
            "Rating: [[0]] or Rating: [[1]]"
            if self is ScoreScale.BINARY
            else f"{self.label}: <number from {self.minimum} to {self.maximum}>"
        )

    @property
    def verdict_schema(self) -> dict[str, Any]:
        """A verdict as a JSON object, for endpoints that keep to a schema: reasons first, then a whole number of the
        scale."""
        score = {"type": "integer", "enum": list(range(self.minimum, self.maximum + 1))}
        fields = {"reasoning": {"type": "string"}, "score": score}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    def write(self, score: float) -> str:
        """A verdict line in the judge's format."""
        return f"{self.label}: [[{score:g}]]" if self is ScoreScale.BINARY else f"{self.label}: {score:g}"

    def normalise(self, score: float) -> float:
        """(score - min) / (max - min), in [0, 1]; by the scale, never by the data, so that a score means the same in
        every subset. Raises ValueError for a score outside the scale."""
        if not self.minimum <= score <= self.maximum:
            raise ValueError(f"score {score} lies outside the scale {self.name}, {self.minimum} to {self.maximum}")
        return (score - self.minimum) / (self.maximum - self.minimum)


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Sampling(Record):
    """How a chat model is asked to generate. temperature 0 is greedy; `top_p` samples among the likeliest tokens
    that have this probability together. `seed` reaches the model where it takes one; `json_schema` asks an endpoint for a
    reply of this form, which not every one heeds."""

    temperature: float = Field(default=0.0, ge=0)
    max_new_tokens: int = Field(default=256, gt=0)
    seed: int = 0
    top_p: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda share: share == 1)
    json_schema: dict[str, Any] | None = Field(default=None, exclude_if=lambda schema: schema is None)


class Reply(Record):
    """One answer of a chat model. `finish_reason` as OpenAI names it (`stop`, `length`, `content_filter`), or `error:
    ...` where none came however often it was asked for. model: what the server says that it served, "" where it says
    nothing."""

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = Field(default="", exclude_if=lambda model: not model)

    @property
    def whole(self) -> bool:
        """Not cut off, not filtered, not failed."""
        return self.finish_reason == "stop"

    @property
    def failed(self) -> bool:
        return self.finish_reason.startswith("error")


BENIGN = "benign"
"""How the kind of a harmless prompt begins."""


class PromptRecord(Record):
    """A prompt before anybody answered it.

    kind: a class of prompts for noise and report (a wrapper, an injection, a stance); harmless ones begin with "benign".
    plain_prompt: the same request without wrapper, persona or stance; "" means the prompt itself.
    group: the goal, persona or argument, which must never stand in two splits; "" means the prompt itself.
    history: turns before the prompt, user and assistant in turn, as data of others have them; [] for none.
    """

    id: str
    experiment: str
    split: Literal["train", "validation", "test", "ood"]
    system: str = ""
    prompt: str = Field(min_length=1)
    kind: str = "plain"
    plain_prompt: str = ""
    group: str = ""
    history: list[Message] = Field(default=[], exclude_if=lambda turns: not turns, repr=False)
    """Marks of evaluations are made of what `repr` shows; the id tells two histories apart."""

    @property
    def is_benign(self) -> bool:
        return self.kind.startswith(BENIGN)


class Pair(PromptRecord):
    """Two answers to a prompt, the revised one preferred: a completed self-critique chain, or two answers of
    Counterfactual DPO.

    response_base: the teacher's answer to the plain prompt, "" where nobody asked. usage: tokens of all its answers.
    variant: of Counterfactual DPO (`counterfactual.VARIANTS`), "" for self-critique. instruction: what stands behind
    the prompt where a student is trained on the pair, "" for nothing. annotator: who preferred the revised answer, ""
    where nobody is named.
    """

    response: str
    critique: str = ""
    response_revised: str
    response_base: str = ""
    teacher: str = ""
    sampling: Sampling = Sampling()
    usage: dict[str, int] = {}
    variant: str = ""
    instruction: str = ""
    annotator: str = Field(default="", exclude_if=lambda annotator: not annotator)


UNSEEN = ("critique", "sampling", "usage")
"""What a file of scores does not note of each pair, since no judge and no later step reads it: all else is in its mark."""


def in_unit(score: float | None, scale: tuple[float, float]) -> float | None:
    """A score in [0, 1]: (s - low) / (high - low) of its scale; None stays None."""
    low, high = scale
    return None if score is None else (score - low) / (high - low)


def _check_scale(name: str, score: float | None, scale: tuple[float, float]) -> None:
    """Raises ValueError for a scale without ends in order, and for a score off it."""
    low, high = scale
    if not 0 < high - low < math.inf:
        raise ValueError(f"scale = {list(scale)} must be the lowest and the highest possible score")
    if score is not None and not low <= score <= high:
        raise ValueError(f"{name} = {score} lies outside the scale {low:g} to {high:g}; give the right `scale`")


class ScoredPair(Pair):
    """A pair with the judge's scores on the judge's own scale; None = unscored, which is a state and not a number.

    `scale` gives the ends of the scale; scores outside it are refused. `criteria` holds the single verdicts that the
    scores are made of, where there are several: sentiment (-5 to 5) and quality (0 to 5) of each answer, by name.
    `explored` is the student's own answer, where training looks at it besides the pair.
    """

    score_response: float | None
    score_revised: float | None
    judge_reply_response: str = ""
    judge_reply_revised: str = ""
    judge: str = ""
    scale: tuple[float, float] = (0.0, 1.0)
    criteria: dict[str, float | None] = {}
    explored: Reply | None = Field(default=None, exclude_if=lambda reply: reply is None)

    @model_validator(mode="after")
    def _scores_on_the_scale(self) -> ScoredPair:
        for name in ("score_response", "score_revised"):
            _check_scale(name, getattr(self, name), self.scale)
        return self

    @property
    def is_scored(self) -> bool:
        """Both answers have a score."""
        return None not in (self.score_response, self.score_revised)

    def normalised(self) -> tuple[float | None, float | None]:
        """(score_response, score_revised) in [0, 1]."""
        return in_unit(self.score_response, self.scale), in_unit(self.score_revised, self.scale)

    def swapped(self) -> ScoredPair:
        """The pair with its two answers exchanged, each with its own score: a wrong label that the scores show."""
        return self.model_copy(update={
            "response": self.response_revised, "response_revised": self.response,
            "score_response": self.score_revised, "score_revised": self.score_response,
            "judge_reply_response": self.judge_reply_revised, "judge_reply_revised": self.judge_reply_response, "criteria": {},
        })  # fmt: skip


class ScoredAnswer(PromptRecord):
    """One answer to a prompt, with its score on `scale`; None = unscored. Raises ValueError for a score off the scale."""

    answer: str = Field(min_length=1)
    score: float | None = None
    scale: tuple[float, float] = (0.0, 1.0)

    @model_validator(mode="after")
    def _score_on_the_scale(self) -> ScoredAnswer:
        _check_scale("score", self.score, self.scale)
        return self

    @property
    def is_scored(self) -> bool:
        return self.score is not None

    def normalised(self) -> float | None:
        """The score in [0, 1]."""
        return in_unit(self.score, self.scale)


class Metric(Record):
    """One measured number, never bare: its n, and k successes where it is a rate, with a 95 % interval."""

    experiment: str
    method: str
    seed: int
    metric: str
    value: float
    n: int
    k: int | None = None
    low: float
    high: float
    noise: float | None = None
    judge_error: float | None = None


def fingerprint(*parts: object, digits: int = 12) -> str:
    """The first hex digits of the SHA-256 of anything JSON can write: ids, cache keys, manifests. Twelve tell some
    hundred thousand things apart; give more where a mix-up would go unseen."""
    text = unbroken(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def mark_of_pairs(pairs: Iterable[Mapping[str, Any]]) -> str:
    """What a file of scores notes of the pairs that were scored, given as they are written: all but `UNSEEN`."""
    return fingerprint([fingerprint({k: v for k, v in pair.items() if k not in UNSEEN}) for pair in pairs])


def sum_of_fingerprints(records: Iterable[BaseModel]) -> str:
    """One fingerprint of records in any order. Those of the parts of a whole, added by `added`, are that of the whole."""
    return added(fingerprint(record.model_dump()) for record in records)


def added(fingerprints: Iterable[str]) -> str:
    """The sum of fingerprints of twelve hex digits, its last twelve."""
    return f"{sum(int(one, 16) for one in fingerprints) % 16**12:012x}"


def unbroken(text: str) -> str:
    """The text with every half of a surrogate pair, which no file can hold, replaced by U+FFFD; whole pairs become
    their character."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def answer_id(prompt: str, answer: str) -> str:
    """The id of a labelled answer: the fingerprint of both texts, whatever their line breaks and spaces."""
    return fingerprint(" ".join(prompt.split()), " ".join(answer.split()))


def wording_id(source: str, number: int) -> str:
    """The id of a prompt's wording `number`, from 1 on: the source's id says whose it is."""
    return f"{source}~{number}"


def source_id(wording: str) -> str:
    """The id of the prompt that a wording is of."""
    return wording.rpartition("~")[0]
