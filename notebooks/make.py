"""Make the pictures and the notebooks of this folder anew: train what they show, draw it, and execute them.

    python notebooks/make.py --data-dir DIR               all, some forty minutes on two cores the first time
    python notebooks/make.py --data-dir DIR --only holes  one picture, or several with commas between them
    python notebooks/make.py --list                       their names, and the runs that each needs

DIR has MNIST and Fashion-MNIST in torchvision's layout. Each run is trained into a folder of --cache, unless it comes
with pvae. Finished runs are not trained again, and an interrupted one is resumed. No picture that shows CelebA is made.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from nbclient import NotebookClient
from pandas import DataFrame
from PIL import Image
from pyro.infer.inspect import get_model_relations
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.support.ui import WebDriverWait
from torch import Tensor
from torch.distributions import MultivariateNormal
from torchvision.utils import make_grid

import pvae
from pvae.config.build import preparation_of
from pvae.explore.page import explorer_page
from pvae.plotting import figures, pictures
from pvae.plotting.figures import PALETTE
from pvae.plotting.gallery import code_figures, entry_of
from pvae.runs.run import READY_MADE
from pvae.trained import codes, latent_space
from pvae.training.fit import train_in_memory

HERE = Path(__file__).resolve().parent
BETAS = (0.25, 0.5, 1.0, 2.0, 4.0)
RUNS = {
    "deep-bayes": pvae.get_system("deep-bayes").replace(elbo="analytic"),
    "mlp-2d": pvae.get_system("mlp-2d"),
    "pytorch-example": pvae.get_system("pytorch-example"),
    "conv-2d": pvae.get_system("conv-2d"),
    "conv-2d-ae": pvae.get_system("conv-2d-ae"),
    "fashion-ae": pvae.get_system("fashion-ae"),
    "fashion-ae-6": pvae.get_system("fashion-ae").replace(latent_dim=6),
    "fashion-vae": pvae.get_system("fashion-vae"),
    **{f"beta-{beta}": pvae.Config(latent_dim=10, elbo="analytic", beta=beta, epochs=16) for beta in BETAS},
}
MOVING = "explore.gif"
STAGES = {"mlp-2d": (1, 24), "pytorch-example": (1,)}  # earlier epochs that are shown, each kept as a run of its own


@dataclass
class Runs:
    """The runs in a cache folder, trained when they are asked for.

    Args:
        cache: the folder.
    """

    cache: Path
    _known: dict[Path, pvae.Run] = field(default_factory=dict, init=False)

    def __call__(self, name: str, epochs: int | None = None) -> pvae.Run:
        """Return the run of a name after its last epoch, or after one of its stages."""
        epochs = epochs or RUNS[name].epochs
        path, config = self.cache / f"{name}-{epochs}", RUNS[name].replace(epochs=epochs)
        earlier = max((stage for stage in STAGES.get(name, ()) if stage < epochs), default=None)
        if not path.exists() and earlier is not None:
            part = path.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self(name, earlier).path, part)
            part.rename(path)
        if path not in self._known:
            started = time.perf_counter()
            run = pvae.Run.open(name) if name in READY_MADE else None
            if run is None or run.config.replace(compile=config.compile) != config:
                run = pvae.resume(path, epochs) if path.exists() else pvae.fit(config, out=path)
            print(f"{path.name}: {run.test_metrics()} nats  {time.perf_counter() - started:.0f} s", flush=True)
            self._known[path] = run
        return self._known[path]


@dataclass
class Picture:
    """What a picture is called, shows and needs.

    Args:
        draw: returns the figure, and a caption for the page, if it stands there.
        names: names of the runs that it shows.
        title: its heading on the page; empty for a picture of another page.
    """

    draw: Callable[[Runs, Path], tuple[Figure, str]]
    names: tuple[str, ...]
    title: str = ""


def door() -> tuple[Figure, Axes]:
    """Return a small figure for the first page of the book, with one plain axes over all of it, 3 x 2."""
    figure = Figure(figsize=(3, 2), dpi=200)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 3), ylim=(0, 2))
    axes.set_axis_off()
    return figure, axes


def door_data(_: Runs, __: Path) -> tuple[Figure, str]:
    figure, axes = door()
    rows = [("size", "kind", "rent"), ("52.5", "flat", "904"), ("71.0", "loft", "?"), ("38.0", "room", "615")]
    for row, texts in enumerate(rows):
        for place, text in enumerate(texts):
            x, y = 0.1 + 0.93 * place, 1.53 - 0.35 * row
            colour = {"?": "#ffe8c2"}.get(text, "white")
            axes.add_patch(Rectangle((x, y), 0.93, 0.35, facecolor=colour, edgecolor="#8a94a3"))
            axes.text(x + 0.465, y + 0.165, text, ha="center", va="center", fontsize=12)
    z = torch.linspace(-3, 3, 100)
    density = 0.38 * torch.exp(-z.square() / 2)
    axes.fill_between(2.425 + 0.16 * z, 0.08, 0.08 + density, color="#d9822b", alpha=0.6)
    axes.text(1.75, 0.2, "p(rent | size, kind)", ha="right", va="center", fontsize=11)
    return figure, ""


def door_learn(runs: Runs, _: Path) -> tuple[Figure, str]:
    figure, axes = door()
    z = torch.stack(torch.meshgrid(torch.linspace(1.5, -1.5, 5), torch.linspace(-2, 2, 8), indexing="ij"), -1)
    decoded = latent_space.decode(runs("fashion-vae").vae(), z.flip(-1).reshape(-1, 2))
    image = make_grid(decoded, nrow=8, padding=0)[0]
    axes.imshow(image, cmap="gray", extent=(0.2, 2.8, 0.3, 1.925), aspect="auto")
    axes.annotate("", (2.8, 0.17), (0.2, 0.17), arrowprops={"arrowstyle": "->"})
    axes.text(1.5, 0.09, "z", fontsize=12, ha="center", va="center", style="italic", backgroundcolor="white")
    return figure, ""


def door_check(_: Runs, __: Path) -> tuple[Figure, str]:
    figure, axes = door()
    for y, width, colour, text in ((1.45, 2.4, "#c9d6e6", "log p(x)"), (0.85, 1.65, "#6f9bd1", "ELBO")):
        axes.add_patch(Rectangle((0.3, y), width, 0.42, facecolor=colour))
        axes.text(0.3 + width / 2, y + 0.2, text, ha="center", va="center", fontsize=13)
    axes.add_patch(Rectangle((1.95, 0.85), 0.75, 0.42, facecolor="#ffe8c2", edgecolor="#d9822b", hatch="///"))
    arrow = {"arrowstyle": "->"}
    axes.annotate("KL(q(z | x) || p(z | x))", (2.32, 0.83), (1.5, 0.3), ha="center", fontsize=12, arrowprops=arrow)
    return figure, ""


def kinds(_: Runs, __: Path) -> tuple[Figure, str]:
    draw = np.random.RandomState(0)
    positive = draw.lognormal(0, 0.8, 2200)
    positive = positive[positive < 6][:2000]
    levels = draw.choice([0, 5, 10, 25], 2000, p=[0.4, 0.3, 0.2, 0.1])
    values = {
        "real": draw.normal(size=2000),
        "positive": positive,
        "zero-inflated": np.where(draw.uniform(size=2000) < 0.4, 0, positive),
        "below a limit": positive[positive > 0.5],
        "count": draw.negative_binomial(3, 0.4, 2000),
        "levels (ordinal)": levels,
    }
    figure = Figure(figsize=(7.2, 2.6), dpi=200, layout="constrained")
    for axes, (name, x) in zip(figure.subplots(2, 4).flat, values.items()):
        edges = 30 if x.dtype.kind == "f" else np.arange(x.max() + 2) - 0.5
        axes.hist(x, edges, color=PALETTE[0])
        axes.set_title(name, fontsize=10)
    limited, binary, category = figure.axes[3], figure.axes[6], figure.axes[7]
    limited.bar(0.25, (positive < 0.5).sum() * (5.5 / 30) / 0.5, 0.5, color="none", edgecolor=PALETTE[1], hatch="///")
    binary.bar(["0", "1"], [70, 30], 0.5, color=PALETTE[0])
    binary.set_title("binary", fontsize=10)
    category.bar(["cat", "dog", "fish"], [50, 35, 15], 0.6, color=PALETTE[0])
    category.set_title("categorical", fontsize=10)
    for axes in figure.axes:
        axes.set_yticks([])
        axes.tick_params(labelsize=8)
        axes.spines[["left", "right", "top"]].set_visible(False)
    return figure, ""


def rules(_: Runs, __: Path) -> tuple[Figure, str]:
    draw = np.random.default_rng(0)
    nights, price = draw.geometric(0.3, 600), draw.lognormal(4.5, 0.4, 600).round(2)
    data = DataFrame({"nights": nights, "price": price, "total": (nights * price).round(2)})
    shown = {"data": data}
    for title, option in {"draws": "auto", "draws with --rules none": "none"}.items():
        vae = pvae.VAEEstimator(random_state=0, config={"rules": option}).fit(data)
        shown[title] = vae.sample(600)
    figure = Figure(figsize=(7.2, 2.5), dpi=200, layout="constrained")
    for axes, (title, x) in zip(figure.subplots(1, 3, sharex=True, sharey=True), shown.items()):
        product = x["nights"] * x["price"]
        is_broken = (product - x["total"]).abs() > 0.0051
        axes.scatter(product, x["total"], 4, [PALETTE[int(one)] for one in is_broken], linewidths=0, rasterized=True)
        axes.set_title(f"{title}\n{is_broken.sum()} of {len(x)} break the rule", fontsize=9)
        axes.set_xlabel("nights x price", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["right", "top"]].set_visible(False)
    figure.axes[0].set_ylabel("total", fontsize=9)
    return figure, ""


def show(axes: Axes, images: Tensor, num_columns: int, title: str = "") -> None:
    """Show images in [0, 1] in rows."""
    axes.imshow(make_grid(images, num_columns, padding=1, pad_value=0.5).permute(1, 2, 0), interpolation="none")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def dots(axes: Axes, means: Tensor, labels: Tensor, title: str) -> None:
    """Show codes (N, 2), coloured by class, on two axes of the same scale."""
    colours = [PALETTE[label] for label in labels]
    axes.scatter(*means.T, s=1, c=colours, linewidths=0, rasterized=True, antialiased=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("z_1", fontsize=8)
    axes.set_ylabel("z_2", fontsize=8)
    axes.tick_params(labelsize=7)


def name_classes(axes: Axes, names: Sequence[str]) -> None:
    """Name the colours of the classes to the right of a plot."""
    handles = [axes.scatter([], [], s=12, color=colour) for colour in PALETTE]
    axes.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)


def codes_mnist(runs: Runs, _: Path) -> tuple[Figure, str]:
    entries = [entry_of(runs(name)) for name in ("mlp-2d", "conv-2d", "conv-2d-ae")]
    (figure,) = code_figures(entries).values()
    return figure, ""


def fashion_vae_scatter(runs: Runs, _: Path) -> tuple[Figure, str]:
    return pictures.scatter(runs("fashion-vae")), ""


def rows_of(named: dict[str, Tensor], title: str) -> Figure:
    """Return a row of images for each name."""
    num_columns = len(next(iter(named.values())))
    return figures.image_figure(torch.cat(list(named.values())), num_columns, title, list(named))


def mlp_2d_epochs(runs: Runs, _: Path) -> tuple[Figure, str]:
    rows, shown = {}, (*STAGES["mlp-2d"], RUNS["mlp-2d"].epochs)
    for epochs in shown:
        trained = runs("mlp-2d", epochs)
        batch = codes.examples(trained, 8)
        with trained.seeded():
            rows = {"test image": batch.x} | rows | {f"epoch {epochs}": latent_space.reconstruct(trained.vae(), batch)}
    figure = rows_of(rows, f"mlp-2d on {trained.data.title}\nmean of p(x | z), z ~ q(z | x)")
    bounds = {row.epoch: row for row in trained.metrics() if row.split == "test"}
    said = ", ".join(f"{bounds[epoch].elbo:.1f}" for epoch in shown)
    return figure, (
        "`--system mlp-2d` after 1, 24 and 50 epochs, which post 000 counts as 0, 23 and 49. "
        f"The test {bounds[1].bound} is {said} nats."
    )


def pytorch_example_epochs(runs: Runs, _: Path) -> tuple[Figure, str]:
    bands, losses = {}, []
    for epochs in (*STAGES["pytorch-example"], RUNS["pytorch-example"].epochs):
        trained = runs("pytorch-example", epochs)
        batch = codes.examples(trained, 8)
        with trained.seeded():
            samples, decoded = latent_space.sample(trained.vae(), 16), latent_space.reconstruct(trained.vae(), batch)
        last = trained.test_metrics()
        bands[f"epoch {epochs}: {last}"] = torch.cat([batch.x, decoded]), samples
        losses.append(last.posterior_mean_loss)
    title = "left: test images above the mean of p(x | z), z ~ q(z | x); right: the mean of p(x | z), z ~ p(z)"
    figure = figures.band_figure(bands, 8, f"pytorch-example on {trained.data.title}\n{title}")
    return figure, (
        "`--system pytorch-example`, the pictures of post 002. Its test loss, at the mean of q(z | x), is 119.41 "
        f"after 1 epoch and 93.35 after 50; here it is {losses[0]:.2f} and {losses[1]:.2f}."
    )


def fashion_ae_latents(runs: Runs, _: Path) -> tuple[Figure, str]:
    two, six = runs("fashion-ae"), runs("fashion-ae-6")
    batch = codes.examples(two, 10)
    rows = {"test image": batch.x}
    for trained, name in ((two, "2 latents"), (six, "6 latents")):
        rows[name] = latent_space.reconstruct(trained.vae(), batch)
    distortions = [trained.test_metrics().distortion for trained in (two, six)]
    return rows_of(rows, f"fashion-ae on {two.data.title}\nreconstructions"), (
        "The autoencoder of post 003, with 2 latents and with 6. The test distortion falls from "
        f"{distortions[0]:.1f} to {distortions[1]:.1f} nats."
    )


def decoded_figure(places: dict[str, tuple[pvae.Run, Tensor]], title: str) -> Figure:
    """Return for each model its codes with numbered points among them, above what the points decode to.

    Args:
        places: for each name the model and the points (P, 2).
        title: title of the figure.
    """
    figure = Figure(figsize=(4.3 * len(places), 6.3), dpi=200, layout="constrained")
    figure.suptitle(f"{title}\ndots: codes of test images; below, what the decoder makes of each number", fontsize=9)
    grid = figure.subplots(2, len(places), height_ratios=(3.6, 2), squeeze=False)
    for (upper, lower), (name, (trained, z)) in zip(grid.T, places.items()):
        dots(upper, codes.codes_of(trained, "test"), codes.classes(trained)[1], name)
        upper.scatter(*z.T, s=0)  # so that the axes reach the points
        images, num_columns = latent_space.decode(trained.vae(), z), (len(z) + 1) // 2
        show(lower, images, num_columns)
        box = {"facecolor": "white", "edgecolor": "black", "boxstyle": "circle,pad=0.15"}
        for place, point in enumerate(z.tolist()):
            row, column = divmod(place, num_columns)
            corner = column * (images.shape[-1] + 1) + 4, row * (images.shape[-2] + 1) + 4
            for axes, at in ((upper, point), (lower, corner)):
                axes.annotate(str(place + 1), at, fontsize=6, ha="center", va="center", bbox=box)
    handles = [upper.scatter([], [], s=12, color=colour) for colour in PALETTE]
    names = trained.dataset().label_names
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def holes(runs: Runs, _: Path) -> tuple[Figure, str]:
    places, farthest = {}, []
    for name in ("fashion-ae", "fashion-vae"):
        trained = runs(name)
        means = codes.codes_of(trained, "train")
        source = (
            trained.vae().prior() if trained.vae().has_density else MultivariateNormal(means.mean(0), means.T.cov())
        )
        with trained.seeded():
            draws = source.sample((1000,))
        distances = torch.cdist(draws, means).min(1).values / means.std(0).mean()
        points = draws[distances.argsort(descending=True)[:8]]
        places[f"{name}: draws of {'its prior' if trained.vae().has_density else 'a Normal fitted to its codes'}"] = (
            trained,
            points,
        )
        farthest.append((distances > 0.1).float().mean().item())
    figure = decoded_figure(places, "of 1,000 draws, the eight that lie farthest from the code of any training image")
    return figure, (
        "Draws far from the code of any training image: the autoencoder's are from a Normal fitted to its codes, the "
        f"VAE's from its prior. Of 1,000 draws each, {farthest[0]:.0%} and {farthest[1]:.0%} are farther than a tenth "
        "of the codes' standard deviation."
    )


def between_classes(runs: Runs, _: Path) -> tuple[Figure, str]:
    places = {}
    for name in ("fashion-ae", "fashion-vae"):
        trained = runs(name)
        means, labels = codes.codes_of(trained, "test"), codes.classes(trained)[1]
        first, last = (means[labels == label].median(0).values for label in (1, 9))
        places[name] = trained, torch.lerp(first, last, torch.linspace(0, 1, 10)[:, None])
    return decoded_figure(places, "from the median of the trousers' codes to that of the ankle boots'"), (
        "What the decoders show between two classes, a question of post 003: on a straight line from the median code "
        "of the trousers to that of the ankle boots."
    )


def beta_samples(runs: Runs, _: Path) -> tuple[Figure, str]:
    rows, said = {}, []
    for beta in BETAS:
        trained = runs(f"beta-{beta}")
        with trained.seeded():  # the same draws of z for all
            rows[f"beta = {beta:g}"] = latent_space.sample(trained.vae(), 12)
        last = trained.test_metrics()
        said.append(f"{beta:g}: {last.rate:.1f} and {last.distortion:.1f}")
    title = f"deep-bayes with 10 latents and --elbo analytic on {trained.data.title}, epoch {last.epoch}"
    return rows_of(rows, f"{title}\nmean of p(x | z) at the same 12 draws z ~ p(z)"), (
        "Beta weighs the rate in the loss. A small beta leaves much of the prior without codes, so that more samples "
        f"look like no digit. Beta, rate and distortion in nats: {'; '.join(said)}."
    )


def collapse(runs: Runs, _: Path) -> tuple[Figure, str]:
    config, rates = RUNS["deep-bayes"], []
    epochs = range(config.epochs + 1)
    for _epoch, vae, data in train_in_memory(config, epochs):
        with torch.no_grad():
            q = vae.posterior(data.test.float() / 255).base_dist
            kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
        rates.append(kl.mean(0))
    rates = torch.stack(rates)  # (epochs, latents)
    is_used = rates[-1] > 0.05
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for used, colour in ((True, PALETTE[0]), (False, PALETTE[1])):
        lines = axes.plot(epochs, rates[:, is_used == used], color=colour, linewidth=1, alpha=0.8)
        name = "above" if used else "below"
        for line in lines[:1]:
            line.set_label(f"{len(lines)} latents that end {name} 0.05 nats")
    axes.set(xlabel="epoch", ylabel="rate of a latent, nats per datum (linear below 0.1)")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"deep-bayes, --elbo analytic, on {data.title}: KL(q || p) of each latent, test images", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    came_back = is_used & (rates[3:] < 0.05).any(0)
    return figure, (
        f"Of the {len(is_used)} latents of `--system deep-bayes`, {int((~is_used).sum())} end with a rate below 0.05 "
        "nats: their posterior is nearly the prior, and the decoder learns nothing from them. "
        f"{int(came_back.sum())} of the others had such a rate at epoch 3 or later."
    )


def graph(runs: Runs, _: Path) -> tuple[Figure, str]:
    run, figure = runs("deep-bayes"), Figure(figsize=(5.2, 2.4), layout="constrained")
    arrows = {"model": (0.27, 0.73), "guide": (0.73, 0.27)}  # the height of the tip, then of the other end
    for axes, (name, (tip, tail)) in zip(figure.subplots(1, 2), arrows.items()):
        with pyro.get_param_store().scope():
            found = get_model_relations(getattr(run.vae(), name), tuple(codes.examples(run, 1)))["sample_dist"]
        for height, site, colour in ((0, "x", "#c0c0c0"), (1, "z", "white")):
            axes.add_patch(Circle((0, height), 0.26, facecolor=colour, edgecolor="black"))
            axes.text(0, height, site, ha="center", va="center")
            text = f"{site} ~ {found[site]}" if site in found else f"{site} is given"
            axes.text(0.75, height, text, va="center", fontsize=9)
        axes.annotate("", (0, tip), (0, tail), arrowprops={"arrowstyle": "-|>", "facecolor": "black"})
        axes.add_patch(Rectangle((-0.5, -0.75), 1, 2.2, fill=False))
        axes.text(0.45, -0.7, "data", ha="right", fontsize=8)
        axes.set(xlim=(-0.6, 2.4), ylim=(-0.8, 1.5), aspect="equal")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    return figure, (
        "The sites of model and guide, as `pyro.infer.inspect.get_model_relations` finds them; x is grey, since it is "
        "observed. Pyro sees no x in the guide, which is a function of it; that arrow is added here. "
        "`pyro.render_model(vae.model, (x,), render_distributions=True)` draws such a graph."
    )


def mlp_2d_codes(runs: Runs, _: Path) -> tuple[Figure, str]:
    config, epochs = RUNS["mlp-2d"], [epoch for epoch in (0, 1, 2, 4, 8, 16) if epoch <= RUNS["mlp-2d"].epochs]
    figure, shown = Figure(figsize=(8.6, 5.2), dpi=200, layout="constrained"), {}
    for axes, (epoch, vae, data) in zip(figure.subplots(2, 3).flat, train_in_memory(config, epochs)):
        shown[axes] = latent_space.encode(vae, preparation_of(config).x_of(data.test))
        dots(axes, shown[axes], data.test_labels, f"epoch {epoch}")
    limit = max(means.abs().max().item() for means in shown.values())
    for axes in shown:
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set_aspect("equal", adjustable="box")
    name_classes(figure.axes[2], data.label_names)
    figure.suptitle(f"mlp-2d on {data.title}: means of q(z | x) of the test images", fontsize=9)
    first = shown[figure.axes[0]]
    return figure, (
        "The codes of `--system mlp-2d` before training, where all lie within "
        f"{torch.cdist(first, first.mean(0, keepdim=True)).max():.2f} of their mean, and after some of its epochs, "
        "whose weights `pvae.training.fit.train_in_memory` yields."
    )


PICTURES = {
    "door-data": Picture(door_data, ()),
    "door-learn": Picture(door_learn, ("fashion-vae",)),
    "door-check": Picture(door_check, ()),
    "kinds": Picture(kinds, ()),
    "rules": Picture(rules, ()),
    "codes-mnist": Picture(codes_mnist, ("mlp-2d", "conv-2d", "conv-2d-ae")),
    "fashion-vae-scatter": Picture(fashion_vae_scatter, ("fashion-vae",)),
    "mlp-2d-epochs": Picture(mlp_2d_epochs, ("mlp-2d",), "Reconstructions as training goes on"),
    "mlp-2d-codes": Picture(mlp_2d_codes, (), "Codes as training goes on"),
    "pytorch-example-epochs": Picture(pytorch_example_epochs, ("pytorch-example",), "After one epoch and after fifty"),
    "collapse": Picture(collapse, (), "Latents that collapse"),
    "beta-samples": Picture(beta_samples, tuple(f"beta-{beta}" for beta in BETAS), "Samples for several beta"),
    "fashion-ae-latents": Picture(fashion_ae_latents, ("fashion-ae", "fashion-ae-6"), "Two latents and six"),
    "between-classes": Picture(between_classes, ("fashion-ae", "fashion-vae"), "Between classes"),
    "holes": Picture(holes, ("fashion-ae", "fashion-vae"), "Holes"),
    "graph": Picture(graph, ("deep-bayes",), "The graph of model and guide"),
}
NOTEBOOKS = {  # the runs that each takes from the cache; it trains others itself
    "what-is-a-vae": (),
    "deep-bayes": (),
    "latent-space": ("fashion-ae", "fashion-vae", "mlp-2d"),
    "estimators": (),
    "bits": (),
    "distributions": (),
    "gaps": (),
}


def make_picture(name: str, runs: Runs, folder: Path) -> None:
    """Draw a picture, and put its caption on the page of pictures."""
    picture = PICTURES[name]
    path = folder / "pictures" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, caption = picture.draw(runs, path)
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same picture is the same file
        figure.savefig(path, metadata={"Date": None})
    print(f"{path}: {path.stat().st_size // 1000} kB", flush=True)
    if picture.title:
        write_section(
            folder / "pictures.md",
            picture.title,
            f"{textwrap.fill(caption, 160)}\n\n![{picture.title}](pictures/{path.name})\n",
        )


def write_section(page: Path, title: str, text: str) -> None:
    """Put a section on the page of pictures, in place of the earlier one of that title."""
    _, *old = re.split(r"(?m)^## ", page.read_text()) if page.exists() else [""]
    sections = {title: text}
    for section in old:
        heading, _, body = section.partition("\n\n")
        sections.setdefault(heading, body)
    head = "# Pictures\n\n[`make.py`](make.py) trains what these pictures show, draws them, and writes this page.\n"
    made = [picture.title for picture in PICTURES.values() if picture.title in sections]
    order = [*made, *(heading for heading in sections if heading not in made)]
    body = (f"\n## {heading}\n\n{sections[heading].rstrip()}\n" for heading in order)
    page.write_text(head + "".join(body))


def make_notebook(name: str, runs: Runs, folder: Path) -> None:
    """Execute a notebook, with the finished runs of the cache, and store its outputs in it."""
    for needed in NOTEBOOKS[name]:
        runs(needed)
    os.environ["PVAE_RUNS"] = str(runs.cache)
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, which Pyro imports
    notebook, started = nbformat.read(HERE / f"{name}.ipynb", as_version=4), time.perf_counter()
    NotebookClient(notebook, timeout=1800, record_timing=False, coalesce_streams=True).execute()
    content = nbformat.writes(notebook) + "\n"
    (folder / f"{name}.ipynb").write_text(content)
    print(f"{name}.ipynb: {len(content) // 1000} kB  {time.perf_counter() - started:.0f} s", flush=True)


def make_moving_picture(folder: Path) -> None:
    """Record the page of `pvae explore fashion-vae`: the pointer moves on its map, and a VAE trains 1,400 steps."""
    options = webdriver.ChromeOptions()
    for option in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1000,900"):
        options.add_argument(f"--{option}")
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as place, webdriver.Chrome(options, driver) as browser:
        page = Path(place) / "page.html"
        page.write_text(explorer_page(pvae.Run.open("fashion-vae")), "utf-8")
        browser.get(page.as_uri())
        WebDriverWait(browser, 60).until(lambda one: one.execute_script("return window.pvae !== undefined"))

        def shot() -> Image.Image:
            browser.execute_script("document.querySelector('main').scrollIntoView();")
            picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            return picture.crop((15, 0, 985, 700)).resize((580, 419), Image.Resampling.LANCZOS)

        shown = browser.find_element("id", "map")
        radius = 0.3 * shown.size["width"]
        frames = [shot()]
        for angle in torch.linspace(0, 2 * torch.pi, 15).tolist():
            x, y = radius * math.cos(angle), 0.7 * radius * math.sin(angle)
            ActionChains(browser, 0).move_to_element_with_offset(shown, round(x), round(y)).perform()
            frames.append(shot())
        num_moves = len(frames)
        browser.execute_script(
            "let seed = 1; Math.random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;"
            "['tab-train', 'new-weights'].forEach((id) => document.getElementById(id).click());"
        )
        for _ in range(15):
            browser.execute_script(
                "const {training} = pvae, {length} = training.history;"
                "while (training.history.length === length) training.task.next();"
            )
            frames.append(shot())
    size, last = (580, 419), len(frames) - 1
    sheet = Image.new("RGB", (size[0], 4 * size[1]))  # one palette for all, so that what stays the same takes no bytes
    for part in range(4):
        sheet.paste(frames[part * last // 3], (0, size[1] * part))
    # One index is left for transparent pixels, by which Pillow writes only what differs from the frame before.
    palette = sheet.quantize(31, Image.Quantize.MAXCOVERAGE, kmeans=3)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(
        folder / "pictures" / MOVING,
        save_all=True,
        append_images=others,
        loop=0,
        optimize=True,
        duration=[350] * num_moves + [250] * (last - num_moves) + [1500],
    )


def main() -> None:
    """Read the arguments, and make what they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, help="where the data are (default: they are searched for as in training)")
    add("--cache", type=Path, default=HERE.parent / "runs" / "notebooks", help="the runs (default: runs/notebooks)")
    add("--out", type=Path, default=HERE, help="where to write (default: this folder)")
    names = [*PICTURES, MOVING, *(f"{name}.ipynb" for name in NOTEBOOKS)]
    add("--only", default=",".join(names), help="names, with commas")
    add("--list", action="store_true", help="list the names and what each needs")
    arguments = parser.parse_args()
    needs = {name: picture.names for name, picture in PICTURES.items()}
    needs |= {MOVING: ()} | {f"{name}.ipynb": names for name, names in NOTEBOOKS.items()}
    if arguments.list:
        print("\n".join(f"{name:24} {', '.join(names)}" for name, names in needs.items()))
        return
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in needs]:
        parser.error(f"there is no {unknown[0]}: --list has the names")
    if arguments.data_dir:
        os.environ["PVAE_DATA"] = str(arguments.data_dir.resolve())  # is searched by all that loads data below
    runs = Runs(arguments.cache.resolve())
    for name in names:
        if name in PICTURES:
            make_picture(name, runs, arguments.out)
        elif name == MOVING:
            make_moving_picture(arguments.out)
        else:
            make_notebook(name.removesuffix(".ipynb"), runs, arguments.out)


if __name__ == "__main__":
    main()
