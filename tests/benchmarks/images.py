"""What a default training of images learns, beside other likelihoods of the same network, and beside files.

    python tests/benchmarks/images.py --data-dir DIR [--only digits clothes faces] [--epochs N]

Images: 5,000 of MNIST, 5,000 of Fashion-MNIST, and 2,000 faces of CelebA at 64 x 52, where DIR has them. Each side is a
training with the options that `images_config` chooses, but for the likelihood; a tenth of the images are test images.

- "bits": per dimension of test images, by the ELBO;
- "off": root mean square of a reconstruction from the mean of q(z | x) beside its image, in levels of 255;
- "neighbours": share of test images whose label is that of most of the 10 training images with the nearest codes;
- "epoch", "all": seconds of an epoch (median), and of the training.

PNG and WebP are means over 300 test images, without headers.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import pvae
from pvae.core.batch import Batch
from pvae.data.dataset import Dataset
from pvae.evaluation.measures.files import bits_as
from pvae.trained.latent_space import mean_of, posteriors
from pvae.trained.scores import elbo_terms

SIDES = {
    "one logistic": {"likelihood": "discretized-logistic"},
    "mixture, independent noise": {"noise_from_neighbours": 0.0},
    "neighbours, no weight of the image": {"image_weight": 0.0},
    "default": {},
}


def images(name: str, data_dir: str) -> Dataset | None:
    """Return a data set, None where its files are not there."""
    if name == "faces":
        folder = Path(data_dir) / "celeba" / "img_align_celeba"
        if not folder.exists():
            return None
        return first(pvae.read(f"folder:{folder}", image_size="64"), 2000)
    return first(pvae.read({"digits": "mnist", "clothes": "fashion-mnist"}[name], data_dir=data_dir), 5000)


def first(data: Dataset, count: int) -> Dataset:
    """Return the first training images, of which the last tenth are test images."""
    x = data.train[:count]
    cut = count - count // 10
    if data.train_labels is None:
        return Dataset(data.name, x[:cut], x[cut:])
    labels = data.train_labels[:count]
    return Dataset(data.name, x[:cut], x[cut:], train_labels=labels[:cut], test_labels=labels[cut:])


def codes(vae: pvae.VAE, x: Tensor) -> Tensor:
    """Return the means of q(z | x)."""
    return torch.cat([mean_of(q) for q in posteriors(vae, Batch(x))])


@torch.no_grad()
def row(name: str, side: str, data: Dataset, epochs: int | None) -> None:
    """Train and print a row."""
    options = dict(SIDES[side])
    if epochs:
        options |= {"epochs": epochs, "patience": 0}
    config = pvae.images_config(data, **options)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        run = pvae.fit(config, data, out=Path(folder) / "run")
        vae = run.vae()
        seconds = [line.seconds for line in run.metrics() if line.split == "train"]
    whole = time.perf_counter() - started
    train, test = (x.float() / 255 for x in (data.train, data.test))
    bits = -elbo_terms(vae, test)["elbo"].mean().item() / test[0].numel() / math.log(2)
    of_test = codes(vae, test)
    off = 255 * (vae.likelihood(of_test).mean - test).square().mean().sqrt().item()
    near = ""
    if data.train_labels is not None:
        nearest = torch.cdist(of_test, codes(vae, train)).topk(10, largest=False).indices
        votes = data.train_labels[nearest].mode(-1).values
        near = f"{100 * (votes == data.test_labels).float().mean().item():.1f} %"
    epoch = median(seconds)
    print(f"| {name} | {side} | {bits:.3f} | {off:.1f} | {near} | {epoch:.2f} | {whole:.0f} |", flush=True)


def main() -> None:
    """Print a row for each data set and side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, metavar="DIR")
    parser.add_argument(
        "--only", nargs="+", choices=("digits", "clothes", "faces"), default=["digits", "clothes", "faces"]
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES], metavar="SIDE")
    parser.add_argument("--epochs", type=int, help="by default as many as a default training has, with its patience")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| images | side | bits | off | neighbours | epoch, s | all, s |\n|---|---|---|---|---|---|---|")
    for name in arguments.only:
        data = images(name, arguments.data_dir)
        if data is None:
            print(f"| {name} | not there | | | | | |")
            continue
        x = data.test[:300].float() / 255
        print(f"| {name} | PNG; lossless WebP | {bits_as(x, 'PNG')}; {bits_as(x, 'WEBP')} | | | | |", flush=True)
        for side in arguments.sides:
            row(name, side, data, arguments.epochs)


if __name__ == "__main__":
    main()
