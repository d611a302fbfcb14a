"""Values of every type become bytes, and nothing is lost without a note: depth, two values, channels, pages."""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import pvae
from pvae.cli.data import sample
from pvae.cli.train import main
from pvae.core.errors import InputError
from pvae.data.image_cache import ImageTransform
from pvae.data.sources import load_dataset
from pvae.runs.data import images_for, load_for
from pvae.runs.run import Run

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 2**16, (40, 6, 5), dtype=np.uint16)
DEEP[0, 0, 0], DEEP[0, 0, 1] = 0, 2**16 - 1
BYTES = (DEEP // 257).astype(np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(values, colour_type=None):
    """Return a PNG of 16 bits, as bytes; Pillow writes no colours of 16 bits."""
    height, width, *channels = values.shape
    kind = {(): 0, (2,): 4, (3,): 2, (4,): 6}[tuple(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0), b"IDAT" + zlib.compress(rows))
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (*chunks, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def save(folder, arrays, kind):
    """Write each array to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(arrays):
        path = folder / f"{number:03}.{kind}"
        if kind == "png" and values.dtype == np.uint16:
            path.write_bytes(png(values))
        elif values.ndim == 3 and values.shape[2] not in (1, 3):
            path.write_bytes(tiff([values]))
        else:
            Image.fromarray(values).save(path)


def tiff(pages, *, extra="unspecified", planar=False, deflate=False):
    """Return a TIFF of arrays (H, W, C), the channels beyond colour or grey of the kind `extra`, as bytes."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for values in pages:
            bands = values.shape[2]
            writer.write(
                values[..., 0] if bands == 1 else np.moveaxis(values, 2, 0) if planar else values,
                photometric="rgb" if bands >= 3 else "minisblack",
                planarconfig=None if bands == 1 else "separate" if planar else "contig",
                extrasamples=[extra] * (bands - (3 if bands >= 3 else 1)),
                compression="zlib" if deflate else None,
                metadata=None,
            )
    return file.getvalue()


def both(data):
    """Return all images, sorted, so that the order does not matter."""
    images = torch.cat([data.train, data.test]).numpy()
    return np.stack(sorted(images, key=lambda image: image.tobytes()))


def ordered(images):
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    return np.stack(sorted(images.astype(np.uint8), key=lambda image: image.tobytes()))


def load(tmp_path, values, kind, **transform):
    if kind in ("npy", "npz"):
        np.save(tmp_path / "a.npy", values) if kind == "npy" else np.savez(tmp_path / "a.npz", images=values)
        return load_dataset(f"folder:{tmp_path / f'a.{kind}'}", transform=ImageTransform(**transform))
    save(tmp_path / "images", values, kind)
    return load_dataset(f"folder:{tmp_path / 'images'}", transform=ImageTransform(**transform))


def scaled(values, low, high):
    return np.rint((values.astype(float) - low) * 255 / (high - low))


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize(("kind", "dtype"), [("npy", "u2"), ("npz", "i4"), ("png", "u2"), ("tif", "u2"), ("tif", "i4")])
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
        ((BYTES // 3) / 255, 0, 1),  # 86 levels, all of which remain
        ((BYTES / 255).astype(np.float16), 0, 1),
        (DEEP / 65535, 0, 1),
        (DEEP / 65535 * 2 - 1, -1, 1),
        (BYTES.astype(np.float32), 0, 255),
        (DEEP / 65535 * 0.1, 0, 0.1),
        (0.4 + 0.2 * (DEEP / 65535), 0.4, 0.6),
        (DEEP / 65535 * 6 - 2.5, -2.5, 3.5),
        (BYTES.astype(np.int8), -128, 127),
        (DEEP.astype(np.int64) // 16 - 1024, -1024, 3071),
        (30_000 + DEEP // 32, 30_000, 30_000 + 2047),
        (DEEP.astype(np.int64) * 1000, 0, 2**26 - 1),
        (np.where(DEEP > 30_000, 200, 0).astype(np.uint16), 0, 255),  # two levels, both black if divided by 257
    ],
)
def test_values_of_every_type_and_range_keep_their_levels(tmp_path, values, low, high):
    data = load(tmp_path, values, "npy")
    difference = np.abs(both(data).astype(int) - ordered(scaled(values, low, high)).astype(int))
    assert difference.max() <= (1 if values.dtype == np.float16 else 0)
    assert data.record().value_range == pytest.approx((low, high))


@pytest.mark.parametrize("bits", [10, 16])
@pytest.mark.parametrize("channels", [3, 4, 2])  # 4 and 2: the last one is opacity
@pytest.mark.parametrize("kind", ["png", "tif", "deflate"])
def test_colours_of_16_bits_keep_their_levels(tmp_path, bits, channels, kind):
    values = RNG.integers(0, 2**bits, (6, 8, 7, channels)).astype(np.uint16)
    if channels != 3:
        values[..., -1] = 2**16 - 1
    if kind == "png":
        for number, one in enumerate(values):
            (tmp_path / f"{number}.png").write_bytes(png(one))
    else:
        for number, one in enumerate(values if channels > 2 else values[..., :1]):
            content = tiff([one], deflate=kind == "deflate", extra="unassalpha")
            (tmp_path / f"{number}.tif").write_bytes(content)
    data = load_dataset(f"folder:{tmp_path}")
    colours = values[..., : 1 if channels == 2 else 3]
    whole = colours // 257 if kind != "png" and channels == 2 else colours >> 8
    assert np.array_equal(both(data), ordered(whole if bits == 16 else scaled(colours, 0, 1023)))


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="it reads them")
def test_compressions_that_another_package_reads_name_it(tmp_path):
    for number in range(4):
        content = tiff([BANDS[number, ..., :5]]).replace(
            struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 5)
        )
        (tmp_path / f"{number}.tif").write_bytes(content)
    with pytest.raises(InputError, match="pip install imagecodecs"):
        load_dataset(f"folder:{tmp_path}")


def test_16_bits_of_which_pillow_reads_eight_are_refused_if_these_are_dark(tmp_path):
    values = RNG.integers(0, 2**16, (6, 8, 7, 3)).astype(">u2")
    for name, one in {"dark": (values >> 6).astype(">u2"), "whole": values}.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(one):
            (tmp_path / name / f"{number}.ppm").write_bytes(b"P6 7 8 65535\n" + image.tobytes())
    assert len(load_dataset(f"folder:{tmp_path / 'whole'}").train.unique()) > 128
    with pytest.raises(InputError, match="16-bit values"):
        load_dataset(f"folder:{tmp_path / 'dark'}")


def test_nan_and_files_of_several_types_are_refused(tmp_path):
    for wrong in (np.nan, np.inf):
        with pytest.raises(InputError, match="NaN or infinite"):
            load(tmp_path, np.where(DEEP > 9, DEEP / 65535, wrong), "npy")
    save(tmp_path / "images", DEEP[:4], "png")
    save(tmp_path / "images" / "floats", (DEEP[:4] / 65535).astype(np.float32), "tif")
    with pytest.raises(InputError, match="several types"):
        load_dataset(f"folder:{tmp_path / 'images'}")


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
    _, images, note, _ = images_for(run, "dark.npy")
    assert np.array_equal(images[:, 0], scaled(DEEP[:3] >> 8, 0, 4095)), "as dark as the training images show it"
    assert "x 0.0622711" in note
    np.save("bright.npy", DEEP[:3] >> 3)
    assert "beyond are set to these" in images_for(run, "bright.npy")[2]
    np.save("bytes.npy", BYTES[:3])
    _, images, note, _ = images_for(run, "bytes.npy")
    assert np.array_equal(images[:, 0], BYTES[:3])
    assert not note


MASKS = BYTES > 127


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (MASKS, "npy"), (MASKS.astype(np.uint8), "npy"), (MASKS.astype(np.uint16), "npz"), (MASKS.astype(float), "npy"),
        (MASKS.astype(np.int64), "npy"), (MASKS * np.uint8(255), "npy"), (MASKS * np.uint16(65535), "npy"),
        (MASKS, "png"), (MASKS.astype(np.uint8), "png"), (MASKS.astype(np.uint16), "png"), (MASKS, "tif"),
        (MASKS.astype(np.float32), "tif"), (MASKS.astype(np.uint8), "bmp"),
    ],
)  # fmt: skip
def test_two_values_are_black_and_white_with_a_true_bound(tmp_path, values, kind):
    data = load(tmp_path, values, kind)
    assert np.array_equal(both(data), ordered(MASKS * 255))
    config = pvae.images_config(data)
    assert (config.likelihood, config.binarize) == ("bernoulli", "threshold")
    assert not data.is_binary or data.train.unique().tolist() == [0, 255]


