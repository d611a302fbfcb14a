"""How well the scores of `pvae score` tell images of another kind from those of a run.

    python tests/benchmarks/odd_images.py RUN OTHERS

It puts a hundred images of the folder OTHERS among the test images of RUN, scores all of them, and prints for each
score the area under the ROC curve: the probability that an image of OTHERS looks odder than a test image. 1 is a
perfect test, 0.5 a coin, and 0 one that always takes the wrong side. `oddness` is that of `pvae score --alarm`, on both
sides; the last lines say how many images it marks at 0.1 when half of the test images calibrate.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from pvae.core.random_state import seeded
from pvae.runs.run import Run
from pvae.trained.alarm import SIGNS, Sides, alarm_of, conformal_p_values, held_out_rows
from pvae.trained.given import given_data
from pvae.trained.scores import score_images, with_likelihood

ODDNESS = {
    "-log p(x)": lambda scores: -scores["log_p"],
    "-ELBO": lambda scores: -scores["elbo"],
    "distortion": lambda scores: scores["distortion"],
    "rate": lambda scores: scores["rate"],
}


def area(odd, own):
    """The share of pairs in which the odd image has the larger value; a tie counts as half a pair."""
    odd, own = torch.tensor(odd)[:, None], torch.tensor(own)
    return ((odd > own).double() + 0.5 * (odd == own)).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("others", help="a folder of images of another kind")
    parser.add_argument("--count", type=int, default=100, help="number of images of OTHERS (default: 100)")
    parser.add_argument("--importance-samples", type=int, default=200, help="default: 200")
    arguments = parser.parse_args()
    run, values, signs = Run.open(arguments.run), [], []
    sides: Sides = alarm_of(run, held_out_rows(run, 0.1), arguments.importance_samples).sides
    for path in (arguments.others, None):
        vae, batch, _ = with_likelihood(run, given_data(run, path).x)
        with seeded(0, torch.device("cpu")):
            if path is not None:
                batch = batch.rows(torch.randperm(len(batch))[: arguments.count])
            scores = score_images(vae, batch, [""] * len(batch), arguments.importance_samples)
        signs.append(scores[[*SIGNS]].to_numpy(dtype=np.float64))
        values.append({name: of(scores).tolist() for name, of in ODDNESS.items()})
        values[-1]["oddness"] = sides.oddness(signs[-1]).tolist()
    odd, own = values
    print(f"{len(odd['rate'])} odd images, {len(own['rate'])} test images of {run.path}")
    for name in odd:
        print(f"area under the curve by {name:10} {area(odd[name], own[name]):.3f}")
    half = len(own["oddness"]) // 2
    for what, ours in (("odd", odd["oddness"]), ("other test", own["oddness"][half:])):
        marked = conformal_p_values(own["oddness"][:half], ours) <= 0.1
        print(f"marked at 0.1: {marked.mean():.3f} of the {what} images")


if __name__ == "__main__":
    main()
