"""Damaged files are refused in one line that names the file or the option, and execute nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FILES
from PIL import Image

import pvae
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.data.dataset import Dataset
from pvae.data.image_cache import ImageTransform
from pvae.data.image_folder import image_files
from pvae.data.sources import load_dataset
from pvae.runs import data as data_module
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


def changed(old, new):
    return lambda content: content.replace(old, new, 1)


def flipped(content):
    """Change one value of a weight."""
    return content[:-40] + bytes([content[-40] ^ 64]) + content[-39:]


def option(group, name, value):
    def change(content):
        record = json.loads(content)
        (record if group is None else record[group])[name] = value
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


def resealed(content):
    """Write the SHA-256 that a checkpoint of these values has."""
    tensors, length = safetensors.torch.load(content), int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(json.loads(content[8 : 8 + length])["__metadata__"]["state"].encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return header(lambda record: record["__metadata__"].update(sha256=digest.hexdigest()))(content)


WEIGHT = "vae.p_x.decoder.0.weight"
# The files that are damaged, how, the commands that refuse them, and what their line names.
DAMAGES = [
    ([CONFIG_FILE], cut, "all", CONFIG_FILE),
    ([CONFIG_FILE], lambda _: PICKLE, "all", CONFIG_FILE),
    ([CONFIG_FILE], None, "all", CONFIG_FILE),
    ([CONFIG_FILE], option("config", "lr", "fast"), "all", "lr"),
    ([CONFIG_FILE], option("config", "latent_dim", 3), "all", "do"),
    ([CONFIG_FILE], option("data", "datum_shape", "big"), "all", "datum_shape"),
    ([CONFIG_FILE], option("data", "sha256", "0" * 64), "all", "other data"),
    ([CONFIG_FILE], option(None, "format", 99), "all", "format"),
    ([CONFIG_FILE], option(None, "run", "another"), "all", "two runs"),
    ([CONFIG_FILE], option(None, "sessions", [{"device": "cuda:99999999999999999999"}]), "train", "--device"),
    ([ROWS], cut, "all", ROWS),
    ([ROWS], None, "all", ROWS),
    ([ROWS], changed(b'"split": "test"', b'"split": 5'), "all", ROWS),
    ([LAST], cut, "all", LAST),
    ([LAST], flipped, "all", LAST),
    ([LAST], None, "all", LAST),
    ([LAST], lambda _: PICKLE, "all", LAST),
    ([LAST], header(lambda record: record.pop("__metadata__")), "all", LAST),
    ([LAST], header(lambda record: record[WEIGHT].update(dtype="F64")), "all", LAST),
    ([LAST], header(lambda record: record["__metadata__"].update(state="{}")), "all", LAST),
    ([LAST], header(lambda record: record["__metadata__"].pop("sha256")), "all", LAST),
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
    monkeypatch.setattr(data_module, "load_again", lambda *_: data)
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


@pytest.mark.parametrize(("names", "damage", "commands", "says"), DAMAGES)
def test_a_damaged_run_is_refused_in_one_line(run, capsys, names, damage, commands, says):
    for name in names:
        content = (run / name).read_bytes()
        (run / name).unlink() if damage is None else (run / name).write_bytes(damage(content))
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    refusing = [*COMMANDS] if commands == "all" else [commands]
    for command in refusing:
        assert COMMANDS[command](run) == 2, command
        assert says in one_line(capsys), command
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before
    if "evaluate" in refusing:
        with pytest.raises(InputError):
            (pvae.load if says != "other data" else lambda path: Run.open(path).dataset())(run)


def test_without_the_best_weights_the_last_ones_are_used_and_a_note_says_so(run, capsys):
    rows = Run.open(run).metrics()
    for row in rows:
        if row.split == "valid":  # as if the first epoch had been the better one
            object.__setattr__(row, "elbo", -float(row.epoch))
    (run / ROWS).write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    for damage in (None, cut):
        (run / BEST).unlink(missing_ok=True) if damage is None else (run / BEST).write_bytes(b"damaged")
        opened = Run.open(run)
        assert all(
            torch.equal(weight, opened.read_checkpoint().vae[name])
            for name, weight in opened.vae().state_dict().items()
        )
        assert opened.test_metrics().epoch == 2
        assert "best on" not in opened.title
        note = one_line(capsys)
        assert note.startswith("note: ")
        assert BEST in note
        assert "epoch 2" in note
    assert COMMANDS["evaluate"](run) == 0


def test_a_checkpoint_taken_within_an_epoch_by_an_earlier_version_is_refused(run, capsys):
    content = header(lambda record: record["__metadata__"].update(state=state))
    state = json.dumps({"counts": {"epoch": 1, "step": 3}, "pass": [1.0, 8, 0.1], "run": Run.open(run).identity})
    (run / LAST).write_bytes(resealed(content((run / LAST).read_bytes())))
    for command in COMMANDS.values():
        assert command(run) == 2
        assert "within an epoch" in one_line(capsys)


def test_an_unfinished_row_is_dropped(run, trained):
    """As a process leaves it that was killed before it wrote the checkpoint of the epoch."""
    with (run / ROWS).open("ab") as file:
        file.write(
            (run / ROWS).read_bytes().splitlines()[0].replace(b'"epoch": 1', b'"epoch": 3') + b'\n{"epoch": 3, "spl'
        )
    assert [row.epoch for row in Run.open(run).metrics()] == [1, 1, 1, 2, 2, 2]
    assert [row.epoch for row in resume(run, 3, data=trained[1]).metrics()] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len((run / ROWS).read_bytes().splitlines()) == 9


@pytest.mark.workflow
def test_a_data_set_with_an_unprintable_name_is_drawn_and_printed(run, trained, capsys):
    name = "two\nlines, half a character \ud800, " + 1000 * "and more "
    (run / CONFIG_FILE).write_bytes(option("data", "name", name)((run / CONFIG_FILE).read_bytes()))
    resume(run, 3, data=trained[1], quiet=False)
    assert max(len(line.encode()) for line in capsys.readouterr().out.splitlines()) < 1000
    assert (run / "figures" / "losses.png").exists()


def test_a_pipe_is_not_replaced_by_a_result(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe"):
        write_whole(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def refused(use, *arguments, match=None, **options):
    with pytest.raises(InputError, match=match) as caught:
        use(*arguments, **options)
    assert str(caught.value).isprintable()


def bomb(size):
    """Return a zip archive that is a thousand times smaller than its content."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(size))
    return content.getvalue()


