"""`Engine` takes the steps of a training, some in each call: eager, recorded or compiled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pvae.compile.compiled_svi import CompiledSVI, Done
from pvae.compile.graph import RecordingError
from pvae.compile.inductor import missing
from pvae.config.config import Config
from pvae.training.parallel import ALONE, World

_SECONDS = 0.25  # of steps that are taken in one call, between which progress is drawn and Ctrl-C is obeyed
_MOST = 50  # steps in one call
_LEAST_TO_COMPILE = 10_000  # steps; compiling takes as long as it saves in 3,000 (convolutions) to 7,000 (a small MLP)


class Engine:
    """Takes the steps of a training.

    With `config.compile` "auto", steps on a CPU are compiled where the training has 10,000 or more, and otherwise
    recorded. Where a step cannot be compiled it is recorded, and where it cannot be recorded it is computed eagerly.
    None of this depends on the clock, so that a resumed training computes as before.

    Args:
        make: returns an SVI with the engine "none", "graph" or "inductor", whose steps take the index of a batch.
        config: options of the training.
        num_steps: number of steps that the training is expected to take.
        name: the engine of an earlier session.
        device: where steps are computed.
        world: the processes that train together; "auto" compiles nothing for several.
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
        num_steps: int,
        name: str | None = None,
        device: torch.device | str = "cpu",
        world: World = ALONE,
        note: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.name = config.compile
        self._is_auto = config.compile == "auto"
        if self._is_auto:
            self.name = name or "graph"
            if name is None and num_steps >= _LEAST_TO_COMPILE and world.size == 1:
                self.name = "inductor"
            if self.name == "inductor" and (torch.device(device).type != "cpu" or missing()):
                self.name = "graph"
            if self.name == "inductor" and name is None:
                note("the step is compiled first, which takes some seconds unless it was before")
        self._make = make
        self._svi = make(self.name)
        self._batch_size = config.batch_size
        self._world = world
        self._note = note
        self._seconds = math.inf  # of a step in the last call

    def run(self, order: Tensor, values: Sequence[tuple[float, float]]) -> Iterator[Done]:
        """Take the steps of an epoch, some in each call, and yield what each call has done; end after an error.

        Args:
            order: indices of the data, int64 (N,).
            values: learning rate and weight of the rate of each step.

        Raises:
            RecordingError: (an InputError) a step cannot be recorded or compiled, and the caller asked for it.
        """
        batches = [(index,) for index in order.split(self._batch_size)]
        taken = 0
        while taken < len(batches):
            steps = slice(taken, taken + max(1, min(_MOST, int(_SECONDS / self._seconds))))
            started = time.perf_counter()
            try:
                done = self._svi.run(batches[steps], values[steps])
            except RecordingError as error:
                if not self._is_auto:
                    raise
                self._fall_back(error)
                continue
            seconds = time.perf_counter() - started
            yield done._replace(seconds=seconds)
            if done.error is not None:
                return
            taken += len(done.losses)
            mean = torch.tensor([seconds]) / len(done.losses)
            self._world.sum_([mean])  # so that all processes take as many steps in the next call
            self._seconds = max(mean.item() / self._world.size, 1e-9)

    def _fall_back(self, error: RecordingError) -> None:
        """Compute steps in a way that takes longer."""
        before = self.name
        self.name = "none"
        if before == "inductor":
            self.name = "graph"
        self._note(f"steps are computed without --compile {before}, and take longer: {error}")
        self._svi = self._make(self.name)
