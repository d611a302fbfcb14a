"""How likely given data are under a trained VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from pvae.core.errors import InputError
from pvae.core.records import markdown_of
from pvae.data.batch import Batch
from pvae.trained.elbo_terms import elbo_terms
from pvae.trained.log_likelihood import importance_sample
from pvae.trained.normalised import bits_per_dimension
from pvae.vae import VAE

__all__ = ["Score", "score_images", "to_text"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely a datum is, in nats.

    Args:
        name: name of the datum.
        log_p: the estimate of log p(x) from K importance weights, in the mean a lower bound.
        stderr: standard error of `log_p` from the draws of z; too small where the effective sample size is small.
        effective: effective sample size of the importance weights, between 1 and K.
        bits_per_dimension: of `log_p`, as in `normalised.bits_per_dimension`.
        elbo: the ELBO, from ten draws of z, with a closed-form rate where there is one.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)).
    """

    name: str
    log_p: float
    stderr: float
    effective: float
    bits_per_dimension: float
    elbo: float
    distortion: float
    rate: float


@torch.no_grad()
def score_images(
    vae: VAE,
    batch: Batch,
    names: Sequence[str],
    num_particles: int = 200,
    on_images: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """Return a score for each datum, the least likely first.

    The likelihood of a deep generative model is a poor test of whether an image is odd: models give some images of
    another kind higher likelihoods than the images that they were trained on. Of images of many pixels, nearly all of
    log p(x) is the distortion; the rate, which says how far a code is from the prior, can be the better sign.

    Args:
        vae: in eval mode.
        batch: N data, with their labels if the VAE takes labels.
        names: the name of each.
        num_particles: K, the draws of z for each image.
        on_images: called after each part with the number of data in it.

    Raises:
        InputError: the VAE has no density, as an autoencoder.

    Reference:
        Nalisnick et al., arXiv:1810.09136.
    """
    if not vae.has_density:
        raise InputError("an autoencoder has no likelihood to score images by: train with --posterior normal")
    sample = importance_sample(vae, batch, num_particles, on_images)
    terms = elbo_terms(vae, batch)
    columns = {
        "log_p": sample.log_p,
        "stderr": sample.stderr,
        "effective": sample.effective,
        "bits_per_dimension": bits_per_dimension(vae, sample.log_p, batch.x),
        **{name: terms[name] for name in ("elbo", "distortion", "rate")},
    }
    rows = zip(names, zip(*(column.tolist() for column in columns.values())))
    scores = [Score(name=name, **dict(zip(columns, row))) for name, row in rows]
    return sorted(scores, key=lambda score: score.log_p)


def to_text(scores: Iterable[Score]) -> str:
    """Return the scores as a table."""
    return markdown_of(
        [
            {
                "name": score.name,
                "log p(x)": f"{score.log_p:.2f} +- {score.stderr:.2f}",
                "effective sample": f"{score.effective:.1f}",
                "bits per dimension": f"{score.bits_per_dimension:.3f}",
                "ELBO": f"{score.elbo:.2f}",
                "distortion": f"{score.distortion:.2f}",
                "rate": f"{score.rate:.2f}",
            }
            for score in scores
        ]
    )
