"""A run survives kills, signals, full disks, damage and NaN: it goes on as if undisturbed, or one line says why not."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyro
import pytest
import safetensors.torch
import torch
from conftest import needs_inductor
from helpers.killing import __file__ as killing
from helpers.killing import assert_same_runs
from helpers.runs import assert_same, assert_same_rows, weights
from tensorboard.summary.writer.record_writer import RecordWriter

import pvae
from pvae.cli.compare import main as compare
from pvae.cli.evaluate import main as evaluate
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.core.errors import InputError, LostError, TrainingError
from pvae.data.dataset import Dataset
from pvae.elbos.bounds import IWAE
from pvae.runs.checkpoint import to_bytes
from pvae.runs.run import Run
from pvae.training.callbacks import OnEachRow
from pvae.training.fit import fit, resume
from pvae.training.setup import build_trainer

OPTIONS = "--dataset mnist-5k --epochs 3 --hidden 16 --latent-dim 3 --batch-size 250 --binarize dynamic --warm-up 2"
COMMAND = [sys.executable, "-m", "pvae.train", *OPTIONS.split(), "--device", "cpu"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

# --- kills and signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        pytest.param(4, 0, marks=pytest.mark.workflow),
        pytest.param(100, random.SystemRandom().randrange(10**6), marks=pytest.mark.torture, id="a hundred"),
    ],
)
def test_a_training_that_is_killed_ends_as_an_undisturbed_one(tmp_path, kills, seed):
    subprocess.run([sys.executable, killing, str(tmp_path), str(kills), str(seed)], env=ONE_THREAD, check=True)


def started(folder, *more, command=COMMAND):
    return subprocess.Popen(
        [*command, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def signalled(process, number, delay):
    """Send a signal after a delay, if it has not ended; return exit status, seconds to the end and stderr."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    process.send_signal(number)
    begun = time.monotonic()
    process.wait(timeout=30)
    return process.returncode, time.monotonic() - begun, process.communicate()[1]


@pytest.mark.workflow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_in_the_middle_of_an_epoch(tmp_path, monkeypatch, number):
    """A real signal to a real process: an exit status, one line, and a run that ends as an undisturbed one."""
    process = started(tmp_path, "--out", "run")
    while not process.stdout.readline().startswith("epoch "):
        pass
    status, seconds, errors = signalled(process, number, 0.05)
    assert (status, errors.count("\n")) == (128 + number, 1), errors
    assert "go on with: python -m pvae.train --resume run" in errors
    assert seconds < 10  # the documentation promises 2; the machine may be busy
    monkeypatch.chdir(tmp_path)
    assert train(["--resume", "run"]) == 0
    assert train([*COMMAND[3:], "--out", "whole"]) == 0
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.torture
@pytest.mark.parametrize("engine", ["none", pytest.param("inductor", marks=needs_inductor)])
def test_signals_at_random_times(tmp_path, engine, monkeypatch):
    """After Python itself has started: one line, an exit status, and few seconds."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # so that it compiles
    for out in range(15):
        number, delay = random.choice([signal.SIGINT, signal.SIGTERM]), random.uniform(0.5, 10)
        status, seconds, errors = signalled(started(tmp_path, "--out", str(out), "--compile", engine), number, delay)
        assert status in (0, 128 + number), errors
        assert len(errors.splitlines()) == bool(status), errors
        assert seconds < 2.2  # 2 s, and what a busy machine adds


LONG_STEP = """
import sys, time
from pvae.cli.command import run_command
from pvae.core.terminal import Interruptions
def command():
    with Interruptions():
        print("long step", flush=True)
        time.sleep(60)