def test_grey_images_are_not_taken_for_binary(tmp_path):
    for values in (BYTES, np.minimum(BYTES, 2), np.zeros_like(BYTES)):
        data = load(tmp_path, values, "npy")
        assert np.array_equal(both(data), ordered(values))
        assert pvae.images_config(data).likelihood == "discretized-logistic"
    data = load(tmp_path, MASKS, "npy")
    assert pvae.images_config(data, likelihood="normal").binarize == "none", "what is given stays"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ({"train": "train", "test": "test", "valid": "val"}, "{}_labels"),
        ({"train": "train_images", "test": "test_images", "valid": "val_images"}, "{}_labels"),
        ({"train": "x_train", "test": "x_test"}, "y_{}"),
        ({"train": "imgs"}, "labels"),
        ({"train": "X"}, "y"),
        ({"train": "images"}, "labels"),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_archives_of_known_names(tmp_path, images, labels, column):
    arrays = {"other": np.array([{}])}
    for number, (split, name) in enumerate(images.items()):
        arrays[name] = np.where(np.arange(20)[:, None, None] % 2, 250, 0) + np.uint8(number) + BYTES[:20] * np.uint8(0)
        given = np.arange(20) % 2
        arrays[labels.format({"valid": "val"}.get(split, split))] = given[:, None] if column else given
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_dataset(f"folder:{tmp_path / 'a.npz'}")
    assert data.label_names == ("0", "1")
    for number, split in enumerate(images):
        pixels, classes = data.splits[split][:, 0, 0, 0], getattr(data, f"{split}_labels")
        assert torch.equal(pixels == 250 + number, classes == 1)


