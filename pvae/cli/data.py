"""The commands `pvae encode`, `score`, `sample` and `reconstruct`: what a trained run computes for data.

Each opens the run, checks where it will write, reads the data, computes, writes and prints.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser, add_seed, integer, nonempty_path, run_parser
from pvae.cli.own_code import open_run
from pvae.cli.results import output_path, write
from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.core.records import csv_of
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from pvae.runs.run import Run
    from pvae.trained.given import GivenData

__all__ = ["CAVEAT", "encode", "reconstruct", "sample", "score"]

_PAGES = "More: notebooks/images.md, and notebooks/values.md for other data than images."

_ENCODE = f"""\
examples:
  pvae encode runs/my-run photos --out codes.csv
      mean and standard deviation of q(z | x) for each image, as loc_1, ..., scale_1, ...
  pvae encode runs/my-run --draws
      a draw z from q(z | x) for each of the run's test data, into RUN/codes.npz; flows and hierarchies need --draws
  pvae encode runs/my-run --splits --out all-codes.npz
      training and test data, for python -m pvae.train --dataset array:all-codes.npz --labels 100
{_PAGES}"""

CAVEAT = """\
A low likelihood is weak evidence that a datum is odd: models of images give some images of another kind higher
likelihoods than their own (Nalisnick et al., arXiv:1810.09136). Look at distortion and rate too."""

_SCORE = f"""\
{CAVEAT}

examples:
  pvae score runs/my-run photos --out scores
      scores.csv: log p(x) by importance sampling with its error, the ELBO, distortion and rate; of images oddest.png
  pvae score runs/my-run
      the test data of the run, into RUN/scores
{_PAGES}"""

_SAMPLE = f"""\
Images are means of p(x | z) at draws z ~ p(z), as sample-0001.png and so on, and the first 64 as samples.png. Other
data are draws from p(x | z), as samples.csv or samples.npz.

examples:
  pvae sample runs/my-run -n 16 --out samples
  pvae sample runs/my-run --codes codes.npz
  pvae sample runs/my-table --impute table.csv
{_PAGES}"""

_RECONSTRUCT = f"""\
Each datum is decoded from the mean of q(z | x) to the mean of p(x | z). Images become reconstruction-0001.png and so
on, with names.csv and, of the first eight, reconstructions.png; other data reconstructions.csv or reconstructions.npz.

examples:
  pvae reconstruct runs/my-run photos --out reconstructions
  pvae reconstruct runs/my-run
      the test data of the run, into RUN/reconstructions
{_PAGES}"""

_SHOWN = 8  # images on reconstructions.png
_ODDEST = 10  # images in a row of oddest.png, and rows of the table
_MOST = 10_000  # images at once in memory


def _encode_parser() -> Parser:
    out = "a new .npz or .csv file (default: RUN/codes.npz)"
    parser = run_parser("pvae encode", "Encode data by a trained run.", _ENCODE, out, "FILE")
    _add_data(parser)
    parser.add_argument("--draws", action="store_true", help="a draw z from q(z | x) in place of mean and scale")
    splits = "the means of all data of the run, as --dataset array:FILE reads them, in place of those of DATA"
    parser.add_argument("--splits", action="store_true", help=splits)
    add_seed(parser)
    return parser


def _encode(arguments: argparse.Namespace) -> None:
    from pvae.core.random_state import seeded
    from pvae.trained.latent_space import draw_codes, encode_images

    run = open_run(arguments.run, arguments.vae)
    out = output_path(arguments.out, run.place / "codes.npz")
    if out.suffix not in (".npz", ".npz" if arguments.splits else ".csv"):
        raise InputError(f"--out {out} must end in .npz, or without --splits in .csv")
    if arguments.splits:
        arrays = _codes_of_splits(run, arguments)
    else:
        given = _given_data(run, arguments)
        vae, batch = run.vae(), given.batch(run)
        with seeded(arguments.seed):
            codes = draw_codes(vae, batch) if arguments.draws else encode_images(vae, batch)._asdict()
        arrays = {"names": given.names, **codes, **({"labels": given.labels} if given.labels else {})}
    write(out, _as_csv(arrays) if out.suffix == ".csv" else arrays)
    arrays.pop("names", None)
    shapes = (f"{name} {tuple(array.shape)}" if hasattr(array, "shape") else name for name, array in arrays.items())
    print_line(f"{out}: {', '.join(shapes)}")


def _codes_of_splits(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the codes of all data of a run, and the names of their classes."""
    import numpy as np

    from pvae.trained.codes import codes_as_data

    run.dataset(None, arguments.data_dir, arguments.offline)
    data = codes_as_data(run)
    arrays = {split: codes.numpy() for split, codes in data.splits.items()}
    if data.label_names and not data.has_attributes:
        names = np.array([*data.label_names, "unlabelled"])  # the last name is that of -1
        arrays |= {f"{split}_labels": names[labels.numpy()] for split, labels in data.labels.items()}
    return arrays


