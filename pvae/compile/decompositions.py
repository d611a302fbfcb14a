"""Decomposition tables for `make_fx`, by which a recording computes products in bfloat16 or by oneDNN.

Each table contains what is recorded in place of an operator of float32 tensors.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["bfloat16_products", "onednn_is_faster", "onednn_products"]

_ATEN = torch.ops.aten
_Decompositions = dict[Any, Callable[..., Any]]
# oneDNN's product of float32 matrices (None if torch was built without it): with AVX-512 up to twice as fast as BLAS.
_LINEAR: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)

# oneDNN is faster from this number of multiply-adds on: at 128 x 400 x 784 it is, at 128 x 400 x 40 it is not.
_LARGE = 2**22
# The least number of columns of the result: copying a factor can take longer than a product of 20 columns.
_WIDE = 128


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies large float32 matrices faster than MKL, which torch calls.

    It does on CPUs with AVX-512 that are not Intel's, where MKL does not use these instructions.
    """
    is_intel = True  # as long as /proc does not say otherwise
    with contextlib.suppress(OSError):
        is_intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    has_onednn = torch.backends.mkldnn.is_available() and _LINEAR is not None
    return has_onednn and not is_intel and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def onednn_products(is_compiled: bool) -> _Decompositions:
    """Return the table that computes large float32 products on the CPU by oneDNN, where it is faster.

    Args:
        is_compiled: record the product as an operator of our own, which inductor leaves as it is; its lowering of
            oneDNN's needs constant weights.
    """
    if not onednn_is_faster():
        return {}
    product = _opaque_product() if is_compiled else _product

    def mm(left: Tensor, right: Tensor) -> Tensor:
        return addmm(None, left, right)

    def addmm(bias: Tensor | None, left: Tensor, right: Tensor, **scales: Any) -> Tensor:
        is_float = left.dtype == right.dtype == torch.float32 and left.device.type == "cpu"
        is_large = left.numel() * right.shape[1] >= _LARGE and right.shape[1] >= _WIDE
        is_vector = bias is None or (bias.shape == right.shape[1:] and bias.is_contiguous())  # oneDNN ignores strides
        if scales or not (is_float and is_large and is_vector):
            return NotImplemented
        if not right.t().is_contiguous():
            right = right.contiguous()  # for rows that lie apart in memory oneDNN takes hundreds of times as long
        return product(left.contiguous(), right.t(), bias)

    def bmm(left: Tensor, right: Tensor) -> Tensor:
        products = [mm(*factors) for factors in zip(left.unbind(), right.unbind())]
        return NotImplemented if products[0] is NotImplemented else torch.stack(products)

    return {_ATEN.mm.default: mm, _ATEN.addmm.default: addmm, _ATEN.bmm.default: bmm}


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """Return left right^T + bias by oneDNN."""
    product: Tensor = _LINEAR(left, right, bias, "none", [], "")
    return product


@functools.cache
def _opaque_product() -> Callable[..., Tensor]:
    library = torch.library.Library("pvae", "DEF")  # faster to call than torch.library.custom_op
    library.define("product(Tensor left, Tensor right, Tensor? bias) -> Tensor")
    library.impl("product", _product, "CPU")
    torch.library.register_fake("pvae::product", lambda left, right, bias: left.new_empty(len(left), len(right)))
    _opaque_product.library = library  # type: ignore[attr-defined]  # the operator exists as long as this object
    return torch.ops.pvae.product.default


def bfloat16_products() -> _Decompositions:
    """Return the table that rounds the factors of float32 products and convolutions to bfloat16.

    The results are converted back to float32. Biases are added in float32, and their gradients are summed in float32.
    """
    return {
        _ATEN.mm.default: _mm,
        _ATEN.addmm.default: _addmm,
        _ATEN.convolution.default: _convolution,
        _ATEN.convolution_backward.default: _convolution_backward,
    }


def _rounded(*factors: Tensor) -> list[Tensor]:
    return [factor.to(torch.bfloat16) for factor in factors]


def _mm(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(*_rounded(left, right)).float() if left.dtype == torch.float32 else NotImplemented


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **scales: Any) -> Tensor:
    if scales or left.dtype != torch.float32:
        return NotImplemented
    return _mm(left, right).add_(bias)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    if x.dtype != torch.float32:
        return NotImplemented
    y = _ATEN.convolution(*_rounded(x, weight), None, *options).float()
    return y if bias is None else y.add_(bias.view(-1, *[1] * (x.dim() - 2)))


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *options: Any) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    *geometry, (by_x, by_weight, by_bias) = options
    factors = _rounded(gradient, x, weight)
    of_x, of_weight, _ = _ATEN.convolution_backward(*factors, bias_sizes, *geometry, [by_x, by_weight, False])
    return (
        of_x.float() if by_x else None,
        of_weight.float() if by_weight else None,
        gradient.sum([0, *range(2, gradient.dim())]) if by_bias else None,
    )
