"""The other parts of the speed benchmark: how its cost grows with the work, evaluation, faces, memory."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from turns import counted, in_turns

_TRACE = ("torch.distributions, trace", "pvae trace")
_IWAE = ("torch.distributions, iwae K=5", "pvae iwae K=5")
# What varies, over what, on how many images, and which two sides do it.
_AXES = {
    "batch-size": ((32, 128, 512, 2048, 8192), 16_384, _TRACE),
    "latent-dim": ((2, 20, 128, 512), 10_000, _TRACE),
    "hidden": ((100, 400, 1024, 4096), 10_000, _TRACE),
    "particles": ((1, 4, 16, 64), 5_000, _IWAE),
    "images": ((5_000, 60_000, 1_000_000), None, _TRACE),
}
_TURNS, _FEWEST_TURNS, _MANY = 7, 3, 20_000  # epochs that are counted: fewer of more images


def scaling(arguments: argparse.Namespace) -> None:
    """Print the cost of an image as the work grows, by hand and by this package, in turns, and draw it."""
    rows = []
    print("| what | of | images | by hand, us / image | pvae, us / image | ratio |\n|---|---|---|---|---|---|")
    for axis, (values, images, sides) in _AXES.items():
        for value in values:
            count = images or value
            epochs = _FEWEST_TURNS if count > _MANY else _TURNS
            options = ["--images", str(count), "--epochs", str(1 + epochs), "--no-test", f"--{axis}", str(value)]
            if axis == "images":
                options += ["--batch-size", "1000"]
            found = in_turns(sides, f"{axis} {value:,}: ", *options).values()
            costs = [statistics.median(counted(one)) / count * 1e6 for one in found]
            ratio = statistics.median(list(found)[1]["ratios"])
            rows.append((axis, value, costs))
            print(f"| {axis} | {value:,} | {count:,} | {costs[0]:.2f} | {costs[1]:.2f} | {ratio:.2f} |", flush=True)
    if arguments.figure:
        _draw(rows, arguments.figure)


def _draw(rows: list[tuple[str, int, list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.9), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(_AXES), sharey=True), _AXES):
        points = [(value, costs) for name, value, costs in rows if name == axis]
        for side, label in enumerate(("written by hand", "pvae")):
            axes.loglog([value for value, _ in points], [costs[side] for _, costs in points], "o-", label=label)
        axes.set_xlabel(axis.replace("-", " "))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("microseconds an image")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def evaluation(arguments: argparse.Namespace) -> None:
    """Time `pvae evaluate` on a run of 784-400-20 beside the decoder's products of the same count."""
    count, samples = arguments.images or 10_000, 5000
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        data = ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
        train = [sys.executable, "-m", "pvae.train", "--system", "pytorch-example", "--epochs", "1", "--quiet"]
        subprocess.run([*train, *data, "--out", run], check=True, capture_output=True)
        seconds = {}
        for how in ("graph", "auto"):
            options = ["--images", str(count), "--importance-samples", str(samples), "--compile", how, "--quiet"]
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "pvae", "evaluate", run, *options], check=True, capture_output=True)
            seconds[how] = time.perf_counter() - started
    floors = _decoder_floors(count * samples)
    print(f"pvae evaluate, {count:,} images, {samples:,} importance samples, 784-400-20, the whole process")
    print("| --compile | s | of torch's matrix products | of the faster library's |\n|---|---|---|---|")
    for how, took in seconds.items():
        print(f"| {how} | {took:.1f} | {took / floors[0]:.2f} | {took / floors[1]:.2f} |")
    print(
        f"products alone: {floors[0]:.1f} s by torch's own, {floors[1]:.1f} s by the faster of two libraries for each"
    )


def _decoder_floors(rows: int) -> tuple[float, float]:
    """Return the seconds of the two products of a decoder 20-400-784 at so many rows: torch's own, the fastest."""
    from speed import _onednn

    torches, fastest, chunk = 0.0, 0.0, 2600
    for inner, outer in ((20, 400), (400, 784)):
        x, w = torch.randn(chunk, inner), torch.randn(outer, inner)
        times = [_median_of(lambda x=x, w=w: functional.linear(x, w)), _median_of(lambda x=x, w=w: _onednn(x, w.t()))]
        torches, fastest = torches + times[0], fastest + min(times)
    return torches * rows / chunk, fastest * rows / chunk


def _median_of(function: object) -> float:
    times = []
    for _ in range(40):
        started = time.perf_counter()
        function()  # type: ignore[operator]
        times.append(time.perf_counter() - started)
    return statistics.median(times)


_FACES = 1024


def faces(arguments: argparse.Namespace) -> None:
    """Print images a second of `celeba-vae` from files on, beside a DataLoader over the same files."""
    from pvae.data.image_cache import ImageTransform, load_images
    from pvae.data.image_folder import ImageFiles, image_files

    with _face_files(arguments.data_dir) as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        files = image_files(folder)[0][:_FACES]
        started = time.perf_counter()
        images = torch.from_numpy(load_images(ImageFiles(files, folder), ImageTransform((64, 64)))[0])
        decoding = time.perf_counter() - started
        plain = _plain_faces(files)
        print(f"celeba-vae, {len(files)} files, batches of 128, two passes, the second is counted")
        print("| side | images / s |\n|---|---|")
        print(f"| DataLoader over the files, loop by hand, the same network | {plain:.0f} |")
        for how in ("none", "graph"):
            seconds = _our_faces(images, how)
            print(f"| pvae, --compile {how} | {len(images) / seconds:.0f} |")
            print(f"| the same, first pass with decoding | {len(images) / (seconds + decoding):.0f} |")


