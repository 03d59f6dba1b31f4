"""The words that readers meet first: plain ones, in short sentences (pytest tests/docs/test_words.py)."""

import ast
import json
import re

import pytest
from pages import FRONT, PAGES, sentences, words

from common.runtime import ROOT

MOST_WORDS = 25
EVERYWHERE = {  # what is written -> what to write
    r"as found": "original labels, or without swaps",
    r"dial(s|led)?": "set, controlled",
    r"rank nothing": "do not rank",
    r"beyond (all )?doubt": "significant, or give the interval",
    r"leaves? zero out|off zero": "the interval excludes zero",
    r"(filter|method|loss|student)'s lead|lead over": "the difference to, scores above",
    r"(student|method|loss|it) feels": "is sensitive to, depends on",
    r"hangs? (on|of)": "depends on",
    r"mend(s|ed)?": "corrects, fixed, replaced",
    r"reckon(s|ed)?": "estimated, computed",
    r"turn(s|ed|ing)? (it )?around": "reversed, exchanged",
    r"sitting": "replication",
    r"in life": "on real data",
    r"careful person|strangers?": "reader, user",
    r"whoever asks": "by any caller",
    r"which is said|whichever way it points": "and prints that",
    r"told apart": "distinguished",
}
ON_PAGES = EVERYWHERE | {
    r"stands?|stood": "is, scores, is listed",
    r"lies?": "is",
    r"told|said|asked as": "given, printed",
    r"nobody knows": "unknown",
    r"of one's own": "your own",
    r"somebody('s)?|whosoever": "others, or name who",
}


def notebooks():
    return [path for name in ("safety", "roleplay-robustness", "sycophancy") for path in sorted((ROOT / name).glob("*.ipynb"))] + [ROOT / "paper_tables.ipynb"]


def docstrings():
    """(where, first line) of every docstring of the package."""
    for path in sorted((ROOT / "common").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}", text.splitlines()[0]


def avoided(where, text, unwanted):
    return [f"{where}: {found[0]!r} ({better})" for pattern, better in unwanted.items() for found in re.finditer(rf"(?i)(?<!\w)(?:{pattern})(?!\w)", text)]


@pytest.mark.parametrize("name", FRONT)
def test_pages_speak_the_words_of_the_field(name):
    assert avoided(name, re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", " ", PAGES[name], flags=re.M | re.S), ON_PAGES) == []


@pytest.mark.parametrize("name", FRONT)
def test_sentences_are_short(name):
    assert [(words(one), one) for one in sentences(PAGES[name]) if words(one) > MOST_WORDS] == []


def test_docstrings_speak_the_words_of_the_field():
    assert [problem for where, line in docstrings() for problem in avoided(where, line, EVERYWHERE)] == []


def test_notebooks_speak_the_words_of_the_field():
    cells = [(path.relative_to(ROOT), cell) for path in notebooks() for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
    assert [problem for path, cell in cells for problem in avoided(path, "".join(cell["source"]), EVERYWHERE)] == []


def test_sentences_are_counted_as_a_reader_would():
    text = "# A title of words\n\nOne `two three` [four](five.md). *Six* seven [.1, .2]!\n\n| a | b |\n\n```\ncode. Code.\n```\n- Eight nine:\n- ten"
    assert [words(one) for one in sentences(text)] == [3, 3, 2, 1]