sys.exit(run_command("pvae.x", command))
"""


@pytest.mark.workflow
def test_a_second_signal_ends_a_long_step(tmp_path):
    process = started(tmp_path, command=[sys.executable, "-c", LONG_STEP])
    assert process.stdout.readline() == "long step\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # the same press, as `timeout` sends it
    time.sleep(0.5)
    assert process.poll() is None
    status, seconds, errors = signalled(process, signal.SIGINT, 0.0)
    assert (status, errors) == (130, "pvae.x: interrupted; any file already written is complete\n")
    assert seconds < 10


# --- disks and folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def config(small_config, no_pictures):
    return small_config.replace(epochs=3)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.workflow
@pytest.mark.parametrize("failing", [1, 3, 4, 5, 6, 9])
def test_a_full_disk(few_digits, config, tmp_path, monkeypatch, failing):
    """Fail at each write in turn: metrics.jsonl, checkpoint, config.json, two per epoch."""
    count, real = itertools.count(1), os.fsync

    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and next(count) >= failing:
            full()
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


@pytest.mark.workflow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_when_events_are_written(few_digits, config, tmp_path, monkeypatch):
    """SummaryWriter writes in a thread, whose error reaches the training."""
    count, write = itertools.count(), RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", lambda *given: (write if next(count) <= 20 else full)(*given))
    with pytest.raises(LostError, match="No space left"):
        fit(config, data=few_digits, out=tmp_path / "run")
    assert Run.open(tmp_path / "run").read_checkpoint().epoch in (1, 2)


@pytest.mark.workflow
@pytest.mark.parametrize("then", ["removed", "empty"])
def test_the_folder_goes_away(few_digits, config, tmp_path, then):
    """The message does not say that the folder contains the training."""

    def on_row(run, row):
        if (row.epoch, row.split) == (1, "test"):
            shutil.rmtree(run.path)
            if then == "empty":
                run.path.mkdir()

    with pytest.raises(LostError, match="removed") as caught:
        fit(config, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(on_row)])
    assert "contains" not in str(caught.value)
    assert (tmp_path / "run").exists() == (then == "empty")


OWNER = """
import sys, time
from pathlib import Path
from pvae.core.files import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.mark.workflow
def test_a_resume_that_cannot_begin_keeps_the_run(few_digits, config, tmp_path, monkeypatch):
    """While another process has the folder, whose lock is free once it has died; and on a full disk."""
    run = fit(config.replace(epochs=1), data=few_digits, out=tmp_path / "run")
    before = (run.path / "config.json").read_bytes()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match="another process"):
            resume(run.path, 2, data=few_digits)
    finally:
        owner.kill()
        owner.wait()
    with monkeypatch.context() as patch:
        patch.setattr("pvae.runs.writer.begin", full)
        with pytest.raises(LostError):
            resume(run.path, 2, data=few_digits)
    assert (run.path / "config.json").read_bytes() == before
    assert resume(run.path, 2, data=few_digits).metrics()[-1].epoch == 2


# --- damaged files ----------------------------------------------------------------------------------------------------

CONFIG = Config(hidden=(4,), latent_dim=2, batch_size=8, epochs=2, valid=0.25)
CONFIG_FILE, ROWS, LAST, BEST = "config.json", "metrics.jsonl", "checkpoint.safetensors", "best.safetensors"


class Hostile:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("owned", "w"))


def cut(content):
    return content[: len(content) // 2]


def pickled(_):
    return pickle.dumps(Hostile())


def flipped(content):
    """Change one value of a weight."""
    return content[:-40] + bytes([content[-40] ^ 64]) + content[-39:]


def option(group, name, value):
    def change(content):
        record = json.loads(content)
        (record[group] if group else record)[name] = value
        return json.dumps(record).encode()

    return change


def of_pvae_0_1(content):
    """Return a `config.json` that version 0.1 wrote, with an option that this one does not know."""
    record = json.loads(option("config", "smoothing", 0.1)(content))
    record["sessions"].append({"versions": {"pvae": "0.1"}})
    return json.dumps(record).encode()


def header(change):
    """Change the header of a safetensors file, a JSON text behind its length."""

    def damage(content):
        length = int.from_bytes(content[:8], "little")
        record = json.loads(content[8 : 8 + length])
        change(record)
        text = json.dumps(record).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return damage


def within_an_epoch(content):
    """Return a checkpoint that an earlier version took within an epoch."""
    state = json.dumps({"counts": {"epoch": 1, "step": 3}, "pass": [1.0, 8, 0.1], "run": "any"})
    digest, tensors = hashlib.sha256(state.encode()), safetensors.torch.load(content)
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    metadata = {"state": state, "sha256": digest.hexdigest()}
    return header(lambda record: record["__metadata__"].update(metadata))(content)


# The file that is damaged, how, and what the line of each command names.
DAMAGES = [
    (CONFIG_FILE, cut, CONFIG_FILE),
    (CONFIG_FILE, pickled, CONFIG_FILE),
    (CONFIG_FILE, None, CONFIG_FILE),
    (CONFIG_FILE, option("config", "lr", "fast"), "lr"),
    (CONFIG_FILE, option("data", "sha256", "0" * 64), "other data"),
    (CONFIG_FILE, option("", "format", 99), "format"),
    (CONFIG_FILE, of_pvae_0_1, "is of pvae 0.1, "),
    (CONFIG_FILE, option("", "run", "another"), "two runs"),
    (ROWS, cut, ROWS),
    (ROWS, None, ROWS),
    (ROWS, lambda content: content.replace(b'"split": "test"', b'"split": 5', 1), ROWS),
    (LAST, cut, LAST),
    (LAST, flipped, LAST),
    (LAST, None, LAST),
    (LAST, pickled, LAST),
    (LAST, header(lambda record: record.pop("__metadata__")), LAST),
    (LAST, header(lambda record: record["vae.p_x.decoder.0.weight"].update(dtype="F64")), LAST),
    (LAST, header(lambda record: record["__metadata__"].pop("sha256")), LAST),
    (LAST, within_an_epoch, "within an epoch"),
]


@pytest.fixture(scope="module")
def trained(made_once):
    """A run of two epochs, and its data."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 1, 4, 4), generator=generator, dtype=torch.uint8)
    data = Dataset("noise", pixels[:16], pixels[16:], dataset="mnist-5k")
    return made_once("damaged files", lambda out: fit(CONFIG, data=data, out=out)), data


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of the run folder, whose data are found."""
    path, data = trained
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: data)
    yield shutil.copytree(path, tmp_path / "run")
    assert not Path("owned").exists(), "something was executed"


