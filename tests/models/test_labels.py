"""Labels: distributions given them, and a label as a latent that is known for some data."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.commands import refuse
from helpers.svi import assert_trained_alike, trained
from PIL import Image
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from pvae.cli.data import encode, reconstruct, sample, score
from pvae.cli.train import main as train
from pvae.compile.compiled_svi import CompiledSVI
from pvae.config.build import build_elbo, build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, few_labels, random_subset
from pvae.data.read import read
from pvae.distributions.joint import Joint
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.trace import EnumeratedELBO
from pvae.evaluation.report import evaluate
from pvae.evaluation.runs_table import compare_runs
from pvae.reference import elbo as reference
from pvae.runs.run import Run
from pvae.trained import latent_space
from pvae.trained.given import given_data
from pvae.trained.latent_space import encode_images, sample_given
from pvae.trained.scores import elbo_terms
from pvae.training.fit import fit
from pvae.training.setup import build_trainer

CPU = torch.device("cpu")
SHAPE, K, L = (1, 4, 4), 3, 2
SMALL = {"hidden": (6,), "latent_dim": L, "binarize": "threshold"}
X = torch.bernoulli(torch.full((6, *SHAPE), 0.4), generator=torch.Generator().manual_seed(0)).double()
Y = torch.tensor([0, 1, 2, 2, 1, 0])
SOME = torch.tensor([0, -1, 2, -1, -1, 1])
NAMES = ("left", "middle", "right")
NETWORKS = ("mlp", "mlp-batchnorm", "conv", "conv-batchnorm", "conv-groupnorm", "linear")


KINDS = {"condition": {"condition": True}, "labels": {"labels": K, "elbo": "enumerate"}}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def vae_of(kind=None, **options):
    """A VAE given labels (the kind "condition"), one whose label is a latent ("labels"), or one without labels."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_vae(Config(**{**SMALL, **KINDS.get(kind, {}), **options}), SHAPE, K).double()


def drawn(function, seed=3):
    with seeded(seed, CPU), pyro.get_param_store().scope():
        return function()


def images(count=90, seed=0):
    """Images of 8 x 8 pixels whose class is the bright third of them, mostly."""
    draw = np.random.RandomState(seed)
    labels = draw.randint(K, size=count)
    probs = np.full((count, 1, 8, 9), 0.1)
    for third in range(K):
        probs[labels == third, :, :, 3 * third : 3 * third + 3] = 0.9
    pixels = (draw.rand(*probs.shape) < probs).astype(np.uint8) * 255
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def dataset(change=lambda y: y, **options):
    x, y = images()
    return Dataset("thirds", x[:70], x[70:], change(y[:70]), y[70:], NAMES, **options)


# --- given labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, one in PerDatumELBO.members.items() if name != "enumerate" and not one.supports]
)
def test_given_labels_every_elbo_is_that_of_the_vae_at_these_labels(name):
    vae, elbo = vae_of("condition"), build_elbo(name, 4, **({"groups": 2} if name in ("miwae", "piwae") else {}))
    given = vae.given(Y)
    ours = drawn(lambda: elbo.loss_and_terms(vae.model, vae.guide, X, Y))
    theirs = drawn(lambda: elbo.loss_and_terms(given.model, given.guide, X))
    assert ours.loss.item() == theirs.loss.item()
    other = drawn(lambda: elbo.loss(vae.model, vae.guide, X, Y.flip(0) * 0))
    assert abs(other - ours.loss.item()) > 1e-3


@pytest.mark.parametrize(
    ("network", "kind"),
    [(one, kind) for one in NETWORKS for kind in KINDS if not (kind == "labels" and "batch" in one)],
)
def test_every_network_takes_labels_and_every_parameter_gets_a_gradient(network, kind):
    vae = vae_of(kind, network=network, hidden=(4, 4) if network.startswith("conv") else (6,))
    elbo = build_elbo("trace") if kind == "condition" else EnumeratedELBO(label_weight=1.0)
    drawn(lambda: elbo.differentiable_loss(vae.model, vae.guide, X, Y if kind == "condition" else SOME).backward())
    assert [name for name, one in vae.named_parameters() if one.grad is None or not one.grad.abs().sum()] == []
    if "batch" not in network:  # a batch of other data changes nothing
        vae.eval()
        alone = vae.given(Y[:1]).posterior(X[:1]).mean
        assert torch.allclose(alone, vae.given(Y).posterior(X).mean[:1], atol=1e-12)


