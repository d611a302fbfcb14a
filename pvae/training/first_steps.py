"""The number of threads of a training, and whether it is compiled, chosen by the time that its first steps take."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch

__all__ = ["FirstSteps", "saved_by_inductor", "seconds_to_compile"]

_BLOCK, _ROUNDS = 5, 3  # steps in a row with one number of threads, the first of which is not counted; and how often
_CLEARLY_FASTER = 0.9  # fewer threads than torch's own are taken if a step then takes at most this share of the time
_MUCH_SLOWER = 2.0  # a number of threads is not tried again, and the choice is made anew, at this multiple of the time
_WINDOW = 50  # steps whose median is compared with the time at the choice
_AGAIN = 100, 800  # steps after which a choice of fewer threads than torch's own is made anew: twice as many each time

_SAVED_BY_INDUCTOR = 0.2  # of the time of a recorded step: a tenth for wide convolutions, half for small MLPs
_SECONDS_TO_COMPILE = 0.03  # for each operator


class FirstSteps:
    """Times steps with several numbers of threads in turns, and keeps the fastest.

    Other programs on the machine decide which one that is: threads wait for each other many times in a step, so that
    fewer are faster where other programs use the cores. If steps become much slower, the number is chosen anew.

    Args:
        candidates: the numbers to try, the largest first, which is kept unless another one is clearly faster.

    Attributes:
        threads: the number for the next step.
        is_chosen: whether it has been chosen.
        seconds: of a step with the number that was chosen.
    """

    def __init__(self, candidates: Sequence[int]) -> None:
        self.candidates = candidates
        self._again = _AGAIN[0]
        self._begin()

    def _begin(self) -> None:
        self.is_chosen, self.seconds = False, 0.0
        self._times: dict[int, list[float]] = {one: [] for one in self.candidates}
        self._since: list[float] = []
        self._turns = self._in_turns()
        self.threads, self._counts = next(self._turns)

    def _in_turns(self) -> Iterator[tuple[int, bool]]:
        """Yield for each step the number of threads, and whether its time counts."""
        remaining = list(self.candidates)
        for _ in range(_ROUNDS):
            for threads in remaining:
                for step in range(_BLOCK):
                    yield threads, step > 0
            medians = self._medians()
            remaining = [one for one in remaining if medians[one] <= _MUCH_SLOWER * min(medians.values())]

    def _medians(self) -> dict[int, float]:
        """Return the median time of a step with each number of threads."""
        return {one: statistics.median(times) for one, times in self._times.items()}

    def begin(self) -> None:
        """Set the number of threads for the next step."""
        torch.set_num_threads(self.threads)

    def end(self, seconds: float) -> bool:
        """Note the time of a step; return True if it was the last one that is needed, and the choice is made."""
        if self.is_chosen:
            self._watch(seconds)
            return False
        if self._counts:
            self._times[self.threads].append(seconds)
        following = next(self._turns, None)
        if following is not None:
            self.threads, self._counts = following
            return False
        medians = self._medians()
        self.threads, *others = medians
        for fewer in others:
            if medians[fewer] < _CLEARLY_FASTER * medians[self.threads]:
                self.threads = fewer
        self.is_chosen, self.seconds = True, medians[self.threads]
        return True

    def _watch(self, seconds: float) -> None:
        """Choose anew if steps have become much slower, or from time to time if other programs left fewer threads."""
        self._since.append(seconds)
        is_end = len(self._since) % _WINDOW == 0
        is_slow = is_end and statistics.median(self._since[-_WINDOW:]) > _MUCH_SLOWER * self.seconds
        has_fewer = self.threads < self.candidates[0] and len(self._since) >= self._again
        if len(self.candidates) > 1 and (is_slow or has_fewer):
            self._again = _AGAIN[0] if is_slow else min(2 * self._again, _AGAIN[1])
            self._begin()


def saved_by_inductor(seconds: float, num_steps: int) -> float:
    """Return the seconds that inductor is expected to save in recorded steps that take `seconds` each."""
    return _SAVED_BY_INDUCTOR * seconds * num_steps


def seconds_to_compile(num_operators: int) -> float:
    """Return the seconds that inductor is expected to take to compile a step of this number of operators."""
    return _SECONDS_TO_COMPILE * num_operators
