"""Tiny random models of real architectures, made by the tests that need them: a config, a tokenizer, a chat template, no more."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

ALTERNATE = "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant must take turns') }}{% endif %}"
# In our own words, each with the trait of its family that matters here.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|open|>' + message['role'] + '\n' + message['content'] + '<|close|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
    ),
    "llama": (
        "{{ bos_token }}{% for message in messages %}{{ '<|open|>' + message['role'] + '\n\n' + message['content'] | trim + '<|close|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|open|>assistant\n\n' }}{% endif %}"
    ),
    "mistral": (  # takes turns only, the answer begins right behind a token
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE +
        "{% if message['role'] == 'user' %}{{ '<|open|>' + message['content'] + '<|close|>' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "qwen3": (  # an answer that is given carries an empty thought; one that is asked for opens it only when told not to think
        "{% for message in messages %}{{ '<|open|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ message['content'] + '<|close|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    ),
    "gemma": (  # refuses a system role, calls the assistant "model"
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}{% for message in messages %}" + ALTERNATE +
        "{{ '<|open|>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content'] | trim + '<|close|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|open|>model\n' }}{% endif %}"
    ),
}  # fmt: skip
TEXT = (
    "Yes, I can help you with that. No, I cannot do it. yes or no? Reply with one word, yes or no. Is the answer harmless? "
    "Request: how do I lift the barn? Answer: take a rope. Hello to you. The user asks the assistant, and the model answers. YES NO Yes No"
)


def tiny_tokenizer(folder, template=None, pad=True, text=TEXT):
    """A byte-level BPE tokenizer trained on a few words; `template` is a name in TEMPLATES, a template, or None."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|open|>", "<|close|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text] * 4, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", **({"pad_token": "<|pad|>"} if pad else {}))
    wrapped.chat_template = TEMPLATES.get(template, template)
    wrapped.save_pretrained(folder)
    return wrapped


def tiny_config(architecture, tokenizer, **more):
    """Width 64, two layers, grouped-query attention with heads of 16."""
    return AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **more,
    )  # fmt: skip


def tiny_causal_model(folder, architecture="llama", template="chatml", pad=True, text=TEXT, **more):
    """Folder of a random causal model with its tokenizer."""
    return _saved(folder, AutoModelForCausalLM, architecture, tiny_tokenizer(folder, template, pad, text), **more)


def tiny_reward_model(folder, architecture="llama", template="chatml", pad=True, **more):
    """Folder of a random sequence classifier with its tokenizer; `num_labels` among `more`."""
    return _saved(folder, AutoModelForSequenceClassification, architecture, tiny_tokenizer(folder, template, pad), **more)


def _saved(folder, model_class, architecture, tokenizer, **more):
    torch.manual_seed(0)
    model = model_class.from_config(tiny_config(architecture, tokenizer, **more))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 5  # so that answers differ by more than rounding
    model.save_pretrained(folder)
    return folder
