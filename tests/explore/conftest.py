"""Debian's chromium, and the pages of runs in it."""

from __future__ import annotations

import pytest
from helpers.browser import CHROMIUM, DRIVER, wait

from pvae.explore.page import explorer_page
from pvae.explore.side_by_side import side_by_side_page
from pvae.runs.run import shown_data

OPTIONS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
           "disable-component-update", "disable-sync", "window-size=1280,1100"]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Start chromium once for the tests of a module."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
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
