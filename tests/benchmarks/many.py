"""Eight runs at once against eight, one after the other: the time of a step, as a multiple.

    python tests/benchmarks/many.py [--engine graph|inductor] [--threads 1] [--device cpu] [--runs 8] [--rounds 5]

It prints the least wall-clock and CPU time of a step in microseconds, of a run alone and of all at once, in turns.
"""

from __future__ import annotations

import argparse
import time

import pyro
import torch
from torch.optim import Adam

from pvae.compile.adam import AdamUpdate
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.members import Members
from pvae.config.build import build_vae, elbo_of, preparation_of
from pvae.config.config import Config
from pvae.data.preparation import TrainingData

SYSTEMS = {"49-64-2": (49, 64, 2, 32), "784-64-2": (784, 64, 2, 128), "784-400-20": (784, 400, 20, 128)}
STEPS, NUM = 20, 2000


def main() -> None:
    """Print a line for each system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="graph")
    parser.add_argument("--device", default="cpu")
    for name, default in (("--threads", 1), ("--runs", 8), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name, sizes in SYSTEMS.items():
        alone, together = (1e6 * x for x in measured(*sizes, given))
        cpu_alone, cpu_together = (1e6 * x for x in measured(*sizes, given, time.process_time))
        wall = f"alone {alone:.0f} us, {given.runs} at once {together:.0f} us, {together / given.runs / alone:.2f}"
        cpu = f"CPU {cpu_alone:.0f} us and {cpu_together:.0f} us, {cpu_together / given.runs / cpu_alone:.2f}"
        print(f"{name}, {given.engine}, {given.threads} threads, {given.device}: {wall}; {cpu}")


def measured(size, hidden, latent_dim, batch_size, given, clock=time.perf_counter):
    """Return the least time of a step of a run alone, and of all at once."""
    config = Config(hidden=(hidden,), latent_dim=latent_dim, batch_size=batch_size, elbo="analytic")
    shape, device = (1, size // 7, 7), torch.device(given.device)
    images = torch.randint(256, (NUM, *shape), dtype=torch.uint8, device=device)
    data = TrainingData(images, preparation_of(config), None)

    def svi():
        vae = build_vae(config, shape, 0).to(device)
        update = AdamUpdate(Adam(vae.parameters(), lr=1e-3, fused=True))
        captures = device.type == "cuda"
        return CompiledSVI(
            vae.model, vae.guide, update, elbo_of(config), given.engine, "fp32", batch_size, data.batch, captures
        )

    one, members = svi(), Members([svi() for _ in range(given.runs)], [()] * given.runs, given.engine)
    indices = torch.randint(NUM, (STEPS, batch_size, given.runs), device=device).unbind()
    rows = [(1e-3, 1.0)] * STEPS

    def time_of(run):
        started = clock()
        run()  # reads its losses at the end, so that a GPU has finished
        return (clock() - started) / STEPS

    with pyro.get_param_store().scope():
        ways = (
            lambda: one.run([(index[:, 0].contiguous(),) for index in indices], rows),
            lambda: members.run([(index,) for index in indices], [[row] * given.runs for row in rows]),
        )
        for run in ways:
            run()  # records
        return map(min, zip(*([time_of(run) for run in ways] for _ in range(given.rounds))))


if __name__ == "__main__":
    main()
