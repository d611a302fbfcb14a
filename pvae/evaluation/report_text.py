"""A report as a table of text, with what must be known of each figure."""

from __future__ import annotations

from collections.abc import Sequence

from pvae.evaluation.log_likelihood import Estimate
from pvae.evaluation.report import TRUSTED, LogLikelihood, Report

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
        *_row("posterior-mean loss", anatomy.posterior_mean_loss, "no bound"),
        f"{'active units':24}{_plus(anatomy.active_units)} of {_plus(anatomy.latent_dims)}, whose mean has a variance "
        "above 0.01",
        "",
        *_decomposition(report),
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


def _decomposition(report: Report) -> list[str]:
    found = report.anatomy.rate_decomposition
    if found is None:
        return []
    subset = f"random test images (seed {report.seed})" if found.num_images < report.num_images else "test images"
    lower, upper = found.mutual_information.mean, found.mutual_information_upper.mean
    return [
        f"rate of {found.num_images:,} {subset}, one draw of z each, and its three parts",
        *_row(
            "  rate",
            found.rate,
            f"log q(z | x) - log p(z); {found.sampling_stderr:.2g} nats of the error are from the draws",
        ),
        *_row("  in closed form", found.rate_closed_form, "KL(q(z | x) || p(z)) of the same images"),
        *_row(
            "  mutual information",
            found.mutual_information,
            f"of an image's index and its code; at most log N = {found.log_images:.2f}, N = {report.num_images:,}",
        ),
        f"{'  over all images':24}{f'{lower:.2f} to {upper:.2f}':22}bounds on I(x; z), over all images there could be",
        *_row("  total correlation", found.total_correlation, "KL(q(z) || prod_l q(z_l))"),
        *_row("  dimension-wise KL", found.dimension_wise_kl, "sum_l KL(q(z_l) || p(z_l))"),
        "",
    ]


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
