"""Gradients that follow the path through z, for guides of several sites, some of which depend on each other."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pvae.config.build import build_elbo
from pvae.core.errors import InputError
from pvae.elbos.bounds import WeightedELBO, Weights

# For each latent of the guide, those that its mean depends on; the names are not in the model's order.
GUIDES = {
    "independent": {"a": (), "b": (), "c": ()},
    "chain of two": {"b": (), "a": ("b",)},
    "chain of three": {"c": (), "a": ("c",), "b": ("c", "a")},
    "tree": {"b": (), "a": ("b",), "c": ("b",)},
}
PARTS = ("encoder", "between", "prior", "decoder")


class Sites(nn.Module):
    """Normal latents of two dimensions; the model's prior is a chain over them in alphabetical order."""

    def __init__(self, parents):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weights(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5)

        self.parents = parents
        self.encoder = nn.ParameterDict({name: weights(3, 4) for name in parents})
        self.between = nn.ParameterDict({f"{up}{name}": weights(2, 4) for name in parents for up in parents[name]})
        self.prior = nn.ParameterDict({name: weights(2, 2) for name in parents})
        self.decoder = nn.ParameterDict({name: weights(2, 3) for name in parents})

    def posterior(self, name, x, drawn):
        loc, log_scale = (x @ self.encoder[name]).chunk(2, -1)
        for up in self.parents[name]:
            more_loc, more_log_scale = (drawn[up].sin() @ self.between[up + name]).chunk(2, -1)
            loc, log_scale = loc + more_loc, log_scale + more_log_scale
        return dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1)

    def model(self, x):
        pyro.module("sites", self)
        before, loc = x.new_zeros(len(x), 2), 0.0
        with pyro.plate("data", x.shape[0]):
            for name in sorted(self.parents):
                before = pyro.sample(name, dist.Normal(before @ self.prior[name], 1.0).to_event(1))
                loc = loc + before.tanh() @ self.decoder[name]
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("sites", self)
        drawn = {}
        with pyro.plate("data", x.shape[0]):
            for name in self.parents:
                drawn[name] = pyro.sample(name, self.posterior(name, x, drawn))


def gradients(sites, x, elbo, seed, of=("encoder", "between")):
    """The gradient of each parameter of the guide, or of another part, as one vector."""
    sites.zero_grad()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        elbo.loss_and_grads(sites.model, sites.guide, x)
    parameters = [p for part in of for name, p in sites.named_parameters() if name.partition(".")[0] == part]
    return torch.cat([one.grad.flatten() for one in parameters])


def test_the_mean_gradient_of_dreg_is_that_of_iwae():
    """By the guide, over 160,000 draws at the same noise: within 4.8 standard errors in each of 60 entries.

    By chance it fails once in 10,000 times; an error of 6 % of the largest entry would be seen. By prior and decoder
    the two are equal.
    """
    sites = Sites(GUIDES["chain of three"])
    x = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64).expand(4000, 3)
    elbos = [build_elbo(name, 4) for name in ("dreg", "iwae")]
    pairs = [[gradients(sites, x, elbo, seed, of=PARTS) for elbo in elbos] for seed in range(40)]
    num_guide = sum(one.numel() for one in (*sites.encoder.values(), *sites.between.values()))
    dreg, iwae = (torch.stack(one) for one in zip(*pairs))
    difference = (dreg - iwae)[:, :num_guide]
    error = difference.std(0) / len(difference) ** 0.5
    largest = iwae[0, :num_guide].abs().max()
    assert 4.8 * error.max() < 0.06 * largest, "this sample could not have seen an error of 6 %"
    assert difference.abs().max() > 1e-3 * largest, "the two estimators are the same"
    assert (difference.mean(0).abs() < 4.8 * error + 1e-12).all()
    torch.testing.assert_close(dreg[:, num_guide:], iwae[:, num_guide:], rtol=1e-10, atol=1e-12)


class AnyWeights(WeightedELBO):
    """Weights that no bound has, of 4 draws for each of 5 data, and a rate with the weight 3."""

    def __init__(self):
        super().__init__(4)
        self.beta = 3.0
        generator = torch.Generator().manual_seed(2)
        self.each = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)

    def weights(self, log_w):
        return Weights(log_w.mean(0), *self.each)


