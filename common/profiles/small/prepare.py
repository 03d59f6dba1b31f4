"""What the profile `small` alone needs: real text cut and split for a student that a laptop trains, and that student.

    rdpo prepare-small

writes `runs/small/data/` and makes the two students, SmolLM2-135M-Instruct and the model organism of sycophancy;
`python -m common.batch small` calls it where that is missing. Rows come from the public repository
vicgalle/configurable-safety-tuning (MIT) at pinned commits, or from FOLDER, which holds rows of it as JSON lines:
`safety_pairs` (prompt, response, response_revised), `roleplay_personas` (persona, prompt, persona_response,
assistant_response), `factual_pairs` (prompt, chosen, rejected), `safety_judged` (prompt, answer, gpt4_harmless). The
rows behind the results shown are listed by hash in `results/small/rows.json`, and only those are taken from the public
files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlretrieve

from common.command import CommandParser
from common.data.attacks import JAILBREAKS, PERSONAS
from common.data.readers import read_rows
from common.data.recorded import PLAIN_HELPER, UNCENSORED, load_judged
from common.data.sources import first_line
from common.data.splits import SPLITS, keep_apart, words
from common.data.text_rules import sentence_prefixes, sentences, speaks_of_earlier
from common.profiles.small.organism import stance_follower
from common.profiles.small.smollm2 import smollm2
from common.runtime import ROOT, escape_what_the_terminal_lacks, quiet_libraries, resolve
from common.schema import Pair, fingerprint
from common.storage import write_json, write_jsonl

PUBLIC = "https://raw.githubusercontent.com/vicgalle/configurable-safety-tuning"
PAIRS_AT = "7e045341490d317aff9a8cae6254ca66b0e92275/data/configurable-system-prompt-multitask.json"
JUDGED_AT = [
    f"4e62dfb4139ddad2dcb654761c6d8eb4470acdf2/generations/generations_{model}.md"
    for model in ("hermes_CST", "hermes_DPO", "solar_CST", "solar_DPO")
]
ROWS = ROOT / "results/small/rows.json"
FOLDER = "runs/small/data"

ANSWER_TOKENS = 72
"""Both answers of every pair end at the last sentence end within this many tokens of the student's tokenizer; a pair
with an answer whose first sentence is longer is left out."""
SAFETY_TEST, SAFETY_VALIDATION, SAFETY_JUDGE = 40, 16, 20
BENIGN = {"train": 50, "validation": 12, "test": 30}
EVERYDAY = {"validation": 8, "test": 24}
PERSONA_SHARES = {"test": 0.18, "validation": 0.07, "judge": 0.15, "final": 0.15}
"""Of the personas; the rest is trained on. `judge` and `final` teach the two judges and are used for nothing else."""

Row = dict[str, Any]


class Rows(NamedTuple):
    """The recorded rows: answers and their revisions, persona rows, questions with a right and a wrong answer, judged
    answers."""

    safety: list[Row]
    personas: list[Row]
    factual: list[Row]
    judged: list[Row]


def rows_of(folder: str | Path) -> Rows:
    """The rows of a folder of JSON lines. Raises FileNotFoundError naming the file that is not there."""
    return Rows(
        *(
            [row.fields for row in read_rows(Path(folder) / f"{name}.jsonl")]
            for name in ("safety_pairs", "roleplay_personas", "factual_pairs", "safety_judged")
        )
    )


def public_rows(kept: Mapping[str, Sequence[str]]) -> Rows:
    """The same rows from the public repository, downloaded once: those whose hashes are in `kept`, in that order.
    Raises ValueError when one of them is not there."""
    rows = [row.fields for row in read_rows(_download(PAIRS_AT))]
    safety = [
        {"prompt": r["prompt"], "response": r["rejected"], "response_revised": r["chosen"]}
        for r in rows
        if r["task"] == "harmless" and UNCENSORED not in r["system"]
    ]
    truthful = [r for r in rows if r["task"] == "truthfulness"]
    plain, in_character = ([r for r in truthful if (PLAIN_HELPER in r["system"]) == helper] for helper in (True, False))
    personas = [
        {
            "persona": r["system"],
            "prompt": r["prompt"],
            "persona_response": r["chosen"],
            "assistant_response": r["rejected"],
        }
        for r in in_character
    ]
    factual = [{name: r[name] for name in ("prompt", "chosen", "rejected")} for r in plain]
    judged = [
        {"prompt": a.prompt, "answer": a.answer, "gpt4_harmless": a.label}
        for page in JUDGED_AT
        for a in load_judged(_download(page))
    ]
    found = Rows(safety, personas, factual, judged)
    by_hash = {name: {row_hash(row): row for row in of_kind} for name, of_kind in found._asdict().items()}
    if missing := sum(listed not in by_hash[name] for name in Rows._fields for listed in kept[name]):
        raise ValueError(f"{missing} of the rows in {ROWS} are not in the public files; give a folder that holds them")
    return Rows(
        *([by_hash[name][listed] for listed in kept[name]] for name in Rows._fields)
    )  # in the order of the list, on which splits hang


def row_hash(row: Row) -> str:
    """The fingerprint of a row's texts, whatever their order, line breaks and spaces."""
    return fingerprint(
        sorted(" ".join(text.split()) for name, text in row.items() if isinstance(text, str) and name != "model")
    )


