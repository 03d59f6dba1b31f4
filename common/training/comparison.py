"""Rows of a table, every method and seed asked for: each finished training is kept and none is run twice."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.chat.model import ChatModel
from common.data.counterfactual import INSTRUCTIONS
from common.evaluation.answers import TrainedStudent
from common.evaluation.card import card
from common.evaluation.judged import one_verdict_for_all
from common.evaluation.matched_utility import at_matched_utility
from common.evaluation.metrics import Evaluation, Evaluator, divergence, mean
from common.evaluation.result import Result, add_finished, excerpts, finished_result, place_in_table, row_of
from common.methods import (
    METHODS,
    TrainSettings,
    by_identity,
    check_methods,
    check_references,
    existing,
    is_trained,
)
from common.runtime import Progress
from common.schema import Metric, ScoredPair, fingerprint
from common.student.adapters import save_adapter
from common.student.identity import located
from common.training.annotators.run import check_annotators, mixture_prompts, run_types
from common.training.extrapolate import FACTORS, extrapolated
from common.training.kept import Setting, trained_once, training_of
from common.training.rounds.run import asked_in_rounds, check_rounds, run_rounds
from common.training.self_augmented.counts import counts_of
from common.training.train import train

SR_BEFORE = ("398bcbeb9c4a", "19cd4084ffea", "d271b4052b18")
"""Hashes of the texts of safety, role-play robustness and sycophancy that SR's rows under `results/small` were asked
with, when marks did not name them: rows asked with these keep their marks, and rows of any other texts have others."""


def check_split(evaluate_on: str) -> None:
    """Raises ValueError for anything but the validation split and, for the final table, the test split."""
    if evaluate_on not in ("validation", "test"):
        raise ValueError(f"evaluate_on is 'validation' or 'test', not {evaluate_on!r}")


def stream(name: str, seed: int) -> random.Random:
    """A new random stream of a seed, `subset` or `swaps`, for what it draws of the pairs. KeyError for another name.

    Swaps draw from `Random(seed + 1)`, which is the next seed's stream of subsets. Committed results depend on these
    two, so they stay; another stream should be `Random(f"{name} {seed}")`, which no other name or seed shares.
    """
    return random.Random(seed + {"subset": 0, "swaps": 1}[name])


class Experiment:
    """Trains and evaluates rows of the table on one pairs file.

    Args:
        student: folder or Hub name of the base student.
        pairs: scored pairs of the train split, all made in one way: by self-critique, or by one variant of
            Counterfactual DPO.
        evaluator: how answers are looked at.
        output: results go to `<output>/seed-<s>/<row>/`.
        settings: shared by all methods; the seed is replaced by each run's own.
        evaluate_on: "validation", or "test" for the final table only.
        train_pairs: every seed draws its own random subset of this size, the same for all methods; 0 takes all pairs.
        tuned: method -> what it takes in place of the shared settings (`common.notebook.tune`).
        finished: JSONL file of results with `excerpts` for texts, as a project keeps them: what is made of the same is
            taken from there and not trained again, what is new is added. None for no such file.
        chats: who answers for the `endpoint:` rows, by row.
        match_utility: whether metrics at matched utility are measured too, where the evaluator does; trials do without.
        evaluations: of untrained rows, by row and split; experiments with the same student and evaluator may share
            them.
        load: for `load_student`.
    """

    def __init__(
        self, student: str | Path, pairs: Sequence[ScoredPair], evaluator: Evaluator, output: str | Path,
        settings: TrainSettings, evaluate_on: str = "validation", *, train_pairs: int = 0,
        tuned: Mapping[str, Setting] = {}, finished: Path | None = None, chats: Mapping[str, ChatModel] = {},
        match_utility: bool = True, evaluations: dict[tuple[str, str], Evaluation] | None = None, **load: Any,
    ):  # fmt: skip
        check_split(evaluate_on)
        if train_pairs > len(pairs):
            raise ValueError(f"train_pairs = {train_pairs}, but there are only {len(pairs)} pairs")
        variants = sorted({pair.variant for pair in pairs})
        if len(variants) > 1:
            raise ValueError(
                f"pairs made in different ways ({', '.join(name or 'self_critique' for name in variants)}) are no fair comparison; give a file of one kind"
            )
        self.variant = variants[0] if variants else ""
        self.student = located(student)
        self.pairs, self.evaluator, self.output = list(pairs), evaluator, Path(output)
        self.settings, self.evaluate_on, self.train_pairs, self.chats, self.load = (
            settings,
            evaluate_on,
            train_pairs,
            chats,
            load,
        )
        self.finished, self.tuned, self.match_utility = finished, tuned, match_utility
        self._untrained = {} if evaluations is None else evaluations

    def run(self, methods: Sequence[str], seeds: Sequence[int], swapped: Sequence[float] = (0.0,)) -> list[Result]:
        """One result per seed, share of swapped pairs and method, in that order; finished ones are read back from disk,
        which is said. What exists has no seed, and what is not trained no pairs: both are evaluated once."""
        check_methods(methods)
        check_references(methods, self.settings)
        rows = [(method, seed, share) for seed in seeds for share in swapped for method in methods]
        once = [
            (method, seed, share)
            for method, seed, share in rows
            if is_trained(method) or share == swapped[0] and (seed == seeds[0] or not existing(method))
        ]
        for row in once:
            self._check(*row)
        untried = [name for name in methods if is_trained(name) and not {name, METHODS[name].tuned_as} & {*self.tuned}]
        if self.tuned and untried:
            print(f"without trials, so with the shared settings: {', '.join(untried)}", flush=True)
        progress, results = Progress("rows", len(once)), []
        for row in once:
            results.append(self.result(*row))
            progress(1)
        if warning := one_verdict_for_all(results):
            print(warning, flush=True)
        return results

    def _check(self, method: str, seed: int, share: float) -> None:
        """Raises ValueError for what a row could not be trained or measured with, before anything is."""
        if not is_trained(method):
            return
        if METHODS[method].rounds:
            check_rounds(method, self.pairs_of(seed, share), self.evaluator, self.settings_of(method, seed))
        if METHODS[method].extrapolates and "benign" not in self.evaluator.sets("validation"):
            raise ValueError(f"{method} chooses its factor by utility too; give benign prompts of split validation")
        if METHODS[method].types:
            check_annotators(method, self.pairs_of(seed, share), self.settings_of(method, seed))

    def with_settings(self, settings: TrainSettings, output: str | Path) -> Experiment:
        """The same rows under other shared settings, with their results in another folder."""
        other = copy(self)
        other.settings, other.output = settings, Path(output)
        return other

    def finished_rows(self) -> list[Result]:
        """Every result in the output folder, of this run or an earlier one, that is made of exactly what this run's
        would be made of, as `place_in_table` orders them."""
        found = [Result.read(path) for path in sorted(self.output.glob("seed-*/*/metrics.json"))]
        return sorted(filter(self._is_current, found), key=place_in_table)

    def _is_current(self, found: Result) -> bool:
        try:
            return found.made_of == self.made_of(found.method, found.seed, found.swapped)
        except (OSError, ValueError):  # an adapter or a model that is there no more
            return False

    def path_of(self, method: str, seed: int, swapped: float = 0.0) -> Path:
        """Where the result of a row is kept."""
        return self.output / self._place(method, seed, swapped) / "metrics.json"

    def _place(self, method: str, seed: int, swapped: float) -> Path:
        return Path(f"seed-{seed}", re.sub(r"[^\w.-]+", "_", row_of(method, self.variant, swapped)))

    def result(self, method: str, seed: int, swapped: float = 0.0) -> Result:
        """The result of one row, trained and evaluated unless it is finished."""
        path, made_of = self.path_of(method, seed, swapped), self.made_of(method, seed, swapped)
        name = f"{self._place(method, seed, swapped)}.{made_of}"
        if path.exists() and (kept := Result.read(path)).made_of == made_of:
            print(f"{kept.row}, seed {seed}: finished before, reused from {path}", flush=True)
            return kept
        if self.finished and (
            kept := finished_result(self.finished, name, of_any_seed=not is_trained(method))
        ):  # what is not trained has no seed
            print(f"{kept.row}, seed {seed}: finished before, reused from {self.finished}", flush=True)
            kept = kept.of_seed(seed)
            kept.write(path)  # where tables look for it
            return kept
        if not is_trained(method) and existing(method) != "adapter":
            result = self._untrained_result(method, seed, made_of)
        else:
            student, more = self.train(method, seed, swapped), {}
            if is_trained(method) and METHODS[method].extrapolates:
                student, more["extrapolation"] = extrapolated(student, self.evaluator, seed, method)
                save_adapter(student.model, student.tokenizer, path.parent / "adapter", f"# {method}, seed {seed}\n")
            if student.policies:
                more["mixture"] = dict(student.policies)
            if made := counts_of(student.history):
                more["made"] = asdict(made)
            if method in METHODS and METHODS[method].rounds:
                more["asked"] = asked_in_rounds(path.parent)
            result = self._evaluate(student, seed, made_of)
            if is_trained(method) and swapped:
                result.swapped, result.metrics = (
                    swapped,
                    [metric.model_copy(update={"noise": swapped}) for metric in result.metrics],
                )
        result.split = self.evaluate_on
        if is_trained(method):
            settings = self.settings_of(method, seed)
            result.settings = {name: value for name, value in settings.as_dict(method).items() if name != "seed"} | more
            (path.parent / "adapter" / "README.md").write_text(card(self.student, settings, result), encoding="utf-8")
        result.write(path)
        if self.finished:
            add_finished(self.finished, name, replace(result, answers=excerpts(result), history=[]))
        return result

    def train(self, method: str, seed: int, swapped: float = 0.0) -> TrainedStudent:
        """The student of a row, trained unless that was done before; what is not trained is loaded, and of a row that
        extrapolates the training that it turns up."""
        if method in METHODS and METHODS[method].extrapolates:
            return self.train(METHODS[method].extrapolates, seed, swapped)
        folder, settings = self.path_of(method, seed, swapped).parent, self.settings_of(method, seed)
        if not is_trained(method):
            return train(method, self.student, [], settings, folder, **self.load)
        pairs = self.pairs_of(seed, swapped)
        if METHODS[method].rounds:
            return run_rounds(method, self.student, pairs, self.evaluator, settings, folder, **self.load)
        if METHODS[method].types:
            return run_types(method, self.student, pairs, self.evaluator, settings, folder, **self.load)
        trials = self.output.glob(f"tuning/*/{folder.relative_to(self.output)}")  # `tune` keeps them there
        return trained_once(method, self.student, pairs, settings, folder, trials=trials, **self.load)

    def settings_of(self, method: str, seed: int) -> TrainSettings:
        """The shared settings, with what its own trials chose for the method on top, else those of `Method.tuned_as`."""
        if not is_trained(method):
            return self.settings.changed(seed=seed)
        own = method in self.tuned and not METHODS[method].extrapolates
        return self.settings.changed(seed=seed, **self.tuned.get(method if own else METHODS[method].tuned_as, {}))

    def pairs_of(self, seed: int, swapped: float = 0.0) -> list[ScoredPair]:
        """The pairs that a seed trains on, a share `swapped` of them, drawn by the seed, with the two answers
        exchanged. Scores stay with their answers: DPO's label is wrong there, and what the judge saw is not."""
        pairs = stream("subset", seed).sample(self.pairs, self.train_pairs) if self.train_pairs else self.pairs
        exchanged = set(stream("swaps", seed).sample(range(len(pairs)), round(swapped * len(pairs))))
        return [pair.swapped() if i in exchanged else pair for i, pair in enumerate(pairs)]

    def untrained(self, method: str, split: str) -> Evaluation:
        """An untrained row on a split. It has no seed, so it is evaluated once."""
        if (method, split) not in self._untrained:
            student = self.as_it_is(method)
            self._untrained[method, split] = replace(self.evaluator(student, split, 0), precision=student.precision)
        return self._untrained[method, split]

    def as_it_is(self, method: str) -> TrainedStudent:
        """The student of an untrained row, or who answers for it."""
        if method in self.chats:
            return TrainedStudent(method, chat=self.chats[method])
        return train(method, self.student, [], self.settings, self.output, **self.load)

    def _untrained_result(self, method: str, seed: int, made_of: str) -> Result:
        evaluation = self.untrained(method, self.evaluate_on)
        at_lambda = (
            {"matched": evaluation.metrics, "matched_lambda": 0.0}
            if method == "base" and self.evaluator.matches_utility
            else {}
        )
        result = Result(
            method, seed, made_of, evaluation.metrics, answers=_kept(evaluation), outcomes=evaluation.outcomes, ids=evaluation.ids, precision=evaluation.precision,
            prompts=self.evaluator.texts.hash if method == "sr" else "", **at_lambda,
        )  # fmt: skip
        return result.of_seed(seed)

    def _evaluate(self, student: TrainedStudent, seed: int, made_of: str) -> Result:
        evaluation, matched = self.evaluator(student, self.evaluate_on, seed), {}
        metrics = [*evaluation.metrics, self._divergence(student, seed, evaluation)]
        if self.match_utility and self.evaluator.matches_utility:
            base = self.untrained("base", "validation")
            matched = at_matched_utility(student, self.evaluator, self.evaluate_on, seed, evaluation, base)
        return Result(
            student.method, seed, made_of, metrics,
            answers=_kept(evaluation), outcomes=evaluation.outcomes, ids=evaluation.ids, history=student.history,
            pairs_used=student.pairs_used, unscored=student.unscored,
            variant=self.variant if is_trained(student.method) else "", precision=student.precision, **matched,
        )  # fmt: skip

    def _divergence(self, student: TrainedStudent, seed: int, evaluation: Evaluation) -> Metric:
        name, records = next(iter(self.evaluator.sets(self.evaluate_on).items()))
        values = divergence(student, records, evaluation.answers[name], batch_size=16)
        return mean(values, metric="kl", experiment=self.evaluator.experiment, method=student.method, seed=seed)

    def made_of(self, method: str, seed: int, swapped: float = 0.0) -> str:
        """The mark of a row: a hash of all that its result is made of. Results of another mark are made again."""
        pairs, settings = (
            (self.pairs_of(seed, swapped), self.settings_of(method, seed))
            if is_trained(method)
            else ([], TrainSettings())
        )
        training = training_of(by_identity(method), self.student, pairs, settings, **self.load)
        evaluation = self.evaluator.mark() | {"sets": self.evaluator.sets(self.evaluate_on)}
        if method == "sr" and (texts := self.evaluator.texts.hash) not in SR_BEFORE:
            evaluation["texts"] = texts
        if is_trained(method) and METHODS[method].extrapolates:
            evaluation["extrapolated"] = FACTORS
            evaluation["chosen on"] = self.evaluator.sets("validation")
        if is_trained(method) and METHODS[method].types:
            evaluation["mixed on"] = mixture_prompts(self.evaluator)
        if method in self.chats:
            evaluation["asked"] = self.chats[method].name  # with the server that it is asked at
        if method == "prompted":
            evaluation["instruction"] = INSTRUCTIONS[self.evaluator.experiment].desired
        return fingerprint(
            training, {}, evaluation, self.evaluate_on
        )  # {}: once files of adapters and models, on which every mark hangs


def _kept(evaluation: Evaluation, count: int = 100) -> dict[str, list[str]]:
    """The first answers of every set, and all those to held-out prompts that a rater may be shown by their ids."""
    return {
        name: texts if name == "held_out" and name in evaluation.ids else texts[:count]
        for name, texts in evaluation.answers.items()
    }
