"""Speed and memory of rift.py beside what people use today: python -m data.study.bench [ROW ...]

Each figure is a median of three, measured in turn with its peer (A B A B A B) after one run of each
that does not count. bench.json gets the rows; a row that is not measured again keeps its old value
and date. `step` needs the package trl, `checker` needs math-verify. With --device cuda the models
have the size of Qwen2.5-0.5B.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Qwen2Config

import rift
from math_reward import math_reward

BENCH = Path(__file__).with_name("bench.json")
PACKAGES = ("torch", "transformers", "trl", "math-verify")
Pair = tuple[float, float]  # ours, peer's


def qwen_like(device: str, **changes: int):
    """A model of the size of Qwen2.5-0.5B with random weights, except for the changes."""
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    sizes |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936}
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(Qwen2Config(**{**sizes, **changes}))


def tiny_model(device: str):
    """The model to measure and a tokenizer."""
    config = rift.Settings(model="data/tiny-base", device=device)
    model, tokenizer = rift.load_model(config, torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return (qwen_like(device) if device == "cuda" else model), tokenizer


def seconds(function: Callable) -> float:
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(ours: Callable[[], float], peer: Callable[[], float], times: int = 3) -> Pair:
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(times)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


# ---------------------------------------------------------------------- log-probabilities of a step


def logps_step(which: str, device: str, tokens: int) -> Callable[[], None]:
    """Forward and backward of one layer and the output layer."""
    model = qwen_like(device, num_hidden_layers=1)
    ids = torch.randint(model.config.vocab_size, (tokens,)).tolist()
    record = {"prompt_ids": [1] * 16, "response_ids": ids, "reward": 1.0}
    batch = rift.collate([record], torch.device(device))

    def step() -> None:
        model.zero_grad()
        if which == "ours":
            logps = rift.response_logps(model, batch, model.get_output_embeddings())
        else:
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
            logps = -cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
        rift.rift_loss(logps, batch["mask"][:, 1:], batch["rewards"]).sum().backward()

    return step


def extra_memory(which: str, device: str) -> float:
    """MB that a step needs beside the weights and their gradients. One process for each."""

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    step = logps_step(which, device, 4096)
    before = peak()
    step()
    weights = 4 * qwen_like("meta", num_hidden_layers=1).num_parameters()  # of their gradients
    return (peak() - before - weights) / 2**20


def logps(device: str) -> dict[str, Pair]:
    command = [sys.executable, "-m", "data.study.bench", "--device", device, "--extra-memory"]
    memory = [float(subprocess.check_output([*command, which])) for which in ("ours", "peer")]
    ours, peer = (logps_step(which, device, 1024) for which in ("ours", "peer"))
    return {
        "log-probabilities, extra memory, MB": (memory[0], memory[1]),
        "log-probabilities, time, s": in_turn(lambda: seconds(ours), lambda: seconds(peer)),
    }


# ----------------------------------------------------------------------------- training, sampling


def step(device: str) -> dict[str, Pair]:
    """Ten optimizer steps of 64 samples, prompts counted, beside TRL's SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = tiny_model(device)
    problems = (rift.read_problems("data/train.jsonl") * 3)[:640]
    samples = [
        rift.encode(
            model, tokenizer, {**p, "response": p["solution"], "reward": 1.0}, "{problem}\n"
        )
        for p in problems
    ]
    config = rift.Training(device=device, steps=10)
    rows = [{"input_ids": s["prompt_ids"] + s["response_ids"]} for s in samples]
    for row, s in zip(rows, samples, strict=True):
        row["completion_mask"] = [0] * len(s["prompt_ids"]) + [1] * len(s["response_ids"])
    dataset, n_tokens = Dataset.from_list(rows), sum(len(row["input_ids"]) for row in rows)

    def ours() -> float:
        model, _ = tiny_model(device)
        return n_tokens / seconds(lambda: rift.train(model, tokenizer, samples, config))

    def peer() -> float:
        model, _ = tiny_model(device)
        arguments = {"max_steps": 10, "per_device_train_batch_size": 64, "max_length": None}
        arguments |= {"learning_rate": config.lr, "completion_only_loss": True, "report_to": []}
        arguments |= {"bf16": device == "cuda", "use_cpu": device == "cpu", "disable_tqdm": True}
        arguments |= {"gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no"}
        arguments = SFTConfig(folder, **arguments)
        trainer = SFTTrainer(model, arguments, processing_class=tokenizer, train_dataset=dataset)
        with redirect_stdout(None):
            return n_tokens / seconds(trainer.train)

    with tempfile.TemporaryDirectory() as folder:
        return {"training, tokens/s": in_turn(ours, peer)}


