"""RIFT, Reward-Informed Fine-Tuning (arXiv 2601.09253): the whole method in one file.

A language model samples several responses y to each problem x, a checker gives each a reward r
(right +1.0, wrong -0.2), and the model is fine-tuned on all of them:

    L_RIFT = -E_{r>0}[ r log pi(y|x) ] - E_{r<0}[ r pi(y|x) ]

Right responses keep the log-likelihood. For wrong ones -r log pi has no lower bound and training
collapses (the naive loss, Theorem 3.2); -r pi lies in [0, |r|] and its gradient with respect to
pi is the constant -r (Theorem 3.4). Since grad pi = pi grad log pi, RIFT is the naive loss with
each negative weighted by its own probability: what is already unlikely is left alone.

    python rift.py                            the main job: sample, train, table, figure
    python rift.py sample --problems FILE     problems.jsonl -> samples.jsonl
    python rift.py score --samples FILE       responses made elsewhere -> samples.jsonl
    python rift.py train --samples FILE       samples.jsonl -> model/, metrics.jsonl
    python rift.py eval --model FOLDER        a model's accuracy -> results.json

Departures from the paper, and gaps filled: pi(y|x) underflows for long responses, so `level` has
two other pi; a step is divided by its response tokens (level mean: samples), a constant to AdamW;
a response cut off at the length limit is not taught to end there.
"""
from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TopPLogitsWarper

from math_reward import extract_answer, math_reward

DATA = Path(__file__).resolve().parent / "data"
METHODS = {"base": "base model", "sft": "SFT, expert solutions", "rft-passes": "RFT, same passes",
           "rft-steps": "RFT, same steps", "naive": "naive, its best lr",
           "naive-same-lr": "naive, RIFT's lr", "rift": "RIFT",
           "rift-positives": "RIFT, same positives"}
DIFFERENCES = (("rift", "rft-passes", "RIFT - RFT, same passes"),
               ("rift", "rft-steps", "RIFT - RFT, same steps"),
               ("rift-positives", "rft-steps", "RIFT - RFT, same positives"),
               ("rift", "naive", "RIFT - naive, its best lr"))
OWN_LR = {"naive": 1e-4}          # best of the search in data/study.json; the others: 3e-4
GRID = ("seed", "lr", "epochs", "level", "wrong")   # of these, compare takes several values
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 1.96)  # 2 ... 10, 11+ seeds

class UserError(Exception):
    """A mistake in the input; the command line prints it as one line and exits with status 2."""

@dataclass
class Config:       # every setting; each is a flag of the commands named before the colon
    model: str = str(DATA / "tiny-base")        # sample train eval compare: folder or hub name
    problems: str = str(DATA / "train.jsonl")   # sample compare: JSONL to learn from
    test: str = str(DATA / "test.jsonl")        # eval compare: JSONL to evaluate on
    limit: int = 0                  # sample eval compare: use the first N (test) problems; 0 is all
    samples: str = ""               # score train: JSONL of responses, with rewards to train
    out: str = ""                   # sample score train eval compare: folder (runs/COMMAND)
    template: str = "{problem}\n"   # sample train eval compare: the prompt or the chat's message
    device: str = ""                # sample train eval compare: cpu, cuda, ... (cuda if there)
    seed: int = 0                   # sample train eval compare: of samples and order of batches
    k: int = 8                      # sample eval compare: responses per problem
    temperature: float = 1.0        # sample eval compare: of sampling; 0 is greedy
    top_p: float = 1.0              # sample eval compare: mass of the tokens sampled from
    max_new_tokens: int = 256       # sample eval compare: longest response
    rows: int = 256                 # sample eval compare: responses generated side by side
    right: float = 1.0              # sample score compare: reward of a right answer
    wrong: float = -0.2             # sample score compare: reward of a wrong answer
    loss: str = "rift"              # train: rift, naive, rft or sft (every sample)
    level: str = "sequence"         # train compare: the pi of a response: sequence, mean or token
    epochs: float = 1.5             # train compare: passes over the samples
    steps: int = 0                  # train: optimizer steps; 0 counts them from --epochs
    batch_size: int = 64            # train compare: samples per optimizer step
    positives: bool = False         # train: --batch-size counts positives; negatives are added
    tokens_per_batch: int = 16384   # train compare: padded tokens per micro-batch, for memory
    lr: float = 3e-4                # train compare: peak learning rate (compare: each its own)
    warmup: float = 0.1             # train compare: share of the steps to warm up over
    weight_decay: float = 0.0       # train compare: of AdamW
    max_grad_norm: float = 1.0      # train compare: gradients are clipped at this norm
    gradient_checkpointing: bool = False    # train: less memory, more time
    save_every: int = 0             # train: steps between checkpoints; 0 for none
    methods: tuple[str, ...] = tuple(METHODS)   # compare: rows of the table
    rounds: int = 1                 # compare: of sampling and training, each on new problems
    per_round: int = 300            # compare: problems to learn from in a round
    quick: bool = False             # compare: --k 4 --limit 100 --per-round 100: half a minute
    command: str = "compare"
    grid: dict[str, list] = field(default_factory=dict)

# ------------------------------------------------------------------------------------ losses
# logps (B, T): log pi of each response token, in nats; mask (B, T): true at response tokens;
# rewards (B,): any finite numbers. `normalizer` takes the place of the number of samples in the
# mean, so that micro-batches add up to a whole optimizer step. Each loss returns a scalar and
# the metrics of `finish`. To copy: this section needs torch only.

