"""One training from end to end: trained, opened, resumed, evaluated; and what a user gives wrongly is one line."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.commands import refuse
from helpers.runs import assert_same, weights

import pvae
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.evaluation.report import evaluate
from pvae.training.fit import fit, resume

CONFIG = Config(
    hidden=(16,), latent_dim=3, batch_size=50, epochs=2, likelihood="normal", elbo="analytic", compile="none"
)


@pytest.fixture(scope="module")
def path(made_once, few_digits):
    return made_once("end-to-end", lambda out: fit(CONFIG, data=few_digits, out=out))


def test_a_training_raises_the_bound_and_writes_a_folder_that_is_read_back(path):
    run = pvae.Run.open(path)
    bounds = [row.elbo for row in run.metrics() if row.split == "test"]
    assert bounds[1] > bounds[0]
    assert run.config == CONFIG
    state = torch.get_rng_state()
    vae = pvae.load(path)
    assert torch.equal(torch.get_rng_state(), state), "loading draws random numbers"
    assert not vae.training
    assert_same({name: value.cpu() for name, value in vae.state_dict().items()}, weights(run))
    assert vae.likelihood(vae.prior().sample((4,))).mean.shape == (4, 1, 28, 28)


def test_the_same_seed_gives_the_same_weights_and_a_resumed_run_those_of_one_that_was_not_stopped(
    path, tmp_path, few_digits
):
    half = fit(CONFIG.replace(epochs=1), data=few_digits, out=tmp_path / "half")
    resumed = resume(half.path, epochs=2, data=few_digits)
    assert_same(weights(resumed), weights(pvae.Run.open(path)))
    assert pvae.Run.open(half.path).config == CONFIG


@pytest.mark.parametrize(("binarize", "bound"), [("none", "pseudo-ELBO"), ("static", "ELBO")])
@pytest.mark.usefixtures("no_pictures")
def test_metrics_are_those_of_the_weights(tmp_path, few_digits, small_config, binarize, bound):
    """Compute the last test row again from the stored weights and the distributions; beta is in the loss alone."""
    config = small_config.replace(elbo="analytic", particles=4, beta=3.0, binarize=binarize)
    run = fit(config, data=few_digits, out=tmp_path / "run")
    row = run.metrics()[-1]
    vae, x = run.vae(), run.preparation.x(run.preparation.prepared(few_digits.test, "test"))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        posterior = vae.posterior(x)
        distortion = -vae.likelihood(posterior.rsample((4,))).log_prob(x).mean(0)
        rate = torch.distributions.kl_divergence(posterior, vae.prior())
    elbo = -(distortion + rate).double()
    assert (row.epoch, row.split, row.bound) == (2, "test", bound)
    assert row.elbo == pytest.approx(elbo.mean().item(), rel=1e-6)
    assert row.elbo_stderr == pytest.approx(elbo.std().item() / math.sqrt(40), rel=1e-5)
    assert row.distortion == pytest.approx(distortion.mean().item(), rel=1e-6)
    assert row.rate == pytest.approx(rate.mean().item(), rel=1e-6)
    assert row.loss == pytest.approx((distortion + 3 * rate).mean().item(), rel=1e-5)


def test_a_run_is_evaluated_and_its_log_likelihood_lies_above_its_bound(path, few_digits):
    run = pvae.Run.open(path)
    run.dataset(few_digits)
    report = evaluate(run, 50, method="importance")
    assert report.log_likelihood.estimate.mean > report.log_likelihood.elbo.mean
    assert report.elbo_parts.rate.mean == pytest.approx(run.metrics()[-1].rate, rel=1e-4)


WRONG = ["--epochs 0", "--elbo none", "--latent-dim -1", "--resume nothing", "--dataset folder:no"]


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_one_line(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refuse(train, [*wrong.split(), "--quiet"], capsys, tmp_path)
