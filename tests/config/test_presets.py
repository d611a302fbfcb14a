"""The published systems: each loss, written as in its post, is an ELBO up to a factor and a constant; each trains."""

from __future__ import annotations

import ast
import math
import re

import pyro
import pytest
import torch
from torch.nn.functional import binary_cross_entropy, mse_loss

import pvae
from pvae.config.config import OPTIONS, Config
from pvae.config.options import without_removed
from pvae.config.presets import SYSTEMS, get_system, system_title
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.elbos.registry import build_elbo
from pvae.elbos.terms import posterior_mean_loss
from pvae.models.build import build_vae
from pvae.reference import elbo as reference_elbo
from pvae.training.fit import fit
from pvae.training.setup import build_trainer


def small(name, datum_shape):
    """The distributions of a system with small networks, in float64."""
    config = get_system(name)
    config = config.replace(hidden=(3,) * (len(config.hidden) if config.network != "mlp" else 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config, build_vae(config, datum_shape).double()


def parameters_of(vae, x):
    loc, log_variance = vae.q_z.encoder(x).chunk(2, dim=1)
    noise = torch.randn(loc.shape, dtype=loc.dtype)
    return loc, log_variance, loc + (0.5 * log_variance).exp() * noise


def kl(loc, log_variance):
    return -0.5 * (1 + log_variance - loc**2 - log_variance.exp())


def loss_and_gradients(vae, loss_of):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loss = loss_of()
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))])


def elbo_loss(config, vae, x):
    """The loss of a system in training: `reference_elbo.closed_form`, with the weight of the rate."""
    return reference_elbo.loss(reference_elbo.closed_form(vae, x), config.beta)


def assert_is_an_elbo(vae, printed, elbo, factor, constant):
    """printed = factor (elbo's loss + constant), in value and in every gradient."""
    value, gradients = loss_and_gradients(vae, printed)
    elbo_value, elbo_gradients = loss_and_gradients(vae, elbo)
    assert value.item() == pytest.approx(factor * (elbo_value.item() + constant), rel=1e-10)
    assert (gradients - factor * elbo_gradients).norm() < 1e-10 * gradients.norm()


def is_refused(*arguments):
    with pytest.raises(AssertionError):
        assert_is_an_elbo(*arguments)
    return True


@pytest.mark.parametrize("off", [1.0, 1.01])
def test_001_is_an_elbo_of_a_normal(off):
    """mean over D of (x - y)^2 + w KL is w times the loss of Normal(y, w D / 2), up to its normalising constant.

    (x - y)^2 summed and divided by D is 2 scale^2 / D times the Normal's; with scale^2 = w D / 2 that is w.
    The post takes the mean over the pixels; for a sum, scale^2 would be w / 2.
    """
    config, vae = small("conv-2d", (1, 28, 28))
    weight, dim = 1e-3 * off, 784
    assert config.scale**2 == pytest.approx(1e-3 * dim / 2)
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64) * 2 - 1

    def printed():
        loc, log_variance, z = parameters_of(vae, x)
        y = vae.p_x.decoder(z).tanh()
        return mse_loss(y, x) + weight * kl(loc, log_variance).sum(dim=1).mean()

    constant = -0.5 * dim * math.log(2 * math.pi * config.scale**2)
    arguments = vae, printed, lambda: elbo_loss(config, vae, x), 1e-3, constant
    assert_is_an_elbo(*arguments) if off == 1 else is_refused(*arguments)


@pytest.mark.parametrize("off", [1.0, 1.01])
def test_003_2_is_an_elbo_with_a_beta(off):
    """500 mean over D of the cross-entropy + mean over L of the KL is 500 / D times the loss of beta = D / 500 / L."""
    config, vae = small("fashion-vae", (1, 28, 28))
    weight, dim = 500 * off, 1024
    assert config.beta == pytest.approx(dim / 500 / config.latent_dim)
    x = torch.nn.functional.pad(torch.rand(6, 1, 28, 28, dtype=torch.float64), (2,) * 4)

    def printed():
        loc, log_variance, z = parameters_of(vae, x)
        y = vae.p_x.decoder(z).sigmoid()
        return weight * binary_cross_entropy(y, x) + kl(loc, log_variance).mean(dim=1).mean()

    arguments = vae, printed, lambda: elbo_loss(config, vae, x), 500 / dim, 0
    assert_is_an_elbo(*arguments) if off == 1 else is_refused(*arguments)


