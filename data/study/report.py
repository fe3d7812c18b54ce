"""The numbers in data/study/README.md and README.md, computed from study.json and written there.

`python -m data.study.study report` replaces what stands in the pages between two marks:

    <!-- numbers: main -->
    ...
    <!-- end -->

The functions in SECTIONS return that text. test_study.py compares it with the pages.
"""

import json
import re
import statistics
from collections.abc import Iterable
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

from scipy import stats

from data.study import memory
from data.study.study import METHODS, TEMPERATURES, Run, best_rate, rates_searched

MEASURES = ("greedy", "mean@8", "pass@8")
HERE = Path(__file__).resolve().parent
MARKED = re.compile(r"<!-- numbers: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
PAGES = (HERE / "README.md", HERE.parent.parent / "README.md")


# ----------------------------------------------------------------------------------- statistics


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % t interval.

    >>> [round(x, 3) for x in interval([1, 2, 3])]  # 4.303 * 1 / sqrt(3)
    [2, 2.484]
    """
    values = list(values)
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), error * float(stats.t.ppf(0.975, len(values) - 1))


def sign_test(values: Iterable[float]) -> tuple[int, int, float]:
    """How many values are above 0 and how many below, and the two-sided p of the sign test."""
    values = list(values)
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return above, below, float(stats.binomtest(above, above + below).pvalue)


def wilcoxon_interval(values: Iterable[float]) -> tuple[float, float, float]:
    """The Hodges-Lehmann median, and the shifts that the signed-rank test does not reject at 5 %.

    The test's p changes only where the shift passes the mean of two values.
    """
    values = list(values)
    means = sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))
    kept = [
        bound
        for low, high in pairwise(means)
        if high - low > 1e-9
        and stats.wilcoxon([value - (low + high) / 2 for value in values]).pvalue > 0.05
        for bound in (low, high)
    ]
    return statistics.median(means), kept[0], kept[-1]


# --------------------------------------------------------------------------- numbers of the runs


def settings(method: str, **changes: Any) -> Run:
    """Of the runs to look for: those that a run has unless it says otherwise."""
    lr = 0.0 if method == "base" else 3e-4
    usual = {"temperature": 1.0, "lr": lr, "wrong": -0.2, "steps": 57, "on": "test"}
    return {"method": method, **usual, **changes}


def values_of(runs: list[Run], want: Run, measure: str, kind: str = "all") -> dict:
    """In percent, by base model and seed."""
    return {
        (run["base"], run["seed"]): 100 * run["results"][kind][measure][0]
        for run in runs
        if want.items() <= run.items()
    }


def by_base(values: dict) -> list[float]:
    """The mean over the seeds of each base model."""
    groups: dict[Any, list[float]] = {}
    for (base, _), value in values.items():
        groups.setdefault(base, []).append(value)
    return [statistics.fmean(groups[base]) for base in sorted(groups)]


def minus(mine: dict, other: dict) -> dict:
    """Paired differences, for the base models and seeds that both have."""
    return {pair: mine[pair] - other[pair] for pair in mine if pair in other}


def lead(runs: list[Run], mine: Run, other: Run, measure: str, kind: str = "all") -> list[float]:
    """In points, one for each base model."""
    pairs = minus(values_of(runs, mine, measure, kind), values_of(runs, other, measure, kind))
    return by_base(pairs)


def level(runs: list[Run], want: Run, measure: str, kind: str = "all") -> str:
    mean, half = interval(by_base(values_of(runs, want, measure, kind)))
    return f"{mean:.1f} ± {half:.1f}"


def difference(values: Iterable[float]) -> str:
    mean, half = interval(values)
    return f"{mean:+.1f} ± {half:.1f}"


def with_signs(values: list[float]) -> str:
    above, below, _ = sign_test(values)
    return f"{difference(values)} ({above}/{below})"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------- sections: the main comparison

COMPARED = {
    "RIFT − RFT, same steps": ("rift", "rft-steps"),
    "RIFT − RFT, same passes": ("rift", "rft-passes"),
    "RIFT − RFT on distinct responses": ("rift", "rft-distinct"),
    "RIFT with as many right samples − RFT, same steps": ("rift-positives", "rft-steps"),
}
KINDS = {"all": "all problems", "misconception": "misconception", "slips": "slips"}


def rows_of(study: Run) -> dict[str, Run]:
    """The rows of the main table: each method, some at two learning rates."""
    rows = {}
    for method, (name, _, _) in METHODS.items():
        rates = sorted(rates_searched(study, "search", method, temperature=1.0), reverse=True)
        for lr in [0.0] if method == "base" else rates:
            want = settings(method, lr=lr)
            if values_of(study["bases"], want, "greedy"):
                rows[name if lr in (0.0, 3e-4) else f"{name}, learning rate {lr:g}"] = want
    return rows


def main_tables(study: Run) -> str:
    texts = []
    for kind, title in KINDS.items():
        rows = [
            [name, *(level(study["bases"], want, measure, kind) for measure in MEASURES)]
            for name, want in rows_of(study).items()
        ]
        texts.append(table([f"{title}, %", *MEASURES], rows))
    return "\n\n".join(texts)


def main_differences(study: Run) -> str:
    """The four ways to compare, with an interval that assumes normality and two that do not."""
    rows = []
    for name, (mine, other) in COMPARED.items():
        for measure in MEASURES:
            values = lead(study["bases"], settings(mine), settings(other), measure)
            above, below, p = sign_test(values)
            median, low, high = wilcoxon_interval(values)
            ranks = f"{median:+.1f} [{low:+.1f}, {high:+.1f}]"
            rows.append(
                [name, measure, difference(values), ranks, f"{above} / {below}", f"{p:.3f}"]
            )
    header = ["difference, points", "", "mean ± interval", "median [interval]", "+ / −", "p"]
    return table(header, rows)


def differences_by_kind(study: Run) -> str:
    pairs = {
        **{name: (settings(m), settings(o)) for name, (m, o) in COMPARED.items()},
        "TOPR − RFT": (settings("topr"), settings("rft-steps")),
        "RIFT − TOPR": (settings("rift"), settings("topr")),
        "rift-token, 1e-4 − RFT": (settings("rift-token", lr=1e-4), settings("rft-steps")),
        "naive, 1e-4 − RFT": (settings("naive", lr=1e-4), settings("rft-steps")),
        "naive − base model": (settings("naive"), settings("base", lr=0.0)),
        "RFT on distinct responses − RFT": (settings("rft-distinct"), settings("rft-steps")),
    }
    texts = []
    for kind, title in KINDS.items():
        rows = []
        for name, (mine, other) in pairs.items():
            leads = [lead(study["bases"], mine, other, measure, kind) for measure in MEASURES]
            rows.append([name, *map(with_signs, leads)])
        texts.append(table([f"{title}, points", *MEASURES], rows))
    return "\n\n".join(texts)


def single_bases(study: Run) -> str:
    """RIFT - RFT at the same steps, by base model and by run."""
    runs, mine, other = study["bases"], settings("rift"), settings("rft-steps")
    rows, columns = [], []
    for measure in ("mean@8", "pass@8"):
        pairs = minus(values_of(runs, mine, measure), values_of(runs, other, measure))
        seeds = sorted({seed for _, seed in pairs})
        for base in sorted({base for base, _ in pairs}):
            single = [pairs[base, seed] for seed in seeds if (base, seed) in pairs]
            columns.append([f"{statistics.fmean(single):+.1f}", *(f"{v:+.1f}" for v in single)])
    half = len(columns) // 2
    for base, (first, second) in enumerate(zip(columns[:half], columns[half:], strict=True)):
        rows.append([str(base), first[0], ", ".join(first[1:]), second[0], ", ".join(second[1:])])
    header = ["base model", "mean@8", "its four runs", "pass@8", "its four runs"]
    return table(header, rows)


# ------------------------------------------------------------------------- sections: variations


def steps_rows(study: Run, method: str) -> tuple[list[Run], dict[int, Run]]:
    """The runs to look in, and by number of steps the settings of the runs with seed 0."""
    runs = study["bases"] + study["passes"]
    rates = {run["steps"]: run["lr"] for run in study["passes"] if run["method"] == method}
    rates = {57: 3e-4, **dict(sorted(rates.items()))}
    rows = {n: settings(method, steps=n, lr=lr, seed=0) for n, lr in rates.items()}
    return runs, rows


def passes_table(study: Run) -> str:
    runs, rft = steps_rows(study, "rft-steps")
    _, rift = steps_rows(study, "rift")
    rows = []
    for steps in rift:
        for name, want in (("RFT", rft[steps]), ("RIFT", rift[steps])):
            lr = f"{want['lr']:g}"
            rows.append([str(steps), name, lr, *(level(runs, want, m) for m in MEASURES)])
        leads = [with_signs(lead(runs, rift[steps], rft[steps], measure)) for measure in MEASURES]
        rows.append([str(steps), "RIFT − RFT", "", *leads])
    return table(["steps", "", "learning rate", *MEASURES], rows)


def rewards_table(study: Run) -> str:
    runs, rows = study["bases"] + study["rewards"], []
    usual = settings("rift", seed=0)
    for wrong in (-0.05, -0.2, -1.0):
        want = settings("rift", wrong=wrong, seed=0)
        levels = [level(runs, want, measure) for measure in MEASURES]
        leads = ["", "", ""]
        if wrong != -0.2:
            leads = [with_signs(lead(runs, want, usual, measure)) for measure in MEASURES]
        rows.append([f"{wrong:g}", *levels, *leads])
    return table(
        ["r of wrong responses", *MEASURES, *(f"{m}, − that of −0.2" for m in MEASURES)], rows
    )


def at_temperature(study: Run, method: str, temperature: float) -> Run:
    lr = best_rate(study, method, temperature=temperature)
    return settings(method, temperature=temperature, lr=lr)


def temperature_table(study: Run) -> str:
    runs, rows = study["bases"] + study["temperature"], []
    for t in TEMPERATURES:
        rft, rift, topr = (at_temperature(study, m, t) for m in ("rft-steps", "rift", "topr"))
        for want in (rft, rift, topr):
            name, lr = METHODS[want["method"]].name, f"{want['lr']:g}"
            rows.append([f"{t:g}", name, lr, *(level(runs, want, m) for m in MEASURES)])
        for name, mine, other in (("RIFT − RFT", rift, rft), ("TOPR − RFT", topr, rft)):
            leads = [with_signs(lead(runs, mine, other, m)) for m in MEASURES]
            rows.append([f"{t:g}", name, "", *leads])
    return table(["T", "", "learning rate", *MEASURES], rows)


def long_table(study: Run) -> str:
    """The two base models side by side, each the mean of its two seeds. No interval: see below."""
    runs, rows = study["long"], []
    rft = {"method": "rft-steps"}
    columns = [("mean@8", "all"), ("pass@8", "all"), ("mean@8", "misconception")]
    columns.append(("mean@8", "slips"))
    for method, wrong in {(run["method"], run["wrong"]): 0 for run in runs}:
        if method not in ("base", "rft-steps"):
            mine = {"method": method, "wrong": wrong}
            leads = [lead(runs, mine, rft, *column) for column in columns]
            texts = [", ".join(f"{value:+.1f}" for value in values) for values in leads]
            rows.append([METHODS[method].name, f"{wrong:g}", *texts])
    titles = [f"{measure}, {KINDS[kind]}" for measure, kind in columns]
    return table(["minus RFT, same steps", "r", *titles], rows)


def pretrained_small_table(study: Run) -> str:
    """One base model, so no interval over base models: the seeds one by one."""
    runs, rows = study["pretrained-small"], []
    for method in {run["method"]: 0 for run in runs}:
        cells = []
        for measure in ("mean@8", "pass@8"):
            mine = values_of(runs, {"method": method}, measure)
            pairs = minus(mine, values_of(runs, {"method": "rft-steps"}, measure))
            cells.append(f"{statistics.fmean(mine.values()):.1f}")
            cells.append(", ".join(f"{value:+.1f}" for value in pairs.values()))
        if method == "rft-steps":
            cells[1] = cells[3] = ""
        rows.append([METHODS[method].name, *cells])
    text = table(["", "mean@8", "− RFT, by seed", "pass@8", "− RFT, by seed"], rows)
    half = interval(pretrained_lead(study))[1]
    return (
        f"{text}\n\nOver the three seeds, the 95 % interval of RIFT − RFT in mean@8 reaches "
        f"{half:.1f} points to each side, so a trial of this size cannot see less than that."
    )


def pretrained_lead(study: Run) -> list[float]:
    """RIFT - RFT in mean@8, one for each seed."""
    methods = ({"method": method} for method in ("rift", "rft-steps"))
    values = (values_of(study["pretrained-small"], want, "mean@8") for want in methods)
    return list(minus(*values).values())


def searches_table(study: Run) -> str:
    """What each search found, on validation problems."""
    rows = []
    for experiment in ("search", "passes-search", "long-search"):
        asked = {(run["method"], run["temperature"], run["wrong"]): 0 for run in study[experiment]}
        for method, t, wrong in asked:
            scores = rates_searched(study, experiment, method, temperature=t, wrong=wrong)
            texts = [f"{lr:g}: {score:.1f}" for lr, score in scores.items()]
            rows.append(
                [experiment, METHODS[method].name, f"{t:g}", f"{wrong:g}", ", ".join(texts)]
            )
    return table(["search", "method", "T", "r", "learning rate: mean@8, %"], rows)


# ------------------------------------------------------------------------------------- sentences


def led(study: Run, mine: str, other: str, measure: str, kind: str = "all") -> str:
    return difference(lead(study["bases"], settings(mine), settings(other), measure, kind))


def at_t(study: Run, measure: str, t: float) -> str:
    runs = study["bases"] + study["temperature"]
    mine, other = (at_temperature(study, method, t) for method in ("rift", "rft-steps"))
    return difference(lead(runs, mine, other, measure))


def wins(study: Run) -> int:
    """Base models on which RIFT leads RFT, same steps, by every measure."""
    pair = settings("rift"), settings("rft-steps")
    leads = [lead(study["bases"], *pair, measure) for measure in MEASURES]
    return sum(min(values) > 0 for values in zip(*leads, strict=True))


def steps_text(study: Run, measure: str) -> str:
    """How accuracy and lead change from the fewest steps to the most."""
    runs, rft = steps_rows(study, "rft-steps")
    _, rift = steps_rows(study, "rift")
    few, many = min(rift), max(rift)
    levels = [level(runs, rows[n], measure) for rows in (rft, rift) for n in (few, many)]
    leads = [difference(lead(runs, rift[n], rft[n], measure)) for n in (few, many)]
    return (
        f"in {measure} RFT goes from {levels[0]} to {levels[1]}, RIFT from {levels[2]} to "
        f"{levels[3]}, and the lead from {leads[0]} to {leads[1]}"
    )


def single_runs_text(study: Run) -> str:
    """How much of the lead in mean@8 is one run, and whether an interval of t is apt for it."""
    runs, mine, other = study["bases"], settings("rift"), settings("rft-steps")
    pairs = minus(values_of(runs, mine, "mean@8"), values_of(runs, other, "mean@8"))
    (base, seed), largest = max(pairs.items(), key=lambda item: item[1])
    rest = {pair: value for pair, value in pairs.items() if pair != (base, seed)}
    groups = [[v for (b, _), v in pairs.items() if b == n] for n in {b for b, _ in pairs}]
    within = statistics.fmean(statistics.variance(group) for group in groups) ** 0.5
    between = statistics.stdev(by_base(pairs))
    normal = {
        measure: stats.shapiro(lead(runs, mine, other, measure)).pvalue for measure in MEASURES
    }
    chances = ", ".join(f"{measure} {p:.1g}" for measure, p in normal.items())
    return (
        f"The largest lead of a single run in mean@8 is {largest:+.1f} (base model {base}, seed "
        f"{seed}); without this run of {len(pairs)} the mean is {difference(by_base(rest))}. Two "
        f"seeds of one base model differ about as much as two base models do: the standard "
        f"deviation is {within:.1f} points within and {between:.1f} between base models. Shapiro's "
        f"test of normality gives p = {chances}, so the t interval is apt for pass@8 only; the "
        f"sign test and Wilcoxon's interval hold for all three."
    )


def rarity_text(study: Run) -> str:
    """Rank correlation of how many samples of the misconception are right, and the lead there."""
    runs, texts = study["bases"] + study["temperature"], []
    for t in TEMPERATURES:
        mine, other = (at_temperature(study, method, t) for method in ("rift", "rft-steps"))
        found = {}
        for run in runs:
            if mine.items() <= run.items():
                found[run["base"], run["seed"]] = run["right"]["misconception"]
        leads = lead(runs, mine, other, "mean@8", "misconception")
        rho, p = stats.spearmanr(by_base(found), leads)
        texts.append(
            f"T = {t:g}: {statistics.fmean(found.values()):.0f} right, {rho:+.2f} (p {p:.2f})"
        )
    return "; ".join(texts)


def naive_text(study: Run) -> str:
    parts = [
        f"{led(study, 'naive', 'base', 'mean@8', kind)} on the {kind}"
        for kind in ("slips", "misconception")
    ]
    return " and ".join(parts)


def summary(study: Run) -> str:
    many = max(run["steps"] for run in study["passes"])
    return "\n".join(
        [
            "- **Asked:** do wrong samples help, when and how much? RIFT against RFT, naive and "
            "TOPR, on ten tiny base models that do arithmetic.",
            f"- **Found:** at temperature 1 and the same steps RIFT leads RFT on {wins(study)} of "
            f"10 base models by every measure: {led(study, 'rift', 'rft-steps', 'pass@8')} points "
            f"in pass@8, {led(study, 'rift', 'rft-steps', 'greedy')} greedy, "
            f"{led(study, 'rift', 'rft-steps', 'mean@8')} in mean@8.",
            f"- In pass@8 it also leads RFT on distinct responses "
            f"({led(study, 'rift', 'rft-distinct', 'pass@8')}), RFT with the same passes "
            f"({led(study, 'rift', 'rft-passes', 'pass@8')}), and RFT with as many right samples a "
            f"step ({led(study, 'rift-positives', 'rft-steps', 'pass@8')}).",
            f"- Nearly all of it is on problems where right samples are rare. On the others mean@8 "
            f"changes by {led(study, 'rift', 'rft-steps', 'mean@8', 'slips')}.",
            f"- **More steps:** from 57 to {many}, {steps_text(study, 'pass@8')}.",
            f"- **Against the method:** with samples drawn at temperature 1.5, the best for RFT, "
            f"nothing is left ({at_t(study, 'mean@8', 1.5)} in mean@8, "
            f"{at_t(study, 'pass@8', 1.5)} in pass@8).",
            "- On the one pretrained model tried, with few problems, no loss that uses wrong "
            "samples did better than RFT. The paper's own gains have not been reproduced.",
            "- **How sure:** the leads at T = 1 are; that they carry over to large models, other "
            "problems or long responses is not known.",
        ]
    )


# ------------------------------------------------------------------- cost, speed, the other page


def cost_text(study: Run) -> str:
    machine, rows = study["machine"], []
    for name, runs in study.items():
        if name != "machine" and runs:
            minutes = sum(run["minutes"] for run in runs)
            rows.append([name, str(len(runs)), f"{minutes:.0f}"])
    total = sum(float(row[2]) for row in rows)
    return (
        table(["experiment", "runs", "minutes of one core"], rows)
        + f"\n\nTogether {total / 60:.1f} hours of one core ({machine['cpu']}), with Python "
        f"{machine['python']}, torch {machine['torch']} and transformers {machine['transformers']}."
    )


def bench_table(bench: dict) -> str:
    rows = []
    for name, row in bench.items():
        ours, peer = (
            f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in (row["ours"], row["peer"] or 0)
        )
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        where = f"{row['on']}, {row['threads']} threads, {row['date']}"
        rows.append([name, ours, peer if row["peer"] else "", ratio, where])
    return table(["", "rift.py", "beside", "ratio", "measured"], rows)


def bfloat16_table(found: dict) -> str:
    names = ("before", "trained, in memory", "saved in float32 and loaded", "rounded to bfloat16")
    rows = [
        [
            f"{kind}, {run['steps']} steps, learning rate {run['lr']:g}",
            *(f"{run[name]:.1f}" for name in names),
            f"{run['weights as before training, %']:.0f} %",
        ]
        for kind, run in found.items()
    ]
    return table(["log π of the samples", *names, "weights as before"], rows)


def project_text(study: Run) -> str:
    """What README.md says of the study: five sentences and a table."""
    many = max(run["steps"] for run in study["passes"])
    pretrained = pretrained_lead(study)
    seeds = ", ".join(f"{value:+.1f}" for value in pretrained)
    rows = []
    for name, want in rows_of(study).items():
        if want["method"] in ("base", "rft-steps", "rft-distinct", "naive", "rift") and (
            want["lr"] != 1e-4
        ):
            rows.append([name, *(level(study["bases"], want, m) for m in MEASURES)])
    runs = study["bases"] + study["temperature"]
    for method, name in (("rft-steps", "RFT"), ("rift", "RIFT")):
        want = at_temperature(study, method, 1.5)
        levels = [level(runs, want, measure) for measure in MEASURES]
        rows.append([f"{name}, samples drawn at T = 1.5", *levels])
    sentences = [
        f"With samples drawn at temperature 1 and the same number of steps, RIFT leads RFT on "
        f"{wins(study)} of 10 base models by every measure: by "
        f"{led(study, 'rift', 'rft-steps', 'pass@8')} points in pass@8, "
        f"{led(study, 'rift', 'rft-steps', 'greedy')} greedy and "
        f"{led(study, 'rift', 'rft-steps', 'mean@8')} in mean@8.",
        f"Nearly all of the lead is on the misconception, where right samples are rare; on the "
        f"slips mean@8 changes by {led(study, 'rift', 'rft-steps', 'mean@8', 'slips')}, and naive "
        f"changes it there by {led(study, 'naive', 'base', 'mean@8', 'slips')} against the base "
        f"model.",
        f"With more steps on the same samples, from 57 to {many}, {steps_text(study, 'pass@8')}.",
        f"With samples drawn at temperature 1.5, the best for RFT, nothing of the lead is left "
        f"({at_t(study, 'pass@8', 1.5)} in pass@8, {at_t(study, 'mean@8', 1.5)} in mean@8): hotter "
        f"samples hold more right ones, and RFT gains more from them than RIFT does.",
        f"On a pretrained model (SmolLM2-135M, 100 word problems, three seeds) wrong samples did "
        f"not help: RIFT − RFT is {seeds} points of mean@8 by seed, a trial too small to see "
        f"less than {interval(pretrained)[1]:.0f} points.",
    ]
    numbered = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1)]
    return "\n".join(numbered) + "\n\n" + table(["T = 1, %", *MEASURES], rows)


# ---------------------------------------------------------------------------------- writing pages


def replace_marked(page: str, texts: dict[str, str]) -> str:
    """The page with these texts between its marks. A mark without a text is an error."""

    def new(match: re.Match) -> str:
        return f"<!-- numbers: {match[1]} -->\n{texts[match[1]]}\n<!-- end -->"

    return MARKED.sub(new, page)


def marked(page: str) -> dict[str, str]:
    """The texts between the marks of a page."""
    return {match[1]: match[2].removesuffix("\n") for match in MARKED.finditer(page)}


def texts_of(study: Run, bench: dict, bfloat16: dict) -> dict[str, str]:
    """By the name of its mark, what stands in the pages."""
    sections = {
        "summary": summary,
        "main": main_tables,
        "differences": main_differences,
        "kinds": differences_by_kind,
        "bases": single_bases,
        "single-runs": single_runs_text,
        "naive": naive_text,
        "passes": passes_table,
        "rewards": rewards_table,
        "temperature": temperature_table,
        "rarity": rarity_text,
        "long": long_table,
        "pretrained-small": pretrained_small_table,
        "searches": searches_table,
        "cost": cost_text,
        "study": project_text,
    }
    texts = {name: text(study) for name, text in sections.items()}
    return texts | {"bench": bench_table(bench), "bfloat16": bfloat16_table(bfloat16)}


def write_pages(study: Run) -> None:
    read = {name: json.loads((HERE / f"{name}.json").read_text()) for name in ("bench", "bfloat16")}
    texts = texts_of(study, read["bench"], read["bfloat16"])
    texts["memory"] = table(memory.HEADER, memory.rows())
    for page in PAGES:
        page.write_text(replace_marked(page.read_text(), texts))
        print(f"wrote the numbers in {page}")