def _as_csv(arrays: Mapping[str, Any]) -> str:
    """Return names, labels and codes as a table, whose columns are name, label, loc_1, loc_2 and so on."""
    columns = {"name": arrays["names"]} | ({"label": arrays["labels"]} if "labels" in arrays else {})
    for name, codes in arrays.items():
        if name not in ("names", "labels"):
            columns |= {f"{name}_{1 + dim}": column.tolist() for dim, column in enumerate(codes.T)}
    return csv_of([dict(zip(columns, row)) for row in zip(*columns.values())])


def _score_parser() -> Parser:
    description, out = "Score data by their likelihood under a trained run.", "a new folder (default: RUN/scores)"
    parser = run_parser("pvae score", description, _SCORE, out)
    _add_data(parser)
    samples = "draws of z for each datum (default: 200)"
    parser.add_argument("--importance-samples", metavar="S", type=integer(2), default=200, help=samples)
    add_seed(parser)
    return parser


def _score(arguments: argparse.Namespace) -> None:
    from pvae.core.random_state import seeded
    from pvae.data.preparation import Preparation
    from pvae.plotting.figures import named_images_figure
    from pvae.trained.log_likelihood import TRUSTED
    from pvae.trained.normalised import with_likelihood
    from pvae.trained.scores import score_images, to_text

    run = open_run(arguments.run, arguments.vae)
    folder = output_path(arguments.out, run.place / "scores")
    given = _given_data(run, arguments)
    vae, batch, kind = with_likelihood(run, given.x, given.y)
    bar = progress_bar("scoring", len(given.names), "datum", in_logs=True)
    with bar, seeded(arguments.seed):
        scores = score_images(vae, batch, given.names, arguments.importance_samples, bar.update)
    write(folder / "scores.csv", csv_of(scores))
    least_likely = scores[:_ODDEST]
    if run.data.is_images:
        rows = {"lowest log p(x)": least_likely}
        for name in ("distortion", "rate"):
            rows[f"highest {name}"] = sorted(scores, key=attrgetter(name), reverse=True)[:_ODDEST]
        image_of, shown = dict(zip(given.names, given.x)), Preparation().x
        bands = {row: [(score.name, shown(image_of[score.name])) for score in oddest] for row, oddest in rows.items()}
        title = f"{run.title}\nthe oddest of {len(scores):,} images"
        write(folder / "oddest.png", named_images_figure(bands, title))
    what = f"images, in nats; pixels {kind}" if run.data.is_images else "data, in nats"
    if run.is_given_labels:
        what += "; log p(x) is log p(x | y)"
    elif arguments.label:
        what += "; log p(x) is log p(x, y)"
    print_line(to_text(least_likely))
    print_line(f"the {len(least_likely)} least likely of {len(scores):,} {what}")
    print_line("+- is the standard error over the draws of z; ELBO, distortion and rate are means over ten draws")
    if untrusted := sum(not score.effective >= TRUSTED for score in scores):
        low = f"below {TRUSTED:.0f}: their log p(x) is underestimated; the ELBO is not affected"
        print_line(f"the effective sample size of {untrusted:,} of them is {low}")
    print_line(CAVEAT)
    print_line(f"{folder}: scores.csv{', oddest.png' * run.data.is_images}")


