"""What labels say of a judge's rates: corrected rates, and the judge's inflation on the labelled answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.audit.sample import Audit, Row
from common.statistics import corrected_rate, wilson_interval


@dataclass(frozen=True)
class RowAccount:
    """k, n: answers that the judge found good, of those with a verdict. corrected: rate and 95 % interval, None where the
    labels do not allow it. judged_good, labelled_good, labelled: of the row's labelled answers, how many the judge and
    the labels call good, and how many there are."""

    row: Row
    k: int
    n: int
    corrected: tuple[float, float, float] | None
    judged_good: int
    labelled_good: int
    labelled: int

    @property
    def inflation(self) -> float | None:
        """The judge's rate less the labelled rate on the same answers, -1 to 1; None without labels."""
        return (self.judged_good - self.labelled_good) / self.labelled if self.labelled else None


def account(audit: Audit, labels: Mapping[str, int]) -> list[RowAccount]:
    """A row's figures each, from labels by id, 1 for a good answer.

    Rates are corrected with the judge's errors on the labelled answers of all rows together (`corrected_rate`), each
    answer once: the errors are taken to be the same in every row.
    """
    verdicts = {i: verdict for row in audit.rows for i, verdict in row.verdicts}
    yes, no = ([verdicts[i] for i in verdicts.keys() & labels.keys() if labels[i] == wanted] for wanted in (1, 0))
    found = []
    for row in audit.rows:
        k, n = sum(verdict for _, verdict in row.verdicts), len(row.verdicts)
        both = {i: verdict for i, verdict in row.verdicts if i in labels}
        corrected = corrected_rate(k, n, sum(yes), len(yes), len(no) - sum(no), len(no))
        good = sum(labels[i] for i in both)
        found.append(RowAccount(row, k, n, corrected, sum(both.values()), good, len(both)))
    return found


HEAD = ("row", "judge's rate", "corrected rate", "judge's inflation")


def cells(one: RowAccount) -> tuple[str, ...]:
    """A row of the table under `HEAD`."""
    low, high = wilson_interval(one.k, one.n)
    corrected = "not corrected" if one.corrected is None else "{:.2f} [{:.2f}, {:.2f}]".format(*one.corrected)
    inflation = "no labels" if one.inflation is None else f"{one.inflation:+.2f}, n = {one.labelled}"
    return (
        f"{one.row.name}, seed {one.row.seed}",
        f"{one.k / one.n:.2f} [{low:.2f}, {high:.2f}], n = {one.n}",
        corrected,
        inflation,
    )


def remarks(accounts: list[RowAccount]) -> list[str]:
    """What a reader must know beside the table."""
    said = ["Inflation: the judge's rate less the labelled rate, on the row's labelled answers alone."]
    if any(one.corrected is None for one in accounts):
        said.append(
            "Not corrected: that takes 5 labelled answers of either label, and a judge better than chance on them."
        )
    return said
