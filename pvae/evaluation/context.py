"""`Context`, what the measures of a run share: each part is computed once, when it is first asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pvae.core.batch import Batch
from pvae.data.dataset import Dataset, random_subset
from pvae.data.preparation import Pixels
from pvae.evaluation.measures.floor import floor
from pvae.evaluation.measures.measure import Measure
from pvae.marginal.log_likelihood import ANNEALING, Progress, hidden, log_likelihood
from pvae.marginal.log_p import LogP
from pvae.runs.run import Run
from pvae.trained.codes import given_y
from pvae.trained.latent_space import posteriors
from pvae.trained.scores import elbo_terms, with_likelihood
from pvae.vae import VAE

__all__ = ["Context", "Settings"]

_FIRST, _MOST_AT_A_TIME = 10, 160  # data whose log p(x) is estimated between two looks at the clock

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is evaluated: the arguments of `evaluate`."""

    num_particles: int = 5000
    num_images: int | None = None
    seed: int = 0
    method: str = "auto"
    annealing: Mapping[str, Any] = field(default_factory=lambda: ANNEALING)
    engine: str = "auto"
    progress: Progress = hidden
    seconds: float | None = None
    requests: Mapping[str, Any] = field(default_factory=dict)


class Context:
    """A run, how it is evaluated, and what its measures share.

    Args:
        run: the run; its data must be at hand.
        settings: how it is evaluated.
    """

    def __init__(self, run: Run, settings: Settings = Settings()) -> None:
        self.run, self.settings = run, settings
        self.vae: VAE = run.vae()
        self._measures, self._asked = dict[type[Measure], Any](), dict[type[Measure], Any]()

    def measure(self, kind: type[M]) -> M | None:
        """Return a measure of the run, computed once; None where it does not apply."""
        if kind not in self._measures:
            self._measures[kind] = kind.of(self)
        found: M | None = self._measures[kind]
        return found

    def asked(self, kind: type[Measure]) -> Any:
        """Return the value of the option that asks for a measure; None if it was not given."""
        if kind not in self._asked:
            value = self.settings.requests.get(kind.request.name) if kind.request else None
            self._asked[kind] = None if value is None else kind.asked_for(self.run, value)
        return self._asked[kind]

    @cached_property
    def data(self) -> Dataset:
        """All data of the run."""
        return self.run.dataset()

    @cached_property
    def rows(self) -> Tensor | None:
        """The places of the test data that are evaluated, int64 (N,): a random subset, as some are sorted by class.

        They are shuffled if log p(x) is estimated for some seconds; None for all in their order.
        """
        how = self.settings
        if how.num_images is None and how.seconds is None:
            return None
        rows = random_subset(len(self.data.test), how.num_images or len(self.data.test), how.seed)
        if how.seconds is None:
            return rows
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(how.seed))]

    @cached_property
    def places(self) -> Tensor:
        """The same as indices of the test data, where all are taken too."""
        return torch.arange(len(self.data.test)) if self.rows is None else self.rows

    @cached_property
    def _normalised(self) -> tuple[VAE, Batch, str]:
        return with_likelihood(self.run, self.data.test, given_y(self.run, "test"), self.rows)

    @property
    def normalised(self) -> VAE:
        """The VAE with a likelihood that is a probability or a density."""
        return self._normalised[0]

    @property
    def kind(self) -> str:
        """The kind of the pixels that it takes."""
        return self._normalised[2]

    @property
    def test(self) -> Batch:
        """The test data as it takes them."""
        return self._normalised[1]

    @cached_property
    def seen(self) -> Batch:
        """The test data as the VAE was trained on them."""
        if not self.vae.is_pseudo:
            return self.test
        return Batch(self.run.preparation.x_of(self.data.test, rows=self.rows), self.test.y)

    @cached_property
    def terms(self) -> dict[str, Tensor]:
        """The ELBO of each datum of `seen` and its parts, (N,) nats."""
        return elbo_terms(self.vae, self.seen)

    @cached_property
    def posteriors(self) -> list[TorchDistribution]:
        """q(z | x) of the data of `seen`, in parts."""
        return posteriors(self.vae, self.seen)

    @cached_property
    def log_p(self) -> LogP:
        """Log p(x) of the data of `test`; of the first of them, if it was estimated for some seconds."""
        if self.settings.seconds is None:
            return self.log_p_of(self.test)
        parts, started, count, size = list[LogP](), time.monotonic(), 0, _FIRST
        while count < len(self.test) and (not parts or time.monotonic() - started < self.settings.seconds):
            parts.append(self.log_p_of(self.test.rows(slice(count, count + size))))
            count, size = count + size, min(2 * size, _MOST_AT_A_TIME)
        return LogP(*map(torch.cat, zip(*parts)))

    def log_p_of(self, batch: Batch) -> LogP:
        """Return log p(x) of other data by the same methods."""
        return log_likelihood(self.normalised, batch, **self.how)

    @property
    def how(self) -> dict[str, Any]:
        """The arguments of `log_likelihood`."""
        names = ("method", "num_particles", "annealing", "engine", "progress")
        return {name: getattr(self.settings, name) for name in names}

    @cached_property
    def batch(self) -> Batch:
        """The data of `log_p`."""
        return self.test.rows(slice(len(self.log_p.log_p)))

    @cached_property
    def floor(self) -> Tensor | None:
        """What a model without a latent reaches on `seen`, for each value of a datum, as `floor` says."""
        if self.run.config.labels:  # whose bound is of labels too
            return None
        train = self.run.preparation.prepared(self.data.train, "train", is_redrawn=True)
        return floor(self.vae.p_x, Pixels(train, self.run.preparation), self.seen.x)
