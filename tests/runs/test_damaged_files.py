"""Damaged and malicious files are refused in one line; they execute nothing and need little memory."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILES
from PIL import Image

import pvae
from pvae.cli.train import main
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.data.dataset import Dataset
from pvae.data.image_folder import ImageTransform, image_files
from pvae.data.sources import load_dataset
from pvae.runs import run as run_module
from pvae.runs.checkpoint import to_bytes
from pvae.runs.run import Run
from pvae.training.fit import fit, resume

CONFIG = Config(hidden=(4,), latent_dim=2, batch_size=8, epochs=1)
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint-previous.safetensors")
MOST = 1.5 * 2**30  # bytes of memory


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.delenv("PVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Dataset("noise", pixels[:16], pixels[16:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    return fit(CONFIG, data=images, out=tmp_path_factory.mktemp("trained") / "run").path


@pytest.fixture
def run(trained, tmp_path):
    """A run folder to be damaged, and beside it a file that must stay unchanged."""
    (tmp_path / "outside").write_text("mine")
    yield shutil.copytree(trained, tmp_path / "run")
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (tmp_path / "owned").exists(), "something was executed"


def refused(use, *arguments, match=None, **options):
    with pytest.raises(InputError, match=match) as caught:
        use(*arguments, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def refused_by_all(run, images, match=None):
    for use in (pvae.load, lambda path: Run.open(path).metrics(), lambda path: resume(path, 2, data=images)):
        refused(use, run, match=match)


def forge(run, group, field, value):
    """Change a field of `config.json` and compute its checksum again."""
    record = json.loads((run / "config.json").read_text())
    del record["sha256"]
    (record if group is None else record[group])[field] = value
    (run / "config.json").write_text(json.dumps({**record, "sha256": run_module._digest(record)}))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


FORGED = [
    ("config", "hidden", [10**9, 10**9]),
    ("config", "hidden", [10**10]),
    ("config", "hidden", [4] * 100_000),
    ("config", "hidden", nested(400)),
    ("config", "latent_dim", 10**9),
    ("config", "pad", 1000),
    ("config", "lr", float("nan")),
    ("config", "beta", float("inf")),
    ("config", "lr", 10**300),
    ("config", "system", "two\nlines"),
    ("config", "source", "x" * 2**20),
    ("config", "dataset", ["folder:x"]),
    ("config", "more", 1),
    ("data", "image_shape", [10**9] * 3),
    ("data", "image_shape", [10**36, 1, 1]),
    ("data", "image_shape", [0, 4, 4]),
    ("data", "image_shape", []),
    (None, "config", nested(300)),
    (None, "data", None),
    (None, "format", "2"),
]


@pytest.mark.parametrize(("group", "field", "value"), FORGED, ids=lambda value: str(value)[:20])
def test_a_config_with_a_valid_checksum_and_wrong_fields_is_refused(run, images, group, field, value):
    if value == 10**300:
        value = float("1e300")  # is a number, and the last step of a training at that rate is not
        forge(run, group, field, value)
        with pytest.raises((InputError, pvae.core.errors.TrainingError)):
            resume(run, 2, data=images)
        return
    forge(run, group, field, value)
    refused_by_all(run, images)


def test_options_that_an_earlier_version_did_not_have_are_the_defaults(run, images):
    record = json.loads((run / "config.json").read_text())
    for name in ("valid", "patience", "grey"):
        del record["config"][name]
    del record["data"]["num_valid"], record["sha256"]
    record["config"]["image_size"] = 64
    (run / "config.json").write_text(json.dumps({**record, "sha256": run_module._digest(record)}))
    assert resume(run, 2, data=images).config.image_size == "64"


def test_an_edited_config_is_refused(run, images):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    refused_by_all(run, images, match="not what pvae wrote")


@pytest.mark.parametrize(
    ("group", "field", "value", "match"),
    [
        ("data", "sha256", "0" * 64, "other data"),
        ("config", "batch_size", 10**9, "--batch-size"),
        (None, "sessions", [{"device": 5}], "--device takes"),
        (None, "sessions", [{"device": ["cpu"]}], "--device takes"),
        (None, "sessions", [{"device": None}], "--device takes"),
        (None, "sessions", [{"device": "x" * 10**5}], "--device takes"),
        (None, "sessions", [{"device": "two\nlines"}], "--device takes"),
        (None, "sessions", [{"device": "cuda:99999999999999999999"}], "--device takes"),
    ],
)
def test_a_config_of_other_data_or_devices_is_not_resumed(run, images, group, field, value, match):
    forge(run, group, field, value)
    before = (run / "config.json").read_bytes()
    assert len(refused(resume, run, 2, data=images, match=match)) < 1000
    assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "dataset", ["folder:~no-such-user/x", "folder:" + "x" * 5000, "folder:a\0b", "nonsense", "celeba"]
)
def test_a_config_with_the_name_of_unknown_data_is_refused(run, images, dataset):
    forge(run, "data", "dataset", dataset)
    forge(run, "data", "folder", "x" * 5000)
    refused(resume, run, 2, offline=True)


def test_a_data_set_with_an_unprintable_name_is_drawn_and_printed(run, images, capsys):
    forge(run, "data", "name", "two\nlines, half a character \ud800, " + 1000 * "and more ")
    resume(run, 2, data=images, quiet=False)
    assert max(len(line.encode()) for line in capsys.readouterr().out.splitlines()) < 1000
    assert (run / "figures" / "losses.png").exists()


@pytest.mark.parametrize("depth", [10, 300, 500, 900, 960, 980, 990, 1000, 10**5, 10**6])
def test_nested_json_is_refused(run, images, depth):
    for text in ("[" * depth + "]" * depth, '{"format": 2, "sessions": ' + '{"a":' * depth + "1" + "}" * depth + "}"):
        (run / "config.json").write_text(text)
        refused_by_all(run, images, match=r"config\.json")


def fifo(path):
    os.mkfifo(path)


def link(path):
    path.symlink_to(path.parent.parent / "outside")


def link_to_itself(path):
    path.symlink_to(path)


def link_to_a_device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [fifo, link, link_to_itself, link_to_a_device, folder])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints", "figures"])
def test_links_pipes_and_folders_in_place_of_files_are_refused(run, images, make, name):
    """Opening a pipe would block, reading a device would not end, and a link may lead to a file of the user."""
    for file in CHECKPOINTS if name == "checkpoints" else (name,):
        shutil.rmtree(run / file) if name == "figures" else (run / file).unlink()
        make(run / file)
    if name == "figures":
        if make is not folder:
            refused(resume, run, 2, data=images, match="figures is")
            assert Run.open(run).read_checkpoint().counts.epoch == 1, "it was trained for nothing"
    elif name == "metrics.jsonl":
        refused(lambda: Run.open(run).metrics(), match=name)
        refused(resume, run, 2, data=images, match=name)
    else:
        refused_by_all(run, images)


def test_nothing_is_written_through_a_link(run, images, tmp_path):
    """Nor through links that have the names of temporary files."""
    for name in ("config.json", "metrics.jsonl", *CHECKPOINTS):
        (run / f".{name}.{os.getpid()}").symlink_to(tmp_path / "outside")
    (run / ".a.1").mkdir()
    shutil.copytree(run / "figures", tmp_path / "figures")
    os.link(run / "metrics.jsonl", tmp_path / "rows")
    before = (tmp_path / "rows").read_bytes()
    resume(run, 2, data=images)
    assert (tmp_path / "rows").read_bytes() == before
    for name in ("losses.png", "samples.png"):
        (run / "figures" / name).unlink()
        (run / "figures" / name).symlink_to(tmp_path / "outside")
    resume(run, 3, data=images)


def test_temporary_files_are_not_written_through_a_link(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / f".new.{os.getpid()}").symlink_to(tmp_path / "outside")
    write_whole(tmp_path / "new", b"content")
    assert (tmp_path / "outside").read_text() == "mine"


def test_an_error_message_is_one_short_line():
    assert str(InputError("two\nlines")).isprintable()
    assert len(str(InputError("x" * 10**6))) < 10_000


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def bomb(size):
    """Return a zip archive that is a thousand times smaller than its content."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("data.pkl", "w", force_zip64=True) as file,
    ):
        for _ in range(size // 2**24):
            file.write(bytes(2**24))
    return content.getvalue()


def test_pickles_and_archives_are_not_executed(run, images, tmp_path):
    saved = io.BytesIO()
    torch.save({"vae": Hostile(tmp_path / "owned")}, saved)
    for content in (saved.getvalue(), pickle.dumps(Hostile(tmp_path / "owned")), bomb(size=2**26), b"", b"\xff" * 100):
        for name in ("config.json", "metrics.jsonl", *CHECKPOINTS):
            (run / name).write_bytes(content)
        refused(pvae.load, run, match=r"config\.json")


@pytest.mark.parametrize("head", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2**63), bytes(100)])
def test_a_pickle_or_an_archive_as_a_checkpoint_is_refused(run, images, tmp_path, head):
    for content in (pickle.dumps(Hostile(tmp_path / "owned")), bomb(size=2**24), b""):
        for name in CHECKPOINTS:
            (run / name).write_bytes(head + content)
        refused_by_all(run, images, match="checkpoint")


