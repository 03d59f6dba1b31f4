"""Refined DPO (rDPO) as a small subclass of TRL's `DPOTrainer`: the same trainer, with scores in the loss.

Works with any preference dataset in TRL's format that has `score_chosen` and `score_rejected`; everything else (chat
templates, PEFT, adapters-off reference, checkpoints) is TRL's. What differs from TRL: the loss is `preference_loss`, a
pair's prompt is computed once for both answers and the head on completion positions only (`common.logprobs`), reference
log-probabilities are kept on disk, LoRA weights stay in float32 (TRL's bfloat16 rounds small updates away), and the metrics
are those that the notebooks plot.

Relies on names inside trl 1.16 (`_prepare_dataset`, `_compute_loss`, `compute_ref_log_probs`, `_precompute_ref_logps`,
`_metrics`, `_set_signature_columns_if_needed`); tests/test_contract.py fails when they drift.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import DPOConfig, DPOTrainer, is_conversational
from trl.trainer.dpo_trainer import DataCollatorForPreference, is_peft_model, use_adapter

from common.logprobs import grouped_logprobs
from common.loss import check_method, knobs_of, preference_loss, uses_scores
from common.packing import Sequence
from common.preference import SCORES, with_normalised_scores
from common.reference import ReferenceCache, reference_identity
from common.run import Progress
from common.schema import fingerprint
from common.student import adapters_to_float32, check_prompt_is_prefix, forbid_cpu_repacking

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
IGNORED_OPTIONS = ("loss_type", "loss_weights", "use_weighting", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "discopop_tau", "sync_ref_model")


@dataclass
class RDPOConfig(DPOConfig):
    """TRL's `DPOConfig` with the settings of refined DPO.

    Args:
        method: a name in `common.loss.LOSSES`, or a callable (see `preference_loss`).
        alpha: score offset of `rdpo`; ours.
        eta: score temperature of `rdpo_soft` and `rdpo_squared`; ours.
        nll_weight: weight of the negative log-likelihood of the chosen completion, averaged over its tokens. 0 is none.
        nll_on: "all" pairs, or "accepted" ones (score_chosen > score_rejected, which is dSC's filter).
        score_range: lowest and highest possible score; scores are normalised by it and may not lie outside.
        packed: False computes two padded rows a pair, prompt and all, as TRL does; the numbers are the same.
        reference_cache: folder of reference log-probabilities, shared by whoever names it; None keeps them in
            `<output_dir>/reference`.

    `precompute_ref_log_probs` is on by default: the reference is computed once and kept, see `reference_cache`.
    `label_smoothing` (cdpo, robust) is inherited. Options of `DPOConfig` that only TRL's own loss would read raise.
    """

    method: Any = "rdpo"
    alpha: float = 1.0
    eta: float = 1.0
    nll_weight: float = 0.0
    nll_on: str = "all"
    score_range: tuple[float, float] = (0.0, 1.0)
    packed: bool = True
    reference_cache: str | None = None
    precompute_ref_log_probs: bool = field(default=True, metadata={"help": "Compute reference log-probabilities once, before training."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Rate of flipped labels that `cdpo` and `robust` assume."})

    def __post_init__(self):
        if not callable(self.method):
            check_method(self.method)
        if self.nll_on not in ("all", "accepted"):
            raise ValueError(f"nll_on is 'all' or 'accepted', not {self.nll_on!r}")
        if self.nll_weight < 0:
            raise ValueError(f"nll_weight is a weight and cannot be negative, got {self.nll_weight}")
        low, high = self.score_range
        if not low < high:
            raise ValueError(f"score_range is (lowest, highest), got {self.score_range}")
        defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(DPOConfig) if f.name in IGNORED_OPTIONS}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value not in (default, [default]):
                raise ValueError(f"{name}={value!r} belongs to TRL's own loss and would have no effect here; choose the loss with method=")
        super().__post_init__()

    @property
    def needs_scores(self) -> bool:
        return not callable(self.method) and uses_scores(self.method) or self.nll_weight > 0 and self.nll_on == "accepted"


@dataclass
class ScoreCollator(DataCollatorForPreference):
    """TRL's collator, with the scores beside the tokens.

    >>> collator = ScoreCollator(pad_token_id=0)
    >>> collator([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], "score_chosen": 1.0, "score_rejected": 0.2}])
    {'input_ids': tensor([[1, 2, 3, 0],
                          [1, 2, 4, 5]]),
     ...,
     'score_chosen': tensor([1.]), 'score_rejected': tensor([0.2000])}
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        for name in SCORES:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


class RDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with the losses of `common.loss`; takes the same arguments.

    Give it a base model and `peft_config`, never a ready PeftModel: then the reference is the same weights with adapters
    off. Pairs without a score are left out for every method alike and counted in `self.unscored`; so the rows of a table
    differ by their method and not by their data.

    Raises:
        ValueError: a score outside `args.score_range`, no scores for a method that needs them, or a conversation whose
            prompt tokens are no prefix of prompt and completion (TRL would cut the prompt where they part), or an empty
            completion.
    """

    def __init__(self, model, args: RDPOConfig, train_dataset, eval_dataset=None, processing_class=None, **kwargs):
        pairs = len(train_dataset)
        train_dataset = with_normalised_scores(train_dataset, args.score_range, args.needs_scores)
        self.unscored = pairs - len(train_dataset)
        if eval_dataset is not None:
            eval_dataset = with_normalised_scores(eval_dataset, args.score_range, args.needs_scores)
        if processing_class is None:
            raise ValueError("give the tokenizer as processing_class")
        if isinstance(model, torch.nn.Module):
            forbid_cpu_repacking(model)  # the reference is computed in evaluation mode
        collator = ScoreCollator(processing_class.pad_token_id, max_length=args.max_length, truncation_mode=args.truncation_mode)
        super().__init__(
            model=model, args=args, data_collator=collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, **kwargs,
        )  # fmt: skip
        adapters_to_float32(self.model)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if len(prepared) == 0:
            raise ValueError(f"every prompt of the {dataset_name} dataset fills max_length={args.max_length}; raise it")
        for name in ("chosen", "rejected"):
            empty = [row for row, ids in enumerate(prepared[f"{name}_ids"]) if not ids]
            if empty:
                raise ValueError(f"the {name} completion of row {empty[0]} of the {dataset_name} dataset has no tokens; leave such pairs out")
        if is_conversational(prepared[0]):
            for number, (prompt, ids) in enumerate(zip(prepared["prompt"], prepared["prompt_ids"])):
                if len(ids) < len(processing_class.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]):
                    row = prepared[number]  # TRL has cut its prompt, with a warning that is easily missed
                    for side in ("chosen", "rejected"):
                        check_prompt_is_prefix(processing_class, prompt, row[side][0]["content"], f"{side} completion of pair {row.get('id', number)}")
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *SCORES, "length"]))

    def _precompute_ref_logps(self, dataset, name: str, batch_size: int):
        """The dataset with `ref_chosen_logps` and `ref_rejected_logps`, from the cache where it has them.

        A missing pair is computed alone, so that its numbers hang on nothing but the pair and the reference.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._precompute_ref_logps(dataset, name, batch_size)  # parts of the model live elsewhere
        model = self.ref_model or self.model
        how = {"packed": self.args.packed, "precision": self.accelerator.mixed_precision, "device": self.accelerator.device.type}
        cache = ReferenceCache(self.args.reference_cache or Path(self.args.output_dir, "reference"), reference_identity(model, **how))
        rows = dataset.select_columns(list(TOKENS))
        keys = [fingerprint(_groups(self.data_collator([row])), digits=32) for row in rows]
        missing = {key: number for number, key in enumerate(keys) if key not in cache.values}
        if missing:
            mine = list(missing)[self.accelerator.process_index :: self.accelerator.num_processes]
            progress, found = Progress(f"reference log-probabilities, {name}", len(mine)), {}
            for key in mine:
                batch = self._prepare_inputs(self.data_collator([rows[missing[key]]]))
                found[key] = tuple(float(logps) for logps in self.compute_ref_log_probs(model, batch))
                cache.add_now_and_then(found)
                progress(1)
            cache.add(dict(gather_object(list(found.items()))))
        chosen, rejected = zip(*(cache.values[key] for key in keys))
        return dataset.add_column("ref_chosen_logps", list(chosen)).add_column("ref_rejected_logps", list(rejected))

    def compute_ref_log_probs(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Reference log-probabilities (batch,), (batch,) of chosen and rejected: adapters off, or `ref_model`."""
        context = contextlib.nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            context = use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None)
        with torch.no_grad(), context:
            return self._logps(self.ref_model or model, inputs)

    def _logps(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():
            logps = grouped_logprobs(model, _groups(inputs), packed=self.args.packed)
        chosen_logps, rejected_logps = logps.view(-1, 2).unbind(1)
        return chosen_logps, rejected_logps

    def _compute_loss(self, model, inputs: dict[str, Tensor], return_outputs: bool):
        args = self.args
        chosen_logps, rejected_logps = self._logps(model, inputs)
        if "ref_chosen_logps" in inputs:
            reference_chosen_logps, reference_rejected_logps = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference_chosen_logps, reference_rejected_logps = self.compute_ref_log_probs(model, inputs)
        score_chosen, score_rejected = inputs.get("score_chosen"), inputs.get("score_rejected")
        knobs = {} if callable(args.method) else {name: getattr(args, name) for name in knobs_of(args.method)}
        losses, chosen_rewards, rejected_rewards = preference_loss(
            args.method, chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps,
            score_chosen, score_rejected, beta=args.beta, **knobs,
        )  # fmt: skip
        chosen_tokens = inputs["completion_mask"].chunk(2)[0].sum(dim=1)  # (batch,)
        if args.nll_weight:
            weight = torch.ones_like(losses) if args.nll_on == "all" else (score_chosen > score_rejected).float()
            losses = losses - args.nll_weight * weight * chosen_logps / chosen_tokens
        self._log_batch(chosen_rewards, rejected_rewards, chosen_logps, rejected_logps)
        loss = losses.mean()
        return (loss, {"logits": torch.stack([chosen_logps, rejected_logps], dim=1).detach()}) if return_outputs else loss

    def _log_batch(self, chosen_rewards, rejected_rewards, chosen_logps, rejected_logps) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        values = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": chosen_rewards - rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "logps/chosen": chosen_logps.detach(),
            "logps/rejected": rejected_logps.detach(),
        }
        for name, value in values.items():
            metrics[name].append(self.accelerator.gather(value).mean().item())

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss, None, None


def _groups(inputs: dict[str, Tensor]) -> list[list[Sequence]]:
    """[chosen, rejected] of every pair, as the collator truncated them."""
    ids = inputs["input_ids"].tolist()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    starts = (inputs["attention_mask"].sum(dim=1) - inputs["completion_mask"].sum(dim=1)).clamp(min=1).tolist()  # nothing predicts a first token
    sequences = [(row[:length], start) for row, length, start in zip(ids, lengths, starts)]
    pairs = len(sequences) // 2
    return [[sequences[i], sequences[pairs + i]] for i in range(pairs)]
