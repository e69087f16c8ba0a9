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


def axe(page, options: dict = WCAG) -> list[str]:
    """What axe has to say against an open page."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{violation['id']}: {node['html'][:160]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def listen(page, base: str, wrong: list[str]) -> None:
    """Notes errors in the console and requests to other hosts."""

    def note(what: str) -> None:
        wrong.append(f"{page.url.removeprefix(base)}: {what}")

    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda line: note(line.text) if line.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith((base, "data:")) else note(r.url))
