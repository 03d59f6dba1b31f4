"""The stages of a round, a file each: answers, selected, pairs, scored, preferred. What is finished is read, not made.

A round that is resumed writes the bytes of one that was not (see `asking`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from common.chat.model import ChatModel
from common.data.preference import prompt_messages
from common.data.self_critique import WholeSentences
from common.evaluation.answers import TrainedStudent
from common.judge.base import FeedbackJudge, Judge
from common.judge.scoring import score_pairs
from common.logprobs.compute import grouped_logprobs
from common.methods import METHODS, TrainSettings
from common.schema import Pair, Reply, Sampling, ScoredPair
from common.storage import write_json, write_jsonl
from common.training.rounds.acquisition import best_and_worst, entropy, highest, margin, prefiltered
from common.training.rounds.arms import ARMS, Arm
from common.training.rounds.asking import Answer, Asking

UNSCORED_LIMIT = 0.5
"""Share of unread verdicts that stops a round; a round may be a handful of pairs, of which one is much."""
BOTH = ("a", "b")


@dataclass
class Round:
    """What a round works with.

    number: from 0. pairs: the scored pairs whose prompts it may use. judge: the reward judge. who: loads the student that
    answers. chat: how a student is asked. wanted: pairs to be judged, of rows with a schedule.
    """

    method: str
    number: int
    folder: Path
    pairs: Sequence[ScoredPair]
    judge: Judge | FeedbackJudge
    settings: TrainSettings
    who: Callable[[], TrainedStudent]
    chat: Callable[[TrainedStudent], ChatModel]
    max_new_tokens: int
    wanted: int = 0

    @property
    def arm(self) -> Arm:
        return ARMS[METHODS[self.method].rounds]

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.settings.seed}, round {self.number + 1}"

    def reached(self, stage: str) -> None:
        """Says which file is complete."""
        print(f"{self.name}: {stage}", flush=True)

    def answers(
        self, pairs: Sequence[ScoredPair], samples: Sequence[str], temperature: float, unaltered: bool = False
    ) -> dict[str, list[Answer]]:
        """Prompt -> an answer of the student for each of `samples`, which name them. unaltered: drawn from the model's own
        distribution, without repetition penalty and uncut, as its log-probabilities are."""
        chat = self._unaltered if unaltered else self._as_in_evaluations
        asking = Asking(
            self.name, self.number, self.folder / "answers.jsonl", self.settings.seed, self.who, chat, self.max_new_tokens
        )  # fmt: skip
        return asking.answers({pair.id: prompt_messages(pair) for pair in pairs}, samples, temperature)

    def _as_in_evaluations(self, student: TrainedStudent) -> ChatModel:
        chat = self.chat(student)
        return WholeSentences(chat) if self.settings.rounds.cut_at_sentence else chat

    def _unaltered(self, student: TrainedStudent) -> ChatModel:
        chat = copy(self.chat(student))
        chat.repetition_penalty = 1.0
        return chat

    def scored(self, pairs: Sequence[Pair]) -> list[ScoredPair]:
        """The pairs, judged; `pairs.jsonl` holds them before anything is asked."""
        write_jsonl(self.folder / "pairs.jsonl", [pair.model_dump(mode="json") for pair in pairs])
        self.reached("pairs")
        scored = list(
            score_pairs(
                self.judge, pairs, self.folder / "scored.jsonl", unscored_limit=UNSCORED_LIMIT, failed_limit=0.0
            )
            if pairs
            else []
        )
        self.reached("scored")
        return scored

    def preferred(self, pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
        """The pairs that the round adds to training, written. Raises ValueError for none, but for a later round that
        trains on those of earlier ones too."""
        if not pairs and (self.arm.goes_on or not self.number):
            raise ValueError(
                f"{self.name}: no pair has a preferred answer (all were cut off, equal, tied or without a verdict), so there is nothing to train on; give more prompts or max_new_tokens, or a judge that tells answers apart. {self.folder} keeps what was judged"
            )
        write_jsonl(self.folder / "preferred.jsonl", [pair.model_dump(mode="json") for pair in pairs])
        self.reached("preferred")
        return list(pairs)


def explored(this: Round) -> list[ScoredPair]:
    """The pairs of iterative DPO: of two given answers and the student's greedy one the best and the worst.

    An answer that was cut off, or that is one of the two, is not judged. The given ones keep their scores. A row that
    explores gets every answer beside its pair, cut off or not."""
    answers = {prompt: answer for prompt, (answer,) in this.answers(this.pairs, ["0"], 0.0).items()}
    this.reached("answers")
    new = {
        pair.id: answers[pair.id].text
        for pair in this.pairs
        if answers[pair.id].finish_reason == "stop"
        and answers[pair.id].text not in (pair.response, pair.response_revised)
    }
    write_json(this.folder / "selected.json", {"acquisition": "all", "kept": list(new)})
    this.reached("selected")
    asked = [
        _pair(this, pair, new[pair.id], new[pair.id], answers[pair.id].sampling)
        for pair in this.pairs
        if pair.id in new
    ]  # on both sides: a judge whose replies are kept is asked once
    judged = {pair.id: pair for pair in this.scored(asked)}
    best = {pair.id: _best_pair(pair, judged.get(f"{pair.id}#r{this.number}")) for pair in this.pairs}
    return this.preferred(
        [
            pair.model_copy(update={"explored": _said(answers[id])}) if METHODS[this.method].explores else pair
            for id, pair in best.items()
            if pair
        ]
    )


def _said(answer: Answer) -> Reply:
    return Reply(text=answer.text, finish_reason=answer.finish_reason, completion_tokens=answer.completion_tokens)


def _best_pair(given: ScoredPair, judged: ScoredPair | None) -> ScoredPair | None:
    answers = {
        "revised": (given.response_revised, given.score_revised, given.judge_reply_revised),
        "original": (given.response, given.score_response, given.judge_reply_response),
    }
    if judged and judged.score_revised is not None:
        answers["new"] = (judged.response_revised, judged.score_revised, judged.judge_reply_revised)
    best = best_and_worst({name: score for name, (_, score, _) in answers.items()})
    if not best or "new" not in best:
        return best and (given if best.chosen == "revised" else given.swapped())
    (chosen, high, reply_chosen), (rejected, low, reply_rejected) = (answers[name] for name in best)
    return given.model_copy(update={
        "id": judged.id, "response": rejected, "response_revised": chosen, "score_response": low, "score_revised": high,
        "judge_reply_response": reply_rejected, "judge_reply_revised": reply_chosen, "critique": "", "criteria": {},
    })  # fmt: skip


def acquired(this: Round) -> list[ScoredPair]:
    """The pairs of active preference learning: two answers of the student to each prompt, the one that the judge scores
    higher preferred.

    `wanted` pairs are judged, or all where no prompt is left. A tie is a verdict that was paid for, and no pair to train
    on; a pair with an unread verdict makes way for another, as do two equal answers or one that was cut off. So it can
    take several passes, each of them an entry of `selected.json`.
    """
    path, asked, judged, out = this.folder / "selected.json", [], [], set()
    passes = json.loads(path.read_text(encoding="utf-8"))["passes"] if path.exists() else []
    by_id = {pair.id: pair for pair in this.pairs}
    for number in count():
        pool, missing = [pair for pair in this.pairs if pair.id not in out], this.wanted - len(judged)
        if missing <= 0 or not pool:
            break
        if number == len(passes):
            rng = random.Random(f"rounds {this.settings.seed} {this.number} {number}")
            passes.append(_selected(this, pool, missing, rng))
            write_json(path, {"acquisition": METHODS[this.method].rounds, "passes": passes})
            this.reached("selected")
        kept = [by_id[prompt] for prompt, _ in passes[number]["kept"]]
        out |= {pair.id for pair in kept} | set(passes[number]["unusable"])
        both = this.answers(kept, BOTH, this.settings.rounds.candidate_temperature)
        asked += [_pair(this, pair, *(one.text for one in both[pair.id]), both[pair.id][0].sampling) for pair in kept]
        judged = [pair for pair in this.scored(asked) if pair.is_scored]
    if len(judged) < this.wanted:
        print(f"{this.name}: {len(judged)} of {this.wanted} pairs are judged, and no prompt is left", flush=True)
    untied = [pair for pair in judged if pair.score_response != pair.score_revised]
    return this.preferred([pair if pair.score_revised > pair.score_response else pair.swapped() for pair in untied])


def _selected(this: Round, pool: Sequence[ScoredPair], missing: int, rng: random.Random) -> dict:
    """A pass: how many prompts were drawn, those without two whole and different answers, and the prompts to be judged
    with what they were chosen by."""
    rounds, arm = this.settings.rounds, this.arm
    candidates = missing * (rounds.over_generate if arm.chooses else 1)
    if arm.chooses and len(pool) < candidates:
        print(f"{this.name}: chooses {missing} of the {len(pool)} prompts left, not of {candidates}", flush=True)
    drawn = rng.sample(pool, min(len(pool), candidates))
    kept, values = drawn, {}
    if arm.by_entropy:
        samples = this.answers(drawn, [f"e{i}" for i in range(rounds.entropy_samples)], 1.0, unaltered=True)
        logps = log_probabilities(this.who(), drawn, samples)
        values = {pair.id: entropy(of_prompt) for pair, of_prompt in zip(drawn, logps)}
        most = prefiltered(missing, rounds.over_generate) if arm.by_certainty else missing
        kept = [drawn[i] for i in highest([values[pair.id] for pair in drawn], rng)[:most]]
    both = this.answers(kept, BOTH, rounds.candidate_temperature)
    this.reached("answers")
    unusable = [pair.id for pair in kept if not _usable(both[pair.id])]
    kept = [pair for pair in kept if _usable(both[pair.id])]
    if arm.by_certainty:
        values = dict(zip((pair.id for pair in kept), _margins(this, kept, both)))
        kept = [kept[i] for i in highest([values[pair.id] for pair in kept], rng)]
    return {
        "drawn": len(drawn),
        "unusable": unusable,
        "kept": [[pair.id, values.get(pair.id)] for pair in kept[:missing]],
    }


def _usable(both: Sequence[Answer]) -> bool:
    return both[0].text != both[1].text and all(answer.finish_reason == "stop" for answer in both)


def _margins(this: Round, pairs: Sequence[ScoredPair], both: dict[str, list[Answer]]) -> list[float]:
    if not (student := this.who()).mark:
        return [0.0] * len(pairs)  # it is its own reference
    policy = log_probabilities(student, pairs, both)
    with student.model.disable_adapter():
        reference = log_probabilities(student, pairs, both)
    return [margin(tuple(one), tuple(other), this.settings.beta) for one, other in zip(policy, reference)]


@torch.no_grad()
def log_probabilities(
    student: TrainedStudent, pairs: Sequence[ScoredPair], answers: dict[str, list[Answer]], at_a_time: int = 16
) -> list[list[float]]:
    """Log-probability of each answer, summed over its tokens and, unless it was cut off, its end, nats: a list for each
    prompt. Of the text, whose tokens need not be those that were sampled."""
    tokenizer, found = student.tokenizer, []
    for start in range(0, len(pairs), at_a_time):
        groups = []
        for pair in pairs[start : start + at_a_time]:
            prompt = tokenizer.apply_chat_template(prompt_messages(pair), add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
            ended = [
                tokenizer(answer.text, add_special_tokens=False)["input_ids"]
                + [tokenizer.eos_token_id] * (answer.finish_reason == "stop" or not answer.text)
                for answer in answers[pair.id]
            ]
            groups.append([(prompt + ids, len(prompt)) for ids in ended])
        logps = iter(grouped_logprobs(student.model, groups).tolist())
        found += [[next(logps) for _ in group] for group in groups]
    return found


def _pair(this: Round, given: ScoredPair, first: str, second: str, sampling: Sampling) -> Pair:
    own = {name: getattr(given, name) for name in Pair.model_fields}
    return Pair(**own | {
        "id": f"{given.id}#r{this.number}", "response": first, "response_revised": second, "critique": "", "teacher": this.method,
        "sampling": sampling, "usage": {},
    })  # fmt: skip
