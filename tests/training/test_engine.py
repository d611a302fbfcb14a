"""Threads and engine are chosen by the time of the first steps, and change the training by rounding alone."""

from __future__ import annotations

import math
import signal
from collections import Counter

import pyro
import pytest
import torch
from conftest import needs_inductor

from pvae.compile import graph
from pvae.compile.compiled_svi import Done
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Terms
from pvae.core.errors import InterruptedTrainingError
from pvae.core.random_state import seeded
from pvae.runs.run import Run
from pvae.training import engine as engine_module
from pvae.training.engine import Engine, Threads
from pvae.training.fit import fit, resume
from pvae.training.setup import build_trainer

CPU = torch.device("cpu")
LONG = 10**9  # epochs, which repay any compilation


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({4: 1.0, 2: 0.95, 1: 0.91}, 4), ({4: 1.0, 2: 0.8, 1: 0.75}, 2), ({4: 1.0, 2: 0.8, 1: 0.5}, 1), ({1: 1.0}, 1)],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(seconds, chosen):
    """The first steps with each number may be slow, or other steps may."""
    threads, used = Threads(max(seconds), is_fixed=len(seconds) == 1), []
    while threads.chosen is None:
        used.append(threads.number)
        is_slow = used.count(used[-1]) == (1 if used[-1] == 4 else 2)
        assert threads.end(100.0 if is_slow else seconds[used[-1]], 5) == (threads.chosen is not None)
    assert (threads.chosen, threads.number, threads.seconds) == (chosen, chosen, seconds[chosen])
    assert len(used) <= 3 * len(seconds)


def steps(threads, total, seconds):
    """Take steps for that many seconds; return the seconds with each number of threads."""
    used = Counter()
    while sum(used.values()) < total:
        count = 5 if threads.is_trying else 50
        used[threads.number] += count * seconds[threads.number]
        threads.end(seconds[threads.number], count)
    return used


def test_threads_are_chosen_anew_when_steps_become_slow_and_when_they_may_be_fast_again():
    threads = Threads(2, is_fixed=False)
    idle, busy = {2: 0.5, 1: 1.0}, {2: 20.0, 1: 1.5}
    assert steps(threads, 10_000, idle)[1] < 1_000
    assert steps(threads, 20_000, busy)[1] > 10_000
    steps(threads, 10_000, idle)
    assert steps(threads, 10_000, idle)[1] < 1_000


def test_a_busy_machine_is_tried_ever_less_often():
    threads = Threads(2, is_fixed=False)
    steps(threads, 10_000, {2: 20.0, 1: 1.5})
    assert steps(threads, 100_000, {2: 20.0, 1: 1.5})[2] < 5_000


class Fake:
    """Steps that take no time, and a compiler that has kept its code or asks whether it may compile."""

    num_recordings = 0

    def __init__(self, is_kept):
        self.is_kept, self.taken = is_kept, []

    def run(self, batches, values):
        assert len(batches) == len(values)
        self.taken.append(len(batches))
        torch.arange(10_000 * len(batches)).sum()
        empty = torch.zeros(0)
        return Done(torch.zeros(len(batches)), Terms(empty, empty))

    def use_inductor(self, batch, may_compile):
        if not self.is_kept and not may_compile(200):
            raise graph.RecordingError("may not be compiled")


@pytest.mark.parametrize(
    ("steps_left", "is_kept", "chosen"),
    [(10**12, False, "inductor"), (10**12, True, "inductor"), (100, True, "graph"), (10**6, False, "graph")],
)
def test_steps_are_compiled_where_that_is_repaid(monkeypatch, steps_left, is_kept, chosen):
    monkeypatch.setattr(engine_module, "missing", str)
    notes = []
    engine = Engine(lambda name: Fake(is_kept), Config(batch_size=3), steps_left, threads=1, note=notes.append)
    taken = sum(len(done.losses) for done in engine.run(torch.arange(60), [(1e-3, 1.0)] * 20))
    assert taken == 20
    assert engine.chosen == {"engine": chosen, "threads": 1}
    assert len(notes) == (chosen == "inductor" and not is_kept)


class Timed:
    """Steps of a full batch take 40 ms with one thread, and 20 ms with two; it notes what the compiler is given."""

    num_recordings = 0

    def __init__(self):
        self.clock, self.compiled, self.calls = 0.0, [], []

    def run(self, batches, values):
        self.calls.append([len(index) for (index,) in batches])
        self.clock += sum(self.calls[-1]) / 128 * 0.04 / torch.get_num_threads()
        return Done(torch.zeros(len(batches)), Terms(torch.zeros(0), torch.zeros(0)))

    def use_inductor(self, batch, may_compile):
        self.compiled.append(len(batch[0]))


