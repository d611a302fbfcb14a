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
    "arms": "pvae.elbos.binary:ARMS",
    "disarm": "pvae.elbos.binary:DisARM",
    "vimco": "pvae.elbos.binary:VIMCO",
    "gumbel": "pvae.elbos.binary:GumbelSoftmax",
    "straight-through": "pvae.elbos.binary:StraightThrough",
    "enumerate": "pvae.elbos.enumerated:EnumeratedELBO",
}
