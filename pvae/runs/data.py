"""The data set of a training: loaded for a configuration, or for a run and then compared with the run's record."""

from __future__ import annotations

from pathlib import Path

from pvae.config.config import Config
from pvae.core.errors import InputError
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
        data_dir: the folder to search first.
        offline: do not download.

    Raises:
        InputError: the data cannot be found or read.
    """
    return load_dataset(config.dataset, data_dir, offline, _transform(config))


def data_of(
    run: Run, data: Dataset | None = None, data_dir: str | Path | None = None, offline: bool = False
) -> Dataset:
    """Return the data set that a run was trained on, after comparing its SHA-256 with the run's record.

    Args:
        run: the run.
        data: the images, if the run was trained on images given from Python.
        data_dir: the folder to search first for another data set.
        offline: do not download.

    Raises:
        InputError: the data set cannot be found, or its images differ from those in the run's record.
    """
    data = data if data is not None else load_again(run, data_dir, offline)
    if data.record().sha256 != run.data.sha256:
        raise InputError(f"{run.path} was trained on other data: the SHA-256 of {data.title} differs")
    return data


def load_again(run: Run, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return the data set with the name in a run's record; for "auto" that is the data set found at the training.

    Args:
        run: the run.
        data_dir: the folder to search first; the folder in the run's record if None.
        offline: do not download.

    Raises:
        InputError: the images were given from Python, or the data set cannot be found or read.
    """
    if not run.data.dataset:
        raise InputError(
            f"{run.path} was trained on images given from Python, {run.data.name!r}, and a command cannot find them: "
            f"in Python, give them again, to pvae.resume({str(run.path)!r}, data=...) or, to draw or evaluate it, to "
            "pvae.evaluation.trained_run.TrainedRun(run, run.vae(), data)"
        )
    if data_dir is None and run.data.folder and is_folder(Path(run.data.folder)):
        data_dir = run.data.folder
    return load_dataset(run.data.dataset, data_dir, offline, _transform(run.config))


def _transform(config: Config) -> ImageTransform:
    return ImageTransform(config.image_size, config.crop, config.grey, config.skip_broken)
