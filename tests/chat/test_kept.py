"""Replies on disk: another model behind the same name is noticed (pytest tests/chat/test_kept.py)."""

import pytest

from common.chat.kept import KeptChat
from common.chat.pacing import EndpointError
from common.schema import Reply, Sampling
from common.storage import read_lines

GREEDY = Sampling(max_new_tokens=8)


class Served:
    """Answers under the names that it is given, one after the other."""

    name = "teacher at http://here/v1"

    def __init__(self, *models):
        self.models, self.asked = iter(models), 0

    def complete(self, conversations, sampling, on_reply=None):
        replies = []
        for number, conversation in enumerate(conversations):
            self.asked += 1
            replies.append(Reply(text=f"to {conversation[-1]['content']}", model=next(self.models)))
            if on_reply:
                on_reply(number, replies[-1])
        return replies


def ask(*words):
    return [[{"role": "user", "content": word}] for word in words]


@pytest.mark.parametrize("in_one_run", [True, False])
def test_another_model_behind_the_name_stops_the_run_and_what_was_paid_stays(in_one_run, tmp_path):
    chat = Served("small", "small", "large")
    kept = KeptChat(chat, tmp_path / "replies.jsonl")
    kept.complete(ask("a", "b"), GREEDY)
    again = kept if in_one_run else KeptChat(chat, tmp_path / "replies.jsonl")
    with pytest.raises(EndpointError, match="teacher at http://here/v1 answers as 'large' now and answered as 'small' before.*serve small again"):
        again.complete(ask("c"), GREEDY)
    assert [fields["text"] for _, fields in read_lines(tmp_path / "replies.jsonl")] == ["to a", "to b"]
    back = Served("small")
    assert [reply.text for reply in KeptChat(back, tmp_path / "replies.jsonl").complete(ask("a", "b", "c"), GREEDY)] == ["to a", "to b", "to c"]
    assert back.asked == 1


def test_a_server_that_names_no_model_is_believed(tmp_path):
    kept = KeptChat(Served("", "small", ""), tmp_path / "replies.jsonl")
    assert [reply.model for reply in kept.complete(ask("a", "b", "c"), GREEDY)] == ["", "small", ""]
    assert ["model" in fields for _, fields in read_lines(tmp_path / "replies.jsonl")] == [False, True, False]
