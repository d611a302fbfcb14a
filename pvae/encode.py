"""The command `python -m pvae.encode`."""

from .cli.command import exit_process
from .cli.images import encode

if __name__ == "__main__":
    exit_process(encode())
