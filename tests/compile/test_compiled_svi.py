"""A step recorded as a whole (loss, gradients, Adam's update) equals Pyro's SVI with the same optimiser."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import needs_inductor
from helpers.svi import KINDS, adam, assert_trained_alike, built, trained
from pyro.infer import SVI
from torch.optim import SGD, AdamW

from pvae.compile.adam import ElementwiseAdamUpdate, FusedAdamUpdate
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.compile.recorded_step import RecordedStep
from pvae.core.errors import InputError, NotFiniteError
from pvae.training.fit import fit, resume


def step_by(vae, optimizer, **options):
    """A `CompiledSVI` of a VAE."""
    return CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer), CompiledELBO(built("trace")), **options)


def written_by(svi):
    return [tensor.detach().clone() for tensor in svi._update.written()]


def assert_alike(vae_of, batches, **options):
    """Compare a recorded training with one by SVI, which is returned."""
    theirs = trained(vae_of(), built("trace"), batches, **options)
    svi, elbo = KINDS["step"](built("trace"))
    assert_trained_alike(trained(vae_of(), elbo, batches, svi, **options), theirs)
    return theirs


def another_rate(step, _, optimizer):
    optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)


def test_a_loop_without_edits_is_checked_once(small_vae, small_images, monkeypatch):
    """The learning rate and beta may change in it; after it, every step is checked again."""
    looks, matches = [], RecordedStep.matches
    monkeypatch.setattr(RecordedStep, "matches", lambda self, *given: looks.append(self) or matches(self, *given))
    batches = [small_images(3 if step in (10, 15) else 8, seed=step) for step in range(20)]
    given = {"on_step": another_rate, "beta_of": lambda step: min(1.0, step / 8)}
    svi, elbo = KINDS["step"](built("trace"))
    with elbo.skip_guards():
        ours = trained(small_vae(), elbo, batches, svi, **given)
        assert len(looks) == 1, "for the short batch, at the first of its two visits"
        vae, x = small_vae(), small_images(8)
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            optimizer = adam(vae.parameters())
            one, other = (CompiledSVI(vae.model, vae.guide, SingleOptimizer(optimizer), elbo) for _ in range(2))
            strided = torch.stack([x, x], -1)[..., 0]
            for each, batch in ((one, x), (other, x), (one, strided)):  # each is of another kind
                before, _ = len(looks), each.step(batch)
                assert len(looks) > before
    assert_trained_alike(ours, trained(small_vae(), built("trace"), batches, **given))
    before = len(looks)
    assert_trained_alike(trained(small_vae(), elbo, batches, svi, **given), ours)
    assert len(looks) >= before + 20


def _step_by_itself(vae, optimizer, parameters=None, times=1):
    for _ in range(times):
        for parameter in parameters or vae.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def _other_layout(vae, optimizer):
    """Other values too, so that the change has an effect."""
    weight = vae.p_x.decoder[2].weight
    weight.data = (0.5 * weight.data).T.contiguous().T


def _weight(vae):
    return vae.p_x.decoder[0].weight


CHANGES = {
    "one parameter is ahead": lambda vae, adam: _step_by_itself(vae, adam, [_weight(vae)], 5),
    "weight decay": lambda vae, adam: adam.param_groups[0].update(weight_decay=1.0),
    "a hook": lambda vae, adam: adam.register_step_post_hook(lambda *_: _weight(vae).data.mul_(0.9)),
    "another layout": _other_layout,
    "state loaded": lambda vae, adam: adam.load_state_dict(adam.state_dict()),
    "other betas": lambda vae, adam: adam.param_groups[0].update(betas=(0.5, 0.9)),
    "other epsilon": lambda vae, adam: adam.param_groups[0].update(eps=1e-1),
    "stepped by itself": _step_by_itself,
    "a gradient waits": lambda vae, adam: setattr(_weight(vae), "grad", torch.ones_like(_weight(vae))),
    "parameter's storage replaced": lambda vae, adam: setattr(_weight(vae), "data", torch.full_like(_weight(vae), 0.2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_steps_is_seen(small_vae, small_images, change):
    batches = [small_images(8, seed=step) for step in range(6)]

    def on_step(step, *subject):
        if step == 3:
            CHANGES[change](*subject)

    theirs = assert_alike(small_vae, batches, on_step=on_step)
    if change != "state loaded":
        undisturbed = trained(small_vae(), built("trace"), batches)
        assert undisturbed.losses != theirs.losses, "the change changes nothing that could be seen"


@pytest.mark.parametrize("kind", [None, "step"])
def test_a_frozen_parameter_is_refused_as_by_svi(small_vae, small_images, kind):
    def freeze(step, vae, optimizer):
        vae.q_z.encoder[1].bias.requires_grad_(step < 3)

    svi, elbo = KINDS[kind](built("trace")) if kind else (SVI, built("trace"))
    with pytest.raises(RuntimeError, match="not those of the optimiser"):
        trained(small_vae(), elbo, [small_images(8)] * 6, svi, on_step=freeze)


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
            rel = 0 if kind is FusedAdamUpdate else 1e-6 if dtype == torch.float32 else 1e-14
            assert torch.allclose(mine, other, rtol=rel, atol=0)


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
    assert_alike(small_vae, [small_images(8, seed=step) for step in range(4)], optimizer=OTHERS[kind])
    assert not FusedAdamUpdate.supports(OTHERS[kind](list(small_vae().parameters())))


def test_the_preparation_of_a_batch_is_recorded(small_vae, small_images):
    """Images of an index, binarized at random: the draws come in the same order."""
    images = small_images(40)
    index = [torch.arange(40)[step : step + 6] for step in range(8)]
    svi, elbo = KINDS["step"](built("trace"))
    ours = trained(small_vae("static"), elbo, index, svi, prepare=lambda one: torch.bernoulli(images[one]))
    assert elbo.num_recordings == 1
    vae = small_vae("static")

    def prepared(svi):
        """Binarize before each eager step, from the same random stream."""

        class Prepares(svi):
            def step(self, one):
                return super().step(torch.bernoulli(images[one]))

        return Prepares

    assert_trained_alike(ours, trained(vae, built("trace"), index, prepared(SVI)))


def test_prepared_pixels_outside_the_domain_are_refused(small_vae, small_images):
    images = small_images(12, binary=True)
    images[9, 0, 2, 2] = 0.5
    vae = small_vae("static")
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        svi = step_by(vae, adam(vae.parameters()), prepare=lambda index: images[index])
        svi.step(torch.arange(6))
        before = written_by(svi)
        with pytest.raises(InputError, match="exactly 0 or 1"):
            svi.step(torch.arange(6, 12))
        assert all(map(torch.equal, before, written_by(svi)))
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


@pytest.mark.parametrize("lacks_one", [False, True])
def test_parameters_that_are_not_the_optimisers_are_refused(small_vae, small_images, lacks_one):
    """One too many, or one too few: the optimiser's state stays whole."""
    vae = small_vae()
    parameters = [*vae.parameters(), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))]
    optimizer = adam(list(vae.parameters())[:-1] if lacks_one else parameters)
    with pyro.get_param_store().scope(), pytest.raises(RuntimeError, match="not those of the optimiser"):
        step_by(vae, optimizer).step(small_images(4))
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())


