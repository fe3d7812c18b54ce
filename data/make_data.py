"""Makes everything in data/ from one seed: problems, and the tiny base model that errs on them.

    python data/make_data.py                 (about 5 minutes on 3 cores)

The base model learns from worked solutions by students who err, as a real base model learns
from the web: two thirds are one- and two-step sums and differences in which a student forgets
the carry or the borrow (a slip: right and wrong both common), one third is a+b*c or a-b*c, which
nearly all students work from left to right (a misconception: right answers are rare).
Validation and test problems are not in the corpus.
"""
from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import rift                                                      # noqa: E402

SLIP = 0.35             # chance that a student forgets a carry or a borrow
LEFT_TO_RIGHT = 0.95    # share of students who work a+b*c from left to right


def step(a: int, op: str, b: int, slip: bool) -> tuple[str, int]:
    """`a op b=c` as text and c; with a slip the units' carry or borrow is forgotten."""
    c = {"+": a + b, "-": a - b, "*": a * b}[op]
    if slip and op == "+" and a % 10 + b % 10 > 9:
        c -= 10
    if slip and op == "-" and a % 10 < b % 10:
        c += 10
    return f"{a}{op}{b}={c}", c


def draw_slips(rng: random.Random) -> tuple[int, list[tuple[str, int]]]:
    """A sum or difference of one or two steps that stays at 0 or above."""
    first = value = rng.randint(10, 99)
    terms = []
    for _ in range(rng.randint(1, 2)):
        op = rng.choice("+-")
        b = rng.randint(10, 99)
        if op == "-" and b > value:
            op = "+"
        value += b if op == "+" else -b
        terms.append((op, b))
    return first, terms


def draw_misconception(rng: random.Random) -> tuple[int, list[tuple[str, int]]]:
    """a+b*c, or a-b*c where that is at least 0."""
    while True:
        a, b, c, op = rng.randint(10, 99), rng.randint(2, 9), rng.randint(2, 9), rng.choice("+-")
        if op == "+" or a >= b * c:
            return a, [(op, b), ("*", c)]


def draw(rng: random.Random) -> tuple[str, int, list[tuple[str, int]]]:
    """A problem: its kind, its first number and its terms."""
    kind = "slips" if rng.random() < 2 / 3 else "misconception"
    return kind, *(draw_slips if kind == "slips" else draw_misconception)(rng)


def statement(first: int, terms: list[tuple[str, int]]) -> str:
    return str(first) + "".join(f"{op}{b}" for op, b in terms) + "=?"


def solve(first: int, terms: list[tuple[str, int]], rng: random.Random | None = None
          ) -> tuple[str, int]:
    """A worked solution and its answer: the expert's, or with an rng some student's."""
    if terms[-1][0] == "*" and (rng is None or rng.random() > LEFT_TO_RIGHT):
        (op, b), (_, c) = terms                                 # the product first
        line, product = step(b, "*", c, False)
        lines, terms = [line], [(op, product)]
    else:
        lines = []
    slips = rng is not None and not lines and terms[-1][0] != "*"
    value = first
    for op, b in terms:
        line, value = step(value, op, b, slips and rng.random() < SLIP)
        lines.append(line)
    return "; ".join([*lines, rf"\boxed{{{value}}}"]), value


def write(name: str, rows: list[dict]) -> None:
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote data/{name}: {len(rows)} lines")


def make_problems(rng: random.Random, sizes: dict[str, int]) -> set[str]:
    """Writes train, valid and test problems, all different; returns those not to train on."""
    seen: set[str] = set()
    held_out: set[str] = set()
    for name, size in sizes.items():
        rows = []
        while len(rows) < size:
            kind, first, terms = draw(rng)
            problem = statement(first, terms)
            if problem not in seen:
                seen.add(problem)
                solution, answer = solve(first, terms)
                rows.append({"problem": problem, "answer": str(answer), "solution": solution,
                             "kind": kind})
        write(f"{name}.jsonl", rows)
        held_out |= {row["problem"] for row in rows if name != "train"}
    return held_out


def make_corpus(rng: random.Random, size: int, held_out: set[str]) -> list[rift.Sample]:
    """Worked solutions by students, each with reward 1: what the base model imitates."""
    corpus = []
    while len(corpus) < size:
        _, first, terms = draw(rng)
        problem = statement(first, terms)
        if problem not in held_out:
            corpus.append({"problem": problem, "response": solve(first, terms, rng)[0],
                           "reward": 1.0})
    return corpus


def make_tokenizer() -> PreTrainedTokenizerFast:
    r"""One token a character, one for \boxed{; the end-of-sequence token also pads."""
    tokens = ["<eos>", "\\boxed{", *"0123456789+-*=?;} \n"]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>",
                                   clean_up_tokenization_spaces=False, model_max_length=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3500, help="of 64 solutions each")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    held_out = make_problems(rng, {"train": 3000, "valid": 500, "test": 2000})
    corpus = make_corpus(rng, args.steps * 64, held_out)
    tokenizer = make_tokenizer()
    rift.torch.manual_seed(args.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    config = rift.Config(loss="rift", lr=args.lr, epochs=1.0, seed=args.seed)
    history = rift.train(model, tokenizer, corpus, config)       # all rewards 1: RIFT is SFT
    model.save_pretrained(HERE / "tiny-base")
    tokenizer.save_pretrained(HERE / "tiny-base")
    made = {"made_by": "python data/make_data.py", **vars(args), "slip": SLIP,
            "left_to_right": LEFT_TO_RIGHT, "parameters": model.num_parameters(),
            "loss": sum(row["loss"] for row in history[-50:]) / 50}
    (HERE / "tiny-base" / "how_it_was_made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"wrote data/tiny-base: {made['parameters']:,} parameters, loss {made['loss']:.4f}")


if __name__ == "__main__":
    main()
