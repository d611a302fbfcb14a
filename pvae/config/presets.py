"""The published systems, as configurations; posts 000 to 004 are the five that README names."""

from __future__ import annotations

from dataclasses import asdict

from pvae.config.config import Config
from pvae.config.options import flag
from pvae.core.errors import check_name

__all__ = ["SYSTEMS", "as_option", "get_system", "list_systems", "system_title"]

_CONV_2D = Config(
    system="conv-2d",
    dataset="auto",
    pixels="symmetric",
    network="conv",
    hidden=(32, 64),
    latent_dim=2,
    posterior="normal-log-variance",
    likelihood="normal",
    scale=0.392**0.5,
    epochs=10,
    source="post 001: mean over 784 pixels of the squared error + 1e-3 KL, Tanh output; the layers beyond the 64 x 7 x "
    "7 before the latent, the optimiser and the epochs are ours",
)

_FASHION_VAE = Config(
    system="fashion-vae",
    dataset="fashion-mnist",
    pad=2,
    network="conv",
    hidden=(32, 64, 128),
    latent_dim=2,
    posterior="normal-log-variance",
    beta=2.048,
    rate_reduction="mean",
    lr=5e-4,
    epochs=5,
    source="post 003, section 3.2: 500 x mean of the cross-entropy over pixels + mean of the KL over 2 latents",
)

_IWAE = Config(
    system="iwae-1layer",
    binarize="dynamic",
    hidden=(200, 200),
    activation="tanh",
    initialization="burda",
    latent_dim=50,
    elbo="iwae",
    epochs=800,
    lr=2e-3,
    schedule="cosine",
    adam_eps=1e-4,
    source="Burda et al., arXiv:1509.00519, one stochastic layer, k = --particles; by a shorter schedule than theirs",
)

_SYSTEMS = [
    Config(
        system="deep-bayes",
        source="post 004, after the Deep Bayes course: -(log p(x|z) + log p(z) - log q(z|x))",
    ),
    Config(
        system="pytorch-example",
        hidden=(400,),
        latent_dim=20,
        posterior="normal-log-variance",
        elbo="analytic",
        batch_size=128,
        epochs=50,
        source="post 002, the PyTorch example: sum of the cross-entropy + KL",
    ),
    Config(
        system="mlp-2d",
        hidden=(512, 256),
        latent_dim=2,
        posterior="normal-log-variance",
        elbo="analytic",
        batch_size=200,
        epochs=50,
        source="post 000: sum of the cross-entropy + KL",
    ),
    _CONV_2D.replace(elbo="analytic"),
    _CONV_2D.replace(
        system="conv-2d-ae",
        posterior="delta",
        source="post 001: the autoencoder beside conv-2d, mean squared error",
    ),
    _FASHION_VAE.replace(
        system="fashion-ae",
        posterior="delta",
        beta=1.0,
        rate_reduction="sum",
        lr=1e-3,
        source="post 003, section 3.1: mean of the cross-entropy",
    ),
    _FASHION_VAE.replace(elbo="analytic"),
    Config(
        system="celeba-vae",
        dataset="celeba",
        image_size=64,
        network="conv-batchnorm",
        hidden=(64, 64, 64, 64, 64),
        latent_dim=200,
        posterior="normal-log-variance",
        likelihood="normal",
        scale=3.072**0.5,
        elbo="analytic",
        batch_size=128,
        lr=5e-4,
        epochs=10,
        source="post 003, section 3.3: 2000 x mean of the squared error over 12,288 values + KL",
    ),
    Config(
        system="linear-gaussian",
        dataset="linear-gaussian",
        network="linear",
        latent_dim=5,
        likelihood="normal-linear",
        scale=0.05,
        lr=1e-2,
        source="the VAE whose log p(x), posterior and bounds are known exactly",
    ),
    _IWAE,
    _IWAE.replace(
        system="iwae-2layer",
        latent_dim=100,
        second_latent_dim=50,
        second_hidden=(100, 100),
        source="Burda et al., arXiv:1509.00519, two stochastic layers; by a shorter schedule than theirs",
    ),
    Config(
        system="pythae-vae",
        dataset="binarized-mnist",
        binarize="threshold",
        hidden=(400, 400),
        latent_dim=40,
        posterior="normal-log-variance",
        elbo="analytic",
        lr=1e-4,
        schedule="steps",
        epochs=500,
        source="the VAE of pythae's table of reproductions, on Larochelle's binarized MNIST",
    ),
]

SYSTEMS = {config.system: config for config in _SYSTEMS}


def get_system(name: str) -> Config:
    """Return the published system of that name.

    Raises:
        InputError: the name is unknown.

    >>> get_system("pytorch-example").hidden
    (400,)
    """
    return SYSTEMS[check_name("system", name, SYSTEMS)]


def list_systems() -> str:
    """Return a line for each system: its name and where it was published."""
    width = max(map(len, SYSTEMS))
    return "\n".join(f"{name:{width}}  {config.source}" for name, config in SYSTEMS.items())


def system_title(config: Config) -> str:
    """Return the system's name, with the options in which `config` departs from what was published.

    >>> system_title(get_system("deep-bayes").replace(latent_dim=2))
    'deep-bayes with --latent-dim 2'
    """
    published = SYSTEMS.get(config.system)
    if published is None:
        return config.system
    shown_elsewhere = ("system", "dataset", "elbo", "epochs", "seed", "source")
    theirs, ours = asdict(published), asdict(config)
    changed = [name for name in ours if ours[name] != theirs[name] and name not in shown_elsewhere]
    return " ".join([config.system, *(["with"] if changed else []), *(as_option(n, ours[n]) for n in changed)])


def as_option(name: str, value: object) -> str:
    """Return a field as it is typed on the command line; a switch that is off as "no" and its name."""
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{flag(name)}"
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
