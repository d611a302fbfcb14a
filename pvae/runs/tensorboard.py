"""The TensorBoard events of an epoch: scalars and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pvae.runs.metrics import Metrics

__all__ = ["write_events"]


def write_events(
    writer: Any, rows: Iterable[Metrics], images: Tensor, reconstructions: Tensor, samples: Tensor
) -> None:
    """Write the metrics and pictures of an epoch; train and test values of a quantity are in one section.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`.
        rows: metrics of one epoch.
        images: test images (B, C, H, W) in [0, 1], shown above their reconstructions.
        reconstructions: (B, C, H, W).
        samples: images drawn from the prior (N, C, H, W); N = 0 for an autoencoder.

    Raises:
        OSError: the file cannot be written.
    """
    epoch = 0
    for row in rows:
        epoch = row.epoch
        values = {
            row.bound: row.elbo,
            "distortion (reconstruction error)": row.distortion,
            "rate (KL divergence)": row.rate,
            "loss": row.loss,
            "seconds": row.seconds,
        }
        for name, value in values.items():
            if value is not None:
                writer.add_scalar(f"{name}/{row.split}", value, epoch)
    pairs = torch.cat([images, reconstructions], dim=images.dim() - 2)
    for name, batch in (("test images above, reconstructions below", pairs), ("latent to image", samples)):
        if len(batch) and batch.dim() == 4:
            batch = batch if batch.shape[1] in (1, 3) else batch.mean(1, keepdim=True)  # neither grey nor colour
            writer.add_images(name, batch, epoch)
    writer.flush()
