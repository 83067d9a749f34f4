"""Execute the chapters, build the pages, check the notebooks. `make help` says which target calls
what.

python tools/book.py build [--profile full] [--jobs N]   execute what is stale, build the HTML
python tools/book.py pdf                                 the same as one PDF, by Chromium
python tools/book.py notebooks [--fresh]                 refresh the committed notebooks
python tools/book.py check                               do the committed ones still come out?
python tools/book.py serve [--port N]                    show the pages on this machine
"""

import argparse
import contextlib
import functools
import hashlib
import http.server
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import jupytext
import nbformat
import papermill
from tqdm import tqdm
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["index.md", "_config.yml", "_toc.yml", "references.bib"]
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
               "OPENBLAS_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1",
               "JUPYTER_NO_CONFIG": "1", "TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
               "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
           "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PAPER = 658  # pixels of what is between the margins of A4
FOOTER = ('<div style="font-size: 8px; width: 100%; text-align: center">'
          '<span class="pageNumber"></span></div>')
OTHER_MACHINE = {
    "ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Haswell",
}  # stands in for another processor


SOCKET = 100  # bytes that the path of a socket may have on every system, its number left out


def environment() -> dict[str, str]:
    """What a kernel starts with. Its libraries keep what they keep under _build/: a home may be
    read-only, and what a reader has in it (styles, startup files) must not reach the pages."""
    own = ROOT / "_build" / "home"
    names = {"MPLCONFIGDIR": "matplotlib", "IPYTHONDIR": "ipython", "JUPYTER_DATA_DIR": "data",
             "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime"}
    own.mkdir(parents=True, exist_ok=True)  # IPython warns of one that is not there
    places = {name: str(own / folder) for name, folder in names.items()}
    if not os.path.isdir(os.path.expanduser("~")):  # none, or an unknown user's
        places["HOME"] = str(own)
    return ENVIRONMENT | places


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, with a path that leaves room for sockets where there is one."""
    far = len(os.fsencode(tempfile.gettempdir())) > SOCKET // 2 and os.access("/tmp", os.W_OK)
    return tempfile.TemporaryDirectory(dir="/tmp" if far else None, ignore_cleanup_errors=True)


def channels(folder: Path) -> dict[str, str]:
    """Options of a kernel's manager: channels that no other process can take, sockets in
    ``folder``, where the system has them and the path is short enough; else ports."""
    place = folder / "kernel"
    if not hasattr(socket, "AF_UNIX") or len(os.fsencode(place)) > SOCKET:
        return {}
    return {"transport": "ipc", "ip": str(place)}


def chapters() -> list[Path]:
    """The pages of book/ that declare a kernel."""
    heads = {
        path: path.read_text(encoding="utf-8").split("\n---\n")[0]
        for path in sorted((ROOT / "book").rglob("*.md"))
    }
    return [path
            for path, head in heads.items() if head.startswith("---\n") and "\nkernelspec:" in head]


def digest(paths: Iterable[Path], extra: str = "") -> str:
    """One hash of the names and contents of files."""
    total = hashlib.sha256(extra.encode())
    for path in sorted(paths):
        total.update(f"\n{path.relative_to(ROOT)}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def sealed(key: str, made: Iterable[Path]) -> bytes:
    """What a stamp says: what files were made from, and what they were when they were made."""
    return f"{key} {digest(made)}".encode()


def current(stamp: Path, key: str, made: list[Path]) -> bool:
    """Whether files were made from what ``key`` stands for, and have stayed as they were made."""
    there = all(path.is_file() for path in (stamp, *made))
    return bool(made) and there and stamp.read_bytes() == sealed(key, made)


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def machinery() -> list[Path]:
    """What every chapter depends on: the package, the records and claims, this tool, the pinned
    versions."""
    package = [
        path for path in (ROOT / "src" / "companion").rglob("*") if path.suffix in {".py", ".yml"}
    ]
    package += [path for path in (ROOT / "results").rglob("*") if path.suffix in {".csv", ".json"}]
    return [*package, ROOT / "claims.yml", ROOT / "tools" / "book.py", ROOT / "requirements.txt",
            ROOT / "constraints.txt"]


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop whatever changes from run to run or from machine to machine."""
    notebook.cells = [cell
                      for cell in notebook.cells
                      if "injected-parameters" not in cell.metadata.get("tags", [])]
    kept = {key: value
            for key, value in notebook.metadata.items() if key in {"jupytext", "kernelspec"}}
    notebook.metadata = nbformat.from_dict(kept | {"language_info": {"name": "python"}})
    notebook.metadata.get("jupytext", {}).pop("text_representation", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"c{number:03d}"
        for key in ("papermill", "execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
    nbformat.validate(notebook)
    return notebook


def execute(source: Path, target: Path, profile: str) -> float:
    """Run one chapter from a fresh kernel and write the clean notebook; returns the seconds it
    took. A chapter that writes to stderr has failed: its page could not be built."""
    os.environ.update(environment())
    started = time.monotonic()
    with scratch() as folder:
        before, after = Path(folder, "in.ipynb"), Path(folder, "out.ipynb")
        nbformat.write(jupytext.read(source), before)
        papermill.execute_notebook(
            str(before), str(after), parameters={} if profile == "quick" else {"profile": profile},
            kernel_name="python3", cwd=str(source.parent), progress_bar=False, log_output=False,
            execution_timeout=600 if profile == "quick" else None, start_timeout=120,
            config=Config(
                {"KernelManager": {"transport_encryption": "auto"} | channels(Path(folder))}
            ),
            coalesce_streams=True,  # how a kernel cuts what it prints depends on its timing
            # a kernel is interrupted before it shuts down, and would report that as an error
            extra_arguments=["--log-level=CRITICAL"])
        notebook = clean(nbformat.read(after, 4))
    said = [output.text for cell in notebook.cells for output in cell.get("outputs", [])
            if output.get("name") == "stderr"]
    if said:
        raise RuntimeError("a chapter must write nothing to stderr, got\n" + "".join(said))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(nbformat.writes(notebook, version=4) + "\n", encoding="utf-8")
    return time.monotonic() - started


def _worker(folder: str) -> None:
    """A worker ends with its parent, however that ended, and its kernel with it; Ctrl-C is the
    parent's to answer. Its temporary files lie in a folder that the parent removes."""
    tempfile.tempdir = folder
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def execute_stale(stage: Path, profile: str, jobs: int, *, fresh: bool = False) -> None:
    """Execute into ``stage`` the chapters whose text, package or versions changed since they last
    were, and those whose notebooks are no longer as they were made."""
    version = f"{profile} {sys.version}"
    targets = {
        source: stage / source.relative_to(ROOT).with_suffix(".ipynb") for source in chapters()
    }
    keys = {source: digest([source, *machinery()], version) for source in targets}

    def key_file(source: Path) -> Path:
        return targets[source].with_suffix(".key")

    stale = [
        source for source, target in targets.items()
        if fresh or not current(key_file(source), keys[source], [target])
    ]
    if not stale:
        return
    for source in stale:
        remove(key_file(source))
        remove(targets[source])
    seconds, failed = {}, {}
    context = multiprocessing.get_context("spawn")
    with (scratch() as folder,
          ProcessPoolExecutor(jobs, context, _worker, (folder,)) as pool,
          tqdm(total=len(stale), desc="Executing chapters", unit="chapter", disable=False) as bar):
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which starting workers inherit
        running = {
            pool.submit(execute, source, targets[source], profile): source for source in stale
        }
        signal.signal(signal.SIGINT, handler)
        try:
            for future in as_completed(running):
                source = running[future]
                try:
                    seconds[source] = future.result()
                    key_file(source).write_bytes(sealed(keys[source], [targets[source]]))
                except (
                    Exception
                ) as error:  # the other chapters go on; all failures are shown at the end
                    failed[source] = error
                bar.update()
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
    for source, spent in seconds.items():
        print(f"  {source.relative_to(ROOT)}: {spent:.1f} s")
    for source, reason in failed.items():
        print(f"{reason}\n{source.relative_to(ROOT)} failed: {type(reason).__name__}, see above",
              file=sys.stderr)
    if failed:
        sys.exit(f"{len(failed)} of {len(stale)} chapters failed; the others are kept.")


def place(profile: str) -> tuple[Path, Path]:
    """The staging folder of a profile, and the folder its HTML goes to."""
    base = ROOT / "_build" if profile == "quick" else ROOT / "_build" / profile
    return base / "stage", base / "html"


def stage_pages(stage: Path) -> None:
    """Copy everything but the chapters, which are there already, and forget what is no longer in
    the book."""
    wanted = {Path(name) for name in PAGES}
    own = {path.with_suffix(".ipynb") for path in chapters()}
    for path in (ROOT / "book").rglob("*"):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts)
        if (path.is_file()
            and not hidden
            and path.suffix != ".ipynb"
            and path.with_suffix(".ipynb") not in own):
            wanted.add(path.relative_to(ROOT))
    for name in wanted:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, stage / name)
    wanted |= {path.relative_to(ROOT) for path in own}
    wanted |= {name.with_suffix(".key") for name in wanted if name.suffix == ".ipynb"}
    for path in stage.rglob("*"):
        if path.is_file() and path.relative_to(stage) not in wanted:
            path.unlink()


