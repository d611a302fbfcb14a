"""Kill trainings with SIGKILL, go on, and compare with an undisturbed one: forks of one warm process, to be cheap.

What inductor compiles is not for forks: its threads do not survive one.

`python tests/helpers/killing.py FOLDER KILLS SEED`, with OMP_NUM_THREADS=1: a pool of threads that the parent made
aborts the child now and then.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # which torch imports when it creates its first optimiser: once, before the forks
import torchvision.utils  # noqa: F401  for the same reason

from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training.callbacks import OnEachRow, default_callbacks
from pvae.training.fit import fit, resume

SMALL = Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=4)
VARIANTS = {
    "analytic": SMALL.replace(elbo="analytic", warm_up=2, binarize="dynamic"),
    "graph": SMALL.replace(particles=3, binarize="dynamic", warm_up=3, compile="graph"),
    "clipped": SMALL.replace(elbo="handwritten", beta=0.5, clip_norm=5.0, schedule="cosine"),
    "dreg": SMALL.replace(elbo="dreg", particles=2, binarize="dynamic", compile="graph"),
}
FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
LONGEST = 120.0  # seconds of an undisturbed training


def die_at_file_event(number, folder):
    """End this process before the n-th time that it opens, renames, links or removes something of the folder."""
    seen = itertools.count(1)

    def hook(event, arguments):
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def written_epoch(path):
    """The file that holds the last epoch that was written of a run."""
    return path.parent / f"epoch-of-{path.name}"


def train_in_child(path, config, data, die_at):
    note = OnEachRow(lambda run, row: written_epoch(path).write_text(str(row.epoch)))
    options = {"data": data, "callbacks": [*default_callbacks(), note]}
    if die_at:
        die_at_file_event(die_at, path)
    if (path / "config.json").exists():
        resume(path, **options)
    else:
        fit(config, out=path, **options)


def train(path, config, data, seconds=LONGEST, die_at=0):
    """Train, or go on, in a fork that is killed after these seconds or at a file event; return whether it ended."""
    child = os.fork()
    if child == 0:
        try:
            train_in_child(path, config, data, die_at)
        except BaseException:
            traceback.print_exc()
            os._exit(9)
        os._exit(0)
    ends = time.monotonic() + seconds
    ended, status = 0, 0
    while not ended:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
        ended, status = os.waitpid(child, os.WNOHANG)
    assert status in (0, signal.SIGKILL), "the training failed"
    return status == 0


def assert_same_runs(path, whole):
    """Weights, moments, random state, rows, names of files, and pictures."""
    runs = [Run.open(one) for one in (path, whole)]
    ours, theirs = (run.read_checkpoint() for run in runs)
    for group in ("vae", "moments", "rng"):
        mine, other = getattr(ours, group), getattr(theirs, group)
        assert mine.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items()), group
    rows, names, pictures = [], [], []
    for run in runs:
        rows.append([{**vars(row), "seconds": 0} for row in run.metrics()])
        names.append({one.name for one in run.path.rglob("[!.]*") if "tfevents" not in one.name})
        pictures.append([one.read_bytes() for one in sorted(run.path.glob("figures/*"))])
    assert (ours.epoch, ours.step, rows[0], names[0]) == (theirs.epoch, theirs.step, rows[1], names[1])
    assert pictures[0] == pictures[1]


def main(folder, kills, seed):
    """Train each variant in turn, each run with four kills at most, until there were so many kills."""
    draw, seconds = random.Random(seed), {}
    digits = read("mnist-5k")
    data = Dataset("few digits", digits.train[:130], digits.test[:40])
    for number, (name, config) in enumerate(itertools.cycle(VARIANTS.items())):
        whole, path = folder / name, folder / f"{name}-{number}"
        if name not in seconds:
            begun = time.monotonic()
            assert train(whole, config, data)
            seconds[name] = time.monotonic() - begun
        for _ in range(min(4, kills)):
            moments = {"seconds": draw.uniform(0, seconds[name])}, {"die_at": draw.randrange(1, 60)}
            if train(path, config, data, **draw.choice(moments)):
                break
            kills -= 1
            if written_epoch(path).exists():
                assert Run.open(path).read_checkpoint().epoch >= int(written_epoch(path).read_text() or 0)
        train(path, config, data)
        assert_same_runs(path, whole)
        if kills == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
