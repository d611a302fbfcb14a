"""A replayed step equals the eager one, and a recording is replayed only for what it depends on."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import needs_inductor
from helpers.svi import ELBOS, KINDS, adam, assert_trained_alike, built, trained
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, AdamW

from pvae.compile import graph
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.graph import RecordingError
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.core.errors import InputError, NotFiniteError
from pvae.elbos.registry import build_elbo
from pvae.models.build import build_vae

WEIGHS_RATE = ("trace", "analytic", "handwritten", "stl", "score", "score-loo")
CASES = [(name, 4, "step") for name in ELBOS]
CASES += [
    pytest.param(name, particles, kind, marks=pytest.mark.workflow)
    for name in ELBOS
    for particles in (1, 4)
    for kind in KINDS
    if (particles, kind) != (4, "step") and not (name == "score-loo" and particles == 1)
]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
ENGINES = [
    ("graph", "cpu"),
    pytest.param("graph", "cuda", marks=ON_GPU),
    pytest.param("inductor", "cuda", marks=[ON_GPU, needs_inductor]),
]


@pytest.mark.parametrize(("engine", "device"), ENGINES)
@pytest.mark.parametrize(("name", "particles", "kind"), CASES)
def test_compiled_trains_as_eager(small_vae, small_images, name, particles, kind, engine, device):
    """Twenty steps with a short batch in the middle, another learning rate at each, and a warm-up of beta."""
    batches = [small_images(3 if step == 10 else 8, seed=step).to(device) for step in range(20)]

    def on_step(step, _, optimizer):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)

    given = {"on_step": on_step}
    given["beta_of"] = (lambda step: min(1.0, step / 8)) if name in WEIGHS_RATE else None
    start = [p.detach().clone() for p in small_vae().parameters()]
    svi, elbo = KINDS[kind](built(name, particles), engine)
    compiled = trained(small_vae().to(device), elbo, batches, svi, **given)
    assert_trained_alike(compiled, trained(small_vae().to(device), built(name, particles), batches, **given))
    assert elbo.num_recordings == 2, "one for each batch size"
    assert all(not torch.equal(old, now.cpu()) for old, now in zip(start, compiled.parameters.values()))


@pytest.mark.parametrize("name", ["trace", "analytic", "handwritten"])
def test_free_bits_are_recorded(small_vae, small_images, name):
    batches = [small_images(8, seed=step) for step in range(5)]
    eager = trained(small_vae(), built(name, 2, free_bits=0.3), batches)
    assert_trained_alike(trained(small_vae(), CompiledELBO(built(name, 2, free_bits=0.3)), batches), eager)


SYSTEMS = {
    "two layers": {"upper_latent_dims": (2,), "upper_hidden": (4,), "elbo": "iwae", "particles": 3},
    "ladder": {"upper_latent_dims": (2, 2), "upper_hidden": (4,), "inference": "ladder", "elbo": "analytic"},
    "ladder, batch norm": {"upper_latent_dims": (2,), "inference": "ladder", "network": "mlp-batchnorm"},
    "top-down": {"upper_latent_dims": (2,), "inference": "top-down", "elbo": "dreg", "particles": 3},
    "piwae of a learned prior": {"prior": "vamp", "components": 5, "elbo": "piwae", "particles": 3},
    "batch norm": {"network": "conv-batchnorm", "hidden": (3, 4), "likelihood": "normal-learned"},
    "optimal scale": {"likelihood": "normal-optimal"},
    "continuous": {"likelihood": "continuous-bernoulli"},
    "levels": {"likelihood": "discretized-logistic"},
    "autoencoder": {"posterior": "delta"},
    "planar": {"posterior": "planar", "elbo": "stl"},
    "splines, flow": {"posterior": "spline", "prior": "flow", "flow_hidden": (5,), "elbo": "dreg"},
    "mixture": {"prior": "mixture", "elbo": "dreg"},
    "sphere": {"posterior": "power-spherical", "prior": "sphere", "elbo": "analytic"},
    "sphere, stl": {"posterior": "power-spherical", "prior": "sphere", "elbo": "stl"},
}
WAYS = [pytest.param(kind, "graph", marks=[pytest.mark.workflow] if "flow" in kind else []) for kind in SYSTEMS]
WAYS += [
    pytest.param(kind, "inductor", marks=[needs_inductor, pytest.mark.slow])
    for kind in ("planar", "splines, flow", "mixture", "sphere")
]


@pytest.mark.parametrize(("kind", "engine"), WAYS)
def test_every_kind_of_system_is_recorded(kind, engine):
    """The running averages of BatchNorm and of the optimal scale are updated as often as without a recording."""
    config = Config(**{"hidden": (6,), "latent_dim": 3, "particles": 2, **SYSTEMS[kind]})
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(6, 1, 4, 4, generator=generator) * 255).round().double() / 255 for _ in range(4)]

    def vae():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_vae(config, (1, 4, 4)).double()

    eager, compiled = vae(), vae()
    theirs = trained(eager, built(config.elbo, config.particles), batches)
    svi, elbo = KINDS["step"](built(config.elbo, config.particles), engine)
    assert_trained_alike(trained(compiled, elbo, batches, svi), theirs)
    assert elbo.num_recordings == 1
    for (name, mine), other in zip(compiled.named_buffers(), eager.buffers()):
        assert torch.allclose(mine, other, rtol=1e-9), name


def test_each_mode_and_each_vae_has_its_own_recording(small_vae, small_images):
    """Dropout draws in training alone; one ELBO trains two VAEs."""
    batches = [small_images(8, seed=step) for step in range(8)]

    def on_step(step, vae, _):
        vae.train(step % 4 < 2)

    def vae_of(seed):
        vae = small_vae(seed=seed)
        vae.p_x.decoder[1] = nn.Dropout(0.5)
        return vae

    elbo = CompiledELBO(built("trace", 1))
    for seed in (0, 1):
        theirs = trained(vae_of(seed), built("trace", 1), batches, on_step=on_step)
        assert_trained_alike(trained(vae_of(seed), elbo, batches, on_step=on_step), theirs)
    assert elbo.num_recordings == 4


def test_values_may_change_between_steps(small_vae, small_images):
    """Parameters, buffers, beta of the ELBO, and the optimiser's rate, betas and epsilon are read anew."""

    def on_step(step, vae, optimizer):
        if step == 3:
            vae.load_state_dict({name: 0.5 * value for name, value in vae.state_dict().items()})
            vae.p_z.loc.fill_(1.0)
            optimizer.param_groups[0].update(betas=(0.5, 0.9), eps=1e-1)

    batches = [small_images(8, seed=step) for step in range(6)]
    theirs = trained(small_vae(), built("trace"), batches, on_step=on_step)
    for kind in KINDS:
        svi, elbo = KINDS[kind](built("trace"))
        assert_trained_alike(trained(small_vae(), elbo, batches, svi, on_step=on_step), theirs)
    assert trained(small_vae(), built("trace"), batches).losses != theirs.losses


