"""Runs a row that trains in rounds, and goes on where it was stopped.

Below the row's folder, `round-<number>-<mark>/` holds made_of.json, answers.jsonl, selected.json, pairs.jsonl,
scored.jsonl, preferred.jsonl, adapter/ with training.json, and round.json with the figures of the round. The mark is a hash
of all that the round is made of, the mark of the round before among it: other settings have other folders, and a longer
schedule finds the rounds of the shorter one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from common.evaluation.answers import TrainedStudent
from common.evaluation.metrics import Evaluator, mark_of_judges
from common.methods import METHODS, TrainSettings
from common.schema import ScoredPair, fingerprint
from common.storage import read_lines, write_json
from common.student.identity import identity
from common.student.load import load_student
from common.trainer.displacement import warning
from common.training.kept import keep_student, kept_student, trained_once
from common.training.rounds.arms import ARMS
from common.training.rounds.asking import GROUP
from common.training.rounds.stages import Round, acquired, explored

ASKED = ("max_new_tokens", "repetition_penalty")
"""Of an evaluator's mark: how the student is asked."""
LOGGED = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"),
    *("rewards/explored", "logps/explored"),
)
"""Of the first and the last step of a training, in `round.json`."""


def check_rounds(method: str, pairs: Sequence[ScoredPair], evaluator: Evaluator, settings: TrainSettings) -> None:
    """Raises ValueError for what a row in rounds cannot begin with: no reward judge, one on another scale than the
    pairs, more prompts asked for than there are, a reference of its own."""
    judge, rounds, there = getattr(evaluator, "reward_judge", None), settings.rounds, sum(p.is_scored for p in pairs)
    if not judge:
        raise ValueError(f"{method}: the judge that scored the pairs scores in every round; name it as reward_judge")
    if ARMS[METHODS[method].rounds].goes_on:
        if others := {pair.judge for pair in pairs if pair.judge} - {judge.name}:
            print(
                f"{method}: the pairs were scored by {', '.join(sorted(others))}, and the answers of its rounds are by {judge.name}; both kinds of scores are compared as they are",
                flush=True,
            )
        if other := [pair for pair in pairs if tuple(pair.scale) != tuple(judge.scale)]:
            raise ValueError(
                f"{method}: {other[0].id} was scored on the scale {other[0].scale}, and reward_judge {judge.name} scores on {tuple(judge.scale)}; name the judge that scored the pairs"
            )
        if rounds.count * max(1, rounds.prompts) > there:
            raise ValueError(
                f"{method}: rounds: count = {rounds.count} rounds of {max(1, rounds.prompts)} prompts each need more than the {there} scored pairs; lower count or prompts"
            )
        if settings.reference != "adapters off" and rounds.count > 1:
            raise ValueError(
                f"{method}: the reference of a round is the policy that it begins with; leave reference = {settings.reference} out"
            )
    elif rounds.schedule[-1] > there:
        raise ValueError(
            f"{method}: rounds: schedule = {rounds.schedule} has more pairs judged than there are prompts, {there} with scored pairs; lower it"
        )


def run_rounds(
    method: str,
    student: str | Path,
    pairs: Sequence[ScoredPair],
    evaluator: Evaluator,
    settings: TrainSettings,
    folder: str | Path,
    **load: Any,
) -> TrainedStudent:
    """The student of the last round, kept as `trained_once` keeps one; every stage that is finished is read and not made
    again.

    Args:
        pairs: as for `train`; unscored ones are left out.
        evaluator: how the student is asked, with the reward judge. Its final judge is asked nothing.

    Raises ValueError as `check_rounds` does, and where a round finds no pair to train on; what was made stays.
    """
    check_rounds(method, pairs, evaluator, settings)
    arm, folder, scored = ARMS[METHODS[method].rounds], Path(folder), [pair for pair in pairs if pair.is_scored]
    plan = _plan(method, student, scored, evaluator, settings, load)
    mark = fingerprint(plan[-1])
    if kept := kept_student(method, student, settings, folder, mark, **load):
        return kept
    who = cache(lambda: TrainedStudent(method, *load_student(student, **load)))
    trained_on: list[ScoredPair] = []
    asked: set[str] = set()
    used, judged, adapter = 0, 0, None
    for number, made_of in enumerate(plan):
        place = folder / f"round-{number}-{fingerprint(made_of)}"
        write_json(place / "made_of.json", made_of)
        own = set(made_of["prompts"]) if arm.goes_on else {pair.id for pair in scored} - asked
        wanted = 0 if arm.goes_on else made_of["judged"] - judged
        new = (explored if arm.goes_on else acquired)(Round(
            method, number, place, [pair for pair in scored if pair.id in own], evaluator.reward_judge, settings, who,
            evaluator.chat, evaluator.max_new_tokens, wanted,
        ))  # fmt: skip
        asked |= {fields["id"].rpartition("#")[0] for _, fields in read_lines(place / "pairs.jsonl")}
        judged += sum(pair.is_scored for pair in _scored(place))
        trained_on = new if arm.goes_on else trained_on + new
        how = settings if arm.goes_on else settings.changed(epochs=settings.rounds.epochs)
        who = cache(partial(trained_once, method, student, trained_on, how, place, adapter, **load))
        if not (place / "round.json").exists():
            who()
            write_json(place / "round.json", {"round": number, "mark": place.name, **figures(place)})
        print(f"{method}, seed {settings.seed}: round {number + 1} of {len(plan)} is finished", flush=True)
        used += json.loads((place / "round.json").read_text(encoding="utf-8"))["pairs_used"]
        adapter = place / "adapter" if arm.goes_on else None
    trained = replace(
        who(), mark=mark, unscored=len(pairs) - len(scored), pairs_used=used if arm.goes_on else who().pairs_used
    )
    keep_student(trained, settings, folder)
    return trained


