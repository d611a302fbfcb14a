"""A part of the speed benchmark: systems with flows, other priors or several layers, beside the same written by hand.

Each class below is one system as its user would write it, in plain torch, torch.distributions or zuko: its networks,
and the loss of a batch, in nats per image. Both sides have the same layers, so the same parameters in the same order,
and `_check` holds loss and gradients to each other at the same weights and the same noise.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from sides import Events, Task, adam_step, loop, trained_by_pvae
from torch import Tensor, nn
from torch.distributions import Beta, Independent, Normal
from torch.nn import functional
from turns import chosen, counted, in_turns

from pvae.config.config import Config
from pvae.config.presets import get_system


def _mlp(*widths: int, gated: bool = False, batch_norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths[:-1]):
        if batch_norm:
            layers += [nn.Linear(inner, outer, bias=False), nn.BatchNorm1d(outer), nn.ReLU()]
        else:
            layers += [nn.Linear(inner, 2 * outer), nn.GLU()] if gated else [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def _distortion(logits: Tensor, x: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def _normal(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return loc and log scale, bounded as in this package."""
    loc, log_scale = parameters.chunk(2, dim=-1)
    return loc, log_scale.clamp(-7, 7)


def _draw(loc: Tensor, log_scale: Tensor) -> Tensor:
    return loc + log_scale.exp() * torch.randn_like(loc)


