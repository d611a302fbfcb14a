"""The log-likelihood log p(x) of a trained VAE by importance sampling, in nats per datum; means with their errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent

from pvae.compile.graph import Function, check_engine, record
from pvae.compile.inductor import missing
from pvae.core.errors import InputError
from pvae.core.tracing import deferred
from pvae.data.batch import Batch, Data
from pvae.trained import chunks
from pvae.trained.chunks import data_at_once, widest
from pvae.vae import VAE

__all__ = ["DECODED_TO_COMPILE", "MOST_UNTRUSTED", "TRUSTED", "Estimate", "ImportanceSample", "importance_sample"]

TRUSTED = 10.0  # the effective sample size below which the importance weights of a datum cannot be trusted
MOST_UNTRUSTED = 0.01  # the fraction of such data up to which the mean log-likelihood is reported as reliable
_VISITS_TO_RECORD = 3
DECODED_TO_COMPILE = 10_000_000  # decoded data from which compiling saves more time than it takes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its standard error.

    Args:
        mean: the mean of N values, in their unit.
        stderr: its standard error; 0 of an exact value.
    """

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
        """Return the mean of values (N,), N at least 2, and its standard error std / sqrt(N), in float64."""
        values = values.double()
        return cls(mean=values.mean().item(), stderr=values.std().item() / math.sqrt(len(values)))


@dataclass(frozen=True, eq=False)
class ImportanceSample:
    """Estimates of log p(x) from K importance weights w_k for each datum.

    Args:
        log_sum: log sum_k w_k, (N,).
        log_sum_squares: log sum_k w_k^2, (N,).
        num_particles: K.
    """

    log_sum: Tensor
    log_sum_squares: Tensor
    num_particles: int

    @property
    def log_p(self) -> Tensor:
        """The estimates log (1/K) sum_k w_k, (N,) nats; in the mean a lower bound on log p(x)."""
        return self.log_sum - math.log(self.num_particles)

    @property
    def effective(self) -> Tensor:
        """Effective sample sizes (sum_k w_k)^2 / sum_k w_k^2, (N,), between 1 and K."""
        return (2 * self.log_sum - self.log_sum_squares).exp()

    @property
    def stderr(self) -> Tensor:
        """Standard errors of `log_p` over the draws alone, (N,), to first order: sqrt((K / effective - 1) / (K - 1)).

        They are estimates themselves, and too small where a few weights dominate the sum.
        """
        return ((self.num_particles / self.effective - 1) / max(1, self.num_particles - 1)).clamp(min=0).sqrt()

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean of `log_p` over the N data, from the draws of z alone, in nats.

        sqrt( sum_n stderr_n^2 ) / N
        """
        return self.stderr.square().sum().sqrt().item() / len(self.log_p)

    @property
    def untrusted(self) -> float:
        """The fraction of data whose effective sample size is below 10: a few draws dominate their estimates."""
        return (~(self.effective >= TRUSTED)).double().mean().item()  # NaN counts as untrusted


@torch.no_grad()
def importance_sample(
    vae: VAE,
    data: Data,
    num_particles: int,
    on_images: Callable[[int], object] = lambda count: None,
    engine: str = "auto",
) -> ImportanceSample:
    """Estimate log p(x) from importance weights, with q(z | x) as the proposal.

        log p(x)  ~  log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x),     z_k ~ q(z | x)

    The expectation of the estimate is the lower bound L_K of `pvae.reference.bounds.iwae`, which to first order is
    Var[w / p(x)] / (2 K) below log p(x). The encoder runs once for each datum. The sums are kept in log space, and the
    memory for data and draws depends on neither N nor K.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.
        num_particles: K.
        on_images: called after each part with the number of data in it.
        engine: how to compute log p(x | z): "graph" or "inductor" as in `pvae.compile.graph.record`, or "none" for
            ordinary calls. "auto" is "inductor" if it is available and the work is large, else "graph"; it falls back
            to "none" if the decoder cannot be recorded or compiled.

    Returns:
        The estimates `log_p`, (N,), with their standard errors `stderr` from the draws, and `untrusted`, the share of
        data whose importance weights cannot be trusted.

    Raises:
        InputError: log p(x | z) cannot be recorded with the given engine.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8.
    """
    batch, parts = Batch.of(data), []
    log_likelihood = _recorded_log_likelihood(vae, engine, len(batch) * num_particles)
    width = widest(vae, batch)
    for part in batch.split(min(100, data_at_once(vae, batch))):
        parts.append(_log_sums(vae, part, num_particles, log_likelihood, width))
        on_images(len(part))
    log_sum, log_sum_squares = torch.cat(parts, dim=1)
    return ImportanceSample(log_sum, log_sum_squares, num_particles)


def _recorded_log_likelihood(vae: VAE, engine: str, decoded: int) -> Callable[..., Tensor]:
    """Return log p(x | z) as a function of z, x and perhaps y that records the decoder for each shape of z that recurs.

    A recording is faster than the modules. The shape of z, (draws, B, L), determines that of x.
    """
    may_fail = engine == "auto"  # the caller did not ask for compilation: fall back silently
    if engine == "auto":
        engine = "inductor" if decoded >= DECODED_TO_COMPILE and not missing() else "graph"
    if engine != "none":
        check_engine(engine, "fp32")
    visits: Counter[torch.Size] = Counter()
    recorded: dict[torch.Size, Function] = {}

    def unrecorded(z: Tensor, x: Tensor, *y: Tensor) -> list[Tensor]:
        return [vae.log_likelihood(x, z, *y)]

    def log_likelihood(z: Tensor, *batch: Tensor) -> Tensor:
        visits[z.shape] += 1
        if engine != "none" and visits[z.shape] == _VISITS_TO_RECORD:
            try:
                with deferred():  # the checks of labels, which read values, were made before
                    recorded[z.shape] = record(unrecorded, [z, *batch], engine)
            except InputError:
                if not may_fail:
                    raise
        return recorded.get(z.shape, unrecorded)(z, *batch)[0]

    return log_likelihood


def _log_sums(vae: VAE, batch: Batch, num_particles: int, log_likelihood: Callable[..., Tensor], width: int) -> Tensor:
    """Return log sum_k w_k and log sum_k w_k^2 of a few data, (2, B) in float64.

    Args:
        vae: in eval mode.
        batch: the data.
        num_particles: K.
        log_likelihood: returns log p(x | z) of z, x and perhaps y.
        width: the number of values in the largest output of a layer, for one datum.
    """
    posterior, prior = vae.posterior(*batch), vae.given(batch.y).prior()
    sums = torch.full((2, len(batch)), -math.inf, dtype=torch.float64)
    size = max(1, chunks.CHUNK_VALUES // (len(batch) * width))
    # Latents are small compared with images, so several chunks are drawn together and decoded one after another. Other
    # posteriors than independent ones are drawn chunk by chunk, because networks may compute them, which may be wide.
    together = size
    if isinstance(posterior, Independent):
        together *= max(1, chunks.CHUNK_VALUES // (size * math.prod(posterior.batch_shape + posterior.event_shape)))
    for start in range(0, num_particles, together):
        z = posterior.sample((min(together, num_particles - start),))
        log_p = torch.cat([log_likelihood(part, *batch) + prior.log_prob(part) for part in z.split(size)])
        log_w = (log_p - posterior.log_prob(z)).double()  # of all z, since a flow knows the density of its draw
        sums = torch.logaddexp(sums, torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)]))
    return sums
