"""EM-DPO (arXiv 2405.15065): annotators of hidden types, a policy for each, and the mixture that is fair to all.

As in the authors' code (keertanavc/multi_pref_DPO, em_dpo.py, train.py, trainers.py). M step: for each type a fresh policy
is trained on all pairs, the DPO loss of a pair times the probability that its annotator is of the type, averaged over
the batch. E step: `posterior`. At the end the policies answer held-out prompts and are mixed by `mixture`. Cluster-DPO is
the first M step from clusters alone. With one type every weight is 1, which is DPO.

All trainings have the row's seed, so they differ by their weights alone. Below the row's folder, `step-<s>/type-<k>/`
holds each training as `trained_once` keeps it, and `adapter/` the adapters of the last step with `types.json`: how to mix
them, and what was found of annotators and types.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.chat.local import LocalChat
from common.chat.model import ChatModel
from common.data.preference import trained_on
from common.data.self_critique import opening
from common.evaluation.answers import TrainedStudent, as_trained
from common.evaluation.metrics import divergence
from common.methods import METHODS, TrainSettings
from common.schema import PromptRecord, Sampling, ScoredPair, fingerprint
from common.storage import write_json
from common.student.adapters import load_adapters
from common.student.load import load_student
from common.training.annotators.mixture import least_regret, regrets
from common.training.annotators.posterior import (
    LEAST_SHARE,
    SETTLED,
    clustered_start,
    drawn_start,
    log_joint,
    posterior,
)
from common.training.kept import kept_training, trained_once, training_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MIXED_ON = 128
"""Prompts that the mixture is found on, at most: the authors' number."""


def check_annotators(method: str, pairs: Sequence[ScoredPair], settings: TrainSettings) -> None:
    """Raises ValueError for scored pairs without an annotator, and for no more than one or fewer of them than types."""
    scored = trained_on(pairs, method, METHODS[method].sees_scores)
    if without := [pair.id for pair in scored if not pair.annotator]:
        raise ValueError(
            f"{method} asks who preferred what, and {len(without)} of {len(scored)} pairs, such as {without[0]}, have no annotator; fill the field annotator of every pair, or train dpo"
        )
    names = sorted({pair.annotator for pair in scored})
    if len(names) == 1:
        raise ValueError(
            f"{method} divides annotators into types, and all pairs are of one annotator, {names[0]}; train dpo"
        )
    if len(names) < settings.annotator_types:
        raise ValueError(
            f"{method}: annotator_types = {settings.annotator_types}, and the pairs have {len(names)} annotators; lower it"
        )


class Asking(Protocol):
    """How policies are asked, and what: the part of an `Evaluator` that finds a mixture."""

    max_new_tokens: int

    def sets(self, split: str) -> Mapping[str, Sequence[PromptRecord]]: ...

    def chat(self, student: TrainedStudent) -> ChatModel: ...

    def mark(self) -> dict[str, Any]: ...


class PromptsToTrainOn:
    """Own data's way to find a mixture: on the prompts that are trained on, since nothing else is held out but what is
    measured on. No label of theirs is read."""

    max_new_tokens = 128

    def __init__(self, pairs: Sequence[ScoredPair]):
        self.prompts = list({(pair.system, str(pair.history), pair.prompt): pair for pair in pairs}.values())

    def sets(self, split: str) -> dict[str, list[ScoredPair]]:
        return {"own": self.prompts}

    def chat(self, student: TrainedStudent) -> ChatModel:
        return as_trained(student, LocalChat(student.model, student.tokenizer))

    def mark(self) -> dict[str, Any]:
        return {}


