"""The pages of the book in Debian's chromium."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.browser import needs_browser

STATIC = Path(__file__).parent.parent / "notebooks" / "static"
PAGE = """<!doctype html><link rel="stylesheet" href="book.css"><script src="book.js" defer></script>
<pre style="width: 200px; overflow: auto" id="wide">{}</pre><pre id="narrow">short</pre>
<math id="alone"><mi>w</mi></math> <math><msub><mi>w</mi><mi id="low">w</mi></msub></math>"""


@pytest.mark.workflow
@needs_browser
def test_subscripts_are_lowered_and_what_scrolls_can_be_focused(browser, tmp_path):
    shutil.copytree(STATIC, tmp_path / "book")
    (tmp_path / "book/page.html").write_text(PAGE.format("wide " * 50))
    browser.get((tmp_path / "book/page.html").as_uri())
    family, count, shift = browser.execute_async_script(
        """const done = arguments[0], {fontFamily} = getComputedStyle(document.querySelector("math"));
        const bottom = (id) => document.getElementById(id).getBoundingClientRect().bottom;
        const all = document.querySelectorAll("math");
        all.forEach((one) => (one.style.fontFamily = fontFamily.replace(", math", ", sans-serif")));
        document.fonts.load('16px "pvae math"').then(({length}) =>
          done([fontFamily, length, bottom("low") - bottom("alone")]));"""
    )
    assert family == '"pvae math", math'
    assert count == 1
    assert shift > 2
    focused = "return ['wide', 'narrow'].map((id) => document.getElementById(id).tabIndex)"
    assert browser.execute_script(focused) == [0, -1]
    assert (STATIC / "math.woff2").stat().st_size < 100_000
