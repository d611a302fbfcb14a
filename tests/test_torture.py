"""Every file of a run, damaged at random: each use of it is refused in one line, or gives what it would have given."""

from __future__ import annotations

import collections
import os
import shutil

import numpy as np
import pytest
import torch
from helpers.runs import assert_same as assert_same_tensors
from helpers.runs import assert_same_rows, signal_in_step

import pvae
from pvae.config.config import Config
from pvae.core.errors import InputError, InterruptedTrainingError
from pvae.data.dataset import Dataset
from pvae.runs.run import Run
from pvae.training.fit import fit, resume

EPOCHS = 3  # of the undisturbed run; the damaged ones are finished at 2, or stopped in the 2nd
CONFIG = Config(hidden=(4,), latent_dim=2, batch_size=10, epochs=2)
# Not metrics.jsonl, which is text that has no sum: a digit of it may be changed unseen.
FILES = ("config.json", "checkpoint.safetensors", "figures", "events")
KINDS = ("bit", "overwrite", "cut", "double", "insert", "remove")
SEED = 20260701


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (58, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Dataset("noise", pixels[:48], pixels[48:])


def state_of(run):
    """All of a run that must be the same."""
    checkpoint = run.read_checkpoint()
    return checkpoint.vae, {**checkpoint.moments, **checkpoint.rng}, (checkpoint.epoch, checkpoint.step), run.metrics()


def assert_same(ours, theirs):
    assert_same_tensors(ours[0], theirs[0])
    assert_same_tensors(ours[1], theirs[1])
    assert ours[2] == theirs[2]
    assert_same_rows(ours[3], theirs[3])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images):
    """Two runs to damage, what loading and reading them gives, and what resuming both of them gives."""
    folder = tmp_path_factory.mktemp("whole")
    fit(CONFIG, data=images, out=folder / "finished")
    with signal_in_step(8), pytest.raises(InterruptedTrainingError):  # of 5 steps an epoch
        fit(CONFIG, data=images, out=folder / "stopped")
    assert Run.open(folder / "stopped").read_checkpoint().epoch == 1
    undisturbed = state_of(fit(CONFIG.replace(epochs=EPOCHS), data=images, out=folder / "undisturbed"))
    runs = {name: folder / name for name in ("finished", "stopped")}
    return runs, {name: state_of(Run.open(path)) for name, path in runs.items()}, undisturbed


def damaged(content, kind, draw):
    """Return other bytes, or the same ones by chance."""
    place, length = int(draw.integers(0, len(content) + 1)), int(draw.integers(1, 65))
    noise = draw.integers(0, 256, length, dtype=np.uint8).tobytes()
    if kind == "bit":
        spoiled = bytearray(content)
        spoiled[int(draw.integers(0, len(content)))] ^= 1 << int(draw.integers(0, 8))
        return bytes(spoiled)
    return {
        "overwrite": content[:place] + noise + content[place + length :],
        "cut": content[:place],
        "double": content + content,
        "insert": content[:place] + noise + content[place:],
        "remove": content[:place] + content[place + length :],
    }[kind]


def spoil(run, draw):
    """Damage one file of a run; return what was done."""
    name, kind = FILES[int(draw.integers(len(FILES)))], KINDS[int(draw.integers(len(KINDS)))]
    files = sorted(run.glob({"figures": "figures/*.png", "events": "events.*"}.get(name, name))) or [run / FILES[0]]
    file = files[int(draw.integers(len(files)))]
    if content := file.read_bytes():
        file.write_bytes(damaged(content, kind, draw))
    return f"{kind} {file.name}"


def outcome(use):
    """Say what a use of a damaged run came to: "refused", "correct", or what it must not be."""
    try:
        use()
    except InputError as error:
        return "refused" if str(error).isprintable() else f"several lines: {error!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "correct"


def uses_of(path, images, known, undisturbed):
    return {
        "load": lambda: assert_same_tensors(pvae.load(path).state_dict(), known[0]),
        "metrics": lambda: assert_same_rows(Run.open(path).metrics(), known[3]),
        "resume": lambda: assert_same(state_of(resume(path, EPOCHS, data=images)), undisturbed),
    }


@pytest.fixture
def check(whole, images, tmp_path, no_pictures):
    """Check that each use of damaged runs comes to a refusal or to the truth, and that both are often so."""
    runs, known, undisturbed = whole

    def of_cases(number_of_cases):
        counts, others = collections.Counter(), []
        for case in range(number_of_cases):
            draw = np.random.default_rng([SEED, case])
            name, path = ("finished", "stopped")[case % 2], tmp_path / "damaged"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(runs[name], path)
            done = spoil(path, draw)
            for use, action in uses_of(path, images, known[name], undisturbed).items():
                result = outcome(action)
                counts[use, result] += 1
                if result not in ("refused", "correct"):
                    others.append(f"case {case}, {name}, {done}: {use}: {result}")
        assert not others, "\n".join(others[:20])
        for use in ("load", "metrics", "resume"):
            assert counts[use, "refused"] > 0.05 * number_of_cases, "the damage did not reach what is read"
            assert counts[use, "correct"] > 0.05 * number_of_cases

    return of_cases


@pytest.mark.workflow
def test_some_damaged_runs(check):
    check(20)


@pytest.mark.torture
def test_many_damaged_runs(check):
    check(int(os.environ.get("PVAE_TORTURE_CASES", "2000")))
