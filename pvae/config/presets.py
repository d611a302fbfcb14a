"""The published systems as configurations, read from `presets.toml` beside this file."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvae.config.config import OPTIONS, Config
from pvae.core.errors import check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(file: Path) -> dict[str, Any]:
    """Return the content of a TOML file."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


_TABLES = read_toml(Path(__file__).with_suffix(".toml"))
SYSTEMS = {name: Config(system=name, **options) for name, options in _TABLES.items()}


def get_system(name: str) -> Config:
    """Return the published system of that name.

    Raises:
        InputError: the name is unknown.

    >>> get_system("pytorch-example").hidden
    (400,)
    """
    return SYSTEMS[check_name("system", name, SYSTEMS)]


def list_systems() -> str:
    """Return for each system its name, where it was published, and its options that are not the defaults.

    Options that have no flag come last, as in a TOML file.
    """
    width = max(map(len, SYSTEMS)) + 2
    indent = " " * width
    lines = ["Name, source, and the options that are not the defaults; any other option may follow --system NAME."]
    for name, config in SYSTEMS.items():
        changed = _changed(config, Config(), ("system", "source")).items()
        options = " ".join(sorted((as_option(*field) for field in changed), key=lambda text: " = " in text))
        lines.append(f"{name:{width}}{config.source}")
        lines += textwrap.wrap(options, 120, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def system_title(config: Config) -> str:
    """Return the name of the system and the options in which `config` differs from the published system.

    >>> system_title(get_system("deep-bayes").replace(latent_dim=2))
    'deep-bayes with --latent-dim 2'
    """
    if config.system not in SYSTEMS:
        return config.system
    shown_elsewhere = ("system", "dataset", "columns", "elbo", "epochs", "seed", "source", "compile")
    changed = _changed(config, SYSTEMS[config.system], shown_elsewhere)
    return " ".join([config.system, "with", *map(as_option, changed, changed.values())]) if changed else config.system


def differences(configs: Sequence[Config]) -> list[str]:
    """Return a title for each configuration: its options in which some differ, "" if none do.

    >>> differences([Config(beta=0.1), Config(posterior="delta")])
    ['posterior normal', 'posterior delta']
    """
    used = []
    for config in configs:
        without: tuple[str, ...] = ("system", "source", "dataset", "compile")
        if config.is_autoencoder:  # which does not use them
            without += ("prior", "elbo", "particles", "beta", "warm_up", "free_bits")
        used.append({name: value for name, value in config.used().items() if name not in without})
    titles = []
    for own in used:
        differing = [name for name, value in own.items() if any(value != options.get(name, value) for options in used)]
        titles.append(", ".join(as_option(name, own[name]).removeprefix("--") for name in differing))
    return titles


def command_line(config: Config) -> str:
    """Return the options of a configuration that are not the defaults, as the command line takes them.

    >>> command_line(get_system("deep-bayes").replace(hidden=(64, 32), columns="real*2", likelihood="columns"))
    "--columns 'real*2' --hidden 64 32 --likelihood columns"
    """
    changed = _changed(config, Config(), ("system", "dataset", "seed", "source"))
    if config.uses("rules") and config.rules != "none" and "=" not in config.columns:  # of what rules have left
        changed.pop("columns", None)
    return shlex.join(word for name in changed if OPTIONS[name].has_flag for word in _words(name, changed[name]))


def _changed(config: Config, other: Config, without: Sequence[str]) -> dict[str, Any]:
    """Return the options in which a configuration differs from another one."""
    used = config.used().items()
    return {name: value for name, value in used if value != getattr(other, name) and name not in without}


def as_option(name: str, value: object) -> str:
    """Return an option as it is written on the command line, or in TOML if it stands there alone.

    A switch that is off is "no" and its name.
    """
    if not OPTIONS[name].has_flag:
        return f"{name} = {value!r}"
    return " ".join(_words(name, value)).rstrip()


def _words(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [OPTIONS[name].flag] if value else ["no", OPTIONS[name].flag]
    return [OPTIONS[name].flag, *map(str, value if isinstance(value, tuple) else (value,))]
