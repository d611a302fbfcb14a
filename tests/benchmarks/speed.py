"""Seconds an epoch: this package, loops written by hand, and what its users would pick instead, in one run.

Every side trains the same VAE (784-400-20 by default) on the same images with the same batch size, in a process of its
own. They take turns: each an epoch, while the others wait, and then each its next: what slows the machine for a while
slows them all. The table gives the median over epochs with its spread; the ratios to the first side and to the leanest
loop by hand, if it is one of the sides, medians over the turns; the share of the time that the matrix products alone
take; peak memory; time from the start of the process to the end of its first step; and the seconds of the whole process
without its waiting, which ends for this package's sides as its commands end, and for the others as Python ends.
This package keeps what it compiled: with XDG_CACHE_HOME set to an empty folder, the first step compiles anew.

    pip install -e ".[bench]"
    python tests/benchmarks/speed.py --data-dir DIR

With `--device cuda` the loops by hand and this package train on a GPU, and `--only` leaves out the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from turns import Result, busy, chosen, counted, end_turn, give, in_turns, since_start

from pvae.cli.command import exit_process, run_command
from pvae.core.errors import InputError
from pvae.core.random_state import resolve_device


def main() -> None:
    """Run the benchmark, or one side of it."""
    arguments = _parser().parse_args()
    if arguments.side:
        give(_run_side(arguments))
        if arguments.side.startswith("pvae"):
            exit_process(0)  # as its commands end
    else:
        with busy(arguments.busy):
            sys.exit(run_command("speed.py", lambda: _run_all(arguments)))


def _run_side(arguments: argparse.Namespace) -> Result:
    """Run one side in this process by turns, and return what it took."""
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
        device=arguments.device,
    )
    seconds, found = list[float](), dict[str, Any]()
    before = time.perf_counter()
    for kind, value in SIDES[arguments.side](task):
        if arguments.device != "cpu":
            sys.modules["torch"].cuda.synchronize()
        now = time.perf_counter()
        if kind == "step":
            found["first_step"] = since_start()
        elif kind == "epoch":
            seconds.append(now - before)
        else:
            found[kind] = value
        end_turn()
        before = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"elbo": None, "first_step": None, **found, "seconds": seconds, "peak": peak}


def _images(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    """Return training and test images and what they are: MNIST, else bytes of its shape, which take the same time.

    Raises:
        InputError: MNIST does not lie in the folder that was given.
    """
    import torch

    from pvae.data.read import read

    try:
        data = read("mnist", arguments.data_dir, offline=True)
        return data.train[: arguments.images], data.test, "MNIST"
    except InputError:
        if arguments.data_dir:
            raise
    generator = torch.Generator().manual_seed(0)
    sizes = ((arguments.images or 60_000, 1, 28, 28), (10_000, 1, 28, 28))
    train, test = (torch.randint(256, size, dtype=torch.uint8, generator=generator) for size in sizes)
    return train, test, "random bytes of the shape of MNIST, of which no ELBO says anything"


def _run_all(arguments: argparse.Namespace) -> None:
    from sides import NUMPYRO, SIDES

    resolve_device(arguments.device)
    data = _images(arguments)[-1]
    if not importlib.util.find_spec("numpyro"):
        del SIDES[NUMPYRO]
        print(f"absent: {NUMPYRO}, which pip install -e '.[bench]' installs", file=sys.stderr)
    wanted = chosen(SIDES, arguments.only)
    found: dict[str, list[Result]] = {name: [] for name in wanted}
    for repeat in range(arguments.repeats):
        for name, result in in_turns(wanted, f"repeat {repeat + 1}/{arguments.repeats}: ").items():
            found[name].append(result)
    floor = _product_floor(arguments)
    print(_table(found, floor))
    print(f"trained on {data}")
    print(f"matrix products alone, by the faster of torch's two libraries for each: {floor:.2f} s an epoch")


def _product_floor(arguments: argparse.Namespace) -> float:
    """Return the seconds that the products of an epoch take at best: two for each layer, three but for the first."""
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
    for _ in range(200):
        started = time.perf_counter()
        product(a, b)
        times.append(time.perf_counter() - started)
    return min(times)  # it is a floor: no phase in which the machine is slow raises it


def _onednn(a: Any, b: Any) -> Any:
    import torch

    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


_PRODUCTS = (lambda a, b: a @ b, _onednn)


def _table(found: dict[str, list[Result]], floor: float) -> str:
    """Return a Markdown table."""
    lines = [
        "| side | s / epoch | spread | ratio | to lean | products | ELBO | first step, s | process, s | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        middle = {key: _median(results, key) for key in ("elbo", "first_step", "process", "peak")}
        epochs = [seconds for one in results for seconds in counted(one)]
        median = statistics.median(epochs)
        ratios, lean = ([ratio for one in results for ratio in one[key]] for key in ("ratios", "lean"))
        lines.append(
            f"| {name} | {median:.2f} | {min(epochs):.2f} to {max(epochs):.2f} "
            f"| {statistics.median(ratios):.2f} | {statistics.median(lean or [math.nan]):.2f} | {floor / median:.0%} "
            f"| {middle['elbo']:.2f} "
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
    add("--only", default="", help="sides whose name matches one of these expressions, split by semicolons")
    add("--images", type=int, help="training images (default: all)")
    add("--batch-size", type=int, default=128, help="(default: 128)")
    add("--hidden", type=int, default=400, help="(default: 400)")
    add("--latent-dim", type=int, default=20, help="(default: 20)")
    add("--busy", type=int, default=0, help="processes that multiply matrices meanwhile (default: none)")
    add("--device", default="cpu", help="of the loops by hand and of this package: cpu or cuda (default: cpu)")
    add("--no-test", action="store_true", help="do not measure the test ELBO after each epoch")
    add("--side", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
