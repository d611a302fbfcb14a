"""The command `python -m pvae.sample`."""

from .cli.command import exit_process
from .cli.sample import main

if __name__ == "__main__":
    exit_process(main())
