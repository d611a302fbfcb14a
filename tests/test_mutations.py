"""The tests of the losses can fail: each mutation of the package below makes them.

A copy of the package is mutated in one or two places, and tests are run on it in a process of their own.
The first mutation of each test is tried each time, and all of them with `-m slow`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.forked import run_tests

pytestmark = pytest.mark.workflow

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "pvae"

# Below each test, the mutations that it must see: a module, what stands there once, and what is put in its place.
MUTATIONS = """
elbos/test_agreement.py
    elbos.base | (distortion + beta * rate).mean() | (beta * (distortion + rate)).mean()
    elbos.base | (distortion + beta * rate).mean() | (distortion + beta * rate).sum()
    reference.elbo | rate=(log_q_z - log_p_z) | rate=(log_q_z + log_p_z)
    reference.elbo | rate=(log_q_z - log_p_z) | rate=(-log_q_z - log_p_z)
    reference.elbo | Terms(distortion=-log_p_x.mean(0), rate=( | Terms(distortion=log_p_x.mean(0), rate=(
    reference.elbo | rate=kl(posterior, vae.prior()) | rate=kl(vae.prior(), posterior)
    reference.elbo | + self.posterior_entropy |
    reference.elbo | posterior.entropy() | 0 * posterior.entropy()
    models.posteriors | log_scale.exp() | (0.5 * log_scale).exp()
    models.likelihoods | return LogitBernoulli(logits=output) | return LogitBernoulli(output.sigmoid())
    models.priors | torch.ones(latent_dim) | 2 * torch.ones(latent_dim)
    elbos.trace | if all(divergence is None for divergence in divergences): | if False:
    elbos.trace | if latent.is_prior_known else None |
    elbos.base | site in model.items() if name not in observed} | site in model.items() if name == "z"}
    elbos.base | q.log_prob(latent.z) - p.log_prob(latent.z) | q.log_prob(latent.z)
    elbos.trace | _divergence(latent, q, p) | _divergence(latent, p.expand(q.batch_shape), q)
elbos/test_discrete.py
    elbos.discrete | (f - f.mean(1, keepdim=True)) * self.size / (self.size - 1) | (f - f.mean(1, keepdim=True))
    elbos.discrete | log_w.sum(0) - log_w) / (len(log_w) - 1) | log_w.sum(0)) / len(log_w)
    elbos.discrete | (1 - exponential / exponential.sum(0)) | torch.rand_like(exponential)
    elbos.discrete | return drawn + q.probs - q.probs.detach() | return drawn + drawn * (q.probs - q.probs.detach())
    elbos.discrete | * (z - probs) / (1 - correlation(probs, self.size)) | * (z - probs)
    elbos.discrete | u * (1 - v) * (b - p) - | u * (b - p) -
    elbos.discrete | u.log() - (-u).log1p()) / self.temperature) | u.log() - (-u).log1p()))
    elbos.discrete | score=value - without - v | score=value - without + v
    elbos.discrete | not self.is_relaxed or | True or
    elbos.base | loss + penalty_of( | loss + 0 * penalty_of(
    models.posteriors | code.detach() + (h - h.detach()) | code
    distributions.discrete | -self.num_variables * math.log( | -math.log(
    distributions.discrete | >= probs.cumsum(-1)[..., :-1] | >= probs[..., :-1]
    models.hierarchy | layer(call_once(network, given)) | layer(call_once(network, given).detach())
    marginal.quadrature | in codes(prior).split(size)]).logsumexp(0) | in codes(prior).split(size)]).amax(0)
