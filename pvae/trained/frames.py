"""What a trained run computes for data, in the order and with the columns of the user's file: data frames, or arrays.

A table comes back as a data frame of its fields, other data as arrays by their names. Rows that cannot be rows of the
run's table stay in their places, without values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas
import torch
from pandas import DataFrame
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.protocol import for_each
from pvae.data.read import OtherData
from pvae.runs.run import Run
from pvae.tables.codec import to_file
from pvae.tables.column import Column
from pvae.tables.schema import Schema
from pvae.trained import latent_space
from pvae.trained.given import label_of, labels_to_sample, read_codes
from pvae.trained.imputation import Imputed, complete_rows, impute, num_tries

Content: TypeAlias = "DataFrame | dict[str, Any]"


def encode_data(run: Run, given: OtherData, draws: bool = False) -> dict[str, Any]:
    """Return the names, the labels if there are some, and the codes (N, L) of data, NaN of rows that are outside.

    Args:
        run: the run.
        given: the data.
        draws: draw z from q(z | x), in place of its mean, loc, and its standard deviation, scale.

    Raises:
        InputError: mean and standard deviation have no closed form.
    """
    batch = given.batch(run.preparation)
    arrays: dict[str, Any] = {"names": given.names}
    if given.labels:
        arrays["labels"] = given.labels
    codes: Mapping[str, Tensor]
    if draws:
        codes = latent_space.draw_codes(run.vae(), batch)
    else:
        codes = latent_space.encode_images(run.vae(), batch)._asdict()
    return arrays | {name: given.in_place(z) for name, z in codes.items()}


def reconstruct_data(run: Run, given: OtherData) -> Tensor:
    """Return the mean of p(x | z) at the mean of q(z | x) of data, (N, *D), NaN of rows that are outside.

    Those of a table are in the columns of the file, as `to_file` returns them.
    """
    batch = given.batch(run.preparation)
    means = latent_space.decode(run.vae(), latent_space.encode(run.vae(), batch), batch.y)
    return given.in_place(to_file(run.data, means, batch.y))


def sample_data(
    run: Run, count: int, label: str | None = None, codes: Path | None = None, draws: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return new data x (S, *D) and their labels (S, ...), None without labels: of images means of p(x | z).

    Those of a table are in the columns of the file, as `to_file` returns them.

    Args:
        run: the run; its data are read if there are labels and none is named.
        count: S, the number of draws z ~ p(z).
        label: of all data, as for `label_of`; by default labels are drawn in the shares of the training data.
        codes: a file of codes, as for `read_codes`, which are decoded in place of draws from p(z).
        draws: draw pixels too; other data are always drawn.

    Raises:
        InputError: there is no such label or file, or codes need a label.
    """
    draws = draws or not run.data.is_images
    if codes is None:
        y = labels_to_sample(run, count, label)
        if run.data.recorded:
            x = latent_space.sample_rows(run.vae(), run.data, count, y)
        else:
            x = latent_space.sample(run.vae(), count, draws, y)
        return to_file(run.data, x, y), for_each(y, count)
    y = None
    if label is not None:
        y = label_of(run, label)
    elif run.is_given_labels:
        raise InputError(f"{run.name} was trained with labels: give --label NAME beside --codes")
    z = latent_space.with_labels(run.vae().prior(), read_codes(run, codes), y)
    x = latent_space.decode(run.vae(), z, y, draws=draws)
    return to_file(run.data, x, y), for_each(y, len(x))


class ImputedData(NamedTuple):
    """Data of a file whose missing values are filled in.

    Args:
        content: the fields of a table, with a column "imputation" of several draws; or the arrays names, and filled and
            std, or draws (N, M, *D).
        spread: of a table the standard deviation of each value, 0 of one that was given; None for draws.
        num_missing: the number of values that were missing.
        num_left: the number of rows of which fields stay empty, as no draw agrees with the rules.
        untrusted: the names of the rows whose weights cannot be trusted.
    """

    content: Content
    spread: DataFrame | None
    num_missing: int
    num_left: int
    untrusted: Sequence[str]


def impute_data(
    run: Run, given: OtherData, num_imputations: int = 0, on_data: Callable[[int], object] = lambda count: None
) -> ImputedData:
    """Return data whose missing values are filled in by their means, or several times by draws.

    Args:
        run: trained with `Config.missing`.
        given: the data, read to be filled in.
        num_imputations: the number of draws; 0 for means.
        on_data: as for `impute`.
    """
    batch = given.batch(run.preparation)
    num_draws = num_tries(run.data, num_imputations)
    found = impute(run.vae(), batch, num_draws=num_draws, on_data=on_data)
    untrusted = [given.names[row] for row in given.inside[~found.is_trusted]]
    if run.data.columns:
        content, spread, num_left = _imputed_table(run, given, found, num_imputations)
        num_missing = int(given.in_file[given.inside].isnan().sum())
        return ImputedData(content, spread, num_missing, num_left, untrusted)
    arrays: dict[str, Any] = {"names": given.names}
    if num_imputations:
        arrays["draws"] = given.in_place(found.draws, given.x[:, None])
    else:
        arrays["filled"] = given.in_place(found.filled, given.x)
        arrays["std"] = given.in_place(found.std)
    return ImputedData(arrays, None, int(given.x[given.inside].isnan().sum()), 0, untrusted)


