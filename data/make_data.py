"""Makes the problems in data/ and the tiny base model that gets many of them wrong, from one seed.

    python -m data.make_data                              # about 10 minutes on one core
    python -m data.make_data --seed 7 --out runs/world-7  # another base model, for the study
    python -m data.make_data --words 16 --out runs/long   # 16 random letters before each solution

The base model learns from worked solutions by students who make mistakes, as a real base model
learns from the web. There are two kinds of problems, and two kinds of mistakes:

- misconception (two thirds): a+b*c or a-b*c, which 99 % of the students work from left to right.
  Right answers are rare, and the wrong ones all come from the same wrong idea.
- slips (one third): sums and differences of one or two steps, where a student who needs to carry
  or borrow forgets it in 35 % of the cases. Right and wrong answers are both common.

Validation and test problems are not in the corpus that the base model learns from.

The problems, the corpus and the order of training are, bit for bit, those of the base model in
data/tiny-base. That one was trained at commit f702241, which summed log-probabilities with a fused
function of torch 2.13. rift.py does it another way, so the weights of a model that is made anew
differ from it by rounding.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import rift

DRAWN = {"train": 3000, "valid": 500, "test": 2000}
# The default job and the study train on 300 problems, so train.jsonl has no more. All 3,000 are
# still drawn, because the random numbers of the corpus, and so the model, come after them.
TRAIN = 300
SLIP, MISCONCEPTION = 0.35, 0.99
STEPS, BATCH, LR = 3500, 64, 2e-3
LETTERS = "abcdefgh"
Terms = list[tuple[str, int]]  # 82+3*4 is 82 and [("+", 3), ("*", 4)]


# ------------------------------------------------------------------------------------- problems


def draw_slips(rng: random.Random) -> tuple[int, Terms]:
    """A sum or difference of one or two steps that never falls below 0."""
    steps = rng.randint(1, 2)
    first = value = rng.randint(10, 99)
    terms = []
    for _ in range(steps):
        b = rng.randint(10, 99)
        op = rng.choice("+-" if b <= value else "+")
        value += b if op == "+" else -b
        terms.append((op, b))
    return first, terms


def draw_misconception(rng: random.Random) -> tuple[int, Terms]:
    """a+b*c, or a-b*c where that is at least 0."""
    while True:
        a, b, c, op = rng.randint(10, 99), rng.randint(2, 9), rng.randint(2, 9), rng.choice("+-")
        if op == "+" or a >= b * c:
            return a, [(op, b), ("*", c)]


def draw_problem(rng: random.Random) -> tuple[str, int, Terms]:
    """The kind of a problem, its first number and its terms."""
    if rng.random() < 1 / 3:
        return "slips", *draw_slips(rng)
    return "misconception", *draw_misconception(rng)


def statement(first: int, terms: Terms) -> str:
    """
    >>> statement(82, [("+", 3), ("*", 4)])
    '82+3*4=?'
    """
    return str(first) + "".join(f"{op}{b}" for op, b in terms) + "=?"


# ------------------------------------------------------------------------------------ solutions


def work_out(
    a: int, op: str, b: int, student: random.Random | None = None, slip: float = 0.0
) -> tuple[str, int]:
    """The line `a op b=c` and c. A student forgets the carry or borrow with probability `slip`."""
    c = {"+": a + b, "-": a - b, "*": a * b}[op]
    carries = {"+": a % 10 + b % 10 > 9, "-": a % 10 < b % 10, "*": False}[op]
    if carries and student and student.random() < slip:
        c += 10 if op == "-" else -10
    return f"{a}{op}{b}={c}", c


def solve(first: int, terms: Terms, student: random.Random | None = None) -> tuple[str, int]:
    """A worked solution and its answer: an expert's or, with random numbers, some student's."""
    lines, value = [], first
    has_product = terms[-1][0] == "*"
    if has_product and (student is None or student.random() > MISCONCEPTION):
        (op, b), (_, c) = terms
        line, product = work_out(b, "*", c)
        lines, terms = [line], [(op, product)]
    for op, b in terms:  # from left to right
        line, value = work_out(value, op, b, student, 0 if has_product else SLIP)
        lines.append(line)
    return "; ".join([*lines, rf"\boxed{{{value}}}"]), value


def make_problems(rng: random.Random, out: Path) -> set[str]:
    """Writes train, valid and test problems, all different; returns those of valid and test."""
    seen: set[str] = set()
    held_out: set[str] = set()
    for name, count in DRAWN.items():
        problems = []
        while len(problems) < count:
            kind, first, terms = draw_problem(rng)
            problem = statement(first, terms)
            if problem not in seen:
                seen.add(problem)
                solution, answer = solve(first, terms)
                problems.append(
                    {"problem": problem, "answer": str(answer), "solution": solution, "kind": kind}
                )
        if name == "train":
            problems = problems[:TRAIN]
        else:
            held_out |= {record["problem"] for record in problems}
        (out / f"{name}.jsonl").write_text(rift.to_jsonl(problems))
        print(f"wrote {out / name}.jsonl: {len(problems)} problems")
    return held_out


def make_corpus(rng: random.Random, words: int, held_out: set[str]) -> list[dict]:
    """Solutions by students, each with reward 1: what the base model learns to imitate."""
    corpus = []
    while len(corpus) < STEPS * BATCH:
        _, first, terms = draw_problem(rng)
        problem = statement(first, terms)
        if problem not in held_out:
            solution, _ = solve(first, terms, rng)
            response = "".join(rng.choices(LETTERS, k=words)) + solution
            corpus.append({"problem": problem, "response": response, "reward": 1.0})
    return corpus


# ---------------------------------------------------------------------------------------- model


def make_tokenizer(letters: str) -> PreTrainedTokenizerFast:
    r"""One token for each character and one for \boxed{. The end-of-sequence token also pads."""
    tokens = ["<eos>", "\\boxed{", *"0123456789+-*=?;} \n", *letters]
    ids = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(ids, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="?",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The tokenizer under the class name that every version of transformers knows."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=0, help="random letters before a solution")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    held_out = make_problems(rng, args.out)
    corpus = make_corpus(rng, args.words, held_out)
    tokenizer = make_tokenizer(LETTERS if args.words else "")
    model = make_model(tokenizer, args.seed)
    config = rift.Training(lr=LR, epochs=1.0, batch_size=BATCH, seed=args.seed, device="cpu")
    history = rift.train(model, tokenizer, corpus, config, rift.rft_loss)
    folder = args.out / "tiny-base"
    save(model, tokenizer, folder)
    made = {
        "made_by": "python -m data.make_data",
        "seed": args.seed,
        "words": args.words,
        "parameters": model.num_parameters(),
        "loss": sum(metrics["loss"] for metrics in history[-50:]) / 50,
    }
    (folder / "how_it_was_made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"wrote {folder}: {made['parameters']:,} parameters, loss {made['loss']:.4f}")


if __name__ == "__main__":
    main()