def _download(place: str) -> Path:
    path = resolve(FOLDER) / "public" / place.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            urlretrieve(f"{PUBLIC}/{place}", part)
        except OSError as error:
            raise FileNotFoundError(
                f"cannot download {PUBLIC}/{place} ({error}); check the network, or save the file as {path}"
            ) from None
        part.rename(path)
    return path


def cut(text: str, length: Callable[[str], int], limit: int = ANSWER_TOKENS) -> str:
    """The text up to its last sentence end within `limit` tokens as `length` counts them, "" where its first sentence
    is longer."""
    return next((prefix for prefix in sentence_prefixes(text) if length(prefix) <= limit), "")


def safety_pairs(rows: Rows, length: Callable[[str], int], seed: int = 0) -> tuple[list[Pair], list[Row]]:
    """(pairs with their splits, rows for the final judge as text and label).

    A revision that speaks of an earlier answer, which a student never sees, is not trained on
    (`wording.speaks_of_earlier`, after cutting): most of those rows lend their prompt to the test, the others teach the
    final judge, without the sentences in question. Benign pairs are questions with a common misconception; the test has
    everyday requests of our own besides, and `ood` its harmful prompts under held-out wrappers.
    """
    cuts = _cut_rows(_shuffled(rows.safety, seed), ("response", "response_revised"), length)
    clean, marred = (
        [row for row in cuts if speaks_of_earlier(row["response_revised"]) == marks] for marks in (False, True)
    )
    test, final = marred[:SAFETY_TEST], marred[SAFETY_TEST:] + clean[:SAFETY_JUDGE]
    train = clean[SAFETY_JUDGE:]
    split = {"test": test, "validation": train[:SAFETY_VALIDATION], "train": train[SAFETY_VALIDATION:]}
    pairs = [
        _pair("safety", name, row["prompt"], row["response"], row["response_revised"], "harmful")
        for name, of in split.items()
        for row in of
    ]
    for row in test:
        kind, prompt = JAILBREAKS.dress("ood", row["prompt"])
        pairs.append(_pair("safety", "ood", prompt, row["response"], row["response_revised"], kind, row["prompt"]))
    texts = [(row[name], label) for row in final for name, label in (("response", 0), ("response_revised", 1))]
    learned = [{"text": kept, "label": label} for text, label in texts if (kept := _of_this_answer(text))]
    return pairs + benign_pairs("safety", rows, length, BENIGN, seed), learned


def _cut_rows(rows: Iterable[Row], answers: Sequence[str], length: Callable[[str], int]) -> list[Row]:
    """The rows with both answers cut, without those of which an answer has nothing left."""
    cuts = [{**row, **{name: cut(row[name], length) for name in answers}} for row in rows]
    return [row for row in cuts if all(row[name] for name in answers)]


def _of_this_answer(text: str) -> str:
    """The text without its sentences on an earlier answer, by which a judge would tell a revision."""
    return " ".join(sentence for sentence in sentences(text) if not speaks_of_earlier(sentence))


def benign_pairs(
    experiment: str,
    rows: Rows,
    length: Callable[[str], int],
    sizes: Mapping[str, int],
    seed: int,
    asked: Collection[str] = (),
) -> list[Pair]:
    """Questions with right and wrong answer (kind `benign question`), none of them `asked` elsewhere, and on the
    held-out splits everyday requests (`benign request`)."""
    cuts = _cut_rows(_shuffled(rows.factual, seed), ("chosen", "rejected"), length)
    questions, pairs = iter([row for row in cuts if words(row["prompt"]) not in asked]), []
    requests = iter(_shuffled([row.fields for row in read_rows("safety/everyday.jsonl")], seed))
    for split, count in sizes.items():
        pairs += [
            _pair(experiment, split, row["prompt"], row["rejected"], row["chosen"], "benign question")
            for row in (next(questions) for _ in range(count))
        ]
        pairs += [
            _pair(experiment, split, next(requests)["prompt"], "", "", "benign request")
            for _ in range(EVERYDAY.get(split, 0))
        ]
    return sorted(pairs, key=lambda pair: pair.id)  # mixed, so that the first of a set are of both kinds


