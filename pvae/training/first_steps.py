"""The number of threads and the engine of a training, chosen by the time that its first steps take."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch

__all__ = ["FirstSteps"]

_BLOCK, _BLOCKS = 6, 3  # steps in a row with one number of threads, the first of which is not counted; and how often
_CLEARLY_FASTER = 0.9  # fewer threads than torch's own are taken if a step then takes at most this share of the time
_SAVED_BY_INDUCTOR = 0.2  # of the time of a recorded step: a tenth for wide convolutions, half for small MLPs
_SECONDS_TO_COMPILE = 0.03  # for each operator


class FirstSteps:
    """Tries numbers of threads in turns over the first steps, and keeps the fastest.

    Other programs on the machine decide which one that is: threads wait for each other many times in a step, so that
    fewer are faster where other programs use the cores.

    Args:
        candidates: the numbers to try, the largest first, which is kept unless another one is clearly faster.

    Attributes:
        threads: the number chosen, or None until then.
        seconds: of a step with this number.
    """

    def __init__(self, candidates: Sequence[int]) -> None:
        self.threads: int | None = None
        self.seconds = 0.0
        self._times: dict[int, list[float]] = {one: [] for one in candidates}
        self._turns = self._in_turns()
        self._current = next(self._turns)

    def _in_turns(self) -> Iterator[tuple[int, bool]]:
        """Yield for each step the number of threads, and whether its time counts."""
        for _ in range(_BLOCKS):
            for threads in self._times:
                for step in range(_BLOCK):
                    yield threads, step > 0

    def begin(self) -> None:
        """Set the number of threads for the next step."""
        torch.set_num_threads(self._current[0])

    def end(self, seconds: float) -> bool:
        """Note the time of a step; return True if it was the last one that is needed, and the choice is made."""
        threads, counts = self._current
        if counts:
            self._times[threads].append(seconds)
        following = next(self._turns, None)
        if following is not None:
            self._current = following
            return False
        medians = {one: statistics.median(times) for one, times in self._times.items()}
        self.threads, *others = medians
        for fewer in others:
            if medians[fewer] < _CLEARLY_FASTER * medians[self.threads]:
                self.threads = fewer
        self.seconds = medians[self.threads]
        torch.set_num_threads(self.threads)
        return True

    def saved_by_inductor(self, num_steps: int) -> float:
        """Return the seconds that inductor is expected to save in this number of steps."""
        return _SAVED_BY_INDUCTOR * self.seconds * num_steps

    @staticmethod
    def seconds_to_compile(num_operators: int) -> float:
        """Return the seconds that inductor is expected to take to compile a step of this number of operators."""
        return _SECONDS_TO_COMPILE * num_operators
