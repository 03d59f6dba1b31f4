"""Rows that learn the likelihood of answers: which they learn, with what weights, and CA's tag wherever it is needed (pytest tests/training/test_supervised.py)."""

import json
from types import SimpleNamespace

import pytest
import torch

from common.data.conditioned import TAG, Conditioned, conditioned
from common.data.preference import prompt_messages
from common.evaluation.answers import Constant, TrainedStudent, chat_of
from common.evaluation.card import card
from common.evaluation.metrics import divergence
from common.evaluation.result import Result
from common.logprobs.compute import summed_logprobs
from common.logprobs.edits import changed
from common.methods import METHODS, TrainSettings, sees_scores
from common.schema import Metric, PromptRecord, Sampling, ScoredPair
from common.training import supervised
from common.training.kept import trained_once, training_of
from common.training.supervised import (
    CompletionTrainer,
    answers_to_learn,
    figa_loss,
    reward_weights,
    supervised_trainer,
)
from common.training.train import common_arguments, train

FAST = TrainSettings(batch_size=4, learning_rate=1e-3, sft_learning_rate=1e-3, max_length=256, epochs=1)


def pair(number, original, revised):
    return ScoredPair(
        id=str(number), experiment="safety", split="train", prompt=f"Question {number}?", response=f"original {number}", response_revised=f"revision {number}",
        score_response=original, score_revised=revised, scale=(0.0, 1.0),
    )  # fmt: skip


PAIRS = [pair(0, 0.2, 0.6), pair(1, 0.9, 0.1), pair(2, 0.5, 0.5)]


def learnt(method, pairs=PAIRS, settings=FAST):
    return [(answer, weight) for _, answer, weight in answers_to_learn(method, pairs, settings)]


def test_what_each_row_learns():
    assert learnt("sft") == [("revision 0", 1.0), ("revision 1", 1.0), ("revision 2", 1.0)] and learnt("dsc") == [("revision 0", 1.0)]
    assert learnt("fa") == [("revision 0", 1.0), ("original 1", 1.0), ("revision 2", 1.0)]  # the first on a tie
    both = ["revision 0", "original 0", "revision 1", "original 1", "revision 2", "original 2"]
    assert [answer for answer, _ in learnt("rwr")] == [answer for answer, _ in learnt("ca")] == both and {weight for _, weight in learnt("ca")} == {1.0}
    assert [prompt[-1]["content"] for prompt, *_ in answers_to_learn("ca", PAIRS[:1], FAST)] == ["Question 0? <rm_score>: 0.60", "Question 0? <rm_score>: 0.20"]
    assert all(sees_scores(method) for method in ("dsc", "fa", "rwr", "ca")) and not sees_scores("sft")
    with pytest.raises(ValueError, match="dsc: no revision scored higher"):
        learnt("dsc", PAIRS[1:])


