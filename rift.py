"""RIFT, Reward-Informed Fine-Tuning (arXiv 2601.09253): the whole method in one file.

    1. sample   k responses y to each problem x from the model pi
    2. score    r = +1.0 if the final answer is right, -0.2 if it is wrong (math_reward.py)
    3. train    on all (x, y, r):  L = -E_{r>0}[ r log pi(y|x) ] - E_{r<0}[ r pi(y|x) ]

Right responses keep the log-likelihood. For a wrong one -r log pi has no lower bound, and training
collapses (the naive loss, Theorem 3.2); -r pi lies in [0, |r|] and its gradient with respect to pi
is the constant -r (Theorem 3.4). Since grad pi = pi grad log pi, RIFT's gradient is naive's with
each wrong response weighted by its own probability: what is already unlikely is left alone.

    python rift.py                            five trainings on data/, some minutes on a laptop CPU
    python rift.py sample --problems FILE     problems.jsonl -> runs/sample/samples.jsonl
    python rift.py score --samples FILE       responses made elsewhere -> runs/score/samples.jsonl
    python rift.py train --samples FILE       samples.jsonl -> runs/train/model, metrics.jsonl
    python rift.py eval --test FILE           a model's accuracy -> runs/eval/results.json

Where the paper is silent: pi(y|x) is 0 in float32 for a long response, so `level` offers two other
pi; a step is divided by its response tokens (level mean: by its samples); a response that was cut
off is not taught to end there.
"""
from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during the imports: no traceback

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TopPLogitsWarper

from math_reward import math_reward

DATA = Path(__file__).resolve().parent / "data"

class UserError(Exception):
    """A mistake in the input: the command line prints it as one line and exits with status 2."""

# ------------------------------------------------------- settings: each field is a command's flag
def flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})

@dataclass
class Common:
    model: str = flag(str(DATA / "tiny-base"), "folder or hub name of a causal language model")
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, mps, ...")
    template: str = flag("{problem}\n", "the prompt, or a chat model's message")
    seed: int = flag(0, "of the samples and of the order of the batches")
    skip_unfit: bool = flag(False, "leave out rows that are too long or have an empty response")

@dataclass
class Sampling(Common):
    limit: int = flag(0, "use the first N problems; 0 for all")
    k: int = flag(8, "responses to each problem")
    temperature: float = flag(1.0, "0 is greedy")
    top_p: float = flag(1.0, "mass of the tokens sampled from")
    max_new_tokens: int = flag(256, "longest response")
    rows: int = flag(256, "responses generated side by side; fewer need less memory")

@dataclass
class Rewards:
    right: float = flag(1.0, "reward of a right answer")
    wrong: float = flag(-0.2, "reward of a wrong answer")

@dataclass
class Training(Common):
    loss: Literal["rift", "naive", "rft", "sft", "topr"] = flag("rift", "what to minimise")
    level: Literal["sequence", "mean", "token"] = flag("sequence", "which pi of a response")
    lr: float = flag(3e-4, "peak learning rate; about 1e-5 for a pretrained model")
    epochs: float = flag(1.5, "passes over the samples")
    steps: int = flag(0, "optimizer steps, in place of epochs")
    batch_size: int = flag(64, "samples per optimizer step")
    tokens_per_batch: int = flag(16384, "padded tokens per micro-batch; fewer need less memory")
    warmup: float = flag(0.1, "share of the steps to warm up over")
    weight_decay: float = flag(0.0, "of AdamW")
    max_grad_norm: float = flag(1.0, "gradients are clipped at this norm; 0 is no clipping")
    gradient_checkpointing: bool = flag(False, "less memory, more time")
    save_every: int = flag(0, "steps between checkpoints to go on from; 0 for none")

# ------------------------------------------------------------------------------------- losses
# logps (B, T): log pi of each response token, in nats. mask (B, T): 1 at response tokens.
# rewards (B,): any finite numbers. Each loss returns the loss of each sample, (B,): sum them and
# divide by the response tokens, as add_gradient does. To copy this section you need torch only.

