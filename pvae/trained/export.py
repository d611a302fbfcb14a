"""`export`: the parts of a trained VAE as programs of `torch.export`, which torch opens without pvae and Pyro."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pvae.core import protocol
from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.runs.run import Run
from pvae.vae import VAE

__all__ = ["export", "programs"]


class _Part(nn.Module):
    """A part of a VAE, which takes labels y (N, C) after x or z if the VAE does."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def _call(self, module: nn.Module, *given: Tensor) -> Any:
        """Return the distribution of a module without the checks of `VAE`, which would fix the size of a batch."""
        if not self.vae.takes_labels:
            return module(*given)
        return protocol.call(self.vae, module, *given[:-1], y=given[-1])


class _Encode(_Part):
    """x (N, *D) to the mean of q(z | x), (N, L), or to a draw where its mean has no closed form."""

    def forward(self, x: Tensor, *y: Tensor) -> Tensor:
        q = self._call(self.vae.q_z, x, *y)
        try:
            return q.mean
        except NotImplementedError:
            return q.rsample() if q.has_rsample else q.sample()


class _Decode(_Part):
    """z (N, L) to the mean of p(x | z), (N, *D)."""

    def forward(self, z: Tensor, *y: Tensor) -> Tensor:
        return self._call(self.vae.p_x, z, *y).mean


class _LogProbs(_Part):
    """x (N, *D) to log p(x | z), log p(z) and log q(z | x) at a draw of z from q(z | x), three of shape (N,), nats."""

    def forward(self, x: Tensor, *y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, p = self._call(self.vae.q_z, x, *y), self._call(self.vae.p_z, *y)
        z = q.rsample() if q.has_rsample else q.sample()
        return self._call(self.vae.p_x, z, *y).log_prob(x), p.log_prob(z), q.log_prob(z)


def programs(vae: VAE, *batch: Tensor) -> Iterator[tuple[str, torch.export.ExportedProgram | str]]:
    """Yield the names "encode", "decode" and "log_probs" with their programs, or with why there is none.

    Args:
        vae: in eval mode, on the CPU.
        batch: two data, x (2, *D), and two labels y (2, C) if the VAE takes labels; their values do not matter.
    """
    x, *y = batch
    z = x.new_zeros(2, *vae.given(y[0] if y else None).prior().event_shape, dtype=torch.float32)
    size = {0: torch.export.Dim("N", min=1)}
    for name, part, given in (("encode", _Encode, x), ("decode", _Decode, z), ("log_probs", _LogProbs, x)):
        shapes = (size, (size,)) if y else (size,)
        try:
            with torch.no_grad(), pyro.validation_enabled(False):
                yield name, torch.export.export(part(vae).eval(), (given, *y), dynamic_shapes=shapes, strict=False)
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
    dtype = torch.float64 if run.preparation.is_exact else torch.float32
    batch = [torch.zeros(2, *run.config.padded(run.data.datum_shape), dtype=dtype)]
    if run.is_given_labels:
        batch.append(torch.zeros(2, len(run.data.label_names)))
    written, notes = list[Path](), list[str]()
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
