"""Refined DPO (rDPO) as a small subclass of TRL's `DPOTrainer`: the same trainer, with scores in the loss.

Takes any preference dataset in TRL's format, with `score_chosen` and `score_rejected` where the method reads them, and
a `weight` that multiplies the loss of its pair, where there is one (weighted DPO), and with `optimism` a third answer,
`explored`, in the loss; everything else (arguments, chat templates, PEFT, reference model, checkpoints) is TRL's. What
differs from TRL: the loss is `preference_loss`, a pair's prompt is computed once for all answers and the head on
completion positions only (`common.logprobs`), reference log-probabilities are kept on disk, and adapters stay in
float32 (TRL's bfloat16 rounds small updates away). docs/trainer.md lists what is the same, what differs and what is
refused.

Relies on names inside trl 1.16 (`_prepare_dataset`, `_compute_loss`, `compute_ref_log_probs`, `_precompute_ref_logps`,
`_metrics`, `_set_signature_columns_if_needed`, ...); tests/test_contract.py fails when they drift.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import ProcessorMixin
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference, is_peft_model, use_adapter

from common.data.preference import EXPLORED, SCORES, WEIGHT, with_normalised_scores
from common.logprobs.compute import balanced_logprobs, watched_logprobs
from common.logprobs.divergence import answer_kl
from common.logprobs.edits import changed
from common.logprobs.masks import give_attention_back, in_evaluation_mode
from common.logprobs.packing import Sequence
from common.logprobs.rows import is_sharded
from common.loss import LIKELIHOOD, LOOKS_AT, optimism_term, weighted_loss, weighted_references
from common.student.adapters import adapters_to_float32
from common.student.dequantised import dequantised
from common.student.load import forbid_cpu_repacking, learned_positions
from common.trainer.collator import (
    EXPLORED_IDS,
    EXPLORED_REFERENCE,
    REFERENCE,
    SECOND,
    TEXT_ONLY,
    ScoreCollator,
    groups_of,
    sides_there,
)
from common.trainer.config import RDPOConfig, card_of
from common.trainer.finite import StopWhenNotFinite, not_finite
from common.trainer.kl import ANSWERS, KLMeter
from common.trainer.logged import Side, of_answers, of_words
from common.trainer.prepare import (
    check_answers,
    check_begins_at_base,
    check_models,
    check_sharding,
    check_switched_off,
    checked,
    columns_of,
    complete_reference_copy,
    explored_ids,
    last_whole_checkpoint,
    settled,
    trainable,
)
from common.trainer.reference import with_reference


class RDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with the losses of `common.loss`; takes the same arguments, with an `RDPOConfig`.

    Without `args` the method is `rdpo`, or `dpo` where the dataset has no scores. The reference is TRL's: `ref_model`,
    else the model with a new adapter off, the adapter that a ready PeftModel began with, or the model before training.
    `second_reference` is another model with the same tokenizer, for `args.references` other than "own".
    Pairs without a score are left out for every method alike; so the rows of a table differ by their method and not by
    their data. What `evaluate` is given is treated as the training data are.

    Attributes:
        pairs_used: pairs that are trained on; None for a stream.
        unscored: training pairs left out because a score is missing.
        left_out: of every table, pairs left out by reason: `unscored`, `prompt fills max_length`.

    Raises:
        ValueError: a score outside `args.score_range` or no number, no scores for a method that needs them, a
            conversation whose prompt tokens are no prefix of prompt and completion (TRL would cut the prompt where they
            part), a missing column or text, an empty completion, more tokens than a model has positions, images, an
            adapter's folder as the model, or a loss or gradient that is not finite.
        TypeError: a model, `args` or a dataset of another kind.
    """

    _is_reference = False

    def __init__(
        self, model, ref_model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, processing_class=None,
        compute_metrics=None, callbacks=None, optimizers=(None, None), quantization_config=None, peft_config=None,
        *, second_reference=None,
    ):  # fmt: skip
        if isinstance(ref_model, RDPOConfig):
            warnings.warn(
                "RDPOTrainer takes its arguments in TRL's order now: model, ref_model, args, ...; name them",
                FutureWarning,
                stacklevel=2,
            )
            if args is not None:  # was: model, args, train_dataset, eval_dataset, processing_class
                processing_class = processing_class if train_dataset is None else train_dataset
                train_dataset, eval_dataset = args, eval_dataset if data_collator is None else data_collator
            ref_model, args, data_collator = None, ref_model, None
        check_models(model, ref_model)
        args = settled(args, model, train_dataset, eval_dataset)
        if isinstance(processing_class, ProcessorMixin):
            raise ValueError(TEXT_ONLY)
        begun = (
            trainable(model, ref_model)
            if peft_config is None and not isinstance(model, str) and is_peft_model(model)
            else []
        )
        if (args.references == "own") != (second_reference is None):
            raise ValueError(
                f"references={args.references!r} with {'no ' if second_reference is None else 'a '}second_reference: "
                "give that model to the trainer, and references='combined', 'second' or 'both'"
            )
        if WEIGHT in columns_of(train_dataset):
            warnings.warn(
                "the column weight says how often the loss of each pair counts; rename it, or it will", stacklevel=2
            )
        self.second_reference = second_reference
        self.left_out: dict[str, dict[str, int]] = {}
        self._tag_names, self._name, self._paper = card_of(args)
        self._begun, self._reference_checked = begun, False
        super().__init__(
            model=model, ref_model=ref_model, args=args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, compute_metrics=compute_metrics, callbacks=callbacks, optimizers=optimizers,
            quantization_config=quantization_config, peft_config=peft_config,
        )  # fmt: skip
        if self._is_vlm:
            raise ValueError(TEXT_ONLY)
        self._collate_scores()
        self._check_reference()
        for parameter, values in begun:
            parameter.data = values.to(parameter.device)  # as they were before TRL rounded them
        self._begun = []
        if is_peft_model(self.model):
            adapters_to_float32(
                self.model, modules=args.bf16 or args.fp16 or getattr(self.model, "is_quantized", False)
            )
        self._forbid_cpu_repacking()
        self.add_callback(StopWhenNotFinite())
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if not sharded and (self.ref_model is not None or is_peft_model(self.model)):
            self.add_callback(KLMeter(self, args.kl_budget))
        elif args.kl_budget:
            raise ValueError(
                "kl_budget needs a reference beside the policy: an adapter or ref_model, on a model that is not sharded; leave it 0"
            )
        if self.aux_loss_enabled and (args.unchanged_weight != 1 or args.optimism):
            given = "optimism" if args.optimism else "unchanged_weight"
            raise ValueError(
                f"{given} and the balance loss of a mixture of experts do not go together; set router_aux_loss_coef=0"
            )
        if self.aux_loss_enabled and args.packed:
            warnings.warn(
                f"{type(model).__name__} is computed in padded rows, one per completion: its load-balancing loss counts the tokens of all rows; "
                "router_aux_loss_coef=0 leaves it out and packs", stacklevel=2,
            )  # fmt: skip

    @property
    def pairs_used(self) -> int | None:
        return len(self.train_dataset) if isinstance(self.train_dataset, Dataset) else None

    @property
    def unscored(self) -> int:
        return self.left_out.get("train", {}).get("unscored", 0)

    def _collate_scores(self) -> None:
        if isinstance(self.data_collator, ScoreCollator):
            return
        trls = type(self.data_collator) is DataCollatorForPreference
        options = (
            asdict(self.data_collator)
            if trls
            else {"pad_token_id": self._tokenizer.pad_token_id, "inner": self.data_collator}
        )
        self.data_collator = ScoreCollator(**options)

    def _forbid_cpu_repacking(self) -> None:
        for model in filter(None, (self.model, self.ref_model, self.second_reference)):
            forbid_cpu_repacking(model)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if isinstance(processing_class, ProcessorMixin):  # loaded by TRL
            raise ValueError(TEXT_ONLY)
        if not isinstance(dataset, Dataset | IterableDataset):
            kind = type(dataset).__name__
            raise TypeError(
                f"the {dataset_name} dataset must be a Dataset or an IterableDataset, not {kind}; Dataset.from_list(rows) makes one"
            )
        check_answers(dataset, dataset_name)
        reads = args.needs_scores or callable(args.method) and set(SCORES) <= columns_of(dataset)
        scored = with_normalised_scores(dataset, args.score_range, reads, dataset_name)
        if args.optimism and EXPLORED not in columns_of(scored):
            raise ValueError(
                f"optimism={args.optimism:g} needs the column {EXPLORED}, the student's own answers (in the {dataset_name} dataset); set it 0 without them"
            )
        stale = [name for name in (*REFERENCE, *SECOND, EXPLORED_IDS, EXPLORED_REFERENCE) if name in columns_of(scored)]
        prepared = super()._prepare_dataset(scored.remove_columns(stale), processing_class, args, dataset_name)
        if next(iter(prepared), None) is None:
            raise ValueError(f"every prompt of the {dataset_name} dataset fills max_length={args.max_length}; raise it")
        named = {"tokenizer": processing_class, "name": dataset_name}
        if args.optimism:
            prepared = prepared.map(explored_ids, with_indices=True, fn_kwargs=named)
        if isinstance(prepared, IterableDataset):
            return prepared.map(checked, with_indices=True, fn_kwargs=named)
        for number, row in enumerate(prepared):
            checked(row, number, processing_class, dataset_name)
        counts = {"unscored": len(dataset) - len(scored), "prompt fills max_length": len(scored) - len(prepared)}
        self.left_out.setdefault(dataset_name, counts)
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        own = (*SCORES, *SECOND, EXPLORED_IDS, EXPLORED_REFERENCE, WEIGHT, "length")
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *own]))

    def _check_reference(self) -> None:
        """Once, before the reference is asked: the policy's adapters are all that will move, and a copy of them is
        whole."""
        if not self._reference_checked and self.ref_model is None and is_peft_model(self.model):
            check_switched_off(self.model)
            if "ref" not in self.model.peft_config:
                check_begins_at_base(self.model)
            else:
                complete_reference_copy(self.model, self._begun)
        self._reference_checked = True

    def _precompute_ref_logps(self, dataset, name: str, batch_size: int):
        """The dataset with the columns of `with_reference`.

        A stream is left as it is, for `_compute_loss`, where the reference outlives the training; else TRL refuses it.
        So is what a model to be sharded is the reference of, for `_prepare_for_training`.
        """
        self._check_reference()
        adapters_off = self.ref_model is None and is_peft_model(self.model)
        if isinstance(dataset, IterableDataset) and (self.ref_model is not None or adapters_off):
            return dataset
        if isinstance(dataset, IterableDataset) or self.is_deepspeed_enabled:
            return super()._precompute_ref_logps(dataset, name, batch_size)  # parts of the model live elsewhere
        if self.is_fsdp_enabled and adapters_off and not is_sharded(self.model):
            return dataset
        return with_reference(self, dataset, name)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """TRL's; a reference that is the sharded model itself is computed when it is sharded."""
        model, loader = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        stream = isinstance(self.train_dataset, IterableDataset)
        if (
            self.is_fsdp_enabled
            and self.precompute_ref_logps
            and not (stream or REFERENCE[0] in self.train_dataset.column_names)
        ):
            model.eval()
            with torch.no_grad():  # FSDP takes for trained what is so at the first forward, and adapters are off below
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.accelerator.device))
            compute = partial(self._precompute_ref_logps, batch_size=1)
            self.train_dataset = compute(self.train_dataset, "train")
            if isinstance(self.eval_dataset, dict):
                self.eval_dataset = {name: compute(data, name) for name, data in self.eval_dataset.items()}
            elif self.eval_dataset is not None:
                self.eval_dataset = compute(self.eval_dataset, "eval")
            loader = self.get_train_dataloader()
        return model, loader

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            check_sharding(self.accelerator, self.model)

    def _counted_tokens(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(batch,), (batch,): tokens of chosen and rejected, each as often as it counts."""
        if self.args.unchanged_weight == 1:
            return inputs["completion_mask"].sum(dim=1).chunk(2)
        weights = self._weights(self._groups_that_fit(inputs))
        counted = torch.tensor([[sum(side) for side in pair] for pair in weights], device=inputs["input_ids"].device)
        return counted.clamp(min=torch.finfo(counted.dtype).tiny).unbind(1)

    def _reference_key(self, groups: list[list[Sequence]]) -> list[Any]:
        """What decides a pair's reference numbers, for the cache."""
        return [groups] if self.args.unchanged_weight == 1 else [groups, self._weights(groups)]

    def _weights(self, groups: list[list[Sequence]]) -> list[list[list[float]]] | None:
        """How often each completion token counts, by pair and side; None where all count once."""
        if self.args.unchanged_weight == 1:
            return None
        answers = [[ids[start:] for ids, start in group] for group in groups]
        marks = [changed(rejected, chosen)[::-1] for chosen, rejected in answers]
        return [[[1.0 if new else self.args.unchanged_weight for new in side] for side in pair] for pair in marks]

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Reference log-probabilities (batch,), (batch,) of chosen and rejected: `ref_model`, the adapter that training
        began with, or adapters off.

        Raises ValueError where the reference is the model before training, and training has begun.
        """
        return self._reference_logps(model, inputs)[:2]

    def _reference_logps(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        reference = self.ref_model or model
        with torch.no_grad(), self._as_reference(), in_evaluation_mode(reference):
            return self._logps(reference, inputs)

    def reward_gaps(self) -> Tensor:
        """Implicit reward of chosen minus rejected, beta * D, of every training pair under the policy as it is now:
        (pairs,), float32. Of a map-style dataset with precomputed reference log-probabilities."""
        rows, size, found = self.train_dataset, self.args.per_device_train_batch_size, []
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self._attention_given_back():
            for start in range(0, len(rows), size):
                batch = self._prepare_inputs(
                    self.data_collator([rows[i] for i in range(start, min(start + size, len(rows)))])
                )
                policy, reference = self._logps(self.model, batch)[:2], [batch[name] for name in REFERENCE]
                gaps = [chosen - rejected for chosen, rejected in (policy, reference)]
                found.append(self.args.beta * (gaps[0] - gaps[1]))
        self.model.train(was_training)
        return torch.cat(found)

    def _second_logps(self, inputs: dict[str, Tensor]) -> Tensor:
        """(2, batch) log-probabilities of chosen and rejected under the second reference."""
        if SECOND[0] in inputs:
            return torch.stack([inputs[name] for name in SECOND])
        with torch.no_grad(), in_evaluation_mode(self.second_reference):
            return torch.stack(self._logps(self.second_reference, inputs))

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        """The model's adapters as the reference has them; within itself without effect, since PEFT looks at every layer
        to switch them."""
        if self._is_reference or self.ref_model is not None:
            yield
        elif is_peft_model(self.model):
            peft_model = self.accelerator.unwrap_model(self.model)
            are_trained = [(parameter, parameter.requires_grad) for parameter in peft_model.parameters()]
            try:
                with use_adapter(peft_model, adapter_name="ref" if "ref" in peft_model.peft_config else None):
                    self._is_reference = True
                    yield
            finally:
                self._is_reference = False
                for parameter, is_trained in are_trained:  # PEFT trains the whole adapter that it switches on again
                    parameter.requires_grad_(is_trained)
        elif self.state.global_step:
            raise ValueError(
                "the reference is the model before training, which is not kept; give ref_model, or these data as eval_dataset"
            )
        else:
            yield

    def _logps(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """(batch,) of chosen, of rejected and, where the batch has them, of explored completions."""
        return self._watched_logps(model, inputs, watch=False)[0]

    def _watched_logps(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], computed: Tensor | None = None, watch: bool = True
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """As `_logps`, and sums of `head.watched` over the tokens of chosen and rejected ones, (batch, 2, 4); 0 where
        `computed` (batch, 2) says that nobody looks, and where nothing was explored."""
        groups = self._groups_that_fit(inputs)
        computed = sides_there(inputs, computed)
        weights = self._weights(groups)
        if computed is not None:
            kept = lambda pairs: [
                [one for one, side in zip(pair, row) if side] for pair, row in zip(pairs, computed.tolist())
            ]  # noqa: E731
            groups, weights = kept(groups), weights and kept(weights)
        tokens = weights and torch.tensor([weight for pair in weights for side in pair for weight in side])
        with self.accelerator.autocast():
            found = watched_logprobs(
                model, [group for group in groups if group], packed=self.args.packed, weights=tokens, watch=watch
            )
        if computed is not None:
            found = tuple(_in_place(values, computed) for values in found)
        logps, seen = (values.unflatten(0, (-1, 2 if computed is None else computed.size(1))) for values in found)
        return logps.unbind(1), seen[:, :2]

    def _computed(self, score_gap: Tensor | None) -> Tensor | None:
        """(batch, 2): whether training looks at a chosen and a rejected completion; None where it looks at all. One
        pair is computed even where no pair counts, so that there is a gradient, of zeros."""
        args = self.args
        if callable(args.method) or args.method not in LOOKS_AT or not self.model.training:
            return None
        preferred = LOOKS_AT[args.method](score_gap, **args.knobs)
        computed = torch.stack((preferred, preferred), dim=1)
        if args.nll_weight:
            computed |= torch.stack(LIKELIHOOD[args.nll_on](score_gap), dim=1).bool()
        if not computed.any():
            computed[0] = True
        return computed

    def _groups_that_fit(self, inputs: dict[str, Tensor]) -> list[list[Sequence]]:
        groups = groups_of(inputs)
        longest = max(len(ids) for group in groups for ids, _ in group)
        if self._positions and longest > self._positions:
            raise ValueError(
                f"a prompt with its answer has {longest} tokens, and the model has {self._positions} positions; set max_length={self._positions}"
            )
        return groups

    @cached_property
    def _positions(self) -> int | None:
        return learned_positions(self.model)

    def _compute_loss(self, model, inputs: dict[str, Tensor], return_outputs: bool):
        args, metrics = self.args, self._metrics["train" if self.model.training else "eval"]
        score_chosen, score_rejected = (inputs.get(name) for name in SCORES)
        score_gap = None if score_chosen is None else score_chosen - score_rejected
        computed = None if self.aux_loss_enabled else self._computed(score_gap)
        if self.aux_loss_enabled:
            with self.accelerator.autocast():
                logps, seen, balance = balanced_logprobs(model, self._groups_that_fit(inputs))
            policy, seen = logps.unflatten(0, (-1, 2)).unbind(1), seen.unflatten(0, (-1, 2))
        else:
            policy, seen = self._watched_logps(model, inputs, computed)
        columns = (*REFERENCE, EXPLORED_REFERENCE)[: len(policy)]
        if self.precompute_ref_logps and set(columns) <= set(inputs):
            reference = tuple(inputs[name] for name in columns)
        else:
            reference = self._reference_logps(model, inputs)
        own = torch.stack(reference[:2])
        second = own if args.references == "own" else self._second_logps(inputs)
        references = weighted_references(args.references, own, second, args.mrpo_weight, args.mrpo_eta)
        losses, *rewards = weighted_loss(
            args.method,
            policy[:2],
            references,
            score_chosen,
            score_rejected,
            beta=args.beta,
            **args.knobs,
        )
        lengths = self._counted_tokens(inputs)
        if args.nll_weight:
            counts = LIKELIHOOD[args.nll_on](torch.zeros_like(losses) if score_gap is None else score_gap)
            for counted, logps, length in zip(counts, policy, lengths):  # (batch,) each
                losses = losses - args.nll_weight * counted * logps / length
        if len(policy) > 2:
            losses = losses + optimism_term(policy[2], reference[2], beta=args.beta, optimism=args.optimism)
            rewards.append((args.beta * (policy[2] - reference[2])).detach())
            lengths = (*lengths, inputs["explored_completion_mask"].sum(dim=1))
        if WEIGHT in inputs:
            losses = losses * inputs[WEIGHT]
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * balance
            metrics["aux_loss"].append(self.accelerator.gather_for_metrics(balance.detach()).mean().item())
        if self.model.training and not loss.isfinite():
            raise ValueError(not_finite(f"loss of step {self.state.global_step + 1}", args))
        sides = [
            (reward, logps.detach(), (logps.detach() - of_reference) / length)
            for reward, logps, of_reference, length in zip(rewards, policy, reference, lengths)
        ]
        if (looked_at := sides_there(inputs, computed)) is not None:
            sides = [
                tuple(torch.where(side, value, torch.nan) for value in values)
                for side, values in zip(looked_at.unbind(1), sides)
            ]
        self._log_batch(inputs, sides, seen.sum(dim=0))
        if not return_outputs:
            return loss
        with torch.no_grad():  # logits of all positions and words, which the loss never makes
            return loss, model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)

    def _log_batch(self, inputs: dict[str, Tensor], sides: list[Side], seen: Tensor) -> None:
        """Means over the completions that were computed, the others being NaN, and over their tokens."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        gather = self.accelerator.gather
        means = {name: gather(value).nanmean().item() for name, value in of_answers(sides).items()}
        means |= of_words(gather(seen.unsqueeze(0)).sum(dim=0))
        for name, mean in means.items():
            if not math.isnan(mean):
                metrics[name].append(mean)
        if self.model.training:
            self._latest = inputs
            self._total_train_tokens += (
                self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item() // self._tp_size
            )
        metrics["num_tokens"] = [self._total_train_tokens]

    def chosen_kl(self) -> float:
        """`divergence.answer_kl` of the first chosen answers of the step's last batch, between policy and reference."""
        sequences, was_training = (
            [group[0] for group in self._groups_that_fit(self._latest)][:ANSWERS],
            self.model.training,
        )
        self.model.eval()  # no dropout, which would draw random numbers
        try:
            with self.accelerator.autocast():
                kl = answer_kl(self.model, sequences, self._reference_model)
        finally:
            self.model.train(was_training)
        return self.accelerator.gather(torch.tensor([kl], device=self.accelerator.device)).mean().item()

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[torch.nn.Module]:
        with self._as_reference():
            yield self.ref_model or self.model

    @contextlib.contextmanager
    def _attention_given_back(self) -> Iterator[None]:
        try:
            yield
        finally:
            for model in filter(None, (self.model, self.ref_model, self.second_reference)):
                give_attention_back(model)

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """TRL's; `resume_from_checkpoint=True` passes over a checkpoint that was being written when a training was
        killed."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        with (
            self._attention_given_back(),
            contextlib.nullcontext() if sharded else dequantised(self.model, training=True),
        ):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        with self._attention_given_back():
            return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """TRL's; the state of an older checkpoint in its place goes first, so that one with a state is whole."""
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            (folder / "trainer_state.json").unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        """TRL's; every process has written before one of them writes the trainer's state, which comes last."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, *args, **kwargs):
        """TRL's, which pickles the settings: a method that cannot be pickled (a lambda, a local function) goes by its
        name."""
        method = self.args.method
        try:
            pickle.dumps(method)
        except Exception:
            self.args.method = self.args.method_name
        try:
            return super()._save(*args, **kwargs)
        finally:
            self.args.method = method


def _in_place(values: Tensor, computed: Tensor) -> Tensor:
    """Values of the completions that were computed, among 0 for the others."""
    mask = computed.view(-1, *[1] * (values.dim() - 1))
    return values.new_zeros(computed.numel(), *values.shape[1:]).masked_scatter(mask, values)
