"""A run's TensorBoard events: the scalars of each epoch and the pictures that document 000 shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pvae.metrics import Metrics

__all__ = ["Events"]


class Events:
    """The events file of one training.

    Args:
        path: the run folder.
        epoch: the last epoch that stands; what an earlier process wrote beyond it is no longer shown.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self._writer = SummaryWriter(str(path), purge_step=epoch + 1)

    def scalars(self, rows: Iterable[Metrics]) -> None:
        """Write the rows of one epoch; train and test of a quantity stand in one section."""
        for row in rows:
            values = {
                row.bound: row.elbo,
                "distortion (reconstruction error)": row.distortion,
                "rate (KL divergence)": row.rate,
                "loss": row.loss,
                "seconds": row.seconds,
            }
            for name, value in values.items():
                if value is None:
                    continue
                self._writer.add_scalar(f"{name}/{row.split}", value, row.epoch)

    def pictures(self, epoch: int, images: Tensor, reconstructions: Tensor, samples: Tensor) -> None:
        """Write test images above their reconstructions, and images of the prior."""
        from torchvision.utils import make_grid  # slow to import, and the first epoch need not wait for it

        pairs = make_grid(torch.cat([images, reconstructions]), nrow=len(images))
        self._writer.add_image("test images above, reconstructions below", pairs, epoch)
        if len(samples):
            self._writer.add_image("latent to image", make_grid(samples, nrow=8), epoch)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
