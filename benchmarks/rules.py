"""What each meta-optimizer costs: time and memory of one meta-gradient of the two-layer work,
beside plain MAML.

python benchmarks/rules.py     writes benchmarks/results/rules/two-layer-cpu.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TARGET = HERE / "results" / "rules" / "two-layer-cpu.json"
ROUNDS = 15


def cases() -> list[tuple[str, int, bool]]:
    """(rule, inner steps, whether the rule adapts within the task)."""
    from companion.meta_optimizers import RULES

    plain = [(name, steps, False) for steps in (1, 3) for name in RULES]
    return plain + [(name, 3, True) for name in RULES if name != "SGD"]


def prepared(rule: str, steps: int, adapting: bool, compiled: bool,
             runs: int | None = None) -> tuple[Callable[[], Any], int, int]:
    """The step of a fleet with a rule of its own in every run, how many runs, and numbers in a
    rule."""
    from companion.meta_optimizers import RULES
    from companion.objectives import joined, learned
    from companion.training import fleet_gradient
    from works import WORKS

    (work,) = [work for work in WORKS if work.name == "two-layer-cpu"]
    work = replace(work, runs=runs or work.runs)
    params, tasks = work.data()
    made = RULES[rule](work.alpha)
    one = made.init({name: value[0] for name, value in params.items()})
    both = joined(params, {name: value.expand(work.runs, *value.shape).contiguous()
                           for name, value in one.items()})
    objective = learned(work.loss, steps=steps, rule=made, rule_alpha=0.01 if adapting else None)
    gradient = fleet_gradient(objective, compiled=compiled)
    return (lambda: gradient(both, tasks), work.runs,
            sum(value.numel() for value in one.values()))


def peak(rule: str, steps: int, adapting: bool) -> float:
    """Megabytes that a step holds at most beyond what the process held before it (Linux)."""
    once, _, _ = prepared(rule, steps, adapting, compiled=False, runs=1)
    once()  # loads what the step needs of torch
    step, _, _ = prepared(rule, steps, adapting, compiled=False)

    def held(kind: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(kind))

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = held("VmRSS")
    step()
    return held("VmHWM") - before


def main() -> None:
    """The command line; called with a case it prints the memory of that case alone."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", nargs=3, metavar=("RULE", "STEPS", "ADAPTING"),
                        help=argparse.SUPPRESS)
    wanted = parser.parse_args().peak
    if wanted:
        print(peak(wanted[0], int(wanted[1]), wanted[2] == "True"))
        return
    from bench import machine

    found = {}
    for case in cases():
        # several steps take minutes to compile
        modes = ("plain", "compiled") if case[1] == 1 else ("plain",)
        found[case] = {mode: prepared(*case, compiled=mode == "compiled") for mode in modes}
        for step, _, _ in found[case].values():
            step()
    taken: dict[tuple[Any, str], list[float]] = {(case, mode): [] for case in found
                                                 for mode in found[case]}
    for _ in range(ROUNDS):
        for case, modes in found.items():
            for mode, (step, runs, _) in modes.items():
                started = time.perf_counter()
                step()
                taken[case, mode].append(1e6 * (time.perf_counter() - started) / runs)
    rows = []
    for case, modes in found.items():
        command = [sys.executable, __file__, "--peak", *map(str, case)]
        memory = float(subprocess.run(command, check=True, capture_output=True,
                                      encoding="utf-8").stdout)
        times = {f"{mode}_us": statistics.median(taken[case, mode]) for mode in modes}
        least = {f"{mode}_least_us": min(taken[case, mode]) for mode in modes}
        rows.append(dict(zip(("rule", "steps", "adapting"), case, strict=True))
                    | {"own_parameters": modes["plain"][2], "peak_mb": memory} | times | least)
        print(rows[-1], flush=True)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine("cpu"), "rounds": ROUNDS, "rows": rows}
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