def _sample_parser() -> Parser:
    description = "Draw new data from a trained run, or fill in missing values."
    parser = run_parser("pvae sample", description, _SAMPLE, "a new folder (default: RUN/samples)")
    add = parser.add_argument
    number = f"how many, at most {_MOST:,} (default: 64)"
    add("-n", "--num-samples", metavar="N", type=integer(1, _MOST), default=64, help=number)
    add("--draws", action="store_true", help="draw every pixel from p(x | z) in place of taking its mean")
    label = "draw data of this class, if the run was trained with labels (default: of each class in turn)"
    add("--label", metavar="NAME", help=label)
    codes = "decode the codes of an .npz or .csv file that encode has written, in place of draws from p(z)"
    add("--codes", metavar="FILE", type=nonempty_path, help=codes)
    impute = "fill in what is missing in a file of data, into imputed.npz, or of a table imputed.csv; needs --missing"
    add("--impute", metavar="FILE", type=nonempty_path, help=impute)
    add_seed(parser)
    return parser


def _sample(arguments: argparse.Namespace) -> None:
    from pvae.core.random_state import seeded
    from pvae.plotting.figures import image_figure

    run = open_run(arguments.run, arguments.vae)
    folder = output_path(arguments.out, run.place / "samples")
    with seeded(arguments.seed):
        if arguments.impute is not None:
            print_line(_write_imputed(run, folder, arguments))
            return
        x = _drawn(run, arguments)
    where = f"z of {arguments.codes.name}" if arguments.codes else "z ~ p(z)"
    if not run.data.is_images:
        file = _write_values(run, folder / "samples", [f"sample-{number}" for number in range(1, len(x) + 1)], x)
        print_line(f"{file}: x {tuple(x.shape)}, draws from p(x | z), {where}")
        return
    images = run.preparation.shown(x).clamp(0, 1)
    names = _write_images(folder, "sample", images)
    what = "draws from p(x | z)" if arguments.draws else "means of p(x | z)"
    title = f"{run.title}\n{what}, {where}{f', seed {arguments.seed}' * (arguments.codes is None)}"
    write(folder / "samples.png", image_figure(images[:64], min(8, len(names)), title))
    print_line(f"{folder}: {names[0]} to {names[-1]}, and the first 64 on samples.png")


def _drawn(run: Run, arguments: argparse.Namespace) -> Tensor:
    """Return means of p(x | z), or with --draws and of other data than images draws, at z ~ p(z) or the given codes."""
    from pvae.trained import latent_space
    from pvae.trained.given import labels_to_sample, read_codes

    is_drawn, y = arguments.draws or not run.data.is_images, labels_to_sample(run, arguments.label)
    if arguments.codes is None:
        return latent_space.sample(run.vae(), arguments.num_samples, is_drawn, y)
    if y is not None and arguments.label is None:
        raise InputError(f"{run.path} was trained with labels: give --label NAME beside --codes")
    z = latent_space.with_labels(run.vae().prior(), read_codes(run, arguments.codes), y)
    return latent_space.decode(run.vae(), z, y, draws=is_drawn)


def _write_imputed(run: Run, folder: Path, arguments: argparse.Namespace) -> str:
    """Write data whose missing values are filled in, and the standard errors of these; return what was written."""
    from pvae.data.dataset import Column
    from pvae.data.tables import table_text
    from pvae.trained.given import given_data
    from pvae.trained.imputation import impute

    if not run.config.missing:
        raise InputError(f"{run.path} was trained without --missing: train again with it to fill in missing values")
    given = given_data(run, arguments.impute, label=arguments.label)
    imputed = impute(run.vae(), given.batch(run))
    what = f"{int(given.x.isnan().sum()):,} missing values of {len(given.names):,} rows, filled and stderr"
    if not run.data.columns:
        write(folder / "imputed.npz", {"names": given.names, **imputed._asdict()})
        return f"{folder / 'imputed.npz'}: {what}"
    write(folder / "imputed.csv", table_text(run.data.columns, imputed.filled, given.x))
    errors = table_text([Column(column.name) for column in run.data.columns], imputed.stderr)
    write(folder / "imputed-stderr.csv", errors)
    return f"{folder / 'imputed.csv'}, imputed-stderr.csv: {what}"


