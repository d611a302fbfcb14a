"""Codes of a codebook that is used: counted, and written by a coder."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from pvae.config.config import Config
from pvae.evaluation.measures.codes import code_indices, log_prior_of
from pvae.evaluation.report import evaluate
from pvae.trained.codes import run_batch
from pvae.training.fit import fit


def written(symbols, frequencies):
    """The bits of an arithmetic coder in exact fractions, and the symbols that they are read as."""
    low, width = Fraction(0), Fraction(1)
    for symbol, counts in zip(symbols, frequencies):
        low += width * Fraction(sum(counts[:symbol]), sum(counts))
        width *= Fraction(counts[symbol], sum(counts))
    length = 0
    while Fraction(1, 2**length) > width / 2:
        length += 1
    value = Fraction(-(-low.numerator * 2**length // low.denominator), 2**length)
    assert low <= value < low + width
    found, low, width = [], Fraction(0), Fraction(1)
    for counts in frequencies:
        ends = [low + width * Fraction(sum(counts[:symbol]), sum(counts)) for symbol in range(len(counts) + 1)]
        symbol = max(symbol for symbol in range(len(counts)) if ends[symbol] <= value)
        low, width = ends[symbol], ends[symbol + 1] - ends[symbol]
        found.append(symbol)
    return length, found


def test_a_file_of_codes_is_as_long_as_the_cross_entropy():
    draw = torch.Generator().manual_seed(0)
    train = torch.multinomial(torch.tensor([0.6, 0.3, 0.1, 0.0]), 3 * 200, True, generator=draw).view(200, 3)
    test = torch.multinomial(torch.tensor([0.6, 0.3, 0.08, 0.02]), 3 * 30, True, generator=draw).view(30, 3)
    log_prior, used = log_prior_of(train, 4)
    assert used.all(0).tolist() == [True, True, True, False]
    nats = -log_prior.gather(1, test.T).sum().item()
    counts = [(2 * train[:, n].bincount(minlength=4) + 1).tolist() for n in range(3)]
    length, found = written(test.flatten().tolist(), counts * 30)
    assert found == test.flatten().tolist()
    assert nats / math.log(2) <= length <= nats / math.log(2) + 2


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
