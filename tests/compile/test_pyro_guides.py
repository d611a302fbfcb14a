"""Pyro's own guides, flows and ELBOs are recorded, and train like eager steps; or they are refused in one line."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from conftest import needs_inductor
from helpers.svi import KINDS, assert_trained_alike, trained
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import Distribution

from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.core.errors import InputError
from pvae.elbos.registry import build_elbo

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, generator=_GENERATOR)
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * torch.randn(20, generator=_GENERATOR)


def regression(x, y):
    """A linear regression; all its latents are global."""
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ weights + bias, scale), obs=y)


def factors(x, _):
    """A linear model with a latent z of each datum."""
    loading = pyro.param("loading", lambda: torch.randn(2, 3))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z @ loading, 1.0).to_event(1), obs=x)


def zuko_flow(*arguments, **options):
    """Import zuko without its switching off all validation."""
    before = Distribution._validate_args
    flows = pytest.importorskip("zuko").flows
    Distribution.set_default_validate_args(before)
    return flows.MAF(*arguments, transforms=2, hidden_features=(8,), **options)


class GlobalFlow(nn.Module):
    """A flow over all latents of the regression."""

    def __init__(self):
        super().__init__()
        self.flow = zuko_flow(5)

    def forward(self, x, y):
        pyro.module("flow", self.flow)
        joint = pyro.sample("joint", ZukoToPyro(self.flow()), infer={"is_auxiliary": True})
        pyro.sample("weights", dist.Delta(joint[:3], event_dim=1))
        pyro.sample("bias", dist.Delta(joint[3]))
        pyro.sample("scale", dist.Delta(joint[4].exp(), log_density=-joint[4]))


class LocalFlow(nn.Module):
    """A flow of each datum, given x."""

    def __init__(self):
        super().__init__()
        self.flow = zuko_flow(2, 3)

    def forward(self, x, _):
        pyro.module("flow", self.flow)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", ZukoToPyro(self.flow(x)))


class MadeAtFirst(nn.Module):
    """A guide that makes its network, with random weights, when it is first called."""

    def __init__(self, is_lazy=False):
        super().__init__()
        self.net = nn.LazyLinear(2) if is_lazy else None

    def forward(self, x, _):
        if self.net is None:
            self.net = nn.Linear(3, 2)
        with pyro.plate("data", x.shape[0]):
            loc = self.net(x)
            pyro.module("net", self.net)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


GUIDES = {
    "AutoNormal": lambda: (regression, AutoNormal(regression)),
    "AutoMultivariateNormal": lambda: (regression, AutoMultivariateNormal(regression)),
    "AutoIAFNormal": lambda: (regression, AutoIAFNormal(regression, hidden_dim=[8], num_transforms=2)),
    "AutoNormal over local latents": lambda: (factors, AutoNormal(factors)),
    "zuko": lambda: (regression, GlobalFlow()),
    "zuko given x": lambda: (factors, LocalFlow()),
    "made at its first step": lambda: (factors, MadeAtFirst()),
    "lazy": lambda: (factors, MadeAtFirst(is_lazy=True)),
}


def assert_guide_trains_alike(make, elbo, *inputs, engine="graph", rel=0.0, **options):
    """Bit for bit, or to `rel`: parameters, losses and the random state, by an optimiser of Pyro's."""
    compiled = CompiledELBO(elbo(), engine)
    ours, theirs = (
        trained(make, one, [inputs] * 6, optimizer=pyro.optim.Adam({"lr": 0.02}), evaluates=True, **options)
        for one in (compiled, elbo())
    )
    assert_trained_alike(ours, theirs, rel=rel, loss_rel=1e-5)
    assert compiled.num_recordings == 2, "one of the steps, one of the evaluation"


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("kind", GUIDES)
def test_guides_train_as_eager_bit_for_bit(kind, elbo):
    """From the same seed, also where the guide draws its parameters at its first step."""
    assert_guide_trains_alike(GUIDES[kind], elbo, X, Y)


@needs_inductor
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal", "zuko given x"])
def test_guides_train_as_eager_by_inductor(kind):
    assert_guide_trains_alike(GUIDES[kind], Trace_ELBO, X, Y, engine="inductor", rel=1e-4)


def test_a_vae_with_a_guide_of_its_own(small_vae, small_images):
    """The encoder's features are the context of a zuko flow over z."""

    def make():
        vae, flow = small_vae().float(), zuko_flow(3, 20)

        def guide(x):
            pyro.module("flow", flow)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", ZukoToPyro(flow(x.flatten(1))))

        return vae.model, guide

    assert_guide_trains_alike(make, functools.partial(build_elbo, "trace"), small_images(6).float())


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoIAFNormal", "AutoNormal over local latents"])
def test_a_guide_that_is_called_between_steps_is_not_recorded_anew(kind):
    """A call fills the caches of its transforms and makes its plates anew."""

    def called(step, guide, optimizer):
        if step == 0:  # nothing has been recorded
            return
        with torch.no_grad(), pyro.poutine.block():
            guide(X, Y)

    assert_guide_trains_alike(GUIDES[kind], Trace_ELBO, X, Y, on_step=called)


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoIAFNormal"])
def test_guides_train_under_the_recorded_update(kind):
    def make():
        model, guide = GUIDES[kind]()
        guide(X, Y)  # creates the parameters
        return model, guide

    svi, elbo = KINDS["step"](Trace_ELBO())
    ours, theirs = trained(make, elbo, [(X, Y)] * 5, svi), trained(make, Trace_ELBO(), [(X, Y)] * 5)
    assert_trained_alike(ours, theirs, rel=0, loss_rel=1e-5)


