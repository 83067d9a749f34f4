"""What `make book` does where something is wrong: it makes it right, or says in one line what."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

import book

GAP = (book.ROOT / "book" / "landscape" / "gap.md").read_text(encoding="utf-8")
HEAD = GAP.split("\n---\n")[0] + "\n---\n\n"
CELL = "```{{code-cell}} ipython3\n{}```\n\n"


def chapter(root: Path, name: str, code: str) -> Path:
    path = root / "book" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + f"# {name}\n\n" + CELL.format(code), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book of one chapter."""
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "machinery", lambda: [])
    for name in book.PAGES:
        (tmp_path / name).write_text("", encoding="utf-8")
    chapter(tmp_path, "one", "print(1)\n")
    return tmp_path


@pytest.fixture
def pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Chapters are executed and pages made by stand-ins, which are quick and tell what they did."""
    did: list[str] = []

    class Now:
        def __init__(self, *arguments: object) -> None:
            pass

        def __enter__(self) -> "Now":
            return self

        def __exit__(self, *arguments: object) -> None:
            pass

        def submit(self, function: Callable, *arguments: object) -> object:
            done = book.functools.partial(function, *arguments)
            return type("Done", (), {"result": staticmethod(done)})()

    def execute(source: Path, target: Path, profile: str) -> float:
        did.append(f"executed {source.stem}")
        target.parent.mkdir(parents=True, exist_ok=True)
        cell = nbformat.v4.new_code_cell("1", id="c000")
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), target)
        return 0.0

    def sphinx(stage: Path, folder: Path, builder: str) -> Path:
        did.append("built")
        for name in ("index.html", "book/one.html"):
            (folder / "html" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "html" / name).write_text(name, encoding="utf-8")
        return folder / "html"

    monkeypatch.setattr(book, "ProcessPoolExecutor", Now)
    monkeypatch.setattr(book, "as_completed", list)
    monkeypatch.setattr(book, "execute", execute)
    monkeypatch.setattr(book, "sphinx", sphinx)
    return did


NOTEBOOK, KEY, PAGE = "stage/book/one.ipynb", "stage/book/one.key", "html/book/one.html"
FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "notebook altered": (NOTEBOOK,
                         lambda p: p.write_bytes(p.read_bytes().replace(b'"1"', b'"2"'))),
    "notebook cut": (NOTEBOOK, lambda p: p.write_bytes(p.read_bytes()[:40])),
    "notebook empty": (NOTEBOOK, lambda p: p.write_bytes(b"")),
    "notebook gone": (NOTEBOOK, Path.unlink),
    "notebook a folder": (NOTEBOOK, lambda p: (p.unlink(), p.mkdir())),
    "key not text": (KEY, lambda p: p.write_bytes(b"\xff\xfe\x00")),
    "key empty": (KEY, lambda p: p.write_bytes(b"")),
    "key a folder": (KEY, lambda p: (p.unlink(), p.mkdir())),
    "page altered": (PAGE, lambda p: p.write_text("other", encoding="utf-8")),
    "page gone": (PAGE, Path.unlink),
    "page too many": (PAGE, lambda p: (p.parent / "old.html").write_text("old", encoding="utf-8")),
    "stamp not text": ("html.key", lambda p: p.write_bytes(b"\xff\xfe\x00")),
    "stamp a folder": ("html.key", lambda p: (p.unlink(), p.mkdir())),
    "pages a file": ("html", lambda p: (shutil.rmtree(p), p.write_text("", encoding="utf-8"))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_longer_as_it_was_made_is_made_again(root: Path, pages: list[str],
                                                        fault: str) -> None:
    name, harm = FAULTS[fault]
    book.build("quick", 1)
    assert pages == ["executed one", "built"]
    made = {path: path.read_bytes() for path in book.files(root / "_build")}
    book.build("quick", 1)
    assert pages == ["executed one", "built"]  # nothing was to do
    harm(root / "_build" / name)
    book.build("quick", 1)
    again = ["built"] if "stage" not in name else ["executed one"]
    assert pages == ["executed one", "built", *again]
    assert {path: path.read_bytes() for path in book.files(root / "_build")} == made


def test_committed_notebooks_are_compared_by_their_bytes_then_by_nbval(
    root: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that differ are executed again as on this processor, all as on another."""
    ran: list[tuple[list[str], dict[str, str]]] = []

    def nbval(names: list[Path], jobs: int, variables: dict[str, str]) -> int:
        ran.append(([name.stem for name in names], variables))
        return 0 if variables else 1

    monkeypatch.setattr(book, "nbval", nbval)
    chapter(root, "two", "print(2)\n")
    book.refresh_notebooks(1, fresh=False)
    assert book.check(1) == 0
    assert ran == [(["one", "two"], book.OTHER_MACHINE)]
    for harm in (lambda p: p.write_bytes(p.read_bytes() + b"\n"), Path.unlink):
        ran.clear()
        harm(root / "book" / "two.ipynb")
        assert book.check(1) == 1
        assert ran == [(["two"], {}), (["one", "two"], book.OTHER_MACHINE)]


