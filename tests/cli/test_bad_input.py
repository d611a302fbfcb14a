"""What a command is given wrongly is one line that names it, with exit status 2, and no file is written."""

from __future__ import annotations

import shlex

import pytest
from helpers.commands import refuse

from pvae.__main__ import command_of

pytestmark = pytest.mark.workflow

REFUSED = {  # arguments, and what the line names
    "train": {
        "--system deep-bays": "'deep-bayes'",
        "--dataset minst": "'mnist'",
        "--dataset mnist-5k --network mlp-batchnorm --batch-size 43": "--batch-size 43",
        "--dataset mnist-5k --hidden 1000000 1000000": "memory",
        "--epochs 1.5": "--epochs",
        "--epochss 1": "--epochs?",
        "--grey": "--grey",
        "--device cuda:99": "take cpu",
        "--from nowhere --out third": "nowhere",
        "--resume second --from first": "--from",
        "--seeds ''": "0:8",
        "--seeds a": "0:8",
        "--seeds 3:3": "0:8",
        "--seeds -1": "0:8",
        "--seeds 0:8:2": "0:8",
        "--seeds 0:99999999999999999": "0:8",
        "--seeds 0:2 --seed 1": "--seed",
        "--seeds 0:2 --elbo analitic": "'analytic'",
        "--beta 1,2 --resume run": "--resume",
        "--beta 1,": "0.25,1,4, not 1,",
        "--beta -1,2": "--beta must be a number of at least 0",
        "--beta 1,2 --elbo iwae --particles 2": "--beta",
    },
    "evaluate": {
        "nowhere": "not a run folder",
        "deep-bayes --importance-samples 1": "--importance-samples",
        "empty --compile jit": "jit",
    },
    "compare": {
        "--elbo trace,iwea": "'iwae'",
        "--particles five": "--particles",
        "--particles 1000001": "--particles",
        "--stages -1": "--stages",
        "--repetitions 2": "--repetitions",
        "--system conv-3d": "system",
        "--elbo iwae --particles 1 --stages 0": "iwae",
        "no-such-run": "no-such-run",
        "--system conv-2d-ae": "autoencoder",
        "run --system deep-bayes": "RUN",
    },
    "encode": {"deep-bayes --out codes.txt": ".npz", "deep-bayes nowhere": "nowhere", "deep-bayes empty": "empty"},
    "score": {"deep-bayes --importance-samples 1": "--importance-samples"},
    "sample": {"deep-bayes -n 0": "--num-samples"},
    "export": {"empty": "empty"},
    "draw": {"deep-bayes deep-bayes": "evaluate RUN RUN"},
    "explore": {"none": "none"},
}


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [(command, *row) for command, rows in REFUSED.items() for row in rows.items()],
)
def test_bad_input_is_one_line(command, arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert says in refuse(command_of(command), shlex.split(arguments), capsys, tmp_path)
