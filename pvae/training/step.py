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
from pvae.core.finite import GradientError, NotFiniteError, listed, naming_refused_parameters
from pvae.core.parallel import Share, World
from pvae.core.random_state import restore_rng_state, rng_state
from pvae.core.terms import Terms
from pvae.data.dataset import batch_of
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import build_elbo
from pvae.elbos.svi import SVIWithTerms
from pvae.training.shared_elbo import SharedELBO
from pvae.vae import VAE

__all__ = ["Stepper"]


class Stepper:
    """Steps a VAE on batches of its training images, alone or as one of several processes.

    Args:
        config: which ELBO, which optimiser, and how a step is compiled.
        vae: on the device of the images.
        images: training images, uint8 (N, C, H, W).
        world: the processes that step together, including this one.

    Attributes:
        optimizer: Adam over all parameters.

    Raises:
        InputError: an option needs the whole batch in one process, or ELBO and likelihood do not go together.
    """

    def __init__(self, config: Config, vae: VAE, images: Tensor, world: World) -> None:
        _check_options(config, world)
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

    def step(self, index: Tensor, beta: float, lr: float) -> tuple[float, Terms]:
        """Step on one batch of training images.

        Args:
            index: indices of the images, int64 (B,).
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
        if isinstance(svi, CompiledSVI):  # the recording starts from the index
            batch = index
        elif self.config.binarize == "dynamic":  # every process draws the pixels of the whole batch
            batch = self._pixels_of(index)[share.rows]
        else:
            batch = self._pixels_of(index[share.rows])
        with self._undone_if_not_finite():
            return svi.step_with_terms(batch, beta=beta)

    def evaluate(self, x: Tensor, share: Share, beta: float) -> tuple[float, Terms]:
        """Return this process's part in the loss of a batch, and the terms of its rows x, without a step.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        with naming_refused_parameters():
            return self._svi(share).evaluate_with_terms(x, beta)

    @contextlib.contextmanager
    def unedited(self) -> Iterator[None]:
        """Let recorded steps skip the check for edits of the model, inside a loop that makes none."""
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

    def restore_moments(self, moments: dict[str, Tensor]) -> None:
        """Restore the optimiser's state that `moments` returned.

        Raises:
            ValueError: it is the state of other parameters.
        """
        shapes = {
            f"{index}.{name}": torch.Size() if name == "step" else parameter.shape
            for index, parameter in enumerate(self.vae.parameters())
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
        if not {name: tensor.shape for name, tensor in moments.items()}.items() <= shapes.items():
            raise ValueError("its optimiser's state is that of other parameters")
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in moments.items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _svi(self, share: Share) -> SVIWithTerms:
        """Return the SVI over this process's rows of a batch; a single process has one for batches of any size."""
        config, is_alone = self.config, self.world.size == 1
        key = None if is_alone else share
        if key not in self._svis:
            elbo: PerDatumELBO | CompiledELBO = self._elbo if is_alone else SharedELBO(self._elbo, share)
            if config.compile != "none":
                usual = self.world.share(config.batch_size)
                elbo = CompiledELBO(elbo, config.compile, config.precision, batch_size=usual.stop - usual.start)
            names = dict(self.vae.named_parameters())
            optimizer = SingleOptimizer(self.optimizer, names, config.clip_norm, None if is_alone else self.world.sum_)
            functions = self.vae.model, self.vae.guide
            if is_alone and not config.clip_norm and isinstance(elbo, CompiledELBO):
                self._svis[key] = CompiledSVI(*functions, optimizer, elbo, prepare=self._pixels_of)
            else:
                self._svis[key] = SVIWithTerms(*functions, optimizer, elbo)
        return self._svis[key]

    @contextlib.contextmanager
    def _undone_if_not_finite(self) -> Iterator[None]:
        """Restore gradients and random state after a step that is not finite, in all processes."""
        # One process may fail before it draws and another one after; both continue from the state before the step.
        before = rng_state(self._images.device) if self.config.on_nan == "skip" else None
        try:
            with naming_refused_parameters():
                yield
        except NotFiniteError as error:
            self.optimizer.zero_grad()  # or the next gradient would be added to this one
            # If this process failed before the sum of gradients, the others wait for it: NaN makes them fail too.
            if self.world.size > 1 and not isinstance(error, GradientError):
                self.world.sum_([torch.full_like(p, math.nan) for p in self.vae.parameters()])
            if before is not None:
                restore_rng_state(before, self._images.device)
            bad = [name for name, value in self.vae.named_parameters() if not value.isfinite().all()]
            already = f"; {listed(bad)} {'is' if len(bad) == 1 else 'are'} NaN or infinite already" if bad else ""
            raise NotFiniteError(f"{error}{already}") from error


def _check_options(config: Config, world: World) -> None:
    """Refuse options that do not work together, or not in several processes.

    `Config` itself accepts them, so that runs of earlier versions can be read.

    Raises:
        InputError: they do not.
    """
    mixes_draws = {
        "--likelihood normal-optimal fits one scale to": config.likelihood == "normal-optimal",
        f"--network {config.network} normalises over": config.has_batch_norm,
    }
    for reason, is_given in mixes_draws.items():
        if is_given and ESTIMATORS[config.elbo].separate_draws:
            raise InputError(
                f"--elbo {config.elbo} needs weights that each depend on their own draw only, and {reason} all of "
                "them: take --elbo trace, analytic, stl or iwae"
            )
    whole_batch = {
        f"--network {config.network}": config.has_batch_norm,
        "--likelihood normal-optimal": config.likelihood == "normal-optimal",
        "--free-bits": config.free_bits > 0,
    }
    for option, is_given in whole_batch.items():
        if is_given and world.size > 1:
            raise InputError(f"{option} needs the whole batch at once: train it in one process")
