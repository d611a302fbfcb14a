"""Fill in half of the values of a table by importance sampling: python notebooks/breast_cancer.py.

The data are scikit-learn's breast cancer, 569 rows of 30 values, standardised, of which half are removed at random. The
model is that of Mattei and Frellsen (arXiv:1812.02633): Student t likelihood, two tanh layers of 128, a latent of 10,
trained by IWAE of 20 particles on all rows; each missing value is filled in by its mean given the others, from 1,000
weighted draws. It prints the mean squared error of the missing values, beside that of the mean of each column and of
scikit-learn's IterativeImputer on the same table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

import pvae
from pvae.data.preparation import Pixels
from pvae.trained.imputation import impute


def main() -> None:
    """Fill in one table, or several with other values removed, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--tables", type=int, default=3, help="tables with other values removed")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    given = parser.parse_args()
    values = load_breast_cancer().data
    values = (values - values.mean(0)) / values.std(0)
    errors: dict[str, list[float]] = {"mean of the column": [], "IterativeImputer": [], "VAE": []}
    for table in range(given.tables):
        is_missing = np.random.RandomState(table).rand(*values.shape) < 0.5
        seen = np.where(is_missing, np.nan, values)
        x = torch.from_numpy(seen).float()
        data = pvae.Dataset("breast cancer", x, x[:100])  # all rows are trained on, as nothing is known of the missing
        config = pvae.values_config(
            data, likelihood="student-t", hidden=(128, 128), activation="tanh", latent_dim=10, elbo="iwae",
            particles=20, batch_size=64, epochs=given.epochs, seed=table, valid=0.0, patience=0,
        )  # fmt: skip
        run = pvae.fit(config, data=data, out=None if given.out is None else given.out / f"table-{table}")
        torch.manual_seed(table)
        filled = impute(run.vae(), Pixels(x), 1000).filled.numpy()
        others = {
            "mean of the column": np.where(is_missing, np.nanmean(seen, 0), seen),
            "IterativeImputer": IterativeImputer(random_state=table, max_iter=30).fit_transform(seen),
            "VAE": filled,
        }
        for name, one in others.items():
            errors[name].append(float(np.square(one - values)[is_missing].mean()))
            print(f"table {table}: {name}: {errors[name][-1]:.3f}", flush=True)
    for name, of_tables in errors.items():
        spread = np.std(of_tables, ddof=1) if len(of_tables) > 1 else float("nan")
        print(f"{name}: {np.mean(of_tables):.3f} +- {spread / len(of_tables) ** 0.5:.3f} over {len(of_tables)} tables")


if __name__ == "__main__":
    main()
