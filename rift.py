# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "sympy==1.14.0", "tqdm==4.70.1"]
# ///
"""Reward-Informed Fine-Tuning (RIFT, arXiv 2601.09253) in one file; math_reward.py judges answers.

    1. Sample   k responses y to each problem x from the model pi.
    2. Score    each response: r = +1.0 if its answer is right, r = -0.2 if it is wrong.
    3. Train    on all of them with L = -E_{r>0}[ r log pi(y|x) ] - E_{r<0}[ r pi(y|x) ].

Right responses keep the usual loss -r log pi. For wrong ones (r < 0) it falls without bound as pi
goes to 0, and training can collapse (the naive loss, Theorem 3.2). RIFT replaces it by -r pi, which
stays between 0 and |r| and has the constant gradient -r with respect to pi (Theorem 3.4). Because
grad pi = pi grad log pi, this is the naive gradient with each wrong response weighted by its own
probability: once a response is unlikely, RIFT hardly pushes it any further.

    python rift.py                                  the default job, four trainings on data/
    python rift.py sample --model M                 problems -> runs/sample/samples.jsonl
    python rift.py train --model M                  samples  -> runs/train/model
    python rift.py eval --model runs/train/model    accuracy -> runs/eval/results.json

The paper leaves three choices open. Here the loss of a step is divided by its response tokens. A
response that was cut off at the length limit is not taught to end there. And pi is of the whole
response; it vanishes if the response is long (see `rift_token_loss`).
"""

import argparse
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from math_reward import math_reward


class UserError(Exception):
    """A mistake in the input. The command line prints it on one line and exits with status 2."""


# ------------------------------------------------------------------------------------- settings
# Each field is also a flag of the command line: max_new_tokens is --max-new-tokens.


def flag(default, help, least=0, choices=None):
    """A setting: its default, its help, the least value of a number, the choices for a text."""
    return field(default=default, metadata={"help": help, "least": least, "choices": choices})


@dataclass
class Settings:
    model: str = flag("data/tiny-base", "folder or hub name of a causal language model")
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, mps, ...")
    dtype: str = flag("auto", "auto: bfloat16 on new GPUs", choices=("auto", "float32", "bfloat16"))
    template: str = flag("{problem}\n", r"prompt, or the user's turn in a chat; \n is a newline")
    seed: int = flag(0, "for sampling and for the order of training")
    resume: bool = flag(False, "continue the stopped run in --out")
    out: str = flag("", "folder to write; if not given, runs/COMMAND")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, least = getattr(self, setting.name), setting.metadata["least"]
            if isinstance(value, int | float) and not least <= value <= 1e9:  # refuses nan, too
                raise UserError(f"{setting.name} = {value}: must be between {least} and 1e9")
        self.template = self.template.replace(r"\n", "\n")  # as typed in a shell
        if "{problem}" not in self.template:
            raise UserError(f"template = {self.template!r}: must contain {{problem}}")


@dataclass
class Sampling(Settings):
    k: int = flag(8, "responses to each problem", least=1)
    temperature: float = flag(1.0, "of sampling; 0 is greedy")
    max_new_tokens: int = flag(64, "tokens of a response; reasoning needs 1024 or more", least=1)
    right: float = flag(1.0, "reward of a right response", least=-1e9)
    wrong: float = flag(-0.2, "reward of a wrong response", least=-1e9)
    parallel: int = flag(256, "responses at once, at least k; fewer need less memory", least=1)


@dataclass
class Training(Settings):
    lr: float = flag(3e-4, "peak learning rate; 1e-5 to 3e-5 if pretrained")
    epochs: float = flag(1.5, "passes over the samples, rounded up to whole batches", least=0.001)
    steps: int = flag(0, "optimizer steps; 0 means as many as --epochs asks for")
    batch_size: int = flag(64, "samples in an optimizer step, or all if there are fewer", least=1)
    micro_batch_tokens: int = flag(16384, "of a forward pass; fewer need less memory", least=1)


# --------------------------------------------------------------------------------------- losses
# To copy this section, copy `import torch` and `from torch import Tensor` too.
# logps    (B, T)  log pi of each response token, in nats
# mask     (B, T)  1 at the tokens of the response, 0 elsewhere
# rewards  (B,)    r of each sample: positive if the response is right, negative if it is wrong
# Each loss returns one value per sample, (B,). Add them up and divide by the response tokens.


