"""The measures of `pvae evaluate`, by their keys in `evaluation.json`, in the order of its text."""

from __future__ import annotations

from pvae.evaluation.context import Measure
from pvae.evaluation.measures.baselines import Baselines, ColumnDistortions, Floor
from pvae.evaluation.measures.disentanglement import Disentanglement
from pvae.evaluation.measures.elbo import ElboParts, RateDecomposition
from pvae.evaluation.measures.files import LosslessFiles
from pvae.evaluation.measures.labels import ClassesFound
from pvae.evaluation.measures.latents import CodesUsed, LatentsUsed
from pvae.evaluation.measures.log_likelihood import Conditional, LogLikelihood
from pvae.evaluation.measures.posterior import Coverage, Gaps, TrainGaps
from pvae.evaluation.measures.rules import Rules
from pvae.evaluation.measures.samples import SampleQuality

MEASURES: dict[str, type[Measure]] = {
    "elbo_parts": ElboParts,
    "classes": ClassesFound,
    "floor": Floor,
    "baselines": Baselines,
    "files": LosslessFiles,
    "latents": LatentsUsed,
    "codes": CodesUsed,
    "columns": ColumnDistortions,
    "samples": SampleQuality,
    "rules": Rules,
    "rate_decomposition": RateDecomposition,
    "log_likelihood": LogLikelihood,
    "gaps": Gaps,
    "train_gaps": TrainGaps,
    "coverage": Coverage,
    "conditional": Conditional,
    "disentanglement": Disentanglement,
}
