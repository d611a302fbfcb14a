"""A trained VAE for other programs, by `torch.export`."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.core.protocol import call
from pvae.runs.run import Run
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
