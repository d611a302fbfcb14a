"""Decodes a second in the page of `pvae explore`, in headless chromium, and the time until its tiles are drawn.

    python tests/benchmarks/decodes.py [RUN ...]

By default, for each run that comes with pvae. It prints the decodes a second of the page's own thread, the median of
five times one second, and the seconds from a press of "Tiles" to a first picture of all of them, and to the last one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver

from pvae.explore.page import explorer_page
from pvae.runs.record import READY_MADE
from pvae.runs.run import Run

OPTIONS = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1280,800")
DECODES = """
const draw = () => pvae.content.prior.sizes.flatMap(size => Array.from({length: size}, () => 4 * Math.random() - 2));
const second = () => {
  let count = 0;
  for (const start = performance.now(); performance.now() - start < 1000; count++) pvae.vae.mean(draw());
  return count;
};
second();
return [1, 2, 3, 4, 5].map(second).sort((a, b) => a - b)[2];
"""
TILES = """
const done = arguments[0], start = performance.now(), state = pvae.state, first = state.sheet;
let all;
document.getElementById("tiles").click();
(function again() {
  const now = (performance.now() - start) / 1000;
  all ||= state.sheet !== first && now;
  if (state.sheet !== first && state.sheet.tiles.every(one => one.mean)) done([all, now]);
  else setTimeout(again, 5);
})();
"""


def main() -> None:
    """Open the page of each run, and print its figures."""
    options = webdriver.ChromeOptions()
    for option in OPTIONS:
        options.add_argument(f"--{option}")
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as place, webdriver.Chrome(options, driver) as browser:
        browser.set_script_timeout(120)
        for name in sys.argv[1:] or READY_MADE:
            page = Path(place) / "page.html"
            page.write_text(explorer_page(Run.open(name)), "utf-8")
            browser.get(page.as_uri())
            browser.execute_async_script(
                "const done = arguments[0]; (function again() { window.pvae ? done() : setTimeout(again, 20); })()"
            )
            decodes = browser.execute_script(DECODES)
            print(f"{name}: {decodes} decodes a second", flush=True)
            first, last = browser.execute_async_script(TILES)
            print(f"{name}: all tiles after {first:.2f} s, in full after {last:.2f} s", flush=True)


if __name__ == "__main__":
    main()
