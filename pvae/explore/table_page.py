"""What the page of a table holds: columns, the distribution of each given z, and the rows of the test data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.schema import Column
from pvae.explore.networks import Tensors, map_of, networks_of, notes_of
from pvae.models.features import Units, WithMask
from pvae.models.likelihoods import Likelihood
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
    elif not config.likelihood_class.is_on_table_page:
        computed = ", ".join(Likelihood.names_where("is_on_table_page"))
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
    features = _features(vae, x)
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


def _features(vae: Any, x: Tensor) -> Tensor:
    """Return what the first layer of the encoder is given of rows x."""
    for layer in vae.q_z.modules():
        if isinstance(layer, Units | WithMask):
            x = layer(x)
    return x


def _inputs(vae: Any, x: Tensor, place: int) -> list[int]:
    """Return which features of rows x change, to 0, where the value at a place is missing."""
    without = x.clone()
    without[:, place] = math.nan
    return (_features(vae, x) != _features(vae, without)).any(0).nonzero().flatten().tolist()


def _columns(run: Run, vae: Any, x: Tensor) -> list[dict[str, Any]]:
    """Return the columns of rows x for table.js."""
    found = []
    for place, column in enumerate(run.data.columns):
        shown = {"name": column.name, "inputs": [], **vae.p_x.table_page(place)}
        if run.config.missing:
            shown["inputs"] = _inputs(vae, x, place)
        num_levels = shown.pop("num_levels", 0)
        if num_levels:
            shown["levels"] = [column.text(float(code), is_given=True) for code in range(num_levels)]
        else:
            shown |= _bar(x[:, place].double(), shown["kind"] == "positive", column)
        found.append(shown)
    return found


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