def _plan(
    method: str, student: str | Path, pairs: Sequence[ScoredPair], evaluator: Evaluator, settings: TrainSettings, load: Mapping[str, Any]
) -> list[dict[str, Any]]:  # fmt: skip
    """What each round is made of, with the mark of the round before."""
    arm, rounds, read = ARMS[METHODS[method].rounds], settings.rounds, settings.as_dict(method)
    how = {name: value for name, value in read.pop("rounds").items() if name not in ("count", "prompts", "schedule")}
    common = {
        "method": method, "student": identity(student, load.get("revision")), "load": {k: str(v) for k, v in load.items()}, "settings": read | how,
        "pairs": fingerprint([pair.model_dump(mode="json") for pair in pairs]), "chat": {name: evaluator.mark().get(name) for name in ASKED},
        "judge": mark_of_judges(evaluator.reward_judge, None), "group": GROUP,
    }  # fmt: skip
    if arm.goes_on:
        order = random.Random(f"rounds {settings.seed}").sample(range(len(pairs)), len(pairs))
        size = rounds.prompts
        parts = [
            order[number * size : (number + 1) * size] if size else order[number :: rounds.count]
            for number in range(rounds.count)
        ]
        own = [{"prompts": [pairs[i].id for i in sorted(part)]} for part in parts]
    else:
        own = [{"judged": judged} for judged in rounds.schedule]
    plan: list[dict[str, Any]] = []
    for one in own:
        plan.append(common | one | {"before": fingerprint(plan[-1]) if plan else ""})
    return plan


def asked_in_rounds(folder: Path) -> dict[str, int]:
    """What the finished row in `folder` was made with, over its rounds: trainings, and the answers, tokens and verdicts
    that its student and its judge were asked for."""
    last = json.loads((folder / "training.json").read_text(encoding="utf-8"))["made_of"]
    own = []
    while last:
        (place,) = folder.glob(f"round-*-{last}")
        own.append(json.loads((place / "round.json").read_text(encoding="utf-8")))
        last = json.loads((place / "made_of.json").read_text(encoding="utf-8"))["before"]
    return {"trainings": len(own)} | {name: sum(one[name] for one in own) for name in ("answers", "tokens", "verdicts")}


def figures(place: Path) -> dict[str, Any]:
    """Counts of a finished round, and its training in figures.

    answers, cut, tokens: of the student, all its samples. pairs_judged, verdicts: asked of the judge, a verdict for each
    different answer of a pair. answer_score: mean score, 0 to 1, of what was judged. undecided: prompts that the judge was
    asked about in vain, for a tie or a verdict that is none. added: pairs that the round adds to training; pairs_used: that
    it trained on; explored: those of them, of rows that explore, with an answer in the extra term. first, last: `LOGGED`
    of a training's first and last step. warning: `displacement.warning`, where it has something to say."""
    answers, added = (
        [fields for _, fields in read_lines(path)] if (path := place / name).exists() else []
        for name in ("answers.jsonl", "preferred.jsonl")
    )
    made_of, training = (
        json.loads((place / name).read_text(encoding="utf-8")) for name in ("made_of.json", "training.json")
    )
    pairs = _scored(place)
    texts = [fields["explored"]["text"] for fields in added if "explored" in fields]
    scores = [score for pair in pairs for score in pair.normalised() if score is not None]
    steps = [{name: step[name] for name in LOGGED if name in step} for step in training["history"] if "loss" in step]
    return {
        "answers": len(answers),
        "cut": sum(answer["finish_reason"] == "length" for answer in answers),
        "tokens": sum(answer["completion_tokens"] for answer in answers),
        "pairs_judged": len(pairs),
        "verdicts": sum(len({pair.response, pair.response_revised}) for pair in pairs),
        "answer_score": fmean(scores) if scores else None,
        "undecided": len(made_of.get("prompts", pairs)) - len(added),
        "added": len(added),
        "pairs_used": training["pairs_used"],
        **({"explored": sum(bool(text.strip()) for text in texts)} if texts else {}),
        "first": steps[0],
        "last": steps[-1],
        **({"warning": said} if (said := warning(training["history"])) else {}),
    }


def _scored(place: Path) -> list[ScoredPair]:
    """What the judge was asked about in a round; nothing where no prompt was left."""
    path = place / "scored.jsonl"
    return [ScoredPair(**fields) for _, fields in read_lines(path)] if path.exists() else []
