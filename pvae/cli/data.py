"""The commands `pvae encode`, `score`, `sample` and `reconstruct`: what a trained run computes for data.

Each opens the run, checks where it will write, reads the data, computes, writes and prints.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser, add_seed, integer, nonempty_path, output_path, run_parser, write
from pvae.cli.own_code import open_run
from pvae.core.errors import InputError, listed
from pvae.core.files import write_whole
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

    from pvae.core.batch import Batch
    from pvae.data.read import OtherData
    from pvae.runs.run import Run
    from pvae.trained.imputation import Imputed
    from pvae.vae import VAE


_TRIES_OF_DRAW = 5  # of each of several imputations, of which one that keeps the rules is taken
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
_ODDEST = 10  # images in a row of oddest.png
_REASONS = 3  # that are printed, why rows are outside
_BESIDE = 4  # columns of a table that are printed beside a score, the most surprising ones
_DRAWS = 200  # of z, by which they are chosen
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
    beside: dict[str, Any] = {}
    if arguments.splits:
        codes = _codes_of_splits(run, arguments)
    else:
        given = _given_data(run, arguments)
        batch = given.batch(run.preparation)
        with seeded(arguments.seed):
            found = draw_codes(run.vae(), batch) if arguments.draws else encode_images(run.vae(), batch)._asdict()
        codes = {name: given.in_place(z) for name, z in found.items()}
        beside["names"] = given.names
        if given.labels:
            beside["labels"] = given.labels
    write(out, _as_table(beside, codes) if out.suffix == ".csv" else {**beside, **codes})
    print_line(f"{out}: {', '.join(f'{name} {tuple(array.shape)}' for name, array in codes.items())}")
    if not arguments.splits:
        _say_outside(given, "codes")


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


def _as_table(beside: Mapping[str, Any], codes: Mapping[str, Tensor]) -> DataFrame:
    """Return names, labels and codes as a table, whose columns are name, label, loc_1, loc_2 and so on."""
    from pandas import DataFrame

    columns = {name.removesuffix("s"): texts for name, texts in beside.items()}
    for name, each in codes.items():
        columns |= {f"{name}_{place}": column.tolist() for place, column in enumerate(each.T, 1)}
    return DataFrame(columns, dtype=object)  # a name of a file may be any bytes


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
    from pvae.data.preparation import Preparation
    from pvae.plotting.figures import named_images_figure
    from pvae.trained.alarm import alarm_of, held_out_rows
    from pvae.trained.scores import score_rows, to_text

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
    with seeded(arguments.seed):
        scores, vae, batch, kind = score_rows(run, given.x, given.y, given.inside, given.names, "test", *how)
        alarm = alarm_of(run, held_out, *how) if held_out else None
    if given.outside:
        scores = _with_outside(scores, given)
    order = scores["log_p"].to_numpy().argsort(kind="stable")
    num_shown = arguments.num_printed
    which = "least likely"
    if alarm:
        order = alarm.mark(scores, rate, arguments.fdr)
        num_shown = max(num_shown, int(scores["is_odd"].sum()))
        which = "oddest"
    texts = []
    if run.data.columns:
        with seeded(arguments.seed):
            texts = _beside(run, vae, batch, given, order[:num_shown].tolist())
    if alarm and texts:
        scores["values"] = ""
        scores.iloc[order[:num_shown], -1] = texts
    write(folder / "scores.csv", scores)
    printed = order[: arguments.num_printed]
    files = "scores.csv"
    what = "in nats"
    if run.data.is_images:
        rows = {"lowest log p(x)": scores["log_p"].to_numpy().argsort(kind="stable")}
        rows |= {f"highest {name}": (-scores[name].to_numpy()).argsort() for name in ("distortion", "rate")}
        image = Preparation().x
        bands = {row: [(given.names[one], image(given.x[one])) for one in odd[:_ODDEST]] for row, odd in rows.items()}
        write(folder / "oddest.png", named_images_figure(bands, f"{run.title}\nthe oddest of {len(scores):,}"))
        what += f"; pixels {kind}"
        files += ", oddest.png"
    if run.is_given_labels:
        what += "; log p(x) is log p(x | y)"
    elif arguments.label:
        what += "; log p(x) is log p(x, y)"
    print_line(to_text(scores.iloc[printed].drop(columns=["is_odd", "values"], errors="ignore"), texts))
    print_line(f"the {which} {len(printed):,} of {len(scores):,}, {what}")
    if alarm:
        for line in alarm.lines(scores, rate, arguments.fdr, _is_own(run, arguments.data, alarm.split)):
            print_line(line)
    _say_outside(given, "finite log p(x)")
    _say_how(scores)
    print_line(f"{folder}: {files}")


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


def _with_outside(scores: DataFrame, given: OtherData) -> DataFrame:
    """Return scores of all rows in their order: log p is -inf of those outside, and NaN of those that are empty."""
    import numpy as np
    import pandas

    from pvae.data.schema import EMPTY

    rows = [given.names[row] for row in given.outside]
    log_p = [math.nan if why == EMPTY else -math.inf for why in given.outside.values()]
    odd = {"log_p": log_p, "is_trusted": True, "reason": [*given.outside.values()]}
    together = pandas.concat([scores.assign(reason=""), pandas.DataFrame(odd, pandas.Index(rows, name="name"))])
    return together.iloc[np.argsort([*given.inside, *given.outside])]


def _beside(run: Run, vae: VAE, batch: Batch, given: OtherData, rows: list[int]) -> list[str]:
    """Return for each of some rows why it is outside, or else its most surprising values."""
    import torch

    texts = dict(given.outside)
    scored = [row for row in rows if row not in texts]
    if scored:
        surprise = _surprise(vae, batch.rows(torch.searchsorted(given.inside, torch.tensor(scored))))
        for row, places in zip(scored, surprise.argsort(descending=True, stable=True).tolist()):
            values = [(run.data.columns[place], given.x[row, place].item()) for place in places]
            known = [f"{column.name} {column.text(value, True)}" for column, value in values if not math.isnan(value)]
            texts[row] = "; ".join(known[:_BESIDE])
    return [texts[row] for row in rows]


def _surprise(vae: VAE, batch: Batch) -> Tensor:
    """Return how much less likely each value of vectors is than draws in its place: (N, D) nats, 0 if it is missing.

    E log p(x'_d | z) - E log p(x_d | z),    z ~ q(z | x), x'_d ~ p(x_d | z)
    """
    import torch

    from pvae.evaluation.measures.baselines import log_prob_of_each
    from pvae.marginal.chunks import data_at_once

    parts = []
    with torch.no_grad():
        for part in batch.split(data_at_once(vae, batch, _DRAWS)):
            p_x = vae.likelihood(vae.posterior(*part).sample((_DRAWS,)), part.y)
            of_draws, of_data = (log_prob_of_each(p_x, x) for x in (p_x.sample(), part.x))
            if of_data.shape[1:] != part.x.shape:  # your own likelihood, of values that depend on each other
                return torch.zeros(len(batch), part.x.shape[1])
            parts.append((of_draws - of_data).mean(0).where(~part.x.isnan(), 0))
    return torch.cat(parts)


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
    from pandas import DataFrame

    from pvae.core.random_state import seeded
    from pvae.data.codec import to_file
    from pvae.plotting.figures import image_figure
    from pvae.trained.given import label_of, label_texts

    run = open_run(arguments.run, arguments.vae)
    if arguments.impute is not None:
        with seeded(arguments.seed):
            _impute(run, arguments)
        return
    if (arguments.draws or 1) > 1:
        raise InputError("--draws N needs --impute: -n says how many data are drawn")
    default = run.place / "samples"
    if arguments.label is not None:  # whose samples do not replace those of another label
        (label,) = label_texts(run, label_of(run, arguments.label))
        default = default.with_name("samples-" + re.sub(r"[^\w.,-]", "_", label))
    out = _out(run, arguments.out, default, "samples")
    with seeded(arguments.seed):
        x, y = _drawn(run, arguments)
    labels = [] if y is None or not run.data.label_names else label_texts(run, y)
    where = f"z of {arguments.codes.name}" if arguments.codes else "z ~ p(z)"
    if arguments.label is not None:
        where += f", label {label}"
    elif labels:
        where += ", labels in the shares of the training data"
    if not run.data.is_images:
        names = [f"sample-{number}" for number in range(1, len(x) + 1)]
        _write_values(run, out, names, to_file(run.data, x, y), labels)
        print_line(f"{out}: x {tuple(x.shape)}, draws from p(x | z), {where}")
        return
    images = run.preparation.shown(x).clamp(0, 1)
    names = _write_images(out, "sample", images)
    if labels:
        write(out / "names.csv", DataFrame({"file": names, "label": labels}, dtype=object))
    what = "draws from p(x | z)" if arguments.draws else "means of p(x | z)"
    title = f"{run.title}\n{what}, {where}"
    if arguments.codes is None:
        title += f", seed {arguments.seed}"
    write(out / "samples.png", image_figure(images[:64], min(8, len(names)), title))
    files = f"{names[0]} to {names[-1]}"
    if labels:
        files += ", names.csv"
    print_line(f"{out}: {files}, and the first 64 on samples.png")


def _drawn(run: Run, arguments: argparse.Namespace) -> tuple[Tensor, Tensor | None]:
    """Return draws from p(x | z), or of images means, at z ~ p(z) or the given codes, and their labels."""
    from pvae.core.protocol import for_each
    from pvae.trained import latent_space
    from pvae.trained.given import label_of, labels_to_sample, read_codes

    draws = arguments.draws is not None or not run.data.is_images
    label = arguments.label
    y = None
    if arguments.codes is None:
        if label is None and (run.is_given_labels or run.config.labels):
            run.dataset(None, arguments.data_dir, arguments.offline)
        y = labels_to_sample(run, arguments.num_samples, label)
        if run.data.recorded:
            x = latent_space.sample_rows(run.vae(), run.data, arguments.num_samples, y)
        else:
            x = latent_space.sample(run.vae(), arguments.num_samples, draws, y)
    else:
        if label is not None:
            y = label_of(run, label)
        elif run.is_given_labels:
            raise InputError(f"{run.name} was trained with labels: give --label NAME beside --codes")
        z = latent_space.with_labels(run.vae().prior(), read_codes(run, arguments.codes), y)
        x = latent_space.decode(run.vae(), z, y, draws=draws)
    return x, for_each(y, len(x))


def _impute(run: Run, arguments: argparse.Namespace) -> None:
    """Write data whose missing values are filled in, with their spread, or as draws."""
    from pvae.data.schema import EMPTY
    from pvae.trained.given import given_data
    from pvae.trained.imputation import ENOUGH, TRIES, impute

    if run.data.is_images:
        raise InputError(f"{run.name} was trained on images, where no pixel is missing: train on array:FILE --missing")
    if not run.config.missing and not run.data.limits:
        raise InputError(f"{run.name} was trained without --missing: train again with it to fill in missing values")
    number = arguments.draws or 0
    given = given_data(run, arguments.impute, label=arguments.label, fills=True)
    if given.note:
        print(f"note: {given.note}", file=sys.stderr)
    if given.y is None or len(given.y) == 1:
        given = given._replace(outside={row: why for row, why in given.outside.items() if why != EMPTY})
    if number and given.fields is not None and "imputation" in given.fields.frame:
        how = "which counts the draws: give it another name"
        raise InputError(f"{arguments.impute} has a column imputation, {how}")
    out = _out(run, arguments.out, run.place / "samples", "imputed")
    num_draws = number
    if run.data.recorded:
        num_draws = max(TRIES, _TRIES_OF_DRAW * number)
    with progress_bar("imputing", len(given.inside), "datum", in_logs=True) as bar:
        found = impute(run.vae(), given.batch(run.preparation), num_draws=num_draws, on_data=bar.update)
    values = {"filled": given.in_place(found.filled, given.x), "std": given.in_place(found.std)}
    how = "filled by their means; std says how far each may lie from its mean"
    alike = "standard deviations may be too small"
    if number:
        values = {"draws": given.in_place(found.draws, given.x[:, None])}
        how = f"{number} draws of each"
        alike = "draws are too alike"
    files = str(out)
    num_left = 0
    is_missing = (given.in_file if run.data.columns else given.x).isnan()
    num_missing = int(is_missing[given.inside].sum())
    if run.data.columns:
        files, num_left = _write_imputed_table(run, out, given, found, number)
    else:
        write(out, {"names": given.names, **values})
    print_line(f"{files}: {num_missing:,} missing values of {len(given.names):,} rows, {how}")
    if num_left:
        why = "no draw agrees with the given fields and the rules"
        print_line(f"of these, fields of {num_left:,} rows stay empty: {why}")
    said = "whether a value is missing is taken not to depend on the value"
    if run.data.limits:
        said += "; values that are known only to be below a limit are filled in below it"
    print_line(said)
    _say_outside(given, "imputation")
    untrusted = [given.names[row] for row in given.inside[~found.is_trusted]]
    if untrusted:
        few = f"an effective sample size below {ENOUGH:.0f}, or a heavy tail"
        print_line(f"the weights of {len(untrusted):,} rows have {few}: their {alike}: {listed(untrusted)}")


def _write_imputed_table(run: Run, out: Path, given: OtherData, found: Imputed, number: int) -> tuple[str, int]:
    """Write a table as its file has it, with imputed values in place of empty fields.

    Return the names of the files, and the number of rows of which fields stay empty.
    """
    from dataclasses import replace

    import pandas
    import torch

    from pvae.data.codec import complete
    from pvae.data.column import Column
    from pvae.data.tables import table_text

    assert given.fields is not None  # of the file of a table
    fields, sep = given.fields.frame, given.fields.sep
    columns = [replace(column, point=given.fields.points[column.name]) for column in run.data.file_columns]
    missing = {*run.config.missing_values.split(","), ""}
    for one in run.data.constants:
        if one.name in fields:
            fields[one.name] = fields[one.name].mask(fields[one.name].isin(missing), one.text)
    of_file, x, y = given.in_file[given.inside], given.x[given.inside], given.batch(run.preparation).y
    is_missing = given.in_place(of_file.isnan(), torch.tensor(False))
    tries = [*found.draws.unbind(1)]
    ways = [tries[first::number] for first in range(number)] or [[found.filled, *tries]]
    parts = [complete(run.data, of_file, x, way, y) for way in ways]
    num_left = len(torch.cat([left for _, left in parts]).unique())
    rows = torch.cat([given.in_place(part) for part, _ in parts])
    if number:
        counts = torch.arange(1, 1 + number).repeat_interleave(len(fields))
        fields = pandas.concat([fields] * number)
        fields.insert(0, "imputation", counts.tolist())
    write(out, table_text(columns, rows, fields, is_missing.repeat(len(ways), 1), sep))
    if number:
        return f"{out}, by the column imputation", num_left
    spread = out.with_name(f"{out.stem}-std.csv")
    numbers = [Column(column.name, point=column.point) for column in columns]
    std = torch.full(is_missing.shape, math.nan)  # of a column that a rule has rewritten it is not known
    for place, column in enumerate(run.data.file_columns):
        if column in run.data.columns:
            std[:, place] = given.in_place(found.std[:, run.data.columns.index(column)])
    write(spread, table_text(numbers, std, fields, torch.ones_like(is_missing), sep))
    return f"{out}, {spread.name}", num_left


def _reconstruct_parser() -> Parser:
    description = "Encode and decode data by a trained run."
    out = "a new folder, or of data that are no images a new .csv or .npz file (default: RUN/reconstructions)"
    parser = run_parser("pvae reconstruct", description, _RECONSTRUCT, out)
    _add_data(parser)
    return parser


def _reconstruct(arguments: argparse.Namespace) -> None:
    from pandas import DataFrame

    from pvae.data.codec import to_file
    from pvae.plotting.figures import reconstruction_figure
    from pvae.trained.latent_space import decode, encode

    run = open_run(arguments.run, arguments.vae)
    folder = _out(run, arguments.out, run.place / "reconstructions", "reconstructions")
    given = _given_data(run, arguments)
    batch = given.batch(run.preparation)
    shown = run.preparation.shown
    means = decode(run.vae(), encode(run.vae(), batch), batch.y)
    if not run.data.is_images:
        _write_values(run, folder, given.names, given.in_place(to_file(run.data, means, batch.y)))
        print_line(f"{folder}: {len(means):,} means of p(x | z), in the order of the data")
        _say_outside(given, "reconstruction")
        return
    names = _write_images(folder, "reconstruction", shown(means).clamp(0, 1))
    write(folder / "names.csv", DataFrame({"file": names, "name": given.names}, dtype=object))
    title = f"{run.title}\nmeans of p(x | z) at the means of q(z | x)"
    figure = reconstruction_figure(
        shown(next(batch.split(_SHOWN)).x), shown(means[:_SHOWN]), title, ("given", "reconstruction")
    )
    write(folder / "reconstructions.png", figure)
    print_line(f"{folder}: {names[0]} to {names[-1]}, names.csv, and the first {_SHOWN} on reconstructions.png")


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
    from pvae.data.tables import table_text

    if not run.data.columns:
        write(file, {"names": names, "x": x, **({"labels": labels} if labels else {})})
        return
    places: list[tuple[float, str, str | Sequence[str]]]
    places = [(float(place), column.name, "") for place, column in enumerate(run.data.file_columns)]
    if labels:
        places.append((run.data.label_place - 0.5, run.config.label_column or "label", labels))
    places += [(one.place - 0.6, one.name, one.text) for one in run.data.constants]
    beside = {name: values for _, name, values in sorted(places, key=lambda one: one[0])}
    write(file, table_text(run.data.file_columns, x, beside))


def _write_images(folder: Path, prefix: str, images: Tensor) -> list[str]:
    """Write images (N, C, H, W) in [0, 1] as PNG files in place of earlier ones, and return their names.

    Raises:
        InputError: they have another number of channels than 1 or 3.
    """
    import torch
    from torchvision.transforms.functional import to_pil_image

    if images.shape[1] not in (1, 3):
        raise InputError(f"a PNG has 1 or 3 channels, and these images have {images.shape[1]}")
    for earlier in folder.glob(f"{prefix}-[0-9]*.png"):
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}-{number:04}.png" for number in range(1, len(images) + 1)]
    for name, image in zip(names, images.mul(255).round().to(torch.uint8)):
        content = io.BytesIO()
        to_pil_image(image).save(content, "PNG")
        write_whole(folder / name, content.getvalue())
    return names


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
    given = given_data(run, arguments.data, arguments.skip_broken, arguments.label)
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
