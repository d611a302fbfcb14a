"""Trainings in one process are independent, and a resumed training equals an uninterrupted one bit for bit."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import threading

import numpy as np
import pyro
import pytest
import torch
from helpers.commands import contents
from helpers.processes import run_group
from helpers.runs import assert_same, assert_same_rows, signal_in_step, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pvae
from pvae.config.choices import values_config
from pvae.config.config import Config
from pvae.core.errors import InputError, InterruptedTrainingError
from pvae.core.random_state import resolve_device
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.plotting import pictures
from pvae.runs.metrics import best_epoch
from pvae.runs.run import Run
from pvae.training.callbacks import OnEachRow, default_callbacks
from pvae.training.fit import fit, resume, train_in_memory
from pvae.training.setup import build_trainer, learning_rate

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

SAVE_FIGURES = pictures.save_figures


def few_digits_trained(config, out):
    """Train in a process of its own, and draw nothing."""
    pictures.save_figures = lambda *_: None
    digits = read("mnist-5k")
    fit(config, data=Dataset("few digits", digits.train[:130], digits.test[:40]), out=out)


def test_a_second_training_in_one_process_equals_one_in_a_process_of_its_own(tmp_path, few_digits, small_config):
    first = fit(small_config, data=few_digits, out=tmp_path / "first")
    config = small_config.replace(seed=1, elbo="analytic")
    second = fit(config, data=few_digits, out=tmp_path / "second")
    run_group(1, few_digits_trained, config, tmp_path / "alone", folder=tmp_path)
    assert_same(weights(second), weights(Run.open(tmp_path / "alone")))
    assert not torch.equal(*(weights(run)["p_x.decoder.0.weight"] for run in (first, second)))


def test_training_leaves_no_trace_and_does_not_see_the_default_dtype(tmp_path, few_digits, small_config):
    """Torch's, numpy's and Python's random states and Pyro's parameter store are as before."""
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(99)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    torch.set_default_dtype(torch.float64)
    try:
        run = fit(small_config, data=few_digits, out=tmp_path / "run")
        assert {p.dtype for p in pvae.load(run.path).parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert set(pyro.get_param_store().keys()) == {"mine"}
    pyro.clear_param_store()
    assert resume(run.path, 3, data=few_digits).metrics()[-1].epoch == 3


@pytest.mark.parametrize(
    ("options", "moment", "epoch"),
    [
        ({"elbo": "trace", "schedule": "cosine"}, None, 2),
        ({"elbo": "analytic", "binarize": "dynamic", "particles": 2, "beta": 0.5}, (7, True), 1),
        ({"elbo": "handwritten", "warm_up": 3}, (1, False), 0),
    ],
    ids=["between epochs", "in a step", "in a test"],
)
def test_interrupted_and_resumed_equals_undisturbed(tmp_path, few_digits, small_config, options, moment, epoch):
    """The checkpoint of the last epoch holds the random state; a Ctrl-C within an epoch costs that epoch."""
    config = small_config.replace(epochs=4, **options)
    whole = fit(config, data=few_digits, out=tmp_path / "whole")

    def interrupt(_, row):
        if moment is None and (row.epoch, row.split) == (2, "test"):
            signal.raise_signal(signal.SIGINT)

    with signal_in_step(*(moment or (0,))), pytest.raises(InterruptedTrainingError) as caught:
        fit(config, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(interrupt)])
    assert f"up to epoch {epoch}; " in str(caught.value)
    assert (f"in epoch {epoch + 1}, which is lost" in str(caught.value)) == (moment is not None)
    resumed = resume(tmp_path / "run", data=few_digits)
    assert_same(weights(whole), weights(resumed))
    assert_same(*(run.read_checkpoint().moments for run in (whole, resumed)))
    assert_same_rows(whole.metrics(), resumed.metrics())
    if "schedule" in options:
        with pytest.raises(InputError, match="--schedule"):
            resume(whole.path, 8, data=few_digits)


@pytest.mark.parametrize("moment", [None, 2, 25])
def test_the_start_of_a_training_of_values_is_its_epoch_0(tmp_path, moment):
    """It is the best one where training spoils it, and stays so when it is resumed, within the first epoch too."""
    draws = np.random.default_rng(0).normal(size=(90, 2)) @ [[1.0, 0.5, 2.0], [0.0, 1.0, -1.0]]
    x = torch.from_numpy(draws + np.random.default_rng(1).normal(size=draws.shape)).float()
    data = Dataset("rows", x[:70], x[80:], valid=x[70:80])
    config = values_config(data, hidden=(4,), epochs=3, passes=5, batch_size=20, lr=1.0, patience=0, compile="none")
    assert config.initialization == "exact"
    whole = fit(config, data=data, out=tmp_path / "whole")
    rows = [(row.epoch, row.split) for row in whole.metrics()]
    assert rows == [(0, "valid"), (0, "test"), *((e, s) for e in (1, 2, 3) for s in ("train", "valid", "test"))]
    assert best_epoch(whole.metrics()) == 0
    assert Run.open(whole.path).best_checkpoint().epoch == 0
    assert whole.test_metrics() == whole.metrics()[1]
    (_, start, _), (_, end, _) = train_in_memory(config, [0, 3], data=data)
    assert_same(start.state_dict(), pvae.load(whole.path).state_dict())
    assert_same(end.state_dict(), weights(whole))
    if moment is None:
        longer = resume(whole.path, 4, data=data)
        assert (len(longer.metrics()), best_epoch(longer.metrics())) == (len(rows) + 3, 0)
        assert longer.metrics()[: len(rows)] == whole.metrics()
        return
    with signal_in_step(moment), pytest.raises(InterruptedTrainingError):  # of 17 steps in an epoch
        fit(config, data=data, out=tmp_path / "parts")
    assert {row.epoch for row in Run.open(tmp_path / "parts").metrics()} == {*range((moment - 1) // 17 + 1)}
    parts = resume(tmp_path / "parts", data=data)
    assert_same_rows(whole.metrics(), parts.metrics())
    assert_same(weights(whole), weights(parts))
    assert_same(whole.best_checkpoint().vae, parts.best_checkpoint().vae)


def test_figures_that_are_missing_are_drawn(tmp_path, few_digits, small_config, monkeypatch):
    """As after Ctrl-C while they were drawn: the printed command draws them, and trains nothing."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "save_figures", interrupted)
        with pytest.raises(InterruptedTrainingError, match="epoch 2"):
            fit(small_config, data=few_digits, out=tmp_path / "run")
    before = Run.open(tmp_path / "run")
    after = resume(tmp_path / "run", data=few_digits)
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
    assert_same(weights(after), weights(before))
    assert after.metrics() == before.metrics()


