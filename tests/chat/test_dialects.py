"""What servers' answers mean, in their dialects: `pytest tests/chat/test_dialects.py`. Bodies are modelled on public reports, in our own words."""

import json

import pytest

from common.chat.dialects import Unreadable, body_of, error_in, reply_in, tokens_in, trouble
from common.chat.endpoint import EndpointChat


def choice(**message):
    reason = message.pop("finish_reason", "stop")
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


@pytest.mark.parametrize(("fields", "text", "reason"), [
    (choice(content="fine"), "fine", "stop"),
    (choice(content=[{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]), "fine", "stop"),
    (choice(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "plan"}]}, {"type": "text", "text": "fine"}]), "fine", "stop"),
    (choice(content=["fine"]), "fine", "stop"),
    (choice(content={"type": "text", "text": "fine"}), "fine", "stop"),
    (choice(content=None, refusal="I will not."), "I will not.", "stop"),
    (choice(content="fine", reasoning_content="plan"), "fine", "stop"),
    (choice(content="", reasoning_content="plan", finish_reason="length"), "", "length"),
    (choice(content=None, finish_reason="content_filter"), "", "content_filter"),
    (choice(finish_reason="SAFETY"), "", "content_filter"),
    ({"choices": [{"text": "fine", "finish_reason": "eos"}]}, "fine", "stop"),
    ({"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}, "", "content_filter"),
])  # fmt: skip
def test_the_reply_is_found_wherever_a_server_puts_it(fields, text, reason):
    reply, unknown = reply_in(fields, budget=16)
    assert (reply.text, reply.finish_reason, unknown) == (text, reason, "")


@pytest.mark.parametrize(("message", "why"), [
    ({"content": "", "reasoning_content": "x" * 40}, "40 characters of reasoning"), ({"content": None, "reasoning": "plan"}, "4 characters of reasoning"),
    ({"content": None, "tool_calls": [{"id": "1"}]}, "a tool"), ({"content": " \n"}, "no words"), ({"content": "<think>plan</think>"}, "no words"),
])  # fmt: skip
def test_a_finished_reply_without_words_fails_and_says_why(message, why):
    reply, _ = reply_in(choice(**message), budget=16)
    assert reply.failed and why in reply.finish_reason


def test_an_unknown_reason_is_an_answer_and_is_named():
    assert reply_in(choice(content="fine", finish_reason="moon"), 16)[1] == "moon"
    assert reply_in(choice(content="fine", finish_reason=None), 16)[1] == "none"


@pytest.mark.parametrize("body", ["", "{", "[]", "[1]", "3", "<html>busy</html>", 'data: {"choices": []}\n\n', "x" * 1000, "[" * 100_000])
def test_a_body_without_a_reply_is_unreadable_and_shows_itself(body):
    with pytest.raises(Unreadable) as caught:
        reply_in(body_of(body), 16)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fields", [{}, {"choices": None}, {"choices": []}, {"choices": [3]}, {"choices": [{"message": "fine"}]}, choice(content=None)])
def test_an_object_without_a_reply_is_unreadable(fields):
    with pytest.raises(Unreadable):
        reply_in(fields, 16)


def test_a_byte_order_mark_hides_nothing():
    assert body_of("\ufeff" + json.dumps(choice(content="fine"))) == choice(content="fine")


@pytest.mark.parametrize(("usage", "tokens"), [
    ({"prompt_tokens": 5, "completion_tokens": 3}, (5, 3)), ({"input_tokens": 5, "output_tokens": 3}, (5, 3)), ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 20}, (5, 15)),
    ({"total_tokens": 8}, (None, None)), ({"prompt_tokens": 5}, (5, None)), ({"prompt_tokens": 0, "completion_tokens": 0}, (None, None)), ({"prompt_tokens": "5", "completion_tokens": 3.2}, (5, 4)),
    ({"prompt_tokens": -5, "completion_tokens": float("nan")}, (None, None)), ({"prompt_tokens": True, "completion_tokens": None}, (None, None)), (None, (None, None)), ([], (None, None)), ("x", (None, None)),
])  # fmt: skip
def test_what_a_bill_hides_is_unknown(usage, tokens):
    assert tokens_in({"usage": usage}) == tokens


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 8}, {"prompt_tokens": 5}, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_no_bill_passes_the_cap_however_little_it_tells(usage):
    chat = EndpointChat("m", "http://host/v1", "", prices=(1.0, 2.0), max_cost=1.0)
    worst = (100, 16)
    paid = [told or most for told, most in zip(tokens_in({"usage": usage}), worst)]
    assert chat.price(*paid) >= chat.price(5, 16)


