"""Time the engine beside its peers, after checking that all compute the same meta-gradient.

python benchmarks/bench.py           every work that this machine can do, into the pages' tables
python benchmarks/bench.py --check   only the equality, on small networks in float64, with what the
                                     peers computed when they last were run: needs none of them
python benchmarks/bench.py --peers   the same with the peers themselves; keeps what they compute
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PAGES = (ROOT / "README.md", ROOT / "book" / "reproduce.md")
BEGIN, END = "<!-- benchmarks: written by make bench -->", "<!-- end of benchmarks -->"
KEPT = Path(__file__).resolve().parent / "peers.npz"
INPUTS = [Path(__file__).resolve().parent / name
          for name in ("works.py", "contestants.py", "requirements.txt")]
OURS = ("companion", "companion, compiled")
CHECK, TIMED = 1e-5, 1e-4  # greatest difference of two meta-gradients, relative to their size


def equal_threads(count: int) -> None:
    """Give every contestant as many threads: to be called before torch and JAX are imported.

    XLA takes its pool's size from NPROC, OpenMP and torch theirs from OMP_NUM_THREADS; where the
    system can, the process is kept to as many cores.
    """
    os.environ |= {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count),
                   "NPROC": str(count)}
    if count == 1:
        os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                                   + " --xla_cpu_multi_thread_eigen=false")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def differ(a: dict[str, Any], b: dict[str, Any]) -> float:
    """|a - b| / |b| over the runs that both have."""
    import numpy as np

    runs = min(len(next(iter(side.values()))) for side in (a, b))
    off = sum(
        float(((np.asarray(a[name][:runs], dtype=float) - b[name][:runs]) ** 2).sum()) for name in b
    )
    size = sum(float((np.asarray(b[name][:runs], dtype=float) ** 2).sum()) for name in b)
    return float(np.sqrt(off / size))


def entrants(work: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The step of every contestant that can do the work, its first call's seconds, and its
    gradient; of some ``names`` alone."""
    from contestants import CONTESTANTS, arrays

    found = {}
    for name in names or CONTESTANTS:
        step = CONTESTANTS[name](work)
        if step is None:
            continue
        started = time.perf_counter()
        gradient = arrays(step())
        found[name] = (step, time.perf_counter() - started, gradient)
    return found


def agree(work: Any, found: dict[str, Any], tolerance: float) -> float:
    """The largest difference from the plain engine; exits where one is too large, or where nothing
    was computed."""
    import numpy as np

    reference = found["companion"][2]
    size = np.sqrt(sum(float((value.astype(float) ** 2).sum()) for value in reference.values()))
    if not size > 1e-2:
        sys.exit(f"{work.name}: the meta-gradient must not vanish, its size is {size}")
    worst = 0.0
    for name, (_, _, gradient) in found.items():
        off = differ(gradient, reference)
        worst = max(worst, off)
        if not off < tolerance:
            sys.exit(
                f"{work.name}: the meta-gradient of {name} must be that of companion to "
                f"{tolerance}, is off by {off}"
            )
    return worst


def inputs() -> str:
    """A hash of all that what the peers compute depends on: the works, who does them and how, and
    the peers' versions. Our engine has no part in it."""
    total = hashlib.sha256()
    for path in INPUTS:
        total.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return total.hexdigest()


def given(work: Any) -> Any:
    """A few numbers that tell the starts and tasks of a work from others."""
    import numpy as np

    params, tasks = work.data()
    leaves = [*params.values(), *tasks.support, *tasks.query]
    return np.array([float((leaf.double().flatten() * (1 + i)).cos().sum())
                     for i, leaf in enumerate(leaves)])


def kept() -> dict[str, dict[str, Any]]:
    """What the peers computed when they last were run, as :func:`entrants` of every work. Exits
    where that was for other works, by other peers, or not all of it is there."""
    import numpy as np

    from works import CHECKS

    again = "run `make bench-check-peers`, which runs the peers"
    if not KEPT.is_file():
        sys.exit(f"{KEPT.name} must hold what the peers compute, got no such file; {again}")
    with np.load(KEPT, allow_pickle=False) as stored:
        values = dict(stored)
    if str(values.pop("inputs", "")) != inputs():
        names = ", ".join(path.name for path in INPUTS)
        sys.exit(f"{KEPT.name} must be of the present {names}, got that of others; {again}")
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        work, peer, name = key.split("/")
        found.setdefault(work, {}).setdefault(peer, {})[name] = value
    for work in CHECKS:
        peers = found.get(work.name, {})
        tasks = peers.pop("given", {}).get("data", np.zeros(0))
        if len(peers) < 2:
            sys.exit(f"{KEPT.name} must hold two peers or more for {work.name}, "
                     f"got {len(peers)}; {again}")
        data = given(work)
        if tasks.shape != data.shape or not np.allclose(tasks, data, rtol=1e-8, atol=1e-8):
            sys.exit(f"{KEPT.name} must be of the starts and tasks of {work.name}, "
                     f"got that of others; {again}")
    return {work: {peer: (None, 0.0, gradient) for peer, gradient in peers.items()}
            for work, peers in found.items()}


def check() -> None:
    """Ours agree with what the peers computed, on small works of every kind. To compile the
    convolutional ones takes minutes, and is left to ``--peers`` and, for a smaller network, to
    tests/test_training.py."""
    from works import CHECKS

    stored = kept()
    for work in CHECKS:
        found = entrants(work, OURS[:1] if work.kind == "cnn" else OURS) | stored[work.name]
        print(f"{work.name}: {len(found)} agree to {agree(work, found, CHECK):.1e}", flush=True)


