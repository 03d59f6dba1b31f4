"""A small Llama, pre-trained from scratch on a generated corpus and saved as an ordinary Hugging Face folder.

No weights can be assumed on a fresh machine without network, so the laboratory makes its own: a byte-level BPE
tokenizer with a chat template, and a model of about a million parameters that behaves badly at a known rate. From there
on nothing is special: `load_student` loads the folder in NF4 like any 7B model.

The folder is cached under a hash of everything that made it: settings, what the world says, the source of this module
and of `muon.py`, and the versions of torch, transformers and tokenizers.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from common.schema import fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the pre-trained model besides the corpus generator itself."""

    layers: int = 2
    width: int = 192
    heads: int = 6
    mlp_width: int = 512
    vocabulary: int = 1_200
    documents: int = 11_000
    batch: int = 24
    matrix_learning_rate: float = 0.03  # Muon, for the matrices of the blocks
    other_learning_rate: float = 6e-3  # AdamW, for embeddings and norms
    seed: int = 0


MICRO = Recipe(width=64, heads=2, mlp_width=128, documents=3_000)
"""A world of a few seconds for tests of the machinery; it answers badly."""


def pretrained_student(world: ModuleType, recipe: Recipe = Recipe(), cache: str | Path = "runs/models") -> Path:
    """The folder of the pre-trained model, made now if this exact recipe was never made before.

    Args:
        world: a module with `document(rng) -> messages`, e.g. `common.miniature.worlds.safety`.
        recipe: sizes and seed.
        cache: where folders are kept, one per hash.
    """
    folder = Path(cache) / f"{world.__name__.rsplit('.', 1)[-1]}-{_hash(world, recipe)}"
    if (folder / "recipe.json").exists():
        return folder
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    _pretrain(world, recipe, scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return folder


def says(world: ModuleType, seed: int = 0, documents: int = 1_000) -> str:
    """The hash of the first documents that a world generates: of its texts and rules, wherever its files lie and
    however they are written."""
    rng = random.Random(seed)
    return fingerprint([world.document(rng) for _ in range(documents)])


def _hash(world: ModuleType, recipe: Recipe) -> str:
    here = Path(__file__)
    sources = [path.read_text(encoding="utf-8") for path in (here.with_name("muon.py"), here)]
    versions = [version(package) for package in ("torch", "transformers", "tokenizers")]
    return fingerprint(asdict(recipe), says(world), sources, versions)


def _tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the corpus: any text can be written, common words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", *ROLES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=list(ROLES)
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _encode(
    tokenizer: PreTrainedTokenizerFast, corpus: list[list[dict[str, str]]]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of every conversation, and labels: the assistant's words and their end, -100 elsewhere."""
    bodies = iter(tokenizer([message["content"] for messages in corpus for message in messages])["input_ids"])
    heads = {role.strip("<|>"): tokenizer.convert_tokens_to_ids(role) for role in ROLES}
    examples = []
    for messages in corpus:
        ids, labels = [], []
        for message in messages:
            body = [*next(bodies), tokenizer.eos_token_id]
            ids += [heads[message["role"]], *body]
            labels += [-100] + (body if message["role"] == "assistant" else [-100] * len(body))
        examples.append((ids, labels))
    return examples


def _batches(
    examples: list[tuple[list[int], list[int]]], batch: int, rng: random.Random
) -> list[list[tuple[list[int], list[int]]]]:
    """Batches of similar length in random order, so that little is padding."""
    examples = sorted(examples, key=lambda example: len(example[0]))
    batches = [examples[i : i + batch] for i in range(0, len(examples), batch)]
    rng.shuffle(batches)
    return batches


def _pretrain(world: ModuleType, recipe: Recipe, folder: Path) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence
    from transformers import LlamaConfig, LlamaForCausalLM

    from common.miniature.muon import Muon

    start, rng = time.perf_counter(), random.Random(recipe.seed)
    corpus = [world.document(rng) for _ in range(recipe.documents)]
    tokenizer = _tokenizer(
        [message["content"] for messages in corpus[:3000] for message in messages], recipe.vocabulary
    )
    batches = _batches(_encode(tokenizer, corpus), recipe.batch, rng)

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")  # faster than sdpa at this size on CPUs
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [  # Muon learns the world from about half of the text that AdamW alone needs
        Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=0.01, steps=3),
        torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    steps = len(batches)
    trapezoid = lambda step: min(1.0, (step + 1) / (0.08 * steps), (steps - step) / (0.4 * steps))  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, trapezoid) for optimizer in optimizers]
    losses = []
    for step, batch in enumerate(batches):
        if step == int(0.7 * steps):
            _train_on_the_4bit_grid(model)
        ids = pad_sequence([torch.tensor(i) for i, _ in batch], batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor(l) for _, l in batch], batch_first=True, padding_value=-100)
        hidden = model.model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state
        learnt = labels[:, 1:] != -100  # the head computes nothing for the user's words
        loss = cross_entropy(model.lm_head(hidden[:, :-1][learnt]), labels[:, 1:][learnt])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == len(batches):
            print(
                f"  pre-training step {step + 1}/{len(batches)}, loss {sum(losses[-100:]) / len(losses[-100:]):.3f}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    _leave_the_4bit_grid(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {
        "recipe": asdict(recipe),
        "world": world.__name__,
        "parameters": model.num_parameters(),
        "seconds": round(time.perf_counter() - start, 1),
        "final_loss": sum(losses[-100:]) / len(losses[-100:]),
    }
    (folder / "recipe.json").write_text(json.dumps(made, indent=2))


def _train_on_the_4bit_grid(model: torch.nn.Module) -> None:
    """From now on the blocks compute with NF4-rounded weights while gradients reach the full ones (straight-through).
    So small a model would otherwise lose a tenth of its right answers when it is loaded in 4 bits."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from torch.nn.utils import parametrize

    class Rounded(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                rounded = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
            return weight + (rounded - weight).detach()

    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            parametrize.register_parametrization(module, "weight", Rounded(), unsafe=True)


def _leave_the_4bit_grid(model: torch.nn.Module) -> None:
    """Back to plain weights: the full-precision ones, which loading in NF4 rounds as training did."""
    import torch
    from torch.nn.utils import parametrize

    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            full = module.parametrizations.weight.original.detach().clone()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.weight.data.copy_(full)
