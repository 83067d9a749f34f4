import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
settings.register_profile("companion", derandomize=True, deadline=None)
settings.load_profile("companion")


@pytest.fixture(scope="session")
def ci() -> bool:
    """True where a skipped check counts as a failed one."""
    return os.environ.get("CI") == "true"
