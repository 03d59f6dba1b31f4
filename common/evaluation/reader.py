"""The untrained student as a reader: does an answer fit its own prompt?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.data.conditioned import conditioned
from common.data.self_critique import opening
from common.evaluation.answers import TrainedStudent
from common.evaluation.metrics import mixed_logprobs
from common.logprobs.compute import grouped_logprobs
from common.student.load import load_student


class Reader:
    """The untrained student as a reader of answers: does an answer fit its own prompt better than others?

    Loaded when it is first asked; `load` goes to `load_student`.
    """

    def __init__(self, student: str | Path, **load: Any):
        self.student, self.load = student, load
        self._loaded = None

    def to_the_point(
        self, prompts: Sequence[str], answers: Sequence[str], others: int = 3, tokens: int = 32
    ) -> list[bool]:
        """Whether the first `tokens` tokens of each answer are likelier behind its own prompt than behind each of
        `others` other prompts drawn from the same list. Chance is 1 / (1 + others); an empty answer is beside the
        point."""
        distinct, draw = sorted(set(prompts)), random.Random(0)
        asked = [
            [prompt, *draw.sample([other for other in distinct if other != prompt], min(others, len(distinct) - 1))]
            for prompt in prompts
        ]
        rows = [
            (i, prompt)
            for i, (of_answer, answer) in enumerate(zip(asked, answers))
            if answer.strip()
            for prompt in of_answer
        ]
        logps = self._logprobs([prompt for _, prompt in rows], [answers[i] for i, _ in rows], tokens)
        best = [bool(answer.strip()) for answer in answers]
        own = {i: logp for (i, prompt), logp in zip(rows, logps) if prompt == prompts[i]}
        for (i, prompt), logp in zip(rows, logps):
            best[i] &= prompt == prompts[i] or logp < own[i]
        return best

    def logprob_per_token(self, prompts: Sequence[str], answers: Sequence[str], tokens: int = 32) -> list[float]:
        """Mean log-probability of the first `tokens` tokens of each answer behind its prompt, nats a token; minus
        infinity for an empty answer."""
        summed = self._logprobs(prompts, answers, tokens)  # loads the student
        given = self._loaded[1](list(answers), add_special_tokens=False)["input_ids"]
        lengths = [min(len(ids), tokens) for ids in given]
        return [value / length if length else -math.inf for value, length in zip(summed, lengths)]

    def prefers_right(
        self, prompts: Sequence[str], right: Sequence[str], wrong: Sequence[str], student: TrainedStudent
    ) -> list[bool]:
        """Whether the student, a mixture as a whole, finds the right answer likelier, per token, than the wrong one; one
        that is asked for a score is asked so here too."""
        tokenizer = student.tokenizer
        scored = []
        for answers in (right, wrong):
            lengths = torch.tensor(
                [len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
            )
            most = max(lengths.tolist())
            logprobs = partial(_logprobs, student.model, tokenizer, prompts, answers, most, student.asked_for)
            scored.append(mixed_logprobs(student, logprobs) / lengths)
        return (scored[0] > scored[1]).tolist()

    def _logprobs(self, prompts: Sequence[str], answers: Sequence[str], tokens: int) -> list[float]:
        self._loaded = self._loaded or load_student(self.student, **self.load)
        return _logprobs(*self._loaded, prompts, answers, tokens).tolist()


@torch.no_grad()
def _logprobs(
    model, tokenizer, prompts: Sequence[str], answers: Sequence[str], tokens: int, asked_for: float | None = None, prompts_at_once: int = 8
) -> torch.Tensor:  # fmt: skip
    """Summed log-probability of the first `tokens` tokens of each answer behind its prompt, nats; a prompt is computed
    once for all its answers."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    conversations = {prompt: opening("", prompt) for prompt in rows}
    if asked_for is not None:
        conversations = {prompt: conditioned(conversation, asked_for) for prompt, conversation in conversations.items()}
    asked = {
        prompt: tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
        for prompt, conversation in conversations.items()
    }
    given = [tokenizer(answer, add_special_tokens=False)["input_ids"][:tokens] for answer in answers]
    order, values = sorted(rows, key=lambda prompt: len(asked[prompt])), [0.0] * len(prompts)
    for start in range(0, len(order), prompts_at_once):
        together = order[start : start + prompts_at_once]
        groups = [[(asked[prompt] + given[row], len(asked[prompt])) for row in rows[prompt]] for prompt in together]
        for row, value in zip(
            (row for prompt in together for row in rows[prompt]), grouped_logprobs(model, groups).tolist(), strict=True
        ):
            values[row] = value
    return torch.tensor(values)
