"""The built site: links and files as they lie on disk, then every page in headless Chromium."""

import gzip
import re
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import nbformat
import pytest

from tests.site.built import (
    DESKTOP,
    LECTURES,
    PHONE,
    PREFIX,
    SITE_URL,
    WCAG,
    axe,
    file_of,
    listen,
)

# axe takes longest over colours, and they are the same at every width: each rule is run once for
# each state of a page that may change what it finds
CONTRAST = WCAG | {"runOnly": ["color-contrast"]}
ALL_BUT_CONTRAST = WCAG | {"rules": {"color-contrast": {"enabled": False}}}
SCHEMES = {"light": "default", "dark": "slate"}  # to the browser, to Material
SWITCH = "document.querySelector('[data-md-component=palette] label:not([hidden])').click()"
OPEN_FOLDS = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
# the theme wraps tables and names code blocks as they come into being
COMPLETE = """() =>
    [...document.querySelectorAll(".md-typeset table:not([class])")]
        .every(table => table.closest(".md-typeset__scrollwrap")) &&
    [...document.querySelectorAll(".md-code__nav")].every(nav => nav.ariaLabel)"""
# axe weighs every piece of text: of pieces that are coloured alike, by one class in one kind of block
# or in rows of one table, some are enough
THIN = """() => {
    const seen = new Set();
    for (const token of document.querySelectorAll(".highlight code span")) {
        const kind = `${token.closest(".highlight").className} ${token.className}`;
        if (seen.has(kind)) token.replaceWith(...token.childNodes);
        seen.add(kind);
    }
    document.querySelectorAll("tbody tr:nth-child(n + 30)").forEach(row => row.remove());
}"""
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
BROKEN_IMAGES = """[...document.images]
    .filter(image => image.checkVisibility() && image.complete && !image.naturalWidth)
    .map(image => "broken image " + image.src)"""
# bytes a second: 1.6 Mbit/s down
SLOW = {"offline": False, "latency": 150, "downloadThroughput": 2e5, "uploadThroughput": 1e5}
SHARDS = 8  # of the pages, for as many processors


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
        text = (site / file_of(address)).read_text(encoding="utf-8")
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


@pytest.mark.parametrize("shard", range(SHARDS))
def test_pages_in_a_browser(browser, base, pages, shard):
    """No error, no request elsewhere, no overflow, nothing that axe finds, with all folds open."""
    wrong = []
    for viewport in (DESKTOP, PHONE):
        context = browser.new_context(viewport=viewport)
        context.add_init_script("localStorage.clear()")  # the scheme that was chosen
        context.route(lambda url: not url.startswith(base), lambda route: route.abort())
        for address in list(pages)[shard::SHARDS]:
            page = context.new_page()
            listen(page, base, wrong)
            page.goto(base + address)
            page.evaluate(OPEN_FOLDS)
            wrong += look(page, address, "light", viewport)
            page.evaluate(SWITCH)
            wrong += look(page, address, "dark", viewport)
            page.close()
        context.close()
    assert not wrong


def look(page, address: str, scheme: str, viewport: dict) -> list[str]:
    """What is wrong with an open page in a colour scheme."""
    page.wait_for_selector(f"body[data-md-color-scheme={SCHEMES[scheme]}]")
    page.wait_for_function(COMPLETE)
    wrong = [f"{address}: {scheme}: {image}" for image in page.evaluate(BROKEN_IMAGES)]
    if (over := page.evaluate(TOO_WIDE)) > 0:
        wrong.append(f"{address}: {scheme}, {viewport['width']} px: {over} px too wide")
    if scheme == "dark" and viewport == PHONE:
        return wrong
    page.evaluate(THIN)
    options = CONTRAST if scheme == "dark" else WCAG if viewport == DESKTOP else ALL_BUT_CONTRAST
    return wrong + [f"{address}: {scheme}: {found}" for found in axe(page, options)]


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
