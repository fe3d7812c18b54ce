"""Tests of rift.py and math_reward.py, each in the order of the file.

Run them with `python -m pytest test_rift.py`. They need no GPU and download nothing.
"""

import ast
import doctest
import gc
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"}
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from pytest import approx
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import math_reward as checker
import rift
from math_reward import extract_answer, is_equiv, math_reward
from rift import (
    COMMANDS,
    LOSSES,
    Sampling,
    Training,
    UserError,
    collate,
    draw_batches,
    encode,
    evaluate,
    generate,
    learning_rate,
    linear_head,
    load_model,
    naive_loss,
    read_jsonl,
    read_problems,
    read_samples,
    response_logps,
    rift_loss,
    sample,
    table,
    train,
    write_atomically,
)

parametrize = pytest.mark.parametrize
HERE = Path(__file__).parent
TINY = str(HERE / "data" / "tiny-base")  # the model of the default job. Some of its tokens:
EOS, SEVEN, MARK, SEMICOLON, BRACE = 0, 9, 16, 17, 18  # <eos> 7 ? ; }


@pytest.fixture(scope="session")
def tiny():
    """Model and tokenizer of the default job, for tests that do not change them."""
    return load_model(Sampling(model=TINY))


@pytest.fixture
def exact():
    """The same in float64, made anew for each test."""
    return load_model(Training(model=TINY), torch.float64)


@pytest.fixture(scope="session")
def problems():
    return read_problems(HERE / "data" / "test.jsonl")[:24]


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, error=1e-9):
    torch.testing.assert_close(actual, expected, rtol=error, atol=error, check_dtype=False)


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def write(path, *records):
    """Writes a JSONL file of records, some of which may be text already."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def spy(monkeypatch):
    """A function: a list of the calls of owner.name. Call number interrupt_at is a Ctrl-C."""

    def install(owner, name, interrupt_at=0):
        original, calls = getattr(owner, name), []

        def called(*args, **options):
            calls.append(args)
            if len(calls) == interrupt_at:
                raise KeyboardInterrupt
            return original(*args, **options)

        monkeypatch.setattr(owner, name, called)
        return calls

    return install


def rejected(message):
    return pytest.raises(UserError, match=re.escape(message))


# --------------------------------------------------------------------------------------- losses
PI = float64([1.0, 0.5, 1e-9, 1e-300])  # probabilities of a response of one token


def wrong_response(loss):
    """Losses of a response with r = -0.2 for each pi in PI, and their gradients by pi."""
    pi = PI.clone().requires_grad_()
    losses = loss(pi.log()[:, None], torch.ones(4, 1), float64([-0.2] * 4))
    return losses, torch.autograd.grad(losses.sum(), pi)[0]


@parametrize("loss", [rift_loss, rift.rift_token_loss])
def test_rift_is_bounded(loss):
    """Theorem 3.4: a wrong response has a loss in [0, |r|] and the constant gradient -r."""
    losses, gradients = wrong_response(loss)
    assert losses.min() >= 0
    assert losses.max() <= 0.2
    close(gradients, 0.2 + 0 * PI)


def test_naive_is_not_bounded():
    """Theorem 3.2: its loss falls without bound as pi goes to 0, and its gradient is -r / pi."""
    losses, gradients = wrong_response(naive_loss)
    assert losses.diff().max() < 0
    assert losses.min() < -100
    close(gradients, 0.2 / PI)


@parametrize("name", LOSSES)
def test_gradient_signs(name):
    """A step raises the probability of a right response, and lowers that of a wrong one."""
    up, nothing, down = 1, 0, -1
    expected = {1.0: up, 0.0: nothing, -0.2: nothing if name == "rft" else down}
    for reward, direction in expected.items():
        logps = torch.tensor([[-0.5, -0.7]], requires_grad=True)
        LOSSES[name](logps, torch.ones(1, 2), torch.tensor([reward])).sum().backward()
        step = -logps.grad
        assert (step.sign() == direction).all()


LOGPS = float64([[-0.1, -0.2, -0.3], [-0.5, -0.4, -9.0], [-0.7, -9.0, -9.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])  # so log pi is -0.6, -0.9 and -0.7
REWARDS = float64([2.0, -0.2, -1.0])
CLOSED_FORMS = {
    "rift": [2 * 0.6, 0.2 * math.exp(-0.9), math.exp(-0.7)],
    "rift-token": [2 * 0.6, 0.2 * (math.exp(-0.5) + math.exp(-0.4)), math.exp(-0.7)],
    "naive": [2 * 0.6, -0.2 * 0.9, -0.7],
    "rft": [0.6, 0.0, 0.0],
}


@parametrize("name", LOSSES)
def test_closed_forms_and_finite_differences(name):
    def loss(logps):
        return LOSSES[name](logps, MASK, REWARDS)

    close(loss(LOGPS), float64(CLOSED_FORMS[name]))
    assert torch.autograd.gradcheck(loss, LOGPS.clone().requires_grad_())


@parametrize("name", LOSSES)
def test_a_pi_that_vanishes_in_float32_is_harmless(name):
    logps = torch.full((3, 3), -1e4, requires_grad=True)
    losses = LOSSES[name](logps, MASK, REWARDS.float())
    [gradient] = torch.autograd.grad(losses.sum(), logps)
    assert gradient.isfinite().all()
    assert name == "naive" or not gradient[1].any()  # it is hardly pushed any further


def test_the_losses_section_can_be_copied(capsys):
    """It runs with the two imports that its comment names, and so do the examples in it."""
    section = (HERE / "rift.py").read_text().split("- losses\n")[1].split("\n# -----")[0]
    names = {}
    exec("import torch\nfrom torch import Tensor\n" + section, names)
    assert names["LOSSES"].keys() == LOSSES.keys()
    doctest.run_docstring_examples(names["rift_loss"], names)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------- settings
OUT_OF_RANGE = """k=0 temperature=-1 max_new_tokens=0 parallel=0 right=nan wrong=-inf seed=-1
    lr=nan lr=-1 epochs=0 epochs=inf steps=-1 batch_size=0 micro_batch_tokens=0"""


@parametrize("setting", OUT_OF_RANGE.split())
def test_settings_that_are_out_of_range(setting):
    name, value = setting.split("=")
    with rejected(f"{name} = {float(value)}: must be between"):
        rift.DemoCommand(**{name: float(value)})


# ------------------------------------------------------------------------------------- training
def sums():
    """Samples with rewards that float32 holds exactly. One of them is 0."""
    answers = {"12+34": 46, "57+8": 65, "57+18": 65, "9+9": 28, "23+23": 46, "7+5": 13}
    rewards = [1.0, 1.0, -0.25, -1.0, 0.5, 0.0]
    return [
        {"problem": f"{a}=?", "response": f"{a}={b}; \\boxed{{{b}}}", "reward": reward}
        for (a, b), reward in zip(answers.items(), rewards, strict=True)
    ]


def encoded(model, tokenizer, samples):
    return [encode(model, tokenizer, record, "{problem}\n") for record in samples]


def logps_of_full_logits(model, batch):
    """log pi of each response token, from all logits at once."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    logps = logits.double().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    return logps * batch["mask"][:, 1:]


