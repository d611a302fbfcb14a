"""A replayed step equals the eager one, and a recording is not replayed after an edit."""

from __future__ import annotations

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import needs_inductor
from helpers.svi import KINDS, adam, assert_trained_alike, built, trained
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn
from torch.nn.utils import parameters_to_vector

from pvae.compile import compiled_elbo, graph, inductor
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.config.config import Config
from pvae.config.options import ELBOS
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.elbos.registry import build_elbo
from pvae.models import onednn
from pvae.models.build import build_vae
from pvae.training.fit import fit
from pvae.training.trainer import Trainer

WEIGHS_RATE = ("trace", "analytic", "handwritten", "stl", "score", "score-loo")
CASES = [(name, particles) for name in ELBOS for particles in (1, 4) if not (name == "score-loo" and particles == 1)]


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
ENGINES = [
    ("graph", "cpu"),
    pytest.param("graph", "cuda", marks=ON_GPU),
    pytest.param("inductor", "cuda", marks=ON_GPU),
]


@pytest.mark.parametrize(("engine", "device"), ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "particles"), CASES)
def test_compiled_trains_as_eager(small_vae, small_images, name, particles, kind, engine, device):
    """Twenty steps with a short batch in the middle, and a warm-up of beta if the ELBO has one."""
    batches = [small_images(3 if step == 10 else 8, seed=step).to(device) for step in range(20)]

    def on_step(step, _, optimizer):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)

    given = {"on_step": on_step}
    given["beta_of"] = (lambda step: min(1.0, step / 8)) if name in WEIGHS_RATE else None
    start = [p.detach().clone() for p in small_vae().parameters()]
    svi, elbo = KINDS[kind](built(name, particles), engine)
    compiled = trained(small_vae().to(device), elbo, batches, svi, **given)
    assert_trained_alike(compiled, trained(small_vae().to(device), built(name, particles), batches, **given))
    assert elbo.num_recordings == 2, "one for each batch size"
    assert all(not torch.equal(old, now.cpu()) for old, now in zip(start, compiled.parameters.values()))


@pytest.mark.parametrize("name", ["trace", "analytic", "handwritten"])
def test_free_bits_are_recorded(small_vae, small_images, name):
    batches = [small_images(8, seed=step) for step in range(5)]
    eager = trained(small_vae(), built(name, 2, free_bits=0.3), batches)
    assert_trained_alike(trained(small_vae(), CompiledELBO(built(name, 2, free_bits=0.3)), batches), eager)


SYSTEMS = {
    "two layers": {"upper_latent_dims": (2,), "upper_hidden": (4,), "elbo": "iwae", "particles": 3},
    "ladder": {"upper_latent_dims": (2, 2), "upper_hidden": (4,), "inference": "ladder", "elbo": "analytic"},
    "ladder, batch norm": {"upper_latent_dims": (2,), "inference": "ladder", "network": "mlp-batchnorm"},
    "top-down": {"upper_latent_dims": (2,), "inference": "top-down", "elbo": "dreg", "particles": 3},
    "piwae of a learned prior": {"prior": "vamp", "components": 5, "elbo": "piwae", "particles": 3},
    "batch norm": {"network": "conv-batchnorm", "hidden": (3, 4), "likelihood": "normal-learned"},
    "optimal scale": {"likelihood": "normal-optimal"},
    "continuous": {"likelihood": "continuous-bernoulli"},
    "levels": {"likelihood": "discretized-logistic"},
    "autoencoder": {"posterior": "delta"},
    "planar": {"posterior": "planar", "elbo": "stl"},
    "splines, flow": {"posterior": "spline", "prior": "flow", "flow_hidden": (5,), "elbo": "dreg"},
    "mixture": {"prior": "mixture", "elbo": "dreg"},
    "sphere": {"posterior": "power-spherical", "prior": "sphere", "elbo": "analytic"},
    "sphere, stl": {"posterior": "power-spherical", "prior": "sphere", "elbo": "stl"},
}
BY_INDUCTOR = ("planar", "splines, flow", "mixture", "sphere")
WAYS = [(kind, way, "graph") for kind in SYSTEMS for way in (("elbo", "step") if kind == "batch norm" else ("elbo",))]
WAYS += [pytest.param(kind, "elbo", "inductor", marks=[needs_inductor, pytest.mark.slow]) for kind in BY_INDUCTOR]


