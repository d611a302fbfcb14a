"""Modules that return the likelihood p(x | z) of a latent.

To add one, write a subclass of `Likelihood` with a name here, and a test of its density: flags, `Config`, refusals, the
book and the tests over all families read the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pvae.core.errors import InputError
from pvae.core.options import Family, Option
from pvae.core.tracing import require
from pvae.distributions.pixel_mixture import DiscretizedLogisticMixture, pixels_before
from pvae.distributions.pixels import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    LogitBernoulli,
    PseudoBernoulli,
    eight_bit_level,
)
from pvae.distributions.values import Censored, InFloat64, InSteps, Observed, WithAtom, ordered_logits
from pvae.models.features import CountUnits, LogUnits, OrdinalUnits, RealUnits, Standardize, Units, WithMask

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "DiagonalNormalLikelihood",
    "DiscretizedLogisticLikelihood",
    "DiscretizedLogisticMixtureLikelihood",
    "LearnedNormalLikelihood",
    "Likelihood",
    "LinearNormalLikelihood",
    "NegativeBinomialLikelihood",
    "NormalLikelihood",
    "OptimalNormalLikelihood",
    "OrdinalLikelihood",
    "PoissonLikelihood",
    "PositiveLikelihood",
    "PseudoBernoulliLikelihood",
    "RealLikelihood",
    "Scale",
    "ScaledLikelihood",
    "StudentTLikelihood",
    "ZeroInflatedLikelihood",
]


_SCALE = "scale of a likelihood, such as a Normal's standard deviation: fixed, or its initial value"
Scale = Annotated[float, Option(help=_SCALE, least=1e-38, most=1e38)]  # float32 holds little beyond


class Likelihood(nn.Module, Family):
    """A likelihood p(x | z) that is independent over pixels; the decoder gives the parameters of each pixel.

    A subclass defines `pixels`. It overrides `domain` and `in_domain` if its pixels are not all values of a range.

    Args:
        decoder: a network from (..., L) to (..., C, H, W).
        datum_shape: (C, H, W), the event of the likelihood.
        has_missing: NaN is a value that is missing, as in `Observed`.

    Attributes:
        inside: a value in the domain, in place of one that is missing.
        symmetric: the pixels are in [-1, 1] in place of [0, 1].
        pseudo: whether it is a pseudo-likelihood: `log_prob` is not the logarithm of a density of the pixels.
        is_density: whether it is a density over pixels and not a probability.
        learns_scale: whether the scale is trained, as the parameter `log_scale`.
        has_fixed_scale: it is a Normal whose scale is not trained.
        is_joint: its distribution is of a whole image, whose pixels depend on one another.
        needs_batch: whether in training log p(x | z) of a datum depends on the other data of the batch.
        outputs_each: the number of outputs of the decoder for each value of a datum.
        output_shape: the shape of the decoder's output for one latent.
        grey: the class for pixels that are not binarized, if it is another one.
        is_of_images: its data are images or other values of their range; False: data other than images alone.
        is_of_logits: outputs of the decoder are logits.
        is_linear: with a linear network its log p(x) is known exactly; it takes no other one.
        has_levels: a probability of 8-bit levels, reported in bits per dimension too.
        has_atom: many values are exactly the least one.
        has_exact_start: `pvae.models.start` can set it to a model in closed form.
        units_seen: the units in which the encoder sees x; None for x itself.
        page: its name in `LIKELIHOODS` or `IMAGE_LIKELIHOODS` of `explore/network.js`; "" if the page does not
            compute it.
        page_mean: for the page, how the output of the decoder becomes the location; "" for the range of the pixels.
        is_on_table_page: the page of a table computes it, by `COLUMNS` of `explore/table.js`.
        column_feature: what the encoder of a table sees of such a column: "standardized"; "log1p" or "log", the
            logarithm of 1 + x, or of the distance from the least value, standardised; or "" for x itself.
        may_have_limit: such a column may have values that are known only to be below a limit.
    """

    inside: float | Tensor = 0.0
    scale = 1.0
    symmetric = False
    pseudo = False
    is_density = False
    learns_scale = False
    has_fixed_scale = False
    is_joint = False
    needs_batch = False
    outputs_each = 1
    grey: type[Likelihood] | None = None
    is_of_images = True
    is_of_logits = False
    is_linear = False
    has_levels = False
    has_atom = False
    has_exact_start = False
    units_seen: type[Units] | None = None
    page = ""
    page_mean = ""
    is_on_table_page = False
    column_feature = ""
    may_have_limit = False

    def __init__(self, decoder: nn.Module, datum_shape: Sequence[int], has_missing: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self.datum_shape = tuple(datum_shape)
        self.output_shape = self.decoded_shape(datum_shape)
        self.has_missing = has_missing

    @classmethod
    def decoded_shape(cls, datum_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the decoder's output for one latent."""
        return (cls.outputs_each * datum_shape[0], *datum_shape[1:])

    @classmethod
    def features(cls, datum_shape: Sequence[int], has_missing: bool = False) -> tuple[list[nn.Module], tuple[int, ...]]:
        """Return what lies between x and the encoder: modules, and the shape of their result."""
        seen: list[nn.Module] = []
        if cls.units_seen is not None:
            seen.append(cls.units_seen(datum_shape))
        if not has_missing:
            return seen, tuple(datum_shape)
        return [*seen, WithMask(datum_shape)], (2 * datum_shape[0], *datum_shape[1:])  # the values and their mask

    def forward(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z): batch shape z.shape[:-1], event shape (C, H, W)."""
        return self.given(self.decoder(z))

    def given(self, output: Tensor) -> TorchDistribution:
        """Return p(x) given the decoder's output, (..., *output_shape): batch shape (...), event shape (C, H, W)."""
        pixels, num_dims = self.pixels(output), len(self.datum_shape)
        if pixels.event_shape:  # a joint distribution of the whole datum
            return pixels
        return Observed(pixels, num_dims) if self.has_missing else pixels.to_event(num_dims)

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return the distribution of each pixel, given the decoder's output (..., C, H, W)."""
        raise NotImplementedError

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the outputs that suit data best, about those of the greatest weighted log-likelihood.

        Args:
            x: data, (N, *D); NaN is a value that is missing.
            weights: K weights for each datum, float64 (N, K).

        Returns:
            (K, *output_shape), float64.

        Raises:
            NotImplementedError: this likelihood has no such closed form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no outputs in closed form")

    def normal_values(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return y (N, D), Normal given z, and log |dy/dx| (N, D), of data x (N, *D); None if x has no such y."""
        return None

    @property
    def domain(self) -> str:
        """A text that says which values of a pixel are allowed."""
        if self.symmetric:
            return "in [-1, 1]"
        return "in [0, 1]"

    @property
    def levels_per_unit(self) -> float:
        """The number of 8-bit levels in an interval of length 1 of pixel values; 1 for a probability."""
        if not self.is_density:
            return 1.0
        if self.symmetric:
            return 127.5
        return 255.0

    def output_places(self) -> Tensor:
        """Return which outputs of the decoder are those of each value of x: int64 (D, number of them)."""
        each = math.prod(self.output_shape) // math.prod(self.datum_shape)
        return torch.arange(math.prod(self.output_shape)).view(each, -1).T

    def placed(self) -> Iterator[tuple[Any, list[int], Tensor]]:
        """Yield each part of the likelihood, the places of its values in x, and which outputs are those of each."""
        yield self, list(range(math.prod(self.datum_shape))), self.output_places()

    def page_parameters(self) -> dict[str, Any]:
        """Return what the page of images needs beside the scale."""
        return {}

    def table_page(self, place: int) -> dict[str, Any]:
        """Return what the page of a table needs of the value at a place of x: its `table_kind`, and its outputs."""
        part, places, outputs = next(group for group in self.placed() if place in group[1])
        index = places.index(place)
        return {**part.table_kind(index), "outputs": outputs[index].tolist()}

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the kind in `COLUMNS` of `explore/table.js`, and the parameters, of the value at a place of x."""
        raise NotImplementedError

    def check(self, x: Tensor) -> Tensor:
        """Return `x` if it is a batch of images in the domain.

        Args:
            x: pixels, (B, C, H, W).

        Raises:
            InputError: (a ValueError) `x` has another shape or dtype, or a pixel is NaN or outside the domain.
        """
        if x.shape[1:] != self.datum_shape or x.dim() != len(self.datum_shape) + 1:
            wanted = ", ".join(str(size) for size in ("B", *self.datum_shape))
            raise InputError(f"x has shape {tuple(x.shape)}, but this VAE takes images of shape ({wanted})")
        if not x.is_floating_point():
            raise InputError(f"x is {x.dtype}, but pixels must be floating-point: x.float() / 255 for uint8")
        if x.numel():
            seen = torch.where(x.isnan(), self.inside, x) if self.has_missing else x
            require(self.in_domain, seen, lambda: InputError(self._refusal(seen)))
        return x

    def _refusal(self, x: Tensor) -> str:
        if x.isnan().any():
            return "x has NaN, which a VAE trained with --missing (missing=True) takes"
        return f"values must be {self.domain}: otherwise, give another likelihood"

    def in_domain(self, x: Tensor) -> Tensor:
        """Return whether all values, of which none is missing, are in the domain: bool ()."""
        least = 0.0
        if self.symmetric:
            least = -1.0
        return (x.amin() >= least) & (x.amax() <= 1)  # NaN makes both comparisons false


class ScaledLikelihood(Likelihood):
    """Base class of the likelihoods that have a scale.

    Args:
        decoder: as for `Likelihood`, as are `options`.
        datum_shape: of x.
        scale: the scale of each pixel's distribution, or its initial value where the scale is trained.
        options: further arguments.
    """

    def __init__(self, decoder: nn.Module, datum_shape: Sequence[int], scale: Scale = 1.0, **options: Any) -> None:
        super().__init__(decoder, datum_shape, **options)
        self.scale = scale
        if self.learns_scale:
            self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())


