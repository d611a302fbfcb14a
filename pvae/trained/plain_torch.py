"""`plain_torch`: a VAE as one file of plain torch, which needs neither pvae nor Pyro.

The text is that of `plain_torch.py.jinja`, with the layers of the networks as torch prints them. Distributions that
torch lacks are copied from `pvae.distributions`, without their docstrings.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from jinja2 import Environment
from safetensors.torch import save
from torch import Tensor, nn

from pvae.config.config import Config
from pvae.config.presets import as_option, system_title
from pvae.core.errors import InputError
from pvae.core.files import check_replaceable, write_whole
from pvae.core.random_state import seeded
from pvae.distributions import continuous_bernoulli, discretized_logistic, planar, power_spherical
from pvae.models.build import build_vae
from pvae.models.features import Log1p, Standardize
from pvae.models.hierarchy import FirstLayer
from pvae.models.networks import ChannelsLast, FlatBatch
from pvae.runs.run import Run
from pvae.vae import VAE

__all__ = ["export_torch", "plain_torch", "training_script", "weights"]

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # names in torchvision.datasets
_SHAPES = dict.fromkeys((*_TORCHVISION, "binarized-mnist"), (1, 28, 28)) | {"linear-gaussian": (1, 8, 8)}
_SEEN = {"log1p": "x.log1p()", "standardized": "(x - self.mean) / self.std"}  # by the encoder
_NETWORKS_OF_FLOWS = ("iaf", "spline")
_DEFAULTS = (  # what torch prints of a layer and need not be written
    r"(in|out)_features=|kernel_size=|, bias=True|, eps=1e-05|, momentum=0.1|, affine=True|, track_running_stats=True"
)
_IMPORTS = {  # by what shows that they are used
    "import json": r"json\.",
    "import math": r"math\.",
    "import sys": r"sys\.",
    "from pathlib import Path": r"Path\(",
    "import numpy as np": r"np\.",
    "import torch": "",
    "import torchvision": r"torchvision\.",
    "import zuko": r"zuko\.",
    "from PIL import Image": r"Image\.",
    "from torch import nn": "",
    "from zuko.transforms import ComposedTransform": "ComposedTransform",
}
_DISTRIBUTIONS = (
    "Bernoulli", "Categorical", "Independent", "MixtureSameFamily", "MultivariateNormal", "NegativeBinomial", "Normal",
    "Poisson", "StudentT", "kl_divergence",
)  # fmt: skip


def export_torch(run: Run, folder: Path) -> list[Path]:
    """Write model.py, the VAE of a run in plain torch, and model.safetensors, its weights; return both paths.

    Args:
        run: the run.
        folder: where to write; it must exist.

    Raises:
        InputError: torch has no distribution for the VAE, the VAE was built in Python, model.py there holds other code,
            or model.safetensors there is not of pvae.
    """
    vae, shape = run.vae(), run.config.padded(run.data.datum_shape)
    sizes = ", ".join(map(str, shape))
    samples = "" if run.config.posterior == "delta" else f"\n    vae.sample(16)  # ({', '.join(('16', sizes))})"
    title = f"""{run.title.replace(chr(10), ", ")}, in plain torch, written by pvae.

    vae = load()    # with the weights in model.safetensors, in eval mode: vae.train() to train it further
    vae.elbo(x)     # (B,), of x (B, {sizes}) with values {vae.p_x.domain}{samples}
"""
    code, tensors = folder / "model.py", folder / "model.safetensors"
    check_replaceable(tensors)
    text = plain_torch(vae, run.config, shape, title).encode()
    # The first line says the epoch, which may be another one.
    if code.exists() and code.stat().st_size and code.read_bytes().partition(b"\n")[2] != text.partition(b"\n")[2]:
        raise InputError(f"{code} holds other code, as after an edit: move it away, or name another folder with --out")
    found = {name: tensor.contiguous() for name, tensor in weights(vae, run.config).items()}
    write_whole(tensors, save(found, {"written by": "pvae.export"}))
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
    fitting = {
        "dataset": config.dataset in (*_SHAPES, "celeba"),
        "image_size": bool(size) or config.dataset != "celeba",
        "grey": not config.grey,
        "elbo": config.elbo in ("trace", "analytic", "handwritten", "iwae"),
        "particles": config.particles == 1,
        "binarize": config.binarize != "static",
        "likelihood": config.likelihood_family.is_of_images and not config.likelihood_family.needs_batch,
        "schedule": config.schedule != "paper",
        "free_bits": config.free_bits == 0,
        "clip_norm": config.clip_norm == 0,
        "patience": config.patience == 0 or config.system in ("images", "values"),
        "precision": config.precision == "fp32",
        "condition": not config.condition,
    }
    if missing := [as_option(name, getattr(config, name)) for name, fits in fitting.items() if not fits]:
        raise InputError(f"the loop that --print writes has no {missing[0]}: give another value, or train by pvae")
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
        InputError: torch has no distribution for it: a VampPrior of flows.
    """
    has_flow = config.posterior in ("planar", *_NETWORKS_OF_FLOWS)
    if config.condition or config.labels:
        raise InputError("a VAE with labels cannot be written in plain torch yet: use pvae.load")
    if config.missing:
        raise InputError("a VAE of missing values cannot be written in plain torch yet: use pvae.load")
    if config.likelihood == "columns":
        raise InputError("--likelihood columns cannot be written in plain torch: use pvae.load")
    if config.prior == "vamp" and has_flow:
        raise InputError("a VampPrior of flows cannot be written in plain torch, which has no mixture of them")
    used = {
        continuous_bernoulli: config.likelihood == "continuous-bernoulli",
        discretized_logistic: config.likelihood == "discretized-logistic",
        power_spherical: config.prior == "sphere",
        planar: config.posterior == "planar",
    }
    copied = [_copied(module) for module, is_used in used.items() if is_used]
    is_normal = config.posterior in ("normal", "planar", *_NETWORKS_OF_FLOWS) or config.prior == "mixture"
    networks = {name: _printed(name, network, config) for name, network in _networks(vae, config).items()}
    title = title.replace(chr(92), "/").replace('"""', '"')  # the name of a data set may hold anything
    file = Path(__file__).with_suffix(".py.jinja")
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(
        file.read_text("utf-8")
    )
    text = template.render(
        c=config,
        layers=1 + len(config.upper_latent_dims),
        top=_latent_dims(config)[-1],
        closed_forms=config.closed_forms[:: 1 if config.inference == "bottom-up" else -1],
        has_flow=has_flow,
        has_normal=is_normal or bool(config.upper_latent_dims),
        copied=[code for _, code in copied],
        networks=networks,
        parameters={name: start for name, (start, _) in _parameters(vae, config).items()},
        bound=_bound(vae),
        beta=config.beta,
        data=data,
        shape=tuple(datum_shape),
        seen=_SEEN.get(config.likelihood_family.sees, "x"),
        torchvision=_TORCHVISION,
    )
    imports = {line for line, use in _IMPORTS.items() if re.search(use, text)}.union(*(lines for lines, _ in copied))
    imports.add(
        "from torch.distributions import " + ", ".join(n for n in _DISTRIBUTIONS if re.search(rf"\b{n}\(", text))
    )
    return f'"""{title}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(sorted(imports)) + f"\n\n\n{text}"