BANDS = RNG.integers(0, 256, (8, 20, 18, 16), dtype=np.uint8)


@pytest.mark.parametrize("bands", [1, 2, 4, 16])
@pytest.mark.parametrize("kind", ["last", "first", "tif", "planar", "deflate", "16 bits"])
def test_any_number_of_channels_is_read(tmp_path, bands, kind):
    values = BANDS[..., :bands]
    if kind in ("last", "first"):
        np.save(tmp_path / "a.npy", values if kind == "last" else np.moveaxis(values, 3, 1))
        data = load_dataset(f"folder:{tmp_path / 'a.npy'}")
    else:
        stored = values * np.uint16(257) if kind == "16 bits" else values
        for number, one in enumerate(stored):
            content = tiff([one], planar=kind == "planar", deflate=kind == "deflate")
            (tmp_path / f"{number}.tif").write_bytes(content)
        data = load_dataset(f"folder:{tmp_path}")
    assert data.datum_shape == (bands, 20, 18)
    assert np.array_equal(both(data), ordered(values))


def test_opacity_is_what_the_format_calls_opacity(tmp_path):
    values = BANDS[..., :4].copy()
    values[..., 3] = 0
    np.save(tmp_path / "a.npy", values)
    assert load_dataset(f"folder:{tmp_path / 'a.npy'}").datum_shape == (4, 20, 18)
    for kind, extra in (("png", None), ("tif", "unassalpha")):
        folder = tmp_path / kind
        folder.mkdir()
        for number, one in enumerate(values):
            if extra:
                (folder / f"{number}.tif").write_bytes(tiff([one], extra=extra))
            else:
                Image.fromarray(one).save(folder / f"{number}.png")
        assert (both(load_dataset(f"folder:{folder}")) == 255).all(), "transparent images are white"


def test_channels_that_differ_or_cannot_be_told_are_refused(tmp_path):
    for number, one in enumerate(BANDS):
        (tmp_path / f"{number}.tif").write_bytes(tiff([one[..., : 4 + number % 2]]))
    with pytest.raises(InputError, match=r"has [145] channels"):
        load_dataset(f"folder:{tmp_path}")
    with pytest.raises(InputError, match=r"has [145] channels"):
        load_for(pvae.Config(dataset=f"folder:{tmp_path}", grey=True))
    np.save(tmp_path / "a.npy", BANDS[:, :8, :8, :8])
    with pytest.raises(InputError, match="cannot be told"):
        load_dataset(f"folder:{tmp_path / 'a.npy'}")


@pytest.mark.workflow
def test_four_channels_are_trained_drawn_and_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.concatenate([BANDS[..., :4]] * 3))
    assert main(["--dataset", "folder:a.npy", "--hidden", "4", "--epochs", "1", "--out", "run"]) == 0
    assert pvae.load("run").p_x.datum_shape == (4, 20, 18)
    assert sample(["run", "-n", "2"]) == 2, "a PNG has no four channels without opacity"


