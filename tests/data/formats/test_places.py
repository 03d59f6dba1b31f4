"""Where preferences are read from, what is refused, and pairs to learn from (pytest tests/data/formats/test_places.py)."""

import httpx
import pytest
from written import ALL, DRINKS, ask, assistant, bad, good, read, texts, user, written

from common.data.formats.pairs import learnable, scored_pairs
from common.data.formats.read import read_preferences

datasets = pytest.importorskip("datasets")
COMMIT = "a" * 40
IMPLICIT = [{"chosen": [user(ask(drink)), assistant(good(drink))], "rejected": [user(ask(drink)), assistant(bad(drink))]} for drink in DRINKS]
PLAIN = [{"prompt": ask(drink), "chosen": good(drink), "rejected": bad(drink)} for drink in DRINKS]


def test_lists_come_through_parquet_and_json(tmp_path):
    import json

    import pandas

    pandas.DataFrame(IMPLICIT).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(IMPLICIT))
    assert texts(read_preferences(tmp_path / "rows.parquet")) == texts(read_preferences(str(tmp_path / "rows.json"))) == ALL
    pandas.DataFrame(PLAIN).to_csv(tmp_path / "rows.csv")
    assert texts(read_preferences(tmp_path / "rows.csv")) == ALL


def test_a_folder_of_save_to_disk(tmp_path):
    rows = datasets.Dataset.from_list(IMPLICIT)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"train_prefs": rows, "test_prefs": rows}).save_to_disk(tmp_path / "named")
    found = read_preferences(tmp_path / "one")
    assert texts(found) == texts(read_preferences(tmp_path / "two")) == texts(read_preferences(tmp_path / "named" / "train_prefs")) == ALL
    assert found.pairs[1].where.endswith("one, row 2")
    with pytest.raises(ValueError, match="named has no split train; give one of its folders: train_prefs, test_prefs"):
        read_preferences(tmp_path / "named")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="one: not a whole folder of save_to_disk .*; save it anew"):
        read_preferences(tmp_path / "one")
    with pytest.raises(ValueError, match="is a folder; give the file in it, or a folder that datasets.save_to_disk wrote"):
        read_preferences(tmp_path)


def on_hub(monkeypatch, found):
    """`load_dataset` that knows `someone/drinks` alone, or raises; what it was asked for."""
    asked = []

    def load_dataset(name, split, revision):
        asked.append((name, split, revision))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_split_of_a_hub_dataset_at_a_commit(monkeypatch):
    asked = on_hub(monkeypatch, datasets.Dataset.from_list(IMPLICIT))
    found = read_preferences(f"someone/drinks@{COMMIT}")
    assert texts(found) == ALL and found.pairs[0].where == f"someone/drinks at {COMMIT}, row 1"
    read_preferences(f"someone/drinks/train_prefs@{COMMIT}")
    assert asked == [("someone/drinks", "train", COMMIT), ("someone/drinks", "train_prefs", COMMIT)]


def test_a_file_of_a_hub_dataset(monkeypatch, tmp_path):
    import huggingface_hub

    path = written(tmp_path, PLAIN)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, repo_type, revision: str(path) if (name, file, repo_type, revision) == ("someone/drinks", "data/rows.jsonl", "dataset", COMMIT) else None)
    assert texts(read_preferences(f"someone/drinks/data/rows.jsonl@{COMMIT}")) == ALL


def test_offline_a_cached_dataset_of_another_commit_is_refused(monkeypatch):
    class Cached(list):
        cache_files = [{"filename": f"/cache/someone___drinks/default/0.0.0/{'b' * 40}/drinks-train.arrow"}]

    on_hub(monkeypatch, Cached(IMPLICIT))
    with pytest.raises(FileNotFoundError, match=f"cannot take someone/drinks at revision {COMMIT} from the Hub .no connection, and the local cache holds commit b+.; connect, or give that commit"):
        read_preferences(f"someone/drinks@{COMMIT}")
    assert texts(read_preferences(f"someone/drinks@{'b' * 40}")) == ALL


