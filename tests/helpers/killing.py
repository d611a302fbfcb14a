"""Kill trainings with SIGKILL, go on, and compare with an undisturbed one: forks of one warm process, to be cheap.

What inductor compiles is not for forks: its threads do not survive one.

`python tests/helpers/killing.py FOLDER KILLS SEED [VARIANT...]` prints a JSON object of what it saw.
"""

from __future__ import annotations

import json
import mmap
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

import pvae.runs.writer
from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training.fit import fit, resume

SMALL = Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=4)
VARIANTS = {
    "trace": SMALL,
    "analytic": SMALL.replace(elbo="analytic", warm_up=2, binarize="dynamic"),
    "graph": SMALL.replace(particles=3, binarize="dynamic", warm_up=3, compile="graph"),
    "handwritten-clipped": SMALL.replace(elbo="handwritten", beta=0.5, clip_norm=5.0, schedule="cosine"),
    "dreg-graph": SMALL.replace(elbo="dreg", particles=2, binarize="dynamic", compile="graph"),
}
FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}


def note_epochs(recorded):
    """Let the package note in shared memory the epoch of each checkpoint that it has written."""
    original = pvae.runs.writer.save

    def save(run, rows, checkpoint):
        original(run, rows, checkpoint)
        recorded[0] = checkpoint.epoch

    pvae.runs.writer.save = save


def die_at_file_event(number, folder):
    """End this process before the n-th time that it opens, renames, links or removes something of the folder."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Killer:
    def __init__(self, folder, seed):
        self.folder, self.random = folder, random.Random(seed)
        digits = read("mnist-5k")
        self.data = Dataset("few digits", digits.train[:130], digits.test[:40])
        self.shared = mmap.mmap(-1, 1)
        self.kills = self.lost_epochs = self.failures = self.different = self.folders = 0

    def run(self, path, variant, delay=None, number=None):
        """Train, or go on, in a fork that dies after a delay or at a file event; return whether it came to its end."""
        self.shared[0] = 0
        child = os.fork()
        if child == 0:
            try:
                note_epochs(self.shared)
                if number is not None:
                    die_at_file_event(number, path)
                if (path / "config.json").exists():
                    resume(path, data=self.data)
                else:
                    fit(VARIANTS[variant], data=self.data, out=path)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(9)
        ends = time.monotonic() + (delay if delay is not None else 120)
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > ends:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                break
            time.sleep(0.001)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.kills += 1
        elif status:
            self.failures += 1
        return status == 0

    def disturbed(self, variant, seconds, at_most):
        """Train a run with so many kills at most, and return its folder."""
        self.folders += 1
        path, recorded = self.folder / f"{variant}-{self.folders}", 0
        for _ in range(at_most):
            if self.random.random() < 0.5:
                is_done = self.run(path, variant, delay=self.random.uniform(0, seconds))
            else:
                is_done = self.run(path, variant, number=self.random.randrange(1, 60))
            recorded = max(recorded, self.shared[0])
            if is_done or self.failures:
                return path
            if recorded:
                run = Run.open(path)
                self.lost_epochs += max(0, recorded - run.read_checkpoint().epoch)
        self.run(path, variant)
        return path

    def torture(self, variants, kills):
        for number in range(10**6):
            variant = variants[number % len(variants)]
            whole = self.folder / variant
            if not whole.exists():
                self.run(whole, variant)
                started = time.monotonic()
                self.run(self.folder / f"{variant}-timed", variant)  # what is compiled is in its cache by now
                self.seconds = {**getattr(self, "seconds", {}), variant: time.monotonic() - started}
            path = self.disturbed(variant, self.seconds[variant], min(4, kills - self.kills))
            if self.failures or not same(path, whole):
                self.different += 1
                break
            if self.kills >= kills:
                break
        return {
            name: getattr(self, name)
            for name in ("kills", "folders", "lost_epochs", "failures", "different", "seconds")
        }


def same(path, whole):
    ours, theirs = Run.open(path), Run.open(whole)
    mine, other = ours.read_checkpoint(), theirs.read_checkpoint()
    groups = ("vae", "moments", "rng")
    are_equal = [
        getattr(mine, group).keys() == getattr(other, group).keys()
        and all(torch.equal(tensor, getattr(other, group)[name]) for name, tensor in getattr(mine, group).items())
        for group in groups
    ]
    rows = [[{**vars(row), "seconds": 0} for row in run.metrics()] for run in (ours, theirs)]
    names = [sorted(one.name for one in run.path.rglob("*") if "tfevents" not in one.name) for run in (ours, theirs)]
    pictures = [[one.read_bytes() for one in sorted(run.path.glob("figures/*"))] for run in (ours, theirs)]
    found = [*are_equal, (mine.epoch, mine.step) == (other.epoch, other.step), rows[0] == rows[1], names[0] == names[1]]
    found.append(pictures[0] == pictures[1])
    if not all(found):
        print(path, found, names, file=sys.stderr)
    return all(found)


if __name__ == "__main__":
    assert os.environ.get("OMP_NUM_THREADS") == "1", "run it with OMP_NUM_THREADS=1"
    # Not torch.set_num_threads: a pool of threads that the parent made aborts the child now and then.
    killer = Killer(Path(sys.argv[1]), int(sys.argv[3]))
    print(json.dumps(killer.torture(sys.argv[4:] or list(VARIANTS), int(sys.argv[2]))))
