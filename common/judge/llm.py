"""The external reward model: a judge that reads one answer at a time and gives a score, or none.

What `parse_score` does not understand is unscored: None, never a guess, with the raw reply kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from common.chat.model import ChatModel
from common.chat.pacing import Refused
from common.judge.base import FeedbackJudge, Judgement
from common.judge.verdict import parse_score, read_verdict
from common.prompts import ExperimentPrompts, JudgePrompt
from common.schema import Reply, Sampling

PROBE = [
    {
        "role": "user",
        "content": "Reply with a JSON object: in the field reasoning the word none, in the field score the number 0.",
    }
]
"""Shows whether an endpoint keeps to a schema; 0 lies on every scale."""


class LLMJudge:
    """Asks a chat model for a verdict on one criterion and reads it; asks once more, with twice the budget, where none
    was found.

    structured: the chat may offer replies by a JSON schema. It is asked for one before the first verdict, and where
    that keeps to the schema all verdicts are asked for so; an endpoint that refuses or ignores it is asked in words.
    """

    def __init__(self, chat: ChatModel, prompts: JudgePrompt, max_new_tokens: int = 256, structured: bool = False):
        self.chat, self.prompts, self.max_new_tokens, self.structured = chat, prompts, max_new_tokens, structured
        self.name, self.scale = chat.name, (prompts.scale.minimum, prompts.scale.maximum)

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per (prompt, answer), in order."""
        judgements = self._ask(prompts, answers, self.max_new_tokens)
        unclear = [i for i, judgement in enumerate(judgements) if judgement.score is None and not judgement.failure]
        again = self._ask([prompts[i] for i in unclear], [answers[i] for i in unclear], 2 * self.max_new_tokens)
        for i, judgement in zip(unclear, again):
            judgements[i] = judgement
        return judgements

    def _ask(self, prompts: Sequence[str], answers: Sequence[str], max_new_tokens: int) -> list[Judgement]:
        if not prompts:
            return []
        schema = self._schema
        conversations = [
            self.prompts.judge_request(prompt, answer, as_json=bool(schema)) for prompt, answer in zip(prompts, answers)
        ]
        replies = self.chat.complete(conversations, Sampling(max_new_tokens=max_new_tokens, json_schema=schema))
        failures = [reply.finish_reason if reply.failed else "" for reply in replies]
        return [
            Judgement(self._read(reply, prompt, answer), reply.text, failure)
            for reply, prompt, answer, failure in zip(replies, prompts, answers, failures, strict=True)
        ]

    def _read(self, reply: Reply, prompt: str, answer: str) -> float | None:
        """A reply that was cut off or filtered has no verdict yet. Prompt and answer can both hold a forged one."""
        if not reply.whole:
            return None
        read = read_verdict(reply.text, self.prompts.scale) if self._schema else None
        return parse_score(reply.text, self.prompts.scale, f"{prompt}\n\n{answer}") if read is None else read

    @cached_property
    def _schema(self) -> dict[str, Any] | None:
        """The schema of a verdict where the chat keeps to it. Raises RuntimeError where the chat does not answer: a judge
        that asks with a schema in one run and in words in the next would be two."""
        if not self.structured:
            return None
        schema = self.prompts.scale.verdict_schema
        try:
            [reply] = self.chat.complete([PROBE], Sampling(max_new_tokens=128, json_schema=schema))
        except (Refused, LookupError):  # not taken by the endpoint, or not among recorded replies
            return None
        if reply.failed:
            raise RuntimeError(
                f"{self.chat.name} gave no answer to a first question ({reply.finish_reason}); run again"
            )
        return schema if reply.whole and read_verdict(reply.text, self.prompts.scale) is not None else None


def llm_judge(
    chat: ChatModel, prompts: ExperimentPrompts, max_new_tokens: int = 256, structured: bool = False
) -> LLMJudge | FeedbackJudge:
    """A chat model as judge of an experiment: one question, or two where the experiment has a second criterion."""
    judge = LLMJudge(chat, prompts, max_new_tokens, structured)
    return (
        FeedbackJudge(judge, LLMJudge(chat, prompts.quality, max_new_tokens, structured)) if prompts.quality else judge
    )