def test_parameters_of_pyros_own_train():
    x = torch.randn(7, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.7))

    def make():
        guide(x)
        guide.parameters = lambda: [pyro.get_param_store().get_param("loc")]
        return model, guide

    svi, elbo = KINDS["step"](built("trace"))
    ours, theirs = trained(make, elbo, [x] * 5, svi), trained(make, built("trace"), [x] * 5)
    assert_trained_alike(ours, theirs, rel=1e-5)
    assert theirs.parameters["loc"] != 0.5


def test_a_refused_recording_leaves_weights_and_state(small_vae, small_images):
    vae = small_vae()
    before = [p.detach().clone() for p in vae.parameters()]
    optimizer = adam(vae.parameters())

    def model(x):
        vae.model(x if x.mean() > 0.5 else 1 - x)

    with pyro.get_param_store().scope(), pytest.raises(InputError, match="reads values"):
        CompiledSVI(model, vae.guide, SingleOptimizer(optimizer), CompiledELBO(built("trace"))).step(small_images(4))
    assert all(map(torch.equal, vae.parameters(), before))
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())


@needs_inductor
def test_inductor_trains_as_svi(small_vae, small_images):
    """With another beta at each step; a step that is not finite changes nothing."""
    batches, (svi, elbo) = [small_images(8, seed=step) for step in range(6)], KINDS["step"](built("trace"), "inductor")
    given = {"beta_of": lambda step: 1 / (1 + step)}
    ours = trained(small_vae(), elbo, batches, svi, **given)
    assert_trained_alike(ours, trained(small_vae(), built("trace"), batches, **given))
    vae = small_vae()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        one = svi(vae.model, vae.guide, SingleOptimizer(adam(vae.parameters())), elbo)
        one.step(batches[0])
        before = written_by(one)
        with pytest.raises(NotFiniteError, match="the loss is"):
            one.step(batches[0], beta=math.inf)
    assert all(map(torch.equal, before, written_by(one)))


@pytest.mark.parametrize("engine", ["graph", pytest.param("inductor", marks=[needs_inductor, pytest.mark.slow])])
def test_a_compiled_training_resumes_bit_for_bit(tmp_path, few_digits, small_config, engine):
    config = small_config.replace(compile=engine, epochs=3, binarize="dynamic", warm_up=2)
    whole = fit(config, data=few_digits, out=tmp_path / "whole")
    fit(config.replace(epochs=1), data=few_digits, out=tmp_path / "parts")
    parts = resume(tmp_path / "parts", 3, data=few_digits)
    one, other = (run.read_checkpoint().vae for run in (whole, parts))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    eager = fit(config.replace(compile="none"), data=few_digits, out=tmp_path / "eager").metrics()[-1]
    assert whole.metrics()[-1].elbo == pytest.approx(eager.elbo, rel=1e-4)
