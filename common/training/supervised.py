"""Rows that learn the likelihood of answers, with or without their scores: SFT, dSC, FA, RWR and CA.

SFT learns all revisions, dSC (arXiv 2312.01957) those that scored strictly higher. The others are offline alignment of
single scored answers (arXiv 2308.12050), to which both answers of a pair are rows:
FA (filtering): the best answer of each prompt, the first on a tie; where the original scored higher it learns the
original, and dSC drops the pair.
RWR (reward-weighted regression): all answers, weighted by exp(score / T); the form is the classical one, mean 1 over
the data, and T = .25 on scores in [0, 1] is ours.
CA (conditional): all answers, each with its score written behind the request (`common.data.conditioned`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from common.data.conditioned import conditioned
from common.data.preference import accepted, prompt_messages
from common.logprobs.compute import grouped_logprobs
from common.methods import METHODS, TrainSettings
from common.schema import Message, ScoredPair
from common.student.adapters import adapters_to_float32, lora_settings
from common.student.load import check_prompt_is_prefix
from common.trainer.finite import StopWhenNotFinite

Answers = list[tuple[list[Message], str, float]]
"""Prompt, answer, and what it weighs."""


def answers_to_learn(method: str, pairs: Sequence[ScoredPair], settings: TrainSettings) -> Answers:
    """What a supervised row learns of scored pairs. Raises ValueError where that is nothing."""
    rows: Answers = []
    if METHODS[method].sft_on in ("all", "accepted"):
        kept = accepted(pairs) if METHODS[method].sft_on == "accepted" else pairs
        rows = [(prompt_messages(pair), pair.response_revised, 1.0) for pair in kept]
    else:
        both = [
            (prompt_messages(pair), [(pair.response_revised, revised), (pair.response, original)])
            for pair in pairs
            for original, revised in [pair.normalised()]
        ]
        if METHODS[method].sft_on == "best":
            rows = [(prompt, max(answers, key=lambda answer: answer[1])[0], 1.0) for prompt, answers in both]
        single = [(prompt, answer, score) for prompt, answers in both for answer, score in answers]
        if METHODS[method].sft_on == "weighted" and single:
            weights, effective = reward_weights([score for *_, score in single], settings.rwr_temperature)
            print(f"{method}: {len(single)} answers weigh as much as {effective:.0f} equal ones", flush=True)
            rows = [(prompt, answer, weight) for (prompt, answer, _), weight in zip(single, weights)]
        if METHODS[method].sft_on == "conditioned":
            rows = [(conditioned(prompt, score), answer, 1.0) for prompt, answer, score in single]
    if not rows:
        raise ValueError(f"{method}: no revision scored higher than its original, so there is nothing to train on")
    return rows


def reward_weights(scores: Sequence[float], temperature: float) -> tuple[list[float], float]:
    """(exp(score / T), with mean 1 over all scores; effective sample size, (sum w)^2 / sum w^2). T to infinity weighs all
    alike, T to 0 the best ones alone. Raises ValueError unless T > 0."""
    if not temperature > 0:
        raise ValueError(f"rwr_temperature must be positive, not {temperature}")
    best = max(scores)
    weights = torch.tensor([(score - best) / temperature for score in scores], dtype=torch.float64).exp()
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return (weights / weights.mean()).tolist(), effective


def supervised_trainer(
    method: str, model, tokenizer, pairs: Sequence[ScoredPair], settings: TrainSettings, arguments: dict[str, Any]
) -> tuple[SFTTrainer, int]:
    """(trainer ready to train, number of answers it uses: those whose prompt leaves room for an answer)."""
    answers = answers_to_learn(method, pairs, settings)
    check_prompt_is_prefix(tokenizer, *answers[0][:2], f"the first answer of {method}")
    weights = [weight for *_, weight in answers]
    rows = [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}
        | ({"weight": weight} if set(weights) != {1.0} else {})
        for prompt, answer, weight in answers
    ]
    trainer = CompletionTrainer(
        model,
        SFTConfig(learning_rate=settings.sft_learning_rate, **arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_settings(settings.lora_rank),
    )
    adapters_to_float32(trainer.model)
    trainer.add_callback(StopWhenNotFinite())
    return trainer, len(trainer.train_dataset)  # without those whose prompt alone fills max_length


class CompletionTrainer(SFTTrainer):
    """TRL's loss without padding, with the head on completions only, and a weight for each answer where the data have
    one: minus the sum of weighted log-probabilities over the number of completion tokens. TRL's entropy and token
    accuracy are left out."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if "weight" in self.train_dataset.column_names:
            self.data_collator = _with_weights(self.data_collator)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "weight"]))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        scored = (inputs["labels"] != -100).sum(dim=1)  # prompt and completion: the end of every row
        lengths = inputs["attention_mask"].sum(dim=1)
        rows = zip(inputs["input_ids"].tolist(), lengths.tolist(), (lengths - scored).tolist())
        with self.accelerator.autocast():
            logps = grouped_logprobs(model, [[(ids[:length], start)] for ids, length, start in rows])  # (answers,)
        if "weight" in inputs:
            logps = logps * inputs["weight"]
        return -logps.sum() / (scored.sum() if num_items_in_batch is None else num_items_in_batch)


def _with_weights(collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]):
    def collated(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        bare = [{name: value for name, value in example.items() if name != "weight"} for example in examples]
        return collate(bare) | {"weight": torch.tensor([example["weight"] for example in examples])}

    return collated