def test_guides_may_take_turns_at_their_first_steps():
    elbo = CompiledELBO(Trace_ELBO())
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        guides = [AutoNormal(regression), AutoNormal(factors)]
        svis = [SVI(g.model, g, pyro.optim.Adam({"lr": 0.01}), loss=elbo) for g in guides]
        for _ in range(3):
            for svi in svis:
                svi.step(X, Y)
    assert elbo.num_recordings == 2


def test_plates_are_counted_once_in_a_first_step():
    """Pyro draws once more to guess max_plate_nesting; the guess is stored in the ELBO."""
    elbo = functools.partial(Trace_ELBO, num_particles=3, vectorize_particles=True)
    assert_guide_trains_alike(lambda: (factors, LocalFlow()), elbo, X, Y)


def test_a_trial_run_is_undone_where_a_module_changes_itself():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps, self.seen = 0, []

        def forward(self, x, _):
            self.steps += 1
            self.seen.append(self.steps)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    guide = Counts()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi = SVI(factors, guide, pyro.optim.Adam({"lr": 0.01}), loss=CompiledELBO(Trace_ELBO()))
        svi.step(X, Y)
        with pytest.raises(InputError, match="changes itself"):
            svi.step(X, Y)
    assert (guide.steps, guide.seen) == (1, [1])


_FLOWS = {}


def density(is_global):
    """A flow's density of constant data, for a model without arguments."""
    flow = _FLOWS["flow"] = T.affine_coupling(3, hidden_dims=[8])
    held = dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([3]).to_event(1), [flow])

    def model():
        pyro.module("flow", flow)
        fn = held
        if is_global:
            fn = dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([3]).to_event(1), [_FLOWS["flow"]])
        with pyro.plate("data", len(X)):
            pyro.sample("x", fn, obs=X)

    return model, lambda: None


@pytest.mark.parametrize("is_global", [False, True])
def test_a_recording_reads_no_cache_of_an_earlier_run(is_global):
    """The data are one tensor, which the cache would find; the held distribution validates its values."""
    assert_guide_trains_alike(
        functools.partial(density, is_global), Trace_ELBO, on_step=lambda *_: _FLOWS["flow"].clear_cache()
    )


def test_a_recording_leaves_caches_and_validation_as_they_were():
    validates = Distribution._validate_args
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        model, guide = density(is_global=False)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=CompiledELBO(Trace_ELBO()))
        try:
            Distribution.set_default_validate_args(False)
            svi.step()
            assert not Distribution._validate_args
        finally:
            Distribution.set_default_validate_args(validates)
    assert svi.loss.__self__.num_recordings == 1
    assert _FLOWS["flow"]._cached_x_y == (None, None)
    assert _FLOWS["flow"]._cached_log_scale is None


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_model_without_arguments_is_recorded(elbo):
    def make():
        model = functools.partial(regression, X, Y)
        return model, AutoNormal(model)

    assert_guide_trains_alike(make, elbo)


def mixture(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        one = pyro.sample("one", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        is_impossible = one.bool() & (torch.arange(len(x)) < 8)
        pyro.factor("possible", torch.where(is_impossible, -torch.inf, 0.0))
        pyro.sample("x", dist.Normal(loc[one.long()], 1.0), obs=x)


def assignment(x, infer):
    """Its first eight probabilities are 0 in float32: Pyro leaves their costs out, which are infinite."""
    logits = pyro.param("logits", torch.linspace(-200.0, 1.0, len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("one", dist.Bernoulli(logits=logits), infer=infer)


ENUMERATED = {
    "in the model": lambda x: None,
    "in the guide": functools.partial(assignment, infer={"enumerate": "parallel"}),
    "nowhere": functools.partial(assignment, infer={}),
}


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("where", ENUMERATED)
@pytest.mark.parametrize("max_plate_nesting", [1, float("inf")])
def test_enumeration_is_recorded(where, max_plate_nesting):
    elbo = functools.partial(TraceEnum_ELBO, max_plate_nesting=max_plate_nesting)
    assert_guide_trains_alike(lambda: (mixture, ENUMERATED[where]), elbo, X[:, 0].contiguous(), rel=1e-5)


def test_what_cannot_be_recorded_is_refused_in_one_line():
    with pytest.raises(TypeError, match="TraceGraph_ELBO cannot be recorded"):
        CompiledELBO(TraceGraph_ELBO())
    with pyro.get_param_store().scope(), pytest.raises(InputError, match="only tensors"):
        CompiledELBO(Trace_ELBO()).loss_and_grads(factors, MadeAtFirst(), X, None)


def test_an_optimiser_that_cannot_be_recorded_is_given_all_inputs():
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        guide = AutoNormal(regression)
        guide(X, Y)
        optimizer = SingleOptimizer(torch.optim.SGD(guide.parameters(), lr=1e-3))
        assert CompiledSVI(regression, guide, optimizer, CompiledELBO(Trace_ELBO())).step(X, Y) > 0
