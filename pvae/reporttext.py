"""A report as a table of text, with what must be known of each figure."""

from __future__ import annotations

from collections.abc import Sequence

from pvae.evaluation import Estimate
from pvae.reports import TRUSTED, Anatomy, LogLikelihood, Report

__all__ = ["to_text"]


def to_text(report: Report) -> str:
    """Return the report as a table, with what must be known of each figure."""
    anatomy, found = report.anatomy, report.log_likelihood
    bound = "pseudo-ELBO" if report.pseudo else "ELBO"
    density = "of the density times the distance of two levels: no probability of bytes" if found.is_density else ""
    lines = [
        f"{report.run}, epoch {report.epoch}, {report.num_images:,} test images of {report.data}",
        "nats per datum, mean +- standard error over images and draws",
        "",
        *_row(bound, anatomy.elbo, "of the pixels that it was trained on" + (", which are grey" * report.pseudo)),
        *_row("  distortion", anatomy.distortion, "-E_q log p(x | z); document 004's reconstruction error"),
        *_row("  rate", anatomy.rate, "KL(q(z | x) || p(z))"),
        *_row("    posterior entropy", anatomy.posterior_entropy, "the rate is cross entropy less posterior entropy"),
        *_row("    cross entropy", anatomy.cross_entropy),
        *_row("    mutual information", anatomy.mutual_information, _on_information(anatomy)),
        *_row("    total correlation", anatomy.total_correlation, "KL(q(z) || prod_l q(z_l))"),
        *_row(
            "    dimension-wise KL",
            anatomy.dimension_wise_kl,
            "sum_l KL(q(z_l) || p(z_l)): these three sum to the rate, to noise",
        ),
        *_row("posterior-mean loss", anatomy.posterior_mean_loss, "no bound"),
        f"{'active units':24}{_plus(anatomy.active_units)} of {_plus(anatomy.latent_dims)}, whose mean has a variance "
        "above 0.01",
        "",
        f"log p(x), {found.num_particles:,} importance samples an image; pixels {report.pixels}"
        + ("; matrix products in bfloat16" if report.precision == "bf16" else ""),
        *_row("  ELBO", found.elbo, "of the same pixels"),
        *_row("  log-likelihood", found.estimate, f"{found.sampling_stderr:.2g} nats of the error are from the draws"),
        *_row("  bits per dimension", found.bits_per_dimension, density),
        f"{'  effective sample size':24}{found.effective_median:.0f} of {found.num_particles:,} in the median, "
        f"{found.effective_least:.1f} at least",
    ]
    return "\n".join([*lines, *_warnings(found)])


def _row(name: str, estimate: Estimate | None, note: str = "") -> list[str]:
    return [] if estimate is None else [f"{name:24}{estimate!s:22}{note}".rstrip()]


def _on_information(anatomy: Anatomy) -> str:
    limit = f"at most log N = {anatomy.log_images:.2f}"
    if anatomy.mutual_information is not None and anatomy.mutual_information.mean > anatomy.log_images - 1:
        return f"{limit}, and so near it that the true one may be larger"
    return f"of an image's index and its code; {limit}"


def _warnings(found: LogLikelihood) -> list[str]:
    if found.untrusted <= 0.01:
        return []
    return [
        f"warning: {found.untrusted:.1%} of the images have an effective sample size below {TRUSTED:.0f}: their "
        "importance weights cannot be trusted, and the log-likelihood is too low; give more --importance-samples"
    ]


def _plus(counts: Sequence[int]) -> str:
    """Return the counts of the layers as they are published: 16+5."""
    return "+".join(map(str, counts))
