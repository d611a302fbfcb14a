"""Rules that all commands follow: which files they replace, which paths they accept, where they run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import contents, refuse

import pvae
from pvae.__main__ import COMMANDS
from pvae.__main__ import run as main
from pvae.cli.compare import main as compare
from pvae.cli.data import encode, reconstruct, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.export import export
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.config.presets import get_system
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

SMALL = ["--importance-samples", "5"]
FEW = ["--particles", "2", "--repetitions", "3", "--elbo", "trace,iwae"]


@pytest.fixture(scope="module")
def data(digits):
    labels = digits.train_labels[:130], digits.test_labels[:40]
    return Dataset("few digits", digits.train[:130], digits.test[:40], *labels, digits.label_names)


@pytest.fixture(scope="module")
def trained(made_once, data):
    config = get_system("mlp-2d").replace(hidden=(8,), epochs=1, batch_size=50)
    return made_once("commands", lambda out: fit(config, data=data, out=out))


@pytest.fixture
def run(trained, tmp_path, data, monkeypatch):
    """A copy of a run folder, whose data set can be loaded."""
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: data)
    return shutil.copytree(trained, tmp_path / "run")


WRITING = {
    "draw": (draw, []),
    "evaluate": (evaluate, SMALL),
    "compare": (compare, FEW),
    "encode": (encode, []),
    "score": (score, SMALL),
    "sample": (sample, ["-n", "2"]),
    "reconstruct": (reconstruct, []),
    "export": (export, []),
}


@pytest.mark.parametrize("name", WRITING)
def test_out_replaces_nothing(run, tmp_path, capsys, monkeypatch, name):
    """Neither files of the user nor files of the run, and it is refused before anything is computed."""
    monkeypatch.setattr(Run, "vae", lambda *_: pytest.fail("it was loaded for nothing"))
    monkeypatch.setattr(Run, "dataset", lambda *_: pytest.fail("it was loaded for nothing"))
    command, options = WRITING[name]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file.csv").write_text("mine")
    (tmp_path / "link.npz").symlink_to("nowhere")
    for out in (mine, mine / "file.csv", tmp_path / "link.npz", run, run / "config.json"):
        assert "--out" in refuse(command, [run, *options, "--out", out], capsys, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # root may write anywhere
        assert "read-only" in refuse(command, [run, *options], capsys, tmp_path)


@pytest.mark.parametrize("name", WRITING)
def test_the_place_in_the_run_is_written_again(run, name):
    command, options = WRITING[name]
    before = contents(run)
    for _ in range(2):
        assert command([str(run), *options]) == 0
    after = contents(run)
    kept = {file: content for file, content in before.items() if file.name != "README.md"}  # evaluate adds to it
    assert kept.items() <= after.items() or name == "draw"
    assert len(after) > len(before) or name == "draw"


def test_a_result_that_cannot_be_written_is_named(run, tmp_path, capsys, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert evaluate([str(run), *SMALL, "--out", str(tmp_path / "result.json")]) == 1
    assert f"{tmp_path / 'result.json'} cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_help_lists_every_command_and_each_explains_itself_without_torch(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, (sentence, _) in COMMANDS.items():
        assert sentence in listed
        assert main([name, "--help"]) == 0
        assert f"{name} " in capsys.readouterr().out
    program = "import sys, pvae.__main__ as c; [c.run([name, '--help']) for name in ('draw', 'export')]"
    program += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_command_by_its_name(run, tmp_path, capsys):
    assert main(["draw", str(run), "--what", "samples", "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["samples.png"]
    assert "did you mean 'draw'" in refuse(main, ["drew", run], capsys, tmp_path)


def test_pictures_for_a_paper(run, tmp_path):
    """Their titles are in captions.md, and no longer in the pictures; their fonts are those that journals take."""
    options = ["--what", "samples", "--format", "svg"]
    assert main(["draw", str(run), *options, "--out", str(tmp_path / "titled")]) == 0
    assert main(["draw", str(run), *options, "--no-title", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["captions.md", "samples.svg"]
    assert (tmp_path / "out/captions.md").read_text().startswith("- samples: ")
    titled, plain = ((tmp_path / name / "samples.svg").read_text() for name in ("titled", "out"))
    assert len(titled) > len(plain) + 500
    assert main(["draw", str(run), "--what", "losses", "--format", "pdf", "--out", str(tmp_path / "pdf")]) == 0
    content = (tmp_path / "pdf/losses.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


@pytest.mark.parametrize(("shell", "status"), [("{} | true", 0), ("{}", 0), ("{} > /dev/full", 1), ("{} nothing", 2)])
def test_the_program(shell, status):
    command = shell.format(f"{sys.executable} -m pvae")
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (status, min(status, 1))


@pytest.mark.parametrize(
    ("command", "option"), [(train, "--config"), (train, "--resume"), (draw, "RUN"), (encode, "DATA"), (score, "--out")]
)
def test_an_empty_path_is_refused(run, tmp_path, capsys, monkeypatch, command, option):
    """As from an unset variable of a shell: not taken as the working folder, even if that is a run."""
    monkeypatch.chdir(run)
    run_itself = [] if command is train or option == "RUN" else ["."]
    arguments = [*run_itself, *([option] if option.startswith("--") else []), ""]
    if command is train:
        arguments += ["--dataset", "mnist-5k", "--epochs", "1"]
    assert option in refuse(command, arguments, capsys, tmp_path)


@pytest.mark.parametrize("use", [lambda: fit(Config(), out=""), lambda: pvae.read("mnist", ""), lambda: pvae.load("")])
def test_an_empty_path_is_refused_in_python(use):
    with pytest.raises(InputError, match="empty"):
        use()


def test_without_a_home_folder_data_are_found_where_they_are_named(
    tiny_mnist, lay_mnist, no_pictures, tmp_path, monkeypatch, capsys
):
    """As in a container whose user has no entry in the list of users."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", "PVAE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.chdir(tmp_path)
    lay_mnist(tmp_path / "data")
    small = ["--hidden", "4", "--batch-size", "8", "--epochs", "1"]
    assert train([*small, "--data-dir", "data", "--out", "run"]) == 0
    capsys.readouterr()
    assert "XDG_CACHE_HOME" in refuse(train, [*small, "--dataset", "mnist"], capsys, tmp_path), "no download either"
    assert read("auto", offline=True).name == "MNIST-5k"
