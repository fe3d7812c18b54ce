r"""The study of data/README.md: how far RIFT leads RFT, over ten base models, by three counts.

    for N in 0 1 2 3 4 5 6 7 8 9; do python data/make_data.py --seed $N --out runs/world-$N; done
    export OMP_NUM_THREADS=1                    one thread a process: the models are tiny
    python data/study.py run search bases temperature
    python data/study.py run long-search long               base words-N: make_data.py --words 16
    python data/study.py run pretrained-search pretrained   base smollm2: make_pretrained.py
    python data/study.py report                 prints the tables and writes data/study.json
    python data/study.py figure                 data/study.json -> data/study.png

An experiment is a list of cells. A cell is one training run: a base model (the number of its
world), a seed, a method, its settings; with the results of its evaluation it is one line of
runs/study/EXPERIMENT.jsonl. A cell that is there is not run again, so a killed run goes on. Two
processes can share an experiment: `--part 0/2` and `--part 1/2` each take every second cell.

A cell, unless it says otherwise: 8 samples at temperature 1 of each of 300 training problems, the
same buffer for every method; 57 steps of 64 samples (1.5 passes over the buffer); r = +1 and -0.2;
pi of the whole sequence; then 8 samples at temperature 1 and the greedy response of each of the
first 400 test problems. The searches and the choice of the base model that ships use the first 400
validation problems instead, and nothing else does. In `bases` the learning rate is 3e-4, the best
of RFT, RIFT and TOPR at T = 1; rows "its best rate" have the one that `search` found best for them,
and so has every method in `temperature` (3e-4 until the search has run).

RFT has fewer samples than RIFT, so its lead is counted in three ways: `passes`, RFT with as many
passes over its samples, so in fewer steps; `steps`, RFT with as many optimizer steps; `positives`,
RIFT with larger batches that hold 64 right samples on average, and as many steps.
`long` and `pretrained` are smaller, and each has its own search: their sizes and rates are below.
RFT without the problems that have no right sample is not a row: such problems have nothing in
RFT's batches, so it is the same training, bit for bit.

The rule for the base model that ships, written down before any run: the base model that ships is
the one whose lead of RIFT over RFT (same steps, mean@8, validation problems, mean over seeds 0 and
1) is the median of the ten: of the two middle ones, the lower.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import rift                                                      # noqa: E402

Cell = dict[str, Any]
BASES, SEEDS = range(10), (0, 1)
SETTINGS = ("base", "seed", "method", "temperature", "lr", "wrong", "level", "on")


class Size(NamedTuple):
    problems: int           # of the buffer, 8 samples each
    test: int               # problems to evaluate on
    valid: int
    steps: int
    batch: int
    passes: float           # over the buffer in as many steps
    longest: int            # response, in tokens
    micro_batch: int        # padded tokens
    bfloat16: bool          # to sample in, and to train in under autocast


TINY = Size(300, 400, 400, 57, 64, 1.5, 256, 16384, False)
SMOLLM2 = Size(64, 100, 60, 16, 32, 1.0, 48, 1024, True)


def size_of(cell: Cell) -> Size:
    return SMOLLM2 if cell["base"] == "smollm2" else TINY


# ---------------------------------------------------------------- methods: their loss, their name
METHODS = {
    "base": ("", "base model"),
    "rft-passes": ("rft", "RFT, same passes"),
    "rft-steps": ("rft", "RFT, same steps"),
    "rft-distinct": ("rft", "RFT, distinct responses"),
    "naive": ("naive", "naive, RIFT's rate"),
    "naive-best": ("naive", "naive, its best rate"),
    "rift": ("rift", "RIFT"),
    "rift-positives": ("rift", "RIFT, 64 right a step"),
    "rift-token": ("rift", "token, RIFT's rate"),
    "token-best": ("rift", "token, its best rate"),
    "rift-mean": ("rift", "RIFT, level mean"),
    "topr": ("topr", "TOPR"),
    "sft-on": ("sft", "SFT, more passes"),
}
LEVELS = {"rift-token": "token", "token-best": "token", "rift-mean": "mean"}
SEARCHED, HOT = ("rft-steps", "naive", "rift", "topr", "rift-token"), ("rft-steps", "rift", "topr")
RATES, TEMPERATURES, SEARCH_BASES = (1e-4, 3e-4, 1e-3), (1.0, 1.5, 2.0), (0, 1, 2)


# ------------------------------------------------------------------ experiments: lists of cells

def make_cell(base: int, seed: int, method: str, runs: Path, temperature: float = 1.0,
              lr: float | None = None, wrong: float = -0.2, on: str = "test") -> Cell:
    """The settings of a cell; by default its learning rate is the one that the search found."""
    if method == "base":
        lr = 0.0
    elif lr is None:
        searched_as = {"naive-best": "naive", "token-best": "rift-token"}.get(method, method)
        scores = searched(searched_as, temperature, read_cells("search", runs))
        lr = best_rate(scores, RATES, 3e-4)
    level = LEVELS.get(method, "sequence")
    return dict(zip(SETTINGS, (base, seed, method, temperature, lr, wrong, level, on)))


def search_cells(runs: Path) -> list[Cell]:
    pairs = [(1.0, method) for method in SEARCHED]
    pairs += [(temperature, method) for temperature in TEMPERATURES[1:] for method in HOT]
    return [make_cell(base, 100, method, runs, temperature, lr, on="valid")
            for temperature, method in pairs for lr in RATES for base in SEARCH_BASES]


def bases_cells(runs: Path) -> list[Cell]:
    """Those on validation problems are for the choice of the base model that ships."""
    cells = []
    for base in BASES:
        for seed in SEEDS:
            cells.append(make_cell(base, seed, "base", runs))
            for method in ("rft-steps", "rift"):
                cells.append(make_cell(base, seed, method, runs, lr=3e-4, on="test"))
                cells.append(make_cell(base, seed, method, runs, lr=3e-4, on="valid"))
    for method in ("topr", "rft-passes", "rift-positives", "rft-distinct", "naive", "rift-token"):
        cells += [make_cell(base, seed, method, runs, lr=3e-4) for seed in SEEDS for base in BASES]
    for method in ("naive-best", "token-best"):                 # 3e-4 is too much for these two
        cells += [make_cell(base, seed, method, runs) for seed in SEEDS for base in BASES]
    return cells


def temperature_cells(runs: Path) -> list[Cell]:
    """Those at T = 1 and rate 3e-4 are in `bases`."""
    cells = [make_cell(base, seed, method, runs, temperature)
             for seed in SEEDS for methods in (("rft-steps", "rift"), ("topr",))
             for base in BASES for temperature in TEMPERATURES for method in methods]
    return [cell for cell in cells if (cell["temperature"], cell["lr"]) != (1.0, 3e-4)]


# ------------------------------------------- two smaller worlds, with a search of their own

class World(NamedTuple):
    bases: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    methods: tuple[tuple[str, float], ...]                      # and the reward `wrong`


WORLDS = {
    "long": World(                                              # log pi of a response below -33
        ("words-0", "words-1"), (0, 1), (1e-4, 3e-4),
        (("rft-steps", -0.2), ("rift", -0.2), ("rift-token", -0.05), ("rift-token", -0.2),
         ("rift-mean", -0.05), ("rift-mean", -0.2), ("topr", -0.2))),
    "pretrained": World(
        ("smollm2",), (0, 1, 2), (3e-5, 1e-4),
        (("rft-steps", -0.2), ("rift", -0.2), ("rift-token", -0.05), ("topr", -0.2),
         ("naive", -0.2), ("sft-on", -0.2)))}


def world_search_cells(name: str, runs: Path) -> list[Cell]:
    world = WORLDS[name]
    return [make_cell(base, 100, method, runs, lr=lr, wrong=wrong, on="valid")
            for method, wrong in world.methods for lr in world.rates for base in world.bases]


def world_cells(name: str, runs: Path) -> list[Cell]:
    """Each method at the rate that its search found best."""
    world, found = WORLDS[name], read_cells(f"{name}-search", runs)
    plan = [("base", -0.2, 0.0)]
    for method, wrong in world.methods:
        want = {"method": method, "wrong": wrong}
        scores = by_rate(want, found, world.rates, len(world.bases))
        plan.append((method, wrong, best_rate(scores, world.rates, world.rates[0])))
    return [make_cell(base, seed, method, runs, lr=lr, wrong=wrong)
            for seed in world.seeds for base in world.bases for method, wrong, lr in plan]


EXPERIMENTS: dict[str, Callable[[Path], list[Cell]]] = {
    "search": search_cells, "bases": bases_cells, "temperature": temperature_cells}
for _name in WORLDS:
    EXPERIMENTS[f"{_name}-search"] = partial(world_search_cells, _name)
    EXPERIMENTS[_name] = partial(world_cells, _name)


def score_of(cell: Cell, figure: str = "mean@8", kind: str = "all") -> float:
    """In percent."""
    return 100 * cell["results"][kind][figure][0]


def searched(method: str, temperature: float, found: list[Cell]) -> dict[float, float]:
    want = {"method": method, "temperature": temperature}
    return by_rate(want, found, RATES, len(SEARCH_BASES))


def by_rate(want: Cell, found: list[Cell], rates: tuple[float, ...], bases: int
            ) -> dict[float, float]:
    """mean@8 on validation problems, of the cells with the settings `want`: by learning rate, those
    that all base models of the search have."""
    scores: dict[float, list[float]] = {lr: [] for lr in rates}
    for cell in found:
        if want.items() <= cell.items():
            scores[cell["lr"]].append(score_of(cell))
    return {lr: statistics.fmean(values) for lr, values in scores.items() if len(values) == bases}


def best_rate(scores: dict[float, float], rates: tuple[float, ...], otherwise: float) -> float:
    """The best of the rates; `otherwise` until each has been searched."""
    return max(scores, key=scores.get) if len(scores) == len(rates) else otherwise


# -------------------------------------------------------------------------------- one cell

@lru_cache(maxsize=1)
def load_base(world: Path, bfloat16: bool) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The model of world-N/*-base to train and the one to sample from, its tokenizer and a copy of
    its weights."""
    rift.BFLOAT16_ON = {"cuda", "cpu"} if bfloat16 else {"cuda"}
    path = str(*world.glob("*-base"))
    model, tokenizer = rift.load_model(path, "cpu", rift.torch.float32)
    sampler, _ = rift.load_model(path, "cpu")
    return model, sampler, tokenizer, {name: t.clone() for name, t in model.state_dict().items()}


