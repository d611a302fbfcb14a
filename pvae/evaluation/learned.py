"""What a run has learned: its ELBO beside simple models, the latents that it uses, how like the rows its draws are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pvae.data.batch import Batch
from pvae.data.preparation import Pixels
from pvae.evaluation.baselines import Baselines, compare_with, simple_models
from pvae.evaluation.collapse import LatentsUsed, collapse_text, latents_used
from pvae.evaluation.floor import floor
from pvae.evaluation.samples import SampleQuality, sample_quality
from pvae.runs.run import Run
from pvae.trained.codes import examples, run_batch
from pvae.trained.elbo_terms import elbo_terms
from pvae.trained.latent_space import sample

__all__ = ["baselines_of", "floor_of", "said_of_collapse", "said_of_latents", "sample_quality_of", "what_was_learned"]

_MOST_DRAWN = 10_000  # rows that are drawn from the VAE
_FEW = 1000  # test data of which the rate of each latent is computed
_NAMED = 8  # latents whose rate is printed


def floor_of(run: Run, x: Pixels) -> Tensor | None:
    """Return what a model without a latent reaches on test data, for each value of a datum, as `floor` says."""
    if run.config.labels:  # whose bound is of labels too
        return None
    train = run.preparation.prepared(run.dataset().train, "train", is_redrawn=True)
    return floor(run.vae().p_x, Pixels(train, run.preparation), x)


def baselines_of(run: Run, batch: Batch) -> Baselines | None:
    """Return what simple models reach on test data, beside their ELBO; None of images or given labels."""
    if run.data.is_images or run.config.takes_labels:
        return None
    elbo = elbo_terms(run.vae(), batch)["elbo"]
    data, (held_out,) = run.dataset(), batch.x.split(len(batch))
    train, valid = (run.preparation.prepared(data.splits.get(name, data.train), name) for name in ("train", "valid"))
    return compare_with(simple_models(run.vae(), train, valid, held_out), elbo)


def sample_quality_of(run: Run) -> SampleQuality | None:
    """Return how like the test rows of a table draws from the VAE are, as many as there are training rows.

    None of other data than tables, and of a VAE given labels.
    """
    columns, data = run.data.columns, run.dataset()
    if not columns or run.config.takes_labels:
        return None
    with run.seeded():
        drawn = sample(run.vae(), min(len(data.train), _MOST_DRAWN), draws=True).double()
    for place, one in enumerate(columns):
        drawn[:, place] = drawn[:, place].cpu().apply_(one.rounded)
    kinds = run.config.column_kinds or [None] * len(columns)
    is_bits = run.config.likelihood_family.is_of_logits
    are_codes = [is_bits or bool(one.categories) or str(kind) == "binary" for one, kind in zip(columns, kinds)]
    names = [one.name for one in columns]
    return sample_quality(drawn, data.test.double(), data.train.double(), names, are_codes)


def said_of_latents(latents: LatentsUsed) -> str:
    """Return how many latents are used, and the largest rates, in words."""
    if latents.used is None:
        return f"latents: {latents.num_latents}"
    rates = ", ".join(f"{one:.2f}" for one in sorted(latents.rates, reverse=True)[:_NAMED])
    more = ", ..." * (latents.num_latents > _NAMED)
    return f"latents used: {latents.used} of {latents.num_latents}, with rates of {rates}{more} nats"


def said_of_collapse(run: Run, baselines: Baselines | None = None) -> str:
    """Return what posterior collapse is, what it costs beside a simple model, and what to try."""
    cost: dict[str, Any] = {}
    if baselines is not None:
        name, _, gain = min(baselines.models, key=lambda one: one[2].mean)
        cost = {"cost": -gain.mean, "baseline": name}
    has_fixed_scale = run.config.likelihood_family.has_fixed_scale and not run.has_own_vae
    return collapse_text(beta=run.config.beta, has_fixed_scale=has_fixed_scale, **cost)


def what_was_learned(run: Run) -> Iterator[str]:
    """Yield lines that say, by the test data, what a finished training has learned; none of a VAE of your own."""
    if run.has_own_vae:
        return
    test, vae = run.test_metrics(), run.vae()
    if test is None or test.elbo is None or not vae.has_density:
        return
    batch = run_batch(run, "test")
    with run.seeded():
        latents = latents_used(vae, examples(run, min(_FEW, len(batch))), test.rate)
        baselines = baselines_of(run, batch)
    alone = floor_of(run, batch.x)
    reached = [f"without a latent {alone.sum().item():.2f}"] if alone is not None else []
    if baselines is not None:
        reached += [f"{name} {log_p.mean:.2f}" for name, log_p, _ in baselines.models]
    if reached:
        yield f"{test}; {'; '.join(reached)}"
    if latents.is_collapsed:
        yield f"warning: {said_of_collapse(run, baselines)}"
        return
    if baselines is not None:
        yield f"learned: {baselines.verdict}"
    elif alone is not None:
        yield f"learned: {test.elbo - alone.sum().item():.2f} nats more than without a latent"
    yield said_of_latents(latents)
