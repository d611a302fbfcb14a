"""A VAE built from a user's own modules: trained, resumed and loaded with a run folder."""

from __future__ import annotations

import dataclasses
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.own import Likelihood, Posterior, StudentPrior, own_vae
from torch import nn

import pvae
from pvae import Config, InputError
from pvae.cli.evaluate import main as evaluate_command
from pvae.data.preparation import Preparation
from pvae.elbos.registry import build_elbo
from pvae.evaluation.report import evaluate, to_text
from pvae.models.posteriors import NormalPosterior, PowerSphericalPosterior
from pvae.models.priors import FlatPrior, SpherePrior, StandardNormalPrior, VampPrior
from pvae.runs.run import Run
from pvae.trained.latent_space import encode

pytestmark = pytest.mark.workflow

CONFIG = Config(epochs=2, batch_size=50, binarize="static")


@pytest.mark.parametrize("compile", ["none", "graph"])
def test_own_vae_is_trained_resumed_and_loaded(tmp_path, few_digits, compile):
    config = CONFIG.replace(compile=compile)
    whole = pvae.fit(config, vae=own_vae(), data=few_digits, out=tmp_path / "whole", device="cpu")
    pvae.fit(config.replace(epochs=1), vae=own_vae(), data=few_digits, out=tmp_path / "parts", device="cpu")
    parts = pvae.resume(tmp_path / "parts", 2, vae=own_vae(), data=few_digits)
    assert whole.config.system == "own-vae"
    assert whole.metrics()[-1].elbo > whole.metrics()[1].elbo
    one, other = (pvae.load(run.path, vae=own_vae()) for run in (whole, parts))
    assert not one.training
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    whole.vae(own_vae())
    report = evaluate(whole, 20)
    assert report.elbo_parts.elbo.mean == pytest.approx(
        whole.metrics()[-1].elbo, abs=5 * whole.metrics()[-1].elbo_stderr
    )


@pytest.mark.parametrize("compile", ["none", "graph"])
def test_frozen_and_tied_weights_are_trained_saved_and_loaded(tmp_path, few_digits, compile):
    def tied():
        vae = own_vae()
        vae.q_z[1].requires_grad_(False)
        vae.q_z.second_name, vae.p_x.second_name = vae.q_z[1].weight, vae.p_x[2].weight
        return vae

    config, first = CONFIG.replace(compile=compile), tied()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    pvae.fit(config.replace(epochs=1), vae=first, data=few_digits, out=tmp_path / "run", device="cpu")
    pvae.resume(tmp_path / "run", 2, vae=tied(), data=few_digits)
    after = pvae.load(tmp_path / "run", vae=tied()).state_dict()
    frozen = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen == {name for name, one in tied().named_parameters(remove_duplicate=False) if not one.requires_grad}


