"""A pytest plugin: nbval's kernels talk over Unix sockets, as the chapters' do in tools/book.py.

A TCP port that was free when the manager looked may be taken before the kernel binds it; with
several kernels started at once that happens about once in a hundred runs of the tests.
"""

import tempfile
from pathlib import Path
from typing import Any

import nbval.kernel

import book

_Manager = nbval.kernel.KernelManager
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed as the process ends


def _manager(**options: Any) -> Any:
    _folders.append(book.scratch())
    return _Manager(**options, **book.channels(Path(_folders[-1].name)))


nbval.kernel.KernelManager = _manager