def read_buffer(cell: Cell, world: Path, folder: Path) -> list[rift.Row]:
    """The samples of the cell's base model, seed and temperature, which all methods share."""
    path = folder / f"{world.name}-seed-{cell['seed']}-T-{cell['temperature']:g}.jsonl"
    if not path.exists():
        size = size_of(cell)
        _, sampler, tokenizer, start = load_base(world, size.bfloat16)
        sampler.load_state_dict(start)
        problems = rift.read_problems(world / "train.jsonl", size.problems)
        drawn = rift.sample(sampler, tokenizer, problems, rift.Sampling(
            seed=cell["seed"], temperature=cell["temperature"], max_new_tokens=size.longest))
        folder.mkdir(parents=True, exist_ok=True)
        own = path.with_name(f"{path.name}.{os.getpid()}")      # two processes may be at it
        rift.write_whole(own, rift.dump_jsonl(drawn))
        os.replace(own, path)
    return rift.score(rift.read_jsonl(path), 1.0, cell["wrong"])


def count_right(samples: list[rift.Row]) -> Cell:
    """How many samples are right, of each kind, and how many different ones."""
    right = [row for row in samples if row["reward"] > 0]
    counts = {"all": len(right), "distinct": len(distinct(right))}
    for kind in sorted({row["kind"] for row in samples if "kind" in row}):
        counts[kind] = sum(row["kind"] == kind for row in right)
    return counts


