"""Measures and pictures of the latent space, the table of runs, and the command that draws them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from helpers.commands import refuse
from matplotlib.figure import Figure
from matplotlib.text import Text

from pvae.cli.command import write
from pvae.cli.draw import PICTURES, main
from pvae.cli.evaluate import main as evaluate
from pvae.config.presets import get_system
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.plotting import figures, pictures
from pvae.plotting.figures import ScatterData
from pvae.plotting.gallery import rate_distortion_figure
from pvae.runs import writer
from pvae.runs.metrics import Metrics
from pvae.runs.run import Run
from pvae.trained import codes, latent_space
from pvae.training.fit import fit, resume

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def data(digits):
    return Dataset(
        "few digits", digits.train[:200], digits.test[:60],
        digits.train_labels[:200], digits.test_labels[:60], digits.label_names,
    )  # fmt: skip


def opened(path, data):
    run = Run.open(path)
    run.dataset(data)
    return run


KINDS = {
    "mlp-2d": {},
    "conv-2d": {"hidden": (4, 4)},
    "conv-2d-ae": {"hidden": (4, 4)},
    "deep-bayes": {"binarize": "dynamic", "latent_dim": 12, "hidden": (16,)},
}


@pytest.fixture
def runs(made_once, data):
    """Open a run of each kind that has different pictures, which are trained once for all workers."""

    def train(out):
        for name, options in KINDS.items():
            fit(get_system(name).replace(epochs=1, batch_size=50, **options), data=data, out=out / name)

    folder = made_once("draw", train)
    return {name: opened(folder / name, data) for name in KINDS}


@pytest.fixture
def found(monkeypatch, data):
    """Let the data of every run be found."""
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: data)


EVERY = set(PICTURES)


def said(figure):
    """The title of a figure, and the lines below it."""
    return "\n".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mlp-2d", {"attributes"}),
        ("conv-2d", {"attributes"}),
        ("conv-2d-ae", {"samples", "manifold", "attributes"}),
        ("deep-bayes", {"scatter", "manifold", "attributes"}),
    ],
)
def test_one_call_draws_all_that_apply(runs, found, tmp_path, capsys, name, missing):
    assert main([str(runs[name].path), "--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == EVERY - missing
    report = json.loads((tmp_path / "latent.json").read_text())
    assert 0 <= report["accuracy"] <= 1
    assert len(report["mean"]) == len(report["kolmogorov_smirnov"]) == runs[name].config.latent_dim
    assert "nearest-neighbour accuracy" in capsys.readouterr().out


def test_what_needs_the_weights_alone_is_drawn_without_data(tiny_mnist, tmp_path, capsys):
    """All of it by default; another picture is refused in one line."""
    out = tmp_path / "one"
    assert main(["fashion-vae", "--what", "manifold,samples", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"manifold.png", "samples.png"}
    assert capsys.readouterr().err == ""
    refuse(main, ["fashion-vae", "--what", "manifold,scatter", "--offline"], capsys, tmp_path)
    for name, drawn in (("fashion-vae", {"manifold", "samples", "losses"}), ("deep-bayes", {"samples", "losses"})):
        assert main([name, "--offline", "--out", str(tmp_path / name)]) == 0
        assert {path.stem for path in (tmp_path / name).iterdir()} == drawn
        assert "note" in capsys.readouterr().err


def test_bad_input_is_one_line(runs, found, capsys, tmp_path):
    plane = str(runs["mlp-2d"].path)
    for arguments, says in [
        ([str(runs["deep-bayes"].path), "--what", "manifold"], "two latent dimensions"),
        ([str(runs["conv-2d-ae"].path), "--what", "samples"], "prior"),
        ([plane, "--what", "manifald"], "'manifold'"),
        ([str(tmp_path / "nowhere")], "nowhere"),
        ([plane, "--attribute", "0"], "attributes"),
        ([plane, "--outt", "x"], "--out"),
        ([], "RUN"),
        ([plane, "--what", "samples,attributes", "--out", tmp_path / "new"], "attribute"),
    ]:
        assert says in refuse(main, arguments, capsys, tmp_path)


def test_an_interrupted_picture_leaves_the_one_before_it(runs, found, tmp_path, monkeypatch):
    path = runs["mlp-2d"].path / "figures" / "losses.png"
    before = path.read_bytes()

    def interrupted(self, file, **_):
        file.write(b"half of a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    assert main([str(runs["mlp-2d"].path), "--what", "losses"]) == 130
    assert path.read_bytes() == before


def printed_sizes(figure):
    """The sizes of the texts of a figure without its title, in points where it fills a column of 88 mm."""
    figures.without_title(figure)
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return {text.get_fontsize() * 88 / 25.4 / figure.get_figwidth() for text in texts}


def test_texts_can_be_read_and_stay_inside_where_a_picture_fills_a_column(runs):
    for name, run in runs.items():
        for picture in EVERY - {"attributes"}:
            try:
                figure = getattr(pictures, picture)(run)
            except InputError:
                continue
            sizes = printed_sizes(figure)
            assert min(sizes, default=5) >= 5, (name, picture)
            box = figure.get_tightbbox()
            width, height = figure.get_size_inches()
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.03, (name, picture)


def metric(epoch, split, loss, rate):
    options = {"elbo": -loss, "elbo_stderr": 1.0, "distortion": loss - rate, "seconds": 1.0, "pseudo": False}
    return Metrics(epoch=epoch, split=split, loss=loss, rate=rate, **options)


def test_losses_show_all_but_early_extremes_which_they_name():
    """The axis of the loss has the range of the later epochs, and the one of the rate all values."""
    rows = [metric(epoch, split, 100 - epoch, 5.0 + epoch) for epoch in range(1, 11) for split in ("train", "test")]
    rows[0] = metric(1, "train", 900, 6.0)
    loss, rate = figures.loss_figure(rows, "title").axes
    low, high = loss.get_ylim()
    assert 85 < low < 90 < 99 < high < 105
    assert loss.get_title(loc="right").splitlines() == ["1 beyond the axis:", "train 900 at epoch 1"]
    assert rate.get_title(loc="right") == ""
    assert rate.get_ylim()[0] < 6 < 15 < rate.get_ylim()[1]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "test"], "no validation data"
    assert len(figures.loss_figure([metric(1, "test", 9, 0)], "title").axes) == 1, "an autoencoder has no rate"


def test_latents_are_sorted_by_rate_and_ten_are_drawn(runs, monkeypatch):
    run = runs["deep-bayes"]
    rates = (0.1, 0.0, 3.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 0.02)
    monkeypatch.setattr(pictures, "latents_used", lambda *_: SimpleNamespace(rates=rates))
    names = [f"{figures.indexed(f'z_{1 + d}')}: {rates[d]:.2f}" for d in (2, 10, 9, 8, 7, 6, 5, 4, 3, 0)]
    histograms, traversal = pictures.histograms(run), pictures.traversal(run)
    assert [axes.get_title() for axes in histograms.axes] == names
    assert [label.get_text().splitlines()[0] for label in traversal.axes[0].get_yticklabels()] == names
    drawn = codes.test_draws(run)[:, 2]
    bars = histograms.axes[0].patches[:-1]
    assert bars[0].get_x() == pytest.approx(drawn.min().item(), rel=1e-4), "the bars are of the latent that is named"


def test_a_manifold_has_its_z_at_its_cells(runs):
    (axes,) = pictures.manifold(runs["mlp-2d"]).axes
    shown = axes.get_images()[0].get_array()
    assert shown.shape == (291, 291), "ten cells of 28 pixels and the lines between them"
    places = axes.get_xticklabels(), axes.get_yticklabels()
    right, up = ([float(label.get_text()) for label in labels] for labels in places)
    assert right == up[::-1]
    assert right == pytest.approx(dist.Normal(0.0, 1.0).icdf((torch.arange(10) + 0.5) / 10).tolist(), abs=0.005)
    decoded = latent_space.decode(runs["mlp-2d"].vae(), torch.tensor([[right[9], up[0]]]))[0, 0]
    assert torch.allclose(torch.as_tensor(shown[1:29, 262:290]), decoded, atol=0.01), "the corner at the upper right"


def test_pictures_of_several_layers_name_them_and_move_where_codes_lie(data, found, tmp_path):
    config = get_system("deep-bayes").replace(epochs=1, batch_size=50, hidden=(16,), latent_dim=2)
    config = config.replace(upper_latent_dims=(3,), upper_hidden=(8,), inference="top-down")
    run = fit(config, data=data, out=tmp_path / "run")
    (axes,) = pictures.traversal(run).axes
    names, ends = zip(*(label.get_text().splitlines() for label in axes.get_yticklabels()))
    assert sorted(names) == ["z1₁", "z1₂", "z2₁", "z2₂", "z2₃"]
    mean, spread = codes.codes_of(run, "test").mean(0), codes.codes_of(run, "test").std(0)
    for name, text in zip(names, ends):
        d = sorted(names).index(name)
        assert text == " to ".join(f"{mean[d] + steps * spread[d]:+.1f}" for steps in (-3, 3))
    assert main([str(run.path), "--out", str(tmp_path / "pictures")]) == 0
    drawn = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert drawn == EVERY - {"scatter", "manifold", "attributes"}, "two layers are no plane"


@pytest.fixture
def known(monkeypatch, data):
    """Let every run's digits have two attributes: an even class, and a class of at least 5."""
    labels = [torch.stack([part % 2 == 0, part >= 5], dim=1) for part in (data.train_labels, data.test_labels)]
    known = Dataset("few digits", data.train, data.test, *labels, ("Even", "Large"))
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: known)
    return known


