"""The site, built once for all workers, served, and open in a browser.

What the tests know of it without a browser stands in `tests/site/built.py`.
"""

import collections
import fcntl
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.site.built import PREFIX, ROOT, Handler, Page, Window

QUIET = [
    f"--{option}"
    for option in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    )
]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder that a strict build of the site made."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers: the first one here builds, the others wait
    folder, done = shared / "www" / PREFIX.strip("/"), shared / "site-is-built"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    with (shared / "site-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            built = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True
            )
            assert built.returncode == 0, built.stderr[-4000:]
            done.touch()
    return folder


@pytest.fixture(scope="session")
def pages(site) -> dict[str, Page]:
    """Every page by its address below the site's root."""
    return {
        path.relative_to(site).as_posix().removesuffix("index.html"): Page(path)
        for path in sorted(site.rglob("*.html"))
    }


@pytest.fixture(scope="session")
def base(site):
    """The site's address on this machine."""
    root = str(site)[: -len(PREFIX.rstrip("/"))] if PREFIX != "/" else str(site)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=root)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    assert program, "no chromium on the PATH; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def windows() -> dict[str, list[Window]]:
    """Those that no test uses at the moment, by their options."""
    return collections.defaultdict(list)


@pytest.fixture
def open_page(browser, base, windows):
    """A function that opens a page in a window where nothing is stored.

    Its options are those of playwright's contexts, and `script`, which runs before those of a page.
    A call never gets a window that the test has already. Fails the test where a page went wrong.
    """
    used = []

    def open_page(address: str, **options):
        free = windows[json.dumps(options, sort_keys=True)]
        window = free.pop() if free else Window(browser, base, **options)
        used.append((window, free))
        window.page.goto(base + address)
        return window.page

    yield open_page
    wrong = []
    for window, free in used:
        wrong += window.empty()
        free.append(window)
    assert not wrong