def _means(x: Tensor, weights: Tensor, count: float = 1.0) -> Tensor:
    """Return weighted means (K, *D) of values (N, *D), with that count of data at the mean of all; NaN is left out."""
    is_seen, values = (~x.isnan()).double(), x.double().nan_to_num()
    of_all = values.sum(0) / is_seen.sum(0).clamp(min=1)
    total, number = (torch.einsum("nk,n...->k...", weights, each) for each in (values, is_seen))
    return (total + count * of_all) / (number + count)


class PseudoBernoulliLikelihood(Likelihood):
    """The pseudo-likelihood of grey pixels in [0, 1], `PseudoBernoulli`: its ELBO is a pseudo-ELBO.

        log_prob(x) = sum_d [ x_d log p_d + (1 - x_d) log(1 - p_d) ],    p_d = sigmoid(decoder_d(z))

    The negative cross-entropy is the logarithm of a probability only where each x_d is 0 or 1.
    """

    pseudo = True

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return PseudoBernoulli(logits=output)."""
        return PseudoBernoulli(logits=output)


class BernoulliLikelihood(Likelihood, name="bernoulli", help="of binary pixels, or the cross-entropy of grey ones"):
    """The likelihood of binary pixels.

        p(x | z) = prod_d Bernoulli(x_d; sigmoid(decoder_d(z)))

    The decoder gives logits and not probabilities: with a sigmoid in between, log p would be cut off at about -16,
    where its gradient is zero.

    Reference:
        Kingma and Welling, arXiv:1312.6114, appendix C.1, equation 11.
    """

    domain = "exactly 0 or 1"
    grey = PseudoBernoulliLikelihood
    is_on_table_page = True
    is_of_logits = True
    has_exact_start = True
    page = "bernoulli"

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Bernoulli(logits=output)."""
        return LogitBernoulli(logits=output)

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the logits of weighted means."""
        return _means(x, weights).clamp(1e-6, 1 - 1e-6).logit()

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the kind: all parameters are outputs of the decoder."""
        return {"kind": "binary", "num_levels": 2}

    @staticmethod
    def in_domain(x: Tensor) -> Tensor:
        """Return whether all values are 0 or 1."""
        return ((x == 0) | (x == 1)).all()

    @classmethod
    def fits(cls, x: Tensor) -> bool:
        """Return whether all values are 0 or 1."""
        return bool(cls.in_domain(x))


