"""The table of runs, a row for each run: its configuration and metrics; or log p(x) and its differences."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from pvae.config.presets import system_title
from pvae.core.errors import InputError
from pvae.core.files import markdown_of
from pvae.core.random_state import seeded
from pvae.evaluation.context import Context
from pvae.evaluation.measures.log_likelihood import LogLikelihood, pixels_of
from pvae.evaluation.report import check_density
from pvae.marginal.log_likelihood import MOST_UNTRUSTED
from pvae.runs.metrics import is_out_of_patience
from pvae.runs.run import Run
from pvae.trained.codes import LatentReport
from pvae.trained.scores import Estimate, elbo_terms

_NOTE = """\
Nats per datum, on the test data. +- is the standard error over seeds, and SD the standard deviation over them; for the
ELBO and log p(x) of one seed, +- is the standard error over data.
(pseudo): the pixels are grey, so the value does not bound a log-likelihood. log p(x): by pvae evaluate, of all test
data, binarized if a Bernoulli was trained on grey ones; not reliable where it warns.
10-NN: accuracy of a 10-nearest-neighbour classifier on the codes. KS: the largest Kolmogorov-Smirnov distance of a
latent dimension of z ~ q(z | x), of the top layer if there are several, from N(0, 1). Seconds: the median epoch,
training and test, of the fastest run; of runs that were trained at once its share.
"""
_MEASURES = {  # the columns over seeds, each of a column of the runs, and its decimals
    "ELBO": ("elbo", 2),
    "log p(x)": ("log_likelihood", 2),
    "distortion": ("distortion", 2),
    "rate": ("rate", 2),
    "10-NN": ("accuracy", 3),
    "KS": ("kolmogorov_smirnov", 3),
}

_VALUES = ["log_p", "elbo", "distortion", "rate"]  # of `compare_runs`
_TITLES = {
    "log p(x)": "log_p",
    "difference": "log_p_difference",
    "ELBO": "elbo",
    "difference of ELBO": "elbo_difference",
    "distortion": "distortion",
    "rate": "rate",
}
_OF_RUNS = """\
Nats per datum, on the same test data. +- is the standard error over data; another seed may change a run by more: see
pvae evaluate FOLDER FOLDER, of folders of runs that differ in the seed (python -m pvae.train --seeds 0:3). Two
estimators of the ELBO are compared at the same weights: pvae compare RUN --elbo trace,analytic.
"""
_OF_FOLDERS = """\
Nats per datum, on the same test data: means over runs. +- is the standard error over seeds, and SD the standard
deviation over them.
"""
_BEST = """from the row with the highest log p(x): the best, if the 95 %
intervals of all differences exclude 0 and no log p(x) is marked. ELBO = -(distortion + rate), whatever beta is.
Of more than two latents log p(x) is too low where no draw finds a mode of p(z | x), which no mark or error shows. by:
the methods of log p(x)."""
_NOT_RELIABLE = f"""
(not reliable): the diagnostics of the methods do not trust the log p(x) of more than {MOST_UNTRUSTED:.0%} of the data;
pvae evaluate RUN says what may help. The ELBO is not affected."""


def row_of(run: Run, codes: LatentReport) -> dict[str, Any]:
    """Return the row of a run in the table, with its results on the test data in nats per datum.

    Its columns are, in this order:

        run                     name of the run folder
        configuration           digest of options, data and finished epochs, equal for runs that differ only in the seed
        system, estimator       name of the system with the options that differ from the published ones; `--elbo`
        beta                    weight of the rate in the loss
        data, seed              name of the data; the seed
        epochs, planned_epochs  finished epochs; those of the configuration, or until patience ended
        chosen_epoch            the epoch of the results: the best on the validation data, if there are any, or the last
        pseudo                  whether `elbo` is a pseudo-ELBO
        elbo, elbo_stderr       the ELBO, None for an autoencoder; its standard error over data and draws of z
        distortion, rate        -E_q log p(x | z); KL(q, p)
        log_likelihood          log p(x) that `pvae evaluate` wrote, of the same epoch and all test data, or None;
          log_likelihood_stderr, importance_samples    its standard error, and the draws of z for each datum
        accuracy                of a 10-nearest-neighbour classifier on the codes; None without classes
        kolmogorov_smirnov      the largest distance of a latent dimension from N(0, 1); None for another prior
        seconds_per_epoch       median over epochs of the time for training and test

    Args:
        run: the run.
        codes: statistics of the codes of the run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    config = run.config
    rows = run.metrics()
    chosen = run.test_metrics()
    if chosen is None:
        raise InputError(f"{run.path} has not finished an epoch; go on with: {run.how_to_resume}")
    epochs = rows[-1].epoch
    planned = config.epochs
    if is_out_of_patience(rows, config.patience):
        planned = epochs
    same: list[Any] = [asdict(config.replace(seed=0, source="")), run.data.sha256]
    if epochs < planned:
        same.append(epochs)
    return {
        "run": run.path.resolve().name,
        "configuration": hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12],
        "system": system_title(config),
        "estimator": config.elbo,
        "beta": config.beta,
        "data": run.data.name,
        "seed": config.seed,
        "epochs": epochs,
        "planned_epochs": planned,
        "chosen_epoch": chosen.epoch,
        "pseudo": chosen.pseudo,
        "elbo": chosen.elbo,
        "elbo_stderr": chosen.elbo_stderr,
        "distortion": chosen.distortion,
        "rate": chosen.rate,
        **_evaluated(run, chosen.epoch),
        "accuracy": codes.accuracy,
        "kolmogorov_smirnov": max(codes.kolmogorov_smirnov or (), default=None),
        "seconds_per_epoch": pd.DataFrame(rows).groupby("epoch")["seconds"].sum().median(),
    }


