"""The command `python -m pvae.draw`."""

from .cli.command import leave
from .cli.draw import main

if __name__ == "__main__":
    leave(main())
