"""The commands `pvae encode`, `score`, `sample`, `reconstruct` and `export`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import (
    Command,
    Parser,
    add_places,
    add_seed,
    nonempty_path,
    result_folder,
    whole_number,
)
from pvae.cli.own_code import add_vae, open_run
from pvae.core.errors import InputError
from pvae.core.files import is_report, write_whole
from pvae.core.records import csv_of
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from pvae.runs.run import Run
    from pvae.trained.given import GivenData

__all__ = ["CAVEAT", "encode", "export", "reconstruct", "sample", "score"]

_ENCODE = """\
The code of a datum is its posterior q(z | x): a mean and a standard deviation for each latent dimension, or with
--draws one z drawn from it. The posteriors of flows and hierarchies have no mean in closed form, and need --draws.
Images are resized, and converted to grey or colour, like the training images. For a run on other data, DATA is an
.npy, .npz or .csv file of data of the same shape.

An .npz file holds the arrays names (N,), loc and scale (N, L), or names and z; np.load reads it. A .csv file has a row
for each datum: name, loc_1, ..., loc_L, scale_1, ..., scale_L, or name, z_1, ..., z_L. With several stochastic layers,
z is z1, z2 and so on: an array of each, or the columns z1_1, ..., z2_1, .... Test data of the run that have classes
have an array labels too, or a column label.

examples:
  pvae encode runs/my-run photos --out codes.csv
  pvae encode runs/my-run
      the test data of the run, into RUN/codes.npz
  pvae encode runs/my-run --splits --out all-codes.npz
      training and test data, for python -m pvae.train --dataset array:all-codes.npz --labels 100
In Python, after from pvae.trained import given, latent_space:
  run = pvae.Run.open("runs/my-run")
  photos = given.given_data(run, "photos")
  codes = latent_space.encode_images(run.vae(), run.preparation.pixels(photos.x))  # loc and scale, (N, L)"""

CAVEAT = """\
A low likelihood is weak evidence that a datum is odd: models of images give some images of another kind higher
likelihoods than their own (Nalisnick et al., arXiv:1810.09136). Look at distortion and rate too."""

_SCORE = f"""\
It writes scores.csv, a row for each datum: log p(x) by importance sampling with its standard error and effective sample
size, the ELBO, distortion and rate, in nats. For images it writes oddest.png too, the ten of the lowest log p(x), of
the highest distortion and of the highest rate, which is large where a code lies far from the prior. A log p(x) whose
effective sample size is below 10 is too low, and its error too small; so it may be where the draws miss a mode of
p(z | x), which no effective sample size shows. The ELBO needs no importance weights. 2,000 colour images of 64 x 52
pixels take about two minutes on two cores.

{CAVEAT}

examples:
  pvae score runs/my-run photos --out scores
  pvae score runs/my-run
      the test data of the run, into RUN/scores
In Python, after from pvae.trained import given, normalised, scores:
  run = pvae.Run.open("runs/my-run")
  photos = given.given_data(run, "photos")
  vae, pixels, _ = normalised.with_likelihood(run, photos.x, photos.y)
  found = scores.score_images(vae, pixels, photos.names)  # the least likely first"""

_SAMPLE = """\
Each image is the mean of p(x | z) at a draw z ~ p(z); with --draws, every pixel is drawn from p(x | z) too, which shows
the noise that the likelihood assumes. It writes sample-0001.png and so on, and the first 64 on a sheet, samples.png.
For a run on data that are no images, it writes draws from p(x | z): of a table samples.csv, of others the arrays names
and x of samples.npz.

examples:
  pvae sample runs/my-run -n 16 --out samples
  pvae sample runs/my-run --draws --seed 7
  pvae sample runs/my-run --codes codes.npz
In Python, after import pvae.trained.latent_space:
  images = pvae.trained.latent_space.sample(pvae.load("runs/my-run"), 64)  # (64, C, H, W)"""

