"""On a GPU: a step that is replayed as a CUDA graph is the recorded one, and the host waits for none of them."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from helpers.svi import adam, built

from pvae.compile.adam import AdamUpdate
from pvae.compile.compiled_svi import CompiledSVI
from pvae.config.config import Config
from pvae.core.errors import NotFiniteError
from pvae.models.build import build_vae
from pvae.models.likelihoods import Likelihood

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

VALUES = [(1e-2 / (1 + step % 7), min(1.0, step / 50)) for step in range(100)]


def svi_of(captures, engine="graph", **options):
    with torch.random.fork_rng(devices=[0]):
        torch.manual_seed(0)
        vae = build_vae(Config(**{"hidden": (16,), "latent_dim": 3, **options}), (1, 6, 6)).cuda()
    update = AdamUpdate(adam(vae.parameters()), dict(vae.named_parameters()))
    return vae, CompiledSVI(vae.model, vae.guide, update, built("trace", 1), engine, captures=captures)


def batches_of(number=100, short=False):
    generator = torch.Generator().manual_seed(1)
    sizes = [8] * (number - short) + [5] * short
    return [(torch.rand(size, 1, 6, 6, generator=generator).round().cuda(),) for size in sizes]


def state_of(vae, svi):
    tensors = [*vae.parameters(), *vae.buffers()]
    tensors += [one for p in vae.parameters() for one in svi.update.state_of(p).values()]
    return [one.detach().clone() for one in tensors] + [torch.cuda.get_rng_state()]


@pytest.mark.filterwarnings("error:steps are not captured")
@pytest.mark.parametrize("options", [{}, {"network": "mlp-batchnorm"}, {"likelihood": "normal-optimal"}])
def test_a_captured_step_is_the_eager_one(options):
    """A hundred steps with another learning rate and beta each, and a short last batch."""
    ends = []
    for engine, captures in (("none", False), ("graph", False), ("graph", True)):
        with torch.random.fork_rng(devices=[0]), pyro.get_param_store().scope():
            vae, svi = svi_of(captures, engine, **options)
            torch.manual_seed(3)
            done = svi.run(batches_of(short=True), VALUES)
            assert done.error is None
            ends.append([done.losses, done.terms.rate, *state_of(vae, svi)])
    for one, recorded, eager in zip(*reversed(ends)):
        torch.testing.assert_close(one, recorded, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one, eager, rtol=1e-4, atol=1e-5)


def test_a_seed_set_after_the_capture_is_obeyed_and_two_replays_draw_different_noise():
    with torch.random.fork_rng(devices=[0]), pyro.get_param_store().scope():
        _, svi = svi_of(captures=True)
        (batch, *_) = batches_of(1)
        losses = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            losses.append(svi.run([batch] * 3, [(0.0, 1.0)] * 3).losses.tolist())
    assert losses[0] == losses[2] != losses[1]
    assert len({*losses[0]}) == 3


def test_a_bad_step_is_named_and_leaves_everything_as_before_it(monkeypatch):
    monkeypatch.setattr(Likelihood, "check", lambda self, x: x)
    options, ends = {"likelihood": "normal-learned", "network": "mlp-batchnorm"}, []
    for is_bad in (True, False):
        with torch.random.fork_rng(devices=[0]), pyro.get_param_store().scope():
            vae, svi = svi_of(captures=True, **options)
            torch.manual_seed(3)
            batches = batches_of(12)
            if is_bad:
                batches[6][0][0, 0, 0, 0] = math.nan
            done = svi.run(batches if is_bad else batches[:6], VALUES[: 12 if is_bad else 6])
            assert isinstance(done.error, NotFiniteError) == is_bad
            ends.append([done.losses, *state_of(vae, svi)])
    assert all(torch.equal(one, other) for one, other in zip(*ends))


def test_the_host_waits_for_no_step():
    with torch.random.fork_rng(devices=[0]), pyro.get_param_store().scope():
        _, svi = svi_of(captures=True)
        batches = batches_of(49)
        svi.run(batches, VALUES[:49])
        rows = svi.update.rows(VALUES[:49])
        steps = svi._steps(batches, rows[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step, row, batch in zip(steps, rows, batches):
                step(row, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
