"""A VAE of modules of one's own: the shapes of their distributions are checked by every way in."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.svi import ELBOS
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pvae
from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.config.build import build_elbo
from pvae.core.errors import InputError, NotFiniteError
from pvae.marginal.importance import importance_sample
from pvae.reference import elbo as reference_elbo

SHAPE = (1, 4, 4)


class Prior(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self):
        return self.make(dist.Normal(torch.zeros(2), torch.ones(2)))


class Posterior(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.net = make, nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

    def forward(self, x):
        loc, log_scale = self.net(x).chunk(2, -1)
        return self.make(dist.Normal(loc, log_scale.exp()))


class Likelihood(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.net = make, nn.Sequential(nn.Linear(2, 16), nn.Unflatten(-1, SHAPE))

    def forward(self, z):
        return self.make(dist.Bernoulli(logits=self.net(z)))


def own_vae(**makes):
    event_dims = {"p_z": 1, "q_z": 1, "p_x": 3}
    kinds = {"p_z": Prior, "q_z": Posterior, "p_x": Likelihood}
    made = {name: makes.get(name, lambda one, count=count: one.to_event(count)) for name, count in event_dims.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pvae.VAE(**{name: kinds[name](make) for name, make in made.items()})


X = torch.bernoulli(torch.full((6, *SHAPE), 0.4), generator=torch.Generator().manual_seed(0))


def svi(name):
    return lambda vae: SVI(vae.model, vae.guide, pyro.optim.Adam({}), loss=build_elbo(name, 2)).step(X)


WAYS = {
    **{name: svi(name) for name in ELBOS},
    "Pyro": lambda vae: SVI(vae.model, vae.guide, pyro.optim.Adam({}), loss=Trace_ELBO()).step(X),
    "by hand": lambda vae: reference_elbo.monte_carlo(vae, X),
    "importance sampling": lambda vae: importance_sample(vae, X, 10),
    "fit": lambda vae: pvae.fit(
        pvae.Config(epochs=1, batch_size=2, binarize="threshold"),
        vae=vae,
        data=pvae.Dataset("x", (X * 255).byte(), (X * 255).byte()),
    ),
}
WRONG = [  # the wrong module, what it returns, and the number of event dimensions that it should have
    ("p_x", lambda one: one, 3),
    ("p_x", lambda one: one.to_event(2), 3),
    ("p_x", lambda one: one.to_event(), 3),
    ("q_z", lambda one: one, 1),
    ("q_z", lambda one: one.to_event(2), 1),
    ("p_z", lambda one: one, 1),
    ("p_z", lambda one: one.expand((6, 2)).to_event(1), 2),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "make", "num_event_dims"), WRONG)
def test_other_event_dimensions_are_refused_with_the_corrected_call(name, make, num_event_dims, way, tmp_path):
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=rf"\.to_event\({num_event_dims}\)$") as error:
        WAYS[way](own_vae(**{name: make}))
    assert {"p_z": "p(z)", "q_z": "q(z | x)", "p_x": "p(x | z)"}[name] in str(error.value)


@pytest.mark.parametrize("way", WAYS)
def test_an_event_of_another_shape_than_a_datum_is_refused(way):
    with pyro.get_param_store().scope(), pytest.raises(InputError, match=r"\(1, 4\)"):
        WAYS[way](own_vae(p_x=lambda one: dist.Bernoulli(logits=one.logits[..., 0, :]).to_event(2)))


def test_any_leading_dimensions_of_z_are_taken():
    vae = own_vae()
    assert vae.log_likelihood(X, torch.zeros(5, 6, 2)).tolist() == [[pytest.approx(v) for v in row] for row in
        vae.likelihood(torch.zeros(5, 6, 2)).log_prob(X).tolist()]  # fmt: skip
    assert vae.likelihood(torch.zeros(2)).batch_shape == ()
    assert math.isfinite(WAYS["trace"](vae))
    pyro.clear_param_store()


def test_a_step_returns_loss_and_terms_and_a_loss_that_is_not_finite_steps_no_parameter():
    vae = own_vae()
    with pyro.get_param_store().scope():
        optimizer = AdamUpdate(torch.optim.Adam(vae.parameters()))
        svi = CompiledSVI(vae.model, vae.guide, optimizer, build_elbo("trace", 2), "none")
        loss, terms = svi.step(X, beta=3.0)
        before = [parameter.detach().clone() for parameter in vae.parameters()]
        with pytest.raises(NotFiniteError):
            svi.step(X, beta=math.inf)
    assert loss.item() == pytest.approx((terms.distortion + 3 * terms.rate).mean().item())
    assert all(torch.equal(*pair) for pair in zip(before, vae.parameters()))


def test_a_distribution_of_torch_is_refused():
    wrong = own_vae(q_z=lambda one: torch.distributions.Independent(torch.distributions.Normal(one.loc, one.scale), 1))
    with pytest.raises(InputError, match=r"pyro\.distributions"):
        wrong.posterior(X)


def test_a_module_with_a_parameter_y_says_whether_y_are_labels():
    class OfLabels(Prior):
        def forward(self, y=None):
            return super().forward()

    vae = own_vae()
    with pytest.raises(InputError):
        pvae.VAE(OfLabels(lambda one: one.to_event(1)), vae.q_z, vae.p_x)
    OfLabels.takes_labels = True
    given = pvae.VAE(OfLabels(lambda one: one.to_event(1)), vae.q_z, vae.p_x).given(torch.zeros(1, 3))
    assert given.eval() is given  # and not the VAE without its labels
