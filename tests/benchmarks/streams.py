"""Memory and speed of a training on batches: `python tests/benchmarks/streams.py --rows 100000 1000000 10000000`.

Each training runs in a process of its own, with one thread, on rows of 20 columns that are drawn from a linear model as
they are asked for, or that are in memory, or in a Parquet file. Printed are the greatest memory of the process, how
much it grew beyond what it had before the data, the seconds of an epoch with the reading of its data, and the ELBO.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

COLUMNS, AT_ONCE = 20, 4096
WAYS = ("memory", "loader", "parquet")


class Rows:
    """Rows of a linear model with 5 factors, the same in each pass."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.loadings = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(0))

    def __iter__(self):
        for start in range(0, self.count, AT_ONCE):
            draw = torch.Generator().manual_seed(start + 1)
            size = min(AT_ONCE, self.count - start)
            noise = torch.randn(size, COLUMNS, generator=draw)
            yield torch.randn(size, 5, generator=draw) @ self.loadings + 0.5 * noise


def peak() -> float:
    """Return the greatest memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def trained(way: str, count: int, folder: Path) -> dict[str, float]:
    """Train for two epochs, and return what was measured."""
    import pvae
    import pvae.training.fit  # what a training imports

    rows, before, epochs = Rows(count), peak(), list[float]()
    if way == "parquet":
        from pvae.data.parquet import ParquetParts

        rows = ParquetParts(write(rows, folder / f"{count}.parquet"), count)
    data = torch.cat([*rows]) if way == "memory" else rows
    started = time.perf_counter()
    run = pvae.fit(
        data=data, threads=1, device="cpu", out=folder / f"{way}-{count}", has_figures=False,
        config=pvae.Config(
            system="values", likelihood="normal-diagonal", hidden=(64,), latent_dim=5, batch_size=256, valid=0.1,
            prior="standard-normal", epochs=2, compile="graph", initialization="torch", source="",
        ),
        on_epoch=lambda run, row: epochs.append(time.perf_counter()) if row.split == "test" else None,
    )  # fmt: skip
    first = epochs[0] - started
    return {
        "peak": peak(), "grown": peak() - before, "first": first, "epoch": epochs[1] - epochs[0],
        "elbo": run.test_metrics().elbo,
    }  # fmt: skip


def write(rows: Rows, file: Path) -> Path:
    """Write a Parquet file, if it is missing."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    if not file.exists():
        names = [f"c{place}" for place in range(COLUMNS)]
        with ParquetWriter(file, pyarrow.schema([(name, pyarrow.float32()) for name in names])) as out:
            for batch in rows:
                out.write_table(pyarrow.table(dict(zip(names, batch.T.numpy()))))
    return file


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["memory", "loader"])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, count, folder = args.one
        print(json.dumps(trained(way, int(count), Path(folder))))
        return
    print(
        f"{'rows':>10} {'way':<8} {'peak GB':>8} {'grown GB':>9} {'first epoch s':>14} {'an epoch s':>11} {'ELBO':>8}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for count in args.rows:
            for way in args.ways:
                command = [sys.executable, __file__, "--one", way, str(count), folder]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"{count:>10,} {way:<8} {found['peak']:>8.2f} {found['grown']:>9.2f} {found['first']:>14.1f} "
                    f"{found['epoch']:>11.1f} {found['elbo']:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
