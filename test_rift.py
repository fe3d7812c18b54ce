"""Tests of rift.py, data/commands.py and math_reward.py, in the order of the files."""
from __future__ import annotations

import ast
import contextlib
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
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
DATA, TINY, EOS = HERE / "data", str(HERE / "data" / "tiny-base"), 0
sys.path.insert(0, str(DATA))
import commands
import math_reward as checker
import rift
from math_reward import extract_answer, is_equiv, math_reward
from rift import Sampling, Training, UserError

@pytest.fixture(scope="session")
def tiny():
    return rift.load_model(TINY, "cpu")

@pytest.fixture
def fresh():                                                    # float64, for exact comparisons
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
e = math.exp

@pytest.mark.parametrize("level", LEVELS)
def test_rift_is_bounded_and_naive_is_not(level):
    """Of a wrong response, as functions of pi: RIFT is in [0, |r|] and its gradient is the constant
    -r; naive has no bound, and its gradient is -r / pi. A right response has -r / pi in both."""
    for loss, r, gradient in ((rift.rift_loss, -0.7, lambda pi: 0.7 + 0 * pi),
                              (rift.naive_loss, -0.7, lambda pi: 0.7 / pi),
                              (rift.rift_loss, 0.7, lambda pi: -0.7 / pi),
                              (rift.naive_loss, 0.7, lambda pi: -0.7 / pi)):
        pi = f64([1.0, 0.5, 1e-9, 1e-300]).requires_grad_()
        losses = loss(pi.log()[:, None], torch.ones(4, 1), f64([r] * 4), level)
        torch.testing.assert_close(torch.autograd.grad(losses.sum(), pi)[0], gradient(pi.detach()))
        if r < 0 and loss is rift.rift_loss:
            assert losses.min() >= 0 and losses.max() <= 0.7
        else:
            torch.testing.assert_close(losses, -r * pi.log())

@pytest.mark.parametrize("name, level, want", [
    ("rift", "sequence", [1.2, 0.2 * e(-0.9), e(-0.7)]),
    ("rift", "mean", [0.4, 0.2 * e(-0.45), e(-0.7)]),
    ("rift", "token", [1.2, 0.2 * (e(-0.5) + e(-0.4)), e(-0.7)]),
    ("naive", "sequence", [1.2, -0.18, -0.7]), ("naive", "mean", [0.4, -0.09, -0.7]),
    ("naive", "token", [1.2, -0.18, -0.7]), ("rft", "sequence", [0.6, 0, 0]),
    ("rft", "mean", [0.2, 0, 0]), ("rft", "token", [0.6, 0, 0]),
    ("sft", "sequence", [0.6, 0.9, 0.7]), ("sft", "mean", [0.2, 0.45, 0.7]),
    ("sft", "token", [0.6, 0.9, 0.7]), ("topr", LOG_MU, [1.2, 0.2 * e(-0.5), 1.8])])
def test_losses_by_hand(name, level, want):
    loss = rift.LOSSES[name](LOGPS, MASK, REWARDS, level)       # (B,)
    torch.testing.assert_close(loss, f64(want))

@pytest.mark.parametrize("name, level", [("topr", LOG_MU), *itertools.product(
    ("rift", "naive", "rft", "sft"), LEVELS)])
def test_of_every_loss(name, level):
    def of(logps, mask=MASK, rewards=REWARDS, level=level):
        return rift.LOSSES[name](logps, mask, rewards, level)
    assert torch.autograd.gradcheck(of, LOGPS.clone().requires_grad_())
    wide = torch.cat([LOGPS, torch.full((3, 2), -torch.inf)], 1).requires_grad_()
    padded = of(wide, F.pad(MASK, (0, 2)))
    torch.testing.assert_close(padded, of(LOGPS))
    padded.sum().backward()
    assert wide.grad.isfinite().all() and not wide.grad[:, 3:].any()
    turned = level.flip(0) if name == "topr" else level
    flipped = of(LOGPS.flip(0), MASK.flip(0), REWARDS.flip(0), turned)
    torch.testing.assert_close(flipped, of(LOGPS).flip(0))
    if name != "sft":
        assert not of(LOGPS, rewards=0 * REWARDS).any()
    assert of(LOGPS[:1], 0 * MASK[:1], REWARDS[:1], turned if name != "topr" else f64([0.0])) == 0
    log_pi, _ = rift.log_policy(torch.full((1, 999), -0.01).bfloat16(), torch.ones(1, 999))
    assert log_pi.dtype == torch.float32 and log_pi.item() == pytest.approx(-9.99, rel=0.01)

def test_topr_is_smooth_at_mu_and_rift_is_topr_with_mu_of_one():
    """Of a wrong response: |r| min(pi/mu, 1) grad log pi on both sides of mu, and at it."""
    for log_rho in (-5.0, -0.3, -1e-7, 0.0, 1e-7, 0.3, 1.9):
        logps = f64([[log_rho - 2.0]]).requires_grad_()
        loss = rift.topr_loss(logps, torch.ones(1, 1), f64([-0.2]), f64([-2.0]))
        loss.sum().backward()
        assert logps.grad.item() == pytest.approx(0.2 * min(e(log_rho), 1))
        assert loss.item() == pytest.approx(0.2 * (e(log_rho) if log_rho < 0 else 1 + log_rho))
    torch.testing.assert_close(rift.topr_loss(LOGPS, MASK, REWARDS, 0 * LOG_MU),
                               rift.rift_loss(LOGPS, MASK, REWARDS))

# ------------------------------------------------------------------------ log-probabilities
def small():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128)).double().eval()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    return model

def examples(*pairs):
    return [rift.Example({}, prompt, response) for prompt, response in pairs]

def full_logps(model, batch):                                   # from all the logits at once
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids"][:, 1:, None]).squeeze(2)
    return chosen * batch["mask"][:, 1:]

@pytest.mark.parametrize("new_torch", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 10 ** 6])
def test_logps_are_those_of_the_full_logits_a_few_at_a_time(rows, new_torch, monkeypatch):
    model, sizes, kept = small(), [], []
    assert rift.plain_head(model)
    if not new_torch:                                           # torch before 2.13
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    for name in {"linear_cross_entropy", "cross_entropy"} & {*dir(F)}:
        def spy(hidden, *args, true=getattr(F, name), **options):
            sizes.append(getattr(options.get("options"), "batch_chunk_size", len(hidden)))
            return true(hidden, *args, **options)
        monkeypatch.setattr(F, name, spy)
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", 50 * rows + 49)
    batch = rift.collate(examples(([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10]), ([1, 1], [0])), "cpu")
    model.register_forward_hook(lambda module, args, out: kept.append(out.logits.shape[1]))
    ours = rift.response_logps(model, **batch)
    assert kept == [1] and max(sizes) <= rows
    full = full_logps(model, batch)
    torch.testing.assert_close(ours, full)
    push = torch.randn(ours.shape, dtype=ours.dtype)
    for a, b in zip(*(torch.autograd.grad((logps * push).sum(), list(model.parameters()))
                      for logps in (ours, full))):
        torch.testing.assert_close(a, b)

@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("dtype, autocast", [
    (torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_logps_are_in_float32(dtype, autocast, plain, monkeypatch):
    """Also where the model's body is in bfloat16; the gradients come in its own dtype."""
    supported = torch.set_flush_denormal(False)
    model, tokenizer = rift.load_model(TINY, "cpu", dtype)      # sets it: they are slow on a CPU
    assert not supported or (torch.tensor([1e-38]) * 0.01).item() == 0
    monkeypatch.setattr(rift, "plain_head", lambda model: plain)
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)       # autocast spares it
    batch = rift.collate([rift.encode(tokenizer, row) for row in buffer()], model.device)
    labels = batch["input_ids"].masked_fill(~batch["mask"], -100)
    with torch.autocast("cpu", torch.bfloat16, autocast):
        ours = rift.response_logps(model, **batch)
        output = model(input_ids=batch["input_ids"], output_hidden_states=True, labels=labels)
    logits = output.logits.float()
    if plain:
        logits = output.hidden_states[-1].float() @ model.lm_head.weight.float().T
    want = -F.cross_entropy(logits.mT[:, :, :-1], labels[:, 1:], reduction="none")
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)        # in dtype, too
    torch.testing.assert_close(-ours.sum() / batch["mask"].sum(), output.loss, rtol=.01, atol=.01)
    [ours], [want] = (torch.autograd.grad(logps.sum(), [model.lm_head.weight], retain_graph=True)
                      for logps in (ours, want))
    assert ours.dtype == dtype and torch.cosine_similarity(ours, want, 0).min() > 0.98

# ------------------------------------------------------------------------- data and batches
def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n"
                            for row in rows))
    return str(path)

