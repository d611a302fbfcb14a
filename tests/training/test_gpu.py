"""Trainings on a GPU, where there is one: every system and estimator, recorded or not, and resumed."""

import math

import pytest
import torch

from pvae.config.config import Config
from pvae.config.presets import SYSTEMS
from pvae.data.dataset import Dataset
from pvae.elbos.registry import ELBO_CLASSES
from pvae.training.fit import fit, resume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

CASES = {name: config for name, config in SYSTEMS.items() if name not in ("celeba-vae", "linear-gaussian", "values")}
for elbo in ELBO_CLASSES:
    CASES[elbo] = Config(elbo=elbo, particles=2 if elbo == "score-loo" else 1, labels=100 if elbo == "enumerate" else 0)


@pytest.mark.parametrize("name", CASES)
def test_a_training_on_a_gpu_is_the_same_recorded_and_is_resumed(digits, no_pictures, tmp_path, name):
    data = Dataset("digits", digits.train[:500], digits.test[:40], train_labels=digits.train_labels[:500])
    config = CASES[name].replace(epochs=1, batch_size=100, dataset="auto", schedule="constant", valid=0.0)
    rows = []
    for engine in ("none", "graph"):
        run = fit(config.replace(compile=engine), data=data, device="cuda", out=tmp_path / engine)
        rows.append(run.metrics()[-1])
    assert math.isfinite(rows[0].loss)
    assert rows[1].loss == pytest.approx(rows[0].loss, rel=1e-4)
    assert resume(tmp_path / "graph", 2, data=data).metrics()[-1].loss < rows[1].loss
