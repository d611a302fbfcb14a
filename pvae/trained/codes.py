"""The data of a run as its VAE takes them, and their codes, both kept with the run; what codes are compared with."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal

from pvae.data.batch import Batch
from pvae.data.dataset import Dataset, random_subset
from pvae.distributions.joint import Joint
from pvae.models.priors import StandardNormalPrior
from pvae.runs.run import Run, cached
from pvae.trained.latent_space import encode
from pvae.trained.latent_statistics import LatentReport, latent_statistics, nearest_neighbour_accuracy

__all__ = [
    "classes",
    "codes_as_data",
    "codes_of",
    "examples",
    "given_y",
    "has_normal_prior",
    "is_plane",
    "latent_names",
    "latent_report",
    "prior",
    "run_batch",
    "test_draws",
    "top_layer_draws",
]

_CHUNK = 1000


@cached
def run_batch(run: Run, split: str) -> Batch:
    """Return the data of a split as the VAE takes them, with their labels if it was trained given labels."""
    return Batch(run.preparation.pixels(run.dataset().splits[split], split), given_y(run, split))


def given_y(run: Run, split: str) -> Tensor | None:
    """Return the labels of a split, if the run was trained given labels."""
    return run.dataset().labels[split] if run.is_given_labels else None


def examples(run: Run, count: int) -> Batch:
    """Return random test data, x (count, *D), the same in every call, with their labels as in `run_batch`."""
    batch = run_batch(run, "test")
    return next(batch.rows(random_subset(len(batch), count, seed=0)).split(count))


@cached
def codes_of(run: Run, split: str) -> Tensor:
    """Return the means of q(z | x) of the data of a split, (N, L)."""
    return encode(run.vae(), run_batch(run, split))


def codes_as_data(run: Run) -> Dataset:
    """Return the codes of all data of a run as data with the same labels, on which a second VAE can be trained.

    The codes are the means of q(z | x), (N, L). With `Config.labels` the second VAE is the model M2 of the stack M1+M2
    (Kingma et al., arXiv:1406.5298), whose M1 is the run.

    Raises:
        InputError: the run's data cannot be found.
    """
    data = run.dataset()
    means = {split: codes_of(run, split) for split in data.splits}
    return Dataset(
        f"codes of {data.name}", means["train"], means["test"], data.train_labels, data.test_labels, data.label_names,
        valid=means.get("valid"), valid_labels=data.valid_labels,
    )  # fmt: skip


@cached
def test_draws(run: Run) -> Tensor:
    """Return draws from the aggregate posterior: one draw of q(z | x) for each test datum, (M, L)."""
    with run.seeded(), torch.no_grad():
        return torch.cat([run.vae().posterior(*part).sample() for part in run_batch(run, "test").split(_CHUNK)])


def top_layer_draws(run: Run) -> Tensor:
    """Return `test_draws` of the latents that `prior` describes: all latents, or those of the top layer."""
    return test_draws(run)[:, -prior(run).event_shape[0] :]


def prior(run: Run) -> TorchDistribution:
    """Return p(z): of several stochastic layers the prior of the top layer, of a label and a latent that of the latent.

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
    """Return the classes of training and test data; None if the data have no labels, or attributes instead."""
    labels = run.dataset().train_labels, run.dataset().test_labels
    return labels if all(part is not None and part.dim() == 1 for part in labels) else (None, None)


def latent_report(run: Run) -> LatentReport:
    """Return statistics of `top_layer_draws`, and the accuracy of a classifier of the codes.

    A VAE given labels has no accuracy, because its codes depend on the labels.
    """
    accuracy = None
    train_labels, test_labels = classes(run)
    if train_labels is not None and test_labels is not None and not run.is_given_labels:
        train, test = train_labels >= 0, test_labels >= 0
        parts = codes_of(run, "train")[train], train_labels[train], codes_of(run, "test")[test], test_labels[test]
        accuracy = nearest_neighbour_accuracy(*parts) if train.any() and test.any() else None
    return latent_statistics(top_layer_draws(run), accuracy, has_normal_prior(run))
