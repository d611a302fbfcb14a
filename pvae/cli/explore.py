"""The command `pvae explore`: a run, or two or three side by side, as one page that decodes in the browser."""

from __future__ import annotations

import argparse
import webbrowser

from pvae.cli.command import Command, Parser, integer, run_parser
from pvae.cli.own_code import open_run
from pvae.cli.results import output_path, write
from pvae.core.terminal import print_line

_DESCRIPTION = """\
Write a trained run as one HTML file, which a double click opens: the map of its codes, the image under the
pointer, decoded as it moves, q(z | x) and the ELBO of an image of the test data or of your own, and samples. Of
two or three runs with two latents on the same images, the maps stand side by side: each run decodes the z under
the pointer, and shows the image that is picked. The browser computes all of it from the run's weights; the page
needs no server and no network.
Of a VAE given labels (--condition), one chooses the label that q and p are given.
Of a table, the page has the map of the codes of its test rows, sliders of z, and p(x | z) of each column in the
units of the table, beside a row that is picked, and says how odd the row is, by log p; with --missing, values
of the row can be taken out, and are imputed, or set to others.
Not for series and other data that are neither images nor tables, VAEs with --labels, and VAEs of your own."""
_EPILOG = """\
examples:
  pvae explore fashion-vae --open      needs no data: 500 test images come with pvae
  pvae explore runs/my-run --out my-run.html
  pvae explore runs/patients --open    a run on a table
  pvae explore runs/beta-0.1 runs/beta-1 runs/beta-4      side by side, one pointer
In Python, after import pvae.explore.page:
  html = pvae.explore.page.explorer_page(pvae.Run.open("runs/my-run"))"""


def _parser() -> Parser:
    run = "a run folder, or deep-bayes or fashion-vae, runs that come with pvae; two or three stand side by side"
    out = "the page (default: RUN/explore.html, and RUN/side-by-side.html of several runs, in the first one)"
    parser = run_parser("pvae explore", _DESCRIPTION, _EPILOG, out, "FILE", nargs="+", help=run)
    dots = "the most test data whose codes are dots of the map, up to 10000 (default: 2000)"
    parser.add_argument("--dots", metavar="N", type=integer(1, 10_000), default=2000, help=dots)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    return parser


def _explore(arguments: argparse.Namespace) -> None:
    from pvae.explore.page import check_run, check_runs, explorer_page, side_by_side_page
    from pvae.runs.run import shown_data

    is_one = len(arguments.run) == 1
    runs = [open_run(path, arguments.vae, is_one) for path in arguments.run]
    if is_one:
        check_run(runs[0])
        name = "explore.html"
    else:
        check_runs(runs)
        name = "side-by-side.html"
    out = output_path(arguments.out, runs[0].place / name)
    data = [shown_data(run, arguments.data_dir, arguments.offline) for run in runs]
    if is_one:
        page = explorer_page(runs[0], data[0], num_codes=arguments.dots)
    else:
        page = side_by_side_page(runs, data, arguments.dots)
    write(out, page)
    print_line(f"{out}: {len(page) / 1e6:.2f} MB")
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())


main = Command(_parser, _explore)
