"""Measures and pictures of the latent space, the table of runs, and the command that draws them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pyro.distributions as dist
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import get_data_path
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.patches import Polygon
from matplotlib.text import Text
from torch.distributions import Normal

from pvae.cli.compare import main as compare
from pvae.cli.draw import PICTURES, main
from pvae.cli.evaluate import main as evaluate
from pvae.config.presets import get_system
from pvae.core.errors import InputError
from pvae.core.records import csv_of
from pvae.data.dataset import Dataset
from pvae.evaluation import latent_space, trained_run
from pvae.evaluation.attribute_probe import Response, balanced_accuracy, respond, train_probe
from pvae.evaluation.table import Row, groups, row_of, to_markdown
from pvae.plotting import pictures, run_figures
from pvae.plotting.run_figures import histogram_figure
from pvae.runs import data as data_module
from pvae.training.fit import fit, resume


@pytest.fixture(scope="module")
def data(digits):
    return Dataset(
        "few digits", digits.train[:200], digits.test[:60],
        digits.train_labels[:200], digits.test_labels[:60], digits.label_names,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A run of each kind that has different pictures."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"mlp-2d": {}, "conv-2d": {}, "conv-2d-ae": {}, "deep-bayes": {"binarize": "dynamic", "latent_dim": 12}}
    return {
        name: fit(get_system(name).replace(epochs=1, batch_size=50, **options), data=data, out=folder / name)
        for name, options in names.items()
    }


@pytest.fixture
def found(monkeypatch, data):
    """Let the data of every run be found."""
    monkeypatch.setattr(data_module, "load_again", lambda *_: data)


EVERY = set(PICTURES) - ({"graph"} if find_spec("graphviz") is None or which("dot") is None else set())


def test_every_picture_has_a_function():
    assert sorted(PICTURES) == sorted(pictures.__all__)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mlp-2d", {"attributes", "probe"}),
        ("conv-2d", {"attributes", "probe"}),
        ("conv-2d-ae", {"samples", "manifold", "attributes", "probe"}),
        ("deep-bayes", {"scatter", "cdf", "manifold", "attributes", "probe"}),
    ],
)
def test_one_call_draws_all_that_apply(runs, found, tmp_path, capsys, name, missing):
    assert main([str(runs[name].path), "--out", str(tmp_path / "pictures")]) == 0
    drawn = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert drawn == EVERY - missing
    report = json.loads((tmp_path / "pictures" / "latent.json").read_text())
    assert 0 <= report["accuracy"] <= 1
    assert len(report["mean"]) == len(report["kolmogorov_smirnov"]) == runs[name].config.latent_dim
    assert "nearest-neighbour accuracy" in capsys.readouterr().out


def test_bad_input_is_one_line(runs, found, capsys, tmp_path):
    for arguments, says in [
        ([str(runs["deep-bayes"].path), "--what", "manifold"], "two latent dimensions"),
        ([str(runs["conv-2d-ae"].path), "--what", "samples"], "a prior to draw from"),
        ([str(runs["mlp-2d"].path), "--what", "manifald"], "did you mean 'manifold'"),
        ([str(tmp_path)], "not a run folder"),
        ([str(tmp_path / "nowhere")], "there is nothing of that name"),
        ([str(runs["mlp-2d"].path), "--attribute", "0"], "have no attributes"),
        ([str(runs["mlp-2d"].path), "--outt", "x"], "did you mean --out?"),
        ([], "RUN"),
        ([str(runs["mlp-2d"].path), "--out", "/proc/no/such"], "cannot be written"),
    ]:
        assert main(arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert says in line
    new = tmp_path / "new"
    assert main([str(runs["mlp-2d"].path), "--what", "samples,probe", "--out", str(new)]) == 2
    assert not new.exists(), "if one picture is refused, none is written"


def test_a_damaged_run_is_refused_before_anything_is_drawn(runs, found, capsys, tmp_path):
    shutil.copytree(runs["mlp-2d"].path, tmp_path / "run")
    rows = tmp_path / "run" / "metrics.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"-", b"", 1))
    for command in (main, evaluate):
        assert command([str(tmp_path / "run"), "--out", str(tmp_path / "new")]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "metrics.jsonl is damaged" in printed.err
        assert not (tmp_path / "new").exists()


def test_links_in_a_run_are_not_written_through(runs, found, capsys, tmp_path):
    """A picture takes the place of a link; a folder that is a link is refused; --out is the user's own."""
    shutil.copytree(runs["mlp-2d"].path, tmp_path / "run")
    figures, precious, elsewhere = tmp_path / "run" / "figures", tmp_path / "precious", tmp_path / "elsewhere"
    precious.write_text("precious")
    elsewhere.mkdir()
    (figures / "samples.png").unlink()
    (figures / "samples.png").symlink_to(precious)
    (figures / "latent.json").symlink_to(precious)
    assert main([str(tmp_path / "run")]) == 0
    assert precious.read_text() == "precious"
    assert not (figures / "samples.png").is_symlink()
    shutil.rmtree(figures)
    figures.symlink_to(elsewhere)
    (tmp_path / "run" / "comparison").symlink_to(elsewhere)
    capsys.readouterr()
    for command in (main, compare):
        assert command([str(tmp_path / "run")]) == 2
        assert "is a link, which may lead anywhere" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


