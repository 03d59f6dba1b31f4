"""What a teacher makes of the two forms of critique and revision, for results/teachers.md.

    python tests/benchmarks/teachers.py run NAME --base-url http://host/v1 --model MODEL --safety goals.csv --roleplay personas.jsonl [--prompts 40] [--temperature 0.7]
    python tests/benchmarks/teachers.py sheet SHEET.md [--pairs 20]      pairs of all runs for a blind reading, their origin in SHEET.json
    python tests/benchmarks/teachers.py table [--read SHEET.json READER.json ...]  writes results/teachers.json and results/teachers.md

`run` keeps every reply below runs/teachers and goes on where it stopped; both forms share their first answers. A reader's file says
"better", "no better" or "worse" of the revision by number of the sheet.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from sklearn.metrics import cohen_kappa_score

from common.chat.endpoint import EndpointChat
from common.chat.kept import KeptChat
from common.data.self_critique import WholeSentences, generate_pairs
from common.data.sources import load_prompts
from common.data.text_rules import declines
from common.data.yields import failed_chains, yield_of
from common.prompts import PROMPTS, VERSIONS
from common.runtime import Progress, resolve
from common.schema import Pair, Sampling
from common.statistics import wilson_interval
from common.storage import read_records, write_json

RUNS, PAGE = resolve("runs/teachers"), resolve("results/teachers.md")
FORMS = {"1": "in the conversation", "2": "quoted"}


def run(asked: argparse.Namespace) -> None:
    sources = {"safety": asked.safety, "roleplay-robustness": asked.roleplay, "sycophancy": "sycophancy/arguments.jsonl"}
    for experiment, source in sources.items():
        if not source:
            continue
        records = [record for record in load_prompts(experiment, source) if record.split == "train" and record.kind != "not wrote"]
        records = random.Random(0).sample(records, asked.prompts)
        for form in FORMS:
            prompts, folder = VERSIONS[f"{experiment}-{form}"], RUNS / asked.name / f"t{asked.temperature:g}" / form
            teacher = EndpointChat(asked.model, asked.base_url, asked.api_key_env, concurrency=7, timeout=900)
            kept = WholeSentences(KeptChat(teacher, folder.parent / f"{experiment}-replies.jsonl"))
            progress = Progress(f"{asked.name}, {prompts.version}", (3 + (prompts.quality is not None)) * len(records))
            sampling = Sampling(temperature=asked.temperature, max_new_tokens=asked.max_new_tokens)
            generate_pairs(kept, records, prompts, sampling, folder / f"{experiment}.jsonl", failed_limit=1.0, progress=progress)


def cells() -> dict[str, list[Pair]]:
    """Pairs by `teacher temperature form experiment`."""
    files = sorted(RUNS.glob("*/t*/[12]/*.jsonl"))
    return {" ".join(file.relative_to(RUNS).with_suffix("").parts): list(read_records(file, Pair)) for file in files if file.stem in PROMPTS}


def sheet(asked: argparse.Namespace) -> None:
    """The same prompts of every cell, in an order that tells nothing."""
    rows = [(cell, pair) for cell, pairs in cells().items() for pair in random.Random(1).sample(sorted(pairs, key=lambda pair: pair.id), min(asked.pairs, len(pairs)))]
    random.Random(7).shuffle(rows)
    texts = [f"### {i} [{pair.experiment}]\nREQUEST: {pair.plain_prompt or pair.prompt}\nORIGINAL: {pair.response}\nREVISION: {pair.response_revised}\n" for i, (_, pair) in enumerate(rows)]
    Path(asked.file).write_text("\n".join(texts), encoding="utf-8")
    write_json(Path(asked.file).with_suffix(".json"), {str(i): [cell, pair.id] for i, (cell, pair) in enumerate(rows)})


def table(asked: argparse.Namespace) -> None:
    found = {}
    for cell, pairs in cells().items():
        teacher, temperature, form, experiment = cell.split(" ")
        counted = yield_of(pairs, VERSIONS[f"{experiment}-{form}"], failed_chains(RUNS / teacher / temperature / form / f"{experiment}.jsonl"))
        found[cell] = counted.as_dict() | {"answers_that_decline": sum(declines(pair.response) for pair in pairs), "read": {}}
    agreement = {}
    if asked.read:
        origin, *readings = [json.loads(Path(file).read_text(encoding="utf-8")) for file in asked.read]
        for number, (cell, _) in origin.items():
            for reader, labels in enumerate(readings):
                found[cell]["read"].setdefault(f"reader {reader + 1}", Counter())[labels[number]] += 1
        agreement = {"pairs": len(origin), "readers": len(readings)}
        if len(readings) == 2:
            better = [[labels[number] == "better" for number in origin] for labels in readings]
            agreement |= {"same label": sum(readings[0][number] == readings[1][number] for number in origin), "kappa, better or not": round(cohen_kappa_score(*better), 2)}
    write_json(PAGE.with_suffix(".json"), {"cells": found, "agreement": agreement})
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- table -->")
    PAGE.write_text(f"{before}<!-- table -->\n{rows_of(found)}\n<!-- end -->{rest.partition('<!-- end -->')[2]}", encoding="utf-8")


def rows_of(found: dict[str, dict]) -> str:
    """The table of the page, a row on each teacher, temperature and experiment, both forms side by side."""
    lines = ["| teacher, temperature | experiment | first answers that decline | usable, in the conversation | usable, quoted | read as better, in the conversation | read as better, quoted |", "|:--|:--|--:|--:|--:|--:|--:|"]
    for cell, new in found.items():
        teacher, temperature, form, experiment = cell.split(" ")
        old = found.get(f"{teacher} {temperature} 1 {experiment}")
        if form == "2":
            lines.append(f"| {teacher.replace('_', ' ')}, {temperature[1:]} | {experiment} | {new['answers_that_decline']} of {new['chains']} | {_share(old)} | {_share(new)} | {_read(old)} | {_read(new)} |")
    return "\n".join(lines)


def _share(cell: dict | None) -> str:
    if cell is None:
        return "not asked"
    low, high = wilson_interval(cell["usable"], cell["chains"])
    return f"{cell['usable']} of {cell['chains']} [{low:.2f}, {high:.2f}]"


def _read(cell: dict | None) -> str:
    return "not asked" if cell is None else " / ".join(f"{labels.get('better', 0)} of {sum(labels.values())}" for labels in cell["read"].values()) or "not read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    of_run = stages.add_parser("run")
    of_run.add_argument("name")
    of_run.add_argument("--base-url", required=True)
    of_run.add_argument("--model", required=True)
    of_run.add_argument("--api-key-env", default="")
    of_run.add_argument("--safety", default="", help="file with the column goal")
    of_run.add_argument("--roleplay", default="", help="file with the columns system and prompt")
    of_run.add_argument("--prompts", type=int, default=40)
    of_run.add_argument("--temperature", type=float, default=0.7)
    of_run.add_argument("--max-new-tokens", type=int, default=120)
    of_sheet = stages.add_parser("sheet")
    of_sheet.add_argument("file")
    of_sheet.add_argument("--pairs", type=int, default=20)
    stages.add_parser("table").add_argument("--read", nargs="*", default=[])
    asked = parser.parse_args()
    {"run": run, "sheet": sheet, "table": table}[asked.stage](asked)


if __name__ == "__main__":
    sys.exit(main())
