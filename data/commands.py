"""The command line of rift.py: its commands, the default job, and the folder that a run writes.

Every command reads and checks its input, makes its folder (or goes on with the run that is there,
if the settings and inputs are the same), does its work with the functions of rift.py, and says
what it wrote. A mistake in the input ends with one line and exit status 2; nothing is written.
"""
from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rift                                                             # noqa: E402
from rift import DATA, Rewards, Row, Sampling, Training, UserError, flag  # noqa: E402

OLDEST = {"torch": (2, 8), "transformers": (5, 0)}
QUICK = {"train_limit": 100, "limit": 100, "k": 4, "out": "runs/quick"}
RANGES = {"top_p": (0, 1), "warmup": (0, 1), "seed": (0, 2 ** 32), "right": (-1e9, 1e9),
          "wrong": (-1e9, 1e9), "k": (1, 1e9), "max_new_tokens": (1, 1e9), "rows": (1, 1e9),
          "batch_size": (1, 1e9), "tokens_per_batch": (1, 1e9)}         # the others: from 0
INPUTS = ("model", "problems", "test", "samples")                       # flags that name files
MACHINE = ("device", "tokens_per_batch", "gradient_checkpointing", "save_every")   # not results


# -------------------------------------------------- the flags of a command: fields of its class

@dataclass
class Sample(Sampling, Rewards):
    problems: str = flag(str(DATA / "train.jsonl"), "JSONL of problems")
    out: str = flag("runs/sample", "folder to write")


@dataclass(kw_only=True)
class Score(Rewards):
    samples: str = field(metadata={"help": "JSONL of responses and the answers to their problems"})
    out: str = flag("runs/score", "folder to write")


@dataclass(kw_only=True)
class Train(Training):
    samples: str = field(metadata={"help": "JSONL of responses and their rewards"})
    out: str = flag("runs/train", "folder to write")


@dataclass
class Eval(Sampling):
    test: str = flag(str(DATA / "test.jsonl"), "JSONL of problems")
    out: str = flag("runs/eval", "folder to write")


@dataclass
class Demo(Sampling, Rewards, Training):
    problems: str = flag(str(DATA / "train.jsonl"), "JSONL of problems to learn from")
    train_limit: int = flag(300, "learn from the first N problems; 0 for all")
    test: str = flag(str(DATA / "test.jsonl"), "JSONL of problems to evaluate on")
    limit: int = flag(0, "evaluate on the first N problems; 0 for all")
    max_new_tokens: int = flag(64, "longest response; a solution in data/ has 29 tokens at most")
    quick: bool = flag(False, "--train-limit 100 --limit 100 --k 4 --out runs/quick")
    out: str = flag("runs/demo", "folder to write")
    loss: str = field(default="rift", init=False)           # no flags: it trains with each loss,
    save_every: int = field(default=0, init=False)          # and each is done in a minute


def parse(argv: list[str]) -> Any:
    """The command line as an object of its command's class; UserError at what will not do."""
    command = "demo"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]

    def fail(message: str) -> None:
        if message.startswith("unrecognized"):
            message += " (a command comes before its flags)"
        raise UserError(f"{message}; see python rift.py {command} --help")

    if command not in COMMANDS:
        raise UserError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
    parser = HfArgumentParser(
        COMMANDS[command][0], prog=f"rift.py {command}", allow_abbrev=False,
        description=f"Commands: {', '.join(COMMANDS)}; demo if none is given. "
                    "rift.py COMMAND --help lists the flags of each.")
    parser.error = fail
    for action in parser._actions:                      # help within 80 columns
        if not action.choices:
            action.metavar = "X"
    if any(word.split("=")[0] == "--quick" for word in argv):
        parser.set_defaults(**QUICK)
    config = COMMANDS[command][0](**vars(parser.parse_args(argv)))
    for name, value in vars(config).items():
        least, most = RANGES.get(name, (0, 1e9))
        if isinstance(value, (int, float)) and not least <= value <= most:
            fail(f"--{name.replace('_', '-')} {value}: must be from {least} to {most:g}")
    if "{problem}" not in getattr(config, "template", "{problem}"):
        fail(f"--template {config.template!r}: has no {{problem}} in it")
    return config


# ------------------------------------------------------------------------------- run folders

def settings(config: Any) -> Row:
    """What decides a run's results: its flags, with a digest of each input file."""
    found = {"command": type(config).__name__.lower()}
    for name, value in vars(config).items():
        if name not in ("out", *MACHINE, *INPUTS):
            found[name] = value
        if name in INPUTS:
            path = Path(value)
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            digests = [digest(file) for file in files if file.is_file()]
            found[name] = " ".join(digests) or value            # a hub name has no files here
    return found


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def claim_folder(config: Any) -> None:
    """Makes config.out and writes its run.json; UserError if it is there and not a run with the
    same settings and inputs."""
    out, now = Path(config.out), settings(config)
    run = out / "run.json"
    if out.exists() and not run.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty and not a run of rift.py; choose another --out")
    if run.is_file():
        before = rift.read_jsonl(run)[0]
        changed = [f"{name} {before.get(name)} -> {now.get(name)}" for name in {**before, **now}
                   if before.get(name) != now.get(name)]
        if changed:
            raise UserError(f"{out}: holds another run's results ({', '.join(changed)}); choose "
                            "another --out")
    out.mkdir(parents=True, exist_ok=True)
    rift.write_whole(run, json.dumps(now) + "\n")


