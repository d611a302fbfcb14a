"""The registry of ELBOs: from a name to an ELBO for `pyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable

from pvae.config.options import ELBOS, check_elbo_options
from pvae.core.errors import InputError, check_name
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.gradients import PIWAE, DReG, ScoreELBO, StickingTheLanding
from pvae.elbos.handwritten import HandwrittenELBO
from pvae.elbos.importance import CIWAE, IWAE, MIWAE, RenyiELBO
from pvae.elbos.trace import AnalyticELBO, TraceELBO

__all__ = ["build_elbo"]


def build_elbo(
    name: str,
    num_particles: int = 1,
    beta: float = 1.0,
    free_bits: float = 0.0,
    *,
    alpha: float = 0.5,
    mix: float = 0.5,
    num_groups: int = 1,
) -> PerDatumELBO:
    """Return the ELBO of that name.

    Args:
        name: one of `options.ELBOS`.
        num_particles: K.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.
        alpha: order of "renyi"; below 0 the objective is not a lower bound on log p(x), -inf is VR-max.
        mix: share of the ELBO in "ciwae".
        num_groups: number of groups M of "miwae" and "piwae".

    Raises:
        InputError: the name is unknown, `num_particles` is not positive, or the ELBO does not have a given option.
    """
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise InputError(f"num_particles must be a whole number of at least 1, not {num_particles!r}")
    check_name("ELBO", name, ELBOS)
    check_elbo_options(name, num_particles, num_groups, weighs_rate=beta != 1, free_bits=free_bits)
    kinds: dict[str, Callable[[], PerDatumELBO]] = {
        "trace": lambda: TraceELBO(num_particles, beta, free_bits),
        "analytic": lambda: AnalyticELBO(num_particles, beta, free_bits),
        "handwritten": lambda: HandwrittenELBO(num_particles, beta, free_bits),
        "stl": lambda: StickingTheLanding(num_particles, beta),
        "score": lambda: ScoreELBO(num_particles, beta),
        "score-loo": lambda: ScoreELBO(num_particles, beta, leave_one_out=True),
        "iwae": lambda: IWAE(num_particles),
        "dreg": lambda: DReG(num_particles),
        "renyi": lambda: RenyiELBO(num_particles, alpha),
        "ciwae": lambda: CIWAE(num_particles, mix),
        "miwae": lambda: MIWAE(num_particles, num_groups),
        "piwae": lambda: PIWAE(num_particles, num_groups),
    }
    return kinds[name]()
