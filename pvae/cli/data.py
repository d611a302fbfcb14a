"""The commands `pvae encode`, `score`, `sample` and `reconstruct`: what a trained run computes for data.

Each opens the run, checks where it will write, reads the data, computes, writes and prints.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser, add_seed, integer, nonempty_path, output_path, run_parser, write
from pvae.cli.own_code import open_run
from pvae.core.errors import InputError, listed
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from pvae.data.read import OtherData
    from pvae.runs.run import Run
    from pvae.trained.frames import ImputedData

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

_CAVEAT = "A low likelihood is weak evidence that a datum is odd: look at distortion and rate too."
_SCORE = f"""\
{_CAVEAT}
Models of images give some images of another kind higher likelihoods than their own (Nalisnick et al.,
arXiv:1810.09136).

examples:
  pvae score runs/my-run photos --out scores
      scores.csv: log p(x) by importance sampling with its error, the ELBO, distortion and rate; of images oddest.png
  pvae score runs/my-table -n 20
      the test data of the run, into RUN/scores; prints the twenty least likely rows
  pvae score runs/my-table new.csv --alarm 0.01
      marks rows at a rate of false alarms of 1 %, by rows that were held out
{_PAGES}"""

_SAMPLE = f"""\
Images are means of p(x | z) at draws z ~ p(z), as sample-0001.png and so on, and the first 64 as samples.png. Other
data are draws from p(x | z), as samples.csv or samples.npz. A run with labels draws them too, or takes --label.

examples:
  pvae sample runs/my-run -n 16 --out samples
  pvae sample runs/my-run --codes codes.npz
  pvae sample runs/my-table -n 1000 --out synthetic.csv
  pvae sample runs/my-table --impute table.csv
      each missing value by its mean given the rest; imputed-std.csv says how far it may lie from that mean
  pvae sample runs/my-table --impute table.csv --draws 20
      twenty draws of what is missing given the rest, for multiple imputation
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
_REASONS = 3  # that are printed, why rows are outside
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
    from pvae.trained.codes import codes_as_arrays
    from pvae.trained.frames import encode_data

    run = open_run(arguments.run, arguments.vae)
    out = output_path(arguments.out, run.place / "codes.npz")
    if out.suffix != ".npz" and (arguments.splits or out.suffix != ".csv"):
        raise InputError(f"--out {out} must end in .npz, or without --splits in .csv")
    if arguments.splits:
        run.dataset(None, arguments.data_dir, arguments.offline)
        _write_codes(out, codes_as_arrays(run))
        return
    given = _given_data(run, arguments)
    with seeded(arguments.seed):
        arrays = encode_data(run, given, arguments.draws)
    _write_codes(out, arrays)
    _say_outside(given, "codes")


def _write_codes(out: Path, arrays: Mapping[str, Any]) -> None:
    """Write names, labels and codes as arrays, or as a table of the columns name, label, loc_1, loc_2 and so on."""
    from pandas import DataFrame

    codes = {name: array for name, array in arrays.items() if name not in ("names", "labels")}
    content: Any = arrays
    if out.suffix == ".csv":
        columns = {name.removesuffix("s"): arrays[name] for name in arrays if name not in codes}
        for name, array in codes.items():
            columns |= {f"{name}_{place}": column.tolist() for place, column in enumerate(array.T, 1)}
        content = DataFrame(columns, dtype=object)  # a name of a file may be any bytes
    write(out, content)
    print_line(f"{out}: {', '.join(f'{name} {tuple(array.shape)}' for name, array in codes.items())}")


def _score_parser() -> Parser:
    description = "Score data by their likelihood under a trained run."
    parser = run_parser("pvae score", description, _SCORE, "a new folder (default: RUN/scores)")
    _add_data(parser)
    number = "how many to print, the least likely first (default: 10)"
    parser.add_argument("-n", "--num-printed", metavar="N", type=integer(1, _MOST), default=10, help=number)
    samples = "draws of z for each datum; other data than images get 5000 where these cannot be trusted (default: 200)"
    parser.add_argument("--importance-samples", metavar="S", type=integer(2), default=200, help=samples)
    alarm = "mark the rows that are odd at this rate of false alarms, such as 0.01, by held-out rows; prints the oddest"
    parser.add_argument("--alarm", metavar="RATE", type=float, help=alarm)
    fdr = "mark fewer rows, of which a share of at most RATE is false (Benjamini and Hochberg)"
    parser.add_argument("--fdr", action="store_true", help=fdr)
    add_seed(parser)
    return parser


