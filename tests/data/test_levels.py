"""Values of every type become bytes, and nothing is lost without a note: depth, two values, channels, pages."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from helpers.commands import refuse
from PIL import Image, ImageColor

import pvae
from pvae.cli.data import sample
from pvae.cli.train import main
from pvae.config.choices import load_for
from pvae.core.errors import InputError
from pvae.data.read import read, read_other
from pvae.runs.run import Run

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 2**16, (40, 6, 5), dtype=np.uint16)
DEEP[0, 0, 0], DEEP[0, 0, 1] = 0, 2**16 - 1
BYTES = (DEEP // 257).astype(np.uint8)
MASKS = BYTES > 127
GREY = RNG.integers(0, 256, (20, 7, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 7, 5, 3), dtype=np.uint8)
SHUFFLED = np.random.RandomState(20).permutation(20)
BANDS = RNG.integers(0, 256, (8, 20, 18, 16), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def png(values):
    """Return a PNG of 16 bits, as bytes; Pillow writes no colours of 16 bits."""
    height, width, *channels = values.shape
    kind = {(): 0, (2,): 4, (3,): 2, (4,): 6}[tuple(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0), b"IDAT" + zlib.compress(rows))
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (*chunks, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(*pages, extra="unspecified", **options):
    """Return a TIFF of arrays (H, W, C), the channels beyond colour or grey of the kind `extra`, as bytes."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for values in pages:
            bands = values.shape[2]
            writer.write(
                values[..., 0] if bands == 1 else values,
                photometric="rgb" if bands >= 3 else "minisblack",
                planarconfig=None if bands == 1 else "contig",
                extrasamples=[extra] * (bands - (3 if bands >= 3 else 1)),
                metadata=None,
                **options,
            )
    return file.getvalue()


