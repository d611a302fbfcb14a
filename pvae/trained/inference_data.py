"""`to_arviz`, a trained VAE and some data as the groups of draws and densities that ArviZ takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import random_subset
from pvae.marginal.chunks import data_at_once
from pvae.marginal.importance import from_weights
from pvae.marginal.log_p import check_bounding
from pvae.marginal.pareto import num_in_tail, pareto_k
from pvae.runs.run import Run
from pvae.trained.normalised import with_likelihood
from pvae.vae import VAE

__all__ = ["to_arviz"]

_MOST = 100  # test data of a run
_TRIED = 10  # draws of q(z | x) for each that is kept


@torch.no_grad()
def to_arviz(vae: VAE | Run, data: Data | None = None, draws: int = 250, chains: int = 4, seed: int = 0) -> Any:
    """Return draws of p(z | x), p(x | z) and p(z), and their densities, as the `InferenceData` of ArviZ.

        z_1..z_K ~ q(z | x),  K = 10 draws chains,  w_k = p(x, z_k) / q(z_k | x);   z = z_k with probability w_k / sum w

    The draws of z are of p(z | x) as far as the weights can be trusted, which `constant_data.pareto_k` says; where
    q(z | x) = p(z | x), they are exact. The data are dimension "row", the latents "latent", and a table's columns
    "column". Draws of z given a row are with replacement
    from K, and those of a chain depend on each other no more than on those of another.

    The parameters are held fixed, so that leaving a row out leaves p(z) for it: elpd_loo estimates the sum over the
    rows of log p(x), from weights 1 / p(x | z), whose tail is heavier than that of w.

    Args:
        vae: a VAE in eval mode, or a run.
        data: data (N, *D), or a `Batch` of them with labels; by default 100 test data of the run, drawn at random.
        draws: the number of draws in a chain, for each datum.
        chains: the number of chains.
        seed: of all draws.

    Returns:
        Groups, nats where they are densities: `posterior` and `prior` (z), `log_likelihood` (log p(x | z)),
        `sample_stats` (log_prior, log p(z); log_q, log q(z | x); and lp, log p(x, z)), `posterior_predictive`,
        `prior_predictive`, `observed_data` (x), and `constant_data` (log_p, log p(x), with log_p_stderr and pareto_k).
        ArviZ 1 takes them as a `DataTree`.

    Raises:
        InputError: ArviZ is not installed, the VAE has no density, or there are no data.

    Reference:
        Rubin, "Using the SIR algorithm to simulate posterior distributions", 1988; Vehtari, Gelman and Gabry,
        arXiv:1507.04544, on PSIS-LOO.
    """
    coords = dict[str, Any]()
    if isinstance(vae, Run):
        run = vae
        if data is None:
            found = run.dataset()
            rows = random_subset(len(found.test), _MOST, seed)
            coords["row"] = [found.test_names[row] for row in rows.tolist()]
            vae, data, _ = with_likelihood(run, found.test, found.labels.get("test"), rows)
        else:
            vae = run.vae()
        if run.data.columns:
            coords["column"] = [column.name for column in run.data.columns]
    elif data is None:
        raise InputError("give the data, (N, *D), of which z is to be drawn")
    check_bounding(vae)
    batch = Batch.of(data)
    with seeded(seed):
        parts = [_drawn(vae, part, draws * chains) for part in batch.split(max(1, data_at_once(vae, batch) // _TRIED))]
    return _grouped(parts, coords, chains)


def _drawn(vae: VAE, batch: Batch, draws: int) -> dict[str, dict[str, Tensor]]:
    """Return the variables of each group for a few data, each with dimensions (draw, row, ...), or (row, ...)."""
    vae, x, num_tried = vae.given(batch.y), batch.x, _TRIED * draws
    q, p = vae.posterior(x), vae.prior()
    z = q.sample((num_tried,))
    log_q, log_prior = q.log_prob(z), p.log_prob(z)
    log_x = torch.cat([vae.log_likelihood(x, part) for part in z.split(draws)])
    log_w = (log_x + log_prior - log_q).double()
    chosen = Categorical(logits=log_w.T).sample((draws,))
    of_prior = p.sample((draws,) if p.batch_shape else (draws, len(x)))
    tail = log_w.topk(num_in_tail(num_tried) + 1, 0).values
    found = from_weights(log_w.logsumexp(0), (2 * log_w).logsumexp(0), num_tried, pareto_k(tail))
    z = z.take_along_dim(chosen[..., None], 0)
    log_q, log_prior, log_x = (one.take_along_dim(chosen, 0) for one in (log_q, log_prior, log_x))
    return {
        "posterior": {"z": z},
        "prior": {"z": of_prior},
        "log_likelihood": {"x": log_x},
        "sample_stats": {"log_prior": log_prior, "log_q": log_q, "lp": log_prior + log_x},
        "posterior_predictive": {"x": vae.likelihood(z).sample()},
        "prior_predictive": {"x": vae.likelihood(of_prior).sample()},
        "observed_data": {"x": x},
        "constant_data": {"log_p": found.log_p, "log_p_stderr": found.stderr, "pareto_k": found.pareto_k},
    }


def _grouped(parts: Sequence[dict[str, dict[str, Tensor]]], coords: dict[str, Any], chains: int) -> Any:
    """Return the groups of all data with the names of their dimensions, as the ArviZ that is installed takes them."""
    try:
        import arviz
        from xarray import Dataset, DataTree
    except ImportError:
        raise InputError(
            "to_arviz needs ArviZ: pip install arviz, of a version for this Python (1.0 and later need 3.12)"
        ) from None
    groups = dict[str, Any]()
    for group, variables in parts[0].items():
        first = [] if group in ("observed_data", "constant_data") else ["chain", "draw"]
        found = dict[str, Any]()
        for name in variables:
            values = torch.cat([part[group][name] for part in parts], 1 if first else 0).numpy(force=True)
            values = values.reshape(chains, -1, *values.shape[1:]) if first else values
            rest = ["latent"] if name == "z" else ["column"] * ("column" in coords) * (values.ndim > 1 + len(first))
            rest = rest or [f"x_dim_{place}" for place in range(values.ndim - 1 - len(first))]
            found[name] = ([*first, "row", *rest], values)
        sizes = {dim: size for dims, values in found.values() for dim, size in zip(dims, values.shape)}
        known = {dim: coords.get(dim, range(size)) for dim, size in sizes.items()}
        groups[group] = Dataset(found, {dim: [*names] for dim, names in known.items()})
    is_data_tree = not hasattr(arviz, "InferenceData")
    return DataTree.from_dict(groups) if is_data_tree else arviz.InferenceData(**groups)
