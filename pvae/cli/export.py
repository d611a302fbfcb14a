"""The commands `pvae export` and `pvae explore`: a run as files that torch, or a browser, opens without pvae."""

from __future__ import annotations

import argparse
import webbrowser

from pvae.cli.command import Command, Parser, integer, output_path, run_parser, write
from pvae.cli.own_code import open_run
from pvae.core.terminal import print_line

_EXPORT = """\
Write the VAE of a trained run as programs of torch.export, which torch opens without pvae and Pyro: encode.pt2, from x
to the mean of q(z | x); decode.pt2, from z to the mean of p(x | z); and log_probs.pt2, from x to log p(x | z), log p(z)
and log q(z | x) at a draw of z from q(z | x). Batches may have any size. A part that torch cannot export is named."""

_EXPORT_EXAMPLES = """\
examples:
  pvae export deep-bayes --out vae
  pvae export runs/my-run
      into RUN/torch
  python -c 'import torch; print(torch.export.load("vae/decode.pt2").module()(torch.randn(16, 32)).shape)'
In Python: pvae.trained.export.export(pvae.Run.open("runs/my-run"), folder). notebooks/plain-torch.md says more."""
_EXPLORE = """\
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
_EXPLORE_EXAMPLES = """\
examples:
  pvae explore fashion-vae --open      needs no data: 500 test images come with pvae
  pvae explore runs/my-run --out my-run.html
  pvae explore runs/patients --open    a run on a table
  pvae explore runs/beta-0.1 runs/beta-1 runs/beta-4      side by side, one pointer
In Python, after import pvae.explore.page:
  html = pvae.explore.page.explorer_page(pvae.Run.open("runs/my-run"))"""


def _export_parser() -> Parser:
    return run_parser("pvae export", _EXPORT, _EXPORT_EXAMPLES, "a new folder (default: RUN/torch)")


def _export(arguments: argparse.Namespace) -> None:
    from pvae.trained.export import export as write_programs

    run = open_run(arguments.run, arguments.vae)
    written, notes = write_programs(run, output_path(arguments.out, run.place / "torch"))
    for line in notes:
        print_line(f"note: {line}")
    print_line(
        f"{written[0].parent}: {', '.join(path.name for path in written)}, of x with values {run.vae().p_x.domain}"
    )


def _explore_parser() -> Parser:
    run = "a run folder, or deep-bayes or fashion-vae, runs that come with pvae; two or three stand side by side"
    out = "the page (default: RUN/explore.html, and RUN/side-by-side.html of several runs, in the first one)"
    parser = run_parser("pvae explore", _EXPLORE, _EXPLORE_EXAMPLES, out, "FILE", nargs="+", help=run)
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


export = Command(_export_parser, _export)
explore = Command(_explore_parser, _explore)
