"""Steps of SVI over one VAE: its ELBO and optimiser, and a process's share of each batch."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor

from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.finite import NotFiniteError, listed, named
from pvae.core.parallel import Share, World
from pvae.core.random_state import restore_rng_state, rng_state
from pvae.data.dataset import batch_of
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import build_elbo
from pvae.runs.checkpoint import Checkpoint
from pvae.training.shared_elbo import SharedELBO
from pvae.vae import VAE

__all__ = ["Stepper"]

_AHEAD = 64  # steps that a GPU is given before it is waited for


class Stepper:
    """What steps a VAE on batches of its training images, alone or as one of several processes.

    Args:
        config: which ELBO, which optimiser, and what a step looks like.
        vae: on the device of the images.
        images: training images, uint8 (N, C, H, W).
        world: the processes that step together, this one among them.

    Attributes:
        elbo: its `beta` weighs the rate; `terms` are those of this process's rows of the last batch.
        optimizer: Adam over all parameters.
        asked_to_stop: whether this process was; looked at in each step.
        is_stopping: some process was asked to stop, and all know of it.
        look_every: steps are taken ahead of one look at them, of those that are recorded whole.

    Raises:
        InputError: the loss is no mean over the batch that processes could share.
    """

    def __init__(self, config: Config, vae: VAE, images: Tensor, world: World) -> None:
        if world.size > 1:
            _refuse_whole_batches(config)
        self.config, self.vae, self.world = config, vae, world
        self.elbo = self._elbo()
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
        self._pixels_of = functools.partial(
            batch_of, images, dynamic=config.binarize == "dynamic", symmetric=config.pixels == "symmetric"
        )
        self._svi = self._build_svi()
        self._device = images.device
        self.look_every = _look_every(config, images.device)
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self.is_stopping = False
        self._has_summed = False

    def step(self, index: Tensor) -> list[float]:
        """Step on the training images of an index (B,).

        Of steps recorded whole, a GPU is given `look_every` before it is waited for, and all of these are looked at. A
        step that is refused keeps those after it from being taken: parameters and the optimiser's state are as before.

        Returns:
            This process's parts in the losses of the steps that were looked at: on a CPU this one's.

        Raises:
            NotFiniteError: a loss or a gradient is not finite, of this step or of one before it that nobody had looked
                at; no parameter was stepped by it, nor after it.
        """
        share = self.world.share(len(index))
        self._take(share)
        if isinstance(self._svi, CompiledSVI):
            given = index
        elif self.config.binarize == "dynamic":  # the draws are those of the whole batch
            given = self._pixels_of(index)[share.rows]
        else:
            given = self._pixels_of(index[share.rows])
        self._has_summed = False
        with self._refusing():
            if not isinstance(self._svi, CompiledSVI):
                return [_checked(self._svi.step(given))]
            self._svi.step_ahead(given)
            return self._svi.look() if self._svi.num_ahead >= self.look_every else []

    def look(self) -> list[float]:
        """Return the losses of the steps that were taken ahead.

        Raises:
            NotFiniteError: as `step`.
        """
        with self._refusing():
            return self._svi.look() if isinstance(self._svi, CompiledSVI) else []

    def unedited(self) -> contextlib.AbstractContextManager[None]:
        """For a loop that edits nothing between two steps: what is recorded need not look for it.

        Of several processes each looks all the same: its rows of a batch are an attribute of its ELBO.
        """
        if isinstance(self.elbo, CompiledELBO) and self.world.size == 1:
            return self.elbo.unedited()
        return contextlib.nullcontext()

    def evaluate(self, x: Tensor, share: Share) -> float:
        """Return this process's part in the loss of a batch, of which x holds its rows.

        Raises:
            NotFiniteError: it is not finite.
        """
        self._take(share)
        with named():
            return _checked(self._svi.evaluate_loss(x))

    def moments(self) -> dict[str, Tensor]:
        """Return the optimiser's state by "<index of the parameter>.<name>"."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": tensor for index, one in state.items() for name, tensor in one.items()}

    def restore_moments(self, checkpoint: Checkpoint) -> None:
        """Go back to the optimiser's state in a checkpoint.

        Raises:
            ValueError: it is not of these parameters.
        """
        state: dict[int, dict[str, Tensor]] = {}
        parameters = self.optimizer.param_groups[0]["params"]
        for name, tensor in checkpoint.moments.items():
            index, _, kind = name.partition(".")
            if not 0 <= int(index) < len(parameters):
                raise ValueError(f"there is no parameter {index}")
            like = parameters[int(index)]
            if tensor.shape != (like.shape if kind in ("exp_avg", "exp_avg_sq") else ()):
                raise ValueError(f"{kind} of parameter {index} has another shape")
            if tensor.dtype != (like.dtype if tensor.dim() else torch.float32):
                raise ValueError(f"{kind} of parameter {index} has another dtype")
            state.setdefault(int(index), {})[kind] = tensor
        if any(set(one) != {"step", "exp_avg", "exp_avg_sq"} for one in state.values()):
            raise ValueError("the optimiser's state is not Adam's")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Leave all as it was where a step is refused.

        Pyro warns of a loss of NaN beside: whoever tells of it already holds `finite.one_voice`.
        """
        # One process may refuse a step before it has drawn, and another after: all draw on from where it began.
        before = rng_state(self._device) if self.config.on_nan == "skip" else None
        try:
            with named():
                yield
        except NotFiniteError as error:
            self.optimizer.zero_grad()  # or the next gradient would be added to this one
            if self.world.size > 1 and not self._has_summed:  # the others wait for the sum, and must refuse it too
                self._sum([torch.full_like(p, math.nan) for p in self.optimizer.param_groups[0]["params"]])
            if before is not None:
                restore_rng_state(before, self._device)
            told = NotFiniteError(f"{error}{self._spoiled()}")
            told.steps_since = error.steps_since
            raise told from error

    def _take(self, share: Share) -> None:
        """Let the ELBO know which rows it is given next."""
        elbo = self.elbo.elbo if isinstance(self.elbo, CompiledELBO) else self.elbo
        if isinstance(elbo, SharedELBO):
            elbo.share = share

    def _sum(self, gradients: list[Tensor]) -> None:
        """Sum gradients over the processes, and whether one of them was asked to stop."""
        self._has_summed = True
        flag = torch.full((1,), float(self.asked_to_stop()), dtype=gradients[0].dtype, device=gradients[0].device)
        self.world.sum_([*gradients, flag])
        self.is_stopping = bool(flag.item())

    def _elbo(self) -> PerDatumELBO | CompiledELBO:
        config = self.config
        elbo = build_elbo(
            config.elbo,
            config.particles,
            free_bits=config.free_bits,
            alpha=config.alpha,
            mix=config.mix,
            num_groups=config.groups,
        )
        shared = elbo if self.world.size == 1 else SharedELBO(elbo)
        if config.compile == "none":
            return shared
        share = self.world.share(config.batch_size)
        return CompiledELBO(shared, config.compile, config.precision, batch_size=share.stop - share.start)

    def _build_svi(self) -> SVI:
        """Return what steps the VAE; where operators are recorded, so are those of the batch and of the update."""
        functions, alone = (self.vae.model, self.vae.guide), self.world.size == 1
        names = dict(self.vae.named_parameters())
        optimizer = SingleOptimizer(self.optimizer, names, self.config.clip_norm, None if alone else self._sum)
        if alone and not self.config.clip_norm and isinstance(self.elbo, CompiledELBO):
            svi: SVI = CompiledSVI(*functions, optimizer, self.elbo, prepare=self._pixels_of)
        else:
            svi = SVI(*functions, optimizer, loss=self.elbo)
        svi.loss_and_grads = _checked_before_the_update(svi.loss_and_grads)
        return svi

    def _spoiled(self) -> str:
        """Name the parameters that are not finite themselves: no step that is skipped helps then."""
        names = [name for name, one in self.vae.named_parameters() if not one.isfinite().all()]
        return f"; {listed(names)} {'is' if len(names) == 1 else 'are'} NaN or infinite already" if names else ""


def _checked_before_the_update(loss_and_grads: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Refuse a loss that is not finite, though its gradients may be, before the optimiser has stepped by them."""

    def refusing(*arguments: Any, **options: Any) -> Tensor:
        loss = loss_and_grads(*arguments, **options)
        _checked(float(loss))
        return loss

    return refusing


def _look_every(config: Config, device: torch.device) -> int:
    """Return how many steps may be taken ahead of a look: whoever skips some must know of each before the next."""
    waits_anyway = device.type != "cuda" or config.compile == "inductor"
    return 1 if waits_anyway or config.on_nan == "skip" else _AHEAD


def _checked(loss: float) -> float:
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}")
    return loss


def _refuse_whole_batches(config: Config) -> None:
    """Refuse what looks at a whole batch at once, of which each process has a part.

    Raises:
        InputError: it does.
    """
    if config.network == "conv-batchnorm":
        raise InputError("--network conv-batchnorm looks at the statistics of a whole batch: train it in one process")
    if config.likelihood == "normal-optimal":
        raise InputError("--likelihood normal-optimal fits its scale to a whole batch: train it in one process")