@pytest.mark.parametrize("off", [1.0, 1.01])
def test_003_3_is_an_elbo_of_a_normal(off):
    """2000 mean over D of (x - y)^2 + KL is the loss of Normal(y, D / 4000), up to its normalising constant.

    Keras's mean_squared_error averages the last axis, the channels; reduce_mean then averages height, width and
    batch, so together it is the mean over all D = 12288 values, and 2000 / D = 1 / (2 scale^2).
    """
    config, vae = small("celeba-vae", (3, 64, 64))
    vae.eval()  # BatchNorm by its running averages: not what is compared here
    weight, dim = 2000 * off, 12288
    assert config.scale**2 == pytest.approx(dim / 4000)
    assert config.beta == 1
    x = torch.rand(4, 3, 64, 64, dtype=torch.float64)

    def printed():
        loc, log_variance, z = parameters_of(vae, x)
        y = vae.p_x.decoder(z).sigmoid()
        last_axis = ((x - y) ** 2).movedim(1, -1).mean(dim=-1)
        return weight * last_axis.mean() + kl(loc, log_variance).sum(dim=1).mean()

    constant = -0.5 * dim * math.log(2 * math.pi * config.scale**2)
    arguments = vae, printed, lambda: elbo_loss(config, vae, x), 1, constant
    assert_is_an_elbo(*arguments) if off == 1 else is_refused(*arguments)


@pytest.mark.parametrize("name", ["pytorch-example", "mlp-2d"])
@pytest.mark.parametrize("off", [1.0, 1.01])
def test_000_and_002_are_pseudo_elbos(name, off):
    config, vae = small(name, (1, 28, 28))
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)

    def printed():
        loc, log_variance, z = parameters_of(vae, x)
        y = vae.p_x.decoder(z).sigmoid()
        return (binary_cross_entropy(y, x, reduction="sum") + off * kl(loc, log_variance).sum()) / len(x)

    arguments = vae, printed, lambda: elbo_loss(config, vae, x), 1, 0
    assert_is_an_elbo(*arguments) if off == 1 else is_refused(*arguments)


@pytest.mark.parametrize("off", [1.0, 1.01])
@pytest.mark.parametrize(("name", "factor"), [("fashion-ae", 1 / 1024), ("conv-2d-ae", 2 * 0.392 / 784)])
def test_autoencoders_are_the_distortion_alone(name, factor, off):
    """A Delta posterior and a flat prior: the rate is exactly 0, and the loss is the printed one."""
    config, vae = small(name, (1, 28, 28))
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    x = torch.nn.functional.pad(x, (config.pad,) * 4)
    if config.pixels == "symmetric":
        x = 2 * x - 1

    def printed():
        output = vae.p_x.decoder(vae.q_z.encoder(x))
        loss = mse_loss(output.tanh(), x) if name == "conv-2d-ae" else binary_cross_entropy(output.sigmoid(), x)
        return off * loss

    constant = -0.5 * 784 * math.log(2 * math.pi * config.scale**2) if name == "conv-2d-ae" else 0
    terms = reference_elbo.monte_carlo(vae, x)
    assert torch.equal(terms.rate, torch.zeros_like(terms.rate))
    for elbo in (build_elbo("trace"), build_elbo("handwritten"), build_elbo("analytic")):
        arguments = vae, printed, lambda e=elbo: e.differentiable_loss(vae.model, vae.guide, x), factor, constant
        assert_is_an_elbo(*arguments) if off == 1 else is_refused(*arguments)
        pyro.clear_param_store()


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


