"""The command `python -m pvae.explore`."""

from pvae.cli.command import exit_process
from pvae.cli.explore import main

if __name__ == "__main__":
    exit_process(main())