def mixture_prompts(evaluator: Asking) -> list[PromptRecord]:
    """Held-out prompts of the validation split that the mixture is found on, as many of each set."""
    sets = list(evaluator.sets("validation").values())
    return [record for records in sets for record in records[: MIXED_ON // len(sets)]]


def run_types(
    method: str,
    student: str | Path,
    pairs: Sequence[ScoredPair],
    evaluator: Asking,
    settings: TrainSettings,
    folder: str | Path,
    **load: Any,
) -> TrainedStudent:
    """The mixture of policies; what is finished is read and not made again.

    Args:
        pairs: as for `train`, each with its annotator.
        evaluator: how the student is asked, and the prompts that the mixture is found on. It judges nothing here.

    Raises ValueError as `check_annotators` and `train` do, and for a type that no annotator is of; finished steps stay.
    """
    check_annotators(method, pairs, settings)
    folder, scored = Path(folder), trained_on(pairs, method, METHODS[method].sees_scores)
    made_of = training_of(method, student, pairs, settings, **load)
    prompts = mixture_prompts(evaluator)
    mixed_on = fingerprint(prompts, evaluator.max_new_tokens, evaluator.mark().get("repetition_penalty"))
    policies = [f"type-{number}" for number in range(settings.annotator_types)]
    kept = kept_training(folder, made_of)
    if kept and kept["mixed_on"] == mixed_on:
        print(
            f"{method}, seed {settings.seed}: trained before, its adapters reused from {folder / 'adapter'}", flush=True
        )
        found = json.loads((folder / "adapter" / "types.json").read_text(encoding="utf-8"))
        return TrainedStudent(
            method, *_with_policies(student, folder, policies, load), pairs_used=kept["pairs_used"], unscored=kept["unscored"],
            policies=kept["mixture"], annotators=found["annotators"], mark=made_of,
        )  # fmt: skip
    (folder / "training.json").unlink(missing_ok=True)
    step, found, used = _em(method, student, scored, settings, folder, load)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    for name in policies:
        shutil.copytree(step / name / "adapter", folder / "adapter" / name)
    trained = TrainedStudent(
        method,
        *_with_policies(student, folder, policies, load),
        pairs_used=used,
        unscored=len(pairs) - len(scored),
        annotators=found["annotators"],
        mark=made_of,
    )
    log_ratios = _log_ratios(trained, policies, prompts, evaluator, settings.seed)
    weights, worst = least_regret(regrets(log_ratios))
    trained.policies = dict(zip(policies, weights.tolist()))
    found |= {"log_ratios": log_ratios.tolist(), "worst_regret": worst, "mixture": trained.policies}
    write_json(folder / "adapter" / "types.json", found)
    kept = {"made_of": made_of, "mixed_on": mixed_on, "mixture": trained.policies}
    write_json(
        folder / "training.json",
        kept | {"history": trained.history, "pairs_used": trained.pairs_used, "unscored": trained.unscored},
    )
    return trained


def _with_policies(
    student: str | Path, folder: Path, policies: Sequence[str], load: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The student with the adapters of all types, and its tokenizer."""
    model, tokenizer = load_student(student, **load)
    return load_adapters(model, {name: folder / "adapter" / name for name in policies}), tokenizer


def _em(
    method: str, student: str | Path, pairs: Sequence[ScoredPair], settings: TrainSettings, folder: Path, load: dict[str, Any]
) -> tuple[Path, dict[str, Any], int]:  # fmt: skip
    """(folder of the last step, what was found of the annotators, number of pairs used). A pair that the trainer leaves
    out, whose prompt fills `max_length`, says nothing of its annotator."""
    names = sorted({pair.annotator for pair in pairs})
    annotator = [names.index(pair.annotator) for pair in pairs]
    types, by_em = settings.annotator_types, METHODS[method].types == "em"
    if by_em and settings.em_start == "dirichlet":
        probabilities = drawn_start(len(names), types, settings.seed)
    else:
        probabilities = clustered_start(pairs, annotator, types, settings.seed)
    steps = []
    for number in range(settings.em_steps if by_em else 1):
        shares, place = probabilities.mean(axis=0), folder / f"step-{number}"
        said = f"{method}, seed {settings.seed}, step {number + 1}"
        print(f"{said}: shares of the types {', '.join(f'{share:.1%}' for share in shares)}", flush=True)
        if dead := np.flatnonzero(shares < LEAST_SHARE).tolist():
            raise ValueError(
                f"{said}: no annotator is of type {dead[0]}, which would have no policy of its own; lower annotator_types, or give another em_start. {folder} keeps what was trained"
            )
        gaps = [
            _m_step(student, pairs, settings, place / f"type-{k}", probabilities[annotator, k].tolist(), load)
            for k in range(types)
        ]
        steps.append({"shares": shares.tolist()})
        if by_em:
            reward_gaps = np.array([[of_type.get(pair.id, 0.0) for of_type in gaps] for pair in pairs])
            before, probabilities = probabilities, posterior(log_joint(reward_gaps, annotator, shares))
            steps[-1]["change"] = float(abs(probabilities - before).max())
            if steps[-1]["change"] < SETTLED:
                break
    return place, {"annotators": dict(zip(names, probabilities.tolist())), "steps": steps}, len(gaps[0])


def _m_step(
    student: str | Path, pairs: Sequence[ScoredPair], settings: TrainSettings, place: Path, weights: list[float], load: dict[str, Any]
) -> dict[str, float]:  # fmt: skip
    """Id of every pair -> its reward gap under the policy of a type, trained unless that was done before."""
    made_of = training_of("dpo", student, pairs, settings, weights=weights, **load)
    if not kept_training(place, made_of):
        trained_once("dpo", student, pairs, settings, place, weights=weights, **load)
    return kept_training(place, made_of)["reward_gaps"]


def _log_ratios(
    student: TrainedStudent, policies: Sequence[str], prompts: Sequence[PromptRecord], evaluator: Asking, seed: int
) -> np.ndarray:
    """(types, types): [k, j] the mean over an answer of policy j to each prompt, sampled at temperature 1, of log pi_k(y)
    - log pi_ref(y), nats."""
    alone = [
        TrainedStudent(student.method, student.model, student.tokenizer, policies={name: 1.0}) for name in policies
    ]
    sampling = Sampling(temperature=1.0, max_new_tokens=evaluator.max_new_tokens, seed=seed)
    asked = [opening(record.system, record.prompt, record.history) for record in prompts]
    answers = [[reply.text for reply in evaluator.chat(one).complete(asked, sampling)] for one in alone]
    return np.array([[np.mean(divergence(policy, prompts, of)) for of in answers] for policy in alone])
