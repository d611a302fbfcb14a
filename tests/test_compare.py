"""Estimators side by side: what is measured of each, and the command."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from pvae import comparison, oracle
from pvae.compare import main
from pvae.comparison import Gradient, compared, measure, reference
from pvae.config import ELBOS


def test_signal_and_noise_by_hand():
    """Two parameters, of which one varies: against the definition, the noise of the mean taken out."""
    rows = torch.tensor([[3.0, 1.0], [3.0, 3.0], [3.0, 5.0], [3.0, 7.0]], dtype=torch.float64)
    found = Gradient.of(rows.mean(0), rows.square().mean(0), len(rows))
    variance = rows.var(0).sum().item()
    assert found.variance == pytest.approx(variance, rel=1e-12)
    signal = (rows.mean(0) ** 2).sum().item() - variance / 4
    assert found.signal_to_noise == pytest.approx(math.sqrt(signal / variance), rel=1e-12)
    still = torch.ones(4, 2, dtype=torch.float64)
    assert Gradient.of(still.mean(0), still.square().mean(0), 4).signal_to_noise == math.inf
    noise = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert Gradient.of(noise.mean(0), noise.square().mean(0), 2).signal_to_noise == 0


def test_only_what_differs_is_compared():
    pairs = compared(ELBOS, [1, 5, 50])
    assert ("trace", 1) in pairs
    assert ("iwae", 1) not in pairs, "with one particle it is the ELBO"
    assert ("score-loo", 1) not in pairs
    assert ("miwae", 5) not in pairs, "one group of five, or five of one"
    assert {("iwae", 5), ("miwae", 50), ("score-loo", 5)} <= set(pairs)


def test_the_oracle_is_the_reference(linear, x):
    vae = linear(0.3)
    exact = oracle.log_evidence(vae, x).mean().item()
    assert reference(vae, x) == comparison.Reference(log_p=exact, stderr=0.0)
    found = {name: measure(vae, x, name, 5, reference(vae, x), repetitions=200) for name in ("trace", "iwae", "stl")}
    gap = (oracle.elbo(vae, x).mean() - oracle.log_evidence(vae, x).mean()).item()
    for name in ("trace", "stl"):
        assert found[name].bias == pytest.approx(gap, abs=4.3 * found[name].value.stderr)
    assert gap < found["iwae"].bias < 0
    assert found["trace"].decoder.variance == pytest.approx(found["stl"].decoder.variance, rel=1e-9), "paired noise"
    assert found["stl"].encoder.variance < found["trace"].encoder.variance


def test_an_estimate_is_the_reference_elsewhere(small_vae, small_images):
    vae, x = small_vae("static").eval(), small_images(4, binary=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        log_p = reference(vae, x, 2000)
    assert 0 < log_p.stderr < 0.2
    bound = measure(vae, x, "trace", 5, log_p, repetitions=50)
    assert bound.bias < -bound.value.stderr


def test_the_command_compares(tmp_path, capsys):
    options = ["--stages", "0,1", "--particles", "1,5", "--elbo", "trace,iwae", "--repetitions", "5"]
    assert main([*options, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "epoch 0: log p(x) = " in said
    assert "exactly" in said
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [(row["stage"], row["estimator"], row["particles"]) for row in rows] == [
        (stage, *pair) for stage in ("epoch 0", "epoch 1") for pair in (("trace", "1"), ("trace", "5"), ("iwae", "5"))
    ]
    assert all(float(row["bias"]) < 0 for row in rows)
    assert (tmp_path / "out" / "comparison.md").read_text().strip() in said
    assert (tmp_path / "out" / "comparison.png").exists()


def test_it_compares_at_a_runs_checkpoint(tmp_path, capsys, few_digits, monkeypatch):
    from pvae import subjects
    from pvae.config import Config
    from pvae.fitting import fit

    run = fit(Config(hidden=(8,), latent_dim=2, batch_size=50, epochs=1), data=few_digits, out=tmp_path / "run")
    monkeypatch.setattr(subjects, "load_again", lambda *_: few_digits)
    assert main([str(run.path), "--elbo", "trace,dreg", "--particles", "2", "--repetitions", "3"]) == 0
    assert "epoch 1" in capsys.readouterr().out
    assert (run.path / "comparison" / "comparison.md").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--elbo", "trace,iwea"], "did you mean 'iwae'"),
        (["--particles", "0"], "--particles"),
        (["--particles", "five"], "--particles"),
        (["--stages", "-1"], "--stages"),
        (["--repetitions", "1"], "--repetitions"),
        (["--system", "conv-3d"], "unknown system"),
        (["--elbo", "iwae", "--particles", "1"], "more --particles"),
        (["no-such-run"], "no run folder"),
        (["run", "--system", "deep-bayes"], "not both"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert says in line
    assert not list(tmp_path.iterdir()), "nothing was written"
