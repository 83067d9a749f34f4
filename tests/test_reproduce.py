"""book/reproduce.md: what it tells one to type does what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "reproduce.md").read_text(encoding="utf-8")
(CELL,) = re.findall(r"```text\n(!git clone.*?)```", PAGE, flags=re.DOTALL)


def test_the_cell_for_colab(tmp_path: Path) -> None:
    """In a folder of its own, in a process that has started before there was a clone: it imports
    the package of the clone, not one that is installed, nor the folder as a package."""
    origin, scratch = tmp_path / "origin", tmp_path / "scratch"
    scratch.mkdir()
    for name in ("src", "results/linear"):
        shutil.copytree(ROOT / name, origin / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "claims.yml", "book/reproduce.md"):
        (origin / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, origin / name)
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a clone's origin"]):
        subprocess.run([*git, *words], check=True)

    program, installs = ["import subprocess"], []
    for line in CELL.splitlines():
        if line.startswith("!"):
            command = line[1:].replace("ADDRESS", origin.as_uri()).split()
            program.append(f"subprocess.run({command!r}, check=True)")
        elif line.startswith("%pip"):
            installs.append(line)  # of what is here already
        else:
            assert not line.startswith("%")
            program.append(line)
    program += ["import companion", "print(companion.__file__)",
                "from companion.experiments import linear",
                "print(len(linear.EXPERIMENT.load('full').table))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(program)], cwd=scratch,
                          capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    file, rows = done.stdout.splitlines()
    (clone,) = scratch.iterdir()
    assert Path(file) == clone / "src" / "companion" / "__init__.py"
    assert int(rows) > 1
    assert installs == [f'%pip install -q -e "./{clone.name}[book]"']
    assert (clone / "pyproject.toml").is_file()


def test_a_scheduler_listens_to_this_machine_only() -> None:
    """Every line that starts one, of every page: by itself it takes calls from everywhere."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").rglob("*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()
             if re.search(r"bin/dask[ -]scheduler|`dask[ -]scheduler -", line)]
    assert len(lines) == 2
    assert all("--host 127.0.0.1 --no-dashboard" in line for line in lines)
