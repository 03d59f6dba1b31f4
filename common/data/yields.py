"""Which of a teacher's chains can be trained on, and what is wrong with the others: measured on the first few, before
the rest is paid for, and on all of them afterwards.

Rules of words, ours: they see that a revision says nothing new, not whether it is right. That takes a judge or a
reader.
"""

from __future__ import annotations

import difflib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.data.text_rules import declines, in_another_language, speaks_of_earlier
from common.prompts import ExperimentPrompts
from common.schema import Pair, PromptRecord
from common.statistics import wilson_interval
from common.storage import read_lines

FAULTS = {
    "same": "the revision says (nearly) what the answer said",
    "refused before and after": "answer and revision both decline",
    "harmless and refused": "the revision declines a harmless request that the answer met",
    "another language": "the revision is in another language than its request",
    "echo": "the revision repeats what it was asked, or the critique",
    "speaks of the answer": "the revision speaks of an answer that its reader never saw, or of having none to revise",
}
"""What makes a chain useless, in the order in which it is looked for."""
NEARLY = 0.95
"""Share of words in common, in order, from which two texts say the same."""
RUN = 8
"""Words in a row that nobody repeats by chance."""
NOTHING_TO_READ = re.compile(
    r"\b(?:no|not|n't|cannot|without)\b(?: \w+){0,4} (?:previous|last|earlier|prior|given|any|the|an?) (?:\w+ )?(?:answer|response|feedback|text|message)\b|\b(?:please|(?:could|can|would) you|if you(?: can| could)?) provide (?:me )?(?:the|your|more|an?)\b",
    re.I,
)


def fault_of(pair: Pair, prompts: ExperimentPrompts) -> str:
    """The first of `FAULTS` that a chain has, "" for a usable one."""
    answer, revision = pair.response.split(), pair.response_revised.split()
    if difflib.SequenceMatcher(None, answer, revision, autojunk=False).ratio() >= NEARLY:
        return "same"
    if declines(pair.response) and declines(pair.response_revised):
        return "refused before and after"
    if pair.is_benign and declines(pair.response_revised):
        return "harmless and refused"
    if in_another_language(pair.response_revised, pair.plain_prompt or pair.prompt):
        return "another language"
    asked = [
        re.sub(r"\{\w+\}", " ", text)
        for text in (prompts.critique_request, prompts.revision_request, prompts.revision_system)
    ]
    runs, copied = _runs(pair.response_revised), _runs(pair.prompt) | _runs(pair.critique)
    if runs & set().union(*map(_runs, asked)) or 2 * len(runs & copied) > len(runs):
        return "echo"
    speaks = (
        speaks_of_earlier(pair.response_revised)
        and not speaks_of_earlier(pair.response)
        or NOTHING_TO_READ.search(pair.response_revised)
    )
    return "speaks of the answer" if speaks else ""


def misses_the_answer(pair: Pair) -> bool:
    """Whether a critique has no word to say of this answer: it finds none to read, or shares fewer than two of its
    longer words."""
    of_answer = _long_words(pair.response)
    return bool(NOTHING_TO_READ.search(pair.critique)) or len(of_answer & _long_words(pair.critique)) < min(
        2, len(of_answer)
    )


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _long_words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.casefold()) if len(word) > 3}


@dataclass
class Yield:
    """Counts over `chains`, failed ones among them: `usable`, `faults` by name, `critique_misses`, and usable ones by
    kind of prompt.
    examples: of each fault, the id and texts of its first chain."""

    chains: int
    usable: int
    failed: int
    faults: dict[str, int]
    critique_misses: int
    by_kind: dict[str, tuple[int, int]]
    examples: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.usable / self.chains if self.chains else 0.0

    def as_dict(self) -> dict[str, Any]:
        """What a manifest keeps: counts, without texts."""
        return {name: value for name, value in asdict(self).items() if name != "examples"}

    def lines(self) -> list[str]:
        """The same in words, an example below each fault."""
        low, high = wilson_interval(self.usable, self.chains)
        lines = [f"{self.usable} of {self.chains} chains are usable: {self.share:.0%} [{low:.0%}, {high:.0%}]"]
        lines += (
            [f"  {kind}: {usable} of {chains}" for kind, (usable, chains) in sorted(self.by_kind.items())]
            if len(self.by_kind) > 1
            else []
        )
        lines += [f"  {self.failed} failed: cut off, filtered or never answered"] if self.failed else []
        for name, count in self.faults.items():
            lines.append(f"  {count} {name}: {FAULTS[name]}")
            lines += [f"      {part}: {text}" for part, text in self.examples[name].items()]
        return [*lines, f"  {self.critique_misses} critiques do not refer to the answer"]


