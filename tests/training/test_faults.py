"""A full disk, a removed folder, two processes on one folder: one line is printed, and saved files stay readable."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys

import pytest
from helpers.runs import assert_same, weights
from tensorboard.summary.writer.record_writer import RecordWriter

from pvae.core.errors import InputError, LostError
from pvae.runs.run import Run
from pvae.training.callbacks import OnEachRow
from pvae.training.fit import fit, resume

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]


def after_epoch(number, do):
    """Return a function of a run and a row that calls `do` after the epoch of that number."""
    return lambda run, row: do() if (row.epoch, row.split) == (number, "test") else None


@pytest.fixture
def config(small_config):
    return small_config.replace(epochs=3)


@pytest.mark.parametrize("failing", [1, 3, 4, 5, 6, 9])
def test_a_full_disk(few_digits, config, tmp_path, monkeypatch, failing):
    """Fail at each write in turn: metrics.jsonl, checkpoint, config.json, two per epoch."""
    count, real = iter(range(1, 1000)), os.fsync

    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and next(count) >= failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(LostError if failing > 3 else InputError, match="No space left") as caught:
            fit(config, data=few_digits, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    if failing <= 3:
        assert not (tmp_path / "run").exists()
        return
    assert f"up to epoch {(failing - 4) // 2}; go on with" in str(caught.value)
    run = resume(tmp_path / "run", data=few_digits)
    assert not list(run.path.rglob(".*"))
    assert_same(weights(run), weights(fit(config, data=few_digits, out=tmp_path / "whole")))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_when_events_are_written(few_digits, config, tmp_path, monkeypatch):
    """SummaryWriter writes in a thread, whose error reaches the training."""
    count, write = iter(range(1000)), RecordWriter.write

    def write_or_fail(self, record):
        if next(count) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, record)

    monkeypatch.setattr(RecordWriter, "write", write_or_fail)
    with pytest.raises(LostError, match="No space left"):
        fit(config, data=few_digits, out=tmp_path / "run")
    assert Run.open(tmp_path / "run").read_checkpoint().epoch in (1, 2)


@pytest.mark.parametrize("then", ["removed", "empty"])
def test_the_folder_goes_away(few_digits, config, tmp_path, then):
    """The message does not say that the folder contains the training."""

    def do():
        shutil.rmtree(tmp_path / "run")
        if then == "empty":
            (tmp_path / "run").mkdir()

    with pytest.raises(LostError, match="removed") as caught:
        fit(config, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(after_epoch(1, do))])
    assert "contains" not in str(caught.value)
    if then == "removed":
        assert not (tmp_path / "run").exists()


OWNER = """
import sys, time
from pathlib import Path
from pvae.core.files import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_two_processes_on_one_folder(few_digits, config, tmp_path):
    """The second one is refused; the lock is free once its owner has died."""
    run = fit(config, data=few_digits, out=tmp_path / "run")
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "mine\n"
        before = (run.path / "config.json").read_bytes()
        with pytest.raises(InputError, match="another process"):
            resume(run.path, 4, data=few_digits)
        assert (run.path / "config.json").read_bytes() == before
    finally:
        owner.kill()
        owner.wait()
    assert resume(run.path, 4, data=few_digits).metrics()[-1].epoch == 4


def test_a_resume_that_fails_as_it_begins_keeps_the_run(few_digits, small_config, no_pictures, monkeypatch, tmp_path):
    fit(small_config.replace(epochs=1), data=few_digits, out=tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pvae.runs.writer.begin", full)
        with pytest.raises(LostError):
            resume(tmp_path / "run", 2, data=few_digits)
    assert resume(tmp_path / "run", 2, data=few_digits).metrics()[-1].epoch == 2
