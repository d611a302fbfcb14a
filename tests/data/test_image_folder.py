"""Image files: the cache, concurrent processes, damaged files, and the conversion of pixels."""

from __future__ import annotations

import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refuse
from PIL import EpsImagePlugin, Image

import pvae
from pvae.cli.evaluate import main as evaluate
from pvae.cli.train import main
from pvae.config.choices import load_for
from pvae.core.errors import InputError
from pvae.data.images import ImageFiles, ImageTransform, image_files, load_images
from pvae.data.read import read
from pvae.runs.run import Run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tree of thirty colour images of several formats and sizes, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for index in range(30):
        place = tmp_path / "images" / f"part{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:02}.{('png', 'bmp')[index % 2]}")
    return tmp_path / "images"


def cached(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.*"))


def test_a_tree_of_images_becomes_a_data_set(folder, tmp_path):
    data = read(f"folder:{folder}", image_size="16")
    assert data.title == "images (27 train / 3 test)"
    assert data.datum_shape == (3, 16, 16)
    assert data.train.dtype == torch.uint8
    again = read(f"folder:{folder}", image_size="16")
    assert torch.equal(again.train, data.train)
    assert len(cached(tmp_path)) == 2
    Image.new("RGB", (20, 20), "white").save(next(folder.rglob("*.png")))
    changed = read(f"folder:{folder}", image_size="16")
    assert changed.sha256 != data.sha256
    grey = read(f"folder:{folder}", image_size="8", grey=True)
    assert grey.datum_shape == (1, 8, 8)
    assert len(cached(tmp_path)) == 6


@pytest.mark.workflow
def test_the_folder_of_a_run_may_move(folder, no_pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--image-size", "8", "--hidden", "4", "--batch-size", "8", "--epochs"]
    assert main(["--dataset", "folder:images", *small, "1", "--out", "run"]) == 0
    folder.rename(tmp_path / "moved")
    capsys.readouterr()
    for command, arguments in (
        (main, ["--resume", "run", "--epochs", "2"]),
        (evaluate, ["run", "--importance-samples", "5", "--compile", "none"]),
    ):
        assert command(arguments) == 2
        assert re.fullmatch(".*no folder:.*images any more.*--data-dir\n", capsys.readouterr().err)
        assert command([*arguments, "--data-dir", "moved"]) == 0
        capsys.readouterr()
    next((tmp_path / "moved").rglob("*.png")).unlink()
    with pytest.raises(InputError, match=r"3 test\).* 2 test"):
        Run.open("run").dataset(data_dir="moved")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="are two folders"):
        load_for(pvae.Config(dataset="folder:images"), "moved")


def test_images_outside_of_the_splits_are_refused_or_left_out(folder):
    files = sorted(folder.rglob("*.png"))
    (folder / "test").mkdir()
    files[0].rename(folder / "test" / "one.png")
    with pytest.raises(InputError, match="sub-folder test"):
        read(f"folder:{folder}")
    (folder / "train").mkdir()
    for file in files[1:9]:
        file.rename(folder / "train" / file.name)
    (folder / "test" / "one.png").rename(folder / "train" / "one.png")
    outside = len(image_files(folder)[0]) - 9
    assert outside > 0
    assert read(f"folder:{folder}").note.startswith(f"{outside} image files outside")


BROKEN = {
    "cut.png": None,  # the start of another one
    "empty.png": b"",
    "a.tif": b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\x01" * 500,
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_or_skipped(folder, tmp_path, monkeypatch, recwarn, name):
    """Pillow would run an external program for PostScript, and warns of some of the others."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    start = next(folder.rglob("*.png")).read_bytes()[:100]
    (folder / name).write_bytes(start if BROKEN[name] is None else BROKEN[name])
    with pytest.raises(InputError, match=name) as caught:
        read(f"folder:{folder}", image_size="8")
    assert str(caught.value).isprintable()
    assert not [path for path in cached(tmp_path) if path.is_file()], "a broken build left something"
    data = read(f"folder:{folder}", image_size="8", skip_broken=True)
    assert len(data.train) + len(data.test) == 30
    assert "1 of 31" in data.note
    assert not [str(one.message) for one in recwarn], "a second voice"


@pytest.mark.parametrize("name", ["bytes", "json"])
def test_a_damaged_cache_is_built_again(folder, tmp_path, name):
    def load():
        return read(f"folder:{folder}", image_size="4").train

    before = load().clone()  # the file is mapped, and is going to be cut
    for keep in (-5, 0):
        (file,) = (tmp_path / "cache").rglob(f"*.{name}")
        file.write_bytes(file.read_bytes()[:keep])
        assert torch.equal(load(), before)
    assert sorted(path.suffix for path in cached(tmp_path)) == [".bytes", ".json"]


def a_broken_name(folder):
    for index in range(8):
        Image.new("L", (4, 4)).save(folder / f"{index}.png")
    (folder / os.fsdecode(b"caf\xe9\n.png")).write_bytes(b"no image")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "holds no image file"),
        (Path.rmdir, "there is no folder images"),
        (lambda folder: Image.new("L", (4, 4)).save(folder / "only.png"), "only 1 of 1 images can be used: give at"),
        (a_broken_name, r"caf\\udce9\\n.png cannot be used"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_an_error_of_one_line(tmp_path, monkeypatch, capsys, make, says):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    make(tmp_path / "images")
    assert re.search(says, refuse(main, ["--dataset", "folder:images", "--out", "run"], capsys, tmp_path / "images"))


@pytest.mark.workflow
def test_images_of_all_kinds_sizes_and_names_train_together(tmp_path, monkeypatch, no_pictures, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    places = [tmp_path / "images" / "other", tmp_path / "images" / os.fsdecode(b"caf\xe9")]
    for place in places:
        place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (9, 7), dtype=np.uint16))
    kinds = {"one.png": "1", "eight.png": "L", "palette.png": "P", "alpha.png": "RGBA", "grey-alpha.png": "LA"}
    kinds |= {"cmyk.jpeg": "CMYK", "photograph.tiff": "RGB", "grey.bmp": "L", "still.gif": "P"}
    images = {name: photograph.convert(mode) for name, mode in kinds.items()}
    images |= {"sixteen.png": deep, "wide.webp": photograph.resize((300, 20))}
    for index, (name, image) in enumerate(images.items()):
        image.save(places[index % 2] / name)
    assert main(["--dataset", "folder:images", "--hidden", "4", "--epochs", "1", "--out", "run"]) == 0
    assert "11 images of several sizes, colour" in capsys.readouterr().out
    assert pvae.load("run").p_x.datum_shape == (3, 20, 16)


def _build(folder, queue):
    images, kept, *_ = load_images(ImageFiles(image_files(folder)[0], folder), ImageTransform(size=(32, 32)))
    queue.put((images.sum(dtype=np.int64), len(kept)))


@pytest.mark.workflow
def test_two_processes_at_once_leave_a_whole_cache(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    builders = [context.Process(target=_build, args=(folder, queue)) for _ in range(2)]
    for builder in builders:
        builder.start()
    results = [queue.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join()
    assert results[0] == results[1]
    assert results[0][1] == 30
    assert sorted(path.suffix for path in cached(tmp_path)) == [".bytes", ".json"]


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Forty noise images in CelebA's layout; the lists have more names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PVAE_DATA", raising=False)
    folder = tmp_path / "data" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{index:06}.jpg" for index in range(1, 61)]
    for name in names[:40]:
        pixels = rng.integers(0, 256, (22, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    splits = ["0"] * 25 + ["1"] * 5 + ["2"] * 30
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {s}\n" for n, s in zip(names, splits)))
    rows = [f"{n}  {'1' if i % 2 else '-1'} {'1' if i % 3 else '-1'}\n" for i, n in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("60\nBlond_Hair Smiling\n" + "".join(rows))
    return tmp_path / "data"


def test_celeba_in_part(celeba):
    data = read("celeba", celeba, image_size="8")
    assert (len(data.train), len(data.test)) == (25, 10)
    assert data.label_names == ("Blond_Hair", "Smiling")
    assert data.train_labels.shape == (25, 2)
    assert data.train_labels[:4, 0].tolist() == [False, True, False, True]
    assert data.test_labels[0].tolist() == [False, False]
    assert (len(data.valid), data.valid_labels.shape) == (5, (5, 2))
    assert data.with_valid(0).valid is None


@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_attr_celeba.txt"])
def test_damaged_lists_of_celeba_are_refused(celeba, name):
    for content in (b"", b"\xff\xfe", b"1\nA\n1.png 5\n"):
        (celeba / "celeba" / name).write_bytes(content)
        with pytest.raises(InputError):
            read("celeba", celeba, image_size="8")


def decoded(path, *size, grey=False):
    """Return (C, H, W) of one file."""
    transform = ImageTransform(size, 1 if grey else 3)
    return load_images(ImageFiles([path], path.parent), transform, least=1).pixels[0]


# How a viewer turns a stored image, for each EXIF orientation.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_upright(tmp_path, orientation, kind):
    row, column = np.mgrid[:6, :10]
    stored = np.stack([40 * row, 25 * column, 9 * (row + column)], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file, whole = tmp_path / f"photograph.{kind}", {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    Image.fromarray(stored).save(file, exif=exif, **whole)
    shown = UPRIGHT[orientation](stored)
    found = decoded(file, *shown.shape[:2]).astype(int)
    assert np.abs(found - shown.transpose(2, 0, 1)).max() <= (3 if kind == "jpg" else 0)


RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_transparent_pixels_are_white(tmp_path, mode):
    """The left half is opaque and red, or black for grey modes, and the right half is transparent."""
    left, right = {"P": (1, 0), "RGBA": ((*RED, 255), (0, 255, 0, 0)), "LA": ((0, 255), (100, 0))}[mode]
    image = Image.new(mode, (8, 4), left)
    if mode == "P":
        image.putpalette([0, 255, 0, *RED])
    image.paste(right, (4, 0, 8, 4))
    image.save(tmp_path / "hidden.png", **({"transparency": 0} if mode == "P" else {}))
    colour = [0, 0, 0] if mode == "LA" else [*RED]
    for grey in (False, True):
        left, right = decoded(tmp_path / "hidden.png", 4, 4, grey=grey)[:, 0, [0, -1]].T.tolist()
        assert left == ([76 if mode != "LA" else 0] if grey else colour)
        assert right == ([255] if grey else list(WHITE))
