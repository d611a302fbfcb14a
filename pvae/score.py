"""The command `python -m pvae.score`."""

from .cli.command import leave
from .cli.score import main

if __name__ == "__main__":
    leave(main())
