"""What benchmarks of training share: models of random weights, pairs, the contestants and the clock."""

import random
import resource
import statistics
import time

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from common.student.adapters import adapters_to_float32, lora_settings
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer
from common.training.supervised import CompletionTrainer

SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
LORA_RANK = 16
STOCK = {"trl": {}, "trl_precomputed": {"precompute_ref_log_probs": True}, "trl_liger": {"use_liger_kernel": True}, "trl_nll": {"loss_type": ["sigmoid", "sft"]}}
"""TRL's own trainer, always with its fused head, and what each of these contestants sets besides."""
OURS = {"ours": {}, "ours_nll": {"nll_weight": 1.0}}
"""`RDPOTrainer` with DPO's loss, and what each of these sets besides. TRL weighs its losses alike, and averages the likelihood
over the tokens of a batch, ours over those of each answer first: the same where all answers are equally long."""


def words_tokenizer(vocabulary):
    """A tokenizer for which one word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unknown>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>")
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    return wrapped


def make_model(folder, shape):
    """Random weights, tied embeddings, and a tokenizer for which one word is one token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=1, pad_token_id=0)).save_pretrained(folder)
    words_tokenizer(shape["vocab_size"]).save_pretrained(folder)


def random_pairs(count, prompt, answer, vocabulary, spread=0.0):
    """Pairs of random words. spread: up to which share a length is shorter or longer than asked, each drawn anew."""
    draw = random.Random(0)
    words = lambda n: " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(max(1, round(n * (1 + spread * draw.uniform(-1, 1))) if spread else n)))  # noqa: E731
    return [{"prompt": words(prompt) + " ", "chosen": words(answer - 1) + " <end>", "rejected": words(answer - 1) + " <end>"} for _ in range(count)]


def trainer_for(contestant, model, tokenizer, pairs, folder, **options):
    """A contestant's trainer, all with the same LoRA and arguments but for `STOCK` and `OURS`.

    Stock's adapters on a quantised model are bfloat16. Where the model computes in float32 they are made float32, as ours are: a CPU
    without bfloat16 units would emulate them, and stock would lose by that.
    """
    options = {
        "output_dir": str(folder), "max_length": None, "learning_rate": 1e-4, "bf16": model.dtype == torch.bfloat16, "use_cpu": not torch.cuda.is_available(),
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False,
    } | options  # fmt: skip
    in_float32 = model.dtype == torch.float32
    if contestant.endswith("_sft"):
        pairs = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
        make, args = (CompletionTrainer if contestant == "ours_sft" else SFTTrainer), SFTConfig(**options)
    elif contestant in OURS:
        make, args = RDPOTrainer, RDPOConfig(method="dpo", **OURS[contestant], **options)
    else:
        make, args = DPOTrainer, DPOConfig(**STOCK[contestant], **options)
    trainer = make(model, args=args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, peft_config=lora_settings(LORA_RANK))
    if in_float32 or contestant == "ours_sft":  # the latter as `supervised_trainer` does
        adapters_to_float32(trainer.model)
    return trainer


def wait():
    """Until the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """Seconds of each step and of a cold epoch. Make it before the trainer, and add it to that as the last callback.

    A step is its forward and backward passes, its update, and what other callbacks do at its end. A cold epoch lasts from the
    making of this clock to the end of the first epoch: that of the trainer, all that `train` does before the first step,
    every step, and what lies between them.
    """

    def __init__(self):
        self.steps, self.before_first_step, self.cold_epoch = [], None, None
        self._begun = time.perf_counter()

    def on_step_begin(self, *args, **kwargs):
        wait()
        now = time.perf_counter()
        if not self.steps:
            self.before_first_step = now - self._begun
        self.steps.append(-now)

    def on_step_end(self, *args, **kwargs):
        wait()
        self.steps[-1] += time.perf_counter()

    def on_epoch_end(self, *args, **kwargs):
        if self.cold_epoch is None:
            wait()
            self.cold_epoch = time.perf_counter() - self._begun


def peak_gib():
    """The most memory that was in use: on a GPU since its counter was reset, else of this process."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def matmul_rate(dtype, device="cpu", size=2048):
    """Floating-point operations a second of a square matrix product, the median of ten.

    Of a dtype that a student computes in: a CPU without bfloat16 units emulates it, and one such product takes half a minute.
    """
    a, b, times = torch.randn(size, size, dtype=dtype, device=device), torch.randn(size, size, dtype=dtype, device=device), []
    for _ in range(12):
        wait()
        begun = time.perf_counter()
        a @ b
        wait()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(times[2:])


def floor_operations(shape, prompt, answer):
    """Floating-point operations that one pair cannot do without: prompt once, head on completions, frozen weights, nothing twice.

    A product counts two operations a weight and token, once forward and once for the gradient of its input; LoRA counts three
    times; attention three times what its queries see.
    """
    width, inner, layers, vocabulary = (shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    key_width = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    ends = [(width, width), (width, key_width), (width, key_width), (width, width), (width, inner), (width, inner), (inner, width)]
    tokens, seen = prompt + 2 * (answer - 1), prompt**2 / 2 + 2 * ((answer - 1) * prompt + (answer - 1) ** 2 / 2)
    weights, lora = sum(a * b for a, b in ends), sum(LORA_RANK * (a + b) for a, b in ends)
    return layers * (tokens * (4 * weights + 6 * lora) + 12 * seen * width) + 4 * 2 * answer * vocabulary * width
