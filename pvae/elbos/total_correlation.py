"""The ELBO whose rate is taken apart: mutual information, total correlation and the rate of each dimension."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.options import Option
from pvae.elbos.base import Beta, PerDatumELBO, refuse_dependent_dimensions
from pvae.elbos.sites import Draws

__all__ = ["TotalCorrelationELBO"]

_MI = "weight of the mutual information of datum and code, as a part of the rate"
_TC = "weight of the total correlation of the dimensions of the code"
_DIM = "weight of the rates of the dimensions of q(z) from their priors"


class TotalCorrelationELBO(
    PerDatumELBO, name="beta-tc", help="the ELBO whose total correlation has a weight of its own (beta-TCVAE)"
):
    """The ELBO with a weight for each part of its rate, over N training data n, q(z) = (1/N) sum_n q(z | n).

        loss = distortion + beta (mi_weight MI + tc_weight TC + dim_weight D)
        MI = log q(z | n) - log q(z),   TC = log q(z) - sum_l log q(z_l),   D = sum_l log q(z_l) - log p(z_l)
        log q(z) ~ log 1 / (N M) sum_m q(z | m),   over the M data of the batch; log q(z_l) likewise

    With equal weights it is `TraceELBO`, since MI + TC + D = log q(z | n) - log p(z). The estimate of log q(z) is
    biased, and low: of a batch that is the whole data set it is log N below log q(z), so that MI is too high and TC has
    L - 1 times log N too much. The gradients of these constants are zero. The reported terms are those of the ELBO.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        mi_weight: weight of the index-code mutual information MI.
        tc_weight: weight of the total correlation TC.
        dim_weight: weight of the dimension-wise rate D.
        num_data: N; 0 for the size M of the batch.

    Raises:
        InputError: (when used) there are several latent sites, or dimensions of q or p are not independent.

    Reference:
        Chen et al., arXiv:1802.04942, section 3, with its minibatch-weighted sampling.
    """

    needs_whole_batch = True

    def __init__(
        self,
        num_particles: int = 1,
        beta: Beta = 1.0,
        mi_weight: Annotated[float, Option(help=_MI)] = 1.0,
        tc_weight: Annotated[float, Option(help=_TC)] = 6.0,
        dim_weight: Annotated[float, Option(help=_DIM)] = 1.0,
        num_data: int = 0,
    ) -> None:
        super().__init__(num_particles, beta)
        self.mi_weight = mi_weight
        self.tc_weight = tc_weight
        self.dim_weight = dim_weight
        self.num_data = num_data

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor, beta: float | Tensor) -> Tensor:
        """Return the loss, a scalar, of the draws and their distortion, (B,)."""
        information, correlation, by_dimension = self.parts_of_rate(draws)
        weighted = self.mi_weight * information + self.tc_weight * correlation + self.dim_weight * by_dimension
        return distortion.mean() + beta * weighted.mean()

    def parts_of_rate(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Return MI, TC and D of each datum and draw, (B,) or (B, K), in nats; their sum is log q(z | n) - log p(z)."""
        latents = [*draws.latents]
        if len(latents) != 1:
            raise InputError(f"there are {len(latents)} latent sites, and this ELBO needs one: take TraceELBO")
        (latent,) = latents
        refuse_dependent_dimensions([latent.posterior, latent.prior])
        z = latent.z.movedim(-2, 0)  # (B, L) or (B, K, L)
        q = latent.posterior.base_dist  # type: ignore[attr-defined]  # of the batch, (M, L) or (K, M, L)
        p = latent.prior.base_dist  # type: ignore[attr-defined]
        pairs = q.log_prob(z.unsqueeze(-2))  # of z of each datum given each datum: (B, M, L) or (B, K, M, L)
        log_size = math.log(pairs.shape[-2] * (self.num_data or pairs.shape[-2]))
        log_q_given = q.log_prob(latent.z).movedim(-2, 0).sum(-1)
        log_q = pairs.sum(-1).logsumexp(-1) - log_size
        log_q_each = (pairs.logsumexp(-2) - log_size).sum(-1)
        log_p = p.log_prob(latent.z).movedim(-2, 0).sum(-1)
        return log_q_given - log_q, log_q - log_q_each, log_q_each - log_p
