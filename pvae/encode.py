"""The command `python -m pvae.encode`."""

from .cli.command import exit_process
from .cli.encode import main

if __name__ == "__main__":
    exit_process(main())
