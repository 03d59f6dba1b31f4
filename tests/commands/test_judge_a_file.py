"""`rdpo judge`: scores for pairs in any format, which `rdpo train` can read (pytest tests/commands/test_judge_a_file.py)."""

import json

import pytest

from common.commands.judge import main
from common.data.formats.read import read_preferences
from common.schema import Pair, ScoredPair
from common.storage import read_records

KIND, RUDE = "gladly, here is a gentle way to do it", "no, go away and stop asking"


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def judge(tmp_path):
    return f"learned:{written(tmp_path / 'labels.jsonl', [{'text': f'{text} {n}', 'label': label} for n in range(4) for text, label in ((KIND, 1), (RUDE, 0))])}"


def test_pairs_get_scores_that_training_reads(judge, tmp_path, capsys):
    rows = [{"prompt": f"How do I fold sheet {n}?", "chosen": f"{KIND} {n}", "rejected": f"{RUDE} {n}"} for n in range(5)]
    rows.append({"prompt": "And this?", "chosen": RUDE, "rejected": KIND})
    arguments = [written(tmp_path / "rows.jsonl", rows), "--judge", judge, "--output", str(tmp_path / "out")]
    main(arguments)
    assert "chosen better: 5, tied: 0, rejected better: 1, unscored: 0\n" in capsys.readouterr().out
    scored = list(read_records(tmp_path / "out" / "scored.jsonl", ScoredPair))
    assert all(pair.score_revised > 0.5 > pair.score_response for pair in scored[:5])
    assert json.loads((tmp_path / "out" / "judge.manifest.json").read_text())["counts"]["unscored"] == 0
    found = read_preferences(tmp_path / "out" / "scored.jsonl")
    assert [(pair.chosen, pair.score_chosen) for pair in found.pairs] == [(pair.response_revised, pair.score_revised) for pair in scored]
    before = (tmp_path / "out" / "scored.jsonl").read_bytes()
    main(arguments)
    assert (tmp_path / "out" / "scored.jsonl").read_bytes() == before


def test_the_notebooks_own_pairs_keep_all_else(judge, pairs, tmp_path):
    own = [pair.model_dump(include=set(Pair.model_fields)) for pair in pairs][:8]
    main([written(tmp_path / "pairs.jsonl", own), "--judge", judge, "--output", str(tmp_path / "out"), "--experiment", "safety"])
    scored = [pair.model_dump() for pair in read_records(tmp_path / "out" / "scored.jsonl", ScoredPair)]
    kept = ("id", "split", "prompt", "response", "critique", "response_revised", "teacher", "kind")
    assert [[pair[name] for name in kept] for pair in scored] == [[pair[name] for name in kept] for pair in own]
    assert all(pair["judge"].startswith("learned from labels.jsonl") and pair["scale"] == (0, 1) for pair in scored)


def test_pairs_that_have_scores_get_those_of_another_judge(judge, pairs, tmp_path):
    rows = [pair.model_dump(mode="json") for pair in pairs][:4]
    main([written(tmp_path / "scored.jsonl", rows), "--judge", judge, "--output", str(tmp_path / "out"), "--experiment", "safety"])
    assert {pair.judge[:7] for pair in read_records(tmp_path / "out" / "scored.jsonl", ScoredPair)} == {"learned"}


@pytest.mark.parametrize(("more", "said"), [
    (["--judge", "lerned:x"], "judge: .*'lerned:x', did you mean learned"),
    (["--judge", "learned:nowhere.jsonl"], "judge: .*nowhere.jsonl"),
    (["--judge", "miniature"], "judge: .*miniature.* knows its own world alone"),
    (["--judge", "learned:labels.jsonl", "--scale", "TEN"], "judge: .*unknown scale 'TEN'"),
])
def test_bad_input_is_one_sentence(more, said, tmp_path, capsys):
    rows = written(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(SystemExit, match=said):
        main([rows, "--output", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()
