"""One training by SVI, eager or compiled, and two trainings compared."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch.optim import Adam

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.config.build import build_elbo
from pvae.core.batch import LossAndTerms
from pvae.elbos.base import PerDatumELBO

# Of VAEs without labels, of any latents.
ELBOS = tuple(
    name
    for name, one in PerDatumELBO.members.items()
    if not (one.sums_over_labels or one.supports or one.needs_whole_batch)
)


class Trained(NamedTuple):
    """The losses; the parameters, the optimiser's state and the random state at the end; how often it recorded."""

    losses: list[float]
    parameters: dict[str, torch.Tensor]
    state: list[torch.Tensor]
    random_state: torch.Tensor
    num_recordings: int


def built(name, particles=4, **options):
    groups = {"groups": 2} if name == "miwae" and particles > 1 else {}
    return build_elbo(name, particles, **groups, **options)


def adam(parameters, **options):
    return Adam(parameters, **{"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-3, "fused": True, **options})


class SingleOptimizer(pyro.optim.PyroOptim):
    """Let SVI step one torch optimiser over all parameters."""

    def __init__(self, optimizer):
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer

    def __call__(self, params):
        self.optimizer.step()
        self.optimizer.zero_grad()


def trained(vae, elbo, batches, svi=SVI, on_step=lambda *_: None, beta_of=None, evaluates=False, **options):
    """Take a step on each batch.

    Args:
        vae: the VAE.
        elbo: the loss.
        batches: the batch of each step.
        svi: `SVI` or `CompiledSVI`.
        on_step: called before each step with its number, the VAE and the optimiser.
        beta_of: the weight of the rate at each step.
        evaluates: compute the loss once more at the end.
        options: of the constructor of `svi`.
    """
    of_cuda = {"devices": [0]} if next(vae.parameters()).is_cuda else {}
    with torch.random.fork_rng(**of_cuda), pyro.get_param_store().scope():
        torch.manual_seed(11)
        optimizer = adam(vae.parameters())
        stepped = (AdamUpdate if issubclass(svi, CompiledSVI) else SingleOptimizer)(optimizer)
        one, losses = svi(vae.model, vae.guide, stepped, elbo, **options), []
        for step, batch in enumerate(batches):
            on_step(step, vae, optimizer)
            batch = batch if isinstance(batch, tuple) else (batch,)
            taken = one.step(*batch) if beta_of is None else one.step(*batch, beta=beta_of(step))
            losses.append(taken.loss.item() if isinstance(taken, LossAndTerms) else taken)
        if evaluates:
            losses.append(one.evaluate_loss(*batch))
        parameters = {name: p.detach().clone() for name, p in vae.named_parameters()}
        state = [v.clone() for p in vae.parameters() for v in optimizer.state.get(p, {}).values()]
        rng = torch.cuda.get_rng_state() if of_cuda else torch.get_rng_state()
        return Trained(losses, parameters, state, rng, getattr(one, "num_recordings", 0))


def assert_trained_alike(ours, theirs, rel=1e-9):
    assert ours.losses == pytest.approx(theirs.losses, rel=rel)
    assert ours.parameters.keys() == theirs.parameters.keys()
    for mine, other in zip([*ours.parameters.values(), *ours.state], [*theirs.parameters.values(), *theirs.state]):
        assert (mine - other).norm() <= rel * other.norm() + 1e-12
    assert torch.equal(ours.random_state, theirs.random_state), "the random stream was read otherwise"
