"""Steps whose loss or gradient is not finite: error messages, skipping, counting; and clipping of gradients."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from dataclasses import replace

import pyro
import pytest
import torch
from conftest import needs_inductor

from pvae.cli.compare import main as compare
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.config.config import OPTIONS
from pvae.core import records
from pvae.core.errors import InputError, InterruptedTrainingError, NotFiniteError, TrainingError
from pvae.elbos.importance import IWAE
from pvae.plotting.run_figures import histogram_figure
from pvae.runs import data as data_module
from pvae.runs import run as run_module
from pvae.runs.checkpoint import to_bytes
from pvae.runs.run import Run
from pvae.training.fit import fit, resume
from pvae.training.trainer import Trainer

ENGINES = ["none", "graph"]


def trained(config, data, spoil, epochs=1):
    """Train in memory; `spoil` is given the training after its first epoch."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        training = Trainer(config.replace(epochs=epochs + 1), data, torch.device("cpu"))
        training.run_epoch()
        spoil(training)
        for _ in range(epochs):
            training.run_epoch()
    return training


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_of_nan_is_named_with_its_batch(few_digits, small_config, engine):
    images = []

    def spoil(training):
        training.vae.p_x.decoder[2].weight.data[3, 1] = math.nan
        step = training.stepper.step
        training.stepper.step = lambda index, *given: images.extend(index[:3].tolist()) or step(index, *given)

    with pytest.raises(TrainingError) as caught:
        trained(small_config.replace(compile=engine), few_digits, spoil)
    first = ", ".join(map(str, images))
    assert f"at step 4 (batch 1 of epoch 2: training images {first}, ...)" in str(caught.value)
    assert "p_x.decoder.2.weight is NaN or infinite already" in str(caught.value)


def state_of(training):
    state = training.stepper.optimizer.state_dict()["state"]
    return [p.detach().clone() for p in training.vae.parameters()] + [
        one[name].clone() for one in state.values() for name in ("step", "exp_avg", "exp_avg_sq")
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_error_names_the_tensor_and_changes_no_state(few_digits, small_config, engine, kind, monkeypatch):
    """A gradient that is infinite while the loss is finite, and a loss of NaN whose gradients are all finite."""
    held = []

    def spoil(training):
        held.extend([training, *state_of(training)])
        if kind == "gradient":
            spoil_gradient(training, monkeypatch)
        else:
            elbo = training.stepper._elbo
            loss_of, nan = elbo.loss_of, torch.tensor(math.nan)
            monkeypatch.setattr(elbo, "loss_of", lambda *given: loss_of(*given) + nan)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pyro warns of a loss of NaN: a second message
        with pytest.raises(TrainingError) as caught:
            trained(small_config.replace(compile=engine), few_digits, spoil)
        if kind == "loss":
            for measure in (held[0].test, held[0].dry_run):
                with pyro.get_param_store().scope(), pytest.raises(TrainingError, match="the loss is nan"):
                    measure()
    training, *state = held
    says = "the gradient of p_x.decoder.0.bias is NaN or infinite" if kind == "gradient" else "the loss is nan"
    assert str(caught.value).startswith(f"{says}, at step 4 (batch 1 of epoch 2")
    assert "already" not in str(caught.value)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state, state_of(training)))
    assert all(p.grad is None for p in training.vae.parameters())


def spoil_gradient(training, monkeypatch):
    """Add a 0 to the output of a layer whose derivative with respect to the bias is infinite."""
    layer = training.vae.p_x.decoder[0]
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda z: forward(z) + (layer.bias - layer.bias.detach()).sqrt())


def calmly(training, monkeypatch):
    """Return a tensor that makes the gradient of a bias infinite when it is set to 0, without an edit of the model."""
    layer = training.vae.p_x.decoder[0]
    calm = torch.ones((), device=layer.bias.device)
    forward = layer.forward
    monkeypatch.setattr(
        layer, "forward", lambda z: forward(z) + (layer.bias - layer.bias.detach() + calm).sqrt() - calm
    )
    return calm


@pytest.mark.parametrize("engine", [*ENGINES, pytest.param("inductor", marks=[needs_inductor, pytest.mark.slow])])
def test_skipped_steps_are_counted_and_the_others_go_on(few_digits, small_config, engine, monkeypatch):
    config = small_config.replace(on_nan="skip", max_skipped=3, compile=engine)

    def spoil(training):
        original, count, calm = training.stepper.step, iter(range(100)), calmly(training, monkeypatch)

        def step(*given):
            calm.fill_(float(next(count) != 1))
            state = state_of(training)
            try:
                return original(*given)
            finally:
                is_as_before = [torch.equal(ours, theirs) for ours, theirs in zip(state, state_of(training))]
                assert all(is_as_before) if calm == 0 else not any(is_as_before)

        training.stepper.step = step

    training = trained(config, few_digits, spoil)
    assert (training.skipped, training.step) == (1, 6)
    assert int(training.stepper.optimizer.state_dict()["state"][0]["step"]) == 5
    assert all(p.isfinite().all() for p in training.vae.parameters())


