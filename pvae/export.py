"""The command `python -m pvae.export`."""

from .cli.command import exit_process
from .cli.images import export

if __name__ == "__main__":
    exit_process(export())