def test_a_replaced_parameter_is_recorded_anew(small_vae, small_images):
    def on_step(step, vae, optimizer):
        if step == 3:
            pyro.clear_param_store()
            layer = vae.p_x.decoder[0]
            layer.weight = nn.Parameter(layer.weight.detach() + 0.1)

    batches = [small_images(8, seed=step) for step in range(6)]
    made = pyro.optim.Adam({"lr": 0.01})
    ours = trained(small_vae(), CompiledELBO(built("trace")), batches, on_step=on_step, optimizer=made)
    theirs = trained(small_vae(), built("trace"), batches, on_step=on_step, optimizer=pyro.optim.Adam({"lr": 0.01}))
    assert_trained_alike(ours, theirs)


def test_evaluation_is_the_elbos_own(small_vae, small_images):
    vae, x = small_vae(), small_images(6)
    batches = [small_images(8, seed=step) for step in range(3)]
    for kind in KINDS:
        svi, elbo = KINDS[kind](built("trace"))
        theirs = trained(small_vae(), built("trace"), batches, evaluates=True)
        assert_trained_alike(trained(small_vae(), elbo, batches, svi, evaluates=True), theirs)
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            assert elbo.evaluate(vae.model, vae.guide, x).terms.rate.shape == (6,)
            assert not len(pyro.get_param_store())


