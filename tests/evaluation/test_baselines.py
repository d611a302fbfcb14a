"""Tests of the simple models that an ELBO is compared with, and of what a training says that it learned."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from pvae.config.build import build_vae
from pvae.config.choices import values_config
from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.evaluation.context import Context
from pvae.evaluation.measures.baselines import SimpleModel, compare_with, simple_models
from pvae.evaluation.measures.samples import SampleQuality
from pvae.evaluation.report import evaluate, to_text, what_was_learned
from pvae.models.features import fit_to
from pvae.tables.column import Column
from pvae.training.callbacks import default_callbacks
from pvae.training.fit import fit


def table(x, names="abcdefgh", **others):
    """Return rows as a table, of which the last sixths are the validation and the test rows."""
    size = len(x) // 6
    columns = tuple(Column(name) for name in names[: x.shape[1]])
    train, valid, test = x[: -2 * size], x[-2 * size : -size], x[-size:]
    return Dataset("rows", train, test, valid=valid, columns=columns, **others)


def models_of(data, **options):
    vae = build_vae(values_config(data, **options), data.datum_shape)
    fit_to(vae, data.train)
    return vae, {one.kind: one for one in simple_models(vae, data.train, data.valid, data.test)}


def two_kinds(num_rows=600, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.where(rng.random((num_rows, 1)) < 0.5, -4.0, 4.0)
    return torch.from_numpy(centres + rng.normal(size=(num_rows, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])) * 10 + 300


def test_the_linear_model_is_a_normal_in_the_units_of_the_data():
    data = table(two_kinds())
    _, models = models_of(data)
    mean, covariance = data.train.mean(0).numpy(), np.cov(data.train.numpy().T)
    exact = multivariate_normal(mean, covariance).logpdf(data.test.numpy())
    assert models["linear"].log_p.numpy() == pytest.approx(exact, abs=0.2)  # of factors, or a shrunk covariance


def test_the_mixture_is_that_of_scikit_learn_where_values_have_no_steps():
    data = table(two_kinds())
    _, models = models_of(data)
    unit = data.train.std(0, correction=0)
    y = [((part - data.train.mean(0)) / unit).numpy() for part in (data.train, data.valid, data.test)]
    sizes = [(size, shape) for size in (2, 4, 8, 16) for shape in ("full", "diag")]
    fits = [GaussianMixture(size, covariance_type=shape, random_state=0).fit(y[0]) for size, shape in sizes]
    best = max(fits, key=lambda one: one.score(y[1]))
    assert models["mixture"].name == f"a mixture of {best.n_components} Normals"
    exact = best.score_samples(y[2]) - unit.log().sum().item()
    assert models["mixture"].log_p.numpy() == pytest.approx(exact, abs=1e-4)


def test_a_change_of_units_changes_both_models_by_the_constant_of_the_density():
    x = two_kinds()
    for kind, one in models_of(table(x))[1].items():
        scaled = models_of(table(x * 1000))[1][kind]
        assert torch.allclose(scaled.log_p, one.log_p - 2 * math.log(1000), atol=1e-4)


def test_no_model_of_values_in_steps_sums_to_more_than_1():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(600, 1))
    tables = {
        "readings": np.round(2 + 0.03 * rng.normal(size=(600, 2)), 1),
        "a factor": np.round(factor + 0.4 * rng.normal(size=(600, 2)), 1),
        "coarse": np.round(factor + 0.4 * rng.normal(size=(600, 2))),
        "above 0": np.maximum(np.round(np.exp(factor + 0.3 * rng.normal(size=(600, 2))), 1), 0.1),
        "often 0": np.where(
            rng.random((600, 2)) < 0.3, 0, np.round(np.exp(factor + 0.3 * rng.normal(size=(600, 2))), 1)
        ),
        "two kinds": np.round(np.where(rng.random((600, 1)) < 0.5, -3, 3) + 0.2 * rng.normal(size=(600, 2)), 1),
    }
    for name, x in tables.items():
        data = table(torch.from_numpy(x))
        vae = build_vae(values_config(data), data.datum_shape)
        fit_to(vae, data.train)
        step = 1.0 if name == "coarse" else 0.1
        low, high = math.floor(x.min() - 3), math.ceil(x.max() + 3)
        if name in ("above 0", "often 0"):
            high *= 2
        if name == "above 0":
            low = step
        grid = torch.arange(round(low / step), round(high / step) + 1).double() * step
        models = simple_models(vae, data.train, data.valid, torch.cartesian_prod(grid, grid))
        totals = [one.log_p.exp().sum().item() * step**2 for one in models]
        assert len(totals) == 2
        assert all(0.95 < one <= 1 + 1e-9 for one in totals), (name, totals)


def test_no_model_of_counts_sums_to_more_than_1_where_one_is_constant():
    counts = np.random.default_rng(0).poisson(3, (300, 2)) * [1, 0]
    data = table(torch.from_numpy(counts).double())
    grid = torch.cartesian_prod(torch.arange(40.0), torch.arange(40.0)).double()
    vae = build_vae(values_config(data, likelihood="negative-binomial"), data.datum_shape)
    fit_to(vae, data.train)
    totals = [one.log_p.exp().sum().item() for one in simple_models(vae, data.train, data.valid, grid)]
    assert len(totals) == 2
    assert all(0.4 < one <= 1 + 1e-9 for one in totals), totals


def test_a_verdict_that_a_few_rows_decide_has_no_error():
    rng = np.random.default_rng(0)
    log_p = torch.zeros(1000, dtype=torch.float64)
    for gain, is_stated in ((rng.normal(size=1000), True), (rng.standard_t(2, size=1000), False)):
        verdict = compare_with([SimpleModel("linear", "a Normal", log_p, log_p)], torch.from_numpy(gain)).verdict
        assert ("+-" in verdict) == is_stated


def test_columns_of_other_kinds_have_a_mixture_of_products():
    rng = np.random.default_rng(0)
    kind = rng.random(900) < 0.5
    x = torch.from_numpy(np.stack([kind, np.where(rng.random(900) < 0.02, ~kind, kind)], 1).astype(float))
    _, models = models_of(table(x))
    assert [*models] == ["mixture"]
    assert models["mixture"].name.endswith("products")
    entropy = math.log(2) - 0.98 * math.log(0.98) - 0.02 * math.log(0.02)
    assert models["mixture"].log_p.mean().item() == pytest.approx(-entropy, abs=0.1)


def test_a_training_does_not_change_the_simple_models_of_levels():
    """A verdict would be too good, since the cut points of levels belong to the training's own outputs."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.stack([rng.integers(0, 5, 600), rng.normal(size=600)], 1))
    data = table(x)
    vae, models = models_of(data, likelihood="columns", columns="ordinal:5,real")
    with torch.no_grad():
        for name, parameter in vae.p_x.named_parameters():
            if name.endswith(("first_cut", "log_gaps")):
                parameter.add_(2.0)
    (again,) = simple_models(vae, data.train, data.valid, data.test)
    assert torch.equal(again.log_p, models["mixture"].log_p)
    assert again.log_p.mean() > -math.log(5) - 1.5


