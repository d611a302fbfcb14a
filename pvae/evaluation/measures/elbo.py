"""`ElboParts`: the ELBO and its parts, and the latent dimensions that are active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pvae.distributions.joint import Joint
from pvae.evaluation.measures.measure import Measure, lines_of
from pvae.marginal.chunks import data_at_once
from pvae.models.labels import found_labels
from pvae.trained.latent_space import mean_of
from pvae.trained.scores import LAYER_RATE, Estimate, bits_of

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["ElboParts", "active_units"]


@dataclass(frozen=True, kw_only=True)
class ElboParts(Measure):
    """The ELBO and its parts, in nats per datum: means over test images, with ten draws of z for each image.

    Args:
        is_pseudo: whether the ELBO is a pseudo-ELBO, because the VAE was trained on grey pixels.
        elbo: the ELBO or pseudo-ELBO.
        bits_per_dimension: of the ELBO, as in `normalised.bits_per_dimension`; None also of a pseudo-ELBO.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)); without a closed form, its mean over the draws of z.
        layer_rates: the rate of each stochastic layer z1, z2, ..., means over the draws of z; empty for one layer.
        posterior_entropy: H(q(z | x)), exact; None if it has no closed form.
        cross_entropy: H(q(z | x), p(z)); distortion, posterior entropy and cross entropy are post 004's three parts.
        posterior_mean_loss: the loss at the mean of q(z | x), which is not a bound; None without a closed-form KL.
        active_units: for each stochastic layer, the number of latent dimensions whose mean varies over images.
        latent_dims: for each stochastic layer, the number of latent dimensions.
        accuracy: the share of the known labels that are the likeliest by q(y | x); None without `Config.labels`.
    """

    is_pseudo: bool
    elbo: Estimate = field(metadata={"ELBO": "of data as it was trained on"})
    bits_per_dimension: Estimate | None = field(metadata={"  bits per dimension": ""})
    distortion: Estimate = field(metadata={"  distortion": "-E_q log p(x | z), the reconstruction error"})
    rate: Estimate = field(metadata={"  rate": "KL(q(z | x) || p(z)), in closed form"})
    layer_rates: tuple[Estimate, ...] = field(metadata={"    of each layer": ""})
    posterior_entropy: Estimate | None = field(metadata={"    posterior entropy": "H(q(z | x))"}, default=None)
    cross_entropy: Estimate = field(metadata={"    cross entropy": "H(q(z | x), p(z))"})
    posterior_mean_loss: Estimate | None = field(metadata={"posterior-mean loss": "not a bound"}, default=None)
    active_units: tuple[int, ...] = field(metadata={"active units": "means with a variance above 0.01"})
    latent_dims: tuple[int, ...] = field(metadata={"  of latent dimensions": ""})
    accuracy: Estimate | None = field(metadata={"accuracy": "share of the labels that q(y | x) finds"}, default=None)

    @classmethod
    def of(cls, context: Context) -> ElboParts:
        """Return the ELBO of the test data as the VAE was trained on them."""
        vae, batch, terms = context.vae, context.seen, dict(context.terms)
        layer_rates = tuple(Estimate.of(terms.pop(name)) for name in [*terms] if name.startswith(LAYER_RATE))
        parts = context.posteriors
        active, first = active_units(torch.cat([mean_of(part) for part in parts])), parts[0]
        layers = active.split(first.sizes if isinstance(first, Joint) else [len(active)])
        return cls(
            **{name: Estimate.of(values) for name, values in terms.items()},
            is_pseudo=vae.is_pseudo,
            layer_rates=layer_rates,
            bits_per_dimension=None if vae.is_pseudo else bits_of(vae, terms["elbo"], batch.x),
            active_units=tuple(int(layer.sum()) for layer in layers),
            latent_dims=tuple(map(len, layers)),
            accuracy=_accuracy(context),
        )

    def lines(self) -> Iterator[str]:
        """Yield its lines; a pseudo-ELBO, and a rate without a closed form, are named."""
        special = {}
        if self.is_pseudo:
            special["elbo"] = "pseudo-ELBO", "of the grey pixels that it was trained on"
        if self.posterior_mean_loss is None:  # as without a closed form of the rate
            special["rate"] = "  rate", "KL(q(z | x) || p(z)), from ten draws of z"
        yield from lines_of(self, **special)


def _accuracy(context: Context) -> Estimate | None:
    """Return the share of the known labels that q(y | x) finds; None if no label is a latent."""
    labels = context.data.test_labels if context.run.config.labels else None
    labels = labels if labels is None or context.rows is None else labels[context.rows]
    parts = context.seen.split(data_at_once(context.vae, context.seen))
    found = found_labels(context.vae.q_z, (part.x for part in parts), labels)
    return None if found is None else Estimate.of(found)


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Return which latent dimensions are active, that is, whose mean E_{q(z | x)}[z_l] varies over data.

        Var_x ( E_{q(z | x)} [z_l] )  >  threshold

    It is the variance of the means, because draws of z vary in unused dimensions too, with the variance of the prior.

    Args:
        means: of q(z | x) of N data, (N, L), as `latent_space.encode` returns them.
        threshold: 0.01, as published.

    Returns:
        bool (L,).

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, on the representation of the latent space.
    """
    return means.var(0) > threshold
