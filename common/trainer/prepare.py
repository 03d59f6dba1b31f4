"""What is settled before `RDPOTrainer` trains: its arguments, models and checkpoint, and the rows of its data."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch import Tensor
from trl import is_conversational

from common.data.preference import CUT, EXPLORED, SCORES, WEIGHT
from common.logprobs.reference import switched_parts
from common.runtime import nearest
from common.student.load import check_prompt_is_prefix, emulates_bfloat16
from common.trainer.collator import EXPLORED_IDS
from common.trainer.config import RDPOConfig


def check_models(model: str | torch.nn.Module, ref_model: torch.nn.Module | None) -> None:
    """Raises ValueError for the folder of an adapter and for a reference that holds weights of the policy, TypeError for
    what is neither a name nor a loaded model."""
    if not isinstance(model, str | torch.nn.Module):
        raise TypeError(f"model must be a name, a folder or a loaded model, not {type(model).__name__}")
    if not isinstance(ref_model, torch.nn.Module | None):
        raise TypeError(
            f"ref_model must be a loaded model, not {type(ref_model).__name__}; AutoModelForCausalLM.from_pretrained(name) loads one"
        )
    if isinstance(model, torch.nn.Module) and ref_model is not None and ref_model is not model:
        if {id(weight) for weight in model.parameters()} & {id(weight) for weight in ref_model.parameters()}:
            raise ValueError(
                "ref_model shares weights with the model, so it would move with it; leave ref_model out, or load it again"
            )
    if (
        isinstance(model, str)
        and Path(model, "adapter_config.json").exists()
        and not Path(model, "config.json").exists()
    ):
        raise ValueError(
            f"{model} is an adapter: to go on from it, give PeftModel.from_pretrained(base, {model!r}, is_trainable=True)"
        )


def check_sharding(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Raises ValueError for FSDP in its first version, and for NF4 weights in a dtype that it cannot spread: it casts
    floating weights to the training's precision, and other ones stay whole."""
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP is taken in its second version alone: accelerate launch --fsdp_version 2")
    quantised = getattr(model.config, "quantization_config", None)
    if not getattr(quantised, "load_in_4bit", False):
        return
    storage, precision = quantised.bnb_4bit_quant_storage, accelerator.mixed_precision
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if storage != wanted if wanted else not storage.is_floating_point:
        raise ValueError(
            f"FSDP cannot spread NF4 weights that are stored as {storage}: load the student with "
            f"BitsAndBytesConfig(bnb_4bit_quant_storage={wanted or model.dtype})"
        )


def settled(args: RDPOConfig | None, model, train_dataset, eval_dataset) -> RDPOConfig:
    """The arguments with what the data decide: the method where none are given, and whether the reference is computed
    beforehand.

    Warns of bfloat16 on a CPU that emulates it. Raises TypeError for arguments of another class, ValueError for an empty
    dataset.
    """
    columns = columns_of(train_dataset)
    if isinstance(train_dataset, Dataset | IterableDataset) and not columns:
        raise ValueError("the train dataset is empty")
    if args is None:
        method = "rdpo" if set(SCORES) <= columns else "dpo"
        why = "scores" if method == "rdpo" else "no scores"
        warnings.warn(
            f"no args: trains with method={method!r}, since the data have {why}; RDPOConfig chooses another",
            stacklevel=3,
        )
        name = model if isinstance(model, str) else model.config.name_or_path
        args = RDPOConfig(f"{Path(name).name}-RDPO", method=method)
    if not isinstance(args, RDPOConfig):
        raise TypeError(
            f"args must be an RDPOConfig, not {type(args).__name__}: the same settings, and method= for the loss"
        )
    if args.bf16 and emulates_bfloat16():
        warnings.warn(
            "bf16=True, the default, on a CPU without units for bfloat16: a step takes many times as long as in float32; set bf16=False",
            stacklevel=3,
        )
    if args.precompute_ref_log_probs is None:
        args = copy.copy(args)  # the caller's stay undecided
        datasets = [train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])]
        streamed = any(isinstance(dataset, IterableDataset) for dataset in datasets)
        args.precompute_ref_log_probs = not (streamed or args.sync_ref_model or columns & {"image", "images"})
    return args


def columns_of(dataset) -> set[str]:
    return set(next(iter(dataset), {})) if isinstance(dataset, Dataset | IterableDataset) else set()


def check_answers(dataset: Dataset | IterableDataset, name: str) -> None:
    """Raises ValueError for a dataset without both answers, and for a row of a table in which a text is missing."""
    columns = columns_of(dataset)
    if columns and (lacking := [column for column in ("chosen", "rejected") if column not in columns]):
        raise ValueError(
            f"the {name} dataset has no column {lacking[0]!r}{nearest(lacking[0], columns)}; there are {', '.join(sorted(columns))}"
        )
    for column in ("prompt", "chosen", "rejected") if isinstance(dataset, Dataset) else ():
        for row, text in enumerate(dataset[column] if column in columns else ()):
            if text is None:
                raise ValueError(f"{column} of row {row} of the {name} dataset is missing; leave such pairs out")


