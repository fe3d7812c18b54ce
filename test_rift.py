"""Tests of rift.py and math_reward.py, in the order of the two files."""
from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import math_reward as checker
import rift
from math_reward import extract_answer, is_equiv, math_reward
from rift import Config, UserError

HERE = Path(__file__).resolve().parent
TINY = str(HERE / "data" / "tiny-base")
EOS = 0


@pytest.fixture(scope="session")
def tiny():
    return rift.load_model(TINY, "cpu")


@pytest.fixture
def fresh():
    """The tiny model in float64, for exact comparisons, and its tokenizer."""
    return rift.load_model(TINY, "cpu", torch.float64)


@pytest.fixture(scope="session")
def problems():
    return rift.read_problems(str(HERE / "data" / "valid.jsonl"), 24)


# ------------------------------------------------------------------------------------ losses

LOGPS = torch.tensor([[-0.1, -0.2, -0.3], [-0.5, -0.4, -9.0], [-0.7, -9.0, -9.0]],
                     dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
REWARDS = torch.tensor([2.0, -0.2, -1.0], dtype=torch.float64)


def test_losses_by_hand():
    def value(name, level="sequence", rewards=REWARDS):
        return rift.LOSSES[name](LOGPS, MASK, rewards, level)[0].item()
    e = math.exp
    assert value("rift") == pytest.approx((2 * 0.6 + 0.2 * e(-0.9) + e(-0.7)) / 3)
    assert value("rift", "mean") == pytest.approx((2 * 0.2 + 0.2 * e(-0.45) + e(-0.7)) / 3)
    assert value("rift", "token") == pytest.approx(
        (2 * 0.6 + 0.2 * (e(-0.5) + e(-0.4)) + e(-0.7)) / 3)
    assert value("naive") == pytest.approx((2 * 0.6 - 0.2 * 0.9 - 0.7) / 3)
    assert value("naive", "mean") == pytest.approx((2 * 0.2 - 0.2 * 0.45 - 0.7) / 3)
    assert value("rft") == pytest.approx(0.6)
    assert value("sft") == pytest.approx((0.6 + 0.9 + 0.7) / 3)
    assert value("sft", "mean") == pytest.approx((0.2 + 0.45 + 0.7) / 3)


@pytest.mark.parametrize("name", rift.LOSSES)
@pytest.mark.parametrize("level", ["sequence", "mean", "token"])
def test_gradients_by_finite_differences(name, level):
    logps = LOGPS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rift.LOSSES[name](x, MASK, REWARDS, level)[0], logps)


def test_gradients_in_closed_form():
    """d/dlogp_t: -r for a positive (T times over), -r pi for a negative of RIFT, -r of naive."""
    for name, level, expected in [
            ("rift", "sequence", [[-2, -2, -2], [0.2 * math.exp(-0.9)] * 2 + [0],
                                  [math.exp(-0.7), 0, 0]]),
            ("rift", "mean", [[-2 / 3] * 3, [0.1 * math.exp(-0.45)] * 2 + [0],
                              [math.exp(-0.7), 0, 0]]),
            ("rift", "token", [[-2] * 3, [0.2 * math.exp(-0.5), 0.2 * math.exp(-0.4), 0],
                               [math.exp(-0.7), 0, 0]]),
            ("naive", "sequence", [[-2] * 3, [0.2, 0.2, 0], [1, 0, 0]]),
            ("rft", "sequence", [[-3] * 3, [0] * 3, [0] * 3])]:
        logps = LOGPS.clone().requires_grad_()
        loss, metrics = rift.LOSSES[name](logps, MASK, REWARDS, level)
        loss.backward()
        want = torch.tensor(expected, dtype=torch.float64) / 3
        torch.testing.assert_close(logps.grad, want)
        assert metrics["grad_pos"] == pytest.approx(want[0].abs().sum().item())
        assert metrics["grad_neg"] == pytest.approx(want[1:].abs().sum().item())


def test_rift_is_naive_weighted_by_pi():
    """-r pi has the gradient of -r stopgrad(pi) log pi."""
    a, b = (LOGPS.clone().requires_grad_() for _ in range(2))
    rewards = torch.tensor([-2.0, -0.2, -1.0], dtype=torch.float64)
    rift.rift_loss(a, MASK, rewards)[0].backward()
    pi = (b * MASK).sum(1).exp().detach()
    rift.naive_loss(b, MASK, rewards * pi)[0].backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("level", ["sequence", "mean", "token"])
def test_rift_is_bounded_and_naive_is_not(level):
    r = -0.7
    before = math.inf
    for log_pi in (0.0, -1.0, -30.0, -1e4):
        logps = torch.tensor([[log_pi]], requires_grad=True)
        term = rift.rift_loss(logps, torch.ones(1, 1), torch.tensor([r]), level)[0]
        term.backward()
        assert 0 <= term.item() <= abs(r) + 1e-6
        assert logps.grad.item() == pytest.approx(abs(r) * math.exp(log_pi))
        naive = rift.naive_loss(logps, torch.ones(1, 1), torch.tensor([r]), level)[0].item()
        assert naive < before and naive == pytest.approx(-r * log_pi)
        before = naive
    assert logps.grad.item() == 0.0


def test_rewards_of_one_give_the_negative_log_likelihood(tiny):
    """RIFT with all rewards 1, normalised by tokens, is the loss of transformers itself."""
    model, tokenizer = tiny
    batch = rift.collate([rift.encode(tokenizer, row, "{problem}\n") for row in (
        {"problem": "12+34=?", "response": "12+34=46; \\boxed{46}"},
        {"problem": "7+8=?", "response": "7+8=15; \\boxed{15}"})], model.device)
    labels = batch["input_ids"].masked_fill(~batch["mask"], -100)
    with torch.no_grad():
        logps = rift.response_logps(model, **batch)
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                       labels=labels).loss
    mask = batch["mask"][:, 1:]
    for loss in (rift.rift_loss, rift.naive_loss, rift.rft_loss, rift.sft_loss):
        mine = loss(logps, mask, torch.ones(2), normalizer=int(mask.sum()))[0]
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", rift.LOSSES)
@pytest.mark.parametrize("level", ["sequence", "mean", "token"])
def test_padding_order_and_zero_rewards_change_nothing(name, level):
    loss = rift.LOSSES[name](LOGPS, MASK, REWARDS, level)[0]
    wide = torch.cat([LOGPS, torch.full((3, 2), -torch.inf, dtype=torch.float64)], 1)
    padded = rift.LOSSES[name](wide, torch.nn.functional.pad(MASK, (0, 2)), REWARDS, level)[0]
    turned = rift.LOSSES[name](LOGPS.flip(0), MASK.flip(0), REWARDS.flip(0), level)[0]
    torch.testing.assert_close(padded, loss)
    torch.testing.assert_close(turned, loss)
    if name != "sft":
        more = rift.LOSSES[name](torch.cat([LOGPS, LOGPS]), torch.cat([MASK, MASK]),
                                 torch.cat([REWARDS, 0 * REWARDS]), level)[0]
        torch.testing.assert_close(more, loss)


@pytest.mark.parametrize("name", rift.LOSSES)
def test_normalizer_makes_micro_batches_add_up(name):
    whole = rift.LOSSES[name](LOGPS, MASK, REWARDS, normalizer=3)[0]
    parts = sum(rift.LOSSES[name](LOGPS[i:i + 1], MASK[i:i + 1], REWARDS[i:i + 1], normalizer=3)[0]
                for i in range(3))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", rift.LOSSES)
def test_a_reward_that_is_not_finite_is_named(name, bad):
    with pytest.raises(ValueError, match=r"rewards\[1\]"):
        rift.LOSSES[name](LOGPS, MASK, torch.tensor([1.0, bad, 1.0]))


def test_metrics_and_precision():
    metrics = rift.rift_loss(LOGPS, MASK, REWARDS)[1]
    assert (metrics["n_pos"], metrics["n_neg"]) == (1, 2)
    assert metrics["logp_pos"] == pytest.approx(-0.6)
    assert metrics["logp_neg"] == pytest.approx(-0.9 - 0.7)             # sums: these add up
    assert metrics["pi_neg"] == pytest.approx(math.exp(-0.9) + math.exp(-0.7))
    assert metrics["grad_neg"] == 0                                     # no graph, no gradient
    half = rift.rift_loss(LOGPS.bfloat16(), MASK, REWARDS.float())[0]
    assert half.dtype == rift.log_policy(LOGPS.bfloat16(), MASK, "mean")[0].dtype == torch.float32
    parts = [rift.rift_loss(LOGPS[i:i + 1], MASK[i:i + 1], REWARDS[i:i + 1], normalizer=3)[1]
             for i in range(3)]
    for name, value in metrics.items():
        assert sum(part[name] for part in parts) == pytest.approx(value)
    with pytest.raises(ValueError, match="level"):
        rift.rift_loss(LOGPS, MASK, REWARDS, "word")


