"""The published figure of document 004, on all of MNIST. Run by hand: PVAE_DATA=DIR pytest -m slow."""

from __future__ import annotations

import pytest

from pvae.config import Config
from pvae.fitting import fit


@pytest.mark.slow
@pytest.mark.parametrize("elbo", ["trace", "analytic", "handwritten"])
def test_deep_bayes_reaches_its_figure(tmp_path, data_dir, elbo):
    run = fit(Config(dataset="mnist", elbo=elbo), data_dir=data_dir, out=tmp_path / "run")
    last = run.metrics()[-1]
    assert last.split == "test"
    assert last.pseudo
    assert last.elbo == pytest.approx(-111.1, abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_files_pass_their_checksums(data_dir, name):
    from pvae.sources import load_dataset

    data = load_dataset(name, data_dir, offline=True)
    assert (len(data.train), len(data.test), data.image_shape) == (60_000, 10_000, (1, 28, 28))
