"""Train one method on a freshly loaded student."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.preference import accepted, as_pair, preference_dataset, trained_on
from common.evaluation.answers import TrainedStudent
from common.methods import (
    METHODS,
    TrainSettings,
    check_methods,
    check_references,
    existing,
    existing_commit,
    existing_place,
    existing_strength,
    is_trained,
    mixture_in,
)
from common.runtime import Progress, resolve
from common.schema import ScoredAnswer, ScoredPair
from common.student.adapters import adapter_asked_for, adapter_tokenizer, load_adapter, load_adapters, lora_settings
from common.student.load import learned_positions, load_as_it_is, load_student, release_memory
from common.trainer.displacement import CHOSEN, warning
from common.training.second import base_again, load_second
from common.training.self_augmented.counts import counts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


CHECKPOINT_STEPS = 100
"""Between two checkpoints of a training."""


def train(
    method: str,
    student: str | Path,
    pairs: Sequence[ScoredPair] | Sequence[ScoredAnswer],
    settings: TrainSettings,
    output: str | Path,
    start_adapter: Path | None = None,
    weights: Sequence[float] | None = None,
    resume: bool = False,
    **load: Any,
) -> TrainedStudent:
    """Trains one method on a freshly loaded base student (PEFT changes a base model in place, so none is ever shared).

    Args:
        method: a name in METHODS; the untrained ones return the base model as it is. An `adapter:` or `model:` is
            loaded.
        student: folder or Hub name; `load` goes to `load_student`, and but for the student's revision to
            `load_as_it_is`.
        pairs: scored pairs; those without both scores are left out for every method alike. Where none has both, methods
            that read no scores train on all. A method that `takes_answers` learns single answers as well.
        output: folder for the trainer's checkpoints.
        start_adapter: folder of the adapter that a preference training goes on from, whose policy is then its reference;
            None begins a new one.
        weights: how often the loss of each pair counts, for a preference loss; the student then knows its
            `reward_gaps`.
        resume: a training of more than `CHECKPOINT_STEPS` steps, from a new adapter and on given answers, goes on from
            the newest whole checkpoint in `output`, all of which must be its own; they are removed at its end.

    Raises ValueError for a student with fewer positions than `max_length`, where a loss or gradient is not finite, for a
    second reference that is missing or does not fit (`second.load_second`), and for a start adapter of another base, or
    beside another reference.
    """
    check_methods([method])
    check_references([method], settings)
    if method in METHODS and METHODS[method].extrapolates:
        raise ValueError(
            f"{method} is no training of its own: train {METHODS[method].extrapolates}, and turn its adapter up"
        )
    if method in METHODS and METHODS[method].types:
        raise ValueError(f"{method} is a training for each type of annotator: `training.annotators.run` trains them")
    if existing(method) == "model":
        own = {name: value for name, value in load.items() if name not in ("revision", "four_bit")}
        return TrainedStudent(
            method, *load_as_it_is(existing_place(method), revision=existing_commit(method) or None, **own)
        )
    if is_trained(method):
        release_memory()  # of the student before
        _set_libraries_apart()
    model, tokenizer = load_student(student, **load)
    if existing(method) == "adapter" and (mixed := mixture_in(existing_place(method))):
        model = load_adapters(model, {name: Path(existing_place(method), name) for name in mixed})
        return TrainedStudent(method, model, tokenizer, policies=mixed)
    if existing(method) == "adapter":
        model, beside = (
            load_adapter(model, existing_place(method), existing_strength(method)),
            adapter_tokenizer(model, existing_place(method), load.get("pad_token")),
        )
        tokenizer = beside or tokenizer
        return TrainedStudent(method, model, tokenizer, asked_for=adapter_asked_for(existing_place(method)))
    if not is_trained(method):
        return TrainedStudent(method, model, tokenizer)
    if (positions := learned_positions(model)) and positions < settings.max_length:
        raise ValueError(
            f"the student has {positions} positions, fewer than max_length={settings.max_length}; set max_length to {positions} at most"
        )
    if start_adapter:
        if settings.reference != "adapters off":
            raise ValueError(
                f"{method}: a training that goes on from {start_adapter} has that policy as its reference; leave reference = {settings.reference} out"
            )
        model = load_adapter(model, start_adapter, trainable=True)
    if METHODS[method].remakes:
        pairs = [as_pair(row) if isinstance(row, ScoredAnswer) else row for row in pairs]
    used_pairs, reward_gaps = trained_on(pairs, method, METHODS[method].sees_scores), {}
    if weights is not None and len(used_pairs) < len(pairs):
        weights = [weight for pair, weight in zip(pairs, weights, strict=True) if pair.is_scored]
    if METHODS[method].loss:
        trainer, used = preference_trainer(method, model, tokenizer, used_pairs, settings, Path(output), weights)
    else:
        from common.training.supervised import supervised_trainer

        arguments = common_arguments(model, settings, Path(output))
        trainer, used = supervised_trainer(method, model, tokenizer, used_pairs, settings, arguments)
    if round(settings.steps_share * math.ceil(used / settings.batch_size) * settings.epochs) <= 1:
        trainer.args.warmup_steps = 0  # the only step would be one of warm-up, with learning rate 0
    if settings.steps_share < 1.0:
        from common.trainer.finite import EndAfter

        trainer.add_callback(EndAfter(settings.steps_share))
    if settings.report_to != "none":
        from common.training.tracking import track

        track(trainer, settings.report_to, method, settings.as_dict(method))
    label = f"training {method}, seed {settings.seed}"
    _report_progress(trainer, label)
    long = math.ceil(used / settings.batch_size) * settings.epochs > CHECKPOINT_STEPS
    if resume and long and not start_adapter and not METHODS[method].remakes:
        _train_with_checkpoints(trainer, label)
    else:
        trainer.train()
    if weights is not None:
        reward_gaps = dict(zip(trainer.train_dataset["id"], trainer.reward_gaps().tolist()))
    for copy in sorted(set(trainer.model.peft_config) - {"default"}):  # what stood or moved beside the policy
        trainer.model.delete_adapter(copy)
    trained = TrainedStudent(
        method, trainer.model.eval(), tokenizer, trainer.state.log_history, used, len(pairs) - len(used_pairs),
        asked_for=settings.asked_for(method), reward_gaps=reward_gaps,
    )  # fmt: skip
    del trainer
    release_memory()
    return trained


def _train_with_checkpoints(trainer: Trainer, label: str) -> None:
    from transformers.trainer_utils import SaveStrategy

    from common.trainer.prepare import whole_checkpoints

    how, folder = trainer.args, Path(trainer.args.output_dir)
    how.save_strategy, how.save_steps, how.save_total_limit = SaveStrategy.STEPS, CHECKPOINT_STEPS, 1
    if newest := next(whole_checkpoints(folder), None):
        print(f"{label}: goes on from {newest.name}", flush=True)
    trainer.train(resume_from_checkpoint=newest and str(newest))
    remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Those of a trainer's folder; a tracker's logs beside them stay."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


@cache
def _set_libraries_apart() -> None:
    """Brings what trains and takes it, once, out of the garbage that is looked through after every training: a look at
    a million objects of libraries takes .4 s."""
    import gc

    from common.trainer import rdpo  # noqa: F401
    from common.training import supervised  # noqa: F401

    gc.collect()
    gc.freeze()


def _report_progress(trainer: Trainer, label: str) -> None:
    """Our progress line in place of the trainer's printed dictionaries."""
    from transformers import PrinterCallback, TrainerCallback

    class Report(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.progress = Progress(label, state.max_steps)
            self.progress(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if CHOSEN in logs:
                made = counts_of([logs])
                of_made = f", {made.answers} answers made" if made else ""
                self.progress.note = f"chosen {logs[CHOSEN]:+.2f} nats a token{of_made}"

        def on_step_end(self, args, state, control, **kwargs):
            self.progress(1)

        def on_train_end(self, args, state, control, **kwargs):
            for said in (counts_of(state.log_history), warning(state.log_history)):
                if said:
                    print(f"{label}: {said}", flush=True)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Report())


def common_arguments(model: PreTrainedModel, settings: TrainSettings, output: Path) -> dict[str, Any]:
    """What TRL's trainers are given of the settings, whatever the method."""
    import torch

    at_a_time = settings.micro_batch or settings.batch_size
    return {
        "output_dir": str(output), "num_train_epochs": settings.epochs, "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": settings.batch_size // at_a_time,
        "lr_scheduler_type": "linear", "warmup_steps": 0.1, "train_sampling_strategy": "group_by_length", "logging_steps": 1, "logging_first_step": True, "save_strategy": "no",
        "report_to": settings.report_to, "use_cpu": not torch.cuda.is_available(),
        "bf16": model.dtype == torch.bfloat16,  # computes the float32 adapters as the model computes, instead of casting back and forth
        "gradient_checkpointing": torch.cuda.is_available(), "max_length": settings.max_length,
        "seed": settings.seed, "disable_tqdm": True, "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip


def preference_trainer(
    method: str, model, tokenizer, pairs: Sequence[ScoredPair], settings: TrainSettings, output: Path,
    weights: Sequence[float] | None = None,
):  # fmt: skip
    """(trainer ready to train, number of pairs it uses: those whose prompt leaves room for an answer) for a row with a
    loss. A model with a trainable adapter goes on from it, and its policy is the reference. weights: one for each pair,
    None for none. Raises ValueError for a row of accepted pairs alone where none is."""
    from common.trainer.config import RDPOConfig
    from common.trainer.rdpo import RDPOTrainer
    from common.training.self_augmented.trainer import SelfAugmentedTrainer

    row, begun = METHODS[method], hasattr(model, "disable_adapter")
    if row.accepted_only and not (pairs := accepted(pairs)):
        raise ValueError(f"{method}: no revision scored higher than its original, so there is nothing to train on")
    arguments = RDPOConfig(
        method=row.loss, nll_on=row.nll_on or "all", nll_weight=settings.nll_weight if row.nll_on else 0.0, learning_rate=settings.learning_rate, beta=settings.beta,
        reference_cache=None if begun else str(resolve("runs/models/reference")), kl_budget=settings.kl_budget, unchanged_weight=settings.unchanged_weight if row.edits else 1.0,
        optimism=settings.optimism if row.explores else 0.0,
        references=row.references, mrpo_eta=settings.mrpo_eta, mrpo_weight=settings.mrpo_weight,
        precompute_ref_log_probs=False if row.remakes else None, **settings.knobs_of(row.loss), **common_arguments(model, settings, output),
    )  # fmt: skip
    reference = base_again(model, tokenizer) if settings.reference == "unquantised" else None
    second = None if row.references == "own" else load_second(settings, model, tokenizer)
    kind = RDPOTrainer
    if row.remakes:
        kind = partial(SelfAugmentedTrainer, settings=settings.self_augmented if row.remakes == "segments" else None)
    with warnings.catch_warnings():  # the column weight is ours here
        warnings.filterwarnings("ignore", "the column weight")
        trainer = kind(
            model, ref_model=reference, args=arguments, train_dataset=preference_dataset(pairs, weights), processing_class=tokenizer,
            peft_config=None if begun else lora_settings(settings.lora_rank), second_reference=second,
        )  # fmt: skip
    return trainer, trainer.pairs_used
