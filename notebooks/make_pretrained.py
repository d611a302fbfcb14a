"""Train the two runs that come with pvae: write options, metrics and half-precision weights to pvae/pretrained.

    python notebooks/make_pretrained.py --data-dir DIR [NAME]

DIR holds MNIST/raw and FashionMNIST/raw. It takes two to three minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pvae
from pvae.runs import writer
from pvae.runs.checkpoint import to_bytes
from pvae.runs.run import READY_MADE


def main() -> None:
    """Train each run into a temporary folder, and keep what loading it needs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", metavar="DIR", required=True, help="holds MNIST/raw and FashionMNIST/raw")
    parser.add_argument("name", metavar="NAME", nargs="?", choices=READY_MADE, help="of one of them (default: both)")
    arguments = parser.parse_args()
    data_dir = arguments.data_dir
    for name in [arguments.name] if arguments.name else READY_MADE:
        config = pvae.get_system(name).replace(elbo="analytic")
        with tempfile.TemporaryDirectory() as folder:
            data = replace(pvae.read(config.dataset, data_dir), folder="")  # where it lies here is of no use
            callbacks = pvae.default_callbacks(quiet=False)
            run = pvae.fit(config, data, out=Path(folder) / name, device="cpu", callbacks=callbacks)
            halves = {key: weight.half() for key, weight in run.read_checkpoint().vae.items()}
            weights = replace(run.read_checkpoint(), vae=halves, moments={}, rng={})  # without what only resuming needs
            target = Path(pvae.__file__).parent / "pretrained" / name
            target.mkdir(parents=True, exist_ok=True)
            for file in ("config.json", "metrics.jsonl"):
                shutil.copy(run.path / file, target / file)
            (target / "checkpoint.safetensors").write_bytes(to_bytes(weights))
            if instants := run.history():
                writer.write_history(replace(run, path=target), instants)
        print(f"{target}: {pvae.Run.open(name).title}")


if __name__ == "__main__":
    main()
