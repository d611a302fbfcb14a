"""What a model without a latent reaches, against the maximum likelihood of each value by scipy and by closed forms."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch

from pvae.config.build import build_vae, preparation_of
from pvae.config.config import Config
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.data.preparation import Pixels
from pvae.evaluation.measures.baselines import beside_no_latent, floor
from pvae.evaluation.report import evaluate
from pvae.models.features import fit_to
from pvae.tables.column import Column
from pvae.training.callbacks import default_callbacks
from pvae.training.fit import fit
from pvae.vae import VAE

N = 600  # of which 400 are trained on


def found(config, values):
    """The floor of each value, and training and held-out values (N, D) in float64."""
    preparation = preparation_of(config)
    x = torch.from_numpy(values)
    train, test = (
        Pixels(preparation.prepared(part, split, is_redrawn=True), preparation)
        for part, split in ((x[:400], "train"), (x[400:], "test"))
    )
    with seeded(0, torch.device("cpu")):
        vae = build_vae(config, x.shape[1:])
    if not train.is_bytes:
        fit_to(vae, train.images)
    before, state = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    reached = floor(vae.p_x, train, test)
    assert torch.equal(state, torch.get_rng_state()), "it draws no random numbers"
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items()), "it changes no weights"
    assert reached.shape == x.shape[1:]
    parts = (torch.cat([*part.split(1000)]).flatten(1).double().numpy() for part in (train, test))
    return (reached.flatten().numpy(), *parts)


def best(log_p, start, x):
    """The parameters of one value that maximise the sum of log p."""
    options = {"xatol": 1e-8, "fatol": 1e-8, "maxiter": 4000}
    return scipy.optimize.minimize(lambda t: -log_p(x, *t).sum(), start, method="Nelder-Mead", options=options).x


def negative_binomial(x, log_mean, log_theta):
    theta = np.exp(log_theta)
    return scipy.stats.nbinom(theta, theta / (theta + np.exp(log_mean))).logpmf(x)


def student(x, loc, log_scale, log_df):
    return scipy.stats.t(1 + np.exp(log_df), loc, np.exp(log_scale)).logpdf(x)


def expected(log_p, train, test, start):
    return [log_p(test[:, d], *best(log_p, start(train[:, d]), train[:, d])).mean() for d in range(train.shape[1])]


def test_counts():
    rng = np.random.default_rng(0)
    counts = np.exp(rng.normal([0, 4, 10], [1, 0.5, 0.5], (N, 3))).round()
    ours, train, test = found(Config(likelihood="negative-binomial"), counts)
    truth = expected(negative_binomial, train, test, lambda x: [np.log(x.mean()), 0.0])
    assert ours == pytest.approx(truth, abs=2e-3)
    ours, train, test = found(Config(likelihood="poisson"), counts)
    assert ours == pytest.approx(scipy.stats.poisson(train.mean(0)).logpmf(test).mean(0), rel=1e-3)


def test_real_values_in_any_unit():
    rng = np.random.default_rng(1)
    values = np.array([1.0, 1e9, 1e-6]) * np.add(rng.standard_t(3, (N, 3)), [0, 100, 5])
    ours, train, test = found(Config(likelihood="normal-diagonal"), values)
    assert ours == pytest.approx(scipy.stats.norm(train.mean(0), train.std(0)).logpdf(test).mean(0), abs=2e-3)
    ours, train, test = found(Config(likelihood="student-t"), values)
    unit = train.std(0)
    truth = expected(student, train / unit, test / unit, lambda x: [np.median(x), -0.5, 0.7])
    assert ours == pytest.approx(truth - np.log(unit), abs=2e-3)


def test_columns_of_which_values_are_missing():
    rng = np.random.default_rng(2)
    values = np.stack([rng.integers(0, 4, N), rng.normal(3, 2, N), rng.random(N) < 0.3, rng.integers(0, 3, N)], 1)
    values[::3, 0] = values[1::4, 1] = np.nan
    kinds = "categorical:4,real,binary,ordinal:3"
    ours, train, test = found(Config(likelihood="columns", columns=kinds, missing=True), values)
    for place in (0, 2, 3):
        shares = [(train[:, place] == code).sum() / (~np.isnan(train[:, place])).sum() for code in range(4)]
        is_there = ~np.isnan(test[:, place])
        truth = np.log(np.array(shares)[test[is_there, place].astype(int)]).sum() / len(test)
        assert ours[place] == pytest.approx(truth, abs=2e-3)
    real = scipy.stats.norm(np.nanmean(train[:, 1]), np.nanstd(train[:, 1])).logpdf(test[:, 1])
    assert ours[1] == pytest.approx(np.nansum(real) / len(test), abs=2e-3)


def images():
    """Bytes whose pixels have different means, of which one row is constant."""
    rng = np.random.default_rng(3)
    share = np.linspace(0, 0.9, 20).reshape(1, 5, 4)
    return np.where(rng.random((N, 1, 5, 4)) < share, rng.integers(150, 256, (N, 1, 5, 4)), 0).astype(np.uint8)


@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
def test_pixels_of_a_bernoulli(binarize):
    """Each pixel's mean; where a pixel is 0 in all images, the probability of 1 is below 1 / 100."""
    ours, train, test = found(Config(likelihood="bernoulli", binarize=binarize), images())
    mean = np.maximum(train.mean(0), 1e-3)
    truth = (test * np.log(mean) + (1 - test) * np.log1p(-mean)).mean(0)
    assert ours == pytest.approx(truth, abs=0.01)
    assert ours.sum() == pytest.approx(truth.sum(), abs=0.03)


