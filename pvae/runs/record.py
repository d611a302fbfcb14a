"""`RunRecord`, what `config.json` says of a run: configuration, data, sessions, and the run from which it started."""

from __future__ import annotations

import difflib
import json
import math
import os
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pvae.config.config import Config
from pvae.config.presets import as_option
from pvae.core import __version__
from pvae.core.errors import InputError
from pvae.core.files import expanded, from_record, to_json, write_whole
from pvae.data.schema import DataRecord

__all__ = ["CONFIG", "READY_MADE", "RunRecord"]

CONFIG = "config.json"
READY_MADE = ("deep-bayes", "fashion-vae")  # names of the runs that come with pvae
_READY_MADE = Path(__file__).parents[1] / "pretrained"
_FORMAT = 3
R = TypeVar("R", bound="RunRecord")
_OWN_VAE = "built in Python: the options of config from network to scale do not describe it"


@dataclass(eq=False)
class RunRecord:
    """The content of a run's `config.json`, with the folder that it lies in.

    Args:
        path: the folder.
        config: configuration of the training.
        data: record of the data set.
        sessions: for each session that trained the run: its first epoch and step, device, number of processes and of
            threads, engine, versions, commit and time.
        identity: a unique name, stored in `config.json` and in the checkpoints.
        has_own_vae: the VAE was built in Python and given to `fit`; `config` does not describe its networks.
        has_own_beta: the weight of the rate was a function that was given to `fit`.
        start: of a training that started from another run: its identity, its folder, and its progress then; else {}.
        vae_place: FILE.py:FUNCTION, which built that VAE, or "".
    """

    path: Path
    config: Config
    data: DataRecord
    sessions: list[dict[str, Any]] = field(default_factory=list)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    has_own_vae: bool = False
    has_own_beta: bool = False
    start: dict[str, str] = field(default_factory=dict)
    vae_place: str = ""

    @classmethod
    def open(cls: type[R], path: str | Path) -> R:
        """Return the run in a folder.

        Args:
            path: the folder; or the name of a run that comes with pvae, "deep-bayes" or "fashion-vae", if there is no
                run folder of that name.

        Raises:
            InputError: the path is empty, the folder is not a run folder, or its `config.json` is damaged, or of a
                version that this one does not read.
        """
        path = expanded(path, "the run folder")
        if str(path) in READY_MADE and not (path / CONFIG).exists():
            path = _READY_MADE / path
        file = path / CONFIG
        try:
            content = file.read_bytes()
        except OSError as error:
            why = f"{CONFIG} cannot be read ({error.strerror})"
            if not os.path.lexists(path):  # also False for a name that is too long
                near = difflib.get_close_matches(str(path), READY_MADE, n=1)
                why = "there is nothing of that name" + "".join(f"; did you mean {name}?" for name in near)
            elif (rows := path / "metrics.jsonl").is_file() and not rows.read_bytes():  # written before config.json
                why = "its training was killed before the first epoch: remove it and start again"
            elif runs := sorted(path.glob(f"*/{CONFIG}")):
                why = (
                    f"it is a folder of run folders: give one of them, for instance {runs[0].parent}; to go on "
                    "with all of them, repeat the command that began them"
                )
            raise InputError(f"{path} is not a run folder: {why}") from None
        try:
            record = json.loads(content)
            if record["format"] != _FORMAT:
                raise InputError(f"its format is not {_FORMAT}")
            options = dict(record["config"])
            if options.get("alpha") == "-inf":  # JSON has no infinity
                options["alpha"] = -math.inf
            return cls(
                path,
                from_record(Config, options),
                from_record(DataRecord, record["data"]),
                record["sessions"],
                record["run"],
                has_own_vae="own_vae" in record,
                has_own_beta="own_beta" in record,
                start=record.get("start", {}),
                vae_place=record.get("vae_place", ""),
            )
        except (InputError, KeyError, TypeError, ValueError, RecursionError) as error:
            own, here = _version(content), __version__
            what, how = f"damaged ({error})", "restore a copy of it"
            if not own:
                what, how = f"damaged or of another version of pvae ({error})", f"{how}, or use that version"
            elif own != here:
                what = f"of pvae {own}, and this is {here}, which does not read it ({error})"
                how = f"use pvae {own}, or train anew"
            raise InputError(f"{file} is {what}: {how}") from None

    def write(self) -> None:
        """Write `config.json`.

        Raises:
            OSError: it cannot be written.
        """
        record = {
            "format": _FORMAT,
            "run": self.identity,
            **({"own_vae": _OWN_VAE} if self.has_own_vae else {}),
            **({"vae_place": self.vae_place} if self.vae_place else {}),
            **({"own_beta": "a function of the step, given to fit"} if self.has_own_beta else {}),
            **({"start": self.start} if self.start else {}),
            "config": asdict(self.config) | ({"alpha": "-inf"} if self.config.alpha == -math.inf else {}),
            "data": asdict(self.data),
            "sessions": self.sessions,
        }
        write_whole(self.path / CONFIG, f"{to_json(record, indent=2)}\n".encode())

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check that options of a configuration, but for the number of epochs, are those of the run.

        Raises:
            InputError: one is not.
        """
        for name, value in options.items():
            own = getattr(self.config, name)
            if name not in ("epochs", "source", *["system"] * self.has_own_vae) and value != own:
                raise InputError(
                    f"{as_option(name, value)} contradicts {self.path}/config.json, which says {as_option(name, own)}: "
                    "give the same, or start a new run in another --out"
                )

    @property
    def name(self) -> str:
        """How messages name the run: by its folder, or by its name if it came with pvae."""
        return self.path.name if self.path.parent == _READY_MADE else str(self.path)

    @property
    def place(self) -> Path:
        """Where pictures and reports of the run are written: its folder, or runs/NAME for a ready-made run."""
        return Path("runs") / self.path.name if self.path.parent == _READY_MADE else self.path

    @property
    def how_to_resume(self) -> str:
        """The command that resumes the run, or the call in Python if its VAE or data were given from Python."""
        path, options = str(self.path), f" --vae {shlex.quote(self.vae_place)}" if self.vae_place else ""
        given = ", vae=vae" * (self.has_own_vae and not options) + ", data=data" * (not self.data.dataset)
        return (
            f"pvae.resume({path!r}{given})" if given else f"python -m pvae.train --resume {shlex.quote(path)}{options}"
        )


def _version(content: bytes) -> str:
    """Return the version of pvae that wrote the content of a `config.json`, or "" if it does not say so."""
    try:
        return str(json.loads(content)["sessions"][-1]["versions"]["pvae"])
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        return ""
