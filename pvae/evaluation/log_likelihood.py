"""The log-likelihood log p(x) of a trained VAE by importance sampling, in nats per datum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from pvae.compile.graph import check_ways, record
from pvae.compile.inductor import missing
from pvae.core.errors import InputError
from pvae.core.memory import is_of_memory
from pvae.core.parallel import ALONE, World
from pvae.data.dataset import Pixels
from pvae.vae import VAE

__all__ = ["CHUNK_NUMBERS", "Estimate", "Images", "ImportanceSample", "images_at_once", "importance_sample"]

# Values in the largest tensor, which bounds the memory whatever the numbers of images and draws and the networks are.
# Larger tensors are slower.
CHUNK_NUMBERS = 2**19

_VISITS_TO_RECORD = 3
_DECODED_TO_COMPILE = 10_000_000  # images, from which on compiling saves more time than it takes

Images = Tensor | Pixels


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        """Return mean and error with as many digits as the error has."""
        if not math.isfinite(self.stderr):
            return f"{self.mean} +- {self.stderr}"
        digits = 2 if self.stderr == 0 else max(2, 1 - math.floor(math.log10(self.stderr)))
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
        """Standard errors of `log_p` over the draws alone, (N,), to first order: sqrt(1 / effective - 1 / K).

        They are estimates themselves, and too small where a few weights outweigh the rest.
        """
        return (1 / self.effective - 1 / self.num_particles).clamp(min=0).sqrt()

    @property
    def mean_stderr(self) -> float:
        """Standard error over the draws alone of the mean of `log_p` over images."""
        return self.stderr.square().sum().sqrt().item() / len(self.log_p)


@torch.no_grad()
def importance_sample(
    vae: VAE,
    x: Images,
    num_particles: int,
    on_images: Callable[[int], object] = lambda count: None,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    world: World = ALONE,
) -> ImportanceSample:
    """Estimate log p(x) from importance weights, with q(z | x) as the proposal.

        log p(x)  ~  log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x),     z_k ~ q(z | x)

    In the mean it is the lower bound L_K of `pvae.reference.bounds.iwae`, to first order Var[w / p(x)] / (2 K) below
    log p(x). The encoder runs once for each image; the sums are kept in log space, and the memory depends on neither
    N nor K.

    Args:
        vae: in eval mode.
        x: images (N, C, H, W).
        num_particles: K.
        on_images: called with the number of images done, after each part.
        engine: how log p(x | z) is computed: "graph" or "inductor", of `pvae.compile.graph.record`, or "none" for
            ordinary calls. "auto" is inductor where it is available and the work is large, else graph, and none for
            a decoder that cannot be recorded.
        precision: "fp32" or "bf16", of `pvae.compile.graph.record`.
        world: processes that share the images; each draws all noise, and all return all results.

    Raises:
        InputError: log p(x | z) cannot be recorded by the given engine and precision.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8.
    """
    parts, log_likelihood = [], _LogLikelihood(vae, engine, precision, len(x) * num_particles)
    for number, part in enumerate(x.split(min(100, images_at_once(vae, x)))):
        parts.append(_log_sums(vae, part, num_particles, log_likelihood if world.takes(number) else None))
        on_images(len(part))
    log_sum, log_sum_squares = sums = torch.cat(parts, dim=1)
    world.sum_([sums])
    return ImportanceSample(log_sum - math.log(num_particles), (2 * log_sum - log_sum_squares).exp(), num_particles)


def images_at_once(vae: VAE, x: Images, num_particles: int = 1) -> int:
    """Return how many images, with K latents each, keep every layer's output within `CHUNK_NUMBERS` values."""
    return max(1, min(1000, CHUNK_NUMBERS // _widest(vae, next(iter(x.split(1))))) // num_particles)


def _widest(vae: VAE, x: Tensor) -> int:
    """Return the number of values in the largest output of any layer for one image x (1, C, H, W)."""
    sizes = [x.numel()]

    def note(_module: nn.Module, _given: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 0)

    hooks = [module.register_forward_hook(note) for module in vae.modules()]
    with torch.no_grad():
        vae.likelihood(vae.posterior(x).mean)
    for hook in hooks:
        hook.remove()
    return max(sizes)


class _LogLikelihood:
    """Computes log p(x | z), recording the decoder for shapes that recur: a recording is faster than the modules."""

    def __init__(self, vae: VAE, engine: str, precision: str, decoded: int) -> None:
        self._may_fail = engine == "auto" and precision == "fp32"
        if engine == "auto":
            engine = "inductor" if decoded >= _DECODED_TO_COMPILE and not missing() else "graph"
        if (engine, precision) != ("none", "fp32"):
            check_ways(engine, precision)
        self._vae, self._engine, self._precision = vae, engine, precision
        # In bfloat16 every shape is recorded, so that the estimate does not depend on how often a shape recurs.
        self._record_at = _VISITS_TO_RECORD if precision == "fp32" else 1
        self._visits: Counter[object] = Counter()
        self._recorded: dict[object, Callable[[Tensor, Tensor], Sequence[Tensor]]] = {}

    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        key = (z.shape, z.stride(), x.shape, x.stride())
        self._visits[key] += 1
        if self._visits[key] == self._record_at:
            self._recorded[key] = self._record(z, x)
        return self._recorded.get(key, self._unrecorded)(z, x)[0]

    def _record(self, z: Tensor, x: Tensor) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
        if self._engine == "none":
            return self._unrecorded
        for engine in dict.fromkeys([self._engine, "graph"]):
            try:
                return record(self._unrecorded, [z, x], engine, self._precision)
            except InputError:
                if not self._may_fail:
                    raise
        return self._unrecorded  # the caller did not ask for compilation: fall back silently

    def _unrecorded(self, z: Tensor, x: Tensor) -> list[Tensor]:
        return [self._vae.likelihood(z).log_prob(x)]


def _log_sums(
    vae: VAE, x: Tensor, num_particles: int, log_likelihood: Callable[[Tensor, Tensor], Tensor] | None
) -> Tensor:
    """Return log sum_k w_k and log sum_k w_k^2 of a few images, (2, B) in float64.

    Without `log_likelihood` the images are another process's: only the noise is drawn, and zeros are returned.
    """
    posterior = vae.posterior(x)
    sums = torch.full((2, len(x)), -math.inf, dtype=torch.float64)
    size = max(1, CHUNK_NUMBERS // (len(x) * _widest(vae, x[:1])))
    # Latents are small compared with images: many parts are drawn together, and decoded one after another. A second
    # layer of latents runs a network for each draw, which may be wide.
    is_one_layer = isinstance(posterior, Independent)
    together = size * max(1, CHUNK_NUMBERS // (size * posterior.mean.numel())) if is_one_layer else size
    for start in range(0, num_particles, together):
        z = posterior.sample((min(together, num_particles - start),))
        if log_likelihood is not None:
            log_p_x = torch.cat([_in_memory(log_likelihood, part, x) for part in z.split(size)])
            log_w = (log_p_x + vae.prior().log_prob(z) - posterior.log_prob(z)).double()
            sums = torch.logaddexp(sums, torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)]))
    return sums if log_likelihood is not None else torch.zeros_like(sums)


def _in_memory(log_likelihood: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> Tensor:
    """Return log p(x | z), computed for half of the draws at a time where all of them do not fit into memory."""
    try:
        return log_likelihood(z, x)
    except (RuntimeError, MemoryError) as error:
        if len(z) == 1 or not is_of_memory(error):
            raise
    return torch.cat([_in_memory(log_likelihood, part, x) for part in z.chunk(2)])
