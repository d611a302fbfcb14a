"""Large float32 products by oneDNN equal torch's to rounding; where something observes them, torch's own are used."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.ops import provenance
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pvae.compile.graph import record
from pvae.core import torch_private
from pvae.models import onednn as onednn_module
from pvae.models.networks import mlp
from pvae.models.onednn import Linear
from pvae.training.parallel import Share, WholeBatchNoise

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _as_with_avx512(monkeypatch):
    """Use oneDNN's products even on a CPU on which they are not faster."""
    monkeypatch.setattr(onednn_module, "_IS_FASTER", True)


@pytest.fixture
def layers():
    """A layer of each kind, with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, torchs = Linear(784, 400), nn.Linear(784, 400)
        torchs.load_state_dict(ours.state_dict())
        yield ours, torchs


def batch(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def is_ours(layer, x):
    nodes = [layer(x).grad_fn]
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "_ProductBackward":
            return True
        nodes += [before for before, _ in node.next_functions if before is not None]
    return False


def derivatives(layer, x, of):
    """The gradients of a number, and those of the sum of their squares."""
    inputs = [x.clone().requires_grad_(), *layer.parameters()]
    first = torch.autograd.grad(of(layer(inputs[0])), inputs, create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
    return [*first, *second]


@needs_onednn
@pytest.mark.parametrize("x", [batch(128, 784), batch(3, 64, 784), batch(784, 128).t()], ids=["2d", "3d", "transposed"])
@pytest.mark.parametrize("of", [lambda y: y.pow(3).mean(), lambda y: y.sigmoid()[..., ::2].sum()], ids=["mean", "sum"])
def test_it_is_torchs_to_rounding_and_so_are_its_derivatives(layers, x, of):
    ours, torchs = layers
    assert is_ours(ours, x)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-5, atol=1e-5)
    for found, wanted in zip(derivatives(ours, x, of), derivatives(torchs, x, of), strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@needs_onednn
def test_bias_and_gradient_are_optional(layers):
    x, layer = batch(128, 784), Linear(784, 400, bias=False)
    layer.weight.requires_grad_(False)
    (gradient,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(gradient, layer.weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layers[0](x), layers[1](x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_networks_use_it():
    assert is_ours(mlp(784, 400, 40), batch(128, 784))


def test_small_products_and_other_dtypes_are_torchs_own(layers):
    ours, torchs = layers
    x = batch(4, 784)
    assert not is_ours(ours, x)
    assert torch.equal(ours(x), torchs(x))
    narrow = Linear(784, 40)
    assert onednn_module._LARGE < 700 * 784 * 40
    assert not is_ours(narrow, batch(700, 784)), "what would be copied for its gradient is as much as the product"
    x = batch(128, 784).double()
    assert not is_ours(ours.double(), x)
    assert torch.equal(ours(x), torchs.double()(x))


@needs_onednn
def test_a_product_with_few_columns_is_torchs_own(monkeypatch):
    """In both gradients of a layer with few inputs, copying would take as long as the product."""
    calls, onednn = [], onednn_module.onednn
    monkeypatch.setattr(onednn_module, "onednn", lambda *given: calls.append(given) or onednn(*given))
    layer, x = Linear(20, 400), batch(640, 20).requires_grad_()
    layer(x).sum().backward()
    assert len(calls) == 1
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("missing", ["oneDNN", "AVX-512", "a private name of torch"])
def test_without_onednn_all_products_are_torchs_own(layers, monkeypatch, missing):
    if missing == "a private name of torch":
        monkeypatch.delattr(torch_private.forward_ad, "_current_level")
    else:
        monkeypatch.setattr(onednn_module, {"oneDNN": "_HAS_ONEDNN", "AVX-512": "_IS_FASTER"}[missing], False)
    ours, torchs = layers
    assert torch.equal(ours(batch(128, 784)), torchs(batch(128, 784)))


@needs_onednn
@pytest.mark.parametrize(
    "bias", [torch.rand(400, 2)[:, 0], torch.rand(1).expand(400), torch.rand(())], ids=["strided", "expanded", "scalar"]
)
def test_with_a_strided_bias_the_product_is_torchs_own(layers, bias):
    _, torchs = layers
    x, weights = batch(128, 784), {"weight": torchs.weight, "bias": bias}
    assert torch.equal(*(torch.func.functional_call(layer, weights, (x,)) for layer in layers))
    recorded = record(lambda x: (functional.linear(x, torchs.weight, bias),), (x,))
    torch.testing.assert_close(recorded(x)[0], functional.linear(x, torchs.weight, bias), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_only_the_factors_that_gradients_need_are_saved(layers):
    """As with torch's own, the other one may be modified before the backward pass."""
    layer, x = layers[0], batch(128, 784)
    loss = layer(x).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    loss.backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(400, -1), rtol=1e-5, atol=1e-5)
    layer.weight.requires_grad_(False)
    x = batch(128, 784)
    loss = layer(x).sum()
    x.zero_()
    loss.backward()


