"""Models and adapters that exist already: merged folders with their own weights, adapters on their own base, nothing of NaN (pytest tests/student/test_merged.py)."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import tiny_causal_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from common.evaluation.card import card
from common.evaluation.judged import HeldOut, JudgedEvaluator
from common.evaluation.result import Result
from common.judge.llm import LLMJudge
from common.judge.local import YesNoJudge
from common.methods import TrainSettings, check_methods, existing_place, existing_strength
from common.notebook.judges import open_judge
from common.notebook.parameters import RewardScore
from common.prompts import PROMPTS
from common.runtime import resolve
from common.schema import Metric
from common.storage import read_lines
from common.student.adapters import load_adapter, lora_settings, save_adapter
from common.student.export import export_merged
from common.student.identity import identity
from common.student.load import load_as_it_is, load_student, merged_into, precision
from common.training.comparison import SR_BEFORE, Experiment
from common.training.train import train

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
FLOAT32 = {"compute_dtype": torch.float32}


def logprobs(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float().log_softmax(-1)


def gap(a, b):
    return float((a - b).abs().mean())


def with_small_adapter(model, size=0.002):
    """An adapter that moves the model as little as a short training does: far less than NF4's step."""
    torch.manual_seed(0)
    model = get_peft_model(model, lora_settings(4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * size
    return model.eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_causal_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def merged(tiny, tmp_path_factory):
    """(folder of the merged model, log-probabilities of the base in NF4, of the adapter on it)."""
    folder = tmp_path_factory.mktemp("merged")
    model, tokenizer = load_student(tiny, **FLOAT32)
    base, adapted = logprobs(model), with_small_adapter(model)
    export_merged(adapted, tokenizer, folder)
    return folder, base, logprobs(adapted)


def test_a_merged_model_says_what_its_adapter_says_and_its_row_is_not_rounded_again(merged, tmp_path):
    folder, base, adapted = merged
    row = train(f"model:{folder}", "some/name", [], TrainSettings(), tmp_path, revision="of another model", **FLOAT32)
    assert gap(logprobs(row.model), adapted) < 0.001 * gap(adapted, base) and row.precision == "float32"
    assert gap(logprobs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)), adapted) < 0.001 * gap(adapted, base)
    with pytest.warns(UserWarning, match="was merged into weights on the grid of NF4; loaded in NF4 it is about the base again"):
        rounded, _ = load_student(folder, **FLOAT32)
    assert gap(logprobs(rounded), adapted) > 0.5 * gap(adapted, base) and precision(rounded) == "NF4, computed in float32"


def test_a_student_that_computes_in_bfloat16_is_exported_without_rounding_its_change_away(tiny, tmp_path):
    load = lambda: load_student(tiny, compute_dtype=torch.bfloat16)  # noqa: E731
    for name, size in (("merged", 0.002), ("base", 0.0)):
        export_merged(with_small_adapter(load()[0], size), load()[1], tmp_path / name)
    save_adapter(with_small_adapter(load()[0]), load()[1], tmp_path / "adapter", "")
    base, merged = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "merged"))
    before = logprobs(base)
    adapted = logprobs(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    assert precision(merged) == "float32" and gap(logprobs(merged), adapted) < 0.01 * gap(adapted, before)


@pytest.mark.parametrize("own, fast, expected", [("bfloat16", "bfloat16", "bfloat16"), ("bfloat16", "float32", "float32"), ("float32", "bfloat16", "float32")])
def test_a_model_as_it_is_computes_in_its_own_precision_or_in_one_that_holds_it(own, fast, expected, tiny, tmp_path, monkeypatch):
    AutoModelForCausalLM.from_pretrained(tiny, dtype=getattr(torch, own)).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path, "chatml")
    monkeypatch.setattr("common.student.load.best_compute_dtype", lambda: getattr(torch, fast))
    assert precision(load_as_it_is(tmp_path)[0]) == expected


def test_a_local_judge_that_was_merged_into_nf4_weights_is_not_rounded_again(merged, tiny, tmp_path):
    given = {"output": str(tmp_path), "experiment": "safety", "max_new_tokens": 8}
    assert merged_into(merged[0]) == "NF4" and merged_into(tiny) == merged_into("some/name") == ""
    ours, ordinary = (open_judge(RewardScore(judge=f"local:{folder}", **given)) for folder in (merged[0], tiny))
    assert ours.name == f"{merged[0].name} {identity(merged[0])} unquantised" and not getattr(ours.chat.chat.model, "is_quantized", False)
    assert ordinary.name == f"{tiny.name} {identity(tiny)} in NF4" and ordinary.chat.chat.model.is_quantized


