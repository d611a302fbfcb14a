"""`what_was_learned`: the last lines of a training, its ELBO beside simple models and the latents that it uses."""

from __future__ import annotations

from collections.abc import Iterator

from pvae.evaluation.context import Context
from pvae.evaluation.measures.baselines import Baselines
from pvae.evaluation.measures.floor import beside_no_latent
from pvae.evaluation.measures.latents import latents_used, said_of_collapse
from pvae.runs.run import Run
from pvae.trained.codes import examples
from pvae.trained.scores import Estimate

__all__ = ["what_was_learned"]

_FEW = 1000  # test data of which the rate of each latent is computed


def what_was_learned(run: Run) -> Iterator[str]:
    """Yield lines that say, by the test data, what a finished training has learned; none of a VAE of your own."""
    if run.has_own_vae:
        return
    test, context = run.test_metrics(), Context(run)
    if test is None or test.elbo is None or not context.vae.has_density:
        return
    with run.seeded():
        latents = latents_used(context.vae, examples(run, min(_FEW, run.data.num_test)), test.rate)
        baselines, alone = context.measure(Baselines), context.floor
    reached = [f"without a latent {alone.sum().item():.2f}"] if alone is not None else []
    if baselines is not None:
        reached += [f"{name} {log_p.mean:.2f}" for name, log_p, _ in baselines.models]
    elbo = test.elbo
    if baselines is not None:  # beside which it is of the same ten draws of z
        mean = Estimate.of(context.terms["elbo"])
        elbo = mean.mean
        yield f"test ELBO {mean}; {'; '.join(reached)}"
    elif reached:
        yield f"{test}; {'; '.join(reached)}"
    if latents.is_collapsed:
        yield f"warning: {said_of_collapse(run, baselines)}"
        return
    if alone is not None and (verdict := beside_no_latent(elbo, alone.sum().item())):
        yield f"learned: {verdict}"
    elif baselines is not None:
        yield f"learned: {baselines.verdict}"
    elif alone is not None:
        yield f"learned: {elbo - alone.sum().item():.2f} nats more than without a latent"
    yield latents.summary
