"""The pages as a browser shows them: Chromium, headless, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from depthprune_study import page, places

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: .ci/run installs one")
REPORTS = places.ROOT / "reports"
KINDS = ("quick/*.html", "*/report.html", "*/estimate.html")
PAGES = [REPORTS / "index.html", *sorted({path for kind in KINDS for path in REPORTS.glob(kind)})]
OTHERS = sorted(set(REPORTS.glob("*/*.html")) - set(PAGES))
PHONE, DESK, SHEET = 390, 1280, 718  # the last: A4 less its margins, 96 pixels an inch
TLS = b"\x16\x03"  # how a record begins: kind, version (two bytes), length (two bytes)
WHOLE = socket.MSG_PEEK | socket.MSG_WAITALL
LOOK = """<!DOCTYPE html><html><body><iframe width='{width}' height='900' srcdoc='{content}'></iframe><script>
window.onload = () => {{
  const frame = document.querySelector('iframe'), page = frame.contentDocument, root = page.documentElement;
  const broken = [...page.images].filter(image => !image.naturalWidth).length;
  const font = parseFloat(frame.contentWindow.getComputedStyle(page.body).fontSize);
  const scrolls = e => frame.contentWindow.getComputedStyle(e).overflowX !== 'visible' && e.scrollWidth > e.clientWidth + 1;
  const cut = [...page.body.querySelectorAll('*')].filter(scrolls).length;
  const seen = {{width: root.clientWidth, wanted: root.scrollWidth, images: page.images.length, broken, font, cut,
    text: page.body.innerText.length}};
  document.body.textContent = 'SEEN' + JSON.stringify(seen) + 'END';
}};</script></body></html>"""


def chromium(*arguments: str, profile: Path) -> str:
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--virtual-time-budget=5000")
    done = subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@contextmanager
def served(page: str) -> Iterator[tuple[int, list[str]]]:
    """The port of a server that has this page alone, and what else it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_page = self.path == "/page"
            if self.headers.get("Referer") and self.path != "/favicon.ico":  # a browser's own errands come from no page
                asked.append(self.path)
            self.send_response(200 if is_page else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode() if is_page else b"")

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            """A call for https is noted by the host that it names; the browser's own errands, to its maker, are none of the page's."""
            start = request.recv(5, WHOLE)
            if not start.startswith(TLS):
                super().finish_request(request, client_address)
                return
            hello = request.recv(5 + int.from_bytes(start[3:]), WHOLE)  # it may come in several pieces
            if not any(maker in hello for maker in (b"google", b"gvt1")):
                asked.append("https")

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def seen(content: str, width: int, profile: Path) -> dict[str, Any]:
    """What a browser says of a page in a frame of this width, and what the page asks of any host."""
    look = LOOK.format(width=width, content=escape(content, quote=True))
    with served(look) as (port, asked):
        everywhere = f"--host-resolver-rules=MAP * 127.0.0.1:{port}"
        shown = chromium("--window-size=1400,1000", everywhere, "--dump-dom", "http://page.test/page", profile=profile)
    found = re.search(r"SEEN(.*)END", shown)
    assert found
    return {**json.loads(found.group(1)), "asked": asked}


@in_a_browser
@pytest.mark.parametrize(
    ("path", "width"),
    [*product(PAGES, (PHONE, DESK)), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in product(OTHERS, (PHONE, DESK)))],
    ids=lambda value: f"{value.parent.name}-{value.stem}" if isinstance(value, Path) else value,
)
def test_a_page_fits_its_screen_and_asks_for_nothing(path: Path, width: int, tmp_path: Path) -> None:
    found = seen(path.read_text(encoding="utf-8"), width, tmp_path)
    assert found["wanted"] <= found["width"], "the page is wider than the screen"
    assert found["images"] and not found["broken"]
    assert found["asked"] == []
    assert found["font"] >= 16
    assert found["text"] > 500


@pytest.mark.parametrize(("host", "noted"), [("clients2.google.com", []), ("example.org", ["https"])])
def test_whose_call_it_is_shows_in_a_greeting_that_comes_in_pieces(host: str, noted: list[str]) -> None:
    greeting = ssl.MemoryBIO()
    call = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), greeting, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        call.do_handshake()
    said = greeting.read()
    with served("") as (port, asked), socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        for piece in (said[:3], said[3:40], said[40:]):
            caller.sendall(piece)
            time.sleep(0.1)
        assert caller.recv(1) == b""  # it was heard, and hung up on
        assert asked == noted


@in_a_browser
def test_the_browser_would_see_what_is_wrong(tmp_path: Path) -> None:
    addresses = ("nowhere.png", "http://elsewhere.test/there.png", "https://elsewhere.test/there.png")
    images = "".join(f"<img src='{address}' alt='x'>" for address in addresses)
    wrong = page.page("x", navigation="", main=f"<div style='width: 900px'>wide</div>{images}")
    found = seen(wrong, PHONE, tmp_path)
    assert found["wanted"] > found["width"]
    assert found["broken"] == 3
    assert sorted(set(found["asked"])) == ["/nowhere.png", "/there.png", "https"]


@in_a_browser
def test_the_report_prints(tmp_path: Path) -> None:
    address = (REPORTS / "quick" / "report.html").as_uri()
    chromium(f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer", address, profile=tmp_path / "profile")
    sheets = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert 3 <= sheets <= 40


def printed(content: str) -> str:
    """A page whose rules for print hold on the screen."""
    assert content.count("@media print") == 1
    return content.replace("@media print", "@media all")


@in_a_browser
@pytest.mark.parametrize(
    "path",
    [*PAGES, *(pytest.param(path, marks=pytest.mark.slow) for path in OTHERS)],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_nothing_is_cut_off_on_paper(path: Path, tmp_path: Path) -> None:
    found = seen(printed(path.read_text(encoding="utf-8")), SHEET, tmp_path)
    assert (found["cut"], found["wanted"] <= found["width"]) == (0, True)


@in_a_browser
def test_the_browser_would_see_what_paper_cuts_off(tmp_path: Path) -> None:
    line = "".join(f"<td>column {i}</td>" for i in range(40))
    for wrong in (
        f"<div class='wide'><table><tr>{line}</tr></table></div>",
        "<div style='overflow: hidden'><div style='width: 900px'>x</div></div>",
    ):
        found = seen(printed(page.page("x", navigation="", main=wrong)), SHEET, tmp_path)
        assert found["cut"] or found["wanted"] > found["width"]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    full = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_the_most_there_is() -> None:
    assert contrast("000", "ffffff") == pytest.approx(21)
    assert contrast("777777", "fff") == pytest.approx(4.48, abs=0.01)


def test_every_colour_of_text_can_be_read_on_every_ground() -> None:
    named = dict(re.findall(r"--([a-z]+): #([0-9a-f]{3,6});", page.STYLE))
    inks = {named[name] for name in re.findall(r"[^-]color: var\(--([a-z]+)\)", page.STYLE)}
    inks |= set(re.findall(r"[^-]color: #([0-9a-f]{6})", page.STYLE))
    assert len(inks) >= 6
    too_pale = {(ink, ground) for ink in inks for ground in (named["paper"], named["tint"]) if contrast(ink, ground) < 4.5}
    assert too_pale == set()
