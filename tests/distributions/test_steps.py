"""Values that were recorded in steps, and values of which many are one: masses by 60 digits, gradients, sums, draws."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.distributions.values import InFloat64, InSteps, WithAtom, is_atom, log_tail_of_t
from pvae.models.features import fit_to

mpmath = pytest.importorskip("mpmath")

STEPS = (1e-9, 1e-6, 1e-4, 3e-3, 0.1, 0.9, 7.0, 50.0)  # in scales
FAR = (0.0, 0.01, -0.6, 2.0, -2.0, 8.0, -8.0, 37.0, -37.0, 200.0, -200.0)
DF = 2.5  # of Student's t


def tails_of_normal(y):
    """P(Y <= y) and P(Y > y) of N(0, 1)."""
    return mpmath.erfc(-y / mpmath.sqrt(2)) / 2, mpmath.erfc(y / mpmath.sqrt(2)) / 2


def tails_of_t(y, df=DF):
    """P(T <= y) and P(T > y) of Student's t."""
    tail = mpmath.betainc(df / 2, 0.5, 0, df / (df + y * y), regularized=True) / 2
    return (tail, 1 - tail) if y < 0 else (1 - tail, tail)


def student_t(loc, scale, **how):
    return dist.StudentT(torch.full_like(loc, DF), loc, scale, **how)


NAMES = {  # a distribution, its tails, whether it is that of the logarithm, and distances from its location in scales
    "normal": (dist.Normal, tails_of_normal, False, FAR),
    "log-normal": (dist.LogNormal, tails_of_normal, True, FAR),
    "student-t": (student_t, tails_of_t, False, FAR),
}


def points(name, loc, scale):
    """Values and steps."""
    _, _, is_log, distances = NAMES[name]
    for distance, step in itertools.product(distances, STEPS):
        x, unit = loc + distance * scale, scale
        if is_log:
            x, unit = math.exp(x), scale * math.exp(x)
        yield x, step * unit


def truth(name, x, step, loc, scale):
    """The logarithm of the mass of a step, less that of the step."""
    _, tails, is_log, _ = NAMES[name]
    x, step, loc, scale = map(mpmath.mpf, (x, step, loc, scale))
    ends = []
    for end in (x - step / 2, x + step / 2):
        y = (mpmath.log(end) if end > 0 else -mpmath.inf) if is_log else end
        ends.append((mpmath.mpf(0), mpmath.mpf(1)) if y == -mpmath.inf else tails((y - loc) / scale))
    (below, over), (above, beyond) = ends
    return mpmath.log((above - below if above < over else over - beyond) / step)


def in_steps(name, x, step, loc, scale, dtype):
    """log p of some values, and its gradients by location and scale."""
    x, step = (torch.tensor(one, dtype=dtype) for one in (x, step))
    free = [torch.full_like(x, one).requires_grad_() for one in (loc, scale)]
    found = InSteps(NAMES[name][0](*free), step).log_prob(x)
    assert found.dtype == dtype
    return found.detach(), *torch.autograd.grad(found.sum(), free)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-0.7, 0.3)])
@pytest.mark.parametrize("name", NAMES)
def test_a_mass_and_its_gradients_are_those_of_60_digits(name, loc, scale):
    """Values to 1e-9 of a value, or 1e-9 below 1; gradients to 1e-7."""
    x, step = zip(*points(name, loc, scale))
    found = in_steps(name, x, step, loc, scale, torch.float64)
    with mpmath.workdps(60):
        for one, u, *ours in zip(x, step, *(one.tolist() for one in found)):
            exact = [truth(name, one, u, loc, scale)]
            exact += [mpmath.diff(lambda a: truth(name, one, u, a, scale), loc)]  # noqa: B023
            exact += [mpmath.diff(lambda a: truth(name, one, u, loc, a), scale)]  # noqa: B023
            for mine, right, error in zip(ours, map(float, exact), (1e-9, 1e-7, 1e-7)):
                assert mine == pytest.approx(right, rel=error, abs=error / scale), (one, u)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_float32_outputs_are_exact_where_the_density_is_in_float64(name):
    """As a likelihood has it: gradients return to float32 by one rounding."""
    x, step = (torch.tensor(one, dtype=torch.float64) for one in zip(*points(name, -0.7, 0.3)))
    loc, scale = (torch.full_like(x, one, dtype=torch.float32).requires_grad_() for one in (-0.7, 0.3))
    found = InSteps(InFloat64(NAMES[name][0](loc.double(), scale.double()), torch.float32), step).log_prob(x)
    assert found.dtype == torch.float32
    gradients = torch.autograd.grad(found.sum(), [loc, scale])
    exact = in_steps(name, x.tolist(), step.tolist(), loc[0].item(), scale[0].item(), torch.float64)
    for one, right in zip((found, *gradients), exact):
        torch.testing.assert_close(one.double(), right, rtol=2e-7, atol=1e-6)