# ---------------------------------------------------------------------------------- commands

def run_sample(config: Sample, out: Path) -> None:
    problems = rift.read_problems(config.problems, config.limit)
    model, tokenizer = load_model(config, problems)
    samples = rift.sample(model, tokenizer, problems, config, out / "samples.jsonl")
    write_samples(samples, config, out)


def run_score(config: Score, out: Path) -> None:
    write_samples(rift.read_samples(config.samples, "answer"), config, out)


def write_samples(samples: list[Row], config: Rewards, out: Path) -> None:
    rift.score(samples, config.right, config.wrong)
    rift.write_whole(out / "samples.jsonl", rift.dump_jsonl(samples))
    right = sum(row["reward"] == config.right for row in samples) / len(samples)
    boxed = sum("\\boxed{" in row["response"] for row in samples) / len(samples)
    cut = sum(bool(row.get("truncated")) for row in samples) / len(samples)
    print(f"wrote {out / 'samples.jsonl'}: {len(samples)} samples, {right:.1%} right\n"
          f"({boxed:.1%} with an answer in a box, {cut:.1%} cut off)")


def run_train(config: Train, out: Path) -> None:
    samples = rift.read_samples(config.samples, "" if config.loss == "sft" else "reward")
    for row in samples:
        if config.loss == "sft":
            row["reward"] = 1.0                         # every sample is to be learned
    if config.loss in ("rift", "naive", "topr") and all(row["reward"] >= 0 for row in samples):
        print("note: no reward is below 0, so this is RFT, each answer weighted by its reward;\n"
              "`rift.py score --samples FILE` gives wrong answers the reward --wrong, -0.2")
    if config.loss != "sft" and all(row["reward"] <= 0 for row in samples):
        print("note: no reward is above 0, so there is nothing right to learn: look at the\n"
              "responses, --template and --max-new-tokens")
    for row in samples:
        if config.loss == "topr" and type(row.get("logp")) not in (int, float):
            raise UserError(f"{row.where}: topr needs `logp`, which `rift.py sample` writes")
    if config.loss == "topr" and config.level != "sequence":
        raise UserError("--loss topr has no other --level than sequence")
    model, tokenizer = load_model(config, samples, torch.float32)
    if not (out / "model").exists():                    # else it is done, with these settings
        rift.train(model, tokenizer, samples, config, out)
        stored = transformers.AutoConfig.from_pretrained(config.model).dtype
        rift.write_whole(out / "model", lambda folder: (
            model.to(stored or torch.float32).save_pretrained(folder),
            tokenizer.save_pretrained(folder)))
        (out / "checkpoint.pt").unlink(missing_ok=True)
    history = rift.read_jsonl(out / "metrics.jsonl")
    print(f"wrote {out / 'model'} and {out / 'metrics.jsonl'}: {len(history)} steps")
    if "stopped" in history[-1]:
        raise UserError(f"{history[-1]['stopped']}; the weights before it are saved")


def run_eval(config: Eval, out: Path) -> None:
    problems = rift.read_problems(config.test, config.limit)
    model, tokenizer = load_model(config, problems)
    results = rift.evaluate(model, tokenizer, problems, config)
    rift.write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    print(table([{"name": "this model", "steps": 0, "results": results}], config.k))
    print(f"wrote {out / 'results.json'}")


