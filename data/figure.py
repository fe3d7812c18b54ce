"""Draws the results of the default job: python -m data.figure runs/demo/results.json

Without a file it draws data/results.json. The picture is written beside the results.
"""

import json
import sys
from pathlib import Path

import torch
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rift

COLOURS = {"naive": "tab:red", "RIFT": "tab:purple"}
EXPERT = "SFT on solutions"
MINUS = "\N{MINUS SIGN}"


def draw(results: dict, path: Path) -> None:
    rcParams.update({"font.size": 9, "axes.titlesize": 10, "errorbar.capsize": 2})
    rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    first, second, training = top.subplots(1, 3, width_ratios=(1.25, 1, 1.25))
    draw_accuracy(first, results, "mean@8", True)
    draw_accuracy(second, results, "pass@8", False)
    draw_training(training, results)
    draw_losses(*bottom.subplots(1, 2))
    figure.savefig(path, dpi=130)


def draw_accuracy(ax: Axes, results: dict, measure: str, with_names: bool) -> None:
    """Solid bars learn from the model's own samples. SFT is hollow: it is given right solutions."""
    names = [name for name in results if name != EXPERT] + [EXPERT]
    positions = [*range(len(names) - 1), len(names) - 0.4]  # a gap before SFT
    for name, y in zip(names, positions, strict=True):
        mean, error = (100 * value for value in results[name]["accuracy"]["all"][measure])
        style = {"color": COLOURS.get(name, "tab:gray")}
        if name == EXPERT:
            style = {"facecolor": "none", "edgecolor": "tab:gray", "hatch": "///"}
        ax.barh(y, mean, height=0.7, **style)
        ax.errorbar(mean, y, xerr=error, color="black", lw=1)
        ax.text(mean + error + 1.5, y, f"{mean:.0f}", va="center")
    ax.axhline(len(names) - 1.2, color="grey", lw=0.5, ls="--")
    ax.set(title=f"{measure} on the test problems, %", xlabel="with its standard error")
    ax.set(xlim=(0, 100), ylim=(len(names) + 0.1, -0.6))
    labels = [*names[:-1], "SFT: learns from an expert's\nsolutions, which the others lack"]
    ax.set_yticks(positions, labels if with_names else [""] * len(names))


def draw_training(ax: Axes, results: dict) -> None:
    """log pi of the wrong samples of each step, for the losses that learn from them."""
    for name, colour in COLOURS.items():
        history = enumerate(results[name]["history"], start=1)
        points = [(i, step["logp_neg"]) for i, step in history if step.get("logp_neg") is not None]
        ax.plot(*zip(*points, strict=True), color=colour)
        ax.annotate(name, points[-1], xytext=(4, 0), textcoords="offset points", color=colour)
    ax.margins(x=0.15)
    ax.set(
        title="log π of the wrong samples while training", xlabel="optimizer step", ylabel="nats"
    )


def draw_losses(left: Axes, right: Axes, reward: float = -0.2) -> None:
    """The loss of a wrong response, and the size of its gradient, against log pi."""
    logp = torch.linspace(-9, 0, 400).unsqueeze(1).requires_grad_()  # (B, 1)
    rewards = torch.full((400,), reward)
    for name, loss in (("naive", rift.naive_loss), ("RIFT", rift.rift_loss)):
        values = loss(logp, torch.ones_like(logp), rewards)
        (gradient,) = torch.autograd.grad(values.sum(), logp)
        left.plot(logp.detach(), values.detach(), color=COLOURS[name])
        right.plot(logp.detach(), gradient, color=COLOURS[name])
    title = f"a wrong response, r = {MINUS}{abs(reward):g}"
    left.set(title=f"{title}: its loss", xlabel="log π of the response")
    right.set(title=f"{title}: how hard it is pushed down", xlabel="log π of the response")
    right.set(ylim=(-0.01, 0.26), ylabel="gradient with respect to log π")
    left.text(-5.6, -1.5, "naive: falls without bound", color=COLOURS["naive"])
    left.text(-8.9, 0.1, "RIFT: between 0 and |r|", color=COLOURS["RIFT"])
    right.text(-8.9, 0.21, "naive: |r|, however unlikely it has become", color=COLOURS["naive"])
    right.text(-8.9, 0.02, "RIFT: |r| π, which fades away", color=COLOURS["RIFT"])


def main() -> None:
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "data/results.json")
    path = source.with_name("figure.png")
    draw(json.loads(source.read_text()), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
