"""Several processes compute what one computes, end together when one is killed, and resume each other's runs."""

from __future__ import annotations

import json
import signal

import pyro
import pytest
import torch
import torch.distributed
from helpers import worker
from helpers.processes import Group, run_group
from helpers.svi import ELBOS

from pvae.cli.train import main
from pvae.config.build import build_elbo
from pvae.core.errors import InputError
from pvae.runs.run import Run
from pvae.training.parallel import Share, SharedELBO, WholeBatchNoise, World

pytestmark = pytest.mark.workflow

if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

SMALL = ["--dataset", "mnist-5k", "--hidden", "16", "--latent-dim", "3", "--batch-size", "137"]


def test_shares_part_a_batch():
    for size in (1, 2, 3, 7):
        for total in (1, 2, 5, 128):
            shares = [World(rank, size).share(total) for rank in range(size)]
            mine = [row for share in shares if share.weight for row in range(share.start, share.stop)]
            assert mine == list(range(total))
            assert sum(share.weight for share in shares) == pytest.approx(1, abs=1e-15)
            assert all(0 <= share.start < share.stop <= total for share in shares)


@pytest.mark.parametrize("draw", ["rsample", "sample"])
def test_noise_is_rows_of_the_whole_batchs(draw):
    loc, scale = torch.arange(30.0, dtype=torch.float64).view(10, 3), torch.rand(10, 3, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = getattr(torch.distributions.Normal(loc, scale), draw)((4,))
        for share in (Share(0, 3, 10, 0.3), Share(3, 10, 10, 0.7)):
            torch.manual_seed(0)
            part = torch.distributions.Normal(loc[share.rows], scale[share.rows])
            with WholeBatchNoise(share):
                assert torch.equal(getattr(part, draw)((4,)), whole[:, share.rows])
            state = torch.get_rng_state()
        torch.manual_seed(0)
        getattr(torch.distributions.Normal(loc, scale), draw)((4,))
        assert torch.equal(state, torch.get_rng_state())


def test_other_draws_are_refused():
    with WholeBatchNoise(Share(0, 2, 4, 0.5)):
        for draw in (
            lambda: torch.rand(2, 3),
            lambda: torch.empty(3, 3).normal_(),
            lambda: torch.empty(2, 3).normal_(5.0),
        ):
            with pytest.raises(InputError):
                draw()


@pytest.mark.parametrize("name", ELBOS)
def test_losses_and_gradients_of_the_shares_sum_to_those_of_the_batch(small_vae, small_images, name):
    vae, x = small_vae(), small_images(7)

    def loss_and_gradients(elbo):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(3)
            loss = elbo.differentiable_loss(vae.model, vae.guide, x)
            return [loss, *torch.autograd.grad(loss, list(vae.parameters()))]

    parts = [loss_and_gradients(SharedELBO(build_elbo(name, 2), World(rank, 3))) for rank in range(3)]
    for whole, *part in zip(loss_and_gradients(build_elbo(name, 2)), *parts):
        torch.testing.assert_close(sum(part), whole, rtol=1e-10, atol=1e-14)


def test_the_command_by_three_processes_and_resumed_by_one(tmp_path, monkeypatch, no_pictures):
    """4,000 images in batches of 137: the last batch is of 27, and no share is like another."""
    monkeypatch.chdir(tmp_path)
    command = [*SMALL, "--binarize", "dynamic", "--compile", "graph", "--clip-norm", "5", "--quiet", "--epochs"]
    assert main([*command, "2", "--out", "one"]) == 0
    assert run_group(3, main, [*command, "1", "--out", "many"], folder=tmp_path) == "many\n"
    assert main(["--resume", "many", "--epochs", "2", "--quiet"]) == 0
    one, many = Run.open("one"), Run.open("many")
    assert [session["processes"] for session in many.sessions] == [3, 1]
    assert len(many.metrics()) == 4
    for ours, theirs in zip(many.metrics(), one.metrics()):
        assert (ours.epoch, ours.split) == (theirs.epoch, theirs.split)
        for name in ("elbo", "elbo_stderr", "distortion", "rate", "loss"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4), name


def test_where_one_process_is_killed_the_other_ends_and_says_how_to_resume(tmp_path):
    """Nothing signals the other process: it notices by itself, and ends with one line."""
    group = Group(2, main, [*SMALL, "--epochs", "100", "--quiet", "--out", "run"], folder=tmp_path)
    group.wait_for(tmp_path / "run" / "metrics.jsonl")
    group.kill(1)
    assert group.join(60) == [1, -signal.SIGKILL]
    assert group.err.startswith("pvae train: another process of this training has ended"), group.err
    assert "go on with: python -m pvae.train --resume run" in group.err
    assert group.err.count("\n") == 1
    assert 0 < Run.open(tmp_path / "run").read_checkpoint().epoch < 100


def test_refusals_are_one_line_of_one_process(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    group = Group(2, main, [*SMALL, "--out", "run"], folder=tmp_path)
    assert group.join(60) == [2, 2]
    assert group.err == "pvae train: --out run is a folder that is not empty: name a new one\n"


def test_resuming_and_errors_of_several_processes(tmp_path):
    """A resumed training is the same; if one process cannot compute a step, no process takes it, and all end."""
    run_group(2, worker.main, tmp_path / "two.json", folder=tmp_path)
    first, second = json.loads((tmp_path / "two.json").read_text())
    failures = [one.pop(name) for one in (first, second) for name in ("failed", "bad")]
    assert first == second
    assert "the loss is nan" in failures[2]
    assert all(one.endswith("at step 1") for one in failures[::2])
    assert failures[1] == {"steps": 4, "error": "NotFiniteError", "is as before": True}
    assert failures[3] == {"steps": 4, "error": "InputError", "is as before": True}
    with torch.random.fork_rng():
        one = worker.resumed_and_failed(World())
    assert first["next"] == one["next"]
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-5)
    assert first["resumed"] == first["whole"]


def test_a_signal_to_one_process_stops_all(tmp_path):
    """They stop after the same step, and one of them prints a line."""
    group = Group(2, main, [*SMALL, "--epochs", "1000", "--quiet", "--out", "run"], folder=tmp_path)
    group.wait_for(tmp_path / "run" / "metrics.jsonl")
    group.kill(1, signal.SIGTERM)
    assert all(group.join(60))
    assert group.err.count("\n") == 1
    assert f"up to epoch {Run.open(tmp_path / 'run').read_checkpoint().epoch}; " in group.err
