"""A real browser for the tests: Debian's Chromium, driven by playwright.

`CHROMIUM` names another binary. Without one the tests are skipped, except where CI is set: there the suite's own
script installs Chromium, and its absence is a failure.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


def find_chromium() -> str | None:
    found = (shutil.which(name) for name in NAMES)
    return os.environ.get("CHROMIUM") or next((path for path in found if path), None)


def require_chromium() -> str:
    """The browser's path. Without one skips the test, or fails it in CI."""
    path = find_chromium()
    if path is not None:
        return path
    reason = "no Chromium: apt-get install chromium, or set CHROMIUM to its path"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def opened(url: str, size: dict[str, int] = DESKTOP, is_phone: bool = False) -> Iterator[Any]:
    """A page of its own session; what it asks of other hosts is refused and collected in `page.strangers`."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = require_chromium()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(QUIET))
        page = browser.new_page(viewport=size, has_touch=is_phone, is_mobile=is_phone)
        page.strangers = []
        own = "/".join(url.split("/")[:3]) + "/"

        def guard(route: Any) -> None:
            if route.request.url.startswith((own, "data:", "blob:")):
                route.continue_()
            else:
                page.strangers.append(route.request.url)
                route.abort()

        page.route("**/*", guard)
        page.set_default_timeout(60_000)
        page.goto(url, wait_until="domcontentloaded")
        try:
            yield page
        finally:
            browser.close()