def _evaluated(run: Run, epoch: int) -> dict[str, Any]:
    """Return log p(x), its error and K from evaluation.json; None each unless it is of this epoch and all test data."""
    values = dict.fromkeys(["log_likelihood", "log_likelihood_stderr", "importance_samples"])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or without a log-likelihood
        report = json.loads((run.place / "evaluation.json").read_bytes())
        measure = report["log_likelihood"]
        if report["epoch"] == epoch and report["num_images"] == run.data.num_test:
            estimate = measure["estimate"]
            values = dict(zip(values, [estimate["mean"], estimate["stderr"], measure["num_particles"]]))
    return values


def runs_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows of `row_of` by system, estimator, beta and seed; its `to_csv` writes them."""
    table = pd.DataFrame(rows, dtype=object)  # a text of pandas cannot hold the name of every folder
    order = ["system", "estimator", "beta", "seed"]
    return table.sort_values(order, key=without_beta, kind="stable")  # a sweep is in order of beta


def without_beta(systems: pd.Series) -> pd.Series:
    """Return titles of systems without the option of beta."""
    return systems.replace([r" --beta \S+", " with$"], "", regex=True)


def progress_of(row: Any) -> str:
    """Return the finished epochs of a row: "16", "3 of 16" for an unfinished run, "16, best 12" if one was chosen."""
    said = str(row["epochs"])
    if row["epochs"] < row["planned_epochs"]:
        said += f" of {row['planned_epochs']}"
    if row["epochs"] != row["chosen_epoch"]:
        said += f", best {row['chosen_epoch']}"
    return said


def to_markdown(table: pd.DataFrame) -> str:
    """Return a row for each configuration of a table, with means over its seeds and their standard errors."""
    names = [name for name, _ in _MEASURES.values()]
    numbers = table[[*names, "elbo_stderr", "log_likelihood_stderr", "seconds_per_epoch"]].astype(float)
    runs = numbers.groupby(table["configuration"], sort=False)
    first = table.groupby("configuration", sort=False).first()
    means = runs.mean()
    errors = runs.sem()  # NaN of a single run, which has an error over data
    for name in ("elbo", "log_likelihood"):
        errors[name] = errors[name].fillna(means[f"{name}_stderr"])
    shown = first[["system", "estimator", "data"]].rename(columns={"estimator": "--elbo"})
    shown["seeds"] = runs.size().astype(str)
    shown["epochs"] = first.apply(progress_of, axis=1)
    for title, (name, digits) in _MEASURES.items():
        error = " +- " + _fixed(errors[name], digits)
        shown[title] = _fixed(means[name], digits) + error.where(errors[name].notna(), "")
    shown["ELBO"] += np.where(first["pseudo"] & means["elbo"].notna(), " (pseudo)", "")
    shown.insert(6, "SD of ELBO", _fixed(runs["elbo"].std()))
    shown["s an epoch"] = _fixed(runs["seconds_per_epoch"].min(), 1)
    return f"{markdown_of(shown.to_dict('records'))}\n\n{_NOTE}{_few(runs.size())}"


def _fixed(values: pd.Series, digits: int = 2) -> pd.Series:
    """Return numbers as texts, a dash where there is none."""
    return values.map(f"{{:.{digits}f}}".format).mask(values.isna(), "-")


def compare_runs(
    runs: Sequence[Run], num_particles: int, num_images: int | None = None, seed: int = 0, **how: Any
) -> pd.DataFrame:
    """Return log p(x) and ELBO of several runs on the same test data, with paired differences, in nats per datum.

    The columns are run, beta and seed of its configuration, pixels (their kind), untrusted (the fraction of data whose
    log p(x) cannot be trusted), by (the methods of log p(x)), and log_p, elbo, distortion and rate, each with its
    standard error over data (log_p_stderr, ...), its difference (log_p_difference, ...) and the error of that
    (log_p_difference_stderr, ...). A difference is the mean over data of the value minus that of the run with the
    highest mean log p(x).

    Args:
        runs: the runs, in the order of the rows.
        num_particles: K, the number of importance weights for each datum.
        num_images: number of test data, a random subset; all if None.
        seed: seed of the subset and of the draws of each run.
        how: other arguments of `pvae.marginal.log_likelihood.log_likelihood`.

    Raises:
        InputError: a run is an autoencoder, or their test data, labels, pixels or kinds of p(x) differ.
    """
    contexts = [Context(run, num_images, seed, how={"num_particles": num_particles, **how}) for run in runs]
    first = _traits(contexts[0])
    for context in contexts:  # all are checked before the first draws
        check_density(context.run)
        for why, value in _traits(context).items():
            if not np.array_equal(value, first[why], equal_nan=True):
                raise InputError(f"{context.run.path} has {why.format(runs[0].path)}")
        LogLikelihood.check(context)
    rows = []
    values = []
    for context in contexts:
        with seeded(seed, torch.device("cpu")):
            log_p = context.log_p
            terms = elbo_terms(context.normalised, context.test)
        row = {
            "beta": context.run.config.beta,
            "seed": context.run.config.seed,
            "pixels": pixels_of(context.kind, context.test),
            "untrusted": log_p.untrusted,
            "by": ", ".join(log_p.counts),
        }
        rows.append(row)
        values.append(pd.DataFrame({"log_p": log_p.log_p, **terms}, columns=_VALUES, dtype=float))
    names = pd.DataFrame({"run": short_names([run.path for run in runs])}, dtype=object)
    return pd.concat([names, pd.DataFrame(rows), _compared(values)], axis=1)


def _traits(context: Context) -> dict[str, Any]:
    """Return what must be the same of two runs, by what is said of a run where it differs."""
    run = context.run
    x = context.test.x.images
    levels = getattr(context.normalised.p_x, "levels_per_unit", 1.0)  # 1 of a probability
    is_density = [kind.likelihood.is_density for kind in run.config.column_kinds]
    unit = 1.0
    if run.data.is_images:
        unit = levels
    return {
        "other test data than {}: train both on the same data, or evaluate each alone": context.data.test,
        "other labels given than {}: train both with --condition, or neither": context.test.y is None,
        "other pixels than {}: train both with the same --likelihood, --binarize and --pad": x,
        "p(x) of another kind than {}, a density or a probability: train both with one kind of --likelihood": (
            is_density or [levels != 1] * x[0].numel()
        ),
        "pixels in another unit than {}: train both with one kind of --pixels": unit,
    }


def _compared(values: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return a row for each table of values of data or seeds: means, errors, and differences from the best.

    The best has the highest mean of log p(x). Differences are paired if both tables have the same rows.
    """
    best = max(values, key=lambda table: table["log_p"].mean())
    rows = []
    for table in values:
        error = np.hypot(table.sem(), best.sem())
        is_paired = set(table.index) == set(best.index)
        if is_paired:
            error = (table - best).sem()
        difference = table.mean() - best.mean()
        parts = {"": table.mean(), "_stderr": table.sem(), "_difference": difference, "_difference_stderr": error}
        row = pd.concat([part.add_suffix(suffix) for suffix, part in parts.items()])
        rows.append({**row, "paired": is_paired})
    return pd.DataFrame(rows)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the folders from where their paths begin to differ: "seed-0"; "a/seed-0" and "b/seed-0"."""
    places = [path.resolve() for path in paths]
    common = os.path.commonpath([place.parent for place in places])
    return [str(place.relative_to(common)) for place in places]


def over_seeds(comparison: pd.DataFrame, folders: Sequence[Path]) -> pd.DataFrame:
    """Return the means over the runs of each folder of a table of `compare_runs`, with standard errors over the runs.

        mean_r v_r  +-  std_r v_r / sqrt(R),     R the number of runs in the folder

    The columns are those of `compare_runs`, with the number of runs, seeds, after the first, and elbo_deviation, the
    standard deviation of the ELBO over the runs. A difference is that of
    two means, from the folder with the highest mean of log p(x). If both folders have the same seeds, its error is the
    standard error of the differences between runs of one seed, which may share the initial weights and the order of
    the data, and paired is true. Else it is the root of the sum of the squared errors of the means. untrusted is the
    largest value of the runs.

    Args:
        comparison: the table.
        folders: for each of its rows the folder that holds the run. A folder has at least two runs.
    """
    names = np.array(short_names(folders), dtype=object)  # not texts of pandas, as above
    runs = comparison.set_index("seed").groupby(names, sort=False)
    table = runs.agg(
        seeds=("elbo", "size"),
        beta=("beta", "first"),
        pixels=("pixels", "first"),
        untrusted=("untrusted", "max"),
        elbo_deviation=("elbo", "std"),
        by=("by", lambda methods: ", ".join(dict.fromkeys(", ".join(methods).split(", ")))),
    )
    table = table.reset_index(names="run").astype({"run": object})
    return table.join(_compared([run[_VALUES] for _, run in runs]))


def _cells(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `compare_runs` or `over_seeds` as text."""
    shown = comparison[["run"]].copy()
    if comparison["beta"].nunique() > 1:
        shown["beta"] = comparison["beta"].map("{:g}".format)
    if "seeds" in comparison:
        shown["seeds"] = comparison["seeds"].astype(str)
    for title, name in _TITLES.items():
        pairs = zip(comparison[name], comparison[f"{name}_stderr"])
        shown[title] = [str(Estimate(mean=mean, stderr=stderr)) for mean, stderr in pairs]
    freedom = np.inf
    if "seeds" in comparison:
        shown["SD of ELBO"] = _fixed(comparison["elbo_deviation"])
        freedom = comparison["seeds"].min() - 1
    shown["by"] = comparison["by"]
    is_low = comparison["untrusted"] > MOST_UNTRUSTED
    shown.loc[is_low, "log p(x)"] += " (not reliable)"
    margins = stats.t.ppf(0.975, freedom) * comparison["log_p_difference_stderr"]
    num_lower = (-comparison["log_p_difference"] > margins).sum()
    highest = comparison["log_p"].argmax()
    shown.loc[highest, ["difference", "difference of ELBO"]] = "-"
    if num_lower == len(comparison) - 1 > 0 and not is_low.any():
        shown.loc[highest, "difference"] = "best"
    return shown


