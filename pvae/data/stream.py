"""`Stream`, the rows of an iterable of batches, which is read anew in each pass and never held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from pandas import DataFrame
from torch import Tensor

from pvae.core.errors import InputError, TrainingError, brief
from pvae.core.terminal import progress_bar
from pvae.data.dataset import Dataset
from pvae.data.labels import coded_labels
from pvae.data.preparation import TrainingData
from pvae.data.reading import Reading
from pvae.data.tables import checked, class_codes, frame_values, read_frame

__all__ = ["Stream", "StreamedData", "streamed"]

_SAMPLE, _HELD_OUT = 40_000, 10_000  # rows that are kept in memory, at most; and of these as test data
_BYTES = 2**28  # of the rows that are kept, and of those that are read for the next steps
_AT_ONCE = 2**14  # rows that are looked at together, unless they take more than a quarter of these bytes
_NEXT = 2**16  # rows that are read for the next steps, whose order is random
_MOST_TEXTS = 1000  # of a column, each of which is found
_MISSED = 0.05  # of the rows that are held out, which may be absent in a pass

Batch = tuple[Any, ...]  # (x,), (x, y) or (frame,)


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of an iterable of batches.

    Args:
        source: yields in each pass x (B, *shape), (x, y) or data frames, as tensors or arrays.
        name: what messages name it.
        num_rows: the number of rows of its first pass.
        reading: how data frames are read, with the columns of the first pass.
        classes: the names of the classes in the column of labels, or ().
    """

    source: Iterable[Any]
    name: str
    num_rows: int = 0
    reading: Reading = Reading()  # noqa: RUF009  # it cannot be changed
    classes: tuple[str, ...] = ()

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the values of all rows, and their labels or None, several batches together if they are small."""
        for first, *rest in _read(self.source, self.name):
            if isinstance(first, DataFrame):
                yield self.values(first)
            else:
                yield first, rest[0] if rest else None

    def values(self, frame: DataFrame) -> tuple[Tensor, Tensor | None]:
        """Return the values of a data frame, and its classes or None.

        Raises:
            InputError: a field is not of its column's kind, or a class is none of the first pass.
        """
        x = torch.from_numpy(frame_values(frame, self.reading, self.name))
        return x, class_codes(frame, self.reading.label_column, self.classes, self.name) if self.classes else None


def streamed(source: Iterable[Any], name: str, reading: Reading = Reading(), quiet: bool = True) -> Dataset:  # noqa: B008
    """Read all rows of an iterable once, and return a data set that will read them again in each epoch.

    At most 40,000 rows drawn at random are kept: a tenth of all, at most 10,000, as test data, and the others as a
    sample of the training data, on which the start of a training, pictures and measures depend. Kinds of columns and
    the check of the domain also depend on the rows of the least and the greatest value of each column (of all values of
    a tensor), of a number that is not whole, of a missing value, and of each text. Rows that are held out are left out
    of each pass, as often as they were held out, wherever they come.

    Args:
        source: yields batches, and starts anew at each iter(): a `DataLoader`, for instance. Rows that are sorted in
            some way should be shuffled by it; of the next 65,536 the order is random.
        name: what messages and titles name it.
        reading: how data frames are read.
        quiet: draw no progress bar.

    Raises:
        InputError: it is empty, can be read once only, raises an exception, or yields something else.
    """
    sample, extremes, num_rows, most = _Sample(), _Extremes(reading.label_column), 0, -1
    total = 0
    with suppress(TypeError):  # of a loader of an iterable data set
        total = len(source) if isinstance(source, Sized) else 0
    with progress_bar(f"reading {name}", total, "batch", quiet) as bar:
        for batch in _read(source, name, lambda: bar.update(1)):
            num_rows += len(batch[0])
            sample.add(batch)
            extremes.add(batch)
            if len(batch) > 1 and batch[1].dtype == torch.int64 and batch[1].dim() == 1:
                most = max(most, int(batch[1].max()))
    if num_rows < 4:
        raise InputError(f"{name} has {num_rows} rows: give at least 4")
    rows = sample.rows()
    num_test = max(2, min(_HELD_OUT, num_rows // 10, len(rows[0]) // 4))
    in_order = np.arange(len(rows[0]))
    test, train = _taken(rows, in_order[:num_test]), _taken(rows, in_order[num_test:])
    seldom = [*extremes.rows.values()] if num_rows > len(rows[0]) else []
    if isinstance(test[0], DataFrame):
        every = _joined([test, train, *seldom])[0]
        values = read_frame(every, reading, name)
        classes = coded_labels(values.labels["train"])[1] if values.labels else ()
        known = replace(reading, known=values.columns, left_out=values.left_out, columns="")
        stream = Stream(source, name, num_rows, known, classes if len(classes) > 1 else ())
        sizes = [num_test, len(train[0]), len(seldom)]
        of_x, of_y = stream.values(every)
        x_test, x, extreme = of_x.split(sizes)
        y_test, y, _ = (None, None, None) if of_y is None else of_y.split(sizes)
        return Dataset(
            name, x, x_test, y, y_test, stream.classes, note=values.note, columns=values.columns,
            left_out=values.left_out, label_place=values.label_place, constants=values.constants, stream=stream,
            num_streamed=num_rows - num_test, extremes=extreme if seldom else None,
        )  # fmt: skip
    y, y_test = (train[1], test[1]) if len(test) > 1 else (None, None)
    return Dataset(
        name, train[0], test[0], y, y_test, tuple(map(str, range(most + 1))), stream=Stream(source, name, num_rows),
        num_streamed=num_rows - num_test, extremes=_joined(seldom)[0] if seldom else None,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class StreamedData(TrainingData):
    """Training data of a stream: `prepared` holds those of the next steps, and is filled again and again.

    Args:
        kept: prepared training data that are kept in memory.
        data: the data set.
        stream: its stream.
    """

    kept: Tensor
    data: Dataset
    stream: Stream

    @classmethod
    def of(cls, data: Dataset, stream: Stream, sample: TrainingData, batch_size: int) -> StreamedData:
        """Return the training data of a data set, of which a sample is in memory; there is room for whole batches."""
        x, y = sample.prepared, sample.y
        size = max(1, min(_NEXT, _BYTES // x[0].nbytes, data.num_train) // batch_size) * batch_size
        labels = None if y is None else y.new_empty(size, *y.shape[1:])
        return cls(x.new_empty(size, *x.shape[1:]), sample.preparation, labels, x, data, stream)

    def __len__(self) -> int:
        """Return the number of training data in a pass."""
        return self.data.num_train

    @property
    def sample(self) -> Tensor:
        """The prepared training data that are kept in memory."""
        return self.kept

    def orders(self, passes: int, num_visits: int) -> Iterator[Tensor]:
        """Yield a random order of the data in `prepared`, each time it was filled, until `num_visits` data were in it.

        Raises:
            TrainingError: the stream ends early, raises an exception, or yields something else than before.
        """
        filled = 0
        try:
            for x, y in self._rows(passes):
                start = 0
                while start < len(x) and num_visits:
                    size = min(len(x) - start, len(self.prepared) - filled, num_visits - filled)
                    rows, to = slice(start, start + size), slice(filled, filled + size)
                    self.prepared[to] = self.preparation.prepared(x[rows], "train", is_redrawn=True)
                    if self.y is not None and y is not None:
                        self.y[to] = y[rows]
                    start, filled = start + size, filled + size
                    if filled == min(len(self.prepared), num_visits):
                        yield torch.randperm(filled)
                        num_visits, filled = num_visits - filled, 0
        except InputError as error:
            raise TrainingError(str(error)) from error

    def _rows(self, passes: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the rows of some passes, but for those that are held out."""
        stream, held_out = self.stream, [x for split, x in self.data.splits.items() if split != "train"]
        table, counts = np.unique(np.concatenate([_hashes(x) for x in held_out]), return_counts=True)
        for _ in range(passes):
            left, num_rows = counts.copy(), 0
            for x, y in stream.batches():
                if (found := _layout((x,))) != (known_as := _layout((self.data.train,))):
                    raise InputError(f"{stream.name} yields {found}, and its first pass {known_as}")
                num_rows += len(x)
                hashes = _hashes(x)
                place = np.searchsorted(table, hashes).clip(max=len(table) - 1)
                known = np.flatnonzero(table[place] == hashes)
                place = place[known]
                rank = pandas.Series(place).groupby(place).cumcount().to_numpy()
                is_kept = np.ones(len(x), bool)
                is_kept[known] = rank >= left[place]
                left = (left - np.bincount(place, minlength=len(left))).clip(min=0)
                kept = torch.from_numpy(is_kept)
                yield x[kept], None if y is None else y[kept]
            if num_rows < stream.num_rows:
                raise InputError(
                    f"{stream.name} has ended after {num_rows:,} rows, and had {stream.num_rows:,} in its first pass: "
                    "give an iterable that yields as many in each pass"
                )
            if left.sum() > _MISSED * counts.sum():  # a few where a loader drops its last batch
                raise InputError(
                    f"{stream.name}: {left.sum():,} of {counts.sum():,} rows that are held out did not come again, and "
                    "others are trained on in their place: give an iterable of the same rows in each pass, without "
                    "random transformations or draws with replacement, or a pvae.Dataset with test data of its own"
                )


