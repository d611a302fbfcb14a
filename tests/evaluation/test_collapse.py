"""The rate of each latent, and collapse: ten planted collapses are found, and none in VAEs that use their latents."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import pvae
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.random_state import seeded
from pvae.evaluation.measures.latents import COLLAPSED, latents_used
from pvae.runs.run import Run, shown_data
from pvae.trained.scores import elbo_terms
from pvae.vae import VAE

D, L, N = 6, 3, 200


@pytest.fixture(scope="module")
def x():
    """Values in [0, 1] of two factors."""
    generator = torch.Generator().manual_seed(0)
    factors, loadings = (torch.randn(*size, generator=generator) for size in ((N, 2), (2, D)))
    return (2 * factors @ loadings).sigmoid()


def built(x=None, beta=1.0, steps=0, dead=False, **options):
    """A tiny VAE, trained by steps of Adam in plain torch; `dead` sets the decoder's first layer to 0 for good."""
    options = {"likelihood": "normal", "scale": 0.1, "hidden": (16,), "latent_dim": L, **options}
    with seeded(0):
        vae = build_vae(Config(**options), (D,))
        if dead:
            vae.p_x.decoder[0].weight.data.zero_()
            vae.p_x.decoder[0].weight.requires_grad_(False)
        optimiser = torch.optim.Adam([one for one in vae.parameters() if one.requires_grad], lr=0.01)
        for _ in range(steps):
            posterior, prior = vae.posterior(x), vae.prior()
            z = posterior.rsample()
            rate = posterior.log_prob(z) - prior.log_prob(z)
            optimiser.zero_grad()
            (beta * rate - vae.log_likelihood(x, z)).mean().backward()
            optimiser.step()
    return vae.eval()


@torch.no_grad()
def constant(vae, *outputs):
    """Let the encoder return the same for all data: these outputs, and zeros after them."""
    last = [one for one in vae.q_z.encoder.modules() if isinstance(one, nn.Linear)][-1]
    last.weight.zero_()
    last.bias.zero_()
    last.bias[: len(outputs)] = torch.tensor(outputs)
    return vae


@torch.no_grad()
def with_mixture(vae, loc):
    """Make all components of the prior the same Normal of scale 1."""
    vae.p_z.loc.copy_(torch.tensor(loc).expand_as(vae.p_z.loc))
    vae.p_z.log_scale.zero_()
    return vae


def by_hand():
    """A VAE of three modules, whose encoder ignores x, with a prior that is no N(0, I)."""

    class Constant(nn.Module):
        def forward(self, *given):
            shape = (len(given[0]), 2) if given else (2,)
            return dist.Normal(torch.full(shape, 3.0), torch.tensor([0.5, 2.0])).to_event(1)

    class Likelihood(nn.Module):
        def forward(self, z):
            return dist.Normal(z.mean(-1, keepdim=True).expand(*z.shape[:-1], D), 1.0).to_event(1)

    return VAE(Constant(), Constant(), Likelihood())


def found(vae, x):
    with seeded(1):
        total = elbo_terms(vae, x)["rate"].double().mean().item()
    state = torch.get_rng_state()
    used = latents_used(vae, Batch.of(x), total)
    assert torch.equal(state, torch.get_rng_state()), "it keeps the random state"
    return used, total


MIXTURE = {"prior": "mixture", "components": 4, "elbo": "trace"}
PLANTED = {  # those that are trained first
    "the decoder's first layer is 0": lambda x: built(x, steps=600, dead=True),
    "beta is 400": lambda x: built(x, beta=400.0, steps=600),
    "the scale is 19.8": lambda x: built(x, steps=600, scale=19.8),
    "the scale of a linear VAE is 19.8": lambda x: built(
        x, steps=600, network="linear", likelihood="normal-linear", scale=19.8
    ),
    "beta is 400, with a learned prior": lambda x: built(x, beta=400.0, steps=600, **MIXTURE),
    "beta is 400, for binary data": lambda x: built(x.round(), beta=400.0, steps=600, likelihood="bernoulli"),
    "the encoder's weights are 0": lambda x: constant(built()),
    "q is a mixture prior": lambda x: constant(with_mixture(built(**MIXTURE), [1.0, -2.0, 0.0]), 1.0, -2.0),
    "the encoder of a VampPrior ignores x": lambda x: constant(
        built(prior="vamp", components=4, elbo="trace"), 2.0, 0.3, -1.0, -0.5, 0.2
    ),
    "q is a prior of its own": lambda x: by_hand(),
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.workflow] * (place < 6)) for place, way in enumerate(PLANTED)]
)
def test_planted_collapse_is_found(x, way):
    used, total = found(PLANTED[way](x), x.round() if "binary" in way else x)
    assert used.is_collapsed, total
    assert used.used == 0
    assert max(map(abs, used.rates)) < COLLAPSED


HEALTHY = {
    "mlp": {},
    "linear": {"network": "linear", "likelihood": "normal-linear"},
    "learned prior": MIXTURE,
    "vamp": {"prior": "vamp", "components": 4, "elbo": "trace"},
    "bernoulli": {"likelihood": "bernoulli"},
}


