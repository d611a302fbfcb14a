"""Encoder and decoder as ONNX: equal to torch's, for any batch size, or not written."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.models.build import build_vae
from pvae.trained import export as export_module
from pvae.trained.export import export

pytestmark = pytest.mark.workflow

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime, the extra [export]",
)
OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
KINDS = {
    "mlp": (Config(hidden=(16,), latent_dim=3, binarize="static"), (1, 6, 5)),
    "groupnorm": (
        Config(network="conv-groupnorm", hidden=(16, 16), latent_dim=3, likelihood="discretized-logistic"),
        (3, 9, 7),
    ),
    "batchnorm": (Config(network="conv-batchnorm", hidden=(4, 8), latent_dim=2), (1, 7, 5)),
    "autoencoder": (Config(hidden=(16,), latent_dim=3, posterior="delta"), (1, 6, 5)),
}


def built(kind):
    config, shape = KINDS[kind]
    with seeded(0, torch.device("cpu")):
        vae = build_vae(config, shape)
        for module in vae.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return vae.eval(), shape


@needs_onnx
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_what_torch_computes(tmp_path, kind):
    """At a batch size that `export` did not try; and the shapes are those that it states."""
    import onnxruntime

    vae, shape = built(kind)
    if kind.endswith("batchnorm") and OLD_TORCH:
        with pytest.raises(InputError, match="batch_norm"):
            export(vae, shape, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    encoder, decoder = export(vae, shape, tmp_path)
    sizes, latent_dim = ", ".join(map(str, shape)), KINDS[kind][0].latent_dim
    assert (encoder.inputs, encoder.outputs) == (f"x (N, {sizes})", f"loc (N, {latent_dim}), scale (N, {latent_dim})")
    assert (decoder.inputs, decoder.outputs) == (f"z (N, {latent_dim})", f"mean (N, {sizes})")
    encode, decode = (onnxruntime.InferenceSession(one.path) for one in (encoder, decoder))
    x = torch.randint(2, (11, *shape), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        q = vae.posterior(x)
        mean = vae.likelihood(q.mean).mean
    loc, scale = encode.run(["loc", "scale"], {"x": x.numpy()})
    (decoded,) = decode.run(["mean"], {"z": q.mean.numpy()})
    for ours, theirs in ((q.mean, loc), (q.stddev, scale), (mean, decoded)):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-5, atol=1e-5)


@needs_onnx
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    vae, shape = built("mlp")
    monkeypatch.setattr(export_module, "_MOST_DIFFERENCE", -1.0)
    with pytest.raises(InputError, match="nothing is written"):
        export(vae, shape, tmp_path)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_decoder_that_cannot_be_exported_leaves_no_encoder(tmp_path):
    class Looks(nn.Module):
        def forward(self, z):
            return z if z.sum() > 0 else -z

    vae, shape = built("mlp")
    vae.p_x.decoder.insert(0, Looks())
    with pytest.raises(InputError, match="cannot export decoder"):
        export(vae, shape, tmp_path)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_two_layers_are_refused(tmp_path):
    with seeded(0, torch.device("cpu")):
        config = Config(upper_latent_dims=(2,), upper_hidden=(4,), hidden=(6,), latent_dim=3, elbo="iwae")
        vae = build_vae(config, (1, 6, 5)).eval()
    with pytest.raises(InputError, match="several stochastic layers"):
        export(vae, (1, 6, 5), tmp_path)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(InputError, match=r"onnxruntime: pip install.*\[export\]"):
        export(*built("mlp"), tmp_path)
