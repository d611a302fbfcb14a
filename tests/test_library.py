"""Importing the package changes nothing; and the library alone, with all of the program blocked, trains by Pyro's SVI.

import-linter, configured in pyproject.toml, holds the imports between rooms to one direction.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pvae

PACKAGE = Path(pvae.__file__).parent
PROGRAM = "cli config data evaluation explore identification plotting runs trained training"
BY_HAND = """
import sys
blocked = {f"pvae.{name}" for name in sys.argv[1].split()}
class Refuse:
    def find_spec(self, name, *_):
        if ".".join(name.split(".")[:2]) in blocked:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())

import pyro
import torch
from pyro.infer import SVI
from torch import nn
from pvae.elbos.trace import EnumeratedELBO
from pvae.elbos.trace import AnalyticELBO, TraceELBO
from pvae.models.columns import ColumnFeatures, ColumnsLikelihood, column_kinds
from pvae.models.features import fit_to
from pvae.models.hierarchy import FirstLayer, HierarchyPrior, LadderPosterior
from pvae.models.labels import EncoderJoin, LabelPosterior, LabelPrior, PosteriorGivenLabels
from pvae.models.likelihoods import LinearNormalLikelihood
from pvae.models.networks import mlp
from pvae.models.posteriors import NormalPosterior, PlanarPosterior
from pvae.models.priors import MixturePrior, StandardNormalPrior
from pvae.vae import VAE

torch.manual_seed(0)
z = torch.randn(600, 1)
x = torch.cat([z, z.square() - 1, 2 * z], 1) + 0.1 * torch.randn(600, 3)
rows = torch.stack([z[:, 0] * 50 + 7e3, (z[:, 0] > 0).float(), (3 * z[:, 0].exp()).round()], 1).double()
y = (z[:, 0] > 0).long()
normal = lambda inputs, *first: LinearNormalLikelihood(nn.Sequential(*first, mlp(inputs, 32, 3)), (3,), 0.2)
sizes = (2, 1)
kinds = "real,binary,count"
features = ColumnFeatures(column_kinds(kinds), False)
up, down = [mlp(8, 2)], [mlp(1, 4)]
given_y = PosteriorGivenLabels(nn.Identity(), EncoderJoin((3,), 2, False), NormalPosterior(mlp(5, 32, 4)))
vaes = {
    "a hierarchy": (
        VAE(HierarchyPrior(StandardNormalPrior(1), down, sizes), LadderPosterior(mlp(3, 4 + 8), up, down, sizes),
            normal(2, FirstLayer(2))), TraceELBO(), (x,)),
    "a flow": (VAE(StandardNormalPrior(2), PlanarPosterior(mlp(3, 32, 4 + 3 * 5), 2, 3), normal(2)), TraceELBO(), (x,)),
    "M2": (
        VAE(LabelPrior(2, StandardNormalPrior(2), 2), LabelPosterior(mlp(3, 32, 2), given_y, 2),
            normal(4)), EnumeratedELBO(label_weight=1.0), (x, y)),
    "columns": (
        VAE(MixturePrior(2, 3), NormalPosterior(nn.Sequential(features, mlp(3, 32, 4))),
            ColumnsLikelihood(mlp(2, 32, 4), (3,), kinds)), TraceELBO(), (rows,)),
    "a Normal": (VAE(StandardNormalPrior(2), NormalPosterior(mlp(3, 32, 4)), normal(2)), AnalyticELBO(), (x,)),
}
for name, (vae, elbo, batch) in vaes.items():
    fit_to(vae, batch[0])
    with pyro.get_param_store().scope():
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), elbo)
        losses = [svi.step(*batch) for _ in range(100)]
    print(name, losses[0] - losses[-1])

from pvae.marginal.log_likelihood import log_likelihood
from pvae.marginal.log_p import METHODS

found = [log_likelihood(vae.eval(), x[:20], method) for method in METHODS]
print("methods", *[(found[0].log_p - one.log_p).abs().sub(6 * one.stderr).max().item() for one in found])
rooms = ("vae", "core", "distributions", "elbos", "models", "reference", "compile", "marginal")
used = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("pvae.")}
assert used <= {f"pvae.{name}" for name in rooms}, used
"""


@pytest.mark.workflow
def test_the_library_builds_and_trains_without_the_program():
    done = subprocess.run([sys.executable, "-c", BY_HAND, PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *trained, methods = done.stdout.splitlines()
    assert all(float(off) < 0.01 for off in methods.split()[1:]), "all agree within six errors"
    gains = [float(line.rsplit(" ", 1)[1]) for line in trained]
    assert len(gains) == 5
    assert min(gains) > 0.5


IMPORT = """
import random, sys
import pvae
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
import numpy, torch, pyro, warnings
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
            torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.get_num_threads(),
            pyro.infer.util.is_validation_enabled(), list(pyro.get_param_store()),
            torch.are_deterministic_algorithms_enabled())
before = state()
assert pvae.VAE and pvae.load and pvae.Config and pvae.build_elbo and pvae.read
assert "matplotlib" not in sys.modules
for name in pvae.__all__:
    assert getattr(pvae, name) is not None
    assert name in dir(pvae)
assert state() == before
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.workflow
def test_importing_changes_nothing():
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", IMPORT], check=True, timeout=60)


def test_no_constant_of_a_module_is_set_twice():
    for file in PACKAGE.rglob("*.py"):
        targets = [node.targets[0] for node in ast.parse(file.read_text()).body if isinstance(node, ast.Assign)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        assert len(names) == len({*names}), f"{file}: {sorted(name for name in {*names} if names.count(name) > 1)}"
