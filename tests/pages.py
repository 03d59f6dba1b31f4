"""Pages of Markdown, taken apart for tests: prose, tables, blocks of code, links."""

import re

from common.runtime import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def page(name: str) -> str:
    """The text of a page by its path from the project root."""
    return (ROOT / name).read_text(encoding="utf-8")


FRONT = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
"""The pages that a reader begins with."""
PAGES = {name: page(name) for name in [*FRONT, "results/README.md", "results/small/README.md", "results/local/README.md"]}


def blocks(text: str, language: str) -> list[str]:
    """The contents of all blocks of code in a language."""
    return [code for found, code in FENCE.findall(text) if found == language]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in plain}


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: no code blocks, tables, formulas, headings or pictures; a piece of code or an interval is one word."""
    text = re.sub(r"\$\$.*?\$\$", "", FENCE.sub("", text), flags=re.S)
    text = re.sub(r"^(#|\||<!--|!\[).*$", "\n", text, flags=re.M)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.M)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "CODE", text))  # of a link its words
    text = re.sub(r"\[[−\-+.\d, ]+\]", "CI", text)
    parts = [part for paragraph in re.split(r"\n\s*\n", text) for part in re.split(r"(?<=[.!?])[*\"”)]*\s+(?=[\"“*(\[]*[A-Z0-9])", " ".join(paragraph.split()))]
    return [part for part in parts if re.search(r"\w", part)]


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())
