r"""How far RIFT leads RFT, over ten base models: runs the study of data/study/README.md.

    export OMP_NUM_THREADS=1          # one thread is fastest, because the models are tiny
    for N in 0 1 2 3 4 5 6 7 8 9; do python -m data.make_data --seed $N --out runs/world-$N; done
    python -m data.study.study run search bases temperature passes-search passes rewards
    for N in 0 1; do python -m data.make_data --words 16 --seed $N --out runs/world-words-$N; done
    python -m data.study.study run long-search long
    # make runs/world-smollm2 as make_pretrained.py says, and then:
    python -m data.study.study run pretrained-search pretrained pretrained-float32
    python -m data.study.study report                 # study.json, and the numbers in both pages
    python -m data.study.study figure                 # leads.png, steps.png

A *run* is one training of one base model and its evaluation: a dict with its settings (SETTINGS)
and what came out. An *experiment* is a list of runs. A finished run is one line of
runs/study/EXPERIMENT.part-*.jsonl; `report` copies it into study.json. A run that is in either is
not done again, so a study that was stopped continues. Two processes share an experiment with
`--part 0/2` and `--part 1/2`.

Unless a run says otherwise, 8 samples of each of 300 problems are drawn at temperature 1, and all
methods train on them for 57 steps of 64 samples (1.5 passes), with rewards of +1 and -0.2 and a
learning rate of 3e-4. The first 400 test problems are answered greedily and 8 times at
temperature 1. Learning rates are chosen on validation problems, with another seed.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

import rift

HERE = Path(__file__).resolve().parent
Run = dict[str, Any]
Sample = dict[str, Any]
SETTINGS = ("base", "seed", "method", "temperature", "lr", "wrong", "steps", "on")
BASES, LONG_BASES = range(10), ("words-0", "words-1")
RATES, TEMPERATURES = (1e-4, 3e-4, 1e-3), (1.0, 1.5, 2.0)
SEARCH_SEED = 100
HOT = (("rft-steps", -0.2), ("rift", -0.2), ("topr", -0.2))  # compared at each temperature
TOKEN = (("rift-token", -0.05), ("rift-token", -0.2))


# ------------------------------------------------------------------------------------- methods


def topr_loss(wrong: float) -> Callable:
    """TOPR (arXiv 2503.14286): RIFT with pi / mu in place of pi, where mu is pi before training.

    A loss gets log-probabilities and rewards only. So the reward of a wrong sample, which has to be
    negative, holds its log mu, and the real reward `wrong` is fixed here.
    """

    def loss(logps: Tensor, mask: Tensor, rewards: Tensor) -> Tensor:
        logp = rift.sequence_logp(logps, mask)
        log_ratio = torch.where(rewards < 0, logp - rewards, 0)
        # The gradient is that of the ratio up to 1, and constant above.
        bounded = torch.where(log_ratio > 0, 1 + log_ratio, log_ratio.clamp(max=0).exp())
        return torch.where(rewards > 0, -rewards * logp, -wrong * bounded)

    return loss


class Method(NamedTuple):
    name: str  # in tables
    loss: Callable | None
    like: str = ""  # the method whose searched learning rate it uses, if it has none of its own


METHODS = {
    "base": Method("base model", None),
    "rft-passes": Method("RFT, same passes", rift.rft_loss, "rft-steps"),
    "rft-steps": Method("RFT, same steps", rift.rft_loss),
    "rft-distinct": Method("RFT, distinct responses", rift.rft_loss, "rft-steps"),
    "naive": Method("naive", rift.naive_loss),
    "rift": Method("RIFT", rift.rift_loss),
    "rift-positives": Method("RIFT, as many right samples a step", rift.rift_loss, "rift"),
    "rift-token": Method("rift-token", rift.rift_token_loss),
    "topr": Method("TOPR", None),  # topr_loss(wrong)
}


class Size(NamedTuple):
    problems: int  # to sample, 8 times each
    test: int
    valid: int
    steps: int
    batch: int
    max_new_tokens: int
    parallel: int
    micro_batch_tokens: int
    dtype: str
    attention: str  # "eager" trains SmolLM2 a quarter faster on a CPU


TINY = Size(300, 400, 400, 57, 64, 256, 256, 16384, "float32", "sdpa")
SMOLLM2 = Size(64, 300, 100, 16, 32, 48, 128, 1024, "bfloat16", "eager")


def size_of(base: int | str) -> Size:
    return SMOLLM2 if base == "smollm2" else TINY


# ---------------------------------------------------------------------------------- experiments


def make_run(base: int | str, seed: int, method: str, **changes: Any) -> Run:
    lr = 0.0 if method == "base" else 3e-4
    run = {"base": base, "seed": seed, "method": method, "temperature": 1.0, "lr": lr}
    run |= {"wrong": -0.2, "steps": size_of(base).steps, "on": "test"}
    return run | changes


def searching(bases: Iterable, rates: Iterable, losses: Iterable, **changes: Any) -> list[Run]:
    """Each loss, with its reward of wrong samples, at each rate, on validation problems."""
    return [
        make_run(base, SEARCH_SEED, method, wrong=wrong, lr=lr, on="valid", **changes)
        for method, wrong in losses
        for lr in rates
        for base in bases
    ]


def search(study: Run) -> list[Run]:
    runs = searching(range(3), RATES, [*HOT, ("naive", -0.2), ("rift-token", -0.2)])
    for t in (1.5, 2.0):
        runs += searching(range(3), RATES, HOT, temperature=t)
    return runs


def bases(study: Run) -> list[Run]:
    """The main comparison. The runs on validation problems choose the base model that ships."""
    four_seeds = ("rft-steps", "rift", "rft-distinct", "rft-passes", "rift-positives", "base")
    two_seeds = ("topr", "naive", "rift-token")
    runs = [make_run(b, seed, method) for seed in range(4) for method in four_seeds for b in BASES]
    for seed in (0, 1):
        for base in BASES:
            runs += [make_run(base, seed, method) for method in two_seeds]
            for method in ("naive", "rift-token"):  # 3e-4 is too much for these two
                runs.append(make_run(base, seed, method, lr=best_rate(study, method)))
            runs += [make_run(base, seed, method, on="valid") for method in ("rft-steps", "rift")]
    return runs


def temperature(study: Run) -> list[Run]:
    """Each at its best learning rate. What is in `bases` already is left out."""
    rates = {(m, t): best_rate(study, m, temperature=t) for t in TEMPERATURES for m, _ in HOT}
    return [
        make_run(base, seed, method, temperature=t, lr=lr)
        for seed in (0, 1)
        for base in BASES
        for (method, t), lr in rates.items()
        if (t, lr) != (1.0, 3e-4)
    ]


def passes_search(study: Run) -> list[Run]:
    return searching(range(2), (3e-5, *RATES), [("rft-steps", -0.2), ("rift", -0.2)], steps=228)


def passes(study: Run) -> list[Run]:
    """4 and 8 times as many steps over the same samples. `bases` has the runs of 57 steps."""
    return [
        make_run(base, 0, method, steps=steps, lr=best_rate(study, method, "passes-search"))
        for steps in (228, 456)
        for base in BASES
        for method in ("rft-steps", "rift")
    ]


def rewards(study: Run) -> list[Run]:
    return [make_run(base, 0, "rift", wrong=wrong) for base in BASES for wrong in (-0.05, -1.0)]


def long_search(study: Run) -> list[Run]:
    """Base models with long responses: data.make_data --words 16 --out runs/world-words-N."""
    return searching(LONG_BASES, (1e-4, 3e-4), [*HOT, *TOKEN])


def long(study: Run) -> list[Run]:
    losses = [(m, r, best_rate(study, m, "long-search", wrong=r)) for m, r in (*HOT, *TOKEN)]
    return [
        make_run(base, seed, method, lr=lr, wrong=wrong)
        for seed in (0, 1)
        for base in LONG_BASES
        for method, wrong, lr in [("base", -0.2, 0.0), *losses]
    ]


# The pretrained model, which data.study.make_pretrained makes. What this trial can detect, said
# before any of its runs: in a first one with 100 test problems and three seeds, RIFT's lead over
# RFT in mean@8 had a standard deviation of 2.3 points between seeds. Three times as many problems
# make it 1.35. Over five seeds the 95 % interval is then the lead ± 1.7 points, and a lead of 2.2
# points is found with a probability of 80 %: (t(0.975) + t(0.8)) 1.35 / sqrt(5), with 4 degrees of
# freedom. That is for these 300 problems. Each run also keeps how many of the 8 samples of each
# problem are right, so that an interval over problems can be computed, too. This assumes that
# all of the spread between seeds falls with the number of problems, which is the best case.


def pretrained_search(study: Run) -> list[Run]:
    """At T = 1. The rates that it finds are used at T = 1.5, too."""
    return searching(["smollm2"], (1e-6, 3e-6, 1e-5, 3e-5, 1e-4), [*HOT, TOKEN[0]])


def pretrained(study: Run) -> list[Run]:
    runs = [make_run("smollm2", seed, "base") for seed in range(5)]
    for method, wrong in (*HOT, TOKEN[0], ("rft-distinct", -0.2), ("rift-positives", -0.2)):
        lr = best_rate(study, method, "pretrained-search", wrong=wrong)
        runs += [
            make_run("smollm2", seed, method, lr=lr, wrong=wrong, temperature=t)
            for t in (1.0, 1.5)
            for seed in range(5)
        ]
    return sorted(runs, key=lambda run: run["seed"])


def pretrained_float32(study: Run) -> list[Run]:
    """RFT and RIFT again, tested with weights that are not rounded to bfloat16."""
    rates = {m: best_rate(study, m, "pretrained-search") for m in ("rft-steps", "rift")}
    return [
        make_run("smollm2", seed, method, lr=lr, on="test in float32")
        for seed in (0, 1)
        for method, lr in rates.items()
    ]


EXPERIMENTS: dict[str, Callable[[Run], list[Run]]] = {
    "search": search,
    "bases": bases,
    "temperature": temperature,
    "passes-search": passes_search,
    "passes": passes,
    "rewards": rewards,
    "long-search": long_search,
    "long": long,
    "pretrained-search": pretrained_search,
    "pretrained": pretrained,
    "pretrained-float32": pretrained_float32,
}


def rates_searched(study: Run, experiment: str, method: str, **settings: Any) -> dict:
    """By learning rate: mean@8 on validation problems, averaged over base models, in percent.

    Empty as long as a run of the search is missing.
    """
    settings["method"] = METHODS[method].like or method
    planned = [run for run in EXPERIMENTS[experiment](study) if settings.items() <= run.items()]
    found = {key(run): 100 * run["results"]["all"]["mean@8"][0] for run in study[experiment]}
    scores: dict[float, list[float]] = {}
    for run in planned:
        if key(run) not in found:
            return {}
        scores.setdefault(run["lr"], []).append(found[key(run)])
    return {lr: statistics.fmean(values) for lr, values in scores.items()}


def best_rate(study: Run, method: str, experiment: str = "search", **settings: Any) -> Any:
    """The learning rate that the search found best; None if the search is not complete."""
    settings = {"temperature": 1.0, "wrong": -0.2, **settings}
    scores = rates_searched(study, experiment, method, **settings)
    return max(scores, key=lambda lr: scores[lr]) if scores else None


# -------------------------------------------------------------------------------------- one run


def sampling(world: Path, size: Size, seed: int, temperature: float) -> rift.Sampling:
    return rift.Sampling(
        model=model_folder(world),
        device="cpu",
        dtype=size.dtype,
        seed=seed,
        temperature=temperature,
        max_new_tokens=size.max_new_tokens,
        parallel=size.parallel,
    )


def read_samples(run: Run, world: Path, folder: Path) -> list[Sample]:
    """The scored samples of a base model, seed and temperature. All methods share them."""
    path = folder / f"{world.name}-seed-{run['seed']}-T-{run['temperature']:g}.jsonl"
    if not path.exists():
        size = size_of(run["base"])
        config = sampling(world, size, run["seed"], run["temperature"])
        model, tokenizer = rift.load_model(config)
        problems = rift.read_problems(world / "train.jsonl")[: size.problems]
        folder.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{os.getpid()}")  # another process may draw them, too
        own.write_text(rift.to_jsonl(rift.sample(model, tokenizer, problems, config)))
        os.replace(own, path)
    return rift.score(rift.read_jsonl(path), 1.0, run["wrong"])


def model_folder(world: Path) -> str:
    return str(next(world.glob("*-base"), world / "missing"))


def distinct(samples: list[Sample]) -> list[Sample]:
    return list({(record["problem"], record["response"]): record for record in samples}.values())


def count_right(samples: list[Sample]) -> dict[str, int]:
    """The number of right samples: all, the distinct ones, and of each kind of problem."""
    right = [record for record in samples if record["reward"] > 0]
    kinds = sorted({record["kind"] for record in samples if "kind" in record})
    by_kind = {kind: sum(record["kind"] == kind for record in right) for kind in kinds}
    return {"all": len(right), "distinct": len(distinct(right)), **by_kind}


@torch.no_grad()
def with_log_mu(model, tokenizer, samples: list[Sample]) -> list[Sample]:
    """The samples with log mu as the reward of the wrong ones: see topr_loss."""
    head = rift.linear_head(model)
    encoded = [rift.encode(model, tokenizer, record, "{problem}\n") for record in samples]
    log_mu = []
    for start in range(0, len(encoded), 16):
        batch = rift.collate(encoded[start : start + 16], model.device)
        log_mu += rift.response_logps(model, batch, head).sum(1).clamp(max=-1e-6).tolist()
    return [
        {**record, "reward": record["reward"] if record["reward"] > 0 else value}
        for record, value in zip(samples, log_mu, strict=True)
    ]


def fine_tune(run: Run, world: Path, samples: list[Sample]) -> tuple:
    """The trained model, its tokenizer, the metrics of each step and the size of a batch."""
    size, method, right = size_of(run["base"]), run["method"], count_right(samples)["all"]
    config = rift.Training(
        model=model_folder(world),
        device="cpu",
        dtype=size.dtype,
        lr=run["lr"],
        seed=run["seed"],
        steps=run["steps"],
        batch_size=size.batch,
        micro_batch_tokens=size.micro_batch_tokens,
    )
    model, tokenizer = rift.load_model(config, torch.float32)
    model.set_attn_implementation(size.attention)
    loss = METHODS[method].loss
    if method == "base":
        return model, tokenizer, [], 0
    if method == "rft-passes":
        config.steps, config.epochs = 0, 1.5
    if method == "rft-distinct":
        samples = distinct(samples)
    if method == "rift-positives":
        config.batch_size = round(size.batch * len(samples) / right)
    if method == "topr":
        samples, loss = with_log_mu(model, tokenizer, samples), topr_loss(run["wrong"])
    history = rift.train(model, tokenizer, samples, config, loss)
    return model, tokenizer, history, config.batch_size


def carry_out(run: Run, worlds: Path, folder: Path) -> Run:
    """The run with its results."""
    started, size = time.process_time(), size_of(run["base"])
    world = worlds / f"world-{run['base']}"
    samples = read_samples(run, world, folder / "samples")
    trained, tokenizer, history, batch = fine_tune(run, world, samples)
    name, _, dtype = run["on"].partition(" in ")
    config = sampling(world, size._replace(dtype=dtype or size.dtype), run["seed"], 1.0)
    model, _ = rift.load_model(config)
    model.load_state_dict(trained.state_dict())
    problems = rift.read_problems(world / f"{name}.jsonl")[: getattr(size, name)]
    with tempfile.TemporaryDirectory() as out:
        results = rift.evaluate(model, tokenizer, problems, config, Path(out))
        drawn = rift.read_jsonl(Path(out) / "samples.jsonl")
    facts = {
        "steps made": len(history),
        "batch": batch,
        "right": count_right(samples),
        "logp_pos": [metrics["logp_pos"] for metrics in history[:1] + history[-1:]],
        "logp_neg": [metrics["logp_neg"] for metrics in history[:1] + history[-1:]],
        "results": results,
    }
    if run["base"] == "smollm2":
        right = [record["reward"] > 0 for record in drawn]
        facts["right of 8"] = [sum(right[i : i + 8]) for i in range(0, len(right), 8)]
    return {**run, **facts, "minutes": (time.process_time() - started) / 60}


# -------------------------------------------------------------------------------- finished runs


def key(run: Run) -> tuple:
    return tuple(run[name] for name in SETTINGS)


def read_study(folder: Path) -> Run:
    """study.json with the runs that were finished since, those of each experiment in its order."""
    study = json.loads((HERE / "study.json").read_text())
    for name, runs_of in EXPERIMENTS.items():
        found = {key(run): run for run in study.get(name, [])}
        for path in sorted(folder.glob(f"{name}.part-*.jsonl")):
            lines = path.read_text().split("\n")[:-1]  # without the half line that a kill leaves
            found |= {key(run): run for run in map(json.loads, lines)}
        study[name] = list(found.values())
        study[name] = [found[key(run)] for run in runs_of(study) if key(run) in found]
    return study


def run_experiments(names: list[str], worlds: Path, folder: Path, part: str) -> None:
    """Carries out the missing runs of these experiments whose base model has been made."""
    first, count = map(int, part.split("/"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.part-{first}-of-{count}.jsonl"
        if path.exists():
            rift.write_atomically(path, path.read_text().rpartition("\n")[0] + "\n")
        while True:
            study = read_study(folder)
            done = {key(run) for run in study[name]}
            runs = EXPERIMENTS[name](study)[first::count]
            if any(run["lr"] is None for run in runs):
                raise SystemExit(f"{name}: run the search of its learning rates first")
            missing = [run for run in runs if key(run) not in done]
            made = [r for r in missing if is_made(worlds / f"world-{r['base']}")]
            if not made:
                break
            finished = carry_out(made[0], worlds, folder)
            with open(path, "a") as file:
                file.write(json.dumps(finished) + "\n")
            mean = 100 * finished["results"]["all"]["mean@8"][0]
            print(f"{name}: {len(missing) - 1} left; {key(finished)} {mean:.1f} %", flush=True)
        print(f"{name}: {len(missing)} runs left without a base model", flush=True)


def is_made(world: Path) -> bool:
    return (Path(model_folder(world)) / "how_it_was_made.json").exists()


def rounded(study: Run) -> Run:
    """With five significant digits."""
    return json.loads(json.dumps(study), parse_float=lambda text: float(f"{float(text):.5g}"))


def write_study(study: Run) -> None:
    """study.json, one run a line."""
    lines = []
    for name, value in study.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        lines.append(f"{json.dumps(name)}: {text}")
    rift.write_atomically(HERE / "study.json", "{\n" + ",\n".join(lines) + "\n}\n")


# ------------------------------------------------------------------------------------- commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "report", "figure"))
    parser.add_argument("experiments", nargs="*", help=" ".join(EXPERIMENTS))
    parser.add_argument("--worlds", type=Path, default=Path("runs"), help="folder of world-N")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="finished runs")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth run, from the Ith")
    args = parser.parse_args()
    for name in set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    transformers.utils.logging.disable_progress_bar()
    if args.command == "run":
        run_experiments(args.experiments, args.worlds, args.runs, args.part)
        return
    from data.study import draw, report  # these need scipy and matplotlib

    study = rounded(read_study(args.runs))
    if args.command == "report":
        write_study(study)
        report.write_pages(study)
    if args.command == "figure":
        draw.draw_all(study, HERE)


if __name__ == "__main__":
    main()
