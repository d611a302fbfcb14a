"""Codes, scores and samples of given images, against the VAE's own distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pvae.config.build import build_vae, preparation_of
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.preparation import Pixels
from pvae.marginal.importance import importance_sample
from pvae.trained import latent_space
from pvae.trained.latent_space import draw_codes, encode_images, sample
from pvae.trained.scores import elbo_terms, score_images, to_text

CPU = torch.device("cpu")
SYSTEMS = {
    "levels": Config(hidden=(8,), latent_dim=3, likelihood="discretized-logistic"),
    "binary": Config(hidden=(8,), latent_dim=3, binarize="static"),
    "density": Config(hidden=(8,), latent_dim=3, likelihood="normal", pixels="symmetric"),
    "two layers": Config(hidden=(6,), latent_dim=3, upper_latent_dims=(2,), upper_hidden=(4,), binarize="static"),
    "autoencoder": Config(hidden=(8,), latent_dim=3, posterior="delta"),
}  # fmt: skip


@pytest.fixture
def given():
    """Return the VAE of a kind, and seven images in the domain of its likelihood."""

    def build(kind):
        config = SYSTEMS[kind]
        with seeded(0, CPU):
            vae = build_vae(config, (1, 5, 4)).eval()
            images = torch.randint(256, (7, 1, 5, 4), dtype=torch.uint8)
        if config.binarize == "static":
            images = (images > 100).to(torch.uint8) * 255
        return vae, Pixels(images, preparation_of(config))

    return build


@pytest.mark.parametrize("kind", ["levels", "binary", "density", "autoencoder"])
def test_codes_are_the_posterior(given, monkeypatch, kind):
    """In one part, and in parts of two images."""
    vae, x = given(kind)
    (whole,) = x.split(7)
    for at_once in (7, 2):
        monkeypatch.setattr(latent_space, "data_at_once", lambda *_, size=at_once: size)
        loc, scale = encode_images(vae, x)
        with torch.no_grad():
            q = vae.posterior(whole)
        torch.testing.assert_close(loc, q.mean)
        torch.testing.assert_close(scale, q.stddev)
    with seeded(3, CPU), torch.no_grad():
        z = torch.cat([vae.posterior(part).sample() for part in x.split(2)])
    with seeded(3, CPU):
        assert torch.equal(draw_codes(vae, x)["z"], z)


def test_two_layers_have_draws_alone(given):
    vae, x = given("two layers")
    with pytest.raises(InputError, match="--draws"):
        encode_images(vae, x)
    with seeded(0, CPU):
        draws = draw_codes(vae, x)
    assert {name: tuple(z.shape) for name, z in draws.items()} == {"z1": (7, 3), "z2": (7, 2)}
    with seeded(0, CPU), torch.no_grad():
        z = vae.posterior(next(iter(x.split(7)))).sample()
    assert torch.equal(torch.cat([*draws.values()], -1), z)


@pytest.mark.parametrize("kind", ["levels", "binary", "density", "two layers"])
def test_scores_are_the_importance_sample_and_the_elbo(given, kind):
    vae, x = given(kind)
    names = [f"image-{n}" for n in range(7)]
    with seeded(5, CPU):
        scores = score_images(vae, Batch(x), names, 20)
    with seeded(5, CPU):
        sample, terms = importance_sample(vae, x, 20), elbo_terms(vae, x)
    assert [*scores.index] == names, "in the order of the data"
    assert {*scores["method"]} == {"importance"}
    for name, values in {**sample._replace(method=scores["method"])._asdict(), **terms}.items():
        assert name not in scores or scores[name].tolist() == values.tolist()
    torch.testing.assert_close(terms["elbo"], -terms["distortion"] - terms["rate"])
    scale = {"density": 127.5}.get(kind, 1)
    bits = (-sample.log_p.double() / 20 + math.log(scale)) / math.log(2)
    assert scores["bits_per_dimension"].tolist() == pytest.approx(bits.tolist())
    assert [line.split()[1] for line in to_text(scores).splitlines()[2:]] == names


@pytest.mark.parametrize(
    ("likelihood", "has_bits"),
    [("poisson", True), ("count*3", True), ("normal-diagonal", False), ("real,count*2", False)],
)
def test_bits_are_of_what_was_observed_and_of_probabilities_alone(likelihood, has_bits):
    """log p of 1 and of 3 counts; a density of columns, whose units differ, has no bits."""
    kinds = {"likelihood": "columns", "columns": likelihood} if "*" in likelihood else {"likelihood": likelihood}
    with seeded(0, CPU):
        vae = build_vae(Config(hidden=(8,), latent_dim=2, missing=True, **kinds), (3,)).eval()
    x = torch.tensor([[1.0, torch.nan, torch.nan], [2, 0, 3]])
    scores = score_images(vae, Batch(Pixels(x)), ["one", "all"], 5)
    assert scores["missing"].tolist() == [2, 0]
    assert ("bits_per_dimension" in scores) == has_bits
    if has_bits:
        bits = (-scores["log_p"] / [1, 3] / math.log(2)).tolist()
        assert scores["bits_per_dimension"].tolist() == pytest.approx(bits)
    assert "missing" not in score_images(vae, Batch(Pixels(x[1:])), ["all"], 5)


def test_a_row_gets_more_draws_where_few_cannot_be_trusted(linear, x):
    """Of a q that is far off, 50 draws are not trusted; more give the log p of linear Normals to 0.1 nats."""
    vae = linear(off=1.0)
    loadings, offset = vae.p_x.decoder[0].weight, vae.p_x.decoder[0].bias
    covariance = loadings @ loadings.T + 0.5**2 * torch.eye(12)
    truth = MultivariateNormal(offset, covariance).log_prob(x.flatten(1)).detach()
    with seeded(0, CPU):
        few = importance_sample(vae, x, 50)
    with seeded(0, CPU):
        scores = score_images(vae, Batch(Pixels(x)), [*"abcde"], 50)
    left = ~few.is_trusted
    assert left.any()
    assert scores["is_trusted"].all()
    assert scores["log_p"][left.numpy()].to_numpy() == pytest.approx(truth[left].numpy(), abs=0.1)


@pytest.mark.parametrize("kind", ["levels", "binary", "density", "two layers"])
def test_samples_are_means_or_draws_of_the_likelihood(given, kind):
    vae, _ = given(kind)
    for draws in (False, True):
        with seeded(2, CPU):
            images = sample(vae, 9, draws)
        with seeded(2, CPU), torch.no_grad():
            p_x = vae.likelihood(vae.prior().sample((9,)))
            assert torch.equal(images, p_x.sample() if draws else p_x.mean)
        if draws and kind != "density":
            vae.p_x.check(images)


def test_an_autoencoder_has_no_scores_and_no_samples(given):
    vae, x = given("autoencoder")
    with pytest.raises(InputError, match="no likelihood"):
        score_images(vae, Batch(x), [""] * 7)
    with pytest.raises(InputError, match="no prior"):
        sample(vae, 2)