def test_training_ends_after_max_skipped_steps(few_digits, small_config, monkeypatch):
    config = small_config.replace(on_nan="skip", max_skipped=4)
    with pytest.raises(TrainingError, match=r"at step 10 \(batch 1 of epoch 4.*; 4 steps were skipped before"):
        trained(config, few_digits, lambda training: spoil_some(training, monkeypatch), epochs=3)


def spoil_some(training, monkeypatch):
    """Spoil two of the three steps of each epoch."""
    original = training.stepper.step

    def step(*given):
        with monkeypatch.context() as patch:
            if training.step % 3 != 0:
                spoil_gradient(training, patch)
            return original(*given)

    training.stepper.step = step


def test_the_count_is_printed_and_survives_a_resumption(tmp_path, few_digits, small_config, monkeypatch, capsys):
    """Interrupted in the second epoch and resumed: the same metrics as without the interruption."""
    config = small_config.replace(on_nan="skip", max_skipped=9)
    original = Trainer._step
    interrupted_at = 4

    def step(self, index):
        if self.step == interrupted_at:
            raise KeyboardInterrupt
        with monkeypatch.context() as patch:
            if self.step % 3 == 0:
                spoil_gradient(self, patch)
            return original(self, index)

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(InterruptedTrainingError):
        fit(config, data=few_digits, out=tmp_path / "run", checkpoint_every=1, quiet=False)
    interrupted_at = -1
    run = resume(tmp_path / "run", data=few_digits, quiet=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.rpartition(", ")[2] for line in lines] == ["1 steps skipped so far", "2 steps skipped so far"]
    assert Run.open(run.path).read_checkpoint().counts.skipped == 2
    whole = fit(config, data=few_digits, out=tmp_path / "whole")
    assert [(row.elbo, row.loss) for row in run.metrics()] == [(row.elbo, row.loss) for row in whole.metrics()]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(few_digits, small_config, engine, clip_norm):
    def one_step(config, by_torch):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(0)
            training = Trainer(config, few_digits, torch.device("cpu"))
            if by_torch:
                training.stepper.optimizer.register_step_pre_hook(
                    lambda *_: norms.append(torch.nn.utils.clip_grad_norm_(training.vae.parameters(), clip_norm).item())
                )
            for _ in range(2):
                training.stepper.step(torch.arange(50), 1.0, config.lr)
            return state_of(training)

    norms = []
    config = small_config.replace(compile=engine)
    ours = one_step(config.replace(clip_norm=clip_norm), by_torch=False)
    theirs = one_step(config, by_torch=True)
    assert all(0.5 < norm < 1e6 for norm in norms)
    assert len(norms) == 2
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs))


def test_the_loss_of_an_epoch_is_the_mean_over_the_images_that_were_stepped_on(few_digits, small_config, monkeypatch):
    config, losses = small_config.replace(on_nan="skip", max_skipped=3), []
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        training = Trainer(config, few_digits, torch.device("cpu"))
        original = training.stepper.step

        def step(index, *given):
            if training.step == 2:
                raise NotFiniteError("spoiled")
            loss, terms = original(index, *given)
            losses.append(loss * len(index))
            return loss, terms

        training.stepper.step = step
        row = training.train_epoch()
    assert training.skipped == 1
    assert row.loss == pytest.approx(sum(losses) / (130 - 50), rel=1e-12)
    assert row.loss == pytest.approx(row.distortion + row.rate, rel=1e-5)


