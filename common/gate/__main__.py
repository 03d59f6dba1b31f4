"""May this adapter be shipped? Base and adapter answer the same prompts greedily and are compared prompt by prompt.

    rdpo gate HuggingFaceTB/SmolLM2-135M-Instruct runs/mine/adapter --output runs/gate

Exit codes: 0 it passes; 1 it fails; 2 nothing can be decided (too few prompts, bad input, or answers missing).
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command import CommandParser
from common.gate.chats import Candidates, ask, open_candidates
from common.gate.decide import CANNOT_DECIDE, compare, exit_code
from common.gate.report import Answered, table, write_report
from common.gate.rules import good_answers, judge_texts
from common.gate.sets import PromptSet, built_in, open_sets
from common.judge.base import Judge
from common.judge.llm import LLMJudge
from common.judge.local import YesNoJudge
from common.notebook.judges import named_judge
from common.runtime import checked, escape_what_the_terminal_lacks, quiet_libraries
from common.specs import spec_of

MAX_LOSS = 0.1
"""Ours: on 24 prompts a net loss of three fails."""
JUDGES = ("endpoint", "local", "reward", "yes_no", "learned")
ONE_QUESTION = ("reward", "learned")
"""Judges that give one number and take no question: they judge the sets whose requests should be declined."""


@dataclass(frozen=True)
class JudgeAsked:
    """What `named_judge` reads of a notebook's parameters."""

    output: str
    providers: str
    experiment: str = "safety"
    local_batch: int = 16


def open_judges(spec: str, providers: str, sets: Sequence[PromptSet], output: Path) -> dict[str, Judge]:
    """The judge of each set by the set's name; a set without one is measured by rule.

    Raises ValueError for a name that is none, or a judge that can judge none of the sets.
    """
    if not spec:
        return {}
    kind = spec_of("judge", spec, named=JUDGES).kind
    wants = {of.want for of in sets if kind not in ONE_QUESTION or of.want == "declined"}
    if not wants:
        raise ValueError(
            f"judge {spec!r} knows only whether an answer is harmless, and no set wants that; leave it out"
        )
    asked = JudgeAsked(str(output.absolute()), providers)
    judge = named_judge("judge", spec, asked, judge_texts("declined"))
    return {of.name: _asking(judge, of.want) for of in sets if of.want in wants}


def _asking(judge: Judge, want: str) -> Judge:
    """The same judge, loaded once, with the question of a set."""
    texts = judge_texts(want)
    if isinstance(judge, LLMJudge):
        return LLMJudge(judge.chat, texts, judge.max_new_tokens, judge.structured)
    return judge.asking(texts.yes_no_question) if isinstance(judge, YesNoJudge) else judge


def gate(
    candidates: Candidates,
    sets: Sequence[PromptSet],
    judges: dict[str, Judge],
    output: Path,
    max_loss: float = MAX_LOSS,
) -> int:
    """Asks, compares and reports into `output`; returns the exit code. Raises RuntimeError where answers are missing."""
    base, adapter = ask(candidates, sets, output)
    answered = []
    for of in sets:
        judge = judges.get(of.name)
        good = [good_answers(of, texts[of.name], judge) for texts in (base, adapter)]
        answered.append(Answered(of, base[of.name], adapter[of.name], *good, judge.name if judge else ""))
    compared = compare(
        sets,
        *({one.prompts.name: getattr(one, f"{role}_good") for one in answered} for role in Candidates._fields),
        max_loss,
    )
    write_report(
        output, {role: chat.name for role, chat in zip(Candidates._fields, candidates)}, answered, compared, max_loss
    )
    print("\n".join(table(compared)))
    return exit_code(compared)


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} lies outside 0 to 1; give a share such as 0.1")
    return value


def parser() -> CommandParser:
    """The arguments of `rdpo gate`."""
    command = CommandParser("gate", __doc__)
    command.add_argument("base", help="folder or Hub name[@commit] of the chat model that the adapter was trained on")
    command.add_argument("adapter", help="PEFT folder, or model:FOLDER for a merged model")
    command.add_argument("--sets", nargs="+", default=list(built_in()), metavar="SET", help=f"{', '.join(built_in())}, a file, or declined=FILE, answered=FILE, readable=FILE; default all of ours")  # fmt: skip
    command.add_argument("--judge", default="", help=f"judge in place of the rules, {':..., '.join(JUDGES)}:...")
    command.add_argument("--providers", default="", help="YAML file of endpoints for the judge")
    command.add_argument(
        "--max-loss",
        type=share,
        default=MAX_LOSS,
        metavar="SHARE",
        help=f"a set that loses more than this share of good answers fails, significant or not; 1 is never; default {MAX_LOSS}",
    )
    command.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="of both; small models loop without (our tables take 1.1); default 1, none",
    )
    command.add_argument(
        "--pad-token", help="an existing token to pad with; default: the base's own, or that beside the adapter"
    )
    command.add_argument("--output", default="gate", help="folder for gate.md, gate.json and the answers; default gate")
    return command


def main(arguments: list[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    try:
        checked("repetition_penalty", asked.repetition_penalty, float)
    except ValueError as error:
        parser().error(f"--{str(error).replace('_', '-')}")
    escape_what_the_terminal_lacks()
    output = Path(asked.output).expanduser()
    try:
        sets = open_sets(asked.sets)
        candidates = open_candidates(asked.base, asked.adapter, asked.repetition_penalty, asked.pad_token)
        quiet_libraries()
        output.mkdir(parents=True, exist_ok=True)
        code = gate(candidates, sets, open_judges(asked.judge, asked.providers, sets, output), output, asked.max_loss)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        print(f"gate: cannot decide: {error}", file=sys.stderr)
        return CANNOT_DECIDE
    except Exception:  # Python's own exit code of an error is 1, which here is a verdict
        traceback.print_exc()
        return CANNOT_DECIDE
    print(f"exit code {code}; report: {output / 'gate.md'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
