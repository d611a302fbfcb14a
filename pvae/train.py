"""The command `python -m pvae.train`."""

from .cli.command import leave
from .cli.train import main

if __name__ == "__main__":
    leave(main())
