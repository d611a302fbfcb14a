"""The command `python -m pvae.train`: parse the arguments, train, and print what to do next."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser, add_places, add_vae, integer, integers, nonempty_path
from pvae.cli.draw import draw_side_by_side
from pvae.cli.own_code import own_vae
from pvae.config.config import OPTIONS, Config, help_text
from pvae.config.presets import SYSTEMS, get_system, list_systems, read_toml
from pvae.core.errors import InputError, TrainingError, check_name
from pvae.core.options import Option, options_of
from pvae.core.terminal import is_first_process, print_line
from pvae.data.files import own_path
from pvae.tables.reading import Reading

if TYPE_CHECKING:
    from pvae.data.dataset import Dataset
    from pvae.runs.run import Run
    from pvae.vae import VAE


_EPOCHS_OF_LABELS = 60  # after fewer, the classifier finds hardly more than it does by the labels alone

_FIRST = (  # options of the first group of --help
    "system", "dataset", "label_column", "latent_dim", "elbo", "beta", "epochs", "batch_size", "lr", "seed",
)  # fmt: skip

_EXAMPLES = """\
examples:
  python -m pvae.train --dataset table:FILE.csv
      a table of your own; the options that are chosen for it are printed
  python -m pvae.train --dataset folder:PATH --latent-dim 2
      images of your own, whose codes are a map
  python -m pvae.train --elbo analytic
      the Deep Bayes VAE on MNIST with the closed-form KL; on 5,000 digits if MNIST is not available
  python -m pvae.train --binarize dynamic --particles 5 --latent-dim 20 --hidden 400
      another VAE on binary pixels, where the figure printed is a true lower bound on log p(x)
  python -m pvae.train --seeds 0:8 --out many
      the seeds 0 to 7, and a table of means and errors; if it is interrupted, the same command resumes it
  python -m pvae.train --beta 0.25,0.5,1,2,4 --seeds 0:3 --out sweep
      three seeds of five betas, their table, and the rate-distortion curve

Figures are nats per datum: elbo = -(distortion + rate), higher is better. pvae.load("RUN") gives the VAE in Python.
notebooks/run-folder.md describes the run folder, processes.md several seeds and processes, values.md other data."""


def _work(arguments: argparse.Namespace) -> None:
    import torch

    options = vars(arguments)
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    if options["seeds"] is not None or not isinstance(options.get("beta", 0.0), float):
        _train_many(options)
        return
    run = _resume(options) if options["resume"] else _fit(options)
    if is_first_process():
        print_line(run.path if options["quiet"] else _what_is_next(run, options["vae"]))


class _ListSystems(argparse.Action):
    """The argument --list-systems, which like --help prints and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print_line(list_systems())
        parser.exit()


def train_parser() -> Parser:
    """Return the parser of `python -m pvae.train`; its result has only those options of `Config` that were given."""
    description = "Train a variational autoencoder, written as Pyro functions, by stochastic variational inference."
    description += " Defaults are those of the system; here of deep-bayes."
    parser = Parser("pvae train", description, _EXAMPLES)
    parser.prog = "python -m pvae.train"
    parser.usage = "python -m pvae.train [options]"
    parser.add_argument("--list-systems", nargs=0, action=_ListSystems, help="list the published systems and exit")
    _add_config_options(parser)
    group = parser.add_argument_group("device, folders and output")
    add_places(group, "run folder, new or empty (default: runs/<time>-<system>-<elbo>)")
    add = group.add_argument
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto; on --resume, as before)")
    threads = (
        "number of threads (default: that of torch; of tables and other values always 1); another number may change "
        "last digits"
    )
    add("--threads", metavar="N", type=integer(1, 1000), help=threads)
    start = "start a new run from the weights of RUN, where names and shapes fit; options and data may differ"
    add("--from", metavar="RUN", type=nonempty_path, help=start)
    add_vae(group, "a VAE of your own")
    add("--resume", metavar="RUN", type=nonempty_path, help="resume a run up to --epochs, with its own other options")
    seeds = (
        "0:8 (0 to 7) or 0,3,5: a run for each, at once where that is faster, into --out DIR/seed-S (default: "
        "runs/<system>-<elbo>-seeds, or -sweep with several of --beta), and a table of means and errors; the same "
        "command again resumes them"
    )
    add("--seeds", metavar="LIST", type=integers(0, 10**9), help=seeds)
    add("--quiet", action="store_true", help="print the run folder and no progress")
    return parser