def refused(kind, text):
    """An error of the Hub's client as its server's answer makes one."""
    from huggingface_hub import errors

    return getattr(errors, kind)(text, response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co")))


NOT_FOUND = datasets.exceptions.DatasetNotFoundError
TROUBLE = {
    "gated": (NOT_FOUND("Dataset 'someone/drinks' is a gated dataset on the Hub. You must be authenticated to access it."), "(it is gated); accept its conditions on https://huggingface.co/datasets/someone/drinks and log in with `hf auth login`, or give a local file"),
    "private or misspelt": (NOT_FOUND("Dataset 'someone/drinks' doesn't exist on the Hub or cannot be accessed."), "(no such dataset, or a private one); check the name, log in with `hf auth login` for a private one"),
    "wrong commit": (NOT_FOUND(f"Revision '{COMMIT}' doesn't exist for dataset 'someone/drinks' on the Hub."), f"cannot take someone/drinks at revision {COMMIT} from the Hub (it has no such revision); copy the commit from its page"),
    "wrong commit of a file": (refused("RevisionNotFoundError", "404"), "(it has no such revision)"),
    "private file": (refused("RepositoryNotFoundError", "404"), "(no such dataset, or a private one)"),
    "no such file": (refused("RemoteEntryNotFoundError", "404"), "(it has no such file)"),
    "offline": (ConnectionError("Couldn't reach 'someone/drinks' on the Hub (OfflineModeIsEnabled)"), "(no connection, and no copy in the local cache); connect (unset HF_HUB_OFFLINE), or give a local file"),
    "other splits": (ValueError('Unknown split "train". Should be one of [\'train_prefs\', \'test_prefs\'].'), f"(it has no split train, but train_prefs, test_prefs); give one as someone/drinks/SPLIT@{COMMIT}"),
    "configurations": (ValueError("Config name is missing.\nPlease pick one among the available configs: ['hot', 'cold']\nExample of usage"), f"(it has several configurations, hot, cold); give a file of one as someone/drinks/FILE@{COMMIT}"),
    "script": (RuntimeError("Dataset scripts are no longer supported, but found drinks.py"), "(Dataset scripts are no longer supported, but found drinks.py); check name, revision and network, or give a local file"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "sentence"), TROUBLE.values(), ids=TROUBLE)
def test_what_keeps_a_hub_dataset_away_is_one_sentence(error, sentence, monkeypatch):
    on_hub(monkeypatch, error)
    with pytest.raises(FileNotFoundError) as told:
        read_preferences(f"someone/drinks@{COMMIT}")
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_offline_for_real(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="cannot take someone-of-ours/nothing at revision a+ from the Hub .no connection, and no copy in the local cache"):
        read_preferences(f"someone-of-ours/nothing@{COMMIT}")


@pytest.mark.parametrize("rows, message", [
    ([{"prompt": "a", "choosen": "b", "rejected": "c"}], "no known format; its columns are choosen, prompt, rejected; the nearest is TRL's plain texts, which also needs chosen, did you mean choosen?; docs/own-data.md lists the formats"),
    ([{"chosen": [user("a")], "text": "b"}], "the nearest is"),
    ([{"text": "a", "label": True}], "its columns are label, text; the nearest is thumbs up and down (KTO), which also needs prompt and completion"),
    ([{"instruction": "a", "generations": ["b", "c"]}], "the nearest is rated generations (Argilla, distilabel), which also needs ratings"),
    ([{"prompt": "a", "response": "b", "quality": 3}], "read as single answers, of which no pair can be made; `rdpo train` learns single answers with --method sft, rwr or ca, and with fa where a prompt has several. Where several rows answer one prompt, --weights COLUMN=1 makes pairs of them by that column"),
])  # fmt: skip
def test_an_unknown_format_gets_its_columns_and_the_nearest_format(rows, message, tmp_path):
    with pytest.raises(ValueError) as told:
        read(tmp_path, rows)
    assert message in str(told.value) and str(told.value).startswith(f"{tmp_path}/rows.jsonl: ")


@pytest.mark.parametrize("source, message", [("none.csv", "no file .*none.csv; give a CSV"), ("my/rows@2.csv", "no file .*my/rows@2.csv; give a CSV"), ("someone/drinks", "no file someone/drinks; give a file, or a Hub dataset as NAME@COMMIT")])
def test_a_place_that_is_not_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        read_preferences(source)


def test_rows_that_teach_nothing_are_left_out_of_published_formats_and_refused_in_one_s_own_table(tmp_path):
    odd = [{**PLAIN[0], "chosen": ""}, {**PLAIN[1], "rejected": PLAIN[1]["chosen"]}, PLAIN[2]]
    found = learnable(read(tmp_path, PLAIN + odd))
    assert texts(found) == ALL and found.rows == 13
    assert found.left_out.counts == {"rows with an empty text": 1, "rows whose two answers are the same text": 1, "repeated rows": 1}
    for row, message in zip(odd, ("column chosen: a text should have at least 1 character", "column rejected: the same text as chosen", "the same prompt and answers as in .*line 3; delete one of them")):
        with pytest.raises(ValueError, match=f"line 11: {message}"):
            learnable(read(tmp_path, [{**one, "score_chosen": 1, "score_rejected": 0} for one in [*PLAIN, row]]))
    (tmp_path / "half.jsonl").write_text('{"prompt": "a \\ud83d", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(ValueError, match=r"half\.jsonl, line 1: holds half a character"):
        learnable(read_preferences(tmp_path / "half.jsonl"))


def test_a_hub_dataset_s_own_rows_cannot_be_edited(monkeypatch):
    rows = [{**one, "score_chosen": 1, "score_rejected": 0} for one in [*PLAIN, PLAIN[0]]]
    on_hub(monkeypatch, datasets.Dataset.from_list(rows))
    assert learnable(read_preferences(f"someone/drinks@{COMMIT}")).left_out.counts == {"repeated rows": 1}


def test_two_annotators_of_one_pair_are_two_pairs(tmp_path):
    found = learnable(read(tmp_path, [{**PLAIN[0], "annotator": name} for name in ("Ann", 7, "Ann", None)]))
    pairs = scored_pairs(found, "own_data", {"train": 0.5, "test": 0.5})
    assert [pair.annotator for pair in pairs] == ["Ann", "7", ""] and len({pair.id for pair in pairs}) == 3 and found.left_out.counts == {"repeated rows": 1}


def test_pairs_of_a_conversation_stay_in_its_first_request_s_split(tmp_path):
    turns = [user("Hello."), assistant("Good day.")]
    rows = [{"chosen": [*turns * n, user(ask(drink)), assistant("Yes.")], "rejected": [*turns * n, user(ask(drink)), assistant("No.")]} for n in (1, 2) for drink in DRINKS]
    pairs = scored_pairs(read(tmp_path, rows), "own_data", {"train": 0.5, "test": 0.5})
    assert len({pair.split for pair in pairs}) == 1 and len({pair.id for pair in pairs}) == 20 and {pair.group for pair in pairs} == {"Hello."}
    single = scored_pairs(read(tmp_path, IMPLICIT), "own_data", {"train": 0.5, "test": 0.5})
    assert {pair.split for pair in single} == {"train", "test"} and "history" not in single[0].model_dump() and pairs[0].model_dump()["history"] == turns
