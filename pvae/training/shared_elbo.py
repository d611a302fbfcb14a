"""An ELBO over one process's rows of a batch, with the noise of the whole batch.

All processes have the same random state. Each draws the noise of the whole batch and keeps its own rows, so N processes
compute the same as one process, to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms
from pvae.core.torch_private import TorchDispatchMode
from pvae.elbos.base import PerDatumELBO, PyroFunction
from pvae.training.parallel import Share

__all__ = ["SharedELBO", "WholeBatchNoise"]

_ATEN = torch.ops.aten


class SharedELBO(PerDatumELBO):
    """An ELBO of one process's rows of a batch: its loss is their part in the mean over the whole batch.

    The losses of all processes sum to the loss of the batch, and their gradients to its gradient. z is the same as if
    one process drew it for the whole batch.

    Args:
        elbo: its loss is a mean over the batch of one term for each datum, so it has no free bits.
        share: the rows of this process.
    """

    def __init__(self, elbo: PerDatumELBO, share: Share) -> None:
        super().__init__(elbo.num_particles, elbo.beta)
        self.elbo, self.share = elbo, share

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, x: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return the part in the loss of the rows x (B / N, C, H, W), and their terms."""
        with WholeBatchNoise(self.share):
            loss, terms = self.elbo.loss_and_terms(model, guide, x, beta)
        return LossAndTerms(self.share.weight * loss, terms)


class WholeBatchNoise(TorchDispatchMode):
    """Draw normal noise of shape (..., B / N, L) as the rows of noise of shape (..., B, L).

    Args:
        share: which rows.

    Raises:
        InputError: (inside the block) other random numbers are drawn, whose rows are not known.
    """

    lets_products_pass = True  # for `core.torch_private.is_observed`: this mode does not change matrix products

    def __init__(self, share: Share) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        if func is _ATEN.normal_.default and len(args) == 1 and not kwargs:
            return args[0].copy_(self._rows_of_noise(args[0]))
        if func is _ATEN.normal.Tensor_Tensor and not kwargs:
            mean, std = args
            return self._rows_of_noise(mean) * std + mean
        raise InputError(f"several processes cannot draw by {func}: train it in one process")

    def _rows_of_noise(self, like: Tensor) -> Tensor:
        share = self.share
        if like.dim() < 2 or like.shape[-2] != share.stop - share.start:
            raise InputError(f"several processes cannot share noise of shape {tuple(like.shape)}: train it in one")
        whole = like.new_empty((*like.shape[:-2], share.total, like.shape[-1])).normal_()
        return whole[..., share.rows, :]
