"""VAEs as plain torch: equal to the run's, in value, gradients and training, in a process without pvae and Pyro."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys

import numpy as np
import pyro
import pytest
import torch
from conftest import FILES, idx_bytes, lay
from helpers.families import ROWS, config_with, shape_for, x_for
from PIL import Image
from safetensors.torch import save_file

from pvae.cli.export import main as export
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.config.families import LIKELIHOODS, POSTERIORS, PRIORS
from pvae.config.presets import SYSTEMS
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.choices import values_config
from pvae.data.dataset import Dataset
from pvae.elbos.registry import elbo_of
from pvae.models.build import build_vae, fit_to
from pvae.runs.data import load_for
from pvae.trained.latent_space import sample
from pvae.trained.plain_torch import plain_torch, training_script, weights
from pvae.training.fit import fit, resume
from pvae.training.setup import build_trainer
from pvae.training.trainer import Callback

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
TWO = {"upper_latent_dims": (5, 3), "upper_hidden": (8,), "binarize": "threshold"}
NORMAL, FLOW, VAMP = POSTERIORS["normal"], PRIORS["flow"], PRIORS["vamp"]
CONFIGS = {
    **{name: one for name, one in SYSTEMS.items() if one.likelihood_family.plain_torch},
    **{name: config_with(row) for name, row in ROWS.items() if row.plain_torch},
    **{f"{name}, analytic": config_with(row, elbo="analytic") for name, row in POSTERIORS.items() if row.closed_forms},
    "ladder of real": config_with(LIKELIHOODS["student-t"], **{**TWO, "binarize": "none"}, inference="ladder"),
    "overdispersed, planar": config_with(LIKELIHOODS["negative-binomial"], posterior="planar", flow_length=3),
    "flow and flow": config_with(FLOW, posterior="iaf"),
    "one latent, flow prior": config_with(FLOW, latent_dim=1),
    "symmetric vamp": config_with(VAMP, pixels="symmetric", likelihood="normal"),
    "bottom-up, analytic": config_with(NORMAL, **TWO, elbo="analytic"),
    "top-down mixture": config_with(PRIORS["mixture"], **TWO, inference="top-down"),
    "ladder vamp": config_with(VAMP, **TWO, inference="ladder", elbo="analytic"),
}
SHAPES = {"celeba-vae": (3, 33, 40), "images": (3, 24, 20), "linear-gaussian": (1, 8, 8)}


def shape_of(name):
    return SHAPES.get(name) or ((1, 28, 28) if name in SYSTEMS else shape_for(CONFIGS[name]))


# Run by a Python that can import neither pvae nor Pyro: the terms of ten images and all gradients, or samples.
ALONE = """
import importlib, sys, torch
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("pvae", "pyro"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    sys.path.insert(0, name)
    model = importlib.import_module("model")
    x, vae = torch.load(f"{name}/x.pt"), model.load().double()
    torch.manual_seed(1)
    distortion, rate = vae.terms(x)
    torch.manual_seed(1)
    elbo = vae.elbo(x)
    elbo.mean().backward()
    gradients = {key: parameter.grad for key, parameter in vae.named_parameters() if parameter.grad is not None}
    torch.manual_seed(2)
    samples = vae.sample(3) if hasattr(vae, "sample") else None
    as_float = model.load()
    torch.manual_seed(1)
    in_float = as_float.elbo(x.float())
    values = [one.detach() for one in (distortion, rate, elbo, in_float)]
    torch.save([*values, gradients, samples], f"{name}/out.pt")
    sys.path.pop(0)
    del sys.modules["model"]
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of each configuration: model.py, its weights, images, and what a Python without pvae computes."""
    folders, vaes = {}, {}
    for name, config in CONFIGS.items():
        shape, folder = shape_of(name), tmp_path_factory.mktemp("case")
        with seeded(0, CPU):
            vae = build_vae(config, shape).eval()
            for tensor in vae.state_dict().values():  # away from zero biases, unit scales and equal weights
                if tensor.is_floating_point():
                    tensor.add_(0.01 * torch.rand_like(tensor) - 0.005)
            fit_to(vae, x_for(config, 10, shape))
        padded = config.padded(shape)
        (folder / "model.py").write_text(plain_torch(vae, config, padded, name), "utf-8")
        save_file({key: one.contiguous() for key, one in weights(vae, config).items()}, folder / "model.safetensors")
        torch.save(x_for(config, 10, shape).double(), folder / "x.pt")
        folders[name], vaes[name] = folder, vae
    subprocess.run([sys.executable, "-c", ALONE, *map(str, folders.values())], check=True)
    return folders, vaes


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_equal_in_a_process_without_pvae(written, name):
    """In float64, values to a relative 1e-12 and gradients to 1e-10; in float32 to rounding."""
    folder, vae, config = written[0][name], written[1][name], CONFIGS[name]
    distortion, rate, elbo, in_float, gradients, samples = torch.load(folder / "out.pt")
    x, elbo_name = torch.load(folder / "x.pt"), "analytic" if config.elbo == "analytic" else "trace"
    by = elbo_of(config.replace(elbo=elbo_name, beta=1.0, warm_up=0))
    with pyro.get_param_store().scope(), seeded(1, CPU):
        _, terms = by.loss_and_terms(vae.model, vae.guide, x.float())
    torch.testing.assert_close(in_float, -(terms.distortion + terms.rate).detach(), rtol=1e-5, atol=1e-3)
    vae = vae.double()
    with pyro.get_param_store().scope(), seeded(1, CPU):
        loss, terms = by.loss_and_terms(vae.model, vae.guide, x)
    torch.testing.assert_close(distortion, terms.distortion.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rate, terms.rate.detach(), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(elbo, -(distortion + rate))
    loss.backward()
    with seeded(2, CPU):
        expected = sample(vae, 3) if samples is not None else None
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else -parameter.grad)
    ours = {key: tensor.detach() for key, tensor in weights(vae, config).items()}
    parameters = {one.data_ptr() for one in vae.parameters()}
    ours = {key: one for key, one in ours.items() if one.data_ptr() in parameters}
    assert {key for key, one in gradients.items() if one.any()} == {key for key, one in ours.items() if one.any()}
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, ours[key], rtol=1e-10, atol=1e-12 * float(ours[key].abs().max()) + 1e-14)
    assert (samples is None) == config.is_autoencoder
    if samples is not None and config.prior_family.is_mixture:  # whose draws are in another order
        assert samples.shape == expected.shape
    elif samples is not None:
        torch.testing.assert_close(samples, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Twenty-three images of each data set in torchvision's layout, and no other data."""
    monkeypatch.delenv("PVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, folder = np.random.default_rng(0), tmp_path / "data"
    images = [rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (23, 10)]
    content = dict(zip(FILES, map(idx_bytes, [*images, np.zeros(23, np.uint8), np.zeros(10, np.uint8)])))
    lay(folder, content)
    (folder / "MNIST").rename(folder / "FashionMNIST")
    lay(folder, content)
    binarized, faces = folder / "binarized_mnist", folder / "celeba" / "img_align_celeba"
    binarized.mkdir()
    for split in ("train", "valid", "test"):
        np.savetxt(binarized / f"binarized_mnist_{split}.amat", rng.integers(0, 2, (23, 784)), "%d")
    faces.mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(1, 33)]
    for face in names:
        Image.fromarray(rng.integers(0, 256, (22, 18, 3), dtype=np.uint8)).save(faces / face)
    splits = "".join(f"{face} {0 if place < 23 else 1 + place % 2}\n" for place, face in enumerate(names))
    (folder / "celeba" / "list_eval_partition.txt").write_text(splits)
    (folder / "celeba" / "list_attr_celeba.txt").write_text("32\nSmiling\n" + " 1\n".join([*names, ""]))
    return folder


VARIANTS = {
    **{name: one.replace(warm_up=2 if one.warm_up else 0) for name, one in SYSTEMS.items() if name != "values"},
    "padded-faces": SYSTEMS["celeba-vae"].replace(pad=2, hidden=(8, 8), image_size="16"),
    "one-latent": Config(prior="flow", latent_dim=1, flow_hidden=(8,)),
    "few-valid": Config(valid=0.01, lr=1e-2, schedule="steps"),
    "groupnorm": Config(network="conv-groupnorm", hidden=(8, 8)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_printed_script_trains_as_the_system_does(data, tmp_path, monkeypatch, name):
    """The loss of the first step and the means of two epochs, to the digits that the script prints."""
    config = VARIANTS[name].replace(epochs=2, batch_size=500 if name == "linear-gaussian" else 10)
    script = tmp_path / "script.py"
    script.write_text(training_script(config), "utf-8")
    monkeypatch.setattr(sys, "argv", ["script.py", str(data)])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), torch.random.fork_rng():
        runpy.run_path(str(script), run_name="__main__")
    first, *epochs = (float(line.split()[-1]) for line in said.getvalue().splitlines())
    losses, means = [], []
    with pyro.get_param_store().scope(), seeded(config.seed, CPU):
        trainer = build_trainer(config.replace(compile="none"), load_for(config, data, offline=True), CPU)
        noted = Callback()
        noted.on_steps_end = lambda _, done: losses.extend(done.losses.tolist())
        for _ in range(2):
            means.append(trainer.train_epoch([noted]).loss)
            trainer.epoch += 1
    assert first == pytest.approx(losses[0], rel=1e-5)
    assert epochs == pytest.approx(means, rel=1e-3)


def test_the_command_prints_the_script_of_what_is_asked_for(data, capsys):
    options = ["--system", "pytorch-example", "--beta", "3", "--seed", "7", "--batch-size", "9", "--print"]
    assert train(options) == 0
    config = SYSTEMS["pytorch-example"].replace(beta=3.0, seed=7, batch_size=9)
    assert capsys.readouterr().out == training_script(config)


@pytest.mark.parametrize(
    "options",
    [
        {"elbo": "dreg", "particles": 3},
        {"free_bits": 0.1},
        {"schedule": "paper"},
        {"binarize": "static"},
        {"likelihood": "normal-optimal"},
        {"dataset": "celeba"},
        {"precision": "bf16"},
        {"prior": "vamp", "posterior": "iaf"},
        {"passes": 2},
    ],
)
def test_what_the_loop_does_not_do_is_refused(options):
    with pytest.raises(InputError):
        training_script(Config().replace(**options))


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"likelihood": "normal-diagonal", "initialization": "exact"}, {"--likelihood": "student-t"}),
        ({"likelihood": "negative-binomial", "initialization": "exact"}, {"--initialization": "torch"}),
    ],
)
def test_values_by_default_are_refused_and_the_line_says_what_can_be_written(
    options, instead, tmp_path, no_pictures, capsys
):
    data = Dataset("values", *torch.arange(240.0).remainder(7).view(60, 4).split(40))
    given = {"elbo": "trace", "hidden": (4,), "latent_dim": 2, "epochs": 1, "batch_size": 20}
    run = fit(values_config(data, **given, likelihood=options["likelihood"]), data=data, out=tmp_path / "run")
    assert run.config.initialization == options["initialization"]
    assert export([str(run.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "pvae.load" in line
    more = {}
    for flag, value in instead.items():
        assert f"{flag} {value}" in line
        more[flag.removeprefix("--")] = value
    config = values_config(data, **{**given, "likelihood": options["likelihood"], **more})
    run = fit(config, data=data, out=tmp_path / "other")
    assert export([str(run.path)]) == 0


def test_print_trains_nothing(capsys):
    for options in (["--out", "x"], ["--seeds", "0:2"], ["--resume", "x"], ["--device", "cpu"]):
        assert train([*options, "--print"]) == 2
        assert options[0] in capsys.readouterr().err


def test_a_run_is_exported_into_its_folder_again_and_again_and_replaces_nothing_else(
    few_digits, tmp_path, no_pictures, capsys
):
    """Whatever the name of its data, which is a text in the code."""
    data = Dataset('C:\\users\\new """ {import os} \\N{x "', few_digits.train, few_digits.test)
    run = fit(Config(hidden=(8,), latent_dim=2, epochs=1), data=data, out=tmp_path / "run")
    assert export([str(run.path)]) == 0
    code, tensors = run.path / "torch" / "model.py", run.path / "torch" / "model.safetensors"
    assert f"{run.test_metrics()}" in code.read_text("utf-8")
    assert runpy.run_path(str(code))["load"]().sample(2).shape == (2, 1, 28, 28)
    before = tensors.read_bytes()
    resume(run.path, 2, data=data)
    assert export([str(run.path)]) == 0
    assert tensors.read_bytes() != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"precious")
    for taken in (other, run.path / "checkpoint.safetensors"):
        assert export([str(run.path), "--out", str(taken)]) == 2
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {"model.safetensors": b"precious"}
