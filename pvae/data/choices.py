"""The options that suit a user's own images, chosen from their number and shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pvae.config.columns import ColumnKind, columns_text
from pvae.config.config import OPTIONS, Config
from pvae.config.presets import as_option, get_system
from pvae.core.errors import InputError, listed, one_line
from pvae.data.dataset import Dataset

__all__ = ["describe_choices", "images_config", "values_config"]

_CHANNELS = (32, 64, 128, 256)
_WIDTHS = (400, 400)  # of an MLP
_LEAST_SIDE = 4  # pixels that the last convolution leaves of the shorter side
# Inputs of the encoder's last layer, at 128 x 128 pixels by four convolutions. Each step of Adam moves its outputs in
# proportion to their number, and at 65,536 the log scale of q runs away.
_MOST_INPUTS = 16_384
_MOST_LINES = 20  # columns of a table that are described
_STEPS = 10_000  # of a training of other data
_PIXELS = 5e8  # that a training processes, in five to ten minutes on two cores


def images_config(data: Dataset, **options: Any) -> Config:
    """Return the system "images" with the options that suit a data set.

    A Bernoulli, if all pixels are black or white, which `--binarize threshold` then leaves as they are.
    As many convolutions as leave at least 4 pixels of the shorter side of an image, at most 4 up to 128 x 128 pixels,
    or an MLP if that side has one pixel; batches of 64, of 128 from 20,000 training images on, and never more than a
    tenth of the images; and as many epochs, between 10 and 200, as visit 5e8 pixels. The ELBO is "trace" where the rate
    has no closed form.

    Args:
        data: the images.
        options: fields of `Config`, which are kept as given.

    Raises:
        InputError: an option is unknown or cannot be used.
    """
    if not data.is_images:
        raise InputError(f"{data.name} holds no images, (N, C, H, W) bytes: call values_config for other data")
    config = get_system("images").replace(**_with_elbo(options))
    num_train, (_, height, width) = len(data.train), data.datum_shape
    if data.valid is None:
        num_train -= round(config.valid * num_train)
    network = options.get("network", "mlp" if min(height, width) == 1 else config.network)
    chosen = {
        "network": network,
        "hidden": _channels(height, width) if network.startswith("conv") else _WIDTHS,
        "batch_size": max(2, min(128 if num_train >= 20_000 else 64, num_train // 10)),
        "epochs": min(200, max(10, round(_PIXELS / (num_train * height * width)))),
        "elbo": config.elbo if any(config.closed_forms) or config.labels else "trace",
    }
    if options.get("likelihood", "bernoulli") == "bernoulli" and data.is_binary:
        chosen |= {"likelihood": "bernoulli", "binarize": "threshold"}
    while network.endswith("batchnorm") and num_train % chosen["batch_size"] == 1:
        chosen["batch_size"] += 1  # BatchNorm cannot normalise a last batch of one image
    return config.replace(**{name: value for name, value in chosen.items() if name not in options})


def values_config(data: Dataset, **options: Any) -> Config:
    """Return the system "values" with the options that suit data that are no images.

    The likelihood is a Bernoulli if all values are 0 or 1, a negative binomial if they are whole numbers from 0 on, and
    else a Normal with a scale for each value of a datum, in the units of the data. There are at most half as many
    latents as values of a datum, and 16 at most.

    The columns of a table have kinds: texts are a category; 0 and 1 are binary; whole numbers from 0 on are counts, if
    their variance is at least their mean, since no negative binomial has less; others are real. If the kinds differ, or
    there is a category, the likelihood is "columns".

    Args:
        data: the data.
        options: fields of `Config`, which are kept as given.

    Raises:
        InputError: an option is unknown or cannot be used.
    """
    config = get_system("values").replace(**_with_elbo(options))
    num_train = len(data.train) - (round(config.valid * len(data.train)) if data.valid is None else 0)
    train = data.train.double()
    chosen: dict[str, Any] = {
        "latent_dim": max(1, min(config.latent_dim, data.train[0].numel() // 2)),
        "batch_size": max(2, min(128 if num_train >= 20_000 else 64, num_train // 10)),
        "epochs": min(200, max(20, round(_STEPS / max(1, num_train // 64)))),
        "elbo": config.elbo if any(config.closed_forms) or config.labels else "trace",
        "missing": data.has_missing,
    }
    kinds, train = _column_kinds(data), train[~train.isnan()]
    is_mixed = len({*kinds}) > 1 or any(column.categories for column in data.columns)
    if "likelihood" not in options and is_mixed:
        chosen |= {"likelihood": "columns", "columns": columns_text(kinds)}
    elif "likelihood" not in options and data.is_binary:
        chosen |= {"likelihood": "bernoulli", "binarize": "threshold"}
    elif "likelihood" not in options and bool(((train >= 0) & (train == train.round())).all()):
        chosen["likelihood"] = "negative-binomial"
    return config.replace(**{name: value for name, value in chosen.items() if name not in options})


def _column_kinds(data: Dataset) -> list[ColumnKind]:
    """Return the kind of each column of a table; [] of other data."""
    kinds = []
    for column, values in zip(data.columns, data.train.double().T if data.columns else ()):
        x = values[~values.isnan()]
        is_count = bool(((x >= 0) & (x == x.round())).all()) and bool(x.var(correction=0) >= x.mean())
        is_binary = bool(((x == 0) | (x == 1)).all())
        of_numbers = "binary" if is_binary else "count" if is_count else "real"
        number = len(column.categories)
        kinds.append(ColumnKind("categorical", number) if number else ColumnKind(of_numbers))
    return kinds


def _with_elbo(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the ELBO that some labels need."""
    return {"elbo": "enumerate", **options} if options.get("labels") else options


