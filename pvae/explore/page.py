"""`explorer_page`: what the page of a run holds, and its text.

The page holds the networks as lists of simple operations, the distributions by their names and parameters, codes of
test data, and some of these images or all of these rows. `network.js` computes from them what torch computes here.
"""

from __future__ import annotations

import base64
import copy
import html
import inspect
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pvae.config.build import loss_text
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.explore.networks import Tensors, map_of, networks_of, notes_of
from pvae.explore.table_page import check_table, table_content
from pvae.models.labels import label_values
from pvae.runs.run import HISTORY_ROWS, Run, shown_data, shown_rows
from pvae.trained.latent_space import encode
from pvae.trained.scores import elbo_terms
from pvae.vae import VAE

__all__ = ["check_run", "explorer_page"]

_NUM_IMAGES, _NUM_TRAINED = 200, 2000  # of the test data
_PICTURES = {"MNIST": "pictures of digits", "FashionMNIST": "pictures of clothes", "CelebA": "pictures of faces"}
_MOST_TRAINED = 1024  # pixels of an image of which a VAE trains in the page


def check_run(run: Run) -> None:
    """Check that a run can be shown as a page.

    Raises:
        InputError: its data are no table, and no images of one or three channels; or its VAE was built in Python, has
            --labels, or is refused by `check_table`.
    """
    if run.has_own_vae:
        raise InputError(f"{run.path} trained a VAE of your own, whose modules the page cannot compute in a browser")
    if run.config.labels:
        raise InputError(f"{run.path} has --labels, and the page shows VAEs without labels, or given labels")
    if run.data.columns:
        return check_table(run)
    if not run.data.is_images:
        raise InputError(
            f"{run.path} was trained on data other than images and tables, which are all that the page shows"
        )
    if (support := run.config.prior_family.support) in ("categories", "codes"):
        raise InputError(f"{run.path} has a latent of {support}, which the page does not compute: pvae draw does")
    if not run.config.likelihood_family.page:
        raise InputError(f"{run.path} has --likelihood {run.config.likelihood}, which the page does not compute")
    if run.data.datum_shape[0] not in (1, 3):
        raise InputError(f"the page shows 1 or 3 channels, and the images of {run.path} have {run.data.datum_shape[0]}")


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
    folder = Path(__file__).parent
    page = (folder / ("table.html" if run.data.columns else "page.html")).read_text("utf-8")
    for name in ("page.css", "network.js", "common.js", "train.js", "page.js", "table.js"):
        page = page.replace(f"/* {name} */", (folder / name).read_text("utf-8"))
    for name in ("guide", "log_likelihood", "model", "posterior", "prior"):
        line = inspect.getsourcelines(getattr(VAE, name))[1]
        page = page.replace(f"{{{{ {name} }}}}", f"pvae/vae.py:{line} VAE.{name}")
    page = page.replace("{{ loss }}", loss_text(run.config))
    page = page.replace("{{ kernel }}", base64.b64encode((folder / "kernel.wasm").read_bytes()).decode())
    tensors, data = Tensors(), data or shown_data(run)
    rows = shown_rows(len(data.test), num_codes)
    with torch.no_grad():
        more = (rows, tensors)
        content = table_content(run, data, *more) if run.data.columns else _image_content(run, data, frame, *more)
    content["label_names"], lines = [_short(name) for name in data.label_names], run.title.split("\n")
    title = frame or _headline(run)
    content["title"] = [title, *lines[: 1 if frame else None]]
    if len(rows) < run.data.num_test:
        of = "rows" if run.data.columns else "images"
        content["notes"].append(f"The map shows {len(rows):,} of the {run.data.num_test:,} test {of}.")
    text = json.dumps(content).encode()
    packed = zlib.compress(len(text).to_bytes(4, "little") + text + bytes(tensors.bytes), 9)
    encoded = base64.b64encode(packed).decode()  # zlib(length of the JSON, JSON, tensors)
    page = page.replace("{{ class }}", "is-frame" if frame else "takes-out" if content.get("takes_out") else "is-page")
    return page.replace("{{ content }}", encoded).replace("{{ title }}", html.escape(title))


