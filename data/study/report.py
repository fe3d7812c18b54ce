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
from functools import partial
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from data.study import memory
from data.study.study import METHODS, TEMPERATURES, Run, best_rate, rates_searched

HERE = Path(__file__).resolve().parent
PAGES = (HERE / "README.md", HERE.parent.parent / "README.md")
MARKED = re.compile(r"<!-- numbers: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
MEASURES = ("greedy", "mean@8", "pass@8")
KINDS = {"all": "all problems", "misconception": "misconception", "slips": "slips"}
COMPARED = {
    "RIFT − RFT, same steps": ("rift", "rft-steps"),
    "RIFT − RFT, same passes": ("rift", "rft-passes"),
    "RIFT − RFT on distinct responses": ("rift", "rft-distinct"),
    "RIFT with as many right samples − RFT, same steps": ("rift-positives", "rft-steps"),
}
COMPARED_PRETRAINED = COMPARED | {
    "rift-token, r = -0.05, − RFT, same steps": ("rift-token", "rft-steps"),
    "TOPR − RFT, same steps": ("topr", "rft-steps"),
    "RFT, same steps − base model": ("rft-steps", "base"),
    "RIFT − base model": ("rift", "base"),
}


# ----------------------------------------------------------------------------------- statistics


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % t interval."""
    values = list(values)
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), error * float(stats.t.ppf(0.975, len(values) - 1))


def sign_test(values: list[float]) -> tuple[int, int, float]:
    """How many values are above 0 and how many below, and the two-sided p of the sign test."""
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return above, below, float(stats.binomtest(above, above + below).pvalue)


def wilcoxon_interval(values: list[float]) -> tuple[float, float, float]:
    """The Hodges-Lehmann median, and the shifts that the signed-rank test does not reject at 5 %.

    The test's p changes only where the shift passes the mean of two values.
    """

    def is_kept(gap: tuple[float, float]) -> bool:
        return stats.wilcoxon([value - sum(gap) / 2 for value in values]).pvalue > 0.05

    means = sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))
    gaps = [(low, high) for low, high in pairwise(means) if high - low > 1e-9]
    low, high = next(filter(is_kept, gaps))[0], next(filter(is_kept, reversed(gaps)))[1]
    return statistics.median(means), low, high


# --------------------------------------------------------------------------- numbers of the runs


def settings(method: str, **changes: Any) -> Run:
    """Of the runs to look for: those that a run has unless it says otherwise."""
    lr = 0.0 if method == "base" else 3e-4
    usual = {"temperature": 1.0, "lr": lr, "wrong": -0.2, "steps": 57, "on": "test"}
    return {"method": method, **usual, **changes}


def matching(runs: list[Run], want: Run) -> list[Run]:
    """The runs that have these settings."""
    return [run for run in runs if want.items() <= run.items()]


def values_of(runs: list[Run], want: Run, measure: str, kind: str = "all") -> dict:
    """In percent, by base model and seed."""
    return {
        (run["base"], run["seed"]): 100 * run["results"][kind][measure][0]
        for run in matching(runs, want)
    }


def minus(mine: dict, other: dict) -> dict:
    """Paired differences, for the base models and seeds that both have."""
    return {pair: mine[pair] - other[pair] for pair in mine if pair in other}


def by_base(values: dict) -> list[float]:
    """The mean over the seeds of each base model."""
    groups: dict[Any, list[float]] = {}
    for (base, _), value in values.items():
        groups.setdefault(base, []).append(value)
    return [statistics.fmean(groups[base]) for base in sorted(groups)]


def leads_of_runs(runs: list[Run], mine: Run, other: Run, measure: str, kind: str = "all") -> dict:
    """In points, by base model and seed."""
    return minus(values_of(runs, mine, measure, kind), values_of(runs, other, measure, kind))


def lead(runs: list[Run], mine: Run, other: Run, measure: str, kind: str = "all") -> list[float]:
    """In points, one for each base model."""
    return by_base(leads_of_runs(runs, mine, other, measure, kind))


# ----------------------------------------------------------------------------- numbers as text


def level(runs: list[Run], want: Run, measure: str, kind: str = "all") -> str:
    mean, half = interval(by_base(values_of(runs, want, measure, kind)))
    return f"{mean:.1f} ± {half:.1f}"


def difference(values: Iterable[float]) -> str:
    mean, half = interval(values)
    return f"{mean:+.1f} ± {half:.1f}"


def with_bounds(values: list[float]) -> str:
    mean, half = interval(values)
    return f"[{mean - half:+.1f}, {mean + half:+.1f}]"


def with_signs(values: list[float]) -> str:
    above, below, _ = sign_test(values)
    return f"{difference(values)} ({above}/{below})"


def one_by_one(values: Iterable[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def level_rows(runs: list[Run], wants: dict[str, Run], kind: str = "all") -> list[list[str]]:
    return [[name, *(level(runs, want, m, kind) for m in MEASURES)] for name, want in wants.items()]


def lead_rows(runs: list[Run], pairs: dict[str, tuple], kind: str = "all") -> list[list[str]]:
    return [
        [name, *(with_signs(lead(runs, mine, other, m, kind)) for m in MEASURES)]
        for name, (mine, other) in pairs.items()
    ]


# ---------------------------------------------------------------- sections: the main comparison


def methods_of(study: Run) -> dict[str, Run]:
    """The settings of each row of the main table. Two methods have two learning rates."""
    wants = {}
    for method, (name, _, _) in METHODS.items():
        if method in ("naive", "rift-token"):
            wants[f"{name}, rate 3e-4"] = settings(method)
            wants[f"{name}, rate 1e-4"] = settings(method, lr=1e-4)
        else:
            wants[name] = settings(method)
    return wants


def main_tables(study: Run) -> str:
    wants = methods_of(study)
    return "\n\n".join(
        table([f"{title}, %", *MEASURES], level_rows(study["bases"], wants, kind))
        for kind, title in KINDS.items()
    )


def differences(study: Run) -> str:
    """The four ways to compare, with an interval that assumes normality and two that do not."""
    rows = []
    for name, (mine, other) in COMPARED.items():
        for measure in MEASURES:
            values = lead(study["bases"], settings(mine), settings(other), measure)
            above, below, p = sign_test(values)
            median, low, high = wilcoxon_interval(values)
            ranks = f"{median:+.1f} [{low:+.1f}, {high:+.1f}]"
            signs = f"{above} / {below}"
            rows.append([name, measure, difference(values), ranks, signs, f"{p:.3f}"])
    header = ["points", "", "mean ± interval", "median [interval]", "+ / −", "p"]
    return table(header, rows)


def kinds(study: Run) -> str:
    rft, rift, base = (settings(method) for method in ("rft-steps", "rift", "base"))
    pairs = {name: (settings(m), settings(o)) for name, (m, o) in COMPARED.items()} | {
        "RIFT − TOPR": (rift, settings("topr")),
        "RIFT − rift-token, rate 1e-4": (rift, settings("rift-token", lr=1e-4)),
        "RIFT − naive, rate 1e-4": (rift, settings("naive", lr=1e-4)),
        "TOPR − RFT": (settings("topr"), rft),
        "rift-token, rate 1e-4, − RFT": (settings("rift-token", lr=1e-4), rft),
        "naive, rate 1e-4, − RFT": (settings("naive", lr=1e-4), rft),
        "RFT on distinct responses − RFT": (settings("rft-distinct"), rft),
        "RIFT − base model": (rift, base),
        "RFT − base model": (rft, base),
        "naive, rate 3e-4, − base model": (settings("naive"), base),
        "naive, rate 1e-4, − base model": (settings("naive", lr=1e-4), base),
    }
    return "\n\n".join(
        table([f"{title}, points", *MEASURES], lead_rows(study["bases"], pairs, kind))
        for kind, title in KINDS.items()
    )


def single_runs(study: Run) -> str:
    """RIFT - RFT at the same steps by run, and how much of the mean is one run."""
    runs, pair = study["bases"], (settings("rift"), settings("rft-steps"))
    found = {m: leads_of_runs(runs, *pair, m) for m in MEASURES}
    rows = []
    for base in sorted({base for base, _ in found["mean@8"]}):
        cells = []
        for measure in ("mean@8", "pass@8"):
            own = [value for (b, _), value in sorted(found[measure].items()) if b == base]
            cells += [f"{statistics.fmean(own):+.1f}", one_by_one(own)]
        rows.append([str(base), *cells])
    pairs = found["mean@8"]
    (base, seed), largest = max(pairs.items(), key=lambda item: item[1])
    groups = [[value for (b, _), value in pairs.items() if b == own] for own, _ in set(pairs)]
    within = statistics.fmean(map(statistics.variance, groups)) ** 0.5
    normal = [stats.shapiro(by_base(found[measure])).pvalue for measure in MEASURES]
    return (
        table(["base model", "mean@8", "by seed", "pass@8", "by seed"], rows)
        + f"\n\nThe largest lead of a single run in mean@8 is {largest:+.1f} (base model {base}, "
        f"seed {seed}). Without this one of {len(pairs)} runs the mean is "
        f"{difference(without_largest(pairs))}. The standard deviation is {within:.1f} points "
        f"between the seeds of a base model, and {statistics.stdev(by_base(pairs)):.1f} between "
        f"the means of base models. "
        f"Shapiro's test of normality gives p = {', '.join(f'{p:.1g}' for p in normal)} for "
        f"{', '.join(MEASURES)}. Where p is small, trust the signs and Wilcoxon's interval more "
        "than the t interval."
    )


def without_largest(pairs: dict) -> list[float]:
    """The mean over the seeds of each base model, without the largest single value."""
    largest = max(pairs, key=lambda pair: pairs[pair])
    return by_base({pair: value for pair, value in pairs.items() if pair != largest})


def rarity(study: Run) -> str:
    """How many samples of the misconception are right, and RIFT's lead there.

    Between base models: the rank correlation of their means. Between the seeds of a base model: the
    correlation after the mean of each base model has been subtracted from both.
    """
    runs, rows = study["bases"] + study["temperature"], []
    for t in TEMPERATURES:
        mine, other = (at_temperature(study, method, t) for method in ("rift", "rft-steps"))
        found = matching(runs, mine)
        right = {(run["base"], run["seed"]): run["right"]["misconception"] for run in found}
        leads = leads_of_runs(runs, mine, other, "mean@8", "misconception")
        rho, p = stats.spearmanr(by_base(right), by_base(leads))
        counts = [
            statistics.fmean(run["right"][k] for run in found) for k in ("all", "misconception")
        ]
        means = [f"{count:.0f}" for count in counts]
        within = float(np.corrcoef(within_bases(right), within_bases(leads))[0, 1])
        free = len(leads) - len(by_base(leads)) - 1  # degrees of freedom
        p_within = 2 * stats.t.sf(abs(within) * (free / (1 - within**2)) ** 0.5, free)
        correlations = [f"{rho:+.2f} (p = {p:.2f})", f"{within:+.2f} (p = {p_within:.2f})"]
        rows.append([f"{t:g}", *means, difference(by_base(leads)), *correlations])
    header = ["T", "right samples", "of the misconception", "RIFT − RFT there, mean@8"]
    return table([*header, "correlation, base models", "correlation, seeds"], rows)


def within_bases(values: dict) -> list[float]:
    """Each value minus the mean of its base model, in the order of base models and seeds."""
    pairs = sorted(values)
    means = dict(zip(sorted({base for base, _ in pairs}), by_base(values), strict=True))
    return [values[pair] - means[pair[0]] for pair in pairs]


# ------------------------------------------------------------------------- sections: variations


def by_steps(study: Run, method: str) -> dict[int, Run]:
    """The settings of the runs with seed 0, by the number of steps."""
    rates = {run["steps"]: run["lr"] for run in study["passes"] if run["method"] == method}
    rates = {57: 3e-4, **dict(sorted(rates.items()))}
    return {n: settings(method, steps=n, lr=lr, seed=0) for n, lr in rates.items()}


def passes(study: Run) -> str:
    runs, rows = study["bases"] + study["passes"], []
    rft, rift = by_steps(study, "rft-steps"), by_steps(study, "rift")
    for n in rift:
        wants = {f"RFT, rate {rft[n]['lr']:g}": rft[n], f"RIFT, rate {rift[n]['lr']:g}": rift[n]}
        found = level_rows(runs, wants) + lead_rows(runs, {"RIFT − RFT": (rift[n], rft[n])})
        rows += [[str(n), *row] for row in found]
    return table(["steps", "", *MEASURES], rows)


def rewards(study: Run) -> str:
    runs, usual = study["bases"] + study["rewards"], settings("rift", seed=0)
    wants = {f"r = {r:g}": settings("rift", seed=0, wrong=r) for r in (-0.05, -0.2, -1.0)}
    pairs = {f"{name}, − r = -0.2": (want, usual) for name, want in wants.items() if want != usual}
    return table(["", *MEASURES], level_rows(runs, wants) + lead_rows(runs, pairs))


def at_temperature(study: Run, method: str, t: float) -> Run:
    return settings(method, temperature=t, lr=best_rate(study, method, temperature=t))


def temperature(study: Run) -> str:
    runs, rows = study["bases"] + study["temperature"], []
    for t in TEMPERATURES:
        rft, rift, topr = (at_temperature(study, m, t) for m in ("rft-steps", "rift", "topr"))
        wants = {f"{METHODS[w['method']].name}, rate {w['lr']:g}": w for w in (rft, rift, topr)}
        found = level_rows(runs, wants)
        found += lead_rows(runs, {"RIFT − RFT": (rift, rft), "TOPR − RFT": (topr, rft)})
        rows += [[f"{t:g}", *row] for row in found]
    (rft, hot_rft), (rift, hot_rift) = (
        [at_temperature(study, method, t) for t in (1.0, 1.5)] for method in ("rft-steps", "rift")
    )
    between = {
        "RFT at 1.5 − RFT at 1": (hot_rft, rft),
        "RIFT at 1.5 − RIFT at 1": (hot_rift, rift),
        "RFT at 1.5 − RIFT at 1": (hot_rft, rift),
    }
    rows += [["", *row] for row in lead_rows(runs, between)]
    return table(["T", "", *MEASURES], rows)


def long(study: Run) -> str:
    """The two base models side by side, each the mean of its two seeds."""
    runs, rft, rows = study["long"], {"method": "rft-steps"}, []
    columns = (
        ("mean@8", "all"),
        ("pass@8", "all"),
        ("mean@8", "misconception"),
        ("mean@8", "slips"),
    )
    for method, wrong in {(run["method"], run["wrong"]): 0 for run in runs}:
        if method not in ("base", "rft-steps"):
            mine = {"method": method, "wrong": wrong}
            leads = [one_by_one(lead(runs, mine, rft, *column)) for column in columns]
            rows.append([f"{METHODS[method].name}, r = {wrong:g}", *leads])
    titles = [f"{measure}, {KINDS[kind]}" for measure, kind in columns]
    return table(["points, minus RFT at the same steps", *titles], rows)


def with_reward(method: str, wrong: float) -> str:
    """The name of a method, with the reward of wrong samples if it is not the usual one."""
    return METHODS[method].name + (f", r = {wrong:g}" if wrong != -0.2 else "")


def pretrained_methods(study: Run, t: float) -> dict[str, Run]:
    """The settings of each method that was run on samples drawn at temperature t."""
    names = ("method", "temperature", "wrong", "lr")
    runs = [run for run in study["pretrained"] if run["temperature"] == t]
    wants = {run["method"]: {name: run[name] for name in names} for run in runs}
    return {method: wants[method] for method in METHODS if method in wants}


def pretrained_lead(runs: list[Run], mine: Run, other: Run, measure: str) -> tuple[Any, Any]:
    """In points: by seed, of those that both have, and by test problem, averaged over the seeds."""

    def shares(want: Run) -> dict:
        counts = {run["seed"]: np.array(run["right of 8"]) for run in matching(runs, want)}
        return {s: n / 8 if measure == "mean@8" else n > 0 for s, n in counts.items()}

    my_shares, others = shares(mine), shares(other)
    seeds = [seed for seed in my_shares if seed in others]
    leads = np.stack([100.0 * my_shares[s] - 100.0 * others[s] for s in seeds])  # (seeds, problems)
    return leads.mean(1).tolist(), leads.mean(0).tolist()


def pretrained(study: Run) -> str:
    """The accuracy of each method, averaged over its seeds, and the paired differences."""
    levels, leads = [], []
    for t in (1.0, 1.5):
        wants = pretrained_methods(study, t)
        for method, want in wants.items():
            name = with_reward(method, want["wrong"])
            levels.append([f"{t:g}", name, *pretrained_level(matching(study["pretrained"], want))])
        for name, (mine, other) in COMPARED_PRETRAINED.items():
            for measure in ("mean@8", "pass@8") if wants.keys() >= {mine, other} else ():
                pair = wants[mine], wants[other]
                by_seed, by_problem = pretrained_lead(study["pretrained"], *pair, measure)
                intervals = [with_bounds(by_seed), with_bounds(by_problem)]
                row = [f"{t:g}", name, measure, f"{statistics.fmean(by_seed):+.1f}", *intervals]
                leads.append([*row, one_by_one(by_seed)])
    titles = ["T", "%", *MEASURES, "seeds", "right samples / distinct", "samples a step"]
    titles.append("log pi of wrong responses, first step")
    header = ["T", "points", "", "mean", "over seeds", "over problems", "by seed"]
    return table(titles, levels) + "\n\n" + table(header, leads)


def pretrained_level(runs: list[Run]) -> list[str]:
    """The means over the seeds of one method."""

    def mean(values: Iterable[float], digits: int) -> str:
        values = list(values)
        return f"{statistics.fmean(values):.{digits}f}" if values else ""

    accuracies = [mean(values_of(runs, {}, measure).values(), 1) for measure in MEASURES]
    right, unique = (mean((run["right"][n] for run in runs), 0) for n in ("all", "distinct"))
    batch = mean((run["batch"] for run in runs if run["batch"]), 0)
    first = mean((logp for run in runs for logp in run["logp_neg"][:1] if logp is not None), 1)
    return [*accuracies, str(len(runs)), f"{right} / {unique}", batch, first]


def pretrained_float32(study: Run) -> str:
    """What rounding the trained weights to bfloat16 does to the figures of the trial."""
    exact = study["pretrained-float32"]
    seeds = {run["seed"] for run in exact}
    runs = exact + [run for run in study["pretrained"] if run["seed"] in seeds]
    usual = {"temperature": 1.0, "on": "test"}
    rft, rift = ({"method": method, **usual} for method in ("rft-steps", "rift"))
    exact_rft, exact_rift = ({**want, "on": "test in float32"} for want in (rft, rift))
    pairs = {
        "RFT: float32 − bfloat16": (exact_rft, rft),
        "RIFT: float32 − bfloat16": (exact_rift, rift),
        "RIFT − RFT, in float32": (exact_rift, exact_rft),
        "RIFT − RFT, in bfloat16": (rift, rft),
    }
    rows = []
    for name, pair in pairs.items():
        for measure in ("mean@8", "pass@8"):
            by_seed, by_problem = pretrained_lead(runs, *pair, measure)
            row = [name, measure, f"{statistics.fmean(by_seed):+.1f}", with_bounds(by_problem)]
            rows.append([*row, one_by_one(by_seed)])
    return table(["points", "", "mean", "over problems", "by seed"], rows)


def pretrained_rates(study: Run) -> str:
    """mean@8 on validation problems at each learning rate of the search."""
    searched = study["pretrained-search"]
    rates, rows = sorted({run["lr"] for run in searched}), []
    for method, wrong in {(run["method"], run["wrong"]): 0 for run in searched}:
        found = rates_searched(study, "pretrained-search", method, wrong=wrong)
        rows.append([with_reward(method, wrong), *(f"{found[lr]:.1f}" for lr in rates)])
    return table(["", *(f"{lr:g}" for lr in rates)], rows)


# ------------------------------------------------------------- sections: summaries, cost, speed


def led(study: Run, mine: str, other: str, measure: str, kind: str = "all") -> str:
    return difference(lead(study["bases"], settings(mine), settings(other), measure, kind))


def led_at(study: Run, t: float, measure: str) -> str:
    runs = study["bases"] + study["temperature"]
    mine, other = (at_temperature(study, method, t) for method in ("rift", "rft-steps"))
    return difference(lead(runs, mine, other, measure))


def more_steps(study: Run) -> str:
    """How far each method comes with more steps, and how much the lead grows."""
    runs = study["bases"] + study["passes"]
    rft, rift = by_steps(study, "rft-steps"), by_steps(study, "rift")
    few, more, most = rift

    def rise(wants: dict[int, Run], measure: str) -> str:
        values = [values_of(runs, wants[n], measure).values() for n in (few, more)]
        return " to ".join(f"{statistics.fmean(v):.1f}" for v in values)

    def growth(measure: str) -> str:
        early, late = (leads_of_runs(runs, rift[n], rft[n], measure) for n in (few, more))
        return difference(by_base(minus(late, early)))

    return (
        f"From {few} to {more} steps on the same samples (one seed; the learning rate, searched "
        f"again, falls from {rift[few]['lr']:g} to {rift[more]['lr']:g}) RFT stays where it is: "
        f"mean@8 goes from {rise(rft, 'mean@8')} and pass@8 from {rise(rft, 'pass@8')}. RIFT still "
        f"gains: {rise(rift, 'mean@8')} and {rise(rift, 'pass@8')}. The lead grows by "
        f"{growth('mean@8')} in mean@8; that it also does in pass@8 is not clear "
        f"({growth('pass@8')}). With {most} steps neither gets any further. Steps and rate were "
        "not separated."
    )


def hotter(study: Run, mine: str, other: str) -> str:
    """One method on samples at T = 1.5 minus another on samples at T = 1, in pass@8."""
    pair = at_temperature(study, mine, 1.5), at_temperature(study, other, 1.0)
    return difference(lead(study["bases"] + study["temperature"], *pair, "pass@8"))


def pretrained_lead_text(study: Run, mine: str, other: str, t: float) -> str:
    """In mean@8, with the interval over seeds."""
    wants = pretrained_methods(study, t)
    by_seed, _ = pretrained_lead(study["pretrained"], wants[mine], wants[other], "mean@8")
    return f"{statistics.fmean(by_seed):+.1f} {with_bounds(by_seed)}"


def findings(study: Run) -> str:
    """What README.md and the study's page say first: five findings."""
    pair = "rift", "rft-steps"
    greedy, mean, passed = (
        f"{difference(values)} ({sign_test(values)[0]} of {len(values)})"
        for values in (lead(study["bases"], *map(settings, pair), m) for m in MEASURES)
    )
    single = leads_of_runs(study["bases"], *map(settings, pair), "mean@8")
    slow_naive = settings("naive", lr=1e-4)
    over_naive = lead(study["bases"], settings("rift"), slow_naive, "pass@8")
    hot = partial(hotter, study)
    over = partial(pretrained_lead_text, study)
    n_problems = len(study["pretrained"][0]["right of 8"])
    n_seeds = len({run["seed"] for run in study["pretrained"]})
    sentences = [
        f"With samples drawn at temperature 1 and the same number of steps, RIFT leads RFT by "
        f"{passed} points in pass@8, {greedy} greedy, and {mean} in mean@8. Without the largest of "
        f"the {len(single)} leads (base models × seeds) the lead in mean@8 is "
        f"{difference(without_largest(single))}.",
        f"The lead is on the misconception, where right samples are rare. On the slips RIFT − RFT "
        f"is {led(study, *pair, 'mean@8', 'slips')} in mean@8. Naive at the same learning rate "
        f"ruins the slips ({led(study, 'naive', 'base', 'mean@8', 'slips')} against the base "
        f"model); at the lowest rate that was tried it does not, and RIFT leads it by "
        f"{difference(over_naive)} in pass@8 on all problems.",
        more_steps(study),
        f"With samples drawn at temperature 1.5, the best for RFT of three, the lead is gone "
        f"({led_at(study, 1.5, 'pass@8')} in pass@8, {led_at(study, 1.5, 'mean@8')} in mean@8): "
        f"the hotter samples bring RFT {hot('rft-steps', 'rft-steps')} in pass@8 and RIFT "
        f"{hot('rift', 'rift')}. RFT with them is ahead of RIFT at temperature 1, but not clearly "
        f"({hot('rft-steps', 'rift')}).",
        f"On a pretrained model (SmolLM2-135M, {n_problems} word problems, {n_seeds} seeds; in "
        "brackets the 95 % interval over seeds) RFT brings "
        f"{over('rft-steps', 'base', 1.0)} points in mean@8, and RIFT is behind it: RIFT − RFT is "
        f"{over('rift', 'rft-steps', 1.0)} at T = 1 and, less clearly, "
        f"{over('rift', 'rft-steps', 1.5)} at T = 1.5. With as many right samples a step, which "
        "takes many times the computation, it is "
        f"{over('rift-positives', 'rft-steps', 1.0)} at T = 1 and "
        f"{over('rift-positives', 'rft-steps', 1.5)} at T = 1.5, so no gain from the wrong samples "
        "is seen. In pass@8 RIFT and RFT do not clearly differ, and every method ends "
        "below the base model. TOPR, which is RIFT with pi divided by its value before training, "
        f"is behind RFT at T = 1 ({over('topr', 'rft-steps', 1.0)} in mean@8) and ahead at T = 1.5 "
        f"({over('topr', 'rft-steps', 1.5)}), the reverse of the tiny models.",
    ]
    return "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, start=1))


def project(study: Run) -> str:
    """What README.md says of the study."""
    shown = ("base", "rft-steps", "rft-distinct", "naive", "rift")
    wants = {name: want for name, want in methods_of(study).items() if want["method"] in shown}
    for method in ("rft-steps", "rift"):
        name = f"{METHODS[method].name}, samples at T = 1.5"
        wants[name] = at_temperature(study, method, 1.5)
    rows = level_rows(study["bases"] + study["temperature"], wants)
    return findings(study) + "\n\n" + table(["%", *MEASURES], rows)


def cost(study: Run) -> str:
    machine = study["machine"]
    parts = {name: runs for name, runs in study.items() if name != "machine" and runs}
    minutes = {name: sum(run["minutes"] for run in runs) for name, runs in parts.items()}
    rows = [[name, str(len(runs)), f"{minutes[name]:.0f}"] for name, runs in parts.items()]
    return (
        table(["experiment", "runs", "minutes of one core"], rows)
        + f"\n\nTogether {sum(minutes.values()) / 60:.1f} hours of one core ({machine['cpu']}), "
        f"with torch {machine['torch']} and transformers {machine['transformers']}."
    )


def bench_table(bench: dict) -> str:
    def show(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    rows = []
    for name, row in bench.items():
        where = f"{row['on']}, threads: {row['threads']}, {row['date']}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        rows.append([name, show(row["ours"]), show(row["peer"]), ratio, where])
    return table(["", "rift.py", "beside", "ratio", "measured"], rows)


def bfloat16_table(found: dict) -> str:
    names = ["before", "trained, in memory", "saved in float32 and loaded", "rounded to bfloat16"]
    rows = []
    for kind, run in found.items():
        title = f"{kind}, {run['steps']} steps, rate {run['lr']:g}"
        unchanged = f"{run['weights as before training, %']:.0f} %"
        rows.append([title, *(f"{run[name]:.1f}" for name in names), unchanged])
    return table(["", *names, "weights that are as before"], rows)


# ------------------------------------------------------------------------------------- the pages

SECTIONS = {
    "findings": findings,
    "main": main_tables,
    "differences": differences,
    "kinds": kinds,
    "single-runs": single_runs,
    "rarity": rarity,
    "passes": passes,
    "rewards": rewards,
    "temperature": temperature,
    "long": long,
    "pretrained-rates": pretrained_rates,
    "pretrained": pretrained,
    "pretrained-float32": pretrained_float32,
    "cost": cost,
    "study": project,
}


def texts_of(study: Run) -> dict[str, str]:
    """By the name of its mark, what stands in the pages."""
    bench, bfloat16 = (
        json.loads((HERE / f"{name}.json").read_text()) for name in ("bench", "bfloat16")
    )
    texts = {name: section(study) for name, section in SECTIONS.items()}
    texts |= {"bench": bench_table(bench), "bfloat16": bfloat16_table(bfloat16)}
    return texts | {"memory": table(memory.HEADER, memory.rows())}


def marked(page: str) -> dict[str, str]:
    """The texts between the marks of a page."""
    return {match[1]: match[2].removesuffix("\n") for match in MARKED.finditer(page)}


def write_pages(study: Run) -> None:
    texts = texts_of(study)
    for page in PAGES:
        new = MARKED.sub(
            lambda match: f"<!-- numbers: {match[1]} -->\n{texts[match[1]]}\n<!-- end -->",
            page.read_text(),
        )
        page.write_text(new)
        print(f"wrote the numbers in {page}")
