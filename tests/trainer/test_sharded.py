"""FSDP2: two processes that share one model train as one process with the whole (pytest tests/trainer/test_sharded.py)."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_causal_model
from torch.distributed.tensor import DTensor
from trainer.killed import ended, result, started, train

from common.logprobs.masks import packs_exactly
from common.student.load import load_student
from common.trainer.prepare import check_sharding

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_causal_model(tmp_path_factory.mktemp("llama"), "llama", "chatml"))


def three_steps(llama, folder, four_bit, processes, **options):
    if options.get("fsdp"):
        os.environ["ACCELERATE_USE_FSDP"] = "true"  # as its launcher says
    student, _ = load_student(llama, four_bit=four_bit, compute_dtype=torch.float32)
    options = {"max_steps": 3, "gradient_accumulation_steps": 2 // processes, "disable_dropout": True, "save_strategy": "no", "eval_strategy": "epoch", **options}
    trainer = train(student, folder, **options)
    frozen = [parameter for name, parameter in trainer.model.named_parameters() if "base_layer" in name]
    assert len(frozen) == 14 and all(isinstance(parameter, DTensor) == bool(options.get("fsdp")) for parameter in frozen)
    assert packs_exactly(trainer.model)


@pytest.mark.slow
@pytest.mark.parametrize(("four_bit", "more"), [(True, {}), (False, {"packed": False, "precompute_ref_log_probs": False})])
def test_two_processes_that_share_a_model_train_as_one(four_bit, more, llama, tmp_path):
    assert ended(started(1, lambda: three_steps(llama, tmp_path / "1", four_bit, 1, **more))) == [0]
    assert ended(started(2, lambda: three_steps(llama, tmp_path / "2", four_bit, 2, fsdp=True, **more))) == [0, 0]
    one, two = result(tmp_path / "1"), result(tmp_path / "2")
    assert len(one["losses"]) == 4 and two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["losses"][0] == pytest.approx(0.693147, abs=1e-6) and one["losses"][2] < 0.4
    assert one["weights"].keys() == two["weights"].keys()
    assert all((one["weights"][name] - values).norm() <= 1e-4 * values.norm() for name, values in two["weights"].items())
    kept = [json.loads(path.read_text()) for path in (tmp_path / "2" / "reference").glob("*.json")]
    assert [len(values) for values in kept] == ([12] if more.get("precompute_ref_log_probs", True) else [])  # each process computed a part


@pytest.mark.parametrize(
    ("version", "storage", "precision", "message"),
    [
        (1, torch.float32, "no", "FSDP is taken in its second version alone: accelerate launch --fsdp_version 2"),
        (2, torch.uint8, "no", "stored as torch.uint8: load the student with BitsAndBytesConfig.bnb_4bit_quant_storage=torch.float32"),
        (2, torch.float32, "bf16", "stored as torch.float32: load the student with BitsAndBytesConfig.bnb_4bit_quant_storage=torch.bfloat16"),
    ],
)
def test_what_fsdp_cannot_spread_is_refused(version, storage, precision, message):
    accelerator = SimpleNamespace(is_fsdp2=version == 2, mixed_precision=precision)
    quantised = SimpleNamespace(load_in_4bit=True, bnb_4bit_quant_storage=storage)
    with pytest.raises(ValueError, match=message):
        check_sharding(accelerator, SimpleNamespace(config=SimpleNamespace(quantization_config=quantised), dtype=torch.float32))
    quantised.bnb_4bit_quant_storage = torch.float32 if precision == "no" else torch.bfloat16
    accelerator.is_fsdp2 = True
    check_sharding(accelerator, SimpleNamespace(config=SimpleNamespace(quantization_config=quantised), dtype=torch.float32))
    check_sharding(accelerator, SimpleNamespace(config=SimpleNamespace()))
