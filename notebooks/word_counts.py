"""Compare a VAE of word counts with latent Dirichlet allocation: python notebooks/word_counts.py.

The corpus is the docstrings of SciPy's public functions, which are installed: their 1,050 most frequent words, without
those that scikit-learn calls stop words. A tenth of the documents are held out. Each of their words is put at random
into one of two halves: a model sees the first one, and predicts the words of the second. It prints the perplexity, the
exponential of the mean of -log p(word), of the models and of the frequencies of the words in training documents.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import scipy
import torch
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_extraction.text import CountVectorizer

import pvae


def documents() -> list[str]:
    """Return the docstrings of the public functions and classes of SciPy's modules, each once, of 50 words or more."""
    found: dict[str, None] = {}
    for module in pkgutil.iter_modules(scipy.__path__):
        if module.ispkg and not module.name.startswith("_"):
            package = importlib.import_module(f"scipy.{module.name}")
            for name in getattr(package, "__all__", ()):
                text = getattr(package, name, None).__doc__ or ""
                if len(text.split()) >= 50:
                    found[text] = None
    return list(found)


def perplexity(probs: np.ndarray, counts: np.ndarray) -> float:
    """Return exp of the mean of -log p over the words of counts (N, W), given probabilities (N, W) that sum to 1."""
    return float(np.exp(-(counts * np.log(probs)).sum() / counts.sum()))


def main() -> None:
    """Train both, and print their perplexities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topics", type=int, default=50, help="topics, and latents")
    parser.add_argument("--epochs", type=int, default=200, help="at most")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    given = parser.parse_args()
    texts = documents()
    np.random.RandomState(0).shuffle(texts)
    num_test = len(texts) // 10
    words = CountVectorizer(max_features=1050, token_pattern=r"[a-z]{3,}", stop_words="english", min_df=5)
    counts = words.fit_transform(texts).toarray()
    train, test = counts[num_test:], counts[:num_test]
    seen = np.random.RandomState(1).binomial(test, 0.5)
    print(f"{len(train):,} training and {num_test} test documents, {counts.shape[1]:,} words, {counts.sum():,} in all")

    allocation = LatentDirichletAllocation(given.topics, max_iter=100, random_state=0).fit(train)
    topics = allocation.components_ / allocation.components_.sum(1, keepdims=True)
    by_allocation = allocation.transform(seen) @ topics

    found = {"latent Dirichlet allocation": by_allocation}
    data = pvae.Dataset("docstrings", torch.from_numpy(train), torch.from_numpy(test))
    for likelihood in ("poisson", "negative-binomial"):
        options = {"likelihood": likelihood, "hidden": (200,), "epochs": given.epochs, "patience": 30}
        config = pvae.values_config(data, latent_dim=given.topics, **options)
        run = pvae.fit(config, data=data, out=None if given.out is None else given.out / likelihood)
        with torch.no_grad():
            z = run.vae().posterior(torch.from_numpy(seen).float()).sample((100,))
            rates = run.vae().likelihood(z).mean
        probs = (rates / rates.sum(-1, keepdim=True)).mean(0).double()
        found[f"VAE, {likelihood}"] = (probs / probs.sum(1, keepdim=True)).numpy()

    frequencies = (train.sum(0) + 1) / (train.sum() + train.shape[1])
    found["frequencies"] = np.broadcast_to(frequencies, test.shape)
    for name, probs in found.items():
        print(f"{name}: perplexity {perplexity(probs, test - seen):.1f}", flush=True)


if __name__ == "__main__":
    main()
