"""The rounds of ReverseGen: propose, let the target answer, judge, train the proposer; each stage is a file.

`warm-up-<mark>/` holds the proposer's SFT, and `round-<number>-<mark>/` made_of.json, proposals.jsonl, selected.json,
answers.jsonl, verdicts.jsonl, round.json with the figures, and pairs.jsonl, adapter/ and training.json of the training
that follows. What is finished is read, so a run that was stopped goes on and writes the bytes of one that was not.

Algorithm and order are the authors' (qtli/ReverseGen); so are temperature 1, the top_p .98 of their README (their
script samples at .9) and, of DPO, beta .1, learning rate 5e-5, one epoch and batches of 8. Ours are: a LoRA adapter and
AdamW, a chat template around the request, the second judge, and that the prompts of all rounds are kept.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from common.chat.local import LocalChat
from common.chat.model import ChatModel
from common.data.counterfactual import INSTRUCTIONS
from common.data.self_critique import opening
from common.data.splits import words
from common.evaluation.answers import TrainedStudent, chat_of
from common.judge.base import Judge
from common.methods import TrainSettings
from common.prompts import PROMPTS
from common.reversegen.proposals import Read, distinct, lesson_pair, matched, requests
from common.runtime import Progress
from common.schema import PromptRecord, Record, ScoredPair, fingerprint
from common.storage import make_missing, write_json, write_jsonl
from common.training.kept import trained_once, training_of
from common.training.rounds.asking import GROUP, Asking

SETTINGS = TrainSettings(learning_rate=5e-5, beta=0.1, epochs=1, batch_size=8)
"""Of the proposer; the authors' but for SFT's learning rate."""
COLLAPSED = 0.05
"""Share of distinct ones among the valid proposals below which a proposer has collapsed (ours)."""
FOUND = "found_prompts.jsonl"


@dataclass(frozen=True)
class Search:
    """How prompts are looked for.

    rounds: trainings of the proposer; prompts are proposed once more after the last. proposals: in each round.
    top_p: of proposals, at temperature 1. warm_up_epochs: of SFT. prompt_tokens, answer_tokens: at most, of a proposal
    and of the target's answer. repetition_penalty: of the target, 1 is none.
    """

    rounds: int = 3
    proposals: int = 200
    top_p: float = 0.98
    warm_up_epochs: int = 2
    prompt_tokens: int = 128
    answer_tokens: int = 256
    repetition_penalty: float = 1.0


class Target(NamedTuple):
    """The student whose failures are looked for, which stays as it is.

    name: its identity; another name is another search. load: opens it, when a first answer is missing.
    """

    name: str
    load: Callable[[], TrainedStudent]


class Verdict(Record):
    """A valid, distinct proposal with the target's answer and what the judges give it, in [0, 1].

    None: unscored, or not asked: the final judge is asked about failures alone."""

    id: str
    prompt: PromptRecord
    answer: str
    score: float | None
    final_score: float | None = None

    @property
    def failed(self) -> bool:
        """The answer is not in the upper half of the judge's scale."""
        return self.score is not None and self.score <= 0.5

    @property
    def handled(self) -> bool:
        return self.score is not None and self.score > 0.5

    @property
    def confirmed(self) -> bool:
        """The final judge finds the failure too."""
        return self.final_score is not None and self.final_score <= 0.5


