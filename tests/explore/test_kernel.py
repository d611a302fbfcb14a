"""The loops of the page in WebAssembly: the bytes are those of the source, and their sums those of torch."""

from __future__ import annotations

from pathlib import Path

import pytest

import pvae.explore

wasmtime = pytest.importorskip("wasmtime", reason="needs wasmtime: pip install wasmtime")
FOLDER = Path(pvae.explore.__file__).parent


def test_the_bytes_are_those_of_the_source():
    """After a change of kernel.wat: `kernel.wasm` is `wasmtime.wat2wasm` of its text."""
    assert wasmtime.wat2wasm((FOLDER / "kernel.wat").read_text()) == (FOLDER / "kernel.wasm").read_bytes()