# --------------------------------------------------------- log-probabilities, data, batches

def small(cls=LlamaForCausalLM, config=LlamaConfig, **more):
    torch.manual_seed(0)
    return cls(config(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=2, num_key_value_heads=1, head_dim=8,
                      max_position_embeddings=64, **more)).double().eval()


def with_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    return model


@pytest.mark.parametrize("model, plain", [
    (small(tie_word_embeddings=True), True), (small(tie_word_embeddings=False), True),
    (small(Gemma2ForCausalLM, Gemma2Config, final_logit_softcapping=0.02), False),
    (with_bias(small(tie_word_embeddings=False)), True)])
@pytest.mark.parametrize("piece", [1, 50 * 3, 10 ** 9])
def test_logps_and_gradients_are_those_of_the_full_logits(model, plain, piece, monkeypatch):
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", piece)          # 1, 3 or all rows at a time
    assert rift.plain_head(model) is plain
    batch = rift.collate([([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10]), ([1, 1], [0])], model.device)
    mine = rift.response_logps(model, **batch, plain=plain)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    full = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    full = full * batch["mask"][:, 1:]
    torch.testing.assert_close(mine, full)
    weights = torch.randn(mine.shape, dtype=mine.dtype)
    grads = [torch.autograd.grad((logps * weights).sum(), list(model.parameters()),
                                 retain_graph=True) for logps in (mine, full)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_subnormal_numbers_are_flushed():
    """Gradients of nearly vanishing negatives are subnormal, and those are slow on a CPU."""
    if not torch.set_flush_denormal(False) or not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    torch.set_flush_denormal(False)
    assert (torch.tensor([1e-38]) * 0.01).item() > 0
    rift.load_model(TINY, "cpu")
    assert (torch.tensor([1e-38]) * 0.01).item() == 0


def test_logps_under_autocast_are_those_of_the_model(tiny):
    """bfloat16 activations over float32 weights, as on CUDA: same values, gradients in float32."""
    model = tiny[0]
    batch = rift.collate([([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10])], model.device)
    with torch.autocast("cpu", torch.bfloat16):
        mine = rift.response_logps(model, **batch)
        full = rift.response_logps(model, **batch, plain=False)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, full, rtol=0.02, atol=0.05)
    grads = [torch.autograd.grad(logps.sum(), list(model.parameters())) for logps in (mine, full)]
    for a, b in zip(*grads):
        assert a.dtype == torch.float32 and torch.cosine_similarity(
            a.flatten(), b.flatten(), 0) > 0.98


def test_collate_trains_the_response_and_its_eos_alone(tiny):
    tokenizer = tiny[1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    row = {"problem": "7+8=?", "response": "15"}
    prompt, response = rift.encode(tokenizer, row, "{problem}\n")
    assert tokenizer.decode(prompt) == "7+8=?\n" and response[-1] == EOS and len(response) == 3
    assert rift.encode(tokenizer, row | {"truncated": True}, "{problem}")[1] == response[:-1]
    assert rift.encode(tokenizer, {"prompt": "7+8="}, "{problem}\n") == (prompt[:4], [])
    batch = rift.collate([(prompt, response), ([1], [2])], torch.device("cpu"))
    assert batch["input_ids"][0].tolist() == prompt + response
    assert batch["mask"].tolist() == [[False] * 6 + [True] * 3, [False, True] + [False] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 9, [1, 1] + [0] * 7]


def test_chat_template_is_used(tiny, monkeypatch):
    tokenizer = tiny[1]
    monkeypatch.setattr(tokenizer, "chat_template",
                        "{% for m in messages %}={{ m['content'] }}={% endfor %}"
                        "{% if add_generation_prompt %};{% endif %}")
    prompt, _ = rift.encode(tokenizer, {"problem": "7+8=?"}, "{problem}\n")
    assert tokenizer.decode(prompt) == "=7+8=?=;"
    assert tokenizer.decode(rift.encode(tokenizer, {"prompt": "7+8=?"}, "x")[0]) == "7+8=?"


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n"
                            for row in rows))
    return str(path)


def test_published_formats_read_as_they_are(tmp_path):
    gsm8k = {"question": "6*7?", "answer": "It is <<6*7=42>>42.\n#### 1,042"}
    math_ = {"problem": "Half?", "level": "Level 1", "type": "Algebra",
             "solution": "It is not \\boxed{1}. It is $\\boxed{\\frac{1}{2}}$."}
    math500 = {"problem": "Half?", "solution": "$\\boxed{x}$", "answer": "\\frac{1}{2}",
               "subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    rows = rift.read_problems(write(tmp_path / "p.jsonl", gsm8k, math_, "", math500, {
        "problem": "6*7", "answer": 42}))
    assert [row["answer"] for row in rows][1:] == ["\\frac{1}{2}", "\\frac{1}{2}", "42"]
    assert rift.math_reward("\\boxed{1042}", rows[0]["answer"])
    assert rows[0]["problem"] == "6*7?" and rows[0]["solution"] == gsm8k["answer"]
    assert rows[2]["unique_id"] == "test/algebra/1.json"
    assert len(rift.read_problems(str(tmp_path / "p.jsonl"), 2)) == 2
    (tmp_path / "bom.jsonl").write_text("\ufeff" + json.dumps(math500), encoding="utf-8")
    assert rift.read_problems(str(tmp_path / "bom.jsonl"))[0]["problem"] == "Half?"


GOOD = {"problem": "7+8=?", "answer": "15", "response": "15", "reward": 1}


@pytest.mark.parametrize("reader, rows, message", [
    ("problems", [], "empty"),
    ("problems", [GOOD, '{"problem": '], ":2: not a JSON object"),
    ("problems", ["[1]"], ":1: not a JSON object"),
    ("problems", [{"answer": "3"}], ":1: no field `problem` or `question`"),
    ("problems", [{"problem": " ", "answer": "3"}], ":1: `problem` must be text"),
    ("problems", [{"problem": "x"}], ":1: no field `answer` or `solution`"),
    ("problems", [{"problem": "x", "solution": "y"}], ":1: no `answer`"),
    ("samples", [GOOD, {"problem": "x", "reward": 1}], ":2: no field `response`"),
    ("samples", [GOOD | {"response": ""}], ":1: `response` must be text"),
    ("samples", [GOOD | {"response": "", "truncated": True}], ":1: `response` must be text"),
    ("samples", [{"response": "x", "reward": 1}], ":1: no field `prompt` or `problem`"),
    ("samples", [{"problem": "x", "response": "y"}], ":1: `reward` must be a finite number"),
    ("samples", [GOOD, json.dumps(GOOD | {"reward": math.nan})], ":2: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": math.inf}], ":1: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": "1"}], ":1: `reward` must be a finite"),
    ("samples", [GOOD | {"reward": True}], ":1: `reward` must be a finite"),
])
def test_bad_lines_are_named(tmp_path, reader, rows, message):
    path = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(UserError, match=re.escape(message)):
        rift.read_problems(path) if reader == "problems" else rift.read_samples(path, True)


def test_an_empty_response_that_ended_by_itself_is_one(tmp_path, tiny):
    path = write(tmp_path / "x.jsonl", GOOD | {"response": "", "truncated": False})
    assert rift.encode(tiny[1], rift.read_samples(path, True)[0], "{problem}")[1] == [EOS]


# ----------------------------------------------------------------------------- sampling loop

def ids_of(tokenizer, problems):
    return [rift.encode(tokenizer, row, "{problem}\n")[0] for row in problems]


def test_greedy_sampling_is_generate_token_for_token(fresh, problems):
    model, tokenizer = fresh
    prompts = ids_of(tokenizer, problems)
    assert len({len(prompt) for prompt in prompts}) > 2
    for limit in (40, 9):                           # the second cuts responses off
        config = Config(k=1, temperature=0, max_new_tokens=limit)
        mine = rift.generate(model, prompts, config, [EOS], None)
        for prompt, ids in zip(prompts, mine):
            theirs = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(
                1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=limit)
            assert ids == theirs[0, len(prompt):].tolist()
            assert rift.generate(model, [prompt], config, [EOS], None) == [ids]


def test_rows_stop_at_any_stop_token_at_the_limit_and_at_the_context(fresh):
    model, tokenizer = fresh
    prompt = ids_of(tokenizer, [{"problem": "12+34=?"}])
    config = Config(k=1, temperature=0)
    whole = rift.generate(model, prompt, config, [EOS], None)[0]
    semicolon = tokenizer.convert_tokens_to_ids(";")
    assert rift.generate(model, prompt, config, [EOS, semicolon], None)[0] == \
        whole[:whole.index(semicolon) + 1]
    model.config.max_position_embeddings = len(prompt[0]) + 5
    assert rift.generate(model, prompt, config, [EOS], None)[0] == whole[:5]


