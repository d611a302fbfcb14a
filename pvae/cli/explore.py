"""The command `pvae explore`: a run as one page that decodes in the browser."""

from __future__ import annotations

import argparse
import webbrowser

from pvae.cli.command import Command, Parser, run_parser
from pvae.cli.own_code import open_run
from pvae.cli.results import output_path, write
from pvae.core.terminal import print_line

__all__ = ["main"]

_DESCRIPTION = """\
Write a trained run of images as one HTML file, which a double click opens: the map of its codes, the image under the
pointer, decoded as it moves, q(z | x) and the ELBO of an image of the test data or of your own, walks between two
images, and samples. The browser computes all of it from the run's weights; the page needs no server and no network.
Not for tables, series and other data that are no images, VAEs with labels, and VAEs of your own."""
_EPILOG = """\
examples:
  pvae explore fashion-vae --open      needs no data: 500 test images come with pvae
  pvae explore runs/my-run --out my-run.html
In Python, after import pvae.explore.page:
  html = pvae.explore.page.explorer_page(pvae.Run.open("runs/my-run"))"""


def _parser() -> Parser:
    run = "a run folder, or deep-bayes or fashion-vae, runs that come with pvae"
    parser = run_parser("pvae explore", _DESCRIPTION, _EPILOG, "the page (default: RUN/explore.html)", "FILE", help=run)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    return parser


def _explore(arguments: argparse.Namespace) -> None:
    from pvae.explore.page import check_run, explorer_page, shown_data

    run = open_run(arguments.run, arguments.vae)
    check_run(run)
    out = output_path(arguments.out, run.place / "explore.html")
    page = explorer_page(run, shown_data(run, arguments.data_dir, arguments.offline))
    write(out, page)
    print_line(f"{out}: {len(page) / 1e6:.2f} MB")
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())


main = Command(_parser, _explore)
