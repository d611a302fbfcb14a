"""Every ELBO equals the one written by hand, and Pyro's own: at one seed, in float64, in value and every gradient."""

from __future__ import annotations

import copy
import math
import warnings

import pyro
import pytest
import torch
from helpers.gradients import assert_same_gradients, value_and_gradients
from helpers.svi import ELBOS
from pyro.distributions import Laplace, Normal, StudentT
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormalMessenger
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.functional import logsigmoid

from pvae.config.build import build_elbo, build_vae, elbo_of
from pvae.config.config import OPTIONS, Config
from pvae.core.batch import Terms
from pvae.core.errors import InputError
from pvae.core.options import arguments_of
from pvae.core.tracing import register
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.trace import AnalyticELBO, HandwrittenELBO, TraceELBO
from pvae.models.posteriors import Posterior, bounded_normal
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
FAMILIES = {
    **{"-".join(pair): dict(zip(("posterior", "prior"), pair)) for pair in PAIRS},
    **{name: options for name, (options, _) in HIERARCHIES.items()},
}
BOUNDS = {  # the options of an estimator, and its bound
    "trace": ({}, bounds.elbo),
    "handwritten": ({}, bounds.elbo),
    "iwae": ({}, bounds.iwae),
    "renyi": ({"alpha": 0.3}, lambda log_w: bounds.renyi(log_w, 0.3)),
    "ciwae": ({"mix": 0.2}, lambda log_w: bounds.ciwae(log_w, 0.2)),
    "miwae": ({"groups": 2}, lambda log_w: bounds.miwae(log_w, 2)),
}
GRADIENTS = {  # and the bound, whose value they do not change
    "stl": ({}, bounds.elbo, bounds.stl_gradients),
    "dreg": ({}, bounds.iwae, bounds.dreg_gradients),
    "piwae": ({"groups": 2}, bounds.iwae, lambda *given: bounds.piwae_gradients(*given, 2)),
    "score": ({}, bounds.elbo, bounds.score_gradients),
    "score-loo": ({}, bounds.elbo, lambda *given: bounds.score_gradients(*given, leave_one_out=True)),
    "vimco": ({}, bounds.iwae, bounds.vimco_gradients),
}
COMPARED = [name for name in ELBOS if name in {"analytic", *BOUNDS, *GRADIENTS}]  # written by hand in `pvae.reference`


def config_of(posterior="normal", prior="standard-normal", elbo="trace", **rest):
    least = PerDatumELBO.members[elbo].least_particles
    return Config(
        latent_dim=3, hidden=(8,), posterior=posterior, prior=prior, components=5, elbo=elbo, particles=least,
        flow_hidden=(7,), **rest,
    )  # fmt: skip


