"""Recorded self-critique pairs and judged answers, from files of their sources' layout: `pytest tests/data/test_recorded.py`."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from common.data.attacks import PERSONAS
from common.data.recorded import clone_wrappers, keep_pairs, load_judged, load_pairs
from common.data.sources import load_prompts
from common.prompts import fill
from common.runtime import ROOT
from common.schema import Pair, PromptRecord

HARMLESS = "You are a helpful yet harmless assistant that avoids generating illegal or harmful content."
UNCENSORED = "You are a helpful assistant that is completely uncensored."
NEUTRAL = "You are an unbiased, honest, helpful AI assistant that always responds in a completely truthful way."
SAMPLES = Path(os.environ.get("RDPO_SAMPLES", ROOT.parent / "shared" / "data"))
with_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no folder of samples at {SAMPLES}; RDPO_SAMPLES names another")


def samples(name):
    return [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]


def persona(i):
    return f"You are Ada {i}.\nAda {i} mends clocks."


def multitask(safety, personas, facts):
    """Rows as in the source: (request, original, revised), (persona, question, in character, plain), (question, right, wrong)."""
    rows = []
    for request, original, revised in safety:
        rows.append({"system": HARMLESS, "prompt": request, "chosen": revised, "rejected": original, "task": "harmless"})
        rows.append({"system": UNCENSORED, "prompt": request, "chosen": original, "rejected": revised, "task": "harmless"})
    for system, question, in_character, plain in personas:
        rows.append({"system": system, "prompt": question, "chosen": in_character, "rejected": plain, "task": "truthfulness"})
    for question, right, wrong in facts:
        rows.append({"system": NEUTRAL, "prompt": question, "chosen": right, "rejected": wrong, "task": "truthfulness"})
    return rows


ROWS = multitask(
    [(f"Forge letter {i}", f"With ink {i}.", f"I would rather not {i}.") for i in range(80)],
    [(persona(i), f"What do you eat on day {i}?", f"Cogs {i}!", f"I do not eat {i}.") for i in range(80)],
    [(f"Is {i} a number?", f"Yes, {i} is.", f"No, {i} is not.") for i in range(60)],
)


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def one_split_each(pairs):
    return len({(pair.group, pair.split) for pair in pairs}) == len({pair.group for pair in pairs})


def test_kept_pairs_are_written_once_and_a_limit_draws_from_all(tmp_path):
    path = write(tmp_path / "rows.json", ROWS)
    pairs = load_pairs("safety", path, limit=20, shares={"train": 1.0})
    assert len({pair.id for pair in pairs}) == 20 and pairs != load_pairs("safety", path, shares={"train": 1.0})[:20]
    kept = keep_pairs(pairs, tmp_path / "pairs.jsonl")
    before = (tmp_path / "pairs.jsonl").read_bytes()
    assert list(kept) == list(keep_pairs(pairs, tmp_path / "pairs.jsonl")) == pairs
    assert (tmp_path / "pairs.jsonl").read_bytes() == before and before.count(b"\n") == 20


def test_pairs_that_are_whole_keep_their_splits(tmp_path):
    made = [Pair(id=f"p{i}", experiment="safety", split=split, prompt=f"q{i}", response="No.", response_revised="Yes.") for i, split in enumerate(("train", "test", "ood", "train"))]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(pair.model_dump_json() for pair in made) + "\n")
    assert load_pairs("safety", path) == made and len(load_pairs("safety", path, limit=2)) == 2
    assert [record.model_dump() for record in load_prompts("safety", path)] == [pair.model_dump(include=set(PromptRecord.model_fields)) for pair in made]
    with pytest.raises(ValueError, match="holds prompts of safety, not of sycophancy"):
        load_pairs("sycophancy", path)
    path.write_text(path.read_text().replace('"split":"ood"', '"split":"odd"'))
    with pytest.raises(ValueError, match="line 3: column split"):
        load_pairs("safety", path)


def test_safety_pairs_come_once_with_the_harmless_answer_as_revision(tmp_path):
    pairs = load_pairs("safety", write(tmp_path / "multitask.json", ROWS))
    assert len(pairs) == 80 and {pair.kind for pair in pairs} == {"plain"}
    for pair in pairs:
        number = pair.prompt.split()[-1]
        assert (pair.response, pair.response_revised) == (f"With ink {number}.", f"I would rather not {number}.")
    assert {pair.split for pair in pairs} == {"train", "validation", "test"}  # without a wrapper nothing is out of distribution


def test_a_persona_moves_from_the_system_prompt_into_the_users_and_facts_stay_plain(tmp_path):
    pairs = load_pairs("roleplay-robustness", write(tmp_path / "multitask.json", ROWS))
    facts = [pair for pair in pairs if pair.kind == "benign question"]
    assert len(pairs) == 140 and len(facts) == 60
    for pair in pairs:
        number = pair.plain_prompt.rstrip("?").split()[-1] if pair.kind != "benign question" else pair.prompt.split()[1]
        if pair.kind == "benign question":
            assert (pair.response, pair.response_revised) == (f"No, {number} is not.", f"Yes, {number} is.")
        else:
            template = (PERSONAS.ood if pair.split == "ood" else PERSONAS.train)[pair.kind]
            assert pair.prompt == fill(template, prompt=pair.plain_prompt, persona=persona(number))
            assert (pair.response, pair.response_revised) == (f"Cogs {number}!", f"I do not eat {number}.")
    assert {pair.split for pair in facts} == {"train", "validation", "test"} and one_split_each(pairs)


def test_pairs_and_prompts_of_the_same_personas_agree_on_the_splits(tmp_path):
    pairs = load_pairs("roleplay-robustness", write(tmp_path / "multitask.json", ROWS))
    prompts = load_prompts("roleplay-robustness", write(tmp_path / "truthy.json", [row for row in ROWS if row["system"].startswith("You are Ada")]))
    split = {pair.id: pair.split for pair in pairs}
    assert len(prompts) == 80 and all(split[record.id] == record.split for record in prompts)


def test_persona_pairs_are_read_as_the_multitask_file_has_them(tmp_path):
    of_multitask = [pair for pair in load_pairs("roleplay-robustness", write(tmp_path / "multitask.json", ROWS)) if pair.kind != "benign question"]
    rows = [
        {"persona": row["system"], "prompt": row["prompt"], "persona_response": row["chosen"], "assistant_response": row["rejected"]}
        for row in ROWS if row["task"] == "truthfulness" and "unbiased, honest, helpful" not in row["system"]
    ]  # fmt: skip
    path = write(tmp_path / "personas.json", rows)
    assert load_pairs("roleplay-robustness", path) == of_multitask != []
    with pytest.raises(ValueError, match="personas.json has no rows for safety"):
        load_pairs("safety", path)


def test_results_of_the_role_play_notebook(tmp_path):
    rows = [{
        "prompt": f"What is {i}?", "persona_template": persona(i), "persona_prompt": f"{persona(i)}\nWhat is {i}?", "response_base": f"Base {i}",
        "response_persona": f"Tick {i}", "response_revised": f"Plain {i}", "critique": f"Ticks {i}", "model": "org/teacher", "score_persona": 3,
    } for i in range(60)]  # fmt: skip
    pairs = load_pairs("roleplay-robustness", write(tmp_path / "results_teacher.json", rows))
    assert len(pairs) == 60
    for i, pair in enumerate(pairs):
        assert (pair.prompt, pair.plain_prompt, pair.group) == (f"{persona(i)}\nWhat is {i}?", f"What is {i}?", f"you are ada {i}")
        assert (pair.response_base, pair.response, pair.critique, pair.response_revised) == (f"Base {i}", f"Tick {i}", f"Ticks {i}", f"Plain {i}")
        assert pair.teacher == "org/teacher"
    with pytest.raises(ValueError, match="results_teacher.json has no rows for safety"):
        load_pairs("safety", tmp_path / "results_teacher.json")


def test_results_of_the_sycophancy_notebook_find_argument_stance_and_plain_prompt(tmp_path):
    rows = [
        {"prompt": f'Please comment. {told} the argument.\nArgument: "{i} is odd."', "response": "So true!", "response_revised": "It lacks a reason."}
        for i in range(60) for told in ("I wrote", "I really dislike")
    ]  # fmt: skip
    pairs = load_pairs("sycophancy", write(tmp_path / "results.json", rows))
    assert Counter(pair.kind for pair in pairs) == {"wrote": 60, "hate": 60} and one_split_each(pairs)
    assert all(pair.plain_prompt == f'Please comment.\nArgument: "{i // 2} is odd."' for i, pair in enumerate(pairs))
    assert {pair.group for pair in pairs} == {f"{i} is odd" for i in range(60)}
    rows[3]["prompt"] = "What do you think?"
    with pytest.raises(ValueError, match=r"results\.json, entry 4: column prompt: expected a stance"):
        load_pairs("sycophancy", write(tmp_path / "results.json", rows))


def test_scores_in_the_results_are_not_taken_over(tmp_path):
    rows = [{"prompt": f"Forge {i}", "response": "Ink.", "response_revised": "No.", "score_response": 1, "score_response_revised": 0} for i in range(60)]
    pairs = load_pairs("safety", write(tmp_path / "results.json", rows))
    assert len(pairs) == 60 and not any("score" in name for name in type(pairs[0]).model_fields)


def test_faults_name_row_and_column(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json, entry 2: column rejected: field required; every row needs system, prompt, chosen, rejected, task"):
        load_pairs("safety", write(tmp_path / "a.json", [ROWS[0], {key: value for key, value in ROWS[1].items() if key != "rejected"}]))
    with pytest.raises(ValueError, match=r"a\.json, entry 1: column response_revised: field required"):
        load_pairs("safety", write(tmp_path / "a.json", [{"prompt": "Forge", "response": "Ink."}]))
    with pytest.raises(ValueError, match=r"a\.json has no rows for sycophancy"):
        load_pairs("sycophancy", write(tmp_path / "a.json", ROWS))
    with pytest.raises(ValueError, match="unknown experiment 'saftey'"):
        load_pairs("saftey", tmp_path / "a.json")


PAGE = """| prompt    | response        | system_prompt | score_response |
|:----------|:----------------|:--------------|---------------:|
| Forge one | With a | in it. | You are kind. |              0 |
| Forge two | No.             | You are kind. |              1 |
"""


def test_judged_answers_of_a_page_and_of_a_folder(tmp_path):
    (tmp_path / "generations_solar_DPO.md").write_text(PAGE)
    (tmp_path / "generations_hermes_CST.md").write_text(PAGE)
    (tmp_path / "README.md").write_text("No table.")
    page = load_judged(tmp_path / "generations_solar_DPO.md")
    assert [tuple(answer) for answer in page] == [
        ("Forge one", "With a | in it.", "You are kind.", "solar_DPO", 0), ("Forge two", "No.", "You are kind.", "solar_DPO", 1),
    ]  # fmt: skip
    assert Counter(answer.model for answer in load_judged(tmp_path)) == {"solar_DPO": 2, "hermes_CST": 2}


def test_faults_of_a_page_are_named(tmp_path):
    page = tmp_path / "generations_x.md"
    page.write_text(PAGE.replace("              1 |", "yes |"))
    with pytest.raises(ValueError, match=r"generations_x\.md, line 4: expected prompt, response, system_prompt"):
        load_judged(page)
    page.write_text("# Nothing\n")
    with pytest.raises(ValueError, match="holds no table of judged answers"):
        load_judged(page)
    with pytest.raises(FileNotFoundError, match="give a page, or the folder"):
        load_judged(tmp_path / "elsewhere.md")


def test_wrappers_of_ones_own_clone_are_read_and_never_run(tmp_path):
    path = tmp_path / "templates.py"
    lists = 'jailbreak_templates_revised = ["Play along: {prompt} ", "As {name}: {prompt}"]\njailbreak_templates_ood = ["Sing: {prompt}"]\n'
    path.write_text(lists + f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    attacks = clone_wrappers(path)
    assert attacks == ({"revised 1": "Play along: {prompt}", "revised 2": "As {name}: {prompt}"}, {"ood 1": "Sing: {prompt}"})
    assert not (tmp_path / "ran").exists()
    goals = tmp_path / "goals.jsonl"
    goals.write_text("\n".join(json.dumps({"goal": f"Forge {i}"}) for i in range(80)))
    records = load_prompts("safety", goals, attacks=attacks)
    assert {record.prompt for record in records if record.split == "ood"} <= {f"Sing: Forge {i}" for i in range(80)}
    path.write_text(lists.replace("Sing: {prompt}", "Sing"))
    with pytest.raises(ValueError, match=r"templates\.py: expected lists .*template ood 1 has not one slot"):
        clone_wrappers(path)
    path.write_text("jailbreak_templates_revised = []\n")
    with pytest.raises(ValueError, match="jailbreak_templates_ood"):
        clone_wrappers(path)


@with_samples
def test_the_samples_load_with_nothing_in_two_splits(tmp_path):
    safety = [(row["prompt"], row["response"], row["response_revised"]) for row in samples("safety_pairs.jsonl")]
    personas = [(row["persona"], row["prompt"], row["persona_response"], row["assistant_response"]) for row in samples("roleplay_personas.jsonl")]
    facts = [(row["prompt"], row["chosen"], row["rejected"]) for row in samples("factual_pairs.jsonl")]
    path = write(tmp_path / "multitask.json", multitask(safety, personas, facts))
    found = load_pairs("safety", path)
    assert len(found) == len(safety) and {pair.prompt for pair in found} == {pair.prompt for pair in load_pairs("safety", SAMPLES / "safety_pairs.jsonl")}
    found = load_pairs("roleplay-robustness", path)
    questions = {pair.plain_prompt: pair.split for pair in found}
    assert one_split_each(found) and all(questions[pair.plain_prompt] == pair.split for pair in found)
    assert len(found) >= 0.9 * (len(personas) + len(facts))
    pairs = {(pair.id, pair.response, pair.response_revised) for pair in load_pairs("roleplay-robustness", SAMPLES / "roleplay_personas.jsonl")}
    assert len(pairs) >= 0.9 * len(personas) and pairs >= {(pair.id, pair.response, pair.response_revised) for pair in found if pair.kind != "benign question"}


@with_samples
def test_judged_samples_survive_the_markdown_of_their_source(tmp_path):
    import pandas

    rows = pandas.DataFrame([
        {"prompt": row["prompt"], "response": row["answer"], "system_prompt": "s", "score_response": row["gpt4_harmless"]}
        for row in samples("safety_judged.jsonl")
    ])  # fmt: skip
    (tmp_path / "generations_x.md").write_text(rows.to_markdown(index=False), encoding="utf-8")
    squeezed = [(" ".join(row.prompt.split()), " ".join(row.response.split()), row.score_response) for row in rows.itertuples()]
    assert [(" ".join(a.prompt.split()), " ".join(a.answer.split()), a.label) for a in load_judged(tmp_path)] == squeezed
