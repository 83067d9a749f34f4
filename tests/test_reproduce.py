"""book/reproduce.md: what it tells one to type does what it says."""

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_cluster_listens_to_this_machine_only(tmp_path: Path) -> None:
    """As the page starts one, but for the ports: of no process does a socket answer others."""
    commands = re.findall(r"^\.venv/bin/(dask .*)$", PAGE, flags=re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["scheduler", "worker"]
    ports = {"8786": str(free_port()), "8787": str(free_port())}
    running = []
    try:
        for command in commands:
            words = re.sub(r":(8786|8787)\b", lambda port: f":{ports[port[1]]}", command).split()
            words += ["--port", ports["8786"]] if words[1] == "scheduler" else []
            with (tmp_path / words[1]).open("wb") as log:
                running.append(psutil.Popen([sys.executable, "-m", "distributed.cli.dask_"
                                             + words[1], *words[2:]], stdout=log, stderr=log,
                                            cwd=tmp_path))
        deadline = time.monotonic() + 120
        while (tmp_path / "worker").read_bytes().count(b"Registered to") < 2:
            assert time.monotonic() < deadline, (tmp_path / "worker").read_text(encoding="utf-8")
            time.sleep(0.2)
        processes = [one for root in running for one in (root, *root.children(recursive=True))]
        heard = [(one.laddr.ip, one.laddr.port) for process in processes
                 for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        assert {port for _, port in heard} >= {int(port) for port in ports.values()}
        assert len(heard) > 4  # the scheduler's two, and one or more of every worker
        assert {address for address, _ in heard} == {"127.0.0.1"}
    finally:
        for root in running:
            for one in (*root.children(recursive=True), root):
                one.kill()
            root.wait(10)
