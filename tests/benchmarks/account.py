"""Where the time of a step goes, and what each part of `pvae.compile` saves: `speed.py --part account`."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from sides import Events, Net, Task, adam_step, by_hand, numpyro, trace, trainer_of
from torch.profiler import ProfilerActivity, profile
from turns import counted, heats, in_turns

_STEPS = 30  # that are profiled
_KINDS = {  # by the names of torch's operators
    "products": ("mm", "addmm", "_linear_pointwise", "product"),
    "Adam": ("_fused_adam_", "_foreach_norm", "_foreach_mul_"),
    "random": ("normal_", "randn", "bernoulli_", "randn_like"),
    "rows": ("index", "_to_copy", "copy_", "div"),
}


def account(arguments: argparse.Namespace) -> None:
    """Print a step by operator, and an epoch with each part of `pvae.compile` left out."""
    options = ["--images", str(arguments.images or 20_000), "--no-test", "--epochs", str(max(3, arguments.epochs))]
    found: dict[str, Any] = {}
    for _ in range(arguments.repeats):
        for names in heats(list(ACCOUNT_SIDES)):
            for name, result in in_turns(names, "", *options).items():
                found.setdefault(name, []).append(result)
    kinds = [*_KINDS, "others", "Python, waits, fused loops"]
    print(f"batches of {arguments.batch_size}, {torch.get_num_threads()} threads, {arguments.busy} busy processes")
    print(f"| side | ratio | spread | ms / step | {' | '.join(kinds)} |")
    print("|---" * (4 + len(kinds)) + "|")
    for name, results in found.items():
        ratios = [ratio for one in results for ratio in one["ratios"]]
        spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        step = statistics.median(second for one in results for second in counted(one))
        step *= 1e3 / -(-int(options[1]) // arguments.batch_size)
        parts = results[-1]["account"] or {}
        cells = [f"{parts[kind]:.2f}" if kind in parts else "-" for kind in kinds]
        print(f"| {name} | {spread} | {step:.2f} | {' | '.join(cells)} |")


def measured(call: Callable[[], object], steps: int = 1) -> dict[str, float]:
    """Return the milliseconds of a step by kind of operator; a call takes some steps."""
    started = time.perf_counter()
    for _ in range(_STEPS // steps):
        call()
    whole = (time.perf_counter() - started) / _STEPS * 1e3
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(_STEPS // steps):
            call()
    times = Counter[str]()
    for event in profiled.key_averages():
        name = event.key.rpartition("::")[2]
        kind = next((kind for kind, names in _KINDS.items() if name in names), "others")
        if "::" in event.key:
            times[kind] += event.self_cpu_time_total / _STEPS / 1e3
    return {**times, "Python, waits, fused loops": max(0.0, whole - sum(times.values()))}


def _hand(task: Task) -> Events:
    yield from by_hand(trace)(task)
    net, images = Net(task), task.train.flatten(1).float() / 255
    step = adam_step(net, functools.partial(trace, net), lr=1e-3)
    yield "account", measured(lambda: step(images[torch.randint(len(images), (task.batch_size,))]))


def _ours(engine: str, without: str = "") -> Callable[[Task], Events]:
    def run(task: Task) -> Events:
        import pyro

        from pvae.core.random_state import seeded

        _leave_out(without)
        device = torch.device("cpu")
        with seeded(0, device), pyro.get_param_store().scope():
            training = trainer_of(task, "trace", engine)
            index = torch.randint(len(task.train), (task.batch_size,))
            table = [training.schedule(0)]
            for _ in range(2):
                next(training.engine.run(index, table))
            yield "step", None
            for _ in range(task.epochs):
                training.train_epoch()
                yield "epoch", None
                training.epoch += 1
            yield "account", measured(lambda: [*training.engine.run(index.repeat(_STEPS), table * _STEPS)], _STEPS)

    return run


def _leave_out(part: str) -> None:
    from pvae.compile import graph

    if part == "packages of its own":
        graph._load_or_compile = lambda graph, inputs, _: _called_with_list(torch.compile(graph))


def _called_with_list(function: Any) -> Any:
    return lambda inputs: function(*inputs)


ACCOUNT_SIDES: dict[str, Callable[[Task], Events]] = {
    "by hand": _hand,
    "pvae, none": _ours("none"),
    "pvae, graph": _ours("graph"),
    "pvae, inductor": _ours("inductor"),
    "inductor by torch.compile, without packages": _ours("inductor", "packages of its own"),
    "NumPyro, jit + scan": numpyro,
}
