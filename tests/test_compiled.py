"""A recorded step equals the step that was recorded, and nothing stale is ever replayed."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pvae import recording
from pvae.building import build_vae
from pvae.compiled import CompiledELBO
from pvae.config import ELBOS, Config
from pvae.elbos import build_elbo
from pvae.errors import InputError
from pvae.fitting import fit, resume
from pvae.optimizers import SingleOptimizer

WEIGHS_RATE = ("trace", "analytic", "handwritten", "stl", "score", "score-loo")
CASES = [(name, particles) for name in ELBOS for particles in (1, 4) if not (name == "score-loo" and particles == 1)]


def built(name, particles, **options):
    return build_elbo(name, particles, num_groups=2 if name == "miwae" and particles > 1 else 1, **options)


def trained(vae, elbo, batches, beta_of=None):
    """Take an SVI step on each batch; return the weights and the random state at the end."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(11)
        svi = SVI(vae.model, vae.guide, SingleOptimizer(torch.optim.Adam(vae.parameters(), lr=1e-2)), loss=elbo)
        losses = []
        for step, x in enumerate(batches):
            if beta_of is not None:
                elbo.beta = beta_of(step)
            losses.append(svi.step(x))
        return losses, [p.detach().clone() for p in vae.parameters()], torch.get_rng_state()


def assert_trained_alike(ours, theirs, rel=1e-9):
    assert ours[0] == pytest.approx(theirs[0], rel=rel)
    for mine, other in zip(ours[1], theirs[1]):
        assert (mine - other).norm() <= rel * other.norm()
    assert torch.equal(ours[2], theirs[2]), "the random stream was read otherwise"


@pytest.mark.parametrize(("name", "particles"), CASES)
def test_compiled_trains_as_eager(small_vae, small_images, name, particles):
    """Twenty steps, a short batch in the middle, beta warmed up where the ELBO weighs the rate."""
    batches = [small_images(3 if step == 10 else 8, seed=step) for step in range(20)]
    beta_of = (lambda step: min(1.0, step / 8)) if name in WEIGHS_RATE else None
    start = [p.detach().clone() for p in small_vae().parameters()]
    eager = trained(small_vae(), built(name, particles), batches, beta_of)
    elbo = CompiledELBO(built(name, particles))
    compiled = trained(small_vae(), elbo, batches, beta_of)
    assert_trained_alike(compiled, eager)
    assert elbo.num_recordings == 2, "one for each batch size"
    assert all(not torch.equal(before, after) for before, after in zip(start, compiled[1]))


@pytest.mark.parametrize("name", ["trace", "analytic", "handwritten"])
def test_free_bits_are_recorded(small_vae, small_images, name):
    batches = [small_images(8, seed=step) for step in range(5)]
    eager = trained(small_vae(), built(name, 2, free_bits=0.3), batches)
    assert_trained_alike(trained(small_vae(), CompiledELBO(built(name, 2, free_bits=0.3)), batches), eager)


SYSTEMS = {
    "two layers": {"second_latent_dim": 2, "second_hidden": (4,), "elbo": "iwae", "particles": 3},
    "batch norm": {"network": "conv-batchnorm", "hidden": (3, 4), "likelihood": "normal-learned"},
    "optimal scale": {"likelihood": "normal-optimal"},
    "continuous": {"likelihood": "continuous-bernoulli"},
    "levels": {"likelihood": "discretized-logistic"},
    "autoencoder": {"posterior": "delta"},
}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_every_kind_of_system_is_recorded(kind):
    """Buffers too: what BatchNorm and the optimal scale average is averaged once a step."""
    config = Config(**{"hidden": (6,), "latent_dim": 3, **SYSTEMS[kind]})
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(6, 1, 4, 4, generator=generator) * 255).round().double() / 255 for _ in range(4)]

    def vae():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_vae(config, (1, 4, 4)).double()

    eager, compiled = vae(), vae()
    theirs = trained(eager, built(config.elbo, config.particles), batches)
    assert_trained_alike(trained(compiled, CompiledELBO(built(config.elbo, config.particles)), batches), theirs)
    for (name, mine), other in zip(compiled.named_buffers(), eager.buffers()):
        assert torch.allclose(mine, other, rtol=1e-9), name


def test_two_vaes_in_one_process(small_vae, small_images):
    batches = [small_images(8, seed=step) for step in range(5)]
    elbo = CompiledELBO(built("trace", 1))
    for seed in (0, 1):
        theirs = trained(small_vae(seed=seed), built("trace", 1), batches)
        assert_trained_alike(trained(small_vae(seed=seed), elbo, batches), theirs)


