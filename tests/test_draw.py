"""Ways through the latent space, and the command that draws them."""

from __future__ import annotations

import json

import pytest
import torch
from torch.distributions import Normal

from pvae import drawing, latentspace
from pvae.data import Dataset
from pvae.draw import PICTURES, main
from pvae.drawing import DRAWERS
from pvae.errors import InputError
from pvae.fitting import fit
from pvae.systems import get_system


@pytest.fixture(scope="module")
def data(digits):
    return Dataset(
        "few digits", digits.train[:200], digits.test[:60],
        digits.train_labels[:200], digits.test_labels[:60], digits.label_names,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A run of each kind that draws differently."""
    folder = tmp_path_factory.mktemp("runs")
    names = {"mlp-2d": {}, "conv-2d": {}, "conv-2d-ae": {}, "deep-bayes": {"binarize": "dynamic", "latent_dim": 12}}
    return {
        name: fit(get_system(name).replace(epochs=1, batch_size=50, **options), data=data, out=folder / name)
        for name, options in names.items()
    }


@pytest.fixture
def found(monkeypatch, data):
    """Let the data of every run be found."""
    monkeypatch.setattr(drawing, "load_again", lambda *_: data)


EVERY = set(PICTURES)


def test_every_picture_has_a_drawer():
    assert list(PICTURES) == list(DRAWERS)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mlp-2d", {"attributes"}),
        ("conv-2d", {"attributes"}),
        ("conv-2d-ae", {"samples", "manifold", "attributes"}),
        ("deep-bayes", {"scatter", "cdf", "manifold", "attributes"}),
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
        ([str(tmp_path)], "no run folder"),
        ([], "RUN"),
        ([str(runs["mlp-2d"].path), "--out", "/proc/no/such"], "cannot be written"),
    ]:
        assert main(arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert says in line


def test_data_given_from_python_cannot_be_found(runs, capsys):
    assert main([str(runs["mlp-2d"].path)]) == 2
    assert "given from Python" in capsys.readouterr().err


class Identity(torch.nn.Module):
    """A decoder that shows the latent itself, so that a picture says where it was drawn."""

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


def test_manifold_stands_at_the_quantiles(transparent):
    z = latents(latentspace.manifold(transparent, 4)).view(4, 4, 2)
    quantiles = Normal(0.0, 1.0).icdf(torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert torch.allclose(z[:, :, 0], quantiles.expand(4, 4), atol=1e-4), "z_1 grows to the right"
    assert torch.allclose(z[:, :, 1], quantiles.flip(0)[:, None].expand(4, 4), atol=1e-4), "z_2 grows upward"


def test_traversal_moves_one_dimension(transparent):
    values = torch.linspace(-3, 3, 5)
    z = latents(latentspace.traverse(transparent, torch.tensor([0.5, -0.25]), 1, values))
    assert torch.allclose(z, torch.stack([torch.full((5,), 0.5), values], dim=1), atol=1e-4)


def test_interpolation_ends_at_the_codes(transparent, data):
    x = data.test[:2].float() / 255
    z = latents(latentspace.interpolate(transparent, x[0], x[1], 5))
    codes = latentspace.encode(transparent, x)
    assert torch.allclose(z[[0, -1]], codes, atol=1e-4)
    assert torch.allclose(z[2], codes.mean(0), atol=1e-4)


def test_attribute_vector_is_the_difference_of_means():
    codes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    assert latentspace.attribute_vector(codes, torch.tensor([True, True, False])).tolist() == [2.0, -5.0]


def test_attributes_move_the_image(runs, tmp_path, monkeypatch, data, capsys):
    """Two attributes of the same digits: an even class, and a class of at least 5."""
    labels = [torch.stack([part % 2 == 0, part >= 5], dim=1) for part in (data.train_labels, data.test_labels)]
    known = Dataset("few digits", data.train, data.test, *labels, ("Even", "Large"))
    monkeypatch.setattr(drawing, "load_again", lambda *_: known)
    path = str(runs["mlp-2d"].path)
    assert main([path, "--what", "attributes", "--attribute", "Even", "Large", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "attributes.png").exists()
    assert main([path, "--attribute", "Evn"]) == 2
    assert "did you mean 'Even'" in capsys.readouterr().err
    assert main([path, "--what", "attributes"]) == 2
    assert "give --attribute" in capsys.readouterr().err


def test_nearest_neighbours():
    train = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0]])
    labels = torch.tensor([3, 3, 7, 7])
    test = torch.tensor([[0.05, 0.0], [5.0, 5.1], [0.0, 0.1]])
    assert latentspace.nearest_neighbour_accuracy(train, labels, test, torch.tensor([3, 7, 7]), 2) == pytest.approx(
        2 / 3
    )


def test_report_knows_the_prior():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 2.0]) + torch.tensor([0.0, 1.0])
    report = latentspace.report(codes)
    assert report.kolmogorov_smirnov[0] < 0.015
    assert report.kolmogorov_smirnov[1] > 0.2
    assert report.std[1] == pytest.approx(2, rel=0.03)
    assert report.mean[1] == pytest.approx(1, abs=0.1)


def test_an_autoencoder_has_no_samples(runs):
    with pytest.raises(NotImplementedError):
        latentspace.sample(runs["conv-2d-ae"].vae(), 3)


def test_subject_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        drawing.Subject.of(tmp_path)
