"""How the cost of an image grows with the work: `speed.py --part scaling`."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from turns import counted, in_turns

_TRACE = ("torch.distributions, trace", "pvae trace")
_IWAE = ("torch.distributions, iwae K=5", "pvae iwae K=5")
# What varies, over what, on how many images, and which two sides do it.
_AXES = {
    "batch-size": ((32, 128, 512, 2048, 8192), 16_384, _TRACE),
    "latent-dim": ((2, 20, 128, 512), 10_000, _TRACE),
    "hidden": ((100, 400, 1024, 4096), 10_000, _TRACE),
    "particles": ((1, 4, 16, 64), 5_000, _IWAE),
    "images": ((5_000, 60_000, 1_000_000), None, _TRACE),
}
_TURNS, _FEWEST_TURNS, _MANY = 7, 3, 20_000  # epochs that are counted: fewer of more images


def scaling(arguments: argparse.Namespace) -> None:
    """Print the cost of an image as the work grows, by hand and by this package, in turns, and draw it."""
    rows = []
    print("| what | of | images | by hand, us / image | pvae, us / image | ratio |\n|---|---|---|---|---|---|")
    for axis, (values, images, sides) in _AXES.items():
        for value in values:
            count = images or value
            epochs = _FEWEST_TURNS if count > _MANY else _TURNS
            options = ["--images", str(count), "--epochs", str(1 + epochs), "--no-test", f"--{axis}", str(value)]
            if axis == "images":
                options += ["--batch-size", "1000"]
            found = in_turns(sides, f"{axis} {value:,}: ", *options).values()
            costs = [statistics.median(counted(one)) / count * 1e6 for one in found]
            ratio = statistics.median(list(found)[1]["ratios"])
            rows.append((axis, value, costs))
            print(f"| {axis} | {value:,} | {count:,} | {costs[0]:.2f} | {costs[1]:.2f} | {ratio:.2f} |", flush=True)
    if arguments.figure:
        _draw(rows, arguments.figure)


def _draw(rows: list[tuple[str, int, list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    from pvae.plotting.figures import PALETTE

    figure = Figure(figsize=(12, 2.9), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(_AXES), sharey=True), _AXES):
        points = [(value, costs) for name, value, costs in rows if name == axis]
        for side, label in enumerate(("written by hand", "pvae")):
            x, y = [value for value, _ in points], [costs[side] for _, costs in points]
            axes.loglog(x, y, "os"[side] + "-", color=PALETTE[side], label=label)
        axes.set_xlabel(axis.replace("-", " "))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("microseconds an image")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)
