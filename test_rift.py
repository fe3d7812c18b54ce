"""Tests of rift.py, data/commands.py and math_reward.py, in the order of the files."""
from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import (AutoConfig, AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM,
                          LlamaConfig, LlamaForCausalLM)

import math_reward as checker
import rift
from math_reward import extract_answer, is_equiv, math_reward
from rift import Sampling, Training, UserError

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
TINY = str(DATA / "tiny-base")
EOS = 0
sys.path.insert(0, str(DATA))
import commands                                                         # noqa: E402


@pytest.fixture(scope="session")
def tiny():
    return rift.load_model(TINY, "cpu")


@pytest.fixture
def fresh():
    """The tiny model in float64, for exact comparisons, and its tokenizer."""
    return rift.load_model(TINY, "cpu", torch.float64)


@pytest.fixture(scope="session")
def problems():
    return rift.read_problems(DATA / "valid.jsonl", 24)


# ------------------------------------------------------------------------------------ losses

def f64(values):
    return torch.tensor(values, dtype=torch.float64)


LOGPS = f64([[-0.1, -0.2, -0.3], [-0.5, -0.4, -9.0], [-0.7, -9.0, -9.0]])   # log pi -0.6 -0.9 -0.7
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
REWARDS = f64([2.0, -0.2, -1.0])
LOG_MU = f64([-1.0, -0.4, -1.5])                            # pi / mu: -, e^-0.5, e^0.8
LEVELS = ["sequence", "mean", "token"]
CASES = [(name, level) for name in ("rift", "naive", "rft", "sft") for level in LEVELS]
CASES.append(("topr", LOG_MU))
e = math.exp


@pytest.mark.parametrize("level", LEVELS)
def test_rift_is_bounded_and_naive_is_not(level):
    r, ones, before = torch.tensor([-0.7]), torch.ones(1, 1), math.inf
    for log_pi in (0.0, -1.0, -30.0, -1e4):
        logps = torch.tensor([[log_pi]], requires_grad=True)
        [term] = rift.rift_loss(logps, ones, r, level)
        term.backward()
        assert 0 <= term.item() <= 0.7 + 1e-6
        assert logps.grad.item() == pytest.approx(0.7 * e(log_pi))
        naive = rift.naive_loss(logps, ones, r, level).item()
        assert naive < before and naive == pytest.approx(0.7 * log_pi)
        before = naive
    assert logps.grad.item() == 0.0


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_with_respect_to_pi(level):
    """RIFT: -r / pi for r > 0, the constant -r for r < 0. Naive: -r / pi for both."""
    rewards, mask, values = f64([1.0, -0.2, -0.2, -3.0]), torch.ones(4, 1), [0.5, 0.9, 1e-6, 1e-9]
    for loss, want in ((rift.rift_loss, [-2.0, 0.2, 0.2, 3.0]),
                       (rift.naive_loss, [-2.0, 0.2 / 0.9, 0.2e6, 3e9])):
        pi = f64(values).requires_grad_()
        loss(pi.log()[:, None], mask, rewards, level).sum().backward()
        torch.testing.assert_close(pi.grad, f64(want))


@pytest.mark.parametrize("name, level, want", [
    ("rift", "sequence", [1.2, 0.2 * e(-0.9), e(-0.7)]),
    ("rift", "mean", [0.4, 0.2 * e(-0.45), e(-0.7)]),
    ("rift", "token", [1.2, 0.2 * (e(-0.5) + e(-0.4)), e(-0.7)]),
    ("naive", "sequence", [1.2, -0.18, -0.7]), ("naive", "mean", [0.4, -0.09, -0.7]),
    ("naive", "token", [1.2, -0.18, -0.7]),
    ("rft", "sequence", [0.6, 0, 0]), ("rft", "mean", [0.2, 0, 0]), ("rft", "token", [0.6, 0, 0]),
    ("sft", "sequence", [0.6, 0.9, 0.7]), ("sft", "mean", [0.2, 0.45, 0.7]),
    ("sft", "token", [0.6, 0.9, 0.7]),
    ("topr", LOG_MU, [1.2, 0.2 * e(-0.5), 1.8])])
def test_losses_by_hand(name, level, want):
    loss = rift.LOSSES[name](LOGPS, MASK, REWARDS, level)
    assert loss.shape == (3,)
    torch.testing.assert_close(loss, f64(want))


@pytest.mark.parametrize("name, level, want", [
    ("rift", "sequence", [[-2] * 3, [0.2 * e(-0.9)] * 2 + [0], [e(-0.7), 0, 0]]),
    ("rift", "mean", [[-2 / 3] * 3, [0.1 * e(-0.45)] * 2 + [0], [e(-0.7), 0, 0]]),
    ("rift", "token", [[-2] * 3, [0.2 * e(-0.5), 0.2 * e(-0.4), 0], [e(-0.7), 0, 0]]),
    ("naive", "sequence", [[-2] * 3, [0.2, 0.2, 0], [1, 0, 0]]),
    ("rft", "sequence", [[-1] * 3, [0] * 3, [0] * 3]),
    ("sft", "mean", [[-1 / 3] * 3, [-1 / 2, -1 / 2, 0], [-1, 0, 0]]),
    ("topr", LOG_MU, [[-2] * 3, [0.2 * e(-0.5)] * 2 + [0], [1, 0, 0]])])
def test_gradients_by_hand(name, level, want):
    logps = LOGPS.clone().requires_grad_()
    rift.LOSSES[name](logps, MASK, REWARDS, level).sum().backward()
    torch.testing.assert_close(logps.grad, f64(want))


@pytest.mark.parametrize("name, level", CASES)
def test_gradients_by_finite_differences(name, level):
    logps = LOGPS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rift.LOSSES[name](x, MASK, REWARDS, level), logps)


def test_rift_is_naive_weighted_by_pi():
    """-r pi has the gradient of -r log pi with the weight pi, which is not differentiated."""
    a, b = (LOGPS.clone().requires_grad_() for _ in range(2))
    rewards = f64([-2.0, -0.2, -1.0])
    rift.rift_loss(a, MASK, rewards).sum().backward()
    pi = (b * MASK).sum(1).exp().detach()
    rift.naive_loss(b, MASK, rewards * pi).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_topr_with_mu_of_one_is_rift():
    a, b = (LOGPS.clone().requires_grad_() for _ in range(2))
    left, right = rift.topr_loss(a, MASK, REWARDS, f64([0.0] * 3)), rift.rift_loss(b, MASK, REWARDS)
    torch.testing.assert_close(left, right)
    left.sum().backward()
    right.sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_topr_is_smooth_at_mu_and_its_weight_is_not_differentiated():
    """Of a wrong response: |r| min(pi/mu, 1) grad log pi on both sides of mu, and at it."""
    log_mu = -2.0
    for log_rho in (-5.0, -0.3, -1e-7, 0.0, 1e-7, 0.3, 1.9):
        logps = f64([[log_mu + log_rho]]).requires_grad_()
        loss = rift.topr_loss(logps, torch.ones(1, 1), f64([-0.2]), f64([log_mu]))
        loss.sum().backward()
        assert logps.grad.item() == pytest.approx(0.2 * min(e(log_rho), 1))
        assert loss.item() == pytest.approx(0.2 * (e(log_rho) if log_rho < 0 else 1 + log_rho))


@pytest.mark.parametrize("name, level", CASES)
def test_padding_order_and_other_samples_change_nothing(name, level):
    def turn(x):
        return x.flip(0) if torch.is_tensor(x) else x
    loss = rift.LOSSES[name](LOGPS, MASK, REWARDS, level)
    wide = torch.cat([LOGPS, torch.full((3, 2), -torch.inf)], 1).requires_grad_()
    padded = rift.LOSSES[name](wide, F.pad(MASK, (0, 2)), REWARDS, level)
    torch.testing.assert_close(padded, loss)
    padded.sum().backward()
    assert wide.grad.isfinite().all() and not wide.grad[:, 3:].any()
    flipped = rift.LOSSES[name](LOGPS.flip(0), MASK.flip(0), REWARDS.flip(0), turn(level))
    torch.testing.assert_close(flipped, loss.flip(0))


@pytest.mark.parametrize("name, level", CASES)
def test_a_reward_of_zero_is_skipped_and_half_precision_is_summed_in_float32(name, level):
    logps = LOGPS.clone().requires_grad_()
    zero = rift.LOSSES[name](logps, MASK, 0 * REWARDS, level)
    if name == "sft":
        torch.testing.assert_close(zero, rift.sft_loss(LOGPS, MASK, REWARDS, level))
    else:
        assert not zero.any() and not torch.autograd.grad(zero.sum(), logps)[0].any()
    half = rift.LOSSES[name](LOGPS.bfloat16(), MASK, REWARDS.float(), level)
    assert half.dtype == (torch.float64 if name == "topr" else torch.float32)   # as LOG_MU is
    log_pi, pi = rift.log_policy(torch.full((1, 999), -0.01).bfloat16(), torch.ones(1, 999))
    assert log_pi.dtype == torch.float32 and log_pi.item() == pytest.approx(-9.99, rel=0.01)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_without_response_has_no_loss(level):
    assert rift.rift_loss(LOGPS[:1], 0 * MASK[:1], REWARDS[:1], level).item() == 0


def test_rewards_of_one_give_the_negative_log_likelihood_of_transformers(tiny):
    model, tokenizer = tiny
    batch = rift.collate([rift.encode(tokenizer, row) for row in (
        {"problem": "12+34=?", "response": "12+34=46; \\boxed{46}"},
        {"problem": "7+8=?", "response": "7+8=15; \\boxed{15}"})], model.device)
    labels = batch["input_ids"].masked_fill(~batch["mask"], -100)
    with torch.no_grad():
        logps = rift.response_logps(model, **batch)
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                       labels=labels).loss
    mask = batch["mask"][:, 1:]
    for loss in (rift.rift_loss, rift.naive_loss, rift.rft_loss, rift.sft_loss):
        ours = loss(logps, mask, torch.ones(2)).sum() / mask.sum()
        torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------------ log-probabilities

def small(cls=LlamaForCausalLM, config=LlamaConfig, **more):
    torch.manual_seed(0)
    return cls(config(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, num_key_value_heads=1, head_dim=8,
                      max_position_embeddings=128, **more)).double().eval()


def with_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    return model


def examples(*pairs):
    return [rift.Example({}, prompt, response) for prompt, response in pairs]


def full_logps(model, batch):
    """What response_logps is to give, from all the logits at once."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    return chosen * batch["mask"][:, 1:]


@pytest.mark.parametrize("new_torch", [True, False])
@pytest.mark.parametrize("piece", [1, 50 * 3, 10 ** 9])
@pytest.mark.parametrize("model, plain", [
    (small(tie_word_embeddings=True), True), (small(tie_word_embeddings=False), True),
    (small(Gemma2ForCausalLM, Gemma2Config, final_logit_softcapping=0.02), False),
    (with_bias(small(tie_word_embeddings=False)), True)])
def test_logps_and_gradients_are_those_of_the_full_logits(
        model, plain, piece, new_torch, monkeypatch):
    if not new_torch:                                           # torch before 2.13
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", piece)          # 1, 3 or all rows at a time
    assert rift.plain_head(model) is plain
    batch = rift.collate(examples(([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10]), ([1, 1], [0])), "cpu")
    ours, full = rift.response_logps(model, **batch), full_logps(model, batch)
    torch.testing.assert_close(ours, full)
    weights = torch.randn(ours.shape, dtype=ours.dtype)
    grads = [torch.autograd.grad((logps * weights).sum(), list(model.parameters()),
                                 retain_graph=True) for logps in (ours, full)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("new_torch", [True, False])
def test_few_logits_are_held_at_a_time(new_torch, monkeypatch):
    """3 rows of 50 logits where LOGITS_AT_ONCE is 150; the body's own are of one token a row."""
    if new_torch and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    model, sizes, kept = small(tie_word_embeddings=False), [], []
    rift.plain_head(model)
    name = "linear_cross_entropy" if new_torch else "cross_entropy"
    true = getattr(F, name)
    if not new_torch:
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)

    def spy(hidden, *args, **kwargs):
        options = kwargs.get("options")
        sizes.append(options.batch_chunk_size if options else len(hidden))
        return true(hidden, *args, **kwargs)
    monkeypatch.setattr(F, name, spy)
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", 150)
    model.register_forward_hook(lambda module, args, out: kept.append(out.logits.shape[1]))
    batch = rift.collate(examples(([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10])), "cpu")
    rift.response_logps(model, **batch)
    assert sizes == ([3] if new_torch else [3, 3]) and kept == [1]