def log_policy(logps: Tensor, mask: Tensor, level: str = "sequence") -> tuple[Tensor, Tensor]:
    """log pi(y|x) and pi(y|x) of each response, both (B,), in float32 or better.

    sequence: the product of the token probabilities, as in the paper; mean: their geometric
    mean; token: each token is a response of its own, so the sums of log pi_t and of pi_t.
    """
    if level not in ("sequence", "mean", "token"):
        raise ValueError(f"level {level!r} is none of sequence, mean, token")
    logps = at_least_float32(logps).masked_fill(mask == 0, 0)
    log_pi = logps.sum(1)
    if level == "token":
        return log_pi, (logps.exp() * mask).sum(1)
    if level == "mean":
        log_pi = log_pi / mask.sum(1).clamp(min=1)
    return log_pi, log_pi.exp()

def rift_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence") -> Tensor:
    """RIFT: -r log pi where r > 0, the bounded -r pi where r < 0 (Theorem 3.4).

    >>> logps, mask = torch.tensor([[-1.0], [-1.0]]), torch.ones(2, 1)
    >>> rift_loss(logps, mask, torch.tensor([1.0, -0.2]))       # 1 and 0.2 / e
    tensor([1.0000, 0.0736])
    """
    log_pi, pi = log_policy(logps, mask, level)
    return torch.where(rewards > 0, -rewards * log_pi, -rewards * pi)

def naive_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence") -> Tensor:
    """-r log pi for every sign: unbounded below for r < 0 as pi -> 0 (Theorem 3.2)."""
    return -rewards * log_policy(logps, mask, level)[0]

def rft_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence") -> Tensor:
    """Rejection-sampling fine-tuning: -log pi where r > 0; the rest is thrown away."""
    return torch.where(rewards > 0, -log_policy(logps, mask, level)[0], 0)

def sft_loss(logps: Tensor, mask: Tensor, rewards: Tensor, level: str = "sequence") -> Tensor:
    """Supervised fine-tuning: -log pi of every sample, whatever its reward."""
    return -log_policy(logps, mask, level)[0]

def topr_loss(logps: Tensor, mask: Tensor, rewards: Tensor, log_mu: Tensor) -> Tensor:
    """TOPR (arXiv 2503.14286): as RIFT, with pi / mu in place of pi; RIFT is TOPR with mu = 1.

    log_mu (B,): log pi of the response, at temperature 1, under the model that drew it: a wrong
    response starts at full weight, however long it is. Gradient: -r min(pi / mu, 1) grad log pi.
    """
    log_pi = log_policy(logps, mask)[0]
    log_rho = log_pi - log_mu
    bounded = torch.where(log_rho > 0, 1 + log_rho, log_rho.clamp(max=0).exp())
    return torch.where(rewards > 0, -rewards * log_pi, -rewards * bounded)

def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

LOSSES = {"rift": rift_loss, "naive": naive_loss, "rft": rft_loss, "sft": sft_loss,
          "topr": topr_loss}

# ------------------------------------------------- log-probabilities without the full logits
LOGITS_AT_ONCE = 2 ** 26        # numbers held at a time (256 MB); 4 times as many on a GPU

@lru_cache(maxsize=1)
def plain_head(model: Any) -> bool:
    """Whether the logits are head(hidden) and nothing else: no scale, no soft cap, no adapter."""
    head, ids = model.get_output_embeddings(), torch.arange(2, device=model.device)[None]
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        logits = head(output.hidden_states[-1]).to(output.logits.dtype)
    return type(head) is torch.nn.Linear and torch.equal(logits, output.logits)