def write(folder, kind, arrays, content):
    """Write each array to a file of its own, and load them all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(arrays):
        (folder / f"{number:03}.{kind}").write_bytes(content(values))
    return read(f"folder:{folder}")


def load(tmp_path, values, kind):
    """Write images to an array or to files, and load them."""
    if kind in ("npy", "npz"):
        np.save(tmp_path / "a.npy", values) if kind == "npy" else np.savez(tmp_path / "a.npz", images=values)
        return read(f"folder:{tmp_path / f'a.{kind}'}")

    def content(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, {"tif": "tiff"}.get(kind, kind))
        return png(image) if kind == "png" and image.dtype == np.uint16 else file.getvalue()

    return write(tmp_path / "images", kind, values, content)


def both(data):
    """Return all images, sorted, so that the order does not matter."""
    images = torch.cat([data.train, data.test]).numpy()
    return np.stack(sorted(images, key=lambda image: image.tobytes()))


def by_name(data):
    """Return each image by its name, sorted."""
    names = [*data.names["train"], *data.names["test"]]
    return dict(sorted(zip(names, torch.cat([data.train, data.test]).numpy()), key=lambda item: item[0]))


def ordered(images):
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    return np.stack(sorted(images.astype(np.uint8), key=lambda image: image.tobytes()))


def scaled(values, low, high):
    return np.rint((values.astype(float) - low) * 255 / (high - low))


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize(("kind", "dtype"), [("npz", "i4"), ("png", "u2"), ("tif", "u2")])
def test_integers_of_few_bits_keep_their_levels(tmp_path, bits, kind, dtype):
    values = DEEP >> (16 - bits)
    data = load(tmp_path, values.astype(dtype), kind)
    if bits == 16 and dtype == "u2":
        assert np.array_equal(both(data), ordered(values // 257)), "as in earlier versions"
    else:
        assert np.array_equal(both(data), ordered(scaled(values, 0, 2**bits - 1)))
    assert (f"x {255 / (2**bits - 1):.6g}" in data.note) == (bits > 8)
    assert len(np.unique(both(data))) > 128


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (BYTES / 255, 0, 1),
        ((BYTES // 3) / 255, 0, 85 / 255),  # less than half of the range 0 to 1
        ((BYTES / 255).astype(np.float16), 0, 1),
        (DEEP / 65535 * 2 - 1, -1, 1),
        (BYTES.astype(np.float32), 0, 255),
        (BYTES.astype(np.int8), -128, 127),
        (30_000 + DEEP // 32, 30_000, 30_000 + 2047),
        (DEEP.astype(np.int64) * 1000, 0, 2**26 - 1),
        (np.where(DEEP > 30_000, 200, 0).astype(np.uint16), 0, 255),  # two levels, both black if divided by 257
        (np.full(DEEP.shape, 0.5), 0, 1),
    ],
)
def test_values_of_every_type_and_range_keep_their_levels(tmp_path, values, low, high):
    data = load(tmp_path, values, "npy")
    difference = np.abs(both(data).astype(int) - ordered(scaled(values, low, high)).astype(int))
    assert difference.max() <= (1 if values.dtype == np.float16 else 0)
    assert data.record().value_range == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("kind", "channels", "content"),
    [
        ("png", 3, png),
        ("tif", 4, lambda values: tiff(values, extra="unassalpha")),
        ("tif", 3, lambda values: tiff(values, extratags=[(0x0112, 3, 1, 6, True)])),
    ],
)
def test_deep_colours_in_a_png_opacity_and_rotation_are_refused_with_what_to_do(tmp_path, kind, channels, content):
    with pytest.raises(InputError, match=r"8 bits.*\.npy"):
        write(tmp_path, kind, np.zeros((4, 8, 7, channels), np.uint16), content)


def test_nan_and_files_of_several_types_are_refused(tmp_path):
    with pytest.raises(InputError, match="NaN or infinite"):
        load(tmp_path, np.where(DEEP > 9, DEEP / 65535, np.nan), "npy")
    values = (DEEP[:6] / 65535).astype(np.float32)
    values[3, :2] = np.inf
    with pytest.raises(InputError, match=r"003\.tif.*NaN or infinite"):
        load(tmp_path / "named", values, "tif")
    load(tmp_path, DEEP[:4], "png")
    with pytest.raises(InputError, match="several types"):
        load(tmp_path, (DEEP[:4] / 65535).astype(np.float32), "tif")


@pytest.mark.workflow
def test_the_factor_of_a_run_is_used_again(tmp_path, monkeypatch, no_pictures, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", DEEP >> 4)
    small = ["--hidden", "4", "--latent-dim", "2", "--epochs"]
    assert main(["--dataset", "folder:a.npy", *small, "1", "--out", "run"]) == 0
    assert "x 0.0622711" in capsys.readouterr().err
    run = Run.open("run")
    assert run.data.value_range == (0, 4095)
    assert main(["--resume", "run", "--epochs", "2"]) == 0
    np.save("dark.npy", DEEP[:3] >> 8)
    names, images, note, *_ = read_other(run.data, "dark.npy")
    assert names == ["dark-0", "dark-1", "dark-2"]
    assert np.array_equal(images[:, 0], scaled(DEEP[:3] >> 8, 0, 4095)), "as dark as the training images show it"
    assert "x 0.0622711" in note
    np.save("bright.npy", DEEP[:3] >> 3)
    assert "beyond are set to these" in read_other(run.data, "bright.npy")[2]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (MASKS, "npy"), (MASKS.astype(np.uint8), "npy"), (MASKS * np.uint16(65535), "npy"),
        (MASKS, "png"), (MASKS.astype(np.uint8), "png"), (MASKS.astype(np.float32), "tif"),
    ],
)  # fmt: skip
def test_two_values_are_black_and_white_with_a_true_bound(tmp_path, values, kind):
    data = load(tmp_path, values, kind)
    assert np.array_equal(both(data), ordered(MASKS * 255))
    config = pvae.images_config(data)
    assert (config.likelihood, config.binarize) == ("bernoulli", "threshold")


def test_grey_images_are_not_taken_for_binary(tmp_path):
    for values in (BYTES, np.minimum(BYTES, 2), np.zeros_like(BYTES)):
        data = load(tmp_path, values, "npy")
        assert np.array_equal(both(data), ordered(values))
        assert pvae.images_config(data).likelihood == "discretized-logistic-mixture"


@pytest.mark.parametrize("bands", [2, 16])
@pytest.mark.parametrize("kind", ["last", "first", "contiguous", "packed", "16 bits"])
def test_any_number_of_channels_is_read(tmp_path, bands, kind):
    values = BANDS[..., :bands]
    if kind in ("last", "first"):
        data = load(tmp_path, values if kind == "last" else np.moveaxis(values, 3, 1), "npy")
    else:
        options = {"compression": "zlib"} if kind == "packed" else {}
        stored = values * np.uint16(257) if kind == "16 bits" else values
        data = write(tmp_path, "tif", stored, lambda image: tiff(image, **options))
    assert data.datum_shape == (bands, 20, 18)
    assert np.array_equal(both(data), ordered(values))


def test_opacity_is_what_the_format_calls_opacity(tmp_path):
    values = BANDS[..., :4] * np.uint8([1, 1, 1, 0])
    assert load(tmp_path, values, "npy").datum_shape == (4, 20, 18)
    for data in (
        load(tmp_path, values, "png"),
        write(tmp_path / "tiff", "tif", values, lambda image: tiff(image, extra="unassalpha")),
    ):
        assert (both(data) == 255).all(), "transparent images are white"


def test_channels_that_differ_or_cannot_be_told_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has [45] channels"):
        write(tmp_path, "tif", [BANDS[0, ..., : 4 + number % 2] for number in range(8)], tiff)
    with pytest.raises(InputError, match=r"has [45] channels"):
        load_for(pvae.Config(dataset=f"folder:{tmp_path}", grey=True))


@pytest.mark.workflow
def test_four_channels_are_trained_drawn_and_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.concatenate([BANDS[..., :4]] * 3))
    assert main(["--dataset", "folder:a.npy", "--hidden", "4", "--epochs", "1", "--out", "run"]) == 0
    assert pvae.load("run").p_x.datum_shape == (4, 20, 18)
    assert sample(["run", "-n", "2"]) == 2, "a PNG has no four channels without opacity"


@pytest.mark.parametrize("kind", ["tif", "gif", "webp", "png"])
def test_all_images_of_a_file_are_read(tmp_path, kind):
    colours = ["red", "lime", "blue", "white", "black"]
    first, *others = (Image.new("RGB", (20, 18), colour) for colour in colours)
    lossless = {"lossless": True} if kind == "webp" else {}
    first.save(tmp_path / f"many.{kind}", save_all=True, append_images=others, **lossless)
    first.save(tmp_path / "single.png")
    images = by_name(read(f"folder:{tmp_path}"))
    names = [*(f"many.{kind}#{number}" for number in range(1, 6)), "single.png"]
    shown = {name: tuple(image[:, 3, 3].tolist()) for name, image in images.items()}
    assert shown == {name: ImageColor.getrgb(colour) for name, colour in zip(names, [*colours, "red"])}


def test_hidden_and_other_files_are_left_out_with_a_note(tmp_path):
    for place in ("a", "b", ".ipynb_checkpoints", "__MACOSX/a", "a/.thumbnails"):
        load(tmp_path / place, RNG.integers(0, 256, (6, 4, 4), dtype=np.uint8), "png")
    (tmp_path / "labels.csv").write_text("1")
    data = read(f"folder:{tmp_path}")
    assert (len(data.train) + len(data.test), data.label_names) == (12, ("a", "b"))
    assert "19 files" in data.note


def test_names_of_files_and_classes_are_kept(tmp_path):
    for name in ("\u732b", "\u0441\u043e\u0431\u0430\u043a\u0430"):
        load(tmp_path / name, RNG.integers(0, 256, (12, 8, 8), dtype=np.uint8), "png")
    folder = tmp_path
    data = load_for(pvae.Config(dataset=f"folder:{folder}", valid=0.1))
    assert set(data.label_names) == {"\u732b", "\u0441\u043e\u0431\u0430\u043a\u0430"}
    assert {split: len(names) for split, names in data.names.items()} == {"train": 20, "valid": 2, "test": 2}
    for split, names in data.names.items():
        for name, image, label in zip(names, data.splits[split], getattr(data, f"{split}_labels")):
            assert np.array_equal(np.asarray(Image.open(folder / name)), image[0])
            assert name.startswith(data.label_names[label])
    rows = data.split_csv().decode().splitlines()
    assert rows[0] == "name,split"
    assert sorted(rows[1:]) == sorted(f"{name},{split}" for split, names in data.names.items() for name in names)


@pytest.fixture
def of_arrays(tmp_path):
    """Save arrays, and load them as a data set."""

    def save_and_load(image_size="auto", **arrays):
        path = tmp_path / ("images.npy" if list(arrays) == ["npy"] else "images.npz")
        np.save(path, arrays["npy"]) if path.suffix == ".npy" else np.savez(path, **arrays)
        return read(f"folder:{path}", image_size=image_size)

    return save_and_load


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"npy": GREY.astype(np.complex64)}, "complex64"),
        ({"npy": GREY[0]}, "of shape (7, 5): give (N, H, W)"),
        ({"npy": COLOUR[..., :2]}, "cannot be told"),
        ({"npy": GREY[:3]}, "only 3 of 3 images can be used: give at least 4"),
        ({"images": GREY, "labels": np.array([{}] * 20)}, "objects, which"),
        ({"images": GREY, "labels": np.arange(19)}, "give 20 whole numbers"),
        ({"train": GREY, "test": GREY, "train_labels": np.arange(20)}, "give labels for all or none"),
        ({"train": GREY, "test": GREY[:1]}, "at least 2 in each split"),
        ({"x": GREY, "y": GREY}, "it holds x, y"),
    ],
)
def test_other_arrays_are_an_error_of_one_line(tmp_path, arrays, says, capsys):
    path = tmp_path / ("images.npy" if list(arrays) == ["npy"] else "images.npz")
    np.save(path, arrays["npy"]) if path.suffix == ".npy" else np.savez_compressed(path, **arrays)
    assert says in refuse(main, ["--dataset", f"folder:{path}", "--out", tmp_path / "run"], capsys, tmp_path)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"images.{suffix}"
    np.save(path, GREY) if suffix == "npy" else np.savez(path, images=GREY)
    whole = path.read_bytes()
    for content in (whole[:-100], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"images\.{suffix}"):
            read(f"folder:{path}")


def test_arrays_that_are_not_read_are_named(of_arrays):
    data = of_arrays(images=GREY, labels=np.arange(20) % 2, test_images=GREY, fold=np.arange(20))
    assert "fold, test_images" in data.note
    assert of_arrays(train=GREY, test=GREY, val_labels=np.arange(3)).note.endswith("val_labels")
    assert of_arrays(images=GREY).note == ""
