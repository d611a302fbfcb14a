"""Codes of a codebook that is used, counted."""

from __future__ import annotations

import math

import pytest
import torch

from pvae.config.config import Config
from pvae.evaluation.measures.latents import code_indices, log_prior_of
from pvae.evaluation.report import evaluate
from pvae.trained.codes import run_batch
from pvae.training.fit import fit


def test_the_prior_of_codes_is_their_shares_with_half_a_count_each():
    """By the definition, and a distribution, so that a coder needs the cross-entropy of what it writes."""
    draw = torch.Generator().manual_seed(0)
    train = torch.multinomial(torch.tensor([0.6, 0.3, 0.1, 0.0]), 3 * 200, True, generator=draw).view(200, 3)
    log_prior, used = log_prior_of(train, 4)
    assert used.all(0).tolist() == [True, True, True, False]
    for code in range(4):
        counts = (train == code).sum(0).double()
        torch.testing.assert_close(log_prior[:, code], ((counts + 0.5) / 202).log())
    assert log_prior.exp().sum(1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.workflow
def test_the_codes_of_a_run_are_counted(tmp_path, few_digits, no_pictures):
    options = {"posterior": "fsq", "prior": "uniform-codes", "categories": 4, "latent_dim": 5, "hidden": (16,)}
    config = Config(**options, binarize="threshold", batch_size=50, epochs=2)
    run = fit(config, data=few_digits, out=tmp_path / "run")
    found = evaluate(run, num_particles=10).codes
    test = code_indices(run.vae(), run_batch(run, "test"))
    log_prior, used = log_prior_of(code_indices(run.vae(), run_batch(run, "train")), 4)
    rows = torch.stack([sum(log_prior[n, row[n]] for n in range(5)) for row in test])
    assert found.cross_entropy.mean == pytest.approx(-rows.mean().item())
    assert found.uniform_rate == pytest.approx(5 * math.log(4))
    assert found.saved.mean == pytest.approx(found.uniform_rate - found.cross_entropy.mean)
    assert found.unused == pytest.approx(1 - used.any(0).float().mean().item(), abs=1e-6)
    assert found.is_fixed
    entropies = [-sum(p.exp() * p for p in row) for row in log_prior]
    assert found.perplexity == pytest.approx(sum(math.exp(one) for one in entropies) / 5)
    assert 1 < found.perplexity <= 4