def test_gradients_are_added_and_are_tensors_of_their_own(small_vae, small_images):
    vae, x = small_vae(), small_images(4)
    elbo, gradients = CompiledELBO(build_elbo("trace")), []
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        elbo.loss_and_grads(vae.model, vae.guide, x)
        for _ in range(2):
            vae.zero_grad()
            torch.manual_seed(5)
            elbo.loss_and_grads(vae.model, vae.guide, x)
            gradients.append([p.grad.clone() for p in vae.parameters()])
        torch.manual_seed(5)
        elbo.loss_and_grads(vae.model, vae.guide, x)
    assert elbo.num_recordings == 1
    assert all(map(torch.equal, *gradients))
    assert all(torch.allclose(p.grad, 2 * once) for p, once in zip(vae.parameters(), gradients[0]))
    assert len({p.grad.data_ptr() for p in vae.parameters()}) == len([*vae.parameters()])


def test_a_shared_parameter_gets_its_gradient_once(small_vae, small_images):
    def shared():
        vae = small_vae()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.Linear(8, 8).double()
            vae.q_z.encoder[5], vae.p_x.decoder[0] = nn.Linear(8, 6).double(), nn.Linear(3, 8).double()
        vae.q_z.encoder[3] = vae.p_x.decoder[2] = layer
        return vae

    batches = [small_images(4, seed=step) for step in range(4)]
    theirs = trained(shared(), built("trace"), batches)
    assert_trained_alike(trained(shared(), CompiledELBO(built("trace")), batches), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_outside_the_domain_is_refused_at_a_replay_too(small_vae, small_images, kind):
    vae, x = small_vae("static"), small_images(4, binary=True)
    svi, elbo = KINDS[kind](build_elbo("trace"))
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        one = svi(vae.model, vae.guide, SingleOptimizer(adam(vae.parameters())), elbo)
        for bad_at in (1, 3):  # when the step would be recorded, and at a replay
            while bad_at:
                one.step(x)
                bad_at -= 1
            before = parameters_to_vector(vae.parameters())
            for bad in (small_images(4), torch.full_like(x, math.nan)):
                with pytest.raises(InputError):
                    one.step(bad)
            assert torch.equal(before, parameters_to_vector(vae.parameters()))
            assert all(p.grad is None or not p.grad.any() for p in vae.parameters())


@pytest.mark.parametrize("engine", ["graph", pytest.param("inductor", marks=[needs_inductor, pytest.mark.workflow])])
def test_a_gradient_or_a_loss_that_is_not_finite_changes_nothing(small_vae, small_images, engine):
    vae, x = small_vae(), small_images(4)
    names = dict(vae.named_parameters())
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        optimizer = adam(vae.parameters())
        svi = CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer, names), CompiledELBO(built("trace"), engine))
        for _ in range(3):
            svi.step(x)
        before = parameters_to_vector(vae.parameters())
        with pytest.raises(NotFiniteError):
            svi.step(x, beta=math.inf)
    assert torch.equal(before, parameters_to_vector(vae.parameters()))
    assert {int(one["step"]) for one in optimizer.state.values()} == {3}


LOOKS = {
    "tolist": lambda x: x.tolist()[0],
    "numpy": lambda x: float(x.detach().numpy().sum()),
    "condition": lambda x: len(x[x > 0]),
    "nonzero": lambda x: (x > 0).nonzero().shape[0],
    "round": lambda x: round(x.sum().item()),
    "branch": lambda x: 1.0 if x.sum() > 0 else 2.0,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_function_that_reads_values_cannot_be_recorded(look):
    """The first step is eager, and the refusal of the second one leaves parameters and random state."""

    def model(x):
        factor = LOOKS[look](x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * factor, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.7))

    x = torch.randn(5, generator=torch.Generator().manual_seed(0)).abs()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), CompiledELBO(built("trace")))
        svi.step(x)
        before, state = pyro.param("loc").item(), torch.get_rng_state()
        with pytest.raises(RecordingError):
            svi.step(x)
        assert pyro.param("loc").item() == before
        assert torch.equal(torch.get_rng_state(), state)


