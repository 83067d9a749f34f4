import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    # the compiler's cache does not tell kernels for one instruction set from those for another
    build = Path(__file__).resolve().parents[1] / "_build"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(build / f"inductor-{capability}"))
settings.register_profile("companion", derandomize=True, deadline=None)
settings.load_profile("companion")


@pytest.fixture(scope="session")
def ci() -> bool:
    """True where a skipped check counts as a failed one."""
    return os.environ.get("CI") == "true"
