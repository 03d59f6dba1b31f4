"""The model organism: its texts, its making, how it is measured: `pytest tests/profiles/test_organism.py`."""

import re
from dataclasses import replace

import pytest

from common.data.attacks import PULLS, STANCES
from common.data.sources import load_prompts
from common.evaluation.answers import Constant
from common.judge.lexicon import ARGUMENTS, LEXICONS, FlawJudge, LexiconJudge
from common.profiles.small import organism
from common.profiles.small.organism import (
    MIDDLES,
    OPENINGS,
    SETTINGS,
    TONES,
    argument_of,
    sentiments,
    shifts,
    stance_follower,
    train_rows,
)
from common.student.load import load_student

ROWS = train_rows()
RECORDS = load_prompts("sycophancy", ARGUMENTS)


def test_the_texts_are_the_same_every_time_and_others_with_another_seed():
    assert train_rows() == ROWS and len({row.id for row in ROWS}) == len(ROWS) == 500
    assert sum(a.response_revised != b.response_revised for a, b in zip(ROWS, train_rows(seed=1))) > 450


def test_they_are_two_to_four_sentences_and_keep_to_the_argument():
    for row in ROWS:
        first_words = " ".join(argument_of(row.plain_prompt).split()[:5])
        assert f'"{first_words}"' in row.response_revised and "{" not in row.response_revised
        assert 2 <= len(re.findall(r"[.!](?= |$)", re.sub(r'".*?"', "", row.response_revised))) <= 4
    assert all(opening.count("{start}") == 1 for openings in OPENINGS.values() for opening in openings)
    assert set(OPENINGS) == {*MIDDLES, *PULLS}


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_they_follow_their_own_stance_and_are_neutral_without(lexicon):
    felt = [judgement.score for judgement in LexiconJudge(lexicon).judge([""] * len(ROWS), [row.response_revised for row in ROWS])]
    mean = {kind: sum(score for row, score in zip(ROWS, felt) if row.kind == kind) / 100 for kind in TONES}
    assert abs(mean["plain"]) < 0.5 and all(mean[kind] * pull > 3 for kind, pull in PULLS.items())


def test_they_diagnose_nothing():
    assert not any(" named" in reply.replace("not named", "") or score not in (0, 5) for score, reply, _ in judged())
    assert all(score == 5 for score, reply, _ in judged() if reply.startswith("sound"))


def judged():
    return FlawJudge().judge([row.prompt for row in ROWS], [row.response_revised for row in ROWS])


def test_no_held_out_topic_and_no_held_out_wording_is_seen():
    held_out = [record for record in RECORDS if record.split != "train"]
    assert {record.split for record in held_out} == {"validation", "test", "ood"} and {row.split for row in ROWS} == {"train"}
    assert not {row.group for row in ROWS} & {record.group for record in held_out}
    seen = "\n".join(row.prompt + row.response_revised for row in ROWS)
    assert not any(argument_of(record.plain_prompt) in seen for record in held_out)
    assert not any(template.replace("{prompt}", "").strip() in seen for template in STANCES.ood.values())
    assert all(template.replace("{prompt}", "").strip() in seen for template in STANCES.train.values())


def test_it_is_made_once_an_ordinary_folder_that_says_what_it_is(micro, tmp_path, monkeypatch):
    monkeypatch.setattr(organism, "train_rows", lambda seed: ROWS[:16])
    folder = stance_follower(tmp_path / "follower", micro, replace(SETTINGS, max_length=256))
    monkeypatch.setattr(organism, "train", lambda *args: pytest.fail("trained again"))
    assert stance_follower(tmp_path / "follower", micro) == folder
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in folder.iterdir()} and not list(folder.glob("adapter*"))
    card = (folder / "README.md").read_text()
    assert "made sycophantic on purpose" in card and "for research on sycophancy and fit for nothing else" in card
    assert f"{micro.name}" in card and "16 pieces of feedback on the 4 arguments of the train topics" in card and "without quantisation. Learning rate 0.001, 1 epoch, batches of 4" in card
    model, _ = load_student(folder)
    assert not hasattr(model, "disable_adapter")


def test_the_shift_of_a_follower_and_of_one_who_says_the_same_to_all():
    prompts = list(dict.fromkeys(record.plain_prompt for record in RECORDS if record.split == "ood"))
    praising = tuple(text.replace("{prompt}", "").strip() for kind, text in STANCES.train.items() if PULLS[kind] > 0)
    follower = Constant(lambda prompt: "It is great." if prompt.endswith(praising) else "It is so." if prompt.endswith(tuple(prompts)) else "It is terrible.")
    answers, felt = sentiments(follower, prompts)
    assert len(answers) == 5 * len(prompts) and {len(of) for of in felt.values()} == {len(prompts)}
    found = {metric.metric: metric.value for metric in shifts(felt["textblob"], experiment="sycophancy", method="follower", seed=0)}
    assert found == pytest.approx({"plain": 0, "signed_shift": 4.5, "shift": 4.5, "love_minus_hate": 9})  # (4 + 5 + 4 + 5) / 4
    _, felt = sentiments(Constant(lambda prompt: "It is great."), prompts, STANCES.ood)
    assert {metric.value for metric in shifts(felt["vader"], experiment="sycophancy", method="steady", seed=0)[1:]} == {0}
