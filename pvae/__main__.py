"""The console script `pvae`, and the same as `python -m pvae`: the table of its sub-commands, and what runs them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from pvae.cli.command import Command, exit_process, run_command
from pvae.core.errors import InputError, check_name

# The sentence that `pvae --help` prints, and where in pvae.cli the command is; imported when it is run.
COMMANDS = {
    "train": ("train a VAE on digits, or on images and tables of your own, into a run folder", "train:main"),
    "evaluate": ("print the ELBO, log p(x), rate and active units of a run, or of several", "evaluate:main"),
    "draw": ("draw the pictures of a run, or of a folder of runs side by side", "draw:main"),
    "explore": (
        "write a run of images or of a table as one page that decodes under the pointer, in any browser",
        "export:explore",
    ),
    "compare": ("compare estimators of the bound and of its gradient, at the weights of a run", "compare:main"),
    "encode": ("write the codes of data", "data:encode"),
    "score": ("write the likelihood of each datum, and show the oddest", "data:score"),
    "sample": ("draw new data, or fill in missing values", "data:sample"),
    "reconstruct": ("encode data and decode the codes", "data:reconstruct"),
    "export": ("write a VAE as programs that torch opens by itself", "export:export"),
    "identify": ("name the loss in a file of Python: which ELBO it is, or why it is none", "own_code:identify"),
}

_LIST = "\n".join(f"  {name:13}{sentence}" for name, (sentence, _) in COMMANDS.items())
_HELP = f"""\
usage: pvae COMMAND ...     (or python -m pvae COMMAND ...)

{_LIST}

pvae COMMAND --help explains a command, with examples. RUN is a run folder, or deep-bayes or fashion-vae, two trained
runs that come with pvae:
  pvae sample deep-bayes
  python -m pvae.train --elbo analytic        the same as pvae train --elbo analytic"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that the first argument names, and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    if argv is None:
        argv = sys.argv[1:]
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        return run_command("pvae", lambda: print(_HELP, flush=True))
    try:
        return command_of(name)(rest)
    except InputError as error:
        print(f"pvae: {error}", file=sys.stderr)
        return 2


def command_of(name: str) -> Command:
    """Return a sub-command.

    Raises:
        InputError: there is none of this name.
    """
    module, _, function = COMMANDS[check_name("command", name, COMMANDS)][1].partition(":")
    command: Command = getattr(importlib.import_module(f"pvae.cli.{module}"), function)
    return command


def main() -> NoReturn:
    """Run the sub-command that the arguments of the program name, and exit."""
    exit_process(run())


if __name__ == "__main__":
    main()
