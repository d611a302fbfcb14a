"""The codes of a run's images, computed once and kept with the run; their prior, names and classes."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal

from pvae.core.errors import InputError
from pvae.data.batch import given_parts, given_rows
from pvae.data.dataset import Dataset, random_subset
from pvae.data.preparation import Pixels
from pvae.distributions.joint import Joint
from pvae.models.priors import StandardNormalPrior
from pvae.runs.run import Run, kept
from pvae.trained.latent_space import LatentReport, encode, latent_statistics, nearest_neighbour_accuracy
from pvae.vae import VAE

__all__ = [
    "classes",
    "codes_as_data",
    "examples",
    "given_labels",
    "given_one",
    "given_y",
    "has_normal_prior",
    "is_plane",
    "latent_names",
    "latent_report",
    "prior",
    "require",
    "test_codes",
    "test_draws",
    "test_images",
    "top_layer_draws",
    "train_codes",
    "train_images",
]

_CHUNK = 1000


@kept
def train_images(run: Run) -> Pixels:
    """Return the training images as the VAE takes them."""
    return run.preparation.pixels(run.dataset().train, "train")


@kept
def test_images(run: Run) -> Pixels:
    """Return the test images as the VAE takes them."""
    return run.preparation.pixels(run.dataset().test)


def given_y(run: Run, split: str = "test") -> Tensor | None:
    """Return the labels of a split, if the run was trained given labels."""
    return run.dataset().labels[split] if run.is_given_labels else None


def given_labels(run: Run, split: str = "test") -> VAE:
    """Return the VAE given the labels of a split, if it was trained given labels."""
    return run.vae().given(given_y(run, split))


def given_one(run: Run, row: int = 0) -> VAE:
    """Return the VAE given the label of one test image, for whatever is decoded, if it was trained given labels."""
    vae = given_labels(run)
    return given_rows(vae, slice(row, row + 1))


def examples(run: Run, count: int) -> tuple[VAE, Tensor]:
    """Return random test images x (count, C, H, W), the same ones in every call, and the VAE given their labels."""
    images, vae = test_images(run).images, given_labels(run)
    chosen = random_subset(len(images), count, seed=0)
    return given_rows(vae, chosen), run.preparation.x(images[chosen])


@kept
def train_codes(run: Run) -> Tensor:
    """Return the means of q(z | x) of the training images, (N, L)."""
    return encode(given_labels(run, "train"), train_images(run))


@kept
def test_codes(run: Run) -> Tensor:
    """Return the means of q(z | x) of the test images, (M, L)."""
    return encode(given_labels(run), test_images(run))


def codes_as_data(run: Run) -> Dataset:
    """Return the codes of all data of a run as data with the same labels, of which a second VAE may be trained.

    The codes are the means of q(z | x), (N, L). With `Config.labels` the second VAE is the model M2 of the stack M1+M2
    (Kingma et al., arXiv:1406.5298), whose M1 is the run.

    Raises:
        InputError: the run's data cannot be found.
    """
    data = run.dataset()
    means = {
        split: encode(given_labels(run, split), run.preparation.pixels(x, split)) for split, x in data.splits.items()
    }
    return Dataset(
        f"codes of {data.name}", means["train"], means["test"], data.train_labels, data.test_labels, data.label_names,
        valid=means.get("valid"), valid_labels=data.valid_labels,
    )  # fmt: skip


@kept
def test_draws(run: Run) -> Tensor:
    """Return draws from the aggregate posterior: one draw of q(z | x) for each test image, (M, L)."""
    with run.seeded(), torch.no_grad():
        parts = given_parts(given_labels(run), test_images(run), _CHUNK)
        return torch.cat([vae.posterior(part).sample() for vae, part in parts])


def top_layer_draws(run: Run) -> Tensor:
    """Return `test_draws` of the latents that `prior` is the prior of: all latents, or those of the top layer."""
    return test_draws(run)[:, -prior(run).event_shape[0] :]


def prior(run: Run) -> TorchDistribution:
    """Return p(z); with several stochastic layers, the prior of the top layer; of a label and a latent, of the latent.

    An autoencoder has no prior: its codes are compared with N(0, 1).
    """
    p_z = run.vae().prior()
    if not run.vae().has_density:
        return StandardNormalPrior(p_z.event_shape[0])()
    return p_z.top if isinstance(p_z, Joint) else p_z


def has_normal_prior(run: Run) -> bool:
    """Return whether `prior` is N(0, 1) in each latent dimension."""
    p_z = prior(run)
    base = p_z.base_dist if isinstance(p_z, Independent) else None
    return isinstance(base, Normal) and bool(((base.loc == 0) & (base.scale == 1)).all())


def is_plane(run: Run) -> bool:
    """Return whether the latent is two-dimensional, with one stochastic layer."""
    p_z = run.vae().prior()
    return p_z.event_shape == (2,) and not isinstance(p_z, Joint)


def latent_names(run: Run) -> list[str]:
    """Return the names of the latent dimensions: z_1, z_2, ...; with several stochastic layers z1_1, ..., z2_1, ...."""
    p_z = run.vae().prior()
    layers = zip(p_z.names, p_z.sizes) if isinstance(p_z, Joint) else [("z", p_z.event_shape[0])]
    return [f"{layer}_{1 + d}" for layer, size in layers for d in range(size)]


def classes(run: Run) -> tuple[Tensor | None, Tensor | None]:
    """Return the classes of training and test images; None if the data have no labels, or attributes instead."""
    labels = run.dataset().train_labels, run.dataset().test_labels
    return labels if all(part is not None and part.dim() == 1 for part in labels) else (None, None)


def latent_report(run: Run) -> LatentReport:
    """Return statistics of `top_layer_draws`, and the accuracy of a classifier of the codes.

    There is none for a VAE given labels, whose codes depend on them.
    """
    accuracy = None
    train_labels, test_labels = classes(run)
    if train_labels is not None and test_labels is not None and not run.is_given_labels:
        train, test = train_labels >= 0, test_labels >= 0
        parts = train_codes(run)[train], train_labels[train], test_codes(run)[test], test_labels[test]
        accuracy = nearest_neighbour_accuracy(*parts) if train.any() and test.any() else None
    return latent_statistics(top_layer_draws(run), accuracy, has_normal_prior(run))


def require(run: Run, has: bool, what: str, advice: str = "") -> None:
    """Raise an `InputError` that names what a picture needs, and ends with the advice, unless `has` is true."""
    if not has:
        raise InputError(f"this picture needs {what}, which {run.path} lacks{advice}")
