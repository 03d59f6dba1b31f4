"""Real requests over a real socket to a server that fails on purpose: `pytest tests/chat/test_endpoint.py`."""

import asyncio
import base64
import json
import os
import signal
import threading
import traceback

import pytest
from fault_server import FAULTS, TIMEOUT, FaultServer, answer_to, providers_file
from papermill.exceptions import PapermillExecutionError

from common.chat.endpoint import HARMLESS, EndpointChat
from common.chat.kept import KeptChat
from common.chat.pacing import EndpointError, retry_after
from common.notebook.execute import execute
from common.schema import Sampling

QUESTIONS = [[{"role": "user", "content": f"question {i}"}] for i in range(24)]
CANARY = 'sk-canary"A1b2C3d4E5f6\\'


def chat_with(server, concurrency=8, **settings):
    timeout = TIMEOUT if server.fault == "timeout" else 30
    return EndpointChat("m", server.url, "", concurrency, timeout, backoff=0.02, **settings)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("length", "content_filter")])
def test_transient_faults_are_asked_again_until_answered(fault):
    with FaultServer(fault, rate=0.4) as server:
        replies = chat_with(server).complete(QUESTIONS, Sampling())
    assert [reply.text for reply in replies] == [answer_to(question) for question in QUESTIONS]
    assert len(server.asked) > len(server.answered) == len(QUESTIONS)


def test_an_answer_comes_with_its_tokens_and_its_order():
    with FaultServer() as server:
        seen, chat = {}, chat_with(server)
        replies = chat.complete(QUESTIONS, Sampling(temperature=0.5, max_new_tokens=7, seed=3), lambda row, reply: seen.update({row: reply}))
    assert seen == dict(enumerate(replies))
    assert replies[0].model_dump() == {"text": answer_to(QUESTIONS[0]), "finish_reason": "stop", "prompt_tokens": 2, "completion_tokens": 5}
    assert chat.usage == {"requests": 24, "prompt_tokens": 48, "completion_tokens": 120}
    assert server.asked[0] == {"model": "m", "messages": QUESTIONS[0], "temperature": 0.5, "seed": 3, "max_tokens": 7}


@pytest.mark.parametrize("status", ["401", "403", "404", "quota"])
def test_what_cannot_get_better_is_asked_once_and_stops_the_run(status):
    with FaultServer(status) as server, pytest.raises(EndpointError, match=f"answered {429 if status == 'quota' else status}: .*no, for POST"):
        chat_with(server).complete(QUESTIONS, Sampling())
    assert len(server.asked) == 1


def test_a_refusal_of_everything_stops_the_run_after_one_harmless_question():
    with FaultServer("400") as server, pytest.raises(EndpointError, match="refuses every request: answered 400: .*no, for POST"):
        chat_with(server).complete(QUESTIONS, Sampling())
    assert [request["messages"] for request in server.asked] == [QUESTIONS[0], HARMLESS]


def test_a_stop_half_way_hands_over_what_is_in_flight():
    with FaultServer(delay=0.1) as server:
        def revoke(count):
            server.fault = "401" if count >= 5 else ""

        server.on_answer, got = revoke, []
        with pytest.raises(EndpointError):
            chat_with(server).complete(QUESTIONS, Sampling(), lambda row, reply: got.append(row))
    assert len(got) == len(server.answered) < len(server.asked) <= len(got) + 8


def test_a_conversation_that_is_too_long_fails_alone():
    with FaultServer("too long", rate=0.3) as server:
        replies = chat_with(server).complete(QUESTIONS, Sampling())
    assert {reply.finish_reason[:30] for reply in replies} == {"stop", "error: too long for the model "}
    assert len(server.asked) == len(QUESTIONS)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_the_finish_reason_is_kept(reason):
    with FaultServer(reason) as server:
        [reply] = chat_with(server).complete(QUESTIONS[:1], Sampling())
    assert (reply.finish_reason, reply.text) == (reason, "answer" if reason == "length" else "")


