"""Many steps in one call: a bad step is named and changes nothing, and neither do the steps after it."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from conftest import needs_gpu, needs_inductor
from helpers.svi import adam, built

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.errors import GradientError, InputError, NotFiniteError
from pvae.core.random_state import rng_state

GPU = pytest.param("cuda graph", marks=[needs_gpu, pytest.mark.workflow])
ENGINES = ["none", "graph", pytest.param("inductor", marks=[needs_inductor, pytest.mark.slow]), GPU]
VALUES = [(1e-2 / (1 + step), min(1.0, step / 8)) for step in range(12)]


def device_of(engine):
    return torch.device("cuda" if "cuda" in engine else "cpu")


def vae_of(engine="none", **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(Config(**{"hidden": (6,), "latent_dim": 3, **options}), (1, 4, 4))
    return vae.to(device_of(engine)).double()


def batches_of(engine="none", number=12, short=False):
    """Binary images; the last batch is shorter if asked for."""
    generator = torch.Generator().manual_seed(1)
    sizes = [8] * (number - short) + [5] * short
    images = [torch.rand(size, 1, 4, 4, generator=generator).round() for size in sizes]
    return [(one.to(device_of(engine)).double(),) for one in images]


def state_of(vae, update):
    tensors = [*vae.parameters(), *vae.buffers()]
    tensors += [tensor for one in vae.parameters() for tensor in update.state_of(one).values()]
    return [tensor.detach().clone() for tensor in tensors] + [*rng_state(update.is_bad.device).values()]


def svi_of(vae, engine, name="trace", **options):
    update = AdamUpdate(adam(vae.parameters()))
    elbo = built(name, 2 if "loo" in name else 1)
    return CompiledSVI(vae.model, vae.guide, update, elbo, engine.removeprefix("cuda "), **options)


def trained(vae, batches, engine, blocks=(12,), **options):
    """Take the steps in calls of these sizes; return losses, terms and the state at the end, and the SVI."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        svi, start, losses, rates = svi_of(vae, engine, **options), 0, [], []
        for size in blocks:
            done = svi.run(batches[start : start + size], VALUES[start : start + size])
            assert done.error is None
            start += len(done.losses)
            losses.append(done.losses)
            rates.append(done.terms.rate)
        assert start == len(batches)
        return [torch.cat(losses), torch.cat(rates), *state_of(vae, svi.update)], svi


SYSTEMS = {
    "plain": {},
    "batch norm": {"network": "mlp-batchnorm"},
    "optimal scale": {"likelihood": "normal-optimal"},
}


OF_SYSTEMS = [(system, engine) for system in SYSTEMS for engine in ("none", "graph")]
OF_SYSTEMS += [pytest.param(system, *GPU.values, marks=GPU.marks) for system in SYSTEMS]
OF_SYSTEMS += [pytest.param(system, "inductor", marks=[needs_inductor, pytest.mark.slow]) for system in SYSTEMS]


@pytest.mark.parametrize(("system", "engine"), OF_SYSTEMS)
def test_calls_of_any_size_give_the_same_bits(system, engine):
    """With another learning rate and beta at each step, and a short last batch."""
    batches = batches_of(engine, short=True)
    (whole, _), (parts, svi) = (
        trained(vae_of(engine, **SYSTEMS[system]), batches, engine, blocks, batch_size=8)
        for blocks in ((12,), (1, 4, 2, 5))
    )
    assert all(torch.equal(one, other) for one, other in zip(whole, parts))
    assert svi.num_recordings == (0 if engine == "none" else 2)
    steps = {int(svi.update.state_of(one)["step"]) for one in svi.update.parameters}
    assert steps == {12}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("domain", {"binarize": "static"}),
        ("nan", {"likelihood": "normal-learned", "network": "mlp-batchnorm"}),
        ("nan", {"likelihood": "normal-optimal"}),
    ],
)
def test_a_bad_step_within_a_call_is_named_and_leaves_everything_as_before_it(engine, kind, options, monkeypatch):
    """To the bit: parameters, the optimiser's state, buffers and the random state are those after six steps."""
    from pvae.models.likelihoods import Likelihood

    if kind == "nan":  # which the domain excludes
        monkeypatch.setattr(Likelihood, "check", lambda self, x: x)
    clean = batches_of(engine)
    expected, _ = trained(vae_of(engine, **options), clean[:6], engine, (6,))
    batches = [(x.clone(),) for (x,) in clean]
    if kind == "domain":
        batches[6][0].fill_(0.5)
    else:
        batches[6][0].view(-1)[3] = math.nan
    vae = vae_of(engine, **options)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        svi = svi_of(vae, engine)
        done = svi.run(batches, VALUES)
        assert isinstance(done.error, InputError if kind == "domain" else NotFiniteError)
        found = [done.losses, done.terms.rate, *state_of(vae, svi.update)]
        assert len(done.losses) == 6
        assert len(done.terms.distortion) == 48
        assert all(torch.equal(one, other) for one, other in zip(found, expected))
        # The training can go on from there.
        again = svi.run(clean[6:], VALUES[6:])
        assert again.error is None
        found = [torch.cat([done.losses, again.losses]), *state_of(vae, svi.update)]
    losses, _, *state = trained(vae_of(engine, **options), clean, engine)[0]
    assert all(torch.equal(one, other) for one, other in zip(found, [losses, *state]))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_that_is_not_finite_is_named(engine):
    """An infinite gradient of a finite loss, of the square root of 0."""
    vae, offset = vae_of(engine), torch.ones((), dtype=torch.float64, device=device_of(engine))
    layer, forward = vae.p_x.decoder[-2], vae.p_x.decoder[-2].forward
    layer.forward = lambda z: forward(z) + (layer.bias - layer.bias.detach() + offset).sqrt().view(1, -1)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi, batches = svi_of(vae, engine), batches_of(engine)
        assert svi.run(batches[:4], VALUES[:4]).error is None
        offset.zero_()
        before = state_of(vae, svi.update)
        losses, _, error, _ = svi.run(batches[4:], VALUES[4:])
        assert all(torch.equal(one, other) for one, other in zip(before, state_of(vae, svi.update)))
    assert len(losses) == 0
    assert isinstance(error, GradientError)
    assert f" {next(name for name, one in vae.named_parameters() if one is layer.bias)} " in str(error)


def test_the_error_is_of_the_values_of_its_own_batch():
    """A check that a recording keeps would describe the batch that was recorded."""
    from pvae.core.tracing import require

    vae = vae_of()
    with torch.random.fork_rng(), pyro.get_param_store().scope():

        def checked(x):
            require(lambda one: one.max() <= 1, x, lambda: InputError(f"the largest is {x.max().item():.0f}"))
            return (x.clamp(max=1),)

        batches = batches_of()
        for step in (3, 5):
            batches[step][0][0] = step
        for engine in ("none", "graph"):
            done = svi_of(vae, engine, prepare=checked).run(batches, VALUES)
            assert len(done.losses) == 3
            assert str(done.error) == "the largest is 3"


def test_a_state_that_was_replaced_is_not_that_of_a_recording():
    vae, ends = vae_of(), []
    for engine in ("none", "graph"):
        vae = vae_of()
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(3)
            svi, batches = svi_of(vae, engine), batches_of()
            svi.run(batches[:4], VALUES[:4])
            svi.update.optimizer.load_state_dict(svi.update.optimizer.state_dict())
            svi.run(batches[4:], VALUES[4:])
            ends.append(state_of(vae, svi.update))
    assert all(torch.allclose(one, other, rtol=1e-12) for one, other in zip(*ends))