_EXPORT = """\
--format torch writes model.py, the VAE as one class of plain torch that needs neither pvae nor Pyro, with elbo(x) and
sample(n), and its weights beside it, model.safetensors; with an autoregressive flow it needs zuko.

--format onnx writes two files, whose batch dimension N may have any size:
  encoder.onnx  x (N, C, H, W), pixels as in training, to loc and scale (N, L), mean and standard deviation of q(z | x)
  decoder.onnx  z (N, L) to mean (N, C, H, W), the mean of p(x | z)
onnxruntime runs both first, and they are written only if their outputs equal those of torch to 1e-5. It needs the
packages onnx, onnxscript and onnxruntime: pip install -e ".[export]". A VAE of several stochastic layers cannot
be exported, and with torch 2.6 no network with BatchNorm.

examples:
  pvae export runs/my-run --format torch
  pvae export runs/my-run --out onnx
In Python, after import pvae.trained.export, pvae.trained.plain_torch:
  pvae.trained.export.export(pvae.load("runs/my-run"), (1, 28, 28), folder)
  pvae.trained.plain_torch.export_torch(pvae.Run.open("runs/my-run"), folder)"""

_RECONSTRUCT = """\
Each datum is encoded, and decoded from the mean of its q(z | x) to the mean of p(x | z). Of images it writes
reconstruction-0001.png and so on in the order of the images, names.csv with the name of each, and the first eight above
their reconstructions on reconstructions.png; of other data, the arrays names and x of reconstructions.npz, or of a
table reconstructions.csv.

examples:
  pvae reconstruct runs/my-run photos --out reconstructions
  pvae reconstruct runs/my-run
      the test data of the run, into RUN/reconstructions
In Python, after from pvae.trained import given, latent_space:
  photos = given.given_data(run, "photos")
  x = latent_space.reconstruct_images(run.vae(), run.preparation.pixels(photos.x))  # (N, C, H, W)"""

_SHOWN = 8  # images on reconstructions.png
_ODDEST = 10  # images in a row of oddest.png, and rows of the table
_MOST = 10_000  # images at once in memory


def _encode_parser() -> Parser:
    parser = Parser("pvae encode", "Encode data by a trained run.", _ENCODE)
    _add_images(parser)
    parser.add_argument("--draws", action="store_true", help="a draw z from q(z | x) in place of mean and scale")
    splits = "the means of all data of the run, as --dataset array:FILE reads them, in place of those of DATA"
    parser.add_argument("--splits", action="store_true", help=splits)
    add_seed(parser)
    add_vae(parser, "for a run of a VAE of your own")
    add_places(parser, "an .npz or a .csv file (default: RUN/codes.npz)", "FILE")
    return parser


def _encode(arguments: argparse.Namespace) -> None:
    import torch

    from pvae.core.random_state import seeded
    from pvae.trained.latent_space import draw_codes, encode_images

    run = open_run(arguments.run, arguments.vae)
    out = arguments.out or run.place / "codes.npz"
    if out.suffix not in (".npz", ".csv"):
        raise InputError(f"--out {out} must end in .npz or .csv")
    if arguments.splits and (arguments.images or arguments.label or arguments.draws or out.suffix == ".csv"):
        raise InputError("--splits writes means of the run's own data: leave out DATA, --label, --draws and .csv")
    with result_folder(out.parent, [out.name]):
        if arguments.splits:
            print_line(_write_splits(run, arguments, out))
            return
        given = _given_images(run, arguments)
        vae, pixels = run.vae().given(given.y), run.preparation.pixels(given.x)
        with seeded(arguments.seed, torch.device("cpu")):
            codes = draw_codes(vae, pixels) if arguments.draws else encode_images(vae, pixels)._asdict()
        labels = given.labels
        write_whole(out, (_npz if out.suffix == ".npz" else _csv)(given.names, codes, labels))
    shapes = [f"{name} {tuple(values.shape)}" for name, values in codes.items()]
    print_line(f"{out}: {', '.join([*shapes, *['labels'] * bool(labels)])}")


