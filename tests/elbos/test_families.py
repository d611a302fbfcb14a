"""Every estimator over every family of posterior and prior equals the one written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.gradients import assert_same_gradients, value_and_gradients
from helpers.svi import ELBOS
from pyro.distributions import Laplace
from torch import nn
from torch.distributions import kl_divergence

from pvae.config.build import build_elbo, build_vae, elbo_of
from pvae.config.config import OPTIONS, Config
from pvae.core.batch import Terms
from pvae.core.errors import InputError
from pvae.core.options import arguments_of
from pvae.elbos.base import PerDatumELBO
from pvae.models.posteriors import Posterior
from pvae.models.priors import Prior
from pvae.reference import bounds
from pvae.reference import elbo as reference_elbo

SHAPE, K = (1, 5, 4), 4
HIERARCHIES = {  # options of several stochastic layers, and which of the layers have a rate in closed form
    "bottom-up": ({"upper_latent_dims": (2,)}, [False, True]),
    "three bottom-up": ({"upper_latent_dims": (2, 4)}, [False, False, True]),
    "bottom-up, mixture": ({"upper_latent_dims": (2,), "prior": "mixture"}, [False, False]),
    "three in a ladder": ({"inference": "ladder", "upper_latent_dims": (2, 4)}, [True, True, True]),
    "ladder, BatchNorm": (
        {"inference": "ladder", "upper_latent_dims": (2,), "network": "mlp-batchnorm"},
        [True, True],
    ),
    "ladder, vamp": ({"inference": "ladder", "upper_latent_dims": (2,), "prior": "vamp"}, [True, False]),
    "top-down": ({"inference": "top-down", "upper_latent_dims": (2,)}, [True, True]),
    "three top-down, vamp": (
        {"inference": "top-down", "upper_latent_dims": (2, 4), "prior": "vamp"},
        [True, True, False],
    ),
}
PAIRS = [
    (posterior, prior)
    for posterior in OPTIONS["posterior"].choices
    for prior in OPTIONS["prior"].choices
    if posterior != "delta" and Posterior.members[posterior].support == Prior.members[prior].support
    if Posterior.members[posterior].support not in ("bits", "categories", "codes")
]
CLOSED = [(posterior, prior) for posterior, prior in PAIRS if prior in Posterior.members[posterior].closed_forms]
OPTIONS_OF = {"renyi": {"alpha": 0.3}, "ciwae": {"mix": 0.2}, "miwae": {"groups": 2}, "piwae": {"groups": 2}}
BOUNDS = {
    "trace": bounds.elbo,
    "handwritten": bounds.elbo,
    "iwae": bounds.iwae,
    "renyi": lambda log_w: bounds.renyi(log_w, 0.3),
    "ciwae": lambda log_w: bounds.ciwae(log_w, 0.2),
    "miwae": lambda log_w: bounds.miwae(log_w, 2),
}
GRADIENTS = {  # and the bound, whose value they do not change
    "stl": (bounds.stl_gradients, bounds.elbo),
    "dreg": (bounds.dreg_gradients, bounds.iwae),
    "piwae": (lambda *arguments: bounds.piwae_gradients(*arguments, 2), bounds.iwae),
    "score": (bounds.score_gradients, bounds.elbo),
    "score-loo": (lambda *arguments: bounds.score_gradients(*arguments, leave_one_out=True), bounds.elbo),
    "vimco": (bounds.vimco_gradients, bounds.iwae),
}
COMPARED = [name for name in ELBOS if name in {"analytic", *BOUNDS, *GRADIENTS}]  # written by hand in `pvae.reference`


def config_of(posterior="normal", prior="standard-normal", elbo="trace", **rest):
    least = PerDatumELBO.members[elbo].least_particles
    return Config(
        latent_dim=3, hidden=(8,), posterior=posterior, prior=prior, components=5, elbo=elbo, particles=least,
        flow_hidden=(7,), **rest,
    )  # fmt: skip


def vae_of(posterior="normal", prior="standard-normal", **rest):
    """A VAE in float64 whose prior and flow have moved from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(config_of(posterior, prior, **rest), SHAPE).double()
        for parameter in (*vae.p_z.parameters(), *getattr(vae.q_z, "transforms", nn.Module()).parameters()):
            parameter.data += 0.1 * torch.rand_like(parameter)
    return vae


@pytest.fixture
def x():
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize(("posterior", "prior"), PAIRS)
def test_each_estimator_equals_the_handwritten_in_value_and_every_gradient(posterior, prior, name, x):
    closed_form = (lambda vae: reference_elbo.closed_form(vae, x, K)) if (posterior, prior) in CLOSED else None
    compare(vae_of(posterior, prior), name, x, closed_form)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("hierarchy", HIERARCHIES)