@pytest.mark.parametrize(("kind", "way", "engine"), WAYS)
def test_every_kind_of_system_is_recorded(kind, way, engine):
    """The running averages of BatchNorm and of the optimal scale are updated as often as without a recording."""
    config = Config(**{"hidden": (6,), "latent_dim": 3, "particles": 2, **SYSTEMS[kind]})
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(6, 1, 4, 4, generator=generator) * 255).round().double() / 255 for _ in range(4)]

    def vae():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_vae(config, (1, 4, 4)).double()

    eager, compiled = vae(), vae()
    theirs = trained(eager, built(config.elbo, config.particles), batches)
    svi, elbo = KINDS[way](built(config.elbo, config.particles), engine)
    assert_trained_alike(trained(compiled, elbo, batches, svi), theirs)
    assert elbo.num_recordings == 1
    for (name, mine), other in zip(compiled.named_buffers(), eager.buffers()):
        assert torch.allclose(mine, other, rtol=1e-9), name


def test_two_vaes_in_one_process(small_vae, small_images):
    batches = [small_images(8, seed=step) for step in range(5)]
    elbo = CompiledELBO(built("trace", 1))
    for seed in (0, 1):
        theirs = trained(small_vae(seed=seed), built("trace", 1), batches)
        assert_trained_alike(trained(small_vae(seed=seed), elbo, batches), theirs)


def one_step(vae, elbo, x, seed=5, store=None):
    """Compute gradients and evaluate; `store` is Pyro's, kept between steps, or gradients are recorded anew at each."""
    vae.zero_grad()
    with torch.random.fork_rng(), pyro.get_param_store().scope(store):
        torch.manual_seed(seed)
        loss, terms = elbo.backward(vae.model, vae.guide, x)
        torch.manual_seed(seed)
        evaluated, again = elbo.evaluate(vae.model, vae.guide, x)
    assert torch.allclose(terms.rate, again.rate, rtol=1e-3, atol=1e-3)
    return (
        loss.item(),
        evaluated.item(),
        terms,
        {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None},
    )


def assert_steps_alike(vae, elbo, x, rel=1e-10, store=None):
    mine, other = one_step(vae, elbo, x, store=store), one_step(vae, elbo.elbo, x)
    assert mine[:2] == pytest.approx(other[:2], rel=rel)
    assert mine[3].keys() == other[3].keys()
    for name, gradient in other[3].items():
        assert (mine[3][name] - gradient).norm() <= rel * gradient.norm(), name
    assert torch.allclose(mine[2].rate, other[2].rate, rtol=rel, atol=10 * rel)
    return mine[0]


