"""The documents for readers are true: their Python runs, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import pvae
from pvae.cli.export import main as export
from pvae.config.families import LIKELIHOODS, POSTERIORS, PRIORS
from pvae.data.sources import load_dataset
from pvae.elbos.registry import ELBO_CLASSES
from pvae.models import hierarchy, likelihoods, networks, posteriors, priors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "notebooks").glob("*.md"))
DOCUMENTS = [README, *PAGES]


def blocks(path):
    """The Python of a document, one text for each block."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a document's block that contains a text, in an empty folder and on 5,000 digits; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvae.training.fit.load_for", lambda *_: load_dataset("mnist-5k"))

    def run_block(path, containing, **names):
        (block,) = [block for block in blocks(path) if containing in block]
        with torch.random.fork_rng():
            exec(compile(block, path.name, "exec"), names)
        return names

    return run_block


def test_the_vae_by_hand_trains_and_its_loss_is_the_definition():
    tree = ast.parse(blocks(README)[0])
    last = ast.Expression(tree.body.pop().value)
    names = {}
    with torch.random.fork_rng():
        exec(compile(tree, "README.md", "exec"), names)
        assert eval(compile(last, "README.md", "eval"), names) == (True, True)


@pytest.mark.workflow
def test_own_images_in_the_readme(run):
    names = run(README, "pvae.Dataset")
    assert names["samples"].shape == (64, 1, 16, 16)
    assert names["run"].metrics()[-1].split == "test"


@pytest.mark.workflow
@pytest.mark.parametrize("page", [README, ROOT / "notebooks/identify.md"], ids=["README", "identify"])
def test_the_loss_of_a_page_is_named_as_it_says(run, capsys, page):
    run(page, "pvae.identify(")
    (block,) = [block for block in blocks(page) if "pvae.identify(" in block]
    said = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.splitlines()[:-1] == said[:-1]


@pytest.mark.workflow
def test_a_vae_of_the_packages_modules_is_trained_and_its_likelihood_estimated_as_its_page_says(run, capsys):
    names = run(ROOT / "notebooks/systems.md", "PlanarPosterior")
    assert names["run"].metrics()[-1].epoch == 1
    assert names["sample"].log_p.shape == (100,)
    assert -300 < names["sample"].log_p.mean() < -100
    assert capsys.readouterr().out.startswith("tensor(-")


