"""A trained VAE for other programs: `export`, programs of `torch.export`; and `to_arviz`, draws for ArviZ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.core.protocol import call
from pvae.core.random_state import seeded
from pvae.data.dataset import random_subset
from pvae.marginal.chunks import data_at_once, draw_for_each
from pvae.marginal.importance import from_all_weights
from pvae.marginal.log_p import check_bounding
from pvae.runs.run import Run
from pvae.trained.scores import with_likelihood
from pvae.vae import VAE


class _Part(nn.Module):
    """A part of a VAE, which takes labels y (N, C) after x or z if the VAE does.

    It calls the modules without the checks of `VAE`, which would fix the size of a batch.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae


class _Encode(_Part):
    """x (N, *D) to the mean of q(z | x), (N, L), or to a draw where its mean has no closed form."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        q = call(self.vae, self.vae.q_z, x, y=y)
        try:
            return q.mean
        except NotImplementedError:
            return _draw(q)


class _Decode(_Part):
    """z (N, L) to the mean of p(x | z), (N, *D)."""

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return call(self.vae, self.vae.p_x, z, y=y).mean


class _LogProbs(_Part):
    """x (N, *D) to log p(x | z), log p(z) and log q(z | x) at a draw of z from q(z | x), three of shape (N,), nats."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q = call(self.vae, self.vae.q_z, x, y=y)
        p = call(self.vae, self.vae.p_z, y=y)
        z = _draw(q)
        return call(self.vae, self.vae.p_x, z, y=y).log_prob(x), p.log_prob(z), q.log_prob(z)


def _draw(q: Any) -> Tensor:
    if q.has_rsample:
        return q.rsample()
    return q.sample()


def programs(vae: VAE, *batch: Tensor) -> Iterator[tuple[str, torch.export.ExportedProgram | str]]:
    """Yield the names "encode", "decode" and "log_probs" with their programs, or with why there is none.

    Args:
        vae: in eval mode, on the CPU.
        batch: two data, x (2, *D), and two labels y (2, C) if the VAE takes labels; their values do not matter.
    """
    x, *y = batch
    shapes = [{0: torch.export.Dim("N", min=1)}] * len(batch)
    z = x.new_zeros(2, *vae.prior(*y).event_shape, dtype=torch.float32)
    for name, part, given in (("encode", _Encode, x), ("decode", _Decode, z), ("log_probs", _LogProbs, x)):
        try:
            with torch.no_grad(), pyro.validation_enabled(False):
                yield (
                    name,
                    torch.export.export(part(vae).eval(), (given, *y), dynamic_shapes=shapes, strict=False),
                )
        except Exception as error:  # of any type, as an operator that torch cannot record
            yield name, " ".join(f"{error}".split())[:100] or type(error).__name__


def export(run: Run, folder: Path) -> tuple[list[Path], list[str]]:
    """Write encode.pt2, decode.pt2 and log_probs.pt2, programs for batches of any size.

    x is as the VAE was trained on it: pixels as floats, binarized and padded; values of a table as float64.

    Args:
        run: the run; labels that the VAE is given follow x or z, one-hot.
        folder: where to write; it is made if it is missing, and the files there are replaced.

    Returns:
        The files, and a line for each part that torch cannot export.

    Raises:
        InputError: no part can be exported.
    """
    batch = [torch.zeros(2, *run.config.padded(run.data.datum_shape))]
    if run.preparation.is_exact:
        batch = [batch[0].double()]
    if run.is_given_labels:
        batch.append(torch.zeros(2, len(run.data.label_names)))
    written = list[Path]()
    notes = list[str]()
    for name, program in programs(run.vae(), *batch):
        if isinstance(program, str):
            notes.append(f"torch.export cannot write {name}: {program}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()
        torch.export.save(program, buffer)
        written.append(folder / f"{name}.pt2")
        write_whole(written[-1], buffer.getvalue())
    if not written:
        raise InputError(f"{run.name} cannot be exported: {notes[0]}")
    return written, notes


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
    vae = vae.given(batch.y)
    x = batch.x
    q = vae.posterior(x)
    p = vae.prior()
    z = q.sample((_TRIED * draws,))
    log_q = q.log_prob(z)
    log_prior = p.log_prob(z)
    log_x = torch.cat([vae.log_likelihood(x, part) for part in z.split(draws)])
    log_w = (log_x + log_prior - log_q).double()
    chosen = Categorical(logits=log_w.T).sample((draws,))
    of_prior = draw_for_each(p, draws, len(x))
    found = from_all_weights(log_w)
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
        found = dict[str, Any]()
        for name in variables:
            tensors = [part[group][name] for part in parts]
            if group in ("observed_data", "constant_data"):
                dims = ["row"]
                values = torch.cat(tensors).numpy(force=True)
            else:
                dims = ["chain", "draw", "row"]
                values = torch.cat(tensors, 1).unflatten(0, (chains, -1)).numpy(force=True)
            num_rest = values.ndim - len(dims)
            if name == "z":
                dims.append("latent")
            elif "column" in coords and num_rest:
                dims.append("column")
            else:
                dims += [f"x_dim_{place}" for place in range(num_rest)]
            found[name] = (dims, values)
        sizes = {dim: size for dims, values in found.values() for dim, size in zip(dims, values.shape)}
        groups[group] = Dataset(found, {dim: [*coords.get(dim, range(size))] for dim, size in sizes.items()})
    if hasattr(arviz, "InferenceData"):
        return arviz.InferenceData(**groups)
    return DataTree.from_dict(groups)