@pytest.mark.workflow
@pytest.mark.parametrize("name", HEALTHY)
def test_no_collapse_is_found_where_latents_are_used(x, name):
    x = x.round() if name == "bernoulli" else x
    used, total = found(built(x, steps=300, **HEALTHY[name]), x)
    assert total > 0.5
    assert not used.is_collapsed
    assert used.num_latents == len(used.rates) == L
    assert used.used == sum(one > COLLAPSED for one in used.rates) >= 1
    if "prior" not in HEALTHY[name]:
        assert sum(used.rates) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["deep-bayes", "fashion-vae"])
def test_the_runs_that_come_with_pvae_use_their_latents(name):
    run = Run.open(name)
    data = run.preparation.x_of(shown_data(run, offline=True).test[:100])
    vae = pvae.load(name)
    used, total = found(vae, data)
    assert not used.is_collapsed
    assert used.num_latents == run.config.latent_dim
    assert 2 <= used.used <= used.num_latents
    assert sum(used.rates) == pytest.approx(total, rel=1e-5)


def test_the_rates_to_a_mixture_are_the_integrals():
    vae = with_mixture(built(**MIXTURE), [0.0, 0.0, 0.0])
    with torch.no_grad():
        vae.p_z.loc[:, :2] = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, -1.0]])
        vae.p_z.log_scale[:, 1] = torch.tensor([-1.0, 0.0, 0.5, 0.0])
        vae.p_z.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    x = torch.rand(5000, D, generator=torch.Generator().manual_seed(0))
    used, _ = found(constant(vae, -1.0, 0.5, 0.1, -0.7, 0.2, 0.0), x)
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)[:, None]
    q = Normal(torch.tensor([-1.0, 0.5, 0.1]).double(), torch.tensor([-0.7, 0.2, 0.0]).double().exp())
    each = Normal(vae.p_z.loc.double(), vae.p_z.log_scale.double().exp()).log_prob(z[:, None])
    ratio = q.log_prob(z) - (each + vae.p_z.logits.double().log_softmax(0)[:, None]).logsumexp(1)
    mass = q.log_prob(z).exp() * (z[1] - z[0])
    mean = (mass * ratio).sum(0)
    error = ((mass * (ratio - mean).square()).sum(0) / (10 * len(x))).sqrt()  # of ten draws for each datum
    assert (torch.tensor(used.rates) - mean).abs().le(4.3 * error + 1e-6).all()  # fails in 2e-5
    assert error.max() < 0.01


@pytest.mark.parametrize(
    "options",
    [{"posterior": "bernoulli", "prior": "bits"}, {"posterior": "categorical", "prior": "categories", "categories": 3}],
)
def test_the_rates_of_bits_and_of_categories_are_sums_over_their_values(x, options):
    vae = built(**{**options, "latent_dim": 6})
    vae.p_z.logits.data = torch.linspace(-1, 1, 6)
    q, p = vae.posterior(x), vae.prior()
    number, size = (6, 1) if options["posterior"] == "bernoulli" else (2, 3)
    found = latents_used(vae, Batch(x), 1.0)
    m, prior = (one.mean.detach().view(-1, number, size) for one in (q, p))
    expected = (m * (m / prior).log()).sum(-1)
    if size == 1:
        expected = expected + ((1 - m) * ((1 - m) / (1 - prior)).log()).sum(-1)
    assert found.rates == pytest.approx(expected.mean(0).tolist(), rel=1e-4)
    assert found.num_latents == number


def test_rates_given_labels_are_those_of_their_own_data():
    with seeded(0):
        vae = build_vae(Config(likelihood="normal", hidden=(8,), latent_dim=L, condition=True), (D,), 3).eval()
    x = torch.rand(9, D, generator=torch.Generator().manual_seed(0))
    y = torch.eye(3).repeat(3, 1)
    batch = Batch(x, y)
    total = elbo_terms(vae, batch)["rate"].mean().item()
    used = latents_used(vae, batch, total)
    assert used.num_latents == L
    assert sum(used.rates) == pytest.approx(total, rel=1e-5)
    assert sum(latents_used(vae, Batch(x, y.roll(1, 0)), total).rates) != pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"posterior": "planar"}, {"prior": "flow"}, {"upper_latent_dims": (2,), "upper_hidden": (8,)}], ids=str
)
def test_other_pairs_have_a_total_rate_alone(x, options):
    used, _ = found(built(**options, elbo="trace"), x)
    num_latents = L + sum(options.get("upper_latent_dims", ()))
    assert (used.num_latents, used.used, used.rates, used.is_collapsed) == (num_latents, None, (), False)


def test_a_vae_is_collapsed_below_a_hundredth_of_a_nat(x):
    assert latents_used(built(), Batch.of(x), 0.0099).is_collapsed
    assert not latents_used(built(), Batch.of(x), 0.0101).is_collapsed
    assert not latents_used(built(posterior="delta"), Batch.of(x), 0.0).is_collapsed, "an autoencoder"
