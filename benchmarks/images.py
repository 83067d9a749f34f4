"""What each model of depth/images costs: time of one meta-gradient on random episodes, and numbers
of parameters.

python benchmarks/images.py [--device cuda]     writes benchmarks/results/images/cnn-DEVICE.json

On a GPU it measures the fleets of the full profile, whole: its milliseconds a step say how many
steps can be afforded.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TARGET = HERE / "results" / "images"
ROUNDS = 5
SHAPES = {"omniglot": (1, 28, 28), "cifar_fs": (3, 32, 32)}


def size(device: str) -> tuple[int, int]:
    """Runs of a fleet and episodes of a step: those of the full profile on a GPU, one on a CPU."""
    from companion.experiments.depth_images import PROFILES

    config = PROFILES["full"]
    return (config.seeds, config.sizes.budget.tasks) if device == "cuda" else (1, 1)


def prepared(source: str, blocks: int, method: str, name: str, alpha: float,
             device: str) -> tuple[Callable[[], Any], dict[str, int]]:
    """The step of a fleet of the full profile on random images, and how many numbers its model and
    rule have."""
    import torch
    from torch.utils._pytree import tree_map

    from companion import fleets, nets
    from companion.experiments.depth_images import MODELS, PROFILES
    from companion.losses import cross_entropy
    from companion.objectives import counted
    from companion.streams import torch_stream
    from companion.tasks import Fleet
    from companion.tasks.episodes import Pool, sample

    config, shape, (rule, layers) = PROFILES["full"], SHAPES[source], MODELS[name]
    setting, sizes = config.settings[source], config.sizes
    runs, batch = size(device)
    rng = torch_stream(0, "benchmarks/images")
    images = torch.randint(256, (40 * 20, *shape), generator=rng, dtype=torch.uint8)
    pool = Pool(images, 20 * torch.arange(40), torch.full((40,), 20),
                torch.zeros(40, dtype=torch.long))
    tasks = tree_map(lambda leaf: leaf.unflatten(0, (runs, batch)).to(device),
                     sample(pool, rng, episodes=runs * batch, ways=setting.ways,
                            shots=setting.shots, queries=setting.queries))
    rates = torch.full((runs,), alpha, device=device)
    fleet = Fleet("few_shot", tuple(range(runs)), (), rates, lambda *_: lambda step: tasks,
                  lambda task: task, cross_entropy, chunk=1 if device == "cpu" else None)
    net = nets.cnn(shape, sizes.filters, blocks, setting.ways, linear_layers=layers,
                   width=sizes.width, patches=device != "cpu")
    names = tuple(net.init(rng))
    top = nets.head_names(net.init(rng))
    adapted = {"ANIL": top, "BOIL": tuple(name for name in names if name not in top)}
    model = fleets.Model(net, rule=rule, steps=sizes.inner, adapted=adapted.get(method))
    params, gradient = fleets.start(fleet, model), fleets.gradient(fleet, model)
    return lambda: gradient(params, tasks, rates), counted(params)


def main() -> None:
    """The command line."""
    from bench import machine, wait_for
    from companion.experiments.depth_images import ARM, PROFILES, points

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device, config = parser.parse_args().device, PROFILES["full"]
    cases = {case: prepared(*case, device) for case in
             (tuple(point[name] for name in ARM) for point in points(config))
             if case[2] in config.deep}

    def seconds(step: Callable[[], Any]) -> float:
        started = time.perf_counter()
        step()
        wait_for(device)
        return time.perf_counter() - started

    for step, _ in cases.values():
        seconds(step)
    taken: dict[tuple[object, ...], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case, (step, _) in cases.items():
            taken[case].append(1e3 * seconds(step))
    rows = []
    for case, (_, numbers) in cases.items():
        rows.append(dict(zip(ARM, case, strict=True)) | numbers
                    | {"median_ms": statistics.median(taken[case]), "least_ms": min(taken[case])})
        print(rows[-1], flush=True)
    result = {"machine": machine(device), "rounds": ROUNDS,
              **dict(zip(("runs", "episodes"), size(device), strict=True)), "rows": rows}
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / f"cnn-{device}.json").write_text(json.dumps(result, indent=2) + "\n",
                                             encoding="utf-8")


if __name__ == "__main__":
    main()
