"""How long annealing takes, beside the gradient by hand that it needs at least: `speed.py --part evaluation`.

The system is `iwae-1layer` (784-200-200-50). A gradient is that of log p(x, z) with respect to z of 2,000 latents;
annealing computes ten for each temperature, and that of log q(z | x) with it. Its time is the difference of two runs
that differ in the number of temperatures alone, so that neither the pilot nor compiling is in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pvae.config.build import build_vae
from pvae.config.presets import get_system
from pvae.core.random_state import seeded
from pvae.marginal.annealing import NUM_LEAPFROG, annealed
from pvae.marginal.log_likelihood import ANNEALING

_LATENTS, _CHAINS = 2000, 16
_TEMPERATURES = (6, 26)  # of both, the pilot makes 100 transitions


def evaluation(arguments: argparse.Namespace) -> None:
    """Print the time of a gradient by hand and in annealing, and of log p(x) of 1,000 images."""
    from speed import _images

    count = arguments.images or 1000
    with seeded(0):
        vae = build_vae(get_system("iwae-1layer"), (1, 28, 28)).eval()
        x = (_images(argparse.Namespace(images=60_000, data_dir=arguments.data_dir))[1][:count] > 127).float()
        z = torch.randn(_LATENTS, 50)
        repeated = x.flatten(1).repeat(-(-_LATENTS // count), 1)[:_LATENTS]
    by_hand = torch.compile(gradient_of(vae.p_x))
    z_by_autograd = z.clone().requires_grad_()
    of = repeated.view(-1, 1, 28, 28)
    log_joint = vae.log_likelihood(of, z_by_autograd) + vae.prior().log_prob(z_by_autograd)
    (expected,) = torch.autograd.grad(log_joint.sum(), z_by_autograd)
    torch.testing.assert_close(by_hand(z, repeated), expected, atol=1e-3, rtol=1e-3)
    floors, ours = list[float](), list[float]()

    def run(num_temperatures: int) -> float:
        return _seconds(lambda: annealed(vae, x, num_temperatures, _CHAINS, "posterior", engine="inductor"))

    run(_TEMPERATURES[0])  # which compiles
    for _ in range(arguments.repeats):
        floors.append(_seconds(lambda: [by_hand(z, repeated) for _ in range(100)]) / 100)
        few, many = map(run, _TEMPERATURES)
        gradients = (_TEMPERATURES[1] - _TEMPERATURES[0]) * NUM_LEAPFROG * count * _CHAINS / _LATENTS
        ours.append((many - few) / gradients)
    floor, each = statistics.median(floors), statistics.median(ours)
    whole = each * 1000 * NUM_LEAPFROG * count * _CHAINS / _LATENTS
    default = _seconds(lambda: annealed(vae, x, **ANNEALING))
    print(f"{torch.get_num_threads()} threads, {count:,} images; medians of {arguments.repeats}")
    print("| what | time |\n|---|---|")
    print(f"| gradient of {_LATENTS:,} latents by hand, compiled | {1e3 * floor:.1f} ms |")
    print(f"| the same in annealing, with that of log q(z given x) | {1e3 * each:.1f} ms, {each / floor:.2f} times |")
    print(f"| so 1,000 temperatures and {_CHAINS} chains take | {whole / 60:.1f} min |")
    default_is = "{num_temperatures} temperatures and {num_chains} chains".format_map(ANNEALING)
    print(f"| the default, {default_is} | {default:.0f} s |")


def gradient_of(decoder: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the derivative of log p(x, z) by z (N, L), x (N, 784) binary, of two tanh layers, written by hand."""
    (w1, b1), (w2, b2), (w3, b3) = (
        (one.weight.detach(), one.bias.detach()) for one in decoder.modules() if isinstance(one, nn.Linear)
    )

    def gradient(z: Tensor, x: Tensor) -> Tensor:
        first = torch.tanh(z @ w1.T + b1)
        second = torch.tanh(first @ w2.T + b2)
        by_second = (x - torch.sigmoid(second @ w3.T + b3)) @ w3
        return (by_second * (1 - second**2) @ w2 * (1 - first**2)) @ w1 - z

    return gradient


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
