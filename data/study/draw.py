"""The pictures of the study: leads by base model, and accuracy against the number of steps."""

from collections.abc import Callable
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.study.report import (
    COMPARED,
    MEASURES,
    by_base,
    by_steps,
    difference,
    interval,
    lead,
    settings,
    values_of,
)
from data.study.study import Run

RIFT, RFT, MEAN = "tab:purple", "tab:gray", "black"
STYLE = {"font.size": 9, "axes.titlesize": 10, "errorbar.capsize": 3}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}


def draw_leads(axes: list[Axes], study: Run) -> None:
    """One panel for each measure: a point for each base model, the mean and its interval."""
    for ax, measure in zip(axes, MEASURES, strict=True):
        for y, (mine, other) in enumerate(COMPARED.values()):
            values = lead(study["bases"], settings(mine), settings(other), measure)
            mean, half = interval(values)
            ax.plot(values, [y + 0.15] * len(values), "o", color=RIFT, alpha=0.5, markersize=4)
            ax.errorbar(mean, y - 0.15, xerr=half, marker="D", color=MEAN, markersize=4)
            ax.margins(x=0.12)
            ax.text(mean + half + 0.6, y - 0.15, f"{mean:+.1f} ± {half:.1f}", va="center")
        ax.axvline(0, color="grey", lw=0.8)
        ax.set(title=measure, ylim=(len(COMPARED) - 0.5, -0.5), yticks=[])
        ax.set_xlabel("points; a dot is a base model,\nblack the mean with its 95 % interval")
    axes[0].set_yticks(range(len(COMPARED)), [name.replace(" − ", " −\n") for name in COMPARED])


def draw_steps(axes: list[Axes], study: Run) -> None:
    """Accuracy of both methods on a logarithmic axis of steps; above, their paired difference."""
    runs = study["bases"] + study["passes"]
    rft, rift = by_steps(study, "rft-steps"), by_steps(study, "rift")
    for ax, measure in zip(axes, ("mean@8", "pass@8"), strict=True):
        base = by_base(values_of(study["bases"], settings("base", seed=0), measure))
        ax.axhline(interval(base)[0], color="black", lw=0.8, ls=":")
        ax.text(115, interval(base)[0] + 0.5, "base model", ha="center")
        for rows, name, colour, shift in ((rft, "RFT", RFT, 0.97), (rift, "RIFT", RIFT, 1.03)):
            points = [interval(by_base(values_of(runs, want, measure))) for want in rows.values()]
            xs = [steps * shift for steps in rows]
            means, halves = zip(*points, strict=True)
            ax.plot(xs, means, "o-", markersize=5, color=colour)
            ax.errorbar(xs, means, halves, fmt="none", lw=0.8, color=colour)
            ax.text(max(xs) * 1.08, means[-1], name, color=colour, va="center")
        top = ax.get_ylim()[1]
        for steps in rift:
            leads = difference(lead(runs, rift[steps], rft[steps], measure))
            ax.text(steps, top, leads, ha="center", va="bottom")
        ax.set(title=f"{measure}, %\nabove: RIFT − RFT, points\n", xscale="log")
        ax.set_xlim(42, max(rift) * 1.5)
        ax.set_xticks(list(rift), [str(steps) for steps in rift])
        ax.minorticks_off()
        ax.set_xlabel("optimizer steps on the same samples")


def save(draw: Callable, study: Run, columns: int, size: tuple[float, float], path: Path) -> None:
    rcParams.update(STYLE)
    figure = Figure(figsize=size, layout="constrained")
    draw(list(figure.subplots(1, columns)), study)
    figure.savefig(path, dpi=140)
    print(f"wrote {path}")


def draw_all(study: Run, folder: Path) -> None:
    save(draw_leads, study, 3, (11, 3.6), folder / "leads.png")
    save(draw_steps, study, 2, (8.5, 3.8), folder / "steps.png")
