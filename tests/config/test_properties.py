"""Every configuration is built and read back, or refused in one line before a file is written.

The cases are drawn by hypothesis and are the same in every run.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import pyro
import pytest
import torch
from helpers.families import shape_for, x_for
from helpers.svi import ELBOS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvae.config.config import OPTIONS, Config
from pvae.config.families import LIKELIHOODS
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.core.records import from_record
from pvae.data.dataset import Dataset
from pvae.elbos.registry import ELBO_CLASSES, elbo_of
from pvae.models.build import build_vae, fit_to
from pvae.training.fit import fit

SAME_EVERY_TIME = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIDE, NUM_TRAIN = 8, 12


def images(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (NUM_TRAIN + 4, channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return Dataset("noise", pixels[:NUM_TRAIN], pixels[NUM_TRAIN:])


@st.composite
def configs(draw):
    """Draw fields of a configuration; most contradictory combinations are avoided."""
    given = {
        "network": draw(st.sampled_from(OPTIONS["network"].choices)),
        "posterior": draw(st.sampled_from(OPTIONS["posterior"].choices)),
        "likelihood": draw(st.sampled_from(OPTIONS["likelihood"].choices)),
        "binarize": draw(st.sampled_from(OPTIONS["binarize"].choices)),
        "elbo": draw(st.sampled_from(ELBOS)),
        "particles": draw(st.integers(2, 4)),
        "hidden": tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))),
        "latent_dim": draw(st.integers(1, 4)),
        "pad": draw(st.sampled_from((0, 4))),
        "batch_size": draw(st.integers(2, NUM_TRAIN)),
        "lr": draw(st.floats(1e-6, 1e-3)),
        "scale": draw(st.floats(0.1, 2.0)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "schedule": draw(st.sampled_from(OPTIONS["schedule"].choices)),
        "clip_norm": draw(st.sampled_from((0.0, 0.5, 100.0))),
        "epochs": 1,
    }
    if given["likelihood"] == "normal-linear":
        given["network"] = "linear"
    family = LIKELIHOODS[given["likelihood"]]
    if not family.has_scale:
        given.pop("scale")
    if family.needs_batch and ELBO_CLASSES[given["elbo"]].needs_separate_draws:
        given["elbo"] = "iwae"
    if given["posterior"] == "delta":
        given["elbo"] = draw(st.sampled_from(("trace", "analytic", "handwritten")))
    elif "beta" in ELBO_CLASSES[given["elbo"]].options:
        given["beta"] = draw(st.floats(0.0, 4.0))
        given["warm_up"] = draw(st.integers(0, 2))
    if family.is_symmetric and given["binarize"] == "none":
        given["pixels"] = draw(st.sampled_from(OPTIONS["pixels"].choices))
    if given["posterior"] == "power-spherical":
        given["prior"], given["latent_dim"] = "sphere", 1 + given["latent_dim"]
    if given["network"].endswith("batchnorm"):
        given["elbo"] = "iwae" if ELBO_CLASSES[given["elbo"]].needs_separate_draws else given["elbo"]
        given["batch_size"] = NUM_TRAIN if NUM_TRAIN % given["batch_size"] == 1 else given["batch_size"]
    if given["network"].startswith("mlp"):
        given["activation"] = draw(st.sampled_from(OPTIONS["activation"].choices))
    if given["posterior"] in ("normal", "normal-log-variance") and given["likelihood"] != "normal-linear":
        given["upper_latent_dims"] = draw(st.sampled_from(((), (2,), (3, 1))))
        if given["posterior"] == "normal":
            given["inference"] = draw(st.sampled_from(OPTIONS["inference"].choices))
    return given


def test_every_configuration_is_built_and_read_back_or_refused_in_one_line():
    accepted = []
    any_configuration(accepted)
    assert len(accepted) >= 30


@settings(SAME_EVERY_TIME, max_examples=100)
@given(given=configs(), channels=st.sampled_from((1, 3)))
def any_configuration(accepted, given, channels):
    try:
        config = Config(**given)
        elbo = elbo_of(config)
    except InputError as error:  # its fields contradict each other
        refused = str(error)
        assert refused.isprintable()
        return
    accepted.append(config)
    assert from_record(Config, json.loads(json.dumps(asdict(config)))) == config
    shape = (channels, SIDE, SIDE) if config.likelihood_family.is_of_images else shape_for(config)
    x = x_for(config, 6, shape)
    x = x.round() if config.binarize == "dynamic" else x
    with seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
        vae = build_vae(config, shape)
        fit_to(vae, x)
        loss = elbo.loss_and_terms(vae.model, vae.guide, x).loss
    assert loss.isfinite()


NO_COUNT = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=2**63),
    st.floats(),
    st.text(),
    st.booleans(),
    st.none(),
    st.lists(st.integers()),
)
NO_REAL = st.one_of(
    st.sampled_from((math.nan, math.inf, -1e-9, 10**400)),
    st.floats(max_value=-1e-300),
    st.text(),
    st.booleans(),
    st.none(),
    st.complex_numbers(),
    st.binary(),
)
NO_NAME = st.one_of(
    st.text(), st.integers(), st.none(), st.lists(st.text()), st.dictionaries(st.text(), st.text()), st.binary()
)
NO_WIDTHS = st.one_of(
    st.integers(),
    st.text(),
    st.none(),
    st.just(()),
    st.just((1,) * 10**4),
    st.lists(st.integers(max_value=0), min_size=1),
    st.lists(NO_COUNT, min_size=1),
    st.dictionaries(st.text(min_size=1), st.integers(), min_size=1),
)
NO_SWITCH = st.one_of(st.integers(), st.text(), st.none())
WRONG = {"int": NO_COUNT, "float": NO_REAL, "bool": NO_SWITCH, "tuple[int, ...]": NO_WIDTHS, "str": NO_NAME}
OTHERS = {
    "alpha": st.sampled_from((math.nan, math.inf, "x", None, True)),  # it may be negative
    "image_size": st.sampled_from(("", "0", "64x", "x64", "1e3", "64 x 64", "123456", 0, -5, 10**5, 6.4, None, True)),
    "source": st.one_of(st.none(), st.just("x" * 2000)),
    "label_column": st.sampled_from(("x" * 300, "a\nb", 5.5, None, True)),
    "columns": st.sampled_from(("real,", "real*0", "categorical", "ordinal:1", "text", " real", "real*9" * 9, 5, None)),
    "system": st.sampled_from(("", "../up", "a/b", "a b", "a\n", "x" * 200)),
}


@st.composite
def spoiled(draw):
    """Draw a field and an invalid value."""
    field = draw(st.sampled_from(fields(Config)))
    value = draw(OTHERS.get(field.name, WRONG[field.type]))
    names = {name for option in OPTIONS.values() for name in option.choices}
    # Hypothesis may take a text from the code of any test.
    is_valid = isinstance(value, str) and (value in names or value.startswith(("folder:", "array:", "table:")))
    value = 0.5 if is_valid else value
    return field.name, (0,) if field.name == "upper_latent_dims" and not value else value


@settings(SAME_EVERY_TIME, max_examples=400)
@given(spoiled())
def test_an_invalid_field_is_refused(spoiling):
    name, value = spoiling
    with pytest.raises(InputError) as caught:
        Config(**{name: value})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


BAD_WITH_THESE_IMAGES = st.one_of(
    st.builds(lambda n: {"batch_size": NUM_TRAIN + n}, st.integers(1, 10**8)),
    st.builds(lambda n: {"hidden": (10**n, 10**9)}, st.integers(4, 9)),
    st.builds(lambda n: {"latent_dim": 10**n, "hidden": (10**6,)}, st.integers(6, 9)),
    st.builds(lambda n: {"network": "conv-groupnorm", "hidden": (2,) * n}, st.integers(4, 900)),
)


@settings(SAME_EVERY_TIME, max_examples=40)
@given(BAD_WITH_THESE_IMAGES)
def test_a_configuration_that_does_not_fit_the_images_writes_no_file(given):
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(InputError) as caught:
            fit(Config(**{"batch_size": 4, **given}), data=images(1, 0), out=Path(folder) / "run")
        assert str(caught.value).isprintable()
        assert not list(Path(folder).iterdir())
