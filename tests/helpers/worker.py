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
from pyro.infer import SVI
from torch import nn

from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.config.options import ELBOS
from pvae.core.random_state import seeded
from pvae.data.preparation import Preparation
from pvae.data.sources import load_dataset
from pvae.elbos.registry import build_elbo
from pvae.models.build import build_vae
from pvae.training.parallel import Share, World, joined
from pvae.training.shared_elbo import SharedELBO
from pvae.training.trainer import Trainer

CHAIN = Config(hidden=(8, 6), latent_dim=3, upper_latent_dims=(2,), upper_hidden=(5,))


def trained(world: World, name: str, engine: str, steps: int, config: Config) -> torch.Tensor:
    torch.manual_seed(0)
    vae = build_vae(config, (1, 5, 4)).double()
    x = torch.rand(37, 1, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adam = torch.optim.Adam(vae.parameters(), lr=1e-2, fused=True)
    optimizer = SingleOptimizer(adam, dict(vae.named_parameters()), reduce=world.sum_)
    with pyro.get_param_store().scope():
        elbos: dict[Share, Any] = {}  # a recording is of one share
        for step in range(steps):
            index = torch.randperm(37)[: 1 if step % 10 == 9 else 10 if step % 3 else 7]
            share = world.share(len(index))
            if share not in elbos:
                elbo: Any = build_elbo(name, 2)
                elbo = elbo if world.size == 1 else SharedELBO(elbo, share)
                elbos[share] = elbo if engine == "none" else CompiledELBO(elbo, engine)
            svi = SVI(vae.model, vae.guide, optimizer, loss=elbos[share])
            beta = min(1.0, step / steps * 2) if name in ("trace", "analytic") else None
            svi.step(x[index][share.rows], beta=beta)
    return torch.cat([parameter.detach().reshape(-1) for parameter in vae.parameters()])


def all_trained(world: World, steps: int) -> dict[str, torch.Tensor]:
    plain = Config(hidden=(8, 6), latent_dim=3)
    plans = [*((name, "none") for name in ELBOS), ("trace", "graph"), ("iwae", "graph"), ("dreg", "graph")]
    found = {f"{name} {how}": trained(world, name, how, steps, plain) for name, how in plans}
    return {**found, "two layers": trained(world, "trace", "none", steps, CHAIN)}


def skipping(world: World, spoiled_rank: int) -> dict[str, Any]:
    """Train an epoch of which one process cannot compute a step, and one from a checkpoint in its middle."""
    data, device, kept = load_dataset("mnist-5k"), torch.device("cpu"), []
    config = Config(hidden=(16,), latent_dim=3, batch_size=500, on_nan="skip")
    with seeded(0, device), pyro.get_param_store().scope():
        training = Trainer(config, data, device, world)

        def spoil(_module: nn.Module, _given: Any, output: torch.Tensor) -> torch.Tensor | None:
            is_now = training.vae.training and training.step == 3 and world.rank == spoiled_rank % world.size
            return output * math.nan if is_now else None

        def between() -> None:
            if training.step == 5 and not kept:
                kept.append(copy.deepcopy(training.checkpoint()))

        training.vae.q_z.encoder[1].register_forward_hook(spoil)
        whole = training.run_epoch(True, between)
        after = {"skipped": training.skipped, "next": torch.randperm(5).tolist()}
        after["weights"] = sum(p.double().abs().sum() for p in training.vae.parameters()).item()
    with seeded(0, device), pyro.get_param_store().scope():
        again = Trainer(config, data, device, world)
        again.restore(kept[0])
        resumed = again.run_epoch()
    for name, rows in (("whole", whole), ("resumed", resumed)):
        after[name] = [{**asdict(row), "seconds": 0} for row in rows]
    return after


def deep_bayes(world: World) -> list[float]:
    """Train the published system for three epochs on all of MNIST in float64, and return its test figures."""
    as_float32 = Preparation.x
    Preparation.x = lambda *given: as_float32(*given).double()
    device = torch.device("cpu")
    with seeded(0, device), pyro.get_param_store().scope():
        training = Trainer(Config(dataset="mnist"), load_dataset("mnist"), device, world)
        training.vae.double()
        return [training.run_epoch()[1].elbo for _ in range(3)]


def main(what: str, path: Path, steps: int = 0) -> None:
    """Do one of these in each process, and let the first one write what it found."""
    with joined("cpu") as world:
        if what == "estimators":
            found = all_trained(world, steps)
            if world.is_first:
                torch.save(found, path)
        elif what == "deep-bayes":
            figures = deep_bayes(world)
            if world.is_first:
                path.write_text(json.dumps(figures))
        else:
            mine = skipping(world, 1)
            others = [json.loads(text) for text in gathered(world, json.dumps(mine))]
            if world.is_first:
                both = {name: [one[name] for one in others] for name in ("skipped", "next", "weights")}
                path.write_text(json.dumps({**both, "whole": mine["whole"], "resumed": mine["resumed"]}))


def gathered(world: World, text: str) -> list[str]:
    world.store.set(f"text {world.rank}", text)
    return [world.store.get(f"text {rank}").decode() for rank in range(world.size)]