@dataclass
class Round:
    """What a round works with. proposer: loads the student that proposes. requests: id -> three-shot request."""

    number: int
    folder: Path
    proposer: Callable[[], TrainedStudent]
    requests: dict[str, str]
    target: Target
    judge: Judge
    final_judge: Judge
    read: Read
    settings: TrainSettings
    search: Search

    @property
    def name(self) -> str:
        return f"reversegen, round {self.number}"

    def reached(self, stage: str) -> None:
        """Prints which file is complete."""
        print(f"{self.name}: {stage}", flush=True)

    def proposed(self) -> dict[str, str]:
        """Id of a request -> the proposal, "" for one that was cut off."""
        asking = Asking(
            f"{self.name}, proposer", self.number, self.folder / "proposals.jsonl", self.settings.seed,
            cache(self.proposer), lambda trained: LocalChat(trained.model, trained.tokenizer, "proposer"),
            self.search.prompt_tokens, self.search.top_p,
        )  # fmt: skip
        answers = asking.answers({id: opening("", request) for id, request in self.requests.items()}, ["p"], 1.0)
        self.reached("proposals")
        return {id: one.text.strip() if one.finish_reason == "stop" else "" for id, [one] in answers.items()}

    def selected(self, proposals: dict[str, str]) -> dict[str, PromptRecord]:
        """Id of a request -> the prompt proposed; those that are valid and distinct, in order. Raises ValueError for
        none, and for a collapsed proposer."""
        valid = {id: record for id, text in proposals.items() if text and (record := self.read(text))}
        ids, cut = list(valid), list(proposals.values()).count("")
        kept = [ids[i] for i in distinct([record.prompt for record in valid.values()])]
        write_json(
            self.folder / "selected.json", {"proposed": len(proposals), "cut": cut, "valid": len(valid), "kept": kept}
        )
        self.reached("selected")
        if not valid:
            raise ValueError(
                f"{self.name}: none of {len(proposals)} proposals is valid ({cut} cut off or empty); give more prompts,"
                f" warm_up_epochs or prompt_tokens, or a lower top_p. {self.folder} keeps them"
            )
        if len(kept) <= COLLAPSED * len(valid):
            raise ValueError(
                f"{self.name}: the proposer has collapsed, {len(kept)} of {len(valid)} valid proposals are distinct;"
                f" lower learning_rate or rounds. {self.folder} keeps them"
            )
        return {id: valid[id] for id in kept}

    def verdicts(self, prompts: dict[str, PromptRecord]) -> list[Verdict]:
        """The target's greedy answer to each prompt, judged; failures a second time."""

        def chat(target: TrainedStudent) -> ChatModel:
            experiment = next(iter(prompts.values())).experiment
            how = {"repetition_penalty": self.search.repetition_penalty}
            return chat_of(target, PROMPTS[experiment], INSTRUCTIONS[experiment], **how)

        asking = Asking(
            f"{self.name}, target", self.number, self.folder / "answers.jsonl", self.settings.seed,
            cache(self.target.load), chat, self.search.answer_tokens,
        )  # fmt: skip
        turns = {id: opening(record.system, record.prompt) for id, record in prompts.items()}
        answers = asking.answers(turns, ["t"], 0.0)
        self.reached("answers")
        asked = [Verdict(id=id, prompt=prompts[id], answer=one.text, score=None) for id, [one] in answers.items()]
        progress = Progress(f"{self.name}, verdicts", len(asked))

        def make(batch: list[Verdict]) -> Iterator[Verdict | dict[str, str]]:
            judged = _judged(self.judge, batch, "score")
            failed = [one for one in judged if isinstance(one, Verdict) and one.failed]
            again = _judged(self.final_judge, failed, "final_score")
            checked = {verdict.id: made for verdict, made in zip(failed, again)}
            for verdict in judged:
                yield verdict if isinstance(verdict, dict) else checked.get(verdict.id, verdict)
                progress(1)

        made = make_missing(asked, make, self.folder / "verdicts.jsonl", Verdict, "verdicts", GROUP, 0.0, progress)
        self.reached("verdicts")
        return list(made)

    def pairs(self, verdicts: Sequence[Verdict], experiment: str) -> list[ScoredPair]:
        """The proposer's pairs of the round, written. Raises ValueError where nothing can be learnt."""
        failing, handled = ([one for one in verdicts if getattr(one, kind)] for kind in ("failed", "handled"))
        if not failing or not handled:
            unscored = len(verdicts) - len(failing) - len(handled)
            why, remedy = (
                ("no verdict can be read", "take another judge")
                if unscored == len(verdicts)
                else ("the target failed on none", "give more proposals, or a target with more faults")
                if not failing
                else ("the target failed on all", "look whether the judge is right about its answers")
            )
            raise ValueError(
                f"{self.name}: {why} of {len(verdicts)} valid, distinct prompts, so no pair can be made to train the"
                f" proposer on; {remedy}. {self.folder} keeps what was made"
            )
        rng = random.Random(f"reversegen pairs {self.settings.seed} {self.number}")
        requested = [self.requests[one.id] for one in verdicts]
        texts = ([one.prompt.prompt for one in of] for of in (failing, handled))
        pairs = [
            lesson_pair(f"{number}#r{self.number}", experiment, *row)
            for number, row in enumerate(matched(requested, *texts, rng))
        ]
        _write(self.folder / "pairs.jsonl", pairs)
        self.reached("pairs")
        return pairs