def by_definition(sites, x, noise, weights_of, beta):
    """Every gradient of the loss by the definition of `WeightedELBO`, as one vector.

    The gradient by all draws is taken at fixed parameters, and then the chain rule is applied.
    """
    drawn = {}
    for name in sites.parents:
        q = sites.posterior(name, x, drawn).base_dist
        drawn[name] = q.loc + q.scale * noise[name]
    at = {name: z.detach().requires_grad_() for name, z in drawn.items()}
    log_p_z, loc, before = 0.0, 0.0, torch.zeros(2, dtype=torch.float64)
    for name in sorted(at):
        log_p_z = log_p_z + dist.Normal(before @ sites.prior[name], 1.0).to_event(1).log_prob(at[name])
        before = at[name]
        loc = loc + before.tanh() @ sites.decoder[name]
    log_p = dist.Normal(loc, 0.5).to_event(1).log_prob(x) + beta * log_p_z
    log_q = sum(sites.posterior(name, x, at).log_prob(at[name]) for name in at)
    log_w = log_p - beta * log_q
    model, score, path = weights_of(log_w.detach())
    parameters = [p for part in PARTS for name, p in sites.named_parameters() if name.startswith(part)]
    direct = -(model * log_p + score * log_q).sum(0).mean()
    by_parameters = torch.autograd.grad(direct, parameters, retain_graph=True, materialize_grads=True)
    by_z = torch.autograd.grad(-(path * log_w).sum(0).mean(), [*at.values()])
    through = torch.autograd.grad([*drawn.values()], parameters, by_z, materialize_grads=True)
    return torch.cat([(one + other).flatten() for one, other in zip(by_parameters, through)])


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", ["dreg", "stl", "piwae", "any weights"])
def test_several_sites_equal_the_definition(guide, name):
    sites = Sites(GUIDES[guide])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        noise = {one: torch.randn(4, 5, 2, dtype=torch.float64) for one in sites.parents}
    every = torch.ones(4, 5, dtype=torch.float64)
    any_weights = AnyWeights()
    weights_of = {
        "dreg": lambda log_w: (log_w.softmax(0), 0 * every, log_w.softmax(0).square()),
        "stl": lambda log_w: (every / 4, 0 * every, every / 4),
        "piwae": lambda log_w: (log_w.softmax(0), -every / 4, every / 4),
        "any weights": lambda log_w: any_weights.each,
    }[name]
    elbo = any_weights if name == "any weights" else build_elbo(name, 4, **({"groups": 4} if name == "piwae" else {}))
    ours = gradients(sites, x, elbo, 3, of=PARTS)
    theirs = by_definition(sites, x, noise, weights_of, any_weights.beta if name == "any weights" else 1.0)
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_a_guide_that_runs_inside_the_model_is_refused():
    """Pyro's guide messengers give model and guide one tensor, so that their gradients cannot be told apart.

    The value of the bound needs no gradient.
    """

    class Inside(pyro.poutine.guide.GuideMessenger):
        def get_posterior(self, name, prior):
            return dist.Normal(torch.zeros(*prior.batch_shape, 2, dtype=torch.float64), 1.0).to_event(1)

    sites = Sites(GUIDES["chain of two"])
    x = torch.zeros(5, 3, dtype=torch.float64)
    values = []
    for name in ("iwae", "dreg"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            values.append(build_elbo(name, 2).loss(sites.model, Inside(sites.model), x))
    assert values[1] == pytest.approx(values[0], rel=1e-12)
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match="guide"):
        build_elbo("dreg", 2).loss_and_grads(sites.model, Inside(sites.model), x)


def test_a_draw_without_parameters_is_taken():
    """Some sites of a guide may have nothing to train."""
    sites = Sites(GUIDES["tree"])
    sites.encoder["b"].requires_grad_(False)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    every = Sites(GUIDES["tree"])
    gradients(every, x, build_elbo("dreg", 4), 3)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        build_elbo("dreg", 4).loss_and_grads(sites.model, sites.guide, x)
    for name, one in sites.named_parameters():
        if one.requires_grad:
            assert torch.allclose(one.grad, every.get_parameter(name).grad, rtol=1e-12)


class OneLatent(nn.Module):
    """A latent of one dimension, perhaps with a learned prior; the event of its site has 0, 1 or 2 dimensions."""

    def __init__(self, event_dim, family=dist.Normal, is_learned=True):
        super().__init__()
        self.loc, self.scale = (nn.Parameter(torch.tensor([0.2, 0.4], dtype=torch.float64)) for _ in range(2))
        self.prior = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=is_learned)
        self.shape, self.family = (1,) * event_dim, family

    def site(self, family, loc, scale):
        return family(loc.reshape(-1, *self.shape), scale.reshape(-1, *self.shape)).to_event(len(self.shape))

    def model(self, x):
        pyro.module("one", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.site(dist.Normal, self.prior[0], self.prior[1].exp()))
            pyro.sample("x", dist.Normal(z.reshape(*z.shape[: z.dim() - len(self.shape)], 1), 0.7).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("one", self)
        loc, scale = (x * one[0] + one[1] for one in (self.loc, self.scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.site(self.family, loc[:, 0], scale[:, 0].exp()))


@pytest.mark.filterwarnings("ignore:prior was not registered")
@pytest.mark.parametrize("is_learned", [False, True])
@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_the_shape_of_the_event_changes_nothing(name, num_particles, is_learned):
    """At the same draws, a scalar, a vector of one value and a matrix of one value have the same gradients."""
    x, found = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None], []
    for event_dim in range(3):
        one = OneLatent(event_dim, is_learned=is_learned)
        elbo = build_elbo(name, num_particles)
        found.append(gradients(one, x, elbo, 0, of=("loc", "scale", *["prior"] * is_learned)))
    assert found[0].abs().min() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["stl", "dreg"])
@pytest.mark.parametrize("posterior", [lambda loc, scale: dist.Uniform(loc, loc + 1 + scale), dist.Pareto])
def test_a_posterior_whose_support_depends_on_parameters_is_refused(name, posterior):
    one = OneLatent(0, lambda loc, scale: posterior(loc.exp(), scale))
    with pytest.raises(InputError):
        gradients(one, torch.linspace(0.1, 1, 7, dtype=torch.float64)[:, None], build_elbo(name, 4), 0)
