"""Rows that learn the likelihood of answers, with or without their scores: SFT, dSC, FA, RWR and CA.

SFT learns all revisions, dSC (arXiv 2312.01957) those that scored strictly higher. The others are offline alignment of
single scored answers (arXiv 2308.12050), to which both answers of a pair are rows, an answer that several pairs give to
one prompt a single one:
FA (filtering): the best answer of each prompt, the first on a tie; where the original scored higher it learns the
original, and dSC drops the pair.
RWR (reward-weighted regression): all answers, weighted by exp(score / T); the form is the classical one, mean 1 over
the data, and T = .25 on scores in [0, 1] is ours.
CA (conditional): all answers, each with its score written behind the request (`common.data.conditioned`).
FIGA (arXiv 2311.04072) learns the edits of all revisions alone and unlearns what they replaced (`figa_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from common.chat.local import stops_of
from common.data.conditioned import conditioned
from common.data.preference import accepted, prompt_messages
from common.logprobs.compute import grouped_logprobs, token_logprobs
from common.logprobs.edits import changed
from common.methods import METHODS, TrainSettings
from common.schema import Message, ScoredAnswer, ScoredPair
from common.student.adapters import adapters_to_float32, lora_settings
from common.student.dequantised import dequantised
from common.student.load import check_prompt_is_prefix
from common.trainer.finite import StopWhenNotFinite

BESIDE = ("weight", "replaced")
"""Columns that the loss reads: what an answer weighs, and the tokens of the answer that it took the place of."""
UNLEARN, STILL_LIKELY = 0.5, 0.6
"""FIGA's: how much a token edited away counts, and the nats above which it is unlikely enough."""
Answers = list[tuple[list[Message], str, float]]
"""Prompt, answer, and what it weighs."""


def answers_to_learn(
    method: str, given: Sequence[ScoredPair] | Sequence[ScoredAnswer], settings: TrainSettings
) -> Answers:
    """What a supervised row learns of scored pairs, or of single answers where it takes them. Raises ValueError where
    that is nothing, and for FA of single answers where no prompt has two."""
    rows: Answers = []
    if METHODS[method].sft_on in ("all", "accepted", "edits"):
        kept = accepted(given) if METHODS[method].sft_on == "accepted" else given
        rows = [
            (prompt_messages(row), row.answer if isinstance(row, ScoredAnswer) else row.response_revised, 1.0)
            for row in kept
        ]
    else:
        single = single_answers(given)
        if METHODS[method].sft_on == "best":
            by_prompt: dict[str, Answers] = {}
            for one in single:
                by_prompt.setdefault(repr(one[0]), []).append(one)
            if single and len(by_prompt) == len(single):
                raise ValueError(
                    f"{method} learns the best answer of each prompt, and no prompt has two; take sft, rwr or ca"
                )
            best = (max(answers, key=lambda answer: answer[2]) for answers in by_prompt.values())
            rows = [(prompt, answer, 1.0) for prompt, answer, _ in best]
        if METHODS[method].sft_on == "weighted" and single:
            weights, effective = reward_weights([score for *_, score in single], settings.rwr_temperature)
            print(f"{method}: {len(single)} answers weigh as much as {effective:.0f} equal ones", flush=True)
            rows = [(prompt, answer, weight) for (prompt, answer, _), weight in zip(single, weights)]
        if METHODS[method].sft_on == "conditioned":
            rows = [(conditioned(prompt, score), answer, 1.0) for prompt, answer, score in single]
    if not rows:
        why = "no revision scored higher than its original" if given else "no pair has both scores"
        raise ValueError(f"{method}: {why}, so there is nothing to train on")
    return rows


