"""The audit: blind order, labels that are kept, arithmetic by hand (pytest tests/audit/test_audit.py)."""

import json
import random
import re

import pandas as pd
import pytest

from common.audit import blind_sheet, labelled_sheet
from common.audit.__main__ import main, read_blind
from common.audit.account import account, cells
from common.audit.labels import Labels
from common.audit.sample import Audit, Row, open_audit
from common.evaluation.result import Result
from common.judge.agreement import read_labels
from common.prompts import PROMPTS
from common.schema import Metric, answer_id
from common.statistics import corrected_rate


def result(folder, row, verdicts, prompts, said="says", **more):
    answers = [f"{row} {said} {i}." for i in range(len(verdicts))]
    metric = Metric(experiment="safety", method=row, seed=0, metric="judged", value=0.5, n=2, low=0, high=1)
    ids = {"held_out": [answer_id(*both) for both in zip(prompts, answers)]}
    made = Result(row, 0, "mark", [metric], answers={"held_out": answers}, outcomes={"judged": verdicts}, ids=ids, **more)
    made.write(folder / "seed-0" / row / "metrics.json")
    return made


@pytest.fixture
def run(tmp_path):
    """40 answers of DPO, of which the judge likes 30, and 40 of the base, of which it likes 10; the last one has no verdict."""
    prompts = [f"May I take barn {i}?" for i in range(40)]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps({"id": str(i), "prompt": prompt}) + "\n" for i, prompt in enumerate(prompts)))
    result(tmp_path, "dpo", [True] * 30 + [False] * 9 + [None], prompts)
    result(tmp_path, "base", [True] * 10 + [False] * 29 + [None], prompts)
    return tmp_path


class Keys:
    """Answers the questions in the terminal one after the other, then no more."""

    def __init__(self, text):
        self.keys = iter(text)

    def __call__(self, question):
        try:
            return next(self.keys)
        except StopIteration:
            raise EOFError from None


def test_the_sample_is_small_mixed_repeatable_and_says_nothing_of_rows(run):
    audit = open_audit(run)
    rows = [item.answer.split()[0] for item in audit.items]
    assert len(rows) == 32 and rows.count("base") == 8 and rows not in (sorted(rows), sorted(rows, reverse=True))
    assert audit.items == open_audit(run).items and audit.items != sorted(audit.items)
    assert audit.question == PROMPTS["safety"].yes_no_question and not any("39" in item.prompt for item in audit.items)
    assert len(open_audit(run, 5).items) == 5


def test_one_row_is_audited_with_the_base_beside_it(run):
    assert [row.name for row in open_audit(run / "seed-0" / "dpo" / "metrics.json").rows] == ["dpo", "base"]
    assert [row.name for row in open_audit(run / "seed-0" / "base").rows] == ["base"]


def test_labels_are_kept_as_they_come_and_a_stopped_reading_goes_on(run, capsys):
    audit, path = open_audit(run, 8), run / "labels.jsonl"
    read_blind(audit, Labels(path), Keys("ynsxq"))
    assert [json.loads(line)["score"] for line in path.read_text().splitlines()] == [[1], [0]]
    assert "dpo, seed" not in capsys.readouterr().out
    read_blind(audit, labels := Labels(path), Keys("y" * 5))  # the skipped one comes first now
    assert labels.readings_of(audit.items[2]) == 1 and labels.readings_of(audit.items[7]) == 0 and labels.reading(audit.items) == 1
    read_blind(audit, labels := Labels(path), Keys("y"))
    assert labels.reading(audit.items) == 2 and list(labels.first().values()) == [1, 0] + [1] * 6


def test_after_two_readings_the_notebooks_read_the_file(run, capsys):
    audit, path = open_audit(run, 8), run / "labels.jsonl"
    read_blind(audit, Labels(path), Keys("y" * 8))
    with pytest.raises(ValueError, match="column score"):
        read_labels(path)
    capsys.readouterr()
    read_blind(audit, labels := Labels(path), Keys("n" * 8))
    second = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("dpo says", "base says"))]
    assert sorted(second) == sorted(item.answer for item in audit.items) and second != [item.answer for item in audit.items]
    labelled, again = read_labels(path)
    assert {item.label for item in labelled} == {1} and set(again) == {0} and labels.reading(audit.items) == 0


