"""What lies below a detection limit, filled in and drawn by commands, beside the values that were cut off."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from helpers.commands import refuse

from pvae.cli.data import sample, score
from pvae.cli.export import explore
from pvae.cli.train import main as train

pytestmark = pytest.mark.slow


def cut_off(count):
    """Six correlated log-normal columns, and the same with the lowest fifth of each as a text."""
    draw = np.random.default_rng(0)
    weight, z = draw.normal(size=(6, 2)), draw.normal(size=(count, 2))
    log_x = draw.normal(size=6) + 0.7 * z @ weight.T + 0.35 * draw.normal(size=(count, 6))
    full = pandas.DataFrame(np.exp(log_x).round(4), columns=[*"abcdef"])
    limits = full.quantile(0.2).round(2)
    texts = full.astype(str)
    for name, limit in limits.items():
        texts[name] = texts[name].where(full[name] >= limit, f"<{limit}")
    return full, limits, texts


def test_what_is_filled_in_lies_below_the_limit_and_has_the_mean_of_what_was_cut_off(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    full, limits, texts = cut_off(600)
    are_below = full < limits
    texts.to_csv("t.csv", index=False)
    start = ["--initialization", "torch", "--prior", "standard-normal", "--latent-dim", "2", "--epochs", "10"]
    train(["--dataset", "table:t.csv", "--out", "run", *start, "--quiet"])
    sample(["run", "--impute", "t.csv", "--out", "i.csv"])
    filled = pandas.read_csv("i.csv")
    assert (filled[are_below] < limits).sum().sum() == are_below.sum().sum()
    assert filled[~are_below].equals(full[~are_below])
    ratio = filled[are_below].mean() / full[are_below].mean()
    assert (abs(ratio - 1) < 0.1).all(), ratio
    sample(["run", "--impute", "t.csv", "--draws", "3", "--out", "d.csv"])
    draws = pandas.read_csv("d.csv").drop(columns="imputation")
    assert (draws[pandas.concat([are_below] * 3, ignore_index=True)] < limits).sum().sum() == 3 * are_below.sum().sum()
    sample(["run", "-n", "500", "--out", "new.csv"])
    new = pandas.read_csv("new.csv", dtype=str)
    shares = new.apply(lambda column: column.str.startswith("<").mean())
    assert shares.between(0.1, 0.3).all()  # five standard errors of 500
    score(["run", "new.csv", "--out", "scores"])
    assert np.isfinite(pandas.read_csv("scores/scores.csv").log_p).all()
    capsys.readouterr()
    assert "below a limit" in refuse(explore, ["run"], capsys, tmp_path)