def test_each_estimator_of_a_hierarchy_equals_the_handwritten(hierarchy, name, x):
    options, closed = HIERARCHIES[hierarchy]

    def by_layer(vae):
        """The closed forms of the layers that have one, and the mean of log q - log p of the others."""
        posterior, prior = vae.posterior(x), vae.prior()
        z = posterior.rsample((K,))
        layers = zip(posterior.conditionals(z), prior.conditionals(z), closed)
        rates = [
            kl_divergence(q, p) if is_closed else q.log_prob(z) - p.log_prob(z) for (z, q), (_, p), is_closed in layers
        ]
        rate = sum(rate.expand(K, -1).mean(0) for rate in rates)
        return Terms(-vae.likelihood(z).log_prob(x).mean(0), rate)

    vae = vae_of(**options)
    if name in ("dreg", "piwae"):
        vae.eval()  # with the statistics of a batch, BatchNorm makes a weight depend on other draws, which they refuse
    compare(vae, name, x, by_layer if any(closed) else None)


@pytest.mark.parametrize("name", [name for name in COMPARED if name not in ("miwae", "piwae")])
def test_with_the_fewest_particles_each_estimator_equals_the_handwritten(name, x):
    least = PerDatumELBO.members[name].least_particles
    compare(vae_of(), name, x, lambda vae: reference_elbo.closed_form(vae, x), least)


@pytest.mark.parametrize("name", ["stl", "dreg", "score"])
def test_a_posterior_of_another_family_is_taken(name, x):
    """What is held fixed is whatever parameters the posterior has."""
    vae = vae_of()
    normal = vae.q_z.forward
    vae.q_z.forward = lambda x: Laplace(normal(x).base_dist.loc, normal(x).base_dist.scale).to_event(1)
    compare(vae, name, x, None)


def compare(vae, name, x, closed_form, particles=K):
    """Compare value and gradients of an estimator with those by hand; `closed_form` gives the terms of "analytic"."""

    def loss():
        elbo = build_elbo(name, particles, **OPTIONS_OF.get(name, {}))
        return elbo.backward(vae.model, vae.guide, x).loss.double()

    def value_by_hand(bound):
        return value_and_gradients(vae, lambda: -bound(bounds.log_weights(vae, x, particles)).mean())

    if name == "analytic":
        if closed_form is None:
            with pytest.raises(InputError):
                value_and_gradients(vae, loss)
            return
        by_hand = value_and_gradients(vae, lambda: reference_elbo.loss(closed_form(vae)))
    elif name in BOUNDS:
        by_hand = value_by_hand(BOUNDS[name])
    else:
        gradients_of, bound = GRADIENTS[name]
        with torch.random.fork_rng():
            torch.manual_seed(7)
            gradients = gradients_of(vae, x, particles)
        by_hand = value_by_hand(bound)[0], gradients
    found = value_and_gradients(vae, loss)
    assert_same_gradients(found, by_hand)
    assert len(found[1]) == len(list(vae.parameters())), "every parameter has a gradient"


@pytest.mark.parametrize("prior", OPTIONS["prior"].choices)
@pytest.mark.parametrize("posterior", OPTIONS["posterior"].choices)
def test_each_pair_of_options_is_built_or_refused(posterior, prior):
    """What is refused is what has no rate, no closed form, or no rate of each dimension."""
    pair, is_point = (posterior, prior), (posterior, prior) == ("delta", "standard-normal")
    is_normal = prior == "standard-normal" and posterior in ("normal", "normal-log-variance")
    is_point |= posterior in ("vq", "fsq") and prior == "uniform-codes"
    for options, is_allowed in (
        ({"elbo": "trace"}, pair in PAIRS or is_point),
        ({"elbo": "analytic"}, pair in CLOSED or is_point),
        ({"free_bits": 0.1}, is_normal),
    ):
        if is_allowed:
            config = config_of(posterior, prior, **options)
            assert elbo_of(config)
            assert build_vae(config, SHAPE)
            assert any(config.closed_forms) == (pair in CLOSED or is_point)
        else:
            with pytest.raises(InputError):
                elbo_of(config_of(posterior, prior, **options))


@pytest.mark.parametrize("elbo", ELBOS)
def test_an_autoencoder_is_trained_by_an_elbo_that_needs_no_density_of_q(elbo):
    if "free_bits" in arguments_of(PerDatumELBO.members[elbo]):
        assert elbo_of(config_of("delta", elbo=elbo))
    else:
        with pytest.raises(InputError):
            elbo_of(config_of("delta", elbo=elbo))


FAMILIES = [*(dict(zip(("posterior", "prior"), pair)) for pair in PAIRS), *(given for given, _ in HIERARCHIES.values())]


@pytest.mark.parametrize("given", FAMILIES)
def test_a_vae_is_saved_copied_and_converted_whole(given, x):
    vae = vae_of(**given)
    again = build_vae(config_of(**given), SHAPE).double()
    state = vae.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state), "no parameter is saved twice"
    again.load_state_dict(state)
    z = vae.posterior(x).sample()
    for other in (again, copy.deepcopy(vae)):
        assert torch.equal(other.prior().log_prob(z), vae.prior().log_prob(z))
        assert torch.equal(other.posterior(x).log_prob(z), vae.posterior(x).log_prob(z))
        with torch.no_grad():
            next(vae.q_z.parameters()).add_(1.0)
            moved = vae.prior().log_prob(z)
            next(vae.q_z.parameters()).sub_(1.0)
        assert torch.equal(moved, other.prior().log_prob(z)) == (given.get("prior") != "vamp"), (
            "the copy has its own encoder"
        )