def factors(x):
    """A linear model with a latent z of each datum."""
    loading = pyro.param("loading", lambda: torch.rand(2, 3), dist.constraints.positive)
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z @ loading, 1.0).to_event(1), obs=x)


class MadeAtFirst(nn.Module):
    """A guide that makes its network, with random weights, when it is first called."""

    def __init__(self, is_lazy):
        super().__init__()
        self.net = nn.LazyLinear(2) if is_lazy else None

    def forward(self, x):
        if self.net is None:
            self.net = nn.Linear(3, 2)
        with pyro.plate("data", x.shape[0]):
            loc = self.net(x)
            pyro.module("net", self.net)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_guide_that_draws_its_parameters_at_its_first_step_trains_as_eager(is_lazy):
    """And so does a parameter of Pyro's own, which is positive."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    elbo = CompiledELBO(build_elbo("trace"))
    ours, theirs = (
        trained(lambda: (factors, MadeAtFirst(is_lazy)), one, [x] * 6, optimizer=pyro.optim.Adam({"lr": 0.02}))
        for one in (elbo, build_elbo("trace"))
    )
    assert_trained_alike(ours, theirs, rel=1e-5)
    assert elbo.num_recordings == 1


OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9),
    "AdamW": lambda parameters: AdamW(parameters, lr=1e-2),
    "AMSGrad": lambda parameters: adam(parameters, amsgrad=True),
    "not fused": lambda parameters: adam(parameters, fused=False),
    "two groups": lambda parameters: adam([{"params": [p], "lr": 0.01 * k} for k, p in enumerate(parameters, 1)]),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimiser_steps(small_vae, small_images, kind):
    batches = [small_images(8, seed=step) for step in range(4)]
    svi, elbo = KINDS["step"](built("trace"))
    ours = trained(small_vae(), elbo, batches, svi, optimizer=OPTIMIZERS[kind])
    assert_trained_alike(ours, trained(small_vae(), built("trace"), batches, optimizer=OPTIMIZERS[kind]))


@pytest.mark.parametrize("lacks_one", [False, True])
def test_parameters_that_are_not_the_optimisers_are_refused(small_vae, small_images, lacks_one):
    vae = small_vae()
    parameters = [*vae.parameters(), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    optimizer = adam(list(vae.parameters())[:-1] if lacks_one else parameters)
    with pyro.get_param_store().scope(), pytest.raises(RuntimeError, match="optimiser"):
        CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer), CompiledELBO(built("trace"))).step(
            small_images(4)
        )


def test_the_preparation_of_a_batch_is_recorded(small_vae, small_images):
    """Images of an index, binarized at random: the draws come in the same order."""
    images = small_images(40)
    index = [torch.arange(40)[step : step + 6] for step in range(8)]
    svi, elbo = KINDS["step"](built("trace"))
    ours = trained(small_vae("static"), elbo, index, svi, prepare=lambda one: (torch.bernoulli(images[one]),))
    assert elbo.num_recordings == 1

    class Prepares(SVI):
        def step(self, one):
            return super().step(torch.bernoulli(images[one]))

    assert_trained_alike(ours, trained(small_vae("static"), built("trace"), index, Prepares))


def test_other_elbos_are_refused():
    with pytest.raises(InputError):
        CompiledELBO(Trace_ELBO())


def wide_vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_vae(Config(hidden=(300,), latent_dim=4), (1, 16, 16)), torch.rand(128, 1, 16, 16)


def _gradient(vae, elbo, x):
    """The loss and the gradients at the third step, of which the second one is recorded."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for _ in range(3):
            vae.zero_grad()
            torch.manual_seed(5)
            loss = elbo.loss_and_grads(vae.model, vae.guide, x)
    return float(loss.detach()), {name: p.grad.clone() for name, p in vae.named_parameters()}


