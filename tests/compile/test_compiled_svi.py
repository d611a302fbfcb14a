"""A step recorded as a whole (loss, gradients, Adam's update) equals Pyro's SVI with the same optimiser."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import needs_inductor
from pyro.infer import SVI
from torch.optim import SGD, Adam, AdamW

from pvae.compile.adam import ElementwiseAdamUpdate, FusedAdamUpdate
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.compile.recorded_step import RecordedStep
from pvae.config.config import Config
from pvae.config.options import ELBOS
from pvae.core.errors import InputError, NotFiniteError
from pvae.elbos.registry import build_elbo
from pvae.models.build import build_vae
from pvae.training.fit import fit, resume


def built(name):
    return build_elbo(name, 4, num_groups=2 if name == "miwae" else 1)


def adam(parameters, **options):
    return Adam(parameters, **{"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-3, "fused": True, **options})


def trained(vae, elbo, batches, optimizer=adam, change=lambda step, vae, optimizer: None, beta_of=None, **options):
    """Step once on each batch; return losses, weights, the optimiser's state and the random state at the end."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(11)
        optimizer = optimizer(vae.parameters())
        kind = CompiledSVI if isinstance(elbo, CompiledELBO) else SVI
        svi = kind(vae.model, vae.guide, SingleOptimizer(optimizer), loss=elbo, **options)
        losses = []
        for step, x in enumerate(batches):
            change(step, vae, optimizer)
            losses.append(svi.step(x) if beta_of is None else svi.step(x, beta=beta_of(step)))
        state = [value.clone() for p in vae.parameters() for value in optimizer.state.get(p, {}).values()]
        return losses, [p.detach().clone() for p in vae.parameters()], state, torch.get_rng_state()


def assert_alike(ours, theirs, rel=1e-9):
    assert ours[0] == pytest.approx(theirs[0], rel=rel)
    for mine, other in zip(ours[1] + ours[2], theirs[1] + theirs[2], strict=True):
        assert (mine - other).norm() <= rel * other.norm() + 1e-12
    assert torch.equal(ours[3], theirs[3]), "the random stream was read otherwise"


@pytest.mark.parametrize("name", ELBOS)
def test_it_trains_as_svi(small_vae, small_images, name):
    """Twenty steps of each estimator, with a short batch in the middle and another learning rate at each."""
    batches = [small_images(3 if step == 10 else 8, seed=step) for step in range(20)]

    def another_rate(step, vae, optimizer):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)

    elbo = CompiledELBO(built(name))
    ours = trained(small_vae(), elbo, batches, change=another_rate)
    assert_alike(ours, trained(small_vae(), built(name), batches, change=another_rate))
    assert elbo.num_recordings == 2, "one for each batch size"


def test_a_loop_without_edits_is_checked_once(small_vae, small_images, monkeypatch):
    """The learning rate and beta may change in it; after it, every step is checked again."""
    looks, matches = [], RecordedStep.matches
    monkeypatch.setattr(RecordedStep, "matches", lambda self, *given: looks.append(self) or matches(self, *given))
    batches = [small_images(3 if step in (10, 15) else 8, seed=step) for step in range(20)]

    def stepped(elbo):
        def change(step, vae, optimizer):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)

        return trained(small_vae(), elbo, batches, change=change, beta_of=lambda step: min(1.0, step / 8))

    elbo = CompiledELBO(built("trace"))
    with elbo.skip_guards():
        ours = stepped(elbo)
        assert len(looks) == 1, "for the short batch, at the first of its two visits"
        vae, x = small_vae(), small_images(8)
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            optimizer = adam(vae.parameters())
            svi = CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer), elbo)
            other = CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer), elbo)
            strided = torch.stack([x, x], -1)[..., 0]
            for one, given in ((svi, x), (other, x), (svi, strided)):  # each is of another kind
                before, _ = len(looks), one.step(given)
                assert len(looks) > before
    assert_alike(ours, stepped(built("trace")))
    before = len(looks)
    assert_alike(stepped(elbo), ours)
    assert len(looks) >= before + 20


def _load(step, vae, optimizer):
    if step == 3:
        optimizer.load_state_dict(optimizer.state_dict())


