"""Speed and memory beside what people use today, as ratios measured in one run.

    python bench.py                              every row; about 10 minutes on 2 cores
    python bench.py logps step sampling main     some of them
    python bench.py checker --cases FILE ...     beside Math-Verify, on labelled cases (JSONL with
                                                 `response` and `gold`)

Writes data/bench.json: a list of {row, metric, ours, peer, ratio, goal, met, device}. A row that
needs a package that is not installed (trl, math-verify) or a GPU is left out, with a word.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VOCABULARY, TOKENS = 151_936, 1_024         # Qwen2.5's head, as one long response meets it


def device() -> str:
    return f"CPU, {len(os.sched_getaffinity(0))} cores, {platform.machine()}"


def row(name: str, metric: str, ours: float, peer: float | None, goal: float,
        more_is_better: bool = True) -> dict[str, Any]:
    """A line of the table; with no peer the figure itself is held against the goal."""
    ratio = ours / peer if peer else None
    value = ours if ratio is None else ratio
    return {"row": name, "metric": metric, "ours": round(ours, 3),
            "peer": round(peer, 3) if peer else None,
            "ratio": round(ratio, 3) if peer else None,
            "goal": f"{'>=' if more_is_better else '<='} {goal:g}",
            "met": value >= goal if more_is_better else value <= goal, "device": device()}


def in_turn(ours: Callable[[], float], peer: Callable[[], float], times: int
            ) -> tuple[float, float]:
    """Medians of two figures measured A B A B ..., after one run of each that does not count."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(times)]
    return tuple(statistics.median(side) for side in zip(*pairs))


# ----------------------------------------------------------------------- log-probabilities

def logps_child(which: str) -> None:
    """Log-probabilities, loss and backward at Qwen2.5-0.5B's width; prints seconds and MB."""
    import resource
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    import rift
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=896, intermediate_size=4864, num_hidden_layers=1,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=False))
    kept = sum(parameter.nbytes for parameter in model.parameters())     # gradients stay: no extra
    batch = rift.collate([(list(range(16)), torch.randint(VOCABULARY, (TOKENS,)).tolist())],
                         torch.device("cpu"))

    def step() -> float:
        started = time.perf_counter()
        if which == "ours":
            logps = rift.response_logps(model, **batch)
        else:
            logits = model(input_ids=batch["input_ids"]).logits[0, :-1].float()
            logps = -torch.nn.functional.cross_entropy(
                logits, batch["input_ids"][0, 1:], reduction="none")[None]
        rift.rift_loss(logps, batch["mask"][:, 1:], torch.ones(1), normalizer=TOKENS)[0].backward()
        return time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 - kept / 2 ** 20
    model.zero_grad()
    print(json.dumps([step(), extra]))


def logps() -> Iterator[dict[str, Any]]:
    def measure(which: str) -> tuple[float, float]:
        done = subprocess.run([sys.executable, __file__, "--child", which], check=True,
                              capture_output=True, text=True)
        return tuple(json.loads(done.stdout.splitlines()[-1]))
    pairs = [(measure("ours"), measure("plain")) for _ in range(3)]
    (time_a, memory_a), (time_b, memory_b) = (
        [statistics.median(run[i] for run in side) for i in range(2)] for side in zip(*pairs))
    what = f"log-probs + loss + backward, V = {VOCABULARY:,}, {TOKENS:,} tokens"
    yield row(what, "peak extra MB, beside plain logits", memory_a, memory_b, 0.25, False)
    yield row(what, "seconds, beside plain logits", time_a, time_b, 1.15, False)


# ------------------------------------------------------------------- training and sampling

def step() -> Iterator[dict[str, Any]]:
    """Tokens a second of training, prompts counted, on the same samples beside TRL."""
    import torch
    import transformers
    import rift
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    problems = rift.read_problems(rift.Config.problems, 640)
    rows = [{**problem, "response": problem["solution"], "reward": 1.0} for problem in problems]
    tokenizer = rift.load_model(rift.Config.model, "cpu")[1]
    pairs = [rift.encode(tokenizer, r, rift.Config.template) for r in rows]
    tokens = sum(len(prompt) + len(response) for prompt, response in pairs)

    def ours() -> float:
        model = rift.load_model(rift.Config.model, "cpu")[0]
        started = time.perf_counter()
        rift.train(model, tokenizer, rows, rift.Config(loss="rift", steps=10))
        return tokens / (time.perf_counter() - started)

    def peer() -> float:
        model = rift.load_model(rift.Config.model, "cpu")[0]
        with tempfile.TemporaryDirectory() as folder:
            trainer = SFTTrainer(model, SFTConfig(
                folder, per_device_train_batch_size=64, max_steps=10, learning_rate=3e-4,
                report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True,
                bf16=False, activation_checkpointing=False, completion_only_loss=True,
                max_length=None, dataset_num_proc=None),
                processing_class=tokenizer, train_dataset=Dataset.from_list(
                    [{"input_ids": p + r, "completion_mask": [0] * len(p) + [1] * len(r)}
                     for p, r in pairs]))
            started = time.perf_counter()
            with open(os.devnull, "w") as null, torch.enable_grad():
                out, sys.stdout = sys.stdout, null
                trainer.train()
                sys.stdout = out
        return tokens / (time.perf_counter() - started)
    a, b = in_turn(ours, peer, 3)
    yield row("training step, tiny model, 64 samples", "tokens/s, beside TRL's SFTTrainer", a, b, 1)