GOOD = {"problem": "7+8=?", "answer": "15", "response": "15", "reward": 1}

def test_collate_trains_the_response_and_its_eos_alone(tiny):
    tokenizer = tiny[1]                                         # its padding is EOS too
    row = {"problem": "7+8=?", "response": "15"}
    example = rift.encode(tokenizer, row)
    prompt, response = example.prompt, example.response
    assert example.row is row and tokenizer.decode(prompt) == "7+8=?\n"
    assert tokenizer.decode(response) == "15<eos>"
    assert rift.encode(tokenizer, row | {"truncated": True}).response == response[:-1]
    assert rift.encode(tokenizer, row | {"ids": [3, 7, 17]}).response == [3, 7, 17]   # as drawn
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
    for row, want in (({"problem": "7"}, [bos, 9, 20]), ({"prompt": "7"}, [bos, 9]),
                      ({"prompt": "<s>7"}, [bos, 9]), ({"prompt": "<s>7<eos>"}, [bos, 9, EOS])):
        assert rift.encode(tokenizer, row).prompt == want
    for response in ("15", "15<eos>"):
        assert rift.encode(tokenizer, {"prompt": "7", "response": response}).response == [3, 7, EOS]
    tokenizer.chat_template = ("{{ bos_token }}={{ messages[0]['content'] }}="
                               "{% if add_generation_prompt %};{% endif %}")
    for row, want in (({"problem": "7"}, "<s>=7=;"), ({"prompt": "7", "problem": "8"}, "<s>7")):
        assert tokenizer.decode(rift.encode(tokenizer, row).prompt) == want

def test_published_formats_and_the_users_fields(tmp_path):
    gsm8k = {"question": "6*7?", "answer": "It is <<6*7=42>>42.\n#### 1,042"}
    math_ = {"problem": "Half?", "level": "Level 1", "type": "Algebra",
             "solution": "It is not \\boxed{1}. It is $\\boxed{\\frac{1}{2}}$."}
    math500 = {"problem": "Half?", "solution": "$\\boxed{x}$", "answer": "\\frac{1}{2}", "level": 2}
    rows = rift.read_problems(write(tmp_path / "p.jsonl", "\ufeff" + json.dumps(gsm8k), math_, "",
                                    math500, {"problem": "6*7", "answer": 42}))
    assert [row["problem"] for row in rows] == ["6*7?", "Half?", "Half?", "6*7"]
    for row, right, wrong in zip(rows, ("1042", "0.5", "0.5", "42"), ("42", "1", "x", "41")):
        assert rift.math_reward(f"\\boxed{{{right}}}", row["answer"])
        assert not rift.math_reward(f"\\boxed{{{wrong}}}", row["answer"])
    assert rows[2]["level"] == 2 and rows[3]["answer"] == "42"
    assert len(rift.read_problems(str(tmp_path / "p.jsonl"), 2)) == 2
    row = {"question": "7+8=?", "completion": "15", "reward": 0.5, "answer": "15", "line": "mine"}
    path = write(tmp_path / "x.jsonl", row, row | {"prompt": "<u>7+8="})
    for need in ("reward", "answer", ""):
        read = rift.read_samples(path, need)
        assert read[0] == row | {"problem": "7+8=?", "response": "15"}
        assert read[1] == read[0] | {"prompt": "<u>7+8="} and read[1].where == f"{path}:2"

@pytest.mark.parametrize("reader, row, message", [
    ("problems", '{"problem": ', "not a JSON object"), ("problems", "[1]", "not a JSON object"),
    ("problems", {"answer": "3"}, "`problem` or `question` must be text"),
    ("problems", {"problem": " ", "answer": "3"}, "`problem` or `question` must be text"),
    ("problems", GOOD | {"prompt": [{"role": "user"}]}, "`prompt` or `problem` must be text"),
    ("problems", {"problem": "x"}, "`answer` or `solution` must be text"),
    ("problems", {"problem": "x", "solution": "y"}, "no `answer`"),
    ("reward", {"problem": "x", "reward": 1}, "`response` or `completion` must be text"),
    ("reward", {"response": "x", "reward": 1}, "`prompt` or `problem` or `question` must be"),
    ("reward", {"problem": "x", "response": "y"}, "`reward` must be a finite number"),
    *(("reward", GOOD | {"reward": r}, "`reward` must be") for r in (math.nan, -1e39, "1", True)),
    ("answer", GOOD | {"answer": None}, "`answer` or `solution` must be text")])
def test_bad_lines_are_named(tmp_path, reader, row, message):
    path = write(tmp_path / "x.jsonl", GOOD, "", row)
    with pytest.raises(UserError, match=re.escape(f"{path}:3: {message}")):
        if reader == "problems":
            rift.read_problems(path)
        rift.read_samples(path, reader)

LONG = {"problem": "1" * 120, "answer": "1", "response": "2" * 7, "reward": 1.0}    # 129 tokens

def test_rows_that_do_not_fit_are_named_or_left_out(tiny, tmp_path, capsys):
    fits = LONG | {"problem": "1" * 119}                        # 128, the model's context
    ended = GOOD | {"response": "", "truncated": False}         # it ended by itself at once
    read = rift.read_samples(write(
        tmp_path / "x.jsonl", GOOD, LONG, GOOD | {"response": ""},
        GOOD | {"response": "", "truncated": True}, fits, ended, GOOD | {"ids": [4]}), "reward")
    for number, message in ((1, ":2: 129 tokens, but the model's context is 128"), (2, ":3: an em"),
                            (3, ":4: an empty"), (6, ":7: `ids` of another tokenizer")):
        with pytest.raises(UserError, match=re.escape(message)):
            rift.encode_all(*tiny, read[number:], Training())
    kept = rift.encode_all(*tiny, read, Training(skip_unfit=True))
    assert [example.row for example in kept] == [GOOD, fits, ended] and kept[2].response == [EOS]
    assert "4 of 7 rows" in capsys.readouterr().out