@pytest.mark.parametrize("fault", ["", "output", "error"])
def test_nbval_finds_an_output_that_does_not_come_out(root: Path, fault: str) -> None:
    source = root / "book" / "one.md"
    book.execute(source, source.with_suffix(".ipynb"), "quick")
    notebook = nbformat.read(source.with_suffix(".ipynb"), 4)
    if fault == "output":
        notebook.cells[1].outputs[0].text = "1.0000001\n"
    if fault == "error":
        notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    code = book.nbval([Path("book/one.ipynb")], 1, book.OTHER_MACHINE)
    assert code == (1 if fault else 0)


def test_a_pdf_is_printed_anew_only_where_it_must(root: Path, pages: list[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    book.build("quick", 1)
    target, stage = root / "_build" / "maml-companion.pdf", root / "_build" / "stage"
    target.write_bytes(b"a book")
    key = book.digest(book.files(stage))
    (root / "_build" / "pdf.key").write_bytes(book.sealed(key, [target]))
    monkeypatch.setattr(book, "chromium", lambda: "no such browser")
    assert book.pdf("quick", 1) == target
    target.write_bytes(b"another")
    with pytest.raises(Exception, match="no such browser"):
        book.pdf("quick", 1)


def test_a_chapter_that_writes_to_stderr_fails_and_is_not_kept(
    root: Path, capfd: pytest.CaptureFixture
) -> None:
    chapter(root, "one", "import sys\nprint('oh', file=sys.stderr)\n")
    for _ in range(2):
        with pytest.raises(SystemExit, match="1 of 1 chapters failed"):
            book.execute_stale(root / "_build" / "stage", "quick", 1)
        assert "a chapter must write nothing to stderr, got\noh" in capfd.readouterr().err


def test_no_home_and_a_long_path_for_temporary_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written at home, and a kernel has its sockets elsewhere."""
    long = tmp_path / ("t" * 120)
    long.mkdir()
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "IPYTHONDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/no/home")
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(book.tempfile, "tempdir", None)
    with book.scratch() as folder:
        assert book.channels(Path(folder))["transport"] == "ipc"
    assert book.channels(long) == {}
    source = chapter(root, "one", "import os\nimport matplotlib.pyplot as plt\n"
                                  "print(os.environ['HOME'])\n")
    book.execute(source, root / "made.ipynb", "quick")
    _, cell = nbformat.read(root / "made.ipynb", 4).cells
    assert cell.outputs[0].text == f"{root / '_build' / 'home'}\n"


def state(pid: int) -> tuple[str, int]:
    """The letter and the parent of a process; of one that is gone, those of a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        letter, parent = stat.rsplit(")", 1)[1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return letter, int(parent)


def children(of: int) -> list[int]:
    """The processes that a process started."""
    every = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in every if state(pid)[1] == of]


def alive(pid: int) -> bool:
    return state(pid)[0] != "Z"


@pytest.fixture
def brief() -> Iterator[str]:
    """A folder for temporary files, with a short name, that goes with what a killed build left."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
import book
book.ROOT, book.machinery, book.warm_fonts = Path({root!r}), lambda: [], lambda: None
if __name__ == "__main__":
    sys.exit(book.main())
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_build_that_ends_early_leaves_no_process(root: Path, how: str, brief: str) -> None:
    """Ctrl-C goes to every process of the terminal; -9 only to the one that is named."""
    chapter(root, "one", "import pathlib, time\n"
                         f"pathlib.Path({str(root / 'started')!r}).touch()\ntime.sleep(300)\n")
    tools = str(Path(book.__file__).parent)
    (root / "build.py").write_text(BUILD.format(tools=tools, root=str(root)), encoding="utf-8")
    build = subprocess.Popen([sys.executable, root / "build.py", "build", "--jobs", "2"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
                             start_new_session=True, env=os.environ | {"TMPDIR": brief})
    until = time.monotonic() + 60
    while not (root / "started").exists() and time.monotonic() < until:
        time.sleep(0.1)
    workers = children(build.pid)
    kernels = [pid for worker in workers for pid in children(worker)]
    started = workers + kernels
    assert kernels
    if how == "SIGINT":
        for worker in workers:  # for them it means nothing, whatever they are about
            os.kill(worker, signal.SIGINT)
        time.sleep(0.5)
        assert build.poll() is None
        assert all(map(alive, started))
        os.killpg(build.pid, signal.SIGINT)
    else:
        os.kill(build.pid, signal.SIGKILL)
    _, said = build.communicate(timeout=30)
    until = time.monotonic() + 5
    while any(map(alive, started)) and time.monotonic() < until:
        time.sleep(0.1)
    assert [pid for pid in started if alive(pid)] == []
    if how == "SIGINT":
        assert build.returncode == 130
        assert said.splitlines()[-1] == "Stopped; the chapters that were finished are kept."
        assert "Traceback" not in said
        assert os.listdir(brief) == []


def test_a_port_that_is_taken(root: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port must be free .*, got {port} .*PORT=8001"):
            book.serve(port)
    with pytest.raises(SystemExit, match="below 65536, got 70000"):
        book.serve(70000)


def test_pages_are_shown_to_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(server: book.http.server.ThreadingHTTPServer) -> None:
        seen.append(server.server_address[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(book.http.server.ThreadingHTTPServer, "serve_forever", stop)
    book.serve(0)
    assert seen == ["127.0.0.1"]


def test_a_file_that_cannot_be_written_is_named(root: Path, pages: list[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "warm_fonts", lambda: None)
    monkeypatch.setattr(sys, "argv", ["book.py", "build"])
    (root / "_build").mkdir()
    (root / "_build" / "stage").write_text("in the way", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"build failed: .*stage"):
        book.main()


# ---- make ----

FAKE = """#!/bin/sh
# a Python that only tells what it was asked
echo "$@" >> "$LOG"
case "$*" in
  "-m venv "*)
    mkdir -p "$3/bin"
    for name in python ruff mypy lint-imports; do cp "$0" "$3/bin/$name"; done ;;
  *"$FAIL"*) test -z "$FAIL" ;;
