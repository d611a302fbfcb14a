"""The command `python -m pvae.export`."""

from .cli.command import exit_process
from .cli.export import main

if __name__ == "__main__":
    exit_process(main())
