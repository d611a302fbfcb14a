"""`pvae.identify` is never wrong about random losses, says where it looked, and gives a configuration."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pvae.core.errors import InputError
from pvae.identification.identify import Power, identify


def kl(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - logvar.exp())


LIKELIHOODS = {  # by the name that is printed; those of t take another argument
    "Bernoulli(probs": lambda y, x, t: F.binary_cross_entropy(y, x, reduction="none"),
    "Bernoulli(logits = recon": lambda y, x, t: F.binary_cross_entropy_with_logits(y, x, reduction="none"),
    "Normal(recon": lambda y, x, t: 0.5 * (y - x) ** 2,
    "Laplace(recon": lambda y, x, t: (y - x).abs(),
    "Poisson(rate = exp(": lambda y, x, t: F.poisson_nll_loss(y, x, reduction="none"),
    "Poisson(rate = recon)": lambda y, x, t: y - x * y.log(),
    "Multinomial(logits = recon)": lambda y, x, t: -x * y.log_softmax(1),
    "NegativeBinomial(mean = recon, dispersion = theta)": lambda y, x, t: (
        torch.lgamma(t) - torch.lgamma(x + t) - t * (t / (t + y)).log() - x * (y / (t + y)).log()
    ),
    "Normal(tanh(recon), scale = exp(theta))": lambda y, x, t: 0.5 * ((x - torch.tanh(y)) / t.exp()) ** 2 + t,
    "Normal(sigmoid(recon)": lambda y, x, t: 0.5 * (torch.sigmoid(y) - x) ** 2,
    "Exponential(mean = recon)": lambda y, x, t: x / y - (x / y).log() - 1,
    "LogCosh(recon": lambda y, x, t: torch.log(torch.cosh(y - x)),
    "Huber(recon, kink at |x - recon| = 0.7": lambda y, x, t: F.huber_loss(y, x, reduction="none", delta=0.7),
    "applied twice": lambda y, x, t: F.binary_cross_entropy_with_logits(torch.sigmoid(y), x, reduction="none"),
    "Normal(softplus(recon)": lambda y, x, t: 0.5 * (F.softplus(y) - x) ** 2,
    "": lambda y, x, t: (y - x) ** 4,  # that is not known
}
SPREADS = {
    "scale = exp(s / 2)": lambda s: (s / 2).exp(),
    "scale = exp(s)": torch.exp,
    "scale = s": lambda s: s,
    "scale = sqrt(s)": torch.sqrt,
    "scale = softplus(s)": F.softplus,
}
PRIORS = {  # variances by the number of latents
    "N(0, I)": lambda latents: 1,
    "N(0, c^2 I) with c^2 = 4": lambda latents: 4,
    "N(0, c^2 I) with c^2 = (1 - 1 / L)": lambda latents: 1 - 1 / latents,
    "Normal(loc = prior_mu, scale = exp(prior_logvar / 2))": None,
}
REDUCTIONS = {"sum": {}, "mean": {"B": -1}, "elements": {"B": -1, "D": -1}}


def reduced(values, how):
    return {"sum": values.sum, "mean": lambda: values.sum(1).mean(), "elements": values.mean}[how]()


def combination(seed):
    """Return a random loss, and what it is: likelihood, spread, prior, the weights of both parts, and its flaw."""
    draw = np.random.default_rng(seed)
    (name, density), (spread, scale_of), (prior, variance_of) = (
        list(one.items())[draw.integers(len(one))] for one in (LIKELIHOODS, SPREADS, PRIORS)
    )
    of_x, of_z = draw.choice(["sum", "mean", "elements"], 2)
    weight, beta = (float(one) for one in draw.choice([1, 0.5, 2, 1.01, 0.99, 1e-3, 250, math.pi], 2))
    is_drawn, flaw = bool(draw.integers(2)), draw.choice(["", "", "", "sign", "half", "constant", "unknown"])
    if "theta" in name and not variance_of:  # more arguments than a loss may have
        prior, variance_of = next(iter(PRIORS.items()))

    def loss(recon, x, mu, s, z=None, theta=None, prior_mu=0.0, prior_logvar=None):
        scale = scale_of(s)
        variance = prior_logvar.exp() if prior_logvar is not None else torch.tensor(variance_of(mu.shape[1]))
        parts = (
            ((z - prior_mu) ** 2 / variance, -(((z - mu) / scale) ** 2), variance.log() - 2 * scale.log())
            if is_drawn
            else ((mu - prior_mu) ** 2 / variance, scale**2 / variance - 1, variance.log() - 2 * scale.log())
        )
        first = {"sign": -1, "half": 0.5}.get(flaw, 1)
        rate = 0.5 * (first * parts[0] + parts[1] + parts[2]) + 0.25 * (flaw == "constant")
        rate = rate + mu**4 * (flaw == "unknown")
        return weight * reduced(density(recon, x, theta), of_x) + beta * reduced(rate, of_z)

    names = ["recon", "x", "mu", "s", *["z"] * is_drawn, *["theta"] * ("theta" in name)]
    names += ["prior_mu", "prior_logvar"] * (variance_of is None)
    given = {}
    exec(
        f"def called({', '.join(names)}): return loss({', '.join(f'{one}={one}' for one in names)})",
        {"loss": loss},
        given,
    )
    w_x = Power(weight, REDUCTIONS[of_x])
    w_z = Power(beta, {{"D": "L"}.get(key, key): power for key, power in REDUCTIONS[of_z].items()})
    return given["called"], name, spread, prior, w_x, w_z, flaw


def check(seed):
    """Return what `identify` said of a random loss: named, open, refused or, where it cannot tell, skipped."""
    loss, name, spread, prior, w_x, w_z, flaw = combination(seed)
    found, ratio = identify(loss), w_z / w_x
    is_tied = ratio.powers.keys() >= {"D", "L"}  # where constants of both parts cannot be told apart
    if is_tied and flaw in ("constant", "half"):
        return "skipped"
    is_known, is_wrong = name and flaw != "unknown", flaw in ("sign", "half", "constant") or ratio.powers.get("B")
    is_elbo = bool(is_known and not is_wrong)
    assert found.is_elbo == is_elbo, (seed, str(found))
    if not is_elbo:  # where one part is not known, the constant of the other cannot be checked
        assert found.is_open == (not is_known) or (is_wrong and not is_known), (seed, str(found))
        return "open" if found.is_open else "refused"
    assert name in str(found), (seed, str(found))
    assert f"{spread})" in str(found), (seed, str(found))
    assert found.prior == prior, (seed, str(found))
    one = found.readings[-1]
    sizes = {"B": 7, "D": 30, "L": 4}
    assert one.beta.at(sizes) == pytest.approx(ratio.at(sizes), rel=1e-9), seed
    assert one.factor.at(sizes) == pytest.approx(w_x.without("B").at(sizes), rel=1e-9), seed
    return "named"


@pytest.mark.parametrize(
    "seeds", [range(4), range(4, 8), (2695,), pytest.param(range(8, 24), marks=pytest.mark.workflow)], ids=str
)
def test_random_combinations_are_named_right(seeds):
    for seed in seeds:
        check(seed)


@pytest.mark.slow
def test_ten_thousand_random_combinations_are_named_right():
    counts = Counter(check(seed) for seed in range(10_000))
    print(dict(counts))
    assert counts["named"] > 3000
    assert counts["open"] > 1000


def squared(of_x, of_z, spread=lambda x, y: (x - y) ** 2):
    """Return a loss of a squared error and a KL, each reduced as it says."""

    def loss(recon, x, mu, logvar):
        return reduced(spread(x, recon), of_x) + reduced(kl(mu, logvar), of_z)

    return loss


@pytest.mark.parametrize(
    ("of_x", "of_z", "limit", "side"),
    [
        ("sum", "sum", "0.707", "above 0.707"),
        ("elements", "mean", "sqrt(0.5 D)", "below 19.8"),
        ("elements", "elements", "sqrt(0.5 D / L)", "below 4.43 for L = 20"),
    ],
)
def test_below_which_variation_a_squared_error_uses_no_latent(of_x, of_z, limit, side):
    found = identify(squared(of_x, of_z))
    (line,) = [line for line in found.text.splitlines() if line.startswith("  collapse ")]
    assert f"above {limit} along" in line
    assert line.endswith(side)
    for reading in range(len(found.readings)):  # the largest standard deviation that is lost, by either
        config = found.config(reading, D=784, L=20)
        assert math.sqrt(config.beta) * config.scale == pytest.approx(float(side.split()[1]), rel=2e-3)


WITHOUT_FORECAST = {
    "absolute error": squared("sum", "sum", lambda x, y: (x - y).abs()),
    "optimal scale": squared("sum", "sum", lambda x, y: 0.5 * x.numel() * ((x - y) ** 2).mean().log()),
}


@pytest.mark.parametrize("name", WITHOUT_FORECAST)
def test_no_variation_is_named_where_the_scale_is_not_one_number(name):
    assert "collapse" not in str(identify(WITHOUT_FORECAST[name]))


def post_001(recon, x, mu, logvar):
    return F.mse_loss(recon, x) + 1e-3 * kl(mu, logvar).sum(1).mean()


def post_003(recon, x, mu, logvar):
    return 500 * F.binary_cross_entropy(recon, x) + kl(mu, logvar).mean()


def test_the_configuration_trains_the_same_gradient():
    config = identify(post_003).config(D=1024, L=2)
    assert config.beta == pytest.approx(0.002 * 1024 / 2)
    config = identify(post_001).config(D=784, L=7)
    assert (config.likelihood, config.scale) == ("normal", pytest.approx(math.sqrt(0.392)))
    assert (config.elbo, config.latent_dim) == ("analytic", 7)


def test_a_size_or_a_reading_that_is_missing_is_refused():
    found = identify(post_001)
    for how in ({}, {"reading": 2, "D": 784}):
        with pytest.raises(InputError):
            found.config(**how)


def test_arguments_without_names_are_found_by_trying():
    def loss(a, b, c, d):
        return F.binary_cross_entropy(c, a, reduction="sum") + kl(b, d).sum()

    text = str(identify(loss))
    assert "Bernoulli(probs = c)" in text
    assert "Normal(loc = b, scale = exp(d / 2))" in text


class Forward(torch.nn.Module):
    def forward(self, recon, x, mu, logvar, beta=0.5):
        return F.mse_loss(recon, x, reduction="sum") + beta * kl(mu, logvar).sum()


def test_a_module_whose_forward_is_the_loss_is_named_with_its_defaults():
    assert "with        beta = 0.5" in str(identify(Forward()))


def eleven(a, b, c, d, e, f, g, h, i, j, k):
    return 0


def in_place(recon, x, mu, logvar):
    mu.mul_(2)
    return F.mse_loss(recon, x) + kl(mu, logvar).sum()


@pytest.mark.parametrize(
    "loss", [eleven, in_place, 3, Forward, lambda *args: args[0], lambda: 0, lambda x, recon: None]
)
def test_bad_losses_are_refused_in_one_line(loss):
    with pytest.raises(InputError) as refused:
        identify(loss)
    assert "\n" not in str(refused.value)


def test_nothing_is_printed_and_no_random_number_is_used(capsys):
    def loud(recon, x, mu, logvar):
        print("loss")
        return F.mse_loss(recon, x, reduction="sum") + kl(mu, logvar).sum()

    state = torch.random.get_rng_state()
    assert identify(loud).is_elbo
    assert torch.equal(state, torch.random.get_rng_state())
    assert capsys.readouterr().out == ""


def sum_over_the_last_axis(recon, x, mu, logvar):
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    return ((x - recon) ** 2).sum(-1).mean() + kl.mean()


def test_a_reduction_over_one_side_of_an_image_is_not_taken_for_one_over_all():
    of_vectors, of_images = identify(sum_over_the_last_axis), identify(sum_over_the_last_axis, shape=(1, 28, 28))
    assert "x (B, D)" in of_vectors.text
    assert "x (B, C, H, W)" in of_images.text
    assert of_images.readings[0].variance.at({"C": 1, "H": 28, "W": 28}) == pytest.approx(14)
    assert of_images.config(C=1, H=28, W=28).scale == pytest.approx(14**0.5)


def casts_one(recon, x, mu, logvar):
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
    return ((x.float() - recon) ** 2).sum() + kl


def test_a_cast_to_float32_inside_is_allowed_for():
    found = identify(casts_one)
    assert found.is_elbo
    assert "in float32" in found.text


CUT_OFF = {  # an ELBO up to a cut c, and another loss beyond it
    "mu": lambda x, y, m, v, c: ((x - y) ** 2).sum() + kl(m.clamp(-c, c), v).sum(),
    "logvar": lambda x, y, m, v, c: ((x - y) ** 2).sum() + kl(m, v.clamp(-c, c)).sum(),
    "logvar from below": lambda x, y, m, v, c: ((x - y) ** 2).sum() + kl(m, v.clamp(min=-c)).sum(),
    "log scale from below": lambda x, y, m, v, c: ((x - y) ** 2).sum() + kl(m, 2 * v.clamp(min=-c)).sum(),
    "square": lambda x, y, m, v, c: ((x - y) ** 2).clamp(max=c).sum() + kl(m, v).sum(),
    "rate": lambda x, y, m, v, c: ((x - y) ** 2).sum() + kl(m, v).sum(1).clamp(max=c).sum(),
    "probability": lambda x, y, m, v, c: F.binary_cross_entropy(y.clamp(c, 1 - c), x, reduction="sum") + kl(m, v).sum(),
    "nan": lambda x, y, m, v, c: ((x - y) ** 2).sum() + kl(m.where(m < c, torch.nan), v).sum(),
}
CUTS = {
    "mu": (3.0, 6.0, 7.8), "logvar": (3.0, 6.0, 7.8), "logvar from below": (7.8,), "log scale from below": (7.8,),
    "square": (9.0, 36.0), "rate": (20.0, 100.0), "probability": (1e-3,), "nan": (7.8,),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "cut"), [(kind, cut) for kind, cuts in CUTS.items() for cut in cuts])
def test_a_loss_that_is_cut_off_within_the_range_of_the_points_is_open(kind, cut):
    def loss(x, recon, mu, spread):
        return CUT_OFF[kind](x, recon, mu, spread, cut)

    assert identify(loss).is_open


@pytest.mark.parametrize(("kind", "spread"), [("mu", "-8 to 8"), ("log scale from below", "-8 to 8")])
def test_the_last_line_says_over_which_range_it_looked(kind, spread):
    def loss(x, recon, mu, rho):
        return CUT_OFF[kind](x, recon, mu, rho, 20.0)

    found = identify(loss)
    assert found.is_elbo
    assert f"for x (B, D) 0 to 1, recon -8 to 8, mu -8 to 8, rho {spread}" in found.text.splitlines()[-1]


def test_counts_are_drawn_above_1_and_scales_above_0():
    def loss(x, rate, mu, scale):
        return (rate - x * rate.log()).sum() + kl(mu, 2 * scale.log()).sum()

    last = identify(loss).text.splitlines()[-1]
    assert "x (B, D) 0 to 12, rate 0.018 to 55" in last
    assert "scale 0.018 to 55" in last


@pytest.mark.parametrize("scale_of", SPREADS.values())
@pytest.mark.parametrize("limited", [lambda rate: rate.clamp(min=0.05), lambda rate: (rate - 0.05).abs()])
def test_free_bits_and_capacities_are_seen_where_the_rate_is_small(scale_of, limited):
    def loss(recon, x, mu, s):
        rate = 0.5 * (mu**2 + scale_of(s) ** 2 - 1) - scale_of(s).log()
        return F.mse_loss(recon, x, reduction="sum") / len(x) + limited(rate.mean(0)).sum()

    assert not identify(loss).is_elbo


@pytest.mark.parametrize("shape", [784, "1x28x28", (), (0,), (28.0,)])
def test_a_shape_is_a_tuple_of_sizes(shape):
    with pytest.raises(InputError):
        identify(casts_one, shape=shape)
