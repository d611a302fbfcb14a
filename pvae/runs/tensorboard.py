"""The TensorBoard events of a run: scalars and pictures of each epoch.

`torch.utils.tensorboard.SummaryWriter` is not used because it writes in a thread: on a full disk the thread prints a
traceback, and it creates a removed run folder again.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar

from pvae.core.files import append
from pvae.runs.metrics import Metrics

__all__ = ["Events"]


class Events:
    """The events file of one training session.

    Args:
        path: the run folder.
        epoch: the last valid epoch; TensorBoard then hides later epochs, which an earlier session wrote.

    Raises:
        OSError: (also by `epoch`) the file cannot be written.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self._file = path / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        start = SessionLog(status=SessionLog.START)
        self._write([Event(file_version="brain.Event:2"), Event(step=epoch + 1, session_log=start)])

    def epoch(self, rows: Iterable[Metrics], images: Tensor, reconstructions: Tensor, samples: Tensor) -> None:
        """Write the metrics and pictures of an epoch; train and test values of a quantity are in one section.

        Args:
            rows: metrics of one epoch.
            images: test images (B, C, H, W) in [0, 1], shown above their reconstructions.
            reconstructions: (B, C, H, W).
            samples: images drawn from the prior (N, C, H, W); N = 0 for an autoencoder.
        """
        rows = list(rows)
        summaries = []
        for row in rows:
            values = {
                row.bound: row.elbo,
                "distortion (reconstruction error)": row.distortion,
                "rate (KL divergence)": row.rate,
                "loss": row.loss,
                "seconds": row.seconds,
            }
            summaries += [scalar(f"{name}/{row.split}", value) for name, value in values.items() if value is not None]
        pairs = torch.cat([images, reconstructions], dim=images.dim() - 2)
        for name, batch in (("test images above, reconstructions below", pairs), ("latent to image", samples)):
            if len(batch) and batch.dim() == 4:
                batch = batch if batch.shape[1] in (1, 3) else batch.mean(1, keepdim=True)  # neither grey nor colour
                summaries.append(image(name, batch, dataformats="NCHW"))
        self._write([Event(step=rows[0].epoch, summary=summary) for summary in summaries])

    def _write(self, events: Iterable[Any]) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        append(self._file, records.getvalue())
