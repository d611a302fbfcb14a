"""How likely data are under a trained VAE: the parts of the ELBO, bits per dimension, and scores; means with errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.config.build import build_vae, preparation_of
from pvae.config.config import Config
from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.core.files import markdown_of
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.data.preparation import Pixels
from pvae.data.read import OtherData
from pvae.distributions.joint import Joint
from pvae.distributions.power_spherical import PowerSpherical
from pvae.marginal.chunks import data_at_once
from pvae.marginal.importance import importance_sample
from pvae.marginal.log_likelihood import Progress, hidden
from pvae.marginal.log_p import METHODS, LogP
from pvae.runs.run import Run
from pvae.tables.codec import log_density_beside, to_file
from pvae.tables.schema import EMPTY, DataRecord
from pvae.vae import VAE

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its standard error.

    Args:
        mean: the mean of N values, in their unit.
        stderr: its standard error; 0 of an exact value.
    """

    mean: float
    stderr: float

    def __str__(self) -> str:
        """Return mean and error, with two to six decimals: two significant digits of a small error."""
        if not math.isfinite(self.stderr):
            return f"{self.mean} +- {self.stderr}"
        digits = 2
        if self.stderr:
            digits = min(6, max(2, 1 - math.floor(math.log10(self.stderr))))
        return f"{self.mean:.{digits}f} +- {self.stderr:.{digits}f}"

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Return the mean of values (N,), N at least 2, and its standard error std / sqrt(N), in float64."""
        values = values.double()
        return cls(mean=values.mean().item(), stderr=values.std().item() / math.sqrt(len(values)))


LAYER_RATE = "rate of "  # and the name of a stochastic layer
_MORE_PARTICLES = 5000  # of a row of a table for which fewer cannot be trusted


@torch.no_grad()
def elbo_terms(vae: VAE, data: Data, num_draws: int = 10, seed: int | None = None) -> dict[str, Tensor]:
    """Return the ELBO of each datum and its parts, from draws of z.

        elbo = -distortion - rate,    distortion = -E_q log p(x | z),    rate = KL(q(z | x) || p(z))

    Terms without a closed form are left out, except the rate, which is then a mean over the draws.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.
        num_draws: of z for each datum.
        seed: of the draws for each datum, which is then computed alone: its terms do not depend on the others.

    Returns:
        Nats, (N,) each: elbo, distortion, rate, cross_entropy and, in closed form, posterior_entropy and
        posterior_mean_loss. With several stochastic layers also rate of z1, rate of z2 and so on.
    """
    batch = Batch.of(data)
    size = data_at_once(vae, batch, num_draws)
    if seed is not None:
        size = 1
    parts = []
    for part in batch.split(size):
        with seeded(seed, part.x.device):
            parts.append(_terms(vae.given(part.y), part.x, num_draws))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _terms(vae: VAE, x: Tensor, num_draws: int) -> dict[str, Tensor]:
    """Return the terms of the ELBO of each datum, (B,) each, without terms that have no closed form for this VAE."""
    posterior: Any = vae.posterior(x)
    prior: Any = vae.prior()
    z = posterior.sample((num_draws,))
    distortion = -vae.log_likelihood(x, z).mean(0)
    terms = {"distortion": distortion, "cross_entropy": -prior.log_prob(z).mean(0)}
    try:
        terms["posterior_entropy"] = posterior.entropy()
        terms["rate"] = _exact_rate(posterior, prior)
        terms["posterior_mean_loss"] = posterior_mean_loss(vae, x, posterior)
    except NotImplementedError:
        terms["rate"] = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
    if isinstance(posterior, Joint):
        layers = zip(posterior.names, posterior.conditionals(z), prior.conditionals(z))
        terms |= {LAYER_RATE + name: (q.log_prob(one) - p.log_prob(one)).mean(0) for name, (one, q), (_, p) in layers}
    return {**terms, "elbo": -distortion - terms["rate"]}


def posterior_mean_loss(vae: VAE, x: Tensor, posterior: Any = None) -> Tensor:
    """Return the loss at the mean of q(z | x) instead of a draw from it: (B,) nats; it is not a bound.

        -log p(x | E_q[z]) + KL(q(z | x) || p(z))

    This is the test loss that post 002 prints, since its network returns the mean in eval mode. It ignores the
    spread of q, and is therefore usually below the negative ELBO. On a sphere it is the loss at the mode of q(z | x),
    because the mean is not on the sphere.

    Args:
        vae: the three distributions.
        x: data (B, *D).
        posterior: q(z | x), if it was computed before.

    Raises:
        NotImplementedError: the pair (q, p) has no closed form in torch.distributions.
    """
    if posterior is None:
        posterior = vae.posterior(x)
    rate = _exact_rate(posterior, vae.prior())
    if isinstance(posterior, PowerSpherical):
        return -vae.log_likelihood(x, posterior.loc) + rate
    return -vae.log_likelihood(x, posterior.mean) + rate


def _exact_rate(posterior: Any, prior: Any) -> Tensor:
    """Return the rate of each datum in closed form, KL(q(z | x) || p(z)), (B,) nats."""
    return kl_divergence(posterior, prior.expand(posterior.batch_shape))  # torch's for Bernoulli needs one shape


def normalised(
    config: Config,
    vae: VAE,
    data: Dataset | DataRecord,
    x: Tensor,
    y: Tensor | None = None,
    rows: Tensor | None = None,
    split: str = "test",
    has_own_vae: bool = False,
) -> tuple[VAE, Batch, str]:
    """Return a VAE whose likelihood is a probability or a density, data in its domain, and the kind of their pixels.

    In place of a VAE with a pseudo-Bernoulli of grey pixels, one of binary pixels with the same networks is returned.

    Args:
        config: configuration of the VAE.
        vae: in eval mode.
        data: which it was trained on: their shape and their labels.
        x: data: images as bytes, or other data.
        y: their labels, if the VAE takes labels.
        rows: the data to take, int64 (M,); all by default. A pixel is binarized by its place among all.
        split: of the data, "train", "valid" or "test", each of which is binarized by draws of its own.
        has_own_vae: the VAE was built in Python.

    Raises:
        InputError: the VAE was built in Python, and its likelihood is a pseudo-likelihood.
    """
    is_pseudo = vae.is_pseudo
    if is_pseudo:
        weights = vae.state_dict()
        config = config.replace(binarize="static")
        with torch.random.fork_rng(devices=[]):
            vae = build_vae(config, data.datum_shape, len(data.label_names)).eval()
        try:
            vae.load_state_dict(weights)
        except RuntimeError:  # a VAE that was built in Python
            raise InputError(
                "p(x | z) is a pseudo-likelihood, and log p(x) needs a likelihood: give one to the VAE"
            ) from None
    preparation = preparation_of(config, has_own_vae)
    pixels = preparation.x_of(x, split, rows)
    if y is not None and rows is not None and len(y) > 1:
        y = y[rows]
    kind = ""
    if is_pseudo:
        kind = "binarized: each drawn once, with its grey value as probability"
    elif pixels.is_bytes:
        kind = preparation.kind
    return vae, Batch(pixels, y), kind


def with_likelihood(
    run: Run, x: Tensor, y: Tensor | None = None, rows: Tensor | None = None, split: str = "test"
) -> tuple[VAE, Batch, str]:
    """Return what `normalised` returns for the VAE of a run."""
    return normalised(run.config, run.vae(), run.data, x, y, rows, split, run.has_own_vae)


def bits_per_dimension(vae: VAE, log_p: Tensor, x: Pixels) -> Tensor | None:
    """Return a log-likelihood, or a bound on it, in bits for each of the D values of a datum that are not missing.

        -log_p / (D log 2) + log2(levels)

    levels is 1 for a probability. A density of images is multiplied by the distance 1 / levels between two 8-bit
    levels: this is not the probability of the bytes, and it is wrong for scales near that distance. A density of other
    data depends on their units, which the columns of a table do not share, and has no bits.

    Args:
        vae: whose likelihood says whether it is a density, and how many levels there are in an interval of length 1.
        log_p: nats, (N,).
        x: the N data.

    Returns:
        Bits, float64 (N,), lower is better; or None for a density of data that are no images.
    """
    parts = getattr(vae.p_x, "parts", [vae.p_x])  # of columns
    if not x.is_bytes and any(getattr(part, "is_density", True) for part in parts):
        return None
    levels: float = 1.0
    if x.is_bytes:
        levels = getattr(vae.p_x, "levels_per_unit", 1.0)
    num_values = (~x.images.isnan()).flatten(1).sum(1).clamp(min=1)
    return (-log_p.double() / num_values + math.log(levels)) / math.log(2)


def bits_of(vae: VAE, log_p: Tensor, x: Pixels) -> Estimate | None:
    """Return the mean of `bits_per_dimension` over data, with its error."""
    bits = bits_per_dimension(vae, log_p, x)
    if bits is None:
        return None
    return Estimate.of(bits)


@torch.no_grad()
def score_images(
    vae: VAE,
    batch: Batch,
    names: Sequence[str],
    num_particles: int = 200,
    progress: Progress = hidden,
) -> pandas.DataFrame:
    """Return the scores of data, a row for each in their order, in nats.

    The likelihood of a deep generative model is a poor test of whether an image is odd: models give some images of
    another kind higher likelihoods than the images that they were trained on. Of images of many pixels, nearly all of
    log p(x) is the distortion; the rate, which says how far a code is from the prior, can be the better sign.

    Args:
        vae: in eval mode.
        batch: N data, with their labels if the VAE takes labels.
        names: the name of each.
        num_particles: K, the draws of z for each datum; of data that are no images, those that K cannot be trusted
            for get 5,000.
        progress: returns the bar that shows the progress.

    Returns:
        The names as index "name", and the columns
        log_p: the estimate of log p(x) from K importance weights, in the mean a lower bound;
        stderr: its standard error from the draws of z, too small where the effective sample size is small;
        method: the name of the method of `log_p`, as `pvae evaluate` says it;
        is_trusted: whether its diagnostics trust the estimate and its error;
        effective: effective sample size of the importance weights, between 1 and the number of draws;
        bits_per_dimension: of `log_p`, as in `bits_per_dimension`, if it has bits;
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
    with progress("scoring", len(batch)) as bar:
        sample = importance_sample(vae, batch, num_particles, bar.update)
    left = (~sample.is_trusted).nonzero()[:, 0]
    if len(left) and num_particles < _MORE_PARTICLES and not batch.x.is_bytes:
        with progress(f"{_MORE_PARTICLES:,} draws of z", len(left)) as bar:
            again = importance_sample(vae, batch.rows(left), _MORE_PARTICLES, bar.update)
        sample = LogP(*(old.index_copy(0, left, new) for old, new in zip(sample, again)))
    terms = elbo_terms(vae, batch)
    bits = bits_per_dimension(vae, sample.log_p, batch.x)
    missing = batch.x.images.isnan().flatten(1).sum(1)
    columns: dict[str, Any] = {
        "log_p": sample.log_p,
        "stderr": sample.stderr,
        "method": [METHODS[number] for number in sample.method],
        "is_trusted": sample.is_trusted,
        "effective": sample.effective,
    }
    if bits is not None:
        columns["bits_per_dimension"] = bits
    columns |= {name: terms[name] for name in ("elbo", "distortion", "rate")}
    if missing.any():
        columns["missing"] = missing
    return pandas.DataFrame(columns, index=pandas.Index([*names], name="name", dtype=object))


