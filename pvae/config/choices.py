"""The options that suit a user's own data, chosen by their number, shape and values."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvae.config.config import TAKERS, Config, takers_text
from pvae.config.presets import SYSTEMS, get_system
from pvae.core.errors import InputError
from pvae.core.options import options_of
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.elbos.base import PerDatumELBO
from pvae.models.columns import KINDS, ColumnKind, columns_text
from pvae.models.networks import Network
from pvae.tables.column import Column
from pvae.tables.reading import Reading

_CHANNELS = (32, 64, 128, 256)
_WIDTHS = (400, 400)  # of an MLP
_LEAST_SIDE = 4  # pixels that the last convolution leaves of the shorter side
# Inputs of the encoder's last layer, at 128 x 128 pixels by four convolutions. Each step of Adam moves its outputs in
# proportion to their number, and at 65,536 the log scale of q runs away.
_MOST_INPUTS = 16_384
_STEPS, _EVALUATED = 8000, 100  # of a training of other data, and between two evaluations
_COMPONENTS, _ROWS_OF_COMPONENT = 16, 20  # of the prior; and training data for each
_WIDEST = 2000  # values of a datum, beyond which `models.start` would take minutes
_MANY_VALUES = 10_000  # of an image, whose rate is so few bits of each that a penalty of weight 1 costs little
_PIXELS = 5e8  # that a training processes, in five to ten minutes on two cores


def images_config(data: Any, **options: Any) -> Config:
    """Return the system "images" with the options that suit a data set.

    A Bernoulli, if `binarize` makes all pixels black or white, or if they are, which `--binarize threshold` leaves so.
    As many convolutions as leave at least 4 pixels of the shorter side of an image, at most 4 up to 128 x 128 pixels,
    or an MLP if that side has one pixel; batches of 64, of 128 from 20,000 training images on, and never more than a
    tenth of the images; and as many epochs, between 10 and 200, as visit 5e8 pixels. The weight of the image in the
    loss is 1 from 10,000 values on, and less for smaller images, of which the rate is a greater part of the ELBO. The
    ELBO is "trace" where the rate has no closed form.

    Args:
        data: the images, a `Dataset`, or what `pvae.read` takes.
        options: fields of `Config`, which are kept as given.

    Raises:
        InputError: an option is unknown or cannot be used.
    """
    data = read(data, **_of_reading(options))
    if not data.is_images:
        raise InputError(
            f"{data.name} holds no images, (N, C, H, W) bytes: leave the system out, or call values_config"
        )
    config, num_train, chosen = _common(get_system("images"), data, options)
    _, height, width = data.datum_shape
    network = str(config.network)
    if min(height, width) == 1 and "network" not in options:
        network = "mlp"
    kind = Network.members[network]
    chosen |= {
        "network": network,
        "hidden": _channels(height, width) if kind.is_conv else _WIDTHS,
        "epochs": min(200, max(10, round(_PIXELS / (num_train * height * width)))),
    }
    if options.get("binarize", "none") != "none":
        chosen["likelihood"] = "bernoulli"
    elif options.get("likelihood", "bernoulli") == "bernoulli" and data.is_binary:
        chosen |= {"likelihood": "bernoulli", "binarize": "threshold"}
    elif "image_weight" in config.likelihood_class.takes:
        chosen["image_weight"] = round(min(1.0, (math.prod(data.datum_shape) / _MANY_VALUES) ** 0.75), 2)
    while kind.has_batch_norm and num_train % chosen["batch_size"] == 1:
        chosen["batch_size"] += 1  # BatchNorm cannot normalise a last batch of one image
    return config.replace(**(chosen | options))


def values_config(data: Any, **options: Any) -> Config:
    """Return the system "values" with the options that suit data that are no images.

    The likelihood is a Bernoulli if all values are 0 or 1, a negative binomial if they are whole numbers from 0 on, and
    else a Normal whose location and scale depend on z, in the units of the data. There are as many latents as values of
    a datum, and 16 at most. The prior is a mixture of 16 Normals, or fewer if there are fewer than 20 training data for
    each, unless the ELBO needs its closed form. The training starts at a model that has a closed form, or nearly one
    (`initialization` "exact"), where there is one. It takes at most 8,000 steps, is evaluated after about each 100, and
    stops after 15 evaluations without a better bound on the validation data.

    The columns of a table have kinds, chosen by all rows: texts are a category; 0 and 1 are binary; a column is
    zero-inflated if its least value occurs in 5 % of the rows (in 10 rows, if a log-Normal describes the others better
    than a Normal) and 4 times as often as any other value, of which none occurs in a tenth of the others, unless half
    of all rows have the least one; whole numbers from 0 on are counts, if their mean is below 500, or 5 where none is
    0, and their variance at least 0.85 of it, since a negative binomial has no less than its mean; values above 0 whose
    logarithms are closer to a Normal are positive; all other columns are real. One with a limit is positive or real.
    The likelihood is "columns" if the kinds differ, if they are categories, positive or zero-inflated, or if `columns`
    is given.

    Args:
        data: a `Dataset`, or what `pvae.read` takes.
        options: fields of `Config`, which are kept as given.

    Raises:
        InputError: an option is unknown or cannot be used.
    """
    data = read(data, **_of_reading(options))
    splits = {name: options[name] for name in ("valid", "calibration", "condition") if name in options}
    data = split_for(get_system("values").replace(**splits), data)
    kinds = _kinds(data)
    if "=" in options.get("columns", ""):  # of single columns, which are now those of all
        options = {name: value for name, value in options.items() if name != "columns"} | {"likelihood": "columns"}
    chosen = dict[str, Any]()
    if "likelihood" not in options:
        chosen["likelihood"] = "columns"
        of_all = kinds[0].likelihood.name
        if of_all and len({*kinds}) == 1 and kinds[0].limit is None and not options.get("columns"):
            chosen["likelihood"] = of_all
        if of_all == chosen["likelihood"] == "bernoulli":
            chosen["binarize"] = "threshold"
    if (chosen | options)["likelihood"] == "columns" and (data.columns or options.get("columns")):
        chosen["columns"] = options.get("columns") or columns_text(kinds)
    system = get_system("values")
    chosen["latent_dim"] = max(1, min(system.latent_dim, data.train[0].numel()))
    num_train = data.num_train
    if data.train[0].numel() <= _WIDEST and system.replace(**(chosen | options)).has_exact_start:
        chosen["initialization"] = "exact"
        elbo = PerDatumELBO.members[options.get("elbo", "trace")]
        needs_normal = elbo.needs_closed_form or elbo.needs_independent_dimensions or options.get("free_bits")
        if options.get("prior", "standard-normal" if needs_normal else "mixture") == "mixture":
            chosen |= {"prior": "mixture", "components": max(1, min(_COMPONENTS, num_train // _ROWS_OF_COMPONENT))}
    config, num_train, common = _common(system.replace(**chosen), data, options)
    batch_size = options.get("batch_size", max(2, min(system.batch_size, num_train // 4)))
    num_steps = math.ceil(num_train / batch_size)  # in a pass
    chosen |= common | {"batch_size": batch_size, "missing": data.has_missing}
    chosen["passes"] = passes = options.get("passes", max(1, round(_EVALUATED / num_steps)))
    chosen["epochs"] = max(10, round(_STEPS / (passes * num_steps)))
    return config.replace(**(chosen | options))


def resolved(config: Config | None, data: Any, has_own_vae: bool) -> tuple[Config, Dataset]:
    """Return the configuration, by default one that suits the data, and the data with their splits."""
    if data is not None:
        options = {}
        if config is not None:
            options = reading_of(config)
        data = read(data, **options)
    if config is None and (data is None or has_own_vae):
        config = Config()
    elif config is None and data.is_images:
        config = images_config(data)
    elif config is None:
        config = values_config(data)
    if data is None:
        data = load_for(config)
    if not has_own_vae:
        _warn_of_unused(config)
    elif config.system in SYSTEMS:
        config = config.replace(system="own-vae", source="")
    return config, split_for(config, data)


def reading_of(config: Config) -> dict[str, Any]:
    """Return the options of `pvae.read` of a configuration."""
    return {name: getattr(config, name) for name in options_of(Reading)}


def load_for(config: Config, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set of a configuration, with its splits; the arguments are those of `pvae.read`."""
    data = read(config.dataset, data_dir=data_dir, offline=offline, **reading_of(config))
    return split_for(config, data)