def test_an_interrupted_picture_leaves_the_one_before_it(runs, found, tmp_path, monkeypatch):
    path = runs["mlp-2d"].path / "figures" / "losses.png"
    before = path.read_bytes()

    def interrupted(self, file, **_):
        file.write(b"half of a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    assert main([str(runs["mlp-2d"].path), "--what", "losses"]) == 130
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [main, evaluate, compare])
def test_a_signal_ends_a_command_with_a_line(runs, capsys, monkeypatch, command, number):
    def signalled(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(trained_run.TrainedRun, "of", signalled)
    assert command([str(runs["mlp-2d"].path)]) == 128 + number
    assert (
        capsys.readouterr().err
        == f"{command.__module__.replace('.cli', '')}: interrupted; any file already written is complete\n"
    )


def test_a_signal_during_the_imports_ends_with_the_same_line():
    program = (
        "import os, signal; from pvae.cli.command import ctrl_c_exits_at_once as at_once\n"
        "with at_once('pvae.x'): os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "pvae.x: interrupted; any file already written is complete\n")


class Closed(io.StringIO):
    """A stdout whose reader has gone."""

    def write(self, _text):
        raise BrokenPipeError


def test_results_are_written_if_stdout_is_closed(runs, found, monkeypatch, tmp_path):
    run, wanted = str(runs["mlp-2d"].path), ["--what", "samples,losses", "--out", str(tmp_path / "pictures")]
    result = ["--out", str(tmp_path / "result.json"), "--importance-samples", "5", "--images", "10"]
    for command, options in ((evaluate, result), (main, wanted)):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", Closed())
            assert command([run, *options]) == 0
    assert json.loads((tmp_path / "result.json").read_text())
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"samples.png", "losses.png"}


def test_histograms_show_where_the_codes_lie(tmp_path):
    codes, draws = torch.stack([torch.randn(500), 6 + 0.1 * torch.randn(500)], 1), torch.randn(500, 2)
    figure = histogram_figure(codes, draws, None, "two")
    (low, high), (_, wide) = (axes.get_xlim() for axes in figure.axes[:2])
    assert low == pytest.approx(-4.2)
    assert high == pytest.approx(4.2)
    assert wide > 6.1


class Prior(torch.nn.Module):
    """A prior that is not N(0, 1), but one of the distributions of the tests."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self):
        return self.distribution


WIDE = dist.Normal(torch.tensor([0.0, 40.0]), torch.tensor([1.0, 3.0])).to_event(1)
POSITIVE = dist.LogNormal(torch.zeros(2), torch.ones(2)).to_event(1)
CORRELATED = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 2.7], [2.7, 9.0]]))


@pytest.mark.parametrize("prior", [WIDE, POSITIVE, CORRELATED], ids=["Normal", "LogNormal", "MultivariateNormal"])
def test_histograms_show_the_prior_of_the_vae(runs, data, prior):
    vae = runs["mlp-2d"].vae()
    vae.p_z = Prior(prior)
    trained = trained_run.TrainedRun(runs["mlp-2d"], vae, data)
    figure = pictures.histograms(trained)
    axes = figure.axes[1]
    title = " ".join(figure.get_suptitle().split())
    if prior is CORRELATED:
        assert title.endswith("over the test images, and the prior p(z), by draws")
        (outline,) = (patch for patch in axes.patches if isinstance(patch, Polygon))
        assert abs(outline.get_xy()[:, 0]).max() > 6, "two standard deviations"
    else:
        assert title.endswith("over the test images, and the prior p(z)")
        x, density = (torch.tensor(values) for values in axes.lines[0].get_data())
        assert torch.allclose(density, prior.base_dist.log_prob(x[:, None].float()).exp()[:, 1].double(), atol=1e-6)
        assert axes.get_xlim()[1] > x.median()
    assert trained.report().kolmogorov_smirnov is None
    for picture in (pictures.cdf, pictures.manifold):
        with pytest.raises(InputError, match=r"N\(0, 1\)"):
            picture(trained)


def test_histograms_of_an_autoencoder_are_beside_n_0_1(runs, data):
    for name, ends in (("mlp-2d", "the prior N(0, 1)"), ("conv-2d-ae", "N(0, 1) (an autoencoder has no prior)")):
        figure = pictures.histograms(trained_run.TrainedRun(runs[name], runs[name].vae(), data))
        assert " ".join(figure.get_suptitle().split()).endswith(f"over the test images, and {ends}")
        x, density = (torch.tensor(values) for values in figure.axes[0].lines[0].get_data())
        assert torch.allclose(density, Normal(0.0, 1.0).log_prob(x).exp(), atol=1e-6)


def test_data_given_from_python_cannot_be_found(runs, capsys):
    assert main([str(runs["mlp-2d"].path)]) == 2
    assert "images given from Python" in capsys.readouterr().err


class Identity(torch.nn.Module):
    """A decoder that returns the latent itself, so that a picture shows where it was drawn."""

    def forward(self, z):
        return z.view(*z.shape[:-1], 1, 1, 2)


@pytest.fixture
def transparent(runs):
    vae = runs["mlp-2d"].vae()
    vae.p_x.decoder = Identity()
    return vae


def latents(pixels):
    """Undo the sigmoid of the mean."""
    return torch.logit(pixels).view(-1, 2)


def test_the_manifold_is_drawn_at_the_quantiles(transparent):
    z = latents(latent_space.manifold(transparent, 4)).view(4, 4, 2)
    quantiles = Normal(0.0, 1.0).icdf(torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert torch.allclose(z[:, :, 0], quantiles.expand(4, 4), atol=1e-4), "z_1 grows to the right"
    assert torch.allclose(z[:, :, 1], quantiles.flip(0)[:, None].expand(4, 4), atol=1e-4), "z_2 grows upward"


def test_traversal_moves_one_dimension(transparent):
    values = torch.linspace(-3, 3, 5)
    z = latents(latent_space.traverse(transparent, torch.tensor([0.5, -0.25]), 1, values))
    assert torch.allclose(z, torch.stack([torch.full((5,), 0.5), values], dim=1), atol=1e-4)


def test_interpolation_ends_at_the_codes(transparent, data):
    x = data.test[:2].float() / 255
    z = latents(latent_space.interpolate(transparent, x[0], x[1], 5))
    codes = latent_space.encode(transparent, x)
    assert torch.allclose(z[[0, -1]], codes, atol=1e-4)
    assert torch.allclose(z[2], codes.mean(0), atol=1e-4)


def test_attribute_vector_is_the_difference_of_means():
    codes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    assert latent_space.attribute_vector(codes, torch.tensor([True, True, False])).tolist() == [2.0, -5.0]


@pytest.fixture
def known(monkeypatch, data):
    """Let every run's digits have two attributes: an even class, and a class of at least 5."""
    labels = [torch.stack([part % 2 == 0, part >= 5], dim=1) for part in (data.train_labels, data.test_labels)]
    known = Dataset("few digits", data.train, data.test, *labels, ("Even", "Large"))
    monkeypatch.setattr(data_module, "load_again", lambda *_: known)
    return known


def test_attributes_move_the_image(runs, tmp_path, known, capsys):
    path = str(runs["mlp-2d"].path)
    assert main([path, "--what", "attributes,probe", "--attribute", "Even", "Large", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "attributes.png").exists()
    assert "Even: log-odds" in capsys.readouterr().out
    seen = json.loads((tmp_path / "probe.json").read_text())
    assert [one["attribute"] for one in seen] == ["Even", "Large"]
    assert all(len(one["log_odds"]) == len(one["stderr"]) == 7 for one in seen)
    assert main([path, "--attribute", "Evn"]) == 2
    assert "did you mean 'Even'" in capsys.readouterr().err
    assert main([path, "--what", "attributes"]) == 2
    assert "give --attribute" in capsys.readouterr().err


def test_images_along_an_attribute_are_decoded_at_z_plus_alpha_v(runs, known, transparent):
    trained = trained_run.TrainedRun(runs["mlp-2d"], transparent, known, ("Large",))
    codes = trained.test_codes[:3]
    vector = latent_space.attribute_vector(trained.train_codes, known.train_labels[:, 1])
    for alpha, images in zip(trained_run.ALPHAS, trained.along("Large", codes), strict=True):
        assert torch.allclose(latents(images), codes + alpha * vector, atol=1e-3)


@pytest.fixture
def fonts(monkeypatch):
    """Let matplotlib have its own fonts alone, and return the list of them."""
    own = [font for font in fontManager.ttflist if Path(font.fname).is_relative_to(get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(run_figures, "_fallback_fonts", run_figures._fallback_fonts.__wrapped__)
    return own


def pictures_with(name):
    """Return figures that show a user-given name, by the place where they show it."""
    images, codes, classes = torch.zeros(2, 1, 4, 4), torch.arange(12.0).view(6, 2), torch.arange(6) % 2
    response = Response(attribute=name, alphas=(0, 1), log_odds=(0, 1), stderr=(1, 1), balanced_accuracy=0.5)
    return {
        "title": run_figures.sample_figure(images, name),
        "row": run_figures.image_figure(images, 2, "title", [name], ["image", "+1"]),
        "legend": run_figures.probe_figure([response], "title"),
        "class": run_figures.scatter_figure({"test": run_figures.Codes(codes, classes)}, [name, "other"], "title"),
        "codes": run_figures.scatter_figure({name: run_figures.Codes(codes, None)}, [], "title"),
        "band": run_figures.band_figure({name: (images, images)}, 2, "title"),
    }


def drawn(figure):
    content = io.BytesIO()
    figure.savefig(content)
    return content.getvalue()


FORMULAS = [r"$\frac{$", "$x$", r"\$", "$$", "a $1 and $2 b", "_", "_a", "%s", "{0}", "\t", "\x07", "\udcff", ""]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*FORMULAS, "고양이", "貓", "Котёнок"])
def test_any_name_is_drawn(fonts, name):
    for figure in pictures_with(name).values():
        drawn(figure)


def texts(figure):
    figure.draw_without_rendering()
    written = [text.get_text() for text in figure.findobj(Text)]
    assert not any(map(is_math_text, written))
    return [text.replace(r"\$", "$") for text in written]


@pytest.mark.parametrize("name", [r"$\frac{$", "$x$", r"a\$b", "_a", "Котёнок"])
def test_a_name_is_drawn_as_it_is(fonts, name):
    for place, figure in pictures_with(name).items():
        assert any(name in text for text in texts(figure)), place


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "rest"), [("a고양이b", "ab"), ("\udcffab", "ab"), ("貓", "")])
def test_characters_that_no_font_has_are_left_out(fonts, name, rest):
    for (place, figure), plain in zip(pictures_with(name).items(), pictures_with(rest).values()):
        assert texts(figure) == texts(plain), place


