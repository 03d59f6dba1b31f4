"""What a notebook will ask of whom, and what that takes, before it is spent: keys, models, requests, dollars, disk,
hours without a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from common.chat.endpoint import EndpointChat, key_of
from common.chat.pacing import EndpointError
from common.data.counterfactual import variant_named
from common.data.formats.read import is_on_hub
from common.data.self_critique import opening
from common.evaluation.judged import HeldOut
from common.evaluation.matched_utility import LAMBDAS
from common.methods import is_trained
from common.notebook.parameters import GenerateData, RewardScore, TrainRDPO, input_of, judge_named
from common.notebook.prompts import texts_of
from common.notebook.providers import endpoint_named
from common.notebook.students import given_pairs, held_out_of, pairs_to_score, read_wordings
from common.runtime import resolve
from common.schema import Pair, PromptRecord, Sampling, ScoredPair
from common.specs import Spec, place_and_commit
from common.student.load import place_of
from common.training.takes import Takes, takes

CPU_SPEED = 4e10
"""Parameters times tokens a second that two cores get through: SmolLM2-135M in NF4, 300 tokens a second in training and
a little more in generation (ours)."""
CHARACTERS = 4  # of an English token, about


class Work(NamedTuple):
    """What one model has to do: so many requests, each with so many tokens to read and at most so many to write."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt_tokens + self.completion_tokens)


def forecast(
    stage: str, p: GenerateData | RewardScore | TrainRDPO, prompts: Sequence[PromptRecord] = (), ask: bool = False
) -> list[str]:
    """A line on each model that the notebook `stage` uses: its work, and what that costs or takes without a GPU. Every
    reply is reckoned as long as may be; those kept from before cost nothing, those cut off or not understood are asked
    for twice. None for the miniature and for recorded replies. Not counted: the labelled answers a judge is checked on,
    questions of style, a second criterion of the final judge, and rows that are an endpoint themselves.

    Args:
        prompts: those of step 1. Later steps reckon with them where they have no pairs yet, and with answers as long as
            may be.
        ask: endpoints are asked for one token, so that a wrong key or model shows; else the key alone is looked for.

    Raises:
        EndpointError: no key, or no answer.
        OSError: no such model, or too little room on the disk of `output`.
    """
    roles = {
        "generate_data": {"teacher": _teaching, "respond_with": _responding},
        "reward_score": {"judge": _judging},
        "train_rdpo": {"final_judge": _final_judging, "reward_judge": _reward_judging},
    }[stage]
    if stage == "generate_data" and p.pairs == "recorded":
        return []
    items = prompts if stage == "generate_data" else _pairs(p, stage, prompts)
    if not items:
        return ["how much will be asked is known when the step before has written its pairs"]
    lines, written = _student(p, items) if stage == "train_rdpo" and not p.in_world else ([], 0)
    named = p.asked if isinstance(p, GenerateData) else judge_named
    for role, work_of in roles.items():
        who = getattr(p, role)
        spec = named(role, who) if who and who != "teacher" else None  # the miniature names no final judge
        if spec and spec.name and spec.kind not in ("learned", "lexicon"):
            work = work_of(p, items)
            # a reply is kept, and stands in what is made of it
            written += 2 * CHARACTERS * work.requests * (work.completion_tokens + 100)
            lines.append(
                _endpoint(endpoint_named(spec.name, p.providers), work, ask)
                if spec.kind == "endpoint"
                else _local(role, spec.name, _skeleton(role, spec), work.tokens)
            )
    _check_disk(p.output, written)
    return lines


def _pairs(p: RewardScore | TrainRDPO, stage: str, prompts: Sequence[PromptRecord]) -> Sequence[Pair]:
    """The pairs that a step begins with, or stand-ins for them; prompts where no row is trained."""
    if input_of(stage, p).exists() or is_on_hub(p.pairs_file):
        if isinstance(p, RewardScore):
            return pairs_to_score(p)
        return given_pairs(stage, p, ScoredPair if any(map(is_trained, p.methods)) else HeldOut)
    answer = "x" * CHARACTERS * p.max_new_tokens
    return [
        record if isinstance(record, Pair) else Pair(**record.model_dump(), response=answer, response_revised=answer)
        for record in prompts
    ]


def _teaching(p: GenerateData, prompts: Sequence[PromptRecord]) -> Work:
    texts, answer = texts_of(p), "x" * CHARACTERS * p.max_new_tokens
    said = [[], []] if variant_named(p.pairs) else [[], [answer], [answer, answer]][p.respond_with != "teacher" :]
    asked = [
        texts.conversation_after(opening(r.system, r.prompt), r.plain_prompt or r.prompt, replies)
        for r in prompts
        for replies in said
    ]
    return Work(
        (len(said) + (texts.quality is not None)) * len(prompts),
        _mean(sum(len(turn["content"]) for turn in turns) for turns in asked),
        p.max_new_tokens,
    )


def _responding(p: GenerateData, prompts: Sequence[PromptRecord]) -> Work:
    return Work(len(prompts), _mean(len(record.prompt) for record in prompts), p.max_new_tokens)


def _judging(p: RewardScore, pairs: Sequence[Pair]) -> Work:
    prompts = texts_of(p)
    shown = _mean(len(prompts.judge_request(pair.prompt, pair.response)[0]["content"]) for pair in pairs)
    return Work((5 if prompts.quality else 2) * len(pairs), shown, p.max_new_tokens)