@pytest.mark.parametrize("count", [400, 60_000])
def test_the_probability_of_a_pixel_that_is_0_in_all_images(count):
    """It solves p = -logit(p) / (25 n): 7.8e-6 for 60,000 images."""
    config = Config(likelihood="bernoulli", binarize="threshold", latent_dim=2, hidden=(4,))
    p_x, preparation = build_vae(config, (1, 1, 2)).p_x, preparation_of(config)
    images = torch.zeros(count, 1, 1, 2, dtype=torch.uint8)
    images[::2, ..., 1] = 255
    reached = floor(p_x, Pixels(images, preparation), Pixels(torch.full_like(images[:2], 255), preparation))
    p = scipy.optimize.brentq(lambda p: p + scipy.special.logit(p) / (25 * count), 1e-9, 0.1, xtol=1e-14)
    assert reached.exp().flatten().tolist() == pytest.approx([p, 0.5], rel=3e-3)
    assert count == 400 or p == pytest.approx(7.8e-6, abs=5e-8)


def test_pixels_of_a_normal():
    data = images()
    ours, train, test = found(Config(likelihood="normal", scale=0.3), data)
    truth = scipy.stats.norm(train.mean(0), 0.3).logpdf(test).mean(0)
    assert ours == pytest.approx(truth, abs=0.01)
    ours, train, test = found(Config(likelihood="normal-learned", scale=0.3), data)
    truth = scipy.stats.norm(train.mean(0), np.sqrt(train.var(0).mean())).logpdf(test).mean(0)
    assert ours == pytest.approx(truth, abs=0.01)


def test_pixels_of_a_discretized_logistic_are_at_their_maximum():
    """No other location of a pixel or scale of all gives the training data a larger probability, beyond the prior."""
    config = Config(likelihood="discretized-logistic")
    ours, train, test = found(config, images())
    p_x = build_vae(config, (1, 5, 4)).double().p_x

    def log_p(x, output, log_scale):
        p_x.log_scale.data.fill_(log_scale)
        with torch.no_grad():
            return p_x.pixels(torch.full((len(x),), output, dtype=torch.float64)).log_prob(torch.from_numpy(x)).numpy()

    def fitted(scale):
        options = {"bounds": (-12, 12), "method": "bounded", "options": {"xatol": 1e-3}}
        each = [
            scipy.optimize.minimize_scalar(lambda o, x=x: o**2 / 50 - log_p(x, o, scale).sum(), **options)
            for x in train.T
        ]
        return sum(one.fun for one in each), [one.x for one in each]

    options = {"bounds": (-4, 1), "method": "bounded", "options": {"xatol": 1e-3}}
    scale = scipy.optimize.minimize_scalar(lambda s: fitted(s)[0], **options).x
    truth = [log_p(x, output, scale).mean() for x, output in zip(test.T, fitted(scale)[1])]
    assert ours.sum() == pytest.approx(sum(truth), abs=0.2)