def test_weights_of_rewards_have_mean_1_and_an_effective_sample_size(capsys):
    """The worked numbers: scores, and L = - sum of w lp over sum of n."""
    scores, logps, tokens = [0.0, 0.5, 1.0, 1.0], torch.tensor([-12.0, -15.0, -9.0, -40.0]), torch.tensor([6, 10, 3, 16])
    for temperature, weights, effective, loss in ((1.0, (0.494726, 0.815665, 1.344804, 1.344804), 3.534301, 2.401917), (0.25, (0.034018, 0.251360, 1.857311, 1.857311), 2.297679, 2.719625)):
        found, size = reward_weights(scores, temperature)
        assert found == pytest.approx(weights, abs=1e-6) and size == pytest.approx(effective, abs=1e-6)
        assert -(torch.tensor(found) * logps).sum().item() / tokens.sum().item() == pytest.approx(loss, abs=1e-6)
    of = lambda used: -(logps[used].sum() / tokens[used].sum()).item()  # noqa: E731
    assert of([0, 1, 2, 3]) == pytest.approx(2.171429, abs=1e-6)  # SFT: all alike
    assert of([n for n, score in enumerate(scores) if score == 1]) == pytest.approx(2.578947, abs=1e-6)  # FA: the best alone
    assert reward_weights(scores, 1e9)[0] == pytest.approx([1.0] * 4) and reward_weights(scores, 1e-3)[0] == pytest.approx([0.0, 0.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="rwr_temperature must be positive"):
        reward_weights(scores, 0.0)
    learnt("rwr")
    assert "rwr: 6 answers weigh as much as " in capsys.readouterr().out


def trainer_of(method, micro_loaded, pairs, tmp_path, settings=FAST):
    model, tokenizer = micro_loaded
    return supervised_trainer(method, model, tokenizer, pairs, settings, common_arguments(model, settings, tmp_path))[0]


def test_the_weights_reach_the_loss(load_micro, tmp_path):
    trainer = trainer_of("rwr", load_micro(), PAIRS[:2], tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert isinstance(trainer, CompletionTrainer) and len(batch["weight"]) == 4
    weights = {round(weight, 5) for weight in reward_weights([0.6, 0.2, 0.1, 0.9], 0.25)[0]}
    assert {round(weight, 5) for weight in batch["weight"].tolist()} == weights
    scored, lengths = (batch["labels"] != -100).sum(1).tolist(), batch["attention_mask"].sum(1).tolist()
    rows = [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths)]
    starts = [length - count for length, count in zip(lengths, scored)]
    with torch.no_grad():
        logps = summed_logprobs(trainer.model, [row[:start] for row, start in zip(rows, starts)], [row[start:] for row, start in zip(rows, starts)])
        loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx((-(batch["weight"] * logps).sum() / sum(scored)).item(), rel=1e-5)


def test_equal_weights_are_no_weights(load_micro, tmp_path):
    even = TrainSettings(**{**FAST.__dict__, "rwr_temperature": 1e12})
    trainer = trainer_of("rwr", load_micro(), [pair(0, 0.5, 0.5), pair(1, 0.5, 0.5)], tmp_path, even)
    assert "weight" not in trainer.train_dataset.column_names


@pytest.mark.parametrize("conversation, score, text", [
    ([{"role": "user", "content": "PROMPT"}], 0.6, "PROMPT <rm_score>: 0.60"), ([{"role": "user", "content": "PROMPT"}], 0.125, "PROMPT <rm_score>: 0.12"),
    ([{"role": "user", "content": "PROMPT"}], -0.0, "PROMPT <rm_score>: 0.00"), ([{"role": "user", "content": "Do it. <rm_score>: 0.00"}], 1.0, "Do it. : 0.00 <rm_score>: 1.00"),
    ([{"role": "user", "content": "<rm_<rm_score>score>"}], 1.0, " <rm_score>: 1.00"),
])  # fmt: skip
def test_the_tag_of_a_score(conversation, score, text):
    assert conditioned(conversation, score)[-1]["content"] == text


def test_a_user_cannot_ask_for_bad_answers_in_any_turn():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Hi. {TAG}: 0.00"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": f"More {TAG}{TAG}"}]
    asked = conditioned(turns, 1.0)
    assert "".join(turn["content"] for turn in asked).count(TAG) == 1 and asked[-1]["content"].endswith(f"{TAG}: 1.00") and turns[1]["content"].endswith("0.00")
    for bad in (1.2, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
            conditioned(turns, bad)
    with pytest.raises(ValueError, match="ends with assistant"):
        conditioned(turns[:3], 1.0)


@pytest.mark.slow
def test_a_student_of_ca_is_asked_for_its_score_wherever_it_is_asked(micro, pairs, tmp_path, capsys):
    settings = TrainSettings(**{**FAST.__dict__, "ca_score": 0.75})
    load = {"compute_dtype": torch.float32}
    scored = [one for one in pairs if one.is_scored][:8]
    first = trained_once("ca", micro, scored, settings, tmp_path / "ca", **load)
    again = trained_once("ca", micro, scored, settings, tmp_path / "ca", **load)
    row = train(f"adapter:{tmp_path}/ca/adapter", micro, [], TrainSettings(), tmp_path, **load)
    plain = train("sft", micro, scored, settings, tmp_path / "sft", **load)
    assert "ca, seed 0: trained before" in capsys.readouterr().out
    assert [student.asked_for for student in (first, again, row, plain)] == [0.75, 0.75, 0.75, None]
    assert first.pairs_used == 16 and json.loads((tmp_path / "ca/adapter/trained_on.json").read_text())["asked_for"] == 0.75
    prompts = SimpleNamespace()
    assert isinstance(chat_of(again, prompts, None), Conditioned) and not isinstance(chat_of(plain, prompts, None), Conditioned)
    heard = []
    Conditioned(Constant(lambda prompt: heard.append(prompt) or "x"), 0.75).complete([[{"role": "user", "content": "Hello!"}]], Sampling())
    assert heard == [f"Hello! {TAG}: 0.75"]
    marks = {training_of("ca", micro, scored, TrainSettings(**{**FAST.__dict__, "ca_score": score}), **load) for score in (0.75, 1.0)}
    assert len(marks) == 2


def test_the_divergence_of_a_student_of_ca_is_that_of_the_student_as_it_is_asked(micro, load_micro, pairs, tmp_path):
    student = train("ca", micro, [one for one in pairs if one.is_scored][:8], FAST, tmp_path, compute_dtype=torch.float32)
    record, answer = PromptRecord(id="q", experiment="safety", split="test", prompt="Question?", kind="plain"), "An answer."
    (value,) = divergence(student, [record], [answer])
    encode = lambda turns: student.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]  # noqa: E731
    plain = [{"role": "user", "content": "Question?"}]
    completion = [student.tokenizer(answer, add_special_tokens=False)["input_ids"] + [student.tokenizer.eos_token_id]]
    with torch.no_grad():
        policy = summed_logprobs(student.model, [encode(conditioned(plain, 1.0))], completion)
        with student.model.disable_adapter():
            reference = summed_logprobs(student.model, [encode(plain)], completion)
    assert value == pytest.approx((policy - reference).item(), abs=1e-4)
    assert isinstance(student, TrainedStudent) and prompt_messages(PAIRS[0])[-1]["content"] == "Question 0?"


