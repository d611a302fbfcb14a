"""The power spherical distribution: density, moments and KL by quadrature, draws against the density, float32."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

from pvae.distributions.power_spherical import PowerSpherical, SphereUniform

CONCENTRATIONS = [0.0, 0.7, 3.0, 60.0]
LIMIT = 2.5  # sqrt(n) times a Kolmogorov-Smirnov distance exceeds it with a probability of 8e-6


def direction(length, first=None, seed=0, dtype=torch.float64):
    """A unit vector whose first element has a given sign."""
    loc = torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if first is not None:
        loc[0] = first * loc[0].abs()
    return normalize(loc, dim=0)


def quadrature(length):
    """Points on the circle or the sphere, (N, L), and their weights, (N,)."""
    angle = torch.arange(2000, dtype=torch.float64) * (2 * math.pi / 2000)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    if length == 2:
        return circle, torch.full((2000,), 2 * math.pi / 2000, dtype=torch.float64)
    count = 200
    off = torch.arange(1, count, dtype=torch.float64)
    matrix = torch.diag(off / (4 * off.square() - 1).sqrt(), 1)
    height, vectors = torch.linalg.eigh(matrix + matrix.T)  # the nodes of Gauss and Legendre, by Golub and Welsch
    circle = circle[::10]
    radius = (1 - height.square()).sqrt()
    points = torch.cat([radius[:, None, None] * circle, height[:, None, None].expand(-1, 200, 1)], -1)
    weights = 2 * vectors[0].square() * (2 * math.pi / 200)
    return points.flatten(0, 1), weights[:, None].expand(-1, 200).flatten()


@pytest.mark.parametrize("length", [2, 3])
@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_density_moments_entropy_and_kl_are_those_of_quadrature(length, concentration):
    loc = direction(length)
    q = PowerSpherical(loc, torch.tensor(concentration, dtype=torch.float64))
    uniform = SphereUniform(direction(length, seed=1))
    z, weights = quadrature(length)
    log_q = q.log_prob(z)
    mass, tolerance = log_q.exp() * weights, {"rtol": 1e-5, "atol": 1e-5 if concentration == 0.7 else 1e-10}
    mean = (mass[:, None] * z).sum(0)
    area = torch.tensor({2: 2 * math.pi, 3: 4 * math.pi}[length], dtype=torch.float64)
    wanted = {
        "mass": (mass.sum(), torch.ones((), dtype=torch.float64)),
        "mean": (q.mean, mean),
        "variance": (q.variance, (mass[:, None] * z.square()).sum(0) - mean.square()),
        "entropy": (q.entropy(), -(mass * log_q).sum()),
        "uniform": (uniform.log_prob(z).exp(), (1 / area).expand(len(z))),
        "uniform's entropy": (uniform.entropy(), area.log()),
        "KL": (kl_divergence(q, uniform), (mass * (log_q + area.log())).sum()),
    }
    for name, (one, other) in wanted.items():
        assert torch.allclose(one, other, **tolerance), name


@pytest.mark.parametrize("length", [5, 40])
def test_entropy_and_kl_are_means_over_draws(length):
    """Within 4.7 standard errors of 50,000 draws, 3e-6 each for two closed forms and two concentrations."""
    concentration = torch.tensor([2.0, 300.0], dtype=torch.float64)
    q, uniform = (
        PowerSpherical(direction(length).expand(2, -1), concentration),
        SphereUniform(direction(length, seed=1)),
    )
    torch.manual_seed(0)
    z = q.sample((50_000,))
    for closed, values in [
        (q.entropy(), -q.log_prob(z)),
        (kl_divergence(q, uniform), q.log_prob(z) - uniform.log_prob(z)),
    ]:
        assert ((closed - values.mean(0)).abs() < 4.7 * values.std(0) / 50_000**0.5).all()


@pytest.mark.parametrize(("first", "concentration"), [(1, 4.0), (-1, 4.0), (0, 4.0), (1, 0.0)])
@pytest.mark.parametrize("length", [2, 3, 17])
def test_draws_follow_the_density(length, first, concentration):
    """(1 + loc z) / 2 is Beta(a, b), and the direction around loc is uniform: two tests, 2e-5 together."""
    loc = direction(length, first)
    q = PowerSpherical(loc, torch.tensor(concentration, dtype=torch.float64))
    if concentration == 0:
        q = SphereUniform(loc)
    torch.manual_seed(first + 1)
    z = q.sample((20_000,))
    assert torch.allclose(z.norm(dim=-1), torch.ones((), dtype=torch.float64), atol=1e-14)
    b, along = (length - 1) / 2, z @ loc
    assert stats.kstest(((1 + along) / 2).numpy(), "beta", (concentration + b, b)).statistic < LIMIT / 20_000**0.5
    other = direction(length, seed=3)
    other = normalize(other - (other @ loc) * loc, dim=0)  # orthogonal to loc
    around = (z @ other) / (1 - along.square()).sqrt()
    if length == 2:
        assert abs((around > 0).double().mean().item() - 0.5) < 4.4 * 0.5 / 20_000**0.5
    else:
        marginal = (length - 2) / 2
        distance = stats.kstest(((1 + around) / 2).numpy(), "beta", (marginal, marginal)).statistic
        assert distance < LIMIT / 20_000**0.5


@pytest.mark.parametrize("first", [1, -1, 0])
def test_gradients_of_draws_are_those_of_the_expectation(first):
    """By all parameters, of E[(c z)^2] and E[z_1]: within 4.9 standard errors of 40,000 draws, 1e-5 in all."""
    length, count = 4, 40_000
    loc = direction(length, first).requires_grad_()
    concentration = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    c = torch.zeros(length, dtype=torch.float64)
    c[1] = 1.0

    def built(loc, concentration):
        return PowerSpherical(normalize(loc, dim=-1), concentration)

    q = built(loc, concentration)
    exact = [(q.variance + q.mean.square()) @ c, q.mean[0]]
    torch.manual_seed(2)
    locs = loc.detach().expand(count, -1).clone().requires_grad_()
    concentrations = concentration.detach().expand(count).clone().requires_grad_()
    z = built(locs, concentrations).rsample()
    for wanted, values in zip(exact, [(z * c).sum(-1).square(), z[:, 0]]):
        ours = torch.autograd.grad(values.sum(), [locs, concentrations], retain_graph=True)
        theirs = torch.autograd.grad(wanted, [loc, concentration], retain_graph=True)
        for each, one in zip(ours, theirs):
            assert ((each.mean(0) - one).abs() < 4.9 * each.std(0) / count**0.5 + 1e-12).all()


@pytest.mark.parametrize("length", [2, 32])
@pytest.mark.parametrize("concentration", [1.0, 1e3, 1e6])
def test_float32_is_as_good_as_float64_at_high_concentrations(length, concentration):
    """Log-density, entropy and KL at the same z, and the distance of 20,000 draws from a loc near the first axis."""
    loc = normalize(
        torch.eye(length)[0] + 1e-4 * torch.randn(length, generator=torch.Generator().manual_seed(0)), dim=0
    )
    q = PowerSpherical(loc, torch.tensor(concentration))
    exact = PowerSpherical(normalize(loc.double(), dim=0), torch.tensor(concentration, dtype=torch.float64))
    torch.manual_seed(0)
    z = q.sample((20_000,))
    assert (q.log_prob(z).double() - exact.log_prob(normalize(z.double(), dim=-1))).abs().max() < 4e-3
    assert q.entropy().item() == pytest.approx(exact.entropy().item(), abs=1e-4)
    uniform, other = (SphereUniform(one.loc) for one in (q, exact))
    assert kl_divergence(q, uniform).item() == pytest.approx(kl_divergence(exact, other).item(), abs=1e-4)
    b, near = (length - 1) / 2, (z.double() - exact.loc).square().sum(-1) / 4  # (1 - loc z) / 2
    assert stats.kstest(near.numpy(), "beta", (b, b + concentration)).statistic < LIMIT / 20_000**0.5


@pytest.mark.parametrize("concentration", [1.0, 1e3, 6e4])
def test_gradients_of_float32_draws_are_right_at_high_concentrations(concentration):
    """That of E[(1 - loc z) / 2] = b / (a + b), to 1 % and 4.3 standard errors; of a float32 Beta it is 9 % off."""
    given = torch.full((100_000,), concentration, requires_grad=True)
    q = PowerSpherical(direction(2, dtype=torch.float32).expand(100_000, -1), given)
    torch.manual_seed(0)
    near = (q.rsample() - q.loc).square().sum(-1) / 4
    (each,) = torch.autograd.grad(near.sum(), given)
    exact = -0.5 / (1 + concentration) ** 2
    assert (
        abs(each.double().mean().item() / exact - 1) < 0.01 + 4.3 * (each.double() / exact).std().item() / 100_000**0.5
    )


@pytest.mark.parametrize("loc", [(1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (-0.0, 0.0, -1.0)])
def test_axes_and_their_opposites_have_finite_draws_and_gradients(loc):
    loc, concentration = torch.tensor(loc, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    q = PowerSpherical(loc, concentration)
    log_q = torch.cat([q.log_prob(q.rsample((100,))), q.log_prob(-loc.detach())[None], q.log_prob(loc.detach())[None]])
    log_q.sum().backward()
    assert log_q.isfinite().all()
    assert loc.grad.isfinite().all()
    assert concentration.grad.isfinite()
    assert q.log_prob(-loc.detach()) < q.log_prob(loc.detach()) - 50


def test_shapes_expansion_and_refusals():
    q = PowerSpherical(direction(4), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    wide, draws = q.expand((2, 3)), []
    assert (q.batch_shape, q.event_shape) == ((3,), (4,))
    for draw in (wide.rsample, lambda: q.rsample((2,))):
        torch.manual_seed(0)
        draws.append(draw())
    assert torch.equal(*draws)
    assert torch.equal(wide.log_prob(draws[0]), q.log_prob(draws[0]))
    assert kl_divergence(wide, SphereUniform(direction(4)).expand((2, 3))).shape == (2, 3)
    for bad in [{"loc": torch.ones(3)}, {"concentration": torch.tensor(-1.0)}]:
        with pytest.raises(ValueError, match="constraint"):
            PowerSpherical(**{"loc": torch.eye(3)[0], "concentration": torch.ones(()), **bad})
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.ones(4, dtype=torch.float64))
