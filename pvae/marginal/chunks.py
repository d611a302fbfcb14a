"""How many data are encoded and decoded at once, so that the memory is bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily

from pvae.core.batch import Batch, Data
from pvae.core.random_state import seeded
from pvae.distributions.joint import Joint
from pvae.vae import VAE

# The largest number of values in a tensor. It bounds the memory for any number of data and draws and for any network.
# Larger tensors are slower too.
CHUNK_VALUES = 2**19


def at_once(width: int) -> int:
    """Return how many rows of `width` values in their largest tensor are computed at once."""
    return max(1, CHUNK_VALUES // width)


def data_at_once(vae: VAE, data: Data, num_particles: int = 1) -> int:
    """Return how many data, with K draws of z each, keep every layer's output within `CHUNK_VALUES` values."""
    return max(1, min(1000, CHUNK_VALUES // widest(vae, data)) // num_particles)


def latents_at_once(vae: VAE, latents: Batch) -> int:
    """Return how many latents z (N, L), with their labels, keep every output of the decoder within that limit."""
    with _output_sizes(vae, latents.x.device) as sizes:
        sizes.append(vae.likelihood(*next(latents.split(1))).event_shape.numel())
    return max(1, min(1000, CHUNK_VALUES // max(sizes)))


def draw_for_each(p: Any, num_samples: int, num_data: int) -> Tensor:
    """Return draws (S, B, L) of a distribution of z, whose batch shape is () or (B,)."""
    if p.batch_shape:
        return p.sample((num_samples,))
    return p.sample((num_samples, num_data))


def widest(vae: VAE, data: Data) -> int:
    """Return the number of values in the largest output of any layer, or of a mixture, for one datum.

    The layers are those of the encoder, the decoder, and the networks of priors, flows and hierarchies at a draw of z.
    """
    first = next(Batch.of(data).split(1))
    x = first.x
    vae = vae.given(first.y)
    prior = vae.prior()  # before outputs are counted: a VampPrior encodes all its pseudo-inputs
    with _output_sizes(vae, x.device) as sizes:
        z = vae.posterior(x).sample()
        with contextlib.suppress(ValueError):  # of a prior whose support does not include z
            prior.log_prob(z)
        vae.likelihood(z)
    mixture = prior
    if isinstance(prior, Joint):
        mixture = prior.first
    if isinstance(mixture, MixtureSameFamily):
        sizes.append(2 * mixture.component_distribution.batch_shape.numel())  # a log-density by each, in float64
    return max([x.numel(), *sizes])


@contextlib.contextmanager
def _output_sizes(vae: VAE, device: torch.device) -> Iterator[list[int]]:
    """Yield a list that gets the number of values of each layer's output, while the random state is kept."""
    sizes: list[int] = []

    def note(_module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in vae.modules()]
    try:
        with torch.no_grad(), seeded(0, device):
            yield sizes
    finally:
        for hook in hooks:
            hook.remove()