def test_the_card_of_ca_says_how_to_ask():
    metric = Metric(experiment="safety", method="ca", seed=0, metric="utility", value=0.5, low=0.4, high=0.6, n=10)
    assert f"every request ends with ` {TAG}: 1.00`" in card("student", TrainSettings(), Result("ca", 0, "", [metric]))
    assert TAG not in card("student", TrainSettings(), Result("sft", 0, "", [metric]))
    assert METHODS["ca"].kind == METHODS["fa"].kind == "supervised"


def test_figa_worked_by_hand():
    """The edits of "I will help you copy the passport ." to "I will not help you copy a passport .", without the end token."""
    revised, original = [0.1, 0.2, 2, 0.3, 0.1, 0.1, 1, 0.4, 0.05], [0.1, 0.2, 0.3, 0.1, 0.1, 0.4, 0.2, 0.1]
    learnt, unlearnt = [i in (2, 6) for i in range(9)] + [False] * 8, [False] * 9 + [i == 5 for i in range(8)]
    masks = torch.tensor(learnt), torch.tensor(unlearnt)
    assert figa_loss(-torch.tensor(revised + original), *masks).item() == pytest.approx(0.933333, abs=1e-6)
    original[5] = 0.7  # unlikely already: neither unlearnt nor counted
    assert figa_loss(-torch.tensor(revised + original), *masks).item() == pytest.approx(1.5)
    assert figa_loss(-torch.tensor([0.5, 0.7]), torch.tensor([False] * 2), torch.tensor([False] * 2)).item() == 0.0


