"""The command `pvae draw`: the pictures of a run, and runs side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pvae.cli.command import Command, Parser, output_path, run_parser, write
from pvae.cli.own_code import open_run, runs_in
from pvae.core.errors import InputError, NotFiniteError, check_name, naming_refused_parameters
from pvae.core.files import to_json
from pvae.core.terminal import print_line

PICTURES = {
    "reconstructions": "test data beside their reconstructions; of a table over intervals of p(x | z)",
    "samples": "64 images of the prior; of a table histograms, of series lines",
    "losses": "loss and rate against the epoch",
    "scatter": "2-dimensional codes of test data, coloured by class",
    "cdf": "how far the distribution of each latent is from N(0, 1), beside the band of Kolmogorov and Smirnov",
    "manifold": "the decoded grid of a 2-dimensional latent at the quantiles of the prior",
    "traversal": "one latent dimension after the other, the one of largest rate first, from -3 to 3",
    "interpolation": "straight lines between pairs of test images in the latent space",
    "histograms": "the ten latents of largest rate, of several layers those of the top one, against their prior",
    "attributes": "test images along the direction of an attribute, z + alpha v, alpha from -3 to 3 (celeba)",
}

_OF_WEIGHTS = ("samples", "losses", "manifold")  # of a run of images without labels, these need no data

_DESCRIPTION = """\
Draw the pictures of a trained run into its figures/; or a folder of runs side by side: a sheet of their pictures, the
codes of those with two latents, the rate-distortion curve of runs that differ in beta, and a table with a row for
each system, over its seeds."""
_PICTURES = "\n".join(f"  {name:16} {what}" for name, what in PICTURES.items())
_EPILOG = f"""\
pictures of a run:
{_PICTURES}

examples:
  pvae draw runs/my-run --what scatter,manifold
  pvae draw runs/my-run --what samples --format pdf --no-title      for a paper
  pvae draw fashion-vae      without its data those pictures that need none: samples, losses, manifold
  pvae draw runs"""


def _draw(arguments: argparse.Namespace) -> None:
    wanted = None
    if arguments.what:
        wanted = [check_name("picture", name, PICTURES) for name in arguments.what.split(",")]
    runs = runs_in(arguments.run)
    if not runs:
        _draw_run(arguments, wanted)
    elif wanted or arguments.attribute or arguments.no_title or arguments.format != "png":
        raise InputError(
            f"{arguments.run} is a folder of runs: --what, --attribute, --format and --no-title are for a single run"
        )
    else:
        draw_side_by_side(runs, output_path(arguments.out, arguments.run / "figures"), vars(arguments))


def _draw_run(arguments: argparse.Namespace, wanted: Sequence[str] | None) -> None:
    from pvae.data.files import NotFoundError
    from pvae.plotting import pictures
    from pvae.plotting.figures import without_title
    from pvae.trained.codes import latent_report

    run = open_run(arguments.run, arguments.vae)
    folder = output_path(arguments.out, run.place / "figures")
    names = wanted or [*PICTURES]
    of_weights: tuple[str, ...] = ()
    if run.data.is_images and not run.is_given_labels:
        of_weights = _OF_WEIGHTS
    if {*names} - {*of_weights}:
        try:
            run.dataset(None, arguments.data_dir, arguments.offline)
        except NotFoundError as error:
            if wanted or arguments.attribute or not of_weights:
                raise
            print(f"note: only the pictures that need no data are drawn: {error}", file=sys.stderr)
            names = [*of_weights]
    figures = {}
    for name in names:
        options = []
        if name == "attributes" and arguments.attribute:
            options.append(arguments.attribute)
        try:
            figures[name] = getattr(pictures, name)(run, *options)
        except InputError as error:
            if wanted or options:  # it was asked for; nothing is written yet
                raise InputError(f"{name}: {error}") from None
    captions = []
    for name, figure in figures.items():
        if arguments.no_title:
            captions.append(f"- {name}: {'. '.join(without_title(figure).splitlines())}\n")
        write(folder / f"{name}.{arguments.format}", figure)
        print_line(folder / f"{name}.{arguments.format}")
    if captions:
        write(folder / "captions.md", "".join(captions))
    if wanted is not None or names == [*of_weights]:  # the report encodes all images, which takes longer than a picture
        return
    report = latent_report(run)
    write(folder / "latent.json", f"{to_json(asdict(report), indent=2)}\n")
    if summary := str(report):
        print_line(f"codes: {summary}")


def draw_side_by_side(runs: Sequence[Path], folder: Path, options: Mapping[str, Any]) -> None:
    """Draw the pictures of several runs and write their table; print why a run is left out.

    Args:
        runs: their folders.
        folder: where to write.
        options: of the command line: vae, data_dir and offline, and perhaps quiet.
    """
    from pvae.plotting.gallery import Entry, entry_of, side_by_side

    read: dict[tuple[str, int], Entry] = {}  # by configuration and seed
    for path in runs:
        try:
            with naming_refused_parameters():
                run = open_run(path, options["vae"], is_only=False)
                run.dataset(None, options["data_dir"], options["offline"])
                entry = entry_of(run)
            kept = read.setdefault((entry.row["configuration"], entry.row["seed"]), entry)
            if kept is not entry:
                raise InputError(f"it has the same configuration and seed as {kept.row['run']}, which is kept")
            if not options.get("quiet"):
                print_line(f"{path.name}: {entry.title}")
        except (InputError, NotFiniteError) as error:
            print(f"pvae draw: {path.name} is left out: {error}", file=sys.stderr)
    if not read:
        raise InputError(f"none of the {len(runs)} runs can be shown: the lines above say why")
    files = side_by_side([*read.values()])
    for name, content in files.items():
        write(folder / name, content)
    if options.get("quiet"):
        print_line(folder)
    else:
        print_line("\n".join(["", str(files["table.md"]), *(str(folder / name) for name in files)]))


def _parser() -> Parser:
    run = "a run folder, a folder of run folders, or deep-bayes or fashion-vae, runs that come with pvae"
    parser = run_parser("pvae draw", _DESCRIPTION, _EPILOG, "a new folder (default: RUN/figures)", help=run)
    what = "the pictures to draw (default: all that apply, and latent.json)"
    parser.add_argument("--what", metavar="NAME[,NAME...]", help=what)
    attribute = "of the data, for the picture attributes (default: Blond_Hair Smiling Male Eyeglasses)"
    parser.add_argument("--attribute", metavar="NAME", nargs="+", help=attribute)
    kinds = "of the pictures of a run: png, svg or pdf (default: png)"
    parser.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help=kinds)
    no_title = "leave titles out of the pictures of a run, and write them to captions.md"
    parser.add_argument("--no-title", action="store_true", help=no_title)
    return parser


main = Command(_parser, _draw)