REFUSED = {
    "no labels": lambda: vae_of("condition").posterior(X),
    "labels of a VAE without": lambda: vae_of().given(Y),
    "no class of the VAE": lambda: vae_of("condition").given(torch.tensor([K] * 6)).posterior(X),
    "another length in a batch": lambda: Batch(X, Y[:5]),
    "too few for one of each class": lambda: few_labels(dataset(), K - 1, 0),
}


@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED)
def test_labels_that_do_not_fit_are_refused(wrong):
    with pytest.raises(InputError):
        wrong()


# --- a label as a latent ----------------------------------------------------------------------------------------------


def gradients(vae, loss):
    vae.zero_grad()
    loss.backward()
    return torch.cat([one.grad.flatten() for one in vae.parameters()])


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("y", [None, SOME, Y], ids=["none known", "some known", "all known"])
def test_the_enumerated_elbo_is_pyros_and_the_handwritten_one(particles, y):
    vae = vae_of("labels")
    batch = (X,) if y is None else (X, y)
    ours = drawn(lambda: EnumeratedELBO(particles, label_weight=0.0).loss_and_terms(vae.model, vae.guide, *batch))
    pyros = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    theirs = drawn(lambda: pyros.differentiable_loss(vae.model, config_enumerate(vae.guide), *batch)) / len(X)
    by_hand = drawn(lambda: reference.enumerated(vae.given(y), X, particles))
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert torch.allclose(ours.terms.distortion, by_hand.distortion, rtol=1e-10)
    assert torch.allclose(ours.terms.rate, by_hand.rate, rtol=1e-10)
    mine = gradients(vae, ours.loss)
    assert torch.allclose(mine, gradients(vae, theirs), rtol=1e-9, atol=1e-12)
    assert torch.allclose(mine, gradients(vae, -by_hand.elbo.mean()), rtol=1e-9, atol=1e-12)


def test_the_classifiers_loss_is_the_mean_cross_entropy_of_the_known_labels():
    vae = vae_of("labels")
    with_it, without = (
        drawn(lambda w=w: EnumeratedELBO(label_weight=w).loss(vae.model, vae.guide, X, SOME)) for w in (2.0, 0.0)
    )
    logits, known = vae.q_z.classifier(X), SOME >= 0
    wanted = nn.functional.cross_entropy(logits[known], SOME[known], reduction="sum") / len(X)
    assert with_it - without == pytest.approx(2 * wanted.item(), rel=1e-10)


def test_the_joint_distribution_of_label_and_latent():
    vae = vae_of("labels")
    q = vae.given(SOME).posterior(X)
    value = drawn(lambda: q.sample((50,)))
    y, z = value.split([K, L], -1)
    assert torch.equal(y.sum(-1), torch.ones(50, 6).double())
    assert torch.equal(y[:, 0], torch.tensor([1.0, 0, 0]).double().expand(50, 3))  # a label that is known
    joint = q.first.log_prob(y) + q.rest[0](y).log_prob(z)
    assert torch.allclose(vae.prior().first.probs, torch.full((K,), 1 / K).double())
    assert torch.allclose(q.log_prob(value), joint)
    assert q.expand((2, 6)).log_prob(value[:2]).shape == (2, 6)


def test_mean_and_variance_of_label_and_latent():
    """z given y is Normal(4 y_1 - y_2, 0.5^2): its moments over y = 0.2, 0.3, 0.5 by hand."""
    probs = torch.tensor([0.2, 0.3, 0.5]).double()
    given_y = lambda y: dist.Normal(4 * y[..., :1] - y[..., 1:2], 0.5).to_event(1)  # noqa: E731
    q = Joint(dist.OneHotCategorical(probs), [given_y], (3, 1), ("y", "z"))
    assert torch.allclose(q.mean, torch.tensor([0.2, 0.3, 0.5, 0.8 - 0.3]).double())
    of_z = 0.25 + (0.2 * 16 + 0.3 - 0.25)
    assert torch.allclose(q.variance, torch.tensor([0.16, 0.21, 0.25, of_z]).double())


@EVERY_KIND
def test_samples_of_a_label_are_of_this_label(kind):
    vae = vae_of(kind)
    of_two = drawn(lambda: latent_space.sample(vae, 4, y=torch.tensor([2])))
    of_all = drawn(lambda: latent_space.sample(vae, 4, y=torch.tensor([2, 0])))
    assert torch.equal(of_two[::2], of_all[::2])
    assert not torch.equal(of_two[1::2], of_all[1::2])
    sheet = drawn(lambda: sample_given(vae, torch.tensor([2, 0]), 4))
    assert torch.allclose(sheet[:4], drawn(lambda: sample_given(vae, torch.tensor([2]), 4)), atol=1e-12)


