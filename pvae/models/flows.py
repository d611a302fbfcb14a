"""Autoregressive transforms of zuko, for posteriors and priors."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pvae.core.errors import InputError, brief
from pvae.core.options import Option

__all__ = ["FlowHidden", "FlowLength", "autoregressive_transforms", "composed"]

_LENGTH = "number of transforms of a flow, of the posterior's and of the prior's"
FlowLength = Annotated[int, Option(help=_LENGTH, least=1, most=1000)]
_HIDDEN = "widths of the hidden layers of each transform of an autoregressive flow"
FlowHidden = Annotated[Sequence[int], Option(help=_HIDDEN)]


def autoregressive_transforms(
    latent_dim: int, num_transforms: int, hidden: Sequence[int], num_context: int = 0, num_bins: int = 0
) -> nn.ModuleList:
    """Return T masked autoregressive transforms f_t; the order of the dimensions is reversed from one to the next.

        f_t(e, h)_l = g(e_l),    where the parameters of g depend on e_1..e_(l-1) and h

    Here g is affine, or a monotonic rational-quadratic spline on [-5, 5] and the identity outside. The transforms start
    near the identity: the last layer of each network has a hundredth of its usual weights.

    Args:
        latent_dim: L, the number of latent dimensions.
        num_transforms: T, the number of transforms.
        hidden: widths of the hidden layers of each masked network.
        num_context: length of h.
        num_bins: of each spline; 0 for an affine g.

    Raises:
        InputError: zuko is not installed.

    Reference:
        Papamakarios et al., arXiv:1705.07057; Durkan et al., arXiv:1906.04032 (splines).
    """
    forward, device, zuko = list(range(latent_dim)), torch.empty(0).device, _zuko()
    options: dict[str, Any] = {"hidden_features": hidden}
    if num_bins:
        options["univariate"] = zuko.transforms.MonotonicRQSTransform
        options["shapes"] = [(num_bins,), (num_bins,), (num_bins - 1,)]
    # On the CPU first, since zuko's masks cannot be computed on the meta device.
    with torch.device("cpu"), torch.random.fork_rng(devices=[], enabled=device.type == "meta"):
        transforms = [
            zuko.flows.MaskedAutoregressiveTransform(
                latent_dim, num_context, order=forward[::-1] if number % 2 else forward, **options
            )
            for number in range(num_transforms)
        ]
        for transform in transforms:
            last = transform.hyper[-1] if hasattr(transform, "hyper") else transform  # zuko has no network for L = 1
            for parameter in last.parameters():
                parameter.data.mul_(0.01)
    return nn.ModuleList(transforms).to(device)


def composed(transforms: Iterable[Any], context: Tensor | None = None) -> Any:
    """Return the `Bijection` f_T(... f_1(e, h) ..., h) of transforms at a context h, (..., num_context)."""
    return _zuko().transforms.ComposedTransform(*(transform(context) for transform in transforms))


def _zuko() -> Any:
    """Return zuko. Its import switches off the checks of all distributions, which are switched on again."""
    before = Distribution._validate_args  # noqa: SLF001 - torch has no public name for it
    try:
        return importlib.import_module("zuko")
    except ImportError as error:
        why = f"({brief(error)})"
        raise InputError(f"inverse and masked autoregressive flows need zuko: pip install zuko {why}") from None
    finally:
        Distribution.set_default_validate_args(before)
