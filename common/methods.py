"""One row of the table each: base, always-refuse, SR, SFT, dSC, DPO, refined DPO (rDPO) and its neighbours.

Every trained method gets the same pairs (scored on both sides), the same LoRA, batch and number of epochs; what differs is
what it does with pairs and scores. Readings of the paper's baselines are ours:
SR = self-refinement at inference (the untrained student criticises and rewrites its own answer), SFT = on all revisions,
dSC = SFT on revisions that scored strictly higher than the original (arXiv 2312.01957).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from common.chat import ChatModel, LocalChat, OnReply, hand_over
from common.identity import located
from common.logprobs import grouped_logprobs
from common.loss import LOSSES, knobs_of, uses_scores
from common.preference import accepted, preference_dataset, prompt_messages
from common.prompts import ExperimentPrompts
from common.run import Progress, checked, resolve
from common.schema import Message, Reply, Sampling, ScoredPair
from common.self_critique import run_chains
from common.student import adapter_tokenizer, adapters_to_float32, learned_positions, load_adapter, load_as_it_is, load_student, lora_settings, precision, release_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

UNTRAINED = ("base", "always_refuse", "sr")
SUPERVISED = ("sft", "dsc")
WITH_NLL = {f"{loss}_{term}": (loss, on) for term, on in (("nll", "all"), ("nll_accepted", "accepted")) for loss in ("dpo", "rdpo")}
"""Row -> its loss and the chosen answers whose likelihood is added, with the settings' `nll_weight`: given to both sides alike. On accepted
ones that term is dSC, so a row with it is a control and no refined DPO."""
METHODS = (*UNTRAINED, *SUPERVISED, *LOSSES, *WITH_NLL)
EXISTING = {"adapter": "a PEFT folder on top of the student", "model": "a folder or Hub name in the student's place", "endpoint": "a model behind an endpoint"}
"""Rows that are evaluated as they are, written `adapter:FOLDER`, `model:FOLDER_OR_HUB_NAME` or `endpoint:MODEL`: an adapter on the student as
the student is loaded and with the tokenizer beside it, a model with its own weights (`student.load_as_it_is`), never rounded to NF4."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings that all trained methods share; all defaults are ours.

    batch_size: pairs a step; micro_batch: pairs computed at a time, the batch in parts, for a machine's memory; 0 computes it whole.
    learning_rate: of the preference losses; sft_learning_rate: of SFT and dSC, whose gradients have another size.
    beta, alpha, eta, label_smoothing: see `RDPOConfig`. nll_weight: of the rows in `WITH_NLL`. max_length: tokens of prompt
    and completion. reference: of the preference losses, the student with its adapter off ("adapters off", as TRL does with
    PEFT), or "unquantised", the weights that NF4 was made of, which a step-0 policy differs from and memory must hold besides.
    """

    learning_rate: float = 1e-4
    sft_learning_rate: float = 2e-4
    epochs: int = 2
    batch_size: int = 16
    micro_batch: int = 0
    beta: float = 0.1
    alpha: float = 1.0
    eta: float = 1.0
    label_smoothing: float = 0.1
    nll_weight: float = 1.0
    lora_rank: int = 16
    max_length: int = 1024
    seed: int = 0
    reference: Literal["adapters off", "unquantised"] = "adapters off"

    def as_dict(self, method: str) -> dict[str, Any]:
        """What a method's training reads of them, the seed included: another method's knob is no part of its mark, nor is `micro_batch`,
        nor the usual reference. Empty for a row that is not trained."""
        if not is_trained(method):
            return {}
        loss, _ = WITH_NLL.get(method, (method, "all"))
        own = ["sft_learning_rate"] if method in SUPERVISED else ["learning_rate", "beta", *knobs_of(loss)]
        own += ["nll_weight"] if method in WITH_NLL else []
        own += ["reference"] if method not in SUPERVISED and self.reference != "adapters off" else []
        return {name: getattr(self, name) for name in (*own, "epochs", "batch_size", "lora_rank", "max_length", "seed")}

    def __post_init__(self):
        """Raises ValueError for a number that is not finite or out of its range, and a micro_batch that does not divide the batch."""
        for name, kind in get_type_hints(TrainSettings).items():
            checked(name, getattr(self, name), kind)
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch_size = {self.batch_size}; 0 computes the batch whole")


@dataclass
class TrainedStudent:
    """A student ready to be asked: the model (with its adapter, if it was trained) and what training looked like.

    chat answers in the model's place, for a row that is no model in this process.
    history: one dict per logged step, in TRL's names (`loss`, `rewards/margins`, `logps/chosen`, ...).
    """

    method: str
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    pairs_used: int = 0
    unscored: int = 0
    chat: ChatModel | None = None

    @property
    def precision(self) -> str:
        """See `student.precision`; "" for a row that is no model in this process."""
        return precision(self.model) if self.model else ""


def check_methods(methods: Sequence[str]) -> None:
    """Raises ValueError for a name that is no row of the table, FileNotFoundError for an adapter or a folder that is not there."""
    unknown = [method for method in methods if method not in METHODS and not existing(method)]
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}; there are {', '.join(METHODS)}, and what exists as {', '.join(f'{kind}:...' for kind in EXISTING)}")
    for method in methods:
        place = existing_place(method) if existing(method) in ("adapter", "model") else Path()
        if existing(method) == "adapter" and not Path(place, "adapter_config.json").exists():
            raise FileNotFoundError(f"{method}: no adapter_config.json in {place}; give the folder that PEFT's save_pretrained wrote")
        if existing(method) == "model" and Path(place, "adapter_config.json").exists() and not Path(place, "config.json").exists():
            raise ValueError(f"{method}: {place} holds an adapter and no model; write adapter: in place of model:")


def existing(method: str) -> str:
    """Which kind of `EXISTING` a row is, "" for a row that is trained or made here."""
    kind, _, name = method.partition(":")
    return kind if kind in EXISTING and name else ""


def is_trained(method: str) -> bool:
    """Whether a row is trained here, so that every seed gives another student."""
    return method not in UNTRAINED and not existing(method)


def sees_scores(method: str) -> bool:
    """Whether a row that is trained here depends on the external scores."""
    loss, on = WITH_NLL.get(method, (method, "all"))
    return method == "dsc" or on == "accepted" or loss in LOSSES and uses_scores(loss)


def existing_place(method: str) -> Path | str:
    """The folder of an `adapter:` or `model:`, or the Hub name of a `model:`. Raises what `identity.located` does."""
    return located(method.partition(":")[2])


def train(method: str, student: str | Path, pairs: Sequence[ScoredPair], settings: TrainSettings, output: str | Path, **load: Any) -> TrainedStudent:
    """Trains one method on a freshly loaded base student (PEFT changes a base model in place, so none is ever shared).

    Args:
        method: a name in METHODS; the untrained ones return the base model as it is. An `adapter:` or `model:` is loaded.
        student: folder or Hub name; `load` goes to `load_student`, and but for the student's revision to `load_as_it_is`.
        pairs: scored pairs; those without both scores are left out for every method alike.
        output: folder for the trainer's checkpoints.

    Raises ValueError for a student with fewer positions than `max_length`, and where a loss or gradient is not finite.
    """
    check_methods([method])
    if existing(method) == "model":
        own = {name: value for name, value in load.items() if name not in ("revision", "four_bit")}
        return TrainedStudent(method, *load_as_it_is(existing_place(method), **own))
    if is_trained(method):
        release_memory()  # of the student before
    model, tokenizer = load_student(student, **load)
    if existing(method) == "adapter":
        model, beside = load_adapter(model, existing_place(method)), adapter_tokenizer(model, existing_place(method), load.get("pad_token"))
        tokenizer = beside or tokenizer
    if not is_trained(method):
        return TrainedStudent(method, model, tokenizer)
    if (positions := learned_positions(model)) and positions < settings.max_length:
        raise ValueError(f"the student has {positions} positions, fewer than max_length={settings.max_length}; set max_length to {positions} at most")
    scored = [pair for pair in pairs if None not in pair.normalised()]
    make_trainer = _supervised_trainer if method in SUPERVISED else preference_trainer
    trainer, used = make_trainer(method, model, tokenizer, scored, settings, Path(output))
    _report_progress(trainer, f"training {method}, seed {settings.seed}")
    trainer.train()
    trained = TrainedStudent(method, trainer.model.eval(), tokenizer, trainer.state.log_history, used, len(pairs) - len(scored))
    del trainer
    release_memory()
    return trained


def _report_progress(trainer: Trainer, label: str) -> None:
    """Our progress line in place of the trainer's printed dictionaries."""
    from transformers import PrinterCallback, TrainerCallback

    class Report(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.progress = Progress(label, state.max_steps)
            self.progress(state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.progress(1)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Report())


def _common_arguments(model: PreTrainedModel, settings: TrainSettings, output: Path) -> dict[str, Any]:
    import torch

    at_a_time = settings.micro_batch or settings.batch_size
    return {
        "output_dir": str(output), "num_train_epochs": settings.epochs, "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": settings.batch_size // at_a_time,
        "lr_scheduler_type": "linear", "warmup_steps": 0.1, "train_sampling_strategy": "group_by_length", "logging_steps": 1, "logging_first_step": True, "save_strategy": "no",
        "report_to": "none", "use_cpu": not torch.cuda.is_available(),
        "bf16": model.dtype == torch.bfloat16,  # computes the float32 adapters as the model computes, instead of casting back and forth
        "gradient_checkpointing": torch.cuda.is_available(), "max_length": settings.max_length,
        "seed": settings.seed, "disable_tqdm": True, "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip


def preference_trainer(method: str, model, tokenizer, pairs: Sequence[ScoredPair], settings: TrainSettings, output: Path):
    """(trainer ready to train, number of pairs it uses: those whose prompt leaves room for an answer) for one of `LOSSES` or `WITH_NLL`."""
    from common.trainer import RDPOConfig, RDPOTrainer

    knobs = {name: getattr(settings, name) for name in ("learning_rate", "beta", "alpha", "eta", "label_smoothing")}
    loss, nll_on = WITH_NLL.get(method, (method, "all"))
    knobs["nll_weight"] = settings.nll_weight if method in WITH_NLL else 0.0
    arguments = RDPOConfig(method=loss, nll_on=nll_on, reference_cache=str(resolve("runs/models/reference")), **knobs, **_common_arguments(model, settings, output))
    reference = None
    if settings.reference == "unquantised":
        revision = getattr(model.config, "_commit_hash", None)
        reference, _ = load_student(model.name_or_path, revision=revision, four_bit=False, compute_dtype=model.dtype)
    trainer = RDPOTrainer(
        model, ref_model=reference, args=arguments, train_dataset=preference_dataset(pairs), processing_class=tokenizer,
        peft_config=lora_settings(settings.lora_rank),
    )  # fmt: skip
    return trainer, trainer.pairs_used


def _supervised_trainer(method: str, model, tokenizer, pairs: Sequence[ScoredPair], settings: TrainSettings, output: Path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from common.trainer import StopWhenNotFinite

    class CompletionTrainer(SFTTrainer):
        """The same loss without padding, with the head on completions only; TRL's entropy and token accuracy are left out."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            scored = (inputs["labels"] != -100).sum(dim=1)  # prompt and completion: the end of every row
            lengths = inputs["attention_mask"].sum(dim=1)
            rows = zip(inputs["input_ids"].tolist(), lengths.tolist(), (lengths - scored).tolist())
            with self.accelerator.autocast():
                logps = grouped_logprobs(model, [[(ids[:length], start)] for ids, length, start in rows])
            return -logps.sum() / (scored.sum() if num_items_in_batch is None else num_items_in_batch)

    kept = accepted(pairs) if method == "dsc" else list(pairs)
    if not kept:
        raise ValueError("dsc: no revision scored higher than its original, so there is nothing to train on")
    rows = [{"prompt": prompt_messages(pair), "completion": [{"role": "assistant", "content": pair.response_revised}]} for pair in kept]
    arguments = SFTConfig(learning_rate=settings.sft_learning_rate, **_common_arguments(model, settings, output))
    trainer = CompletionTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora_settings(settings.lora_rank)
    )
    adapters_to_float32(trainer.model)
    trainer.add_callback(StopWhenNotFinite())
    return trainer, len(trainer.train_dataset)  # without those whose prompt alone fills max_length


class SelfRefining:
    """SR (our reading): a chat model that answers, criticises and rewrites; its reply is the rewritten answer."""

    def __init__(self, chat: LocalChat, prompts: ExperimentPrompts):
        self.chat, self.prompts, self.name = chat, prompts, f"SR of {chat.name}"

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        return hand_over((chain[-1] for chain in run_chains(self.chat, conversations, self.prompts, sampling)), on_reply)


class Constant:
    """A chat model that gives the answer of a function of the last user turn: the always-refuse row."""

    def __init__(self, answer: Callable[[str], str], name: str = "always_refuse"):
        self.answer, self.name = answer, name

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        return hand_over((Reply(text=self.answer(conversation[-1]["content"])) for conversation in conversations), on_reply)
