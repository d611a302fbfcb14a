"""What is written for readers runs: the README's Python, and the notebooks in their quick mode."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from pvae.data.sources import load_dataset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_shows_that_the_forms_agree(capsys):
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    values = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 5
    assert max(values) - min(values) < 0.3, values


def test_the_readmes_python(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvae.training.fit.load_for", lambda *_: load_dataset("mnist-5k"))
    names = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("test ELBO -")
    assert names["images"].shape == (64, 1, 28, 28)
    assert names["codes"].shape == (1000, 2)


def test_compiled_steps_as_the_readme_takes_them(capsys):
    with torch.random.fork_rng():
        exec(compile(BLOCKS[1], "README.md", "exec"), {})
    losses = ast.literal_eval(capsys.readouterr().out)
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_the_readme_names_every_room():
    for room in (ROOT / "pvae").glob("*/__init__.py"):
        assert f"`{room.parent.name}/`" in README, room.parent.name


def test_the_readme_names_no_other_file():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path, monkeypatch):
    monkeypatch.setenv("PVAE_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code"), (
        "not executed"
    )
    NotebookClient(notebook, timeout=120).execute()


def test_notebooks_are_small():
    for path in ROOT.glob("notebooks/*.ipynb"):
        assert path.stat().st_size < 1_000_000
