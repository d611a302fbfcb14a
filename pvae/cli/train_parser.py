"""The options of `python -m pvae.train`, and what its --help teaches."""

from __future__ import annotations

import argparse
import functools

from pvae.cli.command import Parser, a_path
from pvae.config.config import Config
from pvae.config.options import ACTIVATIONS, DATASETS, LIKELIHOODS, NETWORKS, PIXELS, POSTERIORS, RATE_REDUCTIONS
from pvae.config.presets import SYSTEMS

__all__ = ["train_parser"]

_EXAMPLES = """\
examples:
  python -m pvae.train --elbo analytic
      the Deep Bayes VAE on MNIST with the closed-form KL; on 5,000 digits if MNIST is not to be had
  python -m pvae.train --seeds 0:8 --out many
      the same for the seeds 0 to 7, and a table of mean and spread; interrupted, the same command goes on
  python -m pvae.train --binarize dynamic --elbo trace --particles 5 --latent-dim 20 --hidden 400
      another VAE on binary pixels, where the figure printed is a true lower bound on log p(x)
  torchrun --nproc-per-node=2 -m pvae.train --out RUN
      the same training by two processes that share each batch; --max-restarts 3 lets it outlive the death of one

Figures are nats per datum (an image): elbo = -(distortion + rate), higher is better, where the distortion is the
mean of -log p(x|z) and the rate the KL divergence of q(z|x) from p(z). The run folder holds config.json,
metrics.jsonl, checkpoint.safetensors, figures/ and TensorBoard events; pvae.load("RUN") gives the VAE in Python."""


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m pvae.train`; an option of a system that was not given is left out."""
    parser = Parser(
        prog="python -m pvae.train",
        description="Train a variational autoencoder, written as Pyro functions, by stochastic variational inference.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--list-systems", action="store_true", help="list the published systems, and do nothing else")
    system = parser.add_argument_group("what is trained (defaults: those of the system; here deep-bayes)")
    _add_data_options(system)
    _add_model_options(system)
    training = parser.add_argument_group("how it is trained")
    _add_loss_options(training)
    _add_step_options(training)
    _add_run_options(parser.add_argument_group("where it runs and what it leaves"))
    return parser


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add(
        "--system",
        metavar="NAME",
        help=f"published system to start from: {', '.join(SYSTEMS)}",
    )
    group.add_argument("--config", metavar="FILE", type=a_path, help="a system of your own: the options below, as TOML")
    add(
        "--dataset",
        metavar="NAME",
        help=f"{', '.join(DATASETS)} (default: {known.dataset}: MNIST, or else 5,000 of its digits); image files are "
        "turned as their EXIF orientation says, and transparent pixels are laid over white",
    )
    add("--image-size", metavar="N", type=int, help="side to which image files are resized (default: 64)")
    add("--crop", metavar="N", type=int, help="side of the square cut out of image files first (default: none)")
    add("--grey", action="store_true", help="read image files in one channel")
    add("--skip-broken", action="store_true", help="leave out image files that cannot be decoded")
    add(
        "--binarize",
        metavar="HOW",
        help="none: pixels stay grey, the bound is a pseudo-ELBO; threshold: at 0.5; static: each drawn once with its "
        f"grey value as probability; dynamic: drawn anew at every visit (default: {known.binarize})",
    )
    add("--pad", metavar="N", type=int, help="black pixels added on each side (default: 0)")
    add("--pixels", metavar="RANGE", help=f"{' or '.join(PIXELS)}: [0, 1] or [-1, 1] (default: {known.pixels})")


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add("--network", metavar="KIND", help=f"{', '.join(NETWORKS)} (default: {known.network})")
    add(
        "--hidden",
        metavar="H",
        type=int,
        nargs="+",
        help="widths of the encoder's hidden layers, or channels of its convolutions (default: 100 100)",
    )
    add("--activation", metavar="NAME", help=f"of an mlp: {' or '.join(ACTIVATIONS)} (default: {known.activation})")
    add(
        "--initialization",
        metavar="HOW",
        help="torch, or burda: Glorot-uniform, the last bias at the mean image (default: torch)",
    )
    add("--latent-dim", metavar="L", type=int, help=f"latent dimensions (default: {known.latent_dim})")
    add("--second-latent-dim", metavar="L", type=int, help="of a second stochastic layer (default: 0, none)")
    add(
        "--second-hidden",
        metavar="H",
        type=int,
        nargs="+",
        help="widths of the hidden layers between the two stochastic layers (default: 100 100)",
    )
    add(
        "--posterior",
        metavar="KIND",
        help=f"{', '.join(POSTERIORS)}; delta makes an autoencoder (default: {known.posterior})",
    )
    add("--likelihood", metavar="KIND", help=f"{', '.join(LIKELIHOODS)} (default: {known.likelihood})")
    add(
        "--scale",
        metavar="S",
        type=float,
        help="of a normal or logistic likelihood (default: 1)",
    )


def _add_loss_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add(
        "--elbo",
        metavar="NAME",
        help="trace (Pyro's Trace_ELBO, Monte Carlo), analytic (TraceMeanField_ELBO, closed-form KL), handwritten "
        "(log p(x|z) + log p(z) - log q(z|x) without Pyro's inference); the ELBO with another gradient: stl (sticking "
        "the landing), score (score function), score-loo (with a leave-one-out baseline); bounds of importance "
        f"weights: iwae, dreg (doubly reparameterised), renyi, ciwae, miwae (default: {known.elbo})",
    )
    add("--particles", metavar="K", type=int, help=f"samples of z per image in the bound (default: {known.particles})")
    add(
        "--alpha",
        metavar="A",
        type=float,
        help="of --elbo renyi: 0 is iwae, 1 the ELBO, below 0 the loss bounds nothing; the ELBO is reported beside it "
        f"(default: {known.alpha})",
    )
    add("--mix", metavar="M", type=float, help=f"of --elbo ciwae: the ELBO's share (default: {known.mix})")
    add("--groups", metavar="M", type=int, help=f"of --elbo miwae: into which K is parted (default: {known.groups})")
    add("--beta", metavar="B", type=float, help=f"weight of the rate in the loss (default: {known.beta})")
    add(
        "--rate-reduction",
        metavar="HOW",
        help=f"{' or '.join(RATE_REDUCTIONS)} over latent dimensions, in the loss (default: {known.rate_reduction})",
    )
    add("--warm-up", metavar="N", type=int, help="epochs over which the rate's weight rises from 0 (default: 0)")
    add("--free-bits", metavar="NATS", type=float, help="rate per latent dimension that costs nothing (default: 0)")


def _add_step_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add("--epochs", metavar="N", type=int, help=f"passes over the training images (default: {known.epochs})")
    add("--batch-size", metavar="B", type=int, help=f"images per step (default: {known.batch_size})")
    add("--lr", metavar="RATE", type=float, help=f"Adam's learning rate (default: {known.lr})")
    add(
        "--schedule",
        metavar="NAME",
        help="constant; cosine: down to 2 %% of it; steps: times 0.63 after 2/5 and after 7/10 of the epochs; paper: "
        "Burda et al.'s eight stages, whose own length is --epochs 3280 --batch-size 20 --lr 0.001 "
        f"(default: {known.schedule})",
    )
    add("--adam-eps", metavar="E", type=float, help=f"Adam's epsilon (default: {known.adam_eps})")
    add(
        "--compile",
        metavar="HOW",
        help="none; graph: record a step once and replay it, the same training in less time; inductor: compile it "
        "whole, the fastest after some seconds at the start, with torch 2.14 and a C++ compiler only; cuda-graph: "
        f"launch it on an NVIDIA GPU as one (default: {known.compile})",
    )
    add(
        "--precision",
        metavar="P",
        help="fp32 or, of a compiled step, bf16 or a GPU's tf32 matrix products (default: fp32)",
    )
    add(
        "--clip-norm", metavar="N", type=float, help="most that the norm of all gradients may be (default: 0, no bound)"
    )
    add("--on-nan", metavar="HOW", help="stop, or skip the step, at a loss or gradient that is NaN (default: stop)")
    add("--max-skipped", metavar="N", type=int, help=f"steps that may be skipped (default: {known.max_skipped})")
    add("--seed", metavar="S", type=int, help=f"of weights, order and draws (default: {known.seed})")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data-dir", metavar="DIR", type=a_path, help="holds MNIST/raw as torchvision lays it (also: $PVAE_DATA)")
    add("--offline", action="store_true", help="do not download anything")
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto; on --resume, as before)")
    add("--out", metavar="DIR", type=a_path, help="run folder, new or empty (default: runs/<time>-<system>-<elbo>)")
    add("--resume", metavar="RUN", type=a_path, help="go on with a run up to --epochs; its other options hold")
    add(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=0,
        help="write a checkpoint every N steps too (default: after each epoch, and on Ctrl-C or SIGTERM)",
    )
    add(
        "--seeds",
        metavar="LIST",
        help="0:8 (0 to 7) or 0,3,5: a run for each into --out DIR/seed-S, and a table of mean and spread; the number "
        "of threads that each has may change last digits",
    )
    add("--jobs", metavar="N", type=int, help="of --seeds: runs at a time, the cores shared out (default: one a core)")
    add("--quiet", action="store_true", help="print the run folder and no progress")
