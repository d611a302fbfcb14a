"""The options chosen for a user's own images: from their number and shape, and how they are explained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import pvae
from pvae.cli.train import main
from pvae.core.errors import InputError
from pvae.data.choices import images_config, values_config
from pvae.data.dataset import Dataset
from pvae.models.build import build_vae
from pvae.runs.data import load_for
from pvae.runs.run import Run

RNG = np.random.default_rng(0)


def noise(num_train, channels, height, width, **rest):
    images = torch.full((), 7, dtype=torch.uint8).expand(num_train, channels, height, width)
    return Dataset("noise", images, images[:4], **rest)


@pytest.mark.parametrize(
    ("shape", "hidden", "batch_size", "epochs"),
    [
        ((900, 1, 28, 20), (32, 64), 64, 200),
        ((4500, 3, 64, 52), (32, 64, 128), 64, 37),
        ((23_000, 3, 64, 64), (32, 64, 128, 256), 128, 10),
        ((200, 1, 1, 1), (400, 400), 18, 200),
        ((8, 1, 7, 300), (32,), 2, 200),
        ((100, 1, 512, 512), (32, 64, 128, *[256] * 4), 9, 21),
    ],
)
def test_options_suit_the_number_and_shape_of_the_images(shape, hidden, batch_size, epochs):
    config = images_config(noise(*shape))
    assert (config.hidden, config.batch_size, config.epochs) == (hidden, batch_size, epochs)
    assert config.likelihood == "discretized-logistic"
    build_vae(config, shape[1:])


def test_options_that_are_given_are_kept():
    assert images_config(noise(4500, 1, 28, 28), network="mlp").hidden == (400, 400)
    config = images_config(noise(4500, 1, 28, 28), epochs=3, hidden=(8,), valid=0.0, lr=1e-4)
    assert (config.epochs, config.hidden, config.valid, config.lr) == (3, (8,), 0.0, 1e-4)
    with pytest.raises(InputError, match="unknown option 'epoch'"):
        images_config(noise(4500, 1, 28, 28), epoch=3)


def test_no_batch_of_one_image_is_left_for_batch_norm():
    data = noise(712, 1, 28, 28)  # 641 of them are trained on, with a batch of 64
    assert images_config(data).batch_size == 64
    assert images_config(data, network="mlp-batchnorm").batch_size == 65
    assert images_config(data, network="mlp-batchnorm", batch_size=64).batch_size == 64
    data = noise(4623, 1, 28, 28)  # 4161 are trained on: one is left by 64 and by 65
    assert images_config(data, network="mlp-batchnorm").batch_size == 66


@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic"])
def test_images_that_are_binarized_are_bernoulli(binarize):
    assert images_config(noise(50, 1, 28, 28), binarize=binarize).likelihood == "bernoulli"
    assert images_config(noise(50, 1, 28, 28), binarize=binarize, likelihood="normal").likelihood == "normal"
    assert images_config(noise(50, 1, 28, 28)).likelihood == "discretized-logistic"


@pytest.mark.parametrize("count", [30, 219, 1000, 30_000, 300_000])
def test_patience_with_values_is_a_thousand_steps_at_least(count):
    config = values_config(Dataset("made", torch.randn(count, 2), torch.randn(9, 2)))
    steps = math.ceil((count - round(0.1 * count)) / config.batch_size)
    assert config.patience >= 15
    assert config.patience * steps >= 1000
    assert config.epochs > config.patience
    assert values_config(Dataset("made", torch.randn(count, 2), torch.randn(9, 2)), patience=3).patience == 3


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
        ((64, 64), "auto", (64, 64)),
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


def test_a_median_size_is_reached_without_stretching(images):
    save(images, 3, 30, 20)
    save(images / "more", 2, 60, 60)
    white = np.zeros((60, 60, 3), np.uint8)
    white[10:50, 10:50] = 255, 0, 0
    Image.fromarray(white).save(images / "more" / "square.png")
    save(images / "again", 1, 30, 20)
    data = load_for(pvae.Config(dataset=f"folder:{images}"))
    assert data.datum_shape == (3, 30, 20)
    assert data.found == "7 images of several sizes, colour"
    both = torch.cat([data.train, data.test])
    square = both[(both[:, 0] == 255).sum(dim=(1, 2)).argmax()]
    red = square[0] > 128
    assert red.sum(0).max() == 20, "40 of 60 rows become 20 of 30"
    assert red.sum(1).max() == 20, "40 of 60 columns become 20 of 30, and 5 are cut off at both ends"


@pytest.mark.parametrize(
    ("modes", "grey", "channels", "says"),
    [("LL1", False, 1, "grey"), ("LRL", False, 1, "grey"), ("LCL", False, 3, "colour"), ("CCC", True, 1, "colour")],
)
def test_one_channel_where_all_images_are_grey(images, modes, grey, channels, says):
    images.mkdir()
    for index, mode in enumerate(modes + modes):
        pixels = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        converted = {"L": "L", "1": "1", "R": "L", "C": "RGB"}[mode]
        pixels.convert(converted).convert("RGB" if mode in "RC" else converted).save(images / f"{index}.png")
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


def test_one_sub_folder_is_no_class(images):
    save(images / "all", 6, 4, 4)
    assert load_for(pvae.Config(dataset=f"folder:{images}")).train_labels is None
    save(images / "more", 6, 4, 4)
    assert load_for(pvae.Config(dataset=f"folder:{images}")).label_names == ("all", "more")
    Image.new("L", (4, 4)).save(images / "loose.png")
    assert load_for(pvae.Config(dataset=f"folder:{images}")).label_names == (), "one image has no class"


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
    with pytest.raises(InputError, match="leaves 1 of"):
        noise(10, 1, 4, 4).with_valid(0.9)


@pytest.mark.workflow
def test_the_command_prints_its_choices_and_trains(images, no_pictures, capsys):
    save(images / "a", 12, 8, 6, colour=False)
    save(images / "b", 12, 8, 6, colour=False)
    assert main(["--dataset", "folder:images", "--epochs", "1", "--hidden", "4", "--out", "run"]) == 0
    shown = capsys.readouterr().out.split("epoch 1/1")[0]
    assert " --image-size 8x6 " in shown
    assert Run.open("run").config.batch_size == 2
    assert main(["--dataset", "folder:images", "--epochs", "1", "--valid", "0", "--hidden", "4", "--out", "no"]) == 0
    assert "--patience" not in capsys.readouterr().out.split("epoch 1/1")[0], "nothing is held out to stop by"
    for wrong in (["--valid", "0.999"], ["--valid", "0", "--patience", "3"], ["--image-size", "0x3"]):
        assert main(["--dataset", "folder:images", *wrong, "--out", "refused"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (images.parent / "refused").exists()


def smooth(count, height, width):
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


@pytest.mark.workflow
def test_large_images_train_from_the_first_epoch(tmp_path):
    """By four convolutions the log scale of q runs away, to a rate of 18 million nats."""
    config = images_config(Dataset("x", smooth(32, 256, 256), smooth(4, 256, 256)), valid=0.0, batch_size=4, epochs=1)
    test = pvae.fit(
        config, data=Dataset("x", smooth(32, 256, 256), smooth(4, 256, 256)), out=tmp_path / "run"
    ).metrics()
    assert test[-1].rate < 1e5
    assert -test[-1].elbo / 256**2 / math.log(2) < 12


@pytest.mark.parametrize("given", [{"prior": "mixture"}, {"prior": "vamp", "elbo": "iwae"}, {"posterior": "iaf"}, {}])
def test_the_elbo_is_trace_where_the_rate_has_no_closed_form(given):
    data = Dataset("x", smooth(20, 28, 28), smooth(4, 28, 28))
    config = images_config(data, **given)
    assert config.elbo == given.get("elbo", "trace" if given else "analytic")
