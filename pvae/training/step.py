"""A step of SVI over one VAE: its ELBO and optimiser, and one process's share of each batch."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.config.options import ESTIMATORS
from pvae.core.errors import InputError
from pvae.core.finite import NotFiniteError, listed, naming_refused_parameters
from pvae.core.parallel import Share, World
from pvae.core.random_state import restore_rng_state, rng_state
from pvae.core.terms import Terms
from pvae.data.dataset import batch_of
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import build_elbo
from pvae.elbos.svi import SVIWithTerms
from pvae.runs.checkpoint import Checkpoint
from pvae.training.shared_elbo import SharedELBO
from pvae.vae import VAE

__all__ = ["Stepper"]


class Stepper:
    """Steps a VAE on batches of its training images, alone or as one of several processes.

    Args:
        config: which ELBO, which optimiser, and how a step is compiled.
        vae: on the device of the images.
        images: training images, uint8 (N, C, H, W).
        world: the processes that step together, this one among them.

    Attributes:
        optimizer: Adam over all parameters.

    Raises:
        InputError: the loss is not a mean over the batch that processes could share, or ELBO and likelihood do not go
            together.
    """

    def __init__(self, config: Config, vae: VAE, images: Tensor, world: World) -> None:
        if world.size > 1:
            _refuse_whole_batches(config)
        if config.likelihood == "normal-optimal" and ESTIMATORS[config.elbo].separate_draws:  # older runs may be read
            raise InputError(
                f"--elbo {config.elbo} needs weights that each depend on their own draw only, and --likelihood "
                "normal-optimal fits one scale to all of them: take --elbo trace, analytic, stl or iwae"
            )
        self.config, self.vae, self.world = config, vae, world
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
        self._elbo = build_elbo(
            config.elbo,
            config.particles,
            free_bits=config.free_bits,
            alpha=config.alpha,
            mix=config.mix,
            num_groups=config.groups,
        )
        self._pixels_of = functools.partial(
            batch_of, images, dynamic=config.binarize == "dynamic", symmetric=config.pixels == "symmetric"
        )
        self._images = images
        self._svis: dict[Share | None, SVIWithTerms] = {}
        self._has_summed = False

    def step(self, index: Tensor, beta: float, lr: float) -> tuple[float, Terms]:
        """Step on the training images of an index (B,).

        Args:
            index: which images.
            beta: weight of the rate in the loss.
            lr: the learning rate.

        Returns:
            This process's part in the loss, and the terms of its rows.

        Raises:
            NotFiniteError: the loss or a gradient is not finite; parameters and the optimiser's state are as before.
        """
        self.optimizer.param_groups[0]["lr"] = lr
        share = self.world.share(len(index))
        svi = self._svi(share)
        if isinstance(svi, CompiledSVI):
            given = index
        elif self.config.binarize == "dynamic":  # the draws are those of the whole batch
            given = self._pixels_of(index)[share.rows]
        else:
            given = self._pixels_of(index[share.rows])
        with self._refusing():
            return svi.step_with_terms(given, beta=beta)

    def evaluate(self, x: Tensor, share: Share, beta: float) -> tuple[float, Terms]:
        """Return this process's part in the loss of a batch, of which x holds its rows, and the terms of these.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        with naming_refused_parameters():
            return self._svi(share).evaluate_with_terms(x, beta)

    @contextlib.contextmanager
    def unedited(self) -> Iterator[None]:
        """Let recorded steps not look for edits of the model, for a loop that makes none."""
        with contextlib.ExitStack() as stack:
            for rows in (self.config.batch_size, len(self._images) % self.config.batch_size):
                elbo = self._svi(self.world.share(rows)).elbo if rows else None
                if isinstance(elbo, CompiledELBO):
                    stack.enter_context(elbo.unedited())
            yield

    def moments(self) -> dict[str, Tensor]:
        """Return the optimiser's state by "<index of the parameter>.<name>"."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": tensor for index, one in state.items() for name, tensor in one.items()}

    def restore_moments(self, checkpoint: Checkpoint) -> None:
        """Restore the optimiser's state of a checkpoint.

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

    def _svi(self, share: Share) -> SVIWithTerms:
        """Return the SVI for this process's rows; where steps are recorded, the update is part of the recording."""
        config, alone = self.config, self.world.size == 1
        key = None if alone else share
        if key not in self._svis:
            elbo: PerDatumELBO | CompiledELBO = self._elbo if alone else SharedELBO(self._elbo, share)
            if config.compile != "none":
                usual = self.world.share(config.batch_size)
                elbo = CompiledELBO(elbo, config.compile, config.precision, batch_size=usual.stop - usual.start)
            names = dict(self.vae.named_parameters())
            optimizer = SingleOptimizer(self.optimizer, names, config.clip_norm, None if alone else self._sum)
            functions = self.vae.model, self.vae.guide
            if alone and not config.clip_norm and isinstance(elbo, CompiledELBO):
                self._svis[key] = CompiledSVI(*functions, optimizer, elbo, prepare=self._pixels_of)
            else:
                self._svis[key] = SVIWithTerms(*functions, optimizer, elbo)
        return self._svis[key]

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Leave everything as it was where a step is refused."""
        # One process may refuse a step before it has drawn, and another after: all draw on from where it began.
        before = rng_state(self._images.device) if self.config.on_nan == "skip" else None
        self._has_summed = False
        try:
            with naming_refused_parameters():
                yield
        except NotFiniteError as error:
            self.optimizer.zero_grad()  # or the next gradient would be added to this one
            if self.world.size > 1 and not self._has_summed:  # the others wait for the sum, and must refuse it too
                self._sum([torch.full_like(p, math.nan) for p in self.optimizer.param_groups[0]["params"]])
            if before is not None:
                restore_rng_state(before, self._images.device)
            # No step that is skipped helps where parameters are not finite themselves.
            ill = [name for name, one in self.vae.named_parameters() if not one.isfinite().all()]
            spoiled = f"; {listed(ill)} {'is' if len(ill) == 1 else 'are'} NaN or infinite already" if ill else ""
            raise NotFiniteError(f"{error}{spoiled}") from error

    def _sum(self, gradients: list[Tensor]) -> None:
        """Sum gradients over the processes."""
        self._has_summed = True
        self.world.sum_(gradients)


def _refuse_whole_batches(config: Config) -> None:
    """Refuse what depends on a whole batch at once, of which each process has a part.

    Raises:
        InputError: it does.
    """
    if config.network == "conv-batchnorm":
        raise InputError("--network conv-batchnorm looks at the statistics of a whole batch: train it in one process")
    if config.likelihood == "normal-optimal":
        raise InputError("--likelihood normal-optimal fits its scale to a whole batch: train it in one process")
    if config.free_bits:
        raise InputError("--free-bits looks at the mean rate of a whole batch: train it in one process")
