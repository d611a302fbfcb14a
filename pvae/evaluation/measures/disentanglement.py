"""`Disentanglement`: how well single latents stand for single known factors of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.data.dataset import random_subset
from pvae.evaluation.context import Context, Measure, Request, said
from pvae.trained.codes import codes_of

_MOST = 5000  # data of a split that are taken
_BINS = 20  # of the codes of a latent
_TREES = 50


@dataclass(frozen=True, kw_only=True)
class Disentanglement(Measure):
    """How well single latents stand for single factors, of data whose labels are several factors.

    The labels are attributes, bool (N, A), or whole numbers, int64 (N, F), at least two of which vary; classes, (N,),
    are one factor. The codes are means of q(z | x). All scores are between 0 and 1, 1 at best, and are means over
    factors. They are high for a VAE without a use too, if its latents happen to be the factors, and say nothing of
    factors that have no label; factors that depend on each other lower them.

    Args:
        num_images: number of test data, at most 5,000; the predictors are fitted to as many training data.
        factors: names of the factors that vary.
        mig: the mutual information gap; see `mutual_information_gap`.
        sap: the separated attribute predictability; see `separated_predictability`.
        disentanglement: how far each latent is of use for one factor alone; see `dci_of`.
        completeness: how far each factor needs one latent alone.
        informativeness: the share of the test data whose factor is predicted from all latents.
    """

    title = "disentanglement of known factors"
    request = Request(
        "disentanglement",
        "how well single latents stand for single labels, of data with attributes: MIG, SAP and DCI",
    )

    num_images: int = said("test data", "and at most as many training data, to which predictors are fitted")
    factors: tuple[str, ...] = said("factors")
    mig: float = said("mutual information gap", "of the two latents that say most about a factor, in its entropies")
    sap: float = said("SAP", "gap of the R^2 of the two latents that predict a factor best")
    disentanglement: float = said("DCI: disentanglement", "each latent is of use for one factor")
    completeness: float = said("  completeness", "each factor needs one latent")
    informativeness: float = said("  informativeness", "share of factors that are predicted by all latents")

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the labels are not several factors, or the codes are given them."""
        if context.run.config.takes_labels:
            raise InputError("--disentanglement of a VAE given labels: its codes need not say what the labels say")
        labels = context.data.test_labels
        if labels is None or labels.dim() != 2 or sum(_varies(labels)) < 2:
            raise InputError("--disentanglement needs labels of at least two factors that vary, as attributes are")

    @classmethod
    def of(cls, context: Context) -> Disentanglement:
        """Return the scores of the codes of test data."""
        (train, train_factors), (test, factors) = (_labelled(context, split) for split in ("train", "test"))
        varies = torch.tensor([of_train and other for of_train, other in zip(_varies(train_factors), _varies(factors))])
        train_factors = train_factors[:, varies]
        factors = factors[:, varies]
        importance, accuracy = importance_of(train, train_factors, test, factors)
        disentanglement, completeness = dci_of(importance)
        names = zip(context.data.label_names, varies.tolist())
        return cls(
            num_images=len(test),
            factors=tuple(name for name, is_taken in names if is_taken),
            mig=mutual_information_gap(test, factors).mean().item(),
            sap=separated_predictability(test, factors).mean().item(),
            disentanglement=disentanglement,
            completeness=completeness,
            informativeness=accuracy.mean().item(),
        )


def _labelled(context: Context, split: str) -> tuple[Tensor, Tensor]:
    """Return codes and factors of random data of a split."""
    labels = context.data.labels[split]
    rows = random_subset(len(labels), _MOST, context.seed)
    return codes_of(context.run, split)[rows].double().cpu(), labels[rows].long()


def _varies(factors: Tensor) -> list[bool]:
    return (factors != factors[:1]).any(0).tolist()


def _gap(scores: Tensor) -> Tensor:
    """Return the difference of the two largest scores of latents (L, F) for each factor, the second 0 of one latent."""
    padded = torch.cat([scores, scores.new_zeros(1, scores.shape[1])])
    first, second = padded.topk(2, 0).values
    return first - second


