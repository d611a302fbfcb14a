"""Rows that come in batches, of a loader, a generator or a large Parquet file, written once into a mapped file.

The file has no name, and is gone with the process; it lies in the cache folder, since a temporary folder may be memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pvae.core.errors import InputError, joined, total_memory
from pvae.core.terminal import progress_bar
from pvae.data.dataset import Dataset, with_split
from pvae.data.mapped import batches_of, in_file
from pvae.tables.reading import Reading
from pvae.tables.schema import Schema, coded_labels

if TYPE_CHECKING:
    from pandas import DataFrame

_SAMPLE = 40_000  # rows that say of which kinds the columns of data frames are, beside rows that are seldom
_MOST_TEST = 10_000  # rows
_MOST_TEXTS = 1000  # of a column, of which a row each is looked at
_ROWS = 2**16  # of a Parquet file at once
_FIELD = 64  # bytes of a field in memory, while a table is read
_BYTES = 2**26  # that are copied at once


def data_in_batches(source: Iterable[Any], name: str, reading: Reading, quiet: bool = True) -> Dataset:
    """Return the rows of an iterable of batches, in a random order, as a data set that is mapped into memory.

    A tenth of the rows, at most 10,000, are test data. Of data frames, at most 40,000 rows drawn at random say of which
    kinds the columns are, with those of the least and the greatest value of each column, of a number that is not whole,
    of a missing value, and of each text.

    Args:
        source: yields x (B, *shape) or (x, y), as tensors or arrays; or data frames, twice.
        name: what messages and titles name it.
        reading: how data frames are read.
        quiet: draw no progress bar.

    Raises:
        InputError: it has fewer than four rows, raises an exception, or yields something else; or there is no room.
    """
    total = 0
    with suppress(TypeError):  # of a loader of an iterable data set
        total = len(source)  # type: ignore[arg-type]
    classes, schema = tuple[str, ...](), Schema(note="the batches are read once: random transforms stay as drawn then")
    with progress_bar(f"reading {name}", total, "batch", quiet) as bar:
        batches = batches_of(source, name, bar.update)
        first = next(batches, None)
        if first is None:
            raise InputError(f"{name} has 0 rows: give at least 4")
        if isinstance(first[0], Tensor):
            x, y = in_file(chain([first], batches))
        else:
            if isinstance(source, Iterator):
                raise InputError(f"{name} is a {type(source).__name__}, which can be read once only: give a list")
            schema, classes = _of_frames(chain([first], batches), name, reading)
            frames = (frame for frame, *_ in batches_of(source, name))
            x, y = in_file(_values(frame, name, schema, classes) for frame in frames)
    if len(x) < 4:
        raise InputError(f"{name} has {len(x)} rows: give at least 4")
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    size = max(1, _BYTES // x[0].nbytes)
    x, _ = in_file((x[rows],) for rows in order.split(size))
    num_test = max(2, min(_MOST_TEST, len(x) // 10))
    if y is not None:
        y = y[order]
    splits = with_split("test", num_test, x, y, is_shuffled=True)
    return Dataset(name, **splits, label_names=classes, is_in_parts=True, **schema.schema)


def _of_frames(batches: Iterator[Any], name: str, reading: Reading) -> tuple[Schema, tuple[str, ...]]:
    """Return the schema of a table in parts, and the names of its classes, which a few of its rows say."""
    import pandas

    from pvae.tables.parsing import read_frame

    some, seldom, share, num_rows = list[Any](), list[Any](), 1.0, 0
    for (frame,) in batches:
        num_rows += len(frame)
        seldom.append(_seldom(frame, reading.label_column))
        if share < 1:
            frame = frame.sample(frac=share, random_state=0)
        some.append(frame)
        while sum(map(len, some)) > 2 * _SAMPLE:
            some = [frame.sample(frac=0.5, random_state=0) for frame in some]
            share /= 2
        if sum(map(len, seldom)) > _SAMPLE:
            seldom = [_seldom(pandas.concat(seldom, ignore_index=True), reading.label_column)]
    if share == 1:
        seldom = []
    if reading.rules not in ("auto", "none"):
        raise InputError("rules are looked for in tables in memory: leave --rules out")
    reading = replace(reading, rules="none")
    values = read_frame(pandas.concat([*some, *seldom], ignore_index=True), reading, name)
    classes = coded_labels(values.labels["train"])[1] if values.labels else ()
    note = joined(values.schema.note, f"{num_rows:,} rows are read in parts, into a file")
    return replace(values.schema, note=note), classes


def _seldom(frame: DataFrame, label: str) -> DataFrame:
    """Return the rows of the extremes of each column, of one value that is not whole or is missing, of each text."""
    import pandas
    from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

    rows = set[int]()
    for name, column in frame.items():
        if is_datetime64_any_dtype(column) or (is_numeric_dtype(column) and name != label):
            numbers = pandas.to_numeric(column).to_numpy(float, na_value=np.nan)
            is_missing = np.isnan(numbers)
            filled = np.where(is_missing, numbers[~is_missing][:1].sum(), numbers)
            marked = filled, -filled, filled != np.rint(filled), is_missing
            rows |= {int(score.argmax()) for score in marked}
        else:
            rows |= {*np.flatnonzero(~column.duplicated())[:_MOST_TEXTS].tolist()}
    return frame.iloc[sorted(rows)]


def _values(frame: DataFrame, name: str, schema: Schema, classes: tuple[str, ...]) -> list[Tensor]:
    """Return the values of a data frame, and its classes if there are some.

    Raises:
        InputError: a field is not of its column's kind, or a class is none of those.
    """
    from pvae.tables.parsing import class_codes, read_frame

    rows = read_frame(frame, schema.reading, name, schema)
    for row, why in rows.outside.items():
        raise InputError(f"{name}, row {row}: {why}")
    values = [torch.from_numpy(rows.x["train"])]
    if len(classes) > 1:
        values.append(class_codes(frame, schema.reading.label_column, classes, name))
    return values


@dataclass(frozen=True)
class ParquetParts:
    """The rows of a Parquet file, as data frames."""

    file: Path

    @classmethod
    def if_large(cls, file: Path) -> ParquetParts | None:
        """Return a Parquet file whose table would take more than a quarter of the memory while it is read; or None."""
        try:
            from pyarrow.parquet import read_metadata

            metadata = read_metadata(file)
        except Exception:  # of many types: `read_values` says what is wrong
            return None
        if metadata.num_rows * metadata.num_columns * _FIELD <= total_memory() / 4:
            return None
        return cls(file)

    def __iter__(self) -> Iterator[DataFrame]:
        """Yield the rows, 65,536 at a time."""
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.file) as content:
            for part in content.iter_batches(_ROWS):
                frame = part.to_pandas()
                yield frame if frame.index.name is None else frame.reset_index()