def split_for(config: Config, data: Dataset) -> Dataset:
    """Return data with the splits of a configuration, and a table with the rules of its training rows."""
    return data.with_valid(config.valid, config.calibration, config.condition)


def _warn_of_unused(config: Config) -> None:
    """Warn of options that were changed, and that no chosen class takes."""
    system = SYSTEMS.get(config.system, Config())
    for name in TAKERS:
        if not config.uses(name) and getattr(config, name) != getattr(system, name):
            warnings.warn(f"{name} has no effect; with {takers_text(name)} it has one", stacklevel=4)


def _of_reading(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that say how data are read."""
    return {name: options[name] for name in options_of(Reading) if name in options}


def _common(system: Config, data: Dataset, options: dict[str, Any]) -> tuple[Config, int, dict[str, Any]]:
    """Return a system with the given options, the number of data to train on, and what is chosen for any data."""
    config = system.replace(**({"elbo": "enumerate"} if options.get("labels") else {}) | options)
    num_train = data.num_train - data.count_valid(config.valid)
    elbo = config.elbo if any(config.closed_forms) or config.labels else "trace"
    batch_size = max(2, min(128 if num_train >= 20_000 else 64, num_train // 10))
    return config, num_train, {"elbo": elbo, "batch_size": batch_size}


def _kinds(data: Dataset) -> list[ColumnKind]:
    """Return the kind of each column of a table; of other data one that is a likelihood by itself and may be theirs."""
    if data.columns:
        return [_kind(column, _values_of(data, place)) for place, column in enumerate(data.columns)]
    *alone, real = (name for name, likelihood in KINDS.items() if likelihood.name)
    return [ColumnKind(next((name for name in alone if _may_be_all(name, data)), real))]


def _values_of(data: Dataset, place: int) -> Tensor:
    """Return all values of a column."""
    return torch.cat([x[:, place] for x in data.splits.values()])


def _may_be_all(name: str, data: Dataset) -> bool:
    """Return whether all values that are not missing are in the domain of a kind."""
    return all(KINDS[name].in_domain(x[~x.isnan()].double()) for x in data.splits.values())


def _kind(column: Column, values: Tensor) -> ColumnKind:
    """Return the kind of a column of a table."""
    if column.categories:
        return ColumnKind(column.kind or "categorical", len(column.categories))
    if column.kind in KINDS or column.unit:
        return ColumnKind(column.kind or "real", limit=column.limit)
    return ColumnKind.of(values, column.limit)


def _channels(height: int, width: int) -> tuple[int, ...]:
    """Return the channels of the convolutions, each of which halves the image."""
    depth = int(math.log2(max(2, min(height, width) // _LEAST_SIDE)))
    channels = _CHANNELS[:depth]
    if (height >> len(channels)) * (width >> len(channels)) * channels[-1] > _MOST_INPUTS:
        channels += _CHANNELS[-1:] * (depth - len(channels))
    return channels
