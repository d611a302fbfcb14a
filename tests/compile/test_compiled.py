"""A recorded step is the eager one, is replayed only for what it depends on, and a bad one changes nothing."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import needs_gpu, needs_inductor
from helpers.svi import ELBOS, adam, assert_trained_alike, built, trained
from pyro.infer import SVI
from torch import nn
from torch.optim import AdamW

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.compile.graph import RecordingError
from pvae.config.build import build_vae, elbo_of
from pvae.config.config import Config
from pvae.core.errors import GradientError, InputError, NotFiniteError
from pvae.core.random_state import rng_state
from pvae.core.tracing import require
from pvae.models.likelihoods import Likelihood

SLOW_INDUCTOR = [needs_inductor, pytest.mark.slow]
CUDA = [
    pytest.param("cuda graph", marks=[needs_gpu, pytest.mark.workflow]),
    pytest.param("cuda inductor", marks=[needs_gpu, needs_inductor, pytest.mark.workflow]),
]
ENGINES = ["none", "graph", pytest.param("inductor", marks=SLOW_INDUCTOR), *CUDA]


def device_of(engine):
    return torch.device("cuda" if "cuda" in engine else "cpu")


def name_of(engine):
    return engine.removeprefix("cuda ")


# --- as Pyro's SVI ----------------------------------------------------------------------------------------------------

WEIGHS_RATE = ("trace", "analytic", "handwritten", "stl", "score", "score-loo")
CASES = [(name, "graph") for name in ELBOS]
CASES += [pytest.param(name, *engine.values, marks=engine.marks) for name in ELBOS for engine in CUDA]
CASES.append(pytest.param("trace", "inductor", marks=[needs_inductor, pytest.mark.workflow]))


def lower_the_rate(step, _, optimizer):
    optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_each_estimator_trains_as_by_pyros_svi(small_vae, small_images, name, engine):
    """With a short batch in the middle, another learning rate at each step, and a warm-up of beta."""
    device, starts = device_of(engine), [*small_vae().parameters()]
    batches = [small_images(3 if step == 5 else 8, seed=step).to(device) for step in range(10)]
    options = {"on_step": lower_the_rate}
    if name in WEIGHS_RATE:
        options["beta_of"] = lambda step: min(1.0, step / 8)
    compiled = trained(
        small_vae().to(device), built(name), batches, CompiledSVI, engine=name_of(engine), batch_size=8, **options
    )
    assert_trained_alike(compiled, trained(small_vae().to(device), built(name), batches, **options))
    assert compiled.num_recordings == 2, "one for each batch size"
    assert all(not torch.equal(old, now.cpu()) for old, now in zip(starts, compiled.parameters.values()))


def with_dropout(vae):
    vae.p_x.decoder[1] = nn.Dropout(0.5)  # which draws in training alone


def with_a_shared_layer(vae):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(8, 8).double()
        vae.q_z.encoder[5], vae.p_x.decoder[0] = nn.Linear(8, 6).double(), nn.Linear(3, 8).double()
    vae.q_z.encoder[3] = vae.p_x.decoder[2] = layer


def switch_the_mode(step, vae, _):
    vae.train(step % 4 < 2)


def change_all_values(step, vae, optimizer):
    if step == 3:
        vae.load_state_dict({name: 0.5 * value for name, value in vae.state_dict().items()})
        vae.p_z.loc.fill_(1.0)
        optimizer.param_groups[0]["lr"] = 1e-1


CHANGES = {  # what is done to the VAE, before each step, and at the end; and how often a step is recorded
    "modes": (with_dropout, switch_the_mode, False, 2),
    "values of parameters, buffers and rates": (lambda vae: None, change_all_values, False, 1),
    "a parameter that is used twice": (with_a_shared_layer, lambda *_: None, False, 1),
    "an evaluation": (lambda vae: None, lambda *_: None, True, 1),
}


@pytest.mark.parametrize(("change", "on_step", "evaluates", "num_recordings"), CHANGES.values(), ids=CHANGES)
def test_what_changes_is_read_anew(small_vae, small_images, change, on_step, evaluates, num_recordings):
    batches, ends = [small_images(8, seed=step) for step in range(8)], []
    for svi in (CompiledSVI, SVI):
        vae = small_vae()
        change(vae)
        ends.append(trained(vae, built("trace"), batches, svi, on_step=on_step, evaluates=evaluates))
    assert_trained_alike(*ends)
    assert ends[0].num_recordings == num_recordings


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


# --- many steps a call ------------------------------------------------------------------------------------------------

VALUES = [(1e-2 / (1 + step % 7), min(1.0, step / 8)) for step in range(12)]
SYSTEMS = {
    "plain": {},
    "two layers": {"upper_latent_dims": (2,), "upper_hidden": (4,), "elbo": "iwae", "particles": 3},
    "ladder, batch norm": {"upper_latent_dims": (2,), "inference": "ladder", "network": "mlp-batchnorm"},
    "top-down": {"upper_latent_dims": (2,), "inference": "top-down", "elbo": "dreg", "particles": 3},
    "piwae of a learned prior": {"prior": "vamp", "components": 5, "elbo": "piwae", "particles": 3},
    "convolutions": {"network": "conv-batchnorm", "hidden": (3, 4), "likelihood": "normal-learned", "elbo": "analytic"},
    "optimal scale": {"likelihood": "normal-optimal"},
    "autoencoder": {"posterior": "delta"},
    "planar": {"posterior": "planar", "elbo": "stl"},
    "splines, flow": {"posterior": "spline", "prior": "flow", "flow_hidden": (5,), "elbo": "dreg"},
    "mixture": {"prior": "mixture", "elbo": "dreg"},
    "sphere": {"posterior": "power-spherical", "prior": "sphere", "elbo": "analytic"},
    "clipped": {"clip_norm": 1.0},
}
WAYS = [pytest.param(name, "graph", marks=[pytest.mark.workflow] if "flow" in name else []) for name in SYSTEMS]
WAYS += [pytest.param(name, *engine.values, marks=engine.marks) for name in SYSTEMS for engine in CUDA]
WAYS += [
    pytest.param(name, "inductor", marks=SLOW_INDUCTOR) for name in ("planar", "splines, flow", "mixture", "sphere")
]


class Training:
    """A training of small images, whose initial weights, data and noise do not depend on the engine."""

    def __init__(self, engine="none", prepare=None, **options):
        config = Config(**{"hidden": (6,), "latent_dim": 3, **options})
        self.device = device_of(engine)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.vae = build_vae(config, (1, 4, 4)).to(self.device).double()
        self.update = AdamUpdate(adam(self.vae.parameters()), config.clip_norm)
        elbo, model, guide = elbo_of(config), self.vae.model, self.vae.guide
        prepared = {} if prepare is None else {"prepare": prepare}
        self.svi = CompiledSVI(model, guide, self.update, elbo, name_of(engine), batch_size=8, **prepared)

    def batches(self, short=False):
        """Twelve batches of binary images; the last one is shorter if asked for."""
        generator = torch.Generator().manual_seed(1)
        images = [torch.rand(8, 1, 4, 4, generator=generator).round() for _ in range(12)]
        images[-1] = images[-1][: 5 if short else 8]
        return [(one.to(self.device).double(),) for one in images]

    def run(self, batches, blocks=(12,)):
        """Take the steps in calls of these sizes, and return losses, rates and the state at the end."""
        torch.manual_seed(3)
        start, losses, rates = 0, [], []
        for size in blocks:
            done = self.svi.run(batches[start : start + size], VALUES[start : start + size])
            assert done.error is None
            start += len(done.losses)
            losses.append(done.losses)
            rates.append(done.terms.rate)
        assert start == len(batches)
        return [torch.cat(losses), torch.cat(rates), *self.state()]

    def state(self):
        moments = [tensor for one in self.vae.parameters() for tensor in self.update.state_of(one).values()]
        tensors = [*self.vae.parameters(), *self.vae.buffers(), *moments]
        return [one.detach().clone() for one in tensors] + [*rng_state(self.device).values()]


@pytest.fixture
def scope():
    """A random state, a parameter store and products in float32 that are this test's own."""
    assert torch.get_float32_matmul_precision() == "highest"
    with (
        torch.random.fork_rng(),
        pyro.get_param_store().scope(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        yield


def assert_equal_bits(ours, theirs):
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize(("system", "engine"), WAYS)
def test_each_system_in_calls_of_any_size_is_the_eager_one(system, engine):
    """Parameters, moments, running averages and random state; another rate and beta at each step, a short last batch.

    Calls of other sizes give the same bits.
    """
    ends, trainings = [], []
    eager = "cuda none" if "cuda" in engine else "none"
    for one, blocks in ((eager, (12,)), (engine, (12,)), (engine, (1, 4, 7))):
        with pyro.get_param_store().scope():
            trainings.append(Training(one, **SYSTEMS[system]))
            ends.append(trainings[-1].run(trainings[-1].batches(short=True), blocks))
    assert_equal_bits(ends[1], ends[2])
    for ours, theirs in zip(ends[1], ends[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert [one.svi.num_recordings for one in trainings] == [0, 2, 2]
    assert {int(trainings[1].update.state_of(one)["step"]) for one in trainings[1].update.parameters} == {12}


BAD = {
    "domain": ({"binarize": "static"}, 0.5, InputError),
    "nan, batch norm": ({"likelihood": "normal-learned", "network": "mlp-batchnorm"}, math.nan, NotFiniteError),
    "nan, optimal scale": ({"likelihood": "normal-optimal"}, math.nan, NotFiniteError),
}


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("options", "value", "error"), BAD.values(), ids=BAD)
def test_a_bad_step_within_a_call_is_named_and_leaves_everything_as_before_it(
    engine, options, value, error, monkeypatch
):
    """To the bit: parameters, the optimiser's state, buffers and the random state are those after six steps."""
    if error is NotFiniteError:  # which the domain excludes
        monkeypatch.setattr(Likelihood, "check", lambda self, x: x)
    ends = []
    for count in (6, 12):
        with pyro.get_param_store().scope():
            training = Training(engine, **options)
            clean = training.batches()
            ends.append(training.run(clean[:count], (count,)))
    training = Training(engine, **options)
    bad = training.batches()
    bad[6][0].view(-1)[3] = value
    torch.manual_seed(3)
    done = training.svi.run(bad, VALUES)
    assert isinstance(done.error, error)
    assert len(done.losses) == 6
    assert_equal_bits([done.losses, done.terms.rate, *training.state()], ends[0])
    # The training can go on from there.
    again = training.svi.run(clean[6:], VALUES[6:])
    assert again.error is None
    rates = torch.cat([done.terms.rate, again.terms.rate])
    assert_equal_bits([torch.cat([done.losses, again.losses]), rates, *training.state()], ends[1])


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_is_not_finite_is_named(engine):
    """An infinite gradient of a finite loss, of the square root of 0."""
    training = Training(engine)
    offset = torch.ones((), dtype=torch.float64, device=training.device)
    layer, forward = training.vae.p_x.decoder[-2], training.vae.p_x.decoder[-2].forward
    layer.forward = lambda z: forward(z) + (layer.bias - layer.bias.detach() + offset).sqrt().view(1, -1)
    batches = training.batches()
    assert training.svi.run(batches[:4], VALUES[:4]).error is None
    offset.zero_()
    before = training.state()
    done = training.svi.run(batches[4:], VALUES[4:])
    assert_equal_bits(before, training.state())
    assert len(done.losses) == 0
    assert isinstance(done.error, GradientError)
    name = next(name for name, one in training.vae.named_parameters() if one is layer.bias)
    assert f" {name} " in str(done.error)


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("engine", ["none", "graph"])
def test_the_error_is_of_the_values_of_its_own_batch(engine):
    """A check that a recording keeps would describe the batch that was recorded."""

    def checked(x):
        require(lambda one: one.max() <= 1, x, lambda: InputError(f"the largest is {x.max().item():.0f}"))
        return (x.clamp(max=1),)

    training = Training(engine, checked)
    batches = training.batches()
    for step in (3, 5):
        batches[step][0][0] = step
    done = training.svi.run(batches, VALUES)
    assert len(done.losses) == 3
    assert str(done.error) == "the largest is 3"


@pytest.mark.usefixtures("scope")
def test_a_state_that_was_replaced_is_not_that_of_a_recording():
    ends = []
    for engine in ("none", "graph"):
        with pyro.get_param_store().scope():
            training = Training(engine)
            batches = training.batches()
            training.run(batches[:4], (4,))
            training.update.optimizer.load_state_dict(training.update.optimizer.state_dict())
            ends.append(training.run(batches[4:], (8,)))
    assert all(torch.allclose(one, other, rtol=1e-12) for one, other in zip(*ends))


@pytest.mark.usefixtures("scope")
@pytest.mark.parametrize("engine", ["graph", *CUDA])
def test_a_seed_set_after_the_recording_is_obeyed_and_two_replays_draw_different_noise(engine):
    training, losses = Training(engine), []
    batches = [training.batches()[0]] * 3
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(training.svi.run(batches, [(0.0, 1.0)] * 3).losses.tolist())
    assert losses[0] == losses[2] != losses[1]
    assert len({*losses[0]}) == 3


# --- refusals ---------------------------------------------------------------------------------------------------------

ONES = torch.ones(5)
LOOKS = {
    "numpy": lambda x: float(x.detach().numpy().sum()),
    "condition": lambda x: len(x[x > 0]),
    "condition on a constant": lambda x: len(ONES[x > 0]),
    "branch": lambda x: 1.0 if x.sum() > 0 else 2.0,
}


@pytest.mark.usefixtures("scope")
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

    svi = CompiledSVI(model, guide, AdamUpdate(adam([loc])), built("trace"))
    before, state = loc.item(), torch.get_rng_state()
    with pytest.raises(RecordingError):
        svi.step(torch.randn(5, generator=torch.Generator().manual_seed(0)).abs())
    assert loc.item() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_another_optimiser_is_refused(small_vae):
    parameters = [*small_vae().parameters()]
    two_groups = adam([{"params": [p], "lr": 0.01 * k} for k, p in enumerate(parameters, 1)])
    for other in (AdamW(parameters, lr=1e-2), adam(parameters, amsgrad=True), two_groups):
        with pytest.raises(InputError):
            AdamUpdate(other)


def replace_a_parameter(step, vae, _):
    if step == 3:
        pyro.clear_param_store()
        layer = vae.p_x.decoder[0]
        layer.weight = nn.Parameter(layer.weight.detach() + 0.1)


def test_parameters_that_are_not_the_optimisers_are_refused(small_vae, small_images):
    """From the start, or replaced between two steps."""
    vae = small_vae()
    optimizer = adam(list(vae.parameters())[:-1])
    with pyro.get_param_store().scope(), pytest.raises(InputError, match="optimiser"):
        CompiledSVI(vae.model, vae.guide, AdamUpdate(optimizer), built("trace")).step(small_images(4))
    with pytest.raises(InputError, match="optimiser"):
        trained(small_vae(), built("trace"), [small_images(8)] * 6, CompiledSVI, on_step=replace_a_parameter)
