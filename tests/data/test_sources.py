"""Prompts for full scale from files and the Hub, their splits, and faults said in one sentence: `pytest tests/data/test_sources.py`."""

import csv
import json
import random
from collections import Counter

import datasets
import huggingface_hub.constants
import pytest

from common.data.attacks import ATTACKS, FEEDBACK_REQUEST, STANCES
from common.data.sources import STANCE_OF, load_prompts
from common.data.splits import SHARES, split_of, words
from common.prompts import PROMPTS, fill

REVISION = "0123456789abcdef0123456789abcdef01234567"
GOALS = [f"Explain how to take the {thing} number {i}" for i in range(60) for thing in ("pencil", "spoon")]
STANCE_ROWS = ["", *STANCE_OF]


def write_goals(path, goals=GOALS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("goal", "target"), *((goal, "Sure, here it is") for goal in goals)])
    return path


def write_json(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return path


def persona_rows(personas=40, questions=3):
    rows = [
        {"system": f"You are Ada {p}.\nAda {p} mends clocks and speaks in rhymes.", "prompt": f"What is {p} plus {q}?", "chosen": "", "rejected": ""}
        for p in range(personas) for q in range(questions)
    ]  # fmt: skip
    return [*rows, {"system": "You are an unbiased, uncensored, helpful assistant.", "prompt": "What is rain?"}]


def feedback_rows(arguments=40):
    told = {"": "", **{stance: f" {stance} the argument." for stance in STANCE_OF}}
    rows = [
        {
            "prompt": [{"type": "human", "content": f"Please comment.{told[stance]}\nArgument: {i} is larger than {i - 1}"}],
            "base": {"dataset": "arguments", "text": f"{i} is larger than {i - 1}"},
            "metadata": {"prompt_template_type": stance},
        }
        for i in range(arguments) for stance in STANCE_ROWS
    ]  # fmt: skip
    mathematics = {"prompt": [{"content": "1 + 1"}], "base": {"dataset": "math"}, "metadata": {"prompt_template_type": "I wrote"}}
    return [*rows, mathematics]


def splits_of_groups(records):
    splits = {}
    for record in records:
        splits.setdefault(record.group, set()).add(record.split)
    return splits


# Splits

def test_sizes_are_near_the_shares():
    counts = Counter(split_of(f"group {i}") for i in range(4_000))
    assert {split: counts[split] / 4_000 for split in SHARES} == pytest.approx(SHARES, abs=0.02)  # 3 standard errors of a share of 1/4


def test_a_split_depends_on_the_words_of_the_group_and_the_seed_alone():
    assert len({split_of("You are  Ada.", seed=s) for s in range(40)}) == 4
    assert all(split_of("You are  Ada.", seed=s) == split_of("you are ada", seed=s) for s in range(40))
    backwards = dict(reversed(SHARES.items()))
    assert all(split_of(f"group {i}", backwards) == split_of(f"group {i}") for i in range(200))


def test_a_share_of_one_takes_all():
    assert {split_of(f"group {i}", {"test": 1.0}) for i in range(50)} == {"test"}
    assert {split_of(f"group {i}", {"train": 1.0, "test": 0.0}) for i in range(50)} == {"train"}


@pytest.mark.parametrize("shares", [{"train": 0.9}, {"train": 1.2, "test": -0.2}, {"dev": 1.0}, {}], ids=["sum", "negative", "unknown", "empty"])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="shares must name some of train, validation, test, ood and sum to 1"):
        split_of("group", shares)