def test_a_wrong_width_is_refused_in_torchs_words(layers):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        layers[0](batch(128, 783))


@needs_onednn
def test_rows_that_overlap_in_memory(layers):
    x = batch(911).unfold(0, 784, 1)
    assert is_ours(layers[0], x)
    found, wanted = (torch.autograd.grad(layer(x).pow(2).mean(), layer.weight)[0] for layer in layers)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@needs_onednn
def test_a_recorded_product_takes_no_rows_that_lie_apart_in_memory(monkeypatch):
    """For columns of a wider matrix as its right factor, oneDNN takes about 200 ms, and for a copy 0.2."""
    factors, onednn = [], onednn_module.onednn
    monkeypatch.setattr("pvae.compile.graph.onednn", lambda *given: factors.append(given) or onednn(*given))
    gradient, wide = batch(128, 400), batch(128, 528)
    recorded = record(lambda gradient, wide: (gradient.t() @ wide[:, 128:],), (gradient, wide))
    torch.testing.assert_close(recorded(gradient, wide)[0], gradient.t() @ wide[:, 128:], rtol=1e-5, atol=1e-4)
    assert factors
    assert all(left.is_contiguous() and right.t().is_contiguous() for left, right, _ in factors)


@pytest.mark.filterwarnings("ignore:TF32")
def test_the_users_switch_is_obeyed(layers):
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_ours(layers[0], batch(128, 784))


def follows(tensor):
    """Return Pyro's tensor subclass that tracks its provenance."""
    return provenance.track_provenance(tensor, frozenset({"a site"}))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_observers_of_operators_see_torchs_own(layers):
    ours, torchs = layers
    x = batch(128, 784)
    assert provenance.get_provenance(ours(follows(x))) == {"a site"}
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent for layer in layers]
    assert torch.equal(*tangents)
    assert torch.equal(torch.func.jvp(ours, (x,), (x,))[1], torch.func.jvp(torchs, (x,), (x,))[1])
    assert torch.equal(torch.vmap(ours)(x.expand(2, -1, -1)), torch.vmap(torchs)(x.expand(2, -1, -1)))
    assert "linear" not in str(make_fx(ours)(x).code)
    flops = []
    for layer in layers:
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] == 2 * 2 * 128 * 784 * 400
    with pyro.validation_enabled():  # which torch.compile switches off for good, but for this
        assert torch.equal(torch.compile(ours, backend="eager")(x), torchs(x))


@needs_onednn
def test_several_processes_use_it(layers):
    """The dispatch mode in which they draw noise allows it."""
    x = batch(128, 784)
    with WholeBatchNoise(Share(0, 128, 256, 0.5)):
        assert is_ours(layers[0], x)


def test_its_backward_pass_can_be_mapped(layers):
    """torch.vmap over gradients starts after the forward pass."""
    x, weights = batch(128, 784).requires_grad_(), torch.rand(3, 128, 400)
    jacobians = []
    for layer in layers:
        y = layer(x)
        jacobians.append(torch.vmap(lambda v, y=y: torch.autograd.grad(y, x, v, retain_graph=True)[0])(weights))
    torch.testing.assert_close(*jacobians, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torch_jit_traces_it(layers):
    """So does Pyro's JitTrace_ELBO."""
    ours, torchs = layers
    x = batch(128, 784)
    assert torch.equal(torch.jit.trace(ours, x)(x), torchs(x))