@parametrize("micro_batch_tokens, n_batches", [(1, 6), (66, 3), (10**6, 1)])
@parametrize("name", LOSSES)
def test_gradient_of_a_step_is_exact_in_any_micro_batches(
    exact, spy, name, micro_batch_tokens, n_batches
):
    """It is that of the losses over the number of response tokens in the whole step."""
    model, loss, samples = exact[0], LOSSES[name], encoded(*exact, sums())
    whole = collate(samples, "cpu")
    logps, rewards = logps_of_full_logits(model, whole), whole["rewards"]
    n_tokens = sum(len(record["response_ids"]) for record in samples)
    expected = loss(logps, whole["mask"][:, 1:], rewards).sum() / n_tokens
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    logp_pos, logp_neg = (logps.sum(1)[of].mean().item() for of in (rewards > 0, rewards < 0))

    calls, config = spy(rift, "response_logps"), Training(micro_batch_tokens=micro_batch_tokens)
    metrics = rift.add_gradient(model, samples, config, loss, linear_head(model))
    close([weight.grad for weight in model.parameters()], [*gradients])
    expected = {"loss": expected.item(), "logp_pos": logp_pos, "logp_neg": logp_neg}
    assert metrics == approx(expected)
    sizes = [batch["input_ids"].numel() for _, batch, _ in calls]
    assert len(sizes) == n_batches
    assert n_batches == 6 or max(sizes) <= micro_batch_tokens


@parametrize("reward", [1000.0, 0.01])
def test_train_is_adamw_with_clipped_gradients(exact, spy, reward):
    """The first reward makes a gradient that is clipped, the second one that is not."""
    calls, config = spy(torch.optim.AdamW, "step"), Training(steps=1)
    [metrics] = train(*exact, [{**sums()[0], "reward": reward}], config)
    [(optimizer,)] = calls
    moments = [optimizer.state[weight]["exp_avg"].flatten() for weight in exact[0].parameters()]
    norm = metrics["grad_norm"]
    assert (norm > 1) is (reward > 1)
    assert torch.cat(moments).norm().item() == approx(0.1 * min(norm, 1))
    assert optimizer.defaults["weight_decay"] == 0
    assert metrics["step"] == 1
    assert metrics["logp_neg"] is None  # no sample is wrong


def test_learning_rate_warms_up_and_falls(exact, spy):
    rates = [learning_rate(step, 20, Training(lr=2.0)) for step in range(20)]
    cosine = [1 + math.cos(math.pi * i / 18) for i in range(18)]
    assert rates == approx([2 / 3, 4 / 3, *cosine])
    calls, config = spy(torch.optim.AdamW, "step"), Training(steps=3)
    train(*exact, sums(), config)
    assert calls[0][0].param_groups[0]["lr"] == learning_rate(2, 3, config)


def test_batches_are_full():
    def sizes(n, **settings):
        return [len(batch) for batch in draw_batches(n, Training(**settings))]

    assert sizes(5, epochs=2) == [5, 5]  # a batch is no larger than the samples
    assert sizes(6, epochs=1.5, batch_size=4) == [4, 4, 4]  # 9 samples, rounded up
    assert sizes(6, epochs=0.01, batch_size=4) == [4]
    assert sizes(6, epochs=9, batch_size=4, steps=2) == [4, 4]  # steps replace epochs


def test_each_pass_is_another_seeded_permutation():
    def passes(seed):
        return draw_batches(20, Training(epochs=2, batch_size=20, seed=seed))

    assert [sorted(indices) for indices in passes(0)] == 2 * [[*range(20)]]
    assert passes(0)[0] != passes(0)[1]
    assert passes(0) == passes(0) != passes(1)


@parametrize("name", LOSSES)
def test_what_a_loss_learns_from(exact, spy, name):
    """Samples with a reward of 0 play no part, nor do wrong ones in RFT."""
    calls = spy(rift, "encode")
    train(*exact, sums(), Training(steps=1), LOSSES[name])
    right, wrong = [0.5, 1.0, 1.0], [-1.0, -0.25]
    used = sorted(record["reward"] for _, _, record, _ in calls)
    assert used == (right if name == "rft" else wrong + right)


@parametrize(
    "broken",
    [
        lambda losses: losses + math.inf,  # only the loss is not finite
        lambda losses: (0 * losses).sqrt(),  # only its gradient is not finite
    ],
)
def test_training_stops_before_a_step_that_is_not_finite(exact, broken):
    before = []

    def loss(logps, mask, rewards):
        before.append(weights(exact[0]))
        losses = rift_loss(logps, mask, rewards)
        return broken(losses) if len(before) == 3 else losses

    history = train(*exact, sums(), Training(steps=4), loss)
    assert history[2:] == [{"step": 3, "stopped": "not finite"}]
    close(weights(exact[0]), before[2], 0)


@parametrize("at", [2, 4, 5])
def test_killed_training_resumes_to_the_same_weights(tmp_path, spy, capsys, at):
    config, saved = Training(model=TINY, steps=5, batch_size=3), {2: 0, 4: 2, 5: 4}[at]

    def run(file):
        model, tokenizer = load_model(config)
        history = train(model, tokenizer, sums(), config, file=file, save_every=2)
        return history, weights(model)

    whole = run(None)
    calls = spy(torch.optim.AdamW, "step", interrupt_at=at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "x")
    close(run(tmp_path / "x"), whole, 0)
    assert len(calls) == at + 5 - saved  # so it did not begin anew
    assert (f"resuming after step {saved} of 5" in capsys.readouterr().out) is (saved > 0)


@parametrize("name", ["bfloat16", "float32"])
def test_autocast_over_weights_in_float32(spy, name):
    config, computed = Training(model=TINY, steps=1, dtype=name), []
    model, tokenizer = load_model(config, torch.float32)
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: computed.append(output.dtype))
    calls = spy(rift, "response_logps")
    train(model, tokenizer, sums(), config)
    assert calls[0][2] is model.lm_head  # so the logits are never held whole
    assert computed[-1] == getattr(torch, name)
    assert model.dtype == torch.float32
    with rejected("must be float32"):
        train(model.bfloat16(), tokenizer, sums(), config)


def test_pi_is_that_of_the_model_without_dropout():
    histories = []
    for dropout in (0.0, 0.5):
        model, tokenizer = load_model(Training(model=TINY))
        for layer in model.train().model.layers:
            layer.self_attn.attention_dropout = dropout
        histories.append(train(model, tokenizer, sums(), Training(steps=1)))
    assert histories[0] == histories[1]


@parametrize(
    "loss, wrong, warned", [("rift", 2, False), ("rift", 3, True), ("rift-token", 3, False)]
)
def test_warning_at_the_first_step_when_rift_has_become_rft(exact, capsys, loss, wrong, warned):
    """The model gives the wrong response 57+18=65 log pi of -1.3, and 9+9=28 one of -57."""
    for steps in (1, 2):
        train(*exact, [sums()[0], sums()[wrong]], Training(steps=steps), LOSSES[loss])
        assert capsys.readouterr().out.count("pi of wrong responses is almost 0") == warned


