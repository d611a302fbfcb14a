"""A VAE of the rows of a table for scikit-learn: `VAEEstimator`, a density, and `VAEOutlierDetector`."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from pandas import DataFrame
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pvae.config.build import build_vae, preparation_of
from pvae.config.choices import split_for, values_config
from pvae.core.batch import Batch
from pvae.core.errors import InputError, check_name, listed
from pvae.core.options import options_of
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, random_subset
from pvae.data.read import OtherData, other_rows, read
from pvae.marginal.importance import LEAST_NEAR
from pvae.marginal.log_likelihood import log_likelihood
from pvae.marginal.log_p import LogP, is_continuous
from pvae.tables.codec import log_density_beside, to_file
from pvae.tables.column import Column
from pvae.tables.parsing import checked, class_codes, read_frame
from pvae.tables.reading import Reading
from pvae.tables.schema import Schema
from pvae.trained import latent_space
from pvae.trained.alarm import Sides, conformal_p_values, least_rows
from pvae.trained.frames import filled_in, in_order, missing_fields
from pvae.trained.imputation import complete_rows, impute, num_tries
from pvae.trained.scores import elbo_terms
from pvae.training.callbacks import Figures, TensorBoard, default_callbacks
from pvae.training.fit import fit
from pvae.vae import VAE

__all__ = ["VAEEstimator", "VAEOutlierDetector"]

_LEAST_ROWS = 6  # four to train on, and two to choose the epoch by
_CALIBRATION = 0.1  # of the training rows, at least; twice as many
_STEADY = 50  # up to this number, from which the rate of false alarms varies little
_REFERENCE = 200  # training rows, at most, that say how odd a row is
_PARTICLES = 500  # draws of z, by which log p is estimated where it is compared


class VAEEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A VAE of the rows of a table, with the methods of scikit-learn's transformers and densities.

        z ~ p(z),  x ~ p(x | z);     transform: E[z], z ~ q(z | x);     score_samples: log p(x)

    X is a data frame with numbers, texts, dates, booleans, categories and missing values, or an array or a sparse
    matrix of numbers. What is not given is chosen as by `values_config`: the kind of each column, the number of
    latents, the prior, the start and the number of epochs. A tenth of the rows, at least two, choose the epoch.

        VAEEstimator(latent_dim=2).fit(frame).score_samples(frame)

    Args:
        latent_dim: L, the number of latents.
        columns: the kind of single columns by their names, such as {"amount": "positive"}, as `--columns` names them.
        condition: a column of classes y, which are no part of x: the VAE is of p(x | y).
        epochs: the most epochs.
        config: further fields of `Config`, by their names, such as {"elbo": "iwae", "particles": 8}, or
            {"rules": "none"}: what holds in all rows is else found, and holds in drawn rows.
        random_state: of the weights, the order of the rows and all draws, and of the methods that draw; two fits of
            the same rows are the same.
        out: a new folder in which the run is kept; by default it is not.
        verbose: print each epoch, and at the end what was learned; "test" are the rows that choose the epoch.

    Attributes:
        vae_: the VAE, on the CPU.
        config_: the configuration.
        schema_: the columns of the table, and its rules.
        classes_: the names of the classes of `condition`, or ().
        n_features_in_: the number of columns of X.
        feature_names_in_: their names, if X is a data frame.
    """

    def __init__(
        self,
        latent_dim: int | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        condition: str | None = None,
        epochs: int | None = None,
        config: Mapping[str, Any] | None = None,
        random_state: Any = None,
        out: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.columns = columns
        self.condition = condition
        self.epochs = epochs
        self.config = config
        self.random_state = random_state
        self.out = out
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> VAEEstimator:
        """Train a VAE of the rows of X, (N, D); y is ignored.

        Raises:
            InputError: (a ValueError) there are too few rows, or a column or an option cannot be used.
        """
        self._fit(X)
        return self

    def _fit(self, X: Any, num_calibration: int = 0) -> Dataset:
        """Train, and return the data with their splits; a number of rows neither train nor choose anything."""
        frame = self._frame(X, reset=True)
        if len(frame) < _LEAST_ROWS:
            raise InputError(f"n_samples = {len(frame)} is too few: give at least {_LEAST_ROWS} rows")
        kinds = ",".join(f"{name}={kind}" for name, kind in (self.columns or {}).items())
        if self.condition:
            check_name("condition", self.condition, [*frame])
        more = dict(self.config or {})
        reading = {name: more[name] for name in options_of(Reading) if name in more}
        data = read(frame, **{"label_column": self.condition or "", "columns": kinds, "missing_values": "", **reading})
        if not data.is_in_parts:
            data = data.plain or data
            names = {**data.names, "valid": data.names["test"]}
            data = replace(data, valid=data.test, valid_labels=data.test_labels, names=names)
            data = data.with_rules(bool(self.condition))
            if data.near or data.impossible:
                warnings.warn(data.note, stacklevel=3)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        given = {"latent_dim": self.latent_dim, "epochs": self.epochs, "columns": kinds or None}
        options: dict[str, Any] = {"seed": seed, "compile": "graph", "condition": bool(self.condition)}
        options |= {name: value for name, value in given.items() if value is not None} | more
        if num_calibration:
            options["calibration"] = self._share_that_calibrates(num_calibration, data, more)
        config = values_config(data, **options)
        data = split_for(config, data)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run" if self.out is None else self.out
            callbacks = default_callbacks(quiet=not self.verbose)
            if self.out is None:
                callbacks = [one for one in callbacks if not isinstance(one, (Figures, TensorBoard))]
            run = fit(config, data, out=out, device="cpu", callbacks=callbacks)
            self.vae_, self.config_ = run.vae(), run.config
        self.schema_ = Schema(**data.schema)
        self.classes_: tuple[str, ...] = ()
        self.class_values_: list[Any] = []
        self.shares_ = None
        if self.condition:
            self.classes_ = data.label_names
            self.shares_ = data.labels["train"].bincount().double()
            codes = class_codes(frame, self.condition, self.classes_, "X").numpy()
            self.class_values_ = [frame[self.condition][codes == code].iloc[0] for code in range(len(self.classes_))]
        self.is_frame_ = isinstance(X, DataFrame)
        self.dtypes_ = dict((X if self.is_frame_ else frame).rename(columns=str).dtypes)
        return run.dataset()

    def _share_that_calibrates(self, num_rows: int, data: Dataset, options: Mapping[str, Any]) -> float:
        """Return the share of the training rows that are held out, so that there are enough, and rows to train.

        Their number n is a multiple of 1 / alarm less one: the rate, floor(alarm (n + 1)) / (n + 1), is then alarm.
        """
        if 2 * num_rows > data.num_train:
            least = math.ceil(1e3 / (data.num_train // 2 + 1)) / 1e3
            raise InputError(
                f"alarm needs {num_rows:,} rows beside those that train, and at most half of these {data.num_train:,} "
                f"can be: give alarm={least:g} or more, or more rows"
            )
        num_train = (data.plain or data).num_train
        wanted = max(_CALIBRATION * num_train, min(_STEADY, 2 * _CALIBRATION * num_train))
        wanted = max(wanted, options.get("calibration", 0.0) * num_train)
        times = max(1, round((wanted + 1) / (num_rows + 1)))
        return float(times * (num_rows + 1) - 1) / num_train

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the code of each row, the mean of q(z | x): (N, L)."""
        return latent_space.encode(self.vae_of(), self._batch_of(self._inside(X))).double().numpy()

    def inverse_transform(self, Z: Any) -> Any:
        """Return E[x | z] of codes (N, L), in the units and columns of X; of a category the most likely one.

        Raises:
            InputError: (a ValueError) there is a `condition`, whose classes codes do not have.
        """
        if self.condition:
            raise InputError(f"codes have no {self.condition}, which decoding needs: use sample, or vae_.likelihood")
        z = torch.as_tensor(np.asarray(Z, dtype=np.float32))
        if z.shape[1:] != (self._n_features_out,):
            raise InputError(f"codes have shape {tuple(z.shape)}: give (N, {self._n_features_out})")
        return self._table(latent_space.decode(self.vae_of(), z))

    def log_likelihood(self, X: Any, **how: Any) -> LogP:
        """Return log p(x) of each row in nats, with its error, its method and whether it is trusted.

        Args:
            X: rows.
            how: the method and its options, as of `pvae.marginal.log_likelihood.log_likelihood`.
        """
        return self._log_p(self._batch_of(self._inside(X)), **how)

    def _log_p(self, batch: Batch, **how: Any) -> LogP:
        with seeded(self.config_.seed):
            found = log_likelihood(self.vae_of(), batch, **how)
        return found._replace(log_p=found.log_p + log_density_beside(self.schema_, batch.x.images.double(), batch.y))

    def _log_p_alone(self, batch: Batch, num_particles: int = LEAST_NEAR) -> Tensor:
        """Return log p(x) of each row, (N,) nats, by the same draws, or the sum over few codes."""
        method = "auto"
        if is_continuous(self.vae_of(), batch):
            method = "importance"
        return self._log_p(batch, method=method, seed=self.config_.seed, num_particles=num_particles).log_p

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Return log p(x) of each row, (N,) nats, which does not depend on the other rows.

        It is by importance sampling with the same 1,600 draws for each row, or the sum over few codes; and -inf of a
        row that breaks a rule, or has a text or a value that its column cannot have. `log_likelihood` says how far each
        is to be trusted, and takes other methods too.
        """
        return self._of_each(X, lambda batch: self._log_p_alone(batch).numpy())

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of log p(x) over the rows, in nats; y is ignored.

        Rows that cannot be rows of the table, whose log p(x) is -inf, are left out, and a warning counts them: a rule
        of the rows of `fit` may fail in another fold. Means over different rows cannot be compared;
        `config={"rules": "none"}` finds no rules, and of a column of the dtype `category` all categories are known.

        Raises:
            InputError: (a ValueError) no row can be one of the table.
        """
        given = self._read(X).without_broken
        for row, why in [*given.outside.items()][:1]:
            said = f"X, row {row}: {why}"
            if len(given.outside) == len(given.names):
                raise InputError(said)
            count = f"{len(given.outside):,} of {len(given.names):,} rows"
            left_out = f"the score leaves out {count} that cannot be rows of the table: {said}"
            warnings.warn(f"{left_out}; see VAEEstimator.score", stacklevel=2)
        return float(self._log_p_alone(self._batch_of(given)).mean())

    def _of_each(self, X: Any, score: Callable[[Batch], NDArray[Any]]) -> NDArray[Any]:
        """Return the score of each row, -inf of one that cannot be a row of the table."""
        given = self._read(X).without_broken
        found = np.full(len(given.names), -math.inf)
        if len(given.outside) < len(found):
            found[given.inside.numpy()] = score(self._batch_of(given))
        return found

    def sample(self, n_samples: int = 1, condition: Any = None) -> Any:
        """Return rows that are drawn from p(x), in the columns of X, as whole and as decimal as these are.

        Args:
            n_samples: the number of rows.
            condition: the class of all rows; by default classes are drawn as often as the rows of `fit` had them.

        Raises:
            InputError: (a ValueError) the number is no whole number above 0, or there is no such class.
        """
        vae = self.vae_of()
        known = self.class_values_
        if not isinstance(n_samples, (int, np.integer)) or n_samples < 1:
            raise InputError(f"n_samples is {n_samples}: give a whole number above 0")
        if condition is not None and condition not in known:
            raise InputError(f"condition is {condition}, and not one of {known}")
        with seeded(self.config_.seed):
            y = None if self.shares_ is None else self.shares_.multinomial(n_samples, replacement=True)
            y = y if condition is None else torch.full((n_samples,), known.index(condition))
            x = latent_space.sample_rows(vae, self.schema_, n_samples, y)
        return self._table(x, y)

    def impute(self, X: Any) -> Any:
        """Return X with E[x missing | x observed] for what is missing or below a limit; of a category the likeliest.

        The index and the columns are those of X, and so are those that `fit` left out.
        """
        given = self._inside(X, fills=True)
        with seeded(self.config_.seed):
            found = impute(self.vae_of(), self._batch_of(given), num_draws=num_tries(self.schema_))
        (rows,), left = complete_rows(self.schema_, given, found)
        if len(left):
            rows_left = listed([given.names[row] for row in left.tolist()])
            said = f"{rows_left} stay as they are: no draw agrees with the given fields and the rules"
            warnings.warn(said, stacklevel=2)
        is_frame = isinstance(X, DataFrame)
        frame = X.rename(columns=str) if is_frame else self._frame(X)
        is_missing = missing_fields(self.schema_, given, frame)
        filled = filled_in(frame, self._frame_of(rows, is_filled=True), is_missing)
        return filled.set_axis(X.columns, axis=1) if is_frame else filled.to_numpy()

    def vae_of(self) -> VAE:
        """Return the VAE.

        Raises:
            NotFittedError: (a ValueError) it was not trained.
        """
        check_is_fitted(self, "vae_")
        return self.vae_

    @property
    def _n_features_out(self) -> int:
        return sum(self.config_.latent_dims)

    def _frame(self, X: Any, reset: bool = False) -> DataFrame:
        """Return X as a frame, whose number and names of columns are those of `fit`."""
        if isinstance(X, DataFrame):
            if X.columns.has_duplicates:
                twice = X.columns[X.columns.duplicated()][0]
                raise InputError(f"X has several columns named {twice}: give each a name of its own")
            known = [*getattr(self, "feature_names_in_", ())]
            is_turned = not reset and known != [*X] and sorted(known) == sorted(map(str, X))
            frame = (X[known] if is_turned else X).reset_index(drop=True)
            validate_data(self, frame, reset=reset, skip_check_array=True)
            if 0 in frame.shape:
                raise InputError(f"Found array with {X.shape[1]} feature(s) (shape={X.shape}): give rows and columns")
        else:
            x = validate_data(self, X, reset=reset, dtype=None, accept_sparse=True, ensure_all_finite="allow-nan")
            x = x.toarray() if hasattr(x, "toarray") else x
            frame = DataFrame(x, columns=[f"x{place}" for place in range(x.shape[1])]).infer_objects()
        return checked(frame, "X")

    def _inside(self, X: Any, fills: bool = False) -> OtherData:
        """Return rows of which each can be a row of the table; a warning names those that break a rule."""
        given = self._read(X, fills)
        for row, why in given.outside.items():
            raise InputError(f"X, row {row}: {why}")
        for row, why in [*given.broken.items()][:1]:
            warnings.warn(f"{len(given.broken):,} rows break a rule of the table: X, row {row}: {why}", stacklevel=3)
        return given

    def _batch_of(self, given: OtherData) -> Batch:
        return given.batch(preparation_of(self.config_))

    def _read(self, X: Any, fills: bool = False) -> OtherData:
        """Return rows of any values, with those that cannot be rows of the table, and why."""
        vae, frame = self.vae_of(), self._frame(X)
        values = read_frame(frame, self.schema_.reading, "X", self.schema_)
        y = class_codes(frame, self.condition, self.classes_, "X") if self.condition else None
        given = other_rows(self.schema_, values, y, fills)
        return given.checked(vae.p_x, preparation_of(self.config_), self.schema_.columns)

    def _table(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Return values (N, D) with their classes as a frame, if X was one in `fit`, or as an array."""
        frame = self._frame_of(to_file(self.schema_, x, y), y)
        return frame if self.is_frame_ else frame.to_numpy()

    def _frame_of(self, x: Tensor, y: Tensor | None = None, is_filled: bool = False) -> DataFrame:
        """Return values (N, D) of the columns of the file, with their classes, as a frame with the types of X."""
        fields = {}
        for column, values in zip(self.schema_.file_columns, x.numpy().T):
            fields[column.name] = _in_units(column, values, is_filled)
        labels = []
        if y is not None:
            labels = [self.class_values_[code] for code in y.tolist()]
        frame = in_order(self.schema_, fields, labels)
        return DataFrame({name: _like(frame[name], self.dtypes_[name]) for name in frame})

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: the weights in place of the modules."""
        state = dict(super().__getstate__())
        if "vae_" in state:
            state["vae_"] = {name: one.numpy() for name, one in self.vae_.state_dict().items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the VAE again, and give it its weights."""
        if "vae_" in state:
            vae = build_vae(state["config_"], (len(state["schema_"].columns),), len(state["classes_"]))
            vae.load_state_dict({name: torch.from_numpy(one) for name, one in state["vae_"].items()})
            state = {**state, "vae_": vae.eval()}
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Tags:
        """Return that texts, categories, sparse matrices and missing values are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.sparse = True
        tags.input_tags.string = tags.input_tags.categorical = True
        return tags


class VAEOutlierDetector(OutlierMixin, VAEEstimator):
    """A VAE that marks odd rows at a rate of false alarms that is known, as scikit-learn's outlier detectors do.

        predict: -1 where p <= alarm,     p = (1 + number of calibration rows at least as odd) / (1 + n)

    A row is odd by log p(x), distortion and rate together, as in `pvae.trained.alarm.Sides`. About a tenth of the rows
    of `fit`, a fifth of few, and at least 1 / alarm - 1, are held out to calibrate. Of rows like those of `fit`, which
    `fit` did not see, a share of at most `alarm` is marked in the mean, whatever the VAE is worth; and beside these,
    those that cannot be rows of the table, as with a category that `fit` did not see. Anomalies among the rows of `fit`
    are among the calibration rows too, and raise the p-values of rows like them.

    Args:
        latent_dim: as for `VAEEstimator`, as are the others.
        alarm: the rate of false alarms.
        columns: the same.
        condition: the same.
        epochs: the same.
        config: the same.
        random_state: the same.
        out: the same.
        verbose: the same.

    Attributes:
        sides_: how odd a row is.
        calibration_: how odd each calibration row is, ascending.
        offset_: the least score of a row that is not marked.

    Reference:
        Bates et al., arXiv:2104.08279.
    """

    def __init__(
        self,
        latent_dim: int | None = None,
        *,
        alarm: float = 0.1,
        columns: Mapping[str, str] | None = None,
        condition: str | None = None,
        epochs: int | None = None,
        config: Mapping[str, Any] | None = None,
        random_state: Any = None,
        out: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            latent_dim,
            columns=columns,
            condition=condition,
            epochs=epochs,
            config=config,
            random_state=random_state,
            out=out,
            verbose=verbose,
        )
        self.alarm = alarm

    def fit(self, X: Any, y: Any = None) -> VAEOutlierDetector:
        """Train a VAE of the rows of X, (N, D), but for those that calibrate; y is ignored.

        Raises:
            InputError: (a ValueError) as of `VAEEstimator`, or `alarm` is not between 0 and 1, or needs more rows.
        """
        if not 0 < self.alarm < 1:
            raise InputError(f"alarm is {self.alarm}: give a rate of false alarms above 0 and below 1")
        data = self._fit(X, least_rows(self.alarm))
        rows = random_subset(data.num_train, _REFERENCE, 0)
        self.sides_ = Sides.of(self._signs(self._of_split(data, "train").rows(rows)))
        oddness = self.sides_.oddness(self._signs(self._of_split(data, "calibration")))
        num_impossible = len(data.impossible.get("calibration", ()))  # rows that break a rule are as odd as can be
        self.calibration_ = np.sort(np.append(oddness, np.full(num_impossible, math.inf)))
        num_marked = math.floor(self.alarm * (len(self.calibration_) + 1) + 1e-9)
        self.offset_ = -self.calibration_[-num_marked]
        return self

    def _of_split(self, data: Dataset, split: str) -> Batch:
        return Batch(preparation_of(self.config_).x_of(data.splits[split]), data.labels.get(split))

    def _signs(self, batch: Batch) -> NDArray[np.float64]:
        """Return log p(x), distortion and rate of each row, (N, 3), which do not depend on the other rows."""
        seed = self.config_.seed
        terms = elbo_terms(self.vae_of(), batch, seed=seed)
        distortion = terms["distortion"] - log_density_beside(self.schema_, batch.x.images.double(), batch.y)
        log_p = self._log_p_alone(batch, _PARTICLES)
        return torch.stack([log_p, distortion, terms["rate"]], 1).double().numpy()

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Return how little odd each row is, (N,), higher is more usual; it does not depend on the other rows."""
        return self._of_each(X, lambda batch: -self.sides_.oddness(self._signs(batch)))

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return `score_samples` less `offset_`, (N,): below 0 for the rows that are marked."""
        scores = self.score_samples(X)
        with np.errstate(invalid="ignore"):  # where both are -inf
            return np.where(scores == self.offset_, 0.0, scores - self.offset_)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return -1 for each row that is marked as odd, and 1 for the others, (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return the conformal p-value of each row, (N,), for `pvae.trained.alarm.benjamini_hochberg` too."""
        scores = self.score_samples(X)
        return conformal_p_values(self.calibration_, -scores)


def _in_units(column: Column, values: NDArray[np.float64], is_filled: bool) -> Any:
    """Return values of x as the column has them: numbers, texts of categories, or of dates, or of what is below L."""
    if column.categories or column.date_format:
        return [column.text(value) or None for value in values.tolist()]
    if column.limit is not None and not is_filled:
        low = np.nan if column.kind == "below" else column.limit_text
        return pandas.Series(values, dtype=object).mask(values < column.limit, low)
    return values + column.origin


def _like(column: pandas.Series, dtype: Any) -> pandas.Series:
    """Return a column in a type that X has, if its values fit; else as it is."""
    try:
        if pandas.api.types.is_integer_dtype(dtype) and not (column.astype(float).dropna() % 1 == 0).all():
            return column.astype(float)
        if pandas.api.types.is_datetime64_any_dtype(dtype):
            return pandas.to_datetime(column).astype(dtype)
        if pandas.api.types.is_timedelta64_dtype(dtype):
            return pandas.to_timedelta(column, unit="s").astype(dtype)
        return column.astype(dtype)
    except (TypeError, ValueError):
        return column
