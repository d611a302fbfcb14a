"""The published systems of the source documents, as configurations."""

from __future__ import annotations

from dataclasses import asdict

from pvae.config import Config
from pvae.errors import check_name

__all__ = ["SYSTEMS", "get_system", "system_title"]

SYSTEMS = {
    # Document 004, after the Deep Bayes course: every default of Config.
    "deep-bayes": Config(),
}


def get_system(name: str) -> Config:
    """Return the published system of that name.

    Raises:
        InputError: there is none.

    >>> get_system("deep-bayes").hidden
    (100, 100)
    """
    return SYSTEMS[check_name("system", name, SYSTEMS)]


def system_title(config: Config) -> str:
    """Return the system's name, with the options in which `config` departs from what was published.

    >>> system_title(Config(latent_dim=2))
    'deep-bayes with --latent-dim 2'
    """
    published = SYSTEMS.get(config.system)
    if published is None:
        return config.system
    shown_elsewhere = ("system", "dataset", "elbo", "epochs", "seed")
    theirs, ours = asdict(published), asdict(config)
    changed = [name for name in ours if ours[name] != theirs[name] and name not in shown_elsewhere]
    return " ".join([config.system, *(["with"] if changed else []), *(_as_option(n, ours[n]) for n in changed)])


def _as_option(name: str, value: object) -> str:
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{name.replace('_', '-')} {shown}"
