"""The learning rate of a step, and the weight of the rate in its loss."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from pvae.config.config import Config

__all__ = ["StepValues", "learning_rate", "schedule"]

_LAST = 0.02  # the last learning rate of "cosine", as a fraction of the first
_STEPS = (0.4, 0.7)  # fractions of all steps after which "steps" lowers the learning rate
_STAGE_ENDS = list(itertools.accumulate(3**stage for stage in range(8)))  # passes: 1, 4, 13, ..., 3280


class StepValues(NamedTuple):
    """What differs from step to step: the learning rate, and the weight of the rate in the loss."""

    lr: float
    beta: float


def schedule(
    config: Config, steps_per_epoch: int, beta: Callable[[int], float] | None = None
) -> Callable[[int], StepValues]:
    """Return the function from the number of a step, counted from 0, to its values.

        beta min(1, step / steps of the warm-up)

    is the weight of the rate; in the first step of a warm-up it is exactly 0.

    Args:
        config: options of the training.
        steps_per_epoch: number of steps in an epoch.
        beta: the weight of the rate, in place of those options of `config`.
    """
    warm_up = config.warm_up * steps_per_epoch

    def values(step: int) -> StepValues:
        weight = config.beta * min(1.0, step / warm_up) if warm_up else config.beta
        return StepValues(learning_rate(config, step, steps_per_epoch), weight if beta is None else float(beta(step)))

    return values


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0.

        constant    lr
        cosine      lr (0.02 + 0.98 (1 + cos(pi step / steps)) / 2)
        steps       lr 10^(-i/5) after i of 2/5 and 7/10 of all steps
        paper       lr 10^(-i/7) in the i-th of 8 stages of 3^i passes, scaled to the epochs of `config`

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, section 5 ("paper"); the script behind pythae's table of
        reproductions ("steps": after 200 and 350 of its 500 passes).
    """
    if config.schedule == "constant":
        return config.lr
    done = step / (config.epochs * steps_per_epoch)
    if config.schedule == "cosine":
        return config.lr * (_LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    if config.schedule == "steps":
        return config.lr * 10 ** (-bisect.bisect_right(_STEPS, done) / 5)
    stage = min(bisect.bisect_right(_STAGE_ENDS, done * _STAGE_ENDS[-1]), 7)
    return config.lr * 10 ** (-stage / 7)
