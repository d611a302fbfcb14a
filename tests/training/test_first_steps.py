"""Threads and engine are chosen by the time of the first steps, and change the training by rounding alone."""

from __future__ import annotations

import math
import signal

import pyro
import pytest
import torch
from conftest import needs_inductor

from pvae.compile import graph
from pvae.core.errors import InterruptedTrainingError
from pvae.core.random_state import seeded
from pvae.models.build import build_vae
from pvae.runs.run import Run
from pvae.training import first_steps, trainer
from pvae.training.first_steps import FirstSteps
from pvae.training.fit import fit, resume
from pvae.training.trainer import Trainer

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")


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
    """The first step with each number is not counted, and neither is a single slow one."""
    first, step, used = FirstSteps([*seconds]), 0, 0
    while not first.is_chosen:
        first.begin()
        is_new, used = torch.get_num_threads() != used, torch.get_num_threads()
        step += 1
        is_last = first.end(100.0 if is_new or step == 3 else seconds[used])
        assert is_last == first.is_chosen
    assert (first.threads, first.seconds) == (chosen, seconds[chosen])


def test_threads_are_chosen_anew_when_steps_become_slow_and_when_they_may_be_fast_again():
    first = FirstSteps([2, 1])
    idle, busy = {2: 0.5, 1: 1.0}, {2: 20.0, 1: 1.5}
    steps(first, 2000, idle)
    assert first.threads == 2
    steps(first, 140, busy)
    assert (first.is_chosen, first.threads) == (True, 1)
    steps(first, 2000, idle)
    assert (first.is_chosen, first.threads) == (True, 2)


def steps(first, count, seconds):
    """Take steps, and return with how many threads each was taken."""
    used = []
    for _ in range(count):
        first.begin()
        used.append(torch.get_num_threads())
        first.end(seconds[used[-1]])
    return used


def test_a_burst_at_the_start_is_forgotten_soon_and_a_busy_machine_is_tried_ever_less_often():
    first = FirstSteps([2, 1])
    steps(first, 30, {2: 20.0, 1: 1.5})
    assert steps(first, 150, {2: 0.5, 1: 1.0})[-1] == 2
    first = FirstSteps([2, 1])
    assert steps(first, 10_000, {2: 20.0, 1: 1.5}).count(2) < 100


def trained(config, data, vae=None, **options):
    """Return the weights after training, the trainer, and its notes."""
    notes = []
    with seeded(0, CPU), pyro.get_param_store().scope():
        training = Trainer(config, data, CPU, vae=vae, note=notes.append, **options)
        while training.epoch < config.epochs:
            training.run_epoch()
        return torch.nn.utils.parameters_to_vector(training.vae.parameters()).detach(), training, notes


def test_auto_records_and_changes_nothing_beyond_rounding(few_digits, small_config):
    config = small_config.replace(epochs=12)
    eager, _, _ = trained(config.replace(compile="none"), few_digits)
    recorded, training, notes = trained(config.replace(compile="auto"), few_digits)
    assert (training.engine, notes) == ("graph", [])
    assert training.chosen == {"engine": "graph", "threads": torch.get_num_threads()}
    assert (eager - recorded).norm() < 1e-4 * eager.norm()


