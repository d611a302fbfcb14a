"""The command `python -m pvae.score`."""

from .cli.command import exit_process
from .cli.score import main

if __name__ == "__main__":
    exit_process(main())
