"""What does not go together is refused, in one line that names an option."""

from __future__ import annotations

import pytest
import torch

from pvae.config.config import Config
from pvae.config.refusals import contradictions, refuse
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.tables.column import Column

IMAGES = Dataset("images", torch.zeros(31, 1, 8, 8, dtype=torch.uint8), torch.zeros(9, 1, 8, 8, dtype=torch.uint8))
VALUES = Dataset("values", torch.rand(31, 3), torch.rand(9, 3))
TEXTS = Dataset("texts", torch.zeros(31, 1), torch.zeros(9, 1), columns=(Column("colour", ("red", "blue")),))
RARE = Dataset("rare", torch.zeros(31, 1), torch.eye(9)[:, :1], columns=(Column("claim", ()),))
TWO = {"upper_latent_dims": (2,)}
BITS = {"posterior": "bernoulli", "prior": "bits"}
REAL = {"likelihood": "normal-diagonal"}

OF_CONFIG = [
    {"posterior": "delta", "beta": 2.0},
    {"posterior": "delta", "prior": "mixture"},
    {"posterior": "bernoulli"},
    {"posterior": "categorical", "prior": "categories", "latent_dim": 32},
    {"posterior": "vq", "prior": "uniform-codes", "code_dim": 7},
    {"posterior": "power-spherical", "prior": "sphere", "latent_dim": 1},
    {**TWO, "posterior": "iaf"},
    {**TWO, "prior": "vamp"},
    {"free_bits": 0.1, "posterior": "planar"},
    {"elbo": "beta-tc", "posterior": "iaf"},
    {"elbo": "beta-tc", "prior": "mixture"},
    {**TWO, "elbo": "beta-tc"},
    {"prior": "vamp", "network": "conv-batchnorm"},
    {"likelihood": "normal-linear"},
    {"likelihood": "columns"},
    {"pixels": "symmetric"},
    {**REAL, "pad": 2},
    {"likelihood": "normal-optimal", "missing": True},
    {"labels": 10, "condition": True},
    {"condition": True, **TWO},
    {"labels": 10, "network": "mlp-batchnorm"},
    {"initialization": "burda", "network": "conv"},
    {"initialization": "exact", "binarize": "threshold", "network": "conv"},
]
OTHERS = [
    ({"labels": 10}, {}),
    ({"posterior": "delta", "elbo": "iwae"}, {}),
    ({"posterior": "planar", "elbo": "analytic"}, {}),
    ({"likelihood": "normal-optimal", "elbo": "dreg"}, {}),
    ({"elbo": "iwae"}, {"has_own_beta": True}),
    ({"elbo": "stl", "free_bits": 0.1}, {}),
    ({**BITS, "elbo": "trace"}, {}),
    ({"elbo": "arms", "particles": 4}, {}),
    ({**BITS, **TWO, "elbo": "arms", "particles": 4}, {}),
    ({**BITS, "elbo": "disarm", "particles": 3}, {}),
    ({"elbo": "score-loo"}, {}),
    ({"elbo": "miwae", "particles": 5, "groups": 2}, {}),
    ({"initialization": "exact", "binarize": "threshold"}, {"data": IMAGES}),
    (REAL, {"data": IMAGES}),
    ({"pad": 2}, {"data": VALUES}),
    ({}, {"data": TEXTS}),
    (REAL, {"data": RARE}),
    ({"batch_size": 32}, {"data": IMAGES}),
    ({"network": "mlp-batchnorm", "batch_size": 10}, {"data": IMAGES}),
    ({"free_bits": 0.1}, {"num_processes": 2}),
    ({"elbo": "beta-tc"}, {"num_processes": 2}),
    ({"likelihood": "normal-optimal"}, {"num_processes": 2}),
    ({"network": "conv"}, {"datum_shape": (5,)}),
    ({"likelihood": "columns", "columns": "real*2"}, {"datum_shape": (3,)}),
    ({"condition": True}, {"num_labels": 0}),
]


@pytest.mark.parametrize("options", OF_CONFIG)
def test_a_configuration_that_contradicts_itself_is_refused(options):
    with pytest.raises(InputError) as caught:
        Config(**options)
    assert str(caught.value).isprintable()
    assert "--" in str(caught.value), "it names an option"


@pytest.mark.parametrize(("options", "known"), OTHERS)
def test_a_case_is_refused_by_what_is_known_of_it(options, known):
    config = Config(**options)
    with pytest.raises(InputError) as caught:
        refuse(config, has_elbo=True, **known)
    assert str(caught.value).isprintable()
    refuse(config)


def test_each_case_is_refused_by_another_contradiction():
    """Of a case with several, such as these, the first is raised: none of them is hidden by another."""
    first = {next(contradictions(Config(**options), has_elbo=True, **known)) for options, known in OTHERS}
    assert len(first) == len(OTHERS)


def test_a_vae_of_ones_own_is_refused_nothing_that_the_configuration_says_of_networks():
    config = Config(network="mlp-batchnorm", batch_size=10)
    refuse(config, data=TEXTS, has_own_vae=True, num_processes=2)
    refuse(Config(**REAL, batch_size=10), data=RARE, has_own_vae=True)