@EVERY_KIND
def test_recorded_steps_given_labels_equal_those_of_svi(kind):
    elbo = build_elbo("trace") if kind == "condition" else EnumeratedELBO(label_weight=2.0)
    y = Y if kind == "condition" else SOME
    batches = [(X, y), (X.flip(0), y.flip(0)), (X[:4], y[:4]), (X, y.flip(0))] * 2
    eager = trained(vae_of(kind), elbo, batches)
    assert_trained_alike(trained(vae_of(kind), elbo, batches, CompiledSVI), eager)


# --- training ---------------------------------------------------------------------------------------------------------


FAST = Config(binarize="threshold", epochs=2, batch_size=10, hidden=(16,), latent_dim=2, lr=0.01, valid=0.2)


@pytest.mark.workflow
def test_a_semi_supervised_training_finds_the_labels_that_it_was_not_given(tmp_path):
    x, y = images(1200)
    data = Dataset("thirds", x[:1000], x[1000:], y[:1000], y[1000:], NAMES)
    config = FAST.replace(labels=6, elbo="enumerate", epochs=15, batch_size=50, valid=0.0)
    run = fit(config, data=data, out=tmp_path / "run")
    assert run.metrics()[-1].accuracy > 0.95
    assert run.metrics()[0].accuracy is None
    classes = evaluate(run, num_particles=2, method="importance").classes
    assert (classes.share, classes.num_tested) == (run.metrics()[-1].accuracy, 200)
    assert classes.least < classes.share
    assert 0.5 < min(classes.nearest, classes.logistic) <= 1


def test_few_labels_are_balanced_and_depend_on_the_seed():
    data = dataset()
    few = few_labels(data, 7, 0)
    assert few[few >= 0].bincount().tolist() == [3, 2, 2]
    assert torch.equal(few[few >= 0], data.train_labels[few >= 0])
    assert torch.equal(few, few_labels(data, 7, 0))
    assert not torch.equal(few, few_labels(data, 7, 1))
    assert torch.equal(few_labels(data, 1000, 0), data.train_labels)  # all that are known


