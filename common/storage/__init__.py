"""Records as JSON lines that survive a crash, and files that are written whole."""

from common.storage.files import check_new, claim, whole_folder, write_json, write_jsonl, write_whole
from common.storage.lines import (
    Records,
    check_characters,
    parse_json,
    parse_object,
    read_lines,
    read_records,
    refuse_repeats,
)
from common.storage.store import FailedStore, JsonlStore, make_missing
from common.storage.yaml_text import read_yaml

__all__ = [
    "FailedStore",
    "JsonlStore",
    "Records",
    "check_characters",
    "check_new",
    "claim",
    "make_missing",
    "parse_json",
    "parse_object",
    "read_lines",
    "read_records",
    "read_yaml",
    "refuse_repeats",
    "whole_folder",
    "write_json",
    "write_jsonl",
    "write_whole",
]
