"""The command `python -m pvae.identify`."""

from .cli.command import exit_process
from .cli.identify import main

if __name__ == "__main__":
    exit_process(main())