def trainable(model, ref_model) -> list[tuple[torch.nn.Parameter, Tensor]]:
    """Trainable parameters of a ready PeftModel, and their values. Raises ValueError for one that TRL cannot go on
    from."""
    if ref_model is None and "default" not in model.peft_config:
        raise ValueError(
            f"the adapter to go on from must be named 'default', not {', '.join(map(repr, model.peft_config))}: load it without adapter_name="
        )
    if ref_model is None and (active := list(model.active_adapters)) != ["default"]:
        raise ValueError(
            f"training goes on from the adapter 'default' alone, and active are {', '.join(map(repr, active)) or 'none'}: call model.set_adapter('default'), or give ref_model"
        )
    parameters = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "the PeftModel has no trainable parameter; load it with PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    return parameters


def check_switched_off(model) -> None:
    """Raises ValueError for a PeftModel with a trainable parameter that stays on where its adapters are switched off: a
    reference that moves with the policy is none."""
    if model.active_peft_config.is_prompt_learning:
        return
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if stay := [name for name in names if not any(part in name for part in switched_parts(model))]:
        raise ValueError(
            f"{stay[0]} ({len(stay)} parameters in all) is trained beside the adapter and would move the reference too: "
            "leave bias='none' and the base model frozen, name whole modules in modules_to_save, or give ref_model"
        )


def check_begins_at_base(model) -> None:
    """Raises ValueError for a new LoRA adapter that changes the model before it is trained, as PiSSA's, OLoRA's and
    random ones do: with it switched off the model is another than the one that training begins with."""
    if model.active_peft_config.is_prompt_learning:
        return
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and parameter.requires_grad and parameter.any():
            raise ValueError(
                f"{name} is not 0 before training, so the model without its adapter is not the one that training begins with "
                f"(init_lora_weights = {getattr(model.active_peft_config, 'init_lora_weights', None)!r}); make the adapter first, "
                "with get_peft_model, or give ref_model"
            )


def complete_reference_copy(model, begun: list[tuple[torch.nn.Parameter, Tensor]]) -> None:
    """Copies what TRL's copy of the adapter `default` to `ref` leaves fresh: parameters whose names end in the
    adapter's, such as those of embeddings and IA3. Raises ValueError for one without a twin.

    begun: parameters and their values before TRL rounded them."""
    parameters, before = dict(model.named_parameters()), {id(parameter): values for parameter, values in begun}
    for name, parameter in parameters.items():
        if name.endswith(".default"):
            if (twin := parameters.get(name.removesuffix("default") + "ref")) is None:
                raise ValueError(f"{name} has no copy for the reference; give ref_model")
            twin.data = before.get(id(parameter), parameter.data).to(parameter.device, copy=True)


def explored_ids(row: dict[str, Any], number: int, tokenizer, name: str) -> dict[str, list[int]]:
    """`explored_ids`, what a row's explored answer adds to the tokens of the prompt: its end, too, unless it was cut
    off; [] for none. Raises ValueError where the prompt's tokens do not open those of both."""
    if not is_conversational(row):
        raise ValueError(
            f"the column {EXPLORED} of the {name} dataset needs conversations: prompt, chosen and rejected as messages"
        )
    if not row[EXPLORED]:
        return {EXPLORED_IDS: []}
    template = _template_of(row)
    ids = tokenizer.apply_chat_template(
        [*row["prompt"], *row[EXPLORED]], continue_final_message=bool(row.get(CUT)), return_dict=True, **template
    )["input_ids"]
    if ids[: len(row["prompt_ids"])] != row["prompt_ids"]:
        where = f"{EXPLORED} completion of {_place(row, number, name)}"
        check_prompt_is_prefix(tokenizer, row["prompt"], row[EXPLORED], where, **template)
    return {EXPLORED_IDS: ids[len(row["prompt_ids"]) :]}


def checked(row: dict[str, Any], number: int, tokenizer, name: str) -> dict[str, Any]:
    """The row as it is. Raises ValueError for an answer without tokens, a weight that is none, and for a prompt that TRL
    has cut, with a warning that is easily missed."""
    where = _place(row, number, name)
    for side in ("chosen", "rejected"):
        if not len(row[f"{side}_ids"]):
            raise ValueError(
                f"the {side} completion of row {number} of the {name} dataset has no tokens; leave such pairs out"
            )
    if WEIGHT in row and not (isinstance(row[WEIGHT], int | float) and 0 <= row[WEIGHT] < math.inf):
        raise ValueError(
            f"the weight of row {number} of the {name} dataset is {row[WEIGHT]!r}; weights are finite numbers, 0 or more"
        )
    if is_conversational(row):
        template = _template_of(row)
        if len(row["prompt_ids"]) < len(
            tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True, **template)[
                "input_ids"
            ]
        ):
            for side in ("chosen", "rejected"):
                check_prompt_is_prefix(tokenizer, row["prompt"], row[side], f"{side} completion of {where}", **template)
    return row


def _place(row: dict[str, Any], number: int, name: str) -> str:
    return f"pair {row.get('id', number)}" + (f" of the {name} dataset" if name != "train" else "")


def _template_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a conversation's template is rendered with besides its messages."""
    tools = row.get("tools")
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(row.get("chat_template_kwargs") or {}),
    }


def last_whole_checkpoint(folder: str) -> str:
    """The newest of `whole_checkpoints`. Raises ValueError for none."""
    for path in whole_checkpoints(folder):
        return str(path)
    raise ValueError(f"no whole checkpoint in {folder} to resume from; train() begins anew")


def whole_checkpoints(folder: str | Path) -> Iterator[Path]:
    """The checkpoints that were written to their end, which is where the trainer's state is, from the newest on."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):  # killed while it was written
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            yield path
