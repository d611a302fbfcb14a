"""One training from end to end: trained, opened, resumed, evaluated; and what a user gives wrongly is one line."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers.runs import assert_same, weights

import pvae
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.evaluation.report import evaluate
from pvae.reference import elbo as by_hand
from pvae.training.fit import fit, resume

CONFIG = Config(
    hidden=(16,), latent_dim=3, batch_size=50, epochs=2, likelihood="normal", elbo="analytic", compile="none"
)


@pytest.fixture(scope="module")
def path(made_once, few_digits):
    return made_once("end-to-end", lambda out: fit(CONFIG, data=few_digits, out=out, quiet=True))


def test_a_training_raises_the_bound_and_writes_a_folder_that_is_read_back(path):
    run = pvae.Run.open(path)
    bounds = [row.elbo for row in run.metrics() if row.split == "test"]
    assert bounds[1] > bounds[0]
    assert run.config == CONFIG
    vae = pvae.load(path)
    assert not vae.training
    assert_same({name: value.cpu() for name, value in vae.state_dict().items()}, weights(run))
    assert vae.likelihood(vae.prior().sample((4,))).mean.shape == (4, 1, 28, 28)


def test_the_same_seed_gives_the_same_weights_and_a_resumed_run_those_of_one_that_was_not_stopped(
    path, tmp_path, few_digits
):
    half = fit(CONFIG.replace(epochs=1), data=few_digits, out=tmp_path / "half", quiet=True)
    resumed = resume(half.path, epochs=2, data=few_digits, quiet=True)
    assert_same(weights(resumed), weights(pvae.Run.open(path)))


def test_the_reported_bound_is_the_one_written_by_hand(path, few_digits):
    """The rate is exact, and the distortion that of one draw for each image, within five of its errors."""
    vae, last = pvae.load(path), pvae.Run.open(path).metrics()[-1]
    x = few_digits.test.float() / 255
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        terms = by_hand.closed_form(vae, x, 500)
        draws = torch.stack([by_hand.closed_form(vae, x).distortion.mean() for _ in range(100)])
    assert last.rate == pytest.approx(terms.rate.mean().item(), rel=1e-4)
    assert last.distortion == pytest.approx(terms.distortion.mean().item(), abs=5 * draws.std().item())
    assert last.elbo == pytest.approx(-last.distortion - last.rate, rel=1e-5)


def test_a_run_is_evaluated_and_its_log_likelihood_lies_above_its_bound(path, few_digits):
    run = pvae.Run.open(path)
    run.dataset(few_digits)
    report = evaluate(run, 50)
    assert report.log_likelihood.estimate.mean > report.log_likelihood.elbo.mean
    assert report.elbo_parts.rate.mean == pytest.approx(run.metrics()[-1].rate, rel=1e-4)


WRONG = ["--epochs 0", "--elbo none", "--latent-dim -1", "--resume nothing", "--dataset folder:no"]


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_one_line(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train([*wrong.split(), "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_checkpoint_is_refused(path, tmp_path):
    run = shutil.copytree(path, tmp_path / "run")
    file = run / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(pvae.InputError):
        pvae.load(run)