COMMANDS = {
    "train": lambda run: train(["--resume", str(run), "--epochs", "3", "--quiet"]),
    "evaluate": lambda run: evaluate([str(run), "--importance-samples", "2"]),
}


def one_line(capsys):
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    assert line.strip().isprintable()
    assert len(line) < 1000
    return line


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGES)
def test_a_damaged_run_is_refused_in_one_line(run, capsys, name, damage, says):
    content = (run / name).read_bytes()
    (run / name).unlink() if damage is None else (run / name).write_bytes(damage(content))
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    for command, use in COMMANDS.items():
        assert use(run) == 2, command
        assert says in one_line(capsys), command
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before
    with pytest.raises(InputError):
        (pvae.load if says != "other data" else lambda path: Run.open(path).dataset())(run)


def test_best_weights_that_are_missing_or_damaged_are_refused(run, capsys):
    rows = Run.open(run).metrics()
    for row in rows:
        if row.split == "valid":  # as if the first epoch had been the better one
            object.__setattr__(row, "elbo", -float(row.epoch))
    (run / ROWS).write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    for damage in (lambda file: file.write_bytes(b"damaged"), Path.unlink):
        damage(run / BEST)
        assert COMMANDS["evaluate"](run) == 2
        assert BEST in one_line(capsys)


def test_an_unfinished_row_is_dropped(run, trained):
    """As a process leaves it that was killed before it wrote the checkpoint of the epoch."""
    row = (run / ROWS).read_bytes().splitlines()[0].replace(b'"epoch": 1', b'"epoch": 3')
    with (run / ROWS).open("ab") as file:
        file.write(row + b'\n{"epoch": 3, "spl')
    assert [row.epoch for row in Run.open(run).metrics()] == [1, 1, 1, 2, 2, 2]
    assert [row.epoch for row in resume(run, 3, data=trained[1]).metrics()] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len((run / ROWS).read_bytes().splitlines()) == 9


def damaged(content, draw):
    """Return other bytes, or the same ones by chance."""
    start, stop = sorted(draw.integers(0, len(content) + 1, 2))
    bit = bytearray(content)
    bit[draw.integers(len(bit))] ^= 1 << int(draw.integers(8))
    noise = draw.bytes(draw.integers(1, 65))
    ways = bytes(bit), content[:start], content[:start] + content[stop:], content[:start] + noise + content[start:]
    return ways[draw.integers(len(ways))]


