"""The registry of ELBOs: their names and classes. It imports none of them, so that `--help` does not import torch."""

from __future__ import annotations

__all__ = ["ELBOS"]

ELBOS = {  # each class says which options it takes
    "trace": "pvae.elbos.trace:TraceELBO",
    "analytic": "pvae.elbos.trace:AnalyticELBO",
    "handwritten": "pvae.elbos.handwritten:HandwrittenELBO",
    "stl": "pvae.elbos.gradients:StickingTheLanding",
    "score": "pvae.elbos.gradients:ScoreELBO",
    "score-loo": "pvae.elbos.gradients:LeaveOneOutScoreELBO",
    "iwae": "pvae.elbos.importance:IWAE",
    "dreg": "pvae.elbos.gradients:DReG",
    "renyi": "pvae.elbos.importance:RenyiELBO",
    "ciwae": "pvae.elbos.importance:CIWAE",
    "miwae": "pvae.elbos.importance:MIWAE",
    "piwae": "pvae.elbos.gradients:PIWAE",
    "arms": "pvae.elbos.discrete:ARMS",
    "disarm": "pvae.elbos.discrete:DisARM",
    "disarm-categories": "pvae.elbos.discrete:CategoricalDisARM",
    "vimco": "pvae.elbos.discrete:VIMCO",
    "gumbel": "pvae.elbos.discrete:GumbelSoftmax",
    "straight-through": "pvae.elbos.discrete:StraightThrough",
    "enumerate": "pvae.elbos.enumerated:EnumeratedELBO",
}
