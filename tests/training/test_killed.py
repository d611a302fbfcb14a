"""SIGKILL and other signals at any moment: nothing is lost, and the result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import needs_inductor
from helpers.killing import same

from pvae.cli.train import main as train

pytestmark = pytest.mark.workflow

KILLING = Path(__file__).parent.parent / "helpers" / "killing.py"
OPTIONS = "--dataset mnist-5k --epochs 3 --hidden 16 --latent-dim 3 --batch-size 250 --binarize dynamic --warm-up 2"
COMMAND = [sys.executable, "-m", "pvae.train", *OPTIONS.split(), "--device", "cpu"]


def killed(folder, kills, seed, *variants):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(KILLING), str(folder), str(kills), str(seed), *variants]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(f"seed {seed}: {done.stdout}{done.stderr}")
    assert done.returncode == 0
    seen = json.loads(done.stdout)
    assert seen["kills"] >= kills
    assert (seen["failures"], seen["lost_epochs"], seen["different"]) == (0, 0, 0)


def test_a_few_kills(tmp_path):
    killed(tmp_path, 4, 0, "analytic")


@pytest.mark.torture
def test_a_hundred_kills(tmp_path):
    killed(tmp_path, 100, random.SystemRandom().randrange(10**6))


def started(folder, *more, command=COMMAND):
    return subprocess.Popen(
        [*command, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def onward(folder, out):
    """Start the printed command or, if there is no config.json yet, the first command again."""
    if (folder / out / "config.json").exists():
        return started(folder, "--resume", out, command=COMMAND[:3])
    return started(folder, "--out", out, "--compile", "none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and how many seconds its process took."""
    folder, begun = tmp_path_factory.mktemp("whole"), time.monotonic()
    _, errors = started(folder, "--out", "run", "--compile", "none").communicate()
    assert errors == ""
    return folder / "run", time.monotonic() - begun


def signalled(process, number, delay):
    """Send a signal after a delay; return exit status, seconds to the end and stderr."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    process.send_signal(number)
    begun = time.monotonic()
    process.wait(timeout=30)
    seconds = time.monotonic() - begun
    return process.returncode, seconds, process.communicate()[1]


@pytest.mark.torture
@pytest.mark.parametrize("engine", ["none", pytest.param("inductor", marks=needs_inductor)])
def test_signals_at_random_times(tmp_path, whole, engine, monkeypatch):
    """After Python itself has started: one line, an exit status, and few seconds."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # so that it compiles
    seed = random.SystemRandom().randrange(10**6)
    draw, slowest, statuses = random.Random(seed), 0.0, []
    for number in range(20 if engine == "none" else 10):
        out, which = f"run-{number}", draw.choice([signal.SIGINT, signal.SIGTERM])
        delay = draw.uniform(0.5, whole[1] if engine == "none" else whole[1] + 8)
        process = started(tmp_path, "--out", out, "--compile", engine)
        status, seconds, errors = signalled(process, which, delay)
        slowest = max(slowest, seconds)
        statuses.append(status)
        assert status in (0, 128 + which), errors
        lines = [line for line in errors.splitlines() if "No CUDA runtime" not in line]  # torch, of some machines
        assert len(lines) == bool(status), errors
        if engine == "none" and number % 3 == 0 and status:
            process = onward(tmp_path, out)
            assert process.communicate()[1] == ""
            assert same(tmp_path / out, whole[0])
    print(f"seed {seed}: {slowest:.2f} s at most; {statuses}")
    assert slowest < 2.2  # 2 s, and what a busy machine adds


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
    assert same(tmp_path / "run", tmp_path / "whole")


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