def test_own_vae_must_be_given_again(tmp_path, few_digits, capsys):
    run = pvae.fit(CONFIG.replace(epochs=1), vae=own_vae(), data=few_digits, out=tmp_path / "own", device="cpu")
    for function in (pvae.load, pvae.resume):
        with pytest.raises(InputError, match="Python"):
            function(run.path)
    with pytest.raises(InputError, match=r"q_z\.1\.weight"):
        pvae.load(run.path, vae=own_vae(hidden=9))
    with pytest.raises(InputError, match=r"pvae\.VAE"):
        pvae.fit(CONFIG, vae=StudentPrior(), data=few_digits, out=tmp_path / "none")
    assert evaluate_command([str(run.path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    usual = pvae.fit(CONFIG.replace(epochs=1, hidden=(8,)), data=few_digits, out=tmp_path / "usual", device="cpu")
    with pytest.raises(InputError, match="vae"):
        pvae.load(usual.path, vae=own_vae())


def test_the_record_says_which_options_do_not_describe_an_own_vae(tmp_path, few_digits):
    run = pvae.fit(CONFIG.replace(epochs=1), vae=own_vae(), data=few_digits, out=tmp_path / "run", device="cpu")
    file = run.path / "config.json"
    first, last = re.search(r"from (\w+) to (\w+) do not describe it", file.read_text()).groups()
    names = [field.name for field in dataclasses.fields(Config)]
    described = names[names.index(first) : names.index(last) + 1]
    assert {"network", "hidden", "latent_dim", "posterior", "prior", "likelihood", "columns", "scale"} <= {*described}
    assert not {"elbo", "beta", "epochs", "dataset", "binarize"} & {*described}
    assert Run.open(run.path).has_own_vae


class LaplacePosterior(Posterior):
    def forward(self, x):
        normal = super().forward(x).base_dist
        return dist.Laplace(normal.loc, normal.scale).to_event(1)


def test_a_rate_without_a_closed_form_is_reported_as_an_estimate(tmp_path, few_digits):
    """KL(Laplace, StudentT) has no closed form, and only the rate of a Normal is split into three parts."""
    vae = own_vae()
    vae.q_z = LaplacePosterior(*vae.q_z)
    run = pvae.fit(CONFIG.replace(epochs=1), vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    run.vae(vae)
    report = evaluate(run, 20)
    assert "KL(q(z | x) || p(z)), from ten draws of z" in to_text(report)
    assert report.elbo_parts.rate_decomposition is None


class FlowPosterior(Posterior):
    def forward(self, x):
        return dist.TransformedDistribution(super().forward(x), [dist.transforms.TanhTransform()])


class TwoNormals(Posterior):
    def forward(self, x):
        normal = super().forward(x).base_dist
        loc, scale = torch.stack([normal.loc, -normal.loc], 1), normal.scale[:, None].expand(-1, 2, -1)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(len(loc), 2)), dist.Normal(loc, scale).to_event(1))


class BernoulliPosterior(Posterior):
    def forward(self, x):
        return dist.Bernoulli(logits=super().forward(x).base_dist.loc).to_event(1)


class CoinPrior(nn.Module):
    def forward(self):
        return dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)


@pytest.mark.parametrize("posterior", [FlowPosterior, TwoNormals, BernoulliPosterior])
def test_posteriors_without_a_mean_or_rsample_are_evaluated(tmp_path, few_digits, posterior):
    """Also discrete ones, whose closed-form KL torch computes for equal batch shapes only."""
    vae = own_vae()
    vae.q_z = posterior(*vae.q_z)
    if posterior is BernoulliPosterior:
        vae.p_z = CoinPrior()
    config = CONFIG.replace(epochs=1, elbo="trace" if posterior is FlowPosterior else "score")
    run = pvae.fit(config, vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    run.vae(vae)
    report = evaluate(run, 200)
    x = Preparation.of(config).x(Preparation.of(config).prepared(few_digits.test, "test"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        q = vae.posterior(x)
        draws = q.sample((20_000,)).mean(0)
        # One of the 80 values is off by more than 6 standard errors once in 10^6 seeds.
        error = 6 * q.sample((1000,)).std(0) * (1 / 1000 + 1 / 20_000) ** 0.5
        z = q.sample((2000,))
        terms = {"distortion": -vae.likelihood(z).log_prob(x), "rate": q.log_prob(z) - vae.prior().log_prob(z)}
    assert ((encode(vae, x) - draws).abs() < error).all()
    # Each of the next three is off by more than 6 standard errors for fewer than one of 10^6 seeds.
    for name, values in terms.items():
        error = 6 * values.mean(1).std().item() * (1 / 10) ** 0.5
        assert getattr(report.elbo_parts, name).mean == pytest.approx(values.mean().item(), abs=error), name
    log_w = -terms["distortion"] - terms["rate"]
    more = (log_w.logsumexp(0) - math.log(2000)).mean().item()
    log_p = report.log_likelihood
    assert log_p.estimate.mean == pytest.approx(more, abs=6 * log_p.sampling_stderr)
    elbo = report.elbo_parts.elbo.mean
    assert elbo == pytest.approx(-report.elbo_parts.distortion.mean - report.elbo_parts.rate.mean, rel=1e-6)
    assert elbo < log_p.estimate.mean


CANNOT_BE_EVALUATED = [
    ("q_z", Posterior(nn.Flatten(), nn.Linear(1024, 4)), "static", r"\(2x784 and 1024x4\)"),
    ("q_z", Posterior(nn.Flatten(), nn.Linear(784, 4).double()), "static", "Double"),
    ("p_x", Likelihood(nn.Linear(2, 784), nn.Unflatten(-1, (1, 28, 28))), "none", r"\[0, 1\].*support"),
]


@pytest.mark.parametrize(("part", "module", "binarize", "says"), CANNOT_BE_EVALUATED)
def test_a_vae_that_cannot_be_evaluated_is_refused_in_one_line(tmp_path, few_digits, part, module, binarize, says):
    """The message names the images and the first sentence of torch's or Pyro's error, which is chained to it."""
    vae = own_vae()
    setattr(vae, part, module)
    with pytest.raises(InputError, match=rf"shape \(1, 28, 28\).*{says}") as refused:
        pvae.fit(CONFIG.replace(binarize=binarize), vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is not None
    assert not list(tmp_path.iterdir())


WRONG_PARTS = [
    ("q_z", BernoulliPosterior(nn.Flatten(), nn.Linear(784, 4)), "rsample.*--elbo score"),
    ("q_z", nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), r"a torch\.Tensor"),
    ("q_z", PowerSphericalPosterior(nn.Sequential(nn.Flatten(), nn.Linear(784, 3))), "unit sphere"),
    ("p_z", SpherePrior(2), "unit sphere"),
    ("p_z", FlatPrior(2), "improper"),
    ("q_z", NormalPosterior(nn.Sequential(nn.Flatten(), nn.Linear(784, 5))), "even number.* 5"),
]


@pytest.mark.parametrize(("part", "module", "says"), WRONG_PARTS)
def test_a_part_that_cannot_be_used_is_named_by_its_cause_alone(tmp_path, few_digits, part, module, says):
    vae = own_vae()
    vae.p_z = StandardNormalPrior(2)
    setattr(vae, part, module)
    with pytest.raises(InputError, match=says) as refused:
        pvae.fit(CONFIG, vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    assert "images of shape" not in str(refused.value)
    assert not list(tmp_path.iterdir())
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=says) as refused:
        build_elbo("trace").loss(vae.model, vae.guide, (few_digits.test[:4] / 255).round())
    assert "Trace Shapes" not in str(refused.value)


def test_a_mixture_of_posteriors_on_the_sphere_is_a_prior_on_the_sphere(few_digits):
    vae = own_vae()
    vae.q_z = PowerSphericalPosterior(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)))
    vae.p_z = VampPrior(vae.q_z, (1, 28, 28), 5)
    x = few_digits.test[:4].float() / 255
    with pyro.get_param_store().scope():
        assert math.isfinite(build_elbo("trace").loss(vae.model, vae.guide, x.round()))


def test_a_step_without_memory_is_said_with_advice_on_memory_alone(tmp_path, few_digits):
    class Large(nn.Flatten):
        def forward(self, x):
            if self.training:
                raise MemoryError
            return super().forward(x)

    vae = own_vae()
    vae.q_z[0] = Large()
    with pytest.raises(pvae.TrainingError, match=r"step 1.*--batch-size") as stopped:
        pvae.fit(CONFIG, vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    assert "--lr" not in str(stopped.value)
