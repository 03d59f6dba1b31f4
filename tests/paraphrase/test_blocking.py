"""Dynamic Blocking: the block dictionary, one step only, a dictionary for each row, and BERT-iBLEU (pytest tests/paraphrase/test_blocking.py)."""

import random

import pytest
import torch
from tiny_models import tiny_causal_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.chat.local import LocalChat
from common.paraphrase.blocking import DynamicBlocking, active_dictionary, block_entries
from common.paraphrase.ranking import bert_ibleu, self_bleu
from common.paraphrase.wordings import candidates, request_for
from common.schema import Sampling

SOURCE = "what is the best way to learn the piano"
TEXTS = [SOURCE, "the user asks the assistant, and the model answers", "is the answer harmless", "hello"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("words"), "chatml", text=f"{SOURCE} Best BEST Way Piano")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tiny_causal_model(tmp_path_factory.mktemp("chat"), text=" ".join(TEXTS))
    return LocalChat(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), batch_size=8)


def shown(entries, tokenizer):
    return [(tokenizer.decode([key]).strip(), {tokenizer.decode([token]).strip() for token in blocked}) for key, blocked in entries]


def test_the_entries_of_a_source(tokenizer):
    """The worked example: eight entries, two of them behind "the"."""
    entries = shown(block_entries(SOURCE, tokenizer, closed=()), tokenizer)
    assert [key for key, _ in entries] == "what is the best way to learn the".split()
    assert [next(word for word in blocked if word.islower()) for _, blocked in entries] == "is the best way to learn the piano".split()
    assert entries[2][1] == {"best", "Best", "BEST"}
    open_class = shown(block_entries(SOURCE, tokenizer), tokenizer)
    assert [key for key, _ in open_class] == ["what", "the", "best", "to", "the"]  # "the" and "to" are never blocked


def test_only_the_first_subword_of_a_word_is_blocked(tokenizer):
    text = "the pianobest, way"
    first, *rest = tokenizer(" pianobest", add_special_tokens=False)["input_ids"]
    comma, way = tokenizer(", way", add_special_tokens=False)["input_ids"]
    entries = block_entries(text, tokenizer)
    blocked = {token for _, tokens in entries for token in tokens}
    assert rest and first in blocked and not blocked & {*rest, comma}
    assert entries[-1][0] == comma and way in entries[-1][1]  # punctuation is a key and is never blocked


@pytest.mark.parametrize("text", ["", "  ", "piano", "the"])
def test_a_source_without_two_words_blocks_nothing(tokenizer, text):
    entries = block_entries(text, tokenizer)
    assert entries == [] and active_dictionary(entries, 1.0, random.Random(0)) == {}


def test_entries_are_active_with_probability_p(tokenizer):
    entries = block_entries(SOURCE, tokenizer, closed=())
    the = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    whole = active_dictionary(entries, 1.0, random.Random(0))
    assert active_dictionary(entries, 0.0, random.Random(0)) == {} and len(whole) == 7  # two entries of "the" in one
    assert whole[the] == entries[2][1] | entries[7][1]
    halves = [active_dictionary(entries, 0.5, random.Random(seed)).get(the, frozenset()) for seed in range(400)]
    assert sum(entries[7][1] <= blocked for blocked in halves) / 400 == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ValueError, match="p is the probability"):
        active_dictionary(entries, 1.5, random.Random(0))


def test_what_is_blocked_is_blocked_for_one_step_only(tokenizer):
    ids = dict(zip(SOURCE.split(), tokenizer(SOURCE, add_special_tokens=False)["input_ids"])) | {"the": tokenizer(" the", add_special_tokens=False)["input_ids"][0]}
    dictionary = active_dictionary(block_entries(SOURCE, tokenizer, closed=()), 1.0, random.Random(0))

    def barred(*emitted):
        scores = DynamicBlocking([dictionary])(torch.tensor([[ids[word] for word in emitted]]), torch.zeros(1, len(tokenizer)))
        return {word for word, token in ids.items() if scores[0, token] == -torch.inf}

    assert barred("the") == {"best", "piano"} and barred("way") == {"to"} and barred("best") == {"way"}
    assert barred("the", "piano") == set() and barred("the", "to") == {"learn"}
    scores = torch.zeros(2, len(tokenizer))
    assert DynamicBlocking([{}])(torch.zeros(2, 1, dtype=torch.long), scores) is scores
    with pytest.raises(ValueError, match="3 rows do not divide among 2 dictionaries"):
        DynamicBlocking([{}, {}])(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 5))