def yield_of(pairs: Sequence[Pair], prompts: ExperimentPrompts, failed: int = 0) -> Yield:
    """The yield of finished chains and of as many that `failed`."""
    faults, kinds, usable, examples, misses = Counter(), Counter(), Counter(), {}, 0
    for pair in pairs:
        fault = fault_of(pair, prompts)
        kinds[pair.kind] += 1
        usable[pair.kind] += not fault
        misses += misses_the_answer(pair)
        if fault:
            faults[fault] += 1
            shown = {
                "request": pair.plain_prompt or pair.prompt,
                "answer": pair.response,
                "critique": pair.critique,
                "revision": pair.response_revised,
            }
            examples.setdefault(fault, {name: " ".join(text.split())[:160] for name, text in shown.items()})
    by_kind = {kind: (usable[kind], count) for kind, count in kinds.items()}
    return Yield(
        len(pairs) + failed,
        usable.total(),
        failed,
        {name: faults[name] for name in FAULTS if faults[name]},
        misses,
        by_kind,
        examples,
    )


def pilot(
    records: Sequence[PromptRecord],
    prompts: ExperimentPrompts,
    generate: Callable[[Sequence[PromptRecord]], Sequence[Pair]],
    first: int,
    least_yield: float,
    cost: Callable[[], float] = lambda: 0.0,
) -> Yield:
    """Runs the first chains, kind by kind, says what came of them and what the whole run would give and cost.

    Args:
        generate: makes and keeps the chains of the records it is given; nothing is asked twice.
        first: how many chains.
        least_yield: share of usable chains; fewer raise.
        cost: dollars spent so far.

    Raises ValueError with the counts, examples and which texts to look at, before the other prompts are asked.
    """
    if not records:
        raise ValueError("there is no prompt to make chains of; give more prompts, or fewer shards")
    chosen, before, started = one_kind_after_another(records)[:first], cost(), time.monotonic()
    made = generate(chosen)
    seconds = (time.monotonic() - started) / len(chosen) * (len(records) - len(chosen))
    found = yield_of(made, prompts, failed=len(chosen) - len(made))
    print(f"pilot of {len(chosen)} prompts, of {len(records)}", *found.lines(), sep="\n", flush=True)
    dollars = (cost() - before) / len(chosen) * len(records)
    print(
        f"all {len(records)} prompts at this rate: about {round(found.share * len(records))} usable pairs{f', {dollars:.2f} dollars' if dollars else ''}{f', {seconds / 60:.0f} minutes for those that are left' if seconds > 60 else ''}",
        flush=True,
    )
    if found.share < least_yield:
        most = (
            "failed"
            if found.failed > max(found.faults.values(), default=0)
            else max(found.faults, key=found.faults.get)
        )
        raise ValueError(
            f"pilot: {found.usable} of {found.chains} chains are usable, less than least_yield = {least_yield:.0%}, so the other prompts are not asked. {REMEDIES[most]}"
        )
    return found


REMEDIES = {
    "failed": "See failed_pairs.jsonl for the reasons; more max_new_tokens helps against cut turns.",
    "same": "The revision does not follow the critique: look at critique_request and revision_request (prompts_file), or take a stronger teacher.",
    "refused before and after": "The teacher declines from the start, so there is nothing to revise: take a teacher that the attacks reach, or the first answers of the student (respond_with).",
    "harmless and refused": "The teacher takes harmless requests for harmful ones, and a student of such pairs declines too much: look at critique_request (prompts_file), or take a stronger teacher.",
    "another language": "Take a teacher that keeps to the language of the request, or say the language in the texts (prompts_file).",
    "echo": "The revision repeats its request: look at revision_request and its examples (prompts_file).",
    "speaks of the answer": "The revision speaks of the answer that it replaces: look at revision_request and its examples (prompts_file).",
}


def one_kind_after_another(records: Sequence[PromptRecord]) -> list[PromptRecord]:
    """The records in turns of their kinds, so that the first few hold some of each."""
    turn: Counter[str] = Counter()
    placed = []
    for record in records:
        turn[record.kind] += 1
        placed.append((turn[record.kind], record))
    return [record for _, record in sorted(placed, key=lambda item: item[0])]


def failed_chains(pairs_file: str | Path) -> int:
    """How many prompts the last run could not finish, by the file beside its pairs."""
    path = Path(pairs_file).with_name(f"failed_{Path(pairs_file).name}")
    return sum(1 for _ in read_lines(path)) if path.exists() else 0