class ContinuousBernoulliLikelihood(
    Likelihood, name="continuous-bernoulli", help="a density of grey pixels of the same shape"
):
    """The density over grey pixels in [0, 1] that has the cross-entropy's shape and integrates to 1.

        p(x | z) = prod_d C(p_d) p_d^x_d (1 - p_d)^(1 - x_d),    p_d = sigmoid(decoder_d(z))
        C(p) = 2 artanh(1 - 2 p) / (1 - 2 p)

    C(1/2) is 2. `ContinuousBernoulli` computes it from the logit l of p; torch's class is inexact at large logits.

    The log-density, and so the ELBO, may be positive. At a pixel that is exactly 0 or 1 it has no upper limit: it grows
    like log|l|. The ELBO of grey images with black margins therefore keeps growing with the decoder's outputs, and
    says little about the model. `DiscretizedLogistic` is a probability of the 8-bit level and has no such problem.

    Reference:
        Loaiza-Ganem and Cunningham, arXiv:1907.06845, section 3.
    """

    is_density = True
    is_of_logits = True
    page = "continuous-bernoulli"

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return ContinuousBernoulli(logits=output)."""
        return ContinuousBernoulli(logits=output)


class NormalLikelihood(ScaledLikelihood, name="normal", help="of a fixed scale: a squared error"):
    """A Normal around the decoded image, at a fixed scale.

        p(x | z) = prod_d Normal(x_d; loc_d(z), scale^2),    loc_d(z) = sigmoid(decoder_d(z))

    The log-density is a squared error, -||x - loc||^2 / (2 scale^2), up to a constant. A sigmoid keeps loc in [0, 1],
    or a tanh in [-1, 1].

    Args:
        decoder: as for `ScaledLikelihood`, as are further arguments.
        datum_shape: of x.
        scale: of each pixel, or its initial value.
        symmetric: the pixels are in [-1, 1] in place of [0, 1].
    """

    is_density = True
    has_fixed_scale = True
    page = "normal"

    def __init__(self, *args: Any, symmetric: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.symmetric = symmetric

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Normal(loc, scale), where loc is the decoded image."""
        if self.learns_scale:
            least = 1 / (self.levels_per_unit * math.sqrt(2 * math.pi))  # no density of a byte exceeds that of its step
            return dist.Normal(self._loc(output), self.log_scale.exp().clamp(min=least))
        return dist.Normal(self._loc(output), self.scale)

    def _loc(self, output: Tensor) -> Tensor:
        if self.symmetric:
            return output.tanh()
        return output.sigmoid()


class LinearNormalLikelihood(
    NormalLikelihood, name="normal-linear", help="around the decoder's output itself, with --network linear"
):
    """A Normal around the decoder's output itself.

        p(x | z) = prod_d Normal(x_d; decoder_d(z), scale^2)

    With a linear decoder the VAE is linear-Gaussian, and `pvae.reference.linear_gaussian` computes log p(x) exactly.
    """

    domain = "finite"
    is_linear = True
    page_mean = "identity"

    def _loc(self, output: Tensor) -> Tensor:
        return output

    def in_domain(self, x: Tensor) -> Tensor:
        """Return whether all values are finite."""
        return x.isfinite().all()


class LearnedNormalLikelihood(NormalLikelihood, name="normal-learned", help="with one trained scale"):
    """A Normal with one trained scale, shared by all pixels.

        p(x | z) = prod_d Normal(x_d; loc_d(z), scale^2),    scale = max(exp(log_scale), u / sqrt(2 pi))

    The loss then weighs the squared error by 1 / (2 scale^2), which training chooses. u is the distance of two 8-bit
    levels: the density of a pixel is at most 1 / u.
    """

    learns_scale = True
    has_fixed_scale = False


_LEAST_LOG_SCALE = -6  # as in github.com/orybkin/sigma-vae-pytorch


class _ProfileNormal(dist.Normal):
    """A Normal whose `log_prob` uses the scale that maximises the likelihood of the batch, and gives it to `record`."""

    def __init__(self, loc: Tensor, scale: Tensor, record: Callable[[Tensor], object]) -> None:
        super().__init__(loc, scale)
        self.record = record

    def expand(self, batch_shape: Any, _instance: Any = None) -> _ProfileNormal:
        return _ProfileNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.record)

    def log_prob(self, value: Tensor) -> Tensor:
        scale = (value - self.loc).square().mean().clamp(min=math.exp(2 * _LEAST_LOG_SCALE)).sqrt()
        self.record(scale.detach())
        return dist.Normal(self.loc, scale).log_prob(value)


