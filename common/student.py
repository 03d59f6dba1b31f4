"""The QLoRA student: any Hugging Face causal model in NF4, with LoRA adapters trained on top of it.

One loader for every size: the miniature of a million parameters and a 7B model go through the same lines.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import sys
import timeit
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from common.schema import Message

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLD_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] -%}"
    "{%- endif %}"
)
"""Set before a chat template without a system role: the system text opens the first user turn."""


@cache
def best_compute_dtype() -> torch.dtype:
    """bfloat16 on a GPU that computes in it, and on a CPU where a product of matrices takes less than two thirds of the time that it takes in
    float32, which is measured: AVX512-BF16 alone may be twice as slow. Else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _seconds_of_product(torch.bfloat16) < _seconds_of_product(torch.float32) * 2 / 3 else torch.float32


def _seconds_of_product(dtype: torch.dtype) -> float:
    """The fastest of some, which other work on the machine disturbs least."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=10))


def load_student(
    name: str | Path,
    *,
    revision: str | None = None,
    four_bit: bool = True,
    compute_dtype: torch.dtype | None = None,
    pad_token: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model in NF4 (double quantisation) without adapters, and its tokenizer.

    Args:
        name: folder or Hub name.
        revision: commit of a Hub model; pin it for anything that is reported.
        four_bit: False loads in `compute_dtype` without quantisation.
        compute_dtype: of the matrix products and of everything not quantised; None takes `best_compute_dtype()`.
        pad_token: an existing token to pad with, for tokenizers that have none.

    Raises:
        FileNotFoundError: `name` looks like a path and no folder is there.
        ValueError: no chat template, one that writes a prompt in two ways (see `check_prompt_is_prefix`), no pad token, or
            a `pad_token` that the vocabulary lacks.

    A chat template that refuses or drops a system prompt (Gemma's and early Mistral's) is extended so that the system text
    opens the first user turn, with a warning. The tokenizer that is returned, and saved beside adapters, has it that way.

    On CPUs with AVX512-BF16, bitsandbytes repacks NF4 weights in place at the first forward in evaluation mode; gradients
    through repacked weights are wrong and the way back loses precision. Repacking is therefore switched off for
    every layer, whoever trains the model afterwards (the story and a reproduction are in LOG.md).
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    name = str(name)
    tokenizer = load_tokenizer(name, revision=revision, pad_token=pad_token)
    compute_dtype = compute_dtype or best_compute_dtype()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute_dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=revision,
        dtype=compute_dtype,
        quantization_config=quantization if four_bit else None,
        device_map={"": own_device()},
    )
    forbid_cpu_repacking(model)
    if head := model.get_output_embeddings():
        head.register_forward_pre_hook(_contiguous)
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path, *, revision: str | None = None, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_student` returns, and its errors, without the weights."""
    from transformers import AutoTokenizer

    name = str(name)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"no student folder at {name}")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    _check_tokenizer(tokenizer, name, pad_token)
    return tokenizer


