"""From a configuration and its data to a `Trainer`, with its schedule and its start."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable

from pvae.compile.compiled_svi import AdamUpdate, CompiledSVI
from pvae.compile.graph import missing
from pvae.config.build import check_of_data, elbo_of, labels_for, preparation_of, vae_for
from pvae.config.config import Config
from pvae.config.refusals import refuse
from pvae.core.batch import Batch
from pvae.core.errors import (
    InputError,
    NotFiniteError,
    TrainingError,
    naming_refused_parameters,
)
from pvae.core.optimizers import Adam
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, check_domain
from pvae.data.preparation import Pixels, TrainingData
from pvae.models.start import set_exact_start
from pvae.training.parallel import SharedELBO
from pvae.training.trainer import SILENT, Engine, Session, Trainer, advice_on_memory
from pvae.vae import VAE

_LEAST_TO_COMPILE = 10_000  # steps; compiling takes as long as it saves in 3,000 (convolutions) to 7,000 (a small MLP)

_LAST = 0.02  # the last learning rate of "cosine", as a fraction of the first
_STEPS = (0.4, 0.7)  # fractions of all steps after which "steps" lowers the learning rate
_STAGE_ENDS = list(itertools.accumulate(3**stage for stage in range(8)))  # passes: 1, 4, 13, ..., 3280


def build_trainer(
    config: Config,
    data: Dataset,
    session: Session = SILENT,
    vae: VAE | None = None,
    *,
    beta: Callable[[int], float] | None = None,
    engine: str | None = None,
) -> Trainer:
    """Return a trainer of the VAE that a configuration describes, with weights that were drawn at random.

    Args:
        config: options of the training.
        data: training and test data.
        session: where to train.
        vae: the VAE to train, in place of the one that `config` describes.
        beta: the weight of the rate as a function of the number of the step, in place of those options of `config`.
        engine: "none", "graph" or "inductor": that of an earlier session.

    Raises:
        InputError: the batch is larger than the training set, BatchNorm would be given a batch of one image, or options
            do not work together or not in several processes.
        TrainingError: the networks do not fit into memory.
    """
    device, world = session.device, session.world
    has_own_vae = vae is not None
    refuse(
        config,
        has_elbo=True,
        has_own_beta=beta is not None,
        has_own_vae=has_own_vae,
        data=data,
        num_processes=world.size,
    )
    preparation = preparation_of(config, has_own_vae)
    prepared = {split: preparation.prepared(x, split, split == "train").to(device) for split, x in data.splits.items()}
    if vae is None:
        with advice_on_memory("the first weights"):
            vae = vae_for(config, data, prepared["train"][: data.num_sample])
    vae = vae.to(device)
    labels = {split: y.to(device) for split, y in labels_for(config, data, vae, session.note).items()}
    train = TrainingData(prepared.pop("train"), preparation, labels.get("train"), data.num_sample)
    splits = {split: Batch(Pixels(x, preparation), labels.get(split)) for split, x in prepared.items()}
    if not data.is_images:
        check = check_of_data(vae, splits["test"], config.missing)
        check_domain(check, {"train": train.prepared, **prepared}, data)
    elbo = elbo_of(config, labels.get("train"), data.num_train, has_own_vae, vae)
    reduce = None
    if world.size > 1:
        elbo = SharedELBO(elbo, world)
        reduce = world.sum_
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    adam = Adam(parameters, lr=config.lr, eps=config.adam_eps, fused=True)

    def svi(name: str) -> CompiledSVI:
        update = AdamUpdate(adam, config.clip_norm, reduce)
        return CompiledSVI(vae.model, vae.guide, update, elbo, name, config.batch_size, train.batch)

    num_steps = config.steps_in_epoch(len(train))
    name = engine_name(config, num_steps, session, engine)
    return Trainer(
        config=config,
        vae=vae,
        elbo=elbo,
        engine=Engine(svi, name, config.batch_size, config.compile == "auto", session),
        optimizer=adam,
        data=train,
        splits=splits,
        schedule=schedule(config, num_steps, beta),
        session=session,
        classes=data.labels if config.labels else {},
    )


def engine_name(config: Config, steps_per_epoch: int, session: Session, earlier: str | None = None) -> str:
    """Return how steps are computed: "none", "graph" or "inductor".

    With `config.compile` "auto", steps on a CPU are compiled where the training is expected to have 10,000 or more, and
    otherwise recorded; in several processes they are not compiled.

    Args:
        config: options of the training.
        steps_per_epoch: number of steps in an epoch.
        session: where they are computed; it is told what is chosen.
        earlier: the engine of an earlier session, which "auto" goes on with.
    """
    if config.compile != "auto":
        return config.compile
    epochs = config.epochs
    if config.patience:  # it ends after fewer epochs, as a rule
        epochs = min(epochs, 2 * config.patience)
    name = earlier or "graph"
    if earlier is None and epochs * steps_per_epoch >= _LEAST_TO_COMPILE and session.world.size == 1:
        name = "inductor"
    if name == "inductor" and (session.device.type != "cpu" or missing()):
        name = "graph"
    if name == "inductor" and earlier is None:
        session.note("the step is compiled first, which takes some seconds unless it was before")
    return name


def schedule(
    config: Config, steps_per_epoch: int, beta: Callable[[int], float] | None = None
) -> Callable[[int], tuple[float, float]]:
    """Return the function from the number of a step, counted from 0, to its learning rate and its weight of the rate.

        beta min(1, step / steps of the warm-up)

    is this weight; in the first step of a warm-up it is exactly 0.

    Args:
        config: options of the training.
        steps_per_epoch: number of steps in an epoch.
        beta: the weight of the rate, in place of those options of `config`.
    """
    warm_up = config.warm_up * steps_per_epoch

    def values(step: int) -> tuple[float, float]:
        weight = config.beta
        if beta is not None:
            weight = float(beta(step))
        elif warm_up:
            weight *= min(1.0, step / warm_up)
        return learning_rate(config, step, steps_per_epoch), weight

    return values


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0.

        constant    lr
        cosine      lr (0.02 + 0.98 (1 + cos(pi step / steps)) / 2)
        steps       lr 10^(-i/5) after i of 2/5 and 7/10 of all steps
        paper       lr 10^(-i/7) in the i-th of 8 stages of 3^i passes, scaled to the epochs of `config`

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, section 5 ("paper"); the script behind pythae's table of
        reproductions ("steps": after 200 and 350 of its 500 passes).
    """
    if config.schedule == "constant":
        return config.lr
    done = step / (config.epochs * steps_per_epoch)
    if config.schedule == "cosine":
        return config.lr * (_LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    if config.schedule == "steps":
        return config.lr * 10 ** (-bisect.bisect_right(_STEPS, done) / 5)
    stage = min(bisect.bisect_right(_STAGE_ENDS, done * _STAGE_ENDS[-1]), 7)
    return config.lr * 10 ** (-stage / 7)


def start_near(trainer: Trainer) -> None:
    """Let a training start at a model that is known exactly, where there is one, and tell the session at which.

    Args:
        trainer: of the VAE that its configuration describes, at random weights.
    """
    config = trainer.config
    if config.initialization == "exact":
        train = trainer.data.sample
        valid = train
        if "valid" in trainer.splits:
            valid = trainer.splits["valid"].x.images
        name = set_exact_start(trainer.vae, train, valid)
        trainer.session.note(f"the training starts at {name}")
    elif config.system == "values" and not config.has_exact_start:
        trainer.session.note("the weights start at random: no model in closed form is known for these options")


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
        with (
            seeded(trainer.config.seed, trainer.device),
            advice_on_memory("the first loss"),
            naming_refused_parameters(),
        ):
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
