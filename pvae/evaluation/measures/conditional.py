"""`Conditional`: the log-likelihood of a part of x given the other part."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pvae.evaluation.context import Context, Measure, Request
from pvae.evaluation.measures.log_likelihood import finite, methods_of
from pvae.marginal.log_likelihood import conditional_log_likelihood
from pvae.runs.run import Run
from pvae.trained.given import given_values
from pvae.trained.scores import Estimate


@dataclass(frozen=True, kw_only=True)
class Conditional(Measure):
    """The log-likelihood of a part of x given the other part; see `conditional_log_likelihood`.

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

    given: str
    estimate: Estimate
    method: str
    sampling_stderr: float | None
    untrusted: float

    words = {
        "given": ("given", ""),
        "estimate": ("log p(x_a | x_b)", "log p(x) - log p(x_b), x_b what is given; no bound"),
        "method": ("  log p(x_b) by", ""),
        "sampling_stderr": ("  error of the methods", "a part of the error above"),
        "untrusted": ("  share of untrusted", "data, whose log p(x_a | x_b) is not reliable"),
    }

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the text does not name some values of x."""
        context.once(_is_given)

    @classmethod
    def of(cls, context: Context) -> Conditional | None:
        """Return log p of the values that are not given."""
        is_given = context.once(_is_given)
        if is_given is None:
            return None
        joint = context.log_p
        values, _, given = conditional_log_likelihood(context.normalised, context.batch, is_given, joint, **context.how)
        error = math.hypot(joint.mean_stderr, given.mean_stderr)
        return cls(
            given=_name_of(is_given, context.run),
            estimate=Estimate.of(values),
            method=methods_of(given),
            sampling_stderr=finite(error),
            untrusted=(~(joint.is_trusted & given.is_trusted)).double().mean().item(),
        )


def _is_given(context: Context) -> Tensor | None:
    """Return which values are given, bool (*D); None if this was not asked for."""
    value = context.requests.get("given")
    if isinstance(value, str):
        return given_values(context.run, value)
    return value


def _name_of(is_given: Tensor, run: Run) -> str:
    """Return the names of the columns that are given, or how many values are."""
    names = [column.name for column, has in zip(run.data.columns, is_given.tolist()) if has]
    if names:
        return ", ".join(names)
    if run.data.is_images:
        unpadded = slice(run.config.pad, -run.config.pad or None)
        is_given = is_given[..., unpadded, unpadded]
    return f"{int(is_given.sum()):,} of {is_given.numel():,} values"