class OptimalNormalLikelihood(
    NormalLikelihood, name="normal-optimal", help="with the scale that is best for each batch (sigma-VAE)"
):
    """A Normal with the scale that maximises the likelihood of the data: sigma-VAE.

        p(x | z) = prod_d Normal(x_d; loc_d(z), scale^2)
        scale^2 = max(mean over batch and pixels of (x - loc)^2, exp(-12))

    Without the bound, images that are reproduced exactly would drive the scale to 0 and the loss to NaN. The authors'
    code bounds log scale at -6 too, by a softplus; here the bound changes no larger scale.

    In training, `log_prob` uses the optimal scale of each batch (a profile likelihood, not a bound). In eval mode the
    scale is a running average, updated and stored as BatchNorm's are; the likelihood is then an ordinary Normal and
    the ELBO a bound. The gradient passes through the scale: that part of it is zero for a mean of log-probabilities,
    but not for an importance-weighted bound. The scale makes the weight of each draw depend on all other draws, so the
    estimators "dreg" and "score" are biased in training.

    Reference:
        Rybkin, Daniilidis and Levine, arXiv:2006.13202, equation 5 (as submitted; there it should read sigma^2).
    """

    has_fixed_scale = False
    needs_batch = True
    momentum = 0.1
    running_scale: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("running_scale", torch.tensor(float(self.scale)))

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Normal(loc, running scale), or in training a Normal with the optimal scale of the batch."""
        loc = self._loc(output)
        if not self.training:
            return dist.Normal(loc, self.running_scale)
        return _ProfileNormal(loc, self.running_scale, lambda scale: self.running_scale.lerp_(scale, self.momentum))

    @property
    def is_bounding(self) -> bool:
        """Whether the ELBO is a bound: in eval mode only, because in training the scale is fitted to the batch."""
        return not self.training


class DiscretizedLogisticLikelihood(
    ScaledLikelihood, name="discretized-logistic", help="a probability of the 256 levels of each pixel"
):
    """The probability of the 256 levels of each pixel: `DiscretizedLogistic` with one trained scale for all pixels.

        p(x | z) = prod_d [ F(x_d + 1/510) - F(x_d - 1/510) ],    F(x) = sigmoid((x - loc_d(z)) / scale)
        loc_d(z) = 1/2 + decoder_d(z) / 2

    The outermost levels, 0 and 1, have all of the mass beyond them too; since a location may lie beyond black, a pixel
    can be surely black.
    Likelihoods of this kind, in nats or in bits per dimension, can be compared between models of the same images.
    """

    domain = "k / 255 with whole k"
    learns_scale = True
    has_levels = True
    page = "discretized-logistic"

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return DiscretizedLogistic(1/2 + output / 2, exp(log_scale))."""
        return DiscretizedLogistic(0.5 + 0.5 * output, self.log_scale.exp())

    def in_domain(self, x: Tensor) -> Tensor:
        """Return whether all pixels are 8-bit levels."""
        inside: Tensor = eight_bit_level.check(x).all()
        return inside


_LOG_SCALES = (-5.0, 3.0)  # the least and the greatest, beside the scale of the configuration

_NEIGHBOURS = """at most what the weights sum to by which the noise of a pixel follows that of the pixels and colours \
before it; 0: noise is independent"""
_IMAGE_WEIGHT = """weight in the loss, and never in an ELBO, of the log density of an image around its \
reconstruction, with Normal noise; without it, neighbours explain what a latent should know"""
Logistics = Annotated[int, Option(help="logistics of the mixture at each pixel", least=1, most=100)]
NoiseFromNeighbours = Annotated[float, Option(help=_NEIGHBOURS, most=10)]
ImageWeight = Annotated[float, Option(help=_IMAGE_WEIGHT, most=100)]