def weights(vae: VAE, config: Config) -> dict[str, Tensor]:
    """Return the tensors of a VAE by their names in the class that `plain_torch` writes."""
    found = {name: tensor for name, (_, tensor) in _parameters(vae, config).items()}
    if config.likelihood == "normal-optimal":
        found["running_scale"] = vae.get_buffer("p_x.running_scale")
    if config.likelihood_family.is_real:
        found |= {name: vae.get_buffer(f"p_x.units.{name}") for name in ("mean", "std")}
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
    if config.posterior in _NETWORKS_OF_FLOWS:
        networks["flow"] = vae.q_z.transforms
    if config.prior == "flow":
        networks["prior_flow"] = _top(vae, config).transforms
    return networks


def _parameters(vae: Any, config: Config) -> dict[str, tuple[str, Tensor]]:
    """Return the parameters that are in no network by their names in the class: first value and tensor."""
    top, found = _top(vae, config), dict[str, tuple[str, Tensor]]()
    if config.prior == "mixture":
        size = f"{config.components}, {_latent_dims(config)[-1]}"
        found["loc"] = f"torch.randn({size})", top.loc
        found["log_scale_of_prior"] = f"torch.zeros({size})", top.log_scale
        found["logits"] = f"torch.zeros({config.components})", top.logits
    if config.prior == "vamp":
        found["pseudo_inputs"] = (
            f"{'-1 + ' * (top.lowest < 0)}0.1 * torch.rand{tuple(top.unclipped.shape)}",
            top.unclipped,
        )
    shape = tuple(vae.p_x.datum_shape)
    if config.likelihood_family.is_real:
        found["log_scale"] = f"torch.full({shape}, {config.scale}).log()", vae.p_x.log_scale
    if config.likelihood == "student-t":
        found["log_df"] = f"torch.full({shape}, 2.0)", vae.p_x.log_df
    if config.likelihood == "negative-binomial":
        found["log_theta"] = f"torch.zeros{shape}", vae.p_x.log_theta
    if vae.p_x.learns_scale:
        found["log_scale"] = f"torch.tensor({config.scale}).log()", vae.p_x.log_scale
    return found


def _top(vae: Any, config: Config) -> Any:
    return vae.p_z.top if config.upper_latent_dims else vae.p_z


def _latent_dims(config: Config) -> tuple[int, ...]:
    return (config.latent_dim, *config.upper_latent_dims)


def _bound(vae: VAE) -> str:
    if not vae.has_density:
        return "negative distortion, which is no bound on log p(x),"
    return "pseudo-ELBO, which is no bound on log p(x) of grey x," if vae.is_pseudo else "ELBO, a bound on log p(x),"


def _layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network in their order, without those that only rearrange its input."""
    if type(network) in (nn.Sequential, FlatBatch):
        return [layer for child in network.children() for layer in _layers(child)]
    return [] if isinstance(network, ChannelsLast | FirstLayer | Log1p | Standardize) else [network]


def _printed(name: str, network: Any, config: Config) -> str:
    """Return the expression that builds a network, or a list of networks."""
    if name in ("flow", "prior_flow"):
        size, context = _latent_dims(config)[-1], config.hidden[-1] if name == "flow" else 0
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


def _copied(module: Any) -> tuple[set[str], str]:
    """Return the imports and the other code of a module of `pvae.distributions`, with torch in place of Pyro."""
    source = inspect.getsource(module).replace("pyro.distributions.torch_distribution", "torch.distributions")
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
