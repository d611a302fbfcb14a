"""The loops of the page in WebAssembly: the bytes are those of the source, and their sums those of torch."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

import pvae.explore

wasmtime = pytest.importorskip("wasmtime", reason="needs wasmtime: pip install wasmtime")
FOLDER = Path(pvae.explore.__file__).parent


@pytest.fixture
def call():
    """Call a function of the kernel with arrays; returns the first of them afterwards."""
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, (FOLDER / "kernel.wasm").read_bytes())
    exports = wasmtime.Instance(store, module, []).exports(store)

    def called(name, arrays, *sizes):
        starts = [0, *itertools.accumulate(one.numel() * 4 for one in arrays)]
        exports["memory"].grow(store, starts[-1] // 65536 + 1)
        for one, start in zip(arrays, starts):
            exports["memory"].write(store, one.numpy().tobytes(), start)
        exports[name](store, *starts[: len(arrays)], *sizes)
        found = bytearray(exports["memory"].read(store, 0, starts[1]))
        assert exports["memory"].read(store, starts[1], starts[-1]) == b"".join(
            one.numpy().tobytes() for one in arrays[1:]
        )
        return torch.frombuffer(found, dtype=torch.float32).view(arrays[0].shape)

    return called


def test_the_bytes_are_those_of_the_source():
    """After a change of kernel.wat: `kernel.wasm` is `wasmtime.wat2wasm` of its text."""
    assert wasmtime.wat2wasm((FOLDER / "kernel.wat").read_text()) == (FOLDER / "kernel.wasm").read_bytes()


@pytest.mark.parametrize("sizes", [*itertools.product([1, 3, 4, 9], [1, 5], [8, 24])], ids=str)
def test_a_product_is_added(call, sizes):
    m, k, n = sizes
    draw = torch.Generator().manual_seed(0)
    out, a, b = (torch.randn(*shape, generator=draw) for shape in ((m, n), (m, k), (k, n)))
    torch.testing.assert_close(call("product", [out, a, b], m, k, n), out + a @ b)


@pytest.mark.parametrize(
    ("stride", "padding", "size", "more"), [(1, 0, 1, 0), (1, 1, 3, 0), (2, 1, 4, 0), (3, 2, 4, 1), (2, 4, 3, 1)]
)
def test_taps_are_added_where_a_transposed_convolution_puts_them(call, stride, padding, size, more):
    layer = nn.ConvTranspose2d(2, 8, size, stride, padding, more, bias=False)
    x = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(x)[0].movedim(0, -1)
        taps = torch.einsum("chw,ckij->hwijk", x[0], layer.weight).contiguous()
    start = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    sizes = (6, 5, *expected.shape[:2], size, stride, padding, 8)
    torch.testing.assert_close(call("scatter", [start, taps], *sizes), start + expected, atol=1e-5, rtol=1e-5)
