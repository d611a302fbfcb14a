"""Two parts of the speed benchmark: how its cost grows with the work, and several processes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
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

    figure = Figure(figsize=(12, 2.9), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(_AXES), sharey=True), _AXES):
        points = [(value, costs) for name, value, costs in rows if name == axis]
        for side, label in enumerate(("written by hand", "pvae")):
            axes.loglog([value for value, _ in points], [costs[side] for _, costs in points], "o-", label=label)
        axes.set_xlabel(axis.replace("-", " "))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("microseconds an image")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


_ALL_REDUCE = """
import statistics, sys, time, torch
from pvae.cli.command import exit_process
from pvae.training.parallel import joined
with joined("cpu") as world:
    parts, times = [torch.zeros(int(sys.argv[1]))], []
    for _ in range(200):
        started = time.perf_counter()
        world.sum_(parts)
        times.append(time.perf_counter() - started)
    if world.is_first:
        print(statistics.median(times))
exit_process(0)
"""


def processes(arguments: argparse.Namespace) -> None:
    """Print what an epoch takes one process with all cores, and as many processes with a core each."""
    count = os.cpu_count() or 2
    several = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    system = ["-m", "pvae.train", "--system", "pytorch-example", "--epochs", "3", "--quiet", "--offline"]
    system += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    numbers = 784 * 400 + 400 + 2 * (400 * 20 + 20) + 20 * 400 + 400 + 400 * 784 + 784
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "all_reduce.py"
        script.write_text(_ALL_REDUCE)
        message = float(_output([*several, str(script), str(numbers)], threads=1))
        print(f"784-400-20: a step sums {4 * numbers / 2**20:.1f} MiB of gradients, {1000 * message:.2f} ms alone")
        print(f"| batch | --compile | one process, {count} threads, s / epoch | {count} processes | efficiency |")
        print("|---|---|---|---|---|")
        for batch_size in (128, 1024, 8192):
            for how in ("none", "graph"):
                found = []
                for start, threads in (([sys.executable], count), (several, 1)):
                    out = str(Path(folder) / f"{batch_size}-{how}-{threads}")
                    options = ["--batch-size", str(batch_size), "--compile", how, "--out", out]
                    _output([*start, *system, *options], threads)
                    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
                    found.append(min(row["seconds"] for row in rows if row["split"] == "train" and row["epoch"] > 1))
                print(
                    f"| {batch_size} | {how} | {found[0]:.2f} | {found[1]:.2f} | {found[0] / found[1]:.2f} |",
                    flush=True,
                )


def _output(command: list[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout
