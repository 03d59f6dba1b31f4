"""Dynamic Blocking: does it say requests in other words, and rightly, more often than greedy decoding or sampling?

The world knows exactly: a wording is right where the same verb, object and wrapper are read in it; a right one with
other words has another frame or other slots. Every way of decoding has the same trained paraphraser. Requests are
plain, since a wrapper has a single wording here, which blocking could only break. All frames say "the OBJECT", so with
p = 1, which bars these neighbours, no wording is right.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from common.miniature import lab
from common.miniature.worlds import safety
from common.paraphrase.comparison import compare_decoding
from common.paraphrase.training import chat_of, paraphraser
from common.schema import Metric
from common.study.cells import SETTINGS
from common.study.design import Cell
from common.training.kept import Setting

SEEDS, CASES, TUNED_AS = (0, 1, 2), ((),), ""
CELL, LESSONS, PROMPTS, MAX_NEW_TOKENS = Cell(), 400, 100, 48
LEARNT = {"sft_learning_rate": 6e-3, "epochs": 15}
"""Of both trainings of the paraphraser; found on the trial seed 100, see LOG.md."""
MADE_OF = {"lessons": LESSONS, "prompts": PROMPTS, "max_new_tokens": MAX_NEW_TOKENS, "learnt": LEARNT}

WAYS = ("greedy", "top-p 0.95", "blocking p = 0", "blocking p = 0.5", "blocking p = 1")
ROWS = {way: ((way, {}), (WAYS[1], {})) for way in WAYS}
COLUMNS = {"right": "right", "changed": "changed", "right_and_changed": "right and changed", "distinct": "distinct", "usable": "right, changed and distinct"}  # fmt: skip
NOTE = "Share of four texts for each of 100 held-out requests. Right: the same verb, object and wrapper; changed: other words than the request's; distinct: the first of its words for its request. Means over students with 95 % t-intervals, then the difference to top-p sampling, paired by seed."


def measure(seed: int, student: Path, folder: Path, setting: Setting) -> list[Metric]:
    """Every way of decoding one trained paraphraser, which is kept in `folder`."""
    drawn = partial(safety.prompts_for, benign_share=CELL.benign_share, wrapped_share=0.0)
    settings, limit = SETTINGS.changed(**LEARNT, seed=seed), {"max_new_tokens": MAX_NEW_TOKENS}
    records, meaning = drawn("train", LESSONS, seed=seed), lab.meaning("safety")
    trained = paraphraser(student, records, meaning, settings, folder, **limit, **lab.LOADED)
    return compare_decoding(chat_of(trained), drawn("test", PROMPTS, seed=1), meaning, seed, **limit)