def _write_splits(run: Run, arguments: argparse.Namespace, out: Path) -> str:
    """Write the codes of all data of a run, and the names of their classes, and return what was written."""
    import numpy as np

    from pvae.trained.codes import codes_as_data

    run.check_vae(None)
    run.dataset(None, arguments.data_dir, arguments.offline)
    data = codes_as_data(run)
    arrays = {split: codes.numpy() for split, codes in data.splits.items()}
    if data.label_names and not data.has_attributes:
        names = np.array([*data.label_names, "unlabelled"])  # the last one is that of -1
        arrays |= {f"{split}_labels": names[labels.numpy()] for split, labels in data.labels.items()}
    write_whole(out, _archive(arrays))
    return f"{out}: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}"


def _npz(names: Sequence[str], codes: Mapping[str, Tensor], labels: Sequence[str] = ()) -> bytes:
    return _archive({"names": names, **codes, **({"labels": labels} if labels else {})})


def _archive(arrays: Mapping[str, Any]) -> bytes:
    import numpy as np

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _csv(names: Sequence[str], codes: Mapping[str, Tensor], labels: Sequence[str] = ()) -> bytes:
    columns = {f"{name}_{1 + dim}": column for name, values in codes.items() for dim, column in enumerate(values.T)}
    of_label = {"label": labels} if labels else {}
    rows = zip(names, *of_label.values(), *(column.tolist() for column in columns.values()))
    return csv_of([dict(zip(["name", *of_label, *columns], row)) for row in rows]).encode("utf-8", "surrogateescape")


def _score_parser() -> Parser:
    parser = Parser("pvae score", "Score data by their likelihood under a trained run.", _SCORE)
    _add_images(parser)
    samples = "draws of z for each datum (default: 200)"
    parser.add_argument("--importance-samples", metavar="S", type=whole_number(2), default=200, help=samples)
    add_seed(parser)
    add_vae(parser, "for a run of a VAE of your own")
    add_places(parser, "where to write (default: RUN/scores)")
    return parser


def _score(arguments: argparse.Namespace) -> None:
    import torch

    from pvae.core.random_state import seeded
    from pvae.data.preparation import Preparation
    from pvae.plotting.figures import named_images_figure, write_figure
    from pvae.trained.log_likelihood import TRUSTED
    from pvae.trained.normalised import with_likelihood
    from pvae.trained.scores import score_images, to_text

    run = open_run(arguments.run, arguments.vae)
    _check_out(run, arguments.out)
    with result_folder(arguments.out or run.place / "scores") as folder:
        given = _given_images(run, arguments)
        vae, pixels, kind = with_likelihood(run, given.x, given.y)
        bar = progress_bar("scoring", len(given.names), "datum", in_logs=True)
        with bar, seeded(arguments.seed, torch.device("cpu")):
            scores = score_images(vae, pixels, given.names, arguments.importance_samples, bar.update)
        write_whole(folder / "scores.csv", csv_of(scores).encode("utf-8", "surrogateescape"))
        least_likely = scores[:_ODDEST]
        rows = {"lowest log p(x)": least_likely}
        for name in ("distortion", "rate"):
            rows[f"highest {name}"] = sorted(scores, key=attrgetter(name), reverse=True)[:_ODDEST]
        if run.data.is_images:
            x_of, shown = dict(zip(given.names, given.x)), Preparation().x
            bands = {row: [(one.name, shown(x_of[one.name])) for one in ones] for row, ones in rows.items()}
            title = f"{run.title}\nthe oddest of {len(scores):,} images"
            write_figure(folder / "oddest.png", named_images_figure(bands, title))
        print_line(to_text(least_likely))
        what = f"images, in nats; pixels {kind}" if run.data.is_images else "data, in nats"
        what += "; log p(x) is log p(x | y)" * run.is_given_labels + "; log p(x) is log p(x, y)" * bool(
            arguments.label and run.config.labels
        )
        print_line(f"the {len(least_likely)} least likely of {len(scores):,} {what}")
        print_line("+- is the standard error over the draws of z; ELBO, distortion and rate are means over ten draws")
        if untrusted := sum(not score.effective >= TRUSTED for score in scores):
            low = f"below {TRUSTED:.0f}: their log p(x) is underestimated; the ELBO is not affected"
            print_line(f"the effective sample size of {untrusted:,} of them is {low}")
        print_line(CAVEAT)
        print_line(f"{folder}: scores.csv{', oddest.png' * run.data.is_images}")