def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_text("older")
    rift.write_whole(tmp_path / "x", "old")
    def failing(part):
        part.write_text("ne")
        raise RuntimeError("full, as torch.save says it")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'x'}: cannot be written (full")):
        rift.write_whole(tmp_path / "x", failing)
    assert (tmp_path / "x").read_text() == "old"

# ----------------------------------------------------------------------------- sampling loop
def greedy(model, prompts, stop=(EOS,), limit=256):
    return rift.generate(model, prompts, list(stop), 21, Sampling(
        k=1, temperature=0, max_new_tokens=limit), None)[0]

def test_greedy_sampling_is_generate_and_ends_at_a_stop_token_or_limit(fresh, problems):
    model, tokenizer = fresh
    prompts = [rift.encode(tokenizer, row).prompt for row in problems[:12]]
    assert len({len(prompt) for prompt in prompts}) > 2
    for limit in (40, 9):                                       # 9 cuts responses off
        for prompt, ids in zip(prompts, greedy(model, prompts, limit=limit)):
            theirs = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(
                1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=limit)
            assert ids == theirs[0, len(prompt):].tolist()
    [whole] = greedy(model, prompts[:1])
    assert greedy(model, prompts[:1], (EOS, 17)) == [whole[:whole.index(17) + 1]]
    model.config.max_position_embeddings = len(prompts[0]) + 5
    assert greedy(model, prompts[:1]) == [whole[:5]]

def test_choose_follows_temperature_and_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(20000, 1)
    rng = torch.Generator().manual_seed(0)
    for temperature, top_p, want in (
            (0, 1.0, [1, 0, 0, 0]), (1, 1.0, [0.5, 0.3, 0.15, 0.05]), (1, 0.0, [1, 0, 0, 0]),
            (0.5, 1.0, [0.685, 0.247, 0.062, 0.007]), (1, 0.6, [0.625, 0.375, 0, 0])):
        chosen = rift.choose(logits, temperature, top_p, rng)
        shares = (torch.bincount(chosen, minlength=4) / len(chosen)).tolist()
        assert shares == pytest.approx(want, abs=0.02)

def dies_at(monkeypatch, owner, name, number):                  # returns the list of its calls
    true, calls = getattr(owner, name), []
    def dying(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return true(*args)
    monkeypatch.setattr(owner, name, dying)
    return calls

def test_samples_are_seeded(fresh, problems, monkeypatch):
    model, tokenizer = fresh
    calls = dies_at(monkeypatch, rift, "generate", 0)
    a, b, c = (rift.sample(model, tokenizer, problems, Sampling(k=4, rows=34, seed=seed))
               for seed in (0, 0, 1))
    batches = [[len(prompt) for prompt in call[1]] for call in calls]
    assert [len(batch) for batch in batches[:3]] == [8, 8, 8]   # 32 rows, no more than 34
    assert a == b != c and sum(batches[:3], []) == sorted(sum(batches[:3], []))
    assert sorted(row["problem"] for row in a) == sorted(4 * [row["problem"] for row in problems])
    for row in a:
        assert row["response"] + "<eos>" == tokenizer.decode(row["ids"]) and row["kind"]
        assert row["tokens"] == len(row["ids"]) and row["boxed"] == ("boxed{" in row["response"])
    assert len({str(row["ids"]) for row in a}) > 24             # k draws of each, not one
    twice = rift.sample(model, tokenizer, 2 * problems[:1], Sampling(k=9, rows=9, temperature=2.0))
    assert [row["ids"] for row in twice[:9]] != [row["ids"] for row in twice[9:]]

@pytest.mark.parametrize("temperature, top_p, limit, ends", [
    (1.0, 1.0, 256, [EOS, 18]), (2.0, 0.9, 12, [EOS, 18]), (3.0, 1.0, 30, EOS)])
def test_samples_are_trained_as_drawn(fresh, problems, temperature, top_p, limit, ends):
    """Also where several tokens stop, some are special, and the head has rows beyond the tokens."""
    model, tokenizer = fresh
    tokenizer.add_special_tokens({"additional_special_tokens": ["="]})  # as <think> may be
    model.generation_config.eos_token_id, tokenizer.eos_token = ends, "?"
    stop = {EOS, 16, *(ends or [])}
    model.resize_token_embeddings(30)
    with torch.no_grad():
        model.lm_head.weight[21:] = model.lm_head.weight[3]     # as likely as a digit
    config = Sampling(k=2, temperature=temperature, top_p=top_p, max_new_tokens=limit)
    drawn = rift.sample(model, tokenizer, problems, config)
    encoded = [rift.encode(tokenizer, row) for row in drawn]
    with torch.no_grad():
        logps = full_logps(model, rift.collate(encoded, model.device)).sum(1)
    assert logps.tolist() == pytest.approx([row["logp"] for row in drawn], abs=1e-3)
    assert [example.response for example in encoded] == [row["ids"] for row in drawn]
    assert any("=" in row["response"] for row in drawn)
    assert any(row["ids"][-1] in (EOS, 18) for row in drawn)
    for row in drawn:
        assert row["truncated"] == (row["ids"][-1] not in stop) >= (len(row["ids"]) > limit)
        assert not stop & {*row["ids"][:-1]} and max(row["ids"]) <= 20
        text = tokenizer.decode(row["ids"])
        assert text == row["response"] or not row["truncated"] and row["response"] == text[:-len(
            tokenizer.decode(row["ids"][-1:]))]
    [log] = rift.train(model, tokenizer, [row | {"reward": 1.0} for row in drawn], Training(
        steps=1, batch_size=99))
    assert log["logp_pos"] == pytest.approx(logps.mean().item(), abs=1e-3)

@pytest.mark.parametrize("tail", ["", '{"problem": "half a li'])
def test_killed_sampling_goes_on_to_the_same_file(tiny, problems, tmp_path, monkeypatch, tail):
    config, path = Sampling(k=2, rows=20), tmp_path / "samples.jsonl"   # 10, 10 and 4 problems
    rift.sample(*tiny, problems, config, tmp_path / "whole.jsonl")
    calls = dies_at(monkeypatch, rift, "generate", 3)
    with pytest.raises(KeyboardInterrupt):
        rift.sample(*tiny, problems, config, path)
    assert len(path.read_text().splitlines()) == 40             # two batches of three are kept
    with open(path, "a") as file:                               # and a part of the third
        file.write(json.dumps(GOOD) + "\n" + tail)
    for _ in range(2):                                          # one batch was left; then none
        samples = rift.dump_jsonl(rift.sample(*tiny, problems, config, path))
        assert samples == path.read_text() == (tmp_path / "whole.jsonl").read_text()
        assert len(calls) == 4

def test_score_asks_the_checker_and_says_what_was_cut_off(monkeypatch):
    monkeypatch.setattr(rift, "math_reward", lambda response, answer, truncated: (
        (response, answer, truncated) == ("15", "15", False)))
    rows = [GOOD | {"response": "15"}, GOOD | {"response": "16"}, GOOD | {"truncated": True}]
    assert [row["reward"] for row in rift.score(rows, 3.0, -2.0)] == [3.0, -2.0, -2.0]

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
    torch.testing.assert_close(a, {name: b[name] for name in a}, **tolerance)

@pytest.mark.parametrize("loss, level", [("rift", "sequence"), ("rift", "mean"), ("naive", "token"),
                                         ("rft", "mean"), ("sft", "token"), ("topr", "sequence")])
def test_micro_batches_and_checkpointing_change_nothing(fresh, loss, level):
    model, tokenizer = fresh
    start, ends, logs = weights(model), [], []
    for budget, less_memory in ((10 ** 6, False), (60, False), (1, False), (10 ** 6, True)):
        model.load_state_dict(start)
        logs.append(rift.train(model, tokenizer, buffer(), Training(
            loss=loss, level=level, steps=2, batch_size=5, tokens_per_batch=budget,
            gradient_checkpointing=less_memory)))
        ends.append(weights(model))
        assert model.is_gradient_checkpointing is less_memory and not model.training
    assert max(log["n_neg"] for log in logs[0]) <= 2            # a reward of 0 is neither
    assert len(logs[0]) == 2 and not torch.equal(ends[0]["lm_head.weight"], start["lm_head.weight"])
    for end, log in zip(ends[1:], logs[1:]):
        same(end, ends[0], rtol=1e-6, atol=1e-9)
        for name, value in log[1].items():                      # None where there is no negative
            assert value == pytest.approx(logs[0][1][name])

def test_micro_batches_stay_within_the_budget():
    rows = examples(*((n // 2 * [1], (n - n // 2) * [1]) for n in (10, 27, 10, 16, 11)))
    for budget, want in ((9, [[27], [16], [11], [10], [10]]), (32, [[27], [11, 16], [10, 10]]),
                         (31, [[27], [16], [10, 11], [10]])):
        parts = rift.micro_batches(rows, budget)
        assert [sorted(len(x.prompt + x.response) for x in part) for part in parts] == want

@pytest.mark.parametrize("loss, level, clip", [
    ("rift", "sequence", 0.01), ("rift", "mean", 0), ("rift", "token", 9), ("topr", "sequence", 0)])
def test_one_step_is_the_gradient_of_the_loss_on_its_samples(fresh, loss, level, clip):
    """A step of train against AdamW on a gradient taken by hand; a clip of 0 is none."""
    (model, tokenizer), start, rows = fresh, weights(fresh[0]), buffer()[:5]
    batch = rift.collate([rift.encode(tokenizer, row) for row in rows], model.device)
    logps, mask = full_logps(model, batch), batch["mask"][:, 1:]
    logps.retain_grad()
    r, divisor = f64([row["reward"] for row in rows]), mask.sum()
    log_pi = logps.sum(1)
    if level == "mean":
        log_pi, divisor = log_pi / mask.sum(1), len(rows)
    push = pi = (logps.exp() * mask).sum(1) if level == "token" else log_pi.exp()
    if loss == "topr":
        log_rho = log_pi - f64([row["logp"] for row in rows])
        push = torch.where(log_rho < 0, log_rho.exp(), 1 + log_rho)
    total = torch.where(r > 0, -r * log_pi, -r * push).sum() / divisor
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    share = (logps.grad * mask).abs().sum(1)
    torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1).step()
    want = weights(model)
    model.load_state_dict(start)
    [log] = rift.train(model, tokenizer, buffer(), Training(
        loss=loss, level=level, steps=1, lr=2e-3, warmup=0, max_grad_norm=clip, weight_decay=0.1))
    same(weights(model), want)
    assert norm > 0.01 and log == pytest.approx({
        "step": 1, "lr": 2e-3, "grad_norm": norm.item(), "loss": total.item(), "n_pos": 3,
        "n_neg": 2, "tokens": mask.sum().item(),
        "neg_share": (share[r < 0].sum() / share.sum()).item(),
        "logp_pos": log_pi[r > 0].mean().item(), "logp_neg": log_pi[r < 0].mean().item(),
        "pi_pos": pi[r > 0].mean().item(), "pi_neg": pi[r < 0].mean().item()}, rel=1e-5)

def test_learning_rate_starts_above_zero_warms_up_and_falls():
    for warmup, want in ((0.2, [2 / 3, 4 / 3, *(1 + math.cos(math.pi * i / 8) for i in range(8))]),
                         (0, [1 + math.cos(math.pi * i / 10) for i in range(10)]),
                         (1.0, [2 * i / 11 for i in range(1, 11)])):
        config = Training(lr=2.0, warmup=warmup)
        assert [rift.learning_rate(step, 10, config) for step in range(10)] == pytest.approx(want)

@pytest.mark.parametrize("n, settings, sizes", [
    (5, {"epochs": 1, "batch_size": 64}, [5]), (5, {"epochs": 2, "batch_size": 64}, [5, 5]),
    (6, {"epochs": 1.5, "batch_size": 4}, [4, 4, 1]), (6, {"epochs": 0.01, "batch_size": 4}, [1]),
    (6, {"steps": 3, "epochs": 9, "batch_size": 4}, [4, 4, 4]), (2, {"steps": 3}, [2, 2, 2])])
def test_epochs_are_passes_in_seeded_order(n, settings, sizes):
    batches = rift.draw_batches(n, Training(**settings))
    drawn = sum(batches, [])
    assert [len(batch) for batch in batches] == sizes and {*drawn} <= {*range(n)}
    for i in range(0, len(drawn), n):
        assert len({*drawn[i:i + n]}) == len(drawn[i:i + n])
    assert batches == rift.draw_batches(n, Training(**settings))
    assert len({str(rift.draw_batches(9, Training(seed=seed))) for seed in range(3)}) == 3

def test_what_each_loss_learns_from():
    kept = {loss: len(rift.useful(buffer(), loss)) for loss in rift.LOSSES}
    assert kept == {"rift": 5, "naive": 5, "rft": 3, "sft": 6, "topr": 5}
    for loss, rewards in (("rift", [0.0, 0.0]), ("naive", [0.0]), ("rft", [0.0, -1.0])):
        with pytest.raises(UserError, match=f"nothing to learn from.* {len(rewards)} .*{loss}"):
            rift.useful([GOOD | {"reward": reward} for reward in rewards], loss)

def strict_jsonl(path):                                         # with no NaN in it
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]

def test_a_step_that_is_not_finite_stops_with_the_last_good_weights(fresh, monkeypatch, tmp_path):
    model, tokenizer = fresh
    true, states = rift.response_logps, []
    def failing(model, **batch):
        states.append(weights(model))
        assert model.training
        return true(model, **batch) * (math.nan if len(states) == 3 else 1)
    monkeypatch.setattr(rift, "response_logps", failing)
    history = rift.train(model, tokenizer, buffer(), Training(steps=4), tmp_path)
    assert len(history) == 3 and "step 3 is not finite" in history[-1]["stopped"]
    same(weights(model), states[2], rtol=0, atol=0)
    assert history == strict_jsonl(tmp_path / "metrics.jsonl") and "stopped" not in history[1]
    assert history[2]["loss"] is history[2]["grad_norm"] is None

def test_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    ends, calls = [], dies_at(monkeypatch, torch.optim.AdamW, "step", 9)  # step 4 of the second
    for name in ("whole", "killed", "killed"):
        (tmp_path / name).mkdir(exist_ok=True)
        model, tokenizer = rift.load_model(TINY, "cpu")
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3             # whose random numbers go on, too
        try:
            history = rift.train(model, tokenizer, buffer(), Training(
                steps=5, batch_size=3, save_every=2), tmp_path / name)
        except KeyboardInterrupt:
            continue
        ends.append((history, weights(model)))
        assert strict_jsonl(tmp_path / name / "metrics.jsonl") == history
    assert len(calls) == 12 and ends[0][0] == ends[1][0] and len(history) == 5  # 5, 4, 3 to 5
    same(ends[0][1], ends[1][1], rtol=0, atol=0)

@pytest.mark.parametrize("length, right, warned", [
    (1, 1, False), (5, 1, True), (60, 1, True), (60, -1, True)])
def test_warning_when_rift_has_become_rft(length, right, warned, capsys):
    """A wrong response of 5 tokens at 4 nats each has pi = e^-20, one of 60 has 0 in float32."""
    wrong = GOOD | {"response": "1" * length, "reward": -0.2}
    for steps in (3, 12):
        rift.train(small().float(), rift.load_model(TINY, "cpu")[1], [
            wrong, wrong | {"reward": right}], Training(steps=steps, lr=1e-9))
        assert ("so this is RFT" in capsys.readouterr().err) is warned

# ------------------------------------------------------------------- evaluation, default job
def test_evaluate_is_the_accuracy_of_the_samples(tiny, problems):
    assert rift.mean_se([0.0, 1.0, 1.0, 1.0]) == [0.75, 0.25] and rift.mean_se([3.0]) == [3.0, 0.0]
    config = Sampling(k=4, temperature=3.0, max_new_tokens=24, skip_unfit=True)    # some cut off
    unfit = rift.Row(problem="1" * 150, answer=1, kind="long")
    results = rift.evaluate(*tiny, [*problems, unfit], config)
    drawn, best = (rift.score(rift.sample(*tiny, problems, config), 1, 0) for config in (
        config, dataclasses.replace(config, k=1, temperature=0)))
    assert list(results) == ["all", "misconception", "slips"]
    for kind, figures in results.items():
        chosen = [row["problem"] for row in problems if kind in ("all", row["kind"])]
        means = {key: [statistics.fmean(row[key] for row in drawn if row["problem"] == problem)
                       for problem in chosen] for key in ("reward", "boxed", "tokens", "truncated")}
        means["mean@4"] = means.pop("reward")
        means["pass@4"] = [float(mean > 0) for mean in means["mean@4"]]
        means["greedy"] = [row["reward"] for row in best if row["problem"] in chosen]
        assert figures.pop("n") == len(chosen) and figures.keys() == means.keys()
        for name, values in means.items():
            assert figures[name] == pytest.approx(rift.mean_se(values))
    assert 0 < results["all"]["truncated"][0] < 1

def test_table():
    figures = {"n": 2000, "greedy": [0.25, 0.03], "mean@8": [0.5, 0.0449], "pass@8": [1.0, 0],
               "boxed": [0.1236, 0.1]}
    rows = [{"name": "SFT, expert solutions", "steps": 57, "results": {
        "all": figures, "x": figures | {"n": 7}}}]
    assert commands.table(2 * rows, 8).splitlines()[:6] == [
        "all (2000)             steps       greedy       mean@8       pass@8        boxed",
        *2 * ["SFT, expert solutions     57   25.0 ± 3.0   50.0 ± 4.5  100.0 ± 0.0   12.4 ±10.0"],
        "", "x (7)                  steps       greedy       mean@8       pass@8        boxed",
        "SFT, expert solutions     57   25.0 ± 3.0   50.0 ± 4.5  100.0 ± 0.0   12.4 ±10.0"]

def command(capsys, *argv):
    """Exit status, stdout and stderr of `python rift.py ARGV`, run in this process."""
    return commands.main([*map(str, argv)]), *capsys.readouterr()

def test_default_job_goes_on_after_a_kill(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    argv = "--train-limit 16 --limit 6 --k 2 --batch-size 4 --wrong -0.25 --out".split()
    exact, dtypes, sampled = rift.load_model(TINY, "cpu")[0].model.rotary_emb.inv_freq, set(), set()
    for name in ("generate", "add_gradient", "response_logps"):
        def spy(model, *args, true=getattr(rift, name), **batch):
            dtypes.add((true.__name__, model.dtype, torch.is_autocast_enabled("cpu")))
            sampled.add(model.dtype is torch.bfloat16 and model.lm_head.weight.float().sum().item())
            assert torch.equal(model.model.rotary_emb.inv_freq, exact)      # not rounded on the way
            return true(model, *args, **batch)
        monkeypatch.setattr(rift, name, spy)
    monkeypatch.setattr(rift, "BFLOAT16_ON", {"cpu"})            # as on CUDA
    status, text, _ = command(capsys, *argv, tmp_path / "whole")
    rows = json.loads((tmp_path / "whole" / "results.json").read_text())["rows"]
    drawn = strict_jsonl(tmp_path / "whole" / "samples.jsonl")
    passes = math.ceil(1.5 * sum(row["reward"] == 1 for row in drawn) / 4)
    assert status == 0 and len(drawn) == 32 and {row["reward"] for row in drawn} == {1, -0.25}
    assert {row["name"]: row["steps"] for row in rows} == {
        "base model": 0, "SFT, expert solutions": 12, "RFT, same passes": passes,
        "RFT, same steps": 12, "naive": 12, "RIFT": 12}
    assert [len(row["history"]) for row in rows] == [row["steps"] for row in rows]
    sft, passes, steps, naive, rift_ = (row["history"][0] for row in rows[1:])
    assert sft["n_pos"] == 4 and passes["n_neg"] == 0 and passes["logp_pos"] == steps["logp_pos"]
    assert naive["pi_neg"] == rift_["pi_neg"] and naive["loss"] != rift_["loss"]
    assert commands.table(rows, 2) in text
    assert dtypes == {("generate", torch.bfloat16, False), ("add_gradient", torch.float32, False),
                      ("response_logps", torch.float32, True)} and len(sampled) == 1 + 6
    assert (tmp_path / "whole" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    path = write(tmp_path / "x.json", {"settings": {"k": 2, "wrong": -0.2}, "rows": [
        row | {"history": 2 * [{"logp_neg": None}]} for row in rows]})
    sys.modules["figure"].draw(Path(path), tmp_path / "x.png")  # no sample was wrong
    calls = dies_at(monkeypatch, rift, "evaluate", 4)
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)          # as where it is not installed
    monkeypatch.delitem(sys.modules, "figure", raising=False)
    argv = ["--steps", 12, "--epochs", 9, *argv]                # the same passes and steps
    status, _, error = command(capsys, *argv, tmp_path / "killed")
    assert status == 130 and "the same command goes on" in error and error.count("\n") == 2
    status, text, error = command(capsys, *argv, tmp_path / "killed")
    assert status == 0 and not error and "no figure: matplotlib is not installed" in text
    assert len(calls) == 4 + 3                                  # three of six rows were there
    for a, b in zip(json.loads((tmp_path / "killed" / "results.json").read_text())["rows"], rows):
        assert a | {"minutes": 0} == b | {"minutes": 0}

# ------------------------------------------------------------------------------ command line
def test_sample_train_eval_score_hand_over_by_files(tmp_path, capsys, monkeypatch):
    """A folder with weights in bfloat16 is sampled and trained in float32, and saved as it was."""
    model, tokenizer = rift.load_model(TINY, "cpu", torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    half = ["--model", tmp_path / "half"]
    status, text, _ = command(capsys, "sample", "--problems", DATA / "valid.jsonl", "--limit", 6,
                              "--k", 2, *half, "--out", tmp_path / "s")
    monkeypatch.setattr(rift, "BFLOAT16_ON", {"cpu"})            # as on CUDA
    samples, trained = tmp_path / "s" / "samples.jsonl", tmp_path / "t" / "model"
    assert status == 0 and f"wrote {samples}: 12 samples" in text and "peak memory " in text
    argv = ["train", "--samples", samples, "--loss", "naive", "--out", tmp_path / "t",
            "--batch-size", 4, "--save-every", 2, *half]
    status, text, _ = command(capsys, *argv)
    assert status == 0 and len(strict_jsonl(tmp_path / "t" / "metrics.jsonl")) == 5
    assert {*os.listdir(tmp_path / "t")} == {"run.json", "metrics.jsonl", "model"}
    saved = AutoModelForCausalLM.from_pretrained(trained, dtype="auto")
    assert saved.dtype == torch.bfloat16 and "torch.float32 on cpu" in text
    assert not torch.equal(saved.lm_head.weight, model.lm_head.weight)
    monkeypatch.setattr(rift, "train", None)                    # done: not trained again
    assert command(capsys, *argv, "--tokens-per-batch", 99)[0] == 0
    text = command(capsys, "score", "--samples", samples, "--right", 3, "--wrong", -2, "--out",
                   tmp_path / "r")[1]
    pairs = [*zip(strict_jsonl(samples), strict_jsonl(tmp_path / "r" / "samples.jsonl"))]
    assert all(new == old | {"reward": 3.0 if old["reward"] == 1 else -2.0} for old, new in pairs)
    assert f"12 samples, {statistics.fmean(old['reward'] == 1 for old, _ in pairs):.1%}" in text
    status, text, _ = command(capsys, "eval", "--model", trained, "--limit", 4, "--k", 2, "--out",
                              tmp_path / "e")
    assert status == 0 and "torch.bfloat16 on" in text
    assert json.loads((tmp_path / "e" / "results.json").read_text())["all"]["n"] == 4

def test_samples_made_elsewhere_and_notes_on_them(tmp_path, capsys):
    rows = [{"prompt": 7, "response": "15", "reward": 0.7, "answer": "15", "line": 3},
            {"question": "7x8=?", "completion": "fünf", "reward": 0, "answer": "15"}]
    for loss, reward, noted in (("rift", 0, 1), ("topr", 0, 1), ("rft", 0, 0), ("sft", "?", 0),
                                ("rift", -3, 0)):
        rows[1]["reward"], out = reward, tmp_path / f"{loss}{noted}"
        path = write(tmp_path / "x.jsonl", *[row | {"logp": -1.0} for row in rows])
        status, text, _ = command(capsys, "train", "--samples", path, "--loss", loss, "--out", out)
        assert status == 0 and text.count("note: 1 of 2 rows") == 1
        assert text.count("no reward is below 0") == noted == text.count("rift.py score --samples")
    step = strict_jsonl(out / "metrics.jsonl")[0]
    assert (step["n_pos"], step["n_neg"], step["tokens"]) == (1, 1, 8)
    assert command(capsys, "score", "--samples", path, "--out", tmp_path / "r")[0] == 0
    assert [(row["reward"], row.get("line")) for row in strict_jsonl(
        tmp_path / "r" / "samples.jsonl")] == [(1.0, 3), (-0.2, None)]

@pytest.mark.parametrize("rows, argv, message", [
    ([], "train --samples FILE", "empty"), (["{"], "eval --test FILE", ":1: not a JSON object"),
    ([GOOD | {"reward": -1}], "train --loss rft --samples FILE", "nothing to learn from"),
    ([GOOD | {"reward": -1}], "train --loss topr --samples FILE", ":1: topr needs `logp`"),
    ([LONG | {"problem": "1" * 150}], "train --samples FILE --skip-unfit", "none of 1 rows fits"),
    ([{"problem": "1" * 127, "answer": 1}], "sample --problems FILE", ":1: 129 tokens"),
    ([GOOD], "--problems FILE", "`solution` must"), ([], "train", "required: --samples"),
    ([GOOD], "train --samples no-such-file", "no-such-file: cannot be read"),
    ([GOOD], "train --samples FILE --model no-such-folder", "no-such-folder: no folder or hub"),
    ([GOOD], "train --samples FILE --model BROKEN", "no folder or hub name of a model that loads"),
    ([GOOD], "train --samples FILE --device nonsense", "a model that loads on nonsense"),
    ([], "sample --frobnicate 3", "--frobnicate 3"), ([], "sample --temp 2", "arguments: --temp 2"),
    ([], "--wrong -0.5 sample", "a command comes before"), ([], "--loss rft --test FILE", "--loss"),
    ([], "train --samples FILE --loss rfit", "--loss: invalid choice"),
    ([], "sample --template x", "has no {problem} in it"), ([], "fit", "no command 'fit'"),
    ([], "--batch-size 0", "--batch-size 0: must be from 1"), ([], "--warmup 5", "from 0 to 1"),
    ([], "sample --wrong=-inf", "--wrong -inf: must be"), ([], "--lr nan", "--lr nan: must be"),
    ([], "--epochs inf", "--epochs inf: must be"), ([], "sample --seed -1", "--seed -1: must be"),
    ([], "sample --seed 36893488147419103232", "--seed 36893488147419103232: must be")])
def test_mistakes_end_with_one_line_and_nothing_written(
        tmp_path, capsys, monkeypatch, rows, argv, message):
    shutil.copytree(TINY, tmp_path / "BROKEN")
    os.truncate(tmp_path / "BROKEN" / "model.safetensors", 9999)
    write(tmp_path / "FILE", *rows)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for out in ("new/out", "empty"):
        status, _, error = command(capsys, *argv.split(), "--out", out)
        assert status == 2 and message in error and error.startswith("rift.py: error: ")
        assert error.count("\n") == 1 and transformers.logging.get_verbosity() == 40  # no warnings
        assert {*os.listdir()} <= {"FILE", "BROKEN", "empty"} and not [*tmp_path.glob("empty/*")]

def test_a_folder_is_left_alone_if_it_is_no_run_or_another(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "x.jsonl", GOOD)
    shutil.copytree(TINY, tmp_path / "mine")
    argv = ["train", "--samples", path, "--steps", 2]
    assert command(capsys, *argv, "--out", tmp_path / "run")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(rift, "load_model", None)               # it is said before the model loads
    write(tmp_path / "mine" / "x.jsonl", GOOD, GOOD)
    for out, more, message in (
            ("mine", [], "is not empty and not a run of rift.py"), ("x.jsonl", [], "not a run of"),
            ("x.jsonl/y", [], "Not a directory"), ("run", ["--lr", 1], "(lr 0.0003 -> 1.0)"),
            ("run", ["--samples", tmp_path / "mine" / "x.jsonl"], "another run's results (sam"),
            ("run", ["--model", tmp_path / "run" / "model"], "another run's results (model ")):
        error = command(capsys, *argv, *more, "--out", tmp_path / out)[2]
        assert message in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in before}
    for text in ("{", "[1]", "", "7"):
        write(tmp_path / "run" / "run.json", text)
        error = command(capsys, *argv, "--out", tmp_path / "run")[2]
        assert "run.json" in error and error.count("\n") == 1

def test_a_file_is_not_read_whole_to_hash_it(tmp_path):
    (tmp_path / "x").write_bytes(bytes(2 ** 24))
    tracemalloc.start()
    found, peak = commands.digest(tmp_path / "x"), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == hashlib.sha256(bytes(2 ** 24)).hexdigest()[:16] and peak < 2 ** 22

def test_a_full_disk_and_a_training_that_stopped(tmp_path, capsys, monkeypatch):
    """The rate overflows at step 2; the disk is full the first time, not the second."""
    out, argv = tmp_path / "t", ["train", "--steps", 5, "--lr", 1e8, "--warmup", 0, "--save-every",
                                 1, "--samples", write(tmp_path / "x.jsonl", *buffer())]
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    calls = dies_at(monkeypatch, rift, "add_gradient", 0)
    for number, message in enumerate(("No space left", "is not finite", "is not finite")):
        with monkeypatch.context() as patch:
            if number == 0:
                patch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
            status, _, error = command(capsys, *argv, "--out", out)
        assert status == 2 and message in error and error.count("\n") == 1
        assert (out / "checkpoint.pt").exists() is (number == 0) is not (out / "model").exists()
    assert len(calls) == 2 + 1 and "stopped" in strict_jsonl(out / "metrics.jsonl")[-1]

def test_a_hub_name_whose_first_part_is_a_folder_here(tmp_path, capsys, monkeypatch):
    (tmp_path / "Qwen").mkdir()
    monkeypatch.chdir(tmp_path)
    for loader in (rift.AutoTokenizer, rift.AutoModelForCausalLM):
        def load(name, *args, true=loader.from_pretrained, **kwargs):
            return true({"Qwen/x": TINY}[name], *args, **kwargs)
        monkeypatch.setattr(loader, "from_pretrained", load)
    argv = ["sample", "--limit", 1, "--k", 1, "--out", "out", "--model"]
    assert command(capsys, *argv, "Qwen/x")[0] == 0
    assert "(model Qwen/x -> other/x)" in command(capsys, *argv, "other/x")[2]

def test_flags_and_help(capsys, monkeypatch):
    quick = commands.parse(["--k", "2", "--out", "x", "--quick", "--train-limit", "7"])
    assert (quick.k, quick.train_limit, quick.limit, quick.out) == (2, 7, 100, "x")
    quick = commands.parse(["--quick", "--limit", "300"])
    assert (quick.k, quick.train_limit, quick.limit, quick.out) == (4, 100, 300, "runs/quick")
    assert commands.parse(["train", "--samples", "x", "--gradient-checkpointing"]) == (
        commands.Train(samples="x", gradient_checkpointing=True))
    monkeypatch.setenv("COLUMNS", "80")
    for name, (cls, _) in commands.COMMANDS.items():
        with pytest.raises(SystemExit) as stop:
            commands.main([name, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and max(map(len, text.splitlines())) <= 80
        for field in dataclasses.fields(cls):
            assert (f"--{field.name.replace('_', '-')} " in text) is field.init

@pytest.mark.parametrize("name, version, old", [
    ("transformers", "4.57.1", "transformers 4.57.1 is too old"), ("transformers", "5.0.0", ""),
    ("torch", "2.7.1+cu128", "torch 2.7.1+cu128 is too old"), ("torch", "2.11.0", "")])
def test_versions_that_are_too_old_are_named(monkeypatch, name, version, old):
    monkeypatch.setattr(getattr(commands, name), "__version__", version)
    with pytest.raises(UserError, match=re.escape(old)) if old else contextlib.nullcontext():
        commands.check_versions()

def test_ctrl_c_ends_without_a_traceback(tmp_path, capsys, monkeypatch):
    write(tmp_path / "torch.py", "import os, signal", "os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, str(HERE / "rift.py")], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == -signal.SIGINT and not done.stderr
    monkeypatch.setattr(rift, "read_problems", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    assert command(capsys, "sample", "--out", tmp_path / "out")[0] == 130

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
    5\,\mathrm{m/s} ~ 5 ;; 3\sqrt2cm ~ 3\sqrt2 ;; 30° ~ 30 degrees ;; 2516_8 ~ 2516 ;; about €5 ~ 5
numbers: 11,\! 234,\! 567 ~ 11234567 ;; $5$. ~ 5 ;; 12{,}345 ~ 12345 ;; 3+4=7 ~ 7 ;; −3 ~ -3
    0.30000000000000004 ~ 0.3 ;; \log_2 8 ~ 3 ;; 0.\overline{3} ~ \frac13 ;; 0.1\overline{6} ~ 1/6
    |{-3}| ~ 3 ;; 0.6666666 ~ 2/3 ;; -2\frac13 ~ -\frac73 ;; \\frac{3}{4} ~ 3/4 ;; 2\frac32 ~ 3
    1\frac12 ~ 3/2 ;; 1 1/2 ~ 1.5 ;; \sqrt3\sqrt2-\sqrt6 ~ 0 ;; \sqrt{-4} ~ 2i
    \sin 30^\circ ~ \frac12 ;; 2sqrt(3) ~ \sqrt{12} ;; √3 ~ \sqrt3 ;; 2^{9999} ~ 2^{9999}
    \tan^{-1}1 ~ \pi/4 ;; \sqrt[3]{-8} ~ -2 ;; \binom{5}{2} ~ 10 ;; 5\mathrm{i} ~ 5i
expressions: \lfloor n/2\rfloor+1 ~ 1+\lfloor n/2\rfloor ;; \frac{x+2}{7} ~ \frac{x}{7}+\frac27
    \frac{x^2-1}{x-1} ~ x+1 ;; 2\cdot3^{n-1} ~ \frac{2}{3}3^n ;; \sin(2x) ~ 2\sin x\cos x
    \sin^{-1}x ~ \arcsin x ;; (-1)^{n+1} ~ -(-1)^n ;; e^{2\ln x} ~ x^2 ;; e^{i\pi} ~ -1
names: x=\frac\pi2\approx1.57 ~ \frac\pi2 ;; p=5,q=2,p=7,q=2 ~ p=7,q=2;p=5,q=2 ;; \text{Area}=6 ~ 6
    \angle ABC=30^\circ ~ 30 ;; f^{-1}(x)=x+1 ~ x+1 ;; x\in\{1,2\} ~ x=1,2 ;; x=1, x=2 ~ 1, 2
    x=y=1 ~ x=1,y=1 ;; x=\pm 2 ~ 2,-2 ;; A:B=2 ~ 2 ;; 5=x ~ x=5 ;; x^2/4+y^2=1 ~ x^2+4y^2=4
intervals: x<1\text{ or }x>2 ~ (-\infty,1)\cup(2,\infty) ;; [2,+\infty) ~ \left[2,\infty\right)
    \{-1\}\cup[0,7) ~ [0,7)\cup\{-1\} ;; f(1)<f(2)<f(3) ~ f(3)>f(2)>f(1) ;; x\in[1,2) ~ 1<=x<2
    \{x\mid x>2\} ~ (2,\infty) ;; -2 \\le x \\le 7 ~ [-2,7] ;; 2(x-1)>4 ~ x-3>0 ;; 7>x>3 ~ 3<x<7
lists: \{1\pm\sqrt2,3\} ~ 3,1-\sqrt2,1+\sqrt2 ;; x=1\pm\sqrt2,5 ~ 5,1+\sqrt2,1-\sqrt2
    (1,2),(3,4) ~ (3,4),(1,2) ;; 19, 46, and 82 ~ 82,46,19 ;; \pm1,\pm2 ~ 1,-1,2,-2
    \emptyset ~ \{\} ;; \{1,2\} ~ 2,1 ;; \langle1,2\rangle ~ (1,2)
    \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]
    \begin{pmatrix}1\\2\end{pmatrix} ~ (1,2)
words: It is a Square ~ it is a square ;; 4:30 p.m. ~ 4\!:\!30\text{ pm} ;; \text{even} ~ Even
    No solution ~ no solution. ;; \textbf{(C)} 7 ~ C ;; (C) ~ C"""
REJECT = r"""
numbers: \frac1{2004!} ~ \frac1{2006!} ;; \sqrt{10^{200}} ~ 10^{100}+1 ;; 1\frac12 ~ \frac{11}{2}
    2^{9999} ~ 2^{9998} ;; 2.9999999 ~ \sqrt9 ;; \pi ~ \frac{22}7 ;; 9.9999999 ~ 10
    \log 2 ~ \ln 2 ;; 1:2:3 ~ 1:6:1 ;; 0.333 ~ 1/3 ;; 50% ~ 0.5 ;; 1-1/e ~ 1
expressions: \lfloor n/5\rfloor ~ \lfloor n/6\rfloor ;; \sum_{k=1}^nk ~ \sum_{k=1}^mk ;; 2^3^2 ~ 64
    (a+5)(b+2) ~ (+5)(b+2) ;; 5\mathrm{i} ~ 5 ;; \sin(\pi n) ~ 0 ;; x ~ \sqrt{x^2} ;; I(0)e^{-t} ~ 0
    \vec a ~ a ;; 2^x ~ x^2 ;; 5m ~ 5
names: p=5,q=2,p=7,q=3 ~ p=5,q=3,p=7,q=2 ;; x=1,y=2 ~ x=2,y=1 ;; x=1,y=2 ~ 2,1 ;; x+y<1 ~ -x-y<-1
    x+y<1 ~ x+y\le1 ;; 2x>2 ~ -2x>-2 ;; 3x+4 ~ 3x+4=0 ;; x=y=1 ~ x=1 ;; 0x=0 ~ 0y=1 ;; x+z=1 ~ 1
structures: \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix}1&2\\3&5\end{pmatrix}
    \begin{pmatrix}1&2\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix}
    (A,B)=(-6,10) ~ x\in(-6,10) ;; 1\pm\sqrt2 ~ 1+\sqrt2 ;; \{1,2\} ~ (1,2) ;; [0,9) ~ (0,9)
    1,2,2 ~ 1,1,2 ;; \emptyset ~ 5 ;; -[0,1) ~ 1 ;; 1,2 ~ 12 ;; x>5 ~ x>=5
words: it is so ~ it is not so ;; \textbf{(C)} 7 ~ 8 ;; 4:30 pm ~ 4:30 am ;; 2:15 ~ 4:30 ;; 5+ ~ 5
    (A)(B) ~ A ;; no ~ 0"""
EXTRACT = r"""
    The answer is $x = 3.5$. I hope it is correct. ~ x = 3.5 ;; about 5 million people ~ 5 million
    \boxed{\text{a } \boxed{5}} ~ \text{a } \boxed{5} ;; \boxed{5}, no: the final answer is $6$. ~ 6
    the answer is $1$ or $2$. ~ 1 or 2 ;; I have $5 and spend $2, so $3 is left ~ 3
    \boxed{1} papers, \boxed{2} bins ~ 1, 2 ;; \boxed{5}. The answer is 3 times 2. ~ 5
    <think>\boxed{1}</think> It is 2. ~ 2 ;; the answer is B because 3 > 2 ~ B ;; $f(x)$ is 19. ~ 19
    \boxed{5} and then \boxed{6 ~ 5
    so \(x=1\), \(x=2\) ~ x=1, x=2 ;; the answer is:⏎$$⏎5⏎$$ ~ 5 ;; at 4:30 p.m. today ~ 4:30 p.m
    #### 1,234 apples ~ 1,234 ;; A. Because B is wrong ~ A ;; 6*7=42⏎#### 42 ~ 42"""

# whole responses by kind: response ~ gold.  □ stands for a box around all that follows.
RIGHT = r"""
prose: we get \frac{5}{7} in the end ~ 5/7 ;; so 3\sqrt{7} in total ~ 3\sqrt7
    it is 2^9 ways ~ 512 ;; y = kx + 4 ~ kx+4 ;; 3ab ~ 3ab ;; 2 3/4 cups ~ 11/4
    7 x 10^2 meters ~ 700 ;; It is minus 8. ~ -8 ;; f(x) = x^2 + 3 ~ x^2+3
    There are 3 * 6 = 18 eggs. ~ 18 ;; the point is (2, 9). ~ (2,9) ;; x = 4 or x = 6 ~ 4, 6
    It is 6 m. ~ 6\text{ m} ;; **14** ~ 14 ;; not it's not 20 it's 1,300.5m² ~ 1300.5
    The answer is not 15 but 16. ~ 16 ;; The answer is 16, not 15. ~ 16
    about 7 million people ~ 7000000 ;; twenty-one (21) ~ 21 ;; It costs $12 per ticket. ~ 12
    The answer is an ellipse. ~ ellipse
units: □14\text{ red hats} ~ 14 ;; □6\text{ square centimetres} ~ 6\text{ cm}^2
    □9\text{ km per hour} ~ 9\,\mathrm{km/h} ;; □4\text{ h} ~ 4\text{ hours} ;; □1\text{ pear} ~ 1
    □6\ \mathrm{kg\cdot m/s^2} ~ 6 ;; □8\text{ units} ~ 8\text{ cm} ;; □6\text{ million} ~ 6000000
    □3\text{ dozen} ~ 36 ;; □6\text{ squared} ~ 36 ;; □\$2.50 ~ 2.5\text{ dollars}
    □8\text{ miles per hour} ~ 8\text{ mph} ;; It is −8 °C. ~ -8 ;; □5\text{ L} ~ 5\text{ liters}
structures: □x>2\text{ and }x<6 ~ (2,6) ;; □3x-2>7 ~ (3,\infty) ;; □|x|\le 5 ~ [-5,5]
    □x\ne 6 ~ (-\infty,6)\cup(6,\infty) ;; □\{1,4\}\cup\{6\} ~ \{1,4,6\} ;; □300,400 ~ 300, 400
    □a+b=41 ~ 41 ;; Answer: m+n = 30+11 = 41 ~ 41 ;; □\frac{dy}{dx}=3x ~ \dfrac{dy}{dx}=3x
    □\max(4,9) ~ 9 ;; □\min\{4,9\} ~ 4 ;; □\gcd(8,12) ~ 4 ;; □\operatorname{lcm}(4,6) ~ 12
    □\lfloor 6.9\rfloor ~ 6 ;; □\{x\in\mathbb{R}: x\ge 2\} ~ [2,\infty)
spelling: □\text{31 apples} ~ 31 ;; □¾ ~ 3/4 ;; □x⁴ ~ x^4 ;; □10⁻² ~ 10^{-2} ;; □1，4 ~ 1,4
    □\color{red}{6} ~ 6 ;; □\text{Answer: }\boxed{6} ~ 6 ;; □6\\ ~ 6 ;; □\text{No.} ~ no
    □\sum_{k=1}^{n} k ~ \sum_{k=1}^n k ;; □\underline{5} ~ 5
choices: 5 is too big, so **C**. ~ C ;; □(C) 21 ~ C ;; □(C) 21 ~ 21 ;; □D: the text ~ D
    I pick D — it fits. ~ D ;; \boxed{a \ll b}⏎**Answer: C** ~ C ;; Answer: d ~ D
    The correct option is C. ~ C ;; (B) 17 ~ 17
announced: <answer>31</answer> ~ 31 ;; {"answer": 31} ~ 31 ;; {"answer": "31"} ~ 31
    Antwort: D ~ D ;; 答案是31。 ~ 31 ;; Ответ: 31 ~ 31 ;; الجواب هو 31 ~ 31
    <think>\boxed{2}</think><answer>so 31.</answer> ~ 31 ;; #### $64 ~ 64
    {"final_answer": "-5"} ~ -5 ;; The answer is `36`. ~ 36 ;; 答えは42です。 ~ 42"""
WRONG = r"""
fragments: we get \frac{5}{7} in the end ~ 7 ;; so 3\sqrt{7} in total ~ 7 ;; it is 2^9 ways ~ 9
    y = kx + 4 ~ 4 ;; 3ab ~ 3 ;; 2 3/4 cups ~ 3/4 ;; 7 x 10^2 meters ~ 7 ;; minus 8 ~ 8
    5 out of 8 ~ 8 ;; the square root of 7 ~ 7 ;; 6 feet 2 inches ~ 2 ;; 5 halves ~ 5 ;; 7 mod 9 ~ 9
    4 and a half ~ 4 ;; 4 more than 9 ~ 9 ;; the answer is - 6 ~ 6
    The answer is 12 to the power 3. ~ 12
hedges: either 14 or 15 ~ 15 ;; it could be 13, 14 or maybe 15 ~ 15 ;; the answer is not 15 ~ 15
    It might be 15. ~ 15 ;; I don't think the answer is 15. ~ 15 ;; Is it 15? ~ 15
    at least 15 ~ 15 ;; It is 14. Or 15. ~ 15 ;; if n is odd, 14; otherwise 15 ~ 15
    Answer: A, B ~ A ;; Answer: 13, 14, and possibly 15 ~ 14 ;; \boxed{14} or \boxed{15} ~ 15
    Die Antwort ist nicht 42. ~ 42 ;; La respuesta no es 42. ~ 42 ;; Ответ не 42. ~ 42
    The answer is almost 100. ~ 100
words: □15\text{ or 16} ~ 15 ;; □15\text{ or more} ~ 15 ;; □6\text{ if n is odd, 7 otherwise} ~ 6
    □6\text{ is wrong} ~ 6 ;; □14\text{ (or 15)} ~ 14 ;; □6\text{ feet 2 inches} ~ 6
    □5\text{ halves} ~ 5 ;; □9\text{ hundredths} ~ 9 ;; □3\text{ dozen} ~ 3 ;; □\text{not }6 ~ 6
    □15\text{ dollars and 20 cents} ~ 15 ;; □\text{at least }6 ~ 6 ;; □6\text{ blue} ~ 6
units: □6\text{ m} ~ 6\text{ cm} ;; □6\text{ cm}^3 ~ 6\text{ cm}^2
    □6\text{ minutes} ~ 6\text{ hours} ;; □6\text{ pears} ~ 6\text{ plums} ;; □\$6 ~ 6\text{ cents}
    □4\sqrt3\text{ m} ~ 4\sqrt3\text{ cm} ;; □6\text{ radians} ~ 6^\circ ;; It is 6 m. ~ 6\text{ cm}
    □11:00\text{ p.m.} ~ 11:00\text{ a.m.}
operators: □a\circ b ~ b\circ a ;; □x\int dx ~ \int x dx ;; □k\sum_{k=1}^n 1 ~ \sum_{k=1}^n k
    □\frac{d}{dx}x^2 ~ x ;; □\frac{dy}{dx}x ~ y ;; □a\lim_{x\to 0} x ~ \lim_{x\to 0}ax
    □6\mid 7 ~ 6
structures: □x<-2\text{ and }x>3 ~ (-\infty,-2)\cup(3,\infty) ;; □x>2\text{ or }x<6 ~ (2,6)
    □-x<-4 ~ x<4 ;; □x\ge2\text{ and }x<6 ~ (2,6) ;; □-x\ge -4 ~ x<4 ;; □|x|<5 ~ [-5,5]
    □x\ne 6 ~ 6 ;; □-y>-4 ~ x<4 ;; □x^2<1 ~ x<1 ;; □x<1\text{ and }x<6 ~ x<6 ;; □(300,400) ~ 300400
    □x+z=41 ~ 41 ;; □2m=41 ~ 41 ;; Answer: m+n = 30+11 = 41 ~ 30 ;; □\max(4,9) ~ 4
    □\lfloor 6.9\rfloor ~ 7 ;; □\gcd(n,6) ~ \gcd(n,3)
spelling: □β ~ b ;; □\color{6}{7} ~ 6 ;; □\sum_{k=1}^{2}5 ~ \sum_{k=1}^{25}
choices: □(C) 21 ~ B ;; □(C) 21 ~ 22 ;; □(A)(B) ~ A ;; The answer is D. Note that B is not. ~ B
    Option (B) is incorrect. ~ B
announced: <answer>31</answer> ~ 3 ;; Ответ: 31, not 32 ~ 32"""

def _pairs(table):
    lines = [re.sub("^[a-z]+:", "", line) for line in table.strip().splitlines()]
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
    \sqrt[3]{13} ~ 13 - 4i ~ \binom{13}{2} ~ [13, 14) ~ x > 13 ~ e^{13} ~ f(13)
    13:14 ~ 13.14 ~ \frac{x+13}{y} ~ 2 \cdot 13^n ~ \sin 13 ~ |x| < 13"""
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
    checker._read.cache_clear(), checker._evaluate.cache_clear(), checker._symbols.cache_clear()
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

# -------------------------------------------------------------------------- README.md, data/
README = (HERE / "README.md").read_text("utf-8") + (DATA / "README.md").read_text("utf-8")

def fences(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)

def test_readme_commands_parse(tmp_path):
    typed = "set -eu; python() { printf '%q ' \"$@\"; echo; }; pip() { :; }\n"   # it prints them
    typed += "".join(fences("sh"))
    done = subprocess.run(["bash", "-c", typed], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    typed = [*map(shlex.split, done.stdout.splitlines())]
    assert all(script == "-m" or (HERE / script).is_file() for script, *_ in typed)
    parsed = [commands.parse(words) for script, *words in typed if script == "rift.py"]
    assert {type(config).__name__ for config in parsed} >= {"Demo", "Sample", "Train", "Eval"}

def test_readme_shows_the_loss_and_the_shipped_table():
    assert fences("python")[0].strip() == inspect.getsource(rift.rift_loss).strip()
    run = json.loads((DATA / "results.json").read_text())
    text = commands.table(run["rows"], run["settings"]["k"])
    assert [block.strip() for block in fences("text")] == [text.split("\n\n")[0]]
    assert run["settings"] == commands.settings(commands.Demo())    # of the data that ships

def test_readme_prose_quotes_the_results():
    """Every `a ± b` of the text is a [mean, error] in a file of data/."""
    prose = re.sub(r"(?s)```.*?```|`.*?`", "", README)
    quoted = {" ± ".join(pair) for pair in re.findall(r"(\d+\.\d)\s*±\s*(\d+\.\d)", prose)}
    results = "".join(path.read_text() for path in DATA.glob("*.json"))
    known = {f"{abs(x * float(mean)):.1f} ± {x * float(error):.1f}" for x in (1, 100)
             for mean, error in re.findall(r"\[\s*(-?[\d.e-]+),\s*([\d.e-]+)\s*\]", results)}
    assert len(quoted) > 3 and not quoted - known

def test_readme_scale_out_example_has_the_same_steps_with_two_processes_as_with_one(tmp_path):
    pytest.importorskip("accelerate", reason="the Scale out example needs accelerate")
    code = next(block for block in fences("python") if "RiftTrainer" in block)
    code = code.replace("learning_rate=3e-4", "learning_rate=0.1, optim='sgd', max_grad_norm=0, "
                        "lr_scheduler_type='constant', max_steps=3, disable_tqdm=True")
    samples, ends = write(tmp_path / "samples.jsonl", *(4 * buffer())), []
    for processes, size in ((2, 4), (1, 8)):
        text = code.replace("batch_size=4", f"batch_size={size}").replace("scaled", f"by{size}")
        write(tmp_path / "scale.py", text)
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc_per_node={processes}", "scale.py", samples]
        for _ in range(4):                              # gloo sometimes aborts as it ends
            done = subprocess.run(run, cwd=tmp_path, text=True, capture_output=True, env=os.environ
                                  | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"})
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr[-2000:]
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"by{size}" / "checkpoint-3")
        ends.append(weights(model))
    start = weights(rift.load_model(TINY, "cpu")[0])
    moved = max((ends[0][name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-4
    same(*ends, rtol=0, atol=moved / 1000)

def test_readme_lora_example_trains_the_adapter_alone(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="the LoRA example needs peft")
    code = next(block for block in fences("python") if "LoraConfig" in block)
    code = code.replace("Qwen/Qwen2.5-7B-Instruct", TINY).replace("bfloat16", "float64")
    monkeypatch.chdir(tmp_path)
    Path("runs/sample").mkdir(parents=True)
    write(Path("runs/sample/samples.jsonl"), *buffer())
    exec(code[:code.index("model.merge")], found := {})
    model, start = found["model"], weights(rift.load_model(TINY, "cpu", torch.float64)[0])
    batch = rift.collate([rift.encode(found["tokenizer"], row) for row in buffer()], "cpu")
    torch.testing.assert_close(rift.response_logps(model, **batch), full_logps(model, batch))
    exec(code[code.index("model.merge"):], found)
    merged = weights(rift.load_model("merged", "cpu", torch.float64)[0])
    changed = [name for name in start if not torch.equal(start[name], merged[name])]
    assert changed and all("_proj" in name for name in changed)

def test_data_is_disjoint_right_and_small():
    sets = [rift.read_problems(DATA / f"{name}.jsonl") for name in ("train", "valid", "test")]
    rows = sum(sets, [])
    assert len(sets[2]) == 2000 and len({row["problem"] for row in rows}) == len(rows)
    for row in rows:
        terms = re.findall(r"[-+]?[\d*]+", row["problem"])
        values = [math.prod(map(int, term.split("*"))) for term in terms]
        assert sum(values) == int(row["answer"])
        assert ("*" in row["problem"]) == (row["kind"] == "misconception")
        assert rift.math_reward(row["solution"], row["answer"])
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 8e6
