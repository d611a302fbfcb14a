"""`explorer_page`: what the page of a run holds, and its text.

The page holds the networks as lists of simple operations, the distributions by their names and parameters, codes of
test images, and some of these images. `network.js` computes from them what torch computes here.
"""

from __future__ import annotations

import base64
import copy
import html
import inspect
import json
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MixtureSameFamily, Normal
from torch.nn.functional import normalize

from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.data.batch import Batch
from pvae.data.dataset import Dataset
from pvae.distributions.joint import Joint
from pvae.elbos.registry import loss_text
from pvae.models.hierarchy import FirstLayer
from pvae.models.labels import label_values
from pvae.models.networks import ChannelsLast, FlatBatch
from pvae.runs.checkpoint import in_8_bits
from pvae.runs.run import Run, shown_data
from pvae.trained.codes import latent_names
from pvae.trained.latent_space import attribute_vector, encode
from pvae.vae import VAE

__all__ = ["check_run", "explorer_page"]

_NUM_IMAGES, _NUM_TRAINED = 200, 2000  # of the test data
_MOST_TRAINED = 1024  # pixels of an image of which a VAE trains in the page
_TYPES = {"f4": np.float32, "f2": np.float16, "u1": np.uint8, "i1": np.int8}


def check_run(run: Run) -> None:
    """Check that a run can be shown as a page.

    Raises:
        InputError: its data are no images of one or three channels, or its VAE was built in Python or has --labels.
    """
    if run.has_own_vae:
        raise InputError(f"{run.path} trained a VAE of your own, whose modules the page cannot compute in a browser")
    if run.config.labels:
        raise InputError(f"{run.path} has --labels, and the page shows VAEs without labels, or given labels")
    if not run.data.is_images:
        raise InputError(f"{run.path} was trained on data that are no images, and the page shows images only")
    if not run.config.likelihood_family.page:
        raise InputError(f"{run.path} has --likelihood {run.config.likelihood}, which the page does not compute")
    if run.data.datum_shape[0] not in (1, 3):
        raise InputError(f"the page shows 1 or 3 channels, and the images of {run.path} have {run.data.datum_shape[0]}")


def explorer_page(run: Run, data: Dataset | None = None, frame: str = "", num_codes: int = 2000) -> str:
    """Return the text of an HTML file that decodes, encodes and scores images by the VAE of a run.

    Args:
        run: on images, of a VAE that a configuration describes.
        data: whose test images the page shows; `shown_data` of the run by default.
        frame: the title of the page as a frame of `side_by_side_page`, which shows less and follows the other frames.
        num_codes: the most test data whose codes the map shows.

    Raises:
        InputError: as for `check_run`; or the data or the weights cannot be read.
    """
    check_run(run)
    folder = Path(__file__).parent
    page = (folder / "page.html").read_text("utf-8")
    for name in ("network.js", "train.js", "page.js"):
        page = page.replace(f"/* {name} */", (folder / name).read_text("utf-8"))
    for name in ("guide", "log_likelihood", "model", "posterior", "prior"):
        line = inspect.getsourcelines(getattr(VAE, name))[1]
        page = page.replace(f"{{{{ {name} }}}}", f"pvae/vae.py:{line} VAE.{name}")
    page = page.replace("{{ loss }}", loss_text(run.config))
    tensors = _Tensors()
    with torch.no_grad():
        text = json.dumps(_content(run, data or shown_data(run), frame, num_codes, tensors)).encode()
    packed = zlib.compress(len(text).to_bytes(4, "little") + text + bytes(tensors.bytes), 9)
    content = base64.b64encode(packed).decode()  # zlib(length of the JSON, JSON, tensors)
    title = html.escape(frame or run.title.partition("\n")[0])
    page = page.replace("{{ class }}", "is-frame" if frame else "is-page")
    return page.replace("{{ content }}", content).replace("{{ title }}", title)