def _sample_parser() -> Parser:
    parser = Parser("pvae sample", "Draw new data from a trained run.", _SAMPLE)
    add = parser.add_argument
    add("run", metavar="RUN", type=nonempty_path, help="a run folder")
    number = f"how many, at most {_MOST:,} (default: 64)"
    add("-n", "--num-samples", metavar="N", type=whole_number(1, _MOST), default=64, help=number)
    add("--draws", action="store_true", help="draw every pixel from p(x | z) in place of taking its mean")
    label = "draw data of this class, for a run that was trained given labels (default: of each class in turn)"
    add("--label", metavar="NAME", help=label)
    codes = "decode the codes of an .npz or .csv file that encode has written, in place of draws from p(z)"
    add("--codes", metavar="FILE", type=nonempty_path, help=codes)
    impute = "fill in what is missing in a file of data, into imputed.npz, or of a table imputed.csv; needs --missing"
    add("--impute", metavar="FILE", type=nonempty_path, help=impute)
    add_seed(parser)
    add_vae(parser, "for a run of a VAE of your own")
    add("--out", metavar="DIR", type=nonempty_path, help="where to write (default: RUN/samples)")
    return parser


def _sample(arguments: argparse.Namespace) -> None:
    from pvae.plotting.figures import image_figure, write_figure

    run = open_run(arguments.run, arguments.vae)
    if arguments.impute is not None or not run.data.is_images:
        _sample_values(run, arguments)
        return
    _check_channels(run)
    _check_out(run, arguments.out)
    with result_folder(arguments.out or run.place / "samples") as folder:
        images = run.preparation.shown(_drawn(run, arguments)).clamp(0, 1)
        names = _write_images(folder, "sample", images)
        what = "draws from p(x | z)" if arguments.draws else "means of p(x | z)"
        where = f"z of {arguments.codes.name}" if arguments.codes else f"z ~ p(z), seed {arguments.seed}"
        title = f"{run.title}\n{what}, {where}"
        write_figure(folder / "samples.png", image_figure(images[:64], min(8, len(names)), title))
        print_line(f"{folder}: {names[0]} to {names[-1]}, and the first 64 on samples.png")


def _drawn(run: Run, arguments: argparse.Namespace) -> Tensor:
    """Return means of p(x | z), or with --draws and of other data than images draws, at z ~ p(z) or the given codes."""
    import torch

    from pvae.core.random_state import seeded
    from pvae.trained import latent_space
    from pvae.trained.given import labels_to_sample, read_codes

    is_drawn, y = arguments.draws or not run.data.is_images, labels_to_sample(run, arguments.label)
    with seeded(arguments.seed, torch.device("cpu")):
        if arguments.codes is None:
            return latent_space.sample(run.vae(), arguments.num_samples, is_drawn, y)
        if y is not None and arguments.label is None:
            raise InputError(f"{run.path} was trained given labels: give --label NAME beside --codes")
        z, prior = read_codes(run, arguments.codes), run.vae().prior()
        return latent_space.decode(run.vae().given(y), latent_space.with_labels(prior, z, y), is_drawn)


