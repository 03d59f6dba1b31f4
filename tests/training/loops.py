"""Rows that train in rounds on a micro student in seconds, and their stops: for tests and `reliability.py`."""

import json
import os
import signal
from itertools import count
from types import SimpleNamespace

import torch

from common.chat.local import LocalChat
from common.judge.base import Judgement
from common.methods import RoundSettings, TrainSettings
from common.miniature import lab
from common.miniature.worlds import safety
from common.schema import ScoredPair
from common.storage import JsonlStore
from common.training.rounds import run, stages
from common.training.rounds.run import run_rounds

SETTINGS = TrainSettings(
    learning_rate=1e-2, epochs=3, batch_size=4, beta=0.2, max_length=256, lora_rank=4,
    rounds=RoundSettings(epochs=3, count=2, prompts=6, schedule=[3, 5], over_generate=2, entropy_samples=2),
)  # fmt: skip


class ByLetters:
    """A judge that likes one letter of an answer more than the others; it notes what it was asked."""

    name, scale = "letters", (0.0, 1.0)

    def __init__(self):
        self.asked = []

    def judge(self, prompts, answers):
        self.asked += answers
        return [Judgement(answer.count("e") / max(1, len(answer)), "") for answer in answers]


class Evaluator(SimpleNamespace):
    """How a student is asked, and by whom it is judged; evaluates nothing."""

    def __init__(self, judge=None, chat=None):
        super().__init__(reward_judge=judge or ByLetters(), names=[], max_new_tokens=52, answers=chat)

    def chat(self, student):
        chat = self.answers or LocalChat(student.model, student.tokenizer, f"{student.method} {student.mark}".strip(), 128)
        self.names.append(chat.name)
        return chat

    def mark(self):
        return {"max_new_tokens": self.max_new_tokens}


def given(count=12):
    """Pairs that `ByLetters` scores as it is written here, the revision higher."""
    made = []
    for number, record in enumerate(safety.prompts_for("train", count, benign_share=0.25, seed=0)):
        original, revised = f"No {number} now.", f"Here we see {number}."
        low, high = (answer.count("e") / len(answer) for answer in (original, revised))
        made.append(ScoredPair(**record.model_dump(), response=original, response_revised=revised, score_response=low, score_revised=high))
    return made


def looped(method, micro, folder, pairs=None, evaluator=None, settings=SETTINGS):
    return run_rounds(method, micro, pairs or given(), evaluator or Evaluator(), settings, folder, **lab.LOADED)


def rounds_of(folder):
    return sorted(folder.glob("round-*"))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    """The files of a row, without what differs from run to run: times of trainings, and the order of PEFT's sets."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or "trainer" in file.parts:
            continue
        found[str(file.relative_to(folder))] = content = file.read_bytes()
        if file.name == "training.json":
            kept = json.loads(content)
            kept["history"] = [{k: v for k, v in step.items() if "runtime" not in k and "per_second" not in k} for step in kept["history"]]
            found[str(file.relative_to(folder))] = kept
        if file.name == "adapter_config.json":
            config = json.loads(content)
            found[str(file.relative_to(folder))] = config | {"target_modules": sorted(config["target_modules"])}
    return found


def adapter_of(trained):
    return torch.cat([p.detach().flatten() for name, p in trained.model.named_parameters() if "lora_" in name])


def stopped(method, micro, folder, every=1):
    """Boundaries between stages at which the processes of a row were killed, once each: every so many of them. Each kills
    itself there with SIGKILL, the next one goes on, and the last one ends. Forks, so that libraries are loaded once."""
    met = folder.with_name(f"{folder.name}-met.json")
    met.write_text("[]")
    stops = []
    while True:
        if not (child := os.fork()):
            try:
                torch.set_num_threads(1)  # the others are not in a fork
                _kill_at_boundaries(met, every)
                looped(method, micro, folder)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return stops
        assert os.WTERMSIG(status) == signal.SIGKILL
        stops.append(json.loads(met.read_text())[-1])


def _kill_at_boundaries(met, every):
    said = []

    def boundary(name):
        said.append(name)
        before = json.loads(met.read_text())
        if (key := f"{name}, time {said.count(name)}") not in before:
            met.write_text(json.dumps([*before, key]))
            if len(before) % every == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    reached, write, once, keep = stages.Round.reached, run.write_json, run.trained_once, run.keep_student
    stages.Round.reached = lambda self, stage: (reached(self, stage), boundary(f"{self.name} {stage}"))
    run.write_json = lambda path, content: (write(path, content), boundary(f"{path.parent.name} {path.name}"))
    run.trained_once = lambda *args, **load: [once(*args, **load), boundary(f"trained {len(args[2])} {args[2][0].id}")][0]
    run.keep_student = lambda *args: (boundary("before the end"), keep(*args), boundary("at the end"))


def killed(method, micro, folder, records):
    """Signals by which the processes of a row ended, one after the other: each kills itself at once when it has written
    so many of its records, answers or verdicts; the next one goes on. Forks, so that libraries are loaded once."""
    signals = []
    for most in records:
        if not (child := os.fork()):
            try:
                torch.set_num_threads(1)  # the others are not in a fork
                append, written = JsonlStore.append, count(1)

                def counted(self, record):
                    append(self, record)
                    if next(written) == most:
                        os.kill(os.getpid(), signal.SIGKILL)

                JsonlStore.append = counted
                looped(method, micro, folder)
            finally:
                os._exit(1)
        signals.append(os.WTERMSIG(os.waitpid(child, 0)[1]))
    return signals
