"""Batched answers against one at a time, with a tiny student (pytest tests/benchmarks/test_generation.py)."""

import json

import generation
import pytest
import torch
import train_step
from tiny_models import tiny_causal_model

from common.storage import write_json, write_jsonl
from common.student.load import load_student

ROWS = [{"persona": f"Reply as number {i}. ", "prompt": text, "assistant_response": "Yes, I can.", "persona_response": "No, I cannot."} for i, text in enumerate(("Hello.", "Can you help?", "Yes or no?"))]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_causal_model(tmp_path_factory.mktemp("student"))


def test_one_persona_is_the_system_prompt_of_all(tmp_path, student):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    conversations = generation.behind_one_persona(tmp_path / "rows.jsonl", 2)
    system = {"role": "system", "content": "Reply as number 0."}
    assert conversations == [[system, {"role": "user", "content": "Hello."}], [system, {"role": "user", "content": "Can you help?"}]]
    _, tokenizer = load_student(student, four_bit=False, compute_dtype=torch.float32)
    shared = generation.shared_tokens(tokenizer, conversations)
    ids = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"] for one in conversations]
    assert ids[0][:shared] == ids[1][:shared] and ids[0][shared] != ids[1][shared]
    assert tokenizer.decode(ids[0][:shared]).endswith("Reply as number 0.<|close|>\n<|open|>user\n")


def test_both_cases_are_answered_in_both_kinds_and_every_loop_is_announced(tmp_path, student, monkeypatch, capsys):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    for module in (train_step, generation):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "benchmarks.json")
    write_json(tmp_path / "benchmarks.json", {"threads": 2})
    monkeypatch.setattr(generation, "smollm2", lambda: student)
    monkeypatch.setattr("sys.argv", ["generation.py", "--rows", str(tmp_path / "rows.jsonl"), "--prompts", "3", "--tokens", "4"])
    generation.main()
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    found = results["evaluation"]
    assert results["threads"] == 2 and list(found) == ["nf4", "nf4_one_persona", "float32", "float32_one_persona"]
    for name, case in found.items():
        assert case["prompts"] == 3 and case["batch"] == 16 and case["tokens"] <= 12 and case["ratio"] == pytest.approx(case["seconds_one_at_a_time"] / case["seconds_batched"], rel=1e-4)
        assert case["same_text"] == 3 or name.startswith("nf4")
    assert found["nf4"]["shared_tokens"] < found["nf4_one_persona"]["shared_tokens"] < found["nf4_one_persona"]["prompt_tokens"] / 3
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["loading the student, nf4", "nf4", "  3 prompts in batches of 16"] and said[3].startswith("  3 prompts one at a time; the batches took ")
    assert sum(line.startswith("  3 prompts") for line in said) == 8