@pytest.mark.parametrize("num_data", [5 * 128 + 4, 128 + 4, 2 * 128 + 127])
def test_a_short_last_batch_chooses_neither_threads_nor_the_compiler(monkeypatch, num_data):
    """By its time one thread would look faster."""
    monkeypatch.setattr(engine_module, "missing", str)
    torch.set_num_threads(2)
    svi = Timed()
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: svi.clock)
    engine = Engine(lambda name: svi, Config(batch_size=128), 10**6)
    for _ in range(12):
        table = [(1e-3, 1.0)] * (num_data // 128 + 1)
        assert sum(len(done.losses) for done in engine.run(torch.arange(num_data), table)) == len(table)
    assert engine.chosen["threads"] == 2
    assert svi.compiled == [128]
    assert sum(sum(call) for call in svi.calls) == 12 * num_data


def trained(config, data, epochs, vae=None, **options):
    """Return the weights after training, the engine, and its notes."""
    notes = []
    with seeded(0, CPU), pyro.get_param_store().scope():
        trainer = build_trainer(config, data, CPU, vae=vae, note=notes.append, **options)
        trainer.train(epochs)
        return torch.nn.utils.parameters_to_vector(trainer.vae.parameters()).detach(), trainer.engine, notes


@pytest.mark.workflow
def test_auto_records_and_changes_nothing_beyond_rounding(few_digits, small_config):
    eager, _, _ = trained(small_config.replace(compile="none"), few_digits, 12)
    recorded, engine, notes = trained(small_config.replace(compile="auto"), few_digits, 12)
    assert engine.chosen == {"engine": "graph", "threads": torch.get_num_threads()}
    assert notes == []
    assert (eager - recorded).norm() < 1e-4 * eager.norm()


class Reads(torch.nn.Module):
    """A decoder that reads a value."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return self.decoder(z) * (2.0 if z.sum().item() > math.inf else 1.0)


@pytest.mark.workflow
def test_what_cannot_be_recorded_is_trained_eagerly_only_by_auto(few_digits, small_config):
    def reading():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = build_vae(small_config, few_digits.datum_shape)
        vae.p_x.decoder = Reads(vae.p_x.decoder)
        return vae

    with pytest.raises(graph.RecordingError):
        trained(small_config.replace(compile="graph"), few_digits, 2, vae=reading())
    ours, engine, notes = trained(small_config.replace(compile="auto"), few_digits, 2, vae=reading())
    theirs, _, _ = trained(small_config.replace(compile="none"), few_digits, 2, vae=reading())
    assert torch.equal(ours, theirs)
    assert (engine.name, len(notes)) == ("none", 1)


@pytest.mark.workflow
@pytest.mark.parametrize("error", ["c++ failed", "out of memory"])
def test_auto_goes_on_recorded_where_compiling_fails(monkeypatch, few_digits, small_config, error):
    """Also on resuming a run whose earlier session has compiled."""

    def fails(graph, inputs, may_compile):
        assert may_compile(200)
        raise RuntimeError(error)

    monkeypatch.setattr(graph, "compile_graph", fails)
    for module in (graph, engine_module):
        monkeypatch.setattr(module, "missing", str)
    config = small_config.replace(epochs=LONG)
    theirs, _, _ = trained(config.replace(compile="none"), few_digits, 14)
    for options in ({}, {"engine": "inductor"} if error == "c++ failed" else {}):
        ours, engine, notes = trained(config, few_digits, 14, **options)
        assert engine.name == "graph"
        assert error in notes[-1]
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.workflow
@needs_inductor
def test_a_resumed_run_keeps_engine_and_threads_bit_for_bit(tmp_path, few_digits, small_config):
    torch.set_num_threads(2)
    config = small_config.replace(epochs=LONG)

    def until(epoch):
        def interrupt(_, row):
            if (row.epoch, row.split) == (epoch, "test"):
                signal.raise_signal(signal.SIGINT)

        return {"data": few_digits, "on_epoch": interrupt}

    def sessions():
        return [(one["engine"], one["threads"]) for one in Run.open(tmp_path / "parts").sessions]

    for train, name, epoch in ((fit, "whole", 16), (fit, "parts", 14), (resume, "parts", 16)):
        where = {"config": config, "threads": 1, "out": tmp_path / name} if train is fit else {"path": tmp_path / name}
        with pytest.raises(InterruptedTrainingError):
            train(**where, **until(epoch))
        assert torch.get_num_threads() == 2
    assert sessions() == [("inductor", 1)] * 2
    ours, theirs = (Run.open(tmp_path / name).read_checkpoint().vae for name in ("parts", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for threads, epoch in ((2, 17), (None, 18)):
        resume(tmp_path / "parts", epoch, data=few_digits, threads=threads)
    assert [threads for _, threads in sessions()[2:]] == [2, 2]