def _log_normal(z: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    return (-0.5 * ((z - loc) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def _kl_normal(loc: Tensor, log_scale: Tensor, p_loc: Tensor, p_log_scale: Tensor) -> Tensor:
    ratio = ((2 * log_scale).exp() + (loc - p_loc).square()) * (-2 * p_log_scale).exp()
    return (0.5 * (ratio - 1) + p_log_scale - log_scale).sum(-1)


def _log_standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


def _log_vamp(z: Tensor, parameters: Tensor) -> Tensor:
    """Return the log-density (B,) of a mixture of K Normals with equal weights, whose parameters are (K, 2 L)."""
    log_p = _log_normal(z.unsqueeze(1), *_normal(parameters))
    return log_p.logsumexp(1) - math.log(len(parameters))


def _halved(parameters: Tensor) -> Tensor:
    """Return loc and log scale of loc and log variance."""
    loc, log_variance = parameters.chunk(2, dim=-1)
    return torch.cat([loc, 0.5 * log_variance], dim=-1)


class _IAF(nn.Module):
    """By torch.distributions and zuko; with no transforms, the mean-field VAE."""

    def __init__(self, num_transforms: int = 2, **options: Any) -> None:
        import zuko

        super().__init__()
        self.context = 256 if num_transforms else 0
        self.composed = zuko.transforms.ComposedTransform
        self.encoder = _mlp(784, 256, 256, 2 * 128 + self.context)
        self.flow = nn.ModuleList(
            zuko.flows.MaskedAutoregressiveTransform(128, 256, order=order, hidden_features=[256], **options)
            for order in [range(128), range(127, -1, -1)][:num_transforms]
        )
        self.decoder = _mlp(128, 256, 256, 784)
        self.register_buffer("zeros", torch.zeros(128))

    def forward(self, x: Tensor) -> Tensor:
        parameters, context = self.encoder(x).tensor_split([2 * 128], dim=-1)
        loc, log_scale = _normal(parameters)
        q = Independent(Normal(loc, log_scale.exp()), 1)
        z = q.rsample()
        log_q = q.log_prob(z)
        if self.flow:
            z, log_det = self.composed(*(transform(context) for transform in self.flow)).call_and_ladj(z)
            log_q = log_q - log_det
        p_z = Independent(Normal(self.zeros, self.zeros + 1), 1)
        return (_distortion(self.decoder(z), x) + log_q - p_z.log_prob(z)).mean()


def _spline() -> nn.Module:
    from zuko.transforms import MonotonicRQSTransform

    return _IAF(univariate=MonotonicRQSTransform, shapes=[(8,), (8,), (7,)])


class _Planar(nn.Module):
    """Plain torch: Pyro's conditional planar transform has a network of its own for each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _mlp(784, 400, 400, 2 * 40 + 10 * 81)
        self.decoder = _mlp(40, 400, 400, 784)

    def forward(self, x: Tensor) -> Tensor:
        parameters, transforms = self.encoder(x).tensor_split([80], dim=-1)
        loc, log_scale = _normal(parameters)
        z = _draw(loc, log_scale)
        log_q = _log_normal(z, loc, log_scale)
        for one in transforms.chunk(10, dim=-1):
            u, w, b = one.tensor_split([40, 80], dim=-1)
            product = (w * u / 40).sum(-1, keepdim=True)
            slope = functional.elu(product.clamp(min=-7))  # w u > -1 makes it invertible
            u = u / 40 + (slope - product) * w / w.square().sum(-1, keepdim=True)
            t = torch.tanh((w * z).sum(-1, keepdim=True) + b)
            z = z + u * t
            log_q = log_q - torch.log1p(slope * (1 - t.square())).squeeze(-1)
        return (_distortion(self.decoder(z), x) + log_q - _log_standard_normal(z)).mean()


class _Spherical(nn.Module):
    """The power spherical distribution in plain torch, with the closed form of its KL from the uniform one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _mlp(784, 256, 128, 12)
        self.decoder = _mlp(11, 128, 256, 784)
        self.register_buffer("first", torch.eye(11)[0])

    def forward(self, x: Tensor) -> Tensor:
        loc, log_concentration = self.encoder(x).tensor_split([11], dim=-1)
        loc, k = functional.normalize(loc, dim=-1), log_concentration.squeeze(-1).clamp(-7, 11).exp().double()
        b = torch.full_like(k, 10 / 2)
        a = b + k  # in float64, since the gradient of a Beta draw is wrong by up to 35 % in float32
        along = 2 * Beta(a, b).rsample().float().unsqueeze(-1) - 1
        tangent = functional.normalize(torch.randn(len(x), 10), dim=-1)
        y = torch.cat([along, (1 - along.square()).clamp(min=1e-12).sqrt() * tangent], dim=-1)
        axis = functional.normalize(self.first - loc, dim=-1)
        z = y - 2 * axis * (axis * y).sum(-1, keepdim=True)
        log_constants = torch.lgamma(a + b) - torch.lgamma(a) - math.lgamma(10) + math.lgamma(5)
        rate = k * (torch.digamma(a) - torch.digamma(a + b)) + log_constants
        return (_distortion(self.decoder(z), x) + rate.float()).mean()


class _Vamp(nn.Module):
    """The VAE with a VampPrior of K pseudo-inputs, in plain torch; with K = 0, with a standard normal prior."""

    def __init__(self, num_components: int = 500) -> None:
        super().__init__()
        self.pseudo_inputs = nn.Parameter(0.1 * torch.rand(num_components, 784)) if num_components else None
        self.encoder = _mlp(784, 300, 300, 80, gated=True)
        self.decoder = _mlp(40, 300, 300, 784, gated=True)

    def forward(self, x: Tensor) -> Tensor:
        loc, log_scale = _normal(_halved(self.encoder(x)))
        z = _draw(loc, log_scale)
        if self.pseudo_inputs is None:
            log_p = _log_standard_normal(z)
        else:
            log_p = _log_vamp(z, _halved(self.encoder(self.pseudo_inputs.clamp(0, 1))))
        return (_distortion(self.decoder(z), x) + _log_normal(z, loc, log_scale) - log_p).mean()


class _TwoLevels(nn.Module):
    """The HVAE with a VampPrior in plain torch: q(z2 | x) q(z1 | z2, x), p(z2) p(z1 | z2)."""

    def __init__(self) -> None:
        super().__init__()
        self.pseudo_inputs = nn.Parameter(0.1 * torch.rand(500, 784))
        self.down = _mlp(40, 300, 300, 80, gated=True)
        self.encoder = _mlp(784, 300, 300, 80 + 300, gated=True)
        self.up = _mlp(300 + 40, 300, 300, 80, gated=True)
        self.decoder = _mlp(80, 300, 300, 784, gated=True)

    def forward(self, x: Tensor) -> Tensor:
        parameters, context = self.encoder(x).tensor_split([80], dim=-1)
        q2 = _normal(parameters)
        z2 = _draw(*q2)
        q1, p1 = _normal(self.up(torch.cat([context, z2], dim=-1))), _normal(self.down(z2))
        z1 = _draw(*q1)
        log_p2 = _log_vamp(z2, self.encoder(self.pseudo_inputs.clamp(0, 1))[:, :80])
        rate = _log_normal(z2, *q2) - log_p2 + _kl_normal(*q1, *p1)
        return (_distortion(self.decoder(torch.cat([z1, z2], dim=-1)), x) + rate).mean()


class _Ladder(nn.Module):
    """The ladder VAE of three layers in plain torch, with the KL of each layer in closed form."""

    def __init__(self) -> None:
        super().__init__()
        network = partial(_mlp, batch_norm=True)
        self.down = nn.ModuleList([network(32, 200, 200, 2 * 64), network(16, 200, 200, 2 * 32)])
        self.encoder = network(784, 400, 400, 2 * 64 + 400)
        self.up = nn.ModuleList([network(400, 200, 200, 2 * 32 + 400), network(400, 200, 200, 2 * 16)])
        self.decoder = network(64, 400, 400, 784)

    def forward(self, x: Tensor) -> Tensor:
        first, context = self.encoder(x).tensor_split([2 * 64], dim=-1)
        second, context = self.up[0](context).tensor_split([2 * 32], dim=-1)
        loc, log_scale = _normal(self.up[1](context))
        rate = 0.5 * (loc.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum(-1)
        z = _draw(loc, log_scale)
        for network, parameters in ((self.down[1], second), (self.down[0], first)):
            (loc, log_scale), (p_loc, p_log_scale) = _normal(parameters), _normal(network(z))
            precision, p_precision = (-2 * log_scale).exp(), (-2 * p_log_scale).exp()
            variance = 1 / (precision + p_precision)
            loc, log_scale = variance * (loc * precision + p_loc * p_precision), 0.5 * variance.log()
            rate = rate + _kl_normal(loc, log_scale, p_loc, p_log_scale)
            z = _draw(loc, log_scale)
        return (_distortion(self.decoder(z), x) + rate).mean()


class _Values(nn.Module):
    """Real values x (N, 49), standardised, and a Normal with a trained scale of each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _mlp(49, 400, 40)
        self.log_scale = nn.ParameterList([torch.zeros(49)])
        self.decoder = _mlp(20, 400, 49)

    def forward(self, x: Tensor) -> Tensor:
        loc, log_scale = _normal(self.encoder(x))
        z = _draw(loc, log_scale)
        rate = _kl_normal(loc, log_scale, torch.zeros_like(loc), torch.zeros_like(loc))
        return (rate - _log_normal(x, self.decoder(z), self.log_scale[0])).mean()


def _data(config: Config, images: Tensor) -> Tensor:
    """Return images as bytes of two levels, or for real values the means of 4 x 4 pixels, standardised."""
    if config.likelihood != "normal-diagonal":
        return (images >= 128).to(torch.uint8) * 255
    x = functional.avg_pool2d(images.float(), 4).flatten(1)
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-3)


_SYSTEMS: dict[str, tuple[Callable[[], nn.Module], Config]] = {
    "iaf": (_IAF, get_system("iaf")),
    "iaf, --posterior normal": (lambda: _IAF(0), get_system("iaf").replace(posterior="normal")),
    "iaf, --posterior spline": (_spline, get_system("iaf").replace(posterior="spline")),
    "planar": (_Planar, get_system("planar")),
    "spherical": (_Spherical, get_system("spherical")),
    "vampprior": (_Vamp, get_system("vampprior")),
    "vampprior, --prior standard-normal": (lambda: _Vamp(0), get_system("vampprior").replace(prior="standard-normal")),
    "hvae-vampprior": (_TwoLevels, get_system("hvae-vampprior")),
    "ladder": (_Ladder, get_system("ladder")),
    "real values": (
        _Values,
        Config(likelihood="normal-diagonal", elbo="analytic", hidden=(400,), latent_dim=20, batch_size=128),
    ),
}
_ENGINES = ("none", "graph", "inductor")


def systems(arguments: argparse.Namespace) -> None:
    """Print the seconds of an epoch of each system by hand and by this package, in turns."""
    names = chosen(_SYSTEMS, arguments.only)
    count = arguments.images or 10_000
    options = ["--no-test", "--images", str(count), "--epochs", str(max(2, arguments.epochs))]
    columns = ["system", "loss, gradient differ by", "by hand, s / epoch", *_ENGINES]
    columns.insert(3, "torch.compile")
    columns += [f"{engine} / by hand" for engine in columns[3:]]
    print(f"{count:,} data, constant learning rate, no warm-up; the first epoch is not counted")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in names:
        differences = " ".join(f"{one:.0e}" for one in _check(name))
        sides = [f"{name}: by hand", f"{name}: torch.compile", *(f"pvae {name}: {engine}" for engine in _ENGINES)]
        results = list(in_turns(sides, "", *options).values())
        seconds = [f"{statistics.median(counted(one)):.2f}" for one in results]
        ratios = [_with_spread(one["ratios"]) for one in results[1:]]
        print(f"| {name} | {differences} | {' | '.join([*seconds, *ratios])} |", flush=True)


def _with_spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _check(name: str) -> tuple[float, float]:
    """Return the relative differences of the two losses and of their gradients, at the same weights and noise.

    Raises:
        SystemExit: the sides differ in their parameters, or by more than rounding.
    """
    import pyro

    from pvae.config.build import build_elbo, build_vae

    torch.manual_seed(0)
    build, config = _SYSTEMS[name]
    x = _data(config, 255 * torch.bernoulli(torch.full((64, 1, 28, 28), 0.2)))
    net, vae = build(), build_vae(config, x.shape[1:])
    pairs = list(zip(net.parameters(), vae.parameters()))
    sizes = [sum(one.numel() for one in side.parameters()) for side in (net, vae)]
    if sizes[0] != sizes[1] or any(mine.numel() != theirs.numel() for mine, theirs in pairs):
        raise SystemExit(f"{name}: {sizes[0]:,} parameters by hand, and {sizes[1]:,} in this package")
    with torch.no_grad():
        # The two reflections of `spherical` take the same noise to the same z where loc is in this half of the sphere.
        [layer for layer in vae.q_z.encoder.modules() if isinstance(layer, nn.Linear)][-1].bias[0] -= 5
        for mine, theirs in pairs:
            mine.copy_(theirs.view_as(mine))
    x = x / 255 if x.dtype == torch.uint8 else x
    torch.manual_seed(1)
    loss = net(x.flatten(1))
    loss.backward()
    torch.manual_seed(1)
    with pyro.get_param_store().scope():
        expected = build_elbo(config.elbo, config.particles).backward(vae.model, vae.guide, x).loss
    gradients = [torch.cat([p.grad.flatten() for p in side.parameters()]) for side in (net, vae)]
    differences = [(loss - expected).abs() / expected, (gradients[0] - gradients[1]).norm() / gradients[1].norm()]
    if max(differences) > 1e-4:
        raise SystemExit(f"{name}: loss and gradients differ by {differences}")
    return differences[0].item(), differences[1].item()


def _by_hand(name: str, compiles: bool = False) -> Callable[[Task], Events]:
    def run(task: Task) -> Events:
        build, config = _SYSTEMS[name]
        torch.manual_seed(0)
        net, images = build(), _data(config, task.train)
        images = images.flatten(1) / 255 if images.dtype == torch.uint8 else images
        if compiles:
            net.compile()
        loss_of = (lambda x: net(torch.bernoulli(x))) if config.binarize == "dynamic" else net
        step = adam_step(net, loss_of, lr=config.lr, eps=config.adam_eps)
        yield from loop(task, images, config.batch_size, step)

    return run


def _ours(name: str, engine: str) -> Callable[[Task], Events]:
    def run(task: Task) -> Events:
        import pyro

        from pvae.core.random_state import seeded
        from pvae.data.dataset import Dataset
        from pvae.training.setup import build_trainer

        config, device = _SYSTEMS[name][1], torch.device("cpu")
        config = config.replace(compile=engine, epochs=task.epochs, schedule="constant", warm_up=0)
        images = _data(config, task.train)
        with seeded(0, device), pyro.get_param_store().scope():
            training = build_trainer(config, Dataset("benchmark", images, images[:2]), device)
            yield from trained_by_pvae(training, config.batch_size, task)

    return run


SYSTEM_SIDES: dict[str, Callable[[Task], Iterator[tuple[str, float | None]]]] = {
    **{f"{name}: by hand": _by_hand(name) for name in _SYSTEMS},
    **{f"{name}: torch.compile": _by_hand(name, compiles=True) for name in _SYSTEMS},
    **{f"pvae {name}: {engine}": _ours(name, engine) for name in _SYSTEMS for engine in _ENGINES},
}
