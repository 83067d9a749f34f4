"""Arrays from .npz files of anybody: nothing is unpickled, and nothing unpacked before its size is
known to be within a limit."""

import math
import zipfile
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def mebibytes(count: int) -> str:
    """A number of bytes as readers write it."""
    return f"{count / 2**20:,.0f} MiB"


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {member.filename.removesuffix(".npy"): member for member in archive.infolist()
            if member.filename.endswith(".npy")}


def sizes(file: IO[bytes]) -> dict[str, int]:
    """The bytes that every array of an .npz file takes when it is read, by name; zipfile's errors
    where it is none. zipfile never unpacks more of a member than is stated here."""
    with zipfile.ZipFile(file) as archive:
        return {name: member.file_size for name, member in _members(archive).items()}


def read(file: IO[bytes], wanted: Iterable[str], *, most: int) -> dict[str, NDArray[Any]]:
    """Those arrays of an .npz file that are ``wanted`` and there. ValueError: together they take
    more than ``most`` bytes, an array is not of the size that its header states, or one holds
    Python objects. A damaged archive raises zipfile's, zlib's and numpy's own errors."""
    with zipfile.ZipFile(file) as archive:
        members = _members(archive)
        found = {name: members[name] for name in wanted if name in members}
        if (total := sum(member.file_size for member in found.values())) > most:
            raise ValueError(f"arrays that take {mebibytes(total)}")
        return {name: _array(archive, member) for name, member in found.items()}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    # as numpy writes them; other methods may ask for any memory to unpack with
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} compressed by method {member.compress_type}")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename} in version {version} of the format")
        shape, _, dtype = _HEADERS[version](file)
        body = member.file_size - file.tell()
    # numpy makes room for what the header states before it has read any of it
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != body:
        raise ValueError(f"{member.filename} of {body} bytes for {dtype} {shape}")
    with archive.open(member) as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))
