"""Self-critique that others have recorded: pairs without a teacher to pay, and answers with another judge's verdict.

| file | experiments |
|---|---|
| `vicgalle/configurable-system-prompt-multitask`, on the Hub or as .json in github.com/vicgalle/configurable-safety-tuning | safety, roleplay-robustness |
| JSON lines of `persona`, `prompt`, `persona_response`, `assistant_response` | roleplay-robustness |
| JSON lines of `schema.Pair`, as `pairs.jsonl` holds them, with splits of their own | all three |
| `results_*.json` as the notebooks of github.com/vicgalle/refined-dpo write them | all three |
| `generations/*.md` of configurable-safety-tuning | safety: answers with GPT-4's verdict |

Scores in `results_*.json` are left aside: those notebooks take the first whole number of the judge's reasoning, and
lose its minus sign. Score the pairs anew.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from common.data.attacks import ATTACKS, Attacks
from common.data.readers import OptionalText, Row, Text, by_id, read_rows, read_text
from common.data.sources import STANCE_OF, check_experiment, first_line
from common.data.splits import SHARES, SPLITS, Request, keep_apart, placed
from common.prompts import PROMPTS
from common.runtime import resolve
from common.schema import Pair
from common.storage import JsonlStore, Records

Answers = dict[str, str]
UNCENSORED, PLAIN_HELPER = "uncensored", "unbiased, honest, helpful"
"""What the system prompts of the multitask file say where no character is played: of the helper passed over, and of the
plain one."""


def load_pairs(
    experiment: str,
    source: str | Path,
    revision: str = "",
    system: str | None = None,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    limit: int = 0,
) -> list[Pair]:
    """Recorded pairs of an experiment, with their splits; arguments and errors as in
    `common.data.sources.load_prompts`, but `limit` draws pairs at random; pairs that are whole already keep their
    splits.

    With the same `shares` and `seed`, a goal, persona or argument has the split it has there. Prompts keep the wording
    that the answers were given to, so that nothing but injected personas is ever `ood`; the rest of that share joins
    `test`.
    """
    if experiment not in PROMPTS:
        raise ValueError(f"unknown experiment {experiment!r}; there are {', '.join(PROMPTS)}")
    rows = read_rows(source, revision)
    if {"id", "split", "response_revised"} <= set(rows[0].fields):
        pairs = list(by_id(rows, Pair).values())  # two lines of one id are refused
        return _drawn(check_experiment(pairs, experiment, source), limit, seed)
    readers = {"task": _multitask, "persona_prompt": _persona_results, "persona_response": _persona_pair}
    read = next((reader for column, reader in readers.items() if column in rows[0].fields), _results)
    system = PROMPTS[experiment].system if system is None else system
    pairs = [
        Pair(**placed(request, experiment, system, ATTACKS[experiment], shares, seed, recorded=True), **answers)
        for row in rows
        for request, answers in read(row, experiment)
    ]
    pairs = _drawn(pairs, limit, seed)
    if not pairs:
        raise ValueError(f"{source} has no rows for {experiment}; give another file or experiment")
    return keep_apart(pairs, source, required=[split for split in SPLITS if shares.get(split) and split != "ood"])


def _drawn(pairs: list[Pair], limit: int, seed: int) -> list[Pair]:
    return random.Random(seed).sample(pairs, limit) if 0 < limit < len(pairs) else pairs


class RecordedTeacher(NamedTuple):
    """Stands for the teacher of recorded pairs, whom nobody can ask."""

    source: str

    @property
    def name(self) -> str:
        return f"recorded in {self.source}"


def keep_pairs(pairs: Sequence[Pair], path: str | Path) -> Records:
    """The pairs as `pairs.jsonl` holds them, those that it lacks written now."""
    with JsonlStore(path) as store:
        for pair in pairs:
            if pair.id not in store:
                store.append(pair)
        return store.records((pair.id for pair in pairs), Pair)


class MultitaskRow(BaseModel):
    system: Text
    prompt: Text
    chosen: Text
    rejected: Text
    task: Text


class ResultRow(BaseModel):
    prompt: Text
    response: Text
    response_revised: Text
    critique: OptionalText = ""
    model: OptionalText = ""


class PersonaPairRow(BaseModel):
    persona: Text
    prompt: Text
    persona_response: Text
    assistant_response: Text


class PersonaResultRow(BaseModel):
    prompt: Text
    persona_template: Text
    persona_prompt: Text
    response_base: Text
    response_persona: Text
    response_revised: Text
    critique: OptionalText = ""
    model: OptionalText = ""


def _multitask(row: Row, experiment: str) -> Iterator[tuple[Request, Answers]]:
    """Each safety pair stands there twice, the second time reversed for an uncensored helper: that one is passed over.

    A persona was the system prompt there; here it is injected into the user's. Rows of `truthfulness` without a persona
    are questions with a common misconception, kind `benign question`.
    """
    read = row.read(MultitaskRow)
    improved = {"response": read.rejected, "response_revised": read.chosen, "teacher": "recorded"}
    if (experiment, read.task) == ("safety", "harmless"):
        if UNCENSORED not in read.system:
            yield Request(plain_prompt=read.prompt, group=read.prompt, kind="plain", prompt=read.prompt), improved
    elif (experiment, read.task) == ("roleplay-robustness", "truthfulness"):
        if PLAIN_HELPER in read.system:
            yield (
                Request(plain_prompt=read.prompt, group=read.prompt, kind="benign question", prompt=read.prompt),
                improved,
            )
        else:
            answers = {"response": read.chosen, "response_revised": read.rejected, "teacher": "recorded"}
            yield Request(plain_prompt=read.prompt, group=first_line(read.system), persona=read.system), answers


def _results(row: Row, experiment: str) -> Iterator[tuple[Request, Answers]]:
    """`prompt` is what the teacher was asked: wrapped (safety), or with a stance as sycophancy-eval words it."""
    read = row.read(ResultRow)
    answers = {
        "response": read.response,
        "response_revised": read.response_revised,
        "critique": read.critique,
        "teacher": read.model or "recorded",
    }
    if experiment != "sycophancy":
        yield Request(plain_prompt=read.prompt, group=read.prompt, kind="recorded", prompt=read.prompt), answers
        return
    stance = re.search(rf" ?({'|'.join(STANCE_OF)}) the argument\.", read.prompt)
    argument = read.prompt.partition("Argument:")[2].strip()
    if not (stance and argument):
        raise ValueError(
            f"{row.where}: column prompt: expected a stance ('I wrote the argument.') and 'Argument:' as in sycophancy-eval"
        )
    plain = read.prompt[: stance.start()] + read.prompt[stance.end() :]
    yield Request(plain_prompt=plain, group=argument, kind=STANCE_OF[stance[1]], prompt=read.prompt), answers


def _persona_results(row: Row, experiment: str) -> Iterator[tuple[Request, Answers]]:
    if experiment != "roleplay-robustness":
        return
    read = row.read(PersonaResultRow)
    answers = {
        "response": read.response_persona, "response_revised": read.response_revised, "response_base": read.response_base,
        "critique": read.critique, "teacher": read.model or "recorded",
    }  # fmt: skip
    yield (
        Request(
            plain_prompt=read.prompt,
            group=first_line(read.persona_template),
            kind="recorded",
            prompt=read.persona_prompt,
        ),
        answers,
    )


def _persona_pair(row: Row, experiment: str) -> Iterator[tuple[Request, Answers]]:
    if experiment == "roleplay-robustness":
        read = row.read(PersonaPairRow)
        answers = {
            "response": read.persona_response,
            "response_revised": read.assistant_response,
            "teacher": "recorded",
        }
        yield Request(plain_prompt=read.prompt, group=first_line(read.persona), persona=read.persona), answers


class JudgedAnswer(NamedTuple):
    """Another model's answer with a judge's binary verdict: 1 is harmless."""

    prompt: str
    answer: str
    system: str
    model: str
    label: int


def load_judged(path: str | Path) -> list[JudgedAnswer]:
    """The answers of one page `generations_<model>.md`, or of every such page in a folder: a table whose columns are
    prompt, response, system_prompt, score_response. Raises ValueError or FileNotFoundError naming file and line."""
    path = resolve(path)
    pages = sorted(path.glob("generations_*.md")) if path.is_dir() else [path]
    if not pages or not pages[0].is_file():
        raise FileNotFoundError(
            f"no page generations_*.md at {path}; give a page, or the folder generations/ of configurable-safety-tuning"
        )
    judged = [answer for page in pages for answer in _judged_of(page)]
    if not judged:
        raise ValueError(
            f"{path} holds no table of judged answers; give a page generations_*.md of configurable-safety-tuning"
        )
    return judged


def _judged_of(page: Path) -> Iterator[JudgedAnswer]:
    model = page.stem.removeprefix("generations_")
    table = [(number, line) for number, line in enumerate(read_text(page).split("\n"), start=1) if line.startswith("|")]
    for number, line in table[2:]:  # behind the header and its rule
        cells = line.strip()[1:-1].split("|")
        if len(cells) < 4 or cells[-1].strip() not in ("0", "1"):
            raise ValueError(
                f"{page}, line {number}: expected prompt, response, system_prompt and a score_response of 0 or 1; mend or delete the line"
            )
        prompt, *answer, system, score = cells
        yield JudgedAnswer(prompt.strip(), "|".join(answer).strip(), system.strip(), model, int(score))


def clone_wrappers(path: str | Path) -> Attacks:
    """The jailbreak wrappers of one's own clone of refined-dpo, from its `safety/templates.py`: its 18 revised
    templates to train on, its 8 ood ones held out. The file is parsed and never run. Raises ValueError naming what it
    lacks."""
    path = resolve(path)
    try:
        lists = {
            node.targets[0].id: node.value for node in ast.parse(read_text(path)).body if isinstance(node, ast.Assign)
        }
        train, ood = (_named_templates(lists[f"jailbreak_templates_{name}"], name) for name in ("revised", "ood"))
    except (KeyError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path}: expected lists jailbreak_templates_revised and jailbreak_templates_ood of texts with a slot {{prompt}} ({error})"
        ) from None
    return Attacks(train, ood)


def _named_templates(node: ast.expr, name: str) -> dict[str, str]:
    templates = {f"{name} {number}": str(text).strip() for number, text in enumerate(ast.literal_eval(node), start=1)}
    if without := [title for title, text in templates.items() if text.count("{prompt}") != 1]:
        raise ValueError(f"template {', '.join(without)} has not one slot")
    return templates
