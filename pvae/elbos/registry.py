"""The registry of ELBOs: from a name, or a configuration, to an ELBO for `pyro.infer.SVI`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from pvae.config.config import Config
from pvae.config.options import ELBOS
from pvae.config.refusals import Case, refuse
from pvae.core.errors import check_name
from pvae.elbos.base import PerDatumELBO

__all__ = ["ELBO_CLASSES", "build_elbo", "elbo_of", "loss_text"]

ELBO_CLASSES: dict[str, type[PerDatumELBO]] = {name: resolve_name(where) for name, where in ELBOS.items()}


def build_elbo(name: str, num_particles: int = 1, **options: float) -> PerDatumELBO:
    """Return the ELBO of that name, whose loss is a mean over the batch, where that of Pyro's own ELBOs is a sum.

    Args:
        name: one of `ELBO_CLASSES`.
        num_particles: K, the number of draws of z for each datum.
        options: those that its class takes.
            beta: weight of the rate in the loss.
            free_bits: nats per latent dimension that cost nothing.
            alpha: order of "renyi"; below 0 the objective is not a lower bound on log p(x), -inf is VR-max.
            mix: share of the ELBO in "ciwae".
            num_groups: number of groups M of "miwae" and "piwae".
            label_weight: weight of the classifier's loss at known labels in "enumerate".

    Raises:
        InputError: the name is unknown, or an option is out of range or is none of this ELBO.
    """
    kind = ELBO_CLASSES[check_name("ELBO", name, ELBO_CLASSES)]
    elbo = kind(num_particles, **options)
    fields: dict[str, Any] = {
        "groups" if option == "num_groups" else option: value for option, value in options.items()
    }
    config = Config(elbo=name, particles=num_particles, labels=int(kind.sums_over_labels), **fields)
    refuse(Case(config=config, elbo=kind))
    return elbo


def elbo_of(config: Config, labelled: float = 1.0) -> PerDatumELBO:
    """Return the ELBO of a configuration.

    Args:
        config: the configuration.
        labelled: the share of the training data whose labels are known, with `config.labels`.

    Raises:
        InputError: an option, or the VAE that the configuration describes, does not go with the ELBO.
    """
    kind = ELBO_CLASSES[config.elbo]
    refuse(Case(config=config, elbo=kind))
    given: dict[str, float] = {
        "beta": 0.0 if config.warm_up else config.beta,  # of the first step
        "free_bits": config.free_bits,
        "alpha": config.alpha,
        "mix": config.mix,
        "num_groups": config.groups,
        "label_weight": config.label_weight / labelled,
    }
    return kind(config.particles, **{option: given[option] for option in kind.options})


def loss_text(config: Config) -> str:
    """Return a phrase for the loss that a training of the configuration minimises."""
    if config.is_autoencoder:
        return "the distortion"
    if "beta" not in ELBO_CLASSES[config.elbo].options:
        return f"the loss of --elbo {config.elbo} with {config.particles} draws of z for each image"
    text = f"distortion + {config.beta:g} x rate (--elbo {config.elbo})"
    if config.warm_up:
        text += f", with a warm-up of the weight of the rate from 0 over {config.warm_up} epochs"
    if config.free_bits:
        text += f", where the rate of each latent counts as at least {config.free_bits:g} nats"
    return text