def build(profile: str, jobs: int) -> Path:
    """Execute what is stale and build the pages; returns where they start. Touches nothing outside
    _build/."""
    stage, html = place(profile)
    execute_stale(stage, profile, jobs)
    stage_pages(stage)
    stamp, key = html.parent / "html.key", digest([*machinery(), *files(stage)])
    if not current(stamp, key, files(html)):
        remove(stamp)
        with tempfile.TemporaryDirectory(dir=html.parent) as folder:
            made = sphinx(stage, Path(folder), "html")
            remove(html)
            shutil.move(made, html)
        stamp.write_bytes(sealed(key, files(html)))
    return html / "index.html"


def sphinx(stage: Path, folder: Path, builder: str) -> Path:
    """Build the staged pages under ``folder``; returns the folder of the result."""
    program = Path(sys.executable).parent / "jupyter-book"
    flags = ["--path-output", str(folder), "--builder", builder, "-W", "--keep-going", "-n",
             "--all", "--quiet"]
    done = subprocess.run([program, "build", stage, *flags], capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nThe pages must build without a warning; see the "
                 f"lines above.")
    return folder / "_build" / builder


def chromium() -> str | None:
    """Where Chromium is: named in CHROMIUM, or on the path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which(
        "chromium-browser")


def pdf(profile: str, jobs: int) -> Path:
    """Print the book: all chapters on one page, whose links stay in it, by Chromium."""
    from playwright.sync_api import sync_playwright  # only here: a page needs no browser

    program = chromium()
    if program is None:
        sys.exit("make pdf needs Chromium: install Debian's package `chromium`, or name the "
                 "program in CHROMIUM")
    stage, html = place(profile)
    execute_stale(stage, profile, jobs)
    stage_pages(stage)
    target, stamp = html.parent / "maml-companion.pdf", html.parent / "pdf.key"
    key = digest([*machinery(), *files(stage)])
    if current(stamp, key, [target]):
        return target
    remove(stamp)
    with (tempfile.TemporaryDirectory(dir=html.parent) as folder, sync_playwright() as playwright,
          playwright.chromium.launch(executable_path=program, args=BROWSER) as browser):
        index = sphinx(stage, Path(folder), "singlehtml") / "index.html"
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace('href="index.html#', 'href="#'), encoding="utf-8")
        page = browser.new_page(viewport={"width": PAPER, "height": 1000})
        page.emulate_media(media="print", color_scheme="light")  # before formulas are fitted
        page.goto(index.as_uri(), wait_until="load")
        page.wait_for_selector("html[data-typeset=done]", state="attached", timeout=300_000)
        page.pdf(path=target, format="A4", outline=True, tagged=True, display_header_footer=True,
                 margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                 header_template="<span></span>", footer_template=FOOTER)
    stamp.write_bytes(sealed(key, [target]))
    return target


def refresh_notebooks(jobs: int, *, fresh: bool) -> None:
    """Copy the executed chapters beside their sources: what is committed, and what nbval compares
    with."""
    stage, _ = place("quick")
    execute_stale(stage, "quick", jobs, fresh=fresh)
    for source in chapters():
        name = source.relative_to(ROOT).with_suffix(".ipynb")
        shutil.copyfile(stage / name, ROOT / name)


def check(jobs: int) -> int:
    """Do the committed notebooks still come out? As executed here they are compared byte by byte,
    and by nbval, which knows what may differ, where they differ; then all by nbval as another
    processor would execute them. Returns the worst exit code."""
    stage, _ = place("quick")
    execute_stale(stage, "quick", jobs)
    names = [path.relative_to(ROOT).with_suffix(".ipynb") for path in chapters()]
    differ = [name for name in names if not (ROOT / name).is_file()
              or (ROOT / name).read_bytes() != (stage / name).read_bytes()]
    print(f"{len(names) - len(differ)} of {len(names)} committed notebooks are those that were "
          "executed here, byte by byte", flush=True)
    codes = [0]
    for name, some, variables in (("this processor", differ, {}),
                                  ("another processor", names, OTHER_MACHINE)):
        if some:
            print(f"nbval of {len(some)}, as on {name}", flush=True)
            codes.append(nbval(some, jobs, variables))
    return max(codes)


def nbval(names: list[Path], jobs: int, variables: dict[str, str]) -> int:
    """Execute notebooks again and compare their outputs; returns pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env",
               "--nbval-cell-timeout=600", "-n", str(jobs), "--dist", "loadfile", "-p",
               "no:cacheprovider", "-p", "unix_sockets", *map(str, names)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    variables = environment() | variables | {"PYTHONPATH": path.rstrip(os.pathsep)}
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables).returncode


