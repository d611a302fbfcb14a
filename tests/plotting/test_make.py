"""The script that makes the pictures and notebooks of notebooks/ anew, on a few digits and one epoch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pvae.data.dataset import Dataset
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(monkeypatch, digits):
    """The script as a module, whose runs train one epoch of a few digits; those with stages train one more for each."""
    spec = importlib.util.spec_from_file_location("make", ROOT / "notebooks/make.py")
    make = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "make", make)
    spec.loader.exec_module(make)
    few = Dataset(
        "few digits", digits.train[:200], digits.test[:60],
        digits.train_labels[:200], digits.test_labels[:60], digits.label_names, dataset="mnist-5k",
    )  # fmt: skip
    for module in ("pvae.training.fit.load_for", "pvae.runs.run.read_again"):
        monkeypatch.setattr(module, lambda *_: few)
    monkeypatch.setattr(make, "STAGES", {"mlp-2d": (1, 2), "pytorch-example": (1,)})
    for name, config in make.RUNS.items():
        epochs = len(make.STAGES.get(name, ())) + 1
        monkeypatch.setitem(make.RUNS, name, config.replace(epochs=epochs, batch_size=50))
    return make


@pytest.mark.slow  # half a minute
def test_every_picture_is_made_and_none_is_trained_twice(make, tmp_path, monkeypatch, capsys):
    runs, trained = make.Runs(tmp_path / "runs"), []

    def fit_once(config, **options):
        trained.append(options["out"])
        return fit(config, **options)

    monkeypatch.setattr(make.pvae, "fit", fit_once)
    (tmp_path / "pictures.md").write_text("# Pictures\n\n## By hand\n\nThis stays.\n")
    for name in make.PICTURES:
        make.make_picture(name, runs, tmp_path)
        assert ElementTree.parse(tmp_path / "pictures" / f"{name}.svg").getroot().tag.endswith("}svg")
    assert len(trained) == len(set(trained)) == len(make.RUNS)
    page, picture = (tmp_path / "pictures.md").read_text(), (tmp_path / "pictures" / "holes.svg").read_bytes()
    make.make_picture("holes", runs, tmp_path)
    assert (tmp_path / "pictures.md").read_text() == page
    assert (tmp_path / "pictures" / "holes.svg").read_bytes() == picture
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == [*(one.title for one in make.PICTURES.values() if one.title), "By hand"]
    assert page.endswith("## By hand\n\nThis stays.\n")
    assert max(map(len, page.splitlines())) <= 200
