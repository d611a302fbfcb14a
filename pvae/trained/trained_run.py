"""A trained run: a run folder with its VAE and its data, and the codes, labels and pixels computed from them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal

from pvae.config.config import Config
from pvae.core.errors import InputError, check_name
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, random_subset
from pvae.data.preparation import Pixels, Preparation
from pvae.distributions.hierarchy import Hierarchy
from pvae.models.build import build_vae
from pvae.models.priors import StandardNormalPrior
from pvae.runs.data import data_of
from pvae.runs.run import Run
from pvae.trained.latent_space import (
    LatentReport,
    attribute_vector,
    decode,
    encode,
    nearest_neighbour_accuracy,
    report,
)
from pvae.vae import VAE

__all__ = ["ALPHAS", "TrainedRun", "with_normalised_likelihood"]

ALPHAS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # the steps alpha of z + alpha v along the direction of an attribute

_CHUNK = 1000
_SHOWN_ATTRIBUTES = ("Blond_Hair", "Smiling", "Male", "Eyeglasses")


@dataclass(frozen=True)
class TrainedRun:
    """A run, its trained VAE and its data.

    Args:
        run: the run.
        vae: its VAE, in eval mode, on the CPU.
        data: the data that it was trained on.
        attributes: names of the attributes to draw; by default a few of CelebA's.
        epoch: the epoch of the VAE's weights, 0 before the first step; None for those that the run keeps.
    """

    run: Run
    vae: VAE
    data: Dataset
    attributes: tuple[str, ...] = ()
    epoch: int | None = None

    @classmethod
    def of(
        cls,
        path: str | Path,
        data_dir: str | Path | None = None,
        offline: bool = False,
        attributes: tuple[str, ...] = (),
    ) -> TrainedRun:
        """Return the trained run of a folder.

        Args:
            path: the run folder.
            data_dir: folder to search first for the data.
            offline: do not download the data.
            attributes: names of the attributes to draw.

        Raises:
            InputError: the folder is not a run folder or is damaged, its data cannot be found, or the data lack an
                attribute.
        """
        run = Run.open(path)
        try:
            run.read_checkpoint()
        except InputError as error:
            try:
                run.read_checkpoint(previous=True)
            except InputError:
                raise error from None
            how = f"python -m pvae.train --resume {shlex.quote(str(path))}"
            what = f"the last checkpoint of {path} is missing or damaged"
            raise InputError(f"{what}; {how} goes on from the one before it") from None
        data = data_of(run, None, data_dir, offline)
        run.metrics()  # raises an InputError if the run is damaged
        if attributes and (data.train_labels is None or data.train_labels.dim() != 2):
            raise InputError(f"the images of {data.name} have no attributes: leave --attribute out")
        for name in attributes:
            check_name("attribute", name, data.label_names)
        return cls(run, run.vae(), data, attributes)

    @cached_property
    def train(self) -> Tensor:
        """The training images after binarization and padding, as bytes."""
        return self.preparation.prepared(self.data.train, "train")

    @cached_property
    def test(self) -> Tensor:
        """The test images after binarization and padding, as bytes."""
        return self.preparation.prepared(self.data.test, "test")

    def seeded(self) -> AbstractContextManager[None]:
        """Return a context manager that seeds torch's generator with the run's seed, and restores its state at exit."""
        return seeded(self.run.config.seed, torch.device("cpu"))

    @property
    def preparation(self) -> Preparation:
        """How the bytes of images become pixels of the VAE."""
        return Preparation.of(self.run.config)

    def shown(self, x: Tensor) -> Tensor:
        """Return pixels of the VAE as pixels in [0, 1], which can be drawn."""
        return self.preparation.shown(x)

    @cached_property
    def title(self) -> str:
        """`Run.title`, or `Run.title_at` the epoch of the weights; read once."""
        return self.run.title if self.epoch is None else self.run.title_at(self.epoch)

    @property
    def prior(self) -> TorchDistribution:
        """p(z), of several stochastic layers that of the top one; for an autoencoder, which has no prior, N(0, 1)."""
        prior = self.vae.prior()
        if not self.vae.has_density:
            return StandardNormalPrior(prior.event_shape[0])()
        return prior.first if isinstance(prior, Hierarchy) else prior

    @property
    def is_prior_normal(self) -> bool:
        """Whether `prior` is N(0, 1) in each latent dimension."""
        base = self.prior.base_dist if isinstance(self.prior, Independent) else None
        return isinstance(base, Normal) and bool(((base.loc == 0) & (base.scale == 1)).all())

    @property
    def is_plane(self) -> bool:
        """Whether the latent is two-dimensional, with one stochastic layer."""
        prior = self.vae.prior()
        return prior.event_shape == (2,) and not isinstance(prior, Hierarchy)

    @property
    def latent_names(self) -> list[str]:
        """The names of the latent dimensions: z_1, z_2 and so on; of several stochastic layers z1_1, ..., z2_1, ...."""
        prior = self.vae.prior()
        if isinstance(prior, Hierarchy):
            return [f"{layer}_{1 + d}" for layer, size in zip(prior.names, prior.sizes) for d in range(size)]
        return [f"z_{1 + d}" for d in range(prior.event_shape[0])]

    def examples(self, count: int) -> Tensor:
        """Return pixels (count, C, H, W) of random test images, the same ones in every call."""
        return self.preparation.x(self.test[random_subset(len(self.test), count, seed=0)])

    @cached_property
    def train_codes(self) -> Tensor:
        """Means of q(z | x) of the training images, (N, L)."""
        return encode(self.vae, Pixels(self.train, self.preparation))

    @cached_property
    def test_codes(self) -> Tensor:
        """Means of q(z | x) of the test images, (M, L)."""
        return encode(self.vae, Pixels(self.test, self.preparation))

    @cached_property
    def test_draws(self) -> Tensor:
        """Draws from the aggregate posterior: one draw of q(z | x) for each test image, (M, L)."""
        x = Pixels(self.test, self.preparation)
        with self.seeded(), torch.no_grad():
            return torch.cat([self.vae.posterior(part).sample() for part in x.split(_CHUNK)])

    @property
    def classes(self) -> tuple[Tensor | None, Tensor | None]:
        """The classes of training and test images; None if the data have no labels, or attributes instead."""
        labels = self.data.train_labels, self.data.test_labels
        return labels if all(part is not None and part.dim() == 1 for part in labels) else (None, None)

    @property
    def last_layer_draws(self) -> Tensor:
        """`test_draws` of the latents that `prior` is the prior of: all latents, or those of the top layer."""
        return self.test_draws[:, -self.prior.event_shape[0] :]

    def report(self) -> LatentReport:
        """Return statistics of `last_layer_draws`, and the accuracy of a classifier of the codes."""
        accuracy = None
        train_labels, test_labels = self.classes
        if train_labels is not None and test_labels is not None:
            accuracy = nearest_neighbour_accuracy(self.train_codes, train_labels, self.test_codes, test_labels)
        return report(self.last_layer_draws, accuracy, self.is_prior_normal)

    def require(self, has: bool, what: str) -> None:
        """Raise an `InputError` that names what the picture needs, unless `has` is true."""
        if not has:
            raise InputError(f"this picture needs {what}, which {self.run.path} lacks")

    @cached_property
    def attribute_labels(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For each attribute to draw: which training and test images have it, bool (N,) and (M,).

        Raises:
            InputError: there are no attributes, or all or none of the images of a split have one of them.
        """
        train, test = self.data.train_labels, self.data.test_labels
        self.require(train is not None and train.dim() == 2, "attributes of its images")
        assert train is not None
        assert test is not None
        names = self.attributes or tuple(name for name in _SHOWN_ATTRIBUTES if name in self.data.label_names)
        self.require(bool(names), "attributes to show: give --attribute")
        labels = {}
        for name in names:
            column = self.data.label_names.index(name)
            labels[name] = train[:, column].bool(), test[:, column].bool()
            for split, part in zip(("training", "test"), labels[name]):
                self.require(bool(part.any() and not part.all()), f"{split} images with and without {name}")
        return labels

    def along(self, attribute: str, codes: Tensor) -> list[Tensor]:
        """Return the mean images of p(x | z + alpha v) at the codes z (N, L), in [0, 1], for each alpha of `ALPHAS`.

        v is the direction of the attribute in the codes of the training images.
        """
        vector = attribute_vector(self.train_codes, self.attribute_labels[attribute][0])
        return [self.preparation.shown(decode(self.vae, codes + alpha * vector)) for alpha in ALPHAS]


def with_normalised_likelihood(
    config: Config, vae: VAE, image_shape: Sequence[int], images: Tensor
) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, images in its domain, and the kind of their pixels.

    A VAE with a pseudo-Bernoulli of grey pixels is replaced by one with a Bernoulli of binary pixels and the same
    networks.

    Args:
        config: configuration of the VAE.
        vae: in eval mode.
        image_shape: shape of the images of the data, before padding.
        images: test images of the data, as bytes.

    Raises:
        InputError: the VAE was built in Python, and its likelihood is a pseudo-likelihood.
    """
    preparation = Preparation.of(config)
    if not vae.is_pseudo:
        return vae, preparation.pixels(images), preparation.kind
    config = config.replace(binarize="static")
    with torch.random.fork_rng(devices=[]):
        binary = build_vae(config, image_shape)
    try:
        binary.load_state_dict(vae.state_dict())
    except RuntimeError:  # a VAE that was built in Python
        raise InputError(
            "p(x | z) is a pseudo-likelihood, and log p(x) needs a likelihood: give one to the VAE"
        ) from None
    kind = "binarized: each drawn once, with its grey value as probability"
    return binary.eval(), Preparation.of(config).pixels(images), kind
