"""Speed and memory beside what people use today, as ratios of medians measured A B A B in one run.

    python data/bench.py                         every row; about 10 minutes on 2 cores
    python data/bench.py step sampling           some: logps step sampling main checker gpu
    python data/bench.py checker --cases FILE    and on labelled cases, JSONL of response and gold
    python data/bench.py memory                  a table, computed, of what real models need

Writes data/bench.json. A row that is not measured again stays as it is, with its device and date;
`ours` is null if it never was. step and gpu need the package trl, checker math-verify.
"""
import argparse
import datetime
import gc
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Qwen2Config

DATA = Path(__file__).resolve().parent
sys.path.insert(0, str(DATA.parent))
import rift                                                             # noqa: E402
from math_reward import math_reward                                     # noqa: E402
from rift import Row, Sampling, Training                                # noqa: E402

GB, TINY = 2 ** 30, str(DATA / "tiny-base")
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12,    # dense,
              "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}    # in bfloat16
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "vocab_size", "tie_word_embeddings")
QWEN = {"0.5B": (896, 4864, 24, 14, 2, 151_936, True),      # Qwen2.5's published sizes
        "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
        "7B": (3584, 18944, 28, 28, 4, 152_064, False)}

def qwen(name: str, device: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of a published size, but for the changes, with random weights."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")                          # as rift.load_model
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            Qwen2Config(**dict(zip(SIZES, QWEN[name])) | changes), dtype=dtype)

# ---------------------------------------------------------------------- rows and their figures
def row(name: str, metric: str, ours: float, peer: float | None, goal: str, device: str = "cpu"
        ) -> dict[str, Any]:
    """A row of the table; with no peer the figure itself is held against the goal."""
    ratio, (sign, bound) = ours / peer if peer else None, goal.split()
    excess = (ratio or ours) - float(bound)
    return {"row": name, "metric": metric, "ours": round(ours, 3), "peer": peer and round(peer, 3),
            "ratio": ratio and round(ratio, 3), "goal": goal,
            "met": excess >= 0 if sign == ">=" else excess <= 0, "device": device_name(device),
            "date": str(datetime.date.today()),
            "versions": {name: version(name) for name in (
                "torch", "transformers", "trl", "math_verify") if find_spec(name)}}

def device_name(device: str) -> str:
    cpu = f"CPU, {len(os.sched_getaffinity(0))} cores, {platform.machine()}"
    return torch.cuda.get_device_name() if device == "cuda" else cpu

def in_turn(ours: Callable, peer: Callable, times: int = 3) -> list[tuple]:
    """(ours, peer) of each figure they return: medians of A B A B ..., the first pair left out."""
    ours(), peer()
    runs = [(ours(), peer()) for _ in range(times)]
    return [tuple(statistics.median(run[side][figure] for run in runs) for side in (0, 1))
            for figure in range(len(runs[0][0]))]

def peak_bytes(device: str) -> int:                         # of a CPU: since the process began
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def logps_steps(device: str, tokens: int, changes: dict[str, int]) -> dict[str, Callable]:
    """Log-probabilities, loss, backward of a layer and the head: seconds, and MB held for them."""
    model = qwen("0.5B", device, **changes, num_hidden_layers=1, tie_word_embeddings=False)
    ids = torch.randint(model.config.vocab_size, (tokens,)).tolist()
    batch = rift.collate([rift.Example(Row(), [1] * 16, ids)], torch.device(device))
    before = peak_bytes(device) + sum(weight.nbytes for weight in model.parameters())
    def step(plain: bool) -> tuple[float, float]:
        model.zero_grad()
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if plain:
                logits = model(input_ids=batch["input_ids"]).logits[0, :-1].float()
                logps = -cross_entropy(logits, batch["input_ids"][0, 1:], reduction="none")[None]
            else:
                logps = rift.response_logps(model, **batch)
        rift.rift_loss(logps, batch["mask"][:, 1:], torch.ones(1, device=device)).sum().backward()
        extra = (peak_bytes(device) - before) / 2 ** 20                 # waits for a GPU
        return time.perf_counter() - started, extra
    return {"ours": partial(step, False), "plain": partial(step, True)}

def logps(device: str = "cpu", tokens: int = 1024, changes: dict[str, int] = {}) -> Iterator[Row]:
    extra = [float(subprocess.check_output([sys.executable, __file__, "--child", json.dumps(
        [which, device, tokens, changes])])) for which in ("ours", "plain")]    # each its own peak
    seconds = in_turn(*logps_steps(device, tokens, changes).values())[0]
    name = f"log-probs + loss + backward, V = 151,936, {tokens:,} tokens"
    yield row(name, "peak extra MB, beside plain logits", *extra, "<= 0.25", device)
    yield row(name, "seconds, beside plain logits", *seconds, "<= 1.15", device)