@contextlib.contextmanager
def _face_files(data_dir: Path | None) -> Iterator[Path]:
    """Give CelebA's folder of images, or where there is none, one of random images of that size."""
    for root in (data_dir, os.environ.get("PVAE_DATA")):
        found = Path(root or "nowhere") / "celeba" / "img_align_celeba"
        if found.is_dir():
            yield found
            return
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        for number in range(_FACES):
            pixels = torch.randint(256, (218, 178, 3), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(Path(folder) / f"{number:06}.jpg")
        yield Path(folder)


def _plain_faces(files: list[Path]) -> float:
    from PIL import Image
    from torchvision import transforms

    from pvae.config.presets import get_system
    from pvae.models.build import build_vae

    torch.manual_seed(0)
    config = get_system("celeba-vae")
    vae = build_vae(config, (3, 64, 64))
    transform = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Tensor:
            pixels: Tensor = transform(Image.open(files[index]).convert("RGB"))
            return pixels

    loader = torch.utils.data.DataLoader(Files(), batch_size=128, shuffle=True)
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4)
    for _ in range(2):
        started = time.perf_counter()
        for x in loader:
            optimizer.zero_grad()
            loc, log_variance = vae.q_z.encoder(x).chunk(2, dim=-1)
            z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
            squares = functional.mse_loss(vae.p_x.decoder(z).sigmoid(), x, reduction="sum")
            rate = -0.5 * (1 + log_variance - loc.square() - log_variance.exp()).sum()
            ((0.5 * squares / config.scale**2 + rate) / len(x)).backward()
            optimizer.step()
        seconds = time.perf_counter() - started
    return len(files) / seconds


def _our_faces(images: Tensor, compile: str) -> float:
    import pyro

    from pvae.config.presets import get_system
    from pvae.core.random_state import seeded
    from pvae.data.dataset import Dataset
    from pvae.training.setup import build_trainer

    config = get_system("celeba-vae").replace(compile=compile)
    with seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
        training = build_trainer(config, Dataset("faces", images, images[:2]), torch.device("cpu"))
        training.train_epoch()
        training.epoch += 1
        return training.train_epoch().seconds


_MILLION = """
import json, resource, sys, torch, pyro
from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.core.random_state import seeded
from pvae.training.setup import build_trainer
train = torch.empty(1_000_000, 1, 28, 28, dtype=torch.uint8)
for part in train.split(50_000):
    part.random_(0, 256)
config = Config(hidden=(400,), latent_dim=20, batch_size=1024, compile=sys.argv[1], binarize=sys.argv[2])
with seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
    data = Dataset("a million", train, train[:10_000])
    data.record()
    training = build_trainer(config, data, torch.device("cpu"))
    training.train_epoch(), training.evaluate()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
"""


def memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of an epoch over 1,000,000 images of 784 bytes."""
    data = 784e6 / 2**30
    print("| --compile | --binarize | peak, GiB | above the data |\n|---|---|---|---|")
    for how, binarize in (("none", "none"), ("graph", "dynamic"), ("inductor", "none"), ("none", "static")):
        done = subprocess.run([sys.executable, "-c", _MILLION, how, binarize], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        peak = json.loads(done.stdout.splitlines()[-1])
        print(f"| {how} | {binarize} | {peak:.2f} | {peak - data:.2f} |", flush=True)


_ALL_REDUCE = """
import statistics, sys, time, torch
from pvae.cli.command import exit_process
from pvae.training.parallel import joined
with joined("cpu") as world:
    parts, times = [torch.zeros(int(sys.argv[1]))], []
    for _ in range(200):
        started = time.perf_counter()
        world.sum_(parts)
        times.append(time.perf_counter() - started)
    if world.is_first:
        print(statistics.median(times))
exit_process(0)
"""


def processes(arguments: argparse.Namespace) -> None:
    """Print what an epoch takes one process with all cores, and as many processes with a core each."""
    count = os.cpu_count() or 2
    several = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    system = ["-m", "pvae.train", "--system", "pytorch-example", "--epochs", "3", "--quiet", "--offline"]
    system += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    numbers = 784 * 400 + 400 + 2 * (400 * 20 + 20) + 20 * 400 + 400 + 400 * 784 + 784
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "all_reduce.py"
        script.write_text(_ALL_REDUCE)
        message = float(_output([*several, str(script), str(numbers)], threads=1))
        print(f"784-400-20: a step sums {4 * numbers / 2**20:.1f} MiB of gradients, {1000 * message:.2f} ms alone")
        print(f"| batch | --compile | one process, {count} threads, s / epoch | {count} processes | efficiency |")
        print("|---|---|---|---|---|")
        for batch_size in (128, 1024, 8192):
            for how in ("none", "graph"):
                found = []
                for start, threads in (([sys.executable], count), (several, 1)):
                    out = str(Path(folder) / f"{batch_size}-{how}-{threads}")
                    options = ["--batch-size", str(batch_size), "--compile", how, "--out", out]
                    _output([*start, *system, *options], threads)
                    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
                    found.append(min(row["seconds"] for row in rows if row["split"] == "train" and row["epoch"] > 1))
                print(
                    f"| {batch_size} | {how} | {found[0]:.2f} | {found[1]:.2f} | {found[0] / found[1]:.2f} |",
                    flush=True,
                )


def _output(command: list[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout
