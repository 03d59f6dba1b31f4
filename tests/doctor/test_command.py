"""The command: what it reads and refuses, its page, picture and suspects (pytest tests/doctor/test_command.py)."""

import json
import re
import subprocess
import sys

import pytest

from common.doctor import short_table, verdict
from common.doctor.__main__ import main
from common.doctor.diagnosis import examine
from common.doctor.report import page, terminal
from common.doctor.rows import read, rows_of
from common.runtime import ROOT
from common.schema import ScoredPair


def written(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def table_rows(count=30, **more):
    return [{"prompt": f"Is {n} even?", "chosen": f"Yes, {n} is.", "rejected": f"No, {n} is odd.", "score_chosen": 4, "score_rejected": 1} | more for n in range(count)]


def pair(n, response="no", revised="yes", scores=(0, 1), split="train"):
    return ScoredPair(id=f"pair-{n}", experiment="safety", split=split, prompt=f"Question {n}?", response=response, response_revised=revised, score_response=scores[0], score_revised=scores[1], scale=(0, 5))


def test_faults_are_reported_and_not_refused(tmp_path, capsys):
    made = table_rows(30)
    made[3] |= {"rejected": made[3]["chosen"]}
    made[4] |= {"chosen": ""}
    made[5] |= {"score_chosen": 0}
    made.append(made[0])
    main([str(written(tmp_path, made)), "--score-range", "0", "5", "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "identical answers" in said and "empty text" in said and "repeated row" in said and "1 of 31" in said
    text = (tmp_path / "out" / "doctor.md").read_text()
    assert "| contradicted | 1 | 31 | 0.03 [0.01, 0.16] |" in text and "rows.jsonl, line 6" in text and "On a scale from 0 to 5, alpha is" in text and "If you train `rdpo_label`: tau" in text
    suspects = [json.loads(line) for line in (tmp_path / "out" / "suspects.jsonl").read_text().splitlines()]
    assert suspects[0]["where"].endswith("rows.jsonl, line 6") and suspects[0]["reasons"] == ["contradicted: rejected scored 0.20 higher"] and len(suspects) == 4
    assert (tmp_path / "out" / "doctor.png").stat().st_size > 10_000


@pytest.mark.parametrize("made, message", [
    ([{"prompt": "a", "chosen": "b"}], "rows.jsonl: no known format; its columns are chosen, prompt; the nearest is TRL's plain texts, which also needs rejected; docs/own-data.md lists the formats"),
    (table_rows(2), "line 1: column score_chosen: 4 lies outside 0 to 1; give the range of the scores with --score-range"),
    (table_rows(2, score_chosen="good"), "line 1: column score_chosen: 'good' is no finite, valid number"),
    (table_rows(2, chosen=[{"role": "user", "content": "a"}]), "line 1: column chosen: messages in place of a text"),
    ([{"response": "a", "response_revised": "b", "score_revised": 1}], "line 1: column id"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(made, message, tmp_path):
    with pytest.raises(SystemExit) as refused:
        main([str(written(tmp_path, made))])
    assert str(refused.value).startswith("doctor: ") and message in str(refused.value)


@pytest.mark.parametrize("arguments, message", [
    (["none.csv"], "no file"), (["someone/data"], "give a file, or a Hub dataset as NAME@COMMIT"), (["rows.jsonl", "--judge-accuracy", ".5", ".6"], "little better than chance"),
    (["rows.jsonl", "--score-range", "5", "0"], "lowest and highest, not 5 and 0"), (["rows.jsonl", "--score-range", "0", "5", "--tokenizer", "nowhere"], "--tokenizer nowhere: cannot be loaded"),
    (["rows.jsonl", "--max-length", "5"], "needs --tokenizer"),
])  # fmt: skip
def test_what_the_command_refuses(arguments, message, tmp_path, monkeypatch, capsys):
    written(tmp_path, table_rows(2))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert message in f"{refused.value} {capsys.readouterr().err}"


def test_files_of_pairs_bring_their_scale_and_split(tmp_path):
    made = [pair(0), pair(1, scores=(5, 0), split="test"), pair(2, scores=(None, 1))]
    rows = read(written(tmp_path, [one.model_dump(mode="json") for one in made], "scored.jsonl"))
    assert [(one.gap, one.split, one.chosen) for one in rows] == [(0.2, "train", "yes"), (-1.0, "test", "yes"), (None, "train", "yes")]
    assert rows[1].where.endswith("scored.jsonl, line 2") and rows_of(made)[1].where == "pair-1"
    unscored = [{name: value for name, value in one.model_dump(mode="json").items() if not name.startswith(("score", "judge", "scale", "criteria"))} for one in made]
    assert [one.gap for one in read(written(tmp_path, unscored, "pairs.jsonl"))] == [None] * 3


def test_a_file_without_scores_says_the_way_to_them(tmp_path, capsys):
    main([str(written(tmp_path, [{"prompt": f"q {n}", "chosen": "yes", "rejected": "no"} for n in range(40)]))])
    said = capsys.readouterr().out
    assert "None of the 40 rows has both scores, so the label noise is unknown" in said and "reward_score" in said and "cross_fitted_scores" in said
    assert "only methods without scores are compared" in said and "Estimated share" not in said


@pytest.mark.parametrize("made", [[], [pair(0)], [pair(n, scores=(3, 3)) for n in range(5)], [pair(n, "same", "same", (None, None)) for n in range(2)], [pair(0, "", "", (None, None))]])
def test_small_and_uniform_files_get_sentences(made):
    found = examine(made)
    texts = page(found, "doctor.png"), terminal(found)
    assert all("nan" not in text and "None " not in text.replace("None of", "") for text in texts)
    assert list(short_table(made).columns) == ["rows", "of", "share", "what it means"]


def said_of(made, capsys, folder, *options):
    main([str(written(folder, made)), "--score-range", "0", "5", *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("made, usable", [(table_rows(1), "1 usable row of 1"), (table_rows(19), "19 usable rows of 19"), ([{"prompt": "q", "chosen": "yes", "rejected": "no"}], "1 usable row of 1"), (table_rows(12) + table_rows(28, score_chosen=None), "12 usable rows of 40")])
def test_too_few_rows_get_one_sentence_and_no_method(made, usable, tmp_path, capsys):
    said = said_of(made, capsys, tmp_path)
    assert said.partition("Recommendation\n")[2] == f"  With {usable} we do not know the label noise or which method fits: fewer than 20 say nothing about either.\n"
    assert not any(word in said for word in ("Method:", "study", "Label noise", "Estimated", "None of", "All 1"))


def test_rows_that_all_contradict_their_labels_get_a_sentence(tmp_path, capsys):
    exchanged = "The rejected answer scored higher in all 30 untied rows: the columns chosen and rejected may be exchanged, or a low score may be the better one."
    assert exchanged in said_of(table_rows(30, score_chosen=0), capsys, tmp_path)
    assert "may be exchanged" not in said_of(table_rows(30, score_chosen=0) + table_rows(1), capsys, tmp_path)


def test_rows_that_all_agree_with_their_labels_get_a_sentence(tmp_path, capsys):
    agreed = "No wrong label is visible: the chosen answer scored higher in all 30 untied rows, so noise cannot be distinguished from a judge that agrees with every label."
    assert agreed in said_of(table_rows(30) + table_rows(9, score_rejected=4), capsys, tmp_path)
    assert "No wrong label" not in said_of(table_rows(30) + table_rows(1, score_chosen=0), capsys, tmp_path)
    assert "No wrong label" not in said_of(table_rows(19) + table_rows(9, score_rejected=4), capsys, tmp_path)  # of 19 untied rows


def judged(folder, noted, manifest="reward_score.manifest.json", name="scored.jsonl", judge="a judge"):
    """40 scored pairs, 10 contradicted, beside a manifest."""
    made = [pair(n, scores=(1, 0) if n < 10 else (0, 1)).model_dump(mode="json") | {"judge": judge} for n in range(40)]
    (folder / manifest).write_text(json.dumps({"judge": "a judge"} | noted))
    return str(written(folder, made, name))


def of_score(sensitivity, specificity, how="judge"):
    return {"checks": {"score": {how: {"sensitivity": sensitivity, "specificity": specificity}}}}


BY_HAND = "Estimated share of wrong labels: 0.24 [0.13, 0.40], n = 40 untied rows, corrected for a judge with sensitivity 0.9 and specificity 0.9, which"


@pytest.mark.parametrize("noted, manifest", [
    (of_score(0.9, 0.9), "reward_score.manifest.json"), (of_score(0.9, 0.9, "calibrated"), "reward_score.manifest.json"), ({"disagreement": 0.1}, "reward_score.manifest.json"),
    (of_score(0.9, 0.9), "judge.manifest.json"),
])  # fmt: skip
def test_the_judge_s_noted_error_corrects_without_the_option(noted, manifest, tmp_path, capsys):
    path = judged(tmp_path, noted, manifest)
    main([path])
    assert f"{BY_HAND} {manifest} notes and which are taken as known." in capsys.readouterr().out
    main([path, "--judge-accuracy", "1", "1"])
    assert "0.25 [0.14, 0.40], n = 40 untied rows, corrected for a judge with sensitivity 1 and specificity 1, which are taken as known." in capsys.readouterr().out


@pytest.mark.parametrize("noted, more", [
    ({"checks": {name: {"judge": {"sensitivity": 0.9, "specificity": 0.9}} for name in ("sentiment", "quality")}}, {}), (of_score(0.9, None), {}), ({"checks": {}, "disagreement": None}, {}),
    (of_score(0.9, 0.9), {"judge": "another"}), (of_score(0.9, 0.9), {"name": "rows.jsonl"}),
])  # fmt: skip
def test_what_is_no_check_of_these_scores_corrects_nothing(noted, more, tmp_path, capsys):
    main([judged(tmp_path, noted, **more)])
    said = capsys.readouterr().out
    assert "0.25 [0.14, 0.40], n = 40 untied rows, taking the judge as perfect" in said and "manifest" not in said


def test_a_noted_judge_little_better_than_chance_corrects_nothing_and_is_named(tmp_path, capsys):
    main([judged(tmp_path, of_score(0.5, 0.625))])
    said = capsys.readouterr().out
    assert "taking the judge as perfect" in said and "reward_score.manifest.json notes a judge with sensitivity 0.5 and specificity 0.625, little better than chance, which corrects nothing." in said


def test_the_page_s_links_lead_to_the_repository_from_where_it_is_written(tmp_path, capsys):
    main([str(written(tmp_path, table_rows())), "--score-range", "0", "5", "--output", str(tmp_path / "deep" / "out")])
    links = dict(re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", (tmp_path / "deep" / "out" / "doctor.md").read_text()))
    assert {"results/README.md", "results/small/README.md", "results/readings/table.csv"} <= links.keys()
    assert all((tmp_path / "deep" / "out" / target).resolve() == ROOT / name for name, target in links.items())
    assert "(results/README.md)" in capsys.readouterr().out


def test_the_judge_s_accuracy_is_named_where_it_corrects(tmp_path, capsys):
    made = table_rows(40)
    for row in made[:10]:
        row |= {"score_chosen": 0, "score_rejected": 3}
    path = str(written(tmp_path, made))
    main([path, "--score-range", "0", "5", "--judge-accuracy", ".9", ".9"])
    assert "Estimated share of wrong labels: 0.24 [0.13, 0.40], n = 40 untied rows, corrected for a judge with sensitivity 0.9 and specificity 0.9" in capsys.readouterr().out


def test_the_table_of_a_notebook():
    table = short_table([pair(0), pair(1, scores=(1, 0)), pair(2, scores=(1, 1))])
    assert table.loc["contradicted", ["rows", "of"]].tolist() == [1, 2] and table.loc["tied", "share"].startswith("0.33 [")


@pytest.mark.slow
def test_a_notebook_shows_noise_and_recommendation_with_links_from_its_folder():
    shown = verdict(examine([pair(n, scores=(1, 0) if n % 4 == 0 else (0, 1)) for n in range(40)]))
    assert shown.startswith("**Label noise**\n\n- Estimated share of wrong labels: 0.25 [") and "\n**Recommendation**\n\n- Method: `" in shown
    assert (ROOT / "safety" / re.search(r"\]\((\S+README.md)\)", shown)[1]).exists() and "Length" not in shown


def test_no_model_and_no_trainer_is_imported(tmp_path):
    written(tmp_path, table_rows(3))
    code = f"import sys; from common.doctor.__main__ import main; main([{str(tmp_path / 'rows.jsonl')!r}, '--score-range', '0', '5']); print(sorted({{'transformers', 'trl', 'peft', 'datasets'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip().endswith("[]")
