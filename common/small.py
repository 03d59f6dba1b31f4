"""A real chat model on real pairs: SmolLM2-135M-Instruct learns not to slip into a persona, on a laptop.

    python -m common.small ROWS.jsonl

ROWS.jsonl holds `persona`, `prompt`, `persona_response` (in character) and `assistant_response` (plain), as in the task
`truthfulness` of configurable-system-prompt-multitask. The pairs go through the very `train_rdpo` notebook that the
miniature uses. What only this needs is here: splits by persona, swapped pairs, and judges that
are learned from text.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from common.notebook import execute
from common.experiment import Result
from common.labels import LearnedJudge, cross_fitted_scores
from common.report import judged_figure, judged_table, read_results, table_rows
from common.run import resolve
from common.schema import ScoredPair, fingerprint
from common.smollm2 import smollm2
from common.statistics import agreement
from common.storage import read_lines, write_json

SHARES = {"test": 0.2, "judge": 0.15}
"""Personas kept for the test, and for learning the final judge; the rest trains students and reward model."""
ANSWER_WORDS = 60
"""Both answers of every pair are cut at a sentence end within this many words, so that a step stays affordable on a CPU."""


def split_of_persona(personas: list[str], seed: int = 0) -> dict[str, str]:
    """Persona -> "train", "judge" or "test": one persona never stands in two of them."""
    unique = sorted(set(personas))
    random.Random(seed).shuffle(unique)
    test, judge = (round(SHARES[name] * len(unique)) for name in ("test", "judge"))
    return {persona: "test" if i < test else "judge" if i < test + judge else "train" for i, persona in enumerate(unique)}


def prepare(rows_file: str | Path, output: str | Path, swapped_share: float = 0.3, seed: int = 0) -> dict[str, int]:
    """Writes `clean.jsonl`, `swapped.jsonl` (scored pairs, train and test) and `judge_rows.jsonl` (text, label 1 = plain).

    The revision is the plain answer and the original the answer in character; in `swapped.jsonl` a share of the train
    pairs has the two exchanged, so that DPO's label is wrong there. Scores come from a learned reward model,
    cross-fitted by persona: no answer is scored by a model that saw its persona, nor any test or judge row.
    Returns counts.
    """
    rows = [{**row, **{key: cut(row[key]) for key in ("persona_response", "assistant_response")}} for _, row in read_lines(rows_file)]
    split = split_of_persona([row["persona"] for row in rows], seed)
    train = [row for row in rows if split[row["persona"]] == "train"]
    answers = [text for row in train for text in (row["persona_response"], row["assistant_response"])]
    scores = cross_fitted_scores(answers, [0, 1] * len(train), [row["persona"] for row in train for _ in range(2)])

    clean = [_pair(row, "train", low, high) for row, low, high in zip(train, scores[::2], scores[1::2])]
    held_out = [_pair(row, "test", None, None) for row in rows if split[row["persona"]] == "test"]
    exchanged = set(random.Random(seed + 1).sample(range(len(clean)), round(swapped_share * len(clean))))
    swapped = [_swap(pair) if i in exchanged else pair for i, pair in enumerate(clean)]

    output = resolve(output)
    _write_lines(output / "clean.jsonl", [p.model_dump_json() for p in clean + held_out])
    _write_lines(output / "swapped.jsonl", [p.model_dump_json() for p in swapped + held_out])
    judge_rows = [row for row in rows if split[row["persona"]] == "judge"]
    labelled = [{"text": row[key], "label": label} for row in judge_rows for key, label in (("persona_response", 0), ("assistant_response", 1))]
    _write_lines(output / "judge_rows.jsonl", [json.dumps(row, ensure_ascii=False) for row in labelled])
    counts = {
        "train pairs": len(clean), "swapped": len(exchanged), "test prompts": len(held_out), "judge answers": len(labelled),
        "clean pairs that the reward model prefers right": sum(high > low for low, high in zip(scores[::2], scores[1::2])),
    }  # fmt: skip
    write_json(output / "counts.json", counts)
    return counts


def cut(text: str, words: int = ANSWER_WORDS) -> str:
    """The answer's first sentences with at most `words` words together; a longer first sentence is cut at the limit."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        if len(" ".join([*kept, sentence]).split()) > words:
            break
        kept.append(sentence)
    return " ".join(kept) or " ".join(text.split()[:words])


def _pair(row: dict, split: str, score_response: float | None, score_revised: float | None) -> ScoredPair:
    prompt = f"{row['persona'].strip()}\n\n{row['prompt']}"
    return ScoredPair(
        id=f"persona-{fingerprint(prompt)}", experiment="roleplay-robustness", split=split, prompt=prompt, kind="persona",
        response=row["persona_response"], response_revised=row["assistant_response"],
        score_response=score_response, score_revised=score_revised, judge="learned from words and word pairs, cross-fitted", scale=(0.0, 1.0),
    )  # fmt: skip


