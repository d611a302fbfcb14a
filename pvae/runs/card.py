"""`write_card`, the README.md of a run folder: what was trained, on which data, how well, and how to load it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

from pvae.config.presets import command_line
from pvae.core.files import write_whole
from pvae.runs.run import Run

__all__ = ["CARD", "write_card"]

CARD = "README.md"
_PICTURES = ("reconstructions", "samples", "losses")


def write_card(run: Run) -> None:
    """Write the card, with the figures of evaluation.json if it is of these weights; an older one's licence stays.

    Raises:
        OSError: it cannot be written.
    """
    config, data, test = run.config, run.data, run.test_metrics()
    kind, _, path = data.dataset.partition(":")
    name = f"{kind}:{Path(path).name}" if path else kind
    train = f"python -m pvae.train --dataset {shlex.quote(name)}"
    if not data.dataset or (run.has_own_vae and not run.vae_place):
        train = "pvae.fit in Python, with options"
    elif run.vae_place:
        train += f" --vae {shlex.quote(Path(run.vae_place).name)}"
    versions = run.sessions[-1]["versions"] if run.sessions else {}
    rows = {
        "data": f"{data.title}, each ({', '.join(map(str, data.datum_shape))}), SHA-256 {data.sha256[:16]}...",
        "command": f"`{train} --seed {config.seed} {command_line(config)}`",
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
    }
    if test is not None:
        rows["epoch"] = f"{test.epoch} of {config.epochs}"
        if test.elbo is not None:
            rows[f"test {test.bound}"] = f"{test.elbo:.2f} +- {test.elbo_stderr:.2f}"
        rows["distortion, rate"] = f"{test.distortion:.2f}, {test.rate:.2f}"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or none of these weights
            report = json.loads((run.place / "evaluation.json").read_bytes())
            found = report["log_likelihood"]["estimate"]
            if report["epoch"] == test.epoch:
                rows["log p(x)"] = f"{found['mean']:.2f} +- {found['stderr']:.2f} of {report['num_images']:,} test data"
    table = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())
    pictures = [one for one in _PICTURES if (run.path / "figures" / f"{one}.png").exists()]
    licence = "unknown"
    with contextlib.suppress(OSError, UnicodeDecodeError, AttributeError):
        before = re.search(r"^license: *(.+)$", (run.path / CARD).read_text("utf-8"), re.MULTILINE)
        licence = before[1]  # type: ignore[index]
    given, y = ", vae" * run.has_own_vae, ", y" * run.is_given_labels
    text = f"""---
library_name: pvae
license: {licence}
tags: [variational-autoencoder, pyro]
---

# A variational autoencoder of {data.name}

| | |
|---|---|
{table}

Values are in nats per datum, with standard errors over the test data.

```python
import pvae  # pip install pvae-pyro

vae = pvae.load("FOLDER"{given})  # the folder of this file
z = vae.posterior(x{y}).sample()  # of data x, ({", ".join(["N", *map(str, data.datum_shape)])})
```

"""
    if licence == "unknown":
        text += "No licence is stated: before you share the weights, name one in `license` above, as the data allow.\n"
    text += "".join(f"\n![{one}](figures/{one}.png)\n" for one in pictures)
    write_whole(run.path / CARD, text.encode("utf-8", "replace"))  # a name may be any bytes
