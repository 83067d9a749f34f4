import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import book

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"



class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the built pages, served on this machine only."""
    if not (HTML / "index.html").exists():
        pytest.fail("there is no built book: run `make book` first")
    handler = functools.partial(QuietHandler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def context(ci: bool) -> Iterator[object]:
    """A window of a headless Chromium, one for all pages: it keeps what they share. Without one
    these tests are skipped, in CI they fail."""
    path = book.chromium()
    if path is None:
        reason = ("no Chromium found: install Debian's package `chromium`, "
                  "or name the program in CHROMIUM")
        pytest.fail(reason) if ci else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=book.BROWSER)
        yield browser.new_context()
        browser.close()