def find_failures(
    proposer: str | Path, target: Target, records: Sequence[PromptRecord], judge: Judge, final_judge: Judge, read: Read,
    folder: str | Path, settings: TrainSettings = SETTINGS, search: Search = Search(), *, read_as: str = "",
    **load: Any,
) -> tuple[list[PromptRecord], list[dict[str, Any]]]:  # fmt: skip
    """(prompts that the target fails on, the figures of every round, see `figures`); kept as `FOUND` in `folder`.

    Args:
        proposer: folder or Hub name of the student that learns to propose; `load` goes to `load_student`.
        records: prompts, of which only those of split `train` are shown to it.
        judge: says on which prompts the target failed, which is all that the proposer learns from.
        final_judge: another judge, or an oracle, that is asked about failures; only what it confirms is found. A
            proposer learns the first judge's errors too.
        read: the validity check, see `Read`. read_as: its name, another of which is another search.

    Raises ValueError where a round has no failure, no success or too few pairs for two steps, where the proposer has
    collapsed, and where no failure is confirmed; RuntimeError where answers are missing. What was made stays, and the
    next call goes on from it.
    """
    folder, experiment = Path(folder), records[0].experiment
    prompts = list(dict.fromkeys(record.prompt.strip() for record in records if record.split == "train"))
    lessons, asked = requests(prompts, search.proposals, settings.seed)
    known = set(map(words, prompts))
    shown = [lesson_pair(f"warm-up {i}", experiment, *lesson, "") for i, lesson in enumerate(lessons)]
    warm = settings.changed(epochs=search.warm_up_epochs)
    mark = training_of("sft", proposer, shown, warm, **load)
    place = folder / f"warm-up-{mark}"
    who = _trained("sft", proposer, shown, warm, place, **load)
    own = {name: value for name, value in asdict(search).items() if name not in ("rounds", "warm_up_epochs")}
    made_of = {
        "warm_up": mark, "settings": settings.as_dict("dpo"), "load": {k: str(v) for k, v in load.items()},
        "search": own, "group": GROUP, "target": target.name, "judge": judge.name, "final_judge": final_judge.name,
        "read": read_as, "records": fingerprint([record.model_dump() for record in records]),
    }  # fmt: skip
    found: list[PromptRecord] = []
    rows: list[dict[str, Any]] = []
    before = ""
    for number in range(search.rounds + 1):
        adapter, before = place / "adapter", fingerprint(made_of, before)
        place = folder / f"round-{number}-{before}"
        write_json(place / "made_of.json", made_of)
        this = Round(
            number, place, who, {f"p{i}": one.request for i, one in enumerate(asked)}, target, judge, final_judge,
            lambda text: None if words(text) in known else read(text), settings, search,
        )  # fmt: skip
        verdicts = this.verdicts(this.selected(this.proposed()))
        rows.append(figures(place, verdicts))
        confirmed = [one.prompt for one in verdicts if one.confirmed]
        new = distinct([one.prompt for one in confirmed], [one.prompt for one in found])
        found += [confirmed[i] for i in new]
        _write(folder / FOUND, found)
        rows[-1]["new"] = len(new)
        write_json(place / "round.json", {"round": number, **rows[-1]})
        print(f"{this.name}: {told(rows[-1])}", flush=True)
        if number < search.rounds:
            who = _trained("dpo", proposer, this.pairs(verdicts, experiment), settings, place, adapter, **load)
    if not found:
        raise ValueError(
            f"{final_judge.name} confirms none of the {sum(row['failures'] for row in rows)} failures that {judge.name}"
            f" found: the proposer learnt the errors of that judge; take a better one. {folder} keeps what was made"
        )
    return found, rows