def test_a_merged_model_of_the_hub_is_not_rounded_again(merged, tmp_path, monkeypatch):
    for module in ("identity", "load"):
        monkeypatch.setattr(f"common.student.{module}.commit_of", lambda name, revision=None: "c" * 40)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, revision: merged[0] / file if (name, revision) == ("some/name", "c" * 40) else pytest.fail("another commit"))
    monkeypatch.setattr("common.notebook.chats.load_as_it_is", lambda name, revision: load_as_it_is(merged[0]))
    judge = open_judge(RewardScore(judge="local:some/name@v1", output=str(tmp_path), experiment="safety"))
    assert judge.name == f"some/name@{'c' * 40} unquantised"


def test_a_local_judge_is_another_when_its_folder_has_changed(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "judge")
    monkeypatch.chdir(tmp_path)
    name = lambda: YesNoJudge("judge", "Good?", dtype=torch.float32).name  # noqa: E731
    before = name()
    assert before == f"yes/no judge {identity(tmp_path / 'judge')}: Good?" == YesNoJudge(tmp_path / "judge", "Good?", dtype=torch.float32).name
    (tmp_path / "judge" / "chat_template.jinja").write_text((tmp_path / "judge" / "chat_template.jinja").read_text().replace("<|open|>", "<|open|><|open|>"))
    assert name() != before


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model, tokenizer = load_student(tiny, **FLOAT32)
    save_adapter(with_small_adapter(model), tokenizer, folder, "# card\n")
    return folder


def test_an_adapter_of_other_weights_under_the_same_name_is_refused(adapter, tiny, tmp_path):
    assert set(json.loads((adapter / "trained_on.json").read_text())) == {"base", "weights"}
    other = shutil.copytree(tiny, tmp_path / tiny.name)
    assert load_adapter(load_student(other, **FLOAT32)[0], adapter)  # the same weights elsewhere
    model = AutoModelForCausalLM.from_pretrained(other)
    model.get_input_embeddings().weight.data[0] += 1
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="was trained on .*, and the student is .*, whose weights are others; give it the student that it was trained on"):
        load_adapter(load_student(other, **FLOAT32)[0], adapter)


@pytest.mark.parametrize("layers, width", [(1, 64), (2, 128)])
def test_an_adapter_that_does_not_fit_is_refused_in_a_sentence(layers, width, adapter, tmp_path):
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    (foreign / "trained_on.json").unlink()  # as another program writes adapters
    other = tiny_causal_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": layers, "hidden_size": width}
    config.pop("layer_types", None)
    AutoModelForCausalLM.from_config(type(AutoModelForCausalLM.from_pretrained(other).config)(**config)).save_pretrained(other)
    with pytest.warns(UserWarning, match="was trained on"), pytest.raises(ValueError, match="which it does not fit .*give it the student that it was trained on"):
        load_adapter(load_student(other, **FLOAT32)[0], foreign)


def test_an_adapter_speaks_with_the_tokenizer_beside_it(adapter, tiny, tmp_path):
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "chat_template.jinja").write_text((own / "chat_template.jinja").read_text().replace("<|open|>", "<|begin|><|open|>"))
    row = train(f"adapter:{own}", tiny, [], TrainSettings(), tmp_path, **FLOAT32)
    assert row.tokenizer.chat_template == (own / "chat_template.jinja").read_text() and row.precision == "NF4, computed in float32"
    row.tokenizer.add_tokens(["<new>", "<newer>"] + [f"<{i}>" for i in range(300)])
    row.tokenizer.save_pretrained(own)
    with pytest.raises(ValueError, match="the tokenizer beside the adapter in .* has .* tokens, and the student .* an embedding for"):
        train(f"adapter:{own}", tiny, [], TrainSettings(), tmp_path, **FLOAT32)


def test_what_holds_nan_is_neither_kept_nor_exported_nor_loaded(tiny, adapter, tmp_path):
    model, tokenizer = load_student(tiny, **FLOAT32)
    broken = with_small_adapter(model, float("nan"))
    with pytest.raises(ValueError, match="the trained adapter holds NaN or infinity in .* weights .*; train again with a lower learning rate"):
        save_adapter(broken, tokenizer, tmp_path / "adapter", "")
    with pytest.raises(ValueError, match="the merged model holds NaN or infinity"):
        export_merged(broken, tokenizer, tmp_path / "merged")
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "merged").exists()
    broken.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="the adapter in .*saved holds NaN or infinity"):
        load_adapter(load_student(tiny, **FLOAT32)[0], tmp_path / "saved")


