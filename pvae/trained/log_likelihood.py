"""The log-likelihood log p(x) of a trained VAE by importance sampling, in nats per datum."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MixtureSameFamily

from pvae.compile.graph import Function, check_engine, record
from pvae.compile.inductor import missing
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.preparation import Pixels, Preparation
from pvae.distributions.hierarchy import Hierarchy
from pvae.elbos.terms import exact_rate, posterior_mean_loss
from pvae.models.build import build_vae
from pvae.vae import VAE

__all__ = [
    "CHUNK_VALUES",
    "LAYER_RATE",
    "MOST_UNTRUSTED",
    "TRUSTED",
    "Estimate",
    "ImportanceSample",
    "bits_per_dimension",
    "elbo_terms",
    "images_at_once",
    "importance_sample",
    "with_normalised_likelihood",
]

TRUSTED = 10.0  # the effective sample size below which the importance weights of an image cannot be trusted
MOST_UNTRUSTED = 0.01  # the fraction of such images up to which the log-likelihood of all of them stands

# The largest number of values in a tensor. It bounds the memory for any number of images and draws and for any network.
# Larger tensors are slower too.
CHUNK_VALUES = 2**19

LAYER_RATE = "rate of "  # and the name of a stochastic layer
_PARTICLES = 10
_VISITS_TO_RECORD = 3
_DECODED_TO_COMPILE = 10_000_000  # decoded images from which compiling saves more time than it takes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        """Return mean and error, with two to six decimals: two significant digits of a small error."""
        if not math.isfinite(self.stderr):
            return f"{self.mean} +- {self.stderr}"
        digits = 2 if self.stderr == 0 else min(6, max(2, 1 - math.floor(math.log10(self.stderr))))
        return f"{self.mean:.{digits}f} +- {self.stderr:.{digits}f}"

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Return the mean of values (N,), N at least 2, and its standard error."""
        values = values.double()
        return cls(mean=values.mean().item(), stderr=values.std().item() / math.sqrt(len(values)))


