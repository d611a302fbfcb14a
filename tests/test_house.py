"""The house: imports run downward only, and importing the package changes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pvae
from pvae import elbos, mnist, options, perdatum

PACKAGE = Path(pvae.__file__).parent

# From the ground up; a module may import from floors below its own only.
FLOORS = [
    {"bfloat16", "checks", "continuous_bernoulli", "cudagraphs", "errors", "interruptions", "memory"},
    {"failures", "files", "fingerprint", "isolation", "options", "processes", "products", "sites"},
    {"records"},
    {"adam", "bernoulli", "config", "deadlines", "devices", "discretized", "folders", "latents", "networks"}
    | {"optimizers", "parallel", "plots", "provenance", "rng", "runfolders"},
    {"checkpoints", "commands", "data", "imagefiles", "hierarchy", "likelihoods", "packages", "schedules", "systems"},
    {"inductor", "mnist", "probe", "trainparser", "vae"},
    {"recording"},
    {"bounds", "building", "evaluation", "handwritten", "latentspace", "oracle", "sources"},
    {"anatomy", "metrics", "perdatum", "underway"},
    {"importance", "sharedelbo", "steps"},
    {"tapes"},
    {"compiled"},
    {"svi"},
    {"elbos"},
    {"comparison"},
    {"events", "runs"},
    {"figures", "progress", "rundata", "tables"},
    {"stepping"},
    {"heldout"},
    {"training"},
    {"sessions"},
    {"fitting"},
    {"subjects"},
    {"drawing", "reports", "seeds", "sheets"},
    {"reporttext"},
    {"compare", "draw", "evaluate", "train"},
]
FLOOR = {module: level for level, floor in enumerate(FLOORS) for module in floor}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported_modules(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pvae":
            yield from [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pvae.")]


def test_every_module_has_a_floor():
    assert sorted(FLOOR) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    for other in imported_modules(module):
        assert FLOOR[other] < FLOOR[module], f"{module} imports {other}, which does not lie below it"


def test_the_witness_shares_nothing_with_pyros_inference():
    names = set()
    for module in ("handwritten", "bounds"):
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
    assert names == {"__future__", "math", "typing", "torch", "torch.distributions", "pvae.vae"}


def test_names_of_the_configuration_are_those_that_exist():
    known = {"auto", "mnist-5k", "binarized-mnist", "linear-gaussian", "celeba", "folder:PATH"}
    assert set(options.DATASETS) == known | set(mnist._TORCHVISION)
    for name in options.ELBOS:
        assert isinstance(elbos.build_elbo(name, 2), perdatum.PerDatumELBO)


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
assert pvae.VAE and pvae.load and pvae.Config and pvae.build_elbo and pvae.load_dataset
assert "matplotlib" not in sys.modules
for name in pvae.__all__:
    assert getattr(pvae, name) is not None
    assert name in dir(pvae)
assert state() == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_one_function_writes_json():
    """`records.to_json`, which knows no NaN; a checksum over JSON writes nothing."""
    writers = [
        path.stem
        for path in PACKAGE.glob("*.py")
        for line in path.read_text().splitlines()
        if "json.dump" in line and "sha256(" not in line
    ]
    assert writers == ["records"]


def test_importing_changes_nothing():
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", IMPORT], check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        pvae.nothing  # noqa: B018
