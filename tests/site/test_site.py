"""The built site: links and files as they lie on disk, then every page in headless Chromium."""

import functools
import gzip
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import axe_playwright_python
import nbformat
import pytest
from playwright.sync_api import sync_playwright

from scripts.lectures import lecture_name, syllabus

ROOT = Path(__file__).resolve().parents[2]
SITE_URL = re.search(r"(?m)^site_url: (\S+)", (ROOT / "mkdocs.yml").read_text())[1]
PREFIX = urlsplit(SITE_URL).path
LECTURES = {lecture_name(script): script for script in syllabus(ROOT)}
AXE = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text()
BROKEN_IMAGES = """[...document.images]
    .filter(image => image.checkVisibility() && image.complete && !image.naturalWidth)
    .map(image => "broken image " + image.src)"""
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
SCHEMES = {"light": "default", "dark": "slate"}  # to the browser, to Material
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
# bytes a second: 1.6 Mbit/s down
SLOW = {"offline": False, "latency": 150, "downloadThroughput": 2e5, "uploadThroughput": 1e5}
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
    )
]


class Page(HTMLParser):
    """The anchors of a page, and what it refers to as (tag, attributes, address)."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.references = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        for key in ("href", "src", "poster", "data"):
            if attrs.get(key):
                self.references.append((tag, attrs, attrs[key]))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as a web host does: compressed, with the site's page for what is missing."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.is_dir() and not self.path.endswith("/"):
            return super().do_GET()  # redirects
        path = path / "index.html" if path.is_dir() else path
        status = 200 if path.is_file() else 404
        if status == 404:
            path = Path(self.directory + PREFIX) / "404.html"
        body = gzip.compress(path.read_bytes(), 6)
        self.send_response(status)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder that a strict build of the site made."""
    folder = tmp_path_factory.mktemp("www") / PREFIX.strip("/")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
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


@pytest.fixture
def open_page(browser, base):
    """A function that opens a page in a context of its own, and the list of what went wrong."""
    contexts, wrong = [], []

    def open_page(address: str, **options):
        context = browser.new_context(**{"viewport": DESKTOP} | options)
        contexts.append(context)
        context.route(lambda url: not url.startswith(base), lambda route: route.abort())
        page = context.new_page()
        listen(page, base, wrong)
        page.goto(base + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def listen(page, base: str, wrong: list[str]) -> None:
    """Notes errors in the console and requests to other hosts."""

    def note(what: str) -> None:
        wrong.append(f"{page.url.removeprefix(base)}: {what}")

    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda line: note(line.text) if line.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith((base, "data:")) else note(r.url))


# as it lies on disk


def test_links_anchors_and_images_resolve(site, pages):
    broken = []
    for address, page in pages.items():
        for _, _, reference in page.references:
            url, fragment = urldefrag(urljoin(SITE_URL + address, reference))
            if not url.startswith(SITE_URL):
                continue
            target = unquote(urlsplit(url).path.removeprefix(PREFIX))
            if target in pages:
                if fragment and unquote(fragment) not in pages[target].anchors:
                    broken.append(f"{address}: no anchor {reference}")
            elif not (site / target).is_file():
                broken.append(f"{address}: no {reference}")
    assert not broken


def test_nothing_loads_from_another_host(site, pages):
    loading = {"script", "img", "iframe", "source", "video", "object", "embed", "use", "image"}
    own, foreign = (SITE_URL, "data:"), []
    for address, page in pages.items():
        for tag, attrs, reference in page.references:
            linked = tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev")
            loads = tag in loading or linked
            if loads and not urljoin(SITE_URL + address, reference).startswith(own):
                foreign.append(f"{address}: {reference}")
    for style in site.rglob("*.css"):
        for reference in re.findall(r"url\(\s*[\"']?([^\"')]+)", style.read_text()):
            if urlsplit(reference).netloc:
                foreign.append(f"{style.relative_to(site)}: {reference}")
    assert not foreign


def test_external_links_are_https(pages):
    schemes = {"", "https", "data", "mailto"}
    assert not [
        f"{address}: {reference}"
        for address, page in pages.items()
        for _, _, reference in page.references
        if urlsplit(reference).scheme not in schemes
    ]


def test_every_page_describes_itself(site, pages):
    for address in pages:
        file = address if address.endswith(".html") else f"{address}index.html"
        text = (site / file).read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]{5,}</title>", text), address
        assert re.search(r'<meta name="description" content="[^"]{30,}', text), address
        assert text.count("<h1") == 1, address