def distinct(samples: list[rift.Row]) -> list[rift.Row]:
    return list({(row["problem"], row["response"]): row for row in samples}.values())


@lru_cache(maxsize=1)               # cells that differ in their evaluation alone are neighbours
def train_base(training: tuple, worlds: Path, runs: Path) -> tuple[Any, Any, Cell]:
    """A model to sample from after a cell's training (its key without `on`), and what that was
    like."""
    cell = dict(zip(SETTINGS, training))
    size, world = size_of(cell), worlds / f"world-{cell['base']}"
    samples = read_buffer(cell, world, runs / "buffers")
    right, method, history = count_right(samples), cell["method"], []
    model, sampler, tokenizer, start = load_base(world, size.bfloat16)
    model.load_state_dict(start)
    config = rift.Training(loss=METHODS[method][0], level=cell["level"], lr=cell["lr"],
                           seed=cell["seed"], steps=size.steps, batch_size=size.batch,
                           tokens_per_batch=size.micro_batch)
    if method == "rft-passes":
        config.steps, config.epochs = 0, size.passes
    if method == "rft-distinct":
        samples = distinct(samples)
    if method == "rift-positives":
        config.batch_size = round(size.batch * len(samples) / right["all"])
    if method == "sft-on":
        samples = rift.read_samples(world / "experts.jsonl", "reward")
    if method != "base":
        history = rift.train(model, tokenizer, samples, config)
    curves = {name: [history[0][name], history[-1][name]] for name in
              ("logp_pos", "logp_neg", "neg_share") if history}
    sampler.load_state_dict(model.state_dict())
    return sampler, tokenizer, {"steps": len(history), "batch": config.batch_size, "right": right,
                              "curves": curves}


