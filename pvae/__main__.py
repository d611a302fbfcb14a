"""The console script `pvae`, and the same as `python -m pvae`: its sub-commands are those of `cli/commands.py`."""

from typing import NoReturn

from .cli.command import exit_process
from .cli.commands import main as run


def main() -> NoReturn:
    """Run the sub-command that the arguments of the program name, and exit."""
    exit_process(run())


if __name__ == "__main__":
    main()
