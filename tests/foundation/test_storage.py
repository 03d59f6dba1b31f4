"""Append-only JSONL under torn tails, kills, second writers and changed settings: `pytest tests/foundation/test_storage.py`."""

import json
import os
import random
import resource
import subprocess
import sys
import threading
import time

import pytest

from common.schema import PromptRecord, ScoredPair
from common.storage import JsonlStore, claim, make_missing, read_records, whole_folder, write_json

RECORDS = [{"id": "a", "text": "first"}, {"id": "b", "text": "naïve – 日本 🙂"}, {"id": "c", "text": "line\nbreak \u2028 and \"quote\""}]
PAIR = {
    "id": "p1", "experiment": "safety", "split": "train", "prompt": "Hello?", "response": "No.", "response_revised": "Hello!",
    "score_response": 0.0, "score_revised": 1.0,
}  # fmt: skip


def filled(path, records=RECORDS, **how):
    with JsonlStore(path, **how) as store:
        for record in records:
            store.append(record)
    return path


def loaded(path):
    with JsonlStore(path) as store:
        return store.load()


def die():
    raise KeyboardInterrupt


def write_lines(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def test_what_is_appended_is_found_by_id_and_loaded_in_order(tmp_path):
    with JsonlStore(filled(tmp_path / "new" / "folder" / "a.jsonl")) as store:
        assert store.load() == RECORDS
        assert len(store) == 3 and "b" in store and "d" not in store


def test_records_of_the_schema_come_back_equal(tmp_path):
    pair = ScoredPair(**PAIR)
    with JsonlStore(tmp_path / "a.jsonl") as store:
        store.append(pair)
    assert read_records(tmp_path / "a.jsonl", ScoredPair) == [pair]


@pytest.mark.parametrize(
    "text",
    ["", "\0", "a\r\nb\u2028c\x85d", '"\\n"', "🙂", "\ud83d"],
    ids=["empty", "NUL", "line ends", "escapes", "emoji", "half an emoji"],
)
def test_any_text_comes_back_equal(tmp_path, text):
    assert loaded(filled(tmp_path / "a.jsonl", [{"id": "a", "text": text}])) == [{"id": "a", "text": text}]


def test_a_record_is_on_disk_before_the_next_one_is_begun(tmp_path):
    with JsonlStore(tmp_path / "a.jsonl") as store:
        for count, record in enumerate(RECORDS, start=1):
            store.append(record)
            assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == count


def test_a_record_is_read_back_by_its_id(tmp_path):
    with JsonlStore(filled(tmp_path / "a.jsonl")) as store:
        store.append({"id": "d", "text": "last"})
        assert [store[name] for name in "abcd"] == [*RECORDS, {"id": "d", "text": "last"}]
        with pytest.raises(KeyError):
            store["e"]


def test_a_closed_store_opens_again_and_sees_what_others_wrote_meanwhile(tmp_path):
    store = JsonlStore(filled(tmp_path / "a.jsonl", RECORDS[:1]))
    store.close()
    filled(tmp_path / "a.jsonl", RECORDS[1:2])
    with store:
        store.append(RECORDS[2])
        assert store["b"] == RECORDS[1] and store.load() == RECORDS
    with store, pytest.raises(ValueError, match="already holds"):
        store.append(RECORDS[2])


def test_duplicate_id_raises_and_writes_nothing(tmp_path):
    with JsonlStore(filled(tmp_path / "a.jsonl")) as store:
        with pytest.raises(ValueError, match="a.jsonl already holds a record with id 'b'"):
            store.append({"id": "b", "text": "other"})
        assert store.load() == RECORDS


def test_a_cut_anywhere_in_the_last_two_records_loses_only_what_was_cut(tmp_path):
    whole = filled(tmp_path / "whole.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole) + 1):  # every byte, those inside a UTF-8 character too
        path = write_lines(tmp_path / "cut.jsonl", whole[:cut])
        intact = RECORDS[: sum(end <= cut for end in ends)]
        with JsonlStore(path) as store:
            assert store.load() == intact, cut
            store.append({"id": "next"})
        assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == [record["id"] for record in intact] + ["next"], cut


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    with JsonlStore(write_lines(tmp_path / "a.jsonl", b'{"id": "a", ' + b"x" * 200_000)) as store:
        assert len(store) == 0 and store.path.read_bytes() == b""


def test_a_torn_line_longer_than_one_read_is_cut_at_its_start(tmp_path):
    assert loaded(write_lines(tmp_path / "a.jsonl", *RECORDS, b'{"id": "d", ' + b"x" * 200_000)) == RECORDS


def test_second_writer_is_refused_by_path_until_the_first_closes(tmp_path):
    path = tmp_path / "a.jsonl"
    with JsonlStore(path) as first:
        first.append(RECORDS[0])
        with pytest.raises(BlockingIOError, match=str(path)):
            JsonlStore(path)
        first.append(RECORDS[1])
    assert loaded(path) == RECORDS[:2]


def test_a_file_that_is_open_for_a_moment_can_be_waited_for(tmp_path):
    path = tmp_path / "a.jsonl"
    with JsonlStore(path) as first:
        begun = threading.Event()
        second = threading.Thread(target=lambda: (begun.set(), filled(path, RECORDS[1:2], wait=True)))
        second.start()
        begun.wait()
        time.sleep(0.05)
        first.append(RECORDS[0])
    second.join()
    assert loaded(path) == RECORDS[:2]


def test_a_record_refused_by_a_full_disk_can_be_appended_again(tmp_path):
    record, (soft, hard) = {"id": "d", "text": "x" * 100}, resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonlStore(filled(tmp_path / "a.jsonl")) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (store.path.stat().st_size + 10, hard))
        try:
            with pytest.raises(OSError):
                store.append(record)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.append(record)
    assert loaded(tmp_path / "a.jsonl") == [*RECORDS, record]


@pytest.mark.parametrize(
    "line",
    [b'{"id": "b", "te\n', b'["b"]\n', b'{"text": "no id"}\n', b'{"id": ["b"]}\n', b'{"id": "b", "text": "\xff"}\n', b'{"id": "b", "id": "c"}\n'],
    ids=["torn", "list", "no id", "id of another type", "not UTF-8", "a key twice"],
)
def test_a_broken_middle_line_is_named_and_nothing_is_lost(tmp_path, line):
    path = write_lines(tmp_path / "a.jsonl", RECORDS[0], line, RECORDS[2])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: "):
        JsonlStore(path)
    assert path.read_bytes() == before


def test_a_broken_file_can_be_mended_and_opened_while_its_error_is_still_shown(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", b"{\n", RECORDS[0])
    with pytest.raises(ValueError, match="line 1") as refused:
        JsonlStore(path)
    assert loaded(write_lines(path, RECORDS[0])) == RECORDS[:1], refused  # notebooks keep the last traceback: it must not keep the lock


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"response_revised": None}, "response_revised: "),
        ({"score_response": ...}, "score_response: Field required"),
        ({"score_revised": 1.5}, "score_revised = 1.5 lies outside the scale 0 to 1"),
        ({"score_response": -3, "scale": [0, 5]}, "score_response = -3.0 lies outside the scale 0 to 5"),
        ({"score_revised": float("nan")}, "score_revised = nan lies outside"),
        ({"score_revise": 1}, "score_revise: Extra inputs"),
        ({"split": "dev"}, "split: "),
        ({"id": "p1"}, "the id 'p1' stands in line 1 too"),
        ({"prompt": "a\ud83d"}, "'prompt' holds half a character ('\\ud83d')"),
    ],
    ids=["null", "missing", "too high", "too low", "not a number", "misspelt", "unknown split", "an id twice", "half a character"],
)
def test_read_records_names_file_line_and_field(tmp_path, change, named):
    wrong = {name: value for name, value in {**PAIR, "id": "p2", **change}.items() if value is not ...}
    path = write_lines(tmp_path / "scored.jsonl", PAIR, wrong)
    with pytest.raises(ValueError) as error:
        read_records(path, ScoredPair)
    assert f"{path}, line 2: " in str(error.value) and named in str(error.value)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\n\n \r\n"], ids=["LF", "CRLF", "CR", "blank lines"])