def single_answers(given: Sequence[ScoredPair] | Sequence[ScoredAnswer]) -> Answers:
    """(prompt, answer, score in [0, 1]) of every answer, of a pair the revision first. An answer that an earlier pair
    gave to the same prompt counts once, with the score that it had there."""
    rows: Answers = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(given):
        prompt = prompt_messages(row)
        if isinstance(row, ScoredAnswer):
            answers = [(row.answer, row.normalised())]
        else:
            original, revised = row.normalised()
            answers = [(row.response_revised, revised), (row.response, original)]
        rows += [
            (prompt, text, score) for text, score in answers if seen.setdefault((repr(prompt), text), number) == number
        ]
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
    method: str,
    model,
    tokenizer,
    pairs: Sequence[ScoredPair] | Sequence[ScoredAnswer],
    settings: TrainSettings,
    arguments: dict[str, Any],
) -> tuple[SFTTrainer, int]:
    """(trainer ready to train, number of answers it uses: those whose prompt leaves room for an answer)."""
    answers = answers_to_learn(method, pairs, settings)
    check_prompt_is_prefix(tokenizer, *answers[0][:2], f"the first answer of {method}")
    weights = [weight for *_, weight in answers]
    rows = [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]} for prompt, answer, _ in answers
    ]
    if set(weights) != {1.0}:
        rows = [row | {"weight": weight} for row, weight in zip(rows, weights)]
    if edits := METHODS[method].sft_on == "edits":
        replaced = [_answer_ids(tokenizer, prompt_messages(pair), pair.response, settings.max_length) for pair in pairs]
        rows = [row | {"replaced": ids} for row, ids in zip(rows, replaced, strict=True)]
    trainer = (EditTrainer if edits else CompletionTrainer)(
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
        if beside := [name for name in BESIDE if name in self.train_dataset.column_names]:
            self.data_collator = _carried(self.data_collator, beside)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *BESIDE]))

    def train(self, *args, **kwargs):
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        with nullcontext() if sharded else dequantised(self.model, training=True):
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        scored = (inputs["labels"] != -100).sum(dim=1)  # prompt and completion: the end of every row
        lengths = inputs["attention_mask"].sum(dim=1)
        rows = zip(inputs["input_ids"].tolist(), lengths.tolist(), (lengths - scored).tolist())
        with self.accelerator.autocast():
            logps = grouped_logprobs(model, [[(ids[:length], start)] for ids, length, start in rows])  # (answers,)
        if "weight" in inputs:
            logps = logps * inputs["weight"]
        if num_items_in_batch is None:
            return -logps.sum() / scored.sum()
        # tokens of all processes, whose gradients are averaged
        shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return -logps.sum() / num_items_in_batch * shares


def figa_loss(logps: Tensor, learnt: Tensor, unlearnt: Tensor) -> Tensor:
    """FIGA's loss (RUCAIBox/FIGA, train.py): the negative log-likelihood of the tokens that were edited in, less half of
    that of the tokens edited away which are still likely (`STILL_LIKELY`), over the number of tokens that count.

    Args:
        logps: (tokens,) log-probabilities, nats. learnt, unlearnt: (tokens,) bool, which were edited in and away.
    """
    nll = -logps
    unlearnt = unlearnt & (nll.detach() <= STILL_LIKELY)
    return (nll[learnt].sum() - UNLEARN * nll[unlearnt].sum()) / (learnt.sum() + unlearnt.sum()).clamp(min=1)


class EditTrainer(CompletionTrainer):
    """`figa_loss` of the batch, or the mean of those of its parts: which tokens count is known only once they are
    computed. The token that ends a revision is always learnt, where it is not cut off."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        groups, learnt, unlearnt = [], [], []
        stops = stops_of(self.model, self.processing_class)  # a template may write something behind the end
        rows = zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"].sum(dim=1), inputs["replaced"])
        for ids, labels, length, replaced in rows:
            start = int(length - (labels != -100).sum())
            prompt, revised = ids[:start].tolist(), ids[start:length].tolist()
            away, new = changed(replaced, revised)
            groups.append([(prompt + revised, start), (prompt + replaced, start)])
            end = max((i for i, token in enumerate(revised) if token in stops), default=None)
            learnt += [*(edited or i == end for i, edited in enumerate(new)), *(False for _ in away)]
            unlearnt += [*(False for _ in new), *away]
        with self.accelerator.autocast():
            logps, _ = token_logprobs(model, groups)
        device = logps.device
        return figa_loss(logps, torch.tensor(learnt, device=device), torch.tensor(unlearnt, device=device))


def _answer_ids(tokenizer, prompt: list[Message], answer: str, max_length: int) -> list[int]:
    """Tokens of an answer as the chat template writes it, cut where prompt and answer have `max_length`."""
    encode = lambda turns, **how: tokenizer.apply_chat_template(turns, return_dict=True, **how)["input_ids"]  # noqa: E731
    asked = encode(prompt, add_generation_prompt=True)
    return encode([*prompt, {"role": "assistant", "content": answer}])[len(asked) : max(max_length, len(asked) + 1)]


def _carried(collate: Callable[[list[dict[str, Any]]], dict[str, Any]], names: Sequence[str]):
    """The collator, with columns of numbers or token ids beside what it makes."""

    def collated(examples: list[dict[str, Any]]) -> dict[str, Any]:
        bare = [{name: value for name, value in example.items() if name not in names} for example in examples]
        beside = {name: [example[name] for example in examples] for name in names}
        return collate(bare) | {
            name: torch.tensor(values) if name == "weight" else values for name, values in beside.items()
        }

    return collated
