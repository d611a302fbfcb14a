"""The page in Debian's chromium: it decodes, encodes and scores as torch does, and asks the network for nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import close, needs_browser, wait
from PIL import Image
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.data.preparation import Pixels
from pvae.distributions.flow import Flow
from pvae.distributions.normals import FullNormal
from pvae.distributions.power_spherical import PowerSpherical, SphereUniform
from pvae.explore.networks import Tensors, operations
from pvae.explore.page import explorer_page
from pvae.trained.codes import run_batch
from pvae.trained.latent_space import attribute_vector, encode
from pvae.trained.scores import elbo_terms
from pvae.training.fit import fit

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
pytestmark = [pytest.mark.workflow, needs_browser]

CPU = torch.device("cpu")
SEEDED = "let seed = 1; Math.random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;"
BINARY = {"binarize": "threshold"}
SYSTEMS = {
    "mlp": {},
    "mlp of gated layers, q of full covariance": {"activation": "gated", "posterior": "normal-full"},
    "mlp of tanh, log variance": {"activation": "tanh", "posterior": "normal-log-variance", "binarize": "static"},
    "mlp-batchnorm": {"network": "mlp-batchnorm", "likelihood": "continuous-bernoulli"},
    "conv": {"network": "conv", "hidden": (4, 6), "likelihood": "normal", "pixels": "symmetric", "scale": 0.5},
    "conv-batchnorm": {"network": "conv-batchnorm", "hidden": (4, 6), "likelihood": "normal-learned"},
    "conv-groupnorm": {"network": "conv-groupnorm", "hidden": (8, 16), "likelihood": "discretized-logistic"},
    "mixture of logistics": {"likelihood": "discretized-logistic-mixture", "scale": 0.05, "logistics": 2},
    "linear": {"network": "linear", "likelihood": "normal-linear", "scale": 0.2, "pad": 1},
    "normal-optimal, mixture": {"likelihood": "normal-optimal", "prior": "mixture", "components": 4},
    "flow as prior": {"prior": "flow", **BINARY},
    "sphere": {"posterior": "power-spherical", "prior": "sphere", **BINARY},
    "bits": {"posterior": "bernoulli", "prior": "bits", "elbo": "arms", "particles": 4, **BINARY},
    "autoencoder": {"posterior": "delta"},
    "one latent, softplus": {"latent_dim": 1, "activation": "softplus"},
    "vamp of flows": {"posterior": "planar", "prior": "vamp", "components": 3, **BINARY},
    "planar": {"posterior": "planar", "flow_length": 3, **BINARY},
    "iaf": {"posterior": "iaf", "flow_length": 2, **BINARY},
    "spline": {"posterior": "spline", "flow_length": 2, **BINARY},
    "ladder": {"network": "mlp-batchnorm", "upper_latent_dims": (3, 2), "inference": "ladder", **BINARY},
    "top-down": {"upper_latent_dims": (3, 2), "inference": "top-down", **BINARY},
    "bottom-up": {"upper_latent_dims": (3, 2), "inference": "bottom-up", **BINARY},
}
CLASSES = ("</script><script>throw 1</script>", "<img src=x onerror='throw 2'>")  # text, on each page


@pytest.fixture
def train(tmp_path, no_pictures):
    """Train a small system on colour images of odd sides, for a second, at a rate that moves all weights."""

    def trained(options, classes=CLASSES, name="run"):
        labels_given = (options := dict(options)).pop("labels_given", None)
        config = Config(**{"hidden": (12,), "latent_dim": 4, "upper_hidden": (6,), "flow_hidden": (8,), **options})
        generator = torch.Generator().manual_seed(0)
        factors, patterns = torch.randn(70, 3, generator=generator), torch.randn(3, 390, generator=generator)
        images = (255 * (factors @ patterns).sigmoid()).to(torch.uint8).view(70, 3, 13, 10)
        labels = torch.arange(70) % max(1, len(classes))
        of_classes = (labels[:50], labels[50:], tuple(classes)) if classes else ()
        if labels_given:
            labels, names = labels_given
            of_classes = (labels[:50], labels[50:], names)
        data = Dataset("noise", images[:50], images[50:], *of_classes)
        config = config.replace(epochs=3, batch_size=25, lr=0.01, compile="none")
        return fit(config, data=data, out=tmp_path / name, device="cpu")

    return trained


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_page_computes_what_torch_computes(train, opened, system):
    run = train(SYSTEMS[system])
    with torch.no_grad():
        _compare(system, run, opened(run))


def _compare(system, run, page):
    vae = run.vae()
    assert encode(vae, run_batch(run, "test")).std(0).max() > 0.01, "or the encoder is hardly tested"
    p_z = vae.prior()
    z = torch.randn(20, *p_z.event_shape, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(z, dim=-1) if isinstance(p_z, SphereUniform) else z
    means = page.execute_script("return arguments[0].map(z => Array.from(pvae.vae.mean(z)))", z.tolist())
    close(means, vae.likelihood(z).mean.flatten(1))
    if page.execute_script("return pvae.vae.hasPrior"):
        with seeded(0, CPU):
            expected = p_z.sample((4000,))
        drawn = torch.tensor(page.execute_script("return list(1000, () => pvae.vae.drawPrior())")).float()
        error = expected.std(0) / 1000**0.5  # six of them fail once in 10^8
        assert ((drawn.mean(0) - expected.mean(0)).abs() < 6 * 1.2 * error + 1e-6).all()
        assert ((drawn.std(0) / expected.std(0)).log().abs() < 0.25).all()
    if system == "spline":
        assert page.execute_script("return pvae.vae.canEncode") is False
        return

    place = run.dataset().test_names.index(page.execute_script("return pvae.content.image_names[3]"))
    image = Pixels(run_batch(run, "test").x.images[[place]], run.preparation)
    (x,) = image.split(1)
    close(page.execute_script("return Array.from(pvae.imageX(3))"), x.flatten(), 1e-7)
    q = vae.posterior(x)
    if isinstance(q, FullNormal | PowerSpherical) or isinstance(getattr(q, "base_dist", None), Normal):
        found = page.execute_script("const q = pvae.vae.posterior(pvae.imageX(3)); return [q.loc, q.scale, q.tril]")
        close(found[0], (q.loc if isinstance(q, PowerSpherical) else q.mean)[0])
        if isinstance(q, Independent):
            close(found[1], q.stddev[0])
        elif isinstance(q, FullNormal):
            close(found[2], q.scale_tril[0])

    with seeded(7, CPU):
        draws = q.sample((10,))
    with seeded(7, CPU):
        terms = elbo_terms(vae, image)  # of `pvae score`, which takes the same draws
    given = q._drawn.e if isinstance(q, Flow) else draws
    found = page.execute_script(
        "const found = pvae.vae.score(pvae.imageX(3), arguments[0]); return [found.distortion, found.rate, found.elbo]",
        given[:, 0].tolist(),
    )
    close(found[0], terms["distortion"][0], 2e-5)
    if system == "vamp of flows":
        assert found[1:] == [None, None]
        assert "no rate" in page.find_element("id", "notes").text
    elif vae.has_density:
        close(found[1:], [terms["rate"][0], terms["elbo"][0]], 5e-5)


LAYERS = {
    "stride 2": nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "stride 3, no padding, no bias": nn.Conv2d(3, 5, 4, stride=3, bias=False),
    "stride 1": nn.Conv2d(3, 2, 3, padding=1),
    "stride 1, more padding than pixels of the kernel": nn.Conv2d(3, 2, 3, padding=4),
    "transposed": nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1),
    "transposed, output padding": nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=(1, 0)),
    "transposed, eight values of a tap": nn.ConvTranspose2d(3, 8, 3, stride=2, padding=1),
    "transposed, kernel of 4, no bias": nn.ConvTranspose2d(3, 1, 4, stride=3, output_padding=(0, 2), bias=False),
    "without a nonlinearity between": nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ConvTranspose2d(5, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, padding=2)
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("by", ["kernel", "script"])
def test_a_convolution_of_the_page_is_that_of_torch(grey, opened, by):
    """Also where some values are 0, which the loops of the script leave out of their sums."""
    page, x = opened(grey), torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0)).relu()
    page.execute_script(
        "window.calls = new Set();"
        "if (arguments[0] === 'script') simd = null;"
        "else for (const [name, f] of Object.entries(simd = {...simd}))"
        "  if (name !== 'memory') simd[name] = (...sizes) => (calls.add(name), f(...sizes));",
        by,
    )
    for name, layer in LAYERS.items():
        shape, found = page.execute_script(
            "const [operations, shape, values] = arguments;"
            "for (const one of operations) for (const kind of ['weight', 'bias'])"
            "  if (one[kind]) one[kind].data = Float32Array.from(one[kind].data);"
            "const found = forward(operations, {shape, data: Float32Array.from(values)});"
            "return [found.shape, Array.from(found.data)]",
            _operations_with_values(layer),
            list(x.shape),
            x.flatten().tolist(),
        )
        expected = layer(x[None])[0]
        assert shape == list(expected.shape), name
        close(found, expected.flatten())
    assert sorted(page.execute_script("return [...calls]")) == (["product", "scatter"] if by == "kernel" else [])


def _operations_with_values(layer):
    """The operations of a layer as the page has them once it has read the tensors."""
    tensors = Tensors()
    found = operations(layer, tensors)
    for operation in found:
        for kind in ("weight", "bias"):
            if operation.get(kind):
                _, start, stop, shape = operation[kind]["tensor"]
                values = np.frombuffer(bytes(tensors.bytes[start:stop]), np.float32).tolist()
                operation[kind] = {"shape": shape, "data": values}
    return found


def test_draws_of_the_page_have_the_distribution_of_torch(train, opened):
    """By the means of z and of log q, whose negative is the entropy, at 10,000 draws; they fail once in 10^8 runs."""
    run = train(SYSTEMS["sphere"])
    page, vae = opened(run), run.vae()
    z, log_q = page.execute_script(
        "const q = pvae.vae.posterior(pvae.imageX(0)), draws = list(10000, () => q.at(q.draw()));"
        "return [draws.map(one => one.z), draws.map(one => one.logQ[0])]"
    )
    place = run.dataset().test_names.index(page.execute_script("return pvae.content.image_names[0]"))
    (x,) = Pixels(run_batch(run, "test").x.images[[place]], run.preparation).split(1)
    with torch.no_grad():
        q = vae.posterior(x)
    for drawn, expected in ((torch.tensor(z), q.mean[0]), (torch.tensor(log_q)[:, None], -q.entropy())):
        error = drawn.std(0) / 100
        assert ((drawn.mean(0) - expected).abs() < 6 * error).all()
        assert error.max() < 0.02


def test_the_numbers_on_the_page_are_those_of_its_score(train, opened):
    page = opened(train({}))
    for _ in range(2):
        wait(page, "return !pvae.state.frame")
        shown, found = page.execute_script(  # in one call, so that nothing is drawn between
            "const names = ['distortion', 'rate', 'elbo'], s = pvae.state.scored;"
            "return [names.map(one => document.querySelector(`#${one} td`).innerText), names.map(one => s[one])]"
        )
        assert [one.split()[0].replace("\u2212", "-") for one in shown] == [f"{value:.2f}" for value in found]
        page.find_element("id", "redraw").click()


def test_everything_can_be_done_by_keys_and_clicks(train, opened):
    page = opened(train({"upper_latent_dims": (3,), "inference": "ladder", **BINARY}))
    state = "return JSON.stringify([pvae.state.top, pvae.state.offsets, pvae.state.tiles])"
    decoded = "return document.getElementById('decoded').toDataURL()"
    before, image, keys = page.execute_script(state), page.execute_script(decoded), webdriver.Keys

    def element(selector, place=0):
        return page.find_elements("css selector", selector)[place]

    for act in (
        lambda: element("#map").send_keys(keys.ARROW_LEFT, keys.ARROW_UP),
        lambda: element("#map").send_keys("t"),
        lambda: element("#strip button", 4).click(),
        lambda: element("#tab-image").send_keys(keys.ARROW_RIGHT) or element("#sheet button", 2).click(),
        lambda: (
            element("#tab-samples").send_keys(keys.ARROW_RIGHT),
            element("#sliders input").send_keys(keys.ARROW_RIGHT),
        ),
        lambda: element("#sliders input", -1).send_keys(keys.ARROW_RIGHT),
    ):
        act()
        wait(page, f"{state} !== {json.dumps(before)}")  # a page may answer late, or never: then its time is up
        before = page.execute_script(state)
    page.find_element("id", "ask").click()
    wait(page, "return document.getElementById('why').textContent.includes('KL')")
    wait(page, f"{decoded} !== {json.dumps(image)}")


def test_the_image_under_the_pointer_is_decoded(train, opened):
    page = opened(train({"latent_dim": 2}))
    chain = webdriver.ActionChains(page)
    for offset in ((40, 30), (-60, 10)):
        chain.move_to_element_with_offset(page.find_element("id", "map"), *offset).perform()
        wait(page, "return !pvae.state.frame")
        mean, shown = page.execute_script(
            "const copy = document.createElement('canvas').getContext('2d');"
            "copy.drawImage(document.getElementById('decoded'), 0, 0);"
            "return [Array.from(pvae.vae.mean(pvae.state.top)), Array.from(copy.getImageData(0, 0, 10, 13).data)]"
        )
        step = page.execute_script("return 2 * pvae.state.range / document.getElementById('map').clientWidth")
        close(page.execute_script("return pvae.state.top"), [step * offset[0], -step * offset[1]], 0.05)
        pixels = np.array(shown).reshape(13, 10, 4)[..., :3].transpose(2, 0, 1)
        assert np.abs(np.array(mean).reshape(3, 13, 10) * 255 - pixels).max() <= 0.51


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_frame_of_the_book_is_as_high_as_its_page_and_has_the_theme_of_the_book(train, browser, tmp_path, theme):
    (tmp_path / "explore-fashion-vae.html").write_text(explorer_page(train({"latent_dim": 2})), "utf-8")
    frame = (Path(__file__).parents[2] / "notebooks" / "explorer.html").read_text("utf-8")
    file = tmp_path / "index.html"
    file.write_text(f"<!doctype html><body data-theme='{theme}'><main class='content'>{frame}</main>", "utf-8")
    browser.get(file.as_uri())
    browser.set_script_timeout(30)
    wait(browser, "return document.getElementById('explorer').clientHeight > 640")
    browser.switch_to.frame("explorer")
    wait(browser, "return innerHeight === document.documentElement.offsetHeight")
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.switch_to.default_content()
    assert (paper == "rgb(17, 20, 24)") == (theme == "dark")


def test_runs_side_by_side_follow_one_pointer(train, opened):
    """Each decodes the z under the pointer over any of their maps, and shows the image that is picked in any."""
    systems = {"a": {"posterior": "delta"}, "b": {"beta": 0.1}, "c": {"beta": 4.0}}
    runs = [train({"latent_dim": 2, **options}, name=name) for name, options in systems.items()]
    page = opened(*runs)
    state = "return [pvae.state.top, Array.from(pvae.state.x), pvae.state.focus, pvae.state.tiles]"

    def states(script, place, condition):
        """The state of each frame after a script in one of them, when a condition holds in all."""
        found = []
        for one in [place, 0, 1, 2]:
            page.switch_to.frame(one)
            if len(found) == 0 and script:
                page.execute_script(script)
                script = ""
            else:
                wait(page, f"return !pvae.state.frame && {condition}")
                found.append(page.execute_script(state))
            page.switch_to.default_content()
        return found

    _, *first = states("", 0, "pvae.state.x")
    assert first[0][1] == first[1][1] == first[2][1], "all show the same image at first"
    move = (
        "const map = document.getElementById('map'), box = map.getBoundingClientRect(), {range, middle} = pvae.state;"
        "const at = i => i * box.width / 2 / range + box.width / 2;"
        "const place = {clientX: box.left + at(0.3 - middle[0]), clientY: box.top + at(0.2 + middle[1])};"
        "place.pointerType = 'mouse';"
    )
    for place in (0, 2):
        moved = states(
            f"{move} map.dispatchEvent(new PointerEvent('pointermove', place))", place, "pvae.state.top[0] > 0"
        )
        for top, *_ in moved:
            close(top, [0.3, -0.2], 1e-4)
        states("document.getElementById('map').dispatchEvent(new PointerEvent('pointerleave', {pointerType: 'mouse'}))",
               place, "pvae.state.top === pvae.state.rest.top")  # fmt: skip
    picked = "document.querySelectorAll('#strip button')[7].getAttribute('aria-pressed') === 'true'"
    shown = states("document.querySelectorAll('#strip button')[7].click()", 1, picked)
    assert shown[0][1] == shown[1][1] == shown[2][1]
    assert shown[0][0] != shown[1][0], "the code of the image is that of each encoder"
    page.switch_to.frame(2)
    close(page.execute_script("return Array.from(pvae.imageX(7))"), shown[0][1])
    page.switch_to.default_content()
    states("document.querySelectorAll('#legend button')[1].click()", 0, "pvae.state.focus === 1")
    states("document.getElementById('tiles').click()", 2, "pvae.state.tiles")


@pytest.fixture
def moving(train, opened):
    """A run of two latents, its page, and a function that waits until it is at an instant and returns its dots."""
    run = train({"latent_dim": 2, "network": "conv", "hidden": (4, 6)})
    page = opened(run)

    def dots_at(place):
        wait(page, f"return pvae.state.instant === {place} && pvae.state.share === 1")
        return torch.tensor(page.execute_script("return Array.from(pvae.content.points.data)")).view(20, 2)

    return run, page, dots_at


@torch.no_grad()
def test_the_page_shows_the_history(moving):
    """Codes of each instant, and what the decoder computes that was kept last; the end is the run."""
    run, page, dots_at = moving
    shown = torch.randperm(20, generator=torch.Generator().manual_seed(0))  # the order on the page
    z, history = torch.tensor([[0.4, -0.9], [-1.0, 0.3]]), run.history()
    history = [one for one in history if one.step < run.read_checkpoint().step]  # the last step is the run as it is
    assert len(history) > 1
    end = len(history)
    codes = encode(run.vae(), run.preparation.x_of(run.loaded.test))[shown]
    close(dots_at(end).tolist(), codes, 2e-3)
    page.find_elements("css selector", "#strip button")[0].click()
    vae = build_vae(run.config, run.data.datum_shape).eval()
    for place, one in [*enumerate(history)][::-1]:
        page.execute_script(
            "const one = document.getElementById('instant'); one.value = arguments[0]; one.oninput({target: one});",
            place,
        )
        close(dots_at(place).tolist(), one.codes, one.codes.abs().max() / 120)
        by = next((other for other in history[place::-1] if other.weights), None)
        by = by or next(other for other in history if other.weights)
        vae.load_state_dict(by.weights)
        found = page.execute_script("return arguments[0].map(z => Array.from(pvae.vae.mean(z)))", z.tolist())
        close(found, vae.likelihood(z).mean.flatten(1), 0.05)  # weights of an instant have five bits
        text = page.find_element("id", "history").text
        assert f"after {by.step} step" in text
        assert f"{one.distortion:.2f}" in text
        assert f"{one.rate:.2f}" in text
        assert not page.find_element("id", "elbo").is_displayed(), "the encoder of an instant is not known"
    assert page.execute_script("return pvae.state.placed") == [], "names wait until dots part"
    page.find_elements("css selector", "#strip button")[1].click()
    assert page.find_element("id", "elbo").is_displayed(), "an image that is picked is encoded at the end"
    close(dots_at(end).tolist(), codes, 2e-3)
    close(page.execute_script("return arguments[0].map(z => Array.from(pvae.vae.mean(z)))", z.tolist()),
          run.vae().likelihood(z).mean.flatten(1))  # fmt: skip


def test_the_training_is_played(moving):
    _, page, dots_at = moving
    end = page.execute_script("return pvae.content.history.length")
    last = dots_at(end)
    curve = "return document.getElementById('curve').toDataURL()"
    before = page.execute_script(curve)
    page.find_element("id", "play").click()
    first = dots_at(0)
    assert (first - last).abs().max() > 0.01
    assert page.execute_script(curve) != before
    assert torch.equal(dots_at(end), last)
    wait(page, "return !pvae.state.playing")
    assert page.execute_script(curve) == before


@pytest.mark.parametrize("system", ["ladder", "mlp"])
def test_the_address_opens_the_page_as_it_was(train, opened, system):
    """Picked image, latents, step of the story, and of two latents the instant; the browser keeps no entry of it."""
    run = train({**SYSTEMS[system], **({"latent_dim": 2} if system == "mlp" else {})})
    page, keys = opened(run), webdriver.Keys
    entries = page.execute_script("return history.length")
    page.find_elements("css selector", "#strip button")[4].click()
    page.find_element("id", "map").send_keys(keys.ARROW_LEFT, keys.ARROW_UP)
    if system == "mlp":
        page.find_element("id", "instant").send_keys(keys.ARROW_LEFT)
    page.find_element("id", "tour").send_keys(keys.ENTER)
    wait(page, "return location.hash.includes('step=1') && location.hash.includes('image=4')")
    state = (
        "return [pvae.vae.join(pvae.state.top, pvae.state.offsets), Array.from(pvae.state.x), pvae.state.instant,"
        "pvae.tellStory.number, history.length]"
    )
    before, address = page.execute_script(state), page.current_url
    page.get("about:blank")
    page.get(address)
    wait(page, "return window.pvae && pvae.tellStory.number === 1")
    after = page.execute_script(state)
    close(after[0], before[0], 2e-3)
    assert after[1:4] == before[1:4]
    count = page.execute_script("return pvae.content.history.length")
    assert before[2] == (count - 1 if system == "mlp" else 0)
    assert before[4] == entries
    page.execute_script("location.hash = 'image=4'")  # without an instant and a step: the end, and no story
    wait(page, "return pvae.tellStory.number === 0 && pvae.state.instant === pvae.content.history.length")


@pytest.mark.parametrize(("system", "steps"), [("mlp", 6), ("spline", 2), ("map", 7)])
def test_the_story_is_told_by_keys(train, opened, system, steps):
    """Each step has a sentence and a part of the page, five also a term; a VAE that cannot encode has two."""
    page, keys = opened(train(SYSTEMS.get(system, {"latent_dim": 2}))), webdriver.Keys
    told = (
        "const seen = (one) => one.checkVisibility() && one.innerText || one.id;"
        "const all = (where) => [...document.querySelectorAll(where)].filter(one => one.checkVisibility()).map(seen);"
        "return [all('#story li'), all('#story .equation .lit'), all('main .lit')]"
    )
    page.find_element("id", "tour").send_keys(keys.ENTER)
    stories = [page.execute_script(told)]
    for _ in range(steps - 1):
        page.switch_to.active_element.send_keys(keys.ARROW_RIGHT)
        stories.append(page.execute_script(told))
    assert len({json.dumps(one[:2]) for one in stories}) == steps
    assert all(len(sentence) == 1 and parts for sentence, _, parts in stories)
    assert all(terms for _, terms, _ in stories[:5])
    assert len({sentence for (sentence,), _, _ in stories}) == steps
    page.switch_to.active_element.send_keys(keys.ARROW_LEFT)
    assert page.execute_script(told)[0] == stories[-2][0]
    page.switch_to.active_element.send_keys(keys.ESCAPE)
    assert page.execute_script(told) == [[], [], []]
    assert page.switch_to.active_element.get_attribute("id") == "tour"


def test_pictures_are_saved(train, opened, tmp_path):
    """What is decoded, each pixel a square; and the map."""
    page = opened(train({"latent_dim": 2}))
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for button, name in (("save", "decoded"), ("save-map", "map")):
        page.find_element("id", button).click()
        for _ in range(500):
            if files := [*tmp_path.glob(f"*{name}.png")]:
                break
            time.sleep(0.02)
        picture = np.array(Image.open(files[0]).convert("RGB"))
        if name == "decoded":
            mean = page.execute_script("return Array.from(pvae.vae.mean(pvae.state.top))")
            expected = (255 * torch.tensor(mean).view(3, 13, 10)).round().permute(1, 2, 0)
            assert np.abs(picture.reshape(13, 40, 10, 40, 3) - expected[:, None, :, None].numpy()).max() <= 1
        else:
            assert picture.shape[0] == picture.shape[1] > 300
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("system", ["mlp", "sphere", "ladder"])
def test_a_dot_under_the_pointer_is_decoded_by_its_whole_code(train, opened, system):
    run = train(SYSTEMS[system])
    page = opened(run)
    shown = torch.randperm(20, generator=torch.Generator().manual_seed(0))  # the order on the page
    codes = encode(run.vae(), run.preparation.x_of(run.loaded.test))[shown].double()
    codes = torch.nn.functional.normalize(codes, dim=-1) if system == "sphere" else codes
    found = page.execute_script(
        "const {state, content, vae, drawHere} = pvae, columns = content.points.shape[1];"
        "const map = document.getElementById('map');"
        "const box = map.getBoundingClientRect(), out = [], rest = JSON.stringify(state.top);"
        "for (let i = 0; i < content.points.shape[0]; i++) {"
        "  const [u, v] = [0, 1].map(d => (content.points.data[i * columns + d] - state.middle[d]) / state.range);"
        "  const clientX = box.left + (u + 1) / 2 * box.width, clientY = box.top + (1 - v) / 2 * box.height;"
        "  map.dispatchEvent(new PointerEvent('pointermove', {clientX, clientY})); drawHere();"
        "  out.push([state.dot, ...vae.join(state.top, state.offsets)]); }"
        "const last = state.dot; document.getElementById('whole').click();"
        "map.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left, clientY: box.top})); drawHere();"
        "const kept = [state.dot, state.kept === last];"
        "map.dispatchEvent(new PointerEvent('pointerleave', {pointerType: 'mouse'}));"
        "return [out, JSON.stringify(state.top) === rest, kept, state.kept]"
    )
    dots = [int(row[0]) for row in found[0]]
    own = [i for i, dot in enumerate(dots) if dot == i]  # the others lie beneath another dot
    assert len(own) > 10
    close([found[0][i][1:] for i in own], codes[dots][own], 2e-3)
    assert found[1], "the pick is back when the pointer has left"
    assert found[2:] == [[None, True], None], "the last dot is marked, as long as its latents are held"


@pytest.mark.parametrize("system", ["conv", "mlp"])
def test_tiles_are_the_decoded_middles_of_their_places(train, opened, system):
    page = opened(train(SYSTEMS[system]))
    time.sleep(0.3)  # after the first pick, or the map would begin anew
    page.find_element("id", "tiles").click()
    wait(page, "return pvae.state.sheet && pvae.state.sheet.tiles.every(one => one.mean)")
    count, places, differences = page.execute_script(
        "const {tiles} = pvae.state.sheet, state = pvae.state;"
        "const top = one => [0, 1].map(d => one.z[pvae.content.planes[0].dims[d]]);"
        "return [Math.sqrt(tiles.length), tiles.map(one => [one.column, one.row, ...top(one), state.range]),"
        "  tiles.map(one => Math.max(...pvae.vae.mean(one.z).map((value, i) => Math.abs(value - one.mean[i]))))]"
    )
    assert max(differences) == 0
    column, row, u, v, extent = torch.tensor(places).T
    close(u, ((2 * column + 1) / count - 1) * extent)
    close(v, (1 - (2 * row + 1) / count) * extent)


POINT = """
const map = document.getElementById("map"), {state} = pvae;
const at = (x, y, box = map.getBoundingClientRect()) =>
  ({clientX: box.left + Math.round(x * box.width), clientY: box.top + Math.round(y * box.height), cancelable: true});
