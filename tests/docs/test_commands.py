"""The commands that README and docs show: each is parsed by its own program, and dry runs and helps are run (pytest tests/docs/test_commands.py)."""

import argparse
import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from pages import PAGES, blocks

from common.notebook.execute import checked_parameters
from common.runtime import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = [(name, line) for name in PAGES for block in blocks(PAGES[name], "bash") for line in block.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


class Parsed(Exception):
    """Raised in place of running a command whose arguments its parser has taken."""


def check_make(targets):
    known = re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.M)
    for target in targets:
        name, given, _ = target.partition("=")
        assert f"$({name})" in MAKEFILE if given else name in known, target


def check_papermill(notebook, output, *options):
    """All parameters are checked; adapters and files of providers are examples."""
    given = {}
    while options:
        option, *options = options
        if option == "-p":
            name, value, *options = options
            try:
                given[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                given[name] = value
        else:
            assert option in ("-f", "--cwd") and (ROOT / options[0]).exists(), (option, options[0])
            options = options[1:]
    given = {name: value for name, value in given.items() if name != "providers"}
    try:
        checked_parameters(notebook, given)
    except ValueError as error:
        assert re.fullmatch(r"\S+ no student folder at runs/own/adapter.*", str(error)), error


def check_module(module, arguments, monkeypatch):
    """A dry run of the miniature or a help is run; of `common.batch` all parameters are checked, of any other module the arguments."""
    package = (ROOT / module.replace(".", "/")).is_dir()
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="^0$"):
            main()
    elif module == "common.batch":
        if "miniature" not in arguments or "--dry-run" not in arguments:
            monkeypatch.setattr("common.batch._rehearse", lambda steps: True)
        assert main([*arguments, "--dry-run"]) == 0
    else:
        parse = argparse.ArgumentParser.parse_args

        def parse_only(parser, *_):
            parse(parser, arguments)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(Parsed):
            main()


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[f"{name} {line[:60]}" for name, line in COMMANDS])
def test_a_command_shown_can_be_run_as_written(name, line, monkeypatch):
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        check_make(arguments)
    elif program == ".venv/bin/papermill":
        check_papermill(*arguments)
    elif program == ".venv/bin/python":
        assert arguments[0] == "-m", line
        check_module(arguments[1], arguments[2:], monkeypatch)
    else:
        assert program == ".venv/bin/accelerate" and Path(sys.executable).with_name("accelerate").exists(), line


@pytest.mark.parametrize("name", PAGES)
def test_targets_modules_and_files_named_in_a_sentence_are_there(name):
    check_make(re.findall(r"`make ([\w-]+)", PAGES[name]))
    for module in re.findall(r"`(?:\.venv/bin/)?python -m (common[\w.]*)", PAGES[name]):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module.replace(".", "/") / "__main__.py").exists(), module
    for path in re.findall(r"`((?:common|docs|tests|results|safety|roleplay-robustness|sycophancy)/[\w./-]+)`", PAGES[name]):
        assert (ROOT / path).exists(), path
