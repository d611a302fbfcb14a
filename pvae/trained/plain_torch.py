"""`plain_torch`: a VAE as one file of plain torch, which needs neither pvae nor Pyro.

The text is that of `plain_torch.py.jinja`, with the layers of the networks as torch prints them. Distributions that
torch lacks are copied from `pvae.distributions`, without their docstrings.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from jinja2 import Environment
from safetensors.torch import save
from torch import Tensor, nn

from pvae.config.config import Config
from pvae.config.families import PlainTorch
from pvae.config.presets import as_option, system_title
from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.core.random_state import seeded
from pvae.models.build import build_vae
from pvae.models.features import Units
from pvae.models.hierarchy import FirstLayer
from pvae.models.networks import ChannelsLast, FlatBatch
from pvae.runs.run import Run
from pvae.vae import VAE

__all__ = ["export_torch", "plain_torch", "training_script", "weights"]

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # names in torchvision.datasets
_SHAPES = dict.fromkeys((*_TORCHVISION, "binarized-mnist"), (1, 28, 28)) | {"linear-gaussian": (1, 8, 8)}
_IN_THE_LOOP: dict[str, tuple[object, ...]] = {  # the values of options that the loop of a training script knows
    "grey": (False,),
    "elbo": ("trace", "analytic", "handwritten", "iwae"),
    "particles": (1,),
    "binarize": ("none", "threshold", "dynamic"),
    "schedule": ("constant", "cosine", "steps"),
    "free_bits": (0,),
    "clip_norm": (0,),
    "precision": ("fp32",),
    "condition": (False,),
    "initialization": ("torch", "burda"),
    "passes": (1,),
}
_SEEN = {  # by the encoder
    "log1p": "(((1 + x.double()) / (1 + self.mean.double())).log() / self.slope).to(self.mean.dtype)",
    "standardized": "((x.double() - self.mean.double() - self.mean_rest) / self.std.double()).to(self.std.dtype)",
}
_DEFAULTS = (  # what torch prints of a layer and need not be written
    r"(in|out)_features=|kernel_size=|, bias=True|, eps=1e-05|, momentum=0.1|, affine=True|, track_running_stats=True"
)
_IMPORTS = """\
import json
import math
import numpy as np
import sys
import torch
import torchvision
import zuko
from PIL import Image
from pathlib import Path
from torch import nn
from zuko.transforms import ComposedTransform"""  # each is written where its name is used


def export_torch(run: Run, folder: Path) -> list[Path]:
    """Write model.py, the VAE of a run in plain torch, and model.safetensors, its weights; return both paths.

    Args:
        run: the run.
        folder: where to write; it is made if it is missing, and the two files there are replaced.

    Raises:
        InputError: torch has no distribution for the VAE, or the VAE was built in Python.
    """
    if run.has_own_vae:
        raise InputError(
            f"{run.name} trained a VAE of your own, which is your own file already: torch.save its state_dict"
        )
    vae, shape = run.vae(), run.config.padded(run.data.datum_shape)
    sizes = ", ".join(map(str, shape))
    samples = "" if run.config.is_autoencoder else f"\n    vae.sample(16)  # ({', '.join(('16', sizes))})"
    title = f"""{run.title.replace(chr(10), ", ")}, in plain torch, written by pvae.

    vae = load()    # with the weights in model.safetensors, in eval mode: vae.train() to train it further
    vae.elbo(x)     # (B,), of x (B, {sizes}) with values {vae.p_x.domain}{samples}
"""
    code, tensors = folder / "model.py", folder / "model.safetensors"
    text = plain_torch(vae, run.config, shape, title).encode()
    found = {name: tensor.contiguous() for name, tensor in weights(vae, run.config).items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(tensors, save(found, {"written by": "pvae export"}))
    write_whole(code, text)
    return [code, tensors]


def training_script(config: Config) -> str:
    """Return the text of a Python file that trains a system: the VAE in plain torch, its data, and a loop.

    At its first step the loss is that of `fit`: weights, images and draws are the same.

    Raises:
        InputError: the loop has no such option, or torch has no distribution for the VAE.
    """
    config = config.replace(dataset="mnist") if config.dataset == "auto" else config
    size = int(config.image_size) if config.image_size.isdecimal() else 0
    shape = _SHAPES.get(config.dataset, (3, size, size))
    has_data = config.dataset in _SHAPES or (config.dataset == "celeba" and size > 0)
    refused = [name for name, values in _IN_THE_LOOP.items() if getattr(config, name) not in values]
    refused += ["dataset"] * (not has_data)
    refused += ["likelihood"] * (not config.likelihood_family.is_of_images or config.likelihood_family.needs_batch)
    refused += ["patience"] * (config.patience > 0 and config.system not in ("images", "values"))
    if refused:
        option = as_option(refused[0], getattr(config, refused[0]))
        raise InputError(f"the loop that --print writes has no {option}: give another value, or train by pvae")
    downloads = ", to which torchvision downloads them" * (config.dataset in _TORCHVISION)
    title = f"""{system_title(config)}, in plain torch, written by pvae.

    python FILE [DIR]    # DIR holds the data (default: data){downloads}