def test_each_row_and_each_of_its_beams_has_its_own_dictionary():
    block = DynamicBlocking([{1: frozenset({2})}, {1: frozenset({3, 4})}])
    found = block(torch.tensor([[1], [0], [1], [1]]), torch.zeros(4, 6))
    assert [set(row.isinf().nonzero().flatten().tolist()) for row in found] == [{2}, set(), {3, 4}, {3, 4}]


@pytest.mark.parametrize("beams", [1, 4])
def test_one_row_is_blocked_as_transformers_bad_words_are(chat, beams):
    sampling, asked = Sampling(max_new_tokens=12), [request_for(SOURCE)]
    prompt = chat.tokenizer.apply_chat_template(asked[0], add_generation_prompt=True, return_dict=True, return_tensors="pt")
    generate = lambda **bad: chat.model.generate(**prompt, max_new_tokens=12, do_sample=False, num_beams=beams, pad_token_id=chat.tokenizer.pad_token_id, **bad)[0, prompt["input_ids"].size(1) :].tolist()  # noqa: E731
    plain = generate()
    dictionary = {key: frozenset({value, value + 1}) for key, value in zip(plain, plain[1:])}
    theirs = generate(bad_words_ids=[[key, value] for key, values in dictionary.items() for value in values])
    [[blocked]] = chat.best(asked, sampling, beams, 1, lambda rows: DynamicBlocking([dictionary for _ in rows]))
    assert blocked == chat._reply(prompt["input_ids"][0].tolist(), theirs) != chat._reply([], plain)


def test_one_beam_without_blocking_is_the_plain_answer(chat):
    asked, sampling = [request_for(text) for text in TEXTS], Sampling(max_new_tokens=40)
    plain = chat.complete(asked, sampling)
    assert [reply for [reply] in chat.best(asked, sampling)] == plain
    assert [reply for [reply] in chat.best(asked, sampling, processor_of=lambda rows: DynamicBlocking([{} for _ in rows]))] == plain
    found = candidates(chat, TEXTS, 0.0, max_new_tokens=12)
    assert found == chat.best(asked, Sampling(max_new_tokens=12), 4, 2)  # four equal dictionaries are searched once
    assert all(len(replies) == 2 for replies in found)


def test_a_batch_is_searched_as_each_alone(chat):
    together = candidates(chat, TEXTS, 0.5, max_new_tokens=12)
    alone = [candidates(chat, [text], 0.5, max_new_tokens=12)[0] for text in TEXTS]
    assert together == alone and len(together[0]) > 2 and len(together[-1]) == 2


def test_samples_are_as_many_as_asked_for_and_hang_on_the_seed(chat):
    first, again, other = (chat.best([request_for("hello")], Sampling(temperature=1.0, max_new_tokens=12, seed=seed), 1, 3)[0] for seed in (0, 0, 1))
    assert first == again != other and len(first) == 3 and len({reply.text for reply in first}) > 1


def test_bert_ibleu():
    assert bert_ibleu(0.95, 0.4) == pytest.approx(0.850746, abs=1e-6) and bert_ibleu(0.8, 0.1) == pytest.approx(0.818182, abs=1e-6)
    assert bert_ibleu(1.0, 1.0) == bert_ibleu(0.0, 0.3) == 0.0 and bert_ibleu(1.0, 0.0) == 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        bert_ibleu(1.2, 0.5)


def test_self_bleu_is_1_for_the_same_words_and_falls_with_new_ones():
    assert self_bleu(SOURCE, "What is the best way to learn the piano?") == self_bleu("piano", "Piano.") == 1.0
    assert 0 < self_bleu(SOURCE, "how do I best learn the piano") < self_bleu(SOURCE, "what is the way to learn the piano best") < 1
    assert self_bleu(SOURCE, "something else") == self_bleu("", "x") == self_bleu("x", "") == 0.0
