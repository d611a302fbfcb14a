"""`Measure`, the base of the records of `pvae evaluate`, and `Context`, what the measures of a run share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pvae.core.batch import Batch
from pvae.data.dataset import Dataset, random_subset
from pvae.marginal.log_likelihood import log_likelihood
from pvae.marginal.log_p import LogP
from pvae.runs.run import Run
from pvae.trained.codes import given_y
from pvae.trained.latent_space import posteriors
from pvae.trained.scores import elbo_terms, with_likelihood
from pvae.vae import VAE

_FIRST = 10  # data whose log p(x) is estimated before the first look at the clock
_AT_A_TIME = 160  # of the data between two later looks, unless all fit into the time

T = TypeVar("T")


@dataclass(eq=False)
class Context:
    """A run, how it is evaluated, and what its measures share: each part is computed once, when it is first asked for.

    Args:
        run: the run; its data must be at hand.
        num_images: number of test data, a random subset; all if None.
        seed: seed of the subset.
        seconds: estimate log p(x) of data in random order, as many as these seconds suffice for, and of no more than
            the first ten if none of them can be trusted; None for all.
        requests: the values of the options that ask for measures, by their names.
        how: the arguments of `log_likelihood`.
    """

    run: Run
    num_images: int | None = None
    seed: int = 0
    seconds: float | None = None
    requests: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    _found: dict[Callable[[Context], Any], Any] = field(default_factory=dict, init=False)

    def once(self, compute: Callable[[Context], T]) -> T:
        """Return what a function finds in this context, which it is called with once; `kind.of` of a measure too."""
        if compute not in self._found:
            self._found[compute] = compute(self)
        value: T = self._found[compute]
        return value

    @cached_property
    def vae(self) -> VAE:
        """Its VAE."""
        return self.run.vae()

    @cached_property
    def data(self) -> Dataset:
        """All data of the run."""
        return self.run.dataset()

    @cached_property
    def rows(self) -> Tensor | None:
        """The places of the test data that are evaluated, int64 (N,): a random subset, as some are sorted by class.

        They are shuffled if log p(x) is estimated for some seconds; None for all in their order.
        """
        if self.num_images is None and self.seconds is None:
            return None
        count = len(self.data.test)
        rows = random_subset(count, self.num_images or count, self.seed)
        if self.seconds is None:
            return rows
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]

    @cached_property
    def _normalised(self) -> tuple[VAE, Batch, str]:
        return with_likelihood(self.run, self.data.test, given_y(self.run, "test"), self.rows)

    @property
    def normalised(self) -> VAE:
        """The VAE with a likelihood that is a probability or a density."""
        return self._normalised[0]

    @property
    def test(self) -> Batch:
        """The test data as it takes them."""
        return self._normalised[1]

    @property
    def kind(self) -> str:
        """The kind of the pixels that it takes."""
        return self._normalised[2]

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
        if self.seconds is None:
            return self.log_p_of(self.test)
        started = time.monotonic()
        parts = list[LogP]()
        count = 0
        size = min(_FIRST, len(self.test))
        while size > 0:
            parts.append(self.log_p_of(self.test.rows(slice(count, count + size))))
            count += size
            if not any(part.is_trusted.any() for part in parts):
                break
            elapsed = time.monotonic() - started
            size = min(len(self.test) - count, int((self.seconds - elapsed) / elapsed * count))
            if count + size < len(self.test):
                size = min(size, _AT_A_TIME)
        return LogP(*map(torch.cat, zip(*parts)))

    def log_p_of(self, batch: Batch) -> LogP:
        """Return log p(x) of other data by the same methods."""
        return log_likelihood(self.normalised, batch, **self.how)

    @cached_property
    def batch(self) -> Batch:
        """The data of `log_p`."""
        return self.test.rows(slice(len(self.log_p.log_p)))


@dataclass(frozen=True)
class Request:
    """An option of `pvae evaluate`, and a keyword argument of `evaluate`, that asks for a measure.

    Args:
        name: of the argument; the option is --NAME.
        help: of the option.
        metavar: of its value; "" for an option without one.
        least: the least value of a whole number; None for a text.
        needs_all: it is of all data, and not of those that `evaluate(seconds=)` came to.
    """

    name: str
    help: str
    metavar: str = ""
    least: int | None = None
    needs_all: bool = False


def said(label: str, note: str = "", **how: Any) -> Any:
    """Return a field of a measure that has a line in the text; `how` is of `dataclasses.field`."""
    return field(metadata={"words": (label, note)}, **how)


class Measure:
    """What one measure says of a run on its test data.

    A subclass is a frozen dataclass, in `MEASURES`. The name of a field is its key in `evaluation.json`; a field that
    `said` returns has a line in the text.

    Attributes:
        title: the line above it in the text; "" for none.
        absent: what stands there where it does not apply; "" for nothing.
        request: the option that asks for it; None for a measure that is always computed where it applies.
    """

    title: ClassVar[str] = ""
    absent: ClassVar[str] = ""
    request: ClassVar[Request | None] = None

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if it cannot be computed; called before anything is computed."""

    @classmethod
    def of(cls, context: Context) -> Measure | None:
        """Return the measure of a run; None where it does not apply. One with a `request` is called if asked for."""
        raise NotImplementedError

    def words(self) -> dict[str, tuple[str, str]]:
        """Return the label and the note of each field that has a line in the text."""
        every: Any = self  # a subclass is a dataclass
        return {entry.name: entry.metadata["words"] for entry in fields(every) if "words" in entry.metadata}

    def lines(self) -> Iterator[str]:
        """Yield its lines in the text: one for each field of `words` that has a value, or for each of its records."""
        for name, (label, note) in self.words().items():
            value = getattr(self, name)
            if value is None or value is False or value in ("", ()):
                continue
            if isinstance(value, tuple) and is_dataclass(value[0]):
                yield label
                yield from (f"    {line}" for line in value)
                continue
            if isinstance(value, tuple):
                shown = ", ".join(map(_text, value))
            else:
                shown = _text(value)
            yield f"{label:26}{shown:22}  {note}".rstrip()

    def warnings(self) -> Iterator[str]:
        """Yield lines for the end of the text."""
        yield from ()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