def _write_images(folder: Path, prefix: str, images: Tensor) -> list[str]:
    """Write images (N, C, H, W) in [0, 1] as PNG files, in place of earlier ones, and return their names."""
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    written_by_pvae = PngInfo()
    written_by_pvae.add_text("Software", "pvae")
    for earlier in filter(is_report, folder.glob(f"{prefix}-*.png")):
        earlier.unlink()
    names = [f"{prefix}-{number:04}.png" for number in range(1, len(images) + 1)]
    for name, image in zip(names, images.mul(255).round().to(torch.uint8).numpy()):
        content = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(content, "PNG", pnginfo=written_by_pvae)
        write_whole(folder / name, content.getvalue())
    return names


def _sample_values(run: Run, arguments: argparse.Namespace) -> None:
    """Write draws of data that are no images, or data whose missing values are filled in."""
    import torch

    from pvae.core.random_state import seeded
    from pvae.data.dataset import Column
    from pvae.data.tables import table_text
    from pvae.trained.given import given_data
    from pvae.trained.imputation import impute

    columns, is_imputed = run.data.columns, arguments.impute is not None
    files = ["imputed", "imputed-stderr"] if is_imputed and columns else ["imputed"] if is_imputed else ["samples"]
    names = [f"{file}.{'csv' if columns else 'npz'}" for file in files]
    if is_imputed and not run.config.missing:
        raise InputError(f"{run.path} was trained without --missing: train again with it to fill in missing values")
    with (
        result_folder(arguments.out or run.place / "samples", names) as folder,
        seeded(arguments.seed, torch.device("cpu")),
    ):
        if not is_imputed:
            arrays = {"x": _drawn(run, arguments)}
            rows: Sequence[str] = [f"sample-{number}" for number in range(1, len(arrays["x"]) + 1)]
            tables: list[Any] = [(columns, arrays["x"])]
            what = f"x {tuple(arrays['x'].shape)}, draws from p(x | z)"
        else:
            given = given_data(run, arguments.impute, label=arguments.label)
            rows, arrays = given.names, impute(run.vae().given(given.y), run.preparation.pixels(given.x))._asdict()
            numbers = tuple(Column(column.name) for column in columns)
            tables = [(columns, arrays["filled"], given.x), (numbers, arrays["stderr"])]
            what = f"{int(given.x.isnan().sum()):,} missing values of {len(rows):,} rows, filled and stderr"
        contents = [table_text(*table).encode() for table in tables] if columns else [_npz(rows, arrays)]
        for name, content in zip(names, contents):
            write_whole(folder / name, content)
    print_line(f"{folder / ', '.join(names)}: {what}")


def _reconstruct_parser() -> Parser:
    parser = Parser("pvae reconstruct", "Encode and decode data by a trained run.", _RECONSTRUCT)
    _add_images(parser)
    add_vae(parser, "for a run of a VAE of your own")
    add_places(parser, "where to write (default: RUN/reconstructions)")
    return parser


def _reconstruct(arguments: argparse.Namespace) -> None:
    from pvae.data.tables import table_text
    from pvae.plotting.figures import reconstruction_figure, write_figure
    from pvae.trained.latent_space import reconstruct_images

    run = open_run(arguments.run, arguments.vae)
    if run.data.is_images:
        _check_channels(run)
    _check_out(run, arguments.out)
    with result_folder(arguments.out or run.place / "reconstructions") as folder:
        given = _given_images(run, arguments)
        x, shown = run.preparation.pixels(given.x), run.preparation.shown
        means = reconstruct_images(run.vae().given(given.y), x)
        if not run.data.is_images:
            columns = run.data.columns
            name = f"reconstructions.{'csv' if columns else 'npz'}"
            content = table_text(columns, means).encode() if columns else _npz(given.names, {"x": means})
            write_whole(folder / name, content)
            print_line(f"{folder / name}: {len(means):,} means of p(x | z), in the order of the data")
            return
        names = _write_images(folder, "reconstruction", shown(means).clamp(0, 1))
        write_whole(folder / "names.csv", csv_of([*map(_named, names, given.names)]).encode("utf-8", "surrogateescape"))
        originals = shown(next(x.split(_SHOWN)))
        title = f"{run.title}\nmeans of p(x | z) at the means of q(z | x)"
        write_figure(folder / "reconstructions.png", reconstruction_figure(originals, shown(means[:_SHOWN]), title))
        print_line(f"{folder}: {names[0]} to {names[-1]}, names.csv, and the first {_SHOWN} on reconstructions.png")


