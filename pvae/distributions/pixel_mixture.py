"""Images of 8-bit levels: mixtures of logistics whose noise depends on that of the pixels before."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import conv2d, pad

from pvae.distributions.pixels import DiscretizedLogistic, eight_bit_level

__all__ = ["DiscretizedLogisticMixture", "pixels_before"]

_ROWS, _COLUMNS = 3, 5  # of the window: of 5 x 5 pixels, those before the one in the middle
_PADDING = (2, 2, 2, 0)  # left, right, above, below
_ROUNDING = 1 / 12 / 255**2  # the variance of what rounding to a level changes


def pixels_before() -> Tensor:
    """Return which pixels of the window (3, 5) are before the third one of its last row, as 0 and 1.

    >>> pixels_before().sum()
    tensor(12.)
    """
    mask = torch.ones(_ROWS, _COLUMNS)
    mask[-1, _COLUMNS // 2 :] = 0
    return mask


class DiscretizedLogisticMixture(TorchDistribution):
    """An image of 8-bit levels: at each pixel a mixture of K logistics, whose noise depends on the pixels before it.

        P(x) = prod_{h, w} sum_k pi_k prod_c P(x_c; loc_kc + shift_c, scale_kc),    P a `DiscretizedLogistic`
        shift_c = g_c ( sum_{d, n} kernel_cdn r_dn  +  sum_{b < c} colour_cb r_b ),    r = x - m
        m_c = sum_k pi_k min(max(loc_kc, 0), 1)
        g_c = min(1, bound / (sum_{d, n} |kernel_cdn| + sum_{b < c} |colour_cb|))

    n are the 12 pixels before (h, w) in the 5 x 5 around it, row by row, and b the colours before c of the same pixel.
    pi, loc, scale and colour are those of the pixel (h, w). Since what P depends on comes before, the probabilities of
    all images sum to 1. m is the image without noise, which is what a reconstruction shows.

    Where neighbours explain an error of m over a whole region, a latent need not know it, and m is no image any more.
    So a training adds `penalty` to the loss, which is no part of the ELBO:

        penalty = weight D / 2 log( 1/D sum_d (x_d - m_d)^2 )

    With a weight of 1 that is, but for a constant, -log p of the image under Normal noise of the variance that suits it
    best.

    Args:
        logits: of pi, (..., K, H, W).
        loc: (..., K, C, H, W), in units of the pixels; it may lie beyond black and white.
        scale: positive, of the same shape.
        colour: (..., C (C - 1) / 2, H, W): of the second colour by the first, of the third by the first and the second;
            None to let the noise of each colour be independent.
        kernel: (C, C, 3, 5), of c and d; only `pixels_before` of it count. None without neighbours.
        bound: at most what the weights of a colour sum to.
        penalty_weight: of the penalty.
        has_missing: a colour of a pixel that is NaN is not observed: it has no factor, and its r is 0.
        validate_args: check parameters and values.

    Reference:
        Salimans et al., arXiv:1701.05517, sections 2.1 and 2.2.
    """

    arg_constraints: ClassVar = {"logits": constraints.real, "loc": constraints.real, "scale": constraints.positive}
    support = constraints.independent(eight_bit_level, 3)

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        colour: Tensor | None = None,
        kernel: Tensor | None = None,
        bound: float = 1.0,
        penalty_weight: float = 0.0,
        has_missing: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits
        self.loc = loc
        self.scale = scale
        self.colour = colour
        self.kernel = None if kernel is None else kernel * pixels_before().to(kernel)
        self.bound = bound
        self.penalty_weight = penalty_weight
        self.has_missing = has_missing
        super().__init__(loc.shape[:-4], loc.shape[-3:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        """Return the same distribution over a larger batch shape."""
        shape = torch.Size(batch_shape)
        count = len(self.batch_shape)
        new = copy.copy(self)
        for name in ("logits", "loc", "scale", "colour"):
            value = getattr(self, name)
            if value is not None:
                setattr(new, name, value.expand(*shape, *value.shape[count:]))
        super(DiscretizedLogisticMixture, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The image without noise, m, (..., C, H, W); the mean of x but for what clamping levels changes."""
        inside = self.loc.clamp(0, 1)
        if inside.shape[-4] == 1:
            return inside.squeeze(-4)
        return (self.logits.softmax(-3)[..., None, :, :] * inside).sum(-4)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(value), of the batch shape, in nats.

        Args:
            value: (..., C, H, W).
        """
        is_seen = None
        if self.has_missing:
            is_seen = ~value.isnan()
            value = value.nan_to_num(0.0)
        if self._validate_args:
            self._validate_sample(value)
        loc = self.loc
        if self.colour is not None or self.kernel is not None:
            residual = value - self.mean
            if is_seen is not None:
                residual = residual * is_seen
            loc = loc + self._shift(residual)[..., None, :, :, :]
        each = DiscretizedLogistic(loc, self.scale, validate_args=False).log_prob(value[..., None, :, :, :])
        if is_seen is not None:
            each = each * is_seen[..., None, :, :, :]
        of_pixels = each.sum(-3)
        if of_pixels.shape[-3] == 1:
            return of_pixels.flatten(-3).sum(-1)
        return (self.logits.log_softmax(-3) + of_pixels).logsumexp(-3).flatten(-2).sum(-1)

    def penalty(self, value: Tensor) -> Tensor:
        """Return what a training adds to the loss for the distance of m from an image, of the batch shape, in nats."""
        is_seen = ~value.isnan()
        square = torch.where(is_seen, value - self.mean, 0.0).square()
        count = is_seen.flatten(-3).sum(-1).clamp(min=1)
        mean = square.flatten(-3).sum(-1) / count
        return self.penalty_weight * count / 2 * (mean + _ROUNDING).log()

    def _shift(self, residual: Tensor) -> Tensor:
        """Return the shift of each location, given r: both (..., C, H, W)."""
        shift = torch.zeros_like(residual)
        if self.kernel is not None:
            images = pad(residual.reshape(-1, *self.event_shape), _PADDING)
            shift = conv2d(images, self.kernel).view_as(residual)
        if self.colour is not None:
            of_colours = [(self._colours(c) * residual[..., :c, :, :]).sum(-3) for c in range(1, self.event_shape[0])]
            shift = shift + torch.stack([torch.zeros_like(of_colours[0]), *of_colours], -3)
        return self._gain() * shift

    def _colours(self, c: int) -> Tensor:
        """Return the weights of the colours before c, (..., c, H, W)."""
        colour: Any = self.colour
        first = c * (c - 1) // 2
        return colour[..., first : first + c, :, :]

    def _gain(self) -> Tensor:
        """Return g, (..., C, H, W) or (C, 1, 1)."""
        total = torch.full((self.event_shape[0], 1, 1), 1e-6).to(self.loc)
        if self.kernel is not None:
            total = total + self.kernel.abs().sum((1, 2, 3))[:, None, None]
        if self.colour is not None:
            of_colours = [self._colours(c).abs().sum(-3) for c in range(self.event_shape[0])]
            total = total + torch.stack(of_colours, -3)
        return (self.bound / total).clamp(max=1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw images: all pixels at once of which none depends on another, w + 3 h of them being the same."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[:-3]
        loc, scale = self._drawn_components(batch)
        mean = self.mean.expand(shape)
        uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device)
        loc = loc + scale * torch.logit(uniform, eps=torch.finfo(loc.dtype).tiny)
        if self.colour is None and self.kernel is None:
            return _level(loc)
        num_colours, height, width = self.event_shape
        gain = self._gain().expand(shape)
        x = torch.empty_like(loc)
        residual = pad(torch.zeros_like(loc), _PADDING)
        for place in range(width + 3 * (height - 1)):
            h = torch.arange(max(0, math.ceil((place - width + 1) / 3)), min(height - 1, place // 3) + 1)
            w = place - 3 * h
            shift = torch.zeros(*batch, num_colours, len(h)).to(loc)
            if self.kernel is not None:
                window = residual[
                    ..., h[:, None, None] + torch.arange(_ROWS)[:, None], w[:, None, None] + torch.arange(_COLUMNS)
                ]
                shift = torch.einsum("...dnij,cdij->...cn", window, self.kernel)
            for c in range(num_colours):
                of_c = shift[..., c, :]
                if self.colour is not None:
                    of_colours = self._colours(c)[..., h, w] * residual[..., :c, h + 2, w + 2]
                    of_c = of_c + of_colours.sum(-2)
                level = _level(loc[..., c, h, w] + gain[..., c, h, w] * of_c)
                x[..., c, h, w] = level
                residual[..., c, h + 2, w + 2] = level - mean[..., c, h, w]
        return x

    def _drawn_components(self, batch: torch.Size) -> tuple[Tensor, Tensor]:
        """Return loc and scale of one component at each pixel, drawn with probability pi: (*batch, C, H, W)."""
        shape = torch.Size((*batch, *self.loc.shape[-4:]))
        loc, scale = self.loc.expand(shape), self.scale.expand(shape)
        if shape[-4] == 1:
            return loc.squeeze(-4), scale.squeeze(-4)
        logits = self.logits.expand(*batch, *self.logits.shape[-3:]).movedim(-3, -1)
        drawn = torch.distributions.Categorical(logits=logits).sample()
        index = drawn[..., None, None, :, :].expand(*batch, 1, *self.event_shape)
        return loc.gather(-4, index).squeeze(-4), scale.gather(-4, index).squeeze(-4)


def _level(x: Tensor) -> Tensor:
    """Return the nearest 8-bit levels."""
    return (x * 255).round().clamp(0, 255) / 255
