"""Products of float32 matrices: torch gives them to its BLAS, and with AVX-512 oneDNN is up to twice as fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvae.core.torch_private import is_followed, linear_by_onednn

__all__ = ["Linear", "onednn", "opaque_onednn", "suits_onednn"]

# Multiply-adds from which oneDNN's product is the faster one: 128 x 400 x 40 is not worth it, 128 x 400 x 784 is.
_LARGE = 2**22
# Columns of what it gives: a factor may have to be copied first, which costs more than a product of 20 columns does.
_WIDE = 128
# With AVX2 the two are alike, and what lies around oneDNN's is lost. No measurement decides: a run must repeat itself.
_IS_FASTER = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and linear_by_onednn is not None


class Linear(nn.Linear):
    """torch's linear layer, y = x W^T + b, whose large products are oneDNN's: the same to rounding, in less time.

    It is torch's own where the product is small, narrow or not of float32 on a CPU with AVX-512, under autocast, and
    where something follows the operators that run: a tensor of another class, torch.compile, torch.jit.trace,
    torch.func, forward mode, a dispatch mode (make_fx, FlopCounterMode). A batch just large enough thus differs by
    rounding from one that is not. torch.jit.script and torch.fx's symbolic tracing do not take it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out_features) of x (..., in_features)."""
        if is_followed(x, self.weight) or not suits_onednn(x, self.weight, self.bias):
            return super().forward(x)
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]).contiguous(), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """left right^T + bias, its gradients being products too, and so any derivative of them."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left if ctx.needs_input_grad[1] else None, right if ctx.needs_input_grad[0] else None)
        return onednn(left, right, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (left, right), by_bias = gradients, ctx.saved_tensors, ctx.needs_input_grad[2]
        return (
            None if right is None else _product(gradient, right.t()),
            None if left is None else _product(gradient.t(), left.t()),
            gradient.sum(0) if by_bias else None,
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    if is_followed(left, right) or right.shape[0] < _WIDE:
        return left @ right.t()
    product: Tensor = _Product.apply(left.contiguous(), right, None)  # a gradient's rows may lie on each other
    return product


def onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return left right^T + bias by oneDNN, for what `suits_onednn`."""
    product: Tensor = linear_by_onednn(left, right, bias, "none", [], "")
    return product


def suits_onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> bool:
    """Whether left (..., in) times right (out, in)^T, plus bias (out,), is what oneDNN takes, and is faster at."""
    if not (_IS_FASTER and _HAS_ONEDNN and torch.backends.mkldnn.enabled):
        return False
    # First, since a small product is slowed most by what is asked of it.
    if left.numel() * right.shape[0] < _LARGE or right.shape[0] < _WIDE:
        return False
    is_of_its_kind = all(
        one.dtype == torch.float32 and one.device.type == "cpu" and one.layout == torch.strided
        for one in ((left, right) if bias is None else (left, right, bias))
    )
    # It looks at no stride of a bias.
    suits = is_of_its_kind and (bias is None or (bias.shape == right.shape[:1] and bias.is_contiguous()))
    return suits and left.shape[-1] == right.shape[-1]


def opaque_onednn() -> Callable[..., Tensor]:
    """Return `onednn` as an operator into which inductor does not look: of its own it wants constant weights."""
    _library()
    product: Callable[..., Tensor] = torch.ops.pvae.product.default
    return product


@functools.cache
def _library() -> torch.library.Library:
    """Return the library of that operator, which lasts as long as the object."""
    library = torch.library.Library("pvae", "DEF")  # less of it in Python than torch.library.custom_op
    library.define("product(Tensor left, Tensor right, Tensor? bias) -> Tensor")
    library.impl("product", onednn, "CPU")
    torch.library.register_fake("pvae::product", lambda left, right, bias: left.new_empty(len(left), len(right)))
    return library
