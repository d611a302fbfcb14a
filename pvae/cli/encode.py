"""The command `python -m pvae.encode`: the codes of images, as a table or as arrays."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pvae.cli.command import (
    Parser,
    add_images,
    ctrl_c_exits_at_once,
    nonempty_path,
    print_note,
    result_folder,
    run_command,
)
from pvae.config.options import whole_number
from pvae.core.errors import InputError
from pvae.core.files import check_replaceable, write_whole
from pvae.core.terminal import print_line

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["main"]

_EPILOG = """\
The code of an image is its posterior q(z | x): a mean and a standard deviation for each latent dimension, or with
--draws one z drawn from it. The posteriors of flows and hierarchies have no mean in closed form, and need --draws.
Images are resized, and converted to grey or colour, like the training images.

An .npz file holds the arrays names (N,), loc and scale (N, L), or names and z; np.load reads it. A .csv file has a row
for each image: name, loc_1, ..., loc_L, scale_1, ..., scale_L, or name, z_1, ..., z_L. With several stochastic layers,
z is z1, z2 and so on: an array of each, or the columns z1_1, ..., z2_1, ....

examples:
  python -m pvae.encode runs/my-run photos --out codes.csv
  python -m pvae.encode runs/my-run
      the test images of the run, into RUN/codes.npz
In Python, after import pvae.trained.images:
  given = pvae.trained.images.GivenImages.of("runs/my-run", "photos")
  codes = pvae.trained.images.encode_images(given.vae, given.pixels)  # codes.loc and codes.scale, (N, L)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.encode", lambda: _encode(_parser().parse_args(argv)))


def _encode(arguments: argparse.Namespace) -> None:
    whole_number("seed", arguments.seed, 0, 2**63 - 1)
    with ctrl_c_exits_at_once("pvae.encode"):
        import torch

        from pvae.core.random_state import seeded
        from pvae.runs.run import Run
        from pvae.trained.images import GivenImages, draw_codes, encode_images
    place = Run.open(arguments.run).place
    out = arguments.out or place / "codes.npz"
    if out.suffix not in (".npz", ".csv"):
        raise InputError(f"--out {out} must end in .npz or .csv")
    with result_folder(out.parent):
        check_replaceable(out, f"codes{out.suffix}")
        given = GivenImages.of(
            arguments.run, arguments.images, arguments.data_dir, arguments.offline, arguments.skip_broken
        )
        print_note(given.note)
        if arguments.draws:
            with seeded(arguments.seed, torch.device("cpu")):
                codes = draw_codes(given.vae, given.pixels)
            shown = "+".join(str(values.shape[1]) for values in codes.values())
        else:
            codes = encode_images(given.vae, given.pixels)._asdict()
            shown = str(codes["loc"].shape[1])
        write_whole(out, (_npz if out.suffix == ".npz" else _csv)(given.names, codes))
    print_line(f"{out}: {' and '.join(codes)} of {len(given.names):,} images, {shown} latent dimensions")


def _npz(names: Sequence[str], codes: Mapping[str, Tensor]) -> bytes:
    import numpy as np

    content = io.BytesIO()
    arrays: dict[str, Any] = {"names": np.array(names), **{name: values.numpy() for name, values in codes.items()}}
    np.savez(content, **arrays)
    return content.getvalue()


def _csv(names: Sequence[str], codes: Mapping[str, Tensor]) -> bytes:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(
        ["name", *(f"{name}_{dim + 1}" for name, values in codes.items() for dim in range(values.shape[1]))]
    )
    rows = zip(names, *(values.tolist() for values in codes.values()))
    writer.writerows([name, *itertools.chain(*values)] for name, *values in rows)
    return content.getvalue().encode("utf-8", "surrogateescape")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("encode", "Encode images by a trained run.", _EPILOG)
    add_images(parser)
    add = parser.add_argument
    add("--draws", action="store_true", help="a draw z from q(z | x) for each image, in place of mean and scale")
    add("--seed", metavar="S", type=int, default=0, help="seed of the random draws (default: 0)")
    add("--out", metavar="FILE", type=nonempty_path, help="an .npz or a .csv file (default: RUN/codes.npz)")
    return parser