def test_attributes_move_the_image(runs, tmp_path, known, capsys):
    path = str(runs["mlp-2d"].path)
    assert main([path, "--what", "attributes", "--attribute", "Even", "Large", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "attributes.png").exists()
    for wrong, says in ((["--attribute", "Evn"], "'Even'"), (["--what", "attributes"], "--attribute")):
        assert main([path, *wrong]) == 2
        assert says in capsys.readouterr().err


def test_images_along_an_attribute_are_decoded_at_z_plus_alpha_v(runs, known, monkeypatch):
    run, shown = opened(runs["mlp-2d"].path, known), []
    monkeypatch.setattr(latent_space, "decode", lambda _, z, *y: shown.append(z) or torch.zeros(len(z), 1, 28, 28))
    pictures.attributes(run, ["Large"])
    vector = latent_space.attribute_vector(codes.codes_of(run, "train"), known.train_labels[:, 1])
    start = codes.codes_of(run, "test")[(~known.test_labels[:, 1]).nonzero()[0, 0]]
    assert torch.allclose(shown[0], start + torch.arange(-3.0, 4.0)[:, None] * vector)
    no_image = torch.zeros(len(known.train), 1, dtype=torch.bool)
    bald = Dataset("few digits", known.train, known.test, no_image, no_image[:60], ("Bald",))
    with pytest.raises(InputError, match="Bald"):
        pictures.attributes(opened(run.path, bald), ["Bald"])


def pictures_with(name):
    """Return figures that show a user-given name, by the place where they show it."""
    images, codes, classes = torch.zeros(2, 1, 4, 4), torch.arange(12.0).view(6, 2), torch.arange(6) % 2
    return {
        "title": figures.image_figure(images, 8, name),
        "class": figures.scatter_figure({"test": ScatterData(codes, classes)}, [name, "other"], "title"),
        "codes": figures.scatter_figure({name: ScatterData(codes)}, [], "title"),
        "band": figures.band_figure({name: (images, images)}, 2, "title"),
        "image": figures.named_images_figure({"row": [(name, images[0])]}, "title"),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "written"),
    [
        *((name, name) for name in (r"$\frac{$", "$x$", "_a", "Котёнок", "", "a고양이b")),
        ("\udcffab", "?ab"),
        ("z_12", "z_12"),
    ],
)
def test_any_name_is_drawn_as_it_is(name, written):
    """Of a character that the font of the figures lacks nothing is said; of what is none, a question mark is drawn."""
    for place, figure in pictures_with(name).items():
        figure.savefig(io.BytesIO())
        texts = figure.findobj(Text)
        assert any(written in text.get_text() for text in texts), place
        assert not any(text.get_parse_math() for text in texts), place