class _Sample:
    """Rows drawn at random without replacement, in a random order, of which each has a key; the least are kept."""

    def __init__(self) -> None:
        self.random, self.keys, self.parts = np.random.RandomState(0), list[NDArray[Any]](), list[Batch]()
        self.limit, self.count, self.most = 1.0, 0, _SAMPLE

    def add(self, batch: Batch) -> None:
        """Draw the keys of a batch."""
        if not self.parts and isinstance(batch[0], Tensor):
            self.most = max(8, min(self.most, _BYTES // batch[0][0].nbytes))
        keys = self.random.random_sample(len(batch[0]))
        chosen = np.flatnonzero(keys < self.limit)
        self.keys.append(keys[chosen])
        self.parts.append(_taken(batch, chosen))
        self.count += len(chosen)
        if self.count > 2 * self.most:
            self.rows()

    def rows(self) -> Batch:
        """Return the rows with the least keys, in the order of these."""
        keys, rows = np.concatenate(self.keys), _joined(self.parts)
        order = keys.argsort()[: self.most]
        self.keys, self.parts, self.count = [keys[order]], [_taken(rows, order)], len(order)
        self.limit = keys[order[-1]] if len(order) == self.most else 1.0
        return self.parts[0]


class _Extremes:
    """For each column the row of its least and greatest value, of one that is not whole, of none, and of each text.

    Of tensors, these are rows of all values together.

    Args:
        label: a column of classes.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.rows, self.best = dict[Any, Batch](), dict[tuple[int, Any], float]()
        self.texts: dict[Any, set[Any]] = {}

    def add(self, batch: Batch) -> None:
        """Look at a batch."""
        first = batch[0]
        if isinstance(first, DataFrame):
            for name in first:
                column = first[name]
                is_number = pandas.api.types.is_numeric_dtype(column) and name != self.label
                if is_number or pandas.api.types.is_datetime64_any_dtype(column):
                    numbers = pandas.to_numeric(column).to_numpy(float, na_value=np.nan)
                    self._look(batch, name, [-numbers, numbers, numbers != np.rint(numbers), np.isnan(numbers)])
                else:
                    seen = self.texts.setdefault(name, set())
                    for row in np.flatnonzero(~column.duplicated() & ~column.isin([*seen])):
                        if len(seen) < _MOST_TEXTS:
                            self.rows[name, column.iloc[row]] = _taken(batch, np.array([row]))
                            seen.add(column.iloc[row])
        elif first.is_floating_point() or first.dtype == torch.int64:
            x = first.flatten(1)
            filled = x.nan_to_num(nan=0.0) if x.is_floating_point() else x.double()
            scores = [-filled.amin(1), filled.amax(1), (filled != filled.round()).any(1), x.isnan().any(1)]
            self._look(batch, "x", [one.double().numpy() for one in scores])

    def _look(self, batch: Batch, name: Any, scores: Sequence[Any]) -> None:
        """Keep the rows of which a score is greater than any before."""
        for what, found in enumerate(scores):
            found = np.where(np.isnan(found), -np.inf, found)
            row = int(found.argmax())
            if found[row] > self.best.get((what, name), -np.inf if what < 2 else 0.0):
                self.best[what, name] = found[row]
                self.rows[what, name] = _taken(batch, np.array([row]))


def _read(source: Iterable[Any], name: str, read: Callable[[], object] = lambda: None) -> Iterator[Batch]:
    """Yield the batches of an iterable as tensors or data frames, several together if they are small.

    Raises:
        InputError: as for `streamed`.
    """
    if isinstance(source, Iterator):
        raise InputError(f"{name} is a {type(source).__name__}, which can be read once only: give a DataLoader, a list "
                         "of batches, or an object whose __iter__ starts anew")  # fmt: skip
    parts, size, layout = list[Batch](), 0, None
    try:
        for given in source:
            read()
            batch = _batch(given, name)
            if not len(batch[0]):
                continue
            if (found := _layout(batch)) != (layout := layout or found):
                raise InputError(f"{name} yields {found} after {layout}: yield data of one shape, type and columns")
            parts.append(batch)
            size += len(batch[0])
            num_bytes = size * batch[0][0].nbytes if isinstance(batch[0], Tensor) else 0
            if size >= _AT_ONCE or 4 * num_bytes > _BYTES:
                yield _joined(parts)
                parts, size = [], 0
        if parts:
            yield _joined(parts)
    except InputError:
        raise
    except Exception as error:  # of any type: it is the user's code
        raise InputError(f"{name} cannot be read ({type(error).__name__}: {brief(error)})") from error


def _batch(given: Any, name: str) -> Batch:
    """Return a batch as tensors, or as a data frame."""
    if hasattr(given, "to_pandas"):
        given = given.to_pandas()
    if isinstance(given, DataFrame):
        return (checked(given.reset_index(drop=True), name),)
    items = [*given] if isinstance(given, (list, tuple)) else [given]
    items = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in items]
    if len(items) not in (1, 2) or not all(isinstance(one, Tensor) for one in items):
        found = ", ".join(type(one).__name__ for one in items)
        raise InputError(f"{name} yields {found}: yield batches of x, of x and a label, or data frames")
    x, *y = items
    if x.dim() < 2 or (y and len(y[0]) != len(x)):
        shapes = " and ".join(str(tuple(one.shape)) for one in items)
        raise InputError(f"{name} yields tensors of shape {shapes}: yield x of shape (B, *shape), and (B, ...) labels")
    if any(one.layout != torch.strided for one in items):
        raise InputError(f"{name} yields sparse tensors: yield dense ones, by to_dense()")
    x = x.float() if x.dtype == torch.bfloat16 else x
    if x.is_floating_point() and bool(x.isinf().any()):
        raise InputError(f"{name} yields an infinite value: give finite ones, or NaN for what is missing")
    return (x.detach().cpu(), *(one.detach().cpu() for one in y))


def _layout(batch: Batch) -> str:
    """Return what is the same of all batches, in words."""
    if isinstance(batch[0], DataFrame):
        return f"columns {', '.join(map(str, batch[0]))}"
    return " and ".join(f"{str(one.dtype).removeprefix('torch.')} (B, *{tuple(one.shape[1:])})" for one in batch)


def _taken(batch: Batch, rows: NDArray[Any]) -> Batch:
    return tuple(one.iloc[rows] if isinstance(one, DataFrame) else one[torch.from_numpy(rows)] for one in batch)


def _joined(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)
    return tuple(
        pandas.concat(some, ignore_index=True) if isinstance(some[0], DataFrame) else torch.cat(some)
        for some in columns
    )


def _hashes(x: Tensor) -> NDArray[np.uint64]:
    """Return a number for each row, of 64 bits, which is the same for equal rows."""
    bits = x.flatten(1).contiguous().numpy()
    words = bits.view(f"u{bits.itemsize}").astype(np.uint64)
    factors = np.random.RandomState(0).randint(1, 2**62, words.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    words *= factors
    words ^= words >> np.uint64(32)
    return (words * factors).sum(1, dtype=np.uint64)