@pytest.mark.workflow
def test_images_are_encoded_scored_and_sampled_as_their_page_says(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = pvae.Dataset("noise", images[:30], images[30:])
    pvae.fit(pvae.images_config(data, epochs=1), data=data, out=tmp_path / "runs" / "fashion")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images[:3, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    names = run(ROOT / "notebooks/images.md", "score_images")
    assert names["codes"].loc.shape == (3, 64)
    assert names["images"].shape == (64, 1, 8, 8)
    assert re.match(r"\d\.png -\d+\.\d+ \d+\.\d+ \d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.workflow
def test_a_run_is_read_as_its_page_says(run, capsys):
    names = run(ROOT / "notebooks/run-folder.md", "pvae.load(")
    assert capsys.readouterr().out.startswith("test ELBO -")
    assert names["images"].shape == (64, 1, 28, 28)
    assert names["codes"].shape == (1000, 2)


@pytest.mark.workflow
def test_a_run_of_an_own_vae_is_drawn_evaluated_and_resumed_as_its_page_says(run, capsys):
    names = run(ROOT / "notebooks/run-folder.md", "run.vae(vae)")
    assert (names["run"].figures() / "mine.png").stat().st_size > 1000
    assert names["run"].metrics()[-1].epoch == 2
    assert "ELBO" in capsys.readouterr().out


@pytest.mark.workflow
def test_labels_of_any_kind(run):
    names = run(ROOT / "notebooks/labels.md", "pvae.VAE(Prior()")
    assert names["losses"][-1] < names["losses"][0]
    assert names["prediction"].shape == (10, 5)
    probs = run(ROOT / "notebooks/labels.md", "label_names")["probs"]
    assert torch.allclose(probs.sum(-1), torch.ones(4))


@pytest.mark.workflow
def test_other_data_as_their_page_takes_them(run):
    names = run(ROOT / "notebooks/values.md", "values_config")
    assert names["run"].config.likelihood == "negative-binomial"
    assert names["rows"].shape == (5, 20)
    bounds = [
        row.elbo for row in run(ROOT / "notebooks/values.md", "Poisson(y *")["run"].metrics() if row.split == "test"
    ]
    assert bounds[-1] > bounds[0]
    run(ROOT / "notebooks/values.md", "patients.csv")
    config = pvae.values_config(load_dataset("table:patients.csv"))
    assert f"--likelihood columns --columns {config.columns}\n" in (ROOT / "notebooks/values.md").read_text()


@pytest.mark.workflow
def test_the_file_of_plain_torch_is_what_its_page_shows(run, tmp_path, monkeypatch):
    page = ROOT / "notebooks/plain-torch.md"
    assert export(["deep-bayes", "--out", str(tmp_path / "vae")]) == 0
    assert blocks(page)[0] in (tmp_path / "vae" / "model.py").read_text()
    monkeypatch.syspath_prepend(tmp_path / "vae")
    assert run(page, "model.load()")["bound"].shape == (16,)


@pytest.mark.workflow
def test_the_forms_of_the_elbo_agree(run, capsys):
    run(ROOT / "notebooks/bounds.md", "three_parts")
    values = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 5
    assert max(values) - min(values) < 0.3, values


@pytest.mark.workflow
def test_a_likelihood_of_ones_own_as_its_page_adds_it(run, capsys):
    names = run(ROOT / "notebooks/contributing.md", "LaplaceLikelihood")
    first, last = [row for row in names["run"].metrics() if row.split == "test"]
    assert last.elbo > first.elbo
    assert float(capsys.readouterr().out.splitlines()[-1]) == pytest.approx(1, abs=1e-4)


@pytest.mark.workflow
def test_digits_are_written_as_the_start_page_writes_them(run, tmp_path):
    run(ROOT / "notebooks/start.md", "mnist-5k")
    assert len([*tmp_path.glob("digits/*/*.png")]) == 4000


@pytest.mark.workflow
def test_compiled_steps_as_their_page_takes_them(run, capsys):
    run(ROOT / "notebooks/compiled-steps.md", "CompiledELBO")
    losses = ast.literal_eval(capsys.readouterr().out)
    assert len(losses) == 3
    assert losses[2] < losses[0]


def headings(path):
    """The anchors that a Markdown viewer gives to a document's headings."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    titles = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in headings(target), link


def test_every_page_and_notebook_is_linked_from_the_books_index():
    index = ROOT / "notebooks" / "index.md"
    links = set(re.findall(r"\]\(([^)#\s]+)", index.read_text()))
    assert links == {path.name for path in [*PAGES, *ROOT.glob("notebooks/*.ipynb")]} - {index.name}
    assert "](notebooks/index.md)" in README.read_text()


def test_every_choice_has_a_section_in_the_book():
    choices = tomllib.loads((ROOT / "notebooks" / "choices.toml").read_text())
    posterior = {name for name in (*posteriors.__all__, *hierarchy.__all__) if name.endswith("Posterior")}
    prior = {name for name in (*priors.__all__, *hierarchy.__all__) if name.endswith("Prior")}
    assert set(choices["posteriors"]) == posterior
    assert set(choices["priors"]) == prior
    assert set(choices["likelihoods"]) == {*likelihoods.__all__} - {"Likelihood"}
    rows = {"posteriors": POSTERIORS, "priors": PRIORS, "likelihoods": LIKELIHOODS}
    for kind, families in rows.items():
        assert {row.module.partition(":")[2] for row in families.values()} <= set(choices[kind])
    assert set(choices["elbos"]) == {kind.__name__ for kind in ELBO_CLASSES.values()}
    assert set(choices["networks"]) == {name for name in networks.__all__ if name.endswith(("_encoder", "_decoder"))}
    tests = {test for kind in choices if kind != "symbols" for one in choices[kind].values() for test in one["tests"]}
    assert [test for test in tests if not (ROOT / test).exists()] == []


@pytest.mark.workflow
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
        assert path.stat().st_size < 2_500_000  # scatter plots in true colours


def test_pictures_are_small():
    for path in ROOT.glob("notebooks/pictures/*.png"):
        assert path.stat().st_size < 700_000, path.name


def test_tests_that_are_named_exist():
    texts = {path: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("notebooks/*.[im]*")]}
    named = {name for text in texts.values() for name in re.findall(r"tests/[a-z_/]+\.py", text)}
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