def fill(cell: Cell, worlds: Path, runs: Path) -> Cell:
    """The cell with its results; `right` counts the right samples of its buffer."""
    started, size = time.process_time(), size_of(cell)
    sampler, tokenizer, facts = train_base(key(cell)[:-1], worlds, runs)
    problems = rift.read_problems(worlds / f"world-{cell['base']}" / f"{cell['on']}.jsonl",
                                  size.valid if cell["on"] == "valid" else size.test)
    results = rift.evaluate(sampler, tokenizer, problems, rift.Sampling(
        seed=cell["seed"], max_new_tokens=size.longest))
    minutes = (time.process_time() - started) / 60              # of one core
    return {**cell, **facts, "minutes": minutes, "results": results}


# --------------------------------------------------------------------- files of finished cells

def read_cells(name: str, runs: Path) -> list[Cell]:
    """The finished cells of an experiment, of all its files; a kill can leave half a line."""
    files = [*runs.glob(f"{name}.jsonl"), *runs.glob(f"{name}.*of*.jsonl")]
    return [json.loads(line) for file in sorted(files) for line in whole_lines(file)]


def whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def key(cell: Cell) -> tuple:
    return tuple(cell[name] for name in SETTINGS)


def run(names: list[str], worlds: Path, runs: Path, part: str) -> None:
    """Runs the cells of these experiments that are not there yet and whose world is made."""
    first, step = map(int, part.split("/"))
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "machine.json").write_text(json.dumps(machine()) + "\n")
    for name in names:
        path = runs / (f"{name}.jsonl" if step == 1 else f"{name}.{first}of{step}.jsonl")
        if path.exists():                                       # without half a line at its end
            path.write_text("".join(whole_lines(path)))
        cells = EXPERIMENTS[name](runs)[first::step]
        while True:                                             # a world may be made meanwhile
            done = {key(cell) for cell in read_cells(name, runs)}
            missing = [cell for cell in cells if key(cell) not in done]
            ready = [cell for cell in missing if is_made(worlds / f"world-{cell['base']}")]
            if not ready:
                break
            started, finished = time.perf_counter(), fill(ready[0], worlds, runs)
            with open(path, "a") as file:
                file.write(json.dumps(finished) + "\n")
            print(f"{name}, {len(missing) - 1} of {len(cells)} left: {key(finished)} mean@8 "
                  f"{score_of(finished):.1f} %, {time.perf_counter() - started:.0f} s", flush=True)
        if missing:
            print(f"{name}: worlds {sorted({cell['base'] for cell in missing})} are not made yet")


def is_made(world: Path) -> bool:
    return any(world.glob("*-base/how_it_was_made.json"))


