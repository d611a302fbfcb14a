"""Pyro's losses equal the hand-written ones: same seed, float64, value and gradient of every parameter."""

from __future__ import annotations

import math
import warnings

import pyro
import pytest
import torch
from helpers.gradients import assert_same_gradients, value_and_gradients
from pyro.distributions import Normal
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormalMessenger
from torch.distributions import kl_divergence

from pvae.config.build import build_elbo
from pvae.core.errors import InputError
from pvae.core.tracing import register
from pvae.elbos.trace import AnalyticELBO, HandwrittenELBO, TraceELBO
from pvae.reference import elbo as reference_elbo

FORMS = [
    (Trace_ELBO, TraceELBO, reference_elbo.monte_carlo),
    (TraceMeanField_ELBO, AnalyticELBO, reference_elbo.closed_form),
]


@pytest.mark.parametrize("binary", [False, True], ids=["grey", "binary"])
@pytest.mark.parametrize("num_images", [10, 3], ids=["batch", "short batch"])
@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize(("plain", "ours", "by_hand"), FORMS, ids=["trace", "analytic"])
def test_pyro_equals_handwritten(small_vae, small_images, plain, ours, by_hand, num_particles, num_images, binary):
    vae, x = small_vae("static" if binary else "none"), small_images(num_images, binary)
    witness = value_and_gradients(vae, lambda: reference_elbo.loss(by_hand(vae, x, num_particles)))

    elbo = plain(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    pyros = value_and_gradients(vae, lambda: elbo.differentiable_loss(vae.model, vae.guide, x) / num_images)
    assert_same_gradients(pyros, witness)

    mine = value_and_gradients(vae, lambda: ours(num_particles).differentiable_loss(vae.model, vae.guide, x))
    assert_same_gradients(mine, witness)


def literal_loss(vae, x):
    """Post 004's loss in elementary operations: no distribution object, no code of the package but the networks."""
    loc, log_scale = vae.q_z.encoder(x).chunk(2, dim=1)
    noise = torch.randn(loc.shape, dtype=loc.dtype)
    z = loc + log_scale.exp() * noise
    logits = vae.p_x.decoder(z)
    log_p_x = x * torch.nn.functional.logsigmoid(logits) + (1 - x) * torch.nn.functional.logsigmoid(-logits)
    log_p_z = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    log_q_z = -0.5 * noise**2 - log_scale - 0.5 * math.log(2 * math.pi)
    return -(log_p_x.sum(dim=(1, 2, 3)) + log_p_z.sum(dim=1) - log_q_z.sum(dim=1)).mean()


@pytest.mark.parametrize("binary", [False, True], ids=["grey", "binary"])
@pytest.mark.parametrize("name", ["trace", "handwritten"])
def test_losses_equal_elementary_operations(small_vae, small_images, name, binary):
    """The distributions themselves are right: sums over pixels, a scale that is no variance."""
    vae, x = small_vae("static" if binary else "none"), small_images(10, binary)
    literal = value_and_gradients(vae, lambda: literal_loss(vae, x))
    elbo = build_elbo(name)
    assert_same_gradients(value_and_gradients(vae, lambda: elbo.differentiable_loss(vae.model, vae.guide, x)), literal)


@pytest.mark.parametrize("binary", [False, True], ids=["grey", "binary"])
def test_extreme_logits_keep_value_and_gradient(small_vae, small_images, binary):
    """A sigmoid before the Bernoulli would floor log p and kill the gradient here."""
    vae, x = small_vae("static" if binary else "none"), small_images(4, binary=True)
    vae.p_x.decoder = torch.nn.Unflatten(-1, (1, 5, 4))
    logits = torch.where(x.flatten(1) == 1, -50.0, 50.0).requires_grad_()
    log_prob = vae.likelihood(logits).log_prob(x)
    assert torch.allclose(log_prob, torch.full((4,), -20 * 50.0, dtype=torch.float64), rtol=1e-12)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert torch.allclose(gradient.abs(), torch.ones_like(gradient), rtol=1e-12)


def test_closed_form_kl_equals_elementary_operations(small_vae, small_images):
    vae, x = small_vae(), small_images(10)
    loc, log_scale = vae.q_z.encoder(x).chunk(2, dim=1)
    by_hand = -0.5 * (1 + 2 * log_scale - loc**2 - (2 * log_scale).exp()).sum(dim=1)
    assert torch.allclose(reference_elbo.closed_form(vae, x).rate, by_hand, rtol=1e-12)


@pytest.mark.parametrize("free_bits", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("name", ["trace", "analytic", "handwritten"])
def test_beta_and_free_bits_are_in_the_loss_and_not_in_the_terms(small_vae, small_images, name, beta, free_bits):
    """With rates below and above the free bits."""
    vae, x, found = small_vae(), small_images(7), []
    by_hand = reference_elbo.closed_form if name == "analytic" else reference_elbo.monte_carlo
    with torch.no_grad():
        vae.q_z.encoder[-1].bias[:3] = torch.tensor([1.5, 0.0, 0.1])

    def ours():
        loss, terms = build_elbo(name, 2, beta=beta, free_bits=free_bits).backward(vae.model, vae.guide, x)
        found.append(terms)
        return loss

    def theirs():
        found.append(by_hand(vae, x, 2))
        torch.manual_seed(7)
        q = vae.posterior(x)
        z = None if name == "analytic" else q.rsample((2,))
        rates = reference_elbo.rate_by_dimension(q, vae.prior(), z)
        assert rates.mean(0).min() < 0.2 < rates.mean(0).max()
        assert torch.allclose(rates.sum(1), found[-1].rate, rtol=1e-10)
        return reference_elbo.loss(found[-1], beta, free_bits, rates if free_bits else None)

    (value, gradients), witness = value_and_gradients(vae, ours), value_and_gradients(vae, theirs)
    assert value == pytest.approx(witness[0], rel=1e-10)
    for parameter, gradient in witness[1].items():  # zero, of the encoder's scale, where beta is 0
        assert torch.allclose(gradients[parameter], gradient, rtol=1e-9, atol=1e-13)
    for part in ("distortion", "rate"):
        assert torch.allclose(*(getattr(terms, part) for terms in found), rtol=1e-12)
    assert not found[0].rate.requires_grad


def test_three_parts_at_the_same_draws(small_vae, small_images):
    """Each part against the term that it stands for, exactly; the entropy through the closed-form cross entropy."""
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
    assert torch.allclose(exact_cross - parts.posterior_entropy, reference_elbo.closed_form(vae, x).rate, rtol=1e-10)
    assert torch.equal(parts.elbo, -parts.reconstruction_error + parts.posterior_entropy - parts.cross_entropy), (
        "the three parts do not add up to their ELBO"
    )


def test_handwritten_elbo_refuses_functions_of_no_vae(small_vae, small_images):
    vae, other = small_vae(), small_vae(seed=1)
    for model, guide in [(other.model, vae.guide), (lambda x: None, vae.guide)]:
        with pytest.raises(TypeError):
            HandwrittenELBO().differentiable_loss(model, guide, small_images(2))


class WithoutClosedForm(torch.nn.Module):
    """A Student prior: torch knows no KL of a Normal from it."""

    def forward(self):
        return pyro.distributions.StudentT(torch.full((3,), 5.0).double()).to_event(1)


def test_analytic_refuses_where_there_is_no_closed_form(small_vae, small_images):
    """Pyro would go on with a Monte Carlo estimate, silently."""
    vae, x = small_vae(), small_images(4)
    vae.p_z = WithoutClosedForm()
    assert TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x).isfinite()
    pyro.clear_param_store()
    with pytest.raises(InputError):
        AnalyticELBO().loss(vae.model, vae.guide, x)
    with pytest.raises(NotImplementedError):
        reference_elbo.closed_form(vae, x)
    assert TraceELBO().loss(vae.model, vae.guide, x) > 0


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


def test_recorded_terms_cover_every_site(small_images):
    """Two latents and two observed sites: what is recorded adds up to the loss, and the loss is Pyro's."""
    guide = normals(("z", 0.3, 0.7), ("w", -1.0, 0.5))
    model = normals(Z, ("w", 0.0, 2.0), X, ("y", lambda drawn: drawn["w"], 1.0))
    for plain, ours, _ in FORMS:
        assert_same_loss_as_pyros(model, guide, small_images(5), 3, plain, ours)


def _half(function):
    return pyro.poutine.scale(function, 0.5)


def _masked(function):
    return pyro.poutine.mask(function, mask=torch.tensor(False))


@pytest.mark.parametrize("name", ["trace", "analytic", "iwae", "score"])
@pytest.mark.parametrize("change", [_half, _masked])
def test_scaled_and_masked_sites_are_refused(small_vae, small_images, name, change):
    """Pyro would scale log-probabilities inside a logarithm of their sum, or one side of a KL."""
    vae, x = small_vae(), small_images(4)
    for model, guide in [(change(vae.model), vae.guide), (vae.model, change(vae.guide))]:
        with pyro.get_param_store().scope(), pytest.raises(ValueError, match="masked"):
            build_elbo(name, 2).differentiable_loss(model, guide, x)


def test_a_posterior_without_reparameterisation_needs_the_score_function(small_vae, small_images):
    vae, x = small_vae(), small_images(4)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            q = vae.posterior(x).base_dist
            pyro.sample("z", NonreparameterizedNormal(q.loc, q.scale).to_event(1))

    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for name in ("trace", "analytic", "iwae", "stl"):
            with pytest.raises(InputError):
                build_elbo(name).differentiable_loss(vae.model, guide, x)
        assert build_elbo("score").differentiable_loss(vae.model, guide, x).isfinite()
        normal = vae.q_z.forward
        vae.q_z.forward = lambda x: NonreparameterizedNormal(normal(x).mean, normal(x).stddev).to_event(1)
        with pytest.raises(InputError):
            build_elbo("handwritten").differentiable_loss(vae.model, vae.guide, x)


def test_sites_that_are_not_of_each_datum_are_refused(small_images):
    """A global latent, whose rate the batch would share; a site of the guide alone, whose log q is not counted."""

    def wide(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(z, 1.0), obs=data[:, 0, 0, 0].expand(7, -1))

    x = ("x", 0.0, 1.0)
    refused = [
        (normals(x, outside="w"), normals(outside="w")),
        (normals(Z, x), normals()),
        (normals(Z, x), normals(Z, ("extra", 0.0, 1.0))),
        (normals(Z), normals(Z)),
        (wide, normals(Z)),
    ]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own, which say as much
        TraceELBO().loss(normals(Z, x), normals(Z), small_images(5))
        for model, guide in refused:
            for num_particles in (1, 3):
                with pytest.raises(ValueError):  # noqa: PT011  # some by Pyro itself
                    TraceELBO(num_particles).loss(model, guide, small_images(5))


def assert_same_loss_as_pyros(model, guide, x, num_particles, plain=Trace_ELBO, ours=TraceELBO):
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        pyros = plain(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
        wanted = pyros.loss(model, guide, x) / len(x)
        torch.manual_seed(3)
        loss, terms = ours(num_particles).loss_and_terms(model, guide, x)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    assert reference_elbo.loss(terms).item() == pytest.approx(wanted, rel=1e-6)


def test_whoever_steps_by_pyros_svi_alone_is_warned_of_nan(small_images):
    with torch.random.fork_rng(), pytest.warns(UserWarning, match="NaN"):
        assert math.isnan(TraceELBO().loss(normals(Z, X), normals(("z", math.inf, 1.0)), small_images(5)))


@pytest.mark.parametrize("validates", [True, False])
def test_a_latent_whose_prior_depends_on_a_later_draw_has_no_closed_form(small_images, validates):
    """KL(q(w), p(w)) is the rate of w. That of z is the mean of log q - log p, because the guide draws w after z."""
    values = {}

    def guide(x):
        with pyro.plate("data", len(x)):
            values["z"] = pyro.sample("z", Normal(0.3, 0.7))
            values["w"] = pyro.sample("w", Normal(values["z"], 0.5))

    model = normals(("w", 0.0, 2.0), ("z", lambda drawn: drawn["w"], 1.0), X)
    with torch.random.fork_rng(), pyro.validation_enabled(validates):
        torch.manual_seed(0)
        _, terms = AnalyticELBO(3).loss_and_terms(model, guide, small_images(5))
    z, w = values["z"], values["w"]
    of_w = kl_divergence(Normal(z, 0.5), Normal(0.0, 2.0))
    rate = of_w + Normal(0.3, 0.7).log_prob(z) - Normal(w, 1.0).log_prob(z)
    assert torch.allclose(terms.rate, rate.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_guide_that_is_a_handler_gives_pyros_loss(small_images, num_particles):
    """Pyro's guides of this kind sample while the model runs."""
    model = normals(Z, X)
    assert_same_loss_as_pyros(model, AutoNormalMessenger(model), small_images(5), num_particles)


def test_parameters_have_the_names_that_pyro_gives_to_a_module_s(small_vae):
    vae = small_vae()
    stored = []
    for hand_over in (lambda: register("q_z", vae.q_z), lambda: pyro.module("q_z", vae.q_z)):
        with pyro.get_param_store().scope():
            hand_over()
            stored.append({name: id(parameter) for name, parameter in pyro.get_param_store().items()})
    assert len(stored[0]) == len(list(vae.q_z.parameters()))
    assert stored[0] == stored[1]
