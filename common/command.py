"""What a command of `rdpo` reads its arguments with: its module's docstring is its help, every error is one line."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """The arguments of the command `rdpo NAME`.

    about: the docstring of its module, a paragraph of which is an example: `rdpo NAME ...`. A wrong argument ends the
    command with one line on stderr and exit code 2.
    """

    def __init__(self, name: str, about: str | None):
        super().__init__(prog=f"rdpo {name}", description=about, formatter_class=_Paragraphs)

    def completions(self, before: str, incomplete: str) -> list[tuple[str, str]]:
        """(text, meaning) of what may stand after the word `before`: values of its option, or options."""
        options = self._option_string_actions
        if before in options and (values := options[before].choices):
            found = [(str(value), "") for value in values]
        elif incomplete.startswith("-"):
            found = [(option, action.help or "") for option, action in options.items()]
        else:
            found = []  # the shell completes files by itself
        return [(text, meaning) for text, meaning in found if text.startswith(incomplete)]

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^\s'=]+)", message)
        values = [str(value) for action in self._actions for value in action.choices or ()]
        near = difflib.get_close_matches(wrong[1], [*self._option_string_actions, *values], 1) if wrong else []
        hint = f", did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}{hint} (see {self.prog} --help)\n")


class _Paragraphs(argparse.HelpFormatter):
    """Fills the paragraphs of a docstring; the one with the command is its example."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [part.strip() for part in text.split("\n\n")]
        fill = super()._fill_text
        return "\n\n".join(
            f"example: {part}" if part.startswith("rdpo ") else fill(part, width, indent) for part in parts
        )
