"""Other wordings of prompts: train a paraphraser, decode it with Dynamic Blocking, keep what asks for the same.

    rdpo paraphrase prompts.jsonl --student owner/name --meaning yes_no:owner/name --output runs/wordings

Reads JSON lines with the fields of a prompt (id, experiment, split, prompt), such as a `pairs.jsonl`; with a miniature
student also the name of an experiment, for its world's prompts. Writes `prompts.jsonl`, the prompts with their wordings
behind them, which `generate_data` takes as `source` and `train_rdpo` as `paraphrases`. Run again, it goes on.
"""

from __future__ import annotations

import argparse

from common.command import CommandParser
from common.methods import TrainSettings
from common.notebook.judges import open_meaning
from common.notebook.prompts import prompts_named
from common.notebook.students import student_named
from common.paraphrase.training import chat_of, paraphraser, told
from common.paraphrase.wordings import group_of, paraphrases
from common.runtime import checked, errors_in_a_line, quiet_libraries, resolve, write_manifest
from common.schema import fingerprint
from common.storage import claim, write_jsonl

SETTINGS = TrainSettings(batch_size=8)


def parser() -> CommandParser:
    """The arguments of `rdpo paraphrase`."""
    command = CommandParser("paraphrase", __doc__)
    command.add_argument("prompts", help="JSONL file of prompts; with a miniature student also an experiment")
    command.add_argument("--student", required=True, help="folder, Hub name[@commit], miniature or micro")
    command.add_argument("--output", required=True, help="folder of prompts.jsonl, the adapters and what they learnt")
    command.add_argument(
        "--meaning",
        default="miniature",
        help="who says whether two prompts ask for the same: yes_no:NAME, or miniature",
    )
    command.add_argument("--wordings", type=int, default=2, help="new prompts for each prompt, at most")
    command.add_argument("--p", type=float, default=0.5, help="probability that a pair of neighbours is blocked")
    command.add_argument("--max-new-tokens", type=int, default=128, help="of a wording")
    command.add_argument("--learning-rate", type=float, default=SETTINGS.sft_learning_rate, help="of both trainings")
    command.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="of both trainings")
    command.add_argument("--max-length", type=int, default=SETTINGS.max_length, help="tokens of request and wording")
    command.add_argument("--seed", type=int, default=0, help="of words deleted, dictionaries, adapters and order")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    quiet_libraries()
    with errors_in_a_line("paraphrase"):
        _run(asked)


def _run(asked: argparse.Namespace) -> None:
    for name, value in (("wordings", asked.wordings), ("max_new_tokens", asked.max_new_tokens)):
        checked(name, value, int)
    if not 0 <= asked.p <= 1:
        raise ValueError(f"--p is a probability from 0 to 1, not {asked.p}")
    settings = SETTINGS.changed(
        sft_learning_rate=asked.learning_rate, epochs=asked.epochs, max_length=asked.max_length, seed=asked.seed
    )
    records = prompts_named(asked.prompts, asked.student)
    meaning = open_meaning(asked.meaning, asked.student, records[0].experiment)
    student, load = student_named(asked.student, records[0].experiment)
    output, limits = resolve(asked.output), {"max_new_tokens": asked.max_new_tokens}
    trained = paraphraser(student, records, meaning, settings, output, asked.p, **limits, **load)
    made_of = {"paraphraser": trained.mark, "meaning": meaning.name, "p": asked.p, "seed": asked.seed, **limits}
    path = claim(output / "wordings.jsonl", made_of | {"prompts": fingerprint([r.model_dump() for r in records])})
    new, dropped = paraphrases(
        chat_of(trained), records, meaning, path, asked.wordings, asked.p, seed=asked.seed, **limits
    )
    grouped = [record.model_copy(update={"group": group_of(record)}) for record in records]
    prompts = write_jsonl(output / "prompts.jsonl", [record.model_dump() for record in (*grouped, *new)])
    write_manifest(
        output, "paraphrase", vars(asked), made_of=made_of, prompts=len(records), wordings=len(new), dropped=dropped
    )
    print(f"{len(new)} wordings of {len(records)} prompts; dropped: {told(dropped)}\n{prompts}")


if __name__ == "__main__":
    main()
