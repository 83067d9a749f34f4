"""A tiny experiment for the fault tests, and a program that runs it: ``python toy.py [workers N |
scheduler ADDR]``.

Every measured point leaves its number in the file TOY_LOG; TOY_SECONDS is how long a point takes;
the points named in TOY_BAD (a JSON object: point -> "nan", "diverge", "tuple", "raise") fail.
"""

import json
import os
import random
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

from companion import runs
from companion.errors import Diverged
from companion.experiment import Experiment

if __name__ in ("__main__", "__mp_main__"):  # the toy needs no torch, which takes seconds to import
    sys.modules["torch"] = SimpleNamespace(
        set_num_threads=lambda count: None, cuda=SimpleNamespace(is_available=lambda: False))


@dataclass(frozen=True)
class Config:
    count: int = 40


def points(config):
    return [{"index": i} for i in range(config.count)]


def measure(config, point, device):
    index = point["index"]
    with open(os.environ["TOY_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{index}\n")
    if seconds := float(os.environ.get("TOY_SECONDS", "0")):
        time.sleep(seconds)
    bad = json.loads(os.environ.get("TOY_BAD", "{}")).get(str(index))
    if bad == "raise":
        raise KeyError("a bug")
    if bad == "diverge":
        raise Diverged(17, "the weight")
    rng = random.Random(index)
    value = float("nan") if bad == "nan" else rng.random()
    value = (value, value) if bad == "tuple" else value
    return [{"value": value if i == 0 else rng.random(), "repeat": i, **point} for i in range(3)]


PROFILES = {"quick": Config(), "full": Config(count=41), "many": Config(count=10_000),
            "long": Config(count=200)}
EXPERIMENT = Experiment("toy", "a test", PROFILES, points, measure)


def main(*arguments: str, **options) -> None:
    options |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    if "workers" in options:
        options["workers"] = int(options["workers"])
    runs.run(EXPERIMENT, options.pop("profile", "quick"), progress=False, **options)


if __name__ == "__main__":
    import toy  # so that workers find the functions by name

    toy.main(*sys.argv[1:])
    print("done")