def _other_betas(step, vae, optimizer):
    optimizer.param_groups[0]["betas"] = (0.8, 0.99) if step < 3 else (0.5, 0.9)


def _other_epsilon(step, vae, optimizer):
    optimizer.param_groups[0]["eps"] = 1e-3 if step < 3 else 1e-1


def _step_by_itself(step, vae, optimizer):
    if step == 3:
        for parameter in vae.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def _waiting_gradient(step, vae, optimizer):
    if step == 3:
        vae.p_x.decoder[0].weight.grad = torch.ones_like(vae.p_x.decoder[0].weight)


def _new_parameter(step, vae, optimizer):
    if step == 3:
        layer = vae.p_x.decoder[0]
        layer.weight.data = torch.full_like(layer.weight, 0.2)


def _step_of_one(step, vae, optimizer):
    if step == 3:
        weight = vae.p_x.decoder[0].weight
        for _ in range(5):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            optimizer.zero_grad()


def _weight_decay(step, vae, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.0 if step < 3 else 1.0


def _hook(step, vae, optimizer):
    if step == 3:
        optimizer.register_step_post_hook(lambda *_: vae.p_x.decoder[0].weight.data.mul_(0.9))


def _other_layout(step, vae, optimizer):
    """Other values too, so that the change has an effect."""
    if step == 3:
        layer = vae.p_x.decoder[2].weight
        layer.data = (0.5 * layer.data).T.contiguous().T


CHANGES = {
    "one parameter is ahead": _step_of_one,
    "weight decay": _weight_decay,
    "a hook": _hook,
    "another layout": _other_layout,
    "state loaded": _load,
    "other betas": _other_betas,
    "other epsilon": _other_epsilon,
    "stepped by itself": _step_by_itself,
    "a gradient waits": _waiting_gradient,
    "parameter's storage replaced": _new_parameter,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_steps_is_seen(small_vae, small_images, change):
    batches = [small_images(8, seed=step) for step in range(6)]
    theirs = trained(small_vae(), built("trace"), batches, change=CHANGES[change])
    assert_alike(trained(small_vae(), CompiledELBO(built("trace")), batches, change=CHANGES[change]), theirs)
    if change != "state loaded":
        undisturbed = trained(small_vae(), built("trace"), batches)
        assert undisturbed[0] != theirs[0], "the change changes nothing that could be seen"


def test_a_frozen_parameter_is_refused_as_by_svi(small_vae, small_images):
    def freeze(step, vae, optimizer):
        vae.q_z.encoder[1].bias.requires_grad_(step < 3)

    batches = [small_images(8, seed=step) for step in range(6)]
    for elbo in (built("trace"), CompiledELBO(built("trace"))):
        with pytest.raises(RuntimeError, match="not those of the optimiser"):
            trained(small_vae(), elbo, batches, change=freeze)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [FusedAdamUpdate, ElementwiseAdamUpdate])
def test_the_update_is_adams_own_step(kind, dtype):
    """Bit for bit by torch's operator; the third step is refused, and changes nothing."""
    generator = torch.Generator().manual_seed(0)
    of_ours, of_theirs = (
        [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3, 5), (7, 1))] for _ in range(2)
    )
    optimizer, theirs = adam(of_ours), adam(of_theirs)
    ours = kind(optimizer)
    ours.prepare()
    for step in range(6):
        gradients = [torch.randn(one.T.shape, generator=generator, dtype=dtype).T for one in of_ours]
        optimizer.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.1 / (1 + step)
        assert ours.set_values(ours.counts(of_ours))
        ours.apply(of_ours, gradients, torch.tensor(step != 2))
        if step != 2:
            for parameter, gradient in zip(of_theirs, gradients):
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            theirs.step()
        for mine, other in zip(ours.written(), kind(theirs).written(), strict=True):
            if kind is FusedAdamUpdate:
                assert torch.equal(mine, other)
            else:
                assert torch.allclose(mine, other, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


OTHERS = {
    "a rate that is a tensor": lambda parameters: adam(parameters, lr=torch.tensor(1e-2)),
    "SGD": lambda parameters: SGD(parameters, lr=1e-2),
    "AdamW": lambda parameters: AdamW(parameters, lr=1e-2),
    "AMSGrad": lambda parameters: adam(parameters, amsgrad=True),
    "weight decay": lambda parameters: adam(parameters, weight_decay=0.1),
    "not fused": lambda parameters: adam(parameters, fused=False),
    "two groups": lambda parameters: adam([{"params": [p], "lr": 0.01 * k} for k, p in enumerate(parameters, 1)]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_optimisers_step_by_themselves(small_vae, small_images, kind):
    batches = [small_images(8, seed=step) for step in range(4)]
    theirs = trained(small_vae(), built("trace"), batches, OTHERS[kind])
    assert_alike(trained(small_vae(), CompiledELBO(built("trace")), batches, OTHERS[kind]), theirs)
    assert not FusedAdamUpdate.supports(OTHERS[kind](list(small_vae().parameters())))


def test_batch_norm_counts_once_a_step():
    def vae():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_vae(Config(network="conv-batchnorm", hidden=(3,), latent_dim=2), (1, 4, 4)).double()

    batches = [torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(k)).double() for k in range(4)]
    eager, compiled = vae(), vae()
    theirs = trained(eager, built("trace"), batches)
    assert_alike(trained(compiled, CompiledELBO(built("trace")), batches), theirs)
    for (name, mine), other in zip(compiled.named_buffers(), eager.buffers()):
        assert torch.allclose(mine, other, rtol=1e-9), name


def test_the_preparation_of_a_batch_is_recorded(small_vae, small_images):
    """Images of an index, binarized at random: the draws come in the same order."""
    images = small_images(40)

    def prepare(index):
        return torch.bernoulli(images[index])

    index = [torch.arange(40)[step : step + 6] for step in range(8)]
    elbo = CompiledELBO(built("trace"))
    ours = trained(small_vae("static"), elbo, index, prepare=prepare)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        drawn = []
        for one in index:  # z is drawn between two batches
            drawn.append(prepare(one))
            torch.randn(4, 6, 3, dtype=torch.float64)
    assert elbo.num_recordings == 1
    with torch.random.fork_rng():
        eager = small_vae("static")
        losses = []
        with pyro.get_param_store().scope():
            torch.manual_seed(11)
            svi = SVI(eager.model, eager.guide, SingleOptimizer(adam(eager.parameters())), loss=built("trace"))
            for one, x in zip(index, drawn):
                assert torch.equal(prepare(one), x)
                losses.append(svi.step(x))
    assert ours[0] == pytest.approx(losses, rel=1e-9)


def test_prepared_pixels_outside_the_domain_are_refused(small_vae, small_images):
    images = small_images(12, binary=True)
    images[9, 0, 2, 2] = 0.5
    vae = small_vae("static")
    optimizer = adam(vae.parameters())
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        one = (vae.model, vae.guide, SingleOptimizer(optimizer), CompiledELBO(built("trace")))
        svi = CompiledSVI(*one, prepare=lambda index: images[index])
        svi.step(torch.arange(6))
        before = [tensor.detach().clone() for tensor in svi._update.written()]
        with pytest.raises(InputError, match="exactly 0 or 1"):
            svi.step(torch.arange(6, 12))
        assert all(torch.equal(old, now) for old, now in zip(before, svi._update.written()))
        assert svi.step(torch.arange(6)) > 0


def test_another_function_that_prepares_is_seen(small_vae, small_images):
    vae, images, elbo = small_vae(), small_images(12), CompiledELBO(built("trace"))
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        optimizer = SingleOptimizer(adam(vae.parameters(), lr=0.0))
        losses = []
        for factor in (1.0, 0.5):
            svi = CompiledSVI(vae.model, vae.guide, optimizer, elbo, prepare=lambda i, by=factor: by * images[i])
            torch.manual_seed(0)
            losses.append(svi.step(torch.arange(6)))
    assert losses[0] != losses[1]


def test_parameters_that_are_not_the_optimisers_are_refused(small_vae, small_images):
    vae = small_vae()
    optimizer = SingleOptimizer(adam([*vae.parameters(), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))]))
    with pyro.get_param_store().scope(), pytest.raises(RuntimeError, match="not those of the optimiser"):
        CompiledSVI(vae.model, vae.guide, optimizer, CompiledELBO(built("trace"))).step(small_images(4))