def _held_out(p: TrainRDPO, pairs: Sequence[Pair]) -> list[PromptRecord]:
    """What the students of all rows are asked: the prompts that are evaluated on, those of `ood` with the test split, and
    their wordings, once a row; where utility is matched, those of validation once more for each strength of a trained
    row."""
    asked = [*(held_out_of(p, ()) if p.held_out else pairs), *read_wordings(p)]
    splits = [p.evaluate_on, *["ood"] * (p.evaluate_on == "test")]
    trained = _trained_rows(p)
    rows = trained + sum(not is_trained(method) for method in p.methods) * len(p.seeds)
    tried = [one for one in asked if one.split == "validation"] * (p.match_utility * trained * len(LAMBDAS[1:]))
    return [one for one in asked if one.split in splits] * rows + tried


def _trained_rows(p: TrainRDPO) -> int:
    return sum(map(is_trained, p.methods)) * len(p.seeds) * len(p.swapped)


def _final_judging(p: TrainRDPO, pairs: Sequence[Pair]) -> Work:
    held_out = [len(record.prompt) for record in _held_out(p, pairs)]
    return Work(len(held_out), _mean(held_out) + p.max_new_tokens, 256)  # tokens of a verdict, as in LLMJudge


def _reward_judging(p: TrainRDPO, pairs: Sequence[Pair]) -> Work:
    """The final judge's answers, and those that are judged within trainings."""
    after, within = _final_judging(p, pairs), sum(takes.verdicts for takes in _trainings(p, pairs))
    return after._replace(requests=after.requests + within)


def _trainings(p: TrainRDPO, pairs: Sequence[Pair]) -> list[Takes]:
    """What each trained row takes, once for every seed and share of swaps."""
    train = p.train_pairs or sum(pair.split == "train" for pair in pairs)
    validation = sum(pair.split == "validation" for pair in pairs)
    rows = [takes(method, p.training, train, validation) for method in p.methods if is_trained(method)]
    return rows * (len(p.seeds) * len(p.swapped))


def _student(p: TrainRDPO, pairs: Sequence[Pair]) -> tuple[list[str], int]:
    """The line of the student, trained and evaluated, and the bytes of its adapters."""
    train = [
        len(pair.prompt) + len(pair.response) + len(pair.response_revised) for pair in pairs if pair.split == "train"
    ]
    trainings = _trainings(p, pairs)
    answered = len(_held_out(p, pairs)) + sum(takes.answers for takes in trainings)
    tokens = sum(takes.passes for takes in trainings) * _mean(train) + answered * p.max_new_tokens
    model = _skeleton("student", Spec("student", *place_and_commit(p.student)))
    adapter = sum(
        p.lora_rank * (m.in_features + m.out_features) for m in model.modules() if isinstance(m, torch.nn.Linear)
    )
    return [_local("student", p.student, model, tokens)], len(trainings) * 4 * adapter


def _mean(characters: Iterable[int]) -> int:
    """Tokens of a text, on average."""
    counts = list(characters)
    return sum(counts) // (CHARACTERS * max(1, len(counts)))


def _endpoint(chat: EndpointChat, work: Work, ask: bool) -> str:
    key_of(chat.api_key_env)
    if ask:
        [reply] = chat.complete([[{"role": "user", "content": "Hello"}]], Sampling(max_new_tokens=1))
        if reply.failed and not reply.finish_reason.startswith("error: no words"):  # one token may be no word
            raise EndpointError(f"{chat.name} does not answer: {reply.finish_reason}")
    requests, prompt_tokens, completion_tokens = (
        work.requests,
        work.requests * work.prompt_tokens,
        work.requests * work.completion_tokens,
    )
    cost, limit = chat.price(prompt_tokens, completion_tokens), chat.budget.limit
    cap = (
        "no cost cap"
        if limit is None
        else f"cost cap {limit:g} dollars" + (", WHICH MAY STOP IT" if cost > limit else "")
    )
    return f"{chat.name}: about {requests} requests, {prompt_tokens:,} + {completion_tokens:,} tokens, {cost:.2f} dollars; {cap}"


def _local(role: str, name: str, model: torch.nn.Module, tokens: int) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    said = f"{role} {name}: {parameters / 1e9:.2f} billion parameters ({2 * parameters / 1e9:.1f} GB to download where it is not here yet), about {tokens:,} tokens"
    if torch.cuda.is_available():
        return said
    return f"{said}; NO GPU WAS FOUND: about {parameters * tokens / CPU_SPEED / 3600:.1f} hours on two cores"


def _skeleton(role: str, spec: Spec) -> torch.nn.Module:
    """The model without weights, from its configuration alone."""
    from transformers import AutoConfig, AutoModel

    try:
        place, commit = place_of(spec.name, spec.revision)
        config = AutoConfig.from_pretrained(place, revision=commit)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{role} = {spec.name!r} is no model here or on the Hub ({reason}); check name, network, and the licence of a gated model"
        ) from None
    with torch.device("meta"):
        return AutoModel.from_config(config)


def _check_disk(output: str, written: int) -> None:
    folder = next(path for path in (resolve(output), *resolve(output).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if written > free:
        raise OSError(
            f"about {written / 1e9:.1f} GB will be written below output = {output!r}, and {free / 1e9:.1f} GB are free there; free some, or give another output"
        )
