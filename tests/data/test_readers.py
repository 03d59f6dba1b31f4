"""Tables that somebody else wrote: read as they were meant, or refused with file, line and remedy (pytest tests/data/test_readers.py)."""

import json

import pytest
from pydantic import BaseModel

from common.data.readers import OptionalText, Score, Text, by_id, read_rows, read_table, score_of


class Pair(BaseModel):
    prompt: Text
    chosen: Text
    score: Score = None
    system: OptionalText = ""


HEADER = "prompt,chosen,score"
PAIRS = [Pair(prompt="How?", chosen="So, and so.", score=0.8), Pair(prompt="Why?", chosen="Because\nof it.", score=1)]
PLAIN = 'prompt,chosen,score\nHow?,"So, and so.",0.8\nWhy?,"Because\nof it.",1\n'
LINES = [pair.model_dump() for pair in PAIRS]


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row.read(Pair) for row in read_table(path)]


def messages(text):
    return [{"role": "user", "content": "How?"}, {"role": "assistant", "content": text}]


READ = {
    "plain": ("a.csv", PLAIN),
    "suffix in capitals": ("A.CSV", PLAIN),
    "byte order mark": ("a.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
    "Excel's Unicode text": ("a.tsv", 'prompt\tchosen\tscore\r\nHow?\tSo, and so.\t0.8\r\nWhy?\t"Because\nof it."\t1\r\n'.encode("utf-16")),
    "Windows line ends": ("a.csv", PLAIN.replace("\n", "\r\n").replace("Because\r\n", "Because\n")),
    "old Mac line ends": ("a.csv", PLAIN.replace("\n", "\r").replace("Because\r", "Because\n")),
    "no newline at the end": ("a.csv", PLAIN.rstrip()),
    "semicolons and decimal commas": ("a.csv", 'prompt;chosen;score\nHow?;So, and so.;0,8\nWhy?;"Because\nof it.";1,0\n'),
    "Excel's line on the separator": ("a.csv", 'sep=;\nprompt;chosen;score\nHow?;So, and so.;0,8\nWhy?;"Because\nof it.";1\n'),
    "tabs": ("a.csv", 'prompt\tchosen\tscore\nHow?\tSo, and so.\t0.8\nWhy?\t"Because\nof it."\t1\n'),
    "semicolons inside a name": ("a.csv", PLAIN.replace("score\n", 'score,"notes; tags"\n', 1).replace("0.8", "0.8,x; y").replace(",1\n", ",1,\n")),
    "blank lines and rows of commas": ("a.csv", "\n" + PLAIN.replace("Why", ",,\n\n , ,\nWhy") + ",,\n,,\n\n"),
    "spaces and capitals in the header": ("a.csv", PLAIN.replace(HEADER, ' Prompt ,CHOSEN,"score "')),
    "pandas' index": ("a.csv", PLAIN.replace(HEADER, "," + HEADER).replace("How?", "0,How?").replace("Why?", "1,Why?")),
    "pandas' index named": ("a.csv", PLAIN.replace(HEADER, "Unnamed: 0," + HEADER).replace("How?", "0,How?").replace("Why?", "1,Why?")),
    "separators behind the last cell": ("a.csv", PLAIN.replace(HEADER, HEADER + ",,").replace("0.8", "0.8,,").replace(",1\n", ",1,,,\n")),
    "a list": ("a.json", json.dumps(LINES, indent=1)),
    "a list in a .jsonl": ("a.jsonl", json.dumps(LINES)),
    "lines": ("a.jsonl", "\n".join(map(json.dumps, LINES))),
    "lines in a .json": ("a.json", "\n".join(map(json.dumps, LINES))),
    "lines in a .ndjson": ("a.NDJSON", "\n".join(map(json.dumps, LINES)) + "\n"),
    "lines with a mark, Windows line ends and blank ones": ("a.jsonl", "\ufeff" + "\r\n \r\n".join(map(json.dumps, LINES)) + "\r\n\r\n"),
    "lines of an old Mac": ("a.jsonl", "\r".join(map(json.dumps, LINES))),
    "lines of PowerShell": ("a.jsonl", "\r\n".join(map(json.dumps, LINES)).encode("utf-16")),
    "scores as text": ("a.jsonl", "\n".join(json.dumps({**line, "score": str(line["score"])}) for line in LINES)),
    "columns that nobody reads": ("a.jsonl", "\n".join(json.dumps({**line, "loss": float("nan"), "all": messages("So.")}) for line in LINES)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), READ.values(), ids=READ)
def test_read_as_it_was_meant(tmp_path, name, content):
    assert read(tmp_path, name, content) == PAIRS


def test_parquet_is_read(tmp_path):
    import pandas

    pandas.DataFrame([{**LINES[0], "score": None}, LINES[1]]).to_parquet(tmp_path / "a.parquet")
    assert [row.read(Pair) for row in read_table(tmp_path / "a.parquet")] == [PAIRS[0].model_copy(update={"score": None}), PAIRS[1]]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"b\.parquet: not valid Parquet"):
        read_table(tmp_path / "b.parquet")


