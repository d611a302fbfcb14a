"""A replayed step equals the eager one, and a recording is replayed only for what it depends on."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import needs_inductor
from helpers.svi import ELBOS, adam, assert_trained_alike, built, trained
from pyro.infer import SVI
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import AdamW

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.compile.graph import RecordingError
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.errors import InputError, NotFiniteError

WEIGHS_RATE = ("trace", "analytic", "handwritten", "stl", "score", "score-loo")
CASES = [(name, 4) for name in ELBOS]
CASES += [pytest.param(name, 1, marks=pytest.mark.slow) for name in ELBOS if name not in ("score-loo", "vimco")]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
ENGINES = [
    ("graph", "cpu"),
    pytest.param("graph", "cuda", marks=ON_GPU),
    pytest.param("inductor", "cuda", marks=[ON_GPU, needs_inductor]),
]


@pytest.mark.parametrize(("engine", "device"), ENGINES)
@pytest.mark.parametrize(("name", "particles"), CASES)
def test_compiled_trains_as_eager(small_vae, small_images, name, particles, engine, device):
    """Twenty steps with a short batch in the middle, another learning rate at each, and a warm-up of beta."""
    batches = [small_images(3 if step == 10 else 8, seed=step).to(device) for step in range(20)]

    def on_step(step, _, optimizer):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)

    given = {"on_step": on_step}
    given["beta_of"] = (lambda step: min(1.0, step / 8)) if name in WEIGHS_RATE else None
    start = [p.detach().clone() for p in small_vae().parameters()]
    compiled = trained(small_vae().to(device), built(name, particles), batches, CompiledSVI, engine=engine, **given)
    assert_trained_alike(compiled, trained(small_vae().to(device), built(name, particles), batches, **given))
    assert compiled.num_recordings == 2, "one for each batch size"
    assert all(not torch.equal(old, now.cpu()) for old, now in zip(start, compiled.parameters.values()))


SYSTEMS = {
    "two layers": {"upper_latent_dims": (2,), "upper_hidden": (4,), "elbo": "iwae", "particles": 3},
    "ladder, batch norm": {"upper_latent_dims": (2,), "inference": "ladder", "network": "mlp-batchnorm"},
    "top-down": {"upper_latent_dims": (2,), "inference": "top-down", "elbo": "dreg", "particles": 3},
    "piwae of a learned prior": {"prior": "vamp", "components": 5, "elbo": "piwae", "particles": 3},
    "batch norm": {"network": "conv-batchnorm", "hidden": (3, 4), "likelihood": "normal-learned"},
    "optimal scale": {"likelihood": "normal-optimal"},
    "autoencoder": {"posterior": "delta"},
    "planar": {"posterior": "planar", "elbo": "stl"},
    "splines, flow": {"posterior": "spline", "prior": "flow", "flow_hidden": (5,), "elbo": "dreg"},
    "mixture": {"prior": "mixture", "elbo": "dreg"},
    "sphere": {"posterior": "power-spherical", "prior": "sphere", "elbo": "analytic"},
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
    ours = trained(compiled, built(config.elbo, config.particles), batches, CompiledSVI, engine=engine)
    assert_trained_alike(ours, theirs)
    assert ours.num_recordings == 1
    for (name, mine), other in zip(compiled.named_buffers(), eager.buffers()):
        assert torch.allclose(mine, other, rtol=1e-9), name


def test_each_mode_has_its_own_recording(small_vae, small_images):
    """Dropout draws in training alone."""
    batches = [small_images(8, seed=step) for step in range(8)]

    def on_step(step, vae, _):
        vae.train(step % 4 < 2)

    def vae():
        vae = small_vae()
        vae.p_x.decoder[1] = nn.Dropout(0.5)
        return vae

    ours = trained(vae(), built("trace", 1), batches, CompiledSVI, on_step=on_step)
    assert_trained_alike(ours, trained(vae(), built("trace", 1), batches, on_step=on_step))
    assert ours.num_recordings == 2


def test_values_may_change_between_steps(small_vae, small_images):
    """Parameters, buffers, beta of the ELBO and the learning rate are read anew."""

    def on_step(step, vae, optimizer):
        if step == 3:
            vae.load_state_dict({name: 0.5 * value for name, value in vae.state_dict().items()})
            vae.p_z.loc.fill_(1.0)
            optimizer.param_groups[0]["lr"] = 1e-1

    batches = [small_images(8, seed=step) for step in range(6)]
    theirs = trained(small_vae(), built("trace"), batches, on_step=on_step)
    assert_trained_alike(trained(small_vae(), built("trace"), batches, CompiledSVI, on_step=on_step), theirs)
    assert trained(small_vae(), built("trace"), batches).losses != theirs.losses


def test_a_replaced_parameter_is_not_the_optimisers(small_vae, small_images):
    def on_step(step, vae, optimizer):
        if step == 3:
            pyro.clear_param_store()
            layer = vae.p_x.decoder[0]
            layer.weight = nn.Parameter(layer.weight.detach() + 0.1)

    with pytest.raises(InputError, match="optimiser"):
        trained(small_vae(), built("trace"), [small_images(8)] * 6, CompiledSVI, on_step=on_step)


def test_evaluation_is_the_elbos_own(small_vae, small_images):
    batches = [small_images(8, seed=step) for step in range(3)]
    theirs = trained(small_vae(), built("trace"), batches, evaluates=True)
    assert_trained_alike(trained(small_vae(), built("trace"), batches, CompiledSVI, evaluates=True), theirs)


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
    assert_trained_alike(trained(shared(), built("trace"), batches, CompiledSVI), theirs)


@pytest.mark.parametrize("engine", ["graph", pytest.param("inductor", marks=[needs_inductor, pytest.mark.slow])])
def test_a_gradient_or_a_loss_that_is_not_finite_changes_nothing(small_vae, small_images, engine):
    vae, x = small_vae(), small_images(4)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        optimizer = adam(vae.parameters())
        svi = CompiledSVI(vae.model, vae.guide, AdamUpdate(optimizer), built("trace"), engine)
        for _ in range(3):
            svi.step(x)
        before = parameters_to_vector(vae.parameters())
        with pytest.raises(NotFiniteError):
            svi.step(x, beta=math.inf)
    assert torch.equal(before, parameters_to_vector(vae.parameters()))
    assert {int(one["step"]) for one in optimizer.state.values()} == {3}


ONES = torch.ones(5)
LOOKS = {
    "numpy": lambda x: float(x.detach().numpy().sum()),
    "condition": lambda x: len(x[x > 0]),
    "condition on a constant": lambda x: len(ONES[x > 0]),
    "branch": lambda x: 1.0 if x.sum() > 0 else 2.0,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_function_that_reads_values_cannot_be_recorded(look):
    """The refusal leaves parameters and random state as they were."""

    def model(x):
        factor = LOOKS[look](x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * factor, 1.0), obs=x)

    loc = torch.tensor(0.5, requires_grad=True)

    def guide(x):
        pyro.param("loc", loc)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.7))

    x = torch.randn(5, generator=torch.Generator().manual_seed(0)).abs()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi = CompiledSVI(model, guide, AdamUpdate(adam([loc])), built("trace"))
        before, state = loc.item(), torch.get_rng_state()
        with pytest.raises(RecordingError):
            svi.step(x)
        assert loc.item() == before
        assert torch.equal(torch.get_rng_state(), state)


def test_another_optimiser_is_refused(small_vae):
    parameters = [*small_vae().parameters()]
    two_groups = adam([{"params": [p], "lr": 0.01 * k} for k, p in enumerate(parameters, 1)])
    for other in (AdamW(parameters, lr=1e-2), adam(parameters, amsgrad=True), two_groups):
        with pytest.raises(InputError):
            AdamUpdate(other)


def test_parameters_that_are_not_the_optimisers_are_refused(small_vae, small_images):
    vae = small_vae()
    optimizer = adam(list(vae.parameters())[:-1])
    with pyro.get_param_store().scope(), pytest.raises(InputError, match="optimiser"):
        CompiledSVI(vae.model, vae.guide, AdamUpdate(optimizer), built("trace")).step(small_images(4))


def test_the_preparation_of_a_batch_is_recorded(small_vae, small_images):
    """Images of an index, binarized at random: the draws come in the same order."""
    images = small_images(40)
    index = [torch.arange(40)[step : step + 6] for step in range(8)]
    prepare = lambda one: (torch.bernoulli(images[one]),)  # noqa: E731
    ours = trained(small_vae("static"), built("trace"), index, CompiledSVI, prepare=prepare)
    assert ours.num_recordings == 1

    class Prepares(SVI):
        def step(self, one):
            return super().step(torch.bernoulli(images[one]))

    assert_trained_alike(ours, trained(small_vae("static"), built("trace"), index, Prepares))


@needs_inductor
@pytest.mark.workflow
def test_inductor_trains_as_svi(small_vae, small_images):
    """With another beta and rate at each step."""
    batches = [small_images(5 if step == 4 else 8, seed=step) for step in range(8)]

    def on_step(step, _, optimizer):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)

    given = {"beta_of": lambda step: 1 / (1 + step), "on_step": on_step}
    ours = trained(small_vae(), built("trace"), batches, CompiledSVI, engine="inductor", batch_size=8, **given)
    assert_trained_alike(ours, trained(small_vae(), built("trace"), batches, **given))
    assert ours.num_recordings == 2, "one for each batch size"