def roleplay_pairs(rows: Rows, length: Callable[[str], int], seed: int = 0) -> tuple[list[Pair], list[Row], list[Row]]:
    """(pairs with their splits, rows for the reward judge, rows for the final judge): one persona never stands in two
    of them, nor a question in two splits.

    `ood` dresses the test's questions in held-out ways to inject a persona. Benign are questions without a persona, and
    on the test the same again under the test's personas (`benign persona`)."""
    cuts = _cut_rows(rows.personas, ("persona_response", "assistant_response"), length)
    personas = _shuffled(sorted({first_line(row["persona"]) for row in cuts}), seed)
    place, start = {}, 0
    for name, share in PERSONA_SHARES.items():
        end = start + round(share * len(personas))
        place |= dict.fromkeys(personas[start:end], name)
        start = end
    split_of = lambda row: place.get(first_line(row["persona"]), "train")  # noqa: E731
    pairs = keep_apart(
        [_persona_pair(split_of(row), row) for row in cuts if split_of(row) in SPLITS],
        "roleplay_personas",
        required=["train", "validation", "test"],
    )
    tested = [row for row in cuts if split_of(row) == "test"]
    pairs += [_persona_pair("ood", row) for row in tested]
    asked = {words(pair.plain_prompt) for pair in pairs}  # nobody else may teach these, or ask them again
    learned = {
        name: [
            {"text": row[key], "label": label}
            for row in cuts
            if split_of(row) == name and words(row["prompt"]) not in asked
            for key, label in (("persona_response", 0), ("assistant_response", 1))
        ]
        for name in ("judge", "final")
    }
    benign = benign_pairs(
        "roleplay-robustness",
        rows,
        length,
        {name: count for name, count in BENIGN.items() if name != "train"},
        seed,
        asked,
    )
    for i, question in enumerate([pair for pair in benign if pair.split == "test" and pair.kind == "benign question"]):
        prompt = PERSONAS.dress("test", question.prompt, persona=tested[i % len(tested)]["persona"].strip())[1]
        benign.append(
            _pair(
                "roleplay-robustness",
                "test",
                prompt,
                question.response,
                question.response_revised,
                "benign persona",
                question.prompt,
            )
        )
    return pairs + benign, learned["judge"], learned["final"]


def _persona_pair(split: str, row: Row) -> Pair:
    kind, prompt = PERSONAS.dress(split, row["prompt"], persona=row["persona"].strip())
    return _pair(
        "roleplay-robustness", split, prompt, row["persona_response"], row["assistant_response"], kind, row["prompt"]
    )


def _pair(
    experiment: str, split: str, prompt: str, response: str, revised: str, kind: str, plain_prompt: str = ""
) -> Pair:
    plain = plain_prompt or prompt
    return Pair(
        id=f"{experiment}-{fingerprint(split, prompt)}", experiment=experiment, split=split, prompt=prompt, kind=kind,
        plain_prompt=plain, group=words(plain), response=response, response_revised=revised, teacher="recorded",
    )  # fmt: skip


def _shuffled(items: Iterable[Any], seed: int) -> list[Any]:
    items = list(items)
    random.Random(seed).shuffle(items)
    return items


def write_data(folder: str | Path = "", output: str | Path = FOLDER) -> dict[str, int]:
    """Writes the pairs and the judges' rows of safety and role-play robustness below `output`; returns how many lines
    each file has.

    Args:
        folder: of the recorded rows; "" takes the public files.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    length = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    rows = rows_of(folder) if folder else public_rows(json.loads(ROWS.read_text(encoding="utf-8")))
    safety, safety_final = safety_pairs(rows, length)
    roleplay, roleplay_judge, roleplay_final = roleplay_pairs(rows, length)
    contents = {
        "safety": [pair.model_dump() for pair in safety], "safety_final": safety_final,
        "safety_judge": [{"text": row["answer"], "label": row["gpt4_harmless"]} for row in rows.judged],
        "roleplay": [pair.model_dump() for pair in roleplay], "roleplay_judge": roleplay_judge, "roleplay_final": roleplay_final,
    }  # fmt: skip
    for name, lines in contents.items():
        write_jsonl(resolve(output) / f"{name}.jsonl", lines)
    write_json(
        resolve(output) / "rows.json", {name: list(map(row_hash, of_kind)) for name, of_kind in rows._asdict().items()}
    )
    return {name: len(lines) for name, lines in contents.items()}


def is_prepared() -> bool:
    """Whether the data are there; `rows.json` is written last."""
    return (resolve(FOLDER) / "rows.json").exists()


def prepare(folder: str | Path = "", experiments: Collection[str] = ("sycophancy",)) -> None:
    """Everything that the profile needs before its first notebook: data (see `write_data`) and students, the organism
    where sycophancy is among the experiments. What is there stays."""
    quiet_libraries()
    if folder or not is_prepared():
        for name, count in write_data(folder).items():
            print(f"{resolve(FOLDER) / name}.jsonl: {count} lines", flush=True)
    print(
        f"students: {', '.join(map(str, [smollm2(), *([stance_follower()] if 'sycophancy' in experiments else [])]))}",
        flush=True,
    )


def parser(name: str = "prepare-small", about: str | None = __doc__) -> CommandParser:
    """The arguments of `rdpo prepare-small`, and of another preparation that begins with these data."""
    command = CommandParser(name, about)
    command.add_argument(
        "folder", nargs="?", default="", help="where the recorded rows are; default: the public repository"
    )
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    escape_what_the_terminal_lacks()
    prepare(asked.folder)


if __name__ == "__main__":
    main()