def _score(arguments: argparse.Namespace) -> None:
    from pvae.core.random_state import seeded
    from pvae.evaluation.surprise import surprising_values
    from pvae.plotting.pictures import oddest
    from pvae.trained.alarm import alarm_of, held_out_rows
    from pvae.trained.scores import score_data

    run = open_run(arguments.run, arguments.vae)
    folder = output_path(arguments.out, run.place / "scores")
    rate = arguments.alarm
    if arguments.fdr and rate is None:
        raise InputError("--fdr needs --alarm RATE")
    held_out: dict[str, Tensor] = {}
    if rate is not None:
        run.dataset(None, arguments.data_dir, arguments.offline)
        held_out = held_out_rows(run, rate)
    given = _given_data(run, arguments).without_broken
    how = arguments.importance_samples, functools.partial(progress_bar, unit="datum", in_logs=True)
    alarm = None
    with seeded(arguments.seed):
        scores, pixels = score_data(run, given, *how)
        if held_out:
            alarm = alarm_of(run, held_out, *how)
    order = scores["log_p"].to_numpy().argsort(kind="stable")
    num_shown = arguments.num_printed
    if alarm:
        order = alarm.mark(scores, rate, arguments.fdr)
        num_shown = max(num_shown, int(scores["is_odd"].sum()))
    beside = []
    if run.data.columns:
        with seeded(arguments.seed):
            beside = surprising_values(run, given, order[:num_shown].tolist())
    if alarm and beside:
        scores["values"] = ""
        scores.iloc[order[:num_shown], -1] = beside
    write(folder / "scores.csv", scores)
    files = "scores.csv"
    if run.data.is_images:
        write(folder / "oddest.png", oddest(run, given, scores))
        files += ", oddest.png"
    _print_scores(run, arguments, scores.iloc[order[: arguments.num_printed]], len(scores), beside, pixels)
    if alarm:
        for line in alarm.lines(scores, rate, arguments.fdr, _is_own(run, arguments.data, alarm.split)):
            print_line(line)
    _say_outside(given, "finite log p(x)")
    _say_how(scores)
    print_line(f"{folder}: {files}")


def _print_scores(
    run: Run, arguments: argparse.Namespace, scores: DataFrame, num_scored: int, beside: Sequence[str], pixels: str
) -> None:
    """Print the scores of the oddest rows, and of what they are."""
    from pvae.trained.scores import to_text

    print_line(to_text(scores, beside))
    which = "least likely"
    if "is_odd" in scores:
        which = "oddest"
    what = "in nats"
    if run.data.is_images:
        what += f"; pixels {pixels}"
    if run.is_given_labels:
        what += "; log p(x) is log p(x | y)"
    elif arguments.label:
        what += "; log p(x) is log p(x, y)"
    print_line(f"the {which} {len(scores):,} of {num_scored:,}, {what}")


def _is_own(run: Run, path: Path | None, split: str) -> bool:
    """Return whether the rows of a split are among data: the file of the run, or None for its test data."""
    if path is None:
        return split == "test"
    return run.data.dataset.partition(":")[2] == str(path.resolve())


def _say_how(scores: DataFrame) -> None:
    """Print what errors and likelihoods are, and for how many rows they are something else."""
    print_line("+- is the standard error over seeds of the draws; ELBO, distortion and rate are means over ten draws")
    if untrusted := int((~scores["is_trusted"]).sum()):
        low = "they are probably too low; the ELBO is not affected"
        print_line(f"the log p(x) of {untrusted:,} of them, by importance sampling, cannot be trusted: {low}")
        print_line("more draws help where a few of them are effective: --importance-samples")
    if "missing" in scores and (num_missing := int((scores["missing"] > 0).sum())):
        print_line(f"fields are empty in {num_missing:,} of them: log p(x) is that of what is known of a row")
    print_line(_CAVEAT)


