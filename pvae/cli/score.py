"""The command `python -m pvae.score`: how likely each image is, the least likely first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import attrgetter

from pvae.cli.command import (
    Parser,
    add_images,
    ctrl_c_exits_at_once,
    nonempty_path,
    print_note,
    result_folder,
    run_command,
)
from pvae.config.options import whole_number
from pvae.core.files import not_a_link, write_whole
from pvae.core.records import csv_of
from pvae.core.terminal import print_line, progress_bar

__all__ = ["CAVEAT", "main"]

CAVEAT = """\
A low likelihood is weak evidence that an image is odd: models give some images of another kind higher likelihoods than
their own (Nalisnick et al., arXiv:1810.09136). Look at distortion and rate too, and at the pictures."""
_SHOWN = 10

_EPILOG = f"""\
It writes scores.csv, a row for each image: log p(x) by importance sampling with its standard error and effective sample
size, the ELBO, distortion and rate, in nats; and oddest.png, the ten images of the lowest log p(x), of the highest
distortion and of the highest rate, which is large where a code lies far from the prior. A log p(x) whose effective
sample size is below 10 is too low, and its error too small; the ELBO needs no importance weights. 2,000 colour images
of 64 x 52 pixels take about two minutes on two cores.

{CAVEAT}

examples:
  python -m pvae.score runs/my-run photos --out scores
  python -m pvae.score runs/my-run
      the test images of the run, into RUN/scores
In Python, after import pvae.trained.images:
  given = pvae.trained.images.GivenImages.of("runs/my-run", "photos")
  vae, pixels, _ = given.with_likelihood()
  scores = pvae.trained.images.score_images(vae, pixels, given.names)  # the least likely first"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.score", lambda: _score(_parser().parse_args(argv)))


def _score(arguments: argparse.Namespace) -> None:
    whole_number("importance_samples", arguments.importance_samples, 2, 10**9)
    whole_number("seed", arguments.seed, 0, 2**63 - 1)
    with ctrl_c_exits_at_once("pvae.score"):
        import torch

        from pvae.core.random_state import seeded
        from pvae.data.preparation import Preparation
        from pvae.plotting.run_figures import image_figure, write_figure
        from pvae.runs.run import Run
        from pvae.trained.images import GivenImages, score_images, to_text
        from pvae.trained.log_likelihood import TRUSTED
    place = Run.open(arguments.run).place
    out = arguments.out or not_a_link(place / "scores")
    with result_folder(out, ("scores.csv", "oddest.png")) as folder:
        given = GivenImages.of(
            arguments.run, arguments.images, arguments.data_dir, arguments.offline, arguments.skip_broken
        )
        print_note(given.note)
        vae, pixels, kind = given.with_likelihood()
        bar = progress_bar("scoring", len(given.names), "image", in_logs=True)
        with bar, seeded(arguments.seed, torch.device("cpu")):
            scores = score_images(vae, pixels, given.names, arguments.importance_samples, bar.update)
        write_whole(folder / "scores.csv", csv_of(scores).encode("utf-8", "surrogateescape"))
        least_likely = scores[:_SHOWN]
        rows = {"lowest log p(x)": least_likely}
        for name in ("distortion", "rate"):
            rows[f"highest {name}"] = sorted(scores, key=attrgetter(name), reverse=True)[:_SHOWN]
        index = {name: number for number, name in enumerate(given.names)}
        images = Preparation().x(given.images[[index[score.name] for row in rows.values() for score in row]])
        title = f"{given.run.title}\nthe oddest of {len(scores):,} images"
        write_figure(folder / "oddest.png", image_figure(images, len(least_likely), title, list(rows)))
        print_line(to_text(least_likely))
        binarized = f"; pixels {kind}" if given.vae.is_pseudo else ""
        print_line(f"the {len(least_likely)} least likely of {len(scores):,} images, in nats{binarized}")
        print_line("+- is the standard error over the draws of z; ELBO, distortion and rate are means over ten draws")
        if untrusted := sum(not score.effective >= TRUSTED for score in scores):
            low = f"below {TRUSTED:.0f}: their log p(x) is underestimated; the ELBO is not affected"
            print_line(f"the effective sample size of {untrusted:,} of them is {low}")
        print_line(CAVEAT)
        print_line(f"{folder}: scores.csv, oddest.png")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("score", "Score images by their likelihood under a trained run.", _EPILOG)
    add_images(parser)
    add = parser.add_argument
    add("--importance-samples", metavar="S", type=int, default=200, help="draws of z for each image (default: 200)")
    add("--seed", metavar="S", type=int, default=0, help="seed of the random draws (default: 0)")
    add("--out", metavar="DIR", type=nonempty_path, help="where to write (default: RUN/scores)")
    return parser
