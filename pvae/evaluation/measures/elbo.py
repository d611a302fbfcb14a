"""`ElboParts`: the ELBO and its parts, and the latent dimensions that are active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.distributions.joint import Joint
from pvae.evaluation.context import Context, Measure
from pvae.marginal.chunks import data_at_once
from pvae.models.labels import found_labels
from pvae.trained.latent_space import mean_of
from pvae.trained.scores import LAYER_RATE, Estimate, bits_of


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
    elbo: Estimate
    bits_per_dimension: Estimate | None
    distortion: Estimate
    rate: Estimate
    layer_rates: tuple[Estimate, ...]
    posterior_entropy: Estimate | None = None
    cross_entropy: Estimate
    posterior_mean_loss: Estimate | None = None
    active_units: tuple[int, ...]
    latent_dims: tuple[int, ...]
    accuracy: Estimate | None = None

    words = {
        "elbo": ("ELBO", "of data as it was trained on"),
        "bits_per_dimension": ("  bits per dimension", ""),
        "distortion": ("  distortion", "-E_q log p(x | z), the reconstruction error"),
        "rate": ("  rate", "KL(q(z | x) || p(z)), in closed form"),
        "layer_rates": ("    of each layer", ""),
        "posterior_entropy": ("    posterior entropy", "H(q(z | x))"),
        "cross_entropy": ("    cross entropy", "H(q(z | x), p(z))"),
        "posterior_mean_loss": ("posterior-mean loss", "not a bound"),
        "active_units": ("active units", "means with a variance above 0.01"),
        "latent_dims": ("  of latent dimensions", ""),
        "accuracy": ("accuracy", "share of the labels that q(y | x) finds"),
    }

    @classmethod
    def of(cls, context: Context) -> ElboParts:
        """Return the ELBO of the test data as the VAE was trained on them."""
        vae = context.vae
        terms = dict(context.terms)
        layer_rates = tuple(Estimate.of(terms.pop(name)) for name in [*terms] if name.startswith(LAYER_RATE))
        active = active_units(torch.cat([mean_of(part) for part in context.posteriors]))
        first = context.posteriors[0]
        sizes = [len(active)]
        if isinstance(first, Joint):
            sizes = [*first.sizes]
        bits = None
        if not vae.is_pseudo:
            bits = bits_of(vae, terms["elbo"], context.seen.x)
        return cls(
            **{name: Estimate.of(values) for name, values in terms.items()},
            is_pseudo=vae.is_pseudo,
            layer_rates=layer_rates,
            bits_per_dimension=bits,
            active_units=tuple(int(layer.sum()) for layer in active.split(sizes)),
            latent_dims=tuple(sizes),
            accuracy=_accuracy(context),
        )

    def lines(self) -> Iterator[str]:
        """Yield its lines; a pseudo-ELBO, and a rate without a closed form, are named."""
        words = dict(self.words)
        if self.is_pseudo:
            words["elbo"] = ("pseudo-ELBO", "of the grey pixels that it was trained on")
        if self.posterior_mean_loss is None:  # as without a closed form of the rate
            words["rate"] = ("  rate", "KL(q(z | x) || p(z)), from ten draws of z")
        yield from self.lines_of(words)


def _accuracy(context: Context) -> Estimate | None:
    """Return the share of the known labels that q(y | x) finds; None if no label is a latent."""
    labels = context.data.test_labels
    if not context.run.config.labels or labels is None:
        return None
    if context.rows is not None:
        labels = labels[context.rows]
    parts = context.seen.split(data_at_once(context.vae, context.seen))
    found = found_labels(context.vae.q_z, (part.x for part in parts), labels)
    if found is None:
        return None
    return Estimate.of(found)


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
