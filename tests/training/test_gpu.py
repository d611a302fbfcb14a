"""Trainings on a GPU, where there is one: every system and estimator, recorded or not, and resumed."""

import math

import pytest
import torch

from pvae.config.config import Config
from pvae.config.presets import SYSTEMS
from pvae.data.dataset import Dataset
from pvae.elbos.base import PerDatumELBO
from pvae.training.fit import fit, resume

pytestmark = [pytest.mark.workflow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

CASES = {name: config for name, config in SYSTEMS.items() if name not in ("celeba-vae", "linear-gaussian", "values")}
for elbo in PerDatumELBO.members:
    CASES[elbo] = Config(elbo=elbo, particles=2 if elbo == "score-loo" else 1, labels=100 if elbo == "enumerate" else 0)


def check(config, data, folder):
    """The losses of an epoch with and without recorded steps agree, and a second epoch lowers them."""
    rows = []
    for engine in ("none", "graph"):
        options = {"epochs": 1, "batch_size": 100, "compile": engine, "schedule": "constant", "valid": 0.0}
        run = fit(config.replace(**options), data=data, device="cuda", out=folder / engine)
        rows.append(run.metrics()[-1])
    assert math.isfinite(rows[0].loss)
    assert rows[1].loss == pytest.approx(rows[0].loss, rel=1e-4)
    assert resume(folder / "graph", 2, data=data).metrics()[-1].loss < rows[1].loss


@pytest.mark.parametrize("name", CASES)
def test_a_training_on_a_gpu_is_the_same_recorded_and_is_resumed(digits, no_pictures, tmp_path, name):
    data = Dataset("digits", digits.train[:500], digits.test[:40], train_labels=digits.train_labels[:500])
    check(CASES[name].replace(dataset="auto"), data, tmp_path)


ROWS = {likelihood: {} for likelihood in ("normal-diagonal", "student-t", "poisson", "negative-binomial")}
ROWS["columns"] = {"columns": "real,count,binary,categorical:3"}
WITH = {
    "": {},
    "missing": {"missing": True},
    "condition": {"condition": True},
    "labels": {"labels": 40, "elbo": "enumerate"},
}


@pytest.mark.parametrize("likelihood", ROWS)
@pytest.mark.parametrize("options", WITH)
def test_a_training_on_rows_is_the_same_recorded_and_is_resumed(no_pictures, tmp_path, likelihood, options):
    """Whole numbers, so that they suit every likelihood."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (540, 1), generator=generator)
    counts = torch.poisson(2.0 + 3 * classes.expand(-1, 2), generator=generator)
    x = torch.cat([counts, torch.randint(2, (540, 1), generator=generator), classes], 1)
    if options == "missing":
        x[torch.rand(x.shape, generator=generator) < 0.2] = math.nan
    y = classes[:, 0]
    data = Dataset("rows", x[:500], x[500:], train_labels=y[:500], test_labels=y[500:])
    config = Config(likelihood=likelihood, hidden=(16,), latent_dim=2, **ROWS[likelihood], **WITH[options])
    check(config, data, tmp_path)