TROUBLES = [
    ("length", 400, {"error": {"message": "This model's maximum context length is 2048 tokens. However, you requested 6000 tokens.", "code": 400}}),
    ("length", 400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
    ("length", 400, {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it", "type": "exceed_context_size_error"}}),
    ("length", 500, {"error": {"message": "the prompt (5000 tokens) does not fit: context size is 2048, n_ctx"}}),
    ("length", 400, {"object": "error", "message": "The prompt is too long: 9000 tokens", "type": "BadRequestError"}),
    ("length", 422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 256 `max_new_tokens`, which exceeds the maximum context"}),
    ("length", 413, {"error": {"message": "Request too large for model on tokens per minute (TPM): Limit 6000, Requested 9000", "code": "rate_limit_exceeded"}}),
    ("length", 413, "Payload Too Large"),
    ("length", 429, {"error": {"message": "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.", "code": "rate_limit_exceeded"}}),
    ("length", 429, {"error": {"message": "Rate limit reached on tokens per min (TPM): Limit 30,000, Used 0, Requested 40,000."}}),
    ("pause", 429, {"error": {"message": "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29500, Requested 1200. Please try again in 1.4s.", "code": "rate_limit_exceeded"}}),
    ("again", 408, {"error": {"message": "the request took too long"}}), ("again", 504, "The request took too long to process"), ("again", 503, "Request rate limit exceeded"),
    ("moderation", 403, {"error": {"code": 403, "message": "Your input was flagged for violence.", "metadata": {"reasons": ["violence"]}}}),
    ("moderation", 400, {"error": {"code": "content_filter", "message": "The response was filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    ("moderation", 400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."}),
    ("moderation", 400, {"error": {"message": "Your prompt was rejected by our safety system.", "type": "invalid_request_error"}}),
    ("moderation", 451, {"error": {"message": "content policy"}}),
    ("request", 400, {"error": {"message": "this cannot be done"}}),
    ("request", 422, {"detail": [{"loc": ["body", "messages", 0], "msg": "bad value"}]}),
    ("parameter", 400, {"error": {"message": "Unsupported value: 'temperature' does not support 0.0 with this model.", "param": "temperature", "code": "unsupported_value"}}),
    ("parameter", 400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "param": "max_tokens"}}),
    ("parameter", 422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}),
    ("run", 401, {"error": {"message": "Incorrect API key provided"}}),
    ("run", 402, {"error": {"message": "Insufficient Balance"}}),
    ("request", 403, {"error": {"message": "Your account was flagged and is not allowed to use this model"}}),
    ("run", 404, {"error": {"message": "The model `m` does not exist"}}),
    ("request", 400, {"error": {"message": "Your credit balance is too low to access the API"}}),
    ("request", 400, {"error": {"message": "API key not valid. Please pass a valid API key."}}),
    ("run", 429, {"error": {"message": "You exceeded your current quota, please check your plan and billing details.", "code": "insufficient_quota"}}),
    ("run", 200, {"code": 402, "message": "Insufficient credits"}),
    ("run", 200, "Unexpected endpoint or method. (POST /v1/v1/chat/completions)"),
    ("run", 200, {"message": "Invalid API key", "code": "401"}),
    ("pause", 429, {"error": {"message": "You exceeded your current quota. Please retry in 35.5s.", "status": "RESOURCE_EXHAUSTED"}}),
    ("pause", 429, {"error": {"message": "Rate limit reached"}}),
    ("pause", 200, {"code": 429, "message": "slow down"}),
    ("again", 503, {"error": {"message": "Model is loading", "type": "unavailable_error"}}),
    ("again", 500, "<html><body>Internal error</body></html>"),
    ("again", 200, {"code": 502, "message": "the provider returned an error"}),
    ("again", 408, ""), ("again", 529, {"error": {"type": "overloaded_error", "message": "Overloaded"}}),
]  # fmt: skip


@pytest.mark.parametrize(("concerns", "status", "body"), TROUBLES)
def test_a_trouble_costs_one_conversation_or_stops_the_run_or_passes(concerns, status, body):
    assert trouble(status, body).concerns == concerns


def test_the_words_are_the_servers_and_one_line():
    assert trouble(402, {"error": {"message": "Insufficient\n  Balance", "code": "x"}}).words == "Insufficient Balance"
    assert trouble(500, "<html><body>Internal <b>error</b></body></html>").words == "Internal error"
    assert trouble(400, {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "prompt is too long"}}'}}}).concerns == "length"
    assert trouble(429, {"error": {"message": "try again in 1m2.5s"}}).seconds == 62.5


@pytest.mark.parametrize(("fields", "found"), [
    ({"error": {"message": "x"}}, {"message": "x"}), ({"error": "x"}, "x"), ({"detail": "x"}, {"detail": "x"}), ({"object": "error", "message": "x"}, {"object": "error", "message": "x"}),
    ({"choices": [{"error": {"message": "x"}, "finish_reason": "error"}]}, {"message": "x"}), ({"error": None, **choice(content="fine")}, None), (choice(content="fine"), None),
])  # fmt: skip
def test_an_error_inside_a_200_is_seen(fields, found):
    assert error_in(fields) == found