"""
    with seeded(config.seed, torch.device("cpu")):
        vae = build_vae(config, shape)
    return plain_torch(vae, config, config.padded(shape), title, config.dataset)


def plain_torch(vae: VAE, config: Config, datum_shape: Sequence[int], title: str, data: str = "") -> str:
    """Return the text of a Python file that holds the VAE as a class of plain torch.

    Its `elbo(x)` takes the KL divergence in closed form where --elbo analytic does, and one draw from q(z | x).

    Args:
        vae: as `build_vae` makes it.
        config: its configuration.
        datum_shape: (C, H, W) of x.
        title: the docstring of the file.
        data: the data set that the file trains an untrained VAE on; "" for a file that loads weights from beside it.

    Raises:
        InputError: a family has no template, the VAE takes labels or missing values, or it has a VampPrior of flows.
    """
    plain = likelihood, prior, posterior = _templates(config)
    copied = [_copied(one.copied) for one in plain if one.copied]
    networks = {name: _printed(name, network, config) for name, network in _networks(vae, config).items()}
    title = title.replace(chr(92), "/").replace('"""', '"')  # the name of a data set may hold anything
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    values: dict[str, Any] = {
        "c": config,
        "q": config.posterior_family,
        "layers": len(config.latent_dims),
        "size": config.latent_dims[-1],
        "shape": tuple(datum_shape),
        "num_dims": len(datum_shape),
        "squash": "tanh" if config.is_symmetric else "sigmoid",
        "seen": _SEEN.get(config.likelihood_family.sees, "x"),
    }

    def rendered(template: str) -> str:
        return environment.from_string(template).render(values)

    bodies = {"likelihood": likelihood.body, "prior": prior.body, "posterior": posterior.body, "rate": posterior.rate}
    values |= {name: rendered(body).rstrip() for name, body in bodies.items()}
    values["setup"] = rendered(prior.setup).splitlines() + rendered(likelihood.setup).splitlines()
    is_normal = any(re.search(r"\bnormal\(", values[name]) for name in ("posterior", "prior"))
    values |= {
        "closed_forms": config.closed_forms[:: 1 if config.inference == "bottom-up" else -1],
        "has_normal": is_normal or bool(config.upper_latent_dims),
        "copied": [code for _, code in copied],
        "networks": networks,
        "bound": _bound(vae),
        "data": data,
        "torchvision": _TORCHVISION,
    }
    text = rendered(Path(__file__).with_suffix(".py.jinja").read_text("utf-8"))
    imports = set[str]().union(*(lines for lines, _ in copied))  # of what was copied
    nodes = [*ast.walk(ast.parse(text))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    known = {node.name for node in nodes if isinstance(node, ast.ClassDef)} | {*re.findall(r"\w+", " ".join(imports))}
    imports |= {line for line in _IMPORTS.splitlines() if line.split()[-1] in used}
    imports.add(f"from torch.distributions import {', '.join(sorted(used & {*torch.distributions.__all__} - known))}")
    return f'"""{title}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(sorted(imports)) + f"\n\n\n{text}"


def _templates(config: Config) -> list[PlainTorch]:
    """Return the templates of likelihood, prior and posterior.

    Raises:
        InputError: torch has no distribution for the VAE, or its networks have simple functions beside them.
    """
    if config.takes_labels:
        raise InputError("a VAE with labels cannot be written in plain torch yet: use pvae.load")
    if config.missing:
        raise InputError("a VAE of missing values cannot be written in plain torch yet: use pvae.load")
    if config.prior_family.is_of_posterior and config.posterior_family.is_flow:
        raise InputError("a VampPrior of flows cannot be written in plain torch, which has no mixture of them")
    plain = list[PlainTorch]()
    for family in (config.likelihood_family, config.prior_family, config.posterior_family):
        if family.plain_torch is None:
            other = ", or train with --likelihood student-t" * (family.name == "normal-diagonal")
            raise InputError(f"{family.name} cannot be written in plain torch: use pvae.load{other}")
        plain.append(family.plain_torch)
    if config.initialization == "exact":
        raise InputError(
            "networks of --initialization exact cannot be written in plain torch: use pvae.load, or train with "
            "--initialization torch"
        )
    return plain


def weights(vae: VAE, config: Config) -> dict[str, Tensor]:
    """Return the tensors of a VAE by their names in the class that `plain_torch` writes."""
    found: dict[str, Tensor] = {}
    for module, family in ((_top(vae, config), config.prior_family), (vae.p_x, config.likelihood_family)):
        if family.plain_torch is not None:
            found |= {name: attrgetter(where)(module) for name, where in family.plain_torch.tensors.items()}
    for name, network in _networks(vae, config).items():
        is_list = isinstance(network, nn.ModuleList)
        for prefix, one in (
            [(f"{name}.{place}", one) for place, one in enumerate(network)] if is_list else [(name, network)]
        ):
            layers = _layers(one)
            names = [prefix] if layers == [one] else [f"{prefix}.{place}" for place in range(len(layers))]
            for own, layer in zip(names, layers):
                found |= {f"{own}.{key}": tensor for key, tensor in layer.state_dict().items()}
    return found


def _networks(vae: Any, config: Config) -> dict[str, Any]:
    """Return the networks by their names in the class, in the order in which they draw their first weights."""
    is_first_only = config.upper_latent_dims and config.inference == "bottom-up"
    networks = {"encoder": (vae.q_z.first if is_first_only else vae.q_z).encoder, "decoder": vae.p_x.decoder}
    if config.network == "conv-groupnorm":
        networks = dict(reversed(networks.items()))
    if config.upper_latent_dims:
        networks |= {"up": vae.q_z.up if config.inference == "ladder" else vae.q_z.networks, "down": vae.p_z.networks}
    if config.posterior_family.has_flow_networks:
        networks["flow"] = vae.q_z.transforms
    if config.prior_family.is_flow:
        networks["prior_flow"] = _top(vae, config).transforms
    return networks


def _top(vae: Any, config: Config) -> Any:
    return vae.p_z.top if config.upper_latent_dims else vae.p_z


def _bound(vae: VAE) -> str:
    if not vae.has_density:
        return "negative distortion, which is no bound on log p(x),"
    return "pseudo-ELBO, which is no bound on log p(x) of grey x," if vae.is_pseudo else "ELBO, a bound on log p(x),"


def _layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network in their order, without those that only rearrange its input."""
    if type(network) in (nn.Sequential, FlatBatch):
        return [layer for child in network.children() for layer in _layers(child)]
    return [] if isinstance(network, ChannelsLast | FirstLayer | Units) else [network]


def _printed(name: str, network: Any, config: Config) -> str:
    """Return the expression that builds a network, or a list of networks."""
    if name in ("flow", "prior_flow"):
        size, context = config.latent_dims[-1], config.hidden[-1] if name == "flow" else 0
        bins = config.posterior_family.arguments(config).get("num_bins", 0) if name == "flow" else 0
        splines = f", univariate=zuko.transforms.MonotonicRQSTransform, shapes=[({bins},), ({bins},), ({bins - 1},)]"
        options = f"hidden_features={config.flow_hidden}" + splines * (bins > 0)
        return (
            "nn.ModuleList(\n    zuko.flows.MaskedAutoregressiveTransform(\n"
            f"        {size}, {context}, order=list(range({size}))[:: (-1) ** t], {options}\n"
            f"    )\n    for t in range({config.flow_length})\n)"
        )
    if isinstance(network, nn.ModuleList):
        return (
            "nn.ModuleList([\n" + "".join(f"{indent(_printed('', one, config), '    ')},\n" for one in network) + "])"
        )
    layers = (re.sub(_DEFAULTS, "", repr(layer)) for layer in _layers(network))
    return "nn.Sequential(\n" + "".join(f"    nn.{layer},\n" for layer in layers) + ")"


def _copied(name: str) -> tuple[set[str], str]:
    """Return the imports and the other code of a module of `pvae.distributions`, with torch in place of Pyro."""
    source = inspect.getsource(importlib.import_module(f"pvae.distributions.{name}"))
    source = source.replace("pyro.distributions.torch_distribution", "torch.distributions")
    source = source.replace("pyro.", "torch.").replace("TorchDistribution", "Distribution")
    tree, imports = ast.parse(source.replace("constraints.sphere", "constraints.real_vector")), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            lines = [one for one in node.body if isinstance(one, ast.Import | ast.ImportFrom)]
            imports |= {ast.unparse(one) for one in lines} - {"from __future__ import annotations"}
            node.body = [one for one in node.body if one not in lines and not _is_for_readers(one)]
    return imports, ast.unparse(tree)


def _is_for_readers(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, or the list of a module's public names."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or ast.unparse(node).startswith("__all__")
