"""The command `python -m pvae.draw`: the pictures of a run, and runs side by side."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from pvae.cli.command import (
    Parser,
    add_places,
    ctrl_c_exits_at_once,
    nonempty_path,
    print_note,
    result_folder,
    run_command,
)
from pvae.core.errors import InputError, NotFiniteError, check_name, naming_refused_parameters
from pvae.core.files import check_replaceable, not_a_link, write_whole
from pvae.core.records import csv_of, to_json
from pvae.core.terminal import is_torchrun, print_line

__all__ = ["PICTURES", "main"]

PICTURES = {
    "reconstructions": "test images above their reconstructions",
    "samples": "64 images of the prior",
    "losses": "loss, distortion and rate against the epoch",
    "scatter": "2-dimensional codes of training and test images, coloured by class",
    "cdf": "the codes mapped by the CDF of N(0, 1), which makes the prior uniform",
    "manifold": "the decoded grid of a 2-dimensional latent at the quantiles of the prior",
    "traversal": "one latent dimension after the other, from -3 to 3 standard deviations",
    "interpolation": "straight lines between pairs of test images in the latent space",
    "histograms": "each dimension of the latent, or of the top one of several, against its prior",
    "attributes": "test images along the direction of an attribute, z + alpha v, alpha from -3 to 3 (celeba)",
    "graph": "model and guide as graphs (needs Graphviz: the extra [graph] and its program dot)",
}
_ANIMATED = ("reconstructions", "samples", "manifold", "scatter")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.draw", lambda: _draw(_parser().parse_args(argv)))


def _draw(arguments: argparse.Namespace) -> None:
    wanted = [check_name("picture", name, PICTURES) for name in arguments.what.split(",")] if arguments.what else None
    is_run = (arguments.run / "config.json").exists()
    runs = [] if is_run else sorted(file.parent for file in arguments.run.glob("*/config.json"))
    if runs and (wanted or arguments.attribute or arguments.animate):
        raise InputError(f"{arguments.run} is a folder of runs: --what, --attribute and --animate are for a single run")
    if wanted and arguments.animate:
        raise InputError("--animate draws one picture: leave --what out")
    if arguments.epochs and not arguments.animate:
        raise InputError("--epochs says when --animate draws: give --animate NAME")
    if arguments.animate:
        check_name("picture to animate", arguments.animate, _ANIMATED)
    if is_torchrun():
        raise InputError("one process draws: run it without torchrun")
    with ctrl_c_exits_at_once("pvae.draw"):
        import pvae.trained.trained_run  # noqa: F401  torch is slow to import
    if runs:
        _draw_side_by_side(arguments, runs)
    elif arguments.animate:
        _animate(arguments)
    else:
        _draw_run(arguments, wanted)


def _draw_run(arguments: argparse.Namespace, wanted: Sequence[str] | None) -> None:
    from pvae.plotting import pictures
    from pvae.plotting.run_figures import write_figure
    from pvae.runs.run import Run
    from pvae.trained.trained_run import TrainedRun

    names = [f"{name}.png" for name in wanted or PICTURES]
    names += ["latent.json"] if wanted is None else []
    figures_folder = not_a_link(Run.open(arguments.run).place / "figures")
    with result_folder(arguments.out or figures_folder, names if arguments.out else ()) as folder:
        trained = TrainedRun.of(arguments.run, arguments.data_dir, arguments.offline, tuple(arguments.attribute))
        figures = {}
        for name in wanted or PICTURES:
            try:
                figures[name] = getattr(pictures, name)(trained)
            except InputError as error:
                if wanted is not None:  # before any is written
                    raise InputError(f"{name}: {error}") from None
        for name, figure in figures.items():
            write_figure(folder / f"{name}.png", figure)
            print_line(folder / f"{name}.png")
        if wanted is not None:  # the report encodes all images, which takes longer than a picture
            return
        report = trained.report()
        write_whole(folder / "latent.json", f"{to_json(asdict(report), indent=2)}\n".encode())
        if said := str(report):
            print_line(f"codes: {said}")


def _animate(arguments: argparse.Namespace) -> None:
    """Train the run again in memory, and draw one picture at several epochs."""
    import torch

    from pvae.plotting import pictures
    from pvae.plotting.run_figures import animation
    from pvae.runs.run import Run
    from pvae.trained.trained_run import TrainedRun
    from pvae.training.fit import train_in_memory

    run, name = Run.open(arguments.run), f"{arguments.animate}-epochs"
    figures_folder = not_a_link(run.place / "figures")
    picture = getattr(pictures, arguments.animate)
    if arguments.animate == "scatter":
        picture = partial(picture, with_train=False)
    names = [f"{name}.gif", f"{name}.png"] if arguments.out else []
    with result_folder(arguments.out or figures_folder, names) as folder:
        trained, rows = TrainedRun.of(arguments.run, arguments.data_dir, arguments.offline), run.metrics()
        epochs = _epochs(arguments.epochs, max((row.epoch for row in rows), default=0))
        picture(trained)  # raises an InputError before the training if the run lacks what the picture needs
        seconds = sum(row.seconds for row in rows if row.epoch <= epochs[-1])
        print_line(f"training again, from the same seed, to epoch {epochs[-1]}: the run took {seconds:.0f} s for that")
        figures = []
        for epoch, vae, _ in train_in_memory(run.config, epochs, data=trained.data):
            figures.append(picture(replace(trained, vae=vae, epoch=epoch)))
            print_line(f"epoch {epoch} is drawn")
        end, weights = run.read_checkpoint(), vae.state_dict()
        is_end = (end.counts.epoch, end.unfinished) == (epochs[-1], None)
        if is_end and not all(torch.equal(weight, end.vae[key]) for key, weight in weights.items()):
            print_note("these weights differ from those of the run, which another device, machine or torch trained")
        for path, content in zip((folder / f"{name}.gif", folder / f"{name}.png"), animation(figures)):
            write_whole(path, content)
            print_line(path)


def _epochs(text: str | None, last: int) -> list[int]:
    """Return the epochs that --epochs names; by default 0, the powers of 2 and the last.

    Raises:
        InputError: it is not a list of epochs of the run.
    """
    if text is None:
        return sorted({0, *(2**power for power in range(last.bit_length())), last})
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
        raise InputError(f"--epochs {text} is not a list of epochs, such as 0,1,5,20")
    epochs = sorted({int(number) for number in text.split(",")})
    if epochs[-1] > last:
        raise InputError(f"--epochs {text}: the run has {last} finished epochs")
    return epochs


def _draw_side_by_side(arguments: argparse.Namespace, runs: Sequence[Path]) -> None:
    """Draw the pictures of all runs and write their table; print why a run is left out."""
    from pvae.evaluation.table import to_markdown
    from pvae.plotting.gallery import Entry, code_figures, entry_of, in_order, sheet_figure
    from pvae.plotting.run_figures import write_figure
    from pvae.trained.trained_run import TrainedRun

    with result_folder(arguments.out or arguments.run, ["table.csv", "table.md", "sheet.png"]) as folder:
        read: dict[tuple[str, int], Entry] = {}  # by configuration and seed
        for path in runs:
            try:
                with naming_refused_parameters():
                    entry = entry_of(TrainedRun.of(path, arguments.data_dir, arguments.offline))
                kept = read.setdefault((entry.row.configuration, entry.row.seed), entry)
                if kept is not entry:
                    raise InputError(f"it has the same configuration and seed as {kept.row.run}, which is kept")
                print_line(f"{path.name}: {entry.title}")
            except (InputError, NotFiniteError) as error:
                print(f"pvae.draw: {path.name} is left out: {error}", file=sys.stderr)
        if not read:
            raise InputError(f"none of the {len(runs)} runs in {arguments.run} can be shown")
        entries = in_order(list(read.values()))
        rows = [entry.row for entry in entries]
        figures = {"sheet": sheet_figure(entries)}
        for data, figure in code_figures(entries).items():
            name = f"codes-{re.sub('[^a-z0-9]+', '-', data.lower())}"
            check_replaceable(folder / f"{name}.png")
            figures[name] = figure
        write_whole(folder / "table.csv", csv_of(rows).encode())
        write_whole(folder / "table.md", to_markdown(rows).encode())
        print_line(f"\n{to_markdown(rows)}\n{folder / 'table.csv'}\n{folder / 'table.md'}")
        for name, figure in figures.items():
            write_figure(folder / f"{name}.png", figure)
            print_line(folder / f"{name}.png")


def _parser() -> argparse.ArgumentParser:
    pictures = "\n".join(f"  {name:16} {what}" for name, what in PICTURES.items())
    parser = Parser(
        "draw",
        "Draw the pictures of a trained run into its figures/; or a folder of runs side by side: a sheet of their "
        "pictures, the codes of those with two latents, and a table with a row for each system, over its seeds.",
        f"pictures of a run:\n{pictures}\n\n"
        "--animate NAME writes NAME-epochs.gif, and NAME-epochs.png with the same frames side by side. A run does not\n"
        "keep the weights of every epoch, so this trains again in memory, with the same options and seed, on the CPU.\n"
        "It takes as long as the training took up to the last of --epochs. The run itself is not changed.\n\n"
        "examples:\n  python -m pvae.draw runs/my-run --what scatter,manifold"
        "\n  python -m pvae.draw runs/my-run --animate samples --epochs 0,1,5,20\n  python -m pvae.draw runs",
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=nonempty_path, help="a run folder, or a folder of run folders")
    add("--what", metavar="NAME[,NAME...]", help="the pictures to draw (default: all that apply, and latent.json)")
    add(
        "--attribute",
        metavar="NAME",
        nargs="+",
        default=[],
        help="of the data, for the picture attributes (default: Blond_Hair Smiling Male Eyeglasses)",
    )
    add("--animate", metavar="NAME", help=f"train again, and draw {', '.join(_ANIMATED[:-1])} or {_ANIMATED[-1]}")
    add("--epochs", metavar="E[,E...]", help="the frames of --animate (default: 0, 1, 2, 4, 8, ... and the last)")
    add_places(parser, "where to draw (default: RUN/figures, or the folder of runs itself)")
    return parser