class Scaled(nn.Linear):
    """A linear layer that reads a list and a dict."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        self.factors, self.options = [1.0], {"shift": 0.0}

    def forward(self, x):
        return self.factors[0] * super().forward(x) + self.options["shift"]


def _new_parameter(vae, elbo):
    layer = vae.p_x.decoder[0]
    layer.weight = nn.Parameter(layer.weight.detach() + 0.1)


def _frozen(vae, elbo):
    vae.q_z.encoder[1].bias.requires_grad_(False)


def _new_decoder(vae, elbo):
    vae.p_x.decoder = nn.Sequential(nn.Linear(3, 20).double(), nn.Unflatten(-1, (1, 5, 4)))


EDITS = {
    "parameter replaced": _new_parameter,
    "parameter's numbers replaced": lambda vae, elbo: vae.p_x.decoder[0].weight.data.copy_(torch.ones(6, 3)),
    "parameter's storage replaced": lambda vae, elbo: setattr(
        vae.p_x.decoder[0].weight, "data", torch.full((6, 3), 0.2, dtype=torch.float64)
    ),
    "parameter frozen": _frozen,
    "state loaded": lambda vae, elbo: vae.load_state_dict({n: 0.5 * v for n, v in vae.state_dict().items()}),
    "beta": lambda vae, elbo: setattr(elbo.elbo, "beta", 0.3),
    "particles": lambda vae, elbo: setattr(elbo.elbo, "num_particles", 2),
    "free bits": lambda vae, elbo: setattr(elbo.elbo, "free_bits", 0.5),
    "elbo": lambda vae, elbo: setattr(elbo, "elbo", build_elbo("iwae", 4)),
    "activation": lambda vae, elbo: vae.q_z.encoder.__setitem__(2, nn.Tanh()),
    "decoder": _new_decoder,
    "attribute": lambda vae, elbo: setattr(vae.q_z, "log_variance", True),
    "forward of one module": lambda vae, elbo: setattr(vae.p_x.decoder[1], "forward", torch.sigmoid),
    "hook": lambda vae, elbo: vae.p_x.decoder[0].register_forward_hook(lambda module, inputs, output: 2 * output),
    "buffer replaced": lambda vae, elbo: setattr(vae.p_z, "scale", torch.full((3,), 2.0, dtype=torch.float64)),
    "buffer's numbers": lambda vae, elbo: vae.p_z.loc.fill_(1.0),
    "evaluation": lambda vae, elbo: vae.eval(),
    "list in an attribute": lambda vae, elbo: vae.p_x.decoder[0].factors.__setitem__(0, 3.0),
    "dict in an attribute": lambda vae, elbo: vae.p_x.decoder[0].options.update(shift=2.0),
    "gradient's hook": lambda vae, elbo: vae.q_z.encoder[1].weight.register_hook(lambda gradient: 0.5 * gradient),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_between_two_steps_is_seen(small_vae, small_images, edit):
    vae, x, elbo = small_vae(), small_images(6), CompiledELBO(build_elbo("trace", 3))
    vae.p_x.decoder[0] = Scaled(vae.p_x.decoder[0])
    store = {"params": {}, "constraints": {}}
    before = assert_steps_alike(vae, elbo, x, store=store)
    one_step(vae, elbo, x, store=store)
    assert elbo.num_recordings == 2, "without an edit, the recordings are replayed"
    EDITS[edit](vae, elbo)
    # Pyro refuses another parameter of the same name in one store.
    after = assert_steps_alike(vae, elbo, x, store=None if edit in ("parameter replaced", "decoder") else store)
    if edit not in ("evaluation", "parameter frozen", "gradient's hook"):
        assert after != before, "the edit changes nothing that could be seen"


def test_another_dtype_is_recorded_anew(small_vae, small_images):
    vae, elbo = small_vae(), CompiledELBO(build_elbo("trace"))
    assert_steps_alike(vae, elbo, small_images(6))
    assert_steps_alike(vae.float(), elbo, small_images(6).float(), rel=1e-4)
    assert elbo.num_recordings == 4
    assert all(p.grad.dtype == torch.float32 for p in vae.parameters())


def test_each_mode_has_its_own_recording(small_images):
    """BatchNorm uses statistics of the batch in training, and running averages in evaluation."""
    with torch.random.fork_rng():
        vae = build_vae(Config(network="conv-batchnorm", hidden=(3,), latent_dim=2), (1, 4, 4)).double()
        x = torch.rand(5, 1, 4, 4).double()
    elbo, losses, store = CompiledELBO(build_elbo("trace")), {}, {"params": {}, "constraints": {}}
    for mode in (True, False, True, False):
        vae.train(mode)
        losses[mode] = assert_steps_alike(vae, elbo, x, store=store)
    assert losses[True] != losses[False]
    assert elbo.num_recordings == 4


def test_gradients_are_added(small_vae, small_images):
    vae, x, elbo = small_vae(), small_images(4), CompiledELBO(build_elbo("trace"))
    once = one_step(vae, elbo, x)[3]
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(5)
        elbo.loss_and_grads(vae.model, vae.guide, x)
    assert all(torch.allclose(p.grad, 2 * once[name]) for name, p in vae.named_parameters())


def test_pixels_outside_the_domain_are_refused_at_a_replay_too(small_vae, small_images):
    vae, x, elbo = small_vae("static"), small_images(4, binary=True), CompiledELBO(build_elbo("trace"))
    for _ in range(2):
        assert one_step(vae, elbo, x)
    vae.zero_grad()
    for bad in (small_images(4), torch.full_like(x, float("nan"))):
        with pytest.raises(InputError, match="exactly 0 or 1"):
            one_step(vae, elbo, bad)
        assert all(p.grad is None for p in vae.parameters()), "a refused batch leaves no gradient"
    with pytest.raises(InputError, match="exactly 0 or 1"):  # at the recording itself
        one_step(vae, CompiledELBO(build_elbo("trace")), small_images(4))


def test_an_elbo_without_a_differentiable_loss_is_refused():
    with pytest.raises(TypeError, match="no differentiable_loss"):
        CompiledELBO(RenyiELBO())


def wide_vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(Config(hidden=(300,), latent_dim=4), (1, 16, 16))
        return vae, torch.rand(128, 1, 16, 16)


@pytest.mark.parametrize("missing", ["_HAS_ONEDNN", "_IS_FASTER"])
def test_onednns_product_is_torchs_to_rounding(monkeypatch, missing):
    """The step is the same, to rounding, if torch lacks oneDNN or the CPU lacks AVX-512."""
    monkeypatch.setattr(onednn, "_IS_FASTER", True)
    vae, x = wide_vae()
    elbo = CompiledELBO(build_elbo("trace"))
    assert_steps_alike(vae, elbo, x, rel=1e-4)
    assert "_linear_pointwise" in _code(elbo) or not onednn._HAS_ONEDNN
    monkeypatch.setattr(onednn, missing, False)
    plain = CompiledELBO(build_elbo("trace"))
    assert_steps_alike(vae, plain, x, rel=1e-6)
    assert "_linear_pointwise" not in _code(plain)


def _code(elbo):
    return "".join(str(recorded.replay.__self__.code) for recorded in elbo._recorded)


def _targets(elbo):
    (tape, *_) = elbo._recorded
    return [node for node in tape.replay.__self__.graph.nodes if node.op == "call_function"]


def _is_rounding(node):
    return node.kwargs.get("dtype") == torch.bfloat16


def test_only_products_are_computed_in_bfloat16():
    vae, x = wide_vae()
    elbo = CompiledELBO(build_elbo("trace"), precision="bf16")
    mine, other = one_step(vae, elbo, x), one_step(vae, elbo.elbo, x)
    assert mine[0] == pytest.approx(other[0], rel=1e-3)
    assert mine[0] != other[0]
    for name, gradient in other[3].items():
        assert mine[3][name].dtype == torch.float32
        assert (mine[3][name] - gradient).norm() < 0.05 * gradient.norm(), name
    nodes = _targets(elbo)
    rounded = [node for node in nodes if _is_rounding(node)]
    aten = torch.ops.aten
    products = [node for node in nodes if node.target is aten.mm.default]
    assert len(products) == 11, "4 layers: 4 products forward, 4 for weights, 3 for what comes from below"
    assert all(user.kwargs == {"dtype": torch.float32} for node in products for user in node.users)
    assert not any(node.target is aten.addmm.default for node in nodes)
    factors = [node.args[0].args[0] if node.args[0].target is aten.t.default else node.args[0] for node in rounded]
    weights = {getattr(products[0].graph.owning_module, node.target) for node in factors if node.op == "get_attr"}
    assert weights == {p for p in vae.parameters() if p.dim() == 2}, "no bias is rounded"
    assert all(user in products for node in rounded for user in node.users)


@pytest.mark.parametrize("engine", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
def test_convolutions_are_computed_in_bfloat16(engine):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, x = build_vae(Config(network="conv", hidden=(8, 8), latent_dim=2), (1, 16, 16)), torch.rand(20, 1, 16, 16)
    elbo = CompiledELBO(build_elbo("analytic"), engine, precision="bf16")
    mine, other = one_step(vae, elbo, x), one_step(vae, elbo.elbo, x)
    assert mine[0] == pytest.approx(other[0], rel=1e-2)
    errors = {name: ((mine[3][name] - gradient).norm() / gradient.norm()).item() for name, gradient in other[3].items()}
    assert all(1e-4 < error < 0.2 for error in errors.values()), "that of bfloat16, and none of float32's"
    if engine == "graph":
        aten, nodes = torch.ops.aten, _targets(elbo)
        for convolution in (aten.convolution.default, aten.convolution_backward.default):
            found = [node for node in nodes if node.target is convolution]
            factors = [node.args[:2] if convolution is aten.convolution.default else node.args[:3] for node in found]
            assert len(found) == 5
            assert all(_is_rounding(factor) for of_one in factors for factor in of_one)


def test_a_bias_that_is_not_a_vector_is_added():
    """oneDNN would ignore a scalar."""
    left, right = torch.randn(128, 400), torch.randn(300, 400)
    for bias in (torch.tensor(5.0), torch.randn(128, 1), torch.randn(300)):
        replay = graph.record(lambda a, b, c: (torch.addmm(c, a, b.t()),), [left, right, bias])
        assert torch.allclose(replay(left, right, bias)[0], torch.addmm(bias, left, right.t()), rtol=1e-3, atol=1e-3)


def test_a_factor_is_rounded_after_it_was_changed_through_a_view():
    weight = torch.randn(16, 16)

    def function(x):
        flat = x.exp().view(4, 16)
        flat.mul_(3.0)
        return (flat @ weight,)

    x = torch.randn(4, 4, 4)
    replay = graph.record(function, [x], precision="bf16")
    assert torch.allclose(replay(x)[0], function(x)[0], rtol=0.05, atol=0.5)


@needs_inductor
@pytest.mark.slow
@pytest.mark.parametrize("by_dynamo", [False, True])
def test_inductor_trains_as_eager(small_vae, small_images, monkeypatch, by_dynamo):
    """Ahead of time; or through dynamo, since not every graph can be compiled ahead of time."""

    def refused(*_):
        raise ValueError("not ahead of time")

    monkeypatch.setattr(inductor, *(("load_or_compile", refused) if by_dynamo else ("_through_dynamo", None)))
    batches = [small_images(6, seed=step) for step in range(3)]
    theirs = trained(small_vae(), built("analytic", 2), batches)
    assert_trained_alike(trained(small_vae(), CompiledELBO(built("analytic", 2), engine="inductor"), batches), theirs)


@needs_inductor
@pytest.mark.slow
def test_inductor_calls_onednn_for_wide_layers():
    vae, x = wide_vae()
    assert_steps_alike(vae, CompiledELBO(build_elbo("trace"), engine="inductor"), x, rel=1e-4)


def test_inductor_compiles_frequent_steps_only(monkeypatch, few_digits, small_config):
    """Steps on whole batches, but neither on the last batch of an epoch nor in the test."""
    met = []

    def noted(function, inputs, engine, precision):
        met.append((len(inputs[1]), engine))
        return graph.record(function, inputs, "graph", precision)

    monkeypatch.setattr(compiled_elbo, "record", noted)
    monkeypatch.setattr(graph, "missing", str)  # nothing
    with seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
        Trainer(small_config.replace(compile="inductor"), few_digits, torch.device("cpu")).run_epoch()
    assert met == [(50, "inductor"), (30, "graph"), (40, "graph")]


@pytest.mark.parametrize("lacks", ["a compiler", "a newer torch"])
def test_missing_requirements_of_inductor_are_reported_before_a_file_is_written(
    monkeypatch, few_digits, small_config, tmp_path, lacks
):
    monkeypatch.setattr(inductor, "OLDEST_FOR_INDUCTOR", "2.6" if lacks == "a compiler" else "99")
    monkeypatch.setattr(inductor.shutil, "which", lambda name: None if lacks == "a compiler" else name)
    named = r"needs a C\+\+ compiler" if lacks == "a compiler" else "needs torch 99 or newer"
    with pytest.raises(InputError, match=named):
        CompiledELBO(build_elbo("trace"), engine="inductor")
    with pytest.raises(InputError, match=named):
        fit(small_config.replace(compile="inductor"), data=few_digits, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failing_compiler_is_reported_in_one_line(monkeypatch, small_vae, small_images):
    monkeypatch.setattr(graph, "missing", str)  # nothing

    def broken(*_):
        raise RuntimeError("CppCompileError\nno Python.h")

    monkeypatch.setattr(graph, "compile_graph", broken)
    with pytest.raises(InputError, match=r"cannot compile this \(CppCompileError"):
        one_step(small_vae(), CompiledELBO(build_elbo("trace"), engine="inductor"), small_images(3))


@pytest.mark.parametrize("network", ["conv", "conv-batchnorm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_train_as_eager_under_the_fused_optimiser(network, precision):
    """It reads a gradient in memory order, and oneDNN returns some gradients channels last."""
    config = Config(network=network, hidden=(8, 8), latent_dim=2, likelihood="normal", elbo="analytic")
    generator = torch.Generator().manual_seed(0)
    batches, moved = [torch.rand(6, 1, 8, 8, generator=generator) for _ in range(5)], []
    for elbo in (build_elbo("analytic"), CompiledELBO(build_elbo("analytic"), precision=precision)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = build_vae(config, (1, 8, 8))
        start = parameters_to_vector(vae.parameters()).detach().clone()
        trained(vae, elbo, batches, optimizer=functools.partial(adam, lr=1e-3, eps=1e-2))
        moved.append(parameters_to_vector(vae.parameters()).detach() - start)
    assert (moved[0] - moved[1]).norm() < (1e-3 if precision == "fp32" else 0.1) * moved[0].norm()


def test_a_shared_parameter_gets_its_gradient_once(small_vae, small_images):
    vae = small_vae()
    shared, vae.q_z.encoder[5], vae.p_x.decoder[0] = nn.Linear(8, 8), nn.Linear(8, 6).double(), nn.Linear(3, 8).double()
    vae.q_z.encoder[3] = vae.p_x.decoder[2] = shared.double()
    assert_steps_alike(vae, CompiledELBO(build_elbo("trace")), small_images(4))


def test_every_gradient_is_a_tensor_of_its_own():
    parameters = {name: nn.Parameter(torch.zeros(3)) for name in "ab"}

    def model(x):
        a, b = (pyro.param(name, parameter) for name, parameter in parameters.items())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(z + a + b, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.randn(4, 3)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        elbo = CompiledELBO(build_elbo("trace"))
        for _ in range(3):
            for parameter in parameters.values():
                parameter.grad = None
            elbo.loss_and_grads(model, guide, x)
        first, second = (parameter.grad for parameter in parameters.values())
        first.mul_(0.0)
        assert second.abs().sum() > 0
    assert elbo.num_recordings == 1


def _wrapped(vae, kind):
    return {
        "method": lambda: (vae.model, vae.guide),
        "handler": lambda: (pyro.poutine.block(vae.model, hide=[]), vae.guide),
        "partial": lambda: (functools.partial(lambda vae, x: vae.model(x), vae), vae.guide),
        "closure": lambda: ((lambda x: vae.model(x)), (lambda x: vae.guide(x))),
    }[kind]()


@pytest.mark.parametrize("kind", ["method", "handler", "partial", "closure"])
def test_edits_are_seen_however_the_functions_are_wrapped(small_vae, small_images, kind):
    vae, x = small_vae(), small_images(5)
    vae.p_x.decoder[1] = nn.Dropout(0.5)
    model, guide = _wrapped(vae, kind)
    elbo, seen = CompiledELBO(build_elbo("trace")), set()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for mode in (True, False, True):
            vae.train(mode)
            for one in (elbo, elbo.elbo):
                torch.manual_seed(1)
                seen.add((mode, round(float(one.loss_and_grads(model, guide, x).detach()), 9)))
    assert len(seen) == 2, "compiled and eager alike, in each mode"
    assert elbo.num_recordings == 2


def _model_with(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    return model


def _guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 1.0))


@pytest.mark.parametrize(
    "variants",
    [
        [_model_with(1.0), _model_with(3.0)],
        [functools.partial(lambda scale, x: _model_with(scale)(x), scale) for scale in (1.0, 3.0)],
        [functools.partial(lambda x, scale: _model_with(scale)(x), scale=scale) for scale in (1.0, 3.0)],
    ],
    ids=["closure", "argument", "keyword"],
)
def test_other_functions_are_recorded_anew(variants):
    elbo, x = CompiledELBO(build_elbo("trace")), torch.randn(5)
    for model in (*variants, *variants):
        losses = []
        for one in (elbo, elbo.elbo):
            with torch.random.fork_rng():
                torch.manual_seed(3)
                losses.append(one.loss(model, _guide, x))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert elbo.num_recordings == 2


def test_functions_created_anew_with_the_same_content_are_not_recorded_anew(small_vae, small_images):
    vae, x, elbo = small_vae(), small_images(5), CompiledELBO(build_elbo("trace"))
    vae.sizes = {"image": [5, 4]}
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for _ in range(3):
            vae.sizes = {"image": [5, 4]}
            elbo.loss_and_grads(vae.model, vae.guide, x)
            elbo.loss(functools.partial(_model_of, vae), vae.guide, x)
    assert elbo.num_recordings == 2


def _model_of(vae, x):
    vae.model(x)


def test_one_tensor_given_twice_is_two_inputs():
    def function(a, b):
        return (a - 2 * b,)

    x, y = torch.randn(3), torch.randn(3)
    replay = graph.record(function, [x.view_as(x), x.view_as(x)])
    assert torch.equal(replay(x, y)[0], function(x, y)[0])

    class TwoInputs(Trace_ELBO):
        def differentiable_loss(self, model, guide, x, y):
            return (x - 2 * y).sum()

    elbo = CompiledELBO(TwoInputs())
    assert elbo.loss(_guide, _guide, x, x) == pytest.approx(-x.sum().item(), rel=1e-5)
    assert elbo.loss(_guide, _guide, x, y) == pytest.approx((x - 2 * y).sum().item(), rel=1e-5)


def test_autocast_is_recorded_anew_and_handlers_are_refused():
    elbo, x = CompiledELBO(build_elbo("trace")), torch.randn(5)
    elbo.loss(_model_with(1.0), _guide, x)
    with pytest.raises(InputError, match="no Pyro handler, here ScaleMessenger"), pyro.poutine.scale(scale=10.0):
        elbo.loss(_model_with(1.0), _guide, x)
    vae, images = wide_vae()
    plain = CompiledELBO(build_elbo("trace"))
    without = one_step(vae, plain, images)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert one_step(vae, plain, images)[0] == pytest.approx(one_step(vae, plain.elbo, images)[0], rel=1e-5)
        assert one_step(vae, plain, images)[0] != without


def test_evaluation_uses_the_current_parameters():
    """In an empty store pyro.param would start from the initial value."""

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(6)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for elbo in (build_elbo("trace"), CompiledELBO(build_elbo("trace"))):
            fresh = elbo.loss(model, _guide, x)
            assert "loc" not in pyro.get_param_store()
            elbo.loss_and_grads(model, _guide, x)
            pyro.get_param_store()["loc"] = torch.tensor(30.0)
            for _ in range(2):
                loss, terms = elbo.evaluate(model, _guide, x)
                assert loss > fresh + 100
                assert terms.rate.mean() > 100, "the terms are of this batch"
            pyro.clear_param_store()


def test_a_refused_batch_leaves_the_buffers():
    with torch.random.fork_rng():
        vae = build_vae(Config(network="conv-batchnorm", hidden=(3,), latent_dim=2), (1, 4, 4))
        x = torch.rand(5, 1, 4, 4)
    elbo = CompiledELBO(build_elbo("trace"))
    one_step(vae, elbo, x)
    before = [buffer.clone() for buffer in vae.buffers()]
    with pytest.raises(InputError, match="none NaN"):
        one_step(vae, elbo, torch.full_like(x, float("nan")))
    assert all(torch.equal(now, then) for now, then in zip(vae.buffers(), before))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.tolist()[0],
        lambda x: float(x.detach().numpy().sum()),
        lambda x: len(x[x > 0]),
        lambda x: (x > 0).nonzero().shape[0],
        lambda x: round(x.sum().item()),
        lambda x: 1.0 if x.sum() > 0 else 2.0,
    ],
    ids=["tolist", "numpy", "condition", "nonzero", "round", "branch"],
)
def test_a_function_that_reads_values_cannot_be_recorded(look):
    def model(x):
        factor = look(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * factor, 1.0), obs=x)

    with torch.random.fork_rng(), pytest.raises(InputError, match="reads values"):
        CompiledELBO(build_elbo("trace")).loss(model, _guide, torch.randn(5))


_FOUND_AS_A_GLOBAL = nn.Linear(1, 1, dtype=torch.float64)


def test_an_edit_of_a_module_in_a_global_variable_is_seen(small_vae, small_images):
    vae, x, elbo = small_vae(), small_images(5), CompiledELBO(build_elbo("trace"))

    def model(x):
        vae.model(x)
        with pyro.plate("more data", len(x)):
            pyro.sample("more", dist.Normal(_FOUND_AS_A_GLOBAL(x[:, 0, 0, :1])[:, 0], 1.0), obs=x[:, 0, 0, 1])

    losses = []
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for edit in (None, nn.Parameter(torch.full((1,), 3.0, dtype=torch.float64))):
            if edit is not None:
                _FOUND_AS_A_GLOBAL.bias = edit
            for one in (elbo, elbo.elbo):
                torch.manual_seed(1)
                losses.append(float(one.loss_and_grads(model, vae.guide, x).detach()))
    assert losses[0] == pytest.approx(losses[1])
    assert losses[2] == pytest.approx(losses[3])
    assert losses[0] != losses[2]