@pytest.mark.parametrize("name", ["mlp-2d", "conv-2d", "deep-bayes", "fashion-ae"])
def test_published_systems_train(tmp_path, few_digits, name):
    run = fit(get_system(name).replace(epochs=1, batch_size=50), data=few_digits, out=tmp_path / "run")
    (train, *_, test) = run.metrics()
    assert train.loss > test.loss or train.loss > 0
    vae = pvae.load(run.path)
    autoencoder = name.endswith("-ae")
    assert vae.is_bounding != autoencoder
    assert (test.elbo is None) == autoencoder
    assert (run.path / "figures" / "samples.png").exists() != autoencoder
    assert test.posterior_mean_loss == pytest.approx(test.distortion + test.rate, rel=0.5)
    if autoencoder:
        assert str(test).startswith("test distortion")
        assert test.rate == 0


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_renyi_objective_above_the_elbo_is_not_reported_as_elbo(tmp_path, few_digits, small_config):
    """For alpha < 0 the objective is above the importance-weighted bound of the same draws, and so above the ELBO."""
    losses = {}
    for alpha in (-1.0, 0.0):
        config = small_config.replace(elbo="renyi", alpha=alpha, particles=5, epochs=1, lr=1e-38)
        for row in fit(config, data=few_digits, out=tmp_path / str(alpha)).metrics():
            assert row.elbo == pytest.approx(-row.distortion - row.rate, rel=1e-6)
            losses[alpha] = row.loss
    assert losses[-1.0] + 0.1 < losses[0.0] < -row.elbo - 0.1


@pytest.mark.workflow
@pytest.mark.parametrize("elbo", ["trace", "analytic", "handwritten"])
@pytest.mark.usefixtures("no_pictures")
def test_loss_options_do_not_change_the_reported_elbo(tmp_path, few_digits, small_config, elbo):
    config = small_config.replace(elbo=elbo, warm_up=2, free_bits=0.3, epochs=3)
    run = fit(config, data=few_digits, out=tmp_path / "run")
    for row in run.metrics():
        assert row.elbo == pytest.approx(-row.distortion - row.rate, rel=1e-6)
    first = run.metrics()[0]
    plain = fit(small_config.replace(elbo=elbo), data=few_digits, out=tmp_path / "plain").metrics()[0]
    assert first.loss != pytest.approx(plain.loss, rel=1e-6)


def test_warm_up_starts_at_exactly_zero_and_ends_at_beta(few_digits, small_config):
    config = small_config.replace(warm_up=2, beta=3.0)
    with torch.random.fork_rng():
        training = build_trainer(config, few_digits, torch.device("cpu"))
    weights = []
    for step in range(9):
        training.step = step
        weights.append(training.schedule(training.step).beta)
    assert weights == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3, 3])
    assert weights[0] == 0


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_free_bits_agree(small_vae, small_images, num_particles, beta):
    """Trace and analytic against the hand-written losses, with rates below and above the free bits."""
    vae, x = small_vae(), small_images(7)
    with torch.no_grad():
        vae.q_z.encoder[-1].bias[:3] = torch.tensor([1.5, 0.0, 0.1])
    for name, form in [("trace", reference_elbo.monte_carlo), ("analytic", reference_elbo.closed_form)]:
        elbo, found = build_elbo(name, num_particles, beta, 0.2), []

        def loss(elbo=elbo, found=found):
            found.append(elbo.loss_and_terms(vae.model, vae.guide, x))
            return found[-1].loss

        ours, gradients = loss_and_gradients(vae, loss)
        pyro.clear_param_store()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            terms = form(vae, x, num_particles, by_dimension=True)
        held = terms.rates.mean(0)
        assert (held < 0.2).any()
        assert (held > 0.2).any()
        assert torch.allclose(terms.rates.sum(1), terms.rate, rtol=1e-10)
        theirs = reference_elbo.loss(terms, beta, 0.2)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(theirs, list(vae.parameters()))])
        assert (gradients - expected).norm() < 1e-10 * expected.norm()
        assert torch.allclose(found[-1].terms.elbo, terms.elbo, rtol=1e-10)


def test_convolutions_refuse_images_that_they_cannot_halve():
    with pytest.raises(InputError, match=r"28 x 4 .*--hidden"):
        build_vae(Config(network="conv-groupnorm", hidden=(4, 4, 4)), (1, 28, 4))