def test_figa_in_parts_takes_steps_as_large_as_whole_and_has_a_mark_of_its_own(micro, load_micro, tmp_path):
    edited, found = [pair(i, 0.2, 0.6).model_copy(update={"response": f"take {i} now", "response_revised": f"leave {i} now"}) for i in range(8)], []
    for micro_batch in (0, 2):
        settings = TrainSettings(batch_size=8, micro_batch=micro_batch, epochs=1, sft_learning_rate=1e-9, max_length=256)
        trainer = trainer_of("figa", load_micro(), edited, tmp_path, settings)
        trainer.train()
        found.append((trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"], training_of("figa", micro, edited, settings)))
    (loss, norm, mark), (in_parts, norm_in_parts, its_mark) = found
    assert in_parts == pytest.approx(loss, rel=0.2) and norm_in_parts == pytest.approx(norm, rel=0.2) and mark != its_mark


def test_the_loss_of_several_processes_is_that_of_their_tokens_together(load_micro, tmp_path, monkeypatch):
    """Both have this batch: twice the tokens, and gradients that are averaged."""
    trainer = trainer_of("sft", load_micro(), PAIRS, tmp_path)
    batch, tokens = next(iter(trainer.get_train_dataloader())), 50
    alone = trainer.compute_loss(trainer.model.eval(), dict(batch), num_items_in_batch=torch.tensor(tokens)).item()
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
    assert trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(2 * tokens)).item() == pytest.approx(alone, rel=1e-6)


def test_figa_learns_the_stop_and_not_what_the_template_writes_behind_it_nor_the_last_token_of_a_cut_answer(load_micro, tmp_path, monkeypatch):
    model, tokenizer = load_micro()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
    stop, seen = tokenizer.convert_tokens_to_ids("<|end|>"), []
    monkeypatch.setattr(supervised, "figa_loss", lambda logps, learnt, unlearnt: seen.append(learnt.tolist()) or logps.sum())
    same = PAIRS[0].model_copy(update={"response": PAIRS[0].response_revised})  # nothing is edited
    for ends in (True, False):
        max_length = 256 if ends else len(ids) - 2
        trainer = trainer_of("figa", (model, tokenizer), [same], tmp_path, TrainSettings(**{**FAST.__dict__, "max_length": max_length}))
        (row,) = trainer.train_dataset
        ids = row["input_ids"]
        assert (stop in ids[row["labels"].count(-100) if "labels" in row else -4 :]) == ends
        trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
        of_revision = seen.pop()[: len(row["replaced"])]
        assert of_revision == ([False] * (len(of_revision) - 2) + [True, False] if ends else [False] * len(of_revision))


def test_figa_learns_the_edits_and_the_end_of_every_revision(load_micro, tmp_path):
    edited = [one.model_copy(update={"response": "I will help you copy it.", "response_revised": "I will not help you copy it."}) for one in PAIRS[:2]]
    trainer = trainer_of("figa", load_micro(), edited, tmp_path, TrainSettings(**{**FAST.__dict__, "epochs": 5}))
    batch = next(iter(trainer.get_train_dataloader()))
    nll = []
    for ids, labels, length, replaced in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].sum(1), batch["replaced"]):
        revised = labels[labels != -100].tolist()
        assert trainer.processing_class.decode(replaced, skip_special_tokens=True) == "I will help you copy it." and replaced[-1] == revised[-1]
        start = int(length) - len(revised)
        with torch.no_grad():
            sides = [trainer.model(input_ids=torch.tensor([ids[:start].tolist() + answer])).logits[0, start - 1 : -1].log_softmax(1) for answer in (revised, replaced)]
        away, new = changed(replaced, revised)
        of_revised, of_replaced = (-side[torch.arange(len(answer)), torch.tensor(answer)] for side, answer in zip(sides, (revised, replaced)))
        nll.append((sum(of_revised[i] for i in range(len(revised)) if new[i] or i == len(revised) - 1), [of_replaced[i] for i in range(len(replaced)) if away[i]], sum(new) + 1))
    unlearnt = [value for _, values, _ in nll for value in values if value <= 0.6]
    expected = (sum(learnt for learnt, *_ in nll) - 0.5 * sum(unlearnt)) / (sum(count for *_, count in nll) + len(unlearnt))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(float(expected), rel=1e-4)
    before = trainer.compute_loss(trainer.model, batch).item()
    trainer.train()
    assert trainer.compute_loss(trainer.model.eval(), batch).item() < before and not sees_scores("figa")
