"""The data set of a training: loaded for a configuration, or for a run and then compared with the run's record."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pvae.config.config import Config
from pvae.config.options import own_path
from pvae.core.errors import InputError
from pvae.core.files import expanded
from pvae.data.dataset import Dataset
from pvae.data.folders import cache_dir, is_file, is_folder
from pvae.data.image_arrays import ImageArrays, is_array_file
from pvae.data.image_folder import COLOURS, ImageTransform, image_files, load_images
from pvae.data.sources import load_dataset
from pvae.data.value_files import read_values
from pvae.runs.record import RunRecord

__all__ = ["data_of", "images_for", "load_again", "load_for"]


def load_for(config: Config, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set of a configuration.

    Args:
        config: the configuration of a training.
        data_dir: the folder to search first; for "folder:PATH", where those images are now if PATH is gone.
        offline: do not download.

    Raises:
        InputError: the data cannot be found or read.
    """
    if data_dir is not None and _has_own_data(config.dataset):
        raise InputError(f"--dataset {config.dataset} and --data-dir {data_dir} are two folders: leave one out")
    data = load_dataset(config.dataset, data_dir, offline, _transform(config))
    return _labelled(data, config).with_valid(config.valid)


def _labelled(data: Dataset, config: Config) -> Dataset:
    """Return the data with the column of their labels taken out of x, if the configuration names one."""
    return data.with_label_column(config.label_column) if config.label_column and data.columns else data


def data_of(
    run: RunRecord, data: Dataset | None = None, data_dir: str | Path | None = None, offline: bool = False
) -> Dataset:
    """Return the data set that a run was trained on, after comparing its SHA-256 with the run's record.

    Args:
        run: the run.
        data: the images, if the run was trained on images given from Python.
        data_dir: as for `load_again`.
        offline: do not download.

    Raises:
        InputError: the data set cannot be found, or its images differ from those in the run's record.
    """
    found = (data if data is not None else load_again(run, data_dir, offline)).with_valid(run.config.valid)
    record = found.record()
    if record.sha256 != run.data.sha256:
        both = [(one.title, f"shape {one.datum_shape}", f"SHA-256 {one.sha256[:16]}...") for one in (run.data, record)]
        differing = next(f"{recorded}, not {given}" for recorded, given in zip(*both) if recorded != given)
        advice = "name the folder that holds the same files with --data-dir" if data is None else "give the same images"
        raise InputError(f"{run.path} was trained on other data: {differing}: {advice}")
    if run.config.condition or run.config.labels or run.has_own_vae:
        recorded = run.data.labels_sha256
        if recorded and record.labels_sha256 != recorded:
            raise InputError(f"{run.path} was trained on data with other labels: give the same ones")
    return found


