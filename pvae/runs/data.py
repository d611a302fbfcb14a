"""The data set of a training: loaded for a configuration, or for a run and then compared with the run's record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pvae.config.config import Config
from pvae.core.errors import InputError, brief, joined
from pvae.core.files import expanded
from pvae.core.options import options_of
from pvae.core.random_state import seeded
from pvae.data.arrays import is_array_file
from pvae.data.dataset import Dataset
from pvae.data.folders import is_file, is_folder
from pvae.data.images import ImageArrays, ImageFiles, ImageSource, ImageTransform, colours, image_files, load_images
from pvae.data.labels import names_of
from pvae.data.parquet import ParquetParts
from pvae.data.reading import Fields, Reading, own_path
from pvae.data.schema import DataRecord
from pvae.data.sources import as_dataset, batches_of, load_dataset, read_values
from pvae.runs.record import RunRecord

__all__ = ["ROWS", "OtherData", "data_for", "data_of", "data_of_python", "kept_rows", "load_again", "load_for"]

ROWS = "rows.safetensors"  # of a run on a stream


def load_for(config: Config, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set of a configuration.

    Args:
        config: the configuration of a training.
        data_dir: the folder to search first; for "folder:PATH", where those images are now if PATH is gone.
        offline: do not download.

    Raises:
        InputError: the data cannot be found or read.
    """
    if data_dir is not None and config.dataset.startswith("folder:"):
        raise InputError(f"--dataset {config.dataset} and --data-dir {data_dir} are two folders: leave one out")
    data_dir = None if _has_own_data(config.dataset) else data_dir  # of other data sets
    data = load_dataset(config.dataset, data_dir, offline, _transform(config), _reading(config))
    return data.with_valid(config.valid)


def data_of_python(data: Any, config: Config | None = None, quiet: bool = True) -> Dataset:
    """Return data that were given from Python as a data set; torch's generator is as before.

    Args:
        data: as for `as_dataset`.
        config: says how the columns of a data frame are read, and seeds what a loader draws.
        quiet: draw no progress bar.

    Raises:
        InputError: they cannot be used.
    """
    config = config or Config()
    with seeded(config.seed):
        return as_dataset(data, _reading(config), quiet)


def kept_rows(data: Dataset) -> bytes:
    """Return the rows of a stream that are in memory, with their labels, as a safetensors file."""
    labels = {f"{split}_labels": y.contiguous() for split, y in data.labels.items()}
    seldom = {} if data.extremes is None else {"extremes": data.extremes.contiguous()}
    return safetensors.torch.save({split: x.contiguous() for split, x in data.splits.items()} | labels | seldom)


def _kept(run: RunRecord, source: Any, data_dir: str | Path | None) -> Dataset:
    """Return the rows that a run has kept of a stream, with the stream if it is given or a file."""
    file, path = run.path / ROWS, own_path(run.data.dataset)
    try:
        tensors: dict[str, Any] = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file} is damaged ({brief(error)}): restore a copy of it") from None
    names = {one.name for one in fields(DataRecord)} & {one.name for one in fields(Dataset)}
    tensors |= {name: getattr(run.data, name) for name in names}
    data = Dataset(**tensors, num_streamed=run.data.num_train + run.data.num_valid)
    path = str(data_dir) if path and data_dir is not None else path
    source = ParquetParts.of(Path(path)) if source is None and path and Path(path).is_file() else batches_of(source)
    if source is None:
        return data
    from pvae.data.stream import Stream

    num_rows = data.num_streamed + len(data.test)
    classes = data.label_names if run.config.label_column else ()
    return replace(data, stream=Stream(source, data.name, num_rows, _reading(run.config, run.data), classes))


