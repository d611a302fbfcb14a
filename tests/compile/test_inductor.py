"""Compiled code is loaded from the cache, never for another graph, and what is missing is said."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from conftest import needs_inductor
from torch.fx.experimental.proxy_tensor import make_fx

from pvae.compile import graph as graph_module
from pvae.compile.graph import RecordingError, compile_graph, record
from pvae.core.errors import InputError
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow


def graph_of(number=2.0, shape=(3, 4)):
    """Return the graph of x * number + r, which adds to r in place, and of x plus noise."""

    def function(x, r):
        r.add_(1.0)
        return [x * number + r, x + torch.randn_like(x)]

    inputs = [torch.linspace(-1, 1, shape[0] * shape[1]).view(shape), torch.zeros(shape)]
    graph = make_fx(function)(*inputs)  # runs it
    inputs[1].zero_()
    return graph, inputs


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_module, "cache_dir", lambda: tmp_path)
    return tmp_path / "compiled"


@needs_inductor
@pytest.mark.slow
def test_a_graph_is_compiled_once_and_anew_if_the_package_is_damaged(cache, monkeypatch):
    compiled = []
    compile_package = torch._inductor.aoti_compile_and_package

    def counted(*arguments, **options):
        compiled.append(1)
        return compile_package(*arguments, **options)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", counted)

    def run():
        graph, inputs = graph_of()
        replay = compile_graph(graph, inputs)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            given = replay(*inputs)
            torch.manual_seed(1)
            noise = torch.randn_like(inputs[0])
        assert torch.equal(inputs[1], torch.ones_like(inputs[1])), "it writes in place"
        assert torch.equal(given[0], inputs[0] * 2.0 + 1.0)
        assert torch.equal(given[1], inputs[0] + noise), "noise comes from torch's own generator"

    run()
    run()
    assert len(compiled) == 1
    (path,) = cache.iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = (content[:1000], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    for number, one in enumerate(damaged, start=2):
        path.write_bytes(one)
        run()
        assert len(compiled) == number


@pytest.fixture
def packages(cache, monkeypatch):
    """Compile nothing: a package has a text in place of code, and is a function that returns it."""

    def compile_package(_, package_path, inductor_configs):
        with zipfile.ZipFile(package_path, "w") as file:
            file.writestr("code", "code")

    class Loader:
        def __init__(self, folder, *_):
            self.text = Path(folder, "code").read_text()

        def boxed_run(self, inputs):
            return self.text

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_package)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Loader)
    cache.mkdir()
    return cache


@needs_inductor
def test_a_package_is_used_again_for_the_same_graph_inputs_and_settings_alone(packages, monkeypatch):
    graph, inputs = graph_of()
    changes = [
        (torch, "__version__", "3"),
        (torch.backends.mkldnn, "enabled", False),
        (torch.cpu, "get_capabilities", lambda: {"avx": False}),
    ]
    calls = [
        lambda: compile_graph(graph, inputs),
        lambda: compile_graph(graph_of(number=2.0000000000000004)[0], inputs),
        lambda: compile_graph(*graph_of(shape=(4, 3))),
        lambda: compile_graph(graph, [inputs[0].t().contiguous().t(), inputs[1]]),
        lambda: compile_graph(graph, [inputs[0].double(), inputs[1]]),
    ]
    for number, call in enumerate(calls, start=1):
        call()
        assert len([*packages.iterdir()]) == number
    for number, change in enumerate(changes, start=len(calls) + 1):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            calls[0]()
        assert len([*packages.iterdir()]) == number
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "each run of torchrun has its own")
    calls[0]()
    assert len([*packages.iterdir()]) == number


def test_tensors_that_share_memory_are_refused():
    """A write into one would change the other, which compiled code does not expect."""
    base = torch.zeros(2, 3)
    held = list(base)
    graph = make_fx(lambda x: x + held[0] * held[1])(torch.zeros(3))
    with pytest.raises(ValueError, match="memory"):
        compile_graph(graph, [torch.zeros(3)])


@pytest.mark.parametrize("lacks", ["a compiler", "a newer torch"])
def test_missing_requirements_are_reported_before_a_file_is_written(
    monkeypatch, few_digits, small_config, tmp_path, lacks
):
    monkeypatch.setattr(graph_module, "OLDEST_FOR_INDUCTOR", "2.6" if lacks == "a compiler" else "99")
    monkeypatch.setattr(graph_module.shutil, "which", lambda name: None if lacks == "a compiler" else name)
    with pytest.raises(InputError):
        fit(small_config.replace(compile="inductor"), data=few_digits, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failing_compiler_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(graph_module, "missing", str)  # nothing

    def broken(*_):
        raise RuntimeError("CppCompileError\nno Python.h")

    monkeypatch.setattr(graph_module, "compile_graph", broken)
    with pytest.raises(RecordingError, match="CppCompileError"):
        record(lambda x: (x + 1,), [torch.zeros(2)], engine="inductor")
