"""What the page of a table holds: columns, the distribution of each given z, and the rows of the test data."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pvae.config.families import LIKELIHOODS
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.schema import Column
from pvae.explore.networks import Tensors, map_of, networks_of, notes_of
from pvae.models.features import ColumnFeatures, Units, WithMask
from pvae.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ColumnsLikelihood,
    DiagonalNormalLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    PositiveLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from pvae.runs.run import Run
from pvae.trained.latent_space import encode

_MOST_COLUMNS = 200
_RANGE = (0.01, 0.99)  # quantiles of the rows, between which a bar lies


def check_table(run: Run) -> None:
    """Check that a run on a table can be shown as a page.

    Raises:
        InputError: its VAE is given labels or has several layers of latents, there are more than 200 columns, or the
            page does not compute p(x | z).
    """
    config = run.config
    count = len(run.data.columns)
    likelihood = f"--likelihood {config.likelihood}"
    reason = ""
    if config.condition:
        reason = "--condition, and the page of a table shows VAEs without labels: train one without it"
    elif config.upper_latent_dims:
        reason = "--upper-latent-dims, and the page of a table shows one layer: train one without it"
    elif config.is_pseudo:
        reason = f"{likelihood} of values between 0 and 1: train with --likelihood normal-diagonal"
    elif not config.likelihood_family.is_on_table_page:
        computed = ", ".join(one.name for one in LIKELIHOODS.values() if one.is_on_table_page)
        reason = f"{likelihood}, and the page of a table computes {computed}: train with one of these"
    elif count > _MOST_COLUMNS:
        reason = f"{count} columns, and the page shows at most {_MOST_COLUMNS}: leave some out with --ignore"
    if reason:
        raise InputError(f"{run.path} has {reason}")


def table_content(run: Run, data: Dataset, rows: Tensor, tensors: Tensors) -> dict[str, Any]:
    """Return what the page of a table holds as JSON.

    Args:
        run: on a table, as `check_table` takes it.
        data: whose test rows the page shows.
        rows: which of them, int64 (M,).
        tensors: to which tensors are added.
    """
    vae: Any = run.vae()
    batch = Batch(run.preparation.x_of(data.test, rows=rows))
    (x,) = batch.x.split(len(rows))
    features = x
    for layer in (one for one in vae.q_z.modules() if isinstance(one, Units | WithMask)):
        features = layer(features)
    networks = networks_of(run.config, vae, tensors)
    notes = notes_of(vae, networks["posterior"], networks["prior"])
    if any(one.date_format for one in run.data.columns):
        notes.append("Means of dates, and the ends of their bars, are written as year-month-day.")
    return {
        "notes": notes,
        "takes_out": run.config.missing and networks["posterior"] is not None,
        "shape": [features.shape[1], 1, 1],
        **networks,
        **map_of(run, data, encode(vae, batch), rows, tensors),
        "columns": _columns(run, vae, x),
        "features": tensors.add(features),
        "x": tensors.add(x, "f8"),
        "texts": [[c.text(value, is_given=True) for c, value in zip(run.data.columns, row)] for row in x.tolist()],
        "rows": [data.test_names[i] for i in rows.tolist()],
    }


def _columns(run: Run, vae: Any, x: Tensor) -> list[dict[str, Any]]:
    """Return the columns of rows x for table.js."""
    p_x = vae.p_x
    size = x.shape[1]
    parts = [(p_x, range(size))]
    if isinstance(p_x, ColumnsLikelihood):
        parts = [(part, places.tolist()) for part, places in zip(p_x.parts, p_x.order.split(p_x.sizes))]
    inputs: list[list[int]] = [[]] * size
    if run.config.missing:
        inputs = _inputs(vae, size)
    found = dict[int, dict[str, Any]]()
    first = 0
    for part, places in parts:
        if type(part) is CategoricalLikelihood:  # the categories of a column together
            outputs = torch.arange(len(places) * part.num_categories).view(-1, part.num_categories)
        else:
            outputs = torch.arange(len(places) * getattr(part, "outputs_each", 1)).view(-1, len(places)).T
        for i, d in enumerate(places):
            column = run.data.columns[d]
            shown = {"name": column.name, "inputs": inputs[d], "outputs": (first + outputs[i]).tolist()}
            shown |= _distribution(part, i, column)
            if "levels" not in shown:
                shown |= _bar(x[:, d].double(), shown["kind"] == "positive", column)
            found[d] = shown
        first += outputs.numel()
    return [found[d] for d in range(size)]


def _bar(values: Tensor, is_log: bool, column: Column) -> dict[str, Any]:
    """Return the ends of the bar of a column of numbers, and how table.js writes them: a unit with three digits."""
    if is_log:
        values = values.log()
    seen = values[~values.isnan()]
    low = high = 0.0
    if len(seen):
        low, high = torch.quantile(seen, torch.tensor(_RANGE).double()).tolist()
    if high <= low:
        high = low + 1
    unit = high - low
    if is_log:
        low = math.exp(low)
        high = math.exp(high)
        unit = min(high - low, math.sqrt(low * high))
    date = 0  # the length of 2020-03-01T12:30:00
    if column.date_format:
        lengths = {"%S": 19, "%H": 16, "%I": 16, "": 10}
        date = next(length for code, length in lengths.items() if code in column.date_format)
    return {
        "is_log": is_log,
        "low": low,
        "high": high,
        "decimals": min(max(3 - math.ceil(math.log10(unit)), 0), 20),
        "date": date,
        "origin": column.origin,
        "suffix": column.suffix,
        "point": column.point,
    }


def _distribution(part: Any, place: int, column: Column) -> dict[str, Any]:
    """Return the kind in `COLUMNS` of table.js, and the parameters, of the column at a place of a likelihood."""
    match part:
        case DiagonalNormalLikelihood():
            units = part.units
            numbers = {"loc": units.loc, "scale": units.scale, "log_scale": part.log_scale, "step": units.step}
            name = "positive" if isinstance(part, PositiveLikelihood) else "real"
            if isinstance(part, ZeroInflatedLikelihood):
                p, name = part.pixels(torch.zeros(part.output_shape)), "zero-inflated"
                numbers |= {"atom": p.atom, "log_odds": p.logits}
            return {"kind": name, **{key: one[place].item() for key, one in numbers.items()}}
        case StudentTLikelihood():
            p = part.pixels(torch.zeros(part.datum_shape))
            numbers = {"loc": p.mean, "unit": p.scale, "scale": p.base.scale * p.scale, "df": p.base.df}
            found = {name: one[place].item() for name, one in numbers.items()}
            sd = p.variance[place].sqrt().item()
            return {"kind": "student-t", "sd": sd if math.isfinite(sd) else None, **found}
        case PoissonLikelihood():
            p = part.pixels(torch.zeros(part.datum_shape))
            unit, shift = part.units.unit_and_shift()
            theta = getattr(p.base, "total_count", torch.full(part.datum_shape, math.inf))[place].item()
            numbers = {"unit": unit, "shift": shift, "slope": part.units.slope}
            found = {name: one[place].item() for name, one in numbers.items()}
            return {"kind": "count", "theta": theta if math.isfinite(theta) else None, **found}
        case OrdinalLikelihood():
            kind = {"kind": "ordinal", "cuts": part.cutpoints[place].tolist()}
        case CategoricalLikelihood():
            kind = {"kind": "categorical"}
        case BernoulliLikelihood():
            kind = {"kind": "binary"}
        case _:
            raise InputError(f"the page cannot compute a likelihood {type(part).__name__}")
    return {
        **kind,
        "levels": [column.text(float(code), is_given=True) for code in range(getattr(part, "num_categories", 2))],
    }


def _inputs(vae: Any, size: int) -> list[list[int]]:
    """Return which features of an encoder are 0 where a column is missing: of its value, and of the mask."""
    features = next(one for one in vae.q_z.modules() if isinstance(one, ColumnFeatures | WithMask))
    if isinstance(features, WithMask):
        return [[d, d + size] for d in range(size)]
    inputs = [list[int]() for _ in range(size)]
    count = itertools.count()
    for d in features.order.tolist():
        inputs[d] += itertools.islice(count, features.kinds[d].num_categories or 1)
    for d in features.atoms:  # whether it is the least value
        inputs[d].append(next(count))
    for one in inputs:
        one.append(next(count))
    return inputs
