"""`Engine` takes the steps of a training: eager, recorded or compiled, with the number of threads that is fastest."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pvae.compile.compiled_svi import CompiledSVI, Done
from pvae.compile.graph import RecordingError
from pvae.compile.inductor import missing
from pvae.config.config import Config
from pvae.core.errors import is_out_of_memory
from pvae.training.parallel import ALONE, World
from pvae.training.schedules import StepValues

__all__ = ["Engine", "Threads"]

_SECONDS = 0.25  # of steps that are taken in one call, between which progress is drawn and Ctrl-C is obeyed
_MOST = 50  # steps in one call
_TRIED, _ROUNDS = 5, 3  # steps in one call while threads are chosen; and calls with each number
_CLEARLY_FASTER = 0.9  # fewer threads than torch's own are taken if a step then takes at most this share of the time
# A number of threads with which a step takes this multiple of the least time is dropped; if steps take this multiple of
# their time at the choice, threads are chosen anew.
_MUCH_SLOWER = 2.0
_WINDOW = 5  # calls whose median is compared with the time at the choice
_AGAIN = 100, 800  # steps after which a choice of fewer threads than torch's own is made anew: twice as many each time

_SAVED_BY_INDUCTOR = 0.2  # of the time of a recorded step: a tenth for wide convolutions, half for small MLPs
_SECONDS_TO_COMPILE = 0.03  # for each operator


class Threads:
    """Tries several numbers of threads in turns, a few steps each, and keeps the fastest.

    Other programs on the machine decide which one that is: threads wait for each other many times in a step, so that
    fewer are faster where other programs use the cores. If steps become much slower, the number is chosen anew.

    Args:
        candidates: the numbers to try, the largest first, which is kept unless another one is clearly faster.

    Attributes:
        number: for the next steps.
        is_chosen: whether it has been chosen.
        seconds: of a step with the number that was chosen.
    """

    def __init__(self, candidates: Sequence[int]) -> None:
        self.candidates = candidates
        self._again = _AGAIN[0]
        self._begin()

    def _begin(self) -> None:
        self.number, self.is_chosen, self.seconds = self.candidates[0], False, 0.0
        self._times: dict[int, list[float]] = {one: [] for one in self.candidates}
        self._since: list[float] = []
        self._steps_since = 0

    def end(self, seconds: float, steps: int) -> bool:
        """Note the time of a step, a mean over some of them; return True if the choice is made by it."""
        if self.is_chosen:
            self._watch(seconds, steps)
            return False
        self._times[self.number].append(seconds)
        least = {one: min(times) for one, times in self._times.items() if times}
        fastest = min(least.values())
        open_ = [  # the first steps with a number may be slow for other reasons
            one
            for one, times in self._times.items()
            if len(times) < 2 or (len(times) < _ROUNDS and least[one] <= _MUCH_SLOWER * fastest)
        ]
        if open_:
            self.number = min(open_, key=lambda one: len(self._times[one]))
            return False
        self.number = self.candidates[0]
        for fewer in self.candidates[1:]:
            if least[fewer] < _CLEARLY_FASTER * least[self.number]:
                self.number = fewer
        self.is_chosen, self.seconds = True, least[self.number]
        return True

    def _watch(self, seconds: float, steps: int) -> None:
        """Choose anew if steps have become much slower, or from time to time if other programs left fewer threads."""
        self._since = [*self._since[1 - _WINDOW :], seconds]
        self._steps_since += steps
        is_slow = len(self._since) == _WINDOW and statistics.median(self._since) > _MUCH_SLOWER * self.seconds
        has_fewer = self.number < self.candidates[0] and self._steps_since >= self._again
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
        threads: number of threads; by default torch's own, or fewer if steps on a CPU are faster.
        device: where steps are computed.
        world: the processes that train together; in several, threads stay, and nothing is compiled by "auto".
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
        device: torch.device | str = "cpu",
        world: World = ALONE,
        note: Callable[[str], object] = lambda line: None,
    ) -> None:
        is_auto = config.compile == "auto"
        self.name = name or ("graph" if is_auto else config.compile)
        candidates = [threads or torch.get_num_threads()]
        while candidates[-1] > 1 and threads is None and world.size == 1 and torch.device(device).type == "cpu":
            candidates.append(candidates[-1] // 2)
        self._threads, self._batch_size, self._left = Threads(candidates), config.batch_size, steps_left
        self._is_chosen, self._may_fall_back = name is not None or not is_auto, is_auto and config.precision == "fp32"
        self._make, self._svi, self._world, self._note = make, make(self.name), world, note
        self._seconds = math.inf  # of a step in the last call

    @property
    def chosen(self) -> dict[str, Any]:
        """The engine and the number of threads, once the first steps have chosen them; empty before."""
        is_chosen = self._threads.is_chosen or (self._is_chosen and len(self._threads.candidates) == 1)
        return {"engine": self.name, "threads": self._threads.number} if is_chosen else {}

    def run(self, order: Tensor, table: Sequence[StepValues]) -> Iterator[Done]:
        """Take the steps of an epoch, some in each call, and yield what each call has done; end after an error.

        Args:
            order: indices of the data, int64 (N,).
            table: the values of each step.

        Raises:
            RecordingError: (an InputError) a step cannot be recorded or compiled, and the caller asked for it.
        """
        batches, taken = order.split(self._batch_size), 0
        while taken < len(batches):
            most = _MOST if self._threads.is_chosen else _TRIED
            steps = slice(taken, taken + max(1, min(most, int(_SECONDS / self._seconds))))
            done = self._run(batches[steps], table[steps])
            yield done
            if done.error is not None:
                return
            taken = steps.stop

    def _run(self, batches: Sequence[Tensor], table: Sequence[StepValues]) -> Done:
        torch.set_num_threads(self._threads.number)
        started, recordings = time.perf_counter(), self._svi.num_recordings
        try:
            done = self._svi.run([(one,) for one in batches], table)
        except RecordingError as error:
            if not self._may_fall_back:
                raise
            self._note(f"steps are computed without --compile {self.name}, and take longer: {error}")
            self.name = "graph" if self.name == "inductor" else "none"
            self._svi = self._make(self.name)
            return self._run(batches, table)
        self._left -= len(batches)
        seconds = torch.tensor([time.perf_counter() - started]) / len(batches)
        self._world.sum_([seconds])  # so that all processes take as many steps in the next call
        self._seconds = max(seconds.item() / self._world.size, 1e-9)
        has_recorded = self._svi.num_recordings > recordings  # which takes time too
        if not has_recorded and self._threads.end(self._seconds, len(batches)):
            self._compile_if_repaid(batches[0])
        return done

    def _compile_if_repaid(self, index: Tensor) -> None:
        """Compile recorded steps if their code is kept, or if the steps that are left are expected to repay it."""
        saved = _SAVED_BY_INDUCTOR * self._threads.seconds * self._left
        if self._is_chosen or self.name != "graph" or saved < 1 or index.device.type != "cpu" or missing():
            return
        is_tried = False

        def may_compile(num_operators: int) -> bool:
            nonlocal is_tried
            cost = _SECONDS_TO_COMPILE * num_operators
            is_tried = self._world.size == 1 and saved > cost
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