@pytest.mark.parametrize("name", LECTURES)
def test_downloads(site, pages, name):
    script, stem = LECTURES[name], LECTURES[name].stem
    links = pages[f"{name}/"].references
    offered = {reference for _, attrs, reference in links if "download" in attrs}
    assert {f"{stem}.py", f"{stem}.ipynb"} <= offered
    assert (site / name / f"{stem}.py").read_bytes() == script.read_bytes()
    notebook = nbformat.read(site / name / f"{stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert "{{" not in "".join(cell.source for cell in notebook.cells if cell not in code)


@pytest.mark.parametrize("name", LECTURES)
def test_weight(site, pages, name):
    files = {site / name / "index.html", *site.glob("assets/javascripts/workers/search*.js")}
    for tag, attrs, reference in pages[f"{name}/"].references:
        if tag == "script" or attrs.get("rel") == "stylesheet":
            url = urljoin(f"{SITE_URL}{name}/", reference)
            files.add(site / url.removeprefix(SITE_URL))
    weight = sum(len(gzip.compress(file.read_bytes(), 6)) for file in files)
    assert weight <= 150 * 1024, f"{weight / 1024:.0f} KB"


# in a browser


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_in_a_browser(browser, base, pages, scheme, viewport):
    """No error, no request elsewhere, no overflow, nothing that axe finds, with all folds open."""
    wrong = []
    # colours are the same at every width, and their contrast takes axe longer than all the rest
    contrast = {"color-contrast": {"enabled": viewport == DESKTOP}}
    axe = {"runOnly": WCAG, "resultTypes": ["violations"], "rules": contrast}
    context = browser.new_context(color_scheme=scheme, viewport=viewport)
    context.route(lambda url: not url.startswith(base), lambda route: route.abort())
    for address in pages:
        page = context.new_page()
        listen(page, base, wrong)
        page.goto(base + address)
        page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        page.wait_for_selector(f"body[data-md-color-scheme={SCHEMES[scheme]}]")
        # the theme wraps tables and names code blocks as they come into being
        page.wait_for_timeout(150)
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if over > 0:
            wrong.append(f"{address}: {over} px too wide")
        wrong += page.evaluate(BROKEN_IMAGES)
        page.evaluate(AXE)
        found = page.evaluate("options => axe.run(document, options)", axe)
        for violation in found["violations"]:
            for node in violation["nodes"]:
                wrong.append(f"{address}: {violation['id']}: {node['html'][:160]}")
        page.close()
    context.close()
    assert not wrong


def test_search_finds_a_phrase(open_page):
    page = open_page("")
    page.click(".md-search__input")
    # key by key: the theme listens for keys, and would notice text filled in by chance only
    page.locator(".md-search__input").press_sequentially("online softmax")
    page.locator(".md-search-result__link").first.click()
    page.wait_for_function("document.querySelector('article')?.innerText.match(/online softmax/i)")


@pytest.mark.parametrize("name", LECTURES)
def test_copy_button_copies_the_kernel(open_page, base, name):
    page = open_page(f"{name}/")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = page.locator("details:has(.lecture-kernel)")
    block.locator("summary").click()
    block.locator(".md-code__button[data-md-type=copy]").click()
    page.wait_for_selector(".md-dialog--active")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "@triton.jit" in copied
    compile(copied, f"{name}, copied", "exec")


def test_the_table_of_results_needs_no_script(open_page):
    page = open_page("results/", java_script_enabled=False)
    rows = page.locator(".results tbody tr")
    assert rows.count() >= len(LECTURES)
    assert rows.first.is_visible()


def test_results_sort_and_filter(open_page):
    page = open_page("results/")
    rows = page.locator(".results tbody tr")
    page.click(".results th:nth-child(6) button")
    times = page.evaluate(
        "[...document.querySelectorAll('.results td:nth-child(6)')].map(cell => +cell.dataset.sort)"
    )
    assert times == sorted(times) and len(times) == rows.count()
    page.fill(".results-filter input", "no such kernel")
    assert page.locator(".results tbody tr:visible").count() == 0


@pytest.mark.parametrize("name", LECTURES)
def test_first_paint_on_a_slow_phone(browser, base, name):
    """Under 1.5 s at 1.6 Mbit/s with 150 ms of latency and a quarter of this machine's speed."""
    times = []
    for _ in range(3):  # other work on this machine only ever adds
        context = browser.new_context(viewport=PHONE, is_mobile=True)
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.send("Network.emulateNetworkConditions", SLOW)
        session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        page.goto(f"{base}{name}/", wait_until="commit")
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        times.append(page.evaluate(paint))
        context.close()
        if times[-1] < 1500:
            return
    pytest.fail(f"{name}: {min(times):.0f} ms")