def test_logps_under_autocast_are_those_of_the_model(tiny, monkeypatch):
    """bfloat16 activations over float32 weights, as on CUDA: same values, gradients in float32."""
    model = tiny[0]
    batch = rift.collate(examples(([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10])), model.device)
    results = []
    for plain in (True, False):
        monkeypatch.setattr(rift, "plain_head", lambda model, plain=plain: plain)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(rift.response_logps(model, **batch))
        assert results[-1].dtype == torch.float32
    torch.testing.assert_close(*results, rtol=0.02, atol=0.05)
    grads = [torch.autograd.grad(logps.sum(), list(model.parameters())) for logps in results]
    for a, b in zip(*grads):
        assert a.dtype == torch.float32
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.98


def test_subnormal_numbers_are_flushed():
    """Gradients of nearly vanishing negatives are subnormal, and those are slow on a CPU."""
    if not torch.set_flush_denormal(False) or not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(False)
    assert (torch.tensor([1e-38]) * 0.01).item() > 0
    rift.load_model(TINY, "cpu")
    assert (torch.tensor([1e-38]) * 0.01).item() == 0


# ------------------------------------------------------------------------- data and batches

def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n"
                            for row in rows))
    return str(path)


GOOD = {"problem": "7+8=?", "answer": "15", "response": "15", "reward": 1}


def test_collate_trains_the_response_and_its_eos_alone(tiny):
    tokenizer = tiny[1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    row = {"problem": "7+8=?", "response": "15"}
    example = rift.encode(tokenizer, row)
    prompt, response = example.prompt, example.response
    assert example.row is row and tokenizer.decode(prompt) == "7+8=?\n"
    assert tokenizer.decode(response) == "15<eos>"
    assert rift.encode(tokenizer, row | {"truncated": True}).response == response[:-1]
    assert rift.encode(tokenizer, row, "{problem}{problem}").prompt == 2 * prompt[:-1]
    assert rift.encode(tokenizer, {"prompt": "7+8="})[1:] == (prompt[:4], [])
    batch = rift.collate([example, *examples(([1], [2]))], torch.device("cpu"))
    assert batch["input_ids"][0].tolist() == prompt + response
    assert batch["mask"].tolist() == [[False] * 6 + [True] * 3, [False, True] + [False] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 9, [1, 1] + [0] * 7]


def test_one_bos_one_eos_and_no_eos_in_the_prompt():
    """With a tokenizer that puts <s> before and <eos> after every text."""
    tokenizer = rift.load_model(TINY, "cpu")[1]
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <eos>", special_tokens=[("<s>", bos), ("<eos>", EOS)])
    assert tokenizer("7").input_ids == [bos, 9, EOS]
    assert rift.encode(tokenizer, {"problem": "7"}).prompt == [bos, 9, 20]
    assert rift.encode(tokenizer, {"prompt": "7"}).prompt == [bos, 9]
    assert rift.encode(tokenizer, {"prompt": "<s>7"}).prompt == [bos, 9]
    assert rift.encode(tokenizer, {"prompt": "<s>7<eos>"}).prompt == [bos, 9, EOS]
    for response in ("15", "15<eos>"):
        assert rift.encode(tokenizer, {"prompt": "7", "response": response}).response == [3, 7, EOS]
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    assert rift.encode(tokenizer, {"problem": "7"}).prompt == [bos, 9]


def test_chat_template_is_used(tiny, monkeypatch):
    tokenizer = tiny[1]
    monkeypatch.setattr(tokenizer, "chat_template",
                        "{% for m in messages %}{{ m['role'][:0] }}={{ m['content'] }}={% endfor %}"
                        "{% if add_generation_prompt %};{% endif %}")
    assert tokenizer.decode(rift.encode(tokenizer, {"problem": "7+8=?"}).prompt) == "=7+8=?=;"
    assert tokenizer.decode(rift.encode(tokenizer, {"prompt": "7+8=?"}).prompt) == "7+8=?"


def test_ids_are_trained_as_they_were_drawn_and_text_where_there_are_none(tiny):
    row = {"problem": "7+8=?", "response": "15", "ids": [3, 7, 17]}
    assert rift.encode(tiny[1], row).response == [3, 7, 17]
    assert rift.encode(tiny[1], row | {"truncated": True}).response == [3, 7, 17]
    assert rift.encode(tiny[1], {"problem": "7+8=?", "response": "15"}).response == [3, 7, EOS]


def test_published_formats_read_as_they_are(tmp_path):
    gsm8k = {"question": "6*7?", "answer": "It is <<6*7=42>>42.\n#### 1,042"}
    math_ = {"problem": "Half?", "level": "Level 1", "type": "Algebra",
             "solution": "It is not \\boxed{1}. It is $\\boxed{\\frac{1}{2}}$."}
    math500 = {"problem": "Half?", "solution": "$\\boxed{x}$", "answer": "\\frac{1}{2}",
               "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    rows = rift.read_problems(write(tmp_path / "p.jsonl", gsm8k, math_, "", math500,
                                    {"problem": "6*7", "answer": 42}))
    assert len(rows) == 4 and [row["problem"] for row in rows[:2]] == ["6*7?", "Half?"]
    for row, right, wrong in zip(rows, ("1042", "0.5", "0.5", "42"), ("42", "1", "x", "41")):
        assert rift.math_reward(f"\\boxed{{{right}}}", row["answer"])
        assert not rift.math_reward(f"\\boxed{{{wrong}}}", row["answer"])
    assert rows[2]["unique_id"] == "test/algebra/1.json" and rows[3]["answer"] == "42"
    assert len(rift.read_problems(str(tmp_path / "p.jsonl"), 2)) == 2
    (tmp_path / "bom.jsonl").write_text("\ufeff" + json.dumps(math500), encoding="utf-8")
    assert rift.read_problems(tmp_path / "bom.jsonl")[0]["problem"] == "Half?"


def test_other_names_of_fields_and_fields_of_the_user(tmp_path):
    row = {"question": "7+8=?", "completion": "15", "reward": 0.5, "answer": "15", "line": "mine"}
    for need in ("reward", "answer", ""):
        [read] = rift.read_samples(write(tmp_path / "x.jsonl", row), need)
        assert (read["problem"], read["response"]) == ("7+8=?", "15")
        assert read["line"] == "mine" and read.where == f"{tmp_path / 'x.jsonl'}:1"
    both = {"prompt": "<u>7+8=", "problem": "7+8=?", "response": "15"}
    [read] = rift.read_samples(write(tmp_path / "x.jsonl", both), "")
    assert (read["prompt"], read["problem"]) == ("<u>7+8=", "7+8=?")


@pytest.mark.parametrize("reader, rows, message", [
    ("problems", [], "empty"),
    ("problems", [GOOD, '{"problem": '], ":2: not a JSON object"),
    ("problems", ["[1]"], ":1: not a JSON object"),
    ("problems", ["[", "{}", "]"], ":1: not a JSON object"),
    ("problems", [{"answer": "3"}], ":1: `problem` or `question` must be text"),
    ("problems", [{"problem": " ", "answer": "3"}], ":1: `problem` or `question` must be text"),
    ("problems", [{"problem": ["x"], "answer": "3"}], ":1: `problem` or `question` must be text"),
    ("problems", [GOOD | {"prompt": [{"role": "user"}]}], ":1: `prompt` or `problem` must be text"),
    ("problems", [{"problem": "x"}], ":1: `answer` or `solution` must be text"),
    ("problems", [{"problem": "x", "solution": "y"}], ":1: no `answer`"),
    ("samples", [GOOD, {"problem": "x", "reward": 1}], ":2: `response` or `completion` must be"),
    ("samples", [{"response": "x", "reward": 1}], ":1: `prompt` or `problem` or `question` must"),
    ("samples", [{"problem": "x", "response": "y"}], ":1: `reward` must be a finite number"),
    ("samples", [GOOD, json.dumps(GOOD | {"reward": math.nan})], ":2: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": -math.inf}], ":1: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": 1e39}], ":1: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": "1"}], ":1: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": True}], ":1: `reward` must be a finite")])
def test_bad_lines_are_named(tmp_path, reader, rows, message):
    path = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(UserError, match=re.escape(message)):
        if reader == "problems":
            rift.read_problems(path)
        else:
            rift.read_samples(path, "reward")


LONG = {"problem": "1" * 120, "answer": "1", "response": "2" * 7, "reward": 1.0}    # 129 tokens


def test_rows_that_do_not_fit_are_named_or_left_out(tiny, tmp_path, capsys):
    model, tokenizer = tiny
    fits = LONG | {"problem": "1" * 119}                        # 128, the model's context
    ended = GOOD | {"response": "", "truncated": False}         # it ended by itself at once
    rows = [GOOD, LONG, GOOD | {"response": ""}, GOOD | {"response": "", "truncated": True}, fits,
            ended, GOOD | {"ids": [4, 4]}]
    read = rift.read_samples(write(tmp_path / "x.jsonl", *rows), "reward")
    for number, message in ((1, ":2: 129 tokens, but the model's context is 128"),
                            (2, ":3: an empty response"), (3, ":4: an empty response"),
                            (6, ":7: `ids` of another tokenizer")):
        with pytest.raises(UserError, match=re.escape(message)):
            rift.encode_all(model, tokenizer, read[number:], Training())
    kept = rift.encode_all(model, tokenizer, read, Training(skip_unfit=True))
    assert [example.row for example in kept] == [GOOD, fits, ended]
    assert kept[2].response == [EOS]
    assert "4 of 7 rows" in capsys.readouterr().out
    with pytest.raises(UserError):
        rift.encode_all(model, tokenizer, read[1:2], Training(skip_unfit=True))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    rift.write_whole(path, "old")

    for error in (OSError("No space left on device"), RuntimeError("as torch.save says it")):
        def failing(part, error=error):
            part.write_text("ne")
            raise error
        with pytest.raises(UserError, match=re.escape(f"{path}: cannot be written ({error})")):
            rift.write_whole(path, failing)
        assert path.read_text() == "old"
    rift.write_whole(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] in (
        ["x"], ["x", "x.part"], ["x.part", "x"])


# ----------------------------------------------------------------------------- sampling loop

def prompts_of(tokenizer, problems):
    return [rift.encode(tokenizer, row).prompt for row in problems]


def greedy(model, prompts, stop=(EOS,), limit=256):
    config = Sampling(k=1, temperature=0, max_new_tokens=limit)
    return rift.generate(model, prompts, list(stop), 21, config, None)[0]


def test_greedy_sampling_is_generate_token_for_token(fresh, problems):
    model, tokenizer = fresh
    prompts = prompts_of(tokenizer, problems)
    assert len({len(prompt) for prompt in prompts}) > 2
    for limit in (40, 9):                                       # 9 cuts responses off
        for prompt, ids in zip(prompts, greedy(model, prompts, limit=limit)):
            theirs = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(
                1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=limit)
            assert ids == theirs[0, len(prompt):].tolist() == greedy(model, [prompt], (EOS,), limit)[0]


def test_rows_stop_at_any_stop_token_at_the_limit_and_at_the_context(fresh):
    model, tokenizer = fresh
    prompts = prompts_of(tokenizer, [{"problem": "12+34=?"}])
    [whole] = greedy(model, prompts)
    semicolon = whole.index(17)
    assert greedy(model, prompts, (EOS, 17)) == [whole[:semicolon + 1]]
    model.config.max_position_embeddings = len(prompts[0]) + 5
    assert greedy(model, prompts) == [whole[:5]]


