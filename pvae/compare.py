"""The command `python -m pvae.compare`."""

from .cli.command import leave
from .cli.compare import main

if __name__ == "__main__":
    leave(main())
