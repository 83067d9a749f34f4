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
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE / "results" / "images"
ROUNDS = 5


def main() -> None:
    """The command line."""
    import torch

    from bench import machine
    from companion.experiments import depth_images, few_shot
    from companion.experiments.few_shot import Fleet, Model
    from companion.objectives import counted
    from companion.streams import torch_stream
    from companion.tasks.episodes import Pool
    from companion.tasks.sources import SPLITS

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    config = depth_images.PROFILES["full"]
    runs, batch = (config.seeds, config.sizes.meta_batch) if device == "cuda" else (1, 1)
    shapes = {"omniglot": (1, 28, 28), "cifar_fs": (3, 32, 32)}
    cases = {}
    for setting in config.settings:
        rng = torch_stream(0, "benchmarks/images")
        images = torch.randint(256, (40 * 20, *shapes[setting.source]), generator=rng,
                               dtype=torch.uint8)
        pool = Pool(images, 20 * torch.arange(40), torch.full((40,), 20),
                    torch.zeros(40, dtype=torch.long))
        pool = Pool(*(part.to(device) for part in pool))
        hard = dict.fromkeys(SPLITS, ((),) * runs)
        of = Fleet(setting, tuple(range(runs)), dict.fromkeys(SPLITS, pool), hard, device=device)
        for blocks in config.blocks:
            sizes = replace(config.sizes, blocks=blocks)
            for method in config.methods:
                for name in config.models:
                    model = Model(method, *depth_images.MODELS[name])
                    params = few_shot.start(of, model, sizes)
                    step = few_shot.gradient(of, model, sizes)
                    tasks = of.draw("train", "benchmark", batch)(0)
                    cases[setting.source, blocks, method, name] = (step, params, tasks)

    def seconds(case: tuple[object, ...]) -> float:
        step, params, tasks = cases[case]
        started = time.perf_counter()
        step(params, tasks)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for case in cases:
        seconds(case)
    taken: dict[tuple[object, ...], list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case in cases:
            taken[case].append(1e3 * seconds(case))
    rows = []
    for case, (_, params, _) in cases.items():
        rows.append(dict(zip(("source", "blocks", "method", "model"), case, strict=True))
                    | counted(params)
                    | {"median_ms": statistics.median(taken[case]), "least_ms": min(taken[case])})
        print(rows[-1], flush=True)
    told = {"machine": machine(device), "rounds": ROUNDS, "runs": runs, "episodes": batch,
            "rows": rows}
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / f"cnn-{device}.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