def test_cells_of_any_length_and_any_number_of_columns(tmp_path):
    wide = ",".join(f"column_{i}" for i in range(3000))
    [pair] = read(tmp_path, "a.csv", f"{wide},prompt,chosen\n{',' * 3000}How?,{'word ' * 40_000}\n")
    assert len(pair.chosen) == 5 * 40_000 - 1


def test_a_row_is_placed_by_its_first_line(tmp_path):
    (tmp_path / "a.csv").write_text("sep=,\n" + PLAIN)
    assert [row.where.split("a.csv, ")[1] for row in read_table(tmp_path / "a.csv")] == ["line 3", "line 4"]
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps(LINES[0]))
    assert read_table(tmp_path / "a.jsonl")[0].where.endswith("a.jsonl, line 2")


FAULTS = {
    "a column twice": ("a.csv", "prompt,chosen, Prompt\na,b,c", r"a\.csv, line 1: the column 'prompt' stands twice in the header"),
    "a column that is not there": ("a.csv", "question,chosen\na,b", r"a\.csv, line 2: column prompt: field required; every row needs prompt, chosen, and this one has question, chosen"),
    "no header": ("a.csv", "How?,So.,1\nWhy?,Because.,0", r"a\.csv, line 2: column prompt: field required.*this one has how\?, so\., 1"),
    "bars": ("a.csv", "prompt|chosen\na|b", r"a\.csv, line 2: column prompt: field required.*this one has prompt\|chosen"),
    "two separators alike": ("a.csv", "prompt,chosen;score\na,b;c", r"a\.csv, line 1: commas and semicolons cut the header into 2 cells alike"),
    "too many cells": ("a.csv", "prompt,chosen\n\nHow, so?,yes\n", r"a\.csv, line 3: more cells than the header has; put cells with commas into double quotes"),
    "too many cells, semicolons": ("a.csv", "prompt;chosen;\na;b;\nHow; so?;yes;no\n", r"a\.csv, line 3: more cells .* put cells with semicolons into"),
    "a quote left open": ("a.csv", 'prompt,chosen\na,b\n"How?,So\nWhy?,c\n', r"a\.csv, line 3: not valid CSV .*; mend or delete the line"),
    "a quote escaped by a backslash": ("a.csv", 'prompt,chosen\na,"say \\"so\\" now"\n', r"a\.csv, line 2: not valid CSV"),
    "Latin letters": ("a.csv", b"prompt,chosen\na,b\nna\xefve,c\n", r"a\.csv, line 3: not UTF-8 .*save it as UTF-8, in Excel as CSV UTF-8"),
    "Latin letters in JSONL": ("a.jsonl", b'{"prompt": "a", "chosen": "b"}\n{"prompt": "na\xefve"}', r"a\.jsonl, line 2: not UTF-8"),
    "UTF-16 without a mark": ("a.csv", PLAIN.encode("utf-16-le"), r"a\.csv, line 1: a NUL character, .*save it as UTF-8"),
    "a NUL": ("a.csv", "prompt,chosen\na,b\0c\n", r"a\.csv, line 2: a NUL character"),
    "empty": ("a.csv", "", r"a\.csv holds no rows"),
    "a mark alone": ("a.jsonl", b"\xef\xbb\xbf", r"a\.jsonl holds no rows"),
    "header alone": ("a.csv", HEADER + "\n,,\n", r"a\.csv holds no rows"),
    "a spreadsheet": ("a.XLSX", b"PK", r"cannot read \.xlsx; save the sheet as CSV UTF-8"),
    "a packed file": ("a.csv.gz", b"\x1f\x8b", r"cannot read \.gz; unpack it first"),
    "another file": ("a.txt", "How?", r"cannot read \.txt; give \.csv, \.json, \.jsonl"),
    "one object": ("a.json", '{"prompt": {"0": "a"}}', r"a\.json: expected a JSON list of objects, as pandas writes with orient='records'"),
    "one object over lines": ("a.json", '{\n"prompt": "a"\n}', r"a\.json: expected a JSON list of objects"),
    "a list of texts": ("a.json", '["a"]', r"a\.json: expected a JSON list of objects"),
    "a text a line": ("a.jsonl", '"a"\n', r"a\.jsonl, line 1: expected a JSON object, found str"),
    "a torn line": ("a.jsonl", '{"prompt": "a", "chosen": "b"}\n{"prompt": "W', r"a\.jsonl, line 2: not valid JSON .*mend or delete the line"),
    "a torn list": ("a.json", '[{"prompt": "a"}, {"pro', r"a\.json: not valid JSON .*line 1.*mend the file"),
    "a key twice": ("a.jsonl", '{"prompt": "a", "chosen": "b", "prompt": "c"}', r"a\.jsonl, line 1: not valid JSON \(the key 'prompt' stands twice in the object that begins \('prompt', 'a'\)"),
    "a key twice in a list": ("a.json", '[{"prompt": "a", "chosen": "b", "prompt": "c"}]', r"a\.json: not valid JSON \(the key 'prompt' stands twice in .*'a'\)"),
    "nested deep": ("a.jsonl", '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", r"a\.jsonl, line 1: not valid JSON \(brackets nested too deep\)"),
    "nested deep in a list": ("a.json", "[" * 100_000 + "]" * 100_000, r"a\.json: not valid JSON \(brackets nested too deep\)"),
    "an integer of 5,000 digits": ("a.jsonl", '{"prompt": "a", "chosen": "b", "score": ' + "1" * 5000 + "}", r"a\.jsonl, line 1: not valid JSON \(Exceeds the limit"),
    "half a character": ("a.jsonl", '{"prompt": "a\\ud83d", "chosen": "b"}', r"a\.jsonl, line 1: 'prompt' holds half a character \('\\ud83d'\); mend or delete it"),
    "half a character inside": ("a.json", '[{"prompt": "a", "chosen": "b", "tags": ["\\udc00"]}]', r"a\.json, entry 1: 'tags' holds half a character"),
    "a number for a text": ("a.jsonl", '{"prompt": 3, "chosen": "b"}', r"a\.jsonl, line 1: column prompt: input should be a valid string; every row needs prompt, chosen"),
    "an empty cell": ("a.csv", "prompt,chosen\na,b\nc, \n", r"a\.csv, line 3: column chosen: string should have at least 1 character"),
    "a short row": ("a.csv", "prompt,chosen\na,b\nc\n", r"a\.csv, line 3: column chosen: field required"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), FAULTS.values(), ids=FAULTS)
def test_refused_in_one_sentence(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as refused:
        read(tmp_path, name, content)
    assert "\n" not in str(refused.value) and str(tmp_path / name) in str(refused.value) and len(str(refused.value)) < 400


PRINTED = {
    "a list": messages("So."),
    "a list printed by pandas": str(messages("So.")),
    "a list in JSON": json.dumps(messages("So.\nAnd so.")),
    "content first": "[{'content': 'So.', 'role': 'assistant'}]",
    "an array printed": "array([{'content': 'How?', 'role': 'user'},\n       {'content': 'So.', 'role': 'assistant'}], dtype=object)",
    "an array printed without commas": "[{'content': 'How?', 'role': 'user'}\n {'content': 'So.', 'role': 'assistant'}]",
    "lists in an array": "[list([{'role': 'assistant', 'content': 'So.'}])]",
    "one message": "{'role': 'assistant', 'content': 'So.'}",
    "ShareGPT's turns": "[{'from': 'human', 'value': 'How?'}, {'from': 'gpt', 'value': 'So.'}]",
}  # fmt: skip


@pytest.mark.parametrize("column", ["prompt", "chosen", "system"])
@pytest.mark.parametrize("cell", PRINTED.values(), ids=PRINTED)
def test_messages_in_place_of_a_text_are_refused(tmp_path, column, cell):
    with pytest.raises(ValueError, match=rf"line 2: column {column}: messages in place of a text; write the last one's content alone, in pandas: "):
        read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, [LINES[0], {**LINES[1], column: cell}])))


