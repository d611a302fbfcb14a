"""What a user gives for a trained run: data, brought to the shape of the run's own; names of labels; files of codes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pvae.core.errors import InputError, brief, check_name
from pvae.data.read import OtherData, read_other
from pvae.runs.run import Run
from pvae.tables.schema import EMPTY, is_classes

__all__ = ["given_data", "given_values", "label_of", "label_texts", "labels_to_sample", "read_codes"]


def given_data(
    run: Run,
    path: str | Path | None = None,
    skip_broken: bool = False,
    label: str | None = None,
    fills: bool = False,
) -> OtherData:
    """Return data in the shape that a run was trained on; images are converted to it.

    Args:
        run: the run.
        path: an image file, a folder of image files, or an .npy or .npz file, or of a table a .csv file; None for the
            run's own test data.
        skip_broken: leave out image files that cannot be decoded.
        label: the label of all data, as for `label_of`; by default the run's own test data have their own labels.
        fills: empty fields of a table are to be filled in, as for `other_rows`; rows without a field are inside then.

    Raises:
        InputError: there are no such data, they are of another kind, or the run's own data cannot be found; or the run
            was trained given labels, and the data have none.
    """
    y = None if label is None else label_of(run, label)
    if path is None:
        data = run.dataset()
        classes = ("", *data.label_names)  # from -1 on
        is_named = bool(data.label_names) and not data.has_attributes and "test" in data.labels
        numbers = data.labels["test"].tolist() if is_named else []
        y = data.labels["test"] if y is None and run.is_given_labels else y
        return OtherData(data.test_names, data.test, "", y, [classes[label + 1] for label in numbers])
    given = read_other(run.data, path, skip_broken, y, fills)
    if y is None and not run.is_given_labels:
        given = given._replace(y=None)
    elif y is None:
        codes = [] if given.y is None else given.y.tolist()
        unknown = [place for place, code in enumerate(codes) if code < 0 and place not in given.outside]
        if unknown or not codes:
            what = "no labels"
            if unknown:
                named = f"the label {given.labels[unknown[0]]!r} ({given.names[unknown[0]]})"
                what = f"{named}, which is no class of the training data"
            raise InputError(f"{run.name} was trained given labels, and {path} has {what}: give --label NAME")
        given = given._replace(y=torch.tensor(codes).clamp(min=0))
    if run.data.is_images:
        return given
    given = given.checked(run.vae().p_x, run.preparation, run.data.columns)
    if fills and (given.y is None or len(given.y) == 1):
        return given._replace(outside={row: why for row, why in given.outside.items() if why != EMPTY})
    return given


def given_values(run: Run, text: str) -> Tensor:
    """Return which values of x are given, bool (*D); the padding of images counts as given.

    Args:
        run: the run.
        text: names of columns of its table, with commas in between; or an .npy file of booleans, of a datum's shape.

    Raises:
        InputError: the VAE takes no missing values; there is no such column; the file cannot be read, or holds
            something else; or everything is given, or nothing.
    """
    if not run.config.missing:
        raise InputError(f"{run.name} was trained without --missing: train again with it to leave values out")
    shape, names = run.data.datum_shape, [column.name for column in run.data.columns]
    if names and not text.endswith(".npy"):
        wanted = {text} & {*names} or {check_name("modelled column", name.strip(), names) for name in text.split(",")}
        is_given = torch.tensor([name in wanted for name in names])
    else:
        try:
            is_given = torch.from_numpy(np.load(text, allow_pickle=False))
        except Exception as error:  # of damaged files numpy raises many types
            why = getattr(error, "strerror", None) or brief(error)
            what = f"--given {text}: {why}{'' if names else ', and the data have no named columns'}"
            raise InputError(f"{what}: give an .npy file of booleans of the shape {shape}, true where given") from None
        if is_given.dtype != torch.bool or is_given.shape != shape:
            what = f"{is_given.dtype} of the shape {tuple(is_given.shape)}"
            raise InputError(f"--given {text} holds {what}: give booleans of the shape {shape}, true where given")
    if is_given.all() or not is_given.any():
        which = "all" if is_given.all() else "no"
        raise InputError(f"--given {text}: {which} values are given: give some of them, and not all")
    return pad(is_given, (run.config.pad,) * 4, value=True) if run.config.pad else is_given


def labels_to_sample(run: Run, count: int, label: str | None = None) -> Tensor | None:
    """Return labels at which data are drawn: a named one for all, (1, ...), or those of `count` random training data.

    Random training data have the classes in the shares of the data, and each combination of attributes too.

    Args:
        run: the run; None is returned if it takes no labels.
        count: the number of data to draw.
        label: as for `label_of`.

    Raises:
        InputError: as for `label_of`, or the run's data cannot be found.
    """
    if label is not None:
        return label_of(run, label)
    if not (run.is_given_labels or run.config.labels):
        return None
    y = run.dataset().labels["train"]
    y = y[y >= 0] if is_classes(y) else y
    return y[torch.randint(len(y), (count,))]


def label_texts(run: Run, y: Tensor) -> list[str]:
    """Return labels (N, ...) as `label_of` takes them: names of classes, or of attributes with commas in between."""
    names = run.data.label_names
    if run.data.has_attributes:
        return [",".join(name for name, has in zip(names, row) if has) for row in y.tolist()]
    return [names[label] for label in y.tolist()]


def label_of(run: Run, text: str) -> Tensor:
    """Return the label of that name, (1, ...), for a run that was trained given labels.

    Args:
        run: the run.
        text: the name of a class, or a prefix that no other class has; or names of attributes, with commas in between.

    Raises:
        InputError: the run takes no labels, or the name is unknown.
    """
    names = run.data.label_names
    if not names or not (run.is_given_labels or run.config.labels):
        raise InputError(f"{run.name} was not trained with labels: leave --label out")
    if run.data.has_attributes:
        has = {check_name("--label", name, names) for name in text.split(",")}
        return torch.tensor([[name in has for name in names]])
    found = [name for name in names if name == text] or [name for name in names if text and name.startswith(text)]
    return torch.tensor([names.index(found[0] if len(found) == 1 else check_name("--label", text, names))])


def read_codes(run: Run, file: Path) -> Tensor:
    """Return the codes z (N, L) of a file of `pvae encode`: z, z1 and so on, or else the means loc.

    Raises:
        InputError: the file cannot be read, holds no codes of this run's length, or a code that is not finite.
    """
    import pandas

    width = run.vae().prior().event_shape[0]
    try:
        if file.suffix == ".csv":
            frame = pandas.read_csv(file, index_col=False)
            names = [name for name in frame if re.fullmatch(r"(loc|y|z\d*)_\d+", name)]
            names.sort(key=lambda name: (name.partition("_")[0], int(name.partition("_")[2])))
            z = frame[names].apply(pandas.to_numeric, errors="coerce").to_numpy(float)
        else:
            stored = np.load(file, allow_pickle=False)
            arrays = {"z": np.atleast_2d(stored)} if isinstance(stored, np.ndarray) else stored
            names = sorted(name for name in arrays if re.fullmatch(r"loc|y|z\d*", name))
            z = np.concatenate([arrays[name].astype(float) for name in names], axis=1) if names else np.empty((1, 0))
    except Exception as error:  # of damaged files pandas, numpy and zipfile raise many types
        raise InputError(f"{file} cannot be read as codes ({brief(error)}): give what pvae encode wrote") from None
    if not names:
        raise InputError(f"{file} has no columns loc_1, z_1 and so on, or arrays loc or z: give what pvae encode wrote")
    if z.ndim != 2 or z.shape[1] != width or not len(z):
        raise InputError(f"{file} holds codes of shape {z.shape}, and {run.name} has latents of shape (N, {width})")
    codes = torch.tensor(z, dtype=torch.float32)
    are_bad = (~codes.isfinite()).any(1)
    if are_bad.any():
        row = int(are_bad.int().argmax()) + 1
        raise InputError(f"{file}: row {row} has a value that is not finite in float32: correct it")
    return codes
