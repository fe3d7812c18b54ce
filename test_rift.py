"""Tests of rift.py, data/commands.py and math_reward.py, in the order of the files."""
from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig,
                          LlamaForCausalLM)

import rift
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
    share = logps.grad.abs().sum(1)
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
    for kind, figures in results.items():
        chosen = [row["problem"] for row in problems if kind in ("all", row["kind"])]
        groups = [[row for row in drawn if row["problem"] == problem] for problem in chosen]
        means = {key: [statistics.fmean(row[key] for row in group) for group in groups]
                 for key in ("reward", "boxed", "tokens", "truncated")}
        assert 0 < sum(means["truncated"]) < len(chosen) and figures["n"] == len(chosen)
        assert figures == pytest.approx({
            "n": len(chosen), "mean@4": rift.mean_se(means["reward"]),
            "greedy": rift.mean_se([row["reward"] for row in best if row["problem"] in chosen]),
            "pass@4": rift.mean_se([float(mean > 0) for mean in means["reward"]]),
            "boxed": rift.mean_se(means["boxed"]), "tokens": rift.mean_se(means["tokens"]),
            "truncated": rift.mean_se(means["truncated"])})


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
    assert text.splitlines()[4].startswith("x (7)       ") and len(text.splitlines()) == 9
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
    assert commands.table(rows, 2) in text and max(map(len, text.splitlines())) <= 80 + len(TINY)
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
    ([LONG | {"problem": "1" * 128}], "sample --problems FILE", ":1: 130 tokens"),
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
    assert status == 2 and "another run's results (samples x.jsonl " in error
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


def test_versions_that_are_too_old_are_named(capsys, monkeypatch):
    for version, status in (("4.57.1", 2), ("5.0.0", 2), ("5.17", 2)):
        monkeypatch.setattr(transformers, "__version__", version)
        assert command(capsys, "fit")[0] == status
        assert ("too old" in command(capsys, "fit")[2]) is (version < "5")
    monkeypatch.setattr(torch, "__version__", "2.7.1+cu128")
    assert "torch 2.7.1+cu128 is too old: needs torch 2.8 and" in command(capsys, "fit")[2]


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


# ---- MODEL FAMILIES ----


# ---- CHECKER TESTS ----


# -------------------------------------------------------------------- README.md and data/

README = (HERE / "README.md").read_text(encoding="utf-8")


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
    assert found["model"].get_nb_trainable_parameters()[0] < 1e5


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
