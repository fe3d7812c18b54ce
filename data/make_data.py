"""Makes everything in data/ from one seed: problems, and the tiny base model that errs on them.

    python data/make_data.py                              (about 5 minutes on 3 cores)
    python data/make_data.py --held 0.5 --out runs/half   half the students hold misconceptions
    python data/make_data.py --chain 4 --out runs/chain   only sums, of 1 to 4 steps
    python data/make_data.py --words 16 --out runs/words  long: each solution has 33 nats of wording

The base model learns from worked solutions by students who err, as a real base model learns from
the web. A third of the problems are one- and two-step sums and differences in which a student
forgets the carry or the borrow now and then (slips: right and wrong answers are both common), the
others are a+b*c or a-b*c, which nearly all students work from left to right (a misconception:
right answers are rare, wrong ones all of one sort). Validation and test problems are not in the
corpus.
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

PROBLEMS = {"train": 3000, "valid": 500, "test": 2000}
LETTERS = "abcdefgh"                # --words puts some, drawn by chance, before each solution
Terms = list[tuple[str, int]]       # 82+3*4 is 82 and [("+", 3), ("*", 4)]


def step(a: int, op: str, b: int, slip: float = 0.0, rng: random.Random | None = None
         ) -> tuple[str, int]:
    """`a op b=c` as text and c; with chance `slip` the units' carry or borrow is forgotten."""
    c = {"+": a + b, "-": a - b, "*": a * b}[op]
    carry = {"+": a % 10 + b % 10 > 9, "-": a % 10 < b % 10, "*": False}[op]
    if carry and rng and rng.random() < slip:
        c += 10 if op == "-" else -10
    return f"{a}{op}{b}={c}", c


def draw_sum(rng: random.Random, steps: int) -> tuple[int, Terms]:
    """A sum or difference of this many steps that stays at 0 or above."""
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


def draw(rng: random.Random, chain: int) -> tuple[str, int, Terms]:
    """A problem: its kind, its first number and its terms."""
    if chain:
        steps = rng.randint(1, chain)
        return f"{steps} steps", *draw_sum(rng, steps)
    if rng.random() < 1 / 3:
        return "slips", *draw_sum(rng, rng.randint(1, 2))
    return "misconception", *draw_misconception(rng)


def statement(first: int, terms: Terms) -> str:
    return str(first) + "".join(f"{op}{b}" for op, b in terms) + "=?"


def solve(first: int, terms: Terms, slip: float = 0.0, held: float = 0.0,
          rng: random.Random | None = None) -> tuple[str, int]:
    """A worked solution and its answer: the expert's, or with an rng some student's."""
    lines, value = [], first
    product = terms[-1][0] == "*"
    if product and (rng is None or rng.random() > held):
        (op, b), (_, c) = terms
        line, c = step(b, "*", c)
        lines, terms = [line], [(op, c)]
    for op, b in terms:                                     # from left to right
        line, value = step(value, op, b, 0 if product else slip, rng)
        lines.append(line)
    return "; ".join([*lines, rf"\boxed{{{value}}}"]), value


def make_problems(rng: random.Random, chain: int, out: Path) -> set[str]:
    """Writes train, valid and test problems, all different; returns those not to train on."""
    seen: set[str] = set()
    held_out: set[str] = set()
    for name, size in PROBLEMS.items():
        rows = []
        while len(rows) < size:
            kind, first, terms = draw(rng, chain)
            problem = statement(first, terms)
            if problem not in seen:
                seen.add(problem)
                solution, answer = solve(first, terms)
                rows.append({"problem": problem, "answer": str(answer), "solution": solution,
                             "kind": kind})
        (out / f"{name}.jsonl").write_text(rift.dump_jsonl(rows))
        print(f"wrote {out / name}.jsonl: {len(rows)} lines")
        held_out |= {row["problem"] for row in rows if name != "train"}
    return held_out


def make_corpus(rng: random.Random, args: argparse.Namespace, held_out: set[str]
                ) -> list[rift.Row]:
    """Worked solutions by students, each with reward 1: what the base model imitates."""
    corpus = []
    while len(corpus) < args.steps * 64:
        _, first, terms = draw(rng, args.chain)
        problem = statement(first, terms)
        if problem not in held_out:
            response, _ = solve(first, terms, args.slip, args.held, rng)
            response = "".join(rng.choices(LETTERS, k=args.words)) + response
            corpus.append({"problem": problem, "response": response, "reward": 1.0})
    return corpus


def make_tokenizer(letters: str = "") -> PreTrainedTokenizerFast:
    r"""One token a character, one for \boxed{; the end-of-sequence token also pads. A character
    that it does not know is read as "?"."""
    tokens = ["<eos>", "\\boxed{", *"0123456789+-*=?;} \n", *letters]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", unk_token="?",
        clean_up_tokenization_spaces=False, model_max_length=128)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Under the class name that every version of transformers knows, not that of the newest."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slip", type=float, default=0.35, help="chance to forget a carry")
    parser.add_argument("--held", type=float, default=0.99, help="share with a misconception")
    parser.add_argument("--chain", type=int, default=0, help="only sums, of 1 to this many steps")
    parser.add_argument("--words", type=int, default=0, help="chance letters before a solution")
    parser.add_argument("--out", type=Path, default=HERE, help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3500, help="of 64 solutions each")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    held_out = make_problems(rng, args.chain, args.out)
    corpus = make_corpus(rng, args, held_out)
    tokenizer = make_tokenizer(LETTERS if args.words else "")
    rift.torch.manual_seed(args.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    config = rift.Training(loss="sft", lr=args.lr, epochs=1.0, seed=args.seed)
    history = rift.train(model, tokenizer, corpus, config)
    loss = sum(row["loss"] for row in history[-50:]) / 50
    made = {name: value for name, value in vars(args).items() if name != "out"}
    made |= {
        "made_by": "python data/make_data.py", "parameters": model.num_parameters(), "loss": loss}
    folder = args.out / "tiny-base"
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "how_it_was_made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"wrote {folder}: {made['parameters']:,} parameters, loss {loss:.4f}")


if __name__ == "__main__":
    main()
