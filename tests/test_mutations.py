"""The tests of the losses can fail: each mutation of the package below makes them.

A copy of the package is mutated in one place, and the tests of the losses are run on it in a process of their own.
Nine mutations run each time, and all of them with `-m slow`.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from helpers.forked import run_tests

pytestmark = pytest.mark.workflow

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "pvae"
LOSS_TESTS = ("elbos/test_agreement.py", "elbos/test_truth.py")

MUTATIONS = {
    "sign of log p(z)": ("reference.elbo:monte_carlo", "rate=(log_q_z - log_p_z)", "rate=(log_q_z + log_p_z)"),
    "sign of log q(z | x)": ("reference.elbo:monte_carlo", "rate=(log_q_z - log_p_z)", "rate=(-log_q_z - log_p_z)"),
    "sign of the distortion": (
        "reference.elbo:monte_carlo",
        "Terms(distortion=-log_p_x.mean(0), rate=(",
        "Terms(distortion=log_p_x.mean(0), rate=(",
    ),
    "mean in place of a sum over pixels": (
        "distributions.bernoulli:PseudoBernoulli",
        "support = constraints.unit_interval",
        "support = constraints.unit_interval\n\n    def log_prob(self, x):\n        return super().log_prob(x) / 20",
    ),
    "mean in place of a sum over pixels, by hand": (
        "reference.elbo:monte_carlo",
        "Terms(distortion=-log_p_x.mean(0), rate=(",
        "Terms(distortion=-log_p_x.mean(0) / x[0].numel(), rate=(",
    ),
    "scale used as a variance": ("models.posteriors:bounded_normal", "log_scale.exp()", "(0.5 * log_scale).exp()"),
    "scale used as a variance in log q": (
        "reference.elbo:monte_carlo",
        "log_q_z = posterior.log_prob(z)",
        "log_q_z = type(posterior.base_dist)(posterior.mean, posterior.stddev.sqrt()).to_event(1).log_prob(z)",
    ),
    "log q at a detached scale": (
        "reference.elbo:monte_carlo",
        "log_q_z = posterior.log_prob(z)",
        "log_q_z = type(posterior.base_dist)(posterior.mean, posterior.stddev.detach()).to_event(1).log_prob(z)",
    ),
    "entropy left out of the three parts": ("reference.elbo:Parts.elbo", "+ self.posterior_entropy ", ""),
    "entropy left out of the three parts' terms": (
        "reference.elbo:three_parts",
        "posterior.entropy()",
        "0 * posterior.entropy()",
    ),
    "KL the wrong way round": (
        "reference.elbo:closed_form",
        "kl_divergence(posterior, prior.expand(posterior.batch_shape))",
        "kl_divergence(prior.expand(posterior.batch_shape), posterior)",
    ),
    "beta on the observed site too": (
        "elbos.base:PerDatumELBO.loss_of",
        "loss = (distortion + beta * rate).mean()",
        "loss = (beta * (distortion + rate)).mean()",
    ),
    "sum over the batch in place of a mean": (
        "elbos.base:PerDatumELBO.loss_of",
        "loss = (distortion + beta * rate).mean()",
        "loss = (distortion + beta * rate).sum()",
    ),
    "a sigmoid before the Bernoulli": (
        "models.likelihoods:BernoulliLikelihood.pixels",
        "return LogitBernoulli(logits=output)",
        "return LogitBernoulli(output.sigmoid())",
    ),
    "prior of another width": (
        "models.priors:StandardNormalPrior.__init__",
        "torch.ones(latent_dim)",
        "2 * torch.ones(latent_dim)",
    ),
}

# With the tests that must see each, since all of them would take long.
LATER_MUTATIONS = {
    "Monte Carlo in place of a missing closed form": (
        "elbos.trace:AnalyticELBO.rate",
        "if all(divergence is None for divergence in divergences):",
        "if False:",
        "elbos/test_agreement.py::test_analytic_refuses_where_there_is_no_closed_form",
    ),
    "a closed form of a layer whose prior depends on a later draw": (
        "elbos.trace:_divergence",
        "if latent.is_prior_known else None",
        "",
        "elbos/test_agreement.py::test_a_latent_whose_prior_depends_on_a_later_draw_has_no_closed_form",
    ),
    "a ladder whose precisions are not added": (
        "models.hierarchy:_product",
        "1 / (precisions[0] + precisions[1])",
        "1 / precisions[0]",
        "distributions/test_hierarchy.py::test_the_ladders_posterior_is_the_product_of_both_ways",
    ),
    "layers in the wrong order": (
        "distributions.joint:Joint._in_order",
        "if self.top_down",
        "if not self.top_down",
        "distributions/test_hierarchy.py::test_the_density_is_that_of_the_joint_normal",
    ),
    "a learned prior's gradient with v in place of v^2": (
        "elbos.gradients:DReG._with_learned_priors",
        "of_log_w = v.square() * (log_p_x_by_z",
        "of_log_w = v * (log_p_x_by_z",
        "elbos/test_dependent_sites.py::test_the_mean_gradient_of_dreg_is_that_of_iwae",
    ),
    "a layer's prior held fixed while the layer above moves": (
        "elbos.gradients:DReG._with_learned_priors",
        "if own.requires_grad and place",
        "if False",
        "elbos/test_dependent_sites.py::test_the_mean_gradient_of_dreg_is_that_of_iwae",
    ),
    "piwae's encoder trained by all draws": (
        "elbos.gradients:PIWAE.bound",
        "(of_group * log_p).sum()",
        "(log_w.softmax(0) * log_p).sum()",
        "elbos/test_bounds.py::test_the_ends_of_each_family",
    ),
    "weights of a mixture forgotten": (
        "models.priors:MixturePrior.forward",
        "logits=self.logits",
        "logits=0 * self.logits",
        "models/test_latents.py::test_a_mixture_is_the_weighted_sum_of_its_normals",
    ),
    "pseudo-inputs detached": (
        "models.priors:VampPrior.forward",
        "(self.pseudo_inputs)",
        "(self.pseudo_inputs.detach())",
        "models/test_latents.py::test_pseudo_inputs_start_where_each_has_a_gradient",
    ),
    "pseudo-inputs beyond the pixels": (
        "models.priors:VampPrior.pseudo_inputs",
        ".clamp(self.lowest, 1.0)",
        "",
        "models/test_latents.py::test_a_vamp_prior_is_the_mean_of_the_posteriors_at_its_pseudo_inputs",
    ),
    "the log-determinant of a full Normal left out of its KL": (
        "distributions.kl:kl_full_normal",
        " - scale_tril.diagonal(dim1=-2, dim2=-1).log()",
        "",
        "models/test_latents.py::test_the_kl_of_a_full_normal_is_torchs_of_two_full_normals",
    ),
    "sign of a planar transform's log-determinant": (
        "distributions.planar:Planar.call_and_ladj",
        "log_det + torch.log1p(",
        "log_det - torch.log1p(",
        "distributions/test_flow.py::test_the_density_of_a_draw_is_that_of_the_full_jacobian",
    ),
    "sign of the log-determinant of a planar transform's inverse": (
        "distributions.planar:_InversePlanar.call_and_ladj",
        "log_det - torch.log1p(",
        "log_det + torch.log1p(",
        "distributions/test_flow.py::test_a_flow_is_normalised",
    ),
    "planar transforms that are not invertible": (
        "distributions.planar:Planar.__init__",
        "u + ((self.slope - product) / norm).unsqueeze(-1) * w",
        "u",
        "distributions/test_flow.py::test_a_planar_transform_is_that_of_the_paper_where_it_is_invertible",
    ),
    "one Newton step too few for the gradient": (
        "distributions.planar:_root",
        "return v - _step(v, slope, target)",
        "return v",
        "distributions/test_flow.py::test_the_density_of_a_copy_has_the_gradient_of_the_inverse",
    ),
    "the constant of a power spherical density": (
        "distributions.power_spherical:PowerSpherical._log_constant",
        " - b * math.log(4 * math.pi)",
        " - b * math.log(2 * math.pi)",
        "distributions/test_power_spherical.py::test_density_moments_entropy_and_kl_are_those_of_quadrature",
    ),
    "the entropy of the uniform distribution left out of a KL": (
        "distributions.kl:kl_power_spherical",
        "p.entropy() - q.entropy()",
        "-q.entropy()",
        "distributions/test_power_spherical.py::test_density_moments_entropy_and_kl_are_those_of_quadrature",
    ),
    "a Householder reflection to the opposite of loc": (
        "distributions.power_spherical:PowerSpherical.rsample",
        "normalize(sign *",
        "normalize(-sign *",
        "distributions/test_power_spherical.py::test_draws_follow_the_density",
    ),
    "a prior's flow in the direction of its draws": (
        "models.priors:FlowPrior.forward",
        "composed(self.transforms).inv",
        "composed(self.transforms)",
        "distributions/test_flow.py::test_what_training_needs_takes_one_pass",
    ),
    "only the first latent taken": (
        "elbos.sites:Draws.of",
        "priors = {name: site for name, site in model.items() if name not in observed}",
        'priors = {"z": model["z"]}',
        "elbos/test_agreement.py::test_recorded_terms_cover_every_site",
    ),
    "IWAE's mean outside the log": (
        "elbos.importance:log_mean_exp",
        "return torch.logsumexp(values, 0) - math.log(len(values))",
        "return values.mean(0)",
        "elbos/test_bounds.py",
    ),
    "IWAE's mean outside the log, by hand": (
        "reference.bounds:iwae",
        "return torch.logsumexp(log_w, 0) - math.log(len(log_w))",
        "return log_w.mean(0)",
        "elbos/test_bounds.py",
    ),
    "log K forgotten": ("elbos.importance:log_mean_exp", " - math.log(len(values))", "", "elbos/test_bounds.py"),
    "log K forgotten, by hand": ("reference.bounds:iwae", " - math.log(len(log_w))", "", "elbos/test_bounds.py"),
    "log K forgotten in both": (
        ("elbos.importance:log_mean_exp", "reference.bounds:iwae"),
        (" - math.log(len(values))", " - math.log(len(log_w))"),
        ("", ""),
        "reference/test_linear_gaussian.py::test_at_the_exact_posterior_there_is_no_noise",
    ),
    "DReG with w in place of w^2": (
        "elbos.gradients:DReG.bound",
        "gradient * each",
        "gradient + 0 * each",
        "elbos/test_bounds.py::test_the_other_gradients_equal_the_handwritten",
    ),
    "DReG with w in place of w^2 in both": (
        ("elbos.gradients:DReG.bound", "reference.bounds:dreg_gradients"),
        ("gradient * each", "-(v**2) * of_log_w"),
        ("gradient + 0 * each", "-v * of_log_w"),
        "reference/test_linear_gaussian.py::test_dreg_is_the_gradient_of_iwae",
    ),
    "STL without its detach": (
        "elbos.gradients:StickingTheLanding.bound",
        "draws.log_q_z.detach() +",
        "draws.log_q_z +",
        "elbos/test_bounds.py::test_the_other_gradients_equal_the_handwritten",
    ),
    "draws of one site that depend on another left out": (
        "elbos.gradients:_log_q_z_by_z",
        "if len(drawn) == 1:",
        "if True:",
        "elbos/test_dependent_sites.py::test_several_sites_equal_the_definition",
    ),
    "the way through later draws counted twice": (
        "elbos.gradients:_log_q_z_by_z",
        "else through[earlier] - path",
        "else through[earlier]",
        "elbos/test_dependent_sites.py::test_several_sites_equal_the_definition",
    ),
    "one tensor for the draws of guide and model": (
        "elbos.gradients:_SeparateModelDraws._pyro_post_sample",
        '.view_as(msg["value"])',
        "",
        "elbos/test_dependent_sites.py::test_several_sites_equal_the_definition",
    ),
    "score function without the log q term": (
        "elbos.gradients:ScoreELBO.bound",
        "self.signal(value) * draws.log_q_z",
        "0 * self.signal(value) * draws.log_q_z",
        "elbos/test_bounds.py::test_the_other_gradients_equal_the_handwritten",
    ),
    "the signal without log q": (
        "elbos.gradients:ScoreELBO.bound",
        "value = (log_p - beta * draws.log_q_z).detach()",
        "value = log_p.detach()",
        "elbos/test_bounds.py::test_the_other_gradients_equal_the_handwritten",
    ),
    "the baseline including its own sample": (
        "elbos.gradients:LeaveOneOutScoreELBO.signal",
        "(log_w.sum(0) - log_w) / (len(log_w) - 1)",
        "log_w.mean(0)",
        "elbos/test_bounds.py::test_the_other_gradients_equal_the_handwritten",
    ),
    "the rate split over the wrong axis": (
        "evaluation.rate_decomposition:split_rate",
        "log_product[part] = (log_q.logsumexp(1) - math.log(len(x))).sum(1)",
        "log_product[part] = (log_q.logsumexp(2) - math.log(len(x))).sum(1)",
        "evaluation/test_evaluation.py::test_the_rate_is_split_by_its_definition",
    ),
    "the rate split of the first images": (
        "data.dataset:random_subset",
        ".sort().values",
        ".sort().values.argsort()",
        "evaluation/test_evaluation.py::test_the_rate_is_split_by_its_definition",
    ),
    "active units by the variance of draws": (
        "evaluation.rate_decomposition:active_units",
        "encode(vae, x).var(0)",
        "vae.posterior(x).sample().var(0)",
        "evaluation/test_evaluation.py::test_active_units_are_those_whose_mean_varies",
    ),
    "active units of a second layer by its draws": (
        "trained.latent_space:_mean",
        "posterior.estimate_mean(100)",
        "posterior.sample((100,)).mean(0)",
        "evaluation/test_evaluation.py::test_an_unused_second_layer_is_not_active",
    ),
    "the rate of each dimension without the prior": (
        "elbos.base:PerDatumELBO.rate_of",
        "q.log_prob(latent.z) - p.log_prob(latent.z)",
        "q.log_prob(latent.z)",
        "config/test_presets.py::test_free_bits_agree",
    ),
    "the rate of each dimension without the prior, by hand": (
        "reference.elbo:rate_by_dimension",
        "q.base_dist.log_prob(layer) - p.base_dist.log_prob(layer)",
        "q.base_dist.log_prob(layer)",
        "config/test_presets.py::test_free_bits_agree",
    ),
    "the closed-form rate of each dimension the wrong way round": (
        "elbos.trace:AnalyticELBO.rate_of",
        "_divergence(latent, q, p)",
        "_divergence(latent, p.expand(q.batch_shape), q)",
        "config/test_presets.py::test_free_bits_agree",
    ),
    "importance weights without the prior": (
        "trained.log_likelihood:_log_sums",
        "log_likelihood(part, *batch) + prior.log_prob(part)",
        "log_likelihood(part, x)",
        "evaluation/test_evaluation.py::test_the_estimate_is_the_mean_of_the_weights",
    ),
}


EACH_TIME = {
    "sign of log p(z)",
    "mean in place of a sum over pixels",
    "scale used as a variance",
    "KL the wrong way round",
    "beta on the observed site too",
    "a sigmoid before the Bernoulli",
    "log K forgotten in both",
    "DReG with w in place of w^2",
    "STL without its detach",
}


def each_time_or_slow(mutations):
    return [one if one in EACH_TIME else pytest.param(one, marks=pytest.mark.slow) for one in mutations]


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of the tests of the losses, with nothing else of the project."""
    shutil.copytree(PACKAGE, tmp_path / "pvae", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TESTS, tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    return tmp_path


def test_the_copy_passes_unmutated(copy):
    done = run_tests(copy, LOSS_TESTS[:1])
    assert done.returncode == 0, done.stdout


def mutated(copy, names, originals, mutants):
    for name, original, mutant in zip(names, originals, mutants):
        module, _, function = name.partition(":")
        file = copy / "pvae" / f"{module.replace('.', '/')}.py"
        lines = file.read_text().splitlines(keepends=True)
        first, last = extent_of(ast.parse("".join(lines)), function.split("."))
        body = "".join(lines[first:last])
        assert body.count(original) == 1, f"{original!r} is {body.count(original)} times in {name}"
        file.write_text("".join(lines[:first]) + body.replace(original, mutant) + "".join(lines[last:]))


def extent_of(tree, path):
    """Return the lines of a function or class, given by the names that lead to it."""
    for node in tree.body:
        if getattr(node, "name", None) == path[0]:
            return extent_of(node, path[1:]) if path[1:] else (node.lineno - 1, node.end_lineno)
    raise LookupError(path)


def is_seen(done, mutation):
    assert done.returncode == 1, f"the tests did not see: {mutation}\n{done.stdout}"
    assert "SyntaxError" not in done.stdout, "the mutant does not run at all"
    assert "NameError" not in done.stdout, "the mutant does not run at all"


@pytest.mark.parametrize("mutation", each_time_or_slow(MUTATIONS))
def test_mutation_is_seen(copy, mutation):
    mutated(copy, *([part] for part in MUTATIONS[mutation]))
    is_seen(run_tests(copy, LOSS_TESTS), mutation)


@pytest.mark.parametrize("mutation", each_time_or_slow(LATER_MUTATIONS))
def test_later_mutation_is_seen(copy, mutation):
    *parts, test = LATER_MUTATIONS[mutation]
    mutated(copy, *([part] if isinstance(part, str) else part for part in parts))
    is_seen(run_tests(copy, (test,)), mutation)
