"""The command `python -m pvae.evaluate`."""

from .cli.command import leave
from .cli.evaluate import main

if __name__ == "__main__":
    leave(main())
