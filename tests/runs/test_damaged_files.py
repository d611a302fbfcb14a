"""Damaged files are refused in one line that names the file or the option, and execute nothing."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FILES

import pvae
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training.fit import fit, resume

CONFIG = Config(hidden=(4,), latent_dim=2, batch_size=8, epochs=2, valid=0.25)
CONFIG_FILE, ROWS, BEST = "config.json", "metrics.jsonl", "best.safetensors"
LAST = "checkpoint.safetensors"


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.delenv("PVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Hostile:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("owned", "w"))


PICKLE = pickle.dumps(Hostile())


def cut(content):
    return content[: len(content) // 2]


def flipped(content):
    """Change one value of a weight."""
    return content[:-40] + bytes([content[-40] ^ 64]) + content[-39:]


def option(group, name, value):
    def change(content):
        record = json.loads(content)
        (record[group] if group else record)[name] = value
        return json.dumps(record).encode()

    return change


def header(change):
    """Change the header of a safetensors file, a JSON text behind its length."""

    def damage(content):
        length = int.from_bytes(content[:8], "little")
        record = json.loads(content[8 : 8 + length])
        change(record)
        text = json.dumps(record).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return damage


def of_pvae_0_1(content):
    """Return a `config.json` that version 0.1 wrote, with an option that this one does not know."""
    record = json.loads(content)
    record["config"]["smoothing"] = 0.1
    record["sessions"].append({"versions": {"pvae": "0.1"}})
    return json.dumps(record).encode()


# The file that is damaged, how, and what the line of each command names.
DAMAGES = [
    (CONFIG_FILE, cut, CONFIG_FILE),
    (CONFIG_FILE, lambda _: PICKLE, CONFIG_FILE),
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
    (LAST, lambda _: PICKLE, LAST),
    (LAST, header(lambda record: record.pop("__metadata__")), LAST),
    (LAST, header(lambda record: record["vae.p_x.decoder.0.weight"].update(dtype="F64")), LAST),
    (LAST, header(lambda record: record["__metadata__"].pop("sha256")), LAST),
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
    "draw": lambda run: draw([str(run), "--what", "reconstructions"]),
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
        with pytest.raises(InputError, match=BEST):
            pvae.load(run)


def test_a_checkpoint_taken_within_an_epoch_by_an_earlier_version_is_refused(run, capsys):
    content = (run / LAST).read_bytes()
    state = json.dumps({"counts": {"epoch": 1, "step": 3}, "pass": [1.0, 8, 0.1], "run": Run.open(run).identity})
    digest, tensors = hashlib.sha256(state.encode()), safetensors.torch.load(content)
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    metadata = {"state": state, "sha256": digest.hexdigest()}
    (run / LAST).write_bytes(header(lambda record: record["__metadata__"].update(metadata))(content))
    for command in COMMANDS.values():
        assert command(run) == 2
        assert "within an epoch" in one_line(capsys)


def test_an_unfinished_row_is_dropped(run, trained):
    """As a process leaves it that was killed before it wrote the checkpoint of the epoch."""
    row = (run / ROWS).read_bytes().splitlines()[0].replace(b'"epoch": 1', b'"epoch": 3')
    with (run / ROWS).open("ab") as file:
        file.write(row + b'\n{"epoch": 3, "spl')
    assert [row.epoch for row in Run.open(run).metrics()] == [1, 1, 1, 2, 2, 2]
    assert [row.epoch for row in resume(run, 3, data=trained[1]).metrics()] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len((run / ROWS).read_bytes().splitlines()) == 9


def refused(use, *arguments, match=None, **options):
    with pytest.raises(InputError, match=match) as caught:
        use(*arguments, **options)
    assert str(caught.value).isprintable()


def test_damaged_idx_files_are_refused(lay_mnist, tmp_path):
    """Files that are shorter or longer than their header says."""
    raw = lay_mnist(tmp_path / "data") / "MNIST" / "raw"
    labels = (raw / FILES[2]).read_bytes()
    for name in FILES:
        whole = (raw / name).read_bytes()
        promise = b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**31, 2**31) + whole[16:]
        for content in (promise, whole + b"\0", whole[:-1], b"", labels if "images" in name else b"<html>"):
            (raw / name).write_bytes(content)
            refused(read, "mnist", tmp_path / "data", match="put")
        (raw / name).write_bytes(whole)
    assert len(read("mnist", tmp_path / "data").train) == 20


def test_damaged_files_of_binarized_mnist_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "binarized_mnist"
    folder.mkdir(parents=True)
    packed, text = folder / "binarized_mnist.npz", folder / "binarized_mnist_train.amat"
    bits = np.random.default_rng(0).integers(0, 256, (3, 98), dtype=np.uint8)
    np.savez_compressed(packed, train=bits, test=bits, valid=bits[:2])
    data = read("binarized-mnist", tmp_path / "data")
    assert data.title == "binarized MNIST (3 train / 2 valid / 3 test)"
    assert torch.equal(data.with_valid(0.1).valid, data.train[:2])
    contents = [(packed, content) for content in (packed.read_bytes()[:-30], PICKLE)]
    for wrong in (np.array([Hostile()] * 3, dtype=object), bits.astype(np.float64), bits[:, :5]):
        np.savez_compressed(packed, train=wrong, test=bits, valid=bits)
        contents.append((packed, packed.read_bytes()))
    contents += [(text, content) for content in (b"0 1 2\n" * 784, b"", b"\xff" * 784 * 3)]
    for file, content in contents:
        packed.unlink(missing_ok=True)
        file.write_bytes(content)
        refused(read, "binarized-mnist", tmp_path / "data", match="binarized")
    assert not Path("owned").exists()


TOMLS = [b"lr = nan", b"hidden = " + b"[" * 5000 + b"]" * 5000, b"system = '../x'", b'"two\\nlines" = 1', b"\xff\xfe"]


@pytest.mark.parametrize("content", TOMLS, ids=lambda content: str(content)[:20])
def test_damaged_toml_is_refused(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_bytes(content)
    assert train(["--config", "a.toml", "--dataset", "mnist-5k"]) == 2
    assert one_line(capsys).startswith("pvae train: --config a.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