class DiscretizedLogisticMixtureLikelihood(
    ScaledLikelihood,
    name="discretized-logistic-mixture",
    help="the same by mixtures, and noise that follows neighbours",
):
    """The probability of images of 8-bit levels: `DiscretizedLogisticMixture` around the decoder's outputs.

    The decoder returns for each pixel the logits of K logistics (none of one logistic), their locations
    1/2 + output / 2, the logarithms of their scales beside that of `scale`, and the weights of the colours before. The
    weights of neighbours are trained beside it, and are the same at all pixels.

    Args:
        decoder: a network from (..., L) to (..., `decoded_shape`).
        datum_shape: (C, H, W).
        scale: of the noise before a training.
        logistics: K.
        noise_from_neighbours: the bound of the weights of neighbours and colours; 0 for independent noise.
        image_weight: of the penalty in the loss; it has no effect with independent noise.
        has_missing: a pixel that is NaN was not observed.
    """

    domain = DiscretizedLogisticLikelihood.domain
    has_levels = True
    is_joint = True
    in_domain = DiscretizedLogisticLikelihood.in_domain
    page = "discretized-logistic-mixture"

    def __init__(
        self,
        decoder: nn.Module,
        datum_shape: Sequence[int],
        scale: Scale = 0.05,
        logistics: Logistics = 3,
        noise_from_neighbours: NoiseFromNeighbours = 3.0,
        image_weight: ImageWeight = 0.5,
        has_missing: bool = False,
    ) -> None:
        super().__init__(decoder, datum_shape, scale, has_missing=has_missing)
        self.image_weight = image_weight
        self.logistics = logistics
        self.bound = noise_from_neighbours
        self.output_shape = self.decoded_shape(datum_shape, logistics, noise_from_neighbours)
        self.kernel = None
        if noise_from_neighbours:
            num_colours = datum_shape[0]
            self.kernel = nn.Parameter(torch.zeros(num_colours, num_colours, *pixels_before().shape))

    @classmethod
    def decoded_shape(
        cls, datum_shape: Sequence[int], logistics: int = 3, noise_from_neighbours: float = 3.0
    ) -> tuple[int, ...]:
        """Return the shape of the decoder's output for one latent."""
        return (sum(cls._sizes(datum_shape[0], logistics, noise_from_neighbours)), *datum_shape[1:])

    @staticmethod
    def _sizes(num_colours: int, logistics: int, bound: float) -> tuple[int, int, int, int]:
        """Return the numbers of outputs of a pixel: logits, locations, scales, weights of colours."""
        num_logits = num_weights = 0
        if logistics > 1:
            num_logits = logistics
        if bound:
            num_weights = num_colours * (num_colours - 1) // 2
        return num_logits, logistics * num_colours, logistics * num_colours, num_weights

    def page_parameters(self) -> dict[str, Any]:
        """Return the numbers of the mixture, and the weights of neighbours."""
        kernel: list[float] = []
        if self.kernel is not None:
            kernel = self.kernel.flatten().tolist()
        sizes = {"logistics": self.logistics, "bound": self.bound, "shape": self.datum_shape}
        return {**sizes, "kernel": kernel}

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return the distribution of the image, whose event is all of it."""
        sizes = self._sizes(self.datum_shape[0], self.logistics, self.bound)
        logits, loc, log_scale, colour = output.split(sizes, -3)
        shape = (self.logistics, self.datum_shape[0])
        if self.logistics == 1:
            logits = torch.zeros_like(loc[..., :1, :, :])
        scale = self.scale * log_scale.clamp(*_LOG_SCALES).exp()
        return DiscretizedLogisticMixture(
            logits,
            (0.5 + 0.5 * loc).unflatten(-3, shape),
            scale.unflatten(-3, shape),
            colour.tanh() if sizes[-1] else None,
            self.kernel,
            self.bound,
            self.image_weight if self.bound else 0.0,
            self.has_missing,
        )


# The mean of a column that is one of counts: beyond, a Normal in steps of 1 does as well; and of one that has no 0, as
# of ages, whose variance given z may be below their mean, which that of a negative binomial is not.
_MOST_COUNTS = 500
_FEW_COUNTS = 5
_LEAST_VARIANCE = 0.85  # of counts, as a share of their mean: that of a sample of a Poisson may be below 1
_LEAST_OFTEN = 0.05  # the share of rows that have the least value of a zero-inflated column,
_LEAST_ROWS = 10  # or their number, if a log-Normal describes the rest better than a Normal,
_TIMES = 4  # and how many times those that have any other value
_MOST_OF_REST = 0.1  # the share of the rest that may have one value
_CLOSER = 0.05  # nats by which a log-Normal must describe positive values better than a Normal

_LEAST_SHARE = 1e-3  # the least scale of a value, as a share of the standard deviation of the training data
_MOST_LOG_SCALE = 4.0  # of such a scale
_SMOOTHING = 0.01  # data at the mean of all, beside those of a component


class RealLikelihood(ScaledLikelihood):
    """Base class of the likelihoods of real values of any unit, each with a trained scale.

    `units` has m_d and s_d, mean and standard deviation of the training data, so that the outputs of the decoder are of
    order 1 whatever the units of x are, and the density is that of x in its own units. A value that was recorded in
    steps has the probability of its step, as `InSteps` says.

    Args:
        args: as for `ScaledLikelihood`, as are `options`.
        limit: L, below which values are known only to be below it, as in `Censored`; or None.
        options: further arguments.

    Attributes:
        table_name: the kind in `COLUMNS` of `explore/table.js`.
    """

    domain = "finite in float32"
    is_density = True
    is_on_table_page = True
    is_of_images = False
    units_seen = Standardize
    column_feature = "standardized"
    table_name: str
    units: RealUnits

    def __init__(self, *args: Any, limit: float | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.log_scale = nn.Parameter(torch.full(self.datum_shape, float(self.scale), device="cpu").log())
        self.units = self._units()
        self.units.limit = limit

    def _units(self) -> RealUnits:
        """Return new units of x."""
        return RealUnits(self.datum_shape)

    def _in_steps(self, p: TorchDistribution, output: Tensor) -> TorchDistribution:
        """Return a distribution of float64 parameters in the steps of x, and `Censored` if these have a limit."""
        p_in_steps = InSteps(InFloat64(p, output.dtype), self.units.step.double())
        if self.units.limit is None:
            return p_in_steps
        return Censored(p_in_steps, self.units.limit)

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the kind, units of the training data, the scale, and the step."""
        units = self.units
        parameters = {"loc": units.loc, "scale": units.scale, "log_scale": self.log_scale, "step": units.step}
        return {"kind": self.table_name, **{name: values[place].item() for name, values in parameters.items()}}

    @staticmethod
    def in_domain(x: Tensor) -> Tensor:
        """Return whether all values are finite in float32."""
        return x.float().isfinite().all()


