"""`rdpo evaluate`: rows that exist, on a file of prompts (pytest tests/commands/test_evaluate_a_file.py)."""

import json

import pytest
from tiny_models import tiny_tokenizer

from common.audit.sample import open_audit
from common.commands.evaluate import main
from common.miniature.worlds import safety
from common.report.measurements import read_measurements


@pytest.fixture
def prompts(tmp_path):
    records = safety.prompts_for("test", 4, 0.0, 0) + safety.prompts_for("test", 4, 1.0, 1) + safety.prompts_for("train", 2, 0.0, 0)
    (tmp_path / "prompts.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    return str(tmp_path / "prompts.jsonl")


@pytest.fixture
def judge(tmp_path):
    rows = [{"text": text, "label": label} for text, label in (("i cannot help with that", 1), ("take a rope and pull", 0)) for _ in range(4)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"learned:{tmp_path / 'labels.jsonl'}"


def test_base_and_a_model_are_measured_on_the_prompts_of_the_file(micro, prompts, judge, tmp_path, capsys):
    arguments = [prompts, "--student", str(micro), "--methods", "base", f"model:{micro}", "--final-judge", judge, "--output", str(tmp_path / "out"), "--max-new-tokens", "8"]
    main(arguments)
    shown = capsys.readouterr().out
    assert "base student" in shown and str(tmp_path / "out" / "table.md") in shown
    lines = [line for line in read_measurements(tmp_path / "out" / "table.csv") if line["metric"] == "judged"]
    assert [line["method"] for line in lines] == ["base", f"model:{micro}"] and {line["n"] for line in lines} == {8}
    assert len(open_audit(tmp_path / "out", 4).items) == 4  # its prompts are found by the manifest
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("metrics.json")}
    main(arguments)
    assert len(before) == 2 and before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(("more", "said"), [
    (["--student", "micro"], "evaluate: a miniature student knows its world's prompts alone; .* give safety"),
    (["--student", "nowhere", "--methods", "dpo"], "evaluate: --methods dpo is trained first"),
    (["--student", "nowhere", "--methods", "adaptor:x"], "evaluate: .*unknown method adaptor:x"),
    (["--student", "{micro}"], "evaluate: .*final judge"),
    (["--student", "{micro}", "--methods", "adapter:nowhere"], "evaluate: .*nowhere"),
    (["--student", "{micro}", "--evaluate-on", "tset"], "evaluate: .*tset"),
])
def test_bad_input_is_one_sentence(more, said, prompts, micro, tmp_path):
    with pytest.raises(SystemExit, match=said):
        main([prompts, "--output", str(tmp_path / "out"), *(text.replace("{micro}", str(micro)) for text in more)])
    with open(prompts) as file:
        lines = file.read().replace('"safety"', '"mine"')
    (tmp_path / "mine.jsonl").write_text(lines)
    with pytest.raises(SystemExit, match="evaluate: .*mine.jsonl: experiment = 'mine' is none; write safety"):
        main([str(tmp_path / "mine.jsonl"), "--student", str(micro), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="evaluate: no file .*nowhere.jsonl"):
        main(["nowhere.jsonl", "--student", str(micro), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize(("pad", "more", "taken"), [(False, [], "<|end|>"), (False, ["--pad-token", "<|close|>"], "<|close|>"), (True, [], "")])
def test_a_student_without_a_pad_token_takes_that_beside_an_adapter_or_the_one_given(pad, more, taken, prompts, tmp_path, monkeypatch):
    tiny_tokenizer(tmp_path / "student", "chatml", pad)
    tokenizer = tiny_tokenizer(tmp_path / "adapter", "chatml")
    tokenizer.pad_token = "<|end|>"
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    seen = []
    monkeypatch.setattr("common.commands.evaluate.open_experiment", lambda p: seen.append(p.pad_token) or (_ for _ in ()).throw(ValueError("enough")))
    with pytest.raises(SystemExit, match="enough"):
        main([prompts, "--student", str(tmp_path / "student"), "--methods", "base", f"adapter:{tmp_path}/adapter@0.5", "--final-judge", "yes_no:some/judge", "--output", str(tmp_path / "out"), *more])
    assert seen == [taken]
