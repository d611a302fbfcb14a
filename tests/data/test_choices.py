"""The options that are chosen for a user's own images."""

from __future__ import annotations

import math

import pytest
import torch

import pvae
from pvae.data.choices import describe_choices, images_config
from pvae.data.dataset import Dataset


def smooth(count, height, width):
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


@pytest.mark.parametrize(
    ("height", "width", "hidden"),
    [(32, 32, (32, 64, 128)), (128, 128, (32, 64, 128, 256)), (512, 512, (32, 64, 128, *[256] * 4)), (64, 999, None)],
)
def test_the_encoders_last_layer_has_at_most_16384_inputs(height, width, hidden):
    config = images_config(Dataset("x", smooth(20, height, width), smooth(4, height, width)))
    assert hidden in (config.hidden, None)
    depth = len(config.hidden)
    assert 0 < (height >> depth) * (width >> depth) * config.hidden[-1] <= 2**14


def test_large_images_train_from_the_first_epoch(tmp_path):
    """By four convolutions the log scale of q runs away, to a rate of 18 million nats."""
    config = images_config(Dataset("x", smooth(32, 256, 256), smooth(4, 256, 256)), valid=0.0, batch_size=4, epochs=1)
    test = pvae.fit(
        config, data=Dataset("x", smooth(32, 256, 256), smooth(4, 256, 256)), out=tmp_path / "run"
    ).metrics()
    assert test[-1].rate < 1e5
    assert -test[-1].elbo / 256**2 / math.log(2) < 12


@pytest.mark.parametrize("given", [{"prior": "mixture"}, {"prior": "vamp", "elbo": "iwae"}, {"posterior": "iaf"}, {}])
def test_the_elbo_is_trace_where_the_rate_has_no_closed_form(given):
    data = Dataset("x", smooth(20, 28, 28), smooth(4, 28, 28))
    config = images_config(data, **given)
    assert config.elbo == given.get("elbo", "trace" if given else "analytic")
    assert ("--elbo trace" in describe_choices(data, config, given)) == (config.elbo == "trace")