def vae_of(**options):
    """A VAE in float64 whose prior and flow have moved from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(config_of(**options), SHAPE).double()
        for parameter in (*vae.p_z.parameters(), *getattr(vae.q_z, "transforms", nn.Module()).parameters()):
            parameter.data += 0.1 * torch.rand_like(parameter)
    return vae


@pytest.fixture
def x():
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def with_laplace():
    """A VAE of a posterior that is no class of pvae: what is held fixed is whatever parameters it has."""
    vae = vae_of()
    normal = vae.q_z.forward
    vae.q_z.forward = lambda x: Laplace(normal(x).base_dist.loc, normal(x).base_dist.scale).to_event(1)
    return vae


def closed_form(family, vae, x, particles):
    """The terms of "analytic", by hand; None where no site has a closed form."""
    if family not in HIERARCHIES:
        pair = (FAMILIES[family]["posterior"], FAMILIES[family]["prior"])
        return reference_elbo.closed_form(vae, x, particles) if pair in CLOSED else None
    are_closed = HIERARCHIES[family][1]
    posterior, prior = vae.posterior(x), vae.prior()
    z = posterior.rsample((particles,))
    rate = 0.0
    for (one, q), (_, p), is_closed in zip(posterior.conditionals(z), prior.conditionals(z), are_closed):
        of_layer = kl_divergence(q, p) if is_closed else q.log_prob(one) - p.log_prob(one)
        rate = rate + of_layer.expand(particles, -1).mean(0)
    return Terms(-vae.likelihood(z).log_prob(x).mean(0), rate) if any(are_closed) else None


def by_hand(vae, x, bound, particles=K):
    return value_and_gradients(vae, lambda: -bound(bounds.log_weights(vae, x, particles)).mean())


def ours(vae, x, name, particles=K, **options):
    elbo = build_elbo(name, particles, **options)
    return value_and_gradients(vae, lambda: elbo.backward(vae.model, vae.guide, x).loss.double())


def assert_is_the_handwritten(vae, name, x, particles=K):
    if name in BOUNDS:
        options, bound = BOUNDS[name]
        wanted = by_hand(vae, x, bound, particles)
    else:
        options, bound, gradients_of = GRADIENTS[name]
        with torch.random.fork_rng():
            torch.manual_seed(7)
            gradients = gradients_of(vae, x, particles)
        wanted = by_hand(vae, x, bound, particles)[0], gradients
    found = ours(vae, x, name, particles, **options)
    assert_same_gradients(found, wanted)
    assert len(found[1]) == len(list(vae.parameters())), "every parameter has a gradient"


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_estimator_equals_the_handwritten_in_value_and_every_gradient(family, name, x):
    vae = vae_of(**FAMILIES[family])
    if name in ("dreg", "piwae"):
        vae.eval()  # with the statistics of a batch, BatchNorm makes a weight depend on other draws, which they refuse
    if name != "analytic":
        assert_is_the_handwritten(vae, name, x)
    elif closed_form(family, vae, x, K):
        wanted = value_and_gradients(vae, lambda: reference_elbo.loss(closed_form(family, vae, x, K)))
        assert_same_gradients(ours(vae, x, name), wanted)
    else:
        with pytest.raises(InputError):
            ours(vae, x, name)


@pytest.mark.parametrize("name", [name for name in COMPARED if name not in ("analytic", "miwae", "piwae")])
def test_so_does_each_with_the_fewest_particles_and_of_a_posterior_of_ones_own(name, x):
    assert_is_the_handwritten(vae_of(), name, x, PerDatumELBO.members[name].least_particles)
    assert_is_the_handwritten(with_laplace(), name, x)


@pytest.mark.parametrize(
    ("name", "options", "bound"),
    [
        ("renyi", {"alpha": 1.0}, bounds.elbo),
        ("renyi", {"alpha": 0.0}, bounds.iwae),
        ("renyi", {"alpha": 2.0}, lambda log_w: bounds.renyi(log_w, 2.0)),
        ("renyi", {"alpha": -math.inf}, lambda log_w: log_w.max(0).values),
        ("ciwae", {"mix": 1.0}, bounds.elbo),
        ("ciwae", {"mix": 0.0}, bounds.iwae),
        ("miwae", {"groups": 4}, bounds.elbo),
        ("miwae", {"groups": 1}, bounds.iwae),
        ("piwae", {"groups": 1}, bounds.iwae),
    ],
)
def test_the_ends_of_each_family(name, options, bound, x):
    vae = vae_of()
    values = [by_hand(vae, x, one)[0] for one in (bounds.elbo, bounds.iwae, lambda log_w: log_w.max(0).values)]
    assert values[0] - 0.01 > values[1] > values[2] + 0.01, "they must differ for their ends to say anything"
    assert_same_gradients(ours(vae, x, name, **options), by_hand(vae, x, bound))


@pytest.mark.parametrize("alpha", [1 - 1e-6, 1 + 1e-6, -1e6])
def test_near_its_ends_renyi_does_not_cancel(alpha, x):
    vae = vae_of().float()
    end = 1.0 if alpha > 0 else -math.inf
    near, exact = (ours(vae, x.float(), "renyi", alpha=one)[0] for one in (alpha, end))
    assert near == pytest.approx(exact, rel=1e-5)


def test_a_group_whose_weight_is_zero_in_float32_trains_the_encoder(x):
    """The encoder of PIWAE has the weights of each group alone, also where those of all draws are 0 but for one."""
    vae, x = vae_of().float(), x.float()
    with torch.no_grad():
        for parameter in vae.p_x.parameters():
            parameter.mul_(300)
        log_w = bounds.log_weights(vae, x, 4)
    assert (log_w.unflatten(0, (2, 2)).logsumexp(1).softmax(0) == 0).any(), "no group has a weight of 0"
    piwae, miwae = (ours(vae, x, name, groups=2)[1] for name in ("piwae", "miwae"))
    for name, gradient in miwae.items():
        if name.startswith("q_z"):
            assert (piwae[name] - gradient).norm() < 1e-5 * gradient.norm(), name


# --- Pyro's own -------------------------------------------------------------------------------------------------------

VECTORISED = {"vectorize_particles": True, "max_plate_nesting": 1}
PYROS = [
    *[(name, {}, kind, {"num_particles": K, **VECTORISED}) for name, kind in (
        ("trace", Trace_ELBO), ("analytic", TraceMeanField_ELBO))],
    *[("renyi", {"alpha": alpha}, RenyiELBO, {"alpha": alpha, "num_particles": K, **VECTORISED})
      for alpha in (-1.0, 0.0, 0.5, 2.0)],
    ("score", {}, Trace_ELBO, {}),  # where a guide's distribution cannot be reparameterised
    ("score", {}, TraceGraph_ELBO, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "kind", "of_pyro"), PYROS)
def test_pyros_own_are_the_same(name, options, kind, of_pyro, x):
    """They sum over the batch."""
    vae, pyros = vae_of(), kind(**of_pyro)

    def score_guide(x):
        register("q_z", vae.q_z)
        q = vae.posterior(x).base_dist
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", NonreparameterizedNormal(q.loc, q.scale).to_event(1))

    def loss():
        guide = score_guide if name == "score" else vae.guide
        return torch.tensor(pyros.loss_and_grads(vae.model, guide, x), dtype=x.dtype)

    value, gradients = value_and_gradients(vae, loss)
    theirs = value / len(x), {name: gradient / len(x) for name, gradient in gradients.items()}
    assert_same_gradients(ours(vae, x, name, of_pyro.get("num_particles", 1), **options), theirs)


def normals(*given, outside=()):
    """A function of x with Normal sites (name, loc, scale); loc may be a function of the draws, and "x" is observed."""

    def run(x):
        drawn = {}
        for name in outside:
            pyro.sample(name, Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            for name, loc, scale in given:
                observed = {"x": x[:, 0, 0, 0], "y": x[:, 0, 0, 1]}.get(name)
                p = Normal(loc(drawn) if callable(loc) else loc, scale)
                drawn[name] = pyro.sample(name, p, obs=observed)

    return run


Z, X = ("z", 0.0, 1.0), ("x", lambda drawn: drawn["z"], 1.0)
TWO = normals(Z, ("w", 0.0, 2.0), X, ("y", lambda drawn: drawn["w"], 1.0))
GUIDE_OF_TWO = normals(("z", 0.3, 0.7), ("w", -1.0, 0.5))
SITES = {
    "several sites": (TWO, GUIDE_OF_TWO, Trace_ELBO, TraceELBO),
    "closed forms": (TWO, GUIDE_OF_TWO, TraceMeanField_ELBO, AnalyticELBO),
    "a guide that samples while the model runs": (normals(Z, X), None, Trace_ELBO, TraceELBO),
}


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(("model", "guide", "plain", "kind"), SITES.values(), ids=SITES)
def test_the_terms_of_all_sites_add_up_to_pyros_loss(model, guide, plain, kind, num_particles, x):
    guide = guide or AutoNormalMessenger(model)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        wanted = plain(num_particles=num_particles, **VECTORISED).loss(model, guide, x) / len(x)
        torch.manual_seed(3)
        loss, terms = kind(num_particles).loss_and_terms(model, guide, x)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    assert reference_elbo.loss(terms).item() == pytest.approx(wanted, rel=1e-6)


# --- the definition ---------------------------------------------------------------------------------------------------


def literal_loss(vae, x):
    """Post 004's loss in elementary operations: no distribution object, no code of the package but the networks."""
    loc, log_scale = vae.q_z.encoder(x).chunk(2, dim=1)
    noise = torch.randn(loc.shape, dtype=loc.dtype)
    z = loc + log_scale.exp() * noise
    logits = vae.p_x.decoder(z)
    log_p_x = x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)
    log_p_z = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    log_q_z = -0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi)
    return -(log_p_x.sum(dim=(1, 2, 3)) + log_p_z.sum(dim=1) - log_q_z.sum(dim=1)).mean()


