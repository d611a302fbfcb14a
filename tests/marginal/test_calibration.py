"""Whether q(z | x) is calibrated, for a linear-Gaussian VAE whose p(z | x) is known."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from helpers.linear_gaussian import LinearGaussian

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.marginal.calibration import calibration

LEVEL = 1 - 2e-5


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_only_the_true_posterior_is_within_the_band(factor, num_labels):
    """The failure rate of the true posterior is 2e-5 at most, which is that of the band."""
    truth = LinearGaussian(num_labels=num_labels)
    vae = truth.vae()
    exact = vae.q_z.forward
    vae.q_z.forward = lambda *x: dist.MultivariateNormal((q := exact(*x)).loc, scale_tril=factor * q.scale_tril)
    with seeded(0):
        found = calibration(vae, Batch(truth.x, truth.y) if num_labels else truth.x, level=LEVEL)
    assert found.latents.shape == (2, 9)
    assert (found.distances < found.band).tolist() == [factor == 1] * 3
    masses = torch.arange(1, 10) / 10
    assert ((found.regions - masses).sign() == torch.tensor(factor - 1).sign()).all() or factor == 1


def test_a_shifted_posterior_is_seen_by_the_side():
    """Each z is then below its quantiles more often."""
    truth = LinearGaussian()
    with seeded(0):
        found = calibration(truth.vae(off=0.3), truth.x, level=LEVEL)
    assert (found.latents[:, 4] > 0.5 + found.band).all()


def test_a_vae_without_log_p_is_refused(small_vae, small_images):
    with pytest.raises(InputError):
        calibration(small_vae(), small_images(2))
