"""The published systems: each loss, written as in its post, is an ELBO up to a factor and a constant; each trains."""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pytest
import torch
from helpers.commands import refuse
from torch.nn.functional import binary_cross_entropy, mse_loss

import pvae
from pvae.cli.train import main, train_parser
from pvae.config.build import build_elbo, build_vae
from pvae.config.config import OPTIONS, Config
from pvae.config.presets import SYSTEMS, get_system, system_title
from pvae.core.errors import InputError
from pvae.reference import elbo as reference_elbo
from pvae.trained.scores import posterior_mean_loss
from pvae.training.setup import build_trainer


def small(name, datum_shape):
    """The distributions of a system with small networks, in float64."""
    config = get_system(name)
    config = config.replace(hidden=(3,) * (len(config.hidden) if config.network != "mlp" else 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config, build_vae(config, datum_shape).double()


def loss_and_gradients(vae, loss_of):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loss = loss_of()
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))])


def assert_is_an_elbo(vae, printed, elbo, factor, constant):
    """printed = factor (elbo's loss + constant), in value and in every gradient; 1 % more of a term is no such loss."""
    elbo_value, elbo_gradients = loss_and_gradients(vae, elbo)
    for off, is_equal in ((1.0, True), (1.01, False)):
        value, gradients = loss_and_gradients(vae, lambda off=off: printed(off))
        assert (value.item() == pytest.approx(factor * (elbo_value.item() + constant), rel=1e-10)) == is_equal
        assert ((gradients - factor * elbo_gradients).norm() < 1e-10 * gradients.norm()) == is_equal


class Post(NamedTuple):
    """The loss that a post prints, of the decoder's output, pixels x in [0, 1] and the rate of each dimension."""

    loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
    factor: float
    constant: float = 0.0  # the normalising constant of a Normal
    shape: tuple[int, ...] = (1, 28, 28)


def normal_constant(dim, variance):
    return -0.5 * dim * math.log(2 * math.pi * variance)


def summed(output, x, kl, off):
    return (binary_cross_entropy(output.sigmoid(), x, reduction="sum") + off * kl.sum()) / len(x)


def of_last_axis(output, x, kl, off):
    """Keras's mean_squared_error averages the last axis, the channels; reduce_mean then height, width and batch."""
    last_axis = ((x - output.sigmoid()) ** 2).movedim(1, -1).mean(dim=-1)
    return off * 2000 * last_axis.mean() + kl.sum(dim=1).mean()


POSTS = {
    "pytorch-example": Post(summed, 1),
    "mlp-2d": Post(summed, 1),
    # mean over D of (x - y)^2 + w KL is w times the loss of Normal(y, w D / 2): (x - y)^2 summed and divided by D is
    # 2 scale^2 / D times the Normal's. The post takes the mean over the pixels; for a sum, scale^2 would be w / 2.
    "conv-2d": Post(
        lambda output, x, kl, off: mse_loss(output.tanh(), 2 * x - 1) + off * 1e-3 * kl.sum(dim=1).mean(),
        1e-3,
        normal_constant(784, 0.392),
    ),
    # 500 mean over D of the cross-entropy + mean over L of the KL is 500 / D times the loss of beta = D / 500 / L.
    "fashion-vae": Post(
        lambda output, x, kl, off: off * 500 * binary_cross_entropy(output.sigmoid(), x) + kl.mean(dim=1).mean(),
        500 / 1024,
    ),
    # 2000 mean over D of (x - y)^2 + KL is the loss of Normal(y, D / 4000): 2000 / D = 1 / (2 scale^2).
    "celeba-vae": Post(of_last_axis, 1, normal_constant(12288, 3.072), (3, 64, 64)),
}


@pytest.mark.parametrize(("name", "post"), POSTS.items(), ids=POSTS)
def test_the_loss_of_a_post_is_an_elbo(name, post):
    config, vae = small(name, post.shape)
    vae.eval()  # BatchNorm by its running averages: not what is compared here
    pixels = torch.nn.functional.pad(torch.rand(4, *post.shape, dtype=torch.float64), (config.pad,) * 4)
    x = 2 * pixels - 1 if config.pixels == "symmetric" else pixels

    def printed(off):
        loc, log_variance = vae.q_z.encoder(x).chunk(2, dim=1)
        z = loc + (0.5 * log_variance).exp() * torch.randn(loc.shape, dtype=loc.dtype)
        kl = -0.5 * (1 + log_variance - loc**2 - log_variance.exp())
        return post.loss(vae.p_x.decoder(z), pixels, kl, off)

    def elbo():
        return reference_elbo.loss(reference_elbo.closed_form(vae, x), config.beta)

    assert_is_an_elbo(vae, printed, elbo, post.factor, post.constant)


@pytest.mark.parametrize(
    ("name", "factor", "constant"),
    [("fashion-ae", 1 / 1024, 0), ("conv-2d-ae", 2 * 0.392 / 784, normal_constant(784, 0.392))],
)
def test_autoencoders_are_the_distortion_alone(name, factor, constant):
    """A Delta posterior and a flat prior: the rate is exactly 0, and the loss is the printed one."""
    config, vae = small(name, (1, 28, 28))
    x = torch.nn.functional.pad(torch.rand(6, 1, 28, 28, dtype=torch.float64), (config.pad,) * 4)
    x = 2 * x - 1 if config.pixels == "symmetric" else x

    def printed(off):
        output = vae.p_x.decoder(vae.q_z.encoder(x))
        return off * (mse_loss(output.tanh(), x) if constant else binary_cross_entropy(output.sigmoid(), x))

    terms = reference_elbo.monte_carlo(vae, x)
    assert torch.equal(terms.rate, torch.zeros_like(terms.rate))
    for elbo in map(build_elbo, ("trace", "handwritten", "analytic")):
        with pyro.get_param_store().scope():
            loss = functools.partial(elbo.differentiable_loss, vae.model, vae.guide, x)
            assert_is_an_elbo(vae, printed, loss, factor, constant)


