"""What was compiled once is read again, and never for another graph."""

from __future__ import annotations

import os

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pvae import inductor, packages
from pvae.inductor import compile_graph
from pvae.packages import packaged

needs_compiler = pytest.mark.skipif(not inductor.has_compiler(), reason="inductor needs a C++ compiler")


def graph_of(number=2.0, shape=(3, 4)):
    """x * number + r, r being added to in place, and x given back with noise."""

    def function(x, r):
        r.add_(1.0)
        return [x * number + r, x + torch.randn_like(x)]

    inputs = [torch.linspace(-1, 1, shape[0] * shape[1]).view(shape), torch.zeros(shape)]
    graph = make_fx(function)(*inputs)  # runs it
    inputs[1].zero_()
    return graph, inputs


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "cache_dir", lambda: tmp_path)
    return tmp_path / "compiled"


@pytest.fixture
def compilations(monkeypatch):
    """Note what is compiled ahead of time, which dynamo is not to do in its place."""
    made = []
    compile_package = torch._inductor.aoti_compile_and_package

    def noted(program, **options):
        made.append(program)
        return compile_package(program, **options)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", noted)
    monkeypatch.setattr(inductor, "_through_dynamo", None)
    return made


@needs_compiler
def test_a_graph_is_compiled_once_and_damage_is_mended(cache, compilations):
    def run():
        graph, inputs = graph_of()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            replay = compile_graph(graph, *inputs)
            torch.manual_seed(1)
            given = replay(*inputs)
            torch.manual_seed(1)
            noise = torch.randn_like(inputs[0])
        assert torch.equal(inputs[1], torch.full_like(inputs[1], 2.0)), "it runs once when it is made, in place"
        assert torch.equal(given[0], inputs[0] * 2.0 + 2.0)
        assert torch.equal(given[1], inputs[0] + noise), "it draws from torch's own generator"

    run()
    (path,) = cache.iterdir()
    run()
    assert len(compilations) == 1
    path.write_bytes(path.read_bytes()[:1000])
    run()
    assert len(compilations) == 2
    assert [one.name for one in cache.iterdir()] == [path.name], "and nothing else lies there"


def test_the_key_tells_apart_what_the_code_hangs_on(monkeypatch):
    def key(graph, inputs, **options):
        return packages._key(graph, inputs, options)

    graph, inputs = graph_of()
    keys = [
        key(graph, inputs),
        key(graph_of(number=2.0000000000000004)[0], inputs),
        key(*graph_of(shape=(4, 3))),
        key(graph, [inputs[0].t().contiguous().t(), inputs[1]]),
        key(graph, [inputs[0].double(), inputs[1]]),
        key(graph, inputs, fallback_random=True),
    ]
    with monkeypatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1")
        keys.append(key(graph, inputs))
    for owner, name, value in [
        (torch, "__version__", "3"),
        (torch, "get_num_threads", lambda: 64),
        (torch, "get_float32_matmul_precision", lambda: "medium"),
        (torch.cpu, "get_capabilities", lambda: {"avx": False}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(key(graph, inputs))
    assert len(set(keys)) == len(keys)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    assert key(*graph_of()) == keys[0]


def test_inputs_that_share_memory_are_left_to_dynamo(cache, monkeypatch):
    """One could be written into through the other, of which nothing would know."""
    graph, _ = graph_of()
    base = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="share memory"):
        packaged(graph, list(base), {})
    assert not cache.exists()
    monkeypatch.setattr(inductor, "_through_dynamo", lambda graph, inputs: "dynamo's")
    assert compile_graph(graph, *base) == "dynamo's"


def test_a_graph_that_holds_tensors_is_refused(cache):
    held = torch.ones(3)
    graph = make_fx(lambda x: x + held)(torch.zeros(3))
    with pytest.raises(ValueError, match="holds more than its inputs"):
        packaged(graph, [torch.zeros(3)], {})
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_left_to_dynamo(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(packages, "cache_dir", lambda: tmp_path / "file")
    monkeypatch.setattr(inductor, "_through_dynamo", lambda graph, inputs: "dynamo's")
    graph, inputs = graph_of()
    assert compile_graph(graph, *inputs) == "dynamo's"


def test_the_oldest_packages_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "_NUM_KEPT", 3)
    for age, name in enumerate("cebda"):
        (tmp_path / f"{name}.pt2").touch()
        os.utime(tmp_path / f"{name}.pt2", (1000 - age, 1000 - age))
    (tmp_path / "other").touch()
    packages._drop_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pt2", "c.pt2", "e.pt2", "other"]