def sampling(device: str) -> dict[str, Pair]:
    """8 responses to each of 64 problems, scored, beside model.generate in batches of 64."""
    model, tokenizer = tiny_model(device)
    problems = rift.read_problems("data/test.jsonl")[:64]
    config = rift.Sampling(device=device, max_new_tokens=100)
    prompts = [rift.encode(model, tokenizer, p, config.template)["prompt_ids"] for p in problems]
    prompts = [prompt for prompt in prompts for _ in range(config.k)]
    answers = [problem["answer"] for problem in problems for _ in range(config.k)]

    def ours() -> float:
        samples: list[dict] = []
        time = seconds(lambda: samples.extend(rift.sample(model, tokenizer, problems, config)))
        return sum(len(record["response_ids"]) for record in samples) / time

    def peer() -> float:
        n_tokens, started = 0, time.perf_counter()
        for i in range(0, len(prompts), 64):
            ids, attention = rift.pad(prompts[i : i + 64], model.device, "left")
            options = {"attention_mask": attention, "max_new_tokens": config.max_new_tokens}
            new = model.generate(ids, do_sample=True, top_k=0, **options)[:, ids.shape[1] :]
            ended = (new == tokenizer.eos_token_id).long()
            n_tokens += int((ended.cumsum(1) - ended == 0).sum())  # up to the first end
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            pairs = zip(texts, answers[i : i + 64], strict=True)
            rift.score([{"response": text, "answer": answer} for text, answer in pairs])
        return n_tokens / (time.perf_counter() - started)

    return {"sampling, tokens/s": in_turn(ours, peer)}


# ------------------------------------------------------------------------- checker, default job


def checker(device: str) -> dict[str, Pair]:
    """Cases a second on one core, beside Math-Verify without its timers. Each is seen once."""
    from math_verify import parse, verify

    records = rift.read_jsonl("data/checker_cases.jsonl")
    cases = [(str(record["response"]), str(record["gold"])) for record in records]

    def theirs(response: str, gold: str) -> bool:
        parsed = [parse(text, parsing_timeout=None) for text in (f"${gold}$", response)]
        return verify(*parsed, timeout_seconds=None)

    def rate(check: Callable[[str, str], bool], parts: list) -> float:
        part = parts.pop()
        return len(part) / seconds(lambda: [check(*case) for case in part])

    mine, peers = ([cases[i::4] for i in range(4)] for _ in range(2))
    return {
        "checker, cases/s": in_turn(lambda: rate(math_reward, mine), lambda: rate(theirs, peers))
    }


def job(device: str) -> dict[str, float]:
    """The default job as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "rift.py", "--out", f"{folder}/run", "--device", device]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("python rift.py failed")
    minutes = (time.perf_counter() - started) / 60
    return {"default job, minutes": minutes, "default job, peak GB": usage.ru_maxrss / 2**20}


ROWS = {"logps": logps, "step": step, "sampling": sampling, "checker": checker, "job": job}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=list(ROWS), help=" ".join(ROWS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--extra-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    if args.extra_memory:
        print(extra_memory(args.extra_memory, args.device))
        return
    bench = json.loads(BENCH.read_text())
    cpu = f"{len(os.sched_getaffinity(0))} CPU cores"
    facts = {
        "on": torch.cuda.get_device_name() if args.device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "date": str(datetime.date.today()),
        "versions": {name: version(name) for name in PACKAGES},
    }
    for name in args.rows:
        for title, value in ROWS[name](args.device).items():
            ours, peer = value if isinstance(value, tuple) else (value, None)
            row = {"ours": ours, "peer": peer, "ratio": ours / peer if peer else None, **facts}
            bench[title if args.device == "cpu" else f"{title}, {args.device}"] = row
            print(title, row, flush=True)
            rift.write_atomically(BENCH, json.dumps(bench, indent=1) + "\n")


if __name__ == "__main__":
    main()
