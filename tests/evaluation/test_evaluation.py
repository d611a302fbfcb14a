"""log p(x) by importance sampling, active units, and the parts of the rate."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers.commands import refuse
from torch.distributions import Normal, kl_divergence

from pvae.cli.evaluate import main
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.config.presets import get_system
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset, random_subset
from pvae.data.read import read
from pvae.evaluation.measures.elbo import active_units, split_rate
from pvae.evaluation.report import evaluate, to_text
from pvae.marginal import chunks, importance
from pvae.marginal import gaps as gaps_module
from pvae.marginal.importance import importance_sample, num_in_tail, pareto_k
from pvae.marginal.log_likelihood import conditional_log_likelihood, log_likelihood
from pvae.marginal.quadrature import quadrature
from pvae.plotting import pictures
from pvae.reference import linear_gaussian
from pvae.runs.run import Run
from pvae.trained import codes
from pvae.trained.given import given_values
from pvae.trained.latent_space import encode
from pvae.trained.scores import elbo_terms
from pvae.training.fit import fit


@pytest.fixture
def data(digits):
    return Dataset("few digits", digits.train[:200], digits.test[:60], digits.train_labels[:200],
                   digits.test_labels[:60], digits.label_names)  # fmt: skip


SYSTEMS = {
    "grey": ("mlp-2d", {}),
    "binary": ("deep-bayes", {"binarize": "dynamic", "latent_dim": 5, "hidden": (20,)}),
    "density": ("conv-2d", {"hidden": (4, 4)}),
    "two layers": ("iwae-2layer", {"schedule": "constant"}),
    "autoencoder": ("conv-2d-ae", {"hidden": (4,)}),
}


@pytest.fixture
def runs(made_once, no_pictures, monkeypatch, data, tmp_path):
    """Return a copy of a run of a kind, whose data are found; the runs are trained once for all workers."""
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: data)

    def run_of(kind):
        name, options = SYSTEMS[kind]
        config = get_system(name).replace(epochs=1, batch_size=50, **options)
        path = made_once(f"evaluated {kind}", lambda out: fit(config, data=data, out=out))
        run = Run.open(shutil.copytree(path, tmp_path / "run"))
        run.dataset(data)
        return run

    return run_of


def sampled(*arguments, **how):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return importance_sample(*arguments, **how)


def test_the_estimate_is_the_mean_of_the_weights(small_vae, small_images):
    """Against the definition at the same draws, computed without log space."""
    vae, x = small_vae(), small_images(6)
    ours = sampled(vae, x, 50)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        q = vae.posterior(x)
        z = torch.cat([q.sample((45,)), vae.prior().sample((5, 6))])
        r = 0.9 * q.log_prob(z).exp() + 0.1 * vae.prior().log_prob(z).exp()
        w = (vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z)).exp() / r
    assert torch.allclose(ours.log_p, w.mean(0).log(), rtol=1e-10)
    assert torch.allclose(ours.effective, w.sum(0) ** 2 / w.square().sum(0), rtol=1e-10)
    assert torch.allclose(ours.stderr, w.std(0) / w.mean(0) / math.sqrt(50), rtol=1e-8)
    largest = w.log().topk(num_in_tail(50) + 1, 0).values
    assert torch.allclose(ours.pareto_k, pareto_k(largest), rtol=1e-8)
    assert ((ours.effective >= 1) & (ours.effective <= 50)).all()


@pytest.mark.parametrize("two_layers", [False, True])
def test_chunks_and_recordings_change_nothing(small_vae, small_images, monkeypatch, two_layers):
    """The same draws give the same results; a decoder that reads values is not recorded."""
    vae, x = small_vae(), small_images(7)
    if two_layers:
        config = Config(upper_latent_dims=(2,), upper_hidden=(4,), hidden=(6,), latent_dim=3, elbo="iwae")
        with torch.random.fork_rng():
            vae = build_vae(config, (1, 5, 4)).double()
        monkeypatch.setattr(chunks, "CHUNK_VALUES", 9 * 7 * 20)  # the layers of a chunk are drawn together
    whole, decoded = sampled(vae, x, 50, engine="none"), []
    monkeypatch.setattr(chunks, "CHUNK_VALUES", 9 * 7 * 20)
    for engine in ("none", "graph"):
        parts = sampled(vae, x, 50, engine=engine)
        assert torch.allclose(parts.log_p, whole.log_p, rtol=1e-10)
        assert torch.allclose(parts.effective, whole.effective, rtol=1e-10)

    def look(_decoder, given, logits):
        decoded.append(len(given[0]))
        return None if logits.abs().max() < 100 else 0

    vae.p_x.decoder.register_forward_hook(look)
    assert torch.allclose(sampled(vae, x, 50).log_p, whole.log_p)
    assert max(decoded) == 9, "draws are decoded nine at a time"
    for engine, says in (("graph", "reads values"), ("jit", "jit")):
        with pytest.raises(InputError, match=says):
            sampled(vae, x, 50, engine=engine)


@pytest.mark.parametrize(
    ("is_large", "lacks", "engine"), [(True, "", "inductor"), (True, "a compiler", "graph"), (False, "", "graph")]
)
def test_a_large_evaluation_is_compiled_where_it_can_be(monkeypatch, is_large, lacks, engine):
    monkeypatch.setattr(importance, "missing", lambda: lacks)
    assert importance.engine_of("auto", is_large) == engine


def test_the_estimate_covers_log_p_of_the_oracle(linear, x):
    """Within 3 standard errors in at least 990 of 1000 repetitions."""
    vae = linear(0.1)
    exact = linear_gaussian.log_evidence(vae, x).detach()
    estimate = sampled(vae, x.repeat(1000, 1, 1, 1), 400)
    means = (estimate.log_p.view(1000, 5) - exact).mean(1)
    stderrs = estimate.stderr.view(1000, 5).square().sum(1).sqrt() / 5
    assert stderrs.max() < 0.02, "so wide an error would cover anything"
    assert (means.abs() < 3 * stderrs).sum() >= 990
    assert 0.9 < (means / stderrs).std() < 1.1


def split_of(vae, x, *options, **named):
    return split_rate([vae.posterior(x)], vae.prior(), *options, **named)


def parts_of(split):
    return torch.stack([split.mutual_information, split.total_correlation, split.dimension_wise_kl])


def brute_force_split(vae, x, images, z):
    """The three parts, and the mutual information with q(z) over the other images, by their definitions."""
    q, rows = vae.posterior(x), []
    for m, draw in zip(images.tolist(), z):
        each = torch.stack([Normal(q.mean[n], q.stddev[n]).log_prob(draw).exp() for n in range(len(x))])  # (N, L)
        own, joint, product = each[m].log().sum(), each.prod(1).mean().log(), each.mean(0).log().sum()
        others = (each.prod(1).sum() - each[m].prod()).log() - math.log(len(x) - 1)
        rows.append(torch.stack([own - joint, joint - product, product - vae.prior().log_prob(draw), own - others]))
    return torch.stack(rows).T


@pytest.mark.parametrize("num_images", [6, 9, 20])
def test_the_rate_is_split_by_its_definition(small_vae, small_images, monkeypatch, num_images):
    """At draws of a subset of nine images or of all, in chunks of any size."""
    vae, x = small_vae(), small_images(9)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        z = Normal(vae.posterior(x).mean, vae.posterior(x).stddev).sample()
        for numbers in (2**24, 1):
            monkeypatch.setattr("pvae.evaluation.measures.elbo.CHUNK_VALUES", numbers)
            torch.manual_seed(4)
            split = split_of(vae, x, num_images, seed=1)
            parts = torch.cat([parts_of(split), split.leave_one_out[None]])
            wanted = brute_force_split(vae, x, split.rows, z[split.rows])
            assert torch.allclose(parts, wanted, rtol=1e-9, atol=1e-12)
    q, rows = vae.posterior(x), split.rows
    assert len(rows.unique()) == len(rows) == min(num_images, 9)
    assert (num_images == 6) == (rows.tolist() != list(range(len(rows)))), "not the first"
    assert torch.allclose(split.rate, (q.log_prob(z) - vae.prior().log_prob(z))[rows], rtol=1e-10)


class Codes(torch.nn.Module):
    """An encoder whose output is the image itself: its four pixels are loc and log scale of two latents."""

    def forward(self, x):
        return x.flatten(1)


def known_codes(loc, scale):
    vae = build_vae(Config(network="linear", latent_dim=2, likelihood="normal-linear"), (1, 2, 2)).double().eval()
    vae.q_z.encoder = Codes()
    vae.p_x.in_domain = lambda x: True
    return vae, torch.cat([loc, scale.log()], dim=1).view(-1, 1, 2, 2)


@pytest.mark.workflow
def test_log_p_is_of_as_many_data_as_the_seconds_allow(runs, monkeypatch):
    """Each pixel is binarized by its place among all test images, before the subset is taken."""
    monkeypatch.setattr("pvae.evaluation.context._FIRST", 7)
    run, given = runs("binary"), []

    def spy(vae, batch, *arguments, **options):
        given.append(batch.x.images)
        return log_likelihood(vae, batch, *arguments, **options)

    monkeypatch.setattr("pvae.evaluation.context.log_likelihood", spy)
    part = evaluate(run, 2, num_images=9, seed=3, method="importance")
    test = codes.run_batch(run, "test").x.images
    assert torch.equal(given[0], test[random_subset(len(test), 9, 3)])
    assert part.log_likelihood.elbo == part.elbo_parts.elbo
    some, every = (evaluate(run, 500, seed=3, method="importance", seconds=seconds) for seconds in (1e-9, 1e9))
    assert [one.num_images for one in (some, every)] == [len(test), len(test)]
    assert [one.log_likelihood.num_images for one in (some, every)] == [7, len(test)]
    assert not torch.equal(given[1], test[:7])
    assert every.log_likelihood.elbo == every.elbo_parts.elbo
    hopeless = evaluate(run, 2, seed=3, method="importance", seconds=1e9)
    assert (hopeless.log_likelihood.num_images, hopeless.log_likelihood.untrusted) == (7, 1)


def gaussian_codes(num_images, spread, scale):
    """A linear-Gaussian q(z | x) = Normal(A x, diag s^2) of images x ~ Normal(0, I), and the exact parts of its rate.

    q(z) = Normal(0, C), C = A A^T + diag s^2,        I(x; z) = 1/2 log det C - sum_l log s_l,
    TC = 1/2 (sum_l log C_ll - log det C),            sum_l KL_l = 1/2 sum_l (C_ll - 1 - log C_ll)
    """
    spread, scale = (torch.tensor(values, dtype=torch.float64) for values in (spread, scale))
    covariance = spread @ spread.T + scale.square().diag()
    variances, log_det = covariance.diag(), torch.logdet(covariance)
    information = 0.5 * log_det - scale.log().sum()
    total_correlation = 0.5 * (variances.log().sum() - log_det)
    dimension_wise = 0.5 * (variances - 1 - variances.log()).sum()
    loc = torch.randn(num_images, 2, dtype=torch.float64) @ spread.T
    exact = torch.stack([information, total_correlation, dimension_wise])
    return *known_codes(loc, scale.expand(num_images, 2)), exact


CORRELATED = [[0.6, 0.2], [0.4, 0.4]], [0.3, 0.4]


def test_the_parts_of_the_rate_are_exact_for_gaussian_codes():
    """Against the exact q(z): within 4.3 standard errors plus the bias between the bounds, which detects 20 %."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, x, exact = gaussian_codes(5000, *CORRELATED)
        split = split_of(vae, x, 5000)
    parts = parts_of(split)
    bias = (split.leave_one_out - split.mutual_information).mean()
    allowed = 4.3 * parts.std(1) / math.sqrt(5000) + bias
    assert (allowed < 0.2 * exact).all(), "this sample could not have seen 20 %"
    assert ((parts.mean(1) - exact).abs() < allowed).all()
    assert exact.sum().item() == pytest.approx(kl_divergence(vae.posterior(x), vae.prior()).mean().item(), rel=0.1)


