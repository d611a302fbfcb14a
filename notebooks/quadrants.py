"""Predict the unobserved quadrants of MNIST by a conditional VAE: python notebooks/quadrants.py --observed 1.

The system is that of Pyro's tutorial on conditional VAEs (Sohn, Lee and Yan, NeurIPS 2015). A network predicts the
unobserved pixels x from the observed ones y. The prior p(z | y) sees y and this prediction, the posterior q(z | x, y)
sees x and y; all networks have two hidden layers of 500, and z has 200 dimensions. The tutorial stops by its test
images; here a tenth of the training images are held out for that. It prints the negative log-likelihood of the
network, and the negative ELBO on log p(x | y) of the conditional VAE, in nats per image, the pixels being grey.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pvae
from pvae.data.read import read
from pvae.distributions.pixels import PseudoBernoulli
from pvae.models.networks import mlp
from pvae.models.posteriors import bounded_normal
from pvae.trained.scores import Estimate

LATENT, HIDDEN, BATCH, PATIENCE = 200, (500, 500), 128, 3


class Prior(nn.Module):
    """p(z | y) of the observed pixels y, in which those that are not observed are -1, and of their prediction."""

    takes_labels = True

    def __init__(self, unseen: Tensor, baseline: nn.Module) -> None:
        super().__init__()
        self.register_buffer("unseen", unseen)
        self.baseline = baseline.requires_grad_(False)
        self.net = mlp(784, *HIDDEN, 2 * LATENT)

    def forward(self, y: Tensor) -> dist.Independent:
        with torch.no_grad():
            x = self.baseline(y).sigmoid()
        return bounded_normal(self.net(filled(y, x, self.unseen)))


class Posterior(nn.Module):
    """q(z | x, y), of the whole image."""

    takes_labels = True

    def __init__(self, unseen: Tensor) -> None:
        super().__init__()
        self.register_buffer("unseen", unseen)
        self.net = mlp(784, *HIDDEN, 2 * LATENT)

    def forward(self, x: Tensor, y: Tensor) -> dist.Independent:
        return bounded_normal(self.net(filled(y, x, self.unseen)))


class Likelihood(nn.Module):
    """p(x | z) of the pixels that are not observed."""

    pseudo = True  # the pixels are grey

    def __init__(self, unseen: Tensor) -> None:
        super().__init__()
        self.net = mlp(LATENT, *HIDDEN, int(unseen.sum()))

    def forward(self, z: Tensor) -> dist.Independent:
        return PseudoBernoulli(logits=self.net(z)).to_event(1)


def filled(y: Tensor, x: Tensor, unseen: Tensor) -> Tensor:
    """Return images (B, 784) with the unobserved pixels x (B, D)."""
    return y.masked_scatter(unseen.expand_as(y), x)


def quadrants(images: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """Return x, the unobserved pixels, and y, the images in which these are -1."""
    pixels = images.flatten(1).float() / 255
    return pixels[:, unseen], pixels.masked_fill(unseen, -1)


def train_baseline(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> nn.Module:
    """Return the network that predicts x from y, of the epoch with the lowest cross-entropy on validation images."""
    net = mlp(784, *HIDDEN, train[0].shape[1])
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    best, weights, age = float("inf"), net.state_dict(), 0
    while age < PATIENCE:
        for index in torch.randperm(len(train[0])).split(BATCH):
            x, y = (one[index] for one in train)
            loss = binary_cross_entropy_with_logits(net(y), x, reduction="sum") / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss_of_valid, age = cross_entropy(net, valid).mean().item(), age + 1
        if loss_of_valid < best:
            best, age = loss_of_valid, 0
            weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(weights)
    return net


@torch.no_grad()
def cross_entropy(net: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Return -log p(x | y) of each image, (N,)."""
    x, y = data
    return binary_cross_entropy_with_logits(net(y), x, reduction="none").sum(1)


def main() -> None:
    """Train both, and print their figures on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observed", type=int, choices=(1, 2, 3), default=1, help="number of observed quadrants")
    parser.add_argument("--data-dir", type=Path, help="folder that holds MNIST")
    parser.add_argument("--out", type=Path, help="run folder of the conditional VAE")
    given = parser.parse_args()
    unseen = torch.ones(28, 28, dtype=torch.bool)  # the quadrants in the tutorial's order
    for rows, columns in [(slice(14, 28), slice(0, 14)), (slice(0, 14), slice(0, 14)), (slice(0, 14), slice(14, 28))][
        : given.observed
    ]:
        unseen[rows, columns] = False
    mnist = read("mnist", given.data_dir).with_valid(0.1)
    parts = {split: quadrants(images, unseen.flatten()) for split, images in mnist.splits.items()}
    torch.manual_seed(0)
    baseline = train_baseline(parts["train"], parts["valid"])
    print(f"network: {Estimate.of(cross_entropy(baseline, parts['test']))} nats per image")
    data = pvae.Dataset(
        f"MNIST, {given.observed} of 4 quadrants observed", parts["train"][0], parts["test"][0], parts["train"][1],
        parts["test"][1], valid=parts["valid"][0], valid_labels=parts["valid"][1],
    )  # fmt: skip
    vae = pvae.VAE(Prior(unseen.flatten(), baseline), Posterior(unseen.flatten()), Likelihood(unseen.flatten()))
    config = pvae.Config(elbo="trace", epochs=101, batch_size=BATCH, valid=0.1, patience=PATIENCE)
    run = pvae.fit(config, data, vae=vae, out=given.out, callbacks=pvae.default_callbacks(quiet=False))
    best = run.test_metrics()
    print(f"conditional VAE: {-best.elbo:.2f} +- {best.elbo_stderr:.2f} nats per image")


if __name__ == "__main__":
    main()
