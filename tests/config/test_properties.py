"""Every configuration is built and read back, or refused in one line before a file is written.

The cases are drawn by hypothesis and are the same in every run.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields

import pyro
import pytest
import torch
from helpers.families import ROWS, config_with, shape_for, x_for
from helpers.svi import ELBOS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvae.config.build import build_vae, elbo_of
from pvae.config.config import OPTIONS, Config
from pvae.core.errors import InputError
from pvae.core.files import from_record
from pvae.core.random_state import seeded
from pvae.models.features import fit_to

SAME_EVERY_TIME = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


CHOICES = ("network", "posterior", "prior", "likelihood", "binarize", "pixels", "activation", "inference", "schedule")
VALUES = {name: st.sampled_from(OPTIONS[name].choices) for name in CHOICES} | {
    "particles": st.integers(2, 4),
    "hidden": st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple),
    "latent_dim": st.integers(1, 4),
    "upper_latent_dims": st.sampled_from(((2,), (3, 1))),
    "pad": st.just(4),
    "scale": st.floats(0.1, 2.0),
    "beta": st.floats(0.0, 4.0),
    "warm_up": st.integers(0, 2),
    "free_bits": st.floats(0.0, 1.0),
    "clip_norm": st.sampled_from((0.0, 0.5, 100.0)),
}
CHANGES = st.lists(
    st.one_of(*(st.tuples(st.just(name), of) for name, of in VALUES.items())), min_size=1, max_size=5
).map(dict)


def test_every_configuration_is_built_and_read_back_or_refused_in_one_line():
    accepted = []
    any_configuration(accepted)
    assert len(accepted) >= 60
    assert len({(one.posterior, one.prior, one.likelihood) for one in accepted}) >= 15
    assert len({one.elbo for one in accepted}) >= 6


@settings(SAME_EVERY_TIME, max_examples=300)
@given(
    row=st.sampled_from([*ROWS.values()]),
    elbo=st.sampled_from(ELBOS),
    changes=CHANGES,
    channels=st.sampled_from((1, 3)),
)
def any_configuration(accepted, row, elbo, changes, channels):
    with seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
        try:
            config = config_with(row, **{"elbo": elbo, "particles": 2, **changes})
            estimator = elbo_of(config)
            shape = (channels, 8, 8) if config.likelihood_class.is_of_images else shape_for(config)
            vae = build_vae(config, shape)
        except InputError as error:  # its fields contradict each other, or the shape of the data
            refused = str(error)
            assert refused.isprintable()
            return
        x = x_for(config, 6, shape)
        x = x.round() if config.binarize == "dynamic" else x
        fit_to(vae, x)
        loss = estimator.loss_and_terms(vae.model, vae.guide, x).loss
    assert loss.isfinite()
    assert from_record(Config, json.loads(json.dumps(asdict(config)))) == config
    accepted.append(config)


JUNK = st.one_of(
    st.none(),
    st.complex_numbers(),
    st.lists(st.none(), min_size=1),
    st.dictionaries(st.text(min_size=1), st.integers(), min_size=1),
)
NEGATIVE = st.integers(max_value=-1)
WRONG = {
    "int": st.one_of(JUNK, NEGATIVE, st.integers(min_value=2**63), st.floats(), st.text(), st.booleans()),
    "float": st.one_of(JUNK, NEGATIVE, st.sampled_from((math.nan, math.inf, 10**400)), st.text(), st.booleans()),
    "bool": st.one_of(JUNK, st.integers(), st.text()),
    "tuple": st.one_of(
        JUNK, st.integers(), st.text(), st.just((1,) * 10**4), st.lists(st.integers(max_value=0), min_size=1)
    ),
    "str": st.one_of(JUNK, st.integers(), st.text()),
}
OTHERS = {
    "alpha": st.sampled_from((math.nan, math.inf, "x", None, True)),  # it may be negative
    "image_size": st.sampled_from(("", "0", "64x", "x64", "1e3", "64 x 64", "123456", 0, -5, 10**5, 6.4, None, True)),
    "source": st.one_of(st.none(), st.just("x" * 2000)),
    **dict.fromkeys(
        ("label_column", "name_column", "ignore", "missing_values", "rules"),
        st.sampled_from(("x" * 10_001, "a\nb", 5.5, None, True)),
    ),
    "columns": st.sampled_from(
        ("real,", "real*0", "categorical", "ordinal:1", "text", " real", "real*9" * 9, "a=text", 5, None)
    ),
    "system": st.sampled_from(("", "../up", "a/b", "a b", "a\n", "x" * 200)),
}


@st.composite
def spoiled(draw):
    """Draw a field and an invalid value."""
    field = draw(st.sampled_from(fields(Config)))
    value = draw(OTHERS.get(field.name, WRONG[type(field.default).__name__]))
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
