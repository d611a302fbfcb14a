"""The command `python -m pvae.evaluate`."""

from .cli.command import exit_process
from .cli.evaluate import main

if __name__ == "__main__":
    exit_process(main())
