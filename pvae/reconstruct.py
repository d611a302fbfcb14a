"""The command `python -m pvae.reconstruct`."""

from .cli.command import exit_process
from .cli.images import reconstruct

if __name__ == "__main__":
    exit_process(reconstruct())
