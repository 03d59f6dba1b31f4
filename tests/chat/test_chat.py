"""What every chat model owes its callers, and replies that are kept and never paid for twice: `pytest tests/chat/test_chat.py`."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fault_server import FaultServer

from common.chat.endpoint import EndpointChat
from common.chat.kept import KeptChat
from common.chat.local import LocalChat
from common.chat.model import hand_over
from common.data.self_critique import WholeSentences
from common.evaluation.answers import Constant, SelfRefining
from common.miniature.actors import MiniatureJudge, MiniatureTeacher
from common.miniature.worlds import safety
from common.schema import Reply, Sampling

ASKED = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]


def counting(name="counting", reply=lambda text: Reply(text=f"re {text}", completion_tokens=2)):
    """A chat model that notes what it is asked."""
    asked = []

    def answer(conversation):
        asked.append(conversation[-1]["content"])
        return reply(asked[-1])

    complete = lambda conversations, sampling, on_reply=None: hand_over(map(answer, conversations), on_reply)  # noqa: E731
    return SimpleNamespace(name=name, asked=asked, complete=complete)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["teacher", "judge", "constant", "local", "self-refining", "endpoint", "kept"])
def test_every_reply_is_shown_once_under_its_number(kind, tmp_path, load_micro):
    requests = [record.prompt for record in safety.prompts_for("train", 5, 0.25, 0)]
    asked = [[{"role": "user", "content": request}] for request in requests]
    with FaultServer() as server:
        local = LocalChat(*load_micro(), batch_size=2) if kind in ("local", "self-refining") else None
        chat = {
            "teacher": lambda: MiniatureTeacher(safety), "judge": lambda: MiniatureJudge(safety, safety.PROMPTS), "constant": lambda: Constant(str.upper),
            "local": lambda: local, "self-refining": lambda: SelfRefining(local, safety.PROMPTS),
            "endpoint": lambda: EndpointChat("m", server.url, ""), "kept": lambda: KeptChat(Constant(str.upper), tmp_path / "replies.jsonl"),
        }[kind]()  # fmt: skip
        asked = [safety.PROMPTS.judge_request(request, "No.") for request in requests] if kind == "judge" else asked
        shown = []
        replies = chat.complete(asked, Sampling(max_new_tokens=8), lambda row, reply: shown.append((row, reply)))
    assert len(replies) == 5 and sorted(shown, key=lambda item: item[0]) == list(enumerate(replies))
    assert isinstance(chat.name, str) and chat.name


@pytest.mark.parametrize("training", [True, False])
def test_an_error_while_generating_leaves_the_model_in_its_mode(training, load_micro, monkeypatch):
    model, tokenizer = load_micro()
    model.train(training)
    monkeypatch.setattr(model, "generate", lambda **_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        LocalChat(model, tokenizer).complete(ASKED, Sampling(max_new_tokens=8))
    assert model.training == training


def test_a_reply_is_on_disk_before_the_next_one_is_asked_for(tmp_path):
    path = tmp_path / "replies.jsonl"
    on_disk = []
    chat = counting(reply=lambda text: on_disk.append(len(lines(path))) or Reply(text=text))
    KeptChat(chat, path).complete(ASKED, Sampling())
    assert on_disk == [0, 1, 2, 3]


def test_what_was_asked_before_is_not_asked_again(tmp_path):
    chat = counting()
    first = KeptChat(chat, tmp_path / "replies.jsonl").complete(ASKED[:2], Sampling())
    kept = KeptChat(chat, tmp_path / "replies.jsonl")
    assert kept.complete(ASKED, Sampling())[:2] == first
    assert kept.complete([ASKED[3], ASKED[0]], Sampling()) == [Reply(text="re q3", completion_tokens=2), first[0]]
    assert chat.asked == ["q0", "q1", "q2", "q3"]


def test_the_same_request_twice_in_a_batch_is_asked_once(tmp_path):
    chat, shown = counting(), []
    replies = KeptChat(chat, tmp_path / "replies.jsonl").complete([ASKED[0], ASKED[1], ASKED[0]], Sampling(), lambda row, reply: shown.append(row))
    assert [reply.text for reply in replies] == ["re q0", "re q1", "re q0"] and sorted(shown) == [0, 1, 2] and chat.asked == ["q0", "q1"]


@pytest.mark.parametrize("changed", ["model", "text", "system", "temperature", "seed", "budget"])
def test_any_change_asks_anew(tmp_path, changed):
    KeptChat(counting(), tmp_path / "replies.jsonl").complete(ASKED[:1], Sampling(temperature=0.5))
    chat = counting("another" if changed == "model" else "counting")
    conversation = {"text": [{"role": "user", "content": "q0 "}], "system": [{"role": "system", "content": "Be kind."}, *ASKED[0]]}.get(changed, ASKED[0])
    sampling = {"temperature": Sampling(temperature=0.6), "seed": Sampling(temperature=0.5, seed=1), "budget": Sampling(temperature=0.5, max_new_tokens=9)}
    KeptChat(chat, tmp_path / "replies.jsonl").complete([conversation], sampling.get(changed, Sampling(temperature=0.5)))
    assert len(chat.asked) == 1


@pytest.mark.parametrize("reason, kept", [("stop", True), ("length", True), ("content_filter", False), ("error: status 500, asked 8 times", False)])
def test_failed_and_filtered_replies_are_asked_for_again(tmp_path, reason, kept):
    chat = counting(reply=lambda text: Reply(text="t", finish_reason=reason))
    for _ in range(2):
        [reply] = KeptChat(chat, tmp_path / "replies.jsonl").complete(ASKED[:1], Sampling())
        assert reply.finish_reason == reason
    assert len(chat.asked) == (1 if kept else 2)


def test_a_failure_keeps_what_came_before_and_leaves_the_file_free(tmp_path):
    def fails_at_q2(text):
        if text == "q2":
            raise ConnectionError("gone")
        return Reply(text=text)

    broken = KeptChat(counting(reply=fails_at_q2), tmp_path / "replies.jsonl")
    with pytest.raises(ConnectionError):
        broken.complete(ASKED, Sampling())
    chat = counting()
    KeptChat(chat, tmp_path / "replies.jsonl").complete(ASKED, Sampling())  # while `broken` is still there, as in a notebook
    assert chat.asked == ["q2", "q3"]
    assert [reply.text for reply in broken.complete(ASKED, Sampling())] == ["q0", "q1", "re q2", "re q3"]


def test_a_second_writer_is_told_so_before_anything_is_asked(tmp_path):
    path, chat = tmp_path / "replies.jsonl", counting()
    hold = "import sys; from common.storage import JsonlStore; store = JsonlStore(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(BlockingIOError, match="replies.jsonl is being written by another process"):
            KeptChat(chat, path).complete(ASKED, Sampling())
        holder.stdin.close()
    assert chat.asked == []


def test_recorded_replies_need_no_model(tmp_path):
    made = KeptChat(counting(), tmp_path / "replies.jsonl").complete(ASKED, Sampling())
    recorded = KeptChat(None, tmp_path / "replies.jsonl")
    assert recorded.name == "counting" and recorded.complete(ASKED[::-1], Sampling()) == made[::-1]


@pytest.mark.parametrize("end", ["", "\n"])
def test_recorded_replies_are_read_and_never_written(tmp_path, end):
    path = tmp_path / "replies.jsonl"
    made = KeptChat(counting(), path).complete(ASKED, Sampling())
    path.write_text("\ufeff" + path.read_text().rstrip() + end)
    path.chmod(0o444)
    before, changed = path.read_bytes(), path.stat().st_mtime_ns
    recorded = KeptChat(None, path)
    assert recorded.complete(ASKED, Sampling()) == recorded.complete(ASKED, Sampling()) == made
    with pytest.raises(LookupError, match="holds no reply to some of what is asked"):
        recorded.complete([[{"role": "user", "content": "another"}]], Sampling())
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, changed)


def test_what_was_not_recorded_is_a_clear_error(tmp_path):
    path = tmp_path / "replies.jsonl"
    with pytest.raises(LookupError, match="must hold the recorded replies of one model; it holds those of none"):
        KeptChat(None, path)
    KeptChat(counting(), path).complete(ASKED[:1], Sampling())
    with pytest.raises(LookupError, match="holds no reply to some of what is asked"):
        KeptChat(None, path).complete(ASKED, Sampling())
    KeptChat(counting("another"), path).complete(ASKED[:1], Sampling())
    with pytest.raises(LookupError, match="one model; it holds those of another, counting"):
        KeptChat(None, path)


def test_a_reply_that_was_cut_off_ends_with_its_last_whole_sentence():
    given = [("One. Two. Thr", "length"), ("One. Two. Thr", "stop"), ("no end", "length"), ("It costs 3. 50", "length")]
    chat = SimpleNamespace(name="cut", complete=lambda conversations, sampling, on_reply: hand_over((Reply(text=text, finish_reason=reason) for text, reason in given), on_reply))
    shown = []
    replies = WholeSentences(chat).complete([[]] * 4, Sampling(), lambda row, reply: shown.append(row))
    assert [(reply.text, reply.finish_reason) for reply in replies] == [("One. Two.", "stop"), *given[1:]] and shown == [0, 1, 2, 3]
