"""The QLoRA student: any Hugging Face causal model in NF4, with LoRA adapters trained on top of it.

One loader for every size: the miniature of a million parameters and a 7B model go through the same lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def best_compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware computes in it (CUDA, CPUs with AVX512-BF16), else float32."""
    from bitsandbytes.functional import has_avx512bf16

    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported() or has_avx512bf16()
    return torch.bfloat16 if fast else torch.float32


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
        ValueError: no chat template, no pad token, or a `pad_token` that the vocabulary lacks.

    On CPUs with AVX512-BF16, bitsandbytes repacks NF4 weights in place at the first forward in evaluation mode; gradients
    through repacked weights are wrong and the way back loses precision. Repacking is therefore switched off for
    every layer, whoever trains the model afterwards (the story and a reproduction are in LOG.md).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    name = str(name)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"no student folder at {name}")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    _check_tokenizer(tokenizer, name, pad_token)

    compute_dtype = compute_dtype or best_compute_dtype()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute_dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=revision,
        dtype=compute_dtype,
        quantization_config=quantization if four_bit else None,
        device_map={"": 0} if torch.cuda.is_available() else "cpu",
    )
    forbid_cpu_repacking(model)
    return model.eval(), tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, pad_token: str | None) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name} has no chat template; use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json")
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ValueError(f"pad_token {pad_token!r} is not in the vocabulary of {name}")
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {name} has no pad token; pass pad_token=, e.g. an unused special token or {tokenizer.eos_token!r}")


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
    """The base model with a trained adapter on it, frozen, ready to generate."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()
