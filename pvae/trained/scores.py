"""How likely given data are under a trained VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.records import markdown_of
from pvae.marginal.importance import importance_sample
from pvae.trained.elbo_terms import elbo_terms
from pvae.trained.normalised import bits_per_dimension
from pvae.vae import VAE

if TYPE_CHECKING:
    import pandas

__all__ = ["score_images", "to_text"]


@torch.no_grad()
def score_images(
    vae: VAE,
    batch: Batch,
    names: Sequence[str],
    num_particles: int = 200,
    on_images: Callable[[int], object] = lambda count: None,
) -> pandas.DataFrame:
    """Return the scores of data, a row for each in their order, in nats.

    The likelihood of a deep generative model is a poor test of whether an image is odd: models give some images of
    another kind higher likelihoods than the images that they were trained on. Of images of many pixels, nearly all of
    log p(x) is the distortion; the rate, which says how far a code is from the prior, can be the better sign.

    Args:
        vae: in eval mode.
        batch: N data, with their labels if the VAE takes labels.
        names: the name of each.
        num_particles: K, the draws of z for each image.
        on_images: called after each part with the number of data in it.

    Returns:
        The names as index "name", and the columns
        log_p: the estimate of log p(x) from K importance weights, in the mean a lower bound;
        stderr: its standard error from the draws of z, too small where the effective sample size is small;
        effective: effective sample size of the importance weights, between 1 and K;
        bits_per_dimension: of `log_p`, as in `normalised.bits_per_dimension`, if it has bits;
        elbo: the ELBO, from ten draws of z, with a closed-form rate where there is one;
        distortion: -E_q log p(x | z);
        rate: KL(q(z | x) || p(z));
        missing: the number of values that are missing, if there are some; the others are then of fewer values.

    Raises:
        InputError: the VAE has no density, as an autoencoder.

    Reference:
        Nalisnick et al., arXiv:1810.09136.
    """
    import pandas

    if not vae.has_density:
        raise InputError("an autoencoder has no likelihood to score data by: train with --posterior normal")
    sample = importance_sample(vae, batch, num_particles, on_images)
    terms = elbo_terms(vae, batch)
    bits = bits_per_dimension(vae, sample.log_p, batch.x)
    missing = batch.x.images.isnan().flatten(1).sum(1)
    columns = {
        "log_p": sample.log_p,
        "stderr": sample.stderr,
        "effective": sample.effective,
        **({} if bits is None else {"bits_per_dimension": bits}),
        **{name: terms[name] for name in ("elbo", "distortion", "rate")},
        **({"missing": missing} if missing.any() else {}),
    }
    values = {name: column.numpy() for name, column in columns.items()}
    return pandas.DataFrame(values, index=pandas.Index([*names], name="name", dtype=object))


def to_text(scores: pandas.DataFrame, beside: Sequence[str] = ()) -> str:
    """Return scores as a table in Markdown, with a text beside each."""
    forms = {"effective": "{:.1f}", "bits_per_dimension": "{:.3f}", "missing": "{}"}
    forms |= dict.fromkeys(("elbo", "distortion", "rate"), "{:.2f}")
    titles = {"effective": "effective sample", "bits_per_dimension": "bits per dimension", "elbo": "ELBO"}
    rows = []
    for name, score in zip(scores.index, scores.to_dict("records")):
        row = {"name": name, "log p(x)": f"{score.pop('log_p'):.2f} +- {score.pop('stderr'):.2f}"}
        rows.append(row | {titles.get(key, key): forms[key].format(value) for key, value in score.items()})
    return markdown_of(
        [row | {"values, the most surprising first": text} for row, text in zip(rows, beside)] if beside else rows
    )
