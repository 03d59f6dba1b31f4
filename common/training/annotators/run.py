"""EM-DPO (arXiv 2405.15065): annotators of hidden types, a policy for each, and the mixture that is fair to all.

As in the authors' code (keertanavc/multi_pref_DPO, em_dpo.py, train.py, trainers.py). M step: for each type a fresh policy
is trained on all pairs, the DPO loss of a pair times the probability that its annotator is of the type, averaged over
the batch. E step: `posterior`. At the end the policies answer held-out prompts and are mixed by `mixture`. Cluster-DPO is
the first M step from clusters alone. With one type every weight is 1, which is DPO.

All trainings have the row's seed, so they differ by their weights alone. Below the row's folder, `step-<s>/type-<k>/`
holds each training as `trained_once` keeps it, `types.json` what was found of annotators and types, and `adapter/` the
adapters of the last step, which `types.json` beside them says how to mix.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.self_critique import opening
from common.evaluation.answers import TrainedStudent
from common.evaluation.metrics import Evaluator, divergence
from common.methods import METHODS, TrainSettings
from common.schema import PromptRecord, Sampling, ScoredPair
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

MIXED_ON = 128
"""Prompts that the mixture is found on, at most: the authors' number."""


def check_annotators(method: str, pairs: Sequence[ScoredPair], settings: TrainSettings) -> None:
    """Raises ValueError for scored pairs without an annotator, and for no more than one or fewer of them than types."""
    scored = [pair for pair in pairs if pair.is_scored]
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