esac
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """make in a copy of what it reads, with a Python that does nothing."""
    real = Path(book.__file__).parent.parent
    for name in ("Makefile", "requirements.txt", "constraints.txt", "pyproject.toml",
                 "benchmarks/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(real / name, tmp_path / name)
    fake = tmp_path / "fake"
    fake.write_text(FAKE, encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    def call(target: str, fail: str = "", python: str = str(fake)) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
        return subprocess.run(
            ["make", "-C", tmp_path, target, f"PYTHON={python}", "VENV=env"], encoding="utf-8",
            env=environment | {"LOG": str(tmp_path / "log"), "FAIL": fail}, capture_output=True)

    return call


def installs(folder: Path) -> int:
    log = folder / "log"
    said = log.read_text(encoding="utf-8") if log.exists() else ""
    log.unlink(missing_ok=True)
    return said.count("install -q --disable-pip-version-check -r requirements.txt")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_an_environment_is_made_for_what_its_files_say(make: Callable, tmp_path: Path) -> None:
    assert make("book").returncode == 0
    assert installs(tmp_path) == 1
    os.utime(tmp_path / "requirements.txt", (4e9, 4e9))
    make("book")
    assert installs(tmp_path) == 0
    text = (tmp_path / "constraints.txt").read_text(encoding="utf-8")
    for words in (text + "one==1\n", text):  # back again: what is installed is not what was
        (tmp_path / "constraints.txt").write_text(words, encoding="utf-8")
        make("book")
        assert installs(tmp_path) == 1
        make("book")
        assert installs(tmp_path) == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("fail", "failed"), [
    ("", ""), ("-m pytest", " unit"), ("check .", " lint"), ("book.py", " book nbval"),
    ("bench.py", " bench-check")])
def test_all_stages_run_and_the_failed_ones_are_named(make: Callable, tmp_path: Path, fail: str,
                                                      failed: str) -> None:
    done = make("test", fail)
    asked = (tmp_path / "log").read_text(encoding="utf-8")
    for what in ("book.py build", "check .", "-m pytest", "book.py check", "bench.py --check"):
        assert what in asked
    assert (done.returncode != 0) == bool(failed)
    said = [line for line in done.stderr.splitlines() if line.startswith("make test: failed:")]
    assert said == ([f"make test: failed:{failed}; make each alone to see it again"]
                    if failed else [])
    (times,) = [line for line in done.stdout.splitlines() if line.startswith("make test: ")]
    assert re.sub(r"\d+ s( \(failed\))?", "", times) == (
        "make test: book , lint , unit , nbval , bench-check ")
    assert times.count("(failed)") == len(failed.split())


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_python_that_is_too_old(make: Callable, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -c "
                   "\"import sys; sys.version_info = (3, 9, 2); $1\"\n", encoding="utf-8")
    old.chmod(0o755)
    done = make("book", python=str(old))
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "the book needs Python 3.11 or newer: make book PYTHON=python3.11")
    assert not (tmp_path / "env").exists()