def _imputed_table(
    run: Run, given: OtherData, found: Imputed, num_imputations: int
) -> tuple[DataFrame, DataFrame | None, int]:
    """Return the table, its spread, and the number of rows of which fields stay empty."""
    assert given.fields is not None  # of the file of a table
    fields = given.fields.frame
    is_missing = missing_fields(run.data, given, fields, run.data.reading.missing_texts)
    columns = [replace(column, point=given.fields.point) for column in run.data.file_columns]
    imputations, left = complete_rows(run.data, given, found, num_imputations)
    frames = []
    for rows in imputations:
        new = in_order(run.data, texts_of(columns, rows, is_filled=True))
        frames.append(filled_in(fields, new, is_missing))
    if num_imputations:
        numbered = pandas.concat(frames, keys=range(1, 1 + num_imputations), names=["imputation", None])
        return numbered.reset_index("imputation"), None, len(left)
    plain = [Column(column.name, point=column.point) for column in columns]
    deviations = in_order(run.data, texts_of(plain, _deviations(run.data, given, found)))
    is_missing[[column.name for column in columns]] = True
    return frames[0], filled_in(fields, deviations, is_missing), len(left)


def _deviations(schema: Schema, given: OtherData, found: Imputed) -> Tensor:
    """Return the standard deviations of the columns of a file, (N, D), NaN of those that a rule has rewritten."""
    std = torch.full(given.in_file.shape, torch.nan)
    for place, column in enumerate(schema.file_columns):
        if column in schema.columns:
            std[:, place] = given.in_place(found.std[:, schema.columns.index(column)])
    return std


def as_file(schema: Schema, names: Sequence[str], x: Tensor, labels: Sequence[str] = ()) -> Content:
    """Return data that are no images as a file has them: of a table its fields, else the arrays names, x and labels.

    Args:
        schema: of the data.
        names: of each datum, which a table does not have.
        x: the data (N, *D), of a table in the columns of the file; NaN is an empty field.
        labels: the names of their classes, if there are some.
    """
    if schema.columns:
        return in_order(schema, texts_of(schema.file_columns, x), labels)
    arrays: dict[str, Any] = {"names": names, "x": x}
    if labels:
        arrays["labels"] = labels
    return arrays


def texts_of(columns: Iterable[Column], x: Tensor, is_filled: bool = False) -> dict[str, Any]:
    """Return the fields of columns by their names, given the values (N, D); as for `Column.text`."""
    fields = {}
    for column, values in zip(columns, x.T.tolist()):
        fields[column.name] = np.array([column.text(value, is_filled=is_filled) for value in values], dtype=object)
    return fields


def in_order(schema: Schema, fields: Mapping[str, Any], labels: Sequence[Any] = ()) -> DataFrame:
    """Return new rows as a data frame with the columns of the file, in its order, the constant ones among them.

    Args:
        schema: of the table.
        fields: those of `schema.file_columns`, by their names.
        labels: of the rows, if they have some.
    """
    columns: list[tuple[float, str, Any]] = []
    for place, (name, values) in enumerate(fields.items()):
        columns.append((place, name, values))
    if labels:
        columns.append((schema.label_place - 0.5, schema.reading.label_column or "label", labels))
    for constant in schema.constants:
        columns.append((constant.place - 0.6, constant.name, constant.text))
    columns.sort(key=itemgetter(0))
    return DataFrame({name: values for _, name, values in columns})


def missing_fields(schema: Schema, given: OtherData, frame: DataFrame, texts: Iterable[str] = ("",)) -> DataFrame:
    """Return which fields of a frame are missing, or below a limit: bool, of its shape.

    Args:
        schema: of the run's table.
        given: the rows of the frame; those of them that are outside are not filled in.
        frame: the fields, or other values.
        texts: what stands in a missing field of a column that is no part of x.
    """
    is_missing = frame.isna() | frame.isin([*texts])
    of_file = given.in_place(given.in_file[given.inside].isnan(), torch.tensor(False))
    is_missing[[column.name for column in schema.file_columns]] = of_file.numpy()
    return is_missing


def filled_in(frame: DataFrame, new: DataFrame, is_missing: DataFrame) -> DataFrame:
    """Return a frame with its missing fields from new rows, in the same places and columns of the same names."""
    frame = frame.copy()
    for name in new.columns.intersection(frame.columns):
        if is_missing[name].any():
            values = new[name].set_axis(frame.index)
            frame[name] = frame[name].astype(object).mask(is_missing[name], values).astype(values.dtype)
    return frame