def head_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_a_checkpoint_with_a_wrong_header_is_refused(run, images):
    """Offsets outside of the file or overlapping, impossible shapes, unknown dtypes."""
    header, body = head_of((run / CHECKPOINTS[0]).read_bytes())
    name = "vae.p_x.decoder.0.weight"
    for change in (
        {"data_offsets": [0, 2**60]},
        {"data_offsets": [-64, -32]},
        {"data_offsets": [0, 32]},
        {"data_offsets": None},
        {"shape": [2**31, 2**31]},
        {"shape": [10**400]},
        {"shape": [-4, -2]},
        {"shape": nested(100)},
        {"dtype": "F64"},
        {"dtype": "C64"},
        {"dtype": ["F32"]},
    ):
        spoiled = json.dumps({**header, name: {**header[name], **change}}).encode()
        for file in CHECKPOINTS:
            (run / file).write_bytes(struct.pack("<Q", len(spoiled)) + spoiled + body)
        refused_by_all(run, images, match="checkpoint")
    for spoiled in (
        b"[]",
        b"{}",
        b"[" * 10**5,
        b'{"__metadata__": 5}',
        b'{"__metadata__": {"format": null}}',
        b"\xff\xfe",
    ):
        for file in CHECKPOINTS:
            (run / file).write_bytes(struct.pack("<Q", len(spoiled)) + spoiled + body)
        refused_by_all(run, images, match="checkpoint")