def machine() -> Cell:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cpus": os.cpu_count(),
            "threads a process": rift.torch.get_num_threads(), "python": platform.python_version(),
            "torch": rift.torch.__version__, "transformers": version("transformers")}


# --------------------------------------------------- numbers: means over seeds, then over bases

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)      # 1 to 9 degrees


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; from 10 degrees of freedom on, to 3 digits, by expansion."""
    if degrees <= len(T95):
        return T95[degrees - 1]
    z = 1.959964
    return z + (z ** 3 + z) / 4 / degrees + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / 96 / degrees ** 2


def interval(by_base: dict[int, float]) -> tuple[float, float]:
    """The mean over base models and the half-width of its 95 % t-interval."""
    values = list(by_base.values())
    if len(values) < 2:
        return (values or [math.nan])[0], math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), error * t_quantile(len(values) - 1)


def show(by_base: dict[int, float], sign: str = "") -> str:
    mean, half = interval(by_base)
    return f"{mean:{sign}.1f} ±{half:5.1f} ({len(by_base)})" if by_base else "-"


def accuracy(cells: list[Cell], want: Cell, figure: str = "mean@8", kind: str = "all",
             less: Cell | None = None, by_seed: bool = False) -> dict[Any, float]:
    """By base model (and seed, or else the mean over seeds), of the cells with the settings `want`;
    where `less` is given, of their difference from the cells with those, if both are there."""
    def pick(want: Cell) -> dict[tuple[Any, int], float]:
        return {(cell["base"], cell["seed"]): score_of(cell, figure, kind) for cell in cells
                if want.items() <= cell.items()}

    values, others = pick(want), pick(less) if less else {}
    groups: dict[Any, list[float]] = {}
    for (base, seed), value in sorted(values.items()):
        if less and (base, seed) not in others:
            continue
        group = groups.setdefault((base, seed) if by_seed else base, [])
        group.append(value - others.get((base, seed), 0))
    return {group: statistics.fmean(values) for group, values in groups.items()}


# -------------------------------------------------------------------------------------- report

FIGURES = (("greedy", "all"), ("mean@8", "all"), ("pass@8", "all"), ("mean@8", "misconception"),
           ("mean@8", "slips"))
WORLD_FIGURES = ("greedy", "mean@8", "pass@8", "boxed")
LEADS = {"RIFT - RFT, passes": ("rift", "rft-passes"), "RIFT - RFT, steps": ("rift", "rft-steps"),
         "RIFT - RFT, positives": ("rift-positives", "rft-steps"),
         "TOPR - RFT, steps": ("topr", "rft-steps"), "RIFT - TOPR, steps": ("rift", "topr"),
         "token best - RFT, steps": ("token-best", "rft-steps"),
         "naive best - RFT, steps": ("naive-best", "rft-steps"),
         "distinct - RFT, steps": ("rft-distinct", "rft-steps"),
         "RIFT - RFT distinct, steps": ("rift", "rft-distinct")}


def gather(runs: Path) -> Cell:
    """All finished cells that the experiments list, to five digits, with the machine's make."""
    study: Cell = {"machine": json.loads((runs / "machine.json").read_text())}
    for name, cells_of in EXPERIMENTS.items():
        listed = {key(cell) for cell in cells_of(runs)}
        found = {key(cell): cell for cell in read_cells(name, runs) if key(cell) in listed}
        study[name] = [found[name] for name in sorted(found, key=str)]
        minutes = sum(cell["minutes"] for cell in study[name])
        study["machine"][f"minutes of {name}"] = minutes
        print(f"{name}: {len(found)} of {len(listed)} cells, {minutes:.0f} minutes of one core")
    return json.loads(json.dumps(study), parse_float=lambda text: float(f"{float(text):.5g}"))