# ----------------------------------------------------------------------- training and sampling
def training(make: Callable, tokenizer: Any, samples: list[Row], config: Training) -> list[tuple]:
    """(ours, TRL's SFTTrainer) of tokens a second, prompts counted, and of the peak in GB."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    examples = [rift.encode(tokenizer, sample, config.template) for sample in samples]
    lengths = [len(prompt + response) for _, prompt, response in examples]
    micro = min(config.batch_size, config.tokens_per_batch // max(lengths))
    dataset = Dataset.from_list([
        {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}
        for _, prompt, response in examples])
    def ours(model: Any) -> Callable[[], Any]:
        return lambda: rift.train(model, tokenizer, samples, config)
    def peer(model: Any) -> Callable[[], Any]:
        return SFTTrainer(model, SFTConfig(
            folder, per_device_train_batch_size=micro, max_steps=config.steps, max_length=None,
            gradient_accumulation_steps=config.batch_size // micro, learning_rate=config.lr,
            bf16=config.device == "cuda", use_cpu=config.device == "cpu", completion_only_loss=True,
            activation_checkpointing=False, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True), processing_class=tokenizer, train_dataset=dataset).train
    def timed(side: Callable[[Any], Callable[[], Any]]) -> tuple[float, float]:
        rift.plain_head.cache_clear()                                   # it remembers a model
        gc.collect()
        if config.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        train = side(make())
        started = time.perf_counter()
        with redirect_stdout(None):
            train()
        peak = peak_bytes(config.device)                                # waits for a GPU
        return sum(lengths) / (time.perf_counter() - started), peak / GB
    with tempfile.TemporaryDirectory() as folder:
        return in_turn(lambda: timed(ours), lambda: timed(peer))

def sampling_rates(model: Any, tokenizer: Any, problems: list[Row], config: Sampling) -> tuple:
    """Tokens a second, up to the stop, of rift.sample and of model.generate by len(problems)."""
    stop = torch.tensor(model.generation_config.eos_token_id, device=model.device).flatten()
    prompts = [rift.encode(tokenizer, row, config.template).prompt for row in problems
               for _ in range(config.k)]
    def ours() -> tuple[float]:
        started = time.perf_counter()
        samples = rift.sample(model, tokenizer, problems, config)
        return sum(sample["tokens"] for sample in samples) / (time.perf_counter() - started),
    def peer() -> tuple[float]:
        started, tokens = time.perf_counter(), 0
        for i in range(0, len(prompts), len(problems)):
            ids = rift.pad(prompts[i:i + len(problems)], model.device, "left")
            ones = [[1] * len(prompt) for prompt in prompts[i:i + len(problems)]]
            new = model.generate(ids, attention_mask=rift.pad(ones, model.device, "left"),
                                 max_new_tokens=config.max_new_tokens, do_sample=True, top_k=0,
                                 pad_token_id=int(stop[0]))[:, ids.shape[1]:]
            ended = torch.isin(new, stop).long()
            tokens += int((ended.cumsum(1) - ended == 0).sum())
        return tokens / (time.perf_counter() - started),
    return in_turn(ours, peer)[0]

def step() -> Iterator[Row]:
    samples = [Row(problem, response=problem["solution"], reward=1.0)
               for problem in rift.read_problems(DATA / "train.jsonl", 640)]
    speed, _ = training(lambda: rift.load_model(TINY, "cpu")[0], rift.load_model(TINY, "cpu")[1],
                        samples, Training(device="cpu", steps=10, batch_size=64))
    yield row("training step, tiny model, 64 samples", "tokens/s, beside TRL's SFTTrainer",
              *speed, ">= 1")

def sampling() -> Iterator[Row]:
    model, tokenizer = rift.load_model(TINY, "cpu")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    problems = rift.read_problems(DATA / "test.jsonl", 64)              # of mixed lengths
    rates = sampling_rates(model, tokenizer, problems, Sampling(max_new_tokens=100))
    yield row("sampling, tiny model, mixed lengths", "tokens/s, beside model.generate",
              *rates, ">= 2")

def gpu(device: str = "cuda", changes: dict[str, int] = {}, response: int = 2048, batch: int = 16,
        rows: int = 256, new: int = 512, tokens: int = 8192) -> Iterator[Row]:
    """Models of Qwen2.5's sizes, random weights. Changed and small, this can be tried on a CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no GPU")
    tokenizer = rift.load_model(TINY, "cpu")[1]
    vocabulary = qwen("0.5B", "meta", **changes).config.vocab_size
    samples = [Row(problem="1+1=?", response="", truncated=False, reward=1.0, ids=ids)
               for ids in torch.randint(vocabulary, (2 * batch, response)).tolist()]
    length = response + len(rift.encode(tokenizer, samples[0]).prompt)
    config = Training(device=device, steps=2, batch_size=batch,
                      tokens_per_batch=length * batch // 4)
    for size in ("0.5B", "1.5B"):
        speed, peak = training(lambda: qwen(size, device, **changes), tokenizer, samples, config)
        name = f"training, Qwen2.5-{size}'s size, responses of {response:,} tokens"
        yield row(name, "tokens/s, beside TRL's SFTTrainer", *speed, ">= 1", device)
        yield row(name, "peak GB, beside TRL's SFTTrainer", *peak, "<= 1", device)
        for card in [card for card in PEAK_FLOPS if card in device_name(device)][:1]:
            attention = 6 * QWEN[size][0] * QWEN[size][2] * length      # causal; hidden * layers
            flops = speed[0] * (6 * qwen(size, "meta").num_parameters() + attention)
            yield row(name, "share of the card's peak flops (MFU)", flops / PEAK_FLOPS[card], None,
                      ">= 0.4", device)
    model = qwen("0.5B", device, rift.sampling_dtype(device), **changes).eval()
    model.generation_config.eos_token_id = list(range(0, vocabulary, 400))      # mixed lengths
    tokenizer.get_vocab = lambda: {"": vocabulary - 1}                  # all of the head is drawn
    rates = sampling_rates(model, tokenizer, [Row(problem="1+1=?")] * rows,
                           Sampling(rows=rows, k=1, max_new_tokens=new))
    yield row(f"sampling, Qwen2.5-0.5B's size, {rows} rows of up to {new} tokens",
              "tokens/s, beside model.generate", *rates, ">= 3", device)
    yield from logps(device, tokens, changes)

def main_job() -> Iterator[Row]:
    """`python rift.py` as a whole, on two cores where the system lets us choose."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        job = subprocess.Popen([sys.executable, str(DATA.parent / "rift.py"), "--out",
                                f"{folder}/run", "--device", "cpu"], stdout=subprocess.DEVNULL,
                               preexec_fn=lambda: os.sched_setaffinity(0, cores))
        _, status, usage = os.wait4(job.pid, 0)                         # of this child alone
        minutes = (time.perf_counter() - started) / 60
    if status:
        raise SystemExit("python rift.py failed")
    yield row("python rift.py, 2 cores", "minutes", minutes, None, "<= 3.5")
    yield row("python rift.py, 2 cores", "peak GB", usage.ru_maxrss / 2 ** 20, None, "<= 1.3")

# ------------------------------------------------------------------------------------ checker
FORMS: list[Callable[[int, int, int], tuple[str, str]]] = [     # of one value: as gold, as answer
    lambda a, b, c: (f"{a * b}", f"{a} \\cdot {b}"),
    lambda a, b, c: (f"{a * 1000 + b}", f"{a},{b:03}"),
    lambda a, b, c: (f"{a / 8}", f"\\frac{{{a}}}{{8}}"),
    lambda a, b, c: (f"\\frac{{{a}}}{{{b}}}", f"{a * c}/{b * c}"),
    lambda a, b, c: (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
    lambda a, b, c: (f"[{a},{a + b})", f"\\left[{a}, {a + b}\\right)"),
    lambda a, b, c: (f"\\{{{a}, {b}, {c}\\}}", f"\\{{{c}, {a}, {b}\\}}"),
    lambda a, b, c: (f"({a}, \\frac{{{b}}}{{2}})", f"({a}, {b / 2})"),
    lambda a, b, c: (f"x^2 + {a + b}x + {a * b}", f"(x+{a})(x+{b})"),
    lambda a, b, c: (f"\\frac{{{a}\\pi}}{{4}}", f"{a / 4}\\pi")]

def made_cases(n: int) -> list[Row]:
    """Right and wrong answers of these forms by turns, in a box or in a sentence."""
    rng, cases = random.Random(0), []
    for number in range(n):
        a, b, c = rng.sample(range(2, 60), 3)
        form, correct = rng.choice(FORMS), number % 2 == 0
        text = rng.choice(["So we get \\boxed{%s}.", "Hence the final answer is $%s$."])
        cases.append(Row(gold=form(a, b, c)[0], correct=correct,
                         response=text % form(a if correct else a + 1, b, c)[1]))
    return cases

def checker(files: list[str]) -> Iterator[Row]:
    """Cases a second on one core, beside Math-Verify, its timers off so that both just compute."""
    from math_verify import parse, verify
    def theirs(response: str, gold: str) -> bool:
        return verify(parse(f"${gold}$", parsing_timeout=None),
                      parse(response, parsing_timeout=None), timeout_seconds=None)
    def rate(check: Callable[[str, str], bool], parts: Iterator[list[Row]]) -> tuple[float]:
        cases, started = next(parts), time.perf_counter()
        for case in cases:
            check(case["response"], case["gold"])
        return len(cases) / (time.perf_counter() - started),
    sets = {"cases made here": made_cases(1600)} | {Path(f).stem: rift.read_jsonl(f) for f in files}
    for name, cases in sets.items():
        parts = [cases[i::4] for i in range(4)]                         # none is seen twice
        ours, peer = iter(parts), iter(parts)
        [rates] = in_turn(lambda: rate(math_reward, ours), lambda: rate(theirs, peer))
        yield row(f"checker, {name}", "cases/s, beside Math-Verify", *rates, ">= 10")

def memory() -> None:
    """State: 16 bytes a parameter (float32 weights, gradients, AdamW's moments); LoRA: those of the
    adapters (rank 16, all linear layers) and frozen bfloat16 weights. A token keeps 34 D + 8 I
    bytes a layer (D hidden, I inner; counted with saved_tensors_hooks); checkpointed, a layer's
    input, and 34 D + 8 I once. 10 % of a card (in 2^30 bytes) is left free."""
    print("| Qwen2.5 | state | tokens in 24 GB (checkpointed) | in 80 GB | 1,000 tokens of cache "
          "| rows of them in 24 GB | in 80 GB |\n|---|---|---|---|---|---|---|")
    for name, (D, I, layers, heads, kv_heads, vocabulary, _) in QWEN.items():
        n, kv, kept = qwen(name, "meta").num_parameters(), D // heads * kv_heads, 34 * D + 8 * I
        linear = layers * (2 * D * (D + kv) + 3 * D * I)
        adapters = 16 * layers * (2 * (D + D) + 2 * (D + kv) + 3 * (D + I))
        head = 4 * vocabulary * D + 8 * 4 * rift.LOGITS_AT_ONCE         # a copy, two chunks
        cache = 2 * layers * kv * 2 * 1000
        rows = [f"{(0.9 * card * GB - 2 * n) / cache:,.0f}" for card in (24, 80)]
        for kind, state, casts, width in (("full", 16 * n, 2 * linear, 4),
                                          ("LoRA", 2 * n + 16 * adapters, 0, 2)):
            cells = [f"{name} {kind}", f"{state / GB:.1f} GB"]
            for card in (24, 80):
                room = max(0, 0.9 * card * GB - state - head)
                plain = max(0, room - casts) / (layers * kept)
                cells.append(f"{plain:,.0f} ({room / (layers * width * D + kept):,.0f})")
            print("|", " | ".join([*cells, f"{cache / 1e6:.0f} MB", *rows]), "|")

ROWS = {"logps": logps, "step": step, "sampling": sampling, "main": main_job, "checker": checker,
        "gpu": gpu}

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--cases", nargs="+", default=[])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not {*args.rows} <= {*ROWS, "memory"}:
        parser.error(f"the rows are {' '.join(ROWS)}")
    if args.child:
        which, *sizes = json.loads(args.child)
        return print(logps_steps(*sizes)[which]()[1])
    if args.rows == ["memory"]:
        return memory()
    path = DATA / "bench.json"
    table = {(old["row"], old["metric"]): old for old in json.loads(path.read_text())}
    for name in args.rows:
        try:
            for new in ROWS[name](*[args.cases] if name == "checker" else []):
                table[new["row"], new["metric"]] = new
                beside = f" / {new['peer']:g} = {new['ratio']:g}" if new["peer"] else ""
                print(f"{new['row']}\n    {new['metric']}: {new['ours']:g}{beside} (goal "
                      f"{new['goal']}: {'met' if new['met'] else 'missed'})", flush=True)
        except (ImportError, RuntimeError) as error:
            print(f"{name}: not measured: {error}")
    rift.write_whole(path, json.dumps(list(table.values()), indent=1) + "\n")
if __name__ == "__main__":
    main()