# -------------------------------------------------------------------------------- sampling loop
@pytest.fixture
def prompts(exact, problems):
    """Token ids of prompts, which have several lengths."""
    return [record["prompt_ids"] for record in encoded(*exact, problems[:9])]


def greedy(model, prompts, stop_ids=(EOS,), **settings):
    return generate(model, prompts, list(stop_ids), Sampling(temperature=0, **settings), 0)


def greedy_of_transformers(model, prompt, stop_id, n):
    settings = {"do_sample": False, "max_new_tokens": n, "eos_token_id": stop_id}
    return model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()


@parametrize("n", [40, 9])
def test_greedy_sampling_is_generate_of_transformers(exact, prompts, n):
    """A limit of 9 tokens cuts responses off. More models are at the end of this file."""
    expected = [greedy_of_transformers(exact[0], prompt, EOS, n) for prompt in prompts]
    assert greedy(exact[0], prompts, k=1, max_new_tokens=n) == expected


def test_each_prompt_is_run_once_and_finished_responses_leave_the_batch(exact, prompts):
    sizes = []
    exact[0].model.register_forward_hook(lambda module, args, output: sizes.append(len(output[0])))
    lengths = [len(response) for response in greedy(exact[0], prompts, k=2)]
    unfinished = [sum(length > t for length in lengths) for t in range(1, max(lengths))]
    assert sizes == [9, *unfinished]
    assert unfinished[-1] < unfinished[0] == 18


def test_responses_end_at_the_context_of_the_model(exact, prompts):
    exact[0].config.max_position_embeddings = len(prompts[0]) + 5
    assert len(greedy(exact[0], prompts[:1], k=1)[0]) == 5


@parametrize("dtype", [torch.float64, torch.bfloat16])
def test_temperature_and_softmax_in_float32(spy, exact, prompts, dtype):
    """The probabilities at a temperature of 2 are square roots of those at 1, scaled."""
    calls = spy(torch, "multinomial")
    for temperature in (1.0, 2.0):
        config = Sampling(k=1, temperature=temperature, max_new_tokens=1)
        generate(exact[0].to(dtype), prompts, [EOS], config, 0)
    [(once, _), (twice, _)] = calls
    assert once.dtype == torch.float32
    close(once.sum(1), torch.ones(9), 1e-6)
    close(twice, once.sqrt() / once.sqrt().sum(1, keepdim=True), 1e-5)


def test_log_pi_in_training_is_that_of_sampling(spy, exact, prompts):
    model, samples, expected = exact[0], [], []
    for prompt in prompts[:3]:
        calls = spy(torch, "multinomial")
        [response] = generate(model, [prompt], [EOS], Sampling(k=1), 0)
        pi = [
            probabilities[0, token]
            for (probabilities, _), token in zip(calls, response, strict=True)
        ]
        expected.append(math.log(math.prod(pi)))
        samples.append({"prompt_ids": prompt, "response_ids": response, "reward": 1})
    logps = response_logps(model, collate(samples, "cpu"), None)
    assert logps.sum(1).tolist() == approx(expected, abs=1e-4)


def test_samples(tiny, problems):
    tokenizer = tiny[1]
    config = Sampling(k=3, max_new_tokens=16, temperature=2.0, right=3.0, wrong=-2.0)
    samples = sample(*tiny, problems, config)
    by_length = sorted((p["problem"] for p in problems for _ in range(3)), key=len)
    assert [record["problem"] for record in samples] == by_length
    for record in samples:
        response, truncated = record["response"], record["truncated"]
        assert tokenizer.decode(record["prompt_ids"]) == record["problem"] + "\n"
        assert tokenizer.decode(record["response_ids"]) == response + "<eos>" * (not truncated)
        assert record["boxed"] == ("\\boxed" in response)
        assert record["right"] == math_reward(response, record["answer"], truncated)
        assert record["reward"] == (3.0 if record["right"] else -2.0)
    assert len({(record["truncated"], record["right"]) for record in samples}) > 2


def test_score_takes_answers_that_are_numbers():
    samples = [{"response": "\\boxed{4}", "answer": 4}, {"response": "5", "answer": 4.0}]
    assert [record["reward"] for record in rift.score(samples, 2.0, -1.0)] == [2.0, -1.0]


def test_responses_end_at_any_stop_token_of_model_and_tokenizer(exact, problems):
    model, exact[1].eos_token = exact[0], "}"
    for stop_ids, end in ((SEMICOLON, SEMICOLON), ([EOS, SEMICOLON], SEMICOLON), (None, BRACE)):
        model.generation_config.eos_token_id = stop_ids
        [record] = sample(*exact, problems[:1], Sampling(k=1, temperature=0))
        assert record["response_ids"].index(end) == len(record["response_ids"]) - 1
        assert not record["truncated"]


def test_random_numbers_are_seeded_and_never_shared(spy, tiny, problems):
    """Neither by the batches of a run nor by runs with other seeds."""
    calls, config = spy(rift, "generate"), Sampling(k=2, parallel=5, max_new_tokens=9)
    runs = [sample(*tiny, problems[:8], replace(config, seed=seed)) for seed in (0, 1, 2, 0)]
    assert [len(batch) for _, batch, *_ in calls] == 16 * [2]  # at most 5 responses at a time
    assert len({seed for *_, seed in calls}) == 12
    assert runs[0] == runs[3] != runs[1]


@parametrize("n_lines, n_batches", [(1, 3), (20, 3), (46, 1), (48, 1)])
def test_killed_sampling_resumes_to_the_same_file(
    tiny, problems, tmp_path, spy, n_lines, n_batches
):
    """Half of the last line of the file is missing, wherever in a batch it is."""
    path, config = tmp_path / "samples.jsonl", Sampling(k=2, parallel=20)  # 20, 20 and 8 samples
    samples = sample(*tiny, problems, config, path)
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:n_lines])[:-50])
    calls = spy(rift, "generate")
    assert sample(*tiny, problems, config, path) == samples
    assert path.read_text() == text
    assert len(calls) == n_batches


# ----------------------------------------------------------------------------------------- data
GSM8K = '{"question": "6*7?", "answer": "It is <<6*7=42>>42.\\n#### 1,042"}'
MATH = r'{"problem": "?", "solution": "Not \\boxed{1}. It is $\\boxed{\\frac{1}{2}}$.", "type": ""}'
MATH500 = r'{"problem": "?", "solution": "\\boxed{x}", "answer": "\\frac{1}{2}", "level": 2}'
CHAT = '{"prompt": [{"role": "user", "content": "6*7"}], "answer": 42}'
SAMPLE = '{"problem": "6*7", "response": 41, "reward": -1, "answer": "42"}'


@parametrize(
    "line, problem, right, wrong",
    [
        (GSM8K, "6*7?", "1042", "42"),
        (MATH, "?", "0.5", "1"),
        (MATH500, "?", "0.5", "x"),
        (CHAT, "6*7", "42", "41"),
        (SAMPLE, "6*7", "42", "41"),
    ],
)
def test_formats_of_problems(tmp_path, line, problem, right, wrong):
    """GSM8K, MATH and MATH-500 are read as they are published. A response does not matter."""
    path = write(tmp_path / "x.jsonl", "\ufeff" + line, "")
    [record] = read_problems(path)
    assert record["problem"] == problem
    assert math_reward(f"\\boxed{{{right}}}", record["answer"])
    assert not math_reward(f"\\boxed{{{wrong}}}", record["answer"])
    assert "response" not in record


