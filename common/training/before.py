"""A look before training: the first loss, which scores alone decide, and what the untrained row answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.data.preference import SCORES, trained_on
from common.evaluation.answers import answers_by_set
from common.loss import weighted_loss, weighted_references
from common.methods import METHODS, existing
from common.student.load import load_student
from common.trainer.collator import REFERENCE, SECOND
from common.training.comparison import Experiment
from common.training.train import preference_trainer


def preference_methods(methods: Sequence[str]) -> list[str]:
    """Those trained with a preference loss alone on the pairs given, whose first loss scores decide: no likelihood is
    in it."""
    rows = {method: METHODS[method] for method in methods if method in METHODS}
    own = [
        method
        for method, row in rows.items()
        if row.loss and not (row.extrapolates or row.rounds or row.types or row.remakes)
    ]
    return [method for method in own if not rows[method].nll_on]


def row_before(methods: Sequence[str]) -> str:
    """The row that is shown before training: the base student, unless no row has anything to do with it."""
    return "base" if any(existing(method) not in ("model", "endpoint") for method in methods) else methods[0]


def first_answers(run: Experiment, method: str, count: int = 3) -> dict[str, list[str]]:
    """What an untrained row answers to the first prompts of every set, without its evaluation."""
    sets = {name: records[:count] for name, records in run.evaluator.sets(run.evaluate_on).items()}
    return answers_by_set(run.evaluator.chat(run.as_it_is(method)), sets, run.evaluator.max_new_tokens)


def loss_before_training(run: Experiment, method: str, seed: int, pairs: int = 16) -> tuple[float, float]:
    """(measured, analytic) mean loss of a preference method on its first pairs, policy = own reference.

    Before the first step every log-ratio is 0, so the loss is a function of the scores alone, and of what a second
    reference says, where the row has one."""
    settings = run.settings_of(method, seed)
    chosen = trained_on(run.pairs_of(seed), method, METHODS[method].sees_scores)[:pairs]
    model, tokenizer = load_student(run.student, **run.load)
    trainer, _ = preference_trainer(method, model, tokenizer, chosen, settings, run.output / "step-0")
    with torch.no_grad():
        batches = [
            (trainer.compute_loss(trainer.model.eval(), batch).item(), len(batch["input_ids"]))
            for batch in trainer.get_train_dataloader()
        ]
    measured = sum(loss * rows for loss, rows in batches) / sum(rows for _, rows in batches)
    row, dataset = METHODS[method], trainer.train_dataset
    data = {name: torch.tensor(dataset[name]) for name in (*SCORES, *REFERENCE, *SECOND) if name in dataset.features}
    own = torch.stack([data[name] for name in REFERENCE])
    second = own if row.references == "own" else torch.stack([data[name] for name in SECOND])
    references = weighted_references(row.references, own, second, settings.mrpo_weight, settings.mrpo_eta)
    scores, knobs = [data.get(name) for name in SCORES], settings.knobs_of(row.loss)
    return measured, float(weighted_loss(row.loss, own, references, *scores, beta=settings.beta, **knobs)[0].mean())
