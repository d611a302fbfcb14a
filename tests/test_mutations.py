"""The tests of the losses can fail: each mutation of the package below makes them.

A copy of the package is mutated in one place, and the tests of the losses are run on it in a process of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "pvae"
LOSS_TESTS = ("test_agreement.py", "test_expectation.py", "test_truth.py")

MUTATIONS = {
    "sign of log p(z)": ("handwritten.py", "rate=(log_q_z - log_p_z)", "rate=(log_q_z + log_p_z)"),
    "sign of log q(z | x)": ("handwritten.py", "rate=(log_q_z - log_p_z)", "rate=(-log_q_z - log_p_z)"),
    "sign of the distortion": (
        "handwritten.py",
        "Terms(distortion=-log_p_x.mean(0), rate=(",
        "Terms(distortion=log_p_x.mean(0), rate=(",
    ),
    "mean in place of a sum over pixels": (
        "likelihoods.py",
        "support = constraints.unit_interval",
        "support = constraints.unit_interval\n\n    def log_prob(self, x):\n        return super().log_prob(x) / 20",
    ),
    "mean in place of a sum over pixels, by hand": (
        "handwritten.py",
        "Terms(distortion=-log_p_x.mean(0), rate=(",
        "Terms(distortion=-log_p_x.mean(0) / x[0].numel(), rate=(",
    ),
    "scale used as a variance": ("latents.py", "log_scale.exp()", "(0.5 * log_scale).exp()"),
    "scale used as a variance in log q": (
        "handwritten.py",
        "log_q_z = posterior.log_prob(z)",
        "log_q_z = type(posterior.base_dist)(posterior.mean, posterior.stddev.sqrt()).to_event(1).log_prob(z)",
    ),
    "log q at a detached scale": (
        "handwritten.py",
        "log_q_z = posterior.log_prob(z)",
        "log_q_z = type(posterior.base_dist)(posterior.mean, posterior.stddev.detach()).to_event(1).log_prob(z)",
    ),
    "entropy left out of the three parts": ("handwritten.py", "+ self.posterior_entropy ", ""),
    "entropy left out of the three parts' terms": ("handwritten.py", "posterior.entropy()", "0 * posterior.entropy()"),
    "KL the wrong way round": (
        "handwritten.py",
        "rate=kl_divergence(posterior, vae.prior())",
        "rate=kl_divergence(vae.prior().expand(posterior.batch_shape), posterior)",
    ),
    "beta on the observed site too": ("elbos.py", 'if not msg["is_observed"]:', "if True:"),
    "sum over the batch in place of a mean": ("elbos.py", "loss = summed / x.shape[0]", "loss = summed"),
    "Monte Carlo in place of a missing closed form": (
        "elbos.py",
        'raise InputError(f"no closed-form KL is known for ({pair}): use --elbo trace") from None',
        "return posterior_site['unscaled_log_prob'] - prior_site['unscaled_log_prob']",
    ),
    "a sigmoid before the Bernoulli": (
        "likelihoods.py",
        "dist.Bernoulli(logits=output)",
        "dist.Bernoulli(output.sigmoid())",
    ),
    "only the first latent recorded": (
        "elbos.py",
        'for name, site in sites if not site["is_observed"])',
        'for name, site in sites if name == "z")',
    ),
    "prior of another width": ("latents.py", "torch.ones(latent_dim)", "2 * torch.ones(latent_dim)"),
}


def run_loss_tests(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{t}" for t in LOSS_TESTS),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of the tests of the losses, with nothing else of the project."""
    shutil.copytree(PACKAGE, tmp_path / "pvae", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", *LOSS_TESTS):
        shutil.copy(TESTS / name, tmp_path / "tests")
    return tmp_path


def test_the_copy_passes_unmutated(copy):
    done = run_loss_tests(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_seen(copy, mutation):
    name, original, mutant = MUTATIONS[mutation]
    source = (copy / "pvae" / name).read_text()
    assert source.count(original) == 1, f"{original!r} stands {source.count(original)} times in {name}"
    (copy / "pvae" / name).write_text(source.replace(original, mutant))
    done = run_loss_tests(copy)
    assert done.returncode == 1, f"the tests did not see: {mutation}\n{done.stdout}"
    assert "SyntaxError" not in done.stdout, "the mutant does not run at all"
    assert "NameError" not in done.stdout, "the mutant does not run at all"