const place = ({clientX, clientY}, box = map.getBoundingClientRect()) => {
  map.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY, pointerType: "mouse", pointerId: 9}));
  return Array.from(state.top);
};
const finger = (kind, id, x, y) => map.dispatchEvent(
  new PointerEvent(kind, {...at(x, y), pointerId: id, pointerType: "touch"}));
const view = () => [...state.middle, state.range];
"""


def test_the_map_zooms_about_the_pointer_and_back(train, opened):
    """By the wheel, keys, and two fingers; a drag moves it; a double click is the way back."""
    page = opened(train({"latent_dim": 2}))
    before, zoomed, after, home, view, fixed, pinched, panned, back = page.execute_script(
        f"{POINT} const home = view(), one = at(0.7, 0.2), found = [place(one)];"
        "map.dispatchEvent(new WheelEvent('wheel', {...one, deltaY: -400}));"
        "found.push(view(), place(one), home);"
        "finger('pointerdown', 1, 0.4, 0.4); finger('pointerdown', 2, 0.6, 0.4);"
        "const middle = place(at(0.5, 0.4)); found.push(view());"
        "finger('pointermove', 1, 0.3, 0.4); finger('pointermove', 2, 0.7, 0.4);"
        "finger('pointerup', 1, 0.3, 0.4); finger('pointerup', 2, 0.7, 0.4);"
        "found.push([...middle, ...place(at(0.5, 0.4))], view());"
        "const drag = (kind, x, y) => map.dispatchEvent("
        "  new PointerEvent(kind, {...at(x, y), pointerId: 9, pointerType: 'mouse'}));"
        "drag('pointerdown', 0.5, 0.5); const start = [state.middle[0], state.range];"
        "drag('pointermove', 0.4, 0.5); drag('pointerup', 0.4, 0.5);"
        "found.push([...start, state.middle[0]]);"
        "map.dispatchEvent(new MouseEvent('dblclick')); found.push(view());"
        "return found"
    )
    assert zoomed[2] < home[2] / 2
    close(after, before, 0.01)
    close(fixed[:2], fixed[2:], 0.02)
    assert pinched[2] == pytest.approx(view[2] / 2, rel=0.05)
    assert panned[2] - panned[0] == pytest.approx(0.2 * panned[1], rel=0.1)
    assert back == home
    page.find_element("id", "map").send_keys("+" * 99)
    assert page.execute_script("return pvae.state.range") == pytest.approx(home[2] / 30)
    page.find_element("id", "map").send_keys(webdriver.Keys.ESCAPE)
    assert page.execute_script(f"{POINT} return view()") == home
    trapped = page.execute_script(
        "document.body.classList.add('is-inside');"  # of a page around it, which the wheel moves
        "return [false, true].map((ctrlKey) => !document.getElementById('map').dispatchEvent("
        "  new WheelEvent('wheel', {ctrlKey, deltaY: -40, cancelable: true})));"
    )
    assert trapped == [False, True]


@pytest.mark.parametrize("network", ["mlp", "conv-batchnorm"])
@pytest.mark.parametrize("is_class", [True, False])
def test_a_vae_given_labels_is_given_those_that_are_chosen(train, opened, network, is_class):
    """Decoder and encoder of the page are those of torch for each label; an image that is picked has its own."""
    names, y = ("a", "<b>", "c"), torch.arange(70) % 3
    y = y if is_class else torch.stack([y == 0, y > 0, y == 1], 1)
    options = {"network": network, "hidden": (4, 6), "condition": True, "labels_given": (y, names)}
    run = train(options)
    page, vae = opened(run), run.vae()
    z = torch.randn(4, generator=torch.Generator().manual_seed(0))
    shown = torch.randperm(20, generator=torch.Generator().manual_seed(0))  # the order on the page
    x = run.preparation.x(run.loaded.test[shown])
    with torch.no_grad():
        codes = encode(vae, Batch(run.preparation.x_of(run.loaded.test), run.loaded.test_labels))[shown]
        for i in range(3):
            own = run.loaded.test_labels[shown[i]][None]
            page.find_elements("css selector", "#strip button")[i].click()
            found = page.execute_script(
                "const {loc} = pvae.state.scored.q; return [loc, Array.from(pvae.vae.mean(arguments[0]))]", z.tolist()
            )
            close(found[0], codes[i])
            close(found[1], vae.likelihood(z[None], own).mean.flatten())
        close(page.execute_script("return Array.from(pvae.content.codes.data)"), codes.flatten(), 2e-3)
        page.execute_script(
            "const given = document.getElementById('given');"
            "[...given.options].forEach((one, i) => one.selected = i === 1);"
            "given.onchange({target: given})"
        )
        chosen = torch.tensor([1]) if is_class else torch.tensor([[False, True, False]])
        found = page.execute_script(
            "return [pvae.vae.posterior(pvae.imageX(2)).loc, Array.from(pvae.vae.mean(arguments[0]))]", z.tolist()
        )
        close(found[0], vae.posterior(x[[2]], chosen).mean[0])
        close(found[1], vae.likelihood(z[None], chosen).mean.flatten())
        assert page.find_element("id", "given-each").is_displayed() == is_class
        if is_class:  # the same z, given each label
            page.find_element("id", "map").send_keys(webdriver.Keys.ARROW_LEFT)
            wait(page, "return !pvae.state.frame && !pvae.state.givenTimer")
            top, each = page.execute_script(
                "return [pvae.state.top, [...document.querySelectorAll('#given-each canvas')].map((one) =>"
                "Array.from(one.getContext('2d').getImageData(0, 0, one.width, one.height).data))]"
            )
            z_here = torch.tensor(top)[None]
            for label, pixels in enumerate(each):
                mean = vae.likelihood(z_here, torch.tensor([label])).mean[0].movedim(0, -1)
                close(torch.tensor(pixels).view(*mean.shape[:2], 4)[..., :3] / 255, mean, 0.003)


@pytest.mark.parametrize("posterior", ["normal", "spline"])
def test_attributes_have_directions(train, opened, tmp_path, posterior):
    """The slider of an attribute moves z by as much as `attribute_vector` says; also where the page only decodes."""
    run = train({"latent_dim": 2, "posterior": posterior})
    has = torch.arange(20)[:, None] % torch.tensor([2, 3]) == 0
    run.loaded = dataclasses.replace(
        run.loaded, train_labels=has.repeat(3, 1)[:50], test_labels=has, label_names=("a", "<b>")
    )
    page = opened(run)
    expected = attribute_vector(encode(run.vae(), run_batch(run, "test")), has[:, 1])
    page.find_element("id", "tab-latents").click()
    before = torch.tensor(page.execute_script("return pvae.state.top"))
    script = "const [, one] = document.querySelectorAll('#attributes input'); one.value = 1.5; one.oninput();"
    close(page.execute_script(f"{script} return pvae.state.top"), before + 1.5 * expected)
    assert [one.text for one in page.find_elements("css selector", "#attributes span")] == ["a", "<b>"]
    page.find_element("id", "origin").click()
    wait(page, "return !pvae.state.frame")
    assert page.execute_script("return document.querySelectorAll('#attributes input')[1].value") == "0"


def test_a_drawing_is_an_image(train, opened):
    page = opened(train({"latent_dim": 2, "pad": 1}))
    page.find_element("id", "draw").click()
    pad = page.find_element("id", "pad")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
    height, width = pad.size["height"], pad.size["width"]
    assert height / width == pytest.approx(13 / 10, abs=0.05)
    # Along the middle of the lower half
    start = webdriver.ActionChains(page).move_to_element_with_offset(pad, round(-0.3 * width), round(height / 4))
    start.click_and_hold().move_by_offset(round(0.6 * width), 0).release().perform()
    x = np.array(page.execute_script("return Array.from(pvae.state.x)")).reshape(3, 15, 12)
    paper = x[:, 1:-1, 1:-1]
    drawn = np.abs(paper - paper[:, :1, :1]).max(0)
    assert page.find_element("id", "x-name").text == "your drawing"
    assert drawn[9:11].max(0)[2:8].min() > 0.2, "the stroke"
    assert drawn[:8].max() == 0, "and nothing above it"


def test_a_file_is_taken_or_refused_with_a_sentence(train, opened, tmp_path):
    page = opened(train({"latent_dim": 2, "pad": 1}))
    files = {name: tmp_path / name for name in ("no<b>image.png", "other.png", "same.png")}
    files["no<b>image.png"].write_text("text")
    rng = np.random.default_rng(0)
    same = rng.integers(0, 256, (13, 10, 3), dtype=np.uint8)
    Image.fromarray(same).save(files["same.png"])
    Image.fromarray(rng.integers(0, 256, (40, 60), dtype=np.uint8)).save(files["other.png"])

    def give(file):
        ids = ("message", "x-name")
        for one in ids:
            page.execute_script("document.getElementById(arguments[0]).textContent = ''", one)
        page.find_element("id", "file").send_keys(str(file))
        wait(page, "return ['message', 'x-name'].some(one => document.getElementById(one).textContent)")
        return tuple(page.find_element("id", one).text for one in ids)

    assert give(files["same.png"]) == ("", "same.png")
    expected = np.pad(same.transpose(2, 0, 1) / 255, ((0, 0), (1, 1), (1, 1))).ravel()
    close(page.execute_script("return Array.from(pvae.state.x)"), expected, 1e-6)
    for name, shown in {"other.png": "other.png", "no<b>image.png": ""}.items():
        message, found = give(files[name])
        assert message
        assert found == shown
    assert give(files["same.png"]) == ("", "same.png"), "it goes on"


def test_a_dark_shape_on_light_paper_is_inverted_if_one_asks_for_it(opened, tmp_path, no_pictures):
    """Of a run on light shapes on dark paper; a light shape on dark paper is taken as it is, without an offer."""
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 2:6, 2:6] = torch.arange(40, dtype=torch.uint8)[:, None, None, None] * 3 + 100
    config = Config(hidden=(4,), latent_dim=2, pad=2, epochs=1, batch_size=10)
    run = fit(config, data=Dataset("grey", images[:20], images[20:]), out=tmp_path / "run", device="cpu")
    page = opened(run)
    for name, pixels, is_offered in (("dark.png", 255 - images[0, 0], True), ("light.png", images[0, 0], False)):
        Image.fromarray(pixels.numpy()).save(tmp_path / name)
        page.find_element("id", "file").send_keys(str(tmp_path / name))
        wait(page, f"return document.getElementById('x-name').textContent === '{name}'")
        assert page.find_element("id", "invert").is_displayed() is is_offered
        x = np.array(page.execute_script("return Array.from(pvae.state.x)")).reshape(12, 12)
        close(x[2:-2, 2:-2], pixels / 255)
        if is_offered:
            page.find_element("id", "invert").click()
            x = np.array(page.execute_script("return Array.from(pvae.state.x)")).reshape(12, 12)
            close(x[2:-2, 2:-2], images[0, 0] / 255)
            assert x[:2].max() == 0, "the padding stays"
            assert not page.find_element("id", "invert").is_displayed()


@pytest.fixture
def grey(tmp_path, no_pictures):
    """A run of two latents on 70 padded grey images, which two factors explain, of 8 x 8 pixels."""
    generator = torch.Generator().manual_seed(0)
    factors, patterns = torch.randn(70, 2, generator=generator), torch.randn(2, 64, generator=generator)
    images = (255 * (4 * factors @ patterns).sigmoid()).to(torch.uint8).view(70, 1, 8, 8)
    data = Dataset("grey", images[:20], images[20:])
    config = Config(hidden=(4,), latent_dim=2, pad=2, epochs=1, batch_size=10)
    return fit(config, data=data, out=tmp_path / "run", device="cpu")


def dense_vae(parameters, shape, hidden):
    """Return in float64 the VAE of two latents that has the parameters of one in the page."""
    vae = build_vae(Config(hidden=(hidden,), latent_dim=2), shape).double()
    weights = [*vae.q_z.parameters(), *vae.p_x.parameters()]
    with torch.no_grad():
        for weight, values in zip(weights, parameters, strict=True):
            found = torch.tensor(values, dtype=torch.float64)
            weight.copy_(found.view(weight.t().shape).t())
    return vae, weights


def test_the_gradients_of_the_training_in_the_page_are_those_of_torch(grey, opened):
    """Of distortion + 0.7 x rate, where some of the log scales are below their bound of -7."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.rand(11, 30, generator=generator).round(), torch.randn(11, 2, generator=generator)
    start, distortion, rate, gradients = opened(grey).execute_script(
        f"{SEEDED} const vae = new DenseVae(30, 7);"
        "const [x, noise] = [...arguments].map(one => Float32Array.from(one.flat()));"
        "vae.encoder.layers[1].bias[3] = -7; const start = vae.parameters.map(one => Array.from(one));"
        "const found = vae.lossAndGradients(x, noise, 0.7);"
        "return [start, found.distortion, found.rate, found.gradients.map(one => Array.from(one))]",
        x.tolist(),
        noise.tolist(),
    )
    vae, weights = dense_vae(start, (1, 5, 6), 7)
    x = x.double().view(11, 1, 5, 6)
    q = vae.posterior(x)
    assert 0 < (q.stddev[:, 1] == math.exp(-7)).sum() < 11
    expected = [-vae.likelihood(q.mean + q.stddev * noise).log_prob(x).mean(), kl_divergence(q, vae.prior()).mean()]
    close([distortion, rate], torch.stack(expected).detach())
    (expected[0] + 0.7 * expected[1]).backward()
    for found, weight in zip(gradients, weights, strict=True):
        close(torch.tensor(found).view(weight.t().shape).t().tolist(), weight.grad)


