"""`Floor`: what a model without a latent reaches on held-out data, which a VAE must exceed to have learned anything."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pvae.core.protocol import takes_labels
from pvae.data.preparation import Pixels
from pvae.distributions.columns import Columns
from pvae.evaluation.measures.measure import Measure

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["Floor", "beside_no_latent", "floor", "log_prob_of_each"]

_LEAST = 0.01  # nats per datum that count as more than none
_FITTED = 2**18  # values of data by which log p is fitted
_COUNTED = 2**23  # values of images whose levels are counted
_STEP = 5  # between the levels of a pixel by which log p is fitted
_ITERATIONS = 60
_MOST_LEVELED = 2**14  # values of an image whose levels are counted
_PRIOR_SCALE = 5.0


@dataclass(frozen=True, kw_only=True)
class Floor(Measure):
    """The ELBO of a model without a latent, in nats per datum; None where it is not known, see `floor`.

    Args:
        elbo: by the best distribution of each value alone.
        verdict: what it means if the VAE's ELBO is no greater; "" if it is.
        is_pseudo: whether it is a pseudo-ELBO.
    """

    elbo: float
    is_pseudo: bool
    verdict: str

    @classmethod
    def of(cls, context: Context) -> Floor | None:
        """Return that of the test data as the VAE was trained on them."""
        reached = context.floor
        if reached is None:
            return None
        verdict = beside_no_latent(context.terms["elbo"].mean().item(), reached.sum().item())
        return cls(elbo=reached.sum().item(), is_pseudo=context.vae.is_pseudo, verdict=verdict)

    def lines(self) -> Iterator[str]:
        """Yield one line."""
        note = f"test {'pseudo-' * self.is_pseudo}ELBO, by the best distribution of each value alone"
        yield f"{'without a latent':26}{self.elbo:<22.2f}  {note}"

    def warnings(self) -> Iterator[str]:
        """Yield that nothing was learned."""
        if self.verdict:
            yield f"warning: {self.verdict}"


def beside_no_latent(elbo: float, reached: float) -> str:
    """Return what it means if an ELBO is no greater than what a model without a latent reaches, "" if it is greater."""
    if elbo - reached >= _LEAST:
        return ""
    more = f", which describes these data better by {reached - elbo:.2f} nats" if reached - elbo > _LEAST else ""
    return f"no more than a model without a latent{more}: train longer, or these data may need none"


def floor(p_x: nn.Module, train: Pixels, held_out: Pixels) -> Tensor | None:
    """Return the held-out log-likelihood of each value of a datum by the best likelihood that does not depend on z.

        mean over held-out x of log p(x_d; o, t),    o, t = argmax of sum over training x of log p(x; o, t)
                                                             - (|o|^2 + |t|^2) / 50

    o stands in place of the decoder's output, and t are the other parameters of the likelihood, such as scales. The
    last term keeps the probability of a value that never occurs above 0: a binary pixel that is 0 in all of n images is
    1 with the probability p = -log(p / (1 - p)) / (25 n), which is 7.8e-6 for 60,000 images. Of many data evenly spaced
    ones are taken: about 2^18 values, or 2^23 pixels, whose levels are counted. Of n data the sum is too low by about
    half the number of o and t over n.

    Args:
        p_x: the likelihood of a VAE.
        train: x of the training data; images that are drawn anew at each visit are grey.
        held_out: x of other data.

    Returns:
        Nats, of the shape of a datum, whose sum is to be compared with an ELBO; None for a module of your own, for a
        likelihood that takes labels or depends on the whole batch, for images of more than 2^14 values, whose levels
        take gigabytes, and where the search for o and t fails. It draws no random numbers.
    """
    found: Any = p_x
    if takes_labels(found) or getattr(found, "needs_batch", True):
        return None
    if train.is_bytes and math.prod(found.datum_shape) > _MOST_LEVELED:
        return None
    found = copy.deepcopy(found, {id(found.decoder): nn.Identity()}).double().eval()
    with torch.enable_grad():
        x, weight = next(_weighted(train, _STEP))
        output = torch.zeros(found.output_shape, dtype=torch.float64, device=x.device, requires_grad=True)
        free = [output, *found.parameters()]

        def loss() -> Tensor:
            for one in free:
                one.grad = None
            prior = sum((one / _PRIOR_SCALE).square().sum() / 2 for one in free)
            value = (prior - (weight * log_prob_of_each(found.pixels(output), x)).sum()) / len(train)
            value.backward()
            return value

        try:
            for part in ([output], free):  # the output first: around a wrong location a scale would grow
                torch.optim.LBFGS(part, max_iter=_ITERATIONS, line_search_fn="strong_wolfe").step(loss)
        except ValueError:  # a parameter became NaN
            return None
    with torch.no_grad():
        parts = [(weight * log_prob_of_each(found.pixels(output), x)).sum(0) for x, weight in _weighted(held_out)]
        return torch.stack(parts).sum(0) / len(held_out)


def log_prob_of_each(p_x: TorchDistribution, x: Tensor) -> Tensor:
    """Return the log-probability of each value of x, (..., *D) nats, 0 where it is missing.

    Args:
        p_x: `Columns`, or independent values, or the distribution of one value.
        x: data, (..., *D).
    """
    if isinstance(p_x, Columns):
        return p_x.log_prob_of_each(x)
    p: Any = p_x.base_dist if isinstance(p_x, Independent) else p_x
    is_missing = x.isnan()
    return torch.where(is_missing, 0.0, p.log_prob(torch.where(is_missing, 0.0, x)))


def _weighted(data: Pixels, step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield data (M, *D) in float64 with weights, (M, *D) or (), whose sum over all parts is the number of data.

    Images are one part, of their levels, each weighted by the number of images that have it at a pixel; with a step
    the levels are rounded to its multiples.

    Args:
        data: N data.
        step: divides 255; other than 0 it also asks for one part, of evenly spaced data.
    """
    images, preparation = data.images, data.preparation
    every = math.ceil(images.numel() / (_COUNTED if data.is_bytes else _FITTED if step else math.inf)) or 1
    images = images[::every]
    weight = torch.tensor(len(data) / len(images), dtype=torch.float64, device=images.device)
    if not data.is_bytes:
        yield from ((x.double(), weight) for x in (images.split(1000) if not step else [images]))
        return
    size = images[0].numel()
    places = 256 * torch.arange(size, device=images.device)
    counts = torch.zeros(256 * size, dtype=torch.int64, device=images.device)
    for part in images.split(1000):
        counts += torch.bincount((part.flatten(1).long() + places).flatten(), minlength=256 * size)
    weights = counts.view(size, 256).T.double()
    levels = torch.arange(256, device=images.device)
    if preparation.binarize != "none":  # a byte is 255 times the probability of 1
        share = levels.double() / 255
        levels, weights = levels[[0, 255]], torch.stack([(1 - share) @ weights, share @ weights])
    elif step:
        near = (levels / step).round().long()
        weights = weights.new_zeros(255 // step + 1, size).index_add_(0, near, weights)
        levels = levels[::step]
    x = preparation.x(levels.to(torch.uint8)).double()
    shape = (len(levels), *images.shape[1:])
    yield x.view(-1, *[1] * (images.dim() - 1)).expand(shape), weight * weights.view(shape)
