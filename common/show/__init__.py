"""What notebooks show a reader: pairs word by word, chats token by token, answers before and after."""

from common import hand_on

__all__, __getattr__ = hand_on(
    __name__,
    {
        "Shown": "tables",
        "facts": "tables",
        "pairs_table": "tables",
        "answers_table": "tables",
        "ask": "answers",
        "last_student": "answers",
        "packed_row_figure": "tokens",
        "rendered_chat": "tokens",
    },
)