def serve(port: int) -> None:
    """Show the pages to this machine alone, until Ctrl-C."""
    _, html = place("quick")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(html))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.exit(f"the port must be free and below 65536, got {port} ({reason}): "
                 f"make serve PORT=8001")
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"The book is at http://127.0.0.1:{server.server_port}/ until Ctrl-C", flush=True)
        server.serve_forever()


def warm_fonts() -> None:
    """Let matplotlib list the fonts once: a kernel that does so for long says it on stderr."""
    kept = Path(environment()["MPLCONFIGDIR"])
    if not any(kept.glob("fontlist-*.json")):
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"],
                       stderr=subprocess.DEVNULL)


def run(arguments: argparse.Namespace) -> int:
    """One action of the command line."""
    if arguments.action == "serve":
        serve(arguments.port)
        return 0
    warm_fonts()
    if arguments.action == "check":
        return check(arguments.jobs)
    if arguments.action == "notebooks":
        refresh_notebooks(arguments.jobs, fresh=arguments.fresh)
    elif arguments.action == "pdf":
        print(f"The book is at {pdf(arguments.profile, arguments.jobs)}")
    else:
        print(f"The book is at {build(arguments.profile, arguments.jobs)}")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["build", "notebooks", "check", "pdf", "serve"])
    parser.add_argument("--profile", choices=["quick", "full"], default="quick")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1),
                        help="chapters executed at once")
    parser.add_argument("--fresh", action="store_true", help="execute even what is up to date")
    parser.add_argument("--port", type=int, default=8000, help="where the pages are shown")
    arguments = parser.parse_args()
    os.environ.update(environment())
    try:
        return run(arguments)
    except KeyboardInterrupt:
        print("\nStopped; the chapters that were finished are kept.", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder of someone else: its text names the file
        sys.exit(f"{arguments.action} failed: {error}")


if __name__ == "__main__":
    sys.exit(main())
