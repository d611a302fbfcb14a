"""The table of a GPU: `speed.py --part gpu --device cuda`.

A side trains in a process of its own, with batches of `--batch-size` and then of eight times as many images, and its
rows are printed as soon as they are measured: a run that is stopped loses nothing. The table says what did not fit into
`--seconds`. On a CPU the same sides run, but for those that need a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sides import Events, Task, by_hand, closed_form, lean, ours
from turns import END, LEAN, START, Result, chosen, counted

from pvae.compile import inductor

_ROOT = Path(__file__).parents[2]
_HAND = "by hand"
_SECONDS_OF_CHECKS = 180
_LEAST = 10  # seconds in which a side can start


def gpu(arguments: argparse.Namespace) -> None:
    """Print the checks, if asked for, and then the table."""
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    if arguments.checks:
        _check()
    print("| side | batch | epochs | ms / epoch | spread | to by hand | to lean | first step, s | test ELBO |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    end, medians = time.perf_counter() + arguments.seconds, dict[tuple[str, int], float]()
    for side in chosen(GPU_SIDES, arguments.only):
        lacks = _lacks(side, device)
        left = end - time.perf_counter()
        why = lacks or ("" if left > _LEAST else f"no time left of {arguments.seconds} s")
        for result in () if why else _results(side, left):
            if isinstance(result, str):
                why = result
                continue
            print(_row(side, result, medians), flush=True)
        if why:
            print(f"| {side} | - | {why} |", flush=True)
    print(f"{arguments.seconds - (end - time.perf_counter()):.0f} s")


def _check() -> None:
    """Run the tests of steps on a GPU, and print their summary as they go."""
    tests = ["tests/compile/test_replays.py", "tests/compile/test_blocks.py", "-k", "cuda"]
    options = ["-n", "4", "-p", "no:cacheprovider", "-m", "not slow", "--durations", "3"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        subprocess.run(command, cwd=_ROOT, stderr=subprocess.STDOUT, timeout=_SECONDS_OF_CHECKS, check=False)
    except subprocess.TimeoutExpired:
        print(f"the checks were stopped after {_SECONDS_OF_CHECKS} s", flush=True)


def _lacks(side: str, device: torch.device) -> str:
    """Return what a side needs and is not there, or an empty string."""
    if device.type == "cpu" and "TF32" in side:
        return "needs an NVIDIA GPU"
    return inductor.missing() if device.type == "cpu" and "inductor" in side else ""


def _results(side: str, left: float) -> Iterator[Result | str]:
    """Yield what a side takes with batches of each size, and at last why not all were measured, if so."""
    command = [sys.executable, str(Path(__file__).with_name("speed.py")), "--side", side, *sys.argv[1:]]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        environment = {**os.environ, START: str(time.time())}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        stop = threading.Timer(left, process.kill)
        stop.start()
        try:
            for line in process.stdout:
                if line.startswith(END):
                    yield json.loads(line.removeprefix(END))
            if process.wait():
                errors.seek(0)
                said = errors.read().strip().rpartition("\n")[2][-200:]
                yield "stopped, since the time is over" if not stop.is_alive() else f"failed: {said}"
        finally:
            stop.cancel()
            process.kill()
            process.wait()


def _row(side: str, result: Result, medians: dict[tuple[str, int], float]) -> str:
    """Return a row of the table, and note its median."""
    batch_size, times = result["batch_size"], [1e3 * one for one in counted(result)]
    median = medians[side, batch_size] = statistics.median(times)
    ratios = [
        f"{median / medians[one, batch_size]:.3f}" if (one, batch_size) in medians else "-" for one in (_HAND, LEAN)
    ]
    first, elbo = (f"{value:.2f}" if value is not None else "-" for value in (result["first_step"], result["elbo"]))
    cells = [
        side,
        batch_size,
        len(times),
        f"{median:.1f}",
        f"{min(times):.1f} to {max(times):.1f}",
        *ratios,
        first,
        elbo,
    ]
    return f"| {' | '.join(map(str, cells))} |" + (f" {result['note']}" if result.get("note") else "")


def _inductor_of_any_torch(task: Task) -> Events:
    """A training of this package that is compiled, on a GPU by an older torch than it asks for, too."""
    if task.device != "cpu":
        inductor.OLDEST_FOR_INDUCTOR = ""
    yield from ours("inductor")(task)


def _tf32(side: Callable[[Task], Events]) -> Callable[[Task], Events]:
    def run(task: Task) -> Events:
        torch.set_float32_matmul_precision("high")
        yield from side(task)

    return run


def _compiled_lean(task: Task) -> Events:
    yield from lean(task, torch.compile(closed_form, dynamic=False))


# The references come first, and then what is asked first: a run that is stopped has these.
GPU_SIDES: dict[str, Callable[[Task], Events]] = {
    _HAND: by_hand,
    LEAN: lean,
    "pvae, none": ours("none"),
    "pvae, graph": ours("graph"),
    "pvae, inductor": _inductor_of_any_torch,
    "lean loop, torch.compile": _compiled_lean,
    "pvae, TF32": _tf32(ours("graph")),
    "lean loop, TF32": _tf32(lean),
}