def test_records_of_a_user_are_found_whatever_their_line_ends_and_marks(tmp_path, end):
    pairs = [ScoredPair(**{**PAIR, "id": name, "prompt": f"naïve {name}"}) for name in "abc"]
    path = tmp_path / "scored.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + end.join(pair.model_dump_json().encode() for pair in pairs))
    assert read_records(path, ScoredPair) == pairs and read_records(path, ScoredPair)[1:] == pairs[1:]


def test_a_read_only_store_changes_no_byte_and_takes_no_lock(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_bytes(b"\n".join(json.dumps(record).encode() for record in RECORDS))  # no newline at the end
    before = path.read_bytes()
    with JsonlStore(path, read_only=True) as store, JsonlStore(path, read_only=True) as other:
        assert [store[name] for name in "abc"] == other.load() == RECORDS
        with pytest.raises(OSError):
            store.append({"id": "d"})
    path.write_bytes(before[:-3])
    with pytest.raises(ValueError, match=r"replies\.jsonl, line 3: not valid JSON"):
        JsonlStore(path, read_only=True)
    assert path.read_bytes() == before[:-3]


def test_a_note_that_a_power_cut_left_empty_is_no_end(tmp_path):
    path = claim(tmp_path / "pairs.jsonl", {"seed": 0})
    filled(path)
    next(tmp_path.glob("*.made_of.json")).write_text("")
    assert loaded(claim(path, {"seed": 0})) == RECORDS


def test_read_records_refuses_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match="scored.jsonl holds no records"):
        read_records(write_lines(tmp_path / "scored.jsonl"), ScoredPair)


def test_records_are_read_from_the_file_when_they_are_looked_at(tmp_path):
    pairs = [ScoredPair(**{**PAIR, "id": name, "prompt": f"naïve {name} 日本"}) for name in "abcd"]
    path = filled(tmp_path / "scored.jsonl", pairs)
    with JsonlStore(path) as store:
        some = store.records("dxb", ScoredPair)  # an id that is not there is left out
    for records, expected in ((read_records(path, ScoredPair), pairs), (some, [pairs[3], pairs[1]])):
        assert records == expected and expected == records and list(records) == expected and len(records) == len(expected)
        assert records[1:] == expected[1:] and records[-1] == expected[-1] and records != expected[::-1]
        assert records.offsets.itemsize == 8 and list(vars(records)) == ["path", "offsets", "record_type"]  # and no text
        with pytest.raises(IndexError):
            records[len(expected)]


def test_records_stay_those_of_their_file_when_it_grows_or_its_link_goes_elsewhere(tmp_path):
    path = filled(claim(tmp_path / "scored.jsonl", {"seed": 0}), [ScoredPair(**PAIR)])
    records = read_records(path, ScoredPair)
    filled(path, [{**PAIR, "id": "p2"}])
    filled(claim(path, {"seed": 1}), [{**PAIR, "id": "other"}])
    assert [pair.id for pair in records] == ["p1"]


def test_a_store_stays_with_its_file_when_another_run_takes_the_link(tmp_path):
    path = claim(tmp_path / "pairs.jsonl", {"teacher": "one"})
    with JsonlStore(path) as store:
        store.append({"id": "a", "by": "one"})
        with JsonlStore(claim(tmp_path / "pairs.jsonl", {"teacher": "another"})) as other:
            other.append({"id": "a", "by": "another run"})
        assert store["a"]["by"] == "one" and [fields["by"] for fields in store.load()] == ["one"]


def test_write_json_takes_a_line_for_a_key_or_an_item(tmp_path):
    content = {"é": {"one": [1, None, 2.5], 2: {}}, "records": [{"a": {"b": [1]}}, "é"]}
    lines = ["{", '  "é": {', '    "one": [1, null, 2.5],', '    "2": {}', "  },", '  "records": [', '    {"a": {"b": [1]}},', '    "é"', "  ]", "}"]
    assert write_json(tmp_path / "a.json", content).read_text().splitlines() == lines


def test_write_json_keeps_the_old_file_when_the_new_one_cannot_be_written(tmp_path):
    path = write_json(tmp_path / "new" / "metrics.json", {"rate": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"rate": 0.7, ("not", "a", "key"): 1})
    assert json.loads(path.read_text()) == {"rate": 0.5}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_a_reader_never_sees_a_part_of_a_json_file(tmp_path):
    contents = ["a" * 200_000, "b" * 100_000]
    path = write_json(tmp_path / "a.json", contents[0])
    writer = threading.Thread(target=lambda: [write_json(path, contents[i % 2]) for i in range(100)])
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(json.loads(path.read_text()))
    assert seen <= set(contents) and seen


def test_claim_keeps_a_file_made_the_same_way(tmp_path, capsys):
    path = filled(claim(tmp_path / "pairs.jsonl", {"teacher": "t", "seed": 0}))
    before = path.read_bytes()
    assert claim(path, {"seed": 0, "teacher": "t"}).read_bytes() == before
    assert capsys.readouterr().out == ""