def _few(seeds: pd.Series) -> str:
    """Return a line on the least number of seeds above one, "" if it is not 2 or 3."""
    least = seeds[seeds > 1].min()
    if not least <= 3:  # NaN where there is one seed
        return ""
    interval = f"a 95 % interval is {stats.t.ppf(0.975, least - 1):.1f} standard errors to each side"
    return f"{least} seeds tell little about the spread: {interval}.\n"


def legend_of(comparison: pd.DataFrame) -> str:
    """Return what the cells of a table of `compare_runs` or `over_seeds` mean."""
    over = _OF_RUNS
    unit = "datum"
    if "seeds" in comparison:
        over = _OF_FOLDERS + _few(comparison["seeds"])
        unit = "seed"
    pairing = "of means, paired where seeds are equal"
    if comparison["paired"].all():
        pairing = f"taken {unit} by {unit}"
    said = f"{over}Differences are {pairing}, {_BEST}"
    pixels = " or ".join(sorted({*comparison["pixels"]}))
    if pixels:
        said += f"\nNo value is a pseudo-ELBO; pixels {pixels}."
    if (comparison["untrusted"] > MOST_UNTRUSTED).any():
        said += _NOT_RELIABLE
    return said


def comparison_to_markdown(comparison: pd.DataFrame) -> str:
    """Return a table of `compare_runs` or `over_seeds` in Markdown, with its legend."""
    return f"{markdown_of(_cells(comparison).to_dict('records'))}\n\n{legend_of(comparison)}"


def comparison_to_latex(comparison: pd.DataFrame) -> str:
    """Return such a table as a LaTeX tabular, which needs the package booktabs, with its legend as a comment."""
    cells = _cells(comparison)
    table = cells.to_latex(index=False, escape=True, column_format="l" + "r" * (len(cells.columns) - 1))
    table = re.sub(r"(\S+) \+- (\S+)", r"$\1 \\pm \2$", table).replace("log p(x)", r"$\log p(x)$")
    comment = legend_of(comparison).replace("\n", "\n% ")
    return f"{table}% {comment}"
