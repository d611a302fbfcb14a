"""What tests in a real browser share."""

from __future__ import annotations

import shutil

import pytest
import torch

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")


def wait(browser, condition):
    """Wait until a script in the page returns what is true."""
    browser.execute_async_script(
        "const [test, done] = [new Function(arguments[0]), arguments[1]];"
        "(function again() { test() ? done() : setTimeout(again, 20); })();",
        condition,
    )


def close(found, expected, tolerance=1e-5):
    """Check that numbers of the page are those of torch."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, atol=tolerance, rtol=tolerance)
