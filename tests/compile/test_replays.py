"""Replays are the steps of `--compile none`, and the host waits for none of them.

A bad step within a call, and calls of any size, are in `test_blocks.py`, with the same engines.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from conftest import needs_gpu, needs_inductor
from helpers.svi import adam
from torch.utils._python_dispatch import TorchDispatchMode

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.config.build import build_vae, elbo_of
from pvae.config.config import Config
from pvae.core.random_state import rng_state

pytestmark = pytest.mark.workflow

WAYS = [
    "graph",
    pytest.param("cuda graph", marks=needs_gpu),
    pytest.param("cuda inductor", marks=[needs_gpu, needs_inductor]),
]
NUM_STEPS = 100
VALUES = [(1e-2 / (1 + step % 7), min(1.0, step / 50)) for step in range(NUM_STEPS)]


@pytest.fixture(autouse=True)
def exact_float32():
    """Let no product be rounded to TF32, and no convolution be summed in another order."""
    assert torch.get_float32_matmul_precision() == "highest"
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def device_of(way):
    return torch.device("cuda" if way.startswith("cuda") else "cpu")


class Training:
    """A training of small images, whose initial weights, data and noise do not depend on the way."""

    def __init__(self, way, device, shape=(1, 6, 6), batch_size=128, last=96, **options):
        config = Config(**{"hidden": (16,), "latent_dim": 3, **options})
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(batch_size, *shape, generator=generator).round()
        self.whole = (images.to(device),)
        self.short = (self.whole[0][:last],)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.vae = build_vae(config, shape).to(device)
        update = AdamUpdate(adam(self.vae.parameters()), config.clip_norm)
        elbo, engine = elbo_of(config), way.removeprefix("cuda ")
        self.svi = CompiledSVI(self.vae.model, self.vae.guide, update, elbo, engine)
        self.device = device

    def run(self, steps, batch=None):
        """Take these steps, all on one batch, and return the losses."""
        done = self.svi.run([batch or self.whole] * len(VALUES[steps]), VALUES[steps])
        assert done.error is None
        return done.losses

    def state(self):
        moments = [one for p in self.vae.parameters() for one in self.svi.update.state_of(p).values()]
        return [one.detach().clone() for one in (*self.vae.parameters(), *self.vae.buffers(), *moments)]


def in_each_way(way, take, **options):
    """Return for `--compile none` and for this way what `take` returns of a training, and its end."""
    found = []
    for one in ("none", way):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            training = Training(one, device_of(way), **options)
            torch.manual_seed(3)
            losses = take(training)
            found.append((losses, training, training.state(), rng_state(training.device)))
    return found


def assert_equal_ends(theirs, ours, way):
    is_compiled = "inductor" in way  # which rounds otherwise
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3 if is_compiled else 1e-5, atol=0.0)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-2 if is_compiled else 1e-3, atol=1e-3)
    assert all(torch.equal(one, other) for one, other in zip(ours[3].values(), theirs[3].values()))


CASES = {
    "plain": {},
    "batch norm": {"network": "mlp-batchnorm"},
    "optimal scale": {"likelihood": "normal-optimal"},
    "clipped": {"clip_norm": 1.0},
    "particles": {"elbo": "iwae", "particles": 3},
    "flow": {"posterior": "planar", "elbo": "stl"},
    "convolutions": {
        "network": "conv-batchnorm",
        "likelihood": "normal",
        "scale": 0.5,
        "elbo": "analytic",
        "hidden": (8,) * 5,
        "latent_dim": 20,
        "shape": (3, 64, 64),
        "batch_size": 8,
        "last": 5,
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_replays_are_the_eager_steps(case, way):
    """A hundred steps (20 of convolutions), each with another learning rate and beta, and a short last batch."""
    most = 20 if case == "convolutions" else NUM_STEPS

    def take(training):
        return torch.cat([training.run(slice(most - 1)), training.run(slice(most - 1, most), training.short)])

    theirs, ours = in_each_way(way, take, **CASES[case])
    assert_equal_ends(theirs, ours, way)
    assert ours[1].svi.num_recordings == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_set_after_the_recording_is_obeyed_and_two_replays_draw_different_noise(way):
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        training, losses = Training(way, device_of(way)), []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            losses.append(training.svi.run([training.whole] * 3, [(0.0, 1.0)] * 3).losses.tolist())
    assert losses[0] == losses[2] != losses[1]
    assert len({*losses[0]}) == 3


class Unread(TorchDispatchMode):
    """Refuses the operators that read a tensor's values on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if "_local_scalar_dense" in name or torch.Tag.dynamic_output_shape in func.tags or name == "aten::equal":
            raise RuntimeError(f"{name} reads a tensor")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["none", *WAYS])
@pytest.mark.parametrize("case", ["plain", "batch norm", "clipped"])
def test_the_host_waits_for_no_step(case, way):
    """On a GPU torch itself raises an error where the host waits in one of 49 steps."""
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        training = Training(way, device_of(way), **CASES[case])
        training.run(slice(49))
        rows = training.svi.update.rows(VALUES[:49])
        svi, whole = training.svi, training.whole
        (replay,) = {*svi._replays([whole] * 49, rows[0])}
        if training.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.no_grad(), Unread():
                for row in rows.unbind():
                    if replay is None:
                        svi.update.apply(row, svi.gradients(row, *whole))
                    else:
                        replay(row, *whole)
        finally:
            if training.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