def test_one_conversation_without_an_answer_does_not_stop_the_others():
    with FaultServer() as server:
        chat = chat_with(server, attempts=3)
        chat.complete(QUESTIONS[:1], Sampling())
        server.reply_of = server.reply
        server.reply = lambda fault, request, head: "{" if request["messages"] == QUESTIONS[7] else server.reply_of(fault, request, head)
        replies = chat.complete(QUESTIONS, Sampling())
    assert replies[7].finish_reason == "error: unreadable reply (no JSON: {), asked 3 times" and not replies[7].whole and replies[7].failed
    assert [i for i, reply in enumerate(replies) if not reply.whole] == [7]


def test_an_endpoint_that_never_answers_stops_the_run_after_one_conversation():
    with FaultServer("503") as server, pytest.raises(EndpointError, match="does not answer: answered 503: no, for .*, asked 3 times for each of 1"):
        chat_with(server, attempts=3).complete(QUESTIONS, Sampling())
    assert [request["messages"] for request in server.asked] == [QUESTIONS[0]] * 3 + [HARMLESS]


@pytest.mark.parametrize("fault", ["503", "400"])
def test_a_conversation_that_never_gets_an_answer_does_not_stop_a_run_that_begins_with_it(fault):
    with FaultServer() as server:
        whole = server.handle

        async def handle(head, request, writer):
            server.fault = fault if request["messages"] == QUESTIONS[0] else ""
            await whole(head, request, writer)

        server.handle = handle
        chat = chat_with(server, attempts=2, concurrency=1)
        replies = chat.complete(QUESTIONS[:3], Sampling())
        again = chat_with(server, attempts=2, concurrency=1).complete(QUESTIONS[:1], Sampling())
    assert [reply.failed for reply in [*replies, *again]] == [True, False, False, True]


def test_a_key_that_is_a_word_changes_no_reply(monkeypatch):
    monkeypatch.setenv("A_KEY", "test")
    with FaultServer() as server:
        served(server, "This is a test.")
        [reply] = EndpointChat("m", server.url, "A_KEY").complete(QUESTIONS[:1], Sampling())
    assert reply.text == "This is a test."


def test_an_endpoint_that_goes_away_for_good_stops_the_run():
    with FaultServer() as server:
        chat = chat_with(server, concurrency=4, attempts=3)
        chat.complete(QUESTIONS[:1], Sampling())
    with pytest.raises(EndpointError, match="does not answer: connection refused, asked 3 times for each of 4"):
        chat.complete(QUESTIONS, Sampling())


def test_an_endpoint_that_comes_back_in_time_is_waited_for():
    with FaultServer() as server:
        pass
    back = FaultServer(port=server.port)
    timer = threading.Timer(0.3, back.__enter__)
    timer.start()
    replies = EndpointChat("m", server.url, "", backoff=0.1).complete(QUESTIONS[:3], Sampling())
    timer.join()
    back.__exit__()
    assert all(reply.whole for reply in replies)


def test_one_refusal_pauses_every_worker_for_as_long_as_the_endpoint_says():
    with FaultServer("429 with Retry-After", rate=0.3, retry_after=0.5) as server:  # 3 of the first 24
        assert all(reply.whole for reply in chat_with(server).complete(QUESTIONS, Sampling()))
    assert server.refused_at
    for refused in server.refused_at:
        assert [t for t in server.asked_at if refused + 0.2 < t < refused + 0.5] == []


def test_refusals_without_end_stop_the_run():
    with FaultServer("429") as server, pytest.raises(EndpointError, match=r"refused through 4 pauses \(429: no, for "):
        chat_with(server, attempts=4).complete(QUESTIONS, Sampling())
    assert len(server.asked) == 5


def test_a_refusal_for_a_day_stops_the_run_at_once():
    with FaultServer("429 with Retry-After", retry_after=86400) as server, pytest.raises(EndpointError, match="asks to wait 86400 s"):
        chat_with(server).complete(QUESTIONS, Sampling())


@pytest.mark.parametrize("value, seconds", [("3", 3), ("0.5", 0.5), ("-1", 0), ("", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)])
def test_retry_after_is_a_number_or_a_date(value, seconds):
    assert retry_after({"retry-after": value}) == seconds
    assert retry_after({}) is None