def test_damaged_idx_files_are_refused(lay_mnist, tmp_path):
    """Files that are shorter or longer than their header says; a link is followed."""
    raw = lay_mnist(tmp_path / "data") / "MNIST" / "raw"
    assert len(load_dataset("mnist", tmp_path / "data").train) == 20
    promise = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**31, 2**31, 2**31)
    text, labels = b"<html>not found</html>", (raw / FILES[3]).read_bytes()
    for name, other in zip(FILES, (labels, labels, text, text)):
        whole = (raw / name).read_bytes()
        for content in (promise + whole[16:], whole + b"\0", whole[:-1], b"", PICKLE, other):
            (raw / name).write_bytes(content)
            refused(load_dataset, "mnist", tmp_path / "data", match="put")
        (raw / name).unlink()
        (tmp_path / name).write_bytes(whole)
        (raw / name).symlink_to(tmp_path / name)
    assert len(load_dataset("mnist", tmp_path / "data").train) == 20


def test_damaged_files_of_binarized_mnist_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "binarized_mnist"
    folder.mkdir(parents=True)
    packed, text = folder / "binarized_mnist.npz", folder / "binarized_mnist_train.amat"
    bits = np.random.default_rng(0).integers(0, 256, (3, 98), dtype=np.uint8)
    np.savez_compressed(packed, train=bits, test=bits, valid=bits[:2])
    data = load_dataset("binarized-mnist", tmp_path / "data")
    assert data.title == "binarized MNIST (3 train / 2 valid / 3 test)"
    assert torch.equal(data.with_valid(0.1).valid, data.train[:2])
    whole, hostile = packed.read_bytes(), np.array([Hostile()] * 3, dtype=object)
    for wrong in (hostile, bits.astype(np.float64), np.uint8(3), bits[:, :5]):
        np.savez_compressed(packed, train=wrong, test=bits, valid=bits)
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published binarized")
    for content in (whole[:-30], b"PK", b"", PICKLE):
        packed.write_bytes(content)
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published binarized")
    for content in (b"0 1 2\n" * 784, b"0 1\n", b"", b"\xff" * 784 * 3):
        text.write_bytes(content)
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published binarized")
    assert not Path("owned").exists()


@pytest.fixture
def pictures(tmp_path):
    """Eight small images."""
    place = tmp_path / "pictures"
    place.mkdir()
    draw = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return place


SMALL = ImageTransform(size=(4, 4))


def both(data):
    return data.train, data.test


def load_folder(folder, transform=SMALL):
    return load_dataset(f"folder:{folder}", transform=transform)


