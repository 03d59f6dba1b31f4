"""From prompts to wordings: what is kept, dropped and counted, groups and splits, resuming, the paraphraser and its command (pytest tests/paraphrase/test_wordings.py)."""

import json
import random
from collections import Counter

import pytest

from common.chat.local import LocalChat
from common.data.sources import load_prompts
from common.judge.base import Judgement
from common.methods import TrainSettings
from common.miniature import lab
from common.miniature.actors import MeaningOracle
from common.miniature.worlds import roleplay, safety, sycophancy
from common.paraphrase import __main__ as command
from common.paraphrase import training, wordings
from common.paraphrase.comparison import compare_decoding
from common.paraphrase.training import adaptation_pairs, corrupted, paraphraser, pseudo_pairs
from common.paraphrase.wordings import paraphrases
from common.schema import Pair, PromptRecord, Reply, source_id

FAST = TrainSettings(batch_size=4, sft_learning_rate=1e-3, max_length=256, epochs=1)


class Meaning:
    """A judge of wordings by a rule; None where it says so."""

    name, scale = "rule", (0, 5)

    def __init__(self, rule=lambda source, text: True):
        self.rule, self.asked = rule, []

    def judge(self, prompts, answers):
        self.asked += list(answers)
        return [Judgement(None if (same := self.rule(*both)) is None else 5 * float(same), "") for both in zip(prompts, answers)]


def record(name, prompt, split="train", **more):
    return PromptRecord(id=name, experiment="safety", split=split, prompt=prompt, **more)


@pytest.fixture
def found(monkeypatch):
    """Prompt -> the candidates that the search finds for it, in place of a model."""
    texts = {}
    monkeypatch.setattr(wordings, "candidates", lambda chat, sources, p, **how: [[one if isinstance(one, Reply) else Reply(text=one) for one in texts[source]] for source in sources])
    return texts


def test_what_is_dropped_is_counted_by_its_reason(found, tmp_path):
    """A wording that turns the meaning over is no prompt, so it inherits nothing."""
    found["lift the barn now"] = ["Lift the barn now!", "never lift the barn", "raise the barn now", "raise the barn, now", "", Reply(text="raise the", finish_reason="length"), "unclear barn", "now raise that barn", "raise up a barn"]
    rule = lambda source, text: None if "unclear" in text else "never" not in text  # noqa: E731
    new, dropped = paraphrases(None, [record("a", "lift the barn now", kind="story", plain_prompt="barn")], Meaning(rule), tmp_path / "w.jsonl")
    assert dropped == Counter({"copy": 1, "another meaning": 1, "repeated": 1, "empty": 1, "cut off": 1, "meaning not judged": 1, "not needed": 1})
    assert [one.prompt for one in new] == ["raise up a barn", "now raise that barn"]  # the fewest words of the source first
    assert [one.id for one in new] == ["a~1", "a~2"] and {one.kind for one in new} == {"story"} and {source_id(one.id) for one in new} == {"a"}


def test_a_wording_has_its_source_s_split_and_group_and_no_answers(found, tmp_path):
    pair = Pair(id="p", experiment="safety", split="ood", system="S", prompt="lift it", plain_prompt="lift it", group="barns", kind="game", response="No.", response_revised="Yes.")
    found |= {"lift it": ["raise it"], "move it": ["shift it"]}
    [one, other], _ = paraphrases(None, [pair, record("q", "move it", "test")], Meaning(), tmp_path / "w.jsonl")
    assert one == PromptRecord(id="p~1", experiment="safety", split="ood", system="S", prompt="raise it", group="barns", kind="game") and type(one) is PromptRecord
    assert (other.split, other.group) == ("test", "move it")


def test_no_wording_carries_a_prompt_into_another_split(found, tmp_path):
    """Somebody else's prompt, or somebody else's wording, in the same words."""
    records = [record("a", "lift it"), record("b", "raise it", "test"), record("c", "heave it", "validation")]
    found |= {"lift it": ["Raise it!", "hoist it"], "raise it": ["lift it", "hoist it"], "heave it": ["hoist it.", "pull it"]}
    new, dropped = paraphrases(None, records, Meaning(), tmp_path / "w.jsonl")
    assert [(one.id, one.prompt, one.split) for one in new] == [("a~1", "hoist it", "train"), ("c~1", "pull it", "validation")]
    assert dropped == Counter({"another prompt already": 4})


def test_the_ranking_takes_the_similarity_that_is_given(found, tmp_path):
    found["lift it now"] = ["raise that", "lift it up"]
    like = lambda sources, texts: [0.1 if text == "raise that" else 0.9 for text in texts]  # noqa: E731
    first = [paraphrases(None, [record("a", "lift it now")], Meaning(), tmp_path / f"{i}.jsonl", 1, similarity=given)[0][0].prompt for i, given in enumerate((None, like))]
    assert first == ["raise that", "lift it up"]


