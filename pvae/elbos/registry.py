"""The registry of ELBOs: from a name, or a configuration, to an ELBO for `pyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable

from pvae.config.config import Config
from pvae.core.errors import InputError, check_name
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.gradients import PIWAE, DReG, LeaveOneOutScoreELBO, ScoreELBO, StickingTheLanding
from pvae.elbos.handwritten import HandwrittenELBO
from pvae.elbos.importance import CIWAE, IWAE, MIWAE, RenyiELBO
from pvae.elbos.trace import AnalyticELBO, TraceELBO

__all__ = ["ELBO_CLASSES", "build_elbo", "elbo_of"]

ELBO_CLASSES: dict[str, type[PerDatumELBO]] = {  # by the choices of --elbo
    "trace": TraceELBO,
    "analytic": AnalyticELBO,
    "handwritten": HandwrittenELBO,
    "stl": StickingTheLanding,
    "score": ScoreELBO,
    "score-loo": LeaveOneOutScoreELBO,
    "iwae": IWAE,
    "dreg": DReG,
    "renyi": RenyiELBO,
    "ciwae": CIWAE,
    "miwae": MIWAE,
    "piwae": PIWAE,
}


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
    """Return the ELBO of that name, whose loss is a mean over the batch, where that of Pyro's own ELBOs is a sum.

    Args:
        name: one of `ELBO_CLASSES`.
        num_particles: K.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.
        alpha: order of "renyi"; below 0 the objective is not a lower bound on log p(x), -inf is VR-max.
        mix: share of the ELBO in "ciwae".
        num_groups: number of groups M of "miwae" and "piwae".

    Raises:
        InputError: the name is unknown, or an option is out of range or does not go with the ELBO.
    """
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise InputError(f"num_particles must be a whole number of at least 1, not {num_particles!r}")
    kind = ELBO_CLASSES[check_name("ELBO", name, ELBO_CLASSES)]
    if beta != 1 and "beta" not in kind.options:
        raise InputError(
            f"--elbo {name} has no rate to weigh: give --beta 1, --warm-up 0 and --rate-reduction sum, or take one of "
            f"{_names(lambda one: 'beta' in one.options)}"
        )
    if free_bits and "free_bits" not in kind.options:
        others = _names(lambda one: "free_bits" in one.options)
        raise InputError(f"--elbo {name} has no free bits: give --free-bits 0, or take {others}")
    if num_particles < kind.least_particles:
        raise InputError(f"--elbo {name} compares each particle with the others: give --particles 2 or more")
    if "num_groups" in kind.options and num_particles % num_groups:
        raise InputError(f"--elbo {name}: --particles {num_particles} must be a multiple of --groups {num_groups}")
    given = {"beta": beta, "free_bits": free_bits, "alpha": alpha, "mix": mix, "num_groups": num_groups}
    return kind(num_particles, **{option: given[option] for option in kind.options})


def elbo_of(config: Config) -> PerDatumELBO:
    """Return the ELBO of a configuration.

    `Config` itself accepts what is refused here, so that runs of earlier versions can be read.

    Raises:
        InputError: an option, or the VAE that the configuration describes, does not go with the ELBO.
    """
    name, kind = config.elbo, ELBO_CLASSES[config.elbo]
    if config.posterior == "delta" and "free_bits" not in kind.options:
        raise InputError(f"--posterior delta has no density: train it by --elbo trace, not {name}")
    if kind.needs_closed_form and not any(config.closed_forms):
        pair = f"--posterior {config.posterior} and --prior {config.prior}"
        raise InputError(f"no closed-form KL is known for {pair}: give --elbo trace")
    mixes_draws = {
        "--likelihood normal-optimal fits one scale to": config.likelihood == "normal-optimal",
        f"--network {config.network} normalises over": config.has_batch_norm,
    }
    for reason, is_given in mixes_draws.items():
        if is_given and kind.needs_separate_draws:
            raise InputError(
                f"--elbo {name} needs weights that each depend on their own draw only, and {reason} all of them: take "
                "--elbo trace, analytic, stl or iwae"
            )
    weight = 0.0 if config.warm_up or config.rate_reduction != "sum" else config.beta  # at some step
    bits, groups = config.free_bits, config.groups
    return build_elbo(name, config.particles, weight, bits, alpha=config.alpha, mix=config.mix, num_groups=groups)


def _names(takes: Callable[[type[PerDatumELBO]], bool]) -> str:
    return ", ".join(name for name, kind in ELBO_CLASSES.items() if takes(kind))
