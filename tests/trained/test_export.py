"""Programs of `torch.export`: equal to the VAE, for batches of any size, in a process without pvae and Pyro."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers.families import ROWS, config_with, shape_for, x_for

from pvae.cli.export import export
from pvae.config.build import build_vae
from pvae.config.choices import values_config
from pvae.config.config import Config
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.models.features import fit_to
from pvae.models.likelihoods import Likelihood
from pvae.models.posteriors import Posterior
from pvae.models.priors import Prior
from pvae.runs.run import Run
from pvae.trained.codes import run_batch
from pvae.trained.export import programs
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
TWO = {"upper_latent_dims": (5, 3), "upper_hidden": (8,), "binarize": "threshold"}
CONFIGS = {
    **{name: config_with(row) for name, row in ROWS.items()},
    "bottom-up": config_with(Posterior.members["normal"], **TWO),
    "top-down mixture": config_with(Prior.members["mixture"], **TWO, inference="top-down"),
    "ladder vamp": config_with(Prior.members["vamp"], **TWO, inference="ladder"),
    "given labels": config_with(Posterior.members["normal"], condition=True),
    "exact": config_with(Likelihood.members["columns"], initialization="exact", prior="mixture", network="mlp"),
    "images": Config(network="conv-batchnorm", hidden=(4, 8), latent_dim=3),
}
ON_SPHERE = {"posterior power-spherical", "prior sphere"}  # torch.export does not know their draws


@pytest.mark.parametrize("name", CONFIGS)
def test_programs_are_the_vae(name):
    """The mean of p(x | z) to the bit; log-probabilities at the same noise to 1e-5."""
    config = CONFIGS[name]
    shape, y = shape_for(config) if name != "images" else (1, 16, 16), []
    with seeded(0, CPU):
        vae = build_vae(config, shape, 3 * config.condition).eval()
        x = x_for(config, 9, shape)
        fit_to(vae, x)
        y = [torch.eye(3)[[0, 1, 2] * 3]] * config.condition
        z = torch.randn(9, *vae.given(y[0] if y else None).prior().event_shape)
    found = dict(programs(vae, x[:2], *[one[:2] for one in y]))
    refused = [one for one, program in found.items() if isinstance(program, str)]
    assert refused == ["log_probs"] * (name in ON_SPHERE)
    assert torch.equal(found["decode"].module()(z, *y), vae.likelihood(z, *y).mean)
    assert found["encode"].module()(x, *y).shape == z.shape
    if name in ON_SPHERE:
        return
    with seeded(1, CPU):
        log_probs = found["log_probs"].module()(x, *y)
    with seeded(1, CPU), torch.no_grad():
        q = vae.posterior(x, *y)
        z = q.sample()
        expected = vae.log_likelihood(x, z, *y), vae.prior(*y).log_prob(z), q.log_prob(z)
    for one, other in zip(log_probs, expected):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("pvae", "pyro", "zuko"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
folder = sys.argv[1]
names = "encode", "decode", "log_probs"
encode, decode, log_probs = (torch.export.load(f"{folder}/{name}.pt2").module() for name in names)
x = torch.load(f"{folder}/x.pt")
torch.save([decode(encode(x)), *log_probs(x), len(log_probs(x[:1])[0])], f"{folder}/out.pt")
"""


def test_the_files_of_a_table_are_opened_by_torch_alone(tmp_path, no_pictures, capsys):
    """By the command, with the kinds, the start and the prior that a table has by default; and again."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 1, generator=draw).double() + torch.randn(200, 3, generator=draw).double() * 0.1
    data = Dataset("values", *(rows.exp() * 1e6).split(160))
    run = fit(values_config(data, epochs=1), data=data, out=tmp_path / "run")
    assert run.config.initialization == "exact"
    for _ in range(2):
        assert export([str(run.path)]) == 0
    assert "encode.pt2, decode.pt2, log_probs.pt2" in capsys.readouterr().out
    (batch,) = run_batch(run, "test").split(100)
    torch.save(batch.x, run.path / "torch" / "x.pt")
    subprocess.run([sys.executable, "-c", ALONE, str(run.path / "torch")], check=True)
    decoded, *log_probs, one = torch.load(run.path / "torch" / "out.pt")
    vae = Run.open(run.path).vae()
    assert one == 1
    assert torch.equal(decoded, vae.likelihood(vae.posterior(batch.x).mean).mean)
    assert all(len(part) == 40 and part.isfinite().all() for part in log_probs)
    other = tmp_path / "other"
    other.mkdir()
    (other / "encode.pt2").write_bytes(b"precious")
    assert export([str(run.path), "--out", str(other)]) == 2
    assert (other / "encode.pt2").read_bytes() == b"precious"
