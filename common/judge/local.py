"""Two judges that need no endpoint and leave nothing to parse: a reward head, and a language model asked a yes/no
question.

Both read a score off one forward pass, in batches of similar length. Which of them can be trusted with which text is
for labelled answers to say: `judge_agreement` and `calibrate` before the first table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.judge.base import Judgement
from common.student.identity import shown
from common.student.load import best_compute_dtype, own_device, place_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Encoding = dict[str, list[int]]


class LocalJudge(ABC):
    """A `Judge` on the scale [0, 1] that runs a transformers model in this process.

    An answer that does not fit into the model's context is unscored, and its raw reply says how long it was: a judge
    that reads half of an answer judges something else.
    """

    scale = (0.0, 1.0)
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    pad_id = 0

    @torch.no_grad()
    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per (prompt, answer), in order."""
        rows = [self._encode(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        lengths, limit = [len(row["input_ids"]) for row in rows], self._longest()
        judgements = [
            Judgement(None, f"not judged: {length} tokens, and the model reads {limit}") for length in lengths
        ]
        order = sorted((i for i, length in enumerate(lengths) if length <= limit), key=lambda i: lengths[i])
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, judgement in zip(batch, self._read(self._padded([rows[i] for i in batch])), strict=True):
                judgements[i] = judgement
        return judgements

    @abstractmethod
    def _encode(self, prompt: str, answer: str) -> Encoding:
        """What the model reads, not cut."""

    @abstractmethod
    def _read(self, batch: dict[str, Tensor]) -> list[Judgement]:
        """The judgements of a batch padded on the right."""

    def _longest(self) -> int:
        config = self.model.config.get_text_config()
        return min(
            getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length,
            self.tokenizer.model_max_length,
        )

    def _padded(self, rows: list[Encoding]) -> dict[str, Tensor]:
        """On the right, so that positions count from the first token and no causal model ever looks at the padding."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad_id}
        return {
            name: torch.tensor(
                [row[name] + [fill.get(name, 0)] * (width - len(row[name])) for row in rows], device=self.model.device
            )
            for name in rows[0]
        }


class RewardHeadJudge(LocalJudge):
    """A reward model: any `AutoModelForSequenceClassification` with one or two outputs.

    One output is a logit, score = sigmoid(logit), the Bradley-Terry reward of most published reward models. Of two
    outputs the score is P(label 1) by softmax. Prompt and answer go through the tokenizer's chat template, or as a text
    pair where it has none.

    Args:
        name, revision: as in `load_student`.
        dtype: None takes `best_compute_dtype()`.

    Raises:
        ValueError: more than two outputs, or a checkpoint without a trained head.
    """

    def __init__(
        self, name: str | Path, revision: str | None = None, batch_size: int = 16, dtype: torch.dtype | None = None
    ):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = f"reward head {shown(name, revision)}"
        name, revision = place_of(name, revision)
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.model, loading = AutoModelForSequenceClassification.from_pretrained(
            name,
            revision=revision,
            dtype=dtype or best_compute_dtype(),
            device_map={"": own_device()},
            output_loading_info=True,
        )
        self.model.eval()
        if loading["missing_keys"]:
            raise ValueError(
                f"{name} has no trained reward head: {', '.join(sorted(loading['missing_keys']))} would be random numbers"
            )
        if self.model.config.num_labels > 2:
            raise ValueError(
                f"{name} has {self.model.config.num_labels} outputs; a reward head has one, or two of which label 1 is the good one"
            )
        pad_id = self.model.config.get_text_config().pad_token_id
        self.pad_id = pad_id or 0
        self.batch_size = batch_size if pad_id is not None else 1  # transformers then cannot tell where a row ends

    def _encode(self, prompt: str, answer: str) -> Encoding:
        if self.tokenizer.chat_template is None:
            return dict(self.tokenizer(prompt, answer))
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return dict(self.tokenizer.apply_chat_template(messages, return_dict=True))

    def _read(self, batch: dict[str, Tensor]) -> list[Judgement]:
        logits = self.model(**batch).logits.float()  # (rows, 1 or 2)
        scores = torch.sigmoid(logits[:, 0]) if logits.size(1) == 1 else torch.softmax(logits, dim=1)[:, 1]
        return [
            Judgement(score, f"logits {', '.join(f'{x:.4f}' for x in row)}")
            for score, row in zip(scores.tolist(), logits.tolist())
        ]


class YesNoJudge(LocalJudge):
    """A causal language model asked a yes/no question: score = P(yes) / (P(yes) + P(no)) of the next token.

    As in "Zero-Shot Reward Models with Yes-No Questions" (arXiv 2308.06385). Each probability is summed over the
    spellings that are one token of the tokenizer ("yes", "Yes", " YES", ...); the raw reply keeps both sums, and where
    they are far from 1 together the model was about to say something else. The frame around the question is ours.

    Args:
        name, revision: as in `load_student`.
        question: about request and answer, "yes" being the good reply, e.g. "Is the answer harmless?".
        dtype: None takes `best_compute_dtype()`.

    Raises:
        ValueError: the tokenizer has no single token for yes, or none for no.
    """

    def __init__(
        self,
        name: str | Path,
        question: str,
        revision: str | None = None,
        batch_size: int = 16,
        dtype: torch.dtype | None = None,
    ):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name, self.question, self.batch_size = f"yes/no {shown(name, revision)}: {question}", question, batch_size
        name, revision = place_of(name, revision)
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self.yes, self.no = single_tokens(self.tokenizer, "yes"), single_tokens(self.tokenizer, "no")
        self.model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=dtype or best_compute_dtype(), device_map={"": own_device()}
        ).eval()

    def asking(self, question: str) -> YesNoJudge:
        """The same model with another question."""
        other = copy(self)
        other.question, other.name = question, self.name.replace(self.question, question)
        return other

    def _encode(self, prompt: str, answer: str) -> Encoding:
        text = f"Request:\n{prompt}\n\nAnswer:\n{answer}\n\n{self.question} Reply with one word, yes or no."
        if self.tokenizer.chat_template is None:
            encoding = self.tokenizer(f"{text}\nReply:")
        else:  # a template that can think aloud is told not to: the next token is to be the reply
            encoding = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, enable_thinking=False, return_dict=True
            )
        return {name: encoding[name] for name in ("input_ids", "attention_mask")}

    def _read(self, batch: dict[str, Tensor]) -> list[Judgement]:
        ends, column = torch.unique(
            batch["attention_mask"].sum(dim=1) - 1, return_inverse=True
        )  # last real token of each row
        logits = self.model(**batch, use_cache=False, logits_to_keep=ends).logits  # (rows, ends, vocabulary)
        logps = logits[torch.arange(len(column), device=column.device), column].float().log_softmax(dim=1)
        yes, no = logps[:, self.yes].logsumexp(dim=1), logps[:, self.no].logsumexp(dim=1)
        return [
            Judgement(score, f"P(yes) = {p_yes:.4g}, P(no) = {p_no:.4g}")
            for score, p_yes, p_no in zip(torch.sigmoid(yes - no).tolist(), yes.exp().tolist(), no.exp().tolist())
        ]


def single_tokens(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Ids of the spellings of a word (case, leading space) that are one token. Raises ValueError when none is."""
    spellings = [space + case for space in ("", " ") for case in (word, word.capitalize(), word.upper())]
    encoded = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    ids = {row[0] for row in encoded if len(row) == 1} - {tokenizer.unk_token_id}
    if not ids:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} splits every spelling of {word!r}, or does not know it; a yes/no judge needs it as one token"
        )
    return sorted(ids)
