"""`Coverage`: whether q(z | x) is calibrated."""

from __future__ import annotations

from dataclasses import dataclass

from pvae.evaluation.context import Context, Measure, Request
from pvae.marginal.gaps import calibration
from pvae.marginal.log_p import check_continuous

_CALIBRATED = 1000  # data that are drawn from the VAE


@dataclass(frozen=True, kw_only=True)
class Coverage(Measure):
    """Whether q(z | x) is calibrated on data drawn from the VAE; see `pvae.marginal.gaps`.

    Args:
        num_images: number of data that were drawn.
        region: how often z is in the region of highest density of q(z | x) of mass 0.9.
        furthest: the largest distance of a share in `latents` from the mass.
        band: how far any share is from the mass at most, at a level of 95 %, if q(z | x) is p(z | x).
        outside: the number of latents with a share that is further from the mass.
        regions: how often z is in the region of highest density of q(z | x) of mass 0.1, 0.2, ..., 0.9.
        latents: for each latent how often z_l is below the quantiles 0.1, 0.2, ..., 0.9 of q(z_l | x).
    """

    title = "calibration of q(z | x)"
    request = Request(
        "calibration",
        "whether q(z | x) is calibrated, on 1,000 data drawn from the VAE; in figures/calibration.png too",
    )

    num_images: int
    region: float
    furthest: float
    band: float
    outside: int
    regions: tuple[float, ...]
    latents: tuple[tuple[float, ...], ...]

    words = {
        "num_images": ("data drawn from the VAE", "whose z are draws from p(z | x)"),
        "region": ("regions of 90 % hold", "this share of them, those of highest density of q"),
        "furthest": ("largest distance", "between a mass, and the share of z_l below that quantile"),
        "band": ("  at most, at 95 %", "of each share from its mass, if q is p(z | x)"),
        "outside": ("  latents beyond it", "whose q(z_l | x) is not calibrated"),
    }

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the latent is not continuous."""
        if context.requests.get("calibration"):
            check_continuous(context.normalised, context.test)

    @classmethod
    def of(cls, context: Context) -> Coverage | None:
        """Return how often z of data drawn from the VAE is where q(z | x) says."""
        if not context.requests.get("calibration"):
            return None
        found = calibration(context.normalised, context.batch, _CALIBRATED)
        of_latents = found.distances[:-1]
        return cls(
            num_images=_CALIBRATED,
            region=found.regions[-1].item(),
            furthest=of_latents.max().item(),
            band=found.band,
            outside=int((of_latents > found.band).sum()),
            regions=tuple(found.regions.tolist()),
            latents=tuple(map(tuple, found.latents.tolist())),
        )