def test_choose_follows_temperature_and_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(20000, 1)
    rng = torch.Generator().manual_seed(0)

    def shares(temperature, top_p):
        chosen = rift.choose(logits, temperature, top_p, rng)
        return (torch.bincount(chosen, minlength=4) / len(chosen)).tolist()
    assert shares(0, 1.0) == [1, 0, 0, 0]
    assert shares(1.0, 1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.02)
    assert shares(0.5, 1.0) == pytest.approx([x / 0.365 for x in (0.25, 0.09, 0.0225, 0.0025)],
                                             abs=0.02)
    assert shares(1.0, 0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert shares(1.0, 0.0) == [1, 0, 0, 0]


def test_sampling_is_seeded_scored_and_from_the_models_distribution(fresh, problems):
    model, tokenizer = fresh
    config = Config(k=4, rows=32)
    a, b = (rift.sample(model, tokenizer, problems, config) for _ in range(2))
    assert a == b and len(a) == 4 * len(problems)
    c = rift.sample(model, tokenizer, problems, dataclasses.replace(config, seed=1))
    assert a != c
    for row in a:
        assert row["reward"] == (1.0 if rift.math_reward(row["response"], row["answer"]) else -0.2)
        assert not row["truncated"] and row["kind"] in ("slips", "misconception")
        assert row["tokens"] == len(rift.encode(tokenizer, row, "{problem}\n")[1])
    # the first token's share agrees with the model's own probability
    prompt = ids_of(tokenizer, problems[:1])
    first = [ids[0] for ids in rift.generate(model, prompt, Config(k=4000, max_new_tokens=1), [EOS],
                                             torch.Generator().manual_seed(0))]
    with torch.no_grad():
        probs = model(torch.tensor(prompt)).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor(first), minlength=len(probs)) / 4000
    torch.testing.assert_close(counts.double(), probs, atol=0.03, rtol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("tail", ["", '{"problem": "half a li'])
def test_killed_sampling_goes_on_to_the_same_file(tiny, problems, tmp_path, monkeypatch, tail):
    model, tokenizer = tiny
    config, path = Config(k=2, rows=16), tmp_path / "samples.jsonl"
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
    assert len(path.read_text().splitlines()) == 32          # two batches of three are kept
    with open(path, "a") as file:                               # and a part of the third
        file.write(json.dumps(GOOD) + "\n" + tail)
    calls += [1] * 10
    samples = rift.sample(model, tokenizer, problems, config, path)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert rift.dump(samples) == path.read_text()
    assert len(calls) == 14                                     # one batch was left to do


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_without_pad_and_with_many_eos(tmp_path, tiny, problems, dtype):
    """Weights load as float32 masters; no pad token is needed; every eos of the model stops."""
    model, tokenizer = rift.load_model(TINY, "cpu", dtype)
    semicolon = tokenizer.convert_tokens_to_ids(";")
    model.generation_config.eos_token_id = [EOS, semicolon]
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = rift.load_model(str(tmp_path), "cpu")
    assert model.dtype == torch.float32 and tokenizer.pad_token is None
    samples = rift.sample(model, tokenizer, problems, Config(k=1))
    assert not any(";" in row["response"] or row["truncated"] for row in samples)
    assert any("=" in row["response"] for row in samples)
    history = rift.train(model, tokenizer, buffer(), Config(steps=2))
    assert history[1]["loss"] == pytest.approx(rift.train(
        *rift.load_model(str(tmp_path), "cpu"), buffer(), Config(steps=2))[1]["loss"])


# ---------------------------------------------------------------------------------- training

def buffer():
    return [{"problem": f"{a}+{b}=?", "answer": str(a + b), "reward": reward,
             "response": f"{a}+{b}={a + b + wrong}; \\boxed{{{a + b + wrong}}}"}
            for a, b, wrong, reward in [(12, 34, 0, 1.0), (57, 8, 0, 1.0), (57, 18, -10, -0.2),
                                        (9, 9, 10, -1.0), (23, 23, 0, 0.5), (7, 5, 0, 0.0)]]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


@pytest.mark.parametrize("loss", rift.LOSSES)
@pytest.mark.parametrize("level", ["sequence", "mean"])
def test_micro_batches_change_nothing(fresh, loss, level):
    model, tokenizer = fresh
    start, ends, logs = weights(model), [], []
    for budget in (10 ** 6, 60, 1):
        model.load_state_dict(start)
        logs.append(rift.train(model, tokenizer, buffer(), Config(
            loss=loss, level=level, steps=2, batch_size=5, tokens_per_batch=budget)))
        ends.append(weights(model))
    assert len(logs[0]) == 2 and not torch.equal(ends[0]["lm_head.weight"], start["lm_head.weight"])
    for end, log in zip(ends[1:], logs[1:]):
        same(end, ends[0], rtol=1e-6, atol=1e-9)
        for name in ("loss", "grad_norm", "logp_neg", "neg_share", "n_pos", "tokens"):
            assert log[1][name] == pytest.approx(logs[0][1][name])


def test_micro_batches_stay_within_the_budget(tiny, monkeypatch):
    (model, tokenizer), seen, collate = tiny, [], rift.collate
    start = weights(model)
    monkeypatch.setattr(rift, "collate", lambda pairs, device: seen.append(pairs) or
                        collate(pairs, device))
    rows = [GOOD | {"response": "1" * (n - 7)} for n in (10, 10, 11, 16, 27)]   # 6 prompt, 1 EOS
    rift.train(model, tokenizer, rows, Config(steps=1, batch_size=5, tokens_per_batch=33, lr=1e-9))
    lengths = [[len(prompt) + len(response) for prompt, response in pairs] for pairs in seen]
    assert lengths == [[27], [11, 16], [10, 10]] and all(
        len(part) * max(part) <= 33 for part in lengths)
    seen.clear()
    rift.train(model, tokenizer, rows, Config(steps=1, batch_size=5, tokens_per_batch=9, lr=1e-9))
    assert [len(pairs) for pairs in seen] == [1] * 5           # a longer row goes by itself
    model.load_state_dict(start)


def test_one_step_is_the_gradient_of_the_loss_on_its_samples(fresh):
    """A step of train against AdamW on a gradient taken by hand, clipping included."""
    model, tokenizer = fresh
    rows = [row for row in buffer() if row["reward"]]
    start = weights(model)
    batch = rift.collate([rift.encode(tokenizer, row, "{problem}\n") for row in rows], model.device)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    mask = batch["mask"][:, 1:]
    log_pi = (logps * mask).sum(1)
    r = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    loss = torch.where(r > 0, -r * log_pi, -r * log_pi.exp()).sum() / mask.sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1).step()
    want = weights(model)
    model.load_state_dict(start)
    history = rift.train(model, tokenizer, buffer(), Config(
        steps=1, batch_size=5, lr=1e-3, warmup=0, max_grad_norm=0.01, weight_decay=0.1))
    assert history[0]["loss"] == pytest.approx(loss.item())
    assert history[0]["grad_norm"] == pytest.approx(norm.item()) and norm > 0.01
    same(weights(model), want)


def test_learning_rate_warms_up_and_falls_to_zero(tiny):
    model, tokenizer = tiny
    start = weights(model)
    history = rift.train(model, tokenizer, buffer(), Config(steps=10, warmup=0.2, lr=1e-9))
    rates = [row["lr"] / 1e-9 for row in history]
    assert rates[:3] == pytest.approx([0, 0.5, 1])
    assert rates[3:] == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(1, 8)])
    model.load_state_dict(start)


def test_training_moves_right_up_and_wrong_down_and_teaches_eos(fresh):
    """With pad = eos: after SFT on a response that stops early, the model stops there too."""
    model, tokenizer = fresh
    row = {"problem": "12+34=?", "response": "46", "reward": 1.0}
    rift.train(model, tokenizer, [row], Config(steps=20, batch_size=1, lr=1e-3))
    prompt = ids_of(tokenizer, [row])
    out = rift.generate(model, prompt, Config(k=1, temperature=0), [EOS], None)[0]
    assert tokenizer.decode(out[:-1]) == "46" and out[-1] == EOS
    history = rift.train(model, tokenizer, [row | {"reward": -1.0}], Config(
        steps=20, batch_size=1, lr=1e-3))
    assert history[-1]["logp_neg"] < history[0]["logp_neg"] - 1
    assert history[0]["neg_share"] == 1 and 0 < history[-1]["loss"] < history[0]["loss"]


def test_batches_are_whole_passes_in_seeded_order():
    drawn = list(itertools.islice(rift.shuffled([3, 5, 7, 9], seed=0), 12))
    assert [sorted(drawn[i:i + 4]) for i in (0, 4, 8)] == [[3, 5, 7, 9]] * 3
    assert len({tuple(drawn[i:i + 4]) for i in (0, 4, 8)}) > 1
    assert list(itertools.islice(rift.shuffled([3, 5, 7, 9], seed=0), 3)) == drawn[:3]