def mutual_information_gap(codes: Tensor, factors: Tensor, num_bins: int = _BINS) -> Tensor:
    """Return the mutual information gap of each factor, between 0 and 1.

        MIG_k = (I(z_1; v_k) - I(z_2; v_k)) / H(v_k)

    z_1 and z_2 are the two latents of the largest mutual information with the factor v_k. The mutual information is
    that of the frequencies of the factor's values and of bins of the codes that hold about equal numbers of data. It is
    biased upward, by about (num_bins - 1) (values - 1) / (2 N) nats for each latent, which cancels in the gap unless it
    selects the second latent.

    Args:
        codes: means of q(z | x), (N, L).
        factors: whole numbers, int64 (N, F), each of at least two values.
        num_bins: number of bins.

    Returns:
        float64 (F,), without a unit.

    Reference:
        Chen et al., arXiv:1802.04942, equation 6, there with q(z | x) in place of bins.
    """
    from sklearn.metrics import mutual_info_score  # slow to import

    edges = codes.double().quantile(torch.linspace(0, 1, num_bins + 1).double()[1:-1], 0).T.contiguous()
    bins = torch.searchsorted(edges, codes.double().T.contiguous())  # (L, N)
    scores = [[mutual_info_score(own, factor) for factor in factors.T] for own in bins]
    entropies = [mutual_info_score(factor, factor) for factor in factors.T]
    return _gap(torch.tensor(scores, dtype=torch.float64)) / torch.tensor(entropies, dtype=torch.float64)


def separated_predictability(codes: Tensor, factors: Tensor) -> Tensor:
    """Return the separated attribute predictability of each factor, between 0 and 1.

        SAP_k = R^2(z_1, v_k) - R^2(z_2, v_k),    R^2(z, v) = Cov(z, v)^2 / (Var(z) Var(v))

    z_1 and z_2 are the two latents whose linear regressions predict the factor best. The values of a factor are taken
    as numbers: one of several classes without an order is to be given as attributes. It sees linear relations alone.

    Args:
        codes: (N, L); a latent that is constant predicts nothing.
        factors: whole numbers, int64 (N, F), each of at least two values.

    Returns:
        float64 (F,), without a unit.

    Reference:
        Kumar et al., arXiv:1711.00848, on the SAP score, there by R^2 for continuous factors alone.
    """
    z = codes.double() - codes.double().mean(0)
    v = factors.double() - factors.double().mean(0)
    norms = z.square().sum(0)[:, None] * v.square().sum(0)
    return _gap(((z.T @ v).square() / norms).nan_to_num(0.0))


def importance_of(codes: Tensor, factors: Tensor, test_codes: Tensor, test_factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return how important each latent is for the prediction of each factor by a random forest.

    Args:
        codes: to which the forests are fitted, (N, L).
        factors: their factors, int64 (N, F).
        test_codes: other codes, (M, L).
        test_factors: their factors, (M, F).

    Returns:
        The importances, float64 (L, F), whose sum over latents is 1 for each factor; and the share of the other codes
        whose factor is predicted, (F,).
    """
    from sklearn.ensemble import RandomForestClassifier  # slow to import

    importances = list[Tensor]()
    accuracies = list[float]()
    for factor, test in zip(factors.T, test_factors.T):
        forest = RandomForestClassifier(_TREES, max_features=None, min_samples_leaf=5, random_state=0)
        forest.fit(codes.numpy(), factor.numpy())
        importances.append(torch.from_numpy(forest.feature_importances_))
        accuracies.append(float(forest.score(test_codes.numpy(), test.numpy())))
    return torch.stack(importances, 1), torch.tensor(accuracies, dtype=torch.float64)


def dci_of(importance: Tensor) -> tuple[float, float]:
    """Return disentanglement and completeness of the importances of latents for factors.

        D = sum_l w_l (1 - H(P_l) / log F),    P_lk = R_lk / sum_k R_lk,    w_l = sum_k R_lk / sum R
        C = sum_k w_k (1 - H(Q_k) / log L),    Q_lk = R_lk / sum_l R_lk,    w_k = sum_l R_lk / sum R

    A latent without importance has no weight. Of one latent or one factor the other score is 1.

    Args:
        importance: R, (L, F), at least 0.

    Reference:
        Eastwood and Williams, A framework for the quantitative evaluation of disentangled representations, ICLR 2018.
    """
    return _concentration(importance), _concentration(importance.T)


def _concentration(importance: Tensor) -> float:
    """Return how far each row of importances lies in one column, a mean weighted by the sums of rows."""
    sums = importance.sum(1, keepdim=True)
    entropies = torch.special.entr((importance / sums).nan_to_num(0.0)).sum(1)
    scores = 1 - entropies / math.log(max(2, importance.shape[1]))
    return (scores * sums[:, 0] / sums.sum()).sum().item()