def sequence_logp(logps: Tensor, mask: Tensor) -> Tensor:
    """log pi(y|x), the sum over the tokens of the response: (B,)."""
    return logps.masked_fill(mask == 0, 0).sum(1)


def rift_loss(logps: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
    """RIFT: -r log pi where r > 0, and the bounded -r pi where r < 0 (Theorem 3.4).

    >>> logps, mask = torch.tensor([[-1.0], [-1.0]]), torch.ones(2, 1)
    >>> rift_loss(logps, mask, torch.tensor([1.0, -0.2]))  # 1 and 0.2 / e
    tensor([1.0000, 0.0736])
    """
    logp = sequence_logp(logps, mask)
    return torch.where(rewards > 0, -rewards * logp, -rewards * logp.exp())


def rift_token_loss(logps: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
    """RIFT with each token of a wrong response as a response of its own: -r sum_t pi_t.

    The pi of a whole response vanishes with its length: 300 tokens of 0.5 nats have pi = e^-150,
    and RIFT learns from right ones alone. This loss does not vanish, but it also pushes down the
    right tokens of a wrong response. Use a small negative reward."""
    logp = sequence_logp(logps, mask)
    sum_of_pi = logps.exp().masked_fill(mask == 0, 0).sum(1)
    return torch.where(rewards > 0, -rewards * logp, -rewards * sum_of_pi)


def naive_loss(logps: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
    """-r log pi whatever the sign of r. Unbounded below for r < 0, as pi -> 0 (Theorem 3.2)."""
    return -rewards * sequence_logp(logps, mask)


def rft_loss(logps: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
    """Rejection-sampling fine-tuning (RFT): -log pi where r > 0. Wrong responses are thrown away.
    On expert solutions with a reward of 1, this is supervised fine-tuning (SFT)."""
    return torch.where(rewards > 0, -sequence_logp(logps, mask), 0)


LOSSES = {"rift": rift_loss, "rift-token": rift_token_loss, "naive": naive_loss, "rft": rft_loss}

# ------------------------------------------------------------------------------------- training


def add_gradient(model, samples: list[dict], config: Training, loss, head) -> dict:
    """Adds the gradient of one optimizer step to the parameters, and returns the step's metrics.

    The loss is divided by the response tokens of the whole step, so that the size of the
    micro-batches does not change the gradient. "pos" means r > 0 and "neg" means r < 0."""
    n_tokens = sum(len(record["response_ids"]) for record in samples)
    in_bfloat16 = compute_dtype(config) == torch.bfloat16
    samples = sorted(samples, key=lambda r: len(r["prompt_ids"] + r["response_ids"]))
    longest = len(samples[-1]["prompt_ids"] + samples[-1]["response_ids"])
    size = max(1, config.micro_batch_tokens // longest)
    measured = []
    for start in range(0, len(samples), size):
        batch = collate(samples[start : start + size], model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=in_bfloat16):
            logps = response_logps(model, batch, head)  # (B, T-1)
        mask, rewards = batch["mask"][:, 1:], batch["rewards"]  # of the predicted tokens: (B, T-1)
        losses = loss(logps, mask, rewards) / n_tokens  # (B,)
        losses.sum().backward()
        measured.append(torch.stack([rewards, losses, sequence_logp(logps, mask)]).detach())
    rewards, losses, logp = torch.cat(measured, 1)  # each (samples in the step,)

    def mean(values):
        return values.mean().item() if len(values) else None

    return {
        "loss": losses.sum().item(),
        "logp_pos": mean(logp[rewards > 0]),
        "logp_neg": mean(logp[rewards < 0]),
    }


def train(
    model, tokenizer, samples: list[dict], config: Training, loss=rift_loss, file=None, save_every=0
) -> list[dict]:
    """Fine-tunes the model in place and returns the metrics of each optimizer step.

    `loss` is a function like those in LOSSES. A step that is not finite ends training before
    it reaches the weights. With a path `file`, a checkpoint is saved every `save_every` steps;
    if one is there at the start, training continues from it, to the same weights."""
    samples = [record for record in samples if record["reward"] != 0]
    if loss is rft_loss:  # so that all samples of a step count
        samples = [record for record in samples if record["reward"] > 0]
    if not samples:
        raise UserError("no sample has a reward that this loss can learn from")
    samples = [encode(model, tokenizer, record, config.template) for record in samples]
    batches = draw_batches(len(samples), config)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(torch.finfo(weight.dtype).bits < 32 for weight in weights.values()):
        raise UserError("weights to train must be float32: small updates vanish in bfloat16")
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.0, fused=True)
    history = []
    if file and file.exists():
        saved = torch.load(file, map_location=model.device, weights_only=True)
        model.load_state_dict(saved["weights"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
        print(f"resuming after step {len(history)} of {len(batches)}")
    head = linear_head(model)  # saves memory in response_logps, where it can
    model.eval()  # no dropout, so that pi is that of the model itself

    progress = progress_bar(range(len(history), len(batches)), "training")
    for step in progress:
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(batches), config)
        optimizer.zero_grad()
        metrics = add_gradient(model, [samples[i] for i in batches[step]], config, loss, head)
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0).item()
        if not math.isfinite(metrics["loss"] + norm):
            history.append({"step": step + 1, "stopped": "not finite"})
            break
        optimizer.step()
        history.append({"step": step + 1, "grad_norm": norm, **metrics})
        progress.set_postfix_str(describe(metrics), refresh=False)
        if step == 0 and loss is rift_loss and (metrics["logp_neg"] or 0) < -14:  # e^-14 is 1e-6
            tqdm.write("warning: pi of wrong responses is almost 0; try --loss rift-token")
        if file and save_every and (step + 1) % save_every == 0:
            state = {"weights": weights, "optimizer": optimizer.state_dict(), "history": history}
            torch.save(state, f"{file}.part")
            os.replace(f"{file}.part", file)
    return history


def draw_batches(n: int, config: Training) -> list[list[int]]:
    """Indices of the samples of each step: shuffles of all n, one after another, in batches."""
    size = min(config.batch_size, n)
    total = (config.steps or math.ceil(config.epochs * n / size)) * size
    rng = random.Random(config.seed)
    order = []
    while len(order) < total:
        order += rng.sample(range(n), n)
    return [order[i : i + size] for i in range(0, total, size)]


def learning_rate(step, n_steps, config):
    """Linear warmup to config.lr in a tenth of the steps, then cosine decay towards 0."""
    warmup = round(0.1 * n_steps)
    if step < warmup:
        return config.lr * ((step + 1) / (warmup + 1))
    return config.lr * (0.5 * (1 + math.cos(math.pi * (step - warmup) / (n_steps - warmup))))


def describe(metrics):
    texts = [f"{name} {value:.4g}" for name, value in metrics.items() if value is not None]
    return ", ".join(texts)


def progress_bar(steps, title):
    """A progress bar on a terminal; elsewhere, for instance in a log file, a line now and then."""
    if sys.stderr.isatty():
        return tqdm(steps, title, ncols=79, leave=False)
    line = "{desc}: {n} of {total}, {elapsed}{postfix}\n"
    return tqdm(steps, title, bar_format=line, mininterval=30)


# -------------------------------------------------------------------------------- sampling loop


@torch.no_grad()
def generate(model, prompts: list[list[int]], stop_ids: list[int], config: Sampling, seed: int):
    """config.k responses to each prompt, as token ids, including the stop token that ended them.

    Each prompt is run once and its cache copied k times. A finished response leaves the batch."""
    input_ids, attention = pad(prompts, model.device, "left")
    cache = DynamicCache(config=model.config)

    def next_logits(ids):  # (B, T) -> (B, V); `attention` also covers what is in the cache
        positions = (attention.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions}
        output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if output.get("past_key_values") is not cache:  # Mamba, RWKV
            raise UserError(f"{model.config.model_type} models cannot be sampled here; use vLLM")
        return output.logits[:, -1]

    logits = next_logits(input_ids)
    prompt_index = torch.arange(len(prompts), device=model.device).repeat_interleave(config.k)
    cache.reorder_cache(prompt_index)  # k copies of each prompt
    logits, attention = logits[prompt_index], attention[prompt_index]
    responses = [[] for _ in prompt_index]
    response_index = torch.arange(len(prompt_index), device=model.device)  # of each sequence
    stop = torch.tensor(stop_ids, device=model.device)
    rng = torch.Generator(model.device).manual_seed(seed)
    for _ in range(min(config.max_new_tokens, context_length(model) - attention.shape[1])):
        if config.temperature == 0:
            tokens = logits.argmax(-1)  # (B,)
        else:
            probabilities = (logits.float() / config.temperature).softmax(-1)
            tokens = torch.multinomial(probabilities, 1, generator=rng).squeeze(1)
        for index, token in zip(response_index.tolist(), tokens.tolist(), strict=True):
            responses[index].append(token)
        attention = F.pad(attention, (0, 1), value=1)
        unfinished = (~torch.isin(tokens, stop)).nonzero().squeeze(1)
        if len(unfinished) == 0:
            break
        if len(unfinished) < len(tokens):
            cache.reorder_cache(unfinished)  # drops the others
            tokens, attention = tokens[unfinished], attention[unfinished]
            response_index = response_index[unfinished]
        logits = next_logits(tokens[:, None])
    return responses


def sample(model, tokenizer, problems: list[dict], config: Sampling, path=None) -> list[dict]:
    """config.k scored responses to each problem; problems with short prompts come first.

    With a path, each batch is appended to that file. Full batches that are there are kept: the
    random numbers of a batch depend on nothing but config.seed and its position."""
    problems = [encode(model, tokenizer, record, config.template) for record in problems]
    problems.sort(key=lambda record: len(record["prompt_ids"]))
    batch_size = max(1, config.parallel // config.k)  # in problems
    eos = model.generation_config.eos_token_id  # one token, several, or None
    eos = eos if isinstance(eos, list) else [eos]
    stop_ids = list({end_id(tokenizer), tokenizer.eos_token_id, *eos} - {None})
    samples = []
    if path and path.exists():
        lines = path.read_text().split("\n")[:-1]  # without an incomplete line
        n_kept = len(lines) - len(lines) % (batch_size * config.k)  # full batches only
        samples = [json.loads(line) for line in lines[:n_kept]]
        write_atomically(path, to_jsonl(samples))
        print(f"resuming after {n_kept} of {len(problems) * config.k} samples")
    starts = range(len(samples) // config.k, len(problems), batch_size)
    for start in progress_bar(starts, "sampling"):
        batch = problems[start : start + batch_size]
        prompts = [record["prompt_ids"] for record in batch]
        seed = config.seed * 1_000_003 + start // batch_size  # never shared with another seed
        new = []
        for i, ids in enumerate(generate(model, prompts, stop_ids, config, seed)):
            truncated = ids[-1] not in stop_ids
            text = tokenizer.decode(ids if truncated else ids[:-1])
            drawn = {"response_ids": ids, "response": text, "truncated": truncated}
            new.append({**batch[i // config.k], **drawn, "boxed": "\\boxed" in text})
        samples += score(new, config.right, config.wrong)
        if path:
            with open(path, "a") as file:
                file.write(to_jsonl(new))
    return samples


def score(samples: list[dict], right: float = 1.0, wrong: float = -0.2) -> list[dict]:
    """Adds to each sample, in place, the verdict `right` and one of the two numbers as `reward`."""
    for record in samples:
        truncated = record.get("truncated", False)
        record["right"] = math_reward(record["response"], str(record["answer"]), truncated)
        record["reward"] = right if record["right"] else wrong
    return samples


# --------------------------------------------------------------------- data: JSONL in, batches out
# A record is a dict: a problem, which grows into a sample.
# A problem has `problem` (or `question`, `prompt`), and `answer` or `solution` with \boxed{answer}.
# A sample has `prompt` (text that is taken as it is, or a list of chat turns) or else `problem`,
# for the template; `response` or `completion` (text, or a list with one chat turn); and `reward`.
# What was drawn here has its tokens too, `prompt_ids` and `response_ids`, and is trained on these.
# `where` is the file and line that a record was read from.


def mistake(record, message):
    return UserError(f"{record.get('where', 'a record')}: {message}")


def read_jsonl(path: str | Path) -> list[dict]:
    """The JSON objects of a file, one on each line."""
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = {"where": f"{path}:{number}"}
        if line.strip():
            try:
                record = json.loads(line.decode("utf-8-sig")) | where  # only a dict takes |
                json.dumps(record, ensure_ascii=False, allow_nan=False).encode()  # refuses NaN
                records.append(record)
            except (ValueError, TypeError, RecursionError) as error:
                raise mistake(where, f"is not a JSON object in UTF-8 ({error})") from None
    if not records:
        raise UserError(f"{path}: is empty; it must have a JSON object on each line")
    return records


def to_jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def text_field(record, *names):
    """Text of the first of these fields that is there; of a chat, the text of its last turn."""
    value = next((record[name] for name in names if record.get(name) is not None), None)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if type(value) not in (str, int, float) or not str(value).strip():
        raise mistake(record, f"needs text that is not empty in {' or '.join(names)}")
    return str(value)


def read_problems(path: str | Path) -> list[dict]:
    """Problems from JSONL. The published files of GSM8K, MATH and MATH-500 work as they are."""
    problems = read_jsonl(path)
    for record in problems:
        record.pop("response", None)  # of another model, perhaps; it is not part of the problem
        record["problem"] = text_field(record, "problem", "question", "prompt")
        answer = text_field(record, "answer", "solution")
        if record.get("answer") is None and "\\boxed" not in answer:
            raise mistake(record, "needs an `answer`, or \\boxed{} in its `solution`")
        record["answer"] = answer
    return problems


def read_samples(path: str | Path) -> list[dict]:
    """Samples from JSONL: drawn here, or made elsewhere and scored."""
    samples = read_jsonl(path)
    for record in samples:
        reward = record.get("reward")
        if type(reward) not in (int, float) or abs(reward) > 1e9:
            raise mistake(record, "needs a number as its `reward`; `rift.py sample` makes samples")
        if not {"prompt_ids", "response_ids"} <= record.keys():
            record["problem"] = text_field(record, "problem", "question", "prompt")
            record["response"] = text_field(record, "response", "completion")
    return samples


def encode(model, tokenizer, record: dict, template: str) -> dict:
    """The record with `prompt_ids` and, if it is a sample, `response_ids`. A drawn one has both.

    A response from elsewhere is tokenized as it stands after its prompt, and the token that ends a
    response is added, unless it is there or the response was cut off."""
    is_drawn = {"prompt_ids", "response_ids"} <= record.keys()
    if not is_drawn:
        prompt, is_chat = render_prompt(tokenizer, record, template)
        prompt_ids = tokenize(tokenizer, record, prompt, is_chat)
        record = {**record, "prompt_ids": prompt_ids}
        if "response" in record:
            response = record["response"]
            ids = tokenize(tokenizer, record, prompt + response, is_chat)
            if ids[: len(prompt_ids)] != prompt_ids:  # a token lies across the boundary
                ids = prompt_ids + tokenizer(response, add_special_tokens=False).input_ids
            if not record.get("truncated") and ids[-1] != end_id(tokenizer):
                ids.append(end_id(tokenizer))
            record["response_ids"] = ids[len(prompt_ids) :]
    parts = [record["prompt_ids"], record.get("response_ids", [0])]  # [0]: room for one token
    size, limit = model.get_input_embeddings().num_embeddings, context_length(model)
    ids = sum(parts, []) if all(isinstance(part, list) and part for part in parts) else []
    if not ids or any(type(id) is not int or not 0 <= id < size for id in ids):
        raise mistake(record, "its prompt_ids or response_ids are not tokens of this model")
    if len(ids) > limit:
        raise mistake(record, f"needs {len(ids)} tokens, but the model's context is {limit}")
    if is_drawn:
        spellings = [tokenizer.decode(ids) for ids in (parts[1], parts[1][:-1])]
        if record.get("response", spellings[0]) not in spellings:
            raise mistake(record, "its response_ids do not spell its response: another model's?")
    return record


def render_prompt(tokenizer, record, template):
    """The text of the prompt, and whether it is a chat, which brings its own special tokens."""
    prompt = record.get("prompt")
    if not prompt:
        prompt = template.replace("{problem}", record["problem"])
        if tokenizer.chat_template:
            prompt = [{"role": "user", "content": prompt.strip()}]  # chats end no turn in a newline
    if not isinstance(prompt, list):
        return text_field({**record, "prompt": prompt}, "prompt"), False
    try:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program and can raise anything
        raise mistake(record, f"its `prompt` does not fit the chat template ({error})") from None
    return text, True


def tokenize(tokenizer, record, text, is_chat):
    """Token ids with the beginning-of-sequence token once, and no end-of-sequence token added."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    unknown, bos = tokenizer.unk_token_id, tokenizer.bos_token_id
    if unknown is not None and ids.count(unknown) > text.count(tokenizer.unk_token):
        raise mistake(record, f"has characters that the tokenizer does not know: {text[:99]!r}")
    adds_bos = not is_chat and tokenizer("").input_ids[:1] == [bos] and ids[:1] != [bos]
    return [bos, *ids] if adds_bos else ids


def end_id(tokenizer):
    """The token that ends a response: in a chat, the first special one after the model's turn."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("!")[2]
        for id in tokenizer(after, add_special_tokens=False).input_ids:
            if id in tokenizer.added_tokens_decoder:
                return id
    return tokenizer.eos_token_id


def context_length(model):
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def pad(sequences, device, side="right"):
    """Token ids (B, T) and the attention mask (B, T), 1 at tokens, of sequences of any lengths."""
    tensors = [torch.tensor(sequence, device=device) for sequence in sequences]
    ids = rnn.pad_sequence(tensors, batch_first=True, padding_value=-1, padding_side=side)
    return ids.clamp(min=0), (ids >= 0).long()


def collate(samples: list[dict], device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and mask (true at the response), all (B, T), and rewards (B,).
    Masks come from lengths, so the end-of-sequence token is trained even if it is also padding."""
    ids, attention = pad([r["prompt_ids"] + r["response_ids"] for r in samples], device)
    n_prompt = torch.tensor([[len(record["prompt_ids"])] for record in samples], device=device)
    mask = attention.bool() & (torch.arange(ids.shape[1], device=device) >= n_prompt)
    rewards = torch.tensor([float(record["reward"]) for record in samples], device=device)
    return {"input_ids": ids, "attention_mask": attention, "mask": mask, "rewards": rewards}


# ----------------------------------------------------------------------------------- evaluation


def evaluate(model, tokenizer, problems: list[dict], config: Sampling, out=None) -> dict:
    """Accuracy on all problems and on each `kind`, as (mean, standard error across problems).

    greedy: accuracy of the greedy response. mean@k: of the k samples. pass@k: share of the problems
    with a right sample. boxed, truncated: shares of the samples with a box, and cut off. With a
    folder `out`, the responses are written there."""
    if not problems:
        raise UserError("there are no problems to evaluate on")
    drawn = sample(model, tokenizer, problems, config, out and out / "samples.jsonl")
    greedily = replace(config, k=1, temperature=0)
    greedy = sample(model, tokenizer, problems, greedily, out and out / "greedy.jsonl")
    judged = torch.tensor([[r["right"], r["boxed"], r["truncated"]] for r in drawn]).double()
    right, boxed, truncated = judged.view(-1, config.k, 3).unbind(2)  # each (problems, k)
    greedy_right = torch.tensor([record["right"] for record in greedy]).double()
    names = ("greedy", f"mean@{config.k}", f"pass@{config.k}", "boxed", "truncated")
    shares = (greedy_right, right.mean(1), right.amax(1), boxed.mean(1), truncated.mean(1))
    kinds = [str(record.get("kind", "all")) for record in greedy]
    results = {}
    for kind in ["all", *sorted({*kinds} - {"all"})]:
        chosen = torch.tensor([kind == "all" or kind == own for own in kinds])
        figures = [mean_and_error(share[chosen]) for share in shares]
        results[kind] = {"n": chosen.sum().item(), **dict(zip(names, figures, strict=True))}
    return results


def mean_and_error(values):
    """The mean and its standard error, which is None for a single value."""
    error = (values.std() / len(values) ** 0.5).item() if len(values) > 1 else None
    return values.mean().item(), error


def table(methods):
    """Text of 80 columns, in percent, from {method: results of evaluate}."""
    lines = []
    for kind, figures in next(iter(methods.values())).items():
        columns = [name for name in figures if name != "n"]
        title = f"{kind} ({figures['n']})"
        lines.append(f"{title:20}" + "".join(f"{name:>12}" for name in columns))
        for method, results in methods.items():
            line = f"{method:20}"
            for mean, error in (results[kind][name] for name in columns):
                line += f"{100 * mean:6.1f}"
                line += " " * 6 if error is None else f" ±{100 * error:4.1f}"
            lines.append(line)
        lines.append("")
    return "\n".join(lines) + "in percent; ± is the standard error across problems"


# --------------------------------------------------------------------------- models and memory


def load_model(config: Settings, dtype: torch.dtype | None = None) -> tuple:
    """Model and tokenizer, by default to sample with. To train all weights, pass torch.float32."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        dtype = dtype or compute_dtype(config)
        model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype).to(config.device)
    except Exception as error:  # transformers raises many kinds
        folder = Path(config.model) / "model"
        hint = f"did you mean {folder}? " if folder.is_dir() else ""
        raise UserError(f"--model {config.model} on {config.device}: {hint}{error}"[:400]) from None
    torch.set_flush_denormal(True)  # a CPU is slow with the tiny numbers of a pi that vanishes
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA
    return model.eval(), tokenizer


def compute_dtype(config):
    """The dtype to sample in, and to compute in with the float32 weights of training."""
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    on_cuda = "cuda" in config.device
    has_bfloat16 = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


LOGITS_AT_ONCE = 2**26  # numbers: 256 MB in float32


def response_logps(model, batch: dict[str, Tensor], head: torch.nn.Linear | None) -> Tensor:
    """log pi of each response token given all before it, 0 elsewhere: (B, T-1), in nats.

    Column t belongs to token t + 1. The logits of the N response tokens, (N, V), are the largest
    tensor of all. With a `head` (see linear_head) they are made in chunks and never held whole."""
    is_response = batch["mask"][:, 1:]  # (B, T-1)
    targets = batch["input_ids"][:, 1:][is_response]  # (N,)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if head is None:
        logits = model(**inputs, use_cache=False).logits[:, :-1][is_response]  # (N, V)
        nll = F.cross_entropy(at_least_float32(logits), targets, reduction="none")  # (N,)
    else:
        output = model(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        hidden = output.hidden_states[-1][:, :-1][is_response]  # (N, D)
        size = max(1, LOGITS_AT_ONCE // len(head.weight))
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        nll = torch.cat([checkpoint(head_nll, head, h, t, use_reentrant=False) for h, t in chunks])
    return nll.new_zeros(is_response.shape).masked_scatter(is_response, -nll)


def head_nll(head, hidden, targets):
    """-log pi of the targets (N,) from hidden states (N, D), in float32 or better."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(at_least_float32(hidden), at_least_float32(head.weight))
        return F.cross_entropy(logits, targets, reduction="none")


def at_least_float32(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def linear_head(model):
    """The output layer, if the logits are exactly its weight times the hidden state, else None."""
    head = model.get_output_embeddings()
    ids = torch.arange(2, device=model.device)[None]
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return None
    logits = head(output.hidden_states[-1]).to(output.logits.dtype)
    return head if torch.equal(logits, output.logits) else None


# ------------------------------------------------------------------------------------ commands
# The settings of each command, then its function, which returns the text to print.


@dataclass
class SampleCommand(Sampling):
    problems: str = flag("data/train.jsonl", "JSONL file of problems")


@dataclass
class TrainCommand(Training):
    save_every: int = flag(0, "steps between checkpoints that --resume can use; 0 is none")
    samples: str = flag("runs/sample/samples.jsonl", "JSONL file of samples with rewards")
    loss: str = flag("rift", "what to minimise", choices=tuple(LOSSES))


@dataclass
class EvalCommand(Sampling):
    test: str = flag("data/test.jsonl", "JSONL file of problems")


@dataclass
class DemoCommand(SampleCommand, EvalCommand, Training):
    """All flags but --samples, --loss and --save-every."""


def run_sample(config: SampleCommand) -> str:
    """Draw responses to problems and score them."""
    problems = read_problems(config.problems)
    model, tokenizer = load_model(config)
    path = open_folder(config) / "samples.jsonl"
    return summary(sample(model, tokenizer, problems, config, path))


def summary(samples):
    n = len(samples)
    right = sum(record["right"] for record in samples) / n
    boxed = sum(record["boxed"] for record in samples) / n
    truncated = sum(record["truncated"] for record in samples) / n
    return f"{n} samples: {right:.1%} right, {boxed:.1%} boxed, {truncated:.1%} truncated"


def run_train(config: TrainCommand) -> str:
    """Fine-tune a model on samples with rewards."""
    samples = read_samples(config.samples)
    model, tokenizer = load_model(config, torch.float32)
    out = open_folder(config)
    loss, file = LOSSES[config.loss], out / "checkpoint.pt"
    history = train(model, tokenizer, samples, config, loss, file, config.save_every)
    write_atomically(out / "metrics.jsonl", to_jsonl(history))
    model.save_pretrained(out / "model.part")
    tokenizer.save_pretrained(out / "model.part")
    os.replace(out / "model.part", out / "model")
    file.unlink(missing_ok=True)
    if "stopped" in history[-1]:
        write_atomically(out / "finished.json", '{"stopped": "not finite"}\n')
        raise UserError(
            f"step {len(history)} is not finite; {out / 'model'} has the weights from before it. "
            "Try a lower --lr"
        )
    return f"{describe(history[0])}\n{describe(history[-1])}"


def run_eval(config: EvalCommand) -> str:
    """Measure the accuracy of a model."""
    problems = read_problems(config.test)
    model, tokenizer = load_model(config)
    out = open_folder(config)
    results = evaluate(model, tokenizer, problems, config, out)
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    return table({"this model": results})


def run_demo(config: DemoCommand) -> str:
    """The default job: RFT, naive and RIFT on the same samples, SFT on the expert solutions."""
    problems, test = read_problems(config.problems), read_problems(config.test)
    experts = [
        {**p, "response": text_field(p, "solution", "answer"), "reward": 1} for p in problems
    ]
    sampler, tokenizer = load_model(config)  # the model in the dtype to sample in
    out = open_folder(config)
    samples = sample(sampler, tokenizer, problems, config, out / "samples.jsonl")
    print(summary(samples))
    config.steps = len(draw_batches(len(samples), config))  # the same for every method
    losses = {"base model": None, "SFT on solutions": rft_loss, "RFT": rft_loss}
    losses |= {"naive": naive_loss, "RIFT": rift_loss}
    path = out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, loss in losses.items():
        if name not in results:
            model, _ = load_model(config, torch.float32)
            data = experts if name == "SFT on solutions" else samples
            history = train(model, tokenizer, data, config, loss) if loss else []
            sampler.load_state_dict(model.state_dict())
            accuracy = evaluate(sampler, tokenizer, test, config)
            results[name] = {"accuracy": accuracy, "history": history}
            write_atomically(path, json.dumps(results) + "\n")
            print(f"{name}: {len(history)} steps", flush=True)
    return table({name: result["accuracy"] for name, result in results.items()})


COMMANDS = {"demo": run_demo, "sample": run_sample, "train": run_train, "eval": run_eval}


def parse(argv):
    """The settings of a command, and the function that runs it; without one, the default job."""
    command = "demo"
    if argv and not argv[0].startswith("-"):
        command, *argv = argv
    if command not in COMMANDS:
        raise UserError(f"no command {command!r}; choose from {', '.join(COMMANDS)}")
    run = COMMANDS[command]
    settings = run.__annotations__["config"]  # the class after "config:"
    text = f"{run.__doc__} Commands: {', '.join(COMMANDS)}."
    parser = argparse.ArgumentParser(f"rift.py {command}", description=text, allow_abbrev=False)
    for setting in fields(settings):
        options = {"type": setting.type, "choices": setting.metadata["choices"]}
        if setting.type is bool:
            options = {"action": "store_true"}
        help = f"{setting.metadata['help']} (default: {setting.default!r})"
        name = "--" + setting.name.replace("_", "-")
        parser.add_argument(name, default=setting.default, help=help, **options)

    def fail(message):
        raise UserError(f"{message}; see python rift.py {command} --help")

    parser.error = fail
    config = settings(**vars(parser.parse_args(argv)))
    config.out = config.out or f"runs/{command}"
    return config, run


def open_folder(config):
    """Makes the folder, new or empty; or, to resume, finds a stopped run with the same settings."""
    out = Path(config.out)
    path = out / "settings.json"
    settings = {**vars(config), "resume": False}
    if config.resume:
        if {"finished.json", "model"} & set(os.listdir(out)):
            raise UserError(f"--resume: the run in {out} is finished")
        changed = dict(json.loads(path.read_text()).items() - settings.items())
        if changed:
            raise UserError(f"--resume: the run in {out} has other settings: {changed}")
    elif any(out.glob("*")):
        raise UserError(f"{out} is not empty: choose another --out, or --resume the run in it")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(settings) + "\n")
    return out


def write_atomically(path, text):
    """Writes the whole file or, if the process is killed, nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def main(argv):
    """Exit status: 0, 2 after a mistake in the input, 130 after Ctrl-C."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    was_empty, started = False, time.perf_counter()
    try:
        config, run = parse(argv)
        out = Path(config.out)
        was_empty = not any(out.glob("*"))
        print(run(config))
        machine = f"{config.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        facts = {"minutes": (time.perf_counter() - started) / 60, "machine": machine}
        write_atomically(out / "finished.json", json.dumps(facts) + "\n")
        print(f"wrote {out}: {', '.join(sorted(os.listdir(out)))}")
    except (UserError, OSError) as error:
        if was_empty and list(out.glob("*")) == [out / "settings.json"]:  # nothing was done
            (out / "settings.json").unlink()
            os.removedirs(out)
        print("rift.py: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; --resume continues from what was saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