def test_a_parameter_that_the_optimiser_lacks_is_refused_and_leaves_it_whole(small_vae, small_images):
    vae = small_vae()
    optimizer = adam([p for name, p in vae.named_parameters() if name != "p_x.decoder.0.bias"])
    before = optimizer.state_dict()["state"]
    with pyro.get_param_store().scope(), pytest.raises(RuntimeError, match="not those of the optimiser"):
        CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer), CompiledELBO(built("trace"))).step(
            small_images(4)
        )
    assert before == {}
    assert all(not value.any() for state in optimizer.state_dict()["state"].values() for value in state.values())


def test_parameters_of_pyros_own_train():
    x = torch.randn(7, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.7))

    def stepped(kind, elbo):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(3)
            guide(x)
            loc = pyro.get_param_store()._params["loc"]
            svi = kind(model, guide, SingleOptimizer(adam([loc])), elbo)
            return [svi.step(x) for _ in range(5)], loc.item()

    ours, theirs = stepped(CompiledSVI, CompiledELBO(built("trace"))), stepped(SVI, built("trace"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)


def test_a_refused_recording_leaves_weights_and_state(small_vae, small_images):
    vae = small_vae()
    before = [p.detach().clone() for p in vae.parameters()]
    optimizer = adam(vae.parameters())

    def model(x):
        vae.model(x if x.mean() > 0.5 else 1 - x)

    with pyro.get_param_store().scope(), pytest.raises(InputError, match="reads values"):
        CompiledSVI(model, vae.guide, SingleOptimizer(optimizer), CompiledELBO(built("trace"))).step(small_images(4))
    assert all(torch.equal(p, old) for p, old in zip(vae.parameters(), before))
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())


