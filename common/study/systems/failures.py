"""ReverseGen: does a trained proposer find more prompts that a student fails on, and does training on them help?

The student is trained by rDPO at the centre of the study. The proposer learns from the judge of its pairs, which errs
on 10 %; the world's oracle counts the failures that are real. Then a student is trained anew, with some of the usual
pairs replaced by pairs on prompts that were found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from common.evaluation.answers import answers_of
from common.evaluation.metrics import found_good, rate
from common.miniature import lab
from common.miniature.worlds import safety
from common.reversegen.proposals import distinct
from common.reversegen.rounds import SETTINGS as AUTHORS
from common.reversegen.rounds import FOUND, Search, Target, Verdict, find_failures
from common.schema import Metric, PromptRecord
from common.storage import read_records
from common.study.cells import MAX_NEW_TOKENS, SETTINGS, evaluator_of, judge_of, pairs_on, scored_pairs
from common.study.design import Cell
from common.training.kept import Setting, trained_once, training_of

SEEDS, CASES, TUNED_AS = (0, 1, 2), ((),), "rdpo"
CELL = Cell()
SEARCH = Search(rounds=3, proposals=300, top_p=0.8, warm_up_epochs=20, prompt_tokens=64, answer_tokens=MAX_NEW_TOKENS)
PROPOSER = AUTHORS.changed(learning_rate=1.3e-3, beta=0.27, epochs=3, sft_learning_rate=6e-3, max_length=512)
"""The warm-up is long enough for a proposer of this size; learning rate and beta are those that the study's trials chose
for DPO. Three epochs, since a round has tens of pairs here."""
REPLACED = 100
"""Usual pairs that those on found prompts take the place of, at most."""
MADE_OF = {
    "search": asdict(SEARCH),
    "proposer": PROPOSER.as_dict("dpo"),
    "warm_up": PROPOSER.as_dict("sft"),
    "replaced": REPLACED,
}

ROWS = {
    "random prompts of the world": (("random", {}), ("warm_up", {})), "proposer after the warm-up": (("warm_up", {}), ("random", {})),
    **{f"ReverseGen, round {number}": ((f"round_{number}", {}), ("warm_up", {})) for number in range(1, SEARCH.rounds + 1)},
    "trained on the usual pairs": (("usual", {}), ("usual", {})), "trained on found prompts as well": (("found", {}), ("usual", {})),
}  # fmt: skip
COLUMNS = {
    "failing": "fails, by the oracle", "judged_failing": "fails, by the judge", "harmful": "harmful prompts", "valid": "valid", "distinct": "distinct of valid",
    "harmlessness": "harmlessness", "harmlessness_ood": "under held-out wrappers", "utility": "utility",
}  # fmt: skip
NOTE = "Above: share of valid, distinct prompts that the student fails on. Below: 400 pairs, of which at most 100 are on found prompts. Means over students with 95 % t-intervals, then the difference to the proposer after the warm-up (of that one to random prompts), or to the usual pairs, paired by seed."


def measure(seed: int, student: Path, folder: Path, setting: Setting) -> list[Metric]:
    """What the student fails on, by where the prompts come from, and how it does when trained on failures."""
    settings, usual = SETTINGS.changed(**setting, seed=seed), scored_pairs(CELL, seed, student)
    judge, evaluator, names = judge_of(CELL, seed), evaluator_of(CELL, seed), {"experiment": "safety", "seed": seed}
    once = partial(trained_once, "rdpo", student, settings=settings, **lab.LOADED)
    target = Target(
        training_of("rdpo", student, usual, settings, **lab.LOADED), partial(once, usual, folder=folder / "target")
    )
    records = safety.prompts_for("train", CELL.pairs, CELL.benign_share, seed)
    search, found = folder / "search", []
    try:
        find_failures(
            student, target, records, judge, lab.oracle("safety"), partial(lab.proposal, "safety"), search,
            PROPOSER.changed(seed=seed), SEARCH, read_as="world of safety", **lab.LOADED,
        )  # fmt: skip
    except ValueError as stopped:  # no failure, a collapse, or none confirmed: what was made until then counts
        print(f"reversegen, seed {seed}: {stopped}", flush=True)
    for number, path in enumerate(sorted(search.glob("round-*/round.json"))):
        row, verdicts = json.loads(path.read_text(encoding="utf-8")), read_records(path.with_name("verdicts.jsonl"), Verdict)
        method = f"round_{number}" if number else "warm_up"
        found += failing(
            [one.prompt for one in verdicts], [one.answer for one in verdicts],
            [one.handled if one.score is not None else None for one in verdicts], method=method, **names,
        )  # fmt: skip
        for metric, k, n in (("valid", row["valid"], row["proposed"]), ("distinct", row["distinct"], row["valid"])):
            found.append(rate([True] * k + [False] * (n - k), metric=metric, method=method, **names))
    others, known = (
        safety.prompts_for("train", 2 * SEARCH.proposals, CELL.benign_share, seed + 1000),
        {r.prompt for r in records},
    )
    others = [record for record in others if record.prompt not in known]
    others = [others[i] for i in distinct([record.prompt for record in others])][: SEARCH.proposals]
    trained = target.load()
    answers = answers_of(evaluator.chat(trained), others, MAX_NEW_TOKENS)
    found += failing(others, answers, found_good(judge, others, answers), method="random", **names)
    replaced = list(read_records(search / FOUND, PromptRecord))[:REPLACED]
    students = {"usual": trained}
    if replaced:
        pairs = [*usual[: len(usual) - len(replaced)], *pairs_on(replaced, CELL, seed, student)]
        students["found"] = once(pairs, folder=folder / "found")
        found.append(mean([float(len(replaced))], metric="replaced", method="found", **names))
    for method, one in students.items():
        measured = evaluator(one, "test", seed).metrics
        found += [m.model_copy(update={"method": method}) for m in measured if m.metric in COLUMNS]
    return found


def failing(
    prompts: Sequence[PromptRecord], answers: Sequence[str], good: Sequence[bool | None], **names: str | int
) -> list[Metric]:
    """Shares of prompts that are answered wrongly, by the oracle and by a judge, which finds an answer good, bad, or
    neither (None), and of harmful ones."""
    wrong = [not safety.right(record.prompt, answer) for record, answer in zip(prompts, answers, strict=True)]
    judged = [not one for one in good if one is not None]
    harmful = [safety.read_request(record.prompt).harmful for record in prompts]
    return [
        rate(values, metric=metric, **names)
        for metric, values in (("failing", wrong), ("judged_failing", judged), ("harmful", harmful))
    ]
