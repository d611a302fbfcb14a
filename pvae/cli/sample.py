"""The command `python -m pvae.sample`: new images from a trained run."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

from pvae.cli.command import Parser, ctrl_c_exits_at_once, nonempty_path, result_folder, run_command
from pvae.config.options import whole_number
from pvae.core.errors import InputError
from pvae.core.files import is_report, not_a_link, write_whole
from pvae.core.terminal import print_line

__all__ = ["main"]

_MOST = 10_000  # images at once in memory

_EPILOG = """\
Each image is the mean of p(x | z) at a draw z ~ p(z); with --draws, every pixel is drawn from p(x | z) too, which shows
the noise that the likelihood assumes. It writes sample-0001.png and so on, and the first 64 on a sheet, samples.png.

examples:
  python -m pvae.sample runs/my-run -n 16 --out samples
  python -m pvae.sample runs/my-run --draws --seed 7
In Python, after import pvae.trained.images:
  images = pvae.trained.images.sample_images(pvae.load("runs/my-run"), 64)  # (64, C, H, W)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.sample", lambda: _sample(_parser().parse_args(argv)))


def _sample(arguments: argparse.Namespace) -> None:
    whole_number("num_samples", arguments.num_samples, 1, _MOST)
    whole_number("seed", arguments.seed, 0, 2**63 - 1)
    with ctrl_c_exits_at_once("pvae.sample"):
        import torch
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        from pvae.core.random_state import seeded
        from pvae.data.preparation import Preparation
        from pvae.plotting.run_figures import image_figure, write_figure
        from pvae.runs.run import Run
        from pvae.trained.images import sample_images
    run = Run.open(arguments.run)
    if run.data.image_shape[0] not in (1, 3):
        raise InputError(f"a PNG has 1 or 3 channels, and the images of {run.path} have {run.data.image_shape[0]}")
    vae = run.vae()
    out = arguments.out or not_a_link(run.place / "samples")
    names = [f"sample-{number:04}.png" for number in range(1, arguments.num_samples + 1)]
    with result_folder(out, [*names, "samples.png"]) as folder:
        with seeded(arguments.seed, torch.device("cpu")):
            images = sample_images(vae, arguments.num_samples, arguments.draws)
        images = Preparation.of(run.config).shown(images).clamp(0, 1)
        written_by_pvae = PngInfo()
        written_by_pvae.add_text("Software", "pvae")
        for earlier in filter(is_report, folder.glob("sample-*.png")):
            earlier.unlink()
        for name, image in zip(names, images.mul(255).round().to(torch.uint8).numpy()):
            content = io.BytesIO()
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(pixels).save(content, "PNG", pnginfo=written_by_pvae)
            write_whole(folder / name, content.getvalue())
        write_figure(folder / "samples.png", image_figure(images[:64], min(8, len(names)), ""))
        last = f" to {names[-1]}" if len(names) > 1 else ""
        print_line(
            f"{folder}: {names[0]}{last}, and {'the first 64' if len(names) > 64 else 'all of them'} on samples.png"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser("sample", "Draw new images from a trained run.", _EPILOG)
    add = parser.add_argument
    add("run", metavar="RUN", type=nonempty_path, help="a run folder")
    add(
        "-n",
        "--num-samples",
        metavar="N",
        type=int,
        default=64,
        help=f"number of images, at most {_MOST:,} (default: 64)",
    )
    add("--draws", action="store_true", help="draw every pixel from p(x | z) in place of taking its mean")
    add("--seed", metavar="S", type=int, default=0, help="seed of the random draws (default: 0)")
    add("--out", metavar="DIR", type=nonempty_path, help="where to write (default: RUN/samples)")
    return parser