def test_claim_sets_aside_on_change_says_what_changed_and_brings_back(tmp_path, capsys):
    path, first, second = tmp_path / "pairs.jsonl", {"teacher": "t", "seed": 0}, {"teacher": "t", "seed": 1, "prompts": "new"}
    filled(claim(path, first))
    assert not claim(path, second).exists()
    assert capsys.readouterr().out == "pairs.jsonl was made with other settings (prompts, seed) and is set aside\n"
    filled(path, RECORDS[:1])

    assert loaded(claim(path, first)) == RECORDS
    assert loaded(claim(path, second)) == RECORDS[:1]


@pytest.mark.parametrize("next_wanted", [0, 1], ids=["then the new", "then the old"])
@pytest.mark.parametrize("step", [0, 1])
def test_claim_killed_before_any_of_its_steps_loses_nothing(tmp_path, monkeypatch, step, next_wanted):
    path, settings, contents = tmp_path / "pairs.jsonl", [{"seed": 0}, {"seed": 1}], [RECORDS, RECORDS[:1]]
    for made_of, records in zip(settings, contents):
        filled(claim(path, made_of), records)

    moves = iter(range(10))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        replace = os.replace
        patch.setattr(os, "replace", lambda *paths: replace(*paths) if next(moves) < step else die())
        claim(path, settings[0])
    for wanted in (next_wanted, 1 - next_wanted):
        assert loaded(claim(path, settings[wanted])) == contents[wanted]


WRITER = """
import sys
from common.storage import JsonlStore
with JsonlStore(sys.argv[1]) as store:
    while True:
        name = str(len(store))
        store.append({"id": name, "text": "é" * 3000})
        print(name, flush=True)
"""


@pytest.mark.slow
def test_kill_minus_nine_loses_no_finished_record(tmp_path):
    path, pause, promised = tmp_path / "a.jsonl", random.Random(0), 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()  # the first record of this life is written
        time.sleep(pause.uniform(0, 0.1))
        child.kill()
        promised += 1 + len(child.communicate()[0].splitlines())

        complete = path.read_bytes().split(b"\n")[:-1]  # behind the last newline: nothing, or a torn record
        assert [json.loads(line)["id"] for line in complete] == [str(i) for i in range(len(complete))]
        assert len(complete) >= promised
        promised = len(complete)


def prompts(*ids):
    return [PromptRecord(id=name, experiment="safety", split="train", prompt=f"q{name}") for name in ids]


def test_what_is_missing_is_made_in_batches_each_record_kept_at_once_and_returned_in_the_order_of_the_input(tmp_path):
    path, asked, steps = tmp_path / "made.jsonl", [], []

    def make(batch, die_at=None):
        asked.append([record.id for record in batch])
        for record in batch:
            if record.id == die_at:
                raise ConnectionError("gone")
            yield {"id": record.id, "reason": "filtered"} if record.id == "c" else record.model_copy(update={"kind": "made"})

    def made(records, **how):
        return make_missing(records, lambda batch: make(batch, **how), path, PromptRecord, "prompts", 2, 0.5, steps.append, steps=3)

    with pytest.raises(ConnectionError):
        made(prompts("d", "b"), die_at="b")
    assert [row["id"] for row in loaded(path)] == ["d"]  # the batch was not over
    found = made(prompts("a", "b", "c", "d"))
    assert asked[1:] == [["a", "b"], ["c"]] and steps == [0, 3]
    assert [(record.id, record.kind) for record in found] == [("a", "made"), ("b", "made"), ("d", "made")]
    assert loaded(tmp_path / "failed_made.jsonl") == [{"id": "c", "reason": "filtered"}]
    with pytest.raises(ValueError, match="prompts: 1 ids stand more than once"):
        made(prompts("e", "e"))
    assert len(asked) == 3


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path):
    (tmp_path / "made.part").mkdir()
    (tmp_path / "made.part" / "torn").write_text("of a process that was killed")
    with whole_folder(tmp_path / "made") as scratch:
        (scratch / "file").write_text("whole")
        assert not (tmp_path / "made").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "file"]
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(tmp_path / "other") as scratch:
            (scratch / "file").write_text("half")
            raise error
    with pytest.raises(FileExistsError, match="made is there already; give a new folder, or delete it"), whole_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"] and (tmp_path / "made" / "file").read_text() == "whole"
