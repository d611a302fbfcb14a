"""The command `pvae draw`: the pictures of a run, and runs side by side."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pvae.cli.command import Command, Parser, run_parser
from pvae.cli.own_code import open_run, runs_in
from pvae.cli.results import output_path, write
from pvae.core.errors import InputError, NotFiniteError, check_name, naming_refused_parameters
from pvae.core.files import to_json
from pvae.core.terminal import print_line

__all__ = ["PICTURES", "draw_side_by_side", "main"]

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
    wanted = [check_name("picture", name, PICTURES) for name in arguments.what.split(",")] if arguments.what else None
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
    from pvae.data.folders import NotFoundError
    from pvae.plotting import pictures
    from pvae.plotting.figures import without_title
    from pvae.trained.codes import latent_report

    run = open_run(arguments.run, arguments.vae)
    folder = output_path(arguments.out, run.place / "figures")
    names = wanted or [*PICTURES]
    of_weights = _OF_WEIGHTS if run.data.is_images and not run.is_given_labels else ()
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
        options = [arguments.attribute] if name == "attributes" and arguments.attribute else []
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
    from pvae.evaluation.runs_table import runs_table, to_markdown, without_beta
    from pvae.plotting.gallery import Entry, code_figures, entry_of, rate_distortion_figure, sheet_figure

    read: dict[tuple[str, int], Entry] = {}  # by configuration and seed
    alike = set()  # what the runs have in common, if they are a sweep over beta
    for path in runs:
        try:
            with naming_refused_parameters():
                run = open_run(path, options["vae"], is_only=False)
                run.dataset(None, options["data_dir"], options["offline"])
                entry = entry_of(run)
                alike.add((run.config.replace(seed=0, beta=1.0, source=""), run.data.sha256, run.has_own_vae))
            kept = read.setdefault((entry.row["configuration"], entry.row["seed"]), entry)
            if kept is not entry:
                raise InputError(f"it has the same configuration and seed as {kept.row['run']}, which is kept")
            if not options.get("quiet"):
                print_line(f"{path.name}: {entry.title}")
        except (InputError, NotFiniteError) as error:
            print(f"pvae draw: {path.name} is left out: {error}", file=sys.stderr)
    if not read:
        raise InputError(f"none of the {len(runs)} runs can be shown: the lines above say why")
    table = runs_table([entry.row for entry in read.values()])
    firsts = table.drop_duplicates("configuration")  # the other runs of a configuration differ in their seed alone
    entries = [read[key] for key in zip(firsts["configuration"], firsts["seed"])]
    text = to_markdown(table)
    files: dict[str, Any] = {"table.csv": table.to_csv(index=False, lineterminator="\n"), "table.md": text}
    if any(len(entry.images) for entry in entries):
        files["sheet.png"] = sheet_figure(entries)
    if len(alike) == 1 and table["beta"].nunique() > 1 and table["elbo"].notna().all():
        title = f"{without_beta(table['system'])[0]} on {table['data'][0]}"
        files["rate-distortion.png"] = rate_distortion_figure(table, title)
    for data, figure in code_figures(entries).items():
        files[f"codes-{re.sub('[^a-z0-9]+', '-', data.lower())}.png"] = figure
    for name, content in files.items():
        write(folder / name, content)
    if options.get("quiet"):
        print_line(folder)
    else:
        print_line("\n".join(["", text, *(str(folder / name) for name in files)]))


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