def test_names_of_latents_have_an_index():
    assert [*map(figures.indexed, ["z_12: 0.50", "z1_3", "z"])] == ["z₁₂: 0.50", "z1₃", "z"]
    axes = figures.scatter_figure({"test": ScatterData(torch.zeros(3, 2))}, [], "title").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z₁", "z₂")


def test_text_of_a_vector_picture_stays_text(tmp_path):
    write(tmp_path / "one.svg", figures.image_figure(torch.zeros(2, 1, 4, 4), 2, "two images"))
    assert "two images</text>" in (tmp_path / "one.svg").read_text()


def test_a_folder_of_runs_is_a_sheet_and_a_table(runs, found, tmp_path, capsys):
    out = tmp_path / "sheets"
    folder = runs["mlp-2d"].path.parent
    assert main([str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"table.csv", "table.md", "sheet.png", "codes-few-digits.png"}
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len({row["configuration"] for row in rows}) == 4
    assert [row["system"].split()[0] for row in rows] == sorted(KINDS)
    for row in rows:
        last = runs[row["run"]].metrics()[-1]
        assert (float(row["elbo"]) if row["elbo"] else None) == last.elbo
        assert float(row["distortion"]) == last.distortion
    assert (out / "table.md").read_text() in said
    assert not list(folder.glob("*.png")), "only in the given folder"


def test_the_table_has_the_log_likelihood_of_an_evaluation_of_all_test_images(runs, data, found, tmp_path):
    run = shutil.copytree(runs["mlp-2d"].path, tmp_path / "run")

    def row():
        assert main([str(tmp_path)]) == 0
        return next(csv.DictReader((tmp_path / "figures" / "table.csv").open()))

    for few in (["--images", "20"], []):
        assert evaluate([str(run), "--importance-samples", "7", "--compile", "none", *few]) == 0
        estimate = json.loads((run / "evaluation.json").read_text())["log_likelihood"]["estimate"]
        values = ["", "", ""] if few else [str(estimate["mean"]), str(estimate["stderr"]), "7"]
        assert [*map(row().get, ("log_likelihood", "log_likelihood_stderr", "importance_samples"))] == values
    resume(run, 2, data=data)  # evaluated before its last epoch
    assert row()["log_likelihood"] == ""


def test_seeds_are_counted_once_and_an_unfinished_run_is_marked(data, found, no_pictures, tmp_path, capsys):
    """Runs of one configuration are one row, whatever the name of their system; what cannot be read is left out."""
    config = get_system("mlp-2d").replace(system="mine", epochs=1, batch_size=50, hidden=(8,))
    for name, options in {"a": {}, "b": {}, "c": {"seed": 1}, "damaged": {}, "d": {"latent_dim": 3}}.items():
        run = fit(config.replace(**options), data=data, out=tmp_path / name)
    run.config = run.config.replace(epochs=3)
    writer.begin(run, run.metrics(), run.read_checkpoint(), {"device": "cpu"})
    (tmp_path / "damaged" / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    assert main([str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "b is left out" in error
    assert "damaged is left out" in error
    lines = [line for line in (tmp_path / "figures" / "table.md").read_text().splitlines() if line.startswith("| mine")]
    assert sorted([cell.strip() for cell in line.split("|")[4:6]] for line in lines) == [["1", "1 of 3"], ["2", "1"]]


def table_of(rows):
    keys = ("beta", "rate", "distortion", "elbo", "elbo_stderr")
    return pd.DataFrame([dict(zip(keys, (beta, r, d, -r - d, 1.5))) for beta, r, d in rows])


def test_the_rate_distortion_curve_has_means_and_errors_and_the_line_of_the_best_elbo():
    rows = [(0.5, 10.0, 90.0), (0.5, 12.0, 92.0), (4.0, 3.0, 97.0)]
    (axes,) = rate_distortion_figure(table_of(rows), "title").axes
    curve, line = axes.get_lines()[0], axes.get_lines()[-1]
    assert np.allclose(curve.get_xydata(), [(11, 91), (3, 97)])
    assert np.allclose(line.get_xydata().sum(1), 100), "the mean of beta 4, whose ELBO is -100, and not -102"
    (bars,) = axes.containers
    ends = bars[2][0].get_segments()[0][:, 0]
    assert np.allclose(ends, (10, 12)), "the standard error of 10 and 12, which is 1, to each side of their mean"