def _sample_parser() -> Parser:
    description = "Draw new data from a trained run, or fill in missing values."
    out = "a new folder, or of data that are no images a new .csv or .npz file (default: RUN/samples)"
    parser = run_parser("pvae sample", description, _SAMPLE, out)
    add = parser.add_argument
    number = f"how many, at most {_MOST:,} (default: 64)"
    add("-n", "--num-samples", metavar="N", type=integer(1, _MOST), default=64, help=number)
    draws = "draw every pixel from p(x | z) in place of taking its mean; with --impute, N draws of what is missing"
    add("--draws", metavar="N", nargs="?", type=integer(1, 1000), const=1, help=draws)
    label = "draw data of this class, if the run was trained with labels (default: in the shares of the training data)"
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
    from pvae.trained.frames import sample_data
    from pvae.trained.given import label_of, label_texts

    run = open_run(arguments.run, arguments.vae)
    if arguments.impute is not None:
        _impute(run, arguments)
        return
    if (arguments.draws or 1) > 1:
        raise InputError("--draws N needs --impute: -n says how many data are drawn")
    default = run.place / "samples"
    where = "z ~ p(z)"
    if arguments.codes is not None:
        where = f"z of {arguments.codes.name}"
    if arguments.label is not None:  # whose samples do not replace those of another label
        (label,) = label_texts(run, label_of(run, arguments.label))
        default = default.with_name("samples-" + re.sub(r"[^\w.,-]", "_", label))
        where += f", label {label}"
    elif arguments.codes is None and (run.is_given_labels or run.config.labels):
        run.dataset(None, arguments.data_dir, arguments.offline)
    out = _out(run, arguments.out, default, "samples")
    draws = arguments.draws is not None
    with seeded(arguments.seed):
        x, y = sample_data(run, arguments.num_samples, arguments.label, arguments.codes, draws)
    labels = []
    if y is not None and run.data.label_names:
        labels = label_texts(run, y)
    if labels and arguments.label is None:
        where += ", labels in the shares of the training data"
    if not run.data.is_images:
        names = [f"sample-{number}" for number in range(1, len(x) + 1)]
        _write_values(run, out, names, x, labels)
        print_line(f"{out}: x {(len(x), *run.data.datum_shape)}, draws from p(x | z), {where}")
        return
    images = run.preparation.shown(x).clamp(0, 1)
    files = _write_images(out, "sample", images, "label", labels)
    what = "draws from p(x | z)" if draws else "means of p(x | z)"
    title = f"{run.title}\n{what}, {where}"
    if arguments.codes is None:
        title += f", seed {arguments.seed}"
    write(out / "samples.png", image_figure(images[:64], min(8, len(images)), title))
    print_line(f"{out}: {files}, and the first 64 on samples.png")


def _impute(run: Run, arguments: argparse.Namespace) -> None:
    """Write data whose missing values are filled in, with their spread, or as draws."""
    from pvae.core.random_state import seeded
    from pvae.trained.frames import impute_data
    from pvae.trained.given import given_data

    if run.data.is_images:
        raise InputError(f"{run.name} was trained on images, where no pixel is missing: train on array:FILE --missing")
    if not run.config.missing and not run.data.limits:
        raise InputError(f"{run.name} was trained without --missing: train again with it to fill in missing values")
    number = arguments.draws or 0
    given = _with_note(given_data(run, arguments.impute, label=arguments.label, fills=True))
    if number and given.fields is not None and "imputation" in given.fields.frame:
        how = "which counts the draws: give it another name"
        raise InputError(f"{arguments.impute} has a column imputation, {how}")
    out = _out(run, arguments.out, run.place / "samples", "imputed")
    bar = progress_bar("imputing", len(given.inside), "datum", in_logs=True)
    with seeded(arguments.seed), bar:
        imputed = impute_data(run, given, number, bar.update)
    files = str(out)
    sep = ","
    if given.fields is not None:
        sep = given.fields.sep
        if number:
            files += ", by the column imputation"
    write(out, imputed.content, sep)
    if imputed.spread is not None:
        spread = out.with_name(f"{out.stem}-std.csv")
        write(spread, imputed.spread, sep)
        files += f", {spread.name}"
    _say_imputed(run, given, imputed, files, number)


def _say_imputed(run: Run, given: OtherData, imputed: ImputedData, files: str, number: int) -> None:
    """Print what was filled in, what it assumes, and where it cannot be trusted."""
    from pvae.trained.imputation import ENOUGH

    how = "filled by their means; std says how far each may lie from its mean"
    alike = "standard deviations may be too small"
    if number:
        how = f"{number} draws of each"
        alike = "draws are too alike"
    print_line(f"{files}: {imputed.num_missing:,} missing values of {len(given.names):,} rows, {how}")
    if imputed.num_left:
        why = "no draw agrees with the given fields and the rules"
        print_line(f"of these, fields of {imputed.num_left:,} rows stay empty: {why}")
    said = "whether a value is missing is taken not to depend on the value"
    if run.data.limits:
        said += "; values that are known only to be below a limit are filled in below it"
    print_line(said)
    _say_outside(given, "imputation")
    if imputed.untrusted:
        few = f"an effective sample size below {ENOUGH:.0f}, or a heavy tail"
        rows = f"{len(imputed.untrusted):,} rows"
        print_line(f"the weights of {rows} have {few}: their {alike}: {listed(imputed.untrusted)}")


def _reconstruct_parser() -> Parser:
    description = "Encode and decode data by a trained run."
    out = "a new folder, or of data that are no images a new .csv or .npz file (default: RUN/reconstructions)"
    parser = run_parser("pvae reconstruct", description, _RECONSTRUCT, out)
    _add_data(parser)
    return parser