def strictly(text):
    """Read JSON without NaN and Infinity, as the standard says."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("on_nan", OPTIONS["on_nan"].choices)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_figure_that_is_not_finite_ends_the_training(
    tmp_path, few_digits, small_config, monkeypatch, no_pictures, on_nan, split, value
):
    """The importance-weighted loss is finite if one draw has weight 0, and the rate is not."""
    epoch, is_test, rate, test = 0, False, IWAE.rate, Trainer.test

    def spoiled(self, draws):
        return rate(self, draws) + (value if epoch == 2 and is_test == (split == "test") else 0.0)

    def tested(self, between):
        nonlocal is_test
        is_test = True
        try:
            return test(self, between)
        finally:
            is_test = False

    def begun(self, *given):
        nonlocal epoch
        epoch += 1
        return train_epoch(self, *given)

    train_epoch = Trainer.train_epoch
    monkeypatch.setattr(IWAE, "rate", spoiled)
    monkeypatch.setattr(Trainer, "test", tested)
    monkeypatch.setattr(Trainer, "train_epoch", begun)
    config = small_config.replace(elbo="iwae", particles=2, epochs=3, on_nan=on_nan)
    with pytest.raises(TrainingError, match=r"elbo is .*contains the training up to epoch 1"):
        fit(config, data=few_digits, out=tmp_path / "run")
    rows = [strictly(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["split"]) for row in rows] == [(1, "train"), (1, "test")]
    strictly((tmp_path / "run" / "config.json").read_text())


def test_json_is_strict():
    assert strictly(records.to_json({"a": [1.5, None, "NaN"], "b": {"c": True}})) == {
        "a": [1.5, None, "NaN"],
        "b": {"c": True},
    }
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFiniteError, match=rf"b\.1\.c is {value}"):
            records.to_json({"a": 1.0, "b": [{"c": 0.0}, {"c": value}]})


@pytest.fixture
def run(tmp_path, few_digits, small_config, monkeypatch, no_pictures):
    """A run whose data set can be loaded."""
    monkeypatch.setattr(data_module, "load_again", lambda *_: few_digits)
    return fit(small_config.replace(epochs=1, latent_dim=8), data=few_digits, out=tmp_path / "run")


COMMANDS = {
    evaluate: ["--importance-samples", "5"],
    draw: [],
    compare: ["--particles", "2", "--repetitions", "3"],
}


def spoil_weights(run, name, index, value):
    """Change a weight in the checkpoint, with correct checksums."""
    checkpoint = run.read_checkpoint()
    checkpoint.vae[name].view(-1)[index] = value
    (run.path / "checkpoint.safetensors").write_bytes(to_bytes(checkpoint))


def refused(command, run, capsys):
    """Run a command that must fail; check that it wrote nothing, and return the line it printed."""
    before = sorted(run.path.rglob("*"))
    assert command([str(run.path), *COMMANDS[command]]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert sorted(run.path.rglob("*")) == before
    return line


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20])
@pytest.mark.parametrize("name", ["q_z.encoder.1.weight", "p_x.decoder.2.bias"])
def test_error_names_the_weights_that_are_not_finite(run, capsys, name, value):
    spoil_weights(run, name, 0, value)
    for command in COMMANDS:
        assert f" {name} " in refused(command, run, capsys)
    with pytest.raises(InputError, match=name):
        run.vae()


@pytest.mark.parametrize("command", [evaluate, compare])
def test_a_bound_that_is_infinite_is_not_reported(run, capsys, recwarn, command):
    """The squares of the means of q(z | x) are finite, and the sum of the squares is not."""
    spoil_weights(run, "q_z.encoder.3.bias", slice(0, 8), 1.5e19)
    assert re.search(r" is (-inf|inf|nan)\b", refused(command, run, capsys))
    assert not list(recwarn), "a second message"


def test_a_run_that_diverged_is_left_out_of_a_sheet(run, tmp_path, capsys):
    for name in ("whole", "diverged"):
        shutil.copytree(run.path, tmp_path / "sheet" / name)
    spoil_weights(Run.open(tmp_path / "sheet" / "diverged"), "q_z.encoder.3.bias", slice(8, None), math.nan)
    assert draw([str(tmp_path / "sheet")]) == 0
    line = capsys.readouterr().err
    assert line.startswith("pvae.draw: diverged is left out: ")
    assert line.count("\n") == 1


def test_a_run_with_an_infinite_metric_is_read(run, capsys, tmp_path):
    """Earlier versions recorded it."""
    checkpoint, rows = run.read_checkpoint(), (run.path / "metrics.jsonl").read_text()
    elbo = json.loads(rows.splitlines()[-1])["elbo"]
    rows = rows.replace(f'"elbo": {elbo}', '"elbo": -Infinity').encode()
    assert b"-Infinity" in rows
    (run.path / "metrics.jsonl").write_bytes(rows)
    checkpoint = replace(checkpoint, rows=run_module._rows_of(rows))
    (run.path / "checkpoint.safetensors").write_bytes(to_bytes(checkpoint))
    for command, options in COMMANDS.items():
        assert command([str(run.path), *options, "--out", str(tmp_path / command.__module__)]) == 0
    assert capsys.readouterr().err == ""


def test_histograms_of_codes_far_from_zero():
    """All codes are equal in float32; a histogram of a narrow range would have no bins."""
    codes = torch.tensor([[1e8, -1e19, 0.0]]).expand(50, 3)
    figure = histogram_figure(codes, torch.zeros(2, 3), torch.zeros(2, 3), "far")
    heights = [max(patch.get_height() for patch in axes.patches) for axes in figure.axes[:3]]
    assert all(math.isfinite(height) and height > 0 for height in heights)