def mixture_prompts(evaluator: Evaluator) -> list[PromptRecord]:
    """Held-out prompts of the validation split that the mixture is found on, as many of each set."""
    sets = list(evaluator.sets("validation").values())
    return [record for records in sets for record in records[: MIXED_ON // len(sets)]]


def run_types(
    method: str,
    student: str | Path,
    pairs: Sequence[ScoredPair],
    evaluator: Evaluator,
    settings: TrainSettings,
    folder: str | Path,
    **load: Any,
) -> TrainedStudent:
    """The mixture of policies; what is finished is read and not made again.

    Args:
        pairs: as for `train`, each with its annotator; unscored ones are left out.
        evaluator: how the student is asked, and the prompts that the mixture is found on. It judges nothing here.

    Raises ValueError as `check_annotators` and `train` do.
    """
    check_annotators(method, pairs, settings)
    folder, scored = Path(folder), [pair for pair in pairs if pair.is_scored]
    made_of = training_of(method, student, pairs, settings, **load)
    prompts = mixture_prompts(evaluator)
    policies = [f"type-{number}" for number in range(settings.annotator_types)]
    kept = kept_training(folder, made_of)
    if kept and kept["mixed_on"] == [record.id for record in prompts]:
        print(f"{method}, seed {settings.seed}: trained before, its adapters reused from {folder / 'adapter'}", flush=True)
    else:
        (folder / "training.json").unlink(missing_ok=True)
        step, found = _em(method, student, scored, settings, folder, load)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        for name in policies:
            shutil.copytree(step / name / "adapter", folder / "adapter" / name)
        model, tokenizer = load_student(student, **load)
        model = load_adapters(model, {name: folder / "adapter" / name for name in policies})
        log_ratios = _log_ratios(TrainedStudent(method, model, tokenizer), policies, prompts, evaluator, settings.seed)
        weights, worst = least_regret(regrets(log_ratios))
        found |= {"log_ratios": log_ratios.tolist(), "worst_regret": worst}
        found |= {"mixture": dict(zip(policies, weights.tolist()))}
        write_json(folder / "types.json", found)
        write_json(folder / "adapter" / "types.json", found)
        kept = {
            "made_of": made_of,
            "mixed_on": [record.id for record in prompts],
            "mixture": found["mixture"],
            "history": [],
            "pairs_used": found["pairs_used"],
            "unscored": len(pairs) - len(scored),
        }
        write_json(folder / "training.json", kept)
        del model
    model, tokenizer = load_student(student, **load)
    model = load_adapters(model, {name: folder / "adapter" / name for name in policies})
    return TrainedStudent(
        method, model, tokenizer, pairs_used=kept["pairs_used"], unscored=kept["unscored"], policies=kept["mixture"]
    )


def _em(
    method: str, student: str | Path, pairs: Sequence[ScoredPair], settings: TrainSettings, folder: Path, load: dict
) -> tuple[Path, dict[str, Any]]:
    """(folder of the last step, what was found of the annotators)."""
    names = sorted({pair.annotator for pair in pairs})
    annotator = [names.index(pair.annotator) for pair in pairs]
    types, by_em = settings.annotator_types, METHODS[method].types == "em"
    if by_em and settings.em_start == "dirichlet":
        probabilities = drawn_start(len(names), types, settings.seed)
    else:
        probabilities = clustered_start(pairs, annotator, types, settings.seed)
    shares, history = probabilities.mean(axis=0), []
    for number in range(settings.em_steps if by_em else 1):
        _say_who_died(method, number, shares)
        place = folder / f"step-{number}"
        gaps = [
            _m_step(student, pairs, settings, place / f"type-{k}", probabilities[annotator, k].tolist(), load)
            for k in range(types)
        ]
        used = [i for i, pair in enumerate(pairs) if pair.id in gaps[0]]
        reward_gaps = np.array([[of_type[pairs[i].id] for of_type in gaps] for i in used])
        joint = log_joint(reward_gaps, [annotator[i] for i in used], shares)
        changed = posterior(joint) - probabilities
        history.append({"shares": shares.tolist(), "change": float(abs(changed).max())})
        print(
            f"{method}, seed {settings.seed}: step {number + 1}, shares of the types {', '.join(f'{share:.1%}' for share in shares)}, "
            f"then changed by up to {history[-1]['change']:.2g}", flush=True,
        )  # fmt: skip
        probabilities = probabilities + changed
        shares = probabilities.mean(axis=0)
        if history[-1]["change"] < SETTLED:
            break
    found = {"annotators": dict(zip(names, probabilities.tolist())), "shares": shares.tolist(), "steps": history}
    return place, found | {"pairs_used": len(used)}


def _m_step(
    student: str | Path, pairs: Sequence[ScoredPair], settings: TrainSettings, place: Path, weights: list[float], load: dict
) -> dict[str, float]:  # fmt: skip
    """Id of every pair -> its reward gap under the policy of a type, trained unless that was done before."""
    made_of = training_of("dpo", student, pairs, settings, weights, **load)
    if not kept_training(place, made_of):
        trained_once("dpo", student, pairs, settings, place, weights, **load)
    return kept_training(place, made_of)["reward_gaps"]


def _say_who_died(method: str, step: int, shares: np.ndarray) -> None:
    for number, share in enumerate(shares):
        if share < LEAST_SHARE:
            print(
                f"{method}: in step {step + 1} no annotator is of type {number} any more, so that its policy stays the student; fewer annotator_types may do",
                flush=True,
            )


def _log_ratios(
    student: TrainedStudent, policies: Sequence[str], prompts: Sequence[PromptRecord], evaluator: Evaluator, seed: int
) -> np.ndarray:
    """(types, types): [k, j] the mean over an answer of policy j to each prompt, sampled at temperature 1, of log pi_k(y)
    - log pi_ref(y), nats."""
    alone = [
        TrainedStudent(student.method, student.model, student.tokenizer, policies={name: 1.0}) for name in policies
    ]
    sampling = Sampling(temperature=1.0, max_new_tokens=evaluator.max_new_tokens, seed=seed)
    asked = [opening(record.system, record.prompt) for record in prompts]
    answers = [[reply.text for reply in evaluator.chat(one).complete(asked, sampling)] for one in alone]
    return np.array([[np.mean(divergence(policy, prompts, of)) for of in answers] for policy in alone])