def sampling() -> Iterator[dict[str, Any]]:
    """Tokens a second, 8 responses to each of 64 problems, beside generate in batches of 64."""
    import torch
    import rift
    model, tokenizer = rift.load_model(rift.Config.model, "cpu")
    config = rift.Config(max_new_tokens=100)
    problems = [row for row in rift.read_problems(rift.Config.test)
                if row["kind"] == "slips"][:64]             # of one and two steps, so mixed lengths

    def ours() -> float:
        started = time.perf_counter()
        samples = rift.sample(model, tokenizer, problems, config)
        return sum(r["tokens"] for r in samples) / (time.perf_counter() - started)

    def peer() -> float:
        started, tokens = time.perf_counter(), 0
        prompts = [rift.encode(tokenizer, r, config.template)[0] for r in problems
                   for _ in range(config.k)]
        for i in range(0, len(prompts), 64):
            part = prompts[i:i + 64]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
            out = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0,
                                 max_new_tokens=config.max_new_tokens)
            new = out[:, width:]
            tokens += int((new == tokenizer.eos_token_id).long().cumsum(1).le(1).sum())
        return tokens / (time.perf_counter() - started)
    a, b = in_turn(ours, peer, 5)
    yield row("sampling, tiny model, mixed lengths", "tokens/s, beside model.generate", a, b, 2)


def main_job() -> Iterator[dict[str, Any]]:
    """`python rift.py` as a whole, on two cores where the system lets us choose."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        job = subprocess.Popen([sys.executable, str(HERE / "rift.py"), "--out", f"{folder}/run"],
                               stdout=subprocess.DEVNULL,
                               preexec_fn=lambda: os.sched_setaffinity(0, cores))
        _, status, usage = os.wait4(job.pid, 0)             # of this child alone
        minutes = (time.perf_counter() - started) / 60
    if status:
        raise SystemExit("python rift.py failed")
    peak = usage.ru_maxrss / 2 ** 20
    yield row("python rift.py, 2 cores", "minutes", minutes, None, 5, False)
    yield row("python rift.py, 2 cores", "peak GB", peak, None, 2, False)


# ---------------------------------------------------------------------------------- checker

def checker(files: list[str]) -> Iterator[dict[str, Any]]:
    """Cases a second on one core, beside Math-Verify, its timers off so that both just compute."""
    from math_verify import parse, verify
    from math_reward import math_reward

    def theirs(response: str, gold: str) -> bool:
        return verify(parse(f"${gold}$", parsing_timeout=None),
                      parse(response, parsing_timeout=None), timeout_seconds=None)
    for file in files:
        cases = [json.loads(line) for line in Path(file).read_text().splitlines()]

        def rate(check: Callable[[str, str], bool], cases=cases) -> float:
            some = cases[:200] if check is theirs else cases
            started = time.perf_counter()
            for case in some:
                check(case["response"], case["gold"])
            return len(some) / (time.perf_counter() - started)
        math_reward("1", "1"), theirs("1", "1")             # imports; no case is seen twice
        a, b = rate(math_reward), rate(theirs)
        yield row(f"checker, {Path(file).stem}", "cases/s, beside Math-Verify", a, b, 10)


ROWS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "logps": logps, "step": step, "sampling": sampling, "main": main_job, "checker": checker}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(ROWS) + " (default: all)")
    parser.add_argument("--cases", nargs="+", default=[], help="JSONL files for the checker")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return logps_child(args.child)
    path = HERE / "data" / "bench.json"
    results = json.loads(path.read_text()) if path.exists() else []
    needs = {"step": ["trl"], "checker": ["math_verify"]}
    for name in args.rows or ROWS:
        missing = [p for p in needs.get(name, []) if importlib.util.find_spec(p) is None]
        if missing or name == "checker" and not args.cases:
            why = f"{missing[0]} is not installed" if missing else "no --cases"
            print(f"{name}: left out, {why}")
            continue
        for result in ROWS[name](*[args.cases] * (name == "checker")):
            results = [r for r in results if (r["row"], r["metric"]) != (
                result["row"], result["metric"])] + [result]
            beside = f" / {result['peer']:g} = {result['ratio']:g}" if result["peer"] else ""
            print(f"{result['row']}\n    {result['metric']}: {result['ours']:g}{beside} "
                  f"(goal {result['goal']}: {'met' if result['met'] else 'missed'})", flush=True)
    print("GPU rows: left out, not measured")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