def summary(study: Cell) -> Cell:
    """[mean over base models, half of its 95 % interval] of what the READMEs quote, in percent."""
    cells, found = cells_on(study, "test", ("bases", "temperature")), {}
    for figure in ("greedy", "mean@8", "pass@8"):
        for method, (_, name) in METHODS.items():
            own = accuracy(cells, {"method": method, "temperature": 1.0}, figure)
            found[f"{name}, T 1, {figure}"] = interval(own)
        for name, (mine, other) in LEADS.items():
            found[f"{name}, T 1, {figure}"] = interval(accuracy(
                cells, {"method": mine, "temperature": 1.0}, figure,
                less={"method": other, "temperature": 1.0}))
        for method in HOT:
            for t in (*TEMPERATURES, None):
                at = "its best T" if t is None else f"T {t:g}"
                best, rft = tuned(study, method, t), tuned(study, "rft-steps", t)
                found[f"{method}, {at}, {figure}"] = interval(accuracy(cells, best, figure))
                found[f"{method} - RFT, {at}, {figure}"] = interval(
                    accuracy(cells, best, figure, less=rft))
    for world in WORLDS:
        for name, want in world_rows(study[world]).items():
            for figure in WORLD_FIGURES:
                own, lead = world_row(study[world], want, figure)
                found[f"{world}: {name}, {figure}"] = interval(own)
                found[f"{world}: {name} - RFT, {figure}"] = interval(lead)
    return {name: [round(number, 1) for number in pair] for name, pair in found.items()
            if not math.isnan(pair[0])}


def world_rows(cells: list[Cell]) -> dict[str, Cell]:
    """The settings of each row of a smaller world's table, by its name."""
    rows = {}
    for cell in cells:
        loss, name = METHODS[cell["method"]]
        if loss == "rift":
            name = f"RIFT, {cell['level']}, r = {cell['wrong']:g}"
        rows[name] = {setting: cell[setting] for setting in ("method", "wrong")}
    return rows


def world_row(cells: list[Cell], want: Cell, figure: str) -> tuple[dict, dict]:
    """A figure of it, and its lead over RFT with as many steps; by base model and seed."""
    return (accuracy(cells, want, figure, by_seed=True),
            accuracy(cells, want, figure, less={"method": "rft-steps"}, by_seed=True))


def cells_on(study: Cell, problems: str, names: tuple[str, ...] = ("bases",)) -> list[Cell]:
    return [cell for name in names for cell in study[name] if cell["on"] == problems]


def tuned(study: Cell, method: str, temperature: float | None) -> Cell:
    """A method's best settings at this temperature, or at its own best one."""
    if temperature is None:
        temperature = max(TEMPERATURES, default=1.0, key=lambda t: max(
            searched(method, t, study["search"]).values(), default=0))
    rate = best_rate(searched(method, temperature, study["search"]), RATES, 3e-4)
    return {"method": method, "temperature": temperature, "lr": rate}


def print_table(title: str, columns: Any, rows: dict[str, list[str]], width: int = 21) -> None:
    print(f"\n{title}\n{'':30}" + "".join(f"{column!s:>{width}}" for column in columns))
    for name, texts in rows.items():
        print(f"{name:30}" + "".join(f"{text:>{width}}" for text in texts))


