"""The command line `rdpo`: helps with examples, completion, errors in one line, exit codes (pytest tests/commands/test_command_line.py)."""

import importlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from common.__main__ import COMMANDS, MODULES, main
from common.command import CommandParser


@pytest.mark.parametrize("name", MODULES)
def test_help_shows_an_example_that_parses(name, capsys):
    module = importlib.import_module(MODULES[name])
    with pytest.raises(SystemExit, match="^0$"):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: rdpo {name}")
    (example,) = re.findall(r"^example: (rdpo .*)$", shown, re.M)
    program, called, *arguments = shlex.split(example)
    assert called == name and module.parser().parse_args(arguments)


def test_the_list_of_commands_imports_none_of_them():
    code = "import sys; from common.__main__ import main; code = main([]); print(code, sorted({'torch', 'pandas', 'pydantic', 'common.runtime'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("0 []\n")
    assert all(name in shown and group in shown for group, commands in COMMANDS.items() for name in commands)


@pytest.mark.parametrize(("words", "offered"), [
    ("rdpo stu", ["study", "study-readings", "study-related", "study-systems"]),
    ("rdpo status --h", ["--help"]),
    ("rdpo doctor rows.csv --score", ["--score-range"]),
    ("rdpo train rows.csv --method rdpo_f", ["rdpo_filter", "rdpo_flip"]),
    ("rdpo batch small --stage ", ["generate_data", "reward_score", "train_rdpo"]),
    ("rdpo doctor ", []),  # a file: the shell's own completion
])
def test_the_shell_completes_commands_options_and_values(words, offered, monkeypatch, capsys):
    monkeypatch.setenv("_RDPO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit, match="^0$"):
        main()
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize(("arguments", "code", "line"), [
    (["trian"], 2, r"rdpo: .*'trian'.*'train'.*"),
    (["--versoin"], 2, r"rdpo: .*--versoin.*"),
    (["status"], 2, r"rdpo status: .* required: folder \(see rdpo status --help\)"),
    (["status", "runs", "--foldr"], 2, r"rdpo status: unrecognized arguments: --foldr \(see .*"),
    (["doctor", "rows.csv", "--score_range", "0"], 2, r"rdpo doctor: .*--score_range 0, did you mean --score-range\? .*"),
    (["train", "rows.csv", "--student", "s", "--output", "o", "--method", "rdop"], 2, r"rdpo train: argument --method: .*'rdop'.*, did you mean rdpo\? .*"),
    (["doctor", "nowhere.csv"], 1, r"doctor: no file .*nowhere\.csv.*"),
    (["status", "nowhere"], 1, r"status: no folder nowhere.*"),
    (["batch", "nowhere"], 2, r"error: unknown profile 'nowhere'.*"),
    (["tune", "nowhere"], 1, r"tuning: .*nowhere.*"),
    (["push", "nowhere", "noname"], 2, r"rdpo push: argument OWNER/NAME: 'noname' is no Hub repository.*"),
])
def test_an_error_is_one_line_and_an_exit_code(arguments, code, line, capfd):
    ran = run(arguments)
    said = capfd.readouterr().err + (f"{ran}\n" if isinstance(ran, str) else "")
    assert (1 if isinstance(ran, str) else ran) == code and re.fullmatch(line + "\n", said), (ran, said)


@pytest.mark.parametrize(("raised", "code", "line"), [
    (KeyboardInterrupt(), 130, "rdpo status: interrupted"),
    (RuntimeError("out of\nmemory"), 1, "rdpo status: out of memory"),
    (3, 3, ""),
    (None, None, ""),
])
def test_an_interruption_and_whatever_a_module_lets_through(raised, code, line, monkeypatch, capsys):
    def module_s(arguments):
        assert arguments == ["-p", "a", "1", "--sets", "x", "--", "y"]
        if isinstance(raised, BaseException):
            raise raised
        return raised

    monkeypatch.setattr("common.__main__.importlib.import_module", lambda name: SimpleNamespace(main=module_s))
    assert run(["status", "-p", "a", "1", "--sets", "x", "--", "y"]) == code
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize("error", [ImportError("No module named 'torch'"), OSError("libgomp.so.1: cannot\nopen")], ids=["missing", "broken"])
def test_a_gate_that_cannot_be_imported_is_no_verdict(error, monkeypatch, capsys):
    def broken(name):
        raise error

    monkeypatch.setattr("common.__main__.importlib", SimpleNamespace(import_module=broken))
    assert run(["gate", "base", "adapter"]) == 2 and capsys.readouterr().err == f"rdpo gate: {' '.join(str(error).split())}\n"


def test_a_docstring_is_a_help():
    shown = CommandParser("some", "First line.\n\n    rdpo some " + "x" * 90 + "\n\nWords " + "of a paragraph " * 9).format_help()
    assert f"\nexample: rdpo some {'x' * 90}\n" in shown and max(map(len, shown.splitlines())) > 90 and "\n\nWords of" in shown


def run(arguments):
    """The exit code, or the line that Python prints in place of one."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code
