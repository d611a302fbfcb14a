"""The registry of ELBOs: from a name, or a configuration, to an ELBO for `pyro.infer.SVI`."""

from __future__ import annotations

from typing import Any

from pvae.config.config import Config
from pvae.core.errors import InputError, check_name
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.enumerated import EnumeratedELBO
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
    "enumerate": EnumeratedELBO,
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
    label_weight: float = 0.0,
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
        label_weight: weight of the classifier's loss at known labels in "enumerate".

    Raises:
        InputError: the name is unknown, or an option is out of range or does not go with the ELBO.
    """
    kind = ELBO_CLASSES[check_name("ELBO", name, ELBO_CLASSES)]
    needed = {
        "beta": ("rate to weigh: give --beta 1 and --warm-up 0", beta != 1),
        "free_bits": ("free bits: give --free-bits 0", free_bits != 0),
    }
    for option, (default, is_given) in needed.items():
        if is_given and option not in kind.options:
            others = ", ".join(other for other, one in ELBO_CLASSES.items() if option in one.options)
            raise InputError(f"--elbo {name} has no {default}, or take one of {others}")
    if num_particles < kind.least_particles:
        raise InputError(f"--elbo {name} needs --particles {kind.least_particles} or more, not {num_particles}")
    if "num_groups" in kind.options and num_particles % num_groups:
        raise InputError(f"--elbo {name}: --particles {num_particles} must be a multiple of --groups {num_groups}")
    given = {"beta": beta, "free_bits": free_bits, "alpha": alpha, "mix": mix, "num_groups": num_groups}
    given["label_weight"] = label_weight
    return kind(num_particles, **{option: given[option] for option in kind.options})


def elbo_of(config: Config, labelled: float = 1.0) -> PerDatumELBO:
    """Return the ELBO of a configuration.

    `Config` itself accepts what is refused here, so that runs of earlier versions can be read.

    Args:
        config: the configuration.
        labelled: the share of the training data whose labels are known, with `config.labels`.

    Raises:
        InputError: an option, or the VAE that the configuration describes, does not go with the ELBO.
    """
    name, kind = config.elbo, ELBO_CLASSES[config.elbo]
    if kind.sums_over_labels != (config.labels > 0):
        raise InputError(f"--elbo {name} and --labels {config.labels}: --elbo enumerate goes with --labels above 0")
    if config.is_autoencoder and "free_bits" not in kind.options:
        raise InputError(f"--posterior delta has no density: train it by --elbo trace, not {name}")
    if kind.needs_closed_form and not any(config.closed_forms):
        pair = f"--posterior {config.posterior} and --prior {config.prior}"
        raise InputError(f"no closed-form KL is known for {pair}: give --elbo trace")
    if kind.needs_separate_draws and (config.likelihood_family.needs_batch or config.has_batch_norm):
        raise InputError(
            f"--elbo {name} needs weights that each depend on their own draw only, and --likelihood normal-optimal and "
            "BatchNorm make them depend on all draws: take --elbo trace, analytic, stl or iwae"
        )
    weight = 0.0 if config.warm_up else config.beta  # at some step
    bits, groups = config.free_bits, config.groups
    options: dict[str, Any] = {"alpha": config.alpha, "mix": config.mix, "num_groups": groups}
    return build_elbo(name, config.particles, weight, bits, **options, label_weight=config.label_weight / labelled)