def one_step(vae, elbo, x, seed=5):
    vae.zero_grad()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        loss = float(elbo.loss_and_grads(vae.model, vae.guide, x))
        torch.manual_seed(seed)
        evaluated = elbo.loss(vae.model, vae.guide, x)
    return loss, evaluated, {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def assert_steps_alike(vae, elbo, x, rel=1e-10):
    mine, other = one_step(vae, elbo, x), one_step(vae, elbo.elbo, x)
    assert mine[:2] == pytest.approx(other[:2], rel=rel)
    assert mine[2].keys() == other[2].keys()
    for name, gradient in other[2].items():
        assert (mine[2][name] - gradient).norm() <= rel * gradient.norm(), name
    assert torch.allclose(elbo.terms.rate, elbo.elbo.terms.rate, rtol=rel, atol=10 * rel)


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
    "beta": lambda vae, elbo: setattr(elbo, "beta", 0.3),
    "particles": lambda vae, elbo: setattr(elbo.elbo, "num_particles", 2),
    "free bits": lambda vae, elbo: setattr(elbo.elbo, "free_bits", 0.5),
    "activation": lambda vae, elbo: vae.q_z.encoder.__setitem__(2, nn.Tanh()),
    "decoder": _new_decoder,
    "attribute": lambda vae, elbo: setattr(vae.q_z, "log_variance", True),
    "forward of one module": lambda vae, elbo: setattr(vae.p_x.decoder[1], "forward", torch.sigmoid),
    "hook": lambda vae, elbo: vae.p_x.decoder[0].register_forward_hook(lambda module, inputs, output: 2 * output),
    "buffer replaced": lambda vae, elbo: setattr(vae.p_z, "scale", torch.full((3,), 2.0, dtype=torch.float64)),
    "buffer's numbers": lambda vae, elbo: vae.p_z.loc.fill_(1.0),
    "evaluation": lambda vae, elbo: vae.eval(),
}


@pytest.mark.filterwarnings("ignore:encoder.1.bias was not registered")
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_between_two_steps_is_seen(small_vae, small_images, edit):
    vae, x, elbo = small_vae(), small_images(6), CompiledELBO(build_elbo("trace", 3))
    assert_steps_alike(vae, elbo, x)
    before = one_step(vae, elbo, x)[0]
    EDITS[edit](vae, elbo)
    assert_steps_alike(vae, elbo, x)
    if edit not in ("evaluation", "parameter frozen"):
        assert one_step(vae, elbo, x)[0] != before, "the edit changes nothing that could be seen"


def test_another_dtype_is_recorded_anew(small_vae, small_images):
    vae, elbo = small_vae(), CompiledELBO(build_elbo("trace"))
    assert_steps_alike(vae, elbo, small_images(6))
    assert_steps_alike(vae.float(), elbo, small_images(6).float(), rel=1e-4)
    assert elbo.num_recordings == 4
    assert all(p.grad.dtype == torch.float32 for p in vae.parameters())


def test_training_and_evaluation_have_their_own(small_images):
    """BatchNorm by its batch, and by its averages."""
    with torch.random.fork_rng():
        vae = build_vae(Config(network="conv-batchnorm", hidden=(3,), latent_dim=2), (1, 4, 4)).double()
        x = torch.rand(5, 1, 4, 4).double()
    elbo, losses = CompiledELBO(build_elbo("trace")), {}
    for mode in (True, False, True, False):
        vae.train(mode)
        assert_steps_alike(vae, elbo, x)
        losses[mode] = one_step(vae, elbo, x)[0]
    assert losses[True] != losses[False]


def test_gradients_are_added(small_vae, small_images):
    vae, x, elbo = small_vae(), small_images(4), CompiledELBO(build_elbo("trace"))
    once = one_step(vae, elbo, x)[2]
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


def test_what_looks_at_values_is_refused(small_vae, small_images):
    vae = small_vae()

    def model(x):
        vae.model(x if x.mean() > 0.5 else 1 - x)

    with pyro.get_param_store().scope(), pytest.raises(InputError, match="looks at the values"):
        CompiledELBO(build_elbo("trace")).loss_and_grads(model, vae.guide, small_images(4))
    with pytest.raises(TypeError, match="no differentiable_loss"):
        CompiledELBO(RenyiELBO())