def response_logps(model: Any, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> Tensor:
    """log pi(token | all before it) at response tokens, 0 elsewhere: (B, T-1), in nats.

    input_ids, attention_mask and mask (true at response tokens) are (B, T), padded on the right;
    column t of the result belongs to token t + 1. With a plain head the logits are made some rows
    at a time, and again in the backward pass, so that (N, V) of them are never held.
    """
    is_response = mask[:, 1:].bool()                                            # (B, T-1)
    targets = input_ids[:, 1:][is_response]                                     # (N,)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if plain_head(model):
        output = model(**inputs, output_hidden_states=True, logits_to_keep=1)
        hidden = output.hidden_states[-1][:, :-1][is_response]                  # (N, D)
        nll = head_nll(model.get_output_embeddings(), hidden, targets)
    else:
        logits = model(**inputs).logits[:, :-1][is_response]                    # (N, V)
        nll = F.cross_entropy(at_least_float32(logits), targets, reduction="none")
    return nll.new_zeros(is_response.shape).masked_scatter(is_response, -nll)

def head_nll(head: torch.nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log pi of the targets (N,) from hidden states (N, D), some rows at a time."""
    def chunk_nll(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")

    hidden, weight = at_least_float32(hidden), at_least_float32(head.weight)
    bias = None if head.bias is None else at_least_float32(head.bias)
    at_once = LOGITS_AT_ONCE * (4 if hidden.is_cuda else 1)
    rows = max(1, min(len(hidden), at_once // len(weight)))
    with torch.autocast(hidden.device.type, enabled=False):
        if hasattr(F, "linear_cross_entropy"):                                  # torch 2.13
            return F.linear_cross_entropy(
                hidden, weight, targets, linear_bias=bias, reduction="none",
                options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows,
                                                           chunking_method=None))
        chunks = zip(hidden.split(rows), targets.split(rows))
        return torch.cat([checkpoint(chunk_nll, *chunk, use_reentrant=False) for chunk in chunks])

# -------------------------------------------------------------------- data: JSONL in, batches out
# A problem has `problem` (or `question`) and `answer`, or a `solution` with the answer in a box. A
# sample has a problem, or a `prompt` to take as it is, a `response` (or `completion`) and a
# `reward`; `truncated`: it was cut off at the length limit; `ids`: its tokens as they were drawn;
# `logp`: their log pi then. Other fields pass through.

class Row(dict):
    """A JSON object. `where` it stands, file:line, is for messages."""
    where: str

class Example(NamedTuple):
    """A row as the model reads it: token ids of its prompt and its response."""
    row: Row
    prompt: list[int]
    response: list[int]

def read_jsonl(path: str | Path) -> list[Row]:
    rows, where = [], path
    try:
        for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1):
            where = f"{path}:{number}"
            if line.strip():
                rows.append(Row({**json.loads(line)}))              # ** refuses what is no object
                rows[-1].where = where
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error}); data/convert.py reads other forms"
                        ) from None
    if not rows:
        raise UserError(f"{path}: empty; one JSON object a line is needed")
    return rows

def dump_jsonl(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)

def text_field(row: Row, *names: str, blank: bool = False) -> str:
    """The first of these fields that is there, as text; UserError if it is none, or `blank`."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if type(value) not in (str, int, float) or not (blank or str(value).strip()):
        raise UserError(f"{row.where}: `{'` or `'.join(names)}` must be text that is not empty, in "
                        f"{json.dumps(row)[:60]} ...; data/convert.py reads other forms")
    return str(value)

def read_problems(path: str | Path, limit: int = 0) -> list[Row]:
    """Problems from JSONL; GSM8K's, MATH's and MATH-500's published files read as they are."""
    rows = read_jsonl(path)[:limit or None]
    for row in rows:
        row["problem"] = text_field(row, "problem", "question")
        text_field(row, "prompt", "problem")                    # its own prompt, if it has one
        answer = text_field(row, "answer", "solution")          # math_reward reads either
        if row.get("answer") is None and "\\boxed" not in answer:
            raise UserError(f"{row.where}: no `answer`, and no \\boxed{{}} in `solution`")
        row["answer"] = answer
    return rows

def read_samples(path: str | Path, need: str) -> list[Row]:
    """Samples from JSONL. Each has a problem or a prompt, a response, and what is the `need`: a
    finite `reward`, an `answer`, or nothing more."""
    rows = read_jsonl(path)
    for row in rows:
        text_field(row, "prompt", "problem", "question")        # text, whichever it is
        row["problem"] = text_field(row, "problem", "question", "prompt")
        row["response"] = text_field(row, "response", "completion", blank=True)
        if need == "answer":
            row["answer"] = text_field(row, "answer", "solution")
        number = type(row.get("reward")) in (int, float) and abs(row["reward"]) < 3e38  # of float32
        if need == "reward" and not number:
            raise UserError(f"{row.where}: `reward` must be a finite number; `rift.py score` gives "
                            "one to each response")
    return rows

def encode(tokenizer: Any, row: Row, template: str = "{problem}\n") -> Example:
    """Token ids of the prompt, and of the response (if any) with its end-of-sequence token."""
    text, chat = str(row.get("prompt") or ""), False
    if not text:
        text, chat = template.replace("{problem}", row["problem"]), bool(tokenizer.chat_template)
    if chat:
        text = tokenizer.apply_chat_template([{"role": "user", "content": text.strip()}],
                                             tokenize=False, add_generation_prompt=True)
    rendered = chat or (bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token))
    prompt, eos = tokenizer(text, add_special_tokens=not rendered).input_ids, tokenizer.eos_token_id
    if prompt[-1:] == [eos] and not text.endswith(tokenizer.eos_token):
        prompt.pop()                                            # some tokenizers end every text
    if "ids" in row:
        return Example(row, prompt, row["ids"])                 # as the model drew them
    response = tokenizer(row.get("response", ""), add_special_tokens=False).input_ids
    if "response" in row and not row.get("truncated") and response[-1:] != [eos]:
        response.append(eos)
    return Example(row, prompt, response)

def encode_all(model: Any, tokenizer: Any, rows: list[Row], config: Common) -> list[Example]:
    """The rows that the model can take. UserError at another, unless config.skip_unfit."""
    examples, limit = [], context_length(model)
    for row in rows:
        example, reason = encode(tokenizer, row, config.template), ""
        length = len(example.prompt) + max(1, len(example.response))
        if length > limit:
            reason = f"{length} tokens, but the model's context is {limit}"
        elif row.get("response") == "" and row.get("truncated") is not False:   # not drawn so
            reason = "an empty response"
        elif "ids" in row and not tokenizer.decode(example.response).startswith(row["response"]):
            reason = "`ids` of another tokenizer; take them out to train on the text"
        if not reason:
            examples.append(example)
        elif not config.skip_unfit:
            where = getattr(row, "where", "a row")
            raise UserError(f"{where}: {reason}. --skip-unfit leaves such rows out")
    if not examples:
        raise UserError(f"none of {len(rows)} rows fits")
    if len(examples) < len(rows):
        print(f"note: {len(rows) - len(examples)} of {len(rows)} rows do not fit and are left out")
    return examples

def context_length(model: Any) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

def pad(rows: list[list[int]], device: torch.device, side: str = "right") -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True,
                        padding_side=side).to(device)