class _Tensors:
    """Tensors one after another in bytes; in JSON, each is its type, place, shape, and a factor of its values.

    Attributes:
        is_small: whether matrices are added in 8 bits.
    """

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.is_small = False

    def add(self, tensor: Tensor, kind: str = "f4") -> dict[str, Any]:
        step, place = 1.0, len(self.bytes)
        if self.is_small and kind == "f4" and tensor.dim() > 1:
            kind, (tensor, step) = "i1", in_8_bits(tensor)
        self.bytes += tensor.detach().numpy().astype(_TYPES[kind]).tobytes()
        return {"tensor": [kind, place, len(self.bytes), list(tensor.shape)], "step": step}


def _content(run: Run, data: Dataset, frame: str, num_codes: int, tensors: _Tensors) -> dict[str, Any]:
    """Return what the page holds as JSON: the run's networks and distributions, codes and images of the test data."""
    vae: Any = run.vae()
    config = run.config
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:num_codes]
    images = run.preparation.pixels(data.test, rows=chosen)
    y = data.labels["test"][chosen] if config.condition else None
    batch = Batch(images, y)
    given = None if y is None else tensors.add(label_values(y[:_NUM_IMAGES], len(data.label_names), y.dtype), "u1")
    networks = _networks(config, vae, tensors)
    few = f"The map shows {len(chosen):,} of the {run.data.num_test:,} test images."
    lines = run.title.split("\n")
    return {
        "title": [frame, lines[0]] if frame else [run.data.title.rpartition(" (")[0], *lines],
        "notes": [*_notes(vae, networks["posterior"], networks["prior"]), *[few] * (len(chosen) < run.data.num_test)],
        "shape": [*images.images.shape[1:]],
        "inner": [side - 2 * config.pad for side in images.images.shape[2:]],
        "keep_aspect": config.image_size == "auto",
        "symmetric": run.preparation.is_symmetric,
        "binarize": config.binarize,
        **networks,
        "pseudo": vae.is_pseudo,
        **_epochs(run, batch, tensors, {} if frame else run.kept_epochs()),
        **_map(run, data, encode(vae, batch), chosen, tensors),
        "given": given,
        "images": tensors.add(images.images[:_NUM_IMAGES], "u1"),
        "bits": None if frame else _bits(config, images.images[:_NUM_TRAINED], tensors),
        "image_names": [data.test_names[i] for i in chosen[:_NUM_IMAGES].tolist()],
        "label_names": list(data.label_names),
    }


def _bits(config: Config, images: Tensor, tensors: _Tensors) -> dict[str, Any] | None:
    """Return the images (N, 1, H, W), without their padding, as one bit a pixel, of which a VAE trains in the page.

    None where there are not two latents, or the images are large or have colours.
    """
    inner = nn.functional.pad(images, (-config.pad,) * 4)
    if config.latent_dims != (2,) or inner.shape[1] > 1 or inner[0].numel() > _MOST_TRAINED:
        return None
    return tensors.add(torch.from_numpy(np.packbits(inner.flatten(1).numpy() >= 128, axis=1)), "u1")


def _networks(config: Config, vae: Any, tensors: _Tensors) -> dict[str, Any]:
    """Return the distributions of a VAE for network.js."""
    decoder, likelihood = _operations(vae.p_x.decoder, tensors), _likelihood(config, vae.p_x)
    q_z = vae.q_z.posterior if config.condition else vae.q_z
    plane = _operations(vae.q_z.join.plane, tensors) if config.condition and config.is_conv else None
    distributions = {"posterior": _posterior(config, q_z, tensors), "prior": _prior(config, vae, tensors)}
    return {**distributions, "plane": plane, "decoder": decoder, "likelihood": likelihood}


