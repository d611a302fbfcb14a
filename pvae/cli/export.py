"""The command `python -m pvae.export`: encoder and decoder of a trained run as ONNX files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pvae.cli.command import Parser, ctrl_c_exits_at_once, nonempty_path, result_folder, run_command
from pvae.core.terminal import print_line

__all__ = ["main"]

_EPILOG = """\
It writes two files, whose batch dimension N may have any size:
  encoder.onnx  x (N, C, H, W), pixels as in training, to loc and scale (N, L), mean and standard deviation of q(z | x)
  decoder.onnx  z (N, L) to mean (N, C, H, W), the mean of p(x | z)
onnxruntime runs both first, and they are written only if their outputs equal those of torch to 1e-5. It needs the
packages onnx, onnxscript and onnxruntime: pip install -e ".[export]". A VAE of several stochastic layers cannot
be exported, and with torch 2.6 no network with BatchNorm.

example:
  python -m pvae.export runs/my-run --out onnx
In Python, after import pvae.trained.export:
  pvae.trained.export.export(pvae.load("runs/my-run"), (1, 28, 28), folder)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.export", lambda: _export(_parser().parse_args(argv)))


def _export(arguments: argparse.Namespace) -> None:
    with ctrl_c_exits_at_once("pvae.export"):
        from pvae.runs.run import Run
        from pvae.trained.export import export
    run = Run.open(arguments.run)
    names = ("encoder.onnx", "decoder.onnx") if arguments.out else ()
    with result_folder(arguments.out or run.place / "onnx", names) as folder:
        vae = run.vae()
        for exported in export(vae, run.config.padded(run.data.image_shape), folder):
            print_line(exported)
        if domain := getattr(vae.p_x, "domain", ""):
            print_line(f"N is any batch size; the pixels of x are {domain}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("export", "Export encoder and decoder of a trained run as ONNX.", _EPILOG)
    parser.add_argument("run", metavar="RUN", type=nonempty_path, help="a run folder")
    parser.add_argument("--out", metavar="DIR", type=nonempty_path, help="where to write (default: RUN/onnx)")
    return parser
