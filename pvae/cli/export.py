"""The command `pvae export`: a VAE as one file of plain torch."""

from __future__ import annotations

import argparse

from pvae.cli.command import Command, Parser, run_parser
from pvae.cli.own_code import open_run
from pvae.cli.results import output_path
from pvae.core.terminal import print_line

__all__ = ["main"]

_DESCRIPTION = """\
Write the VAE of a trained run as model.py, one class of plain torch that needs neither pvae nor Pyro (an autoregressive
flow needs zuko), and its weights as model.safetensors. Not for VAEs with labels or missing values, tables by default
(train with --likelihood student-t --initialization torch), and VAEs of your own."""

_EPILOG = """\
examples:
  pvae export deep-bayes --out vae
  pvae export runs/my-run
      into RUN/torch
In Python, after import pvae.trained.plain_torch:
  pvae.trained.plain_torch.export_torch(pvae.Run.open("runs/my-run"), folder)
notebooks/plain-torch.md shows the file, and exports encoder and decoder as ONNX from it."""


def _parser() -> Parser:
    return run_parser("pvae export", _DESCRIPTION, _EPILOG, "a new folder (default: RUN/torch)")


def _export(arguments: argparse.Namespace) -> None:
    from pvae.trained.plain_torch import export_torch

    run = open_run(arguments.run, arguments.vae)
    code, weights = export_torch(run, output_path(arguments.out, run.place / "torch"))
    methods = "elbo(x)" if run.config.is_autoencoder else "elbo(x) and sample(n)"
    print_line(f"{code}: VAE, with {methods}, and load(), which reads {weights.name}")


main = Command(_parser, _export)