@pytest.mark.parametrize("text", ['[1, 2, 3]', '["a", "b"]', "{'answer': 3}", "What is [{'role': 'user', 'content': 'x'}] for?", "[role] content", '{"value": 3}', "nan", "None"])
def test_texts_that_look_like_lists_stay_texts(tmp_path, text):
    assert read(tmp_path, "a.json", json.dumps([{**LINES[0], "chosen": text}]))[0].chosen == text


@pytest.mark.parametrize(("cell", "score"), [
    (None, None), ("", None), ("  ", None), (4, 4.0), (-2.5, -2.5), ("4", 4.0), (" +0.8 ", 0.8), ("0,8", 0.8), ("-1,25", -1.25), ("0,125", 0.125), (".5", 0.5), (",5", 0.5), ("1e-3", 0.001), ("3.", 3.0),
])  # fmt: skip
def test_scores(cell, score):
    assert score_of(cell) == score


@pytest.mark.parametrize("cell", [
    "good", "nan", "NaN", "None", "NULL", "inf", "-Infinity", float("nan"), float("inf"), 10**400, "1" * 5000, "1e999", True, False, "True", "80%", "80 %", "4/5", "1,000", "1,234,567", "1.000,5", "1,000.5", "1_000", "1 000", "0.8.1", "٤", [1], {"a": 1}, "4 (good)",
], ids=lambda cell: str(cell)[:20])  # fmt: skip
def test_what_is_no_score(cell):
    with pytest.raises(ValueError, match="is no finite, valid number such as 0.8; leave the cell empty where a score is missing") as refused:
        score_of(cell)
    assert len(str(refused.value)) < 200


def test_a_score_is_named_with_its_line_and_column(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv, line 3: column score: '80%' is no finite, valid number"):
        read(tmp_path, "a.csv", "prompt,chosen,score\na,b,0.5\nc,d,80%\n")


def test_an_id_that_stands_twice_is_named_with_both_places(tmp_path):
    class Named(BaseModel):
        id: Text

    path = tmp_path / "a.csv"
    path.write_text("id,label\na,1\nb,1\na,0\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 4: the id 'a' stands in .*a\.csv, line 2 too; delete one of them"):
        by_id(read_table(path), Named)
    assert list(by_id(read_table(path)[:2], Named)) == ["a", "b"]


def test_folders_and_paths_from_home(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is a folder; give the file in it"):
        read_table(tmp_path)
    with pytest.raises(ValueError, match="is a folder; give the file in it"):
        read_rows(tmp_path)
    (tmp_path / "a.csv").write_text(PLAIN)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read_table("~/a.csv") == read_rows("~/a.csv") == read_table("a.csv")