def report(study: Cell) -> None:
    """Prints every table. `mean ± half (n)`: over n base models, with its 95 % interval."""
    rows = {}
    for t in TEMPERATURES:
        for method in SEARCHED:
            scores = searched(method, t, study["search"])
            if scores:
                rows[f"{METHODS[method][1]}, T {t:g}"] = [f"{scores.get(lr, math.nan):.1f}"
                                                          for lr in RATES]
    print_table("search: mean@8 on validation problems of bases 0, 1, 2", RATES, rows, 9)

    cells, titles = cells_on(study, "test"), [f"{figure} {kind}" for figure, kind in FIGURES]
    print_table("T = 1, percent", titles, {
        name: [show(accuracy(cells, {"method": method}, *figure)) for figure in FIGURES]
        for method, (_, name) in METHODS.items() if accuracy(cells, {"method": method})})
    pairs = {name: ({"method": mine}, {"method": other}) for name, (mine, other) in LEADS.items()
             if accuracy(cells, {"method": mine})}
    print_table("T = 1, leads, points", titles, {
        name: [show(accuracy(cells, mine, *figure, less=other), "+") for figure in FIGURES]
        for name, (mine, other) in pairs.items()})
    print_table("T = 1, leads by base model, mean@8", BASES, {
        name: [f"{accuracy(cells, mine, less=other).get(base, math.nan):+.1f}" for base in BASES]
        for name, (mine, other) in pairs.items()}, 7)

    cells = cells_on(study, "test", ("bases", "temperature"))
    for figure in FIGURES:
        rows = {}
        for method in HOT:
            wants = [tuned(study, method, t) for t in (*TEMPERATURES, None)]
            name, cold = METHODS[method][1], wants[0]
            rows[name] = [show(accuracy(cells, want, *figure)) for want in wants]
            rows[f"{name}, - its T = 1"] = [
                show(accuracy(cells, want, *figure, less=cold), "+") for want in wants]
            rows[f"{name} - RFT"] = [
                show(accuracy(cells, want, *figure, less=tuned(study, "rft-steps", t)), "+")
                for want, t in zip(wants, (*TEMPERATURES, None))]
        del rows["RFT, same steps - RFT"]
        print_table(f"temperature: {' '.join(figure)}", [*TEMPERATURES, "each at its best"], rows)
    for method in SEARCHED:
        print("best settings:", tuned(study, method, 1.0), "and", tuned(study, method, None))
    found = accuracy(cells_on(study, "valid"), *pairs["RIFT - RFT, steps"][:1],
                     less=pairs["RIFT - RFT, steps"][1])
    order = sorted(found, key=found.get)
    print("\nRIFT - RFT, steps, validation problems: "
          + ", ".join(f"base {base} {found[base]:+.1f}" for base in order))
    if len(order) == len(BASES):
        print(f"the base model that ships: {order[(len(order) - 1) // 2]}")
    for world in WORLDS:
        report_world(world, study[world])


def report_world(world: str, cells: list[Cell]) -> None:
    """Means over base models and seeds; `wrong's share` of |gradient| is the first step's."""
    rows, leads = {}, {}
    for name, want in world_rows(cells).items():
        chosen = [cell for cell in cells if want.items() <= cell.items()]
        tokens = statistics.fmean(score_of(cell, "tokens") / 100 for cell in chosen)
        curves = [cell["curves"] for cell in chosen if cell["curves"]]
        share = statistics.fmean([curve["neg_share"][0] or 0 for curve in curves] or [math.nan])
        found = [world_row(cells, want, figure) for figure in WORLD_FIGURES]
        rows[name] = [*(show(own) for own, _ in found), f"{tokens:.0f}", f"{chosen[0]['lr']:g}",
                      f"{share:.1e}"]
        leads[name] = [show(lead, "+") for _, lead in found]
    print_table(f"{world}: percent", [*WORLD_FIGURES, "tokens", "rate", "wrong's share"], rows, 17)
    print_table(f"{world}: leads over RFT, same steps, points", WORLD_FIGURES, leads, 17)
    logps = [cell["curves"]["logp_neg"][0] for cell in cells
             if (cell["method"], cell["wrong"]) == ("rift", -0.2)]
    if logps:
        print(f"log pi of a wrong response at the start: {statistics.fmean(logps):.1f}")


# -------------------------------------------------------------------------------------- figure