@pytest.mark.parametrize("binary", [False, True], ids=["grey", "binary"])
@pytest.mark.parametrize("name", ["trace", "handwritten"])
def test_losses_equal_elementary_operations(small_vae, small_images, name, binary):
    """The distributions themselves are right: sums over pixels, a scale that is no variance."""
    vae, x = small_vae("static" if binary else "none"), small_images(10, binary)
    assert_same_gradients(ours(vae, x, name, 1), value_and_gradients(vae, lambda: literal_loss(vae, x)))


@pytest.mark.parametrize("free_bits", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("name", ["trace", "analytic", "handwritten"])
def test_beta_and_free_bits_are_in_the_loss_and_not_in_the_terms(small_vae, small_images, name, beta, free_bits):
    """With rates below and above the free bits."""
    vae, x, found = small_vae(), small_images(7), []
    terms_of = reference_elbo.closed_form if name == "analytic" else reference_elbo.monte_carlo
    with torch.no_grad():
        vae.q_z.encoder[-1].bias[:3] = torch.tensor([1.5, 0.0, 0.1])

    def loss():
        loss, terms = build_elbo(name, 2, beta=beta, free_bits=free_bits).backward(vae.model, vae.guide, x)
        found.append(terms)
        return loss

    def theirs():
        found.append(terms_of(vae, x, 2))
        torch.manual_seed(7)
        q = vae.posterior(x)
        rates = reference_elbo.rate_by_dimension(q, vae.prior(), None if name == "analytic" else q.rsample((2,)))
        assert rates.mean(0).min() < 0.2 < rates.mean(0).max()
        assert torch.allclose(rates.sum(1), found[-1].rate, rtol=1e-10)
        return reference_elbo.loss(found[-1], beta, free_bits, rates if free_bits else None)

    (value, gradients), witness = value_and_gradients(vae, loss), value_and_gradients(vae, theirs)
    assert value == pytest.approx(witness[0], rel=1e-10)
    for parameter, gradient in witness[1].items():  # zero, of the encoder's scale, where beta is 0
        assert torch.allclose(gradients[parameter], gradient, rtol=1e-9, atol=1e-13)
    for part in ("distortion", "rate"):
        assert torch.allclose(*(getattr(terms, part) for terms in found), rtol=1e-12)
    assert not found[0].rate.requires_grad


def test_three_parts_at_the_same_draws(small_vae, small_images):
    """Each part against the term that it stands for, exactly; the closed form is their exact cross entropy."""
    vae, x = small_vae(), small_images(6)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        parts = reference_elbo.three_parts(vae, x, 4)
        torch.manual_seed(5)
        z = vae.posterior(x).rsample((4,))
    posterior = vae.posterior(x).base_dist
    exact_cross = 0.5 * (math.log(2 * math.pi) + posterior.loc**2 + posterior.scale**2).sum(-1)
    exact_entropy = (0.5 * math.log(2 * math.pi * math.e) + posterior.scale.log()).sum(-1)
    assert torch.allclose(parts.reconstruction_error, -vae.likelihood(z).log_prob(x).mean(0), rtol=1e-12)
    assert torch.allclose(parts.posterior_entropy, exact_entropy, rtol=1e-12)
    assert torch.allclose(parts.cross_entropy, (0.5 * math.log(2 * math.pi) + 0.5 * z**2).sum(-1).mean(0), rtol=1e-12)
    assert torch.allclose(exact_cross - exact_entropy, reference_elbo.closed_form(vae, x).rate, rtol=1e-10)
    assert torch.equal(parts.elbo, -parts.reconstruction_error + parts.posterior_entropy - parts.cross_entropy)


@pytest.mark.parametrize("validates", [True, False])
def test_a_latent_whose_prior_depends_on_a_later_draw_has_no_closed_form(x, validates):
    """KL(q(w), p(w)) is the rate of w. That of z is the mean of log q - log p, because the guide draws w after z."""
    values = {}

    def guide(x):
        with pyro.plate("data", len(x)):
            values["z"] = pyro.sample("z", Normal(0.3, 0.7))
            values["w"] = pyro.sample("w", Normal(values["z"], 0.5))

    model = normals(("w", 0.0, 2.0), ("z", lambda drawn: drawn["w"], 1.0), X)
    with torch.random.fork_rng(), pyro.validation_enabled(validates):
        torch.manual_seed(0)
        _, terms = AnalyticELBO(3).loss_and_terms(model, guide, x)
    z, w = values["z"], values["w"]
    of_w = kl_divergence(Normal(z, 0.5), Normal(0.0, 2.0))
    rate = of_w + Normal(0.3, 0.7).log_prob(z) - Normal(w, 1.0).log_prob(z)
    assert torch.allclose(terms.rate, rate.mean(0), rtol=1e-6, atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_handwritten_elbo_refuses_functions_of_no_vae(small_vae, small_images):
    vae, other = small_vae(), small_vae(seed=1)
    for model, guide in [(other.model, vae.guide), (lambda x: None, vae.guide)]:
        with pytest.raises(TypeError):
            HandwrittenELBO().differentiable_loss(model, guide, small_images(2))


def test_analytic_refuses_where_there_is_no_closed_form(small_vae, small_images):
    """Pyro would go on with a Monte Carlo estimate, silently; torch knows no KL of a Normal from a Student t."""
    vae, x = small_vae(), small_images(4)
    vae.p_z.forward = lambda: StudentT(torch.full((3,), 5.0).double()).to_event(1)
    assert TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x).isfinite()
    pyro.clear_param_store()
    with pytest.raises(InputError):
        AnalyticELBO().loss(vae.model, vae.guide, x)
    with pytest.raises(NotImplementedError):
        reference_elbo.closed_form(vae, x)
    assert TraceELBO().loss(vae.model, vae.guide, x) > 0


CHANGES = {
    "scaled": lambda function: pyro.poutine.scale(function, 0.5),
    "masked": lambda function: pyro.poutine.mask(function, mask=torch.tensor(False)),
}


@pytest.mark.parametrize("name", ["trace", "analytic", "iwae", "score"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_scaled_and_masked_sites_are_refused(small_vae, small_images, name, change):
    """Pyro would scale log-probabilities inside a logarithm of their sum, or one side of a KL."""
    vae, x = small_vae(), small_images(4)
    for model, guide in [(change(vae.model), vae.guide), (vae.model, change(vae.guide))]:
        with pyro.get_param_store().scope(), pytest.raises(ValueError, match="masked"):
            build_elbo(name, 2).differentiable_loss(model, guide, x)


def test_a_posterior_without_reparameterisation_needs_the_score_function(small_vae, small_images):
    vae, x = small_vae(), small_images(4)
    normal = vae.q_z.forward
    vae.q_z.forward = lambda x: NonreparameterizedNormal(normal(x).mean, normal(x).stddev).to_event(1)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for name in ("trace", "analytic", "iwae", "stl", "handwritten"):
            with pytest.raises(InputError):
                build_elbo(name).differentiable_loss(vae.model, vae.guide, x)
        assert build_elbo("score").differentiable_loss(vae.model, vae.guide, x).isfinite()


def test_sites_that_are_not_of_each_datum_are_refused(x):
    """A global latent, whose rate the batch would share; a site of the guide alone, whose log q is not counted."""

    def wide(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=data[:, 0, 0, 0].expand(7, -1))

    of_x = ("x", 0.0, 1.0)
    refused = [
        (normals(of_x, outside="w"), normals(outside="w")),
        (normals(Z, of_x), normals()),
        (normals(Z, of_x), normals(Z, ("extra", 0.0, 1.0))),
        (normals(Z), normals(Z)),
        (wide, normals(Z)),
    ]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own, which say as much
        TraceELBO().loss(normals(Z, of_x), normals(Z), x)
        for model, guide in refused:
            for num_particles in (1, 3):
                with pytest.raises(ValueError):  # noqa: PT011  # some by Pyro itself
                    TraceELBO(num_particles).loss(model, guide, x)


def test_whoever_steps_by_pyros_svi_alone_is_warned_of_nan(x):
    with torch.random.fork_rng(), pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(TraceELBO().loss(normals(Z, X), normals(("z", math.inf, 1.0)), x))


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


# --- modules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_a_vae_is_saved_copied_and_converted_whole(options, x):
    vae = vae_of(**options)
    again = build_vae(config_of(**options), SHAPE).double()
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
        has_own_encoder = torch.equal(moved, other.prior().log_prob(z))
        assert has_own_encoder == (options.get("prior") != "vamp")


def test_parameters_have_the_names_that_pyro_gives_to_a_module_s(small_vae):
    vae = small_vae()
    stored = []
    for hand_over in (lambda: register("q_z", vae.q_z), lambda: pyro.module("q_z", vae.q_z)):
        with pyro.get_param_store().scope():
            hand_over()
            stored.append({name: id(parameter) for name, parameter in pyro.get_param_store().items()})
    assert len(stored[0]) == len(list(vae.q_z.parameters()))
    assert stored[0] == stored[1]


@pytest.mark.parametrize("log_variance", [False, True])
@pytest.mark.parametrize("size", [200.0, 1e30])
def test_a_scale_neither_vanishes_nor_overflows(size, log_variance):
    """In float32 exp(-104) is 0 and exp(89) infinite: a network trained together with its prior gives such outputs."""
    parameters = torch.tensor([[0.5, -0.5, -size, size]], requires_grad=True)
    q = bounded_normal(parameters, log_variance)
    log_prob = q.log_prob(q.rsample((5,)))
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert torch.isfinite(parameters.grad).all()
    ordinary = torch.tensor([[0.5, -0.5, -3.0, 2.0]])
    scale = (0.5 * ordinary if log_variance else ordinary)[:, 2:].exp()
    assert torch.equal(bounded_normal(ordinary, log_variance).base_dist.scale, scale)