def test_a_module_of_your_own_has_no_floor():
    config = Config(latent_dim=2, hidden=(4,))
    vae = build_vae(config, (1, 5, 4))

    class Own(torch.nn.Module):
        def forward(self, z):
            return vae.p_x(z)

    x = Pixels(torch.from_numpy(images()), preparation_of(config))
    assert floor(VAE(vae.p_z, vae.q_z, Own()).p_x, x, x) is None
    assert floor(build_vae(config.replace(likelihood="normal-optimal"), (1, 5, 4)).p_x, x, x) is None
    assert floor(build_vae(config.replace(condition=True), (1, 5, 4), 10).p_x, x, x) is None


def made(count):
    """Rows of two columns that depend on each other."""
    z = torch.randn(count, 1, generator=torch.Generator().manual_seed(0))
    return torch.cat([z, 2 * z], 1) + 0.1 * torch.randn(count, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("valid", [0.0, 0.2])
def test_a_training_says_its_floor_and_whether_it_ends_below(tmp_path, capsys, valid):
    """A VAE that does not learn, by a learning rate of 1e-9, is below it, and one that learns is not."""
    x = made(300)
    data = Dataset("made", x[:250], x[250:])
    config = Config(likelihood="normal-diagonal", latent_dim=1, hidden=(20,), batch_size=25, valid=valid)
    for lr, epochs in ((1e-9, 2), (1e-2, 60)):
        callbacks = default_callbacks(quiet=False)
        run = fit(config.replace(lr=lr, epochs=epochs), data=data, out=tmp_path / str(lr), callbacks=callbacks)
        train, held_out = run.dataset().train, run.dataset().splits["valid" if valid else "test"]
        reached = floor(run.vae().p_x, *(run.preparation.x_of(part) for part in (train, held_out))).sum().item()
        said = capsys.readouterr().out
        assert f"ELBO {reached:.2f}" in said.split("epoch ")[0] + said.split("into")[1].split("epoch")[0]
        assert ("warning" in said) == (lr == 1e-9)


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_report_splits_the_distortion_of_a_table_by_column(tmp_path):
    """Distortions add up to that of the ELBO, whose draws are others, and the floors to the floor."""
    x = torch.cat([made(300), torch.poisson(torch.full((300, 1), 4e4))], 1).double()
    columns = tuple(map(Column, ("first", "second", "count")))
    config = Config(likelihood="columns", columns="real*2,count", latent_dim=1, hidden=(20,), lr=1e-2, epochs=60)
    data = Dataset("made", x[:250], x[250:], columns=columns)
    report = evaluate(fit(config.replace(batch_size=25), data=data, out=tmp_path / "run"), num_particles=2)
    total = sum(column.distortion.mean for column in report.columns.columns)
    assert total == pytest.approx(report.elbo_parts.distortion.mean, abs=0.5)
    assert report.floor.elbo == pytest.approx(-sum(column.without_latent for column in report.columns.columns))
    first, second, count = report.columns.columns
    assert max(one.distortion.mean - one.without_latent for one in (first, second)) < -1
    assert count.distortion.mean == pytest.approx(count.without_latent, abs=0.3)


@pytest.mark.parametrize(("elbo", "says"), [(-5.0, ""), (-7.0, "no more than"), (-9.0, "better by 2.00")])
def test_an_elbo_that_is_no_greater_than_without_a_latent_is_named(elbo, says):
    found = beside_no_latent(elbo, -7.0)
    assert says in found
    assert bool(found) == bool(says)