def font_of(characters, family, path):
    """Write a font in which each of some characters is a black square, and return its entry for matplotlib."""
    pen = TTGlyphPen(None)
    for move, point in [(pen.moveTo, (0, 0)), *((pen.lineTo, at) for at in [(0, 900), (900, 900), (900, 0)])]:
        move(point)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(one):04X}" for one in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(one): name for one, name in zip(characters, names[1:])})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return FontEntry(fname=str(path), name=family, weight=400)


@pytest.mark.filterwarnings("error")
def test_a_name_is_drawn_in_installed_fonts_that_have_it(fonts, tmp_path):
    without = {place: drawn(figure) for place, figure in pictures_with("a고貓").items()}
    fonts += [font_of("고양", "Squares", tmp_path / "1.ttf"), font_of("貓", "Other Squares", tmp_path / "2.ttf")]
    for place, figure in pictures_with("a고貓").items():
        assert any("a고貓" in text for text in texts(figure)), place
        assert drawn(figure) != without[place]


@pytest.mark.filterwarnings("error")
def test_an_attribute_named_like_a_formula_is_drawn(runs, tmp_path, known, monkeypatch, capsys):
    monkeypatch.setattr(data_module, "load_again", lambda *_: replace(known, label_names=("$\\frac{$", "고")))
    arguments = ["--what", "attributes,probe", "--attribute", "$\\frac{$", "고", "--out", str(tmp_path)]
    assert main([str(runs["mlp-2d"].path), *arguments]) == 0
    assert capsys.readouterr().err == ""


