"""A full disk, a removed folder, two processes on one folder: one line is printed, and saved files stay readable."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys

import pytest
from helpers.runs import assert_same, weights

from pvae.cli.train import main
from pvae.core import files
from pvae.core.errors import InputError, LostError
from pvae.core.files import locked
from pvae.runs import data
from pvae.runs.run import Run
from pvae.training import fit as fit_module
from pvae.training.fit import fit, resume
from pvae.training.trainer import Trainer

SMALL = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "50", "--epochs", "3", "--device", "cpu", "--out", "run"]


@pytest.fixture
def few(monkeypatch, few_digits, tmp_path):
    """Replace every data set by a few digits, and work in an empty folder."""
    monkeypatch.setattr(fit_module, "load_for", lambda *_, **__: few_digits)
    monkeypatch.setattr(data, "load_again", lambda *_, **__: few_digits)
    monkeypatch.chdir(tmp_path)


def after_epoch(number, monkeypatch, do):
    """Call `do` after the epoch of that number."""
    original = Trainer.run_epoch

    def run_epoch(self, *arguments):
        if self.epoch == number:
            do()
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)


def the_line(capsys):
    line = capsys.readouterr().err
    assert line.startswith("pvae.train: ")
    assert line.count("\n") == 1, line
    assert "Traceback" not in line
    return line


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6, 7, 13, 14, 16])
def test_a_full_disk(few, few_digits, small_config, tmp_path, monkeypatch, failing):
    """Fail at each write in turn: config.json, metrics.jsonl, checkpoint, events, three per epoch, figures."""
    count, real = iter(range(1, 1000)), os.fsync

    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and next(count) >= failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    config = small_config.replace(epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        with pytest.raises(LostError if failing > 2 else InputError, match="No space left on device") as caught:
            fit(config, data=few_digits, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    if failing <= 2:
        assert not (tmp_path / "run").exists()
        return
    kept = min(3, max(0, (failing - 4) // 3))
    assert f"contains the training up to epoch {kept}" in str(caught.value)
    run = resume(tmp_path / "run", data=few_digits)
    assert not list(run.path.rglob(".*"))
    assert_same(weights(run), weights(fit(config, data=few_digits, out=tmp_path / "whole")))


def test_a_file_that_may_not_grow(few, capsys, monkeypatch):
    """The system refuses in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    after_epoch(2, monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1])))
    try:
        assert main(SMALL) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = the_line(capsys)
    assert "cannot be written any more (File too large); run contains the training up to epoch 2; go on with" in line
    assert Run.open("run").read_checkpoint().counts.epoch == 2
    monkeypatch.undo()


@pytest.mark.parametrize("then", ["removed", "a file", "empty"])
@pytest.mark.parametrize("every", ["0", "1"])
def test_the_folder_goes_away(few, capsys, tmp_path, monkeypatch, then, every):
    def do():
        shutil.rmtree(tmp_path / "run")
        if then == "a file":
            (tmp_path / "run").write_text("another's")
        elif then == "empty":
            (tmp_path / "run").mkdir()

    after_epoch(1, monkeypatch, do)
    assert main([*SMALL, "--checkpoint-every", every]) == 1
    the_line(capsys)
    if then == "removed":
        assert not (tmp_path / "run").exists()
    elif then == "a file":
        assert (tmp_path / "run").read_text() == "another's"


def immutable(path, on):
    done = subprocess.run(["chattr", "-R", "+i" if on else "-i", str(path)], capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
def test_the_folder_becomes_read_only(few, capsys, tmp_path, monkeypatch):
    (tmp_path / "trial").mkdir()
    if not (immutable(tmp_path / "trial", True) and immutable(tmp_path / "trial", False)):
        pytest.skip("this disk, or this user, knows no immutable files")
    after_epoch(1, monkeypatch, lambda: immutable(tmp_path / "run", True))
    try:
        assert main(SMALL) == 1
        line = the_line(capsys)
        assert "run contains the training up to epoch 1; go on with: " in line
        assert Run.open("run").read_checkpoint().counts.epoch == 1
        assert main(["--resume", "run"]) == 1
        assert "run contains the training up to epoch 1" in the_line(capsys)
    finally:
        immutable(tmp_path / "run", False)
    monkeypatch.undo()


OWNER = """
import sys, time
from pathlib import Path
from pvae.core.files import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_two_processes_on_one_folder(few, few_digits, small_config, capsys, tmp_path, monkeypatch):
    """The second one is refused; the lock is free once its owner has died."""
    fit(small_config.replace(epochs=1), data=few_digits, out=tmp_path / "run")
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "mine\n"
        before = (tmp_path / "run" / "config.json").read_bytes()
        assert main(["--resume", "run", "--epochs", "2"]) == 2
        assert "run is being trained by another process" in the_line(capsys)
        assert (tmp_path / "run" / "config.json").read_bytes() == before
    finally:
        owner.kill()
        owner.wait()
    assert main(["--resume", "run", "--epochs", "2", "--quiet"]) == 0


def test_resume_reads_the_checkpoint_under_the_lock(few_digits, small_config, tmp_path, monkeypatch):
    """Another process may still write a checkpoint that is read before the lock is held."""
    fit(small_config, data=few_digits, out=tmp_path / "run")
    original = Run.read_checkpoint

    def read_checkpoint(self, previous=False):
        with pytest.raises(InputError, match="another process"), locked(self.path):
            pass
        return original(self, previous)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "read_checkpoint", read_checkpoint)
        resume(tmp_path / "run", 3, data=few_digits)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(few_digits, small_config, tmp_path, monkeypatch):
    """Interrupted in the first write after the previous checkpoint was used: that one is still there."""
    run = fit(small_config, data=few_digits, out=tmp_path / "run")
    (run.path / "checkpoint.safetensors").write_bytes(b"damaged")
    previous = (run.path / "checkpoint-previous.safetensors").read_bytes()
    writes, original = [], files.Path.replace

    def replace(self, target):
        writes.append(target)
        assert (run.path / "checkpoint-previous.safetensors").read_bytes() == previous
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", replace)
        after_epoch(2, patch, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resume(run.path, 4, data=few_digits)
    assert run.path / "checkpoint.safetensors" in writes
