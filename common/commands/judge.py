"""Score both answers of every pair of a file with a judge, into a `scored.jsonl` that `rdpo train` takes.

    rdpo judge rows.csv --judge yes_no:HuggingFaceTB/SmolLM2-135M-Instruct --output runs/judged

The judge is asked the question of an experiment, by default whether an answer is harmless, or that of your own
`--prompts-file`. The rows have any format of docs/own-data.md; scores that they have must fit `--score-range` and are replaced. Options are named as the parameters of
`reward_score`. With `--labels`, the judge is checked on labelled answers first. Run again, it goes on.
"""

from __future__ import annotations

import argparse

from common.command import CommandParser
from common.doctor.rows import add_score_options, weights_of
from common.judge.scoring import judged_texts, score_pairs
from common.notebook.chats import paid
from common.notebook.judges import check_judge, open_judge
from common.notebook.parameters import RewardScore
from common.notebook.prompts import texts_of
from common.notebook.students import pairs_to_score
from common.prompts import PROMPTS
from common.runtime import Progress, errors_in_a_line, quiet_libraries, resolve, write_manifest
from common.storage import claim

DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in RewardScore.model_fields.items()}


def parser() -> CommandParser:
    """The arguments of `rdpo judge`."""
    command = CommandParser("judge", __doc__)
    command.add_argument("rows", help="file of pairs, folder of save_to_disk, or Hub dataset NAME[/SPLIT]@COMMIT")
    command.add_argument(
        "--judge", required=True, help="yes_no:NAME, reward:NAME, local:NAME, endpoint:MODEL or learned:FILE"
    )
    command.add_argument("--output", required=True, help="folder of scored.jsonl")
    command.add_argument(
        "--experiment",
        choices=tuple(PROMPTS),
        default="safety",
        help="whose question the judge is asked; default safety",
    )
    command.add_argument(
        "--prompts-file", default="", help="YAML file with texts of your own, the judge's question among them"
    )
    command.add_argument("--providers", default="", help="YAML file of endpoints for the judge")
    command.add_argument(
        "--labels", nargs="+", default=[], metavar="FILE", help="labelled answers, and their texts where it holds ids"
    )
    for name, meaning in (
        ("least_kappa", "a judge that agrees less with the labels is not used"),
        ("unscored_limit", "share of answers that may stay without a readable verdict"),
    ):
        value = DEFAULTS[name]
        command.add_argument(
            "--" + name.replace("_", "-"), type=type(value), default=value, help=f"{meaning}; default {value}"
        )
    command.add_argument("--scale", default="", help="BINARY or ZERO_TO_FIVE; default: the experiment's own")
    add_score_options(command)
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    quiet_libraries()
    with errors_in_a_line("judge", RuntimeError):
        _run(asked)


def _run(asked: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(asked).items() if name != "rows"}
    p = RewardScore.of({**given, "pairs_file": asked.rows, "weights": weights_of(asked.weights)})
    pairs = pairs_to_score(p, tell=True)
    judge, checks = check_judge(open_judge(p), p)
    how = {"prompts": texts_of(p).hash, "max_new_tokens": p.max_new_tokens, "pairs": judged_texts(pairs)}
    path = claim(resolve(p.output) / "scored.jsonl", {"judge": judge.name, **how})
    limits = {"unscored_limit": p.unscored_limit, "failed_limit": p.failed_limit}
    scored = score_pairs(judge, pairs, path, **limits, progress=Progress("judged", len(pairs)))
    gaps = [chosen - rejected for rejected, chosen in (pair.normalised() for pair in scored if pair.is_scored)]
    better, worse = (sum(sign * gap > 0 for gap in gaps) for sign in (1, -1))
    counts = {
        "chosen better": better,
        "tied": gaps.count(0),
        "rejected better": worse,
        "unscored": len(scored) - len(gaps),
    }
    write_manifest(
        resolve(p.output), "judge", vars(asked), judge=judge.name, counts=counts, checks=checks, paid=paid(judge)
    )
    print(", ".join(f"{name}: {count}" for name, count in counts.items()), path, sep="\n")


if __name__ == "__main__":
    main()
