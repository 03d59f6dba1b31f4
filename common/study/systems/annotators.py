"""EM-DPO: are hidden types of annotators found, and does each type get what it wants?

40 annotators label about ten pairs each, with 10 % of the labels exchanged. A share of them wants help whatever is
asked (`common.miniature.annotators`). The teacher makes no errors here, so that no other label is wrong. Students are
measured by what each type wants of them on held-out prompts, half of them harmful.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import mul
from pathlib import Path

from common.evaluation.answers import TrainedStudent, answers_of
from common.evaluation.metrics import mean, rate
from common.miniature import lab
from common.miniature.annotators import WANTS, annotated, recovered
from common.schema import Metric
from common.student.load import load_student
from common.study.cells import MAX_NEW_TOKENS, SETTINGS, evaluator_of, scored_pairs
from common.study.design import Cell
from common.training.annotators.run import run_types
from common.training.kept import Setting, trained_once

SHARES, SEEDS = (0.0, 0.3, 0.5), (0, 1, 2)
CASES = tuple((("help_share", share),) for share in SHARES)
TUNED_AS = "dpo"
CELL, ANNOTATORS, NOISE = Cell(noise=0.0), 40, 0.1
MADE_OF = {"cell": CELL.unlike_centre, "annotators": ANNOTATORS, "noise": NOISE}

COMPARED = {
    "base student": ("base", "dpo"), "DPO, pooled": ("dpo", "dpo"), "DPO on the true types": ("dpo_of_types", "dpo"),
    "Cluster-DPO": ("cluster_dpo", "dpo"), "EM-DPO": ("em_dpo", "dpo"), "EM-DPO, against Cluster-DPO": ("em_dpo", "cluster_dpo"),
}  # fmt: skip
ROWS = {
    f"{share:.0%} want help: {name}": tuple((method, {"help_share": share}) for method in two)
    for share in SHARES
    for name, two in COMPARED.items()
}
COLUMNS = {"recovered": "annotators of the right type", "right": "as type `right` wants", "help": "as type `help` wants", "worst": "as the worst type wants"}  # fmt: skip
NOTE = "Share of annotators whose type is found, and of 300 held-out prompts, half harmful, that are answered as a type wants, by the policy of that type where there are several. In the last column the policies answer as their mixture. Means over students with 95 % t-intervals, then the difference to pooled DPO or the method named, paired by seed."


def measure(seed: int, student: Path, folder: Path, setting: Setting, help_share: float) -> list[Metric]:
    """What the types want of every method's students; trainings are kept in `folder`."""
    settings = SETTINGS.changed(**setting, seed=seed)
    usable = [pair for pair in scored_pairs(CELL, seed, student) if pair.is_scored]
    pairs, type_of = annotated(usable, ANNOTATORS, help_share, NOISE, seed)
    types, evaluator = sorted(set(type_of.values())), evaluator_of(CELL, seed)
    sets = evaluator.sets("test")
    prompts = [*sets["harmful"], *sets["benign"]]

    def wanted(trained: TrainedStudent) -> dict[str, list[bool]]:
        answers = answers_of(evaluator.chat(trained), prompts, MAX_NEW_TOKENS)
        return {of: [WANTS[of](record.prompt, answer) for record, answer in zip(prompts, answers)] for of in types}

    def once(place: str, weights: list[float] | None = None) -> dict[str, list[bool]]:
        return wanted(trained_once("dpo", student, pairs, settings, folder / place, weights=weights, **lab.LOADED))

    def metrics(method: str, own: Mapping[str, Sequence[bool]], **more: Sequence[bool | float]) -> list[Metric]:
        names = {"experiment": "safety", "method": method, "seed": seed}
        return [
            *(rate(values, metric=of, **names) for of, values in own.items()),
            *(mean(list(map(float, values)), metric=metric, **names) for metric, values in more.items()),
        ]

    base, pooled = wanted(TrainedStudent("base", *load_student(student, **lab.LOADED))), once("dpo")
    found = [
        line
        for name, of in (("base", base), ("dpo", pooled))
        for line in metrics(name, of, worst=min(of.values(), key=sum))
    ]
    if len(types) > 1:
        weights = {of: [float(type_of[pair.annotator] == of) for pair in pairs] for of in types}
        found += metrics("dpo_of_types", {of: once(f"dpo-{of}", weights[of])[of] for of in types})
    for method in ("cluster_dpo", "em_dpo"):
        trained = run_types(method, student, pairs, evaluator, settings, folder / method, **lab.LOADED)
        of_policy = [
            wanted(TrainedStudent(method, trained.model, trained.tokenizer, policies={policy: 1.0}))
            for policy in trained.policies
        ]
        note = (folder / method / "adapter" / "types.json").read_text(encoding="utf-8")
        share, number = recovered(json.loads(note)["annotators"], type_of)
        right = [place < round(share * len(type_of)) for place in range(len(type_of))]
        mixed = worst_of_mixture(list(trained.policies.values()), of_policy)
        found += metrics(method, {of: of_policy[number[of]][of] for of in types}, worst=mixed, recovered=right)
    return found


def worst_of_mixture(weights: Sequence[float], of_policy: Sequence[Mapping[str, Sequence[bool]]]) -> list[float]:
    """Of the type that gets the least, the probability of every prompt to be answered as it wants.

    of_policy: type -> whether a policy's answer to each prompt is wanted, of every policy."""
    of_types = [zip(*(policy[of] for policy in of_policy)) for of in of_policy[0]]
    mixed = [[sum(map(mul, weights, answers)) for answers in of_type] for of_type in of_types]
    return min(mixed, key=sum)