def test_positives_mode_has_the_positives_of_rft_in_every_step(tiny, monkeypatch):
    model, tokenizer = tiny
    start, seen = weights(model), []
    collate = rift.collate
    monkeypatch.setattr(rift, "collate", lambda pairs, device: seen.append(pairs) or
                        collate(pairs, device))
    rows, steps = buffer(), []
    for config in (Config(loss="rft", steps=4, batch_size=2, lr=1e-9),
                   Config(loss="rift", steps=4, batch_size=2, lr=1e-9, positives=True)):
        seen.clear()
        history = rift.train(model, tokenizer, rows, config)
        steps.append([sorted(pairs) for pairs in seen])
    wrong = [rift.encode(tokenizer, row, "{problem}\n") for row in rows if row["reward"] < 0]
    for rft, rift_ in zip(*steps):
        assert [pair for pair in rift_ if pair not in wrong] == rft
        assert sum(pair in wrong for pair in rift_) == round(2 * 2 / 3)
    assert history[0]["tokens"] == sum(len(response) for _, response in steps[0][0])
    model.load_state_dict(start)


def test_what_each_loss_learns_from():
    rows = buffer()
    kept = {loss: len(rift.useful(rows, loss)) for loss in rift.LOSSES}
    assert kept == {"rift": 5, "naive": 5, "rft": 3, "sft": 6}
    for loss, rewards in (("rift", [0.0, 0.0]), ("naive", [0.0]), ("rft", [0.0, -1.0])):
        with pytest.raises(UserError, match="nothing to learn from"):
            rift.useful([GOOD | {"reward": reward} for reward in rewards], loss)


def test_a_step_that_is_not_finite_stops_with_the_last_good_weights(fresh, monkeypatch, tmp_path):
    model, tokenizer = fresh
    rows = [row | {"line": f"file:{i}"} for i, row in enumerate(buffer())]
    config = Config(steps=4, batch_size=5, seed=0)
    rift.train(model, tokenizer, rows, dataclasses.replace(config, steps=4), tmp_path)
    model, tokenizer = rift.load_model(TINY, "cpu", torch.float64)
    true, states = rift.response_logps, []

    def failing(model, **batch):
        states.append(weights(model))
        return true(model, **batch) * (math.nan if len(states) == 3 else 1)
    monkeypatch.setattr(rift, "response_logps", failing)
    history = rift.train(model, tokenizer, rows, config)
    assert len(history) == 3 and "step 3 is not finite" in history[-1]["stopped"]
    assert "file:" in history[-1]["stopped"]
    same(weights(model), states[2], rtol=0, atol=0)
    monkeypatch.setattr(rift, "response_logps", true)           # nothing of it is left behind
    model.load_state_dict(states[0])
    again = rift.train(model, tokenizer, rows, config)
    good = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in again] == [row["loss"] for row in good]


def test_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    ends = []
    for name in ("whole", "killed"):
        model, tokenizer = rift.load_model(TINY, "cpu")
        out = tmp_path / name
        out.mkdir()
        config = Config(steps=4, batch_size=3, save_every=2)
        if name == "killed":
            step, calls = torch.optim.AdamW.step, []

            def dying(self, *args, step=step, calls=calls):
                calls.append(1)
                if len(calls) == 4:
                    raise Killed
                return step(self, *args)
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(torch.optim.AdamW, "step", dying)
                rift.train(model, tokenizer, buffer(), config, out)
            model, tokenizer = rift.load_model(TINY, "cpu")
        history = rift.train(model, tokenizer, buffer(), config, out)
        ends.append(weights(model))
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert logged == history and [row["step"] for row in history] == [1, 2, 3, 4]
    same(*ends, rtol=0, atol=0)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    rift.write_whole(path, "old")

    def failing(part):
        part.write_text("ne")
        raise OSError("No space left on device")
    with pytest.raises(OSError):
        rift.write_whole(path, failing)
    assert path.read_text() == "old"


def test_gradient_checkpointing_changes_nothing():
    ends = []
    for enabled in (False, True):
        model, tokenizer = rift.load_model(TINY, "cpu", torch.float64)
        rift.train(model, tokenizer, buffer(), Config(steps=2, batch_size=5,
                                                      gradient_checkpointing=enabled))
        assert model.is_activation_checkpointing is enabled
        ends.append(weights(model))
    same(*ends, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length, warned", [(1, False), (200, True)])
def test_warning_when_rift_has_become_rft(length, warned, capsys):
    """A wrong response of 200 tokens at more than 0.5 nats each has pi = 0 in float32."""
    model = small(tie_word_embeddings=True).float()
    model.config.max_position_embeddings = 10 ** 6
    tokenizer = rift.load_model(TINY, "cpu")[1]
    rows = [GOOD | {"response": "1" * length, "reward": -0.2}, GOOD]
    rift.train(model, tokenizer, rows, Config(steps=3, batch_size=2, lr=1e-9))
    assert ("so this is RFT" in capsys.readouterr().err) is warned


# -------------------------------------------------------------------------------- evaluation

def test_pass_at_k_counts_the_draws():
    for n, c in itertools.product((1, 4, 6), range(7)):
        for k in range(1, n + 1):
            if c <= n:
                draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert rift.pass_at_k(n, c, k) == pytest.approx(
                    sum(map(any, draws)) / len(draws))


def test_mean_se():
    mean, error = rift.mean_se([0.0, 1.0, 1.0, 1.0])
    assert mean == 0.75 and error == pytest.approx(0.25)
    assert rift.mean_se([3.0]) == [3.0, 0.0]


def test_evaluate_is_the_accuracy_of_the_samples(tiny, problems):
    model, tokenizer = tiny
    config = Config(k=4, right=5.0, wrong=-3.0)             # rewards do not change accuracy
    results = rift.evaluate(model, tokenizer, problems, config)
    drawn = rift.sample(model, tokenizer, problems, config)
    greedy = rift.sample(model, tokenizer, problems, Config(k=1, temperature=0))
    assert list(results) == ["all", "misconception", "slips"]
    assert sum(results[kind]["n"] for kind in ("misconception", "slips")) == len(problems)
    for kind, result in results.items():
        mine = [row for row in drawn if kind in ("all", row["kind"])]
        counts = [sum(row["reward"] > 0 for row in mine if row["problem"] == p["problem"])
                  for p in problems if kind in ("all", p["kind"])]
        assert result["greedy"][0] == pytest.approx(statistics.fmean(
            row["reward"] > 0 for row in greedy if kind in ("all", row["kind"])))
        assert result["mean@4"] == pytest.approx(rift.mean_se([c / 4 for c in counts]))
        assert result["pass@4"][0] == pytest.approx(statistics.fmean(c > 0 for c in counts))
        assert result["pass@2"][0] == pytest.approx(statistics.fmean(
            rift.pass_at_k(4, c, 2) for c in counts))
        assert result["tokens"][0] == pytest.approx(statistics.fmean(r["tokens"] for r in mine))
    cut = rift.evaluate(model, tokenizer, problems, dataclasses.replace(config, max_new_tokens=2))
    assert cut["all"]["truncated"][0] == 1 and cut["all"]["tokens"][0] == 2


# ------------------------------------------------------------- compare and the command line

def command(capsys, *argv):
    """Exit status, stdout and stderr of `python rift.py ARGV`, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["rift.py", *map(str, argv)])
        status = rift.main()
    return status, *capsys.readouterr()


SMALL = ("--per-round", 16, "--limit", 6, "--k", 2, "--batch-size", 4)


def test_compare_is_fair_goes_on_and_can_be_extended(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    status, text, _ = command(capsys, "--out", out, *SMALL)
    assert status == 0 and max(map(len, text.split("wrote")[0].splitlines())) <= 80
    results = json.loads((out / "results.json").read_text())
    cells = {cell["method"]: cell for cell in results["cells"]}
    buffer = [json.loads(line) for line in (out / "samples-0.jsonl").read_text().splitlines()]
    right = sum(row["reward"] > 0 for row in buffer)
    assert len(buffer) == 32 and list(cells) == list(rift.METHODS)
    steps = math.ceil(1.5 * 32 / 4)
    assert {m: cell["steps"] for m, cell in cells.items()} == {
        "base": 0, "rft-passes": math.ceil(1.5 * right / 4), **dict.fromkeys(
            ("sft", "rft-steps", "naive", "naive-same-lr", "rift", "rift-positives"), steps)}
    assert all(len(cell["curves"]["loss"]) == cell["steps"] for cell in cells.values())
    assert cells["rift-positives"]["curves"] != cells["rift"]["curves"]
    assert (out / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # the same command again only prints the table; more seeds are added to it
    with monkeypatch.context() as patch:
        patch.setattr(rift, "train", None)
        again = command(capsys, "--out", out, *SMALL)[1]
        assert again.split("all (6 problems)")[1] == text.split("all (6 problems)")[1]
    status, text, _ = command(capsys, "--out", out, *SMALL, "--seed", 0, 1, "--methods", "rift")
    assert status == 0 and text.count("seed 1  RIFT ") == 1
    added = json.loads((out / "results.json").read_text())["cells"]
    assert added[:8] == results["cells"] and [c["seed"] for c in added] == [0] * 8 + [1]
    status, _, error = command(capsys, "--out", out, *SMALL, "--k", 4)
    assert status == 2 and "holds another run's results (k 2 -> 4)" in error


def test_compare_trains_every_method_from_the_same_start(tmp_path, capsys):
    """A method's cell does not depend on which others are run before it; and a seed repeats."""
    command(capsys, "--out", tmp_path / "a", *SMALL)
    command(capsys, "--out", tmp_path / "b", *SMALL, "--methods", "rift")
    a, b = (json.loads((tmp_path / name / "results.json").read_text())["cells"] for name in "ab")
    mine = next(cell for cell in a if cell["method"] == "rift")
    for name in ("curves", "results"):
        assert mine[name] == b[0][name]
    assert mine["curves"] != next(cell for cell in a if cell["method"] == "naive")["curves"]


def test_compare_grid_and_rounds(tmp_path, capsys):
    status, text, _ = command(capsys, "--out", tmp_path / "run", *SMALL, "--rounds", 2, "--methods",
                              "base", "rft-steps", "rift", "--level", "sequence", "token",
                              "--wrong", -0.2, -1)
    cells = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert status == 0 and [(c["method"], c["level"], c["wrong"], c["round"]) for c in cells] == [
        ("base", "sequence", -0.2, 1), *(("rft-steps", "sequence", -0.2, r) for r in (1, 2)),
        *(("rift", "sequence", -0.2, r) for r in (1, 2)),
        *(("rift", "sequence", -1, r) for r in (1, 2)),
        *(("rft-steps", "token", -0.2, r) for r in (1, 2)),
        *(("rift", "token", -0.2, r) for r in (1, 2)),
        *(("rift", "token", -1, r) for r in (1, 2))]
    assert "RIFT, level token, wrong -1.0, round 2" in text
    assert len({json.dumps(cell["curves"]) for cell in cells}) >= 9


def test_compare_takes_several_epochs(tmp_path, capsys):
    status, text, _ = command(capsys, "--out", tmp_path / "run", *SMALL, "--epochs", 1, 2,
                              "--methods", "base", "rft-steps", "rift")
    cells = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert status == 0 and [(c["method"], c["epochs"], c["steps"]) for c in cells] == [
        ("base", 1.5, 0), ("rft-steps", 1.0, 8), ("rift", 1.0, 8), ("rft-steps", 2.0, 16),
        ("rift", 2.0, 16)]
    assert "RIFT - RFT, same steps, epochs 2.0" in " ".join(text.split())


def test_results_are_strict_json_when_training_diverges(tmp_path, capsys):
    """Every loss is finite up to the first step that is not, which is null in the curves."""
    status, text, _ = command(capsys, "--out", tmp_path / "run", *SMALL, "--lr", 1e30,
                              "--warmup", 0, "--methods", "rift")
    assert status == 0 and "is not finite" in text

    def refuse(constant):
        raise AssertionError(constant)
    results = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=refuse)
    curves = results["cells"][0]["curves"]
    assert curves["grad_norm"][-1] is None and curves["grad_norm"][0] > 0


