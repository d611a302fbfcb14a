"""`explorer_page`: what the page of a run holds, and its text; `side_by_side_page`: that of two or three runs.

The page holds the networks as lists of simple operations, the distributions by their names and parameters, codes of
test data, and some of these images or all of these rows. `network.js` computes from them what torch computes here.
"""

from __future__ import annotations

import base64
import copy
import html
import inspect
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pvae.config.build import loss_text
from pvae.config.config import Config
from pvae.config.presets import differences
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.evaluation.measures.latents import latents_used
from pvae.evaluation.report import what_was_learned
from pvae.explore.networks import Tensors, map_of, networks_of, notes_of
from pvae.models.features import features_seen
from pvae.models.labels import label_values
from pvae.models.likelihoods import Likelihood
from pvae.runs.run import HISTORY_ROWS, Run, shown_data, shown_rows
from pvae.tables.codec import to_file
from pvae.tables.column import Column
from pvae.trained.latent_space import encode
from pvae.trained.scores import elbo_terms
from pvae.vae import VAE

_FOLDER = Path(__file__).parent
_PARTS = ("head.html", "page.css", "network.js", "common.js", "train.js", "page.js", "rules.js", "table.js")
_MOST_RUNS = 3  # side by side
_NUM_IMAGES = 200  # of the test data
_NUM_TRAINED = 2000
_PICTURES = {"MNIST": "pictures of digits", "FashionMNIST": "pictures of clothes", "CelebA": "pictures of faces"}
_MOST_TRAINED = 1024  # pixels of an image of which a VAE trains in the page
_MOST_COLUMNS = 200
_MOST_RATED = 1000  # test rows, of which the rates of latents are
_RANGE = (0.01, 0.99)  # quantiles of the rows, between which a bar lies


def check_run(run: Run) -> None:
    """Check that a run can be shown as a page.

    Raises:
        InputError: its data are no table, and no images of one or three channels; or its VAE was built in Python, has
            --labels, or is refused by `_check_table`.
    """
    if run.has_own_vae:
        raise InputError(f"{run.path} trained a VAE of your own, whose modules the page cannot compute in a browser")
    if run.config.labels:
        raise InputError(f"{run.path} has --labels, and the page shows VAEs without labels, or given labels")
    if run.data.columns:
        return _check_table(run)
    if not run.data.is_images:
        raise InputError(
            f"{run.path} was trained on data other than images and tables, which are all that the page shows"
        )
    support = run.config.prior_class.support
    if support in ("categories", "codes"):
        raise InputError(f"{run.path} has a latent of {support}, which the page does not compute: pvae draw does")
    if not run.config.likelihood_class.page:
        raise InputError(f"{run.path} has --likelihood {run.config.likelihood}, which the page does not compute")
    if run.data.datum_shape[0] not in (1, 3):
        raise InputError(f"the page shows 1 or 3 channels, and the images of {run.path} have {run.data.datum_shape[0]}")


def _check_table(run: Run) -> None:
    """Check that a run on a table can be shown as a page.

    Raises:
        InputError: its VAE is given labels or has several layers of latents, there are more than 200 columns, or the
            page does not compute p(x | z).
    """
    config = run.config
    count = len(run.data.columns)
    likelihood = f"--likelihood {config.likelihood}"
    reason = ""
    if config.condition:
        reason = "--condition, and the page of a table shows VAEs without labels: train one without it"
    elif config.upper_latent_dims:
        reason = "--upper-latent-dims, and the page of a table shows one layer: train one without it"
    elif config.is_pseudo:
        reason = f"{likelihood} of values between 0 and 1: train with --likelihood normal-diagonal"
    elif not config.likelihood_class.is_on_table_page:
        computed = ", ".join(Likelihood.names_where("is_on_table_page"))
        reason = f"{likelihood}, and the page of a table computes {computed}: train with one of these"
    elif run.data.limits:
        reason = "values that are known only to be below a limit, which the page of a table does not show"
    elif count > _MOST_COLUMNS:
        reason = f"{count} columns, and the page shows at most {_MOST_COLUMNS}: leave some out with --ignore"
    if reason:
        raise InputError(f"{run.path} has {reason}")


