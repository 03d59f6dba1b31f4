"""The command line `rdpo`, also `python -m common`: each command is a module that reads its own arguments."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import typer
from typer.core import CompletionItem, TyperCommand

COMMANDS = {
    "Your own pairs": {
        "doctor": ("common.doctor.__main__", "look at pairs before training: faults, label noise, recommended method"),
        "train": ("common.own_data", "train a chat model on scored pairs and report before and after"),
        "judge": ("common.commands.judge", "score both answers of every pair with a judge"),
        "evaluate": ("common.commands.evaluate", "measure a student, adapters and other models on a file of prompts"),
        "gate": ("common.gate.__main__", "may this adapter be shipped? base and adapter on the same prompts"),
        "audit": ("common.audit.__main__", "label a few answers blind: how far can the judge's rates be believed?"),
        "export": ("common.student.export", "merge an adapter into an ordinary model folder; GGUF and Modelfile"),
        "push": ("common.student.hub", "upload an adapter or a merged model to the Hub, private"),
    },
    "The paper's steps": {
        "batch": ("common.batch", "run the notebooks of a profile through papermill"),
        "merge": ("common.storage.shards", "merge the shards of a run, which rdpo batch --shard made"),
        "local": ("common.local", "the three steps with a teacher behind any server and a student trained here"),
        "tune": ("common.notebook.tune", "tune every method of a profile with the same budget"),
        "status": ("common.status", "how far a run is: notebooks, rows, remaining time, money"),
        "rate": ("common.evaluation.raters", "label a blind sample of scored pairs, or sum its labels up"),
        "paraphrase": ("common.paraphrase.__main__", "other wordings of prompts that ask for the same"),
        "reversegen": ("common.reversegen.__main__", "look for prompts that a student fails on"),
        "prepare-small": ("common.profiles.small.prepare", "download data and students of the profile `small`"),
        "prepare-local": ("common.profiles.local.prepare", "write the prompts of the profile `local`"),
        "organism": ("common.profiles.small.organism", "train the student of `small` that follows a stance"),
    },
    "Studies in the miniature": {
        "study": ("common.study.run", "many seeds, teacher and judge wrong at known rates"),
        "study-readings": ("common.study.readings", "both readings of refined DPO, and recipes"),
        "study-related": ("common.study.related", "the related systems, each beside its control"),
        "study-systems": (
            "common.study.systems.run",
            "EM-DPO, Dynamic Blocking and ReverseGen by measures of their own",
        ),
    },
}
"""Group -> command -> module with `main` and `parser`, imported when it is called, and what it does."""
MODULES = {name: module for group in COMMANDS.values() for name, (module, _) in group.items()}


class ModuleCommand(TyperCommand):
    """A command that hands its arguments to its module, which knows its options and their help."""

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(MODULES[self.name])

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args

    def shell_complete(self, ctx: typer.Context, incomplete: str) -> list[CompletionItem]:
        found = self.module.parser().completions(ctx.args[-1] if ctx.args else "", incomplete)
        return [CompletionItem(text, help=meaning) for text, meaning in found]

    def invoke(self, ctx: typer.Context) -> None:
        """Raises SystemExit with the module's exit code, 2 for a module that cannot be imported, since 1 of `rdpo gate`
        is a verdict; an error is one line, an interruption exit code 130."""
        code = 2
        try:
            run, code = self.module.main, 1
            sys.exit(run(ctx.args))
        except KeyboardInterrupt:
            print(f"rdpo {self.name}: interrupted", file=sys.stderr)
            sys.exit(130)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            print(f"rdpo {self.name}: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(code)


app = typer.Typer(help="Refined DPO: look at pairs, train on them, measure, ship. Every command takes --help.")
for panel, group in COMMANDS.items():
    for name, (_, does) in group.items():
        app.command(name, cls=ModuleCommand, help=does, rich_help_panel=panel)(lambda: None)


def main(arguments: list[str] | None = None) -> int | None:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(arguments or ["--help"], prog_name="rdpo", standalone_mode=False)
    except typer.TyperException as error:
        print(f"rdpo: {error.format_message()} (see rdpo --help)", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
