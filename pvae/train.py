"""The main job, `python -m pvae.train`; `pvae train` is the same."""

from .cli.command import exit_process
from .cli.train import main

if __name__ == "__main__":
    exit_process(main())