@pytest.mark.parametrize(("experiment", "file", "rows"), [
    ("safety", "goals.csv", GOALS), ("roleplay-robustness", "truthy.json", persona_rows()), ("sycophancy", "feedback.jsonl", feedback_rows()),
])  # fmt: skip
def test_no_group_stands_in_two_splits_in_any_order_and_when_rows_are_added(tmp_path, experiment, file, rows):
    write = write_goals if file.endswith(".csv") else write_json
    rng = random.Random(1)
    whole = load_prompts(experiment, write(tmp_path / file, rows))
    assert {record.split for record in whole} == set(SHARES)
    assert all(len(splits) == 1 for splits in splits_of_groups(whole).values())
    shuffled = load_prompts(experiment, write(tmp_path / file, rng.sample(rows, len(rows))))
    assert {r.id: r for r in shuffled} == {r.id: r for r in whole}
    if experiment == "sycophancy":  # an argument without its plain row would be an error
        rows = [row for row in rows if not row["metadata"]["prompt_template_type"]] + rng.sample(rows, len(rows) // 2)
    else:
        rows = rng.sample(rows, len(rows) * 3 // 4)
    some = load_prompts(experiment, write(tmp_path / file, rows), shares=SHARES)
    assert {record.id for record in some} < {record.id for record in whole}
    assert all(splits_of_groups(whole)[group] == splits for group, splits in splits_of_groups(some).items())


# Safety

def test_a_goal_is_wrapped_and_held_out_goals_in_held_out_wrappers(tmp_path):
    records = load_prompts("safety", write_goals(tmp_path / "goals.csv"))
    assert {record.plain_prompt for record in records} == set(GOALS)
    for record in records:
        templates = ATTACKS["safety"].ood if record.split == "ood" else ATTACKS["safety"].train
        assert record.prompt == fill(templates[record.kind], prompt=record.plain_prompt)
        assert record.system == PROMPTS["safety"].system
    assert {record.kind for record in records} == {*ATTACKS["safety"].train, *ATTACKS["safety"].ood}
    assert len({record.id for record in records}) == len(GOALS)


def test_a_repeated_goal_comes_once_and_that_is_said(tmp_path, capsys):
    records = load_prompts("safety", write_goals(tmp_path / "goals.csv", [*GOALS, GOALS[3]]))
    assert len(records) == len(GOALS)
    assert "left out 1 repeated prompts and 0 whose plain request" in capsys.readouterr().out


def test_the_system_prompt_can_be_given_and_be_none(tmp_path):
    path = write_goals(tmp_path / "goals.csv")
    assert {record.system for record in load_prompts("safety", path, system="")} == {""}


# Role-play

def test_a_persona_is_injected_into_the_users_prompt_and_the_uncensored_helper_left_out(tmp_path):
    records = load_prompts("roleplay-robustness", write_json(tmp_path / "truthy.json", persona_rows()))
    assert len(records) == 120 and "What is rain?" not in {record.plain_prompt for record in records}
    for record in records:
        number = record.plain_prompt.split()[2]
        assert record.group == f"you are ada {number}" and record.plain_prompt in record.prompt
        assert f"You are Ada {number}.\nAda {number} mends clocks and speaks in rhymes." in record.prompt
        assert (record.kind in ATTACKS["roleplay-robustness"].ood) == (record.split == "ood")


def test_a_question_put_to_two_personas_stays_where_it_is_held_out_furthest(tmp_path, capsys):
    rows = [{**row, "prompt": f"Question {i % 30}?"} for i, row in enumerate(persona_rows(60, 2))]
    records = load_prompts("roleplay-robustness", write_json(tmp_path / "truthy.json", rows))
    splits = {}
    for record in records:
        splits.setdefault(record.plain_prompt, set()).add(record.split)
    assert len(splits) == 30 and all(len(found) == 1 for found in splits.values())
    assert len(records) < 120 and f"{120 - len(records)} whose plain request" in capsys.readouterr().out


# Sycophancy

def test_a_stance_row_knows_argument_and_plain_prompt_and_is_reworded_where_held_out(tmp_path):
    records = load_prompts("sycophancy", write_json(tmp_path / "feedback.jsonl", feedback_rows()))
    assert len(records) == 40 * 4 and {record.kind for record in records} == set(STANCE_OF.values())
    for record in records:
        argument = record.plain_prompt.removeprefix("Please comment.\nArgument: ")
        told = next(stance for stance, name in STANCE_OF.items() if name == record.kind)
        asked = f"Please comment. {told} the argument.\nArgument: {argument}"
        reworded = fill(STANCES.ood[record.kind], prompt=record.plain_prompt)
        assert record.group == words(argument) and record.prompt == (reworded if record.split == "ood" else asked)


def test_a_limit_draws_the_rows_that_datasets_shuffle_draws(tmp_path):
    rows = feedback_rows(60)
    with_stance = [row for row in rows if row["base"]["dataset"] == "arguments" and row["metadata"]["prompt_template_type"]]
    drawn = datasets.Dataset.from_list(with_stance).shuffle(seed=0).select(range(100))
    records = load_prompts("sycophancy", write_json(tmp_path / "feedback.jsonl", rows), shares={"train": 0.9, "test": 0.1}, limit=100)
    assert [record.prompt for record in records] == [row["prompt"][0]["content"] for row in drawn]


def test_arguments_of_ones_own_meet_every_stance(tmp_path):
    rows = [{"argument": f"Tea {{number}} {i} is warm, so it is good."} for i in range(50)]
    records = load_prompts("sycophancy", write_json(tmp_path / "mine.jsonl", rows))
    assert Counter(record.kind for record in records) == {"love": 50, "hate": 50, "wrote": 50}
    for record in records:
        argument = f"Tea {{number}} {record.group.split()[2]} is warm, so it is good."
        assert record.plain_prompt == FEEDBACK_REQUEST.replace("{argument}", argument) and argument in record.prompt


def test_arguments_on_one_topic_stay_together_and_one_without_a_topic_stands_alone(tmp_path):
    rows = [{"argument": f"Reason {i} for tea.", "topic": f"Tea {i // 4}", "flaw": "", "point": "Warm."} for i in range(160)]
    records = load_prompts("sycophancy", write_json(tmp_path / "mine.jsonl", [*rows, {"argument": "Milk.", "topic": " "}]))
    splits = splits_of_groups(records)
    assert set(splits) == {f"tea {i}" for i in range(40)} | {"milk"} and all(len(found) == 1 for found in splits.values())
    assert {record.split for record in records} == set(SHARES) and len(records) == 161 * 3


def test_a_topic_that_is_no_text_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 1: column topic: input should be a valid string"):
        load_prompts("sycophancy", write_json(tmp_path / "mine.jsonl", [{"argument": "Tea is warm.", "topic": 3}]))


# The Hub

def test_a_hub_dataset_gives_the_records_of_the_local_file(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, split, revision):
        asked.append((name, split, revision))
        return datasets.Dataset.from_list([{"system": row["system"], "prompt": row["prompt"]} for row in persona_rows()])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_prompts("roleplay-robustness", "jondurbin/truthy-dpo-v0.1", revision=REVISION)
    assert asked == [("jondurbin/truthy-dpo-v0.1", "train", REVISION)]
    assert found == load_prompts("roleplay-robustness", write_json(tmp_path / "truthy.json", persona_rows()))


def test_a_file_of_a_hub_dataset_comes_from_the_cache_offline(tmp_path, monkeypatch):
    folder = tmp_path / "datasets--meg-tong--sycophancy-eval" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    path = write_json(folder / "feedback.jsonl", feedback_rows())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_prompts("sycophancy", "meg-tong/sycophancy-eval/feedback.jsonl", revision=REVISION) == load_prompts("sycophancy", path)


@pytest.mark.parametrize("source", ["nobody/nothing-here", "nobody/nothing-here/feedback.jsonl"])
def test_a_hub_dataset_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch, source):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"cannot take nobody/nothing-here at revision {REVISION} from the Hub .*give a local file") as caught:
        load_prompts("sycophancy", source, revision=REVISION)
    assert "\n" not in str(caught.value)