def draw(study: Cell, path: Path) -> None:
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    rcParams.update({"font.size": 9, "axes.titlesize": 10, "errorbar.capsize": 2,
                     "lines.markersize": 4, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    draw_bases(left, study)
    draw_temperature(middle, study)
    draw_rarity(right, study)
    figure.savefig(path, dpi=150)


def label(ax: Any, names: list[str], colours: tuple[str, ...], x: float, y: float) -> None:
    """Names in their colours, one below the other, where a panel is empty."""
    for number, (name, colour) in enumerate(zip(names, colours)):
        ax.text(x, y - 0.07 * number, f"\N{BLACK CIRCLE} {name}", color=colour,
                transform=ax.transAxes)


def draw_bases(ax: Any, study: Cell) -> None:
    """The lead by base model, by three counts, with the mean over base models at the right."""
    colours = ("tab:grey", "tab:purple", "tab:pink")
    leads = {name: accuracy(cells_on(study, "test"), {"method": mine}, less={"method": other})
             for name, (mine, other) in list(LEADS.items())[:3]}
    order = sorted(leads["RIFT - RFT, steps"], key=leads["RIFT - RFT, steps"].get)
    for number, (found, colour) in enumerate(zip(leads.values(), colours)):
        xs = [order.index(base) + 0.2 * (number - 1) for base in found]
        ax.plot(xs, list(found.values()), "o", color=colour)
        mean, half = interval(found)
        ax.errorbar(len(order) + 0.7 + 0.5 * number, mean, half, marker="o", color=colour)
    label(ax, [f"same {name.split()[-1]}" for name in leads], colours, 0.05, 0.9)
    ax.axhline(0, color="grey", lw=0.5)
    ax.set(title="a  Lead of RIFT over RFT at T = 1, points", xlabel="base model")
    ax.set_xticks([*range(len(order)), len(order) + 1.2], [*order, "mean"])


def draw_temperature(ax: Any, study: Cell) -> None:
    """Accuracy over base models; below, the paired lead of RIFT over RFT."""
    cells = cells_on(study, "test", ("bases", "temperature"))
    for number, method in enumerate(HOT):
        colour = ("tab:blue", "tab:purple", "tab:green")[number]
        points = [interval(accuracy(cells, tuned(study, method, t))) for t in TEMPERATURES]
        xs = [t + 0.04 * (number - 1) for t in TEMPERATURES]
        ax.errorbar(xs, *zip(*points), marker="o", color=colour)
        ax.text(2.1, points[-1][0], METHODS[method][1].split(",")[0], color=colour,
                va=("bottom", "top", "center")[number])
    for t in TEMPERATURES:
        lead = accuracy(cells, tuned(study, "rift", t), less=tuned(study, "rft-steps", t))
        ax.text(t, 21.5, "{:+.1f} ±{:.1f}".format(*interval(lead)), ha="center")
    ax.text(1.5, 23.5, "RIFT \N{MINUS SIGN} RFT:", ha="center")
    ax.set(title="b  Accuracy, mean@8, %", xlabel="sampling temperature of the buffer",
           xlim=(0.8, 2.45), ylim=(20, 49), xticks=TEMPERATURES)


def draw_rarity(ax: Any, study: Cell) -> None:
    """The lead on the misconception against how many samples of it are right in the buffer."""
    colours = ("navy", "tab:orange", "tab:red")
    cells = cells_on(study, "test", ("bases", "temperature"))
    for t, colour in zip(TEMPERATURES, colours):
        found = accuracy(cells, tuned(study, "rift", t), "mean@8", "misconception",
                         less=tuned(study, "rft-steps", t))
        for base, value in found.items():
            counts = [cell["right"]["misconception"] for cell in cells
                      if (cell["base"], cell["temperature"]) == (base, t)]
            ax.plot(statistics.fmean(counts), value, "o", color=colour)
    label(ax, [f"T = {t:g}" for t in TEMPERATURES], colours, 0.7, 0.9)
    ax.axhline(0, color="grey", lw=0.5)
    ax.set(title="c  Lead on the misconception, points",
           xlabel="right samples of it in the buffer, of about 1,600")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "report", "figure"))
    parser.add_argument("experiments", nargs="*", help=" ".join(EXPERIMENTS))
    parser.add_argument("--worlds", type=Path, default=Path("runs"), help="folder of world-N")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="finished cells")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth cell, from the Ith")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of study.json, study.png")
    args = parser.parse_args()
    for name in set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    if args.command == "run":
        run(args.experiments, args.worlds, args.runs, args.part)
    if args.command == "report" and not (args.runs / "machine.json").exists():
        parser.error(f"{args.runs}: no finished cells; `run` comes first")
    if args.command == "report":
        study = gather(args.runs)
        study["summary"] = summary(study)
        rift.write_whole(args.out / "study.json", json.dumps(study) + "\n")
        report(study)
    if args.command == "figure":
        draw(json.loads((args.out / "study.json").read_text()), args.out / "study.png")


if __name__ == "__main__":
    main()
