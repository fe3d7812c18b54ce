"""Turns other forms of problems and samples into the JSONL that rift.py reads.

IN is JSONL, or a JSON list of objects, or an object with one list of them. (Parquet, first:
pandas.read_parquet(FILE).to_json(IN, orient="records", lines=True).)

    found in a row                             becomes
    gt, final_answer, expected_answer,         answer
      ground_truth, reward_model.ground_truth
    Problem, QUESTION, Answer, Solution, ...   the same name in small letters
    an answer or a solution: a list of one     its element
    messages or prompt: a list of turns        prompt, the text that the chat template of --model
      (or OpenAI's body.messages)              makes of them, and problem, the last user's turn;
                                               without --model a lone user's turn is the problem
    messages: an assistant's turn at the end   response
    completion: text or one assistant's turn   response
    outputs[].text (vLLM)                      response, one sample for each output
    response.body.choices[].message (OpenAI)   response, one sample for each choice
    finish_reason of an output or a choice     truncated: whether it is "length"

Other fields stay. At a row that cannot be converted it says where and why, and writes nothing.
"""
import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rift import AutoTokenizer, Row, UserError, dump_jsonl, read_jsonl, text_field, write_whole

RENAMES = dict.fromkeys(("gt", "final_answer", "expected_answer", "ground_truth"), "answer")
RENAMES |= {"completion": "response"} | {name: name for name in (
    "problem", "question", "prompt", "messages", "answer", "solution", "response", "reward")}

def read(path: str) -> list[Row]:
    """The rows of a JSONL file, or of the list in a .json file."""
    if not path.lower().endswith(".json"):
        return read_jsonl(path)
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if isinstance(whole, dict):
            [whole] = [value for value in whole.values() if isinstance(value, list)]
        rows = [Row({**item}) for item in whole]
    except (OSError, ValueError, TypeError, RecursionError):    # JSONL, or it says what is wrong
        return read_jsonl(path)
    for number, row in enumerate(rows, 1):
        row.where = f"{path}: item {number}"
    return rows

def put(row: Row, name: str, value: Any, source: str) -> None:
    """Sets a field, if it is not there with another value."""
    if row.get(name) is None:
        row[name] = value
    elif value is not None and str(row[name]) != str(value):
        raise ValueError(f"`{source}` and `{name}` differ, leave one of them out")

def unpack_answer(row: Row) -> None:
    if isinstance(row.get("reward_model"), dict):               # verl, DAPO
        put(row, "answer", row["reward_model"]["ground_truth"], "reward_model")
    for name in ("answer", "solution"):
        if isinstance(row.get(name), list) and len(row[name]) == 1:
            row[name] = row[name][0]

def unpack_turns(row: Row, name: str, tokenizer: Any) -> None:
    turns = [{"role": turn["role"], "content": turn_text(turn)} for turn in row.pop(name)]
    if name == "messages" and turns[-1]["role"] == "assistant":
        put(row, "response", turns.pop()["content"], name)
    if turns[-1]["role"] != "user" or len(turns) > 1 and not tokenizer:
        raise ValueError(f"`{name}` must have a user's turn before the response, and without "
                         "--model no other")
    if not tokenizer:
        return put(row, "problem", turns[-1]["content"], name)
    put(row, "prompt", tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True), name)
    row.setdefault("problem", turns[-1]["content"])

def turn_text(turn: dict[str, Any]) -> str:
    if not isinstance(turn["content"], str) or turn.get("reasoning_content"):
        raise ValueError(f"a turn is not just text, {json.dumps(turn)[:60]}")
    return turn["content"]

def unpack_samples(row: Row) -> list[Row]:
    if isinstance(row.get("response"), list):                   # TRL's completion
        [row["response"]] = map(turn_text, row["response"])
    if isinstance(row.get("response"), dict):                   # OpenAI's; else vLLM's
        row["outputs"] = [{**choice, "text": turn_text(choice["message"])}
                          for choice in row["response"]["body"]["choices"]]
    if not isinstance(row.get("outputs"), list) or not row["outputs"]:
        return [row]
    return [Row(row, response=part["text"], truncated=part.get("finish_reason") == "length")
            for part in row.pop("outputs")]

def convert(path: str, tokenizer: Any) -> Iterator[Row]:
    """The rows of a file in our form; UserError at one whose form is not known."""
    for row in read(path):
        fields = ", ".join(f"{name} = {json.dumps(value)[:40]}" for name, value in row.items())
        try:
            for name in list(row):
                put(row, RENAMES.get(name.lower(), name), row.pop(name), name)
            unpack_answer(row)
            if isinstance(row.get("body"), dict):               # OpenAI's batch input
                put(row, "messages", row.pop("body")["messages"], "body")
            for name in ("messages", "prompt"):
                if isinstance(row.get(name), list):
                    unpack_turns(row, name, tokenizer)
            samples = unpack_samples(row)
        except Exception as error:                              # a chat template raises any kind
            raise UserError(f"{row.where}: {error!r}; found {fields}") from None
        for sample in samples:
            sample.where = row.where
            yield sample

def join(rows: list[Row], problems: list[Row]) -> None:
    by_id = {str(problem.get("custom_id", problem.get("id"))): problem for problem in problems}
    if len(by_id) < len(problems):
        raise UserError(f"--join: {len(problems)} problems have only {len(by_id)} ids")
    for row in rows:
        if str(row.get("custom_id")) not in by_id or row.get("response") is None:
            raise UserError(f"{row.where}: no problem {row.get('custom_id')}, or no response to it")
        row.update({**by_id[str(row["custom_id"])], **row})

def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="convert.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("IN")
    parser.add_argument("OUT")
    parser.add_argument("--model", help="folder or hub name of a model with a chat template")
    parser.add_argument("--join", help="the problems of OpenAI's outputs, by custom_id or id")
    args, tokenizer = parser.parse_args(argv), None
    try:
        if args.model:
            tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
        rows = list(convert(args.IN, tokenizer))
        if args.join:
            join(rows, list(convert(args.join, tokenizer)))
        for row in rows:
            row["problem"] = text_field(row, "problem", "question", "prompt")
            if row.get("response") != "":                       # that is for encode_all to judge
                text_field(row, "response", "answer", "solution")
        write_whole(Path(args.OUT), dump_jsonl(rows))
    except (UserError, OSError, ValueError, ImportError) as error:
        reason = str(error).partition("; data/convert.py")[0]
        print("convert.py: error:", *reason.split(), file=sys.stderr)
        return 2
    print(f"wrote {args.OUT}: {len(rows)} rows")
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