def collate(examples: list[Example], device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and mask (true at the response), all (B, T), padded on the right.
    The masks come from lengths, so EOS is trained also where it is the padding token."""
    ids = [example.prompt + example.response for example in examples]
    mask = [[0] * len(example.prompt) + [1] * len(example.response) for example in examples]
    return {"input_ids": pad(ids, device), "mask": pad(mask, device).bool(),
            "attention_mask": pad([[1] * len(row) for row in ids], device)}

def write_whole(path: Path, write: str | Callable[[Path], Any]) -> None:
    """A text, or what a function makes at a path, put at `path`: whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        if isinstance(write, str):
            part.write_text(write, encoding="utf-8")
        else:
            write(part)
        os.replace(part, path)
    except Exception as error:                                  # torch's and safetensors' too
        raise UserError(f"{path}: cannot be written ({error})") from None

# ----------------------------------------------------------------------------- sampling loop
def load_model(path: str, device: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or the hub, by default in the dtype to sample in."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype or sampling_dtype(device)).to(device)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token to stop at")
    except Exception as error:                                  # transformers raises any kind
        raise UserError(f"{path}: no folder or hub name of a model that loads on {device} "
                        f"({repr(error)[:200]})") from None
    torch.set_flush_denormal(True)                              # a CPU is slow where pi vanishes
    torch.set_float32_matmul_precision("high")                  # TF32 on CUDA, for the head
    return model.eval(), tokenizer

BFLOAT16_ON = {"cuda"}      # devices that sample in bfloat16, and train in it on float32 weights
def sampling_dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if torch.device(device).type in BFLOAT16_ON else torch.float32

def choose(logits: Tensor, temperature: float, top_p: float, rng: torch.Generator) -> Tensor:
    """The next token of each row, (B,), from logits (B, V)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return torch.multinomial(logits.softmax(-1), 1, generator=rng).squeeze(1)

@torch.no_grad()
def keeps_cache(model: Any) -> bool:
    """Whether the model goes on from the cache that it is handed. Mamba and RWKV do not."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        cache = DynamicCache(config=model.config)
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
    except (AttributeError, KeyError, TypeError, ValueError):   # it wants one of its own kind
        return False
    return output.get("past_key_values") is cache

@torch.no_grad()
def generate(model: Any, prompts: list[list[int]], stop_ids: list[int], vocab: int,
             config: Sampling, rng: torch.Generator | None) -> tuple[list[list[int]], list[float]]:
    """config.k responses to each prompt, side by side: their ids, with that of `stop_ids` which
    ended them, and log pi at temperature 1. Ids from `vocab` on pad the head and are never drawn.
    Prompts are padded on the left and read once, whatever k; a finished row leaves the batch."""
    attention = pad([[1] * len(prompt) for prompt in prompts], model.device, "left")
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=pad(prompts, model.device, "left"), attention_mask=attention,
                   position_ids=(attention.cumsum(1) - 1).clamp(min=0), past_key_values=cache,
                   use_cache=True, logits_to_keep=1).logits[:, -1].float()
    rows = torch.arange(len(prompts), device=model.device).repeat_interleave(config.k)
    cache.reorder_cache(rows)
    logits, attention = logits[rows], attention[rows]
    responses: list[list[int]] = [[] for _ in rows]
    stop = torch.tensor(stop_ids, device=model.device)
    log_pi = torch.zeros(len(rows), device=model.device)
    alive = torch.arange(len(rows), device=model.device)        # the response each row writes
    for _ in range(config.max_new_tokens):
        token = choose(logits[:, :vocab], config.temperature, config.top_p, rng)            # (B,)
        log_pi[alive] += logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
        for number, id in zip(alive.tolist(), token.tolist()):
            responses[number].append(id)
        attention = F.pad(attention, (0, 1), value=1)
        ended = torch.isin(token, stop)
        keep = (~ended & (attention.sum(1) < context_length(model))).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            cache.reorder_cache(keep)
            token, alive, attention = token[keep], alive[keep], attention[keep]
        logits = model(input_ids=token[:, None], attention_mask=attention, use_cache=True,
                       position_ids=attention.sum(1, keepdim=True) - 1,
                       past_key_values=cache).logits[:, -1].float()
    return responses, log_pi.tolist()