def test_intervals():
    assert rift.interval([[0.5, 0.1]]) == (0.5, 0.1)
    mean, half = rift.interval([[x, 9.0] for x in (1.0, 2.0, 3.0, 4.0, 5.0)])
    assert mean == 3 and half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-3)
    half = rift.interval([[x, 9.0] for x in range(10)])[1]
    assert half == pytest.approx(2.262 * math.sqrt(55 / 6 / 10))
    half = rift.interval([[x, 9.0] for x in range(11)])[1]
    assert half == pytest.approx(1.96 * math.sqrt(11 / 11))


def results_of(*seeds):
    return {"settings": {"k": 8}, "hardware": {"device": "CPU", "threads": 2}, "cells": [
        {"method": method, "seed": seed, "lr": 3e-4, "level": "sequence", "wrong": -0.2, "round": 1,
         "steps": 5, "minutes": 0.5, "results": {"all": {
             "n": 100, "greedy": [value + seed / 10, 0.03], "mean@8": [value, 0.04],
             "pass@8": [1.0, 0.0]}}}
        for seed in seeds for method, value in (("rft-steps", 0.25), ("rift", 0.5))]}


def test_table():
    one = rift.table(results_of(0)).splitlines()
    assert one[0].split() == ["all", "(100", "problems)", "steps", "greedy", "mean@8", "pass@8"]
    assert one[1].split() == "RFT, same steps 5 25.0 ± 3.0 25.0 ± 4.0 100.0 ± 0.0".split()
    assert one[3].split() == "RIFT - RFT, same steps +25.0 ± 4.2 +25.0 ± 5.7 +0.0 ± 0.0".split()
    assert one[-1] == "1.0 minutes on CPU, 2 threads"
    two = rift.table(results_of(0, 1)).splitlines()
    assert two[2].split()[2:6] == ["55.0", "±63.5", "50.0", "±"]      # 12.706 * 0.05
    assert two[3].split()[5:8] == ["+25.0", "±", "0.0"]               # paired by seed
    assert "95 % interval over 2 seeds" in two[-2]


def test_differences_are_within_each_combination_of_settings():
    def cells(method, value, **grid):
        return [{**cell, "method": method, **dict(zip(grid, values)), "results": {"all": {
            "n": 100, **dict.fromkeys(("greedy", "mean@8", "pass@8"), [value(*values), 0.0])}}}
                for cell in results_of(0, 1)["cells"] if cell["method"] == "rift"
                for values in itertools.product(*grid.values())]

    def differences(*cells):
        results = results_of() | {"cells": list(itertools.chain(*cells))}
        return {row: round(mean, 6) for row, (mean, _) in
                rift.gather(results, "all", "greedy").items() if row.startswith("RIFT - ")}
    base = cells("base", lambda: 0.1)
    steps, naive = "RIFT - RFT, same steps", "RIFT - naive, its best lr"
    # RFT has the default reward, which makes no difference to it; naive has each, at its own lr
    assert differences(
        base, cells("rft-steps", lambda: 0.5), cells("rift", lambda w: 0.5 - w, wrong=[-0.05, -1]),
        cells("naive", lambda w, lr: 0.5 + w, wrong=[-0.05, -1], lr=[3e-5])) == {
            f"{steps}, wrong -0.05": 0.05, f"{steps}, wrong -1": 1,
            f"{naive}, wrong -0.05": 0.1, f"{naive}, wrong -1": 2}
    for name, values in (("round", [1, 2, 3, 4]), ("epochs", [1.5, 3.0]), ("lr", [1e-4, 1e-3]),
                         ("level", ["sequence", "mean"])):
        def rank(value, values=values):
            return values.index(value)
        assert differences(base, cells("rft-steps", lambda v: 0.1 * rank(v), **{name: values}),
                           cells("rift", lambda v: 0.3 * rank(v), **{name: values})) == {
            f"{steps}, {name} {value}": pytest.approx(0.2 * rank(value)) for value in values}
    # a cell that only one of the two methods has gives no difference
    few, both = (cells("rft-steps", lambda e: 0.5, epochs=[3.0]),
                 cells("rift", lambda e: e, epochs=[1.5, 3.0]))
    assert differences(few, both) == {f"{steps}, epochs 3.0": 2.5}