class DiagonalNormalLikelihood(
    RealLikelihood, name="normal-diagonal", help="of real values, each with a scale that depends on z too"
):
    """A Normal whose location and scale both depend on z: real values of any location and scale.

        p(x | z) = prod_d Normal(x_d; m_d + s_d loc_d, (s_d scale_d)^2)
        scale_d^2 = exp(2 log_scale_d + 2 o_d) + 1e-6

    m_d, s_d and steps are those of `RealLikelihood`, and log_scale is a parameter. log_scale + o counts as 4 above 4.

    The decoder returns two values for each value of a datum, (2 D_1, D_2, ...): all loc, and then all o.

    Reference:
        Kingma and Welling, arXiv:1312.6114, appendix C.2.
    """

    outputs_each = 2
    has_exact_start = True
    least_share = _LEAST_SHARE
    may_have_limit = True
    table_name = "real"

    @classmethod
    def fits(cls, x: Tensor) -> bool:
        """Return True."""
        return True

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Normal(m + s loc, s scale), in steps."""
        return self._in_steps(dist.Normal(*self._loc_and_scale(output)), output)

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return weighted means and standard deviations."""
        y = (self._of_normal(x) - self.units.loc) / self.units.scale  # NaN is left out
        mean, square = (_means(values, weights, _SMOOTHING) for values in (y, y.square()))
        variance = (square - mean.square() - _LEAST_SHARE**2).clamp(min=_LEAST_SHARE**2)
        is_constant = y.nan_to_num(nan=-math.inf).amax(0) <= y.nan_to_num(nan=math.inf).amin(0)  # it says nothing
        variance = torch.where(is_constant, 1.0, variance)
        return torch.cat([mean, variance.log() / 2 - self.log_scale.double()], 1)

    def normal_values(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the values in units of the training data, and log |dy/dx|; None if they have a limit."""
        if self.units.limit is not None:
            return None
        y = (self._of_normal(x) - self.units.loc) / self.units.scale
        return y.flatten(1), (self._log_slope(x) - self.units.scale.log()).flatten(1)

    def _of_normal(self, x: Tensor) -> Tensor:
        """Return the values that are Normal given z, in float64."""
        return x.double()

    def _log_slope(self, x: Tensor) -> Tensor:
        """Return the logarithm of the derivative of `_of_normal`."""
        return torch.zeros_like(x, dtype=torch.float64)

    def _split(self, output: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of each value of a datum, in float64."""
        return output.double().chunk(self.outputs_each, -len(self.datum_shape))

    def _loc_and_scale(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale in the units of x, given the decoder's output."""
        loc, log_scale, *_ = self._split(output)
        log_scale = (self.log_scale.double() + log_scale).clamp(max=_MOST_LOG_SCALE)
        scale = ((2 * log_scale).exp() + _LEAST_SHARE**2).sqrt()
        return self.units.loc + self.units.scale * loc, self.units.scale * scale


class PositiveLikelihood(DiagonalNormalLikelihood):
    """A log-Normal whose parameters both depend on z: values above 0.

        p(x | z) = prod_d Normal(log x_d; m_d + s_d loc_d, (s_d scale_d)^2) / x_d

    m_d and s_d are those of log x in the training data, as `LogUnits` stores them; loc, scale and steps are those of
    `DiagonalNormalLikelihood`.
    """

    domain = "above 0, and finite in float32"
    inside = 1.0
    column_feature = "log"
    table_name = "positive"
    units: LogUnits

    @classmethod
    def fits(cls, x: Tensor) -> bool:
        """Return whether all are above 0, and a log-Normal describes them better than a Normal."""
        return bool(x.amin() > 0) and bool(x.log().mean() + x.log().std().log() + _CLOSER < x.std().log())

    def _units(self) -> LogUnits:
        return LogUnits(self.datum_shape, self.has_atom)

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return LogNormal(m + s loc, s scale), in steps."""
        return self._in_steps(dist.LogNormal(*self._loc_and_scale(output)), output)

    def _of_normal(self, x: Tensor) -> Tensor:
        return self.units.log_above(x)

    def _log_slope(self, x: Tensor) -> Tensor:
        return -self._of_normal(x)

    @staticmethod
    def in_domain(x: Tensor) -> Tensor:
        """Return whether all values are above 0, and finite in float32."""
        return ((x > 0) & x.float().isfinite()).all()


class ZeroInflatedLikelihood(PositiveLikelihood):
    """Values of which many are exactly the least one, a, such as 0; the others are a and a log-Normal value.

        p(x_d = a_d | z) = pi_d,    p(x_d | z) = (1 - pi_d) LogNormal(x_d - a_d; m_d + s_d loc_d, s_d scale_d)
        log pi_d / (1 - pi_d) = logit_d + log of the same odds in the training data

    `WithAtom` says in which unit the first of these is, and what steps add to it. The decoder returns loc, the scale's
    output, and logit.
    """

    domain = "at least the least value of the training data"
    outputs_each = 3
    table_name = "zero-inflated"
    has_atom = True
    may_have_limit = False

    @classmethod
    def fits(cls, x: Tensor) -> bool:
        """Return whether the least value is far more frequent than any other, and the rest is continuous, or seldom."""
        values, counts = x.unique(return_counts=True)
        if len(values) < 2:
            return False
        is_continuous = counts[1:].max() <= _MOST_OF_REST * counts[1:].sum()
        is_seldom = 2 * counts[0] >= len(x) and not PoissonLikelihood.in_domain(x)  # a Normal would be too narrow
        is_often = counts[0] >= _LEAST_OFTEN * len(x)
        is_log_normal = counts[0] >= _LEAST_ROWS and PositiveLikelihood.fits(x[x > values[0]] - values[0])
        is_repeated = (is_often or is_log_normal) and counts[0] >= _TIMES * counts[1:].max()
        return bool((is_continuous or is_seldom) and is_repeated)

    @property
    def inside(self) -> Tensor:  # type: ignore[override]
        """The least value."""
        return self.units.atom

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return WithAtom(LogNormal(m + s loc, s scale) in steps, a, logit)."""
        units, logits = self.units, self._split(output)[2] + self._log_odds
        return WithAtom(super().pixels(output), units.atom.double(), logits, units.step.double())

    def normal_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x - a) / exp(m), which may be taken as Normal where x has steps, and log |dy/dx|."""
        loc = self.units.loc.double()
        y = (x.double() - self.units.atom) / loc.exp()
        return y.flatten(1), -loc.expand_as(y).flatten(1)

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return what `PositiveLikelihood` returns, with the least value and its log odds."""
        atom = self.units.atom[place].double().item()
        return super().table_kind(place) | {"atom": atom, "log_odds": self._log_odds[place].item()}

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return means and standard deviations of logarithms above a, and log odds of a beside those of all data."""
        are_atoms = torch.where(x.isnan(), x, self.units.is_atom(x).to(x.dtype))
        logits = _means(are_atoms, weights).clamp(1e-6, 1 - 1e-6).logit()
        return torch.cat([super().outputs_for(x, weights), logits - self._log_odds], 1)

    @property
    def _log_odds(self) -> Tensor:
        """Return the log odds of the least value in the training data."""
        return self.units.share.double().clamp(1e-3, 1 - 1e-3).logit()

    def in_domain(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return whether all values are at least the least one, and finite in float32."""
        least = self.units.atom.double()
        return ((x.double() >= least - 1e-6 * least.abs()) & x.float().isfinite()).all()


_MOST_LOG_DF = 15  # beyond which it is a Normal to 1e-6


class StudentTLikelihood(RealLikelihood, name="student-t", help="of real values with outliers"):
    """A Student t with trained scale and degrees of freedom for each value of a datum: real values with outliers.

        p(x | z) = prod_d StudentT(x_d; df_d, m_d + s_d output_d, s_d exp(log_scale_d))

    m_d, s_d and steps are those of `RealLikelihood`, and exp(log_scale_d) is at least 0.001. df_d > 1 is
    1 + exp(log_df), where log_df counts as 15 above 15, and as -10 below -10; for large df it is a Normal. Its tails
    fall like |x|^-(df + 1), so that one outlier costs a few nats, where under a Normal it costs half of its squared
    distance.

    Reference:
        Takahashi et al., "Student-t variational autoencoder for robust density estimation", IJCAI 2018.
    """

    table_name = "student-t"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_df = nn.Parameter(torch.full(self.datum_shape, 2.0))

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return what `RealLikelihood` returns, with degrees of freedom, and the standard deviation or None."""
        p: Any = self.pixels(torch.zeros(self.datum_shape))
        sd = p.variance[place].sqrt().item()
        if not math.isfinite(sd):
            sd = None
        return super().table_kind(place) | {"sd": sd, "df": p.base.base.df[place].item()}

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return StudentT(1 + exp(log_df), m + s output, s exp(log_scale)), in steps."""
        units = self.units
        scale = units.scale * self.log_scale.double().exp().clamp(min=_LEAST_SHARE)
        df = 1 + self.log_df.double().clamp(-10, _MOST_LOG_DF).exp()
        return self._in_steps(dist.StudentT(df, units.loc + units.scale * output.double(), scale), output)


class PoissonLikelihood(Likelihood, name="poisson", help="of counts"):
    """Counts, whose variance given z is their mean, in the units of `CountUnits`.

        p(x | z) = prod_d Poisson(x_d; a_d softplus(c_d output_d + b_d))

    a and b make the mean that of the training data at an output of 0, and c makes its changes of their order. softplus
    and not exp, so that a large output is a rate of its order and not of its exponential. `InFloat64` computes the
    density.
    """

    domain = "whole numbers from 0 on"
    units_seen = CountUnits
    column_feature = "log1p"
    is_on_table_page = True
    is_of_images = False
    has_exact_start = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.units = CountUnits(self.datum_shape)

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the units of the training data, and theta of a negative binomial or None."""
        unit, shift = self.units.unit_and_shift()
        parameters = {"unit": unit, "shift": shift, "slope": self.units.slope}
        return {"kind": "count", "theta": None, **{name: values[place].item() for name, values in parameters.items()}}

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Poisson(a softplus(c output + b) + 1e-6)."""
        return InFloat64(dist.Poisson(self.units.mean_of(output)), output.dtype)

    def normal_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the counts in units of the training data, of which no Normal describes small ones well."""
        mean, theta = self.units.mean.double(), self.units.log_theta.double().exp()
        scale = (mean + mean.square() / theta).sqrt()
        return ((x.double() - mean) / scale).flatten(1), -scale.log().expand(x.shape).flatten(1)

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the outputs at which the mean is the weighted mean."""
        unit, shift = self.units.unit_and_shift()
        mean = (_means(x, weights).clamp(min=1e-4) - 1e-6) / unit
        inverse = mean + (-(-mean).expm1()).log()  # of softplus
        return (inverse - shift) / self.units.slope.double()

    @staticmethod
    def in_domain(x: Tensor) -> Tensor:
        """Return whether all are whole numbers from 0 on."""
        return ((x >= 0) & (x == x.round()) & x.float().isfinite()).all()

    @classmethod
    def fits(cls, x: Tensor) -> bool:
        """Return whether all are whole numbers from 0 on, of a small mean, which vary as counts do."""
        if not cls.in_domain(x) or x.var(correction=0) < _LEAST_VARIANCE * x.mean():
            return False
        most = _FEW_COUNTS
        if x.amin() == 0:
            most = _MOST_COUNTS
        return bool(x.mean() < most)


class NegativeBinomialLikelihood(
    PoissonLikelihood, name="negative-binomial", help="of counts that vary more than a Poisson's"
):
    """Counts that vary more than a Poisson's: a negative binomial of mean mu_d, with a trained theta_d.

        p(x | z) = prod_d NB(x_d; mean mu_d, variance mu_d + mu_d^2 / theta_d)
        mu_d = a_d softplus(c_d output_d + b_d)

    a, b and c are those of `CountUnits`, and log theta is a parameter beside the value that fits the variance of the
    training data. It is a Poisson whose rate is drawn from Gamma(theta, theta / mu), and approaches the Poisson for
    large theta; log theta counts as 15 above 15, and as -10 below -10.

    Reference:
        Lopez et al., scVI, Nature Methods 15, 2018, for cells x genes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_theta = nn.Parameter(torch.zeros(self.datum_shape))

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return NegativeBinomial(theta, logits = log mu - log theta)."""
        log_theta = self._log_theta()
        logits = self.units.mean_of(output).log() - log_theta
        return InFloat64(dist.NegativeBinomial(log_theta.exp().expand_as(logits), logits=logits), output.dtype)

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the units of the training data, and theta."""
        return super().table_kind(place) | {"theta": self._log_theta().exp()[place].item()}

    def _log_theta(self) -> Tensor:
        return (self.units.log_theta.double() + self.log_theta).clamp(-10, 15)


class CategoricalLikelihood(Likelihood):
    """Categories, as their codes from 0 to K - 1, with K outputs of the decoder for each value.

        p(x | z) = prod_d Categorical(x_d; softmax(output_d))

    Args:
        decoder: a network from (..., L) to (..., D K).
        datum_shape: (D,), the number of values of a datum.
        num_categories: K, the number of categories.
    """

    def __init__(self, decoder: nn.Module, datum_shape: Sequence[int], num_categories: int) -> None:
        super().__init__(decoder, datum_shape)
        self.num_categories = num_categories
        self.output_shape = self.decoded_shape(datum_shape, num_categories)

    @classmethod
    def decoded_shape(cls, datum_shape: Sequence[int], num_categories: int = 1) -> tuple[int, ...]:
        """Return the shape of the decoder's output for one latent."""
        return (datum_shape[0] * num_categories, *datum_shape[1:])

    def output_places(self) -> Tensor:
        """Return which outputs are those of each value: its K categories lie together."""
        return torch.arange(math.prod(self.output_shape)).view(math.prod(self.datum_shape), -1)

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the kind: all parameters are outputs of the decoder."""
        return {"kind": "categorical", "num_levels": self.num_categories}

    @property
    def domain(self) -> str:
        """A text that says which values are allowed."""
        return f"whole numbers from 0 to {self.num_categories - 1}"

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Categorical(logits=output)."""
        return dist.Categorical(logits=output.unflatten(-1, (-1, self.num_categories)))

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the logarithms of weighted shares."""
        return self._shares(x, weights).log().flatten(1)

    def _shares(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted share of each category, (K, D, number of categories)."""
        one_hot = (x[..., None] == torch.arange(self.num_categories, device=x.device)).double()
        return _means(torch.where(x.isnan()[..., None], math.nan, one_hot), weights).clamp(min=1e-6)

    def in_domain(self, x: Tensor) -> Tensor:
        """Return whether all are codes of the categories."""
        return ((x >= 0) & (x < self.num_categories) & (x == x.round())).all()


class OrdinalLikelihood(CategoricalLikelihood):
    """Levels 0, ..., K - 1 in an order: `ordered_logits` of one output and K - 1 trained cut points for each value.

        p(x | z) = prod_d [ sigmoid(c_{x_d + 1} - output_d) - sigmoid(c_{x_d} - output_d) ],    c_0 = -inf, c_K = inf

    The cut points start where each level has its share of the training data at an output of 0, as in `OrdinalUnits`,
    and stay at least 0.001 apart.
    """

    @classmethod
    def decoded_shape(cls, datum_shape: Sequence[int], num_categories: int = 1) -> tuple[int, ...]:
        """Return the shape of the decoder's output for one latent."""
        return tuple(datum_shape)

    def __init__(self, decoder: nn.Module, datum_shape: Sequence[int], num_categories: int) -> None:
        super().__init__(decoder, datum_shape, num_categories)
        self.units = OrdinalUnits(datum_shape, num_categories)
        self.first_cut = nn.Parameter(self.units.start[:1].repeat(*datum_shape, 1))
        self.log_gaps = nn.Parameter(self.units.start[1:].repeat(*datum_shape, 1))

    def restart(self) -> None:
        """Let the cut points be those before a training."""
        for parameter, start in ((self.first_cut, self.units.start[:1]), (self.log_gaps, self.units.start[1:])):
            parameter.data.copy_(start)

    @property
    def cutpoints(self) -> Tensor:
        """The cut points c_1, ..., c_{K - 1} of each value, (D, K - 1)."""
        return self.units.cutpoints(torch.cat([self.first_cut, self.log_gaps], -1))

    def table_kind(self, place: int) -> dict[str, Any]:
        """Return the cut points."""
        return {"kind": "ordinal", "num_levels": self.num_categories, "cuts": self.cutpoints[place].tolist()}

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return Categorical(logits=ordered_logits(output, cut points))."""
        return dist.Categorical(logits=ordered_logits(output, self.cutpoints))

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the outputs at which the cumulative shares are about the weighted ones."""
        below = self._shares(x, weights).cumsum(-1)[..., :-1].clamp(1e-4, 1 - 1e-4)
        return (self.cutpoints.double() - below.logit()).mean(-1)