def rewritten(run, change):
    """Write a checkpoint with changed tensors and valid checksums."""
    checkpoint = Run.open(run).read_checkpoint()
    for file in CHECKPOINTS:
        (run / file).write_bytes(to_bytes(dataclasses.replace(checkpoint, **change(checkpoint))))


def test_a_checkpoint_with_wrong_tensors_is_refused(run, images):
    wrong = {
        "weights of another shape": lambda c: {"vae": {k: v[:1] if v.dim() else v for k, v in c.vae.items()}},
        "weights of another kind": lambda c: {"vae": {k: v.double() for k, v in c.vae.items()}},
        "a weight with a name of two lines": lambda c: {"vae": {**c.vae, "two\nlines": torch.ones(1)}},
        "no weights": lambda c: {"vae": {}},
    }
    content = [(run / file).read_bytes() for file in CHECKPOINTS]
    for change in wrong.values():
        rewritten(run, change)
        refused_by_all(run, images, match="checkpoint")
        for file, whole in zip(CHECKPOINTS, content):
            (run / file).write_bytes(whole)
    for change in (
        lambda c: {"moments": {**c.moments, "0.exp_avg": torch.ones(3)}},
        lambda c: {"moments": {**c.moments, "99.exp_avg": torch.ones(3)}},
        lambda c: {"moments": {**c.moments, "x": torch.ones(3)}},
        lambda c: {"moments": {**c.moments, "-1.y": torch.ones(())}},
        lambda c: {"rng": {}},
        lambda c: {"rng": {"cpu": torch.ones(3)}},
        lambda c: {"rng": {"cpu": torch.zeros(5056, dtype=torch.uint8)}},
    ):
        rewritten(run, change)
        refused(resume, run, 2, data=images, match="checkpoint")
        for file, whole in zip(CHECKPOINTS, content):
            (run / file).write_bytes(whole)


