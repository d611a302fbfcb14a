"""A small configuration for each row of the families, data that suit it, and the sum of a density over its support."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pvae.config.build import preparation_of
from pvae.config.config import Config
from pvae.config.families import LIKELIHOODS, POSTERIORS, PRIORS, Family
from pvae.distributions.discretized_logistic import eight_bit_level

ROWS: dict[str, Family] = {
    f"{kind} {name}": row
    for kind, rows in (("posterior", POSTERIORS), ("prior", PRIORS), ("likelihood", LIKELIHOODS))
    for name, row in rows.items()
}
COLUMNS = "real,count,binary,categorical:3,ordinal:4,positive,zero-inflated"


def config_with(row: Family, **options: Any) -> Config:
    """A small system that has the family, and what that needs beside it."""
    needed: dict[str, Any] = {"hidden": (8,), "latent_dim": 3, "flow_hidden": (8,), "components": 4}
    if getattr(row, "is_on_sphere", False):
        needed |= {"posterior": "power-spherical", "prior": "sphere"}
    if getattr(row, "support", "") == "bits":
        needed |= {"posterior": "bernoulli", "prior": "bits", "elbo": "arms", "particles": 4}
    if getattr(row, "support", "") == "categories":
        needed |= {"posterior": "categorical", "prior": "categories", "categories": 3, "latent_dim": 6}
        needed |= {"elbo": "disarm-categories", "particles": 4}
    if getattr(row, "support", "") == "codes":
        needed |= {"posterior": "vq", "prior": "uniform-codes", "categories": 5}
    needed[type(row).__name__.lower()] = row.name
    likelihood = LIKELIHOODS[needed.get("likelihood", "bernoulli")]
    needed |= {"scale": 0.3} if likelihood.has_scale else {}
    needed |= {"network": "linear"} if likelihood.is_linear else {}
    needed |= {"columns": COLUMNS} if likelihood.is_of_columns else {}
    return Config(**{**needed, **options})


def shape_for(config: Config) -> tuple[int, ...]:
    """The shape of a datum of `data_for`."""
    if config.likelihood_family.is_of_columns:
        return (len(config.column_kinds),)
    return (1, 8, 6) if config.likelihood_family.is_of_images else (7,)


def data_for(config: Config, count: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """Data that the likelihood takes: bytes of images, counts, values, or rows of columns."""
    family, shape = config.likelihood_family, shape or shape_for(config)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, *shape, generator=generator)
    if family.is_of_columns:
        sizes = torch.tensor([kind.num_categories or 2 for kind in config.column_kinds])
        return (draws * sizes).floor() + torch.tensor([kind.name == "positive" for kind in config.column_kinds])
    if family.is_of_images:
        return (255 * draws).to(torch.uint8)
    return (9 * draws).floor() if family.is_count else 100 * draws if family.is_real else draws


def x_for(config: Config, count: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """The x of these data, as a VAE of the configuration takes it."""
    preparation = preparation_of(config)
    return preparation.x(preparation.prepared(data_for(config, count, shape), "test"))


def points_of(support: Any) -> tuple[Tensor, Tensor]:
    """Points of the support of one value and their weights, by which a sum over them is a sum or an integral."""
    if support is constraints.boolean or support is constraints.nonnegative_integer:
        values = torch.arange(2 if support is constraints.boolean else 20_000, dtype=torch.float64)
        return values, torch.ones_like(values)
    if support is eight_bit_level:
        return torch.arange(256, dtype=torch.float64) / 255, torch.ones(256, dtype=torch.float64)
    if isinstance(support, constraints.interval):  # denser toward the ends, where a density may be infinite
        t = torch.linspace(-30, 30, 400_001, dtype=torch.float64)
        values = support.lower_bound + (support.upper_bound - support.lower_bound) * t.sigmoid()
        slope = (support.upper_bound - support.lower_bound) * t.sigmoid() * (-t).sigmoid()
        return values, slope * (t[1] - t[0])
    assert support is constraints.real, f"give points of {support}"
    t = torch.linspace(-25, 25, 400_001, dtype=torch.float64)
    return t.sinh(), t.cosh() * (t[1] - t[0])
