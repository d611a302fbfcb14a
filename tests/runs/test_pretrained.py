"""The runs that come with pvae: small, found by name, and at their published figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pvae
from pvae.core.errors import InputError
from pvae.runs.run import READY_MADE, Run
from pvae.training.fit import resume
from pvae.training.setup import build_trainer

pytestmark = pytest.mark.workflow


def test_ready_made_runs_are_small_and_name_no_place():
    folder = Path(pvae.__file__).parent / "pretrained"
    assert sorted(path.name for path in folder.iterdir()) == sorted(READY_MADE)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3_000_000
    for name in READY_MADE:
        assert Run.open(name).data.folder == ""


@pytest.mark.parametrize("name", READY_MADE)
def test_a_ready_made_run_is_loaded_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae = pvae.load(name)
    assert vae.likelihood(vae.prior().sample((3,))).mean.shape == (3, *vae.p_x.datum_shape)
    assert Run.open(name).place == Path("runs") / name
    (tmp_path / name).mkdir()
    assert pvae.load(name)  # a folder of that name that is no run folder is not meant
    with pytest.raises(InputError):
        pvae.load(f"{name}-2")


@pytest.mark.parametrize(("name", "published"), [("deep-bayes", -111.13), ("fashion-vae", None)])
def test_a_ready_made_run_has_its_published_figure(name, published, data_dir):
    """The test bound of the half-precision weights is that of the training, and within 1 nat of post 004's."""
    run = Run.open(name)
    data = pvae.read(run.data.dataset, data_dir)
    trainer = build_trainer(run.config, data)
    trainer.vae.load_state_dict(run.vae().state_dict())
    recorded, elbo = run.test_metrics(), trainer.evaluate().elbo
    assert elbo == pytest.approx(recorded.elbo, abs=0.05)
    if published is not None:
        assert elbo == pytest.approx(published, abs=1.0)


@pytest.mark.parametrize("name", READY_MADE)
def test_the_test_images_beside_a_ready_made_run_are_of_its_data(name, data_dir):
    run = Run.open(name)
    data = pvae.read(run.data.dataset, data_dir)
    with np.load(run.path / "test-images.npz") as kept:
        rows = torch.tensor(kept["rows"].astype(int))
        assert len(set(rows.tolist())) == 500
        assert np.array_equal(kept["images"], data.test[rows])
        assert np.array_equal(kept["labels"], data.test_labels[rows])


def test_a_ready_made_run_cannot_be_resumed():
    with pytest.raises(InputError, match="--system deep-bayes"):
        resume("deep-bayes", 17)
