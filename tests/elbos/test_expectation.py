"""In expectation all forms of the ELBO agree, on a sample that would have seen an error of 1 %.

Every comparison is at 4.3 standard errors: it fails once in 59,000 times where nothing is wrong.
"""

from __future__ import annotations

import math

import pytest
import torch

from pvae.reference import elbo as reference_elbo

SIGMAS = 4.3
DRAWS = 1_000_000


@pytest.fixture(scope="module")
def estimates():
    """Draw (quantity, form) to (mean, standard error), one datum, independent draws for each form."""
    from pvae.config.config import Config
    from pvae.models.build import build_vae

    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae = build_vae(Config(hidden=(8,), latent_dim=3), (1, 3, 3)).double()
        for parameter in vae.q_z.parameters():
            parameter.data *= 4.0  # far enough from the prior for a rate of many nats
        x = torch.rand(1, 1, 3, 3, dtype=torch.float64).expand(DRAWS, 1, 3, 3)
        with torch.no_grad():
            forms = {
                "monte carlo": reference_elbo.monte_carlo(vae, x),
                "closed form": reference_elbo.closed_form(vae, x),
                "three parts": reference_elbo.three_parts(vae, x),
            }
    found = {}
    for form, terms in forms.items():
        found["elbo", form] = terms.elbo
    for form in ("monte carlo", "closed form"):
        found["distortion", form], found["rate", form] = forms[form].distortion, forms[form].rate
    parts = forms["three parts"]
    found["distortion", "three parts"] = parts.reconstruction_error
    found["rate", "three parts"] = parts.cross_entropy - parts.posterior_entropy
    return {key: (v.mean().item(), v.std().item() / math.sqrt(DRAWS)) for key, v in found.items()}


@pytest.mark.parametrize("form", ["monte carlo", "three parts"])
@pytest.mark.parametrize("quantity", ["elbo", "distortion", "rate"])
def test_forms_agree(estimates, quantity, form):
    (ours, error), (theirs, their_error) = estimates[quantity, form], estimates[quantity, "closed form"]
    error = math.hypot(error, their_error)
    assert SIGMAS * error < 0.01 * abs(theirs) / 2, "this sample could not have seen an error of 1 %"
    assert abs(ours - theirs) < SIGMAS * error