def test_a_second_training_in_another_thread_is_refused(tmp_path, few_digits, small_config):
    """Both would use the same random state and parameter store."""
    refused = []

    def other():
        with pytest.raises(InputError, match="process") as error:
            fit(small_config, data=few_digits, out=tmp_path / "other")
        refused.append(error)

    def with_another(*_):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    fit(small_config, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(with_another)])
    assert len(refused) == 4
    assert not (tmp_path / "other").exists()


@pytest.fixture
def trained(made_once, few_digits, small_config, monkeypatch):
    """A finished run of `small_config`, with figures."""
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "save_figures", SAVE_FIGURES)
        return made_once("fit", lambda out: fit(small_config, data=few_digits, out=out))


def test_content_of_the_run_folder(trained, small_config):
    record = json.loads((trained / "config.json").read_text())
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(small_config)))
    assert (record["data"]["num_train"], len(record["data"]["sha256"])) == (130, 64)
    (session,) = record["sessions"]
    assert session["versions"]["pvae"] == pvae.__version__
    assert (session["from_epoch"], session["device"]) == (0, str(resolve_device("auto")))
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["split"]) for row in rows] == [(1, "train"), (1, "test"), (2, "train"), (2, "test")]
    assert {"elbo", "elbo_stderr", "distortion", "rate", "loss", "seconds", "posterior_mean_loss"} < rows[0].keys()
    drawn = {file.name for file in (trained / "figures").iterdir()}
    assert drawn == {"losses.png", "reconstructions.png", "samples.png"}
    assert not list(trained.glob(".*")), "a temporary file was left"
    events = EventAccumulator(str(trained), size_guidance={"images": 0}).Reload()
    scalars = events.Scalars("pseudo-ELBO/test")
    assert [event.step for event in scalars] == [1, 2]
    assert scalars[-1].value == pytest.approx(rows[-1]["elbo"], rel=1e-6)
    assert [image.step for image in events.Images("latent to image")] == [1, 2]