def free(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


SUMS = {  # a base and its parameters, and a range beyond which there is nothing
    "normal": (dist.Normal, (0.3, 2.5), -26.0, 26.0),
    "log-normal": (dist.LogNormal, (0.2, 0.6), 0.0, 120.0),
    "student-t": (dist.StudentT, (30.0, 0.3, 0.2), -20.0, 20.0),
}


@pytest.mark.parametrize("step", [0.01, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("name", SUMS)
def test_the_steps_of_all_values_have_probability_1(name, step):
    """Also those that reach over an end of the support; no value is more likely than its step, gradients are finite."""
    base, parameters, least, greatest = SUMS[name]
    parameters = [*map(free, parameters)]
    x = step * torch.arange(math.floor(least / step) - 2, math.ceil(greatest / step) + 3, dtype=torch.float64)
    log_p = InSteps(base(*parameters, validate_args=False), torch.tensor(step, dtype=torch.float64)).log_prob(x)
    assert (log_p.exp() * step).sum().item() == pytest.approx(1, abs=1e-10)
    assert (log_p <= -math.log(step) + 1e-12).all()
    assert name != "log-normal" or (log_p == -math.inf).any(), "there are steps beyond the support"
    for gradient in torch.autograd.grad(log_p.sum(), parameters):
        assert gradient.isfinite()


@pytest.mark.parametrize("df", [1.01, 2.5, 50.0, 1e4])
def test_the_tail_of_students_t_and_its_gradients_are_those_of_40_digits(df):
    t = torch.tensor([-300.0, -4.0, -0.3, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    freedom = torch.full_like(t, df, requires_grad=True)
    found = log_tail_of_t(t, freedom)
    ours = torch.stack([found, *torch.autograd.grad(found.sum(), [t, freedom])], 1).tolist()
    with mpmath.workdps(40):
        for one, mine in zip(t.tolist(), ours):
            log_tail = lambda y, k: mpmath.log(tails_of_t(y, k)[0])  # noqa: E731
            by_t, by_df = (mpmath.diff(log_tail, (one, df), n) for n in ((1, 0), (0, 1)))
            right = [*map(float, (log_tail(one, df), by_t, by_df))]
            assert mine == pytest.approx(right, rel=1e-7, abs=1e-13), one


@pytest.mark.parametrize("name", ["normal-diagonal", "student-t"])
def test_a_likelihood_makes_no_value_more_likely_than_its_step(name):
    """In exact float64: values 0 and 0.1, most of them 0, whatever the trained scale is, and together at most 1."""
    data = torch.tensor([[0.0]] * 999 + [[0.1]], dtype=torch.float64)
    vae = build_vae(Config(likelihood=name, latent_dim=1, hidden=(2,)), (1,))
    fit_to(vae, data)
    p_x = vae.p_x.double()
    at_0 = -p_x.units.loc / p_x.units.scale
    assert p_x.units.step.item() == pytest.approx(0.1, rel=1e-6)
    for log_scale in range(-40, 20):
        torch.nn.init.constant_(p_x.log_scale, log_scale)
        output = torch.zeros(p_x.output_shape, dtype=torch.float64)
        output[0] = at_0
        zero, tenth = p_x.given(output.requires_grad_()).log_prob(data[[0, -1]])
        assert (torch.logaddexp(zero, tenth) - math.log(10)).item() <= 1e-6  # of a step in float32
        assert log_scale > -20 or zero.item() == pytest.approx(math.log(10), abs=0.06), "the bound is reached"
        assert torch.autograd.grad(zero + tenth, output)[0].isfinite().all()


def test_without_a_step_it_is_the_base():
    x = torch.linspace(0.1, 9, 50, dtype=torch.float64)
    for base in (
        dist.Normal(free(1.3), free(0.2)),
        dist.LogNormal(free(1.3), free(0.2)),
        dist.StudentT(free(3.0), free(1.0), free(1.0)),
    ):
        step = (torch.arange(50) % 2).double()  # none for every other value
        found = InSteps(base, step)
        assert torch.equal(found.log_prob(x)[::2], base.log_prob(x)[::2])
        assert (found.log_prob(x) != base.log_prob(x))[1::2].all()
        assert torch.equal(found.mean, base.mean)
        assert torch.equal(found.variance, base.variance)


def test_outside_the_support_of_the_base_there_is_a_step_and_no_density():
    """x = 0 of a log-Normal has a probability in steps of 1, and else none; gradients are finite."""
    x, step = torch.tensor([[0.0, 0.0, -0.4, -3.0, -3.0, 2.0], [1, 0, 1, 1, 0, 0]], dtype=torch.float64)
    loc, scale = free(0.3), free(0.7)
    found = InSteps(dist.LogNormal(loc, scale), step).log_prob(x)
    below = dist.Normal(0.0, 1.0).cdf((torch.tensor([0.5, 0.1], dtype=torch.float64).log() - 0.3) / 0.7).log()
    torch.testing.assert_close(found[[0, 2]], below, rtol=1e-12, atol=0)
    assert found[[1, 3, 4]].tolist() == [-math.inf] * 3
    assert found[5] == dist.LogNormal(loc, scale).log_prob(x[5])
    assert all(one.isfinite() for one in torch.autograd.grad(found.sum(), [loc, scale]))
    assert InSteps(dist.Normal(0.0, 1.0), torch.zeros(1)).log_prob(torch.tensor([math.nan])).isnan()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch maps log_ndtr in a loop
@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_recorded_and_mapped(name):
    """As the step of a training is, which checks no arguments."""
    kind, x, step = NAMES[name][0], torch.linspace(0.1, 3, 6).double(), torch.tensor([0, 0.1, 1] * 2).double()
    loc, scale = torch.linspace(-2, 2, 24).double().view(4, 6), torch.linspace(0.1, 1, 24).double().view(4, 6)

    def log_p(loc, scale, x):
        in_steps = InSteps(kind(loc, scale), step)
        return in_steps.log_prob(x) + WithAtom(in_steps, step / 2, loc, step).log_prob(x)

    with pyro.validation_enabled(False):
        expected = torch.stack([log_p(*one, x) for one in zip(loc, scale)])
        torch.testing.assert_close(log_p(loc, scale, x), expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(torch.func.vmap(log_p, (0, 0, None))(loc, scale, x), expected, rtol=1e-13, atol=0)
        assert torch.equal(make_fx(log_p)(loc[0], scale[0], x)(loc[1], scale[1], x), expected[1])
        wider = InSteps(kind(loc[0], scale[0]), step).expand((4, 6))
        assert wider.log_prob(x).shape == wider.batch_shape == (4, 6)


def with_atom(step, dtype=torch.float64):
    """A log-Normal above -1.5, of which 0.3 are exactly that, and its parameters, which are trained."""
    loc, scale, logit = (torch.tensor(one, dtype=dtype, requires_grad=True) for one in (0.2, 0.6, math.log(3 / 7)))
    rest = InFloat64(dist.LogNormal(loc.double(), scale.double(), validate_args=False), dtype)
    u, atom = torch.tensor([step, -1.5], dtype=torch.float64)
    return WithAtom(InSteps(rest, u) if step else rest, atom, logit.double(), u), (loc, scale, logit)


def integral(function, p):
    """Of a function of x times the density above the atom, by the trapezoid rule in log (x - a)."""
    t = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    x = p.atom + t.exp()
    return torch.trapezoid(function(x) * p.log_prob(x).exp() * t.exp(), t).item()


def test_the_least_value_and_the_others_have_probability_1():
    """In steps, the others that lie less than half a step above the least one are recorded as it."""
    p, _ = with_atom(0.0)
    log_pi = p.log_prob(p.atom)
    assert log_pi.item() == pytest.approx(math.log(0.3), rel=1e-14)
    assert log_pi.exp().item() + integral(torch.ones_like, p) == pytest.approx(1, abs=1e-10)
    for step in (0.01, 0.5, 4.0):
        p, _ = with_atom(step)
        x = p.atom + step * torch.arange(math.ceil(200 / step), dtype=torch.float64)
        log_p = p.log_prob(x)
        near = 0.7 * float(mpmath.ncdf((mpmath.log(step / 2) - 0.2) / 0.6))
        assert (log_p.exp() * step).sum().item() == pytest.approx(1, abs=1e-10)
        assert log_p[0].exp().item() * step == pytest.approx(0.3 + near, rel=1e-13)
        torch.testing.assert_close(log_p[1:] - math.log(0.7), p.rest.log_prob(x[1:] + 1.5), rtol=1e-12, atol=0)


def test_mean_and_variance_are_those_of_the_density():
    p, _ = with_atom(0.0)
    mean = 0.3 * -1.5 + integral(lambda x: x, p)
    variance = 0.3 * (-1.5 - mean) ** 2 + integral(lambda x: (x - mean) ** 2, p)
    assert p.mean.item() == pytest.approx(mean, rel=1e-9)
    assert p.variance.item() == pytest.approx(variance, rel=1e-9)


def test_draws_are_the_least_value_as_often_as_it_is_likely():
    """The share of 200,000 draws and the mean of their log p, at 4.3 standard errors: each fails in 2e-5 of seeds."""
    p, _ = with_atom(0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = p.sample((200_000,))
    assert x.min() == p.atom
    assert not x.requires_grad
    share, error = (x == p.atom).double().mean().item(), math.sqrt(0.21 / 200_000)
    assert error < 0.002, "this sample could not have seen an error of a hundredth"
    assert share == pytest.approx(0.3, abs=4.3 * error)
    log_p = p.log_prob(x).detach()
    exact = 0.3 * math.log(0.3) + integral(lambda x: p.log_prob(x), p)
    assert log_p.mean().item() == pytest.approx(exact, abs=4.3 * log_p.std().item() / len(x) ** 0.5)


@pytest.mark.parametrize("step", [0.0, 0.5])
@pytest.mark.parametrize("atom", [0.0, 0.1, -0.7, 1e5 / 3])
def test_a_value_is_the_least_one_up_to_the_rounding_of_float32(atom, step):
    """Whichever of the two is in float32; what lies below it is no value, and has no gradient."""
    at = torch.tensor(atom, dtype=torch.float64)
    p, (loc, _, _) = with_atom(step)
    for kept, given in itertools.product((at, at.float().double()), repeat=2):
        one = WithAtom(p.rest, kept, p.logits, p.step)
        x = given + torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
        assert is_atom(x, kept, p.step).tolist() == [True, False, False]
        assert is_atom(given + 0.4 * p.step, kept, p.step), "nearer to it than to the next step"
        at_atom, above, below = one.log_prob(x)
        near = 0.7 * float(mpmath.ncdf((mpmath.log(step / 2) - 0.2) / 0.6)) if step else 0
        assert at_atom.item() == pytest.approx(math.log((0.3 + near) / (step or 1)), rel=1e-12)
        assert above.item() == pytest.approx(
            math.log(0.7) + p.rest.log_prob(torch.tensor(0.5).double()).item(), abs=1e-2
        )
        assert below == -math.inf
        assert torch.autograd.grad(at_atom + above + below, loc, retain_graph=True)[0].isfinite()


@pytest.mark.parametrize("step", [0.0, 0.25])
def test_gradients_of_an_atom_are_finite_and_those_of_float64(step):
    """Of the atom itself, of values a step above it, and far above it; a value that is missing has none."""
    x = torch.tensor([-1.5, -1.25, 0.0, 1e4], dtype=torch.float64)
    found = []
    for dtype in (torch.float32, torch.float64):
        p, trained = with_atom(step, dtype)
        each = [torch.autograd.grad(p.log_prob(one), trained, allow_unused=True) for one in x]
        found.append(torch.tensor([[0.0 if one is None else one.item() for one in row] for row in each]))
    assert found[0].isfinite().all()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert step or found[0][0, :2].tolist() == [0, 0], "the least value says nothing of the others"


def test_a_change_of_units_changes_an_atom_and_the_others_by_the_same_constant():
    """Where values have steps: otherwise the atom has a probability, which has no unit."""
    p, _ = with_atom(0.25)
    x = torch.tensor([-1.5, -1.25, 0.0, 40.0], dtype=torch.float64)
    rest = InSteps(dist.LogNormal(0.2 + torch.tensor(1000.0).double().log(), 0.6), torch.tensor(250.0).double())
    other = WithAtom(rest, 1000 * p.atom, p.logits, 1000 * p.step)
    difference = p.log_prob(x) - other.log_prob(1000 * x)
    torch.testing.assert_close(difference, torch.full_like(x, math.log(1000)), rtol=1e-12, atol=1e-12)
