"""Downloads against a server of our own: whole, cut, altered, and none."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from companion.errors import DataError
from companion.tasks import downloads, readers
from companion.tasks.downloads import Download
from companion.tasks.readers import Known

CONTENT = b"a publisher's file " * 50_000


MORE = 200_000_000


class Handler(BaseHTTPRequestHandler):
    sent = 0  # bytes of the last answer that was longer than published

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/none" else 200)
        if self.path != "/endless":
            announced = MORE if self.path == "/long" else len(CONTENT)
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.path in ("/long", "/endless"):
            Handler.sent = 0
            while Handler.sent < MORE:
                Handler.sent += self.wfile.write(CONTENT)
        else:
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut" else CONTENT)

    def log_message(self, *arguments: object) -> None:
        pass


class Quiet(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up early is part of the test."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Quiet(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))

    def serve(path: str, content: bytes = CONTENT, base: str = server) -> Path:
        of = Download(base + path, "omniglot/images_background.zip")
        monkeypatch.setitem(downloads.DOWNLOADS, "omniglot", of)
        monkeypatch.setitem(readers.KNOWN, of.place, Known(
            "md5", hashlib.md5(content).hexdigest(), len(content)))
        return tmp_path / of.place

    return serve


def only(path: Path) -> bool:
    """Nothing else lies beside ``path``, and it holds the content."""
    return list(path.parent.iterdir()) == [path] and path.read_bytes() == CONTENT


def test_a_download(place) -> None:
    path = place("/whole")
    assert downloads.fetch("omniglot") == path
    assert only(path)


def test_a_good_copy_is_not_touched(place) -> None:
    path = place("/none")
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    before = path.stat().st_mtime_ns
    assert downloads.fetch("omniglot") == path
    assert path.stat().st_mtime_ns == before


def test_a_bad_copy_is_replaced(place) -> None:
    path = place("/whole")
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    downloads.fetch("omniglot")
    assert only(path)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("way", "said"),
    [("cut", "must be reachable and whole, got .*; try again, or put the right file"),
     ("none", "must be reachable and whole, got HTTPError: 404"),
     ("altered", "must have the published MD5 .*, got another file; try again later, or put"),
     ("no server", "must be reachable and whole, got ConnectionError")],
)
def test_a_download_that_fails(place, way: str, said: str, there: bool) -> None:
    """Of a copy that is there and is not the published file the error tells as well."""
    if way == "altered":
        path = place("/whole", CONTENT[::-1])
    else:
        path = place(f"/{way}", **({"base": "http://127.0.0.1:9"} if way == "no server" else {}))
    if there:
        path.parent.mkdir()
        path.write_bytes(b"an old copy")
    with pytest.raises(DataError, match=said) as error:
        downloads.fetch("omniglot")
    told = str(error.value)
    if there:
        assert told.startswith(f"{path} must have the MD5 ")
        assert "got another file; http://127.0.0.1" in told
        assert told.endswith("put the right file in its place by hand")
    else:
        assert told.startswith("http://127.0.0.1")
        assert told.endswith(f"put the right file at {path} by hand")
    assert [file.read_bytes() for file in path.parent.iterdir()] == (
        [b"an old copy"] if there else []
    )


@pytest.mark.parametrize(("way", "came"), [
    ("long", "200,000,000 bytes where 950,000 are published"),
    ("endless", "more than the 950,000 bytes published")])
def test_a_server_that_sends_more_than_was_published(place, way: str, came: str) -> None:
    path = place(f"/{way}")
    with pytest.raises(DataError, match=rf"must have the published MD5 .*, got {came}; try again "
                       "later, or put the right file at"):
        downloads.fetch("omniglot")
    assert not list(path.parent.iterdir())
    assert Handler.sent < MORE / 4  # what the sockets' buffers took


def test_a_folder_that_cannot_be_written(place, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    place("/whole")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="could not be written: Not a directory; free or unlock it"):
        downloads.fetch("omniglot")


def test_what_cannot_be_fetched() -> None:
    with pytest.raises(ValueError,
                       match="source must be one that can be fetched, got glyphs: it is drawn"):
        downloads.fetch("glyphs")
    with pytest.raises(ValueError, match="got mini_imagenet: put your own files"):
        downloads.fetch("mini_imagenet")
    with pytest.raises(ValueError, match=r"source must be one of glyphs, .* got 'mnist'"):
        downloads.fetch("mnist")


def test_published_files_are_named_in_full() -> None:
    for of in downloads.DOWNLOADS.values():
        assert of.url.startswith("https://")
        known = readers.KNOWN[of.place]
        assert (known.kind, len(known.digits)) == ("md5", 32)
        assert known.bytes > 9_000_000


def test_locate_fetches_what_is_missing_and_checks_what_is_there(
    place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place("/whole")
    opened: list[bytes] = []

    def load(name: str) -> str:
        opened.append(path.read_bytes())
        return name

    monkeypatch.setattr(downloads, "load", load)
    assert downloads.locate("omniglot") == "omniglot"
    path.write_bytes(b"altered")
    assert downloads.locate("omniglot") == "omniglot"
    assert opened == [CONTENT, CONTENT]


def test_locate_needs_no_network_for_files_that_are_not_the_publishers(
    place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place("/none")
    path.parent.mkdir()
    path.write_bytes(b"not read, since the other file comes first")
    path.with_name("omniglot_background_32x32.npz").write_bytes(b"")
    monkeypatch.setattr(downloads, "load", lambda name: name)
    assert downloads.locate("omniglot") == "omniglot"


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                     tmp_path: Path) -> None:
    from companion import cli

    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["companion", "data", "mini_imagenet"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "got mini_imagenet: put your own files under mini_imagenet/" in capsys.readouterr().err
