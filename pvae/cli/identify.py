"""The command `pvae identify`: name a loss that stands in a file of Python."""

from __future__ import annotations

import argparse
import ast
import contextlib
import re
from typing import Any

from pvae.cli.command import Command, Parser
from pvae.cli.own_code import load_function
from pvae.core.terminal import print_line

_EPILOG = """\
The loss is a function of x, its reconstruction, the encoder's two outputs and perhaps a draw z. The command says that
it is a factor times the negative ELBO of a likelihood, a posterior and a beta, checked in value and gradients at 200
random points, or why it is not an ELBO. The code at the top level of the file runs. More: notebooks/identify.md

examples:
  pvae identify my_vae.py:loss_function
  pvae identify my_vae.py:VAE.loss --shape 1x28x28 --constant kld_weight=0.005"""


def _identify(arguments: argparse.Namespace) -> None:
    from pvae.identification.identify import identify

    loss = load_function(arguments.loss)
    print_line(identify(loss, arguments.arguments, shape=arguments.shape, **dict(arguments.constant)))


def _parser() -> Parser:
    parser = Parser("pvae identify", "Name the loss of a VAE: likelihood, posterior, beta and reductions.", _EPILOG)
    add = parser.add_argument
    add("loss", metavar="FILE.py:FUNCTION", help="where the loss stands")
    roles = "their roles in order, from x, reconstruction, loc, spread, z, x_spread (default: by the names)"
    add("--arguments", metavar="LIST", help=roles)
    add("--shape", metavar="SHAPE", type=_shape, help="of one image, as 1x28x28 or 784 (default: by trying)")
    constant = "another argument of the loss, as kld_weight=0.005; may be given several times"
    add("--constant", metavar="NAME=VALUE", type=_constant, action="append", default=[], help=constant)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text} is no shape such as 1x28x28")
    return tuple(map(int, text.split("x")))


def _constant(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    with contextlib.suppress(ValueError, SyntaxError):
        return name, ast.literal_eval(value)
    return name, value


main = Command(_parser, _identify)