def test_sample_train_eval_score_hand_over_by_files(tmp_path, capsys):
    status, text, _ = command(capsys, "sample", "--problems", HERE / "data" / "valid.jsonl",
                              "--limit", 6, "--k", 2, "--out", tmp_path / "s")
    samples = tmp_path / "s" / "samples.jsonl"
    assert status == 0 and f"wrote {samples}: 12 samples" in text
    status, text, _ = command(capsys, "train", "--samples", samples, "--loss", "naive", "--out",
                              tmp_path / "t", "--batch-size", 4, "--save-every", 2)
    assert status == 0 and "wrote" in text and len(
        (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()) == math.ceil(1.5 * 12 / 4)
    rift.AutoModelForCausalLM.from_pretrained(tmp_path / "t" / "model")
    with pytest.MonkeyPatch.context() as patch:              # done: not trained again
        patch.setattr(rift, "train", None)
        assert command(capsys, "train", "--samples", samples, "--loss", "naive", "--out",
                       tmp_path / "t", "--batch-size", 4, "--save-every", 2)[1] == text
    status, text, _ = command(capsys, "eval", "--model", tmp_path / "t" / "model", "--limit", 4,
                              "--k", 2, "--out", tmp_path / "e")
    assert status == 0 and "all (4 problems)" in text and "this model" in text
    status, text, _ = command(capsys, "score", "--samples", samples, "--right", 3, "--wrong", -2,
                              "--out", tmp_path / "r")
    pairs = zip(rift.read_jsonl(samples), rift.read_jsonl(tmp_path / "r" / "samples.jsonl"))
    assert all(new["reward"] == (3.0 if old["reward"] == 1.0 else -2.0) for old, new in pairs)


def test_samples_made_elsewhere_train_as_they_are(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", {"prompt": "7+8=", "response": "15", "reward": 0.7},
                 {"problem": "7+8=?", "response": "16", "reward": -3})
    assert command(capsys, "train", "--samples", path, "--out", tmp_path / "t")[0] == 0


LONG = {"problem": "1+" * 100, "answer": "1", "response": "2", "reward": 1.0}


@pytest.mark.parametrize("rows, argv, message", [
    ([], "train --samples FILE", "empty"),
    (["{"], "train --samples FILE", ":1: not a JSON object"),
    ([{"problem": "x"}], "train --samples FILE", "no field `response`"),
    ([GOOD | {"reward": math.nan}], "train --samples FILE", "must be a finite number"),
    ([GOOD | {"reward": 0}], "train --samples FILE", "nothing to learn from"),
    ([GOOD | {"reward": -1}], "train --loss rft --samples FILE", "nothing to learn from"),
    ([LONG], "train --samples FILE", ":1: 201 tokens of prompt and 2 of response"),
    ([LONG], "sample --problems FILE", ":1: 201 tokens of prompt"),
    ([LONG | {"solution": "x"}], "compare --problems FILE", ":1: 201 tokens of prompt"),
    ([GOOD], "compare --problems FILE", "no field `solution`"),
    ([{"response": "x"}], "score --samples FILE", "no field `prompt` or `problem`"),
    ([GOOD | {"answer": None}], "score --samples FILE", "no field `answer`"),
    ([GOOD], "train", "required: --samples"),
    ([GOOD], "train --samples no-such-file", "no-such-file: cannot be read"),
    ([GOOD], "train --samples FILE --model data/no-such-folder", "no such folder"),
    ([GOOD], "train --samples FILE --model data", "no model that transformers can load"),
    ([GOOD], "train --samples FILE --device nonsense", "no model that transformers can load"),
    ([GOOD], "train --samples FILE --rate 1", "unrecognized arguments: --rate"),
    ([GOOD], "train --samples FILE --k 4", "unrecognized arguments: --k 4"),
    ([GOOD], "train --samples FILE --seed 1 2", "unrecognized arguments: 2"),
    ([GOOD], "train --samples FILE --lr nan", "--lr nan: must be"),
    ([GOOD], "train --samples FILE --batch-size 0", "--batch-size 0: must be"),
    ([GOOD], "train --samples FILE --warmup 5", "--warmup 5.0: must be from 0 to 1"),
    ([GOOD | {"kind": None}], "eval --test FILE", "no field `kind`"),
    ([GOOD], "train --samples FILE --loss rfit", "--loss: invalid choice"),
    ([GOOD], "train --samples FILE --template x", "has no {problem} in it"),
    ([GOOD], "fit --samples FILE", "invalid choice: 'fit'"),
])
def test_mistakes_end_with_one_line_and_nothing_written(
        tmp_path, capsys, monkeypatch, rows, argv, message):
    path = write(tmp_path / "x.jsonl", *rows)
    monkeypatch.chdir(HERE)
    argv = [path if word == "FILE" else word for word in argv.split()]
    status, out, error = command(capsys, *argv, "--out", tmp_path / "out")
    assert status == 2 and message in error and error.startswith("rift.py: error: ")
    assert error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    path = write(tmp_path / "x.jsonl", GOOD)
    status, _, error = command(capsys, "score", "--samples", path, "--out", tmp_path)
    assert status == 2 and "not a run of rift.py" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex", "x.jsonl"]


@pytest.mark.parametrize("text", ["{", "[1]", "", "7"])
def test_a_run_json_that_is_none_is_an_error_of_one_line(tmp_path, capsys, text):
    path = write(tmp_path / "x.jsonl", GOOD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    status, _, error = command(capsys, "score", "--samples", path, "--out", tmp_path / "out")
    assert status == 2 and "run.json: not the settings of a run" in error
    assert error.count("\n") == 1 and [p.name for p in (tmp_path / "out").iterdir()] == ["run.json"]


@pytest.mark.parametrize("flag", ["--k 0", "--top-p 2", "--lr -1", "--lr nan", "--wrong=-inf",
                                  "--right 1e39", "--epochs inf", "--seed -1"])
def test_absurd_values_end_with_one_line(tmp_path, capsys, flag):
    status, _, error = command(capsys, *SMALL, *flag.split(), "--out", tmp_path / "out")
    assert status == 2 and "must be from" in error and re.split("[ =]", flag)[0] in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_help_lists_every_flag_of_a_command(capsys):
    seen = set()
    for name in ("compare", "sample", "score", "train", "eval"):
        with pytest.raises(SystemExit) as stop:
            command(capsys, name, "--help")
        text = capsys.readouterr().out
        assert stop.value.code == 0 and max(map(len, text.splitlines())) <= 80
        listed = set(re.findall(r"^  --([a-z-]+)", text, re.M))
        assert listed == {flag.replace("_", "-") for flag in rift.flags(name)}
        seen |= rift.flags(name).keys()
    assert seen == {f.name for f in dataclasses.fields(Config)} - {"command", "grid"}


def test_a_stopped_training_says_so_again(tmp_path, capsys):
    """A learning rate of 1e30 overflows; its rerun must not look like a success."""
    path = write(tmp_path / "x.jsonl", *buffer())
    for _ in range(2):
        status, _, error = command(capsys, "train", "--samples", path, "--out", tmp_path / "t",
                                   "--lr", 1e30, "--steps", 5, "--warmup", 0)
        assert status == 2 and "is not finite" in error and error.count("\n") == 1
    assert (tmp_path / "t" / "model" / "model.safetensors").exists()


def test_ctrl_c_ends_with_one_line(capsys, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt
    monkeypatch.setattr(rift, "run", interrupt)
    status, _, error = command(capsys)
    assert status == 130 and "goes on" in error


# --------------------------------------------------------------------------- the checker

# by form: answer ~ gold ;; ...  Every pair is tried both ways round. ⏎ is a line break.
ACCEPT = r"""
integers: 11,\! 234,\! 567 ~ 11234567 ;; 6.02\times10^{2} ~ 602 ;; 12,345,678 ~ 12345678 ;; $5$. ~ 5
    12{,}345 ~ 12345 ;; \textbf{(7)} ~ 7 ;; 12 345 ~ 12345 ;; \boxed{5} ~ 5 ;; 3+4=7 ~ 7 ;; 7.0 ~ 7
    −3 ~ -3
decimals: 0.30000000000000004 ~ 0.3 ;; 0.\overline{3} ~ \frac13 ;; 0.1\overline{6} ~ 1/6 ;; 2. ~ 2
    0.3333333333 ~ 1/3 ;; 1.4142136 ~ \sqrt2 ;; 3.1415927 ~ \pi ;; 0.6666666 ~ 2/3 ;; .25 ~ 0.250
fractions: -\frac{3}{4} ~ \frac{3}{-4} ;; -2\frac13 ~ -\frac73 ;; \\frac{3}{4} ~ 3/4 ;; 2\frac32 ~ 3
    \frac1{12} ~ 1/12 ;; 1\frac12 ~ 3/2 ;; \frac34 ~ 3/4 ;; 3\div4 ~ 0.75 ;; 3:4 ~ \frac34
    1 1/2 ~ 1.5 ;; 3:20 ~ 3/20 ;; 3:4 ~ 6:8
units: 5 \mathrm{~m} / \mathrm{s} ~ 5 ;; \boxed{$15\mbox{ cm}^2$} ~ 15 ;; 12 apples, 3 pears ~ 12, 3
    3 million ~ 3{,}000{,}000 ;; 70 miles per hour ~ 70 ;; 5\,\mathrm{m/s} ~ 5 ;; 5\text{ cm}^2 ~ 5
    3\sqrt2cm ~ 3\sqrt2 ;; 30° ~ 30 degrees ;; 5\% ~ 5 percent ;; 2516_8 ~ 2516 ;; about 5 ~ 5
    €5 ~ 5
constants: \sqrt3\sqrt2-\sqrt6 ~ 0 ;; \sin 30^\circ ~ \frac12 ;; 2sqrt(3) ~ \sqrt{12} ;; √3 ~ \sqrt3
    2^{9999} ~ 2^{9999} ;; \tan^{-1}1 ~ \pi/4 ;; \sqrt[3]{-8} ~ -2 ;; \binom{5}{2} ~ 10 ;; 5! ~ 120
    5\mathrm{i} ~ 5i ;; \sqrt[3]{8} ~ 2 ;; \sqrt{-4} ~ 2i ;; e^{i\pi} ~ -1 ;; \log_2 8 ~ 3
    (1+i)^2 ~ 2i ;; ||-3|-1| ~ 2 ;; 8^{2/3} ~ 4 ;; |{-3}| ~ 3
expressions: \lfloor n/2\rfloor+1 ~ 1+\lfloor n/2\rfloor ;; \frac{x+2}{7} ~ \frac{x}{7}+\frac27
    \vec{a}+2\vec{b} ~ 2\vec{b}+\vec{a} ;; \log_a b ~ \frac{\ln b}{\ln a} ;; \frac{x^2-1}{x-1} ~ x+1
    2\cdot3^{n-1} ~ \frac{2}{3}3^n ;; \binom{n}{2} ~ \frac{n(n-1)}2 ;; \sqrt{ab} ~ \sqrt a\sqrt b
    \sin(2x) ~ 2\sin x\cos x ;; \sin^{-1}x ~ \arcsin x ;; \sin^2 x+\cos^2 x ~ 1 ;; \ln(x^2) ~ 2\ln x
    \frac{n!}{(n-1)!} ~ n ;; (-1)^{n+1} ~ -(-1)^n ;; (x+1)^2 ~ x^2+2x+1 ;; e^{2\ln x} ~ x^2
    |x-1| ~ |1-x|
names: x=\frac\pi2\approx1.57 ~ \frac\pi2 ;; p=5,q=2,p=7,q=2 ~ p=7,q=2;p=5,q=2 ;; \text{Area}=6 ~ 6
    \angle ABC=30^\circ ~ 30 ;; (x,y)=(1,2) ~ y=2,x=1 ;; f^{-1}(x)=x+1 ~ x+1 ;; (p,q)=(3,2) ~ (3,2)
    x\in\{1,2\} ~ x=1,2 ;; x=1, x=2 ~ 1, 2 ;; x=y=1 ~ x=1,y=1 ;; f(x)=x+1 ~ x+1 ;; x=\pm 2 ~ 2,-2
    |AB|=4 ~ 4 ;; A:B=2 ~ 2 ;; 5=x ~ x=5 ;; x=5 ~ 5
equations: x^2/4+y^2=1 ~ x^2+4y^2=4 ;; 2x+4y=6 ~ x+2y-3=0 ;; x \ne 3 ~ x != 3 ;; y=2x+3 ~ 2x+3
intervals: x<1\text{ or }x>2 ~ (-\infty,1)\cup(2,\infty) ;; [2,+\infty) ~ \left[2,\infty\right)
    \{-1\}\cup[0,7) ~ [0,7)\cup\{-1\} ;; f(1)<f(2)<f(3) ~ f(3)>f(2)>f(1) ;; x\in[1,2) ~ 1<=x<2
    \{x\mid x>2\} ~ (2,\infty) ;; -2 \\le x \\le 7 ~ [-2,7] ;; x \geq 5 ~ 5 <= x ;; x>5 ~ (5,\infty)
    2(x-1)>4 ~ x-3>0 ;; 7>x>3 ~ 3<x<7
lists: \{1\pm\sqrt2,3\} ~ 3,1-\sqrt2,1+\sqrt2 ;; x=1\pm\sqrt2,5 ~ 5,1+\sqrt2,1-\sqrt2 ;; \{5\} ~ 5
    (1,2),(3,4) ~ (3,4),(1,2) ;; 19, 46, and 82 ~ 82,46,19 ;; 1000,2000 ~ 2000, 1000
    \pm1,\pm2 ~ 1,-1,2,-2 ;; \emptyset ~ \{\} ;; \{1,2\} ~ 2,1
tuples: \frac12\begin{bmatrix}2\\4\\\end{bmatrix} ~ (1,2) ;; \langle1,2\rangle ~ (1,2)
    \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]
    \begin{pmatrix}1\\2\end{pmatrix} ~ (1,2) ;; {1,3} ~ (1,3)
    \begin{pmatrix}1&1\\0&1\end{pmatrix}\begin{pmatrix}1\\2\end{pmatrix} ~ (3,2)
words: It is a Square ~ it is a square ;; 4:30 p.m. ~ 4\!:\!30\text{ pm} ;; \text{even} ~ Even
    \textbf{(C)}\ \frac12 ~ 0.5 ;; No solution ~ no solution. ;; \textbf{(C)} 7 ~ C ;; (C) ~ C
    5 PM ~ 5:00 p.m. ;; \text{(C)} ~ C"""
REJECT = r"""
numbers: \frac1{2004!} ~ \frac1{2006!} ;; \sqrt{10^{200}} ~ 10^{100}+1 ;; 1\frac12 ~ \frac{11}{2}
    1/2^{98} ~ 1/2^{99} ;; 2^{9999} ~ 2^{9998} ;; e^{100} ~ e^{100}+1 ;; 2.9999999 ~ \sqrt9
    0.33333334 ~ 1/3 ;; \pi ~ \frac{22}7 ;; 120006 ~ 120000 ;; 2516_8 ~ 2516_9 ;; 9.9999999 ~ 10
    \log 2 ~ \ln 2 ;; 1:2:3 ~ 1:6:1 ;; 9999 ~ 10000 ;; 0.333 ~ 1/3 ;; 50% ~ 0.5 ;; 1-1/e ~ 1
    0.05 ~ 5 ;; 1,2 ~ 12 ;; 5 ~ 50
expressions: \lfloor n/5\rfloor ~ \lfloor n/6\rfloor ;; \sum_{k=1}^nk ~ \sum_{k=1}^mk ;; 2^3^2 ~ 64
    (a+5)(b+2) ~ (+5)(b+2) ;; 5\mathrm{i} ~ 5 ;; \sin(\pi n) ~ 0 ;; x ~ \sqrt{x^2} ;; I(0)e^{-t} ~ 0
    \vec a ~ a ;; x+h ~ x+g ;; 2^x ~ x^2 ;; 2abc ~ 2 ;; abc ~ 3 ;; 5m ~ 5
equations: p=5,q=2,p=7,q=3 ~ p=5,q=3,p=7,q=2 ;; x=1,y=2 ~ x=2,y=1 ;; x=1,y=2 ~ 2,1 ;; 2x>2 ~ -2x>-2
    3x+4 ~ 3x+4=0 ;; x=y=1 ~ x=1 ;; 0x=0 ~ 0y=1 ;; x>5 ~ x>=5 ;; x+z=1 ~ 1 ;; x=5 ~ y=5 ;; 2x=4 ~ 4
    xy=6 ~ 6
structures: \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix}1&2\\3&5\end{pmatrix}
    \begin{pmatrix}1&2\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix} ;; (1,2)\cup(3,4) ~ (1,4)
    (A,B)=(-6,10) ~ x\in(-6,10) ;; 1\pm\sqrt2 ~ 1+\sqrt2 ;; \{1,2\} ~ (1,2) ;; [0,9) ~ (0,9)
    (1,3) ~ (3,1) ;; 1,2,2 ~ 1,1,2 ;; -[0,1) ~ 1
words: it is so ~ it is not so ;; \textbf{(C)} 7 ~ 8 ;; 4:30 pm ~ 4:30 am ;; 2:15 ~ 4:30 ;; 5+ ~ 5
    (A)(B) ~ A ;; no ~ 0 ;; A ~ B"""
EXTRACT = r"""
    First \boxed{1} comes out, and from that the half: $\boxed{\frac12}$. ~ \frac12
    The answer is $x = 3.5$. I hope it is correct. ~ x = 3.5 ;; about 5 million people ~ 5 million
    \boxed{\text{a } \boxed{5}} ~ \text{a } \boxed{5} ;; \boxed{5}, no: the final answer is $6$. ~ 6
    the answer is $1$ or $2$ if $n=3$. ~ 1, 2 ;; I have $5 and spend $2, so $3 is left ~ 3
    \boxed{1} papers, \boxed{2} bins ~ 1, 2 ;; \boxed{5}. The answer is 3 times 2. ~ 5
    Final answer: no solution ~ no solution ;; so \boxed{\frac{1}{2}}. ~ \frac{1}{2}
    <think>\boxed{1}</think> It is 2. ~ 2 ;; the answer is B because 3 > 2 ~ B ;; $f(x)$ is 19. ~ 19
    \boxed{1}. Check. \boxed{2} ~ 2 ;; \boxed{5} and then \boxed{6 ~ 5 ;; the answer is:⏎$$⏎5⏎$$ ~ 5
    so \(x=1\), \(x=2\) ~ x=1, x=2 ;; at 4:30 p.m. today ~ 4:30 p.m ;; #### 1,234 apples ~ 1,234
    x is $5$ and y is $6$ ~ 6 ;; A. Because B is wrong ~ A ;; 10\sqrt{3} ~ 10\sqrt{3}
    Answer: (C) 12 cm ~ C ;; 6*7=42⏎#### 42 ~ 42"""


def _pairs(table):
    return [tuple(pair.strip().split(" ~ ")) for line in table.strip().splitlines()
            for pair in re.sub("^[a-z ]+:", "", line).split(";;") if " ~ " in pair]


CASES = [(*pair, True) for pair in _pairs(ACCEPT)] + [(*pair, False) for pair in _pairs(REJECT)]


@pytest.mark.parametrize("answer, gold, want", CASES)
def test_is_equiv(answer, gold, want):
    assert is_equiv(answer, gold) is is_equiv(gold, answer) is want
    assert is_equiv(answer, answer) and is_equiv(gold, gold)


@pytest.mark.parametrize("response, want", _pairs(EXTRACT))
def test_extract_answer(response, want):
    assert extract_answer(response.replace("⏎", "\n")) == want


def test_math_reward():
    assert math_reward(r"Half of it: $\boxed{\frac12}$", "0.5")
    assert math_reward("#### 18", "9 + 9 = 18\n#### 18")
    assert not math_reward("#### 19", "9 + 9 = 18\n#### 18")
    assert math_reward(r"\boxed{7}", r"... so $x = \boxed{7}$ cm.")
    assert not math_reward("", "5") and not is_equiv("", "5") and not is_equiv("5", "")
    assert extract_answer("") is extract_answer(" \n ") is extract_answer("no idea" * 20) is None
    assert extract_answer(r"\boxed{1}" + " blah" * 5000 + " so 7") == "7"
    assert not is_equiv("(" * 40 + "x" + ")" * 40, "x") and not is_equiv("600!", "600\\cdot599!")


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
    for a, b in pairs + [(fuzzed(rng), fuzzed(rng)) for _ in range(3000)]:
        for verdict in (is_equiv, math_reward):
            start = time.perf_counter()
            assert type(verdict(a, b)) is type(verdict(b, a)) is bool
            assert time.perf_counter() - start < 1.0, (a[:80], b[:80])     # 20 times what it takes
        assert is_equiv(a, a) and is_equiv(a, b) == is_equiv(b, a)


def test_threads_agree_with_one():
    cases = [case[:2] for case in CASES] + [(a, "5") for a in HOSTILE]
    alone = [is_equiv(*case) for case in cases]
    checker._read.cache_clear(), checker._evaluate.cache_clear(), checker._names.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(lambda: [is_equiv(*case) for case in cases]) for _ in range(8)]
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

README = (HERE / "README.md").read_text(encoding="utf-8")
RESULTS = {"one": json.loads((HERE / "data" / "results.json").read_text()),
           **json.loads((HERE / "data" / "study.json").read_text())}


def fences(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_readme_commands_parse(tmp_path):
    """The shell runs them as they stand, with a `python` that prints its arguments only."""
    (tmp_path / "runs" / "chain").mkdir(parents=True)
    typed = "set -eu; python() { printf '%q ' \"$@\"; echo; }; pip() { :; }; grep() { :; }\n"
    typed += "".join(fences("sh"))
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    made, making = set(), (HERE / "data" / "make_data.py").read_text()
    for script, *words in map(shlex.split, done.stdout.splitlines()):
        if script == "rift.py":
            made.add(Path(rift.parse(words).out).name)
        elif script == "data/make_data.py":
            assert all(f'"{word}"' in making for word in words if word.startswith("--"))
        else:
            assert [script, *words[:2]] in (["-m", "pytest", "-q"], ["bench.py"]), script
    assert set(RESULTS) - {"one"} <= made


def test_readme_shows_the_loss_as_it_is():
    assert inspect.getsource(rift.rift_loss) in fences("python")[0]


def test_readme_table_is_the_shipped_result():
    blocks = [block.rstrip("\n") for block in fences("text")]
    assert blocks == [rift.table(RESULTS["one"]).split("\n\n")[0]]


@pytest.mark.parametrize("name", ["one", "seeds", "collapse", "rewards", "which-pi", "rounds"])
def test_results_are_those_of_the_shipped_data(name):
    for flag, path in (("problems", "train"), ("test", "test"), ("model", "tiny-base")):
        file = HERE / "data" / (path + ".jsonl" * (flag != "model"))
        now = rift.settings(Config(**{flag: str(file)}))
        assert RESULTS[name]["settings"][flag] == now[flag]


def test_study_has_ten_seeds_in_every_cell():
    for name, results in RESULTS.items():
        cells = {}
        for cell in results["cells"]:
            setting = tuple(cell[one] for one in ("method", *rift.GRID[1:], "round"))
            cells.setdefault(setting, []).append(cell["seed"])
        default = [*range(5 if name.startswith("base") else 10)]
        seeds = {"one": [0], "search": [10, 11, 12]}.get(name, default)
        assert all(sorted(mine) == seeds for mine in cells.values()), name


def test_compare_takes_the_best_learning_rates_of_the_search():
    cells = RESULTS["search"]["cells"]
    for method in rift.METHODS:
        by_lr = {}
        for cell in cells:
            if cell["method"] == method:
                by_lr.setdefault(cell["lr"], []).append(cell["results"]["all"]["mean@8"][0])
        if method not in ("base", "naive-same-lr"):
            assert len(by_lr) == 4 and {len(seeds) for seeds in by_lr.values()} == {3}
            best = max(by_lr, key=lambda lr: statistics.fmean(by_lr[lr]))
            assert rift.OWN_LR.get(method, Config.lr) == best
            assert min(by_lr) < best < max(by_lr)           # the grid is wide enough


def test_readme_prose_quotes_the_tables(monkeypatch):
    monkeypatch.syspath_prepend(HERE / "data")
    from make_data import by_base
    tables = " ".join(rift.table(results) for results in RESULTS.values())
    for held, figure in itertools.product(("0.98", "0.99"), ("greedy", "mean@8")):
        for one, other, _ in rift.DIFFERENCES[:3]:
            mean, half = by_base(RESULTS, held, one, other, figure)[-1]
            tables += f" {mean:+.1f} ± {half:.1f}"
    section = README.split("## What we found")[1].split("\n## ")[0]
    section = re.sub(r"(?s)```.*?```|`.*?`", "", section)
    close = re.compile(r"\s*±\s*")
    numbers = re.findall(r"[-+]?\d+\.\d(?:±\d+\.\d)?", close.sub("±", section))
    missing = {number for number in numbers if number not in close.sub("±", tables)}
    assert len(numbers) > 30 and not missing


def test_readme_benchmarks_are_the_shipped_ones():
    section = README.split("## Speed")[1].split("\n## ")[0]
    for row in json.loads((HERE / "data" / "bench.json").read_text()):
        assert row["met"] and re.search(rf"\b{row['ratio'] or row['ours']:.3g}\b", section), row


def test_readme_scale_out_example_has_the_gradient_of_one_process(tmp_path):
    """Two processes of 4 samples take the steps of one process of 8."""
    pytest.importorskip("accelerate", reason="the Scale out example needs accelerate")
    code = next(block for block in fences("python") if "RiftTrainer" in block)
    assert len(code.splitlines()) <= 25
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
        model = rift.AutoModelForCausalLM.from_pretrained(tmp_path / "scaled" / "checkpoint-3")
        ends.append(weights(model))
        shutil.rmtree(tmp_path / "scaled")
    start = weights(rift.load_model(TINY, "cpu")[0])
    moved = max((ends[0][name] - start[name]).abs().max() for name in start)
    assert moved > 1e-4
    same(*ends, rtol=0, atol=moved / 1000)


def test_every_script_runs_with_what_is_in_requirements():
    """rift.py and math_reward.py import nothing but the standard library and the four packages."""
    allowed = {"torch", "transformers", "sympy", "mpmath", "tqdm", "matplotlib", "math_reward"}
    for name in ("rift.py", "math_reward.py"):
        tree = ast.parse((HERE / name).read_text())
        for node in ast.walk(tree):
            for module in ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                           else [node.module] if isinstance(node, ast.ImportFrom) else []):
                assert module.split(".")[0] in allowed | set(sys.stdlib_module_names), module
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__")


def test_data_is_disjoint_right_and_small(tmp_path):
    sets = {name: rift.read_problems(str(HERE / "data" / f"{name}.jsonl"))
            for name in ("train", "valid", "test")}
    assert len(sets["test"]) == 2000
    problems = [row["problem"] for rows in sets.values() for row in rows]
    assert len(set(problems)) == len(problems)
    for row in itertools.chain(*sets.values()):
        terms = re.findall(r"([-+*]?)(\d+)", row["problem"])
        value = [int(terms[0][1])]
        for op, number in terms[1:]:
            if op == "*":
                value[-1] *= int(number)
            else:
                value.append(int(op + number))
        assert sum(value) == int(row["answer"]) and ("*" in row["problem"]) == (
            row["kind"] == "misconception")
        assert rift.math_reward(row["solution"], row["answer"])
    assert sum(path.stat().st_size for path in (HERE / "data").rglob("*")) < 8e6
    assert sum(path.stat().st_size for path in (HERE / "data" / "tiny-base").rglob("*")) < 3e6