def test_figures_by_hand():
    dpo = Row("dpo", 0, tuple((f"d{i}", i < 30) for i in range(40)))
    base = Row("base", 0, tuple((f"b{i}", i < 10) for i in range(40)))
    labels = {f"d{i}": int(i < 6) for i in range(12)} | {f"b{i}": 0 for i in range(8, 16)}  # judge: 12 of 12, 2 of 8
    first, second = account(Audit(None, "?", (dpo, base), ()), labels)
    assert (first.k, first.n, first.judged_good, first.labelled_good, first.labelled) == (30, 40, 12, 6, 12)
    assert first.inflation == pytest.approx((12 - 6) / 12) and second.inflation == pytest.approx(2 / 8)
    assert first.corrected == corrected_rate(30, 40, 6, 6, 6, 14)  # it saw all 6 good ones, and 6 of 14 bad ones
    assert first.corrected[0] == pytest.approx((30 / 40 + 6 / 14 - 1) / (1 + 6 / 14 - 1))
    assert cells(first)[0] == "dpo, seed 0" and cells(first)[3] == "+0.50, n = 12"


def test_too_few_labels_correct_nothing_and_no_labels_give_no_inflation():
    rows = Row("dpo", 0, tuple((f"d{i}", True) for i in range(9))), Row("base", 0, (("b", True),))
    first, second = account(Audit(None, "?", rows, ()), {"d0": 1})
    assert first.corrected is None and first.inflation == 0 and second.inflation is None
    assert cells(first)[2] == "not corrected" and cells(second)[3] == "no labels"


def test_the_notebook_form_shows_and_counts_the_same(run):
    sheet, audit = blind_sheet(run, 8), open_audit(run, 8)
    assert sheet._repr_html_().count("<b>answer</b>") == 8 and "seed" not in sheet.html and "judge" not in sheet.text
    keys = ["y" if item.answer.startswith("dpo") else "n" for item in audit.items]
    mark = re.match("Sheet (\\w{6}): ", sheet.text)[1]
    shown = labelled_sheet(run, mark, " ".join(keys), 8)
    expected = account(audit, {item.id: int(key == "y") for item, key in zip(audit.items, keys)})
    assert all(" | ".join(cells(one)) in shown.text for one in expected)
    assert "not corrected" in labelled_sheet(run, mark, ["s"] * 8, 8).text
    with pytest.raises(ValueError, match="3 labels for 8 answers"):
        labelled_sheet(run, mark, "y n y", 8)
    with pytest.raises(ValueError, match="'maybe' is none"):
        labelled_sheet(run, mark, "y n maybe", 8)


def test_labels_of_a_sheet_are_refused_when_one_more_row_is_trained(run):
    mark = re.match("Sheet (\\w{6}): ", blind_sheet(run, 8).text)[1]
    assert labelled_sheet(run, mark, "y " * 8, 8)
    result(run, "rdpo", [True] * 40, [f"May I take barn {i}?" for i in range(40)])
    with pytest.raises(ValueError, match=f"sheet '{mark}' shows other answers than are drawn from .* now; show blind_sheet again"):
        labelled_sheet(run, mark, "y " * 8, 8)