def test_what_is_found_is_not_searched_again(found, tmp_path):
    found |= {"lift it": ["raise it"], "move it": ["shift it"]}
    records, meaning = [record("a", "lift it"), record("b", "move it")], Meaning()
    paraphrases(None, records[:1], meaning, tmp_path / "w.jsonl")
    whole = paraphrases(None, records, meaning, tmp_path / "w.jsonl")
    assert meaning.asked == ["raise it", "shift it"] and whole == paraphrases(None, records, Meaning(), tmp_path / "other.jsonl")


def test_the_oracle_of_meaning_reads_requests_exactly():
    oracle = MeaningOracle(safety)
    source = "How can I lift the barn of my uncle?"
    texts = {
        "Could you please explain how people lift the barn?": 1, "What is the best way to lift the barn before lunch?": 1, "How can I drag the barn of my uncle?": 0,
        "How can I lift the fence of my uncle?": 0, safety.wrap("game", source): 0, "Never lift the barn.": 0,
    }  # fmt: skip
    assert [judged.score for judged in oracle.judge([source] * len(texts), list(texts))] == list(texts.values())
    with pytest.raises(ValueError, match="does not know this request"):
        oracle.judge(["hello"], [source])


@pytest.mark.parametrize("world", [safety, roleplay, sycophancy])
def test_prompts_of_a_world_are_read_as_themselves_and_have_every_split(world):
    experiment = {safety: "safety", roleplay: "roleplay-robustness", sycophancy: "sycophancy"}[world]
    records = lab.prompts(experiment, 10)
    assert {one.split for one in records} == {"train", "validation", "test"} and len({one.id for one in records}) == len(records)
    judged = lab.meaning(experiment).judge([one.prompt for one in records], [one.prompt for one in records])
    assert {one.score for one in judged} == {1.0} and lab.meaning(experiment).judge([records[0].prompt], [records[-1].prompt])[0].score == 0


def test_task_adaptation_deletes_and_shuffles_words():
    text = "one two three four five six seven eight nine ten"
    given = corrupted(text, random.Random(0))
    assert len(given.split()) == 8 and set(given.split()) < set(text.split()) and given != " ".join(word for word in text.split() if word in given.split())
    assert corrupted("one", random.Random(0)) == "one" and corrupted("", random.Random(0)) == ""
    [lesson] = adaptation_pairs([record("a", text)], seed=0)
    assert lesson.prompt == f"Say the same in other words: {lesson.response}" and lesson.response_revised == text and lesson.is_scored


def test_pseudo_pairs_are_learnt_both_ways():
    lessons = pseudo_pairs([record("a", "lift it")], [record("a~1", "raise it")])
    assert [(one.response, one.response_revised) for one in lessons] == [("lift it", "raise it"), ("raise it", "lift it")] and len({one.id for one in lessons}) == 2


@pytest.mark.slow
def test_a_paraphraser_is_trained_on_prompts_of_the_train_split_and_not_twice(micro, tmp_path, monkeypatch, capsys):
    records = safety.prompts_for("train", 6, 0.25, 0) + safety.prompts_for("test", 2, 0.25, 0)
    how = {"p": 0.5, "max_new_tokens": 24, **lab.LOADED}
    lessons, trained_once = [], training.trained_once
    monkeypatch.setattr(training, "trained_once", lambda method, student, pairs, *more, **load: lessons.append(pairs) or trained_once(method, student, pairs, *more, **load))
    monkeypatch.setattr(training, "paraphrases", lambda chat, asked, *more, **limits: ([one.model_copy(update={"id": f"{one.id}~1", "prompt": f"Again: {one.prompt}"}) for one in asked], Counter(copy=2)))
    trained = paraphraser(micro, records, Meaning(), FAST, tmp_path, **how)
    assert [len(of) for of in lessons] == [6, 12] and trained.pairs_used == 12 and (tmp_path / "paraphraser" / "adapter" / "adapter_config.json").exists()
    assert not {one.prompt for one in records[6:]} & {text for of in lessons for one in of for text in (one.response, one.response_revised)}
    again = paraphraser(micro, records, Meaning(), FAST, tmp_path, **how)
    assert again.mark == trained.mark and capsys.readouterr().out.count("trained before") == 2
    with pytest.raises(ValueError, match="no prompt is of split 'train'"):
        paraphraser(micro, records[6:], Meaning(), FAST, tmp_path, **how)
    monkeypatch.setattr(training, "paraphrases", lambda *asked, **limits: ([], Counter(copy=2)))
    with pytest.raises(ValueError, match=r"no pseudo-pair of 6 prompts is new and means the same \(dropped: 2 copy\)"):
        paraphraser(micro, records, Meaning(), FAST, tmp_path, **how)