def _headline(run: Run) -> str:
    """Return the heading of the page: what was pressed into how many numbers."""
    what, size = "rows" if run.data.columns else "images", sum(run.config.latent_dims)
    name = "" if run.data.name in _PICTURES else f"{run.data.name}: "
    number = ("", "one number", "two numbers", "three numbers")[size] if size < 4 else f"{size} numbers"
    count = run.data.num_train + run.data.num_valid + run.data.num_test
    return f"{name}{count:,} {_PICTURES.get(run.data.name, what)}, each pressed into {number}"


def _short(name: str) -> str:
    """Return the name of a class; of torchvision's MNIST "0" of "0 - zero"."""
    digit, dash, _ = name.partition(" - ")
    return digit if dash and digit.isdigit() else name


def _image_content(run: Run, data: Dataset, frame: str, chosen: Tensor, tensors: Tensors) -> dict[str, Any]:
    """Return what the page holds as JSON: the run's networks and distributions, codes and images of the test data."""
    vae: Any = run.vae()
    config = run.config
    images = run.preparation.x_of(data.test, rows=chosen)
    y = data.labels["test"][chosen] if config.condition else None
    batch = Batch(images, y)
    given = None if y is None else tensors.add(label_values(y[:_NUM_IMAGES], len(data.label_names), y.dtype), "u1")
    networks = networks_of(config, vae, tensors)
    return {
        "notes": notes_of(vae, networks["posterior"], networks["prior"]),
        "shape": [*images.images.shape[1:]],
        "inner": [side - 2 * config.pad for side in images.images.shape[2:]],
        "keep_aspect": config.image_size == "auto",
        "symmetric": run.preparation.is_symmetric,
        "binarize": config.binarize,
        **networks,
        "pseudo": vae.is_pseudo,
        **({"history": []} if frame else _history(run, data, chosen, tensors)),
        **map_of(run, data, encode(vae, batch), chosen, tensors),
        "given": given,
        "images": tensors.add(images.images[:_NUM_IMAGES], "u1"),
        "bits": None if frame else _bits(config, images.images[:_NUM_TRAINED], tensors),
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
    if not (kept := run.history()):
        return {"history": []}
    checkpoint, vae = run.best_checkpoint(), copy.deepcopy(run.vae())
    instants = [one for one in kept if one.step < checkpoint.step]
    rows = shown_rows(len(data.test), HISTORY_ROWS)  # of which `chosen` are the first, or more
    order = [*range(len(rows))]
    if len(data.test) < run.data.num_test:  # the images that come with pvae, whose names have their rows
        of_run = shown_rows(run.data.num_test, HISTORY_ROWS).tolist()
        places = {f"test-{row}": place for place, row in enumerate(of_run)}
        order = [places[name] for row in rows.tolist() if (name := data.test_names[row]) in places]
    if not instants or len(order) < len(rows):
        return {"history": []}
    y = data.labels["test"][rows] if run.config.condition else None
    with seeded(0, torch.device("cpu")):
        terms = elbo_terms(vae, Batch(run.preparation.x_of(data.test, rows=rows), y), 1)
    order = order[: len(chosen)]
    found = []
    tensors.is_small = True
    for one in instants:
        codes = one.codes[order]
        points = normalize(codes, dim=-1) if run.config.prior_family.is_on_sphere else codes
        found.append(
            {"after": one.step, "distortion": one.distortion, "rate": one.rate, "points": tensors.add(points, "i1")}
        )
        if one.weights:
            vae.load_state_dict(one.weights)
            found[-1] |= networks_of(run.config, vae, tensors, has_encoder=False)
    tensors.is_small = False
    end = {name: terms[name].mean().item() for name in ("distortion", "rate")}
    return {"after": checkpoint.step, **end, "history": found, "history_rows": len(rows)}