def test_likelihoods_without_a_closed_form_have_no_models():
    assert models_of(table(two_kinds()), likelihood="student-t")[1] == {}


def test_the_verdict_is_by_the_difference_of_each_datum():
    _, models = models_of(table(two_kinds()))
    mixture = models["mixture"]
    for gain, words in ((1.0, "better than a mixture"), (-1.0, "describes these data better"), (0.0, "as good as")):
        noise = torch.randn(len(mixture.log_p), generator=torch.Generator().manual_seed(0)).double() * 0.1
        found = compare_with([*models.values()], mixture.log_p + gain + noise - noise.mean())
        assert words in found.verdict
        assert models["linear"].name in found.verdict
        assert found.mixture_gain.mean == pytest.approx(gain, abs=1e-9)
        assert found.mixture_gain.stderr == pytest.approx(noise.std().item() / math.sqrt(len(noise)))
    assert compare_with([], mixture.log_p) is None


@pytest.mark.workflow
def test_a_training_says_what_it_learned_and_so_does_its_report(tmp_path, no_pictures):
    data = table(two_kinds())
    run = fit(values_config(data, epochs=2), data=data, out=tmp_path / "run")
    lines = [*what_was_learned(run)]
    report = evaluate(run, num_particles=20, method="importance")
    assert any(line.startswith("test ELBO") and "without a latent" in line and "mixture" in line for line in lines)
    assert any(line.startswith(f"latents used: {report.latents.used} of 2, alone ") for line in lines)
    assert report.baselines.verdict in to_text(report)
    assert run.metrics()[0].epoch == 0
    best = max(row.elbo for row in run.metrics() if row.split == "valid")
    assert best >= run.metrics()[0].elbo
    quality = Context(run).once(SampleQuality.of)
    assert report.samples == quality
    assert quality.num_draws == len(data.train)
    assert quality.column_shapes > 0.85


@pytest.mark.workflow
def test_a_scale_that_uses_no_latent_is_forecast_before_the_first_step(tmp_path, capsys):
    images = torch.randint(256, (60, 1, 4, 4), dtype=torch.uint8)
    data = Dataset("noise", images, images[:20])
    for scale, is_said in ((19.8, True), (0.05, False)):
        config = Config(likelihood="normal", scale=scale, epochs=1, batch_size=10, hidden=(5,), latent_dim=2)
        fit(config, data=data, out=tmp_path / str(scale), callbacks=default_callbacks(quiet=False))
        assert ("no latent will be used; give a --scale below" in capsys.readouterr().out) == is_said