def _betas(text: str) -> float | Sequence[float]:
    """Return the beta of a text, or the list of several."""
    try:
        values = sorted({*map(float, text.split(","))})
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 1 or 0.25,1,4, not {text}") from None
    return values if "," in text else values[0]


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    first = parser.add_argument_group("what most trainings set")
    group = parser.add_argument_group("what is trained")
    own = "a system of your own: options of these three groups, as TOML"
    group.add_argument("--config", metavar="FILE", type=nonempty_path, help=own)
    for name, option in OPTIONS.items():
        if name == "elbo":
            group = parser.add_argument_group("how it is trained")
        if option.has_flag:
            (first if name in _FIRST else group).add_argument(option.flag, **_argument(option))


def _argument(option: Option) -> dict[str, Any]:
    """Return how argparse takes an option."""
    how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text(option.name).replace("%", "%%")}
    if option.name == "system":
        how["help"] = f"published system to start from: {', '.join(SYSTEMS)}"
    if isinstance(option.default, bool):
        return {**how, "action": "store_true"}
    how["type"] = type(option.default)
    if isinstance(option.default, tuple):
        how["type"] = int
        how["nargs"] = "+" if option.default else "*"
    how["metavar"] = {int: "N", float: "X"}.get(how["type"], "NAME")
    if option.name == "beta":
        how["type"] = _betas
        how["metavar"] = "X[,X...]"
        how["help"] += "; several, 0.25,1,4, are a sweep, with a run for each and the rate-distortion curve"
    return how


def _own_vae(place: str | None, datum_shape: tuple[int, ...], chosen: Mapping[str, Any]) -> Callable[..., VAE] | None:
    """Return the function of a configuration that --vae names, with its `place`, which the run keeps."""
    if place is None:
        return None
    function: Any = functools.partial(own_vae, place, datum_shape=datum_shape, chosen=chosen)
    function.place = place
    return function