def served(server, message="", finish_reason="stop", usage=None, only=None, status_body=None):
    """Makes the server answer (where `only` is the conversation) with this choice, or with this whole body."""
    whole = server.reply

    def reply(fault, request, head):
        if only and request["messages"] != only:
            return whole(fault, request, head)
        return status_body or json.dumps({"choices": [{"message": {"content": message}, "finish_reason": finish_reason}], "usage": usage})

    server.reply = reply


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 3}, {"prompt_tokens": 2}, {"prompt_tokens": 0, "completion_tokens": 0}, {"completion_tokens": -1}])
def test_the_cost_cap_holds_whatever_the_bill_hides(usage):
    with FaultServer() as server, pytest.raises(EndpointError, match="could pass max_cost"):
        served(server, "fine", usage=usage)
        chat_with(server, prices=(0, 1000), max_cost=0.035).complete(QUESTIONS, Sampling(max_new_tokens=10))
    assert len(server.asked) == 3  # ten tokens of each count, as at worst


def test_unknown_finish_reasons_are_answers_and_are_counted(capsys):
    with FaultServer() as server:
        served(server, "fine", finish_reason="moonrise")
        chat = chat_with(server)
        assert all(reply.whole for reply in chat.complete(QUESTIONS, Sampling()))
    assert chat.usage["finish_reason moonrise"] == 24 and capsys.readouterr().out.count("moonrise") == 1


@pytest.mark.parametrize(("code", "match"), [(402, "out of credits"), (401, "out of credits"), ("invalid_api_key", "out of credits")])
def test_an_error_inside_a_200_stops_the_run_with_the_servers_words(code, match):
    with FaultServer() as server, pytest.raises(EndpointError, match=match):
        served(server, status_body=json.dumps({"error": {"message": "You are out of credits", "code": code}}))
        chat_with(server).complete(QUESTIONS, Sampling())
    assert len(server.asked) == 1


def test_a_refusal_in_unknown_words_costs_its_conversation_even_where_it_is_the_first_or_the_only_one():
    with FaultServer() as server:
        served(server, status_body='{"error": {"message": "no parking here", "code": 400}}', only=QUESTIONS[0])
        replies = chat_with(server).complete(QUESTIONS, Sampling())
        assert replies[0].finish_reason == "error: refused (no parking here)" and all(reply.whole for reply in replies[1:])
        assert chat_with(server).complete(QUESTIONS[:1], Sampling())[0].failed


def test_a_403_after_answers_costs_its_conversation_where_others_are_still_answered():
    with FaultServer() as server:
        whole = server.reply
        server.reply = lambda fault, request, head: '{"error": {"message": "not for this one", "code": 403}}' if request["messages"] == QUESTIONS[5] else whole(fault, request, head)
        replies = chat_with(server).complete(QUESTIONS, Sampling())
    assert [i for i, reply in enumerate(replies) if reply.failed] == [5]


def test_a_model_that_takes_no_budget_by_either_name_is_not_asked():
    with FaultServer() as server, pytest.raises(EndpointError, match="max_completion_tokens is not supported"):
        server.reply = lambda fault, request, head: json.dumps({"error": {"code": 400, "message": f"{next(name for name in request if name.startswith('max_'))} is not supported"}})
        chat_with(server).complete(QUESTIONS, Sampling())
    assert len(server.asked) == 2


def test_a_setting_that_the_model_does_not_take_is_left_out_once_for_all(capsys):
    with FaultServer() as server:
        whole = server.reply
        server.reply = lambda fault, request, head: json.dumps({"error": {"code": 400, "param": "temperature", "message": "temperature is not supported"}}) if "temperature" in request else whole(fault, request, head)
        chat = chat_with(server)
        assert all(reply.whole for reply in chat.complete(QUESTIONS, Sampling()))
    assert len(server.asked) == 25 and chat.usage["without temperature"] == 1 and capsys.readouterr().out.count("does not take temperature") == 1


def test_half_a_character_in_a_prompt_is_replaced():
    with FaultServer() as server:
        assert chat_with(server).complete([[{"role": "user", "content": "so \ud83d"}]], Sampling())[0].whole
    assert server.asked[0]["messages"][0]["content"] == "so \ufffd"


@pytest.mark.parametrize("key", ["sk-abc\n", " sk-abc "])
def test_space_around_a_key_is_no_part_of_it(key, monkeypatch):
    monkeypatch.setenv("SOME_KEY", key)
    with FaultServer("401") as server, pytest.raises(EndpointError) as caught:
        EndpointChat("m", server.url, "SOME_KEY").complete(QUESTIONS[:1], Sampling())
    assert "Bearer [key]" in str(caught.value)