@needs_inductor
def test_inductor_trains_as_svi(small_vae, small_images):
    """With another beta at each step; a step that is not finite changes nothing."""
    batches, elbo = [small_images(8, seed=step) for step in range(6)], CompiledELBO(built("trace"), engine="inductor")
    ours = trained(small_vae(), elbo, batches, beta_of=lambda step: 1 / (1 + step))
    assert_alike(ours, trained(small_vae(), built("trace"), batches, beta_of=lambda step: 1 / (1 + step)))
    vae = small_vae()
    svi = CompiledSVI(vae.model, vae.guide, SingleOptimizer(adam(vae.parameters())), elbo)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi.step(batches[0])
        before = [tensor.detach().clone() for tensor in svi._update.written()]
        with pytest.raises(NotFiniteError, match="the loss is"):
            svi.step(batches[0], beta=math.inf)
    assert all(torch.equal(old, now) for old, now in zip(before, svi._update.written(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("engine", ["graph", "inductor"])
def test_it_trains_as_svi_on_a_gpu(small_vae, small_images, engine):
    batches = [small_images(8, seed=step).cuda() for step in range(6)]
    ours = trained(small_vae().cuda(), CompiledELBO(built("iwae"), engine), batches)
    assert_alike(ours, trained(small_vae().cuda(), built("iwae"), batches))


@needs_inductor
@pytest.mark.slow
def test_a_training_by_inductor_resumes_bit_for_bit(tmp_path, few_digits, small_config):
    config = small_config.replace(compile="inductor", epochs=2, binarize="dynamic")
    whole = fit(config, data=few_digits, out=tmp_path / "whole")
    fit(config.replace(epochs=1), data=few_digits, out=tmp_path / "parts")
    parts = resume(tmp_path / "parts", 2, data=few_digits)
    one, other = (run.read_checkpoint() for run in (whole, parts))
    assert all(torch.equal(value, other.vae[name]) for name, value in one.vae.items())
    eager = fit(config.replace(compile="none"), data=few_digits, out=tmp_path / "eager").metrics()[-1]
    assert whole.metrics()[-1].elbo == pytest.approx(eager.elbo, rel=1e-4)
