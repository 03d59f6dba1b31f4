"""What the gate asks: sets of prompts, each with what a good answer to them is.

| columns of a file | is read as |
|---|---|
| `prompt` and `label`, each safe or unsafe (XSTest; without `label`, a `type` that begins with contrast or unsafe is unsafe, and one must) | two sets: safe ones should be answered, unsafe ones declined |
| `Goal` (JailbreakBench), or `prompt` alone | one set; `declined=FILE`, `answered=FILE` or `readable=FILE` gives what is good |
| `question` and `stance`, what the user says to be true | one set: a good answer does not begin by agreeing |
| `topic`, `userstance1` and `userstance2`, two users who say the opposite (syco-bench) | the same, each topic asked by both |

Names of columns may have any case, and other columns are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator

from common.data.readers import Row, Text, read_table
from common.runtime import nearest, shortened
from common.schema import PromptRecord, fingerprint
from common.storage import read_yaml

WANTS = {
    "declined": "the request should be declined",
    "answered": "the request should be answered",
    "readable": "the answer should be language",
    "steady": "the answer should not follow the user's stance",
}
"""What a good answer is, by name."""
BUILT_IN = Path(__file__).with_name("prompts.yaml")
LABELS = {"safe": "answered", "unsafe": "declined"}


class PromptSet(NamedTuple):
    """name: as the report shows it. want: a key of `WANTS`."""

    name: str
    want: str
    records: tuple[PromptRecord, ...]


class _Prompt(BaseModel):
    prompt: Text


class _Goal(BaseModel):
    goal: Text


class _Labelled(BaseModel):
    prompt: Text
    label: Annotated[Literal["safe", "unsafe"], BeforeValidator(lambda cell: str(cell).strip().casefold())]


class _Typed(BaseModel):
    prompt: Text
    type: Text


class _Stance(BaseModel):
    question: Text
    stance: Annotated[Text, AfterValidator(lambda text: _said(text))]


class _Mirrored(BaseModel):
    topic: Text
    userstance1: Annotated[Text, AfterValidator(lambda text: _said(text))]
    userstance2: Annotated[Text, AfterValidator(lambda text: _said(text))]


def _said(text: str) -> str:
    if len(text.split()) < 2:
        raise ValueError(f"{shortened(text)} is no sentence; write what the user says, such as I think that it is 7")
    return text


def open_sets(names: Sequence[str]) -> list[PromptSet]:
    """The sets that `names` give: names of built-in ones, `FILE`, or `WANT=FILE`.

    Raises ValueError or FileNotFoundError naming file, line, column and remedy: no such set or file, a broken row, a
    prompt that occurs twice in a set, two sets of one name.
    """
    own, found = built_in(), []
    for name in names:
        found += [own[name]] if name in own else _of_file(name, own)
    named = [one.name for one in found]
    if twice := next((name for name in named if named.count(name) > 1), ""):
        raise ValueError(f"two sets are called {twice}; give each once, and rename one of two files of the same name")
    return found


def built_in() -> dict[str, PromptSet]:
    """The package's own sets by name; prompts in our own words."""
    content = read_yaml(BUILT_IN.read_text(encoding="utf-8"))
    return {name: _set(name, of["want"], [(prompt, name) for prompt in of["prompts"]]) for name, of in content.items()}


def _of_file(name: str, own: dict[str, PromptSet]) -> list[PromptSet]:
    want, _, file = name.partition("=") if re.match(r"\w+=", name) and not Path(name).exists() else ("", "", name)
    if want and want not in WANTS:
        raise ValueError(f"unknown {want}= before {file}{nearest(want, WANTS)}; there are {', '.join(WANTS)}")
    if not Path(file).suffix and not Path(file).exists():
        raise ValueError(f"no set {file}{nearest(file, own)}; there are {', '.join(own)}, or give a file")
    rows = [
        Row(row.where, {"_".join(column.casefold().split()): cell for column, cell in row.fields.items()})
        for row in read_table(file)
    ]
    title, columns = Path(file).stem, rows[0].fields.keys()
    if {"question", "stance"} <= columns and want in ("", "steady"):
        read = [(row.read(_Stance), row.where) for row in rows]
        return [_set(title, "steady", [(_with_stance(one), where) for one, where in read])]
    if {"topic", "userstance1", "userstance2"} <= columns and want in ("", "steady"):
        asked = [(prompt, row.where) for row in rows for prompt in _by_both(row.read(_Mirrored))]
        return [_set(title, "steady", asked)]
    if want == "steady":
        raise ValueError(
            f"{rows[0].where}: steady= needs the columns question and stance, or topic, userstance1 and userstance2; it has {', '.join(columns)}"
        )
    if {"goal", "prompt"} <= columns:
        raise ValueError(f"{rows[0].where}: it has both goal and prompt; leave the one that is to be asked")
    if want and (column := _tells_them_apart(rows)):
        raise ValueError(f"{file} says which prompts are safe in its column {column}; leave {want}= out, or the column")
    if "prompt" in columns and not want and (wanted := _labels(rows, columns)):
        return [
            _set(f"{title} {label}", want, [found for found, own_label in wanted if own_label == label])
            for label, want in LABELS.items()
            if any(own_label == label for _, own_label in wanted)
        ]
    column, row_type = ("goal", _Goal) if "goal" in columns else ("prompt", _Prompt)
    prompts = [(getattr(row.read(row_type), column), row.where) for row in rows]
    if not want:
        raise ValueError(
            f"{file} does not say what a good answer is; write declined={file}, answered={file} or readable={file}, or add a column label with safe or unsafe"
        )
    return [_set(title, want, prompts)]


def _labels(rows: Sequence[Row], columns: Collection[str]) -> list[tuple[tuple[str, str], str]]:
    """((prompt, where), safe or unsafe) of XSTest's columns; [] where there are none."""
    if "label" in columns:
        return [((one.prompt, row.where), one.label) for row in rows for one in [row.read(_Labelled)]]
    if "type" in columns and any(_is_unsafe(str(row.fields.get("type"))) for row in rows):
        read = [(row.read(_Typed), row.where) for row in rows]
        return [((one.prompt, where), "unsafe" if _is_unsafe(one.type) else "safe") for one, where in read]
    return []


def _tells_them_apart(rows: Sequence[Row]) -> str:
    """The column that tells safe prompts from unsafe ones, as XSTest's do; "" for none."""
    of = lambda name: [str(row.fields.get(name)).casefold().strip() for row in rows]  # noqa: E731
    if set(of("label")) & set(LABELS):
        return "label"
    return "type" if any(map(_is_unsafe, of("type"))) else ""


def _is_unsafe(kind: str) -> bool:
    return kind.casefold().strip().startswith(("contrast", "unsafe"))


def _with_stance(row: _Stance) -> str:
    return row.question if row.stance in row.question else f"{row.stance}\n\n{row.question}"


def _by_both(row: _Mirrored) -> list[str]:
    question = f"What do you think? The topic is: {row.topic}"
    return [f"{stance}\n\n{question}" for stance in (row.userstance1, row.userstance2)]


def _set(name: str, want: str, prompts: Sequence[tuple[str, str]]) -> PromptSet:
    places: dict[str, str] = {}
    for prompt, where in prompts:
        if prompt in places:
            raise ValueError(f"{where}: the same prompt as in {places[prompt]}, which would count twice; delete one")
        places[prompt] = where
    return PromptSet(
        name,
        want,
        tuple(
            PromptRecord(id=fingerprint(prompt), experiment="gate", split="test", prompt=prompt) for prompt in places
        ),
    )
