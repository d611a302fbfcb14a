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

from helpers.svi import ELBOS
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.core.errors import TrainingError
from pvae.core.random_state import seeded
from pvae.data.sources import load_dataset
from pvae.elbos.registry import build_elbo
from pvae.models.build import build_vae
from pvae.training.parallel import SharedELBO, World, joined
from pvae.training.setup import build_trainer

CHAIN = Config(hidden=(8, 6), latent_dim=3, upper_latent_dims=(2,), upper_hidden=(5,))


def trained(world: World, name: str, engine: str, steps: int, config: Config) -> torch.Tensor:
    torch.manual_seed(0)
    vae = build_vae(config, (1, 5, 4)).double()
    x = torch.rand(37, 1, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adam = torch.optim.Adam(vae.parameters(), lr=1e-2, fused=True)
    optimizer = SingleOptimizer(adam, dict(vae.named_parameters()), reduce=world.sum_)
    with pyro.get_param_store().scope():
        elbo: Any = build_elbo(name, 2)
        elbo = elbo if world.size == 1 else SharedELBO(elbo, world)
        svi = CompiledSVI(vae.model, vae.guide, optimizer, elbo, engine)
        for step in range(steps):
            index = torch.randperm(37)[: 1 if step % 10 == 9 else 10 if step % 3 else 7]
            beta = min(1.0, step / steps * 2) if name in ("trace", "analytic") else None
            svi.step(x[index], beta=beta)
    return torch.cat([parameter.detach().reshape(-1) for parameter in vae.parameters()])


def all_trained(world: World, steps: int) -> dict[str, torch.Tensor]:
    plain = Config(hidden=(8, 6), latent_dim=3)
    plans = [*((name, "none") for name in ELBOS), ("trace", "graph"), ("iwae", "graph"), ("dreg", "graph")]
    found = {f"{name} {how}": trained(world, name, how, steps, plain) for name, how in plans}
    return {**found, "two layers": trained(world, "trace", "none", steps, CHAIN)}


def resumed_and_failed(world: World) -> dict[str, Any]:
    """Train two epochs, and the second again from the first one's checkpoint; then make one process fail."""
    data, device = load_dataset("mnist-5k"), torch.device("cpu")
    config = Config(hidden=(16,), latent_dim=3, batch_size=500)
    with seeded(0, device), pyro.get_param_store().scope():
        training = build_trainer(config, data, device, world)
        first = training.run_epoch()
        kept = copy.deepcopy(training.checkpoint())
        whole = training.run_epoch()
        after: dict[str, Any] = {"next": torch.randperm(5).tolist()}
        after["weights"] = sum(p.double().abs().sum() for p in training.vae.parameters()).item()
    with seeded(1, device), pyro.get_param_store().scope():
        again = build_trainer(config, data, device, world)
        again.restore(kept, first)
        resumed = again.run_epoch()
    with seeded(0, device), pyro.get_param_store().scope():
        training = build_trainer(config, data, device, world)
        if world.rank == world.size - 1:
            next(training.vae.q_z.parameters()).data.fill_(math.nan)
        try:
            training.run_epoch()
        except TrainingError as error:
            after["failed"] = str(error).partition(" (")[0]
    for name, rows in (("whole", whole), ("resumed", resumed)):
        after[name] = [{**asdict(row), "seconds": 0} for row in rows]
    return after


def main(what: str, path: Path, steps: int = 0) -> None:
    """Do one of these in each process, and let the first one write what it found."""
    with joined("cpu") as world:
        if what == "estimators":
            found = all_trained(world, steps)
            if world.is_first:
                torch.save(found, path)
        else:
            texts = [""] * world.size
            torch.distributed.all_gather_object(texts, json.dumps(resumed_and_failed(world)))
            if world.is_first:
                path.write_text(f"[{', '.join(texts)}]")
