"""What notebooks show a reader: pairs word by word, chats token by token, answers before and after."""

from common.show.answers import ask, last_student
from common.show.tables import Shown, answers_table, facts, pairs_table
from common.show.tokens import packed_row_figure, rendered_chat

__all__ = [
    "Shown",
    "answers_table",
    "ask",
    "facts",
    "last_student",
    "packed_row_figure",
    "pairs_table",
    "rendered_chat",
]