def _reconstruct_parser() -> Parser:
    description, out = "Encode and decode data by a trained run.", "a new folder (default: RUN/reconstructions)"
    parser = run_parser("pvae reconstruct", description, _RECONSTRUCT, out)
    _add_data(parser)
    return parser


def _reconstruct(arguments: argparse.Namespace) -> None:
    from pvae.plotting.figures import reconstruction_figure
    from pvae.trained.latent_space import reconstruct_images

    run = open_run(arguments.run, arguments.vae)
    folder = output_path(arguments.out, run.place / "reconstructions")
    given = _given_data(run, arguments)
    batch, shown = given.batch(run), run.preparation.shown
    means = reconstruct_images(run.vae(), batch)
    if not run.data.is_images:
        file = _write_values(run, folder / "reconstructions", given.names, means)
        print_line(f"{file}: {len(means):,} means of p(x | z), in the order of the data")
        return
    names = _write_images(folder, "reconstruction", shown(means).clamp(0, 1))
    files = [{"file": file, "name": name} for file, name in zip(names, given.names)]
    write(folder / "names.csv", csv_of(files))
    title = f"{run.title}\nmeans of p(x | z) at the means of q(z | x)"
    figure = reconstruction_figure(shown(next(batch.split(_SHOWN)).x), shown(means[:_SHOWN]), title)
    write(folder / "reconstructions.png", figure)
    print_line(f"{folder}: {names[0]} to {names[-1]}, names.csv, and the first {_SHOWN} on reconstructions.png")


def _write_values(run: Run, path: Path, names: Sequence[str], x: Tensor) -> Path:
    """Write data that are no images, a table as .csv and others as .npz, and return the path of the file."""
    from pvae.data.tables import table_text

    file = path.with_suffix(".csv" if run.data.columns else ".npz")
    write(file, table_text(run.data.columns, x) if run.data.columns else {"names": names, "x": x})
    return file


def _write_images(folder: Path, prefix: str, images: Tensor) -> list[str]:
    """Write images (N, C, H, W) in [0, 1] as PNG files in place of earlier ones, and return their names.

    Raises:
        InputError: they have another number of channels than 1 or 3.
    """
    import torch
    from PIL import Image

    if images.shape[1] not in (1, 3):
        raise InputError(f"a PNG has 1 or 3 channels, and these images have {images.shape[1]}")
    for earlier in folder.glob(f"{prefix}-[0-9]*.png"):
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}-{number:04}.png" for number in range(1, len(images) + 1)]
    for name, image in zip(names, images.mul(255).round().to(torch.uint8).numpy()):
        content = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(content, "PNG")
        write_whole(folder / name, content.getvalue())
    return names


def _add_data(parser: Parser) -> None:
    add = parser.add_argument
    data = "an image file, a folder of them, or a file of arrays or of a table (default: the test data of the run)"
    add("data", metavar="DATA", nargs="?", type=nonempty_path, help=data)
    add("--label", metavar="NAME", help="the class of all DATA, if the run was trained with labels")
    add("--skip-broken", action="store_true", help="leave out image files of DATA that cannot be decoded")


def _given_data(run: Run, arguments: argparse.Namespace) -> GivenData:
    """Return DATA, or the test data of the run, and print how they were changed."""
    from pvae.trained.given import given_data

    if arguments.data is None:
        run.dataset(None, arguments.data_dir, arguments.offline)
    given = given_data(run, arguments.data, arguments.skip_broken, arguments.label)
    if given.note:
        print(f"note: {given.note}", file=sys.stderr)
    return given


encode = Command(_encode_parser, _encode, exclusive=[("splits", name) for name in ("DATA", "label", "draws")])
score = Command(_score_parser, _score)
sample = Command(_sample_parser, _sample, exclusive=[("impute", "codes"), ("impute", "draws")])
reconstruct = Command(_reconstruct_parser, _reconstruct)