@pytest.mark.parametrize("network", ["conv", "conv-batchnorm", "conv-groupnorm"])
@pytest.mark.parametrize("shape", [(1, 28, 20), (3, 27, 13), (1, 8, 9)])
def test_convolutions_take_images_of_any_size(network, shape):
    vae = build_vae(Config(network=network, hidden=(4, 8, 8), latent_dim=3), shape).eval()
    assert vae.posterior(torch.rand(2, *shape).round()).mean.shape == (2, 3)
    assert vae.p_x.decoder(torch.zeros(2, 3)).shape == (2, *shape)


@pytest.mark.parametrize("network", ["mlp", "mlp-batchnorm", "conv", "conv-batchnorm", "conv-groupnorm"])
def test_decoders_take_any_leading_dimensions(network):
    vae = build_vae(Config(network=network, hidden=(4, 4), latent_dim=3), (2, 8, 12)).eval()
    z = torch.randn(5, 6, 3)
    whole = vae.p_x.decoder(z)
    assert whole.shape == (5, 6, 2, 8, 12)
    assert torch.allclose(vae.p_x.decoder(z[2]), whole[2], atol=1e-5)
    assert torch.allclose(vae.p_x.decoder(z[2, 3]), whole[2, 3], atol=1e-5)


def test_a_system_may_have_another_network_than_one_of_its_activation():
    config = get_system("vampprior").replace(network="conv")
    assert system_title(config) == "vampprior with --network conv"
    with pytest.raises(InputError, match=r"--activation .*--network mlp"):
        config.check_used(["activation"])
    config.replace(posterior="normal", prior="standard-normal", upper_latent_dims=(4,)).check_used(["activation"])


def test_hidden_is_also_the_width_of_the_context_that_a_linear_encoder_gives_to_a_flow():
    config = Config(network="linear", posterior="iaf", latent_dim=3, hidden=(7,))
    config.check_used(["hidden"])
    with pytest.raises(InputError, match="--hidden"):
        config.replace(posterior="normal").check_used(["hidden"])


def test_a_user_defined_system(tmp_path, few_digits, monkeypatch, capsys):
    from pvae.cli.train import main
    from pvae.training import fit

    monkeypatch.setattr(fit, "load_for", lambda *_, **__: few_digits)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('system = "mine"\nhidden = [8]\nlatent_dim = 2\nbatch_size = 50\nepochs = 1\n')
    assert main(["--config", "mine.toml", "--latent-dim", "3", "--out", "run"]) == 0
    assert pvae.Run.open("run").config == Config(system="mine", hidden=(8,), latent_dim=3, batch_size=50, epochs=1)
    capsys.readouterr()
    for text, says in [
        ("hiden = [8]", "did you mean 'hidden'"),
        ("hidden = 8", "--hidden must be a list"),
        ("epochs = 'two'", "--epochs must be"),
        ("= broken", "line 1"),
        ("a = " + 3000 * "[", "recursion"),
    ]:
        (tmp_path / "mine.toml").write_text(text)
        assert main(["--config", "mine.toml"]) == 2
        line = capsys.readouterr().err
        assert says in line
        assert "mine.toml" in line
        assert line.count("\n") == 1
    assert main(["--config", "nowhere.toml"]) == 2


def test_list_systems(capsys):
    from pvae.cli.train import main, train_parser

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


@pytest.mark.workflow
def test_colour_images_of_another_size(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 12, 16), generator=generator, dtype=torch.uint8)
    config = Config(network="conv-batchnorm", hidden=(4, 4), likelihood="normal", latent_dim=2, batch_size=10, epochs=1)
    run = fit(config, data=Dataset("colours", images, images[:3]), out=tmp_path / "run")
    assert pvae.load(run.path).p_x.datum_shape == (3, 12, 16)


def test_what_was_removed_is_read_at_its_default_and_a_mean_of_the_rate_as_a_beta():
    options = {"beta": 2.048, "latent_dim": 2, "crop": 0, "warm_up_cycles": 1, "rate_reduction": "mean"}
    assert without_removed(options) == {"beta": 1.024, "latent_dim": 2}
    for name, value in {"crop": 8, "warm_up_cycles": 3}.items():
        with pytest.raises(InputError):
            without_removed({**options, name: value})
