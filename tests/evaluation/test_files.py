"""The bits of images as files, and the sentence that a training of images ends with."""

from __future__ import annotations

import math

import pytest
import torch

from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.evaluation.measures.files import LosslessFiles, bits_as
from pvae.evaluation.report import evaluate, what_was_learned
from pvae.training.fit import fit


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("colours", [1, 3])
def test_noise_needs_all_bits_and_constant_images_nearly_none(form, colours):
    levels = torch.randint(256, (4, colours, 64, 64), generator=torch.Generator().manual_seed(0))
    assert bits_as(levels / 255, form).mean == pytest.approx(8, abs=0.15)
    assert bits_as(torch.full((2, colours, 64, 64), 0.2 * 5), form).mean < 0.05


def test_images_of_two_values_need_about_a_bit():
    bits = torch.randint(2, (3, 1, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    assert 1 < bits_as(bits, "PNG").mean < 1.2, "a byte for each row names its filter"
    assert 1 < bits_as(bits, "WEBP").mean < 1.3


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_training_says_that_png_describes_its_images_better(tmp_path):
    """Of smooth images after an epoch; the bits are those of the ELBO of all test images."""
    ramp = torch.linspace(0, 200, 16)[:, None] + torch.linspace(0, 50, 16)
    images = (ramp + torch.randint(5, (120, 1, 1, 1), generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    config = Config(likelihood="discretized-logistic", scale=0.05, hidden=(8,), latent_dim=2, epochs=1)
    run = fit(config, data=Dataset("ramps", images[:100], images[100:]), out=tmp_path / "run")
    report = evaluate(run, num_particles=2)
    files = report.files
    assert isinstance(files, LosslessFiles)
    assert files.bits == pytest.approx(-report.elbo_parts.elbo.mean / 256 / math.log(2), rel=1e-5)
    assert files.bits > files.png.mean
    assert f"{files.bits - files.png.mean:.2f} bits per dimension more than PNG" in "".join(what_was_learned(run))
    (warning,) = files.warnings()
    assert "PNG" in warning
