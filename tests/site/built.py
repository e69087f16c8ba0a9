"""What the tests of the built site share: its addresses, a reader of pages, a web server."""

import functools
import gzip
import http.server
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import axe_playwright_python

from scripts.lectures import ROOT, lecture_name, syllabus

SITE_URL = re.search(r"(?m)^site_url: (\S+)", (ROOT / "mkdocs.yml").read_text())[1]
PREFIX = urlsplit(SITE_URL).path
LECTURES = {lecture_name(script): script for script in syllabus(ROOT)}
AXE = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text()
WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


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


@functools.cache
def packed(body: bytes) -> bytes:
    return gzip.compress(body, 6)


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
        body = path.read_bytes()
        if path.name == "sitemap.xml":
            # the theme navigates without a reload to the addresses that stand in it
            body = body.replace(SITE_URL.encode(), f"http://{self.headers['Host']}{PREFIX}".encode())
        body = packed(body)
        self.send_response(status)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Cache-Control", "max-age=600")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def file_of(address: str) -> str:
    """The file of a page's address, below the site's root."""
    return address if address.endswith(".html") else f"{address}index.html"


# axe looks at every element: of pieces of code that are coloured alike, by one class in one kind of
# block, and of rows of one table, some are enough; a single letter is none, since axe judges none
THIN = """() => {
    const seen = new Set();
    for (const token of document.querySelectorAll(".highlight code :is(span, a)")) {
        const kind = `${token.closest(".highlight").className} ${token.className}`;
        if (seen.has(kind)) token.replaceWith(...token.childNodes);
        if (token.textContent.length !== 1) seen.add(kind);
    }
    document.querySelectorAll("tbody tr:nth-child(n + 30)").forEach(row => row.remove());
}"""
# it takes longest over the contrast of text: of pieces in the same colour, size and weight on the
# same grounds, which are what paints below them, some are enough
CHOOSE = """() => {
    const numbers = new Map(), grounds = new Map(), chosen = new Map();
    const number = (...parts) => {
        const key = parts.join(";");
        return numbers.get(key) ?? numbers.set(key, numbers.size).get(key);
    };
    const ground = element => {
        if (!element) return -1;
        if (!grounds.has(element)) {
            const own = getComputedStyle(element), below = ground(element.parentElement);
            const paint = [own.backgroundColor, own.backgroundImage, own.opacity, own.position];
            const plain = paint.join() === "rgba(0, 0, 0, 0),none,1,static";
            grounds.set(element, plain ? below : number(below, ...paint));
        }
        return grounds.get(element);
    };
    for (const element of document.body.querySelectorAll("*")) {
        const texts = [...element.childNodes].filter(node => node.nodeType === Node.TEXT_NODE);
        const text = texts.map(node => node.data).join("").trim();
        const { color, fontSize, fontWeight } = getComputedStyle(element);
        const kind = number(ground(element), color, fontSize, fontWeight);
        const shown = { opacityProperty: true, visibilityProperty: true };
        const weigh = text.length > 1 && element.checkVisibility(shown);
        const count = (chosen.get(kind) ?? 0) + weigh;
        chosen.set(kind, count);
        const one = weigh && count <= 3 || element.matches("input, select, textarea");
        element.toggleAttribute("data-weigh", one);
    }
    axe.configure({ rules: [{ id: "color-contrast", selector: "[data-weigh]" }] });
}"""


def axe(page, part: str = "html") -> list[str]:
    """What axe has to say against a part of an open page."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    page.evaluate(THIN)
    page.evaluate(CHOOSE)
    found = page.evaluate("([part, options]) => axe.run(part, options)", [part, WCAG])
    return [
        f"{violation['id']}: {node['html'][:160]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


# builds no index: every page would, in the background, and only the tests of the search need it
NO_SEARCH = """
Worker = class extends EventTarget {
    constructor(script) { super(); fetch(script); }
    postMessage() {}
};
"""


class Window:
    """A context of the browser and a page in it, which one test after the other uses."""

    def __init__(self, browser, base: str, script: str = NO_SEARCH, **options):
        self.options = {"viewport": DESKTOP} | options
        self.context = browser.new_context(**self.options)
        self.context.add_init_script(script)
        self.page = self.context.new_page()
        self.session = self.context.new_cdp_session(self.page)
        origin = base.removesuffix(PREFIX)
        self.stored = {"origin": origin, "storageTypes": "local_storage"}
        self.wrong: list[str] = []

        def note(what: str) -> None:
            self.wrong.append(f"{self.page.url.removeprefix(base)}: {what}")

        def requested(url: str) -> None:
            if not url.startswith((base, "data:", "about:")):
                note(url)

        self.context.on("weberror", lambda error: note(str(error.error)))
        self.context.on("console", lambda line: note(line.text) if line.type == "error" else None)
        self.context.on("request", lambda request: requested(request.url))

    def empty(self) -> list[str]:
        """Leaves nothing of a test behind; returns errors and requests to other hosts."""
        for page in self.context.pages[1:]:
            page.close()
        self.page.evaluate("sessionStorage.clear()")
        self.page.unroute_all()
        self.page.emulate_media(media="null")
        self.page.set_viewport_size(self.options["viewport"])
        self.page.goto("about:blank")
        # only now: the page's scripts might have stored something again
        self.session.send("Storage.clearDataForOrigin", self.stored)
        self.context.clear_permissions()
        wrong, self.wrong = self.wrong, []
        return wrong
