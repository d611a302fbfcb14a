"""A compiled graph is loaded from the cache, and never for another graph."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import zipfile
import zlib

import pytest
import torch
from conftest import needs_inductor
from torch.fx.experimental.proxy_tensor import make_fx

from pvae.compile import cache as cache_module
from pvae.compile import inductor
from pvae.compile.cache import load_or_compile
from pvae.compile.inductor import compile_graph


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
    monkeypatch.setattr(cache_module, "cache_dir", lambda: tmp_path)
    return tmp_path / "compiled"


@pytest.fixture
def compilations(monkeypatch):
    """Collect the programs compiled ahead of time, and forbid dynamo."""
    made = []
    compile_package = torch._inductor.aoti_compile_and_package

    def noted(program, **options):
        made.append(program)
        return compile_package(program, **options)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", noted)
    monkeypatch.setattr(inductor, "_through_dynamo", None)
    return made


@needs_inductor
@pytest.mark.slow
def test_a_graph_is_compiled_once_and_anew_if_the_package_is_damaged(cache, compilations, caplog, monkeypatch):
    def run():
        graph, inputs = graph_of()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            replay = compile_graph(graph, *inputs)
            torch.manual_seed(1)
            given = replay(*inputs)
            torch.manual_seed(1)
            noise = torch.randn_like(inputs[0])
        assert torch.equal(inputs[1], torch.full_like(inputs[1], 2.0)), "compiling runs the graph once, in place"
        assert torch.equal(given[0], inputs[0] * 2.0 + 2.0)
        assert torch.equal(given[1], inputs[0] + noise), "noise comes from torch's own generator"

    run()
    (path,) = cache.iterdir()
    path.chmod(0o400)
    run()
    assert len(compilations) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "it would be on stderr"
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.chmod(0o600)
    for damaged in (content[:1000], b"", flipped):
        path.write_bytes(damaged)
        with pytest.raises((zipfile.BadZipFile, zlib.error)):  # code with one flipped bit may crash the process
            cache_module._load(path)
    monkeypatch.setattr(cache_module, "compile_package", lambda _, package, options: package.write(content))
    run()
    assert path.read_bytes() == content


def test_a_package_that_cannot_be_stored_is_still_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache_module, "cache_dir", lambda: tmp_path / "file")
    monkeypatch.setattr(cache_module, "compile_package", lambda _, package, options: package.write(b"package"))
    monkeypatch.setattr(cache_module, "_unpacked", lambda package: package.getvalue())
    assert load_or_compile(make_fx(torch.sin)(torch.ones(2)), [torch.ones(2)], {}) == b"package"


def test_a_package_is_read_from_a_read_only_folder(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(cache_module, "_unpacked", lambda package: package.getvalue())
    cache_module._store(tmp_path / "key.pt2", b"package")
    monkeypatch.setattr(os, "utime", refused)
    assert cache_module._load(tmp_path / "key.pt2") == b"package"


@needs_inductor
def test_the_key_depends_on_everything_that_the_code_depends_on(monkeypatch):
    def key(graph, inputs, **options):
        return cache_module._key(graph, inputs, options)

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
        (torch, "get_default_dtype", lambda: torch.float64),
        (torch, "is_autocast_enabled", lambda _: True),
        (torch, "are_deterministic_algorithms_enabled", lambda: True),
        (torch.backends.mkldnn, "enabled", False),
        (torch.cpu, "get_capabilities", lambda: {"avx": False}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(key(graph, inputs))
    assert len(set(keys)) == len(keys)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "each run of torchrun has its own")
    assert key(*graph_of()) == keys[0]


def test_inputs_that_share_memory_are_compiled_by_dynamo(cache, monkeypatch):
    """A write into one would change the other, which compiled code does not expect."""
    graph, _ = graph_of()
    base = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="share memory"):
        load_or_compile(graph, list(base), {})
    assert not cache.exists()
    monkeypatch.setattr(inductor, "_through_dynamo", lambda graph, inputs: "dynamo's")
    assert compile_graph(graph, *base) == "dynamo's"


def test_a_graph_that_holds_tensors_is_refused(cache):
    held = torch.ones(3)
    graph = make_fx(lambda x: x + held)(torch.zeros(3))
    with pytest.raises(ValueError, match="holds more than its inputs"):
        load_or_compile(graph, [torch.zeros(3)], {})
    assert not cache.exists()


def test_a_replay_checks_the_layout_and_runs_in_one_thread_at_a_time(monkeypatch):
    """Compiled code assumes one layout; torch's own lock, held with the GIL, would be a deadlock."""
    running = []

    def run(inputs):
        running.append(1)
        time.sleep(0.01)
        assert len(running) == 1
        running.pop()
        return inputs

    monkeypatch.setattr(inductor, "load_or_compile", lambda *_: run)
    graph, (x, r) = graph_of()
    replay = compile_graph(graph, x, r)
    for other in (x.t(), x.t().contiguous().t(), x.double(), x[:2]):
        with pytest.raises(ValueError, match="compiled for"):
            replay(other, r)
    given = []

    def replay_it():
        with contextlib.suppress(AssertionError):
            given.append(replay(x, r))

    threads = [threading.Thread(target=replay_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 8


def test_the_least_recently_used_packages_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_MAX_PACKAGES", 3)
    for age, name in enumerate("cebda"):
        (tmp_path / f"{name}.pt2").touch()
        os.utime(tmp_path / f"{name}.pt2", (1000 - age, 1000 - age))
    (tmp_path / "other").touch()
    cache_module._store(tmp_path / "key.pt2", b"package")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["c.pt2", "e.pt2", "key.pt2", "other"]
