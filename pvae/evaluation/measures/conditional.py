"""`Conditional`: the log-likelihood of a part of x given the other part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pvae.evaluation.measures.log_likelihood import methods_of
from pvae.evaluation.measures.measure import Measure, Request
from pvae.marginal.log_likelihood import conditional_log_likelihood
from pvae.trained.given import given_values
from pvae.trained.scores import Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from pvae.evaluation.context import Context
    from pvae.runs.run import Run

__all__ = ["Conditional"]


@dataclass(frozen=True, kw_only=True)
class Conditional(Measure):
    """The log-likelihood of a part of x given the other part; see `pvae.marginal.log_likelihood`.

    Args:
        given: the names of the columns that are given, or how many values of a datum are.
        estimate: the mean of log p(x_a | x_b) over data, x_b what is given, x_a the rest.
        method: the methods of log p(x_b), each with its number of data.
        sampling_stderr: the part of its error that comes from the draws of z, or from quadrature, if that is known.
        untrusted: the fraction of data where an estimate of log p(x) or log p(x_b) is not trusted.
    """

    title = "a part of x given another"
    request = Request(
        "given",
        "the log-likelihood of all other values of x given these: names of columns, with commas in between, or an .npy "
        "file of booleans in the shape of a datum, true where given; of a run with --missing",
        "COLUMNS|MASK",
    )

    given: str = field(metadata={"given": ""})
    estimate: Estimate = field(metadata={"log p(x_a | x_b)": "log p(x) - log p(x_b), x_b what is given; no bound"})
    method: str = field(metadata={"  log p(x_b) by": ""})
    sampling_stderr: float | None = field(metadata={"  error of the methods": "a part of the error above"})
    untrusted: float = field(metadata={"  share of untrusted": "data, whose log p(x_a | x_b) is not reliable"})

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the text does not name some values of x."""
        context.asked(cls)

    @classmethod
    def asked_for(cls, run: Run, value: str | Tensor) -> Tensor:
        """Return which values are given, bool (*D)."""
        return given_values(run, value) if isinstance(value, str) else value

    @classmethod
    def of(cls, context: Context) -> Conditional | None:
        """Return log p of the values that are not given."""
        is_given = context.asked(cls)
        if is_given is None:
            return None
        run, joint = context.run, context.log_p
        values, _, given = conditional_log_likelihood(context.normalised, context.batch, is_given, joint, **context.how)
        error = math.hypot(joint.mean_stderr, given.mean_stderr)
        names = ", ".join(column.name for column, has in zip(run.data.columns, is_given.tolist()) if has)
        unpadded = slice(run.config.pad, -run.config.pad or None)
        inner = is_given[..., unpadded, unpadded] if run.data.is_images else is_given
        return cls(
            given=names or f"{int(inner.sum()):,} of {inner.numel():,} values",
            estimate=Estimate.of(values),
            method=methods_of(given),
            sampling_stderr=error if math.isfinite(error) else None,
            untrusted=(~(joint.is_trusted & given.is_trusted)).double().mean().item(),
        )
