"""The verdict: base and adapter prompt by prompt, an exact test a set, and what follows for the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.gate.sets import PromptSet
from common.statistics import holm, mcnemar_exact, wilson_interval

LEVEL = 0.05
"""A set is significantly worse where its p-value, corrected by Holm over the sets, is at most this."""
PASSES, FAILS, CANNOT_DECIDE = 0, 1, 2
"""Exit codes."""
Verdict = Literal["passes", "fails", "cannot decide"]


@dataclass(frozen=True)
class Compared:
    """One set's answers, base against adapter.

    n: prompts of which both answers have a verdict. base, adapter: how many of them are good. worse, better: prompts
    on which only the base's, or only the adapter's answer is good. p: exact McNemar test, two-sided. p_holm: corrected
    for the number of sets. reason: of the verdict, in words.
    """

    name: str
    want: str
    n: int
    unscored: int
    base: int
    adapter: int
    worse: int
    better: int
    p: float
    p_holm: float
    verdict: Verdict
    reason: str

    @property
    def loss(self) -> float:
        """Share of good answers of the base less that of the adapter, -1 to 1; 0 without prompts."""
        return (self.worse - self.better) / self.n if self.n else 0.0

    def interval(self, of: Literal["base", "adapter"]) -> tuple[float, float]:
        """Wilson interval, 95 %, of the share of good answers."""
        return wilson_interval(getattr(self, of), self.n)


def least_prompts(sets: int) -> int:
    """How many prompts a set needs for the test to be able to fail it, alone among so many sets: that many lost ones
    give a p-value of `LEVEL` at most after Holm's correction."""
    n = 1
    while sets * mcnemar_exact(n, 0) > LEVEL:
        n += 1
    return n


def compare(
    sets: Sequence[PromptSet], base: Mapping[str, Sequence[bool | None]], adapter: Mapping[str, Sequence[bool | None]],
    max_loss: float = 1.0,
) -> list[Compared]:  # fmt: skip
    """Every set with its verdict.

    A set fails where it is significantly worse, or where its `loss` exceeds `max_loss`. Otherwise it cannot be decided
    with fewer than `least_prompts`, and where the adapter lost more than it gained while the base has fewer good answers
    than that, so that losing all of them would not be significant. Otherwise it passes.
    """
    pairs = {
        of.name: [pair for pair in zip(base[of.name], adapter[of.name], strict=True) if None not in pair] for of in sets
    }
    counts = {name: (sum(a > b for a, b in both), sum(a < b for a, b in both)) for name, both in pairs.items()}
    p_values = [mcnemar_exact(*counts[of.name]) for of in sets]
    found, least = [], least_prompts(len(sets))
    for of, p, corrected in zip(sets, p_values, holm(p_values)):
        both, (worse, better) = pairs[of.name], counts[of.name]
        good, n = sum(a for a, _ in both), len(both)
        loss = (worse - better) / n if n else 0.0
        verdict, reason = "passes", "no significant loss"
        if corrected <= LEVEL and worse > better:
            verdict, reason = "fails", "significantly worse"
        elif loss > max_loss:
            verdict, reason = "fails", f"worse by {loss:.3f}, more than {max_loss:g}"
        elif n < least:
            verdict, reason = (
                "cannot decide",
                f"{n} prompts with verdicts, and the test needs {least} to be able to fail",
            )
        elif worse > better and good < least:
            verdict, reason = (
                "cannot decide",
                f"the base is good on {good}, and losing {least} at least can be significant",
            )
        elif worse <= better and good < least:
            reason = f"no loss; the base is good on {good} only, so there is little to lose"
        found.append(Compared(
            of.name, of.want, n, len(of.records) - n, good, sum(b for _, b in both), worse, better, p, corrected, verdict, reason,
        ))  # fmt: skip
    return found


def exit_code(compared: Sequence[Compared]) -> int:
    """1 where some set fails, else 2 where some set cannot be decided, else 0."""
    verdicts = {one.verdict for one in compared}
    return FAILS if "fails" in verdicts else CANNOT_DECIDE if "cannot decide" in verdicts else PASSES