def test_the_test_loss_of_002_is_no_elbo(small_vae, small_images):
    """The test loss of post 002 is computed at the posterior mean and is lower than -ELBO."""
    vae, x = small_vae(), small_images(10)
    loc, _ = vae.q_z.encoder(x).chunk(2, dim=1)
    y = vae.p_x.decoder(loc).sigmoid()
    printed = binary_cross_entropy(y, x, reduction="none").sum(dim=(1, 2, 3)) + reference_elbo.closed_form(vae, x).rate
    assert torch.allclose(posterior_mean_loss(vae, x), printed, rtol=1e-10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        elbo = reference_elbo.closed_form(vae, x, 2000).elbo.mean()
    assert printed.mean() < -elbo


def test_warm_up_starts_at_exactly_zero_and_ends_at_beta(few_digits, small_config):
    config = small_config.replace(warm_up=2, beta=3.0)
    with torch.random.fork_rng():
        training = build_trainer(config, few_digits)
    weights = [training.schedule(step)[1] for step in range(9)]
    assert weights == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 3])
    assert weights[0] == 0


def test_convolutions_refuse_images_that_they_cannot_halve():
    with pytest.raises(InputError, match="hidden"):
        build_vae(Config(network="conv-groupnorm", hidden=(4, 4, 4)), (1, 28, 4))


@pytest.mark.parametrize("network", ["conv", "conv-batchnorm", "conv-groupnorm"])
@pytest.mark.parametrize("shape", [(3, 27, 13), (1, 8, 9)])
def test_convolutions_take_images_of_any_size(network, shape):
    """And of any leading dimensions of z."""
    vae = build_vae(Config(network=network, hidden=(4, 8, 8), latent_dim=3), shape).eval()
    assert vae.posterior(torch.rand(2, *shape).round()).mean.shape == (2, 3)
    z = torch.randn(5, 6, 3)
    whole = vae.p_x.decoder(z)
    assert whole.shape == (5, 6, *shape)
    assert torch.allclose(vae.p_x.decoder(z[2]), whole[2], atol=1e-5)
    assert torch.allclose(vae.p_x.decoder(z[2, 3]), whole[2, 3], atol=1e-5)


def test_options_of_a_network_are_refused_where_no_network_has_them():
    config = get_system("vampprior").replace(network="conv")
    assert system_title(config) == "vampprior with --network conv"
    of_upper = config.replace(posterior="normal", prior="standard-normal", upper_latent_dims=(4,))
    for used, unused, name in ((of_upper, config, "activation"), (config, config.replace(network="linear"), "hidden")):
        used.check_used([name])
        with pytest.raises(InputError, match=f"--{name}"):
            unused.check_used([name])


def test_a_user_defined_system(tmp_path, few_digits, monkeypatch, capsys, no_pictures):
    monkeypatch.setattr("pvae.training.fit.load_for", lambda *_, **__: few_digits)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('system = "mine"\nhidden = [8]\nlatent_dim = 2\nbatch_size = 50\nepochs = 1\n')
    assert main(["--config", "mine.toml", "--latent-dim", "3", "--out", "run"]) == 0
    assert pvae.Run.open("run").config == Config(system="mine", hidden=(8,), latent_dim=3, batch_size=50, epochs=1)
    capsys.readouterr()
    deep = b"hidden = " + b"[" * 5000 + b"]" * 5000
    for text in (b"hiden = [8]", b"epochs = 'two'", b"lr = nan", b"system = '../x'", b"= broken", b"\xff\xfe", deep):
        (tmp_path / "mine.toml").write_bytes(text)
        line = refuse(main, ["--config", "mine.toml"], capsys, tmp_path)
        assert line.startswith("pvae train: --config mine.toml")
        assert text in (b"= broken", b"\xff\xfe", deep) or text.split()[0].decode() in line, "it names the field"
    refuse(main, ["--config", "nowhere.toml"], capsys, tmp_path)


def test_list_systems(capsys):
    assert main(["--list-systems"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "--system NAME" in header
    starts = [place for place, line in enumerate(lines) if not line.startswith(" ")]
    assert [lines[start].split()[0] for start in starts] == list(SYSTEMS)
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        name, options = lines[start].split()[0], " ".join(" ".join(lines[start + 1 : end]).split())
        assert SYSTEMS[name].source in lines[start]
        in_toml = re.findall(r"(\w+) = (\S+)", options)  # options without a flag
        chosen = vars(train_parser().parse_args(re.sub(r"\w+ = \S+", "", options).split()))
        chosen |= {option: ast.literal_eval(value) for option, value in in_toml}
        given = {option: value for option, value in chosen.items() if option in OPTIONS}
        values = {option: tuple(value) if isinstance(value, list) else value for option, value in given.items()}
        assert Config(system=name, source=SYSTEMS[name].source, **values) == SYSTEMS[name]
