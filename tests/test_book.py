"""The pages of the book in Debian's chromium."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
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


class _Page(HTMLParser):
    """What a reader sees of a page: texts outside of code and formulas, empty headers, and the words for pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.faults = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("code", "pre", "script", "style", "math", "th"):
            self.open.append(tag)
            self.texts.append("")
        if tag == "img" and re.search("[0-9a-f]{32}", dict(attributes).get("alt") or ""):
            self.faults.append(f"a picture has the words {dict(attributes)['alt']}")

    def handle_data(self, data):
        if self.open:
            self.texts[-1] += data
        elif re.search(r"\$[^$]*\\|\\[(\[]", data):
            self.faults.append(f"a formula is not drawn: {data.strip()}")

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            text = self.texts.pop()
            if self.open.pop() == "th" and not text.strip():
                self.faults.append("a header is empty")
            self.texts[-1:] = [one + text for one in self.texts[-1:]]


def test_a_page_with_faults_is_found():
    faults = _Page(
        '<p>$\\log q$</p><th> </th><th><b>a</b></th><code>$\\log$</code><img alt="_images/%s.png">' % ("0a" * 20)
    ).faults
    assert [one[:12] for one in faults] == ["a formula is", "a header is ", "a picture ha"]


@pytest.mark.skipif("PVAE_SITE" not in os.environ, reason="PVAE_SITE, the folder of the built book, is not set")
def test_formulas_are_drawn_headers_say_something_and_pictures_have_words():
    pages = sorted(Path(os.environ["PVAE_SITE"]).glob("*.html"))
    assert len(pages) > 20
    faults = {one.name: _Page(one.read_text("utf-8")).faults for one in pages if not one.name.startswith("explore-")}
    assert not {name: found for name, found in faults.items() if found}
