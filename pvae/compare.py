"""The command `python -m pvae.compare`."""

from .cli.command import exit_process
from .cli.compare import main

if __name__ == "__main__":
    exit_process(main())
