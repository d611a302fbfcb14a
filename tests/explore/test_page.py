"""What the page of a run holds, and what is refused."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib

import numpy as np
import pytest
import torch
from helpers.commands import refuse

from pvae.cli.export import explore as main
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.config.presets import get_system
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.explore import page
from pvae.runs.run import READY_MADE, Run
from pvae.tables.schema import DataRecord
from pvae.trained.latent_space import encode
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow


def unpacked(text):
    """The JSON of a page and the bytes of its tensors."""
    content = zlib.decompress(base64.b64decode(re.search('id="content">([^<]*)<', text)[1]))
    start = 4 + int.from_bytes(content[:4], "little")
    return json.loads(content[4:start]), content[start:]


def values(content, tensors, name, kind=np.float16):
    """A tensor of a page."""
    _, start, stop, shape = content[name]["tensor"]
    return np.frombuffer(tensors[start:stop], kind).reshape(shape)


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """Return a run of a system with its first weights."""

    def build(config, shape, name="few"):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (300, *shape), dtype=torch.uint8, generator=generator)
        data = Dataset(name, images, images)
        record = DataRecord(name=name, dataset="", folder="", num_train=300, num_test=300, datum_shape=shape, sha256="")
        vae = build_vae(config, shape).eval()
        run = Run(tmp_path, config, record, loaded=data)
        monkeypatch.setattr(Run, "vae", lambda self: vae)
        monkeypatch.setattr(Run, "title", f"untrained, on {name}\nepoch 0")
        return run

    return build


@pytest.mark.parametrize("system", ["mlp-2d", "celeba-vae"])
def test_the_page_holds_the_weights_as_they_are(untrained, system):
    run = untrained(get_system(system), (3, 64, 64) if system == "celeba-vae" else (1, 28, 28))
    weight = next(one for one in run.vae().p_x.decoder.parameters() if one.dim() > 1)
    content, tensors = unpacked(page.explorer_page(run))
    _, start, stop, shape = next(one for one in content["decoder"] if "weight" in one)["weight"]["tensor"]
    found = np.frombuffer(tensors[start:stop], np.float32).reshape(shape)
    assert np.array_equal(found, weight.detach().numpy().reshape(shape))
    assert content["images"]["tensor"][3][0] == 200


def test_what_the_page_cannot_show_is_refused(untrained, tmp_path, capsys):
    config = Config(hidden=(4,), latent_dim=2)
    runs = [untrained(config, (2, 5, 4)), untrained(config.replace(likelihood="normal-diagonal"), (5,))]
    runs += [run := untrained(config, (1, 5, 4)), given := untrained(config, (1, 5, 4))]
    run.has_own_vae, given.config = True, config.replace(labels=10)
    for one in runs:
        with pytest.raises(InputError):
            page.explorer_page(one)
    assert "none" in refuse(main, [tmp_path / "none"], capsys, tmp_path)


def test_the_command_writes_the_page_and_replaces_nothing_else(tmp_path, capsys, monkeypatch, no_pictures):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    run = tmp_path / "run"
    config = Config(dataset="mnist-5k", hidden=(4,), latent_dim=2, epochs=1, batch_size=1000)
    fit(config, data=read("mnist-5k"), out=run)
    for _ in range(2):  # the second replaces the first
        assert main([str(run), "--open"]) == 0
    text = (run / "explore.html").read_text("utf-8")
    assert str(run / "explore.html") in capsys.readouterr().out
    assert shown == [(run / "explore.html").as_uri()] * 2
    content = unpacked(text)[0]
    assert len(content["image_names"]) == 200
    assert content["points"]["tensor"][3] == [1000, 2]
    (tmp_path / "other.html").write_text("<!doctype html>\n<p>mine")
    refuse(main, [run, "--out", tmp_path / "other.html"], capsys, tmp_path)


def test_several_runs_are_one_page_with_a_frame_for_each(tmp_path, capsys, no_pictures):
    """Of the same images in the same order, which each frame could show alone."""
    configs = {"one": Config(hidden=(4,), latent_dim=2, beta=0.5), "two": Config(hidden=(4,), latent_dim=2, beta=2.0)}
    configs |= {"other": configs["one"], "three latents": configs["one"].replace(latent_dim=3)}
    data = read("mnist-5k")
    other = Dataset("other", data.train[:50], data.test[:50])
    for name, config in configs.items():
        given = other if name == "other" else data
        fit(config.replace(epochs=1, batch_size=50), data=given, out=tmp_path / name)
    runs = {name: tmp_path / name for name in configs}
    assert main([str(runs["one"]), str(runs["two"])]) == 0
    text = (runs["one"] / "side-by-side.html").read_text("utf-8")
    frames = [html.unescape(one) for one in re.findall('srcdoc="([^"]*)"', text)]
    contents = [unpacked(one)[0] for one in frames]
    assert [one["title"][0] for one in contents] == ["beta 0.5", "beta 2.0"]
    assert contents[0]["image_names"] == contents[1]["image_names"]
    for frame, name in zip(frames, runs):
        framed, alone = ((*unpacked(one), "points") for one in (frame, page.explorer_page(Run.open(runs[name]))))
        assert values(*framed).tolist() == values(*alone).tolist()
    for refused in (["one", "two", "other"], ["one", "one"], ["one", "three latents"], ["one", "two", "one", "two"]):
        refuse(main, [runs[name] for name in refused], capsys, tmp_path)


@pytest.mark.parametrize(
    ("options", "loss"), [({"beta": 2.0}, "2 x rate"), ({"elbo": "iwae", "particles": 5}, "iwae with 5")]
)
def test_the_page_says_what_the_training_minimised(untrained, options, loss):
    config = Config(**{"elbo": "trace", "hidden": (4,), "latent_dim": 2, **options})
    assert loss in page.explorer_page(untrained(config, (1, 5, 4)))


@pytest.mark.parametrize("name", READY_MADE)
def test_a_ready_made_run_needs_no_data(name, tmp_path, tiny_mnist, monkeypatch, capsys):
    """The page of 500 test images that come with pvae; nothing is downloaded."""
    monkeypatch.setattr("pvae.data.sources._download", lambda *_: pytest.fail("a download"))
    assert main([name, "--out", str(tmp_path / "page.html")]) == 0
    content, tensors = unpacked((tmp_path / "page.html").read_text("utf-8"))
    run, points = Run.open(name), values(content, tensors, "points")
    images = values(content, tensors, "images", np.uint8)
    codes = encode(run.vae(), run.preparation.x(torch.tensor(images)))
    expected = codes[:, content["planes"][0]["dims"]].numpy()
    assert points.shape == (500, 2 * len(content["planes"]))
    assert np.abs(points[:200, :2] - expected).max() < 2e-3 * np.abs(expected).max()
    kept = np.load(run.path / "test-images.npz")
    places = [kept["rows"].tolist().index(int(one.removeprefix("test-"))) for one in content["image_names"]]
    padding = [(0, 0), (0, 0), *[(run.config.pad, run.config.pad)] * 2]
    assert np.array_equal(images, np.pad(kept["images"][places], padding))
    if name == "fashion-vae":  # of two latents: the images of which a VAE trains in the page
        bits = np.unpackbits(values(content, tensors, "bits", np.uint8), axis=1)
        assert np.array_equal(bits[:200], kept["images"][places].reshape(200, -1) >= 128)
        assert len(bits) == 500
    else:
        assert content["bits"] is None
    assert np.array_equal(values(content, tensors, "labels", np.float32)[:200], kept["labels"][places])
    assert any("500 of the 10,000" in note for note in content["notes"])
    refuse(main, [name, "--data-dir", tmp_path, "--offline"], capsys, tmp_path)


def test_names_are_never_markup(untrained):
    text = page.explorer_page(untrained(Config(hidden=(4,), latent_dim=2), (1, 5, 4), "</title><script>{{ content }}"))
    assert text.count("<script") == 2, "the content, and the code"
    assert "&lt;/title&gt;&lt;script&gt;{{ content }}" in text
    text = re.sub('id="content">[^<]*|http-equiv|https?://www.w3.org', "", text)  # base64 may spell any word
    assert "http" not in text.lower()
