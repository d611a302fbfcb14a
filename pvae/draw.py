"""The command `python -m pvae.draw`: every picture that a run can show, from its checkpoint and its data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pvae.commands import Parser, ctrl_c_exits_at_once, leave, run_command
from pvae.errors import InputError, check_name

if TYPE_CHECKING:
    from pvae.drawing import Subject

__all__ = ["PICTURES", "main"]

PICTURES = {
    "reconstructions": "test images above their reconstructions",
    "samples": "64 images of the prior",
    "losses": "loss, distortion and rate against the epoch",
    "scatter": "2-dimensional codes of training and test images, coloured by class",
    "cdf": "the same through the normal distribution function, where the prior is uniform",
    "manifold": "the decoded grid of a 2-dimensional latent at the quantiles of the prior",
    "traversal": "one latent dimension after the other, from -3 to 3",
    "interpolation": "ways between pairs of test images through the latent space",
    "histograms": "each latent dimension against N(0, 1)",
    "attributes": "test images along the direction of an attribute, z + alpha v, alpha from -3 to 3 (celeba)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for what cannot be done as asked, 130 for Ctrl-C.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.draw", lambda: _draw(_parser().parse_args(argv)))


def _draw(arguments: argparse.Namespace) -> None:
    wanted = [check_name("picture", name, PICTURES) for name in arguments.what.split(",")] if arguments.what else None
    with ctrl_c_exits_at_once("pvae.draw"):
        from pvae.drawing import DRAWERS, Subject  # torch and matplotlib are slow to import
    subject = Subject.of(arguments.run, arguments.data_dir, arguments.offline, tuple(arguments.attribute))
    folder: Path = arguments.out or subject.run.path / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written ({error.strerror}): name another folder") from None
    for name in wanted or PICTURES:
        _draw_one(name, DRAWERS[name], subject, folder, skip=wanted is None)
    if wanted is None:
        _report(subject, folder)


def _report(subject: Subject, folder: Path) -> None:
    """Say how the codes lie; it takes the codes of all images, and is left out where single pictures are asked for."""
    report = subject.report()
    (folder / "latent.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    distance = max(report.kolmogorov_smirnov)
    accuracy = "" if report.accuracy is None else f"; 10-nearest-neighbour accuracy {report.accuracy:.3f}"
    print(f"codes: largest Kolmogorov-Smirnov distance of a dimension from N(0, 1) {distance:.3f}{accuracy}")


def _draw_one(name: str, drawer: Callable[[Subject], object], subject: Subject, folder: Path, skip: bool) -> None:
    try:
        figure = drawer(subject)
    except InputError as error:
        if not skip:
            raise InputError(f"{name}: {error}") from None
        return  # one that does not apply to this run
    figure.savefig(folder / f"{name}.png")  # type: ignore[attr-defined]
    print(folder / f"{name}.png")


def _parser() -> argparse.ArgumentParser:
    pictures = "\n".join(f"  {name:16} {what}" for name, what in PICTURES.items())
    parser = Parser(
        prog="python -m pvae.draw",
        description="Draw what a trained run can show, into its figures/.",
        epilog=f"pictures:\n{pictures}\n\nexample:\n  python -m pvae.draw runs/my-run --what scatter,manifold",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run folder")
    add("--what", metavar="NAME[,NAME...]", help="the pictures to draw (default: all that apply, and latent.json)")
    add(
        "--attribute",
        metavar="NAME",
        nargs="+",
        default=[],
        help="of the data, for the picture attributes (default: Blond_Hair Smiling Male Eyeglasses)",
    )
    add("--data-dir", metavar="DIR", type=Path, help="where the run's data lie now (default: where they were found)")
    add("--offline", action="store_true", help="do not download anything")
    add("--out", metavar="DIR", type=Path, help="where to draw (default: RUN/figures)")
    return parser


if __name__ == "__main__":
    leave(main())
