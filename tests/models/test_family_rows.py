"""What holds for every posterior, prior and likelihood: a new one is tried here without a line of test code."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from helpers.families import ROWS, config_with, data_for, points_of, shape_for, x_for

from pvae.config.build import build_elbo, build_vae
from pvae.config.config import TAKERS
from pvae.core.options import arguments_of, options_of
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.elbos.base import constraint_of
from pvae.models.features import fit_to
from pvae.models.likelihoods import Likelihood
from pvae.training.fit import fit

CPU = torch.device("cpu")
EVERY_ROW = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
EVERY_LIKELIHOOD = pytest.mark.parametrize("row", Likelihood.members.values(), ids=Likelihood.members)


@EVERY_ROW
def test_each_family_is_built_by_its_class_and_every_parameter_gets_a_gradient(row):
    config = config_with(row)
    x = x_for(config, 9)
    with seeded(0, CPU), pyro.get_param_store().scope():
        vae = build_vae(config, shape_for(config))
        fit_to(vae, x)
        elbo = build_elbo(config.elbo, config.particles)
        loss, terms = elbo.loss_and_terms(vae.model, vae.guide, x)
    assert {type(module) for module in (vae.p_z, vae.q_z, vae.p_x)} & {row, getattr(row, "grey", None)}
    assert loss.isfinite()
    assert terms.distortion.shape == terms.rate.shape == (9,)
    loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
        if parameter.grad is None:
            continue
        assert parameter.grad.isfinite().all(), name


@EVERY_ROW
def test_an_argument_with_the_name_of_an_option_is_that_option(row):
    assert arguments_of(row) & TAKERS.keys() <= options_of(row).keys()


@pytest.mark.workflow
@EVERY_ROW
@pytest.mark.usefixtures("no_pictures")
def test_each_family_trains(tmp_path, row):
    """Two epochs raise the ELBO; and metrics, which are None in training where the ELBO is no bound, are written."""
    config = config_with(row, epochs=2, batch_size=10, lr=3e-3)
    values = data_for(config, 120)
    run = fit(config, data=Dataset("made", values[:100], values[100:]), out=tmp_path / "run")
    first, last = (row for row in run.metrics() if row.split == "test")
    assert last.distortion + last.rate < first.distortion + first.rate
    assert last.pseudo == config.is_pseudo
    assert (first.elbo is None) == config.is_autoencoder
    assert (run.metrics()[0].elbo is None) == (config.is_autoencoder or config.likelihood_class.needs_batch)


@pytest.mark.parametrize("output", [-4.0, 0.7, 3.0])
@EVERY_LIKELIHOOD
def test_each_likelihood_is_normalised(row, output):
    """The sum or integral over the support of one value is 1, at each output of the decoder."""
    is_of_columns = "columns" in options_of(row)
    one_column = {"columns": "categorical:3"} if is_of_columns else {}
    config = config_with(row, latent_dim=1, binarize="static" if row.grey else "none", **one_column)
    shape = (1, 1, 1) if row.is_of_images else (1,)
    likelihood = build_vae(config, shape).double().eval().p_x
    if is_of_columns:
        likelihood.decoder = torch.nn.Linear(1, 3, dtype=torch.float64)
        x, weight = torch.arange(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    else:
        likelihood.decoder = torch.nn.Unflatten(-1, likelihood.output_shape)
        given = likelihood.given(torch.full(likelihood.output_shape, output).double())
        x, weight = points_of(constraint_of(given))
    num_latents = 1 if is_of_columns else math.prod(likelihood.output_shape)
    with torch.no_grad():
        p_x = likelihood(torch.full((num_latents,), output, dtype=torch.float64))
        total = (weight * p_x.log_prob(x.view(-1, *shape)).exp()).sum().item()
    assert total == pytest.approx(1, rel=1e-6)  # of a density with a kink


@EVERY_LIKELIHOOD
def test_what_is_missing_changes_no_likelihood_of_the_rest(row):
    """Where the likelihood takes missing values: NaN in one value leaves the log-probability of the others."""
    if row.needs_batch:
        pytest.skip("it takes no missing values")
    config = config_with(row, missing=True)
    x = x_for(config, 4).double()
    x = x.round() if row.grey else x
    with seeded(0, CPU):
        vae = build_vae(config, shape_for(config)).double()
        fit_to(vae, x)
        z = torch.randn(4, 3, dtype=torch.float64)
    with torch.no_grad():
        whole = vae.likelihood(z).log_prob(x)
        each = []
        for place in range(x[0].numel()):
            without = x.clone()
            without.flatten(1)[:, place] = math.nan
            each.append(whole - vae.likelihood(z).log_prob(without))
    torch.testing.assert_close(torch.stack(each).sum(0), whole, rtol=1e-9, atol=1e-9)
    with pyro.get_param_store().scope():
        build_elbo("trace").differentiable_loss(vae.model, vae.guide, without).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