@pytest.mark.parametrize(("precision", "loss_rel", "rel"), [("fp32", 1e-5, 1e-4), ("bf16", 1e-3, 0.05)])
def test_large_products_change_the_last_digits_of_a_gradient_in_float32(precision, loss_rel, rel):
    """By the library that is faster on this CPU, or in bfloat16."""
    vae, x = wide_vae()
    theirs = _gradient(vae, build_elbo("trace"), x)
    loss, gradients = _gradient(vae, CompiledELBO(build_elbo("trace"), precision=precision), x)
    assert loss == pytest.approx(theirs[0], rel=loss_rel)
    assert precision == "fp32" or loss != theirs[0]
    for name, gradient in theirs[1].items():
        assert gradients[name].dtype == torch.float32
        assert (gradients[name] - gradient).norm() < rel * gradient.norm(), name


def test_a_bias_of_any_shape_is_added_to_a_large_product():
    """oneDNN would ignore a scalar."""
    left, right = torch.randn(128, 400), torch.randn(300, 400)
    for bias in (torch.tensor(5.0), torch.randn(128, 1), torch.randn(300)):
        replay = graph.record(lambda a, b, c: (torch.addmm(c, a, b.t()),), [left, right, bias])
        assert torch.allclose(replay(left, right, bias)[0], torch.addmm(bias, left, right.t()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", ["conv", "conv-batchnorm"])
def test_convolutions_train_as_eager_under_the_fused_optimiser(network, precision):
    """It reads a gradient in memory order, and oneDNN returns some gradients channels last."""
    config = Config(network=network, hidden=(8, 8), latent_dim=2, likelihood="normal", elbo="analytic")
    generator = torch.Generator().manual_seed(0)
    batches, moved = [torch.rand(6, 1, 8, 8, generator=generator) for _ in range(5)], []
    for elbo in (build_elbo("analytic"), CompiledELBO(build_elbo("analytic"), precision=precision)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = build_vae(config, (1, 8, 8))
        start = parameters_to_vector(vae.parameters()).detach().clone()
        trained(vae, elbo, batches, optimizer=functools.partial(adam, lr=1e-3, eps=1e-2))
        moved.append(parameters_to_vector(vae.parameters()).detach() - start)
    assert (moved[0] - moved[1]).norm() < (1e-3 if precision == "fp32" else 0.1) * moved[0].norm()
    assert precision == "fp32" or (moved[0] - moved[1]).norm() > 1e-4 * moved[0].norm()


@needs_inductor
@pytest.mark.workflow
def test_inductor_trains_as_svi(small_vae, small_images):
    """With another beta and rate at each step."""
    batches = [small_images(5 if step == 4 else 8, seed=step) for step in range(8)]
    svi, elbo = KINDS["step"](built("trace"), "inductor", batch_size=8)

    def on_step(step, _, optimizer):
        optimizer.param_groups[0].update(lr=1e-2 / (1 + step), betas=(0.8, 0.99) if step < 5 else (0.5, 0.9))

    given = {"beta_of": lambda step: 1 / (1 + step), "on_step": on_step}
    ours = trained(small_vae(), elbo, batches, svi, **given)
    assert_trained_alike(ours, trained(small_vae(), built("trace"), batches, **given))
    assert elbo.num_recordings == 2, "one for each batch size"


@needs_inductor
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["elbo", "clipped"])
def test_inductor_compiles_gradients_alone(small_vae, small_images, kind):
    """For SVI itself, and where gradients are clipped before Adam."""
    batches = [small_images(8, seed=step) for step in range(5)]
    svi, elbo = KINDS["elbo" if kind == "elbo" else "step"](built("analytic", 2), "inductor")
    optimizer = functools.partial(adam, fused=kind == "elbo")
    theirs = trained(small_vae(), built("analytic", 2), batches, optimizer=optimizer)
    assert_trained_alike(trained(small_vae(), elbo, batches, svi, optimizer=optimizer), theirs)