def _channels(height: int, width: int) -> tuple[int, ...]:
    """Return the channels of the convolutions, each of which halves the image."""
    depth = int(math.log2(max(2, min(height, width) // _LEAST_SIDE)))
    channels = _CHANNELS[:depth]
    if (height >> len(channels)) * (width >> len(channels)) * channels[-1] > _MOST_INPUTS:
        channels += _CHANNELS[-1:] * (depth - len(channels))
        last = _MOST_INPUTS // ((height >> depth) * (width >> depth))  # fewer channels, of a very long image
        channels = (*channels[:-1], min(channels[-1], max(1, last)))
    return channels


def describe_choices(data: Dataset, config: Config, given: Iterable[str]) -> str:
    """Return a line for each option that was chosen for the images: what it is, and what it does.

    Args:
        data: the images.
        config: the configuration that `images_config` returned.
        given: names of the options that the user gave.
    """
    num_valid = 0 if data.valid is None else len(data.valid)
    is_conv = config.network.startswith("conv")
    of_values = {
        "bernoulli": "all values are 0 or 1: the ELBO bounds log p(x)",
        "negative-binomial": "all values are counts: the ELBO bounds log p(x)",
        "columns": "each column has a kind of its own: the ELBO bounds log p(x), a density in the units of real ones",
        "normal-diagonal": "real values, each with a scale of its own: the ELBO bounds the log-density in their units",
    }
    reasons = {
        "image_size": "their median size, at most 64 pixels a side; --grey removes colours",
        "likelihood": "each value of a pixel has a probability: the ELBO bounds log p(x)",
        "binarize": "which leaves such pixels as they are",
        "network": f"{len(config.hidden)} convolutions halve the sides of an image" if is_conv else "no convolutions",
        "hidden": "channels or widths of the layers; larger ones learn finer detail, slower",
        "latent_dim": "values in the code of an image; --latent-dim 2 can be drawn as a map",
        "elbo": f"the KL divergence of this posterior from --prior {config.prior} has no closed form",
        "valid": f"{num_valid:,} images, not trained on, by which the best epoch is chosen",
        "patience": "epochs without a better bound on those images, after which training stops",
        "missing": "values that are NaN, on which nothing depends: the ELBO bounds log p of the others",
        "batch_size": f"images in a step, {math.ceil(len(data.train) / config.batch_size):,} steps in an epoch",
        "epochs": "passes over the images, at most",
    }
    if not config.missing:
        del reasons["missing"]
    if not data.is_images:
        reasons |= {"likelihood": of_values.get(config.likelihood, "as given"), "binarize": "which leaves 0 and 1"}
        reasons = {
            name: reason.replace("an image", "a datum").replace("images", "data") for name, reason in reasons.items()
        }
        del reasons["image_size"]
    if config.binarize == "none":
        del reasons["binarize"]
    if any(config.closed_forms):
        del reasons["elbo"]
    shown = [name for name in reasons if name not in given and OPTIONS[name].only_with[1](config)]
    options = {name: as_option(name, getattr(config, name)) for name in shown}
    if data.is_images:
        options["image_size"] = f"--image-size {data.datum_shape[1]}x{data.datum_shape[2]}"
    indent = max((len(options[name]) for name in shown), default=0)
    lines = [f"  {options[name]:{indent}}  {reasons[name]}" for name in shown]
    return "\n".join(
        lines + (_column_lines(data, config) if config.likelihood_family.is_of_columns and data.columns else [])
    )


def _column_lines(data: Dataset, config: Config) -> list[str]:
    """Return a line for each of the first columns of a table, its name, kind and why, and how to change them."""
    rows = []
    for column, kind in [*zip(data.columns, config.column_kinds)][:_MOST_LINES]:
        texts = f"texts: {one_line(listed(column.categories))}"
        rows.append((one_line(column.name), str(kind), texts if column.categories else kind.meaning))
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    lines = [f"    {name:{widths[0]}}  {kind:{widths[1]}}  {text}" for name, kind, text in rows]
    if (more := len(data.columns) - _MOST_LINES) > 0:
        lines.append(f"    and {more} more")
    other = f"--likelihood columns --columns {config.columns}"
    return [*lines, f"  for other kinds, such as ordinal:K of numbers 0 to K - 1 in an order, change {other}"]