marginal/test_annealing.py
    marginal.annealing | torch.rand_like(log_ratio).log() < log_ratio | torch.rand_like(log_ratio) < 2
    marginal.annealing | zip(betas[1:-1].tolist(), steps | zip(betas[2:].tolist(), steps
    marginal.annealing | given.log_likelihood(x, z) + prior | given.log_likelihood(x, z) + 2 * prior
    marginal.annealing | "annealed", log_w.logsumexp(0), | "annealed", log_w.mean(0) + math.log(num_chains),
    marginal.annealing | - point.log_density(beta) - kinetic | - point.log_density(beta)
    marginal.annealing | upper + math.log(num_chains) | upper - math.log(num_chains)
    marginal.annealing | in zip(betas[1:-1].tolist(), steps, | in zip(betas[1:-1].tolist(), _adapted(points, z, betas),
marginal/test_log_likelihood.py
    marginal.importance | log_q + self.log_share["q"] | log_q
    marginal.importance | self.near.log_prob(z) + self.log_share["near"] | self.near.log_prob(z)
    marginal.quadrature | cells = 2 * cells | cells = 1 * cells
    marginal.log_likelihood | index_copy(0, taken, | index_copy(0, torch.arange(len(taken)),
marginal/test_calibration.py
    marginal.calibration | > q.log_prob(z) | < q.log_prob(z)
    marginal.calibration | (draws < z) | (draws < draws[:1])
marginal/test_conditional.py
    marginal.log_likelihood | part.where(is_given, | part.where(~is_given,
    marginal.log_likelihood | joint.log_p - given.log_p | joint.log_p
marginal/test_gaps.py
    marginal.gaps | - log_scale.sum(-1) | + log_scale.sum(-1)
    marginal.gaps | log_q = log_q - log_det | log_q = log_q + log_det
    marginal.gaps | + lower.tril(-1) | + 0 * lower
elbos/test_truth.py
    reference.elbo | rate=(log_q_z - log_p_z) | rate=(log_q_z + log_p_z)
elbos/test_bounds.py
    elbos.bounds | - math.log(len(values)) |
    elbos.bounds | return torch.logsumexp(values, 0) - math.log(len(values)) | return values.mean(0)
    elbos.bounds | path=of_group | path=log_w.softmax(0)
    elbos.bounds | model.clamp(min=_LEAST_WEIGHT) | model.clamp(min=1e-44)
elbos/test_families.py
    reference.bounds | return torch.logsumexp(log_w, 0) - math.log(len(log_w)) | return log_w.mean(0)
    elbos.bounds | gradient * each | gradient + 0 * each
    elbos.bounds | surrogate - _through_draws( | surrogate - 0 * _through_draws(
    elbos.bounds | else self.by_encoder(draws, score) | else 0 * self.by_encoder(draws, score)
    elbos.bounds | self.weights((log_p - beta * draws.log_q_z).detach()) | self.weights(log_p.detach())
    elbos.bounds | (log_w.sum(0) - log_w) / (len(log_w) - 1) | log_w.mean(0)
elbos/test_dependent_sites.py
    elbos.bounds | .register_hook(torch.zeros_like) | .register_hook(torch.clone)
    elbos.bounds | = z.view_as(z) | = z
    elbos.bounds | path=v.square() | path=v
    elbos.bounds | beta * path * draws.log_q_z | path * draws.log_q_z
reference/test_linear_gaussian.py
    elbos.bounds | - math.log(len(values)) | & reference.bounds | - math.log(len(log_w)) |
    elbos.bounds | path=v.square() | path=v & reference.bounds | weight.square() * log_w | weight * log_w
distributions/test_joint.py
    models.hierarchy | 1 / (precisions[0] + precisions[1]) | 1 / precisions[0]
    distributions.joint | return [*reversed(sites)] | return [*sites]
distributions/test_flow.py
    distributions.flow | log_det + torch.log1p( | log_det - torch.log1p(
    distributions.flow | log_det - torch.log1p( | log_det + torch.log1p(
    distributions.flow | u + ((self.slope - product) / norm).unsqueeze(-1) * w | u
    distributions.flow | return v - _step(v, slope, target) | return v
    models.priors | composed(self.transforms).inv | composed(self.transforms)
distributions/test_power_spherical.py
    distributions.power_spherical | - b * math.log(4 * math.pi) | - b * math.log(2 * math.pi)
    distributions.power_spherical | normalize(sign * | normalize(-sign *
    distributions.power_spherical | p.entropy() - q.entropy() | -q.entropy()
models/test_latents.py
    models.priors | NormalMixture(dist.Categorical(logits=self | NormalMixture(dist.Categorical(logits=0 * self
    models.priors | (self.pseudo_inputs) | (self.pseudo_inputs.detach())
    models.priors | .clamp(self.lowest, 1.0) |
    distributions.normals | - scale_tril.diagonal(dim1=-2, dim2=-1).log() |
evaluation/test_evaluation.py
    marginal.importance | (log_likelihood + log_prior - log_r) | (log_likelihood - log_r)
    evaluation.measures.elbo | (log_q.logsumexp(1) - math.log | (log_q.logsumexp(2) - math.log
    trained.latent_space | return posterior.mean | return posterior.sample()
    trained.latent_space | posterior.estimate_mean(100) | posterior.sample((100,)).mean(0)
"""


def mutations():
    """Return each test with a mutation; those after the first one are marked slow."""
    found, test, is_first = [], "", True
    for line in MUTATIONS.strip().splitlines():
        if not line.startswith(" "):
            test, is_first = line, True
            continue
        found.append(pytest.param(test, line.strip(), marks=[] if is_first else [pytest.mark.slow]))
        is_first = False
    return found


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of its tests, with nothing else of the project."""
    for folder in (PACKAGE, TESTS):
        ignored = shutil.ignore_patterns("__pycache__", "benchmarks")
        shutil.copytree(folder, tmp_path / folder.name, ignore=ignored)
    return tmp_path


def test_the_copy_passes_unmutated(copy):
    done = run_tests(copy, ("elbos/test_truth.py",))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("test", "mutation"), mutations())
def test_a_mutation_is_seen(copy, test, mutation):
    for place in mutation.split(" & "):
        module, original, mutant = (part.strip() for part in f"{place} ".split(" | "))
        file = copy / "pvae" / f"{module.replace('.', '/')}.py"
        text = file.read_text()
        assert text.count(original) == 1, f"{original!r} stands {text.count(original)} times in {module}"
        file.write_text(text.replace(original, mutant))
    done = run_tests(copy, (test,))
    assert done.returncode == 1, f"{test} did not see it\n{done.stdout}"
    assert "SyntaxError" not in done.stdout, "the mutant does not run at all"
    assert "NameError" not in done.stdout, "the mutant does not run at all"
