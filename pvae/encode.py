"""The command `python -m pvae.encode`."""

from .cli.command import leave
from .cli.encode import main

if __name__ == "__main__":
    leave(main())