def check_runs(runs: Sequence[Run]) -> None:
    """Check that runs can be shown side by side.

    Raises:
        InputError: as for `check_run`; or there are more than three, one is given twice, one has not two latents, so
            that a place on one map is no place on another, or their data differ.
    """
    if not 2 <= len(runs) <= _MOST_RUNS:
        raise InputError(f"the page shows one, two or three runs, not {len(runs)}: leave some out")
    for place, run in enumerate(runs):
        check_run(run)
        if run.data.columns:
            raise InputError(
                f"{run.path} was trained on a table, and only runs on images stand side by side: show it alone"
            )
        if any(run.path.resolve() == other.path.resolve() for other in runs[:place]):
            raise InputError(f"{run.path} is given twice: give runs that differ")
        if run.config.latent_dims != (2,):
            size = sum(run.config.latent_dims)
            raise InputError(f"{run.path} has {size} latents, and linked maps need --latent-dim 2: show it alone")
        first = runs[0].data
        if run.data.sha256 != first.sha256 or run.data.labels_sha256 != first.labels_sha256:
            raise InputError(f"{run.path} was trained on other data than {runs[0].path}: give runs on the same data")


def explorer_page(run: Run, data: Dataset | None = None, frame: str = "", num_codes: int = 2000) -> str:
    """Return the text of an HTML file that decodes and encodes images, or rows of a table, by the VAE of a run.

    Args:
        run: on images or a table, of a VAE that a configuration describes.
        data: whose test data the page shows; `shown_data` of the run by default.
        frame: the title of the page as a frame of `side_by_side_page`, which shows less and follows the other frames.
        num_codes: the most test data whose codes the map shows.

    Raises:
        InputError: as for `check_run`; or the data or the weights cannot be read.
    """
    check_run(run)
    data = data or shown_data(run)
    tensors = Tensors()
    with torch.no_grad():
        if run.data.columns:
            template = "table.html"
            content = _table_content(run, data, num_codes, tensors)
        else:
            template = "page.html"
            rows = shown_rows(len(data.test), num_codes)
            content = _image_content(run, data, rows, tensors, is_frame=bool(frame))
            if len(rows) < run.data.num_test:
                content["notes"].append(f"The map shows {len(rows):,} of the {run.data.num_test:,} test images.")
    content["label_names"] = [re.sub(r"^(\d+) - .*", r"\1", name) for name in data.label_names]  # "0 - zero" of MNIST
    title = frame or _headline(run)
    lines = run.title.split("\n")
    kind = "is-page"
    if frame:
        lines = lines[:1]
        kind = "is-frame"
    content["title"] = [title, *lines]
    text = json.dumps(content).encode()
    packed = zlib.compress(len(text).to_bytes(4, "little") + text + bytes(tensors.bytes), 9)
    fields = {
        "loss": loss_text(run.config),
        "kernel": base64.b64encode((_FOLDER / "kernel.wasm").read_bytes()).decode(),
        "class": kind,
        "content": base64.b64encode(packed).decode(),  # zlib(length of the JSON, JSON, tensors)
        "title": html.escape(title),
    }
    for name in ("guide", "log_likelihood", "model", "posterior", "prior"):
        line = inspect.getsourcelines(getattr(VAE, name))[1]
        fields[name] = f"pvae/vae.py:{line} VAE.{name}"
    return _filled(template, fields)


def side_by_side_page(runs: Sequence[Run], data: Sequence[Dataset], num_codes: int = 2000) -> str:
    """Return the text of an HTML file with a frame for each run, which decode the same z and show the same image.

    Args:
        runs: two or three runs with two latents, on the same images.
        data: of each run, as in `explorer_page`.
        num_codes: as in `explorer_page`.

    Raises:
        InputError: as for `check_runs` and `explorer_page`.
    """
    check_runs(runs)
    frames = []
    for name, run, images in zip(differences([run.config for run in runs]), runs, data):
        name = name or run.path.resolve().name
        page = html.escape(explorer_page(run, images, name, num_codes))
        frames.append(f'<iframe title="{html.escape(name)}" srcdoc="{page}"></iframe>')
    title = f"{runs[0].data.title.rpartition(' (')[0]}: {len(runs)} runs side by side"
    fields = {"title": html.escape(title), "count": str(len(runs)), "frames": "\n".join(frames)}
    return _filled("side_by_side.html", fields)


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """Return the text of a file beside this one with values in place of {{ their names }}."""
    page = (_FOLDER / template).read_text("utf-8")
    for name in _PARTS:
        page = page.replace(f"/* {name} */", (_FOLDER / name).read_text("utf-8"))
    for name, value in fields.items():
        page = page.replace(f"{{{{ {name} }}}}", value)
    return page


def _headline(run: Run) -> str:
    """Return the heading of the page: what was pressed into how many numbers, or the size of a table."""
    data = run.data
    count = data.num_train + data.num_valid + data.num_calibration + data.num_test
    if data.columns:
        return f"{data.name}: {count:,} rows of {len(data.file_columns)} columns"
    size = sum(run.config.latent_dims)
    number = {1: "one number", 2: "two numbers", 3: "three numbers"}.get(size, f"{size} numbers")
    if run.config.prior_class.support == "bits":
        number = f"{size} bits"
    what = _PICTURES.get(data.name)
    if what is None:
        return f"{data.name}: {count:,} images, each pressed into {number}"
    return f"{count:,} {what}, each pressed into {number}"


