"""Makes everything in data/ from one seed: problems, and the tiny base model that errs on them.

    python data/make_data.py                              (about 5 minutes on 3 cores)
    python data/make_data.py --held 0.5 --out runs/half   half the students hold misconceptions
    python data/make_data.py --chain 4 --out runs/chain   only sums, of 1 to 4 steps
    python data/make_data.py --study runs                 the README's study: its figure

The base model learns from worked solutions by students who err, as a real base model learns from
the web. A third of the problems are one- and two-step sums and differences in which a student
forgets the carry or the borrow now and then (slips: right and wrong answers are both common), the
others are a+b*c or a-b*c, which nearly all students work from left to right (a misconception:
right answers are rare, wrong ones all of one sort). Validation and test problems are not in the
corpus.
"""
from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import rift                                                      # noqa: E402

PROBLEMS = {"train": 3000, "valid": 500, "test": 2000}
STUDY = ("search", "seeds", "collapse", "rewards", "levels", "which-pi", "rounds",
         "length-1", "length-2", "length-3", "length-4",
         "map-0.5", "map-0.9", "map-0.98", "map-0.99", "map-0.999",
         *(f"base-{held}-{n}" for held in ("0.98", "0.99") for n in range(1, 5)))
REWARDS = (-0.05, -0.2, -1.0)
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
        (out / f"{name}.jsonl").write_text(rift.dump(rows))
        print(f"wrote {out / name}.jsonl: {len(rows)} lines")
        held_out |= {row["problem"] for row in rows if name != "train"}
    return held_out


def make_corpus(rng: random.Random, args: argparse.Namespace, held_out: set[str]
                ) -> list[rift.Sample]:
    """Worked solutions by students, each with reward 1: what the base model imitates."""
    corpus = []
    while len(corpus) < args.steps * 64:
        _, first, terms = draw(rng, args.chain)
        problem = statement(first, terms)
        if problem not in held_out:
            response, _ = solve(first, terms, args.slip, args.held, rng)
            corpus.append({"problem": problem, "response": response, "reward": 1.0})
    return corpus


def make_tokenizer() -> PreTrainedTokenizerFast:
    r"""One token a character, one for \boxed{; the end-of-sequence token also pads."""
    tokens = ["<eos>", "\\boxed{", *"0123456789+-*=?;} \n"]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>",
                                   clean_up_tokenization_spaces=False, model_max_length=128)


def values(results: dict, kind: str, figure: str, **want: object) -> dict[int, float]:
    """A figure, in percent, by seed, of the cells with these settings."""
    return {cell["seed"]: 100 * cell["results"][kind][figure][0] for cell in results["cells"]
            if want.items() <= cell.items()}


def spread(figures: Iterable[float]) -> tuple[float, float]:
    """Their mean and its 95 % half-width."""
    return rift.interval([[figure, 0.0] for figure in figures])


def average(results: dict, kind: str, figure: str, **want: object) -> tuple[float, float]:
    """A figure of the cells with these settings, over seeds."""
    return spread(values(results, kind, figure, **want).values())


def gain(results: dict, kind: str, figure: str, mine: dict, other: dict) -> tuple[float, float]:
    """A figure of the cells `mine` less that of the cells `other`, paired by seed."""
    ours, theirs = (values(results, kind, figure, **want) for want in (mine, other))
    return spread(ours[seed] - theirs[seed] for seed in ours)


def bases(study: dict[str, dict], held: str) -> list[dict]:
    """The results of five base models of one world; the first is that of the map."""
    return [study[f"map-{held}"], *(study[f"base-{held}-{n}"] for n in range(1, 5))]


def by_base(study: dict[str, dict], held: str, one: str, other: str, figure: str = "mean@8",
            kind: str = "all") -> list[tuple[float, float]]:
    """Method `one` less `other` at r = -0.2 for each of the five base models, and over them."""
    gains = [gain(world, kind, figure, {"method": one, "wrong": -0.2}, {"method": other})
             for world in bases(study, held)]
    return [*gains, spread(mean for mean, _ in gains)]


def share_of_one(tokens: int, level: str) -> float:
    """The gradient's share from a wrong answer (r = -0.2) beside a right one, half a nat a token,
    as rift_loss has it in float32."""
    logps = rift.torch.full((2, tokens), -0.5, requires_grad=True)
    _, sums = rift.rift_loss(logps, logps > -1, rift.torch.tensor([1.0, -0.2]), level)
    return sums["grad_neg"] / (sums["grad_pos"] + sums["grad_neg"])