@pytest.mark.parametrize(
    "count", [pytest.param(12, marks=pytest.mark.workflow), pytest.param(1000, marks=pytest.mark.torture)]
)
def test_any_damage_is_refused_or_changes_nothing(run, trained, count, no_pictures):
    """But of metrics.jsonl, which is text that has no sum: a digit of it may be changed unseen."""
    path, data = trained
    state, rows = pvae.load(path).state_dict(), Run.open(path).metrics()
    further = resume(shutil.copytree(path, run.parent / "further"), 3, data=data)
    uses = {
        "load": lambda: assert_same(pvae.load(run).state_dict(), state),
        "metrics": lambda: assert_same_rows(Run.open(run).metrics(), rows),
        "resume": lambda: assert_same(weights(resume(run, 3, data=data)), weights(further)),
    }
    seen = collections.Counter()
    for case in range(count):
        draw = np.random.default_rng([20260701, case])
        shutil.rmtree(run)
        shutil.copytree(path, run)
        files = [run / CONFIG_FILE, run / LAST, *run.glob("events.*")]
        file = files[case % len(files)]
        file.write_bytes(damaged(file.read_bytes(), draw))
        for name, use in uses.items():
            try:
                use()
                seen[name, "correct"] += 1
            except InputError:
                seen[name, "refused"] += 1
    assert len(seen) == 6, "all were refused at times, and correct at times"


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.workflow
def test_a_learning_rate_that_is_too_large_ends_in_advice(tmp_path, few_digits, config, recwarn):
    with pytest.raises(TrainingError, match=r"at step \d+ \(batch \d+ of epoch 1\)") as caught:
        fit(config.replace(lr=1e12), data=few_digits, out=tmp_path / "run")
    assert {"--lr", "--clip-norm"} <= {*re.findall(r"--[a-z-]+", str(caught.value))}
    assert "\n" not in str(caught.value)
    assert Run.open(tmp_path / "run").metrics() == []
    assert not [w for w in recwarn if "NaN" in str(w.message)], "a second message"


def state_of(trainer):
    moments = [tensor for one in trainer.optimizer.state.values() for tensor in one.values()]
    return [one.detach().clone() for one in (*trainer.vae.parameters(), *moments)]


@pytest.mark.workflow
@pytest.mark.parametrize("engine", ["none", "graph"])
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(few_digits, config, engine, clip_norm):
    order, ends = torch.arange(100).remainder(50), []
    for is_ours in (True, False):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(0)
            options = config.replace(compile=engine, clip_norm=clip_norm) if is_ours else config
            trainer = build_trainer(options, few_digits)
            torch.manual_seed(0)
            if is_ours:
                assert sum(len(done.losses) for done in trainer.engine.run(order, [(1e-3, 1.0)] * 2)) == 2
            for index in () if is_ours else order.split(50):
                trainer.elbo.backward(trainer.vae.model, trainer.vae.guide, *trainer.data.batch(index))
                assert 0.5 < torch.nn.utils.clip_grad_norm_(trainer.vae.parameters(), clip_norm) < 1e6
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
        ends.append(state_of(trainer))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.workflow
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_metric_that_is_not_finite_ends_the_training(tmp_path, few_digits, config, monkeypatch, value):
    """The importance-weighted loss is finite if one draw has weight 0, and the rate is not."""
    rate, rows = IWAE.rate, []
    monkeypatch.setattr(IWAE, "rate", lambda self, draws: rate(self, draws) + (value if len(rows) == 2 else 0.0))
    config = config.replace(elbo="iwae", particles=2)
    with pytest.raises(TrainingError, match="elbo is "):
        fit(config, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(lambda run, row: rows.append(row))])
    assert [(row.epoch, row.split) for row in Run.open(tmp_path / "run").metrics()] == [(1, "train"), (1, "test")]


def spoil(path, name, value):
    """Set the first weights of a tensor in the checkpoint, with correct checksums."""
    checkpoint = Run.open(path).read_checkpoint()
    checkpoint.vae[name].view(-1)[:2] = value
    (path / LAST).write_bytes(to_bytes(checkpoint))
    (path / BEST).unlink()


@pytest.mark.parametrize("value", [math.nan, 1e20])
def test_weights_that_are_not_finite_are_named(run, capsys, value):
    spoil(run, "p_x.decoder.2.bias", value)
    assert evaluate([str(run)]) == 2
    assert " p_x.decoder.2.bias " in one_line(capsys)


@pytest.mark.parametrize(
    ("command", "options"),
    [(evaluate, ["--importance-samples", "5"]), (compare, ["--particles", "2", "--repetitions", "3"])],
)
def test_a_bound_that_is_infinite_is_not_reported(run, capsys, recwarn, command, options):
    """The squares of the means of q(z | x) are finite, and the sum of the squares is not."""
    spoil(run, "q_z.encoder.3.bias", 1.8e19)
    assert command([str(run), *options]) == 2
    *_, line = capsys.readouterr().err.splitlines()  # evaluate says first what it does
    assert re.search(r"^pvae .* is (-inf|inf|nan)\b", line)
    assert not list(recwarn), "a second message"
