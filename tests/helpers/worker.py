"""The functions that the processes of `training/test_parallel` run."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import torch

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.config.build import build_elbo, build_vae
from pvae.config.config import Config
from pvae.core.errors import TrainingError
from pvae.core.random_state import seeded
from pvae.data.read import read
from pvae.training.parallel import SharedELBO, World, joined_processes
from pvae.training.setup import build_trainer
from pvae.training.trainer import Session


def bad_step(world: World) -> dict[str, Any]:
    """Take eight steps in one call, of which the last process cannot compute the fifth, and then the four before it."""
    ends, found = [], {}
    for is_bad in (True, False):
        torch.manual_seed(0)
        vae, x = build_vae(Config(hidden=(8,), latent_dim=3), (1, 5, 4)), torch.rand(8, 10, 1, 5, 4)
        if is_bad and world.rank == world.size - 1:
            x[4, 9] = 2.0
        update = AdamUpdate(torch.optim.Adam(vae.parameters(), lr=1e-2), reduce=world.sum_)
        with pyro.get_param_store().scope():
            elbo: Any = build_elbo("trace", 2)
            svi = CompiledSVI(vae.model, vae.guide, update, elbo if world.size == 1 else SharedELBO(elbo, world))
            done = svi.run([(one,) for one in (x if is_bad else x[:4])], [(1e-2, 1.0)] * (8 if is_bad else 4))
        if is_bad:
            found |= {"steps": len(done.losses), "error": type(done.error).__name__}
        states = [tensor for one in update.parameters for tensor in (one, *update.state_of(one).values())]
        ends.append([*(tensor.tolist() for tensor in states), torch.get_rng_state().tolist()])
    return {**found, "is as before": ends[0] == ends[1]}


def resumed_and_failed(world: World) -> dict[str, Any]:
    """Train two epochs, and the second again from the first one's checkpoint; then make one process fail."""
    data, device = read("mnist-5k"), torch.device("cpu")
    config = Config(hidden=(16,), latent_dim=3, batch_size=500)
    with seeded(0, device), pyro.get_param_store().scope():
        training = build_trainer(config, data, Session(device, world))
        first = training.run_epoch()
        kept = copy.deepcopy(training.checkpoint())
        whole = training.run_epoch()
        after: dict[str, Any] = {"next": torch.randperm(5).tolist()}
        after["weights"] = sum(p.double().abs().sum() for p in training.vae.parameters()).item()
    with seeded(1, device), pyro.get_param_store().scope():
        again = build_trainer(config, data, Session(device, world))
        again.restore(kept, first)
        resumed = again.run_epoch()
    with seeded(0, device), pyro.get_param_store().scope():
        training = build_trainer(config, data, Session(device, world))
        if world.rank == world.size - 1:
            next(training.vae.q_z.parameters()).data.fill_(math.nan)
        try:
            training.run_epoch()
        except TrainingError as error:
            after["failed"] = str(error).partition(" (")[0]
    after["bad"] = bad_step(world)
    for name, rows in (("whole", whole), ("resumed", resumed)):
        after[name] = [{**asdict(row), "seconds": 0} for row in rows]
    return after


def main(path: Path) -> None:
    """Resume and fail in each process, and let the first one write what all of them found."""
    with joined_processes("cpu") as world:
        texts = [""] * world.size
        torch.distributed.all_gather_object(texts, json.dumps(resumed_and_failed(world)))
        if world.is_first:
            path.write_text(f"[{', '.join(texts)}]")
