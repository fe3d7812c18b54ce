"""Tests of convert.py: python -m pytest -q data/test_convert.py"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import convert                                                          # noqa: E402
import rift                                                             # noqa: E402

TINY = str(HERE / "tiny-base")

def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

USER, REPLY = [{"role": "user", "content": "1+1=?"}], [{"role": "assistant", "content": "2"}]
TURNS = [{"role": "system", "content": "Be terse."}, *USER]
OUTPUTS = [{"text": "2", "finish_reason": "stop"}, {"text": "1", "finish_reason": "length"}]
BATCH = {"custom_id": "7", "response": {"body": {"choices": [
    {"message": {"content": o["text"]}, "finish_reason": o["finish_reason"]} for o in OUTPUTS]}}}

def converted(tmp_path, *rows, flags=()):
    """What data/convert.py makes of these rows; None if it refuses one, and writes nothing."""
    (tmp_path / "out").unlink(missing_ok=True)
    status = convert.main([write(tmp_path / "in", *rows), str(tmp_path / "out"), *flags])
    assert status == (0 if (tmp_path / "out").exists() else 2)
    return None if status else [dict(row) for row in rift.read_jsonl(tmp_path / "out")]

@pytest.mark.parametrize("row, made", [
    ({"Question": "q", "final_answer": ["2"]}, {"question": "q", "answer": "2", "problem": "q"}),
    ({"PROBLEM": "q", "gt": 2, "n": 3}, {"problem": "q", "answer": 2, "n": 3}),
    ({"problem": "q", "expected_answer": "2", "answer": None}, {"problem": "q", "answer": "2"}),
    ({"prompt": USER, "reward_model": {"ground_truth": "2"}}, {"problem": "1+1=?", "answer": "2",
     "reward_model": {"ground_truth": "2"}}),
    ({"body": {"messages": USER}, "Solution": ["2"]}, {"problem": "1+1=?", "solution": "2"}),
    ({"messages": USER + REPLY, "reward": 1}, {"problem": "1+1=?", "response": "2", "reward": 1}),
    ({"prompt": "q", "completion": REPLY}, {"prompt": "q", "problem": "q", "response": "2"})])
def test_convert_reads_other_forms(tmp_path, row, made):
    assert converted(tmp_path, row) == [made]

def test_convert_renders_turns_with_the_chat_template(tmp_path):
    tokenizer = rift.AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                               "{% if add_generation_prompt %}<assistant>{% endif %}")
    tokenizer.save_pretrained(tmp_path / "chat")
    for row in ({"messages": TURNS + REPLY}, {"prompt": TURNS, "completion": REPLY}):
        [made] = converted(tmp_path, row, flags=["--model", f"{tmp_path}/chat"])
        assert made.pop("prompt") == "<system>Be terse.<user>1+1=?<assistant>"
        assert made == {"problem": "1+1=?", "response": "2"}
        assert converted(tmp_path, row) is None                     # it needs the template

def test_convert_makes_one_sample_of_each_output_and_choice(tmp_path):
    write(tmp_path / "p.json", {"data": [{"id": 7, "question": "q", "gt": "2", "response": "0"}]})
    for row in ({"prompt": "q", "custom_id": 7, "outputs": OUTPUTS}, BATCH | {"id": 1}):
        rows = converted(tmp_path, row, flags=["--join", f"{tmp_path}/p.json"])
        assert [(r["response"], r["truncated"]) for r in rows] == [("2", False), ("1", True)]
        assert rows[1]["problem"] == "q" and rows[1]["answer"] == "2" and "outputs" not in rows[1]

@pytest.mark.parametrize("row, word", [
    ({"problem": "q", "gt": "2", "answer": "3"}, "`gt`"), ({"text": "q", "gt": "2"}, '"text"'),
    ({"problem": "q", "gt": [2, 3]}, "`answer`"), ({"messages": REPLY, "gt": "2"}, "messages"),
    ({"prompt": USER, "reward_model": {"style": "rule"}}, "reward_model"), (BATCH, "`problem`"),
    ({"prompt": [{"role": "user", "content": None}], "gt": "2"}, "not just text"),
    ({"prompt": TURNS[:1], "gt": "2"}, "a user's turn before"),
    ({"messages": USER + [REPLY[0] | {"reasoning_content": "1+1"}]}, "not just text"),
    ({"prompt": "q", "outputs": []}, "outputs"), (BATCH | {"response": {"body": {}}}, "response")])
def test_convert_names_what_it_refuses(tmp_path, capsys, row, word):
    assert converted(tmp_path, {"problem": "q", "answer": "2"}, row) is None
    message = capsys.readouterr().err
    assert "in:2" in message and word in message and message.count("\n") == 1
