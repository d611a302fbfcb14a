"""`Observed`, independent values of which some may be missing."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Observed"]


class Observed(dist.Independent):
    """Independent values as one event, of which those that are NaN are not observed.

        log_prob(x) = sum over d with x_d observed of log p(x_d)

    That is the logarithm of the marginal density of the observed values, since the others integrate to 1. An ELBO or an
    importance-weighted bound made of it bounds log p(x observed).

    Args:
        base_distribution: of each value; 0 must be in its support.
        reinterpreted_batch_ndims: number of its batch dimensions that become the event.

    Reference:
        Mattei and Frellsen, arXiv:1812.02633, for values that are missing at random.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the observed values, of the batch shape, in nats."""
        is_missing = value.isnan()
        each = self.base_dist.log_prob(torch.where(is_missing, torch.zeros_like(value), value))
        return torch.where(is_missing, torch.zeros_like(each), each).flatten(-self.reinterpreted_batch_ndims).sum(-1)
