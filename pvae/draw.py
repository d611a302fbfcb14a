"""The command `python -m pvae.draw`."""

from .cli.command import exit_process
from .cli.draw import main

if __name__ == "__main__":
    exit_process(main())