def score_rows(run: Run, given: OtherData, rows: Tensor, split: str, *how: Any) -> tuple[pandas.DataFrame, str]:
    """Return `score_images` of rows of data for a run, in the columns of its file, and the kind of their pixels.

    Args:
        run: the run.
        given: the data.
        rows: which are scored.
        split: of the data, as for `normalised`.
        how: the number of particles and `progress` of `score_images`.
    """
    vae, batch, kind = with_likelihood(run, given.x, given.y, rows, split)
    scores = score_images(vae, batch, [given.names[row] for row in rows], *how)
    if run.data.steps:
        x = given.x[rows]
        more = log_density_beside(run.data, x.double(), batch.y).numpy()
        scores[["log_p", "elbo"]] = scores[["log_p", "elbo"]].add(more, axis=0)
        scores["distortion"] -= more
        if "missing" in scores:  # not a field that a rule fills in
            scores["missing"] = to_file(run.data, x, batch.y).isnan().sum(1).numpy()
    return scores, kind


def score_data(run: Run, given: OtherData, *how: Any) -> tuple[pandas.DataFrame, str]:
    """Return the scores of data in their order, as `score_rows` does, and the kind of their pixels.

    Log p(x) is -inf of rows that are outside, NaN of those that are empty, and the column "reason" says why.
    """
    scores, kind = score_rows(run, given, given.inside, "test", *how)
    if not given.outside:
        return scores, kind
    import pandas

    reasons = [*given.outside.values()]
    log_p = [math.nan if reason == EMPTY else -math.inf for reason in reasons]
    names = pandas.Index([given.names[row] for row in given.outside], name="name")
    others = pandas.DataFrame({"log_p": log_p, "is_trusted": True, "reason": reasons}, names)
    together = pandas.concat([scores.assign(reason=""), others])
    return together.iloc[np.argsort([*given.inside, *given.outside])], kind


_SHOWN = {  # columns of scores, with their titles and forms
    "effective": ("effective sample", "{:.1f}"),
    "bits_per_dimension": ("bits per dimension", "{:.3f}"),
    "elbo": ("ELBO", "{:.2f}"),
    "distortion": ("distortion", "{:.2f}"),
    "rate": ("rate", "{:.2f}"),
    "missing": ("missing", "{}"),
    "p_value": ("p-value", "{:.2g}"),
    "odd_by": ("odd by", "{}"),
}


def to_text(scores: pandas.DataFrame, beside: Sequence[str] = ()) -> str:
    """Return scores as a table in Markdown, with a text beside each."""
    stderr = scores["stderr"]
    log_p = scores["log_p"].map("{:.2f}".format) + stderr.map(" +- {:.2f}".format).where(stderr.notna(), "")
    log_p += np.where(scores["is_trusted"], "", " (not reliable)")
    shown = scores[[]].assign(**{"log p(x)": log_p})
    for name, (title, form) in _SHOWN.items():
        if name in scores:
            shown[title] = scores[name].map(form.format).where(scores[name].notna(), "")
    if beside:
        shown["values, the most surprising first"] = [*beside][: len(shown)]
    return markdown_of(shown.reset_index().to_dict("records"))
