"""From a configuration and its data to a `Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.config.build import (
    build_vae,
    elbo_of,
    meta_state_dict,
    preparation_of,
    sizes_of,
    start_like_burda,
)
from pvae.config.config import Config
from pvae.config.refusals import Case, refuse
from pvae.core.batch import Batch
from pvae.core.errors import (
    InputError,
    NotFiniteError,
    TrainingError,
    listed,
    naming_refused_parameters,
    total_memory,
)
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, check_domain, few_labels
from pvae.data.preparation import Pixels, TrainingData
from pvae.models.features import fit_to
from pvae.models.labels import found_labels
from pvae.models.start import start_exactly
from pvae.training.engine import Engine
from pvae.training.parallel import ALONE, SharedELBO, World
from pvae.training.schedules import schedule
from pvae.training.trainer import Trainer, advice_on_memory, steps_in_epoch
from pvae.vae import VAE

_EVALUATED = 1000  # draws of z of all data of a split together, at least
_PIXELS = 784_000  # of a batch of an evaluation times particles; with one particle, 1,000 images of 28 x 28


def build_trainer(
    config: Config,
    data: Dataset,
    device: torch.device,
    world: World = ALONE,
    vae: VAE | None = None,
    *,
    note: Callable[[str], object] = lambda line: None,
    beta: Callable[[int], float] | None = None,
    engine: str | None = None,
) -> Trainer:
    """Return a trainer of the VAE that a configuration describes, with weights that were drawn at random.

    Args:
        config: options of the training.
        data: training and test data.
        device: where to train.
        world: the processes that train together, including this one.
        vae: the VAE to train, in place of the one that `config` describes.
        note: called with a line on what is chosen.
        beta: the weight of the rate as a function of the number of the step, in place of those options of `config`.
        engine: "none", "graph" or "inductor": that of an earlier session.

    Raises:
        InputError: the batch is larger than the training set, the networks do not fit into memory, BatchNorm would be
            given a batch of one image, or options do not work together or not in several processes.
    """
    refuse(
        Case(
            config=config,
            elbo=config.elbo_class,
            has_own_beta=beta is not None,
            data=data,
            has_own_vae=vae is not None,
            num_processes=world.size,
        )
    )
    preparation = preparation_of(config, vae is not None)
    prepared = {
        split: preparation.prepared(x, split, is_redrawn=split == "train").to(device)
        for split, x in data.splits.items()
    }
    if vae is None:
        vae = _new_vae(config, data, prepared["train"][: data.num_sample])
    vae = vae.to(device)
    _check_values(vae, data, prepared)
    labels = {split: y.to(device) for split, y in _labels_of(config, data, vae, note).items()}
    train = TrainingData(prepared.pop("train"), preparation, labels.get("train"), data.num_sample)
    splits = {split: Batch(Pixels(x, preparation), labels.get(split)) for split, x in prepared.items()}

    known = 1.0
    if config.labels:
        known = (labels["train"] >= 0).float().mean().item()
    elbo = elbo_of(config, known, data.num_train)
    reduce = None
    if world.size > 1:
        elbo = SharedELBO(elbo, world)
        reduce = world.sum_
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(parameters, lr=config.lr, eps=config.adam_eps, fused=True)

    def svi(name: str) -> CompiledSVI:
        update = AdamUpdate(adam, dict(vae.named_parameters()), config.clip_norm, reduce)
        return CompiledSVI(vae.model, vae.guide, update, elbo, name, config.batch_size, train.batch)

    def accuracy(split: str) -> dict[str, float]:
        parts = (batch.x for batch in splits[split].split(evaluation_size))
        found = found_labels(vae.q_z, parts, data.labels.get(split))
        if found is None:
            return {}
        return {"accuracy": found.double().mean().item()}

    num_steps = steps_in_epoch(len(train), config.batch_size, config.passes)
    num_planned = config.epochs * num_steps
    if config.patience:  # after fewer epochs than all, as a rule
        num_planned = min(num_planned, 2 * config.patience * num_steps)
    evaluation_size = max(1, _PIXELS // max(784, prepared["test"][0].numel() * config.particles))
    more: dict[str, Any] = {}
    if config.labels:
        more["more"] = accuracy
    if config.initialization == "exact":
        # The best epoch is chosen by few data; the figures of published systems are from one draw of z.
        more["least_draws"] = _EVALUATED
    return Trainer(
        vae=vae,
        elbo=elbo,
        engine=Engine(svi, config, num_planned, engine, device, world, note),
        optimizer=adam,
        data=train,
        splits=splits,
        batch_size=config.batch_size,
        evaluation_size=evaluation_size,
        passes=config.passes,
        schedule=schedule(config, num_steps, beta),
        seed=config.seed,
        device=device,
        world=world,
        **more,
    )


def check_memory(config: Config, data: Dataset) -> None:
    """Raise an `InputError` if memory cannot hold what is trained: the system could kill the process."""
    state = meta_state_dict(config, data.datum_shape, len(data.label_names))
    if 4 * sum(one.nbytes for one in state.values()) > total_memory():  # with gradients and moments
        raise InputError(f"networks of {sizes_of(config)} do not fit into memory: give smaller ones")


def start_near(trainer: Trainer, config: Config, note: Callable[[str], object]) -> None:
    """Let a training start at a model that is known exactly, where there is one, and say at which.

    Args:
        trainer: of the VAE that the configuration describes, at random weights.
        config: the configuration.
        note: called with a line on it.
    """
    if config.initialization == "exact":
        train = trainer.data.sample
        valid = train
        if "valid" in trainer.splits:
            valid = trainer.splits["valid"].x.images
        note(start_exactly(trainer.vae, train, valid))
    elif config.system == "values" and not config.has_exact_start:
        note("the weights start at random: no model in closed form is known for these options")


def check_first_loss(trainer: Trainer) -> None:
    """Compute the loss of two data, to find out before any file is written whether training is possible.

    Args:
        trainer: at its start.

    Raises:
        InputError: the ELBO cannot be computed for these distributions or data, or is not finite.
        TrainingError: memory does not suffice.
    """
    vae = trainer.vae.eval()
    (few,) = trainer.splits["test"].rows(slice(2)).split(2)
    try:
        with seeded(trainer.seed, trainer.device), advice_on_memory("the first loss"), naming_refused_parameters():
            trainer.elbo.evaluate(vae.model, vae.guide, *few).check_finite()
    except (InputError, TrainingError):
        raise
    except (ValueError, RuntimeError, TypeError, NotFiniteError) as error:
        first_line, _, _ = str(error).partition("\n")
        if "support (Boolean" in first_line:
            first_line = "values of a Bernoulli are 0 or 1: give --binarize dynamic"
        raise InputError(
            f"{_failing_part(vae, few)} cannot be evaluated on data of shape {tuple(few.x.shape[1:])} with pixels "
            f"{trainer.data.preparation.kind}, on the device {trainer.device}: {first_line}"
        ) from error


def _failing_part(vae: VAE, few: Batch) -> str:
    """Return which distribution of a VAE cannot be computed, and of what shape its argument is; or "the VAE"."""
    part = "p(z)"
    try:
        vae.prior(few.y)
        part = f"q(z | x), given x of shape {tuple(few.x.shape)},"
        z = vae.posterior(*few).sample()
        part = f"p(x | z), given z of shape {tuple(z.shape)},"
        vae.likelihood(z, few.y)
    except Exception:  # of any type: it is the user's code
        return part
    return "the VAE"


def _new_vae(config: Config, data: Dataset, x: Tensor) -> VAE:
    """Return the VAE that the configuration describes, at random weights, once its modules have seen x, (N, *D)."""
    check_memory(config, data)
    vae = build_vae(config, data.datum_shape, len(data.label_names)).to(x.device)
    if config.initialization == "burda":
        start_like_burda(vae, x)
    if not data.is_images:
        fit_to(vae, x)
    return vae


def _check_values(vae: VAE, data: Dataset, prepared: Mapping[str, Tensor]) -> None:
    """Raise an `InputError` for values of x that the likelihood cannot give."""
    if data.is_images:
        return
    check = getattr(vae.p_x, "check", None)
    for split, values in prepared.items():
        check_domain(check, values, data.name, data.names.get(split, split), data.columns)


def _labels_of(config: Config, data: Dataset, vae: VAE, note: Callable[[str], object]) -> dict[str, Tensor]:
    """Return the labels that model and guide take, by split; {} if they take none."""
    if not vae.takes_labels:
        if config.takes_labels:
            raise InputError("no module of your VAE takes labels: leave --labels and --condition out")
        return {}
    if config.labels:
        few = few_labels(data, config.labels, config.seed)
        number = int((few >= 0).sum())
        if number < config.labels:
            note(f"labels of {number:,} training data are known and used")
        return {"train": few}
    lacking = data.splits.keys() - data.labels.keys()
    if lacking:
        raise InputError(f"the VAE needs labels, and the {listed(sorted(lacking))} data of {data.name} have none")
    if any(bool((labels < 0).any()) for labels in data.labels.values() if labels.dtype == torch.int64):
        advice = "leave these data out, or give --labels N, which uses all x and N labels"
        raise InputError(f"some labels of {data.name} are not known, and --condition needs all: {advice}")
    return dict(data.labels)