def _reconstruct(arguments: argparse.Namespace) -> None:
    from pvae.plotting.figures import reconstruction_figure
    from pvae.trained.frames import reconstruct_data

    run = open_run(arguments.run, arguments.vae)
    out = _out(run, arguments.out, run.place / "reconstructions", "reconstructions")
    given = _given_data(run, arguments)
    means = reconstruct_data(run, given)
    if not run.data.is_images:
        _write_values(run, out, given.names, means)
        print_line(f"{out}: {len(given.inside):,} means of p(x | z), in the order of the data")
        _say_outside(given, "reconstruction")
        return
    shown = run.preparation.shown
    files = _write_images(out, "reconstruction", shown(means).clamp(0, 1), "name", given.names)
    title = f"{run.title}\nmeans of p(x | z) at the means of q(z | x)"
    first = next(given.batch(run.preparation).split(_SHOWN)).x
    figure = reconstruction_figure(shown(first), shown(means[:_SHOWN]), title, ("given", "reconstruction"))
    write(out / "reconstructions.png", figure)
    print_line(f"{out}: {files}, and the first {_SHOWN} on reconstructions.png")


def _out(run: Run, out: Path | None, default: Path, name: str) -> Path:
    """Return the folder of images that a command writes, or the file of other data: --out, or a file in a folder.

    Raises:
        InputError: as for `output_path`, or --out is a file of another kind.
    """
    suffix = ".npz"
    if run.data.is_images:
        suffix = ""
    elif run.data.columns:
        suffix = ".csv"
    # A name such as run-1.5 has no suffix.
    if out is not None and re.fullmatch(r"\.[A-Za-z]\w*", out.suffix) and not out.is_dir():
        if out.suffix != suffix:
            wanted = "a folder without a suffix"
            if suffix:
                wanted += f", or a {suffix} file"
            raise InputError(f"--out {out} must name {wanted}")
        return output_path(out, default / f"{name}{suffix}")
    place = output_path(out, default)
    is_replaced = place.is_dir() and any(place.iterdir())
    if suffix:
        place /= f"{name}{suffix}"
        is_replaced = place.is_file()
    if is_replaced:
        print(f"note: {place} is replaced; --out names another place", file=sys.stderr)
    return place


def _write_values(run: Run, file: Path, names: Sequence[str], x: Tensor, labels: Sequence[str] = ()) -> None:
    """Write data that are no images, a table as .csv and others as .npz, with their labels."""
    from pvae.trained.frames import as_file

    sep = ","
    if any(column.point == "," for column in run.data.file_columns):
        sep = ";"
    write(file, as_file(run.data, names, x, labels), sep)


def _write_images(folder: Path, prefix: str, images: Tensor, column: str, texts: Sequence[str]) -> str:
    """Write images with a text for each, if there are some, and return the names of the files."""
    from pandas import DataFrame

    from pvae.plotting.figures import write_images

    names = write_images(folder, prefix, images)
    files = f"{names[0]} to {names[-1]}"
    if texts:
        write(folder / "names.csv", DataFrame({"file": names, column: texts}, dtype=object))
        files += ", names.csv"
    return files


def _add_data(parser: Parser) -> None:
    add = parser.add_argument
    data = "an image file, a folder of them, or a file of arrays or of a table (default: the test data of the run)"
    add("data", metavar="DATA", nargs="?", type=nonempty_path, help=data)
    add("--label", metavar="NAME", help="the class of all DATA, if the run was trained with labels")
    add("--skip-broken", action="store_true", help="leave out image files of DATA that cannot be decoded")


def _given_data(run: Run, arguments: argparse.Namespace) -> OtherData:
    """Return DATA, or the test data of the run, and print how they were changed."""
    from pvae.trained.given import given_data

    if arguments.data is None:
        run.dataset(None, arguments.data_dir, arguments.offline)
    return _with_note(given_data(run, arguments.data, arguments.skip_broken, arguments.label))


def _with_note(given: OtherData) -> OtherData:
    if given.note:
        print(f"note: {given.note}", file=sys.stderr)
    return given


def _say_outside(given: OtherData, what: str) -> None:
    """Print for how many rows a command has computed nothing, or a rule is broken, and why for the first ones."""
    for rows, said in ((given.outside, f"no {what} for"), (given.broken, "a rule of the run is broken in")):
        if rows:
            reasons = [f"{given.names[row]}, {rows[row]}" for row in sorted(rows)[:_REASONS]]
            print_line(f"{said} {len(rows):,} of {len(given.names):,} rows: {'; '.join(reasons)}")


encode = Command(_encode_parser, _encode, exclusive=[("splits", name) for name in ("DATA", "label", "draws")])
score = Command(_score_parser, _score, exclusive=[("alarm", "label")])
sample = Command(_sample_parser, _sample, exclusive=[("impute", "codes")])
reconstruct = Command(_reconstruct_parser, _reconstruct)