@pytest.fixture
def chat(exact):
    """Model and tokenizer with a chat template, in which <end>, not <eos>, ends a turn."""
    model, tokenizer = exact
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    tokenizer.chat_template = (
        "{% for turn in messages %}<turn>{{ turn.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<turn>{% endif %}"
    )
    model.resize_token_embeddings(23)
    return model, tokenizer


def texts(model, tokenizer, record, template="{problem}\n"):
    """What training takes as the prompt and as the response."""
    record = encode(model, tokenizer, record, template)
    return [tokenizer.decode(record[name]) for name in ("prompt_ids", "response_ids")]


@parametrize(
    "prompt, plain, in_chat",
    [
        ('"problem": "7+8=?"', "7+8=?\n", "<turn>7+8=?<end>\n<turn>"),
        ('"question": "7+8=?"', "7+8=?\n", "<turn>7+8=?<end>\n<turn>"),
        ('"problem": "?", "prompt": "7+8="', "7+8=", "7+8="),  # a prompt is taken as it is
        ('"prompt": [{"role": "user", "content": "7+8=?"}]', "", "<turn>7+8=?<end>\n<turn>"),
    ],
)
@parametrize(
    "response",
    ['"response": "15"', '"completion": "15"', '"completion": [{"role": "x", "content": "15"}]'],
)
def test_formats_of_samples(tiny, chat, tmp_path, prompt, plain, in_chat, response):
    path = write(tmp_path / "x.jsonl", f'{{{prompt}, {response}, "reward": 0.5}}')
    [record] = read_samples(path)
    assert record["reward"] == 0.5
    assert texts(*chat, record) == [in_chat, "15<end>"]
    if plain:
        assert texts(*tiny, record) == [plain, "15<eos>"]
    else:
        with rejected(f"{path}:1: its `prompt` does not fit the chat templ"):
            texts(*tiny, record)


GOOD = {"problem": "7+8=?", "answer": "15", "response": "15", "reward": 1}


def test_template_and_ends_of_responses(tiny, chat):
    assert texts(*tiny, GOOD, "{problem}{problem}") == ["7+8=?7+8=?", "15<eos>"]
    assert texts(*chat, GOOD, " 1{problem}\n")[0] == "<turn>17+8=?<end>\n<turn>"
    assert texts(*tiny, {**GOOD, "truncated": True})[1] == "15"  # it is not taught to end here
    assert texts(*tiny, {**GOOD, "response": "15<eos>"})[1] == "15<eos>"
    chat[1].chat_template = "{{ messages[-1].content }}\n<end>"
    assert texts(*chat, GOOD)[1] == "15<end>"
    chat[1].chat_template = "{{ messages[-1].content }}"  # nothing ends a turn
    assert texts(*chat, GOOD)[1] == "15<eos>"
    assert texts(*tiny, {**GOOD, "prompt": 7})[0] == "7"
    assert Sampling(template=r"Q: {problem}\nA:").template == "Q: {problem}\nA:"  # as typed


NOT_JSON = "is not a JSON object in UTF-8"
BAD_LINES = {
    '{"problem": ': NOT_JSON,
    "[1]": NOT_JSON,
    '{"problem": "é"}': NOT_JSON,  # in Latin-1, as it is written below
    '{"problem": "\\ud83d", "answer": "1"}': NOT_JSON,
    '{"problem": "1", "answer": NaN}': NOT_JSON,
    '{"answer": "3"}': "needs text that is not empty in problem or question or prompt",
    '{"problem": " ", "answer": "3"}': "needs text that is not empty in problem",
    '{"problem": "x"}': "needs text that is not empty in answer or solution",
    '{"problem": "x", "answer": true}': "needs text that is not empty in answer",
    '{"problem": "x", "solution": "y"}': "needs an `answer`, or",
    '{"reward": 1, "problem": "x"}': "needs text that is not empty in response or completion",
    '{"reward": 1, "problem": "x", "response": ""}': "needs text that is not empty in response",
    '{"reward": 1, "response": "x"}': "needs text that is not empty in problem",
    '{"reward": 1, "problem": "x", "response": "\\ud83d"}': NOT_JSON,
    '{"reward": NaN, "problem": "x", "response": "y"}': NOT_JSON,
    '{"reward": 1e999, "problem": "x", "response": "y"}': NOT_JSON,
    '{"reward": null, "problem": "x", "response": "y"}': "needs a number as its `reward`",
    '{"reward": "1", "problem": "x", "response": "y"}': "needs a number as its `reward`",
    '{"reward": true, "problem": "x", "response": "y"}': "needs a number as its `reward`",
    '{"reward": 1%s, "problem": "x", "response": "y"}' % (400 * "0"): "needs a number as its",
}


@parametrize("line, message", BAD_LINES.items())
def test_bad_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "x.jsonl", GOOD, "")
    path.write_bytes(path.read_bytes() + line.encode("latin-1"))
    reader = read_samples if "reward" in line else read_problems
    with rejected(f"{path}:3: {message}"):
        reader(path)


def test_drawn_tokens_are_trained_as_they_are(tiny):
    """Not what the text would be tokenized to, nor what the template makes of the problem."""
    drawn = {**GOOD, "prompt_ids": [SEVEN, SEVEN], "response_ids": [3, 7, MARK]}
    for response in ("15?", "15"):  # the last token may be a stop token
        record = {**drawn, "response": response}
        assert encode(*tiny, record, "{problem}") == record


@parametrize(
    "fields",
    [
        '"prompt_ids": [21], "response_ids": [3, 7, 0]',
        '"prompt_ids": [-1], "response_ids": [3, 7, 0]',
        '"prompt_ids": ["9"], "response_ids": [3, 7, 0]',
        '"prompt_ids": "9", "response_ids": [3, 7, 0]',
        '"prompt_ids": null, "response_ids": [3, 7, 0]',
        '"prompt_ids": [9], "response_ids": [3, 8, 0]',
        '"prompt_ids": [9], "response_ids": []',
        '"prompt_ids": [9], "response_ids": 3',
        '"prompt_ids": [9], "response_ids": null',
        '"prompt_ids": [9]',
        '"prompt": {"text": "7+8="}, "problem": "7+8="',
    ],
)
def test_samples_that_do_not_fit_the_model_are_named(tiny, tmp_path, fields):
    path = write(tmp_path / "x.jsonl", f'{{"response": "15", "reward": 1, {fields}}}')
    with rejected(f"{path}:1: "):
        train(*tiny, read_samples(path), Training(steps=1))


@parametrize(
    "problem, response, message",
    [
        ("1" * 120, "2" * 7, "needs 129 tokens, but the model's context is 128"),
        ("1+x", "2", "has characters that the tokenizer does not know: '1+x"),
        ("1+1", "é", "has characters that the tokenizer does not know: '1+1"),
    ],
)
def test_texts_that_the_model_cannot_take(tiny, problem, response, message):
    record = {"problem": problem, "response": response, "where": "x.jsonl:3"}
    with rejected("x.jsonl:3: " + message):
        encode(*tiny, record, "{problem}\n")
    assert encode(*tiny, {**record, "problem": problem[:1], "response": "2" * 125}, "{problem}\n")


