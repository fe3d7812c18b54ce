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

Each writes one folder: its settings in run.json, and what it made. A killed run goes on when the
same command is given again; a folder with another run's results is refused.

Departures from the paper, and gaps filled: pi(y|x) underflows for long responses, so `level` has
two other pi; a step is normalised by its response tokens (a constant to AdamW, not to clipping);
a response cut off at the length limit is not taught to end there.
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from math_reward import extract_answer, math_reward

DATA = Path(__file__).resolve().parent / "data"
METHODS = {"base": "base model", "sft": "SFT, expert solutions", "rft-passes": "RFT, same passes",
           "rft-steps": "RFT, same steps", "naive": "naive", "rift": "RIFT",
           "rift-positives": "RIFT, same positives"}
GRID = ("seed", "lr", "level", "wrong")         # of these, compare takes several values


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
    loss: str = "rift"              # train: rift, naive, rft or sft
    level: str = "sequence"         # train compare: the pi of a response: sequence, mean or token
    epochs: float = 3.0             # train compare: passes over the samples
    steps: int = 0                  # train: optimizer steps; 0 counts them from --epochs
    batch_size: int = 64            # train compare: samples per optimizer step
    positives: bool = False         # train: --batch-size counts positives; negatives are added
    tokens_per_batch: int = 16384   # train compare: padded tokens per micro-batch, for memory
    lr: float = 3e-4                # train compare: peak learning rate of AdamW
    warmup: float = 0.1             # train compare: share of the steps to warm up over
    weight_decay: float = 0.0       # train compare: of AdamW
    max_grad_norm: float = 1.0      # train compare: gradients are clipped at this norm
    gradient_checkpointing: bool = False    # train: less memory, more time
    save_every: int = 0             # train: steps between checkpoints; 0 for none
    methods: tuple[str, ...] = tuple(METHODS)   # compare: rows of the table
    rounds: int = 1                 # compare: of sampling and training, each on new problems
    per_round: int = 300            # compare: problems to learn from in a round
    quick: bool = False             # compare: a small form of the same path, half a minute
    command: str = "compare"
    grid: dict[str, list] = dataclasses.field(default_factory=dict)


# ------------------------------------------------------------------------------------ losses
# logps (B, T): log pi of each response token, in nats; mask (B, T): true at response tokens;
# rewards (B,): any finite numbers. `normalizer` takes the place of the number of samples in the
# mean, so that micro-batches add up to a whole optimizer step. Each loss returns a scalar and
# the metrics of `finish`. To copy: this section needs torch only.

Loss = tuple[Tensor, dict[str, float]]


def log_policy(logps: Tensor, mask: Tensor, level: str) -> tuple[Tensor, Tensor]:
    """log pi and pi of each response, both (B,), in float32 or better.

    sequence: the product over its tokens, the paper's pi(y|x); mean: their geometric mean;
    token: each token as a response of its own, so the sums of log pi_t and of pi_t.
    """
    logps = torch.where(mask.bool(), logps.to(torch.promote_types(logps.dtype, torch.float32)), 0)
    log_pi = logps.sum(1)
    if level == "sequence":
        return log_pi, log_pi.exp()
    if level == "mean":
        log_pi = log_pi / mask.sum(1).clamp(min=1)
        return log_pi, log_pi.exp()
    if level == "token":
        return log_pi, (logps.exp() * mask).sum(1)
    raise ValueError(f"level {level!r}: use sequence, mean or token")


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
    """The mean of `terms` over the samples `used`, and metrics by the sign of the reward:
    n_*, counts; logp_*, pi_*, mean log pi and mean pi; grad_*, the L1 norm of the loss's
    gradient at logps (0 without a graph). ValueError at a reward that is not finite.
    """
    if not rewards.isfinite().all():
        row = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(f"rewards[{row}] is {rewards[row].item()}: a reward must be finite")
    loss = torch.where(used, terms, 0).sum() / (normalizer or max(int(used.sum()), 1))
    grad = (torch.autograd.grad(loss, logps, retain_graph=True)[0].abs().sum(1)
            if loss.requires_grad else torch.zeros_like(log_pi))
    metrics = {}
    for sign, rows in (("pos", rewards > 0), ("neg", rewards < 0)):
        metrics[f"n_{sign}"] = n = int(rows.sum())
        metrics[f"logp_{sign}"] = log_pi.detach()[rows].sum().item() / max(n, 1)
        metrics[f"pi_{sign}"] = pi.detach()[rows].sum().item() / max(n, 1)
        metrics[f"grad_{sign}"] = grad[rows].sum().item()
    return loss, metrics


LOSSES = {"rift": rift_loss, "naive": naive_loss, "rft": rft_loss, "sft": sft_loss}


# ------------------------------------------------- log-probabilities without the full logits

LOGITS_AT_ONCE, LOGITS_KEPT = 2 ** 23, 3 * 2 ** 24      # how many numbers