def _named(file: str, name: str) -> dict[str, str]:
    return {"file": file, "name": name}


def _check_channels(run: Run) -> None:
    if run.data.datum_shape[0] not in (1, 3):
        raise InputError(f"a PNG has 1 or 3 channels, and the images of {run.path} have {run.data.datum_shape[0]}")


def _export_parser() -> Parser:
    parser = Parser("pvae export", "Export the VAE of a trained run as ONNX or as plain torch.", _EXPORT)
    add = parser.add_argument
    add("run", metavar="RUN", type=nonempty_path, help="a run folder")
    add("--format", choices=("onnx", "torch"), default="onnx", help="what to write (default: onnx)")
    add_vae(parser, "for a run of a VAE of your own")
    add("--out", metavar="DIR", type=nonempty_path, help="where to write (default: RUN/onnx or RUN/torch)")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    from pvae.trained.export import export
    from pvae.trained.plain_torch import export_torch

    run = open_run(arguments.run, arguments.vae)
    if arguments.format == "torch":
        with result_folder(arguments.out or run.place / "torch") as folder:
            code, weights = export_torch(run, folder)
            methods = "elbo(x)" if run.config.is_autoencoder else "elbo(x) and sample(n)"
            print_line(f"{code}: VAE, with {methods}, and load(), which reads {weights.name}")
        return
    names = ("encoder.onnx", "decoder.onnx") if arguments.out else ()
    with result_folder(arguments.out or run.place / "onnx", names) as folder:
        vae = run.vae()
        for exported in export(vae, run.config.padded(run.data.datum_shape), folder):
            print_line(exported)
        if domain := getattr(vae.p_x, "domain", ""):
            print_line(f"N is any batch size; the pixels of x are {domain}")


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", type=nonempty_path, help="a run folder")
    images = "an image file, a folder of them, or a file of arrays or of a table (default: the test data of the run)"
    add("images", metavar="DATA", nargs="?", type=nonempty_path, help=images)
    add("--label", metavar="NAME", help="of all DATA, for a run that was trained given labels: their class")
    add("--skip-broken", action="store_true", help="leave out image files of DATA that cannot be decoded")


def _check_out(run: Run, out: Path | None) -> None:
    """Refuse a folder in which new pictures would become part of a data set, or be mistaken for one's images."""
    if out is None:
        return
    source = Path(run.data.dataset.removeprefix("folder:")).expanduser()
    if run.data.dataset.startswith("folder:") and out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"--out {out} lies among the images that {run.path} was trained on: name another folder")
    for path in sorted(out.iterdir() if out.is_dir() else ()):
        if not (path.name.startswith(".") or is_report(path)):
            raise InputError(f"--out {out} holds {path.name}, which pvae did not write: name a new folder")


def _given_images(run: Run, arguments: argparse.Namespace) -> GivenData:
    """Return DATA, or the test data of the run, and print how they were changed."""
    from pvae.trained.given import given_data

    run.check_vae(None)
    if arguments.images is None:
        run.dataset(None, arguments.data_dir, arguments.offline)
    given = given_data(run, arguments.images, arguments.skip_broken, arguments.label)
    if given.note:
        print(f"note: {given.note}", file=sys.stderr)
    return given


encode = Command(_encode_parser, _encode)
score = Command(_score_parser, _score)
sample = Command(_sample_parser, _sample)
reconstruct = Command(_reconstruct_parser, _reconstruct)
export = Command(_export_parser, _export)