def run_demo(config: Demo, out: Path) -> None:
    """One buffer of samples, and five trainings from the same start. RFT has fewer samples, so it
    has two rows: with as many passes over them as RIFT makes, and with as many steps."""
    problems = rift.read_problems(config.problems, config.train_limit)
    experts = [{**row, "response": expert_solution(row), "reward": 1.0} for row in problems]
    test = rift.read_problems(config.test, config.limit)
    model, tokenizer = load_model(config, problems + test, torch.float32)
    rift.encode_all(model, tokenizer, experts + test, config)           # a mistake is told now
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampler, _ = rift.load_model(config.model, config.device)           # in the dtype to sample in
    buffer = rift.sample(sampler, tokenizer, problems, config, out / "samples.jsonl")
    write_samples(buffer, config, out)
    steps, passes = config.steps, config.epochs
    if steps:
        passes = steps * config.batch_size / len(buffer)
    else:
        steps = math.ceil(passes * len(buffer) / config.batch_size)
    plan = [("base model", "", [], 0), ("SFT, expert solutions", "sft", experts, steps),
            ("RFT, same passes", "rft", buffer, 0), ("RFT, same steps", "rft", buffer, steps),
            ("naive", "naive", buffer, steps), ("RIFT", "rift", buffer, steps)]
    path, rows = out / "results.json", []
    if path.exists():
        rows = json.loads(path.read_text())["rows"]             # of a run that was killed
    for name, loss, samples, fixed_steps in plan[len(rows):]:
        started, history = time.perf_counter(), []
        model.load_state_dict(start)
        if loss:
            training = copy.copy(config)
            training.loss, training.steps = loss, fixed_steps
            training.epochs = passes
            history = rift.train(model, tokenizer, samples, training)
        sampler.load_state_dict(model.state_dict())
        results = rift.evaluate(sampler, tokenizer, test, config)
        minutes = round((time.perf_counter() - started) / 60, 2)
        rows.append({"name": name, "steps": len(history), "minutes": minutes, "results": results,
                     "history": history})
        rift.write_whole(path, json.dumps({**facts(config), "rows": rows}) + "\n")
        print(f"{name}: {len(history)} steps, {minutes} minutes", flush=True)
    print("\n" + table(rows, config.k))
    print(f"wrote {path}")
    try:
        import figure
    except ImportError:
        print("no figure: matplotlib is not installed")
    else:
        print(f"wrote {figure.draw(path, out / 'figure.png')}")


def table(rows: list[Row], k: int) -> str:
    """Text of 80 columns, in percent, by kind. Each row has `name`, `steps` and `results`."""
    columns, lines = ("greedy", f"mean@{k}", f"pass@{k}", "boxed"), []
    for kind, figures in rows[0]["results"].items():
        title = f"{kind} ({figures['n']})"
        lines.append(f"{title:22}{'steps':>6}" + "".join(f"{name:>13}" for name in columns))
        for row in rows:
            lines.append(f"{row['name']:22}{row['steps']:6}")
            for name in columns:
                mean, error = row["results"][kind][name]
                lines[-1] += f"{100 * mean:7.1f} ±{100 * error:4.1f}"
        lines.append("")
    return "\n".join(lines) + "percent; ± is the standard error over problems"


def expert_solution(row: Row) -> str:
    """A worked solution; GSM8K has it in `answer`."""
    return row["answer"] if "####" in row["answer"] else rift.text_field(row, "solution")


def facts(config: Demo) -> Row:
    """What the results were made with."""
    device = "CPU"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {"settings": settings(config), "hardware": {
        "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "transformers": transformers.__version__}}


def load_model(config: Any, rows: list[Row], dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Model and tokenizer; says what they are, and whether the rows hold unknown characters."""
    model, tokenizer = rift.load_model(config.model, config.device, dtype)
    print(f"{config.model}: {model.num_parameters():,} parameters, {model.dtype} on {model.device}")
    unknown = 0
    for row in rows if tokenizer.unk_token_id is not None else []:
        text = row["problem"] + row.get("response", "")
        ids = tokenizer(text, add_special_tokens=False).input_ids
        unknown += ids.count(tokenizer.unk_token_id) > text.count(tokenizer.unk_token)
    if unknown:
        print(f"note: {unknown} of {len(rows)} rows have characters that the tokenizer does not "
              f"know;\nthey are read as {tokenizer.unk_token}")
    return model, tokenizer


COMMANDS = {"demo": (Demo, run_demo), "sample": (Sample, run_sample), "score": (Score, run_score),
            "train": (Train, run_train), "eval": (Eval, run_eval)}


def peak_memory() -> str:
    """The most memory that this process has held, on the GPU where there is one."""
    if torch.cuda.is_available():
        return f"peak memory {torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GB"
    if sys.platform == "win32":
        return "peak memory unknown"
    import resource
    unit = 2 ** 30 if sys.platform == "darwin" else 2 ** 20         # bytes there, kilobytes here
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GB"


def check_versions() -> None:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for name, version in versions.items():
        oldest = OLDEST[name]
        if tuple(map(int, version.split(".")[:2])) < oldest:
            needed = " and ".join(f"{n} {major}.{minor}" for n, (major, minor) in OLDEST.items())
            raise UserError(f"{name} {version} is too old: needs {needed}, or newer")


def main(argv: list[str]) -> int:
    """Exit status: 0, or 2 after one line that says what is wrong with the input."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    claimed = None
    try:
        check_versions()
        config = parse(argv)
        claim_folder(config)
        claimed = config.out
        COMMANDS[type(config).__name__.lower()][1](config, Path(config.out))
        print(peak_memory())
    except (UserError, OSError) as error:
        if claimed and os.listdir(claimed) == ["run.json"]:         # nothing has come of it
            os.remove(Path(claimed) / "run.json")
            os.removedirs(claimed)                                  # and parents that are empty
        print(f"rift.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrift.py: stopped; the same command goes on from what was saved", file=sys.stderr)
        return 130
    return 0