def _epochs(run: Run, batch: Batch, tensors: _Tensors, kept: dict[int, dict[str, Tensor]]) -> dict[str, Any]:
    """Return networks and codes of kept epochs, and the rates and distortions of all."""
    if not kept:
        return {"epochs": []}
    vae, tensors.is_small, found, last = copy.deepcopy(run.vae()), True, [], run.best_checkpoint().epoch
    for epoch in sorted(epoch for epoch in kept if epoch < last):
        vae.load_state_dict(kept[epoch])
        codes = encode(vae, batch)
        points = tensors.add(normalize(codes, dim=-1) if run.config.prior_family.is_on_sphere else codes, "f2")
        found.append({"epoch": epoch, **_networks(run.config, vae, tensors), "points": points})
    tensors.is_small = False
    curve = [[row.epoch, row.rate, row.distortion] for row in run.metrics() if row.split == "test"]
    return {"epoch": last, "epochs": found, "curve": curve}


def _map(run: Run, data: Dataset, codes: Tensor, chosen: Tensor, tensors: _Tensors) -> dict[str, Any]:
    """Return the planes of the map, the codes (N, L) in them, and the labels of the chosen test data."""
    if run.config.prior_family.is_on_sphere:
        codes = normalize(codes, dim=-1)  # a mean is inside the sphere
    names, sizes = latent_names(run), run.config.latent_dims
    top = codes[:, -sizes[-1] :]
    planes, active = _planes(top, names[-sizes[-1] :])
    labels = None if data.test_labels is None else data.test_labels[chosen]
    is_class = labels is not None and labels.dim() == 1
    attributes = []
    if labels is not None and not is_class:
        varying = [a for a in range(labels.shape[1]) if 0 < labels[:, a].sum() < len(labels)]
        attributes = [(data.label_names[a], tensors.add(attribute_vector(top, labels[:, a]))) for a in varying]
    return {
        "names": names,
        "planes": planes,
        "active": active,
        "lower": [one.argsort(descending=True)[:8].tolist() for one in codes.std(0).split(list(sizes))[:-1]],
        "codes": tensors.add(codes, "f2") if codes.shape[1] > 2 else None,
        "points": tensors.add(torch.cat([top @ torch.tensor(plane["axes"]).T for plane in planes], 1), "f2"),
        "labels": tensors.add(labels) if labels is not None and is_class else None,
        "attributes": attributes,
    }