def restated(run, change):
    """Change the JSON text of a checkpoint and compute its checksum again."""
    header, body = head_of((run / CHECKPOINTS[0]).read_bytes())
    state = json.loads(header["__metadata__"]["state"])
    change(state)
    text = json.dumps(state)
    header["__metadata__"] |= {"state": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    spoiled = json.dumps(header).encode()
    for file in CHECKPOINTS:
        (run / file).write_bytes(struct.pack("<Q", len(spoiled)) + spoiled + body)


@pytest.mark.parametrize(
    "change",
    [
        {"counts": {}},
        {"counts": []},
        {"counts": {"epoch": 1.5, "step": 0, "skipped": 0}},
        {"pass": []},
        {"pass": [0, 0, 0]},
        {"pass": [10**400, 1, 1]},
        {"pass": 5},
        {"rows": None},
        {"rows": [2**62, "0"]},
        {"rows": [1, 2, 3]},
        {"rows": {"num_bytes": 5}},
        {"tensors": None},
        {"tensors": {}},
    ],
    ids=str,
)
def test_a_checkpoint_with_wrong_entries_is_refused(run, images, change):
    restated(run, lambda state: state.update(change))
    refused(lambda: Run.open(run).metrics())
    refused(resume, run, 2, data=images)


MEASURED = """
import sys
from pathlib import Path
import torch
import pvae
from pvae.core.errors import InputError
from pvae.training.fit import fit, resume
from pvae.data.dataset import Dataset
from pvae.runs.run import Run
from pvae.data.sources import load_dataset
from pvae.data.image_folder import ImageTransform, image_files, load_images
from pvae.cli.train import _chosen
generator = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (20, 1, 4, 4), generator=generator, dtype=torch.uint8)
images = Dataset("noise", pixels[:16], pixels[16:])
base = Path(sys.argv[1])
def refused(use, *arguments, **options):
    try:
        use(*arguments, **options)
    except InputError as error:
        assert str(error).isprintable()
    else:
        raise AssertionError(arguments)
{body}
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
        print(1024 * int(line.split()[1]))
"""


def peak_of(body, base):
    """Run code in a process and return its peak memory, in bytes."""
    command = [sys.executable, "-c", MEASURED.replace("{body}", body), str(base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "PVAE_DATA": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


def sparse(path, size, head=b""):
    """Make a sparse file of `size` bytes."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_of_huge_run_folders(run, images, tmp_path, capsys):
    for name in ("config", "metrics", "checkpoint", "bombs"):
        shutil.copytree(run, tmp_path / name)
    sparse(tmp_path / "config" / "config.json", 2**40, (run / "config.json").read_bytes())
    sparse(tmp_path / "metrics" / "metrics.jsonl", 2**40, (run / "metrics.jsonl").read_bytes())
    forge(tmp_path / "checkpoint", "config", "hidden", [50_000, 50_000])
    header, _ = head_of((run / CHECKPOINTS[0]).read_bytes())
    spoiled, archive = json.dumps(header).encode(), bomb(size=2**28)
    for name in CHECKPOINTS:
        sparse(tmp_path / "checkpoint" / name, 2**34, struct.pack("<Q", len(spoiled)) + spoiled)
        (tmp_path / "bombs" / name).write_bytes(archive)
    body = """
for name in ("config", "metrics", "checkpoint", "bombs"):
    refused(lambda: Run.open(base / name).metrics())
    refused(resume, base / name, 2, data=images)
for name in ("config", "checkpoint", "bombs"):
    refused(pvae.load, base / name)
"""
    peak = peak_of(body, tmp_path)
    with capsys.disabled():
        print(f"\nhuge run folders: at most {peak / 2**20:.0f} MiB")
    assert peak < MOST


def lay_mnist(folder, files):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


def test_damaged_idx_files_are_refused(tiny_mnist, tmp_path):
    """Files that are shorter or longer than their header says, or that are not files; a link is followed."""
    raw = lay_mnist(tmp_path / "data", tiny_mnist[1])
    assert len(load_dataset("mnist", tmp_path / "data").train) == 20
    whole = {name: (raw / name).read_bytes() for name in FILES}
    promise = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**31, 2**31, 2**31)
    for name in FILES:
        for content in (promise + whole[name][16:], whole[name] + b"\0", whole[name][:-1], b"", bomb(size=2**24)):
            (raw / name).write_bytes(content)
            refused(load_dataset, "mnist", tmp_path / "data", match="put")
        for make in (fifo, link_to_a_device, folder, link_to_itself):
            (raw / name).unlink()
            make(raw / name)
            refused(load_dataset, "mnist", tmp_path / "data", match="put")
            (raw / name).rmdir() if make is folder else (raw / name).unlink()
            (raw / name).touch()
        (raw / name).unlink()
        (tmp_path / name).write_bytes(whole[name])
        (raw / name).symlink_to(tmp_path / name)
    assert len(load_dataset("mnist", tmp_path / "data").train) == 20


def npz(folder, **arrays):
    with (folder / "binarized_mnist.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)


def npy_head(shape, dtype="|u1"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue()


def test_damaged_files_of_binarized_mnist_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "binarized_mnist"
    folder.mkdir(parents=True)
    bits = np.random.default_rng(0).integers(0, 256, (3, 98), dtype=np.uint8)
    npz(folder, train=bits, test=bits, valid=bits[:2])
    data = load_dataset("binarized-mnist", tmp_path / "data")
    assert data.title == "binarized MNIST (3 train / 2 valid / 3 test)"
    assert torch.equal(data.with_valid(0.1).valid, data.train[:2])
    hostile = np.empty(3, dtype=object)
    hostile[:] = [Hostile(tmp_path / "owned")] * 3
    other_shapes = (bits[0], bits[:, :5], bits[:1])
    for train in (hostile, bits.astype(np.float64), np.uint8(3), *other_shapes):
        npz(folder, train=train, test=bits, valid=bits)
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published file")
    packed = folder / "binarized_mnist.npz"
    for head in (npy_head((10**12, 98)), npy_head((10**30, 98)), npy_head((3, 98), "|O"), b"\x93NUMPY\x09\x00", b""):
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("train.npy", head + bits.tobytes())
            archive.writestr("test.npy", head + bits.tobytes())
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published file")
    whole = packed.read_bytes()
    for content in (whole[:-30], b"PK", b"", pickle.dumps(Hostile(tmp_path / "owned")), b"\x93NUMPY" + whole):
        packed.write_bytes(content)
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published file")
    for content in (b"0 1 2\n" * 784, b"0 1\n", b"", b"\xff" * 784 * 3, b"x" * 784 * 3):
        (folder / "binarized_mnist_train.amat").write_bytes(content)
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published file")
    for make in (fifo, link_to_a_device):
        (folder / "binarized_mnist_train.amat").unlink()
        make(folder / "binarized_mnist_train.amat")
        refused(load_dataset, "binarized-mnist", tmp_path / "data", match="put the published file")
    packed.unlink()
    (folder / "binarized_mnist_train.amat").unlink()
    for split in ("train", "test"):
        (folder / f"binarized_mnist_{split}.amat").write_bytes(b"0 1\n" * 784)
    refused(load_dataset, "binarized-mnist", tmp_path / "data", match="binarized_mnist_valid.amat cannot be read")
    assert not (tmp_path / "owned").exists()


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
        ("a.png", png(12_000, 9_000, rows=1)),
        ("a.png", png(50, 50)[:60]),
        ("a.jpg", POSTSCRIPT),
        ("a.png", bomb(size=2**24)),
        ("a.gif", b"GIF89a" + b"\xff" * 30),
        ("a.tif", b"II*\0" + b"\xff" * 50),
        ("a.tif", b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\x01" * 500),
        ("a.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8X" + b"\xff" * 50),
        ("a.bmp", b"BM" + b"\xff" * 60),
        ("a.pgm", b"P5 100000 100000 255\n"),
        ("a.pgm", b"P5 9 9 255\n"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 20),
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
    assert not list(recwarn), "a second voice"


def test_postscript_is_not_run(pictures, tmp_path, monkeypatch):
    """Pillow would run an external program for it."""
    from PIL import EpsImagePlugin

    called = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: called.append(arguments))
    (pictures / "a.jpg").write_bytes(POSTSCRIPT)
    refused(load_folder, pictures, match="cannot be used")
    assert not called


def test_only_files_in_the_folder_are_images(pictures, tmp_path):
    """Pipes, devices, folders, and links to themselves or to other folders are not images."""
    fifo(pictures / "a.png")
    link_to_a_device(pictures / "b.png")
    folder(pictures / "c.png")
    link_to_itself(pictures / "d.png")
    (pictures / "e").symlink_to(pictures)
    (pictures / "f").symlink_to("/")
    assert len(image_files(pictures)[0]) == 8
    for name in ("~no-such-user/x", "x" * 5000, "a\0b", ""):
        refused(load_dataset, f"folder:{name}", match="folder")


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "shape", "link", "list", "nested"])
def test_a_damaged_cache_is_built_again(pictures, tmp_path, damage):
    before = [
        images.clone() for images in both(load_folder(pictures))
    ]  # the file itself is mapped, and is going to be cut
    (array,), (record,) = ((tmp_path / "cache").rglob(f"*.{kind}") for kind in ("npy", "json"))
    content = array.read_bytes()
    if damage in ("cut", "empty"):
        array.write_bytes(content[: -5 if damage == "cut" else 0])
    elif damage in ("pickle", "shape"):
        hostile = np.array([Hostile(tmp_path / "owned")], dtype=object)
        array.unlink()
        np.save(array, hostile if damage == "pickle" else np.zeros((2, 3), np.uint8))
    elif damage == "link":
        for file in (array, record):
            file.unlink()
            file.symlink_to("/dev/zero")
    else:
        kept = json.loads(record.read_text())["kept"]
        record.write_text(json.dumps({"list": kept, "nested": nested(300)}[damage]))
    again = load_folder(pictures)
    assert all(map(torch.equal, both(again), before))
    assert not (tmp_path / "owned").exists()
    assert sorted(path.suffix for path in (tmp_path / "cache").rglob("*.*")) == [".json", ".npy"]


LISTS = [
    b"",
    b"\n",
    b"1\n",
    b"1\nA B\n",
    b"\xff\xfe",
    b"1.png\n",
    b"1\nA\n1.png 5\n",
    b"2\nA\n1.png 1 1\n",
    b"1\n" + b"A " * 5000,
    b"1.png 7\n",
    b"1.png 0 0 0 0\n",
    None,
]


@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_attr_celeba.txt"])
@pytest.mark.parametrize("content", LISTS, ids=lambda content: str(content)[:20])
def test_damaged_lists_of_celeba_are_refused(pictures, tmp_path, name, content):
    celeba = tmp_path / "data" / "celeba"
    celeba.mkdir(parents=True)
    pictures.rename(celeba / "img_align_celeba")
    names = [f"{index}.png" for index in range(8)]
    lists = {
        "list_eval_partition.txt": "".join(f"{name} {2 * (i > 4)}\n" for i, name in enumerate(names)),
        "list_attr_celeba.txt": "8\nA B\n" + "".join(f"{name} 1 -1\n" for name in names),
    }
    for file, text in lists.items():
        (celeba / file).write_text(text)
    assert len(load_dataset("celeba", tmp_path / "data", transform=SMALL).train) == 5
    if content is None:
        (celeba / name).unlink()
        fifo(celeba / name)
    else:
        (celeba / name).write_bytes(content)
    refused(load_dataset, "celeba", tmp_path / "data", transform=SMALL, match="list")


TOMLS = [
    b"latent_dim = " + b"9" * 5000,
    b"latent_dim = 0x" + b"f" * 100_000,
    b"lr = 0x" + b"f" * 100_000,
    b"hidden = [0x" + b"f" * 100_000 + b"]",
    b"lr = 1e400",
    b"lr = nan",
    b"hidden = " + b"[" * 5000 + b"]" * 5000,
    b"hidden = " + b"[" * 300 + b"]" * 300,
    b"hidden = {a = 1}",
    b"hidden.a = 1",
    b"a.b.c = 1",
    b"a." * 5000 + b"b = 1",
    b"[latent_dim]\nx = 1",
    b"[[hidden]]\nx = 1",
    b"lr = 1979-05-27",
    b"elbo = ['trace']",
    b"elbo = '" + b"x" * 100_000 + b"'",
    b"system = '../x'",
    b"grey = 'yes'",
    b'"two\\nlines" = 1',
    b"__class__ = 1",
    b"self = 1",
    b"free_bits = 1e39",
    b"replace = 1",
    b"latent_dim = 2\nlatent_dim = 3",
    b"\xff\xfe",
    b"\0",
    b"x = 1\n" * 100_000,
    b"hidden = [" + b"4," * 100_000 + b"]",
]


@pytest.mark.parametrize("content", TOMLS, ids=lambda content: str(content)[:20])
def test_damaged_toml_is_refused(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_bytes(content)
    assert main(["--config", "a.toml", "--dataset", "mnist-5k"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("pvae.train: --config a.toml")
    assert len(line) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]


@pytest.mark.parametrize("make", [fifo, link_to_a_device, folder, link_to_itself])
def test_toml_that_is_not_a_file_is_refused(tmp_path, make, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("a.toml"))
    assert main(["--config", "a.toml", "--dataset", "mnist-5k"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("pvae.train: --config a.toml")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_of_images_at_the_limit(tmp_path, capsys):
    """Four images of 98 million pixels each, 400 KB on the disk, and as many processors as there are."""
    (tmp_path / "large").mkdir()
    content = png(9900, 9900)
    assert len(content) < 2**22
    for index in range(4):
        (tmp_path / "large" / f"{index}.png").write_bytes(content)
    body = """
import os
os.cpu_count = lambda: 8  # threads that would each decode one
data = load_dataset(f"folder:{base / 'large'}", transform=ImageTransform(size=(8, 8)))
assert len(data.train) + len(data.test) == 4
"""
    peak = peak_of(body, tmp_path)
    with capsys.disabled():
        print(f"\nfour images of 98 million pixels: at most {peak / 2**20:.0f} MiB")
    assert peak < MOST


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_of_huge_data_files(pictures, tiny_mnist, tmp_path, capsys):
    raw = lay_mnist(tmp_path / "data", tiny_mnist[1])
    sparse(raw / FILES[0], 2**36, (raw / FILES[0]).read_bytes())
    (tmp_path / "text" / "binarized_mnist").mkdir(parents=True)
    sparse(tmp_path / "text" / "binarized_mnist" / "binarized_mnist_train.amat", 2**36)
    celeba = tmp_path / "data" / "celeba"
    celeba.mkdir()
    shutil.copytree(pictures, celeba / "img_align_celeba")
    (celeba / "list_eval_partition.txt").write_text("".join(f"{index}.png {index % 3}\n" for index in range(8)))
    (celeba / "list_attr_celeba.txt").write_bytes(b"1\nA\n" + b"-1 " * (2**25 // 3 - 10))
    sparse(tmp_path / "a.toml", 2**36)
    for suffix, head in (
        ("webp", b"RIFF\xff\xff\xff\x7fWEBPVP8X"),
        ("png", png(5, 5)[:40]),
        ("tif", b"II*\0\x08\0\0\0"),
    ):
        sparse(pictures / f"huge.{suffix}", 2**28, head)
    body = """
refused(load_dataset, "mnist", base / "data", offline=True)
refused(load_dataset, "binarized-mnist", base / "text")
refused(load_dataset, "celeba", base / "data")
refused(_chosen, {"config": base / "a.toml"})
refused(load_dataset, f"folder:{base / 'pictures'}", transform=ImageTransform(size=(8, 8)))
"""
    peak = peak_of(body, tmp_path)
    with capsys.disabled():
        print(f"\nhuge data files: at most {peak / 2**20:.0f} MiB")
    assert peak < MOST


def test_a_pipe_is_not_replaced_by_a_result(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not an ordinary file"):
        write_whole(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("address", [{"MASTER_PORT": "xx"}, {"MASTER_PORT": "99999999"}, {"RANK": "5"}, {"RANK": "x"}])
def test_wrong_variables_of_torchrun_are_refused(address, monkeypatch, capsys):
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29777"}
    for name, value in {**given, **address}.items():
        monkeypatch.setenv(name, value)
    assert main(["--dataset", "mnist-5k"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "which torchrun does not set" in said


def test_errors_are_printed_although_rank_is_set(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["--epochs", "0"]) == 2
    assert "--epochs must be" in capsys.readouterr().err


def test_a_removed_working_folder_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["--dataset", "mnist-5k"]) == 2
    assert capsys.readouterr().err.endswith("is gone: go to one that exists\n")