LEVELS = ("sequence", "mean", "token")
Loss = tuple[Tensor, dict[str, float]]

def log_policy(logps: Tensor, mask: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """log pi and pi of each response, both (B,), in float32 or better. Level sequence: pi is the
    product over its tokens, the paper's pi(y|x); mean: their geometric mean; token: each token
    is a response of its own, so these are the sums of log pi_t and of pi_t."""
    if level not in LEVELS:
        raise ValueError(f"level {level!r}: use one of {LEVELS}")
    logps = torch.where(mask.bool(), logps.to(torch.promote_types(logps.dtype, torch.float32)), 0)
    log_pi = logps.sum(1)
    if level == "mean":
        log_pi = log_pi / mask.sum(1).clamp(min=1)
    return log_pi, (logps.exp() * mask).sum(1) if level == "token" else log_pi.exp()

def rift_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence",
              normalizer: float | None = None) -> Loss:
    """RIFT: -r log pi where r > 0, the bounded -r pi where r < 0 (Theorem 3.4).

    >>> logps, mask = torch.tensor([[-1.0], [-1.0]]), torch.ones(2, 1)
    >>> rift_loss(logps, mask, torch.tensor([1.0, -0.2]))[0]     # (1 + 0.2 / e) / 2
    tensor(0.5368)
    """
    log_pi, pi = log_policy(logps, mask, level)
    terms = torch.where(rewards > 0, -rewards * log_pi, -rewards * pi)
    return finish(terms, rewards != 0, logps, rewards, log_pi, pi, normalizer)

def naive_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence",
               normalizer: float | None = None) -> Loss:
    """-r log pi for every sign: unbounded below for r < 0 as pi -> 0 (Theorem 3.2)."""
    log_pi, pi = log_policy(logps, mask, level)
    return finish(-rewards * log_pi, rewards != 0, logps, rewards, log_pi, pi, normalizer)

def rft_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence",
             normalizer: float | None = None) -> Loss:
    """Rejection-sampling fine-tuning: -log pi where r > 0; the rest is thrown away."""
    log_pi, pi = log_policy(logps, mask, level)
    return finish(-log_pi, rewards > 0, logps, rewards, log_pi, pi, normalizer)

def sft_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence",
             normalizer: float | None = None) -> Loss:
    """Supervised fine-tuning: -log pi of every sample."""
    log_pi, pi = log_policy(logps, mask, level)
    return finish(-log_pi, rewards.isfinite(), logps, rewards, log_pi, pi, normalizer)

def finish(terms: Tensor, used: Tensor, logps: Tensor, rewards: Tensor, log_pi: Tensor,
           pi: Tensor, normalizer: float | None) -> Loss:
    """The mean of `terms` over the samples `used`, and metrics that add up over micro-batches:
    sums over r > 0 (*_pos) and r < 0 (*_neg) of 1 (n), log pi (logp), pi, and the L1 norm of the
    loss's gradient at logps (grad; 0 without a graph). ValueError: a reward is not finite."""
    for i in (~rewards.isfinite()).nonzero().flatten().tolist():
        raise ValueError(f"rewards[{i}] is {rewards[i]}: a reward must be finite")
    loss = torch.where(used, terms, 0).sum() / (normalizer or max(int(used.sum()), 1))
    grad = torch.zeros_like(logps)
    if loss.requires_grad:
        grad, = torch.autograd.grad(loss, logps, retain_graph=True)
    sums = {"n": used.new_ones(len(used), dtype=torch.long), "logp": log_pi, "pi": pi,
            "grad": grad.abs().sum(1)}
    return loss, {f"{name}_{sign}": values[rows].sum().item() for name, values in sums.items()
                  for sign, rows in (("pos", rewards > 0), ("neg", rewards < 0))}

LOSSES = {"rift": rift_loss, "naive": naive_loss, "rft": rft_loss, "sft": sft_loss}

# ------------------------------------------------- log-probabilities without the full logits
LOGITS_AT_ONCE = 2 ** 24        # how many numbers (float32: 64 MB), 16 times that on a GPU

def plain_head(model: Any) -> bool:
    """Whether logits are head(hidden) and nothing else: no scale or soft cap."""
    ids = torch.arange(2, device=model.device)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.allclose(model.get_output_embeddings()(hidden), logits, rtol=1e-3, atol=1e-4)

