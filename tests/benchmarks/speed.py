"""Seconds an epoch: this package, loops written by hand, and what its users would pick instead, in one run.

Every side trains the same VAE (784-400-20 by default) on the same images with the same batch size, in a process of its
own. They take turns: each an epoch, while the others wait, and then each its next: what slows the machine for a while
slows them all. The table gives the median over epochs with its spread; the ratio to the first side, the median over
the turns; the share of the time that the matrix products alone take; peak memory; time from the start of the process to
the end of its first step; and the seconds of the whole process without its waiting, which ends for this package's sides
as its commands end, and for the others as Python ends. At most 8 lie in memory together, the first of all among them.

    pip install -e ".[bench]"
    python tests/benchmarks/speed.py --data-dir DIR

Five more parts: `--part scaling` varies batch, latent, hidden, images and particles, each alone; `--part evaluation`
times `pvae.evaluate` beside its bare matrix products; `--part faces` trains `celeba-vae` from image files beside a
plain DataLoader loop with the same network; `--part memory` trains on 1,000,000 images; `--part processes` holds
several processes of one thread against one process of several.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pvae.commands import leave, run_command
from pvae.errors import InputError

Result = dict[str, Any]

_START = "PVAE_BENCHMARK_START"
_TOGETHER = 8
_TURN, _END = "PVAE_BENCHMARK_TURN", "PVAE_BENCHMARK_END "


def main() -> None:
    """Run the benchmark, or one side of it."""
    arguments = _parser().parse_args()
    if arguments.side:
        print(_END + json.dumps(_run_side(arguments)), flush=True)
        if arguments.side.startswith("pvae"):
            leave(0)  # as its commands end
    else:
        sys.exit(run_command("speed.py", lambda: _run_part(arguments)))


def _run_part(arguments: argparse.Namespace) -> None:
    if arguments.part == "sides":
        _run_all(arguments)
    else:
        import parts

        getattr(parts, arguments.part)(arguments)


def _run_side(arguments: argparse.Namespace) -> Result:
    """Run one side in this process, and return what it took."""
    from sides import SIDES, Task

    train, test, _ = _images(arguments)
    task = Task(
        train,
        test,
        epochs=arguments.epochs,
        tests=not arguments.no_test,
        batch_size=arguments.batch_size,
        hidden=arguments.hidden,
        latent_dim=arguments.latent_dim,
        particles=arguments.particles,
    )
    seconds, elbo, first = [], None, None
    before = time.perf_counter()
    for kind, value in SIDES[arguments.side][0](task):  # pythae's epochs come all at once, with their own seconds
        now = time.perf_counter()
        if kind == "step":
            first = time.time() - float(os.environ.get(_START, "nan"))
        elif kind == "epoch":
            seconds.append(now - before if value is None else value)
        else:
            elbo = value
        print(_TURN, flush=True)
        sys.stdin.readline()
        before = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "elbo": elbo, "first_step": first, "peak": peak}


def _images(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    """Return training and test images and what they are: MNIST, else bytes of its shape, which take the same time.

    Raises:
        InputError: MNIST does not lie in the folder that was given, and no more images are wanted than it has.
    """
    import torch

    from pvae.sources import load_dataset

    if (arguments.images or 0) <= 60_000:
        try:
            data = load_dataset("mnist", arguments.data_dir, offline=True)
            return data.train[: arguments.images], data.test, "MNIST"
        except InputError:
            if arguments.data_dir:
                raise
    generator = torch.Generator().manual_seed(0)
    sizes = ((arguments.images or 60_000, 1, 28, 28), (10_000, 1, 28, 28))
    train, test = (torch.randint(256, size, dtype=torch.uint8, generator=generator) for size in sizes)
    return train, test, "random bytes of the shape of MNIST, of which no ELBO says anything"


def _run_all(arguments: argparse.Namespace) -> None:
    from sides import SIDES

    data = _images(arguments)[-1]
    wanted = [name for name in SIDES if any(re.search(part, name) for part in arguments.only.split(";"))]
    present = [name for name in wanted if not SIDES[name][1] or importlib.util.find_spec(SIDES[name][1])]
    if not present:
        raise InputError(f"--only {arguments.only} leaves no side: they are {', '.join(SIDES)}")
    found: dict[str, list[Result]] = {name: [] for name in present}
    for repeat in range(arguments.repeats):
        for names in _heats(present):
            title = f"repeat {repeat + 1}/{arguments.repeats}: "
            for name, result in _in_turns(names, title).items():
                found[name].append(result)
    print("\r" + 60 * " " + "\r", end="", file=sys.stderr)
    floor = _product_floor(arguments)
    print(_table({name: results for name, results in found.items() if results}, floor))
    for name in wanted:
        if name not in present:
            print(f"absent: {name}, since {SIDES[name][1]} is not installed (pip install -e '.[bench]')")
    print(f"trained on {data}")
    print(f"matrix products alone, by the faster of torch's two libraries for each: {floor:.2f} s an epoch")


class Side:
    """A side in a process of its own, which waits between two turns.

    Args:
        name: of the side.
        options: after those of this process.

    Attributes:
        result: what it took, once it has ended.
    """

    def __init__(self, name: str, *options: str) -> None:
        self.name, self._seconds = name, 0.0
        self._command = [sys.executable, __file__, "--side", name, *sys.argv[1:], *options]
        self._process: subprocess.Popen[str] | None = None
        self.result: Result | None = None

    def __enter__(self) -> Side:
        self._errors = tempfile.TemporaryFile("w+")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def take_turn(self) -> None:
        """Let it start, and run to the end of its first step; then of an epoch, or of a test; at last let it end."""
        if self.result is not None:
            return
        started = time.perf_counter()
        if self._process is None:
            environment = {**os.environ, _START: str(time.time()), "TF_CPP_MIN_LOG_LEVEL": "3"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            self._process = subprocess.Popen(
                self._command, env=environment, text=True, cwd=Path(__file__).parent, **pipes
            )
        else:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        said = next((line for line in self._process.stdout if line.startswith((_TURN, _END))), "")
        if said.startswith(_END):
            self._process.wait()
        self._seconds += time.perf_counter() - started
        if said.startswith(_END):
            self.result = {**json.loads(said.removeprefix(_END)), "process": self._seconds}
        elif not said:
            self._errors.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self._errors.read()[-2000:]}")


def _heats(names: list[str]) -> list[list[str]]:
    """Split the sides into some that fit into memory together, each time with the first of all."""
    size = _TOGETHER - 1
    return [[*names[:1], *names[at : at + size]] for at in range(1, len(names), size)] or [names]


def _in_turns(names: list[str], title: str) -> dict[str, Result]:
    """Run sides at the same time, of which one runs while the others wait; "ratios" are those to the first."""
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Side(name)) for name in names]
        while any(side.result is None for side in sides):
            for side in sides:
                print(f"\r{title}{side.name:40}", end="", file=sys.stderr, flush=True)
                side.take_turn()
        results = {side.name: side.result or {} for side in sides}
    for result in results.values():
        pairs = zip(_counted(result), _counted(results[names[0]]))
        result["ratios"] = [mine / other for mine, other in pairs]
    return results


def _counted(result: Result) -> list[float]:
    """Return the seconds of the epochs but the first, which compiles or warms caches."""
    seconds: list[float] = result["seconds"]
    return seconds[1:] or seconds


def in_a_process(name: str, *options: str) -> Result:
    """Run a side in a process of its own, with these options after those of this process."""
    with Side(name, *options) as side:
        while side.result is None:
            side.take_turn()
        return side.result


def _product_floor(arguments: argparse.Namespace) -> float:
    """Return the seconds that the products of an epoch take: two for each layer, and one more but for the first."""
    import torch

    hidden, latent, batch = arguments.hidden, arguments.latent_dim, arguments.batch_size
    layers = [(784, hidden), (hidden, 2 * latent), (latent, hidden), (hidden, 784)]
    total = 0.0
    for index, (width_in, width_out) in enumerate(layers):
        x, w, g = torch.randn(batch, width_in), torch.randn(width_out, width_in), torch.randn(batch, width_out)
        products = [(x, w.t()), (g.t(), x), *([(g, w)] if index else [])]
        total += sum(min(_seconds_of(product, a, b) for product in _PRODUCTS) for a, b in products)
    return total * -(-(arguments.images or 60_000) // batch)


def _seconds_of(product: Any, a: Any, b: Any) -> float:
    times = []
    for _ in range(60):
        started = time.perf_counter()
        product(a, b)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _onednn(a: Any, b: Any) -> Any:
    import torch

    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


_PRODUCTS = (lambda a, b: a @ b, _onednn)


def _table(found: dict[str, list[Result]], floor: float) -> str:
    """Return a Markdown table."""
    lines = [
        "| side | s / epoch | spread | ratio | products | test ELBO | first step, s | process, s | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        middle = {key: _median(results, key) for key in ("elbo", "first_step", "process", "peak")}
        epochs = [seconds for one in results for seconds in _counted(one)]
        median = statistics.median(epochs)
        ratio = statistics.median(ratio for one in results for ratio in one["ratios"])
        lines.append(
            f"| {name} | {median:.2f} | {min(epochs):.2f} to {max(epochs):.2f} "
            f"| {ratio:.2f} | {floor / median:.0%} | {middle['elbo']:.2f} "
            f"| {middle['first_step']:.1f} | {middle['process']:.1f} | {middle['peak']:.0f} |"
        )
    return "\n".join(lines)


def _median(results: list[Result], key: str) -> float:
    values = [one[key] for one in results if one[key] is not None]
    return statistics.median(values) if values else float("nan")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, help="where MNIST lies (else $PVAE_DATA; else bytes of its shape are taken)")
    add("--epochs", type=int, default=3, help="of each process; the first is not counted (default: 3)")
    add("--repeats", type=int, default=3, help="processes of each side (default: 3)")
    add(
        "--only",
        default="",
        help="sides whose name matches one of these expressions, split by semicolons (default: all)",
    )
    add("--images", type=int, help="training images (default: all)")
    add("--batch-size", type=int, default=128, help="(default: 128)")
    add("--hidden", type=int, default=400, help="(default: 400)")
    add("--latent-dim", type=int, default=20, help="(default: 20)")
    add("--particles", type=int, default=5, help="of the sides that have several (default: 5)")
    add(
        "--part",
        default="sides",
        choices=["sides", "scaling", "evaluation", "faces", "memory", "processes"],
        help="(default: sides)",
    )
    add("--figure", type=Path, help="where --part scaling draws its figure")
    add("--no-test", action="store_true", help="do not measure the test ELBO after each epoch")
    add("--side", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
