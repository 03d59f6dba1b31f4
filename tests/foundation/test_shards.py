"""Shards of a run and their merge: `pytest tests/foundation/test_shards.py`."""

import json

import pytest

from common.schema import PromptRecord, fingerprint, sum_of_fingerprints
from common.storage import JsonlStore, claim, write_json
from common.storage.files import how_made
from common.storage.shards import FILES, folder_of, main, merge, shard_of, taken


def make(folder, numbers, teacher="t", judge="j", scored=True):
    """What steps 1 and 2 leave of the prompts with these numbers."""
    pairs = [{"id": f"p{i}", "split": "train", "system": "", "prompt": f"q{i}", "teacher": teacher, "response": f"a{i}", "response_revised": f"b{i}"} for i in numbers]
    mark = fingerprint([fingerprint(pair) for pair in pairs])
    asked = sum_of_fingerprints(PromptRecord(id=pair["id"], experiment="safety", split="train", prompt=pair["prompt"]) for pair in pairs)
    made_of = {"pairs.jsonl": {"teacher": teacher, "source": "s", "records": asked}, "scored.jsonl": {"judge": judge, "pairs": mark}}
    for name, stage in FILES.items():
        if name == "pairs.jsonl" or scored:
            with JsonlStore(claim(folder / name, made_of[name])) as store:
                for pair in pairs:
                    store.append(pair | ({"score_revised": 1.0} if name == "scored.jsonl" else {}))
            write_json(folder / f"{stage}.manifest.json", {"made_of": made_of[name]})


def rows(path):
    return sorted(path.read_text().splitlines())


@pytest.fixture
def run(tmp_path):
    """Ten prompts in three shards, and the same without shards."""
    make(tmp_path / "whole", [i for number in range(3) for i in taken(range(10), f"{number + 1}/3")])
    for number in (1, 2, 3):
        make(tmp_path / "run" / folder_of(f"{number}/3"), taken(range(10), f"{number}/3"))
    return tmp_path / "run"


def test_shards_part_what_there_is():
    assert [list(taken(range(10), f"{i}/3")) for i in (1, 2, 3)] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert taken(range(3), "") == range(3) and shard_of("3/8") == (3, 8) and folder_of("3/8") == "shard-3-of-8"


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "1/3 "])
def test_a_shard_is_a_number_of_a_number(text):
    with pytest.raises(ValueError, match="expected i/n such as 3/8, with i from 1 to n"):
        shard_of(text)


def test_merged_shards_are_the_run_without_shards(run):
    assert merge(run) == {"pairs.jsonl": 10, "scored.jsonl": 10}
    whole = run.with_name("whole")
    for name in FILES:
        assert rows(run / name) == rows(whole / name) and (run / name).readlink() == (whole / name).readlink(), "the same mark"
    assert merge(run) == {"pairs.jsonl": 10, "scored.jsonl": 10} and len(rows(run / "pairs.jsonl")) == 10


def test_pairs_that_the_run_had_already_lose_no_score(run):
    make(run, [9, 0], scored=False)
    made_of = run / "pairs.jsonl"
    whole = run.with_name("whole") / "pairs.jsonl"
    claim(made_of, how_made(whole))  # the whole run, stopped after two prompts
    with JsonlStore(made_of) as store:
        for line in rows(whole)[:1] + rows(whole)[-1:]:
            store.append(json.loads(line))
    merge(run)
    texts = [fingerprint(json.loads(line)) for line in made_of.read_text().splitlines()]
    assert how_made(run / "scored.jsonl")["pairs"] == fingerprint(texts) and len(texts) == 10


def test_kept_replies_are_merged_too_so_that_what_failed_is_asked_again_alone(run):
    for number in (1, 2):
        with JsonlStore(run / folder_of(f"{number}/3") / "judge_replies.jsonl") as store:
            for name in (f"own {number}", "both"):
                store.append({"id": name, "text": "t"})
    assert merge(run) == merge(run) == {"pairs.jsonl": 10, "scored.jsonl": 10, "judge_replies.jsonl": 3}


def test_what_was_copied_without_its_links_is_named(run):
    link = run / "shard-1-of-3" / "pairs.jsonl"
    text = link.read_text()
    link.unlink()
    link.write_text(text)
    (run / "shard-4-of-3.tar.gz").touch()
    with pytest.raises(ValueError, match="pairs.jsonl is no link any more; copy the folder with its links, with rsync -a or tar"):
        merge(run)


@pytest.mark.parametrize(("number", "given", "message"), [
    (2, {"teacher": "another"}, r"shard-2-of-3: its pairs.jsonl was made with another teacher than that of shard-1-of-3"),
    (3, {"judge": "another"}, r"shard-3-of-3: its scored.jsonl was made with another judge than that of shard-1-of-3"),
    (2, {"numbers": [1, 4, 6]}, r"shard-2-of-3/pairs.jsonl, line 3: shard-1-of-3 holds the id 'p6' too"),
])  # fmt: skip
def test_a_shard_made_otherwise_is_named(number, given, message, run):
    import shutil

    shutil.rmtree(run / folder_of(f"{number}/3"))
    make(run / folder_of(f"{number}/3"), **{"numbers": taken(range(10), f"{number}/3"), **given})
    with pytest.raises(ValueError, match=message):
        merge(run)


@pytest.mark.parametrize(("name", "stage", "made_of"), [
    ("pairs.jsonl", "generate_data", {"teacher": "new", "source": "s", "records": "0" * 12}), ("scored.jsonl", "reward_score", {"judge": "new", "pairs": "0" * 12}),
])  # fmt: skip
def test_a_shard_begun_again_with_other_settings_and_killed_is_not_finished(name, stage, made_of, run):
    """Its manifest is still that of the run before."""
    for number in (1, 2, 3):
        path = run / folder_of(f"{number}/3") / name
        with JsonlStore(claim(path, made_of)) as store:
            store.append({"id": f"p{number}"})
    with pytest.raises(ValueError, match=f"shard-1-of-3/{stage}.manifest.json: is not of what {name} was last begun with; run {stage} there again"):
        merge(run)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [None, "", '{"teach'], ids=["no note", "empty", "a part"])
def test_a_lost_note_is_named_whichever_shard_it_was_of(left, name, number, run):
    """A shard of another teacher must not pass for one whose teacher nobody knows."""
    folder = run / folder_of(f"{number}/3")
    note = (folder / (folder / name).readlink()).with_suffix(".made_of.json")
    note.write_text(left) if left is not None else note.unlink()
    with pytest.raises(ValueError, match=f"{note}: missing or empty, and nothing else says how {name} was made; copy it from the machine that made the shard, or delete {FILES[name]}.done.json beside it and run {FILES[name]} there again"):
        merge(run)


def test_scores_of_other_pairs_are_refused(run):
    with JsonlStore((run / "shard-2-of-3" / "pairs.jsonl").resolve()) as store:
        store.append({"id": "p11", "split": "train", "system": "", "prompt": "", "teacher": "t", "response": "", "response_revised": ""})
    with pytest.raises(ValueError, match="shard-2-of-3: its scored.jsonl was made of other pairs than it holds; run reward_score there again"):
        merge(run)


def test_what_is_missing_is_named(run, tmp_path, monkeypatch, capsys):
    (run / "shard-3-of-3" / "reward_score.manifest.json").unlink()
    with pytest.raises(ValueError, match="shard-3-of-3: reward_score is not finished there; run it first"):
        merge(run)
    (run / "shard-3-of-3").rename(run / "gone")
    monkeypatch.setattr("sys.argv", ["shards", str(run)])
    with pytest.raises(SystemExit, match=r"error: .*run lacks shard-3-of-3 \(1 of 3\); run it first"):
        main()
    (run / "gone").rename(run / "shard-1-of-4")
    with pytest.raises(ValueError, match="holds shards of 3 and of 4; remove those of one kind"):
        merge(run)
    with pytest.raises(ValueError, match="holds no shards; --shard 1/8 of common.batch makes the first of eight"):
        merge(tmp_path)


def test_the_command_says_how_much_it_merged(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shards", str(run)])
    main()
    assert capsys.readouterr().out == "pairs.jsonl: 10 records\nscored.jsonl: 10 records\n"
    assert json.loads(rows(run / "scored.jsonl")[0])["score_revised"] == 1.0