@pytest.mark.parametrize("plain", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_elbos_are_recorded(plain):
    """Any model and guide: parameters from pyro.param, one of them constrained; an optimiser of Pyro's."""
    x = torch.randn(7, generator=torch.Generator().manual_seed(0))

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.9 * x, scale))

    ends = []
    for wrap in (lambda elbo: elbo, CompiledELBO):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(2)
            elbo = wrap(plain(num_particles=2, vectorize_particles=True, max_plate_nesting=1))
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
            losses = [svi.step(x) for _ in range(10)]
            ends.append((losses, pyro.param("loc").item(), pyro.param("scale").item()))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-5)
    assert ends[1][1:] == pytest.approx(ends[0][1:], rel=1e-5)
    assert ends[0][1] != 0.5


def wide_vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(Config(hidden=(300,), latent_dim=4), (1, 16, 16))
        return vae, torch.rand(128, 1, 16, 16)


def test_onednns_product_is_torchs_to_rounding(monkeypatch):
    """It is private to torch: where it is missing, the step is the same without it."""
    vae, x = wide_vae()
    elbo = CompiledELBO(build_elbo("trace"))
    assert_steps_alike(vae, elbo, x, rel=1e-4)
    assert "onednn" in _code(elbo) or not torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = CompiledELBO(build_elbo("trace"))
    assert_steps_alike(vae, plain, x, rel=1e-6)
    assert "onednn" not in _code(plain)


def _code(elbo):
    return "".join(str(recorded.run.__self__.code) for recorded in elbo._recordings.values())


def test_bfloat16_is_of_products_alone():
    vae, x = wide_vae()
    elbo = CompiledELBO(build_elbo("trace"), precision="bf16")
    mine, other = one_step(vae, elbo, x), one_step(vae, elbo.elbo, x)
    assert mine[0] == pytest.approx(other[0], rel=1e-3)
    assert mine[0] != other[0]
    for name, gradient in other[2].items():
        assert mine[2][name].dtype == torch.float32
        assert (mine[2][name] - gradient).norm() < 0.05 * gradient.norm(), name
    lines = [line for line in _code(elbo).splitlines() if "bfloat16" in line]
    assert lines
    assert all("_to_copy" in line for line in lines), "what is rounded are factors"


def test_convolutions_are_taken_in_bfloat16_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, x = build_vae(Config(network="conv", hidden=(8, 8), latent_dim=2), (1, 16, 16)), torch.rand(20, 1, 16, 16)
    elbo = CompiledELBO(build_elbo("analytic"), precision="bf16")
    mine, other = one_step(vae, elbo, x), one_step(vae, elbo.elbo, x)
    assert mine[0] == pytest.approx(other[0], rel=1e-2)
    for name, gradient in other[2].items():
        assert (mine[2][name] - gradient).norm() < 0.2 * gradient.norm(), name
    assert "convolution_backward" in _code(elbo)


def test_inductor_trains_as_eager(small_vae, small_images):
    if not any(map(recording.shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
    batches = [small_images(6, seed=step) for step in range(3)]
    theirs = trained(small_vae(), built("analytic", 2), batches)
    assert_trained_alike(trained(small_vae(), CompiledELBO(built("analytic", 2), engine="inductor"), batches), theirs)
    vae, x = wide_vae()
    assert_steps_alike(vae, CompiledELBO(build_elbo("trace"), engine="inductor"), x, rel=1e-4)


def test_inductor_without_a_compiler_is_one_line(monkeypatch, small_vae, small_images):
    monkeypatch.setattr(recording.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        one_step(small_vae(), CompiledELBO(build_elbo("trace"), engine="inductor"), small_images(3))


def test_a_compiled_training_resumes_bit_for_bit(tmp_path, few_digits, small_config):
    config = small_config.replace(compile="graph", binarize="dynamic", warm_up=2, epochs=4)
    whole = fit(config, data=few_digits, out=tmp_path / "whole")
    fit(config.replace(epochs=2), data=few_digits, out=tmp_path / "half")
    resumed = resume(tmp_path / "half", 4, data=few_digits)
    weights = [run.read_checkpoint()["vae"] for run in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    eager = fit(config.replace(compile="none"), data=few_digits, out=tmp_path / "eager")
    ends = [[(row.split, row.elbo, row.loss) for row in run.metrics()][-1] for run in (whole, eager)]
    assert ends[0][1:] == pytest.approx(ends[1][1:], abs=0.05)
