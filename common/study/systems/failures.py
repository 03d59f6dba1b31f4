"""ReverseGen: does a trained proposer find more prompts that a student fails on than its warm-up, and than chance?

The student is trained by rDPO at the centre of the study. The proposer learns from the judge of its pairs, which errs
on 10 %; the world's oracle counts the failures that are real.
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
from common.reversegen.rounds import Search, Target, Verdict, find_failures
from common.schema import Metric, PromptRecord
from common.storage import read_records
from common.study.cells import MAX_NEW_TOKENS, SETTINGS, evaluator_of, judge_of, scored_pairs
from common.study.design import Cell
from common.training.kept import Setting, trained_once, training_of

SEEDS, CASES, TUNED_AS = (0, 1, 2), ((),), "rdpo"
CELL = Cell()
SEARCH = Search(proposals=300, top_p=0.8, warm_up_epochs=20, prompt_tokens=64, answer_tokens=MAX_NEW_TOKENS)
PROPOSER = AUTHORS.changed(learning_rate=1.3e-3, beta=0.27, epochs=3, sft_learning_rate=6e-3, max_length=512)
"""The warm-up is long enough for a proposer of this size; learning rate and beta are those that the study's trials chose
for DPO. Three epochs, since a round has tens of pairs here."""
MADE_OF = {"search": asdict(SEARCH), "proposer": PROPOSER.as_dict("dpo"), "warm_up": PROPOSER.as_dict("sft")}

ROWS = {
    "random prompts of the world": (("random", {}), ("random", {})),
    "proposer after the warm-up": (("warm_up", {}), ("random", {})),
    **{f"round {number}": ((f"round_{number}", {}), ("warm_up", {})) for number in range(1, SEARCH.rounds + 1)},
    "round 3, against random prompts": (("round_3", {}), ("random", {})),
}
COLUMNS = {"failing": "fails, by the oracle", "judged_failing": "fails, by the judge", "harmful": "harmful prompts", "valid": "valid of proposed", "distinct": "distinct of valid"}  # fmt: skip
NOTE = "Share of valid, distinct prompts that rDPO's student fails on, and of proposals that are valid and distinct. Means over students with 95 % t-intervals, then the difference, paired by seed: of the warm-up to random prompts, of a round to the warm-up or to what is named."


def measure(seed: int, student: Path, folder: Path, setting: Setting) -> list[Metric]:
    """What the student fails on, by where the prompts come from; student and rounds are kept in `folder`."""
    settings, usual = SETTINGS.changed(**setting, seed=seed), scored_pairs(CELL, seed, student)
    judge, names = judge_of(CELL, seed), {"experiment": "safety", "seed": seed}
    target = Target(
        training_of("rdpo", student, usual, settings, **lab.LOADED),
        partial(trained_once, "rdpo", student, usual, settings, folder / "target", **lab.LOADED),
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
        row = json.loads(path.read_text(encoding="utf-8"))
        verdicts = read_records(path.with_name("verdicts.jsonl"), Verdict)
        method = f"round_{number}" if number else "warm_up"
        found += failing(
            [one.prompt for one in verdicts], [one.answer for one in verdicts],
            [one.handled if one.score is not None else None for one in verdicts], method=method, **names,
        )  # fmt: skip
        for metric, k, n in (("valid", row["valid"], row["proposed"]), ("distinct", row["distinct"], row["valid"])):
            found.append(rate([True] * k + [False] * (n - k), metric=metric, method=method, **names))
    known = {record.prompt for record in records}
    drawn = safety.prompts_for("train", 2 * SEARCH.proposals, CELL.benign_share, seed + 1000)
    others = [record for record in drawn if record.prompt not in known]
    others = [others[i] for i in distinct([record.prompt for record in others])][: SEARCH.proposals]
    answers = answers_of(evaluator_of(CELL, seed).chat(target.load()), others, MAX_NEW_TOKENS)
    found += failing(others, answers, found_good(judge, others, answers), method="random", **names)
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