def test_a_metric_that_is_no_number_is_no_result():
    metric = Metric(experiment="safety", method="dpo", seed=1, metric="kl", value=float("nan"), n=3, low=0.0, high=1.0)
    with pytest.raises(ValueError, match="dpo, seed 1: kl = nan is no measurement"):
        Result("dpo", 1, "", [metric])
    assert Result("dpo", 1, "", [metric.model_copy(update={"value": 1.0, "low": float("nan")})])  # one value has no interval


def test_rows_that_exist_are_checked_before_anything_is_loaded(adapter, tmp_path):
    with pytest.raises(ValueError, match="holds an adapter and no model; write adapter: in place of model:"):
        check_methods([f"model:{adapter}"])
    for row in (f"model:{tmp_path}/nothing", f"adapter:{tmp_path}/nothing", "model:./nothing"):
        with pytest.raises(FileNotFoundError, match="nothing, from .*; give a folder that is there"):
            check_methods([row])
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in some/name"):
        check_methods(["adapter:some/name"])


@pytest.fixture
def experiment(tiny, tmp_path):
    def make(judge=SimpleNamespace(name="stub", scale=(0, 1)), student=tiny, **more):
        record = HeldOut(id="a", experiment="safety", split="test", prompt="Hello!")
        return Experiment(student, [], JudgedEvaluator([record], "safety", judge, None), tmp_path, TrainSettings(), evaluate_on="test", **more)

    return make


def test_a_row_of_what_exists_is_another_when_its_files_have_changed(experiment, adapter, tiny, tmp_path):
    for kind, folder in (("adapter", adapter), ("model", tiny)):
        copy = shutil.copytree(folder, tmp_path / kind)
        before = experiment().made_of(f"{kind}:{copy}", 0)
        assert before == experiment().made_of(f"{kind}:{copy}/", 0) == experiment().made_of(f"{kind}:{folder}", 0)
        (copy / "chat_template.jinja").write_text("{{ messages }}")
        assert experiment().made_of(f"{kind}:{copy}", 0) != before


def test_rows_of_sr_are_of_the_texts_that_they_were_asked_with(experiment, monkeypatch):
    mark = lambda row: experiment().made_of(row, 0)  # noqa: E731
    sr, base = mark("sr"), mark("base")
    other = PROMPTS["safety"].model_copy(update={"revision_request": "Write it again."})
    monkeypatch.setitem(PROMPTS, "safety", other)
    assert mark("sr") != sr and mark("base") == base and other.hash not in SR_BEFORE


def test_kept_rows_of_sr_name_their_texts():
    kept = [Result.of(content) for path in resolve("results/small").glob("*/finished.jsonl") for _, content in read_lines(path) if content["method"] == "sr"]
    assert len(kept) >= 4 and all(result.prompts for result in kept)
    assert {result.prompts for result in kept if result.made_of in ("115dc9ed8975", "8b681012249c", "6af422be79cc")} == set(SR_BEFORE)