def test_beginning_once_and_end_once(exact):
    """With a tokenizer that puts <s> before and <eos> after every text."""
    model, tokenizer = exact
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    model.resize_token_embeddings(22)
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A <eos>", special_tokens=[("<s>", 21), ("<eos>", EOS)]
    )
    assert tokenizer("7").input_ids == [21, SEVEN, EOS]
    for response in ("15", "15<eos>"):
        assert texts(*exact, {**GOOD, "response": response}) == ["<s>7+8=?\n", "15<eos>"]
    assert texts(*exact, {**GOOD, "prompt": "<s>7"}) == ["<s>7", "15<eos>"]
    tokenizer.chat_template = "{{ messages[0].content }}"  # it brings its own special tokens
    assert texts(*exact, GOOD)[0] == "7+8=?"


def test_a_response_is_tokenized_as_it_stands_after_its_prompt(tiny):
    """With a tokenizer like SentencePiece, which puts a space, here _, before every text."""
    pieces = {piece: i for i, piece in enumerate("</s> _ 7 : 1 5 :1".split())}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [(":", "1")]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("_", "always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    record = encode(tiny[0], tokenizer, {"prompt": "7", "response": "15"}, "")
    assert record["prompt_ids"] + record["response_ids"] == [1, 2, 4, 5, EOS]
    record = encode(tiny[0], tokenizer, {"prompt": "7:", "response": "15"}, "")
    assert record["prompt_ids"] == [1, 2, 3]  # the token ":1" would lie in both
    assert record["response_ids"] == [1, 4, 5, EOS]


def test_the_mask_is_the_response_with_its_end():
    """Also where the end-of-sequence token is the padding token, as it is here."""
    short = {"prompt_ids": [SEVEN], "response_ids": [3, EOS], "reward": 1}
    long = {"prompt_ids": [SEVEN, MARK, 4], "response_ids": [EOS], "reward": -0.5}
    batch = collate([short, long], "cpu")
    assert batch["input_ids"].tolist() == [[SEVEN, 3, EOS, EOS], [SEVEN, MARK, 4, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["mask"].int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]


# ----------------------------------------------------------------------------------- evaluation
def test_evaluation_by_hand(monkeypatch):
    """Two responses to each of three problems: both are right, one is, and none is."""
    verdicts = ["right boxed", "right truncated", "right boxed truncated", "boxed"]
    verdicts += ["boxed truncated", "boxed truncated"]
    names = ("right", "boxed", "truncated")
    responses = [
        {"kind": kind} | {name: name in verdict for name in names}
        for verdict, kind in zip(verdicts, "aaaabb", strict=True)
    ]

    def sample(model, tokenizer, problems, config, path):
        assert (config.k, config.temperature) in ((2, 1.0), (1, 0))
        return responses[:: 2 // config.k]

    monkeypatch.setattr(rift, "sample", sample)
    results = evaluate(None, None, ["problems"], Sampling(k=2))
    assert results["all"] == {
        "n": 3,
        "greedy": approx((2 / 3, 1 / 3)),
        "mean@2": approx((1 / 2, math.sqrt(1 / 12))),
        "pass@2": approx((2 / 3, 1 / 3)),
        "boxed": approx((5 / 6, 1 / 6)),
        "truncated": approx((2 / 3, 1 / 6)),
    }
    assert [*results] == ["all", "a", "b"]
    assert results["a"]["mean@2"] == approx((3 / 4, 1 / 4))
    assert results["b"]["mean@2"] == (0.0, None)  # a single problem has no standard error
    with rejected("there are no problems"):
        evaluate(None, None, [], Sampling())


def test_table():
    """It has 80 columns. Nothing stands for an error that there is not."""
    figures = {"n": 2000, "greedy": (0.25, 0.03), "mean@8": (1.0, 0.0), "pass@8": (0.1236, 0.1)}
    figures |= {"boxed": (0.0, 0.0449), "truncated": (0.5, None)}
    lines = table({"SFT on solutions": {"all": figures, "x": figures}}).splitlines()
    assert [line.rstrip() for line in lines[:3]] == [
        "all (2000)                greedy      mean@8      pass@8       boxed   truncated",
        "SFT on solutions      25.0 ± 3.0 100.0 ± 0.0  12.4 ±10.0   0.0 ± 4.5  50.0",
        "",
    ]
    assert lines[3].startswith("x (2000)")


# --------------------------------------------------------------------------- models and memory
def batch_of(*responses):
    prompts = ([1, 2, 3], [8], [5, 5])
    pairs = zip(prompts, responses, strict=False)
    samples = [{"prompt_ids": p, "response_ids": r, "reward": 1} for p, r in pairs]
    return collate(samples, "cpu")


def check_gradients(model, actual, expected, error=1e-9):
    """Both have the same values, and the same gradients by the parameters of the model."""
    close(actual, expected, error)
    push, parameters = torch.randn(actual.shape), list(model.parameters())
    gradients = [
        torch.autograd.grad((logps * push).sum(), parameters, materialize_grads=True)
        for logps in (actual, expected)
    ]
    close(*gradients, error)


@parametrize("n_rows, chunks", [(1, 7 * [1]), (3, [3, 3, 1]), (10**6, [7])])
def test_log_probabilities_in_chunks_that_are_not_kept(exact, monkeypatch, spy, n_rows, chunks):
    model, batch = exact[0], batch_of([4, 5, 6, 7], [9, 10], [EOS])
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", 21 * n_rows + 20)  # there are 21 tokens
    head, logits, kept = linear_head(model), spy(F, "cross_entropy"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        found = response_logps(model, batch, head)
    assert [len(chunk) for chunk, _ in logits] == chunks
    assert not {(size, 21) for size in chunks} & {*kept}
    check_gradients(model, found, logps_of_full_logits(model, batch))


@parametrize("with_head", [True, False])
def test_log_probabilities_are_in_float32(spy, with_head):
    """Also where the model computes in bfloat16. Then a head computes its logits in float32."""
    batch = batch_of([4, 5, 6, 7], [9, 10])
    model = load_model(Sampling(model=TINY, dtype="bfloat16"))[0]
    head, calls = linear_head(model) if with_head else None, spy(F, "cross_entropy")
    with torch.autocast("cpu", torch.bfloat16):
        logps = response_logps(model, batch, head)
    [(logits, _)] = calls
    assert logits.dtype == logps.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16()) is not with_head


def test_load_model():
    torch.set_flush_denormal(False)
    model, _ = load_model(Sampling(model=TINY))
    assert not model.training
    assert (torch.tensor([1e-38]) * 0.01).item() == 0  # such numbers are slow on a CPU


def test_nothing_keeps_a_model_in_memory(problems):
    model, tokenizer = load_model(Sampling(model=TINY))
    train(model, tokenizer, sums(), Training(steps=1))
    sample(model, tokenizer, problems[:1], Sampling(k=1))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------------------------- commands
@pytest.fixture
def rift_py(tmp_path, monkeypatch, capsys, problems):
    """A function that runs a command line in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    write(Path("x.jsonl"), *problems[:8])
    write(Path("y.jsonl"), *problems[8:12])
    write(Path("s.jsonl"), *sums())
    Path("data").mkdir()
    Path("data/tiny-base").symlink_to(TINY)  # the default of --model

    def run(command, status=0):
        assert rift.main(shlex.split(command)) == status
        return "".join(capsys.readouterr())

    return run


DEMO = "--problems x.jsonl --test y.jsonl --k 2 --batch-size 5 --dtype bfloat16 --out "


def test_default_job(rift_py, spy, problems):
    """What it trains and evaluates, for how many steps, and that it goes on after a kill."""
    trained, evaluated = spy(rift, "train"), spy(rift, "evaluate")
    rift_py(DEMO + "whole")
    experts, *others = [data for _, _, data, *_ in trained]
    assert [record["response"] for record in experts] == [p["solution"] for p in problems[:8]]
    assert others == 3 * others[:1]
    assert {record["problem"] for record in others[0]} == {p["problem"] for p in problems[:8]}
    assert Path("whole/samples.jsonl").read_text() == rift.to_jsonl(others[0])
    assert [p["problem"] for _, _, test, _ in evaluated for p in test] == 5 * [
        p["problem"] for p in problems[8:12]
    ]
    assert {model.dtype for model, *_ in trained} == {torch.float32}
    assert {model.dtype for model, *_ in evaluated} == {torch.bfloat16}

    results = json.loads(Path("whole/results.json").read_text())
    assert [*results] == ["base model", "SFT on solutions", "RFT", "naive", "RIFT"]
    base, sft, rft, naive, ours = (result["history"] for result in results.values())
    assert [len(history) for history in (base, sft, rft, naive, ours)] == [0, 5, 5, 5, 5]  # of 4.8
    assert sft[0]["logp_neg"] is rft[0]["logp_neg"] is None
    assert naive[0]["logp_neg"] == ours[0]["logp_neg"]
    assert naive[0]["loss"] < ours[0]["loss"]
    close(weights(evaluated[-1][0]), weights(trained[-1][0].bfloat16()), 0)

    evaluated = spy(rift, "evaluate", interrupt_at=4)
    assert "stopped; --resume continues" in rift_py(DEMO + "killed", 130)
    rift_py(DEMO + "killed --resume")
    assert len(evaluated) == 4 + 2  # three methods of five were done
    assert Path("killed/results.json").read_text() == Path("whole/results.json").read_text()


def test_sample_train_and_eval_hand_over_by_files(rift_py):
    """With a model that is stored in bfloat16, as many are: what is trained is what is saved."""
    model, tokenizer = load_model(Sampling(model=TINY, dtype="bfloat16"))
    model.save_pretrained("half")
    tokenizer.save_pretrained("half")
    text = rift_py("sample --model half --problems x.jsonl --k 2")
    samples = read_samples("runs/sample/samples.jsonl")
    assert f"16 samples: {sum(record['right'] for record in samples) / 16:.1%} right" in text

    text = rift_py("train --model half --dtype bfloat16 --batch-size 5 --loss naive --save-every 2")
    files = ["finished.json", "metrics.jsonl", "model", "settings.json"]
    assert sorted(os.listdir("runs/train")) == files
    config = Training(model="half", dtype="bfloat16", batch_size=5)
    model, tokenizer = load_model(config, torch.float32)
    history = train(model, tokenizer, samples, config, naive_loss)
    assert Path("runs/train/metrics.jsonl").read_text() == rift.to_jsonl(history)
    assert f"loss {history[0]['loss']:.4g}" in text
    saved = AutoModelForCausalLM.from_pretrained("runs/train/model", dtype="auto")
    close(weights(saved), weights(model), 0)

    text = rift_py("eval --model runs/train/model --test y.jsonl --k 2")
    results = json.loads(Path("runs/eval/results.json").read_text())
    assert results["all"]["n"] == 4
    assert table({"this model": results}) in text
    assert len(read_samples("runs/eval/samples.jsonl")) == 2 * 4
    assert len(read_samples("runs/eval/greedy.jsonl")) == 4


MISTAKES = {
    "eval --test missing.jsonl": "missing.jsonl",
    "train --samples x.jsonl": "x.jsonl:1: needs a number as its `reward`; `rift.py sample`",
    "sample --problems s.jsonl": "s.jsonl:1: needs text that is not empty in answer",
    "sample --problems empty.jsonl": "empty.jsonl: is empty",
    "sample --problems long.jsonl": "long.jsonl:1: needs 151 tokens, but the model's context",
    "train --samples wrong.jsonl --loss rft": "no sample has a reward that this loss",
    "train --samples s.jsonl --model runs": "did you mean runs/model?",
    "train --samples s.jsonl --device nonsense": "nonsense",
    "train --sample s.jsonl": "unrecognized arguments: --sample s.jsonl",
    r"sample --template 'a\nb'": r"template = 'a\nb': must contain {problem}",
    "sample --k 0": "k = 0: must be between 1 and",
    "sample --k x": "argument --k: invalid int value: 'x'",
    "--lr nan": "lr = nan: must be between",
    "eval --wrong=-inf": "wrong = -inf: must be between",
    "fit": "no command 'fit'",
    "train --loss rfit": "argument --loss: invalid choice",
    "--loss rft": "unrecognized arguments: --loss rft",
    "sample --lr 1": "unrecognized arguments: --lr 1",
    "train --k 2": "unrecognized arguments: --k 2",
    "eval --problems x": "unrecognized arguments: --problems x",
    "eval --test y.jsonl --resume": "new/run",
}


@parametrize("command, message", MISTAKES.items())
def test_mistakes_end_with_one_line_and_nothing_written(rift_py, command, message):
    Path("runs/model").mkdir(parents=True)
    Path("empty.jsonl").touch()
    write(Path("long.jsonl"), {"problem": "1" * 149, "answer": "2"})
    write(Path("wrong.jsonl"), {**sums()[0], "reward": -1})
    before = {*Path().rglob("*")}
    error = rift_py(command + " --out new/run", 2)
    assert error.startswith("rift.py: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert {*Path().rglob("*")} == before


TRAIN = "train --samples s.jsonl --steps 4 --save-every 2 --out "


def test_a_run_never_overwrites_another(rift_py, spy):
    """Whatever is in a folder stays as it is, unless --resume finds its own stopped run there."""
    rift_py(TRAIN + "whole")
    spy(rift, "add_gradient", interrupt_at=4)
    assert "stopped; --resume continues" in rift_py(TRAIN + "killed", 130)
    Path("begun").mkdir()
    Path("begun/settings.json").write_text("{}")  # another run began a moment ago
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for arguments, message in {
        "whole": "whole is not empty",
        "whole --resume": "the run in whole is finished",
        "killed": "killed is not empty",
        "killed --resume --lr 1": "has other settings: {'lr': 0.0003}",
        "killed --resume --loss naive": "has other settings: {'loss': 'rift'}",
        "begun": "begun is not empty",
    }.items():
        assert message in rift_py(TRAIN + arguments, 2)
        assert {path: path.read_bytes() for path in before} == before
    assert "resuming after step 2 of 4" in rift_py(TRAIN + "killed --resume")
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    Path("killed/finished.json").unlink()  # as if killed after the model was saved
    assert "the run in killed is finished" in rift_py(TRAIN + "killed --resume", 2)


def test_training_that_is_not_finite_ends_with_the_last_good_weights(rift_py):
    error = rift_py(TRAIN + "new --lr 1e8", 2)
    assert "error: step 2 is not finite; new/model has the weights from before it" in error
    assert "stopped" in Path("new/metrics.jsonl").read_text()
    saved = AutoModelForCausalLM.from_pretrained("new/model")
    assert all(weight.isfinite().all() for weight in saved.parameters())
    assert "finished" in rift_py(TRAIN + "new --lr 1e8 --resume", 2)


def test_files_are_written_whole_or_not_at_all(tmp_path, spy):
    path = tmp_path / "x"
    write_atomically(path, "old")
    spy(os, "replace", interrupt_at=1)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


@parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_tells_the_defaults(capsys, name):
    with pytest.raises(SystemExit):
        rift.main([name, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("(default:") == len(re.findall("^  --", text, re.M)) > 10


def test_long_work_says_a_line_now_and_then_in_a_log_file(capsys, monkeypatch):
    seconds = itertools.count(step=10)
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))
    assert [*rift.progress_bar(range(9), "sampling")] == [*range(9)]
    lines = capsys.readouterr().err.split()
    assert 3 < lines.count("sampling:") < 9


# ------------------------------------------------------------------------------ model families
SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SMALL |= {"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 24, "n_routed_experts": 4}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
LATENT |= {"v_head_dim": 8, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
LINEAR |= {"head_dim": 8, "shared_expert_intermediate_size": 24}
CHUNKS = {"attention_chunk_size": 6, "no_rope_layers": [1, 0], "moe_layers": [1], "head_dim": 8}
CHUNKS |= {"intermediate_size_mlp": 48, "num_local_experts": 4}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
MAMBA |= {"mamba_chunk_size": 16, "mamba_d_ssm": 64, "head_dim": 8, "lm_head_multiplier": 0.5}
FAMILIES = {
    "llama": {},  # rotary positions, heads that share keys and values
    "gpt2": GPT,  # learned positions, an output layer tied to the embeddings
    "bloom": GPT,  # ALiBi positions
    "phi": {},  # an output layer with a bias
    "mistral": {"sliding_window": 5},  # a cache that forgets
    "gemma2": WINDOW | {"head_dim": 8, "final_logit_softcapping": 5.0},  # a soft cap, two caches
    "cohere": {},  # logits that are scaled
    "granite": {"logits_scaling": 3.0},  # logits that are divided
    "mixtral": EXPERTS,  # experts
    "gpt_oss": WINDOW | EXPERTS | {"head_dim": 8},  # attention sinks
    "deepseek_v3": EXPERTS | LATENT,  # a compressed cache
    "llama4_text": CHUNKS,  # attention in chunks, a layer without positions
    "qwen3_next": EXPERTS | LINEAR,  # linear attention in one layer, full attention in the other
    "falcon_h1": MAMBA,  # Mamba and attention side by side, logits that are multiplied
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # short convolutions
}
REFUSED = {"mamba": {"state_size": 4}, "rwkv": {"attention_hidden_size": 32}}
NOT_LINEAR = {"phi", "gemma2", "cohere", "granite", "falcon_h1"}
SHORT_TO_LONG = [[7], [30, 8, 51], [11, 44, 23, 5, 38, 40, 9]]


def small_model(family, dtype):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SMALL | (FAMILIES | REFUSED)[family])
    config._experts_implementation = "eager"  # grouped ones have no float64
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@parametrize("family", FAMILIES)
def test_families_sample_as_transformers_does(family):
    model = small_model(family, torch.float32)
    stop_id = greedy_of_transformers(model, SHORT_TO_LONG[1], 2, 3)[-1]  # it ends early
    expected = [greedy_of_transformers(model, p, stop_id, 8) for p in SHORT_TO_LONG for _ in "12"]
    assert greedy(model, SHORT_TO_LONG, [stop_id], k=2, max_new_tokens=8) == expected


@parametrize("family", FAMILIES)
def test_families_have_the_log_probabilities_of_full_logits(family, monkeypatch):
    monkeypatch.setattr(rift, "LOGITS_AT_ONCE", 60 * 4)  # chunks of four tokens
    model = small_model(family, torch.float64)
    head = linear_head(model)
    assert (head is None) is (family in NOT_LINEAR)
    batch = batch_of([9, 33, 21, 50], [40, 2, 7, 2], [7, 2])
    found = response_logps(model, batch, head)
    check_gradients(model, found, logps_of_full_logits(model, batch), 1e-6)


@parametrize("family", REFUSED)
def test_families_with_a_cache_of_their_own_are_refused(family):
    with rejected(f"{family} models cannot be sampled here"):
        greedy(small_model(family, torch.float32), SHORT_TO_LONG, k=1)


def test_lora_trains_the_adapter_alone():
    peft = pytest.importorskip("peft")
    model, tokenizer = load_model(Training(model=TINY))
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    assert linear_head(model) is None
    before = weights(model)
    train(model, tokenizer, sums(), Training(steps=2))
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}


# ---------------------------------------------------------------------------------- the checker
CASES = read_jsonl(HERE / "data" / "checker_cases.jsonl")
HOSTILE = [
    "9^{9^{9^9}}",
    "10^{10^{10}}",
    "((9!)!)!",
    r"\binom{10^9}{10^8}",
    "e^{e^{e^{e^{9}}}}",
    r"\sin(10^{1000})",
    r"\sqrt[10^{20}]{2}",
    "1e9999",
    "9" * 10**6,
    "0." + "9" * 10**5,
    "(" * 10**6,
    r"\boxed{" * 10**5,
    r"\boxed{" * 5000 + "}" * 5000,
    r"\frac" * 170,
    r"\sqrt" * 170,
    "-" * 10**5,
    "-" * 170 + "x",
    "x^" * 85 + "x",
    "f(" * 24 + "x" + ")" * 24,
    r"\text{" * 999,
    "1," + "234," * 200,
    "answer is " * 10**4,
    "x^{999}+" * 20 + "y",
    "+".join(rf"\sin {c}+\ln {c}+\cosh {c}" for c in "xyzt" * 3),
    "1/0",
    "__import__('os').system('true')",
    "\x00",
    "\ud800",
    "٣",
    "½" * 400,
]
SPECIAL = "\\{}[]()$^_&|!'\"`*#<>=+-/.,:;?~%0aA \n。—²½√或"


@parametrize("case", CASES, ids=lambda case: case["why"])
def test_checker_case(case):
    assert math_reward(case["response"], case["gold"]) is case["reward"]


@parametrize("name, pattern, replacement, before, after", checker.CLEANING)
def test_cleaning_rule(name, pattern, replacement, before, after):
    assert re.sub(pattern, replacement, before, flags=re.ASCII) == after


def test_the_order_of_the_cleaning_rules_does_not_matter(monkeypatch):
    rng, rules = random.Random(0), list(checker._RULES)
    for _ in range(5):
        rng.shuffle(rules)
        monkeypatch.setattr(checker, "_RULES", rules)
        checker._read.cache_clear()
        verdicts = [math_reward(case["response"], case["gold"]) for case in CASES]
        assert verdicts == [case["reward"] for case in CASES]


def test_equivalence_is_symmetric_and_reflexive():
    rng = random.Random(0)
    texts = [case["gold"] for case in CASES] + [str(extract_answer(c["response"])) for c in CASES]
    texts += ["".join(rng.choices(SPECIAL + "xy12", k=rng.randrange(12))) for _ in range(300)]
    assert all(is_equiv(text, text) for text in texts)
    for a, b in zip(texts, rng.sample(texts, len(texts)), strict=True):
        assert is_equiv(a, b) is is_equiv(b, a), (a, b)
    for case in CASES:
        answer, gold = str(extract_answer(case["response"])), case["gold"]
        assert is_equiv(answer, gold) is is_equiv(gold, answer), (answer, gold)


def test_random_expressions_equal_their_rearrangement_only():
    rng = random.Random(1)
    for _ in range(100):
        forms = [r"\sqrt{%d}", "x^{%d}", r"\sin(%dx)", r"\pi^{%d}", "y_{%d}", "e^{%dt}"]
        terms = [
            str(rng.randrange(2, 99)) + rng.choice(forms) % rng.randrange(2, 9)
            for _ in range(rng.randrange(2, 6))
        ]
        gold, wrong = "+".join(terms), "+".join(terms[:-1] + ["1" + terms[-1]])
        rng.shuffle(terms)
        assert is_equiv("+".join(terms), gold) and is_equiv(f"-(-({gold}))", gold)
        assert is_equiv(rf"\frac{{2({gold})^2}}{{2({gold})}}", gold)
        assert not is_equiv(wrong, gold)


def test_perturbed_numbers_are_never_equal():
    rng = random.Random(2)
    for _ in range(200):
        n, digits = rng.randrange(1, 10 ** rng.randrange(1, 30)), rng.randrange(1, 6)
        for wrong in (n + 1, n - 1, -n, 10 * n, n + 10 ** rng.randrange(30)):
            assert not is_equiv(str(wrong), str(n)) and not is_equiv(f"{wrong:,}", f"{n}.0")
        decimal = f"{n % 1000}.{rng.randrange(10**digits):0{digits}}5"
        assert is_equiv(decimal, decimal + "0") and is_equiv(decimal + "e3", decimal + "0e3")
        assert not is_equiv(decimal + "e1", decimal) and not is_equiv(decimal + "1", decimal)
        p, q = rng.randrange(1, 99), rng.randrange(2, 99)
        assert is_equiv(rf"\frac{{{p * 7}}}{{{q * 7}}}", f"{p}/{q}")
        assert not is_equiv(f"{p}/{q}", f"{p}/{q + 1}")


def test_hostile_strings_are_judged_at_once():
    rng = random.Random(3)
    repeated = ["".join(chars) for k in (1, 2, 3) for chars in itertools.product(SPECIAL, repeat=k)]
    strings = HOSTILE + [text * (20_000 // len(text)) for text in rng.sample(repeated, 800)]
    for text in strings:
        for response in (text, rf"\boxed{{{text[:900]}}}", "The answer is " + text[:900]):
            start = time.thread_time()
            assert type(math_reward(response, "5")) is type(is_equiv("x+1", response)) is bool
            assert time.thread_time() - start < 5.0, response[:80]  # quadratic patterns took ten


@parametrize(
    "response, want",
    [
        ("<answer>12</answer>", "12"),
        (r"so \boxed{12} and then", "12"),
        (r"\boxed{11}, no, \boxed{12", None),
        ("The answer is 12. Then", None),
        ("#### 12", None),
        ("12", None),
        ("<think> is it" + 4000 * " 7 or" + r" \boxed{12}", None),
        ("<think> is it" + 4000 * " 7 or" + r"</think> \boxed{12}", "12"),
    ],
)
def test_a_response_that_was_cut_off_needs_a_complete_answer(response, want):
    assert extract_answer(response, truncated=True) == want
    assert math_reward(response, "12", truncated=True) is (want is not None)


def test_threads_agree_with_one():
    cases = [(case["response"], case["gold"]) for case in CASES] + [(text, "5") for text in HOSTILE]
    alone = [math_reward(*case) for case in cases]
    checker._read.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(lambda: [math_reward(*case) for case in cases]) for _ in range(8)]
        assert all(run.result() == alone for run in runs)


def test_nothing_is_executed():
    tree = ast.parse(Path(checker.__file__).read_text("utf-8"))
    fields = ("id", "attr", "name", "module")
    names = {getattr(node, field, None) for node in ast.walk(tree) for field in fields}
    assert not names & {"eval", "exec", "sympify", "parse_expr", "parse_latex", "signal"}


# ------------------------------------------------------------------------------- files and README
def test_requirements_are_those_in_the_header_of_rift_py():
    """PEP 723: what `uv run rift.py` installs."""
    header = re.search(r"# dependencies = (.*)", (HERE / "rift.py").read_text())[1]
    run_time = (HERE / "requirements.txt").read_text().split("\n\n")[0]
    assert json.loads(header) == re.findall("^[a-z].*", run_time, re.M)


def test_rift_py_imports_only_math_reward_of_this_project(tmp_path):
    for name in ("rift.py", "math_reward.py"):
        copy = Path(shutil.copy(HERE / name, tmp_path))
        assert "sys.path" not in copy.read_text()
    subprocess.run([sys.executable, "-c", "import rift"], cwd=tmp_path, check=True)


README = (HERE / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_readme_shows_the_loss_the_results_and_commands_that_parse():
    assert BLOCKS[0] in (HERE / "rift.py").read_text()
    results = json.loads((HERE / "data" / "results.json").read_text())
    assert table({name: result["accuracy"] for name, result in results.items()}) in README
    typed = "".join(re.findall(r"```sh\n(.*?)```", README, re.S)).replace("$ASK", "{problem}")
    commands = re.findall(r"python rift\.py(.*)", typed)
    assert {rift.parse(shlex.split(command))[1] for command in commands} == {*COMMANDS.values()}


@parametrize("number", range(1, len(BLOCKS)))
def test_readme_python_blocks_run(tmp_path, monkeypatch, number):
    """With a tiny model, and with stand-ins for vLLM and datasets."""
    block = re.sub('Qwen/[^"]+', TINY, BLOCKS[number])
    if "peft" in block:
        pytest.importorskip("peft")
    vllm, drawn = MagicMock(), MagicMock(text=r"\boxed{15}", finish_reason="stop")
    vllm.LLM.return_value.chat.return_value = [MagicMock(outputs=[drawn])]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "datasets", MagicMock())
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "responses.jsonl", "samples.jsonl"):
        write(Path(name), GOOD)
    exec(block, {})
    assert "score" not in block or read_samples("samples.jsonl")[0]["right"]