@dataclass(frozen=True, eq=False)
class ImportanceSample:
    """Estimates of log p(x) from K importance weights for each image.

    Args:
        log_p: log (1/K) sum_k w_k, (N,) nats; in the mean a lower bound on log p(x).
        effective: effective sample sizes (sum_k w_k)^2 / sum_k w_k^2, (N,), between 1 and K.
        num_particles: K.
    """

    log_p: Tensor
    effective: Tensor
    num_particles: int

    @property
    def stderr(self) -> Tensor:
        """Standard errors of `log_p` over the draws of z alone, (N,), to first order: sqrt(1 / effective - 1 / K).

        They are estimates themselves, and too small where a few weights dominate the sum.
        """
        return (1 / self.effective - 1 / self.num_particles).clamp(min=0).sqrt()

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean of `log_p` over images, from the draws of z alone."""
        return self.stderr.square().sum().sqrt().item() / len(self.log_p)

    @property
    def untrusted(self) -> float:
        """The fraction of images whose effective sample size is below 10: a few draws dominate their estimates."""
        return (~(self.effective >= TRUSTED)).double().mean().item()  # NaN counts as untrusted

    def merged(self, other: ImportanceSample) -> ImportanceSample:
        """Return the estimates from the weights of both samples, which are of the same images.

            log_p = log( (sum of the K1 weights + sum of the K2 weights) / (K1 + K2) )

        Args:
            other: estimates from other draws.
        """
        both = (self, other)
        log_sums = torch.stack([one.log_p + math.log(one.num_particles) for one in both])
        log_sums_squares = 2 * log_sums - torch.stack([one.effective for one in both]).log()
        num_particles = self.num_particles + other.num_particles
        return _from_log_sums(log_sums.logsumexp(0), log_sums_squares.logsumexp(0), num_particles)


def _from_log_sums(log_sum: Tensor, log_sum_squares: Tensor, num_particles: int) -> ImportanceSample:
    """Return the estimates of log sum_k w_k and log sum_k w_k^2, (N,) each."""
    return ImportanceSample(log_sum - math.log(num_particles), (2 * log_sum - log_sum_squares).exp(), num_particles)


@torch.no_grad()
def importance_sample(
    vae: VAE,
    x: Tensor | Pixels,
    num_particles: int,
    on_images: Callable[[int], object] = lambda count: None,
    *,
    engine: str = "auto",
    precision: str = "fp32",
) -> ImportanceSample:
    """Estimate log p(x) from importance weights, with q(z | x) as the proposal.

        log p(x)  ~  log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x),     z_k ~ q(z | x)

    The expectation of the estimate is the lower bound L_K of `pvae.reference.bounds.iwae`, which to first order is
    Var[w / p(x)] / (2 K) below log p(x). The encoder runs once for each image. The sums are kept in log space, and the
    memory for images and draws depends on neither N nor K.

    Args:
        vae: in eval mode.
        x: images (N, C, H, W).
        num_particles: K.
        on_images: called after each part with the number of images in it.
        engine: how to compute log p(x | z): "graph" or "inductor" as in `pvae.compile.graph.record`, or "none" for
            ordinary calls. "auto" is "inductor" if it is available and the work is large, else "graph"; it falls back
            to "none" if the decoder cannot be recorded or compiled.
        precision: "fp32" or "bf16", as in `pvae.compile.graph.record`.

    Returns:
        The estimates `log_p`, (N,), with their standard errors `stderr` from the draws, and `untrusted`, the share of
        images whose importance weights cannot be trusted.

    Raises:
        InputError: log p(x | z) cannot be recorded with the given engine and precision.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8.
    """
    parts, log_likelihood = [], _recorded_log_likelihood(vae, engine, precision, len(x) * num_particles)
    for one, part in vae.split(x, min(100, images_at_once(vae, x))):
        parts.append(_log_sums(one, part, num_particles, log_likelihood))
        on_images(len(part))
    log_sum, log_sum_squares = torch.cat(parts, dim=1)
    return _from_log_sums(log_sum, log_sum_squares, num_particles)


def bits_per_dimension(vae: VAE, log_p: Tensor, x: Pixels) -> Tensor:
    """Return a log-likelihood, or a bound on it, in bits for each of the D values of an image.

        -log_p / (D log 2) + log2(levels)

    levels is 1 for a probability, and for a density of other data than images, in whose units it is. A density of
    images is multiplied by the distance 1 / levels between two 8-bit levels: this is not the probability of the bytes,
    and it is wrong for scales near that distance.

    Args:
        vae: whose likelihood says how many levels there are in an interval of length 1.
        log_p: nats, (N,).
        x: the N images.

    Returns:
        Bits, float64 (N,), lower is better.
    """
    levels: float = getattr(vae.p_x, "levels_per_unit", 1.0) if x.is_bytes else 1.0
    return (-log_p.double() / x.images[0].numel() + math.log(levels)) / math.log(2)


def images_at_once(vae: VAE, x: Tensor | Pixels, num_particles: int = 1) -> int:
    """Return how many images, with K draws of z each, keep every layer's output within `CHUNK_VALUES` values."""
    return max(1, min(1000, CHUNK_VALUES // _widest(*next(vae.split(x, 1)))) // num_particles)


def _widest(vae: VAE, x: Tensor) -> int:
    """Return the number of values in the largest output of any layer, or of a mixture, for one image x (1, C, H, W).

    The layers are those of the encoder, the decoder, and the networks of priors, flows and hierarchies at a draw of z.
    """
    sizes, prior = [x.numel()], vae.prior()
    mixture = prior.first if isinstance(prior, Hierarchy) else prior
    if isinstance(mixture, MixtureSameFamily):
        sizes.append(2 * mixture.component_distribution.batch_shape.numel())  # a log-density by each, in float64

    def note(_module: nn.Module, _given: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 0)

    hooks = [module.register_forward_hook(note) for module in vae.modules()]
    with torch.no_grad(), seeded(0, x.device):
        z = vae.posterior(x).sample()
        with contextlib.suppress(ValueError):  # of a prior whose support does not include z
            prior.log_prob(z)
        vae.likelihood(z)
    for hook in hooks:
        hook.remove()
    return max(sizes)


def _recorded_log_likelihood(vae: VAE, engine: str, precision: str, decoded: int) -> Callable[..., Tensor]:
    """Return log p(x | z) as a function of z, x and perhaps y that records the decoder for each shape of z that recurs.

    A recording is faster than the modules. The shape of z, (draws, images, L), determines that of x.
    """
    may_fail = engine == "auto" and precision == "fp32"  # the caller did not ask for compilation: fall back silently
    if engine == "auto":
        engine = "inductor" if decoded >= _DECODED_TO_COMPILE and not missing() else "graph"
    if (engine, precision) != ("none", "fp32"):
        check_engine(engine, precision)
    # In bfloat16 every shape is recorded, so that the estimate does not depend on how often a shape recurs.
    record_at = _VISITS_TO_RECORD if precision == "fp32" else 1
    visits: Counter[torch.Size] = Counter()
    recorded: dict[torch.Size, Function] = {}

    def unrecorded(z: Tensor, x: Tensor, *y: Tensor) -> list[Tensor]:
        return [vae.given(*y).log_likelihood(x, z)]

    def log_likelihood(z: Tensor, *batch: Tensor) -> Tensor:
        visits[z.shape] += 1
        if engine != "none" and visits[z.shape] == record_at:
            try:
                recorded[z.shape] = record(unrecorded, [z, *batch], engine, precision)
            except InputError:
                if not may_fail:
                    raise
        return recorded.get(z.shape, unrecorded)(z, *batch)[0]

    return log_likelihood


def _log_sums(vae: VAE, x: Tensor, num_particles: int, log_likelihood: Callable[..., Tensor]) -> Tensor:
    """Return log sum_k w_k and log sum_k w_k^2 of a few images, (2, B) in float64."""
    posterior, prior = vae.posterior(x), vae.prior()
    batch = (x,) if vae.y is None else (x, vae.y)
    sums = torch.full((2, len(x)), -math.inf, dtype=torch.float64)
    size = max(1, CHUNK_VALUES // (len(x) * _widest(*next(vae.split(x, 1)))))
    # Latents are small compared with images, so several chunks are drawn together and decoded one after another. Other
    # posteriors than independent ones are drawn chunk by chunk, because networks may compute them, which may be wide.
    together = size
    if isinstance(posterior, Independent):
        together *= max(1, CHUNK_VALUES // (size * math.prod(posterior.batch_shape + posterior.event_shape)))
    for start in range(0, num_particles, together):
        z = posterior.sample((min(together, num_particles - start),))
        log_p = torch.cat([log_likelihood(part, *batch) + prior.log_prob(part) for part in z.split(size)])
        log_w = (log_p - posterior.log_prob(z)).double()  # of all z, since a flow knows the density of its draw
        sums = torch.logaddexp(sums, torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)]))
    return sums


@torch.no_grad()
def elbo_terms(vae: VAE, x: Pixels) -> dict[str, Tensor]:
    """Return the ELBO of each image and its parts, from ten draws of z.

        elbo = -distortion - rate,    distortion = -E_q log p(x | z),    rate = KL(q(z | x) || p(z))

    Terms without a closed form are left out, except the rate, which is then a mean over the draws.

    Args:
        vae: in eval mode.
        x: N images.

    Returns:
        Nats, (N,) each: elbo, distortion, rate, cross_entropy and, in closed form, posterior_entropy and
        posterior_mean_loss. With several stochastic layers also rate of z1, rate of z2 and so on.
    """
    parts = [_terms(one, part) for one, part in vae.split(x, images_at_once(vae, x, _PARTICLES))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _terms(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """Return the terms of the ELBO of each image, (B,) each, without terms that have no closed form for this VAE."""
    posterior: Any = vae.posterior(x)
    prior: Any = vae.prior()
    z = posterior.sample((_PARTICLES,))
    distortion, cross_entropy = -vae.log_likelihood(x, z).mean(0), -prior.log_prob(z).mean(0)
    terms = {"distortion": distortion, "cross_entropy": cross_entropy}
    try:
        terms["posterior_entropy"] = posterior.entropy()
        terms["rate"] = exact_rate(posterior, prior)
        terms["posterior_mean_loss"] = posterior_mean_loss(vae, x)
    except NotImplementedError:
        terms["rate"] = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
    if isinstance(posterior, Hierarchy):
        layers = zip(posterior.names, posterior.conditionals(z), prior.conditionals(z))
        terms |= {LAYER_RATE + name: (q.log_prob(one) - p.log_prob(one)).mean(0) for name, (one, q), (_, p) in layers}
    return {**terms, "elbo": -distortion - terms["rate"]}


def with_normalised_likelihood(
    config: Config, vae: VAE, datum_shape: Sequence[int], images: Tensor, num_labels: int = 0
) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, images in its domain, and the kind of their pixels.

    A VAE with a pseudo-Bernoulli of grey pixels is replaced by one with a Bernoulli of binary pixels and the same
    networks.

    Args:
        config: configuration of the VAE.
        vae: in eval mode.
        datum_shape: shape of the images of the data, before padding.
        images: test images of the data, as bytes.
        num_labels: number of classes or attributes of the data.

    Raises:
        InputError: the VAE was built in Python, and its likelihood is a pseudo-likelihood.
    """
    preparation = Preparation.of(config)
    if not vae.is_pseudo:
        pixels = preparation.pixels(images)
        return vae, pixels, preparation.kind if pixels.is_bytes else ""
    config = config.replace(binarize="static")
    with torch.random.fork_rng(devices=[]):
        binary = build_vae(config, datum_shape, num_labels)
    try:
        binary.load_state_dict(vae.state_dict())
    except RuntimeError:  # a VAE that was built in Python
        raise InputError(
            "p(x | z) is a pseudo-likelihood, and log p(x) needs a likelihood: give one to the VAE"
        ) from None
    kind = "binarized: each drawn once, with its grey value as probability"
    return binary.eval().given(vae.y), Preparation.of(config).pixels(images), kind
