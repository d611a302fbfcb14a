"""The data set of a training: loaded for a configuration, or for a run and then compared with the run's record."""

from __future__ import annotations

from pathlib import Path

from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.files import expanded
from pvae.data.dataset import Dataset
from pvae.data.folders import is_folder
from pvae.data.image_folder import ImageTransform
from pvae.data.sources import load_dataset
from pvae.runs.run import Run

__all__ = ["data_of", "load_again", "load_for"]


def load_for(config: Config, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set of a configuration.

    Args:
        config: the configuration of a training.
        data_dir: the folder to search first; for "folder:PATH", where those images are now if PATH is gone.
        offline: do not download.

    Raises:
        InputError: the data cannot be found or read.
    """
    if data_dir is not None and _is_image_folder(config.dataset):
        raise InputError(f"--dataset {config.dataset} and --data-dir {data_dir} are two folders: leave one out")
    return load_dataset(config.dataset, data_dir, offline, _transform(config))


def data_of(
    run: Run, data: Dataset | None = None, data_dir: str | Path | None = None, offline: bool = False
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
    found = data if data is not None else load_again(run, data_dir, offline)
    record = found.record()
    if record.sha256 != run.data.sha256:
        both = [(one.title, f"shape {one.image_shape}", f"SHA-256 {one.sha256[:16]}...") for one in (run.data, record)]
        differing = next(f"{recorded}, not {given}" for recorded, given in zip(*both) if recorded != given)
        advice = "name the folder that holds the same files with --data-dir" if data is None else "give the same images"
        raise InputError(f"{run.path} was trained on other data: {differing}: {advice}")
    return found


def load_again(run: Run, data_dir: str | Path | None, offline: bool) -> Dataset:
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
    if data_dir is None and run.data.dataset.startswith("folder:") and not _is_image_folder(run.data.dataset):
        raise InputError(
            f"there is no {run.data.dataset} any more, on which {run.path} was trained: name the folder where those "
            "images are now with --data-dir"
        )
    if data_dir is None and run.data.folder and is_folder(Path(run.data.folder)):
        data_dir = run.data.folder
    return load_dataset(run.data.dataset, data_dir, offline, _transform(run.config))


def _is_image_folder(dataset: str) -> bool:
    """Return whether this is "folder:PATH" with a PATH that exists."""
    return dataset.startswith("folder:") and is_folder(
        expanded(dataset.removeprefix("folder:"), "--dataset folder:PATH")
    )


def _transform(config: Config) -> ImageTransform:
    return ImageTransform(config.image_size, config.crop, config.grey, config.skip_broken)
