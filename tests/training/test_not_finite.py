"""Losses and gradients that are not finite: the training ends, and names the tensor; and clipping of gradients."""

from __future__ import annotations

import math
import re
import shutil
import warnings

import pyro
import pytest
import torch
from helpers.commands import refuse
from helpers.own import own_vae

import pvae
from pvae.cli.compare import main as compare
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.core.errors import TrainingError
from pvae.elbos.bounds import IWAE
from pvae.runs.checkpoint import to_bytes
from pvae.runs.run import Run
from pvae.training.callbacks import OnEachRow
from pvae.training.fit import fit
from pvae.training.setup import build_trainer

pytestmark = pytest.mark.workflow

ENGINES = ["none", "graph"]


def trainer_of(config, data, vae=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_trainer(config, data, torch.device("cpu"), vae=vae)


def state_of(training):
    state = training.optimizer.state_dict()["state"]
    return [p.detach().clone() for p in training.vae.parameters()] + [
        one[name].clone() for one in state.values() for name in ("step", "exp_avg", "exp_avg_sq")
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["gradient", "loss", "weight"])
def test_an_error_names_the_tensor_and_changes_no_state(few_digits, small_config, engine, kind):
    """An infinite gradient of a finite loss, logits of NaN, and a weight of NaN."""
    vae = own_vae()
    layer, forward, offset = vae.p_x[0], vae.p_x[0].forward, torch.ones(())
    with torch.random.fork_rng(), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("error")  # Pyro warns of a loss of NaN: a second message
        if kind == "gradient":  # of the square root of the offset
            layer.forward = lambda z: forward(z) + (layer.bias - layer.bias.detach() + offset).sqrt()
        elif kind == "loss":
            layer.forward = lambda z: forward(z) + offset.log()
        training = trainer_of(small_config.replace(compile=engine, binarize="static"), few_digits, vae)
        training.run_epoch()
        offset.fill_(-1.0 if kind == "loss" else 0.0)
        if kind == "weight":
            layer.weight.data[0, 0] = math.nan
        before = state_of(training)
        with pytest.raises(TrainingError) as caught:
            training.run_epoch()
    assert ("the gradient of p_x.0.bias" if kind == "gradient" else "nan") in str(caught.value).replace("NaN", "nan")
    assert "at step 4 (batch 1 of epoch 2): " in str(caught.value)
    assert "--lr" in str(caught.value)
    assert "--clip-norm" in str(caught.value)
    after = state_of(training)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, after) if not ours.isnan().any())
    assert all(p.grad is None for p in training.vae.parameters())


def test_a_learning_rate_that_is_too_large_ends_in_advice(tmp_path, few_digits, small_config, recwarn):
    with pytest.raises(TrainingError, match="--lr") as caught:
        fit(small_config.replace(lr=1e12), data=few_digits, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert Run.open(tmp_path / "run").metrics() == []
    assert not [w for w in recwarn if "NaN" in str(w.message)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(few_digits, small_config, engine, clip_norm):
    order = torch.arange(100).remainder(50)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        ours = trainer_of(small_config.replace(compile=engine, clip_norm=clip_norm, batch_size=50), few_digits)
        torch.manual_seed(0)
        assert sum(len(done.losses) for done in ours.engine.run(order, [(1e-3, 1.0)] * 2)) == 2
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        theirs = trainer_of(small_config, few_digits)
        torch.manual_seed(0)
        for index in order.split(50):
            theirs.elbo.backward(theirs.vae.model, theirs.vae.guide, *theirs.data.batch(index))
            assert 0.5 < torch.nn.utils.clip_grad_norm_(theirs.vae.parameters(), clip_norm) < 1e6
            theirs.optimizer.step()
            theirs.optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(state_of(ours), state_of(theirs)))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.usefixtures("no_pictures")
def test_a_metric_that_is_not_finite_ends_the_training(tmp_path, few_digits, small_config, monkeypatch, value):
    """The importance-weighted loss is finite if one draw has weight 0, and the rate is not."""
    rate, rows = IWAE.rate, []
    monkeypatch.setattr(IWAE, "rate", lambda self, draws: rate(self, draws) + (value if len(rows) == 2 else 0.0))
    config = small_config.replace(elbo="iwae", particles=2, epochs=3)
    with pytest.raises(TrainingError, match="elbo is "):
        fit(config, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(lambda run, row: rows.append(row))])
    assert [(row.epoch, row.split) for row in Run.open(tmp_path / "run").metrics()] == [(1, "train"), (1, "test")]


@pytest.fixture(scope="module")
def trained(made_once, few_digits):
    config = pvae.Config(hidden=(16,), latent_dim=8, batch_size=50, epochs=1)
    return made_once("not finite", lambda out: fit(config, data=few_digits, out=out))


@pytest.fixture
def run(tmp_path, trained, few_digits, monkeypatch):
    """A run whose data set can be loaded."""
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: few_digits)
    return Run.open(shutil.copytree(trained, tmp_path / "run"))


def spoil_weights(run, name, index, value):
    """Change a weight in the checkpoint, with correct checksums."""
    checkpoint = run.read_checkpoint()
    checkpoint.vae[name].view(-1)[index] = value
    (run.path / "checkpoint.safetensors").write_bytes(to_bytes(checkpoint))


@pytest.mark.parametrize("value", [math.nan, 1e20])
def test_commands_name_the_weights_that_are_not_finite(run, capsys, value):
    spoil_weights(run, "p_x.decoder.2.bias", 0, value)
    for command, options in ((evaluate, ()), (draw, ("--what", "samples")), (compare, ())):
        assert " p_x.decoder.2.bias " in refuse(command, [run.path, *options], capsys, run.path)


@pytest.mark.parametrize(
    ("command", "options"),
    [(evaluate, ["--importance-samples", "5"]), (compare, ["--particles", "2", "--repetitions", "3"])],
)
def test_a_bound_that_is_infinite_is_not_reported(run, capsys, recwarn, command, options):
    """The squares of the means of q(z | x) are finite, and the sum of the squares is not."""
    spoil_weights(run, "q_z.encoder.3.bias", slice(0, 8), 1.5e19)
    assert command([str(run.path), *options]) == 2
    *_, line = capsys.readouterr().err.splitlines()  # evaluate says first what it does
    assert re.search(r"^pvae .* is (-inf|inf|nan)\b", line)
    assert not list(recwarn), "a second message"
