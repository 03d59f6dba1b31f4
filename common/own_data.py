"""Your own data in one command: prompts with two answers and two scores in, a LoRA adapter and a report out. Single
answers will do for methods that learn no pairs.

    rdpo train rows.csv --student HuggingFaceTB/SmolLM2-135M-Instruct --output runs/mine

The rows are a table with TRL's columns `prompt`, `chosen`, `rejected`, `score_chosen`, `score_rejected`, or have a
format that `common/data/formats/` reads; `system` and `annotator` (who preferred `chosen`) where there are any. Where
some have scores, a pair without both is left out and counted; where none has, methods that read none train on all. No
judge is asked. The pair doctor (`common.doctor`) looks at the pairs first and recommends the method that is trained
unless `--method` names one. Rows with one answer, scored or not, and rated answers of which a prompt has several, are
learnt answer by answer by sft, fa, rwr, ca, sapo and self_play; the doctor has nothing to say of them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import CommandParser
from common.data.formats.pairs import PlacedPair, learnable, scored_pairs
from common.data.formats.read import open_source, read_preferences
from common.data.formats.record import Preferences
from common.data.formats.single import Answers
from common.data.preference import RowType, trained_on
from common.doctor.advice import LEAST_ROWS, Advice, knobs_for
from common.doctor.checks import cannot_load
from common.doctor.diagnosis import Diagnosis, examine
from common.doctor.noise import noted_check, tau_of_judge
from common.doctor.report import short_table, write
from common.doctor.rows import SHARES, add_score_options, rows_in, weights_of
from common.evaluation.card import card
from common.evaluation.result import Result
from common.loss import LOSSES, knobs_of
from common.methods import METHODS, TrainSettings
from common.report import before_after, single_answers
from common.report.before_after import ANSWERS, check_row, preferred
from common.runtime import checked, escape_what_the_terminal_lacks, quiet_libraries, write_manifest
from common.schema import ScoredAnswer, ScoredPair, fingerprint
from common.student.adapters import save_adapter, turn
from common.student.hub import push, repository
from common.student.load import context_of, load_tokenizer
from common.training.annotators.run import PromptsToTrainOn, check_annotators, run_types
from common.training.kept import kept_training, trained_once, training_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED = tuple(
    name for name, row in METHODS.items() if row.needs_pairs_alone or row.sft_on == "conditioned" or row.types
)
OF_ANSWERS = tuple(name for name in TRAINED if METHODS[name].takes_answers)
LEAST_PAIRS = LEAST_ROWS
"""With both scores. Of 20, four are held out on average, and none in one file of a hundred, which is an error."""
SETTINGS = TrainSettings(batch_size=4)
OPTIONS = {
    "learning_rate": "of whichever method", "epochs": "times that every pair is seen", "batch_size": "pairs a step", "beta": "higher stays closer to the student",
    "nll_weight": "of the chosen answers' likelihood, in methods with an NLL term",
    "kl_budget": "nats a token to the student before training, above which the training ends; 0 is none",
    "unchanged_weight": "of tokens that both answers share, in token_dpo", "rwr_temperature": "of the weights in rwr",
    "ca_score": "in [0, 1], that answers are asked for in ca",
    "annotator_types": "hidden types of annotators, a policy each, in em_dpo and cluster_dpo", "em_steps": "of EM, at most, in em_dpo",
    "em_start": "what EM begins with in em_dpo: clusters or dirichlet",
    "lora_rank": "of the adapter", "max_length": "tokens of prompt and answer together, the rest is cut off", "seed": "of adapter and order",
    "report_to": "tracker, which must be installed: tensorboard, trackio or wandb",
}  # fmt: skip
SEGMENTS = {
    "segment": "tokens of a good answer made anew, at most, in sapo",
    "ema": "in [0, 1], what the moving copy that makes them keeps of its weights at a step, in sapo",
    "buffer": "pairs that a batch is drawn from, at most, in sapo",
}

KNOBS = {
    name: (value, [loss for loss in LOSSES if name in knobs_of(loss)])
    for loss in LOSSES
    for name, value in knobs_of(loss).items()
}


def read_pairs(
    rows: str | Path, score_range: tuple[float, float] = (0.0, 1.0), weights: Mapping[str, float] | None = None
) -> list[PlacedPair]:
    """The pairs of a file or dataset, of split `train` or `test` by a hash of the prompt, so that no prompt is in both.

    Arguments and errors as in `common.data.formats.read.read_preferences`; raises ValueError too for rows of one's own
    table that teach nothing, and for too few pairs.
    """
    return pairs_of(learnable(read_preferences(rows, score_range, weights)))


def pairs_of(found: Preferences) -> list[PlacedPair]:
    """A pair a preference, as `read_pairs` gives them. Raises ValueError for too few."""
    pairs = scored_pairs(found, "own_data", SHARES)
    usable = [pair for pair in pairs if pair.is_scored] if found.scored else pairs
    what = "rows have both scores" if found.scored else "rows give a pair"
    if len(usable) < LEAST_PAIRS:
        of = len(pairs) if found.scored else found.rows
        raise ValueError(
            f"{found.source}: {len(usable)} of {of} {what}; give at least {LEAST_PAIRS}, so that some can be held out"
        )
    to_train, measured = len(side(usable, "train")), len(preferred(side(usable, "test")))
    if not to_train or not measured:
        rows, unequal = ("scored rows", " with unequal scores") if found.scored else ("rows", "")
        raise ValueError(
            f"{found.source}: {to_train} {rows} to train on and {measured} held out{unequal}; there must be one of each, "
            "give more rows"
        )
    return pairs


def side(rows: Sequence[RowType], split: str) -> list[RowType]:
    """The pairs or answers to train on, or those held out."""
    return [row for row in rows if row.split == split]


def check_answers(found: Answers) -> None:
    """Raises ValueError for too few answers, or none on one side of the split."""
    sides = {split: len(side(found.answers, split)) for split in SHARES}
    if len(found.answers) < LEAST_PAIRS or min(sides.values()) < single_answers.LEAST:
        raise ValueError(
            f"{found.source}: {len(found.answers)} answers, {sides['train']} to train on and {sides['test']} held out; give at least {LEAST_PAIRS}, to several prompts"
        )


def train_and_report(
    pairs: Sequence[ScoredPair] | Sequence[ScoredAnswer],
    student: str | Path,
    output: str | Path,
    method: str = "rdpo",
    settings: TrainSettings = SETTINGS,
    found: Diagnosis | None = None,
    strength: float = 1.0,
    data: Mapping[str, Any] | None = None,
    **load: Any,
) -> Result:
    """Trains on the pairs, or single answers, of split `train` and writes `adapter/`, `report.md`, `metrics.json` and a
    manifest into `output`.

    What is there of the same pairs and settings is not made again. found: what the doctor found in the pairs, written
    before the training with the rows that are cut. strength: how many times the adapter counts in what is measured;
    another one than 1 is saved beside it as well, as `adapter-<strength>/`, and trains nothing again. data: what manifest
    and card note of where the pairs are from. `load` goes to `load_student`.

    Raises:
        ValueError: a method that trains nothing or learns no single answers, a mixture at another strength, or, before any weights are loaded, a
            student that cannot be loaded, or a pair that it cannot be trained or measured on.
        FileExistsError: `output` holds another adapter.
    """
    if method not in TRAINED:
        raise ValueError(f"method {method!r} trains nothing; there are {', '.join(TRAINED)}")
    of_answers = isinstance(pairs[0], ScoredAnswer)
    if of_answers and not METHODS[method].takes_answers:
        raise ValueError(f"{method} learns pairs, and these are single answers; take one of {', '.join(OF_ANSWERS)}")
    if (types := METHODS[method].types) and strength != 1.0:
        raise ValueError(
            f"strength = {strength:g}: {method} trains several adapters, which are mixed as trained; leave it out"
        )
    told = single_answers if of_answers else before_after
    output, adapter, path = Path(output), Path(output, "adapter"), Path(output, "metrics.json")
    train_pairs, held_out = side(pairs, "train"), side(pairs, "test")
    used = trained_on(train_pairs, method, METHODS[method].sees_scores)  # refused before anything is loaded
    if METHODS[method].sft_on in ("best", "accepted"):
        from common.training.supervised import answers_to_learn

        answers_to_learn(method, used, settings)  # so is what the method would choose nothing of
    if types:
        check_annotators(method, train_pairs, settings)
    training = training_of(method, student, train_pairs, settings, **load)
    of_strength = [strength] if strength != 1.0 else []
    made_of = fingerprint(training, [pair.model_dump() for pair in held_out], *of_strength)
    if adapter.exists() and not kept_training(output, training):
        raise FileExistsError(
            f"{adapter} was made of other data or settings; give another --output, or delete it (of a student its weights, tokenizer, chat template and generation config count)"
        )
    if path.exists() and (result := Result.read(path)).made_of == made_of:
        print(f"{adapter}: made and measured before with the same data and settings", flush=True)
        return result
    tokenizer, context = _reader(student, load.get("revision"), load.get("pad_token"))
    answered = {pair.id for pair in held_out[:ANSWERS]}
    for pair in pairs:
        where = getattr(pair, "where", "") or f"the pair of prompt {pair.prompt[:40]!r}"
        check_row(pair, where, tokenizer, settings.max_length, context, pair.id in answered)
    if found:
        found = found.with_cut(tokenizer, settings.max_length)
        if (cut := found.finding("cut")).rows:
            print(f"cut: {len(cut.rows)} of {cut.of} rows, {cut.meaning}", flush=True)
        write(found, output)
    if types:
        trained = run_types(method, student, train_pairs, PromptsToTrainOn(train_pairs), settings, output, **load)
    else:
        trained = trained_once(method, student, train_pairs, settings, output, **load)
    if of_strength:
        turn(trained.model, strength)
        adapter = output / f"adapter-{strength:g}"
        save_adapter(trained.model, trained.tokenizer, adapter, "")
    metrics, answers = told.measure(trained, held_out, experiment="own_data", method=method, seed=settings.seed)
    how = {name: value for name, value in settings.as_dict(method).items() if name != "seed"}
    how |= {"strength": strength} if of_strength else {}
    how |= {"mixture": dict(trained.policies)} if types else {}
    result = Result(
        method, settings.seed, made_of, metrics, answers=answers, history=trained.history, pairs_used=trained.pairs_used, unscored=trained.unscored,
        split="test", settings=how,
    )  # fmt: skip
    counts = {
        "train": told.account(train_pairs, trained, settings.max_length),
        "test": told.account(held_out, trained, settings.max_length),
    }
    write_manifest(
        output,
        "own_data",
        {"student": str(student), "method": method, "strength": strength, **asdict(settings), **load},
        made_of=made_of,
        pairs=counts,
        **({"data": data} if data else {}),
    )
    of = card(student, settings, result, "answers" if of_answers else "pairs", (data or {}).get("source", ""))
    (adapter / "README.md").write_text(of, encoding="utf-8")
    text = told.report(result, held_out, counts, student, *([trained.annotators] if types else []))
    (output / "report.md").write_text(text, encoding="utf-8")
    result.write(path)
    return result


def _reader(
    student: str | Path, revision: str | None, pad_token: str | None
) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The student's tokenizer, and how many positions it learned. Raises ValueError for one that cannot be loaded."""
    try:
        return load_tokenizer(student, revision, pad_token), context_of(student, revision)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise  # ours, with a remedy of its own
        raise cannot_load(f"student {student}", error, "a folder with a chat model and its tokenizer") from None


