"""What each process of `test_parallel` does: train every estimator in float64, and keep the weights of the first."""

from __future__ import annotations

import sys

import pyro
import torch
from pyro.infer import SVI

from pvae.building import build_vae
from pvae.compiled import CompiledELBO
from pvae.config import Config
from pvae.elbos import build_elbo
from pvae.optimizers import SingleOptimizer
from pvae.options import ELBOS
from pvae.parallel import World, joined
from pvae.sharedelbo import SharedELBO

CHAIN = Config(hidden=(8, 6), latent_dim=3, second_latent_dim=2, second_hidden=(5,))


def trained(world: World, name: str, engine: str, steps: int, config: Config) -> torch.Tensor:
    torch.manual_seed(0)
    vae = build_vae(config, (1, 5, 4)).double()
    elbo = shared = build_elbo(name, 2)
    if world.size > 1:
        elbo = shared = SharedELBO(elbo)
    if engine != "none":
        elbo = CompiledELBO(elbo, engine)
    x = torch.rand(37, 1, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    adam = torch.optim.Adam(vae.parameters(), lr=1e-2, fused=True)
    optimizer = SingleOptimizer(adam, dict(vae.named_parameters()), reduce=world.sum_)
    with pyro.get_param_store().scope():
        svi = SVI(vae.model, vae.guide, optimizer, loss=elbo)
        for step in range(steps):
            index = torch.randperm(37)[: 1 if step % 50 == 49 else 10 if step % 3 else 7]
            shared.share = world.share(len(index))
            if name in ("trace", "analytic"):
                elbo.beta = min(1.0, step / steps * 2)
            svi.step(x[index][shared.share.rows])
    return torch.cat([parameter.detach().reshape(-1) for parameter in vae.parameters()])


def all_trained(world: World, steps: int) -> dict[str, torch.Tensor]:
    plain = Config(hidden=(8, 6), latent_dim=3)
    plans = [*((name, "none") for name in ELBOS), ("trace", "graph"), ("iwae", "graph"), ("dreg", "graph")]
    found = {f"{name} {how}": trained(world, name, how, steps, plain) for name, how in plans}
    return {**found, "two layers": trained(world, "trace", "none", steps, CHAIN)}


if __name__ == "__main__":
    with joined("cpu") as world:
        found = all_trained(world, int(sys.argv[2]))
        if world.is_first:
            torch.save(found, sys.argv[1])
