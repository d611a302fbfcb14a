"""The options chosen for a user's own images: from their number and shape, and how they are explained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import pvae
from pvae.cli.train import main
from pvae.config.build import build_vae
from pvae.config.choices import images_config, load_for, values_config
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.runs.run import Run
from pvae.tables.column import Column

RNG = np.random.default_rng(0)


def noise(num_train, channels, height, width, **rest):
    images = torch.full((), 7, dtype=torch.uint8).expand(num_train, channels, height, width)
    return Dataset("noise", images, images[:4], **rest)


@pytest.mark.parametrize(
    ("shape", "hidden", "batch_size", "epochs"),
    [
        ((4500, 3, 64, 52), (32, 64, 128), 64, 37),
        ((23_000, 3, 64, 64), (32, 64, 128, 256), 128, 10),
        ((200, 1, 1, 1), (400, 400), 18, 200),
        ((100, 1, 512, 512), (32, 64, 128, *[256] * 4), 9, 21),
    ],
)
def test_options_suit_the_number_and_shape_of_the_images(shape, hidden, batch_size, epochs):
    config = images_config(noise(*shape))
    assert (config.hidden, config.batch_size, config.epochs) == (hidden, batch_size, epochs)
    assert config.likelihood == "discretized-logistic-mixture"
    build_vae(config, shape[1:])


def test_options_that_are_given_are_kept():
    assert images_config(noise(4500, 1, 28, 28), network="mlp").hidden == (400, 400)
    config = images_config(noise(4500, 1, 28, 28), epochs=3, hidden=(8,), valid=0.0, lr=1e-4)
    assert (config.epochs, config.hidden, config.valid, config.lr) == (3, (8,), 0.0, 1e-4)
    with pytest.raises(InputError, match="unknown option 'epoch'"):
        images_config(noise(4500, 1, 28, 28), epoch=3)


def test_values_without_names_take_columns():
    rows = Dataset("rows", torch.rand(200, 3), torch.rand(20, 3))
    config = values_config(rows, likelihood="columns", columns="real*2,positive")
    assert (config.likelihood, config.columns) == ("columns", "real*2,positive")
    assert values_config(rows, columns="real*3").columns == "real*3"
    with pytest.raises(InputError, match="a kind of each column"):
        values_config(rows, likelihood="columns")
    far = Dataset(
        "far", torch.tensor([[1.5], [1e39]] * 9, dtype=torch.float64).expand(-1, 2), torch.rand(2, 2).double()
    )
    assert values_config(far).likelihood == "normal-diagonal", "and the training names the value"


def test_no_batch_of_one_image_is_left_for_batch_norm():
    data = noise(4623, 1, 28, 28)  # 4161 are trained on: one is left by 64 and by 65
    assert images_config(data).batch_size == 64
    assert images_config(data, network="mlp-batchnorm").batch_size == 66
    assert images_config(data, network="mlp-batchnorm", batch_size=64).batch_size == 64


def test_images_that_are_binarized_are_bernoulli():
    assert images_config(noise(50, 1, 28, 28), binarize="static").likelihood == "bernoulli"
    assert images_config(noise(50, 1, 28, 28), binarize="static", likelihood="normal").likelihood == "normal"


@pytest.mark.parametrize("count", [30, 1000, 300_000])
def test_values_are_evaluated_after_about_a_hundred_steps_and_trained_for_8000_at_most(count):
    """Or after one pass where that takes more steps, and for ten of these."""
    data = Dataset("made", torch.randn(count, 2), torch.randn(9, 2))
    config = values_config(data)
    steps = math.ceil((count - round(0.1 * count)) / config.batch_size)  # in a pass
    each = config.passes * steps
    assert each == steps if steps > 100 else 67 <= each <= 133
    assert config.epochs == 10 or abs(config.epochs * each - 8000) <= each / 2
    given = {"patience": 3, "passes": 2, "epochs": 7}
    config = values_config(data, **given)
    assert {name: getattr(config, name) for name in given} == given


DRAW = np.random.default_rng(0)
LATENT = DRAW.normal(size=400)
KINDS = {  # the values of a column, and its kind
    "a mass in air": (np.exp(1 + 0.7 * LATENT).round(2), "positive"),
    "an income": (np.exp(10 + LATENT).round(-2), "positive"),
    "a claim": (np.where(DRAW.random(400) < 0.6, 0, np.exp(6 + LATENT).round(2)), "zero-inflated"),
    "bytes of a connection, few of them 0": (
        np.where(np.arange(400) < 18, 0, np.exp(6 + LATENT).round()),
        "zero-inflated",
    ),
    "a value at its limit of detection": (np.exp(LATENT).clip(0.5).round(3), "zero-inflated"),
    "a length in tenths": ((5.8 + 0.8 * LATENT).round(1), "real"),
    "a temperature": (20 + 8 * LATENT, "real"),
    "an age": ((48 + 13 * LATENT).round().clip(19, 79), "real"),
    "a large count": (DRAW.poisson(3000, 400), "real"),
    "a small count": (DRAW.poisson(2.5 * np.exp(0.5 * LATENT)), "count"),
    "a rare count": (np.random.default_rng(2).poisson(0.2, 400), "count"),
    "a count of hundreds": (DRAW.poisson(DRAW.gamma(1, 150, 400)) * (np.arange(400) > 0), "count"),
    "a flag": (LATENT > 0, "binary"),
    "a grade": (1 + (LATENT > 0), "real"),  # 1 and 2 vary less than a count
}


def kinds_of(columns, num_test=40):
    """The kinds that are chosen for columns of a table, of which the last rows are its test rows."""
    x = torch.from_numpy(np.stack([*columns], 1).astype(float))
    named = tuple(Column(f"c{place}") for place in range(x.shape[1]))
    config = values_config(Dataset("table", x[:-num_test], x[-num_test:], columns=named))
    return config.likelihood, config.columns


@pytest.mark.parametrize(("count", "kind"), [(9, "real"), (10, "zero-inflated")])
def test_ten_equal_least_values_beside_log_normal_ones_make_a_column_zero_inflated(count, kind):
    values = np.where(np.arange(400) < count, 0, np.exp(6 + LATENT).round(3))
    assert kinds_of([values, LATENT > 0]) == ("columns", f"{kind},binary")


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_a_column(name):
    """Beside a column of another kind; and where some values are missing."""
    values, kind = KINDS[name]
    normal = np.random.default_rng(1).normal(size=400)
    others = {"positive": "real", "binary": "real", "real": "binary", "count": "real", "zero-inflated": "real"}
    other = normal if others[kind] == "real" else normal > 0
    for some in (values, np.where(np.arange(400) % 7 == 3, math.nan, values)):
        assert kinds_of([some, other]) == ("columns", f"{kind},{others[kind]}")


def test_columns_of_one_kind_have_its_likelihood():
    columns = {kind: [values for values, one in KINDS.values() if one == kind][:2] for _, kind in KINDS.values()}
    assert kinds_of(columns["positive"]) == ("columns", "positive*2")
    assert kinds_of(columns["zero-inflated"]) == ("columns", "zero-inflated*2")
    assert kinds_of(columns["real"]) == ("normal-diagonal", "")
    assert kinds_of(columns["count"]) == ("negative-binomial", "")
    assert kinds_of(columns["binary"] * 2) == ("bernoulli", "")


def test_kinds_are_chosen_by_all_rows():
    """A fraction, a value below 0 or a 2 that stands in a test row alone makes the column another one."""
    counts, flags = DRAW.poisson(3, 400).astype(float), (LATENT > 0).astype(float)
    masses, claims = KINDS["a mass in air"][0].copy(), KINDS["a claim"][0].copy()
    assert kinds_of([counts, flags, masses, claims]) == ("columns", "count,binary,positive,zero-inflated")
    for column, values in enumerate((counts, flags, masses, claims)):
        values[-1] = (0.5, 2, 0, -1)[column]
    assert kinds_of([counts, flags, masses, claims]) == ("normal-diagonal", ""), "all are real"
    train, valid, test = (torch.tensor([[0.0, 4], [1.0, 0], [1.0, 9]]) for _ in range(3))
    data = Dataset("table", train, test, valid=valid, columns=(Column("flag"), Column("visits")))
    assert values_config(data).columns == "binary,count"
    valid[1] = 0.25
    assert values_config(data).likelihood == "normal-diagonal"


def save(folder, count, height, width, colour=True):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        shape = (height, width, 3) if colour else (height, width)
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{index}.png")


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("size", "option", "shape"),
    [
        ((28, 20), "auto", (28, 20)),
        ((109, 89), "auto", (64, 52)),
        ((10, 300), "auto", (2, 64)),
        ((40, 30), "28x20", (28, 20)),
        ((40, 30), "16", (16, 16)),
    ],
)
def test_image_sizes(images, size, option, shape):
    save(images, 4, *size)
    config = pvae.Config(dataset=f"folder:{images}", image_size=option)
    assert load_for(config).datum_shape == (3, *shape)


@pytest.mark.parametrize(
    ("modes", "grey", "channels", "says"),
    [("LL1", False, 1, "grey"), ("LRL", False, 1, "grey"), ("LCL", False, 3, "colour"), ("CCC", True, 1, "colour")],
)
def test_one_channel_where_all_images_are_grey(images, modes, grey, channels, says):
    """Also where grey pixels (R) are stored as colours."""
    images.mkdir()
    for index, mode in enumerate(modes + modes):
        pixels = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        image = pixels if mode == "C" else pixels.convert("1" if mode == "1" else "L")
        (image.convert("RGB") if mode == "R" else image).save(images / f"{index}.png")
    data = load_for(pvae.Config(dataset=f"folder:{images}", grey=grey))
    assert data.datum_shape == (channels, 9, 9)
    assert data.found == f"6 images of 9 x 9 pixels, {says}"


def test_folders_of_splits_and_classes(images):
    for split, count in (("train", 5), ("val", 3), ("Test", 4)):
        for number, name in enumerate(("shoe", "bag")):
            save(images / split / name, count, 6, 5 + number)
    save(images / "notes", 2, 6, 5)
    data = load_for(pvae.Config(dataset=f"folder:{images}", valid=0.3))
    assert data.title == "images (10 train / 6 valid / 8 test)"
    assert data.label_names == ("bag", "shoe")
    labels = (data.train_labels, data.valid_labels, data.test_labels)
    assert [one.bincount().tolist() for one in labels] == [[5, 5], [3, 3], [4, 4]]
    assert load_for(pvae.Config(dataset=f"folder:{images}")).valid is None, "--valid 0"


def test_the_validation_split_is_a_fixed_share(few_digits):
    first, second = few_digits.with_valid(0.1), few_digits.with_valid(0.1)
    assert torch.equal(first.valid, second.valid)
    assert (len(first.train), len(first.valid)) == (117, 13)
    rows = [image.tobytes() for image in torch.cat([first.train, first.valid]).numpy()]
    assert sorted(rows) == sorted(image.tobytes() for image in few_digits.train.numpy())
    assert first.with_valid(0.5) is first, "it has a split of its own"
    assert first.with_valid(0).valid is None
    assert len(few_digits.with_valid(1e-3).valid) == 2
    assert torch.equal(first.test, few_digits.test)
    both = few_digits.with_valid(0.1, 0.2)
    assert {split: len(x) for split, x in both.splits.items()} == {
        "train": 91,
        "test": len(few_digits.test),
        "valid": 13,
        "calibration": 26,
    }
    assert torch.equal(both.valid, first.valid)
    assert both.with_valid(0.1, 0.2) is both
    for shares in ((0.9,), (0.0, 0.9), (0.5, 0.5)):
        with pytest.raises(InputError, match=r"leaves [01] of"):
            noise(10, 1, 4, 4).with_valid(*shares)


@pytest.mark.workflow
def test_the_command_prints_its_choices_and_trains(images, no_pictures, capsys):
    save(images / "a", 12, 8, 6, colour=False)
    save(images / "b", 12, 8, 6, colour=False)
    given = ["--dataset", "folder:images", "--epochs", "1", "--hidden", "4"]
    assert main([*given, "--out", "run"]) == 0
    assert " --image-size 8x6 " in capsys.readouterr().out.split("epoch 1/1")[0]
    assert Run.open("run").config.batch_size == 2
    for wrong in (["--valid", "0.999"], ["--valid", "0", "--patience", "3"], ["--image-size", "0x3"]):
        assert main([*given, *wrong, "--out", "refused"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (images.parent / "refused").exists()


def smooth(count, height, width):
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


@pytest.mark.workflow
def test_large_images_train_from_the_first_epoch(tmp_path, no_pictures):
    """By four convolutions the log scale of q runs away, to a rate of 18 million nats."""
    data = Dataset("x", smooth(16, 256, 256), smooth(2, 256, 256))
    config = images_config(data, valid=0.0, batch_size=2, epochs=1)
    test = pvae.fit(config, data=data, out=tmp_path / "run").metrics()[-1]
    assert test.rate < 1e5
    assert -test.elbo / 256**2 / math.log(2) < 12


@pytest.mark.parametrize("given", [{"prior": "mixture"}, {"prior": "vamp", "elbo": "iwae"}, {"posterior": "iaf"}, {}])
def test_the_elbo_is_trace_where_the_rate_has_no_closed_form(given):
    data = Dataset("x", smooth(20, 28, 28), smooth(4, 28, 28))
    config = images_config(data, **given)
    assert config.elbo == given.get("elbo", "trace" if given else "analytic")