def test_active_units_are_those_whose_mean_varies():
    """Draws of an unused dimension vary like the prior, but its mean does not vary."""
    loc = torch.stack([torch.linspace(-1, 1, 50), torch.full((50,), 0.3)], dim=1).double()
    vae, x = known_codes(loc, torch.ones_like(loc))
    assert active_units(encode(vae, x)).tolist() == [True, False]
    assert torch.allclose(encode(vae, x), loc)
    assert active_units(encode(vae, x), threshold=10.0).tolist() == [False, False]


@pytest.mark.workflow
@pytest.mark.parametrize("kind", ["grey", "binary", "density", "two layers"])
def test_a_run_is_evaluated(runs, tmp_path, capsys, kind):
    run = runs(kind)
    for out in (run.path / "evaluation.json", tmp_path / "again.json"):
        assert main([str(run.path), "--importance-samples", "30", "--out", str(out)]) == 0
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    assert report == json.loads((run.path / "evaluation.json").read_text())
    parts, likelihood, last = report["elbo_parts"], report["log_likelihood"], run.metrics()[-1]
    assert parts["elbo"]["mean"] == pytest.approx(last.elbo, abs=5 * last.elbo_stderr)
    assert parts["elbo"]["mean"] == pytest.approx(-parts["distortion"]["mean"] - parts["rate"]["mean"], rel=1e-6)
    assert likelihood["estimate"]["mean"] > likelihood["elbo"]["mean"]
    assert parts["is_pseudo"] == ("binarized" in likelihood["pixels"]) == ("pseudo-ELBO" in said) == (kind == "grey")
    assert parts["latent_dims"] == ([100, 50] if kind == "two layers" else [run.config.latent_dim])
    assert all(0 <= n <= of for n, of in zip(parts["active_units"], parts["latent_dims"], strict=True))
    found = report["rate_decomposition"]
    assert (found is None) == ("mutual information" not in said) == (kind == "two layers")
    if found:
        split = [found[name]["mean"] for name in ("mutual_information", "total_correlation", "dimension_wise_kl")]
        assert sum(split) == pytest.approx(found["rate"]["mean"], rel=1e-12)
        assert found["rate_closed_form"]["mean"] == pytest.approx(parts["rate"]["mean"], rel=1e-6), "all images"
    levels = math.log2(127.5) if kind == "density" else 0
    assert likelihood["is_density"] == (kind == "density")
    assert (parts["bits_per_dimension"] is None) == (kind == "grey")
    for record, bound in ((parts, "elbo"), (likelihood, "estimate")):
        if bits := record["bits_per_dimension"]:
            expected = -record[bound]["mean"] / 784 / math.log(2) + levels
            assert bits["mean"] == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def untrusted_run(made_once, no_pictures, digits):
    """A run whose importance weights cannot be trusted at a few draws, but at some hundreds, and its data."""
    config = get_system("deep-bayes").replace(epochs=1, batch_size=50, latent_dim=2, binarize="static")
    small = Dataset("small digits", digits.train[:200, ..., ::4, ::4], digits.test[:60, ..., ::4, ::4])
    run = Run.open(made_once("untrusted", lambda out: fit(config, data=small, out=out)))
    run.dataset(small)
    return run


