"""The data of a run as its VAE takes them, and their codes, both kept with the run; measures of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Normal

from pvae.core.batch import Batch
from pvae.data.dataset import Dataset, random_subset
from pvae.distributions.joint import Joint
from pvae.marginal.chunks import data_at_once
from pvae.models.priors import StandardNormalPrior
from pvae.runs.run import Run, cached
from pvae.tables.schema import UNKNOWN
from pvae.trained.latent_space import encode


@cached
def run_batch(run: Run, split: str) -> Batch:
    """Return the data of a split as the VAE takes them, with their labels if it was trained given labels."""
    return Batch(run.preparation.x_of(run.dataset().splits[split], split), given_y(run, split))


def given_y(run: Run, split: str) -> Tensor | None:
    """Return the labels of a split, if the run was trained given labels."""
    if not run.is_given_labels:
        return None
    return run.dataset().labels[split]


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


def codes_as_arrays(run: Run) -> dict[str, Any]:
    """Return `codes_as_data` as arrays by their names, with the names of the classes: what "array:FILE" reads."""
    data = codes_as_data(run)
    arrays: dict[str, Any] = {split: codes.numpy() for split, codes in data.splits.items()}
    if data.label_names and not data.has_attributes:
        names = np.array([*data.label_names, UNKNOWN])  # the last name is that of -1
        arrays |= {f"{split}_labels": names[labels.numpy()] for split, labels in data.labels.items()}
    return arrays


@cached
def test_draws(run: Run) -> Tensor:
    """Return draws from the aggregate posterior: one draw of q(z | x) for each test datum, (M, L)."""
    batch = run_batch(run, "test")
    vae = run.vae()
    size = -(-data_at_once(vae, batch) // 16) * 16  # by 16, torch draws the same noise as for all data at once
    with run.seeded(), torch.no_grad():
        return torch.cat([vae.posterior(*part).sample() for part in batch.split(size)])


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
    if isinstance(p_z, Joint):
        return p_z.top
    return p_z


def has_normal_prior(run: Run) -> bool:
    """Return whether `prior` is N(0, 1) in each latent dimension."""
    base = getattr(prior(run), "base_dist", None)
    return isinstance(base, Normal) and bool(((base.loc == 0) & (base.scale == 1)).all())


def is_plane(run: Run) -> bool:
    """Return whether the latent is two-dimensional, with one stochastic layer."""
    p_z = run.vae().prior()
    return p_z.event_shape == (2,) and not isinstance(p_z, Joint)


def latent_names(run: Run) -> list[str]:
    """Return the names of the latent dimensions: z_1, z_2, ...; with several stochastic layers z1_1, ..., z2_1, ...."""
    p_z = run.vae().prior()
    sizes = {"z": p_z.event_shape[0]}
    if isinstance(p_z, Joint):
        sizes = dict(zip(p_z.names, p_z.sizes))
    return [f"{layer}_{1 + d}" for layer, size in sizes.items() for d in range(size)]


def classes(run: Run) -> tuple[Tensor | None, Tensor | None]:
    """Return the classes of training and test data; None if the data have no labels, or attributes instead."""
    data = run.dataset()
    for labels in (data.train_labels, data.test_labels):
        if labels is None or labels.dim() != 1:
            return None, None
    return data.train_labels, data.test_labels


def nearest_neighbour_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_neighbours: int = 10
) -> float:
    """Return the accuracy of a k-nearest-neighbour classifier, from training codes to test codes.

    Args:
        train: training codes (N, L).
        train_labels: classes of the training codes (N,).
        test: test codes (M, L).
        test_labels: classes of the test codes (M,).
        num_neighbours: k; all N training codes where there are fewer.
    """
    from sklearn.neighbors import KNeighborsClassifier  # slow to import, and needed only here

    classifier = KNeighborsClassifier(min(num_neighbours, len(train))).fit(train, train_labels)
    return float(classifier.score(test, test_labels))


@dataclass(frozen=True, kw_only=True)
class LatentReport:
    """Statistics of codes, to compare each latent dimension with N(0, 1) and the codes with classes.

    Args:
        mean: the mean of each latent dimension.
        std: the standard deviation of each latent dimension.
        kolmogorov_smirnov: the largest distance between the CDF of each dimension and that of N(0, 1); None if the
            prior is another one.
        accuracy: accuracy of a 10-nearest-neighbour classifier from training to test codes; None without classes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kolmogorov_smirnov: tuple[float, ...] | None
    accuracy: float | None

    def __str__(self) -> str:
        """Return the greatest distance from N(0, 1) and the accuracy, each if there is one."""
        parts = []
        if self.kolmogorov_smirnov:
            most = max(self.kolmogorov_smirnov)
            parts.append(f"Kolmogorov-Smirnov distance of a dimension from N(0, 1) {most:.3f} at most")
        if self.accuracy is not None:
            parts.append(f"10-nearest-neighbour accuracy {self.accuracy:.3f}")
        return "; ".join(parts)


def latent_statistics(codes: Tensor, accuracy: float | None = None, is_prior_normal: bool = True) -> LatentReport:
    """Return statistics of draws from the aggregate posterior.

    Args:
        codes: the draws, (N, L).
        accuracy: a classifier's accuracy, for the report.
        is_prior_normal: whether the prior is N(0, 1), so that the draws are compared with it.
    """
    from scipy.stats import kstest  # slow to import, and needed only here

    distances = None
    if is_prior_normal:
        distances = tuple(float(kstest(column.numpy(), "norm").statistic) for column in codes.T)
    return LatentReport(
        mean=tuple(codes.mean(0).tolist()),
        std=tuple(codes.std(0).tolist()),
        kolmogorov_smirnov=distances,
        accuracy=accuracy,
    )


def latent_report(run: Run) -> LatentReport:
    """Return statistics of `top_layer_draws`, and the accuracy of a classifier of the codes.

    A VAE given labels has no accuracy, because its codes depend on the labels.
    """
    accuracy = None
    train_labels, test_labels = classes(run)
    if train_labels is not None and test_labels is not None and not run.is_given_labels:
        train = train_labels >= 0
        test = test_labels >= 0
        if train.any() and test.any():
            accuracy = nearest_neighbour_accuracy(
                codes_of(run, "train")[train], train_labels[train], codes_of(run, "test")[test], test_labels[test]
            )
    return latent_statistics(top_layer_draws(run), accuracy, has_normal_prior(run))
