"""A run's TensorBoard events: the scalars of each epoch and the pictures that document 000 shows.

Each epoch is appended at once by whoever trains: TensorBoard's own writer has a thread, whose failure (a full disk) is
a traceback that no one can catch, and which makes a folder anew that was removed.
"""

from __future__ import annotations

import io
import itertools
import os
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

_COUNT = itertools.count()


class Events:
    """The events file of one training.

    Args:
        path: the run folder.
        epoch: the last epoch that stands; what an earlier process wrote beyond it is no longer shown.

    Raises:
        OSError: (of every method) the file cannot be written.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        place = f"{socket.gethostname()}.{os.getpid()}.{next(_COUNT)}"
        self._file = path / f"events.out.tfevents.{int(time.time()):010d}.{place}"
        start = SessionLog(status=SessionLog.START)
        self._write([Event(file_version="brain.Event:2"), Event(step=epoch + 1, session_log=start)])

    def epoch(self, rows: Iterable[Metrics], images: Tensor, reconstructions: Tensor, samples: Tensor) -> None:
        """Write the rows of an epoch, train and test of a quantity in one section, and its pictures.

        Args:
            rows: of one epoch.
            images: test images (B, C, H, W), shown above their reconstructions.
            reconstructions: theirs.
            samples: images of the prior; none of an autoencoder.
        """
        rows = list(rows)
        summaries = [scalar(f"{name}/{row.split}", value) for row in rows for name, value in _scalars(row)]
        summaries += _pictures(images, reconstructions, samples)
        self._write([Event(step=rows[0].epoch, summary=summary) for summary in summaries])

    def _write(self, events: Iterable[Any]) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        append(self._file, records.getvalue())


def _scalars(row: Metrics) -> list[tuple[str, float]]:
    values = {
        row.bound: row.elbo,
        "distortion (reconstruction error)": row.distortion,
        "rate (KL divergence)": row.rate,
        "loss": row.loss,
        "seconds": row.seconds,
    }
    return [(name, value) for name, value in values.items() if value is not None]


def _pictures(images: Tensor, reconstructions: Tensor, samples: Tensor) -> list[Any]:
    from torchvision.utils import make_grid  # slow to import, and the first epoch need not wait for it

    pairs = make_grid(torch.cat([images, reconstructions]), nrow=len(images))
    shown = [image("test images above, reconstructions below", pairs, dataformats="CHW")]
    if len(samples):
        shown.append(image("latent to image", make_grid(samples, nrow=8), dataformats="CHW"))
    return shown