def load_again(run: RunRecord, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return the data set with the name in a run's record; for "auto" that is the data set found at the training.

    Args:
        run: the run.
        data_dir: the folder to search first, or where the images of "folder:PATH" are now; None for the folder in the
            run's record.
        offline: do not download.

    Raises:
        InputError: the images were given from Python, or the data set cannot be found or read.
    """
    if not run.data.dataset:
        raise InputError(
            f"{run.path} was trained on images given from Python, {run.data.name!r}, and a command cannot find them: "
            f"{run.in_python}"
        )
    if data_dir is None and own_path(run.data.dataset) and not _has_own_data(run.data.dataset):
        raise InputError(
            f"there is no {run.data.dataset} any more, on which {run.path} was trained: name the folder where those "
            "images are now with --data-dir"
        )
    if data_dir is None and run.data.folder and is_folder(Path(run.data.folder)):
        data_dir = run.data.folder
    transform = _transform(run.config)._replace(value_range=run.data.value_range)
    return _labelled(load_dataset(run.data.dataset, data_dir, offline, transform), run.config)


def _transform(config: Config) -> ImageTransform:
    """Return the conversion of image files to images."""
    height, _, width = config.image_size.partition("x")
    size = None if height == "auto" else (int(height), int(width or height))
    return ImageTransform(size, 1 if config.grey else 0, config.skip_broken, keep_aspect=size is None)


def images_for(run: RunRecord, path: str | Path, skip_broken: bool = False) -> tuple[list[str], Tensor, str, list[str]]:
    """Return other images, converted to the shape that a run was trained on as its own images were.

    Args:
        run: the run.
        path: an image file, a folder of image files, or an .npy or .npz file, as `ImageArrays` reads it.
        skip_broken: leave out image files that cannot be decoded.

    Returns:
        The names of the files, relative to the folder, or of arrays with the numbers of their images; the images as
        bytes (N, C, H, W); a sentence on what was changed, or ""; and their classes by name, if the path has some: the
        labels of arrays, or the names of the folders in a folder.

    Raises:
        InputError: there is no such file, or an image cannot be decoded.
    """
    where, left_out = expanded(path, "DATA"), ""
    if not run.data.is_images:
        return _values_for(run, where)
    channels, height, width = run.data.datum_shape
    transform = _transform(run.config)._replace(
        size=(height, width), channels=channels, value_range=run.data.value_range or None, skip_broken=skip_broken
    )
    given: list[Path] | ImageArrays
    if is_array_file(where):
        given = ImageArrays(where, is_shuffled=False)
    elif is_file(where):
        given = [where]
    elif is_folder(where):
        given, left_out = image_files(where)
    else:
        raise InputError(f"there is no file or folder {where}: name an image file, a folder of them, .npy or .npz")
    loaded = load_images(given, transform, cache_dir() / "images", least=1)
    labels: list[str] = []
    if isinstance(given, ImageArrays):
        names = given.names
        labels = [] if given.labels is None else [*map(str, given.labels.tolist())]
    else:
        if is_folder(where):
            parts = [given[index].relative_to(where).parts for index in loaded.kept]
            labels = [part[-2] for part in parts] if all(len(part) > 1 for part in parts) else []
        names = loaded.names([file.absolute() for file in given], _named_from(run, where.absolute()))
    shape = f"{height} x {width} pixels, {COLOURS.get(channels, f'{channels} channels')}"
    changed = "" if f" of {shape}" in loaded.found else f"{loaded.found}, are brought to {shape}, as in training"
    return names, torch.from_numpy(loaded.pixels), "; ".join(filter(None, (changed, loaded.note, left_out))), labels


def _values_for(run: RunRecord, file: Path) -> tuple[list[str], Tensor, str, list[str]]:
    """Return the data of all splits of a file, in its order, for a run on data that are no images."""
    splits, labels, names, columns = read_values(file, run.data.columns, run.config.label_column)
    if texts := [column.name for column in columns if column.categories and not run.data.columns]:
        raise InputError(f"{file}: column {texts[0]} holds texts, and {run.path} was trained on numbers")
    for split, part in splits.items():
        if part.shape[1:] != run.data.datum_shape:
            raise InputError(
                f"{file}: {split} has shape {part.shape}, and {run.path} was trained on (N, *{run.data.datum_shape})"
            )
    together = np.concatenate([part.astype(np.float64) for part in splits.values()])
    classes = [_class_name(str(label), run.data.label_names) for part in labels.values() for label in part.tolist()]
    return [name for part in names.values() for name in part], torch.from_numpy(together), "", classes


def _class_name(label: str, names: Sequence[str]) -> str:
    """Return the name of a class, which of a number has no more digits than needed: 2 for 2.0."""
    with contextlib.suppress(ValueError):
        return label if label in names else f"{float(label):g}"
    return label


def _named_from(run: RunRecord, path: Path) -> Path:
    """Return the folder relative to which images are named: the run's own, if they lie in it."""
    trained_on = Path(run.data.dataset.removeprefix("folder:")).expanduser().absolute()
    if run.data.dataset.startswith("folder:") and path.is_relative_to(trained_on):
        return trained_on
    return path if is_folder(path) else path.parent


def _has_own_data(dataset: str) -> bool:
    """Return whether this names the user's own folder or file, such as "folder:PATH", that exists."""
    if not own_path(dataset):
        return False
    path = expanded(own_path(dataset), "--dataset folder:PATH")
    return is_folder(path) or is_file(path)
