"""The data of a training: loaded for a configuration, and loaded again for a run and compared with its record."""

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
    """Return the data set that a configuration names, with the transform of image files that it describes.

    Args:
        config: of a training.
        data_dir: searched first.
        offline: do not download.

    Raises:
        InputError: the data cannot be found or read.
    """
    return load_dataset(config.dataset, data_dir, offline, _transform(config))


def data_of(
    run: Run, data: Dataset | None = None, data_dir: str | Path | None = None, offline: bool = False
) -> Dataset:
    """Return the data that a run was trained on, and check that they are the same.

    Args:
        run: the run.
        data: the images, if the run was trained on images given from Python.
        data_dir: searched first for other data.
        offline: do not download.

    Raises:
        InputError: the data cannot be found, or their SHA-256 or sizes differ from the run's record.
    """
    found, known = data if data is not None else load_again(run, data_dir, offline), run.data
    record = found.record()
    if record.sha256 != known.sha256:
        raise InputError(f"{run.path} was trained on other data: the SHA-256 of {found.title} differs")
    if (record.num_train, record.num_test, record.image_shape) != (known.num_train, known.num_test, known.image_shape):
        raise InputError(f"{run.path}/config.json is damaged: it gives {found.title} other sizes")
    return found


def load_again(run: Run, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return the data set that a run was trained on, which for "auto" may differ from what "auto" is now.

    Args:
        run: the run.
        data_dir: searched first; the folder in the run's record if None.
        offline: do not download.

    Raises:
        InputError: the data were given from Python, or cannot be found or read.
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