def test_choose_follows_temperature_and_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(20000, 1)
    rng = torch.Generator().manual_seed(0)
    for temperature, top_p, want in (
            (0, 1.0, [1, 0, 0, 0]), (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
            (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
            (1.0, 0.6, [0.625, 0.375, 0, 0]), (1.0, 0.0, [1, 0, 0, 0])):
        chosen = rift.choose(logits, temperature, top_p, rng)
        shares = (torch.bincount(chosen, minlength=4) / len(chosen)).tolist()
        assert shares == pytest.approx(want, abs=0.02)


def test_samples_are_seeded_and_from_the_models_distribution(fresh, problems, monkeypatch):
    model, tokenizer = fresh
    config, batches, generate = Sampling(k=4, rows=34), [], rift.generate

    def spy(model, prompts, *rest):
        batches.append([len(prompt) for prompt in prompts])
        return generate(model, prompts, *rest)
    monkeypatch.setattr(rift, "generate", spy)
    a, b = (rift.sample(model, tokenizer, problems, config) for _ in range(2))
    assert a == b and a != rift.sample(model, tokenizer, problems, Sampling(k=4, rows=34, seed=1))
    assert [len(batch) for batch in batches[:3]] == [8, 8, 8]   # 32 rows, no more than 34
    lengths = sum(batches[:3], [])
    assert lengths == sorted(lengths)                           # the shortest first
    assert sorted(row["problem"] for row in a) == sorted(4 * [row["problem"] for row in problems])
    for row in a:
        assert row["response"] + "<eos>" == tokenizer.decode(row["ids"]) and row["kind"]
        assert row["tokens"] == len(row["ids"]) and row["boxed"] == ("boxed{" in row["response"])
    assert len({str(row["ids"]) for row in a}) > 24              # k draws of each, not one
    prompts = prompts_of(tokenizer, problems[:1])               # shares of the first token
    ids = generate(model, prompts, [EOS], 21, Sampling(k=4000, max_new_tokens=1),
                   torch.Generator().manual_seed(0))[0]
    with torch.no_grad():
        want = model(torch.tensor(prompts)).logits[0, -1].softmax(-1)
    shares = torch.bincount(torch.tensor(ids)[:, 0], minlength=21) / 4000
    torch.testing.assert_close(shares.double(), want, atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature, top_p, limit", [(1.0, 1.0, 256), (2.0, 0.9, 12)])
def test_samples_are_trained_as_drawn(fresh, problems, temperature, top_p, limit):
    """Their ids have, at temperature 1, the log pi that sampling wrote; also where several tokens
    stop, text says less than ids, and the limit cuts."""
    model, tokenizer = fresh
    tokenizer.add_special_tokens({"additional_special_tokens": ["="]})  # as <think> may be
    model.generation_config.eos_token_id = [EOS, 18]            # ... and a closing brace
    drawn = rift.sample(model, tokenizer, problems, Sampling(
        k=2, temperature=temperature, top_p=top_p, max_new_tokens=limit))
    encoded = [rift.encode(tokenizer, row) for row in drawn]
    batch = rift.collate(encoded, model.device)
    with torch.no_grad():
        logps = full_logps(model, batch).sum(1)
    assert logps.tolist() == pytest.approx([row["logp"] for row in drawn], abs=1e-3)
    assert [example.response for example in encoded] == [row["ids"] for row in drawn]
    assert any("=" in row["response"] for row in drawn)
    for row in drawn:
        assert row["truncated"] == (row["ids"][-1] not in (EOS, 18))
        assert not {EOS, 18} & {*row["ids"][:-1]} and "}" not in row["response"]
    assert any(row["truncated"] for row in drawn) == (limit == 12)
    history = rift.train(model, tokenizer, [row | {"reward": 1.0} for row in drawn], Training(
        steps=1, batch_size=99))
    assert history[0]["logp_pos"] == pytest.approx(logps.mean().item(), abs=1e-3)
    assert history[0]["tokens"] == sum(len(row["ids"]) for row in drawn)


def test_stop_token_zero_and_ids_beyond_the_tokenizer(fresh, problems):
    """A padded vocabulary: rows 21 to 29 of the head have as much probability as the others."""
    model, tokenizer = fresh
    model.resize_token_embeddings(30)
    with torch.no_grad():
        model.lm_head.weight[21:] = model.lm_head.weight[3]
    prompts, rng = prompts_of(tokenizer, problems), torch.Generator().manual_seed(0)
    config = Sampling(k=4, temperature=3.0, max_new_tokens=30)
    everything = rift.generate(model, prompts, [EOS], 30, config, rng)[0]
    assert any(id > 20 for ids in everything for id in ids)
    model.generation_config.eos_token_id, tokenizer.eos_token = 0, "?"
    drawn = rift.sample(model, tokenizer, problems, config)
    assert not any(id > 20 for row in drawn for id in row["ids"])
    ends = [row["ids"][-1] for row in drawn if not row["truncated"]]
    assert {*ends} == {EOS, 16} and not any({EOS, 16} & {*row["ids"][:-1]} for row in drawn)


class Killed(Exception):
    pass


@pytest.mark.parametrize("tail", ["", '{"problem": "half a li'])
def test_killed_sampling_goes_on_to_the_same_file(tiny, problems, tmp_path, monkeypatch, tail):
    model, tokenizer = tiny
    config, path = Sampling(k=2, rows=20), tmp_path / "samples.jsonl"   # 10, 10 and 4 problems
    rift.sample(model, tokenizer, problems, config, tmp_path / "whole.jsonl")
    generate, calls = rift.generate, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return generate(*args)
    monkeypatch.setattr(rift, "generate", dying)
    with pytest.raises(Killed):
        rift.sample(model, tokenizer, problems, config, path)
    assert len(path.read_text().splitlines()) == 40             # two batches of three are kept
    with open(path, "a") as file:                               # and a part of the third
        file.write(json.dumps(GOOD) + "\n" + tail)
    for count in (4, 4):                                        # one batch was left to do; none
        samples = rift.sample(model, tokenizer, problems, config, path)
        assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert rift.dump_jsonl(samples) == path.read_text() and len(calls) == count


def test_score_asks_the_checker_and_says_what_was_cut_off(monkeypatch):
    monkeypatch.setattr(rift, "math_reward", lambda response, answer, truncated: (
        (response, answer, truncated) == ("15", "15", False)))
    rows = [GOOD, GOOD | {"response": "16"}, GOOD | {"truncated": True}]
    rewards = [row["reward"] for row in rift.score([{**row} for row in rows], 3.0, -2.0)]
    assert rewards == [3.0, -2.0, -2.0]


# ---------------------------------------------------------------------------------- training

def buffer():
    return [{"problem": f"{a}+{b}=?", "answer": str(a + b), "reward": reward, "logp": logp,
             "response": f"{a}+{b}={a + b + wrong}; \\boxed{{{a + b + wrong}}}"}
            for a, b, wrong, reward, logp in [
                (12, 34, 0, 1.0, -1.0), (57, 8, 0, 1.0, -2.0), (57, 18, -10, -0.25, -8.0),
                (9, 9, 10, -1.0, -99.0), (23, 23, 0, 0.5, -1.0), (7, 5, 0, 0.0, -1.0)]]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


@pytest.mark.parametrize("loss, level", [("rift", "sequence"), ("rift", "mean"), ("naive", "token"),
                                         ("rft", "mean"), ("sft", "token"), ("topr", "sequence")])
def test_micro_batches_change_nothing(fresh, loss, level):
    model, tokenizer = fresh
    start, ends, logs = weights(model), [], []
    for budget in (10 ** 6, 60, 1):
        model.load_state_dict(start)
        logs.append(rift.train(model, tokenizer, buffer(), Training(
            loss=loss, level=level, steps=2, batch_size=5, tokens_per_batch=budget)))
        ends.append(weights(model))
    assert len(logs[0]) == 2 and not torch.equal(ends[0]["lm_head.weight"], start["lm_head.weight"])
    for end, log in zip(ends[1:], logs[1:]):
        same(end, ends[0], rtol=1e-6, atol=1e-9)
        assert log[1] == pytest.approx(logs[0][1])


def test_micro_batches_stay_within_the_budget():
    rows = examples(*((n // 2 * [1], (n - n // 2) * [1]) for n in (10, 27, 10, 16, 11)))
    for budget, want in ((33, [[27], [11, 16], [10, 10]]), (9, [[27], [16], [11], [10], [10]]),
                         (32, [[27], [11, 16], [10, 10]]), (31, [[27], [16], [10, 11], [10]])):
        parts = [[len(x.prompt + x.response) for x in part]
                 for part in rift.micro_batches(rows, budget)]
        assert [sorted(part) for part in parts] == want


@pytest.mark.parametrize("loss, level, clip", [
    ("rift", "sequence", 0.01), ("rift", "mean", 0), ("rift", "token", 1e9),
    ("topr", "sequence", 0)])
def test_one_step_is_the_gradient_of_the_loss_on_its_samples(fresh, loss, level, clip):
    """A step of train against AdamW on a gradient taken by hand; a clip of 0 is none."""
    model, tokenizer = fresh
    rows = [row for row in buffer() if row["reward"]]
    start = weights(model)
    batch = rift.collate([rift.encode(tokenizer, row) for row in rows], model.device)
    logps, mask = full_logps(model, batch), batch["mask"][:, 1:]
    logps.retain_grad()
    r, length = f64([row["reward"] for row in rows]), mask.sum(1)
    log_pi = logps.sum(1)
    pi = log_pi.exp()
    if level == "mean":
        log_pi = log_pi / length
        pi = log_pi.exp()
    if level == "token":
        pi = (logps.exp() * mask).sum(1)
    push = pi
    if loss == "topr":
        log_rho = log_pi - f64([row["logp"] for row in rows])
        push = torch.where(log_rho < 0, log_rho.exp(), 1 + log_rho)
    total = torch.where(r > 0, -r * log_pi, -r * push).sum()
    total = total / (len(rows) if level == "mean" else length.sum())
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    share = (logps.grad.abs() * mask).sum(1)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1).step()
    want = weights(model)
    model.load_state_dict(start)
    [log] = rift.train(model, tokenizer, buffer(), Training(
        loss=loss, level=level, steps=1, batch_size=5, lr=1e-3, warmup=0, max_grad_norm=clip,
        weight_decay=0.1))
    same(weights(model), want)
    assert log == pytest.approx({
        "step": 1, "lr": 1e-3, "grad_norm": norm.item(), "loss": total.item(), "n_pos": 3,
        "n_neg": 2, "tokens": length.sum().item(),
        "neg_share": (share[r < 0].sum() / share.sum()).item(),
        "logp_pos": log_pi[r > 0].mean().item(), "logp_neg": log_pi[r < 0].mean().item(),
        "pi_pos": pi[r > 0].mean().item(), "pi_neg": pi[r < 0].mean().item()}, rel=1e-5)
    assert norm > 0.01 and not model.training


def test_learning_rate_starts_above_zero_warms_up_and_falls():
    def rates(**settings):
        config = Training(lr=2.0, **settings)
        return [rift.learning_rate(step, 10, config) for step in range(10)]
    cosine = [1 + math.cos(math.pi * i / 8) for i in range(8)]
    assert rates(warmup=0.2) == pytest.approx([2 / 3, 4 / 3, *cosine])
    assert rates(warmup=0)[:6] == pytest.approx([1 + math.cos(math.pi * i / 10) for i in range(6)])
    assert rates(warmup=1.0) == pytest.approx([2 * i / 11 for i in range(1, 11)])


@pytest.mark.parametrize("n, settings, sizes", [
    (5, {"epochs": 1, "batch_size": 64}, [5]), (5, {"epochs": 2, "batch_size": 64}, [5, 5]),
    (6, {"epochs": 1.5, "batch_size": 4}, [4, 4, 1]), (6, {"epochs": 0.01, "batch_size": 4}, [1]),
    (6, {"steps": 3, "epochs": 9, "batch_size": 4}, [4, 4, 4]), (2, {"steps": 3}, [2, 2, 2])])
def test_epochs_are_passes_in_seeded_order(n, settings, sizes):
    batches = rift.draw_batches(n, Training(**settings))
    assert [len(batch) for batch in batches] == sizes
    drawn = sum(batches, [])
    for i in range(0, len(drawn), n):
        assert len({*drawn[i:i + n]}) == len(drawn[i:i + n]) and {*drawn} <= {*range(n)}
    assert batches == rift.draw_batches(n, Training(**settings))
    orders = {str(rift.draw_batches(9, Training(seed=seed, epochs=1))) for seed in range(3)}
    assert len(orders) == 3


def test_training_moves_wrong_down_and_teaches_eos(fresh):
    """With pad = eos: after training on a response that stops early, the model stops there too."""
    model, tokenizer = fresh
    row = {"problem": "12+34=?", "response": "46", "reward": 1.0}
    rift.train(model, tokenizer, [row], Training(steps=20, lr=1e-3))
    assert tokenizer.decode(greedy(model, prompts_of(tokenizer, [row]))[0]) == "46<eos>"
    history = rift.train(model, tokenizer, [row | {"reward": -1.0}], Training(steps=20, lr=1e-3))
    assert history[-1]["logp_neg"] < history[0]["logp_neg"] - 1
    assert history[0]["neg_share"] == 1 and 0 > history[0]["loss"] - 1 > history[-1]["loss"] - 1


def test_what_each_loss_learns_from():
    kept = {loss: len(rift.useful(buffer(), loss)) for loss in rift.LOSSES}
    assert kept == {"rift": 5, "naive": 5, "rft": 3, "sft": 6, "topr": 5}
    for loss, rewards in (("rift", [0.0, 0.0]), ("naive", [0.0]), ("rft", [0.0, -1.0])):
        with pytest.raises(UserError, match=f"nothing to learn from.* {len(rewards)} .*{loss}"):
            rift.useful([GOOD | {"reward": reward} for reward in rewards], loss)


def strict_jsonl(path):
    def refuse(constant):
        raise AssertionError(constant)
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_step_that_is_not_finite_stops_with_the_last_good_weights(fresh, monkeypatch, tmp_path):
    model, tokenizer = fresh
    true, states = rift.response_logps, []

    def failing(model, **batch):
        states.append(weights(model))
        return true(model, **batch) * (math.nan if len(states) == 3 else 1)
    monkeypatch.setattr(rift, "response_logps", failing)
    history = rift.train(model, tokenizer, buffer(), Training(steps=4), tmp_path)
    assert len(history) == 3 and "step 3 is not finite" in history[-1]["stopped"]
    same(weights(model), states[2], rtol=0, atol=0)
    assert history == strict_jsonl(tmp_path / "metrics.jsonl")
    assert history[2]["loss"] is history[2]["grad_norm"] is None and "stopped" not in history[1]


def test_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """With dropout, whose random numbers are part of it."""
    ends = []
    for name in ("whole", "killed"):
        out = tmp_path / name
        out.mkdir()
        config = Training(steps=5, batch_size=3, save_every=2)
        calls, step, died = [], torch.optim.AdamW.step, False

        def dying(self, *args, step=step, calls=calls):
            calls.append(1)
            if len(calls) == 4:
                raise Killed
            return step(self, *args)
        while True:
            torch.manual_seed(len(calls))
            model, tokenizer = rift.load_model(TINY, "cpu")
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = 0.3
            with monkeypatch.context() as patch:
                if name == "killed":
                    patch.setattr(torch.optim.AdamW, "step", dying)
                try:
                    history = rift.train(model, tokenizer, buffer(), config, out)
                    break
                except Killed:
                    died = True
        assert len(calls) == (7 if died else 0) and died == (name == "killed")  # 1-3, 4, 3-5
        ends.append(weights(model))
        assert strict_jsonl(out / "metrics.jsonl") == history
        assert [row["step"] for row in history] == [1, 2, 3, 4, 5]
        ends.append({str(i): torch.tensor(row["loss"]) for i, row in enumerate(history)})
    same(ends[0], ends[2], rtol=0, atol=0)
    same(ends[1], ends[3], rtol=0, atol=0)


def test_gradient_checkpointing_changes_nothing():
    ends = []
    for enabled in (False, True):
        model, tokenizer = rift.load_model(TINY, "cpu", torch.float64)
        rift.train(model, tokenizer, buffer(), Training(
            steps=2, batch_size=5, gradient_checkpointing=enabled))
        assert model.is_gradient_checkpointing is enabled
        ends.append(weights(model))
    same(*ends, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length, right, warned", [(1, 1, False), (60, 1, True), (60, -1, True)])
def test_warning_when_rift_has_become_rft(length, right, warned, capsys):
    """A wrong response of 60 tokens at 4 nats each has pi = 0 in float32."""
    model, tokenizer = small().float(), rift.load_model(TINY, "cpu")[1]
    wrong = GOOD | {"response": "1" * length, "reward": -0.2}
    for steps in (3, 12):
        rift.train(model, tokenizer, [wrong, wrong | {"reward": right}], Training(
            steps=steps, lr=1e-9))
        assert ("RIFT is RFT here" in capsys.readouterr().err) is warned


def test_lora_and_frozen_weights(fresh):
    """A model of peft trains its adapter and nothing else, with the gradient of the full logits."""
    peft = pytest.importorskip("peft", reason="the LoRA example needs peft")
    model, tokenizer = fresh
    start = weights(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear",
                                                       task_type="CAUSAL_LM"))
    batch = rift.collate([rift.encode(tokenizer, row) for row in buffer()], model.device)
    torch.testing.assert_close(rift.response_logps(model, **batch), full_logps(model, batch))
    history = rift.train(model, tokenizer, buffer(), Training(steps=8, lr=1e-2))
    assert history[-1]["loss"] < history[0]["loss"]
    same(start, {name.replace(".base_layer", "").removeprefix("base_model.model."): tensor
                 for name, tensor in weights(model).items()}, rtol=0, atol=0)


# -------------------------------------------------------------------------------- evaluation

def test_mean_se():
    mean, error = rift.mean_se([0.0, 1.0, 1.0, 1.0])
    assert mean == 0.75 and error == pytest.approx(0.25)
    assert rift.mean_se([3.0]) == [3.0, 0.0]


def test_evaluate_is_the_accuracy_of_the_samples(tiny, problems):
    model, tokenizer = tiny
    config = Sampling(k=4, max_new_tokens=17)                   # some responses are cut off
    results = rift.evaluate(model, tokenizer, problems, config)
    drawn = rift.score(rift.sample(model, tokenizer, problems, config), 1, 0)
    best = rift.score(rift.sample(model, tokenizer, problems, dataclasses.replace(
        config, k=1, temperature=0)), 1, 0)
    assert list(results) == ["all", "misconception", "slips"]
    assert 0 < results["all"]["truncated"][0] < 1
    for kind, figures in results.items():
        chosen = [row["problem"] for row in problems if kind in ("all", row["kind"])]
        groups = [[row for row in drawn if row["problem"] == problem] for problem in chosen]
        means = {key: [statistics.fmean(row[key] for row in group) for group in groups]
                 for key in ("reward", "boxed", "tokens", "truncated")}
        assert figures["n"] == len(chosen)
        want = {
            "n": len(chosen), "mean@4": rift.mean_se(means["reward"]),
            "greedy": rift.mean_se([row["reward"] for row in best if row["problem"] in chosen]),
            "pass@4": rift.mean_se([float(mean > 0) for mean in means["reward"]]),
            "boxed": rift.mean_se(means["boxed"]), "tokens": rift.mean_se(means["tokens"]),
            "truncated": rift.mean_se(means["truncated"])}
        assert figures.keys() == want.keys()
        for name, value in want.items():
            assert figures[name] == pytest.approx(value)


def test_table():
    def row(name, steps, *figures):
        columns = ("greedy", "mean@8", "pass@8", "boxed")
        return {"name": name, "steps": steps, "results": {
            kind: {"n": n, **dict(zip(columns, figures))} for kind, n in (("all", 2000), ("x", 7))}}
    rows = [row("base model", 0, [0.25, 0.03], [0.5, 0.0449], [1.0, 0], [0.1236, 0.1]),
            row("SFT, expert solutions", 57, [1.0, 0.1], [0, 0], [0, 0], [0, 0])]
    text = commands.table(rows, 8)
    assert text.splitlines()[:3] == [
        "all (2000)             steps       greedy       mean@8       pass@8        boxed",
        "base model                 0   25.0 ± 3.0   50.0 ± 4.5  100.0 ± 0.0   12.4 ±10.0",
        "SFT, expert solutions     57  100.0 ±10.0    0.0 ± 0.0    0.0 ± 0.0    0.0 ± 0.0"]
    assert text.splitlines()[4].startswith("x (7)       ") and len(text.splitlines()) == 8
    assert "standard error over problems" in text


# ------------------------------------------------------------------------------ default job

def command(capsys, *argv):
    """Exit status, stdout and stderr of `python rift.py ARGV`, run in this process."""
    status = commands.main([*map(str, argv)])
    return status, *capsys.readouterr()


def test_default_job_goes_on_after_a_kill(tmp_path, capsys, monkeypatch):
    """All losses from the same start; killed and gone on with, it has the same numbers."""
    argv = ["--train-limit", 16, "--limit", 6, "--k", 2, "--batch-size", 4, "--wrong", -0.25]
    status, text, _ = command(capsys, *argv, "--out", tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())
    rows = whole["rows"]
    drawn = strict_jsonl(tmp_path / "whole" / "samples.jsonl")
    right = sum(row["reward"] == 1 for row in drawn)
    assert status == 0 and len(drawn) == 32 and {row["reward"] for row in drawn} == {1, -0.25}
    assert {row["name"]: row["steps"] for row in rows} == {
        "base model": 0, "SFT, expert solutions": 12, "RFT, same passes": math.ceil(1.5 * right / 4),
        "RFT, same steps": 12, "naive": 12, "RIFT": 12}
    assert [len(row["history"]) for row in rows] == [row["steps"] for row in rows]
    table = commands.table(rows, 2)
    assert table in text and max(map(len, table.splitlines())) <= 80
    assert rows[1]["history"][0]["n_pos"] == 4 and rows[2]["history"][0]["n_neg"] == 0
    assert rows[4]["history"][0]["loss"] != rows[5]["history"][0]["loss"]
    assert rows[3]["history"][0]["logp_pos"] == rows[2]["history"][0]["logp_pos"]
    assert (tmp_path / "whole" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert whole["settings"]["k"] == 2

    true, calls = rift.evaluate, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(*args)
    monkeypatch.setattr(rift, "evaluate", dying)
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)          # as where it is not installed
    monkeypatch.delitem(sys.modules, "figure", raising=False)
    status, _, error = command(capsys, *argv, "--out", tmp_path / "killed")
    assert status == 130 and "the same command goes on" in error and error.count("\n") == 2
    status, text, error = command(capsys, *argv, "--out", tmp_path / "killed")
    assert status == 0 and not error and "no figure: matplotlib is not installed" in text
    assert len(calls) == 4 + 3                                  # three of six rows were there
    for a, b in zip(json.loads((tmp_path / "killed" / "results.json").read_text())["rows"], rows):
        assert a | {"minutes": 0} == b | {"minutes": 0}


def test_default_job_samples_and_evaluates_in_the_dtype_of_eval(tmp_path, capsys, monkeypatch):
    dtypes = []
    for name in ("sample", "evaluate", "train"):
        def spy(model, *args, true=getattr(rift, name), name=name):
            dtypes.append((name, model.dtype))
            return true(model, *args)
        monkeypatch.setattr(rift, name, spy)
    monkeypatch.setattr(rift, "sampling_dtype", lambda device: torch.bfloat16)  # as on CUDA
    command(capsys, "--train-limit", 8, "--limit", 2, "--k", 2, "--steps", 1, "--right", 2, "--wrong",
            1, "--out", tmp_path / "demo")
    command(capsys, "eval", "--limit", 2, "--k", 2, "--out", tmp_path / "eval")
    assert {*dtypes} == {("sample", torch.bfloat16), ("evaluate", torch.bfloat16),
                         ("train", torch.float32)}


# ------------------------------------------------------------------------------ command line

def test_sample_train_eval_score_hand_over_by_files(tmp_path, capsys, monkeypatch):
    status, text, _ = command(capsys, "sample", "--problems", DATA / "valid.jsonl", "--limit", 6,
                              "--k", 2, "--out", tmp_path / "s")
    samples = tmp_path / "s" / "samples.jsonl"
    assert status == 0 and f"wrote {samples}: 12 samples" in text and "peak memory 0." in text
    argv = ["train", "--samples", samples, "--loss", "naive", "--out", tmp_path / "t",
            "--batch-size", 4, "--save-every", 2]
    status, text, _ = command(capsys, *argv)
    assert status == 0 and len(strict_jsonl(tmp_path / "t" / "metrics.jsonl")) == 5
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"run.json", "metrics.jsonl", "model"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "t" / "model").dtype == torch.float32
    with monkeypatch.context() as patch:                        # done: not trained again
        patch.setattr(rift, "train", None)
        assert command(capsys, *argv)[:2] == (0, text)
    status, text, _ = command(capsys, "eval", "--model", tmp_path / "t" / "model", "--limit", 4,
                              "--k", 2, "--out", tmp_path / "e")
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert status == 0 and "this model" in text and results["all"]["n"] == 4
    status, text, _ = command(capsys, "score", "--samples", samples, "--right", 3, "--wrong", -2,
                              "--out", tmp_path / "r")
    pairs = [*zip(strict_jsonl(samples), strict_jsonl(tmp_path / "r" / "samples.jsonl"))]
    assert all(new["reward"] == (3.0 if old["reward"] == 1.0 else -2.0) for old, new in pairs)
    share = statistics.fmean(old["reward"] == 1 for old, _ in pairs)
    assert f"12 samples, {share:.1%} right" in text


def test_samples_made_elsewhere_train_and_score_as_they_are(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", {"prompt": "7+8=", "response": "15", "reward": 0.7},
                 {"question": "7+8=?", "completion": "16", "reward": -3, "answer": "15"})
    assert command(capsys, "train", "--samples", path, "--out", tmp_path / "t")[0] == 0
    [step, _] = strict_jsonl(tmp_path / "t" / "metrics.jsonl")
    assert (step["n_pos"], step["n_neg"], step["tokens"]) == (1, 1, 6)
    row = {"question": "7+8=?", "completion": "15", "answer": "15", "line": 3}
    path = write(tmp_path / "y.jsonl", row)
    assert command(capsys, "score", "--samples", path, "--out", tmp_path / "r")[0] == 0
    [scored] = strict_jsonl(tmp_path / "r" / "samples.jsonl")
    assert scored == row | {"problem": "7+8=?", "response": "15", "reward": 1.0}


def test_notes_on_rewards_and_on_unknown_characters(tmp_path, capsys):
    rows = [GOOD, GOOD | {"problem": "7x8=?"}, GOOD | {"response": "fünf"}, GOOD | {"reward": 0}]
    path = write(tmp_path / "x.jsonl", *rows)
    for loss, negative, noted in (("rift", 0, 1), ("topr", 0, 1), ("rft", 0, 0), ("rift", -1, 0)):
        path = write(tmp_path / "x.jsonl", *rows, GOOD | {"reward": negative, "logp": -1.0})
        path = write(tmp_path / "x.jsonl", *[row | {"logp": -1.0} for row in rift.read_jsonl(path)])
        text = command(capsys, "train", "--samples", path, "--loss", loss, "--out",
                       tmp_path / f"{loss}{negative}")[1]
        assert text.count("no reward is below 0") == noted == text.count("rift.py score --samples")
        assert text.count("note: 2 of 5 rows") == 1
    assert "note: 2" not in command(capsys, "score", "--samples", path, "--out", tmp_path / "s")[1]


@pytest.mark.parametrize("rows, argv, message", [
    ([], "train --samples FILE", "empty"),
    (["{"], "train --samples FILE", ":1: not a JSON object"),
    ([{"problem": "x"}], "train --samples FILE", "`response` or `completion` must be text"),
    ([GOOD | {"reward": 0}], "train --samples FILE", "nothing to learn from"),
    ([GOOD | {"reward": -1}], "train --loss rft --samples FILE", "nothing to learn from"),
    ([GOOD | {"reward": -1}], "train --loss topr --samples FILE", ":1: topr needs `logp`"),
    ([LONG], "train --samples FILE", ":1: 129 tokens"),
    ([LONG | {"problem": "1" * 128}], "sample --problems FILE", ":1: 137 tokens"),
    ([LONG | {"problem": "1" * 128}], "sample --skip-unfit --problems FILE", ""),
    ([GOOD], "--problems FILE", "`solution` must be text"),
    ([{"response": "x"}], "score --samples FILE", "`prompt` or `problem` or `question` must be"),
    ([GOOD | {"answer": None}], "score --samples FILE", "`answer` or `solution` must be"),
    ([GOOD], "train", "required: --samples"),
    ([GOOD], "train --samples no-such-file", "no-such-file: cannot be read"),
    ([GOOD], "train --samples FILE --model data/no-such-folder", "no-such-folder: no folder or hub"),
    ([GOOD], "train --samples FILE --model BROKEN", "no folder or hub name of a model that loads"),
    ([GOOD], "train --samples FILE --device nonsense", "a model that loads on nonsense"),
    ([GOOD], "train --samples FILE --frobnicate 3", "unrecognized arguments: --frobnicate 3"),
    ([GOOD], "train --samples FILE --k 4", "unrecognized arguments: --k 4"),
    ([GOOD], "train --samples FILE --seed 1 2", "unrecognized arguments: 2"),
    ([GOOD], "--wrong -0.5 sample", "a command comes before its flags"),
    ([GOOD], "train --samples FILE --loss rfit", "--loss: invalid choice"),
    ([GOOD], "train --samples FILE --template x", "has no {problem} in it"),
    ([GOOD], "fit --samples FILE", "no command 'fit'"),
    ([GOOD], "train --samples FILE --batch-size 0", "--batch-size 0: must be from 1"),
    ([GOOD], "train --samples FILE --warmup 5", "--warmup 5.0: must be from 0 to 1"),
    ([GOOD], "sample --k 0", "--k 0: must be from 1"),
    ([GOOD], "sample --top-p 2", "--top-p 2.0: must be from 0 to 1"),
    ([GOOD], "train --samples FILE --lr nan", "--lr nan: must be"),
    ([GOOD], "train --samples FILE --lr -1", "--lr -1.0: must be"),
    ([GOOD], "--epochs inf", "--epochs inf: must be"),
    ([GOOD], "sample --wrong=-inf", "--wrong -inf: must be"),
    ([GOOD], "sample --seed 36893488147419103232", "--seed 36893488147419103232: must be"),
    ([GOOD], "sample --seed -1", "--seed -1: must be")])
def test_mistakes_end_with_one_line_and_nothing_written(
        tmp_path, capsys, monkeypatch, rows, argv, message):
    shutil.copytree(TINY, tmp_path / "BROKEN")
    os.truncate(tmp_path / "BROKEN" / "model.safetensors", 9999)
    path = write(tmp_path / "FILE", *rows)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for out in ("out", "empty"):
        status, _, error = command(capsys, *argv.split(), "--out", out)
        assert status == 2 and message in error and error.startswith("rift.py: error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists() and path
        assert not (tmp_path / "empty").exists() or not os.listdir("empty")


def test_a_folder_is_left_alone_if_it_is_no_run_or_another(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "x.jsonl", GOOD)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    argv = ["train", "--samples", path, "--steps", 2]
    assert command(capsys, *argv, "--out", tmp_path / "run")[0] == 0
    before = weights_file = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(rift, "load_model", None)               # it is said before the model loads
    for out, more, message in (
            ("mine", [], "is not empty and not a run of rift.py"), ("x.jsonl", [], "not a run of"),
            ("x.jsonl/y", [], "Not a directory"),
            ("run", ["--lr", 1], "holds another run's results (lr 0.0003 -> 1.0)"),
            ("run", ["--model", tmp_path / "run" / "model"], "another run's results (model ")):
        status, _, error = command(capsys, *argv, *more, "--out", tmp_path / out)
        assert status == 2 and message in error and error.count("\n") == 1
    write(tmp_path / "x.jsonl", GOOD, GOOD)                     # the same name, another file
    status, _, error = command(capsys, *argv, "--out", tmp_path / "run")
    assert status == 2 and "another run's results (samples " in error
    for text in ("{", "[1]", "", "7"):
        (tmp_path / "run" / "run.json").write_text(text)
        status, _, error = command(capsys, *argv, "--out", tmp_path / "run")
        assert status == 2 and "run.json" in error and error.count("\n") == 1
    assert weights_file == (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


def test_a_file_is_not_read_whole_to_hash_it(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 2 ** 16)   # 16 MB
    tracemalloc.start()
    found = commands.digest(tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hashlib.sha256(bytes(range(256)) * 2 ** 16).hexdigest().startswith(found)
    assert len(found) == 16 and peak < 2 ** 22


def test_a_disk_that_is_full_when_the_model_is_saved(tmp_path, capsys, monkeypatch):
    """One line; the same command, later, goes on from the checkpoint and deletes it."""
    argv = ["train", "--samples", write(tmp_path / "x.jsonl", *buffer()), "--steps", 3,
            "--save-every", 1, "--out", tmp_path / "t"]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
        status, _, error = command(capsys, *argv)
    assert status == 2 and "No space left" in error and error.count("\n") == 1
    assert (tmp_path / "t" / "checkpoint.pt").exists() and not (tmp_path / "t" / "model").exists()
    monkeypatch.setattr(rift, "add_gradient", None)             # nothing is left to train
    assert command(capsys, *argv)[0] == 0 and (tmp_path / "t" / "model").exists()
    assert not (tmp_path / "t" / "checkpoint.pt").exists()


def test_the_dtype_that_was_stored_is_saved_and_training_is_in_float32(
        tmp_path, capsys, monkeypatch):
    model, tokenizer = rift.load_model(TINY, "cpu", torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    true, dtypes = rift.train, []
    monkeypatch.setattr(rift, "train", lambda model, *rest: (
        dtypes.append(model.dtype), true(model, *rest)))
    path = write(tmp_path / "x.jsonl", *buffer())
    assert command(capsys, "train", "--model", tmp_path / "half", "--samples", path, "--lr", 0.01,
                   "--out", tmp_path / "t")[0] == 0
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "t" / "model", dtype="auto")
    assert dtypes == [torch.float32] and saved.dtype == torch.bfloat16
    assert not torch.equal(saved.lm_head.weight, model.lm_head.weight)


def test_a_hub_name_whose_first_part_is_a_folder_here(tmp_path, capsys, monkeypatch):
    (tmp_path / "Qwen").mkdir()
    monkeypatch.chdir(tmp_path)
    for loader in (rift.AutoTokenizer, rift.AutoModelForCausalLM):
        def load(name, *args, true=loader.from_pretrained, **kwargs):
            assert name in ("Qwen/x", "Qwen/y/x")
            return true(TINY, *args, **kwargs)
        monkeypatch.setattr(loader, "from_pretrained", load)
    argv = ["sample", "--limit", 1, "--k", 1, "--out", "out", "--model"]
    assert command(capsys, *argv, "Qwen/x")[0] == 0
    assert "another run's results (model" in command(capsys, *argv, "Qwen/y/x")[2]


def test_a_stopped_training_says_so_again(tmp_path, capsys):
    """A learning rate of 1e8 overflows; its rerun must not look like a success."""
    path = write(tmp_path / "x.jsonl", *buffer())
    for _ in range(2):
        status, _, error = command(capsys, "train", "--samples", path, "--out", tmp_path / "t",
                                   "--lr", 1e8, "--steps", 5, "--warmup", 0)
        assert status == 2 and "is not finite" in error and error.count("\n") == 1
    assert (tmp_path / "t" / "model" / "model.safetensors").exists()
    assert "stopped" in strict_jsonl(tmp_path / "t" / "metrics.jsonl")[-1]


def test_flags_and_help(capsys, monkeypatch):
    quick = commands.parse(["--quick", "--k", "2", "--train-limit", "7"])
    assert (quick.k, quick.train_limit, quick.limit, quick.out) == (2, 7, 100, "runs/quick")
    quick = commands.parse(["--limit", "300", "--out", "x", "--quick"])
    assert (quick.k, quick.train_limit, quick.limit, quick.out) == (4, 100, 300, "x")
    config = commands.parse(["train", "--samples", "x", "--gradient-checkpointing", "--wrong=-1"
                             ][:4])
    assert config.gradient_checkpointing and config.samples == "x" and config.lr == 3e-4
    monkeypatch.setenv("COLUMNS", "80")
    for name, (cls, _) in commands.COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            commands.main([name, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and max(map(len, text.splitlines())) <= 80
        for field in dataclasses.fields(cls):
            assert (f"--{field.name.replace('_', '-')}" in text) is field.init


@pytest.mark.parametrize("package, version, old", [
    ("transformers", "4.57.1", True), ("transformers", "5.0.0", False), ("transformers", "5.17", False),
    ("torch", "2.7.1+cu128", True), ("torch", "2.8.0", False), ("torch", "2.11", False)])
def test_versions_that_are_too_old_are_named(monkeypatch, package, version, old):
    monkeypatch.setattr(getattr(commands, package), "__version__", version)
    message = ""
    try:
        commands.check_versions()
    except UserError as error:
        message = str(error)
    assert message.startswith(f"{package} {version} is too old: needs torch 2.8 and") is old


def test_ctrl_c_during_the_imports_and_after_ends_without_a_traceback(
        tmp_path, capsys, monkeypatch):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run([sys.executable, str(HERE / "rift.py")], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == -signal.SIGINT and not done.stderr
    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(rift, "read_problems", interrupt)
    status, _, error = command(capsys, "sample", "--out", tmp_path / "out")
    assert status == 130 and "goes on" in error


# ------------------------------------------------------------------------------ model families

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
PROMPTS = [[7], [30, 8, 51], [11, 44, 23, 5, 38, 40, 9]]
SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0,
       "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
           "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
SSM = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
       "mamba_chunk_size": 16}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
HYBRIDS = {
    "qwen3_5_text": LINEAR | {"linear_num_value_heads": 4},
    "qwen3_next": LINEAR | EXPERTS | {"linear_num_value_heads": 4,
                                      "shared_expert_intermediate_size": 24},
    "olmo_hybrid": LINEAR | {"linear_num_value_heads": 2},
    "jamba": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
                        "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention"], "head_dim": 8,
                   "mamba_head_dim": 16, "mamba_num_heads": 4, "ssm_state_size": 8,
                   "n_groups": 1, "chunk_size": 16},
    "granitemoehybrid": SSM | EXPERTS | {"layer_types": ["mamba", "attention"],
                                         "shared_intermediate_size": 24, "logits_scaling": 3.0},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "bamba": SSM | {"attn_layer_indices": [1]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 4,
               "mamba_headdim": 16, "mamba_ngroups": 1, "attention_head_dim": 16,
               "num_mem_blocks": 1, "adapter_rank": 4, "use_mem_rope": True, "chunk_size": 16,
               "time_step_min": 1e-9},      # transformers clamps at it in only one of two forms
    "falcon_h1": SSM | {"head_dim": 8, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}}
REFUSED = {                                 # their caches are their own
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 6, "logits_soft_cap": 5.0,
                        "block_types": ["recurrent", "attention"], "head_dim": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64}, "minimax": LINEAR | EXPERTS}
ATTENTION = {
    "llama": {}, "qwen2": {"tie_word_embeddings": True}, "qwen3": {"head_dim": 8}, "olmo2": {},
    "mistral": {"sliding_window": 5}, "phi3": {}, "gpt2": GPT, "gpt_neox": {}, "bloom": GPT,
    "phi": {}, "mixtral": EXPERTS, "cohere": {}, "cohere2": WINDOW | {"logit_scale": 0.25},
    "gemma2": WINDOW | {"head_dim": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": WINDOW | {"head_dim": 8}, "smollm3": {"no_rope_layers": [1, 0]},
    "granite": {"logits_scaling": 3.0}, "qwen3_moe": EXPERTS | {"head_dim": 8},
    "gpt_oss": WINDOW | EXPERTS | {"head_dim": 8},
    "deepseek_v3": EXPERTS | {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
                              "qk_rope_head_dim": 4, "v_head_dim": 8, "n_group": 1,
                              "topk_group": 1, "num_key_value_heads": 4},
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4,
                    "attention_chunk_size": 6, "no_rope_layers": [1, 0], "moe_layers": [1]}}
NOT_PLAIN = "granite granitemoehybrid falcon_h1 cohere cohere2 gemma2 recurrent_gemma".split()
every_family = pytest.mark.parametrize("family", [*HYBRIDS, *REFUSED, *ATTENTION])

@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                # several are far slower on a busy machine
    yield
    torch.set_num_threads(threads)

def tiny_model(family, dtype):
    """A random model; its experts run one by one, because grouped ones have no float64."""
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(family, **SMALL | (HYBRIDS | REFUSED | ATTENTION)[family])
    except Exception as error:              # each version has its own class for a bad setting
        assert VERSION < (5, 15), error
        pytest.skip(f"transformers {transformers.__version__} has no such {family}")
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

@torch.no_grad()
def greedy_alone(model, prompt, stop, n_tokens):
    """The greedy response to one prompt, by a forward pass over all of it for every token."""
    response = []
    while len(response) < n_tokens and response[-1:] != [stop]:
        ids = torch.tensor([prompt + response])
        response.append(model(input_ids=ids, use_cache=False).logits[0, -1].argmax().item())
    return response

@every_family
def test_samples_and_saved_folder(family, tmp_path, one_thread):
    model, ids = tiny_model(family, torch.float32), torch.tensor(PROMPTS[-1:])
    if family != "recurrent_gemma" or VERSION > (5, 3):         # transformers loaded it wrongly
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        torch.testing.assert_close(again(ids, use_cache=False).logits,
                                   model(ids, use_cache=False).logits)
    config = rift.Sampling(k=2, temperature=0.0, max_new_tokens=8)
    if not rift.keeps_cache(model):
        assert family in REFUSED or family in HYBRIDS and VERSION < (5, 15)
        with pytest.raises(rift.UserError, match="transformers"):
            rift.sample(model, None, [], config)
        return
    stop = greedy_alone(model, PROMPTS[1], None, 3)[-1]         # its rows leave the batch first
    expected = [greedy_alone(model, prompt, stop, 8) for prompt in PROMPTS for _ in range(2)]
    found, _ = rift.generate(model, PROMPTS, [stop], 60, config, None)
    assert found == expected

@every_family
def test_logps_and_gradients(family, monkeypatch, one_thread):
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", 60 * 4)         # chunks of four rows
    model = tiny_model(family, torch.float64)
    assert rift.plain_head(model) == (family not in NOT_PLAIN)
    model.train()
    batch = rift.collate([rift.Example({}, prompt, [9, 33, 21, 50, 2]) for prompt in PROMPTS[1:]],
                         model.device)
    where, targets = batch["mask"][:, 1:], batch["input_ids"][:, 1:]
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    full = -F.cross_entropy(logits.logits[:, :-1][where], targets[where], reduction="none")
    logps = rift.response_logps(model, **batch)[where]
    error = 1e-9 if full.dtype == torch.float64 else 1e-4       # Mamba's logits are in float32
    torch.testing.assert_close(logps, full, rtol=error, atol=error, check_dtype=False)
    weights, parameters = torch.linspace(-1, 2, len(full)), list(model.parameters())
    found, expected = (torch.autograd.grad(values @ weights.to(values), parameters,
                                           allow_unused=True) for values in (logps, full))
    for gradient, right in zip(found, expected):
        if right is not None:
            torch.testing.assert_close(gradient, right, rtol=error, atol=error)


# --------------------------------------------------------------------------- the checker

# by form: answer ~ gold ;; ...  Every pair is tried both ways round. ⏎ is a line break.
ACCEPT = r"""
units: 5 \mathrm{~m} / \mathrm{s} ~ 5 ;; 12 apples, 3 pears ~ 12, 3 ;; 3 million ~ 3{,}000{,}000
    70 miles per hour ~ 70 ;; 5\,\mathrm{m/s} ~ 5 ;; 3\sqrt2cm ~ 3\sqrt2 ;; 30° ~ 30 degrees
    2516_8 ~ 2516 ;; about 5 ~ 5 ;; €5 ~ 5
numbers: 11,\! 234,\! 567 ~ 11234567 ;; 12,345,678 ~ 12345678 ;; $5$. ~ 5 ;; 12{,}345 ~ 12345
    \textbf{(7)} ~ 7 ;; 3+4=7 ~ 7 ;; −3 ~ -3 ;; 0.30000000000000004 ~ 0.3
    0.\overline{3} ~ \frac13 ;; 0.1\overline{6} ~ 1/6 ;; 2. ~ 2 ;; 0.3333333333 ~ 1/3
    0.6666666 ~ 2/3 ;; -\frac{3}{4} ~ \frac{3}{-4} ;; -2\frac13 ~ -\frac73 ;; \\frac{3}{4} ~ 3/4
    2\frac32 ~ 3 ;; 1\frac12 ~ 3/2 ;; 1 1/2 ~ 1.5 ;; 3:4 ~ 6:8 ;; \sqrt3\sqrt2-\sqrt6 ~ 0
    \sin 30^\circ ~ \frac12 ;; 2sqrt(3) ~ \sqrt{12} ;; √3 ~ \sqrt3 ;; 2^{9999} ~ 2^{9999}
    \tan^{-1}1 ~ \pi/4 ;; \sqrt[3]{-8} ~ -2 ;; \binom{5}{2} ~ 10 ;; 5\mathrm{i} ~ 5i
    \sqrt{-4} ~ 2i ;; e^{i\pi} ~ -1 ;; \log_2 8 ~ 3 ;; ||-3|-1| ~ 2 ;; |{-3}| ~ 3
expressions: \lfloor n/2\rfloor+1 ~ 1+\lfloor n/2\rfloor ;; \frac{x+2}{7} ~ \frac{x}{7}+\frac27
    \frac{x^2-1}{x-1} ~ x+1 ;; 2\cdot3^{n-1} ~ \frac{2}{3}3^n ;; \sin(2x) ~ 2\sin x\cos x
    \sin^{-1}x ~ \arcsin x ;; (-1)^{n+1} ~ -(-1)^n ;; e^{2\ln x} ~ x^2
names: x=\frac\pi2\approx1.57 ~ \frac\pi2 ;; p=5,q=2,p=7,q=2 ~ p=7,q=2;p=5,q=2 ;; \text{Area}=6 ~ 6
    \angle ABC=30^\circ ~ 30 ;; f^{-1}(x)=x+1 ~ x+1 ;; x\in\{1,2\} ~ x=1,2 ;; x=1, x=2 ~ 1, 2
    x=y=1 ~ x=1,y=1 ;; x=\pm 2 ~ 2,-2 ;; A:B=2 ~ 2 ;; 5=x ~ x=5 ;; x=5 ~ 5
    x^2/4+y^2=1 ~ x^2+4y^2=4 ;; 2x+4y=6 ~ x+2y-3=0 ;; x \ne 3 ~ x != 3
intervals: x<1\text{ or }x>2 ~ (-\infty,1)\cup(2,\infty) ;; [2,+\infty) ~ \left[2,\infty\right)
    \{-1\}\cup[0,7) ~ [0,7)\cup\{-1\} ;; f(1)<f(2)<f(3) ~ f(3)>f(2)>f(1) ;; x\in[1,2) ~ 1<=x<2
    \{x\mid x>2\} ~ (2,\infty) ;; -2 \\le x \\le 7 ~ [-2,7] ;; 2(x-1)>4 ~ x-3>0 ;; 7>x>3 ~ 3<x<7
lists: \{1\pm\sqrt2,3\} ~ 3,1-\sqrt2,1+\sqrt2 ;; x=1\pm\sqrt2,5 ~ 5,1+\sqrt2,1-\sqrt2
    (1,2),(3,4) ~ (3,4),(1,2) ;; 19, 46, and 82 ~ 82,46,19 ;; \pm1,\pm2 ~ 1,-1,2,-2
    \emptyset ~ \{\} ;; \{1,2\} ~ 2,1 ;; \frac12\begin{bmatrix}2\\4\\\end{bmatrix} ~ (1,2)
    \langle1,2\rangle ~ (1,2)
    \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]
    \begin{pmatrix}1\\2\end{pmatrix} ~ (1,2)
words: It is a Square ~ it is a square ;; 4:30 p.m. ~ 4\!:\!30\text{ pm} ;; \text{even} ~ Even
    No solution ~ no solution. ;; \textbf{(C)} 7 ~ C ;; (C) ~ C"""
REJECT = r"""
numbers: \frac1{2004!} ~ \frac1{2006!} ;; \sqrt{10^{200}} ~ 10^{100}+1 ;; 1\frac12 ~ \frac{11}{2}
    2^{9999} ~ 2^{9998} ;; 2.9999999 ~ \sqrt9 ;; \pi ~ \frac{22}7 ;; 120006 ~ 120000
    9.9999999 ~ 10 ;; \log 2 ~ \ln 2 ;; 1:2:3 ~ 1:6:1 ;; 0.333 ~ 1/3 ;; 50% ~ 0.5 ;; 1-1/e ~ 1
    1,2 ~ 12
expressions: \lfloor n/5\rfloor ~ \lfloor n/6\rfloor ;; \sum_{k=1}^nk ~ \sum_{k=1}^mk ;; 2^3^2 ~ 64
    (a+5)(b+2) ~ (+5)(b+2) ;; 5\mathrm{i} ~ 5 ;; \sin(\pi n) ~ 0 ;; x ~ \sqrt{x^2}
    I(0)e^{-t} ~ 0 ;; \vec a ~ a ;; 2^x ~ x^2 ;; abc ~ 3 ;; 5m ~ 5
names: p=5,q=2,p=7,q=3 ~ p=5,q=3,p=7,q=2 ;; x=1,y=2 ~ x=2,y=1 ;; x=1,y=2 ~ 2,1 ;; x+y<1 ~ -x-y<-1
    x+y<1 ~ x+y\le1 ;; 2x>2 ~ -2x>-2 ;; 3x+4 ~ 3x+4=0 ;; x=y=1 ~ x=1 ;; 0x=0 ~ 0y=1 ;; x>5 ~ x>=5
    x+z=1 ~ 1
structures: \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix}1&2\\3&5\end{pmatrix}
    \begin{pmatrix}1&2\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix}
    (A,B)=(-6,10) ~ x\in(-6,10) ;; 1\pm\sqrt2 ~ 1+\sqrt2 ;; \{1,2\} ~ (1,2) ;; [0,9) ~ (0,9)
    1,2,2 ~ 1,1,2 ;; \emptyset ~ 5 ;; 0^0 ~ 1 ;; -[0,1) ~ 1
words: it is so ~ it is not so ;; \textbf{(C)} 7 ~ 8 ;; 4:30 pm ~ 4:30 am ;; 2:15 ~ 4:30 ;; 5+ ~ 5
    (A)(B) ~ A ;; no ~ 0"""
EXTRACT = r"""
    The answer is $x = 3.5$. I hope it is correct. ~ x = 3.5 ;; about 5 million people ~ 5 million
    \boxed{\text{a } \boxed{5}} ~ \text{a } \boxed{5}
    \boxed{5}, no: the final answer is $6$. ~ 6 ;; the answer is $1$ or $2$. ~ 1 or 2
    I have $5 and spend $2, so $3 is left ~ 3 ;; \boxed{1} papers, \boxed{2} bins ~ 1, 2
    \boxed{5}. The answer is 3 times 2. ~ 5 ;; <think>\boxed{1}</think> It is 2. ~ 2
    the answer is B because 3 > 2 ~ B ;; $f(x)$ is 19. ~ 19 ;; \boxed{5} and then \boxed{6 ~ 5
    the answer is:⏎$$⏎5⏎$$ ~ 5 ;; so \(x=1\), \(x=2\) ~ x=1, x=2 ;; at 4:30 p.m. today ~ 4:30 p.m
    #### 1,234 apples ~ 1,234 ;; A. Because B is wrong ~ A ;; 6*7=42⏎#### 42 ~ 42"""

# whole responses by kind: response ~ gold.  □ stands for a box around all that follows.
RIGHT = r"""
prose: we get \frac{5}{7} in the end ~ 5/7 ;; so 3\sqrt{7} in total ~ 3\sqrt7
    it is 2^9 ways ~ 512 ;; y = kx + 4 ~ kx+4 ;; 3ab ~ 3ab ;; 2 3/4 cups ~ 11/4
    7 x 10^2 meters ~ 700 ;; It is minus 8. ~ -8 ;; f(x) = x^2 + 3 ~ x^2+3
    There are 3 * 6 = 18 eggs. ~ 18 ;; the point is (2, 9). ~ (2,9) ;; x = 4 or x = 6 ~ 4, 6
    It is 6 m. ~ 6\text{ m} ;; **14** ~ 14 ;; not it's not 20 it's 1,300.5m² ~ 1300.5
    The answer is not 15 but 16. ~ 16 ;; The answer is 16, not 15. ~ 16
    about 7 million people ~ 7000000 ;; twenty-one (21) ~ 21
units: □14\text{ red hats} ~ 14 ;; □6\text{ square centimetres} ~ 6\text{ cm}^2
    □9\text{ km per hour} ~ 9\,\mathrm{km/h} ;; □4\text{ h} ~ 4\text{ hours} ;; □1\text{ pear} ~ 1
    □6\ \mathrm{kg\cdot m/s^2} ~ 6 ;; □8\text{ units} ~ 8\text{ cm} ;; □6\text{ million} ~ 6000000
    □3\text{ dozen} ~ 36 ;; □6\text{ squared} ~ 36 ;; □\$2.50 ~ 2.5\text{ dollars}
    □3\text{ times} ~ 3 ;; □8\text{ miles per hour} ~ 8\text{ mph}
structures: □x>2\text{ and }x<6 ~ (2,6) ;; □-x>-4 ~ x<4 ;; □3x-2>7 ~ (3,\infty)
    □|x|\le 5 ~ [-5,5] ;; □x\ne 6 ~ (-\infty,6)\cup(6,\infty) ;; □\{1,4\}\cup\{6\} ~ \{1,4,6\}
    □300,400 ~ 300, 400 ;; □300, 400 ~ 300,400 ;; □a+b=41 ~ 41 ;; Answer: m+n = 30+11 = 41 ~ 41
    □\frac{dy}{dx}=3x ~ \dfrac{dy}{dx}=3x ;; □\max(4,9) ~ 9 ;; □\min\{4,9\} ~ 4 ;; □\gcd(8,12) ~ 4
    □\operatorname{lcm}(4,6) ~ 12 ;; □\lfloor 6.9\rfloor ~ 6
spelling: □\text{31 apples} ~ 31 ;; □¾ ~ 3/4 ;; □x⁴ ~ x^4 ;; □10⁻² ~ 10^{-2} ;; □1，4 ~ 1,4
    □\color{red}{6} ~ 6 ;; □\text{Answer: }\boxed{6} ~ 6 ;; □6\\ ~ 6 ;; □\text{No.} ~ no
    □\sum_{k=1}^{n} k ~ \sum_{k=1}^n k
choices: 5 is too big, so **C**. ~ C ;; □(C) 21 ~ C ;; □(C) 21 ~ 21 ;; □D: the text ~ D
    I pick D — it fits. ~ D ;; \boxed{a \ll b}⏎**Answer: C** ~ C ;; Answer: d ~ D
    The correct option is C. ~ C
announced: <answer>31</answer> ~ 31 ;; {"answer": 31} ~ 31 ;; {"answer": "31"} ~ 31
    Antwort: D ~ D ;; 答案是31。 ~ 31 ;; Ответ: 31 ~ 31 ;; الجواب هو 31 ~ 31
    <think>\boxed{2}</think><answer>so 31.</answer> ~ 31"""
WRONG = r"""
fragments: we get \frac{5}{7} in the end ~ 7 ;; so 3\sqrt{7} in total ~ 7 ;; it is 2^9 ways ~ 9
    y = kx + 4 ~ 4 ;; 3ab ~ 3 ;; 2 3/4 cups ~ 3/4 ;; 7 x 10^2 meters ~ 7 ;; minus 8 ~ 8
    5 out of 8 ~ 8 ;; the square root of 7 ~ 7 ;; 6 feet 2 inches ~ 2 ;; 5 halves ~ 5
    7 mod 9 ~ 9 ;; 4 and a half ~ 4 ;; 4 more than 9 ~ 9 ;; 3 quarters of 8 ~ 8
    the answer is - 6 ~ 6
hedges: either 14 or 15 ~ 15 ;; it could be 13, 14 or maybe 15 ~ 15 ;; the answer is not 15 ~ 15
    Answer: maybe 14 or 15 ~ 15 ;; It might be 15. ~ 15 ;; I don't think the answer is 15. ~ 15
    Is it 15? ~ 15 ;; at least 15 ~ 15 ;; 15 or so ~ 15 ;; It is 14. Or 15. ~ 15
    15 is wrong ~ 15 ;; 15 if n is odd ~ 15 ;; if n is odd, 14; otherwise 15 ~ 15
    Answer: A, B ~ A ;; Answer: 13, 14, and possibly 15 ~ 14 ;; \boxed{14} or \boxed{15} ~ 15
words: □15\text{ or 16} ~ 15 ;; □15\text{ or more} ~ 15 ;; □6\text{ if n is odd, 7 otherwise} ~ 6
    □6\text{ is wrong} ~ 6 ;; □14\text{ (or 15)} ~ 14 ;; □6\text{ feet 2 inches} ~ 6
    □6\text{ cubed} ~ 6 ;; □5\text{ halves} ~ 5 ;; □9\text{ hundredths} ~ 9
    □6\text{ trillion} ~ 6 ;; □9\text{ tens} ~ 9 ;; □3\text{ dozen} ~ 3 ;; □\text{not }6 ~ 6
    □6\text{ maybe} ~ 6 ;; □15\text{ dollars and 20 cents} ~ 15 ;; □\text{at least }6 ~ 6
    □6\text{ times }2 ~ 6 ;; □6\text{ blue} ~ 6
units: □6\text{ m} ~ 6\text{ cm} ;; □6\text{ cm}^3 ~ 6\text{ cm}^2
    □6\text{ minutes} ~ 6\text{ hours} ;; □6\text{ pears} ~ 6\text{ plums} ;; □\$6 ~ 6\text{ cents}
    □4\sqrt3\text{ m} ~ 4\sqrt3\text{ cm} ;; □6\text{ radians} ~ 6^\circ
    It is 6 m. ~ 6\text{ cm}
operators: □a\circ b ~ b\circ a ;; □x\int dx ~ \int x dx ;; □k\sum_{k=1}^n 1 ~ \sum_{k=1}^n k
    □x\int_0^1 dx ~ \int_0^1 x dx ;; □\frac{d}{dx}x^2 ~ x ;; □\frac{dy}{dx}x ~ y
    □a\lim_{x\to 0} x ~ \lim_{x\to 0}ax ;; □6\mid 7 ~ 6
structures: □x<-2\text{ and }x>3 ~ (-\infty,-2)\cup(3,\infty) ;; □x<2\text{ and }x>6 ~ (6,2)
    □x>2\text{ or }x<6 ~ (2,6) ;; □-x<-4 ~ x<4 ;; □x\ge2\text{ and }x<6 ~ (2,6) ;; □-x\ge -4 ~ x<4
    □|x|<5 ~ [-5,5] ;; □x\ne 6 ~ 6 ;; □-y>-4 ~ x<4 ;; □x^2<1 ~ x<1 ;; □x<1\text{ and }x<6 ~ x<6
    □300, 400 ~ 300400 ;; □(300,400) ~ 300400 ;; □x+z=41 ~ 41 ;; □2m=41 ~ 41
    Answer: m+n = 30+11 = 41 ~ 30 ;; □\max(4,9) ~ 4 ;; □\lfloor 6.9\rfloor ~ 7
    □\gcd(n,6) ~ \gcd(n,3)
spelling: □x⁴ ~ x4 ;; □β ~ b ;; □\color{6}{7} ~ 6 ;; □\sum_{k=1}^{2}5 ~ \sum_{k=1}^{25}
choices: □(C) 21 ~ B ;; □(C) 21 ~ 22 ;; □(A)(B) ~ A ;; The answer is D. Note that B is not. ~ B
announced: <answer>31</answer> ~ 3 ;; Ответ: 31, not 32 ~ 32"""

def _pairs(table):
    lines = [re.sub("^[a-z ]+:", "", line) for line in table.strip().splitlines()]
    return [tuple(pair.strip().replace("⏎", "\n").split(" ~ ")) for line in lines
            for pair in line.split(";;") if " ~ " in pair]


CASES = [(*pair, True) for pair in _pairs(ACCEPT)] + [(*pair, False) for pair in _pairs(REJECT)]
RESPONSES = [(re.sub("^□(.*)", r"\\boxed{\1}", response), gold, want)
             for table, want in ((RIGHT, True), (WRONG, False)) for response, gold in _pairs(table)]


@pytest.mark.parametrize("answer, gold, want", CASES)
def test_is_equiv(answer, gold, want):
    assert is_equiv(answer, gold) is is_equiv(gold, answer) is want
    assert is_equiv(answer, answer) and is_equiv(gold, gold)


@pytest.mark.parametrize("response, want", _pairs(EXTRACT))
def test_extract_answer(response, want):
    assert extract_answer(response) == want


@pytest.mark.parametrize("response, gold, want", RESPONSES)
def test_math_reward_by_kind(response, gold, want):
    assert math_reward(response, gold) is want


def test_math_reward():
    assert math_reward("#### 18", "9 + 9 = 18\n#### 18") and not math_reward("#### 19", "#### 18")
    assert not math_reward("", "5") and not is_equiv("", "5") and not is_equiv("5", "")
    assert extract_answer("") is extract_answer(" \n ") is extract_answer("no idea" * 20) is None
    assert extract_answer(r"\boxed{1}" + " blah" * 5000 + " so 7") == "7"
    assert not is_equiv("(" * 40 + "x" + ")" * 40, "x") and not is_equiv("600!", "600\\cdot599!")


@pytest.mark.parametrize("response, want", [
    ("3*4 = 12, then I will", None), (r"\boxed{12} and", "12"), (r"so \boxed{12", None),
    ("#### 12", None), ("The answer is 12. Then", None), ("The final answer is 12. Then", "12"),
    ("The final answer is $12$", "12"), ("The final answer is 12", None),
    ("The final answer is 3.", None), ("<answer>12</answer>", "12"), ("<answer>12", None)])
def test_a_response_that_was_cut_off_needs_a_complete_answer(response, want):
    assert extract_answer(response, truncated=True) == want
    assert math_reward(response, "12", truncated=True) is (want is not None)
    assert extract_answer(response, truncated=False) is not None


GOLDS = r"""\frac{13}{4} ~ 2\sqrt{13} ~ 2^{13} ~ 2 3/14 ~ mx + 13 ~ 3xy ~ 5 \times 10^{13} ~ 4\pi
    -13 ~ 13! ~ 13/14 ~ \frac{\sqrt{13}}{14} ~ x^2 + 13x ~ \log_{2} 13 ~ (13, 14) ~ 13, 14
    \sqrt[3]{13} ~ 13 - 4i ~ \binom{13}{2} ~ [13, 14) ~ x > 13 ~ e^{13} ~ f(13) ~ 13:14 ~ 13.14 ~ \frac{x+13}{y}
    2 \cdot 13^n ~ \sin 13 ~ |x| < 13"""
SENTENCES = ["The answer is {}.", "So we get {} in the end", "Hence {} is the total.",
             r"\boxed{{{}}}", "That makes ${}$ in all.", "Final answer: {}", "{}"]


@pytest.mark.parametrize("gold", re.split(r" ~ |\n *", GOLDS))
def test_no_part_of_an_answer_is_taken_for_it(gold):
    parts = {gold[i:j] for i, j in itertools.combinations(range(len(gold) + 1), 2)}
    for part, sentence in itertools.product(sorted(parts), SENTENCES):
        if re.search(r"\w", part) and not is_equiv(part, gold):     # "13 , 14" is the same list
            assert not math_reward(sentence.format(part), gold), (sentence, part)
            assert not math_reward(sentence.format(gold), part), (sentence, part)


def test_scaled_and_perturbed_numbers_are_never_equal():
    rng = random.Random(0)
    for _ in range(300):
        n, digits = rng.randrange(1, 10 ** rng.randrange(1, 30)), rng.randrange(1, 6)
        for wrong in (n + 1, n - 1, -n, 10 * n, n + 10 ** rng.randrange(30)):
            assert not is_equiv(str(wrong), str(n)) and not is_equiv(f"{wrong:,}", f"{n}.0")
        decimal = f"{n % 1000}.{rng.randrange(10 ** digits):0{digits}}5"
        for shift in (1, 2, 3):
            scaled = decimal.replace(".", "") + "e" + str(shift - digits - 1)
            assert is_equiv(decimal, decimal + "0") and not is_equiv(scaled, decimal)
            assert not is_equiv(scaled + "%", decimal) and not is_equiv(scaled, decimal + r"\%")
        p, q = rng.randrange(1, 99), rng.randrange(2, 99)
        assert is_equiv(rf"\frac{{{p * 7}}}{{{q * 7}}}", f"{p}/{q}")
        assert not is_equiv(f"{p}/{q}", f"{p}/{q + 1}")


def test_random_expressions_equal_their_rearrangement_only():
    rng = random.Random(1)
    for _ in range(150):
        forms = [r"\sqrt{%d}", "x^{%d}", r"\sin(%dx)", r"\pi^{%d}", "y_{%d}", "e^{%dt}"]
        terms = [str(rng.randrange(2, 99)) + rng.choice(forms) % rng.randrange(2, 9)
                 for _ in range(rng.randrange(2, 6))]
        gold, wrong = "+".join(terms), "+".join(terms[:-1] + ["1" + terms[-1]])
        rng.shuffle(terms)
        assert is_equiv("+".join(terms), gold) and is_equiv(f"-(-({gold}))", gold)
        assert is_equiv(rf"\frac{{2({gold})^2}}{{2({gold})}}", gold)
        assert not is_equiv(wrong, gold)


HOSTILE = [
    "9^{9^{9^9}}", "9**9**9**9", "10^{10^{10}}", "((9!)!)!", r"\binom{10^9}{10^8}", "2^{4000}" * 60,
    "e^{e^{e^{e^{9}}}}", r"\sin(10^{1000})", r"\sqrt[10^{20}]{2}", "2^{1/10^{30}}", "1e9999",
    "1e-9999", "9" * 10**6, "0." + "9" * 10**5, "(" * 10**6, "{" * 10**6, "}" * 10**6, "\\" * 10**6,
    r"\boxed{" * 10**5, r"\boxed{" * 5000 + "}" * 5000, r"\frac" * 500, r"\sqrt" * 300, "-" * 10**5,
    "|" * 999, "$" * 10**5, r"\(" * 10**5, " " * 10**6, "x^" * 300, "x_{" * 24 + "1" + "}" * 24,
    "f(" * 24 + "x" + ")" * 24, "x" + "!" * 300, "x" + "'" * 300, "-" * 398 + "x", r"\pm" * 300,
    r"(\pm1," * 24 + ")" * 24, "answer is " * 10**4, r"\text{" * 999, "1," + "234," * 300,
    ",".join(f"${i}$" for i in range(4000)), "{" + ",".join("x+1" for _ in range(90)) + "}", "1/0",
    "+".join(rf"\sin {c}+\ln {c}+\cosh {c}" for c in "xyzt" * 3), r"\ln 0", r"\infty-\infty", "_",
    "__import__('os').system('true')", "{0.__class__}", "%s%n", "\x00", "\ud800", "\u202e5", "٣",
    "５", "−", "²", "\ue000", "\ue000x", r"\begin{pmatrix}", r"\mat", "^", r"f(1,2)+f(x,y)"]


def fuzzed(rng):
    parts = (r"\frac { } ( ) [ ] | ^ _ ! \sin \ln \pm \cup \{ \} \text{ $ \( , = < \in \infty % "
             r"9^{9^9} x i 1/2 . ' \boxed{ \binom \begin{pmatrix} & \\ and").split(" ")
    seed = rng.choice(HOSTILE if rng.random() < 0.2 else rng.choice(CASES)[:2])
    text = [*seed[:3000]] if rng.random() < 0.7 else rng.choices(parts, k=rng.randrange(60))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(text) + 1)
        text[at:at + rng.randrange(3)] = rng.choice(
            [rng.choice(parts), chr(rng.randrange(0x110000)), chr(rng.randrange(128))])
    return "".join(text)


def test_hostile_strings_are_judged_at_once():
    rng = random.Random(2)
    pairs = [(a, b) for a in HOSTILE for b in (a, "5", r"\sqrt2+x")]
    for a, b in pairs + [(fuzzed(rng), fuzzed(rng)) for _ in range(2500)]:
        for verdict in (is_equiv, math_reward):
            start = time.perf_counter()
            assert type(verdict(a, b)) is type(verdict(b, a)) is bool
            assert time.perf_counter() - start < 1.0, (a[:80], b[:80])     # 20 times what it takes
        assert is_equiv(a, a) and is_equiv(a, b) == is_equiv(b, a)


def test_threads_agree_with_one():
    cases = [case[:2] for case in CASES + RESPONSES] + [(a, "5") for a in HOSTILE]
    alone = [math_reward(*case) for case in cases]
    checker._read.cache_clear(), checker._evaluate.cache_clear(), checker._names.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(lambda: [math_reward(*case) for case in cases]) for _ in range(8)]
        assert all(run.result() == alone for run in runs)


def test_nothing_is_executed_and_nothing_times_out():
    with open(checker.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = {getattr(node, field, None) for node in ast.walk(tree)
             for field in ("id", "attr", "name", "module")}
    assert not names & {"eval", "exec", "sympify", "parse_expr", "parse_latex", "simplify",
                        "signal", "subprocess", "multiprocessing", "threading"}
    caches = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
              and getattr(node.func, "id", "") == "lru_cache"]
    assert caches and all(cache.keywords[0].value.value <= 4096 for cache in caches)   # bounded


# -------------------------------------------------------------------- README.md and data/

README = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("README.md",
                                                                           "data/README.md"))


def fences(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_readme_commands_parse(tmp_path):
    """The shell runs them as they stand, with a `python` that prints its arguments only."""
    typed = "set -eu; python() { printf '%q ' \"$@\"; echo; }; pip() { :; }\n" + "".join(fences("sh"))
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    seen = set()
    for script, *words in map(shlex.split, done.stdout.splitlines()):
        if script == "rift.py":
            seen.add(type(commands.parse(words)).__name__)
        else:
            assert (HERE / script).is_file() or script == "-m", script
    assert {"Demo", "Sample", "Train", "Eval"} <= seen


def test_readme_shows_the_loss_as_it_is():
    assert fences("python")[0].strip() == inspect.getsource(rift.rift_loss).strip()


def test_readme_table_is_the_shipped_result():
    run = json.loads((DATA / "results.json").read_text())
    table = commands.table(run["rows"], run["settings"]["k"])
    assert [block.strip() for block in fences("text")] == [table.split("\n\n")[0]]
    assert run["settings"] == run["settings"] | {
        name: commands.settings(commands.Demo())[name] for name in ("model", "problems", "test")}


def numbers_with_errors(value):
    """Every [mean, error] in parsed JSON, as the README would write it."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return set()
    if len(value) == 2 and all(type(x) in (int, float) for x in value):
        mean, error = value
        return {f"{scale * mean:{sign}.1f} ± {scale * error:.1f}"
                for scale in (1, 100) for sign in ("", "+")}
    return set().union(*map(numbers_with_errors, value))


def test_readme_prose_quotes_the_results():
    """Every `a ± b` of the text is in a file of data/."""
    prose = re.sub(r"(?s)```.*?```|`.*?`", "", README)
    quoted = {re.sub(r"\s*±\s*", " ± ", text.replace("−", "-"))
              for text in re.findall(r"[-+−]?\d+\.\d+\s*±\s*\d+\.\d+", prose)}
    found = [numbers_with_errors(json.loads(path.read_text())) for path in DATA.glob("*.json")]
    assert quoted <= set().union(*found), quoted - set().union(*found)


def test_readme_scale_out_example_has_the_gradient_of_one_process(tmp_path):
    """Two processes of 4 samples take the steps of one process of 8."""
    pytest.importorskip("accelerate", reason="the Scale out example needs accelerate")
    code = next(block for block in fences("python") if "RiftTrainer" in block)
    code = code.replace("learning_rate=3e-4", "learning_rate=0.1, optim='sgd', max_grad_norm=0, "
                        "lr_scheduler_type='constant', max_steps=3, disable_tqdm=True")
    rows = [{"problem": f"{a}+{b}=?", "reward": 1.0 if b % 3 else -1.0,
             "response": f"{a}+{b}={a + b}; \\boxed{{{a + b}}}"}
            for a in (3, 12) for b in range(6, 18)]
    samples, ends = write(tmp_path / "samples.jsonl", *rows), []
    for processes, size in ((2, 4), (1, 8)):
        (tmp_path / "scale.py").write_text(code.replace("batch_size=4", f"batch_size={size}"))
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc_per_node={processes}", "scale.py", samples], cwd=tmp_path,
            text=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        ends.append(weights(AutoModelForCausalLM.from_pretrained(
            tmp_path / "scaled" / "checkpoint-3")))
        shutil.rmtree(tmp_path / "scaled")
    start = weights(rift.load_model(TINY, "cpu")[0])
    moved = max((ends[0][name] - start[name]).abs().max() for name in start)
    assert moved > 1e-4
    same(*ends, rtol=0, atol=moved / 1000)


def test_readme_lora_example_runs(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="the LoRA example needs peft")
    code = next(block for block in fences("python") if "LoraConfig" in block)
    monkeypatch.chdir(tmp_path)
    Path("runs/sample").mkdir(parents=True)
    write(Path("runs/sample/samples.jsonl"), *buffer())
    exec(code.replace("Qwen/Qwen2.5-7B-Instruct", TINY), found := {})
    adapter = peft.PeftModel.from_pretrained(rift.load_model(TINY, "cpu")[0], "adapter")
    assert any(tensor.any() for name, tensor in adapter.state_dict().items() if "lora_B" in name)
    assert found["model"].get_nb_trainable_parameters()[0] < 2e5


def test_rift_and_the_checker_import_what_is_in_requirements():
    allowed = {"torch", "transformers", "sympy", "mpmath", "tqdm", "math_reward", "commands"}
    for name in ("rift.py", "math_reward.py"):
        for node in ast.walk(ast.parse((HERE / name).read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in modules:
                assert module.split(".")[0] in allowed | set(sys.stdlib_module_names), module
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__")


def test_data_is_disjoint_right_and_small():
    sets = [rift.read_problems(DATA / f"{name}.jsonl") for name in ("train", "valid", "test")]
    rows = sum(sets, [])
    assert len(sets[2]) == 2000 and len({row["problem"] for row in rows}) == len(rows)
    for row in rows:
        terms = re.findall(r"([-+*]?)(\d+)", row["problem"])
        value = [int(terms[0][1])]
        for op, number in terms[1:]:
            if op == "*":
                value[-1] *= int(number)
            else:
                value.append(int(op + number))
        assert sum(value) == int(row["answer"])
        assert ("*" in row["problem"]) == (row["kind"] == "misconception")
        assert rift.math_reward(row["solution"], row["answer"])
    assert sum(path.stat().st_size for path in DATA.rglob("*")) < 8e6
    assert sum(path.stat().st_size for path in Path(TINY).rglob("*")) < 3e6
