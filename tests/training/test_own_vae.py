"""A VAE built from a user's own modules: trained, resumed and loaded with a run folder."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from helpers.own import Likelihood, Posterior, StudentPrior, own_vae
from helpers.runs import assert_same
from torch import nn

import pvae
from pvae import Config, InputError
from pvae.cli.evaluate import main as evaluate_command
from pvae.config.build import preparation_of
from pvae.evaluation.report import evaluate
from pvae.models.posteriors import CategoricalPosterior, NormalPosterior, PowerSphericalPosterior
from pvae.models.priors import CategoricalPrior, FlatPrior, SpherePrior, StandardNormalPrior
from pvae.trained.latent_space import encode

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

CONFIG = Config(epochs=2, batch_size=50, binarize="static")


def tied():
    """A VAE with a layer that is not trained, and weights under two names."""
    vae = own_vae()
    vae.q_z[1].requires_grad_(False)
    vae.q_z.second_name, vae.p_x.second_name = vae.q_z[1].weight, vae.p_x[2].weight
    return vae


@pytest.mark.parametrize("build", [own_vae, tied])
@pytest.mark.parametrize("compile", ["none", "graph"])
def test_own_vae_is_trained_resumed_and_loaded(tmp_path, few_digits, compile, build):
    """Weights that are frozen stay as they are, and those of two names are saved and loaded."""
    config, first = CONFIG.replace(compile=compile), build()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    whole = pvae.fit(config, vae=first, data=few_digits, out=tmp_path / "whole", device="cpu")
    pvae.fit(config.replace(epochs=1), vae=build(), data=few_digits, out=tmp_path / "parts", device="cpu")
    parts = pvae.resume(tmp_path / "parts", 2, vae=build(), data=few_digits)
    assert whole.config.system == "own-vae"
    assert whole.metrics()[-1].elbo > whole.metrics()[1].elbo
    one, other = (pvae.load(run.path, vae=build()) for run in (whole, parts))
    assert not one.training
    assert_same(one.state_dict(), other.state_dict())
    frozen = {name for name, value in one.state_dict().items() if torch.equal(value, before[name])}
    assert frozen == {name for name, p in build().named_parameters(remove_duplicate=False) if not p.requires_grad}


def test_own_vae_must_be_given_again(tmp_path, few_digits, capsys):
    run = pvae.fit(CONFIG.replace(epochs=1), vae=own_vae(), data=few_digits, out=tmp_path / "own", device="cpu")
    usual = pvae.fit(CONFIG.replace(epochs=1, hidden=(8,)), data=few_digits, out=tmp_path / "usual", device="cpu")
    for function, path, given in (
        (pvae.load, run.path, {}),
        (pvae.resume, run.path, {}),
        (pvae.load, run.path, {"vae": own_vae(hidden=9)}),
        (pvae.load, usual.path, {"vae": own_vae()}),
    ):
        with pytest.raises(InputError):
            function(path, **given)
    with pytest.raises(InputError, match=r"pvae\.VAE"):
        pvae.fit(CONFIG, vae=StudentPrior(), data=few_digits, out=tmp_path / "none")
    assert evaluate_command([str(run.path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


class FlowPosterior(Posterior):
    def forward(self, x):
        return dist.TransformedDistribution(super().forward(x), [dist.transforms.TanhTransform()])


class BernoulliPosterior(Posterior):
    def forward(self, x):
        return dist.Bernoulli(logits=super().forward(x).base_dist.loc).to_event(1)


class CoinPrior(nn.Module):
    def forward(self):
        return dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)


@pytest.mark.parametrize("posterior", [FlowPosterior, BernoulliPosterior])
def test_posteriors_without_a_closed_form_a_mean_or_rsample_are_evaluated(tmp_path, few_digits, posterior):
    """Also discrete ones, whose closed-form KL torch computes for equal batch shapes only."""
    vae, is_discrete = own_vae(), posterior is BernoulliPosterior
    vae.q_z = posterior(*vae.q_z)
    if is_discrete:
        vae.p_z = CoinPrior()
    config = CONFIG.replace(epochs=1, elbo="score" if is_discrete else "trace")
    run = pvae.fit(config, vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    run.vae(vae)
    report = evaluate(run, 200)
    x = preparation_of(config).x(preparation_of(config).prepared(few_digits.test, "test"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        q = vae.posterior(x)
        draws = q.sample((20_000,)).mean(0)
        # One of the 80 values is off by more than 6 standard errors once in 10^6 seeds.
        error = 6 * q.sample((1000,)).std(0) * (1 / 1000 + 1 / 20_000) ** 0.5
        z = q.sample((2000,))
        terms = {"distortion": -vae.likelihood(z).log_prob(x), "rate": q.log_prob(z) - vae.prior().log_prob(z)}
    assert ((encode(vae, x) - draws).abs() < error).all()
    # Each of the next two is off by more than 6 standard errors for fewer than one of 10^6 seeds.
    for name, values in terms.items():
        error = 6 * values.mean(1).std().item() * (1 / 10) ** 0.5
        assert getattr(report.elbo_parts, name).mean == pytest.approx(values.mean().item(), abs=error), name
    assert report.elbo_parts.elbo.mean < report.log_likelihood.estimate.mean
    assert report.rate_decomposition is None


WRONG_PARTS = [
    ("q_z", Posterior(nn.Flatten(), nn.Linear(1024, 4)), r"q\(z \| x\).*\(2, 1, 28, 28\).*\(2x784 and 1024x4\)"),
    ("p_x", Likelihood(nn.Linear(2, 783), nn.Unflatten(-1, (1, 28, 28))), r"p\(x \| z\).*\(2, 2\).*28, 28.*783"),
    ("p_x", Likelihood(nn.Linear(2, 12), nn.Unflatten(-1, (3, 2, 2))), r"p\(x \| z\).*\(3, 2, 2\).*28, 28"),
    ("q_z", Posterior(nn.Flatten(), nn.Linear(784, 4).double()), "Double"),
    ("q_z", BernoulliPosterior(nn.Flatten(), nn.Linear(784, 4)), "ScoreELBO"),
    ("q_z", nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), r"torch\.Tensor"),
    ("q_z", PowerSphericalPosterior(nn.Sequential(nn.Flatten(), nn.Linear(784, 3))), "unit sphere"),
    ("p_z", SpherePrior(2), "unit sphere"),
    ("p_z", FlatPrior(2), "improper"),
    ("q_z", NormalPosterior(nn.Sequential(nn.Flatten(), nn.Linear(784, 5))), "even number"),
]


@pytest.mark.parametrize(("part", "module", "says"), WRONG_PARTS)
def test_a_part_that_cannot_be_used_is_refused_in_one_line_before_anything_is_written(
    tmp_path, few_digits, part, module, says
):
    vae = own_vae()
    vae.p_z = StandardNormalPrior(2)
    setattr(vae, part, module)
    with pytest.raises(InputError, match=says) as refused:
        pvae.fit(CONFIG, vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_grey_pixels_are_outside_the_support_of_a_bernoulli(tmp_path, few_digits):
    with pytest.raises(InputError, match="--binarize") as refused:
        pvae.fit(CONFIG.replace(binarize="none"), vae=own_vae(), data=few_digits, out=tmp_path / "run", device="cpu")
    assert refused.value.__cause__ is not None


class Bits(nn.Sequential):
    def forward(self, z):
        return dist.Bernoulli(logits=super().forward(z)).to_event(1)


class WithBatchNorm(Bits):
    def forward(self, z):
        linear, norm, last = self
        h = linear(z)
        return dist.Bernoulli(logits=last(norm(h.flatten(0, -2)).view_as(h))).to_event(1)


def of_values(p_x):
    return pvae.VAE(StudentPrior(), Posterior(nn.Linear(5, 4)), p_x)


def test_every_datum_is_in_the_support_of_your_own_likelihood(tmp_path):
    x = torch.ones(60, 5)
    for row, value in (7, 3.0), (40, float("nan")):  # neither is among the data of the first loss
        spoiled = x.clone()
        spoiled[row, 2] = value
        with pytest.raises(InputError, match=r"x\[2\].*support of p\(x \| z\)") as refused:
            pvae.fit(Config(batch_size=10), vae=of_values(Bits(nn.Linear(2, 5))), data=spoiled, out=tmp_path / "run")
        assert f"is {value:g}," in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_batch_norm_of_your_own_decoder_is_refused_where_draws_must_be_separate(tmp_path):
    x = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    decoder = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)
    for elbo in ("dreg", "vimco", "score-loo"):
        config = Config(elbo=elbo, particles=2, batch_size=10, epochs=1)
        with pytest.raises(InputError, match="BatchNorm"):
            pvae.fit(config, vae=of_values(WithBatchNorm(*decoder)), data=x, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    pvae.fit(config.replace(elbo="iwae"), vae=of_values(WithBatchNorm(*decoder)), data=x, out=tmp_path / "run")


def test_your_own_vae_and_not_the_configuration_says_what_an_elbo_is_given(tmp_path):
    """The posterior of the configuration is Normal, which gumbel refuses."""
    vae = pvae.VAE(CategoricalPrior(6, 3), CategoricalPosterior(nn.Linear(5, 6), 3), Bits(nn.Linear(6, 5)))
    x = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for elbo in ("gumbel", "disarm-categories"):
        config = Config(elbo=elbo, particles=2, batch_size=10, epochs=1)
        assert pvae.fit(config, vae=vae, data=x, out=tmp_path / elbo).metrics()


def test_counts_of_several_axes_start_near_a_model(tmp_path):
    x = torch.poisson(torch.full((130, 2, 3), 4.0), generator=torch.Generator().manual_seed(0))
    config = pvae.values_config(x, epochs=1, hidden=(8,))
    assert config.initialization == "exact"
    assert pvae.fit(config, data=x, out=tmp_path / "run").metrics()


def test_a_step_without_memory_is_said_with_advice_on_memory_alone(tmp_path, few_digits):
    def fails(encoder, _):
        if encoder.training:
            raise MemoryError

    vae = own_vae()
    vae.q_z.register_forward_pre_hook(fails)
    with pytest.raises(pvae.TrainingError, match=r"step 1.*--batch-size") as stopped:
        pvae.fit(CONFIG, vae=vae, data=few_digits, out=tmp_path / "run", device="cpu")
    assert "--lr" not in str(stopped.value)