def _image_content(run: Run, data: Dataset, chosen: Tensor, tensors: Tensors, is_frame: bool) -> dict[str, Any]:
    """Return what the page holds as JSON: the run's networks and distributions, codes and images of the test data."""
    vae: Any = run.vae()
    config = run.config
    images = run.preparation.x_of(data.test, rows=chosen)
    y = None
    given = None
    labels = data.test_labels
    if labels is not None:
        labels = labels[chosen]
    if config.condition:
        y = data.labels["test"][chosen]
        given = tensors.add(label_values(y[:_NUM_IMAGES], len(data.label_names), y.dtype), "u1")
    networks = networks_of(config, vae, tensors)
    only_of_page: dict[str, Any] = {"history": [], "bits": None}
    if not is_frame:
        only_of_page = _history(run, data, chosen, tensors)
        only_of_page["bits"] = _bits(config, images.images[:_NUM_TRAINED], tensors)
    return {
        "notes": notes_of(vae, networks["posterior"], networks["prior"]),
        "shape": [*images.images.shape[1:]],
        "inner": [side - 2 * config.pad for side in images.images.shape[2:]],
        "keep_aspect": config.image_size == "auto",
        "symmetric": run.preparation.is_symmetric,
        "binarize": config.binarize,
        **networks,
        "pseudo": vae.is_pseudo,
        **only_of_page,
        **map_of(run, data, encode(vae, Batch(images, y)), labels, tensors),
        "given": given,
        "images": tensors.add(images.images[:_NUM_IMAGES], "u1"),
        "image_names": [data.test_names[i] for i in chosen[:_NUM_IMAGES].tolist()],
    }


def _bits(config: Config, images: Tensor, tensors: Tensors) -> dict[str, Any] | None:
    """Return the images (N, 1, H, W), without their padding, as one bit a pixel, of which a VAE trains in the page.

    None where there are not two latents, or the images are large or have colours.
    """
    inner = nn.functional.pad(images, (-config.pad,) * 4)
    if config.latent_dims != (2,) or inner.shape[1] > 1 or inner[0].numel() > _MOST_TRAINED:
        return None
    return tensors.add(torch.from_numpy(np.packbits(inner.flatten(1).numpy() >= 128, axis=1)), "u1")


def _history(run: Run, data: Dataset, chosen: Tensor, tensors: Tensors) -> dict[str, Any]:
    """Return instants of the training, of which the codes are those of the first data of the page, and then its end."""
    kept = run.history()
    if not kept:
        return {"history": []}
    checkpoint = run.best_checkpoint()
    instants = [instant for instant in kept if instant.step < checkpoint.step]
    rows = shown_rows(len(data.test), HISTORY_ROWS)  # of which `chosen` are the first, or more
    order = _places_in_history(run, data, rows)
    if not instants or len(order) < len(rows):
        return {"history": []}
    vae = copy.deepcopy(run.vae())
    y = None
    if run.config.condition:
        y = data.labels["test"][rows]
    with seeded(0, torch.device("cpu")):
        terms = elbo_terms(vae, Batch(run.preparation.x_of(data.test, rows=rows), y), 1)
    small = Tensors(tensors.bytes, is_small=True)
    history = []
    for instant in instants:
        points = instant.codes[order[: len(chosen)]]
        if run.config.prior_class.support == "points on the unit sphere":
            points = normalize(points, dim=-1)
        shown = {
            "after": instant.step,
            "distortion": instant.distortion,
            "rate": instant.rate,
            "points": small.add(points, "i1"),
        }
        if instant.weights:
            vae.load_state_dict(instant.weights)
            shown |= networks_of(run.config, vae, small, has_encoder=False)
        history.append(shown)
    return {
        "after": checkpoint.step,
        "distortion": terms["distortion"].mean().item(),
        "rate": terms["rate"].mean().item(),
        "history": history,
        "history_rows": len(rows),
    }


def _places_in_history(run: Run, data: Dataset, rows: Tensor) -> list[int]:
    """Return where the codes of test rows are in the history; fewer if it lacks some."""
    if len(data.test) >= run.data.num_test:
        return list(range(len(rows)))
    # the images that come with pvae, whose names have their rows
    of_run = shown_rows(run.data.num_test, HISTORY_ROWS).tolist()
    places = {f"test-{row}": place for place, row in enumerate(of_run)}
    names = [data.test_names[row] for row in rows.tolist()]
    return [places[name] for name in names if name in places]