def _contiguous(head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The last states of a batch are a slice, for which torch multiplies with one copy of a frozen head a row: 1.7 GB for 32 answers of
    SmolLM2-135M."""
    return (inputs[0].contiguous(),)


def release_memory() -> None:
    """Collects garbage and gives what was freed back to the system. glibc's allocator keeps it otherwise: after a dozen trainings of
    SmolLM2-135M a process held 8 GB, of which it used one."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # not in every C library


def own_device() -> str | int:
    """The GPU of this process, by the number that a launcher of several processes gave it; "cpu" without one."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, pad_token: str | None) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name} has no chat template; use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json")
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ValueError(f"pad_token {pad_token!r} is not in the vocabulary of {name}")
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {name} has no pad token; pass pad_token=, e.g. an unused special token or {tokenizer.eos_token!r}")
    if not _shows_system_prompt(tokenizer):
        warnings.warn(f"the chat template of {name} has no system role: system prompts will open the first user turn", stacklevel=3)
        tokenizer.chat_template = FOLD_SYSTEM + tokenizer.chat_template
    check_prompt_is_prefix(tokenizer, [{"role": "user", "content": "Hello."}], "Hello to you.", f"the chat template of {name}")


def _shows_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    try:
        return "Be brief." in tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return False


def check_prompt_is_prefix(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answer: str | list[Message], where: str, **template: Any) -> None:
    """Raises ValueError, naming `where`, unless the tokens a student is prompted with also open the tokens it is trained on.

    answer: its text or its messages. template: tools and what else the chat template is rendered with.

    Otherwise the template opens the answer in one way when it is asked for and in another when it is given, or the last
    token of the prompt merges with white space that the answer begins with; the student would be trained on a context that
    it never meets.
    """
    answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, **template)["input_ids"]
    given = tokenizer.apply_chat_template([*prompt, *answer], return_dict=True, **template)["input_ids"]
    if given[: len(asked)] != asked:
        same = next(i for i, (a, b) in enumerate(zip([*asked, None], [*given, None])) if a != b)
        raise ValueError(
            f"{where}: the prompt's tokens are no prefix of prompt and answer; after the same {same} tokens the prompt goes on with "
            f"{tokenizer.decode(asked[same:])!r} and the two together with {tokenizer.decode(given[same : same + 5])!r}. "
            "Strip the answer, or set a `chat_template` that opens an answer the same way with and without add_generation_prompt"
        )


def forbid_cpu_repacking(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking NF4 weights for CPU inference (see `load_student`). No effect elsewhere."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def adapters_to_float32(model: torch.nn.Module) -> None:
    """Trainable weights in float32: TRL casts QLoRA adapters to bfloat16, in which small updates round away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def learned_positions(model: torch.nn.Module) -> int | None:
    """How many positions a model has that learned one vector for each (GPT-2, OPT); None for others, which have no such end."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding) and module is not model.get_input_embeddings())
    return limit if limit and any(limit <= table.num_embeddings <= limit + 2 for table in tables) else None  # OPT's has two more


def lora_settings(rank: int = 16, alpha: int | None = None, dropout: float = 0.0, target_modules: str | list[str] = "all-linear") -> LoraConfig:
    """LoRA on every linear layer of the blocks.

    rank 16, alpha = 2 * rank and no dropout are ours (TRL switches dropout off while training with DPO anyway). The
    author's closest published code has rank 24, alpha 48, dropout 0.05 on the same layers (configurable-safety-tuning,
    `cst_train.py`); the paper's own settings are not known to us.
    """
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, bias="none", target_modules=target_modules
    )


def save_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, card: str) -> None:
    """Writes a PEFT folder with tokenizer and model card: safetensors, JSON and Markdown only, nothing pickled."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Path(folder, "README.md").write_text(card, encoding="utf-8")


def load_adapter(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """The base model with a trained adapter on it, frozen, ready to generate. Warns where its card names another base model."""
    from peft import PeftConfig, PeftModel

    trained_on, name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path, base.name_or_path
    if trained_on and Path(trained_on).name != Path(name).name:
        warnings.warn(f"the adapter in {folder} was trained on {trained_on}, and the student is {name}", stacklevel=2)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def export_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Writes an ordinary model folder, adapter merged, that needs neither PEFT nor bitsandbytes: safetensors and JSON only.

    The base is dequantised first, so the folder holds the weights that the adapter was trained on, in the dtype that the
    student computed in; merging into NF4 would round once more. `model` stays as it is; memory for the whole model in that
    dtype is needed besides. Load the folder unquantised: the weights of an NF4 student lie on NF4's grid, an adapter moves
    them by far less than its step, and rounding to NF4 again takes the change away (LOG.md).
    """
    from peft import PeftModel

    with TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        base = copy.deepcopy(model).unload()
        if getattr(base, "is_quantized", False):
            base = base.dequantize()
        merged = PeftModel.from_pretrained(base, scratch).merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
