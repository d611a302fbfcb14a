"""The commands encode, score, sample and export: what they write, what they refuse, and what they leave alone."""

from __future__ import annotations

import csv
import os
import shutil

import numpy as np
import pandas
import pytest
import torch
from helpers.commands import contents, refuse
from PIL import Image

import pvae
from pvae.cli.data import encode, sample, score
from pvae.cli.export import export
from pvae.cli.train import main as train
from pvae.core.random_state import seeded
from pvae.runs.run import Run
from pvae.trained import latent_space
from pvae.trained.given import given_data
from pvae.trained.latent_space import encode_images
from pvae.trained.scores import score_images, with_likelihood
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
HEIGHT, WIDTH = 9, 7


def draw_tree(folder, count, size=(WIDTH, HEIGHT), seed=0):
    """Grey images in two sub-folders."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        place = folder / ("odd", "even")[index % 2 == 0]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size[::-1], dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def base(made_once):
    """A folder with a run of the system "images", and its cache of images."""

    def make(base):
        draw_tree(base / "tree", 40)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
            patch.setattr("pvae.plotting.pictures.save_figures", lambda run, *_: run.figures())
            options = ["--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--quiet"]
            assert train(["--dataset", f"folder:{base / 'tree'}", *options, "--out", str(base / "run")]) == 0

    return made_once("images", make)


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    """A copy of the run folder, in an empty working folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(base / "run", tmp_path / "run")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_codes_are_read_back(run, base, tmp_path):
    """From both formats: the means and scales of `encode_images`, by names relative to the folder."""
    for name in ("codes.csv", "codes.npz"):
        assert encode([str(run), str(base / "tree"), "--out", name]) == 0
    opened = Run.open(run)
    given = given_data(opened, base / "tree")
    codes = encode_images(opened.vae(), given.batch(opened.preparation))
    assert len(given.names) == 40
    assert given.names[0] == os.path.join("even", "00.png")  # noqa: PTH118  as the system writes it
    with np.load("codes.npz") as arrays:
        assert arrays["names"].tolist() == given.names
        assert np.array_equal(arrays["loc"], codes.loc.numpy())
        assert np.array_equal(arrays["scale"], codes.scale.numpy())
    rows = rows_of(tmp_path / "codes.csv")
    assert list(rows[0]) == ["name", "label", "loc_1", "loc_2", "scale_1", "scale_2"]
    assert [row["name"] for row in rows] == given.names
    assert [float(row["scale_2"]) for row in rows] == codes.scale[:, 1].tolist()


def test_draws_of_codes_depend_on_the_seed(run, tmp_path):
    arrays = []
    for seed in (1, 1, 2):
        assert encode([str(run), "--draws", "--seed", str(seed)]) == 0
        with np.load(run / "codes.npz") as found:
            assert sorted(found) == ["labels", "names", "z"]
            assert found["names"].tolist() == list(Run.open(run).dataset().test_names), "paths of the files"
            arrays.append(found["z"])
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])
    assert encode([str(run), "--draws", "--out", "codes.csv"]) == 0
    assert list(rows_of(tmp_path / "codes.csv")[0]) == ["name", "label", "z_1", "z_2"]


def test_scores_are_read_back(run, base, capsys):
    assert score([str(run), "--importance-samples", "5", str(base / "tree")]) == 0
    given = given_data(Run.open(run), base / "tree")
    vae, pixels, _ = with_likelihood(Run.open(run), given.x)
    with seeded(0, CPU):
        scores = score_images(vae, pixels, given.names, 5)
    written = pandas.read_csv(run / "scores" / "scores.csv", index_col="name")
    assert [*written.index] == list(given.names), "in the order of the data"
    read, made = (one.drop(columns="method").astype(float) for one in (written, scores))
    assert np.allclose(read, made, rtol=1e-7)
    with Image.open(run / "scores" / "oddest.png") as sheet:
        assert min(sheet.size) > 200
    said = capsys.readouterr().out
    in_order = scores.sort_values("log_p").index
    assert [name in said for name in in_order[:11]] == [True] * 10 + [False], "the ten least likely are printed"


def test_a_broken_file_is_named_or_left_out(run, tmp_path, capsys):
    draw_tree(tmp_path / "some", 3)
    (tmp_path / "some" / "broken.png").write_bytes(b"\x89PNG but no more")
    before = contents(tmp_path / "some")
    for command in (encode, score):
        assert "broken.png" in refuse(command, [run, "some"], capsys, tmp_path)
    assert encode([str(run), "some", "--skip-broken"]) == 0
    with np.load(run / "codes.npz") as arrays:
        assert len(arrays["names"]) == 3
    assert contents(tmp_path / "some") == before


def test_samples_are_images_of_the_vae(run, tmp_path):
    pixels = {}
    for name, options in (("means", []), ("again", []), ("draws", ["--draws"]), ("other", ["--seed", "1"])):
        assert sample([str(run), "-n", "3", "--out", name, *options]) == 0
        found = sorted(path.name for path in (tmp_path / name).iterdir())
        assert found == ["sample-0001.png", "sample-0002.png", "sample-0003.png", "samples.png"]
        pixels[name] = [np.asarray(Image.open(tmp_path / name / one)).tolist() for one in found[:3]]
    assert pixels["means"] == pixels["again"]
    assert pixels["means"] != pixels["draws"]
    assert pixels["means"] != pixels["other"]
    with seeded(0, CPU):
        images = latent_space.sample(pvae.load(run), 3)
    assert pixels["means"] == images.mul(255).round().to(torch.uint8)[:, 0].tolist()


def test_runs_of_python_say_what_to_do(tmp_path, few_digits, small_config, no_pictures, capsys):
    """A VAE built in Python is built there again; images given from Python are no test images of a command."""
    config = small_config.replace(epochs=1)
    with seeded(0, CPU):
        own = pvae.build_vae(config, few_digits.datum_shape)
    fit(config, data=few_digits, out=tmp_path / "images")
    fit(config, vae=own, data=few_digits, out=tmp_path / "own")
    draw_tree(tmp_path / "tree", 3, (28, 28))
    for command in (encode, score):
        assert "Python" in refuse(command, [tmp_path / "images"], capsys, tmp_path)
        line = refuse(command, [tmp_path / "own", tmp_path / "tree"], capsys, tmp_path)
        assert "vae=vae" in line
    for command in (sample, export):
        assert "vae=vae" in refuse(command, [tmp_path / "own"], capsys, tmp_path)
