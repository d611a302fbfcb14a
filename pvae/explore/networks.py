"""A VAE, its codes and their map as the page of a run holds them, for network.js and the scripts of the pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MixtureSameFamily, Normal
from torch.nn.functional import normalize

from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.distributions.discrete import support_of
from pvae.distributions.joint import Joint
from pvae.models.features import Units, WithMask
from pvae.models.hierarchy import FirstLayer
from pvae.models.networks import BesideLinear, ChannelsLast, FlatBatch
from pvae.runs.checkpoint import in_8_bits
from pvae.runs.run import Run
from pvae.trained.codes import latent_names
from pvae.trained.latent_space import attribute_vector
from pvae.vae import VAE

_MOST = 31  # of the integers of a small matrix, which are compressed to some five bits each
_TYPES = {"f8": np.float64, "f4": np.float32, "f2": np.float16, "u1": np.uint8, "i1": np.int8}


@dataclass
class Tensors:
    """Tensors one after another in bytes; in JSON, each is its type, place, shape, and a factor of its values.

    Args:
        bytes: to which the tensors are added.
        is_small: whether matrices are added as small integers.
    """

    bytes: bytearray = field(default_factory=bytearray)
    is_small: bool = False

    def add(self, tensor: Tensor, kind: str = "f4") -> dict[str, Any]:
        """Add a tensor as float32, or as another of `_TYPES`, and return what stands for it in JSON."""
        step = 1.0
        if kind == "i1":
            tensor, step = in_8_bits(tensor, 127)
        elif self.is_small and kind == "f4" and tensor.dim() > 1:
            kind = "i1"
            tensor, step = in_8_bits(tensor, _MOST)
        place = len(self.bytes)
        self.bytes += tensor.detach().numpy().astype(_TYPES[kind]).tobytes()
        return {"tensor": [kind, place, len(self.bytes), list(tensor.shape)], "step": step}


def networks_of(config: Config, vae: Any, tensors: Tensors, has_encoder: bool = True) -> dict[str, Any]:
    """Return the distributions of a VAE for network.js; without its encoder, no q(z | x)."""
    parts: dict[str, Any] = dict.fromkeys(("posterior", "prior", "plane", "decoder", "likelihood"))
    parts["decoder"] = operations(vae.p_x.decoder, tensors)
    if config.likelihood_class.page:
        parts["likelihood"] = _likelihood(config, vae.p_x)
    q_z = vae.q_z
    if config.condition:
        if config.network_class.is_conv:
            parts["plane"] = operations(q_z.join.plane, tensors)
        q_z = q_z.posterior
    if has_encoder:
        parts["posterior"] = _posterior(config, q_z, tensors)
    parts["prior"] = _prior(config, vae, tensors)
    return parts


def map_of(run: Run, data: Dataset, codes: Tensor, labels: Tensor | None, tensors: Tensors) -> dict[str, Any]:
    """Return the planes of the map, the codes (N, L) in them, and their labels."""
    if run.config.prior_class.support == "points on the unit sphere":
        codes = normalize(codes, dim=-1)  # a mean is inside the sphere
    names = latent_names(run)
    sizes = run.config.latent_dims
    top = codes[:, -sizes[-1] :]
    active = top.std(0).argsort(descending=True).tolist()
    planes = _planes(top, names[-sizes[-1] :], active)
    shown: dict[str, Any] = {
        "names": names,
        "planes": planes,
        "active": active,
        "lower": [layer.argsort(descending=True)[:8].tolist() for layer in codes.std(0).split(list(sizes))[:-1]],
        "codes": None,
        "points": tensors.add(torch.cat([top @ torch.tensor(plane["axes"]).T for plane in planes], 1), "f2"),
        "labels": None,
        "attributes": [],
    }
    if codes.shape[1] > 2:
        shown["codes"] = tensors.add(codes, "f2")
    if labels is None:
        return shown
    if labels.dim() == 1:  # of classes
        shown["labels"] = tensors.add(labels)
        return shown
    for name, attribute in zip(data.label_names, labels.unbind(1)):
        if 0 < attribute.sum() < len(attribute):
            shown["attributes"].append((name, tensors.add(attribute_vector(top, attribute))))
    return shown


def _planes(codes: Tensor, names: list[str], active: list[int]) -> list[dict[str, Any]]:
    """Return the planes of the map, each with its two axes, of codes and their dimensions in order of spread."""
    size = codes.shape[1]
    first = active[:2]
    if size <= 2:
        first = list(range(size))
    axes = torch.zeros(2, size)
    axes[range(len(first)), first] = 1
    planes = [{"name": ", ".join(names[d] for d in first), "axes": axes.tolist(), "dims": first}]
    if size > 2:
        directions = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:2]
        planes.append({"name": "principal directions", "axes": directions.tolist(), "dims": []})
    return planes


def operations(network: nn.Module, tensors: Tensors) -> list[dict[str, Any]]:
    """Return what a network does, as operations of network.js."""
    layer: Any = network
    match network:
        case nn.Sequential() | FlatBatch():
            return [operation for child in layer.children() for operation in operations(child, tensors)]
        case BesideLinear():
            return [{"op": "sum", "branches": [operations(child, tensors) for child in layer.children()]}]
        case nn.Linear():
            weight = layer.weight
            if hasattr(layer, "mask"):  # zuko's
                weight = weight * layer.mask
            return [{"op": "linear", **_weights(weight, layer.bias, tensors)}]
        case nn.Conv2d() | nn.ConvTranspose2d():
            kernel = layer.kernel_size[0]
            shown = {"op": "conv-transpose", "stride": layer.stride[0], "kernel": kernel, "more": [0, 0]}
            shown["padding"] = layer.padding[0]
            weight = layer.weight
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.permute(0, 2, 3, 1)
                shown["more"] = list(layer.output_padding)
            elif layer.stride[0] == 1:  # as the transposed one by the reversed kernel, which is faster in the page
                weight = weight.flip(2, 3).permute(1, 2, 3, 0)
                shown["padding"] = kernel - 1 - layer.padding[0]
            else:
                shown["op"] = "conv"
            return [{**shown, **_weights(weight.flatten(1), layer.bias, tensors)}]
        case nn.BatchNorm1d() | nn.BatchNorm2d():  # in eval mode
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            shift = layer.bias - layer.running_mean * scale
            return [{"op": "affine", "scale": tensors.add(scale), "shift": tensors.add(shift)}]
        case nn.GroupNorm():
            affine = {"scale": tensors.add(layer.weight), "shift": tensors.add(layer.bias)}
            return [{"op": "group-norm", "groups": layer.num_groups, "eps": layer.eps, **affine}]
        case nn.LeakyReLU():
            return [{"op": "leaky-relu", "slope": layer.negative_slope}]
        case nn.Unflatten() if len(layer.unflattened_size) == 3:
            return [{"op": "reshape", "shape": list(layer.unflattened_size)}]
        case FirstLayer():
            return [{"op": "first", "size": layer.size}]
        case nn.ReLU() | nn.Tanh() | nn.Softplus() | nn.ELU() | nn.SiLU() | nn.GLU() | nn.Softmax():
            return [{"op": type(layer).__name__.lower()}]
        case nn.Flatten() | nn.Unflatten() | ChannelsLast() | Units() | WithMask():
            return []  # the page of a table holds what Units and WithMask return
    raise InputError(f"the page cannot compute a layer {type(layer).__name__}")


def _weights(weight: Tensor, bias: Tensor | None, tensors: Tensors) -> dict[str, Any]:
    weights: dict[str, Any] = {"weight": tensors.add(weight), "bias": None}
    if bias is not None:
        weights["bias"] = tensors.add(bias)
    return weights


def _transforms(transforms: nn.ModuleList, tensors: Tensors) -> list[Any] | None:
    """Return the networks of affine autoregressive transforms; None for splines and for a single dimension."""
    if not all(hasattr(transform, "hyper") and transform.total == 2 for transform in transforms):
        return None
    return [operations(cast(nn.Module, transform.hyper), tensors) for transform in transforms]


def _posterior(config: Config, module: Any, tensors: Tensors) -> dict[str, Any] | None:
    """Return q(z | x) for network.js, or None if that cannot compute it."""
    family = config.posterior_class
    if config.upper_latent_dims and hasattr(module, "sizes"):
        lists = [name for name in ("networks", "up") if hasattr(module, name)]
        networks = {name: [operations(network, tensors) for network in getattr(module, name)] for name in lists}
        of_layers = {"kind": config.inference, "sizes": module.sizes, **networks}
        if config.inference == "bottom-up":
            return {**of_layers, "first": _posterior(config, module.first, tensors)}
        return {**of_layers, "encoder": operations(module.encoder, tensors)}
    if not family.page:
        return None
    shown = {**family.page, "size": config.latent_dim, "encoder": operations(module.encoder, tensors)}
    if shown["kind"] == "flow":
        transforms = _transforms(module.transforms, tensors)
        return None if transforms is None else {**shown, "transforms": transforms}
    return shown


def _prior(config: Config, vae: Any, tensors: Tensors) -> dict[str, Any]:
    """Return p(z) for network.js: that of the top layer, and the networks of the others."""
    module, prior, sizes = vae.p_z, vae.prior(), list(config.latent_dims)
    networks = [operations(network, tensors) for network in getattr(module, "networks", ())]
    if isinstance(prior, Joint):
        module, prior = module.top, prior.first
        if support_of(prior):
            raise InputError("the page cannot compute several layers of bits: pvae draw RUN has their pictures")
    family = config.prior_class
    top: dict[str, Any] = {"kind": family.page or "unknown", "size": sizes[-1]}
    if family.page == "flow":
        transforms = _transforms(module.transforms, tensors)
        top |= {"kind": "unknown"} if transforms is None else {"transforms": transforms}
    if support_of(prior) == "bits":
        top["logits"] = tensors.add(cast(Any, prior).base_dist.logits)
    if isinstance(prior, MixtureSameFamily):
        parts = prior.component_distribution
        is_normal = isinstance(parts, Independent) and isinstance(parts.base_dist, Normal)
        top["kind"] = "mixture" if is_normal else "unknown"
        if is_normal:
            values = {"loc": parts.mean, "scale": parts.stddev, "logits": prior.mixture_distribution.logits}
            top |= {name: tensors.add(value) for name, value in values.items()}
    return {"top": top, "networks": networks, "sizes": sizes}


def _likelihood(config: Config, p_x: Any) -> dict[str, Any]:
    """Return p(x | z) for network.js."""
    family = config.likelihood_class
    scale = p_x.log_scale.exp().item() if p_x.learns_scale else float(getattr(p_x, "running_scale", p_x.scale))
    mean = family.page_mean or ("tanh" if p_x.symmetric else "sigmoid")
    return {"kind": family.page, "scale": scale, "mean": mean, **p_x.page_parameters()}


def notes_of(vae: VAE, posterior: Any, prior: Any) -> list[str]:
    """Return a sentence on each thing that the page cannot show, or shows otherwise."""
    notes = []
    if not vae.has_density:
        notes.append(
            "This is an autoencoder: q(z | x) is a point, so there is no rate, no ELBO and no prior to draw from; the "
            "circles are those of N(0, I), to compare the codes with."
        )
    if vae.is_pseudo:
        notes.append(
            "The Bernoulli is scored on grey pixels, so the ELBO is a pseudo-ELBO and no bound on log p(x); pvae score "
            "binarizes such images first."
        )
    if vae.takes_labels:
        notes.append("All is given the label y that is chosen: q(z | x, y), p(x | z, y), and a bound on log p(x | y).")
    if posterior is None:
        notes.append(
            "q(z | x) is a flow that this page does not compute: it decodes, and shows the codes that pvae computed, "
            "but encodes and scores nothing."
        )
    elif posterior["kind"] in ("flow", "planar"):
        notes.append(
            "q(z | x) is a flow without a mean in closed form: the map shows draws and no ellipse, and decodes one."
        )
    elif posterior["kind"] == "bottom-up":
        notes.append("q of the top layer depends on a draw of the others: the map shows draws in place of an ellipse.")
    if prior["top"]["kind"] == "unknown":
        notes.append(
            "The circles are those of N(0, I): p(z) is one that this page does not compute, so it has no samples, "
            "no rate and no ELBO."
        )
    if len(prior["sizes"]) > 1:
        notes.append("The map is of the top layer; the other layers follow at the means of their priors, or as set.")
    return notes
