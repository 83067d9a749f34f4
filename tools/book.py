"""Execute the chapters, build the pages, check the notebooks. `make help` says which target calls
what.

python tools/book.py build [--profile full] [--jobs N]   execute what is stale, build the HTML
python tools/book.py pdf                                 the same as one PDF, by Chromium
python tools/book.py notebooks [--fresh]                 refresh the committed notebooks
python tools/book.py check                               nbval: do they still come out?
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
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


def channels(folder: Path) -> dict[str, str]:
    """Options of a kernel's manager: channels that no other process can take, sockets in
    ``folder``, where the system has them. ``folder`` must be short, as all of /tmp is."""
    if not hasattr(socket, "AF_UNIX"):
        return {}
    return {"transport": "ipc", "ip": str(folder / "kernel")}


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


def machinery() -> list[Path]:
    """What every chapter depends on: the package, the records and claims, this tool, the pinned
    versions."""
    package = [
        path for path in (ROOT / "src" / "companion").rglob("*") if path.suffix in {".py", ".yml"}
    ]
    package += [path for path in (ROOT / "results").rglob("*") if path.suffix in {".csv", ".json"}]
    return [*package, ROOT / "claims.yml", ROOT / "tools" / "book.py", ROOT / "requirements.txt",
            ROOT / "constraints.txt"]


def coalesced(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Neighbouring pieces of one stream as one: how a kernel cuts them depends on its timing."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


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
        if cell.cell_type == "code":
            cell.outputs = coalesced(cell.outputs)
    nbformat.validate(notebook)
    return notebook


def execute(source: Path, target: Path, profile: str) -> float:
    """Run one chapter from a fresh kernel and write the clean notebook; returns the seconds it
    took."""
    os.environ.update(ENVIRONMENT)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        before, after = Path(scratch, "in.ipynb"), Path(scratch, "out.ipynb")
        nbformat.write(jupytext.read(source), before)
        papermill.execute_notebook(
            str(before), str(after), parameters={} if profile == "quick" else {"profile": profile},
            kernel_name="python3", cwd=str(source.parent), progress_bar=False, log_output=False,
            execution_timeout=600 if profile == "quick" else None, start_timeout=120,
            config=Config(
                {"KernelManager": {"transport_encryption": "auto"} | channels(Path(scratch))}
            ),
            # a kernel is interrupted before it shuts down, and would report that as an error
            extra_arguments=["--log-level=CRITICAL"])
        notebook = clean(nbformat.read(after, 4))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(nbformat.writes(notebook, version=4) + "\n", encoding="utf-8")
    return time.monotonic() - started


def execute_stale(stage: Path, profile: str, jobs: int, *, fresh: bool = False) -> None:
    """Execute into ``stage`` the chapters whose text, package or versions changed since they last
    were."""
    version = f"{profile} {sys.version}"
    targets = {
        source: stage / source.relative_to(ROOT).with_suffix(".ipynb") for source in chapters()
    }
    keys = {source: digest([source, *machinery()], version) for source in targets}

    def key_file(source: Path) -> Path:
        return targets[source].with_suffix(".key")

    def done(source: Path) -> bool:
        return (targets[source].exists()
                and key_file(source).exists()
                and key_file(source).read_text(encoding="utf-8") == keys[source])

    stale = [source for source in targets if fresh or not done(source)]
    if not stale:
        return
    for source in stale:
        key_file(source).unlink(missing_ok=True)
    seconds, failed = {}, {}
    context = multiprocessing.get_context("spawn")
    with (ProcessPoolExecutor(jobs, mp_context=context) as pool,
          tqdm(total=len(stale), desc="Executing chapters", unit="chapter", disable=False) as bar):
        running = {
            pool.submit(execute, source, targets[source], profile): source for source in stale
        }
        for future in as_completed(running):
            source = running[future]
            try:
                seconds[source] = future.result()
                key_file(source).write_text(keys[source], encoding="utf-8")
            except (
                Exception
            ) as error:  # the other chapters go on; all failures are shown at the end
                failed[source] = error
            bar.update()
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
    stamp, index = html.parent / "html.key", html / "index.html"
    key = digest([*machinery(), *(path for path in stage.rglob("*") if path.is_file())])
    if not (index.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == key):
        stamp.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=html.parent) as scratch:
            made = sphinx(stage, Path(scratch), "html")
            shutil.rmtree(html, ignore_errors=True)
            shutil.move(made, html)
        stamp.write_text(key, encoding="utf-8")
    return index


def sphinx(stage: Path, scratch: Path, builder: str) -> Path:
    """Build the staged pages under ``scratch``; returns the folder of the result."""
    program = Path(sys.executable).parent / "jupyter-book"
    flags = ["--path-output", str(scratch), "--builder", builder, "-W", "--keep-going", "-n",
             "--all", "--quiet"]
    done = subprocess.run([program, "build", stage, *flags], capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nThe pages must build without a warning; see the "
                 f"lines above.")
    return scratch / "_build" / builder


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
    target = html.parent / "maml-companion.pdf"
    with (tempfile.TemporaryDirectory(dir=html.parent) as scratch, sync_playwright() as playwright,
          playwright.chromium.launch(executable_path=program, args=BROWSER) as browser):
        index = sphinx(stage, Path(scratch), "singlehtml") / "index.html"
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace('href="index.html#', 'href="#'), encoding="utf-8")
        page = browser.new_page(viewport={"width": PAPER, "height": 1000})
        page.emulate_media(media="print", color_scheme="light")  # before formulas are fitted
        page.goto(index.as_uri(), wait_until="load")
        page.wait_for_selector("html[data-typeset=done]", state="attached", timeout=300_000)
        page.pdf(path=target, format="A4", outline=True, tagged=True, display_header_footer=True,
                 margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                 header_template="<span></span>", footer_template=FOOTER)
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
    """nbval on the committed notebooks, as executed here and as another processor would; the worst
    exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env",
               "--nbval-cell-timeout=600", "-n", str(jobs), "--dist", "loadfile", "-p",
               "no:cacheprovider", "-p", "unix_sockets",
               *(str(path.relative_to(ROOT).with_suffix(".ipynb")) for path in chapters())]
    path = os.pathsep.join([str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    common = os.environ | ENVIRONMENT | {"PYTHONPATH": path.rstrip(os.pathsep)}
    codes = []
    for name, variables in (("this processor", {}), ("another processor", OTHER_MACHINE)):
        print(f"nbval, as on {name}", flush=True)
        codes.append(subprocess.run(command, cwd=ROOT, env=common | variables).returncode)
    return max(codes)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["build", "notebooks", "check", "pdf"])
    parser.add_argument("--profile", choices=["quick", "full"], default="quick")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1),
                        help="chapters executed at once")
    parser.add_argument("--fresh", action="store_true", help="execute even what is up to date")
    arguments = parser.parse_args()
    if arguments.action == "check":
        return check(arguments.jobs)
    if arguments.action == "notebooks":
        refresh_notebooks(arguments.jobs, fresh=arguments.fresh)
    elif arguments.action == "pdf":
        print(f"The book is at {pdf(arguments.profile, arguments.jobs)}")
    else:
        print(f"The book is at {build(arguments.profile, arguments.jobs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
