"""Members that are trained at once equal those that are trained one after the other."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from torch.optim import Adam

from pvae.compile.adam import AdamUpdate
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.graph import RecordingError
from pvae.compile.members import Members
from pvae.config.build import build_vae, elbo_of, preparation_of
from pvae.config.config import Config
from pvae.core.errors import NotFiniteError
from pvae.core.random_state import rng_state
from pvae.data.preparation import TrainingData

CPU = torch.device("cpu")
SYSTEMS = {
    "plain": {"elbo": "analytic"},
    "iwae": {"elbo": "iwae", "particles": 5},
    "dreg": {"elbo": "dreg", "particles": 4},
    "stl of one particle": {"elbo": "stl"},
    "dynamic binarization": {"binarize": "dynamic", "clip_norm": 0.5},
    "two layers": {"upper_latent_dims": (2,), "upper_hidden": (4,), "elbo": "iwae", "particles": 3},
    "ladder": {"upper_latent_dims": (2, 2), "upper_hidden": (4,), "inference": "ladder", "elbo": "analytic"},
    "levels": {"likelihood": "discretized-logistic", "free_bits": 0.3},
    "vamp": {"prior": "vamp", "components": 5},
    "flow": {"posterior": "spline", "prior": "flow", "flow_hidden": (5,), "elbo": "dreg", "particles": 2},
    "planar": {"posterior": "planar", "elbo": "stl"},
    "mixture": {"prior": "mixture", "elbo": "dreg", "particles": 2},
    "full covariance": {"posterior": "normal-full", "elbo": "analytic"},
    "convolutions": {"network": "conv", "hidden": (3, 4)},
    "score function": {"elbo": "score", "particles": 2},
    "autoencoder": {"posterior": "delta"},
}
NUM, BATCH = 50, 16


def vae_of(config, seed, shape=(1, 4, 4), num_labels=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_vae(config, shape, num_labels).double()


def svi_of(vae, config, data, engine="graph"):
    adam = Adam(vae.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
    update = AdamUpdate(adam, dict(vae.named_parameters()), config.clip_norm)
    return CompiledSVI(vae.model, vae.guide, update, elbo_of(config), engine, BATCH, data.batch)


def table(step, lr, beta):
    return (lr / (1 + 0.1 * step), beta * min(1.0, step / 8))


def alone(vae, config, data, seed, steps, lr, beta):
    """Train a member by itself: losses, terms, and the random state at the end."""
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        order = [torch.randint(NUM, (BATCH if step != 7 else 5,)) for step in range(steps)]
        vae.train()
        done = svi_of(vae, config, data).run([(one,) for one in order], [table(s, lr, beta) for s in range(steps)])
        return done, rng_state(CPU)


def together(vaes, config, data, seeds, steps, lrs, betas, calls=3):
    svis = [svi_of(vae, config, one) for vae, one in zip(vaes, data)]
    members = Members(svis, [[*vae.buffers(), *filter(torch.is_tensor, [one.y])] for vae, one in zip(vaes, data)])
    orders = []
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        for place, seed in enumerate(seeds):
            torch.manual_seed(seed)
            orders.append([torch.randint(NUM, (BATCH if step != 7 else 5,)) for step in range(steps)])
            members.random[place] = rng_state(CPU)
        batches = [(torch.stack(one, 1),) for one in zip(*orders)]
        values = [[table(step, lr, beta) for lr, beta in zip(lrs, betas)] for step in range(steps)]
        for vae in vaes:
            vae.train()
        cuts = [steps * call // calls for call in range(calls + 1)]
        found = [members.run(batches[a:b], values[a:b]) for a, b in itertools.pairwise(cuts)]
    return found, members


def check(config, data, shape=(1, 4, 4), num_labels=0, steps=100):
    seeds, lrs, betas = (3, 1, 2), (1e-2, 1e-3, 3e-3), (1.0, 1.0, 4.0)
    if config.elbo in ("iwae", "dreg"):
        betas = (1.0, 1.0, 1.0)
    found, members = together(
        vaes := [vae_of(config, seed, shape, num_labels) for seed in seeds], config, data, seeds, steps, lrs, betas
    )
    for place, seed in enumerate(seeds):
        vae = vae_of(config, seed, shape, num_labels)
        done, random = alone(vae, config, data[place], seed, steps, lrs[place], betas[place])
        assert done.error is None
        losses = torch.cat([one.members[place].losses for one in found])
        assert torch.allclose(losses, done.losses, rtol=1e-10, atol=0)
        for name in ("distortion", "rate"):
            ours = torch.cat([getattr(one.members[place].terms, name) for one in found])
            assert torch.allclose(ours, getattr(done.terms, name), rtol=1e-9, atol=1e-10)
        for ours, theirs in zip(vaes[place].parameters(), vae.parameters()):
            assert (ours - theirs).norm() <= 1e-10 * (1 + theirs.norm())
        assert torch.equal(members.random[place]["cpu"], random["cpu"])
    assert members.num_recordings == 2


def images(config):
    x = (torch.rand(NUM, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).round().double() / 255
    return [TrainingData(x, preparation_of(config), None)] * 3


FAST = ("plain",)
SLOW = ("flow",)  # a minute, most of it to record
KINDS = [
    pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow if kind in SLOW else pytest.mark.workflow])
    for kind in SYSTEMS
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_equals_its_single_run(kind):
    """Three members that differ in initial weights, order, noise, learning rate and beta; steps of two sizes."""
    config = Config(**{"hidden": (6,), "latent_dim": 3, "particles": 2, **SYSTEMS[kind]})
    check(config, images(config), steps=100 if kind in ("plain", "iwae", "dreg") else 20)


@pytest.mark.workflow
def test_a_member_equals_its_single_run_on_images_of_digits():
    """Of 28 x 28 pixels, whose convolutions copy them to channels_last."""
    config = Config(network="conv", hidden=(3, 4), latent_dim=3, elbo="analytic")
    x = torch.rand(NUM, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    check(config, [TrainingData(x, preparation_of(config), None)] * 3, shape=(1, 28, 28), steps=20)


@pytest.mark.parametrize("name", ["poisson", pytest.param("negative-binomial", marks=pytest.mark.workflow)])
def test_a_member_equals_its_single_run_on_counts(name):
    config = Config(hidden=(6,), latent_dim=3, likelihood=name, elbo="analytic")
    x = torch.poisson(torch.full((NUM, 7), 3.0), generator=torch.Generator().manual_seed(0)).double()
    check(config, [TrainingData(x, preparation_of(config), None)] * 3, shape=(7,), steps=20)


@pytest.mark.parametrize("elbo", ["analytic", pytest.param("enumerate", marks=pytest.mark.workflow)])
def test_a_member_equals_its_single_run_with_labels(elbo):
    """With "enumerate" each member knows the labels of other data."""
    options = {"condition": True} if elbo == "analytic" else {"labels": 20}
    config = Config(hidden=(6,), latent_dim=3, elbo=elbo, **options)
    x = images(config)[0].prepared
    labels = [torch.randint(3, (NUM,), generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    if elbo == "enumerate":
        for member, one in enumerate(labels):
            one[torch.arange(NUM) % 3 == member] = -1
    check(config, [TrainingData(x, preparation_of(config), one) for one in labels], num_labels=3, steps=20)


REFUSED = {
    "draws of parameters": ({"posterior": "power-spherical", "prior": "sphere", "elbo": "analytic"}, "parameters"),
    "buffers": ({"network": "conv-batchnorm", "hidden": (3, 4)}, "BatchNorm"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_mapped_is_refused(kind):
    options, why = REFUSED[kind]
    config = Config(**{"hidden": (6,), "latent_dim": 3, **options})
    vaes = [vae_of(config, seed) for seed in range(2)]
    before = [one.clone() for vae in vaes for one in vae.state_dict().values()]
    with pytest.raises(RecordingError, match=why):
        together(vaes, config, images(config), (0, 1), 1, (1e-3, 1e-3), (1.0, 1.0), calls=1)
    assert all(torch.equal(*pair) for pair in zip(before, (one for vae in vaes for one in vae.state_dict().values())))


def test_a_member_that_diverges_is_held_and_the_others_go_on():
    """The second step of member 1 has infinite weights; the others end as without it, and it as it was then."""
    config = Config(hidden=(6,), latent_dim=3)
    data, seeds, rates, betas = images(config), (3, 1, 2), (1e-2, 1e-2, 1e-2), (1.0, 1.0, 1.0)
    usual = [vae_of(config, seed) for seed in seeds]
    together(usual, config, data, seeds, 6, rates, betas)
    vaes = [vae_of(config, seed) for seed in seeds]
    rates = (1e-2, 1e300, 1e-2)
    found, members = together(vaes, config, data, seeds, 6, rates, betas, calls=3)
    assert members.is_held.tolist() == [False, True, False]
    (first, *later) = [one.members[1] for one in found]
    assert isinstance(first.error, NotFiniteError)
    assert all(one.error is None and len(one.losses) == 0 for one in later)
    assert all(one.error is None for one in found)
    single = vae_of(config, 1)
    done, _ = alone(single, config, data[1], 1, 6, 1e300, 1.0)
    assert str(done.error) == str(first.error)
    assert len(first.losses) == len(done.losses) == 1
    for ours, theirs in zip(vaes[1].parameters(), single.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-10)
    for place in (0, 2):
        for ours, theirs in zip(vaes[place].parameters(), usual[place].parameters()):
            assert torch.equal(ours, theirs)
    _, members = together([vae_of(config, seed) for seed in seeds], config, data, seeds, 3, rates, betas, calls=1)
    _, random = alone(vae_of(config, 1), config, data[1], 1, 3, 1e300, 1.0)
    assert torch.equal(members.random[1]["cpu"], random["cpu"]), "as before the second step"


def test_a_step_that_is_bad_among_members_alone_moves_none():
    """Free bits of member 1 are NaN in the stack, and finite where it takes the step by itself to find out why."""
    config = Config(hidden=(6,), latent_dim=3, free_bits=0.3)
    vaes = [vae_of(config, seed) for seed in range(2)]
    svis = [svi_of(vae, config, data) for vae, data in zip(vaes, images(config))]
    for svi, value in zip(svis, (0.3, float("nan"))):
        svi.elbo.free_bits = torch.tensor(value).double()
    members = Members(svis, [[svi.elbo.free_bits] for svi in svis])
    svis[1].elbo.free_bits.fill_(0.3)
    before = [one.clone() for one in vaes[1].parameters()]
    with pyro.get_param_store().scope():
        done = members.run([(torch.arange(BATCH).unsqueeze(1).repeat(1, 2),)] * 2, [[(1e-2, 1.0)] * 2] * 2)
    assert isinstance(done.members[1].error, NotFiniteError)
    assert [len(one.losses) for one in done.members] == [2, 0]
    assert all(torch.equal(*pair) for pair in zip(before, vaes[1].parameters()))