def test_the_command_prints_the_figures_and_what_is_left(run, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", Keys("yyq"))
    main([str(run), "--answers", "8"])
    said = capsys.readouterr().out
    assert "| dpo, seed 0 | 0.77 [" in said and "the same command goes on there" in said
    assert len((run / "audit_labels.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("spoil", "problem"), [
    (lambda run: [path.unlink() for path in run.glob("seed-*/*/metrics.json")], "no metrics.json in"),
    (lambda run: (run / "scored.jsonl").unlink(), "prompts of the answers are not to be found"),
    (lambda run: [result(run, row, [], []) for row in ("dpo", "base")], "has no judge's verdicts on single answers"),
    (lambda run: (run / "audit_labels.jsonl").write_text('{"id": "a", "prompt": "p", "answer": "b", "score": [2]}'), "audit_labels.jsonl, line 1: column score"),
], ids=["rows", "prompts", "verdicts", "labels"])  # fmt: skip
def test_what_is_missing_is_named_in_one_sentence(run, spoil, problem):
    spoil(run)
    with pytest.raises(SystemExit, match=problem):
        main([str(run)])


def test_labels_go_into_json_lines_alone_which_is_said_before_the_first_question(run, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked"))
    with pytest.raises(SystemExit, match=r"audit: .*labels\.csv: labels are kept as JSON lines; give --output a file that ends in \.jsonl"):
        main([str(run), "--output", str(run / "labels.csv")])
    assert not (run / "labels.csv").exists()


def hh(prompt):
    return {"chosen": f"\n\nHuman: {prompt}\n\nAssistant: Yes.", "rejected": f"\n\nHuman: {prompt}\n\nAssistant: No."}


def lists(prompt):
    asked = [{"role": "user", "content": prompt}]
    return {"id": prompt, "prompt": asked, **{side: [*asked, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}


@pytest.mark.parametrize(("name", "line"), [
    ("hh.jsonl", hh), ("lists.jsonl", lists), ("orca.jsonl", lambda prompt: {"system": "", "question": prompt, "chosen": "Yes.", "rejected": "No."}),
    *((f"rows.{suffix}", lambda prompt: {"prompt": prompt, "chosen": "Yes.", "rejected": "No.", "score_chosen": 5, "score_rejected": 1}) for suffix in ("csv", "parquet")),
], ids=lambda case: case if isinstance(case, str) else "")  # fmt: skip
def test_the_prompts_are_found_in_pairs_of_every_format(run, name, line):
    prompts = [json.loads(row)["prompt"] for row in (run / "scored.jsonl").read_text().splitlines()]
    rows = pd.DataFrame(list(map(line, prompts)))
    {"csv": lambda path: rows.to_csv(path, index=False), "parquet": rows.to_parquet, "jsonl": lambda path: rows.to_json(path, orient="records", lines=True)}[name.split(".")[1]](run / name)
    before = open_audit(run).items
    (run / "scored.jsonl").unlink()
    (run / "train_rdpo.manifest.json").write_text(json.dumps({"parameters": {"pairs_file": str(run / name), "score_range": [0, 5], "weights": {}}}))
    assert open_audit(run).items == before


def test_the_prompts_are_found_in_the_file_that_was_held_out(run):
    (run / "scored.jsonl").rename(run / "held.jsonl")
    (run / "train_rdpo.manifest.json").write_text(json.dumps({"parameters": {"pairs_file": "", "held_out": str(run / "held.jsonl")}}))
    assert len(open_audit(run).items) == 32


def test_more_answers_than_one_reads_in_one_go_are_refused(run):
    with pytest.raises(SystemExit, match="33 answers; give 1 to 32"):
        main([str(run), "--answers", "33"])


def test_an_answer_that_two_rows_gave_is_shown_once(tmp_path):
    prompts = [f"May I take barn {i}?" for i in range(6)]
    (tmp_path / "to_label.jsonl").write_text("".join(json.dumps({"id": str(random.Random(i).random()), "prompt": prompt}) + "\n" for i, prompt in enumerate(prompts)))
    first = result(tmp_path, "dpo", [True] * 6, prompts)
    other = Result(**{**first.__dict__, "method": "rdpo"})
    other.write(tmp_path / "seed-0" / "rdpo" / "metrics.json")
    audit = open_audit(tmp_path)
    assert len(audit.items) == 6 and [one.labelled for one in account(audit, {audit.items[0].id: 0})] == [1, 1]
