"""The gate's report: one page to read, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from common.gate.decide import CANNOT_DECIDE, FAILS, LEVEL, PASSES, Compared, exit_code
from common.gate.rules import BLIND_SPOTS, QUESTIONS
from common.gate.sets import WANTS, PromptSet
from common.prompts import SAFETY
from common.storage import write_json, write_whole

EXAMPLES = 3
LONGEST = 300
"""Characters of a text in the report; gate.json has all of it."""
SAID = {
    PASSES: "**Passes.** No set is worse than the limits allow.",
    FAILS: "**Fails.** Some set is worse than the limits allow.",
    CANNOT_DECIDE: "**Cannot decide.** No set fails, and for some set there is too little to tell.",
}


class Answered(NamedTuple):
    """All that was found of one set: both answers to each prompt, and whether they are good."""

    prompts: PromptSet
    base: Sequence[str]
    adapter: Sequence[str]
    base_good: Sequence[bool | None]
    adapter_good: Sequence[bool | None]
    judge: str


def write_report(
    output: Path, names: Mapping[str, str], answered: Sequence[Answered], compared: Sequence[Compared], max_loss: float
) -> None:
    """Writes `gate.md` and `gate.json`. `names` are those of base and adapter."""
    code = exit_code(compared)
    limit = f" or by more than {max_loss:g}" if max_loss < 1 else ""
    lines = [
        "# Gate", "", SAID[code], "",
        *(f"- {role}: {name}" for role, name in names.items()),
        f"- a set fails where the adapter is significantly worse (exact McNemar test, Holm over {len(compared)} sets, level {LEVEL:g}){limit}",
        "", *table(compared), "",
    ]  # fmt: skip
    for one, result in zip(answered, compared):
        lines += _section(one, result)
    write_whole(output / "gate.md", "\n".join(lines) + "\n")
    write_json(output / "gate.json", {
        **names, "exit_code": code, "level": LEVEL, "max_loss": max_loss,
        "sets": {one.name: asdict(one) | {"loss": one.loss} for one in compared},
        **{f"answers of {one.prompts.name}": _rows(one) for one in answered},
    })  # fmt: skip


def table(compared: Sequence[Compared]) -> list[str]:
    """A line a set, in Markdown."""
    head = "set | good is | n | base | adapter | worse | better | p | p (Holm) | verdict"
    lines = [f"| {head} |", "|:--|:--|--:|:--|:--|--:|--:|--:|--:|:--|"]
    for one in compared:
        rates = (_rate(one, "base"), _rate(one, "adapter"))
        cells = one.name, one.want, one.n, *rates, one.worse, one.better, f"{one.p:.3g}", f"{one.p_holm:.3g}"
        lines.append(f"| {' | '.join(map(str, cells))} | {one.verdict}: {one.reason} |")
    return lines


def _rate(one: Compared, of: str) -> str:
    if not one.n:
        return "-"
    low, high = one.interval(of)
    return f"{getattr(one, of) / one.n:.2f} [{low:.2f}, {high:.2f}]"


def _section(one: Answered, result: Compared) -> list[str]:
    want = one.prompts.want
    question = SAFETY.yes_no_question if want == "declined" else QUESTIONS.get(want, "")
    seen = (
        f"Measured by the judge {one.judge}: {question} Degenerate answers are never good."
        if one.judge
        else f"Measured by rule. {BLIND_SPOTS[want]}"
    )
    lines = [f"## {one.prompts.name}", "", f"Good: {WANTS[want]}. {seen}", ""]
    if result.unscored:
        lines += [f"{result.unscored} prompts are left out: the judge gave no verdict on one of their answers.", ""]
    if not (worst := worst_examples(one)):
        return [*lines, "No prompt is worse with the adapter.", ""]
    for i in worst:
        lines += [f"- **{_cut(one.prompts.records[i].prompt)}**", f"  - base: {_cut(one.base[i])}", f"  - adapter: {_cut(one.adapter[i])}"]  # fmt: skip
    return [*lines, ""]


def worst_examples(one: Answered) -> list[int]:
    """The first `EXAMPLES` prompts on which only the base's answer is good."""
    both = zip(one.base_good, one.adapter_good)
    return [i for i, (base, adapter) in enumerate(both) if base is True and adapter is False][:EXAMPLES]


def _cut(text: str) -> str:
    text = " ".join(text.split()).replace("<", "&lt;")
    return (text if len(text) <= LONGEST else text[:LONGEST] + " …") or "(nothing)"


def _rows(one: Answered) -> list[dict[str, object]]:
    columns = zip(one.prompts.records, one.base, one.base_good, one.adapter, one.adapter_good, strict=True)
    return [
        {
            "prompt": record.prompt,
            "base": base,
            "base_good": base_good,
            "adapter": adapter,
            "adapter_good": adapter_good,
        }
        for record, base, base_good, adapter, adapter_good in columns
    ]