def test_adam_in_the_page_is_that_of_torch(grey, opened):
    gradients = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-3, 1e-6, 0])
    start, found = opened(grey).execute_script(
        f"{SEEDED} const vae = new DenseVae(30, 7), [first] = vae.parameters, start = Array.from(first.slice(0, 4));"
        "for (const gradient of arguments[0]) vae.adam(vae.parameters.map((one, p) => p ? one.map(() => 0) : "
        "  one.map((_, i) => gradient[i] || 0)), 0.01);"
        "return [start, Array.from(first.slice(0, 4))]",
        gradients.tolist(),
    )
    weight = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.01)
    for gradient in gradients:
        weight.grad = gradient.double()
        optimizer.step()
    assert (weight[:3] - torch.tensor(start)[:3]).abs().min() > 0.01
    close(found, weight.detach(), 2e-6)


def test_a_vae_trains_in_the_page(grey, opened):
    """The ELBO rises by more than 10 of about 44 nats; log p(x) is near that of a grid of 601 x 601 places in torch."""
    page = opened(grey)
    page.find_element("id", "tab-train").click()
    page.find_element("id", "learning-rate").send_keys(*[webdriver.Keys.ARROW_RIGHT] * 5)
    wait(page, "return document.querySelector('#learning-rate + output').textContent === '0.010'")
    page.find_element("id", "run").click()
    wait(page, "return pvae.training.vae.steps > 1")
    page.find_element("id", "run").click()
    page.execute_script(  # with the same numbers each time, 400 steps from new weights
        f"{SEEDED} document.getElementById('new-weights').click();"
        "while (pvae.training.history.length < 5) pvae.training.task.next();"
    )
    history, parameters, fine, coarse, codes = page.execute_script(
        "const {vae, history} = pvae.training, bits = Array.from(pvae.content.bits.data);"
        "const x = Float32Array.from(bits.flatMap(byte => list(8, i => (byte >> (7 - i)) & 1)));"
        "const task = vae.logMarginals(x); let step; do step = task.next(); while (!step.done);"
        "const {fine, coarse} = step.value, {loc} = vae.posterior(vae.encoder.values(x, 50).at(-1), 50);"
        "return [history, vae.parameters.map(one => Array.from(one)), fine, coarse, Array.from(loc)]"
    )
    shown = torch.randperm(50, generator=torch.Generator().manual_seed(0))  # the order on the page
    x = (grey.loaded.test[shown] >= 128).double()
    vae, _ = dense_vae(parameters, (1, 8, 8), 64)
    with torch.no_grad():
        close(codes, vae.posterior(x).mean.flatten(), 1e-4)
        row = torch.linspace(-6, 6, 601, dtype=torch.float64)
        z = torch.cartesian_prod(row, row)
        logits = vae.p_x.decoder(z).flatten(1)
        log_joint = logits @ x.flatten(1).T - torch.nn.functional.softplus(logits).sum(1, keepdim=True)
        log_joint += vae.prior().log_prob(z)[:, None] + 2 * math.log(0.02)
    error = (torch.tensor(fine) - log_joint.logsumexp(0)).abs()
    assert error.median() < 0.02
    assert error.mean() < 0.05, "a few posteriors are wider than the cells around q"
    assert error.mean() < (torch.tensor(fine) - torch.tensor(coarse)).abs().mean() < 0.2, "the error that is shown"
    assert history[-1]["elbo"] > history[0]["elbo"] + 10
    assert all(one["logP"] > one["elbo"] - 6 * one["stderr"] for one in history)
