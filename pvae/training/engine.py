"""`Engine` takes the steps of a training: eager, recorded or compiled, with the number of threads that is fastest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.graph import RecordingError
from pvae.compile.inductor import missing
from pvae.config.config import Config
from pvae.core.errors import is_out_of_memory
from pvae.core.terms import LossAndTerms

__all__ = ["Engine", "FirstSteps"]

_BLOCK, _ROUNDS = 5, 3  # steps in a row with one number of threads, the first of which is not counted; and how often
_CLEARLY_FASTER = 0.9  # fewer threads than torch's own are taken if a step then takes at most this share of the time
# A number of threads with which a step takes this multiple of the least time is dropped; if steps take this multiple of
# their time at the choice, threads are chosen anew.
_MUCH_SLOWER = 2.0
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


class Engine:
    """Takes the steps of a training, and chooses by the time of the first ones how they are computed.

    With `config.compile` "auto", steps are recorded; if recording fails, they are computed eagerly; and they are
    compiled if their compiled code is kept from an earlier training, or if the steps that are left are expected to
    repay it.

    Args:
        make: returns an SVI whose steps take the index of a batch, with the engine "none", "graph" or "inductor".
        config: options of the training.
        steps_left: number of steps that the training will take.
        name: the engine that an earlier session chose.
        threads: number of threads; by default torch's own, or fewer if steps are faster.
        is_alone: on the CPU, and in one process; otherwise threads stay, and nothing is compiled by "auto".
        note: called with a line on what is chosen.

    Attributes:
        name: how steps are computed now.

    Raises:
        InputError: steps cannot be compiled here.
    """

    def __init__(
        self,
        make: Callable[[str], CompiledSVI],
        config: Config,
        steps_left: int,
        name: str | None = None,
        threads: int | None = None,
        is_alone: bool = True,
        note: Callable[[str], object] = lambda line: None,
    ) -> None:
        is_auto = config.compile == "auto"
        self.name = name or ("graph" if is_auto else config.compile)
        candidates = [threads or torch.get_num_threads()]
        while candidates[-1] > 1 and threads is None and is_alone:
            candidates.append(candidates[-1] // 2)
        self._first_steps, self._batch_size, self._left = FirstSteps(candidates), config.batch_size, steps_left
        self._is_chosen, self._may_fall_back = name is not None or not is_auto, is_auto and config.precision == "fp32"
        self._make, self._svi, self._is_alone, self._note = make, make(self.name), is_alone, note

    @property
    def chosen(self) -> dict[str, Any]:
        """The engine and the number of threads, once the first steps have chosen them; empty before."""
        first = self._first_steps
        is_chosen = first.is_chosen or (self._is_chosen and len(first.candidates) == 1)
        return {"engine": self.name, "threads": first.threads} if is_chosen else {}

    def step(self, index: Tensor, beta: float) -> LossAndTerms:
        """Step the parameters by the batch of an index, and return its loss and terms.

        Raises:
            RecordingError: (an InputError) the step cannot be recorded or compiled, and the caller asked for it.
            NotFiniteError: the loss or a gradient is not finite; parameters are as before.
        """
        torch.set_num_threads(self._first_steps.threads)
        started = time.perf_counter()
        try:
            result = self._svi.step(index, beta=beta)
        except RecordingError as error:
            if not self._may_fall_back:
                raise
            self._note(f"steps are computed without --compile {self.name}, and take longer: {error}")
            self.name = "graph" if self.name == "inductor" else "none"
            self._svi = self._make(self.name)
            return self.step(index, beta)
        self._left -= 1
        if len(index) == self._batch_size and self._first_steps.end(time.perf_counter() - started):
            self._compile_if_repaid(index)
        return result

    def _compile_if_repaid(self, index: Tensor) -> None:
        """Compile recorded steps if their code is kept, or if the steps that are left are expected to repay it."""
        saved = _SAVED_BY_INDUCTOR * self._first_steps.seconds * self._left
        if self._is_chosen or self.name != "graph" or saved < 1 or index.device.type != "cpu" or missing():
            return
        is_tried = False

        def may_compile(num_operators: int) -> bool:
            nonlocal is_tried
            cost = _SECONDS_TO_COMPILE * num_operators
            is_tried = self._is_alone and saved > cost
            if is_tried:
                self._note(f"compiling the step takes about {cost:.0f} s, and saves about {saved:.0f} s")
            return is_tried

        try:
            self._svi.use_inductor((index,), may_compile)
            self.name = "inductor"
        except (RecordingError, RuntimeError, MemoryError) as error:
            if not isinstance(error, RecordingError) and not is_out_of_memory(error):
                raise
            if is_tried:
                why = str(error) if isinstance(error, RecordingError) else "out of memory"
                self._note(f"the step is not compiled: {why}")