def _given(config: Config, data: Dataset | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `fit` and `fit_many` beside configurations: the data, which are read, and others."""
    from pvae.config.choices import load_for

    if data is None:
        data = load_for(config, options["data_dir"], options["offline"])
    return {
        "data": data,
        "vae": _own_vae(options["vae"], data.datum_shape, _chosen(options)),
        "out": options["out"],
        "start": options["from"],
        "device": options["device"] or "auto",
    }


def _train_many(options: Mapping[str, Any]) -> None:
    """Train a run for each seed and beta, and draw these runs side by side, with their table."""
    from pvae.training.callbacks import RunLine, default_callbacks
    from pvae.training.many import fit_many

    if options["resume"]:
        raise InputError("--beta of several values trains new runs: leave --resume out")
    betas = options.get("beta", ())
    if isinstance(betas, float):
        betas = ()
    if betas:
        options = {**options, "beta": betas[0]}
    config, data = _configured(options)
    seeds = options["seeds"] or [config.seed]
    configs = [config.replace(seed=seed, beta=beta) for beta in betas or [config.beta] for seed in seeds]
    callbacks = default_callbacks()
    if not options["quiet"]:
        callbacks.append(RunLine())
    runs = fit_many(configs, callbacks=callbacks, **_given(config, data, options))
    draw_side_by_side([run.path for run in runs], runs[0].path.parent / "figures", options)
    if len(runs) < len(configs):
        raise TrainingError(f"{len(configs) - len(runs)} of {len(configs)} runs were not trained to the end")


def _fit(options: Mapping[str, Any]) -> Run:
    from pvae.training.callbacks import default_callbacks
    from pvae.training.fit import fit

    config, data = _configured(options)
    return fit(config, callbacks=default_callbacks(options["quiet"]), **_given(config, data, options))


def _resume(options: Mapping[str, Any]) -> Run:
    """Resume a run, whose configuration the chosen options must not contradict, except in the number of epochs."""
    from pvae.runs.run import Run
    from pvae.training.callbacks import default_callbacks
    from pvae.training.fit import resume

    chosen = _chosen(options)
    run = Run.open(options["resume"])
    run.check_options({name: OPTIONS[name].check(value) for name, value in chosen.items()})
    vae = _own_vae(options["vae"], run.data.datum_shape, {})
    if "epochs" in chosen or not run.is_finished():
        run.dataset(None, options["data_dir"], options["offline"])
    callbacks = default_callbacks(options["quiet"])
    return resume(run, chosen.get("epochs"), vae=vae, device=options["device"], callbacks=callbacks)


def _what_is_next(run: Run, place: str | None) -> str:
    """Return the lines that are printed after a training: where the run is, and commands that take it.

    Args:
        run: the run.
        place: --vae.
    """
    from pvae.explore.page import check_run

    following = ["pvae draw RUN"]
    with contextlib.suppress(InputError):
        check_run(run)
        following.append("pvae explore RUN --open")
    if not run.config.is_autoencoder:  # an autoencoder has no likelihood
        following += ["pvae evaluate RUN", "pvae sample RUN"]
        if run.config.system in ("images", "values"):
            following.append(f"pvae score RUN {'DATA' if run.data.is_images else 'FILE'}")
        if run.config.missing and not run.data.is_images:
            following.append("pvae sample RUN --impute FILE")
    following.append("tensorboard --logdir RUN")
    is_stopped = run.metrics()[-1].epoch < run.config.epochs  # by --patience
    if run.config.schedule == "constant" and not is_stopped:
        following.append(f"python -m pvae.train --resume RUN --epochs {2 * run.config.epochs}")
    folder = shlex.quote(str(run.path))
    following = [command.replace("RUN", folder) for command in following]
    if place:
        own = f" --vae {shlex.quote(place)}"
        following = [command + own if "pvae" in command else command for command in following]
    next_lines = "\n   or  ".join(following)
    files = "config.json, metrics.jsonl, checkpoint.safetensors, figures/, TensorBoard events"
    return f"done; the run is in {folder}: {files}\nnext:  {next_lines}"


def _chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Config` that are given by the command line or, failing that, by the TOML file."""
    path = options["config"]
    try:
        chosen = read_toml(path) if path else {}
        for name, value in chosen.items():
            OPTIONS[check_name("option", name, OPTIONS)].check(value)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read ({error.strerror}): name a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: {error}") from None
    return {**chosen, **{name: options[name] for name in OPTIONS if name in options}}


def _configured(options: Mapping[str, Any]) -> tuple[Config, Dataset | None]:
    """Return the named system with the given options; a TOML file may name a system of its own.

    The systems "images" and "values" get the options that suit their data; these are returned too.
    """
    from pvae.config.build import elbo_of

    if "system" in options:
        get_system(options["system"])
    chosen, data = _chosen(options), None
    dataset = str(chosen.get("dataset", ""))
    if chosen.get("labels"):
        chosen.setdefault("elbo", "enumerate")
        if not own_path(dataset) and "system" not in chosen:
            chosen.setdefault("epochs", _EPOCHS_OF_LABELS)
    default = "deep-bayes"
    if dataset.startswith("folder:"):
        default = "images"
    elif own_path(dataset):
        default = "values"
    known = chosen
    if dataset.startswith("array:") and "system" not in chosen:  # whose file says which options it takes
        of_data = {*options_of(Reading), "dataset", "valid", "calibration"} - {"columns"}
        known = {name: value for name, value in chosen.items() if name in of_data}
    config = SYSTEMS.get(chosen.get("system", default), Config()).replace(**known)
    config.check_used(known)
    if config.system in ("images", "values"):
        from pvae.config.choices import images_config, load_for, values_config

        data = load_for(config, options["data_dir"], options["offline"])
        is_images = config.system == "images"
        if chosen.pop("system", None) is None:
            is_images = data.is_images
            if data.train.dim() == 3 and data.train.element_size() == 1 and not options["quiet"]:  # bytes (N, H, W)
                print_line(f"note: read as values; if these are images, give --dataset folder:{own_path(dataset)}")
        configure = images_config if is_images else values_config
        config = configure(data, **{"dataset": config.dataset, **chosen})
        config.check_used(chosen)
    elbo_of(config, has_own_vae=options["vae"] is not None)  # refuses what does not go together
    return config, data


main = Command(train_parser, _work, [("resume", "out"), ("resume", "from"), ("resume", "seeds"), ("seeds", "seed")])
