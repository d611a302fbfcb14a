"""Counts of any size and values in any unit: densities of float32 networks by 60 digits, and what a unit changes."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch

from pvae.config.build import build_elbo, build_vae
from pvae.config.config import Config
from pvae.core.random_state import seeded
from pvae.models.features import fit_to

mpmath = pytest.importorskip("mpmath")

CPU = torch.device("cpu")


def of_one_value(name, data):
    """A likelihood of one value in float32, fitted to data, whose decoder gives z itself."""
    vae = build_vae(Config(likelihood=name, latent_dim=1, hidden=(2,)), (1,))
    fit_to(vae, data)
    vae.p_x.decoder = torch.nn.Identity()
    return vae.p_x


def exactly(parameter, value):
    """Set a parameter in float32, and return that value with all digits."""
    with torch.no_grad():
        parameter.fill_(value)
    return mpmath.mpf(parameter.item())


def found(likelihood, outputs, x, parameters):
    """log p(x) and its gradient by the outputs of the decoder and the parameters."""
    z = torch.tensor(outputs, dtype=torch.float32, requires_grad=True)
    log_p = likelihood(z).log_prob(torch.tensor([x], dtype=torch.float64))
    assert log_p.dtype == torch.float32
    by_z, *others = torch.autograd.grad(log_p, [z, *parameters])
    return [log_p.item(), *by_z.tolist(), *(grad.item() for grad in others)]


def expected(log_p, *arguments):
    """log p and its derivatives by each argument."""
    places = [tuple(int(k == place) for k in range(len(arguments))) for place in range(len(arguments))]
    return [float(log_p(*arguments)), *(float(mpmath.diff(log_p, arguments, place)) for place in places)]


def assert_right(ours, truth):
    """Each within 1e-6, or 1e-6 of a value above 1; float32 holds 6e-8 of it."""
    for one, true in zip(ours, truth):
        assert one == pytest.approx(true, rel=1e-6, abs=1e-6), (ours, truth)


@pytest.mark.parametrize("mean", [0.003, 5.0, 20.0, 5e4, 1e7, 1e8])
@pytest.mark.parametrize("log_theta", [None, -10.0, 0.0, 1.0, 7.0, 9.0, 12.0, 15.0])
def test_counts_of_any_size_have_their_probability_in_float32(log_theta, mean):
    """Poisson (None) and negative binomial with their gradients, near the mean and far from it."""
    likelihood = of_one_value("poisson" if log_theta is None else "negative-binomial", torch.tensor([[mean]]))
    with mpmath.workdps(60):
        m = mpmath.mpf(likelihood.units.mean.item())
        unit = max(mpmath.mpf(1), m / mpmath.log(2))
        shift = mpmath.log(mpmath.expm1(m / unit))
        trained = [] if log_theta is None else [likelihood.log_theta]
        logs = [exactly(parameter, log_theta) for parameter in trained]
        for output, share in itertools.product([-3.0, 0.0, 2.0], [0, 0.9, 1, 1.5]):
            x = round(share * mean)

            def log_p(o, *log, x=x):
                mu = unit * mpmath.log1p(mpmath.exp(o + shift)) + mpmath.mpf(1e-6)
                if not log:
                    return x * mpmath.log(mu) - mu - mpmath.loggamma(x + 1)
                theta = mpmath.exp(log[0])
                ways = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
                return ways - theta * mpmath.log1p(mu / theta) + x * mpmath.log(mu / (mu + theta))

            ours = found(likelihood, [output], x, trained)
            truth = expected(log_p, mpmath.mpf(output), *logs)
            if log_theta in (-10.0, 15.0):  # the ends of the clamp, where the gradient is that of either side
                ours, truth = ours[:2], truth[:2]
            assert_right(ours, truth)


def _beyond(t, df):
    """P(T > t) of Student's t, t > 0."""
    return mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) / 2


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
@pytest.mark.parametrize("log_df", [None, -2.0, 2.0, 10.0, 12.0, 14.9])
def test_real_values_have_their_density_in_float32(log_df, unit):
    """Normal (None) and Student t with their gradients, where the spread is a millionth of the mean.

    The values were recorded in steps of 1.5 units, of which each has the probability.
    """
    data = unit * (1e6 + torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64))
    likelihood = of_one_value("normal-diagonal" if log_df is None else "student-t", data)
    trained = [likelihood.log_scale] + ([] if log_df is None else [likelihood.log_df])
    step = likelihood.units.step.item()
    assert step == pytest.approx(1.5 * unit, rel=1e-6)
    with mpmath.workdps(60):
        logs = [exactly(parameter, value) for parameter, value in zip(trained, (-1.2, log_df))]
        m, s = (mpmath.mpf(value.item()) for value in (likelihood.units.loc, likelihood.units.scale))
        distances = [0.0, 0.3, 40.0]
        if log_df in (12.0, 14.9):
            distances = [0.0, 0.3]  # mpmath takes minutes for a tail that is almost a Normal's
        for output, distance in itertools.product([-3.0, 0.0], distances):
            x = (m + s * (output + distance)).__float__()

            def log_of_normal(o, of_scale, log_scale, x=x):
                scale = s * mpmath.sqrt(mpmath.exp(2 * log_scale + 2 * of_scale) + mpmath.mpf(1e-6))
                y = (mpmath.mpf(x) - m - s * o) / scale
                low, high = ((y + sign * step / scale / 2) / mpmath.sqrt(2) for sign in (-1, 1))
                return mpmath.log((mpmath.erfc(low) - mpmath.erfc(high)) / 2 / step)

            def log_of_student(o, log_scale, log, x=x):
                scale = s * mpmath.exp(log_scale)
                y = (mpmath.mpf(x) - m - s * o) / scale
                df = 1 + mpmath.exp(log)
                half = step / scale / 2
                tails = [_beyond(abs(end), df) for end in (y - half, y + half)]
                if abs(y) < half:
                    return mpmath.log((1 - sum(tails)) / step)
                return mpmath.log(abs(tails[0] - tails[1]) / step)

            outputs = [output] if log_df is not None else [output, 0.25]
            truth = expected(log_of_student if log_df is not None else log_of_normal, *map(mpmath.mpf, outputs), *logs)
            for one, true in zip(found(likelihood, outputs, x, trained), truth, strict=True):
                assert one == pytest.approx(true, rel=1e-5, abs=1e-5)  # x is rounded to 1e-10 of its spread


