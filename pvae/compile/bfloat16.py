"""Matrix products and convolutions of a recorded graph, taken in bfloat16."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["take_products_in_bfloat16"]

_ATEN = torch.ops.aten

Rewrite = Callable[..., fx.Node | tuple[fx.Node | None, ...]]


def take_products_in_bfloat16(graph: fx.Graph) -> None:
    """Round the factors of float32 products and convolutions to bfloat16, and bring the results back to float32.

    Biases are added in float32, and their gradients summed in it.
    """
    writer = _Writer(graph)
    for node in list(graph.nodes):
        rewrite = _REWRITES.get(node.target)
        if rewrite is None or node.kwargs or not _is_float32(node.args[1]):
            continue
        with graph.inserting_before(node):
            new = rewrite(writer, *node.args)
        if isinstance(new, tuple):
            for part in list(node.users):
                _replace(graph, part, new[part.args[1]])
            graph.erase_node(node)
        else:
            _replace(graph, node, new)


def _replace(graph: fx.Graph, node: fx.Node, new: fx.Node | None) -> None:
    if new is not None:
        new.meta = node.meta
        node.replace_all_uses_with(new)
    graph.erase_node(node)


def _is_float32(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


class _Writer:
    """Writes operators into a graph at its insertion point; each input of the graph is rounded once."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._rounded: dict[Any, fx.Node] = {}

    def __call__(self, operator: Callable[..., Any], *arguments: Any, **options: Any) -> fx.Node:
        """Write an operator."""
        return self.graph.call_function(operator, arguments, options)

    def low(self, factor: Any) -> fx.Node:
        """Return a factor in bfloat16."""
        if factor.target is _ATEN.t.default:  # round a weight once for both passes
            return self(_ATEN.t.default, self.low(factor.args[0]))
        if factor.op not in ("get_attr", "placeholder"):  # it may be modified between two products
            return self._low(factor)
        if factor not in self._rounded:
            with self.graph.inserting_after(factor):
                self._rounded[factor] = self._low(factor)
        return self._rounded[factor]

    def _low(self, factor: fx.Node) -> fx.Node:
        return self(_ATEN.to.dtype, factor, dtype=torch.bfloat16)

    def high(self, node: fx.Node) -> fx.Node:
        """Return what an operator gives in float32."""
        return self(_ATEN.to.dtype, node, dtype=torch.float32)


def _mm(write: _Writer, left: fx.Node, right: fx.Node) -> fx.Node:
    return write.high(write(_ATEN.mm.default, write.low(left), write.low(right)))


def _addmm(write: _Writer, bias: fx.Node, left: fx.Node, right: fx.Node) -> fx.Node:
    return write(_ATEN.add_.Tensor, _mm(write, left, right), bias)


def _convolution(write: _Writer, x: fx.Node, weight: fx.Node, bias: fx.Node | None, *options: Any) -> fx.Node:
    y = write.high(write(_ATEN.convolution.default, write.low(x), write.low(weight), None, *options))
    if bias is None:
        return y
    channels = [-1, *[1] * (x.meta["val"].dim() - 2)]
    return write(_ATEN.add_.Tensor, y, write(_ATEN.view.default, bias, channels))


def _convolution_backward(
    write: _Writer, gradient: fx.Node, x: fx.Node, weight: fx.Node, bias_sizes: Any, *options: Any
) -> tuple[fx.Node | None, ...]:
    by_x, by_weight, by_bias = options[-1]
    factors = write.low(gradient), write.low(x), write.low(weight)
    mask = [by_x, by_weight, False]
    parts = write(_ATEN.convolution_backward.default, *factors, bias_sizes, *options[:-1], mask)
    all_but_channels = [0, *range(2, gradient.meta["val"].dim())]
    return (
        write.high(write(operator.getitem, parts, 0)) if by_x else None,
        write.high(write(operator.getitem, parts, 1)) if by_weight else None,
        write(_ATEN.sum.dim_IntList, gradient, all_but_channels) if by_bias else None,
    )


_REWRITES: dict[Any, Rewrite] = {
    _ATEN.mm.default: _mm,
    _ATEN.addmm.default: _addmm,
    _ATEN.convolution.default: _convolution,
    _ATEN.convolution_backward.default: _convolution_backward,
}
