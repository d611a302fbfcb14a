"""The TensorBoard events of a run: scalars and pictures of each epoch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pvae.runs.metrics import Metrics

__all__ = ["Events"]


class Events:
    """The events file of one training session; a context manager that closes it.

    Args:
        path: the run folder.
        epoch: the last valid epoch; TensorBoard then hides later epochs, which an earlier session wrote.

    Raises:
        OSError: (also by `write`) the file cannot be written.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self._writer = SummaryWriter(str(path), purge_step=epoch + 1)  # type: ignore[no-untyped-call]

    def write(self, rows: Iterable[Metrics], images: Tensor, reconstructions: Tensor, samples: Tensor) -> None:
        """Write the metrics and pictures of an epoch; train and test values of a quantity are in one section.

        Args:
            rows: metrics of one epoch.
            images: test images (B, C, H, W) in [0, 1], shown above their reconstructions.
            reconstructions: (B, C, H, W).
            samples: images drawn from the prior (N, C, H, W); N = 0 for an autoencoder.
        """
        writer: SummaryWriter = self._writer
        for row in rows:
            values = {
                row.bound: row.elbo,
                "distortion (reconstruction error)": row.distortion,
                "rate (KL divergence)": row.rate,
                "loss": row.loss,
                "seconds": row.seconds,
            }
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(f"{name}/{row.split}", value, row.epoch)  # type: ignore[no-untyped-call]
        pairs = torch.cat([images, reconstructions], dim=images.dim() - 2)
        for name, batch in (("test images above, reconstructions below", pairs), ("latent to image", samples)):
            if len(batch) and batch.dim() == 4:
                batch = batch if batch.shape[1] in (1, 3) else batch.mean(1, keepdim=True)  # neither grey nor colour
                writer.add_images(name, batch, row.epoch)  # type: ignore[no-untyped-call]
        writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is left, and end the writer's thread."""
        self._writer.close()  # type: ignore[no-untyped-call]