class LinearLogps(torch.autograd.Function):
    """log_softmax(hidden @ weight.T)[target] of each row, in float32 or better: hidden (N, D),
    weight (V, D), targets (N,) -> (N,). The logits (N, V) come in pieces of the vocabulary; the
    first few are kept, the others made again in the backward pass."""

    @staticmethod
    def pieces(hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[tuple]:
        """Each piece's rows of weight, these rows, and the (row, column) of the targets in it."""
        size = max(1, LOGITS_AT_ONCE * (16 if hidden.is_cuda else 1) // len(hidden))
        for start in range(0, len(weight), size):
            part = weight[start:start + size].to(hidden.dtype)
            at = ((targets >= start) & (targets < start + size)).nonzero().squeeze(1)
            yield slice(start, start + size), part, (at, targets[at] - start)

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        chosen = hidden.new_zeros(len(hidden), dtype=wide)
        total, ctx.kept = torch.full_like(chosen, -torch.inf), []
        for rows, part, at in LinearLogps.pieces(hidden, weight, targets):
            logits = (hidden @ part.T).to(wide)
            chosen[at[0]] = logits[at]
            total = torch.logaddexp(total, logits.logsumexp(1))
            if rows.stop * len(hidden) <= LOGITS_KEPT:
                ctx.kept.append(logits)
        ctx.save_for_backward(hidden, weight, targets, total)
        return chosen - total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, targets, total = ctx.saved_tensors
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.empty_like(weight)
        kept, ctx.kept = ctx.kept[::-1], None
        for rows, part, at in LinearLogps.pieces(hidden, weight, targets):
            logits = kept.pop() if kept else (hidden @ part.T).to(total.dtype)
            delta = logits.sub_(total[:, None]).exp_().mul_(-grad[:, None])   # onehot - softmax
            delta[at] += grad[at[0]]
            delta = delta.to(hidden.dtype)
            grad_hidden.addmm_(delta, part)
            grad_weight[rows] = delta.T @ hidden
        return grad_hidden, grad_weight, None


def plain_head(model: Any) -> bool:
    """Whether logits are hidden @ weight.T and nothing else: no bias, scale or soft cap."""
    ids, head = torch.arange(2, device=model.device)[None], model.get_output_embeddings()
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.allclose(hidden @ head.weight.T, logits, rtol=1e-3, atol=1e-4)


def response_logps(model: Any, input_ids: Tensor, attention_mask: Tensor, mask: Tensor,
                   plain: bool = True) -> Tensor:
    """log pi(token | all before it) at the response tokens, (B, T-1) in nats, 0 elsewhere.

    input_ids, attention_mask and mask (true at response tokens) are (B, T), padded on the right;
    column t of the result belongs to token t + 1. The head runs on response positions alone and
    in pieces; a head that is not `plain` is left to the model, at the cost of the full logits.
    """
    where, inputs = mask[:, 1:].bool(), {"input_ids": input_ids, "attention_mask": attention_mask}
    targets, kind = input_ids[:, 1:][where], input_ids.device.type              # (N,)
    if plain:
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][where]
        if torch.is_autocast_enabled(kind):
            hidden = hidden.to(torch.get_autocast_dtype(kind))
        logps = LinearLogps.apply(hidden, model.get_output_embeddings().weight, targets)
    else:
        logits = model(**inputs, use_cache=False).logits[:, :-1][where]         # (N, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logps = -F.cross_entropy(logits, targets, reduction="none")
    return logps.new_zeros(where.shape).masked_scatter(where, logps)


# -------------------------------------------------------------------- data: JSONL in, batches out

Problem = Sample = dict[str, Any]   # a JSON object; fields not named here pass through
# A problem has `problem` (or `question`) and `answer`, or a `solution` whose last box is it;
# GSM8K's "working #### answer" will do. `kind`: results are also given by kind.
# A sample has `response`, `reward` (any finite number) and `problem`, or a `prompt` to take as it
# is. `truncated`: it was cut off at the length limit, so no EOS (default: false).


def read_jsonl(path: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each with its `line` for messages."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line) | {"line": f"{path}:{number}"}] if line.strip() else []
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not a JSON object ({error})") from None
    if not rows:
        raise UserError(f"{path}: empty; one JSON object a line is needed")
    return rows


def text_field(row: Any, *names: str) -> str:
    """The first of these fields that is there, as text that is not blank."""
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise UserError(f"{row['line']}: no field `{'` or `'.join(names)}`")
    value = row[name]
    text = str(value) if isinstance(value, (str, int, float)) else ""
    if not text.strip() or isinstance(value, bool):
        raise UserError(f"{row['line']}: `{name}` must be text that is not empty")
    return text


def read_problems(path: str, limit: int = 0) -> list[Problem]:
    """Problems from JSONL; GSM8K's, MATH's and MATH-500's published files read as they are."""
    rows = read_jsonl(path)[:limit or None]
    for row in rows:
        row["problem"] = text_field(row, "problem", "question")
        text = text_field(row, "answer", "solution")
        if row.get("answer") is None or "####" in text:
            row.setdefault("solution", text)
            if "####" not in text and "\\boxed" not in text:
                raise UserError(f"{row['line']}: no `answer`, and no \\boxed{{}} in `solution`")
            text = extract_answer(text)
        row["answer"] = text
    return rows


def read_samples(path: str, rewards: bool) -> list[Sample]:
    """Samples from JSONL, with finite rewards unless these are still to be given."""
    rows = read_jsonl(path)
    for row in rows:
        text_field(row, "prompt", "problem")
        if row.get("response") != "" or row.get("truncated") is not False:
            row["response"] = text_field(row, "response")   # "" is one only if EOS ended it there
        reward = row.get("reward")
        if rewards and not (type(reward) in (int, float) and abs(reward) < 3e38):   # float32
            raise UserError(f"{row['line']}: `reward` must be a finite number, not {reward}")
    return rows


def dump(rows: list[Any]) -> str:
    """Rows as lines of JSONL."""
    return "".join(json.dumps({name: value for name, value in row.items() if name != "line"}) + "\n"
                   for row in rows)


def encode(tokenizer: Any, row: Any, template: str) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the response, if any, with EOS unless it was cut off."""
    text, chat = row.get("prompt"), tokenizer.chat_template
    if text is None:
        text = template.replace("{problem}", row["problem"])
        if chat:
            text = tokenizer.apply_chat_template([{"role": "user", "content": text.strip()}],
                                                 tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens="prompt" in row or not chat).input_ids
    if "response" not in row:
        return prompt, []
    response = tokenizer(row["response"], add_special_tokens=False).input_ids
    return prompt, response + [tokenizer.eos_token_id] * (not row.get("truncated"))


def collate(pairs: list[tuple[list[int], list[int]]], device: torch.device) -> dict[str, Tensor]:
    """(prompt, response) ids as input_ids, attention_mask and mask, (B, T), padded on the right.

    The masks come from lengths, so EOS is trained also where it is the padding token.
    """
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in pairs], device=device)
    place = torch.arange(width, device=device)
    starts, ends = torch.tensor([(len(p), len(p) + len(r)) for p, r in pairs], device=device).T
    attention = place < ends[:, None]
    return {"input_ids": ids, "attention_mask": attention.long(),
            "mask": attention & (place >= starts[:, None])}


# ----------------------------------------------------------------------------- sampling loop

def load_model(path: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the hub."""
    parent = Path(path).parent
    if not Path(path).is_dir() and (parent.is_absolute() or str(parent) != "." and parent.exists()):
        raise UserError(f"{path}: no such folder; give one made by save_pretrained, or a hub name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
    except (OSError, ValueError, RuntimeError) as error:
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
    probs = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, tokens = probs.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered > top_p] = 0       # the token that crosses it stays
        probs = torch.zeros_like(probs).scatter(-1, tokens, ordered)
    return torch.multinomial(probs, 1, generator=rng).squeeze(1)


@torch.inference_mode()
def generate(model: Any, prompts: list[list[int]], config: Config, stop: list[int],
             rng: torch.Generator) -> list[list[int]]:
    """config.k responses to each prompt, side by side: token ids, with the stop token if any.

    Prompts are padded on the left and read once, whatever k; a finished row leaves the batch.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    width = int(lengths.max())
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    attention = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=ids, attention_mask=attention, past_key_values=cache, use_cache=True,
                   position_ids=(attention.cumsum(1) - 1).clamp(min=0), logits_to_keep=1).logits
    cache.batch_repeat_interleave(config.k)
    logits, attention, position = (tensor.repeat_interleave(config.k, 0)
                                   for tensor in (logits[:, -1], attention, lengths))
    room = (context_length(model) - position).clamp(max=config.max_new_tokens)
    alive = torch.arange(len(position), device=model.device)    # the response each row writes
    ends, written = torch.tensor(stop, device=model.device), []
    for step in itertools.count(1):
        token = choose(logits, config.temperature, config.top_p, rng)
        written.append((alive, token))
        keep = (~torch.isin(token, ends) & (room > step)).nonzero().squeeze(1)
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            cache.batch_select_indices(keep)
            token, alive, room, position, attention = (
                tensor[keep] for tensor in (token, alive, room, position, attention))
        attention = F.pad(attention, (0, 1), value=1)
        logits = model(input_ids=token[:, None], attention_mask=attention, use_cache=True,
                       position_ids=position[:, None], past_key_values=cache).logits[:, -1]
        position = position + 1
    responses: list[list[int]] = [[] for _ in range(len(prompts) * config.k)]
    for rows, tokens in written:
        for row, token in zip(rows.tolist(), tokens.tolist()):
            responses[row].append(token)
    return responses


def sample(model: Any, tokenizer: Any, problems: list[Problem], config: Config,
           path: Path | None = None) -> list[Sample]:
    """config.k scored responses to each problem, shortest prompts first.

    With a path each batch is appended to that JSONL as it comes, and a file that a killed run
    left is gone on from: a batch's random numbers depend on the seed and its number alone.
    """
    prompts = [encode(tokenizer, row, config.template)[0] for row in problems]
    order = sorted(range(len(problems)), key=lambda i: len(prompts[i]))
    size = max(1, config.rows // config.k)
    parts = [order[i:i + size] for i in range(0, len(order), size)]
    stop = model.generation_config.eos_token_id or []
    stop = sorted({tokenizer.eos_token_id, *(stop if isinstance(stop, list) else [stop])})
    lines = path.read_bytes().splitlines(keepends=True) if path and path.exists() else []
    whole = sum(line.endswith(b"\n") for line in lines)         # a kill can leave half a line
    sizes = itertools.accumulate(len(part) * config.k for part in parts)
    finished = [n for n in sizes if n <= whole]
    samples = [json.loads(line) for line in lines[:max(finished, default=0)]]
    if lines:
        os.truncate(path, sum(map(len, lines[:len(samples)])))
    with tqdm(total=len(problems) * config.k, initial=len(samples), desc="sampling", unit="sample",
              ncols=79, disable=None, leave=False) as bar:
        for number, part in list(enumerate(parts))[len(finished):]:
            rng = torch.Generator(model.device).manual_seed(config.seed * 1_000_003 + number)
            new = []
            for i, ids in enumerate(generate(model, [prompts[i] for i in part], config, stop, rng)):
                cut = ids[-1] not in stop
                text = tokenizer.decode(ids if cut else ids[:-1], skip_special_tokens=True)
                new.append({**problems[part[i // config.k]], "response": text, "truncated": cut,
                            "tokens": len(ids)})
            samples += score(new, config)
            if path:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(dump(new))
            bar.update(len(new))
    return samples


def score(samples: list[Sample], config: Config) -> list[Sample]:
    """The samples, each with its reward: config.right or config.wrong, as math_reward judges."""
    for row in samples:
        right = math_reward(row["response"], row["answer"])
        row["reward"] = config.right if right else config.wrong
    return samples


# ---------------------------------------------------------------------------------- training

def useful(samples: list[Sample], loss: str) -> list[Sample]:
    """The samples that a loss learns from; UserError if there are none."""
    kept = [row for row in samples if loss == "sft" or row["reward"] > 0
            or loss != "rft" and row["reward"] != 0]
    if not kept:
        raise UserError(f"nothing to learn from: of {len(samples)} samples none has a reward "
                        + ("above 0" if loss == "rft" else "other than 0"))
    return kept


def batches(items: list[int], size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of `size` items; each pass over them is a new permutation."""
    rng, queue = random.Random(seed), []
    while True:
        while len(queue) < size:
            queue += rng.sample(items, len(items))
        yield queue[:size]
        queue = queue[size:]


def micro_batches(rows: list[int], lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Cuts rows, sorted by length, where rows x longest would exceed the budget of tokens."""
    part: list[int] = []
    for row in rows:
        if part and (len(part) + 1) * lengths[row] > budget:
            yield part
            part = []
        part.append(row)
    yield part


def combine(parts: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of an optimizer step from those of its micro-batches."""
    total = {name: sum(part[name] for part in parts) for name in ("loss", "n_pos", "n_neg")}
    for name, sign in itertools.product(("logp", "pi"), ("pos", "neg")):
        weighted = sum(part[f"{name}_{sign}"] * part[f"n_{sign}"] for part in parts)
        total[f"{name}_{sign}"] = weighted / max(total[f"n_{sign}"], 1)
    pos, neg = (sum(part[f"grad_{sign}"] for part in parts) for sign in ("pos", "neg"))
    return total | {"neg_share": neg / (pos + neg) if neg else 0.0}


def write_whole(path: Path, write: Callable[[Path], Any] | str) -> None:
    """A text, or what `write` makes at a path, beside `path` and renamed: whole or not there."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.write_text(write, encoding="utf-8") if isinstance(write, str) else write(part)
    os.replace(part, path)


def train(model: Any, tokenizer: Any, samples: list[Sample], config: Config,
          out: Path | None = None) -> list[dict[str, Any]]:
    """Fine-tunes the model in place and returns the metrics of each optimizer step.

    AdamW, warm-up, cosine to 0. The response tokens that normalise a step are counted before it
    is cut into micro-batches, so these do not change the gradient. A loss or gradient that is
    not finite ends training before it reaches the weights; the last metrics then say `stopped`.
    With `out`, metrics.jsonl and, every config.save_every steps, checkpoint.pt are written
    there; the same call goes on from that checkpoint to the same weights.
    """
    samples = useful(samples, config.loss)
    pairs = [encode(tokenizer, row, config.template) for row in samples]
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    rewards = torch.tensor([float(row.get("reward", 1)) for row in samples], device=model.device)
    extra = [i for i, row in enumerate(samples) if config.positives and row["reward"] < 0]
    counted = sorted(set(range(len(samples))) - set(extra))         # by config.batch_size
    beside = round(config.batch_size * len(extra) / max(len(counted), 1))
    steps = config.steps or math.ceil(config.epochs * len(counted) / config.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr,
                                  weight_decay=config.weight_decay, fused=True)
    scheduler = transformers.get_cosine_schedule_with_warmup(
        optimizer, round(config.warmup * steps), steps)
    history: list[dict[str, Any]] = []
    saved = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if out and (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", map_location=model.device, weights_only=True)
        for name, part in saved.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"].cpu())
        history = state["history"]
    if out:
        (out / "metrics.jsonl").write_text(dump(history))
    stream = zip(batches(counted, config.batch_size, config.seed),
                 batches(extra, beside, config.seed))
    cuda, plain = model.device.type == "cuda", plain_head(model.eval())
    model.train()
    optimizer.zero_grad()                               # of what a run that stopped left behind
    for mine, added in tqdm(itertools.islice(stream, len(history), steps), initial=len(history),
                            total=steps, desc=f"training {config.loss}", unit="step", ncols=79,
                            disable=None, leave=False):
        started, parts = time.perf_counter(), []
        n_tokens = sum(len(pairs[i][1]) for i in mine)
        chosen = sorted(mine + added, key=lengths.__getitem__)
        for rows in micro_batches(chosen, lengths, config.tokens_per_batch):
            batch = collate([pairs[i] for i in rows], model.device)
            with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
                logps = response_logps(model, **batch, plain=plain)
            loss, metrics = LOSSES[config.loss](
                logps, batch["mask"][:, 1:], rewards[rows], config.level,
                normalizer=len(mine) if config.level == "mean" else n_tokens)
            loss.backward()
            parts.append(metrics | {"loss": loss.item()})
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
        history.append({"step": len(history) + 1, **combine(parts), "grad_norm": norm,
                        "lr": scheduler.get_last_lr()[0], "tokens": n_tokens})
        if finite := math.isfinite(history[-1]["loss"] + norm):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        else:
            names = ", ".join(str(samples[i].get("line", i)) for i in chosen[:3])
            history[-1]["stopped"] = f"step {len(history)} is not finite, on samples {names}, ..."
        history[-1]["seconds"] = time.perf_counter() - started
        if out:
            with open(out / "metrics.jsonl", "a") as file:
                file.write(dump(history[-1:]))
        if not finite:
            break
        if out and config.save_every and len(history) % config.save_every == 0:
            state = {name: part.state_dict() for name, part in saved.items()}
            state |= {"rng": torch.get_rng_state(), "history": history}
            write_whole(out / "checkpoint.pt", lambda part, state=state: torch.save(state, part))
        if (config.loss == "rift" and len(history) == min(10, steps)
                and all(row["n_neg"] and row["neg_share"] < 1e-6 for row in history)):
            print("warning: negatives give less than 1e-6 of the gradient, so this is RFT: pi of "
                  "such\nlong responses vanishes, that of --level mean or token does not",
                  file=sys.stderr)
    model.eval()
    return history


# -------------------------------------------------------------------------------- evaluation

def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, c of them right, hold a right one (Chen et al. 2021, eq. 1).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def mean_se(values: list[float]) -> list[float]:
    """[mean, standard error of the mean]; a single value has error 0."""
    return [statistics.fmean(values),
            statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0]


def evaluate(model: Any, tokenizer: Any, problems: list[Problem], config: Config
             ) -> dict[str, dict[str, Any]]:
    """Accuracy on all problems and on each `kind`; every figure is [mean, standard error].

    greedy: of the greedy response; mean@k: of config.k samples; pass@j for j = 2, 4, ... k;
    truncated: share of samples cut off; tokens: their mean length. Errors are taken over
    problems, because samples of one problem are not independent.
    """
    config = dataclasses.replace(config, right=1.0, wrong=0.0)
    rows = [{**row, "row": i} for i, row in enumerate(problems)]
    greedy = sample(model, tokenizer, rows, dataclasses.replace(config, k=1, temperature=0.0))
    drawn: list[list[Sample]] = [[] for _ in rows]
    for row in sample(model, tokenizer, rows, config):
        drawn[row["row"]].append(row)
    results = {}
    for kind in ["all", *sorted({row["kind"] for row in rows if "kind" in row})]:
        mine = [group for group in drawn if kind in ("all", group[0].get("kind"))]
        right = [round(sum(row["reward"] for row in group)) for group in mine]
        results[kind] = {
            "n": len(mine),
            "greedy": mean_se([r["reward"] for r in greedy if kind in ("all", r.get("kind"))]),
            f"mean@{config.k}": mean_se([c / config.k for c in right]),
            **{f"pass@{j}": mean_se([pass_at_k(config.k, c, j) for c in right])
               for j in sorted({2 ** e for e in range(1, config.k.bit_length())} | {config.k})},
            **{name: mean_se([statistics.fmean(row[name] for row in group) for group in mine])
               for name in ("truncated", "tokens")}}
    return results


# ------------------------------------------------------------- compare: the default main job

def compare(config: Config, out: Path, model: Any, tokenizer: Any, problems: list[Problem],
            test: list[Problem]) -> dict[str, Any]:
    """Trains each method from the same start on the same buffer, and evaluates it.

    Three ways to be fair to RFT: rft-passes makes RIFT's passes over the buffer, of which it
    uses the positives alone, so fewer steps; rft-steps takes RIFT's steps; rift-positives has in
    every step the positives of rft-steps, and negatives beside them. sft takes RIFT's steps on
    experts' solutions. In later rounds each method samples its own buffer, on new problems.
    Finished cells are in out/results.json and are not run again.
    """
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path, n = out / "results.json", min(config.per_round, len(problems) // config.rounds)
    results = json.loads(path.read_text()) if path.exists() else {
        "settings": settings(config), "cells": [], "hardware": {
            "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(), "dtype": str(model.dtype),
            "torch": torch.__version__, "transformers": transformers.__version__}}
    grid = {name: config.grid.get(name, [getattr(config, name)]) for name in GRID}
    for *values, method in itertools.product(*grid.values(), config.methods):
        cell = {"method": method, **dict(zip(GRID, values))}
        for name in {"base": ("lr", "level", "wrong"), "sft": ("level", "wrong"), "rft-steps":
                     ("wrong",), "rft-passes": ("wrong",)}.get(method, ()):
            cell[name] = grid[name][0]                      # what makes no difference to it
        if any(cell.items() <= done.items() for done in results["cells"]):
            continue
        one = dataclasses.replace(config, **{name: cell[name] for name in GRID})
        one.loss, one.positives = method.split("-")[0], method == "rift-positives"
        if method != "rft-passes":
            one.steps = math.ceil(config.epochs * n * config.k / config.batch_size)
        model.load_state_dict(start)
        for turn in range(config.rounds if method != "base" else 1):
            started, history, some = time.perf_counter(), [], problems[turn * n:(turn + 1) * n]
            one.seed = cell["seed"] + 1000 * turn
            if method == "sft":
                buffer = [{**row, "response": text_field(row, "solution")} for row in some]
            elif method != "base":
                file = None if turn else out / f"samples-{one.seed}.jsonl"
                buffer = score(sample(model, tokenizer, some, one, file), one)
            if method != "base":
                history = train(model, tokenizer, buffer, one)
            results["cells"].append(cell | {
                "round": turn + 1, "steps": len(history),
                "results": evaluate(model, tokenizer, test, one),
                "curves": {name: [float(f"{row[name]:.4g}") for row in history]
                           for name in ("loss", "logp_neg", "neg_share", "grad_norm")},
                "stopped": history[-1].get("stopped", "") if history else "",
                "minutes": round((time.perf_counter() - started) / 60, 2)})
            print(f"seed {one.seed}  {label(results['cells'][-1], results):36}{len(history):5} "
                  f"steps {results['cells'][-1]['minutes']:6.2f} min", flush=True)
        write_whole(path, json.dumps(results) + "\n")
    return results


def label(cell: dict[str, Any], results: dict[str, Any]) -> str:
    """The name of a cell's row: its method, and those settings of which there are several."""
    same = [other for other in results["cells"] if other["method"] == cell["method"]]
    return ", ".join([METHODS[cell["method"]], *(
        f"{name} {cell[name]}" for name in ("lr", "level", "wrong", "round")
        if len({other[name] for other in same}) > 1)])


def interval(pairs: list[list[float]]) -> tuple[float, float]:
    """Mean and half-width of [value, standard error], one pair a seed: Student's 95 % interval
    over seeds, or of a single seed its standard error over problems."""
    df = len(pairs) - 1
    if df == 0:
        return pairs[0][0], pairs[0][1]
    t = mpmath.findroot(lambda t: mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t),
                                                 regularized=True) - 0.05, 2.5)
    mean, error = mean_se([value for value, _ in pairs])
    return mean, float(t) * error


def gather(results: dict[str, Any], kind: str, name: str) -> dict[str, list[list[float]]]:
    """A figure's [value, standard error] by table row and seed; RIFT's differences at the end."""
    rows: dict[str, list[list[float]]] = {}
    for cell in sorted(results["cells"], key=lambda cell: list(METHODS).index(cell["method"])):
        rows.setdefault(label(cell, results), []).append(cell["results"][kind][name])
    for mine, other in (("rift", "rft-passes"), ("rift", "rft-steps"),
                        ("rift-positives", "rft-steps"), ("rift", "naive")):
        a, b = rows.get(METHODS[mine], []), rows.get(METHODS[other], [])
        if a and len(a) == len(b):
            title = "RIFT - " + METHODS[other if mine == "rift" else mine].replace("RIFT", "RFT")
            rows[title] = [[x - y, math.hypot(e, f)] for (x, e), (y, f) in zip(a, b)]
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as text of at most 80 columns, in percent, for all problems and each kind."""
    steps = {label(cell, results): cell["steps"] for cell in results["cells"]}
    names, lines = ["greedy", *(f"{x}@{results['settings']['k']}" for x in ("mean", "pass"))], []
    for kind, whole in results["cells"][0]["results"].items():
        columns = [gather(results, kind, name) for name in names]
        title = f"{kind} ({whole['n']} problems)"
        lines.append(f"{title:29} steps" + "".join(f"{name:>15}" for name in names))
        for row in columns[0]:
            lines.append(f"{row:29}{steps.get(row, ''):>6}" + "".join(
                f"{100 * mean:{'+' if ' - ' in row else ''}9.1f} ±{100 * half:4.1f}"
                for mean, half in (interval(column[row]) for column in columns)))
        lines.append("")
    seeds = len({cell["seed"] for cell in results["cells"]})
    lines.append("percent; ± is " + (f"the 95 % interval over {seeds} seeds" if seeds > 1 else
                                     "one standard error, over problems"))
    lines.append(f"{sum(cell['minutes'] for cell in results['cells']):.1f} minutes on "
                 f"{results['hardware']['device']}, {results['hardware']['threads']} threads")
    return "\n".join(lines)


def figure(results: dict[str, Any], path: Path) -> None:
    """A PNG: accuracy by method and kind; naive against RIFT over the steps."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), width_ratios=[2, 1, 1], layout="constrained")
    kinds, name = list(results["cells"][0]["results"]), f"mean@{results['settings']['k']}"
    for i, kind in enumerate(kinds):
        rows = {row: interval(pairs) for row, pairs in gather(results, kind, name).items()
                if " - " not in row}
        axes[0].bar([j + (i - len(kinds) / 2 + 0.5) * 0.8 / len(kinds) for j in range(len(rows))],
                    [100 * mean for mean, _ in rows.values()], 0.8 / len(kinds), label=kind,
                    yerr=[100 * half for _, half in rows.values()], capsize=2)
    axes[0].set_xticks(range(len(rows)), [row.replace(", ", ",\n") for row in rows], size=8)
    axes[0].set(ylabel=f"{name}, %", title="accuracy on the test problems")
    for axis, curve, title in ((axes[1], "loss", "training loss"),
                               (axes[2], "logp_neg", "mean log pi of wrong responses, nats")):
        for method, colour in (("naive", "tab:red"), ("rift", "tab:green")):
            for j, cell in enumerate(c for c in results["cells"] if c["method"] == method):
                axis.plot(cell["curves"][curve], colour, lw=1, label=None if j else METHODS[method])
        axis.set(title=title, xlabel="optimizer step")
    for axis in axes:
        axis.legend()
    fig.savefig(path, dpi=120)
    plt.close(fig)


# ------------------------------------------------------------------------------ command line

def flags(command: str = "") -> dict[str, tuple[list[str], str]]:
    """The flags (of a command) with their commands and help: the comments of Config."""
    found = re.findall(r"(?m)^    (\w+): .*# ([a-z ]+): (.+)$", inspect.getsource(Config))
    return {name: (of.split(), text) for name, of, text in found if command in of}


def settings(config: Config) -> dict[str, Any]:
    """The settings that decide a run's results, with a digest of each file it reads."""
    chosen = {"command": config.command}
    each = (*GRID, "methods") if config.command == "compare" else ()        # kept with every cell
    for name in flags(config.command).keys() - {"out", "device", *each}:
        chosen[name] = getattr(config, name)
        if name in ("problems", "test", "samples"):
            chosen[name] = hashlib.sha256(Path(chosen[name]).read_bytes()).hexdigest()[:16]
        elif name == "model" and Path(config.model).is_dir():
            chosen[name] = Path(config.model).name
    return json.loads(json.dumps(chosen, sort_keys=True))


def open_run(config: Config) -> Path:
    """The output folder, new or of a run with the same settings, which then goes on."""
    out = Path(config.out or f"runs/{'quick' if config.quick else config.command}")
    now, path = settings(config), out / "run.json"
    if path.exists():
        before = json.loads(path.read_text())
        if changed := [f"{name} {before.get(name)} -> {now.get(name)}"
                       for name in before | now if before.get(name) != now.get(name)]:
            raise UserError(f"{out}: holds another run's results ({', '.join(changed)}); "
                            "choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty and not a run of rift.py; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(now, indent=1) + "\n")
    return out


def parse(argv: list[str]) -> Config:
    """The command line as a Config; UserError at a flag or value that will not do."""
    def fail(message: str) -> None:
        raise UserError(f"{message}; see python rift.py --help")

    parser = argparse.ArgumentParser(
        prog="rift.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage="rift.py [compare | sample | score | train | eval] [--flag value ...]",
        description="RIFT, Reward-Informed Fine-Tuning; each flag names the commands that take it.")
    parser.error = fail
    parser.add_argument("command", nargs="?", default="compare", help=argparse.SUPPRESS,
                        choices=("compare", "sample", "score", "train", "eval"))
    choices = {"loss": tuple(LOSSES), "level": ("sequence", "mean", "token"), "methods": METHODS}
    for name, (commands, text) in flags().items():
        default = getattr(Config, name)
        kind = type(default[0] if name == "methods" else default)
        parser.add_argument("--" + name.replace("_", "-"), help=f"{text} [{' '.join(commands)}]",
                            **({"action": "store_true"} if kind is bool else {
                                "type": kind, "choices": choices.get(name), "metavar": "X",
                                "nargs": "+" if name in (*GRID, "methods") else None}))
    given = vars(parser.parse_args(argv))
    command, grid = given["command"], {name: given[name] for name in GRID if name in given}
    for name in given.keys() - {"command"}:
        flag, values = "--" + name.replace("_", "-"), given[name]
        if name not in flags(command):
            fail(f"{flag} is not a flag of {command}")
        if name in GRID and len(values) > 1 and command != "compare":
            fail(f"{flag}: {command} takes one value")
        default = getattr(Config, name)
        least = 1 if type(default) is int and default else 0        # 0 where it means "none"
        least = -math.inf if name in ("right", "wrong") else least
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, (int, float)) and not least <= value < math.inf:
                fail(f"{flag} {value}: must be finite and at least {least}")
    if "{problem}" not in given.get("template", Config.template):
        fail(f"--template {given['template']!r}: has no {{problem}} in it")
    given |= {name: values[0] for name, values in grid.items()}
    return Config(**given, grid=grid if command == "compare" else {})


def run(config: Config) -> None:
    """Reads and checks the input, opens the output folder, does the work, says what it wrote."""
    if config.quick:
        config = dataclasses.replace(config, per_round=100, limit=100, k=4)
    command, problems, test, samples = config.command, [], [], []
    if command in ("score", "train") and not config.samples:
        raise UserError(f"{command} needs --samples FILE")
    if command in ("sample", "compare"):
        problems = read_problems(config.problems, config.limit if command == "sample"
                                 else config.per_round * config.rounds)
    if command == "compare" and "sft" in config.methods:
        for row in problems:
            text_field(row, "solution")
    if command in ("eval", "compare"):
        test = read_problems(config.test, config.limit)
    if command in ("score", "train"):
        samples = read_samples(config.samples, command == "train" and config.loss != "sft")
    if command == "score":
        for row in samples:
            row["answer"] = text_field(row, "answer")
        path = open_run(config) / "samples.jsonl"
        write_whole(path, dump(score(samples, config)))
        return print(f"wrote {path}: {describe(samples)}")
    if command == "train":
        useful(samples, config.loss)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    lean = device.startswith("cuda") and command in ("sample", "eval")      # bf16 if not trained
    model, tokenizer = load_model(config.model, device, torch.bfloat16 if lean else torch.float32)
    for row in problems + test + samples:
        prompt, response = encode(tokenizer, row, config.template)
        if len(prompt) + max(len(response), 1) > context_length(model):
            raise UserError(f"{row['line']}: {len(prompt)} tokens of prompt and {len(response)} of "
                            f"response, but the model's context is {context_length(model)}")
    out = open_run(config)
    print(f"{config.model}: {model.num_parameters():,} parameters, {model.dtype}, on {device}")
    if command == "sample":
        path = out / "samples.jsonl"
        print(f"wrote {path}: {describe(sample(model, tokenizer, problems, config, path))}")
    elif command == "train" and (out / "model").exists():
        print(f"{out / 'model'} is there already, from the same settings")
    elif command == "train":
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        history = train(model, tokenizer, samples, config, out)
        write_whole(out / "model", lambda part: (model.save_pretrained(part),
                                                 tokenizer.save_pretrained(part)))
        print(f"wrote {out / 'metrics.jsonl'} and {out / 'model'}: {len(history)} steps, "
              f"loss {history[0]['loss']:.4f} -> {history[-1]['loss']:.4f}")
        if "stopped" in history[-1]:
            raise UserError(f"{history[-1]['stopped']}; the weights before it are saved, "
                            "try a lower --lr")
    else:
        if command == "eval":
            config.methods = ("base",)
        results = compare(config, out, model, tokenizer, problems, test)
        print(table(results))
        if command == "compare":
            figure(results, out / "figure.png")
        print("wrote " + ", ".join(str(path) for path in sorted(out.iterdir())))


def describe(samples: list[Sample]) -> str:
    """How many samples there are and how many have a reward above 0."""
    right = sum(row["reward"] > 0 for row in samples)
    return f"{len(samples)} samples, {right / len(samples):.1%} right"


def main() -> int:
    """The command line: 0, or 2 after one line that says what is wrong with the input."""
    transformers.utils.logging.disable_progress_bar()
    try:
        run(parse(sys.argv[1:]))
    except (UserError, OSError) as error:
        print(f"rift.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrift.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
