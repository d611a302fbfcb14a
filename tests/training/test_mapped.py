"""Trainings on an iterable of batches, and on what people hold."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pandas
import pytest
import torch
from helpers.runs import assert_same, assert_same_rows
from torch.utils.data import DataLoader, TensorDataset

import pvae
from pvae.core.errors import InputError
from pvae.data import batches

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

CONFIG = pvae.Config(
    system="values", likelihood="normal-diagonal", hidden=(8,), latent_dim=2, batch_size=32, valid=0.1, source="",
    prior="standard-normal", epochs=4, compile="graph",
)  # fmt: skip


def linear(count=1000):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=draw) @ torch.randn(2, 5, generator=draw)
    return x + 0.3 * torch.randn(count, 5, generator=draw)


def loader():
    return DataLoader(TensorDataset(linear()), batch_size=16, shuffle=True)


def test_a_resumed_training_on_a_loader_that_shuffles_is_the_uninterrupted_one(tmp_path):
    before = torch.get_rng_state()
    whole = pvae.fit(CONFIG, data=loader(), out=tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before)
    assert whole.data.num_train + whole.data.num_valid + whole.data.num_test == 1000
    part = pvae.fit(CONFIG.replace(epochs=2), data=loader(), out=tmp_path / "part")
    with pytest.raises(InputError, match="data="):
        pvae.resume(part.path, 4)
    with pytest.raises(InputError, match="other data"):
        pvae.resume(part.path, 4, data=[linear() + 1])
    part = pvae.resume(part.path, 4, data=loader())
    assert_same(part.read_checkpoint().vae, whole.read_checkpoint().vae)
    assert_same_rows(part.metrics(), whole.metrics())


@pytest.fixture
def table(tmp_path):
    pytest.importorskip("pyarrow")
    x = linear(2000)
    frame = pandas.DataFrame(x.numpy().round(2), columns=list("abcde"))
    frame["kind"] = np.where(x[:, 0] > 0, "up", "down")
    frame["day"] = pandas.date_range("2024-01-01", periods=2000)
    frame.to_parquet(tmp_path / "table.parquet", row_group_size=90)
    return tmp_path / "table.parquet"


def test_a_table_larger_than_memory_is_read_in_parts_and_gives_the_same_columns(table, tmp_path, monkeypatch):
    whole = pvae.read(f"table:{table}", rules="none")
    monkeypatch.setattr(batches, "total_memory", lambda: 1e5)
    monkeypatch.setattr(batches, "_ROWS", 128)
    data = pvae.read(f"table:{table}")
    assert data.is_in_parts
    assert [(one.name, one.categories, one.unit) for one in data.columns] == [
        (one.name, one.categories, one.unit) for one in whole.columns
    ]
    config = pvae.values_config(
        data, dataset=f"table:{table}", epochs=2, passes=1, compile="graph", prior="standard-normal"
    )
    run = pvae.fit(config, out=tmp_path / "run")
    run = pvae.resume(run.path, 3)
    assert run.metrics()[-1].epoch == 3
    assert run.dataset().num_train + len(run.dataset().test) + len(run.dataset().valid) == 2000
    with pytest.raises(InputError, match="in parts"):
        pvae.fit_many([config, config.replace(seed=1)], out=tmp_path / "many")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """2e5 rows of 100 columns take 80 MB in float32, which are pages of a file; of these no more than 40 count."""
    script = """
        import re, sys, torch, pvae
        from pathlib import Path

        class Rows:
            def __iter__(self):
                for start in range(int(sys.argv[1])):
                    yield torch.randn(200, 100, generator=torch.Generator().manual_seed(start))

        config = pvae.Config(
            system="values", likelihood="normal-diagonal", hidden=(4,), latent_dim=2, batch_size=1000, valid=0.1,
            prior="standard-normal", epochs=1, compile="graph", source="",
        )
        pvae.fit(config, data=Rows(), out=sys.argv[2], callbacks=[])
        print(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
    """

    def megabytes(count):
        command = [sys.executable, "-c", textwrap.dedent(script), str(count), tmp_path / str(count)]
        # Arenas of threads differ from run to run by more than what is measured.
        env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()[-1])

    few, many = megabytes(100), megabytes(1000)
    assert many - few < 40
