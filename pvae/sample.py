"""The command `python -m pvae.sample`."""

from .cli.command import leave
from .cli.sample import main

if __name__ == "__main__":
    leave(main())
