"""What is drawn: a run, its trained VAE and its data, and what follows from the three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pvae.config.config import Config
from pvae.core.errors import InputError, check_name
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, Pixels, binarized, padded, to_pixels
from pvae.evaluation.attribute_probe import Response, balanced_accuracy, respond, train_probe
from pvae.evaluation.latent_space import (
    LatentReport,
    attribute_vector,
    decode,
    encode,
    nearest_neighbour_accuracy,
    report,
)
from pvae.models.build import build_vae
from pvae.runs.data import data_of
from pvae.runs.run import Run
from pvae.vae import VAE

__all__ = ["ALPHAS", "TrainedRun", "proper"]

ALPHAS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)

_CHUNK = 1000
_SHOWN_ATTRIBUTES = ("Blond_Hair", "Smiling", "Male", "Eyeglasses")
_PROBE_TRAINING_IMAGES = 20_000
_PROBED_IMAGES = 500


@dataclass(frozen=True)
class TrainedRun:
    """A run, its trained VAE, and the data as the VAE saw them.

    Args:
        run: the run.
        vae: its VAE, in eval mode, on the CPU.
        data: its data, as bytes.
        attributes: which of the data's attributes to draw; a few well-known ones if left out.
    """

    run: Run
    vae: VAE
    data: Dataset
    attributes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        path: str | Path,
        data_dir: str | Path | None = None,
        offline: bool = False,
        attributes: tuple[str, ...] = (),
    ) -> TrainedRun:
        """Return the subject of a run folder.

        Raises:
            InputError: the folder is no run, its data are not to be had, or have no such attribute.
        """
        run = Run.open(path)
        data = data_of(run, None, data_dir, offline)
        run.metrics()  # refused if damaged: what is drawn or evaluated would be of a run that nobody can check
        if attributes and (data.train_labels is None or data.train_labels.dim() != 2):
            raise InputError(f"the images of {data.name} have no attributes: leave --attribute out")
        for name in attributes:
            check_name("attribute", name, data.label_names)
        return cls(run, run.vae(), data, attributes)

    @property
    def title(self) -> str:
        """System, data and test bound."""
        return self.run.title

    @cached_property
    def train(self) -> Tensor:
        """The training images on which the VAE works, as bytes."""
        return self._seen(self.data.train, "train")

    @cached_property
    def test(self) -> Tensor:
        """The test images on which the VAE works, as bytes."""
        return self._seen(self.data.test, "test")

    @property
    def is_plane(self) -> bool:
        """Whether z is a point of a plane: two latents, and no second layer of others."""
        return self.run.config.latent_dim == 2 and not self.run.config.second_latent_dim

    def pixels(self, images: Tensor) -> Tensor:
        """Return bytes as the pixels that the VAE takes."""
        return to_pixels(images, self.run.config.pixels == "symmetric")

    def shown(self, pixels: Tensor) -> Tensor:
        """Return pixels of the VAE in [0, 1], for the eye."""
        return 0.5 * (pixels + 1) if self.run.config.pixels == "symmetric" else pixels

    @cached_property
    def train_codes(self) -> Tensor:
        """Means of q(z | x) of the training images."""
        return self._codes(self.train)

    @cached_property
    def test_codes(self) -> Tensor:
        """Means of q(z | x) of the test images."""
        return self._codes(self.test)

    @cached_property
    def test_draws(self) -> Tensor:
        """One draw of q(z | x) for each test image: the aggregate posterior."""
        with seeded(self.run.config.seed, torch.device("cpu")), torch.no_grad():
            return torch.cat([self.vae.posterior(self.pixels(part)).sample() for part in self.test.split(_CHUNK)])

    @property
    def classes(self) -> tuple[Tensor | None, Tensor | None]:
        """The classes of training and test images; None where there are none, or attributes in their place."""
        labels = self.data.train_labels, self.data.test_labels
        return labels if all(part is not None and part.dim() == 1 for part in labels) else (None, None)

    @property
    def normal_draws(self) -> Tensor:
        """Draws of those latents whose prior is N(0, 1): all, or the second layer's."""
        config = self.run.config
        return self.test_draws[:, config.latent_dim if config.second_latent_dim else 0 :]

    def report(self) -> LatentReport:
        """Return how the codes lie, those latents whose prior is N(0, 1) against it."""
        accuracy = None
        train_labels, test_labels = self.classes
        if train_labels is not None and test_labels is not None:
            accuracy = nearest_neighbour_accuracy(self.train_codes, train_labels, self.test_codes, test_labels)
        return report(self.normal_draws, accuracy)

    def needs(self, what: str, has: bool) -> None:
        """Raise an `InputError` that names what the picture needs, unless the run has it."""
        if not has:
            raise InputError(f"this picture needs {what}, which {self.run.path} has not")

    @cached_property
    def attribute_labels(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Which training and test images have each attribute that is to be drawn: bool (N,) and (M,).

        Raises:
            InputError: there are none, or no image of one side to take a direction from.
        """
        train, test = self.data.train_labels, self.data.test_labels
        self.needs("attributes of its images", train is not None and train.dim() == 2)
        assert train is not None
        assert test is not None
        names = self.attributes or tuple(name for name in _SHOWN_ATTRIBUTES if name in self.data.label_names)
        self.needs("attributes to show: give --attribute", bool(names))
        labels = {}
        for name in names:
            column = self.data.label_names.index(name)
            labels[name] = train[:, column].bool(), test[:, column].bool()
            for split, part in zip(("training", "test"), labels[name]):
                self.needs(f"{split} images with and without {name}", bool(part.any() and not part.all()))
        return labels

    def along(self, attribute: str, codes: Tensor) -> list[Tensor]:
        """Return, for each of `ALPHAS`, the mean images of p(x | z + alpha v) at the codes z (N, L), in [0, 1].

        v is the attribute's direction in the codes of the training images.
        """
        vector = attribute_vector(self.train_codes, self.attribute_labels[attribute][0])
        return [self.shown(decode(self.vae, codes + alpha * vector)) for alpha in ALPHAS]

    @cached_property
    def responses(self) -> tuple[Response, ...]:
        """What a probe, trained on real images, sees in the test images as they move along each attribute's direction.

        Raises:
            InputError: as `attribute_labels`.
        """
        train, test = (torch.stack(parts, dim=1) for parts in zip(*self.attribute_labels.values()))
        with seeded(self.run.config.seed, torch.device("cpu")):
            probe = train_probe(self.train[:_PROBE_TRAINING_IMAGES], train[:_PROBE_TRAINING_IMAGES])
        accuracies = balanced_accuracy(probe, self.test, test).tolist()
        responses = []
        for column, (name, accuracy) in enumerate(zip(self.attribute_labels, accuracies)):
            log_odds, stderr = respond(probe, self.along(name, self.test_codes[:_PROBED_IMAGES]), column)
            responses.append(
                Response(
                    attribute=name,
                    alphas=ALPHAS,
                    log_odds=tuple(log_odds.tolist()),
                    stderr=tuple(stderr.tolist()),
                    balanced_accuracy=accuracy,
                )
            )
        return tuple(responses)

    def _codes(self, images: Tensor) -> Tensor:
        return torch.cat([encode(self.vae, self.pixels(part)) for part in images.split(_CHUNK)])

    def _seen(self, images: Tensor, split: str) -> Tensor:
        return padded(binarized(images, _fixed(self.run.config.binarize), split), self.run.config.pad)


def proper(config: Config, vae: VAE, image_shape: Sequence[int], images: Tensor) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, the pixels that it is one of, and what they are.

    A Bernoulli that was trained on grey pixels is one of binary pixels, with the same networks.

    Args:
        config: of the VAE.
        vae: in eval mode.
        image_shape: of the data, before any margin.
        images: test images from the first on, as bytes, as they are in the data.
    """
    symmetric = config.pixels == "symmetric"
    if not vae.is_pseudo:
        seen = padded(binarized(images, _fixed(config.binarize), "test"), config.pad)
        kind = "binary" if config.binarize != "none" else "grey, in [-1, 1]" if symmetric else "grey, in [0, 1]"
        return vae, Pixels(seen, symmetric), kind
    with torch.random.fork_rng(devices=[]):
        binary = build_vae(config.replace(binarize="static"), image_shape)
    binary.load_state_dict(vae.state_dict())
    seen = padded(binarized(images, "static", "test"), config.pad)
    return binary.eval(), Pixels(seen), "binarized: each drawn once, with its grey value as probability"


def _fixed(binarize: str) -> str:
    """Return the binarization that draws each pixel once, for the one that draws it at every visit."""
    return "static" if binarize == "dynamic" else binarize