def test_a_row_is_another_when_its_judge_is_asked_with_other_texts(experiment):
    chat = SimpleNamespace(name="a judge")
    asked = PROMPTS["safety"], PROMPTS["safety"].model_copy(update={"judge_template": "{prompt} {answer} {verdict_format}"})
    first, second = (experiment(LLMJudge(chat, prompts)).made_of("base", 0) for prompts in asked)
    assert first != second == experiment(LLMJudge(chat, asked[1])).made_of("base", 0)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A saved adapter that moves the model well."""
    folder = tmp_path_factory.mktemp("dial") / "adapter"
    model, tokenizer = load_student(tiny, **FLOAT32)
    save_adapter(with_small_adapter(model, 0.1), tokenizer, folder, "")
    return folder


def layer_of(model):
    """Output of one adapted layer for a fixed input, which an adapter changes in proportion to its strength."""
    torch.manual_seed(0)
    layer = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
    with torch.no_grad():
        return layer(torch.randn(3, layer.in_features))


def test_the_strength_of_an_adapter_is_how_many_times_it_counts(tiny, saved, tmp_path):
    base_output = layer_of(load_student(tiny, **FLOAT32)[0])
    outputs = {strength: layer_of(load_adapter(load_student(tiny, **FLOAT32)[0], saved, strength)) for strength in (0.0, 0.25, 1.0, 2.0)}
    whole = outputs[1.0] - base_output
    for strength, output in outputs.items():
        torch.testing.assert_close(output - base_output, strength * whole, rtol=1e-4, atol=1e-6)
    row = train(f"adapter:{saved}@0.25", tiny, [], TrainSettings(), tmp_path, **FLOAT32)
    torch.testing.assert_close(layer_of(row.model), outputs[0.25])


def test_a_strength_stays_with_what_is_saved_and_merged(tiny, saved, tmp_path):
    half = load_adapter(load_student(tiny, **FLOAT32)[0], saved, 0.5)
    said, tokenizer = logprobs(half), load_student(tiny, **FLOAT32)[1]
    save_adapter(half, tokenizer, tmp_path / "half", "")
    assert torch.equal(logprobs(load_adapter(load_student(tiny, **FLOAT32)[0], tmp_path / "half")), said)
    export_merged(half, tokenizer, tmp_path / "merged")
    export_merged(load_adapter(load_student(tiny, **FLOAT32)[0], saved), tokenizer, tmp_path / "scaled", scale=0.5)
    for folder in ("merged", "scaled"):
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
        torch.testing.assert_close(logprobs(merged), said, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [-0.5, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(strength, tiny, saved, tmp_path):
    with pytest.raises(ValueError, match="the strength of an adapter is 0 or more"):
        load_adapter(load_student(tiny, **FLOAT32)[0], saved, strength)
    model, tokenizer = load_student(tiny, **FLOAT32)
    with pytest.raises(ValueError, match="the strength of an adapter is 0 or more"):
        export_merged(with_small_adapter(model), tokenizer, tmp_path / "out", scale=strength)
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_a_scale_has_one_strength(tiny, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "dora")
    config = json.loads((tmp_path / "dora/adapter_config.json").read_text())
    (tmp_path / "dora/adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ValueError, match="is no plain LoRA, so it has no scale that could be turned to 0.5"):
        load_adapter(load_student(tiny, **FLOAT32)[0], tmp_path / "dora", 0.5)


def test_the_strength_is_written_behind_the_folder_and_is_part_of_the_row(tiny, saved, tmp_path):
    assert existing_strength(f"adapter:{saved}@0.5") == existing_strength(f"adapter:{saved}@.5") == 0.5 and existing_strength(f"adapter:{saved}") == 1.0
    assert existing_place(f"adapter:{saved}@0.5") == saved and existing_strength("model:some/name@0.5") == 1.0
    named = tmp_path / "run@2"
    shutil.copytree(saved, named)
    assert existing_place(f"adapter:{named}") == named and existing_strength(f"adapter:{named}") == 1.0  # that is its name
    check_methods([f"adapter:{saved}@0.5"])
    with pytest.raises(FileNotFoundError, match="no student folder at .*/nothing, "):
        check_methods([f"adapter:{tmp_path}/nothing@0.5"])
    evaluator = JudgedEvaluator([HeldOut(id="t", experiment="safety", split="test", prompt="Hello?")], "safety", LLMJudge(SimpleNamespace(name="stub"), PROMPTS["safety"]), None)
    run = Experiment(tiny, [], evaluator, tmp_path, TrainSettings(), "test", **FLOAT32)
    assert len({run.made_of(f"adapter:{saved}{behind}", 0) for behind in ("", "@0.5", "@0.25")}) == 3
    assert run.made_of(f"adapter:{saved}", 0) == run.made_of(f"adapter:{saved}@1", 0)


def test_the_card_tells_the_dial():
    metric = Metric(experiment="safety", method="dpo", seed=0, metric="aligned", value=0.5, low=0.4, high=0.6, n=10)
    points = [{"lambda": 0.0, "utility": 1.0, "safety": 0.2}, {"lambda": 0.5, "utility": 0.97, "safety": 0.6}, {"lambda": 1.0, "utility": 0.5, "safety": 0.9}]
    told = card("student", TrainSettings(), Result("dpo", 0, "", [metric], frontier=points, matched_lambda=0.5))
    assert "0.5 is the best of those that keep 95 %" in told and "- strength 0.5: 0.600, utility 0.970" in told and "strength=0.5" in told
    assert "95 %" not in card("student", TrainSettings(), Result("dpo", 0, "", [metric]))