@pytest.mark.parametrize("kind", ["tif", "gif", "webp", "png", "bands"])
def test_all_images_of_a_file_are_read(tmp_path, kind):
    frames = [Image.new("RGB", (20, 18), colour) for colour in ("red", "lime", "blue", "white", "black")]
    lossless = {"lossless": True} if kind == "webp" else {}
    if kind == "bands":
        (tmp_path / "many.tif").write_bytes(tiff(list(BANDS[:5, ..., :5])))
    else:
        frames[0].save(tmp_path / f"many.{kind}", save_all=True, append_images=frames[1:], **lossless)
    file = f"many.{'tif' if kind == 'bands' else kind}"
    if kind == "bands":
        (tmp_path / "single.tif").write_bytes(tiff([BANDS[0, ..., :5]]))
    else:
        frames[1].save(tmp_path / "single.png")
    data = load_dataset(f"folder:{tmp_path}")
    assert len(data.train) + len(data.test) == 6
    names = [*data.names["train"], *data.names["test"]]
    assert sorted(names) == [
        *(f"{file}#{number}" for number in range(1, 6)),
        f"single.{'tif' if kind == 'bands' else 'png'}",
    ]
    images = dict(zip(names, torch.cat([data.train, data.test])))
    if kind == "bands":
        assert np.array_equal(images[f"{file}#3"], np.moveaxis(BANDS[2, ..., :5], 2, 0))
    else:
        colours = [images[name][:, 3, 3].tolist() for name in sorted(names)]
        assert colours == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3, [0] * 3, [0, 255, 0]]


def test_hidden_and_other_files_are_left_out_with_a_note(tmp_path):
    for place, count in (("a", 6), ("b", 6), (".ipynb_checkpoints", 3), ("__MACOSX/a", 2), ("a/.thumbnails", 1)):
        save(tmp_path / "images" / place, RNG.integers(0, 256, (count, 4, 4), dtype=np.uint8), "png")
    (tmp_path / "images" / "a" / "._001.png").write_bytes(b"resource fork")
    (tmp_path / "images" / "labels.csv").write_text("1")
    data = load_dataset(f"folder:{tmp_path / 'images'}")
    assert (len(data.train) + len(data.test), data.label_names) == (12, ("a", "b"))
    assert "8 files are left out: 7 hidden, 1 of type .csv" in data.note


@pytest.mark.parametrize("drawn", [False, True])
def test_copies_in_training_and_test_are_counted(tmp_path, drawn):
    images = RNG.integers(0, 256, (10, 4, 4), dtype=np.uint8)
    save(tmp_path / "images" / ("a" if drawn else "train"), images, "bmp")
    save(tmp_path / "images" / ("b" if drawn else "test"), images[: 10 if drawn else 3], "bmp")
    assert f"equal to training images: {2 if drawn else 3}" in load_dataset(f"folder:{tmp_path / 'images'}").note


def test_pages_of_a_file_are_no_copies_and_are_said_to_stay_together(tmp_path):
    (tmp_path / "many.tif").write_bytes(tiff(list(BANDS[..., :5])))
    data = load_dataset(f"folder:{tmp_path}")
    assert data.names["test"] == ["many.tif#7", "many.tif#8"]
    assert "equal" not in data.note
    assert "stay together" in data.note


def test_names_of_files_and_classes_are_kept(tmp_path):
    for name in ("\u732b", "\u0441\u043e\u0431\u0430\u043a\u0430"):
        save(tmp_path / "images" / name, RNG.integers(0, 256, (12, 8, 8), dtype=np.uint8), "png")
    data = load_for(pvae.Config(dataset=f"folder:{tmp_path / 'images'}", valid=0.1))
    assert set(data.label_names) == {"\u732b", "\u0441\u043e\u0431\u0430\u043a\u0430"}
    assert {split: len(names) for split, names in data.names.items()} == {"train": 20, "valid": 2, "test": 2}
    for split, names in data.names.items():
        for name, image, label in zip(names, data.splits[split], getattr(data, f"{split}_labels")):
            assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / name)), image[0])
            assert name.startswith(data.label_names[label])
    rows = data.split_csv().decode().splitlines()
    assert rows[0] == "name,split"
    assert sorted(rows[1:]) == sorted(f"{name},{split}" for split, names in data.names.items() for name in names)