def png(width, height, kind=6, rows=None):
    """Return a black PNG without having its pixels in memory; with `rows`, it has fewer rows than its header says."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(1), bytes(1 + width * {0: 1, 2: 3, 6: 4}[kind])
    parts = [packer.compress(row) for _ in range(height if rows is None else rows)]
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = b"".join([*parts, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(owned) (w) file closefile showpage\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png(100_000, 100_000, rows=1)),
        ("a.png", png(50, 50)[:60]),
        ("a.jpg", POSTSCRIPT),
        ("a.png", bomb(size=2**24)),
        ("a.gif", b"GIF89a" + b"\xff" * 30),
        ("a.tif", b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\x01" * 500),
        ("a.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8X" + b"\xff" * 50),
        ("a.png", b""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_image_files_are_refused_or_skipped(pictures, tmp_path, monkeypatch, name, content, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    (pictures / name).write_bytes(content)
    refused(load_folder, pictures, match="--skip-broken")
    data = load_folder(pictures, ImageTransform(size=(4, 4), skip_broken=True))
    assert len(data.train) + len(data.test) == 8
    assert not (tmp_path / "owned").exists()
    assert not [str(one.message) for one in recwarn], "a second voice"


def test_postscript_is_not_run(pictures, tmp_path, monkeypatch):
    """Pillow would run an external program for it."""
    from PIL import EpsImagePlugin

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: called.append(arguments))
    (pictures / "a.jpg").write_bytes(POSTSCRIPT)
    refused(load_folder, pictures, match="cannot be used")
    assert not called


def test_only_files_in_the_folder_are_images(pictures, tmp_path):
    """Pipes, folders, and links to nothing or to other folders are not images."""
    os.mkfifo(pictures / "a.png")
    (pictures / "c.png").mkdir()
    (pictures / "d.png").symlink_to(pictures / "nothing")
    (pictures / "e").symlink_to(pictures)
    assert len(image_files(pictures)[0]) == 8
    for name in ("~no-such-user/x", "x" * 5000, ""):
        refused(load_dataset, f"folder:{name}", match="folder")


@pytest.mark.parametrize("name", ["bytes", "json"])
def test_a_damaged_cache_is_built_again(pictures, tmp_path, name):
    before = [images.clone() for images in both(load_folder(pictures))]  # the file is mapped, and is going to be cut
    for keep in (-5, 0):
        (file,) = (tmp_path / "cache").rglob(f"*.{name}")
        file.write_bytes(file.read_bytes()[:keep])
        assert all(map(torch.equal, both(load_folder(pictures)), before))
    assert sorted(path.suffix for path in (tmp_path / "cache").rglob("*.*")) == [".bytes", ".json"]


LISTS = [b"", b"\xff\xfe", b"1.png\n", b"1\nA\n1.png 5\n"]


@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_attr_celeba.txt"])
def test_damaged_lists_of_celeba_are_refused(pictures, tmp_path, name):
    celeba = tmp_path / "data" / "celeba"
    celeba.mkdir(parents=True)
    pictures.rename(celeba / "img_align_celeba")
    names = [f"{index}.png" for index in range(8)]
    partition = "".join(f"{name} {2 * (i > 4)}\n" for i, name in enumerate(names))
    (celeba / "list_eval_partition.txt").write_text(partition)
    (celeba / "list_attr_celeba.txt").write_text("8\nA B\n" + "".join(f"{name} 1 -1\n" for name in names))
    assert len(load_dataset("celeba", tmp_path / "data", transform=SMALL).train) == 5
    for content in LISTS:
        (celeba / name).write_bytes(content)
        refused(load_dataset, "celeba", tmp_path / "data", transform=SMALL, match="list")


TOMLS = [
    b"lr = nan",
    b"hidden = " + b"[" * 5000 + b"]" * 5000,
    b"elbo = ['trace']",
    b"elbo = '" + b"x" * 100_000 + b"'",
    b"system = '../x'",
    b'"two\\nlines" = 1',
    b"self = 1",
    b"latent_dim = 2\nlatent_dim = 3",
    b"\xff\xfe",
]


@pytest.mark.parametrize("content", TOMLS, ids=lambda content: str(content)[:20])
def test_damaged_toml_is_refused(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_bytes(content)
    assert train(["--config", "a.toml", "--dataset", "mnist-5k"]) == 2
    assert one_line(capsys).startswith("pvae train: --config a.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]


def test_errors_are_printed_although_rank_is_set(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert train(["--epochs", "0"]) == 2
    assert "--epochs must be" in capsys.readouterr().err
