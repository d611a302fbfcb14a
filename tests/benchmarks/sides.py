"""The sides of the speed benchmark: each trains the same VAE on the same images, as its users would.

A side is a generator of events: ("step", None) after its first step, ("epoch", None) after the training of each epoch,
and ("elbo", value) after a test, nats per datum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from turns import LEAN

Events = Iterator[tuple[str, float | None]]


@dataclass(frozen=True)
class Task:
    """What every side does.

    Args:
        train: uint8 (N, 1, H, W).
        test: the same.
        epochs: passes over the training images.
        tests: measure the test ELBO after each.
        batch_size: images a step.
        hidden: width of the one hidden layer of encoder and decoder.
        latent_dim: L.
        device: where the loops by hand and this package train.
    """

    train: Tensor
    test: Tensor
    epochs: int = 3
    tests: bool = True
    batch_size: int = 128
    hidden: int = 400
    latent_dim: int = 20
    device: str = "cpu"


class Net(nn.Module):
    """D-H-(L+L) and L-H-D, ReLU, as in the PyTorch example."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        num_pixels = task.train[0].numel()
        self.encoder = nn.Sequential(
            nn.Linear(num_pixels, task.hidden), nn.ReLU(), nn.Linear(task.hidden, 2 * task.latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(task.latent_dim, task.hidden), nn.ReLU(), nn.Linear(task.hidden, num_pixels)
        )
        self.register_buffer("zeros", torch.zeros(task.latent_dim))
        self.register_buffer("ones", torch.ones(task.latent_dim))


def closed_form(net: Net, x: Tensor) -> Tensor:
    """The loss without any distribution object."""
    loc, log_variance = net.encoder(x).chunk(2, dim=-1)
    z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
    distortion = functional.binary_cross_entropy_with_logits(net.decoder(z), x, reduction="sum")
    rate = -0.5 * (1 + log_variance - loc.square() - log_variance.exp()).sum()
    return (distortion + rate) / len(x)


def trace(net: Net, x: Tensor) -> Tensor:
    """The Monte Carlo ELBO by torch.distributions."""
    distributions = torch.distributions
    loc, log_variance = net.encoder(x).chunk(2, dim=-1)
    q = distributions.Independent(distributions.Normal(loc, (0.5 * log_variance).exp()), 1)
    z = q.rsample()
    p_x = distributions.Independent(distributions.Bernoulli(logits=net.decoder(z), validate_args=False), 1)
    p_z = distributions.Independent(distributions.Normal(net.zeros, net.ones), 1)
    return (q.log_prob(z) - p_x.log_prob(x) - p_z.log_prob(z)).mean()


def _tested(net: Net, task: Task) -> Events:
    if task.tests:
        with torch.no_grad():
            parts = [part.to(net.zeros.device).flatten(1).float() / 255 for part in task.test.split(1000)]
            loss = sum(closed_form(net, part).item() * len(part) for part in parts) / len(task.test)
        yield "elbo", -loss


def loop(net: Net, task: Task, images: Tensor, step: Callable[[Tensor], object]) -> Events:
    """Step on all batches of each epoch, in random order, and test after it."""
    for epoch in range(task.epochs):
        for number, index in enumerate(torch.randperm(len(images)).to(images.device).split(task.batch_size)):
            step(images[index])
            if epoch == number == 0:
                yield "step", None
        yield "epoch", None
        yield from _tested(net, task)


def by_hand(task: Task) -> Events:
    """A loop written by hand with the loss `trace`, images as floats in memory, one fused Adam."""
    net, images = Net(task).to(task.device), task.train.to(task.device).flatten(1).float() / 255
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loss = trace(net, x)
        loss.backward()
        optimizer.step()
        return loss.item()

    yield from loop(net, task, images, step)


def lean(task: Task) -> Events:
    """The leanest loop: bytes gathered and divided, no distribution object, and no loss read in an epoch."""
    net, images = Net(task).to(task.device), task.train.to(task.device).flatten(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        closed_form(net, rows.float().div_(255)).backward()
        optimizer.step()

    yield from loop(net, task, images, step)


class _Decoded(torch.utils.data.Dataset):
    """Images decoded one by one, as torchvision's MNIST with ToTensor gives them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image
        from torchvision.transforms.functional import to_tensor

        pixels: Tensor = to_tensor(Image.fromarray(self.images[index, 0].numpy()))
        return pixels


def pytorch_example(task: Task) -> Events:
    """The PyTorch example's style: a DataLoader over decoded images, sigmoid and cross-entropy, Adam as it comes."""
    net = Net(task)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(_Decoded(task.train), batch_size=task.batch_size, shuffle=True)
    for epoch in range(task.epochs):
        for step, batch in enumerate(loader):
            x = batch.flatten(1)
            optimizer.zero_grad()
            loc, log_variance = net.encoder(x).chunk(2, dim=-1)
            z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
            distortion = functional.binary_cross_entropy(net.decoder(z).sigmoid(), x, reduction="sum")
            loss = distortion - 0.5 * torch.sum(1 + log_variance - loc.pow(2) - log_variance.exp())
            loss.backward()
            loss.item()
            optimizer.step()
            if epoch == step == 0:
                yield "step", None
        yield "epoch", None
        yield from _tested(net, task)


def plain_pyro(task: Task) -> Events:
    """Pyro as its VAE example has it: module, plate, SVI, its own Adam; images as floats in memory."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, Trace_ELBO

    net, images = Net(task), task.train.flatten(1).float() / 255

    def model(x: Tensor) -> None:
        pyro.module("decoder", net.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(net.zeros, net.ones).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=net.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", net.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_variance = net.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=Trace_ELBO())
    yield from loop(net, task, images, svi.step)


def numpyro(task: Task) -> Events:
    """NumPyro with its SVI step compiled by jit, a whole epoch in one scan."""
    import jax
    import numpyro.distributions as dist
    from jax import lax, random
    from jax.example_libraries import stax
    from numpyro import factor, module, plate, sample
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.optim import Adam

    num_pixels = task.train[0].numel()
    images, test = (jax.numpy.asarray((part.flatten(1).float() / 255).numpy()) for part in (task.train, task.test))
    encoder = stax.serial(stax.Dense(task.hidden), stax.Relu, stax.Dense(2 * task.latent_dim))
    decoder = stax.serial(stax.Dense(task.hidden), stax.Relu, stax.Dense(num_pixels))

    def model(x: Any) -> None:
        decode = module("decoder", decoder, (len(x), task.latent_dim))
        with plate("data", len(x)):
            z = sample("z", dist.Normal(0, 1).expand([task.latent_dim]).to_event(1))
            logits = decode(z)  # NumPyro's Bernoulli gives grey pixels a probability of 0
            factor("obs", (x * logits - jax.nn.softplus(logits)).sum(-1))

    def guide(x: Any) -> None:
        encode = module("encoder", encoder, (len(x), num_pixels))
        with plate("data", len(x)):
            loc, log_variance = jax.numpy.split(encode(x), 2, axis=-1)
            sample("z", dist.Normal(loc, jax.numpy.exp(0.5 * log_variance)).to_event(1))

    svi = SVI(model, guide, Adam(1e-3), Trace_ELBO())
    num_whole = len(images) // task.batch_size

    @jax.jit
    def epoch_of(state: Any, key: Any) -> Any:
        order = random.permutation(key, len(images))
        whole, rest = order[: num_whole * task.batch_size], order[num_whole * task.batch_size :]
        state, losses = lax.scan(
            lambda state, index: svi.update(state, images[index]), state, whole.reshape(num_whole, task.batch_size)
        )
        if len(rest):
            state, _ = svi.update(state, images[rest])
        return state, losses.mean()

    evaluate = jax.jit(lambda state: svi.evaluate(state, test) / len(test))
    state = svi.init(random.PRNGKey(0), images[: task.batch_size])
    state, _ = jax.jit(svi.update)(state, images[: task.batch_size])
    jax.block_until_ready(state.optim_state)
    yield "step", None
    for epoch in range(task.epochs):
        state, _ = epoch_of(state, random.PRNGKey(epoch + 1))
        jax.block_until_ready(state.optim_state)
        yield "epoch", None
        if task.tests:
            yield "elbo", -float(evaluate(state))


def ours(compile: str) -> Callable[[Task], Events]:
    """A training of this package by the loop of `python -m pvae.train`: bytes in memory, SVI, metrics of each epoch."""

    def run(task: Task) -> Events:
        import pyro

        from pvae.config.config import Config
        from pvae.core.random_state import seeded
        from pvae.data.dataset import Dataset
        from pvae.training.setup import build_trainer
        from pvae.training.trainer import Session

        config = Config(
            hidden=(task.hidden,),
            latent_dim=task.latent_dim,
            posterior="normal-log-variance",
            elbo="trace",
            batch_size=task.batch_size,
            epochs=task.epochs,
            compile=compile,
        )
        device = torch.device(task.device)
        with seeded(0, device), pyro.get_param_store().scope():
            training = build_trainer(config, Dataset("benchmark", task.train, task.test), Session(device))
            next(training.engine.run(torch.arange(task.batch_size, device=device), [training.schedule(0)]))
            yield "step", None
            for _ in range(task.epochs):
                training.train_epoch()
                yield "epoch", None
                if task.tests:
                    yield "elbo", training.evaluate().elbo
                training.epoch += 1

    return run


NUMPYRO = "NumPyro, jit + scan"
SIDES: dict[str, Callable[[Task], Events]] = {
    "torch.distributions, trace": by_hand,
    LEAN: lean,
    "PyTorch example": pytorch_example,
    "plain Pyro, trace": plain_pyro,
    NUMPYRO: numpyro,
    "pvae trace": ours("auto"),
    "pvae trace, none": ours("none"),
    "pvae trace, graph": ours("graph"),
    "pvae trace, inductor": ours("inductor"),
}
