"""A small configuration for each family, data that suit it, and the sum of a density over its support."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pvae.config.build import preparation_of
from pvae.config.config import FAMILIES, Config
from pvae.core.options import arguments_of
from pvae.distributions.pixels import eight_bit_level
from pvae.models.features import CountUnits

ROWS: dict[str, Any] = {
    f"{kind} {name}": row
    for kind in ("posterior", "prior", "likelihood")
    for name, row in FAMILIES[kind].members.items()
}
COLUMNS = "real,count,binary,categorical:3,ordinal:4,positive,zero-inflated"


def config_with(row: Any, **options: Any) -> Config:
    """A small system that has the family, and what that needs beside it."""
    needed: dict[str, Any] = {"hidden": (8,), "latent_dim": 3, "flow_hidden": (8,), "components": 4}
    kind = next(kind for kind, family in FAMILIES.items() if issubclass(row, family))
    if getattr(row, "support", "") == "points on the unit sphere":
        needed |= {"posterior": "power-spherical", "prior": "sphere"}
    if getattr(row, "support", "") == "bits":
        needed |= {"posterior": "bernoulli", "prior": "bits", "elbo": "arms", "particles": 4}
    if getattr(row, "support", "") == "categories":
        needed |= {"posterior": "categorical", "prior": "categories", "categories": 3, "latent_dim": 6}
        needed |= {"elbo": "disarm-categories", "particles": 4}
    if getattr(row, "support", "") == "codes":
        needed |= {"posterior": "vq", "prior": "uniform-codes", "categories": 5}
    needed[kind] = row.name
    likelihood = FAMILIES["likelihood"].members[needed.get("likelihood", "bernoulli")]
    if "scale" in arguments_of(likelihood):
        needed["scale"] = 0.3
    if likelihood.is_linear:
        needed["network"] = "linear"
    if "columns" in arguments_of(likelihood):
        needed["columns"] = COLUMNS
    return Config(**{**needed, **options})


def shape_for(config: Config) -> tuple[int, ...]:
    """The shape of a datum of `data_for`."""
    if config.column_kinds:
        return (len(config.column_kinds),)
    return (1, 8, 6) if config.likelihood_class.is_of_images else (7,)


def data_for(config: Config, count: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """Data that the likelihood takes: bytes of images, counts, values, or rows of columns."""
    family, shape = config.likelihood_class, shape or shape_for(config)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, *shape, generator=generator)
    if config.column_kinds:
        sizes = torch.tensor([kind.num_categories or 2 for kind in config.column_kinds])
        return (draws * sizes).floor() + torch.tensor([kind.name == "positive" for kind in config.column_kinds])
    if family.is_of_images:
        return (255 * draws).to(torch.uint8)
    units = family.units_seen
    return (9 * draws).floor() if units is CountUnits else 100 * draws if units else draws


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