def test_a_finished_run_is_left_as_it_is(trained, capsys):
    """So that a command that is repeated until it succeeds, or restarted by torchrun, ends."""
    before = contents(trained)
    assert resume(trained, callbacks=default_callbacks(quiet=False)).path == trained  # nor are the data asked for
    assert "finished" in capsys.readouterr().err
    assert contents(trained) == before


def test_resume_refuses(tmp_path, trained, few_digits, digits):
    path = shutil.copytree(trained, tmp_path / "run")
    others = [
        Dataset("few digits", digits.train[1:131], digits.test[:40]),
        Dataset("few digits", few_digits.train[..., 1:], few_digits.test[..., 1:]),
    ]
    for epochs, data in ((1, few_digits), *((3, other) for other in others), (3, None)):
        with pytest.raises(InputError):
            resume(path, epochs, data=data)
    opened = Run.open(path)
    resume(path, 3, data=few_digits)
    with pytest.raises(InputError, match="opened"):
        resume(opened, 4, data=few_digits)
    with pytest.raises(InputError, match="run folder"):
        resume(tmp_path / "missing", 3)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("tpu", "cuda:99", "mps"):
        with pytest.raises(InputError, match="device"):
            resolve_device(name)


def test_schedules():
    def rates(schedule, epochs, passes):
        return [learning_rate(Config(schedule=schedule, epochs=epochs, lr=1.0), 10 * done, 10) for done in passes]

    def lowered(stages, of):
        return pytest.approx([10 ** (-stage / of) for stage in stages])

    assert rates("cosine", 4, [0, 2, 4]) == pytest.approx([1.0, 0.51, 0.02])
    assert rates("paper", 3280, [0, 1, 3, 4, 12, 13, 1092, 1093, 3279]) == lowered([0, 1, 1, 2, 2, 3, 6, 7, 7], 7)
    assert rates("steps", 500, [0, 199, 200, 349, 350, 499]) == lowered([0, 0, 1, 1, 2, 2], 5)
    assert rates("constant", 2, [0, 1]) == [1.0, 1.0]


def test_burdas_start(few_digits):
    """Glorot-uniform weights, zero biases, and a decoder that gives the mean image at z = 0."""
    config = Config(initialization="burda", hidden=(16, 8), activation="tanh", binarize="dynamic", latent_dim=3)
    with torch.random.fork_rng():
        vae = build_trainer(config.replace(batch_size=50), few_digits).vae
    first = vae.q_z.encoder[1]
    limit = (6 / (784 + 16)) ** 0.5
    assert first.weight.abs().max() <= limit
    assert first.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert all((layer.bias == 0).all() for layer in vae.q_z.encoder if hasattr(layer, "bias"))
    mean = (few_digits.train.float() / 255).mean(0).clamp(0.001, 0.999)
    assert torch.allclose(vae.likelihood(torch.zeros(3)).mean, mean, atol=1e-5)


def test_the_users_own_hidden_files_are_not_taken_for_ours(tmp_path, few_digits, small_config):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".notes.2024").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        fit(small_config, data=few_digits, out=out)
    (out / ".notes.2024").unlink()
    for name in (".config.json.4711", "metrics.jsonl", "checkpoint.safetensors"):
        (out / name).write_text("{")  # of a process that was killed before it had written config.json
    fit(small_config, data=few_digits, out=out)
    assert not list(out.glob(".*"))


def test_a_training_starts_from_the_weights_of_a_run(tmp_path, few_digits, small_config, trained, capsys):
    """All weights with the same sizes, and those that fit with others; the run says whose child it is."""
    first = Run.open(trained)
    before = first.vae().state_dict()
    for latent_dim in (3, 4):
        config = small_config.replace(latent_dim=latent_dim, seed=7, lr=1e-12)
        run = fit(config, data=few_digits, out=tmp_path / str(latent_dim), start=(first.path, first)[latent_dim - 3])
        assert ("are new" in capsys.readouterr().err) == (latent_dim == 4)
        after = run.vae().state_dict()
        taken = [name for name, tensor in after.items() if tensor.shape == before[name].shape]
        assert (0 < len(taken) < len(after)) == (latent_dim == 4)
        for name in taken:
            assert torch.allclose(before[name], after[name], atol=1e-6), name
        assert Run.open(run.path).start["run"] == first.identity
    counts = Dataset("counts", torch.ones(200, 2), torch.ones(9, 2))
    config = Config(likelihood="poisson", network="linear", latent_dim=1)
    with pytest.raises(InputError, match="no weight of"):
        fit(config, data=counts, out=tmp_path / "none", start=first)
