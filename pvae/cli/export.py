"""The command `pvae export`: the parts of a VAE as programs of `torch.export`."""

from __future__ import annotations

import argparse

from pvae.cli.command import Command, Parser, run_parser
from pvae.cli.own_code import open_run
from pvae.cli.results import output_path
from pvae.core.terminal import print_line

_DESCRIPTION = """\
Write the VAE of a trained run as programs of torch.export, which torch opens without pvae and Pyro: encode.pt2, from x
to the mean of q(z | x); decode.pt2, from z to the mean of p(x | z); and log_probs.pt2, from x to log p(x | z), log p(z)
and log q(z | x) at a draw of z from q(z | x). Batches may have any size. A part that torch cannot export is named."""

_EPILOG = """\
examples:
  pvae export deep-bayes --out vae
  pvae export runs/my-run
      into RUN/torch
  python -c 'import torch; print(torch.export.load("vae/decode.pt2").module()(torch.randn(16, 32)).shape)'
In Python: pvae.trained.export.export(pvae.Run.open("runs/my-run"), folder). notebooks/plain-torch.md says more."""


def _parser() -> Parser:
    return run_parser("pvae export", _DESCRIPTION, _EPILOG, "a new folder (default: RUN/torch)")


def _export(arguments: argparse.Namespace) -> None:
    from pvae.trained.export import export

    run = open_run(arguments.run, arguments.vae)
    written, notes = export(run, output_path(arguments.out, run.place / "torch"))
    for line in notes:
        print_line(f"note: {line}")
    print_line(
        f"{written[0].parent}: {', '.join(path.name for path in written)}, of x with values {run.vae().p_x.domain}"
    )


main = Command(_parser, _export)
