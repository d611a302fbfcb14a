"""The tests of the losses can fail: each mutation of the package below makes them.

A copy of the package is mutated in one place, and the tests of the losses are run on it in a process of their own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forked import run_tests

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "pvae"
LOSS_TESTS = ("test_agreement.py", "test_expectation.py", "test_truth.py")

MUTATIONS = {
    "sign of log p(z)": ("reference/elbo.py", "rate=(log_q_z - log_p_z)", "rate=(log_q_z + log_p_z)"),
    "sign of log q(z | x)": ("reference/elbo.py", "rate=(log_q_z - log_p_z)", "rate=(-log_q_z - log_p_z)"),
    "sign of the distortion": (
        "reference/elbo.py",
        "Terms(distortion=-log_p_x.mean(0), rate=(",
        "Terms(distortion=log_p_x.mean(0), rate=(",
    ),
    "mean in place of a sum over pixels": (
        "distributions/bernoulli.py",
        "support = constraints.unit_interval",
        "support = constraints.unit_interval\n\n    def log_prob(self, x):\n        return super().log_prob(x) / 20",
    ),
    "mean in place of a sum over pixels, by hand": (
        "reference/elbo.py",
        "Terms(distortion=-log_p_x.mean(0), rate=(",
        "Terms(distortion=-log_p_x.mean(0) / x[0].numel(), rate=(",
    ),
    "scale used as a variance": ("models/latents.py", "log_scale.exp()", "(0.5 * log_scale).exp()"),
    "scale used as a variance in log q": (
        "reference/elbo.py",
        "log_q_z = posterior.log_prob(z)",
        "log_q_z = type(posterior.base_dist)(posterior.mean, posterior.stddev.sqrt()).to_event(1).log_prob(z)",
    ),
    "log q at a detached scale": (
        "reference/elbo.py",
        "log_q_z = posterior.log_prob(z)",
        "log_q_z = type(posterior.base_dist)(posterior.mean, posterior.stddev.detach()).to_event(1).log_prob(z)",
    ),
    "entropy left out of the three parts": ("reference/elbo.py", "+ self.posterior_entropy ", ""),
    "entropy left out of the three parts' terms": (
        "reference/elbo.py",
        "posterior.entropy()",
        "0 * posterior.entropy()",
    ),
    "KL the wrong way round": (
        "reference/elbo.py",
        "rate=kl_divergence(posterior, vae.prior())",
        "rate=kl_divergence(vae.prior().expand(posterior.batch_shape), posterior)",
    ),
    "beta on the observed site too": (
        "elbos/base.py",
        "loss = (distortion + beta * rate).mean()",
        "loss = (beta * (distortion + rate)).mean()",
    ),
    "sum over the batch in place of a mean": (
        "elbos/base.py",
        "loss = (distortion + beta * rate).mean()",
        "loss = (distortion + beta * rate).sum()",
    ),
    "Monte Carlo in place of a missing closed form": (
        "elbos/trace.py",
        'raise InputError(f"no closed-form KL is known for ({pair}): use --elbo trace") from None',
        "rate = latent.posterior.log_prob(latent.z) - latent.prior.log_prob(latent.z)",
    ),
    "a sigmoid before the Bernoulli": (
        "models/likelihoods.py",
        "return LogitBernoulli(logits=output)",
        "return LogitBernoulli(output.sigmoid())",
    ),
    "only the first latent taken": (
        "elbos/sites.py",
        "priors = {name: site for name, site in model.items() if name not in observed}",
        'priors = {"z": model["z"]}',
    ),
    "prior of another width": ("models/latents.py", "torch.ones(latent_dim)", "2 * torch.ones(latent_dim)"),
}

# With the tests that must see each, since all of them would take long.
LATER_MUTATIONS = {
    "IWAE's mean outside the log": (
        "elbos/importance.py",
        "return torch.logsumexp(values, 0) - math.log(len(values))",
        "return values.mean(0)",
        "test_bounds.py",
    ),
    "IWAE's mean outside the log, by hand": (
        "reference/bounds.py",
        "return torch.logsumexp(log_w, 0) - math.log(len(log_w))",
        "return log_w.mean(0)",
        "test_bounds.py",
    ),
    "log K forgotten": ("elbos/importance.py", " - math.log(len(values))", "", "test_bounds.py"),
    "log K forgotten, by hand": ("reference/bounds.py", " - math.log(len(log_w))", "", "test_bounds.py"),
    "log K forgotten in both": (
        ("elbos/importance.py", "reference/bounds.py"),
        (" - math.log(len(values))", " - math.log(len(log_w))"),
        ("", ""),
        "test_oracle.py",
    ),
    "DReG with w in place of w^2": (
        "elbos/gradients.py",
        "gradient * each",
        "gradient + 0 * each",
        "test_bounds.py",
    ),
    "DReG with w in place of w^2 in both": (
        ("elbos/gradients.py", "reference/bounds.py"),
        ("gradient * each", "(weight**2 * log_w)"),
        ("gradient + 0 * each", "(weight * log_w)"),
        "test_oracle.py::test_dreg_is_the_gradient_of_iwae",
    ),
    "STL without its detach": ("elbos/importance.py", "draws.log_q_z.detach() +", "draws.log_q_z +", "test_bounds.py"),
    "draws of one site that depend on another left out": (
        "elbos/gradients.py",
        "if len(drawn) == 1:",
        "if True:",
        "test_dependent_sites.py::test_several_sites_equal_the_definition",
    ),
    "the way through later draws counted twice": (
        "elbos/gradients.py",
        "else through[earlier] - way",
        "else through[earlier]",
        "test_dependent_sites.py::test_several_sites_equal_the_definition",
    ),
    "one tensor for the draws of guide and model": (
        "elbos/gradients.py",
        '.view_as(msg["value"])',
        "",
        "test_dependent_sites.py::test_several_sites_equal_the_definition",
    ),
    "score function without the log q term": (
        "elbos/gradients.py",
        "surrogate = log_p + signal * draws.log_q_z",
        "surrogate = log_p + 0 * signal * draws.log_q_z",
        "test_bounds.py",
    ),
    "the signal without log q": (
        "elbos/gradients.py",
        "value = (log_p - beta * draws.log_q_z).detach()",
        "value = log_p.detach()",
        "test_bounds.py",
    ),
    "the baseline including its own sample": (
        "elbos/gradients.py",
        "(value.sum(0) - value) / (len(value) - 1)",
        "value.mean(0)",
        "test_bounds.py",
    ),
    "the rate split over the wrong axis": (
        "evaluation/rate_decomposition.py",
        "log_product[part] = (log_q.logsumexp(1) - math.log(len(x))).sum(1)",
        "log_product[part] = (log_q.logsumexp(2) - math.log(len(x))).sum(1)",
        "test_evaluation.py",
    ),
    "the rate split of the first images": (
        "evaluation/rate_decomposition.py",
        ".sort().values.to",
        ".sort().values.argsort().to",
        "test_evaluation.py",
    ),
    "active units by the variance of draws": (
        "evaluation/rate_decomposition.py",
        "if isinstance(q, Chain) else q.mean for q in",
        "if isinstance(q, Chain) else q.sample() for q in",
        "test_evaluation.py",
    ),
    "active units of a second layer by its draws": (
        "evaluation/rate_decomposition.py",
        "q.mean_over(num_samples) if isinstance(q, Chain)",
        "q.sample((num_samples,)).mean(0) if isinstance(q, Chain)",
        "test_evaluation.py",
    ),
    "importance weights without the prior": (
        "evaluation/log_likelihood.py",
        "(log_p_x + vae.prior().log_prob(z) - posterior",
        "(log_p_x - posterior",
        "test_evaluation.py",
    ),
}


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of the tests of the losses, with nothing else of the project."""
    shutil.copytree(PACKAGE, tmp_path / "pvae", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests").mkdir()
    later = {test.split("::")[0] for *_, test in LATER_MUTATIONS.values()}
    for name in ("conftest.py", *LOSS_TESTS, *later):
        shutil.copy(TESTS / name, tmp_path / "tests")
    return tmp_path


def test_the_copy_passes_unmutated(copy):
    done = run_tests(copy, LOSS_TESTS)
    assert done.returncode == 0, done.stdout


def mutated(copy, names, originals, mutants):
    for name, original, mutant in zip(names, originals, mutants):
        source = (copy / "pvae" / name).read_text()
        assert source.count(original) == 1, f"{original!r} stands {source.count(original)} times in {name}"
        (copy / "pvae" / name).write_text(source.replace(original, mutant))


def is_seen(done, mutation):
    assert done.returncode == 1, f"the tests did not see: {mutation}\n{done.stdout}"
    assert "SyntaxError" not in done.stdout, "the mutant does not run at all"
    assert "NameError" not in done.stdout, "the mutant does not run at all"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_seen(copy, mutation):
    mutated(copy, *([part] for part in MUTATIONS[mutation]))
    is_seen(run_tests(copy, LOSS_TESTS), mutation)


@pytest.mark.parametrize("mutation", LATER_MUTATIONS)
def test_later_mutation_is_seen(copy, mutation):
    *parts, test = LATER_MUTATIONS[mutation]
    mutated(copy, *([part] if isinstance(part, str) else part for part in parts))
    is_seen(run_tests(copy, (test,)), mutation)