def data_of(run: RunRecord, data: Any = None, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set that a run was trained on, after comparing its SHA-256 with the run's record.

    Args:
        run: the run.
        data: the data, if the run was trained on data given from Python; of a stream, the iterable, to train on.
        data_dir: as for `load_again`.
        offline: do not download.

    Raises:
        InputError: the data set cannot be found, or its data differ from those in the run's record.
    """
    if (run.path / ROWS).exists() and not isinstance(data, Dataset):
        found = _kept(run, data, data_dir)
    else:
        found = data_of_python(data, run.config) if data is not None else load_again(run, data_dir, offline)
    found = found.with_valid(run.config.valid)
    record = found.record()
    if record.sha256 != run.data.sha256:
        both = [(one.title, f"shape {one.datum_shape}", f"SHA-256 {one.sha256[:16]}...") for one in (run.data, record)]
        differing = next(f"{recorded}, not {given}" for recorded, given in zip(*both) if recorded != given)
        advice = "name the folder that holds the same files with --data-dir" if data is None else "give the same data"
        raise InputError(f"{run.name} was trained on other data: {differing}: {advice}")
    uses_labels = run.config.condition or run.config.labels or run.has_own_vae
    if uses_labels and run.data.labels_sha256 not in ("", record.labels_sha256):
        raise InputError(f"{run.name} was trained on data with other labels: give the same ones")
    return found


def load_again(run: RunRecord, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return the data set with the name in a run's record; for "auto" that is the data set found at the training.

    Args:
        run: the run.
        data_dir: the folder to search first, or where the images of "folder:PATH" are now; None for the folder in the
            run's record.
        offline: do not download.

    Raises:
        InputError: the data were given from Python, or the data set cannot be found or read.
    """
    name = run.data.dataset
    if not name:
        what = f"{run.name} was trained on data given from Python, {run.data.name!r}, and a command cannot find them"
        raise InputError(f"{what}: give them in Python, as run.dataset(data) or pvae.resume(path, data=data)")
    if data_dir is None and own_path(name) and not _has_own_data(name):
        advice = "name the folder where those data are now with --data-dir"
        raise InputError(f"there is no {name} any more, on which {run.name} was trained: {advice}")
    if data_dir is None and run.data.folder and is_folder(Path(run.data.folder)):
        data_dir = run.data.folder
    transform = _transform(run.config)._replace(value_range=run.data.value_range)
    return load_dataset(name, data_dir, offline, transform, _reading(run.config, run.data))


def _transform(config: Config) -> ImageTransform:
    """Return the conversion of image files to images."""
    height, _, width = config.image_size.partition("x")
    size = None if height == "auto" else (int(height), int(width or height))
    return ImageTransform(size, 1 if config.grey else 0, config.skip_broken, keep_aspect=size is None)


def _reading(config: Config, data: DataRecord | None = None) -> Reading:
    """Return how data are read: for a new run, or with the columns of a run's record of its data."""
    reading = Reading(**{name: getattr(config, name) for name in options_of(Reading)})
    if data is None:
        return reading
    columns = "" if data.columns else f"real*{data.datum_shape[0]}"  # of a run on arrays
    return replace(reading, columns=columns, known=data.columns, left_out=data.left_out, in_parts=False)


class OtherData(NamedTuple):
    """Data of a file or folder for a run that was trained on other data.

    Args:
        names: for each datum the path of its file, relative to the folder, the number of its row or image, or both.
        data: images as bytes (N, C, H, W), or values (N, ...).
        note: what was changed or left out, or "".
        labels: the class of each datum by its name: the labels of arrays, a column of labels, or the names of the
            folders in a folder; [] if there are none.
        fields: of a table.
    """

    names: Sequence[str]
    data: Tensor
    note: str
    labels: list[str]
    fields: Fields | None = None


def data_for(run: RunRecord, path: str | Path, skip_broken: bool = False) -> OtherData:
    """Return other data, converted to the shape that a run was trained on as its own data were.

    Args:
        run: the run.
        path: an image file, a folder of image files, or an .npy or .npz file, as `ImageArrays` reads it; or for data
            that are no images, a file as `read_values` reads it.
        skip_broken: leave out image files that cannot be decoded.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    where = expanded(path, "DATA")
    if not run.data.is_images:
        return _values_for(run, where)
    channels, height, width = run.data.datum_shape
    transform = _transform(run.config)._replace(
        size=(height, width), channels=channels, value_range=run.data.value_range, skip_broken=skip_broken
    )
    source: ImageSource
    if is_array_file(where):
        source = ImageArrays(where, is_shuffled=False)
    elif is_folder(where):
        files, left_out = image_files(where.absolute())
        parts = [file.relative_to(where.absolute()).parts for file in files]
        classes = [part[-2] for part in parts] if all(len(part) > 1 for part in parts) else []
        source = ImageFiles(files, _named_from(run, where.absolute()), labels=classes, note=left_out)
    elif is_file(where):
        source = ImageFiles([where.absolute()], _named_from(run, where.absolute().parent))
    else:
        raise InputError(f"there is no file or folder {where}: name an image file, a folder of them, .npy or .npz")
    images = load_images(source, transform, least=1)
    shape = f"{height} x {width} pixels, {colours(channels)}"
    changed = "" if f" of {shape}" in images.found else f"{images.found}, are brought to {shape}, as in training"
    labels = names_of(np.array(images.labels)) if images.labels else []
    return OtherData(images.names, torch.from_numpy(images.pixels), joined(changed, images.note), labels)


def _values_for(run: RunRecord, file: Path) -> OtherData:
    """Return the data of all splits of a file, in its order, for a run on data that are no images."""
    values = read_values(file, _reading(run.config, run.data))
    for split, x in values.x.items():
        if x.shape[1:] != run.data.datum_shape:
            wanted = f"{run.name} was trained on (N, *{run.data.datum_shape})"
            raise InputError(f"{file}: {split} has shape {x.shape}, and {wanted}")
    together = np.concatenate([x.astype(np.float64) for x in values.x.values()])
    names = [name for part in values.names.values() for name in part]
    labels = names_of(np.concatenate([*values.labels.values()])) if values.labels else []
    known, zeros = run.data.label_names, partial(re.sub, r"\.0*$", "")  # "2.0" is the class "2" too
    same = {zeros(name): name for name in known}
    labels = [name if name in known else same.get(zeros(name), name) for name in labels]
    return OtherData(names, torch.from_numpy(together), values.note, labels, values.fields)


def _named_from(run: RunRecord, folder: Path) -> Path:
    """Return the folder relative to which the images of a folder are named: the run's own, if they lie in it."""
    trained_on = Path(run.data.dataset.removeprefix("folder:")).expanduser().absolute()
    is_inside = run.data.dataset.startswith("folder:") and folder.is_relative_to(trained_on)
    return trained_on if is_inside else folder


def _has_own_data(dataset: str) -> bool:
    """Return whether this names the user's own folder or file, such as "folder:PATH", that exists."""
    if not (path := own_path(dataset)):
        return False
    where = expanded(path, "--dataset folder:PATH")
    return is_folder(where) or is_file(where)
