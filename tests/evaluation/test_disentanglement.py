"""Scores of disentanglement, of codes that are the factors, mix them or ignore them, and of a run."""

from __future__ import annotations

import math

import pytest
import torch

from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.evaluation.measures.disentanglement import (
    dci_of,
    importance_of,
    mutual_information_gap,
    separated_predictability,
)
from pvae.evaluation.report import evaluate, to_text
from pvae.training.fit import fit


def squares(times=1):
    """Images of a square, uint8 (N, 1, 16, 16), at all places and of all sizes: factors x, y and size, (N, 3)."""
    factors = torch.cartesian_prod(torch.arange(4), torch.arange(4), torch.arange(4))
    images = torch.zeros(len(factors), 1, 16, 16, dtype=torch.uint8)
    for image, (x, y, size) in zip(images, factors.tolist()):
        image[0, 3 * y : 3 * y + 2 + size, 3 * x : 3 * x + 2 + size] = 255
    return images.repeat(times, 1, 1, 1), factors.repeat(times, 1)


def measured(images):
    """Codes that are read off the images: the left and the upper end of the square, and its side; (N, 3)."""
    is_lit = images[:, 0] > 0
    columns = is_lit.any(1).double()
    rows = is_lit.any(2).double()
    return torch.stack([columns.argmax(1).double(), rows.argmax(1).double(), columns.sum(1)], 1)


def scores(codes, factors):
    dci = dci_of(importance_of(codes, factors, codes, factors)[0])
    found = mutual_information_gap(codes, factors).mean(), separated_predictability(codes, factors).mean(), *dci
    return [float(one) for one in found]


def test_codes_that_are_the_factors_have_scores_of_1():
    """Also in another order, sign and scale, and beside a latent without a use, which is constant."""
    images, factors = squares(times=20)
    codes = measured(images)
    assert scores(codes, factors) == pytest.approx([1, 1, 1, 1], abs=1e-9)
    others = torch.cat([-5 * codes[:, [2, 0, 1]] + 3, torch.ones(len(codes), 1)], 1)
    assert scores(others, factors) == pytest.approx([1, 1, 1, 1], abs=1e-9)
    importance, accuracy = importance_of(codes, factors, codes, factors)
    assert torch.allclose(importance, torch.eye(3).double(), atol=1e-9)
    assert accuracy.tolist() == [1, 1, 1]


def test_rotated_codes_keep_the_information_and_lose_the_scores():
    """By 45 degrees: each of two latents says as much about each of two factors, so that both gaps are 0."""
    _, factors = squares(times=20)
    factors = factors[:, :2]
    codes = factors.double() @ torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    mig, sap, disentanglement, completeness = scores(codes, factors)
    assert (mig, sap) == pytest.approx((0, 0), abs=1e-9)
    assert disentanglement < 0.2
    assert completeness < 0.2
    assert importance_of(codes, factors, codes, factors)[1].min() == 1


def test_codes_without_information_have_gaps_near_0_and_predict_by_chance():
    """Of 1,280 data the mutual information of 20 bins and 4 values is biased by 57 / 2,560 nats, a gap by less."""
    images, factors = squares(times=20)
    codes = torch.randn(len(images), 3, generator=torch.Generator().manual_seed(0)).double()
    mig, sap, disentanglement, completeness = scores(codes, factors)
    assert 0 <= mig < 57 / 2560 / math.log(4)
    assert 0 <= sap < 0.01
    assert disentanglement < 0.1
    assert completeness < 0.1
    half = torch.arange(len(codes)) < len(codes) // 2
    accuracy = importance_of(codes[half], factors[half], codes[~half], factors[~half])[1]
    assert (accuracy - 0.25).abs().max() < 4.3 * math.sqrt(0.25 * 0.75 / 640), "fails in 2e-5, for each of three"


def test_a_factor_in_two_latents_is_disentangled_and_not_complete():
    """By the definitions: a factor of two equal latents has completeness 1 - log 2 / log 3."""
    importance = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]).double()
    assert dci_of(importance) == pytest.approx((1, 1 - math.log(2) / math.log(3) / 2))
    assert dci_of(importance.T) == pytest.approx((1 - math.log(2) / math.log(3) / 2, 1))
    assert dci_of(torch.ones(3, 2)) == pytest.approx((0, 0), abs=1e-6)
    codes = torch.arange(4.0).repeat(8)[:, None].expand(-1, 2)
    twice = torch.arange(4).repeat(8)[:, None]
    assert mutual_information_gap(codes, twice).tolist() == [0]
    assert mutual_information_gap(codes[:, :1], twice).item() == pytest.approx(1)
    assert separated_predictability(codes, twice).tolist() == [0]


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_is_measured_where_its_labels_are_several_factors(tmp_path):
    images, factors = squares(times=2)
    names = ("right", "low", "large", "always")
    attributes = torch.cat([factors >= 2, torch.ones(len(factors), 1, dtype=torch.bool)], 1)
    config = Config(binarize="threshold", hidden=(16,), latent_dim=3, epochs=2, batch_size=32)
    data = Dataset("squares", images, images[:64], attributes, attributes[:64], names)
    run = fit(config, data=data, out=tmp_path / "run")
    how = {"num_particles": 2, "method": "importance"}
    report = evaluate(run, disentanglement=True, **how)
    found = report.disentanglement
    assert found.factors == ("right", "low", "large"), "one that varies"
    assert found.num_images == 64
    assert all(0 <= one <= 1 for one in (found.mig, found.sap, found.disentanglement, found.completeness))
    assert 0.5 <= found.informativeness <= 1
    assert "mutual information gap" in to_text(report)
    assert evaluate(run, **how).disentanglement is None
    classes = Dataset("squares", images, images[:64], factors[:, 0], factors[:64, 0], ("a", "b", "c", "d"))
    other = fit(config.replace(epochs=1), data=classes, out=tmp_path / "classes")
    with pytest.raises(InputError, match="factors"):
        evaluate(other, disentanglement=True, **how)
