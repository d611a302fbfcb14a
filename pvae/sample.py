"""The command `python -m pvae.sample`."""

from .cli.command import exit_process
from .cli.images import sample

if __name__ == "__main__":
    exit_process(sample())
