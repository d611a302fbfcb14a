"""beta-TC: its parts are sums over a small data set, written by hand; equal weights give the ELBO."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.gradients import assert_same_gradients
from torch.distributions import Normal

from pvae.config.build import build_elbo, build_vae, elbo_of
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.elbos.trace import TotalCorrelationELBO

SHAPE, N, L = (1, 4, 3), 5, 3


def vae_and_data(**options):
    config = Config(latent_dim=L, hidden=(7,), binarize="threshold", **options)
    with seeded(0):
        return build_vae(config, SHAPE).double(), torch.rand(N, *SHAPE).round().double()


def loss_and_gradients(vae, elbo, x):
    with seeded(1), pyro.get_param_store().scope():
        loss, terms = elbo.loss_and_terms(vae.model, vae.guide, x)
    return loss.detach(), dict(zip(dict(vae.named_parameters()), torch.autograd.grad(loss, [*vae.parameters()]))), terms


def parts_by_hand(vae, x, z, num_data):
    """MI, TC and D of draws z (B, L), by loops over pairs of data and over dimensions."""
    loc, log_scale = vae.q_z.encoder(x).chunk(2, -1)
    scale = log_scale.exp()
    information = correlation = by_dimension = 0.0
    for i in range(len(x)):
        each = [[Normal(loc[m, d], scale[m, d]).log_prob(z[i, d]) for d in range(L)] for m in range(len(x))]
        of_own = sum(each[i])
        log_q = sum(sum(row).exp() for row in each).div(num_data * len(x)).log()
        log_q_each = [sum(row[d].exp() for row in each).div(num_data * len(x)).log() for d in range(L)]
        information += of_own - log_q
        correlation += log_q - sum(log_q_each)
        by_dimension += sum(log_q_each) - Normal(0.0, 1.0).log_prob(z[i]).sum()
    return information / len(x), correlation / len(x), by_dimension / len(x)


@pytest.mark.parametrize("num_data", [0, 60])
def test_each_part_is_the_sum_over_the_data(num_data):
    vae, x = vae_and_data()
    with seeded(1):
        z = vae.posterior(x).rsample()
    parts = parts_by_hand(vae, x, z, num_data or N)
    for place, name in enumerate(("mi_weight", "tc_weight", "dim_weight")):
        weights = dict.fromkeys(("mi_weight", "tc_weight", "dim_weight"), 0.0) | {name: 1.0}
        loss, _, terms = loss_and_gradients(vae, TotalCorrelationELBO(num_data=num_data, **weights), x)
        assert (loss - terms.distortion.mean()).item() == pytest.approx(parts[place].item(), rel=1e-12)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_equal_weights_give_the_elbo(num_particles):
    vae, x = vae_and_data()
    ours = TotalCorrelationELBO(num_particles, beta=2.5, tc_weight=1.0, num_data=1000)
    loss, gradients, terms = loss_and_gradients(vae, ours, x)
    expected, of_elbo, of_terms = loss_and_gradients(vae, build_elbo("trace", num_particles, beta=2.5), x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.equal(terms.rate, of_terms.rate)
    assert_same_gradients((loss.item(), gradients), (expected.item(), of_elbo))


def test_what_has_no_independent_dimensions_or_several_sites_is_refused():
    for options in ({"posterior": "normal-full"}, {"prior": "mixture", "components": 2}, {"upper_latent_dims": (2,)}):
        vae, x = vae_and_data(**options)
        with pytest.raises(InputError), pyro.get_param_store().scope():
            TotalCorrelationELBO().loss_and_terms(vae.model, vae.guide, x)


def test_the_configuration_gives_its_weights_and_the_number_of_data():
    elbo = elbo_of(Config(elbo="beta-tc", tc_weight=4.0, beta=0.5), num_data=70)
    assert (elbo.mi_weight, elbo.tc_weight, elbo.dim_weight, elbo.beta, elbo.num_data) == (1.0, 4.0, 1.0, 0.5, 70)
    with pytest.raises(InputError):
        Config().check_used(["tc_weight"])
