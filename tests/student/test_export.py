"""A merged folder counts once it says what its adapter says; GGUF and Modelfile beside it (pytest tests/student/test_export.py)."""

import errno
import shutil
from importlib.util import find_spec

import pytest
import torch
from peft import get_peft_model
from tiny_models import tiny_causal_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from common.runtime import resolve
from common.student import export, gguf
from common.student.adapters import lora_settings, save_adapter
from common.student.export import PROMPTS, export_merged
from common.student.gguf import FORMATS, converter_at, format_of, to_gguf, write_modelfile
from common.student.load import load_student

SMOLLM2 = resolve("runs/models/SmolLM2-135M-Instruct")
FLOAT32 = {"compute_dtype": torch.float32}


def adapted(folder, size=0.02, **load):
    torch.manual_seed(0)
    model, tokenizer = load_student(folder, **load)
    model = get_peft_model(model, lora_settings(4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * size
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_causal_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "adapter"
    save_adapter(*adapted(tiny, **FLOAT32), folder, "---\nbase_model: someone/tiny\nlibrary_name: peft\ntags: [lora, dpo]\n---\n# rdpo\n")
    return folder


def logits(model, tokenizer):
    """Of a prompt that no check of the export asks."""
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Reply with one word."}], add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids).logits.float()


def test_the_command_writes_a_folder_that_transformers_loads_with_equal_logits(tiny, adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    export.main([str(tiny), str(adapter), str(tmp_path / "merged")])
    printed, (model, tokenizer) = capsys.readouterr().out, adapted(tiny, **FLOAT32)
    merged, its = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, its), logits(model, tokenizer), atol=1e-4)
    assert "off the adapter's on 8 prompts" in printed and len(PROMPTS) == 8 and f"ollama create merged -f {tmp_path}/merged.Modelfile" in printed
    assert {path.suffix for path in (tmp_path / "merged").iterdir()} == {".safetensors", ".json", ".jinja", ".md"}
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base_model: someone/tiny" in card and "library_name: transformers" in card and "base_model_relation: finetune" in card and "lora" not in card.partition("---\n#")[0]
    assert not list(tmp_path.glob("*.part")) and f"{gguf.CONVERTER} {tmp_path}/merged --outfile {tmp_path}/merged.gguf --outtype f32" in printed
    with pytest.raises(SystemExit, match="export: .*merged is there already; give a new folder, or delete it"):
        export.main([str(tiny), str(adapter), str(tmp_path / "merged")])


def test_a_student_without_a_pad_token_takes_that_beside_the_adapter_or_the_one_given(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    base, adapter = tiny_causal_model(tmp_path / "base", pad=False), tmp_path / "adapter"
    save_adapter(*adapted(base, pad_token="<|end|>", **FLOAT32), adapter, "# card\n")
    export.main([str(base), str(adapter), str(tmp_path / "merged")])
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token == "<|end|>"
    (adapter / "tokenizer_config.json").unlink()
    with pytest.raises(SystemExit, match="export: .* has no pad token"):
        export.main([str(base), str(adapter), str(tmp_path / "again")])
    export.main([str(base), str(adapter), str(tmp_path / "again"), "--pad-token", "<|close|>"])
    assert AutoTokenizer.from_pretrained(tmp_path / "again").pad_token == "<|close|>"


def test_a_merge_that_lost_the_adapter_has_no_name(tiny, tmp_path, monkeypatch):
    model, tokenizer = adapted(tiny, **FLOAT32)
    unmerged = tiny_causal_model(tmp_path / "base")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda self, folder, save=PreTrainedModel.save_pretrained, **more: shutil.copytree(unmerged, folder, dirs_exist_ok=True) and save(self, tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="merged into float32, log-probabilities are .* nats off the adapter's, more than .*; nothing was written"):
        export_merged(model, tokenizer, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.parametrize("size, lost", [(0.0005, True), (0.05, False)])
def test_half_precision_must_keep_most_of_the_change(size, lost, tiny, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer(tmp_path / "half", "chatml")
    model, tokenizer = adapted(tmp_path / "half", size, four_bit=False, compute_dtype=torch.bfloat16)
    if lost:
        with pytest.raises(ValueError, match="merged into bfloat16, .*; nothing was written. Load the student in float32"):
            export_merged(model, tokenizer, tmp_path / "merged")
        assert not list(tmp_path.glob("merged*"))
    else:
        export_merged(model, tokenizer, tmp_path / "merged")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")])
def test_a_full_disk_leaves_nothing_under_the_name(raised, tiny, tmp_path, monkeypatch):
    model, tokenizer = adapted(tiny, **FLOAT32)

    def half(self, folder, **more):
        (folder / "model.safetensors").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(type(model.get_base_model()), "save_pretrained", half)
    with pytest.raises(OSError, match="the disk of .*merged is full, and nothing is left there; free some space"):
        export_merged(model, tokenizer, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_merged(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="merged needs 0.0 GB, and its disk has 0.0 GB left"):
        export_merged(*adapted(tiny, **FLOAT32), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, message", [
    (["another folder"], "holds no adapter_config.json; give the folder of a trained adapter"), (["adapter", "--converter", "none.py"], "--converter none.py: no such file"),
    (["adapter", "--strength", "-1"], "strength = -1.0: input should be greater than or equal to 0"), (["adapter", "--push", "mine"], "'mine' is no Hub repository; write OWNER/NAME"),
])  # fmt: skip
def test_the_command_refuses_in_a_sentence(arguments, message, tiny, adapter, tmp_path, capsys):
    name, *options = arguments
    with pytest.raises(SystemExit) as refused:
        export.main([str(tiny), str(adapter) if name == "adapter" else str(tiny), str(tmp_path / "merged"), *options])
    assert message in f"{refused.value} {capsys.readouterr().err}" and list(tmp_path.iterdir()) == []


CONVERTER = "import sys; folder, _, target, _, kind = sys.argv[1:]; open(target, 'w').write(kind); "


@pytest.mark.parametrize("behind, fails", [("", False), ("sys.exit('no such architecture')", True)])
def test_llama_cpp_s_converter_makes_the_gguf_whole_or_not_at_all(behind, fails, tiny, tmp_path):
    (tmp_path / "convert.py").write_text(CONVERTER + behind)
    folder = shutil.copytree(tiny, tmp_path / "merged")
    if fails:
        with pytest.raises(ValueError, match="convert.py made no GGUF of .*merged: no such architecture"):
            to_gguf(folder, converter_at(str(tmp_path / "convert.py")))
        assert not list(tmp_path.glob("*.gguf"))
    else:
        made = to_gguf(folder, converter_at(str(tmp_path / "convert.py")))
        assert made == tmp_path / "merged.gguf" and made.read_text() == "f32" and [path.name for path in tmp_path.glob("*.gguf")] == ["merged.gguf"]


@pytest.mark.skipif(not (shutil.which(gguf.CONVERTER) and find_spec("sentencepiece") and SMOLLM2.exists()), reason="needs SmolLM2-135M-Instruct, sentencepiece, and llama.cpp's convert_hf_to_gguf.py on the PATH")
def test_the_real_converter_s_gguf_holds_the_weights(tmp_path):
    from gguf import GGUFReader

    folder = shutil.copytree(SMOLLM2, tmp_path / "merged")
    tensors = {tensor.name: tensor for tensor in GGUFReader(to_gguf(folder, converter_at())).tensors}
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert tensors["blk.0.ffn_down.weight"].shape.tolist() == list(weights["model.layers.0.mlp.down_proj.weight"].shape)[::-1] and len(tensors) == 272


def written(opening, between, closing):
    """A chat template of one turn after the other."""
    turn = f"{{{{ '{opening}' + message['role'] + '{between}' + message['content'] + '{closing}' }}}}"
    return f"{{% for message in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{opening}assistant{between}' }}}}{{% endif %}}"


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.name)
def test_a_known_chat_format_is_ollama_s_template(known, tmp_path):
    template = written(*(part.replace("\n", "\\n") for part in known[1:]))
    tokenizer = tiny_tokenizer(tmp_path / "model", "{{ bos_token }}" + template)
    assert format_of(tokenizer) == (known, "")
    default = "{% if messages[0]['role'] != 'system' %}{% set messages = [{'role': 'system', 'content': 'Help.'}] + messages %}{% endif %}"
    tokenizer.chat_template = default + template
    assert format_of(tokenizer) == (known, "Help.")
    text = write_modelfile(tmp_path / "model", tokenizer).read_text()
    assert text.startswith("FROM ./model.gguf\n") and "PARAMETER temperature 0\n" in text and f'PARAMETER stop "{known.closing.strip()}"' in text and 'SYSTEM """Help."""' in text
    turn = f"{{{{- range .Messages }}}}{known.opening}{{{{ .Role }}}}{known.between}{{{{ .Content }}}}{known.closing}{{{{ end }}}}{known.opening}assistant{known.between}"
    assert f'TEMPLATE """{turn}"""' in text
    tokenizer.bos_token = known.opening  # as SmolLM2's
    assert format_of(tokenizer) == (known, "Help.")


@pytest.mark.parametrize("template", ["mistral", "gemma", "chatml"])
def test_another_chat_format_is_said_to_be_unknown(template, tmp_path):
    text = write_modelfile(tmp_path / "model", tiny_tokenizer(tmp_path, template)).read_text()
    assert "TEMPLATE" not in text and 'PARAMETER stop "<|end|>"' in text and "The chat template is none of ChatML, Llama 3, Phi 3, Zephyr" in text