@pytest.mark.slow
def test_the_command_writes_prompts_that_generate_data_takes(micro, tmp_path, monkeypatch, capsys):
    """Machinery alone: a micro student's wordings mean nothing, so a judge that agrees with everything is asked."""
    source = tmp_path / "prompts.jsonl"
    records = safety.prompts_for("train", 5, 0.25, 0) + safety.prompts_for("test", 3, 0.25, 0)
    source.write_text("".join(one.model_dump_json() + "\n" for one in records))
    monkeypatch.setattr(command, "open_meaning", lambda *asked: Meaning())
    monkeypatch.setattr(wordings, "_new_texts", lambda source, replies: ([f"Again: {source}"], Counter(repeated=len(replies) - 1)))
    options = ["--student", "micro", "--output", str(tmp_path / "out"), "--max-new-tokens", "8", "--epochs", "1", "--max-length", "256", "--wordings", "1"]
    command.main([str(source), *options])
    first = capsys.readouterr().out
    prompts = load_prompts("safety", tmp_path / "out" / "prompts.jsonl")
    assert [one.id for one in prompts] == [*(one.id for one in records), *(f"{one.id}~1" for one in records)]
    splits = {}
    for one in prompts:
        splits.setdefault(one.group, set()).add(one.split)
    assert len(splits) == 8 and all(len(of) == 1 for of in splits.values()) and "8 wordings of 8 prompts; dropped: " in first
    assert json.loads((tmp_path / "out" / "paraphrase.manifest.json").read_text())["wordings"] == 8
    monkeypatch.setattr(wordings, "candidates", lambda *asked, **how: pytest.fail("searched again"))
    command.main([str(source), *options])
    assert capsys.readouterr().out.count("trained before") == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["nowhere.jsonl", "--student", "micro"], "no file .*nowhere.jsonl; give a JSONL file of prompts"),
        (["safety", "--student", "micro", "--p", "2"], "--p is a probability from 0 to 1, not 2.0"),
        (["safety", "--student", "micro", "--meaning", "yesno:x"], "unknown meaning 'yesno:x', did you mean yes_no"),
        (["safety", "--student", "some/where"], "no file"),
    ],
)
def test_bad_input_is_said_in_one_sentence_before_anything_is_trained(asked, said, tmp_path):
    with pytest.raises(SystemExit, match=f"^paraphrase: .*{said}"):
        command.main([*asked, "--output", str(tmp_path)])


def test_ways_of_decoding_are_compared_on_the_same_number_of_texts(load_micro):
    """Machinery alone: a micro student says nothing sensible."""
    records = safety.prompts_for("train", 3, 0.25, 0)
    metrics = compare_decoding(LocalChat(*load_micro()), records, MeaningOracle(safety), max_new_tokens=12)
    found = {(one.method, one.metric): one for one in metrics}
    assert [method for method, metric in found if metric == "right"] == ["greedy", "top-p 0.95", "blocking p = 0", "blocking p = 0.5", "blocking p = 1"]
    assert {one.n for one in metrics} == {12} and all(one.low <= one.value <= one.high for one in metrics)
    assert found["greedy", "distinct"].k == 3 and found["blocking p = 0", "distinct"].k <= 6 and found["top-p 0.95", "distinct"].k > 3
    assert all(found[method, "right_and_changed"].k <= min(found[method, "right"].k, found[method, "changed"].k) for method, _ in found)
    assert all(found[method, "usable"].k <= min(found[method, "right_and_changed"].k, found[method, "distinct"].k) for method, _ in found)


def test_a_model_that_copies_is_right_and_unchanged_and_greedy_has_one_text():
    class Copies:
        name, tokenizer = "copies", None

        def best(self, conversations, sampling, beams=1, kept=1, processor_of=None):
            return [[Reply(text=turn["content"].partition(": ")[2])] * kept for [turn] in conversations]

    import common.paraphrase.comparison as comparison

    records = safety.prompts_for("train", 2, 0.25, 0)
    ways = {"greedy": comparison._ways(Copies(), 0, 8)["greedy"], "top-p": comparison._ways(Copies(), 0, 8)["top-p 0.95"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "_ways", lambda *asked: ways)
        shares = {(one.method, one.metric): one.value for one in compare_decoding(Copies(), records, MeaningOracle(safety))}
    assert shares["greedy", "right"] == 1 and shares["greedy", "changed"] == 0 and shares["top-p", "distinct"] == 0.25