@pytest.mark.parametrize("key", ["\u201csk-abc\u201d", "sk-\nabc", "sk abc", "sk-\u00e4"])
def test_a_key_that_no_header_can_carry_names_its_variable(key, monkeypatch):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(EndpointError, match="SOME_KEY holds characters"):
        EndpointChat("m", "http://127.0.0.1:9/v1", "SOME_KEY").complete(QUESTIONS[:1], Sampling())


def test_it_works_inside_a_running_event_loop():
    async def cell():
        return chat_with(server).complete(QUESTIONS[:2], Sampling())

    with FaultServer() as server:
        assert [reply.whole for reply in asyncio.run(cell())] == [True, True]


@pytest.mark.slow
def test_many_requests_are_in_flight_at_once():
    with FaultServer(delay=0.3) as server:
        chat = EndpointChat("m", server.url, "", concurrency=32)
        chat.complete(QUESTIONS[:1], Sampling())
        chat.complete([[{"role": "user", "content": str(i)}] for i in range(128)], Sampling())
    assert server.most_at_once == 32  # what that is worth in seconds is measured in tests/reliability.py


def test_an_interrupt_waits_for_what_is_in_flight_and_asks_no_more():
    with FaultServer() as server:
        chat, got = chat_with(server), []
        chat.complete(QUESTIONS[:1], Sampling())
        server.delay = 1
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                chat.complete(QUESTIONS, Sampling(), lambda row, reply: got.append(row))
        finally:
            signal.signal(signal.SIGINT, handler)
    assert len(got) == len(server.asked) - 1 == 8


def test_the_cost_cap_is_never_passed_and_nearly_reached():
    # 2 + 5 tokens an answer at 1000 dollars a million; 284 + 6 at worst, so it stops within 0.29 dollars of the cap
    with FaultServer(delay=0.01) as server:
        chat = chat_with(server, prices=(1000, 1000), max_cost=0.4)
        with pytest.raises(EndpointError, match="could pass max_cost = 0.4"):
            chat.complete(QUESTIONS, Sampling(max_new_tokens=6))
    assert chat.cost == pytest.approx(0.007 * len(server.answered)) and 0.4 - 0.29 - 0.007 < chat.cost <= 0.4


def test_an_answer_with_an_unknown_bill_counts_with_its_worst():
    with FaultServer("reset") as server, pytest.raises(EndpointError, match="could pass max_cost"):
        chat = chat_with(server, prices=(0, 1000), max_cost=0.035)
        chat.complete(QUESTIONS, Sampling(max_new_tokens=10))
    assert len(server.asked) == 3 and chat.cost == pytest.approx(0.03)


def test_a_reply_that_cannot_be_kept_stops_the_run():
    def full_disk(row, reply):
        raise OSError(28, "No space left on device")

    with FaultServer() as server, pytest.raises(OSError, match="No space left"):
        chat_with(server).complete(QUESTIONS, Sampling(), full_disk)
    assert len(server.asked) <= 9