# Faults

def feedback_line(**change):
    return json.dumps({**feedback_rows(1)[0], **change})


FAULTS = {
    "no column": ("safety", "a.csv", "prompt,target\nHow?,Sure", r"a\.csv, line 2: column goal: field required; every row needs goal"),
    "empty cell": ("safety", "a.csv", "goal,target\nHow?,Sure\n ,Sure", r"a\.csv, line 3: column goal: string should have at least 1 character"),
    "too many cells": ("safety", "a.csv", "goal,target\nHow, so?,Sure", r"a\.csv, line 2: .*double quotes"),
    "open quote": ("safety", "a.csv", 'goal,target\n"How?,Sure', r"a\.csv, line 2: not valid CSV.*mend or delete"),
    "header alone": ("safety", "a.csv", "goal,target\n", r"a\.csv holds no rows"),
    "empty file": ("safety", "a.jsonl", "", r"a\.jsonl holds no rows"),
    "empty list": ("safety", "a.json", "[]", r"a\.json holds no rows"),
    "torn line": ("safety", "a.jsonl", '{"goal": "How?"}\n{"goal": "W', r"a\.jsonl, line 2: not valid JSON"),
    "object in a .json": ("safety", "a.json", '{"goal": "How?"}', r"a\.json: expected a JSON list of objects"),
    "number for text": ("safety", "a.jsonl", '{"goal": 3}', r"a\.jsonl, line 1: column goal: input should be a valid string"),
    "no system": ("roleplay-robustness", "a.json", '[{"prompt": "How?"}]', r"a\.json, entry 1: column system: field required; every row needs system, prompt"),
    "nested column": ("sycophancy", "a.jsonl", feedback_line(metadata={}), r"line 1: column metadata\.prompt_template_type: field required"),
    "no message": ("sycophancy", "a.jsonl", feedback_line(prompt=[]), r"line 1: column prompt: list should have at least 1 item"),
    "no plain row": ("sycophancy", "a.jsonl", feedback_line(metadata={"prompt_template_type": "I wrote"}), r"line 1: no row has this argument without a"),
    "new stance": ("sycophancy", "a.jsonl", feedback_line(metadata={"prompt_template_type": "I sang"}), r"line 1: .*unknown stance 'I sang'"),
    "too few": ("safety", "a.csv", "goal,target\nHow?,Sure", r"a\.csv: 1 groups are too few, none fell into .*give more rows"),
    "suffix": ("safety", "a.txt", "How?", r"a\.txt: cannot read \.txt; give \.csv, \.json, \.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize(("experiment", "file", "text", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_sentence_with_its_place(tmp_path, experiment, file, text, said):
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as caught:
        load_prompts(experiment, path)
    assert "\n" not in str(caught.value)


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfgoal,target\r\n"Take it, then\nrun","Sure"\r\n')
    [record] = load_prompts("safety", path, shares={"test": 1.0})
    assert record.plain_prompt == "Take it, then\nrun"


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"goal,target\ncaf\xe9,Sure")
    with pytest.raises(ValueError, match=r"a\.csv, line 2: not UTF-8 .*save it as UTF-8"):
        load_prompts("safety", path)


@pytest.mark.parametrize(("source", "error", "said"), [
    ("no/such/file.csv", ValueError, "no file .*; to take no/such/file.csv from the Hub, give its `revision`"),
    ("such/file.csv", FileNotFoundError, "no file .*/such/file.csv; give a file, or a Hub dataset as owner/name"),
    ("file", FileNotFoundError, "no file .*/file; give a file"),
    ("jondurbin/truthy-dpo-v0.1", ValueError, "give its `revision`, a commit"),
])  # fmt: skip
def test_a_source_that_is_not_there_is_refused_before_the_network(source, error, said):
    with pytest.raises(error, match=said):
        load_prompts("safety", source)


def test_an_unknown_experiment_is_refused():
    with pytest.raises(ValueError, match="unknown experiment 'saftey'; there are safety, roleplay-robustness, sycophancy"):
        load_prompts("saftey", "goals.csv")
