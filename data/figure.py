"""The figure of the default job: python data/figure.py [runs/demo/results.json]

Left: mean@k by method. Middle: log pi of the wrong samples over the steps, naive against RIFT.
Right: what the two losses are for a wrong response, and how hard they push it down.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rift                                                             # noqa: E402

NAIVE, RIFT, OTHER = "tab:red", "tab:purple", "tab:gray"
COLOURS = {"naive": NAIVE, "RIFT": RIFT}


def draw(results: Path, path: Path) -> Path:
    """Reads a results.json of the default job, writes a PNG and returns where."""
    run = json.loads(results.read_text())
    fig = Figure(figsize=(11, 3.4), layout="constrained")
    bars, curves, losses = fig.subplots(1, 3, width_ratios=[1, 1, 1.1])
    draw_accuracy(bars, run["rows"], f"mean@{run['settings']['k']}")
    draw_training(curves, run["rows"])
    draw_losses(losses, run["settings"]["wrong"])
    for panel in (bars, curves, losses):
        panel.title.set_size(10)
        panel.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
    return path


def draw_accuracy(panel, rows, figure: str) -> None:
    names = [row["name"] for row in rows]
    means = [100 * row["results"]["all"][figure][0] for row in rows]
    errors = [100 * row["results"]["all"][figure][1] for row in rows]
    colours = [COLOURS.get(name, OTHER) for name in names]
    panel.barh(names, means, xerr=errors, color=colours, height=0.7)
    for y, (mean, error) in enumerate(zip(means, errors)):
        panel.text(mean + error + 1, y, f"{mean:.0f}", va="center")
    panel.invert_yaxis()
    panel.set(title=f"{figure} on the test\nproblems, %", xlim=(0, 100))


def draw_training(panel, rows) -> None:
    for row in rows:
        if row["name"] in COLOURS:
            points = [(step["step"], step["logp_neg"]) for step in row["history"]
                      if step["logp_neg"] is not None]          # a batch can be without wrong ones
            panel.plot(*zip(*points), color=COLOURS[row["name"]])
            if points:
                panel.annotate(row["name"], points[-1], xytext=(3, 0), va="center",
                               textcoords="offset points", color=COLOURS[row["name"]])
    panel.margins(x=0.15)
    panel.set(title="log π of the wrong samples\nduring training, nats", xlabel="optimizer step")


def draw_losses(panel, reward: float) -> None:
    """The loss of a wrong response, and its gradient with respect to log pi, against pi."""
    log_pi = torch.linspace(-9, 0, 400).unsqueeze(1).requires_grad_()           # (B, 1)
    rewards = torch.full((400,), reward)
    pi = log_pi.detach().exp().flatten()
    for name, loss in (("naive", rift.naive_loss), ("RIFT", rift.rift_loss)):
        values = loss(log_pi, torch.ones_like(log_pi), rewards)
        push, = torch.autograd.grad(values.sum(), log_pi)
        panel.plot(pi, values.detach(), color=COLOURS[name])
        panel.plot(pi, push.flatten(), "--", color=COLOURS[name])
    size = abs(reward)
    panel.text(0.08, -4 * size, "loss: |r| log π,\nno lower bound", color=NAIVE)
    panel.text(0, 2.0 * size, "naive, gradient: |r|, however small π is", color=NAIVE)
    panel.text(0, 1.2 * size, "RIFT: both are |r| π, in [0, |r|]", color=RIFT)
    panel.set(title=f"a wrong response, r = {reward:g}:\nloss (line), gradient at log π (dashes)",
              xlabel="π of the wrong response", ylim=(-9 * size, 3 * size))


if __name__ == "__main__":
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/results.json")
    print("wrote", draw(source, source.with_name("figure.png")))