def _planes(codes: Tensor, names: list[str]) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the planes of the map, each with its two axes, and the dimensions in order of their spread."""
    size, unit = codes.shape[1], torch.eye(codes.shape[1])
    active = codes.std(0).argsort(descending=True).tolist()
    first = [0, 1][:size] if size <= 2 else active[:2]
    axes = torch.cat([unit[first], torch.zeros(2 - len(first), size)])
    planes = [{"name": ", ".join(names[d] for d in first), "axes": axes.tolist(), "dims": first}]
    if size > 2:
        directions = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:2]
        planes.append({"name": "principal directions", "axes": directions.tolist(), "dims": []})
    return planes, active


def _operations(network: nn.Module, tensors: _Tensors) -> list[dict[str, Any]]:
    """Return what a network does, as operations of network.js."""
    layer: Any = network
    match network:
        case nn.Sequential() | FlatBatch():
            return [operation for child in layer.children() for operation in _operations(child, tensors)]
        case nn.Linear():
            weight = layer.weight * layer.mask if hasattr(layer, "mask") else layer.weight  # zuko's are masked
            return [{"op": "linear", "weight": tensors.add(weight), "bias": _bias(layer, tensors)}]
        case nn.Conv2d() | nn.ConvTranspose2d():
            op, weight, more = "conv", layer.weight, [0, 0]
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
            if isinstance(layer, nn.ConvTranspose2d):
                op, weight, more = "conv-transpose", weight.permute(0, 2, 3, 1), list(layer.output_padding)
            elif stride == 1:  # as the transposed convolution by the reversed kernel, which is faster in the page
                op, weight, padding = "conv-transpose", weight.flip(2, 3).permute(1, 2, 3, 0), kernel - 1 - padding
            sizes = {"kernel": kernel, "stride": stride, "padding": padding, "more": more}
            return [{"op": op, "weight": tensors.add(weight.flatten(1)), "bias": _bias(layer, tensors), **sizes}]
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
        case nn.ReLU() | nn.Tanh() | nn.Softplus() | nn.ELU() | nn.SiLU() | nn.GLU():
            return [{"op": type(layer).__name__.lower()}]
        case nn.Flatten() | nn.Unflatten() | ChannelsLast():
            return []
    raise InputError(f"the page cannot compute a layer {type(layer).__name__}")


def _bias(layer: Any, tensors: _Tensors) -> dict[str, Any] | None:
    return None if layer.bias is None else tensors.add(layer.bias)


def _transforms(transforms: nn.ModuleList, tensors: _Tensors) -> list[Any] | None:
    """Return the networks of affine autoregressive transforms; None for splines and for a single dimension."""
    if not all(hasattr(one, "hyper") and one.total == 2 for one in transforms):
        return None
    return [_operations(cast(nn.Module, one.hyper), tensors) for one in transforms]


def _posterior(config: Config, module: Any, tensors: _Tensors) -> dict[str, Any] | None:
    """Return q(z | x) for network.js, or None if that cannot compute it."""
    family = config.posterior_family
    if config.upper_latent_dims and hasattr(module, "sizes"):
        lists = [name for name in ("networks", "up") if hasattr(module, name)]
        networks = {name: [_operations(one, tensors) for one in getattr(module, name)] for name in lists}
        of_layers = {"kind": config.inference, "sizes": module.sizes, **networks}
        if config.inference == "bottom-up":
            return {**of_layers, "first": _posterior(config, module.first, tensors)}
        return {**of_layers, "encoder": _operations(module.encoder, tensors)}
    if not family.page:
        return None
    found = {**family.page, "size": config.latent_dim, "encoder": _operations(module.encoder, tensors)}
    if family.has_flow_networks:
        transforms = _transforms(module.transforms, tensors)
        return None if transforms is None else {**found, "transforms": transforms}
    return found


def _prior(config: Config, vae: Any, tensors: _Tensors) -> dict[str, Any]:
    """Return p(z) for network.js: that of the top layer, and the networks of the others."""
    module, prior, sizes = vae.p_z, vae.prior(), list(config.latent_dims)
    networks = [_operations(one, tensors) for one in getattr(module, "networks", ())]
    if isinstance(prior, Joint):
        module, prior = module.top, prior.first
    family = config.prior_family
    top: dict[str, Any] = {"kind": family.page or "unknown", "size": sizes[-1]}
    if family.is_flow:
        transforms = _transforms(module.transforms, tensors)
        top |= {"kind": "unknown"} if transforms is None else {"transforms": transforms}
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
    family = config.likelihood_family
    scale = p_x.log_scale.exp().item() if p_x.learns_scale else float(getattr(p_x, "running_scale", p_x.scale))
    mean = family.page_mean or ("tanh" if p_x.symmetric else "sigmoid")
    return {"kind": family.page, "scale": scale, "mean": mean}


def _notes(vae: VAE, posterior: Any, prior: Any) -> list[str]:
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
            "but encodes and scores no image."
        )
    elif posterior["kind"] in ("flow", "planar"):
        notes.append("q(z | x) is a flow without a mean in closed form: the map shows draws in place of an ellipse.")
    elif posterior["kind"] == "bottom-up":
        notes.append("q of the top layer depends on a draw of the others: the map shows draws in place of an ellipse.")
    if prior["top"]["kind"] == "unknown":
        notes.append("p(z) is one that this page does not compute: it shows no samples, no rate and no ELBO.")
    if len(prior["sizes"]) > 1:
        notes.append("The map is of the top layer; the other layers follow at the means of their priors, or as set.")
    return notes
