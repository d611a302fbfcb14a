"""z ~ N(m_y, 1), x = b_y + W z + noise, some values missing: log p of the observed ones and p(z | x, y) are known."""

from __future__ import annotations

import functools
import math

import pyro.distributions as dist
import torch
from torch import nn

from pvae.distributions.values import Observed
from pvae.vae import VAE

D, L, SCALE = 7, 2, 0.4


def with_missing(x, share=0.3, seed=1):
    """Leave at least one value of each datum."""
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    mask.flatten(1)[:, 0] = False
    return torch.where(mask, torch.full_like(x, math.nan), x)


class LinearGaussian:
    def __init__(self, count=30, num_labels=0):
        normal = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.takes_labels, self.w, self.b = num_labels > 0, normal(D, L), normal(max(1, num_labels), D)
        self.m = self.takes_labels * normal(len(self.b), L)  # 0 without labels
        self.y = torch.arange(count) % len(self.b)
        z = self.m[self.y] + normal(count, L)
        self.x = with_missing(self.b[self.y] + z @ self.w.T + SCALE * normal(count, D))

    def log_p(self):
        """log p of the observed values of each datum."""
        values = []
        for x, b in zip(self.x, (self.b + self.m @ self.w.T)[self.y]):
            seen = ~x.isnan()
            covariance = self.w[seen] @ self.w[seen].T + SCALE**2 * torch.eye(int(seen.sum()), dtype=torch.float64)
            values.append(torch.distributions.MultivariateNormal(b[seen], covariance).log_prob(x[seen]))
        return torch.stack(values)

    def posterior(self, x, y=0):
        """p(z | x observed, y): (B, L) and (B, L, L)."""
        seen = (~x.isnan()).double()
        precision = torch.eye(L, dtype=torch.float64) + (self.w.T * seen[:, None]) @ self.w / SCALE**2
        residual = torch.where(x.isnan(), torch.zeros_like(x), x - self.b[y] - self.m[y] @ self.w.T)
        covariance = torch.linalg.inv(precision)
        return self.m[y] + (covariance @ (residual @ self.w)[..., None]).squeeze(-1) / SCALE**2, covariance

    def vae(self, off=0.0):
        """The VAE whose q(z | x, y) is p(z | x, y), its mean moved away by `off`."""
        truth = self

        class Prior(nn.Module):
            takes_labels = truth.takes_labels

            def forward(self, y=0):
                return dist.Normal(truth.m[y], 1.0).to_event(1)

        class Posterior(nn.Module):
            takes_labels = truth.takes_labels

            def forward(self, x, y=0):
                loc, covariance = truth.posterior(x, y)
                return dist.MultivariateNormal(loc + off, covariance)

        class Likelihood(nn.Module):
            takes_labels = truth.takes_labels

            def forward(self, z, y=0):
                return Observed(dist.Normal(truth.b[y] + z @ truth.w.T, SCALE), 1)

        return VAE(Prior(), Posterior(), Likelihood())