class Reads(torch.nn.Module):
    """A decoder that reads a value."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return self.decoder(z) * (2.0 if z.sum().item() > math.inf else 1.0)


@pytest.mark.parametrize("compile", ["auto", "graph"])
def test_what_cannot_be_recorded_is_trained_eagerly_only_by_auto(few_digits, small_config, compile):
    def reading():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = build_vae(small_config, few_digits.datum_shape)
        vae.p_x.decoder = Reads(vae.p_x.decoder)
        return vae

    config = small_config.replace(compile=compile)
    if compile == "graph":
        with pytest.raises(graph.RecordingError):
            trained(config, few_digits, vae=reading())
        return
    ours, training, notes = trained(config, few_digits, vae=reading())
    theirs, _, _ = trained(config.replace(compile="none"), few_digits, vae=reading())
    assert torch.equal(ours, theirs)
    assert training.engine == "none"
    assert len(notes) == 1
    assert "without --compile graph" in notes[0]


@pytest.mark.parametrize(
    ("share", "is_kept", "engine"),
    [(1e9, False, "inductor"), (0, True, "graph"), (1e4, True, "inductor"), (1e4, False, "graph")],
)
def test_auto_compiles_where_that_is_repaid(monkeypatch, few_digits, small_config, share, is_kept, engine):
    """With a stub in place of the compiler, and 1e6 seconds for an operator."""

    def compiled(graph, inputs, may_compile):
        if not is_kept and not may_compile(200):
            raise FileNotFoundError("not kept")
        return graph.forward

    monkeypatch.setattr(graph, "compile_graph", compiled)
    monkeypatch.setattr(graph, "missing", str)
    monkeypatch.setattr(trainer, "missing", str)
    monkeypatch.setattr(first_steps, "_SECONDS_TO_COMPILE", 1e3)
    monkeypatch.setattr(first_steps, "_SAVED_BY_INDUCTOR", share)
    config = small_config.replace(epochs=30)
    ours, training, notes = trained(config.replace(compile="auto"), few_digits)
    theirs, _, _ = trained(config.replace(compile="none"), few_digits)
    assert training.engine == engine
    assert len(notes) == (share == 1e9)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("error", ["c++ failed", "out of memory"])
def test_auto_goes_on_recorded_where_compiling_fails(monkeypatch, few_digits, small_config, error):
    """Also on resuming a run whose earlier session has compiled."""

    def fails(graph, inputs, may_compile):
        assert may_compile(200)
        raise RuntimeError(error)

    monkeypatch.setattr(graph, "compile_graph", fails)
    monkeypatch.setattr(graph, "missing", str)
    monkeypatch.setattr(trainer, "missing", str)
    monkeypatch.setattr(first_steps, "_SAVED_BY_INDUCTOR", 1e9)
    config = small_config.replace(epochs=14)
    theirs, _, _ = trained(config.replace(compile="none"), few_digits)
    for options in ({}, {"engine": "inductor"} if error == "c++ failed" else {}):
        ours, training, notes = trained(config, few_digits, **options)
        assert training.engine == "graph"
        assert error in notes[-1]
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@needs_inductor
def test_compile_inductor_is_compiled_for_the_chosen_threads(few_digits, small_config):
    config = small_config.replace(epochs=14, compile="inductor")
    ours, training, _ = trained(config, few_digits)
    assert training.engine == "inductor"
    theirs, other, _ = trained(config, few_digits, threads=1)
    assert other.chosen == {"engine": "inductor", "threads": 1}
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@needs_inductor
def test_a_resumed_run_keeps_engine_and_threads_bit_for_bit(monkeypatch, tmp_path, few_digits, small_config):
    """Whatever the first steps of the second session would have chosen."""
    monkeypatch.setattr(first_steps, "_SAVED_BY_INDUCTOR", 1e9)
    torch.set_num_threads(2)
    config = small_config.replace(epochs=16)
    whole = fit(config, data=few_digits, out=tmp_path / "whole", threads=1)
    monkeypatch.setattr(first_steps, "_CLEARLY_FASTER", 0.0)

    def interrupt(_, row):
        if (row.epoch, row.split) == (14, "test"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedTrainingError):
        fit(config, data=few_digits, out=tmp_path / "parts", threads=1, on_epoch=interrupt)
    monkeypatch.setattr(first_steps, "_SAVED_BY_INDUCTOR", 0.0)
    parts = resume(tmp_path / "parts", data=few_digits)
    assert [(one["engine"], one["threads"]) for one in Run.open(parts.path).sessions] == [("inductor", 1)] * 2
    assert torch.get_num_threads() == 2
    ours, theirs = (run.read_checkpoint().vae for run in (parts, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    resume(parts.path, 17, data=few_digits, threads=2)
    resume(parts.path, 18, data=few_digits)
    assert [one["threads"] for one in Run.open(parts.path).sessions[2:]] == [2, 2]


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_on_a_cpu_without_it_is_noted(few_digits, small_config, monkeypatch, has):
    monkeypatch.setattr(trainer, "has_bfloat16", lambda: has)
    config = small_config.replace(compile="graph", precision="bf16", epochs=1)
    _, _, notes = trained(config, few_digits)
    assert ["bfloat16" in note for note in notes] == ([] if has else [True])
