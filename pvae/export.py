"""The command `python -m pvae.export`."""

from .cli.command import leave
from .cli.export import main

if __name__ == "__main__":
    leave(main())