def sample(model: Any, tokenizer: Any, problems: list[Row], config: Sampling,
           path: Path | None = None) -> list[Row]:
    """config.k responses to each problem, shortest prompts first. With a path each batch is
    appended to that JSONL as it comes, and a file that a killed run left is gone on from: a
    batch's random numbers depend on the seed and its number alone."""
    if not keeps_cache(model):
        raise UserError(f"{model.config.model_type} models cannot be sampled with this version of "
                        "transformers; `rift.py score` takes samples made elsewhere")
    examples = encode_all(model, tokenizer, problems, config)
    examples.sort(key=lambda example: len(example.prompt))
    size = max(1, config.rows // config.k)                      # problems in a batch
    batches = [examples[i:i + size] for i in range(0, len(examples), size)]
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    stop_ids = [id for id in (tokenizer.eos_token_id, *ends) if id is not None]
    vocab = max(tokenizer.get_vocab().values()) + 1
    samples, done = [], 0
    if path and path.exists():
        lines = path.read_text().split("\n")[:-1]               # a kill can leave half a line
        done = len(lines) // (size * config.k)                  # and half a batch
        if len(lines) == len(examples) * config.k:
            done = len(batches)
        samples = [json.loads(line) for line in lines[:done * size * config.k]]
    if path:
        write_whole(path, dump_jsonl(samples))
    for number in tqdm(range(done, len(batches)), "sampling", ncols=79, disable=None, leave=False):
        prompts = [example.prompt for example in batches[number]]
        owners = [example.row for example in batches[number] for _ in range(config.k)]
        rng = torch.Generator(model.device).manual_seed(config.seed * 1_000_003 + number)
        new = []
        for row, ids, logp in zip(owners, *generate(model, prompts, stop_ids, vocab, config, rng)):
            truncated = ids[-1] not in stop_ids
            text = tokenizer.decode(ids if truncated else ids[:-1])
            new.append({**row, "response": text, "ids": ids, "logp": logp, "tokens": len(ids),
                        "truncated": truncated, "boxed": "\\boxed{" in text})
        samples += new
        if path:
            with open(path, "a") as file:
                file.write(dump_jsonl(new))
    return samples

def score(samples: list[Row], right: float = 1.0, wrong: float = -0.2) -> list[Row]:
    """The samples, each with its reward: `right` or `wrong`, as math_reward judges."""
    for row in samples:
        correct = math_reward(row["response"], row["answer"], row.get("truncated", False))
        row["reward"] = right if correct else wrong
    return samples

# ---------------------------------------------------------------------------------- training
def useful(samples: list[Row], loss: str) -> list[Row]:
    """The samples that a loss learns from; UserError if there are none."""
    kept = [row for row in samples
            if loss == "sft" or row["reward"] > 0 or (row["reward"] < 0 and loss != "rft")]
    if not kept:
        raise UserError(f"nothing to learn from: no reward of {len(samples)} is of use to {loss}")
    return kept

def draw_batches(n: int, config: Training) -> list[list[int]]:
    """The numbers of the samples of each optimizer step: permutations of all n, cut into batches.
    The last one is smaller where config.epochs passes end within it."""
    size = min(config.batch_size, n)
    total = config.steps * size if config.steps else max(1, round(config.epochs * n))   # samples
    rng, order = random.Random(config.seed), []
    while len(order) < total:
        order += rng.sample(range(n), n)
    return [order[i:min(i + size, total)] for i in range(0, total, size)]

def learning_rate(step: int, steps: int, config: Training) -> float:
    """Of step 0, 1, ...: a linear warm-up from above 0, then half a cosine down towards 0."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * ((step + 1) / (warmup + 1))
    return config.lr * (0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))

def micro_batches(examples: list[Example], tokens: int) -> Iterator[list[Example]]:
    """The examples, longest first, as many at a time as fit into `tokens` when padded."""
    examples = sorted(examples, key=lambda example: len(example.prompt + example.response))
    while examples:
        size = max(1, tokens // len(examples[-1].prompt + examples[-1].response))
        yield examples[-size:]
        examples = examples[:-size]

def add_gradient(model: Any, examples: list[Example], config: Training) -> dict[str, float]:
    """Adds the gradient of one optimizer step to the parameters', and returns its metrics. What
    the loss is divided by is counted before the examples are cut into micro-batches, so that
    cutting does not change the gradient."""
    tokens = sum(len(example.response) for example in examples)
    divisor = len(examples) if config.level == "mean" else tokens
    columns = []
    for part in micro_batches(examples, config.tokens_per_batch):
        batch = collate(part, model.device)
        mask = batch["mask"][:, 1:]                             # of what is predicted: (B, T-1)
        rewards = torch.tensor([float(e.row.get("reward", 1)) for e in part], device=mask.device)
        with torch.autocast(model.device.type, torch.bfloat16, model.device.type in BFLOAT16_ON):
            logps = response_logps(model, **batch)
        logps.retain_grad()
        extra = config.level                    # a loss's last argument: level or, of topr, log mu
        if config.loss == "topr":
            extra = torch.tensor([example.row["logp"] for example in part], device=mask.device)
        losses = LOSSES[config.loss](logps, mask, rewards, extra) / divisor
        losses.sum().backward()
        log_pi, pi = log_policy(logps.detach(), mask, config.level)
        gradient = logps.grad.abs().sum(1)                      # of the loss, at its tokens' log pi
        columns.append(torch.stack([rewards, losses.detach(), log_pi, pi, gradient]))
    rewards, losses, log_pi, pi, gradient = torch.cat(columns, 1)           # each (len(examples),)
    right, wrong = rewards > 0, rewards < 0
    return {"loss": losses.sum().item(), "tokens": tokens,
            "n_pos": right.sum().item(), "n_neg": wrong.sum().item(),
            "logp_pos": log_pi[right].mean().item(), "logp_neg": log_pi[wrong].mean().item(),
            "pi_pos": pi[right].mean().item(), "pi_neg": pi[wrong].mean().item(),
            "neg_share": (gradient[wrong].sum() / gradient.sum()).item()}

def train(model: Any, tokenizer: Any, samples: list[Row], config: Training,
          out: Path | None = None) -> list[dict[str, Any]]:
    """Fine-tunes the model in place and returns the metrics of each optimizer step.

    A loss or gradient that is not finite ends training before it reaches the weights; the last
    metrics then say `stopped`. With `out`, metrics.jsonl is there and, every config.save_every
    steps, checkpoint.pt, from which the same call goes on to the same weights.
    """
    examples = encode_all(model, tokenizer, useful(samples, config.loss), config)
    batches = draw_batches(len(examples), config)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay, fused=True)
    history: list[dict[str, Any]] = []
    if out and (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
    if out:
        write_whole(out / "metrics.jsonl", dump_jsonl(history))
    plain_head(model)                           # now, lest it shift the first step's dropout
    model.train()
    if config.gradient_checkpointing:                           # transformers 5.23 renamed it
        new = hasattr(model, "activation_checkpointing_enable")
        getattr(model, f"{'activation' if new else 'gradient'}_checkpointing_enable")()

    for step in tqdm(range(len(history), len(batches)), f"training {config.loss}", ncols=79,
                     disable=None, leave=False):
        lr = learning_rate(step, len(batches), config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(config.seed + step)                   # of dropout, if there is any
        optimizer.zero_grad()
        metrics = add_gradient(model, [examples[i] for i in batches[step]], config)
        norm = torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm or math.inf).item()
        metrics = {"step": step + 1, "lr": lr, "grad_norm": norm, **metrics}
        if not math.isfinite(metrics["loss"] + norm):
            metrics["stopped"] = f"step {step + 1} is not finite; try a lower --lr"
        metrics = json.loads(json.dumps(metrics), parse_constant=lambda nan: None)  # inf to null
        history.append(metrics)
        if out:
            with open(out / "metrics.jsonl", "a") as file:
                file.write(dump_jsonl([metrics]))
        if "stopped" in metrics:
            break
        optimizer.step()
        if out and config.save_every and (step + 1) % config.save_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                     "history": history}
            write_whole(out / "checkpoint.pt", lambda path: torch.save(state, path))
        if step + 1 == min(10, len(batches)) and config.loss == "rift":
            shares = [row["neg_share"] or 0 for row in history if row["n_neg"]]
            if shares and max(shares) < 1e-6:
                print("warning: pi of the wrong responses vanishes, so this is RFT; try --level "
                      "token\nwith a small --wrong, or --loss topr", file=sys.stderr)
    model.eval()
    return history

# -------------------------------------------------------------------------------- evaluation
def mean_se(values: list[float]) -> list[float]:
    """[mean, standard error of the mean]; a single value has error 0."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return [statistics.fmean(values), error]

def evaluate(model: Any, tokenizer: Any, problems: list[Row], config: Sampling) -> dict[str, dict]:
    """Accuracy on all problems and on each `kind`; every figure is [mean, standard error], over
    problems, because samples of one problem are not independent. greedy: of the greedy response;
    mean@k: of config.k samples; pass@k: problems with one of k right; boxed and truncated: shares
    of the samples; tokens: their mean length."""
    k, results = config.k, {}
    drawn = score(sample(model, tokenizer, problems, config), 1, 0)
    greedy = score(sample(model, tokenizer, problems, replace(config, k=1, temperature=0.0)), 1, 0)
    for kind in ["all", *sorted({row["kind"] for row in greedy if "kind" in row})]:
        chosen = [i for i, row in enumerate(greedy) if kind in ("all", row.get("kind"))]
        groups = [drawn[i * k:(i + 1) * k] for i in chosen]     # the samples of each problem
        figures = {"n": len(chosen), "greedy": mean_se([greedy[i]["reward"] for i in chosen]),
                   f"pass@{k}": mean_se([max(row["reward"] for row in rows) for rows in groups])}
        for key in ("reward", "boxed", "tokens", "truncated"):
            means = [statistics.fmean(row[key] for row in rows) for rows in groups]
            figures[f"mean@{k}" if key == "reward" else key] = mean_se(means)
        results[kind] = figures
    return results

if __name__ == "__main__":
    sys.path.insert(0, str(DATA))
    import commands                             # data/commands.py: the commands and their flags
    sys.exit(commands.main(sys.argv[1:]))
