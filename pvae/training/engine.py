"""`Engine` takes the steps of a training: eager, recorded or compiled, with the number of threads that is fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pvae.compile.graph import RecordingError
from pvae.compile.inductor import missing
from pvae.config.config import Config
from pvae.core.errors import is_out_of_memory
from pvae.training.parallel import ALONE, World

__all__ = ["Engine", "Threads"]

_SECONDS = 0.25  # of steps that are taken in one call, between which progress is drawn and Ctrl-C is obeyed
_MOST = 50  # steps in one call
_TRIED, _CALLS = 5, 3  # steps in one call while threads are chosen; and calls with each number
_CLEARLY_FASTER = 0.9  # fewer threads are taken if a step then takes at most this share of the time
_MUCH_SLOWER = 2.0  # threads are soon chosen anew if steps take this multiple of their time at the choice
# The time until threads are chosen anew, as a multiple of the time that the choice took: twice as long after each.
_REST = 4.0, 64.0

_SAVED_BY_INDUCTOR = 0.2  # of the time of a recorded step: a tenth for wide convolutions, half for small MLPs
_SECONDS_TO_COMPILE = 0.03  # for each operator
_LEAST_SAVED = 5.0  # seconds, for which the operators are counted


class Threads:
    """Tries half as many threads, and again half as many, as long as steps are not slower, and keeps the fastest.

    Other programs on the machine decide which number that is: threads wait for each other many times in a step, so that
    fewer are faster where other programs use the cores. From time to time the number is chosen anew, sooner if steps
    have become much slower.

    Args:
        most: the number that is kept unless fewer are clearly faster.
        is_fixed: try no other number.

    Attributes:
        number: for the next steps.
        chosen: the number of the last choice; None before the first.
        seconds: of a step with the number that was chosen.
    """

    def __init__(self, most: int, is_fixed: bool) -> None:
        self.most, self.is_fixed = most, is_fixed
        self.chosen: int | None = None
        self._rest = _REST[0]
        self._begin()

    def _begin(self) -> None:
        self.number, self.seconds, self._fastest = self.most, math.inf, self.most
        self._times: list[float] = []  # of a step with this number
        self._spent = self._left = 0.0  # seconds of this choice, and seconds until the next one

    @property
    def is_trying(self) -> bool:
        """Whether the next steps are part of a choice."""
        return not self._left

    def end(self, seconds: float, steps: int) -> bool:
        """Note the time of a step, a mean over some of them; return True if the first choice is made by it."""
        if not self.is_trying:
            if seconds > _MUCH_SLOWER * self.seconds:
                self._rest = _REST[0]
                self._left = min(self._left, self._rest * self._spent)
            self._left -= seconds * steps
            if self._left <= 0:
                self._begin()
            return False
        self._times.append(seconds)
        self._spent += seconds * steps
        if len(self._times) < _CALLS:
            return False
        least, self._times = min(self._times), []  # the first steps may be slow for other reasons
        is_slower = least > self.seconds
        if least < _CLEARLY_FASTER * self.seconds:
            self.seconds, self._fastest = least, self.number
        if not (is_slower or self.is_fixed or self.number == 1):
            self.number //= 2
            return False
        is_first, self.chosen, self.number = self.chosen is None, self._fastest, self._fastest
        self._left = math.inf if self.is_fixed else self._rest * self._spent
        self._rest = min(2 * self._rest, _REST[1])
        return is_first


class Engine:
    """Takes the steps of a training, and chooses by the time of the first ones how they are computed.

    With `config.compile` "auto", steps are recorded; if recording fails, they are computed eagerly; and they are
    compiled if their compiled code is kept from an earlier training, or if the steps that are left are expected to
    repay it.

    Args:
        make: returns a `CompiledSVI` or `Members`, whose steps take the index of a batch, with the engine "none",
            "graph" or "inductor".
        config: options of the training.
        steps_left: number of steps that the training is expected to take.
        name: the engine that an earlier session chose.
        threads: number of threads; by default torch's own, or fewer if steps on a CPU are faster.
        device: where steps are computed.
        world: the processes that train together; in several, threads stay, and nothing is compiled by "auto".
        note: called with a line on what is chosen.

    Attributes:
        name: how steps are computed now.
        make: the function that returns an SVI.

    Raises:
        InputError: steps cannot be compiled here.
    """

    def __init__(
        self,
        make: Callable[[str], Any],
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
        is_fixed = threads is not None or world.size > 1 or torch.device(device).type != "cpu"
        self._threads = Threads(threads or torch.get_num_threads(), is_fixed)
        self._batch_size, self._left = config.batch_size, steps_left
        self._is_chosen, self._may_fall_back = name is not None or not is_auto, is_auto
        self.make, self._svi, self._world, self._note = make, make(self.name), world, note
        self._seconds = math.inf  # of a step in the last call

    @property
    def chosen(self) -> dict[str, Any]:
        """The engine and the number of threads, once the first steps have chosen them; empty before."""
        threads = self._threads.chosen
        if self._is_chosen and self._threads.is_fixed:
            threads = self._threads.number
        return {} if threads is None else {"engine": self.name, "threads": threads}

    def run(self, order: Tensor, table: Sequence[Any]) -> Iterator[Any]:
        """Take the steps of an epoch, some in each call, and yield what each call has done; end after an error.

        A short last batch has a call of its own, whose time chooses nothing.

        Args:
            order: indices of the data, int64 (N,); of `Members` (N, S).
            table: the values of each step, which the SVI takes.

        Raises:
            RecordingError: (an InputError) a step cannot be recorded or compiled, and the caller asked for it.
        """
        batches, taken = order.split(self._batch_size), 0
        num_full = len(batches) - (len(batches[-1]) < len(batches[0]))
        while taken < len(batches):
            is_full = taken < num_full
            most = _TRIED if self._threads.is_trying else _MOST
            end = taken + max(1, min(most, int(_SECONDS / self._seconds)))
            steps = slice(taken, min(end, num_full) if is_full else end)
            started = time.perf_counter()
            done = self._run(batches[steps], table[steps], is_full)
            yield done._replace(seconds=time.perf_counter() - started)
            if done.error is not None:
                return
            taken = steps.stop

    def _run(self, batches: Sequence[Tensor], table: Sequence[Any], is_full: bool) -> Any:
        torch.set_num_threads(self._threads.number)
        started, recordings = time.perf_counter(), self._svi.num_recordings
        try:
            done = self._svi.run([(one,) for one in batches], table)
        except RecordingError as error:
            if not self._may_fall_back:
                raise
            name = "graph" if self.name == "inductor" else "none"
            try:
                self._svi = self.make(name)
            except RecordingError:
                raise error from None
            self._note(f"steps are computed without --compile {self.name}, and take longer: {error}")
            self.name = name
            return self._run(batches, table, is_full)
        self._left -= len(batches)
        if not is_full:
            return done
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
        if self._is_chosen or self.name != "graph" or saved < _LEAST_SAVED or index.device.type != "cpu" or missing():
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
