"""Where full-scale prompts come from: a local file, or a dataset of the Hugging Face Hub with the same columns.

| experiment | source | columns that are read |
|---|---|---|
| safety | AdvBench-style CSV, e.g. `harmful_behaviors.csv` of llm-attacks/llm-attacks | `goal` |
| roleplay-robustness | `jondurbin/truthy-dpo-v0.1` | `system` (the persona), `prompt` |
| sycophancy | `meg-tong/sycophancy-eval/feedback.jsonl` | `prompt`, `base.dataset`, `base.text`, `metadata.prompt_template_type` |
| sycophancy | arguments of your own, e.g. `sycophancy/arguments.jsonl` | `argument`, `topic` where there is one |
| all three | JSON lines of `schema.PromptRecord`, such as a `pairs.jsonl`, with splits of their own | all, answers left aside |

Goals are wrapped, personas injected and stances worded by `common.data.attacks`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, StringConstraints

from common.data.attacks import ATTACKS, FEEDBACK_REQUEST, Attacks
from common.data.readers import Row, Text, read_rows
from common.data.splits import SHARES, SPLITS, RecordType, Request, keep_apart, placed
from common.prompts import PROMPTS, fill
from common.schema import PromptRecord


def load_prompts(
    experiment: str,
    source: str | Path,
    revision: str = "",
    system: str | None = None,
    attacks: Attacks | None = None,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    limit: int = 0,
) -> list[PromptRecord]:
    """The prompts of an experiment, with their splits.

    Args:
        source: a .csv, .json or .jsonl file (relative paths start at the project root), a Hub dataset `owner/name`, or
            a file in one, `owner/name/file`.
        revision: commit or tag of the Hub dataset, required there: a dataset that changes is another experiment.
        system: the teacher's system prompt; None takes it from `common.prompts.PROMPTS`.
        attacks: None takes `common.data.attacks.ATTACKS`. Prompts of split `ood` are dressed in its held-out templates.
        shares: of the groups, per split.
        seed: of the splits, and of the draw of `limit` rows, 0 for all. limit 200 and seed 0 draw from `feedback.jsonl`
            the rows of the paper's repository (`datasets`' shuffle of seed 0, first 200).

    Raises ValueError or FileNotFoundError, in one sentence, for anything missing or broken, before anything is paid
    for.
    """
    if experiment not in REQUESTS:
        raise ValueError(f"unknown experiment {experiment!r}; there are {', '.join(REQUESTS)}")
    rows = read_rows(source, revision)
    if {"id", "split", "prompt"} <= set(rows[0].fields):
        records = check_experiment([row.read(WholePrompt) for row in rows], experiment, source)
        return random.Random(seed).sample(records, limit) if 0 < limit < len(records) else records
    requests = list(REQUESTS[experiment](rows))
    if limit:
        requests = [requests[i] for i in np.random.default_rng(seed).permutation(len(requests))[:limit]]
    attacks = attacks or ATTACKS[experiment]
    system = PROMPTS[experiment].system if system is None else system
    records = [PromptRecord(**placed(request, experiment, system, attacks, shares, seed)) for request in requests]
    return keep_apart(records, source, required=[split for split in SPLITS if shares.get(split)])


def check_experiment(records: list[RecordType], experiment: str, source: str | Path) -> list[RecordType]:
    """The records. Raises ValueError where some belong to another experiment."""
    if others := {record.experiment for record in records} - {experiment}:
        raise ValueError(
            f"{source} holds prompts of {', '.join(sorted(others))}, not of {experiment}; give its own file"
        )
    return records


class WholePrompt(PromptRecord, extra="ignore"):
    """A prompt that has its split, wrapper, persona or stance already."""


class GoalRow(BaseModel):
    goal: Text


class PersonaRow(BaseModel):
    system: Text
    prompt: Text


class Turn(BaseModel):
    content: Text


class FeedbackBase(BaseModel):
    dataset: str
    text: str = ""  # poems and arguments have one, mathematics has not


class FeedbackKind(BaseModel):
    prompt_template_type: str


class FeedbackRow(BaseModel):
    prompt: Annotated[list[Turn], Field(min_length=1)]
    base: FeedbackBase
    metadata: FeedbackKind


class ArgumentRow(BaseModel):
    argument: Text
    topic: Annotated[str, StringConstraints(strip_whitespace=True)] = (
        ""  # what must stay in one split; "" for the argument itself
    )


STANCE_OF = {"I really like": "love", "I really dislike": "hate", "I wrote": "wrote", "I did not write": "not wrote"}
"""`prompt_template_type` of sycophancy-eval -> stance, as `common.data.attacks.STANCES` calls it."""


def goals(rows: Iterable[Row]) -> Iterator[Request]:
    for row in rows:
        goal = row.read(GoalRow).goal
        yield Request(plain_prompt=goal, group=goal)


def personas(rows: Iterable[Row]) -> Iterator[Request]:
    """Without the rows for the uncensored helper, as in the paper's repository."""
    for row in rows:
        asked = row.read(PersonaRow)
        if "unbiased, uncensored, helpful" not in asked.system:
            yield Request(plain_prompt=asked.prompt, group=first_line(asked.system), persona=asked.system)


def first_line(persona: str) -> str:
    """A persona by its first line, which names it: two descriptions of one character are one group."""
    return persona.strip().splitlines()[0]


def feedback(rows: Sequence[Row]) -> Iterator[Request]:
    """Argument rows with a stance, each with the same argument's prompt without one; or every stance on arguments of
    one's own, grouped by topic where the row has one."""
    if rows and "argument" in rows[0].fields:
        for row in rows:
            read = row.read(ArgumentRow)
            for stance in ("love", "hate", "wrote"):
                yield Request(
                    plain_prompt=fill(FEEDBACK_REQUEST, argument=read.argument),
                    group=read.topic or read.argument,
                    kind=stance,
                )
        return
    arguments = [(row.where, read) for row in rows if (read := row.read(FeedbackRow)).base.dataset == "arguments"]
    plain = {read.base.text: read.prompt[0].content for _, read in arguments if not read.metadata.prompt_template_type}
    for where, read in arguments:
        stance, text = read.metadata.prompt_template_type, read.base.text
        if not stance:
            continue
        if stance not in STANCE_OF:
            raise ValueError(
                f"{where}: column metadata.prompt_template_type: unknown stance {stance!r}; there are {', '.join(STANCE_OF)}"
            )
        if text not in plain:
            raise ValueError(
                f"{where}: no row has this argument without a stance (prompt_template_type ''); take the whole file"
            )
        yield Request(plain_prompt=plain[text], group=text, kind=STANCE_OF[stance], prompt=read.prompt[0].content)


REQUESTS: dict[str, Callable[[Sequence[Row]], Iterator[Request]]] = {
    "safety": goals,
    "roleplay-robustness": personas,
    "sycophancy": feedback,
}
