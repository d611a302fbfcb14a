"""`pvae identify FILE.py:FUNCTION`."""

from __future__ import annotations

import pytest
from helpers.commands import refuse

from pvae.cli.own_code import identify as main

pytestmark = pytest.mark.workflow

GOOD = """
import torch
from torch.nn import functional as F
print("imported")
def loss(recon_x, x, mu, logvar, kld_weight):
    print("called")
    rate = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
    return F.binary_cross_entropy(recon_x, x, reduction="sum") + kld_weight * rate
"""


def test_a_loss_in_a_file_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    assert main(["mine.py:loss", "--constant", "kld_weight=0.25"]) == 0
    said = capsys.readouterr().out
    assert "beta        0.25" in said
    assert "imported" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("text", "arguments", "word"),
    [
        (GOOD, ["other.py:loss"], "other.py"),
        (GOOD, ["mine.py"], "loss"),
        (GOOD, ["mine.py:loss"], "kld_weight"),
        (GOOD, ["mine.py:loss", "--constant", "3=4"], "NAME=VALUE"),
        (GOOD, ["mine.py:loss", "--shape", "28,28"], "1x28x28"),
        ("class A:\n    def loss(self, x, recon, mu, logvar): return self.beta", ["mine.py:A.loss"], "beta"),
        ("def loss(x, recon, mu, logvar): raise SystemExit(3)", ["mine.py:loss"], "SystemExit"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--no'])", ["mine.py:loss"], "__main__"),
    ],
)
def test_what_cannot_be_named_is_one_line(tmp_path, capsys, monkeypatch, text, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    assert word in refuse(main, arguments, capsys, tmp_path)