def test_an_attribute_that_no_image_has_is_refused(runs, data):
    none = torch.zeros(len(data.train), 1, dtype=torch.bool)
    known = Dataset("few digits", data.train, data.test, none, none[: len(data.test)], ("Bald",))
    trained = trained_run.TrainedRun(runs["mlp-2d"], runs["mlp-2d"].vae(), known, ("Bald",))
    with pytest.raises(InputError, match="with and without Bald"):
        _ = trained.responses


def stripes(num_images, seed):
    """Images of noise: with the first attribute they have a white row, with the second a white column."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 128, (num_images, 1, 8, 12), generator=generator, dtype=torch.uint8)
    labels = torch.rand(num_images, 2, generator=generator) < torch.tensor([0.5, 0.1])
    images[labels[:, 0], :, 3] = 255
    images[labels[:, 1], :, :, 5] = 255
    return images, labels


def test_the_probe_learns_attributes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        probe = train_probe(*stripes(600, 0), num_epochs=100)
    images, labels = stripes(400, 1)
    assert balanced_accuracy(probe, images, labels).min() > 0.95
    assert balanced_accuracy(probe, images, ~labels).max() < 0.05
    pixels = images.float() / 255
    fading = pixels.clone()
    fading[:, :, 3] = 1.0
    mean, stderr = respond(probe, [pixels[~labels[:, 0]], fading[~labels[:, 0]]], 0)
    assert mean[0] < 0 < mean[1]
    assert min(stderr) > 0


def test_a_response_reports_whether_it_is_monotone():
    def response(*log_odds):
        return Response(attribute="A", alphas=(-1, 0, 1), log_odds=log_odds, stderr=(0, 0, 0), balanced_accuracy=1.0)

    assert "rising at every step" in str(response(-1.0, 0.0, 0.5))
    assert "NOT rising" in str(response(-1.0, 0.6, 0.5))
    assert not response(-1.0, 0.5, 0.5).is_monotone


def test_nearest_neighbours():
    train = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0]])
    labels = torch.tensor([3, 3, 7, 7])
    test = torch.tensor([[0.05, 0.0], [5.0, 5.1], [0.0, 0.1]])
    assert latent_space.nearest_neighbour_accuracy(train, labels, test, torch.tensor([3, 7, 7]), 2) == pytest.approx(
        2 / 3
    )


def test_the_report_compares_codes_with_the_prior():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 2.0]) + torch.tensor([0.0, 1.0])
    report = latent_space.report(codes)
    assert report.kolmogorov_smirnov[0] < 0.015
    assert report.kolmogorov_smirnov[1] > 0.2
    assert report.std[1] == pytest.approx(2, rel=0.03)
    assert report.mean[1] == pytest.approx(1, abs=0.1)


def test_an_autoencoder_has_no_samples(runs):
    with pytest.raises(NotImplementedError):
        latent_space.sample(runs["conv-2d-ae"].vae(), 3)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        trained_run.TrainedRun.of(tmp_path)


def test_a_folder_of_runs_is_a_sheet_and_a_table(runs, found, tmp_path, capsys):
    out = tmp_path / "sheets"
    folder = runs["mlp-2d"].path.parent
    assert main([str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"table.csv", "table.md", "sheet.png", "codes-few-digits.png"}
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len({row["configuration"] for row in rows}) == 4
    assert [row["system"].split()[0] for row in rows] == ["deep-bayes", "mlp-2d", "conv-2d", "conv-2d-ae"]
    for row in rows:
        last = runs[row["run"]].metrics()[-1]
        assert (float(row["elbo"]) if row["elbo"] else None) == last.elbo
        assert float(row["distortion"]) == last.distortion
    assert (out / "table.md").read_text() in said
    assert f" on few digits, epoch 1: {runs['mlp-2d'].metrics()[-1]}\n" in said
    assert not list(folder.glob("*.png")), "only in the given folder"


def test_a_copy_of_a_run_is_left_out(runs, data, found, tmp_path, capsys):
    for name in ("a", "b", "further"):
        shutil.copytree(runs["mlp-2d"].path, tmp_path / name)
    resume(tmp_path / "further", 2, data=data)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == "pvae.draw: b is left out: it has the same configuration and seed as a, which is kept\n"
    assert "| 1 | 1 |" in printed.out
    assert "| 1 | 2 |" in printed.out


def test_seeds_are_counted_once_and_an_unfinished_run_is_marked(data, found, tmp_path, capsys):
    config = get_system("mlp-2d").replace(epochs=1, batch_size=50, hidden=(8,))
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        run = fit(config.replace(seed=seed), data=data, out=tmp_path / name)
    run.config = run.config.replace(epochs=3)
    checkpoint = run.read_checkpoint()
    run.begin_session(checkpoint.counts, checkpoint.rows, "cpu")
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == "pvae.draw: b is left out: it has the same configuration and seed as a, which is kept\n"
    assert "on few digits, epoch 1 of 3: test" in printed.out
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| mlp-2d")]
    assert ["| 2 | 1 |" in lines[0], "| 1 | 1 of 3 |" in lines[1], len(lines)] == [True, True, 2]


def test_a_run_that_cannot_be_read_is_left_out(runs, found, tmp_path, capsys):
    shutil.copytree(runs["mlp-2d"].path, tmp_path / "whole")
    shutil.copytree(runs["mlp-2d"].path, tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    assert main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("pvae.draw: damaged is left out: ")
    assert captured.err.count("\n") == 1
    assert (tmp_path / "table.csv").read_text().count("\n") == 2
    shutil.rmtree(tmp_path / "whole")
    assert main([str(tmp_path)]) == 2
    assert "none of the 1 runs" in capsys.readouterr().err
    assert main([str(tmp_path), "--what", "scatter"]) == 2
    assert "single run" in capsys.readouterr().err


def row(**changes):
    figures = dict.fromkeys(("distortion", "rate", "posterior_mean_loss", "kolmogorov_smirnov"), 1.0)
    spread = {"mean_least": -0.5, "mean_greatest": 0.5, "std_least": 0.9, "std_greatest": 1.1}
    what = {
        "run": "a",
        "configuration": "1",
        "system": "mlp-2d",
        "estimator": "trace",
        "data": "MNIST",
        "seed": 0,
        "epochs": 3,
        "planned_epochs": 3,
        "chosen_epoch": 3,
    }
    rest = {"pseudo": True, "elbo": -100.0, "elbo_stderr": 0.25, "accuracy": None, "seconds_per_epoch": 2.0}
    return Row(**{**figures, **spread, **what, **rest, **changes})


def test_the_table_is_over_seeds():
    rows = [row(), row(run="b", seed=1, elbo=-102.0, std_greatest=1.5), row(run="c", configuration="2")]
    assert [[one.run for one in group] for group in groups(rows)] == [["a", "b"], ["c"]]
    lines = to_markdown(rows).splitlines()
    assert "| 2 | 3 | -101.00 +- 1.41 (pseudo) |" in lines[2]
    assert "| 0.90 to 1.50 |" in lines[2]
    assert "| 1 | 3 | -100.00 +- 0.25 (pseudo) |" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert [line["run"] for line in csv.DictReader(csv_of(rows).splitlines())] == ["a", "b", "c"]
    none = to_markdown([row(elbo=None, elbo_stderr=None)]).splitlines()[2]
    assert "| 1 | 3 | - | 1.00 |" in none


def test_own_systems_are_distinguished_by_their_configuration(tmp_path, data):
    """One name, two sizes: runs of one group differ only in their seed."""
    config = get_system("mlp-2d").replace(system="mine", epochs=1, batch_size=50)
    runs = [
        fit(config.replace(**options), data=data, out=tmp_path / str(index))
        for index, options in enumerate([{}, {"latent_dim": 3}, {"seed": 1}])
    ]
    codes = latent_space.report(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    rows = [row_of(run, codes) for run in runs]
    assert [[one.run for one in group] for group in groups(rows)] == [["0", "2"], ["1"]]


def test_two_stochastic_layers_are_not_drawn_as_a_plane(tmp_path, data, monkeypatch):
    config = get_system("iwae-2layer").replace(latent_dim=2, second_latent_dim=3, epochs=1, schedule="constant")
    run = fit(config, data=data, out=tmp_path / "run")
    monkeypatch.setattr(data_module, "load_again", lambda *_: data)
    assert main([str(run.path), "--out", str(tmp_path / "pictures")]) == 0
    drawn = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert drawn == EVERY - {"scatter", "cdf", "manifold", "attributes", "probe"}
    report = json.loads((tmp_path / "pictures" / "latent.json").read_text())
    assert len(report["mean"]) == 3, "the second layer, whose prior is N(0, 1)"
