"""Products of float32 matrices by oneDNN, which with AVX-512 is up to twice as fast as the BLAS that torch calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pvae.core.torch_private import is_observed, linear_by_onednn

__all__ = ["Linear", "onednn", "opaque_onednn", "suits_onednn"]

# oneDNN is faster from this number of multiply-adds on: at 128 x 400 x 784 it is, at 128 x 400 x 40 it is not.
_LARGE = 2**22
# The least number of columns of the result: copying a factor can take longer than a product of 20 columns.
_WIDE = 128
# With AVX2 both take the same time. The choice is not measured at run time, so that a run can be repeated exactly.
_IS_FASTER = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and linear_by_onednn is not None


class Linear(nn.Linear):
    """torch's linear layer, y = x W^T + b, which computes large products by oneDNN: equal to rounding, in less time.

    torch's own product is used (a) if the product is small, narrow or not float32, or the device is not a CPU with
    AVX-512; (b) under autocast; (c) if something observes the operators: a tensor subclass, torch.compile,
    torch.jit.trace, torch.func, forward-mode differentiation, or a dispatch mode (make_fx, FlopCounterMode).
    A batch just above the size limit therefore differs by rounding from one below it. torch.jit.script and torch.fx's
    symbolic tracing do not support this layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out_features) of x (..., in_features)."""
        if is_observed(x, self.weight) or not suits_onednn(x, self.weight, self.bias):
            return super().forward(x)
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]).contiguous(), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """left right^T + bias. The gradients are computed by this function too, so they can be differentiated again."""

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
    if is_observed(left, right) or right.shape[0] < _WIDE:
        return left @ right.t()
    product: Tensor = _Product.apply(left.contiguous(), right, None)  # the rows of a gradient may overlap in memory
    return product


def onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return left right^T + bias by oneDNN; `suits_onednn` must be true."""
    product: Tensor = linear_by_onednn(left, right, bias, "none", [], "")
    return product


def suits_onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN supports left (..., in) times right (out, in)^T, plus bias (out,), and is faster."""
    if not (_IS_FASTER and _HAS_ONEDNN and torch.backends.mkldnn.enabled):
        return False
    # Sizes first: for a small product the other checks cost more than oneDNN saves.
    if left.numel() * right.shape[0] < _LARGE or right.shape[0] < _WIDE:
        return False
    are_dense_float32 = all(
        one.dtype == torch.float32 and one.device.type == "cpu" and one.layout == torch.strided
        for one in ((left, right) if bias is None else (left, right, bias))
    )
    # oneDNN ignores the strides of a bias.
    suits_bias = bias is None or (bias.shape == right.shape[:1] and bias.is_contiguous())
    return are_dense_float32 and suits_bias and left.shape[-1] == right.shape[-1]


def opaque_onednn() -> Callable[..., Tensor]:
    """Return `onednn` as a custom operator, which inductor leaves as it is; its own lowering needs constant weights."""
    _library()
    product: Callable[..., Tensor] = torch.ops.pvae.product.default
    return product


@functools.cache
def _library() -> torch.library.Library:
    """Return the library that defines the operator, once; the operator exists as long as this object."""
    library = torch.library.Library("pvae", "DEF")  # faster to call than torch.library.custom_op
    library.define("product(Tensor left, Tensor right, Tensor? bias) -> Tensor")
    library.impl("product", onednn, "CPU")
    torch.library.register_fake("pvae::product", lambda left, right, bias: left.new_empty(len(left), len(right)))
    return library