@pytest.mark.workflow
def test_what_cannot_be_trusted_is_warned_of_and_quadrature_can(untrusted_run):
    few, many = (evaluate(untrusted_run, count, method="importance") for count in (4, 2000))
    exact = evaluate(untrusted_run)
    assert few.log_likelihood.untrusted == 1
    assert exact.log_likelihood.untrusted == 0
    assert [bool([*report.log_likelihood.warnings()]) for report in (few, exact)] == [True, False]
    unseen = "notebooks/evaluating.md"  # is what no diagnostic of draws sees
    assert [unseen in to_text(report) for report in (few, many, exact)] == [True, True, False]
    assert exact.log_likelihood.method == "quadrature 60"
    assert exact.log_likelihood.sampling_stderr < 1e-3
    error = exact.log_likelihood.estimate.mean - many.log_likelihood.estimate.mean
    assert -4.3 * many.log_likelihood.sampling_stderr < error < 1


@pytest.mark.workflow
def test_the_gaps_are_of_the_sizes_that_they_must_have(untrusted_run, monkeypatch):
    """A family that holds the other one loses less, and none has a bound above log p(x), at a hundredth of a nat."""
    monkeypatch.setattr(gaps_module, "_CHECKS", 3)
    report = evaluate(untrusted_run, gaps=5, calibration=True)
    for found in (report.gaps, report.train_gaps):
        assert (found.num_images, found.method) == (5, "quadrature 5")
        assert min(part.mean for part in (found.correlations, found.shape, found.rest)) > -0.01
        parts = found.correlations.mean + found.shape.mean + found.rest.mean
        assert parts == pytest.approx(found.approximation.mean, abs=1e-9)
        assert found.amortisation.mean > 0.05
        lost = found.approximation.mean + found.amortisation.mean
        assert sum(nats for _, nats in found.largest) / 5 == pytest.approx(lost, abs=1e-9)
    (row, nats), *others = report.gaps.largest
    datum = codes.run_batch(untrusted_run, "test").rows(torch.full((200,), row))
    lost = quadrature(untrusted_run.vae(), datum).log_p - elbo_terms(untrusted_run.vae(), datum)["elbo"].double()
    assert lost.mean().item() == pytest.approx(nats, abs=6 * lost.std().item() / math.sqrt(100)), "of 1,000 draws"
    assert all(nats >= other for _, other in others)
    assert "amortisation gap" in to_text(report)
    assert len(pictures.gaps(untrusted_run, report).axes) == 3
    assert len(pictures.calibration(untrusted_run, report).axes) == 2
    untrusted = evaluate(untrusted_run, 4, method="importance", gaps=5).gaps
    assert (untrusted.num_images, untrusted.untrusted) == (5, 1), "none is left out"
    assert untrusted.log_p.mean < report.gaps.log_p.mean


