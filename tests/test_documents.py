"""The documents for readers are true: their Python runs, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import nbformat
import pyro
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import pvae
from pvae.cli.export import export
from pvae.data.read import read
from pvae.models.likelihoods import Likelihood

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PLACES = {"README": README, "CONTRIBUTING": ROOT / ".github" / "CONTRIBUTING.md"}
PAGES = sorted((ROOT / "notebooks").glob("*.md"))
DOCUMENTS = [*PLACES.values(), *PAGES, ROOT / "tests/benchmarks/README.md"]
BOOK = runpy.run_path(str(ROOT / "notebooks" / "book.py"))
CHOICES = BOOK["CHOICES"]


def blocks(path):
    """The Python of a document, one text for each block."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch, no_pictures):
    """Run a document's block that contains a text, in an empty folder and on 5,000 digits; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvae.training.fit.load_for", lambda *_: read("mnist-5k"))

    def run_block(path, containing, **names):
        (block,) = [block for block in blocks(path) if containing in block]
        with torch.random.fork_rng():
            exec(compile(block.replace("epochs=5", "epochs=2"), path.name, "exec"), names)
        return names

    return run_block


def test_the_vae_by_hand_trains_and_its_loss_is_the_definition(run):
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        names = run(README, "class Prior")
        vae, x, losses = (names[name] for name in ("vae", "x", "losses"))
        torch.manual_seed(0)
        loss = names["svi"].evaluate_loss(x)
    assert losses[-1] < losses[0]
    torch.manual_seed(0)
    q = vae.posterior(x)
    z = q.rsample()
    elbo = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)
    assert loss == pytest.approx(-elbo.sum().item())


def elbos(names):
    return [row.elbo for row in names["run"].metrics() if row.split == "test"]


def prints_one_elbo(names, out):
    values = [float(line.split()[-1]) for line in out.splitlines()]
    return len(values) == 5 and max(values) - min(values) < 0.3


def prints_falling_losses(names, out):
    first, _, last = ast.literal_eval(out)
    return last < first


BLOCKS = {  # a page, a text of one of its blocks, and what is true of the block's names and of what it prints
    "README | pvae.Dataset": lambda names, out: names["samples"].shape == (64, 1, 16, 16) and elbos(names),
    "index | read": lambda names, out: names["samples"].shape == (64, 1, 28, 28) and elbos(names),
    "systems | PlanarPosterior": lambda names, out: -300 < names["sample"].log_p.mean() < -100 and "tensor(-" in out,
    "run-folder | pvae.load(": lambda names, out: (
        out.startswith("test ELBO -") and names["images"].shape == (64, 1, 28, 28) and len(names["codes"]) == 1000
    ),
    "run-folder | run.vae(vae)": lambda names, out: (
        (names["run"].figures() / "mine.png").stat().st_size > 1000 and len(elbos(names)) == 2 and "ELBO" in out
    ),
    "labels | pvae.VAE(Prior()": lambda names, out: (
        names["losses"][-1] < names["losses"][0] and names["prediction"].shape == (10, 5)
    ),
    "labels | label_names": lambda names, out: torch.allclose(names["probs"].sum(-1), torch.ones(4)),
    "values | values_config": lambda names, out: (
        names["run"].config.likelihood == "negative-binomial" and names["rows"].shape == (5, 20)
    ),
    "values | Poisson(y *": lambda names, out: elbos(names)[-1] > elbos(names)[0],
    "values | class Rows": lambda names, out: names["run"].data.num_train + names["run"].data.num_valid == 9000,
    "elbos | three_parts": prints_one_elbo,
    "CONTRIBUTING | LaplaceLikelihood": lambda names, out: (
        elbos(names)[1] > elbos(names)[0] and abs(float(out.splitlines()[-1]) - 1) < 1e-4
    ),
    "start | mnist-5k": lambda names, out: len([*Path().glob("digits/*/*.png")]) == 4000,
    "compiled-steps | CompiledSVI": prints_falling_losses,
    "own | class Prior": lambda names, out: names["losses"][-1] < names["losses"][0] and "equal: True" in out,
    "plain-torch | class PlainVAE": lambda names, out: out == "True True\n",
    "other-libraries | import arviz": lambda names, out: (
        names["log_p"].pareto_k.max() < 0.7 < names["loo"].pareto_k.values.max()
        and names["loo"].elpd_loo > names["log_p"].log_p.sum() + 20
    ),
}
RECIPES = {  # by what they import, which `pip install -e ".[recipes]"` brings
    "optuna": lambda names, out: len(names["study"].trials) == 5 and names["study"].best_value > -200,
    "mlflow": lambda names, out: [*Path("mlruns").glob("**/config.json")] and names["tracked"].info.status,
    "wandb": lambda names, out: [*Path("wandb").glob("offline-run-*/*.wandb")],
    "lightning": lambda names, out: -300 < names["trainer"].callback_metrics["elbo"] < -100,
    "sklearn": lambda names, out: len(names["log_p"]) == 3 and min(names["log_p"]) > -6,
}


@pytest.mark.workflow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_a_page_does_what_the_page_says(run, capsys, block):
    page, _, containing = block.partition(" | ")
    names = run(PLACES.get(page, ROOT / "notebooks" / f"{page}.md"), containing)
    assert BLOCKS[block](names, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("package", RECIPES)
def test_a_recipe_with_another_library_runs(run, capsys, package):
    pytest.importorskip(package)
    line = "cross_val_score(" if package == "sklearn" else f"import {package}\n"
    names = run(ROOT / "notebooks/other-libraries.md", line)
    assert RECIPES[package](names, capsys.readouterr().out)


@pytest.mark.workflow
@pytest.mark.parametrize("page", [README, ROOT / "notebooks/identify.md"], ids=["README", "identify"])
def test_the_loss_of_a_page_is_named_as_it_says(run, capsys, page):
    run(page, "pvae.identify(")
    (block,) = [block for block in blocks(page) if "pvae.identify(" in block]
    said = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.splitlines()[:-1] == said[:-1]


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
    assert re.search(r"\n\d\.png +-\d+\.\d+ +\d+\.\d+ +\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.workflow
def test_the_columns_of_a_table_are_found_as_the_page_says(run):
    run(ROOT / "notebooks/values.md", "patients.csv")
    page = (ROOT / "notebooks/values.md").read_text()
    data = read("table:patients.csv")
    config = pvae.values_config(data)
    assert config.columns == "real,count,binary,categorical:3,ordinal:4,binary*5"
    assert f"--latent-dim {config.latent_dim} --prior" in page
    assert not data.rules


@pytest.mark.workflow
def test_an_exported_vae_is_used_as_its_page_shows(run, tmp_path):
    assert export(["deep-bayes", "--out", str(tmp_path / "vae")]) == 0
    assert run(ROOT / "notebooks/plain-torch.md", "encode.pt2")["elbo"].shape == (16,)


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


def test_every_page_and_notebook_is_in_the_books_index():
    index = ROOT / "notebooks" / "index.md"
    listed = re.findall(r"```\{toctree\}\n(?::.*\n)*\n([^`]*)```", index.read_text())
    names = [name for names in listed for name in names.split()]
    assert sorted(names) == sorted(path.stem for path in [*PAGES, *ROOT.glob("notebooks/*.ipynb")] if path != index)
    assert "](notebooks/index.md)" in README.read_text()


def test_what_is_said_of_choices_is_said_of_classes_that_exist():
    assert {kind: set(said) - set(BOOK["classes"](kind)) for kind, said in CHOICES.items() if said} == {
        kind: set() for kind in BOOK["PAGES"]
    }


def test_a_new_family_is_in_the_book_by_its_class_alone(monkeypatch):
    monkeypatch.setattr(Likelihood, "members", dict(Likelihood.members))

    class NewLikelihood(Likelihood, name="new", help="for a test"):
        """What it is.

            p(x | z) = 1

        And more.
        """

    assert "| `--likelihood new` | What it is. |" in "\n".join(BOOK["choices"]("likelihoods"))
    assert "$$p(x\\mid z) = 1$$" in "\n".join(BOOK["choice"]("likelihoods", NewLikelihood.__name__))


PICTURED = [(kind, name) for kind in BOOK["PAGES"] for name in BOOK["classes"](kind) if BOOK["code_of"](kind, name)]


@pytest.mark.parametrize(("kind", "name"), PICTURED)
def test_the_code_of_a_choice_leaves_what_its_picture_shows(kind, name):
    code = BOOK["code_of"](kind, name)
    assert max(map(len, code.splitlines())) <= 88
    made = {}
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        exec(compile(code, name, "exec"), made)
    drawn = next(made[one] for one in ("density", "gradient", "z", "x") if one in made)
    assert drawn.isfinite().all()
    if kind == "elbos":
        mean, error = drawn[:, 0].mean(), drawn[:, 0].std() / len(drawn) ** 0.5
        has_another_mean = made["elbo"].is_importance_weighted or name in ("EnumeratedELBO", "GumbelSoftmax")
        assert has_another_mean or abs(mean + 1) < 5 * error


FEW = """
from dataclasses import replace
from pvae.data import sources
from pvae.plotting import pictures
all_digits = sources.mnist_5k()
few_digits = replace(all_digits, train=all_digits.train[:800], train_labels=all_digits.train_labels[:800])
sources.mnist_5k = lambda: few_digits
pictures.save_figures = lambda run, *_: run.figures()
"""


@pytest.mark.workflow
@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path, monkeypatch):
    monkeypatch.setenv("PVAE_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.execution_count for cell in cells), "not executed"
    assert max(len(line) for cell in cells for line in cell.source.splitlines()) <= 88, "a page of the book"
    cells[0].source = FEW + cells[0].source
    NotebookClient(notebook, timeout=120).execute()


def test_tests_that_are_named_exist():
    texts = {path: path.read_text() for path in [*DOCUMENTS, *ROOT.glob("notebooks/*.[it]*")]}
    named = {name for text in texts.values() for name in re.findall(r"tests/[a-z_/]+\.py", text)}
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = {name for text in texts.values() for name in re.findall(r"`(test_\w+)(?:\.\.\.)?`", text)}
    assert len(named) > 5
    assert [name for name in named if f"def {name}" not in tests] == []