def check_peers() -> None:
    """All contestants agree on small works of every kind; what the peers compute is kept, where
    what is kept is of others."""
    import numpy as np

    from works import CHECKS

    values, ours = {"inputs": np.array(inputs())}, {}
    for work in CHECKS:
        found = entrants(work)
        print(f"{work.name}: {len(found)} agree to {agree(work, found, CHECK):.1e}", flush=True)
        ours[work.name] = {name: found[name] for name in OURS if name in found}
        values[f"{work.name}/given/data"] = given(work)
        values |= {f"{work.name}/{peer}/{name}": np.asarray(value, dtype=float)
                   for peer, (_, _, gradient) in found.items() if peer not in OURS
                   for name, value in gradient.items()}
    try:  # another machine's last digits are no news
        kept()
    except SystemExit:
        np.savez_compressed(KEPT, **values)
        print(f"{KEPT.name} is new: commit it")
    stored = kept()
    for work in CHECKS:
        agree(work, ours[work.name] | stored[work.name], CHECK)


def wait_for(device: str) -> None:
    """Let the device finish what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def measure(work: Any, seconds: float) -> dict[str, Any]:
    """Times of every contestant, in turn, for about ``seconds`` each and at least 5 rounds."""
    from contestants import PER_RUN

    worst = agree(work, entrants(work.twin), TIMED)
    found = entrants(work)
    taken: dict[str, list[float]] = {name: [] for name in found}
    while True:
        for name, (step, _, _) in found.items():
            if len(taken[name]) >= 5 and sum(taken[name]) > seconds:
                continue
            wait_for(work.device)
            started = time.perf_counter()
            step()
            wait_for(work.device)
            taken[name].append(time.perf_counter() - started)
        if all(len(times) >= 5 and sum(times) > seconds for times in taken.values()):
            break
        if max(len(times) for times in taken.values()) >= 200:
            break
    rows = {}
    for name, times in taken.items():
        runs = min(work.peer_runs, work.runs) if name in PER_RUN else work.runs
        micros = [1e6 * t / runs for t in times]
        rows[name] = {"median_us": statistics.median(micros), "least_us": min(micros),
                      "most_us": max(micros), "rounds": len(micros), "first_call_s": found[name][1]}
    return {"title": work.title, "largest_difference": worst, "contestants": rows}


def machine(device: str) -> dict[str, Any]:
    """What the times depend on."""
    from importlib import metadata

    import torch

    from companion.records import commit, processor

    names = ("torch", "higher", "torchopt", "jax", "jaxlib", "numpy")
    return {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "python": platform.python_version(), "commit": commit(),
            "versions": {name: metadata.version(name) for name in names},
            "date": datetime.now(UTC).date().isoformat()}


def rounded(value: float) -> str:
    """A time or ratio to two or three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def render(results: Path = RESULTS) -> str:
    """The tables of all results, as Markdown."""
    lines = [
        "Time of one MAML meta-gradient, per run; median of interleaved rounds, least to most "
        "in brackets. *Ratio*:",
        "over the faster of our two.",
        "",
    ]
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = result["contestants"]
        best = min(row["median_us"] for name, row in rows.items() if name.startswith("companion"))
        where = (result["machine"]["gpu"]
                 or f"{result['machine']['cpu']}, {result['machine']['cores']} cores")
        # older results name torch's
        threads = result["machine"].get("threads", result["machine"].get("torch_threads"))
        lines += [f"**{result['title']}** ({where}; threads of each: {threads}; "
                  f"{result['machine']['date']}):", "",
                  "| | ms per run | ratio | first call, s |", "| --- | --- | --- | --- |"]
        for name, row in rows.items():
            low, mid, high = (
                rounded(row[key] / 1000) for key in ("least_us", "median_us", "most_us")
            )
            times = f"{mid} [{low}, {high}]"
            lines.append(
                f"| {name} | {times} | {rounded(row['median_us'] / best)} | "
                f"{rounded(row['first_call_s'])} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def put_tables() -> None:
    """Write the rendered tables between the marks of the pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        page.write_text(f"{head}{BEGIN}\n\n{render()}\n\n{END}{rest.split(END)[1]}",
                        encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check that all compute the same")
    parser.add_argument("--peers", action="store_true", help="the same, and run the peers for it")
    parser.add_argument("--only", help="the name of one work")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for every contestant")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each contestant")
    arguments = parser.parse_args()
    equal_threads(arguments.threads)
    if arguments.check or arguments.peers:
        check_peers() if arguments.peers else check()
        return
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = (
        "1"  # so that the first call shows what compiling costs
    )
    import torch

    from works import WORKS

    names = [work.name for work in WORKS]
    if arguments.only not in (None, *names):
        parser.error(f"--only must be one of {', '.join(names)}")
    for work in WORKS:
        if arguments.only not in (None, work.name):
            continue
        if work.device == "cuda" and not torch.cuda.is_available():
            print(f"{work.name}: left out, no CUDA device")
            continue
        result = {"machine": machine(work.device), **measure(work, arguments.seconds)}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{work.name}.json").write_text(json.dumps(result, indent=2) + "\n",
                                               encoding="utf-8")
        print(f"{work.name}: done", flush=True)
    put_tables()
    print(render())


if __name__ == "__main__":
    main()