def test_a_student_t_of_very_many_degrees_of_freedom_is_a_normal():
    """Above 15, log df counts as 15: there the difference at 3 scales is about 1e-5."""
    data = torch.tensor([[-1.0], [0.0], [1.0]]) * math.sqrt(1.5)  # of deviation 1, and in no steps
    normal, student = of_one_value("normal-diagonal", data), of_one_value("student-t", data)
    x, z = torch.linspace(-3, 3, 7)[:, None], torch.zeros(7, 1)
    for log_df in (15.0, 40.0, 80.0):
        exactly(student.log_df, log_df)
        of_normal = normal(torch.zeros(7, 2)).log_prob(x)
        torch.testing.assert_close(student(z).log_prob(x), of_normal, rtol=0, atol=1.5e-5)


@pytest.mark.parametrize("name", ["poisson", "negative-binomial", "columns"])
@pytest.mark.parametrize("mean", [0.004, 0.6, 45_390.0, 3e8])
def test_a_count_has_the_mean_of_its_training_data_at_an_output_of_0(name, mean):
    columns = {"columns": "count"} if name == "columns" else {}
    vae = build_vae(Config(likelihood=name, latent_dim=1, hidden=(2,), **columns), (1,))
    counts = (torch.arange(1000) < 1000 * mean).double() if mean < 1 else mean * torch.tensor([0.5, 1.5])
    fit_to(vae, torch.cat([counts, torch.tensor([math.nan])])[:, None])
    vae.p_x.decoder = torch.nn.Identity()
    assert vae.p_x(torch.zeros(1)).mean.item() == pytest.approx(mean, rel=1e-6, abs=2e-6)
    assert 1 < vae.p_x(torch.full((1,), 10.0)).mean.item() < 20 * max(1, mean)


def _bound(config, x):
    with seeded(0, CPU), pyro.get_param_store().scope():
        vae = build_vae(config, x.shape[1:])
        fit_to(vae, x)
        loss = build_elbo("trace").differentiable_loss(vae.model, vae.guide, x)
        return -loss.item(), torch.autograd.grad(loss, list(vae.parameters()))


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1024.0, 1e6, 1e12])
@pytest.mark.parametrize("name", ["normal-diagonal", "student-t", "columns"])
def test_a_unit_changes_a_bound_by_the_constant_of_the_density_and_no_gradient(name, unit):
    """log p(u x + c) = log p(x) - D log u of D real values, also where c is a million times their spread."""
    config = Config(likelihood=name, latent_dim=2, hidden=(5,), columns="real*3" if name == "columns" else "")
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    bound, gradients = _bound(config, x)
    for offset in (0.0, 1e6):
        changed, others = _bound(config, unit * (x + offset))
        assert bound - changed == pytest.approx(3 * math.log(unit), rel=1e-5, abs=1e-5)
        for one, other in zip(gradients, others):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["normal-diagonal", "student-t", "poisson", "negative-binomial", "columns"])
def test_a_checkpoint_without_units_has_the_density_of_its_version(name):
    """Weights of version 0.2, which had no `mean_rest` and no mean of counts: 0 stands for them."""
    config = Config(likelihood=name, latent_dim=2, hidden=(5,), columns="real,count,real" if name == "columns" else "")
    with seeded(0, CPU):
        old, new = build_vae(config, (3,)), build_vae(config, (3,))
    x, z = torch.tensor([[0.0, 3.0, 8.0], [1.0, 1.0, 2.0]]), torch.tensor([[0.3, -1.0], [2.0, 0.1]])
    fit_to(new, x)
    weights = {place: tensor for place, tensor in old.state_dict().items() if not place.endswith("mean_rest")}
    if name in ("poisson", "negative-binomial"):
        of_counts = (".mean", ".slope", "units.log_theta")
        weights = {place: tensor for place, tensor in weights.items() if not place.endswith(of_counts)}
    new = build_vae(config, (3,))
    new.load_state_dict(weights)
    log_p = new.likelihood(z).log_prob(x)
    assert torch.equal(log_p, old.likelihood(z).log_prob(x))
    if name == "poisson":
        rate = torch.nn.functional.softplus(new.p_x.decoder(z)) + 1e-6
        torch.testing.assert_close(log_p, torch.distributions.Poisson(rate).log_prob(x).sum(1))
        torch.testing.assert_close(new.q_z.encoder[0](x), x.log1p())
