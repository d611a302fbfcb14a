"""Estimators of bits and categories beside the same by hand, and beside exact gradients: of 12 bits, and of 200."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.fixed import Fixed
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.distributions.discrete import OneHotVector, codes
from pvae.elbos.bounds import LeaveOneOutScoreELBO, ScoreELBO
from pvae.elbos.discrete import (
    ARMS,
    VIMCO,
    CategoricalDisARM,
    DisARM,
    GumbelSoftmax,
    StraightThrough,
    antithetic,
    correlation,
)
from pvae.elbos.trace import AnalyticELBO, HandwrittenELBO, TraceELBO
from pvae.marginal.log_likelihood import log_likelihood
from pvae.models.likelihoods import LinearNormalLikelihood
from pvae.models.posteriors import LevelsPosterior, QuantizedPosterior, bits
from pvae.models.priors import BernoulliPrior, CategoricalPrior, CodebookPrior
from pvae.reference import bounds
from pvae.reference import discrete as exact
from pvae.vae import VAE

D = 10


class Codes(nn.Module):
    """q(z | x) of logits that are parameters, one row for each datum, so that each row has a gradient of its own."""

    def __init__(self, logits, classes):
        super().__init__()
        self.logits, self.classes = nn.Parameter(logits), classes

    def forward(self, x):
        logits = self.logits[: len(x)]
        return OneHotVector(logits, self.classes) if self.classes > 1 else bits(logits)


def vae_of(num_bits, copies=1, scale=1.5, spread=1.0, classes=1):
    """A linear decoder, so that both oracles hold, and `copies` equal data; bits, or variables of some classes."""
    draw = torch.Generator().manual_seed(num_bits)
    logits = spread * torch.randn(num_bits, generator=draw, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(num_bits, D), nn.Unflatten(-1, (D,))).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.randn(D, num_bits, generator=draw) / math.sqrt(num_bits / 4))
        network[0].bias.copy_(torch.randn(D, generator=draw))
    prior = (CategoricalPrior(num_bits, classes) if classes > 1 else BernoulliPrior(num_bits)).double()
    with torch.no_grad():
        prior.logits.copy_(torch.randn(num_bits, generator=draw))
    vae = VAE(prior, Codes(logits.repeat(copies, 1), classes), LinearNormalLikelihood(network, (D,), scale=scale))
    return vae, torch.randn(1, D, generator=draw, dtype=torch.float64).repeat(copies, 1)


def gradient_of(elbo, vae, x, seed=0):
    """The value, and the gradient of the loss of each datum by its logits, and by the decoder of all."""
    vae.zero_grad()
    with seeded(seed), pyro.get_param_store().scope():
        loss, terms = elbo.loss_and_terms(vae.model, vae.guide, x)
        loss.backward()
    return loss.detach(), terms, len(x) * vae.q_z.logits.grad, vae.p_x.decoder[0].weight.grad


def exact_gradient(vae, x, elbo=exact.linear_elbo):
    vae.zero_grad()
    value = elbo(vae, x)
    (-value.sum()).backward()
    return value.detach(), vae.q_z.logits.grad.clone(), vae.p_x.decoder[0].weight.grad.clone()


def test_both_oracles_agree_and_the_sum_is_pyros():
    vae, x = vae_of(9, copies=2)
    summed, closed = exact.enumerated(vae, x), exact.linear_elbo(vae, x)
    torch.testing.assert_close(summed.elbo, closed)
    assert (summed.elbo < summed.log_p).all()
    torch.testing.assert_close(summed.posterior.sum(0), torch.ones(2).double())
    logits = [
        exact_gradient(vae, x, of)[1:] for of in (exact.linear_elbo, lambda vae, x: exact.enumerated(vae, x).elbo)
    ]
    torch.testing.assert_close(*logits)

    few, row = vae_of(4)

    @config_enumerate
    def guide(x):  # each bit a site of its own
        with pyro.plate("data", 1):
            for place in range(4):
                pyro.sample(f"z{place}", dist.Bernoulli(logits=few.q_z.logits[:, place]))

    def model(x):
        with pyro.plate("data", 1):
            z = [pyro.sample(f"z{n}", dist.Bernoulli(logits=few.p_z.logits[n])) for n in range(4)]
            z = torch.stack(torch.broadcast_tensors(*z), -1)
            pyro.sample("x", few.likelihood(z.double()), obs=x)

    with pyro.validation_enabled(False):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, row)
    assert -loss == pytest.approx(exact.linear_elbo(few, row).item(), rel=1e-12)


@pytest.mark.parametrize("num_draws", [2, 3, 4, 8])
@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 0.5, 0.8, 0.97, 1.0])
def test_antithetic_draws_have_their_mean_and_correlation(p, num_draws):
    """Each comparison is 5 errors off once in 2e6 samples, and the seed is fixed."""
    count = 200_000
    with seeded(0):
        z = antithetic(torch.full((count,), p, dtype=torch.float64), num_draws)
    variance = p * (1 - p)
    assert ((z.mean(1) - p).abs() <= 5 * math.sqrt(variance / count)).all()
    product = (z[0] - p) * (z[1] - p)
    found = correlation(torch.tensor(p, dtype=torch.float64), num_draws) * variance
    assert abs(product.mean() - found) <= 5 * product.std() / math.sqrt(count)
    assert found <= 0
    if num_draws == 2 and p == 0.5:
        assert torch.equal(z[0], 1 - z[1])


@pytest.mark.parametrize(("kind", "num_particles"), [(ARMS, 2), (ARMS, 5), (DisARM, 2), (DisARM, 6)])
def test_an_estimator_is_the_one_written_by_hand_at_the_same_draws(kind, num_particles):
    vae, x = vae_of(6, copies=3)
    (loss, _, by_logits, by_weight), z = drawn_by(kind(num_particles), vae, x)
    q, probs = vae.posterior(x), vae.posterior(x).mean.detach()
    log_p = vae.log_likelihood(x, z) + vae.prior().log_prob(z)
    f = (log_p - q.log_prob(z)).detach()
    size = 2 if kind is DisARM else num_particles
    groups = zip(z.split(size), f.split(size))
    parts = [arms_by_hand(probs, *part, correlation(probs, size)) for part in groups]
    expected, direct = sum(parts) / len(parts), log_p.mean(0)
    torch.testing.assert_close(loss, -f.mean())
    torch.testing.assert_close(by_logits, -expected)
    (weight,) = torch.autograd.grad(-direct.mean(), vae.p_x.decoder[0].weight)
    torch.testing.assert_close(by_weight, weight)


def arms_by_hand(probs, z, f, correlation):
    """An estimate (B, L) of d E_q f / d logits from n draws z (n, B, L) and f (n, B), correlated in pairs."""
    differences = [(one - f.mean(0))[:, None] * (bits - probs) for one, bits in zip(f, z)]
    return sum(differences) / (1 - correlation) / (len(z) - 1)


def categorical_disarm_by_hand(logits, z, f, correlation):
    """An estimate of d E_q f / d logits (N, C) of one datum from two draws of antithetic bits, bit by bit."""
    found = torch.zeros_like(logits)
    for n, row in enumerate(logits):
        for k in range(len(row) - 1):
            after = row[k + 1 :]
            p = torch.sigmoid(row[k] - after.logsumexp(0))
            (u, b), (v, other) = (((one[n, :k] == 0).all().double(), one[n, k]) for one in z)
            estimate = u * v * (f[0] - f[1]) * (b - other) / (1 - correlation[n, k])
            estimate = estimate + u * (1 - v) * (f[0] - f[1]) * (b - p) + v * (1 - u) * (f[1] - f[0]) * (other - p)
            found[n, k] += estimate / 2
            found[n, k + 1 :] -= estimate / 2 * after.softmax(0)
    return found


def through_probabilities(slope, z, temperature, num_classes):
    """The derivative by logits of a function with a derivative by z = sigmoid or softmax(logits / temperature + c)."""
    if num_classes == 1:
        return slope * z * (1 - z) / temperature
    slope, z = (one.unflatten(-1, (-1, num_classes)) for one in (slope, z))
    return (z * (slope - (slope * z).sum(-1, keepdim=True)) / temperature).flatten(-2)


def drawn_by(elbo, vae, x):
    """What `gradient_of` returns, and the draws of z."""
    drawn = []
    handle = vae.p_x.register_forward_hook(lambda module, given, result: drawn.append(given[0]))
    found = gradient_of(elbo, vae, x)
    handle.remove()
    return found, drawn[0].detach()


def test_pairs_of_categories_have_the_gradient_written_by_hand():
    vae, x = vae_of(12, copies=3, classes=4)
    (loss, _, by_logits, _), z = drawn_by(CategoricalDisARM(4), vae, x)
    q = vae.posterior(x)
    f = (vae.log_likelihood(x, z) + vae.prior().log_prob(z) - q.log_prob(z)).detach()
    torch.testing.assert_close(loss, -f.mean())
    for row, logits in enumerate(vae.q_z.logits.detach().view(3, 3, 4)):
        after = logits.flip(-1).logcumsumexp(-1).flip(-1)[:, 1:]
        between = correlation(torch.sigmoid(logits[:, :-1] - after), 2)
        pairs = zip(z[:, row].view(2, 2, 3, 4), f[:, row].view(2, 2))
        expected = sum(categorical_disarm_by_hand(logits, *pair, between) for pair in pairs) / 2
        torch.testing.assert_close(by_logits[row], -expected.flatten())


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("elbo", [GumbelSoftmax(1, temperature=0.7), StraightThrough(1)])
def test_relaxations_have_the_gradient_written_by_hand(elbo, classes):
    vae, x = vae_of(6, copies=3, classes=classes)
    (loss, _, by_logits, by_weight), z = drawn_by(elbo, vae, x)
    z.requires_grad_()
    distortion, q = -vae.log_likelihood(x, z), vae.posterior(x)
    rate = (q.mean * (q.mean / vae.prior().mean).log()).sum(-1)
    if classes == 1:
        rate = rate + ((1 - q.mean) * ((1 - q.mean) / (1 - vae.prior().mean)).log()).sum(-1)
    torch.testing.assert_close(loss, (distortion + rate).mean().detach())
    slope, weight = torch.autograd.grad(distortion.sum(), [z, vae.p_x.decoder[0].weight])
    (by_rate,) = torch.autograd.grad(rate.sum(), vae.q_z.logits)
    is_straight = isinstance(elbo, StraightThrough)
    probs, temperature = (q.mean, 1.0) if is_straight else (z, elbo.temperature)
    expected = through_probabilities(slope, probs.detach(), temperature, classes)
    torch.testing.assert_close(by_logits, expected + by_rate)
    torch.testing.assert_close(by_weight, weight / 3)
    assert ((z - z.round()).abs().max() < 1e-12) == is_straight


@pytest.mark.parametrize(
    ("elbo", "by_hand"),
    [
        (ScoreELBO(3), lambda *given: bounds.score_gradients(*given, 3)),
        (LeaveOneOutScoreELBO(3), lambda *given: bounds.score_gradients(*given, 3, leave_one_out=True)),
        (VIMCO(3), lambda *given: bounds.vimco_gradients(*given, 3)),
    ],
)
def test_estimators_of_any_latent_are_of_bits_too(elbo, by_hand):
    vae, x = vae_of(6, copies=3)
    gradient_of(elbo, vae, x)
    found = {name: one.grad for name, one in vae.named_parameters()}
    with seeded(0):
        expected = by_hand(vae, x)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


UNBIASED = {
    "score": ScoreELBO(4), "score-loo": LeaveOneOutScoreELBO(4), "arms": ARMS(4), "disarm": DisARM(4),
}  # fmt: skip
COPIES = 20_000


def estimates(elbo, num_bits, **options):
    """Gradients of 20,000 equal data by the logits, and the exact one."""
    vae, x = vae_of(num_bits, COPIES, **options)
    _, _, found, _ = gradient_of(elbo, vae, x)
    one, row = vae_of(num_bits, **options)
    of = (lambda vae, x: exact.enumerated(vae, x).elbo) if options else exact.linear_elbo
    _, by_logits, _ = exact_gradient(one, row, of)
    return found, by_logits[0]


@pytest.mark.parametrize("num_bits", [12, pytest.param(200, marks=pytest.mark.workflow)])
@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_gradient_is_the_exact_one(name, num_bits):
    """The mean of 20,000 estimates of each logit: one is 5 errors off once in 1e4 runs, and the seed is fixed.

    A factor of 1/2 would be seen in the largest one.
    """
    found, truth = estimates(UNBIASED[name], num_bits)
    errors = found.std(0) / math.sqrt(COPIES)
    assert ((found.mean(0) - truth).abs() < 5 * errors).all()
    assert 10 * errors[truth.abs().argmax()] < truth.abs().max() or name == "score"


@pytest.mark.parametrize("elbo", [CategoricalDisARM(4), LeaveOneOutScoreELBO(4)])
def test_the_mean_gradient_of_categories_is_the_exact_one(elbo):
    """Of two variables of ten classes; failure rate as above. Those of a variable add to 0 for each draw."""
    found, truth = estimates(elbo, 20, classes=10)
    errors = found.std(0) / math.sqrt(COPIES)
    assert ((found.mean(0) - truth).abs() < 5 * errors).all()
    assert 10 * errors[truth.abs().argmax()] < truth.abs().max()
    assert found.unflatten(-1, (2, 10)).sum(-1).abs().max() < 1e-9


@pytest.mark.parametrize("is_fixed", [False, True])
def test_a_codebook_has_the_loss_and_gradients_written_by_hand(is_fixed):
    """Three codes of one or two values: the ELBO is that of the nearest codes, and the penalty is in the loss alone."""
    draw = torch.Generator().manual_seed(0)
    size = 1 if is_fixed else 2
    encoder = nn.Linear(4, 3 * size).double()
    with seeded(0):
        q = (LevelsPosterior(encoder, 5) if is_fixed else QuantizedPosterior(encoder, 5, size)).double()
    network = nn.Sequential(nn.Linear(3 * size, 4), nn.Unflatten(-1, (4,))).double()
    p_x = LinearNormalLikelihood(network, (4,), scale=0.7)
    vae, x = VAE(CodebookPrior(q, 3 * size), q, p_x), torch.randn(6, 4, generator=draw, dtype=torch.float64)
    h = encoder(x).detach().view(6, 3, size)
    h = h.tanh() if is_fixed else h
    nearest = torch.tensor([[min(range(5), key=lambda k: (one - q.codebook[k]).norm()) for one in row] for row in h])
    code = q.codebook.detach()[nearest]
    for elbo in (TraceELBO(2), AnalyticELBO(1), HandwrittenELBO(1)):
        vae.zero_grad()
        with pyro.get_param_store().scope():
            loss, terms = elbo.loss_and_terms(vae.model, vae.guide, x)
        loss.backward()
        z = code.flatten(1).requires_grad_()
        distortion = -vae.log_likelihood(x, z)
        squares = 0.0 if is_fixed else (h - code).square().sum((1, 2))
        torch.testing.assert_close(terms.distortion, distortion.detach())
        torch.testing.assert_close(terms.rate, torch.full_like(terms.rate, 3 * math.log(5)))
        torch.testing.assert_close(loss.detach(), (distortion + terms.rate + 1.25 * squares).mean().detach())
        (slope,) = torch.autograd.grad(distortion.sum() / 6, z)
        slope = slope.view(6, 3, size)
        by_h = slope * (1 - h.square()) if is_fixed else slope + 0.5 * (h - code) / 6
        torch.testing.assert_close(encoder.weight.grad, by_h.flatten(1).T @ x)
        if not is_fixed:
            expected = torch.zeros(5, 2).double().index_add(0, nearest.flatten(), (2 * (code - h) / 6).flatten(0, 1))
            torch.testing.assert_close(q.codebook.grad, expected)
    found = exact.enumerated(vae, x)
    torch.testing.assert_close(log_likelihood(vae, x).log_p, found.log_p.detach())
    torch.testing.assert_close(found.elbo, terms.elbo)


def test_log_p_x_of_a_few_codes_is_their_sum():
    for size, classes in ((9, 1), (6, 3)):
        vae, x = vae_of(size, copies=3, classes=classes)
        found = log_likelihood(vae, x)
        torch.testing.assert_close(found.log_p, exact.enumerated(vae, x).log_p.detach())
        assert found.counts == {"enumeration": 3}
        assert found.mean_stderr == 0
    many, x = vae_of(13)
    assert log_likelihood(many, x).counts == {"importance": 1}
    with pytest.raises(InputError, match="12 bits"):
        log_likelihood(many, x, "quadrature")


def test_classes_of_one_value_have_nothing_to_choose():
    vae, x = vae_of(4)
    vae.q_z = Fixed(lambda x: OneHotVector(torch.zeros(len(x), 4).double(), 1))
    vae.p_z = Fixed(lambda: OneHotVector(torch.zeros(4).double(), 1))
    with pyro.get_param_store().scope():
        loss = CategoricalDisARM(2).loss_and_terms(vae.model, vae.guide, x).loss
    torch.testing.assert_close(loss, -vae.log_likelihood(x, torch.ones(1, 4).double()).mean())


def test_vimco_has_the_gradient_of_its_bound():
    """Of 6 bits and K = 3, the bound is a sum over all draws of three codes."""
    vae, x = vae_of(6, COPIES)
    _, _, found, _ = gradient_of(VIMCO(3), vae, x)
    one, row = vae_of(6)
    z = codes(vae.prior())[:, None]
    log_q = one.posterior(row).log_prob(z)
    w = (one.log_likelihood(row, z) + one.prior().log_prob(z) - log_q)[:, 0]
    log_q = log_q[:, 0]
    three = torch.cartesian_prod(*[torch.arange(64)] * 3)
    bound = (log_q[three].sum(1).exp() * (w[three].logsumexp(1) - math.log(3))).sum()
    (truth,) = torch.autograd.grad(-bound, one.q_z.logits)
    errors = found.std(0) / math.sqrt(COPIES)
    assert ((found.mean(0) - truth[0]).abs() < 5 * errors).all()
    assert errors.max() < truth.abs().max() / 20


def test_antithetic_draws_have_less_noise_than_independent_ones():
    pairs = [(DisARM(2), LeaveOneOutScoreELBO(2)), (ARMS(4), LeaveOneOutScoreELBO(4)), (ARMS(4), DisARM(4))]
    for less, more in pairs:
        noise = [estimates(elbo, 12)[0].var(0).sum() for elbo in (less, more)]
        assert noise[0] < 0.97 * noise[1]


@pytest.mark.parametrize("elbo", [GumbelSoftmax(1, temperature=2.0), StraightThrough(1)])
def test_relaxations_train_on_what_they_say_and_report_bits(elbo):
    """Straight-through is exact where log p(x | z) is linear; the loss of Gumbel-softmax is another."""
    vae, x = vae_of(12, COPIES)
    value = exact.linear_elbo(vae, x).mean()
    loss, terms, _, _ = gradient_of(elbo, vae, x)
    error = 5 * terms.elbo.std() / math.sqrt(COPIES)
    assert abs(terms.elbo.mean() - value) < error
    assert (abs(-loss - value) < error) == isinstance(elbo, StraightThrough)
    with torch.no_grad():
        loss, terms = elbo.evaluate(vae.model, vae.guide, x)
    assert loss == pytest.approx(-terms.elbo.mean().item())


def test_what_has_no_bits_is_refused(small_vae, small_images):
    vae, x = small_vae(), small_images(4)
    for elbo in (ARMS(2), DisARM(2), GumbelSoftmax(1)):
        with pytest.raises(InputError), pyro.get_param_store().scope():
            elbo.loss_and_terms(vae.model, vae.guide, x)
    classes, row = vae_of(6, classes=3)
    with pytest.raises(InputError), pyro.get_param_store().scope():
        ARMS(2).loss_and_terms(classes.model, classes.guide, row)
    vae, x = vae_of(4)
    for elbo in (DisARM(3), CategoricalDisARM(2)):
        with pytest.raises(InputError), pyro.get_param_store().scope():
            elbo.loss_and_terms(vae.model, vae.guide, x)