def _swap(pair: ScoredPair) -> ScoredPair:
    return pair.model_copy(update={
        "response": pair.response_revised, "response_revised": pair.response,
        "score_response": pair.score_revised, "score_revised": pair.score_response, "kind": "swapped",
    })  # fmt: skip


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def label_sample(results: dict[str, list[Result]], count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """`count` held-out answers in random order, as many of each row as possible, without a word on the method.

    Each has an `id` (a hash of row and answer), the request and the answer: what a rater sees."""
    rows = [(f"{condition}/{result.method}", i, answer) for condition, of in results.items() for result in of for i, answer in enumerate(result.answers["held_out"])]
    rng, by_row = random.Random(seed), {}
    for name, i, answer in rows:
        by_row.setdefault(name, []).append({"id": fingerprint(name, i, answer), "row": name, "prompt": str(i), "answer": answer})
    sample = [item for items in by_row.values() for item in rng.sample(items, count // len(by_row))]
    rng.shuffle(sample)
    return sample


def judge_check(results: dict[str, list[Result]], judge: LearnedJudge, labels_file: str | Path) -> dict[str, object]:
    """The judge and its rates against labels of the sampled answers (1 = out of character), given twice by one rater.

    Rater with themselves, judge with the rater's first labels: share of equal verdicts and Cohen's kappa; and for each row
    k of n out of character by label and by judge."""
    labels = {row["id"]: row for _, row in read_lines(labels_file)}
    sample = [item for item in label_sample(results) if item["id"] in labels]
    first, second = ([labels[item["id"]][name] for item in sample] for name in ("first", "second"))
    judged = [int(j.score > 0.5) for j in judge.judge([""] * len(sample), [item["answer"] for item in sample])]
    rows = {}
    for item, label, verdict in zip(sample, first, judged):
        row = rows.setdefault(item["row"], {"n": 0, "label": 0, "judge": 0})
        rows[item["row"]] = {"n": row["n"] + 1, "label": row["label"] + label, "judge": row["judge"] + verdict}
    return {"rater twice": agreement(first, second), "judge against rater": agreement(first, judged), "rows": rows}


def labels_belong(labels_file: str | Path, results: dict[str, list[Result]]) -> bool:
    """Whether the labels are of these very answers; another machine or version answers in other words, which is said."""
    strange = {row["id"] for _, row in read_lines(labels_file)} - {item["id"] for item in label_sample(results)}
    if strange:
        print(f"{labels_file}: {len(strange)} labels belong to answers that this run did not give, so the table has no rater's column; label the new sample", flush=True)
    return not strange


def report(folder: Path, shown: Path) -> None:
    """Table and figure, written to `shown`; where the sampled answers are labelled, with the check of the judge and the
    rater's own counts in the table."""
    results = {condition: read_results(folder / name) for condition, name in (("30 % swapped", "swapped"), ("clean", "clean"))}
    shown.mkdir(parents=True, exist_ok=True)
    table, labels = judged_table(results), shown / "labels.jsonl"
    if labels.exists() and labels_belong(labels, results):
        check = judge_check(results, LearnedJudge.from_file(folder / "judge_rows.jsonl"), labels)
        write_json(shown / "judge_check.json", check)
        read = [check["rows"][f"{condition}/{result.method}"] for condition, of in results.items() for result in of]
        table.insert(3, "(labelled by a rater)", [f"{row['label']} of {row['n']}" for row in read])
        print({name: check[name] for name in ("rater twice", "judge against rater")})
    (shown / "table.md").write_text(table.to_markdown(index=False) + "\n", encoding="utf-8")
    write_json(shown / "table.json", [row for of in results.values() for row in table_rows(of)])
    judged_figure(results).savefig(shown / "judged.png", dpi=150)
    print((shown / "table.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m common.small", description=__doc__.split("\n")[0])
    parser.add_argument("rows", help="JSONL with persona, prompt, persona_response, assistant_response")
    rows = Path(parser.parse_args().rows)
    folder = resolve("runs/small/roleplay-robustness")
    print("data:", prepare(rows, folder))
    common = {"experiment": "roleplay-robustness", "student": str(smollm2()), "final_judge": f"learned:{folder / 'judge_rows.jsonl'}", "evaluate_on": "test", "labels_file": "",
              "train_pairs": 0, "learning_rate": 1e-4, "sft_learning_rate": 1e-4, "epochs": 1, "batch_size": 4, "beta": 0.1, "alpha": 4.0,
              "max_length": 512, "seeds": [0]}  # fmt: skip
    for name, methods in (("swapped", ["base", "dpo", "rdpo", "dsc"]), ("clean", ["dpo"])):
        parameters = {**common, "pairs_file": str(folder / f"{name}.jsonl"), "output": str(folder / name), "methods": methods}
        ran = execute("roleplay-robustness/train_rdpo.ipynb", folder / f"train_rdpo-{name}.ipynb", parameters)
        print(f"{name}: {'trained' if ran else 'finished before with the same code, data and parameters, reused'}", flush=True)
    report(folder, resolve("results/small/roleplay-robustness"))


if __name__ == "__main__":
    main()