def folder_of(path, unlabelled=False):
    for number, (image, label) in enumerate(zip(*images(100))):
        folder = path / ("unlabelled" if unlabelled and number % 4 == 0 else NAMES[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    return path


@pytest.mark.workflow
def test_a_folder_of_classes_and_of_unlabelled_images(tmp_path, capsys):
    given = ["--dataset", f"folder:{folder_of(tmp_path / 'images', unlabelled=True)}", "--epochs", "1"]
    assert train([*given, "--labels", "6", "--out", str(tmp_path / "run")]) == 0
    run = Run.open(tmp_path / "run")
    assert run.data.label_names == NAMES
    assert (run.dataset().labels["train"] == -1).any()
    assert "--labels" in refuse(train, [*given, "--condition", "--out", tmp_path / "other"], capsys, tmp_path)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run given labels, of which each figure can be computed by hand."""
    folder = folder_of(tmp_path_factory.mktemp("conditional") / "images")
    run = folder.parent / "run"
    options = ["--condition", "--epochs", "2", "--network", "mlp", "--hidden", "8", "--latent-dim", "2"]
    assert train(["--dataset", f"folder:{folder}", *options, "--out", str(run)]) == 0
    return folder, run


@pytest.mark.workflow
def test_codes_of_all_data_are_data(conditional, tmp_path):
    """Those of each image at its own label, with the names of the classes."""
    run = Run.open(conditional[1])
    assert encode([str(run.path), "--splits", "--out", str(tmp_path / "all.npz")]) == 0
    data, again = run.dataset(), read(f"array:{tmp_path / 'all.npz'}")
    assert again.label_names == data.label_names == NAMES
    assert again.splits.keys() == data.splits.keys()
    for split, x in data.splits.items():
        codes = encode_images(run.vae(), Batch(run.preparation.x_of(x, split), data.labels[split]))
        assert torch.allclose(again.splits[split], codes.loc, atol=1e-6)
        assert torch.equal(again.labels[split], data.labels[split])


@pytest.mark.workflow
def test_each_command_takes_each_image_at_its_own_label(conditional, tmp_path, capsys):
    folder, path = conditional
    run = Run.open(path)
    x, y, vae = run.preparation.x_of(run.dataset().test), run.dataset().labels["test"], run.vae()
    codes = encode_images(vae, Batch(x, y))
    assert encode([str(path), "--out", str(tmp_path / "codes.npz")]) == 0
    with np.load(tmp_path / "codes.npz") as arrays:
        assert np.allclose(arrays["loc"], codes.loc, atol=1e-6)
        assert arrays["labels"].tolist() == [run.data.label_names[one] for one in y]
    with run.seeded():
        report = evaluate(run, num_particles=4, method="importance")
    elbo = elbo_terms(vae, Batch(x, y))["elbo"]
    wrong = elbo_terms(vae, Batch(x, (y + 1) % K))["elbo"]
    assert abs(report.elbo_parts.elbo.mean - elbo.mean().item()) < 0.5 < abs(elbo.mean() - wrong.mean())
    several = compare_runs([run], 4, num_images=5, seed=0, method="importance")
    chosen = random_subset(len(y), 5, 0)
    assert several["elbo"][0] == pytest.approx(elbo[chosen].mean().item(), abs=0.5)
    # A folder of classes has labels of its own, by the names of the training's.
    of_folder = given_data(run, folder)
    assert [run.data.label_names[one] for one in of_folder.y] == [Path(name).parts[-2] for name in of_folder.names]
    assert score([str(path), str(folder), "--importance-samples", "3"]) == 0
    assert "p(x | y)" in capsys.readouterr().out


@pytest.mark.workflow
def test_commands_given_labels(conditional, tmp_path, capsys):
    folder, path = conditional
    run, out = str(path), str(tmp_path / "out")
    assert sample([run, "-n", "4", "--label", "mid", "--out", str(tmp_path / "mid")]) == 0
    assert sample([run, "-n", "40", "--out", str(tmp_path / "all")]) == 0
    labels = {name: {*pandas.read_csv(tmp_path / name / "names.csv")["label"]} for name in ("mid", "all")}
    assert labels == {"mid": {"middle"}, "all": {"left", "middle", "right"}}
    assert encode([run, "--out", str(tmp_path / "codes.csv")]) == 0
    codes = ["--codes", str(tmp_path / "codes.csv"), "--out", str(tmp_path / "decoded")]
    assert sample([run, *codes, "--label", "left"]) == 0
    assert reconstruct([run, str(folder / "left"), "--label", "left", "--out", out]) == 0
    with (tmp_path / "out" / "names.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == len(list((folder / "left").iterdir()))
    for command, arguments, wanted in [
        (sample, ["--label", "up"], "middle"),
        (sample, codes[:2], "--label"),
        (score, [folder / "left"], "--label"),
        (encode, [folder / "left", "--splits"], "DATA"),
    ]:
        assert wanted in refuse(command, [run, *arguments], capsys, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_minus_one_is_a_label_that_is_not_known(tmp_path, kind):
    x, y = images()
    y = torch.where(torch.arange(len(y)) % 4 == 0, torch.full_like(y, -1), y)
    np.savez(tmp_path / "some.npz", X=x.numpy() if kind == "folder" else x.float().numpy(), y=y.numpy())
    data = read(f"{kind}:{tmp_path / 'some.npz'}")
    assert data.label_names == ("0", "1", "2")
    assert int((data.train_labels < 0).sum() + (data.test_labels < 0).sum()) == int((y < 0).sum())


def test_the_weight_of_the_classifier_is_that_of_the_share_of_labels():
    data, config = dataset(), FAST.replace(labels=7, elbo="enumerate", valid=0.0)
    with seeded(0, CPU), pyro.get_param_store().scope():
        trainer = build_trainer(config, data)
        assert trainer.elbo.label_weight == pytest.approx(5.0 * 70 / 7)
        row = trainer.evaluate("test")
    found = trainer.vae.posterior(next(trainer.splits["test"].split(10**6)).x).first.probs.argmax(-1)
    assert row.accuracy == pytest.approx((found == data.test_labels).double().mean().item())
    unknown = replace(data, test_labels=torch.full_like(data.test_labels, -1))
    with seeded(0, CPU), pyro.get_param_store().scope():
        assert build_trainer(config, unknown).evaluate("test").accuracy is None


@pytest.mark.workflow
def test_the_weight_of_the_rate_is_a_function_of_the_step(tmp_path):
    data, config = dataset(), FAST.replace(warm_up=2, beta=0.5, epochs=2)
    steps = -(-len(data.with_valid(0.2).train) // 10)
    by_config = fit(config, data=data, out=tmp_path / "one")
    by_function = fit(
        config.replace(warm_up=0, beta=1.0), data=data, out=tmp_path / "two", beta=lambda step: 0.5 * step / (2 * steps)
    )
    for name, tensor in by_config.vae().state_dict().items():
        assert torch.equal(tensor, by_function.vae().state_dict()[name])
    with pytest.raises(InputError, match="--elbo iwae"):
        fit(FAST.replace(elbo="iwae"), data=data, out=tmp_path / "three", beta=lambda step: 1.0)