def response_logps(model: Any, input_ids: Tensor, attention_mask: Tensor, mask: Tensor,
                   plain: bool = True) -> Tensor:
    """log pi(token | all before it) at the response tokens, (B, T-1) in nats, 0 elsewhere.

    input_ids, attention_mask and mask (true at response tokens) are (B, T), padded on the right;
    column t of the result belongs to token t + 1. The head runs on response positions alone, in
    float32 or better, some at a time and again in the backward pass, so that their logits are
    never all there. A head that is not `plain` is left to the model, which makes them all.
    """
    where, kind = mask[:, 1:].bool(), input_ids.device.type                     # (B, T-1)
    targets = input_ids[:, 1:][where]                                           # (N,)
    out = (model.base_model if plain else model)(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    wide = (out.last_hidden_state if plain else out.logits)[:, :-1][where]      # (N, D) or (N, V)
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    if plain:
        head = model.get_output_embeddings()
        weight, bias = (x if x is None else x.to(wide.dtype) for x in (head.weight, head.bias))
        rows = max(1, LOGITS_AT_ONCE * (16 if kind == "cuda" else 1) // len(weight))
        with torch.autocast(kind, enabled=False):
            nll = F.linear_cross_entropy(
                wide, weight, targets, linear_bias=bias, reduction="none",
                options=LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None))
    else:
        nll = F.cross_entropy(wide, targets, reduction="none")
    return nll.new_zeros(where.shape).masked_scatter(where, -nll)

# -------------------------------------------------------------------- data: JSONL in, batches out
Problem = Sample = dict[str, Any]   # a JSON object; fields not named here pass through
# A problem has `problem` (or `question`) and `answer`, or a `solution` whose last box is it;
# GSM8K's "working #### answer" will do. `kind`: results are also given by kind.
# A sample has `response`, `reward` (any finite number) and `problem`, or a `prompt` to take as it
# is. `truncated`: it was cut off at the length limit, so no EOS (default: false).

def read_jsonl(path: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each with its `line` for messages."""
    rows = []
    try:
        for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                rows.append(json.loads(line) | {"line": f"{path}:{number}"})
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}:{number}: not a JSON object ({error})") from None
    if not rows:
        raise UserError(f"{path}: empty; one JSON object a line is needed")
    return rows

def text_field(row: Any, *names: str) -> str:
    """The first of these fields that is there, made text in place; it must not be blank."""
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise UserError(f"{row['line']}: no field `{'` or `'.join(names)}`")
    if type(row[name]) not in (str, int, float) or not str(row[name]).strip():
        raise UserError(f"{row['line']}: `{name}` must be text that is not empty")
    row[name] = str(row[name])
    return row[name]

def read_problems(path: str, limit: int = 0) -> list[Problem]:
    """Problems from JSONL; GSM8K's, MATH's and MATH-500's published files read as they are."""
    rows = read_jsonl(path)[:limit or None]
    for row in rows:
        row["problem"] = text_field(row, "problem", "question")
        text_field(row, "prompt", "problem")                    # a prompt of its own, if it has one
        if "kind" in row:
            text_field(row, "kind")
        text = text_field(row, "answer", "solution")
        if row.get("answer") is None or "####" in text:
            row.setdefault("solution", text)
            row["answer"] = ("####" in text or "\\boxed" in text) and extract_answer(text)
            if not row["answer"]:
                raise UserError(f"{row['line']}: no `answer`, and no \\boxed{{}} in `solution`")
    return rows

def read_samples(path: str, rewards: bool) -> list[Sample]:
    """Samples from JSONL; only if `rewards` are not needed yet may they be missing, and are 1."""
    rows = read_jsonl(path)
    for row in rows:
        text_field(row, "prompt", "problem")
        if row.get("response") != "" or row.get("truncated") is not False:
            text_field(row, "response")             # "" is a response only if EOS ended it there
        if row.get("reward") is None and not rewards:
            row["reward"] = 1.0
        if type(row.get("reward")) not in (int, float) or not abs(row["reward"]) < 3e38:  # float32
            raise UserError(f"{row['line']}: `reward` must be a finite number")
    return rows

def dump(rows: list[Any]) -> str:
    """Rows as JSONL, without their `line`."""
    return "".join(json.dumps({n: row[n] for n in row if n != "line"}) + "\n" for row in rows)

def encode(tokenizer: Any, row: Any, template: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the response, if any, with EOS unless it was cut off."""
    text = row.get("prompt") or template.replace("{problem}", row["problem"])
    chat = tokenizer.chat_template and not row.get("prompt")
    if chat:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text.strip()}],
                                             tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=not chat).input_ids
    if "response" not in row:
        return prompt, []
    response = tokenizer(row["response"], add_special_tokens=False).input_ids
    return prompt, response + [tokenizer.eos_token_id] * (not row.get("truncated"))

def pad(rows: list[list[int]], device: torch.device, side: str = "right") -> Tensor:
    """Rows of whole numbers as one tensor, filled up with 0."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True,
                        padding_side=side).to(device)

def collate(pairs: list[tuple[list[int], list[int]]], device: torch.device) -> dict[str, Tensor]:
    """(prompt, response) ids as input_ids, attention_mask and mask, (B, T), padded on the right.
    The masks come from lengths, so EOS is trained also where it is the padding token."""
    return {"input_ids": pad([p + r for p, r in pairs], device),
            "attention_mask": pad([[1] * len(p + r) for p, r in pairs], device),
            "mask": pad([[0] * len(p) + [1] * len(r) for p, r in pairs], device).bool()}

# ----------------------------------------------------------------------------- sampling loop
def load_model(path: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the hub."""
    if "/" in path and Path(path).parent.is_dir() and not Path(path).is_dir():
        raise UserError(f"{path}: no such folder; give one made by save_pretrained, or a hub name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
        if model.device.type == "cuda":
            torch.set_float32_matmul_precision("high")          # TF32, for the head
        torch.set_flush_denormal(True)      # where pi all but vanishes a CPU is 10 times slower
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{path}: no model that transformers can load on {device} "
                        f"({str(error).strip().splitlines()[0]})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: its tokenizer has no end-of-sequence token to stop at")
    return model.eval(), tokenizer

def context_length(model: Any) -> int:
    """The most tokens that the model can attend to, as far as its configuration says."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

def choose(logits: Tensor, temperature: float, top_p: float, rng: torch.Generator) -> Tensor:
    """The next token of each row, (B,), from logits (B, V)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return torch.multinomial(logits.softmax(-1), 1, generator=rng).squeeze(1)

@torch.no_grad()
def generate(model: Any, prompts: list[list[int]], config: Config, stop: list[int],
             rng: torch.Generator) -> list[list[int]]:
    """config.k responses to each prompt, side by side: token ids, with the stop token if any.
    Prompts are padded on the left and read once, whatever k; a finished row leaves the batch."""
    attention = pad([[1] * len(prompt) for prompt in prompts], model.device, "left")
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=pad(prompts, model.device, "left"), attention_mask=attention,
                   position_ids=(attention.cumsum(1) - 1).clamp(min=0), past_key_values=cache,
                   logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(config.k)
    logits, attention = (tensor.repeat_interleave(config.k, 0) for tensor in (logits, attention))
    responses: list[list[int]] = [[] for _ in range(len(attention))]
    alive = torch.arange(len(responses), device=model.device)   # the response each row writes
    ends = torch.tensor(stop, device=model.device)
    for written in itertools.count(1):
        token = choose(logits, config.temperature, config.top_p, rng)
        for response, one in zip(alive.tolist(), token.tolist()):
            responses[response].append(one)
        attention = F.pad(attention, (0, 1), value=1)
        room = (attention.sum(1) < context_length(model)) & (written < config.max_new_tokens)
        keep = (room & ~torch.isin(token, ends)).nonzero().squeeze(1)
        if len(keep) == 0:
            return responses
        if len(keep) < len(alive):
            cache.batch_select_indices(keep)
            token, alive, attention = token[keep], alive[keep], attention[keep]
        logits = model(input_ids=token[:, None], attention_mask=attention, past_key_values=cache,
                       position_ids=attention.sum(1, keepdim=True) - 1).logits[:, -1]

def sample(model: Any, tokenizer: Any, problems: list[Problem], config: Config,
           path: Path | None = None) -> list[Sample]:
    """config.k scored responses to each problem in turn, shortest prompts first. With a path each
    batch is appended to that JSONL as it comes, and a file that a killed run left is gone on
    from: a batch's random numbers depend on the seed and its number alone."""
    queue = sorted(((encode(tokenizer, row, config.template)[0], row) for row in problems),
                   key=lambda pair: len(pair[0]))
    size = max(1, config.rows // config.k)
    parts = [queue[i:i + size] for i in range(0, len(queue), size)]
    stop = model.generation_config.eos_token_id or []
    stop = sorted({tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])})
    lines = path.read_text().splitlines(keepends=True) if path and path.exists() else []
    whole = sum(line.endswith("\n") for line in lines)          # a kill can leave half a line
    done = len(parts) if whole == len(queue) * config.k else whole // (size * config.k)
    samples = [json.loads(line) for line in lines[:done * size * config.k]]
    if path:
        write_whole(path, dump(samples))
    for number in tqdm(range(done, len(parts)), "sampling", ncols=79, disable=None, leave=False):
        prompts, rows = zip(*parts[number])
        rng = torch.Generator(model.device).manual_seed(config.seed * 1_000_003 + number)
        new = []
        for i, ids in enumerate(generate(model, prompts, config, stop, rng)):
            cut = ids[-1] not in stop
            text = tokenizer.decode(ids if cut else ids[:-1], skip_special_tokens=True)
            new.append(rows[i // config.k] | {"response": text, "truncated": cut,
                                              "tokens": len(ids)})
        samples += score(new, config)
        if path:
            with open(path, "a") as file:
                file.write(dump(new))
    return samples

def score(samples: list[Sample], config: Config) -> list[Sample]:
    """The samples, each with its reward: config.right or config.wrong, as math_reward judges."""
    for row in samples:
        right = math_reward(row["response"], row["answer"])
        row["reward"] = config.right if right else config.wrong
    return samples

# ---------------------------------------------------------------------------------- training
def useful(samples: list[Sample], loss: str, positives: bool = False) -> list[Sample]:
    """The samples that a loss learns from; UserError if there are none."""
    kept = [row for row in samples if loss == "sft" or row["reward"] > 0
            or loss != "rft" and row["reward"] != 0]
    if not any(row["reward"] > 0 or not positives for row in kept):
        raise UserError(f"nothing to learn from: no reward of {len(samples)} is of use to {loss}")
    return kept

def shuffled(items: list[int], seed: int) -> Iterator[int]:
    """The items without end; each pass over them is a new permutation."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(items, len(items))

def write_whole(path: Path, write: Any) -> None:
    """A text, or what a function makes at a path, put at `path`: whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(write, encoding="utf-8") if isinstance(write, str) else write(part)
    os.replace(part, path)

def train(model: Any, tokenizer: Any, samples: list[Sample], config: Config,
          out: Path | None = None) -> list[dict[str, Any]]:
    """Fine-tunes the model in place and returns the metrics of each optimizer step. The response
    tokens that normalise it are counted before it is cut into micro-batches, so these do not
    change the gradient. A loss or gradient that is not finite ends training before it reaches
    the weights; the last metrics then say `stopped`. With `out`, metrics.jsonl is there and,
    every config.save_every steps, checkpoint.pt, from which the same call goes on."""
    samples = useful(samples, config.loss, config.positives)
    pairs = [encode(tokenizer, row, config.template) for row in samples]
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    rewards = torch.tensor([float(row["reward"]) for row in samples], device=model.device)
    extra = [i for i, row in enumerate(samples) if config.positives and row["reward"] < 0]
    counted = sorted(set(range(len(samples))) - set(extra))         # by config.batch_size
    beside = round(config.batch_size * len(extra) / len(counted))
    order, extra_order = shuffled(counted, config.seed), shuffled(extra, config.seed)
    steps = config.steps or max(1, math.ceil(config.epochs * len(counted) / config.batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr,
                                  weight_decay=config.weight_decay, fused=True)
    scheduler = transformers.get_cosine_schedule_with_warmup(
        optimizer, round(config.warmup * steps), steps)
    saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    history = []
    if out and (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", map_location=model.device, weights_only=True)
        history = state.pop("history")
        for name, part in saved.items():
            part.load_state_dict(state[name])
    if out:
        write_whole(out / "metrics.jsonl", dump(history))
    plain = plain_head(model.eval())
    model.train()
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    for step in tqdm(range(steps), f"training {config.loss}", ncols=79, disable=None, leave=False):
        mine = list(itertools.islice(order, config.batch_size))
        left = sorted(mine + list(itertools.islice(extra_order, beside)), key=lengths.__getitem__)
        if step < len(history):
            continue                                            # done before the run was killed
        started, total = time.perf_counter(), Counter()
        n_tokens = sum(len(pairs[i][1]) for i in mine)
        torch.manual_seed(config.seed + step)                   # of dropout, if there is any
        optimizer.zero_grad()
        while left:                                             # as many as fit with the longest
            size = max(1, config.tokens_per_batch // lengths[left[-1]])
            rows, left = left[-size:], left[:-size]
            batch = collate([pairs[i] for i in rows], model.device)
            with torch.autocast(model.device.type, torch.bfloat16, model.device.type == "cuda"):
                logps = response_logps(model, **batch, plain=plain)
            loss, metrics = LOSSES[config.loss](
                logps, batch["mask"][:, 1:], rewards[rows], config.level,
                normalizer=len(mine) if config.level == "mean" else n_tokens)
            loss.backward()
            total.update(metrics | {"loss": loss.item()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
        log = {"step": step + 1, "loss": total["loss"], "grad_norm": norm,
               "lr": scheduler.get_last_lr()[0], "tokens": n_tokens,
               "neg_share": total["grad_neg"] / (total["grad_pos"] + total["grad_neg"] or 1)}
        for sign in ("pos", "neg"):
            n = log[f"n_{sign}"] = total[f"n_{sign}"]
            log |= {name: total[name] / max(n, 1) for name in (f"logp_{sign}", f"pi_{sign}")}
        if math.isfinite(log["loss"] + norm):
            optimizer.step()
            scheduler.step()
        else:
            names = ", ".join(str(samples[i].get("line", i)) for i in mine[:3])
            log["stopped"] = f"step {step + 1} is not finite, on samples {names}, ..."
        history.append(log | {"seconds": time.perf_counter() - started})
        if out:
            with open(out / "metrics.jsonl", "a") as file:
                file.write(dump(history[-1:]))
        if "stopped" in log:
            break
        if out and config.save_every and (step + 1) % config.save_every == 0:
            state = {name: part.state_dict() for name, part in saved.items()} | {"history": history}
            write_whole(out / "checkpoint.pt", lambda path, state=state: torch.save(state, path))
        if (config.loss == "rift" and step + 1 == min(10, steps)
                and all(row["n_neg"] and row["neg_share"] < 1e-6 for row in history)):
            print("warning: negatives give less than 1e-6 of the gradient, so this is RFT: pi of "
                  "such\nlong responses vanishes, that of --level mean or token does not",
                  file=sys.stderr)
    model.eval()
    return history

# -------------------------------------------------------------------------------- evaluation
def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, c of them right, hold a right one (Chen et al. 2021, eq. 1)."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)

def mean_se(values: list[float]) -> list[float]:
    """[mean, standard error of the mean]; a single value has error 0."""
    return [statistics.fmean(values),
            statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0]

def evaluate(model: Any, tokenizer: Any, problems: list[Problem], config: Config
             ) -> dict[str, dict[str, Any]]:
    """Accuracy on all problems and on each `kind`; every figure is [mean, standard error], over
    problems, because samples of one problem are not independent. greedy: of the greedy response;
    mean@k: of config.k samples; pass@j for j = 2, 4, ... k; truncated: share of samples cut off;
    tokens: their mean length."""
    k, config = config.k, replace(config, right=1, wrong=0)
    drawn = sample(model, tokenizer, problems, config)
    greedy = sample(model, tokenizer, problems, replace(config, k=1, temperature=0.0))
    pairs = [(one, drawn[i * k:i * k + k]) for i, one in enumerate(greedy)]     # of one problem
    results = {}
    for kind in ["all", *sorted({row["kind"] for row in problems if "kind" in row})]:
        ones, groups = zip(*(p for p in pairs if kind in ("all", p[0].get("kind"))))
        right = [sum(row["reward"] for row in group) for group in groups]
        results[kind] = {
            "n": len(ones), "greedy": mean_se([row["reward"] for row in ones]),
            f"mean@{k}": mean_se([c / k for c in right]),
            **{f"pass@{j}": mean_se([pass_at_k(k, c, j) for c in right])
               for j in sorted({2 ** e for e in range(1, k.bit_length())} | {k})},
            **{name: mean_se([statistics.fmean(row[name] for row in group) for group in groups])
               for name in ("truncated", "tokens")}}
    return results

# ------------------------------------------------------------- compare: the default main job
def compare(config: Config, out: Path, model: Any, tokenizer: Any, problems: list[Problem],
            test: list[Problem]) -> dict[str, Any]:
    """Trains each method from the same start on the same buffer, and evaluates it. Three ways to
    be fair to RFT: rft-passes makes RIFT's passes over the buffer's positives, so fewer steps;
    rft-steps takes RIFT's steps, as sft does on experts' solutions; rift-positives has in every
    step the positives of rft-steps, and negatives beside them. In later rounds each method
    samples its own buffer, on new problems. Finished cells are kept in out/results.json."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path, n = out / "results.json", min(config.per_round, len(problems) // config.rounds)
    results = json.loads(path.read_text()) if path.exists() else {
        "settings": settings(config), "cells": [], "hardware": {
            "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(), "dtype": str(model.dtype),
            "torch": torch.__version__, "transformers": transformers.__version__}}
    grid = {name: config.grid.get(name, [getattr(config, name)]) for name in GRID}
    several = [one for one in GRID[1:] if len(grid[one]) > 1] + ["round"] * (config.rounds > 1)
    for *values, method in itertools.product(*grid.values(), config.methods):
        cell, loss = {"method": method, **dict(zip(GRID, values))}, method.split("-")[0]
        for name in {"base": GRID[1:], "sft": ["wrong"], "rft": ["wrong"]}.get(loss, ()):
            cell[name] = getattr(Config, name)              # what makes no difference to it
        if "lr" not in config.grid:
            cell["lr"] = OWN_LR.get(method, config.lr)
        if any(cell.items() <= finished.items() for finished in results["cells"]):
            continue
        one = replace(config, loss=loss, positives=method == "rift-positives",
                      **{name: cell[name] for name in GRID})
        if method != "rft-passes":
            one.steps = math.ceil(one.epochs * n * one.k / one.batch_size)
        model.load_state_dict(start)
        for turn in range(config.rounds if method != "base" else 1):
            started, some = time.perf_counter(), problems[turn * n:(turn + 1) * n]
            one.seed, history, stopped = cell["seed"] + 1000 * turn, [], ""
            if method == "sft":
                buffer = [row | {"response": row["solution"], "reward": 1.0} for row in some]
            elif method != "base":
                file = None if turn else out / f"samples-{one.seed}.jsonl"
                buffer = score(sample(model, tokenizer, some, one, file), one)
            try:
                history = train(model, tokenizer, buffer, one) if method != "base" else []
                stopped = history[-1].get("stopped", "") if history else ""
            except UserError as error:                      # no right sample: the others go on
                stopped = str(error)
            cell |= {"round": turn + 1, "steps": len(history), "stopped": stopped,
                     "results": evaluate(model, tokenizer, test, one),
                     "curves": {name: [float(f"{row[name]:.4g}") if math.isfinite(row[name])
                                       else None for row in history]
                                for name in ("loss", "logp_neg", "neg_share", "grad_norm")},
                     "minutes": round((time.perf_counter() - started) / 60, 2)}
            results["cells"].append(dict(cell))
            print(f"seed {cell['seed']}  {METHODS[method]:22}{len(history):5} steps "
                  f"{cell['minutes']:6.2f} min", *(f" {name} {cell[name]}" for name in several),
                  f"\n    {stopped}" * bool(stopped), flush=True)
        write_whole(path, json.dumps(results) + "\n")
    return results

def interval(pairs: list[list[float]]) -> tuple[float, float]:
    """Mean and 95 % half-width of [value, error] by seed; of one seed, its error over problems."""
    mean, error = mean_se([value for value, _ in pairs])
    return mean, error * T95[min(len(pairs), 11) - 2] if len(pairs) > 1 else pairs[0][1]

def gather(results: dict[str, Any], kind: str, name: str) -> dict[str, tuple[float, float]]:
    """A figure's mean and half-width (of one seed, its error) by row of the table. Settings that a
    method has several of make rows of their own; differences are within the same settings."""
    cells: dict[str, list[dict]] = {method: [] for method in METHODS}
    for cell in results["cells"]:
        value, error = (cell["results"][kind] | {"steps": (cell["steps"], 0.0)})[name]
        cells[cell["method"]].append(cell | {"value": value, "error": error})
    several = {method: [one for one in (*GRID[1:], "round") if len({c.get(one) for c in mine}) > 1]
               for method, mine in cells.items()}
    rows = [(row, cell) for method, row in METHODS.items() for cell in cells[method]]
    for mine, other, row in DIFFERENCES:
        alike = {*GRID, "round"} - {"wrong"} if other.startswith("rft") else {*GRID, "round"}
        if "lr" not in several[mine] + several[other]:              # each has its own
            alike.remove("lr")
        for a, b in itertools.product(cells[mine], cells[other]):
            if all(a.get(one) == b.get(one) for one in alike):
                rows.append((row, a | {"value": a["value"] - b["value"],
                                       "error": math.hypot(a["error"], b["error"])}))
    pairs: dict[str, list[list[float]]] = {}
    for row, cell in rows:
        label = ", ".join([row, *(f"{one} {cell.get(one)}" for one in several[cell["method"]])])
        pairs.setdefault(label, []).append([cell["value"], cell["error"]])
    return {label: interval(some) for label, some in pairs.items()}

def table(results: dict[str, Any]) -> str:
    """The results as text of at most 80 columns, in percent, for all problems and each kind."""
    lines, k = [], results["settings"]["k"]
    for kind, figures in results["cells"][0]["results"].items():
        columns = {name: gather(results, kind, name)
                   for name in ("steps", "greedy", f"mean@{k}", f"pass@{k}")}
        title = f"{kind} ({figures['n']} problems)"
        lines.append(f"{title:29}" + "".join(f"{name:>15}" for name in columns)[9:])
        for row, (steps, _) in columns.pop("steps").items():
            sign, steps = ("+", "") if " - " in row else ("", round(steps))
            row_start = row if len(row) < 30 else f"{row}\n{'':29}"
            lines.append(f"{row_start:29}{steps:>6}" + "".join(
                f"{100 * column[row][0]:{sign}9.1f} ±{100 * column[row][1]:4.1f}"
                for column in columns.values()))
        lines.append("")
    seeds, hardware = len({cell["seed"] for cell in results["cells"]}), results["hardware"]
    error = f"95 % interval over {seeds} seeds" if seeds > 1 else "standard error over problems"
    minutes = sum(cell["minutes"] for cell in results["cells"])
    return "\n".join(lines) + f"\npercent; ± is the {error}\n{minutes:.1f} minutes on " \
        f"{hardware['device']}, {hardware['threads']} threads"

def figure(results: dict[str, Any], path: Path) -> None:
    """A PNG: accuracy by method and kind; naive against RIFT over the steps."""
    from matplotlib.figure import Figure
    fig, name = Figure(figsize=(13, 4), layout="constrained"), f"mean@{results['settings']['k']}"
    bars, loss, logp = fig.subplots(1, 3, width_ratios=[2, 1, 1])
    width = 0.8 / len(results["cells"][0]["results"])
    for i, kind in enumerate(results["cells"][0]["results"]):
        rows = {row: x for row, x in gather(results, kind, name).items() if " - " not in row}
        means, halves = zip(*rows.values())
        bars.bar([j + i * width for j in range(len(rows))], means, width, yerr=halves, label=kind)
    bars.set_xticks(range(len(rows)), [row.replace(" ", "\n") for row in rows], size=8)
    bars.set(title=f"{name} on the test problems", ylim=(0, 1))
    lines, colours = {}, {"naive": "tab:orange", "naive-same-lr": "tab:red", "rift": "tab:purple"}
    for cell in results["cells"]:
        if colour := colours.get(cell["method"]):
            lines[METHODS[cell["method"]]], = loss.plot(cell["curves"]["loss"], colour, lw=1)
            logp.plot(cell["curves"]["logp_neg"], colour, lw=1)
    loss.set(title="training loss", xlabel="step")
    logp.set(title="log pi of wrong responses, nats", xlabel="step")
    bars.legend(loc="upper left", ncols=4)
    logp.legend(lines.values(), lines.keys())
    fig.savefig(path, dpi=120)

# ------------------------------------------------------------------------------ command line
def flags(command: str) -> dict[str, str]:
    """The flags of a command and their help: the comments of Config."""
    found = re.findall(r"(?m)^    (\w+): .*# ([a-z ]+): (.+)$", inspect.getsource(Config))
    return {name: text for name, commands, text in found if command in commands.split()}

def parse(argv: list[str]) -> Config:
    """The command line as a Config; UserError at a flag or value that will not do."""
    def fail(message: str) -> None:
        raise UserError(f"{message}; see python rift.py {command} --help")

    commands = ("compare", "sample", "score", "train", "eval")
    command = argv[0] if argv and argv[0] in commands else commands[0]
    parser = argparse.ArgumentParser(
        f"rift.py {command}", f"rift.py [{' | '.join(commands)}] [--flag value ...]",
        f"The flags of {command}; rift.py COMMAND --help lists those of another command.",
        allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.error = fail
    parser.add_argument("command", nargs="?", choices=commands, default=command,
                        help=argparse.SUPPRESS)
    choices = {"loss": LOSSES, "level": LEVELS, "methods": METHODS}
    many = (*GRID, "methods") if command == "compare" else ()
    for name, text in flags(command).items():
        default = getattr(Config, name)
        kind = str if name == "methods" else type(default)
        parser.add_argument("--" + name.replace("_", "-"), **(
            {"action": "store_true", "help": text} if kind is bool else {
                "type": kind, "choices": choices.get(name), "metavar": "X",
                "nargs": "+" if name in many else None, "required": name == "samples",
                "help": text if kind is str else f"{text} [{default}]"}))
    given = vars(parser.parse_args(argv))
    for name, values in given.items():
        default = getattr(Config, name)
        least = -3e38 if name in ("right", "wrong") else int(type(default) is int and default > 0)
        most = 1 if name in ("top_p", "warmup") else 3e38                   # of float32
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, (int, float)) and not least <= value <= most:
                fail(f"--{name.replace('_', '-')} {value}: must be from {least} to {most:g}")
    if "{problem}" not in given.get("template", Config.template):
        fail(f"--template {given['template']!r}: has no {{problem}} in it")
    grid = {name: given.pop(name) for name in many[:-1] if name in given}
    if command == "eval":
        given["methods"] = ["base"]
    return Config(**given, grid=grid)

def settings(config: Config) -> dict[str, Any]:
    """The settings that decide a run's results, with a digest of each file it reads. Those of
    compare that take several values are left out: every cell of the results has its own."""
    left_out = {"out", "device", *((*GRID, "methods") if config.command == "compare" else ())}
    chosen = {name: getattr(config, name) for name in ("command", *flags(config.command))
              if name not in left_out}
    for name in chosen.keys() & {"model", "problems", "test", "samples"}:
        path, digest = Path(chosen[name]), hashlib.sha256()
        for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            digest.update(file.read_bytes() if file.exists() else b"")
        chosen[name] = f"{path.name} {digest.hexdigest()[:16]}"
    return chosen

def open_run(config: Config) -> Path:
    """The output folder: new, or of a run with the same settings and inputs, which goes on."""
    out = Path(config.out or f"runs/{'quick' if config.quick else config.command}")
    path, now = out / "run.json", settings(config)
    if not path.exists() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty and not a run of rift.py; choose another --out")
    try:
        before = {**json.loads(path.read_text())} if path.exists() else now
    except (ValueError, TypeError):
        raise UserError(f"{path}: not the settings of a run; choose another --out") from None
    if changed := [f"{name} {before.get(name)} -> {now.get(name)}"
                   for name in before | now if before.get(name) != now.get(name)]:
        raise UserError(f"{out}: holds another run's results ({', '.join(changed)}); "
                        "choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(now, indent=1) + "\n")
    return out

def run(config: Config) -> None:
    """Reads and checks the input, opens the output folder, does the work, says what it wrote."""
    if config.quick:
        config = replace(config, per_round=100, limit=100, k=4)
    command, reads = config.command, flags(config.command)
    n = config.per_round * config.rounds if command == "compare" else config.limit
    problems = read_problems(config.problems, n) if "problems" in reads else []
    test = read_problems(config.test, config.limit) if "test" in reads else []
    needs_rewards = command == "train" and config.loss != "sft"
    samples = read_samples(config.samples, needs_rewards) if "samples" in reads else []
    if command == "train":
        useful(samples, config.loss, config.positives)
    needed = {"score": "answer", "compare": "solution" if "sft" in config.methods else None}
    for row in problems + samples if needed.get(command) else []:
        text_field(row, needed[command])
    if command != "score":
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        lean = device.startswith("cuda") and command in ("sample", "eval")      # nothing to train
        dtype = torch.bfloat16 if lean else torch.float32
        model, tokenizer = load_model(config.model, device, dtype)
        for row in problems + test + samples:
            prompt, response = map(len, encode(tokenizer, row, config.template))
            if prompt + max(response, 1) > context_length(model):
                raise UserError(f"{row['line']}: {prompt} tokens of prompt and {response} of "
                                f"response, but the model's context is {context_length(model)}")
        print(f"{config.model}: {model.num_parameters():,} parameters, {model.dtype}, on {device}")
    out = open_run(config)
    if command in ("sample", "score"):
        path = out / "samples.jsonl"
        samples = (score(samples, config) if command == "score" else
                   sample(model, tokenizer, problems, config, path))
        write_whole(path, dump(samples))
        right = sum(row["reward"] == config.right for row in samples) / len(samples)
        print(f"wrote {path}: {len(samples)} samples, {right:.1%} right")
    elif command == "train":
        if not (out / "model").exists():                    # else it is done, with these settings
            train(model, tokenizer, samples, config, out)
            write_whole(out / "model", lambda path: (model.save_pretrained(path),
                                                     tokenizer.save_pretrained(path)))
        history = read_jsonl(out / "metrics.jsonl")
        print(f"wrote {out / 'metrics.jsonl'} and {out / 'model'}: {len(history)} steps, "
              f"loss {history[0]['loss']:.4f} -> {history[-1]['loss']:.4f}")
        if "stopped" in history[-1]:
            raise UserError(f"{history[-1]['stopped']}; the weights before it are saved, "
                            "try a lower --lr")
    else:
        results = compare(config, out, model, tokenizer, problems, test)
        if command == "compare":
            figure(results, out / "figure.png")
        name = METHODS["base"] if command == "compare" else "this model"
        print(table(results).replace(METHODS["base"], name))
        print("wrote", "\n      ".join(str(path) for path in sorted(out.iterdir())))

def peak_memory() -> str:
    """The most memory that this process has held, on the GPU where there is one."""
    if torch.cuda.is_available():
        return f"peak memory {torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GB"
    if sys.platform == "win32":
        return ""
    import resource
    unit = 2 ** 30 if sys.platform == "darwin" else 2 ** 20         # bytes there, kilobytes here
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GB"

def main() -> int:
    """The command line: 0, or 2 after one line that says what is wrong with the input."""
    transformers.utils.logging.disable_progress_bar()
    try:
        run(parse(sys.argv[1:]))
        print(peak_memory())
    except (UserError, OSError) as error:
        print(f"rift.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrift.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0

if __name__ == "__main__":
    sys.exit(main())
