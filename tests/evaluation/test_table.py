"""The table of runs: a row for each configuration, over its seeds."""

from __future__ import annotations

import csv
from dataclasses import replace

from pvae.core.records import csv_of
from pvae.evaluation.table import Row, groups, to_markdown

ROW = Row(
    run="a", configuration="1", system="mlp-2d", estimator="trace", data="MNIST", seed=0, epochs=3, planned_epochs=3,
    chosen_epoch=3, pseudo=True, elbo=-100.0, elbo_stderr=0.25, distortion=1.0, rate=1.0, log_likelihood=None,
    log_likelihood_stderr=None, importance_samples=None, posterior_mean_loss=1.0, accuracy=None, kolmogorov_smirnov=1.0,
    mean_least=-0.5, mean_greatest=0.5, std_least=0.9, std_greatest=1.1, seconds_per_epoch=2.0,
)  # fmt: skip


def test_the_table_is_over_seeds():
    rows = [ROW, replace(ROW, run="b", seed=1, elbo=-102.0, std_greatest=1.5), replace(ROW, run="c", configuration="2")]
    assert [[one.run for one in group] for group in groups(rows)] == [["a", "b"], ["c"]]
    lines = to_markdown(rows).splitlines()
    assert "| 2 | 3 | -101.00 +- 1.41 (pseudo) |" in lines[2]
    assert "| 0.90 to 1.50 |" in lines[2]
    assert "| 1 | 3 | -100.00 +- 0.25 (pseudo) |" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert [line["run"] for line in csv.DictReader(csv_of(rows).splitlines())] == ["a", "b", "c"]
    none = to_markdown([replace(ROW, elbo=None, elbo_stderr=None)]).splitlines()[2]
    assert "| 1 | 3 | - | - | 1.00 |" in none
    with_likelihood = [
        replace(ROW, seed=seed, log_likelihood=-90.0 - seed, log_likelihood_stderr=0.3) for seed in (0, 1)
    ]
    assert "(pseudo) | -90.50 +- 0.71 |" in to_markdown(with_likelihood).splitlines()[2]
    assert "(pseudo) | -91.00 +- 0.30 |" in to_markdown(with_likelihood[1:]).splitlines()[2]
