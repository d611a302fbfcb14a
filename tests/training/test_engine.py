"""The engine is chosen by the number of steps, and changes the training by rounding at most."""

from __future__ import annotations

import math
import signal

import pyro
import pytest
import torch
from conftest import needs_inductor
from helpers.runs import Noted

from pvae.compile import graph
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.errors import InterruptedTrainingError
from pvae.core.random_state import seeded
from pvae.runs.run import Run
from pvae.training import setup
from pvae.training.fit import fit, resume
from pvae.training.setup import build_trainer, engine_name
from pvae.training.trainer import Callback, Session

CPU = torch.device("cpu")
LONG = 10**6  # epochs, which repay any compilation


@pytest.mark.parametrize(
    ("compile", "num_steps", "name", "lacks", "chosen"),
    [
        ("auto", 9_999, None, "", "graph"),
        ("auto", 10_000, None, "", "inductor"),
        ("auto", 10_000, None, "a compiler", "graph"),
        ("auto", 10_000, "graph", "", "graph"),
        ("auto", 100, "inductor", "", "inductor"),
        ("auto", 100, "inductor", "a compiler", "graph"),
        ("graph", 10_000, None, "", "graph"),
        ("none", 10_000, None, "", "none"),
        ("inductor", 1, None, "", "inductor"),
    ],
)
def test_long_trainings_are_compiled_and_a_resumed_one_computes_as_before(
    monkeypatch, compile, num_steps, name, lacks, chosen
):
    monkeypatch.setattr(setup, "missing", lambda: lacks)
    notes = []
    assert engine_name(Config(compile=compile, epochs=1), num_steps, Session(callbacks=[Noted(notes)]), name) == chosen
    assert len(notes) == (compile == "auto" and chosen == "inductor" and name is None)


def trained(config, data, epochs, vae=None, **options):
    """Return the weights after training, the engine, and its notes."""
    notes = []
    with seeded(0, CPU), pyro.get_param_store().scope():
        trainer = build_trainer(config, data, Session(callbacks=[Noted(notes)]), vae, **options)
        trainer.train(epochs)
        return torch.nn.utils.parameters_to_vector(trainer.vae.parameters()).detach(), trainer.engine, notes


@pytest.mark.workflow
def test_auto_records_and_changes_no_bit(few_digits, small_config):
    eager, _, _ = trained(small_config.replace(compile="none"), few_digits, 4)
    recorded, engine, notes = trained(small_config.replace(compile="auto"), few_digits, 4)
    assert engine.name == "graph"
    assert notes == []
    assert torch.equal(eager, recorded)


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
def test_auto_goes_on_recorded_where_compiling_fails(monkeypatch, few_digits, small_config):
    def fails(graph, inputs):
        raise RuntimeError("c++ failed")

    monkeypatch.setattr(graph, "compile_graph", fails)
    for module in (graph, setup):
        monkeypatch.setattr(module, "missing", str)
    config = small_config.replace(epochs=LONG)
    theirs, _, _ = trained(config.replace(compile="none"), few_digits, 2)
    ours, engine, notes = trained(config, few_digits, 2)
    assert engine.name == "graph"
    assert "c++ failed" in notes[-1]
    assert torch.equal(ours, theirs)


class Stop(Callback):
    """Ends the training after an epoch, as Ctrl-C does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, trainer, rows):
        if trainer.epoch == self.epoch:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.workflow
@needs_inductor
@pytest.mark.parametrize("compile", ["auto", "graph"])
def test_a_resumed_run_is_that_of_an_uninterrupted_one_bit_for_bit(tmp_path, few_digits, small_config, compile):
    """Whatever the number of epochs; `auto` compiles it."""
    config = small_config.replace(epochs=LONG, compile=compile)

    for train, name, epoch in ((fit, "whole", 3), (fit, "parts", 2), (resume, "parts", 3)):
        where = {"path": tmp_path / name}
        if train is fit:
            where = {"config": config, "out": tmp_path / name}
        with pytest.raises(InterruptedTrainingError):
            train(**where, data=few_digits, callbacks=[Stop(epoch)])
    whole, parts = (Run.open(tmp_path / name) for name in ("whole", "parts"))
    assert [one["engine"] for one in parts.sessions] == [whole.sessions[0]["engine"]] * 2
    ours, theirs = (run.read_checkpoint().vae for run in (parts, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