def _table_content(run: Run, data: Dataset, most: int, tensors: Tensors) -> dict[str, Any]:
    """Return what the page of a table holds as JSON.

    Args:
        run: on a table, as `_check_table` takes it.
        data: of the run.
        most: rows that the page shows: the test rows, and then others.
        tensors: to which tensors are added.
    """
    vae: Any = run.vae()
    total = sum(len(x) for x in data.splits.values())
    share = min(1.0, (most - min(most, len(data.test))) / max(1, total - len(data.test)))
    rows = {"test": shown_rows(len(data.test), most)}
    for split, every_x in data.splits.items():
        if split != "test":
            rows[split] = shown_rows(len(every_x), math.floor(share * len(every_x)))
    labels = None
    if data.labels.keys() == rows.keys():
        labels = torch.cat([data.labels[split][some] for split, some in rows.items()])
    batch = Batch(run.preparation.x_of(torch.cat([data.splits[split][some] for split, some in rows.items()])))
    (x,) = batch.x.split(len(batch))
    features = features_seen(vae.q_z, x, with_mask=True)
    networks = networks_of(run.config, vae, tensors)
    notes = notes_of(vae, networks["posterior"], networks["prior"])
    if any(column.date_format for column in run.data.columns):
        notes.append("Means of dates are written as year-month-day.")
    if len(x) < total:
        notes.append(f"The map shows {len(x):,} of the {total:,} rows.")
    test = Batch(run.preparation.x_of(data.test, rows=shown_rows(len(data.test), _MOST_RATED)))
    return {
        "notes": notes,
        "learned": [*what_was_learned(run)],
        "rates": latents_used(vae, test, math.inf).rates,
        "takes_out": run.config.missing,
        "shape": [features.shape[1], 1, 1],
        **networks,
        **map_of(run, data, encode(vae, batch), labels, tensors),
        "columns": _columns(run, vae, x, features),
        "features": tensors.add(features),
        "x": tensors.add(x, "f8"),
        "texts": _texts(run.data.columns, x),
        "rules": [str(rule) for rule in run.data.rules],
        "steps": [{**asdict(step), "made": step.made} for step in run.data.steps],
        "modelled": [asdict(column) for column in run.data.columns],
        "file": [asdict(column) for column in run.data.recorded],
        "file_texts": _texts(run.data.recorded, to_file(run.data, x)),
        "rows": [data.names[split][row] for split, some in rows.items() for row in some.tolist()],
        "splits": [split for split, some in rows.items() for _ in some],
    }


def _texts(columns: Sequence[Column], x: Tensor) -> list[list[str]]:
    """Return the fields of rows (M, D) as a file has them."""
    return [[column.text(value, is_given=True) for column, value in zip(columns, row)] for row in x.tolist()]


def _columns(run: Run, vae: Any, x: Tensor, features: Tensor) -> list[dict[str, Any]]:
    """Return the columns of rows x, of which the encoder sees the features, for table.js."""
    rows = []
    for place, column in enumerate(run.data.columns):
        shown = {"name": column.name, "inputs": [], **vae.p_x.table_page(place)}
        if run.config.missing:
            without = x.clone()
            without[:, place] = math.nan
            are_changed = (features_seen(vae.q_z, without, with_mask=True) != features).any(0)  # to 0
            shown["inputs"] = are_changed.nonzero().flatten().tolist()
        num_levels = shown.pop("num_levels", 0)
        if num_levels:
            shown["levels"] = [column.text(float(code), is_given=True) for code in range(num_levels)]
        else:
            shown |= _bar(x[:, place].double(), shown["kind"] == "positive", column)
        rows.append(shown)
    return rows


def _bar(values: Tensor, is_log: bool, column: Column) -> dict[str, Any]:
    """Return the ends of the bar of a column of numbers, and how table.js writes them: a unit with three digits."""
    if is_log:
        values = values.log()
    seen = values[~values.isnan()]
    low = high = 0.0
    if len(seen):
        low, high = torch.quantile(seen, torch.tensor(_RANGE).double()).tolist()
    if high <= low:
        high = low + 1
    unit = high - low
    if is_log:
        low = math.exp(low)
        high = math.exp(high)
        unit = min(high - low, math.sqrt(low * high))
    date = 0  # the length of 2020-03-01T12:30:00
    if column.date_format:
        lengths = {"%S": 19, "%H": 16, "%I": 16, "": 10}
        date = next(length for code, length in lengths.items() if code in column.date_format)
    return {
        "is_log": is_log,
        "low": low,
        "high": high,
        "decimals": min(max(3 - math.ceil(math.log10(unit)), 0), 20),
        "date": date,
        "origin": column.origin,
        "suffix": column.suffix,
        "point": column.point,
    }