@pytest.mark.parametrize("settings, message", [
    ({"api_key_env": "sk-123-abc"}, "never the key itself"),
    ({"base_url": "https://me:secret@host/v1"}, "without user, password"),
    ({"base_url": "host/v1"}, "must look like https://host/v1"),
    ({"max_cost": 3.0}, "needs prices"),
    ({"prices": [1.0]}, "per million prompt tokens and"),
])  # fmt: skip
def test_bad_settings_are_refused_and_secrets_not_repeated(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        EndpointChat(**{"model": "m", "base_url": "http://host/v1", "api_key_env": "", **settings})
    assert "123" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_missing_key_is_named_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with FaultServer() as server, pytest.raises(EndpointError, match="NO_SUCH_KEY is not set"):
        EndpointChat("m", server.url, "NO_SUCH_KEY").complete(QUESTIONS, Sampling())
    assert server.asked == []


def forms_of(key):
    return [key, key[:8], json.dumps(key)[1:-1], base64.b64encode(key.encode()).decode().rstrip("=")[:-1]]


def test_the_key_is_in_no_traceback_and_no_repr(monkeypatch):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    with FaultServer("401") as server:  # which repeats the request's headers
        chat = EndpointChat("m", server.url, "CANARY_KEY")
        with pytest.raises(EndpointError) as caught:
            chat.complete(QUESTIONS, Sampling())
    assert "Bearer [key]" in str(caught.value)
    below = caught.value.__traceback__.tb_next  # this test's own frame holds the key
    shown = "".join(traceback.TracebackException(EndpointError, caught.value, below, capture_locals=True).format()) + repr(vars(chat)) + chat.name
    assert [form for form in forms_of(CANARY) if form in shown] == []


def goals(folder):
    (folder / "goals.csv").write_text("goal,target\n" + "".join(f"Write a mean note number {i},Sure\n" for i in range(60)))
    return str(folder / "goals.csv")


@pytest.mark.slow
def test_the_key_reaches_no_file_of_a_notebook_that_works_and_then_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    with FaultServer() as server:
        def revoke(count):
            server.fault = "401" if count >= 5 else ""

        server.on_answer = revoke
        parameters = {"output": str(tmp_path / "run"), "source": goals(tmp_path), "prompts": 0, "teacher": "endpoint:m", "providers": providers_file(tmp_path, there={"base_url": server.url, "api_key_env": "CANARY_KEY"})}
        with pytest.raises(PapermillExecutionError, match="answered 401"):
            execute("safety/generate_data.ipynb", tmp_path / "generate_data.ipynb", parameters)
    replies = (tmp_path / "run" / "teacher_replies.jsonl").read_text().splitlines()
    assert 5 <= len(replies) == len(server.answered)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "answered 401" in (tmp_path / "generate_data.ipynb").read_text() and len(files) >= 3
    assert [(path.name, form) for path in files for form in forms_of(CANARY) if form in path.read_text(errors="replace")] == []


@pytest.mark.slow
def test_a_pilot_of_useless_chains_stops_the_notebook_before_the_other_prompts_are_asked(tmp_path):
    with FaultServer() as server:
        whole = server.reply
        server.reply = lambda fault, request, head: whole(fault, {**request, "messages": QUESTIONS[0]}, head)  # the same words to everything
        parameters = {"output": str(tmp_path / "run"), "source": goals(tmp_path), "prompts": 0, "teacher": "endpoint:m", "providers": providers_file(tmp_path, there={"base_url": server.url, "api_key_env": ""}), "pilot": 8}
        with pytest.raises(PapermillExecutionError, match="0 of 8 chains are usable, less than least_yield = 30%"):
            execute("safety/generate_data.ipynb", tmp_path / "generate_data.ipynb", parameters)
        assert len(server.asked) == 24


@pytest.mark.slow
def test_the_manifest_says_what_the_run_paid(tmp_path):
    with FaultServer() as server:
        parameters = {"output": str(tmp_path), "source": goals(tmp_path), "prompts": 0, "teacher": "endpoint:m", "providers": providers_file(tmp_path, there={"base_url": server.url, "api_key_env": "", "prices": [0.0, 100.0]})}
        execute("safety/generate_data.ipynb", tmp_path / "generate_data.ipynb", parameters)
    manifest = json.loads((tmp_path / "generate_data.manifest.json").read_text())
    tokens = {"prompt_tokens": manifest["usage"]["prompt_tokens"], "completion_tokens": 900}  # five in each of 180 replies, 100 dollars a million
    assert manifest["yield"]["usable"] == 60 and manifest["prompts_version"] == "safety-2"
    assert manifest["usage"] == tokens and manifest["paid"] == {"requests": 180, **tokens, "dollars": 0.09}


def test_kept_replies_of_an_endpoint_cost_nothing_the_second_time(tmp_path):
    with FaultServer() as server:
        first = KeptChat(chat_with(server), tmp_path / "replies.jsonl").complete(QUESTIONS, Sampling())
        assert len(server.asked) == 24
        assert KeptChat(chat_with(server), tmp_path / "replies.jsonl").complete(QUESTIONS, Sampling()) == first
        assert len(server.asked) == 24
    assert KeptChat(None, tmp_path / "replies.jsonl").complete(QUESTIONS, Sampling()) == first  # no server any more