@pytest.mark.workflow
def test_a_part_of_a_table_given_another(tmp_path, capsys):
    """What the report says is the function's, for columns and for a mask; all else is refused in one line."""
    table = tmp_path / "table.csv"
    rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).tolist()
    table.write_text("height,weight\n" + "".join(f"{one:.3f},{one + other:.3f}\n" for one, other in rows))
    data = read(f"table:{table}")
    config = Config(hidden=(8,), latent_dim=1, epochs=1, batch_size=20, likelihood="columns", columns="real*2")
    run = fit(config.replace(missing=True), data=data, out=tmp_path / "run")
    run.dataset(data)
    for name, values in {"mask": [True, False], "shape": [[True, False]], "numbers": [1.0, 0.0]}.items():
        np.save(tmp_path / f"{name}.npy", np.array(values))
    is_given = given_values(run, "height")
    assert is_given.tolist() == [True, False] == given_values(run, str(tmp_path / "mask.npy")).tolist()
    found = evaluate(run, given=is_given).conditional
    values, *_ = conditional_log_likelihood(run.vae(), codes.run_batch(run, "test"), is_given)
    assert found.estimate.mean == pytest.approx(values.mean().item(), abs=1e-3)
    assert (found.given, found.untrusted) == ("height", 0)
    for text in ("weigth", "height,weight", *(str(tmp_path / f"{one}.npy") for one in ("shape", "numbers"))):
        assert main([str(run.path), "--given", text]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.workflow
def test_what_is_annealed_has_a_bracket(runs, capsys, monkeypatch):
    run = runs("two layers")
    assert main([str(run.path), "--images", "6", "--method", "annealed", "--temperatures", "8", "--chains", "2"]) == 0
    found = json.loads((run.path / "evaluation.json").read_text())["log_likelihood"]
    assert found["method"] == "annealed 6"
    assert found["bracket"]["mean"] > 0
    assert found["bracket_largest"] >= found["bracket_median"]
    assert found["annealing"] == {"num_temperatures": 8, "num_chains": 2, "start": "posterior"}
    capsys.readouterr()
    monkeypatch.setattr("pvae.evaluation.context.elbo_terms", None)  # it is refused before the first result
    for arguments in (
        ["--temperatures", "0"],
        ["--method", "quadrature"],
        ["--start", "nowhere"],
        ["--method", "importance", "--chains", "8"],
        ["--latex", "--calibration"],
    ):
        assert main([str(run.path), "--images", "6", *arguments]) == 2
        assert capsys.readouterr().err.strip().count("\n") <= 1


@pytest.mark.workflow
def test_an_autoencoder_has_no_bound(runs, capsys, tmp_path):
    assert "autoencoder" in refuse(main, [runs("autoencoder").path], capsys, tmp_path)


@pytest.mark.parametrize("options", [{"posterior": "iaf"}, {"upper_latent_dims": (2,), "inference": "top-down"}])
def test_equal_posteriors_have_equal_means(options):
    """Also where the mean is estimated from draws, and the images are encoded in several parts."""
    config = Config(hidden=(8,), latent_dim=3, upper_hidden=(5,), **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(config, (1, 5, 4)).double().eval()
        first = getattr(vae.q_z, "first", vae.q_z)
        for part in first.encoder[-1].parameters():
            part.data.zero_()
        x = torch.rand(1100, 1, 5, 4, dtype=torch.float64)
        found = encode(vae, x)
    assert found.std(0).max() < 1e-12
    assert not active_units(found).any()
