"""The command `python -m pvae.score`."""

from .cli.command import exit_process
from .cli.images import score

if __name__ == "__main__":
    exit_process(score())
