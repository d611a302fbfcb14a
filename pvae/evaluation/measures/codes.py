"""`CodesUsed`: how the codes of a codebook are used, and what a prior that is fitted to them saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.core.batch import Batch
from pvae.distributions.discrete import CodeVector
from pvae.evaluation.context import Context, Measure
from pvae.trained.codes import run_batch
from pvae.trained.latent_space import posteriors
from pvae.trained.scores import Estimate, bits_of
from pvae.vae import VAE

_COLLAPSED = 0.5  # share of the codes that no training datum has, above which it is said


@dataclass(frozen=True, kw_only=True)
class CodesUsed(Measure):
    """The codes of a `QuantizedPosterior`, and a prior that is fitted to them, in nats per datum.

        rate = N log K,    cross-entropy = - sum_n log f_n(c_n),    f_n: frequencies of the training data's codes n

    The codes of the test data, written by a coder with f, have a length of the cross-entropy. The frequencies have 1/2
    added to each count, so that a code that was not seen can be written.

    Args:
        num_variables: N, the number of codes of a datum.
        num_codes: K, the size of the codebook.
        uniform_rate: N log K, the rate.
        cross_entropy: of the test data.
        saved: what the fitted prior saves: rate less cross-entropy.
        fitted_bits: bits per dimension of distortion and cross-entropy; None of a pseudo-ELBO.
        perplexity: exp of the entropy of f_n, the number of codes that are used in effect, a mean over n.
        unused: the share of the K codes that no training datum has at any of its N places.
        is_fixed: whether the codebook is one of levels.
    """

    title = "codes"

    num_variables: int
    num_codes: int
    uniform_rate: float
    cross_entropy: Estimate
    saved: Estimate
    fitted_bits: Estimate | None
    perplexity: float
    unused: float
    is_fixed: bool = False

    words = {
        "num_variables": ("codes of a datum", ""),
        "num_codes": ("  each one of", ""),
        "uniform_rate": ("  rate", "N log K: all codes are equally probable by the prior"),
        "cross_entropy": ("  cross-entropy", "the rate by a prior fitted to training codes"),
        "saved": ("  saved by it", "nats per datum"),
        "fitted_bits": ("  bits per dimension", "by it"),
        "perplexity": ("perplexity", "codes that are used in effect, a mean over n"),
        "unused": ("share of unused codes", "that no training datum has at any place"),
    }

    @classmethod
    def of(cls, context: Context) -> CodesUsed | None:
        """Return that of the test data."""
        prior: Any = context.vae.given(next(context.seen.split(1)).y).prior()
        if not isinstance(prior, CodeVector):
            return None
        train = code_indices(context.vae, run_batch(context.run, "train"))
        log_prior, used = log_prior_of(train, len(prior.codebook))
        test = torch.cat([one.indices for one in context.posteriors])
        cross_entropy = -log_prior.gather(1, test.T).sum(0)
        elbo = -context.terms["distortion"] - cross_entropy.to(context.terms["distortion"])
        rate = prior.num_variables * math.log(len(prior.codebook))
        fitted_bits = None
        if not context.vae.is_pseudo:
            fitted_bits = bits_of(context.vae, elbo, context.seen.x)
        return cls(
            num_variables=prior.num_variables,
            num_codes=len(prior.codebook),
            uniform_rate=rate,
            cross_entropy=Estimate.of(cross_entropy),
            saved=Estimate.of(rate - cross_entropy),
            fitted_bits=fitted_bits,
            perplexity=(-(log_prior.exp() * log_prior).sum(1)).exp().mean().item(),
            unused=1 - used.any(0).double().mean().item(),
            is_fixed=not prior.codebook.requires_grad,
        )

    def warnings(self) -> Iterator[str]:
        """Yield what a collapse of the codebook is."""
        if self.unused <= _COLLAPSED:
            return
        advice = "try more --epochs, fewer --categories, another --lr"
        if not self.is_fixed:
            advice += ", or --posterior fsq, whose codes are fixed"
        yield f"warning: {self.unused:.0%} of the codes are never used: the codebook has collapsed; {advice}"


@torch.no_grad()
def code_indices(vae: VAE, batch: Batch) -> Tensor:
    """Return the indices of the codes of data, int64 (B, N)."""
    return torch.cat([one.indices for one in posteriors(vae, batch)])


def log_prior_of(indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Return log f, float64 (N, K), and which codes occur, (N, K), of indices (M, N)."""
    counts = torch.zeros(indices.shape[1], num_codes, dtype=torch.float64)
    counts.scatter_add_(1, indices.T, torch.ones((), dtype=torch.float64).expand(indices.T.shape))
    return ((counts + 0.5) / (counts.sum(1, keepdim=True) + num_codes / 2)).log(), counts > 0