def figures(place: Path, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts of a round.

    valid: of the proposed; cut: cut off or empty. distinct: valid ones without near-duplicates, which the target
    answered. failures, handled, unscored: of these, by the judge. confirmed: failures that the final judge finds too.
    failures_per_100, confirmed_per_100: of 100 distinct ones, those of earlier rounds among them. distinct_share: of the
    valid ones; near 0, the proposer repeats itself. `find_failures` adds new: confirmed ones unlike those of earlier
    rounds.
    """
    selected = json.loads((place / "selected.json").read_text(encoding="utf-8"))
    counts = Counter("failures" if one.failed else "handled" if one.handled else "unscored" for one in verdicts)
    confirmed, distinct_ones = sum(one.confirmed for one in verdicts), len(verdicts)
    return {
        **{name: selected[name] for name in ("proposed", "cut", "valid")}, "distinct": distinct_ones,
        **{name: counts[name] for name in ("failures", "handled", "unscored")}, "confirmed": confirmed,
        "failures_per_100": 100 * counts["failures"] / distinct_ones,
        "confirmed_per_100": 100 * confirmed / distinct_ones,
        "distinct_share": distinct_ones / selected["valid"],
    }  # fmt: skip


def told(row: dict[str, Any]) -> str:
    """The figures of a round in words."""
    return (
        f"{row['proposed']} proposed, {row['valid']} valid, {row['distinct']} distinct"
        f" ({row['distinct_share']:.0%} of the valid ones); of 100 distinct ones the target fails on"
        f" {row['failures_per_100']:.1f}, confirmed {row['confirmed_per_100']:.1f}; {row['new']} unlike those of earlier rounds"
    )


def _trained(
    method: str, proposer: str | Path, pairs: Sequence[ScoredPair], settings: TrainSettings, place: Path,
    start: Path | None = None, **load: Any,
) -> Callable[[], TrainedStudent]:  # fmt: skip
    """Loads the trained proposer, anew each time, so that it and the target are not held together. It is trained first
    where its folder, which is named by all that decides it, holds no training."""
    who = partial(trained_once, method, proposer, pairs, settings, place, start, **load)
    if math.ceil(len(pairs) / settings.batch_size) * settings.epochs < 2:
        raise ValueError(
            f"{len(pairs)} {'pairs' if start else 'prompts'} are a single step of {settings.batch_size}, which has learning"
            f" rate 0 and trains nothing; give more prompts, proposals or epochs. {place.parent} keeps what was made"
        )
    if not (place / "training.json").exists():
        who()
    return who


def _judged(judge: Judge, verdicts: Sequence[Verdict], field: str) -> list[Verdict | dict[str, str]]:
    """The verdicts with the judge's score as `field`, or id and reason where no reply came."""
    if not verdicts:
        return []
    low, high = judge.scale
    judgements = judge.judge([one.prompt.prompt for one in verdicts], [one.answer for one in verdicts])
    return [
        {"id": one.id, "reason": judged.failure}
        if judged.failure
        else one.model_copy(update={field: None if judged.score is None else (judged.score - low) / (high - low)})
        for one, judged in zip(verdicts, judgements, strict=True)
    ]


def _write(path: Path, records: Sequence[Record]) -> None:
    write_jsonl(path, [one.model_dump(mode="json") for one in records])
