"""How well few labels teach the others: the classes that q(y | x) finds, beside simple classifiers of these labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pvae.data.dataset import few_labels
from pvae.evaluation.context import Context, Measure, said
from pvae.marginal.chunks import data_at_once
from pvae.models.features import features_seen
from pvae.models.labels import found_labels
from pvae.models.start import quietly

_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class ClassesFound(Measure):
    """The share of the known test labels that are the likeliest by q(y | x), of a training with `Config.labels`.

    Args:
        num_known: labels that the training had.
        num_found: test labels that q(y | x) finds.
        num_tested: known test labels.
        least: a lower limit of the share, which 95 of 100 samples keep (Clopper and Pearson).
        nearest: the share that a nearest neighbour of the same labelled data finds, in what the encoder sees.
        logistic: that of a logistic regression of the same data; None where they have one class.
        most_frequent: the share of the most frequent class of the test data.
    """

    title = "classes, of labels that the training did not have"

    num_known: int
    num_found: int
    num_tested: int
    least: float
    nearest: float = said("  a nearest neighbour", "share found, by the same labels alone")
    logistic: float | None = said("  a logistic regression", "the same")
    most_frequent: float = said("  the most frequent class", "share of the test data")

    @classmethod
    @quietly()
    def of(cls, context: Context) -> ClassesFound | None:
        """Return that of the test data; None without `Config.labels`, or where no test label is known."""
        from scipy.stats import binomtest
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier

        run, data, q_z = context.run, context.data, context.vae.q_z
        labels = data.test_labels
        if not run.config.labels or labels is None:
            return None
        if context.rows is not None:
            labels = labels[context.rows]
        parts = [part.x for part in context.seen.split(data_at_once(context.vae, context.seen))]
        are_found = found_labels(q_z, parts, labels)
        if are_found is None:
            return None
        is_known = labels >= 0
        test = np.concatenate([features_seen(q_z, x).numpy(force=True) for x in parts])[is_known.numpy()]
        y = labels[is_known].numpy()
        few = few_labels(data, run.config.labels, run.config.seed)
        rows = (few >= 0).nonzero().squeeze(1)
        pixels = run.preparation.x_of(data.train, rows=rows)
        (x,) = pixels.split(len(rows))
        train, known = features_seen(q_z, x).numpy(force=True), few[rows].numpy()
        logistic = None
        if len(np.unique(known)) > 1:
            logistic = float(LogisticRegression(max_iter=1000).fit(train, known).score(test, y))
        num_found = int(are_found.sum())
        limits = binomtest(num_found, len(y), alternative="greater").proportion_ci(_LEVEL)
        return cls(
            num_known=len(rows),
            num_found=num_found,
            num_tested=len(y),
            least=float(limits.low),
            nearest=float(KNeighborsClassifier(1).fit(train, known).score(test, y)),
            logistic=logistic,
            most_frequent=float(np.bincount(y).max() / len(y)),
        )

    @property
    def share(self) -> float:
        """The share of the test labels that q(y | x) finds."""
        return self.num_found / self.num_tested

    @property
    def verdict(self) -> str:
        """What was found, and what is better; a line at the end of a training."""
        found = f"{self.num_found:,} of {self.num_tested:,}, at least {self.least:.0%}"
        if self.least <= self.most_frequent:
            return f"{found}: not shown to be better than naming the most frequent class ({self.most_frequent:.0%})"
        simple = {"a nearest neighbour": self.nearest, "a logistic regression": self.logistic or 0.0}
        name = max(simple, key=lambda name: simple[name])
        more = "better"
        if self.share < simple[name]:
            more = "worse"
        return f"{found}: {more} than {name} of the same {self.num_known:,} labels ({simple[name]:.0%})"

    def lines(self) -> Iterator[str]:
        """Yield the number found, and its lines."""
        found = f"{self.num_found:,} of {self.num_tested:,}"
        yield f"{'classes found':26}{found:22}  at least {self.least:.1%}, by {_LEVEL:.0%} of samples"
        yield from super().lines()

    def warnings(self) -> Iterator[str]:
        """Yield that simpler classifiers find more."""
        if self.least <= self.most_frequent or self.share < max(self.nearest, self.logistic or 0.0):
            yield f"warning: classes found: {self.verdict}"