def draw_study(study: dict[str, dict], path: Path) -> None:
    """The figure of the README's study: a panel or two for each experiment."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update({"font.size": 7, "lines.markersize": 3, "errorbar.capsize": 2})
    fig = Figure(figsize=(11, 9), layout="constrained")
    ax1a, ax1b, ax2a, ax2b, ax3, ax4, ax5, ax6a, ax6b = fig.subplots(3, 3).ravel()
    colours = {"rft-steps": "tab:blue", "rift": "tab:purple", "naive-same-lr": "tab:red"}
    rft, mine = {"method": "rft-steps"}, {"method": "rift"}

    def share(world) -> float:
        base, _ = average(world, "misconception", "mean@8", method="base")
        return max(base / 100, 1e-4)                                # for the logarithm

    def line(ax, xs, points, **style) -> None:
        means, halves = zip(*points)
        ax.errorbar(xs, means, halves, marker="o", **style)

    collapse, passes = study["collapse"], (0.75, 1.5, 3.0)
    for method, colour in colours.items():
        line(ax1a, passes, [average(collapse, "all", "mean@8", method=method, epochs=n)
                            for n in passes], color=colour, label=rift.METHODS[method])
    ax1a.axhline(average(collapse, "all", "mean@8", method="base")[0], color="grey",
                 label="base model")
    ax1a.set(title="1a. mean@8, %", xlabel="passes over the buffer", ylim=(0, 100))
    for method, shades in (("naive-same-lr", "Reds"), ("rift", "Purples")):
        for r, depth in zip(REWARDS, (0.4, 0.65, 0.95)):
            curves = [cell["curves"]["logp_neg"] for cell in study["rewards"]["cells"]
                      if (cell["method"], cell["wrong"]) == (method, r)]
            ax1b.plot([sum(step) / len(step) for step in zip(*curves)],
                      label=f"{method[:5]}, r = {r:g}", color=matplotlib.colormaps[shades](depth))
    ax1b.set(title="1b. log pi of the wrong answers, nats", xlabel="step")

    figures = ("greedy", "mean@8", "pass@8")
    for i, (one, other, label) in enumerate(rift.DIFFERENCES[:3]):
        means, halves = zip(*(gain(study["seeds"], "all", figure, {"method": one},
                                   {"method": other}) for figure in figures))
        ax2a.bar([x + 0.27 * i for x in range(3)], means, 0.27, yerr=halves, label=label)
        points = by_base(study, "0.98", one, other) + by_base(study, "0.99", one, other)
        line(ax2b, [x + 0.2 * i for x in range(12)], points, ls="", label=label)
    ax2a.set(title="2a. RIFT - RFT, all problems, points", ylim=(0, 50))
    ax2a.set_xticks([0.27, 1.27, 2.27], figures)
    ax2b.set(title="2b. mean@8 by base model (H = 0.98; H = 0.99), points", ylim=(-10, 48))
    ax2b.set_xticks([x + 0.2 for x in range(12)], ["map", *"1234", "all"] * 2)

    rows = list(itertools.product(rift.LEVELS, REWARDS))
    columns = [(study["levels"], f"{n} steps") for n in range(1, 5)]
    columns.append((study["which-pi"], "misconception"))
    grid = [[gain(results, kind, "mean@8", mine | {"level": level, "wrong": r},
                  rft | {"level": level}) for results, kind in columns] for level, r in rows]
    ax3.imshow([[mean for mean, _ in row] for row in grid], "RdBu", vmin=-60, vmax=60,
               aspect="auto")
    for y, x in itertools.product(range(len(rows)), range(len(columns))):
        ax3.text(x, y, "{:+.1f} ± {:.1f}".format(*grid[y][x]), ha="center", va="center", size=6)
    ax3.set(title="3. RIFT - RFT, same steps, mean@8, points")
    ax3.set_yticks(range(len(rows)), [f"{level} {r:g}" for level, r in rows])
    before = [average(results, kind, "mean@8", method="base")[0] for results, kind in columns]
    ax3.set_xticks(range(len(columns)), [f"{kind}\nbase {share:.0f} %"
                                         for (_, kind), share in zip(columns, before)])

    lengths = [study[f"length-{n}"]["cells"] for n in range(1, 5)]
    tokens = [2 ** i for i in range(11)]
    for level, colour in zip(rift.LEVELS, ("tab:purple", "tab:green", "tab:orange")):
        line(ax4, [cells[0]["results"]["all"]["tokens"][0] for cells in lengths],
             [spread(cell["curves"]["neg_share"][0] for cell in cells
                     if (cell["method"], cell["level"]) == ("rift", level))
              for cells in lengths], label=level, color=colour,
             ls="--" if level == "token" else "-")
        ax4.plot(tokens, [share_of_one(n, level) for n in tokens], ":", color=colour)
    ax4.axhline(1e-6, color="grey", lw=0.5)                         # where rift.py warns
    ax4.set(title="4. Wrong answers' share of the gradient, at the start",
            xlabel="tokens in a response (dotted: half a nat each, in float32)",
            xscale="log", yscale="log", ylim=(1e-9, 1))

    turns = range(1, 1 + max(cell["round"] for cell in study["rounds"]["cells"]))
    for method, figure in itertools.product(("rft-steps", "rift"), ("pass@8", "mean@8")):
        line(ax5, turns, [average(study["rounds"], "all", figure, method=method, round=n)
                          for n in turns], ls="--" if figure == "mean@8" else "-",
             color=colours[method], label=f"{rift.METHODS[method]}, {figure}")
    ax5.set(title="5. Rounds of sampling and training, %", xlabel="round", xticks=turns)

    worlds = [study[name] for name in STUDY if name.startswith("map-")]
    shares = [share(world) for world in worlds]
    for r, shade in zip(REWARDS, ("tab:pink", "tab:purple", "indigo")):
        points = [gain(world, "misconception", "mean@8", mine | {"wrong": r}, rft)
                  for world in worlds]
        line(ax6a, shares, points, color=shade, label=f"r = {r:g}")
        line(ax6b, [-r * (1 - c) / 2 / c for c in shares[:-1]], points[:-1], ls="", color=shade,
             label=f"r = {r:g}")
    for held, grey in (("0.98", "silver"), ("0.99", "grey")):
        line(ax6a, [share(world) for world in bases(study, held)[1:]],
             by_base(study, held, "rift", "rft-steps", kind="misconception")[1:5], ls="",
             color=grey, label=f"r = -0.2, other bases, H = {held}")
    ax6a.set(title="6a. RIFT - RFT on the misconception, mean@8", xscale="log", ylim=(-13, 64),
             xlabel="share c of right samples before training (none: 1e-4)")
    ax6b.set(title="6b. The same against the arithmetic, for c > 0", xscale="log",
             xlabel="|r| (1 - c) / 2c")
    for ax in (ax1a, ax1b, ax2a, ax2b, ax4, ax5, ax6a, ax6b):
        ax.legend(frameon=False, handlelength=3)
    for ax in (ax2a, ax2b, ax6a, ax6b):
        ax.axhline(0, color="grey", lw=0.5)
    fig.savefig(path, dpi=150)


def study(runs: Path) -> None:
    """Gathers the study's results, to six digits, in one file and draws their figure."""
    found = {name: json.loads((runs / name / "results.json").read_text(),
                              parse_float=lambda text: float(f"{float(text):.6g}"))
             for name in STUDY}
    (HERE / "study.json").write_text(json.dumps(found) + "\n")
    draw_study(found, HERE / "study.png")
    print("wrote data/study.json and data/study.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slip", type=float, default=0.35, help="chance to forget a carry")
    parser.add_argument("--held", type=float, default=0.99, help="share with a misconception")
    parser.add_argument("--chain", type=int, default=0, help="only sums, of 1 to this many steps")
    parser.add_argument("--out", type=Path, default=HERE, help="folder")
    parser.add_argument("--study", type=Path, help="the folder of the study's runs: draw it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3500, help="of 64 solutions each")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    if args.study:
        study(args.study)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    held_out = make_problems(rng, args.chain, args.out)
    corpus = make_corpus(rng, args, held_out)
    tokenizer = make_tokenizer()
    rift.torch.manual_seed(args.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    config = rift.Config(loss="rift", lr=args.lr, epochs=1.0, seed=args.seed)
    history = rift.train(model, tokenizer, corpus, config)       # all rewards 1: RIFT is SFT
    loss = sum(row["loss"] for row in history[-50:]) / 50
    made = {name: value for name, value in vars(args).items() if name not in ("out", "study")} | {
        "made_by": "python data/make_data.py", "parameters": model.num_parameters(), "loss": loss}
    folder = args.out / "tiny-base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "how_it_was_made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"wrote {folder}: {made['parameters']:,} parameters, loss {loss:.4f}")


if __name__ == "__main__":
    main()
