"""The comparison of estimators: the measurements, and the command."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from pvae.cli.compare import main
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.elbos.base import PerDatumELBO
from pvae.evaluation.estimators import Moments, exact_gradient, measure_estimator, pairs_to_compare, reference
from pvae.reference import linear_gaussian
from pvae.trained.scores import Estimate

pytestmark = pytest.mark.workflow


def gradient_of(rows):
    moments = Moments()
    for row in rows:
        moments.add(row)
    return moments.gradient()


def variance_and_ratio(rows):
    """By the definitions."""
    variance = rows.var(0).sum()
    signal = rows.mean(0).square().sum() - variance / len(rows)
    return torch.stack([variance, (signal / variance).sqrt()])


@pytest.mark.parametrize("count", [3, 7, 20, 50, 100])
def test_the_errors_are_by_the_jackknife(count):
    """By the definition: estimates without every twentieth row, or without one row if there are fewer."""
    rows = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 2
    found, groups = gradient_of(rows), min(count, 20)
    indices = torch.arange(count)
    without = torch.stack([variance_and_ratio(rows[indices % groups != group]) for group in range(groups)])
    variance, ratio = variance_and_ratio(rows)
    stderr = ((groups - 1) / groups * (without - without.mean(0)).square().sum(0)).sqrt()
    expected = variance, stderr[0], ratio, stderr[1]
    given = found.variance, found.variance_stderr, found.signal_to_noise, found.signal_to_noise_stderr
    assert given == pytest.approx([value.item() for value in expected], rel=1e-10)


def test_only_distinct_estimators_are_compared(linear):
    """Of a VAE whose rate has a closed form, of one without, and of one given labels."""
    pairs, reasons = pairs_to_compare(linear(), torch.zeros(1, 1, 3, 4).double(), PerDatumELBO.members, [1, 5, 50], 5)
    assert ("trace", 1) in pairs
    assert ("iwae", 1) not in pairs, "with one particle it is the ELBO"
    assert ("miwae", 5) not in pairs, "one group of five, or five of one"
    assert {("iwae", 5), ("miwae", 50), ("score-loo", 5)} <= set(pairs)
    assert len(pairs) + len(reasons) == 3 * len(PerDatumELBO.members)
    x = torch.zeros(4, 1, 5, 4)
    vae = build_vae(Config(hidden=(8,), latent_dim=3, prior="mixture", components=2), (1, 5, 4))
    assert pairs_to_compare(vae, x[:1], ["trace", "analytic", "beta-tc"], [5], 5)[0] == [("trace", 5)]
    vae = build_vae(Config(hidden=(8,), latent_dim=3, condition=True), (1, 5, 4), 3)
    batch = Batch(x, torch.tensor([0, 1, 2, 1]))
    assert pairs_to_compare(vae, batch.rows(slice(1)), ["analytic"], [1], 5) == ([("analytic", 1)], [])


def test_bits_are_compared_by_what_needs_no_derivative():
    for upper, also in (((), {"arms", "disarm", "gumbel", "straight-through"}), ((2,), set())):
        options = {"posterior": "bernoulli", "prior": "bits", "upper_latent_dims": upper}
        vae = build_vae(Config(hidden=(8,), latent_dim=4, **options), (1, 5, 4))
        pairs, _ = pairs_to_compare(vae, torch.zeros(1, 1, 5, 4), PerDatumELBO.members, [4], 2)
        assert {name for name, _ in pairs} == {"score", "score-loo", "vimco"} | also


def test_the_bias_of_a_gradient_is_its_distance_from_the_exact_one(linear, x):
    """Of a mean that is 10 % off, and of one that is right; the seed is fixed."""
    exact = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for share in (1.0, 1.1):
        moments = Moments()
        for row in 0.05 * torch.randn(200, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)):
            moments.add(share * exact + row)
        found = moments.gradient(exact)
        assert (found.bias < found.bias_resolution) == (share == 1)
        assert found.bias == pytest.approx(share - 1, abs=5 * found.bias_stderr + 0.01)
    log_p = Estimate(mean=0.0, stderr=0.0)
    vae = linear(0.3)
    found = measure_estimator(vae, x, "trace", 2, log_p, repetitions=100, exact=exact_gradient(vae, x))
    assert found.encoder_gradient.bias < 3 * found.encoder_gradient.bias_resolution
    assert found.noise == pytest.approx(found.encoder_gradient.variance * found.milliseconds / 1000)


def test_the_reference_of_a_linear_gaussian_vae_is_exact(linear, x):
    vae = linear(0.3)
    exact = linear_gaussian.log_evidence(vae, x).mean().item()
    assert reference(vae, x) == (Estimate(mean=exact, stderr=0.0), 0.0)
    log_p = Estimate(mean=exact, stderr=0.0)
    found = {name: measure_estimator(vae, x, name, 5, log_p, repetitions=200) for name in ("trace", "iwae", "stl")}
    gap = (linear_gaussian.elbo(vae, x).mean() - linear_gaussian.log_evidence(vae, x).mean()).item()
    for name in ("trace", "stl"):
        assert found[name].bias == pytest.approx(gap, abs=4.3 * found[name].value.stderr)
    assert gap < found["iwae"].bias < 0
    assert found["trace"].decoder_gradient.variance == pytest.approx(
        found["stl"].decoder_gradient.variance, rel=1e-9
    ), "paired noise"
    assert found["stl"].encoder_gradient.variance < found["trace"].encoder_gradient.variance


def test_the_reference_of_other_vaes_is_an_estimate(small_vae, small_images):
    vae, x = small_vae("static").eval(), small_images(4, binary=True)
    log_p, untrusted = reference(vae, x, 2000)
    assert 0 < log_p.stderr < 0.2
    assert untrusted == 0
    few = reference(vae, x, 5)[0]
    assert abs(few.mean - log_p.mean) < 4.3 * math.hypot(few.stderr, log_p.stderr), "five draws are not trusted"
    assert reference(vae, x, 2000)[0] == log_p, "a comparison that is repeated gives the same bias"
    bound = measure_estimator(vae, x, "trace", 5, log_p, repetitions=50)
    assert bound.bias < -bound.value.stderr


def test_the_command_compares(tmp_path, capsys):
    options = ["--stages", "0,1", "--particles", "1,5", "--elbo", "trace,iwae", "--repetitions", "5"]
    assert main([*options, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [(row["stage"], row["estimator"], row["particles"]) for row in rows] == [
        (stage, *pair) for stage in ("epoch 0", "epoch 1") for pair in (("trace", "1"), ("trace", "5"), ("iwae", "5"))
    ]
    assert all(float(row["bias"]) < 0 for row in rows)
    assert all(float(row[f"{part}_gradient_variance_stderr"]) > 0 for row in rows for part in ("encoder", "decoder"))
    lines = [line for line in said.splitlines() if line.startswith("| epoch")]
    assert {line.count("+-") + line.count("<") for line in lines} == {5, 6}, "and of trace the bias of its gradient"
    assert (tmp_path / "out" / "comparison.md").read_text().strip() in said
    assert (tmp_path / "out" / "comparison.png").exists()
