"""`forecast`: how many latents a VAE with a Normal likelihood of fixed scale will use, said before it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.data.preparation import Pixels

__all__ = ["Forecast", "forecast"]

_WIDE = 1000  # values of a datum, beyond which the Gram matrix of a few data takes the place of the covariance
_FEW = 2000  # data in that Gram matrix
_AT_ONCE = 1000  # data, or values of a datum, that are converted to float64 at a time


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a linear VAE learns of the data; `print` shows it as one sentence.

    Args:
        scale: s, the fixed scale of p(x | z).
        beta: the weight of the rate.
        latent_dim: L, the number of latent dimensions.
        largest_std: the square root of the largest eigenvalue of the covariance of x: the largest standard deviation of
            x along any direction.
        used: the number of latents that are used, at most L.
        rate: KL(q(z | x) || p(z)) in nats per datum, the sum over these latents.
    """

    scale: float
    beta: float
    latent_dim: int
    largest_std: float
    used: int
    rate: float

    def __str__(self) -> str:
        """Return one sentence; where no latent is used, it says which option to change."""
        if self.used:
            return f"a linear VAE uses {self.used} of {self.latent_dim} latents, with a rate of {self.rate:.3g} nats"
        given, factor = "the scale of p(x | z)", math.sqrt(self.beta)
        limit = self.largest_std / factor
        advice = f"; give a --scale below {limit:.3g}"
        if factor != 1:
            given = f"sqrt(beta) times {given}"
            advice += f", or a --beta below {(self.largest_std / self.scale) ** 2:.3g}"
        return (
            f"{given} is {factor * self.scale:.3g}, and the largest standard deviation of the data along any direction "
            f"is {self.largest_std:.3g}: no latent will be used{advice * (limit > 1e-6 * self.scale)}"
        )


@torch.no_grad()
def forecast(x: Tensor | Pixels, scale: float, latent_dim: int, beta: float = 1.0) -> Forecast:
    """Forecast which latents are used, for a Normal likelihood of fixed scale s and a weight beta of the rate.

        latent i is used  <=>  l_i > beta s^2,        its rate = 1/2 log(l_i / (beta s^2))

    l_1 >= l_2 >= ... are the eigenvalues of the covariance of x. This is exact for the optimum of a linear VAE. For
    networks it is an estimate. Whether all latents collapse was right for 35 of 35 MLPs, on five data sets at scales
    from 0.1 to 19.8, and for 35 of 35 at 0.5 to 2 times the largest standard deviation of the data. It may be wrong
    just above that: of 20 tight clusters, an MLP learned to use a latent at 1.05 times. The rate is too low where a
    network learns more than a linear VAE, as at small scales.

    Up to a constant, the beta-ELBO of scale s is beta times the ELBO of scale sqrt(beta) s, so its optimum is that of
    probabilistic principal components with the noise beta s^2. With W = U (diag(l) - beta s^2 I)^(1/2), q(z | x) is
    Normal of independent dimensions, of variance beta s^2 / l_i and of a mean whose variance over x is
    1 - beta s^2 / l_i. The two sum to 1, so the logarithm alone is left of the rate.

    Args:
        x: the training data, (N, *D). Of data of more than 1,000 values, at most 2,000 evenly spaced ones are taken:
            the eigenvalues are then those of their Gram matrix.
        scale: s, in the unit of x.
        latent_dim: L, the number of latent dimensions.
        beta: the weight of the rate.

    Returns:
        The rate is in nats per datum. The covariance is divided by N, as the ELBO of N data is.

    Raises:
        InputError: there are no data, or a value is missing or infinite.

    Reference:
        Lucas et al., arXiv:1911.02469, theorem 1 and the analysis of the stationary points before it (beta = 1).
    """
    eigenvalues = _eigenvalues(x)[:latent_dim]
    ratios = eigenvalues / (beta * scale**2)
    used = ratios[ratios > 1]
    return Forecast(
        scale=scale,
        beta=beta,
        latent_dim=latent_dim,
        largest_std=math.sqrt(eigenvalues[0].item()),
        used=len(used),
        rate=used.log().sum().item() / 2,
    )


def _eigenvalues(x: Tensor | Pixels) -> Tensor:
    """Return the eigenvalues of the covariance in falling order, float64, at most as many as x has values."""
    shift = next(iter(x.split(_AT_ONCE))).flatten(1).double().mean(0)  # near the mean, so that no digits cancel
    if len(shift) > _WIDE:
        few = torch.cat([*x[:: math.ceil(len(x) / _FEW) or 1].split(_AT_ONCE)]).flatten(1)
        parts = (one.double() - one.double().mean(0) for one in few.split(_AT_ONCE, 1))
        covariance = sum((one @ one.T for one in parts), shift.new_zeros(())) / len(few)
    else:
        total, outer = torch.zeros_like(shift), torch.zeros_like(torch.outer(shift, shift))
        for part in x.split(_AT_ONCE):
            moved = part.flatten(1).double() - shift
            total, outer = total + moved.sum(0), outer + moved.T @ moved
        covariance = outer / len(x) - torch.outer(total, total) / len(x) ** 2
    if not (len(x) and covariance.isfinite().all()):
        raise InputError("there are no data to forecast from, or a value of them is missing or infinite")
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
