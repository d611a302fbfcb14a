"""The command `python -m pvae.explore`: a run as one page that decodes in the browser."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Sequence

from pvae.cli.command import Parser, add_places, ctrl_c_exits_at_once, nonempty_path, result_folder, run_command
from pvae.core.files import write_whole
from pvae.core.terminal import print_line

__all__ = ["main"]

_DESCRIPTION = """\
Write a trained run of images as one HTML file, which a double click opens: the map of its codes, the image under the
pointer, decoded as it moves, q(z | x) and the ELBO of an image of the test data or of your own, walks between two
images, and samples. The browser computes all of it from the run's weights; the page needs no server and no network."""
_EPILOG = """\
examples:
  python -m pvae.explore fashion-vae --open
  python -m pvae.explore runs/my-run --out my-run.html
In Python, after import pvae.explore.page:
  html = pvae.explore.page.explorer_page(pvae.Run.open("runs/my-run"))"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    parser = Parser("explore", _DESCRIPTION, _EPILOG)
    run = "a run folder, or deep-bayes or fashion-vae, runs that come with pvae"
    parser.add_argument("run", metavar="RUN", type=nonempty_path, help=run)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    add_places(parser, "the page (default: RUN/explore.html)", "FILE")
    return run_command("pvae.explore", lambda: _explore(parser.parse_args(argv)))


def _explore(arguments: argparse.Namespace) -> None:
    with ctrl_c_exits_at_once("pvae.explore"):
        from pvae.explore.page import check_run, explorer_page
        from pvae.runs.run import Run
    run = Run.open(arguments.run)
    check_run(run)
    out = arguments.out or run.place / "explore.html"
    with result_folder(out.parent, [out.name]):
        run.dataset(None, arguments.data_dir, arguments.offline)
        page = explorer_page(run).encode()
        write_whole(out, page)
    print_line(f"{out}: {len(page) / 1e6:.2f} MB")
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())