def given_rows(
    asked: Namespace, score_range: tuple[float, float]
) -> tuple[Sequence[ScoredPair] | Sequence[ScoredAnswer], Preferences | Answers, Diagnosis | None]:
    """What is trained on, how it was read, and what the doctor finds in pairs; each is told. Single answers are read
    where the method learns them and the rows are no pairs."""
    source = open_source(asked.rows, score_range, weights_of(asked.weights))
    if asked.method in OF_ANSWERS and (answers := source.answers("own_data", SHARES)):
        print(answers.account(), flush=True)
        check_answers(answers)
        print(f"{len(answers.answers)} answers, of which {len(side(answers.answers, 'test'))} are held out", flush=True)
        return answers.answers, answers, None
    read = learnable(source.preferences())
    print(read.account(), flush=True)
    pairs = pairs_of(read)
    print(f"{len(pairs)} pairs, of which {len(side(pairs, 'test'))} are held out", flush=True)
    found = examine(rows_in(read), Path(asked.rows).name, account=read.account(), noted=noted_check(read))
    table = short_table(found).drop(columns="what it means")
    print("no check found a row" if table.empty else table.to_string(), flush=True)
    return pairs, read, found


def chosen_method(advice: Advice | None, method: str | None, given: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The method to train and the knobs of all losses: what is given, else what the doctor recommends, else the loss's
    default. advice: None where a method is given. The choice is printed in one line. Raises ValueError for a given option that the method does not read."""
    recommended = method is None
    method = method or advice.method
    if unread := [name for name in given if name not in read_by(method)]:
        who = f"{method}, which the doctor recommends," if recommended else method
        raise ValueError(
            f"{who} does not read --{unread[0].replace('_', '-')}; leave it out, or give a --method that reads it: "
            f"{', '.join(one for one in TRAINED if unread[0] in read_by(one))}"
        )
    own = knobs_for(method)
    knobs = {name: given.get(name, own.get(name, default)) for name, (default, _) in KNOBS.items()}
    said = "".join(f", {name} {knobs[name]:g}{' as given' * (name in given)}" for name in own)
    reason = "recommended by the doctor: " + " ".join(advice.reasons) if recommended else "as given"
    print(f"method {method}{said}, {reason}", flush=True)
    return method, knobs


def tau_or_judge(text: str) -> float | str:
    """A number, or "judge": `judged` finds it then."""
    return text if text == "judge" else float(text)


def judged(found: Diagnosis | None) -> float:
    """tau of these pairs by their judge's noted errors. Raises ValueError without those, or without an untied pair."""
    if not found or not found.noted:
        raise ValueError(
            "--tau judge needs a judge that was checked: a scored.jsonl beside the manifest that notes its errors on labels; give tau a number"
        )
    if not found.noise.untied:
        raise ValueError("--tau judge: no pair has two different scores; give tau a number")
    return tau_of_judge(1 - found.noise.contradicted / found.noise.untied, found.noted[:2])


def read_by(method: str) -> set[str]:
    """The options that a method's training reads; `kl_budget` is a setting of it only where there is one."""
    read = SETTINGS.changed(kl_budget=1.0).as_dict(method)
    return {"learning_rate", "report_to", *read, *read.get("self_augmented", ())}


def default_of(name: str) -> Any:
    """The value of an option of `OPTIONS` or `SEGMENTS` that is not given."""
    return getattr(SETTINGS.self_augmented if name in SEGMENTS else SETTINGS, name)


def parser() -> CommandParser:
    """The arguments of `rdpo train`."""
    command = CommandParser("train", __doc__)
    command.add_argument(
        "rows",
        help="CSV, JSON, JSONL or Parquet file, folder of save_to_disk, or Hub dataset NAME[/SPLIT]@COMMIT, in a format of docs/own-data.md",
    )
    command.add_argument("--student", required=True, help="folder or Hub name of a chat model")
    command.add_argument("--output", required=True, help="folder for adapter and report")
    add_score_options(command)
    command.add_argument(
        "--method",
        choices=TRAINED,
        metavar="METHOD",
        help=f"{', '.join(TRAINED)}; default: what the doctor recommends for these rows",
    )
    for name, meaning in (OPTIONS | SEGMENTS).items():
        value = default_of(name)
        command.add_argument("--" + name.replace("_", "-"), type=type(value), help=f"{meaning}; default {value}")
    for name, (value, losses) in KNOBS.items():
        command.add_argument(
            "--" + name.replace("_", "-"),
            type=tau_or_judge if name == "tau" else float,
            help=f"knob of {', '.join(losses)}; default: what the doctor recommends, else {value}"
            + "; judge: by the noted errors of the judge of a scored.jsonl" * (name == "tau"),
        )
    command.add_argument(
        "--strength", type=float, default=1.0, help="how many times the trained adapter counts; default 1"
    )
    command.add_argument("--push", type=repository, metavar="OWNER/NAME", help="private Hub repository for the adapter")
    command.add_argument("--revision", help="commit of a Hub student")
    command.add_argument("--pad-token", help="an existing token to pad with, for a student without one")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    given = {name: value for name in (*OPTIONS, *SEGMENTS, *KNOBS) if (value := getattr(asked, name)) is not None}
    try:
        for name, value in given.items() - {("tau", "judge")}:
            checked(name, value, float if name in KNOBS else type(default_of(name)))
        checked("strength", asked.strength, float)
    except ValueError as error:
        parser().error(f"--{str(error).replace('_', '-')}")
    escape_what_the_terminal_lacks()
    quiet_libraries()
    output = Path(asked.output).expanduser()
    try:
        score_range = tuple(asked.score_range)
        pairs, read, found = given_rows(asked, score_range)
        if given.get("tau") == "judge":
            given["tau"] = judged(found)
        method, knobs = chosen_method(found.advice if found else None, asked.method, given)
        options = {name: given.get(name, getattr(SETTINGS, name)) for name in OPTIONS}
        segments = replace(SETTINGS.self_augmented, **{name: given[name] for name in SEGMENTS if name in given})
        settings = SETTINGS.changed(
            **options, **knobs, sft_learning_rate=options["learning_rate"], self_augmented=segments
        )
        how = {"revision": asked.revision, "pad_token": asked.pad_token, "data": read.as_dict()}
        train_and_report(pairs, asked.student, output, method, settings, found, asked.strength, **how)
        adapter = output / ("adapter" if asked.strength == 1.0 else f"adapter-{asked.strength:g}")
        print((output / "report.md").read_text(encoding="utf-8").partition("\n## ")[0])
        print(f"answers before and after: {output / 'report.md'}; adapter: {adapter}")
        if asked.push:
            push(adapter, asked.push)
    except (OSError, ValueError) as error:
        sys.exit(f"own_data: {error}")


if __name__ == "__main__":
    main()
