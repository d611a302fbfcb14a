"""Products of float32 matrices on a CPU: torch gives them to its BLAS, and oneDNN is up to twice as fast."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["Linear", "onednn", "opaque_onednn", "suits_onednn", "torchs_own"]

# Multiply-adds from which oneDNN's product is the faster one: 128 x 400 x 40 is not worth it, 128 x 400 x 784 is.
_LARGE = 2**22
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_torchs_own: ContextVar[bool] = ContextVar("_torchs_own", default=False)


class Linear(nn.Linear):
    """torch's linear layer, y = x W^T + b, whose large products are oneDNN's: the same to rounding, in less time.

    It is torch's own wherever the product is small, not of float32 on a CPU, or looked at by something that knows
    torch's operators only: autocast, torch.compile, torch.jit, torch.func,
    a recording.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., out_features) of x (..., in_features)."""
        if _is_watched() or not suits_onednn(x.shape[:-1].numel(), x, self.weight):
            return super().forward(x)
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """left right^T + bias, its gradients being products too, and so any derivative of them."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        return onednn(left, right, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (left, right), wanted = gradients, ctx.saved_tensors, ctx.needs_input_grad
        return (
            _product(gradient, right.t()) if wanted[0] else None,
            _product(gradient.t(), left.t()) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = _Product.apply(left.contiguous(), right, None)  # oneDNN wants it so
    return product


def onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return left right^T + bias by oneDNN; the operator is private to torch, made for inductor."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(left, right, bias, "none", [], "")
    return product


def suits_onednn(num_rows: int, left: Tensor, right: Tensor) -> bool:
    """Whether (num_rows, in) times (out, in)^T, or right as it lies, is a product that oneDNN has and is faster at."""
    is_float32 = left.dtype == right.dtype == torch.float32
    is_on_cpu = left.device.type == right.device.type == "cpu"
    return _HAS_ONEDNN and is_float32 and is_on_cpu and num_rows * right.numel() >= _LARGE


@contextlib.contextmanager
def torchs_own() -> Iterator[None]:
    """Leave all products in this block to torch's own operators."""
    token = _torchs_own.set(True)
    try:
        yield
    finally:
        _torchs_own.reset(token)


def _is_watched() -> bool:
    """Whether something around looks at the operators that run, and would not know oneDNN's."""
    return (
        torch.compiler.is_compiling()
        or _torchs_own.get()
        or torch.is_autocast_enabled("cpu")
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


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
