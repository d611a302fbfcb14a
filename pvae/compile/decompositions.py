"""Decomposition tables for `make_fx`, by which a recording computes products in bfloat16 or by oneDNN.

Each table contains what is recorded in place of an operator of float32 tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pvae.models.onednn import suits_onednn

__all__ = ["Decompositions", "bfloat16_products", "onednn_products"]

_ATEN = torch.ops.aten

Decompositions = dict[Any, Callable[..., Any]]


def onednn_products(product: Callable[..., Tensor]) -> Decompositions:
    """Return the table that computes large float32 products on the CPU by oneDNN.

    Args:
        product: left right^T + bias, as `pvae.models.onednn.onednn`.
    """

    def mm(left: Tensor, right: Tensor) -> Tensor:
        return addmm(None, left, right)

    def addmm(bias: Tensor | None, left: Tensor, right: Tensor, **scales: Any) -> Tensor:
        if scales or not suits_onednn(left, right.t(), bias):
            return NotImplemented
        if not right.t().is_contiguous():
            right = right.contiguous()  # for rows that lie apart in memory oneDNN takes hundreds of times as long
        return product(left.contiguous(), right.t(), bias)

    return {_ATEN.mm.default: mm, _ATEN.addmm.default: addmm}


def bfloat16_products() -> Decompositions:
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
